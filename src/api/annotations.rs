//! Annotations and labels: their names, their values and what they mean together.
//!
//! The list is the table of design section 2; `ALL` is compared with the reference documentation.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Bound;

/// Annotations or labels of an object.
pub type Map = BTreeMap<String, String>;

/// `"true"` opts in; `"false"` on a Pod beats all.
pub const ENABLED: &str = "kimup.cloudavenue.io/enabled";
/// `fail` or `ignore`: what happens to a Pod that cannot be answered.
pub const FAILURE_POLICY: &str = "kimup.cloudavenue.io/failure-policy";
/// On a Namespace, `"true"`: no rollouts start there; on kimup's own: in the whole cluster. Admission goes on.
pub const FREEZE: &str = "kimup.cloudavenue.io/freeze";
/// On a workload: a tag to stay at.
pub const HOLD: &str = "kimup.cloudavenue.io/hold";
/// On a workload, `"true"`: first of its group.
pub const CANARY: &str = "kimup.cloudavenue.io/canary";
/// On an Image: `refresh`, `retry` to forget what was rejected, or `resume` to end all holds of it. On a workload: `resume`,
/// to end its holds. Removed when done.
pub const ACTION: &str = "kimup.cloudavenue.io/action";
/// Value of [`ACTION`]: ends holds.
pub const RESUME: &str = "resume";
/// Value of [`ACTION`]: rejected tags are tried again.
pub const RETRY: &str = "retry";
/// On an Image: any value; another one than last time syncs now.
pub const REQUESTED_AT: &str = "kimup.cloudavenue.io/requestedAt";
/// On an Image: a tag to apply, though a rule asks for approval or windows are closed. Removed when done.
pub const APPROVE: &str = "kimup.cloudavenue.io/approve";
/// On an Image: a tag that must not run. Removed when done.
pub const REJECT: &str = "kimup.cloudavenue.io/reject";
/// On an Image, beside [`APPROVE`] or [`REJECT`]: the user's name. Removed with them.
pub const APPROVED_BY: &str = "kimup.cloudavenue.io/approved-by";
/// Label on Pod templates that kimup stamped, and on their workloads: the rollout ID.
pub const ROLLOUT: &str = "kimup.cloudavenue.io/rollout";
/// On a Pod: what admission did, one entry per changed container.
pub const APPLIED: &str = "kimup.cloudavenue.io/applied";
/// On a ReplicaSet, StatefulSet, DaemonSet or Job whose Pods were denied: when kimup had its controller look again.
pub const NUDGED: &str = "kimup.cloudavenue.io/nudged";
/// Namespaces whose Pods no webhook entry selects, besides kimup's own.
pub const SYSTEM_NAMESPACES: [&str; 2] = ["kube-system", "kube-node-lease"];
/// Prefix of the stamps on a Pod template, followed by the container's name.
pub const STAMP_PREFIX: &str = "stamp.kimup.cloudavenue.io/";
/// Written with each rollout, shown by `kubectl rollout history`.
pub const CHANGE_CAUSE: &str = "kubernetes.io/change-cause";
/// On a Pod, Pod template or workload: how to choose the tag of the containers that are meant; implies `enabled`.
pub const POLICY: &str = "kimup.cloudavenue.io/policy";
/// Beside [`POLICY`]: a regular expression on the tag.
pub const PATTERN: &str = "kimup.cloudavenue.io/pattern";
/// Beside [`POLICY`]: how often the registry is asked; default `5m`.
pub const INTERVAL: &str = "kimup.cloudavenue.io/interval";
/// Beside [`POLICY`]: names of pull secrets, separated by commas; default: the Pod's own and its ServiceAccount's.
pub const IMAGE_PULL_SECRETS: &str = "kimup.cloudavenue.io/image-pull-secrets";
/// Beside [`POLICY`]: names of the containers that the Pod-wide keys mean, separated by commas.
pub const CONTAINERS: &str = "kimup.cloudavenue.io/containers";
/// Prefix of one container's own [`POLICY`].
pub const POLICY_PREFIX: &str = "policy.kimup.cloudavenue.io/";
/// Prefix of one container's own [`ENABLED`].
pub const ENABLED_PREFIX: &str = "enabled.kimup.cloudavenue.io/";
/// Prefix of one container's own [`PATTERN`].
pub const PATTERN_PREFIX: &str = "pattern.kimup.cloudavenue.io/";
/// Prefix of one container's own [`INTERVAL`].
pub const INTERVAL_PREFIX: &str = "interval.kimup.cloudavenue.io/";
/// On an Image that sync wrote: [`POLICY_OF_PODS`] if Pods carry the policy themselves, else [`POLICY_OF_WORKLOAD`].
pub const POLICY_FROM: &str = "kimup.cloudavenue.io/policy-from";
/// The policy stands on the Pod template: a Pod that does not carry it was made after somebody took it away.
pub const POLICY_OF_PODS: &str = "template";
/// The policy stands on the workload's own metadata, which Pods do not carry.
pub const POLICY_OF_WORKLOAD: &str = "workload";
/// Label of the Images that sync writes for annotations, with the value [`MANAGED_BY_KIMUP`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// See [`MANAGED_BY`].
pub const MANAGED_BY_KIMUP: &str = "kimup";
/// Marks a Pod that the kubelet mirrors from a file; admission cannot change it.
pub const MIRROR_POD: &str = "kubernetes.io/config.mirror";

