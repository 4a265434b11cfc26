//! What a newer tag costs the API server when many Deployments follow one Image, and how many of them roll at a time.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::TryStreamExt as _;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt as _;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use kube::runtime::watcher;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::kimup::{KimupOptions, KimupProcess};
use crate::registry::Registry;
use crate::wait::try_eventually;

const SYSTEM: &str = "kimup-system";
const ACCOUNT: &str = "kimup";
const ROLLOUT: &str = "kimup.cloudavenue.io/rollout";
/// The kinds of `deploy/` that the process needs.
const DEPLOYED: &[&str] = &["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
const REPOSITORY: &str = "load";
const IMAGE: &str = "img";
/// Nothing is asked for so long once the last tag has settled.
const QUIET: Duration = Duration::from_secs(2);
/// For the first Pods, and for the whole of what is measured.
const PATIENCE: Duration = Duration::from_mins(15);

/// How much there is to roll.
#[derive(Clone, Copy, Debug)]
pub struct RolloutLoad {
    /// Each with one Image.
    pub namespaces: u32,
    /// In each namespace, of one replica.
    pub deployments: u32,
    /// `spec.rollout.maxConcurrent`, `--max-rollouts-per-namespace` and `--max-rollouts`.
    pub limits: InFlight,
}

/// Rollouts in flight at a time: in a group, a namespace and the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InFlight {
    pub group: usize,
    pub namespace: usize,
    pub cluster: usize,
}

/// What it cost, from the push of a newer tag until every Image has settled on it.
#[derive(Clone, Debug, Default)]
pub struct RolloutCost {
    /// Workloads that were rolled.
    pub workloads: u32,
    /// Requests of kimup by the API server's audit log, watches and renewals of the Lease aside: `patch deployments`.
    pub requests: BTreeMap<String, usize>,
    /// The most that were in flight, as a watch of the Deployments saw it.
    pub most: InFlight,
    pub took: Duration,
    /// Processor time of kimup.
    pub cpu: Duration,
}

impl RolloutCost {
    /// All requests.
    pub fn total(&self) -> usize {
        self.requests.values().sum()
    }
}

impl RolloutLoad {
    /// Runs `kimup run` on a cluster of its own; two rounds: the first rolls what was never stamped.
    pub async fn measure(self, binary: PathBuf) -> Result<[RolloutCost; 2]> {
        let bed = Bed::start(self, binary).await?;
        bed.create().await?;
        let first = bed.round("1.1.0").await?;
        Ok([first, bed.round("1.2.0").await?])
    }
}

struct Bed {
    load: RolloutLoad,
    cluster: Cluster,
    registry: Registry,
    kimup: KimupProcess,
    client: kube::Client,
}

impl Bed {
    async fn start(load: RolloutLoad, binary: PathBuf) -> Result<Self> {
        let cluster = Cluster::start().await?;
        cluster.apply_deploy(DEPLOYED).await?;
        let registry = Registry::open().await?;
        registry.push(REPOSITORY, "1.0.0").await?;
        let mut options = KimupOptions::new(binary, cluster.kubeconfig_for(SYSTEM, ACCOUNT).await?);
        let most = [load.limits.namespace.to_string(), load.limits.cluster.to_string()];
        options.args = ["--namespace", SYSTEM, "--plain-http-registry", &registry.host()].map(str::to_owned).to_vec();
        options.args.extend(["--max-rollouts-per-namespace", &most[0], "--max-rollouts", &most[1]].map(str::to_owned));
        let kimup = KimupProcess::start(options).await?;
        let client = cluster.client().await?;
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
        try_eventually(Duration::from_secs(60), "the webhook configuration is written", async || {
            configurations.get_opt("kimup-url").await.is_ok_and(|found| found.is_some())
        })
        .await?;
        Ok(Self { load, cluster, registry, kimup, client })
    }

    fn namespaces(&self) -> impl Iterator<Item = String> + use<> {
        (0..self.load.namespaces).map(|number| format!("load-{number}"))
    }

