//! What an Image wants one container of a workload to run.

use std::cmp::Ordering;

use kube::ResourceExt;

use crate::api::annotations::{ACTION, RESUME};
use crate::api::{self, AfterRollback, HistoryEntry, Image, ImageStatus, Order, Rejected, Tagged};
use crate::policy::Reference;
use crate::rollout::{self, Holding, Target, Workload};

use super::managed;
use super::status;
use super::world::status_of;

/// What an Image wants its workloads to run.
pub(super) fn wanted(image: &Image, status: &ImageStatus) -> Option<Tagged> {
    status::current(status).map(|current| status::pinned(api::pins_digest(&image.spec), &current))
}

/// What an Image wants a container of `workload` to run; none if it has no tag yet.
pub(super) fn target(image: &Image, workload: &Workload, container: &str, rejections: &[Rejected]) -> Option<Target> {
    let status = status_of(image);
    let wanted = wanted(image, &status)?;
    let in_flight = status.rollout.as_ref();
    let chosen = |entry: &&HistoryEntry| entry.tag == wanted.tag && entry.rule != rollout::ROLLBACK;
    let rule = in_flight
        .map(|r| r.rule.clone())
        .or_else(|| status.history.iter().find(chosen).map(|entry| entry.rule.clone()));
    // Of several rejections that of the tag which it runs says why it goes back.
    let ran = workload.stamped(container);
    let of_it = |r: &&Rejected| ran.as_ref().is_some_and(|ran| ran.tag == r.tag || ran.to_string() == r.tag);
    let why = rejections.iter().find(of_it).or(rejections.last()).map(status::because);
    let name = workload.key.to_string();
    let held = status.held.iter().find(|h| h.workload == name && h.container == container);
    let rejected = Rejected::tags(rejections);
    let left = held.filter(|h| h.holds() && h.by.is_behind()).map(|h| h.left.clone());
    Some(Target {
        image: image.name_any(),
        settled: status.tag.as_deref() == Some(&wanted.tag)
            && (wanted.digest.is_none() || status.digest == wanted.digest),
        rule: rule.filter(|rule| !rule.is_empty()).unwrap_or_else(|| "none".to_owned()),
        rollout: rollout::id(image.metadata.uid.as_deref().unwrap_or_default(), &wanted.to_string()),
        order: Order::of(&image.spec).following(&status).of_one_text(managed::is_managed(&image.metadata)),
        why_rejected: why.unwrap_or_default(),
        held: left.as_ref().and(held.map(|h| h.tag.clone())),
        left: left.filter(|left| !left.is_empty()),
        holding: Holding {
            record: held.cloned(),
            rejected: held.is_some_and(|held| held.is_rejected(&rejected)),
            after: AfterRollback::of(&image.spec),
            // Known to those who ask the registry.
            further: None,
            stay: None,
            resume: workload.annotations.get(ACTION).is_some_and(|action| action == RESUME),
        },
        tag: wanted.tag,
        digest: wanted.digest,
        rejected,
    })
}

/// Where a container may go back to while it waits for the tag of its target, best first: the settled tag, then those before
/// it. None if the target's is the settled one, or nothing is settled.
pub(super) fn ways(image: &Image, target: &Target, rejections: &[Rejected]) -> Vec<Tagged> {
    let status = status_of(image);
    let pinned = |way: &Tagged| status::pinned(api::pins_digest(&image.spec), way);
    let is_target = |way: &Tagged| way.tag == target.tag && way.digest == target.digest;
    let settled = status.tag.as_ref().map(|tag| pinned(&Tagged::new(tag, status.digest.as_deref())));
    if settled.as_ref().is_none_or(is_target) {
        return Vec::new();
    }
    let ways = status::ways_back(&status, rejections);
    ways.iter().map(pinned).filter(|way| !is_target(way) && !way.is_in(&target.rejected)).collect()
}

