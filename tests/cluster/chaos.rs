//! A storm: random pushes, failures, kills and edits from a seed, while what must always hold is checked.
//!
//! `KIMUP_SEED` repeats the choices of a run (not its timing), `KIMUP_CHAOS_SECONDS` makes it longer.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures::StreamExt as _;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kimup::api::annotations::STAMP_PREFIX;
use kimup::api::{Applied, Image, ImageStatus};
use kimup::index::watched;
use kimup_testbed::{Balancer, FaultReply, KimupProcess, ScriptedRegistry, WebhookUrl, eventually};
use kube::ResourceExt as _;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use kube::runtime::watcher::{Config, Event};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::task::JoinSet;

use crate::own::{Own, SYSTEM, admits, one_leads};
use crate::support::{ENABLED, FAILURE_POLICY, Shop, image_of, is_ready};

/// After the last action: rollouts wait for each other, and controllers pause after denials.
const CONVERGES_WITHIN: Duration = Duration::from_secs(75);
/// Opted in by the Namespace's label, by its annotation, by Pod templates.
const STEADY: [&str; 3] = ["chaos-label", "chaos-note", "chaos-pods"];
/// Its Images are deleted and made again.
const IMAGES: &str = "chaos-images";
/// Opts in and out, fails and ignores: only what holds there too is checked.
const LOOSE: &str = "chaos-loose";
/// Name of the Deployments that nobody touches.
const CALM: [&str; 2] = ["calm", "pair"];
/// Names of the Images, of their repositories and of the containers that run them.
const PARTS: [&str; 2] = ["app", "side"];

type Version = (u64, u64, u64);

fn version(reference: &str) -> Version {
    let tag = reference.rsplit_once(':').map_or(reference, |(_, tag)| tag);
    let mut numbers = tag.split('.').map(|n| n.parse().unwrap());
    (numbers.next().unwrap(), numbers.next().unwrap(), numbers.next().unwrap())
}

/// What was seen, and what of it must not have been.
#[derive(Default)]
struct Checker {
    /// The image of a container of a revision, and the Pod that told.
    revisions: HashMap<(String, String, String), (String, String)>,
    /// The texts of the `ReplicaSets`, by UID and container.
    texts: HashMap<(String, String), String>,
    /// The `ReplicaSets` of an untouched Deployment, by its UID and stamps.
    rolled: HashMap<(String, String), BTreeSet<String>>,
    /// The settled tag of an Image, by UID.
    tags: HashMap<String, Version>,
    /// The newest tag that an Image first named.
    first: HashMap<String, Version>,
    said: BTreeSet<String>,
    faults: Vec<String>,
    trace: Vec<String>,
    began: Option<Instant>,
}

impl Checker {
    fn say(&mut self, what: &str) {
        let at = self.began.map_or(0.0, |began| began.elapsed().as_secs_f64());
        self.trace.push(format!("{at:7.3} {what}"));
    }

    fn say_once(&mut self, what: String) {
        if !self.said.contains(&what) {
            self.say(&what);
            self.said.insert(what);
        }
    }

    fn fault(&mut self, what: &str) {
        self.say(&format!("FAULT {what}"));
        self.faults.push(what.to_owned());
    }

