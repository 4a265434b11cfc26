//! Scenario h and the processes: `kimup webhook` beside `kimup sync`, with a watch that is held back.

use std::collections::BTreeSet;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kimup::telemetry::METRICS;
use kimup_testbed::{Balancer, FaultReply, KimupProcess, ScriptedRegistry, WebhookUrl, eventually};
use kube::ResourceExt as _;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::own::{Own, SYSTEM, admits, leads};
use crate::support::{DEADLINE, ENABLED, Shop, image_of, opted_in, pod, with_annotations};

/// What `docs/operations.md` gives a process to end.
const STOPS_WITHIN: Duration = Duration::from_secs(25);

struct Scene {
    own: Own,
    shop: Shop,
    slow: ScriptedRegistry,
    /// Between the API server and the webhook's watches.
    watches: Balancer,
    webhook: KimupProcess,
    sync: KimupProcess,
    socket: PathBuf,
}

impl Scene {
    async fn new() -> Self {
        let own = Own::start().await;
        let watches = Balancer::start(&[own.cluster.address().parse().unwrap()]).await.unwrap();
        let socket = own.cluster.folder().join("sync.sock");
        let slow = ScriptedRegistry::start().await.unwrap();
        let mut options = own.options("sync").await;
        options.args.extend(["--plain-http-registry".to_owned(), slow.host()]);
        let on = ["--sync-socket".to_owned(), socket.display().to_string()];
        options.args.extend(on.clone());
        let mut webhook = own.options("webhook").await;
        let via = watches.address().to_string();
        webhook.kubeconfig = own.cluster.kubeconfig_via(SYSTEM, "kimup", &via).await.unwrap();
        "webhook".clone_into(&mut webhook.command);
        webhook.args.truncate(4); // it knows no registries
        webhook.args.extend(on);
        let webhook = KimupProcess::start(webhook).await.unwrap();
        "sync".clone_into(&mut options.command);
        options.webhook_url = WebhookUrl::At(webhook.webhook());
        let sync = KimupProcess::start(options).await.unwrap();
        let shop = own.shop("h-split").await;
        Self { own, shop, slow, watches, webhook, sync, socket }
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.own.registry.image("h-app"))
    }

    async fn push(&self, tag: &str) {
        self.own.registry.push("h-app", tag).await.unwrap();
    }

    /// The tag that a Pod without owner gets now.
    async fn loose_pod_gets(&self) -> String {
        let name = format!("loose-{}", fastrand::u32(..));
        let pod = with_annotations(pod(&name, &self.image("0.9.0")), &[(ENABLED, "true")]);
        let params = PostParams { dry_run: true, ..PostParams::default() };
        image_of(&self.shop.api::<Pod>().create(&params, &pod).await.unwrap(), "app")
    }

    async fn patch<K>(&self, name: &str, patch: &Value)
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::de::DeserializeOwned,
    {
        self.shop.api::<K>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// The images of the Pods of an app, ready or not.
    async fn images(&self, app: &str) -> Vec<String> {
        let pods = self.shop.pods().await;
        pods.iter().filter(|p| p.labels().get("app").is_some_and(|a| a == app)).map(|p| image_of(p, "app")).collect()
    }

    async fn delete_pods(&self, app: &str) {
        for pod in self.shop.pods().await.iter().filter(|p| p.labels().get("app").is_some_and(|a| a == app)) {
            let deleted = self.shop.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await;
            assert!(deleted.is_ok() || matches!(&deleted, Err(kube::Error::Api(s)) if s.code == 404), "{deleted:?}");
        }
    }
}

#[tokio::test]
async fn one_revision_runs_one_version() {
    let scene = Scene::new().await;
    the_first_pod_asks_through_the_socket(&scene).await;
    a_stamp_counts_where_the_watch_is_behind(&scene).await;
    a_bare_replica_set_runs_one_version(&scene).await;
    a_revision_put_back_runs_what_it_ran(&scene).await;
    both_tell_their_metrics(&scene).await;
    both_stop_in_order(scene).await;
}

