//! Workloads that other projects bring, from whatever the API server has of them: Argo's Rollout and OpenKruise's
//! CloneSet. Only the few fields that count are read, so that another version of their CRDs changes nothing here. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::api::DynamicObject;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::facts::short_hash;
use super::workload::{Denied, Kind, Workload};

/// Why a CloneSet that changes Pods in place is not rolled: of such a change admission hears nothing.
const IN_PLACE: &str = "it changes its Pods in place, where a stamp changes no image: set spec.updateStrategy.type to \
                        ReCreate to have it rolled, or opt it out; new Pods get the tag as ever";

impl Workload {
    /// Reads an object of a kind that another project brings. None if there is no Pod template in it that could be
    /// stamped.
    pub fn from_foreign(kind: Kind, object: &DynamicObject) -> Option<Self> {
        match kind {
            Kind::Rollout => Self::from_rollout(object),
            Kind::CloneSet => Self::from_clone_set(object),
            Kind::Deployment | Kind::StatefulSet | Kind::DaemonSet => None,
        }
    }

    /// Reads an Argo Rollout. One with `spec.workloadRef` has no template of its own: the workload that it refers to is
    /// stamped, and the Rollout follows that.
    fn from_rollout(object: &DynamicObject) -> Option<Self> {
        let fields = Fields(&object.data);
        if fields.get("/spec/workloadRef").is_some() {
            return None;
        }
        let workload = new(Kind::Rollout, object)?;
        let replicas = fields.int("/spec/replicas").unwrap_or(1);
        // A number, written as text.
        let observed = fields.text("/status/observedGeneration").and_then(|seen| seen.parse::<i64>().ok());
        let observed = observed.is_some_and(|seen| seen >= workload.generation);
        let phase = fields.text("/status/phase");
        // Somebody promoted it, and its controller has not seen that yet.
        let resumes = fields.get("/status/controllerPause") == Some(&Value::Bool(true))
            && fields.list("/status/pauseConditions").is_empty();
        let updated = fields.int("/status/updatedReplicas").unwrap_or(0);
        let promoted = fields.text("/status/stableRS") == fields.text("/status/currentPodHash");
        let complete = observed
            && !resumes
            && phase.is_none_or(|phase| phase == "Healthy")
            && promoted
            && updated >= replicas
            && fields.int("/status/availableReplicas").unwrap_or(0) >= updated;
        let aborted = fields.condition("Progressing", "False").filter(|c| c["reason"] == "RolloutAborted");
        let is_aborted = aborted.is_some() || fields.get("/status/abort") == Some(&Value::Bool(true));
        let why = fields.text("/status/message").filter(|why| !why.is_empty()).or_else(|| aborted.and_then(message));
        let trouble = fields.condition("ReplicaFailure", "True").and_then(message);
        Some(Self {
            replicas,
            observed,
            complete,
            paused: fields.get("/spec/paused") == Some(&Value::Bool(true)),
            exceeded: if is_aborted {
                fields.time("/status/abortedAt").or_else(|| aborted.and_then(since))
            } else {
                fields.deadline_passed()
            },
            aborted: is_aborted.then(|| why.unwrap_or("RolloutAborted").to_owned()),
            trouble: trouble.map(str::to_owned),
            denied: trouble.and_then(Denied::of_message),
            ..workload
        })
    }

