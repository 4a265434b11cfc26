//! The rollout in flight: how it begins, settles and is remembered. Pure.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::api::{HistoryEntry, ImageStatus, RolloutStatus, Tagged, condition};

use super::{Conditions, Subject, rfc3339};

/// Tags that the history keeps.
const MAX_HISTORY: usize = 10;
/// Outcome of a rollout that ended well.
pub(super) const SETTLED: &str = "Settled";
/// Outcome of one whose tag was rejected before it had ended.
pub(super) const REJECTED: &str = "Rejected";
/// Outcome of one that went back from a rejected tag.
pub(super) const ROLLED_BACK: &str = "RolledBack";

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

pub(super) fn select(
    status: &mut ImageStatus,
    subject: &Subject<'_>,
    to: &Tagged,
    rule: &str,
    why: &str,
) -> Option<Selected> {
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
            remember(status, &rollout, subject.now, SETTLED);
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

/// Notes on a tag that has just been chosen that somebody approved it.
pub(super) fn approved(status: &mut ImageStatus, by: &str) {
    if let Some(rollout) = &mut status.rollout {
        (rollout.by, rollout.approved) = (Some(by.to_owned()), true);
    }
    // The first tag is on record from the start.
    let first =
        status.history.first_mut().filter(|first| status.tag.as_ref() == Some(&first.tag) && first.by.is_none());
    if let Some(first) = first.filter(|first| status.rollout.as_ref().is_none_or(|r| r.tag == first.tag)) {
        first.by = Some(by.to_owned());
    }
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

/// Settles the rollout in flight: its tag becomes the settled one. Returns it.
pub fn settle(status: &mut ImageStatus, subject: &Subject<'_>) -> Option<RolloutStatus> {
    let rollout = status.rollout.take()?;
    let held = held(status);
    let moves = status.tag.as_deref() != Some(&rollout.tag) || status.digest != rollout.digest;
    if moves || rollout.back_from.is_some() {
        status.tag = Some(rollout.tag.clone());
        status.digest.clone_from(&rollout.digest);
        let outcome = if rollout.back_from.is_some() { ROLLED_BACK } else { SETTLED };
        remember(status, &rollout, subject.now, outcome);
    } else if let Some(first) = status.history.first_mut().filter(|first| first.tag == rollout.tag) {
        // The first tag: recorded when it was chosen, before any workload ran it.
        (first.finished, first.workloads, first.held) = (rfc3339(subject.now), rollout.total, held);
    }
    Conditions { list: &mut status.conditions, subject }.clear(condition::RECONCILING);
    Some(rollout)
}

/// How many workloads are held.
fn held(status: &ImageStatus) -> u32 {
    let names: BTreeSet<&str> = status.held.iter().map(|held| held.workload.as_str()).collect();
    u32::try_from(names.len()).unwrap_or(u32::MAX)
}

/// Adds a rollout to the history.
pub(super) fn remember(status: &mut ImageStatus, rollout: &RolloutStatus, now: Timestamp, outcome: &str) {
    let entry = HistoryEntry {
        tag: rollout.tag.clone(),
        digest: rollout.digest.clone(),
        from: rollout.from.clone(),
        rule: rollout.rule.clone(),
        by: rollout.by.clone(),
        started: rollout.started_at.clone(),
        finished: rfc3339(now),
        outcome: outcome.to_owned(),
        workloads: rollout.total,
        held: held(status),
    };
    status.history.insert(0, entry);
    status.history.truncate(MAX_HISTORY);
}
