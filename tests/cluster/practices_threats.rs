//! What somebody hostile may try: with a Pod of their own, or at the webhook itself (docs/webhook-practices.md).

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::annotated::{INTERVAL, POLICY, images};
use crate::optin::{APPLIED, IN, shop};
use crate::sides::pull_secret;
use crate::support::{Bed, DEADLINE, ENABLED, Shop, USER, image_of, pod, with_annotations};

/// Far more than an answer takes on a busy machine, far less than one that grows with the square of its input.
const PROMPT: Duration = Duration::from_secs(20);

/// Somebody in the cluster's network who speaks with the webhook directly.
pub struct Peer {
    client: reqwest::Client,
    url: String,
}

impl Peer {
    pub fn new(bed: &Bed) -> Self {
        kimup_testbed::install_crypto_provider();
        let client = reqwest::Client::builder().danger_accept_invalid_certs(true).no_proxy().build().unwrap();
        Self { client, url: format!("https://{}/mutate", bed.kimup.webhook()) }
    }

    /// Status and body of the answer.
    pub async fn post(&self, body: impl Into<reqwest::Body>) -> (u16, String) {
        let start = Instant::now();
        let response = self.client.post(&self.url).body(body).timeout(DEADLINE).send().await.unwrap();
        let (status, text) = (response.status().as_u16(), response.text().await.unwrap());
        assert!(start.elapsed() < PROMPT, "{:?}: {status} {}", start.elapsed(), &text[..text.len().min(200)]);
        (status, text)
    }

    /// The patch, or what else the answer is.
    async fn asks(&self, namespace: &str, pod: &Value) -> String {
        let (status, text) = self.post(review(namespace, &pod.to_string())).await;
        assert_eq!(status, 200, "{text}");
        let answer: Value = serde_json::from_str(&text).unwrap();
        match answer["response"]["patch"].as_str() {
            Some(patch) => {
                let patch: k8s_openapi::ByteString = serde_json::from_value(json!(patch)).unwrap();
                String::from_utf8(patch.0).unwrap()
            }
            None => text,
        }
    }
}

fn review(namespace: &str, pod: &str) -> String {
    format!(
        r#"{{"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {{
            "uid": "u", "namespace": "{namespace}", "operation": "CREATE",
            "resource": {{"group": "", "version": "v1", "resource": "pods"}}, "object": {pod}}}}}"#
    )
}

fn object(annotations: &Value, containers: &Value) -> Value {
    json!({"metadata": {"name": "x", "annotations": annotations}, "spec": {"containers": containers}})
}

/// The webhook answers for an honest Pod as ever.
async fn is_well(shop: &Shop, image: &str) {
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let created = shop.api::<Pod>().create(&dry, &pod("honest", &format!("{image}:1.0.0"))).await.unwrap();
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"));
}

#[tokio::test]
async fn who_reaches_the_webhook_gets_an_answer_and_changes_nothing() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "t-direct", &[IN], &[]).await;
    let peer = Peer::new(bed);
    let containers = json!([{"name": "app", "image": format!("{image}:1.0.0")}]);
    let version = async || shop.api::<kimup::api::Image>().get("web").await.unwrap().resource_version();
    let before = version().await;
    // This much can be learnt: the tag of an Image whose repository one names. `--client-ca-file` ends it.
    let patch = peer.asks(&shop.namespace, &object(&json!({}), &containers)).await;
    assert!(patch.contains(&format!("{image}:1.1.0")), "{patch}");
    // Not in another namespace's name, and nothing about repositories that one cannot name.
    let elsewhere = peer.asks("default", &object(&json!({ENABLED: "true"}), &containers)).await;
    assert!(!elsewhere.contains("1.1.0"), "{elsewhere}");
    let other = json!([{"name": "app", "image": "other.invalid/app:1.0.0"}]);
    let answer = peer.asks(&shop.namespace, &object(&json!({}), &other)).await;
    let answer: Value = serde_json::from_str(&answer).unwrap();
    assert_eq!(answer["response"], json!({"uid": "u", "allowed": true}));
    // Nobody's Pod and no Image comes of it.
    for _ in 0..2 {
        shop.sync("web").await;
    }
    assert_eq!(images(&shop).await, ["web"]);
    assert_eq!(shop.pods().await.len(), 0);
    assert_ne!(version().await, before, "only the requested syncs are written");
    is_well(&shop, &image).await;
}

