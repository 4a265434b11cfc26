//! A workload that comes late and fails with a tag that others of its group run well: it alone goes back.
//!
//! Its Pods become ready only when the scenario says so, whatever they run.

use k8s_openapi::api::core::v1::Pod;
use kimup::api::{HeldBy, ImageStatus};
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::own::READY_AFTER;
use crate::rollback::{Stage, condition, count, get, patch, stamp};
use crate::support::{DEADLINE, ENABLED, Shop, image_of, is_ready};
use crate::way_back::freeze;

const LATE: &str = "Deployment/late";

/// Has the Pods of `late` that run a tag become ready, until it has no others.
async fn is_well(stage: &Stage, tag: &str) {
    let (pods, wanted) = (stage.shop.api::<Pod>(), format!("{}:{tag}", stage.image));
    eventually(DEADLINE, &format!("late runs {tag}"), async || {
        let all = pods.list(&ListParams::default().labels("app=late")).await.unwrap().items;
        let runs = |pod: &&Pod| image_of(pod, "app") == wanted;
        for pod in all.iter().filter(runs).filter(|pod| !is_ready(pod)) {
            let ready = json!([{"type": "Ready", "status": "True"}, {"type": "ContainersReady", "status": "True"}]);
            let patch = Patch::Strategic(json!({"status": {"phase": "Running", "conditions": ready}}));
            _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await;
        }
        let well = all.len() == 1 && all.iter().all(|pod| runs(&pod) && is_ready(pod));
        if well { Ok(()) } else { Err(format!("{:?}", all.iter().map(|pod| image_of(pod, "app")).collect::<Vec<_>>())) }
    })
    .await;
}

/// A stage on which `late`, whose Pods are ready only when they are told, runs as well as `web` does.
async fn with_late(name: &str, deadline: &str) -> Stage {
    let stage = Stage::new(name, &json!({"rollout": {"deadline": deadline, "minInterval": "0s"}})).await;
    stage.workload("Deployment", "web", &json!({})).await;
    let annotations = json!({ENABLED: "true", READY_AFTER: "1h"});
    let one = json!({"spec": {"replicas": 1, "template": {"metadata": {"annotations": annotations}}}});
    stage.shop.create_deployment("late", &format!("{}:1.0.0", stage.image), &one).await;
    is_well(&stage, "1.2.0").await;
    stage
}

async fn pause(shop: &Shop, paused: bool) {
    patch(shop, "Deployment", "late", &json!({"spec": {"paused": paused}})).await;
}

/// `late` is paused while the others take a tag, and tries it then.
async fn comes_late_to(stage: &Stage, tag: &str) {
    pause(&stage.shop, true).await;
    stage.push(tag).await;
    stage.runs("web", tag).await;
    stage.shop.settles("img", tag).await;
    pause(&stage.shop, false).await;
    stage.is_stamped("Deployment", "late", tag).await;
}

/// It went back alone: held, nothing is rejected, and nobody is held up.
async fn is_alone_at(stage: &Stage, at: &str, left: &str) {
    let held = |s: &ImageStatus| {
        let [held] = &s.held[..] else { return false };
        let by = (held.by, held.workload.as_str(), held.tag.as_str(), held.left.as_str(), held.released.is_none());
        by == (HeldBy::RolloutFailed, LATE, at, left, true)
    };
    let status = stage.shop.status_is("img", "holds it", held).await;
    assert!(status.held[0].why.contains("its rollout failed with") && status.held[0].why.contains("action=resume"));
    stage.is_stamped("Deployment", "late", at).await;
    is_well(stage, at).await;
    let rests = |s: &ImageStatus| s.workloads.as_deref() == Some("1/2, 1 held") && condition(s, "Stalled") == "-";
    stage.shop.status_is("img", "is at rest", rests).await;
    let generation = get(&stage.shop, "Deployment", "late").await["metadata"]["generation"].clone();
    for _ in 0..3 {
        let status = stage.shop.sync("img").await;
        assert!(status.rejected.is_empty() && status.rollout.is_none() && held(&status), "{status:?}");
        assert_eq!(status.tag.as_deref(), Some(left));
    }
    assert_eq!(get(&stage.shop, "Deployment", "late").await["metadata"]["generation"], generation);
    stage.runs("web", left).await;
}

