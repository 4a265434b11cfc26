//! Workloads that other projects bring: Argo's Rollout and OpenKruise's CloneSet. Their controllers are not here, so each
//! test plays one: it makes `ReplicaSets` or Pods of the template as that would, and says in the status how far it is.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::rbac::v1::ClusterRole;
use kimup::api::annotated::image_name;
use kimup::api::{Image, condition};
use kimup::rollout::{ApplyError, Change, Kind, Plan, Workload, apply};
use kimup_testbed::{Cluster, KimupProcess, eventually};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::support::{Bed, DEADLINE, DEPLOYED, ENABLED, Registries, Shop, configured, image_of, opted_in, options};

const STAMP: &str = "stamp.kimup.cloudavenue.io/app";
const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
const APPLIED: &str = "kimup.cloudavenue.io/applied";
const POLICY: &str = "kimup.cloudavenue.io/policy";

/// As little of the projects' own CRDs as the scenarios need.
pub async fn install(cluster: &Cluster, kind: Kind, template: &Value) {
    let (group, version, plural) = kind.api();
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let spec =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"template": template}});
    let crd = json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"kind": kind.as_str(), "plural": plural, "singular": kind.as_str().to_lowercase()},
            "versions": [{"name": version, "served": true, "storage": true, "subresources": {"status": {}},
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": spec, "status": open}}}}],
        },
    });
    cluster.apply(&[], &crd.to_string()).await.unwrap();
    let name = format!("crd/{plural}.{group}");
    cluster.kubectl_ok(&["wait", "--for=condition=Established", &name, "--timeout=60s"]).await.unwrap();
}

pub fn api(shop: &Shop, kind: Kind) -> Api<DynamicObject> {
    Api::namespaced_with(shop.client.clone(), &shop.namespace, &kind.resource())
}

/// Two Pods of one container `app`; `patch` on top. The API server may need a moment to serve a kind that is new.
pub async fn create(shop: &Shop, kind: Kind, name: &str, text: &str, patch: &Value) -> DynamicObject {
    let mut object = json!({
        "apiVersion": kind.api_version(), "kind": kind.as_str(), "metadata": {"name": name},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}},
            "spec": {"containers": [{"name": "app", "image": text}], "terminationGracePeriodSeconds": 0},
        }},
    });
    json_patch::merge(&mut object, patch);
    let object = serde_json::from_value(object).unwrap();
    let make = async || api(shop, kind).create(&PostParams::default(), &object).await.map_err(|e| e.to_string());
    eventually(DEADLINE, "the kind is served", make).await
}