    /// Reads an OpenKruise CloneSet.
    fn from_clone_set(object: &DynamicObject) -> Option<Self> {
        let workload = new(Kind::CloneSet, object)?;
        let fields = Fields(&object.data);
        let status = |field: &str| fields.int(&format!("/status/{field}")).unwrap_or(0);
        let replicas = fields.int("/spec/replicas").unwrap_or(1);
        let observed = fields.get("/status/observedGeneration").and_then(Value::as_i64);
        let observed = observed.is_some_and(|seen| seen >= workload.generation);
        let kept = partition(fields.get("/spec/updateStrategy/partition"), replicas);
        let expected = fields.int("/status/expectedUpdatedReplicas").unwrap_or(replicas - kept);
        let updated = status("updatedReplicas");
        let complete = observed
            && updated >= expected
            && status("updatedReadyReplicas") >= expected
            && status("availableReplicas").max(status("readyReplicas")) >= replicas
            && status("replicas") - updated <= replicas - expected;
        let trouble =
            ["FailedScale", "FailedUpdate"].iter().find_map(|kind| fields.condition(kind, "True")).and_then(message);
        let few = || (status("replicas") < replicas).then_some(Denied::Perhaps);
        let in_place = fields.text("/spec/updateStrategy/type").is_some_and(|kind| kind.starts_with("InPlace"));
        Some(Self {
            replicas,
            observed,
            complete,
            paused: fields.get("/spec/updateStrategy/paused") == Some(&Value::Bool(true)),
            exceeded: fields.deadline_passed(),
            trouble: trouble.map(str::to_owned),
            denied: trouble.and_then(Denied::of_message).or_else(few),
            revision: fields.text("/status/updateRevision").map(|revision| short_hash(revision).to_owned()),
            unrollable: in_place.then_some(IN_PLACE),
            ..workload
        })
    }
}

fn new(kind: Kind, object: &DynamicObject) -> Option<Workload> {
    let fields = Fields(&object.data);
    let template: PodTemplateSpec = fields.read("/spec/template")?;
    Workload::new(kind, &object.metadata, &template, fields.read::<LabelSelector>("/spec/selector").as_ref())
}

/// How many Pods stay at the revision before: a number, or a percentage that is rounded up but, unless it is 100 %, leaves
/// one Pod of several to be updated.
fn partition(value: Option<&Value>, replicas: i32) -> i32 {
    let kept = match value {
        Some(Value::String(percent)) => {
            let Some(percent) = percent.strip_suffix('%').and_then(|percent| percent.parse::<i64>().ok()) else {
                return 0;
            };
            let kept = (i64::from(replicas) * percent.clamp(0, 100) + 99) / 100;
            let all = kept >= i64::from(replicas) && percent < 100 && replicas > 1;
            kept - i64::from(all)
        }
        Some(number) => number.as_i64().unwrap_or(0),
        None => 0,
    };
    i32::try_from(kept.clamp(0, i64::from(replicas.max(0)))).unwrap_or(0)
}

/// What is not metadata of an object. A field that is `null`, or of another type than expected, counts as absent.
struct Fields<'a>(&'a Value);

impl<'a> Fields<'a> {
    fn get(&self, path: &str) -> Option<&'a Value> {
        self.0.pointer(path).filter(|value| !value.is_null())
    }

    fn text(&self, path: &str) -> Option<&'a str> {
        self.get(path)?.as_str()
    }

    fn int(&self, path: &str) -> Option<i32> {
        i32::try_from(self.get(path)?.as_i64()?).ok()
    }

    fn list(&self, path: &str) -> &'a [Value] {
        self.get(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
    }

    fn read<T: DeserializeOwned>(&self, path: &str) -> Option<T> {
        T::deserialize(self.get(path)?).ok()
    }

    fn condition(&self, kind: &str, status: &str) -> Option<&'a Value> {
        self.list("/status/conditions").iter().find(|c| c["type"] == kind && c["status"] == status)
    }

    fn time(&self, path: &str) -> Option<Timestamp> {
        self.text(path)?.parse().ok()
    }

    /// When the condition `Progressing` said that `spec.progressDeadlineSeconds` have passed.
    fn deadline_passed(&self) -> Option<Timestamp> {
        let condition = self.condition("Progressing", "False")?;
        (condition["reason"] == "ProgressDeadlineExceeded").then(|| since(condition)).flatten()
    }
}

/// When a condition was said last.
fn since(condition: &Value) -> Option<Timestamp> {
    let time = |field: &str| condition[field].as_str()?.parse().ok();
    time("lastUpdateTime").or_else(|| time("lastTransitionTime"))
}

fn message(condition: &Value) -> Option<&str> {
    condition["message"].as_str()
}

#[cfg(test)]
mod tests;
