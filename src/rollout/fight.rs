//! Tells whether somebody takes kimup's stamps away over and over. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::annotations::Stamp;

use super::plan::Plan;
use super::workload::Workload;

/// As often as this, within [`WITHIN`], is no accident.
pub const TIMES: usize = 3;
/// See [`TIMES`].
pub const WITHIN: Duration = Duration::from_mins(10);

/// What a process has seen of the stamps of one workload. Losing it costs patience, nothing else.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamps {
    /// Those that kimup owned when it was seen last.
    ours: BTreeMap<String, Stamp>,
    /// When each was found to be gone, so that it would have to be written again.
    taken: Vec<Timestamp>,
}

impl Stamps {
    /// Takes in a workload and what is planned for it. True if its stamps were taken away too often.
    ///
    /// An undo to an unstamped revision takes nothing away: it is held, and no stamp is planned again.
    pub fn see(&mut self, workload: &Workload, plan: &Plan, now: Timestamp) -> bool {
        let mut taken = false;
        for container in &workload.containers {
            let name = &container.name;
            let stamp = workload.stamp(name);
            let again = plan.changes.iter().any(|change| change.container == *name);
            if stamp.is_none() && again && self.ours.get(name).is_some_and(|ours| ours.text == container.text) {
                taken = true;
                self.ours.remove(name);
            }
            if let Some(stamp) = stamp.filter(|_| workload.owns_stamp(name)) {
                self.ours.insert(name.clone(), stamp);
            }
        }
        // One write takes all stamps at once.
        self.taken.extend(taken.then_some(now));
        self.taken.retain(|at| now.duration_since(*at).unsigned_abs() < WITHIN);
        self.taken.len() >= TIMES
    }

    /// Somebody says that it is over.
    pub fn forgive(&mut self) {
        self.taken.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{Change, FIELD_MANAGER};
    use k8s_openapi::api::apps::v1::Deployment;
    use serde_json::json;

    fn workload(text: &str, stamped: bool, owner: &str) -> Workload {
        let key = "stamp.kimup.cloudavenue.io/app";
        let annotations = if stamped { json!({key: "app:1.0.0 app:1.1.0"}) } else { json!({}) };
        let fields = json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {format!("f:{key}"): {}}}}}});
        let object = json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7",
                "managedFields": [{"manager": owner, "fieldsV1": if stamped { fields } else { json!({}) }}]},
            "spec": {"selector": {}, "template": {"metadata": {"annotations": annotations},
                "spec": {"containers": [{"name": "app", "image": text}]}}},
        });
        Workload::from_deployment(&serde_json::from_value::<Deployment>(object).unwrap()).unwrap()
    }

    /// Each step: seconds since the one before, and what is seen. `s` a stamp of ours, `f` one of somebody else's, `-`
    /// none and one is planned, `h` none and none is planned, `t` none and another text, `!` forgiven.
    #[track_caller]
    fn check(steps: &[(i64, char)], expected: bool) {
        let again =
            Plan { changes: vec![Change { container: "app".to_owned(), ..Change::default() }], ..Plan::default() };
        let (mut stamps, mut now, mut found) = (Stamps::default(), Timestamp::UNIX_EPOCH, false);
        for (after, step) in steps {
            now += jiff::SignedDuration::from_secs(*after);
            let (workload, plan) = match step {
                's' => (workload("app:1.0.0", true, FIELD_MANAGER), Plan::default()),
                'f' => (workload("app:1.0.0", true, "kubectl-rollout"), Plan::default()),
                'h' => (workload("app:1.0.0", false, "flux"), Plan::default()),
                't' => (workload("app:1.0.5", false, "flux"), again.clone()),
                '!' => {
                    stamps.forgive();
                    continue;
                }
                _ => (workload("app:1.0.0", false, "flux"), again.clone()),
            };
            found = stamps.see(&workload, &plan, now);
        }
        assert_eq!(found, expected, "{steps:?}");
    }

    #[test]
    fn three_times_within_ten_minutes_is_a_fight() {
        let often = |steps: &str, pause: i64| -> Vec<_> { steps.chars().map(|step| (pause, step)).collect() };
        check(&often("s-s-s-", 60), true);
        check(&often("s-s-s", 60), false);
        check(&often("s-s-", 1), false);
        // Seen more than once before it is written again.
        check(&often("s---s---", 1), false);
        check(&often("s---s---s---", 1), true);
        // Nobody takes what kimup does not own, or would not write again; another text is a decision.
        check(&often("f-f-f-", 1), false);
        check(&often("shshsh", 1), false);
        check(&often("ststst", 1), false);
        check(&often("------", 1), false);
        // Too slow.
        check(&often("s-s-s-", 151), false);
        check(&[(0, 's'), (1, '-'), (1, 's'), (1, '-'), (1, 's'), (596, '-')], true);
        check(&[(0, 's'), (1, '-'), (1, 's'), (1, '-'), (1, 's'), (597, '-')], false);
        // It lasts as long as the last three do.
        check(&[(0, 's'), (1, '-'), (1, 's'), (1, '-'), (1, 's'), (1, '-'), (500, '-')], true);
        check(&[(0, 's'), (1, '-'), (1, 's'), (1, '-'), (1, 's'), (1, '-'), (0, '!'), (1, 's'), (1, '-')], false);
    }
}
