//! Pods that came to be while kimup was away are named in an Event and replaced, once.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use kimup_testbed::{KimupProcess, eventually};
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::own::{Own, admits};
use crate::support::{DEADLINE, ENABLED, FAILURE_POLICY, Shop, image_of};

async fn scale(shop: &Shop, app: &str, replicas: usize) {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    shop.api::<Deployment>().patch(app, &PatchParams::default(), &patch).await.unwrap();
}

/// Names of the Pods that run this image.
async fn who_runs(shop: &Shop, reference: &str) -> Vec<String> {
    let pods = shop.pods().await.into_iter().filter(|pod| image_of(pod, "app") == reference);
    pods.filter_map(|pod| pod.metadata.name).collect()
}

#[tokio::test]
async fn pods_that_came_to_be_without_kimup_are_replaced_once() {
    let own = Own::start().await;
    let mut kimup = KimupProcess::start(own.options("repair").await).await.unwrap();
    own.registry.push("app", "1.0.0").await.unwrap();
    let image = own.registry.image("app");
    let (text, wanted) = (format!("{image}:0.9.0"), format!("{image}:1.1.0"));
    let shop = Shop::new(&own.cluster, "ignoring", &[(ENABLED, "true"), (FAILURE_POLICY, "ignore")], &[]).await;
    shop.create_image("app", &json!({"spec": {"image": image}})).await;
    shop.settles("app", "1.0.0").await;
    admits(&shop, &text, &format!("{image}:1.0.0")).await;
    shop.create_deployment("stamped", &text, &json!({})).await;
    shop.pods_run("stamped", 2, &format!("{image}:1.0.0")).await;
    own.registry.push("app", "1.1.0").await.unwrap();
    shop.sync("app").await;
    shop.settles("app", "1.1.0").await;
    shop.pods_run("stamped", 2, &wanted).await;
    shop.create_deployment("fresh", &text, &json!({})).await;
    shop.pods_run("fresh", 2, &wanted).await;
    shop.sync("app").await;
    assert_eq!((shop.revisions("stamped").await, shop.revisions("fresh").await), (2, 1));

    kimup.kill();
    for app in ["stamped", "fresh"] {
        scale(&shop, app, 3).await;
    }
    let wrong = eventually(DEADLINE, "two Pods run their own tag", async || {
        let wrong = who_runs(&shop, &text).await;
        if wrong.len() == 2 { Ok(wrong) } else { Err(format!("{wrong:?}")) }
    })
    .await;
    own.expire_lease("kimup-url").await;
    let kimup = kimup.start_again().await.unwrap();
    for app in ["stamped", "fresh"] {
        shop.pods_run(app, 3, &wanted).await;
        let name = wrong.iter().find(|name| name.starts_with(app)).unwrap();
        let events = shop.events("Deployment", app).await;
        let told = events.iter().filter(|e| e.starts_with("PodsUnmutated") && e.contains(name.as_str()));
        assert_eq!(told.count(), 1, "{events:?}");
    }
    let on_image = shop.events("Image", "app").await;
    assert_eq!(on_image.iter().filter(|e| e.starts_with("PodsUnmutated")).count(), 2, "{on_image:?}");

    // One rollout each, and then no more.
    for _ in 0..3 {
        shop.sync("app").await;
    }
    assert_eq!((shop.revisions("stamped").await, shop.revisions("fresh").await), (3, 2));
    let sets = shop.api::<ReplicaSet>().list(&ListParams::default().labels("app=stamped")).await.unwrap();
    let at_work = sets.items.iter().filter(|s| s.spec.replicas != Some(0));
    assert_eq!(at_work.count(), 1);
    drop(kimup);
}
