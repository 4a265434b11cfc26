//! Rollouts that fail: rolled back, remembered, not tried again, and what is left alone.
//!
//! The simulated kubelet never starts an image whose tag ends in `-broken`.

use kimup::api::ImageStatus;
use kimup_testbed::{Cluster, KimupProcess, Registry, eventually};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::own::admits;
use crate::support::{Bed, DEADLINE, DEPLOYED, ENABLED, Registries, Shop, configured, options};

const STAMP: &str = "stamp.kimup.cloudavenue.io/app";
pub const BROKEN: &str = "1.3.0-broken";
/// Longer than a good rollout takes on a busy machine.
pub const OURS: &str = "7s";

/// An Image `img` on 1.2.0 with workloads.
pub struct Stage {
    pub shop: Shop,
    pub registry: &'static Registry,
    pub repository: String,
    pub image: String,
}

fn of_kind(shop: &Shop, group: &str, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
    Api::namespaced_with(shop.client.clone(), &shop.namespace, &resource)
}

pub async fn get(shop: &Shop, kind: &str, name: &str) -> Value {
    serde_json::to_value(of_kind(shop, "apps", kind).get(name).await.unwrap()).unwrap()
}

pub async fn patch(shop: &Shop, kind: &str, name: &str, patch: &Value) {
    of_kind(shop, "apps", kind).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

pub fn stamp(object: &Value) -> String {
    object["spec"]["template"]["metadata"]["annotations"][STAMP].as_str().unwrap_or_default().to_owned()
}

async fn revisions(shop: &Shop, kind: &str, app: &str) -> usize {
    let of = if kind == "Deployment" { "ReplicaSet" } else { "ControllerRevision" };
    of_kind(shop, "apps", of).list(&ListParams::default().labels(&format!("app={app}"))).await.unwrap().items.len()
}

pub fn count(lines: &[String], wanted: &[&str]) -> usize {
    lines.iter().filter(|line| wanted.iter().all(|part| line.contains(part))).count()
}

pub fn condition(status: &ImageStatus, kind: &str) -> String {
    let found = status.conditions.iter().find(|c| c.type_ == kind);
    found.map_or_else(|| "-".to_owned(), |c| format!("{} {}: {}", c.status, c.reason, c.message))
}

impl Stage {
    pub async fn new(name: &str, spec: &Value) -> Self {
        let bed = Bed::shared().await;
        let (shop, registry) = (bed.shop(name, &[]).await, &bed.registries.open);
        Self::on(shop, registry, name, spec).await
    }

    pub async fn on(shop: Shop, registry: &'static Registry, name: &str, spec: &Value) -> Self {
        registry.push(name, "1.2.0").await.unwrap();
        let image = registry.image(name);
        let rules = json!([{"name": "newest", "type": "always", "actions": [{"type": "apply"}]}]);
        let mut all = json!({"spec": {"image": image, "rules": rules}});
        json_patch::merge(&mut all["spec"], spec);
        shop.create_image("img", &all).await;
        Self { shop, registry, repository: name.to_owned(), image }
    }

    /// An opted-in workload with two Pods that run 1.2.0 without a stamp.
    pub async fn workload(&self, kind: &str, name: &str, spec: &Value) {
        let text = format!("{}:1.0.0", self.image);
        admits(&self.shop, &text, &format!("{}:1.2.0", self.image)).await;
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}, "annotations": {ENABLED: "true"}},
                    "spec": {"containers": [{"name": "app", "image": text}], "terminationGracePeriodSeconds": 0},
                },
            },
        });
        if kind != "DaemonSet" {
            object["spec"]["replicas"] = json!(2);
        }
        json_patch::merge(&mut object["spec"], spec);
        let object = serde_json::from_value(object).unwrap();
        of_kind(&self.shop, "apps", kind).create(&PostParams::default(), &object).await.unwrap();
        self.runs(name, "1.2.0").await;
    }

    pub async fn runs(&self, app: &str, tag: &str) {
        self.shop.pods_run(app, 2, &format!("{}:{tag}", self.image)).await;
    }

    pub async fn push(&self, tag: &str) {
        self.registry.push(&self.repository, tag).await.unwrap();
        self.shop.sync("img").await;
    }

    pub async fn is_stamped(&self, kind: &str, name: &str, tag: &str) {
        self.is_stamped_for(kind, name, "1.0.0", tag).await;
    }

    pub async fn is_stamped_for(&self, kind: &str, name: &str, text: &str, tag: &str) {
        let wanted = format!(":{text} {}:{tag}", self.image);
        eventually(DEADLINE, &format!("{kind}/{name} is stamped for {tag}"), async || {
            let stamp = stamp(&get(&self.shop, kind, name).await);
            if stamp.ends_with(&wanted) { Ok(()) } else { Err(stamp) }
        })
        .await;
    }

    /// The broken tag is rejected because of a workload, and all is where it was; said once each.
    pub async fn is_rolled_back(&self, kind: &str, name: &str, reason: &str) -> ImageStatus {
        let workload = format!("{kind}/{name}");
        let back = |s: &ImageStatus| s.tag.as_deref() == Some("1.2.0") && s.rollout.is_none() && !s.rejected.is_empty();
        let status = self.shop.status_is("img", "is back at 1.2.0", back).await;
        let [rejected] = &status.rejected[..] else { panic!("one tag: {:?}", status.rejected) };
        assert_eq!((rejected.tag.as_str(), &rejected.workload), (BROKEN, &workload));
        assert!(rejected.reason.contains(reason), "{}", rejected.reason);
        let entry = &status.history[0];
        let told = (entry.tag.as_str(), entry.from.as_deref(), entry.outcome.as_str(), entry.rule.as_str());
        assert_eq!(told, ("1.2.0", Some(BROKEN), "RolledBack", "rollback"));
        assert!(entry.by.as_ref().is_some_and(|by| by.contains(&workload)), "{entry:?}");
        self.runs(name, "1.2.0").await;
        let object = get(&self.shop, kind, name).await;
        assert!(stamp(&object).ends_with(":1.2.0"), "{}", stamp(&object));
        let cause = object["metadata"]["annotations"]["kubernetes.io/change-cause"].as_str().unwrap_or_default();
        let expected = format!("kimup: app {BROKEN} -> 1.2.0 (Image img, rollback: {workload}: ");
        assert!(cause.starts_with(&expected), "{cause}");
        let kept = format!("True Synced: 1.2.0 is kept: {BROKEN} was rejected: {workload}: ");
        let ready = |s: &ImageStatus| condition(s, "Ready").starts_with(&kept);
        let status = self.shop.status_is("img", "says that it is kept", ready).await;
        assert_eq!(status.result, Some(kimup::api::SyncResult::Success));
        status
    }

    pub async fn said_once(&self, kind: &str, name: &str) {
        self.shop.sync("img").await; // the Events of a turn follow its status
        let on_image = self.shop.events("Image", "img").await;
        assert_eq!(count(&on_image, &["TagRejected: ", BROKEN, "action=retry"]), 1, "{on_image:?}");
        assert_eq!(count(&on_image, &["RolledBack: ", "-> 1.2.0"]), 1, "{on_image:?}");
        let on_workload = self.shop.events(kind, name).await;
        assert_eq!(count(&on_workload, &["RolledBack: ", ":1.2.0"]), 1, "{on_workload:?}");
    }

    /// Further syncs change nothing.
    pub async fn stays(&self, kind: &str, name: &str) {
        let generation = async || get(&self.shop, kind, name).await["metadata"]["generation"].clone();
        let before = generation().await;
        for _ in 0..3 {
            let status = self.shop.sync("img").await;
            assert_eq!(status.tag.as_deref(), Some("1.2.0"));
            assert!(status.rollout.is_none(), "{:?}", status.rollout);
            assert!(condition(&status, "Ready").contains("is kept: "), "{}", condition(&status, "Ready"));
        }
        assert_eq!(before, generation().await);
    }
}