/// Where a container with this text goes that is held at a tag which was rejected since, best first: to what ran before that.
/// None if it follows its Image: where the settled tag ends the hold, or is older.
pub(super) fn further(image: &Image, target: &Target, text: &str, rejections: &[Rejected]) -> Vec<Tagged> {
    let (holding, status, order) = (&target.holding, status_of(image), &target.order);
    let record = holding.in_force().filter(|record| record.by.is_behind() && holding.rejected);
    let held = record.and_then(|record| Some((Tagged::parse(&record.tag)?, Tagged::parse(&record.left)?)));
    let pinned = |way: &Tagged| status::pinned(api::pins_digest(&image.spec), way);
    let settled = status.tag.as_ref().map(|tag| pinned(&Tagged::new(tag, status.digest.as_deref())));
    let (Some((at, left)), Some(settled)) = (held, settled) else {
        return Vec::new();
    };
    let ends = self::at(image, target, &settled).ends(&left) || settled.is_in(&target.rejected);
    if ends || order.compare(&settled.tag, &at.tag) == Some(Ordering::Less) {
        return Vec::new();
    }
    // Nobody is sent to an older tag than that of its text.
    let own = Reference::parse(text).ok().and_then(|text| text.tag().map(|tag| Tagged::new(tag, None)));
    let floor = |way: &Tagged| {
        let own = own.as_ref().filter(|own| order.compare(&own.tag, &way.tag) == Some(Ordering::Greater));
        own.cloned().unwrap_or_else(|| pinned(way))
    };
    let is_older = |way: &Tagged| order.compare(&way.tag, &at.tag) == Some(Ordering::Less) && way.tag != left.tag;
    let ways = status::ways_back(&status, rejections);
    let mut ways: Vec<Tagged> =
        ways.iter().map(floor).filter(|way| is_older(way) && !way.is_in(&target.rejected)).collect();
    ways.sort_by(|a, b| order.compare(&b.tag, &a.tag).unwrap_or(Ordering::Equal));
    ways.dedup();
    ways
}

