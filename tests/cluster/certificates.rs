//! The CA is rotated under load: no Pod fails, and the API server knows each CA before anybody serves what it signed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use k8s_openapi::api::core::v1::{Pod, Secret};
use kimup::net::ca::Bundle;
use kimup_testbed::{KimupProcess, WebhookUrl, eventually};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::own::{Own, SYSTEM, admits, leads};
use crate::support::{DEADLINE, ENABLED, Shop, image_of, pod, with_annotations};

const CONFIGURATION: &str = "kimup-url";
const SECRET: &str = "kimup-url-ca";
/// From the publication of a CA to the first certificate that it signs; ten times as long until the old one is gone.
const DELAY: &str = "500ms";
/// More than the 25 idle connections that the API server keeps: each burst opens new ones.
const BURST: usize = 40;

struct Scene {
    own: Own,
    shop: Shop,
    replicas: Vec<KimupProcess>,
    /// Connections of the API server.
    connections: Arc<AtomicUsize>,
}

impl Scene {
    async fn new() -> Self {
        let own = Own::start().await;
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut options = own.options("first").await;
        options.webhook_url = WebhookUrl::At(front.local_addr().unwrap());
        options.args.extend(["--ca-rotation-delay", DELAY].map(str::to_owned));
        let first = KimupProcess::start(options.clone()).await.unwrap();
        leads(&first, DEADLINE).await;
        "second".clone_into(&mut options.name);
        let second = KimupProcess::start(options).await.unwrap();
        let connections = Arc::new(AtomicUsize::new(0));
        tokio::spawn(forward(front, [first.webhook(), second.webhook()], connections.clone()));
        own.registry.push("certificates", "1.0.0").await.unwrap();
        let shop = own.shop("certificates").await;
        shop.create_image("app", &json!({"spec": {"image": own.registry.image("certificates")}})).await;
        shop.settles("app", "1.0.0").await;
        let scene = Self { own, shop, replicas: vec![first, second], connections };
        admits(&scene.shop, &scene.image("0.9.0"), &scene.image("1.0.0")).await;
        scene
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.own.registry.image("certificates"))
    }

    async fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.own.cluster.client().await.unwrap(), SYSTEM)
    }

    /// What every entry of the live configuration trusts.
    async fn carried(&self) -> Bundle {
        let configuration = self.own.configuration(CONFIGURATION).await.unwrap();
        let bundles = configuration.webhooks.unwrap().into_iter().map(|entry| entry.client_config.ca_bundle.unwrap().0);
        let bundles: Vec<Vec<u8>> = bundles.collect();
        assert!(bundles.windows(2).all(|pair| pair[0] == pair[1]), "all entries trust the same");
        Bundle::from_pem(&bundles[0])
    }

    /// Pods at the same time; each is admitted by a replica, or that is an error.
    async fn burst(&self) {
        let params = PostParams { dry_run: true, ..PostParams::default() };
        let (api, wanted) = (self.shop.api::<Pod>(), self.image("1.0.0"));
        let created = (0..BURST).map(|n| {
            let pod = with_annotations(pod(&format!("loose-{n}"), &self.image("0.9.0")), &[(ENABLED, "true")]);
            let (api, params) = (&api, &params);
            async move { api.create(params, &pod).await }
        });
        for pod in futures::future::join_all(created).await {
            assert_eq!(image_of(&pod.unwrap(), "app"), wanted);
        }
    }

    /// Both replicas serve what the configuration trusted a moment ago, and the CA that signs is among that.
    async fn trusted_is_served(&self) {
        let carried = self.carried().await;
        let secret = self.secrets().await.get_opt(SECRET).await.unwrap();
        if let Some(secret) = secret {
            let signing = Bundle::from_pem(&secret.data.unwrap()["tls.crt"].0).into_iter().next().unwrap();
            assert!(carried.contains(&signing), "the CA signs before it is published");
        }
        for replica in &self.replicas {
            handshake(replica.webhook(), carried.clone()).await.unwrap();
        }
    }

    /// Pods and checks until the work is done.
    async fn under_load<T>(&self, work: impl Future<Output = T>) -> T {
        let done = AtomicBool::new(false);
        let pods = async {
            let mut bursts = 0;
            while !done.load(Ordering::Relaxed) {
                self.burst().await;
                bursts += 1;
            }
            bursts
        };
        let checks = async {
            while !done.load(Ordering::Relaxed) {
                self.trusted_is_served().await;
            }
        };
        let before = self.connections.load(Ordering::Relaxed);
        let work = async {
            let result = work.await;
            done.store(true, Ordering::Relaxed);
            result
        };
        let (bursts, (), result) = tokio::join!(pods, checks, work);
        let connections = self.connections.load(Ordering::Relaxed) - before;
        println!("{} Pods, {connections} new connections of the API server", bursts * BURST);
        assert!(connections > 0, "no handshake of the API server");
        result
    }

    /// Waits until another CA than this signs and is the only one that is trusted.
    async fn rotated(&self, before: &Bundle) -> Bundle {
        eventually(DEADLINE, "another CA is the only one", async || {
            let carried = self.carried().await;
            let old = before.clone().common(&carried);
            if carried.len() == 1 && old.is_empty() { Ok(carried) } else { Err(format!("{carried:?}, old: {old:?}")) }
        })
        .await
    }
}

/// A Service: each connection to the next replica.
async fn forward(front: TcpListener, replicas: [SocketAddr; 2], connections: Arc<AtomicUsize>) {
    loop {
        let Ok((mut client, _)) = front.accept().await else { continue };
        let number = connections.fetch_add(1, Ordering::Relaxed);
        tokio::spawn(async move {
            let mut replica = TcpStream::connect(replicas[number % 2]).await?;
            tokio::io::copy_bidirectional(&mut client, &mut replica).await
        });
    }
}

async fn handshake(address: SocketAddr, trusted: Bundle) -> std::io::Result<()> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(trusted);
    let config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    connector.connect(ServerName::from(address.ip()), stream).await.map(drop)
}

/// How often; `make test-restarts` does so ten times.
fn rotations() -> u32 {
    std::env::var("KIMUP_ROTATIONS").ok().map_or(3, |count| count.parse().unwrap())
}

#[tokio::test]
async fn the_ca_is_rotated_under_load() {
    let mut scene = Scene::new().await;
    let secrets = scene.secrets().await;
    let rotate = Patch::Merge(json!({"metadata": {"annotations": {"kimup.cloudavenue.io/action": "rotate"}}}));
    for _ in 0..rotations() {
        let before = scene.carried().await;
        let rotation = async {
            secrets.patch(SECRET, &PatchParams::default(), &rotate).await.unwrap();
            scene.rotated(&before).await
        };
        scene.under_load(rotation).await;
        let annotations = secrets.get(SECRET).await.unwrap().metadata.annotations.unwrap();
        assert!(!annotations.contains_key("kimup.cloudavenue.io/action"), "{annotations:?}");
    }
    let before = scene.carried().await;
    let deletion = async {
        secrets.delete(SECRET, &DeleteParams::default()).await.unwrap();
        scene.rotated(&before).await
    };
    scene.under_load(deletion).await;
    for replica in &scene.replicas {
        let failing = replica.metric("kimup_certificate_renewal_failing", &[]).await.unwrap();
        assert!(failing.abs() < 0.5, "{}", replica.log_text());
    }
    for mut replica in scene.replicas.drain(..) {
        assert_eq!(replica.terminate(Duration::from_secs(25)).await.unwrap().code(), Some(0), "{}", replica.log_text());
    }
}
