//! What takes a place under the limits: a rollout, until it ends or its deadline has passed. A change of replicas is none.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use kimup::api::{Image, ImageStatus};
use kimup::rollout::Workload;
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::own::READY_AFTER;
use crate::support::{Bed, DEADLINE, ENABLED, Shop, image_of, is_ready};

const CANARY: &str = "kimup.cloudavenue.io/canary";

/// Deployments whose Pods become ready when the test says so.
struct Stage {
    bed: &'static Bed,
    shop: Shop,
    repository: String,
    image: String,
}

impl Stage {
    async fn new(repository: &str, rollout: &Value) -> Self {
        let bed = Bed::shared().await;
        bed.registries.open.push(repository, "1.0.0").await.unwrap();
        let (image, shop) = (bed.registries.open.image(repository), bed.shop(repository, &[]).await);
        shop.create_image("img", &json!({"spec": {"image": image, "rollout": rollout}})).await;
        shop.settles("img", "1.0.0").await;
        Self { bed, shop, repository: repository.to_owned(), image }
    }

    async fn deploy(&self, name: &str, replicas: i32, canary: bool) {
        let annotations = json!({ENABLED: "true", READY_AFTER: "1h"});
        let mut patch = json!({"spec": {"replicas": replicas, "template": {"metadata": {"annotations": annotations}}}});
        if canary {
            patch["metadata"] = json!({"annotations": {CANARY: "true"}});
        }
        self.shop.create_deployment(name, &format!("{}:1.0.0", self.image), &patch).await;
    }

    /// Makes an app's Pods ready until there are so many, all with this tag.
    async fn runs(&self, app: &str, count: usize, tag: &str) {
        let wanted = format!("{}:{tag}", self.image);
        eventually(DEADLINE, &format!("{count} Pods of {app} run {tag}"), async || {
            let pods: Vec<Pod> = self
                .shop
                .pods()
                .await
                .into_iter()
                .filter(|p| p.labels().get("app").is_some_and(|a| a == app))
                .collect();
            for pod in pods.iter().filter(|pod| !is_ready(pod)) {
                make_ready(&self.shop, &pod.name_any()).await;
            }
            let images: Vec<String> = pods.iter().map(|pod| image_of(pod, "app")).collect();
            let right = images.len() == count && images.iter().all(|image| *image == wanted);
            if right { Ok(()) } else { Err(format!("{images:?}")) }
        })
        .await;
    }

    async fn push(&self, tag: &str) {
        self.bed.registries.open.push(&self.repository, tag).await.unwrap();
        self.shop.sync("img").await;
    }

    async fn stamped(&self, name: &str) -> Option<Workload> {
        let deployment = self.shop.api::<Deployment>().get(name).await.unwrap();
        Workload::from_deployment(&deployment).filter(|workload| workload.stamp("app").is_some())
    }

    async fn is_stamped(&self, name: &str, tag: &str) -> Workload {
        let wanted = format!("{}:{tag}", self.image);
        eventually(DEADLINE, &format!("{name} is stamped for {tag}"), async || {
            let found = self.stamped(name).await;
            let stamp = found.as_ref().and_then(|workload| workload.stamp("app")).map(|stamp| stamp.reference);
            found.filter(|_| stamp.as_ref() == Some(&wanted)).ok_or(format!("{stamp:?}"))
        })
        .await
    }

    async fn merge(&self, name: &str, patch: &Value) {
        let api = self.shop.api::<Deployment>();
        api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    async fn pause(&self, name: &str, paused: bool) {
        self.merge(name, &json!({"spec": {"paused": paused}})).await;
    }

    async fn deadline(&self, deadline: &str) {
        let patch = Patch::Merge(json!({"spec": {"rollout": {"deadline": deadline}}}));
        self.shop.api::<Image>().patch("img", &PatchParams::default(), &patch).await.unwrap();
    }

    /// As a `HorizontalPodAutoscaler` does; waits until the Pods are there.
    async fn scale(&self, name: &str, replicas: i32) {
        let params = PatchParams { field_manager: Some("horizontal-pod-autoscaler".to_owned()), ..Default::default() };
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.shop.api::<Deployment>().patch_scale(name, &params, &patch).await.unwrap();
        eventually(DEADLINE, "its Pods are made", async || {
            let status = self.shop.api::<Deployment>().get(name).await.unwrap().status.unwrap_or_default();
            let made = status.replicas.unwrap_or_default();
            if made >= replicas { Ok(()) } else { Err(made) }
        })
        .await;
    }
}

async fn make_ready(shop: &Shop, pod: &str) {
    let conditions: Vec<Value> =
        ["Ready", "ContainersReady"].iter().map(|kind| json!({"type": kind, "status": "True"})).collect();
    let patch = Patch::Strategic(json!({"status": {"phase": "Running", "conditions": conditions}}));
    // It may be gone by now.
    let _ = shop.api::<Pod>().patch_status(pod, &PatchParams::default(), &patch).await;
}

/// Syncs for longer than a deadline of a second.
async fn for_a_while(shop: &Shop, check: impl Fn(&ImageStatus)) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(3) {
        check(&shop.sync("img").await);
    }
}

