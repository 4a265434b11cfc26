//! Reconciles one workload for all its Images at once: plan, keep to the limits, stamp, watch it settle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::{self, Closed, Held, Image, ImageStatus, Order, Tagged, annotations};
use crate::notify::{Audit, Reason};
use crate::policy::Repository;
use crate::rollout::{self, ApplyError, Blocked, FIELD_MANAGER, Hold, Plan, Target, Workload, WorkloadKey};
use crate::telemetry::RolloutOutcome;

use super::engine::{Key, Sync};
use super::gates;
use super::managed;
use super::status::{self, Progress};
use super::world::{Cached, ImageKey, User, same_group, status_of};

/// After one Image of a workload chose a tag, how long tags of its other Images may still arrive to share the rollout.
const GATHER: Duration = Duration::from_secs(1);
/// How long a rollout waits for the workload's other Images to be synced: an unreachable registry must not hold it up.
const GATHER_MAX: Duration = Duration::from_secs(10);
/// When to look again at a workload whose Pods are still being created.
const PODS_PAUSE: Duration = Duration::from_secs(5);
/// Pause after a conflict.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a refused or unanswered write.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);

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
    uid: String,
    generation: i64,
    /// By Image name.
    uses: BTreeMap<String, Use>,
    /// The generation and tags for which the Pods were seen to run what is wanted without a stamp.
    pub(super) unstamped: Option<(i64, BTreeMap<String, String>)>,
    /// The newest generation whose rollout was seen to end: Pods that fail later are no rollout in flight.
    ended: i64,
    /// What was said of annotations without effect.
    unsupported: Vec<String>,
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
struct Use {
    /// What was wanted.
    wanted: Tagged,
    state: State,
    /// Its containers that keep another tag.
    held: Vec<Held>,
}

/// What an Image wants its workloads to run.
fn wanted(image: &Image, status: &ImageStatus) -> Option<Tagged> {
    status::current(status).map(|current| status::pinned(api::pins_digest(&image.spec), &current))
}

impl Sync {
    /// Handles one workload. Failures are shown on its Images and tried again.
    pub(super) async fn reconcile_workload(&self, key: &WorkloadKey) {
        if !self.leadership.is_leader() {
            return;
        }
        let workload = self.world.workload(key);
        let targets = workload.as_ref().map(|w| self.targets(w)).unwrap_or_default();
        let (Some(workload), false) = (workload, targets.is_empty()) else {
            self.forget(key);
            return;
        };
        self.name_unsupported(&workload).await;
        let plan = match self.plan(&workload, &targets).await {
            Ok(plan) => plan,
            Err(error) => {
                tracing::warn!(workload = %key, namespace = key.namespace, %error, "cannot plan the workload; trying again");
                self.queue.add(Key::Workload(key.clone()), Instant::now() + FAILURE_PAUSE);
                return;
            }
        };
        let plan = self.with_repair(&workload, &targets, plan).await;
        let mut failure = None;
        if plan.blocked.is_some() {
            self.queue.add(Key::Workload(key.clone()), Instant::now() + PODS_PAUSE);
        } else if plan.changes.is_empty() {
            self.pending().remove(key);
        } else if self.gathered(&workload, &targets) {
            if tags(&self.targets(&workload)) == tags(&targets) {
                failure = self.roll(&workload, &targets, &plan).await;
            } else {
                // The tag that was waited for has come since this plan was made.
                self.queue.add_now(Key::Workload(key.clone()));
            }
        }
        self.note(key, &targets, &plan, failure.as_deref());
    }

    /// Says, once, which annotations have no effect: a person who set one relies on it.
    async fn name_unsupported(&self, workload: &Workload) {
        let unsupported = annotations::unsupported_on_workload(&workload.annotations);
        let told = std::mem::replace(
            &mut self.views().entry(workload.key.clone()).or_default().unsupported,
            unsupported.clone(),
        );
        if !unsupported.is_empty() && told != unsupported {
            self.events.say(&reference(workload), Reason::PolicyInvalid, &unsupported.join("; ")).await;
        }
    }

    /// What the Images of the namespace want of each container.
    fn targets(&self, workload: &Workload) -> BTreeMap<String, Target> {
        let images = self.world.images_of(workload).into_iter();
        images.filter_map(|(name, image)| target(&image, workload, &name).map(|target| (name, target))).collect()
    }

