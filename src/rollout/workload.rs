//! A workload as kimup sees it: the few facts of a Deployment, StatefulSet or DaemonSet that decide a rollout.
//! `foreign` reads those that other projects bring.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, DeploymentStatus, StatefulSet};
use k8s_openapi::api::core::v1::{Container as PodContainer, PodSpec, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ManagedFieldsEntry, ObjectMeta};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::Value;

use crate::api::Tagged;
use crate::api::annotated::Levels;
use crate::api::annotations::{AnnotationError, Map, NamespaceSettings, ROLLOUT, STAMP_PREFIX, Stamp};

use crate::policy::Reference;

use super::apply::FIELD_MANAGER;
use super::placement::Placement;

/// Kind of a workload that kimup rolls.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `apps/v1` Deployment.
    Deployment,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `argoproj.io/v1alpha1` Rollout, where Argo Rollouts is installed.
    Rollout,
    /// `apps.kruise.io/v1alpha1` CloneSet, where OpenKruise is installed.
    CloneSet,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 5] = [Self::Deployment, Self::StatefulSet, Self::DaemonSet, Self::Rollout, Self::CloneSet];

    /// The kind as it stands in YAML.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "Deployment",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::Rollout => "Rollout",
            Self::CloneSet => "CloneSet",
        }
    }

    /// Its API group, version and resource.
    pub const fn api(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Deployment => ("apps", "v1", "deployments"),
            Self::StatefulSet => ("apps", "v1", "statefulsets"),
            Self::DaemonSet => ("apps", "v1", "daemonsets"),
            Self::Rollout => ("argoproj.io", "v1alpha1", "rollouts"),
            Self::CloneSet => ("apps.kruise.io", "v1alpha1", "clonesets"),
        }
    }

    /// `apiVersion` as it stands in YAML.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Deployment | Self::StatefulSet | Self::DaemonSet => "apps/v1",
            Self::Rollout => "argoproj.io/v1alpha1",
            Self::CloneSet => "apps.kruise.io/v1alpha1",
        }
    }

    /// The kind for requests without a type of its own.
    pub fn resource(self) -> ApiResource {
        let (group, version, plural) = self.api();
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, self.as_str()), plural)
    }
}

/// Names a workload; the key of the queue, so that all its Images are handled at once.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct WorkloadKey {
    /// Its kind.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// `Deployment/web`, without the namespace, as kubectl writes it.
impl fmt::Display for WorkloadKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

/// A container of a Pod template.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its name.
    pub name: String,
    /// Its image as the manifest has it.
    pub text: String,
    /// Whether it is an init container.
    pub init: bool,
}

/// Where the kubelet finds the credentials for the images of a Pod
/// (<https://kubernetes.io/docs/concepts/containers/images/#referring-to-an-imagepullsecrets-on-a-pod>).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PullAccess {
    /// Names of the Pod's `imagePullSecrets`.
    pub secrets: Vec<String>,
    /// Its ServiceAccount, `default` if it names none; its secrets come after the Pod's own.
    pub service_account: String,
}

/// How a status tells that Pods are wanted and not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denied {
    /// A condition says that kimup's webhook could not be called, or that it did not see a Pod.
    Unreachable,
    /// A condition says that kimup's webhook denied a Pod.
    ByUs,
    /// There are too few, for whatever reason.
    Perhaps,
}

/// The policy of `deploy/overlays/stamp-check`, with the quotes of the API server. It may refuse a Pod that kimup did not see.
const STAMP_CHECK: &str = "'kimup-stamp-check'";

/// Whether the message of a controller speaks of an entry of kimup's webhook configuration, or of its policy.
pub(super) fn blames_us(message: &str) -> bool {
    message.contains(".kimup.cloudavenue.io\"") || message.contains(STAMP_CHECK)
}

