//! Where a newer tag takes a rejected one away and may not go yet: back to the settled tag meanwhile. Going back waits for
//! nothing but the registry.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::api::{Held, HeldBy, Image, Tagged};
use crate::notify::Reason;
use crate::rollout::{self, Change, Plan, Target, Workload};
use crate::telemetry::RolloutOutcome;

use super::engine::{Key, Sync};
use super::failing::FAILURE_PAUSE;
use super::report;
use super::rollback::MAX_WAYS;
use super::target;
use super::workload::reference;
use super::world::status_of;

/// How long it counts what a registry said of the tags to go back to.
const ASKED: Duration = Duration::from_secs(60);

/// What is done if a rejected tag would have to wait for a newer one.
#[derive(Default)]
pub(super) struct Back {
    /// The way back.
    pub plan: Option<Plan>,
    /// Why there is none, if there should be.
    pub stuck: Option<String>,
}

/// Where a container can go back to, of these tags of an Image, and when that was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    of: Vec<Tagged>,
    to: Option<Tagged>,
    at: Instant,
}

impl Sync {
    /// How a workload goes back, if its plan is to leave a rejected tag for a newer: to the settled one, or if that is what
    /// it waits for, there at once; if the registry has the settled one no longer, to the newest before it.
    pub(super) async fn way_back(
        &self,
        workload: &Arc<Workload>,
        targets: &BTreeMap<String, Target>,
        plan: &Plan,
    ) -> Back {
        if plan.goes_back() || !self.leaves_rejected(workload, &plan.changes) {
            return Back::default();
        }
        let (mut back, mut gone) = (BTreeMap::new(), Vec::new());
        for (name, target) in targets {
            if let Some(alone) = self.way_alone(workload, name, target) {
                back.insert(name.clone(), alone);
                continue;
            }
            let way = match self.way(workload, target).await {
                Ok(way) => way,
                Err(ways) => {
                    gone.extend(ways);
                    None
                }
            };
            back.insert(name.clone(), way.unwrap_or_else(|| target.clone()));
        }
        let key = &workload.key;
        let plan = match self.plan(workload, &back).await {
            Ok(plan) => plan,
            Err(error) => {
                tracing::warn!(workload = %key, namespace = key.namespace, %error, "cannot plan the way back; trying again");
                self.queue.add(Key::Workload(key.clone()), Instant::now() + FAILURE_PAUSE);
                return Back::default();
            }
        };
        // To a settled tag nothing delays it, whatever that is.
        let leaves = |change: &&Change| {
            let settled = back.get(&change.container).is_some_and(|target| target.settled);
            settled && self.leaves_rejected(workload, std::slice::from_ref(*change))
        };
        let at_once: BTreeSet<&str> = plan.changes.iter().filter(leaves).map(|change| change.image.as_str()).collect();
        let images = plan.changes.iter().map(|change| change.image.as_str());
        let plan = plan.without(workload, &images.filter(|image| !at_once.contains(image)).collect());
        let gone: Vec<String> = gone.iter().map(ToString::to_string).collect();
        let stuck = (!gone.is_empty() && plan.changes.is_empty()).then(|| {
            self.queue.add(Key::Workload(key.clone()), Instant::now() + ASKED);
            let gone = gone.join(", ");
            format!("it runs a rejected tag, and there is nothing to go back to: the registry has {gone} no longer")
        });
        Back { plan: Some(plan).filter(|plan| !plan.changes.is_empty()), stuck }
    }

    /// A target that it may go back to, if there is one; else the tags that the registry has no longer.
    async fn way(&self, workload: &Workload, target: &Target) -> Result<Option<Target>, Vec<Tagged>> {
        let Some(image) = self.image(workload, &target.image) else {
            return Ok(None);
        };
        // Not to what a person left: if the newer tag fails, its hold goes on there.
        if let Some(to) = &target.holding.further {
            let mut back = target::at(&image, target, to);
            back.holding.further = None;
            return Ok(Some(back));
        }
        let mut ways = target::ways(&image, target, &self.world.rejections(&image));
        ways.truncate(MAX_WAYS);
        if ways.is_empty() {
            return Ok(None);
        }
        let to = self.first_way(workload, &image, &target.image, &ways).await;
        to.map(|to| Some(target::at(&image, target, &to))).ok_or(ways)
    }

