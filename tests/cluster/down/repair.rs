//! Pods that came to be while kimup was away are named in an Event and replaced, once; those that nobody replaces are named.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet, StatefulSet};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kimup_testbed::{Balancer, KimupProcess, WebhookUrl, eventually};
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::holds::said;
use crate::own::{Own, admits};
use crate::support::{DEADLINE, ENABLED, FAILURE_POLICY, Shop, image_of, pod};

/// Pods of each Deployment that come to be without kimup: more than an Event names.
const MANY: usize = 7;

async fn scale(shop: &Shop, replicas: usize) {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    for app in ["stamped", "fresh"] {
        shop.api::<Deployment>().patch(app, &PatchParams::default(), &patch).await.unwrap();
    }
    shop.api::<StatefulSet>().patch("db", &PatchParams::default(), &patch).await.unwrap();
}

/// Names of the Pods that run this image.
async fn who_runs(shop: &Shop, reference: &str) -> Vec<String> {
    let pods = shop.pods().await.into_iter().filter(|pod| image_of(pod, "app") == reference);
    pods.filter_map(|pod| pod.metadata.name).collect()
}

async fn create_stateful_set(shop: &Shop, text: &str) {
    let template = json!({"metadata": {"labels": {"app": "db"}}, "spec": {
        "containers": [{"name": "app", "image": text}], "terminationGracePeriodSeconds": 0}});
    let set = json!({"metadata": {"name": "db"}, "spec": {"replicas": 2, "serviceName": "db",
        "podManagementPolicy": "Parallel", "selector": {"matchLabels": {"app": "db"}}, "template": template}});
    let set: StatefulSet = serde_json::from_value(set).unwrap();
    shop.api::<StatefulSet>().create(&PostParams::default(), &set).await.unwrap();
}

/// What nothing that kimup rolls makes; Pods of an image that is never pulled, for a Job's would be done at once.
async fn create_alone(shop: &Shop, broken: &str) {
    shop.create_pod(&pod("alone", broken)).await.unwrap();
    let template: Value = json!({"spec": {"restartPolicy": "Never", "containers": [{"name": "app", "image": broken}]}});
    let job: Job =
        serde_json::from_value(json!({"metadata": {"name": "once"}, "spec": {"template": template}})).unwrap();
    shop.api::<Job>().create(&PostParams::default(), &job).await.unwrap();
}

/// Whether one Event on an object, and no other, says that it was missed, with these words.
async fn told_once(shop: &Shop, kind: &str, name: &str, words: &[&str]) {
    let events = shop.events(kind, name).await;
    let told = events.iter().filter(|e| e.starts_with("PodsUnmutated") && words.iter().all(|word| e.contains(word)));
    assert_eq!(told.count(), 1, "{kind} {name} {words:?}: {events:?}");
}

