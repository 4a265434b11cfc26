//! Mirrors, remapped registries and their hosts' certificates: who is asked, and where credentials go.

use std::{path::Path, time::Duration};

use kimup_testbed::{FaultReply, FaultRequest, FaultServer};

use super::super::{Client, Config, Keyring, Limits, ListRequest, ManifestRequest, Registries};
use super::fake::{client, keyring, limits};
use super::world::{ALICE, BOB, Outcome, PUBLIC, World, bearer, challenge, link, redirect, status, tags, token};
use crate::policy::Repository;

fn registries(text: &str) -> Registries {
    Registries::parse(text, &|path: &Path| Err(format!("no {}", path.display()))).unwrap()
}

/// `r.io`, remapped to a registry with one mirror, both of this process.
fn mirrored(mirror: &FaultServer, registry: &FaultServer, limits: Limits) -> Client {
    let text = format!(
        "[[registry]]\nprefix = 'r.io'\nlocation = '{}'\nplain-http = true\n\
         [[registry.mirror]]\nlocation = '{}/proxy'\nplain-http = true",
        registry.host(),
        mirror.host()
    );
    client(Config { registries: registries(&text), limits, ..Config::default() })
}

fn app(keyring: Keyring) -> ListRequest {
    let repository = Repository::parse("r.io/team/app").unwrap();
    ListRequest { repository, keyring, insecure_skip_tls_verify: false }
}

/// The mirror answers so; the outcome of a listing, and how many requests each of the two had.
async fn check(
    mirror: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    expected: &str,
    requests: (usize, usize),
) {
    check_within(limits(), mirror, expected, requests).await;
}

async fn check_within(
    limits: Limits,
    mirror: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    expected: &str,
    requests: (usize, usize),
) {
    let mirror = FaultServer::http(mirror).await.unwrap();
    let registry = FaultServer::http(|_| tags(&["1", "2"])).await.unwrap();
    let client = mirrored(&mirror, &registry, limits);
    let result = client.list_tags(&app(Keyring::default())).await;
    if let Ok(listing) = &result {
        let from = if requests.1 > 0 { &registry } else { &mirror };
        assert_eq!(listing.endpoint, format!("http://{}", from.host()));
        assert_eq!(listing.requests, requests.0 + requests.1);
    }
    let outcome = Outcome { result };
    assert_eq!(outcome.text(), expected, "{:?}", outcome.result);
    assert_eq!((mirror.requests().len(), registry.requests().len()), requests, "{expected}");
    assert!(mirror.requests().iter().all(|seen| seen.path() == "/v2/proxy/team/app/tags/list"));
}

#[tokio::test]
async fn a_mirror_comes_first() {
    check(|_| tags(&["m"]), "m", (1, 0)).await;
    check(|seen| if seen.nth == 0 { status(503) } else { tags(&["m"]) }, "m", (2, 0)).await;
}

#[tokio::test]
async fn the_next_one_is_asked_when_a_mirror_fails() {
    check(|_| status(404), "1 2", (1, 1)).await;
    check(|_| status(500), "1 2", (4, 1)).await;
    check(|_| status(403), "1 2", (1, 1)).await;
    check(|_| challenge("Basic realm=\"x\""), "1 2", (1, 1)).await;
    check(|_| status(429).header("retry-after", "3600"), "1 2", (1, 1)).await;
    check(|_| FaultReply::raw(""), "1 2", (4, 1)).await;
    let brief = Limits { page_timeout: Duration::from_secs(1), ..limits() };
    check_within(brief, |_| FaultReply::silence(), "1 2", (1, 1)).await;
}

#[tokio::test]
async fn what_is_wrong_with_a_mirror_is_told() {
    check(|_| FaultReply::new(200, "<html>"), "! malformed", (1, 0)).await;
    check(|_| redirect("http://127.0.0.1:1/"), "! refused Redirect", (1, 0)).await;
    check(|_| bearer("https://elsewhere.example/token"), "! refused Realm", (1, 0)).await;
}

