//! How far the workloads of an Image are, and what of it stands in the status. Pure.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::{Held, HeldBy, ImageStatus, RolloutStatus, SyncResult, Tagged, condition};
use crate::rollout::{Lead, soaked};

use super::rollout::current;
use super::{Conditions, ROLLOUT_FAILED, Subject, rfc3339, wait};
use crate::sync::gates::Waits;

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
    /// Those that somebody has released, and that wait for their turn.
    pub released: Vec<Held>,
    /// Those not planned or not written yet for the tag: what held them is kept, because a plan needs to know what was
    /// left.
    pub undecided: Vec<String>,
    /// Those with a hold on record of which nobody knows whether they are there: their kind is not served.
    pub unseen: Vec<String>,
    /// What the group has rejected: what keeps a workload at one of these tags ends.
    pub rejected: BTreeSet<String>,
    /// A workload that could not be rolled, and why.
    pub failed: Option<(String, String)>,
    /// A workload whose rollout does not go on, and why: it waits for somebody.
    pub stopped: Option<(String, String)>,
    /// No workload follows this Image as it stands: its repository cannot be read, or an older Image follows it. A
    /// rollout in flight rests until that changes.
    pub excluded: bool,
    /// Who goes first in the group, if others follow, and how long that one must run well before they do.
    pub lead: Option<(Lead, Duration)>,
}

impl Progress {
    /// Nothing is left to do.
    pub fn is_complete(&self) -> bool {
        !self.excluded && self.failed.is_none() && self.at_rest >= self.total
    }
}

/// What is new about holds, to be said once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// Those that began.
    pub began: Vec<Held>,
    /// Those that somebody ended.
    pub ended: Vec<Held>,
}

/// Releases what people hold, and what is held because of a fight. What an annotation of the workload or its pause holds
/// is released there.
pub fn release(status: &mut ImageStatus, subject: &Subject<'_>) -> Vec<Held> {
    let here = |hold: &&mut Held| hold.holds() && !matches!(hold.by, HeldBy::Annotation | HeldBy::Paused);
    let mut ended = Vec::new();
    for hold in status.held.iter_mut().filter(here) {
        hold.released = Some(rfc3339(subject.now));
        ended.push(hold.clone());
    }
    ended
}

/// Records a hold, in place of what the container's was.
pub fn hold(status: &mut ImageStatus, held: Held) {
    status.held.retain(|other| (&other.workload, &other.container) != (&held.workload, &held.container));
    status.held.push(held);
    sort(&mut status.held);
}

/// One order, whoever was seen first: else the same holds would be written again and again.
fn sort(held: &mut [Held]) {
    held.sort_by(|a, b| (&a.workload, &a.container).cmp(&(&b.workload, &b.container)));
}

/// Records how far the workloads are. Holds that began or were ended come back, to be said once.
pub fn after_progress(status: &mut ImageStatus, subject: &Subject<'_>, progress: &Progress) -> Holds {
    let holds = record_holds(status, subject, progress);
    let held = status.held.iter().filter(|hold| hold.holds());
    let held: BTreeSet<&str> = held.map(|hold| hold.workload.as_str()).collect();
    status.workloads = (progress.total > 0).then(|| match held.len() {
        0 => format!("{}/{}", progress.done, progress.total),
        held => format!("{}/{}, {held} held", progress.done, progress.total),
    });
    if let Some(rollout) = &mut status.rollout {
        (rollout.total, rollout.updated) = (progress.total, progress.done);
    }
    record_lead(status, progress.lead.as_ref().map(|(lead, _)| lead), subject.now);
    wait_with_workloads(status, subject, progress);
    say_whether_it_moves(status, subject, progress);
    say_whether_it_fails(status, subject, progress);
    holds
}

/// Records what keeps another tag. A hold that is on record already keeps its time, also where it goes further back.
fn record_holds(status: &mut ImageStatus, subject: &Subject<'_>, progress: &Progress) -> Holds {
    let known = std::mem::take(&mut status.held);
    let mut holds = Holds::default();
    status.held.extend(known.iter().filter(|hold| !is_decided(progress, hold)).cloned());
    for (hold, released) in progress.held.iter().map(|h| (h, false)).chain(progress.released.iter().map(|h| (h, true)))
    {
        let same = |k: &&Held| (&k.workload, &k.container, &k.tag) == (&hold.workload, &hold.container, &hold.tag);
        let before = known.iter().find(same).filter(|k| k.by == hold.by);
        let mut hold = hold.clone();
        // One whose tag was rejected goes on at another one.
        let goes_on = |k: &&Held| {
            let left = (&k.workload, &k.container, &k.left, k.by);
            left == (&hold.workload, &hold.container, &hold.left, hold.by) && k.is_rejected(&progress.rejected)
        };
        let since = before.or_else(|| known.iter().find(goes_on)).map(|k| k.since.clone());
        hold.since = since.unwrap_or_else(|| rfc3339(subject.now));
        hold.released = before.and_then(|before| before.released.clone());
        if let Some(before) = before.filter(|_| hold.why.is_empty()) {
            hold.why.clone_from(&before.why);
        }
        if released && hold.released.is_none() {
            hold.released = Some(rfc3339(subject.now));
            holds.ended.push(hold.clone());
        } else if before.is_none() {
            holds.began.push(hold.clone());
        }
        status.held.push(hold);
    }
    sort(&mut status.held);
    let kept =
        |known: &&Held| status.held.iter().any(|h| h.workload == known.workload && h.container == known.container);
    let lost = known.iter().filter(|known| known.holds() && known.is_rejected(&progress.rejected));
    holds.ended.extend(lost.filter(|known| !kept(known)).cloned());
    holds
}