#[tokio::test]
async fn pods_that_came_to_be_without_kimup_are_replaced_once() {
    let own = Own::start().await;
    let service = Balancer::start(&[]).await.unwrap();
    let mut options = own.options("repair").await;
    options.webhook_url = WebhookUrl::At(service.address());
    let mut kimup = KimupProcess::start(options).await.unwrap();
    service.set_backends(&[kimup.webhook()]);
    own.registry.push("app", "1.0.0").await.unwrap();
    own.registry.push("broken/app", "1.0.0").await.unwrap();
    let (image, broken) = (own.registry.image("app"), own.registry.image("broken/app"));
    let (text, wanted) = (format!("{image}:0.9.0"), format!("{image}:1.1.0"));
    let shop = Shop::new(&own.cluster, "ignoring", &[(ENABLED, "true"), (FAILURE_POLICY, "ignore")], &[]).await;
    shop.create_image("app", &json!({"spec": {"image": image}})).await;
    shop.create_image("broken", &json!({"spec": {"image": broken}})).await;
    shop.settles("app", "1.0.0").await;
    shop.settles("broken", "1.0.0").await;
    admits(&shop, &text, &format!("{image}:1.0.0")).await;
    shop.create_deployment("stamped", &text, &json!({})).await;
    create_stateful_set(&shop, &text).await;
    for app in ["stamped", "db"] {
        shop.pods_run(app, 2, &format!("{image}:1.0.0")).await;
    }
    own.registry.push("app", "1.1.0").await.unwrap();
    shop.sync("app").await;
    shop.settles("app", "1.1.0").await;
    shop.create_deployment("fresh", &text, &json!({})).await;
    for app in ["stamped", "db", "fresh"] {
        shop.pods_run(app, 2, &wanted).await;
    }
    let before = shop.create_pod(&pod("before", &format!("{broken}:0.9.0"))).await.unwrap();
    assert_eq!(image_of(&before, "app"), format!("{broken}:1.0.0"));
    shop.sync("app").await;
    assert_eq!((shop.revisions("stamped").await, shop.revisions("fresh").await), (2, 1));

    // Times are of whole seconds: Pods of the same moment may have come before the tag.
    eventually(DEADLINE, "the tag has been there for a while", async || {
        let finished: jiff::Timestamp = shop.status("app").await.history[0].finished.parse().unwrap();
        jiff::Timestamp::now().duration_since(finished) > jiff::SignedDuration::from_secs(4)
    })
    .await;
    kimup.kill();
    scale(&shop, 2 + MANY).await;
    shop.create_deployment("new", &text, &json!({})).await;
    create_alone(&shop, &format!("{broken}:0.9.0")).await;
    let wrong = eventually(DEADLINE, "Pods run their own tag", async || {
        let wrong = [who_runs(&shop, &text).await, who_runs(&shop, &format!("{broken}:0.9.0")).await];
        if wrong[0].len() == 3 * MANY + 2 && wrong[1].len() == 2 { Ok(wrong) } else { Err(format!("{wrong:?}")) }
    })
    .await;
    let kimup = kimup.start_again().await.unwrap();
    service.set_backends(&[kimup.webhook()]);
    for (kind, app, count) in [
        ("Deployment", "stamped", 2 + MANY),
        ("Deployment", "fresh", 2 + MANY),
        ("StatefulSet", "db", 2 + MANY),
        ("Deployment", "new", 2),
    ] {
        shop.pods_run(app, count, &wanted).await;
        let mut names: Vec<&str> = wrong[0].iter().map(String::as_str).filter(|name| name.starts_with(app)).collect();
        names.sort_unstable();
        let more = format!("and {} more", names.len().saturating_sub(5));
        let first = &names[..names.len().min(5)];
        let words: Vec<&str> = first.iter().copied().chain((names.len() > 5).then_some(more.as_str())).collect();
        told_once(&shop, kind, app, &words).await;
        told_once(&shop, "Image", "app", &[&format!("{kind}/{app}: "), first[0]]).await;
    }
    nobody_replaces(&shop, &wrong[1]).await;
    nothing_more_happens(&shop).await;
    drop(kimup);
}

/// A Pod alone and a Job's are named, both in one Event, and stay; one that kimup answered for is not named.
async fn nobody_replaces(shop: &Shop, wrong: &[String]) {
    let words: Vec<&str> = wrong.iter().map(String::as_str).collect();
    said(shop, "Image", "broken", &["PodsUnmutated"]).await;
    told_once(shop, "Image", "broken", &words).await;
    told_once(shop, "Image", "broken", &["no rollout replaces them"]).await;
    let events = shop.events("Image", "broken").await;
    assert!(events.iter().all(|event| !event.contains("before")), "{events:?}");
    for name in wrong {
        assert!(shop.api::<Pod>().get(name).await.unwrap().metadata.deletion_timestamp.is_none());
    }
}

/// One rollout each, one Event each, and then no more.
async fn nothing_more_happens(shop: &Shop) {
    let unmutated = async || {
        let mut all = Vec::new();
        for name in ["app", "broken"] {
            all.extend(shop.events("Image", name).await.into_iter().filter(|e| e.starts_with("PodsUnmutated")));
        }
        all
    };
    let before = unmutated().await;
    assert_eq!(before.len(), 5, "{before:?}");
    let set = shop.api::<StatefulSet>().get("db").await.unwrap().metadata.generation;
    for _ in 0..3 {
        shop.sync("app").await;
        shop.sync("broken").await;
    }
    assert_eq!(unmutated().await, before);
    let revisions = [shop.revisions("stamped").await, shop.revisions("fresh").await, shop.revisions("new").await];
    assert_eq!(revisions, [3, 2, 2]);
    assert_eq!(shop.api::<StatefulSet>().get("db").await.unwrap().metadata.generation, set);
    let sets = shop.api::<ReplicaSet>().list(&ListParams::default().labels("app=stamped")).await.unwrap();
    let at_work = sets.items.iter().filter(|s| s.spec.replicas != Some(0));
    assert_eq!(at_work.count(), 1);
}