pub async fn merge(shop: &Shop, kind: Kind, name: &str, patch: &Value) {
    api(shop, kind).patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

/// Waits until a workload is stamped to run this; the workload.
pub async fn stamped(shop: &Shop, kind: Kind, name: &str, text: &str, reference: &str) -> DynamicObject {
    let wanted = format!("{text} {reference}");
    eventually(DEADLINE, &format!("{}/{name} of {} is stamped {wanted:?}", kind.as_str(), shop.namespace), async || {
        let object = api(shop, kind).get(name).await.unwrap();
        let found = stamp_of(&object);
        if found == wanted { Ok(object) } else { Err(found) }
    })
    .await
}

pub fn stamp_of(object: &DynamicObject) -> String {
    object.data["spec"]["template"]["metadata"]["annotations"][STAMP].as_str().unwrap_or_default().to_owned()
}

pub fn owner(object: &DynamicObject) -> Value {
    let types = object.types.as_ref().unwrap();
    json!([{"apiVersion": types.api_version, "kind": types.kind, "name": object.name_any(), "uid": object.uid(),
        "controller": true, "blockOwnerDeletion": true}])
}

fn hash_of(template: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    format!("{:x}", hasher.finish() & 0xffff_ffff)
}

/// The controller of a Rollout: gives the template's `ReplicaSet` `updated` Pods and another one the rest, waits until
/// all are available, and says so with this phase.
pub async fn argo(shop: &Shop, name: &str, updated: i64, phase: &str) {
    let object = api(shop, Kind::Rollout).get(name).await.unwrap();
    let template = &object.data["spec"]["template"];
    let (hash, total) = (hash_of(template), object.data["spec"]["replicas"].as_i64().unwrap());
    let sets: Api<ReplicaSet> = shop.api();
    let mine = ListParams::default().labels(&format!("app={name}"));
    let list = sets.list(&mine).await.unwrap().items;
    let of = |set: &ReplicaSet| set.labels()["rollouts-pod-template-hash"].clone();
    if !list.iter().any(|set| of(set) == hash) {
        let mut template = template.clone();
        let label = json!({"rollouts-pod-template-hash": hash});
        json_patch::merge(&mut template, &json!({"metadata": {"labels": label}}));
        let set = json!({
            "apiVersion": "apps/v1", "kind": "ReplicaSet",
            "metadata": {"name": format!("{name}-{hash}"), "labels": template["metadata"]["labels"], "ownerReferences": owner(&object),
                "annotations": {"rollout.argoproj.io/revision": format!("{}", list.len() + 1)}},
            "spec": {"replicas": 0, "selector": {"matchLabels": {"app": name, "rollouts-pod-template-hash": hash}},
                "template": template},
        });
        sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
    }
    let stable = list.iter().map(of).find(|other| *other != hash && updated < total).unwrap_or_else(|| hash.clone());
    for set in sets.list(&mine).await.unwrap() {
        let replicas = match of(&set) {
            this if this == hash => updated,
            this if this == stable => total - updated,
            _ => 0,
        };
        let patch = json!({"spec": {"replicas": replicas}});
        sets.patch(&set.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }
    eventually(DEADLINE, &format!("all Pods of Rollout {name} are available"), async || {
        let list = sets.list(&mine).await.unwrap().items;
        let available = |set: &ReplicaSet| set.status.as_ref().and_then(|s| s.available_replicas).unwrap_or(0);
        let right = list.iter().all(|s| {
            s.spec.replicas == Some(available(s))
                && s.metadata.generation == s.status.as_ref().and_then(|s| s.observed_generation)
        });
        right.then_some(()).ok_or("not yet")
    })
    .await;
    let status = json!({"observedGeneration": object.metadata.generation.unwrap().to_string(), "phase": phase,
        "replicas": total, "updatedReplicas": updated, "readyReplicas": total, "availableReplicas": total,
        "currentPodHash": hash, "stableRS": stable});
    status_is(shop, &object, &status).await;
}

/// The controller of a CloneSet: records the template's revision, replaces `updated` Pods by some of it, and says so.
pub async fn kruise(shop: &Shop, name: &str, updated: usize) {
    let object = api(shop, Kind::CloneSet).get(name).await.unwrap();
    let template = &object.data["spec"]["template"];
    let hash = hash_of(template);
    let revision = format!("{name}-{hash}");
    let revisions: Api<ControllerRevision> = shop.api();
    if revisions.get_opt(&revision).await.unwrap().is_none() {
        let count = revisions.list(&ListParams::default()).await.unwrap().items.len();
        let made = json!({"metadata": {"name": revision, "labels": {"app": name}, "ownerReferences": owner(&object)},
            "revision": count + 1, "data": {"spec": {"template": template}}});
        revisions.create(&PostParams::default(), &serde_json::from_value(made).unwrap()).await.unwrap();
    }
    let pods: Api<Pod> = shop.api();
    let of = |pod: &Pod| pod.labels().get("controller-revision-hash") == Some(&revision);
    let list = shop.pods().await;
    let missing = updated.saturating_sub(list.iter().filter(|pod| of(pod)).count());
    for old in list.iter().filter(|pod| !of(pod)).take(missing) {
        pods.delete(&old.name_any(), &DeleteParams::default()).await.unwrap();
    }
    for _ in 0..missing {
        let mut pod = template.clone();
        let labels = json!({"controller-revision-hash": revision, "pod-template-hash": hash});
        let metadata = json!({"generateName": format!("{name}-"), "labels": labels, "ownerReferences": owner(&object)});
        json_patch::merge(&mut pod, &json!({"metadata": metadata}));
        pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    }
    eventually(DEADLINE, &format!("all Pods of CloneSet {name} are ready"), async || {
        let list = shop.pods().await;
        (list.len() == 2 && list.iter().all(crate::support::is_ready)).then_some(()).ok_or(list.len())
    })
    .await;
    let status = json!({"observedGeneration": object.metadata.generation, "replicas": 2, "readyReplicas": 2,
        "availableReplicas": 2, "updatedReplicas": updated, "updatedReadyReplicas": updated, "updateRevision": revision});
    status_is(shop, &object, &status).await;
}

async fn status_is(shop: &Shop, object: &DynamicObject, status: &Value) {
    let kind = Kind::ALL.into_iter().find(|kind| kind.as_str() == object.types.as_ref().unwrap().kind).unwrap();
    let patch = Patch::Merge(json!({"status": status}));
    api(shop, kind).patch_status(&object.name_any(), &PatchParams::default(), &patch).await.unwrap();
}

/// Image texts of an app's Pods, sorted.
async fn images(shop: &Shop, app: &str) -> Vec<String> {
    let pods = shop.pods().await.into_iter().filter(|pod| pod.labels().get("app").is_some_and(|a| a == app));
    let mut images: Vec<String> = pods.map(|pod| image_of(&pod, "app")).collect();
    images.sort_unstable();
    images
}

/// How many workloads run the Image's tag, and of how many, as the status says.
pub async fn counts(shop: &Shop, image: &str, workloads: &str) {
    let what = format!("counts {workloads}");
    shop.status_is(image, &what, |status| status.workloads.as_deref() == Some(workloads)).await;
}

/// Gives kimup the right to Rollouts, or takes it away.
async fn allow(cluster: &Cluster, allowed: bool) {
    let api: Api<ClusterRole> = Api::all(cluster.client().await.unwrap());
    let mut role = api.get("kimup").await.unwrap();
    let rules = role.rules.as_mut().unwrap();
    let group = if allowed { "argoproj.io" } else { "elsewhere.example" };
    let concerned = rules.iter_mut().find(|rule| rule.resources.iter().flatten().any(|name| name == "rollouts"));
    concerned.unwrap().api_groups = Some(vec![group.to_owned()]);
    api.replace("kimup", &PostParams::default(), &role).await.unwrap();
}

#[tokio::test]
async fn argo_rollouts_are_rolled_as_long_as_they_are_installed() {
    let cluster = Cluster::start().await.unwrap();
    let registries = Registries::start().await;
    let registry = &registries.open;
    registry.push_all("rollout", &["1.0.0", "1.1.0"]).await.unwrap();
    let image = registry.image("rollout");
    let [old, new, newest] = ["1.0.0", "1.1.0", "1.2.0"].map(|tag| format!("{image}:{tag}"));
    let typed = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"metadata": {
    "type": "object", "properties": {
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
    }}}});
    install(&cluster, Kind::Rollout, &typed).await;
    cluster.apply_deploy(DEPLOYED).await.unwrap();
    allow(&cluster, false).await;
    let shop = Shop::new(&cluster, "rollouts", &[(ENABLED, "true")], &[]).await;
    create(&shop, Kind::Rollout, "web", &old, &json!({})).await;
    argo(&shop, "web", 2, "Healthy").await;
    shop.create_image("app", &json!({"spec": {"image": image}})).await;

    // It is ready without what it may not read, and says so once.
    let kimup = KimupProcess::start(options(&cluster, &registries).await).await.unwrap();
    configured(&cluster).await;
    shop.settles("app", "1.1.0").await;
    let refused = || kimup.log_text().matches("give it list, watch and patch on rollouts.argoproj.io").count();
    assert_eq!(refused(), 1);
    assert_eq!(stamp_of(&api(&shop, Kind::Rollout).get("web").await.unwrap()), "");
    allow(&cluster, true).await;

    let rollout = stamped(&shop, Kind::Rollout, "web", &old, &new).await;
    assert_eq!(refused(), 1);
    assert_eq!(rollout.annotations()[CHANGE_CAUSE], "kimup: app 1.0.0 -> 1.1.0 (Image app, rule patch)");
    assert_eq!(rollout.data["spec"]["template"]["spec"]["containers"][0]["image"], old);
    argo(&shop, "web", 2, "Healthy").await;
    counts(&shop, "app", "1/1").await;
    steps_are_waited_for(&shop, &registries, &old, [&new, &newest]).await;
    aborted_is_taken_back(&shop, &registries, &image).await;
    taken_away(&cluster, &shop, &registries, &image).await;
    assert!(!kimup.log_text().contains("panicked"));
}

