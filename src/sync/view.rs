//! How far each workload is, as its last reconcile found it, and what that means for its Images.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use tokio::time::Instant;

use crate::api::annotations::{CANARY, STAMP_PREFIX};
use crate::api::{Held, HeldBy, Image, ImageStatus, Rejected, Tagged};
use crate::policy::Repository;
use crate::rollout::{Facts, Hold, Plan, Stamps, Target, Workload, WorkloadKey};

use super::engine::{Key, Sync};
use super::hold::{self, Asked, on_record};
use super::status::Progress;
use super::target::wanted;
use super::way_back::Way;
use super::world::{Cached, ImageKey, User, status_of};

/// How far a workload is, seen from one of its Images.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Runs the tag, all Pods ready.
    Done,
    /// Its Pods are being replaced.
    Moving,
    /// Its Pods are to be replaced, and that has not begun.
    Waiting,
    /// The same, but it goes back or to where it is held: that waits for nothing.
    Returning,
    /// Not known yet.
    Undecided,
    /// Keeps another tag, and nothing else is left to do.
    Held,
    /// Cannot be rolled.
    Failed(String),
}

/// What the last reconcile of a workload found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct View {
    pub(super) uid: String,
    /// Whether somebody marked it as one that goes first, and how many Pods it should have: its Images order by that.
    place: (bool, i32),
    /// By Image name.
    pub(super) uses: BTreeMap<String, Use>,
    /// The generation and tags for which the Pods were seen to run what is wanted without a stamp.
    pub(super) unstamped: Option<(i64, BTreeMap<String, String>)>,
    /// The facts by which it is to be rolled, and the version they were read for: who waits long asks no more than once,
    /// and tags that come faster than facts do not put it off.
    pub(super) facts: Option<(String, Arc<Facts>)>,
    /// The version of it that could not be decided, and since when.
    pub(super) blocked: Option<(String, Instant)>,
    /// The [`template`] whose rollout was seen to end last: Pods that fail later are no rollout in flight.
    pub(super) ended: Option<String>,
    /// What was said of annotations without effect.
    pub(super) unsupported: Vec<String>,
    /// What was seen of its stamps.
    pub(super) stamps: Stamps,
    /// Where it can go back to, by Image; where a hold goes, by Image and container.
    pub(super) ways: BTreeMap<String, Way>,
    /// What registries said of the tag of the annotation `hold`.
    pub(super) asked: Option<Asked>,
    /// The rollout whose Pods were said to come without their stamp over and over.
    pub(super) unrepaired: Option<String>,
}

impl View {
    /// The template whose rollout has ended last, now that `workload` is seen. `at_rest`: nothing is to be changed and
    /// its Images have settled. One that this process sees for the first time like that came to its end before: if its
    /// Pods fail since, it takes no place in the limits.
    fn ended(&self, workload: &Workload, at_rest: bool) -> Option<String> {
        let known = self.uid == workload.uid && !self.uses.is_empty();
        match (workload.complete, known) {
            (true, _) => Some(template(workload)),
            (false, true) => self.ended.clone(),
            (false, false) if at_rest => Some(template(workload)),
            (false, false) => None,
        }
    }

    /// How far the workload is, seen from an Image that wants it to run `tag`; none if it was not looked at for that tag.
    pub(super) fn state(&self, image: &str, tag: &Tagged) -> Option<&State> {
        self.uses.get(image).filter(|seen| seen.wanted == *tag).map(|seen| &seen.state)
    }
}

/// Whether the rollout of a workload's template was seen to end.
pub(super) fn has_ended(views: &HashMap<WorkloadKey, View>, workload: &Workload) -> bool {
    let view = views.get(&workload.key).filter(|view| view.uid == workload.uid);
    view.is_some_and(|view| view.ended.as_ref() == Some(&template(workload)))
}

/// What kimup wrote on a workload's template, as text: another one is another rollout. Neither replicas nor what people
/// change beside it make one.
pub(super) fn template(workload: &Workload) -> String {
    let stamps = workload.template_annotations.iter().filter(|(key, _)| key.starts_with(STAMP_PREFIX));
    let stamps: Vec<String> = stamps.map(|(key, stamp)| format!("{key}={stamp}")).collect();
    format!("{} {}", workload.rollout.as_deref().unwrap_or_default(), stamps.join(","))
}

/// What one Image has of a workload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Use {
    /// What was wanted.
    wanted: Tagged,
    pub(super) state: State,
    /// Its containers that keep another tag.
    held: Vec<Held>,
    /// Those that somebody has released.
    released: Vec<Held>,
    /// The tags at which its containers were held on record when it was planned.
    on_record: BTreeMap<String, String>,
}

impl Use {
    /// Whether it was planned before this was on record. Others than these are recorded because a plan had them.
    fn is_older_than(&self, held: &Held) -> bool {
        held.by == HeldBy::RolloutFailed && held.holds() && self.on_record.get(&held.container) != Some(&held.tag)
    }
}

