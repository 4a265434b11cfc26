//! Tags that are not tried again, and the way back from one. Pure.

use std::collections::BTreeSet;

use crate::api::{HistoryEntry, ImageStatus, Rejected, RolloutStatus, Tagged, condition};

use super::rollout::{REJECTED, ROLLED_BACK, SETTLED};
use super::{Conditions, Subject, pinned, rfc3339, wait};

/// Most tags that a status remembers as rejected; of more the oldest go.
const MAX_REJECTED: usize = 50;

/// Rejects a tag, given as text of [`Tagged`]: no Image of the group tries it again, and this one goes back from it.
/// `workload` is where it failed, or empty for a person's word; `reason` says what failed, or who said so.
///
/// Returns whether that is new.
#[cfg(test)] // what `Sync::go_back` does, without asking the registry
pub fn reject(status: &mut ImageStatus, subject: &Subject<'_>, tag: &str, reason: &str, workload: &str) -> bool {
    let new = remember(status, subject, tag, reason, workload);
    let all = status.rejected.clone();
    let to = ways_back(status, &all).into_iter().next();
    withdraw(status, subject, &all, to.as_ref(), true);
    new
}

/// Remembers a rejected tag; whether that is new.
pub fn remember(status: &mut ImageStatus, subject: &Subject<'_>, tag: &str, reason: &str, workload: &str) -> bool {
    let (tag, reason, workload) = (tag.to_owned(), reason.to_owned(), workload.to_owned());
    record(status, Rejected { tag, reason, workload, time: rfc3339(subject.now) })
}

/// Adds a rejection, unless its tag is known; whether it is new.
fn record(status: &mut ImageStatus, rejected: Rejected) -> bool {
    let new = status.rejected.iter().all(|known| known.tag != rejected.tag);
    if new {
        status.rejected.push(rejected);
        let excess = status.rejected.len().saturating_sub(MAX_REJECTED);
        status.rejected.drain(..excess);
    }
    new
}

/// Takes over what the group has rejected (each tag once), as far as there is room: of all the newest. Returns whether there
/// is anything new.
pub fn take_over(status: &mut ImageStatus, rejections: &[Rejected]) -> bool {
    let own = Rejected::tags(&status.rejected);
    let others = rejections.iter().filter(|rejected| !own.contains(&rejected.tag));
    let mut all: Vec<Rejected> = status.rejected.iter().chain(others).cloned().collect();
    // One order, whoever knows it first: else two Images would never agree on what is left out.
    all.sort_by(|a, b| (&a.time, &a.tag).cmp(&(&b.time, &b.tag)));
    let excess = all.len().saturating_sub(MAX_REJECTED);
    all.drain(..excess);
    let learns = Rejected::tags(&all) != own;
    if learns {
        status.rejected = all;
    }
    learns
}

/// Which rejected tag is in flight or settled, and has to be left.
pub fn to_leave(status: &ImageStatus, rejections: &[Rejected]) -> Option<Tagged> {
    let all = Rejected::tags(rejections);
    in_flight(status)
        .filter(|tagged| tagged.is_in(&all))
        .or_else(|| settled(status).filter(|tagged| tagged.is_in(&all)))
}

/// Where an Image may go back to, best first: the settled tag, then those before it.
pub fn ways_back(status: &ImageStatus, rejections: &[Rejected]) -> Vec<Tagged> {
    let all = Rejected::tags(rejections);
    let ran = |entry: &&HistoryEntry| entry.outcome == SETTLED || entry.outcome == ROLLED_BACK;
    let past = status.history.iter().filter(ran).map(|entry| Tagged::new(&entry.tag, entry.digest.as_deref()));
    let from = status.rollout.iter().filter_map(|rollout| rollout.from.as_ref());
    let from = from.chain(status.history.iter().filter_map(|entry| entry.from.as_ref()));
    let known = settled(status).into_iter().chain(past).chain(from.map(|tag| Tagged::new(tag, None)));
    let mut ways: Vec<Tagged> = Vec::new();
    for way in known.filter(|tagged| !tagged.is_in(&all)) {
        if ways.iter().all(|other| other.tag != way.tag) {
            ways.push(way);
        }
    }
    ways
}

