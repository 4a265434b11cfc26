//! Pods that came to be without kimup: what each tells. Pure.

use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::annotated::{Levels, PodHash, owners_of};
use crate::api::annotations::{
    self, ENABLED, ENABLED_PREFIX, MIRROR_POD, NamespaceSettings, POLICY, POLICY_PREFIX, ROLLOUT, Stamp,
};
use crate::api::{Applied, HistoryEntry, Image, Order};
use crate::policy::{Reference, Repository};
use crate::rollout::{Container, Kind, WorkloadKey};

/// What was written less than this before a Pod was created may not have counted yet: a tag that settled, on its way to every
/// replica, or a label that opts in, on its way to every API server. Both times are of whole seconds.
const ARRIVES_WITHIN: SignedDuration = SignedDuration::from_secs(2);
/// The same of a Namespace's annotation: it counts when the leader has written the name into the webhook configuration.
const ANNOTATION_ARRIVES_WITHIN: SignedDuration = SignedDuration::from_secs(10);

/// A Pod that came to be without kimup.
#[derive(Clone, Debug)]
pub struct Unmutated {
    /// Its UID: another Pod of a StatefulSet has the same name.
    pub uid: String,
    /// Whose Pod it is; none if nothing that kimup rolls made it: nobody replaces it.
    pub workload: Option<WorkloadKey>,
    /// UID of its controller and hash of its revision, as `status.revisions` has them; empty without a controller.
    pub revision: (String, String),
    /// The rollout that stamped it, if one did.
    pub rollout: Option<String>,
    /// Its containers that run the text instead of their stamp. Empty: it has no stamp, and kimup did not speak of it;
    /// whether it should have is not said by the Pod ([`Unmutated::was_missed_by`]).
    pub containers: BTreeSet<String>,
    /// If it has no stamp: its containers that are opted in and of which kimup did not speak.
    pub unspoken: Vec<Unspoken>,
    /// When it was created, by the API server's clock.
    pub created: Timestamp,
    /// When this process saw it first.
    pub seen: Instant,
    /// It was looked at whether people must be told of it, which happens once.
    pub told: bool,
}

/// A container of which kimup did not speak.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unspoken {
    /// The reference that it runs.
    pub text: String,
    /// The Pod itself opts it in, and did so from the first moment on; else its Namespace does.
    pub by_itself: bool,
}

impl Unmutated {
    /// Whether kimup would have given one of its containers another tag, had it been there: the Image covers it, had that
    /// tag before the Pod was created, and the container was opted in by then. `opted_in` is [`opted_in_since`] of the
    /// Pod's Namespace, if that opts in.
    pub fn was_missed_by(&self, image: &Image, opted_in: Option<Timestamp>) -> bool {
        let history = image.status.as_ref().map(|status| status.history.as_slice()).unwrap_or_default();
        let (Ok(repository), Some(tag)) = (Repository::parse(&image.spec.image), tag_at(history, self.created)) else {
            return false;
        };
        let opted_in = opted_in.is_some_and(|since| since <= self.created);
        let concerned = self.unspoken.iter().filter(|container| container.by_itself || opted_in);
        let own = concerned.filter_map(|container| Reference::parse(&container.text).ok());
        let mut own = own.filter(|own| own.digest().is_none() && *own.repository() == repository).peekable();
        // The rules of an Image cost more to read than all else here, and most Pods are of other Images.
        let order = own.peek().is_some().then(|| Order::of(&image.spec));
        order.is_some_and(|order| own.any(|own| own.tag() != Some(order.newer_of(own.tag(), tag))))
    }
}

/// The tag that an Image said at a time; none if it had none, or if its history does not reach back that far.
fn tag_at(history: &[HistoryEntry], time: Timestamp) -> Option<&str> {
    let said = |entry: &&HistoryEntry| {
        // The first one counts from its choice, any other once its rollout has settled.
        let since = if entry.from.is_none() { &entry.started } else { &entry.finished };
        let since = since.parse::<Timestamp>().ok().and_then(|since| since.checked_add(ARRIVES_WITHIN).ok());
        since.is_some_and(|since| since <= time)
    };
    history.iter().find(said).map(|entry| entry.tag.as_str())
}

/// Since when at the latest what a Namespace says about `enabled` counts: from the last write of those who said it on, when
/// that has arrived. None if its managed fields do not tell.
pub fn opted_in_since(namespace: &ObjectMeta) -> Option<Timestamp> {
    let arrived = |map: &str, within: SignedDuration| {
        let writes = writes(namespace, map, |key| key == ENABLED).into_iter();
        writes.map(move |written| written?.checked_add(within).ok())
    };
    let all = arrived("f:labels", ARRIVES_WITHIN).chain(arrived("f:annotations", ANNOTATION_ARRIVES_WITHIN));
    // One write without a time, and none at all, tell nothing.
    all.collect::<Option<Vec<_>>>()?.into_iter().max()
}

