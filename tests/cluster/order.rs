//! One first, then the others; no two rollouts of a workload at once, and rest between them.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kimup::api::annotated::image_name;
use kimup::api::{Image, ImageStatus};
use kimup::rollout::Workload;
use kimup_testbed::{KimupProcess, eventually};
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::own::{Own, READY_AFTER};
use crate::support::{Bed, DEADLINE, ENABLED, Shop, image_of};

const CANARY: &str = "kimup.cloudavenue.io/canary";
const STAMP: &str = "stamp.kimup.cloudavenue.io/app";

/// A Deployment that is opted in, whose Pods take a second to be ready.
async fn deploy(shop: &Shop, name: &str, image: &str, replicas: i32, patch: &Value) {
    let annotations = json!({ENABLED: "true", READY_AFTER: "1s"});
    let mut all = json!({"spec": {"replicas": replicas, "template": {"metadata": {"annotations": annotations}}}});
    json_patch::merge(&mut all, patch);
    shop.create_deployment(name, &format!("{image}:1.0.0"), &all).await;
}

/// When each Deployment was stamped for a tag; those that were not are left out.
async fn stamped(shop: &Shop, tag: &str) -> BTreeMap<String, Timestamp> {
    let all = shop.api::<Deployment>().list(&ListParams::default()).await.unwrap().items;
    let of = |d: &Deployment| {
        let workload = Workload::from_deployment(d).unwrap();
        let named = workload.stamp("app").is_some_and(|stamp| stamp.reference.ends_with(&format!(":{tag}")));
        named.then(|| (workload.key.name.clone(), workload.stamped_at.unwrap()))
    };
    all.iter().filter_map(of).collect()
}

/// Waits until all of `names` are stamped for a tag, and says when each was.
async fn all_stamped(shop: &Shop, tag: &str, names: &[&str]) -> BTreeMap<String, Timestamp> {
    eventually(DEADLINE, &format!("{names:?} are stamped for {tag}"), async || {
        let found = stamped(shop, tag).await;
        let all = names.iter().all(|name| found.contains_key(*name));
        if all { Ok(found) } else { Err(format!("{found:?}")) }
    })
    .await
}

fn reconciling(status: &ImageStatus) -> String {
    let found = status.conditions.iter().find(|c| c.type_ == "Reconciling");
    found.map(|c| c.message.clone()).unwrap_or_default()
}

fn first_ready_at(status: &ImageStatus) -> Option<Timestamp> {
    status.rollout.as_ref()?.first_ready_at.as_ref().map(|at| at.parse().unwrap())
}

async fn soaks(shop: &Shop, image: &str, first: &str) -> Timestamp {
    let what = format!("soaks on {first}");
    let soaking = |s: &ImageStatus| {
        let named = s.rollout.as_ref().is_some_and(|r| r.first.as_deref() == Some(first));
        named && first_ready_at(s).is_some() && reconciling(s).contains(&what)
    };
    let status = shop.status_is(image, &what, soaking).await;
    assert!(status.pending.is_none(), "{:?}", status.pending);
    first_ready_at(&status).unwrap()
}

/// An Image `img` whose workloads run 1.0.0.
async fn stage(shop: &Shop, image: &str, rollout: &Value) {
    shop.create_image("img", &json!({"spec": {"image": image, "rollout": rollout}})).await;
    shop.settles("img", "1.0.0").await;
}

async fn all_run(shop: &Shop, workloads: &str, tag: &str) {
    let done = |s: &ImageStatus| s.workloads.as_deref() == Some(workloads) && s.rollout.is_none();
    let status = shop.status_is("img", &format!("{workloads} run {tag}"), done).await;
    assert_eq!(status.tag.as_deref(), Some(tag));
}