/// A pause between two steps is not the end, and neither is another version that is still there.
async fn steps_are_waited_for(shop: &Shop, registries: &Registries, text: &str, [new, newest]: [&String; 2]) {
    assert_eq!(images(shop, "web").await, [new.as_str(), new]);
    registries.open.push("rollout", "1.2.0").await.unwrap();
    shop.sync("app").await;
    let rollout = stamped(shop, Kind::Rollout, "web", text, newest).await;
    counts(shop, "app", "0/1").await;
    argo(shop, "web", 1, "Paused").await;
    assert_eq!(images(shop, "web").await, [new.as_str(), newest]);
    for _ in 0..3 {
        shop.sync("app").await;
    }
    let status = shop.status("app").await;
    let reconciling = status.conditions.iter().find(|c| c.type_ == condition::RECONCILING);
    assert_eq!(reconciling.map(|c| c.status.as_str()), Some("True"), "{:?}", status.conditions);
    assert_eq!((status.tag.as_deref(), status.workloads.as_deref()), (Some("1.1.0"), Some("0/1")));
    argo(shop, "web", 2, "Healthy").await;
    shop.settles("app", "1.2.0").await;
    counts(shop, "app", "1/1").await;
    let id = rollout.data["spec"]["template"]["metadata"]["labels"]["kimup.cloudavenue.io/rollout"].as_str().unwrap();
    for pod in shop.pods().await {
        let applied = format!("app: 1.0.0 -> 1.2.0 (Image app, rollout {id})");
        assert_eq!((pod.annotations()[APPLIED].as_str(), image_of(&pod, "app")), (&*applied, newest.clone()));
    }
    shop.sync("app").await; // the Events of a turn follow its status
    let events = shop.events("Rollout", "web").await;
    let said = |reason: &str| events.iter().filter(|event| event.starts_with(reason)).count();
    assert_eq!((said("RolloutStarted"), said("RolloutSettled")), (2, 1), "{events:?}");
    // Nothing is rolled twice.
    assert_eq!(shop.revisions("web").await, 3);
}

