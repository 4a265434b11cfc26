use std::collections::BTreeMap;

use super::*;
use crate::rollout::evidence::Evidence;
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(600);

fn at(second: i64) -> Timestamp {
    Timestamp::from_second(second).unwrap()
}

/// A Deployment that was stamped in second 1000 and is not complete.
fn workload(patch: &Value) -> Workload {
    let fields =
        json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {"f:stamp.kimup.cloudavenue.io/app": {}}}}}});
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 2,
            "managedFields": [{"manager": "kimup-rollout", "operation": "Apply", "time": at(1000), "fieldsV1": fields}]},
        "spec": {"replicas": 2, "selector": {}, "template": {
            "metadata": {"annotations": {"stamp.kimup.cloudavenue.io/app": "app:1 app:2"}},
            "spec": {"containers": [{"name": "app", "image": "app:1"}]}}},
        "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 1, "availableReplicas": 2},
    });
    json_patch::merge(&mut object, patch);
    Workload::from_deployment(&serde_json::from_value(object).unwrap()).unwrap()
}

fn gave_up(second: i64) -> Value {
    let condition = json!({"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded", "lastUpdateTime": at(second)});
    json!({"status": {"conditions": [condition]}})
}

/// Created in second 1001 and not ready since.
fn pod(name: &str) -> PodState {
    let (created, turned) = (at(1001), at(1001));
    PodState { name: name.to_owned(), scheduled: true, created, turned, ..PodState::default() }
}

fn say(verdict: Verdict) -> String {
    match verdict {
        Verdict::Fine(None) => "fine".to_owned(),
        Verdict::Fine(Some(until)) => format!("until {}", until.as_second()),
        Verdict::Failing { reason, .. } => reason,
        Verdict::Untried { why } => format!("untried: {why}"),
    }
}

#[test]
fn a_rollout_is_due() {
    #[track_caller]
    fn check(patch: &Value, expected: Option<i64>) {
        assert_eq!(due(&workload(patch), DEADLINE), expected.map(at), "{patch}");
    }
    check(&json!({}), Some(1600));
    check(&gave_up(1300), Some(1000));
    check(&gave_up(1000), Some(1600)); // of the template before: times are whole seconds
    check(&json!({"spec": {"paused": true}}), None);
    check(&json!({"spec": {"replicas": 0}, "status": {"replicas": 1}}), None);
    check(&json!({"status": {"replicas": 2, "updatedReplicas": 2}}), None);
    check(&json!({"metadata": {"managedFields": null}}), None);
}