#[tokio::test]
async fn a_listing_never_mixes_endpoints() {
    let paged = |seen: &FaultRequest| match &*seen.query("last") {
        "" => link("</v2/proxy/team/app/tags/list?last=b&n=2>; rel=\"next\"", &["a", "b"]),
        _ => status(404),
    };
    check(paged, "1 2", (2, 1)).await;
}

#[tokio::test]
async fn each_host_gets_its_own_credentials_only() {
    let basic = |_: &FaultRequest| challenge("Basic realm=\"x\"");
    let mirror = FaultServer::http(basic).await.unwrap();
    let registry = FaultServer::http(|seen| match seen.authorization() {
        BOB => tags(&["1"]),
        _ => challenge("Basic realm=\"x\""),
    })
    .await
    .unwrap();
    let sent = |server: &FaultServer| {
        server
            .requests()
            .iter()
            .map(|seen| seen.authorization().to_owned())
            .filter(|sent| !sent.is_empty())
            .collect::<Vec<_>>()
    };
    let client = mirrored(&mirror, &registry, limits());
    // For the name that the Image has: no host of that name is asked, so they go nowhere.
    let outcome = Outcome { result: client.list_tags(&app(keyring("r.io", &["carol:c"]))).await };
    assert_eq!(outcome.text(), "! unauthorized false");
    assert!(sent(&mirror).is_empty() && sent(&registry).is_empty());
    // For the registry's location.
    let outcome = Outcome { result: client.list_tags(&app(keyring(&registry.host(), &["bob:b"]))).await };
    assert_eq!((outcome.text().as_str(), sent(&mirror), sent(&registry)), ("1", vec![], vec![BOB.to_owned()]));
    // For the mirror.
    let outcome = Outcome { result: client.list_tags(&app(keyring(&mirror.host(), &["alice:a"]))).await };
    assert_eq!(outcome.text(), "! unauthorized false");
    assert_eq!((sent(&mirror), sent(&registry).len()), (vec![ALICE.to_owned()], 1));
    // Images whose credentials differ for the mirror alone share no listing.
    let endpoints = client.0.endpoints(&app(Keyring::default()).repository, false).unwrap();
    let key = |users: &[&str]| client.0.shared.key(&app(keyring(&mirror.host(), users)), &endpoints);
    assert!(key(&["alice:a"]) != key(&["bob:b"]) && key(&["alice:a"]) != key(&[]));
    assert!(key(&["alice:a"]) == key(&["alice:a"]));
}

