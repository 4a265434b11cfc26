//! What people hold outlives that the API server does not serve its kind for a while.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kimup::api::HeldBy;
use kimup::rollout::Kind;
use kimup_testbed::{ApiFault, ApiProxy, KimupProcess, eventually};
use kube::api::DeleteParams;
use serde_json::json;

use crate::foreign_kinds::{api, argo, counts, create, install, merge, stamped};
use crate::holds::{HOLD, is_held, nothing_is_held};
use crate::own::{Own, SYSTEM};
use crate::support::{DEADLINE, ENABLED, Shop, configured};

#[tokio::test]
async fn a_hold_goes_only_with_its_workload() {
    let own = Own::start().await;
    own.registry.push_all("app", &["1.0.0", "1.1.0"]).await.unwrap();
    let image = own.registry.image("app");
    let [old, new] = ["1.0.0", "1.1.0"].map(|tag| format!("{image}:{tag}"));
    install(&own.cluster, Kind::Rollout, &json!({"x-kubernetes-preserve-unknown-fields": true})).await;
    let missing = Arc::new(AtomicBool::new(false));
    let hidden = missing.clone();
    let script = move |_: &_, path: &str| match path {
        "/apis/argoproj.io/v1alpha1" if hidden.load(Ordering::Relaxed) => ApiFault::Refused(404),
        _ => ApiFault::After(Duration::ZERO),
    };
    let proxy = ApiProxy::start(&own.cluster.address(), own.cluster.ca_pem(), script).await.unwrap();
    let mut options = own.options("kimup").await;
    let through = format!("http://{}", proxy.address());
    options.kubeconfig = own.cluster.kubeconfig_via(SYSTEM, "kimup", &through).await.unwrap();
    let kimup = KimupProcess::start(options).await.unwrap();
    configured(&own.cluster).await;
    let shop = Shop::new(&own.cluster, "foreign-holds", &[(ENABLED, "true")], &[]).await;
    create(&shop, Kind::Rollout, "web", &old, &json!({})).await;
    argo(&shop, "web", 2, "Healthy").await;
    shop.create_image("img", &json!({"spec": {"image": image, "rollout": {"minInterval": "0s"}}})).await;
    stamped(&shop, Kind::Rollout, "web", &old, &new).await;
    argo(&shop, "web", 2, "Healthy").await;
    shop.settles("img", "1.1.0").await;
    merge(&shop, Kind::Rollout, "web", &json!({"metadata": {"annotations": {HOLD: "1.0.0"}}})).await;
    stamped(&shop, Kind::Rollout, "web", &old, &old).await;
    argo(&shop, "web", 2, "Healthy").await;
    let held = is_held(&shop, "img", "Rollout/web", HeldBy::Annotation, "1.0.0").await;
    counts(&shop, "img", "0/1, 1 held").await;

    let says = async |words: &str, times: usize| {
        eventually(DEADLINE, words, async || {
            let said = kimup.log_text().lines().filter(|line| line.contains(words) && line.contains("Rollout")).count();
            if said == times { Ok(()) } else { Err(format!("said {said} times")) }
        })
        .await;
    };
    missing.store(true, Ordering::Relaxed);
    says("the kind is not installed any more", 1).await;
    for _ in 0..2 {
        let status = shop.sync("img").await;
        assert_eq!((&status.held[..], status.workloads), (std::slice::from_ref(&held), None));
    }
    missing.store(false, Ordering::Relaxed);
    says("the kind is installed", 2).await;
    counts(&shop, "img", "0/1, 1 held").await;
    for _ in 0..2 {
        assert_eq!(shop.sync("img").await.held, std::slice::from_ref(&held));
    }
    let rollout = api(&shop, Kind::Rollout).get("web").await.unwrap();
    assert_eq!(
        rollout.data["spec"]["template"]["metadata"]["annotations"][crate::holds::STAMP],
        format!("{old} {old}")
    );

    api(&shop, Kind::Rollout).delete("web", &DeleteParams::default()).await.unwrap();
    nothing_is_held(&shop, "img").await;
}
