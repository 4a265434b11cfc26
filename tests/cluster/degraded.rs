//! Scenario m: the API server is away, hangs, or comes back; the webhook goes on with what it knew.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use k8s_openapi::api::core::v1::Secret;
use kimup_testbed::{
    AdmissionLoad, Balancer, KimupOptions, KimupProcess, Reviews, TestCa, WebhookClient, WebhookUrl, eventually,
    run_dir,
};
use kube::api::Api;
use serde_json::json;

use crate::availability::is_measured;
use crate::own::{Own, SYSTEM, leads};
use crate::support::{DEADLINE, Shop};

/// What the API server calls the webhook.
const SERVICE: &str = "kimup-webhook.kimup-system.svc";
/// Reviews a second: enough that none falls between two states.
const RATE: u32 = 50;
/// What `docs/operations.md` gives a process to end.
const STOPS_WITHIN: Duration = Duration::from_secs(25);
/// From the API server's return until a change has come.
fn follows_within() -> Duration {
    Duration::from_secs(if is_measured() { 10 } else { 30 })
}

struct Scene {
    own: Own,
    shop: Shop,
    /// Between the API server and the webhook.
    watches: Balancer,
    webhook: KimupProcess,
    _sync: KimupProcess,
    files: PathBuf,
    /// Signs the certificate in `files`.
    ca: TestCa,
    own_ca_pem: String,
}

impl Scene {
    async fn new() -> Self {
        let own = Own::start().await;
        let files = run_dir().unwrap().folder("degraded").unwrap();
        let ca = TestCa::new().unwrap();
        ca.server(&["127.0.0.1"]).unwrap().write(&files).unwrap();
        let watches = Balancer::start(&[own.cluster.address().parse().unwrap()]).await.unwrap();
        let webhook = KimupProcess::start(webhook(&own, &files, "webhook", &watches).await).await.unwrap();
        let mut options = own.options("sync").await;
        "sync".clone_into(&mut options.command);
        options.webhook_url = WebhookUrl::None;
        options.args.extend(socket(&files));
        let sync = KimupProcess::start(options).await.unwrap();
        leads(&sync, DEADLINE).await;
        let secrets: Api<Secret> = Api::namespaced(own.cluster.client().await.unwrap(), SYSTEM);
        let secret = secrets.get("kimup-ca").await.unwrap().data.unwrap().remove("ca.crt").unwrap();
        let own_ca_pem = String::from_utf8(secret.0).unwrap();
        own.registry.push("m-app", "1.0.0").await.unwrap();
        let shop = own.shop("m-shop").await;
        shop.create_image("app", &json!({"spec": {"image": own.registry.image("m-app")}})).await;
        shop.settles("app", "1.0.0").await;
        let scene = Self { own, shop, watches, webhook, _sync: sync, files, ca, own_ca_pem };
        scene.gets(&scene.client(), "1.0.0").await;
        scene
    }

    /// Posts straight to the webhook, which shows a certificate of its own CA.
    fn client(&self) -> WebhookClient {
        WebhookClient::new(self.webhook.webhook(), SERVICE, &self.own_ca_pem).unwrap()
    }

    fn reviews(&self, tag: &str) -> Reviews {
        let image = self.own.registry.image("m-app");
        let (text, wanted) = (format!("{image}:0.9.0"), format!("{image}:{tag}"));
        Reviews { namespace: self.shop.namespace.clone(), text, wanted }
    }

    /// Waits until a Pod gets this tag.
    async fn gets(&self, client: &WebhookClient, tag: &str) {
        let reviews = self.reviews(tag);
        eventually(DEADLINE, &format!("a Pod gets {tag}"), async || {
            let answer = client.post(&reviews.body(1)).await?;
            reviews.check(1, &answer)
        })
        .await;
    }

    async fn push(&self, tag: &str) {
        self.own.registry.push("m-app", tag).await.unwrap();
        self.shop.sync("app").await;
        self.shop.settles("app", tag).await;
    }

    /// Waits until the webhook has not heard of the API server for so long. It is ready all the while.
    async fn ages(&self, by: Duration) {
        eventually(DEADLINE, &format!("silence for {by:?}"), async || {
            self.webhook.ready().await.unwrap();
            let age = age(&self.webhook).await;
            if age > by { Ok(()) } else { Err(format!("{age:?}")) }
        })
        .await;
    }

    async fn is_fresh(&self) {
        eventually(DEADLINE, "it has heard of the API server", async || {
            let age = age(&self.webhook).await;
            if age < Duration::from_secs(3) { Ok(()) } else { Err(format!("{age:?}")) }
        })
        .await;
    }
}

/// How long a webhook has not heard of Images.
pub async fn age(kimup: &KimupProcess) -> Duration {
    let seen = kimup.metric("kimup_watch_last_seen_timestamp_seconds", &[("resource", "images")]).await.unwrap();
    assert!(seen > 0.0, "the metric is there");
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seen)).unwrap_or_default()
}

fn socket(files: &Path) -> [String; 2] {
    ["--sync-socket".to_owned(), files.join("sync.sock").display().to_string()]
}

async fn webhook(own: &Own, files: &Path, name: &str, via: &Balancer) -> KimupOptions {
    let mut options = own.options(name).await;
    options.kubeconfig = own.cluster.kubeconfig_via(SYSTEM, "kimup", &via.address().to_string()).await.unwrap();
    "webhook".clone_into(&mut options.command);
    options.webhook_url = WebhookUrl::None;
    options.args.truncate(4); // it knows no registries
    options.args.extend(socket(files));
    options
}