/// When those who own one of these keys of `map` wrote it last, as far as that is known.
fn writes(object: &ObjectMeta, map: &str, is_one: impl Fn(&str) -> bool) -> Vec<Option<Timestamp>> {
    let owners = object.managed_fields.iter().flatten().filter(|entry| {
        let fields = entry.fields_v1.as_ref().and_then(|fields| fields.0["f:metadata"][map].as_object());
        fields.is_some_and(|fields| fields.keys().any(|key| key.strip_prefix("f:").is_some_and(&is_one)))
    });
    owners.map(|entry| entry.time.as_ref().map(|time| time.0)).collect()
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
    let unspoken = if wrong.is_empty() { unspoken(pod, &containers, namespace) } else { Vec::new() };
    if wrong.is_empty() && (annotations::has_stamp(own) || unspoken.is_empty()) {
        return None;
    }
    let owner = pod.owner_references().iter().find(|owner| owner.controller == Some(true));
    let hash = PodHash::of(Some(pod.labels()));
    let workload = owner.and_then(|owner| workload(pod, owner, hash));
    if workload.is_none() && (unspoken.is_empty() || has_own_word(own)) {
        return None;
    }
    let revision = owner.map(|owner| (owner.uid.clone(), hash.value.to_owned()));
    Some(Unmutated {
        uid: pod.uid()?,
        workload,
        revision: revision.unwrap_or_default(),
        rollout: pod.labels().get(ROLLOUT).cloned(),
        containers: wrong,
        unspoken,
        created: pod.metadata.creation_timestamp.as_ref()?.0,
        seen: Instant::now(),
        told: false,
    })
}

/// The containers that are opted in and have no entry in the annotation `applied`.
fn unspoken(pod: &Pod, containers: &[Container], namespace: NamespaceSettings) -> Vec<Unspoken> {
    let own = pod.annotations();
    // Who writes an annotation on a Pod that is there makes no new one.
    let said = writes(&pod.metadata, "f:annotations", |key| key == ENABLED || key.starts_with(ENABLED_PREFIX));
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let from_the_start = said.iter().all(|said| said.is_some() && *said <= created);
    let (levels, applied) = (Levels(&[own]), Applied::of(own));
    let opted_in = |c: &Container, by: NamespaceSettings| levels.enabled(&c.name, false, by) == Ok(true);
    let silent = containers.iter().filter(|c| opted_in(c, namespace) && !applied.iter().any(|a| a.container == c.name));
    let by_itself = |c: &Container| from_the_start && opted_in(c, NamespaceSettings::default());
    silent.map(|c| Unspoken { text: c.text.clone(), by_itself: by_itself(c) }).collect()
}