    fn see_pod(&mut self, pod: &Pod) {
        let namespace = pod.namespace().unwrap();
        let name = format!("Pod {namespace}/{}", pod.name_any());
        let owner = pod.owner_references().iter().find(|o| o.controller == Some(true));
        let (Some(owner), Some(spec)) = (owner, &pod.spec) else { return };
        let hash = ["pod-template-hash", "controller-revision-hash"].iter().find_map(|l| pod.labels().get(*l)).cloned();
        let revision = hash.unwrap_or_default();
        if self.said.insert(name.clone()) {
            let images: Vec<_> = spec.containers.iter().map(|c| version(&image_of(pod, &c.name))).collect();
            let applied = pod.annotations().get("kimup.cloudavenue.io/applied");
            self.say(&format!("{name} revision {revision} runs {images:?} {}", applied.map_or("", |a| a)));
        }
        for container in &spec.containers {
            let runs = container.image.clone().unwrap();
            let applied = Applied::of(pod.annotations()).into_iter().find(|a| a.container == container.name);
            let text = self.texts.get(&(owner.uid.clone(), container.name.clone())).cloned();
            for own in [text, applied.and_then(|a| a.from)].into_iter().flatten() {
                if version(&runs) < version(&own) {
                    self.fault(&format!("{name} runs {runs}, older than its own {own}"));
                }
            }
            if namespace == LOOSE || namespace == IMAGES {
                continue;
            }
            let key = (owner.uid.clone(), revision.clone(), container.name.clone());
            let (before, who) = self.revisions.entry(key).or_insert_with(|| (runs.clone(), name.clone())).clone();
            if before != runs {
                self.fault(&format!("{name} of {} runs {runs}, but {who} runs {before}", owner.name));
            }
        }
    }

    fn see_set(&mut self, set: &ReplicaSet) {
        let uid = set.uid().unwrap();
        let Some(template) = &set.spec.template else { return };
        for container in template.spec.iter().flat_map(|spec| &spec.containers) {
            self.texts.insert((uid.clone(), container.name.clone()), container.image.clone().unwrap());
        }
        let annotations = template.metadata.as_ref().and_then(|m| m.annotations.clone()).unwrap_or_default();
        let stamps: Vec<_> = annotations.into_iter().filter(|(key, _)| key.starts_with(STAMP_PREFIX)).collect();
        let namespace = set.namespace().unwrap();
        let name = format!("{namespace}/{}", set.name_any());
        self.say_once(format!("ReplicaSet {name} stamps {stamps:?}"));
        let owner = set.owner_references().iter().find(|o| o.controller == Some(true));
        let Some(owner) = owner.filter(|o| CALM.contains(&&*o.name) && namespace != LOOSE) else { return };
        let sets = self.rolled.entry((owner.uid.clone(), format!("{stamps:?}"))).or_default();
        if sets.insert(uid) && sets.len() > 1 {
            self.fault(&format!("{name}: untouched Deployment {} was rolled twice for {stamps:?}", owner.name));
        }
    }

    fn see_image(&mut self, image: &Image) {
        let name = format!("Image {}/{}", image.namespace().unwrap(), image.name_any());
        let uid = image.uid().unwrap();
        let status = image.status.clone().unwrap_or_default();
        let rollout = status.rollout.as_ref().map(|r| r.tag.clone());
        let held: Vec<_> = status.held.iter().map(|h| (&h.workload, &h.container, &h.tag, &h.left)).collect();
        let shown = (&status.result, &status.tag, &rollout, &status.workloads, held);
        self.say_once(format!("{name} {uid:.4} {shown:?}"));
        let Some(tag) = status.tag.as_deref().map(version) else { return };
        self.first.entry(uid.clone()).or_insert_with(|| rollout.as_deref().map_or(tag, |r| version(r).max(tag)));
        let before = self.tags.insert(uid, tag);
        if before.is_some_and(|before| before > tag) {
            self.fault(&format!("{name} went back from {before:?} to {tag:?}"));
        }
    }
}

/// Shared by the watches and the driver.
#[derive(Clone, Default)]
struct Record(Arc<Mutex<Checker>>);

