//! Finds the owners of denied Pods and has their controllers look again, once kimup can be reached.
//!
//! Nobody tells sync that the API server reaches the webhook again. So one stuck owner after another is tried, each with
//! growing pauses; the first one that gets its Pods is the sign for all others. [`Schedule`] is pure. The same sweep tells of
//! Pods that came to be without kimup and that nobody replaces.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::batch::v1::Job;
use kube::ResourceExt;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::api::annotated::Levels;
use crate::api::annotations::{self, Map, NamespaceSettings};
use crate::rollout::{self, ApplyError, Denied, OwnerKind, PodOwner, Workload};

use super::engine::Sync;
use super::status::rfc3339;

/// How often the known workloads are looked through; costs no request.
const SWEEP: Duration = Duration::from_secs(2);
/// How long Pods may be missing before that is a sign, and after a nudge: they come and go all the time.
const FIRST: Duration = Duration::from_secs(3);
/// Longest pause between two nudges of one owner, where a condition says that kimup cannot be reached.
const PAUSE_UNREACHABLE: Duration = Duration::from_secs(20);
/// The same where other reasons are possible.
const PAUSE: Duration = Duration::from_mins(5);
/// Nudges of one owner, where other reasons are possible.
const TRIES: u32 = 6;
/// Owners at a time while no sign was seen, and after one: with [`SWEEP`] half a nudge and 10 nudges a second.
const PROBES: usize = 1;
const BURST: usize = 20;
/// How long a sign counts. Within that time each owner is nudged as if for the first time, once.
const WINDOW: Duration = Duration::from_mins(1);

/// Something whose Pods are wanted and not there.
#[derive(Clone, Debug)]
pub(super) struct Stuck {
    /// Namespace, kind and name.
    pub id: (String, &'static str, String),
    /// Its UID.
    pub uid: String,
    /// How that is known.
    pub denied: Denied,
    /// What is nudged.
    pub what: What,
}

/// What is nudged.
#[derive(Clone, Debug)]
pub(super) enum What {
    /// A workload, or the `ReplicaSet`s of one.
    Workload(Arc<Workload>),
    /// A Job.
    Job(PodOwner),
}

struct State {
    uid: String,
    tries: u32,
    last: Option<Instant>,
    next: Instant,
}

impl State {
    fn start_anew(&mut self, at: Instant) {
        (self.tries, self.next) = (0, at);
    }
}

/// Who is nudged when.
#[derive(Default)]
pub(super) struct Schedule {
    known: HashMap<(String, &'static str, String), State>,
    sign: Option<Instant>,
}

impl Schedule {
    /// Takes in everything that is stuck now; returns what is to be nudged.
    pub fn pick(&mut self, stuck: &[Stuck], now: Instant) -> Vec<Stuck> {
        let present: HashSet<_> = stuck.iter().map(|s| (&s.id, &s.uid)).collect();
        let mut freed = false;
        self.known.retain(|id, state| {
            let stays = present.contains(&(id, &state.uid));
            freed |= !stays && state.tries > 0;
            stays
        });
        let signed = self.sign.is_some_and(|at| now < at + WINDOW);
        if freed && !signed {
            self.sign = Some(now);
            for state in self.known.values_mut() {
                // Whoever was nudged a moment ago, as the next to be tried, may be getting its Pods as well.
                state.start_anew(state.last.map_or(now, |last| now.max(last + FIRST)));
            }
        }
        let signed = signed || freed;
        let mut due = Vec::new();
        for one in stuck {
            let state = self.known.entry(one.id.clone()).or_insert_with(|| State {
                uid: one.uid.clone(),
                tries: 0,
                last: None,
                next: now + FIRST,
            });
            if state.next <= now && (state.tries < TRIES || one.denied == Denied::Unreachable) {
                due.push((state.tries, state.next, one));
            }
        }
        due.sort_by_key(|(tries, next, _)| (*tries, *next));
        due.truncate(if signed { BURST } else { PROBES });
        for (_, _, one) in &due {
            if let Some(state) = self.known.get_mut(&one.id) {
                (state.tries, state.last) = (state.tries + 1, Some(now));
                state.next = now + pause(state.tries, one.denied);
            }
        }
        due.into_iter().map(|(_, _, one)| one.clone()).collect()
    }

