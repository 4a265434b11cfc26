//! Both replicas gone, the nodes drained, `fail` everywhere: the cluster and kimup come back by themselves.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use kimup::api::annotations::NUDGED;
use kimup_testbed::{Balancer, KimupProcess, WebhookUrl, eventually};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use crate::own::{Own, SYSTEM, admits, leads};
use crate::support::{DEADLINE, ENABLED, Shop, image_of, is_ready};

/// The bar: everything runs again within this time after kimup does.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// Denials before kimup comes back: the pauses double from 5 ms, so after 41 s the next one is of 41 s.
const DENIALS: i64 = 13;

fn template(app: &str, image: &str) -> Value {
    json!({
        "metadata": {"labels": {"app": app}, "annotations": {ENABLED: "true"}},
        "spec": {"containers": [{"name": "app", "image": image}], "terminationGracePeriodSeconds": 0},
    })
}

fn object<K: serde::de::DeserializeOwned>(name: &str, spec: &Value) -> K {
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap()
}

/// One of each kind whose controller creates Pods.
async fn workloads(shop: &Shop, image: &str) {
    let post = PostParams::default();
    let spec = |app: &str, more: &Value| {
        let mut spec = json!({"selector": {"matchLabels": {"app": app}}, "template": template(app, image)});
        json_patch::merge(&mut spec, more);
        spec
    };
    let web = object::<Deployment>("web", &spec("web", &json!({"replicas": 3})));
    shop.api::<Deployment>().create(&post, &web).await.unwrap();
    let db = object::<StatefulSet>("db", &spec("db", &json!({"replicas": 2, "serviceName": "db"})));
    shop.api::<StatefulSet>().create(&post, &db).await.unwrap();
    shop.api::<DaemonSet>().create(&post, &object("agent", &spec("agent", &json!({})))).await.unwrap();
}

async fn job(shop: &Shop, image: &str) {
    let mut template = template("once", image);
    template["spec"]["restartPolicy"] = json!("Never");
    let job: Job = object("once", &json!({"template": template}));
    shop.api::<Job>().create(&PostParams::default(), &job).await.unwrap();
}

/// Name of the app and its Pods, not those of the Job, which ends.
async fn running(shop: &Shop, wanted: &str) -> Result<(), String> {
    let mut counts = [("web", 3), ("db", 2), ("agent", 2)];
    let pods = shop.pods().await;
    for (app, missing) in &mut counts {
        let own = pods.iter().filter(|p| p.labels().get("app").is_some_and(|a| a == app));
        *missing -= own.filter(|p| is_ready(p) && image_of(p, "app") == wanted).count();
    }
    if counts.iter().all(|(_, missing)| *missing == 0) { Ok(()) } else { Err(format!("missing: {counts:?}")) }
}

/// Nodes are emptied: every Pod goes, at once.
async fn drain(own: &Own, shop: &Shop) {
    let nodes: Api<Node> = Api::all(own.cluster.client().await.unwrap());
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        nodes.cordon(&node.name_any()).await.unwrap();
    }
    shop.api::<Pod>()
        .delete_collection(&DeleteParams::default().grace_period(0), &ListParams::default())
        .await
        .unwrap();
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        nodes.uncordon(&node.name_any()).await.unwrap();
    }
}

/// How often the controller of each kind was denied, as its Events tell.
async fn denials(shop: &Shop) -> Vec<(String, i64)> {
    let events: Api<k8s_openapi::api::core::v1::Event> = shop.api();
    let events = events.list(&ListParams::default()).await.unwrap();
    let mut counts: Vec<(String, i64)> =
        ["ReplicaSet", "StatefulSet", "DaemonSet", "Job"].map(|kind| (kind.to_owned(), 0)).to_vec();
    for event in events.items.iter().filter(|e| e.reason.as_deref() == Some("FailedCreate")) {
        let kind = event.involved_object.kind.as_deref().unwrap_or_default();
        let times = event.series.as_ref().and_then(|s| s.count).or(event.count).unwrap_or(1);
        if let Some((_, count)) = counts.iter_mut().find(|(known, _)| known == kind) {
            *count += i64::from(times);
        }
    }
    counts
}

