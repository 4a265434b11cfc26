//! Reconciles one workload for all its Images at once: plan, keep to the limits, stamp, watch it settle.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use tokio::time::Instant;

use crate::api::{Tagged, annotations};
use crate::notify::{Audit, Reason};
use crate::rollout::{self, ApplyError, Blocked, Plan, Target, Workload, WorkloadKey};
use crate::telemetry::RolloutOutcome;

use super::engine::{Key, Sync};
use super::hold;
use super::target::target;
use super::view::State;
use super::world::{Cached, ImageKey};

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
        let mut targets = targets;
        self.stay(&workload, &mut targets).await;
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
        let mut failure = None;
        if !plan.adopts.is_empty() {
            failure = self.adopt(&workload, &plan).await;
        } else if plan.blocked.is_some() {
            self.queue.add(Key::Workload(key.clone()), Instant::now() + PODS_PAUSE);
        } else if plan.changes.is_empty() {
            self.pending().remove(key);
        } else if self.gathered(&workload, &targets, &plan) {
            if tags(&self.targets(&workload)) == tags(&targets) {
                failure = self.roll(&workload, &targets, &plan).await;
            } else {
                // The tag that was waited for has come since this plan was made.
                self.queue.add_now(Key::Workload(key.clone()));
            }
        }
        self.note(key, &targets, &plan, failure.as_deref());
        self.finish_resume(&workload, &targets, &plan).await;
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
        images.filter_map(|(name, image)| target(&image, workload, &name).map(|target| (name, target))).collect()
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
    fn gathered(&self, workload: &Workload, targets: &BTreeMap<String, Target>, plan: &Plan) -> bool {
        let images: BTreeSet<&str> = targets.values().map(|t| t.image.as_str()).collect();
        if images.len() < 2 || plan.changes.iter().any(|change| change.back.is_some()) {
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
        let mut plan = self.ungated(workload, plan);
        if !self.limits_allow(workload, targets, &plan) {
            let images: BTreeSet<String> = plan.changes.iter().map(|change| change.image.clone()).collect();
            plan = plan.without(workload, &images.iter().map(String::as_str).collect());
        }
        if plan.changes.is_empty() {
            return None;
        }
        let plan = &plan;
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
            Err(error) => self.not_written(workload, error).await,
        }
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
}

fn tags(targets: &BTreeMap<String, Target>) -> BTreeMap<String, String> {
    let text = |target: &Target| Tagged::new(&target.tag, target.digest.as_deref()).to_string();
    targets.iter().map(|(container, target)| (container.clone(), text(target))).collect()
}

/// The same, and what is known of holds: a plan that had nothing to do may have something to do with another.
fn with_holds(targets: &BTreeMap<String, Target>) -> BTreeMap<String, String> {
    let mut tags = tags(targets);
    for (container, target) in targets {
        tags.entry(container.clone()).or_default().push_str(&format!(" {:?}", target.holding));
    }
    tags
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
