//! From what a sync found to the status that tells it. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::{Closed, Held, HistoryEntry, ImageStatus, Pending, RolloutStatus, SyncResult, Tagged, condition};

use super::decide::Choice;
use super::gates::{self, Waits};

/// Tags that the history keeps.
const MAX_HISTORY: usize = 10;
/// Longest condition message, in bytes (the API server takes 32,768; nobody reads that).
const MAX_MESSAGE: usize = 1024;

/// Reason of the `Ready` condition of an Image whose repository an older one of its namespace follows.
pub const DUPLICATE: &str = "Duplicate";

/// A time as it stands in a status: whole seconds, as everywhere in Kubernetes.
pub fn rfc3339(time: Timestamp) -> String {
    format!("{time:.0}")
}

/// What a sync came to.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It failed; the tag stays as it is.
    Failed(Failure),
    /// There is no tag yet, and the one that would be chosen has to wait.
    Waiting(Waits),
    /// The Image should run this tag.
    Tag(Choice),
}

/// Why a sync failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// One of the seed's results.
    pub result: SyncResult,
    /// Reason of the `Ready` condition.
    pub reason: &'static str,
    /// What is wrong and what to do.
    pub message: String,
    /// Trying again cannot help: somebody must change something.
    pub stalled: bool,
}

impl Failure {
    /// The failure, with when the sync is tried again. How long at most, as each time of a next try would be a write.
    #[must_use]
    pub fn tried_again(self, within: Duration) -> Self {
        let within = humantime::format_duration(Duration::from_secs(within.as_secs().max(1)));
        let message =
            if self.stalled { self.message } else { format!("{}; tried again within {within}", self.message) };
        Self { message, ..self }
    }
}

/// What a status is about.
pub struct Subject<'a> {
    /// `metadata.uid` of the Image.
    pub uid: &'a str,
    /// `metadata.generation` of the Image.
    pub generation: Option<i64>,
    /// The normalised repository; none if `spec.image` cannot be parsed.
    pub repository: Option<String>,
    /// What this version does not act on.
    pub unsupported: Vec<String>,
    /// Whether Pods are pinned to digests: then another digest is another image.
    pub pin: bool,
    /// The starting tag, where only its digest is followed.
    pub follows: Option<String>,
    /// Whether any opted-in workload uses the Image.
    pub used: bool,
    /// No rollout may start.
    pub closed: Option<Closed>,
    /// The time.
    pub now: Timestamp,
}

/// A newly chosen tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selected {
    /// The tag before, if there was one. With the digest's first digits if only that changed.
    pub from: Option<String>,
    /// The tag; likewise.
    pub to: String,
    /// Its digest, where it is known.
    pub digest: Option<String>,
    /// Name of the rule.
    pub rule: String,
    /// Why.
    pub why: String,
}

