//! What `kimup sync` costs: many Images on few repositories, measured from outside of the process.

use std::path::PathBuf;
use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use futures::{Stream, StreamExt as _};
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::cluster::Cluster;
use crate::kimup::{KimupOptions, KimupProcess, WebhookUrl};
use crate::scripted::ScriptedRegistry;
use crate::wait::try_eventually;

const SYSTEM: &str = "kimup-system";
const ACCOUNT: &str = "kimup";
/// The kinds of `deploy/` that the process needs.
const DEPLOYED: &[&str] = &["Namespace", "ServiceAccount", "ClusterRole", "ClusterRoleBinding", "Role", "RoleBinding"];
/// Between two refreshes: the rate of one registry host is not what is measured.
const REFRESH_PAUSE: Duration = Duration::from_millis(500);
/// Nothing happens for so long between two repositories' turns.
const QUIET: Duration = Duration::from_millis(300);
/// Tags of a repository.
const TAGS: usize = 20;

/// How much there is to do.
#[derive(Clone, Copy, Debug)]
pub struct SyncLoad {
    /// A multiple of `repositories`.
    pub images: u32,
    pub repositories: u32,
    pub interval: Duration,
    /// How many intervals are measured, once each Image has had two syncs.
    pub intervals: u32,
    /// How often a new tag is pushed and asked for by `action: refresh`.
    pub refreshes: u32,
}

/// What it cost.
#[derive(Clone, Debug, Default)]
pub struct SyncCost {
    /// Syncs that ended in the measured intervals (`kimup_syncs_total`).
    pub syncs: u64,
    /// Requests for tags that the registry had meanwhile.
    pub lists: u64,
    /// How long these intervals took.
    pub took: Duration,
    /// CPU time of the process meanwhile.
    pub cpu: Duration,
    /// Its CPU time before, from its start.
    pub cpu_before: Duration,
    /// The most resident memory it has had, in bytes, until the intervals ended.
    pub peak_rss: u64,
    /// What it wrote meanwhile by the API server's audit log, renewals of its Lease aside: verb, resource, name.
    pub writes: Vec<String>,
    /// From the annotation's request to the watch event with the new tag, sorted.
    pub refreshes: Vec<Duration>,
}

impl SyncCost {
    /// The median of the refreshes.
    pub fn refresh_p50(&self) -> Option<Duration> {
        self.refreshes.get(self.refreshes.len() / 2).copied()
    }
}

impl SyncLoad {
    /// Runs `kimup sync` on a cluster of its own.
    pub async fn measure(self, binary: PathBuf) -> Result<SyncCost> {
        let bed = Bed::start(self, binary).await?;
        bed.create_images().await?;
        bed.settle().await?;
        let mut cost = bed.intervals().await?;
        cost.refreshes = bed.refreshes().await?;
        Ok(cost)
    }
}

struct Bed {
    load: SyncLoad,
    cluster: Cluster,
    registry: ScriptedRegistry,
    /// Of its own, so that its rate is as well.
    refreshed: ScriptedRegistry,
    kimup: KimupProcess,
    client: kube::Client,
}

/// Counters at one moment.
struct Counts {
    at: Instant,
    syncs: u64,
    lists: u64,
    cpu: Duration,
    writes: usize,
}

impl Bed {
    async fn start(load: SyncLoad, binary: PathBuf) -> Result<Self> {
        ensure!(load.repositories > 0 && load.images.is_multiple_of(load.repositories), "whole Images per repository");
        let cluster = Cluster::start().await?;
        cluster.apply_deploy(DEPLOYED).await?;
        let (registry, refreshed) = (ScriptedRegistry::start().await?, ScriptedRegistry::start().await?);
        let mut options = KimupOptions::new(binary, cluster.kubeconfig_for(SYSTEM, ACCOUNT).await?);
        options.webhook_url = WebhookUrl::None;
        "sync".clone_into(&mut options.command);
        let socket = cluster.folder().join("load.sock").display().to_string();
        let hosts = format!("{},{}", registry.host(), refreshed.host());
        options.args = ["--namespace", SYSTEM, "--sync-socket", &socket, "--plain-http-registry", &hosts]
            .map(str::to_owned)
            .to_vec();
        let kimup = KimupProcess::start(options).await?;
        let client = cluster.client().await?;
        Ok(Self { load, cluster, registry, refreshed, kimup, client })
    }

