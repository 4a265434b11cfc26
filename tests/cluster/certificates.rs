//! The CA is rotated under load: no Pod fails, and the API server knows each CA before anybody serves what it signed.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kimup::net::ca::{Bundle, CertificateAuthority};
use kimup_testbed::{KimupOptions, KimupProcess, WebhookUrl, eventually, run_dir};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use secrecy::ExposeSecret;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::own::{Own, SYSTEM, admits, leads};
use crate::support::{DEADLINE, ENABLED, Shop, image_of, pod, with_annotations};

const CONFIGURATION: &str = "kimup-url";
const SECRET: &str = "kimup-url-ca";
/// From the publication of a CA to the first certificate that it signs; ten times as long until the old one is gone.
const DELAY: &str = "1s";
/// More than the 25 idle connections that the API server keeps: each burst opens new ones.
const BURST: usize = 40;

/// Where the connections of a Service go, in turn.
type Endpoints = Arc<Mutex<Vec<SocketAddr>>>;

struct Scene {
    own: Own,
    shop: Shop,
    replicas: Vec<KimupProcess>,
    endpoints: Endpoints,
    /// Connections of the API server.
    connections: Arc<AtomicUsize>,
}

impl Scene {
    /// Two replicas that do everything.
    async fn new() -> Self {
        let (own, service) = (Own::start().await, Service::start().await);
        let options = service.options(&own, "run", "first").await;
        let first = KimupProcess::start(options).await.unwrap();
        leads(&first, DEADLINE).await;
        let options = service.options(&own, "run", "second").await;
        let second = KimupProcess::start(options).await.unwrap();
        Self::of(own, service, vec![first, second]).await
    }

