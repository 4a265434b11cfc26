//! When a newer tag may go: suspension, windows, a least age. What waits says so, and goes by itself.

use std::time::Duration;

use jiff::{Timestamp, ToSpan};
use kimup::api::{Image, ImageStatus};
use kube::api::{Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{Bed, Shop, opted_in};

/// A shop whose Deployment and Image `web` run 1.0.0, and its Image's repository.
async fn running_1_0_0(name: &str, spec: &Value) -> (Shop, String) {
    let bed = Bed::shared().await;
    bed.registries.open.push(name, "1.0.0").await.unwrap();
    let image = bed.registries.open.image(name);
    let shop = bed.shop(name, &[]).await;
    let mut patch = json!({"spec": {"image": image, "baseTag": "1.0.0"}});
    json_patch::merge(&mut patch, &json!({"spec": spec}));
    shop.create_image("web", &patch).await;
    shop.settles("web", "1.0.0").await;
    shop.create_deployment("web", &format!("{image}:1.0.0"), &opted_in()).await;
    shop.pods_run("web", 2, &format!("{image}:1.0.0")).await;
    (shop, image)
}

pub async fn push(name: &str, tag: &str) {
    Bed::shared().await.registries.open.push(name, tag).await.unwrap();
}

/// The condition `Pending` as `reason: message`, and `Ready`.
pub fn conditions(status: &ImageStatus) -> (Option<String>, String) {
    let find = |kind: &str| status.conditions.iter().find(|c| c.type_ == kind);
    let pending = find("Pending").map(|c| format!("{}: {}", c.reason, c.message));
    (pending, find("Ready").map(|c| c.status.clone()).unwrap_or_default())
}

pub async fn edit(shop: &Shop, spec: &Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    shop.api::<Image>().patch("web", &PatchParams::default(), &patch).await.unwrap();
}

/// `spec.windows` that let nothing start for two minutes before `end`, every year again.
pub fn denied_until(end: Timestamp) -> Value {
    let start = (end - 120.seconds()).in_tz("UTC").unwrap();
    let cron = format!("{} {} {} {} {} *", start.second(), start.minute(), start.hour(), start.day(), start.month());
    json!([{"kind": "deny", "schedule": cron, "duration": "120s"}])
}

#[tokio::test]
async fn what_is_suspended_waits_and_goes_when_it_is_released() {
    let name = "gate-suspend";
    let (shop, image) = running_1_0_0(name, &json!({"suspend": true})).await;
    push(name, "1.1.0").await;
    for _ in 0..3 {
        let status = shop.sync("web").await;
        assert_eq!((status.tag.as_deref(), &status.rollout), (Some("1.0.0"), &None));
        let (pending, ready) = conditions(&status);
        assert_eq!(pending.as_deref(), Some("Suspended: 1.1.0 waits: spec.suspend is set"));
        assert_eq!(ready, "True", "nothing is wrong");
    }
    assert_eq!(shop.revisions("web").await, 1);
    let said = shop.events("Image", "web").await.iter().filter(|e| e.starts_with("TagPending")).count();
    assert_eq!(said, 1, "said once");
    edit(&shop, &json!({"suspend": false})).await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    let status = shop.settles("web", "1.1.0").await;
    assert_eq!((conditions(&status).0, status.pending), (None, None));
}

#[tokio::test]
async fn a_window_opens_by_itself() {
    let name = "gate-window";
    let end = Timestamp::from_second(Timestamp::now().as_second() + 25).unwrap();
    let (shop, image) = running_1_0_0(name, &json!({"windows": denied_until(end)})).await;
    push(name, "1.1.0").await;
    let status = shop.sync("web").await;
    if Timestamp::now() + 2.seconds() < end {
        let pending = status.pending.expect("it waits");
        assert_eq!((pending.tag.as_str(), pending.at), ("1.1.0", Some(format!("{end:.0}"))));
        assert_eq!(status.tag.as_deref(), Some("1.0.0"));
    }
    // Nobody asks: the interval is an hour.
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    assert!(Timestamp::now() >= end, "not before the window's end");
    assert_eq!(shop.settles("web", "1.1.0").await.pending, None);
}

#[tokio::test]
async fn the_newest_that_is_old_enough_goes() {
    let name = "gate-age";
    let (shop, image) = running_1_0_0(name, &json!({"minAge": "4s"})).await;
    push(name, "1.1.0").await;
    let status = shop.sync("web").await;
    let seen = status.seen.first().cloned().expect("remembered");
    assert_eq!(seen.tag, "1.1.0");
    let pending = status.pending.expect("it waits");
    let since: Timestamp = seen.since.parse().unwrap();
    assert_eq!(pending.at, Some(format!("{:.0}", since + 4.seconds())));
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    assert!(Timestamp::now() >= since + 4.seconds(), "not before it is old enough");
    shop.settles("web", "1.1.0").await;
    // A gate that cannot be read stops everything and says so.
    edit(&shop, &json!({"minAge": "soon"})).await;
    push(name, "1.2.0").await;
    let status = shop.status_is("web", "says what is wrong", |s| conditions(s).1 == "False").await;
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    assert!(ready.message.contains("fix spec.minAge"), "{}", ready.message);
    tokio::time::timeout(Duration::from_secs(60), shop.sync("web")).await.unwrap();
    assert_eq!(shop.revisions("web").await, 2);
}