/// Argo's own word that a version is no good counts.
async fn aborted_is_taken_back(shop: &Shop, registries: &Registries, image: &str) {
    let text = format!("{image}:1.0.0");
    registries.open.push("rollout", "1.2.9").await.unwrap();
    shop.sync("app").await;
    let rollout = stamped(shop, Kind::Rollout, "web", &text, &format!("{image}:1.2.9")).await;
    argo(shop, "web", 1, "Progressing").await;
    let why = "RolloutAborted: metric assessed Failed";
    let now = Timestamp::now().checked_add(Duration::from_secs(1)).unwrap();
    let aborted = json!({"abort": true, "abortedAt": format!("{now:.0}"), "phase": "Degraded", "message": why});
    status_is(shop, &rollout, &aborted).await;
    let status = shop.status_is("app", "has rejected 1.2.9", |status| !status.rejected.is_empty()).await;
    let rejected = &status.rejected[0];
    assert_eq!((rejected.tag.as_str(), rejected.workload.as_str()), ("1.2.9", "Rollout/web"));
    assert!(rejected.reason.contains(why), "{}", rejected.reason);
    stamped(shop, Kind::Rollout, "web", &text, &format!("{image}:1.2.0")).await;
    status_is(shop, &rollout, &json!({"abort": null, "abortedAt": null, "message": null})).await;
    argo(shop, "web", 2, "Healthy").await;
    shop.settles("app", "1.2.0").await;
    counts(shop, "app", "1/1").await;
}

