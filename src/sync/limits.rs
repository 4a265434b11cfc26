//! When a rollout may start: gates, the order in its group, rest between two, and the limits of design section 5.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use crate::api::{Closed, Image, Rejected, Strategy, Tagged};
use crate::rollout::{self, FIELD_MANAGER, Plan, Workload, WorkloadKey};

use super::engine::{Key, Sync};
use super::gates;
use super::target::wanted;
use super::view::{View, has_ended};
use super::world::{Cached, ImageKey, same_group, status_of};

/// What a workload waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// A place in the limits, to roll for these Images.
    Place(BTreeSet<String>),
    /// Such a place is free for it, and it has not been looked at since.
    Offered(BTreeSet<String>),
    /// A gate, or the first ones of its group.
    Turn,
}

/// A rollout in flight.
struct Moving {
    key: WorkloadKey,
    images: Vec<Arc<Image>>,
    /// When it counts as in flight no longer.
    due: Timestamp,
    overdue: bool,
    /// It runs a tag that was rejected.
    rejected: bool,
    /// The tags of its stamps.
    tags: BTreeSet<String>,
}

impl Sync {
    /// The part of a plan that may be written now; what waits is asked for again when its time has come.
    pub(super) fn startable(&self, workload: &Workload, plan: &Plan) -> Plan {
        let key = &workload.key;
        // Before anything is looked at: what comes free meanwhile must find who waits for it.
        self.waiting().insert(key.clone(), Waits::Turn);
        let plan = self.in_turn(workload, &self.ungated(workload, plan));
        if plan.changes.is_empty() {
            return plan;
        }
        // The same stamp once more is a repair of what has begun.
        let repairs = plan.stamps.iter().all(|(container, stamp)| {
            let before = workload.stamp(container);
            before.is_some_and(|before| before.to_string() == *stamp)
        });
        // A newer tag follows a rejected one at once.
        let rests = !repairs && !self.leaves_rejected(workload, &plan.changes);
        if rests && let Some(at) = self.rests(workload, &plan) {
            self.waiting().remove(key);
            self.queue_at(Key::Workload(key.clone()), at);
            return Plan::default();
        }
        let images: BTreeSet<String> = plan.changes.iter().map(|change| change.image.clone()).collect();
        self.waiting().insert(key.clone(), Waits::Place(images.clone()));
        let images = self.read(&key.namespace, &images);
        let moving = self.moving();
        if has_room(self, &moving, key, &images) {
            return plan;
        }
        self.await_deadline(&moving);
        Plan::default()
    }

    /// The plan without the Images that may start no rollout now: theirs must not hold up the others.
    fn ungated(&self, workload: &Workload, plan: &Plan) -> Plan {
        let mut images: BTreeSet<&str> = plan.changes.iter().map(|change| change.image.as_str()).collect();
        images.retain(|name| {
            let key = ImageKey { namespace: workload.key.namespace.clone(), name: (*name).to_owned() };
            let Some(Cached::Read(image)) = self.world.image(&key) else {
                return false;
            };
            let closed = self.closed(&image, &status_of(&image));
            if let Some(until) = closed.as_ref().and_then(|closed| closed.until) {
                self.queue_at(Key::Workload(workload.key.clone()), until); // nobody else tells that a window opens
            }
            closed.is_some()
        });
        plan.without(workload, &images)
    }

    /// When a workload may be stamped, if not now: not while its last rollout is under way, nor too soon after its
    /// beginning.
    fn rests(&self, workload: &Workload, plan: &Plan) -> Option<Timestamp> {
        let now = self.now();
        let under_way = is_stamped(workload) && is_in_flight(&self.views(), workload);
        // A change of it has it looked at again; its deadline may pass without one.
        let ends = under_way.then(|| self.due(workload)).filter(|due| *due > now);
        let images = plan.changes.iter().map(|change| change.image.clone()).collect();
        let least = self.read(&workload.key.namespace, &images).into_iter().map(|image| {
            let strategy = Strategy::parse(&image.spec).unwrap_or_default();
            strategy.min_interval.unwrap_or(self.options.rollout_min_interval)
        });
        let rested = rollout::rested(workload.stamped_at, least.max().unwrap_or_default(), now);
        ends.into_iter().chain(rested).max()
    }

