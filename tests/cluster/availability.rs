//! Scenario l: replicas are restarted one after the other, and killed, under load; no Pod is refused or missed.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Pod;
use kimup::admission::configuration::{CaBundle, Endpoint, Options, build};
use kimup_testbed::{
    AdmissionLoad, Balancer, KimupOptions, KimupProcess, LoadReport, Reviews, TestCa, WebhookClient, WebhookUrl,
    eventually, run_dir,
};
use kube::api::{Api, PostParams};
use serde_json::json;

use crate::own::{Own, SYSTEM, admits, leads};
use crate::support::{DEADLINE, ENABLED, Shop, image_of, pod, with_annotations};

/// What `docs/operations.md` gives a process to end.
const STOPS_WITHIN: Duration = Duration::from_secs(25);
/// From the moment that a replica says it is not ready until new connections go elsewhere, on the node of the API server.
const ENDPOINTS_FOLLOW: Duration = Duration::from_secs(1);
/// From the end of a process until everybody has seen its connections end, on a busy machine.
fn noticed_within() -> Duration {
    Duration::from_millis(if is_measured() { 250 } else { 2000 })
}
const POLICY: &str = "kimup.cloudavenue.io/policy";

/// A Pod of `deploy/`: the webhook, and sync as its sidecar, which the kubelet ends last.
struct Replica {
    webhook: KimupProcess,
    sync: KimupProcess,
}

impl Replica {
    async fn start(own: &Own, files: &Path, name: &str) -> Self {
        let (webhook, sync) = (options(own, files, "webhook", name).await, options(own, files, "sync", name).await);
        let (webhook, sync) = tokio::join!(KimupProcess::start(webhook), KimupProcess::start(sync));
        Self { webhook: webhook.unwrap(), sync: sync.unwrap() }
    }
}

struct Scene {
    own: Own,
    shop: Shop,
    ca: TestCa,
    /// Certificate, key and sockets.
    files: PathBuf,
    /// The Service.
    service: Balancer,
    replicas: [Replica; 2],
}

impl Scene {
    async fn new() -> Self {
        let own = Own::start().await;
        let files = run_dir().unwrap().folder("zero-loss").unwrap();
        let ca = TestCa::new().unwrap();
        ca.server(&["127.0.0.1"]).unwrap().write(&files).unwrap();
        let service = Balancer::start(&[]).await.unwrap();
        let configuration = Options {
            name: "kimup".to_owned(),
            namespace: SYSTEM.to_owned(),
            endpoint: Endpoint::Url(format!("https://{}", service.address())),
            owner: None,
            ca_bundle: CaBundle::Own(ca.pem().as_bytes().to_vec()),
        };
        let configurations: Api<MutatingWebhookConfiguration> = Api::all(own.cluster.client().await.unwrap());
        configurations.create(&PostParams::default(), &build(&configuration, &[])).await.unwrap();
        let first = Replica::start(&own, &files, "a").await;
        leads(&first.sync, DEADLINE).await;
        let second = Replica::start(&own, &files, "b").await;
        own.registry.push("l-app", "1.0.0").await.unwrap();
        own.registry.push_all("l-first", &["1.0.0", "1.1.0"]).await.unwrap();
        let shop = own.shop("l-shop").await;
        shop.create_image("app", &json!({"spec": {"image": own.registry.image("l-app")}})).await;
        shop.settles("app", "1.0.0").await;
        let scene = Self { own, shop, ca, files, service, replicas: [first, second] };
        for which in [0, 1] {
            scene.service.set_backends(&[scene.replicas[which].webhook.webhook()]);
            admits(&scene.shop, &scene.image("0.9.0"), &scene.image("1.0.0")).await;
        }
        scene.serve(&[0, 1]);
        scene
    }

    fn image(&self, tag: &str) -> String {
        format!("{}:{tag}", self.own.registry.image("l-app"))
    }

    /// New connections go to these replicas.
    fn serve(&self, which: &[usize]) {
        let backends: Vec<_> = which.iter().map(|n| self.replicas[*n].webhook.webhook()).collect();
        self.service.set_backends(&backends);
    }

    /// Reviews straight to the Service.
    fn load(&self) -> AdmissionLoad {
        let client = WebhookClient::new(self.service.address(), "127.0.0.1", self.ca.pem()).unwrap();
        let (text, wanted) = (self.image("0.9.0"), self.image("1.0.0"));
        let reviews = Reviews { namespace: self.shop.namespace.clone(), text, wanted };
        AdmissionLoad::start(client, reviews, rate()).unwrap()
    }

