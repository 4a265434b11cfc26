//! What is read of a workload whose rollout does not end: its revisions with their templates, and the state of its Pods.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, ReplicaSet};
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodCondition};
use kube::api::{Api, DeleteParams, Preconditions};
use serde_json::Value;

use crate::api::annotated::PodHash;
use crate::api::annotations::{ROLLOUT, STAMP_PREFIX, Stamp};

use super::apply::ApplyError;
use super::facts::{self, FactsError, controller};
use super::workload::{Kind, Workload};

const TIMEOUT: Duration = Duration::from_secs(10);
const TEMPLATE_HASH: &str = "pod-template-hash";
const CONTROLLER_HASH: &str = "controller-revision-hash";
const ROLLOUTS_HASH: &str = "rollouts-pod-template-hash";
/// `kubectl rollout restart` writes it: it changes nothing that runs.
const RESTARTED: &str = "kubectl.kubernetes.io/restartedAt";
/// Longest message taken over from a Pod, in bytes.
const MAX_MESSAGE: usize = 200;

/// A revision and its template.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Past {
    /// UID of what owns its Pods: the ReplicaSet, or the workload itself.
    pub owner: String,
    /// What its Pods carry as `pod-template-hash` or `controller-revision-hash`.
    pub hash: String,
    /// Its number: greater is newer.
    pub number: i64,
    /// The one that the template makes.
    pub current: bool,
    /// The stamps of its template, by container.
    pub stamps: BTreeMap<String, Stamp>,
    /// Its template without what kimup and the controllers write.
    pub template: Value,
}

/// A Pod, as far as it tells how a rollout goes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PodState {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// The version it was read at.
    pub resource_version: String,
    /// Its revision.
    pub hash: String,
    /// When it was created.
    pub created: Timestamp,
    /// It has a node.
    pub scheduled: bool,
    /// Why it has none, as the scheduler says.
    pub unscheduled: Option<String>,
    /// All its containers are ready.
    pub ready: bool,
    /// When it became ready, or stopped being it.
    pub turned: Timestamp,
    /// How often its containers were restarted; of several the most.
    pub restarts: i32,
    /// Containers that are not ready, or wait for their image.
    pub unready: BTreeSet<String>,
    /// What is wrong with the worst of them: `CrashLoopBackOff: container app of Pod web-1: …`.
    pub trouble: Option<String>,
    /// The images it runs, by container.
    pub images: BTreeMap<String, String>,
}

/// Revisions and Pods of a workload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evidence {
    /// Every revision that is still there.
    pub past: Vec<Past>,
    /// Every Pod that is not ending.
    pub pods: Vec<PodState>,
}

impl Evidence {
    /// The Pods of the current revision.
    pub fn current(&self) -> Vec<PodState> {
        let hashes: BTreeSet<_> = self.past.iter().filter(|r| r.current).map(|r| &r.hash).collect();
        self.pods.iter().filter(|pod| hashes.contains(&pod.hash)).cloned().collect()
    }
}

/// Reads the evidence: two lists, each in pages and within a deadline.
pub async fn evidence(client: &kube::Client, workload: &Workload) -> Result<Evidence, FactsError> {
    let past = match workload.key.kind {
        Kind::Deployment | Kind::Rollout => {
            let sets: Vec<ReplicaSet> = facts::list(client, workload, "ReplicaSets").await?;
            of_replica_sets(workload.key.kind, sets.iter().filter(|s| controller(&s.metadata) == Some(&workload.uid)))
        }
        Kind::StatefulSet | Kind::DaemonSet | Kind::CloneSet => {
            let all: Vec<ControllerRevision> = facts::list(client, workload, "ControllerRevisions").await?;
            let own: Vec<_> = all.iter().filter(|r| controller(&r.metadata) == Some(&workload.uid)).collect();
            of_controller_revisions(workload, &own)
        }
    };
    let owners: BTreeSet<&String> = past.iter().map(|revision| &revision.owner).collect();
    let pods: Vec<Pod> = facts::list(client, workload, "Pods").await?;
    let own = pods.iter().filter(|pod| {
        pod.metadata.deletion_timestamp.is_none() && controller(&pod.metadata).is_some_and(|o| owners.contains(o))
    });
    Ok(Evidence { pods: own.map(|pod| pod_state(workload.key.kind, pod)).collect(), past })
}

