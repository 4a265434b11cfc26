//! Both replicas gone, the nodes drained, `fail` everywhere: the cluster and kimup come back by themselves.
//!
//! Each replica is the two processes of a Pod of `deploy/`, and the Pods themselves are simulated beside them: they show that
//! kimup's own Pods are evicted and created with nobody to answer. What is not shown is how long a kubelet takes to pull an
//! image and start a container.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kimup::api::annotations::NUDGED;
use kimup_testbed::{Balancer, KimupOptions, KimupProcess, WebhookUrl, eventually};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::own::{Own, SYSTEM, admits};
use crate::support::{DEADLINE, ENABLED, Shop, image_of, is_ready};

/// The bar: everything runs again within this time after kimup's processes may start again, of which 15 s are the Lease of
/// the leader that was killed.
const BACK_WITHIN: Duration = Duration::from_secs(30);
/// Kinds whose controllers were denied.
const KINDS: [&str; 4] = ["ReplicaSet", "StatefulSet", "DaemonSet", "Job"];
/// Longest pause of the Job controller; that of the others is of 16 minutes.
const JOB_PAUSE: Duration = Duration::from_secs(60);

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

/// A Pod of `deploy/`: the webhook, and sync beside it.
struct Replica {
    webhook: KimupProcess,
    sync: KimupProcess,
}

impl Replica {
    async fn start([webhook, sync]: [KimupOptions; 2]) -> Self {
        let (webhook, sync) = tokio::join!(KimupProcess::start(webhook), KimupProcess::start(sync));
        Self { webhook: webhook.unwrap(), sync: sync.unwrap() }
    }

    async fn leads(&self) -> bool {
        self.sync.metric("kimup_leader", &[]).await.is_ok_and(|leads| leads > 0.0)
    }
}

/// How the two processes of a replica are started.
async fn options(own: &Own, service: &Balancer, name: &str) -> [KimupOptions; 2] {
    let socket = own.cluster.folder().join(format!("{name}.sock")).display().to_string();
    let [mut webhook, mut sync] =
        [own.options(&format!("webhook-{name}")).await, own.options(&format!("sync-{name}")).await];
    webhook.args.truncate(4); // it knows no registries
    for (options, command) in [(&mut webhook, "webhook"), (&mut sync, "sync")] {
        command.clone_into(&mut options.command);
        options.webhook_url = WebhookUrl::At(service.address());
        options.args.extend(["--sync-socket".to_owned(), socket.clone()]);
    }
    [webhook, sync]
}

/// Both replicas, as soon as they are ready, in their Service.
async fn both(options: &[[KimupOptions; 2]; 2], service: &Balancer) -> [Replica; 2] {
    let [a, b] = options.clone();
    let replicas = <[Replica; 2]>::from(tokio::join!(Replica::start(a), Replica::start(b)));
    service.set_backends(&[replicas[0].webhook.webhook(), replicas[1].webhook.webhook()]);
    replicas
}

async fn one_leads(replicas: &[Replica; 2]) {
    eventually(DEADLINE, "one leads", async || replicas[0].leads().await || replicas[1].leads().await).await;
}

async fn cordon(own: &Own, closed: bool) {
    let nodes: Api<Node> = Api::all(own.cluster.client().await.unwrap());
    for node in nodes.list(&ListParams::default()).await.unwrap() {
        let name = node.name_any();
        if closed {
            nodes.cordon(&name).await.unwrap()
        } else {
            nodes.uncordon(&name).await.unwrap()
        };
    }
}

async fn evict(shop: &Shop, pod: &Pod) -> Result<(), String> {
    let params =
        EvictParams { delete_options: Some(DeleteParams::default().grace_period(0)), ..EvictParams::default() };
    shop.api::<Pod>().evict(&pod.name_any(), &params).await.map(drop).map_err(|error| error.to_string())
}

