//! The Pods that came to be without kimup, as the watch delivered them.

use std::collections::BTreeMap;

use super::World;
use crate::rollout::WorkloadKey;
use crate::sync::unmutated::Unmutated;

impl World {
    /// Takes in a Pod that came to be without kimup; returns whether it is new.
    pub fn put_unmutated(&self, namespace: &str, name: &str, pod: Unmutated) -> bool {
        let mut namespaces = self.lock();
        let known = &mut namespaces.entry(namespace.to_owned()).or_default().unmutated;
        if known.get(name).is_some_and(|known| known.uid == pod.uid && known.containers == pod.containers) {
            return false;
        }
        known.insert(name.to_owned(), pod);
        true
    }

    /// Forgets a Pod: it is gone, or was never one of these.
    pub fn remove_unmutated(&self, namespace: &str, name: &str) {
        self.edit(namespace, |known| _ = known.unmutated.remove(name));
    }

    /// Those of a workload, by name.
    pub fn unmutated_of(&self, workload: &WorkloadKey) -> BTreeMap<String, Unmutated> {
        let namespaces = self.lock();
        let all = namespaces.get(&workload.namespace).into_iter().flat_map(|known| &known.unmutated);
        let own = all.filter(|(_, pod)| pod.workload == *workload);
        own.map(|(name, pod)| (name.clone(), pod.clone())).collect()
    }
}
