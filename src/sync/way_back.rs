//! Where a newer tag takes a rejected one away and may not go yet: back to the settled tag meanwhile. Going back waits for
//! nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tokio::time::Instant;

use crate::api::{Image, Rejected, Tagged};
use crate::notify::Reason;
use crate::rollout::{self, Change, Plan, Target, Workload};
use crate::telemetry::RolloutOutcome;

use super::engine::{Key, Sync};
use super::failing::FAILURE_PAUSE;
use super::report;
use super::target;
use super::workload::reference;
use super::world::status_of;

impl Sync {
    /// How a workload goes back to settled tags, if its plan is to leave a rejected one for a newer; none if there is
    /// nowhere to go back to.
    pub(super) async fn way_back(
        &self,
        workload: &Arc<Workload>,
        targets: &BTreeMap<String, Target>,
        plan: &Plan,
    ) -> Option<Plan> {
        if plan.goes_back() || !self.leaves_rejected(workload, &plan.changes) {
            return None;
        }
        let settled = |target: &Target| {
            let image = self.image(workload, &target.image)?;
            target::settled(&image, target)
        };
        let targets = targets.iter().map(|(name, target)| {
            let back = settled(target).unwrap_or_else(|| target.clone());
            (name.clone(), back)
        });
        match self.plan(workload, &targets.collect()).await {
            Ok(back) => Some(back.back_only(workload)).filter(|back| !back.changes.is_empty()),
            Err(error) => {
                tracing::warn!(workload = %workload.key, namespace = workload.key.namespace, %error, "cannot plan the way back; trying again");
                self.queue.add(Key::Workload(workload.key.clone()), Instant::now() + FAILURE_PAUSE);
                None
            }
        }
    }

    /// Whether one of these changes takes a rejected tag away from a container.
    pub(super) fn leaves_rejected(&self, workload: &Workload, changes: &[Change]) -> bool {
        changes.iter().any(|change| {
            let image = self.image(workload, &change.image);
            image.is_some_and(|image| leaves(workload, change, &self.world.rejections(&image)))
        })
    }

    /// Says that a workload goes back alone: nothing tells that later, since its Image is on the way to another tag.
    pub(super) async fn tell_way_back(&self, workload: &Workload, change: &Change, image: &Image) {
        let with_image = status_of(image).rollout.is_some_and(|rollout| rollout.back_from.is_some());
        let Some(why) = change.back.as_ref().filter(|_| change.rule == rollout::ROLLBACK && !with_image) else {
            return;
        };
        let Change { container, from, to, rollout, .. } = change;
        let note =
            format!("{}: container {container}: {from} -> {to} (rollout {rollout}); rejected: {why}", workload.key);
        for on in [report::reference(image), reference(workload)] {
            self.events.say(&on, Reason::RolledBack, &note).await;
        }
        self.metrics.rollout(RolloutOutcome::RolledBack);
    }

    fn image(&self, workload: &Workload, name: &str) -> Option<Arc<Image>> {
        self.read(&workload.key.namespace, &BTreeSet::from([name.to_owned()])).pop()
    }
}

/// Whether a workload carries the rollout back from one of these tags to `tag`, of the Image with this UID: whatever
/// becomes of it, that tag ran well before.
pub(super) fn went_back(workload: &Workload, uid: &str, tag: &Tagged, rejected: &BTreeSet<String>) -> bool {
    let forward = rollout::id(uid, &tag.to_string());
    let carried = workload.rollout.as_deref().map(|id| id.trim_end_matches(rollout::REPAIRED));
    rejected.iter().any(|rejected| carried == Some(&rollout::back_id(&forward, rejected)))
}

/// Whether a change takes one of these tags away: by what it says, or by the stamp that stands there.
fn leaves(workload: &Workload, change: &Change, rejections: &[Rejected]) -> bool {
    let ran = workload.stamped(&change.container);
    let left =
        |tag: &String| change.from == *tag || ran.as_ref().is_some_and(|ran| ran.is_in(&BTreeSet::from([tag.clone()])));
    rejections.iter().any(|rejected| left(&rejected.tag))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    #[test]
    fn who_went_back() {
        #[track_caller]
        fn check(carried: Option<&str>, tag: &str, expected: bool) {
            let template = json!({"metadata": {"labels": {"kimup.cloudavenue.io/rollout": carried.unwrap_or_default()}},
                "spec": {"containers": [{"name": "app", "image": "app:1.0.0"}]}});
            let object = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7"},
                "spec": {"selector": {}, "template": template}});
            let workload = serde_json::from_value::<Deployment>(object).unwrap();
            let workload = Workload::from_deployment(&workload).unwrap();
            let rejected = ["1.3.0", "1.5.0"].map(str::to_owned).into();
            assert_eq!(went_back(&workload, "i", &Tagged::new(tag, None), &rejected), expected, "{carried:?} {tag}");
        }
        let forward = rollout::id("i", "1.2.0");
        let back = rollout::back_id(&forward, "1.3.0");
        check(Some(&back), "1.2.0", true);
        check(Some(&format!("{back}-r")), "1.2.0", true);
        check(Some(&back), "1.1.0", false);
        check(Some(&forward), "1.2.0", false);
        check(Some(&rollout::back_id(&forward, "1.4.0")), "1.2.0", false);
        check(Some(&rollout::back_id(&rollout::id("other", "1.2.0"), "1.3.0")), "1.2.0", false);
        check(None, "1.2.0", false);
    }

    #[test]
    fn what_leaves_a_rejected_tag() {
        #[track_caller]
        fn check(stamp: &str, from: &str, rejected: &str, expected: bool) {
            let object: Deployment = serde_json::from_value(json!({
                "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7"},
                "spec": {"selector": {}, "template": {
                    "metadata": {"annotations": {"stamp.kimup.cloudavenue.io/app": stamp}},
                    "spec": {"containers": [{"name": "app", "image": "app:1.0.0"}]}}},
            }))
            .unwrap();
            let workload = Workload::from_deployment(&object).unwrap();
            let change = Change { container: "app".to_owned(), from: from.to_owned(), ..Change::default() };
            let rejected = Rejected { tag: rejected.to_owned(), ..Rejected::default() };
            assert_eq!(leaves(&workload, &change, &[Rejected::default(), rejected]), expected, "{stamp:?} {from}");
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        check("app:1.0.0 app:1.3.0", "1.3.0", "1.3.0", true);
        check("app:1.0.0 app:1.3.0", "1.3.0", "1.4.0", false);
        // Given by admission.
        check("", "1.3.0", "1.3.0", true);
        check("", "1.2.0", "1.3.0", false);
        // The change says but a part of the digest.
        let pinned = format!("app:1.0.0 app:1.3.0@{digest}");
        check(&pinned, "1.3.0@sha256:aaaa", "1.3.0", true);
        check(&pinned, "1.3.0@sha256:aaaa", &format!("1.3.0@{digest}"), true);
        check("app:1.0.0 app:1.3.0", "1.3.0", &format!("1.3.0@{digest}"), false);
    }
}