/// `deploy/`'s Pods run, though nothing runs in them, and its budget keeps one of them.
async fn deployed(own: &Own) -> Shop {
    // However that came about, kimup's own Namespace is opted in as well.
    own.cluster.kubectl_ok(&["label", "namespace", SYSTEM, &format!("{ENABLED}=true")]).await.unwrap();
    own.cluster.apply_deploy(&["Deployment", "PodDisruptionBudget"]).await.unwrap();
    let kimups = Shop { namespace: SYSTEM.to_owned(), client: own.cluster.client().await.unwrap() };
    two_run(&kimups, &[]).await;
    eventually(DEADLINE, "the budget allows one eviction", async || {
        let budget = kimups.api::<PodDisruptionBudget>().get("kimup").await.unwrap();
        budget.status.is_some_and(|status| status.disruptions_allowed == Some(1))
    })
    .await;
    kimups
}

/// Two Pods of kimup's are ready, none of them one of these.
async fn two_run(kimups: &Shop, before: &[String]) {
    eventually(DEADLINE, "two Pods of kimup's own", async || {
        let pods = kimups.pods().await;
        pods.len() == 2 && pods.iter().all(|pod| is_ready(pod) && !before.contains(&pod.name_any()))
    })
    .await;
}

/// Nodes are drained by the Eviction API, as `kubectl drain` does it; the Pods of a DaemonSet go with their Node.
async fn drain(own: &Own, shop: &Shop, kimups: &Shop, replicas: &mut [Replica; 2]) {
    cordon(own, true).await;
    let own_pods = kimups.pods().await;
    evict(kimups, &own_pods[0]).await.unwrap();
    let refused = evict(kimups, &own_pods[1]).await.unwrap_err();
    assert!(refused.contains("disruption budget"), "one of two stays: {refused}");

    for replica in replicas {
        replica.webhook.kill();
        replica.sync.kill();
    }
    let unready = json!({"status": {"conditions": [{"type": "Ready", "status": "False"}]}});
    let unready = Patch::Strategic(unready);
    kimups.api::<Pod>().patch_status(&own_pods[1].name_any(), &PatchParams::default(), &unready).await.unwrap();
    for pod in shop.pods().await {
        evict(shop, &pod).await.unwrap();
    }
    // The one that nobody can schedule, and the one that serves nobody any more: the budget lets it go.
    let mut gone: Vec<String> = vec![own_pods[0].name_any()];
    for pod in kimups.pods().await {
        eventually(DEADLINE, "the budget lets it go", async || evict(kimups, &pod).await).await;
        gone.push(pod.name_any());
    }
    cordon(own, false).await;
    two_run(kimups, &gone).await;
}

