//! Scenario d: what registries list, and what happens when they do not.

use kimup::api::SyncResult;
use kimup_testbed::FaultReply;
use serde_json::json;

use crate::own::admits;
use crate::support::{Bed, ENABLED, image_of, opted_in, pod, with_annotations};

#[tokio::test]
async fn versions_order_as_numbers_and_prereleases_are_no_upgrade() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("d-order", &["1.9.0", "1.8.0", "2.0.0-rc.1"]).await.unwrap();
    let image = registry.image("d-order");
    let shop = bed.shop("d-order", &[]).await;
    let rule = json!([{"name": "major", "type": "semver-major", "actions": [{"type": "apply"}]},
        {"name": "minor", "type": "semver-minor", "actions": [{"type": "apply"}]}]);
    shop.create_image("img", &json!({"spec": {"image": image, "rules": rule}})).await;
    admits(&shop, &format!("{image}:1.8.0"), &format!("{image}:1.9.0")).await;
    shop.create_deployment("web", &format!("{image}:1.8.0"), &opted_in()).await;
    shop.pods_run("web", 2, &format!("{image}:1.9.0")).await;
    shop.settles("img", "1.9.0").await;
    registry.push_all("d-order", &["1.10.0", "1.11.0-beta.1", "2.0.0-rc.2", "1.10.0-alpine"]).await.unwrap();
    shop.sync("img").await;
    shop.pods_run("web", 2, &format!("{image}:1.10.0")).await;
    shop.settles("img", "1.10.0").await;
    shop.sync("img").await;
    let status = shop.settles("img", "1.10.0").await;
    let tags: Vec<_> = status.history.iter().map(|h| h.tag.as_str()).collect();
    assert_eq!(tags, ["1.10.0", "1.9.0"]);
    assert_eq!(shop.revisions("web").await, 2);
}

#[tokio::test]
async fn a_registry_that_fails_changes_nothing() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.scripted;
    registry.set_tags("d-fails", &["1.0.0", "1.1.0"]);
    let image = registry.image("d-fails");
    let shop = bed.shop("d-fails", &[]).await;
    shop.create_image("img", &json!({"spec": {"image": image}})).await;
    let (text, wanted) = (format!("{image}:1.0.0"), format!("{image}:1.1.0"));
    admits(&shop, &text, &wanted).await;
    shop.create_deployment("web", &text, &opted_in()).await;
    let pods = shop.pods_run("web", 2, &wanted).await;
    shop.settles("img", "1.1.0").await;
    let uid = |p: &k8s_openapi::api::core::v1::Pod| p.metadata.uid.clone();
    let mut before: Vec<_> = pods.iter().map(uid).collect();
    before.sort();

    let page = |tags: &str| FaultReply::new(200, format!(r#"{{"name": "d-fails", "tags": {tags}}}"#));
    let cases = [
        ("emptied", page("[]"), SyncResult::TagsError, "lists no tags"),
        ("null", page("null"), SyncResult::TagsError, "lists no tags"),
        ("500", FaultReply::new(500, "broken"), SyncResult::RegistryError, "500"),
        (
            "404",
            FaultReply::new(404, r#"{"errors": [{"code": "NAME_UNKNOWN"}]}"#),
            SyncResult::TagsError,
            "knows no repository",
        ),
        ("garbage", FaultReply::new(200, "<html>"), SyncResult::TagsError, ""),
        ("only others", page(r#"["latest", "x"]"#), SyncResult::Success, "no longer lists it"),
        ("only older", page(r#"["1.0.0"]"#), SyncResult::Success, "no longer lists it"),
    ];
    for (name, answer, result, said) in cases {
        registry.set_answer("d-fails", answer);
        let status = shop.sync("img").await;
        let ready = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(status.tag.as_deref(), Some("1.1.0"), "{name}");
        assert!(ready.message.contains(said) && ready.message.contains("1.1.0 is kept"), "{name}: {}", ready.message);
        assert_eq!(status.result, Some(result), "{name}: {}", ready.message);
        assert_eq!(ready.status == "True", result == SyncResult::Success, "{name}");
        // New Pods still get the tag.
        let created =
            shop.create_pod(&with_annotations(pod(&name.replace(' ', "-"), &text), &[(ENABLED, "true")])).await;
        assert_eq!(image_of(&created.unwrap(), "app"), wanted, "{name}");
    }
    registry.set_tags("d-fails", &["1.0.0", "1.1.0"]);
    let status = shop.sync("img").await;
    assert_eq!(status.result, Some(SyncResult::Success));
    let conditions: Vec<_> = status.conditions.iter().map(|c| (&*c.type_, &*c.status, &*c.reason)).collect();
    assert_eq!(conditions, [("Ready", "True", "Synced")]);
    let mut after: Vec<_> = shop.pods_run("web", 2, &wanted).await.iter().map(uid).collect();
    after.sort();
    assert_eq!(before, after, "no Pod was replaced");
    assert_eq!(shop.revisions("web").await, 1);
}

#[tokio::test]
async fn a_newer_own_tag_is_kept_and_nobody_else_gets_it() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("d-own", &["1.0.0", "1.1.0"]).await.unwrap();
    let image = registry.image("d-own");
    let shop = bed.shop("d-own", &[]).await;
    shop.create_image("img", &json!({"spec": {"image": image}})).await;
    admits(&shop, &format!("{image}:1.0.0"), &format!("{image}:1.1.0")).await;
    // 3.0.0 is beyond the rules, and the registry does not list it.
    shop.create_deployment("ahead", &format!("{image}:3.0.0"), &opted_in()).await;
    shop.create_deployment("web", &format!("{image}:1.0.0"), &opted_in()).await;
    let ahead = async || shop.pods_run("ahead", 2, &format!("{image}:3.0.0")).await;
    ahead().await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    let status = shop.settles("img", "1.1.0").await;
    assert_eq!(status.result, Some(SyncResult::Success));
    registry.push("d-own", "1.2.0").await.unwrap();
    shop.sync("img").await;
    shop.pods_run("web", 2, &format!("{image}:1.2.0")).await;
    let status = shop.settles("img", "1.2.0").await;
    assert_eq!((status.workloads.as_deref(), status.held.len()), (Some("2/2"), 0));
    ahead().await;
    assert_eq!((shop.revisions("ahead").await, shop.revisions("web").await), (1, 2));
    assert!(shop.events("Deployment", "ahead").await.is_empty());
}
