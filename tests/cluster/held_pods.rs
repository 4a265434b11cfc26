//! New Pods of a held workload whose template carries no stamp: not one starts with the tag that somebody left.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kimup::api::{Held, HeldBy};
use kimup_testbed::eventually;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt, watcher};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::holds::{HOLD, Stage, object, revisions, said};
use crate::support::{DEADLINE, Shop, image_of};

/// Every image that a Pod of `web` was created with from now on.
struct Seen {
    images: Arc<Mutex<BTreeSet<String>>>,
    watch: JoinHandle<()>,
}

impl Seen {
    fn start(shop: &Shop) -> Self {
        let images = Arc::new(Mutex::new(BTreeSet::new()));
        let (seen, config) = (images.clone(), watcher::Config::default().labels("app=web"));
        let mut pods = watcher(shop.api::<Pod>(), config).default_backoff().applied_objects().boxed();
        let watch = async move {
            let mut known = BTreeSet::new();
            while let Some(pod) = pods.next().await {
                if let Ok(pod) = pod
                    && known.insert(pod.metadata.uid.clone())
                {
                    seen.lock().unwrap().insert(image_of(&pod, "app"));
                }
            }
        };
        Self { images, watch: tokio::spawn(watch) }
    }

    /// Waits until one has run this image; then nothing else has since the last question.
    async fn only(&self, image: &str) {
        let what = format!("a Pod runs {image}");
        eventually(DEADLINE, &what, async || self.images.lock().unwrap().contains(image)).await;
        let seen = std::mem::take(&mut *self.images.lock().unwrap());
        assert_eq!(seen, [image.to_owned()].into());
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.watch.abort();
    }
}

#[tokio::test]
async fn another_template_of_a_held_workload_starts_where_it_is_held() {
    let kinds = ["Deployment", "StatefulSet", "DaemonSet"];
    futures::future::join_all(kinds.map(starts_where_it_is_held)).await;
}

async fn starts_where_it_is_held(kind: &'static str) {
    let stage = Stage::new(&format!("h-pods-{}", kind.to_lowercase()), kind, &json!({})).await;
    let (shop, image) = (&stage.shop, &stage.image);
    let kubectl = async |verb: &str, what: &str| {
        let workload = format!("{kind}/web");
        stage.bed.cluster.kubectl_ok(&["-n", &shop.namespace, "set", verb, &workload, what]).await.unwrap();
    };
    // To the first revision, which has no stamp; it left 1.2.0.
    stage.undo(Some(1)).await;
    let held = stage.held(HeldBy::Undo, "1.0.0").await;
    stage.runs("1.0.0").await;
    let before = revisions(shop, kind, "web").await;
    let seen = Seen::start(shop);
    seen.only(&format!("{image}:1.0.0")).await;

    // Not one of the Pods to come runs what was left, and one rollout is enough: the person's.
    kubectl("env", "LEVEL=debug").await;
    eventually(DEADLINE, "there is another revision", async || revisions(shop, kind, "web").await != before).await;
    stage.stays("1.0.0").await;
    seen.only(&format!("{image}:1.0.0")).await;
    let after = revisions(shop, kind, "web").await;
    assert_eq!(after.difference(&before).count(), 1, "{before:?} {after:?}");
    assert_eq!(stage.held(HeldBy::Undo, "1.0.0").await.since, held.since);

    // A newer text than that, and an older one than what was left: a decision for that one.
    kubectl("image", &format!("app={image}:1.0.5")).await;
    let held = stage.held(HeldBy::Manifest, "1.0.5").await;
    assert_eq!(held.left, "1.2.0");
    stage.stays("1.0.5").await;
    assert_eq!(stage.held(HeldBy::Manifest, "1.0.5").await.since, held.since);
    seen.only(&format!("{image}:1.0.5")).await;

    let by = shop.audited("img", "hold").await;
    assert_eq!(by[..2], ["unknown", "field manager kubectl-set"]);

    // The annotation says where it stays, whatever the text becomes.
    stage.annotate(&json!({HOLD: "1.1.0"})).await;
    stage.held(HeldBy::Annotation, "1.1.0").await;
    stage.runs("1.1.0").await;
    seen.only(&format!("{image}:1.1.0")).await;
    kubectl("image", &format!("app={image}:3.0.0")).await;
    eventually(DEADLINE, "it is stamped for the new text", async || {
        let template = object(shop, kind, "web").await["spec"]["template"].clone();
        template["metadata"]["annotations"][crate::holds::STAMP] == format!("{image}:3.0.0 {image}:1.1.0")
    })
    .await;
    stage.stays("1.1.0").await;
    seen.only(&format!("{image}:1.1.0")).await;

    // So it does while it is misspelled, and the text becomes yet another.
    stage.annotate(&json!({HOLD: "9.9.9"})).await;
    said(shop, kind, "web", &["PolicyInvalid: ", "9.9.9", "stays where it is"]).await;
    let before = revisions(shop, kind, "web").await;
    kubectl("image", &format!("app={image}:3.0.1")).await;
    eventually(DEADLINE, "there is another revision", async || revisions(shop, kind, "web").await != before).await;
    stage.stays("1.1.0").await;
    seen.only(&format!("{image}:1.1.0")).await;
    stage.held(HeldBy::Annotation, "1.1.0").await;

    // A newer tag than the one that was left ends what a rollback holds; here nothing is left of that.
    stage.annotate(&json!({HOLD: null})).await;
    stage.runs("3.0.1").await;
}

/// Nothing runs, so nothing but the record tells where it is held.
#[tokio::test]
async fn what_is_held_without_pods_comes_back_where_it_is_held() {
    tokio::join!(without_pods("next", "1.3.0"), without_pods("hold", "1.0.0"));
}

async fn without_pods(after: &str, runs: &str) {
    let spec = json!({"rollout": {"afterRollback": after}});
    let stage = Stage::new(&format!("h-none-{after}"), "Deployment", &spec).await;
    let (shop, image) = (&stage.shop, &stage.image);
    stage.undo(Some(1)).await;
    let held = stage.held(HeldBy::Undo, "1.0.0").await;
    stage.runs("1.0.0").await;
    let scale = async |replicas: i32| {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        shop.api::<Deployment>().patch("web", &PatchParams::default(), &patch).await.unwrap();
    };
    scale(0).await;
    eventually(DEADLINE, "its Pods are gone", async || {
        let pods = shop.pods().await.len();
        if pods == 0 { Ok(()) } else { Err(pods) }
    })
    .await;
    shop.sync("img").await;
    assert_eq!(stage.held(HeldBy::Undo, "1.0.0").await.since, held.since, "before there is a newer tag");
    stage.push("1.3.0").await;
    shop.settles("img", "1.3.0").await;
    let holds = after == "hold";
    shop.status_is("img", "knows whether it is held", |s| s.held.iter().any(Held::holds) == holds).await;
    for _ in 0..3 {
        let status = shop.sync("img").await;
        let since: Vec<&str> = status.held.iter().filter(|h| h.holds()).map(|h| h.since.as_str()).collect();
        assert_eq!(since, if holds { vec![held.since.as_str()] } else { vec![] }, "{:?}", status.held);
    }

    let seen = Seen::start(shop);
    scale(2).await;
    stage.runs(runs).await;
    if holds {
        seen.only(&format!("{image}:{runs}")).await;
    }
    // Else the first Pods may be of the old revision, which runs one tag as long as it lives.
    stage.stays(runs).await;
}
