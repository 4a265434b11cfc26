//! Scenario c and the decisions of people: what is rolled, how often, and what is left alone.

mod decisions;
mod limits;
mod newer;

use kube::api::{Api, ApiResource, DynamicObject, ListParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::holds::{at_rest, done_to, object};
use crate::support::{Bed, Shop};

/// The audit log's name for kimup.
const KIMUP: &str = "system:serviceaccount:kimup-system:kimup";

/// Objects of `apps/v1` of any kind, so that one test speaks of all.
fn apps(shop: &Shop, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", kind));
    Api::namespaced_with(shop.client.clone(), &shop.namespace, &resource)
}

/// A workload with two Pods (a DaemonSet has one on each of the two Nodes), opted in by its Pod template.
async fn create(shop: &Shop, kind: &str, name: &str, containers: &Value) {
    let mut workload = json!({
        "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
        "spec": {
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": {crate::support::ENABLED: "true"}},
                "spec": {"containers": containers, "terminationGracePeriodSeconds": 0},
            },
        },
    });
    match kind {
        "Deployment" => workload["spec"]["replicas"] = json!(2),
        "StatefulSet" => {
            workload["spec"]["replicas"] = json!(2);
            workload["spec"]["serviceName"] = json!(name);
        }
        _ => {}
    }
    let workload = serde_json::from_value(workload).unwrap();
    apps(shop, kind).create(&PostParams::default(), &workload).await.unwrap();
}

/// How many revisions a workload has had: `ReplicaSets` or `ControllerRevisions`.
async fn revisions(shop: &Shop, kind: &str, app: &str) -> usize {
    let of = if kind == "Deployment" { "ReplicaSet" } else { "ControllerRevision" };
    apps(shop, of).list(&ListParams::default().labels(&format!("app={app}"))).await.unwrap().items.len()
}

/// The requests by which kimup changed a workload, as the audit log has them.
fn writes(bed: &Bed, shop: &Shop, name: &str) -> usize {
    let log = bed.cluster.audit_log_with(&shop.namespace).unwrap();
    let ours = log.iter().filter(|event| {
        event["user"]["username"] == KIMUP
            && event["objectRef"]["namespace"] == *shop.namespace
            && event["objectRef"]["name"] == name
            && event["objectRef"]["apiGroup"] == "apps"
            && matches!(event["verb"].as_str(), Some("patch" | "update"))
            && event["responseStatus"]["code"] == 200
    });
    ours.count()
}

/// Shows that nothing happens to a workload in `count` further syncs of an Image.
async fn nothing_happens(shop: &Shop, kind: &str, name: &str, image: &str, count: usize) {
    let before = at_rest(shop, kind, name, image).await;
    let status = shop.status(image).await;
    for _ in 0..count {
        shop.sync(image).await;
    }
    let after = object(shop, kind, name).await;
    assert_eq!(done_to(&before), done_to(&after), "{before} {after}");
    let timeless = |mut status: kimup::api::ImageStatus| {
        (status.time, status.last_handled_request) = (None, None);
        status
    };
    assert_eq!(timeless(status), timeless(shop.status(image).await));
}

fn count(lines: &[String], wanted: &[&str]) -> usize {
    lines.iter().filter(|line| wanted.iter().all(|part| line.contains(part))).count()
}
