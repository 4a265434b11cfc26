//! The brake: `freeze` on a Namespace. And annotations that have no effect yet say so.

use k8s_openapi::api::core::v1::Namespace;
use kimup_testbed::eventually;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{Bed, DEADLINE, Shop, opted_in, pod, with_annotations};

const FREEZE: &str = "kimup.cloudavenue.io/freeze";

async fn release(shop: &Shop) {
    let api: Api<Namespace> = Api::all(shop.client.clone());
    let patch = json!({"metadata": {"labels": {FREEZE: null}}});
    api.patch(&shop.namespace, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

#[tokio::test]
async fn nothing_starts_while_frozen_and_admission_goes_on() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push("z-freeze", "1.0.0").await.unwrap();
    let image = registry.image("z-freeze");
    let shop = bed.shop("z-freeze", &[(FREEZE, "true")]).await;
    shop.create_image("web", &json!({"spec": {"image": image}})).await;
    shop.settles("web", "1.0.0").await;
    let text = format!("{image}:1.0.0");
    shop.create_deployment("web", &text, &opted_in()).await;
    shop.pods_run("web", 2, &text).await;

    registry.push("z-freeze", "1.1.0").await.unwrap();
    for _ in 0..3 {
        let status = shop.sync("web").await;
        let pending = status.pending.expect("the newer tag is known");
        assert_eq!(
            (pending.tag.as_str(), pending.reason),
            ("1.1.0", format!("Namespace {} is frozen", shop.namespace))
        );
        assert_eq!((status.tag.as_deref(), status.rollout), (Some("1.0.0"), None));
    }
    assert_eq!(shop.revisions("web").await, 1, "and not rolled");
    let old = with_annotations(pod("old", &format!("{image}:0.9.0")), &[("kimup.cloudavenue.io/enabled", "true")]);
    let created = shop.create_pod(&old).await.unwrap();
    assert_eq!(crate::support::image_of(&created, "app"), text, "admission goes on, with the settled tag");

    release(&shop).await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    assert_eq!(shop.revisions("web").await, 2);
}

#[tokio::test]
async fn annotations_without_effect_are_said_once() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push("z-hold", "1.0.0").await.unwrap();
    let image = registry.image("z-hold");
    let shop = bed.shop("z-hold", &[]).await;
    shop.create_image("web", &json!({"spec": {"image": image}})).await;
    let mut patch: Value = opted_in();
    json_patch::merge(&mut patch, &json!({"metadata": {"annotations": {"kimup.cloudavenue.io/action": "refresh"}}}));
    shop.create_deployment("web", &format!("{image}:1.0.0"), &patch).await;
    let said = async || {
        let events = shop.events("Deployment", "web").await;
        let count = events
            .iter()
            .filter(|e| e.contains("kimup.cloudavenue.io/action: refresh has no effect on a workload"))
            .count();
        if count == 1 { Ok(()) } else { Err(format!("{events:?}")) }
    };
    eventually(DEADLINE, "one Event on the action", said).await;
    shop.pods_run("web", 2, &format!("{image}:1.0.0")).await;
    shop.sync("web").await;
    eventually(DEADLINE, "still one Event", said).await;
}
