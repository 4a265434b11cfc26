//! The first digest of a tag that moves, where it is a bad one: nothing newer or older is there to run.

use k8s_openapi::api::core::v1::Pod;
use kimup::api::ImageStatus;
use kimup_testbed::eventually;
use serde_json::json;

use crate::digest_rejected::{Kubelet, follows};
use crate::holds::annotate;
use crate::own::READY_AFTER;
use crate::support::{Bed, DEADLINE, ENABLED, Shop, image_of, is_ready};

async fn pods_run(shop: &Shop, image: &str) {
    eventually(DEADLINE, &format!("web runs {image}"), async || {
        let pods: Vec<Pod> = shop.pods().await;
        let images: Vec<String> = pods.iter().map(|pod| image_of(pod, "app")).collect();
        let right = images.len() == 1 && images[0] == image && pods.iter().all(is_ready);
        if right { Ok(()) } else { Err(format!("{images:?}")) }
    })
    .await;
}

/// A Deployment runs `latest` as its nodes have it, from before kimup knew of it; what the tag stands for by now does not run.
/// `follows_first`: it is opted in before its Image is made, and so there when the first digest is chosen.
async fn is_rejected(repository: &str, follows_first: bool) {
    let bed = Bed::shared().await;
    let bad = bed.registries.open.push(repository, "latest").await.unwrap();
    let (image, shop) = (bed.registries.open.image(repository), bed.shop(repository, &[]).await);
    let text = format!("{image}:latest");
    let kubelet = Kubelet::default();
    kubelet.bad.lock().unwrap().insert(bad.clone());
    tokio::spawn(kubelet.runs(shop.api()));
    let late = json!({"spec": {"replicas": 1, "template": {"metadata": {"annotations": {READY_AFTER: "1h"}}}}});
    shop.create_deployment("web", &text, &late).await;
    pods_run(&shop, &text).await;
    let opt_in = async || annotate(&shop, "Deployment", "web", &json!({ENABLED: "true"})).await;
    if follows_first {
        opt_in().await;
    }
    let mut spec = json!({"spec": {"image": image, "rollout": {"deadline": "10s", "minInterval": "0s"}}});
    json_patch::merge(&mut spec["spec"], &follows());
    shop.create_image("img", &spec).await;
    if !follows_first {
        let has_it = |s: &ImageStatus| s.digest.as_ref() == Some(&bad) && s.rollout.is_none();
        shop.status_is("img", "has its first digest", has_it).await;
        opt_in().await;
    }

    let name = format!("latest@{bad}");
    let rejected = shop.status_is("img", "rejects it", |s| s.rejected.iter().any(|r| r.tag == name)).await;
    assert_eq!(rejected.rejected[0].workload, "Deployment/web");
    // The tag itself was never tried: it stays, as it is.
    pods_run(&shop, &text).await;
    let at_rest = |s: &ImageStatus| s.tag.as_deref() == Some("latest") && s.digest.is_none() && s.rollout.is_none();
    shop.status_is("img", "is at the tag alone", at_rest).await;
    let revisions = shop.revisions("web").await;
    for _ in 0..3 {
        let status = shop.sync("img").await;
        assert!(at_rest(&status) && status.rejected.len() == 1, "{status:?}");
    }
    pods_run(&shop, &text).await;
    assert_eq!(shop.revisions("web").await, revisions, "it is not tried again");

    let good = bed.registries.open.push(repository, "latest").await.unwrap();
    shop.sync("img").await;
    pods_run(&shop, &format!("{text}@{good}")).await;
    let follows = |s: &ImageStatus| s.digest.as_ref() == Some(&good) && s.rollout.is_none();
    let status = shop.status_is("img", "follows the next one", follows).await;
    assert_eq!(status.rejected.len(), 1, "{:?}", status.rejected);
}

#[tokio::test]
async fn a_bad_first_digest_is_rejected_and_the_tag_stays() {
    tokio::join!(is_rejected("dig-first", true), is_rejected("dig-first-late", false));
}
