//! Replaces Pods that came to be while kimup was away and run the text instead of their stamp. Pure.
//!
//! Their template is right already, so nothing would replace them: it is stamped again with another rollout ID, as
//! `kubectl rollout restart` does, and the workload's own strategy does the rest.

use std::collections::{BTreeMap, BTreeSet};

use crate::api::Tagged;
use crate::policy::Reference;

use super::plan::{Change, Plan, Target};
use super::workload::Workload;

/// How the ID of such a rollout ends. One that ends like that is not repaired again: whatever sets the image back would
/// do so for ever.
pub const REPAIRED: &str = "-r";

/// What becomes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Repair {
    /// None of these containers is stamped for its text, or no Image covers it.
    Nothing,
    /// The same stamps, and a rollout ID that follows from the one before.
    Roll(Plan),
    /// They were replaced once, and again came without their stamp.
    Again,
}

/// Plans the repair of a workload some of whose Pods of this template run the text in these containers.
pub fn repair(workload: &Workload, targets: &BTreeMap<String, Target>, wrong: &BTreeSet<String>) -> Repair {
    let Some(rollout) = workload.rollout.as_deref() else {
        return Repair::Nothing;
    };
    let mut plan = Plan::default();
    for container in &workload.containers {
        let name = &container.name;
        let Some(stamp) = workload.stamp(name) else {
            continue;
        };
        let (own, run) = (Reference::parse(&container.text).ok(), Reference::parse(&stamp.reference).ok());
        if let (Some(target), Some(own), Some(run)) = (targets.get(name).filter(|_| wrong.contains(name)), own, run)
            && stamp.text == container.text
        {
            let (from, to) = (Tagged::of(&own), Tagged::of(&run));
            let digest = to.digest.clone();
            let (from, to) = from.difference(&to);
            let (image, rule) = (target.image.clone(), target.rule.clone());
            let rollout = format!("{rollout}{REPAIRED}");
            plan.changes.push(Change { container: name.clone(), from, to, digest, image, rule, rollout, back: None });
        }
        if workload.owns_stamp(name) {
            plan.stamps.insert(name.clone(), stamp.to_string());
        }
    }
    match plan.changes.is_empty() {
        true => Repair::Nothing,
        false if rollout.ends_with(REPAIRED) => Repair::Again,
        false => Repair::Roll(plan),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Order;
    use crate::rollout::{FIELD_MANAGER, Holding};
    use serde_json::json;

    fn workload(text: &str, stamp: &str, rollout: &str) -> Workload {
        let fields = json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {"f:stamp.kimup.cloudavenue.io/app": {}}}}}});
        let object = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "managedFields": [{"manager": FIELD_MANAGER, "fieldsV1": fields}]},
            "spec": {"selector": {}, "template": {
                "metadata": {"annotations": {"stamp.kimup.cloudavenue.io/app": stamp},
                    "labels": {"kimup.cloudavenue.io/rollout": rollout}},
                "spec": {"containers": [{"name": "app", "image": text}]}}},
        });
        Workload::from_deployment(&serde_json::from_value(object).unwrap()).unwrap()
    }

    fn target() -> Target {
        let spec = json!({"image": "app", "triggers": [{"type": "interval", "value": "5m"}],
            "rules": [{"name": "r", "type": "semver-minor", "actions": [{"type": "apply"}]}]});
        Target {
            image: "web".to_owned(),
            tag: "1.2.0".to_owned(),
            digest: None,
            settled: true,
            rule: "minor".to_owned(),
            rollout: "ab12".to_owned(),
            order: Order::of(&serde_json::from_value(spec).unwrap()),
            left: None,
            holding: Holding::default(),
            held: None,
            rejected: BTreeSet::new(),
            why_rejected: String::new(),
        }
    }

    #[test]
    fn pods_without_their_stamp_are_replaced_once() {
        #[track_caller]
        fn check(workload: &Workload, covered: bool, wrong: &[&str], expected: &str) {
            let targets = covered.then(|| ("app".to_owned(), target())).into_iter().collect();
            let wrong = wrong.iter().map(|name| (*name).to_owned()).collect();
            let found = match repair(workload, &targets, &wrong) {
                Repair::Nothing => "nothing".to_owned(),
                Repair::Again => "again".to_owned(),
                Repair::Roll(plan) => {
                    let change = &plan.changes[0];
                    format!("{} -> {} {} | {}", change.from, change.to, change.rollout, plan.stamps["app"])
                }
            };
            assert_eq!(found, expected);
        }
        let stamped = |rollout: &str| workload("app:1.0.0", "app:1.0.0 app:1.2.0", rollout);
        let rolled = "1.0.0 -> 1.2.0 ab12-r | app:1.0.0 app:1.2.0";
        check(&stamped("ab12"), true, &["app"], rolled);
        check(&stamped("ab12-r"), true, &["app"], "again");
        check(&stamped("cd34"), true, &["app"], "1.0.0 -> 1.2.0 cd34-r | app:1.0.0 app:1.2.0");
        check(&stamped("ab12"), true, &[], "nothing");
        check(&stamped("ab12-r"), true, &[], "nothing");
        check(&stamped("ab12"), true, &["side"], "nothing");
        check(&stamped("ab12"), false, &["app"], "nothing");
        check(&workload("app:1.1.0", "app:1.0.0 app:1.2.0", "ab12"), true, &["app"], "nothing");
    }
}
