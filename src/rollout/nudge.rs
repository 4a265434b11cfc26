//! Nudges a controller whose Pods were denied: it waits longer after each denial, up to 16 minutes, but looks again at
//! once when its object changes.

use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::api::annotations::NUDGED;

use super::apply::ApplyError;
use super::facts::{self, FactsError};
use super::workload::{Kind, Workload, blames_us};

/// The field manager of nudges.
const FIELD_MANAGER: &str = "kimup-nudge";
const TIMEOUT: Duration = Duration::from_secs(10);
/// Most `ReplicaSet`s of one Deployment that are nudged at a time; more than two are rarely at work.
const MAX_SETS: usize = 5;

/// Kind of an object whose controller creates Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum OwnerKind {
    /// `apps/v1` ReplicaSet.
    ReplicaSet,
    /// `apps/v1` StatefulSet.
    StatefulSet,
    /// `apps/v1` DaemonSet.
    DaemonSet,
    /// `apps.kruise.io/v1alpha1` CloneSet.
    CloneSet,
    /// `batch/v1` Job.
    Job,
}

impl OwnerKind {
    /// The kind as it stands in YAML.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ReplicaSet => "ReplicaSet",
            Self::StatefulSet => "StatefulSet",
            Self::DaemonSet => "DaemonSet",
            Self::CloneSet => "CloneSet",
            Self::Job => "Job",
        }
    }
}

/// An object whose controller creates Pods.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct PodOwner {
    /// Its kind.
    pub kind: OwnerKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID: another object of that name is left alone.
    pub uid: String,
}

/// The objects whose controllers create the Pods of a stuck workload: itself, or of a Deployment or Rollout those
/// `ReplicaSet`s that say that kimup's webhook was in the way, found by one list.
pub async fn pod_owners(client: &kube::Client, workload: &Workload) -> Result<Vec<PodOwner>, FactsError> {
    let owner = |kind, name: &str, uid: &str| PodOwner {
        kind,
        namespace: workload.key.namespace.clone(),
        name: name.to_owned(),
        uid: uid.to_owned(),
    };
    let kind = match workload.key.kind {
        Kind::Deployment | Kind::Rollout => {
            let sets: Vec<ReplicaSet> = facts::list(client, workload, "ReplicaSets").await?;
            let own = sets.iter().filter(|set| facts::controller(&set.metadata) == Some(&workload.uid));
            let stuck = own.filter(|set| is_stuck(set)).take(MAX_SETS);
            let named = stuck.filter_map(|set| Some((set.metadata.name.as_deref()?, set.metadata.uid.as_deref()?)));
            return Ok(named.map(|(name, uid)| owner(OwnerKind::ReplicaSet, name, uid)).collect());
        }
        Kind::StatefulSet => OwnerKind::StatefulSet,
        Kind::DaemonSet => OwnerKind::DaemonSet,
        Kind::CloneSet => OwnerKind::CloneSet,
    };
    Ok(vec![owner(kind, &workload.key.name, &workload.uid)])
}

fn is_stuck(set: &ReplicaSet) -> bool {
    let conditions = set.status.iter().flat_map(|status| status.conditions.iter().flatten());
    let mut failures =
        conditions.filter(|c| c.type_.as_deref() == Some("ReplicaFailure") && c.status.as_deref() == Some("True"));
    failures.any(|c| blames_us(c.message.as_deref().unwrap_or_default()))
}

/// Writes the annotation [`NUDGED`] with this time (RFC 3339): a change is all that the controller waits for. Never
/// creates an object, and touches nothing of its spec.
pub async fn nudge(client: &kube::Client, owner: &PodOwner, time: &str) -> Result<(), ApplyError> {
    match owner.kind {
        OwnerKind::ReplicaSet => annotate::<ReplicaSet>(client, owner, time).await,
        OwnerKind::StatefulSet => annotate::<StatefulSet>(client, owner, time).await,
        OwnerKind::DaemonSet => annotate::<DaemonSet>(client, owner, time).await,
        OwnerKind::CloneSet => {
            let resource = Kind::CloneSet.resource();
            let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &owner.namespace, &resource);
            annotate_by(api, owner, time).await
        }
        OwnerKind::Job => annotate::<Job>(client, owner, time).await,
    }
}

async fn annotate<K>(client: &kube::Client, owner: &PodOwner, time: &str) -> Result<(), ApplyError>
where
    K: kube::Resource<Scope = NamespaceResourceScope, DynamicType = ()> + Clone + Debug + DeserializeOwned,
{
    annotate_by(Api::<K>::namespaced(client.clone(), &owner.namespace), owner, time).await
}

async fn annotate_by<K: Clone + Debug + DeserializeOwned>(
    api: Api<K>,
    owner: &PodOwner,
    time: &str,
) -> Result<(), ApplyError> {
    let params = PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() };
    // Another UID than the object's is a conflict.
    let patch = Patch::Merge(json!({"metadata": {"uid": owner.uid, "annotations": {NUDGED: time}}}));
    match tokio::time::timeout(TIMEOUT, api.patch_metadata(&owner.name, &params, &patch)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Err(ApplyError::Conflict),
        Ok(Err(kube::Error::Api(status))) if status.code < 500 => Err(ApplyError::Refused(status.message.clone())),
        Ok(Err(error)) => Err(ApplyError::Unknown(error.to_string())),
        Err(_) => Err(ApplyError::Unknown(format!("nothing within {} s", TIMEOUT.as_secs()))),
    }
}