#[tokio::test]
async fn manifests_come_from_the_same_endpoints() {
    let mirror = FaultServer::http(|seen| match seen.path() {
        "/v2/proxy/team/app/manifests/1" => FaultReply::new(200, r#"{"schemaVersion":2,"manifests":[]}"#),
        _ => status(404),
    })
    .await
    .unwrap();
    let registry = FaultServer::http(|_| FaultReply::new(200, r#"{"schemaVersion":2,"manifests":[ ]}"#)).await.unwrap();
    let client = mirrored(&mirror, &registry, limits());
    let ask = async |tag: &str| {
        let ListRequest { repository, keyring, .. } = app(Keyring::default());
        let request = ManifestRequest { repository, tag: tag.to_owned(), keyring, insecure_skip_tls_verify: false };
        let (manifest, digest) = (client.manifest(&request).await, client.digest(&request).await);
        assert_eq!(manifest.unwrap().digest, digest.unwrap());
        (mirror.requests().len(), registry.requests().len())
    };
    assert_eq!(ask("1").await, (3, 0));
    assert_eq!(ask("2").await, (5, 3));
}

/// A client of the world's names, without the world's CA.
fn distrusting(world: &World, text: &str) -> Client {
    let pem = world.ca.pem().as_bytes().to_vec();
    let registries = Registries::parse(text, &|path: &Path| match path.to_str() {
        Some("ca.pem") => Ok(pem.clone()),
        _ => Err("not found".to_owned()),
    });
    world.client_with(Config { registries: registries.unwrap(), limits: limits(), ..Config::default() })
}

#[tokio::test]
async fn a_private_ca_is_for_its_host_only() {
    let mut world = World::new();
    let _registry = world.host("r.io", PUBLIC, |_| tags(&["1"])).await;
    let _other = world.host("other.io", PUBLIC, |_| tags(&["2"])).await;
    let check = async |text: &str, host: &str, expected: &str| {
        let client = distrusting(&world, text);
        let outcome = Outcome { result: client.list_tags(&super::world::request(host, &[])).await };
        assert_eq!(outcome.text(), expected, "{text} {host}");
    };
    let with = |rest: &str| format!("[[registry]]\nprefix = 'r.io'\n{rest}");
    check("", "r.io", "! unreachable tls").await;
    check(&with("ca-file = 'ca.pem'"), "r.io", "1").await;
    check(&with("ca-file = 'ca.pem'"), "other.io", "! unreachable tls").await;
    check(&with("skip-verify = true"), "r.io", "1").await;
    check(&with("skip-verify = true"), "other.io", "! unreachable tls").await;
    check(&with("[[registry.mirror]]\nlocation = 'other.io'\nca-file = 'ca.pem'"), "r.io", "2").await;
}

#[tokio::test]
async fn token_hosts_are_allowed_by_registry() {
    let mut world = World::new();
    let registry = |seen: &FaultRequest| match seen.authorization() {
        "Bearer t" => tags(&["1"]),
        _ => bearer("https://auth.other.io/token"),
    };
    let _registry = world.host("r.io", PUBLIC, registry).await;
    let _other = world.host("s.io", PUBLIC, registry).await;
    let auth = world.host("auth.other.io", PUBLIC, |_| token("t")).await;
    let text = "[[registry]]\nprefix = 'r.io'\nca-file = 'ca.pem'\ntoken-hosts = ['auth.other.io']\n\
                [[registry]]\nprefix = 's.io'\nca-file = 'ca.pem'\n\
                [[registry]]\nprefix = 'auth.other.io'\nca-file = 'ca.pem'";
    let client = distrusting(&world, text);
    let list =
        async |host: &str| Outcome { result: client.list_tags(&super::world::request(host, &["alice:a"])).await };
    assert_eq!(list("s.io").await.text(), "! refused Realm");
    assert_eq!(auth.requests().len(), 0);
    assert_eq!(list("r.io").await.text(), "1");
    assert_eq!(auth.requests().iter().map(|seen| seen.authorization().to_owned()).collect::<Vec<_>>(), [ALICE]);
}

#[tokio::test]
async fn a_public_registry_has_no_private_token_host() {
    let mut world = World::new();
    let registry = |seen: &FaultRequest| match seen.authorization() {
        "Bearer t" => tags(&["1"]),
        _ => bearer("https://sso.corp.io/token"),
    };
    let _public = world.host("r.io", PUBLIC, registry).await;
    let _private = world.host("s.io", "10.0.0.1", registry).await;
    let auth = world.host("sso.corp.io", "10.0.0.2", |_| token("t")).await;
    let table = |host: &str| format!("[[registry]]\nprefix = '{host}'\nca-file = 'ca.pem'\n");
    let allowed = "token-hosts = ['sso.corp.io']\n";
    let text = [table("r.io"), allowed.to_owned(), table("s.io"), allowed.to_owned(), table("sso.corp.io")].concat();
    let client = distrusting(&world, &text);
    let list =
        async |host: &str| Outcome { result: client.list_tags(&super::world::request(host, &["alice:a"])).await };
    assert_eq!(list("r.io").await.text(), "! refused Address");
    assert_eq!(auth.requests().len(), 0);
    assert_eq!(list("s.io").await.text(), "1");
}
