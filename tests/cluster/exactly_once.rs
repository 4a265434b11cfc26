//! Rollouts under kills, partitions and an API server that fails: each happens once, none is lost, nothing goes back.
//!
//! A run is a namespace of its own with an Image and three workloads, through which random tags come. Ten runs share a
//! wave of trouble. `KIMUP_CHAOS_RUNS=200` has more of them, `KIMUP_SEED` repeats the choices (not their timing).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::TryStreamExt as _;
use futures::future::join_all;
use k8s_openapi::api::apps::v1::{ControllerRevision, Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::Pod;
use kimup::api::Image;
use kimup_testbed::{ApiFault, ApiProxy, Balancer, KimupProcess, ScriptedRegistry, WebhookUrl, eventually};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::watcher::{self, Event};
use serde_json::{Value, json};

use crate::own::{Own, SYSTEM, one_leads};
use crate::support::{ENABLED, Shop, deployment, image_of};

/// Runs that share a wave of trouble.
const AT_ONCE: u64 = 10;
/// How long tags are pushed in a wave, at least and, where the machine is so slow that some trouble has not come by then,
/// at most.
const PUSHING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));
/// After the last trouble: a Lease runs out, controllers pause after denials, workloads go one after the other.
const CONVERGES_WITHIN: Duration = Duration::from_secs(120);
const STAMP: &str = "stamp.kimup.cloudavenue.io/app";

/// Kinds of trouble, besides calls that fail all the time.
const KINDS: u8 = 6;

/// What happened, for the report of a test that may have had too little trouble to mean anything.
#[derive(Default)]
struct Count {
    rollouts: AtomicU64,
    faults: AtomicU64,
    kills: AtomicU64,
    cuts: AtomicU64,
}

impl Count {
    fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }

    fn of(counter: &AtomicU64) -> u64 {
        counter.load(Ordering::Relaxed)
    }
}

/// A kimup behind an API server of bad days.
struct Replica {
    kimup: KimupProcess,
    proxy: ApiProxy,
}

struct Trouble {
    own: Own,
    balancer: Balancer,
    replicas: Vec<Replica>,
    /// Of 1,000 writes so many fail in some way; of the reads a third of that.
    rate: Arc<AtomicU32>,
    count: Arc<Count>,
}

fn fault(rng: &mut Rng, method: &str, rate: u32) -> ApiFault {
    let reads = method == "GET";
    if rng.u32(..1000) >= if reads { rate / 3 } else { rate } {
        return ApiFault::After(Duration::ZERO);
    }
    match rng.u8(..if reads { 3 } else { 6 }) {
        0 => ApiFault::After(Duration::from_millis(rng.u64(..700))),
        1 => ApiFault::Refused(429),
        2 => ApiFault::Refused(500),
        3 => ApiFault::DoneBut(504),
        _ => ApiFault::DoneAndLost,
    }
}

impl Trouble {
    async fn start(seed: u64, registry: &ScriptedRegistry) -> Self {
        let own = Own::start().await;
        let balancer = Balancer::start(&[]).await.unwrap();
        let (rate, count) = (Arc::new(AtomicU32::new(0)), Arc::new(Count::default()));
        let mut replicas = Vec::new();
        for (n, name) in ["first", "second"].into_iter().enumerate() {
            let mut rng = Rng::with_seed(seed + n as u64);
            let (rate, count) = (rate.clone(), count.clone());
            let script = move |method: &_, _: &str| {
                let fault = fault(&mut rng, &format!("{method}"), rate.load(Ordering::Relaxed));
                Count::add(&count.faults, u64::from(fault != ApiFault::After(Duration::ZERO)));
                fault
            };
            let proxy = ApiProxy::start(&own.cluster.address(), own.cluster.ca_pem(), script).await.unwrap();
            let mut options = own.options(name).await;
            let through = format!("http://{}", proxy.address());
            options.kubeconfig = own.cluster.kubeconfig_via(SYSTEM, "kimup", &through).await.unwrap();
            options.args.extend(["--plain-http-registry".to_owned(), registry.host()]);
            options.webhook_url = WebhookUrl::At(balancer.address());
            replicas.push(Replica { kimup: KimupProcess::start(options).await.unwrap(), proxy });
        }
        let trouble = Self { own, balancer, replicas, rate, count };
        trouble.aim();
        one_leads(trouble.replicas.iter().map(|replica| &replica.kimup)).await;
        crate::support::configured(&trouble.own.cluster).await;
        trouble
    }

