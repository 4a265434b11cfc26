//! A token service as registries use it: the distribution project's "Token Authentication Specification", with the
//! OAuth 2 form for identity tokens.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Value, json};
use url::form_urlencoded;

use crate::fault::{FaultReply, FaultRequest, FaultServer};
use crate::pki::ServerCertificate;

/// How long a token is good for, in seconds.
const LIFE: u64 = 300;

/// The one user of a [`TokenService`].
#[derive(Clone, Debug)]
pub struct TokenUser {
    pub name: String,
    pub password: String,
    /// What `docker login` may have stored instead of the password.
    pub identity_token: String,
    /// Repositories that begin so may be pulled; asked for others, it gives a token that opens nothing, as the
    /// specification has it.
    pub pulls: String,
}

/// A token service over https, at `/token`. Anybody gets a token that opens nothing; a wrong password gets none.
pub struct TokenService {
    server: FaultServer,
    signer: Arc<Signer>,
}

impl TokenService {
    /// Starts it with this certificate. What it signs tokens with is its own.
    pub async fn start(certificate: &ServerCertificate, user: TokenUser) -> Result<Self> {
        let signer = Arc::new(Signer::new()?);
        let script_signer = Arc::clone(&signer);
        let script = move |request: &FaultRequest| answer(&script_signer, &user, request);
        Ok(Self { server: FaultServer::https(certificate, script).await?, signer })
    }

    /// The host that answers, with what it was asked.
    pub fn server(&self) -> &FaultServer {
        &self.server
    }

    pub(crate) fn signer(&self) -> Arc<Signer> {
        Arc::clone(&self.signer)
    }
}

/// Signs what a registry trusts.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    certificate: ServerCertificate,
}

impl Signer {
    pub(crate) const SERVICE: &str = "kimup-testbed";
    pub(crate) const ISSUER: &str = "kimup-testbed tokens";
    pub(crate) const ALGORITHM: &str = "ES256";

    fn new() -> Result<Self> {
        let certificate = ServerCertificate::self_signed(&[])?;
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &certificate.key);
        Ok(Self { key: key.map_err(|error| anyhow!("the key of the token service: {error}"))?, certificate })
    }

    pub(crate) fn certificate_pem(&self) -> &str {
        self.certificate.pem()
    }

    /// A token for everything that can be done at this path below `/v2/`.
    pub(crate) fn for_path(&self, path: &str) -> Result<String> {
        if path == "_catalog" {
            return self.sign("testbed", &json!([{"type": "registry", "name": "catalog", "actions": ["*"]}]));
        }
        let ends = ["/manifests/", "/blobs/", "/tags/"].map(|part| path.rfind(part));
        let end = ends.into_iter().flatten().min().with_context(|| format!("{path} names no repository"))?;
        let access = json!([{"type": "repository", "name": &path[..end], "actions": ["pull", "push", "delete"]}]);
        self.sign("testbed", &access)
    }

    /// A JSON Web Token (RFC 7519) that brings the certificate of its key along (`x5c`, RFC 7515).
    fn sign(&self, subject: &str, access: &Value) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
        let chain: Vec<String> = self.certificate.chain.iter().map(|der| STANDARD.encode(der)).collect();
        let header = json!({"typ": "JWT", "alg": Self::ALGORITHM, "x5c": chain});
        let claims = json!({"iss": Self::ISSUER, "aud": Self::SERVICE, "sub": subject, "iat": now, "nbf": now,
            "exp": now + LIFE, "jti": format!("{now}"), "access": access});
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&header), part(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes());
        let signature = signature.map_err(|_| anyhow!("a token cannot be signed"))?;
        Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
    }
}

