//! A tag that is rejected while a workload is held at it, and one to go back to that the registry has no longer.

use k8s_openapi::api::core::v1::Namespace;
use kimup::api::{HeldBy, ImageStatus};
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::holds::{self, HOLD, is_held, nothing_happens, nothing_is_held, object, said};
use crate::rollback::{BROKEN, Stage, condition, count};
use crate::support::Shop;

const REJECT: &str = "kimup.cloudavenue.io/reject";

async fn freeze(shop: &Shop, value: Value) {
    let namespaces: Api<Namespace> = Api::all(shop.client.clone());
    let patch = json!({"metadata": {"annotations": {"kimup.cloudavenue.io/freeze": value}}});
    namespaces.patch(&shop.namespace, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

/// Every workload of `img`: the one with a stamp, and one that runs by what its first Pods got.
const BOTH: [&str; 2] = ["web", "bare"];

async fn are_held(stage: &holds::Stage, by: HeldBy, tag: &str, left: &str) {
    for name in BOTH {
        let held = is_held(&stage.shop, "img", &format!("Deployment/{name}"), by, tag).await;
        assert_eq!(held.left, left);
        stage.shop.pods_run(name, 2, &format!("{}:{tag}", stage.image)).await;
    }
}

async fn reject(stage: &holds::Stage, tag: &str) {
    stage.shop.annotate_image("img", REJECT, Some(tag)).await;
}

/// Nothing delays leaving it, and not for what a person left; only who names that very tag keeps it.
#[tokio::test]
async fn nobody_is_held_at_a_rejected_tag_but_by_the_annotation() {
    let stage = holds::Stage::new("rl-held", "Deployment", &json!({})).await;
    let shop = &stage.shop;
    let bare = holds::manifest("Deployment", "bare", &format!("{}:1.0.0", stage.image));
    holds::apply(shop, "Deployment", holds::FLUX, &bare).await;
    shop.pods_run("bare", 2, &format!("{}:1.2.0", stage.image)).await;
    stage.rolls_to("1.3.0").await;
    for name in BOTH {
        let workload = format!("deployment/{name}");
        stage.bed.cluster.kubectl_ok(&["-n", &shop.namespace, "rollout", "undo", &workload]).await.unwrap();
    }
    are_held(&stage, HeldBy::Undo, "1.2.0", "1.3.0").await;
    assert!(object(shop, "Deployment", "bare").await["spec"]["template"]["metadata"]["annotations"].is_null());
    stage.stays("1.2.0").await;

    freeze(shop, json!("true")).await;
    reject(&stage, "1.2.0").await;
    are_held(&stage, HeldBy::Undo, "1.1.0", "1.3.0").await;
    for name in BOTH {
        let words = ["Held: ", "stays at 1.1.0", "it was held at 1.2.0, which is rejected", "action=resume"];
        assert_eq!(said(shop, "Deployment", name, &words).await, 1);
        assert_eq!(said(shop, "Deployment", name, &["RolledBack: ", "1.2.0 -> 1.1.0"]).await, 1);
        let events = shop.events("Deployment", name).await;
        assert_eq!(count(&events, &["Resumed: "]), 0, "{events:?}");
        nothing_happens(shop, "Deployment", name, "img").await;
    }
    are_held(&stage, HeldBy::Undo, "1.1.0", "1.3.0").await;
    let status = shop.status("img").await;
    assert!(status.held.iter().all(|held| held.why.contains("a newer tag than 1.3.0 ends this")), "{status:?}");
    assert_eq!(status.workloads.as_deref(), Some("0/2, 2 held"));

    // Nothing older is there: they follow their Image.
    stage.bed.registries.open.delete_tag("rl-held", "1.0.0").await.unwrap();
    reject(&stage, "1.1.0").await;
    nothing_is_held(shop, "img").await;
    for name in BOTH {
        shop.pods_run(name, 2, &format!("{}:1.3.0", stage.image)).await;
        assert_eq!(said(shop, "Deployment", name, &["Resumed: ", "is no longer held at 1.1.0"]).await, 1);
    }
    stage.stays("1.3.0").await;

    stage.annotate(&json!({HOLD: "1.1.0"})).await;
    let held = stage.held(HeldBy::Annotation, "1.1.0").await;
    assert!(held.why.contains("1.1.0 is rejected"), "{held:?}");
    stage.stays("1.1.0").await;
}

/// A newer tag is on its way and may not go; the settled one is gone from the registry.
#[tokio::test]
async fn a_tag_that_is_gone_is_no_way_back() {
    tokio::join!(goes_back("rl-gone", &["1.2.5"]), goes_back("rl-none", &["1.2.5", "1.2.0"]));
}

async fn goes_back(name: &str, gone: &[&str]) {
    // What is prepared below must be done before the rollout has failed.
    let stage = Stage::new(name, &json!({"rollout": {"deadline": "20s", "minInterval": "1s"}})).await;
    let shop = &stage.shop;
    stage.workload("Deployment", "web", &json!({})).await;
    stage.push("1.2.5").await;
    stage.runs("web", "1.2.5").await;
    shop.settles("img", "1.2.5").await;
    stage.push(BROKEN).await;
    stage.is_stamped("Deployment", "web", BROKEN).await;
    stage.push("1.4.0").await;
    let newer = |s: &ImageStatus| s.rollout.as_ref().is_some_and(|r| r.tag == "1.4.0" && r.back_from.is_none());
    shop.status_is("img", "is on its way to 1.4.0", newer).await;
    freeze(shop, json!("true")).await;
    for tag in gone {
        stage.registry.delete_tag(&stage.repository, tag).await.unwrap();
    }
    if gone.len() == 1 {
        stage.is_stamped("Deployment", "web", "1.2.0").await;
        stage.runs("web", "1.2.0").await;
    } else {
        let stays = "Deployment/web cannot be rolled: it runs a rejected tag, and there is nothing to go back to";
        shop.status_is("img", "says that it stays", |s| condition(s, "Ready").contains(stays)).await;
        assert_eq!(said(shop, "Deployment", "web", &["RolloutFailed: ", "1.2.5, 1.2.0 no longer"]).await, 1);
        stage.is_stamped("Deployment", "web", BROKEN).await;
    }
    assert!(newer(&shop.sync("img").await));
    freeze(shop, Value::Null).await;
    stage.runs("web", "1.4.0").await;
    let status = shop.settles("img", "1.4.0").await;
    assert_eq!(status.rejected.len(), 1);
    shop.status_is("img", "is well", |s| condition(s, "Ready").starts_with("True")).await;
}