/// A workload as kimup sees it.
#[allow(clippy::struct_excessive_bools)] // independent facts
#[derive(Clone, Debug, PartialEq)]
pub struct Workload {
    /// Which one.
    pub key: WorkloadKey,
    /// Its UID: an apply never reaches another object of the same name.
    pub uid: String,
    /// The version this was read at: an apply never overwrites what was not seen.
    pub resource_version: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `metadata.annotations`.
    pub annotations: Map,
    /// `spec.template.metadata.annotations`.
    pub template_annotations: Map,
    /// The rollout ID on the template, of the rollout that stamped it last.
    pub rollout: Option<String>,
    /// Containers and init containers of the template.
    pub containers: Vec<Container>,
    /// Which nodes its Pods may run on.
    pub placement: Placement,
    /// Where the credentials for its images come from.
    pub access: PullAccess,
    /// It is being deleted.
    pub deleting: bool,
    /// By container: the field managers that own its stamp.
    pub stamp_owners: BTreeMap<String, BTreeSet<String>>,
    /// When kimup applied a stamp last, by the API server's clock, to the second; none if kimup owns none.
    pub stamped_at: Option<Timestamp>,
    /// `spec.selector` as a query string; none if it selects by expressions that a query cannot say.
    pub selector: Option<String>,
    /// Wanted number of Pods.
    pub replicas: i32,
    /// A rollout ID stands on the workload itself: kimup stamped it, and nobody has replaced the whole object since.
    pub marked: bool,
    /// Who changed it last, kimup and changes of its status aside, as far as `metadata.managedFields` tells.
    pub changed_by: Option<String>,
    /// Its controller has seen this generation, so `revision` and the revisions that exist are those of this template.
    pub observed: bool,
    /// All Pods are of the newest revision and ready, as `kubectl rollout status` sees it.
    pub complete: bool,
    /// A person has paused it.
    pub paused: bool,
    /// When its controller said that its newest template makes no progress any more (`ProgressDeadlineExceeded`).
    pub exceeded: Option<Timestamp>,
    /// Why its controller cannot create Pods, in its words.
    pub trouble: Option<String>,
    /// Whether its controller cannot create Pods, as far as its status tells.
    pub denied: Option<Denied>,
    /// The revision of the newest Pods where the object itself tells it: `status.updateRevision` of a StatefulSet, the
    /// hash in that of a CloneSet.
    pub revision: Option<String>,
    /// Why its controller gave the rollout of this template up and runs the version before again; only an Argo Rollout's
    /// does. `exceeded` says when.
    pub aborted: Option<String>,
    /// Why a stamp would not replace its Pods, and what to do, if that is so: it is not rolled then.
    pub unrollable: Option<&'static str>,
}