    fn aim(&self) {
        self.balancer.set_backends(&self.replicas.iter().map(|r| r.kimup.webhook()).collect::<Vec<_>>());
    }

    /// SIGKILL, and a new process in its place.
    async fn kill(&mut self, rng: &mut Rng) {
        let mut replica = self.replicas.remove(rng.usize(..self.replicas.len()));
        let led = replica.kimup.metric("kimup_leader", &[]).await.is_ok_and(|leads| leads > 0.0);
        replica.kimup.kill();
        Count::add(&self.count.kills, 1);
        self.aim();
        // Now and then nobody waits for the Lease of the dead one to run out.
        if led && rng.u8(..4) > 0 {
            self.own.expire_lease("kimup-url").await;
        }
        let rate = self.rate.swap(0, Ordering::Relaxed); // a start gives up after some failures, as a Pod would
        let kimup = replica.kimup.start_again().await.unwrap();
        self.rate.store(rate, Ordering::Relaxed);
        self.replicas.push(Replica { kimup, proxy: replica.proxy });
        self.aim();
    }

    /// Something happens every second or so: each kind of trouble once, then any.
    async fn rage(&mut self, rng: &mut Rng, over: &AtomicBool) {
        let (began, failed) = (Instant::now(), Count::of(&self.count.faults));
        let mut first: Vec<u8> = (0..KINDS).collect();
        rng.shuffle(&mut first);
        loop {
            let enough = first.is_empty() && Count::of(&self.count.faults) > failed && began.elapsed() > PUSHING.0;
            if enough || began.elapsed() > PUSHING.1 {
                break;
            }
            self.rate.store(rng.u32(50..250), Ordering::Relaxed);
            let pause = Duration::from_millis(rng.u64(200..1500));
            let kind = first.pop().unwrap_or_else(|| rng.u8(..KINDS));
            self.happens(kind, rng, pause).await;
            tokio::time::sleep(pause).await;
        }
        self.rate.store(0, Ordering::Relaxed);
        over.store(true, Ordering::Relaxed);
    }

    async fn happens(&mut self, kind: u8, rng: &mut Rng, pause: Duration) {
        let victim = rng.usize(..self.replicas.len());
        match kind {
            0 | 1 => self.kill(rng).await,
            2 => {
                self.replicas[victim].proxy.cut_off(true);
                Count::add(&self.count.cuts, 1);
                // Longer than a Lease now and then: the other one leads meanwhile.
                let long = Duration::from_secs(if rng.u8(..8) == 0 { 20 } else { 2 });
                tokio::time::sleep(long).await;
                self.replicas[victim].proxy.cut_off(false);
            }
            3 => {
                self.replicas[victim].kimup.freeze().unwrap();
                tokio::time::sleep(pause).await;
                self.replicas[victim].kimup.thaw().unwrap();
            }
            _ => {} // only calls fail
        }
    }
}

/// One run.
struct Run {
    shop: Shop,
    path: String,
    newest: u64,
    rng: Rng,
}

impl Run {
    async fn new(trouble: &Trouble, registry: &ScriptedRegistry, number: u64, seed: u64) -> Self {
        let shop = Shop::new(&trouble.own.cluster, &format!("once-{number}"), &[(ENABLED, "true")], &[]).await;
        let path = format!("{}/app", shop.namespace);
        let mut run = Self { shop, path, newest: 0, rng: Rng::with_seed(seed.wrapping_add(number * 7919)) };
        run.list(registry);
        let repository = registry.image(&run.path);
        let most = run.rng.u8(1..4);
        let spec = json!({"spec": {"image": repository, "rollout": {"maxConcurrent": most, "minInterval": "0s"}}});
        run.shop.create_image("app", &spec).await;
        run.shop.settles("app", "1.0.0").await;
        let text = format!("{repository}:1.0.0");
        // No revision of many rollouts is forgotten.
        let all = 100;
        run.shop.create_deployment("web", &text, &json!({"spec": {"revisionHistoryLimit": all}})).await;
        run.shop.create_deployment("api", &text, &json!({"spec": {"revisionHistoryLimit": all, "replicas": 1}})).await;
        let spec = json!({"spec": {"revisionHistoryLimit": all, "serviceName": "db"}});
        let mut set = serde_json::to_value(deployment("db", &text, &spec)).unwrap();
        set["kind"] = json!("StatefulSet");
        let set: StatefulSet = serde_json::from_value(set).unwrap();
        run.shop.api::<StatefulSet>().create(&PostParams::default(), &set).await.unwrap();
        run
    }

