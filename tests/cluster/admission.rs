//! Scenario b: who is changed at creation, and who is left alone.

use kube::ResourceExt;
use serde_json::json;

use crate::own::admits;
use crate::support::{Bed, ENABLED, image_of, opted_in, pod};

#[tokio::test]
async fn an_old_deployment_starts_on_the_newest_allowed_tag() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("b-web", &["1.0.0", "1.9.0", "1.10.0", "2.0.0-rc.1"]).await.unwrap();
    let shop = bed.shop("b-deployment", &[]).await;
    let image = registry.image("b-web");
    shop.create_image("web", &json!({"spec": {"image": image}})).await;
    let text = format!("{image}:1.0.0");
    admits(&shop, &text, &format!("{image}:1.10.0")).await;
    shop.create_deployment("web", &text, &opted_in()).await;
    let pods = shop.pods_run("web", 2, &format!("{image}:1.10.0")).await;
    for pod in &pods {
        assert_eq!(pod.annotations()["kimup.cloudavenue.io/applied"], "app: 1.0.0 -> 1.10.0 (Image web)");
    }
    let status = shop.settles("web", "1.10.0").await;
    assert_eq!(status.result.map(kimup::api::SyncResult::as_str), Some("Success"));
    let deployment = shop.api::<k8s_openapi::api::apps::v1::Deployment>().get("web").await.unwrap();
    let containers = deployment.spec.template.spec.unwrap().containers;
    assert_eq!(containers[0].image.as_deref(), Some(&*text), "the manifest keeps its text");
    assert_eq!(shop.revisions("web").await, 1, "Pods that start right are not rolled");
}

#[tokio::test]
async fn who_is_not_opted_in_is_left_alone() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("b-alone", &["1.0.0", "1.1.0"]).await.unwrap();
    let image = registry.image("b-alone");
    let shop = bed.shop("b-alone", &[]).await;
    shop.create_image("web", &json!({"spec": {"image": image}})).await;
    shop.settles("web", "1.1.0").await;
    let text = format!("{image}:1.0.0");
    let created = shop.create_pod(&pod("plain", &text)).await.unwrap();
    assert_eq!(image_of(&created, "app"), text);
    let opted = crate::support::with_annotations(pod("opted", &text), &[(ENABLED, "true")]);
    let created = shop.create_pod(&opted).await.unwrap();
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"));
}
