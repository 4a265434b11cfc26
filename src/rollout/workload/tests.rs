use super::*;
use crate::api::annotations::ENABLED;
use serde_json::json;

fn deployment(patch: &Value) -> Deployment {
    let mut object = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 2},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "web"}, "matchExpressions": [{"key": "tier", "operator": "In", "values": ["a", "b"]}]},
            "template": {"metadata": {}, "spec": {
                "initContainers": [{"name": "init", "image": "busybox:1"}],
                "containers": [{"name": "app", "image": "app:1.0.0"}]
            }}
        },
        "status": {"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}
    });
    json_patch::merge(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

#[test]
fn a_deployment_is_complete() {
    fn check(status: &Value, expected: bool) {
        let workload = Workload::from_deployment(&deployment(&json!({"status": status}))).unwrap();
        assert_eq!(workload.complete, expected, "{status}");
    }
    check(&json!({}), true);
    check(&json!({"observedGeneration": 1}), false);
    check(&json!({"updatedReplicas": 1}), false);
    check(&json!({"replicas": 3}), false);
    check(&json!({"availableReplicas": 1}), false);
}

#[test]
fn a_stateful_set_is_complete() {
    fn check(spec: &Value, status: &Value, expected: bool) {
        let mut object = json!({
            "metadata": {"name": "db", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 2},
            "spec": {"replicas": 3, "serviceName": "db", "selector": {"matchLabels": {"app": "db"}},
                "template": {"spec": {"containers": [{"name": "db", "image": "db:1"}]}}},
            "status": {"observedGeneration": 2, "replicas": 3, "updatedReplicas": 3, "readyReplicas": 3,
                "currentRevision": "db-2", "updateRevision": "db-2"}
        });
        json_patch::merge(&mut object, &json!({"spec": spec, "status": status}));
        let workload = Workload::from_stateful_set(&serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(workload.complete, expected, "{spec} {status}");
    }
    check(&json!({}), &json!({}), true);
    check(&json!({}), &json!({"currentRevision": "db-1"}), false);
    check(&json!({}), &json!({"readyReplicas": 2}), false);
    check(&json!({"updateStrategy": {"type": "OnDelete"}}), &json!({"updatedReplicas": 0}), true);
    let partition = json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 2}}});
    check(&partition, &json!({"updatedReplicas": 1, "currentRevision": "db-1"}), true);
    check(&partition, &json!({"updatedReplicas": 0, "currentRevision": "db-1"}), false);
}