/// Deletes a Pod, provided it is the very one that was read, and as it was.
pub async fn delete_pod(client: &kube::Client, namespace: &str, pod: &PodState) -> Result<(), ApplyError> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let preconditions =
        Preconditions { uid: Some(pod.uid.clone()), resource_version: Some(pod.resource_version.clone()) };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match tokio::time::timeout(TIMEOUT, api.delete(&pod.name, &params)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Err(ApplyError::Conflict),
        Ok(Err(kube::Error::Api(status))) if status.code < 500 => Err(ApplyError::Refused(status.message.clone())),
        Ok(Err(error)) => Err(ApplyError::Unknown(error.to_string())),
        Err(_) => Err(ApplyError::Unknown(format!("nothing within {} s", TIMEOUT.as_secs()))),
    }
}

fn of_replica_sets<'a>(kind: Kind, own: impl Iterator<Item = &'a ReplicaSet>) -> Vec<Past> {
    let number = |set: &ReplicaSet| set.metadata.annotations.as_ref()?.get(facts::revision_key(kind))?.parse().ok();
    let mut past: Vec<Past> = own
        .map(|set| {
            let template = serde_json::to_value(&set.spec.template).unwrap_or_default();
            let (stamps, template) = split(template);
            let owner = set.metadata.uid.clone().unwrap_or_default();
            let hash = PodHash::of(set.metadata.labels.as_ref()).value.to_owned();
            Past { owner, hash, number: number(set).unwrap_or(0), current: false, stamps, template }
        })
        .collect();
    let newest = past.iter().map(|revision| revision.number).max();
    for revision in &mut past {
        revision.current = Some(revision.number) == newest;
    }
    past
}

fn of_controller_revisions(workload: &Workload, own: &[&ControllerRevision]) -> Vec<Past> {
    let newest = own.iter().map(|r| r.revision).max();
    let read = |revision: &&ControllerRevision| {
        let hash = facts::revision_hash(workload.key.kind, &revision.metadata);
        let current = match &workload.revision {
            Some(current) => *current == hash,
            None => Some(revision.revision) == newest,
        };
        let template = revision.data.0.pointer("/spec/template").cloned().unwrap_or_default();
        let (stamps, template) = split(template);
        Past { owner: workload.uid.clone(), hash, number: revision.revision.unwrap_or(0), current, stamps, template }
    };
    own.iter().map(read).collect()
}

/// The stamps of a template, and the template without what kimup and the controllers write.
fn split(mut template: Value) -> (BTreeMap<String, Stamp>, Value) {
    let mut stamps = BTreeMap::new();
    let ours = |key: &str| {
        key.starts_with(STAMP_PREFIX)
            || [ROLLOUT, TEMPLATE_HASH, CONTROLLER_HASH, ROLLOUTS_HASH, RESTARTED].contains(&key)
    };
    for of in ["annotations", "labels"] {
        let Some(map) = template.pointer_mut(&format!("/metadata/{of}")).and_then(Value::as_object_mut) else {
            continue;
        };
        for (key, value) in map.iter() {
            if let (Some(container), Some(stamp)) =
                (key.strip_prefix(STAMP_PREFIX), value.as_str().and_then(Stamp::parse))
            {
                stamps.insert(container.to_owned(), stamp);
            }
        }
        map.retain(|key, _| !ours(key));
        if map.is_empty()
            && let Some(metadata) = template.get_mut("metadata").and_then(Value::as_object_mut)
        {
            metadata.remove(of);
        }
    }
    (stamps, template)
}

