//! The Pods that came to be without kimup, as the watch delivered them.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use super::World;
use crate::rollout::WorkloadKey;
use crate::sync::unmutated::Unmutated;

impl World {
    /// Takes in a Pod that came to be without kimup; returns whether it is new.
    pub fn put_unmutated(&self, namespace: &str, name: &str, mut pod: Unmutated) -> bool {
        let mut namespaces = self.lock();
        let known = &mut namespaces.entry(namespace.to_owned()).or_default().unmutated;
        if let Some(before) = known.get(name).filter(|before| before.uid == pod.uid) {
            if before.containers == pod.containers && before.unspoken == pod.unspoken {
                return false;
            }
            (pod.seen, pod.told) = (before.seen, before.told);
        }
        known.insert(name.to_owned(), pod);
        true
    }

    /// Forgets a Pod: it is gone, or was never one of these.
    pub fn remove_unmutated(&self, namespace: &str, name: &str) {
        self.edit(namespace, |known| _ = known.unmutated.remove(name));
    }

    /// Takes in since when a Namespace has said what it says about `enabled`.
    pub fn put_opted_in(&self, namespace: &str, since: Option<Timestamp>) {
        self.lock().entry(namespace.to_owned()).or_default().opted_in = since;
    }

    /// Since when a Namespace is opted in, if it is and that is known.
    pub fn opted_in_since(&self, namespace: &str) -> Option<Timestamp> {
        let namespaces = self.lock();
        let known = namespaces.get(namespace)?;
        known.opted_in.filter(|_| known.settings.is_some_and(|settings| settings.enabled))
    }

    /// Those that nothing made that kimup rolls, by namespace, with their names: each once, when it has been known for so
    /// long.
    pub fn take_alone(&self, known_for: Duration) -> Vec<(String, Vec<(String, Unmutated)>)> {
        let mut taken = Vec::new();
        for (name, namespace) in self.lock().iter_mut() {
            let alone = namespace.unmutated.iter_mut().filter(|(_, pod)| pod.workload.is_none() && !pod.told);
            let due = alone.filter(|(_, pod)| pod.seen.elapsed() >= known_for);
            let due = due.map(|(name, pod)| {
                pod.told = true;
                (name.clone(), pod.clone())
            });
            let due: Vec<_> = due.collect();
            if !due.is_empty() {
                taken.push((name.clone(), due));
            }
        }
        taken
    }

    /// Those of a workload, by name.
    pub fn unmutated_of(&self, workload: &WorkloadKey) -> BTreeMap<String, Unmutated> {
        let namespaces = self.lock();
        let all = namespaces.get(&workload.namespace).into_iter().flat_map(|known| &known.unmutated);
        let own = all.filter(|(_, pod)| pod.workload.as_ref() == Some(workload));
        own.map(|(name, pod)| (name.clone(), pod.clone())).collect()
    }
}