    /// Says where containers are held from now on whose hold is at a tag that was rejected since.
    pub(super) async fn hold_further(&self, workload: &Workload, targets: &mut BTreeMap<String, Target>) {
        for (name, target) in targets.iter_mut().filter(|(_, target)| target.holding.rejected) {
            let container = workload.containers.iter().find(|container| container.name == *name);
            let (Some(container), Some(image)) = (container, self.image(workload, &target.image)) else {
                continue;
            };
            let mut ways = target::further(&image, target, &container.text, &self.world.rejections(&image));
            ways.truncate(MAX_WAYS);
            if !ways.is_empty() {
                let key = format!("{} {name}", target.image);
                target.holding.further = self.first_way(workload, &image, &key, &ways).await;
            }
        }
    }

    /// The first of these tags that the registry has. What it said is kept for a while under `key`.
    async fn first_way(&self, workload: &Workload, image: &Image, key: &str, ways: &[Tagged]) -> Option<Tagged> {
        let known = {
            let views = self.views();
            let way = views.get(&workload.key).and_then(|view| view.ways.get(key));
            way.filter(|way| way.of == ways && way.at.elapsed() < ASKED).cloned()
        };
        if let Some(way) = known {
            return way.to;
        }
        let to = self.first_there(image, ways).await;
        let way = Way { of: ways.to_vec(), to: to.clone(), at: Instant::now() };
        self.views().entry(workload.key.clone()).or_default().ways.insert(key.to_owned(), way);
        to
    }

    /// The target of a container that runs what it is to go back from alone. That this is there was asked as it was put on
    /// record.
    fn way_alone(&self, workload: &Workload, container: &str, target: &Target) -> Option<Target> {
        let to = workload.stamped(container).and_then(|ran| target.back_alone(&ran))?;
        Some(target::at(&*self.image(workload, &target.image)?, target, &to))
    }

    /// Whether one of these changes takes a tag away from a container that was rejected, or that it alone fails with.
    pub(super) fn leaves_rejected(&self, workload: &Workload, changes: &[Change]) -> bool {
        changes.iter().any(|change| {
            let image = self.image(workload, &change.image);
            image.is_some_and(|image| {
                let target = target::target(&image, workload, &change.container, &self.world.rejections(&image));
                target.is_some_and(|target| leaves(workload, change, &target.left_behind()))
            })
        })
    }