/// Without the kind kimup goes on, and with it again it is as before.
async fn taken_away(cluster: &Cluster, shop: &Shop, registries: &Registries, image: &str) {
    let text = format!("{image}:1.0.0");
    shop.create_deployment("api", &text, &opted_in()).await;
    counts(shop, "app", "2/2").await;
    cluster.kubectl_ok(&["delete", "crd", "rollouts.argoproj.io", "--timeout=60s"]).await.unwrap();
    shop.sync("app").await;
    counts(shop, "app", "1/1").await;
    registries.open.push("rollout", "1.3.0").await.unwrap();
    shop.sync("app").await;
    shop.pods_run("api", 2, &format!("{image}:1.3.0")).await;
    shop.settles("app", "1.3.0").await;
    // Long enough for discovery to have told, which nobody sees from outside.
    eventually(DEADLINE, "discovery is asked again", async || {
        tokio::time::sleep(Duration::from_millis(200)).await;
        let asked = cluster.audit_log().unwrap();
        let missing = asked.iter().filter(|event| {
            event["requestURI"] == "/apis/argoproj.io/v1alpha1" && event["responseStatus"]["code"] == 404
        });
        (missing.count() >= 2).then_some(()).ok_or("not yet")
    })
    .await;
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    install(cluster, Kind::Rollout, &open).await;
    create(shop, Kind::Rollout, "later", &text, &json!({})).await;
    argo(shop, "later", 2, "Healthy").await;
    // Its first Pods have the settled tag from admission; the next one comes by a stamp.
    registries.open.push("rollout", "1.4.0").await.unwrap();
    counts(shop, "app", "2/2").await;
    shop.sync("app").await;
    stamped(shop, Kind::Rollout, "later", &text, &format!("{image}:1.4.0")).await;
    argo(shop, "later", 2, "Healthy").await;
    shop.settles("app", "1.4.0").await;
}

#[tokio::test]
async fn clone_sets_are_rolled_once_they_are_installed() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("clone-set", &["1.0.0", "1.1.0"]).await.unwrap();
    let image = registry.image("clone-set");
    let [old, new, newest] = ["1.0.0", "1.1.0", "1.2.0"].map(|tag| format!("{image}:{tag}"));
    // As OpenKruise has it: nothing is said of the template.
    install(bed.cluster, Kind::CloneSet, &json!({"x-kubernetes-preserve-unknown-fields": true})).await;
    let shop = bed.shop("clone-sets", &[]).await;
    let policy = json!({"metadata": {"annotations": {POLICY: "minor", "kimup.cloudavenue.io/interval": "1h"}}});
    let set = create(&shop, Kind::CloneSet, "web", &old, &policy).await;
    kruise(&shop, "web", 2).await;
    stamped(&shop, Kind::CloneSet, "web", &old, &new).await;
    let name = image_name("CloneSet", "web", "app");
    let made = shop.api::<Image>().get(&name).await.unwrap();
    let owner = &made.owner_references()[0];
    assert_eq!(
        (&*owner.api_version, &*owner.kind, &owner.uid),
        ("apps.kruise.io/v1alpha1", "CloneSet", &set.uid().unwrap())
    );

    kruise(&shop, "web", 1).await;
    for _ in 0..2 {
        shop.sync(&name).await;
    }
    counts(&shop, &name, "0/1").await;
    assert_eq!(images(&shop, "web").await, [old.as_str(), &new]);
    kruise(&shop, "web", 2).await;
    shop.settles(&name, "1.1.0").await;
    counts(&shop, &name, "1/1").await;
    assert_eq!(images(&shop, "web").await, [new.as_str(), &new]);

    in_place_is_left_alone(bed, &shop, &name, [&old, &new, &newest]).await;
    is_not_made_again(&shop, &newest).await;
}

