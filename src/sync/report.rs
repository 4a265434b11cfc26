//! What one reconcile of an Image has to say: Events, the audit log, metrics. Each thing once, after it is written.

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;

use crate::api::{self, CompiledSpec, Image, ImageStatus, SyncResult, Tagged};
use crate::notify::{Audit, KIMUP, Reason, decided_by};
use crate::policy::{Reference, Repository};
use crate::telemetry::RolloutOutcome;

use super::approval;
use super::engine::{Key, Sync};
use super::managed;
use super::observe::HOST_FAILS;
use super::status::{DUPLICATE, ROLLOUT_FAILED, Selected};
use super::world::{ImageKey, User};

impl Sync {
    #[allow(clippy::too_many_arguments)] // everything that one reconcile may have to say
    pub(super) async fn report(
        &self,
        key: &ImageKey,
        image: &Image,
        old: &ImageStatus,
        new: &ImageStatus,
        selected: Option<Selected>,
        settled: Option<api::RolloutStatus>,
    ) {
        let on = reference(image);
        let name = format!("Image {key}");
        if let Some(Selected { from, to, digest, rule, why }) = selected {
            let from = from.unwrap_or_else(|| "no tag".to_owned());
            let by = if rule.is_empty() { String::new() } else { format!(" by rule {rule}") };
            self.events
                .say(&on, Reason::TagSelected, &format!("{}: {from} -> {to}{by}: {why}", image.spec.image))
                .await;
            let rollout = new.rollout.as_ref().map(|r| r.id.as_str()).unwrap_or_default();
            let digest = digest.as_deref().unwrap_or_default();
            let by = decided_by(new.rollout.as_ref().and_then(|rollout| rollout.by.as_deref()));
            let (from, to, rule) = (&from, &to, &rule);
            Audit { image: &name, workload: "", what: "select", from, to, digest, rule, rollout, by }.log();
            self.queue_users(key, image);
        }
        if let Some(rollout) = settled {
            let to = Tagged::new(&rollout.tag, rollout.digest.as_deref());
            let before = Tagged::new(old.tag.as_deref().unwrap_or_default(), old.digest.as_deref());
            let (from, to) = match &rollout.from {
                Some(from) if *from == before.tag => before.difference(&to),
                from => (from.clone().unwrap_or_else(|| "no tag".to_owned()), to.tag),
            };
            let back = rollout.back_from.is_some();
            let reason = if back { Reason::RolledBack } else { Reason::RolloutSettled };
            let because = rollout.by.as_ref().filter(|_| back).map(|by| format!("; {by}")).unwrap_or_default();
            let run = if rollout.updated == 1 { "workload runs" } else { "workloads run" };
            let note = format!("{}: {from} -> {to}, {} {run} it{because}", image.spec.image, rollout.updated);
            self.events.say(&on, reason, &note).await;
            self.settled_on_workloads(key, image, &rollout).await;
            self.metrics.rollout(if back { RolloutOutcome::RolledBack } else { RolloutOutcome::Settled });
            let (from, to, digest) = (&from, &to, rollout.digest.as_deref().unwrap_or_default());
            let (rule, rollout, by) = (&rollout.rule, &rollout.id, decided_by(rollout.by.as_deref()));
            Audit { image: &name, workload: "", what: "settle", from, to, digest, rule, rollout, by }.log();
            self.queue_users(key, image);
        }
        self.report_failure(key, &on, old, new).await;
        self.report_stopped(image, &on, old, new).await;
    }

    /// Says, once, that a rollout does not go on and waits for somebody.
    async fn report_stopped(&self, image: &Image, on: &ObjectReference, old: &ImageStatus, new: &ImageStatus) {
        let stands = |s: &ImageStatus| {
            s.conditions.iter().any(|c| c.type_ == api::condition::STALLED && c.reason == ROLLOUT_FAILED)
        };
        if !stands(new) || stands(old) {
            return;
        }
        let users = self.world.users_of(image);
        let Some((name, why)) = self.stopped(users.iter().map(|user| &*user.workload)) else {
            return;
        };
        self.events.say(on, Reason::RolloutFailed, &format!("{name} does not go on: {why}")).await;
        if let Some(user) = users.iter().find(|user| user.workload.key.to_string() == name) {
            let note = format!("the rollout does not go on: {why}");
            self.events.say(&super::workload::reference(&user.workload), Reason::RolloutFailed, &note).await;
        }
    }