impl Record {
    fn with<T>(&self, act: impl FnOnce(&mut Checker) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn watch<K>(self, client: kube::Client, see: fn(&mut Checker, &K))
    where
        K: kube::Resource<DynamicType = ()> + Clone + Debug + DeserializeOwned + Send + 'static,
    {
        // One that fails begins anew, from where it was or with a list.
        let seen = watched(Api::<K>::all(client), Config::default()).for_each(async |event| {
            if let Ok(Event::Apply(object) | Event::InitApply(object)) = event {
                self.with(|checker| see(checker, &object));
            }
        });
        seen.await;
    }
}

struct Storm {
    own: Own,
    registry: ScriptedRegistry,
    balancer: Balancer,
    kimups: Vec<(KimupProcess, bool)>,
    shops: Vec<Shop>,
    /// The newest minor version, by namespace and part.
    newest: BTreeMap<(usize, usize), u64>,
    /// Images made again, by UID: what they must not go behind.
    floors: Vec<(String, Version)>,
    record: Record,
    rng: Rng,
}

impl Storm {
    async fn start(seed: u64) -> (Self, JoinSet<()>) {
        let own = Own::start().await;
        let registry = ScriptedRegistry::start().await.unwrap();
        let balancer = Balancer::start(&[]).await.unwrap();
        let mut kimups = Vec::new();
        for name in ["first", "second"] {
            let mut options = own.options(name).await;
            options.args.extend(["--plain-http-registry".to_owned(), registry.host()]);
            options.webhook_url = WebhookUrl::At(balancer.address());
            kimups.push((KimupProcess::start(options).await.unwrap(), true));
        }
        let mut shops = Vec::new();
        for name in [STEADY[0], STEADY[1], STEADY[2], IMAGES, LOOSE] {
            let (on, none) = ([(ENABLED, "true")], [].as_slice());
            let labels = if STEADY[1..].contains(&name) { none } else { &on };
            let annotations = if name == STEADY[1] { &on } else { none };
            shops.push(Shop::new(&own.cluster, name, labels, annotations).await);
        }
        let record = Record::default();
        record.with(|checker| checker.began = Some(Instant::now()));
        let client = own.cluster.client().await.unwrap();
        let mut watches = JoinSet::new();
        watches.spawn(record.clone().watch::<ReplicaSet>(client.clone(), Checker::see_set));
        watches.spawn(record.clone().watch::<Image>(client.clone(), Checker::see_image));
        watches.spawn(record.clone().watch::<Pod>(client, Checker::see_pod));
        let (newest, floors, rng) = (BTreeMap::new(), Vec::new(), Rng::with_seed(seed));
        let mut storm = Self { own, registry, balancer, kimups, shops, newest, floors, record, rng };
        storm.aim();
        one_leads(storm.kimups.iter().map(|(kimup, _)| kimup)).await;
        storm.fill().await;
        (storm, watches)
    }

    fn aim(&self) {
        let up: Vec<_> = self.kimups.iter().filter(|(_, up)| *up).map(|(kimup, _)| kimup.webhook()).collect();
        self.balancer.set_backends(&up);
    }

    fn repository(&self, shop: usize, part: usize) -> String {
        self.registry.image(&self.path(shop, part))
    }

    fn path(&self, shop: usize, part: usize) -> String {
        format!("{}/{}", self.shops[shop].namespace, PARTS[part])
    }

    fn minor(&self, shop: usize, part: usize) -> u64 {
        self.newest.get(&(shop, part)).copied().unwrap_or_default()
    }

    /// Everything up to this minor version is listed.
    fn list(&self, shop: usize, part: usize, minor: u64) {
        let tags: Vec<String> = (0..=minor).map(|n| format!("1.{n}.0")).collect();
        self.registry.set_tags(&self.path(shop, part), &tags.iter().map(String::as_str).collect::<Vec<_>>());
    }

    async fn fill(&mut self) {
        for shop in 0..self.shops.len() {
            for part in 0..PARTS.len() {
                self.list(shop, part, 0);
                self.create_image(shop, part).await;
            }
            self.shops[shop].settles("app", "1.0.0").await;
            self.shops[shop].settles("side", "1.0.0").await;
        }
        for shop in 0..self.shops.len() {
            let (own, runs) = (self.text(shop, 0, (0, 9, 0)), self.text(shop, 0, (1, 0, 0)));
            admits(&self.shops[shop], &own, &runs).await;
            for name in ["calm", "web"] {
                self.create::<Deployment>(shop, name, &[0]).await;
            }
            for name in ["pair", "duo"] {
                self.create::<Deployment>(shop, name, &[0, 1]).await;
            }
            self.create::<StatefulSet>(shop, "db", &[1]).await;
            self.create::<ReplicaSet>(shop, "bare", &[0]).await;
        }
    }