#[tokio::test]
async fn a_marked_workload_goes_first_and_the_others_after_the_soak() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("order-canary", &["1.0.0"]).await.unwrap();
    let (image, shop) = (registry.image("order-canary"), bed.shop("order-canary", &[]).await);
    stage(&shop, &image, &json!({"soak": "4s", "maxConcurrent": 2})).await;
    let marked = json!({"metadata": {"annotations": {CANARY: "true"}}});
    for (name, replicas, patch) in [("a", 1, &json!({})), ("b", 3, &marked), ("c", 2, &json!({})), ("d", 1, &json!({}))]
    {
        deploy(&shop, name, &image, replicas, patch).await;
    }
    all_run(&shop, "4/4", "1.0.0").await;
    registry.push("order-canary", "1.1.0").await.unwrap();
    shop.sync("img").await;
    let ready_at = soaks(&shop, "img", "Deployment/b").await;
    assert_eq!(stamped(&shop, "1.1.0").await.into_keys().collect::<Vec<_>>(), ["b"]);
    shop.pods_run("b", 3, &format!("{image}:1.1.0")).await;
    let times = all_stamped(&shop, "1.1.0", &["a", "b", "c", "d"]).await;
    let soaked = ready_at + Duration::from_secs(4);
    assert!(times.iter().all(|(name, at)| name == "b" || *at >= soaked), "{times:?}, soaked {soaked}");
    // Two at a time.
    let mut followers: Vec<_> = ["a", "c", "d"].iter().map(|name| times[*name]).collect();
    followers.sort_unstable();
    assert!(followers[2] > followers[0], "{times:?}");
    all_run(&shop, "4/4", "1.1.0").await;
    let events = shop.events("Image", "img").await;
    let started = events.iter().filter(|e| e.starts_with("RolloutStarted")).count();
    assert_eq!(started, 1, "once for all: {events:?}");
    assert!(shop.events("Deployment", "b").await.iter().all(|e| !e.contains("no effect")), "canary has an effect");
}

#[tokio::test]
async fn the_smallest_with_pods_goes_first() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("order-small", &["1.0.0"]).await.unwrap();
    let (image, shop) = (registry.image("order-small"), bed.shop("order-small", &[]).await);
    stage(&shop, &image, &json!({"maxConcurrent": 5})).await;
    for (name, replicas) in [("none", 0), ("two", 2), ("one", 1), ("three", 3)] {
        deploy(&shop, name, &image, replicas, &json!({})).await;
    }
    all_run(&shop, "4/4", "1.0.0").await;
    registry.push("order-small", "1.1.0").await.unwrap();
    shop.sync("img").await;
    let first = |s: &ImageStatus| s.rollout.as_ref().is_some_and(|r| r.first.as_deref() == Some("Deployment/one"));
    shop.status_is("img", "says who goes first", first).await;
    let times = all_stamped(&shop, "1.1.0", &["none", "one", "two", "three"]).await;
    // Its Pod takes a second to be ready.
    assert!(times.iter().all(|(name, at)| name == "one" || *at > times["one"]), "{times:?}");
    all_run(&shop, "4/4", "1.1.0").await;
}

#[tokio::test]
async fn a_soak_goes_on_after_a_restart_and_begins_anew_when_its_workload_fails() {
    let own = Own::start().await;
    let mut kimup = KimupProcess::start(own.options("kimup").await).await.unwrap();
    own.registry.push_all("app", &["1.0.0"]).await.unwrap();
    let (image, shop) = (own.registry.image("app"), own.shop("soak").await);
    stage(&shop, &image, &json!({"soak": "30s"})).await;
    deploy(&shop, "small", &image, 1, &json!({})).await;
    deploy(&shop, "large", &image, 2, &json!({})).await;
    all_run(&shop, "2/2", "1.0.0").await;
    own.registry.push("app", "1.1.0").await.unwrap();
    shop.sync("img").await;
    let ready_at = soaks(&shop, "img", "Deployment/small").await;
    // Its Pod goes: the soak begins anew once another one is ready.
    let pods = shop.api::<Pod>();
    let small = pods.list(&ListParams::default().labels("app=small")).await.unwrap().items;
    pods.delete(&small[0].name_any(), &DeleteParams::default()).await.unwrap();
    shop.status_is("img", "soaks no longer", |s| s.rollout.is_some() && first_ready_at(s).is_none()).await;
    let again = soaks(&shop, "img", "Deployment/small").await;
    assert!(again > ready_at, "{again} after {ready_at}");
    // In peace, so that its Lease is free at once.
    kimup.terminate(DEADLINE).await.unwrap();
    let mut kimup = kimup.start_again().await.unwrap();
    let status = shop.sync("img").await;
    assert_eq!(first_ready_at(&status), Some(again), "a restart forgets nothing");
    assert_eq!(stamped(&shop, "1.1.0").await.into_keys().collect::<Vec<_>>(), ["small"]);
    let times = all_stamped(&shop, "1.1.0", &["large"]).await;
    let soaked = again + Duration::from_secs(30);
    let late = times["large"].duration_since(soaked).as_secs();
    assert!((0..10).contains(&late), "{times:?}, soaked {soaked}");
    all_run(&shop, "2/2", "1.1.0").await;
    kimup.kill();
}