    /// Says on each workload that was stamped for a rollout that it has ended well.
    async fn settled_on_workloads(&self, key: &ImageKey, image: &Image, rollout: &api::RolloutStatus) {
        let Ok(repository) = Repository::parse(&image.spec.image) else {
            return;
        };
        for User { workload, containers } in self.world.users_of(image) {
            let stamps = containers.iter().filter_map(|container| workload.stamp(container));
            let stamped = stamps.filter_map(|stamp| Reference::parse(&stamp.reference).ok());
            let mut stamped = stamped.filter(|r| *r.repository() == repository);
            // Back: the others never left it, and one that was held is held again.
            let of_it = match rollout.back_from {
                Some(_) => stamped.next().filter(|_| workload.rollout.as_ref() == Some(&rollout.id)),
                None => stamped.find(|r| r.tag() == Some(&rollout.tag)),
            };
            if let Some(tag) = of_it.and_then(|r| r.tag().map(str::to_owned)) {
                let (reason, because) = match &rollout.by {
                    Some(by) if rollout.back_from.is_some() => (Reason::RolledBack, format!("; {by}")),
                    _ => (Reason::RolloutSettled, String::new()),
                };
                let note = format!("rollout {}: its Pods run {repository}:{tag} (Image {key}){because}", rollout.id);
                self.events.say(&super::workload::reference(&workload), reason, &note).await;
            }
        }
    }

    /// Says, once, that a tag waits.
    pub(super) async fn report_pending(&self, key: &ImageKey, image: &Image, old: &ImageStatus, new: &ImageStatus) {
        let Some(pending) = new.pending.as_ref().filter(|pending| {
            old.pending.as_ref().is_none_or(|before| (&before.tag, &before.reason) != (&pending.tag, &pending.reason))
        }) else {
            return;
        };
        if new.asked.as_ref().is_some_and(|asked| asked.tag == pending.tag) && !super::status::was_closed(new) {
            return; // said as what is asked for
        }
        let until = pending.at.as_ref().map(|at| format!(", until {at}")).unwrap_or_default();
        let note = format!("{}: {} waits: {}{until}", image.spec.image, pending.tag, pending.reason);
        self.events.say(&reference(image), Reason::TagPending, &note).await;
        let (image, from) = (format!("Image {key}"), new.tag.clone().unwrap_or_default());
        let (from, to, by) = (&from, &pending.tag, KIMUP);
        Audit { image: &image, workload: "", what: "wait", from, to, digest: "", rule: "", rollout: "", by }.log();
    }

    /// Says, once, that people are asked to approve a tag, and that they are not asked any more.
    pub(super) async fn report_asked(&self, key: &ImageKey, image: &Image, old: &ImageStatus, new: &ImageStatus) {
        let Some(asked) = &new.asked else {
            return;
        };
        let before = old.asked.as_ref().filter(|before| before.tag == asked.tag);
        if before.is_some_and(|before| before.lapsed == asked.lapsed) {
            return;
        }
        let why = approval::waits(key, asked).pending.reason;
        let note = format!("{}: {} waits: {why}", image.spec.image, asked.tag);
        self.events.say(&reference(image), Reason::TagPending, &note).await;
        let (image, from) = (format!("Image {key}"), new.tag.clone().unwrap_or_default());
        let (to, what) = (&asked.tag, if asked.lapsed { "lapse" } else { "ask" });
        let (from, by) = (&from, KIMUP);
        Audit { image: &image, workload: "", what, from, to, digest: "", rule: "", rollout: "", by }.log();
    }