async fn the_first_pod_asks_through_the_socket(scene: &Scene) {
    let mode = std::fs::symlink_metadata(&scene.socket).unwrap();
    assert!(mode.file_type().is_socket());
    assert_eq!(mode.permissions().mode() & 0o777, 0o600);
    leads(&scene.sync, DEADLINE).await;
    eventually(DEADLINE, "the configuration is written", async || scene.own.configuration("kimup-url").await).await;
    scene.push("1.0.0").await;
    scene.shop.create_image("app", &json!({"spec": {"image": scene.own.registry.image("h-app")}})).await;
    scene.shop.settles("app", "1.0.0").await;
    admits(&scene.shop, &scene.image("0.9.0"), &scene.image("1.0.0")).await;
    // Long enough for a Pod to come first, unless the machine stands still; short enough for its question.
    for attempt in 0.. {
        let name = format!("slow-{attempt}");
        let body = format!(r#"{{"name": "{name}", "tags": ["1.0.0"]}}"#);
        scene.slow.set_answer(&name, FaultReply::new(200, body).after(Duration::from_secs(1)));
        let slow = scene.slow.image(&name);
        scene.shop.create_image(&name, &json!({"spec": {"image": slow}})).await;
        admits(&scene.shop, &format!("{slow}:0.9.0"), &format!("{slow}:1.0.0")).await;
        let answered = scene.webhook.metric("kimup_questions_total", &[("outcome", "answered")]).await.unwrap();
        if answered >= 1.0 {
            break;
        }
        assert!(attempt < 5, "nobody asks");
    }
}

async fn a_stamp_counts_where_the_watch_is_behind(scene: &Scene) {
    scene.shop.create_deployment("web", &scene.image("0.9.0"), &opted_in()).await;
    scene.shop.pods_run("web", 2, &scene.image("1.0.0")).await;
    scene.shop.sync("app").await;
    scene.watches.hold_back(true);
    scene.push("1.1.0").await;
    scene.shop.sync("app").await;
    scene.shop.settles("app", "1.1.0").await;
    for pod in scene.shop.pods_run("web", 2, &scene.image("1.1.0")).await {
        let applied = &pod.annotations()["kimup.cloudavenue.io/applied"];
        assert!(applied.starts_with("app: 0.9.0 -> 1.1.0 (Image app, rollout "), "{applied}");
    }
    assert_eq!(scene.loose_pod_gets().await, scene.image("1.0.0"), "the watch is behind");
    scene.watches.hold_back(false);
    eventually(DEADLINE, "the watch catches up", async || scene.loose_pod_gets().await == scene.image("1.1.0")).await;
}

/// It is scaled up and loses Pods all the time while the tag moves.
async fn a_bare_replica_set_runs_one_version(scene: &Scene) {
    let set: ReplicaSet = serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "bare"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "bare"}}, "template": {
            "metadata": {"labels": {"app": "bare"}, "annotations": {ENABLED: "true"}},
            "spec": {"containers": [{"name": "app", "image": scene.image("0.9.0")}], "terminationGracePeriodSeconds": 0},
        }},
    }))
    .unwrap();
    scene.shop.api::<ReplicaSet>().create(&PostParams::default(), &set).await.unwrap();
    scene.shop.pods_run("bare", 2, &scene.image("1.1.0")).await;
    scene.push("1.2.0").await;
    scene.shop.annotate_image("app", "kimup.cloudavenue.io/requestedAt", Some("bare")).await;
    let mut seen = BTreeSet::new();
    for replicas in 3.. {
        scene.patch::<ReplicaSet>("bare", &json!({"spec": {"replicas": replicas.min(8)}})).await;
        seen.extend(scene.images("bare").await);
        scene.delete_pods("bare").await;
        let status = scene.shop.status("app").await;
        if status.tag.as_deref() == Some("1.2.0") && status.rollout.is_none() {
            break;
        }
    }
    eventually(DEADLINE, "the webhook knows", async || scene.loose_pod_gets().await == scene.image("1.2.0")).await;
    scene.delete_pods("bare").await;
    scene.patch::<ReplicaSet>("bare", &json!({"spec": {"replicas": 9}})).await;
    scene.shop.pods_run("bare", 9, &scene.image("1.1.0")).await;
    seen.extend(scene.images("bare").await);
    assert_eq!(seen, BTreeSet::from([scene.image("1.1.0")]));
    scene.shop.api::<ReplicaSet>().delete("bare", &DeleteParams::default()).await.unwrap();
}