fn answer(signer: &Signer, user: &TokenUser, request: &FaultRequest) -> FaultReply {
    let query = request.target.split_once('?').map_or("", |(_, query)| query);
    let basic = format!("Basic {}", STANDARD.encode(format!("{}:{}", user.name, user.password)));
    let (asked, known) = match (request.method.as_str(), request.path()) {
        ("GET", "/token") if request.authorization().is_empty() => (parameters(query.as_bytes()), None),
        ("GET", "/token") => (parameters(query.as_bytes()), Some(request.authorization() == basic)),
        ("POST", "/token") => {
            let asked = parameters(&request.body);
            let known = value(&asked, "grant_type") == "refresh_token"
                && value(&asked, "refresh_token") == user.identity_token
                && !value(&asked, "client_id").is_empty();
            (asked, Some(known))
        }
        _ => return FaultReply::new(404, ""),
    };
    if known == Some(false) {
        return FaultReply::new(401, r#"{"details": "incorrect username or password"}"#);
    }
    if value(&asked, "service") != Signer::SERVICE {
        return FaultReply::new(400, r#"{"details": "unknown service"}"#);
    }
    let subject = if known.is_some() { &user.name } else { "" };
    match signer.sign(subject, &granted(user, known.is_some(), value(&asked, "scope"))) {
        Ok(token) => {
            let body = json!({"token": token, "access_token": token, "expires_in": LIFE}).to_string();
            FaultReply::new(200, body).header("content-type", "application/json")
        }
        Err(error) => FaultReply::new(500, error.to_string()),
    }
}

/// The part of `repository:<name>:<action>,…` (several, with blanks between) that the user may do: to pull.
fn granted(user: &TokenUser, known: bool, scopes: &str) -> Value {
    let granted = scopes.split(' ').filter_map(|scope| {
        let (name, actions) = scope.strip_prefix("repository:")?.rsplit_once(':')?;
        let may = known && name.starts_with(&user.pulls) && actions.split(',').any(|action| action == "pull");
        may.then(|| json!({"type": "repository", "name": name, "actions": ["pull"]}))
    });
    granted.collect()
}

fn parameters(encoded: &[u8]) -> Vec<(String, String)> {
    form_urlencoded::parse(encoded).into_owned().collect()
}

fn value<'a>(parameters: &'a [(String, String)], name: &str) -> &'a str {
    parameters.iter().find(|(found, _)| found == name).map_or("", |(_, value)| value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_user_may_do_is_granted() {
        let (name, password, identity_token) = ("robot".to_owned(), "p".to_owned(), "i".to_owned());
        let user = TokenUser { name, password, identity_token, pulls: "team/".to_owned() };
        let check = |known: bool, scopes: &str, expected: &[&str]| {
            let found = granted(&user, known, scopes);
            let names: Vec<_> = found.as_array().unwrap().iter().map(|a| a["name"].as_str().unwrap()).collect();
            assert_eq!(names, expected, "{scopes}");
            assert!(found.as_array().unwrap().iter().all(|access| access["actions"] == json!(["pull"])), "{found}");
        };
        check(true, "repository:team/app:pull", &["team/app"]);
        check(true, "repository:team/app:pull,push repository:team/b:pull", &["team/app", "team/b"]);
        check(true, "repository:team/app:push", &[]);
        check(true, "repository:other/app:pull", &[]);
        check(true, "registry:catalog:*", &[]);
        check(true, "", &[]);
        check(false, "repository:team/app:pull", &[]);
    }

    #[test]
    fn the_repository_of_a_path() {
        let signer = Signer::new().unwrap();
        let check = |path: &str, expected: Option<&str>| {
            let claims = signer.for_path(path).ok().map(|token| {
                let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
                serde_json::from_slice::<Value>(&claims).unwrap()["access"][0]["name"].as_str().unwrap().to_owned()
            });
            assert_eq!(claims.as_deref(), expected, "{path}");
        };
        check("team/app/manifests/1.0", Some("team/app"));
        check("team/app/blobs/uploads/", Some("team/app"));
        check("app/tags/list", Some("app"));
        check("_catalog", Some("catalog"));
        check("", None);
    }
}