/// Whether it was decided over a hold on record since. What a hold waits for is written nowhere else: it goes only once a
/// plan was made without it, or its workload is known to be gone.
fn is_decided(progress: &Progress, hold: &Held) -> bool {
    let mut found = progress.held.iter().chain(&progress.released);
    // Where the Image does not count for anybody, for a moment perhaps, nothing was decided.
    let decided =
        !progress.excluded && !progress.undecided.contains(&hold.workload) && !progress.unseen.contains(&hold.workload);
    decided || found.any(|h| h.workload == hold.workload && h.container == hold.container)
}

/// The condition `Reconciling`.
fn say_whether_it_moves(status: &mut ImageStatus, subject: &Subject<'_>, progress: &Progress) {
    let moves = subject.closed.is_none() || progress.moving > 0;
    let moves = moves && progress.stopped.is_none();
    let way = |r: &RolloutStatus| if r.back_from.is_some() { "back to" } else { "out" };
    let soaks = soaks_until(status, progress, subject.now);
    let moving = status.rollout.as_ref().filter(|_| moves).map(|r| match (soaks, &r.first) {
        (Some(until), Some(first)) => format!("{} soaks on {first} until {}", r.tag, rfc3339(until)),
        _ => format!("rolling {} {}", way(r), r.tag),
    });
    let mut conditions = Conditions { list: &mut status.conditions, subject };
    match moving {
        Some(message) => conditions.set(condition::RECONCILING, true, "RollingOut", &message),
        None => conditions.clear(condition::RECONCILING),
    }
}

/// The conditions `Stalled` and `Ready`, and the result, as far as workloads decide them.
fn say_whether_it_fails(status: &mut ImageStatus, subject: &Subject<'_>, progress: &Progress) {
    let mut conditions = Conditions { list: &mut status.conditions, subject };
    let failed = progress.failed.as_ref().map(|(workload, why)| format!("{workload} cannot be rolled: {why}"));
    let stopped = progress.stopped.as_ref().map(|(workload, why)| format!("{workload} does not go on: {why}"));
    match &stopped {
        Some(message) => conditions.set(condition::STALLED, true, ROLLOUT_FAILED, message),
        // After a restart nothing is known at first.
        None if progress.undecided.is_empty() && conditions.is(condition::STALLED, ROLLOUT_FAILED) => {
            conditions.clear(condition::STALLED);
        }
        None => {}
    }
    match failed.or(stopped) {
        Some(message) => {
            conditions.set(condition::READY, false, ROLLOUT_FAILED, &message);
            status.result = Some(SyncResult::ActionError);
        }
        None if status.result == Some(SyncResult::ActionError) => {
            conditions.set(condition::READY, true, "Synced", "every workload can be rolled again");
            status.result = Some(SyncResult::Success);
        }
        None => {}
    }
}

/// Records who goes first and since when that one runs well: a restart goes on from there. If it runs well no longer, the
/// time is taken back; while that is not known, it stays.
fn record_lead(status: &mut ImageStatus, lead: Option<&Lead>, now: Timestamp) {
    let Some(rollout) = &mut status.rollout else {
        return;
    };
    let Some(lead) = lead else {
        (rollout.first, rollout.first_ready_at) = (None, None);
        return;
    };
    let names = Some(lead.names());
    let fresh = rollout.first != names;
    if fresh {
        (rollout.first, rollout.first_ready_at) = (names, None);
    }
    match lead.ready {
        Some(true) if rollout.first_ready_at.is_none() => {
            // Another Image of the group may have it on record.
            let since = lead.since.filter(|_| fresh).unwrap_or(now);
            rollout.first_ready_at = Some(rfc3339(since));
        }
        Some(false) => rollout.first_ready_at = None,
        _ => {}
    }
}

/// Until when the others wait although the first one runs well.
pub fn soaks_until(status: &ImageStatus, progress: &Progress, now: Timestamp) -> Option<Timestamp> {
    let (_, soak) = progress.lead.as_ref().filter(|_| progress.at_rest < progress.total)?;
    let ready_at: Timestamp = status.rollout.as_ref()?.first_ready_at.as_ref()?.parse().ok()?;
    Some(soaked(ready_at, *soak)).filter(|until| *until > now)
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