/// `kubectl rollout undo` to the revision that had no stamp: the version its first Pods got, neither its text nor the
/// newest.
async fn a_revision_put_back_runs_what_it_ran(scene: &Scene) {
    scene.shop.pods_run("web", 2, &scene.image("1.2.0")).await;
    let undo = ["-n", &scene.shop.namespace, "rollout", "undo", "deployment/web", "--to-revision=1"];
    scene.own.cluster.kubectl_ok(&undo).await.unwrap();
    scene.shop.pods_run("web", 2, &scene.image("1.0.0")).await;
    let revisions = scene.shop.revisions("web").await;
    let held = scene.shop.status_is("app", "holds", |s| s.held.len() == 1).await.held.remove(0);
    assert_eq!((held.workload.as_str(), held.tag.as_str(), held.left.as_str()), ("Deployment/web", "1.0.0", "1.2.0"));
    scene.delete_pods("web").await;
    scene.patch::<Deployment>("web", &json!({"spec": {"replicas": 4}})).await;
    scene.shop.pods_run("web", 4, &scene.image("1.0.0")).await;
    for _ in 0..5 {
        scene.shop.sync("app").await;
    }
    assert_eq!(scene.shop.revisions("web").await, revisions);
    assert_eq!(BTreeSet::from_iter(scene.images("web").await), BTreeSet::from([scene.image("1.0.0")]));
}

async fn both_tell_their_metrics(scene: &Scene) {
    // A counter by host or result is there once it counts.
    scene.shop.create_image("nowhere", &json!({"spec": {"image": "127.0.0.1:1/app"}})).await;
    scene.shop.status_is("nowhere", "fails", |s| s.result.is_some_and(|r| r.as_str() == "RegistryError")).await;
    let text = format!("{}{}", scene.webhook.metrics().await.unwrap(), scene.sync.metrics().await.unwrap());
    for (metric, help) in METRICS {
        let stem = metric.trim_end_matches("_total").trim_end_matches("_info"); // the exposition adds these
        let described = format!("# HELP {stem} {help}");
        assert!(text.contains(&described), "{described}\n{text}");
    }
    for (kimup, name) in [(&scene.webhook, "webhook"), (&scene.sync, "sync")] {
        println!("resident memory of {name}: {} KiB", kimup.rss_bytes().unwrap() / 1024);
    }
    let metric =
        async |kimup: &KimupProcess, name: &str, labels: &[(&str, &str)]| kimup.metric(name, labels).await.unwrap();
    assert!(metric(&scene.webhook, "kimup_admission_requests_total", &[("outcome", "mutated")]).await >= 10.0);
    assert!(metric(&scene.webhook, "kimup_leader", &[]).await < 1.0);
    assert!(metric(&scene.sync, "kimup_syncs_total", &[("result", "Success")]).await >= 8.0);
    assert!(metric(&scene.sync, "kimup_rollouts_total", &[("outcome", "settled")]).await >= 2.0);
}

async fn both_stop_in_order(mut scene: Scene) {
    assert!(scene.own.holder("kimup-url").await.is_some());
    let status = scene.sync.terminate(STOPS_WITHIN).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", scene.sync.log_text());
    assert!(scene.own.configuration("kimup-url").await.is_none(), "the configuration goes with the leader");
    assert_eq!(scene.own.holder("kimup-url").await, None, "the Lease is released");
    assert!(!scene.socket.exists(), "the socket is removed");
    scene.webhook.ready().await.unwrap();
    scene.watches.hold_back(true); // an API server that hangs holds up nobody's end
    let status = scene.webhook.terminate(STOPS_WITHIN).await.unwrap();
    assert_eq!(status.code(), Some(0), "{}", scene.webhook.log_text());
}