    /// As a rollout of kimup's own Deployment or a drained node does it, with no replica to spare.
    async fn restart(&mut self, which: usize) {
        let told = Instant::now();
        let replica = &mut self.replicas[which];
        replica.webhook.ask_to_stop().unwrap();
        eventually(DEADLINE, "it says that it is not ready", async || replica.webhook.ready().await.is_err()).await;
        tokio::time::sleep(ENDPOINTS_FOLLOW).await; // new connections still come
        self.serve(&[1 - which]);
        let replica = &mut self.replicas[which];
        let left = || STOPS_WITHIN.saturating_sub(told.elapsed());
        let ended = [replica.webhook.ended(left()).await.unwrap(), replica.sync.terminate(left()).await.unwrap()];
        assert!(ended.iter().all(|status| status.code() == Some(0)), "{ended:?}: {}", replica.webhook.log_text());
        self.replicas[which] = Replica::start(&self.own, &self.files, ["a", "b"][which]).await;
        self.serve(&[0, 1]);
    }
}

/// As in `deploy/` with certificates from files: no URL, a socket between the two.
async fn options(own: &Own, files: &Path, command: &str, replica: &str) -> KimupOptions {
    let mut options = own.options(&format!("{command}-{replica}")).await;
    command.clone_into(&mut options.command);
    options.webhook_url = WebhookUrl::None;
    if command == "webhook" {
        options.args.truncate(4); // it knows no registries
    }
    let file = |name: &str| files.join(name).display().to_string();
    options.args.extend(["--sync-socket".to_owned(), file(&format!("{replica}.sock"))]);
    options.args.extend(["--tls-cert-file".to_owned(), file("server.crt")]);
    options.args.extend(["--tls-key-file".to_owned(), file("server.key")]);
    options
}

/// Creates Pods through the API server, without a pause, until it is stopped.
struct Creators {
    stop: Arc<AtomicBool>,
    tasks: Vec<tokio::task::JoinHandle<Vec<Result<(), String>>>>,
}

impl Creators {
    fn start(scene: &Scene) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let known = [ENABLED, "true", "l-app", "0.9.0", "1.0.0"];
        // Nobody makes an Image for a dry run: each such Pod is a question to sync.
        let first = [POLICY, "minor", "l-first", "1.0.0", "1.1.0"];
        let tasks = [known, known, first].map(|[key, value, repository, text, wanted]| {
            let (api, stop) = (scene.shop.api::<Pod>(), stop.clone());
            let image = scene.own.registry.image(repository);
            let (text, wanted) = (format!("{image}:{text}"), format!("{image}:{wanted}"));
            tokio::spawn(async move {
                let params = PostParams { dry_run: true, ..PostParams::default() };
                let pod = with_annotations(pod(repository, &text), &[(key, value)]);
                let mut results = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    results.push(match api.create(&params, &pod).await {
                        Ok(pod) if image_of(&pod, "app") == wanted => Ok(()),
                        Ok(pod) => Err(format!("unmutated: {}", image_of(&pod, "app"))),
                        Err(error) => Err(error.to_string()),
                    });
                }
                results
            })
        });
        Self { stop: stop.clone(), tasks: tasks.into() }
    }

    /// How many Pods were created, all with the right image.
    async fn stop(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        let mut results = Vec::new();
        for task in self.tasks {
            results.extend(task.await.unwrap());
        }
        let failed: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
        assert!(failed.is_empty(), "{} of {} Pods: {:?}", failed.len(), results.len(), &failed[..failed.len().min(5)]);
        results.len()
    }
}

/// How many restarts; `make test-restarts` does 20.
fn restarts() -> usize {
    std::env::var("KIMUP_RESTARTS").map_or(3, |count| count.parse().expect("KIMUP_RESTARTS is a number"))
}

/// Whether this is what is measured, and not one of many tests on a machine that is busy with all of them.
pub fn is_measured() -> bool {
    std::env::var_os("KIMUP_RESTARTS").is_some()
}

/// Reviews a second straight to the Service.
fn rate() -> u32 {
    if is_measured() { 500 } else { 100 }
}

/// What takes longer is a stall. The API server would wait for 10 s.
fn longest_answer() -> Duration {
    Duration::from_secs(if is_measured() { 5 } else { 9 })
}

