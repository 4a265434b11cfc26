//! A person's decision about one workload stays, whoever comes by: GitOps tools, newer tags, restarts; until it is ended.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::Deployment;
use kimup::api::{Held, HeldBy, Image};
use kimup_testbed::{Balancer, KimupProcess, WebhookUrl, eventually};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::own::{Own, admits};
use crate::support::{Bed, DEADLINE, ENABLED, Shop};

pub const STAMP: &str = "stamp.kimup.cloudavenue.io/app";
pub const HOLD: &str = "kimup.cloudavenue.io/hold";
pub const ACTION: &str = "kimup.cloudavenue.io/action";
/// The field manager of Flux.
pub const FLUX: &str = "kustomize-controller";

/// Objects of `apps/v1` of any kind.
pub fn apps(shop: &Shop, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", kind));
    Api::namespaced_with(shop.client.clone(), &shop.namespace, &resource)
}

/// A workload of two Pods, opted in, as it stands in Git.
pub fn manifest(kind: &str, name: &str, text: &str) -> Value {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": name, "annotations": {ENABLED: "true"}},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "app", "image": text}], "terminationGracePeriodSeconds": 0},
            },
        },
    });
    if kind != "DaemonSet" {
        object["spec"]["replicas"] = json!(2);
    }
    if kind == "StatefulSet" {
        object["spec"]["serviceName"] = json!(name);
    }
    object
}

/// Server-side apply, as a GitOps tool does it.
pub async fn apply(shop: &Shop, kind: &str, manager: &str, manifest: &Value) {
    let name = manifest["metadata"]["name"].as_str().unwrap();
    let params = PatchParams::apply(manager).force();
    apps(shop, kind).patch(name, &params, &Patch::Apply(manifest)).await.unwrap();
}

