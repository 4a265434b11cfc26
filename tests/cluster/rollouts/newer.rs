//! A newer tag is pushed.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use kimup::api::SyncResult;
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;

use super::{count, create, nothing_happens, object, revisions, writes};
use crate::own::admits;
use crate::support::{Bed, DEADLINE, Shop, image_of};

#[tokio::test]
async fn a_newer_tag_rolls_each_kind_once() {
    let bed = Bed::shared().await;
    let kinds = ["Deployment", "StatefulSet", "DaemonSet"];
    futures::future::join_all(kinds.map(|kind| a_newer_tag_rolls(bed, kind))).await;
}

async fn a_newer_tag_rolls(bed: &Bed, kind: &str) {
    let lower = kind.to_lowercase();
    let repository = format!("c-newer-{lower}");
    let registry = &bed.registries.open;
    registry.push_all(&repository, &["1.0.0", "1.1.0"]).await.unwrap();
    let image = registry.image(&repository);
    let shop = bed.shop(&repository, &[]).await;
    shop.create_image("img", &json!({"spec": {"image": image}})).await;
    shop.settles("img", "1.1.0").await;
    let text = format!("{image}:1.0.0");
    create(&shop, kind, "web", &json!([{"name": "app", "image": text}])).await;
    let first = shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    shop.settles("img", "1.1.0").await;
    assert_eq!(writes(bed, &shop, "web"), 0, "Pods that start right are not rolled");

    registry.push(&repository, "1.2.0").await.unwrap();
    shop.sync("img").await;
    let second = shop.pods_run("web", 2, &format!("{image}:1.2.0")).await;
    let status = shop.settles("img", "1.2.0").await;
    let uids = |pods: &[Pod]| pods.iter().filter_map(ResourceExt::uid).collect::<BTreeSet<_>>();
    assert!(uids(&first).is_disjoint(&uids(&second)), "every Pod is replaced");
    check_status(&status);
    check_pods(&shop, kind, &second, &text).await;
    // The Events of a turn follow its status; when the next turn is over, they are there.
    shop.sync("img").await;
    check_events(&shop, kind, &image).await;
    check_kubectl(bed, &shop, &lower).await;

    nothing_happens(&shop, kind, "web", "img", 10).await;
    assert_eq!((revisions(&shop, kind, "web").await, writes(bed, &shop, "web")), (2, 1), "{kind}: one rollout");
    check_events(&shop, kind, &image).await;
}

fn check_status(status: &kimup::api::ImageStatus) {
    assert_eq!(status.result, Some(SyncResult::Success));
    assert_eq!(status.workloads.as_deref(), Some("1/1"));
    let conditions: Vec<_> = status.conditions.iter().map(|c| (c.type_.as_str(), c.status.as_str())).collect();
    assert_eq!(conditions, [("Ready", "True")]);
    let history: Vec<_> =
        status.history.iter().map(|h| (h.from.as_deref(), h.tag.as_str(), h.rule.as_str(), h.workloads)).collect();
    assert_eq!(history[0], (Some("1.1.0"), "1.2.0", "minor", 1));
}

/// The template keeps its text and carries a stamp; its Pods say what was done and are found by the rollout's label.
async fn check_pods(shop: &Shop, kind: &str, pods: &[Pod], text: &str) {
    let template = &object(shop, kind, "web").await["spec"]["template"];
    assert_eq!(template["spec"]["containers"][0]["image"], *text);
    let run = text.replace(":1.0.0", ":1.2.0");
    assert_eq!(template["metadata"]["annotations"]["stamp.kimup.cloudavenue.io/app"], format!("{text} {run}"));
    let id = template["metadata"]["labels"]["kimup.cloudavenue.io/rollout"].as_str().unwrap();
    let found = ListParams::default().labels(&format!("kimup.cloudavenue.io/rollout={id}"));
    assert_eq!(shop.api::<Pod>().list(&found).await.unwrap().items.len(), 2);
    for pod in pods {
        let applied = format!("app: 1.0.0 -> 1.2.0 (Image img, rollout {id})");
        assert_eq!(pod.annotations()["kimup.cloudavenue.io/applied"], applied);
    }
}

async fn check_events(shop: &Shop, kind: &str, image: &str) {
    let on_image = shop.events("Image", "img").await;
    let all = |wanted: &[&str]| count(&on_image, wanted);
    assert_eq!(all(&["TagSelected", "no tag -> 1.1.0"]), 1, "{on_image:?}");
    assert_eq!(all(&["TagSelected", image, "1.1.0 -> 1.2.0", "rule minor"]), 1, "{on_image:?}");
    assert_eq!(all(&["RolloutStarted", &format!("{kind}/web"), "1.1.0 -> 1.2.0"]), 1, "{on_image:?}");
    assert_eq!(all(&["RolloutStarted"]), 1, "{on_image:?}");
    assert_eq!(all(&["RolloutSettled", "1.1.0 -> 1.2.0"]), 1, "{on_image:?}");
    let on_workload = shop.events(kind, "web").await;
    assert_eq!(count(&on_workload, &["RolloutStarted", "app 1.1.0 -> 1.2.0 (Image img, rule minor)"]), 1);
    assert_eq!(count(&on_workload, &["RolloutSettled", "1.2.0"]), 1, "{on_workload:?}");
    assert_eq!(on_workload.len(), 2, "{on_workload:?}");
}