    /// The reason that kept Pods of a namespace away may be gone: its owners are due, as if for the first time.
    pub fn hurry(&mut self, namespace: &str, now: Instant) {
        let concerned = self.known.iter_mut().filter(|((of, ..), _)| of == namespace);
        concerned.for_each(|(_, state)| state.start_anew(now));
    }
}

fn pause(tries: u32, denied: Denied) -> Duration {
    let longest = if denied == Denied::Unreachable { PAUSE_UNREACHABLE } else { PAUSE };
    (Duration::from_secs(5) * 2_u32.saturating_pow(tries.saturating_sub(1).min(10))).min(longest)
}

/// A Job that has fewer Pods than it wants and that no Pod has failed for; it would wait for those by itself.
pub(super) fn of_job(job: &Job) -> Option<(PodOwner, Map)> {
    let (spec, status) = (job.spec.as_ref()?, job.status.clone().unwrap_or_default());
    let ended = status.conditions.iter().flatten().any(|c| ["Complete", "Failed"].contains(&c.type_.as_str()));
    let left = spec.completions.map(|wanted| wanted - status.succeeded.unwrap_or(0));
    let wanted = spec.parallelism.unwrap_or(1).min(left.unwrap_or(i32::MAX));
    let quiet = ended || spec.suspend == Some(true) || status.failed.unwrap_or(0) > 0;
    if quiet || job.metadata.deletion_timestamp.is_some() || status.active.unwrap_or(0) >= wanted {
        return None;
    }
    let owner = PodOwner { kind: OwnerKind::Job, namespace: job.namespace()?, name: job.name_any(), uid: job.uid()? };
    Some((owner, spec.template.metadata.as_ref().and_then(|m| m.annotations.clone()).unwrap_or_default()))
}

/// Whether the Pods of a template are sent to kimup, as far as its annotations and its Namespace tell.
fn is_sent(template: &Map, namespace: NamespaceSettings) -> bool {
    Levels(&[template]).any_enabled(annotations::has_stamp(template), namespace).unwrap_or(false)
}

/// What this process knows of stuck owners.
#[derive(Default)]
pub(super) struct Nudges {
    schedule: Mutex<Schedule>,
    jobs: Mutex<HashMap<(String, String), (PodOwner, Map)>>,
}

impl Nudges {
    /// Takes in a Job, or that it is gone.
    pub fn saw_job(&self, namespace: &str, name: &str, job: Option<&Job>) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        match job.and_then(of_job) {
            Some(stuck) => _ = jobs.insert((namespace.to_owned(), name.to_owned()), stuck),
            None => _ = jobs.remove(&(namespace.to_owned(), name.to_owned())),
        }
    }

    /// An Image of this namespace has its first tag, or the Namespace says something else than before.
    pub fn hurry(&self, namespace: &str) {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner).hurry(namespace, Instant::now());
    }

    fn pick(&self, stuck: &[Stuck]) -> Vec<Stuck> {
        self.schedule.lock().unwrap_or_else(PoisonError::into_inner).pick(stuck, Instant::now())
    }
}

/// Looks for stuck owners as long as this process leads.
pub(super) async fn run(sync: Arc<Sync>, shutdown: CancellationToken) {
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return,
            _ = sweep.tick() => {}
        }
        // Whoever leads anew begins anew: everybody is due once.
        let stuck = if sync.leadership.is_leader() { sync.stuck() } else { Vec::new() };
        for one in sync.nudges.pick(&stuck) {
            if shutdown.is_cancelled() {
                return;
            }
            sync.nudge(&one).await;
        }
        // After those: nobody waits for this.
        if sync.leadership.is_leader() {
            sync.tell_alone().await;
        }
    }
}

