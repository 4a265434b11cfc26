//! Who shares a listing, and what a registry sees of it.

use std::sync::Arc;

use futures::FutureExt;
use kimup_testbed::{FaultReply, FaultRequest, FaultServer};
use tokio::time::Instant;

use super::super::{
    Asker, Keyring, ListRequest,
    shared::{Key, Shared},
};
use super::fake::{Fake, keyring, limits, status, tags};
use super::world;
use crate::policy::Repository;

fn request(repository: &str, keyring: Keyring) -> ListRequest {
    let repository = Repository::parse(repository).unwrap();
    ListRequest { repository, keyring, insecure_skip_tls_verify: false }
}

#[test]
fn who_may_share() {
    let shared = Shared::new().unwrap();
    let key = |repository: &str, registry: &str, users: &[&str]| {
        shared.key(&request(repository, keyring(registry, users)), &[])
    };
    let ours = key("r.io/a", "r.io", &["alice:a", "bob:b"]);
    let check = |other: Key, expected: bool, why: &str| assert_eq!(ours == other, expected, "{why}");
    check(key("r.io/a", "r.io/a", &["alice:a", "bob:b"]), true, "what would be sent is the same");
    check(key("r.io/b", "r.io", &["alice:a", "bob:b"]), false, "another repository");
    check(key("r.io/a", "r.io", &["bob:b", "alice:a"]), false, "another order");
    check(key("r.io/a", "r.io", &["alice:a"]), false, "fewer");
    check(key("r.io/a", "r.io", &["alice:a", "bob:c"]), false, "another password");
    check(key("r.io/a", "other.io", &["alice:a", "bob:b"]), false, "for another registry, so anonymous here");
    let skipping =
        ListRequest { insecure_skip_tls_verify: true, ..request("r.io/a", keyring("r.io", &["alice:a", "bob:b"])) };
    check(shared.key(&skipping, &[]), false, "an unverified connection");
    let elsewhere = Shared::new().unwrap().key(&request("r.io/a", keyring("r.io", &["alice:a", "bob:b"])), &[]);
    check(elsewhere, false, "another process has another key");
    assert!(key("r.io/a", "other.io", &["alice:a"]) == key("r.io/a", "r.io", &[]), "anonymous is anonymous");
}

#[tokio::test]
async fn shared_over_the_wire() {
    let registry = Fake::new(|_| tags(&["1"])).await;
    let client = registry.client(limits());
    let now = Instant::now();
    let [alice, nobody] = [registry.request(registry.keyring(&["alice:a"])), registry.request(Keyring::default())];
    let ask = |request: &ListRequest| {
        let (client, request) = (client.clone(), request.clone());
        async move { client.list_tags_shared(&request, now, Asker::Schedule).await.unwrap() }
    };
    let all = (0..10).map(|n| ask(if n % 2 == 0 { &alice } else { &nobody }).boxed());
    let found = futures::future::join_all(all).await;
    assert!(Arc::ptr_eq(&found[0], &found[8]) && !Arc::ptr_eq(&found[0], &found[1]));
    assert_eq!(registry.log().len(), 2);
    client.list_tags_shared(&nobody, Instant::now(), Asker::Person).await.unwrap();
    assert_eq!(registry.log().len(), 3);
}

type Script = Box<dyn Fn(&FaultRequest) -> FaultReply + Send + Sync>;

#[tokio::test]
async fn a_failure_tells_at_what() {
    let check = async |script: Script, expected: &str| {
        let registry = FaultServer::http(script).await.unwrap();
        let request = world::request(&registry.host(), &["alice:a"]);
        let client = world::plain_client(&registry, limits());
        let failed = client.list_tags_shared(&request, Instant::now(), Asker::Schedule).await.unwrap_err();
        assert!(failed.to_string().starts_with(&format!("{expected}: registry {}", registry.host())), "{failed}");
    };
    let realm = |request: &FaultRequest| world::bearer(&format!("http://{}/token", request.address));
    check(Box::new(|_| world::status(404)), "list page 1").await;
    let second = |request: &FaultRequest| {
        if request.query("last").is_empty() { world::page("1", &["1"]) } else { world::status(404) }
    };
    check(Box::new(second), "list page 2").await;
    let no_token =
        move |request: &FaultRequest| if request.path() == "/token" { world::status(404) } else { realm(request) };
    check(Box::new(no_token), "asking for a token").await;
    let with_token = move |request: &FaultRequest| match request.path() {
        "/token" => world::token("t"),
        _ if request.authorization() == "Bearer t" => world::status(404),
        _ => realm(request),
    };
    check(Box::new(with_token), "list page 1").await;
}

#[tokio::test]
async fn a_dead_registry_is_not_asked_by_everybody() {
    let dead = Fake::new(|_| status(200)).await;
    let client = dead.client(limits());
    let mut request = dead.request(Keyring::default());
    drop(dead);
    tokio::task::yield_now().await; // the server's task ends
    let mut requests = Vec::new();
    for n in 0..10 {
        request.repository = Repository::parse(&format!("127.0.0.1:1/app{n}")).unwrap();
        requests
            .push(client.list_tags_shared(&request, Instant::now(), Asker::Schedule).await.unwrap_err().to_string());
    }
    assert!(requests.windows(2).all(|pair| pair[0] == pair[1]), "{requests:?}");
    let metrics = client.0.transport.metrics.encode();
    assert!(metrics.contains("kimup_registry_requests_total{host=\"127.0.0.1:1\"} 1\n"), "{metrics}");
}
