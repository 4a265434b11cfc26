//! Revision records: which references the first Pods of an unstamped revision got (design section 4, point 3). Pure.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::Pod;

use crate::api::annotated::PodHash;
use crate::api::annotations::Stamp;
use crate::api::{Applied, RevisionRecord};
use crate::policy::Reference;

/// Most records one Image keeps; of more, those whose owner has no Pods go first.
const MAX_RECORDS: usize = 200;

/// What a Pod of an unstamped revision tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodRecord {
    /// When it was created (RFC 3339, so that text order is time order).
    pub created: String,
    /// Its controller: `ReplicaSet/web-5d8f`.
    pub owner: String,
    /// Its controller's UID.
    pub uid: String,
    /// Its [`PodHash`].
    pub hash: String,
    /// What admission gave: Image, container, and text and reference as a stamp.
    pub containers: Vec<(String, String, Stamp)>,
}

/// Reads a Pod. None if it tells nothing: not admitted by kimup, stamped, or without a controller.
pub fn of_pod(pod: &Pod) -> Option<PodRecord> {
    let annotations = pod.metadata.annotations.as_ref()?;
    let owner = pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true))?;
    let spec = pod.spec.as_ref()?;
    let image_of = |name: &str| {
        let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
        all.find(|c| c.name == name)?.image.as_deref()
    };
    let containers: Vec<_> = Applied::of(annotations)
        .into_iter()
        .filter(|applied| applied.rollout.is_none())
        .filter_map(|applied| {
            let running = image_of(&applied.container)?;
            let reference = Reference::parse(running).ok()?;
            // Somebody changed the Pod since: it tells nothing of its revision.
            let same = reference.tag() == Some(applied.to.as_str());
            let text = applied.from.map_or_else(|| reference.name().to_owned(), |from| reference.with_tag(&from));
            same.then(|| (applied.image, applied.container, Stamp { text, reference: running.to_owned() }))
        })
        .filter_map(|(image, container, stamp)| Some((image?, container, stamp)))
        .collect();
    let created = pod.metadata.creation_timestamp.as_ref().map(|t| t.0.to_string());
    (!containers.is_empty()).then(|| PodRecord {
        created: created.unwrap_or_default(),
        owner: format!("{}/{}", owner.kind, owner.name),
        uid: owner.uid.clone(),
        hash: PodHash::of(pod.metadata.labels.as_ref()).value.to_owned(),
        containers,
    })
}

/// Adds what Pods tell to the records of an Image. What is recorded once never changes: the first Pod counts.
pub fn merge<'a>(records: &mut Vec<RevisionRecord>, image: &str, pods: impl IntoIterator<Item = &'a PodRecord>) {
    let mut pods: Vec<&PodRecord> = pods.into_iter().collect();
    pods.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.containers.len().cmp(&b.containers.len())));
    for pod in &pods {
        for (_, container, stamp) in pod.containers.iter().filter(|(name, _, _)| name == image) {
            let known = records.iter().position(|r| r.uid == pod.uid && r.hash == pod.hash);
            let index = known.unwrap_or_else(|| {
                let (owner, uid, hash) = (pod.owner.clone(), pod.uid.clone(), pod.hash.clone());
                records.push(RevisionRecord { owner, uid, hash, ..RevisionRecord::default() });
                records.len() - 1
            });
            records[index].containers.entry(container.clone()).or_insert_with(|| stamp.to_string());
        }
    }
    if records.len() > MAX_RECORDS {
        let live: HashSet<&str> = pods.iter().map(|p| p.uid.as_str()).collect();
        let mut excess = records.len() - MAX_RECORDS;
        records.retain(|r| {
            let drop = excess > 0 && !live.contains(r.uid.as_str());
            excess -= usize::from(drop);
            !drop
        });
        records.drain(..records.len().saturating_sub(MAX_RECORDS));
    }
}

/// Whether it is on record what the revision of a Pod gives a container.
pub fn is_on_record(records: &[RevisionRecord], pod: &PodRecord, container: &str) -> bool {
    let same = |record: &&RevisionRecord| record.uid == pod.uid && record.hash == pod.hash;
    records.iter().find(same).is_some_and(|record| record.containers.contains_key(container))
}

