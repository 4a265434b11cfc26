//! How far each workload is, as its last reconcile found it, and what that means for its Images.

use std::collections::BTreeMap;

use crate::api::{Held, Image, ImageStatus, Tagged};
use crate::policy::Repository;
use crate::rollout::{Hold, Plan, Stamps, Target, Workload, WorkloadKey};

use super::engine::{Key, Sync};
use super::hold::{Asked, on_record};
use super::status::Progress;
use super::target::wanted;
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
    generation: i64,
    /// By Image name.
    pub(super) uses: BTreeMap<String, Use>,
    /// The generation and tags for which the Pods were seen to run what is wanted without a stamp.
    pub(super) unstamped: Option<(i64, BTreeMap<String, String>)>,
    /// The newest generation whose rollout was seen to end: Pods that fail later are no rollout in flight.
    pub(super) ended: i64,
    /// What was said of annotations without effect.
    pub(super) unsupported: Vec<String>,
    /// What was seen of its stamps.
    pub(super) stamps: Stamps,
    /// What registries said of the tag of the annotation `hold`.
    pub(super) asked: Option<Asked>,
    /// The rollout whose Pods were said to come without their stamp over and over.
    pub(super) unrepaired: Option<String>,
}

impl View {
    /// The newest generation whose rollout has ended, now that `workload` is seen. `at_rest`: nothing is to be changed and
    /// its Images have settled. One that this process sees for the first time like that came to its end before: if its
    /// Pods fail since, it takes no place in the limits.
    fn ended(&self, workload: &Workload, at_rest: bool) -> i64 {
        let known = self.uid == workload.uid && !self.uses.is_empty();
        match (workload.complete, known) {
            (true, _) => workload.generation,
            (false, true) => self.ended,
            (false, false) if at_rest => workload.generation,
            (false, false) => 0,
        }
    }
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
        let rolling = !plan.changes.is_empty() && failure.is_none();
        let use_of = |target: &Target| {
            let image = &target.image;
            let of_image = |holds: &[Hold]| -> Vec<Held> {
                holds.iter().filter(|h| h.image == *image).map(|h| on_record(key, h, target.holding.after)).collect()
            };
            let (held, released) = (of_image(&plan.holds), of_image(&plan.released));
            let changes = plan.changes.iter().any(|change| change.image == *image);
            let containers = targets.values().filter(|t| t.image == *image).count();
            let state = match failure {
                // One that is sent to its tag takes part in nothing, but says if it cannot be.
                failure if held.len() == containers && !(changes && failure.is_some()) => State::Held,
                Some(cause) => State::Failed(cause.to_owned()),
                None if plan.blocked.is_some() => State::Undecided,
                None if rolling => State::Waiting,
                None if !workload.complete => State::Moving,
                None if held.is_empty() => State::Done,
                None => State::Held,
            };
            Use { wanted: Tagged::new(&target.tag, target.digest.as_deref()), state, held, released }
        };
        let uses: BTreeMap<_, _> = targets.values().map(|t| (t.image.clone(), use_of(t))).collect();
        let at_rest = plan.changes.is_empty() && plan.blocked.is_none() && self.all_settled(key, targets);
        let mut views = self.views();
        let view = views.entry(key.clone()).or_default();
        let changed = view.uses != uses || view.uid != workload.uid;
        let ended = view.ended(&workload, at_rest);
        let freed = ended != view.ended;
        view.uid.clone_from(&workload.uid);
        view.generation = workload.generation;
        view.uses.clone_from(&uses);
        view.ended = ended;
        drop(views);
        if changed {
            for name in uses.into_keys() {
                self.queue.add_now(Key::Image(ImageKey { namespace: key.namespace.clone(), name }));
            }
        }
        if freed {
            self.free_waiting();
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
        let view = self.views().remove(key);
        for name in view.into_iter().flat_map(|view| view.uses.into_keys()) {
            self.queue.add_now(Key::Image(ImageKey { namespace: key.namespace.clone(), name }));
        }
        self.free_waiting();
    }

    /// How far the workloads of an Image are.
    pub(super) fn progress(&self, key: &ImageKey, image: &Image, status: &ImageStatus) -> Progress {
        let mut progress = Progress::default();
        let Some(wanted) = wanted(image, status) else {
            return progress;
        };
        let Ok(repository) = Repository::parse(&image.spec.image) else {
            return Progress { excluded: true, ..progress };
        };
        if self.duplicate_of(image, &repository).is_some() {
            return Progress { excluded: true, ..progress };
        }
        let views = self.views();
        for User { workload, .. } in self.world.users_of(image) {
            progress.total += 1;
            let view = views.get(&workload.key).filter(|v| v.uid == workload.uid);
            let Some(seen) = view.and_then(|v| v.uses.get(&key.name)).filter(|seen| seen.wanted == wanted) else {
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
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    fn workload(available: i32) -> Workload {
        let object: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 4},
            "spec": {"replicas": 1, "selector": {}, "template": {"spec": {"containers": [{"name": "app", "image": "app:1"}]}}},
            "status": {"observedGeneration": 4, "replicas": 1, "updatedReplicas": 1, "availableReplicas": available},
        }))
        .unwrap();
        Workload::from_deployment(&object).unwrap()
    }

    #[test]
    fn a_rollout_ends_once() {
        #[track_caller]
        fn check(uid: &str, before: Option<i64>, available: i32, at_rest: bool, expected: i64) {
            let seen = Use { wanted: Tagged::new("1", None), state: State::Moving, held: Vec::new(), released: Vec::new() };
            let uses = before.map(|_| ("web".to_owned(), seen)).into_iter().collect();
            let view = View { uid: uid.to_owned(), uses, ended: before.unwrap_or_default(), ..View::default() };
            assert_eq!(view.ended(&workload(available), at_rest), expected);
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