/// What was to be sent was sent, and none of it stood still.
fn was_steady(report: &LoadReport, took: Duration) {
    let sent = report.times.len() + report.failures.len();
    let (sent, meant) = (u128::try_from(sent).unwrap(), u128::from(rate()) * took.as_millis() / 1000);
    assert!(
        sent * 10 >= meant * 8,
        "{sent} reviews were sent of {meant}, {} were not for want of room: the machine is too slow to tell",
        report.skipped
    );
    let longest = report.quantile(1.0);
    assert!(
        longest < longest_answer(),
        "the slowest answer took {longest:?}, with {} not sent for want of room",
        report.skipped
    );
}

fn tell(what: &str, report: &LoadReport, took: Duration) {
    let causes: Vec<_> = report.failures.iter().take(5).map(|failure| &failure.cause).collect();
    println!(
        "{what}: {} reviews in {:.0} s, {} failed {causes:?}, {} resent, {} not sent in time, {} connections; \
         p50 {:?}, p99 {:?}, longest {:?}",
        report.answered,
        took.as_secs_f64(),
        report.failures.len(),
        report.resent,
        report.skipped,
        report.connections,
        report.quantile(0.5),
        report.quantile(0.99),
        report.quantile(1.0),
    );
}

#[tokio::test]
async fn restarts_and_kills_lose_nothing() {
    let mut scene = Scene::new().await;
    let (load, creators, started) = (scene.load(), Creators::start(&scene), Instant::now());
    for number in 0..restarts() {
        scene.restart(number % 2).await;
    }
    let took = started.elapsed();
    let report = load.stop().await.unwrap();
    tell(&format!("{} restarts", restarts()), &report, took);
    let created = creators.stop().await;
    println!("{created} Pods created meanwhile through the API server");
    assert!(report.failures.is_empty(), "{} failed", report.failures.len());
    was_steady(&report, took);
    assert!(created > 20 * restarts(), "{created} Pods were created during {} restarts", restarts());
    a_killed_replica_takes_only_what_was_open(&mut scene).await;
    a_second_signal_ends_it_at_once(&mut scene).await;
}

async fn a_killed_replica_takes_only_what_was_open(scene: &mut Scene) {
    let (load, started) = (scene.load(), Instant::now());
    eventually(DEADLINE, "there is a load", async || load.so_far().answered > 500).await;
    let victim = scene.replicas[0].webhook.webhook();
    // It stands still first, and the other's answers are held back for a moment: so it has many to take along.
    scene.replicas[0].webhook.freeze().unwrap();
    scene.service.hold_back(true);
    eventually(DEADLINE, "reviews are open to both", async || load.open() >= 20).await;
    scene.service.hold_back(false);
    let to_victim = scene.service.connections_to(victim);
    scene.replicas[0].webhook.kill();
    let dead = tokio::time::Instant::now();
    let before = load.so_far().answered;
    eventually(DEADLINE, "the other goes on", async || load.so_far().answered > before + 500).await;
    let took = started.elapsed();
    let report = load.stop().await.unwrap();
    tell(&format!("one of two killed, with {to_victim} connections to it"), &report, took);
    was_steady(&report, took);
    // A connection carries one review at a time, and one that broke carries none again.
    assert!(!report.failures.is_empty(), "nothing was open");
    let mut broken = HashSet::new();
    for failure in &report.failures {
        let connection = failure.connection.unwrap_or_else(|| panic!("not for a broken connection: {failure:?}"));
        assert_eq!(scene.service.backend_of(connection), Some(victim), "on a connection to the other: {failure:?}");
        assert!(broken.insert(connection), "a second one on its connection: {failure:?}");
        assert!(failure.sent <= dead + noticed_within(), "{:?} after its end: {failure:?}", failure.sent - dead);
    }
}

async fn a_second_signal_ends_it_at_once(scene: &mut Scene) {
    let webhook = &mut scene.replicas[1].webhook;
    webhook.ask_to_stop().unwrap();
    eventually(DEADLINE, "it says that it is not ready", async || webhook.ready().await.is_err()).await;
    webhook.ask_to_stop().unwrap();
    let asked = Instant::now();
    let status = webhook.ended(DEADLINE).await.unwrap();
    assert_eq!(status.code(), Some(128 + 15), "{}", webhook.log_text());
    assert!(asked.elapsed() < Duration::from_secs(4), "not at the end of the drain: {:?}", asked.elapsed());
}
