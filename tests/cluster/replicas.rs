//! Scenario g: two replicas. Both admit, one writes, and the other takes over when that one is killed.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kimup_testbed::{Balancer, Cluster, KimupProcess, WebhookUrl, eventually};
use kube::api::{DeleteParams, PostParams};
use serde_json::json;

use crate::own::{Own, SYSTEM, admits, leads};
use crate::support::{DEADLINE, ENABLED, Shop, image_of, opted_in, pod, with_annotations};

/// Longest time without a leader.
const FOLLOWED_WITHIN: Duration = Duration::from_secs(20);

struct Scene {
    own: Own,
    shop: Shop,
    balancer: Balancer,
    /// As the ServiceAccount `kimup`.
    first: KimupProcess,
    /// As the ServiceAccount `kimup-b`, which may do the same: so the audit log tells them apart.
    second: KimupProcess,
}

impl Scene {
    async fn new() -> Self {
        let own = Own::start().await;
        second_account(&own.cluster).await;
        let balancer = Balancer::start(&[]).await.unwrap();
        let mut options = own.options("first").await;
        options.webhook_url = WebhookUrl::At(balancer.address());
        let first = KimupProcess::start(options.clone()).await.unwrap();
        leads(&first, DEADLINE).await;
        options.kubeconfig = own.cluster.kubeconfig_for(SYSTEM, "kimup-b").await.unwrap();
        "second".clone_into(&mut options.name);
        let second = KimupProcess::start(options).await.unwrap();
        balancer.set_backends(&[first.webhook(), second.webhook()]);
        own.registry.push("g-two", "1.0.0").await.unwrap();
        let shop = own.shop("g-two").await;
        shop.create_image("app", &json!({"spec": {"image": own.registry.image("g-two")}})).await;
        shop.settles("app", "1.0.0").await;
        let scene = Self { own, shop, balancer, first, second };
        admits(&scene.shop, &scene.image("0.9.0"), &scene.image("1.0.0")).await;
        scene
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.own.registry.image("g-two"))
    }

    async fn push(&self, tag: &str) {
        self.own.registry.push("g-two", tag).await.unwrap();
        self.shop.annotate_image("app", "kimup.cloudavenue.io/requestedAt", Some(tag)).await;
    }

    /// Creates Pods at the same time, so that the API server opens several connections to the webhook.
    async fn pods_get(&self, tag: &str) -> Result<(), String> {
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let api = self.shop.api::<Pod>();
        let created = (0..20).map(|n| {
            let name = format!("loose-{n}");
            let pod = with_annotations(pod(&name, &self.image("0.9.0")), &[(ENABLED, "true")]);
            let (api, params) = (&api, &params);
            async move { api.create(params, &pod).await.map(|pod| image_of(&pod, "app")).map_err(|e| e.to_string()) }
        });
        let images = futures::future::try_join_all(created).await?;
        if images.iter().all(|image| *image == self.image(tag)) { Ok(()) } else { Err(format!("{images:?}")) }
    }
}

/// A ServiceAccount with everything that `deploy/` gives to `kimup`.
async fn second_account(cluster: &Cluster) {
    let subject = json!([{"kind": "ServiceAccount", "name": "kimup-b", "namespace": SYSTEM}]);
    let binding = |kind: &str, role_kind: &str, role: &str| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": kind,
            "metadata": {"name": format!("{role}-b"), "namespace": SYSTEM},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": role_kind, "name": role}, "subjects": subject,
        })
    };
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "kimup-b", "namespace": SYSTEM}},
        binding("ClusterRoleBinding", "ClusterRole", "kimup"),
        binding("ClusterRoleBinding", "ClusterRole", "kimup-pull-secrets"),
        binding("RoleBinding", "Role", "kimup"),
    ]});
    cluster.apply(&[], &list.to_string()).await.unwrap();
}

#[tokio::test]
async fn of_two_replicas_one_writes_and_the_other_follows() {
    let mut scene = Scene::new().await;
    scene.shop.create_deployment("web", &scene.image("0.9.0"), &opted_in()).await;
    scene.shop.pods_run("web", 2, &scene.image("1.0.0")).await;
    scene.push("1.1.0").await;
    scene.shop.settles("app", "1.1.0").await;
    scene.shop.pods_run("web", 2, &scene.image("1.1.0")).await;
    eventually(DEADLINE, "both admit", async || {
        scene.pods_get("1.1.0").await?;
        let mut counts = Vec::new();
        for kimup in [&scene.first, &scene.second] {
            counts.push(kimup.metric("kimup_admission_requests_total", &[("outcome", "mutated")]).await.unwrap());
        }
        if counts.iter().all(|count| *count > 0.0) { Ok(()) } else { Err(format!("{counts:?}")) }
    })
    .await;
    let written = scene.own.writes("kimup");
    assert!(written.iter().any(|w| w == "patch deployments g-two/web"), "{written:?}");
    assert_eq!(scene.own.writes("kimup-b"), Vec::<String>::new());
    the_other_follows(&mut scene).await;
    whoever_comes_back_follows(&mut scene).await;
}

async fn the_other_follows(scene: &mut Scene) {
    let killed = Instant::now();
    scene.first.kill();
    // Admission does not wait for a leader, only for the API server to find its connections to the killed one broken.
    scene.push("1.2.0").await;
    eventually(DEADLINE, "the other admits", async || scene.pods_get("1.1.0").await).await;
    assert!(scene.second.metric("kimup_leader", &[]).await.unwrap() < 1.0, "before anybody leads");
    leads(&scene.second, DEADLINE).await;
    let took = killed.elapsed();
    println!("the second replica leads {:.1} s after the first was killed", took.as_secs_f64());
    assert!(took <= FOLLOWED_WITHIN, "{took:?}");
    scene.shop.settles("app", "1.2.0").await;
    scene.shop.pods_run("web", 2, &scene.image("1.2.0")).await;
    for _ in 0..3 {
        scene.shop.sync("app").await;
    }
    let stamps = scene.own.writes("kimup-b").into_iter().filter(|w| w == "patch deployments g-two/web").count();
    assert_eq!((stamps, scene.shop.revisions("web").await), (1, 3));
}

/// The one that was killed comes back as a follower; the leader stops orderly and is followed at once.
async fn whoever_comes_back_follows(scene: &mut Scene) {
    let before = scene.own.writes("kimup").len();
    let mut options = scene.own.options("third").await;
    options.webhook_url = WebhookUrl::At(scene.balancer.address());
    let third = KimupProcess::start(options).await.unwrap();
    scene.balancer.set_backends(&[third.webhook(), scene.second.webhook()]);
    scene.push("1.3.0").await;
    scene.shop.settles("app", "1.3.0").await;
    assert_eq!(scene.own.writes("kimup").len(), before, "a follower writes nothing");
    let stopped = Instant::now();
    assert_eq!(scene.second.terminate(Duration::from_secs(25)).await.unwrap().code(), Some(0));
    leads(&third, Duration::from_secs(10)).await;
    println!("the third replica leads {:.1} s after the second was told to stop", stopped.elapsed().as_secs_f64());
    scene.shop.api::<k8s_openapi::api::apps::v1::Deployment>().delete("web", &DeleteParams::default()).await.unwrap();
    // The one that stopped took its configuration along; the new leader writes it again.
    eventually(DEADLINE, "the configuration is there", async || scene.own.configuration("kimup-url").await).await;
    admits(&scene.shop, &scene.image("0.9.0"), &scene.image("1.3.0")).await;
}