impl Workload {
    /// Reads a Deployment. None if it lacks what every stored object has.
    pub fn from_deployment(object: &Deployment) -> Option<Self> {
        let spec = &object.spec;
        let status = object.status.clone().unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1);
        let observed = status.observed_generation >= object.metadata.generation;
        let updated = status.updated_replicas.unwrap_or(0);
        let complete = observed
            && updated >= replicas
            && status.replicas.unwrap_or(0) <= updated
            && status.available_replicas.unwrap_or(0) >= updated;
        let workload = Self::new(Kind::Deployment, &object.metadata, &spec.template, Some(&spec.selector))?;
        let condition = |kind: &str, wanted: &str| {
            let mut conditions = status.conditions.iter().flatten();
            conditions.find(|c| c.type_.as_deref() == Some(kind) && c.status.as_deref() == Some(wanted))
        };
        let exceeded = condition("Progressing", "False");
        let exceeded = exceeded.filter(|c| c.reason.as_deref() == Some("ProgressDeadlineExceeded"));
        Some(Self {
            replicas,
            observed,
            complete,
            paused: spec.paused == Some(true),
            exceeded: exceeded
                .and_then(|c| c.last_update_time.as_ref().or(c.last_transition_time.as_ref()))
                .map(|t| t.0),
            trouble: condition("ReplicaFailure", "True").and_then(|c| c.message.clone()),
            denied: Denied::of_deployment(&status),
            ..workload
        })
    }

    /// Reads a StatefulSet. None if it lacks what every stored object has.
    pub fn from_stateful_set(object: &StatefulSet) -> Option<Self> {
        let spec = &object.spec;
        let status = object.status.clone().unwrap_or_default();
        let replicas = spec.replicas.unwrap_or(1);
        let strategy = spec.update_strategy.as_ref();
        let on_delete = strategy.and_then(|s| s.type_.as_deref()) == Some("OnDelete");
        let partition = strategy.and_then(|s| s.rolling_update.as_ref()).and_then(|r| r.partition).unwrap_or(0);
        let observed = status.observed_generation >= object.metadata.generation;
        let updated = status.updated_replicas.unwrap_or(0);
        let ready = status.ready_replicas.unwrap_or(0) >= replicas;
        let moved = updated >= replicas - partition
            && (partition > 0 || replicas == 0 || status.current_revision == status.update_revision);
        // `OnDelete` waits for a person to delete Pods: from kimup's side the rollout is made.
        let complete = observed && (on_delete || (ready && moved));
        let workload = Self::new(Kind::StatefulSet, &object.metadata, &spec.template, Some(&spec.selector))?;
        // One that waits for a Pod to be ready before it makes the next is not stuck.
        let ordered = spec.pod_management_policy.as_deref() != Some("Parallel");
        let waits = ordered && status.ready_replicas.unwrap_or(0) < status.replicas;
        let denied = (status.replicas < replicas && !waits).then_some(Denied::Perhaps);
        Some(Self { replicas, observed, complete, denied, revision: status.update_revision, ..workload })
    }

    /// Reads a DaemonSet. None if it lacks what every stored object has.
    pub fn from_daemon_set(object: &DaemonSet) -> Option<Self> {
        let spec = &object.spec;
        let status = object.status.clone().unwrap_or_default();
        let on_delete = spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) == Some("OnDelete");
        let replicas = status.desired_number_scheduled;
        let observed = status.observed_generation >= object.metadata.generation;
        let moved = status.updated_number_scheduled.unwrap_or(0) >= replicas
            && status.number_available.unwrap_or(0) >= replicas;
        let workload = Self::new(Kind::DaemonSet, &object.metadata, &spec.template, Some(&spec.selector))?;
        let denied = (status.current_number_scheduled < replicas).then_some(Denied::Perhaps);
        Some(Self { replicas, observed, complete: observed && (on_delete || moved), denied, ..workload })
    }

    pub(super) fn new(
        kind: Kind,
        metadata: &ObjectMeta,
        template: &PodTemplateSpec,
        selector: Option<&LabelSelector>,
    ) -> Option<Self> {
        let pod = template.spec.as_ref()?;
        Some(Self {
            key: WorkloadKey { kind, namespace: metadata.namespace.clone()?, name: metadata.name.clone()? },
            uid: metadata.uid.clone()?,
            resource_version: metadata.resource_version.clone()?,
            generation: metadata.generation.unwrap_or(0),
            annotations: metadata.annotations.clone().unwrap_or_default(),
            template_annotations: template.metadata.as_ref().and_then(|m| m.annotations.clone()).unwrap_or_default(),
            rollout: template.metadata.as_ref().and_then(|m| m.labels.as_ref()?.get(ROLLOUT).cloned()),
            containers: Container::of(pod),
            placement: Placement::of(pod),
            access: PullAccess::of(pod),
            deleting: metadata.deletion_timestamp.is_some(),
            stamp_owners: stamp_owners(metadata.managed_fields.as_deref().unwrap_or_default()),
            stamped_at: stamped_at(metadata.managed_fields.as_deref().unwrap_or_default()),
            selector: selector.and_then(selector_query),
            replicas: 0,
            marked: metadata.labels.as_ref().is_some_and(|labels| labels.contains_key(ROLLOUT)),
            changed_by: changed_by(metadata.managed_fields.as_deref().unwrap_or_default()),
            observed: false,
            complete: false,
            paused: false,
            exceeded: None,
            trouble: None,
            denied: None,
            revision: None,
            aborted: None,
            unrollable: None,
        })
    }

    /// The stamp of a container.
    pub fn stamp(&self, container: &str) -> Option<Stamp> {
        Stamp::of(&self.template_annotations, container)
    }

    /// What the stamp of a container says that it runs, whatever the text that it was written for.
    pub fn stamped(&self, container: &str) -> Option<Tagged> {
        let stamp = self.stamp(container)?;
        Reference::parse(&stamp.reference).ok().map(|reference| Tagged::of(&reference))
    }

    /// Whether kimup applied the stamp of a container.
    pub fn owns_stamp(&self, container: &str) -> bool {
        self.stamp_owners.get(container).is_some_and(|owners| owners.contains(FIELD_MANAGER))
    }

    /// Whether a container of this workload follows what covers it: the Pod template's word first, then the workload's
    /// own, then its Namespace.
    ///
    /// A stamp alone does not opt in: it is what is left after somebody opted out.
    ///
    /// # Errors
    /// `enabled`, or the container's own `enabled.`, is neither `"true"` nor `"false"`.
    pub fn follows(&self, container: &str, namespace: NamespaceSettings) -> Result<bool, AnnotationError> {
        Levels(&[&self.template_annotations, &self.annotations]).enabled(container, false, namespace)
    }
}

impl Denied {
    /// From the condition that a Deployment takes over from its `ReplicaSet`s.
    fn of_deployment(status: &DeploymentStatus) -> Option<Self> {
        let mut failures = status.conditions.iter().flatten().filter(|c| c.type_.as_deref() == Some("ReplicaFailure"));
        Self::of_message(failures.find(|c| c.status.as_deref() == Some("True"))?.message.as_deref()?)
    }