    fn text(&self, shop: usize, part: usize, (major, minor, patch): Version) -> String {
        format!("{}:{major}.{minor}.{patch}", self.repository(shop, part))
    }

    async fn create_image(&self, shop: usize, part: usize) -> Image {
        let most = if shop == 0 { 3 } else { 1 };
        let spec = json!({"spec": {"image": self.repository(shop, part), "rollout": {"maxConcurrent": most}}});
        self.shops[shop].create_image(PARTS[part], &spec).await
    }

    /// Creates a workload whose containers run these parts.
    async fn create<K>(&self, shop: usize, name: &str, parts: &[usize])
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
        K: Clone + Debug + DeserializeOwned + serde::Serialize,
    {
        let kind = K::kind(&());
        let containers = parts.iter().map(|p| json!({"name": PARTS[*p], "image": self.text(shop, *p, (0, 9, 0))}));
        let mut object = json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
            "spec": {"replicas": 2, "selector": {"matchLabels": {"app": name}}, "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": containers.collect::<Vec<_>>(), "terminationGracePeriodSeconds": 0},
            }},
        });
        if kind == "StatefulSet" {
            object["spec"]["serviceName"] = json!(name);
        }
        if self.shops[shop].namespace == STEADY[2] {
            object["spec"]["template"]["metadata"]["annotations"] = json!({ENABLED: "true"});
        }
        let object: K = serde_json::from_value(object).unwrap();
        self.shops[shop].api::<K>().create(&PostParams::default(), &object).await.unwrap();
    }

    async fn kubectl(&self, shop: usize, args: &[&str]) {
        let namespace = self.shops[shop].namespace.as_str();
        let output = self.own.cluster.kubectl(&[&["-n", namespace], args].concat()).await.unwrap();
        if !output.success {
            self.record.with(|c| c.say(&format!("     {}", output.stderr.trim())));
        }
    }

    fn say(&self, what: &str) {
        self.record.with(|checker| checker.say(&format!("---- {what}")));
    }

    async fn act(&mut self) {
        let (shop, part) = (self.rng.usize(..self.shops.len()), self.rng.usize(..PARTS.len()));
        match self.rng.u8(..20) {
            0..=3 => self.push(shop, &[part]).await,
            4 | 5 => self.push(shop, &[0, 1]).await,
            6 => self.trouble(shop, part).await,
            7 | 8 => self.delete_pods(shop, 4).await,
            9 | 10 => self.scale(shop).await,
            11 | 12 => self.undo(shop).await,
            13 | 14 => self.set_image(shop, part).await,
            15 => self.kill(1).await,
            16 => self.kill(2).await,
            17 => self.make_again(shop).await,
            18 => self.image_again(part).await,
            _ => self.opt().await,
        }
        if self.kimups.iter().any(|(_, up)| !up) && self.rng.bool() {
            self.revive().await;
        }
        tokio::time::sleep(Duration::from_millis(self.rng.u64(..1500))).await;
    }

    async fn push(&mut self, shop: usize, parts: &[usize]) {
        for part in parts {
            let minor = self.minor(shop, *part) + self.rng.u64(1..3);
            self.newest.insert((shop, *part), minor);
            self.say(&format!("push {}:1.{minor}.0", self.path(shop, *part)));
            self.list(shop, *part, minor);
        }
        for part in parts {
            self.refresh(shop, *part).await;
        }
    }

    async fn refresh(&mut self, shop: usize, part: usize) {
        let requested = format!("requestedAt={}", self.rng.u64(..));
        let word = if self.rng.bool() { "action=refresh" } else { &requested };
        let word = format!("kimup.cloudavenue.io/{word}");
        self.kubectl(shop, &["annotate", "kimg", PARTS[part], &word, "--overwrite"]).await;
    }

    async fn trouble(&mut self, shop: usize, part: usize) {
        let (path, kind) = (self.path(shop, part), self.rng.u8(..4));
        self.say(&format!("registry trouble {kind} for {path}"));
        let body = json!({"name": path, "tags": ["1.0.0"]}).to_string();
        match kind {
            0 => self.registry.set_tags(&path, &[]),
            1 => self.registry.set_answer(&path, FaultReply::new(500, "no")),
            2 => self.registry.set_answer(&path, FaultReply::new(200, body)),
            _ => self.registry.set_answer(&path, FaultReply::new(200, "{\"tags\": [").after(Duration::from_secs(1))),
        }
        self.refresh(shop, part).await;
    }

    async fn delete_pods(&mut self, shop: usize, most: usize) {
        let mut pods = self.shops[shop].pods().await;
        self.rng.shuffle(&mut pods);
        for pod in pods.iter().take(most) {
            self.say(&format!("delete Pod {}/{}", self.shops[shop].namespace, pod.name_any()));
            let _ = self.shops[shop].api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await;
        }
    }

    async fn scale(&mut self, shop: usize) {
        let target =
            self.rng.choice(["deployment/web", "deployment/duo", "statefulset/db", "replicaset/bare"]).unwrap();
        let count = self.rng.u8(..5);
        self.say(&format!("scale {} {target} to {count}", self.shops[shop].namespace));
        self.kubectl(shop, &["scale", target, &format!("--replicas={count}")]).await;
    }

    async fn undo(&mut self, shop: usize) {
        let target = self.rng.choice(["deployment/web", "deployment/duo", "statefulset/db"]).unwrap();
        self.say(&format!("undo {} {target}", self.shops[shop].namespace));
        self.kubectl(shop, &["rollout", "undo", target]).await;
    }

    async fn set_image(&mut self, shop: usize, part: usize) {
        let target = if part == 0 { "deployment/web" } else { "deployment/duo" };
        let minor = self.rng.u64(..self.minor(shop, part) + 3);
        let image = format!("{}={}", PARTS[part], self.text(shop, part, (1, minor, 0)));
        self.say(&format!("set image {} {target} {image}", self.shops[shop].namespace));
        self.kubectl(shop, &["set", "image", target, &image]).await;
    }

    async fn kill(&mut self, count: usize) {
        let first = self.rng.usize(..2);
        for n in 0..count {
            let victim = (first + n) % 2;
            self.say(&format!("kill kimup {victim}"));
            let (kimup, up) = &mut self.kimups[victim];
            kimup.kill();
            *up = false;
        }
        if self.rng.bool() {
            self.say("the Lease is gone");
            let leases: Api<Lease> = Api::namespaced(self.shops[0].client.clone(), SYSTEM);
            let _ = leases.delete("kimup-url", &DeleteParams::default()).await;
        }
        tokio::time::sleep(Duration::from_millis(self.rng.u64(..2000))).await;
    }

    async fn revive(&mut self) {
        let mut kimups = Vec::new();
        for (kimup, up) in self.kimups.drain(..) {
            kimups.push((if up { kimup } else { kimup.start_again().await.unwrap() }, true));
        }
        self.kimups = kimups;
        self.aim();
        self.say("both kimups are up");
    }

    async fn make_again(&mut self, shop: usize) {
        self.say(&format!("make Deployment {}/web again", self.shops[shop].namespace));
        self.kubectl(shop, &["delete", "deployment", "web", "--wait", "--cascade=foreground"]).await;
        self.create::<Deployment>(shop, "web", &[0]).await;
    }

    /// The Image is deleted, its newest tag vanishes from the registry, and it is made again: its stamps are what it
    /// must not go behind.
    async fn image_again(&mut self, part: usize) {
        let shop = STEADY.len();
        let api = self.shops[shop].api::<Image>();
        api.delete(PARTS[part], &DeleteParams::default()).await.unwrap();
        if self.rng.bool() {
            self.list(shop, part, self.minor(shop, part).saturating_sub(1));
        }
        let template = self.shops[shop].api::<Deployment>().get("pair").await.unwrap().spec.template;
        let annotations = template.metadata.and_then(|m| m.annotations).unwrap_or_default();
        let stamp = annotations.get(&format!("{STAMP_PREFIX}{}", PARTS[part]));
        let floor = stamp.and_then(|stamp| stamp.split_once(' ')).map(|(_, reference)| version(reference));
        tokio::time::sleep(Duration::from_millis(self.rng.u64(..1000))).await;
        self.say(&format!("make Image {IMAGES}/{} again, not behind {floor:?}", PARTS[part]));
        let uid = self.create_image(shop, part).await.uid().unwrap();
        self.floors.extend(floor.map(|floor| (uid, floor)));
    }

    async fn opt(&mut self) {
        let enabled = format!("{ENABLED}={}", self.rng.bool());
        let policy = format!("{FAILURE_POLICY}={}", if self.rng.bool() { "fail" } else { "ignore" });
        self.say(&format!("Namespace {LOOSE} {enabled} {policy}"));
        self.label(&enabled, &policy).await;
    }

    async fn label(&self, enabled: &str, policy: &str) {
        self.kubectl(0, &["label", "namespace", LOOSE, enabled, policy, "--overwrite"]).await;
    }

    /// The end: the registry and kimup are well, and everybody is opted in.
    async fn calm(&mut self) {
        self.revive().await;
        self.label(&format!("{ENABLED}=true"), &format!("{FAILURE_POLICY}=fail")).await;
        for shop in 0..self.shops.len() {
            for part in 0..PARTS.len() {
                self.list(shop, part, self.minor(shop, part));
                self.refresh(shop, part).await;
            }
        }
        self.say("calm");
    }

    /// Everything runs what its Image says, but for what is held.
    async fn converged(&self, shops: &[Shop]) -> Result<(), String> {
        for (number, shop) in shops.iter().enumerate() {
            let mut images = BTreeMap::new();
            for (part, name) in PARTS.iter().enumerate() {
                let status = shop.status(name).await;
                self.settled(number, part, &status).map_err(|e| format!("Image {}/{name}: {e}", shop.namespace))?;
                images.insert(*name, status);
            }
            let pods = shop.pods().await;
            let check = |kind: &str, name: &str, template: &PodTemplateSpec, replicas: Option<i32>, observed: bool| {
                let what = format!("{kind}/{name}");
                let count = usize::try_from(replicas.unwrap_or(1)).unwrap();
                let own: Vec<&Pod> = pods.iter().filter(|p| p.labels().get("app").is_some_and(|a| a == name)).collect();
                let there = observed && own.len() == count && own.iter().all(|p| is_ready(p));
                let there = if there { Ok(()) } else { Err(format!("{} of {count} Pods", own.len())) };
                let result = runs(&what, template, &images, &own).and(there);
                result.map_err(|e| format!("{what} of {}: {e}", shop.namespace))
            };
            let bare = shop.api::<ReplicaSet>().get("bare").await.unwrap().spec.replicas;
            let there = pods.iter().filter(|p| p.labels()["app"] == "bare").count();
            if Some(there) != bare.map(|n| usize::try_from(n).unwrap()) {
                return Err(format!("{there} Pods of {}/bare", shop.namespace));
            }
            for w in shop.api::<Deployment>().list(&ListParams::default()).await.unwrap() {
                let observed = w.status.as_ref().and_then(|s| s.observed_generation) == w.metadata.generation;
                check("Deployment", &w.name_any(), &w.spec.template, w.spec.replicas, observed)?;
            }
            for w in shop.api::<StatefulSet>().list(&ListParams::default()).await.unwrap() {
                let observed = w.status.as_ref().and_then(|s| s.observed_generation) == w.metadata.generation;
                check("StatefulSet", &w.name_any(), &w.spec.template, w.spec.replicas, observed)?;
            }
        }
        Ok(())
    }

    fn settled(&self, shop: usize, part: usize, status: &ImageStatus) -> Result<(), String> {
        let newest = (1, self.minor(shop, part), 0);
        let ready = status.conditions.iter().any(|c| c.type_ == "Ready" && c.status == "True");
        let settled = status.tag.as_deref().map(version) == Some(newest) && status.rollout.is_none();
        (ready && settled).then_some(()).ok_or_else(|| serde_json::to_string(status).unwrap())
    }
}