#[test]
fn a_workload_whose_pods_were_denied() {
    fn deployed(message: &str, expected: Option<Denied>) {
        let condition =
            json!({"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate", "message": message});
        let workload = Workload::from_deployment(&deployment(&json!({"status": {"conditions": [condition]}})));
        assert_eq!(workload.unwrap().denied, expected, "{message}");
    }
    let entry = r#"webhook "labelled-fail.kimup.cloudavenue.io""#;
    deployed(&format!("Internal error occurred: failed calling {entry}: refused"), Some(Denied::Unreachable));
    deployed(&format!("admission {entry} denied the request: kimup: no tag yet"), Some(Denied::ByUs));
    deployed(r#"admission webhook "other.io" denied the request: kimup.cloudavenue.io"#, None);
    let check =
        "ValidatingAdmissionPolicy 'kimup-stamp-check' with binding 'kimup-stamp-check' denied request: container app";
    deployed(&format!("pods \"web-1\" is forbidden: {check}"), Some(Denied::Unreachable));
    deployed("exceeded quota", None);
}

#[test]
fn a_stateful_set_lacks_pods() {
    fn check(policy: &str, replicas: i32, ready: i32, expected: Option<Denied>) {
        let object = json!({
            "metadata": {"name": "db", "namespace": "shop", "uid": "u", "resourceVersion": "7"},
            "spec": {"replicas": 3, "podManagementPolicy": policy, "selector": {}, "template": {"spec": {"containers": []}}},
            "status": {"replicas": replicas, "readyReplicas": ready},
        });
        let workload = Workload::from_stateful_set(&serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(workload.denied, expected, "{policy} {replicas} {ready}");
    }
    check("OrderedReady", 3, 1, None);
    check("OrderedReady", 1, 1, Some(Denied::Perhaps));
    check("OrderedReady", 1, 0, None);
    check("OrderedReady", 0, 0, Some(Denied::Perhaps));
    check("Parallel", 2, 0, Some(Denied::Perhaps));
}

#[test]
fn a_template_is_read() {
    let workload = Workload::from_deployment(&deployment(&json!({}))).unwrap();
    let containers: Vec<_> = workload.containers.iter().map(|c| (c.name.as_str(), c.text.as_str(), c.init)).collect();
    assert_eq!(containers, [("init", "busybox:1", true), ("app", "app:1.0.0", false)]);
    assert_eq!(workload.selector.as_deref(), Some("app=web,tier in (a,b)"));
    assert_eq!(workload.key.to_string(), "Deployment/web");
}

#[test]
fn stamps_have_owners() {
    let fields = json!({"f:spec": {"f:template": {"f:metadata": {"f:annotations": {
        "f:stamp.kimup.cloudavenue.io/app": {}, "f:other": {}}}}}});
    let object = deployment(&json!({"metadata": {"managedFields": [
        {"manager": "kimup-rollout", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields},
        {"manager": "kubectl-rollout", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": fields},
        {"manager": "helm", "operation": "Update", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}}},
    ]}}));
    let workload = Workload::from_deployment(&object).unwrap();
    let owners: Vec<_> = workload.stamp_owners["app"].iter().map(String::as_str).collect();
    assert_eq!(owners, ["kimup-rollout", "kubectl-rollout"]);
}

#[test]
fn who_changed_it_last_is_known() {
    #[track_caller]
    fn check(entries: &[(&str, &str, &str)], expected: Option<&str>) {
        let entry = |(manager, second, subresource): &(&str, &str, &str)| json!({"manager": manager, "time": format!("2026-01-01T00:00:{second}Z"), "subresource": subresource});
        let entries: Vec<Value> = entries.iter().map(entry).collect();
        let object = deployment(&json!({"metadata": {"managedFields": entries}}));
        assert_eq!(Workload::from_deployment(&object).unwrap().changed_by.as_deref(), expected);
    }
    check(&[], None);
    check(&[("kimup-rollout", "09", "")], None);
    check(&[("helm", "01", ""), ("flux", "02", ""), ("kubectl", "01", "")], Some("flux"));
    check(&[("flux", "02", ""), ("kimup-rollout", "03", ""), ("kcm", "04", "status")], Some("flux"));
}

#[test]
fn stamps_have_a_time() {
    fn check(entries: &[(&str, &str, bool)], expected: Option<&str>) {
        let entry = |(manager, time, stamps): &(&str, &str, bool)| {
            let key = if *stamps { "f:stamp.kimup.cloudavenue.io/app" } else { "f:other" };
            json!({"manager": manager, "time": time, "fieldsType": "FieldsV1",
                "fieldsV1": {"f:spec": {"f:template": {"f:metadata": {"f:annotations": {key: {}}}}}}})
        };
        let entries: Vec<Value> = entries.iter().map(entry).collect();
        let object = deployment(&json!({"metadata": {"managedFields": entries}}));
        let found = Workload::from_deployment(&object).unwrap().stamped_at;
        assert_eq!(found, expected.map(|time| time.parse().unwrap()), "{entries:?}");
    }
    let (early, late) = ("2026-01-01T00:00:00Z", "2026-01-01T00:01:00Z");
    check(&[], None);
    check(&[("kimup-rollout", early, true)], Some(early));
    check(&[("kimup-rollout", early, true), ("kubectl-rollout", late, true)], Some(early));
    check(&[("kimup-rollout", early, true), ("kimup-rollout", late, false)], Some(early));
    check(&[("kimup-rollout", late, true), ("kimup-rollout", early, true)], Some(late));
    check(&[("kubectl-rollout", late, true)], None);
}

#[test]
fn a_container_follows() {
    fn check(template: &[(&str, &str)], own: &[(&str, &str)], namespace: bool, expected: Option<bool>) {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let mut workload = Workload::from_deployment(&deployment(&json!({}))).unwrap();
        workload.template_annotations = map(template);
        workload.annotations = map(own);
        let settings = NamespaceSettings { enabled: namespace, ..NamespaceSettings::default() };
        assert_eq!(workload.follows("app", settings).ok(), expected, "{template:?} {own:?} {namespace}");
    }
    let yes = &[(ENABLED, "true")][..];
    let no = &[(ENABLED, "false")][..];
    check(&[], &[], false, Some(false));
    check(&[], &[], true, Some(true));
    check(&[], yes, false, Some(true));
    check(yes, &[], false, Some(true));
    check(no, yes, true, Some(false));
    check(yes, no, false, Some(true));
    check(&[], no, true, Some(false));
    check(&[("stamp.kimup.cloudavenue.io/app", "a:1 a:2")], &[], false, Some(false));
    check(&[(ENABLED, "on")], &[], true, None);
    // One container's own word.
    check(&[("enabled.kimup.cloudavenue.io/app", "false")], yes, true, Some(false));
    check(&[], &[("enabled.kimup.cloudavenue.io/app", "true")], false, Some(true));
    check(no, &[("enabled.kimup.cloudavenue.io/app", "true")], false, Some(false));
    check(&[("enabled.kimup.cloudavenue.io/other", "false")], yes, true, Some(true));
    check(&[], &[("kimup.cloudavenue.io/policy", "semver")], false, Some(true));
}
