//! Events and audit lines: what happened, from what to what, each said once.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::{Api, PostParams};

use crate::telemetry::Metrics;

const TIMEOUT: Duration = Duration::from_secs(5);
/// Longest note the API server takes, in bytes (`events.k8s.io/v1`).
const MAX_NOTE: usize = 1024;
const CONTROLLER: &str = "kimup.cloudavenue.io/kimup";

/// Why an Event is said: its reason, as `kubectl describe` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A newer tag was chosen.
    TagSelected,
    /// A newer tag waits for something.
    TagPending,
    /// Somebody approved a tag, and it was chosen.
    TagApproved,
    /// A workload's Pod template was stamped.
    RolloutStarted,
    /// A rollout ended well.
    RolloutSettled,
    /// An older revision was put back: the workload stays there.
    Held,
    /// An older tag was written into the manifest: the workload stays there.
    HeldByManifest,
    /// Somebody ended a hold.
    Resumed,
    /// Another controller takes a stamp away over and over: the workload is left alone.
    StampFight,
    /// Another, older Image of the namespace names the same repository.
    Duplicate,
    /// The spec, or an annotation, cannot be used.
    PolicyInvalid,
    /// A container of a workload has no policy any more; its Image is removed.
    OptedOut,
    /// A registry cannot be reached; said once per host until it answers again.
    RegistryUnreachable,
    /// A pull secret or the list of tags cannot be used.
    SyncFailed,
    /// The registry has a pinned digest no longer.
    DigestGone,
    /// A workload could not be rolled.
    RolloutFailed,
    /// A tag failed, or a person refused it: it is not tried again.
    TagRejected,
    /// A workload, or all of an Image, went back from a rejected tag.
    RolledBack,
    /// Rejected tags may be tried again, because a person said so.
    Retried,
    /// Pods came to be without kimup, and do not run what they should.
    PodsUnmutated,
}

impl Reason {
    /// Every reason, for the reference documentation.
    pub const ALL: &[Self] = &[
        Self::TagSelected,
        Self::TagPending,
        Self::TagApproved,
        Self::RolloutStarted,
        Self::RolloutSettled,
        Self::Held,
        Self::HeldByManifest,
        Self::Resumed,
        Self::StampFight,
        Self::Duplicate,
        Self::PolicyInvalid,
        Self::OptedOut,
        Self::RegistryUnreachable,
        Self::SyncFailed,
        Self::DigestGone,
        Self::RolloutFailed,
        Self::TagRejected,
        Self::RolledBack,
        Self::Retried,
        Self::PodsUnmutated,
    ];

    /// The reason as `kubectl get events` shows it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::TagSelected => "TagSelected",
            Self::TagPending => "TagPending",
            Self::TagApproved => "TagApproved",
            Self::RolloutStarted => "RolloutStarted",
            Self::RolloutSettled => "RolloutSettled",
            Self::Held => "Held",
            Self::HeldByManifest => "HeldByManifest",
            Self::Resumed => "Resumed",
            Self::StampFight => "StampFight",
            Self::Duplicate => "Duplicate",
            Self::PolicyInvalid => "PolicyInvalid",
            Self::OptedOut => "OptedOut",
            Self::RegistryUnreachable => "RegistryUnreachable",
            Self::SyncFailed => "SyncFailed",
            Self::DigestGone => "DigestGone",
            Self::RolloutFailed => "RolloutFailed",
            Self::TagRejected => "TagRejected",
            Self::RolledBack => "RolledBack",
            Self::Retried => "Retried",
            Self::PodsUnmutated => "PodsUnmutated",
        }
    }

    const fn warns(self) -> bool {
        matches!(
            self,
            Self::StampFight
                | Self::Duplicate
                | Self::PolicyInvalid
                | Self::RegistryUnreachable
                | Self::SyncFailed
                | Self::DigestGone
                | Self::RolloutFailed
                | Self::TagRejected
                | Self::RolledBack
                | Self::PodsUnmutated
        )
    }
}

/// Says Events. Cheap to clone.
///
/// The caller says each thing once: it speaks after the write that made it true, and only if that write changed something.
#[derive(Clone)]
pub struct Events {
    client: kube::Client,
    instance: String,
    metrics: Metrics,
}

impl Events {
    /// `instance` names this process (the Pod's name in a cluster).
    pub const fn new(client: kube::Client, instance: String, metrics: Metrics) -> Self {
        Self { client, instance, metrics }
    }