fn pod_state(kind: Kind, pod: &Pod) -> PodState {
    let (meta, status) = (&pod.metadata, pod.status.as_ref());
    let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
    let condition = |kind: &str| conditions.iter().find(|c| c.type_.as_str() == kind);
    let ready = condition("Ready");
    let created = meta.creation_timestamp.as_ref().map(|t| t.0).unwrap_or_default();
    let name = meta.name.clone().unwrap_or_default();
    let spec = pod.spec.as_ref();
    let containers = spec.map(|s| s.init_containers.iter().flatten().chain(&s.containers)).into_iter().flatten();
    let init = status.and_then(|s| s.init_container_statuses.as_deref()).unwrap_or_default();
    let regular = status.and_then(|s| s.container_statuses.as_deref()).unwrap_or_default();
    let is_ready = ready.is_some_and(|c| c.status == "True");
    let mut unready: Vec<&ContainerStatus> = init.iter().filter(|c| is_unready_init(c)).collect();
    if unready.is_empty() {
        unready = regular.iter().filter(|c| !c.ready).collect();
    }
    let told = unready.iter().map(|container| trouble(container, &name)).min_by_key(|(rank, _)| *rank);
    let failed = status.filter(|s| s.phase.as_deref() == Some("Failed")).map(|s| {
        let reason = s.reason.as_deref().unwrap_or("Failed");
        cut(format!("{reason}: Pod {name} failed: {}", s.message.as_deref().unwrap_or("no message")))
    });
    PodState {
        uid: meta.uid.clone().unwrap_or_default(),
        resource_version: meta.resource_version.clone().unwrap_or_default(),
        hash: facts::pod_hash(kind, pod),
        created,
        scheduled: spec.is_some_and(|s| s.node_name.as_ref().is_some_and(|node| !node.is_empty())),
        unscheduled: condition("PodScheduled").and_then(|c: &PodCondition| c.message.clone()).map(cut),
        ready: is_ready,
        turned: ready.and_then(|c| c.last_transition_time.as_ref()).map_or(created, |t| t.0),
        restarts: init.iter().chain(regular).map(|c| c.restart_count).max().unwrap_or(0),
        unready: unready.iter().map(|c| c.name.clone()).collect(),
        trouble: told.map(|(_, text)| text).or(failed).filter(|_| !is_ready),
        images: containers.filter_map(|c| Some((c.name.clone(), c.image.clone()?))).collect(),
        name,
    }
}

/// An init container that keeps the others from starting: one that has not ended well, and is no sidecar that runs.
fn is_unready_init(status: &ContainerStatus) -> bool {
    let state = status.state.clone().unwrap_or_default();
    let ended = state.terminated.as_ref().is_some_and(|t| t.exit_code == 0);
    !(ended || state.running.is_some() && status.ready)
}

/// What is wrong with a container that is not ready, and how much that says: less is more.
fn trouble(status: &ContainerStatus, pod: &str) -> (u8, String) {
    let state = status.state.clone().unwrap_or_default();
    let last = ended(status.last_state.as_ref()).or_else(|| ended(status.state.as_ref()));
    let of = format!("container {} of Pod {pod}", status.name);
    let restarts = match status.restart_count {
        0 => String::new(),
        1 => ", restarted once".to_owned(),
        count => format!(", restarted {count} times"),
    };
    let last = last.map(|last| format!(", last ended with {last}")).unwrap_or_default();
    let waits = state.waiting.as_ref().and_then(|w| Some((w.reason.clone()?, w.message.clone())));
    let (rank, text) = match waits {
        Some((reason, message)) if is_bad(&reason) => {
            let message = message.filter(|_| last.is_empty()).map(|m| format!(": {m}")).unwrap_or_default();
            (0, format!("{reason}: {of}{restarts}{last}{message}"))
        }
        Some((reason, _)) => (2, format!("{reason}: {of} has not started")),
        None if state.running.is_some() => (1, format!("NotReady: {of} runs and is not ready{restarts}{last}")),
        None => (1, format!("Terminated: {of}{restarts}{last}")),
    };
    (rank, cut(text))
}

/// Reasons of the kubelet that do not pass by waiting.
fn is_bad(reason: &str) -> bool {
    let pull = ["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"];
    reason == "CrashLoopBackOff"
        || reason == "RunContainerError"
        || pull.contains(&reason)
        || (reason.starts_with("CreateContainer") && reason.ends_with("Error"))
}

/// `exit code 1 (OOMKilled)`
fn ended(state: Option<&ContainerState>) -> Option<String> {
    let terminated = state?.terminated.as_ref()?;
    let reason = terminated.reason.as_deref().filter(|reason| *reason != "Error");
    let reason = reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
    Some(format!("exit code {}{reason}", terminated.exit_code))
}

fn cut(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_MESSAGE));
    text
}

#[cfg(test)]
mod tests;
