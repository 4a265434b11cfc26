use super::*;
use serde_json::json;

fn read(kind: Kind, base: &Value, patch: &Value) -> Option<Workload> {
    let mut object = json!({
        "apiVersion": kind.api_version(), "kind": kind.as_str(),
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 2},
        "spec": {
            "replicas": 4, "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"annotations": {"stamp.kimup.cloudavenue.io/app": "app:1 app:2"},
                    "labels": {"kimup.cloudavenue.io/rollout": "ab12"}},
                "spec": {"serviceAccountName": "robot", "containers": [{"name": "app", "image": "app:1"}]},
            },
        },
    });
    json_patch::merge(&mut object, base);
    json_patch::merge(&mut object, patch);
    Workload::from_foreign(kind, &serde_json::from_value(object).unwrap())
}

fn rollout(patch: &Value) -> Option<Workload> {
    let healthy = json!({"status": {"observedGeneration": "2", "phase": "Healthy", "replicas": 4, "updatedReplicas": 4,
        "readyReplicas": 4, "availableReplicas": 4, "stableRS": "5d8f", "currentPodHash": "5d8f"}});
    read(Kind::Rollout, &healthy, patch)
}

fn clone_set(patch: &Value) -> Option<Workload> {
    let done = json!({"status": {"observedGeneration": 2, "replicas": 4, "readyReplicas": 4, "availableReplicas": 4,
        "updatedReplicas": 4, "updatedReadyReplicas": 4, "updateRevision": "web-5d8f", "currentRevision": "web-5d8f"}});
    read(Kind::CloneSet, &done, patch)
}

#[test]
fn a_template_is_read() {
    for found in [rollout(&json!({})), clone_set(&json!({}))] {
        let found = found.unwrap();
        assert_eq!((found.containers[0].text.as_str(), found.containers.len()), ("app:1", 1));
        assert_eq!(found.stamp("app").unwrap().reference, "app:2");
        assert_eq!((found.rollout.as_deref(), found.selector.as_deref()), (Some("ab12"), Some("app=web")));
        assert_eq!((found.access.service_account.as_str(), found.replicas, found.generation), ("robot", 4, 2));
    }
    assert_eq!(rollout(&json!({})).unwrap().key.to_string(), "Rollout/web");
    assert_eq!(clone_set(&json!({})).unwrap().revision.as_deref(), Some("5d8f"));
    assert!(Workload::from_foreign(Kind::Deployment, &DynamicObject::new("x", &Kind::Deployment.resource())).is_none());
}

#[test]
fn some_objects_have_no_template_to_stamp() {
    #[track_caller]
    fn check(found: Option<&Workload>, expected: bool) {
        assert_eq!(found.is_some(), expected, "{found:?}");
    }
    let reference = json!({"spec": {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "web"}}});
    check(rollout(&reference).as_ref(), false);
    check(rollout(&json!({"spec": {"workloadRef": null}})).as_ref(), true);
    for read in [rollout, clone_set] {
        check(read(&json!({"spec": {"template": null}})).as_ref(), false);
        check(read(&json!({"spec": {"template": {"spec": null}}})).as_ref(), false);
        check(read(&json!({"spec": {"template": {"spec": {"containers": "none"}}}})).as_ref(), false);
        check(read(&json!({"spec": 7})).as_ref(), false);
        check(read(&json!({"status": null})).as_ref(), true);
        check(read(&json!({"status": "x", "spec": {"selector": 7, "replicas": "many"}})).as_ref(), true);
    }
}

