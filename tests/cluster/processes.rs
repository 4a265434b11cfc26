//! Scenario k and the processes: kimup as it runs in a cluster, a second one beside it, certificates from files.

use std::path::{Path, PathBuf};
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kimup::admission::configuration::{CaBundle, Endpoint, Options, build};
use kimup_testbed::{KimupOptions, KimupProcess, WebhookUrl, eventually};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;

use crate::own::{Own, SYSTEM, admits, leads};
use crate::support::{DEADLINE, ENABLED, Shop, image_of, pod, with_annotations};

const STOPS_WITHIN: Duration = Duration::from_secs(25);

struct Scene {
    own: Own,
    shop: Shop,
    socket: PathBuf,
}

impl Scene {
    async fn new() -> Self {
        let own = Own::start().await;
        let shop = own.shop("k-shop").await;
        let socket = own.cluster.folder().join("sync.sock");
        Self { own, shop, socket }
    }

    /// As in `deploy/`: no URL, but a Service.
    async fn options(&self, command: &str) -> KimupOptions {
        let mut options = self.own.options(command).await;
        command.clone_into(&mut options.command);
        options.webhook_url = WebhookUrl::None;
        if command == "webhook" {
            options.args.truncate(4); // it knows no registries
        }
        options.args.extend(["--sync-socket".to_owned(), self.socket.display().to_string()]);
        options
    }

    /// Waits until the configuration has so many entries, as written by kimup.
    async fn written(&self, entries: usize) -> MutatingWebhookConfiguration {
        eventually(DEADLINE, &format!("a configuration of {entries} entries"), async || {
            let found = self.own.configuration("kimup").await.ok_or("none")?;
            let webhooks = found.webhooks.iter().flatten();
            let right = webhooks.clone().all(|w| w.timeout_seconds == Some(10));
            if right && webhooks.count() == entries { Ok(found) } else { Err("another") }
        })
        .await
    }
}

#[tokio::test]
async fn kimup_in_a_cluster() {
    let scene = Scene::new().await;
    let mut sync = KimupProcess::start(scene.options("sync").await).await.unwrap();
    the_configuration_points_at_the_service(&scene).await;
    it_is_repaired(&scene).await;
    a_second_kimup_is_refused(&scene).await;
    assert_eq!(sync.terminate(STOPS_WITHIN).await.unwrap().code(), Some(0), "{}", sync.log_text());
    assert_eq!(scene.own.holder("kimup").await, None, "the Lease is released");
    // In a cluster others serve on, or soon will.
    assert!(scene.own.configuration("kimup").await.is_some());
    certificates_come_from_files(&scene).await;
    the_namespace_goes(&scene).await;
}

async fn the_configuration_points_at_the_service(scene: &Scene) {
    let configuration = scene.written(8).await;
    let client = scene.own.cluster.client().await.unwrap();
    let namespace = Api::<Namespace>::all(client.clone()).get(SYSTEM).await.unwrap();
    let owner = configuration.metadata.owner_references.unwrap().remove(0);
    assert_eq!((owner.kind.as_str(), Some(owner.uid)), ("Namespace", namespace.metadata.uid));
    let secret = Api::<Secret>::namespaced(client, SYSTEM).get("kimup-ca").await.unwrap();
    let data = secret.data.unwrap();
    for entry in configuration.webhooks.unwrap() {
        let service = entry.client_config.service.unwrap();
        let at = (service.namespace.as_str(), service.name.as_str(), service.path.as_deref(), service.port);
        let path = format!("/mutate/{}", entry.name.split_once('.').unwrap().0);
        assert_eq!(at, (SYSTEM, "kimup-webhook", Some(&*path), Some(443)));
        assert_eq!(entry.client_config.url, None);
        let bundle = entry.client_config.ca_bundle.unwrap();
        assert!(data.values().any(|value| *value == bundle), "{} trusts the CA of the Secret", entry.name);
    }
}

async fn it_is_repaired(scene: &Scene) {
    let client = scene.own.cluster.client().await.unwrap();
    let live: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let namespaces: Api<Namespace> = Api::all(client);
    let annotate = async |value: Option<&str>| {
        let patch = Patch::Merge(json!({"metadata": {"annotations": {ENABLED: value}}}));
        namespaces.patch("k-shop", &PatchParams::default(), &patch).await.unwrap();
    };
    annotate(Some("true")).await;
    scene.written(12).await;
    annotate(None).await;
    let right = scene.written(8).await;
    let edit = json!([
        {"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"},
        {"op": "remove", "path": "/webhooks/1/matchConditions"},
        {"op": "replace", "path": "/webhooks/2/timeoutSeconds", "value": 1},
    ]);
    let edit: json_patch::Patch = serde_json::from_value(edit).unwrap();
    live.patch("kimup", &PatchParams::default(), &Patch::Json::<()>(edit)).await.unwrap();
    eventually(DEADLINE, "what somebody edited is repaired", async || {
        scene.written(8).await.webhooks == right.webhooks
    })
    .await;
    live.delete("kimup", &DeleteParams::default()).await.unwrap();
    assert_eq!(scene.written(8).await.webhooks, right.webhooks, "what somebody deleted is written again");
}