/// The same target with a tag that it goes back to.
pub(super) fn at(image: &Image, target: &Target, way: &Tagged) -> Target {
    Target {
        settled: true,
        rollout: rollout::id(image.metadata.uid.as_deref().unwrap_or_default(), &way.to_string()),
        tag: way.tag.clone(),
        digest: way.digest.clone(),
        ..target.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::plan;
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::{Value, json};

    /// `web` runs 1.3.0 by a stamp, which was rejected; its Image has settled on 1.2.0.
    #[track_caller]
    fn check(in_flight: &str, status: &Value, expected: &str) {
        let mut object = json!({
            "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
            "metadata": {"name": "img", "namespace": "shop", "uid": "i"},
            "spec": {"image": "app", "triggers": [{"type": "interval", "value": "5m"}],
                "rules": [{"name": "minor", "type": "semver-minor", "actions": [{"type": "apply"}]}]},
            "status": {"tag": "1.2.0", "rollout": {"tag": in_flight, "rule": "minor"}},
        });
        json_patch::merge(&mut object["status"], status);
        let image: Image = serde_json::from_value(object).unwrap();
        let stamp = "stamp.kimup.cloudavenue.io/app";
        let fields = json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {format!("f:{stamp}"): {}}}}}});
        let workload: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "managedFields": [{"manager": rollout::FIELD_MANAGER, "fieldsV1": fields}]},
            "spec": {"selector": {}, "template": {"metadata": {"annotations": {stamp: "app:1.0.0 app:1.3.0"}},
                "spec": {"containers": [{"name": "app", "image": "app:1.0.0"}]}}},
        }))
        .unwrap();
        let workload = Workload::from_deployment(&workload).unwrap();
        let rejected =
            |tag: &str| Rejected { tag: tag.to_owned(), reason: "it crashes".to_owned(), ..Rejected::default() };
        let rejections: Vec<_> = [Some("1.3.0"), status["bad"].as_str()].into_iter().flatten().map(rejected).collect();
        let target = target(&image, &workload, "app", &rejections).unwrap();
        let forward = plan(&workload, &[("app".to_owned(), target.clone())].into(), None);
        assert!(!forward.goes_back() && forward.changes[0].to == in_flight, "{forward:?}");
        let ways = ways(&image, &target, &rejections);
        let said = ways.first().map(|way| at(&image, &target, way)).map(|target| {
            let plan = plan(&workload, &[("app".to_owned(), target.clone())].into(), None);
            assert!(plan.goes_back());
            let change = &plan.changes[0];
            assert_eq!(change.rollout, rollout::back_id(&rollout::id("i", &target.tag), "1.3.0"));
            format!("{} -> {} {}: {}", change.from, plan.stamps["app"], change.rule, change.back.clone().unwrap())
        });
        assert_eq!(said.unwrap_or_default(), expected, "{in_flight} {status}");
    }

    #[test]
    fn back_to_the_settled_tag_while_a_newer_one_may_not_go() {
        check("1.4.0", &json!({}), "1.3.0 -> app:1.0.0 app:1.2.0 rollback: it crashes");
        check("1.4.0", &json!({"tag": "1.1.0"}), "1.3.0 -> app:1.0.0 app:1.1.0 rollback: it crashes");
        // It was held there before the rejected tag was tried.
        let held = json!([{"workload": "Deployment/web", "container": "app", "tag": "1.1.0", "left": "1.2.0",
            "by": "Undo", "since": "", "why": ""}]);
        check("1.4.0", &json!({"held": held}), "1.3.0 -> app:1.0.0 app:1.1.0 rollback: it crashes");
        // Nowhere to go.
        check("1.4.0", &json!({"tag": null}), "");
        check("1.4.0", &json!({"tag": "1.4.0"}), "");
        check("1.4.0", &json!({"bad": "1.2.0"}), "");
    }

    #[test]
    fn where_it_may_go_back_to_in_which_order() {
        #[track_caller]
        fn check(status: &Value, wanted: &str, rejected: &[&str], expected: &[&str]) {
            let image: Image = serde_json::from_value(json!({
                "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image", "metadata": {"name": "img", "uid": "i"},
                "spec": {"image": "app", "triggers": [], "rules": []}, "status": status,
            }))
            .unwrap();
            let of = |tag: &&str| Rejected { tag: (*tag).to_owned(), ..Rejected::default() };
            let rejections: Vec<_> = rejected.iter().map(of).collect();
            let object = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7"},
                "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "app", "image": "app:1.0.0"}]}}}});
            let workload = Workload::from_deployment(&serde_json::from_value::<Deployment>(object).unwrap()).unwrap();
            let waits = Image {
                status: Some(ImageStatus { tag: Some(wanted.to_owned()), ..Default::default() }),
                ..image.clone()
            };
            let target = target(&waits, &workload, "app", &rejections).unwrap();
            let found: Vec<_> = ways(&image, &target, &rejections).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{status} {wanted} {rejected:?}");
        }
        let past = |tag: &str, outcome: &str| json!({"tag": tag, "outcome": outcome});
        let history = [
            past("1.2.0", "Settled"),
            past("1.3.0", "Rejected"),
            past("1.1.0", "RolledBack"),
            past("1.0.0", "Settled"),
        ];
        let status = json!({"tag": "1.2.0", "rollout": {"tag": "1.4.0"}, "history": history});
        check(&status, "1.4.0", &["1.3.0"], &["1.2.0", "1.1.0", "1.0.0"]);
        check(&status, "1.4.0", &["1.3.0", "1.1.0"], &["1.2.0", "1.0.0"]);
        check(&status, "1.4.0", &["1.2.0"], &["1.1.0", "1.0.0"]);
        // It is on its way to the settled tag.
        check(&json!({"tag": "1.4.0", "history": history}), "1.4.0", &["1.3.0"], &[]);
        check(&json!({"history": history}), "1.4.0", &["1.3.0"], &[]);
    }

    #[test]
    fn where_a_hold_goes_whose_tag_is_rejected() {
        #[track_caller]
        fn check(status: &Value, text: &str, rejected: &[&str], expected: &[&str]) {
            let past = |tag: &str, outcome: &str| json!({"tag": tag, "outcome": outcome});
            let history = [
                past("1.4.0", "Settled"),
                past("1.0.0", "RolledBack"),
                past("1.3.0", "Settled"),
                past("1.1.5", "Rejected"),
                past("1.1.0", "Settled"),
                past("1.2.0", "Settled"),
            ];
            let held = json!([{"workload": "Deployment/web", "container": "app", "tag": "1.3.0", "left": "1.4.0",
                "by": "Undo", "since": "", "why": ""}]);
            let mut object = json!({
                "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image", "metadata": {"name": "img", "uid": "i"},
                "spec": {"image": "app", "triggers": [{"type": "interval", "value": "5m"}],
                    "rules": [{"name": "minor", "type": "semver-minor", "actions": [{"type": "apply"}]}]},
                "status": {"tag": "1.4.0", "history": history, "held": held},
            });
            json_patch::merge(&mut object, status);
            let image: Image = serde_json::from_value(object).unwrap();
            let of = |tag: &&str| Rejected { tag: (*tag).to_owned(), ..Rejected::default() };
            let rejections: Vec<_> = rejected.iter().map(of).collect();
            let object = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7"},
                "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "app", "image": text}]}}}});
            let workload = Workload::from_deployment(&serde_json::from_value::<Deployment>(object).unwrap()).unwrap();
            let target = target(&image, &workload, "app", &rejections).unwrap();
            let found: Vec<_> = further(&image, &target, text, &rejections).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{status} {text} {rejected:?}");
        }
        let (as_is, text) = (json!({}), "app:1.0.0");
        // The newest first, whenever they ran.
        check(&as_is, text, &["1.3.0"], &["1.2.0", "1.1.0", "1.0.0"]);
        check(&as_is, text, &["1.2.0", "1.3.0"], &["1.1.0", "1.0.0"]);
        check(&as_is, text, &["1.2.0", "1.3.0", "1.1.0", "1.0.0"], &[]);
        check(&as_is, text, &["1.2.0"], &[]);
        // A tag in flight has not settled.
        check(&json!({"status": {"rollout": {"tag": "1.5.0"}}}), text, &["1.3.0"], &["1.2.0", "1.1.0", "1.0.0"]);
        // The settled tag ends it, or is older, or about to be left itself.
        check(&json!({"status": {"tag": "1.5.0"}}), text, &["1.3.0"], &[]);
        let person = json!({"spec": {"rollout": {"afterRollback": "hold"}}, "status": {"tag": "1.5.0"}});
        check(&person, text, &["1.3.0"], &["1.2.0", "1.1.0", "1.0.0"]);
        check(&json!({"status": {"tag": "1.2.0"}}), text, &["1.3.0"], &[]);
        check(&as_is, text, &["1.3.0", "1.4.0"], &[]);
        // Nobody goes below its own text, and who names the rejected tag stays there.
        check(&as_is, "app:1.1.5", &["1.3.0"], &["1.2.0", "1.1.5"]);
        check(&as_is, "app:1.2.5", &["1.3.0"], &["1.2.5"]);
        check(&as_is, "app:1.2.5", &["1.3.0", "1.2.5"], &[]);
        check(&as_is, "app:1.3.0", &["1.3.0"], &[]);
        // What is held for other reasons, or no longer.
        let by = |by: &str| {
            json!({"status": {"held": [{"workload": "Deployment/web", "container": "app",
            "tag": "1.3.0", "left": "1.4.0", "by": by, "since": "", "why": ""}]}})
        };
        check(&by("RolloutFailed"), text, &["1.3.0"], &["1.2.0", "1.1.0", "1.0.0"]);
        check(&by("Annotation"), text, &["1.3.0"], &[]);
        let mut released = by("Undo");
        released["status"]["held"][0]["released"] = json!("then");
        check(&released, text, &["1.3.0"], &[]);
    }
}