impl Sync {
    /// Remembers how far the workload is, and tells its Images if that changed.
    pub(super) fn note(
        &self,
        key: &WorkloadKey,
        targets: &BTreeMap<String, Target>,
        plan: &Plan,
        failure: Option<&str>,
    ) {
        let Some(workload) = self.world.workload(key) else {
            return;
        };
        let use_of = |target: &Target| {
            let image = &target.image;
            let of_image = |holds: &[Hold]| -> Vec<Held> {
                let rejected = |hold: &Hold| Tagged::parse(&hold.tag).is_some_and(|tag| tag.is_in(&target.rejected));
                let of_it = holds.iter().filter(|hold| hold.image == *image);
                let of_it = of_it.map(|hold| hold::went_on(hold, targets.get(&hold.container).map(|t| &t.holding)));
                of_it.map(|hold| on_record(key, &hold, target.holding.after, rejected(&hold))).collect()
            };
            let (held, released) = (of_image(&plan.holds), of_image(&plan.released));
            let changes = plan.changes.iter().any(|change| change.image == *image);
            let containers = targets.values().filter(|t| t.image == *image).count();
            let all_held = held.len() == containers;
            let state = match failure {
                // One that is sent to its tag takes part in nothing, but says if it cannot be.
                failure if all_held && !(changes && failure.is_some()) => State::Held,
                Some(cause) => State::Failed(cause.to_owned()),
                None => state(image, plan, workload.complete, held.is_empty()),
            };
            let on_record = targets.iter().filter(|(_, t)| t.image == *image);
            let on_record =
                on_record.filter_map(|(name, t)| Some((name.clone(), t.holding.record.as_ref()?.tag.clone())));
            let (wanted, on_record) = (Tagged::new(&target.tag, target.digest.as_deref()), on_record.collect());
            Use { wanted, state, held, released, on_record }
        };
        let uses: BTreeMap<_, _> = targets.values().map(|t| (t.image.clone(), use_of(t))).collect();
        let at_rest = plan.changes.is_empty() && plan.blocked.is_none() && self.all_settled(key, targets);
        let mut views = self.views();
        let view = views.entry(key.clone()).or_default();
        let place = (workload.annotations.contains_key(CANARY), workload.replicas);
        let changed = view.uses != uses || view.uid != workload.uid || view.place != place;
        let ended = view.ended(&workload, at_rest);
        let freed = ended != view.ended;
        view.uid.clone_from(&workload.uid);
        view.place = place;
        view.uses.clone_from(&uses);
        view.ended = ended;
        drop(views);
        if changed {
            self.tell_images(key, uses.into_keys());
        }
        if freed {
            self.free_places();
        }
    }

    /// Whether no Image of a workload has a rollout in flight.
    fn all_settled(&self, key: &WorkloadKey, targets: &BTreeMap<String, Target>) -> bool {
        targets.values().all(|target| {
            let image = ImageKey { namespace: key.namespace.clone(), name: target.image.clone() };
            matches!(self.world.image(&image), Some(Cached::Read(image)) if status_of(&image).rollout.is_none())
        })
    }

    pub(super) fn forget(&self, key: &WorkloadKey) {
        self.pending().remove(key);
        self.judgements().remove(key);
        let view = self.views().remove(key);
        if let Some(view) = view {
            self.tell_images(key, view.uses.into_keys());
            self.waiting().remove(key);
            self.free_places();
        }
    }

    /// Has the Images of a workload look at how far it is, and those that wait for it because it goes first.
    fn tell_images(&self, key: &WorkloadKey, own: impl Iterator<Item = String>) {
        let led = self.world.led_by(key);
        if !led.is_empty() {
            self.free_turns(&key.namespace);
        }
        for name in own.chain(led) {
            self.queue.add_now(Key::Image(ImageKey { namespace: key.namespace.clone(), name }));
        }
    }

