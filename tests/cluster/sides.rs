//! Annotation mode beside other things: opting out and in again, Images of people, private registries, many workloads.

use std::collections::BTreeMap;

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kimup::api::annotated::image_name;
use kimup::api::{Image, SyncResult};
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::support::{Bed, DEADLINE, ENABLED, Shop, USER, image_of, opted_in, pod, with_annotations};

const POLICY: &str = "kimup.cloudavenue.io/policy";
const INTERVAL: &str = "kimup.cloudavenue.io/interval";
const STAMP: &str = "stamp.kimup.cloudavenue.io/app";

fn on_metadata(annotations: &Value) -> Value {
    json!({"metadata": {"annotations": annotations}})
}

fn on_template(annotations: &Value) -> Value {
    json!({"spec": {"template": {"metadata": {"annotations": annotations}}}})
}

async fn patch(shop: &Shop, name: &str, patch: &Value) {
    shop.api::<Deployment>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

async fn made(shop: &Shop, name: &str) -> Image {
    eventually(DEADLINE, &format!("Image {}/{name} is made", shop.namespace), async || {
        let made = shop.api::<Image>().get_opt(name).await.unwrap();
        made.filter(|made| made.metadata.deletion_timestamp.is_none()).ok_or("none")
    })
    .await
}

async fn settles(shop: &Shop, name: &str, tag: &str) {
    made(shop, name).await;
    shop.settles(name, tag).await;
}

async fn is_gone(shop: &Shop, name: &str) {
    eventually(DEADLINE, &format!("Image {}/{name} is gone", shop.namespace), async || {
        shop.api::<Image>().get_opt(name).await.unwrap().is_none()
    })
    .await;
}

/// Waits until it was said, `times` in all, that `web` has no policy any more.
async fn says_opted_out(shop: &Shop, times: usize) {
    let words = ["OptedOut: container app has no policy any more", "new ones start with the manifest's own tag"];
    eventually(DEADLINE, &format!("{}: OptedOut is said", shop.namespace), async || {
        let events = shop.events("Deployment", "web").await;
        let said = events.iter().filter(|event| words.iter().all(|part| event.contains(part))).count();
        if said == times { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
}

/// Waits until the Pods of an app run these references.
async fn run(shop: &Shop, app: &str, mut wanted: Vec<&str>) {
    wanted.sort_unstable();
    eventually(DEADLINE, &format!("the Pods of {}/{app} run {wanted:?}", shop.namespace), async || {
        let pods = shop.pods().await;
        let pods = pods.iter().filter(|pod| pod.labels().get("app").is_some_and(|a| a == app));
        let mut run: Vec<String> = pods.map(|pod| image_of(pod, "app")).collect();
        run.sort_unstable();
        if run == wanted { Ok(()) } else { Err(format!("{run:?}")) }
    })
    .await;
}

fn names(pods: &[Pod]) -> Vec<String> {
    let mut names: Vec<String> = pods.iter().map(ResourceExt::name_any).collect();
    names.sort_unstable();
    names
}

/// Waits until the rollout of a Deployment is over; its Pods.
async fn rolled(shop: &Shop, name: &str) -> Vec<Pod> {
    eventually(DEADLINE, &format!("Deployment {}/{name} has rolled", shop.namespace), async || {
        let deployment = shop.api::<Deployment>().get(name).await.unwrap();
        let (wanted, status) = (deployment.spec.replicas, deployment.status.unwrap_or_default());
        let over = status.observed_generation >= deployment.metadata.generation
            && [status.updated_replicas, status.replicas, status.available_replicas] == [wanted; 3];
        let pods = shop.pods().await;
        if over && i32::try_from(pods.len()).ok() == wanted { Ok(pods) } else { Err(format!("{status:?}")) }
    })
    .await
}

async fn delete_pod(shop: &Shop, name: &str) {
    shop.api::<Pod>().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
}

#[tokio::test]
async fn a_workload_opts_out_and_in_again_by_its_metadata() {
    let bed = Bed::shared().await;
    let (policy, switch) = (json!({POLICY: null, INTERVAL: null}), json!({ENABLED: "false"}));
    tokio::join!(
        opts_out_by_metadata(bed, "sides-policy", &policy),
        opts_out_by_metadata(bed, "sides-switch", &switch)
    );
}

async fn opts_out_by_metadata(bed: &Bed, repository: &str, out: &Value) {
    let registry = &bed.registries.open;
    registry.push_all(repository, &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop(repository, &[]).await;
    let image = registry.image(repository);
    let name = image_name("Deployment", "web", "app");
    let opted_in = on_metadata(&json!({POLICY: "semver", INTERVAL: "1h", ENABLED: null}));
    let (own, one, two) = (format!("{image}:1.0.0"), format!("{image}:1.1.0"), format!("{image}:1.2.0"));
    shop.create_deployment("web", &own, &opted_in).await;
    let before = shop.pods_run("web", 2, &one).await;
    settles(&shop, &name, "1.1.0").await;
    let template = shop.api::<Deployment>().get("web").await.unwrap().spec.template;

    patch(&shop, "web", &on_metadata(out)).await;
    is_gone(&shop, &name).await;
    says_opted_out(&shop, 1).await;
    assert_eq!(names(&shop.pods_run("web", 2, &one).await), names(&before), "running Pods stay as they are");
    assert_eq!(shop.api::<Deployment>().get("web").await.unwrap().spec.template, template);

    // In again: not behind what runs, even though the registry has lost it.
    registry.delete_tag(repository, "1.1.0").await.unwrap();
    patch(&shop, "web", &opted_in).await;
    settles(&shop, &name, "1.1.0").await;
    for _ in 0..3 {
        shop.sync(&name).await;
    }
    assert_eq!(names(&shop.pods_run("web", 2, &one).await), names(&before));
    assert_eq!(shop.revisions("web").await, 2);

    // Out again: a new Pod starts with the manifest's own tag, though a stamp is left.
    patch(&shop, "web", &on_metadata(out)).await;
    is_gone(&shop, &name).await;
    says_opted_out(&shop, 2).await;
    registry.push(repository, "1.2.0").await.unwrap();
    delete_pod(&shop, &before[0].name_any()).await;
    run(&shop, "web", vec![&own, &one]).await;
    assert_eq!(shop.revisions("web").await, 2);
    patch(&shop, "web", &opted_in).await;
    shop.pods_run("web", 2, &two).await;
    settles(&shop, &name, "1.2.0").await;
}

#[tokio::test]
async fn a_workload_opts_out_and_in_again_by_its_template() {
    let bed = Bed::shared().await;
    let (policy, switch) = (json!({POLICY: null, INTERVAL: null}), json!({ENABLED: "false"}));
    tokio::join!(
        opts_out_by_template(bed, "sides-out-policy", &policy),
        opts_out_by_template(bed, "sides-out-switch", &switch),
    );
}

async fn opts_out_by_template(bed: &Bed, repository: &str, out: &Value) {
    let registry = &bed.registries.open;
    registry.push_all(repository, &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop(repository, &[]).await;
    let image = registry.image(repository);
    let name = image_name("Deployment", "web", "app");
    let opted_in = on_template(&json!({POLICY: "semver", INTERVAL: "1h", ENABLED: null}));
    let (own, one, two) = (format!("{image}:1.0.0"), format!("{image}:1.1.0"), format!("{image}:1.2.0"));
    shop.create_deployment("web", &own, &opted_in).await;
    shop.pods_run("web", 2, &one).await;
    settles(&shop, &name, "1.1.0").await;

    // The template is another one, so all Pods are new ones.
    patch(&shop, "web", &on_template(out)).await;
    is_gone(&shop, &name).await;
    says_opted_out(&shop, 1).await;
    shop.pods_run("web", 2, &own).await;

    patch(&shop, "web", &opted_in).await;
    shop.pods_run("web", 2, &one).await;
    settles(&shop, &name, "1.1.0").await;
    registry.push(repository, "1.2.0").await.unwrap();
    shop.sync(&name).await;
    shop.pods_run("web", 2, &two).await;
    settles(&shop, &name, "1.2.0").await;

    // The same with a stamp in the template: Pods made before the Image is gone follow it still.
    patch(&shop, "web", &on_template(out)).await;
    is_gone(&shop, &name).await;
    says_opted_out(&shop, 2).await;
    let template = shop.api::<Deployment>().get("web").await.unwrap().spec.template;
    assert!(template.metadata.unwrap().annotations.unwrap().contains_key(STAMP));
    for pod in names(&rolled(&shop, "web").await) {
        delete_pod(&shop, &pod).await;
    }
    shop.pods_run("web", 2, &own).await;
    patch(&shop, "web", &opted_in).await;
    shop.pods_run("web", 2, &two).await;
    settles(&shop, &name, "1.2.0").await;
}

#[tokio::test]
async fn a_policy_in_the_template_is_switched_off_by_the_metadata() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("sides-off", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("sides-off", &[]).await;
    let image = registry.image("sides-off");
    let name = image_name("Deployment", "web", "app");
    let (own, one) = (format!("{image}:1.0.0"), format!("{image}:1.1.0"));
    shop.create_deployment("web", &own, &on_template(&json!({POLICY: "semver", INTERVAL: "1h"}))).await;
    let before = shop.pods_run("web", 2, &one).await;
    settles(&shop, &name, "1.1.0").await;
    patch(&shop, "web", &on_metadata(&json!({ENABLED: "false"}))).await;
    is_gone(&shop, &name).await;
    says_opted_out(&shop, 1).await;
    assert_eq!(names(&shop.pods_run("web", 2, &one).await), names(&before), "running Pods stay as they are");
    delete_pod(&shop, &before[0].name_any()).await;
    run(&shop, "web", vec![&own, &one]).await;
    assert_eq!(shop.revisions("web").await, 1);
}

#[tokio::test]
async fn a_persons_image_and_a_policy_for_one_repository_do_not_meet() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("sides-both", &["1.0.0", "1.0.1", "2.0.0"]).await.unwrap();
    let shop = bed.shop("sides-both", &[]).await;
    let image = registry.image("sides-both");
    let text = format!("{image}:1.0.0");
    let rules = json!([{"name": "patch", "type": "semver-patch", "actions": [{"type": "apply"}]}]);
    shop.create_image("mine", &json!({"spec": {"image": image, "baseTag": "1.0.0", "rules": rules}})).await;
    shop.settles("mine", "1.0.1").await;
    shop.create_deployment("plain", &text, &opted_in()).await;
    shop.create_deployment("inside", &text, &on_template(&json!({POLICY: "semver", INTERVAL: "1h"}))).await;
    shop.create_deployment("outside", &text, &on_metadata(&json!({POLICY: "semver", INTERVAL: "1h"}))).await;
    let follow = async |patch: &str, newest: &str| {
        shop.pods_run("plain", 2, &format!("{image}:{patch}")).await;
        shop.pods_run("inside", 2, &format!("{image}:{newest}")).await;
        shop.pods_run("outside", 2, &format!("{image}:{newest}")).await;
        shop.settles("mine", patch).await;
        for of in ["inside", "outside"] {
            let name = image_name("Deployment", of, "app");
            settles(&shop, &name, newest).await;
            let what = "is no duplicate, and has one workload";
            shop.status_is(&name, what, |s| {
                s.result == Some(SyncResult::Success) && s.workloads.as_deref() == Some("1/1")
            })
            .await;
        }
        shop.status_is("mine", "has one workload", |s| s.workloads.as_deref() == Some("1/1")).await;
    };
    follow("1.0.1", "2.0.0").await;
    registry.push_all("sides-both", &["1.0.2", "2.1.0"]).await.unwrap();
    for of in ["mine", &image_name("Deployment", "inside", "app"), &image_name("Deployment", "outside", "app")] {
        shop.sync(of).await;
    }
    follow("1.0.2", "2.1.0").await;
    assert_eq!(shop.revisions("plain").await, 2);
    // Without its policy it is covered by the person's Image, and not taken back by it.
    patch(&shop, "outside", &on_metadata(&json!({POLICY: null, INTERVAL: null, ENABLED: "true"}))).await;
    is_gone(&shop, &image_name("Deployment", "outside", "app")).await;
    for _ in 0..3 {
        shop.sync("mine").await;
    }
    shop.pods_run("outside", 2, &format!("{image}:2.1.0")).await;
}

#[tokio::test]
async fn of_two_images_for_one_repository_the_older_counts() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("sides-twins", &["1.0.0", "1.1.0", "2.0.0"]).await.unwrap();
    let shop = bed.shop("sides-twins", &[]).await;
    let image = registry.image("sides-twins");
    let rules = |kind: &str| json!([{"name": "only", "type": kind, "actions": [{"type": "apply"}]}]);
    let create = async |name: &str, kind: &str| {
        let spec = json!({"spec": {"image": image, "baseTag": "1.0.0", "rules": rules(kind)}});
        shop.create_image(name, &spec).await.creation_timestamp().unwrap()
    };
    // The name does not decide.
    let older = create("z-older", "minor").await;
    shop.settles("z-older", "1.1.0").await;
    eventually(DEADLINE, "a second has passed: ages are whole seconds", async || {
        k8s_openapi::jiff::Timestamp::now().as_second() > older.0.as_second()
    })
    .await;
    create("a-younger", "major").await;
    let is_duplicate = |status: &kimup::api::ImageStatus| {
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready");
        ready.is_some_and(|c| c.status == "False" && c.reason == "Duplicate" && c.message.contains("z-older"))
    };
    shop.status_is("a-younger", "is a duplicate", is_duplicate).await;
    let text = format!("{image}:1.0.0");
    shop.create_deployment("web", &text, &opted_in()).await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    registry.push_all("sides-twins", &["1.2.0", "2.1.0"]).await.unwrap();
    shop.sync("z-older").await;
    shop.pods_run("web", 2, &format!("{image}:1.2.0")).await;
    let status = shop.sync("a-younger").await;
    assert!(is_duplicate(&status) && status.tag.is_none(), "{status:?}");
    assert_eq!(status.workloads, None);
    shop.status_is("z-older", "has the workload", |s| s.workloads.as_deref() == Some("1/1")).await;
    let events = shop.events("Image", "a-younger").await;
    assert_eq!(events.iter().filter(|e| e.starts_with("Duplicate: ")).count(), 1, "{events:?}");
    // The older one goes: the other one counts.
    shop.api::<Image>().delete("z-older", &DeleteParams::default()).await.unwrap();
    shop.pods_run("web", 2, &format!("{image}:2.1.0")).await;
    let status = shop.settles("a-younger", "2.1.0").await;
    assert!(status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True"), "{status:?}");
}

pub fn pull_secret(bed: &Bed, name: &str) -> Secret {
    let config = bed.registries.private.docker_config(USER.0, USER.1);
    serde_json::from_value(json!({
        "metadata": {"name": name}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": config},
    }))
    .unwrap()
}

#[tokio::test]
async fn a_private_registry_by_the_service_accounts_secret_alone() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.private;
    registry.push_all("sides-account", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("sides-account", &[]).await;
    let image = registry.image("sides-account");
    shop.api::<Secret>().create(&PostParams::default(), &pull_secret(bed, "pull")).await.unwrap();
    let account = json!({"metadata": {"name": "robot"}, "imagePullSecrets": [{"name": "pull"}]});
    let account: ServiceAccount = serde_json::from_value(account).unwrap();
    shop.api::<ServiceAccount>().create(&PostParams::default(), &account).await.unwrap();
    let mut inside = on_template(&json!({POLICY: "semver", INTERVAL: "1h"}));
    inside["spec"]["template"]["spec"] = json!({"serviceAccountName": "robot"});
    let reference = |tag: &str| format!("{image}:{tag}");
    shop.create_deployment("web", &reference("1.0.0"), &inside).await;
    shop.pods_run("web", 2, &reference("1.1.0")).await;
    assert_eq!(shop.revisions("web").await, 1, "from the first Pod on");
    let name = image_name("Deployment", "web", "app");
    settles(&shop, &name, "1.1.0").await;
    assert_eq!(made(&shop, &name).await.spec.image_pull_secrets, [], "they are looked up at each sync");
    registry.push("sides-account", "1.2.0").await.unwrap();
    shop.sync(&name).await;
    shop.pods_run("web", 2, &reference("1.2.0")).await;
    shop.settles(&name, "1.2.0").await;
    // A bare Pod of that account.
    let mut bare = with_annotations(pod("bare", &reference("1.0.0")), &[(POLICY, "semver"), (INTERVAL, "1h")]);
    bare.spec.as_mut().unwrap().service_account_name = Some("robot".to_owned());
    let created = shop.create_asked(&bare).await;
    assert_eq!(image_of(&created, "app"), reference("1.2.0"));

    // Removed: said, and no version back.
    shop.api::<Secret>().delete("pull", &DeleteParams::default()).await.unwrap();
    registry.push("sides-account", "1.3.0").await.unwrap();
    let status = shop.sync(&name).await;
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!((status.result, status.tag.as_deref()), (Some(SyncResult::RegistryError), Some("1.2.0")));
    let missing = format!("skipped: Secret {}/pull: not found", shop.namespace);
    for part in ["denies access (no credentials were sent)", &missing] {
        assert!(ready.message.contains(part), "{part:?} is missing: {}", ready.message);
    }
    let pods = shop.pods_run("web", 2, &reference("1.2.0")).await;
    delete_pod(&shop, &pods[0].name_any()).await;
    shop.pods_run("web", 2, &reference("1.2.0")).await;

    // Named by the annotation it has to be there.
    patch(&shop, "web", &on_metadata(&json!({"kimup.cloudavenue.io/image-pull-secrets": "named"}))).await;
    let status = shop.status_is(&name, "misses its Secret", |s| s.result == Some(SyncResult::PullSecretsError)).await;
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    assert!(ready.message.contains(&format!("Secret {}/named: not found", shop.namespace)), "{}", ready.message);
    shop.api::<Secret>().create(&PostParams::default(), &pull_secret(bed, "named")).await.unwrap();
    shop.sync(&name).await;
    shop.pods_run("web", 2, &reference("1.3.0")).await;
    shop.settles(&name, "1.3.0").await;
}

/// What was seen of many Deployments: those that are stamped, and whether each is under way.
#[derive(Default)]
struct Flight {
    under_way: BTreeMap<String, bool>,
    most: usize,
    most_annotated: usize,
    most_plain: usize,
}

impl Flight {
    fn see(&mut self, deployment: &Deployment) {
        let metadata = deployment.spec.template.metadata.clone().unwrap_or_default();
        if !metadata.annotations.is_some_and(|map| map.contains_key(STAMP)) {
            return;
        }
        let status = deployment.status.clone().unwrap_or_default();
        let done = status.observed_generation >= deployment.metadata.generation
            && (status.updated_replicas, status.replicas, status.available_replicas) == (Some(1), Some(1), Some(1));
        self.under_way.insert(deployment.name_any(), !done);
        let moving = self.under_way.iter().filter(|(_, moving)| **moving).map(|(name, _)| name);
        let (annotated, plain): (Vec<_>, Vec<_>) = moving.partition(|name| name.starts_with("own-"));
        self.most = self.most.max(annotated.len() + plain.len());
        self.most_annotated = self.most_annotated.max(annotated.len());
        self.most_plain = self.most_plain.max(plain.len());
    }

    fn done(&self) -> usize {
        self.under_way.values().filter(|moving| !**moving).count()
    }
}

/// Watches until as many Deployments have rolled: every change of each is seen, in order.
async fn watch(shop: &Shop, from: &str, count: usize) -> Flight {
    let api = shop.api::<Deployment>();
    let mut flight = Flight::default();
    let mut changes = api.watch(&WatchParams::default().timeout(290), from).await.unwrap().boxed();
    while let Some(change) = changes.next().await {
        match change.unwrap() {
            WatchEvent::Added(deployment) | WatchEvent::Modified(deployment) => flight.see(&deployment),
            WatchEvent::Bookmark(_) => {}
            other => panic!("{other:?}"),
        }
        if flight.done() == count {
            return flight;
        }
    }
    panic!("only {} of {count} have rolled in time: {:?}", flight.done(), flight.under_way);
}

#[tokio::test]
async fn a_namespace_of_many_workloads_keeps_to_the_limits() {
    const PLAIN: usize = 50;
    const ANNOTATED: usize = 10;
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("sides-many", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("sides-many", &[]).await;
    let image = registry.image("sides-many");
    shop.create_image("img", &json!({"spec": {"image": image, "rollout": {"maxConcurrent": 5}}})).await;
    shop.settles("img", "1.1.0").await;
    let plain = (0..PLAIN).map(|n| format!("web-{n}"));
    let all: Vec<String> = plain.chain((0..ANNOTATED).map(|n| format!("own-{n}"))).collect();
    for name in &all {
        shop.create_deployment(name, &format!("{image}:1.0.0"), &json!({"spec": {"replicas": 1}})).await;
    }
    let from = eventually(DEADLINE, "all run", async || {
        let list = shop.api::<Deployment>().list(&ListParams::default()).await.unwrap();
        let run = list.iter().filter(|d| d.status.as_ref().is_some_and(|s| s.available_replicas == Some(1))).count();
        if run == all.len() { Ok(list.metadata.resource_version.unwrap()) } else { Err(run.to_string()) }
    })
    .await;

    // The annotations first: until it has its own, an opted-in workload follows the person's Image.
    let opt_in = async {
        for name in all.iter().filter(|name| name.starts_with("own-")) {
            patch(&shop, name, &on_metadata(&json!({POLICY: "semver", INTERVAL: "1h"}))).await;
        }
        bed.cluster.kubectl_ok(&["label", "namespace", &shop.namespace, &format!("{ENABLED}=true")]).await.unwrap();
    };
    let (flight, ()) = tokio::join!(watch(&shop, &from, all.len()), opt_in);
    let (most, annotated, plain) = (flight.most, flight.most_annotated, flight.most_plain);
    assert!(most <= 5, "{most} at a time in one namespace");
    assert!(annotated <= 1, "{annotated} of the group at a time");
    assert!(plain >= 2, "at most {plain} of the Image at a time: five may");
    for name in &all {
        assert_eq!(shop.revisions(name).await, 2, "{name}");
    }
    let pods = shop.pods().await;
    let newest = format!("{image}:1.1.0");
    assert!(pods.len() == all.len() && pods.iter().all(|pod| image_of(pod, "app") == newest));
    shop.settles("img", "1.1.0").await;
    shop.api::<Deployment>().delete_collection(&DeleteParams::background(), &ListParams::default()).await.unwrap();
}