    fn images(&self, namespace: &str) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("kimup.cloudavenue.io", "v1alpha1", "Image");
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::from_gvk_with_plural(&kind, "images"))
    }

    /// Images and Deployments that run the first tag.
    async fn create(&self) -> Result<()> {
        let image = self.registry.image(REPOSITORY);
        for namespace in self.namespaces() {
            self.cluster.namespace(&namespace, &[], &[]).await?;
            let object = json!({
                "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image", "metadata": {"name": IMAGE},
                "spec": {
                    "image": image,
                    "triggers": [{"type": "interval", "value": "1h"}],
                    "rules": [{"name": "newest", "type": "semver", "actions": [{"type": "apply"}]}],
                    "rollout": {"maxConcurrent": self.load.limits.group},
                },
            });
            self.images(&namespace).create(&PostParams::default(), &serde_json::from_value(object)?).await?;
            let deployments: Api<Deployment> = Api::namespaced(self.client.clone(), &namespace);
            for number in 0..self.load.deployments {
                let object = deployment(&format!("web-{number}"), &format!("{image}:1.0.0"))?;
                deployments.create(&PostParams::default(), &object).await?;
            }
        }
        self.settled("1.0.0").await
    }

    /// Waits until every Image has settled on a tag, and all its workloads run it.
    async fn settled(&self, tag: &str) -> Result<()> {
        let all = format!("{0}/{0}", self.load.deployments);
        for namespace in self.namespaces() {
            let images = self.images(&namespace);
            try_eventually(PATIENCE, &format!("{namespace} settles on {tag}"), async || {
                tokio::time::sleep(Duration::from_millis(200)).await; // this watcher's requests are not what is measured
                let status = images.get(IMAGE).await?.data["status"].clone();
                let settled =
                    status["tag"] == tag && status["rollout"].is_null() && status["workloads"] == all.as_str();
                ensure!(settled, "{}, {}", status["tag"], status["workloads"]);
                Ok(())
            })
            .await?;
        }
        Ok(())
    }

    /// Pushes a tag, asks for it, and counts until it has settled and all is said.
    async fn round(&self, tag: &str) -> Result<RolloutCost> {
        let (most, watching) = self.watch().await?;
        let (before, cpu) = (self.quiet().await?.len(), self.kimup.cpu_time()?);
        self.registry.push(REPOSITORY, tag).await?;
        let began = Instant::now();
        for namespace in self.namespaces() {
            let patch = json!({"metadata": {"annotations": {"kimup.cloudavenue.io/requestedAt": tag}}});
            self.images(&namespace).patch(IMAGE, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        self.settled(tag).await?;
        let took = began.elapsed();
        let mut requests = BTreeMap::new();
        for request in self.quiet().await?.split_off(before) {
            *requests.entry(request).or_insert(0) += 1;
        }
        watching.abort();
        let most = *most.lock().unwrap_or_else(PoisonError::into_inner);
        let workloads = self.load.namespaces * self.load.deployments;
        Ok(RolloutCost { workloads, requests, most, took, cpu: self.kimup.cpu_time()?.saturating_sub(cpu) })
    }

    /// The requests so far, once no more come.
    async fn quiet(&self) -> Result<Vec<String>> {
        let mut last = self.requests()?;
        loop {
            tokio::time::sleep(QUIET).await;
            let now = self.requests()?;
            if now.len() == last.len() {
                return Ok(now);
            }
            last = now;
        }
    }

    fn requests(&self) -> Result<Vec<String>> {
        let user = format!("system:serviceaccount:{SYSTEM}:{ACCOUNT}");
        let log = self.cluster.audit_log()?;
        Ok(log.iter().filter(|event| event["user"]["username"] == user.as_str()).filter_map(counted).collect())
    }

    /// Watches all Deployments from now on; the most that are in flight.
    async fn watch(&self) -> Result<(Arc<Mutex<InFlight>>, tokio::task::JoinHandle<()>)> {
        let most = Arc::new(Mutex::new(InFlight::default()));
        let seen = most.clone();
        let api: Api<Deployment> = Api::all(self.client.clone());
        let (ready, listed) = tokio::sync::oneshot::channel();
        let task = tokio::spawn(async move {
            let mut ready = Some(ready);
            let mut events = std::pin::pin!(watcher(api, watcher::Config::default()));
            let mut moving: HashMap<String, HashMap<String, bool>> = HashMap::new();
            while let Ok(Some(event)) = events.try_next().await {
                match event {
                    watcher::Event::Apply(object) | watcher::Event::InitApply(object) => {
                        let of = moving.entry(object.namespace().unwrap_or_default()).or_default();
                        of.insert(object.name_any(), is_in_flight(&object));
                    }
                    watcher::Event::InitDone => drop(ready.take().map(|ready| ready.send(()))),
                    _ => {}
                }
                let counts = moving.values().map(|of| of.values().filter(|moves| **moves).count());
                let now = counts.clone().max().unwrap_or(0);
                let mut most = seen.lock().unwrap_or_else(PoisonError::into_inner);
                // One Image per namespace: its group is the namespace.
                most.group = most.group.max(now);
                most.namespace = most.namespace.max(now);
                most.cluster = most.cluster.max(counts.sum());
            }
        });
        listed.await.context("the watch of Deployments ended")?;
        Ok((most, task))
    }
}

/// Stamped, and not where `kubectl rollout status` would end.
fn is_in_flight(deployment: &Deployment) -> bool {
    let labels = deployment.spec.template.metadata.as_ref().and_then(|m| m.labels.as_ref());
    let status = deployment.status.clone().unwrap_or_default();
    let now = (status.updated_replicas, status.replicas, status.available_replicas);
    let complete = status.observed_generation == deployment.metadata.generation && now == (Some(1), Some(1), Some(1));
    labels.is_some_and(|labels| labels.contains_key(ROLLOUT)) && !complete
}

fn deployment(name: &str, text: &str) -> Result<Deployment> {
    let object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 1, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": {"kimup.cloudavenue.io/enabled": "true"}},
                "spec": {"containers": [{"name": "app", "image": text}], "terminationGracePeriodSeconds": 0},
            },
        },
    });
    Ok(serde_json::from_value(object)?)
}

/// A request as it is counted: watches and renewals of the Lease come whatever is rolled.
fn counted(event: &Value) -> Option<String> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (verb, resource, part) = (text("/verb"), text("/objectRef/resource"), text("/objectRef/subresource"));
    let counts = verb != "watch" && resource != "leases";
    counts.then(|| format!("{verb} {resource}/{part}").trim_end_matches('/').to_owned())
}