    /// When the rollout of a workload counts as in flight no longer. One that takes longer holds up neither a newer tag of its
    /// workload nor other groups; in its own group it keeps its place: its tag is not proven.
    fn due(&self, workload: &Workload) -> Timestamp {
        let default = self.options.rollout_deadline;
        let deadline = |image: &Arc<Image>| Strategy::parse(&image.spec).ok()?.deadline;
        let images = self.world.images_of(workload);
        let longest = images.values().map(|image| deadline(image).unwrap_or(default)).max().unwrap_or(default);
        let begun = workload.stamped_at.unwrap_or(Timestamp::MIN);
        begun.checked_add(longest).unwrap_or(Timestamp::MAX)
    }

    /// The rollouts in flight.
    fn moving(&self) -> Vec<Moving> {
        let moving: Vec<Arc<Workload>> = {
            let views = self.views();
            self.world.workloads_that(|workload: &Workload| is_in_flight(&views, workload))
        };
        let now = self.now();
        let seen = moving.iter().map(|workload| {
            let images: Vec<Arc<Image>> = self.world.images_of(workload).into_values().collect();
            let stamped = workload.containers.iter().filter_map(|container| workload.stamped(&container.name));
            let tags: Vec<Tagged> = stamped.collect();
            let rejected = |image: &Arc<Image>| {
                let all = Rejected::tags(&self.world.rejections(image));
                tags.iter().any(|tagged| tagged.is_in(&all))
            };
            let due = self.due(workload);
            Moving {
                key: workload.key.clone(),
                rejected: images.iter().any(rejected),
                images,
                due,
                overdue: due <= now,
                tags: tags.into_iter().map(|tagged| tagged.tag).collect(),
            }
        });
        seen.collect()
    }

    /// Those of these Images of a namespace that are there and can be read.
    pub(super) fn read(&self, namespace: &str, names: &BTreeSet<String>) -> Vec<Arc<Image>> {
        let key = |name: &String| ImageKey { namespace: namespace.to_owned(), name: name.clone() };
        let image = |name| match self.world.image(&key(name)) {
            Some(Cached::Read(image)) => Some(image),
            _ => None,
        };
        names.iter().filter_map(image).collect()
    }

    /// Why no rollout may start in a namespace.
    pub(super) fn frozen(&self, namespace: &str) -> Option<Closed> {
        let mut namespaces = [namespace, &self.options.own_namespace].into_iter();
        namespaces.find(|namespace| self.world.settings(namespace).frozen).map(gates::frozen)
    }

    /// A gate may be open, or anything else may have changed: everybody who waits looks again.
    pub(super) fn free_waiting(&self) {
        for key in std::mem::take(&mut *self.waiting()).into_keys() {
            self.queue.add_now(Key::Workload(key));
        }
    }

    /// The first ones of a group may have come further: those of the namespace who wait for their turn look again.
    pub(super) fn free_turns(&self, namespace: &str) {
        let waiting = self.waiting();
        let turns = waiting.iter().filter(|(key, waits)| key.namespace == namespace && **waits == Waits::Turn);
        for (key, _) in turns {
            self.queue.add_now(Key::Workload(key.clone()));
        }
    }

