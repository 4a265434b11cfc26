//! What one Image of a group rejects all of them know, and forget together.

use k8s_openapi::api::apps::v1::Deployment;
use kimup::api::{Image, ImageStatus};
use kimup_testbed::eventually;
use kube::api::DeleteParams;
use serde_json::json;

use crate::group_failures::followed;
use crate::rollback::count;
use crate::support::{Bed, DEADLINE, Shop};

const ACTION: &str = "kimup.cloudavenue.io/action";
const REJECT: &str = "kimup.cloudavenue.io/reject";

/// `by` rejects 1.3.0, and the others have it on record too, word for word.
async fn rejects(shop: &Shop, by: &str, others: &[&str]) {
    shop.annotate_image(by, REJECT, Some("1.3.0")).await;
    let rejected = shop.status_is(by, "rejects it", |s| s.rejected.len() == 1).await.rejected;
    assert_eq!((rejected[0].tag.as_str(), rejected[0].workload.as_str()), ("1.3.0", ""));
    for other in others {
        shop.status_is(other, "takes it over", |s| s.rejected == rejected).await;
    }
}

async fn is_retried(shop: &Shop, image: &str) {
    shop.annotate_image(image, ACTION, Some("retry")).await;
    eventually(DEADLINE, "the retry is done", async || {
        let annotations = shop.api::<Image>().get(image).await.unwrap().metadata.annotations.unwrap_or_default();
        if annotations.contains_key(ACTION) { Err("still asked for") } else { Ok(()) }
    })
    .await;
}

#[tokio::test]
async fn a_group_remembers_and_forgets_as_one() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push("gr-all", "1.2.0").await.unwrap();
    let (shop, image) = (bed.shop("gr-all", &[]).await, registry.image("gr-all"));
    let text = format!("{image}:1.2.0");
    let mut images = Vec::new();
    for name in ["a", "b", "c"] {
        images.push(followed(&shop, name, &text, "alphabetical", "1.2.0", &json!({})).await);
    }
    let [a, b, c] = [0, 1, 2].map(|i| images[i].as_str());
    let all = [a, b, c];

    // Any of them forgets for all, and none gives it back.
    rejects(&shop, a, &[b, c]).await;
    is_retried(&shop, b).await;
    for _ in 0..3 {
        for name in all {
            let rejected = shop.sync(name).await.rejected;
            assert!(rejected.is_empty(), "{name}: {rejected:?}");
        }
    }
    for name in all {
        let events = shop.events("Image", name).await;
        assert_eq!(count(&events, &["Retried: ", "1.3.0"]), 1, "{name}: {events:?}");
    }
    // Two ask at once.
    rejects(&shop, c, &[a, b]).await;
    tokio::join!(is_retried(&shop, a), is_retried(&shop, c));
    for name in all {
        shop.status_is(name, "has forgotten", |s| s.rejected.is_empty()).await;
    }

    // The others know it when the one has gone that was told.
    rejects(&shop, b, &[a, c]).await;
    shop.api::<Deployment>().delete("b", &DeleteParams::background()).await.unwrap();
    eventually(DEADLINE, "its Image goes with it", async || {
        if shop.api::<Image>().get_opt(b).await.unwrap().is_none() { Ok(()) } else { Err("still there") }
    })
    .await;
    registry.push("gr-all", "1.3.0").await.unwrap();
    let keeps = |s: &ImageStatus| s.tag.as_deref() == Some("1.2.0") && s.rollout.is_none() && s.rejected.len() == 1;
    for _ in 0..3 {
        for name in [a, c] {
            let status = shop.sync(name).await;
            assert!(keeps(&status), "{name}: {status:?}");
        }
    }
    for name in ["a", "c"] {
        shop.pods_run(name, 1, &text).await;
        assert_eq!(shop.revisions(name).await, 1, "{name} never saw the tag");
    }

    // Tried again, by both.
    is_retried(&shop, c).await;
    for name in ["a", "c"] {
        shop.pods_run(name, 1, &format!("{image}:1.3.0")).await;
    }
    for name in [a, c] {
        shop.settles(name, "1.3.0").await;
    }
}