/// How often the controllers were denied, and for how long they will not try by themselves.
#[derive(Default)]
struct Denials(BTreeMap<&'static str, Denial>);

struct Denial {
    count: i64,
    last: Instant,
    /// Between the last two.
    pause: Duration,
}

impl Denials {
    async fn look(&mut self, shop: &Shop) {
        let events = shop.api::<Event>().list(&ListParams::default()).await.unwrap();
        for kind in KINDS {
            let of_kind = |event: &&Event| event.involved_object.kind.as_deref() == Some(kind);
            let failed = events.items.iter().filter(|e| e.reason.as_deref() == Some("FailedCreate")).filter(of_kind);
            let blaming = failed.filter(|e| e.message.as_deref().is_some_and(|m| m.contains("failed calling webhook")));
            let times = blaming.map(|e| e.series.as_ref().and_then(|s| s.count).or(e.count).unwrap_or(1));
            let (count, now) = (times.map(i64::from).sum(), Instant::now());
            let known = self.0.entry(kind).or_insert(Denial { count: 0, last: now, pause: Duration::ZERO });
            if count != known.count {
                *known = Denial { count, last: now, pause: now - known.last };
            }
        }
    }

    /// Until the first of them tries by itself: each pause is twice as long as the one before.
    fn quiet_for(&self) -> Duration {
        let left = |(kind, denial): (&&str, &Denial)| {
            let longest = if *kind == "Job" { JOB_PAUSE } else { Duration::MAX };
            (denial.pause * 2).min(longest).saturating_sub(denial.last.elapsed())
        };
        self.0.iter().map(left).min().unwrap_or_default()
    }

    fn say(&self) -> String {
        self.0
            .iter()
            .map(|(kind, denial)| format!("{kind} {} ({:.1?})", denial.count, denial.pause))
            .collect::<Vec<_>>()
            .join(", ")
    }
}

#[tokio::test]
async fn everything_comes_back_by_itself() {
    let own = Own::start().await;
    let service = Balancer::start(&[]).await.unwrap();
    let options = [options(&own, &service, "a").await, options(&own, &service, "b").await];
    let mut replicas = both(&options, &service).await;
    one_leads(&replicas).await;
    own.registry.push("app", "1.0.0").await.unwrap();
    let image = own.registry.image("app");
    let (text, wanted) = (format!("{image}:0.9.0"), format!("{image}:1.0.0"));
    let shop = own.shop("drill").await;
    shop.create_image("app", &json!({"spec": {"image": image}})).await;
    shop.settles("app", "1.0.0").await;
    admits(&shop, &text, &wanted).await;
    workloads(&shop, &text).await;
    eventually(DEADLINE, "everything runs", async || running(&shop, &wanted).await).await;
    let kimups = deployed(&own).await;
    let before = own.writes("kimup").len();

    drain(&own, &shop, &kimups, &mut replicas).await;
    job(&shop, &text).await;
    let mut denials = Denials::default();
    eventually(DEADLINE * 3, "the controllers are denied and wait for longer than the bar", async || {
        denials.look(&shop).await;
        if denials.quiet_for() > BACK_WITHIN { Ok(()) } else { Err(denials.say()) }
    })
    .await;
    println!("denied, and pauses before the last denial: {}", denials.say());
    assert_eq!(shop.pods().await.len(), 0, "`fail` denies");

    let started = Instant::now();
    let replicas = both(&options, &service).await;
    let ready = started.elapsed();
    one_leads(&replicas).await;
    let leads = started.elapsed();
    eventually(DEADLINE, "everything runs again", async || running(&shop, &wanted).await).await;
    eventually(DEADLINE, "the Job's Pod too", async || {
        let pods = shop.api::<Pod>().list(&ListParams::default().labels("app=once")).await.unwrap();
        pods.items.iter().any(|p| image_of(p, "app") == wanted)
    })
    .await;
    let took = started.elapsed();
    println!(
        "after {ready:.1?} both replicas are ready, after {leads:.1?} one leads, after {took:.1?} everything runs"
    );
    assert!(took < BACK_WITHIN, "{took:?}");
    each_was_nudged_once(&own, &shop, before).await;
}

/// Each owner, its mark, and nothing else: no template changed. `before` writes of kimup's were before.
async fn each_was_nudged_once(own: &Own, shop: &Shop, before: usize) {
    let sets = shop.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap();
    assert_eq!(sets.items.len(), 1, "no rollout");
    let marks = [
        sets.items[0].annotations().get(NUDGED).cloned(),
        shop.api::<StatefulSet>().get("db").await.unwrap().annotations().get(NUDGED).cloned(),
        shop.api::<DaemonSet>().get("agent").await.unwrap().annotations().get(NUDGED).cloned(),
        shop.api::<Job>().get("once").await.unwrap().annotations().get(NUDGED).cloned(),
    ];
    for mark in &marks {
        mark.as_ref().unwrap_or_else(|| panic!("not nudged: {marks:?}")).parse::<jiff::Timestamp>().unwrap();
    }
    for _ in 0..3 {
        shop.sync("app").await;
    }
    let set = format!("patch replicasets drill/{}", sets.items[0].name_any());
    let mut nudges: Vec<String> = own.writes("kimup").split_off(before);
    nudges.retain(|write| write.starts_with("patch ") && !write.contains("images") && !write.contains("events"));
    nudges.sort();
    assert_eq!(
        nudges,
        ["patch daemonsets drill/agent", "patch jobs drill/once", &set, "patch statefulsets drill/db"],
        "each owner once, and nobody else"
    );
}