#[tokio::test]
async fn who_reaches_the_webhook_learns_tags_and_no_credentials() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.private;
    registry.push_all("t-private", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("t-private", &[]).await;
    let image = registry.image("t-private");
    shop.api::<Secret>().create(&PostParams::default(), &pull_secret(bed, "pull")).await.unwrap();
    let peer = Peer::new(bed);
    let asks = async |secret: &str| {
        let containers = json!([{"name": "app", "image": format!("{image}:1.0.0")}]);
        let mut pod = object(&json!({POLICY: "semver", INTERVAL: "1h"}), &containers);
        pod["spec"]["imagePullSecrets"] = json!([{"name": secret}]);
        let answer = peer.asks(&shop.namespace, &pod).await;
        assert!(!answer.contains(USER.1) && !answer.contains(&registry.docker_config(USER.0, USER.1)), "{answer}");
        answer
    };
    // Only the name of the Secret is needed for what it can list.
    let newest = format!("{image}:1.1.0");
    eventually(DEADLINE, "an answer", async || asks("pull").await.contains(&newest)).await;
    assert!(!asks("another").await.contains("1.1.0"));
    assert_eq!(images(&shop).await, [""; 0]);
}

#[tokio::test]
async fn bodies_that_are_no_reviews_are_refused_and_forgotten() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "t-garbage", &[IN], &[]).await;
    let peer = Peer::new(bed);
    let app = json!({"name": "app", "image": format!("{image}:1.0.0")}).to_string();
    let with = |container: &str| {
        review(&shop.namespace, &format!(r#"{{"metadata": {{}}, "spec": {{"containers": {container}}}}}"#))
    };
    let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
    let check = async |body: String, wanted: &[u16], what: &str| {
        let (status, text) = peer.post(body).await;
        assert!(wanted.contains(&status), "{what}: {status} {}", &text[..text.len().min(300)]);
    };
    check(String::new(), &[400], "nothing").await;
    check("\u{0}".repeat(1000), &[400], "zeros").await;
    check(nested(10_000), &[400], "a deep body").await;
    check(nested(3_000_000), &[400], "the deepest body").await;
    check(with(&nested(10_000)), &[400], "deep containers").await;
    let deep = nested(10_000);
    // Where kimup does not look it may be anything.
    check(with(&format!("[{app}], \"future\": {deep}")), &[200, 400], "a deep unknown field").await;
    check(
        with(&format!("[{app}], \"future\": {{\"a\": {}1{}}}", "{\"a\":".repeat(10_000), "}".repeat(10_000))),
        &[200, 400],
        "deep objects",
    )
    .await;
    check(with("[{\"name\": \"app\", \"image\": \"\\ud800\"}]"), &[200, 400], "half a character").await;
    check(with(&format!("[{app}]")) + "{}", &[400], "two bodies").await;
    check("[".to_owned() + &"1,".repeat(3_000_000), &[400], "a list without end").await;
    is_well(&shop, &image).await;
}

/// The API server validates a Pod after the webhooks: names, numbers and sizes are whatever its creator wrote.
#[tokio::test]
async fn no_pod_keeps_the_webhook_busy() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "t-bombs", &[IN], &[]).await;
    let peer = Peer::new(bed);
    let text = format!("{image}:1.0.0");
    let app = json!([{"name": "app", "image": text}]);
    let check = async |what: &str, annotations: Value, containers: &Value| {
        let pod = object(&annotations, containers);
        let size = pod.to_string().len();
        assert!(size < 7 << 20, "{what}: {size}");
        peer.asks(&shop.namespace, &pod).await;
    };
    let all = |key: &dyn Fn(usize) -> String, value: &str, count: usize| -> Value {
        Value::Object((0..count).map(|n| (key(n), json!(value))).collect())
    };
    let many =
        |count: usize| -> Value { (0..count).map(|n| json!({"name": format!("c{n}"), "image": text})).collect() };
    check("foreign annotations", all(&|n| format!("example.org/{n}"), "x", 50_000), &app).await;
    check("switches of no container", all(&|n| format!("enabled.kimup.cloudavenue.io/{n}"), "true", 60_000), &app)
        .await;
    check("policies of no container", all(&|n| format!("policy.kimup.cloudavenue.io/{n}"), "patch", 60_000), &app)
        .await;
    let list: Vec<String> = (0..400_000).map(|n| format!("n{n}")).collect();
    let listed = json!({"kimup.cloudavenue.io/policy": "patch", "kimup.cloudavenue.io/containers": list.join(",")});
    check("a list of no containers", listed, &app).await;
    let applied: Vec<String> = (0..200_000).map(|n| format!("n{n}: 1 -> 2")).collect();
    check("a long record", json!({APPLIED: applied.join("; ")}), &many(1000)).await;
    check("containers", json!({}), &many(100_000)).await;
    let stamps = |n: usize| format!("stamp.kimup.cloudavenue.io/c{n}");
    check("stamps", all(&stamps, &format!("{text} {image}:1.1.0"), 1_000), &many(1_000)).await;
    let mut patterns = all(&|n| format!("policy.kimup.cloudavenue.io/c{n}"), "semver", 250);
    for n in 0..250 {
        patterns[format!("pattern.kimup.cloudavenue.io/c{n}")] = json!(r"(\w{50}){5}");
    }
    check("patterns", patterns, &many(250)).await;
    is_well(&shop, &image).await;
}