#[tokio::test]
async fn images_of_annotations_go_one_first() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("order-group", &["1.0.0"]).await.unwrap();
    let (image, shop) = (registry.image("order-group"), bed.shop("order-group", &[]).await);
    let policy = json!({"kimup.cloudavenue.io/policy": "semver", "kimup.cloudavenue.io/interval": "1h"});
    let names = ["big", "mid", "tiny"];
    let of = |name: &str| image_name("Deployment", name, "app");
    for (name, replicas) in names.iter().zip([3, 2, 1]) {
        let patch = json!({"spec": {"template": {"metadata": {"annotations": policy}}}});
        deploy(&shop, name, &image, replicas, &patch).await;
    }
    for name in names {
        crate::annotated::settles(&shop, &of(name), "1.0.0").await;
        let soak = json!({"spec": {"rollout": {"soak": "3s", "maxConcurrent": 3}}});
        let images = shop.api::<Image>();
        images.patch(&of(name), &PatchParams::default(), &Patch::Merge(soak)).await.unwrap();
    }
    for (name, replicas) in names.iter().zip([3, 2, 1]) {
        shop.pods_run(name, replicas, &format!("{image}:1.0.0")).await;
    }
    // Only the Image of the largest is asked to look.
    registry.push("order-group", "1.1.0").await.unwrap();
    shop.sync(&of("big")).await;
    let times = all_stamped(&shop, "1.1.0", &names).await;
    let soaked = times["tiny"] + Duration::from_secs(3);
    assert!(["big", "mid"].iter().all(|name| times[*name] >= soaked), "{times:?}");
    for name in names {
        shop.settles(&of(name), "1.1.0").await;
    }
}

/// Objects of `apps/v1` of any kind.
fn apps(shop: &Shop, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", kind));
    Api::namespaced_with(shop.client.clone(), &shop.namespace, &resource)
}

#[tokio::test]
async fn a_newer_tag_waits_for_the_rollout_that_is_under_way() {
    let bed = Bed::shared().await;
    let kinds = ["Deployment", "StatefulSet", "DaemonSet"];
    futures::future::join_all(kinds.map(|kind| never_two_at_once(bed, kind))).await;
}

async fn never_two_at_once(bed: &Bed, kind: &str) {
    let repository = format!("order-over-{}", kind.to_lowercase());
    let registry = &bed.registries.open;
    registry.push_all(&repository, &["1.0.0"]).await.unwrap();
    let (image, shop) = (registry.image(&repository), bed.shop(&repository, &[]).await);
    stage(&shop, &image, &json!({})).await;
    let mut workload = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": "web"},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}, "annotations": {ENABLED: "true", READY_AFTER: "2s"}},
                "spec": {"containers": [{"name": "app", "image": format!("{image}:1.0.0")}], "terminationGracePeriodSeconds": 0},
            },
        },
    });
    if kind != "DaemonSet" {
        workload["spec"]["replicas"] = json!(2);
    }
    let workload = serde_json::from_value(workload).unwrap();
    apps(&shop, kind).create(&PostParams::default(), &workload).await.unwrap();
    all_run(&shop, "1/1", "1.0.0").await;
    registry.push(&repository, "1.1.0").await.unwrap();
    shop.sync("img").await;
    eventually(DEADLINE, "1.1.0 is on its way", async || stamp(&shop, kind).await.ends_with(":1.1.0")).await;
    registry.push(&repository, "1.2.0").await.unwrap();
    shop.sync("img").await;
    eventually(DEADLINE, &format!("{kind}: both tags are rolled out"), async || {
        let (stamp, pods) = (stamp(&shop, kind).await, shop.pods().await);
        let tags: Vec<String> = pods.iter().map(|pod| image_of(pod, "app").replace(&image, "")).collect();
        // Pods are listed after the stamp was read: those of 1.0.0 were there before 1.2.0 was to come.
        assert!(!(stamp.ends_with(":1.2.0") && tags.contains(&":1.0.0".to_owned())), "{kind}: {stamp} over {tags:?}");
        let done = tags.len() == 2 && tags.iter().all(|tag| tag == ":1.2.0");
        if done { Ok(()) } else { Err(format!("{stamp}: {tags:?}")) }
    })
    .await;
    all_run(&shop, "1/1", "1.2.0").await;
    let of = if kind == "Deployment" { "ReplicaSet" } else { "ControllerRevision" };
    let revisions = apps(&shop, of).list(&ListParams::default().labels("app=web")).await.unwrap().items.len();
    assert_eq!(revisions, 3, "{kind}: each tag was rolled out once");
}