pub async fn annotate(shop: &Shop, kind: &str, name: &str, annotations: &Value) {
    let patch = json!({"metadata": {"annotations": annotations}});
    apps(shop, kind).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

pub async fn object(shop: &Shop, kind: &str, name: &str) -> Value {
    serde_json::to_value(apps(shop, kind).get(name).await.unwrap()).unwrap()
}

/// The names of a workload's revisions: each rollout to a new template makes one.
pub async fn revisions(shop: &Shop, kind: &str, name: &str) -> BTreeSet<String> {
    let of = if kind == "Deployment" { "ReplicaSet" } else { "ControllerRevision" };
    let list = apps(shop, of).list(&ListParams::default().labels(&format!("app={name}"))).await.unwrap().items;
    list.into_iter().filter_map(|revision| revision.metadata.name).collect()
}

/// Waits until a workload's controller has nothing more to do: it is the same after a whole sync as before.
pub async fn at_rest(shop: &Shop, kind: &str, name: &str, image: &str) -> Value {
    eventually(DEADLINE, &format!("{kind} {}/{name} is at rest", shop.namespace), async || {
        let before = object(shop, kind, name).await;
        shop.sync(image).await;
        let after = object(shop, kind, name).await;
        // Until its controller has seen it, it may well look the same twice.
        let observed = after["status"]["observedGeneration"] == after["metadata"]["generation"];
        if observed && before == after { Ok(after) } else { Err(after["status"].to_string()) }
    })
    .await
}

/// What of a workload only changes if somebody does something to it. Not its resource version: controllers write the
/// status when they like.
pub fn done_to(object: &Value) -> Value {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let ours = entries.into_iter().filter(|e| e["manager"].as_str().is_some_and(|m| m.starts_with("kimup")));
    json!([object["metadata"]["generation"], object["metadata"]["annotations"], ours.collect::<Vec<_>>()])
}

/// Shows that in further syncs nothing is done to a workload, nor to what the Image says of it.
pub async fn nothing_happens(shop: &Shop, kind: &str, name: &str, image: &str) {
    let before = at_rest(shop, kind, name, image).await;
    let held = shop.status(image).await.held;
    for _ in 0..3 {
        shop.sync(image).await;
    }
    let after = object(shop, kind, name).await;
    assert_eq!(done_to(&before), done_to(&after), "{before} {after}");
    assert_eq!(shop.status(image).await.held, held);
}

/// Waits until an Image has exactly this one hold in force.
pub async fn is_held(shop: &Shop, image: &str, workload: &str, by: HeldBy, tag: &str) -> Held {
    let what = format!("{workload} is held at {tag} by {by:?}");
    let wanted = |held: &&Held| held.workload == workload && held.by == by && held.tag == tag && held.holds();
    let status = shop.status_is(image, &what, |s| s.held.iter().any(|held| wanted(&held))).await;
    status.held.iter().find(wanted).unwrap().clone()
}

pub async fn nothing_is_held(shop: &Shop, image: &str) {
    shop.status_is(image, "holds nothing", |s| s.held.is_empty()).await;
}

/// Waits until an Event was said; how often it was.
pub async fn said(shop: &Shop, kind: &str, name: &str, words: &[&str]) -> usize {
    let has = |event: &&String| words.iter().all(|word| event.contains(word));
    eventually(DEADLINE, &format!("{kind} {}/{name}: {words:?} is said", shop.namespace), async || {
        let events = shop.events(kind, name).await;
        let count = events.iter().filter(has).count();
        if count > 0 { Ok(count) } else { Err(format!("{events:?}")) }
    })
    .await
}

/// A workload `web` with an Image `img` that ran 1.0.0, 1.1.0 and runs 1.2.0, each but the first by a stamp.
pub struct Stage {
    pub bed: &'static Bed,
    pub shop: Shop,
    pub kind: &'static str,
    repository: String,
    pub image: String,
    manifest: Value,
}

impl Stage {
    pub async fn new(name: &str, kind: &'static str, spec: &Value) -> Self {
        let bed = Bed::shared().await;
        bed.registries.open.push(name, "1.0.0").await.unwrap();
        let image = bed.registries.open.image(name);
        let shop = bed.shop(name, &[(ENABLED, "true")]).await;
        let mut patch = json!({"spec": {"image": image, "rollout": {"minInterval": "0s"}}});
        json_patch::merge(&mut patch, &json!({"spec": spec}));
        shop.create_image("img", &patch).await;
        shop.settles("img", "1.0.0").await;
        let manifest = manifest(kind, "web", &format!("{image}:1.0.0"));
        apply(&shop, kind, FLUX, &manifest).await;
        let stage = Self { bed, shop, kind, repository: name.to_owned(), image, manifest };
        stage.runs("1.0.0").await;
        stage.rolls_to("1.1.0").await;
        stage.rolls_to("1.2.0").await;
        stage
    }

    pub async fn push(&self, tag: &str) {
        self.bed.registries.open.push(&self.repository, tag).await.unwrap();
        self.shop.sync("img").await;
    }

    pub async fn rolls_to(&self, tag: &str) {
        self.push(tag).await;
        self.runs(tag).await;
        self.shop.settles("img", tag).await;
    }

    pub async fn runs(&self, tag: &str) {
        self.shop.pods_run("web", 2, &format!("{}:{tag}", self.image)).await;
    }

    pub async fn undo(&self, revision: Option<usize>) {
        let (object, to) = (format!("{}/web", self.kind), format!("--to-revision={}", revision.unwrap_or_default()));
        self.bed.cluster.kubectl_ok(&["-n", &self.shop.namespace, "rollout", "undo", &object, &to]).await.unwrap();
    }

    pub async fn held(&self, by: HeldBy, tag: &str) -> Held {
        is_held(&self.shop, "img", &format!("{}/web", self.kind), by, tag).await
    }

    pub async fn annotate(&self, annotations: &Value) {
        annotate(&self.shop, self.kind, "web", annotations).await;
    }

    pub async fn stays(&self, tag: &str) {
        nothing_happens(&self.shop, self.kind, "web", "img").await;
        self.runs(tag).await;
    }
}

/// As Flux does before each of its applies: what `kubectl` owns becomes its own, as if it had applied it.
async fn take_over(shop: &Shop, kind: &str, name: &str) {
    let mut fields = object(shop, kind, name).await["metadata"]["managedFields"].clone();
    let (mut taken, mut own) = (Value::Null, None);
    for (index, entry) in fields.as_array().unwrap().iter().enumerate() {
        let manager = entry["manager"].as_str().unwrap();
        if manager.starts_with("kubectl") && entry["subresource"].is_null() {
            json_patch::merge(&mut taken, &entry["fieldsV1"]);
        }
        if manager == FLUX {
            own = Some(index);
        }
    }
    assert!(taken["f:spec"]["f:template"].is_object(), "kubectl owns something of the template: {fields}");
    json_patch::merge(&mut fields[own.unwrap()]["fieldsV1"], &taken);
    let entries = fields.as_array_mut().unwrap();
    entries.retain(|entry| !entry["manager"].as_str().unwrap().starts_with("kubectl"));
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": fields}]);
    let patch: json_patch::Patch = serde_json::from_value(patch).unwrap();
    apps(shop, kind).patch(name, &PatchParams::default(), &Patch::Json::<()>(patch)).await.unwrap();
}

/// Whether a manager whose name begins like this owns the stamp of `app`.
fn owns_stamp(object: &Value, manager: &str) -> bool {
    let stamp = format!("f:{STAMP}");
    let annotations = |e: &Value| e["fieldsV1"]["f:spec"]["f:template"]["f:metadata"]["f:annotations"].clone();
    let owns =
        |e: &Value| e["manager"].as_str().is_some_and(|m| m.starts_with(manager)) && annotations(e)[&stamp].is_object();
    object["metadata"]["managedFields"].as_array().unwrap().iter().any(owns)
}

#[tokio::test]
async fn an_undo_survives_a_tool_that_takes_over_what_kubectl_owns() {
    let kinds = ["Deployment", "StatefulSet", "DaemonSet"];
    futures::future::join_all(kinds.map(survives_a_take_over)).await;
}

async fn survives_a_take_over(kind: &'static str) {
    let stage = Stage::new(&format!("h-flux-{}", kind.to_lowercase()), kind, &json!({})).await;
    stage.undo(None).await;
    let held = stage.held(HeldBy::Undo, "1.1.0").await;
    assert_eq!(held.left, "1.2.0");
    stage.runs("1.1.0").await;
    said(&stage.shop, kind, "web", &["Held: "]).await;
    stage.shop.sync("img").await; // the audit line follows the Event
    let by = stage.shop.audited("img", "hold").await;
    assert!(by.len() == 1 && by[0].starts_with("field manager kubectl"), "{by:?}");
    let before = eventually(DEADLINE, "the stamp is kimup's too", async || {
        let object = object(&stage.shop, kind, "web").await;
        let owned = owns_stamp(&object, "kimup-rollout") && owns_stamp(&object, "kubectl");
        if owned { Ok(object) } else { Err(object["metadata"]["managedFields"].to_string()) }
    })
    .await;
    let revisions_before = revisions(&stage.shop, kind, "web").await;

    take_over(&stage.shop, kind, "web").await;
    apply(&stage.shop, kind, FLUX, &stage.manifest).await;
    let after = object(&stage.shop, kind, "web").await;
    assert_eq!(after["spec"]["template"], before["spec"]["template"], "nothing of the template is gone");
    assert!(!owns_stamp(&after, FLUX), "the tool gave it up");
    stage.stays("1.1.0").await;
    assert_eq!(revisions(&stage.shop, kind, "web").await, revisions_before, "no rollout");
    assert_eq!(said(&stage.shop, kind, "web", &["Held: ", "stays at 1.1.0", &held.since, "1.2.0"]).await, 1);
    assert_eq!(said(&stage.shop, "Image", "img", &["Held: ", "stays at 1.1.0", "action=resume"]).await, 1);
    stage.rolls_to("1.3.0").await;
    nothing_is_held(&stage.shop, "img").await;
}

#[tokio::test]
async fn a_stamp_lost_before_it_was_taken_over_comes_back_where_it_was_held() {
    let stage = Stage::new("h-lost", "Deployment", &json!({})).await;
    stage.undo(None).await;
    stage.held(HeldBy::Undo, "1.1.0").await;
    stage.runs("1.1.0").await;
    // Everything that is not in the manifest goes, whoever owns it.
    let mut whole = stage.manifest.clone();
    whole["metadata"]["namespace"] = json!(stage.shop.namespace);
    let whole = whole.to_string();
    let replaced = stage.bed.cluster.kubectl_with_stdin(&["replace", "-f", "-"], &whole).await.unwrap();
    assert!(replaced.success, "{}", replaced.stderr);
    let stamp = format!("{0}:1.0.0 {0}:1.1.0", stage.image);
    eventually(DEADLINE, "it is stamped again", async || {
        object(&stage.shop, "Deployment", "web").await["spec"]["template"]["metadata"]["annotations"][STAMP] == stamp
    })
    .await;
    stage.held(HeldBy::Undo, "1.1.0").await;
    stage.stays("1.1.0").await;
}

#[tokio::test]
async fn the_annotation_hold_sends_a_workload_to_its_tag() {
    let stage = Stage::new("h-annotation", "Deployment", &json!({})).await;
    // No gate delays what a person asks for.
    stage
        .shop
        .api::<Image>()
        .patch("img", &PatchParams::default(), &Patch::Merge(json!({"spec": {"suspend": true}})))
        .await
        .unwrap();
    stage.annotate(&json!({HOLD: "1.1.0"})).await;
    stage.runs("1.1.0").await;
    let held = stage.held(HeldBy::Annotation, "1.1.0").await;
    assert!(held.why.contains("annotation hold") && held.why.contains("action=resume"), "{}", held.why);
    stage.push("1.3.0").await;
    stage.stays("1.1.0").await;
    // It moves with the annotation, also forwards.
    stage.annotate(&json!({HOLD: "1.0.0"})).await;
    stage.runs("1.0.0").await;
    stage.held(HeldBy::Annotation, "1.0.0").await;
    let cause =
        &object(&stage.shop, "Deployment", "web").await["metadata"]["annotations"]["kubernetes.io/change-cause"];
    assert_eq!(*cause, "kimup: app 1.1.0 -> 1.0.0 (Image img, hold: annotation)");
    // One that the registry does not have is a brake all the same.
    stage.annotate(&json!({HOLD: "9.9.9"})).await;
    said(&stage.shop, "Deployment", "web", &["PolicyInvalid: ", "9.9.9", "stays where it is"]).await;
    stage.stays("1.0.0").await;
    // An undo does not beat it.
    stage.annotate(&json!({HOLD: "1.2.0"})).await;
    stage.runs("1.2.0").await;
    stage.undo(None).await;
    stage.held(HeldBy::Annotation, "1.2.0").await;
    stage.stays("1.2.0").await;
    // Taken away, it holds no longer; what comes next keeps to the gates.
    stage.annotate(&json!({HOLD: null})).await;
    said(&stage.shop, "Deployment", "web", &["Resumed: ", "1.2.0"]).await;
    stage.stays("1.2.0").await;
    stage
        .shop
        .api::<Image>()
        .patch("img", &PatchParams::default(), &Patch::Merge(json!({"spec": {"suspend": false}})))
        .await
        .unwrap();
    stage.runs("1.3.0").await;
    stage.shop.settles("img", "1.3.0").await;
    nothing_is_held(&stage.shop, "img").await;
}

#[tokio::test]
async fn resume_on_the_workload_ends_every_hold_of_it() {
    let stage = Stage::new("h-resume", "Deployment", &json!({"rollout": {"afterRollback": "hold"}})).await;
    let resume = async |from: &str, to: &str| {
        stage.annotate(&json!({ACTION: "resume"})).await;
        stage.runs(to).await;
        let gone = async || {
            let annotations = object(&stage.shop, "Deployment", "web").await["metadata"]["annotations"].clone();
            if annotations[ACTION].is_null() && annotations[HOLD].is_null() {
                Ok(())
            } else {
                Err(annotations.to_string())
            }
        };
        eventually(DEADLINE, "what was asked is removed", gone).await;
        nothing_is_held(&stage.shop, "img").await;
        for (kind, name) in [("Deployment", "web"), ("Image", "img")] {
            assert_eq!(said(&stage.shop, kind, name, &["Resumed: ", &format!("held at {from}")]).await, 1, "{kind}");
        }
    };
    // To a stamp; a newer tag does not end it.
    stage.undo(None).await;
    let held = stage.held(HeldBy::Undo, "1.1.0").await;
    assert!(held.why.contains("only a person"), "{}", held.why);
    stage.push("1.3.0").await;
    stage.shop.settles("img", "1.3.0").await;
    stage.stays("1.1.0").await;
    resume("1.1.0", "1.3.0").await;
    // To the first revision, which has none.
    stage.undo(Some(1)).await;
    stage.held(HeldBy::Undo, "1.0.0").await;
    stage.push("1.4.0").await;
    stage.shop.settles("img", "1.4.0").await;
    stage.stays("1.0.0").await;
    resume("1.0.0", "1.4.0").await;
    // By an older text.
    let text = |tag: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": format!("{}:{tag}", stage.image)}]}}}});
    let mut older = stage.manifest.clone();
    json_patch::merge(&mut older, &text("0.9.0"));
    stage.bed.registries.open.push(&stage.repository, "0.9.0").await.unwrap();
    apply(&stage.shop, "Deployment", FLUX, &older).await;
    stage.held(HeldBy::Manifest, "0.9.0").await;
    stage.stays("0.9.0").await;
    resume("0.9.0", "1.4.0").await;
    // By annotation.
    stage.annotate(&json!({HOLD: "1.2.0"})).await;
    stage.held(HeldBy::Annotation, "1.2.0").await;
    stage.runs("1.2.0").await;
    resume("1.2.0", "1.4.0").await;
    stage.stays("1.4.0").await;
}

#[tokio::test]
async fn resume_on_the_image_ends_all_holds_of_it_by_the_usual_gates() {
    let stage = Stage::new("h-image", "Deployment", &json!({"rollout": {"maxConcurrent": 5}})).await;
    let shop = &stage.shop;
    let text = format!("{}:1.0.0", stage.image);
    for name in ["noted", "first"] {
        apply(shop, "Deployment", FLUX, &manifest("Deployment", name, &text)).await;
    }
    shop.status_is("img", "has three", |s| s.workloads.as_deref() == Some("3/3") && s.rollout.is_none()).await;
    stage.rolls_to("1.3.0").await;
    stage.undo(None).await;
    annotate(shop, "Deployment", "noted", &json!({HOLD: "1.1.0"})).await;
    bed_undo(&stage, "first").await;
    let what = "three are held";
    shop.status_is("img", what, |s| s.workloads.as_deref() == Some("0/3, 3 held")).await;
    let before: Vec<String> =
        shop.status("img").await.held.into_iter().map(|h| format!("{} {}", h.workload, h.tag)).collect();
    shop.pods_run("noted", 2, &format!("{}:1.1.0", stage.image)).await;

    // Frozen: the holds end, and nothing starts.
    let suspend = async |yes: bool| {
        let patch = Patch::Merge(json!({"spec": {"suspend": yes}}));
        shop.api::<Image>().patch("img", &PatchParams::default(), &patch).await.unwrap();
    };
    suspend(true).await;
    shop.annotate_image("img", ACTION, Some("resume")).await;
    let what = "all holds are released and none is lost";
    shop.status_is("img", what, |s| s.held.len() == 3 && s.held.iter().all(|held| !held.holds())).await;
    eventually(DEADLINE, "the action is removed", async || {
        let image = shop.api::<Image>().get("img").await.unwrap();
        let hold = object(shop, "Deployment", "noted").await["metadata"]["annotations"][HOLD].clone();
        !image.metadata.annotations.unwrap_or_default().contains_key(ACTION) && hold.is_null()
    })
    .await;
    nothing_happens(shop, "Deployment", "web", "img").await;
    shop.pods_run("noted", 2, &format!("{}:1.1.0", stage.image)).await;
    suspend(false).await;
    for name in ["web", "noted", "first"] {
        shop.pods_run(name, 2, &format!("{}:1.3.0", stage.image)).await;
    }
    nothing_is_held(shop, "img").await;
    assert_eq!(said(shop, "Image", "img", &["Resumed: "]).await, 3, "{before:?}");
}

/// Back to the first revision, which is not stamped.
async fn bed_undo(stage: &Stage, name: &str) {
    let namespace = stage.shop.namespace.as_str();
    let object = format!("deployment/{name}");
    stage.bed.cluster.kubectl_ok(&["-n", namespace, "rollout", "undo", &object]).await.unwrap();
}

#[tokio::test]
async fn holds_last_when_kimup_is_killed_and_another_leads() {
    let own = Own::start().await;
    let balancer = Balancer::start(&[]).await.unwrap();
    let mut options = own.options("kimup").await;
    options.webhook_url = WebhookUrl::At(balancer.address());
    let mut kimup = KimupProcess::start(options).await.unwrap();
    balancer.set_backends(&[kimup.webhook()]);
    own.registry.push("app", "1.0.0").await.unwrap();
    let shop = Shop::new(&own.cluster, "h-killed", &[(ENABLED, "true")], &[]).await;
    let image = own.registry.image("app");
    shop.create_image("img", &json!({"spec": {"image": image, "rollout": {"maxConcurrent": 9, "minInterval": "0s"}}}))
        .await;
    shop.settles("img", "1.0.0").await;
    admits(&shop, &format!("{image}:0.9.0"), &format!("{image}:1.0.0")).await;
    let held = [("stamp", "1.1.0"), ("first", "1.0.0"), ("text", "0.9.5"), ("noted", "1.1.0")];
    for (name, _) in held {
        apply(&shop, "Deployment", FLUX, &manifest("Deployment", name, &format!("{image}:0.9.9"))).await;
        shop.pods_run(name, 2, &format!("{image}:1.0.0")).await;
    }
    for tag in ["1.1.0", "1.2.0"] {
        own.registry.push("app", tag).await.unwrap();
        shop.sync("img").await;
        shop.settles("img", tag).await;
    }
    let undo = ["-n", &shop.namespace, "rollout", "undo"];
    own.cluster.kubectl_ok(&[&undo[..], &["deployment/stamp"]].concat()).await.unwrap();
    own.cluster.kubectl_ok(&[&undo[..], &["deployment/first", "--to-revision=1"]].concat()).await.unwrap();
    apply(&shop, "Deployment", FLUX, &manifest("Deployment", "text", &format!("{image}:0.9.5"))).await;
    annotate(&shop, "Deployment", "noted", &json!({HOLD: "1.1.0"})).await;
    shop.status_is("img", "four are held", |s| s.workloads.as_deref() == Some("0/4, 4 held")).await;
    let before = shop.status("img").await.held;
    let all_stay = async || {
        for (name, tag) in held {
            nothing_happens(&shop, "Deployment", name, "img").await;
            shop.pods_run(name, 2, &format!("{image}:{tag}")).await;
        }
        assert_eq!(shop.status("img").await.held, before);
    };
    all_stay().await;
    for _ in 0..2 {
        kimup.kill();
        own.expire_lease("kimup-url").await;
        kimup = kimup.start_again().await.unwrap();
        balancer.set_backends(&[kimup.webhook()]);
        admits(&shop, &format!("{image}:0.9.0"), &format!("{image}:1.2.0")).await;
        all_stay().await;
        // A Pod that is made anew is what it was.
        for pod in
            shop.pods().await.iter().filter(|pod| pod.metadata.name.as_ref().is_some_and(|n| n.starts_with("first")))
        {
            let name = pod.metadata.name.clone().unwrap();
            shop.api::<k8s_openapi::api::core::v1::Pod>()
                .delete(&name, &kube::api::DeleteParams::default())
                .await
                .unwrap();
        }
    }
    assert!(shop.api::<Deployment>().get("noted").await.is_ok());
}