#[test]
fn a_rollout_is_complete() {
    #[track_caller]
    fn check(patch: &Value, observed: bool, complete: bool) {
        let found = rollout(patch).unwrap();
        assert_eq!((found.observed, found.complete), (observed, complete), "{patch}");
    }
    let status = |status: Value| json!({"status": status});
    check(&json!({}), true, true);
    check(&status(json!(null)), false, false);
    check(&status(json!({"observedGeneration": "1"})), false, false);
    check(&status(json!({"observedGeneration": "3"})), true, true);
    check(&status(json!({"observedGeneration": "7c9f6"})), false, false);
    check(&status(json!({"observedGeneration": null})), false, false);
    // A pause between two steps, and a promotion that its controller has not seen.
    check(&status(json!({"phase": "Paused", "stableRS": "4b7a"})), true, false);
    check(&status(json!({"controllerPause": true})), true, false);
    check(&status(json!({"controllerPause": true, "pauseConditions": [{"reason": "CanaryPauseStep"}]})), true, true);
    for phase in ["Progressing", "Paused", "Degraded", "Other"] {
        check(&status(json!({"phase": phase})), true, false);
    }
    check(&status(json!({"stableRS": "4b7a"})), true, false);
    check(&status(json!({"stableRS": null})), true, false);
    check(&status(json!({"updatedReplicas": 3})), true, false);
    check(&status(json!({"availableReplicas": 3})), true, false);
    // Before 1.0 there was no phase.
    check(&status(json!({"phase": null})), true, true);
    check(&status(json!({"phase": null, "stableRS": "4b7a"})), true, false);
    check(&json!({"spec": {"replicas": null}, "status": {"updatedReplicas": 1, "availableReplicas": 1}}), true, true);
    check(&json!({"spec": {"replicas": 0}, "status": {"updatedReplicas": 0, "availableReplicas": 0}}), true, true);
}

#[test]
fn a_controller_gives_up() {
    /// The seconds of the time, and why.
    #[track_caller]
    fn check(read: fn(&Value) -> Option<Workload>, status: &Value, expected: Option<(i64, &str)>) {
        let found = read(&json!({"status": status})).unwrap();
        let said = found.exceeded.map(|at| (at.as_second(), found.aborted.as_deref().unwrap_or_default()));
        assert_eq!(said, expected, "{status}");
        assert_eq!(found.aborted.is_some(), expected.is_some_and(|(_, why)| !why.is_empty()), "{status}");
    }
    let condition = |reason: &str| {
        json!({"conditions": [{"type": "Available", "status": "False"},
            {"type": "Progressing", "status": "False", "reason": reason, "message": "why",
                "lastUpdateTime": "1970-01-01T00:00:09Z", "lastTransitionTime": "1970-01-01T00:00:07Z"}]})
    };
    let aborted =
        json!({"abort": true, "abortedAt": "1970-01-01T00:00:05Z", "phase": "Degraded", "message": "assessed Failed"});
    check(rollout, &json!({}), None);
    check(rollout, &aborted, Some((5, "assessed Failed")));
    check(rollout, &condition("RolloutAborted"), Some((9, "why")));
    check(rollout, &json!({"phase": "Paused", "message": "CanaryPauseStep"}), None);
    for read in [rollout, clone_set] {
        check(read, &condition("ProgressDeadlineExceeded"), Some((9, "")));
        check(read, &condition("ReplicaSetUpdated"), None);
        check(read, &json!({"conditions": [{"type": "Progressing", "status": "True"}]}), None);
    }
    assert!(!rollout(&json!({"status": aborted})).unwrap().complete);
}

#[test]
fn a_person_pauses() {
    for (read, spec) in [
        (rollout as fn(&Value) -> Option<Workload>, json!({"paused": true})),
        (clone_set, json!({"updateStrategy": {"paused": true}})),
    ] {
        assert!(read(&json!({"spec": spec})).unwrap().paused);
        assert!(!read(&json!({"status": {"phase": "Paused"}})).unwrap().paused);
    }
}