    /// A place in the limits may be free: as many as fit look again, not all, or the work would grow with the square of
    /// those who wait. Who does not take its place passes it on ([`Sync::pass_on`]).
    pub(super) fn free_places(&self) {
        let waits = |waits: &Waits| matches!(waits, Waits::Place(_) | Waits::Offered(_));
        if !self.waiting().values().any(waits) {
            return;
        }
        let mut moving = self.moving();
        self.await_deadline(&moving);
        let mut waiting: Vec<_> = self.waiting().iter().map(|(key, waits)| (key.clone(), waits.clone())).collect();
        waiting.sort_by(|a, b| a.0.cmp(&b.0));
        let place = |key: &WorkloadKey, names: &BTreeSet<String>| {
            let images = self.read(&key.namespace, names);
            let (key, tags) = (key.clone(), BTreeSet::new());
            Moving { key, images, due: Timestamp::MAX, overdue: false, rejected: false, tags }
        };
        for (key, waits) in &waiting {
            if let Waits::Offered(names) = waits {
                moving.retain(|m| m.key != *key);
                moving.push(place(key, names));
            }
        }
        for (key, waits) in waiting {
            let Waits::Place(names) = waits else {
                continue;
            };
            // Whose own rollout is in flight may fit where nobody else does.
            let others = moving.iter().filter(|m| !m.overdue && m.key != key).count();
            if others >= self.options.max_rollouts {
                continue;
            }
            let place = place(&key, &names);
            if has_room(self, &moving, &key, &place.images) {
                moving.retain(|m| m.key != key);
                moving.push(place);
                self.waiting().insert(key.clone(), Waits::Offered(names));
                self.queue.add_now(Key::Workload(key));
            }
        }
    }

    /// That the deadline of a rollout has passed, and its place is free, nobody else tells. One look for all who wait: each
    /// of them would find as many others.
    fn await_deadline(&self, moving: &[Moving]) {
        if let Some(at) = moving.iter().filter(|m| !m.overdue).map(|m| m.due).min() {
            self.queue_at(Key::Places, at);
        }
    }

    /// The same for a rollout that began, or whose deadline changed, while others wait.
    pub(super) fn await_deadline_of(&self, workload: &Workload) {
        if is_in_flight(&self.views(), workload) {
            self.queue_at(Key::Places, self.due(workload));
        }
    }

    /// Takes the offer of a place, if there is one.
    pub(super) fn take_offer(&self, key: &WorkloadKey) -> bool {
        let mut waiting = self.waiting();
        let offered = matches!(waiting.get(key), Some(Waits::Offered(_)));
        if offered {
            waiting.remove(key);
        }
        offered
    }

    /// Gives a place that was offered to the next, unless it turned out to be taken.
    pub(super) fn pass_on(&self, key: &WorkloadKey) {
        let taken = matches!(self.waiting().get(key), Some(Waits::Place(_)));
        if !taken {
            self.free_places();
        }
    }
}

/// Whether there is room for a rollout of a workload, for these Images, beside those in flight that are not its own: that one
/// ends with it.
fn has_room(sync: &Sync, moving: &[Moving], key: &WorkloadKey, images: &[Arc<Image>]) -> bool {
    let others = moving.iter().filter(|m| m.key != *key);
    let counted = others.clone().filter(|m| !m.overdue);
    let here = counted.clone().filter(|m| m.key.namespace == key.namespace).count();
    if counted.count() >= sync.options.max_rollouts || here >= sync.options.max_rollouts_per_namespace {
        return false;
    }
    images.iter().all(|image| {
        let tag = wanted(image, &status_of(image)).map(|tagged| tagged.tag).unwrap_or_default();
        // One that ended badly with another tag waits for this one, and must not be waited for.
        let failed = |m: &Moving| (m.overdue || m.rejected) && !m.tags.contains(&tag);
        let of_group = |m: &&Moving| {
            m.key.namespace == key.namespace && !failed(m) && m.images.iter().any(|other| same_group(image, other))
        };
        others.clone().filter(of_group).count() < sync.world.max_concurrent(image)
    })
}

/// Whether a rollout of ours is in flight. Pods that fail after its end are none, nor is a change of replicas.
fn is_in_flight(views: &HashMap<WorkloadKey, View>, workload: &Workload) -> bool {
    let ours = workload.stamp_owners.values().any(|owners| owners.contains(FIELD_MANAGER));
    ours && !workload.complete && !has_ended(views, workload)
}

/// Whether a stamp decides what a workload's Pods run: none does once a person has changed the text.
fn is_stamped(workload: &Workload) -> bool {
    let decides = |c: &rollout::Container| workload.stamp(&c.name).is_some_and(|stamp| stamp.text == c.text);
    workload.containers.iter().any(decides)
}

#[cfg(test)]
mod tests;
