//! Reconciles one workload for all its Images at once: plan, keep to the limits, stamp, watch it settle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::time::Instant;

use crate::api::{Image, Tagged, annotations};
use crate::notify::{Audit, Reason, decided_by};
use crate::rollout::{self, ApplyError, Blocked, Change, Plan, Target, Workload, WorkloadKey};
use crate::telemetry::RolloutOutcome;

use super::engine::{Key, Sync};
use super::hold;
use super::target::target;
use super::view::State;
use super::way_back::Back;
use super::world::{Cached, ImageKey, User, status_of};

/// After one Image of a workload chose a tag, how long tags of its other Images may still arrive to share the rollout.
const GATHER: Duration = Duration::from_secs(1);
/// How long a rollout waits for the workload's other Images to be synced: an unreachable registry must not hold it up.
const GATHER_MAX: Duration = Duration::from_secs(10);
/// When to look again at a workload whose Pods are still being created. A change of it, and what its Images want, has it
/// looked at anyway.
const PODS_PAUSE: Duration = Duration::from_secs(5);
/// Longest such pause: a quota may keep its Pods from coming for days.
const PODS_PAUSE_MAX: Duration = Duration::from_mins(5);
/// Pause after a conflict.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a refused or unanswered write.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);

impl Sync {
    /// Handles one workload. Failures are shown on its Images and tried again.
    pub(super) async fn reconcile_workload(&self, key: &WorkloadKey) {
        if !self.leadership.is_leader() {
            return;
        }
        let offered = self.take_offer(key);
        self.look_at_workload(key).await;
        if offered {
            self.pass_on(key);
        }
    }

    async fn look_at_workload(&self, key: &WorkloadKey) {
        let workload = self.world.workload(key);
        if let Some((workload, why)) = workload.as_ref().and_then(|w| Some((w, w.unrollable?))) {
            return self.leave(workload, why).await;
        }
        let targets = workload.as_ref().map(|w| self.targets(w)).unwrap_or_default();
        let (Some(workload), false) = (workload, targets.is_empty()) else {
            self.forget(key);
            return;
        };
        let mut targets = targets;
        self.stay(&workload, &mut targets).await;
        self.hold_further(&workload, &mut targets).await;
        self.name_unsupported(&workload, &targets).await;
        let plan = match self.plan_without_fights(&workload, &mut targets).await {
            Ok(plan) => plan,
            Err(error) => {
                tracing::warn!(workload = %key, namespace = key.namespace, %error, "cannot plan the workload; trying again");
                self.queue.add(Key::Workload(key.clone()), Instant::now() + FAILURE_PAUSE);
                return;
            }
        };
        let plan = self.with_repair(&workload, &targets, plan).await;
        let failure = self.act(&workload, &targets, &plan).await;
        if !plan.goes_back() {
            self.watch_rollout(&workload, &targets).await;
            self.unstick(&workload, &targets).await;
        }
        self.note(key, &targets, &plan, failure.as_deref());
        self.await_deadline_of(&workload);
        self.finish_resume(&workload, &targets, &plan).await;
    }

    /// Does what is planned, as far as that may be done now. Returns why it could not be written.
    async fn act(&self, workload: &Arc<Workload>, targets: &BTreeMap<String, Target>, plan: &Plan) -> Option<String> {
        let key = &workload.key;
        if !plan.adopts.is_empty() {
            return self.adopt(workload, plan).await;
        }
        let waited = self.waited(workload, plan.blocked);
        if let Some(waited) = waited {
            self.queue.add(Key::Workload(key.clone()), Instant::now() + pods_pause(waited));
            return None;
        }
        if plan.changes.is_empty() {
            self.pending().remove(key);
            return None;
        }
        let back = self.way_back(workload, targets, plan).await;
        if !(plan.goes_back() || back.plan.is_some() || self.gathered(workload, targets)) {
            return None;
        }
        if tags(&self.targets(workload)) != tags(targets) {
            // The tag that was waited for has come since this plan was made.
            self.queue.add_now(Key::Workload(key.clone()));
            return None;
        }
        self.roll(workload, plan, back).await
    }

    /// How long a workload has been like this while nothing could be decided; none if it is decided. A registry is asked
    /// again as soon as ever.
    fn waited(&self, workload: &Workload, blocked: Option<Blocked>) -> Option<Duration> {
        let (now, mut views) = (Instant::now(), self.views());
        let view = views.entry(workload.key.clone()).or_default();
        let before = view.blocked.take().filter(|(version, _)| *version == workload.resource_version);
        let blocked = blocked?;
        let (version, since) = before
            .filter(|_| blocked != Blocked::AwaitsRegistry)
            .unwrap_or_else(|| (workload.resource_version.clone(), now));
        view.blocked = Some((version, since));
        Some(now.duration_since(since))
    }

