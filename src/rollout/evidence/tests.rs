use super::*;
use serde_json::json;

#[test]
fn a_pod_tells_what_is_wrong() {
    #[track_caller]
    fn check(status: &Value, expected: Option<&str>) {
        let pod = json!({"metadata": {"name": "web-1"}, "spec": {"nodeName": "n", "containers": []}, "status": status});
        let state = pod_state(Kind::Deployment, &serde_json::from_value(pod).unwrap());
        assert_eq!(state.trouble.as_deref(), expected, "{status}");
    }
    let container = |state: Value, restarts: i32, last: Value| {
        json!({"containerStatuses": [{"name": "app", "image": "", "imageID": "", "ready": false, "restartCount": restarts,
            "state": state, "lastState": last}]})
    };
    let waiting = |reason: &str, message: Option<&str>| json!({"waiting": {"reason": reason, "message": message}});
    let ended = |code: i32, reason: &str| json!({"terminated": {"exitCode": code, "reason": reason}});
    let check_container =
        |state: Value, restarts, last: Value, expected: &str| check(&container(state, restarts, last), Some(expected));
    check_container(
        waiting("CrashLoopBackOff", Some("back-off 5m0s")),
        5,
        ended(137, "OOMKilled"),
        "CrashLoopBackOff: container app of Pod web-1, restarted 5 times, last ended with exit code 137 (OOMKilled)",
    );
    check_container(
        waiting("ImagePullBackOff", Some("no such image")),
        0,
        json!({}),
        "ImagePullBackOff: container app of Pod web-1: no such image",
    );
    let no_config = "CreateContainerConfigError: container app of Pod web-1";
    check_container(waiting("CreateContainerConfigError", None), 0, json!({}), no_config);
    check_container(
        waiting("ContainerCreating", None),
        0,
        json!({}),
        "ContainerCreating: container app of Pod web-1 has not started",
    );
    let runs =
        "NotReady: container app of Pod web-1 runs and is not ready, restarted once, last ended with exit code 1";
    check_container(json!({"running": {}}), 1, ended(1, "Error"), runs);
    check_container(
        ended(2, "Error"),
        0,
        json!({}),
        "Terminated: container app of Pod web-1, last ended with exit code 2",
    );
    // An init container comes first.
    let init = json!({"name": "init", "image": "", "imageID": "", "ready": false, "restartCount": 0, "state": waiting("ErrImagePull", None)});
    let mut status = container(waiting("PodInitializing", None), 0, json!({}));
    status["initContainerStatuses"] = json!([init]);
    check(&status, Some("ErrImagePull: container init of Pod web-1"));
    check(
        &json!({"phase": "Failed", "reason": "Evicted", "message": "low on disk"}),
        Some("Evicted: Pod web-1 failed: low on disk"),
    );
    check(&json!({}), None);
    let mut well = container(json!({"running": {}}), 3, json!({}));
    well["conditions"] = json!([{"type": "Ready", "status": "True"}]);
    check(&well, None);
}

#[test]
fn templates_are_compared_without_what_kimup_and_controllers_write() {
    #[track_caller]
    fn check(a: &Value, b: &Value, same: bool) {
        let template = |metadata: &Value| split(json!({"metadata": metadata, "spec": {"containers": []}})).1;
        assert_eq!(template(a) == template(b), same, "{a} {b}");
    }
    let plain = json!({"labels": {"app": "web"}});
    let stamped = json!({"labels": {"app": "web", "kimup.cloudavenue.io/rollout": "ab", "pod-template-hash": "5d"},
        "annotations": {"stamp.kimup.cloudavenue.io/app": "app:1 app:2", "kubectl.kubernetes.io/restartedAt": "now"}});
    check(&plain, &stamped, true);
    check(&plain, &json!({"labels": {"app": "api"}}), false);
    check(&plain, &json!({"labels": {"app": "web"}, "annotations": {"config": "2"}}), false);
    let (stamps, _) = split(json!({"metadata": stamped}));
    assert_eq!(stamps["app"].reference, "app:2");
}