/// The same as an Argo Rollout, with this status.
fn argo(status: &Value) -> Workload {
    let name = json!({"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 2});
    let mut object = json!({"metadata": name, "spec": {"replicas": 2, "template": {"spec": {"containers": []}}},
        "status": {"observedGeneration": "2", "phase": "Progressing", "updatedReplicas": 1}});
    json_patch::merge(&mut object, &json!({"status": status}));
    let read = Workload::from_foreign(Kind::Rollout, &serde_json::from_value(object).unwrap()).unwrap();
    Workload { stamped_at: Some(at(1000)), ..read }
}

#[test]
fn of_an_argo_rollout_its_controller_knows() {
    #[track_caller]
    fn check(status: &Value, pods: &[PodState], expected: &str) {
        let workload = argo(status);
        assert_eq!(due(&workload, DEADLINE).is_some(), expected != "fine", "{status}");
        assert_eq!(say(judge(&workload, pods, DEADLINE, at(9999))), expected, "{status}");
    }
    let (unready, none) = (&[pod("web-1")], &[]);
    check(&json!({}), unready, "fine");
    check(&json!({"phase": "Paused"}), unready, "fine");
    let aborted =
        |second: i64| json!({"abort": true, "abortedAt": at(second), "phase": "Degraded", "message": "metric"});
    check(&aborted(1300), none, "metric");
    check(&aborted(1300), &[PodState { ready: true, ..pod("web-1") }], "metric");
    check(&aborted(900), unready, "fine"); // of the template before
    let passed = &gave_up(1300)["status"];
    check(passed, unready, "ProgressDeadlineExceeded: Pod web-1 is not ready");
    check(passed, none, "untried: its controller creates no Pod of the new revision");
}

#[test]
fn a_rollout_is_judged() {
    #[track_caller]
    fn check(patch: &Value, pods: &[PodState], now: i64, expected: &str) {
        assert_eq!(say(judge(&workload(patch), pods, DEADLINE, at(now))), expected);
    }
    let crashes = || {
        let trouble = Some("CrashLoopBackOff: container app".to_owned());
        PodState { trouble, restarts: 5, turned: at(1590), ..pod("web-2") }
    };
    let ready = |turned: i64| PodState { ready: true, turned: at(turned), ..pod("web-3") };
    check(&json!({}), &[pod("web-1")], 1600, "until 1601");
    check(&json!({}), &[pod("web-1")], 1601, "NotReady: Pod web-1 is not ready");
    check(&json!({}), &[pod("web-1"), crashes()], 1601, "CrashLoopBackOff: container app");
    // One after the other: each that becomes ready is a step, one that comes and goes is none.
    check(&json!({}), &[pod("web-1"), ready(1500)], 1601, "until 2100");
    check(&json!({}), &[crashes(), ready(1500)], 2100, "CrashLoopBackOff: container app");
    check(&json!({}), &[PodState { restarts: 2, ..crashes() }], 1601, "until 2190");
    check(&gave_up(1300), &[pod("web-1")], 1301, "ProgressDeadlineExceeded: Pod web-1 is not ready");
    check(&json!({"status": {"observedGeneration": 1}}), &[], 1601, "until 1602");
    // Not tried.
    let nowhere = PodState { scheduled: false, unscheduled: Some("0/3 nodes".to_owned()), ..pod("web-1") };
    let quota =
        json!({"status": {"conditions": [{"type": "ReplicaFailure", "status": "True", "message": "exceeded quota"}]}});
    check(&json!({}), std::slice::from_ref(&nowhere), 1601, "untried: Pod web-1 cannot be scheduled: 0/3 nodes");
    check(&json!({}), &[nowhere, crashes()], 1601, "CrashLoopBackOff: container app");
    check(&json!({}), &[], 1601, "untried: its controller creates no Pod of the new revision");
    check(&quota, &[], 1601, "untried: its Pods cannot be created: exceeded quota");
    check(
        &json!({}),
        &[ready(1001)],
        1601,
        "untried: its new Pods are ready, and its controller does not end the rollout",
    );
    check(&json!({"spec": {"paused": true}}), &[crashes()], 9999, "fine");
}

fn past(number: i64, template: &str, stamp: &str) -> Past {
    let stamps: BTreeMap<_, _> = Stamp::parse(stamp).map(|stamp| ("app".to_owned(), stamp)).into_iter().collect();
    Past { hash: number.to_string(), number, current: false, stamps, template: json!(template), owner: String::new() }
}

#[test]
fn what_ran_before() {
    /// The newest is the current one; `ready` names the revisions with ready Pods.
    #[track_caller]
    fn check(all: &[Past], ready: &[i64], expected: &str) {
        let mut all = all.to_vec();
        all[0].current = true;
        let pods = ready.iter().map(|number| PodState { hash: number.to_string(), ready: true, ..pod("web") });
        let evidence = Evidence { past: all, pods: pods.collect() };
        let found = before(&evidence.past, &evidence.pods, |_, stamp| stamp.reference == "app:3");
        let found = match found {
            Before::Unknown => "unknown".to_owned(),
            Before::Changed => "changed".to_owned(),
            Before::Revision(past) => past.number.to_string(),
        };
        assert_eq!(found, expected);
    }
    let new = || past(9, "a", "app:1 app:3");
    check(&[new(), past(8, "a", "app:1 app:2"), past(7, "a", "-")], &[], "8");
    check(&[new(), past(7, "a", "-")], &[], "7");
    check(&[new()], &[9], "unknown");
    // It ran: there are Pods of it.
    check(&[new(), past(8, "a", "app:1 app:2"), past(7, "a", "-")], &[7, 9], "7");
    // Neither another rollout of the same tag, nor one whose template was another.
    check(&[new(), past(8, "b", "app:1 app:3"), past(7, "a", "-")], &[], "7");
    check(&[new(), past(8, "b", "app:1 app:2"), past(7, "a", "-")], &[], "changed");
    check(&[new(), past(8, "a", "app:1 app:3"), past(7, "b", "-")], &[7], "changed");
}
