//! Scenarios g and k: kimup is killed in the middle of its work, and all of it is away for a while.

use std::time::Instant;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kimup::api::Image;
use kimup_testbed::{Balancer, KimupProcess, WebhookUrl, eventually};
use serde_json::json;

use crate::own::{Own, READY_AFTER, SYSTEM, admits, leads};
use crate::support::{DEADLINE, ENABLED, FAILURE_POLICY, Shop, image_of, is_ready, pod, with_annotations};

const STAMP: &str = "stamp.kimup.cloudavenue.io/app";

/// When kimup is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// The tag is chosen and on record; the Deployment is not stamped yet.
    Chosen,
    /// The Deployment is stamped.
    Stamped,
    /// The first Pod of the new revision is there.
    Moving,
    /// As before, and its successor as soon as it leads.
    MovingTwice,
    /// Every Pod is replaced; the tag is not settled yet, or just now.
    Replaced,
}

impl Moment {
    const ALL: [Self; 5] = [Self::Chosen, Self::Stamped, Self::Moving, Self::MovingTwice, Self::Replaced];

    async fn has_come(self, shop: &Shop, tag: &str) -> bool {
        match self {
            Self::Chosen => {
                let image = shop.api::<Image>().get("app").await.unwrap();
                image.status.and_then(|s| s.rollout).is_some_and(|r| r.tag == tag)
            }
            Self::Stamped => is_stamped(shop, tag).await,
            Self::Moving | Self::MovingTwice => shop.pods().await.iter().any(|p| image_of(p, "app").ends_with(tag)),
            Self::Replaced => {
                let pods = shop.pods().await;
                pods.len() == 2 && pods.iter().all(|p| image_of(p, "app").ends_with(tag) && is_ready(p))
            }
        }
    }

    /// Looks without a pause: the moments are short.
    async fn wait(self, shop: &Shop, tag: &str) {
        let started = Instant::now();
        while !self.has_come(shop, tag).await {
            assert!(started.elapsed() < DEADLINE, "{self:?} of {tag} does not come");
        }
    }
}

async fn is_stamped(shop: &Shop, tag: &str) -> bool {
    let web = shop.api::<Deployment>().get("web").await.unwrap();
    let annotations = web.spec.template.metadata.and_then(|m| m.annotations).unwrap_or_default();
    annotations.get(STAMP).is_some_and(|stamp| stamp.ends_with(tag))
}

struct Scene {
    own: Own,
    shop: Shop,
    balancer: Balancer,
    /// None for a moment, while it is started again.
    kimup: Option<KimupProcess>,
}

impl Scene {
    /// A Deployment with two containers: its rollouts wait a second for tags that move together.
    async fn new() -> Self {
        let own = Own::start().await;
        let balancer = Balancer::start(&[]).await.unwrap();
        let mut options = own.options("kimup").await;
        options.webhook_url = WebhookUrl::At(balancer.address());
        let kimup = KimupProcess::start(options).await.unwrap();
        balancer.set_backends(&[kimup.webhook()]);
        let shop = own.shop("g-killed").await;
        let mut containers = Vec::new();
        for name in ["app", "side"] {
            own.registry.push(name, "1.0.0").await.unwrap();
            let image = own.registry.image(name);
            shop.create_image(name, &json!({"spec": {"image": image}})).await;
            shop.settles(name, "1.0.0").await;
            containers.push(json!({"name": name, "image": format!("{image}:0.9.0")}));
        }
        let image = own.registry.image("app");
        admits(&shop, &format!("{image}:0.9.0"), &format!("{image}:1.0.0")).await;
        let annotations = json!({ENABLED: "true", READY_AFTER: "1s"});
        let template = json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}});
        shop.create_deployment("web", "", &json!({"spec": {"template": template}})).await;
        shop.pods_run("web", 2, &format!("{image}:1.0.0")).await;
        Self { own, shop, balancer, kimup: Some(kimup) }
    }

    fn kill(&mut self) {
        self.kimup.as_mut().unwrap().kill();
    }

    async fn kill_and_start_again(&mut self) {
        self.kill();
        self.own.expire_lease("kimup-url").await;
        let kimup = self.kimup.take().unwrap().start_again().await.unwrap();
        self.balancer.set_backends(&[kimup.webhook()]);
        leads(&kimup, DEADLINE).await;
        self.kimup = Some(kimup);
    }

    fn stamps(&self) -> usize {
        let writes = self.own.writes("kimup");
        writes.iter().filter(|w| *w == "patch deployments g-killed/web").count()
    }

    async fn push(&self, tag: &str) {
        for name in ["app", "side"] {
            self.own.registry.push(name, tag).await.unwrap();
        }
        for name in ["app", "side"] {
            self.shop.annotate_image(name, "kimup.cloudavenue.io/requestedAt", Some(tag)).await;
        }
    }

    async fn is_settled(&self, tag: &str, rollouts: usize) {
        for name in ["app", "side"] {
            let status = self.shop.settles(name, tag).await;
            assert_eq!(status.history.iter().filter(|entry| entry.tag == tag).count(), 1, "{:?}", status.history);
        }
        self.shop.pods_run("web", 2, &format!("{}:{tag}", self.own.registry.image("app"))).await;
        for _ in 0..3 {
            self.shop.sync("app").await;
            self.shop.sync("side").await;
        }
        assert_eq!(self.shop.revisions("web").await, 1 + rollouts, "one ReplicaSet for {tag}");
        assert_eq!(self.stamps(), rollouts, "one stamp for {tag}");
        let events = self.shop.events("Deployment", "web").await;
        let told = events.iter().filter(|e| e.starts_with("RolloutStarted") && e.contains(tag)).count();
        assert!(told <= 1, "{events:?}"); // none if the kill came before it
    }
}

