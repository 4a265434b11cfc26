//! From what a sync found to the status that tells it. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};

use crate::api::{Closed, ImageStatus, Pending, RolloutStatus, SyncResult, Tagged, condition};

use super::approval;
use super::decide::Choice;
use super::gates::{self, Waits};

mod progress;
mod rejected;
mod rollout;

pub use progress::{Holds, Progress, after_progress, hold, release, soaks_until};
pub use rejected::{because, in_words as rejected_in_words, remember, take_over, to_leave, ways_back, withdraw};
use rollout::select;
pub use rollout::{Selected, current, pinned, settle};

/// Longest that a way back keeps a newer tag waiting: a workload that has nothing to do with it may never be ready.
const WAY_BACK: Duration = Duration::from_mins(10);
/// Longest condition message, in bytes (the API server takes 32,768; nobody reads that).
const MAX_MESSAGE: usize = 1024;

/// Reason of the `Ready` condition of an Image whose repository an older one of its namespace follows.
pub const DUPLICATE: &str = "Duplicate";

/// Reason of `Ready` and `Stalled` where a workload cannot be rolled, or its rollout does not go on.
pub const ROLLOUT_FAILED: &str = "RolloutFailed";

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
        Outcome::Failed(failure) => after_failure(status, subject, failure),
        Outcome::Waiting(waits) => before_the_first(status, subject, waits),
        Outcome::Tag(choice) => return after_choice(status, subject, choice),
    }
    None
}

/// The tag stays as it is.
fn after_failure(status: &mut ImageStatus, subject: &Subject<'_>, failure: &Failure) {
    let mut conditions = Conditions { list: &mut status.conditions, subject };
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
}

/// There is no tag yet, and the one that would be chosen waits.
fn before_the_first(status: &mut ImageStatus, subject: &Subject<'_>, waits: &Waits) {
    let mut conditions = Conditions { list: &mut status.conditions, subject };
    conditions.set(condition::READY, true, "Waiting", &waits.for_the_first());
    conditions.clear(condition::STALLED);
    conditions.clear(condition::STALE);
    status.result = Some(SyncResult::Success);
    wait(status, subject, Some(waits));
}

fn after_choice(status: &mut ImageStatus, subject: &Subject<'_>, choice: &Choice) -> Option<Selected> {
    let Choice { tag, rule, why, missing, adopted, digest, .. } = choice;
    let mut conditions = Conditions { list: &mut status.conditions, subject };
    let stuck = conditions.is(condition::STALLED, ROLLOUT_FAILED);
    let reason = if *missing { "TagMissing" } else { "Synced" };
    conditions.set(condition::READY, true, reason, &in_words(choice));
    if !stuck {
        conditions.clear(condition::STALLED); // else it is the workloads that tell
    }
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
    // Going back ends first, if it does; then a newer tag is taken at once.
    let waits = |r: &RolloutStatus| {
        let until = r.started_at.parse::<Timestamp>().ok().and_then(|at| at.checked_add(WAY_BACK).ok());
        r.back_from.is_some() && r.tag != *tag && until.is_none_or(|until| until > subject.now)
    };
    if status.rollout.as_ref().is_some_and(waits) && !stuck {
        return None;
    }
    let selected = select(status, subject, &Tagged { tag: tag.clone(), digest: digest.clone() }, rule, why);
    if choice.approved && selected.is_some() {
        rollout::approved(status, why);
    }
    selected
}

/// The message of `Ready`.
fn in_words(choice: &Choice) -> String {
    let Choice { tag, rule, missing, passed_over, waits, rejected, .. } = choice;
    let mut message = match (missing, waits) {
        (true, None) => format!("{tag} is kept: no rule allows a newer one; the registry no longer lists it"),
        (true, Some(waits)) => {
            format!("{tag} is kept while {} waits; the registry no longer lists it", waits.pending.tag)
        }
        (false, None) => match rejected {
            Some(rejected) if rule.is_empty() => format!("{tag} is kept: {rejected}"),
            Some(rejected) => format!("{tag} is the newest tag that the rules allow; {rejected}"),
            None => format!("{tag} is the newest tag that the rules allow"),
        },
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

/// When the tag that waits may go, or is not asked for any more, as the status has it.
pub fn opens(status: &ImageStatus) -> Option<Timestamp> {
    let opens = status.pending.as_ref().and_then(|pending| pending.at.as_ref()?.parse().ok());
    opens.into_iter().chain(approval::lapses(status.asked.as_ref())).min()
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

/// Records that a tag waits no longer, and that nobody is asked for it, if that was so.
pub fn forget_waiting(status: &mut ImageStatus, subject: &Subject<'_>, tag: &str) {
    status.asked = status.asked.take().filter(|asked| asked.tag != tag);
    if status.pending.as_ref().is_some_and(|pending| pending.tag == tag) {
        wait(status, subject, None);
    }
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

/// Whether two statuses differ in nothing but how far rollouts are: who reads that can wait for a moment.
pub fn differ_in_counts_only(a: &ImageStatus, b: &ImageStatus) -> bool {
    let uncounted = |s: &ImageStatus| {
        let mut status = ImageStatus { time: None, workloads: None, revisions: Vec::new(), ..s.clone() };
        if let Some(rollout) = &mut status.rollout {
            (rollout.total, rollout.updated) = (0, 0);
        }
        status
    };
    uncounted(a) == uncounted(b)
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

    fn is(&self, kind: &str, reason: &str) -> bool {
        self.list.iter().any(|c| c.type_ == kind && c.status == "True" && c.reason == reason)
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
pub(super) mod tests;
#[cfg(test)]
mod waiting;