/// Drops the records of owners that are gone: nothing can make Pods of them again.
pub fn prune(records: &mut Vec<RevisionRecord>, gone: impl Fn(&RevisionRecord) -> bool) {
    records.retain(|record| !gone(record));
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(patch: &Value) -> Pod {
        let mut object = json!({
            "metadata": {
                "name": "web-1", "creationTimestamp": "2026-11-21T10:00:00Z",
                "labels": {"pod-template-hash": "5d8f"},
                "annotations": {"kimup.cloudavenue.io/applied": "app: 1.0.0 -> 1.4.2 (Image web)"},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-5d8f", "uid": "rs", "controller": true}]
            },
            "spec": {"containers": [{"name": "app", "image": "ghcr.io/org/app:1.4.2"}]}
        });
        json_patch::merge(&mut object, patch);
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn a_pod_tells_of_its_revision() {
        fn check(patch: &Value, expected: Option<(&str, &str)>) {
            let record = of_pod(&pod(patch));
            let found = record.as_ref().map(|r| (r.hash.as_str(), r.containers[0].2.to_string()));
            assert_eq!(found, expected.map(|(hash, stamp)| (hash, stamp.to_owned())), "{patch}");
        }
        let applied = |value: &str| json!({"metadata": {"annotations": {"kimup.cloudavenue.io/applied": value}}});
        check(&json!({}), Some(("5d8f", "ghcr.io/org/app:1.0.0 ghcr.io/org/app:1.4.2")));
        check(&applied("app: (no tag) -> 1.4.2 (Image web)"), Some(("5d8f", "ghcr.io/org/app ghcr.io/org/app:1.4.2")));
        check(&applied("app: 1.4.2 (Image web)"), Some(("5d8f", "ghcr.io/org/app:1.4.2 ghcr.io/org/app:1.4.2")));
        check(&applied("app: 1.0.0 -> 1.4.2 (Image web, rollout ab12)"), None);
        check(&applied("app: 1.0.0 -> 1.3.0 (Image web)"), None);
        check(&json!({"metadata": {"ownerReferences": null}}), None);
        check(&json!({"metadata": {"annotations": null}}), None);
        let hash = json!({"metadata": {"labels": {"pod-template-hash": null, "controller-revision-hash": "db-1"}}});
        check(&hash, Some(("db-1", "ghcr.io/org/app:1.0.0 ghcr.io/org/app:1.4.2")));
        let hash = json!({"metadata": {"labels": {"pod-template-hash": null, "rollouts-pod-template-hash": "6e9a"}}});
        check(&hash, Some(("6e9a", "ghcr.io/org/app:1.0.0 ghcr.io/org/app:1.4.2")));
        check(&json!({"metadata": {"labels": null}}), Some(("", "ghcr.io/org/app:1.0.0 ghcr.io/org/app:1.4.2")));
    }

    fn told(created: &str, uid: &str, tag: &str) -> PodRecord {
        let stamp = Stamp { text: "app:1".to_owned(), reference: format!("app:{tag}") };
        PodRecord {
            created: created.to_owned(),
            owner: "ReplicaSet/web".to_owned(),
            uid: uid.to_owned(),
            hash: "h".to_owned(),
            containers: vec![("web".to_owned(), "app".to_owned(), stamp)],
        }
    }

    #[test]
    fn the_first_pod_counts_and_nothing_recorded_changes() {
        let mut records = Vec::new();
        merge(&mut records, "web", [&told("2026-01-02", "a", "2"), &told("2026-01-01", "a", "1")]);
        assert_eq!(records.len(), 1);
        assert_eq!(records[0].containers["app"], "app:1 app:1");
        let before = records.clone();
        merge(&mut records, "web", [&told("2025-01-01", "a", "9")]);
        merge(&mut records, "other", [&told("2025-01-01", "b", "9")]);
        assert_eq!(records, before);
        prune(&mut records, |r| r.uid == "a");
        assert!(records.is_empty());
    }

    #[test]
    fn records_are_bounded_and_those_with_pods_stay() {
        let mut records = Vec::new();
        let old: Vec<_> = (0..MAX_RECORDS).map(|i| told("2026-01-01", &format!("old{i}"), "1")).collect();
        merge(&mut records, "web", &old);
        merge(&mut records, "web", [&told("2026-01-02", "new", "2"), &old[0]]);
        assert_eq!(records.len(), MAX_RECORDS);
        assert!(records.iter().any(|r| r.uid == "new"));
        assert!(records.iter().any(|r| r.uid == "old0"));
        assert!(!records.iter().any(|r| r.uid == "old1"));
    }
}
