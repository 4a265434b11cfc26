//! Challenges and tokens (RFC 9110, 11; the docker registry's token authentication). Pure but for the token cache.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::{HeaderMap, HeaderValue, header::WWW_AUTHENTICATE};
use http_auth::ChallengeParser;
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use super::{
    error::RegistryError,
    memory::{Challenges, Turns},
    origin::Origin,
};

/// All `WWW-Authenticate` headers of one answer together, in bytes.
const MAX_CHALLENGES: usize = 16 * 1024;
/// How long a token holds that does not say so (docker token specification).
const DEFAULT_LIFE: Duration = Duration::from_secs(60);
const MAX_LIFE: Duration = Duration::from_secs(60 * 60);
/// Tokens that are kept.
const MAX_TOKENS: usize = 10_000;

/// What a registry wants to see. Of several, Bearer counts: its token opens one repository, a password opens all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: Url, service: Option<String> },
}

/// The challenge to answer. The scope that a registry names is not read: kimup asks for `pull` on one repository, ever.
pub(super) fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    let mut found = None;
    let mut size = 0;
    for value in headers.get_all(WWW_AUTHENTICATE) {
        size += value.len();
        if size > MAX_CHALLENGES {
            break;
        }
        let Ok(text) = value.to_str() else { continue };
        // What stands before a syntax error counts.
        for challenge in ChallengeParser::new(text).map_while(Result::ok) {
            let parameter = |name: &str| {
                let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
                found.map(|(_, value)| value.to_unescaped())
            };
            if challenge.scheme.eq_ignore_ascii_case("Bearer") {
                if let Some(realm) = parameter("realm").and_then(|realm| Url::parse(&realm).ok()) {
                    return Some(Challenge::Bearer { realm, service: parameter("service") });
                }
            } else if challenge.scheme.eq_ignore_ascii_case("Basic") {
                found = Some(Challenge::Basic);
            }
        }
    }
    found
}

