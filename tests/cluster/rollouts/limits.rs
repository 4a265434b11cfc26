//! How many workloads of one Image roll at a time.

use k8s_openapi::api::apps::v1::Deployment;
use kimup_testbed::eventually;
use kube::api::ListParams;
use serde_json::{Value, json};

use crate::support::{Bed, DEADLINE, ENABLED, Shop};

#[tokio::test]
async fn workloads_of_an_image_roll_as_many_at_a_time_as_it_says() {
    let bed = Bed::shared().await;
    let (default, two) = (json!({}), json!({"rollout": {"maxConcurrent": 2}}));
    let (one, two) = tokio::join!(most_at_a_time(bed, "c-one", &default), most_at_a_time(bed, "c-both", &two));
    assert_eq!((one, two), (1, 2));
}

/// Rolls three Deployments and returns the most that were seen rolling at a time.
async fn most_at_a_time(bed: &Bed, name: &str, spec: &Value) -> usize {
    let registry = &bed.registries.open;
    registry.push_all(name, &["1.0.0"]).await.unwrap();
    let image = registry.image(name);
    let shop = bed.shop(name, &[]).await;
    let mut patch = json!({"spec": {"image": image}});
    json_patch::merge(&mut patch["spec"], spec);
    shop.create_image("img", &patch).await;
    let annotations = json!({ENABLED: "true", "testbed.kimup/ready-after": "3s"});
    let patch = json!({"spec": {"replicas": 1, "template": {"metadata": {"annotations": annotations}}}});
    for app in ["a", "b", "c"] {
        shop.create_deployment(app, &format!("{image}:1.0.0"), &patch).await;
    }
    shop.status_is("img", "all run", |s| s.workloads.as_deref() == Some("3/3") && s.rollout.is_none()).await;
    registry.push(name, "1.1.0").await.unwrap();
    shop.sync("img").await;
    let mut most = 0;
    eventually(DEADLINE, "all three have rolled", async || {
        let (stamped, moving) = rolling(&shop).await;
        most = most.max(moving);
        if stamped == 3 && moving == 0 { Ok(()) } else { Err(format!("{stamped} stamped, {moving} moving")) }
    })
    .await;
    shop.settles("img", "1.1.0").await;
    most
}

/// How many Deployments are stamped, and how many of those are not where `kubectl rollout status` would end.
async fn rolling(shop: &Shop) -> (usize, usize) {
    let all = shop.api::<Deployment>().list(&ListParams::default()).await.unwrap().items;
    let stamp = "stamp.kimup.cloudavenue.io/app";
    let template = |d: &Deployment| d.spec.template.metadata.clone().unwrap_or_default();
    let stamped: Vec<_> =
        all.iter().filter(|d| template(d).annotations.is_some_and(|a| a.contains_key(stamp))).collect();
    let moving = stamped.iter().filter(|d| {
        let status = d.status.clone().unwrap_or_default();
        let now = (status.observed_generation, status.updated_replicas, status.replicas, status.available_replicas);
        now != (d.metadata.generation, Some(1), Some(1), Some(1))
    });
    (stamped.len(), moving.count())
}