#[tokio::test]
async fn a_rollout_that_outlives_its_kimup_happens_once() {
    let mut scene = Scene::new().await;
    for (rollouts, moment) in (1..).zip(Moment::ALL) {
        let tag = format!("1.{rollouts}.0");
        scene.push(&tag).await;
        moment.wait(&scene.shop, &tag).await;
        scene.kill();
        if moment == Moment::Chosen {
            assert!(!is_stamped(&scene.shop, &tag).await, "it was killed before the stamp");
        }
        scene.kill_and_start_again().await;
        if moment == Moment::MovingTwice {
            scene.kill_and_start_again().await;
        }
        scene.is_settled(&tag, rollouts).await;
    }
    Box::pin(nobody_is_there(&mut scene)).await;
}

/// Every kimup is gone: who did not opt in starts, kimup's own Pods start, and so does who said `ignore`.
async fn nobody_is_there(scene: &mut Scene) {
    scene.kill();
    scene.balancer.set_backends(&[]);
    let own = &scene.own;
    let image = own.registry.image("app");
    let text = format!("{image}:0.9.0");
    let plain = own.shop("k-plain").await;
    let ignoring = Shop::new(&own.cluster, "k-ignoring", &[(ENABLED, "true"), (FAILURE_POLICY, "ignore")], &[]).await;
    let kimups = Shop { namespace: SYSTEM.to_owned(), client: own.cluster.client().await.unwrap() };
    let opted_in = |name: &str| with_annotations(pod(name, &text), &[(ENABLED, "true")]);
    let denied = scene.shop.create_pod(&opted_in("denied")).await.unwrap_err();
    assert!(denied.contains("failed calling webhook"), "{denied}");
    for (shop, pod) in [
        (&plain, pod("plain", &text)),
        (&ignoring, pod("labelled", &text)),
        (&scene.shop, with_annotations(pod("own", &text), &[(ENABLED, "true"), (FAILURE_POLICY, "ignore")])),
    ] {
        let created: Pod = shop.create_pod(&pod).await.unwrap();
        assert_eq!(image_of(&created, "app"), text, "{}", shop.namespace);
        shop.pods_run(&created.metadata.name.unwrap(), 1, &text).await;
    }
    // However it came about that its Namespace is opted in.
    own.cluster.kubectl_ok(&["label", "namespace", SYSTEM, &format!("{ENABLED}=true")]).await.unwrap();
    own.cluster.apply_deploy(&["Deployment"]).await.unwrap();
    eventually(DEADLINE, "kimup's own Pods start", async || {
        let pods = kimups.pods().await;
        pods.len() == 2 && pods.iter().all(is_ready)
    })
    .await;
    scene.kill_and_start_again().await;
    admits(&scene.shop, &text, &format!("{image}:1.5.0")).await;
    let created = scene.shop.create_pod(&opted_in("back")).await.unwrap();
    assert_eq!(image_of(&created, "app"), format!("{image}:1.5.0"));
}
