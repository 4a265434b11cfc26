//! Whether a rollout fails, and what ran before it. Pure.
//!
//! A rollout fails if its workload is not complete when the deadline has passed since anything last got better: since the
//! stamp, or since a Pod of its revision came to be, became ready or stopped being it. A Deployment's controller may say so
//! earlier (`spec.progressDeadlineSeconds`). Of an Argo Rollout, whose steps may take as long as they like, only its own
//! controller knows.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::annotations::Stamp;

use super::evidence::{Past, PodState};
use super::workload::{Kind, Workload};

/// A Pod that restarted as often as this becomes ready and unready in turns: that is no progress.
const FLAPS: i32 = 3;

/// How a rollout goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Well, as far as can be told before this time; none: it needs no watching.
    Fine(Option<Timestamp>),
    /// Its Pods were started and do not become ready.
    Failing {
        /// What is wrong, for example `CrashLoopBackOff: container app of Pod web-1: …`.
        reason: String,
        /// The containers that are in trouble; empty if it is not known which.
        containers: BTreeSet<String>,
    },
    /// Nothing of its revision was started that is not well: its tag was not tried.
    Untried {
        /// What is in the way.
        why: String,
    },
}

/// When a rollout is to be judged by its Pods; none if it cannot fail: it is complete, nobody stamped it, or it wants no
/// Pods now. Before that time nothing needs to be read.
pub fn due(workload: &Workload, deadline: Duration) -> Option<Timestamp> {
    let waits = workload.complete || workload.paused || workload.replicas == 0 || workload.deleting;
    let stamped_at = workload.stamped_at.filter(|_| !waits)?;
    match is_exceeded(workload) {
        true => Some(stamped_at),
        // Its steps may take days: only its own controller knows.
        false if workload.key.kind == Kind::Rollout => None,
        false => Some(after(stamped_at, deadline)),
    }
}

/// Judges a rollout by the Pods of its revision.
pub fn judge(workload: &Workload, pods: &[PodState], deadline: Duration, now: Timestamp) -> Verdict {
    let Some(stamped_at) = workload.stamped_at.filter(|_| due(workload, deadline).is_some()) else {
        return Verdict::Fine(None);
    };
    if !workload.observed {
        return Verdict::Fine(Some(after(now, Duration::from_secs(1))));
    }
    let better = pods.iter().map(|pod| if pod.restarts < FLAPS { pod.created.max(pod.turned) } else { pod.created });
    let over = after(better.max().unwrap_or(stamped_at).max(stamped_at), deadline);
    if over > now && !is_exceeded(workload) {
        return Verdict::Fine(Some(over));
    }
    if let Some(reason) = &workload.aborted {
        // Its Pods are gone with it, or were ready and did badly.
        return Verdict::Failing { reason: reason.clone(), containers: BTreeSet::new() };
    }
    let started: Vec<&PodState> = pods.iter().filter(|pod| pod.scheduled).collect();
    let mut unwell: Vec<&&PodState> = started.iter().filter(|pod| !pod.ready).collect();
    unwell.sort_by_key(|pod| (pod.trouble.is_none(), &pod.name));
    let Some(worst) = unwell.first() else {
        return Verdict::Untried { why: blocked(workload, pods, started.len()) };
    };
    Verdict::Failing {
        reason: match &worst.trouble {
            Some(trouble) => trouble.clone(),
            None if is_exceeded(workload) => format!("ProgressDeadlineExceeded: Pod {} is not ready", worst.name),
            None => format!("NotReady: Pod {} is not ready", worst.name),
        },
        containers: unwell.iter().flat_map(|pod| pod.unready.iter().cloned()).collect(),
    }
}

/// Whether its controller gave this template up, and not the one before: the stamp is older than its word.
fn is_exceeded(workload: &Workload) -> bool {
    workload.observed && workload.exceeded.is_some_and(|at| workload.stamped_at.is_some_and(|stamped| stamped <= at))
}

fn after(time: Timestamp, by: Duration) -> Timestamp {
    time.checked_add(by).unwrap_or(Timestamp::MAX)
}

/// What keeps Pods from being started.
fn blocked(workload: &Workload, pods: &[PodState], started: usize) -> String {
    let unscheduled = pods.iter().find(|pod| !pod.scheduled);
    match (unscheduled, &workload.trouble) {
        (Some(pod), _) => match &pod.unscheduled {
            Some(why) => format!("Pod {} cannot be scheduled: {why}", pod.name),
            None => format!("Pod {} is not scheduled", pod.name),
        },
        (None, Some(trouble)) => format!("its Pods cannot be created: {trouble}"),
        (None, None) if started == 0 => "its controller creates no Pod of the new revision".to_owned(),
        (None, None) => "its new Pods are ready, and its controller does not end the rollout".to_owned(),
    }
}

/// What a workload ran before its current revision.
#[derive(Clone, Debug, PartialEq)]
pub enum Before<'a> {
    /// Nothing of it is left.
    Unknown,
    /// More than kimup's stamps has changed since: whatever fails need not be the tag.
    Changed,
    /// This revision, whose template is the same but for kimup's stamps.
    Revision(&'a Past),
}

/// What ran before the current revision: the newest other one that has ready Pods, else the newest that none of these
/// stamps is of.
pub fn before<'a>(past: &'a [Past], pods: &[PodState], rejected: impl Fn(&str, &Stamp) -> bool) -> Before<'a> {
    let Some(current) = past.iter().find(|revision| revision.current) else {
        return Before::Unknown;
    };
    let runs = |revision: &Past| pods.iter().any(|pod| pod.ready && pod.hash == revision.hash);
    let others = || past.iter().filter(|revision| !revision.current);
    let usable = |revision: &&Past| !revision.stamps.iter().any(|(container, stamp)| rejected(container, stamp));
    let newest = others().filter(|r| runs(r)).max_by_key(|r| r.number);
    match newest.or_else(|| others().filter(usable).max_by_key(|r| r.number)) {
        None => Before::Unknown,
        Some(revision) if revision.template != current.template => Before::Changed,
        Some(revision) => Before::Revision(revision),
    }
}

#[cfg(test)]
mod tests;