/// Whether an Image of its own, by its annotations, may count for a Pod, or nobody could have answered for it: a mirror Pod's
/// image is in a file on its node.
fn has_own_word(own: &annotations::Map) -> bool {
    let own_word = |key: &String| key == POLICY || key == MIRROR_POD || key.starts_with(POLICY_PREFIX);
    own.keys().any(own_word)
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
                "name": "web-5d8f-x", "namespace": "shop", "uid": "u", "creationTimestamp": "2026-01-01T12:00:00Z",
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
            let whose = found.workload.map_or("nobody's".to_owned(), |workload| workload.to_string());
            format!("{whose} {}", containers.join(" ")).trim().to_owned()
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
        // Nothing rolls a Job or a Pod alone.
        let alone = |owners: Value, annotations: Value| {
            let annotations = json_patch_of(json!({"stamp.kimup.cloudavenue.io/app": null}), &annotations);
            json!({"metadata": {"ownerReferences": owners, "annotations": annotations}})
        };
        let job = json!([{"apiVersion": "batch/v1", "kind": "Job", "name": "once", "uid": "j", "controller": true}]);
        check(&alone(json!(null), json!({})), true, Some("nobody's"));
        check(&alone(job.clone(), json!({})), true, Some("nobody's"));
        check(&alone(job, json!({})), false, None);
        check(&alone(json!(null), json!({"kimup.cloudavenue.io/policy": "minor"})), true, None);
        check(&alone(json!(null), json!({"kubernetes.io/config.mirror": "x"})), true, None);
    }

    fn json_patch_of(mut object: Value, patch: &Value) -> Value {
        json_patch::merge(&mut object, patch);
        object
    }

    #[test]
    fn a_pod_was_missed_if_its_tag_was_known_before() {
        #[track_caller]
        fn check(text: &str, by_itself: bool, opted_in: Option<&str>, history: &Value, expected: bool) {
            let spec = json!({"image": "ghcr.io/acme/app", "triggers": [], "rules": [
                {"name": "r", "type": "semver-minor", "actions": [{"type": "apply"}]}]});
            let image = json!({"apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
                "metadata": {"name": "app"}, "spec": spec, "status": {"history": history}});
            let pod = Unmutated {
                uid: "u".to_owned(),
                workload: None,
                revision: Default::default(),
                rollout: None,
                containers: BTreeSet::new(),
                unspoken: vec![Unspoken { text: text.to_owned(), by_itself }],
                created: "2026-01-01T12:00:00Z".parse().unwrap(),
                seen: Instant::now(),
                told: false,
            };
            let since = opted_in.map(|since| since.parse().unwrap());
            let image = serde_json::from_value(image).unwrap();
            assert_eq!(pod.was_missed_by(&image, since), expected, "{text} {opted_in:?} {history}");
        }
        let first = |at: &str| json!({"tag": "1.0.0", "started": at, "finished": "2026-01-01T13:00:00Z"});
        let later =
            |at: &str| json!({"tag": "1.1.0", "from": "1.0.0", "started": "2026-01-01T11:00:00Z", "finished": at});
        let (early, late) = ("2026-01-01T11:30:00Z", "2026-01-01T12:30:00Z");
        let app = "ghcr.io/acme/app:0.9.0";
        check(app, true, None, &json!([first(early)]), true);
        check(app, false, Some(early), &json!([first(early)]), true);
        check(app, false, Some(late), &json!([first(early)]), false);
        check(app, false, None, &json!([first(early)]), false);
        check(app, true, None, &json!([first(late)]), false);
        check(app, true, None, &json!([first("2026-01-01T11:59:59Z")]), false);
        check(app, true, None, &json!([]), false);
        // It runs what it would have got then.
        check("ghcr.io/acme/app:1.0.0", true, None, &json!([later(late), first(early)]), false);
        check("ghcr.io/acme/app:1.0.0", true, None, &json!([later(early), first(early)]), true);
        check("ghcr.io/acme/app:1.2.0", true, None, &json!([later(early), first(early)]), false);
        check("ghcr.io/acme/other:0.9.0", true, None, &json!([first(early)]), false);
        let pinned = format!("{app}@sha256:{}", "0".repeat(64));
        check(&pinned, true, None, &json!([first(early)]), false);
    }

    #[test]
    fn a_namespace_tells_since_when_it_is_opted_in() {
        #[track_caller]
        fn check(managed: &Value, expected: Option<&str>) {
            let metadata = serde_json::from_value(json!({"name": "shop", "managedFields": managed})).unwrap();
            let since = opted_in_since(&metadata).map(|since| since.to_string());
            assert_eq!(since.as_deref(), expected, "{metadata:?}");
        }
        let entry = |map: &str, key: &str, time: Value| {
            json!({"manager": "m", "operation": "Update", "time": time, "fieldsType": "FieldsV1",
                "fieldsV1": {"f:metadata": {map: {format!("f:{key}"): {}}}}})
        };
        let (early, late) = ("2026-01-01T11:30:00Z", "2026-01-01T12:30:00Z");
        check(&json!([entry("f:labels", ENABLED, json!(early))]), Some("2026-01-01T11:30:02Z"));
        check(&json!([entry("f:annotations", ENABLED, json!(early))]), Some("2026-01-01T11:30:10Z"));
        let both = json!([entry("f:annotations", ENABLED, json!(late)), entry("f:labels", ENABLED, json!(early))]);
        check(&both, Some("2026-01-01T12:30:10Z"));
        let unknown = json!([entry("f:annotations", ENABLED, json!(null)), entry("f:labels", ENABLED, json!(early))]);
        check(&unknown, None);
        check(&json!([entry("f:labels", "team", json!(early))]), None);
        check(&json!([entry("f:labels", ENABLED, json!(null))]), None);
        check(&json!(null), None);
    }

    #[test]
    fn few_names_are_said() {
        let pods = |count: usize| (0..count).map(|n| format!("p{n}")).collect();
        assert_eq!(names(&pods(2)), "p0, p1");
        assert_eq!(names(&pods(7)), "p0, p1, p2, p3, p4 and 2 more");
    }
}
