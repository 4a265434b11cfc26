//! Where a marked password must not turn up: logs at trace level, Events, Images, metrics.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::api::events::v1::Event;
use kimup::api::{Image, SyncResult};
use kimup_testbed::{FaultReply, FaultRequest, FaultServer, KimupProcess, Registry};
use kube::api::{Api, ListParams, PostParams};
use serde_json::{Value, json};

use crate::own::Own;
use crate::support::Shop;

const USER: &str = "canary";
const PASSWORD: &str = "Zq7-canary-password-Xw9";
/// base64 of `canary:Zq7-canary-password-Xw9`.
const ENCODED: &str = "Y2FuYXJ5OlpxNy1jYW5hcnktcGFzc3dvcmQtWHc5";
/// base64 of the password alone.
const ENCODED_ALONE: &str = "WnE3LWNhbmFyeS1wYXNzd29yZC1Ydzk";
/// The token that a registry gives for it.
const TOKEN: &str = "Kp4-canary-token-Jf2";

/// A registry that repeats what it was sent wherever it can, and denies all the same.
fn repeats(request: &FaultRequest) -> FaultReply {
    let sent = format!("{} {PASSWORD}", request.authorization());
    let errors = json!({"errors": [{"code": "DENIED", "message": sent, "detail": sent}]});
    FaultReply::new(401, errors.to_string())
        .header("www-authenticate", &format!("Basic realm=\"{sent}\""))
        .header("warning", &format!("299 - \"{sent}\""))
        .header("docker-distribution-api-version", &sent)
}

/// A registry that gives a token for the password and then has no tags to list.
fn gives_tokens(request: &FaultRequest) -> FaultReply {
    if request.path() == "/token" {
        return FaultReply::new(200, json!({"token": TOKEN, "expires_in": 300}).to_string());
    }
    if request.authorization() == format!("Bearer {TOKEN}") {
        return FaultReply::new(200, format!("<html>{TOKEN} {PASSWORD}"));
    }
    let realm = format!("Bearer realm=\"http://{}/token\",service=\"s\"", request.address);
    FaultReply::new(401, "").header("www-authenticate", &realm)
}

/// A registry that leads elsewhere, with what it was sent in the address.
fn redirects(request: &FaultRequest) -> FaultReply {
    let sent = request.authorization().replace("Basic ", "");
    if sent.is_empty() {
        return FaultReply::new(401, "").header("www-authenticate", "Basic realm=\"r\"");
    }
    FaultReply::new(307, "").header("location", &format!("http://127.0.0.1:1/{sent}?{PASSWORD}"))
}