    async fn plan(
        &self,
        workload: &Arc<Workload>,
        targets: &BTreeMap<String, Target>,
    ) -> Result<Plan, rollout::FactsError> {
        let plan = rollout::plan(workload, targets, None);
        if plan.blocked != Some(Blocked::NeedsFacts) {
            return Ok(plan);
        }
        let wanted = (workload.generation, tags(targets));
        let known = self
            .views()
            .get(&workload.key)
            .is_some_and(|view| view.uid == workload.uid && view.unstamped.as_ref() == Some(&wanted));
        if known {
            return Ok(Plan { blocked: None, ..plan });
        }
        let facts = rollout::observe(&self.client, workload).await?;
        let plan = rollout::plan(workload, targets, Some(&facts));
        if plan.blocked.is_none() && plan.changes.is_empty() && plan.holds.is_empty() {
            let mut views = self.views();
            let view = views.entry(workload.key.clone()).or_default();
            view.uid.clone_from(&workload.uid);
            view.unstamped = Some(wanted);
        }
        Ok(plan)
    }

    /// Whether every Image of the workload has been synced since its change was first seen: tags that move at once share
    /// one rollout.
    fn gathered(&self, workload: &Workload, targets: &BTreeMap<String, Target>) -> bool {
        let images: BTreeSet<&str> = targets.values().map(|t| t.image.as_str()).collect();
        if images.len() < 2 {
            return true;
        }
        let now = Instant::now();
        let since = *self.pending().entry(workload.key.clone()).or_insert(now);
        if now >= since + GATHER_MAX {
            return true;
        }
        if now < since + GATHER {
            self.queue.add(Key::Workload(workload.key.clone()), since + GATHER);
            return false;
        }
        let mut all = true;
        for name in images {
            let key = ImageKey { namespace: workload.key.namespace.clone(), name: name.to_owned() };
            let mut memos = self.memos();
            let Some(memo) = memos.get_mut(&key) else {
                continue;
            };
            if memo.synced.is_none_or(|began| began < since + GATHER) {
                all = false;
                memo.forced = true;
                drop(memos);
                self.queue.add_now(Key::Image(key));
            }
        }
        if !all {
            self.queue.add(Key::Workload(workload.key.clone()), now + CONFLICT_PAUSE);
        }
        all
    }

    /// Stamps a workload, if the limits allow. Returns why it could not be written.
    async fn roll(&self, workload: &Workload, targets: &BTreeMap<String, Target>, plan: &Plan) -> Option<String> {
        let key = &workload.key;
        let rolling = self.rolling.lock().await;
        // Before the limits are looked at: a place that comes free meanwhile must find who waits for it.
        self.waiting().insert(key.clone());
        let plan = &self.ungated(workload, plan);
        if plan.changes.is_empty() || !self.limits_allow(workload, targets, plan) {
            return None;
        }
        self.waiting().remove(key);
        if !self.leadership.is_leader() {
            return None;
        }
        let applied = rollout::apply(&self.client, workload, plan).await;
        if let Ok(Some(stamped)) = &applied {
            self.world.put_workload(stamped.clone());
        }
        drop(rolling);
        match applied {
            Ok(_) => {
                self.metrics.kubernetes_write(key.kind.as_str());
                self.metrics.rollout(RolloutOutcome::Started);
                self.pending().remove(key);
                self.announce(workload, plan).await;
                self.queue.add_now(Key::Workload(key.clone()));
                None
            }
            Err(ApplyError::Conflict) => {
                self.queue.add(Key::Workload(key.clone()), Instant::now() + CONFLICT_PAUSE);
                None
            }
            Err(ApplyError::Unknown(cause)) => {
                tracing::warn!(workload = %key, namespace = key.namespace, cause, "the stamp may not have been written; looking again");
                self.queue.add(Key::Workload(key.clone()), Instant::now() + Duration::from_secs(1));
                None
            }
            Err(ApplyError::Refused(cause)) => {
                self.queue.add(Key::Workload(key.clone()), Instant::now() + FAILURE_PAUSE);
                let known = self
                    .views()
                    .get(key)
                    .is_some_and(|view| view.uses.values().any(|u| u.state == State::Failed(cause.clone())));
                if !known {
                    self.events
                        .say(&reference(workload), Reason::RolloutFailed, &format!("cannot be stamped: {cause}"))
                        .await;
                }
                Some(cause)
            }
        }
    }

    async fn announce(&self, workload: &Workload, plan: &Plan) {
        let key = &workload.key;
        let cause = plan.change_cause();
        let cause = cause.trim_start_matches("kimup: ");
        let id = plan.changes.first().map(|c| c.rollout.as_str()).unwrap_or_default();
        self.tell_unmutated(workload, plan).await;
        self.events.say(&reference(workload), Reason::RolloutStarted, &format!("rollout {id}: {cause}")).await;
        for change in &plan.changes {
            let image = ImageKey { namespace: key.namespace.clone(), name: change.image.clone() };
            let name = format!("Image {image}");
            let (from, to, rule, rollout) = (&change.from, &change.to, &change.rule, &change.rollout);
            let digest = change.digest.as_deref().unwrap_or_default();
            Audit { image: &name, workload: &key.to_string(), what: "roll", from, to, digest, rule, rollout }.log();
            if let Some(Cached::Read(image)) = self.world.image(&image) {
                let note = format!("{key}: container {}: {from} -> {to} (rollout {rollout})", change.container);
                self.events.say(&super::report::reference(&image), Reason::RolloutStarted, &note).await;
            }
        }
    }

