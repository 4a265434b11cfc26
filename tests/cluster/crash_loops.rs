//! Rollouts that fail in other ways than that an image cannot be pulled for a while: containers that crash over and over,
//! and an image that never comes. The simulated kubelet does so by the end of the tag.

use kimup::api::ImageStatus;
use serde_json::json;

use crate::rollback::{OURS, Stage, count, get};

#[tokio::test]
async fn what_crashes_or_never_comes_is_rolled_back() {
    let crash = (
        "1.3.0-crashes",
        "CrashLoopBackOff: container app of Pod web-",
        "restarted 5 times, last ended with exit code 1",
    );
    let never = (
        "1.3.0-unpullable",
        "ErrImageNeverPull: container app of Pod web-",
        "is not present with pull policy of Never",
    );
    tokio::join!(
        rolled_back("Deployment", "cl-deployment", crash),
        rolled_back("StatefulSet", "cl-stateful", crash),
        rolled_back("DaemonSet", "cl-daemon", crash),
        rolled_back("Deployment", "cl-never", never),
    );
}

async fn rolled_back(kind: &str, namespace: &str, (tag, reason, more): (&str, &str, &str)) {
    let stage = Stage::new(namespace, &json!({"rollout": {"deadline": OURS}})).await;
    let shop = &stage.shop;
    stage.workload(kind, "web", &json!({"serviceName": "web"})).await;
    stage.push(tag).await;
    stage.is_stamped(kind, "web", tag).await;
    let back = |s: &ImageStatus| s.tag.as_deref() == Some("1.2.0") && s.rollout.is_none() && !s.rejected.is_empty();
    let status = shop.status_is("img", "is back at 1.2.0", back).await;
    let [rejected] = &status.rejected[..] else { panic!("one tag: {:?}", status.rejected) };
    assert_eq!((rejected.tag.as_str(), &rejected.workload), (tag, &format!("{kind}/web")));
    assert!(rejected.reason.starts_with(reason) && rejected.reason.contains(more), "{}", rejected.reason);
    stage.runs("web", "1.2.0").await;
    let events = shop.events("Image", "img").await;
    assert_eq!(count(&events, &["TagRejected: ", tag, reason]), 1, "{events:?}");
    let generation = get(shop, kind, "web").await["metadata"]["generation"].clone();
    for _ in 0..3 {
        let status = shop.sync("img").await;
        assert_eq!((status.tag.as_deref(), status.rollout), (Some("1.2.0"), None));
    }
    assert_eq!(get(shop, kind, "web").await["metadata"]["generation"], generation);
}