struct Scene {
    own: Own,
    shop: Shop,
    kimup: KimupProcess,
    /// Accepts the password; ends in the middle.
    private: Registry,
    /// What lies, by the name of its Image.
    hostile: [(&'static str, FaultServer); 3],
}

impl Scene {
    async fn start() -> Self {
        let own = Own::start().await;
        let private = Registry::htpasswd(USER, PASSWORD).await.unwrap();
        let hostile = [
            ("repeats", FaultServer::http(repeats).await.unwrap()),
            ("gives-tokens", FaultServer::http(gives_tokens).await.unwrap()),
            ("redirects", FaultServer::http(redirects).await.unwrap()),
        ];
        let mut options = own.options("kimup-canary").await;
        options.args.retain(|arg| arg != "--log-level" && arg != "info,kimup=debug");
        options.args.extend(["--log-level".to_owned(), "trace".to_owned()]);
        for host in [private.host()].into_iter().chain(hostile.iter().map(|(_, server)| server.host())) {
            options.args.extend(["--plain-http-registry".to_owned(), host]);
        }
        let kimup = KimupProcess::start(options).await.unwrap();
        let shop = own.shop("canary").await;
        Self { own, shop, kimup, private, hostile }
    }

    fn hosts(&self) -> Vec<(&'static str, String)> {
        let hostile = self.hostile.iter().map(|(name, server)| (*name, server.host()));
        [("answers", self.private.host())].into_iter().chain(hostile).collect()
    }

    /// The Secret, and one that is broken around the password.
    async fn create_secrets(&self) {
        let auths: serde_json::Map<String, Value> =
            self.hosts().into_iter().map(|(_, host)| (host, json!({"auth": ENCODED}))).collect();
        let broken = json!({"auths": {"broken": {"auth": PASSWORD, "password": [PASSWORD]}}});
        for (name, config) in [("pull", json!({"auths": auths})), ("broken", broken)] {
            let mut secret = Secret { type_: Some("kubernetes.io/dockerconfigjson".to_owned()), ..Secret::default() };
            secret.metadata.name = Some(name.to_owned());
            let data = ByteString(config.to_string().into_bytes());
            secret.data = Some(BTreeMap::from([(".dockerconfigjson".to_owned(), data)]));
            self.shop.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
        }
    }

    async fn create_image(&self, name: &str, host: &str, secret: &str) {
        let spec = json!({"image": format!("{host}/app"), "imagePullSecrets": [{"name": secret}]});
        self.shop.create_image(name, &json!({"spec": spec})).await;
    }

    /// All that somebody may read who may not read Secrets.
    async fn told(&self) -> Vec<(&'static str, String)> {
        let client = self.own.cluster.client().await.unwrap();
        let images = Api::<Image>::all(client.clone()).list(&ListParams::default()).await.unwrap().items;
        let events = Api::<Event>::all(client).list(&ListParams::default()).await.unwrap().items;
        assert!(!images.is_empty() && !events.is_empty());
        vec![
            ("the log", self.kimup.log_text()),
            ("Images", serde_json::to_string(&images).unwrap()),
            ("Events", serde_json::to_string(&events).unwrap()),
            ("metrics", self.kimup.metrics().await.unwrap()),
        ]
    }
}

#[tokio::test]
async fn a_marked_password_is_told_nowhere() {
    let mut scene = Scene::start().await;
    scene.private.push("app", "1.0.0").await.unwrap();
    scene.create_secrets().await;
    for (name, host) in scene.hosts() {
        scene.create_image(name, &host, "pull").await;
    }
    scene.create_image("broken", "127.0.0.1:1", "broken").await;
    let shop = &scene.shop;
    assert_eq!(shop.settles("answers", "1.0.0").await.result, Some(SyncResult::Success));
    let failures = [
        ("repeats", SyncResult::RegistryError),
        ("gives-tokens", SyncResult::TagsError),
        ("redirects", SyncResult::RegistryError),
        ("broken", SyncResult::PullSecretsError),
    ];
    for (name, result) in failures {
        shop.status_is(name, "has failed", |status| status.result == Some(result)).await;
    }
    // A registry that is down, while the credentials are known.
    scene.private.stop();
    let status = shop.sync("answers").await;
    assert_eq!((status.result, status.tag.as_deref()), (Some(SyncResult::RegistryError), Some("1.0.0")));

    // It was sent, by all means: to each of these, and to nobody who was not meant.
    for (name, server) in &scene.hostile {
        let sent = server.authorizations();
        assert!(sent.contains(&format!("Basic {ENCODED}")), "{name}: {sent:?}");
    }
    let told = scene.told().await;
    let log = &told[0].1;
    assert!(log.contains("TRACE") && log.contains("/v2/app/tags/list"), "the log is one at trace level");
    for (place, text) in &told {
        for mark in [PASSWORD, ENCODED, ENCODED_ALONE, TOKEN] {
            let at = text.to_ascii_lowercase().find(&mark.to_ascii_lowercase());
            let around = at.and_then(|at| text.get(at.saturating_sub(300)..at + 60)).unwrap_or_default();
            assert!(at.is_none(), "{place} tell {mark}: {around}");
        }
    }
}
