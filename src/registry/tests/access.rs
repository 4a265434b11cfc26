//! Challenges, tokens and where credentials go.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use axum::response::Response;

use super::super::{Keyring, PullSecret, Refusal, RegistryError};
use super::fake::{Fake, Seen, answer, bearer, challenge, limits, page, redirect, status, tags};

const ALICE: &str = "Basic YWxpY2U6YQ==";
const BOB: &str = "Basic Ym9iOmI=";

/// A registry that wants Basic credentials of one user.
async fn basic_registry(accepted: &'static str) -> Fake {
    Fake::new(move |seen| match seen.authorization.as_deref() {
        Some(authorization) if authorization == accepted => tags(&["1"]),
        _ => challenge(&[r#"Basic realm="x""#]),
    })
    .await
}

/// A registry with a token service; `token` answers for it, `accepts` says which tokens hold.
async fn token_registry(
    token: impl Fn(&Seen) -> Response + Send + Sync + 'static,
    accepts: impl Fn(&str) -> bool + Send + Sync + 'static,
) -> Fake {
    Fake::with_address(move |seen: &Seen, addr: SocketAddr| match (seen.path.as_str(), &seen.authorization) {
        ("/token", _) => token(seen),
        (_, Some(authorization)) if accepts(authorization) => tags(&["1"]),
        _ => bearer(addr),
    })
    .await
}

fn token(token: &str) -> Response {
    answer(200, &[], serde_json::json!({ "token": token, "expires_in": 300 }).to_string())
}

#[tokio::test]
async fn basic_after_the_challenge() {
    let registry = basic_registry(ALICE).await;
    let client = registry.client(limits());
    let listing = client.list_tags(&registry.request(registry.keyring(&["alice:a"]))).await.unwrap();
    assert_eq!(listing.requests, 2);
    assert_eq!(registry.authorizations(), ["", ALICE]);
}

#[tokio::test]
async fn credentials_in_turn() {
    let registry = basic_registry(BOB).await;
    let client = registry.client(limits());
    client.list_tags(&registry.request(registry.keyring(&["alice:a", "bob:b"]))).await.unwrap();
    assert_eq!(registry.authorizations(), ["", ALICE, BOB]);
}

#[tokio::test]
async fn refused_credentials_stop() {
    let check = async |registry: &Fake, users: &[&str], expected_sent: bool, requests: usize| {
        let before = registry.log().len();
        let client = registry.client(limits());
        let error = client.list_tags(&registry.request(registry.keyring(users))).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unauthorized { sent, .. } if sent == expected_sent), "{error:?}");
        assert!(!error.is_tags_error() && !error.to_string().contains("YWxp"), "{error}");
        assert_eq!(registry.log().len() - before, requests, "{users:?}: {error}");
    };
    let nobody = basic_registry("nobody").await;
    check(&nobody, &[], false, 1).await;
    check(&nobody, &["alice:a"], true, 2).await;
    check(&nobody, &["alice:a", "bob:b"], true, 3).await;
    let many: Vec<String> = (0..50).map(|n| format!("user{n}:x")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    let client = nobody.client(limits());
    let before = nobody.log().len();
    assert!(client.list_tags(&nobody.request(nobody.keyring(&many))).await.is_err());
    assert_eq!(nobody.log().len() - before, 12);

    let no_token = token_registry(|_| status(401), |_| true).await;
    check(&no_token, &[], false, 2).await;
    check(&no_token, &["alice:a", "bob:b"], true, 3).await;
    let useless_token = token_registry(|_| token("t"), |_| false).await;
    check(&useless_token, &[], false, 3).await;
    check(&useless_token, &["alice:a"], true, 3).await;
    let forbidden = Fake::new(|seen| match seen.authorization {
        Some(_) => status(403),
        None => challenge(&["Basic"]),
    })
    .await;
    check(&forbidden, &["alice:a"], true, 2).await;
    let unknown = Fake::new(|_| challenge(&["Negotiate"])).await;
    check(&unknown, &["alice:a"], false, 1).await;
}

#[tokio::test]
async fn a_token_for_pull_on_this_repository() {
    let registry = token_registry(|_| token("t"), |authorization| authorization == "Bearer t").await;
    let client = registry.client(limits());
    let listing = client.list_tags(&registry.request(registry.keyring(&["alice:a"]))).await.unwrap();
    assert_eq!(listing.requests, 3);
    assert_eq!(registry.authorizations(), ["", ALICE, "Bearer t"]);
    let asked = &registry.log()[1];
    assert_eq!(
        (asked.method.as_str(), asked.query("service"), asked.query("scope")),
        ("GET", "fake", "repository:team/app:pull")
    );
}

#[tokio::test]
async fn tokens_are_kept_per_credentials() {
    let registry = token_registry(
        |seen| token(&seen.authorization.as_deref().unwrap_or("anonymous").replace(' ', "-")),
        |authorization| authorization.starts_with("Bearer "),
    )
    .await;
    let client = registry.client(limits());
    for users in [&["alice:a"][..], &["bob:b"], &[], &["alice:a"]] {
        client.list_tags(&registry.request(registry.keyring(users))).await.unwrap();
    }
    let alice = format!("Bearer {}", ALICE.replace(' ', "-"));
    let bob = format!("Bearer {}", BOB.replace(' ', "-"));
    let expected = ["", ALICE, &alice, "", BOB, &bob, "", "", "Bearer anonymous", &alice];
    assert_eq!(registry.authorizations(), expected);
    // Another repository needs another token.
    let mut other = registry.request(registry.keyring(&["alice:a"]));
    other.repository = crate::policy::Repository::parse(&format!("{}/team/other", registry.addr)).unwrap();
    client.list_tags(&other).await.unwrap();
    assert_eq!(registry.authorizations()[10..], ["", ALICE, &alice]);
}

#[tokio::test]
async fn one_refresh_in_the_middle() {
    // Each token holds for one page only.
    let issued = AtomicUsize::new(0);
    let registry = Fake::with_address(move |seen, addr| {
        let valid = format!("Bearer {}", issued.load(Ordering::SeqCst));
        match (seen.path.as_str(), seen.query("last")) {
            ("/token", _) => token(&(issued.fetch_add(1, Ordering::SeqCst) + 1).to_string()),
            (_, "") if seen.authorization.as_ref() == Some(&valid) => page("a", &["a"]),
            (_, "a") if seen.authorization.as_deref() == Some("Bearer 2") => tags(&["b"]),
            _ => bearer(addr),
        }
    })
    .await;
    let listing = registry.list().await.unwrap();
    assert_eq!((listing.tags().len(), listing.requests), (2, 6));
    assert_eq!(registry.authorizations(), ["", "", "Bearer 1", "Bearer 1", "", "Bearer 2"]);
}

#[tokio::test]
async fn a_second_401_after_the_refresh_stops() {
    let registry =
        Fake::with_address(|seen, addr| match (seen.path.as_str(), &seen.authorization, seen.query("last")) {
            ("/token", ..) => token("t"),
            (_, Some(_), "") => page("a", &["a"]),
            _ => bearer(addr),
        })
        .await;
    let error = registry.list().await.unwrap_err();
    assert!(matches!(error, RegistryError::Unauthorized { .. }), "{error:?}");
    assert_eq!(registry.authorizations(), ["", "", "Bearer t", "Bearer t", "", "Bearer t"]);
}

#[tokio::test]
async fn an_expired_token_is_renewed_before_it_is_sent() {
    let registry =
        Fake::with_address(|seen, addr| match (seen.path.as_str(), &seen.authorization, seen.query("last")) {
            ("/token", ..) => answer(200, &[], format!(r#"{{"access_token":"{}","expires_in":1e-9}}"#, seen.nth)),
            (_, None, _) => bearer(addr),
            (_, Some(_), "") => page("a", &["a"]),
            _ => tags(&["b"]),
        })
        .await;
    assert_eq!(registry.list().await.unwrap().tags().collect::<Vec<_>>(), ["a", "b"]);
    assert_eq!(registry.authorizations(), ["", "", "Bearer 1", "", "Bearer 3"]);
}

#[tokio::test]
async fn identity_tokens_go_to_the_token_service_only() {
    let registry = token_registry(|_| token("t"), |authorization| authorization == "Bearer t").await;
    let config = serde_json::json!({ registry.addr.to_string(): { "auth": "dTo=", "identitytoken": "hunter2" } });
    let data = [(".dockercfg".to_owned(), config.to_string().into_bytes())].into();
    let secret = PullSecret { name: "pull", kind: "kubernetes.io/dockercfg", data: &data };
    let keyring = Keyring::from_secrets([secret]).unwrap();
    registry.client(limits()).list_tags(&registry.request(keyring)).await.unwrap();
    assert_eq!(registry.authorizations(), ["", "", "Bearer t"]);
    let asked = &registry.log()[1];
    assert_eq!((asked.method.as_str(), asked.path.as_str()), ("POST", "/token"));
    assert_eq!(
        asked.body,
        "grant_type=refresh_token&service=fake&client_id=kimup&scope=repository%3Ateam%2Fapp%3Apull&refresh_token=hunter2"
    );
}

#[tokio::test]
async fn foreign_realms_get_nothing() {
    let thief = Fake::new(|_| token("t")).await;
    let realm = format!(r#"Bearer realm="http://{}/token""#, thief.addr);
    let registry = Fake::new(move |_| challenge(&[&realm])).await;
    for users in [&["alice:a"][..], &[]] {
        let request = registry.request(registry.keyring(users));
        let error = registry.client(limits()).list_tags(&request).await.unwrap_err();
        assert!(matches!(error, RegistryError::Refused { why: Refusal::Realm(_), .. }), "{error:?}");
    }
    assert_eq!((thief.log().len(), registry.log().len()), (0, 2));
}

#[tokio::test]
async fn realms_do_not_redirect() {
    let thief = Fake::new(|_| token("t")).await;
    let to = format!("http://{}/token", thief.addr);
    let registry = token_registry(move |_| redirect(&to), |_| true).await;
    let request = registry.request(registry.keyring(&["alice:a"]));
    let error = registry.client(limits()).list_tags(&request).await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused { why: Refusal::Redirect(_), .. }), "{error:?}");
    assert_eq!(thief.log().len(), 0);
}

#[tokio::test]
async fn odd_token_answers() {
    for body in ["", "<html>", "{}", r#"{"token":"a\nb"}"#, r#"{"token":""}"#] {
        let registry = token_registry(move |_| answer(200, &[], body), |_| true).await;
        let error = registry.list().await.unwrap_err();
        assert!(matches!(error, RegistryError::Malformed { .. }), "{body}: {error:?}");
        assert_eq!(registry.log().len(), 2);
    }
}
