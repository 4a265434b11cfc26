//! Every policy from the first Pod to a rollout, policies that are wrong, and first Pods while the registry is down.

use futures::future::join_all;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kimup::api::annotated::image_name;
use kimup_testbed::{Cluster, KimupProcess, Registry, eventually};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::annotated::{INTERVAL, POLICY, images, on_template, patch_deployment, settles};
use crate::own::{Own, admits};
use crate::support::{Bed, DEADLINE, FAILURE_POLICY, Shop, configured, image_of, opted_in, pod, with_annotations};

const PATTERN: &str = "kimup.cloudavenue.io/pattern";
const APPLIED: &str = "kimup.cloudavenue.io/applied";

/// What asks for updates.
enum By {
    /// Annotations on the Pod template: policy and pattern.
    Annotation(&'static str, Option<&'static str>),
    /// A user's Image with a rule of this type.
    Image(&'static str),
}

/// A Deployment `name`: its own tag, what the registry has and the first Pods get, what is pushed then and gets rolled.
struct Row {
    name: &'static str,
    by: By,
    text: &'static str,
    tags: &'static [&'static str],
    first: &'static str,
    pushed: &'static [&'static str],
    then: &'static str,
}

impl Row {
    async fn check(&self, shop: &Shop, registry: &Registry) {
        let repository = format!("p-{}", self.name);
        registry.push_all(&repository, self.tags).await.unwrap();
        let image = registry.image(&repository);
        let (name, patch) = match self.by {
            By::Annotation(policy, pattern) => {
                let annotations = json!({POLICY: policy, PATTERN: pattern, INTERVAL: "10m"});
                (image_name("Deployment", self.name, "app"), on_template(&annotations))
            }
            By::Image(rule) => {
                let rules = json!([{"name": "r", "type": rule, "actions": [{"type": "apply"}]}]);
                let spec = json!({"image": image, "baseTag": self.text, "rules": rules});
                shop.create_image(self.name, &json!({"spec": spec})).await;
                admits(shop, &format!("{image}:{}", self.text), &format!("{image}:{}", self.first)).await;
                (self.name.to_owned(), opted_in())
            }
        };
        let text = format!("{image}:{}", self.text);
        shop.create_deployment(self.name, &text, &patch).await;
        for pod in shop.pods_run(self.name, 2, &format!("{image}:{}", self.first)).await {
            let said = format!("app: {} -> {} (Image {name})", self.text, self.first);
            assert_eq!(pod.annotations()[APPLIED], said, "{}", self.name);
        }
        settles(shop, &name, self.first).await;
        assert_eq!(shop.revisions(self.name).await, 1, "{}: the first Pods start right", self.name);
        registry.push_all(&repository, self.pushed).await.unwrap();
        let wanted = format!("{image}:{}", self.then);
        shop.sync(&name).await;
        shop.pods_run(self.name, 2, &wanted).await;
        let status = shop.settles(&name, self.then).await;
        let history: Vec<&str> = status.history.iter().map(|h| h.tag.as_str()).collect();
        assert_eq!(history, [self.then, self.first], "{}", self.name);
        for _ in 0..3 {
            shop.sync(&name).await;
        }
        shop.pods_run(self.name, 2, &wanted).await;
        assert_eq!(shop.revisions(self.name).await, 2, "{}", self.name);
        let template = shop.api::<Deployment>().get(self.name).await.unwrap().spec.template;
        assert_eq!(template.spec.unwrap().containers[0].image.as_deref(), Some(&*text), "the manifest keeps its text");
    }
}

async fn check(namespace: &str, rows: &[Row]) {
    let bed = Bed::shared().await;
    let shop = bed.shop(namespace, &[]).await;
    join_all(rows.iter().map(|row| row.check(&shop, &bed.registries.open))).await;
}

#[tokio::test]
async fn the_seeds_examples_work_as_written() {
    let row = |name, (pattern, policy), text, tags, first, pushed, then| {
        let by = By::Annotation(policy, Some(pattern));
        Row { name, by, text, tags, first, pushed, then }
    };
    let rows = [
        row(
            "plain",
            (r"^\d+.\d+.\d+$", "semver"),
            "1.2.0",
            &["1.2.0", "1.2.1", "1.3", "1.4.0-rc.1", "v1.5.0", "dev-9.0.0"],
            "1.2.1",
            &["1.2.10", "1.9.0-alpine", "dev-9.1.0", "1.9.0.1"],
            "1.2.10",
        ),
        row(
            "dev",
            (r"dev-\d+.\d+.\d+$", "semver"),
            "dev-1.0.0",
            &["dev-1.0.0", "dev-1.1.0", "9.0.0", "dev-9.0.0-debug", "dev-9"],
            "dev-1.1.0",
            &["dev-1.10.0", "9.1.0", "dev-9.1.0-debug", "dev9.1.0"],
            "dev-1.10.0",
        ),
        row(
            "stamped",
            (".*", "timestamp"),
            "1700000000",
            &["1700000000", "1700000100", "20990101", "latest", "99991231235959"],
            "1700000100",
            &["build-1700000200", "99991231", "9.9.9", "170000030"],
            "build-1700000200",
        ),
        row(
            "preview",
            ("preview-*", "timestamp"),
            "preview-1700000000",
            &["preview-1700000000", "preview-1700000100", "1700000900", "release-1700000900", "preview-9999"],
            "preview-1700000100",
            &["preview-1700000200", "1700001000", "release-1700001000", "preview-latest"],
            "preview-1700000200",
        ),
    ];
    check("p-seed", &rows).await;
}