    /// Leaves a workload alone that cannot be rolled; says, once, why, if an Image covers it.
    async fn leave(&self, workload: &Workload, why: &str) {
        let key = &workload.key;
        let covered = !self.world.images_covering(workload).is_empty();
        let told = self.views().get(key).is_some_and(|view| view.uid == workload.uid && view.unsupported == [why]);
        if covered && told {
            return;
        }
        self.forget(key);
        if covered {
            {
                let mut views = self.views();
                let view = views.entry(key.clone()).or_default();
                view.uid.clone_from(&workload.uid);
                view.unsupported = vec![why.to_owned()];
            }
            self.events.say(&reference(workload), Reason::RolloutFailed, &format!("cannot be rolled: {why}")).await;
        }
    }

    /// The workloads that an Image covers and that cannot be rolled, and why.
    pub(super) fn unrollable(&self, image: &Image) -> Vec<String> {
        let covered = self.world.covered_by(image);
        let why = |user: &User| Some(format!("{} cannot be rolled: {}", user.workload.key, user.workload.unrollable?));
        covered.iter().filter_map(why).collect()
    }

    /// Says, once, which annotations have no effect: a person who set one relies on it.
    async fn name_unsupported(&self, workload: &Workload, targets: &BTreeMap<String, Target>) {
        let mut unsupported = annotations::unsupported_on_workload(&workload.annotations);
        unsupported.extend(hold::unknown(targets));
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
        let target_of = |(name, image): (String, Arc<Image>)| {
            Some((name.clone(), target(&image, workload, &name, &self.world.rejections(&image))?))
        };
        images.filter_map(target_of).collect()
    }

    pub(super) async fn plan(
        &self,
        workload: &Arc<Workload>,
        targets: &BTreeMap<String, Target>,
    ) -> Result<Plan, rollout::FactsError> {
        let plan = rollout::plan(workload, targets, None);
        if plan.blocked != Some(Blocked::NeedsFacts) {
            return Ok(plan);
        }
        let wanted = (workload.generation, with_holds(targets));
        let known = {
            let views = self.views();
            let view = views.get(&workload.key).filter(|view| view.uid == workload.uid);
            if view.is_some_and(|view| view.unstamped.as_ref() == Some(&wanted)) {
                return Ok(Plan { blocked: None, ..plan });
            }
            let facts = view.and_then(|view| view.facts.clone());
            facts.filter(|(version, _)| *version == workload.resource_version)
        };
        if let Some((_, facts)) = known {
            let plan = rollout::plan(workload, targets, Some(&facts));
            if plan.blocked.is_none() && plan.holds.is_empty() && !plan.changes.is_empty() {
                return Ok(plan);
            }
        }
        let facts = Arc::new(rollout::observe(&self.client, workload).await?);
        let plan = rollout::plan(workload, targets, Some(&facts));
        let mut views = self.views();
        let view = views.entry(workload.key.clone()).or_default();
        view.facts = None;
        if plan.blocked.is_none() && plan.holds.is_empty() {
            view.uid.clone_from(&workload.uid);
            if plan.changes.is_empty() {
                view.unstamped = Some(wanted);
            } else {
                view.facts = Some((workload.resource_version.clone(), facts));
            }
        }
        Ok(plan)
    }