/// Records the outcome of a sync; returns the newly chosen tag, if there is one.
pub fn after_sync(status: &mut ImageStatus, subject: &Subject<'_>, outcome: &Outcome) -> Option<Selected> {
    status.time = Some(rfc3339(subject.now));
    status.observed_generation = subject.generation;
    // One that cannot be parsed starts nothing anew: the status goes on speaking of the repository before.
    if subject.repository.is_some() {
        status.repository.clone_from(&subject.repository);
    }
    let unsupported = subject.unsupported.join("; ");
    let mut conditions = Conditions { list: &mut status.conditions, subject };
    if unsupported.is_empty() {
        conditions.clear(condition::UNSUPPORTED);
    } else {
        conditions.set(condition::UNSUPPORTED, true, "NotImplemented", &unsupported);
    }
    match outcome {
        Outcome::Failed(failure) => {
            let kept = status.tag.as_ref().map(|tag| format!("; {tag} is kept")).unwrap_or_default();
            conditions.set(condition::READY, false, failure.reason, &format!("{}{kept}", failure.message));
            if failure.stalled {
                conditions.set(condition::STALLED, true, failure.reason, &failure.message);
                // Nothing goes by itself any more: what waits is found anew once somebody has changed something.
                conditions.clear(condition::PENDING);
                status.pending = None;
            } else {
                conditions.clear(condition::STALLED);
            }
            status.result = Some(failure.result);
            None
        }
        Outcome::Waiting(waits) => {
            conditions.set(condition::READY, true, "Waiting", &waits.for_the_first());
            conditions.clear(condition::STALLED);
            conditions.clear(condition::STALE);
            status.result = Some(SyncResult::Success);
            wait(status, subject, Some(waits));
            None
        }
        Outcome::Tag(choice) => {
            let Choice { tag, rule, why, missing, adopted, digest, .. } = choice;
            let reason = if *missing { "TagMissing" } else { "Synced" };
            conditions.set(condition::READY, true, reason, &in_words(choice));
            conditions.clear(condition::STALLED);
            conditions.clear(condition::STALE);
            status.result = Some(SyncResult::Success);
            // One that the registry does not list yet is still to come.
            if subject.follows.as_ref() == Some(tag) || subject.follows.is_none() || status.base_tag.is_none() {
                status.base_tag.clone_from(&subject.follows);
            }
            // The workloads run it already: the newer tag is rolled out from there like any other.
            let other_digest = |adopted: &Tagged| subject.pin && adopted.digest.is_some() && adopted.digest != *digest;
            let other = |adopted: &&Tagged| adopted.tag != *tag || other_digest(adopted);
            if let Some(adopted) = adopted.as_ref().filter(|_| status.tag.is_none()).filter(other) {
                status.tag = Some(adopted.tag.clone());
                status.digest.clone_from(&adopted.digest);
            }
            wait(status, subject, choice.waits.as_deref());
            select(status, subject, &Tagged { tag: tag.clone(), digest: digest.clone() }, rule, why)
        }
    }
}

/// The message of `Ready`.
fn in_words(choice: &Choice) -> String {
    let Choice { tag, missing, passed_over, waits, .. } = choice;
    let mut message = match (missing, waits) {
        (true, None) => format!("{tag} is kept: no rule allows a newer one; the registry no longer lists it"),
        (true, Some(waits)) => {
            format!("{tag} is kept while {} waits; the registry no longer lists it", waits.pending.tag)
        }
        (false, None) => format!("{tag} is the newest tag that the rules allow"),
        (false, Some(waits)) => format!("{tag} is the newest tag that may go now: {} waits", waits.pending.tag),
    };
    for sentence in passed_over {
        message = format!("{message}; {sentence}");
    }
    message
}

/// Whether a tag waited for a closed gate, as the status has it.
pub fn was_closed(status: &ImageStatus) -> bool {
    let waits = |c: &Condition| c.type_ == condition::PENDING && gates::waits_for_opening(&c.reason);
    status.conditions.iter().any(waits)
}

/// When the tag that waits may go, as the status has it.
pub fn opens(status: &ImageStatus) -> Option<Timestamp> {
    status.pending.as_ref()?.at.as_ref()?.parse().ok()
}

/// Records that a tag waits, or that none does.
fn wait(status: &mut ImageStatus, subject: &Subject<'_>, waits: Option<&Waits>) {
    status.pending = waits.map(|waits| waits.pending.clone());
    let mut conditions = Conditions { list: &mut status.conditions, subject };
    match waits {
        Some(Waits { reason, pending: Pending { tag, reason: why, at } }) => {
            let until = at.as_ref().map(|at| format!(", until {at}")).unwrap_or_default();
            conditions.set(condition::PENDING, true, reason, &format!("{tag} waits: {why}{until}"));
        }
        None => conditions.clear(condition::PENDING),
    }
}

