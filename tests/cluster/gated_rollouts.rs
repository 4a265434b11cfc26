//! Gates that close while a rollout is under way, and one that opens while kimup is down.

use jiff::{Timestamp, ToSpan};
use k8s_openapi::api::apps::v1::Deployment;
use kimup_testbed::{Balancer, KimupProcess, WebhookUrl, eventually};
use kube::ResourceExt;
use kube::api::ListParams;
use serde_json::json;

use crate::gates::{conditions, denied_until, edit, push};
use crate::own::{Own, READY_AFTER, admits, leads};
use crate::support::{Bed, DEADLINE, ENABLED, Shop, opted_in};

const STAMP: &str = "stamp.kimup.cloudavenue.io/app";

/// The Deployments that are stamped.
async fn stamped(shop: &Shop) -> Vec<String> {
    let all = shop.api::<Deployment>().list(&ListParams::default()).await.unwrap().items;
    let annotations = |d: &Deployment| d.spec.template.metadata.clone().and_then(|m| m.annotations).unwrap_or_default();
    all.iter().filter(|d| annotations(d).contains_key(STAMP)).map(ResourceExt::name_any).collect()
}

async fn pending_events(shop: &Shop) -> usize {
    shop.events("Image", "web").await.iter().filter(|e| e.starts_with("TagPending")).count()
}

fn soon(seconds: i64) -> Timestamp {
    Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap()
}

#[tokio::test]
async fn what_has_started_ends_and_nothing_starts() {
    let name = "gate-middle";
    let bed = Bed::shared().await;
    push(name, "1.0.0").await;
    let image = bed.registries.open.image(name);
    let shop = bed.shop(name, &[]).await;
    shop.create_image("web", &json!({"spec": {"image": image, "baseTag": "1.0.0"}})).await;
    let template = json!({"metadata": {"annotations": {ENABLED: "true", READY_AFTER: "5s"}}});
    for app in ["a", "b"] {
        let patch = json!({"spec": {"replicas": 1, "template": template}});
        shop.create_deployment(app, &format!("{image}:1.0.0"), &patch).await;
    }
    shop.status_is("web", "both run", |s| s.workloads.as_deref() == Some("2/2") && s.rollout.is_none()).await;

    push(name, "1.1.0").await;
    shop.sync("web").await;
    let first =
        eventually(DEADLINE, "the first one is stamped", async || stamped(&shop).await.pop().ok_or("none is")).await;
    edit(&shop, &json!({"suspend": true})).await;
    let half = shop
        .status_is("web", "the first one has ended", |s| {
            s.workloads.as_deref() == Some("1/2") && s.conditions.iter().all(|c| c.type_ != "Reconciling")
        })
        .await;
    assert_eq!(half.rollout.map(|r| r.tag).as_deref(), Some("1.1.0"));
    shop.pods_run(&first, 1, &format!("{image}:1.1.0")).await;
    for _ in 0..3 {
        let status = shop.sync("web").await;
        let (pending, ready) = conditions(&status);
        assert_eq!(pending.as_deref(), Some("Suspended: 1.1.0 waits: spec.suspend is set"));
        assert_eq!((status.tag.as_deref(), ready.as_str()), (Some("1.0.0"), "True"));
    }
    assert_eq!(stamped(&shop).await, [first], "the other one did not start");

    // From one gate to the next, which opens by itself: the interval is an hour.
    let end = soon(25);
    edit(&shop, &json!({"suspend": false, "windows": denied_until(end)})).await;
    let waits = format!("OutsideWindow: 1.1.0 waits: spec.windows let no rollout start now, until {end:.0}");
    shop.status_is("web", "it waits for the window", |s| conditions(s).0.as_ref() == Some(&waits)).await;
    for app in ["a", "b"] {
        shop.pods_run(app, 1, &format!("{image}:1.1.0")).await;
    }
    assert!(Timestamp::now() >= end, "not before the window's end");
    let status = shop.settles("web", "1.1.0").await;
    assert_eq!((status.pending, status.history[0].workloads), (None, 2));
    assert_eq!(pending_events(&shop).await, 2, "once for each gate");
}

#[tokio::test]
async fn a_window_opens_while_kimup_is_down() {
    let own = Own::start().await;
    let balancer = Balancer::start(&[]).await.unwrap();
    let mut options = own.options("kimup").await;
    options.webhook_url = WebhookUrl::At(balancer.address());
    let kimup = KimupProcess::start(options).await.unwrap();
    balancer.set_backends(&[kimup.webhook()]);
    let shop = own.shop("gate-down").await;
    own.registry.push("app", "1.0.0").await.unwrap();
    let image = own.registry.image("app");
    shop.create_image("web", &json!({"spec": {"image": image}})).await;
    shop.settles("web", "1.0.0").await;
    admits(&shop, &format!("{image}:0.9.0"), &format!("{image}:1.0.0")).await;
    shop.create_deployment("web", &format!("{image}:1.0.0"), &opted_in()).await;
    shop.pods_run("web", 2, &format!("{image}:1.0.0")).await;

    let end = soon(60);
    edit(&shop, &json!({"windows": denied_until(end)})).await;
    own.registry.push("app", "1.1.0").await.unwrap();
    let before = shop.sync("web").await.pending.expect("it waits");
    assert_eq!((before.tag.as_str(), before.at.as_deref()), ("1.1.0", Some(&*format!("{end:.0}"))));
    eventually(DEADLINE, "what waits is said", async || pending_events(&shop).await == 1).await;
    // Another process says nothing anew.
    let again = restart(&own, &balancer, kimup).await;
    if Timestamp::now() + 2.seconds() < end {
        assert_eq!(shop.sync("web").await.pending, Some(before));
    }
    assert_eq!(pending_events(&shop).await, 1);
    assert_eq!(shop.revisions("web").await, 1);

    let mut down = again;
    down.kill();
    eventually(DEADLINE, "the window ends", async || if Timestamp::now() > end { Ok(()) } else { Err("not yet") })
        .await;
    let _up = restart(&own, &balancer, down).await;
    // Nobody asks.
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    let status = shop.settles("web", "1.1.0").await;
    assert_eq!((conditions(&status).0, status.pending), (None, None));
    assert_eq!((shop.revisions("web").await, pending_events(&shop).await), (2, 1));
}

async fn restart(own: &Own, balancer: &Balancer, mut kimup: KimupProcess) -> KimupProcess {
    kimup.kill();
    own.expire_lease("kimup-url").await;
    let kimup = kimup.start_again().await.unwrap();
    balancer.set_backends(&[kimup.webhook()]);
    leads(&kimup, DEADLINE).await;
    kimup
}
