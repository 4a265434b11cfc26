//! Uninstalling leaves no webhook behind: the namespace deleted, or everything of `deploy/`, while kimup still runs.

use k8s_openapi::api::core::v1::Pod;
use kimup_testbed::{KimupProcess, WebhookUrl, eventually};
use kube::api::{Api, DeleteParams};

use crate::own::{Own, SYSTEM, leads};
use crate::support::{DEADLINE, DEPLOYED, ENABLED, Shop, image_of, pod};

const TEXT: &str = "app.invalid/app:1.0.0";

/// `kimup run` as in a cluster: the configuration names a Service that does not answer, so `fail` denies.
async fn installed(own: &Own, shop: &Shop) -> KimupProcess {
    let mut options = own.options("uninstall").await;
    options.webhook_url = WebhookUrl::None;
    let kimup = KimupProcess::start(options).await.unwrap();
    leads(&kimup, DEADLINE).await;
    eventually(DEADLINE, "opted-in Pods are denied", async || {
        let denied = shop.create_pod(&pod("denied", TEXT)).await.err().ok_or("it was admitted")?;
        denied.contains("failed calling webhook").then_some(()).ok_or("for another reason")
    })
    .await;
    kimup
}

async fn is_admitted(shop: &Shop) {
    let created =
        eventually(DEADLINE, "opted-in Pods are created", async || shop.create_pod(&pod("late", TEXT)).await).await;
    assert_eq!(image_of(&created, "app"), TEXT);
    shop.api::<Pod>().delete("late", &DeleteParams::default().grace_period(0)).await.unwrap();
}

#[tokio::test]
async fn nothing_is_left_that_denies() {
    let own = Own::start().await;
    let shop = Shop::new(&own.cluster, "shop", &[(ENABLED, "true")], &[]).await;
    for way in [&["delete", "namespace", SYSTEM, "--wait=false"][..], &["delete", "-k", "deploy", "--wait=false"]] {
        let mut kimup = installed(&own, &shop).await;
        let deploy = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy");
        let args: Vec<&str> = way.iter().map(|arg| if *arg == "deploy" { deploy } else { arg }).collect();
        own.cluster.kubectl_ok(&[&args[..], &["--ignore-not-found"]].concat()).await.unwrap();
        let gone = async || own.configuration("kimup").await.is_none();
        eventually(DEADLINE, "the configuration goes", gone).await;
        is_admitted(&shop).await;
        // What still runs sees that its Namespace is gone.
        kimup.check_running().unwrap();
        // It may find first that its Lease, which went too, is its no longer.
        eventually(DEADLINE, "it looked again and wrote nothing, or leads no longer", async || {
            let refrains = kimup.log_text().contains("webhook configuration not written");
            refrains || kimup.metric("kimup_leader", &[]).await.is_ok_and(|leads| leads < 1.0)
        })
        .await;
        assert!(gone().await, "{way:?}: it was written again");
        kimup.terminate(DEADLINE).await.unwrap();
        is_admitted(&shop).await;
        let namespaces: Api<k8s_openapi::api::core::v1::Namespace> = Api::all(own.cluster.client().await.unwrap());
        eventually(DEADLINE, "the namespace is gone", async || namespaces.get_opt(SYSTEM).await.unwrap().is_none())
            .await;
        own.cluster.apply_deploy(DEPLOYED).await.unwrap();
        eventually(DEADLINE, "its ServiceAccount works", async || {
            own.cluster.kubeconfig_for(SYSTEM, "kimup").await.is_ok()
        })
        .await;
    }
}