    async fn of(own: Own, service: Service, replicas: Vec<KimupProcess>) -> Self {
        let Service { endpoints, connections, .. } = service;
        endpoints.lock().unwrap().extend(replicas.iter().map(KimupProcess::webhook));
        own.registry.push("certificates", "1.0.0").await.unwrap();
        let shop = own.shop("certificates").await;
        shop.create_image("app", &json!({"spec": {"image": own.registry.image("certificates")}})).await;
        shop.settles("app", "1.0.0").await;
        let scene = Self { own, shop, replicas, endpoints, connections };
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

    /// The CA that signs is among what the configuration trusts.
    async fn signing_is_trusted(&self) {
        let secret = self.secrets().await.get_opt(SECRET).await.unwrap();
        let carried = self.carried().await; // the later of the two: what it trusts may have come in between
        if let Some(secret) = secret {
            let signing = Bundle::from_pem(&secret.data.unwrap()["tls.crt"].0).into_iter().next().unwrap();
            assert!(carried.contains(&signing), "the CA signs before it is published");
        }
    }

    /// All endpoints serve what the configuration trusted a moment ago.
    async fn trusted_is_served(&self) {
        let mut carried = self.carried().await;
        let endpoints = self.endpoints.lock().unwrap().clone();
        for endpoint in endpoints {
            while let Err(error) = handshake(endpoint, carried.clone()).await {
                let now = self.carried().await;
                assert!(now != carried, "{endpoint} serves what nobody trusts: {error}");
                carried = now; // on a machine that was busy for longer than the delay
            }
        }
    }

    /// Pods and checks until the work is done.
    async fn under_load<T>(&self, also: impl AsyncFn(), work: impl Future<Output = T>) -> T {
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
                also().await;
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

    /// Somebody's own CA, as the pair of the Secret.
    async fn put(&self, ca: &CertificateAuthority) {
        let pair = [("tls.crt", ca.certificate_pem()), ("tls.key", ca.key_pem().expose_secret())]
            .map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())));
        let patch = Patch::Merge(json!({"data": std::collections::BTreeMap::from(pair)}));
        self.secrets().await.patch(SECRET, &PatchParams::default(), &patch).await.unwrap();
    }

    /// Waits until this CA is the only one that is trusted.
    async fn rotated_to(&self, ca: &CertificateAuthority) {
        let wanted = Bundle::from_pem(ca.certificate_pem().as_bytes());
        eventually(DEADLINE, "it is the only CA", async || {
            let carried = self.carried().await;
            if carried == wanted { Ok(()) } else { Err(format!("{carried:?}")) }
        })
        .await;
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

/// A Service in front of replicas.
struct Service {
    address: SocketAddr,
    endpoints: Endpoints,
    connections: Arc<AtomicUsize>,
}

impl Service {
    async fn start() -> Self {
        let front = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (endpoints, connections) = (Endpoints::default(), Arc::new(AtomicUsize::new(0)));
        let address = front.local_addr().unwrap();
        tokio::spawn(forward(front, endpoints.clone(), connections.clone()));
        Self { address, endpoints, connections }
    }

    /// A replica behind it.
    async fn options(&self, own: &Own, command: &str, name: &str) -> KimupOptions {
        let mut options = own.options(name).await;
        command.clone_into(&mut options.command);
        options.webhook_url = WebhookUrl::At(self.address);
        if command == "webhook" {
            options.args.truncate(4); // it knows no registries
        }
        options.args.extend(["--ca-rotation-delay", DELAY].map(str::to_owned));
        options
    }
}

/// Each connection to the next endpoint.
async fn forward(front: TcpListener, endpoints: Endpoints, connections: Arc<AtomicUsize>) {
    loop {
        let Ok((mut client, _)) = front.accept().await else { continue };
        let number = connections.fetch_add(1, Ordering::Relaxed);
        let endpoint = {
            let endpoints = endpoints.lock().unwrap();
            endpoints.get(number % endpoints.len().max(1)).copied()
        };
        let Some(endpoint) = endpoint else { continue };
        tokio::spawn(async move {
            let mut replica = TcpStream::connect(endpoint).await?;
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
        scene.under_load(async || scene.signing_is_trusted().await, rotation).await;
        let annotations = secrets.get(SECRET).await.unwrap().metadata.annotations.unwrap();
        assert!(!annotations.contains_key("kimup.cloudavenue.io/action"), "{annotations:?}");
    }
    let before = scene.carried().await;
    let deletion = async {
        secrets.delete(SECRET, &DeleteParams::default()).await.unwrap();
        scene.rotated(&before).await
    };
    scene.under_load(async || scene.signing_is_trusted().await, deletion).await;
    for replica in &scene.replicas {
        let failing = replica.metric("kimup_certificate_renewal_failing", &[]).await.unwrap();
        assert!(failing.abs() < 0.5, "{}", replica.log_text());
    }
    for mut replica in scene.replicas.drain(..) {
        assert_eq!(replica.terminate(Duration::from_secs(25)).await.unwrap().code(), Some(0), "{}", replica.log_text());
    }
}

#[tokio::test]
async fn nobody_starts_with_a_ca_that_is_put_in_and_not_published() {
    let (own, service) = (Own::start().await, Service::start().await);
    let socket = run_dir().unwrap().folder("certificates").unwrap().join("sync.sock").display().to_string();
    let options = async |command: &str, name: &str| {
        let mut options = service.options(&own, command, name).await;
        options.args.extend(["--sync-socket".to_owned(), socket.clone()]);
        options
    };
    let sync = options("sync", "sync").await;
    let mut third = options("webhook", "third").await;
    third.ready_within = None;
    let first = KimupProcess::start(options("webhook", "first").await).await.unwrap();
    let second = KimupProcess::start(options("webhook", "second").await).await.unwrap();
    let mut leader = KimupProcess::start(sync.clone()).await.unwrap();
    leads(&leader, DEADLINE).await;
    let scene = Scene::of(own, service, vec![first, second]).await;
    let signs = async || {
        let secret = scene.secrets().await.get(SECRET).await.unwrap();
        let annotations = secret.metadata.annotations.unwrap_or_default();
        if annotations.contains_key("kimup.cloudavenue.io/ca-signing-since") {
            Ok(())
        } else {
            Err(format!("{annotations:?}"))
        }
    };
    eventually(DEADLINE, "the first CA signs", signs).await;

    let made = CertificateAuthority::generate("own", Timestamp::now()).unwrap();
    leader.kill(); // nobody leads, so nobody publishes
    scene.put(&made).await;
    let mut third = KimupProcess::start(third).await.unwrap();
    let started = async {
        says_that_it_waits(&third).await;
        scene.burst().await; // the others serve on
        scene.own.expire_lease(CONFIGURATION).await;
        leader = KimupProcess::start(sync).await.unwrap();
        third.wait_ready(DEADLINE).await.unwrap();
        scene.endpoints.lock().unwrap().push(third.webhook());
        scene.rotated_to(&made).await;
    };
    scene.under_load(async || (), started).await;
    for replica in scene.replicas.iter().chain([&third]) {
        handshake(replica.webhook(), Bundle::from_pem(made.certificate_pem().as_bytes())).await.unwrap();
    }
    third.check_running().unwrap();
}

async fn says_that_it_waits(replica: &KimupProcess) {
    let reason = "API servers do not trust the CA in `tls.crt` of Secret kimup-system/kimup-url-ca yet";
    eventually(DEADLINE, "it says that it waits", async || match replica.ready().await {
        Err(error) if format!("{error:#}").contains(reason) => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}