#[test]
fn a_clone_set_is_complete() {
    #[track_caller]
    fn check(patch: &Value, observed: bool, complete: bool) {
        let found = clone_set(patch).unwrap();
        assert_eq!((found.observed, found.complete, found.unrollable), (observed, complete, None), "{patch}");
    }
    let status = |status: Value| json!({"status": status});
    let partition = |partition: Value, updated: i32| {
        json!({"spec": {"updateStrategy": {"type": "ReCreate", "partition": partition}},
            "status": {"updatedReplicas": updated, "updatedReadyReplicas": updated}})
    };
    check(&json!({}), true, true);
    check(&status(json!(null)), false, false);
    check(&status(json!({"observedGeneration": 1})), false, false);
    check(&status(json!({"updatedReplicas": 3})), true, false);
    check(&status(json!({"updatedReadyReplicas": 3})), true, false);
    check(&status(json!({"availableReplicas": 3, "readyReplicas": 3})), true, false);
    // One of the old is there yet.
    check(&status(json!({"replicas": 5})), true, false);
    check(&partition(json!(1), 3), true, true);
    check(&partition(json!(1), 2), true, false);
    check(&partition(json!(0), 3), true, false);
    check(&partition(json!("50%"), 2), true, true);
    check(&partition(json!("50%"), 1), true, false);
    check(&partition(json!("100%"), 0), true, true);
    // What the controller itself made of it counts.
    let told = json!({"status": {"expectedUpdatedReplicas": 3, "updatedReplicas": 3, "updatedReadyReplicas": 3}});
    check(&told, true, true);
}

#[test]
fn a_partition_keeps_pods() {
    fn check(value: &Value, replicas: i32, expected: i32) {
        assert_eq!(partition(Some(value), replicas), expected, "{value} of {replicas}");
    }
    check(&json!(2), 5, 2);
    check(&json!(9), 5, 5);
    check(&json!(-1), 5, 0);
    check(&json!("30%"), 5, 2);
    check(&json!("99%"), 5, 4);
    check(&json!("99%"), 1, 1);
    check(&json!("100%"), 5, 5);
    check(&json!("900%"), 5, 5);
    check(&json!("0%"), 5, 0);
    check(&json!("many"), 5, 0);
    check(&json!([]), 5, 0);
    check(&json!("50%"), 0, 0);
    assert_eq!(partition(None, 5), 0);
}

#[test]
fn a_clone_set_that_changes_pods_in_place_is_not_rolled() {
    let of =
        |kind: Value| clone_set(&json!({"spec": {"updateStrategy": {"type": kind}}})).unwrap().unrollable.is_some();
    assert_eq!(["InPlaceIfPossible", "InPlaceOnly", "ReCreate"].map(|kind| of(json!(kind))), [true, true, false]);
    assert!(!of(json!(null)));
    assert!(rollout(&json!({"spec": {"updateStrategy": {"type": "InPlaceOnly"}}})).unwrap().unrollable.is_none());
}

#[test]
fn pods_were_denied() {
    #[track_caller]
    fn check(found: Option<Workload>, expected: Option<Denied>) {
        assert_eq!(found.unwrap().denied, expected);
    }
    let failed = |kind: &str, message: &str| json!({"status": {"conditions": [{"type": kind, "status": "True", "message": message}]}});
    let entry = r#"webhook "labelled-fail.kimup.cloudavenue.io""#;
    let (unreachable, denied) = (format!("failed calling {entry}: refused"), format!("admission {entry} denied"));
    check(rollout(&failed("ReplicaFailure", &unreachable)), Some(Denied::Unreachable));
    check(rollout(&failed("ReplicaFailure", &denied)), Some(Denied::ByUs));
    check(rollout(&failed("ReplicaFailure", "exceeded quota")), None);
    check(rollout(&json!({"status": {"replicas": 0}})), None);
    check(clone_set(&failed("FailedScale", &unreachable)), Some(Denied::Unreachable));
    check(clone_set(&failed("FailedScale", "exceeded quota")), None);
    check(clone_set(&json!({"status": {"replicas": 3}})), Some(Denied::Perhaps));
    assert_eq!(clone_set(&failed("FailedUpdate", "x")).unwrap().trouble.as_deref(), Some("x"));
    assert_eq!(rollout(&failed("ReplicaFailure", "x")).unwrap().trouble.as_deref(), Some("x"));
}
