//! `--client-ca-file` with a real API server, which is told in its own files which certificate to show.

use std::fs;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;
use kimup_testbed::{Balancer, KimupProcess, ServerCertificate, TestCa, WebhookUrl, run_dir};
use kube::api::PostParams;
use serde_json::json;

use crate::own::{Own, admits, leads};
use crate::support::{DEADLINE, ENABLED, pod, with_annotations};

/// The files of docs/operations.md, for a webhook at `host`; the argument that names them.
fn admission_control(folder: &Path, host: &str, shown: &ServerCertificate) -> String {
    let path = |name: &str| folder.join(name).display().to_string();
    fs::write(path("kimup.crt"), shown.pem()).unwrap();
    fs::write(path("kimup.key"), shown.key_pem()).unwrap();
    let user = json!({"client-certificate": path("kimup.crt"), "client-key": path("kimup.key")});
    let kubeconfig = json!({"apiVersion": "v1", "kind": "Config", "users": [{"name": host, "user": user}]});
    fs::write(path("kubeconfig.yaml"), kubeconfig.to_string()).unwrap();
    let version = "apiserver.config.k8s.io/v1";
    let webhooks = json!({
        "apiVersion": version, "kind": "WebhookAdmissionConfiguration", "kubeConfigFile": path("kubeconfig.yaml"),
    });
    let control = json!({
        "apiVersion": version, "kind": "AdmissionConfiguration",
        "plugins": [{"name": "MutatingAdmissionWebhook", "configuration": webhooks}],
    });
    fs::write(path("control.yaml"), control.to_string()).unwrap();
    format!("--admission-control-config-file={}", path("control.yaml"))
}

#[tokio::test]
async fn the_api_server_shows_its_certificate() {
    let (ours, other) = (TestCa::new().unwrap(), TestCa::new().unwrap());
    let folder = run_dir().unwrap().folder("client-ca").unwrap();
    let balancer = Balancer::start(&[]).await.unwrap();
    let shown = ours.client("kube-apiserver").unwrap();
    let own = Own::start_with(&[admission_control(&folder, &balancer.address().to_string(), &shown)]).await;
    let trusted = folder.join("clients.crt");
    fs::write(&trusted, ours.pem()).unwrap();
    let mut options = own.options("kimup").await;
    options.webhook_url = WebhookUrl::At(balancer.address());
    options.args.extend(["--client-ca-file".to_owned(), trusted.display().to_string()]);
    let kimup = KimupProcess::start(options.clone()).await.unwrap();
    balancer.set_backends(&[kimup.webhook()]);
    leads(&kimup, DEADLINE).await;
    own.registry.push("clients", "1.0.0").await.unwrap();
    let shop = own.shop("clients").await;
    shop.create_image("app", &json!({"spec": {"image": own.registry.image("clients")}})).await;
    shop.settles("app", "1.0.0").await;
    let text = |tag: &str| format!("{}:{tag}", own.registry.image("clients"));
    admits(&shop, &text("0.9.0"), &text("1.0.0")).await;
    // Another kimup, which trusts another CA: the same API server is nobody to it.
    fs::write(&trusted, other.pem()).unwrap();
    let kimup = kimup.start_again().await.unwrap();
    balancer.set_backends(&[kimup.webhook()]);
    let pod = with_annotations(pod("refused", &text("0.9.0")), &[(ENABLED, "true")]);
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let refused = shop.api::<Pod>().create(&params, &pod).await.unwrap_err().to_string();
    assert!(refused.contains("failed calling webhook"), "{refused}");
}