/// Every annotation and label of kimup's own that this version reads or writes.
pub const ALL: &[&str] = &[
    ENABLED,
    FAILURE_POLICY,
    FREEZE,
    HOLD,
    CANARY,
    ACTION,
    REQUESTED_AT,
    APPROVE,
    REJECT,
    APPROVED_BY,
    ROLLOUT,
    APPLIED,
    NUDGED,
    STAMP_PREFIX,
    POLICY,
    PATTERN,
    INTERVAL,
    IMAGE_PULL_SECRETS,
    CONTAINERS,
    POLICY_FROM,
    POLICY_PREFIX,
    ENABLED_PREFIX,
    PATTERN_PREFIX,
    INTERVAL_PREFIX,
];

/// The key of a container's stamp.
pub fn stamp_key(container: &str) -> String {
    format!("{STAMP_PREFIX}{container}")
}

/// A stamp: the text it was written for, and the reference to run instead.
///
/// The format `"<text> <reference>"` is frozen: CEL reads it, and later versions must.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// The image text of the container when the stamp was written.
    pub text: String,
    /// The image reference its Pods run.
    pub reference: String,
}

impl Stamp {
    /// Reads a stamp. None if it is not two words: such a value is nobody's stamp.
    pub fn parse(value: &str) -> Option<Self> {
        let (text, reference) = value.split_once(' ')?;
        let word = |s: &str| !s.is_empty() && !s.contains(char::is_whitespace);
        (word(text) && word(reference)).then(|| Self { text: text.to_owned(), reference: reference.to_owned() })
    }

    /// The stamp of `container` among the annotations of a Pod or Pod template.
    pub fn of(annotations: &Map, container: &str) -> Option<Self> {
        of_container(annotations, STAMP_PREFIX, container).and_then(Self::parse)
    }
}

impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.text, self.reference)
    }
}

/// What happens to a Pod that cannot be answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FailurePolicy {
    /// It is denied, with a message that says what to do.
    #[default]
    Fail,
    /// It is admitted unchanged, with a warning.
    Ignore,
}

/// A value that is none of those allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("annotation {key}: unknown value {value:?}; use {allowed}")]
pub struct AnnotationError {
    /// The key.
    pub key: String,
    /// What stands there.
    pub value: String,
    /// What may stand there.
    pub allowed: &'static str,
}