#[tokio::test]
async fn it_goes_back_alone_and_is_held_there() {
    let stage = with_late("late", "10s").await;
    let shop = &stage.shop;

    comes_late_to(&stage, "1.4.0").await;
    is_alone_at(&stage, "1.2.0", "1.4.0").await;
    for (kind, name) in [("Image", "img"), ("Deployment", "late")] {
        let events = shop.events(kind, name).await;
        assert_eq!(
            count(&events, &["RolledBack: ", "1.4.0 -> 1.2.0", "others of its group run well"]),
            1,
            "{events:?}"
        );
        assert_eq!(count(&events, &["Held: ", "1.2.0", "its rollout failed with 1.4.0"]), 1, "{events:?}");
        assert_eq!(count(&events, &["TagRejected: "]), 0, "{events:?}");
    }
    assert_eq!(shop.audited("img", "hold").await.last().map(String::as_str), Some("kimup"));
    let cause = get(shop, "Deployment", "late").await["metadata"]["annotations"]["kubernetes.io/change-cause"].clone();
    assert_eq!(cause, "kimup: app 1.4.0 -> 1.2.0 (Image img, rollback: its rollout failed)");

    // A newer tag ends it.
    stage.push("1.5.0").await;
    stage.is_stamped("Deployment", "late", "1.5.0").await;
    is_well(&stage, "1.5.0").await;
    stage.runs("web", "1.5.0").await;
    assert_eq!(shop.settles("img", "1.5.0").await.held, []);

    // What ran before is gone from the registry: the record before that counts. And a person ends it.
    comes_late_to(&stage, "1.6.0").await;
    stage.registry.delete_tag(&stage.repository, "1.5.0").await.unwrap();
    is_alone_at(&stage, "1.2.0", "1.6.0").await;
    let resume: Value = json!({"metadata": {"annotations": {"kimup.cloudavenue.io/action": "resume"}}});
    patch(shop, "Deployment", "late", &resume).await;
    stage.is_stamped("Deployment", "late", "1.6.0").await;
    is_well(&stage, "1.6.0").await;
    let ends = |s: &ImageStatus| s.held.is_empty() && s.workloads.as_deref() == Some("2/2");
    shop.status_is("img", "is whole again", ends).await;
    assert!(stamp(&get(shop, "Deployment", "web").await).ends_with(":1.6.0"));
}

/// A newer tag is on its way and may not go yet: it goes back at once, and takes that one in its turn.
#[tokio::test]
async fn it_goes_back_although_a_newer_tag_waits() {
    let stage = with_late("late-newer", "20s").await;
    let shop = &stage.shop;

    comes_late_to(&stage, "1.4.0").await;
    // Before it has failed: the other one stays, and then somebody stops everything.
    patch(shop, "Deployment", "web", &json!({"spec": {"paused": true}})).await;
    stage.push("1.5.0").await;
    let newer = |s: &ImageStatus| s.rollout.as_ref().is_some_and(|r| r.tag == "1.5.0");
    shop.status_is("img", "is on its way to 1.5.0", newer).await;
    freeze(shop, json!("true")).await;
    let held = |s: &ImageStatus| newer(s) && s.held.iter().any(|h| h.tag == "1.2.0" && h.left == "1.4.0");
    shop.status_is("img", "holds it", held).await;
    stage.is_stamped("Deployment", "late", "1.2.0").await;
    is_well(&stage, "1.2.0").await;
    let generation = get(shop, "Deployment", "late").await["metadata"]["generation"].clone();
    for _ in 0..3 {
        let status = shop.sync("img").await;
        assert!(held(&status) && status.rejected.is_empty(), "{status:?}");
    }
    assert_eq!(get(shop, "Deployment", "late").await["metadata"]["generation"], generation);
    stage.runs("web", "1.4.0").await;
    let events = shop.events("Deployment", "late").await;
    assert_eq!(count(&events, &["RolledBack: ", "1.4.0 -> 1.2.0", "others of its group run well"]), 1, "{events:?}");
    assert_eq!(count(&events, &["Held: ", "1.2.0", "its rollout failed with 1.4.0"]), 1, "{events:?}");

    patch(shop, "Deployment", "web", &json!({"spec": {"paused": false}})).await;
    freeze(shop, Value::Null).await;
    stage.is_stamped("Deployment", "late", "1.5.0").await;
    is_well(&stage, "1.5.0").await;
    stage.runs("web", "1.5.0").await;
    assert_eq!(shop.settles("img", "1.5.0").await.held, []);
}