#[tokio::test]
async fn each_policy_takes_what_it_allows() {
    let row = |name, policy, text, tags, first, pushed, then| Row {
        name,
        by: By::Annotation(policy, None),
        text,
        tags,
        first,
        pushed,
        then,
    };
    let rows = [
        row(
            "patch",
            "patch",
            "1.0.0",
            &["1.0.0", "1.0.9", "1.1.0", "2.0.0"],
            "1.0.9",
            &["1.0.10", "1.0.11-rc.1", "1.2.0"],
            "1.0.10",
        ),
        row(
            "minor",
            "minor",
            "1.0.0",
            &["1.0.0", "1.0.9", "1.9.0", "2.0.0"],
            "1.9.0",
            &["1.10.0", "1.11.0-rc.1", "2.1.0"],
            "1.10.0",
        ),
        row(
            "major",
            "major",
            "1.0.0",
            &["1.0.0", "1.1.0", "9.0.0", "9.0.0-rc.2"],
            "9.0.0",
            &["10.0.0", "11.0.0-rc.1"],
            "10.0.0",
        ),
        row("numerical", "numerical", "9", &["9", "10", "8", "v11"], "10", &["0011", "10.5", "build12"], "0011"),
        row("descending", "alphabetical:desc", "m", &["m", "k", "z"], "k", &["b", "y"], "b"),
        Row {
            name: "calver",
            by: By::Image("calver-minor"),
            text: "2024.01",
            tags: &["2024.01", "2024.03", "2025.01"],
            first: "2024.03",
            pushed: &["2024.04", "2025.02", "build-2024.05"],
            then: "2024.04",
        },
    ];
    check("p-policies", &rows).await;
}

/// What kubectl says when it creates this Pod.
pub async fn kubectl_create(cluster: &Cluster, shop: &Shop, pod: &Pod) -> (bool, String) {
    let pod = serde_json::to_string(pod).unwrap();
    let output = cluster.kubectl_with_stdin(&["-n", &shop.namespace, "create", "-f", "-"], &pod).await.unwrap();
    (output.success, output.stderr)
}

/// Waits until a Pod is admitted without a warning. Where many ask the same registry at once, or it has just started, a
/// question may come too late: then the Pod is denied, and created again.
pub async fn kubectl_creates(cluster: &Cluster, shop: &Shop, pod: &Pod) {
    eventually(DEADLINE, "the Pod is admitted", async || {
        let (success, said) = kubectl_create(cluster, shop, pod).await;
        assert!(if success { said.is_empty() } else { said.contains("did not answer") }, "{said}");
        if success { Ok(()) } else { Err(said) }
    })
    .await;
}

