//! What the next listing need not ask again.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::super::{Client, Keyring, RegistryError};
use super::fake::{Fake, Seen, answer, bearer, challenge, limits, status, tags};

/// A registry with a token service whose tokens hold for so many seconds.
async fn registry(expires_in: f64) -> Fake {
    Fake::with_address(move |seen: &Seen, addr: SocketAddr| match (seen.path.as_str(), &seen.authorization) {
        ("/token", _) => {
            answer(200, &[], serde_json::json!({"token": seen.nth.to_string(), "expires_in": expires_in}).to_string())
        }
        (_, Some(authorization)) if authorization.starts_with("Bearer ") => tags(&["1"]),
        _ => bearer(addr),
    })
    .await
}

async fn list(client: &Client, registry: &Fake, users: &[&str]) -> Result<usize, RegistryError> {
    client.list_tags(&registry.request(registry.keyring(users))).await.map(|listing| listing.requests)
}

fn paths(registry: &Fake) -> Vec<String> {
    registry.log().into_iter().map(|seen| seen.path.replace("/v2/team/app/tags/", "")).collect()
}

#[tokio::test]
async fn an_expired_token_costs_one_request_more() {
    let registry = registry(1e-9).await;
    let client = registry.client(limits());
    assert_eq!(list(&client, &registry, &["alice:a"]).await, Ok(3));
    assert_eq!(list(&client, &registry, &["alice:a"]).await, Ok(2));
    assert_eq!(paths(&registry), ["list", "/token", "list", "/token", "list"]);
    // Others are asked first, whoever they are.
    for others in [&["bob:b"][..], &[], &["alice:b"]] {
        assert_eq!(list(&client, &registry, others).await, Ok(3), "{others:?}");
    }
}

#[tokio::test]
async fn basic_need_not_be_asked_again() {
    let registry = Fake::new(|seen| match &seen.authorization {
        Some(_) => tags(&["1"]),
        None => challenge(&["Basic"]),
    })
    .await;
    let client = registry.client(limits());
    assert_eq!(list(&client, &registry, &["alice:a"]).await, Ok(2));
    assert_eq!(list(&client, &registry, &["alice:a"]).await, Ok(1));
    assert_eq!(list(&client, &registry, &["alice:changed"]).await, Ok(2));
}

#[tokio::test]
async fn what_changed_is_asked_anew() {
    // From the second listing on the token service refuses, and the registry wants Basic.
    let tokens = AtomicUsize::new(0);
    let registry = Fake::with_address(move |seen: &Seen, addr: SocketAddr| {
        let authorization = seen.authorization.as_deref().unwrap_or_default();
        match (seen.path.as_str(), tokens.load(Ordering::SeqCst)) {
            ("/token", n) => {
                tokens.fetch_add(1, Ordering::SeqCst);
                if n == 0 { answer(200, &[], r#"{"token":"t","expires_in":1e-9}"#) } else { status(401) }
            }
            (_, 0) => bearer(addr),
            (_, 1) if authorization == "Bearer t" => tags(&["1"]),
            (_, _) if authorization.starts_with("Basic") => tags(&["1"]),
            _ => challenge(&["Basic"]),
        }
    })
    .await;
    let client = registry.client(limits());
    assert_eq!(list(&client, &registry, &["alice:a"]).await, Ok(3));
    assert_eq!(list(&client, &registry, &["alice:a"]).await, Ok(3));
    assert_eq!(list(&client, &registry, &["alice:a"]).await, Ok(1));
    assert_eq!(paths(&registry), ["list", "/token", "list", "/token", "list", "list", "list"]);
}

#[tokio::test]
async fn a_token_service_that_fails_is_not_asked_first_again() {
    let tokens = Arc::new(AtomicUsize::new(0));
    let count = tokens.clone();
    let registry = Fake::with_address(move |seen: &Seen, addr: SocketAddr| {
        if seen.path != "/token" {
            return if seen.authorization.is_some() { tags(&["1"]) } else { bearer(addr) };
        }
        match count.fetch_add(1, Ordering::SeqCst) {
            1 => status(404),
            _ => answer(200, &[], r#"{"token":"t","expires_in":1e-9}"#),
        }
    })
    .await;
    let client = registry.client(limits());
    assert_eq!(list(&client, &registry, &[]).await, Ok(3));
    assert!(matches!(list(&client, &registry, &[]).await, Err(RegistryError::Server { status: 404, .. })));
    assert_eq!(list(&client, &registry, &[]).await, Ok(3));
    assert_eq!(tokens.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn concurrent_listings_fetch_one_token() {
    let registry = registry(300.0).await;
    let client = registry.client(limits());
    let all = (0..10).map(|n| list(&client, &registry, if n % 2 == 0 { &["alice:a"] } else { &[] }));
    assert!(futures::future::join_all(all).await.iter().all(Result::is_ok));
    let tokens: Vec<_> = registry.log().into_iter().filter(|seen| seen.path == "/token").collect();
    assert_eq!(tokens.iter().filter(|seen| seen.authorization.is_some()).count(), 1);
    assert_eq!(tokens.len(), 2, "one for alice and one for nobody");
    assert_eq!(list(&client, &registry, &[]).await, Ok(1));
    assert!(client.list_tags(&registry.request(Keyring::default())).await.is_ok());
}