impl Sync {
    fn stuck(&self) -> Vec<Stuck> {
        let mut stuck: Vec<Stuck> = Vec::new();
        for workload in self.world.workloads_that(|w| w.denied.is_some() && !w.deleting) {
            let (key, settings) = (&workload.key, self.world.settings(&workload.key.namespace));
            // Where kimup is blamed by name nobody need be opted in any more.
            let concerned =
                |denied: &Denied| *denied != Denied::Perhaps || is_sent(&workload.template_annotations, settings);
            if let Some(denied) = workload.denied.filter(concerned) {
                let id = (key.namespace.clone(), key.kind.as_str(), key.name.clone());
                stuck.push(Stuck { id, uid: workload.uid.clone(), denied, what: What::Workload(workload) });
            }
        }
        let jobs = self.nudges.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        for (owner, template) in jobs.values() {
            if is_sent(template, self.world.settings(&owner.namespace)) {
                let id = (owner.namespace.clone(), owner.kind.as_str(), owner.name.clone());
                let what = What::Job(owner.clone());
                stuck.push(Stuck { id, uid: owner.uid.clone(), denied: Denied::Perhaps, what });
            }
        }
        stuck
    }

    async fn nudge(&self, stuck: &Stuck) {
        let owners = match &stuck.what {
            What::Job(owner) => vec![owner.clone()],
            What::Workload(workload) => match rollout::pod_owners(&self.client, workload).await {
                Ok(owners) => owners,
                Err(error) => {
                    tracing::warn!(workload = %workload.key, %error, "cannot find whose Pods were denied; trying again");
                    return;
                }
            },
        };
        for owner in owners {
            let (kind, namespace, name) = (owner.kind.as_str(), &owner.namespace, &owner.name);
            if !self.leadership.is_leader() {
                return;
            }
            match rollout::nudge(&self.client, &owner, &rfc3339(self.now())).await {
                Ok(()) => {
                    self.metrics.kubernetes_write(kind);
                    tracing::info!(namespace, kind, name, "Pods are missing: its controller is asked to try again");
                }
                Err(ApplyError::Conflict) => {} // it is gone, or another
                Err(error) => tracing::warn!(namespace, kind, name, %error, "cannot be nudged; trying again"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stuck(name: &str, denied: Denied) -> Stuck {
        let (namespace, uid) = ("shop".to_owned(), name.to_owned());
        let owner =
            PodOwner { kind: OwnerKind::Job, namespace: namespace.clone(), name: uid.clone(), uid: uid.clone() };
        Stuck { id: (namespace, "Job", name.to_owned()), uid, denied, what: What::Job(owner) }
    }

    fn names(picked: &[Stuck]) -> String {
        picked.iter().map(|s| s.id.2.as_str()).collect::<Vec<_>>().join(" ")
    }

    /// Sweeps every two seconds from `from` to `to`; who was nudged when.
    fn sweep(schedule: &mut Schedule, start: Instant, from: u64, to: u64, all: &[Stuck]) -> Vec<(u64, String)> {
        let times = (from..=to).step_by(2);
        let picks = times.map(|at| (at, names(&schedule.pick(all, start + Duration::from_secs(at)))));
        picks.filter(|(_, picked)| !picked.is_empty()).collect()
    }

    #[test]
    fn one_is_tried_after_another_until_one_gets_its_pods() {
        let (start, mut schedule) = (Instant::now(), Schedule::default());
        let all = ["a", "b", "c"].map(|name| stuck(name, Denied::Unreachable));
        let first = sweep(&mut schedule, start, 0, 8, &all);
        assert_eq!(first.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [4, 6, 8]);
        let each: HashSet<&String> = first.iter().map(|(_, who)| who).collect();
        assert_eq!(each.len(), 3, "{first:?}");
        // They are tried on and on, one at a time.
        let tries = sweep(&mut schedule, start, 10, 600, &all);
        assert!(tries.len() > 80 && tries.iter().all(|(_, who)| who.len() == 1), "{tries:?}");
        // One has its Pods: the others at once, and then not again soon.
        let now = tries.last().map(|(at, _)| at + 4).unwrap();
        let mut pick = |left: &[Stuck], later| names(&schedule.pick(left, start + Duration::from_secs(now + later)));
        assert_eq!(pick(&all[1..], 0).len(), 3);
        assert_eq!(pick(&all[1..], 2), "");
        assert_eq!(pick(&all[2..], 4), "", "no second sign");
        assert_eq!(pick(&[], 6), "");
        assert!(schedule.known.is_empty());
    }

    #[test]
    fn who_was_nudged_a_moment_before_the_sign_is_not_nudged_at_once_again() {
        let (start, mut schedule) = (Instant::now(), Schedule::default());
        let all = ["a", "b", "c"].map(|name| stuck(name, Denied::Unreachable));
        // Kimup is back before all of this, and the first one is slow to get its Pods.
        let picked = sweep(&mut schedule, start, 0, 6, &all);
        let (one, two) = (&picked[0].1, &picked[1].1);
        assert_eq!(picked.iter().map(|(at, _)| *at).collect::<Vec<_>>(), [4, 6]);
        let left = |gone: &[&String]| all.iter().filter(|s| !gone.contains(&&s.id.2)).cloned().collect::<Vec<_>>();
        let three = left(&[one, two])[0].id.2.clone();
        assert_eq!(sweep(&mut schedule, start, 8, 8, &left(&[one])), [(8, three)]);
        // If that was not it, it has its turn soon.
        assert_eq!(sweep(&mut schedule, start, 10, 10, &left(&[one])), [(10, two.clone())]);
    }

    #[test]
    fn what_may_have_another_reason_is_given_up() {
        let (start, mut schedule) = (Instant::now(), Schedule::default());
        let all = [stuck("a", Denied::Perhaps)];
        assert_eq!(sweep(&mut schedule, start, 0, 7200, &all).len(), TRIES as usize);
        schedule.hurry("other", start + Duration::from_secs(7201));
        assert_eq!(sweep(&mut schedule, start, 7202, 7210, &all).len(), 0);
        schedule.hurry("shop", start + Duration::from_secs(7211));
        assert_eq!(sweep(&mut schedule, start, 7212, 7214, &all).len(), 1);
        // Pods that are missing for a moment are none of our business.
        let mut schedule = Schedule::default();
        assert_eq!(names(&schedule.pick(&all, start)), "");
        assert_eq!(names(&schedule.pick(&[], start + SWEEP)), "");
        assert_eq!(names(&schedule.pick(&all, start + SWEEP * 2)), "");
    }

    #[test]
    fn a_job_lacks_pods() {
        #[track_caller]
        fn check(spec: &serde_json::Value, status: &serde_json::Value, expected: bool) {
            let mut object = json!({
                "metadata": {"name": "j", "namespace": "shop", "uid": "u"},
                "spec": {"completions": 3, "parallelism": 2, "template": {"spec": {"containers": []}}},
                "status": {},
            });
            json_patch::merge(&mut object, &json!({"spec": spec, "status": status}));
            assert_eq!(of_job(&serde_json::from_value(object).unwrap()).is_some(), expected);
        }
        check(&json!({}), &json!({}), true);
        check(&json!({}), &json!({"active": 1}), true);
        check(&json!({}), &json!({"active": 2}), false);
        check(&json!({}), &json!({"active": 1, "succeeded": 2}), false);
        check(&json!({}), &json!({"failed": 1}), false);
        check(&json!({"suspend": true}), &json!({}), false);
        check(&json!({}), &json!({"conditions": [{"type": "Failed", "status": "True"}]}), false);
    }
}