async fn stamp(shop: &Shop, kind: &str) -> String {
    let object = serde_json::to_value(apps(shop, kind).get("web").await.unwrap()).unwrap();
    let stamp = &object["spec"]["template"]["metadata"]["annotations"][STAMP];
    stamp.as_str().unwrap_or_default().to_owned()
}

/// A thousand tags a minute in one repository, of which kimup is told at the same time.
#[tokio::test]
async fn a_storm_of_tags_rolls_a_workload_once_per_interval() {
    const TAGS: usize = 250;
    let bed = Bed::shared().await;
    let registry = &bed.registries.scripted;
    let mut tags = vec!["1.0.0".to_owned()];
    let push = |tags: &[String]| registry.set_tags("order-storm", &tags.iter().map(String::as_str).collect::<Vec<_>>());
    push(&tags);
    let (image, shop) = (registry.image("order-storm"), bed.shop("order-storm", &[]).await);
    let spec =
        json!({"image": image, "rollout": {"minInterval": "3s"}, "triggers": [{"type": "interval", "value": "1s"}]});
    shop.create_image("img", &json!({"spec": spec})).await;
    let opted_in = json!({"spec": {"template": {"metadata": {"annotations": {ENABLED: "true"}}}}});
    shop.create_deployment("web", &format!("{image}:1.0.0"), &opted_in).await;
    all_run(&shop, "1/1", "1.0.0").await;
    // What a busy machine is late with, it makes up for.
    let mut ticks = tokio::time::interval(Duration::from_secs(60) / 1000);
    let began = Instant::now();
    while tags.len() <= TAGS {
        ticks.tick().await;
        tags.push(format!("1.0.{}", tags.len()));
        push(&tags);
        if tags.len().is_multiple_of(10) {
            shop.annotate_image("img", "kimup.cloudavenue.io/requestedAt", Some(&tags.len().to_string())).await;
        }
    }
    let took = began.elapsed();
    shop.sync("img").await;
    let last = tags.last().unwrap();
    all_run(&shop, "1/1", last).await;
    shop.pods_run("web", 2, &format!("{image}:{last}")).await;
    let sets = shop.api::<ReplicaSet>().list(&ListParams::default().labels("app=web")).await.unwrap().items;
    let mut made: Vec<Timestamp> = sets.iter().filter_map(|s| s.creation_timestamp().map(|t| t.0)).collect();
    made.sort_unstable();
    let gaps: Vec<i64> = made.windows(2).map(|pair| pair[1].duration_since(pair[0]).as_secs()).collect();
    println!("{TAGS} tags in {took:.1?}, rollouts after seconds: {gaps:?}");
    // The 15 s that they are meant to take, and what a busy machine wakes late for the last of them.
    assert!(took < Duration::from_secs(20), "no storm: {TAGS} tags in {took:?}");
    // It does not stand still meanwhile either: 3 s of rest, of which the API server tells whole ones.
    assert!((4..=8).contains(&gaps.len()), "{gaps:?}");
    // The first stamp replaces no other.
    assert!(gaps[1..].iter().all(|gap| *gap >= 3), "{gaps:?}");
}

#[tokio::test]
async fn the_api_server_tells_when_a_stamp_was_changed() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("order-time", &["1.0.0"]).await.unwrap();
    let (image, shop) = (registry.image("order-time"), bed.shop("order-time", &[]).await);
    stage(&shop, &image, &json!({"minInterval": "1s"})).await;
    deploy(&shop, "web", &image, 1, &json!({})).await;
    all_run(&shop, "1/1", "1.0.0").await;
    let mut last = None;
    for tag in ["1.1.0", "1.2.0"] {
        registry.push("order-time", tag).await.unwrap();
        shop.sync("img").await;
        let times = all_stamped(&shop, tag, &["web"]).await;
        assert!(Some(times["web"]) > last, "{tag}: {times:?} after {last:?}");
        all_run(&shop, "1/1", tag).await;
        // Another manager's change is none of the stamp.
        let patch = json!({"spec": {"replicas": 2}, "metadata": {"labels": {"touched": tag}}});
        shop.api::<Deployment>().patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        assert_eq!(stamped(&shop, tag).await, times);
        last = Some(times["web"]);
    }
}