fn select(status: &mut ImageStatus, subject: &Subject<'_>, to: &Tagged, rule: &str, why: &str) -> Option<Selected> {
    let current = current(status);
    let same_tag = current.as_ref().is_some_and(|current| current.tag == to.tag);
    // Unless it is pinned, the tag is what is run. A digest that nobody has any more is run by its tag.
    if same_tag && (!subject.pin || to.digest.is_none() || current.as_ref() == Some(to)) {
        know_digest(status, to);
        return None;
    }
    let rollout = RolloutStatus {
        id: crate::rollout::id(subject.uid, &pinned(subject.pin, to).to_string()),
        tag: to.tag.clone(),
        digest: to.digest.clone(),
        from: status.tag.clone(),
        rule: rule.to_owned(),
        started_at: rfc3339(subject.now),
        ..RolloutStatus::default()
    };
    // The first tag, and its first digest, count at once: Pods that are created now have nothing older to run.
    let first_digest = status.tag.as_ref() == Some(&to.tag) && status.digest.is_none();
    if status.tag.is_none() || first_digest {
        if !first_digest {
            remember(status, &rollout, subject.now, 0);
        }
        status.tag = Some(to.tag.clone());
        status.digest.clone_from(&to.digest);
    }
    let settled =
        pinned(subject.pin, &Tagged::new(status.tag.as_deref().unwrap_or_default(), status.digest.as_deref()));
    if subject.used || settled != pinned(subject.pin, to) {
        status.rollout = Some(rollout);
    }
    let (from, to_text) = match &current {
        Some(current) => current.difference(to),
        None => (String::new(), to.tag.clone()),
    };
    let from = current.map(|_| from);
    Some(Selected { from, to: to_text, digest: to.digest.clone(), rule: rule.to_owned(), why: why.to_owned() })
}

/// What the Image should run as of now: in flight, else settled.
pub fn current(status: &ImageStatus) -> Option<Tagged> {
    let in_flight = status.rollout.as_ref().map(|r| Tagged::new(&r.tag, r.digest.as_deref()));
    in_flight.or_else(|| Some(Tagged::new(status.tag.as_deref()?, status.digest.as_deref())))
}

/// What a container is given: without the digest unless the Image pins it.
pub fn pinned(pin: bool, tagged: &Tagged) -> Tagged {
    Tagged { tag: tagged.tag.clone(), digest: tagged.digest.clone().filter(|_| pin) }
}

/// Notes the digest of what is run already.
fn know_digest(status: &mut ImageStatus, to: &Tagged) {
    if status.tag.as_ref() == Some(&to.tag) && status.rollout.as_ref().is_none_or(|r| r.tag == to.tag) {
        // Also while a first tag is rolled out, which is settled already.
        let moves = status.rollout.as_ref().is_some_and(|r| r.digest != status.digest && status.digest.is_some());
        if !moves {
            status.digest.clone_from(&to.digest);
        }
    }
    if let Some(rollout) = status.rollout.as_mut().filter(|rollout| rollout.tag == to.tag) {
        rollout.digest.clone_from(&to.digest);
    }
}

/// How far the workloads of an Image are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// How many workloads use the Image.
    pub total: u32,
    /// How many run its tag, with all Pods ready.
    pub done: u32,
    /// How many have nothing left to do: those, and those that are held.
    pub at_rest: u32,
    /// How many are being rolled.
    pub moving: u32,
    /// How many are to be rolled, and nothing of that has begun.
    pub waiting: u32,
    /// Those that keep another tag (`since` is filled in here).
    pub held: Vec<Held>,
    /// Those not planned or not written yet for the tag: what held them is kept, because a plan needs to know what was
    /// left.
    pub undecided: Vec<String>,
    /// A workload that could not be rolled, and why.
    pub failed: Option<(String, String)>,
    /// No workload follows this Image as it stands: its repository cannot be read, or an older Image follows it. A
    /// rollout in flight rests until that changes.
    pub excluded: bool,
}

impl Progress {
    /// Nothing is left to do.
    pub fn is_complete(&self) -> bool {
        !self.excluded && self.failed.is_none() && self.at_rest >= self.total
    }
}