    /// Whether every Image of the workload has been synced since its change was first seen: tags that move at once share
    /// one rollout. Likewise those of its groups that do not know the tag yet: who goes first is chosen among all.
    fn gathered(&self, workload: &Workload, targets: &BTreeMap<String, Target>) -> bool {
        let own: BTreeSet<String> = targets.values().map(|t| t.image.clone()).collect();
        let mut images = self.behind(&workload.key, &own);
        images.extend(own.iter().cloned());
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
            let of_group = !own.contains(&name);
            let key = ImageKey { namespace: workload.key.namespace.clone(), name };
            let mut memos = self.memos();
            let Some(memo) = memos.get_mut(&key) else {
                continue;
            };
            if memo.synced.is_none_or(|began| began < since + GATHER) {
                all = false;
                if of_group {
                    memo.next = Some(self.now()); // the list that has the tag will do
                } else {
                    memo.forced = true;
                }
                drop(memos);
                self.queue.add_now(Key::Image(key));
            }
        }
        if !all {
            self.queue.add(Key::Workload(workload.key.clone()), now + CONFLICT_PAUSE);
        }
        all
    }

    /// Stamps a workload, if the limits allow. `back` is what is done if a rejected tag would have to wait for that. Returns
    /// why it could not be written, or stays where it must not.
    async fn roll(&self, workload: &Workload, plan: &Plan, back: Back) -> Option<String> {
        let key = &workload.key;
        let rolling = self.rolling.lock().await;
        // Nothing delays a rollback; what else has changed waits its turn.
        let may = if plan.goes_back() { plan.back_only(workload) } else { self.startable(workload, plan) };
        let stays = |waits: &[Change]| self.leaves_rejected(workload, waits);
        let stays = stays(&waiting(plan, &may));
        let plan = &back.plan.filter(|_| stays).unwrap_or(may);
        if plan.changes.is_empty() {
            drop(rolling);
            return self.tell_stuck(workload, back.stuck.filter(|_| stays)).await;
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
                if let Some(view) = self.views().get_mut(key) {
                    view.facts = None;
                }
                self.announce(workload, plan).await;
                self.queue.add_now(Key::Workload(key.clone()));
                None
            }
            Err(error) => self.not_written(workload, error).await,
        }
    }

    /// Says, once, that a workload stays where it must not.
    async fn tell_stuck(&self, workload: &Workload, why: Option<String>) -> Option<String> {
        let why = why?;
        if !self.has_failed(&workload.key, &why) {
            self.events.say(&reference(workload), Reason::RolloutFailed, &why).await;
        }
        Some(why)
    }

    fn has_failed(&self, key: &WorkloadKey, why: &str) -> bool {
        let views = self.views();
        let mut uses = views.get(key).into_iter().flat_map(|view| view.uses.values());
        uses.any(|seen| matches!(&seen.state, State::Failed(known) if known == why))
    }

    /// Looks again at a workload that could not be written. Returns why, if the API server refused it.
    pub(super) async fn not_written(&self, workload: &Workload, error: ApplyError) -> Option<String> {
        let key = &workload.key;
        match error {
            ApplyError::Conflict => {
                self.queue.add(Key::Workload(key.clone()), Instant::now() + CONFLICT_PAUSE);
                None
            }
            ApplyError::Unknown(cause) => {
                tracing::warn!(workload = %key, namespace = key.namespace, cause, "the stamp may not have been written; looking again");
                self.queue.add(Key::Workload(key.clone()), Instant::now() + Duration::from_secs(1));
                None
            }
            ApplyError::Refused(cause) => {
                self.queue.add(Key::Workload(key.clone()), Instant::now() + FAILURE_PAUSE);
                if !self.has_failed(key, &cause) {
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
            let what = if change.back.is_some() { "rollback" } else { "roll" };
            let image = match self.world.image(&image) {
                Some(Cached::Read(image)) => Some(image),
                _ => None,
            };
            let asked = image.as_ref().and_then(|image| status_of(image).rollout?.by);
            let by = decided_by(change.back.as_deref().or(asked.as_deref()));
            Audit { image: &name, workload: &key.to_string(), what, from, to, digest, rule, rollout, by }.log();
            let Some(image) = image else {
                continue;
            };
            self.tell_way_back(workload, change, &image).await;
            if self.begins(workload, change) {
                let note = format!("{key}: container {}: {from} -> {to} (rollout {rollout})", change.container);
                self.events.say(&super::report::reference(&image), Reason::RolloutStarted, &note).await;
            }
        }
    }
}

impl Sync {
    /// Whether nobody else carries the rollout yet: an Image says once that it began, each workload when its own did.
    fn begins(&self, workload: &Workload, change: &Change) -> bool {
        let others = self.world.workloads(Some(&workload.key.namespace));
        let carries = |w: &Arc<Workload>| w.key != workload.key && w.rollout.as_ref() == Some(&change.rollout);
        !others.iter().any(carries)
    }
}

/// When to look again at a workload that has waited for so long: as long again, so that the pauses double.
fn pods_pause(waited: Duration) -> Duration {
    waited.clamp(PODS_PAUSE, PODS_PAUSE_MAX)
}

/// What of a plan may not be done now.
fn waiting(plan: &Plan, may: &Plan) -> Vec<Change> {
    plan.changes.iter().filter(|change| !may.changes.contains(change)).cloned().collect()
}

fn tags(targets: &BTreeMap<String, Target>) -> BTreeMap<String, String> {
    let text = |target: &Target| Tagged::new(&target.tag, target.digest.as_deref()).to_string();
    targets.iter().map(|(container, target)| (container.clone(), text(target))).collect()
}

/// The same, and what is known of holds: a plan that had nothing to do may have something to do with another.
fn with_holds(targets: &BTreeMap<String, Target>) -> BTreeMap<String, String> {
    let mut tags = tags(targets);
    for (container, target) in targets {
        let tag = tags.entry(container.clone()).or_default();
        *tag = format!("{tag} {:?}", target.holding);
    }
    tags
}

/// The reference that Events on a workload carry.
pub(super) fn reference(workload: &Workload) -> ObjectReference {
    ObjectReference {
        api_version: Some(workload.key.kind.api_version().to_owned()),
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

    /// Pods that never come, for as long as there is a quota.
    #[test]
    fn pauses_double_while_nothing_happens() {
        let (mut waited, mut looks) = (Duration::ZERO, Vec::new());
        while waited < Duration::from_mins(30) {
            let pause = pods_pause(waited);
            looks.push(pause.as_secs());
            waited += pause;
        }
        assert_eq!(looks, [5, 5, 10, 20, 40, 80, 160, 300, 300, 300, 300, 300]);
        // However late one looks, for whatever reason: soon after the last change, seldom long after it.
        for (waited, pause) in [(0, 5), (4, 5), (7, 7), (299, 299), (301, 300), (86400, 300)] {
            assert_eq!(pods_pause(Duration::from_secs(waited)).as_secs(), pause, "{waited}");
        }
    }
}