async fn check_kubectl(bed: &Bed, shop: &Shop, kind: &str) {
    let (namespace, name) = (shop.namespace.as_str(), format!("{kind}/web"));
    bed.cluster.kubectl_ok(&["-n", namespace, "rollout", "status", &name, "--timeout=30s"]).await.unwrap();
    let history = bed.cluster.kubectl_ok(&["-n", namespace, "rollout", "history", &name]).await.unwrap();
    assert!(history.contains("kimup: app 1.1.0 -> 1.2.0 (Image img, rule minor)"), "{history}");
}

#[tokio::test]
async fn two_images_that_move_at_once_share_one_rollout() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    let shop = bed.shop("c-two", &[]).await;
    let images = ["app", "side"].map(|name| registry.image(&format!("c-two-{name}")));
    for name in ["app", "side"] {
        registry.push_all(&format!("c-two-{name}"), &["1.0.0"]).await.unwrap();
        shop.create_image(name, &json!({"spec": {"image": registry.image(&format!("c-two-{name}"))}})).await;
    }
    let containers = json!([
        {"name": "app", "image": format!("{}:1.0.0", images[0])},
        {"name": "side", "image": format!("{}:1.0.0", images[1])},
    ]);
    create(&shop, "Deployment", "web", &containers).await;
    shop.pods_run("web", 2, &format!("{}:1.0.0", images[0])).await;
    for round in 1..=5 {
        let tag = format!("1.{round}.0");
        tokio::try_join!(registry.push("c-two-app", &tag), registry.push("c-two-side", &tag)).unwrap();
        // Both are asked to look, or, as when one's interval passes first, only one of them.
        match round % 3 {
            0 => _ = shop.sync("side").await,
            1 => _ = tokio::join!(shop.sync("app"), shop.sync("side")),
            _ => _ = shop.sync("app").await,
        }
        both_run(&shop, &images, &tag).await;
        tokio::join!(shop.settles("app", &tag), shop.settles("side", &tag));
        assert_eq!(shop.revisions("web").await, round + 1, "one rollout for both");
        assert_eq!(writes(bed, &shop, "web"), round);
    }
    nothing_happens(&shop, "Deployment", "web", "app", 2).await;
    let cause = &object(&shop, "Deployment", "web").await["metadata"]["annotations"]["kubernetes.io/change-cause"];
    assert_eq!(
        *cause,
        "kimup: app 1.4.0 -> 1.5.0 (Image app, rule minor), side 1.4.0 -> 1.5.0 (Image side, rule minor)"
    );
}

async fn both_run(shop: &Shop, images: &[String; 2], tag: &str) {
    eventually(DEADLINE, &format!("both containers run {tag}"), async || {
        let pods = shop.pods().await;
        let running: Vec<_> = pods.iter().map(|p| [image_of(p, "app"), image_of(p, "side")]).collect();
        let wanted = [0, 1].map(|i| format!("{}:{tag}", images[i]));
        if running.len() == 2 && running.iter().all(|r| *r == wanted) { Ok(()) } else { Err(format!("{running:?}")) }
    })
    .await;
}

#[tokio::test]
async fn who_runs_the_wanted_image_already_is_not_rolled() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("c-same", &["1.0.0", "1.1.0"]).await.unwrap();
    let image = registry.image("c-same");
    let shop = bed.shop("c-same", &[]).await;
    let text = format!("{image}:1.1.0");
    // One runs it since before there is an Image and is opted in by its own metadata, one is admitted by kimup.
    let own = json!({"metadata": {"annotations": {crate::support::ENABLED: "true"}}});
    shop.create_deployment("own", &text, &own).await;
    shop.create_deployment("latecomer", &text, &json!({})).await;
    shop.pods_run("own", 2, &text).await;
    shop.pods_run("latecomer", 2, &text).await;
    shop.create_image("img", &json!({"spec": {"image": image}})).await;
    admits(&shop, &format!("{image}:1.0.0"), &text).await;
    create(&shop, "Deployment", "web", &json!([{"name": "app", "image": format!("{image}:1.0.0")}])).await;
    shop.pods_run("web", 2, &text).await;
    shop.settles("img", "1.1.0").await;
    let namespace = shop.namespace.as_str();
    let annotation = format!("{}=true", crate::support::ENABLED);
    bed.cluster.kubectl_ok(&["-n", namespace, "annotate", "deployment/latecomer", &annotation]).await.unwrap();
    let what = "all three are counted";
    shop.status_is("img", what, |s| s.workloads.as_deref() == Some("3/3") && s.rollout.is_none()).await;
    for name in ["own", "latecomer", "web"] {
        nothing_happens(&shop, "Deployment", name, "img", 2).await;
        assert_eq!((shop.revisions(name).await, writes(bed, &shop, name)), (1, 0), "{name}");
        assert!(shop.events("Deployment", name).await.is_empty());
    }
}