/// Records how far the workloads are. Holds that are new come back, to be said once.
pub fn after_progress(status: &mut ImageStatus, subject: &Subject<'_>, progress: &Progress) -> Vec<Held> {
    let mut fresh = Vec::new();
    let known = std::mem::take(&mut status.held);
    // What a hold waits for is written nowhere else: it goes only once a plan was made without it.
    let planned = |hold: &&Held| {
        let decided = !progress.undecided.contains(&hold.workload);
        decided || progress.held.iter().any(|h| h.workload == hold.workload && h.container == hold.container)
    };
    status.held.extend(known.iter().filter(|hold| !planned(hold)).cloned());
    for hold in &progress.held {
        let same = |k: &&Held| k.workload == hold.workload && k.container == hold.container && k.tag == hold.tag;
        let mut hold = hold.clone();
        if let Some(known) = known.iter().find(same) {
            hold.since.clone_from(&known.since);
        } else {
            hold.since = rfc3339(subject.now);
            fresh.push(hold.clone());
        }
        status.held.push(hold);
    }
    // One order, whoever was seen first: else the same holds would be written again and again.
    status.held.sort_by(|a, b| (&a.workload, &a.container).cmp(&(&b.workload, &b.container)));
    let held: BTreeSet<&str> = status.held.iter().map(|hold| hold.workload.as_str()).collect();
    status.workloads = (progress.total > 0).then(|| match held.len() {
        0 => format!("{}/{}", progress.done, progress.total),
        held => format!("{}/{}, {held} held", progress.done, progress.total),
    });
    if let Some(rollout) = &mut status.rollout {
        (rollout.total, rollout.updated) = (progress.total, progress.done);
    }
    wait_with_workloads(status, subject, progress);
    let moves = subject.closed.is_none() || progress.moving > 0;
    let moving = status.rollout.as_ref().filter(|_| moves).map(|r| format!("rolling out {}", r.tag));
    let mut conditions = Conditions { list: &mut status.conditions, subject };
    match moving {
        Some(message) => conditions.set(condition::RECONCILING, true, "RollingOut", &message),
        None => conditions.clear(condition::RECONCILING),
    }
    match &progress.failed {
        Some((workload, why)) => {
            conditions.set(condition::READY, false, "RolloutFailed", &format!("{workload} cannot be rolled: {why}"));
            status.result = Some(SyncResult::ActionError);
        }
        None if status.result == Some(SyncResult::ActionError) => {
            conditions.set(condition::READY, true, "Synced", "every workload can be rolled again");
            status.result = Some(SyncResult::Success);
        }
        None => {}
    }
    fresh
}

/// What has started ends, and nothing starts: the tag that the Image has already waits with the workloads that are left.
fn wait_with_workloads(status: &mut ImageStatus, subject: &Subject<'_>, progress: &Progress) {
    let Some(Tagged { tag, .. }) = current(status) else {
        return;
    };
    let said = status.pending.as_ref().map(|pending| pending.tag == tag);
    match (&subject.closed, said) {
        // A newer tag than the settled one says more than a workload that is behind.
        (Some(_), Some(false)) if status.rollout.is_none() => {}
        (Some(closed), _) if progress.waiting > 0 => wait(status, subject, Some(&Waits::closed(&tag, closed))),
        // Not known again yet, after a restart.
        (Some(_), Some(true)) if !progress.undecided.is_empty() => {}
        (_, Some(true)) => wait(status, subject, None),
        (_, _) => {}
    }
}