#[tokio::test]
async fn everything_comes_back_by_itself() {
    let own = Own::start().await;
    let balancer = Balancer::start(&[]).await.unwrap();
    let mut options = own.options("drill").await;
    options.webhook_url = WebhookUrl::At(balancer.address());
    let mut kimup = KimupProcess::start(options.clone()).await.unwrap();
    balancer.set_backends(&[kimup.webhook()]);
    own.registry.push("app", "1.0.0").await.unwrap();
    let image = own.registry.image("app");
    let (text, wanted) = (format!("{image}:0.9.0"), format!("{image}:1.0.0"));
    let shop = own.shop("drill").await;
    shop.create_image("app", &json!({"spec": {"image": image}})).await;
    shop.settles("app", "1.0.0").await;
    admits(&shop, &text, &wanted).await;
    workloads(&shop, &text).await;
    eventually(DEADLINE, "everything runs", async || running(&shop, &wanted).await).await;
    // However that came about, kimup's own Namespace is opted in as well.
    own.cluster.kubectl_ok(&["label", "namespace", SYSTEM, &format!("{ENABLED}=true")]).await.unwrap();
    own.cluster.apply_deploy(&["Deployment"]).await.unwrap();

    kimup.kill();
    balancer.set_backends(&[]);
    drain(&own, &shop).await;
    job(&shop, &text).await;
    let kimups = Shop { namespace: SYSTEM.to_owned(), client: own.cluster.client().await.unwrap() };
    drain(&own, &kimups).await;
    eventually(DEADLINE, "kimup's own Pods are created while nobody answers", async || {
        let pods = kimups.pods().await;
        pods.len() == 2 && pods.iter().all(is_ready)
    })
    .await;
    eventually(DEADLINE * 3, "the controllers are denied and wait", async || {
        let counts = denials(&shop).await;
        if counts.iter().all(|(kind, count)| *count >= DENIALS || kind == "Job") {
            Ok(())
        } else {
            Err(format!("{counts:?}"))
        }
    })
    .await;
    assert_eq!(shop.pods().await.len(), 0, "`fail` denies");

    own.expire_lease("kimup-url").await;
    let started = Instant::now();
    kimup = KimupProcess::start(options).await.unwrap();
    balancer.set_backends(&[kimup.webhook()]);
    leads(&kimup, DEADLINE).await;
    eventually(DEADLINE, "everything runs again", async || running(&shop, &wanted).await).await;
    eventually(DEADLINE, "the Job's Pod too", async || {
        let pods = shop.api::<Pod>().list(&ListParams::default().labels("app=once")).await.unwrap();
        pods.items.iter().any(|p| image_of(p, "app") == wanted)
    })
    .await;
    let took = started.elapsed();
    println!("everything runs {:.1} s after kimup was started", took.as_secs_f64());
    assert!(took < BACK_WITHIN, "{took:?}");
    nudged_without_a_trace(&shop).await;
}

/// The mark stands on the owners only: no template changed, and nothing is nudged that has its Pods.
async fn nudged_without_a_trace(shop: &Shop) {
    let sets = shop.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap();
    assert_eq!(sets.items.len(), 1, "no rollout");
    // Whose controller tried by itself in time is not nudged: not all of them, then.
    let mut marks = vec![sets.items[0].annotations().get(NUDGED).cloned()];
    marks.push(shop.api::<StatefulSet>().get("db").await.unwrap().annotations().get(NUDGED).cloned());
    marks.push(shop.api::<DaemonSet>().get("agent").await.unwrap().annotations().get(NUDGED).cloned());
    let marks: Vec<String> = marks.into_iter().flatten().collect();
    assert!(!marks.is_empty(), "nobody was nudged");
    for time in marks {
        time.parse::<jiff::Timestamp>().unwrap();
    }
    for _ in 0..3 {
        shop.sync("app").await;
    }
    let again = shop.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap();
    assert_eq!(again.items[0].annotations().get(NUDGED), sets.items[0].annotations().get(NUDGED), "once");
}
