//! Writes a plan: one server-side apply per workload.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use kube::api::{Api, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};

use crate::api::annotations::{CHANGE_CAUSE, ROLLOUT, stamp_key};

use super::plan::Plan;
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
    let (namespace, name) = (&workload.key.namespace, &workload.key.name);
    let patch = Patch::Apply(body(workload, plan));
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let call = async {
        match workload.key.kind {
            Kind::Deployment => {
                let api: Api<Deployment> = Api::namespaced(client.clone(), namespace);
                api.patch(name, &params, &patch).await.map(|o| Workload::from_deployment(&o))
            }
            Kind::StatefulSet => {
                let api: Api<StatefulSet> = Api::namespaced(client.clone(), namespace);
                api.patch(name, &params, &patch).await.map(|o| Workload::from_stateful_set(&o))
            }
            Kind::DaemonSet => {
                let api: Api<DaemonSet> = Api::namespaced(client.clone(), namespace);
                api.patch(name, &params, &patch).await.map(|o| Workload::from_daemon_set(&o))
            }
            kind @ (Kind::Rollout | Kind::CloneSet) => {
                let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &kind.resource());
                api.patch(name, &params, &patch).await.map(|o| Workload::from_foreign(kind, &o))
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

fn body(workload: &Workload, plan: &Plan) -> Value {
    let stamps: serde_json::Map<String, Value> =
        plan.stamps.iter().map(|(container, stamp)| (stamp_key(container), json!(stamp))).collect();
    let rollout = plan.changes.first().map(|c| c.rollout.as_str()).unwrap_or_default();
    json!({
        "apiVersion": workload.key.kind.api_version(),
        "kind": workload.key.kind.as_str(),
        "metadata": {
            "name": workload.key.name,
            "namespace": workload.key.namespace,
            "uid": workload.uid,
            "resourceVersion": workload.resource_version,
            "annotations": {CHANGE_CAUSE: plan.change_cause()},
        },
        "spec": {"template": {"metadata": {"annotations": stamps, "labels": {ROLLOUT: rollout}}}},
    })
}