#[tokio::test]
async fn names_may_be_anything() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "t-names", &[IN], &[]).await;
    let peer = Peer::new(bed);
    for name in ["", "~1", "a/b", "..", "\u{0}", "\"", "\u{202e}ppa", "\u{1f980}", "app; other: 1 -> 2 (Image x)"] {
        let containers = json!([{"name": name, "image": format!("{image}:1.0.0")}]);
        let stamp = format!("stamp.kimup.cloudavenue.io/{name}");
        for annotations in [json!({}), json!({stamp: format!("{image}:1.0.0 {image}:1.1.0")})] {
            let patch = peer.asks(&shop.namespace, &object(&annotations, &containers)).await;
            let patch: Value = serde_json::from_str(&patch).unwrap();
            assert_eq!(patch[0]["path"], "/spec/containers/0/image", "{name:?}");
            assert_eq!(patch[0]["value"], format!("{image}:1.1.0"), "{name:?}");
            assert_eq!(patch.as_array().unwrap().len(), 2, "{name:?}");
            assert!(patch[1]["path"].as_str().unwrap().starts_with("/metadata/annotations"), "{name:?}");
        }
    }
    // An escaped key is the same key: for the API server it would be.
    let escaped = format!(
        r#"{{"metadata": {{}}, "spec": {{"containers": [{{"n\u0061me": "app", "\u0069mage": "{image}:1.0.0"}}]}}}}"#
    );
    let (status, _) = peer.post(review(&shop.namespace, &escaped)).await;
    assert_eq!(status, 200);
    is_well(&shop, &image).await;
}

#[tokio::test]
async fn a_key_that_comes_twice_is_read_as_the_api_server_reads_it() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "t-twice", &[IN], &[]).await;
    let manifest = |first: &str, last: &str| {
        format!(
            r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "web"}}, "spec": {{"containers": [
                {{"name": "app", "image": "{first}", "image": "{last}"}}]}}}}"#
        )
    };
    let (covered, other) = (format!("{image}:1.0.0"), "other.invalid/app:1.0.0");
    for (first, last, wanted) in [(other, &*covered, format!("{image}:1.1.0")), (&covered, other, other.to_owned())] {
        let path = format!("/api/v1/namespaces/{}/pods?dryRun=All", shop.namespace);
        let request = http::Request::post(path).header("content-type", "application/json");
        let request = request.body(manifest(first, last).into_bytes()).unwrap();
        let created: Pod = shop.client.request(request).await.unwrap();
        assert_eq!(image_of(&created, "app"), wanted);
    }
    // The API server sends none: whoever does gets no answer that could be read in two ways.
    let peer = Peer::new(bed);
    let (status, text) = peer.post(review(&shop.namespace, &manifest(other, &covered))).await;
    assert_eq!(status, 400, "{text}");
}

#[tokio::test]
async fn a_stamp_brings_in_no_other_repository() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "t-stamp", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    let targets = [
        "evil.invalid/app:1.1.0",
        "docker.io/library/evil:1.1.0",
        "evil",
        &format!("{image}-evil:1.1.0"),
        &format!("{image}/evil:1.1.0"),
        &format!("evil.invalid/{image}:1.1.0"),
    ];
    for target in targets {
        let stamp = format!("{text} {target}");
        let stamped = with_annotations(pod("web", &text), &[("stamp.kimup.cloudavenue.io/app", &stamp)]);
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let created = shop.api::<Pod>().create(&dry, &stamped).await.unwrap();
        assert!(
            image_of(&created, "app").starts_with(&format!("{image}:1.")),
            "{target}: {}",
            image_of(&created, "app")
        );
    }
}

#[tokio::test]
async fn a_namespace_cannot_pass_for_another() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "t-labels", &[IN], &[]).await;
    // The label by which kube-system is left out: the API server puts the right one back.
    let namespaces: Api<Namespace> = Api::all(shop.client.clone());
    let disguise = Patch::Merge(json!({"metadata": {"labels": {"kubernetes.io/metadata.name": "kube-system"}}}));
    let disguised = namespaces.patch(&shop.namespace, &PatchParams::default(), &disguise).await.unwrap();
    assert_eq!(disguised.labels()["kubernetes.io/metadata.name"], shop.namespace);
    is_well(&shop, &image).await;
    // Who may label a namespace opts it out, which is what the label is for.
    let out = Patch::Merge(json!({"metadata": {"labels": {ENABLED: "false"}}}));
    namespaces.patch(&shop.namespace, &PatchParams::default(), &out).await.unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually(DEADLINE, "the label counts", async || {
        let created = shop.api::<Pod>().create(&dry, &pod("web", &format!("{image}:1.0.0"))).await.unwrap();
        image_of(&created, "app") == format!("{image}:1.0.0")
    })
    .await;
}
