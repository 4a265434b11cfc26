//! Digests and platforms of tags.

use axum::response::Response;
use serde_json::json;

use super::super::{Config, Keyring, ManifestRequest, RegistryError};
use super::fake::{Fake, Seen, answer, bearer, client, limits, redirect, status, tags};
use crate::policy::{Digest, Repository};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST_PATH: &str = "/v2/team/app/manifests/1.0";
const OTHER_SHA256: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

fn index() -> String {
    let of = |os: &str, architecture: &str| json!({ "platform": { "os": os, "architecture": architecture } });
    json!({ "schemaVersion": 2, "manifests": [of("linux", "amd64"), of("linux", "arm64"), of("unknown", "unknown")] })
        .to_string()
}

fn config() -> String {
    json!({ "os": "linux", "architecture": "arm", "variant": "v6", "rootfs": {} }).to_string()
}

fn image(config: &str, size: usize) -> String {
    let config = json!({ "mediaType": CONFIG, "digest": sha256(config), "size": size });
    json!({ "schemaVersion": 2, "config": config, "layers": [] }).to_string()
}

fn sha256(body: &str) -> String {
    Digest::sha256_of(body.as_bytes()).to_string()
}

fn sha512(body: &str) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA512, body.as_bytes());
    digest.as_ref().iter().fold("sha512:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

fn with_digest(digest: &str, body: &str) -> Response {
    answer(200, &[("docker-content-digest", digest)], body.to_owned())
}

fn text(outcome: Result<Digest, RegistryError>) -> String {
    outcome.map_or_else(|error| format!("{error:?}"), |digest| digest.to_string())
}

/// The digest of `tag` as text (or the error's), and the methods that were used.
async fn digest(tag: &str, script: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> (String, String) {
    let registry = Fake::new(script).await;
    let found = registry.client(limits()).digest(&registry.manifest_request(tag, Keyring::default())).await;
    let methods: Vec<_> = registry.log().into_iter().map(|seen| seen.method).collect();
    (text(found), methods.join(" "))
}

#[tokio::test]
async fn row_35_head_without_a_digest_or_with_a_malformed_one() {
    let check = async |tag: &str, head: &str, get: &str, expected: &str, methods: &str| {
        let (head_digest, get_digest) = (head.to_owned(), get.to_owned());
        let (found, used) = digest(tag, move |seen| {
            let digest = if seen.method == "HEAD" { &head_digest } else { &get_digest };
            if digest == "none" { answer(200, &[], index()) } else { with_digest(digest, &index()) }
        })
        .await;
        assert!(found.starts_with(expected), "{tag} {head} {get}: {found}");
        assert_eq!(used, methods, "{tag} {head} {get}");
    };
    let right = sha256(&index());
    let long = sha512(&index());
    let refused = "Malformed";
    check("1.0", &right, "none", &right, "HEAD").await;
    check("1.0", &long, "none", &long, "HEAD").await;
    for malformed in ["none", "", "sha256:", "sha256:xyz", &right[7..], &right.to_uppercase(), "sha1:1234"] {
        check("1.0", malformed, malformed, &right, "HEAD GET").await;
        check("1.0", malformed, &right, &right, "HEAD GET").await;
        check("1.0", malformed, &long, &long, "HEAD GET").await;
        check("1.0", malformed, OTHER_SHA256, refused, "HEAD GET").await;
        check(&right, malformed, malformed, &right, "HEAD GET").await;
        check(OTHER_SHA256, malformed, malformed, refused, "HEAD GET").await;
    }
    check(&right, &right, "none", &right, "HEAD").await;
    check(&right, OTHER_SHA256, "none", refused, "HEAD").await;
    check(&right, &long, &long, &right, "HEAD GET").await;
    check(&long, &right, &right, &long, "HEAD GET").await;
    check(&long, &right, OTHER_SHA256, refused, "HEAD GET").await;
}

#[tokio::test]
async fn two_digests_are_none() {
    let (found, used) = digest("1.0", |_| {
        let mut answer = with_digest(OTHER_SHA256, &index());
        answer.headers_mut().append("docker-content-digest", sha256("x").parse().unwrap());
        answer
    })
    .await;
    assert_eq!((found, used), (sha256(&index()), "HEAD GET".to_owned()));
}

#[tokio::test]
async fn statuses_of_head() {
    let check = async |code: u16, expected: &str, methods: &str| {
        let (found, used) = digest("1.0", move |seen| match &*seen.method {
            "HEAD" => status(code),
            _ => answer(200, &[], index()),
        })
        .await;
        assert!(found.starts_with(expected), "{code}: {found}");
        assert_eq!(used, methods, "{code}");
    };
    check(405, &sha256(&index()), "HEAD GET").await;
    check(404, "NoManifest", "HEAD").await;
    check(401, "Unauthorized", "HEAD").await;
    check(403, "Unauthorized", "HEAD").await;
    check(204, "Malformed", "HEAD").await;
    check(429, "RateLimited", "HEAD HEAD HEAD HEAD").await;
    check(500, "Server", "HEAD HEAD HEAD HEAD").await;
    check(307, "Malformed", "HEAD").await; // without a Location
}

#[tokio::test]
async fn what_is_no_manifest() {
    let check = async |code: u16, body: &str, expected: &str| {
        let sent = body.to_owned();
        let registry = Fake::new(move |_| answer(code, &[], sent.clone())).await;
        let request = registry.manifest_request("1.0", Keyring::default());
        let error = registry.client(limits()).manifest(&request).await.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{code} {body}: {error:?}");
        assert_eq!(registry.log().len(), 1, "{code} {body}");
        let host = registry.addr.to_string();
        assert!(error.host() == host && error.to_string().contains(&host), "{error}");
    };
    let error = |code: &str| json!({ "errors": [{ "code": code, "message": "m" }] }).to_string();
    check(404, &error("MANIFEST_UNKNOWN"), "NoManifest").await;
    check(404, "<html>", "NoManifest").await;
    check(404, "", "NoManifest").await;
    check(400, &error("MANIFEST_UNKNOWN"), "NoManifest").await;
    check(200, &error("MANIFEST_UNKNOWN"), "NoManifest").await;
    check(404, &error("NAME_UNKNOWN"), "NotFound").await;
    check(200, &error("DENIED"), "Malformed").await;
    check(400, &error("UNSUPPORTED"), "Server").await;
    check(206, &index(), "Malformed").await;
    check(200, "<html>", "Malformed").await;
    check(200, "", "Malformed").await;
    check(200, &index()[1..], "Malformed").await;
    let vast = format!("{{\"schemaVersion\":2{}}}", " ".repeat(4 * 1024 * 1024));
    check(200, &vast, "TooMuch").await;
    let entries = vec!["{}"; 1001].join(",");
    check(200, &format!(r#"{{"schemaVersion":2,"manifests":[{entries}]}}"#), "TooMuch").await;
}

#[tokio::test]
async fn a_missing_tag_is_named() {
    let registry = Fake::new(|_| status(404)).await;
    let error = registry.client(limits()).digest(&registry.manifest_request("1.0", Keyring::default())).await;
    let host = registry.addr.to_string();
    let expected = RegistryError::NoManifest { host, repository: "team/app".to_owned(), manifest: "1.0".to_owned() };
    assert!(expected.is_tags_error());
    assert_eq!(error, Err(expected));
}

#[tokio::test]
async fn what_is_asked() {
    let registry = Fake::new(|_| answer(200, &[], index())).await;
    let client = registry.client(limits());
    client.digest(&registry.manifest_request("1.0", Keyring::default())).await.unwrap();
    client.manifest(&registry.manifest_request(&sha256(&index()), Keyring::default())).await.unwrap();
    let log = registry.log();
    assert_eq!((log[0].path.as_str(), log[1].path.as_str()), (MANIFEST_PATH, MANIFEST_PATH));
    assert_eq!(log[2].path, format!("/v2/team/app/manifests/{}", sha256(&index())));
    for kind in ["oci.image.index.v1", "oci.image.manifest.v1"] {
        assert!(log.iter().all(|seen| seen.accept.contains(&format!("application/vnd.{kind}+json"))), "{log:?}");
    }
    for kind in ["manifest.list.v2", "manifest.v2"] {
        let kind = format!("application/vnd.docker.distribution.{kind}+json");
        assert!(log.iter().all(|seen| seen.accept.contains(&kind)), "{log:?}");
    }
}

#[tokio::test]
async fn what_is_neither_tag_nor_digest_is_not_asked_for() {
    let registry = Fake::new(|_| answer(200, &[], index())).await;
    for bad in ["", "../../other/manifests/1", "1.0?x", "a b", "sha256:abc", "sha384:00", ".hidden"] {
        let found = registry.client(limits()).digest(&registry.manifest_request(bad, Keyring::default())).await;
        assert!(matches!(found, Err(RegistryError::Config { .. })), "{bad}: {found:?}");
    }
    assert_eq!(registry.log().len(), 0);
}

/// The platforms of a tag, "none" or the error; the number of requests.
async fn platforms(manifest: String, blob: impl Fn() -> Response + Send + Sync + 'static) -> (String, usize) {
    let registry = Fake::new(move |seen| match &*seen.path {
        MANIFEST_PATH => answer(200, &[], manifest.clone()),
        _ => blob(),
    })
    .await;
    let found = registry.client(limits()).manifest(&registry.manifest_request("1.0", Keyring::default())).await;
    let told = found.map(|manifest| match manifest.platforms {
        Some(platforms) => platforms.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
        None => "none".to_owned(),
    });
    (told.unwrap_or_else(|error| format!("{error:?}")), registry.log().len())
}

#[tokio::test]
async fn platforms_of_manifests() {
    #[track_caller]
    fn check(found: &(String, usize), expected: &str, requests: usize) {
        assert!(found.0.starts_with(expected), "{found:?}, not {expected}");
        assert_eq!(found.1, requests, "{expected}");
    }
    let image_of = |config: &str| image(config, config.len());
    let no_blob = || status(404);
    check(&platforms(index(), no_blob).await, "linux/amd64 linux/arm64", 1);
    check(&platforms(image_of(&config()), || answer(200, &[], config())).await, "linux/arm/v6", 2);
    check(&platforms(image_of("{}"), || answer(200, &[], "{}")).await, "none", 2);
    check(&platforms(image_of(&config()), || answer(200, &[], "{}")).await, "Malformed", 2);
    check(&platforms(image_of(&config()), no_blob).await, "Malformed", 2);
    check(&platforms(image_of(&config()), || status(206)).await, "Malformed", 2);
    check(&platforms(image_of(&config()), || status(503)).await, "Server", 5);
    check(&platforms(image(&config(), 9 << 20), || answer(200, &[], config())).await, "TooMuch", 1);
    let vast = || answer(200, &[], " ".repeat((8 << 20) + 1));
    check(&platforms(image_of(&config()), vast).await, "TooMuch", 2);
    check(&platforms(r#"{"schemaVersion":2,"manifests":[]}"#.to_owned(), no_blob).await, "", 1);
    check(&platforms(r#"{"schemaVersion":2,"manifests":[{}]}"#.to_owned(), no_blob).await, "none", 1);
    check(&platforms(json!({ "mediaType": "application/x" }).to_string(), no_blob).await, "none", 1);
}

#[tokio::test]
async fn schema_1_has_the_digest_that_the_registry_tells() {
    let check = async |tag: &str, header: &str, expected: &str| {
        let header = header.to_owned();
        let registry = Fake::new(move |_| with_digest(&header, r#"{"schemaVersion":1,"architecture":"amd64"}"#)).await;
        let found = registry.client(limits()).manifest(&registry.manifest_request(tag, Keyring::default())).await;
        let found = found.inspect(|manifest| assert_eq!(manifest.platforms, None));
        let found = text(found.map(|manifest| manifest.digest));
        assert!(found.starts_with(expected), "{tag} {found}");
    };
    check("1.0", OTHER_SHA256, OTHER_SHA256).await;
    check(OTHER_SHA256, OTHER_SHA256, OTHER_SHA256).await;
    check(&sha256("x"), OTHER_SHA256, "Malformed").await;
    check("1.0", "", "Malformed").await;
}

#[tokio::test]
async fn a_token_of_a_listing_serves_for_manifests() {
    let registry = Fake::with_address(|seen, addr| match (&*seen.path, &seen.authorization) {
        ("/token", _) => answer(200, &[], json!({ "token": "t", "expires_in": 300 }).to_string()),
        (_, None) => bearer(addr),
        (MANIFEST_PATH, _) => with_digest(&sha256(&index()), &index()),
        _ => tags(&["1.0"]),
    })
    .await;
    let client = registry.client(limits());
    let keyring = || registry.keyring(&["alice:a"]);
    client.digest(&registry.manifest_request("1.0", keyring())).await.unwrap();
    client.list_tags(&registry.request(keyring())).await.unwrap();
    client.manifest(&registry.manifest_request("1.0", keyring())).await.unwrap();
    let alice = "Basic YWxpY2U6YQ==";
    assert_eq!(registry.authorizations(), ["", alice, "Bearer t", "Bearer t", "Bearer t"]);
    assert_eq!(registry.log()[1].query("scope"), "repository:team/app:pull");
    // Others ask for a token of their own.
    client.digest(&registry.manifest_request("1.0", Keyring::default())).await.unwrap();
    assert_eq!(registry.authorizations()[5..], ["", "", "Bearer t"]);
}

#[tokio::test]
async fn no_config_from_another_host_over_plain_http() {
    let other = Fake::new(|_| answer(200, &[], config())).await;
    let to = format!("http://{}/config", other.addr);
    let (found, _) = platforms(image(&config(), config().len()), move || redirect(&to)).await;
    assert!(found.starts_with("Refused") && other.log().is_empty(), "{found}");
}

#[test]
fn can_be_spawned() {
    fn is_send<T: Send>(_: T) {}
    let client = client(Config::default());
    let repository = Repository::parse("alpine").unwrap();
    let request = ManifestRequest {
        repository,
        tag: "1".to_owned(),
        keyring: Keyring::default(),
        insecure_skip_tls_verify: false,
    };
    is_send(client.digest(&request));
    is_send(client.manifest(&request));
}