    /// The plan without the Images that may start no rollout now: theirs must not hold up the others.
    fn ungated(&self, workload: &Workload, plan: &Plan) -> Plan {
        let mut images: BTreeSet<&str> = plan.changes.iter().map(|change| change.image.as_str()).collect();
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
    fn limits_allow(&self, workload: &Workload, targets: &BTreeMap<String, Target>, plan: &Plan) -> bool {
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

    /// Remembers how far the workload is, and tells its Images if that changed.
    fn note(&self, key: &WorkloadKey, targets: &BTreeMap<String, Target>, plan: &Plan, failure: Option<&str>) {
        let Some(workload) = self.world.workload(key) else {
            return;
        };
        let rolling = !plan.changes.is_empty() && failure.is_none();
        let use_of = |target: &Target| {
            let image = &target.image;
            let held: Vec<Held> = plan.holds.iter().filter(|h| h.image == *image).map(|h| held(key, h)).collect();
            let containers = targets.values().filter(|t| t.image == *image).count();
            let state = match failure {
                _ if held.len() == containers => State::Held,
                Some(cause) => State::Failed(cause.to_owned()),
                None if plan.blocked.is_some() => State::Undecided,
                None if rolling => State::Waiting,
                None if !workload.complete => State::Moving,
                None if held.is_empty() => State::Done,
                None => State::Held,
            };
            Use { wanted: Tagged::new(&target.tag, target.digest.as_deref()), state, held }
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

    fn forget(&self, key: &WorkloadKey) {
        self.pending().remove(key);
        let view = self.views().remove(key);
        for name in view.into_iter().flat_map(|view| view.uses.into_keys()) {
            self.queue.add_now(Key::Image(ImageKey { namespace: key.namespace.clone(), name }));
        }
        self.free_waiting();
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

fn target(image: &Image, workload: &Workload, container: &str) -> Option<Target> {
    let status = status_of(image);
    let wanted = wanted(image, &status)?;
    let rollout = status.rollout.as_ref();
    let rule = rollout
        .map(|r| r.rule.clone())
        .or_else(|| status.history.iter().find(|entry| entry.tag == wanted.tag).map(|entry| entry.rule.clone()));
    let name = workload.key.to_string();
    let held = status.held.iter().find(|h| h.workload == name && h.container == container);
    Some(Target {
        image: image.name_any(),
        settled: status.tag.as_deref() == Some(&wanted.tag)
            && (wanted.digest.is_none() || status.digest == wanted.digest),
        rule: rule.filter(|rule| !rule.is_empty()).unwrap_or_else(|| "none".to_owned()),
        rollout: rollout::id(image.metadata.uid.as_deref().unwrap_or_default(), &wanted.to_string()),
        order: Order::of(&image.spec).following(&status).of_one_text(managed::is_managed(&image.metadata)),
        left: held.map(|h| h.left.clone()).filter(|left| !left.is_empty()),
        tag: wanted.tag,
        digest: wanted.digest,
    })
}

fn tags(targets: &BTreeMap<String, Target>) -> BTreeMap<String, String> {
    let text = |target: &Target| Tagged::new(&target.tag, target.digest.as_deref()).to_string();
    targets.iter().map(|(container, target)| (container.clone(), text(target))).collect()
}

fn held(key: &WorkloadKey, hold: &Hold) -> api::Held {
    let Hold { container, tag, left, by_manifest, .. } = hold;
    let what =
        if *by_manifest { "its manifest names an older tag than it ran" } else { "an older revision was put back" };
    api::Held {
        workload: key.to_string(),
        container: container.clone(),
        tag: tag.clone(),
        left: left.clone(),
        since: String::new(),
        why: format!("{what}; a newer tag than {left} ends this"),
    }
}

/// The reference that Events on a workload carry.
pub(super) fn reference(workload: &Workload) -> ObjectReference {
    ObjectReference {
        api_version: Some("apps/v1".to_owned()),
        kind: Some(workload.key.kind.as_str().to_owned()),
        namespace: Some(workload.key.namespace.clone()),
        name: Some(workload.key.name.clone()),
        uid: Some(workload.uid.clone()),
        resource_version: Some(workload.resource_version.clone()),
        field_path: None,
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
            let seen = Use { wanted: Tagged::new("1", None), state: State::Moving, held: Vec::new() };
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