    fn list(&self, registry: &ScriptedRegistry) {
        let tags: Vec<String> = (0..=self.newest).map(|n| format!("1.{n}.0")).collect();
        registry.set_tags(&self.path, &tags.iter().map(String::as_str).collect::<Vec<_>>());
    }

    async fn push(&mut self, registry: &ScriptedRegistry, over: &AtomicBool) {
        while !over.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(self.rng.u64(..5000))).await;
            self.newest += self.rng.u64(1..3);
            self.list(registry);
            self.refresh().await;
        }
    }

    async fn refresh(&mut self) {
        let at = self.rng.u64(..).to_string();
        self.shop.annotate_image("app", "kimup.cloudavenue.io/requestedAt", Some(&at)).await;
    }

    /// Everything runs the newest tag.
    async fn converged(&self) -> Result<(), String> {
        let status = self.shop.status("app").await;
        let newest = format!("1.{}.0", self.newest);
        if status.tag.as_deref() != Some(&newest) || status.rollout.is_some() {
            return Err(format!("{}: {}", self.shop.namespace, serde_json::to_string(&status).unwrap()));
        }
        let pods = self.shop.pods().await;
        let wrong = pods.iter().find(|pod| !image_of(pod, "app").ends_with(&format!(":{newest}")));
        match wrong {
            None if pods.len() == 5 => Ok(()),
            None => Err(format!("{}: {} of 5 Pods", self.shop.namespace, pods.len())),
            Some(pod) => Err(format!("{}: {} runs {}", self.shop.namespace, pod.name_any(), image_of(pod, "app"))),
        }
    }

    /// How many rollouts there were; each once, and forward.
    async fn history(&self) -> u64 {
        let mut rollouts = 0;
        for name in ["web", "api"] {
            let object = self.shop.api::<Deployment>().get(name).await.unwrap();
            let sets = self.shop.api::<ReplicaSet>().list(&ListParams::default()).await.unwrap();
            let own = sets.iter().filter(|set| set.owner_references().iter().any(|o| o.name == name));
            let stamps = own.map(|set| {
                let number = set.annotations()["deployment.kubernetes.io/revision"].parse().unwrap();
                (number, set.spec.template.as_ref().and_then(|t| t.metadata.clone()?.annotations?.get(STAMP).cloned()))
            });
            rollouts += self.check(&format!("Deployment/{name}"), object.metadata.generation, stamps.collect());
        }
        let object = self.shop.api::<StatefulSet>().get("db").await.unwrap();
        let revisions = self.shop.api::<ControllerRevision>().list(&ListParams::default()).await.unwrap();
        let stamps = revisions.iter().map(|revision| {
            let annotations = revision.data.0.pointer("/spec/template/metadata/annotations");
            let stamp = annotations.and_then(|map| map.get(STAMP)).and_then(Value::as_str);
            (revision.revision.unwrap_or_default(), stamp.map(str::to_owned))
        });
        rollouts + self.check("StatefulSet/db", object.metadata.generation, stamps.collect())
    }

    fn check(&self, what: &str, generation: Option<i64>, mut revisions: Vec<(i64, Option<String>)>) -> u64 {
        let what = format!("{what} of {}", self.shop.namespace);
        revisions.sort_unstable();
        let stamps: Vec<u64> = revisions.iter().filter_map(|(_, stamp)| stamp.as_deref().map(minor)).collect();
        assert!(stamps.is_sorted_by(|a, b| a < b), "{what} went back or was rolled twice: {revisions:?}");
        // Each write that changed the template made a revision of its own: none was taken back in between.
        let changes = i64::try_from(stamps.len()).unwrap();
        assert_eq!(generation, Some(1 + changes), "{what} was changed beside its rollouts: {revisions:?}");
        stamps.len() as u64
    }
}

fn minor(reference: &str) -> u64 {
    let mut parts = reference.rsplit(':').next().unwrap().split('.');
    parts.nth(1).unwrap().parse().unwrap()
}

/// What must never be seen, not even for a moment.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Observed>>);

#[derive(Default)]
struct Observed {
    /// By revision: its image.
    revisions: HashMap<(String, String), String>,
    /// By UID of an Image: its settled tag.
    tags: HashMap<String, u64>,
    faults: Vec<String>,
}