#[tokio::test]
async fn pods_that_an_autoscaler_adds_are_no_rollout() {
    let stage = Stage::new("place-hpa", &json!({})).await;
    let shop = &stage.shop;
    stage.deploy("web", 2, true).await;
    stage.deploy("api", 1, false).await;
    stage.runs("web", 2, "1.0.0").await;
    stage.runs("api", 1, "1.0.0").await;
    let autoscaler = json!({"metadata": {"name": "web"}, "spec": {
        "minReplicas": 2, "maxReplicas": 10, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"},
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}],
    }});
    let autoscalers = shop.api::<HorizontalPodAutoscaler>();
    autoscalers.create(&PostParams::default(), &serde_json::from_value(autoscaler).unwrap()).await.unwrap();

    // In the middle of its rollout.
    stage.push("1.1.0").await;
    stage.is_stamped("web", "1.1.0").await;
    stage.scale("web", 3).await;
    stage.runs("web", 3, "1.1.0").await;
    stage.is_stamped("api", "1.1.0").await;
    // After its own, while that of its group goes on: these are not ready for longer than the deadline.
    stage.pause("api", true).await;
    stage.scale("web", 5).await;
    stage.deadline("1s").await;
    let calm = |s: &ImageStatus| {
        let said: Vec<&str> = s.conditions.iter().map(|c| c.type_.as_str()).collect();
        assert!(s.rejected.is_empty() && !said.contains(&"Stalled"), "{s:?}");
        assert!(s.rollout.as_ref().is_some_and(|r| r.tag == "1.1.0" && r.back_from.is_none()), "{s:?}");
    };
    for_a_while(shop, calm).await;
    stage.deadline("10m").await;
    stage.pause("api", false).await;
    stage.runs("api", 1, "1.1.0").await;
    stage.runs("web", 5, "1.1.0").await;
    shop.settles("img", "1.1.0").await;
    assert_eq!(shop.revisions("web").await, 2);

    // Outside of any: it takes no place, and starts nothing.
    stage.scale("web", 7).await;
    for (name, canary) in [("web", Value::Null), ("api", json!("true"))] {
        stage.merge(name, &json!({"metadata": {"annotations": {CANARY: canary}}})).await;
    }
    for _ in 0..3 {
        assert_eq!(shop.sync("img").await.rollout, None);
    }
    assert_eq!(shop.revisions("web").await, 2);
    stage.push("1.2.0").await;
    stage.is_stamped("api", "1.2.0").await;
    let unready = shop.pods().await.iter().filter(|pod| pod.labels()["app"] == "web" && !is_ready(pod)).count();
    assert_eq!(unready, 2, "api did not wait for them");
    stage.runs("api", 1, "1.2.0").await;
    stage.is_stamped("web", "1.2.0").await;
    stage.runs("web", 7, "1.2.0").await;
    shop.settles("img", "1.2.0").await;
    assert_eq!((shop.revisions("web").await, shop.revisions("api").await), (3, 3));
    let replicas = shop.api::<Deployment>().get("web").await.unwrap().spec.replicas;
    assert_eq!(replicas, Some(7), "as the autoscaler left it");
}

#[tokio::test]
async fn a_rollout_past_its_deadline_frees_its_place() {
    let stage = Stage::new("place-due", &json!({"maxConcurrent": 5, "deadline": "10s"})).await;
    let shop = &stage.shop;
    let registry = &stage.bed.registries.open;
    registry.push("place-next", "1.0.0").await.unwrap();
    let next = registry.image("place-next");
    shop.create_image("next", &json!({"spec": {"image": next}})).await;
    shop.settles("next", "1.0.0").await;
    let opted_in = json!({"spec": {"replicas": 1, "template": {"metadata": {"annotations": {ENABLED: "true"}}}}});
    shop.create_deployment("next", &format!("{next}:1.0.0"), &opted_in).await;
    shop.pods_run("next", 1, &format!("{next}:1.0.0")).await;
    // As many as may roll in a namespace, and a person stops each in the middle.
    let names = ["a", "b", "c", "d", "e"];
    for name in names {
        stage.deploy(name, 1, true).await;
    }
    for name in names {
        stage.runs(name, 1, "1.0.0").await;
    }
    stage.push("1.1.0").await;
    let mut begun = Vec::new();
    for name in names {
        begun.push(stage.is_stamped(name, "1.1.0").await.stamped_at.unwrap());
        stage.pause(name, true).await;
    }
    registry.push("place-next", "1.1.0").await.unwrap();
    shop.sync("next").await;
    shop.pods_run("next", 1, &format!("{next}:1.1.0")).await;
    let at = stage.stamped("next").await.unwrap().stamped_at.unwrap();
    let first = *begun.iter().min().unwrap();
    assert!(at.duration_since(first).as_secs() >= 10, "{at}: not 10 s after {first}");
    shop.settles("next", "1.1.0").await;
    assert!(shop.status("img").await.rejected.is_empty());
}