    /// How far the workloads of an Image are.
    pub(super) fn progress(&self, key: &ImageKey, image: &Image, status: &ImageStatus) -> Progress {
        let mut progress = Progress::default();
        let Some(wanted) = wanted(image, status) else {
            return Progress { excluded: true, ..progress };
        };
        let Ok(repository) = Repository::parse(&image.spec.image) else {
            return Progress { excluded: true, ..progress };
        };
        if self.duplicate_of(image, &repository).is_some() {
            return Progress { excluded: true, ..progress };
        }
        let users = self.world.users_of(image);
        let is_there = |name: &String| users.iter().any(|user| user.workload.key.to_string() == *name);
        let held = status.held.iter().map(|hold| &hold.workload);
        let unknown: Vec<String> = held.filter(|name| !is_there(name)).cloned().collect();
        progress.unseen = {
            let served = self.served();
            unknown.into_iter().filter(|name| !served.tells(&key.namespace, name)).collect()
        };
        if !status.held.is_empty() {
            progress.rejected = Rejected::tags(&self.world.rejections(image));
        }
        progress.stopped = self.stopped(users.iter().map(|user| &*user.workload));
        let views = self.views();
        for User { workload, .. } in users {
            progress.total += 1;
            let view = views.get(&workload.key).filter(|v| v.uid == workload.uid);
            let name = workload.key.to_string();
            let fresh = |seen: &&Use| !status.held.iter().any(|held| held.workload == name && seen.is_older_than(held));
            let seen = view.and_then(|v| v.uses.get(&key.name)).filter(|seen| seen.wanted == wanted);
            let Some(seen) = seen.filter(fresh) else {
                progress.undecided.push(workload.key.to_string());
                self.queue.add_now(Key::Workload(workload.key.clone()));
                continue;
            };
            if !matches!(seen.state, State::Done | State::Moving | State::Held) {
                progress.undecided.push(workload.key.to_string());
            }
            progress.held.extend(seen.held.iter().cloned());
            progress.released.extend(seen.released.iter().cloned());
            progress.moving += u32::from(seen.state == State::Moving);
            progress.waiting += u32::from(seen.state == State::Waiting);
            progress.done += u32::from(seen.state == State::Done);
            progress.at_rest += u32::from(matches!(seen.state, State::Done | State::Held));
            if let State::Failed(why) = &seen.state {
                progress.failed = Some((workload.key.to_string(), why.clone()));
            }
        }
        drop(views);
        progress.lead = self.lead(image, status).map(|lead| (lead, self.soak(image)));
        progress
    }
}

/// How far a workload is whose plan could be written, seen from an Image of which not all containers are held.
fn state(image: &str, plan: &Plan, complete: bool, free: bool) -> State {
    let mut own = plan.changes.iter().filter(|change| change.image == image).peekable();
    let returns = own.peek().is_some() && own.all(|change| change.back.is_some());
    if plan.blocked.is_some() {
        State::Undecided
    } else if returns {
        State::Returning
    } else if !plan.changes.is_empty() {
        State::Waiting
    } else if !complete {
        State::Moving
    } else if free {
        State::Done
    } else {
        State::Held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::Change;
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    fn workload(stamp: i64, available: i32) -> Workload {
        let object: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 4},
            "spec": {"replicas": 1, "selector": {}, "template": {
                "metadata": {"annotations": {"stamp.kimup.cloudavenue.io/app": format!("app:1 app:{stamp}")}}, "spec": {"containers": [{"name": "app", "image": "app:1"}]}}},
            "status": {"observedGeneration": 4, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available},
        }))
        .unwrap();
        Workload::from_deployment(&object).unwrap()
    }

    /// Gates are said to hold up what waits, and nothing else.
    #[test]
    fn what_goes_back_does_not_wait() {
        /// Changes as Image and whether it goes back.
        #[track_caller]
        fn check(changes: &[(&str, bool)], complete: bool, free: bool, expected: &State) {
            let change = |(image, back): &(&str, bool)| {
                let back = back.then(|| "rejected".to_owned());
                Change { image: (*image).to_owned(), back, ..Change::default() }
            };
            let plan = Plan { changes: changes.iter().map(change).collect(), ..Plan::default() };
            assert_eq!(state("web", &plan, complete, free), *expected, "{changes:?}");
        }
        check(&[("web", false)], true, true, &State::Waiting);
        check(&[("web", true)], true, true, &State::Returning);
        check(&[("web", true), ("other", false)], true, true, &State::Returning);
        check(&[("web", true), ("web", false)], true, true, &State::Waiting);
        check(&[("other", true)], true, true, &State::Waiting);
        check(&[], false, true, &State::Moving);
        check(&[], true, true, &State::Done);
        check(&[], true, false, &State::Held);
        let blocked = Plan { blocked: Some(crate::rollout::Blocked::AwaitsPods), ..Plan::default() };
        assert_eq!(state("web", &blocked, true, true), State::Undecided);
    }

    #[test]
    fn a_rollout_ends_once() {
        #[track_caller]
        fn check(uid: &str, before: Option<i64>, available: i32, at_rest: bool, expected: i64) {
            let ended = |stamp: i64| (stamp != 0).then(|| template(&workload(stamp, 1)));
            let (wanted, state) = (Tagged::new("1", None), State::Moving);
            let seen = Use { wanted, state, held: Vec::new(), released: Vec::new(), on_record: BTreeMap::new() };
            let uses = before.map(|_| ("web".to_owned(), seen)).into_iter().collect();
            let view = View { uid: uid.to_owned(), uses, ended: ended(before.unwrap_or_default()), ..View::default() };
            assert_eq!(view.ended(&workload(4, available), at_rest), ended(expected));
        }
        // Complete: whatever was known.
        check("", None, 1, false, 4);
        check("u", Some(3), 1, false, 4);
        // Pods fail: under way, or after the end, as was seen.
        check("u", Some(3), 0, true, 3);
        check("u", Some(4), 0, true, 4);
        // Seen for the first time since the start: settled before, or under way.
        check("", None, 0, true, 4);
        check("", None, 0, false, 0);
        // Another workload of that name.
        check("other", Some(4), 0, false, 0);
    }
}
