//! Pods that came to be without kimup: found, said, and replaced by their workload's own strategy.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use tokio::time::Instant;

use crate::api::Image;
use crate::api::annotations::{NamespaceSettings, SYSTEM_NAMESPACES};
use crate::notify::Reason;
use crate::rollout::{self, Blocked, Plan, Repair, Target, Workload};

use super::engine::{Key, Sync};
use super::unmutated::{self, Unmutated};
use super::workload::reference;
use super::world::{Cached, ImageKey, status_of};

/// How long such a Pod is left alone: kimup may be away still, or back for a moment only.
const PATIENCE: Duration = Duration::from_secs(15);

impl Sync {
    /// Takes in a Pod; one that came to be without kimup has its workload looked at.
    pub(super) fn saw_unmutated(&self, namespace: &str, name: &str, pod: &Pod) {
        // A Namespace that is not known yet counts as opted in: what is stored in vain decides nothing.
        let unknown = NamespaceSettings { enabled: true, ..NamespaceSettings::default() };
        let settings = self.world.known_settings(namespace).unwrap_or(unknown);
        let Some(found) = unmutated::of_pod(pod, settings) else {
            self.world.remove_unmutated(namespace, name);
            return;
        };
        let (key, stamped) = (found.workload.clone(), !found.containers.is_empty());
        if self.world.put_unmutated(namespace, name, found)
            && let Some(key) = key
        {
            if !stamped && let Some(view) = self.views().get_mut(&key) {
                (view.unstamped, view.facts) = (None, None); // what its Pods run must be read again
            }
            self.queue.add_now(Key::Workload(key));
        }
    }

    /// The plan; where it has nothing to do, that of a repair. Pods that came to be without kimup a moment ago make
    /// either wait: those of a rollout would come the same way.
    pub(super) async fn with_repair(
        &self,
        workload: &Workload,
        targets: &BTreeMap<String, Target>,
        plan: Plan,
    ) -> Plan {
        if plan.blocked.is_some() || !plan.holds.is_empty() || workload.paused {
            return plan;
        }
        if !plan.changes.is_empty() {
            let newest = self.unmutated(workload, &plan).values().map(|pod| pod.seen).max();
            let waits = newest.is_some_and(|newest| Instant::now() < newest + PATIENCE);
            return if waits { Plan { blocked: Some(Blocked::AwaitsPods), ..Plan::default() } } else { plan };
        }
        let pods = self.stamped_in_vain(workload);
        let wrong: BTreeSet<String> = pods.values().flat_map(|pod| pod.containers.iter().cloned()).collect();
        let Some(newest) = pods.values().map(|pod| pod.seen).max() else {
            return plan;
        };
        match rollout::repair(workload, targets, &wrong) {
            Repair::Nothing => plan,
            Repair::Again => {
                self.tell_unrepaired(workload, &pods.into_keys().collect()).await;
                plan
            }
            Repair::Roll(_) if Instant::now() < newest + PATIENCE => {
                self.queue.add(Key::Workload(workload.key.clone()), newest + PATIENCE);
                plan
            }
            Repair::Roll(repair) => repair,
        }
    }

    /// The Pods of the template as it is that run the text instead of their stamp.
    fn stamped_in_vain(&self, workload: &Workload) -> BTreeMap<String, Unmutated> {
        let mut pods = self.world.unmutated_of(&workload.key);
        pods.retain(|_, pod| !pod.containers.is_empty() && pod.rollout == workload.rollout);
        pods
    }

    /// The Pods that came to be without kimup, of those that a rollout replaces: they run the text instead of their
    /// stamp, are of a revision of which others got an answer, or should have had one when they were created.
    fn unmutated(&self, workload: &Workload, plan: &Plan) -> BTreeMap<String, Unmutated> {
        let mut pods = self.world.unmutated_of(&workload.key);
        if pods.is_empty() {
            return pods;
        }
        let names: BTreeSet<&String> = plan.changes.iter().map(|change| &change.image).collect();
        let images = names.into_iter().filter_map(|name| {
            let key = ImageKey { namespace: workload.key.namespace.clone(), name: name.clone() };
            if let Some(Cached::Read(image)) = self.world.image(&key) { Some(image) } else { None }
        });
        let images: Vec<Arc<Image>> = images.collect();
        let opted_in = self.world.opted_in_since(&workload.key.namespace);
        pods.retain(|_, pod| {
            let missed = |image: &Arc<Image>| is_on_record(image, &pod.revision) || pod.was_missed_by(image, opted_in);
            if pod.containers.is_empty() { images.iter().any(missed) } else { pod.rollout == workload.rollout }
        });
        pods
    }

    /// Says which Pods a rollout replaces because they came to be without kimup.
    pub(super) async fn tell_unmutated(&self, workload: &Workload, plan: &Plan) {
        let pods = self.unmutated(workload, plan);
        if pods.is_empty() {
            return;
        }
        let names = unmutated::names(&pods.into_keys().collect());
        let note = format!("kimup was away when these Pods were created, which are replaced now: {names}");
        self.events.say(&reference(workload), Reason::PodsUnmutated, &note).await;
        for name in plan.changes.iter().map(|change| &change.image).collect::<BTreeSet<_>>() {
            let key = ImageKey { namespace: workload.key.namespace.clone(), name: name.clone() };
            if let Some(Cached::Read(image)) = self.world.image(&key) {
                let note = format!("{}: {note}", workload.key);
                self.events.say(&super::report::reference(&image), Reason::PodsUnmutated, &note).await;
            }
        }
    }

    /// Names the Pods that came to be without kimup and that nobody replaces, since nothing that kimup rolls made them: one
    /// Event on each Image that was missed. Each Pod is looked at once.
    pub(super) async fn tell_alone(&self) {
        for (namespace, pods) in self.world.take_alone(PATIENCE) {
            if namespace == self.options.own_namespace || SYSTEM_NAMESPACES.contains(&namespace.as_str()) {
                continue; // nobody is asked about these
            }
            let opted_in = self.world.opted_in_since(&namespace);
            for image in self.world.images_by_repository(&namespace).values() {
                let missed = pods.iter().filter(|(_, pod)| pod.was_missed_by(image, opted_in));
                let missed: BTreeSet<String> = missed.map(|(name, _)| name.clone()).collect();
                if !missed.is_empty() {
                    let note = format!(
                        "kimup was away when these Pods were created, and no rollout replaces them: {}; delete those that \
                         should run its tag, if something creates them anew",
                        unmutated::names(&missed)
                    );
                    self.events.say(&super::report::reference(image), Reason::PodsUnmutated, &note).await;
                }
            }
        }
    }

    /// Once per rollout.
    async fn tell_unrepaired(&self, workload: &Workload, pods: &BTreeSet<String>) {
        let told = std::mem::replace(
            &mut self.views().entry(workload.key.clone()).or_default().unrepaired,
            workload.rollout.clone(),
        );
        if told == workload.rollout {
            return;
        }
        let note = format!(
            "these Pods run their manifest's tag instead of their stamp, and were replaced once already: {}; if kimup was \
             away again: kubectl rollout restart {}; else another webhook sets their images back",
            unmutated::names(pods),
            workload.key
        );
        self.events.say(&reference(workload), Reason::PodsUnmutated, &note).await;
    }
}

/// Whether an Image has it on record what the Pods of a revision got.
fn is_on_record(image: &Image, (owner, hash): &(String, String)) -> bool {
    status_of(image).revisions.iter().any(|record| record.uid == *owner && record.hash == *hash)
}