/// A laptop beside the cluster's own kimup.
async fn a_second_kimup_is_refused(scene: &Scene) {
    let mut options = scene.own.options("laptop").await;
    let error = KimupProcess::start(options.clone()).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("ended by itself (exit status: 1)"), "{error}");
    let clear = "kimup: a kimup runs in this cluster already (MutatingWebhookConfiguration kimup); stop it, or run beside it with --takeover";
    assert!(error.contains(clear), "{error}");
    assert!(scene.own.configuration("kimup-url").await.is_none());
    options.args.push("--takeover".to_owned());
    let mut laptop = KimupProcess::start(options).await.unwrap();
    eventually(DEADLINE, "its own configuration", async || scene.own.configuration("kimup-url").await).await;
    let holders = (scene.own.holder("kimup").await, scene.own.holder("kimup-url").await);
    assert!(holders.0.is_some() && holders.1.is_some() && holders.0 != holders.1, "each leads its own: {holders:?}");
    assert_eq!(laptop.terminate(STOPS_WITHIN).await.unwrap().code(), Some(0), "{}", laptop.log_text());
    assert!(scene.own.configuration("kimup-url").await.is_none(), "it is deleted at exit");
    assert!(scene.own.configuration("kimup").await.is_some(), "and the other's is not");
}

/// A CA, and a certificate of it for 127.0.0.1: the CA as PEM.
fn write_certificate(certificate: &Path, key: &Path) -> String {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_pem = ca.self_signed(&ca_key).unwrap().pem();
    let leaf_key = rcgen::KeyPair::generate().unwrap();
    let leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    let leaf = leaf.signed_by(&leaf_key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
    std::fs::write(certificate, leaf.pem()).unwrap();
    std::fs::write(key, leaf_key.serialize_pem()).unwrap();
    ca_pem
}

/// As with cert-manager: the configuration is static, and nobody writes one.
async fn certificates_come_from_files(scene: &Scene) {
    let folder = scene.own.cluster.folder();
    let (certificate, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let ca_pem = write_certificate(&certificate, &key);
    let files = ["--tls-cert-file", certificate.to_str().unwrap(), "--tls-key-file", key.to_str().unwrap()];
    let mut processes = Vec::new();
    let live: Api<MutatingWebhookConfiguration> = Api::all(scene.own.cluster.client().await.unwrap());
    live.delete("kimup", &DeleteParams::default()).await.unwrap();
    for command in ["webhook", "sync"] {
        let mut options = scene.options(command).await;
        options.args.extend(files.map(str::to_owned));
        processes.push(KimupProcess::start(options).await.unwrap());
    }
    leads(&processes[1], DEADLINE).await;
    scene.own.registry.push("k-app", "1.0.0").await.unwrap();
    let image = scene.own.registry.image("k-app");
    scene.shop.create_image("app", &json!({"spec": {"image": image}})).await;
    for _ in 0..3 {
        scene.shop.sync("app").await;
    }
    assert!(scene.own.configuration("kimup").await.is_none(), "nobody writes one");
    let options = Options {
        name: "kimup".to_owned(),
        namespace: SYSTEM.to_owned(),
        endpoint: Endpoint::Url(format!("https://{}", processes[0].webhook())),
        owner: None,
        ca_bundle: CaBundle::Own(ca_pem.into_bytes()),
    };
    live.create(&PostParams::default(), &build(&options, &[])).await.unwrap();
    admits(&scene.shop, &format!("{image}:0.9.0"), &format!("{image}:1.0.0")).await;
    live.delete("kimup", &DeleteParams::default()).await.unwrap();
    for mut process in processes {
        assert_eq!(process.terminate(STOPS_WITHIN).await.unwrap().code(), Some(0), "{}", process.log_text());
    }
}

/// Uninstalled the blunt way: nothing is left behind that would refuse Pods.
async fn the_namespace_goes(scene: &Scene) {
    let mut sync = KimupProcess::start(scene.options("sync").await).await.unwrap();
    let owned = async || scene.written(8).await.metadata.owner_references.is_some();
    eventually(DEADLINE, "the configuration is kimup's again", owned).await;
    let image = scene.own.registry.image("k-app");
    let opted_in = |name: &str| with_annotations(pod(name, &format!("{image}:0.9.0")), &[(ENABLED, "true")]);
    // The API server learns of a configuration by a watch of its own, a moment after it was written.
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let refused = async || match scene.shop.api::<Pod>().create(&dry, &opted_in("refused")).await {
        Err(error) if error.to_string().contains("failed calling webhook") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    eventually(DEADLINE, "the API server asks a webhook that is not there", refused).await;
    scene.own.cluster.kubectl_ok(&["delete", "namespace", SYSTEM, "--wait=false"]).await.unwrap();
    let gone = async || scene.own.configuration("kimup").await.is_none();
    eventually(DEADLINE, "the configuration goes with the namespace", gone).await;
    let created = async || scene.shop.create_pod(&opted_in("admitted")).await;
    let created = eventually(DEADLINE, "the API server asks nobody any more", created).await;
    assert_eq!(image_of(&created, "app"), format!("{image}:0.9.0"));
    sync.check_running().unwrap();
    assert_eq!(sync.terminate(STOPS_WITHIN).await.unwrap().code(), Some(0), "{}", sync.log_text());
    assert!(gone().await, "what still ran did not write it again");
}
