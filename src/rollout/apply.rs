//! Writes a plan: one server-side apply per workload.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::api::annotations::{ACTION, CHANGE_CAUSE, HOLD, ROLLOUT, stamp_key};

use super::plan::{CAUSE_PREFIX, Plan};
use super::workload::{Kind, Workload};

/// The field manager of stamps. It never begins with `kubectl`: GitOps tools take over what such managers own.
pub const FIELD_MANAGER: &str = "kimup-rollout";
const TIMEOUT: Duration = Duration::from_secs(20);

/// Why a plan could not be written.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// The workload changed or went since it was read (HTTP 409 or 404): observe again.
    #[error("it changed since it was read")]
    Conflict,
    /// The API server did not take it.
    #[error("{0}")]
    Refused(String),
    /// No answer: the write may have gone through. Observe again.
    #[error("no answer from the API server: {0}")]
    Unknown(String),
}

/// Applies a plan's stamps, rollout label and change-cause; returns the workload as it is then.
///
/// With force (the stamps are kimup's), the UID (a deleted object is never created again) and the resource version
/// (nothing unseen is overwritten).
pub async fn apply(client: &kube::Client, workload: &Workload, plan: &Plan) -> Result<Option<Workload>, ApplyError> {
    let rollout = plan.changes.first().map(|c| c.rollout.as_str());
    write(client, workload, body(workload, &plan.stamps, rollout, Some(&plan.change_cause()))).await
}

/// Applies what the template says already, so that it stays whatever becomes of who wrote it: no Pod is replaced.
pub async fn adopt(client: &kube::Client, workload: &Workload, plan: &Plan) -> Result<Option<Workload>, ApplyError> {
    // A cause that somebody else wrote stays theirs.
    let cause = workload.annotations.get(CHANGE_CAUSE).filter(|cause| cause.starts_with(CAUSE_PREFIX));
    let body = body(workload, &plan.adopts, workload.rollout.as_deref(), cause.map(String::as_str));
    write(client, workload, body).await
}

/// Ends what a person asked of a workload by annotation: removes `action` and `hold`.
pub async fn remove_requests(client: &kube::Client, workload: &Workload) -> Result<Option<Workload>, ApplyError> {
    let metadata = json!({
        "uid": workload.uid,
        "resourceVersion": workload.resource_version,
        "annotations": {ACTION: null, HOLD: null},
    });
    send(client, workload, &PatchParams::default(), &Patch::Merge(json!({"metadata": metadata}))).await
}

async fn write(client: &kube::Client, workload: &Workload, body: Value) -> Result<Option<Workload>, ApplyError> {
    send(client, workload, &PatchParams::apply(FIELD_MANAGER).force(), &Patch::Apply(body)).await
}

async fn send(
    client: &kube::Client,
    workload: &Workload,
    params: &PatchParams,
    patch: &Patch<Value>,
) -> Result<Option<Workload>, ApplyError> {
    let (namespace, name) = (&workload.key.namespace, &workload.key.name);
    let call = async {
        match workload.key.kind {
            Kind::Deployment => {
                let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
                api.patch(name, params, patch).await.map(|o| Workload::from_deployment(&o))
            }
            Kind::StatefulSet => {
                let api: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
                api.patch(name, params, patch).await.map(|o| Workload::from_stateful_set(&o))
            }
            Kind::DaemonSet => {
                let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
                api.patch(name, params, patch).await.map(|o| Workload::from_daemon_set(&o))
            }
            kind @ (Kind::Rollout | Kind::CloneSet) => {
                let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.resource());
                api.patch(name, params, patch).await.map(|o| Workload::from_foreign(kind, &o))
            }
        }
    };
    match tokio::time::timeout(TIMEOUT, call).await {
        Ok(Ok(workload)) => Ok(workload),
        Ok(Err(kube::Error::Api(status))) if matches!(status.code, 404 | 409) => Err(ApplyError::Conflict),
        Ok(Err(kube::Error::Api(status))) if status.code < 500 => Err(ApplyError::Refused(status.message.clone())),
        Ok(Err(error)) => Err(ApplyError::Unknown(error.to_string())),
        Err(_) => Err(ApplyError::Unknown(format!("nothing within {} s", TIMEOUT.as_secs()))),
    }
}

/// What kimup owns of a workload: all of it, since an apply takes away what it leaves out.
fn body(workload: &Workload, stamps: &BTreeMap<String, String>, rollout: Option<&str>, cause: Option<&str>) -> Value {
    let stamps: serde_json::Map<String, Value> =
        stamps.iter().map(|(container, stamp)| (stamp_key(container), json!(stamp))).collect();
    let labels: BTreeMap<&str, &str> = rollout.into_iter().map(|rollout| (ROLLOUT, rollout)).collect();
    let annotations: BTreeMap<&str, &str> = cause.into_iter().map(|cause| (CHANGE_CAUSE, cause)).collect();
    json!({
        "apiVersion": workload.key.kind.api_version(),
        "kind": workload.key.kind.as_str(),
        "metadata": {
            "name": workload.key.name,
            "namespace": workload.key.namespace,
            "uid": workload.uid,
            "resourceVersion": workload.resource_version,
            "annotations": annotations,
            // An undo takes nothing of a workload's own labels away, a replacement takes all: so they are told apart.
            "labels": labels,
        },
        "spec": {"template": {"metadata": {"annotations": stamps, "labels": labels}}},
    })
}
