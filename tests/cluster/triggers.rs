//! When an Image is synced, and that a sync that changes nothing writes nothing.

use k8s_openapi::api::apps::v1::Deployment;
use kimup::api::{Image, ImageStatus};
use kimup_testbed::{Cluster, eventually};
use kube::ResourceExt;
use serde_json::{Value, json};

use crate::holds::done_to;
use crate::support::{Bed, DEADLINE, Shop, opted_in};

const ACTION: &str = "kimup.cloudavenue.io/action";
const REQUESTED_AT: &str = "kimup.cloudavenue.io/requestedAt";

/// What kimup wrote in a namespace so far, as audit Events.
fn writes(cluster: &Cluster, namespace: &str) -> Vec<Value> {
    let mut log = cluster.audit_log_with(namespace).unwrap();
    log.retain(|event| {
        event["user"]["username"] == "system:serviceaccount:kimup-system:kimup"
            && event["objectRef"]["namespace"] == namespace
            && !["get", "list", "watch"].iter().any(|verb| event["verb"] == *verb)
            // One that came too late is written again.
            && event["responseStatus"]["code"] != 409
    });
    log
}

/// The writes in a form to compare: `patch images/status web`.
fn said(writes: &[Value]) -> Vec<String> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let say = |event: &Value| {
        let object = &event["objectRef"];
        let resource = [text(&object["resource"]), text(&object["subresource"])];
        let resource = resource.join("/");
        format!("{} {} {}", text(&event["verb"]), resource.trim_end_matches('/'), text(&object["name"]))
    };
    writes.iter().map(say).collect()
}

async fn version(shop: &Shop, name: &str) -> String {
    shop.api::<Image>().get(name).await.unwrap().resource_version().unwrap()
}

/// Waits until what a first sync has to say is said, so that a comparison starts from rest.
async fn at_rest(shop: &Shop, name: &str, tag: &str) {
    shop.settles(name, tag).await;
    eventually(DEADLINE, "the Event of the first tag", async || {
        shop.events("Image", name).await.iter().any(|e| e.starts_with("TagSelected"))
    })
    .await;
    // Which the API server logs a moment after it has answered.
    let cluster = Bed::shared().await.cluster;
    let there = shop.events("Image", name).await.len();
    let logged = || said(&writes(cluster, &shop.namespace)).iter().filter(|write| write.contains(" events")).count();
    eventually(DEADLINE, "its Events are logged", async || logged() >= there).await;
}

async fn syncs_by_itself(name: &str, trigger: Value) {
    let bed = Bed::shared().await;
    let registry = &bed.registries.scripted;
    registry.set_tags(name, &["1.0.0"]);
    let shop = bed.shop(name, &[]).await;
    shop.create_image("web", &json!({"spec": {"image": registry.image(name), "triggers": [trigger]}})).await;
    at_rest(&shop, "web", "1.0.0").await;
    let (lists, before) = (registry.lists(name), (version(&shop, "web").await, said(&writes(bed.cluster, name))));
    eventually(DEADLINE, "ten more syncs", async || registry.lists(name) >= lists + 10).await;
    let after = (version(&shop, "web").await, said(&writes(bed.cluster, name)));
    assert_eq!(after, before, "syncs that change nothing write nothing");
    registry.set_tags(name, &["1.0.0", "1.0.1"]);
    shop.settles("web", "1.0.1").await;
}

#[tokio::test]
async fn an_interval_syncs_again_by_itself() {
    syncs_by_itself("t-interval", json!({"type": "interval", "value": "1s"})).await;
}

#[tokio::test]
async fn a_cron_line_syncs_again_by_itself() {
    syncs_by_itself("t-crontab", json!({"type": "crontab", "value": "* * * * * *"})).await;
}

#[tokio::test]
async fn requests_are_answered_once() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.scripted;
    registry.set_tags("t-request", &["1.0.0"]);
    let shop = bed.shop("t-request", &[]).await;
    shop.create_image("web", &json!({"spec": {"image": registry.image("t-request")}})).await;
    at_rest(&shop, "web", "1.0.0").await;
    let lists = registry.lists("t-request");
    let before = shop.status("web").await;

    shop.annotate_image("web", ACTION, Some("refresh")).await;
    eventually(DEADLINE, "refresh is answered and removed", async || {
        !shop.api::<Image>().get("web").await.unwrap().annotations().contains_key(ACTION)
    })
    .await;
    assert_eq!(registry.lists("t-request"), lists + 1, "one listing");
    let status = shop.status("web").await;
    assert!(status.time >= before.time, "{status:?}");
    let timeless = |s: &ImageStatus| ImageStatus { time: None, ..s.clone() };
    assert_eq!(timeless(&status), timeless(&before));

    for (value, expected) in [("a", 2), ("b", 3), ("b", 3)] {
        shop.annotate_image("web", REQUESTED_AT, Some(value)).await;
        let answered = |s: &ImageStatus| s.last_handled_request.as_deref() == Some(value);
        shop.status_is("web", "answers requestedAt", answered).await;
        assert_eq!(registry.lists("t-request"), lists + expected, "{value}");
    }
    // A newer tag that nobody asked about waits for its trigger; the refresh finds it.
    registry.set_tags("t-request", &["1.0.0", "1.0.1"]);
    assert_eq!(shop.status("web").await.tag.as_deref(), Some("1.0.0"));
    shop.annotate_image("web", ACTION, Some("refresh")).await;
    shop.settles("web", "1.0.1").await;
}

#[tokio::test]
async fn ten_requested_syncs_write_ten_answers_and_nothing_else() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("t-ten", &["1.0.0", "1.1.0"]).await.unwrap();
    let image = registry.image("t-ten");
    let shop = bed.shop("t-ten", &[]).await;
    shop.create_image("web", &json!({"spec": {"image": image}})).await;
    at_rest(&shop, "web", "1.1.0").await;
    shop.create_deployment("web", &format!("{image}:1.0.0"), &opted_in()).await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    let settled = |s: &ImageStatus| s.workloads.as_deref() == Some("1/1") && !s.revisions.is_empty();
    shop.status_is("web", "knows its workload", settled).await;
    let before = shop.sync("web").await;
    let deployment = shop.api::<Deployment>().get("web").await.unwrap();
    let said_before = said(&writes(bed.cluster, "t-ten"));
    let mut after = before.clone();
    for _ in 0..10 {
        after = shop.sync("web").await;
    }
    let timeless = |s: ImageStatus| ImageStatus { time: None, last_handled_request: None, ..s };
    assert_eq!(timeless(after), timeless(before));
    // The API server logs a request a moment after it has answered it.
    eventually(DEADLINE, "all writes are logged", async || {
        let new = said(&writes(bed.cluster, "t-ten")).split_off(said_before.len());
        assert!(new.len() <= 10 && new.iter().all(|write| write == "patch images/status web"), "{new:?}");
        if new.len() == 10 { Ok(()) } else { Err(format!("{new:?}")) }
    })
    .await;
    let now = shop.api::<Deployment>().get("web").await.unwrap();
    let done = |deployment| done_to(&serde_json::to_value::<Deployment>(deployment).unwrap());
    assert_eq!(done(now), done(deployment), "nothing touched the Deployment");
    assert_eq!(shop.revisions("web").await, 1);
}
