//! Pods that came to be without kimup: what each tells. Pure.

use std::collections::BTreeSet;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::Applied;
use crate::api::annotated::{Levels, PodHash, owners_of};
use crate::api::annotations::{self, NamespaceSettings, ROLLOUT, Stamp};
use crate::rollout::{Container, Kind, WorkloadKey};

/// A Pod that came to be without kimup.
#[derive(Clone, Debug)]
pub struct Unmutated {
    /// Its UID: another Pod of a StatefulSet has the same name.
    pub uid: String,
    /// Whose Pod it is.
    pub workload: WorkloadKey,
    /// UID of its controller and hash of its revision, as `status.revisions` has them.
    pub revision: (String, String),
    /// The rollout that stamped it, if one did.
    pub rollout: Option<String>,
    /// Its containers that run the text instead of their stamp. Empty: it has no stamp, and kimup did not speak of it;
    /// whether it should have is not said by the Pod.
    pub containers: BTreeSet<String>,
    /// When this process saw it first.
    pub seen: Instant,
}

/// Reads a Pod. None if kimup answered for it, or has nothing to answer.
pub fn of_pod(pod: &Pod, namespace: NamespaceSettings) -> Option<Unmutated> {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if pod.metadata.deletion_timestamp.is_some() || matches!(phase, Some("Succeeded" | "Failed")) {
        return None;
    }
    let own = pod.annotations();
    let levels = Levels(&[own]);
    let containers = Container::of(pod.spec.as_ref()?);
    let is_text = |container: &Container| {
        let stamp = Stamp::of(own, &container.name);
        let runs_text = stamp.is_some_and(|stamp| stamp.text == container.text && stamp.reference != stamp.text);
        runs_text && levels.enabled(&container.name, true, namespace) == Ok(true)
    };
    let wrong: BTreeSet<String> = containers.iter().filter(|c| is_text(c)).map(|c| c.name.clone()).collect();
    if wrong.is_empty() {
        let applied = Applied::of(own);
        let unspoken = |c: &Container| {
            levels.enabled(&c.name, false, namespace) == Ok(true) && !applied.iter().any(|a| a.container == c.name)
        };
        if annotations::has_stamp(own) || !containers.iter().any(unspoken) {
            return None;
        }
    }
    let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true))?;
    let hash = PodHash::of(Some(pod.labels()));
    Some(Unmutated {
        uid: pod.uid()?,
        workload: workload(pod, owner, hash)?,
        revision: (owner.uid.clone(), hash.value.to_owned()),
        rollout: pod.labels().get(ROLLOUT).cloned(),
        containers: wrong,
        seen: Instant::now(),
    })
}

fn workload(pod: &Pod, owner: &OwnerReference, hash: PodHash<'_>) -> Option<WorkloadKey> {
    let owners = owners_of(&owner.kind, &owner.name, hash);
    owners.iter().find_map(|(kind, name)| {
        let kind = Kind::ALL.into_iter().find(|known| known.as_str() == *kind)?;
        Some(WorkloadKey { kind, namespace: pod.namespace()?, name: name.clone() })
    })
}

/// Names in a sentence, the first five of them.
pub fn names(pods: &BTreeSet<String>) -> String {
    const MOST: usize = 5;
    let named: Vec<&str> = pods.iter().take(MOST).map(String::as_str).collect();
    match pods.len().saturating_sub(MOST) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(patch: &Value, enabled: bool, expected: Option<&str>) {
        let mut object = json!({
            "metadata": {
                "name": "web-5d8f-x", "namespace": "shop", "uid": "u",
                "labels": {"pod-template-hash": "5d8f", ROLLOUT: "ab12"},
                "annotations": {"stamp.kimup.cloudavenue.io/app": "app:1.0.0 app:1.4.2"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d8f", "uid": "rs", "controller": true}],
            },
            "spec": {"containers": [{"name": "app", "image": "app:1.0.0"}]},
        });
        json_patch::merge(&mut object, patch);
        let namespace = NamespaceSettings { enabled, ..NamespaceSettings::default() };
        let found = of_pod(&serde_json::from_value(object).unwrap(), namespace);
        let said = found.map(|found| {
            let containers: Vec<String> = found.containers.into_iter().collect();
            format!("{} {}", found.workload, containers.join(" ")).trim().to_owned()
        });
        assert_eq!(said.as_deref(), expected, "{patch}");
    }

    #[test]
    fn a_pod_tells_that_kimup_was_away() {
        let annotated = |annotations: Value| json!({"metadata": {"annotations": annotations}});
        let runs = |image: &str| json!({"spec": {"containers": [{"name": "app", "image": image}]}});
        check(&json!({}), false, Some("Deployment/web app"));
        check(&runs("app:1.4.2"), true, None);
        let argo = json!({"pod-template-hash": null, "rollouts-pod-template-hash": "5d8f"});
        check(&json!({"metadata": {"labels": argo}}), false, Some("Rollout/web app"));
        // Another webhook rewrote it: not for us to judge.
        check(&runs("mirror.example/app:1.0.0"), true, None);
        check(&annotated(json!({"kimup.cloudavenue.io/enabled": "false"})), true, None);
        check(&annotated(json!({"enabled.kimup.cloudavenue.io/app": "false"})), true, None);
        check(&annotated(json!({"stamp.kimup.cloudavenue.io/app": "app:1.0.0 app:1.0.0"})), true, None);
        check(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}}), true, None);
        check(&json!({"status": {"phase": "Succeeded"}}), true, None);
        check(&json!({"metadata": {"ownerReferences": null}}), true, None);
        // Without a stamp it may be.
        let bare = |applied: Value| {
            let key = "kimup.cloudavenue.io/applied";
            annotated(json!({"stamp.kimup.cloudavenue.io/app": null, key: applied}))
        };
        check(&bare(json!(null)), true, Some("Deployment/web"));
        check(&bare(json!(null)), false, None);
        check(&bare(json!("app: 1.0.0 (Image web)")), true, None);
    }

    #[test]
    fn few_names_are_said() {
        let pods = |count: usize| (0..count).map(|n| format!("p{n}")).collect();
        assert_eq!(names(&pods(2)), "p0, p1");
        assert_eq!(names(&pods(7)), "p0, p1, p2, p3, p4 and 2 more");
    }
}
