//! A workload on a rejected tag goes back at once, although a newer tag is on its way to it: that one may have to wait.

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kimup::api::ImageStatus;
use kimup_testbed::eventually;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::rollback::{BROKEN, OURS, Stage, count, get};
use crate::support::{DEADLINE, ENABLED, Shop, image_of};

pub async fn freeze(shop: &Shop, value: Value) {
    let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(shop.client.clone());
    let patch = json!({"metadata": {"annotations": {"kimup.cloudavenue.io/freeze": value}}});
    namespaces.patch(&shop.namespace, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

/// Nobody rolls a ReplicaSet that somebody made: what it ran is on record, and later Pods would run the same.
#[tokio::test]
async fn no_new_pod_runs_what_was_rejected_since() {
    let stage = Stage::new("wb-record", &json!({})).await;
    let shop = &stage.shop;
    shop.settles("img", "1.2.0").await;
    stage.push("1.3.0").await;
    shop.settles("img", "1.3.0").await;
    let labels = json!({"app": "web"});
    let pod = json!({"metadata": {"labels": labels, "annotations": {ENABLED: "true"}}, "spec": {
        "containers": [{"name": "app", "image": format!("{}:1.0.0", stage.image)}], "terminationGracePeriodSeconds": 0}});
    let set = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": pod}});
    let sets = shop.api::<ReplicaSet>();
    sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
    shop.pods_run("web", 1, &format!("{}:1.3.0", stage.image)).await;
    let recorded = |s: &ImageStatus| s.revisions.iter().any(|r| r.owner == "ReplicaSet/web");
    shop.sync("img").await;
    shop.status_is("img", "has it on record", recorded).await;
    shop.annotate_image("img", "kimup.cloudavenue.io/reject", Some("1.3.0")).await;
    assert!(recorded(&shop.settles("img", "1.2.0").await));
    let pods = shop.api::<Pod>();
    pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
    let replaced = async || {
        let images: Vec<String> = shop.pods().await.iter().map(|pod| image_of(pod, "app")).collect();
        if images == [format!("{}:1.2.0", stage.image)] {
            return Ok(());
        }
        if !images.is_empty() {
            // The webhook may hear of it a moment later.
            pods.delete_collection(&DeleteParams::default(), &ListParams::default()).await.unwrap();
        }
        Err(format!("{images:?}"))
    };
    eventually(DEADLINE, "its next Pod runs 1.2.0", replaced).await;
}

#[tokio::test]
async fn it_does_not_wait_for_a_newer_tag_that_may_not_go() {
    tokio::join!(goes_back("Deployment", "wb-deployment"), goes_back("StatefulSet", "wb-stateful"));
}

async fn goes_back(kind: &str, namespace: &str) {
    let stage = Stage::new(namespace, &json!({"rollout": {"deadline": OURS, "minInterval": "1s"}})).await;
    let shop = &stage.shop;
    stage.workload(kind, "web", &json!({"serviceName": "web"})).await;
    stage.push(BROKEN).await;
    stage.is_stamped(kind, "web", BROKEN).await;
    // It comes while the other one fails, and then somebody stops everything.
    stage.push("1.4.0").await;
    let newer = |s: &ImageStatus| s.rollout.as_ref().is_some_and(|r| r.tag == "1.4.0" && r.back_from.is_none());
    shop.status_is("img", "is on its way to 1.4.0", newer).await;
    freeze(shop, json!("true")).await;

    stage.is_stamped(kind, "web", "1.2.0").await;
    stage.runs("web", "1.2.0").await;
    let rejects = |s: &ImageStatus| s.rejected.iter().any(|r| r.tag == BROKEN) && newer(s);
    let status = shop.status_is("img", "rejects the one and waits with the other", rejects).await;
    assert_eq!(status.tag.as_deref(), Some("1.2.0"));
    let generation = get(shop, kind, "web").await["metadata"]["generation"].clone();
    for _ in 0..3 {
        assert!(newer(&shop.sync("img").await));
    }
    assert_eq!(get(shop, kind, "web").await["metadata"]["generation"], generation);
    let cause = get(shop, kind, "web").await["metadata"]["annotations"]["kubernetes.io/change-cause"].clone();
    let expected = format!("kimup: app {BROKEN} -> 1.2.0 (Image img, rollback: {kind}/web: ImagePullBackOff");
    assert!(cause.as_str().is_some_and(|cause| cause.starts_with(&expected)), "{cause}");
    for (kind, name) in [(kind, "web"), ("Image", "img")] {
        let events = shop.events(kind, name).await;
        assert_eq!(count(&events, &["RolledBack: ", BROKEN, "-> 1.2.0"]), 1, "{events:?}");
    }

    freeze(shop, Value::Null).await;
    stage.runs("web", "1.4.0").await;
    let status = shop.settles("img", "1.4.0").await;
    assert_eq!(status.rejected.len(), 1);
}