/// Settles the rollout in flight: its tag becomes the settled one. Returns it.
pub fn settle(status: &mut ImageStatus, subject: &Subject<'_>) -> Option<RolloutStatus> {
    let rollout = status.rollout.take()?;
    if status.tag.as_deref() != Some(&rollout.tag) || status.digest != rollout.digest {
        status.tag = Some(rollout.tag.clone());
        status.digest.clone_from(&rollout.digest);
        remember(status, &rollout, subject.now, rollout.total);
    } else if let Some(first) = status.history.first_mut().filter(|first| first.tag == rollout.tag) {
        // The first tag: recorded when it was chosen, before any workload ran it.
        (first.finished, first.workloads) = (rfc3339(subject.now), rollout.total);
    }
    Conditions { list: &mut status.conditions, subject }.clear(condition::RECONCILING);
    Some(rollout)
}

fn remember(status: &mut ImageStatus, rollout: &RolloutStatus, now: Timestamp, workloads: u32) {
    let entry = HistoryEntry {
        tag: rollout.tag.clone(),
        digest: rollout.digest.clone(),
        from: rollout.from.clone(),
        rule: rollout.rule.clone(),
        started: rollout.started_at.clone(),
        finished: rfc3339(now),
        outcome: "Settled".to_owned(),
        workloads,
    };
    status.history.insert(0, entry);
    status.history.truncate(MAX_HISTORY);
}

/// Since when syncs fail, as the status of an earlier process has it; none if the last one did not.
pub fn failing_since(status: &ImageStatus) -> Option<Timestamp> {
    let failed = [SyncResult::RegistryError, SyncResult::TagsError, SyncResult::PullSecretsError];
    let ready = status.conditions.iter().find(|c| c.type_ == condition::READY && c.status == "False")?;
    status.result.is_some_and(|result| failed.contains(&result)).then_some(ready.last_transition_time.0)
}

/// Marks an Image whose syncs have failed for three intervals. What was said of it stays: a restart knows less.
pub fn mark_stale(status: &mut ImageStatus, subject: &Subject<'_>, since: &str) {
    if status.conditions.iter().any(|c| c.type_ == condition::STALE && c.status == "True") {
        return;
    }
    let message = format!("no sync has succeeded since {since}");
    Conditions { list: &mut status.conditions, subject }.set(condition::STALE, true, "SyncsFail", &message);
}

/// Gives conditions that end as they began their old `lastTransitionTime` back, whatever they were in between.
pub fn keep_transitions(old: &ImageStatus, new: &mut ImageStatus) {
    for condition in &mut new.conditions {
        let before = old.conditions.iter().find(|c| c.type_ == condition.type_ && c.status == condition.status);
        if let Some(before) = before {
            condition.last_transition_time = before.last_transition_time.clone();
        }
    }
}

/// Whether two statuses say the same, the time aside.
pub fn says_the_same(a: &ImageStatus, b: &ImageStatus) -> bool {
    let timeless = |s: &ImageStatus| ImageStatus { time: None, ..s.clone() };
    timeless(a) == timeless(b)
}

struct Conditions<'a> {
    list: &'a mut Vec<Condition>,
    subject: &'a Subject<'a>,
}

impl Conditions<'_> {
    /// `lastTransitionTime` moves only with the status, as Kubernetes' API conventions say.
    fn set(&mut self, kind: &str, holds: bool, reason: &str, message: &str) {
        let status = if holds { "True" } else { "False" };
        let message = &message[..message.floor_char_boundary(MAX_MESSAGE)];
        let known = self.list.iter().position(|c| c.type_ == kind);
        let since = known.filter(|i| self.list[*i].status == status).map(|i| self.list[i].last_transition_time.clone());
        let said = Condition {
            type_: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            observed_generation: self.subject.generation,
            last_transition_time: since.unwrap_or(Time(self.subject.now)),
        };
        match known {
            Some(i) => self.list[i] = said,
            // What everybody looks for comes first.
            None if kind == condition::READY => self.list.insert(0, said),
            None => self.list.push(said),
        }
    }

    fn clear(&mut self, kind: &str) {
        self.list.retain(|c| c.type_ != kind);
    }
}

#[cfg(test)]
mod digest;
#[cfg(test)]
mod held;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod waiting;
