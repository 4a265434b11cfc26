//! Tags that are not tried again, and the way back from one. Pure.

use std::collections::BTreeSet;

use crate::api::{HistoryEntry, ImageStatus, Rejected, RolloutStatus, Tagged, condition};

use super::rollout::{ROLLED_BACK, SETTLED};
use super::{Conditions, Subject, pinned, rfc3339, wait};

/// Most tags that a status remembers as rejected; of more the oldest go.
const MAX_REJECTED: usize = 50;

/// Rejects a tag, given as text of [`Tagged`]: no Image of the group tries it again, and this one goes back from it.
/// `workload` is where it failed, or empty for a person's word; `reason` says what failed, or who said so.
///
/// Returns whether that is new.
pub fn reject(status: &mut ImageStatus, subject: &Subject<'_>, tag: &str, reason: &str, workload: &str) -> bool {
    let new = status.rejected.iter().all(|known| known.tag != tag);
    if new {
        status.rejected.push(Rejected {
            tag: tag.to_owned(),
            reason: reason.to_owned(),
            workload: workload.to_owned(),
            time: rfc3339(subject.now),
        });
        let excess = status.rejected.len().saturating_sub(MAX_REJECTED);
        status.rejected.drain(..excess);
    }
    let all = status.rejected.clone();
    withdraw(status, subject, &all, None);
    new
}

/// Goes back from rejected tags, if one of them is in flight or settled: a rollout to the tag before it, which is the
/// settled one from now on. `before` is that tag where the status knows none. Returns the rejection that counted.
pub fn withdraw(
    status: &mut ImageStatus,
    subject: &Subject<'_>,
    rejections: &[Rejected],
    before: Option<&Tagged>,
) -> Option<Rejected> {
    let all: BTreeSet<String> = rejections.iter().map(|rejected| rejected.tag.clone()).collect();
    if status.pending.as_ref().is_some_and(|pending| all.contains(&pending.tag)) {
        wait(status, subject, None);
    }
    let settled = status.tag.as_ref().map(|tag| Tagged::new(tag, status.digest.as_deref()));
    let in_flight = status.rollout.as_ref().map(|rollout| Tagged::new(&rollout.tag, rollout.digest.as_deref()));
    let stays = settled.clone().filter(|settled| !settled.is_in(&all));
    let left = in_flight.filter(|tagged| tagged.is_in(&all)).or(settled.filter(|tagged| tagged.is_in(&all)))?;
    let counted = rejections.iter().rev().find(|r| left.is_in(&BTreeSet::from([r.tag.clone()])))?.clone();
    let to = stays.or_else(|| earlier(status, &left, &all)).or_else(|| before.cloned());
    // Another one that is on its way goes on.
    let going = status.rollout.take().filter(|r| !Tagged::new(&r.tag, r.digest.as_deref()).is_in(&all));
    status.tag = to.as_ref().map(|to| to.tag.clone());
    status.digest = to.as_ref().and_then(|to| to.digest.clone());
    let (Some(to), None) = (to, &going) else {
        status.rollout = going; // or as if it had never had a tag: the rules choose one
        return Some(counted);
    };
    let forward = crate::rollout::id(subject.uid, &pinned(subject.pin, &to).to_string());
    let back = RolloutStatus {
        id: crate::rollout::back_id(&forward, &counted.tag),
        tag: to.tag.clone(),
        digest: to.digest.clone(),
        from: Some(left.tag.clone()),
        back_from: Some(counted.tag.clone()),
        rule: crate::rollout::ROLLBACK.to_owned(),
        by: Some(format!("rejected: {}", because(&counted))),
        started_at: rfc3339(subject.now),
        ..RolloutStatus::default()
    };
    status.rollout = subject.used.then_some(back);
    let message = format!("{} is kept: {}", to.tag, in_words(&counted));
    Conditions { list: &mut status.conditions, subject }.set(condition::READY, true, "Synced", &message);
    Some(counted)
}

/// The newest tag of the past that ran and is not rejected.
fn earlier(status: &ImageStatus, left: &Tagged, rejected: &BTreeSet<String>) -> Option<Tagged> {
    let usable = |tagged: &Tagged| tagged != left && !tagged.is_in(rejected);
    let ran = |entry: &&HistoryEntry| entry.outcome == SETTLED || entry.outcome == ROLLED_BACK;
    let past = status.history.iter().filter(ran).map(|entry| Tagged::new(&entry.tag, entry.digest.as_deref()));
    let from = status.rollout.iter().filter_map(|rollout| rollout.from.as_ref());
    let from = from.chain(status.history.iter().filter_map(|entry| entry.from.as_ref()));
    past.chain(from.map(|tag| Tagged::new(tag, None))).find(usable)
}

/// `1.3.0 was rejected: Deployment/web: CrashLoopBackOff …`
pub fn in_words(rejected: &Rejected) -> String {
    format!("{} was rejected: {}", rejected.tag, because(rejected))
}

/// `Deployment/web: CrashLoopBackOff …`
pub fn because(Rejected { reason, workload, .. }: &Rejected) -> String {
    if workload.is_empty() { reason.clone() } else { format!("{workload}: {reason}") }
}

#[cfg(test)]
mod tests;