/// Whether the Pods of a workload run what they should.
fn runs(
    what: &str,
    template: &PodTemplateSpec,
    images: &BTreeMap<&str, ImageStatus>,
    pods: &[&Pod],
) -> Result<(), String> {
    for container in template.spec.iter().flat_map(|spec| &spec.containers) {
        let status = &images[&*container.name];
        let held = status.held.iter().find(|h| h.workload == what && h.container == container.name);
        let wanted = match held {
            Some(held) => version(&held.tag),
            None => version(status.tag.as_deref().unwrap()).max(version(container.image.as_deref().unwrap())),
        };
        let images: Vec<Version> = pods.iter().map(|p| version(&image_of(p, &container.name))).collect();
        if images.iter().any(|image| *image != wanted) {
            return Err(format!("{} runs {images:?}, not {wanted:?} (held: {})", container.name, held.is_some()));
        }
    }
    Ok(())
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap())
}

#[tokio::test]
async fn what_must_hold_holds_in_a_storm() {
    let seed = number("KIMUP_SEED").unwrap_or_else(|| fastrand::u64(..100_000));
    let length = Duration::from_secs(number("KIMUP_CHAOS_SECONDS").unwrap_or(20));
    println!("KIMUP_SEED={seed} repeats this run");
    let (mut storm, watches) = Storm::start(seed).await;
    let end = Guard(storm.record.clone(), seed);
    let began = Instant::now();
    while began.elapsed() < length {
        storm.act().await;
    }
    storm.calm().await;
    let calm = Instant::now();
    // Pods that `ignore` let through unchanged keep their own tag until their workload is rolled.
    let steady = &storm.shops[..storm.shops.len() - 1];
    eventually(CONVERGES_WITHIN, "everything converges", async || storm.converged(steady).await).await;
    println!("it converges in {:.1} s", calm.elapsed().as_secs_f64());
    // A newer tag ends every hold.
    for shop in 0..storm.shops.len() {
        storm.push(shop, &[0, 1]).await;
    }
    eventually(CONVERGES_WITHIN, "a newer tag reaches everything", async || storm.converged(&storm.shops).await).await;
    for shop in 0..storm.shops.len() {
        storm.delete_pods(shop, usize::MAX).await; // unstamped revisions too run what they ran
    }
    eventually(CONVERGES_WITHIN, "all Pods are there again", async || storm.converged(&storm.shops).await).await;
    drop(watches);
    let faults = end.0.with(|checker| {
        for (uid, floor) in &storm.floors {
            if checker.first.get(uid).is_some_and(|first| first < floor) {
                checker.fault(&format!("an Image made again ({uid:.4}) is behind its stamp {floor:?}"));
            }
        }
        checker.faults.clone()
    });
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Tells what happened if the test fails.
struct Guard(Record, u64);

impl Drop for Guard {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("what happened with KIMUP_SEED={}:", self.1);
            self.0.with(|checker| checker.trace.iter().for_each(|line| println!("{line}")));
        }
    }
}