    /// Says one Event on an object. An Event that cannot be written is logged and forgotten: nothing waits for it.
    pub async fn say(&self, on: &ObjectReference, reason: Reason, note: &str) {
        let namespace = on.namespace.clone().unwrap_or_default();
        let object = on.name.as_deref().unwrap_or_default();
        let kind = on.kind.as_deref().unwrap_or_default();
        tracing::info!(namespace, kind, object, reason = reason.as_str(), "{note}");
        let event = self.event(on, reason, note);
        let api: Api<Event> = Api::namespaced(self.client.clone(), &namespace);
        match tokio::time::timeout(TIMEOUT, api.create(&PostParams::default(), &event)).await {
            Ok(Ok(_)) => self.metrics.kubernetes_write("Event"),
            Ok(Err(error)) => tracing::warn!(namespace, object, %error, "cannot write the Event"),
            Err(_) => tracing::warn!(namespace, object, "cannot write the Event: no answer in time"),
        }
    }

    fn event(&self, on: &ObjectReference, reason: Reason, note: &str) -> Event {
        let now = Timestamp::now();
        let object = on.name.as_deref().unwrap_or_default();
        // As client-go names them; the random part keeps two in the same microsecond apart.
        let name = format!("{object}.{:x}{:04x}", now.as_microsecond(), fastrand::u16(..));
        Event {
            metadata: ObjectMeta { name: Some(name), namespace: on.namespace.clone(), ..ObjectMeta::default() },
            event_time: Some(MicroTime(now)),
            reporting_controller: Some(CONTROLLER.to_owned()),
            reporting_instance: Some(cut(&self.instance, 128).to_owned()),
            action: Some(reason.as_str().to_owned()),
            reason: Some(reason.as_str().to_owned()),
            type_: Some(if reason.warns() { "Warning" } else { "Normal" }.to_owned()),
            note: Some(cut(note, MAX_NOTE).to_owned()),
            regarding: Some(on.clone()),
            ..Event::default()
        }
    }
}

/// One line of the audit log: a decision that changed something.
pub struct Audit<'a> {
    /// `Image shop/web`.
    pub image: &'a str,
    /// `Deployment/web`; empty for a decision that concerns all workloads of the Image.
    pub workload: &'a str,
    /// What was done: `select`, `wait`, `ask`, `lapse`, `approve`, `roll`, `settle`, `hold`, `resume`, `reject`, `rollback` or
    /// `retry`.
    pub what: &'static str,
    /// The tag before.
    pub from: &'a str,
    /// The tag now.
    pub to: &'a str,
    /// Its manifest digest; empty if it is not known or plays no part.
    pub digest: &'a str,
    /// The rule that chose it.
    pub rule: &'a str,
    /// The rollout ID.
    pub rollout: &'a str,
    /// Who decided: a person's name or, where that is not known, the field manager that wrote it; [`KIMUP`] where its rules
    /// did.
    pub by: &'a str,
}

/// Who decides what no person does.
pub const KIMUP: &str = "kimup";

/// Who decided, of what a status says of that: the name in `approved by alice`, else kimup.
pub fn decided_by(said: Option<&str>) -> &str {
    let name = |said| ["approved by ", "rejected by "].into_iter().find_map(|word| str::strip_prefix(said, word));
    said.and_then(name).unwrap_or(KIMUP)
}

impl Audit<'_> {
    /// Writes the line to the log target `kimup::audit`.
    pub fn log(&self) {
        tracing::info!(
            target: "kimup::audit",
            image = self.image,
            workload = self.workload,
            from = self.from,
            to = self.to,
            digest = self.digest,
            rule = self.rule,
            rollout = self.rollout,
            by = self.by,
            "{}",
            self.what
        );
    }
}

/// The longest beginning of `text` of at most `max` bytes.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn notes_are_cut_between_characters() {
        fn check(text: &str, max: usize, expected: &str) {
            assert_eq!(cut(text, max), expected);
        }
        check("abc", 5, "abc");
        check("abc", 2, "ab");
        check("aé", 2, "a");
        check("", 0, "");
    }

    #[test]
    fn who_decided() {
        fn check(said: Option<&str>, expected: &str) {
            assert_eq!(decided_by(said), expected, "{said:?}");
        }
        check(None, KIMUP);
        check(Some("approved by alice"), "alice");
        check(Some("rejected by field manager kubectl-annotate"), "field manager kubectl-annotate");
        check(Some("rejected: Deployment/web: it crashes"), KIMUP);
        check(Some("Deployment/web: it crashes"), KIMUP);
    }
}