    fn images(&self, namespace: &str) -> Api<DynamicObject> {
        let kind = GroupVersionKind::gvk("kimup.cloudavenue.io", "v1alpha1", "Image");
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::from_gvk_with_plural(&kind, "images"))
    }

    async fn create(&self, namespace: &str, name: &str, repository: &str, interval: Duration) -> Result<()> {
        let image = json!({
            "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image", "metadata": {"name": name},
            "spec": {
                "image": repository,
                "triggers": [{"type": "interval", "value": format!("{}s", interval.as_secs())}],
                "rules": [{"name": "newest", "type": "semver", "actions": [{"type": "apply"}]}],
            },
        });
        let created = self.images(namespace).create(&PostParams::default(), &serde_json::from_value(image)?).await;
        created.map(drop).with_context(|| format!("creating Image {namespace}/{name}"))
    }

    /// Images of one repository are in namespaces of their own: in one the oldest alone would count.
    async fn create_images(&self) -> Result<()> {
        let tags: Vec<String> = (0..TAGS).map(|n| format!("1.{n}.0")).collect();
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        for repository in 0..self.load.repositories {
            self.registry.set_tags(&repository_name(repository), &tags);
        }
        for round in 0..self.load.images / self.load.repositories {
            let namespace = self.cluster.namespace(&format!("load-{round}"), &[], &[]).await?;
            for repository in 0..self.load.repositories {
                let name = repository_name(repository);
                self.create(&namespace, &name, &self.registry.image(&name), self.load.interval).await?;
            }
        }
        Ok(())
    }

    /// Waits until each Image has been synced by its interval: the first sync, when it was created, is another thing.
    async fn settle(&self) -> Result<()> {
        let wanted = u64::from(self.load.images) * 2;
        let within = Duration::from_secs(60) + self.load.interval * 2;
        try_eventually(within, "each Image has been synced twice", async || {
            let syncs = self.syncs().await?;
            ensure!(syncs >= wanted, "{syncs} of {wanted} syncs");
            Ok(())
        })
        .await
    }

    async fn intervals(&self) -> Result<SyncCost> {
        let before = self.quiet().await?;
        let until = before.at + self.load.interval * self.load.intervals;
        tokio::time::sleep_until(until.into()).await; // this is the measurement
        let after = self.quiet().await?;
        Ok(SyncCost {
            syncs: after.syncs - before.syncs,
            lists: after.lists - before.lists,
            took: after.at - before.at,
            cpu: after.cpu.saturating_sub(before.cpu),
            cpu_before: before.cpu,
            peak_rss: self.kimup.peak_rss_bytes()?,
            writes: self.writes()?.split_off(before.writes),
            refreshes: Vec::new(),
        })
    }

    /// The counters between two repositories' turns, so that they belong together.
    async fn quiet(&self) -> Result<Counts> {
        let mut last = self.counts().await?;
        loop {
            tokio::time::sleep(QUIET).await;
            let now = self.counts().await?;
            if (now.syncs, now.lists) == (last.syncs, last.lists) {
                return Ok(now);
            }
            last = now;
        }
    }

    async fn counts(&self) -> Result<Counts> {
        let lists = (0..self.load.repositories).map(|n| self.registry.lists(&repository_name(n)) as u64).sum();
        let (syncs, writes) = (self.syncs().await?, self.writes()?.len());
        Ok(Counts { at: Instant::now(), syncs, lists, cpu: self.kimup.cpu_time()?, writes })
    }

    /// Only those that succeeded.
    async fn syncs(&self) -> Result<u64> {
        let text = self.kimup.metric("kimup_syncs_total", &[("result", "Success")]).await?.to_string();
        text.parse().context("kimup_syncs_total is no whole number")
    }

    fn writes(&self) -> Result<Vec<String>> {
        let user = format!("system:serviceaccount:{SYSTEM}:{ACCOUNT}");
        let log = self.cluster.audit_log()?;
        Ok(log.iter().filter(|event| event["user"]["username"] == user.as_str()).filter_map(written).collect())
    }

    /// Pushes one newer tag after the other and asks for it.
    async fn refreshes(&self) -> Result<Vec<Duration>> {
        let (repository, name) = ("refreshed", "refreshed");
        self.refreshed.set_tags(repository, &["1.0.0"]);
        let namespace = self.cluster.namespace("load-refresh", &[], &[]).await?;
        let api = self.images(&namespace);
        self.create(&namespace, name, &self.refreshed.image(repository), Duration::from_secs(3600)).await?;
        let mut events = pin!(api.watch(&WatchParams::default(), "0").await?);
        shows(&mut events, "1.0.0").await?;
        let mut took = Vec::new();
        for n in 1..=self.load.refreshes {
            tokio::time::sleep(REFRESH_PAUSE).await;
            let tag = format!("1.0.{n}");
            self.refreshed.set_tags(repository, &[&tag]);
            let patch = json!({"metadata": {"annotations": {"kimup.cloudavenue.io/action": "refresh"}}});
            let began = Instant::now();
            api.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await?;
            shows(&mut events, &tag).await?;
            took.push(began.elapsed());
        }
        took.sort_unstable();
        Ok(took)
    }
}

/// Waits for the event of a watch whose Image has settled on this tag.
async fn shows<S>(events: &mut S, tag: &str) -> Result<()>
where
    S: Stream<Item = kube::Result<WatchEvent<DynamicObject>>> + Unpin,
{
    let seen = async {
        while let Some(event) = events.next().await {
            if let WatchEvent::Added(image) | WatchEvent::Modified(image) = event?
                && image.data["status"]["tag"] == tag
            {
                return Ok(());
            }
        }
        anyhow::bail!("the watch ended")
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.with_context(|| format!("no status with {tag}"))?
}

fn repository_name(number: u32) -> String {
    format!("load-{number}")
}

/// A request that changed something, but for renewals of the Lease.
fn written(event: &Value) -> Option<String> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (verb, resource) = (text("/verb"), text("/objectRef/resource"));
    let wrote = matches!(verb, "create" | "update" | "patch" | "delete") && resource != "leases";
    wrote.then(|| format!("{verb} {resource} {}/{}", text("/objectRef/namespace"), text("/objectRef/name")))
}