    /// Says that a workload goes back alone: nothing tells that later, since its Image is on the way to another tag.
    pub(super) async fn tell_way_back(&self, workload: &Workload, change: &Change, image: &Image) {
        let status = status_of(image);
        let with_image = status.rollout.as_ref().is_some_and(|rollout| rollout.back_from.is_some());
        let Some(why) = change.back.as_ref().filter(|_| change.rule == rollout::ROLLBACK && !with_image) else {
            return;
        };
        let Change { container, from, to, rollout, .. } = change;
        let alone =
            |held: &Held| held.holds() && held.workload == workload.key.to_string() && held.container == *container;
        let alone = status.held.iter().find(|held| held.by == HeldBy::RolloutFailed && alone(held));
        let why = alone.map_or_else(|| format!("rejected: {why}"), |held| held.why.clone());
        let note = format!("{}: container {container}: {from} -> {to} (rollout {rollout}); {why}", workload.key);
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
fn leaves(workload: &Workload, change: &Change, tags: &BTreeSet<String>) -> bool {
    let ran = workload.stamped(&change.container);
    let left =
        |tag: &String| change.from == *tag || ran.as_ref().is_some_and(|ran| ran.is_in(&BTreeSet::from([tag.clone()])));
    tags.iter().any(left)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Rejected;
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
            let rejected = ["", rejected].map(str::to_owned).into();
            assert_eq!(leaves(&workload, &change, &rejected), expected, "{stamp:?} {from}");
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

    /// 1.4.0 has settled, and `web` fails with it alone; 1.5.0 is on its way and may not go yet.
    #[test]
    fn who_fails_alone_goes_back_before_a_newer_tag() {
        #[track_caller]
        fn check(stamp: &str, held: &serde_json::Value, rejected: &[&str], expected: Option<&str>) {
            let mut object = json!({
                "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
                "metadata": {"name": "img", "namespace": "shop", "uid": "i"},
                "spec": {"image": "app", "triggers": [{"type": "interval", "value": "5m"}],
                    "rules": [{"name": "minor", "type": "semver-minor", "actions": [{"type": "apply"}]}]},
                "status": {"tag": "1.4.0", "rollout": {"tag": "1.5.0", "rule": "minor"}, "held": [{
                    "workload": "Deployment/web", "container": "app", "tag": "1.2.0", "left": "1.4.0",
                    "by": "RolloutFailed", "since": "2026-01-01T00:00:00Z", "why": ""}]},
            });
            json_patch::merge(&mut object["status"]["held"][0], held);
            let image: Image = serde_json::from_value(object).unwrap();
            let key = "stamp.kimup.cloudavenue.io/app";
            let fields = json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {format!("f:{key}"): {}}}}}});
            let object: Deployment = serde_json::from_value(json!({
                "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                    "managedFields": [{"manager": rollout::FIELD_MANAGER, "fieldsV1": fields}]},
                "spec": {"selector": {}, "template": {"metadata": {"annotations": {key: format!("app:1.0.0 {stamp}")}},
                    "spec": {"containers": [{"name": "app", "image": "app:1.0.0"}]}}},
            }))
            .unwrap();
            let workload = Workload::from_deployment(&object).unwrap();
            let of = |tag: &&str| Rejected { tag: (*tag).to_owned(), ..Rejected::default() };
            let rejections: Vec<_> = rejected.iter().map(of).collect();
            let target = target::target(&image, &workload, "app", &rejections).unwrap();
            let plan = |target: &Target| {
                let facts = rollout::Facts::default();
                rollout::plan(&workload, &[("app".to_owned(), target.clone())].into(), Some(&facts))
            };
            let forward = plan(&target);
            assert!(!forward.goes_back() && forward.changes[0].to == "1.5.0", "{forward:?}");
            let ran = workload.stamped("app").unwrap();
            let to = target.back_alone(&ran).filter(|_| leaves(&workload, &forward.changes[0], &target.left_behind()));
            let found = to.map(|to| plan(&target::at(&image, &target, &to)));
            let found = found.inspect(|plan| assert!(plan.goes_back() && plan.changes[0].rule == rollout::ROLLBACK));
            assert_eq!(
                found.map(|plan| plan.stamps["app"].clone()).as_deref(),
                expected,
                "{stamp} {held} {rejected:?}"
            );
        }
        let as_is = json!({});
        check("app:1.4.0", &as_is, &[], Some("app:1.0.0 app:1.2.0"));
        // It is there, and waits for the newer one as everybody does.
        check("app:1.2.0", &as_is, &[], None);
        // A person has ended it, or held it.
        check("app:1.4.0", &json!({"released": "2026-01-01T00:00:00Z"}), &[], None);
        check("app:1.4.0", &json!({"by": "Undo"}), &[], None);
        // That was rejected since.
        check("app:1.4.0", &as_is, &["1.2.0"], None);
        let digest = format!("sha256:{}", "a".repeat(64));
        let pinned = json!({"tag": format!("1.2.0@{digest}"), "left": format!("1.4.0@{digest}")});
        check(&format!("app:1.4.0@{digest}"), &pinned, &[], Some(&format!("app:1.0.0 app:1.2.0@{digest}")));
        check("app:1.4.0", &pinned, &[], None);
    }
}
