//! Whose token is used for whom.

use std::net::SocketAddr;

use axum::response::Response;

use super::super::{Keyring, PullSecret};
use super::fake::{Fake, Seen, answer, bearer, limits, tags};

const ALICE: &str = "Basic YWxpY2U6YQ==";
const BOB: &str = "Basic Ym9iOmI=";

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