impl FailurePolicy {
    /// Reads the key from annotations or labels. `Ok(None)` if it is absent.
    pub fn read(map: &Map) -> Result<Option<Self>, AnnotationError> {
        match map.get(FAILURE_POLICY).map(String::as_str) {
            None => Ok(None),
            Some("fail") => Ok(Some(Self::Fail)),
            Some("ignore") => Ok(Some(Self::Ignore)),
            Some(other) => Err(AnnotationError {
                key: FAILURE_POLICY.to_owned(),
                value: other.to_owned(),
                allowed: "\"fail\" or \"ignore\"",
            }),
        }
    }
}

/// Reads `enabled` from annotations or labels. `Ok(None)` if it is absent.
pub fn enabled(map: &Map) -> Result<Option<bool>, AnnotationError> {
    map.get(ENABLED).map(|value| read_bool(value, || ENABLED.to_owned())).transpose()
}

/// Reads a container's own `enabled`. `Ok(None)` if it is absent.
pub(super) fn container_enabled(map: &Map, container: &str) -> Result<Option<bool>, AnnotationError> {
    let value = of_container(map, ENABLED_PREFIX, container);
    value.map(|value| read_bool(value, || format!("{ENABLED_PREFIX}{container}"))).transpose()
}

/// Reads a value that says `"true"` or `"false"`.
fn read_bool(value: &str, key: impl FnOnce() -> String) -> Result<bool, AnnotationError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(AnnotationError { key: key(), value: other.to_owned(), allowed: "\"true\" or \"false\"" }),
    }
}

/// Whether a stamp stands among the annotations: its Pods belong to kimup, whoever opted them in.
pub fn has_stamp(annotations: &Map) -> bool {
    has_prefix(annotations, STAMP_PREFIX)
}

/// Whether any key begins with `prefix`. Cost: one look-up.
pub(super) fn has_prefix(map: &Map, prefix: &str) -> bool {
    let from = (Bound::Included(prefix), Bound::Unbounded);
    map.range::<str, _>(from).next().is_some_and(|(key, _)| key.starts_with(prefix))
}

/// The value of the key made of `prefix` and a container's name. Cost: one look-up where no key begins so, which is nearly
/// always: then no key need be made.
pub(super) fn of_container<'a>(map: &'a Map, prefix: &str, container: &str) -> Option<&'a str> {
    has_prefix(map, prefix).then(|| map.get(&format!("{prefix}{container}"))).flatten().map(String::as_str)
}

/// What a Namespace says, from its labels and annotations (a label wins over an annotation: the API server sees it too).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NamespaceSettings {
    /// Pods of this namespace are opted in.
    pub enabled: bool,
    /// Opted in by an annotation alone: the webhook configuration must name this namespace.
    pub enabled_by_annotation: bool,
    /// What happens to its Pods that cannot be answered.
    pub failure_policy: FailurePolicy,
    /// No rollouts start in it.
    pub frozen: bool,
}

impl NamespaceSettings {
    /// Reads a Namespace. A value that is none of those allowed counts as absent here; `errors` names it.
    pub fn read(labels: &Map, annotations: &Map) -> (Self, Vec<AnnotationError>) {
        let mut errors = Vec::new();
        let mut keep = |r: Result<Option<bool>, AnnotationError>| r.map_err(|e| errors.push(e)).ok().flatten();
        let by_label = keep(enabled(labels));
        let by_annotation = keep(enabled(annotations));
        let mut failure_policy = None;
        for map in [labels, annotations] {
            match FailurePolicy::read(map) {
                Ok(found) => failure_policy = failure_policy.or(found),
                Err(error) => errors.push(error),
            }
        }
        let settings = Self {
            enabled: by_label.or(by_annotation).unwrap_or(false),
            enabled_by_annotation: by_label.is_none() && by_annotation == Some(true),
            failure_policy: failure_policy.unwrap_or_default(),
            // A brake: whatever is written there holds, unless it is plainly off.
            frozen: [labels, annotations].iter().any(|map| map.get(FREEZE).is_some_and(|value| value != "false")),
        };
        (settings, errors)
    }
}