#[tokio::test]
async fn the_webhook_goes_on_without_the_api_server() {
    let scene = Scene::new().await;
    let mut files = webhook(&scene.own, &scene.files, "files", &scene.watches).await;
    for (flag, file) in [("--tls-cert-file", "server.crt"), ("--tls-key-file", "server.key")] {
        files.args.extend([flag.to_owned(), scene.files.join(file).display().to_string()]);
    }
    let own = webhook(&scene.own, &scene.files, "own", &scene.watches).await;
    let load = AdmissionLoad::start(scene.client(), scene.reviews("1.0.0"), RATE).unwrap();
    the_api_server_hangs(&scene).await;
    scene.own.cluster.kill_apiserver();
    scene.ages(Duration::from_secs(3)).await;
    let late = Late::start(files, own).await;
    late.is_not_ready(&scene).await;
    scene.own.cluster.restart_apiserver().await.unwrap();
    let returned = Instant::now();
    let report = load.stop().await.unwrap();
    println!("{} reviews answered without the API server, {} failed", report.answered, report.failures.len());
    assert!(report.failures.is_empty(), "{} failed: {:?}", report.failures.len(), report.failures.first());
    assert!(report.answered > 100, "{}", report.answered);
    let clients = late.clients(&scene);
    for (kimup, client) in [&late.files, &late.own].into_iter().zip(&clients) {
        kimup.wait_ready(follows_within()).await.unwrap();
        scene.gets(client, "1.0.0").await;
    }
    scene.is_fresh().await;
    assert!(returned.elapsed() < follows_within(), "{:?}", returned.elapsed());
    scene.push("1.1.0").await;
    for client in clients.iter().chain([&scene.client()]) {
        scene.gets(client, "1.1.0").await;
    }
}

/// Told to stop while the API server says nothing and sync, which leads, has a newer tag to write: both end in the time that
/// a Pod has.
#[tokio::test]
async fn a_silent_api_server_does_not_hold_up_the_end() {
    let own = Own::start().await;
    let files = run_dir().unwrap().folder("ending").unwrap();
    let silent = Balancer::start(&[own.cluster.address().parse().unwrap()]).await.unwrap();
    let webhook = webhook(&own, &files, "webhook", &silent).await;
    let mut sync = own.options("sync").await;
    sync.kubeconfig.clone_from(&webhook.kubeconfig);
    "sync".clone_into(&mut sync.command);
    sync.webhook_url = WebhookUrl::None;
    sync.args.extend(socket(&files));
    let (webhook, sync) = tokio::join!(KimupProcess::start(webhook), KimupProcess::start(sync));
    let mut processes = [webhook.unwrap(), sync.unwrap()];
    leads(&processes[1], DEADLINE).await;
    own.registry.push("m-app", "1.0.0").await.unwrap();
    let shop = own.shop("m-shop").await;
    shop.create_image("app", &json!({"spec": {"image": own.registry.image("m-app")}})).await;
    shop.settles("app", "1.0.0").await;

    own.registry.push("m-app", "1.1.0").await.unwrap();
    shop.annotate_image("app", "kimup.cloudavenue.io/requestedAt", Some("now")).await;
    silent.hold_back(true);
    for process in &mut processes {
        process.ask_to_stop().unwrap();
    }
    let told = Instant::now();
    for process in &mut processes {
        let status = process.ended(STOPS_WITHIN.saturating_sub(told.elapsed())).await.unwrap();
        println!("ended {:.1} s after it was told to", told.elapsed().as_secs_f64());
        assert_eq!(status.code(), Some(0), "{}", process.log_text());
    }
}

/// Its connections stay open and nothing comes.
async fn the_api_server_hangs(scene: &Scene) {
    scene.watches.hold_back(true);
    scene.ages(Duration::from_secs(3)).await;
    scene.watches.hold_back(false);
    scene.own.cluster.kubectl_ok(&["annotate", "namespace", &scene.shop.namespace, "touched=yes"]).await.unwrap();
    scene.shop.annotate_image("app", "touched", Some("yes")).await;
    scene.is_fresh().await;
}

/// Two that start while the API server is away.
struct Late {
    /// With certificates from files: it listens.
    files: KimupProcess,
    /// Waits for its CA, and does not listen.
    own: KimupProcess,
}

impl Late {
    async fn start(mut files: KimupOptions, mut own: KimupOptions) -> Self {
        for options in [&mut files, &mut own] {
            options.ready_within = None;
        }
        let (files, own) = tokio::join!(KimupProcess::start(files), KimupProcess::start(own));
        Self { files: files.unwrap(), own: own.unwrap() }
    }

    fn clients(&self, scene: &Scene) -> [WebhookClient; 2] {
        [
            WebhookClient::new(self.files.webhook(), "127.0.0.1", scene.ca.pem()).unwrap(),
            WebhookClient::new(self.own.webhook(), SERVICE, &scene.own_ca_pem).unwrap(),
        ]
    }

    /// Neither takes traffic, and neither answers a review with anything that the API server could take for an answer.
    async fn is_not_ready(&self, scene: &Scene) {
        let says = async |kimup: &KimupProcess, part: &str| {
            eventually(DEADLINE, part, async || match kimup.ready().await {
                Err(error) if format!("{error:#}").contains(part) => Ok(()),
                other => Err(format!("{other:?}")),
            })
            .await;
        };
        says(&self.files, "503 Service Unavailable: images: Images and Namespaces are not listed yet").await;
        says(&self.own, "503 Service Unavailable: ca: no CA from Secret kimup-system/kimup-ca yet").await;
        let review = scene.reviews("1.0.0").body(1);
        let [files, own] = self.clients(scene);
        let (status, body) = files.post(&review).await.unwrap();
        assert_eq!(status, 503, "{}", String::from_utf8_lossy(&body));
        assert!(own.post(&review).await.is_err());
    }
}