/// Goes back from rejected tags, if one of them is in flight or settled: a rollout to `to`, which is settled from now on.
/// `tried`: a workload was stamped for it; else there is nothing to roll. Returns the rejection that counted.
pub fn withdraw(
    status: &mut ImageStatus,
    subject: &Subject<'_>,
    rejections: &[Rejected],
    to: Option<&Tagged>,
    tried: bool,
) -> Option<Rejected> {
    let all = Rejected::tags(rejections);
    if status.pending.as_ref().is_some_and(|pending| all.contains(&pending.tag)) {
        wait(status, subject, None);
    }
    let left = to_leave(status, rejections)?;
    let counted = rejections.iter().rev().find(|r| left.is_in(&BTreeSet::from([r.tag.clone()])))?.clone();
    // On record here too: the Image where it failed may go, and this one must not try it again then.
    record(status, counted.clone());
    // Another one that is on its way goes on.
    let going = in_flight(status).filter(|tagged| !tagged.is_in(&all)).and(status.rollout.take());
    if let Some(failed) = status.rollout.take().filter(|_| tried) {
        let failed = RolloutStatus { by: Some(by(&counted)), ..failed };
        super::rollout::remember(status, &failed, subject.now, REJECTED);
    }
    status.tag = to.map(|to| to.tag.clone());
    status.digest = to.and_then(|to| to.digest.clone());
    let mut conditions = Conditions { list: &mut status.conditions, subject };
    let (Some(to), None) = (to, &going) else {
        status.rollout = going; // or as if it had never had a tag: the rules choose one
        return Some(counted);
    };
    conditions.set(condition::READY, true, "Synced", &format!("{} is kept: {}", to.tag, in_words(&counted)));
    let forward = crate::rollout::id(subject.uid, &pinned(subject.pin, to).to_string());
    status.rollout = (subject.used && tried).then(|| RolloutStatus {
        id: crate::rollout::back_id(&forward, &counted.tag),
        tag: to.tag.clone(),
        digest: to.digest.clone(),
        from: Some(left.tag.clone()),
        back_from: Some(counted.tag.clone()),
        rule: crate::rollout::ROLLBACK.to_owned(),
        by: Some(by(&counted)),
        started_at: rfc3339(subject.now),
        ..RolloutStatus::default()
    });
    if status.rollout.is_none() {
        conditions.clear(condition::RECONCILING);
    }
    Some(counted)
}

fn settled(status: &ImageStatus) -> Option<Tagged> {
    status.tag.as_ref().map(|tag| Tagged::new(tag, status.digest.as_deref()))
}

fn in_flight(status: &ImageStatus) -> Option<Tagged> {
    status.rollout.as_ref().map(|rollout| Tagged::new(&rollout.tag, rollout.digest.as_deref()))
}

/// `1.3.0 was rejected: Deployment/web: CrashLoopBackOff …`
pub fn in_words(rejected: &Rejected) -> String {
    format!("{} was {}", rejected.tag, by(rejected))
}

/// `rejected: Deployment/web: CrashLoopBackOff …`, or a person's word: `rejected by bob`
fn by(rejected: &Rejected) -> String {
    let word = rejected.workload.is_empty() && rejected.reason.starts_with("rejected by ");
    if word { rejected.reason.clone() } else { format!("rejected: {}", because(rejected)) }
}

/// `Deployment/web: CrashLoopBackOff …`
pub fn because(Rejected { reason, workload, .. }: &Rejected) -> String {
    if workload.is_empty() { reason.clone() } else { format!("{workload}: {reason}") }
}

#[cfg(test)]
mod tests;