    /// From what a controller says that could not create a Pod.
    pub(super) fn of_message(message: &str) -> Option<Self> {
        let ours = blames_us(message);
        let unseen = message.contains("failed calling webhook") || message.contains(STAMP_CHECK);
        ours.then_some(if unseen { Self::Unreachable } else { Self::ByUs })
    }
}

impl Container {
    /// The init containers and containers of a Pod or Pod template. One without an image is left out.
    pub fn of(pod: &PodSpec) -> Vec<Self> {
        let read = |c: &PodContainer, init| Some(Self { name: c.name.clone(), text: c.image.clone()?, init });
        let init = pod.init_containers.iter().flatten().filter_map(|c| read(c, true));
        init.chain(pod.containers.iter().filter_map(|c| read(c, false))).collect()
    }
}

impl PullAccess {
    /// Those of a Pod or Pod template.
    pub fn of(pod: &PodSpec) -> Self {
        let secrets = pod.image_pull_secrets.iter().flatten().map(|secret| secret.name.clone());
        let account = pod.service_account_name.clone().filter(|name| !name.is_empty());
        Self {
            secrets: secrets.filter(|name| !name.is_empty()).collect(),
            service_account: account.unwrap_or_else(|| "default".to_owned()),
        }
    }
}

/// Which managers own which container's stamp, from `metadata.managedFields`.
///
/// `kubectl rollout undo` writes a template as another manager: an older stamp that kimup does not own is a person's.
fn stamp_owners(entries: &[ManagedFieldsEntry]) -> BTreeMap<String, BTreeSet<String>> {
    let mut owners: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for entry in entries {
        for container in stamped_containers(entry) {
            let manager = entry.manager.clone().unwrap_or_default();
            owners.entry(container.to_owned()).or_default().insert(manager);
        }
    }
    owners
}

/// When kimup's stamps were applied: the API server notes the time of each apply that changed something. It survives
/// restarts, and needs no clock of ours.
fn stamped_at(entries: &[ManagedFieldsEntry]) -> Option<Timestamp> {
    let ours = entries.iter().filter(|entry| entry.manager.as_deref() == Some(FIELD_MANAGER));
    let stamped = ours.filter(|entry| stamped_containers(entry).next().is_some());
    stamped.filter_map(|entry| entry.time.as_ref().map(|time| time.0)).max()
}

/// Who changed the object last: the newest entry that is not kimup's. One that takes something away and adds nothing may
/// leave no trace of its own; then it is the one that changed something before.
fn changed_by(entries: &[ManagedFieldsEntry]) -> Option<String> {
    let ours = |manager: &str| manager.starts_with("kimup-");
    let others = entries.iter().filter(|entry| entry.subresource.as_deref().unwrap_or_default().is_empty());
    let others = others.filter_map(|entry| Some((entry.time.as_ref()?.0, entry.manager.as_deref()?)));
    others.filter(|(_, manager)| !ours(manager)).max_by_key(|(time, _)| *time).map(|(_, manager)| manager.to_owned())
}

/// The containers whose stamps an entry of `metadata.managedFields` owns.
fn stamped_containers(entry: &ManagedFieldsEntry) -> impl Iterator<Item = &str> {
    let path = ["f:spec", "f:template", "f:metadata", "f:annotations"];
    let annotations = entry
        .fields_v1
        .as_ref()
        .and_then(|fields| path.iter().try_fold(&fields.0, |value: &Value, key| value.get(key)));
    let keys = annotations.and_then(Value::as_object).into_iter().flat_map(|map| map.keys());
    keys.filter_map(|key| key.strip_prefix("f:")?.strip_prefix(STAMP_PREFIX))
}

fn selector_query(selector: &LabelSelector) -> Option<String> {
    let mut parts: Vec<String> =
        selector.match_labels.iter().flatten().map(|(key, value)| format!("{key}={value}")).collect();
    for expression in selector.match_expressions.iter().flatten() {
        let values = expression.values.as_deref().unwrap_or_default().join(",");
        parts.push(match expression.operator.as_str() {
            "In" => format!("{} in ({values})", expression.key),
            "NotIn" => format!("{} notin ({values})", expression.key),
            "Exists" => expression.key.clone(),
            "DoesNotExist" => format!("!{}", expression.key),
            _ => return None,
        });
    }
    (!parts.is_empty()).then(|| parts.join(","))
}

#[cfg(test)]
mod tests;