/// `Authorization: Basic` (RFC 7617).
pub(super) fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    sensitive(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// `GET realm?service=…&scope=…`, keeping what the realm's address has already.
pub(super) fn token_url(realm: &Url, service: Option<&str>, scope: &str) -> Url {
    let mut url = realm.clone();
    url.set_fragment(None);
    let mut query = url.query_pairs_mut();
    query.extend_pairs(service.map(|service| ("service", service))).append_pair("scope", scope);
    drop(query);
    url
}

/// The body of the OAuth 2 request that turns an identity token into an access token.
pub(super) fn token_form(service: Option<&str>, scope: &str, refresh_token: &str) -> String {
    url::form_urlencoded::Serializer::new(String::new())
        .append_pair("grant_type", "refresh_token")
        .extend_pairs(service.map(|service| ("service", service)))
        .append_pair("client_id", "kimup")
        .append_pair("scope", scope)
        .append_pair("refresh_token", refresh_token)
        .finish()
}

/// A bearer token, ready to send; its debug text is `Sensitive`.
#[derive(Clone, Debug)]
pub(super) struct Token {
    pub(super) header: HeaderValue,
    pub(super) expires: Instant,
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

/// Reads a token service's answer. The life counts from the request, by this host's clock: `issued_at` would need two
/// clocks that agree.
pub(super) fn parse_token(body: &[u8], host: &str, asked_at: Instant) -> Result<Token, RegistryError> {
    let malformed = |cause: &str| RegistryError::Malformed { host: host.to_owned(), cause: cause.to_owned() };
    let answer: TokenAnswer = serde_json::from_slice(body).map_err(|_| malformed("no token in its JSON"))?;
    let filled = |token: Option<String>| token.filter(|token| !token.is_empty());
    let token = filled(answer.token).or(filled(answer.access_token)).ok_or_else(|| malformed("no token"))?;
    let header = sensitive(&format!("Bearer {token}")).ok_or_else(|| malformed("a token with illegal characters"))?;
    let seconds = answer.expires_in.and_then(|value| value.as_f64()).filter(|seconds| *seconds > 0.0);
    let life = seconds.map_or(DEFAULT_LIFE, |seconds| Duration::from_secs_f64(seconds.min(MAX_LIFE.as_secs_f64())));
    // Renewed a little early: it must still hold when the request arrives.
    Ok(Token { header, expires: asked_at + life.mul_f64(0.9) })
}

/// Whose token for what. Nothing is shared across any of these.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct TokenKey {
    pub(super) registry: Origin,
    /// A token that came over an unverified connection is used over such connections only.
    pub(super) skip_verify: bool,
    pub(super) repository: String,
    /// Fingerprint of the credentials; `None` for anonymous.
    pub(super) credentials: Option<[u8; 32]>,
}

/// The tokens that hold, for all listings, and what else is remembered of logging in.
#[derive(Default)]
pub(super) struct TokenCache {
    tokens: Mutex<HashMap<TokenKey, Token>>,
    pub(super) challenges: Challenges,
    pub(super) turns: Turns,
}

impl TokenCache {
    pub(super) fn get(&self, key: &TokenKey) -> Option<Token> {
        self.lock().get(key).filter(|token| token.expires > Instant::now()).cloned()
    }

    pub(super) fn insert(&self, key: TokenKey, token: Token) {
        let mut tokens = self.lock();
        if tokens.len() >= MAX_TOKENS {
            let now = Instant::now();
            tokens.retain(|_, token| token.expires > now);
            if tokens.len() >= MAX_TOKENS {
                tokens.clear();
            }
        }
        tokens.insert(key, token);
    }

    /// Forgets a token that was refused; one that came meanwhile stays.
    pub(super) fn forget(&self, key: &TokenKey, refused: &HeaderValue) {
        let mut tokens = self.lock();
        if tokens.get(key).is_some_and(|token| token.header == *refused) {
            tokens.remove(key);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<TokenKey, Token>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges() {
        let check = |headers: &[&str], expected: &str| {
            let map = headers.iter().map(|value| (WWW_AUTHENTICATE, HeaderValue::from_str(value).unwrap())).collect();
            let text = match challenge(&map) {
                None => "none".to_owned(),
                Some(Challenge::Basic) => "basic".to_owned(),
                Some(Challenge::Bearer { realm, service }) => {
                    format!("{realm} {}", service.unwrap_or_default())
                }
            };
            assert_eq!(text, expected, "{headers:?}");
        };
        let bearer = r#"Bearer realm="https://a.io/t",service="s",scope="repository:x:pull,push""#;
        check(&[], "none");
        check(&[bearer], "https://a.io/t s");
        check(&[r#"bearer REALM="https://a.io/t", Service=s"#], "https://a.io/t s");
        check(&[r#"BEARER realm="https://a.io/t""#], "https://a.io/t ");
        check(&[r#"Bearer service="a, \"b\"", realm="https://a.io/t""#], r#"https://a.io/t a, "b""#);
        check(&[r#"Bearer realm="https://a.io/t?x=y,z",error="invalid_token""#], "https://a.io/t?x=y,z ");
        check(&[r#"Basic realm="x""#], "basic");
        check(&["basic"], "basic");
        check(&[r#"Basic realm="x", Bearer realm="https://a.io/t",service="s""#], "https://a.io/t s");
        check(&[r#"Bearer realm="https://a.io/t",service="s", Basic realm="x, y""#], "https://a.io/t s");
        check(&[r#"Basic realm="x""#, bearer], "https://a.io/t s");
        check(&[bearer, r#"Basic realm="x""#], "https://a.io/t s");
        check(&["Negotiate", r#"Digest realm="x", nonce="y""#], "none");
        check(&["Negotiate", r#"Basic realm="x""#], "basic");
        check(&["!!", bearer], "https://a.io/t s");
        check(&["Bearer", r#"Basic realm="x""#], "basic");
        check(&[r#"Bearer realm="/token""#], "none");
        check(&[r#"Bearer realm="https://a.io/t"#], "none");
        check(&[&format!(r#"Bearer realm="https://a.io/{}""#, "x".repeat(MAX_CHALLENGES))], "none");
    }

    #[test]
    fn requests() {
        let url =
            |realm: &str, service| token_url(&Url::parse(realm).unwrap(), service, "repository:a/b:pull").to_string();
        assert_eq!(
            url("https://a.io/t", Some("r.io&x=y")),
            "https://a.io/t?service=r.io%26x%3Dy&scope=repository%3Aa%2Fb%3Apull"
        );
        assert_eq!(url("https://a.io/t?x=y#z", None), "https://a.io/t?x=y&scope=repository%3Aa%2Fb%3Apull");
        assert_eq!(
            token_form(Some("s"), "repository:a:pull", "r&t"),
            "grant_type=refresh_token&service=s&client_id=kimup&scope=repository%3Aa%3Apull&refresh_token=r%26t"
        );
        assert_eq!(basic("u", "p").unwrap(), "Basic dTpw");
        assert!(basic("u", "hunter2").is_some_and(|value| value.is_sensitive()));
    }

    #[tokio::test(start_paused = true)]
    async fn tokens() {
        let check = |body: &str, expected: Option<(&str, f64)>| {
            let now = Instant::now();
            let token = parse_token(body.as_bytes(), "a.io", now).ok();
            let found = token.as_ref().map(|token| {
                let life = (token.expires - now).as_secs_f64() / 0.9;
                (token.header.to_str().unwrap(), (life * 10.0).round() / 10.0)
            });
            assert_eq!(found, expected, "{body}");
        };
        check(r#"{"token":"t"}"#, Some(("Bearer t", 60.0)));
        check(r#"{"access_token":"t","expires_in":300}"#, Some(("Bearer t", 300.0)));
        check(r#"{"token":"t","access_token":"u","expires_in":0}"#, Some(("Bearer t", 60.0)));
        check(r#"{"token":"","access_token":"u","expires_in":-5}"#, Some(("Bearer u", 60.0)));
        check(r#"{"token":"t","expires_in":1e99}"#, Some(("Bearer t", 3600.0)));
        check(r#"{"token":"t","expires_in":"60"}"#, Some(("Bearer t", 60.0)));
        check(r#"{"token":"t","expires_in":1.5,"issued_at":"x"}"#, Some(("Bearer t", 1.5)));
        check(r#"{"token":"a\nb"}"#, None);
        check("{}", None);
        check("null", None);
        check(r#"{"token":5}"#, None);
        check("<html>", None);
    }

    #[tokio::test(start_paused = true)]
    async fn the_cache_shares_nothing() {
        let key = |registry: &str, skip_verify, repository: &str, credentials| TokenKey {
            registry: Origin::of(&Url::parse(registry).unwrap()).unwrap(),
            skip_verify,
            repository: repository.to_owned(),
            credentials,
        };
        let cache = TokenCache::default();
        let ours = key("https://r.io", false, "a", Some([1; 32]));
        cache.insert(ours.clone(), parse_token(br#"{"token":"t"}"#, "r.io", Instant::now()).unwrap());
        assert!(cache.get(&ours).is_some());
        for other in [
            key("https://r.io:444", false, "a", Some([1; 32])),
            key("http://r.io", false, "a", Some([1; 32])),
            key("https://r.io", true, "a", Some([1; 32])),
            key("https://r.io", false, "b", Some([1; 32])),
            key("https://r.io", false, "a", Some([2; 32])),
            key("https://r.io", false, "a", None),
        ] {
            assert!(cache.get(&other).is_none());
        }
        cache.forget(&ours, &HeaderValue::from_static("Bearer older"));
        tokio::time::advance(Duration::from_secs(53)).await;
        assert!(cache.get(&ours).is_some());
        tokio::time::advance(Duration::from_secs(2)).await;
        assert!(cache.get(&ours).is_none());
        cache.insert(ours.clone(), parse_token(br#"{"token":"t"}"#, "r.io", Instant::now()).unwrap());
        cache.forget(&ours, &HeaderValue::from_static("Bearer t"));
        assert!(cache.get(&ours).is_none());
    }

    proptest::proptest! {
        #[test]
        fn any_header_is_read(value in "[ -~]{0,60}") {
            let map = HeaderMap::from_iter([(WWW_AUTHENTICATE, HeaderValue::from_str(&value).unwrap())]);
            let _ = challenge(&map);
        }
    }
}
