//! What a workload's revisions and Pods look like now: read from the API server when a decision needs it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::api::apps::v1::{ControllerRevision, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, ListParams};

use crate::api::annotated::PodHash;
use crate::api::annotations::{Map, STAMP_PREFIX, Stamp};

use super::workload::{Kind, Workload};

/// Longest time one list may take.
const TIMEOUT: Duration = Duration::from_secs(20);
/// Objects per page of a list.
const PAGE: u32 = 500;
const REVISION: &str = "deployment.kubernetes.io/revision";
const ROLLOUT_REVISION: &str = "rollout.argoproj.io/revision";
const CONTROLLER_HASH: &str = "controller-revision-hash";

/// One revision of a workload: a ReplicaSet or a `ControllerRevision`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Revision {
    /// What its Pods carry as [`PodHash`]; of a CloneSet without the name before it.
    pub hash: String,
    /// The newest revision, the one the template makes.
    pub current: bool,
    /// The stamps of its template, by container.
    pub stamps: BTreeMap<String, Stamp>,
}

/// A Pod of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodImages {
    /// Its revision.
    pub hash: String,
    /// The images it runs, by container.
    pub images: BTreeMap<String, String>,
}

/// Revisions and Pods of a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Every revision that is still there.
    pub revisions: Vec<Revision>,
    /// Every Pod that is not ending.
    pub pods: Vec<PodImages>,
}

/// Why the facts could not be read.
#[derive(Debug, thiserror::Error)]
#[error("cannot list {what} in namespace {namespace}: {cause}")]
pub struct FactsError {
    what: &'static str,
    namespace: String,
    cause: String,
}

impl Facts {
    /// The images that Pods of the current revision run in a container.
    pub fn running(&self, container: &str) -> Vec<&str> {
        let current: BTreeSet<_> = self.revisions.iter().filter(|r| r.current).map(|r| &r.hash).collect();
        let pods = self.pods.iter().filter(|p| current.contains(&p.hash));
        pods.filter_map(|p| p.images.get(container)).map(String::as_str).collect()
    }

    /// The stamps that revisions carry for a container: what this workload ran by kimup.
    pub fn stamps<'a>(&'a self, container: &'a str) -> impl Iterator<Item = &'a Stamp> {
        self.revisions.iter().filter_map(move |revision| revision.stamps.get(container))
    }
}

/// Reads the facts of a workload: two lists, each in pages and within a deadline.
pub async fn observe(client: &kube::Client, workload: &Workload) -> Result<Facts, FactsError> {
    let (revisions, owners) = match workload.key.kind {
        Kind::Deployment | Kind::Rollout => replica_sets(client, workload).await?,
        Kind::StatefulSet | Kind::DaemonSet | Kind::CloneSet => controller_revisions(client, workload).await?,
    };
    let pods: Vec<Pod> = list(client, workload, "Pods").await?;
    let pods =
        pods.iter().filter(|pod| is_running(pod) && controller(&pod.metadata).is_some_and(|o| owners.contains(o)));
    Ok(Facts { revisions, pods: pods.map(|pod| pod_images(workload.key.kind, pod)).collect() })
}

async fn replica_sets(
    client: &kube::Client,
    workload: &Workload,
) -> Result<(Vec<Revision>, BTreeSet<String>), FactsError> {
    let sets: Vec<ReplicaSet> = list(client, workload, "ReplicaSets").await?;
    let own: Vec<_> = sets.iter().filter(|s| controller(&s.metadata) == Some(&workload.uid)).collect();
    let key = revision_key(workload.key.kind);
    let number = |set: &ReplicaSet| set.metadata.annotations.as_ref()?.get(key)?.parse::<u64>().ok();
    // Not what the Deployment's own annotation says: after an undo the controller changes it last.
    let newest = own.iter().filter_map(|set| number(set)).max();
    let mut owners = BTreeSet::new();
    let mut revisions = Vec::new();
    for set in own {
        owners.extend(set.metadata.uid.clone());
        let template = set.spec.template.as_ref().and_then(|t| t.metadata.as_ref());
        revisions.push(Revision {
            hash: PodHash::of(set.metadata.labels.as_ref()).value.to_owned(),
            current: newest.is_some() && number(set) == newest,
            stamps: template.and_then(|m| m.annotations.as_ref()).map(stamps).unwrap_or_default(),
        });
    }
    Ok((revisions, owners))
}