/// Pods that are changed in place would not get another image by a stamp.
async fn in_place_is_left_alone(bed: &Bed, shop: &Shop, name: &str, [old, new, newest]: [&str; 3]) {
    merge(shop, Kind::CloneSet, "web", &json!({"spec": {"updateStrategy": {"type": "InPlaceIfPossible"}}})).await;
    eventually(DEADLINE, "it is said that it cannot be rolled", async || {
        let events = shop.events("CloneSet", "web").await;
        let said = events.iter().filter(|e| e.starts_with("RolloutFailed: ") && e.contains("ReCreate")).count();
        if said == 1 { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    bed.registries.open.push("clone-set", "1.2.0").await.unwrap();
    for _ in 0..3 {
        shop.sync(name).await;
    }
    assert_eq!(stamp_of(&api(shop, Kind::CloneSet).get("web").await.unwrap()), format!("{old} {new}"));
    let status = shop.settles(name, "1.2.0").await;
    let unsupported = status.conditions.iter().find(|c| c.type_ == condition::UNSUPPORTED).unwrap();
    assert!(unsupported.message.starts_with("CloneSet/web cannot be rolled: "), "{}", unsupported.message);
    merge(shop, Kind::CloneSet, "web", &json!({"spec": {"updateStrategy": {"type": "ReCreate"}}})).await;
    kruise(shop, "web", 2).await; // it has seen that
    stamped(shop, Kind::CloneSet, "web", old, newest).await;
    kruise(shop, "web", 2).await;
    shop.sync(name).await;
    counts(shop, name, "1/1").await;
    assert!(shop.status(name).await.conditions.iter().all(|c| c.type_ != condition::UNSUPPORTED));
}

/// An apply that comes late reaches neither nobody nor another object of the same name. As administrator, who may create.
async fn is_not_made_again(shop: &Shop, reference: &str) {
    let api = api(shop, Kind::CloneSet);
    let object = api.get("web").await.unwrap();
    let workload = Workload::from_foreign(Kind::CloneSet, &object).unwrap();
    let change = Change {
        container: "app".to_owned(),
        from: "1.0.0".to_owned(),
        to: "1.2.0".to_owned(),
        digest: None,
        image: "app".to_owned(),
        rule: "minor".to_owned(),
        rollout: "ab12".to_owned(),
        back: None,
    };
    let stamps = BTreeMap::from([("app".to_owned(), format!("x {reference}"))]);
    let plan = Plan { changes: vec![change], stamps, ..Plan::default() };
    let late = async || apply(&shop.client, &workload, &plan).await;
    api.delete("web", &DeleteParams::background()).await.unwrap();
    assert!(matches!(late().await, Err(ApplyError::Conflict)));
    assert!(api.get_opt("web").await.unwrap().is_none());
    let again = create(shop, Kind::CloneSet, "web", reference, &json!({})).await;
    assert!(matches!(late().await, Err(ApplyError::Conflict)));
    assert_eq!(api.get("web").await.unwrap().resource_version(), again.resource_version());
    // The same once it is read: then it is written.
    let workload = Workload::from_foreign(Kind::CloneSet, &again).unwrap();
    let written = apply(&shop.client, &workload, &plan).await.unwrap().unwrap();
    assert_eq!(written.stamp("app").unwrap().reference, reference);
    assert!(written.stamp_owners["app"].contains(kimup::rollout::FIELD_MANAGER));
}