/// Waits for a Warning Event `PolicyInvalid` on a Deployment with these words.
pub async fn complained(shop: &Shop, deployment: &str, words: &[&str]) {
    eventually(DEADLINE, &format!("PolicyInvalid on {}/{deployment}", shop.namespace), async || {
        let events = shop.events("Deployment", deployment).await;
        let about = |e: &String| e.starts_with("PolicyInvalid: ") && words.iter().all(|word| e.contains(word));
        if events.iter().any(about) { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
}

#[tokio::test]
async fn what_is_wrong_is_said_and_changes_nothing() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("p-wrong", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("p-wrong", &[]).await;
    let image = registry.image("p-wrong");
    let text = format!("{image}:1.0.0");
    let newest = format!("{image}:1.1.0");
    let cases = [
        ("pattern", PATTERN, "(", r"^\d+.\d+.\d+$"),
        ("policy", POLICY, "semvre", "semver"),
        ("range", POLICY, "semver:>=a", "semver:>=1"),
        ("interval", INTERVAL, "often", "10m"),
    ];
    for (name, key, wrong, right) in cases {
        let mut annotations = json!({POLICY: "semver", INTERVAL: "1h"});
        annotations[key] = json!(wrong);
        let pairs: Vec<(&str, &str)> =
            annotations.as_object().unwrap().iter().map(|(k, v)| (k.as_str(), v.as_str().unwrap())).collect();
        let bare = with_annotations(pod(&format!("bare-{name}"), &text), &pairs);
        let (success, said) = kubectl_create(bed.cluster, &shop, &bare).await;
        assert!(success && said.starts_with("Warning: kimup: ") && said.contains(key), "{name}: {said}");
        let created = shop.api::<Pod>().get(&bare.name_any()).await.unwrap();
        assert_eq!((image_of(&created, "app"), created.annotations().get(APPLIED)), (text.clone(), None), "{name}");

        shop.create_deployment(name, &text, &on_template(&annotations)).await;
        shop.pods_run(name, 2, &text).await;
        complained(&shop, name, &[key]).await;
        assert_eq!(shop.revisions(name).await, 1, "{name}");
        let made = image_name("Deployment", name, "app");
        assert!(!images(&shop).await.contains(&made), "{name}: nothing is guessed");

        patch_deployment(&shop, name, &on_template(&json!({key: right}))).await;
        settles(&shop, &made, "1.1.0").await;
        shop.pods_run(name, 2, &newest).await;
    }

    // What works goes on as before when it is changed to something wrong, in new Pods too.
    registry.push("p-wrong", "1.2.0").await.unwrap();
    patch_deployment(&shop, "pattern", &on_template(&json!({PATTERN: "["}))).await;
    complained(&shop, "pattern", &[PATTERN, "settings before stay in force"]).await;
    let made = image_name("Deployment", "pattern", "app");
    shop.sync(&made).await;
    for pod in shop.pods_run("pattern", 2, &format!("{image}:1.2.0")).await {
        assert_eq!(pod.annotations()[PATTERN], "[");
    }
    let spec = shop.api::<kimup::api::Image>().get(&made).await.unwrap().spec;
    assert_eq!(spec.filter.unwrap().pattern.as_deref(), Some(r"^\d+.\d+.\d+$"));
}

/// Why a Deployment's Pods cannot be created.
/// Waits until the Pods of a Deployment are refused with these words.
async fn refused(shop: &Shop, name: &str, parts: &[&str]) {
    eventually(DEADLINE, &format!("the Pods of {name} are refused: {parts:?}"), async || {
        let status = shop.api::<Deployment>().get(name).await.unwrap().status.unwrap_or_default();
        let conditions = status.conditions.unwrap_or_default();
        let failure = conditions.into_iter().find(|c| c.type_.as_deref() == Some("ReplicaFailure"));
        let said = failure.and_then(|failure| failure.message).unwrap_or_default();
        if parts.iter().all(|part| said.contains(part)) { Ok(()) } else { Err(said) }
    })
    .await;
}

#[tokio::test]
async fn first_pods_wait_for_the_registry_or_start_as_they_are() {
    let mut own = Own::start().await;
    let kimup = KimupProcess::start(own.options("kimup").await).await.unwrap();
    configured(&own.cluster).await;
    let shop = own.shop("p-down").await;
    own.registry.push_all("p-down", &["1.0.0", "1.1.0"]).await.unwrap();
    let image = own.registry.image("p-down");
    let (text, newest) = (format!("{image}:1.0.0"), format!("{image}:1.1.0"));
    own.registry.stop();

    let host = own.registry.host();
    let bare = |name: &str, policy: &str| {
        with_annotations(pod(name, &text), &[(POLICY, "semver"), (INTERVAL, "1h"), (FAILURE_POLICY, policy)])
    };
    let ignore = format!("set {FAILURE_POLICY}: ignore on the Pod or the Namespace");
    let parts =
        ["container \"app\"", "no tag is known yet", &host, "Create the Pod again once that is solved", &ignore];
    eventually(DEADLINE, "it is denied, and the registry is named", async || {
        let (success, said) = kubectl_create(&own.cluster, &shop, &bare("loose-strict", "fail")).await;
        assert!(!success, "{said}");
        // A machine that is very busy may not come to ask the registry in time: that is another sentence.
        if parts.iter().all(|part| said.contains(part)) { Ok(()) } else { Err(said) }
    })
    .await;
    eventually(DEADLINE, "it is admitted as it is, and the registry is named", async || {
        let name = format!("loose-lax-{}", fastrand::u32(..));
        let (success, said) = kubectl_create(&own.cluster, &shop, &bare(&name, "ignore")).await;
        let part = "Warning: kimup: container \"app\" keeps its own image";
        assert!(success && said.contains(part), "{part:?} is missing: {said}");
        assert_eq!(image_of(&shop.api::<Pod>().get(&name).await.unwrap(), "app"), text);
        if said.contains(&host) { Ok(()) } else { Err(said) }
    })
    .await;

    let policy = |more: &Value| {
        let mut annotations = json!({POLICY: "semver", INTERVAL: "1h"});
        json_patch::merge(&mut annotations, more);
        on_template(&annotations)
    };
    shop.create_deployment("strict", &text, &policy(&json!({}))).await;
    shop.create_deployment("lax", &text, &policy(&json!({FAILURE_POLICY: "ignore"}))).await;
    refused(&shop, "strict", &["kimup: container \"app\": ", "no tag", &host, "Wait for its ", &ignore]).await;
    shop.pods_run("lax", 2, &text).await;
    shop.pods_run("strict", 0, &text).await;

    own.registry.start_again().await.unwrap();
    shop.pods_run("strict", 2, &newest).await;
    assert_eq!(shop.revisions("strict").await, 1, "its first Pods start right");
    shop.pods_run("lax", 2, &newest).await;
    assert_eq!(shop.revisions("lax").await, 2, "it started as it was, and was rolled");
    kubectl_creates(&own.cluster, &shop, &bare("loose-strict", "fail")).await;
    assert_eq!(image_of(&shop.api::<Pod>().get("loose-strict").await.unwrap(), "app"), newest);
    drop(kimup);
}