impl Observed {
    fn see_pod(&mut self, pod: &Pod) {
        let labels = ["pod-template-hash", "controller-revision-hash"];
        let Some(hash) = labels.iter().find_map(|label| pod.labels().get(*label)).cloned() else { return };
        let runs = image_of(pod, "app");
        let key = (pod.owner_references()[0].uid.clone(), hash);
        let first = self.revisions.entry(key).or_insert_with(|| runs.clone()).clone();
        if first != runs {
            self.faults.push(format!("{}: a revision runs {first} and {runs}", pod.name_any()));
        }
    }

    fn see_image(&mut self, image: &Image) {
        let Some(tag) = image.status.as_ref().and_then(|s| s.tag.as_deref()).map(minor) else { return };
        let before = self.tags.insert(image.uid().unwrap(), tag);
        if before.is_some_and(|before| before > tag) {
            self.faults.push(format!("{} went back from {before:?} to {tag}", image.namespace().unwrap()));
        }
    }
}

impl Seen {
    async fn watch<K>(self, client: kube::Client, see: fn(&mut Observed, &K))
    where
        K: kube::Resource<DynamicType = ()> + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    {
        let selected = watcher::watcher(Api::<K>::all(client), watcher::Config::default());
        let _ = selected
            .try_for_each(async |event| {
                if let Event::Apply(object) | Event::InitApply(object) = event {
                    let mut seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
                    if object.namespace().is_some_and(|namespace| namespace.contains("once-")) {
                        see(&mut seen, &object);
                    }
                }
                Ok(())
            })
            .await;
    }
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[tokio::test]
async fn each_rollout_happens_exactly_once() {
    let seed = number("KIMUP_SEED").unwrap_or_else(|| fastrand::u64(..100_000));
    let runs = number("KIMUP_CHAOS_RUNS").unwrap_or(AT_ONCE);
    println!("KIMUP_SEED={seed} repeats the choices of this run");
    let registry = ScriptedRegistry::start().await.unwrap();
    let mut trouble = Trouble::start(seed, &registry).await;
    let (record, client) = (Seen::default(), trouble.own.cluster.client().await.unwrap());
    let mut watches = tokio::task::JoinSet::new();
    watches.spawn(record.clone().watch::<Pod>(client.clone(), Observed::see_pod));
    watches.spawn(record.clone().watch::<Image>(client.clone(), Observed::see_image));
    let mut rng = Rng::with_seed(seed);
    for first in (0..runs).step_by(usize::try_from(AT_ONCE).unwrap()) {
        let numbers = first..runs.min(first + AT_ONCE);
        let mut wave = join_all(numbers.map(|number| Run::new(&trouble, &registry, number, seed))).await;
        let over = AtomicBool::new(false);
        tokio::join!(trouble.rage(&mut rng, &over), join_all(wave.iter_mut().map(|run| run.push(&registry, &over))));
        join_all(wave.iter_mut().map(Run::refresh)).await;
        let healed = Instant::now();
        for run in &wave {
            eventually(CONVERGES_WITHIN, "no rollout is lost", async || run.converged().await).await;
            Count::add(&trouble.count.rollouts, run.history().await);
        }
        let Count { rollouts, faults, kills, cuts } = &*trouble.count;
        let (of, took) = (Count::of, healed.elapsed().as_secs_f64());
        println!(
            "{} runs, {} rollouts, {} failed calls, {} kills, {} partitions; the last ten converged in {took:.1} s",
            first + wave.len() as u64,
            of(rollouts),
            of(faults),
            of(kills),
            of(cuts)
        );
        let faults = std::mem::take(&mut record.0.lock().unwrap_or_else(PoisonError::into_inner).faults);
        assert!(faults.is_empty(), "{faults:#?}");
        join_all(wave.iter().map(|run| empty(&client, &run.shop.namespace))).await;
    }
    let Count { rollouts, faults, kills, cuts } = &*trouble.count;
    let enough = [faults, kills, cuts].iter().all(|count| Count::of(count) > 0) && Count::of(rollouts) > runs;
    assert!(enough, "too little trouble to mean anything");
}

/// What was checked makes room: the control plane and kimup are those of a small machine.
async fn empty(client: &kube::Client, namespace: &str) {
    let (delete, all) = (DeleteParams::background(), ListParams::default());
    let _ = Api::<Image>::namespaced(client.clone(), namespace).delete_collection(&delete, &all).await;
    let _ = Api::<Deployment>::namespaced(client.clone(), namespace).delete_collection(&delete, &all).await;
    let _ = Api::<StatefulSet>::namespaced(client.clone(), namespace).delete_collection(&delete, &all).await;
}