#[tokio::test]
async fn a_deployment_goes_back_when_its_controller_gives_up() {
    let stage = Stage::new("rb-progress", &json!({})).await;
    stage.workload("Deployment", "web", &json!({"progressDeadlineSeconds": 4})).await;
    stage.push(BROKEN).await;
    stage.is_stamped("Deployment", "web", BROKEN).await;
    stage.is_rolled_back("Deployment", "web", "ImagePullBackOff: container app of Pod web-").await;
    stage.said_once("Deployment", "web").await;
    stage.stays("Deployment", "web").await;
    // A newer one is taken as usual.
    stage.push("1.4.0").await;
    stage.runs("web", "1.4.0").await;
    let status = stage.shop.settles("img", "1.4.0").await;
    assert_eq!(status.rejected.len(), 1);
    let told = (status.history[0].tag.as_str(), status.history[0].outcome.as_str());
    assert_eq!(told, ("1.4.0", "Settled"));
}

#[tokio::test]
async fn nothing_delays_a_rollback_and_retry_tries_again() {
    let stage = Stage::new("rb-retry", &json!({"rollout": {"deadline": OURS}})).await;
    stage.workload("Deployment", "web", &json!({})).await;
    stage.push(BROKEN).await;
    stage.is_stamped("Deployment", "web", BROKEN).await;
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(stage.shop.client.clone());
    let freeze = async |value: Value| {
        let patch = json!({"metadata": {"annotations": {"kimup.cloudavenue.io/freeze": value}}});
        namespaces.patch(&stage.shop.namespace, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    };
    freeze(json!("true")).await;
    let suspend = async |suspend: bool| {
        let patch = json!({"spec": {"suspend": suspend}});
        let images = stage.shop.api::<kimup::api::Image>();
        images.patch("img", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    };
    suspend(true).await;
    stage.is_rolled_back("Deployment", "web", "ImagePullBackOff").await;
    stage.said_once("Deployment", "web").await;
    freeze(Value::Null).await;
    suspend(false).await;
    stage.stays("Deployment", "web").await;

    stage.shop.annotate_image("img", "kimup.cloudavenue.io/action", Some("retry")).await;
    stage.is_stamped("Deployment", "web", BROKEN).await;
    stage.is_rolled_back("Deployment", "web", "ImagePullBackOff").await;
    let image = stage.shop.api::<kimup::api::Image>().get("img").await.unwrap();
    assert!(kube::ResourceExt::annotations(&image).get("kimup.cloudavenue.io/action").is_none());
    stage.shop.sync("img").await;
    let events = stage.shop.events("Image", "img").await;
    assert_eq!(count(&events, &["Retried: ", BROKEN]), 1, "{events:?}");
    assert_eq!(count(&events, &["TagRejected: ", BROKEN]), 2, "{events:?}");
}

#[tokio::test]
async fn a_stateful_set_and_a_daemon_set_go_back() {
    let check = async |kind: &str, namespace: &str| {
        let stage = Stage::new(namespace, &json!({"rollout": {"deadline": OURS}})).await;
        stage.workload(kind, "db", &json!({"serviceName": "db"})).await;
        stage.push(BROKEN).await;
        stage.is_stamped(kind, "db", BROKEN).await;
        stage.is_rolled_back(kind, "db", "ImagePullBackOff: container app of Pod db-").await;
        stage.said_once(kind, "db").await;
        stage.stays(kind, "db").await;
        assert_eq!(revisions(&stage.shop, kind, "db").await, 3);
    };
    tokio::join!(check("StatefulSet", "rb-stateful"), check("DaemonSet", "rb-daemon"));
}

#[tokio::test]
async fn the_others_of_a_group_never_see_it() {
    let stage = Stage::new("rb-group", &json!({"image": "rb.invalid/nothing"})).await;
    let shop = &stage.shop;
    let text = format!("{}:1.2.0", stage.image);
    let annotations = json!({"kimup.cloudavenue.io/policy": "alphabetical"});
    let opted = json!({"spec": {"template": {"metadata": {"annotations": annotations}}}});
    for app in ["a", "b", "c"] {
        shop.create_deployment(app, &text, &opted).await;
    }
    let images = shop.api::<kimup::api::Image>();
    let mut made = Vec::new();
    for app in ["a", "b", "c"] {
        stage.runs(app, "1.2.0").await;
        let found = async || {
            let all = images.list(&ListParams::default()).await.unwrap().items;
            let owned = |i: &kimup::api::Image| kube::ResourceExt::owner_references(i).iter().any(|o| o.name == app);
            all.into_iter().find(|i| owned(i)).and_then(|i| i.metadata.name).ok_or("no Image")
        };
        let name = eventually(DEADLINE, "the Image is made", found).await;
        let patch = json!({"spec": {"rollout": {"deadline": OURS}}});
        images.patch(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        shop.settles(&name, "1.2.0").await;
        made.push(name);
    }
    stage.registry.push(&stage.repository, BROKEN).await.unwrap();
    for name in &made {
        shop.annotate_image(name, "kimup.cloudavenue.io/requestedAt", Some("now")).await;
    }
    let rejected = async || {
        let mut all = Vec::new();
        for name in &made {
            all.extend(shop.status(name).await.rejected.into_iter().map(|r| (r.tag, r.workload)));
        }
        all
    };
    let found = eventually(DEADLINE, "the tag is rejected", async || {
        let found = rejected().await;
        if found.is_empty() { Err("nothing is") } else { Ok(found) }
    })
    .await;
    // Each that had it on its way remembers it, of the one where it failed.
    assert!(found.iter().all(|rejected| *rejected == found[0]), "{found:?}");
    for name in &made {
        let status = shop.settles(name, "1.2.0").await;
        assert!(status.rollout.is_none());
        shop.sync(name).await;
        let status = shop.settles(name, "1.2.0").await;
        assert!(condition(&status, "Ready").contains(&format!("is kept: {BROKEN} was rejected")), "{status:?}");
    }
    for app in ["a", "b", "c"] {
        stage.runs(app, "1.2.0").await;
        let expected = if found[0].1 == format!("Deployment/{app}") { 3 } else { 1 };
        assert_eq!(revisions(shop, "Deployment", app).await, expected, "{app}: {found:?}");
    }
}

#[tokio::test]
async fn what_need_not_be_the_tag_is_left_alone() {
    let stage = Stage::new("rb-changed", &json!({"rollout": {"deadline": OURS}})).await;
    stage.workload("Deployment", "web", &json!({})).await;
    stage.push(BROKEN).await;
    stage.is_stamped("Deployment", "web", BROKEN).await;
    let env = json!([{"name": "app", "image": format!("{}:1.0.0", stage.image), "env": [{"name": "A", "value": "1"}]}]);
    patch(&stage.shop, "Deployment", "web", &json!({"spec": {"template": {"spec": {"containers": env}}}})).await;
    let stalled =
        |s: &ImageStatus| condition(s, "Stalled").starts_with("True RolloutFailed: Deployment/web does not go on");
    let status = stage.shop.status_is("img", "says that it stops", stalled).await;
    assert!(condition(&status, "Stalled").contains("more than its tag has changed"), "{status:?}");
    assert!(condition(&status, "Ready").starts_with("False RolloutFailed"), "{status:?}");
    let status = stage.shop.sync("img").await;
    assert!(status.rejected.is_empty() && stalled(&status), "{status:?}");
    assert!(stamp(&get(&stage.shop, "Deployment", "web").await).ends_with(BROKEN));
    for (kind, name) in [("Image", "img"), ("Deployment", "web")] {
        let events = stage.shop.events(kind, name).await;
        assert_eq!(count(&events, &["RolloutFailed: ", "more than its tag has changed"]), 1, "{events:?}");
    }
    // A newer tag goes on from there.
    stage.push("1.4.0").await;
    stage.runs("web", "1.4.0").await;
    stage.shop.settles("img", "1.4.0").await;
    stage.shop.status_is("img", "is well again", |s| condition(s, "Stalled") == "-").await;
}

#[tokio::test]
async fn what_was_not_tried_is_not_rejected() {
    let stage = Stage::new("rb-quota", &json!({"rollout": {"deadline": OURS}})).await;
    stage.workload("Deployment", "web", &json!({})).await;
    let quota = json!({"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": {"pods": "2"}}});
    let quotas = of_kind(&stage.shop, "", "ResourceQuota");
    quotas.create(&PostParams::default(), &serde_json::from_value(quota).unwrap()).await.unwrap();
    let used = async || serde_json::to_value(quotas.get("q").await.unwrap()).unwrap()["status"]["used"]["pods"] == "2";
    eventually(DEADLINE, "the quota counts", used).await;
    patch(&stage.shop, "Deployment", "web", &json!({"spec": {"strategy": {"rollingUpdate": {"maxUnavailable": 0}}}}))
        .await;
    stage.push("1.3.0").await;
    let stalled =
        |s: &ImageStatus| condition(s, "Stalled").starts_with("True RolloutFailed: Deployment/web does not go on");
    let status = stage.shop.status_is("img", "says that it stops", stalled).await;
    assert!(condition(&status, "Stalled").contains("exceeded quota"), "{status:?}");
    assert!(status.rejected.is_empty());
    quotas.delete("q", &kube::api::DeleteParams::default()).await.unwrap();
    // The controller waits longer after each denial; a person would have it look again.
    let sets = of_kind(&stage.shop, "apps", "ReplicaSet");
    for set in sets.list(&ListParams::default()).await.unwrap().items {
        let touch = json!({"metadata": {"annotations": {"looked": "again"}}});
        sets.patch(&set.metadata.name.unwrap(), &PatchParams::default(), &Patch::Merge(touch)).await.unwrap();
    }
    stage.runs("web", "1.3.0").await;
    let status = stage.shop.settles("img", "1.3.0").await;
    assert!(status.rejected.is_empty());
    stage.shop.status_is("img", "is well again", |s| condition(s, "Stalled") == "-").await;
}

#[tokio::test]
async fn what_was_held_is_held_again() {
    let bed = Bed::shared().await;
    let stage = Stage::new("rb-held", &json!({"rollout": {"deadline": OURS}})).await;
    stage.workload("Deployment", "web", &json!({})).await;
    stage.push("1.2.5").await;
    stage.runs("web", "1.2.5").await;
    stage.shop.settles("img", "1.2.5").await;
    bed.cluster.kubectl_ok(&["-n", &stage.shop.namespace, "rollout", "undo", "deployment/web"]).await.unwrap();
    let held = |s: &ImageStatus| s.held.iter().any(|h| (h.tag.as_str(), h.left.as_str()) == ("1.2.0", "1.2.5"));
    stage.shop.status_is("img", "is held", held).await;
    stage.push(BROKEN).await;
    stage.is_stamped("Deployment", "web", BROKEN).await;
    let back = |s: &ImageStatus| s.rejected.len() == 1 && s.rollout.is_none() && held(s);
    stage.shop.status_is("img", "is held again", back).await;
    stage.runs("web", "1.2.0").await;
    let generation = get(&stage.shop, "Deployment", "web").await["metadata"]["generation"].clone();
    for _ in 0..3 {
        let status = stage.shop.sync("img").await;
        assert_eq!(status.tag.as_deref(), Some("1.2.5"));
        assert!(held(&status) && status.rollout.is_none(), "{status:?}");
    }
    assert_eq!(get(&stage.shop, "Deployment", "web").await["metadata"]["generation"], generation);
    let events = stage.shop.events("Deployment", "web").await;
    assert_eq!(count(&events, &["RolledBack: ", ":1.2.0"]), 1, "{events:?}");
    stage.push("1.4.0").await;
    stage.runs("web", "1.4.0").await;
    assert!(stage.shop.settles("img", "1.4.0").await.held.is_empty());
}

/// The first tag of an Image counts at once, and can fail all the same.
#[tokio::test]
async fn the_first_tag_may_fail() {
    let bed = Bed::shared().await;
    let (shop, registry) = (bed.shop("rb-first", &[]).await, &bed.registries.open);
    registry.push_all("rb-first", &["1.1.0", "1.2.0"]).await.unwrap();
    let image = registry.image("rb-first");
    shop.create_deployment("web", &format!("{image}:1.2.0"), &json!({})).await;
    shop.pods_run("web", 2, &format!("{image}:1.2.0")).await;
    registry.push("rb-first", BROKEN).await.unwrap();
    let rules = json!([{"name": "newest", "type": "always", "actions": [{"type": "apply"}]}]);
    shop.create_image("img", &json!({"spec": {"image": image, "rules": rules, "rollout": {"deadline": OURS}}})).await;
    patch(&shop, "Deployment", "web", &json!({"metadata": {"annotations": {ENABLED: "true"}}})).await;
    let stage = Stage { shop, registry, repository: "rb-first".to_owned(), image };
    stage.is_stamped_for("Deployment", "web", "1.2.0", BROKEN).await;
    stage.is_rolled_back("Deployment", "web", "ImagePullBackOff").await;
    stage.stays("Deployment", "web").await;
}

#[tokio::test]
async fn kimup_may_be_killed_between_the_rejection_and_the_way_back() {
    let cluster = Box::leak(Box::new(Cluster::start().await.unwrap()));
    let registries: &'static Registries = Box::leak(Box::new(Registries::start().await));
    cluster.apply_deploy(DEPLOYED).await.unwrap();
    let mut kimup = KimupProcess::start(options(cluster, registries).await).await.unwrap();
    configured(cluster).await;
    let shop = Shop::new(cluster, "killed", &[], &[]).await;
    let stage = Stage::on(shop, &registries.open, "killed", &json!({"rollout": {"deadline": OURS}})).await;
    stage.workload("Deployment", "web", &json!({})).await;
    stage.push(BROKEN).await;
    stage.is_stamped("Deployment", "web", BROKEN).await;
    // No stamp can be written from here on.
    let roles: Api<k8s_openapi::api::rbac::v1::ClusterRole> = Api::all(cluster.client().await.unwrap());
    let whole = roles.get("kimup").await.unwrap();
    let mut less = whole.clone();
    for rule in less.rules.iter_mut().flatten() {
        if rule.resources.iter().flatten().any(|resource| resource == "deployments") {
            rule.verbs.retain(|verb| verb != "patch");
        }
    }
    roles.replace("kimup", &PostParams::default(), &less).await.unwrap();
    stage.shop.status_is("img", "rejects the tag", |s| s.rejected.len() == 1).await;
    assert!(stamp(&get(&stage.shop, "Deployment", "web").await).ends_with(BROKEN));
    // Said a moment after it is written: who is killed in between has not said it.
    eventually(DEADLINE, "the rejection is said", async || {
        stage.shop.events("Image", "img").await.iter().any(|event| event.starts_with("TagRejected: "))
    })
    .await;
    kimup.kill();
    let mut restored = whole.clone();
    restored.metadata.resource_version = None;
    roles.replace("kimup", &PostParams::default(), &restored).await.unwrap();
    let kimup = kimup.start_again().await.unwrap();
    stage.is_rolled_back("Deployment", "web", "ImagePullBackOff").await;
    stage.said_once("Deployment", "web").await;
    stage.stays("Deployment", "web").await;
    drop(kimup);
}