async fn controller_revisions(
    client: &kube::Client,
    workload: &Workload,
) -> Result<(Vec<Revision>, BTreeSet<String>), FactsError> {
    let all: Vec<ControllerRevision> = list(client, workload, "ControllerRevisions").await?;
    let own: Vec<_> = all.iter().filter(|r| controller(&r.metadata) == Some(&workload.uid)).collect();
    let newest = own.iter().map(|r| r.revision).max();
    let revisions = own.iter().map(|revision| {
        let hash = revision_hash(workload.key.kind, &revision.metadata);
        let current = match &workload.revision {
            Some(current) => *current == hash,
            None => Some(revision.revision) == newest,
        };
        let data = &revision.data.0;
        let annotations = data.pointer("/spec/template/metadata/annotations").cloned().unwrap_or_default();
        let annotations: Map = serde_json::from_value(annotations).unwrap_or_default();
        Revision { hash, current, stamps: stamps(&annotations) }
    });
    Ok((revisions.collect(), BTreeSet::from([workload.uid.clone()])))
}

pub(super) async fn list<K>(
    client: &kube::Client,
    workload: &Workload,
    what: &'static str,
) -> Result<Vec<K>, FactsError>
where
    K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + serde::de::DeserializeOwned,
    K::DynamicType: Default,
{
    let namespace = &workload.key.namespace;
    let error = |cause: String| FactsError { what, namespace: namespace.clone(), cause };
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let mut params = ListParams::default().limit(PAGE);
    params.label_selector.clone_from(&workload.selector);
    let mut items = Vec::new();
    loop {
        let page = tokio::time::timeout(TIMEOUT, api.list(&params)).await;
        let page = page.map_err(|_| error("no answer in time".to_owned()))?.map_err(|e| error(e.to_string()))?;
        items.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(items),
        }
    }
}

/// The annotation with the number of a revision on the `ReplicaSet`s of a workload.
pub(super) fn revision_key(kind: Kind) -> &'static str {
    if kind == Kind::Rollout { ROLLOUT_REVISION } else { REVISION }
}

/// What the Pods of a `ControllerRevision` carry as their hash: a StatefulSet's the revision's name, a CloneSet's the name
/// or its end, a DaemonSet's the revision's own label.
pub(super) fn revision_hash(kind: Kind, revision: &ObjectMeta) -> String {
    let name = revision.name.clone().unwrap_or_default();
    match kind {
        Kind::StatefulSet => name,
        Kind::CloneSet => short_hash(&name).to_owned(),
        _ => label(revision, CONTROLLER_HASH),
    }
}

/// The hash of the revision that a Pod is of.
pub(super) fn pod_hash(kind: Kind, pod: &Pod) -> String {
    let hash = PodHash::of(pod.metadata.labels.as_ref()).value;
    if kind == Kind::CloneSet { short_hash(hash).to_owned() } else { hash.to_owned() }
}

fn is_running(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
    pod.metadata.deletion_timestamp.is_none() && !matches!(phase, Some("Succeeded" | "Failed"))
}

fn pod_images(kind: Kind, pod: &Pod) -> PodImages {
    let spec = pod.spec.as_ref();
    let containers = spec.map(|s| s.init_containers.iter().flatten().chain(&s.containers));
    let images = containers.into_iter().flatten().filter_map(|c| Some((c.name.clone(), c.image.clone()?))).collect();
    PodImages { hash: pod_hash(kind, pod), images }
}

/// The hash in the name of a CloneSet's revision, `web-5d8f`: depending on version and settings, OpenKruise labels Pods
/// with either.
pub(super) fn short_hash(revision: &str) -> &str {
    revision.rsplit('-').next().unwrap_or_default()
}

pub(super) fn controller(metadata: &ObjectMeta) -> Option<&String> {
    metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true)).map(|o| &o.uid)
}

fn label(metadata: &ObjectMeta, key: &str) -> String {
    metadata.labels.as_ref().and_then(|l| l.get(key)).cloned().unwrap_or_default()
}

fn stamps(annotations: &Map) -> BTreeMap<String, Stamp> {
    let found = annotations
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(STAMP_PREFIX)?.to_owned(), Stamp::parse(value)?)));
    found.collect()
}