    async fn report_failure(&self, key: &ImageKey, on: &ObjectReference, old: &ImageStatus, new: &ImageStatus) {
        let ready = |s: &ImageStatus| s.conditions.iter().find(|c| c.type_ == api::condition::READY).cloned();
        let (Some(now), before) = (ready(new), ready(old)) else {
            return;
        };
        if now.status != "False" || before.is_some_and(|b| b.status == now.status && b.message == now.message) {
            return;
        }
        let reason = match new.result {
            Some(SyncResult::Error) if now.reason == DUPLICATE => Reason::Duplicate,
            Some(SyncResult::GetRuleError | SyncResult::GetImageError | SyncResult::Error) => Reason::PolicyInvalid,
            Some(SyncResult::RegistryError) if now.reason == HOST_FAILS => {
                let host = new.repository.as_deref().and_then(|r| r.split('/').next()).unwrap_or_default();
                if !self.outages.begins(host) {
                    return; // said for this host already
                }
                Reason::RegistryUnreachable
            }
            Some(SyncResult::RegistryError | SyncResult::TagsError | SyncResult::PullSecretsError) => {
                Reason::SyncFailed
            }
            // `ActionError` is said on the workload that could not be rolled.
            _ => return tracing::warn!(image = %key, reason = now.reason, "{}", now.message),
        };
        self.events.say(on, reason, &now.message).await;
    }

    /// A registry has answered with a list of tags.
    pub(super) fn host_answers(&self, host: &str) {
        if let Some(outage) = self.outages.ends(host) {
            tracing::info!(host, after_s = outage.as_secs(), "the registry answers again");
        }
    }

    /// Says that the registry has a pinned digest no longer, and what is run instead.
    pub(super) async fn report_gone(&self, image: &Image, new: &ImageStatus, digest: &str) {
        let follows = match super::status::current(new) {
            Some(Tagged { tag, digest: Some(now) }) => format!("tag {tag} is followed, which is {now} now"),
            Some(Tagged { tag, digest: None }) => {
                format!("tag {tag} cannot be run either; Pods that are created now are given it without a digest")
            }
            None => "there is no tag to follow".to_owned(),
        };
        let note = format!("{}: the registry does not have {digest} any more; {follows}", image.spec.image);
        self.events.say(&reference(image), Reason::DigestGone, &note).await;
    }

    /// Says what the rules leave out, once for each spec that is synced.
    pub(super) async fn report_left_out(
        &self,
        image: &Image,
        old: &ImageStatus,
        new: &ImageStatus,
        spec: Option<&CompiledSpec>,
    ) {
        if old.observed_generation == new.observed_generation {
            return;
        }
        if let Some(note) = spec.and_then(CompiledSpec::left_out) {
            self.events.say(&reference(image), Reason::PolicyInvalid, &note).await;
        }
    }

    /// Says that an Image cannot be read.
    pub(super) async fn report_broken(&self, metadata: &ObjectMeta, message: &str) {
        let on = ObjectReference {
            name: metadata.name.clone(),
            namespace: metadata.namespace.clone(),
            uid: metadata.uid.clone(),
            resource_version: metadata.resource_version.clone(),
            api_version: Some(Image::api_version(&()).into_owned()),
            kind: Some("Image".to_owned()),
            field_path: None,
        };
        self.events.say(&on, Reason::PolicyInvalid, message).await;
    }

    /// Asks for every workload that uses an Image, and for the other Images it shares them with.
    pub(super) fn queue_users(&self, key: &ImageKey, image: &Image) {
        if let Some(owner) = managed::source_of(&key.namespace, &image.metadata) {
            return owner.workload().into_iter().for_each(|workload| self.queue.add_now(Key::Workload(workload)));
        }
        for workload in self.world.workloads(Some(&key.namespace)) {
            self.queue.add_now(Key::Workload(workload.key.clone()));
        }
    }
}

/// The reference that Events on an Image carry.
pub(super) fn reference(image: &Image) -> ObjectReference {
    let mut reference = image.object_ref(&());
    // The watch leaves these out of list items.
    reference.api_version = Some(Image::api_version(&()).into_owned());
    reference.kind = Some("Image".to_owned());
    reference
}
