//! Scenario j: the API server is killed and comes back.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use kimup::api::{Image, SyncResult};
use kimup_testbed::{KimupProcess, eventually};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::json;

use crate::own::{Own, admits};
use crate::support::{DEADLINE, Shop, opted_in};

/// From the API server's return until kimup has done everything that waited.
const RECOVERS_WITHIN: Duration = Duration::from_secs(10);
const STAMP: &str = "stamp.kimup.cloudavenue.io/app";
const ACTION: &str = "kimup.cloudavenue.io/action";

struct Scene {
    own: Own,
    shop: Shop,
    quiet: Shop,
    kimup: KimupProcess,
}

impl Scene {
    async fn new() -> Self {
        let own = Own::start().await;
        let kimup = KimupProcess::start(own.options("kimup").await).await.unwrap();
        let shop = own.shop("j-shop").await;
        let quiet = own.shop("j-quiet").await;
        let scene = Self { own, shop, quiet, kimup };
        for name in ["changed", "deleted", "refreshed"] {
            scene.own.registry.push(name, "1.0.0").await.unwrap();
            scene.shop.create_image(name, &json!({"spec": {"image": scene.own.registry.image(name)}})).await;
            scene.shop.settles(name, "1.0.0").await;
        }
        // Where nothing else happens: of two for one repository the younger counts as soon as the older is gone.
        let image = scene.own.registry.image("refreshed");
        scene.quiet.create_image("older", &json!({"spec": {"image": image}})).await;
        scene.quiet.settles("older", "1.0.0").await;
        scene.quiet.create_image("younger", &json!({"spec": {"image": image}})).await;
        scene.quiet.status_is("younger", "is a duplicate", |s| s.result == Some(SyncResult::Error)).await;
        admits(&scene.shop, &scene.image("changed", "0.9.0"), &scene.image("changed", "1.0.0")).await;
        for name in ["changed", "refreshed"] {
            scene.shop.create_deployment(name, &scene.image(name, "0.9.0"), &opted_in()).await;
            scene.shop.pods_run(name, 2, &scene.image(name, "1.0.0")).await;
        }
        scene
    }

    fn image(&self, name: &str, tag: &str) -> String {
        format!("{}:{tag}", self.own.registry.image(name))
    }

    /// The API server is away until `enough`; meanwhile kimup is ready all the time.
    async fn outage(&mut self, enough: impl Fn(&str) -> bool) {
        let log_before = self.kimup.log_text().len();
        self.own.cluster.kill_apiserver();
        let started = Instant::now();
        while !enough(&self.kimup.log_text()[log_before..]) {
            assert!(started.elapsed() < DEADLINE, "kimup does not notice");
            self.kimup.ready().await.unwrap();
            self.kimup.check_running().unwrap();
        }
        self.own.cluster.restart_apiserver().await.unwrap();
        self.kimup.ready().await.unwrap();
    }

    /// What happens before kimup is connected again, and what must have come of it in time.
    async fn catches_up(&mut self, round: u32) {
        let returned = Instant::now();
        let (new, next) = (format!("created-{round}"), format!("{}.0.0", round + 1));
        let shop = &self.shop;
        let params = PatchParams::default();
        let base = Patch::Merge(json!({"spec": {"baseTag": next}}));
        shop.api::<Image>().patch("changed", &params, &base).await.unwrap();
        shop.annotate_image("refreshed", ACTION, Some("refresh")).await;
        let (gone, gone_from) = if round == 1 { ("deleted", shop) } else { ("older", &self.quiet) };
        gone_from.api::<Image>().delete(gone, &DeleteParams::default()).await.unwrap();
        shop.create_image(&new, &json!({"spec": {"image": self.own.registry.image(&new)}})).await;
        let wanted = [("changed", next), ("refreshed", format!("1.{round}.0")), (&new, "1.0.0".to_owned())];
        eventually(RECOVERS_WITHIN, "kimup has done its part", async || {
            let mut missing = Vec::new();
            for (name, tag) in &wanted {
                missing.extend(self.missing(name, tag).await);
            }
            let took_over = round == 1 || self.quiet.status("younger").await.tag.is_some();
            missing.extend((!took_over).then(|| "younger has no tag".to_owned()));
            if missing.is_empty() { Ok(()) } else { Err(missing.join("\n")) }
        })
        .await;
        let took = returned.elapsed();
        println!("after the API server's return number {round} kimup had caught up in {:.1} s", took.as_secs_f64());
        assert!(took <= RECOVERS_WITHIN, "{took:?}");
        // The webhook knows it too: an Image that is gone changes nobody, a new one does.
        admits(shop, &self.image("deleted", "0.9.0"), &self.image("deleted", "0.9.0")).await;
        admits(shop, &self.image(&new, "0.9.0"), &self.image(&new, "1.0.0")).await;
        self.kimup.check_running().unwrap();
    }

    /// What kimup has not done yet for an Image: choose the tag, say so, stamp the Deployment, answer the request.
    async fn missing(&self, name: &str, tag: &str) -> Option<String> {
        let image = self.shop.api::<Image>().get(name).await.unwrap();
        let status = image.status.clone().unwrap_or_default();
        let chosen = status.rollout.as_ref().map(|r| r.tag.as_str()).or(status.tag.as_deref()) == Some(tag);
        let web = self.shop.api::<Deployment>().get_opt(name).await.unwrap();
        let annotations = web.map(|web| web.spec.template.metadata.unwrap().annotations.unwrap_or_default());
        let stamped = annotations.is_none_or(|a| a.get(STAMP).is_some_and(|stamp| stamp.ends_with(tag)));
        let answered = !image.annotations().contains_key(ACTION);
        (!chosen || !stamped || !answered).then(|| format!("{name}: {chosen} {stamped} {answered} {status:?}"))
    }

    async fn push(&self, round: u32) {
        self.own.registry.push(&format!("created-{round}"), "1.0.0").await.unwrap();
        self.own.registry.push("refreshed", &format!("1.{round}.0")).await.unwrap();
        self.own.registry.push("changed", &format!("{}.0.0", round + 1)).await.unwrap();
    }
}

#[tokio::test]
async fn the_api_server_goes_and_comes_back() {
    let mut scene = Scene::new().await;
    scene.push(1).await;
    scene.outage(|log| log.contains("a watch failed")).await;
    scene.catches_up(1).await;
    for (name, tag) in [("changed", "2.0.0"), ("refreshed", "1.1.0")] {
        scene.shop.settles(name, tag).await;
        scene.shop.pods_run(name, 2, &scene.image(name, tag)).await;
    }
    // Long enough for the leader to give up, and for the pauses between two tries to grow. The controllers take longer
    // to come back than kimup: what they do is not waited for.
    scene.push(2).await;
    scene.outage(|log| log.contains("no longer leading")).await;
    scene.catches_up(2).await;
}
