//! When a rollout may start: gates, and the limits of design section 5.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::api::{Closed, Image};
use crate::rollout::{FIELD_MANAGER, Plan, Target, Workload};

use super::engine::{Key, Sync};
use super::gates;
use super::world::{Cached, ImageKey, same_group};

impl Sync {
    /// The plan without the Images that may start no rollout now: theirs must not hold up the others.
    pub(super) fn ungated(&self, workload: &Workload, plan: &Plan) -> Plan {
        let gated = plan.changes.iter().filter(|change| change.back.is_none());
        let mut images: BTreeSet<&str> = gated.map(|change| change.image.as_str()).collect();
        images.retain(|name| {
            let key = ImageKey { namespace: workload.key.namespace.clone(), name: (*name).to_owned() };
            let Some(Cached::Read(image)) = self.world.image(&key) else {
                return false;
            };
            let closed = self.closed(&image);
            if let Some(until) = closed.as_ref().and_then(|closed| closed.until) {
                self.queue_at(Key::Workload(workload.key.clone()), until); // nobody else tells that a window opens
            }
            closed.is_some()
        });
        plan.without(workload, &images)
    }

    /// The limits of design section 5. The caller holds `rolling`, so that two workloads cannot take one place.
    pub(super) fn limits_allow(&self, workload: &Workload, targets: &BTreeMap<String, Target>, plan: &Plan) -> bool {
        if plan.changes.iter().all(|change| change.back.is_some()) {
            return true; // a person's, or a rollback
        }
        let namespace = &workload.key.namespace;
        let moving: Vec<Arc<Workload>> = {
            let views = self.views();
            let in_flight = |w: &Arc<Workload>| {
                let ours = w.stamp_owners.values().any(|owners| owners.contains(FIELD_MANAGER));
                let ended = views.get(&w.key).is_some_and(|v| v.uid == w.uid && v.ended == w.generation);
                w.key != workload.key && ours && !w.complete && !ended
            };
            self.world.workloads(None).into_iter().filter(in_flight).collect()
        };
        let here = moving.iter().filter(|w| w.key.namespace == *namespace);
        if moving.len() >= self.options.max_rollouts || here.clone().count() >= self.options.max_rollouts_per_namespace
        {
            return false;
        }
        let used: Vec<Vec<Arc<Image>>> = here.map(|w| self.world.images_of(w).into_values().collect()).collect();
        let images = plan.changes.iter().filter_map(|change| targets.get(&change.container)).map(|t| &t.image);
        images.collect::<BTreeSet<_>>().into_iter().all(|name| {
            let key = ImageKey { namespace: namespace.clone(), name: name.clone() };
            let Some(Cached::Read(image)) = self.world.image(&key) else {
                return true;
            };
            let moving = used.iter().filter(|used| used.iter().any(|other| same_group(&image, other))).count();
            moving < self.world.max_concurrent(&image)
        })
    }

    /// Why no rollout may start in a namespace.
    pub(super) fn frozen(&self, namespace: &str) -> Option<Closed> {
        let mut namespaces = [namespace, &self.options.own_namespace].into_iter();
        namespaces.find(|namespace| self.world.settings(namespace).frozen).map(gates::frozen)
    }

    /// A place in the limits may be free, or a gate open.
    pub(super) fn free_waiting(&self) {
        for key in std::mem::take(&mut *self.waiting()) {
            self.queue.add_now(Key::Workload(key));
        }
    }
}