/// Annotations of a workload without effect, one sentence each: who set one waits for something.
pub fn unsupported_on_workload(annotations: &Map) -> Vec<String> {
    let action = annotations.get(ACTION).filter(|action| *action != RESUME);
    action
        .map(|action| format!("the annotation {ACTION}: {action} has no effect on a workload; it knows {RESUME}"))
        .into_iter()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(entries: &[(&str, &str)]) -> Map {
        entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn stamps_read_back_what_they_say() {
        fn check(value: &str, expected: Option<(&str, &str)>) {
            let parsed = Stamp::parse(value);
            assert_eq!(parsed.as_ref().map(|s| (s.text.as_str(), s.reference.as_str())), expected, "{value:?}");
            if let Some(stamp) = parsed {
                assert_eq!(stamp.to_string(), value);
            }
        }
        check("app:1.0.0 app:1.4.2", Some(("app:1.0.0", "app:1.4.2")));
        check("app app:1.4.2@sha256:abc", Some(("app", "app:1.4.2@sha256:abc")));
        check("app:1.0.0", None);
        check("", None);
        check(" app:1", None);
        check("app:1 ", None);
        check("app:1  app:2", None);
        check("app:1 app:2 app:3", None);
    }

    #[test]
    fn a_stamp_is_seen() {
        fn check(key: &str, expected: bool) {
            assert_eq!(has_stamp(&map(&[("a", ""), (key, "a:1 a:2"), ("zzz", "")])), expected, "{key}");
        }
        check("stamp.kimup.cloudavenue.io/app", true);
        check("stamp.kimup.cloudavenue.io/", true);
        check("stamp.other.io/app", false);
        check("kimup.cloudavenue.io/enabled", false);
    }

    #[test]
    fn a_namespace_says() {
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        fn check(labels: Pairs, annotations: Pairs, expected: (bool, bool, FailurePolicy), errors: usize) {
            let (s, e) = NamespaceSettings::read(&map(labels), &map(annotations));
            assert_eq!((s.enabled, s.enabled_by_annotation, s.failure_policy), expected, "{labels:?} {annotations:?}");
            assert_eq!(e.len(), errors, "{e:?}");
        }
        use FailurePolicy::{Fail, Ignore};
        check(&[], &[], (false, false, Fail), 0);
        check(&[(ENABLED, "true")], &[], (true, false, Fail), 0);
        check(&[], &[(ENABLED, "true")], (true, true, Fail), 0);
        check(&[(ENABLED, "false")], &[(ENABLED, "true")], (false, false, Fail), 0);
        check(&[(FAILURE_POLICY, "ignore")], &[], (false, false, Ignore), 0);
        check(&[(FAILURE_POLICY, "fail")], &[(FAILURE_POLICY, "ignore")], (false, false, Fail), 0);
        check(&[(FAILURE_POLICY, "Ignore")], &[(ENABLED, "1")], (false, false, Fail), 2);
    }

    #[test]
    fn a_namespace_is_frozen() {
        fn check(labels: &[(&str, &str)], annotations: &[(&str, &str)], expected: bool) {
            let (settings, _) = NamespaceSettings::read(&map(labels), &map(annotations));
            assert_eq!(settings.frozen, expected, "{labels:?} {annotations:?}");
        }
        check(&[], &[], false);
        check(&[(FREEZE, "true")], &[], true);
        check(&[], &[(FREEZE, "true")], true);
        check(&[(FREEZE, "false")], &[(FREEZE, "true")], true);
        check(&[(FREEZE, "false")], &[], false);
        check(&[(FREEZE, "yes")], &[], true);
    }

    #[test]
    fn what_has_no_effect_on_a_workload_is_named() {
        fn check(annotations: &[(&str, &str)], expected: usize) {
            assert_eq!(unsupported_on_workload(&map(annotations)).len(), expected, "{annotations:?}");
        }
        check(&[(ENABLED, "true")], 0);
        check(&[(HOLD, "1.2.3"), (CANARY, "true")], 0);
        check(&[(ACTION, "resume")], 0);
        check(&[(ACTION, "refresh")], 1);
        check(&[(POLICY, "patch")], 0);
    }
}
