//! Scenario m with an API server that misbehaves as told: lists that fail half-way, watches that are gone or too old.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kimup::index::{self, Scope};
use kimup::net::silence::bounded;
use kimup::policy::Repository;
use kimup::telemetry::Metrics;
use kimup_testbed::{
    AdmissionLoad, ApiStub, KimupOptions, KimupProcess, Obstacle, Reviews, TestCa, WebhookClient, WebhookUrl,
    eventually, run_dir,
};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UnixListener};
use tokio_util::sync::CancellationToken;

use crate::degraded::age;
use crate::support::{DEADLINE, binary, image};

/// More than a page of a list.
const IMAGES: usize = 600;
/// Reviews a second.
const RATE: u32 = 50;
/// What `docs/operations.md` gives a process to end.
const STOPS_WITHIN: Duration = Duration::from_secs(25);
/// How often the stub says that nothing happened.
const BOOKMARK: Duration = Duration::from_secs(5);

/// `kimup webhook` beside it.
pub struct Bed {
    pub api: ApiStub,
    ca: TestCa,
    options: KimupOptions,
    /// Where it looks for sync.
    pub socket: PathBuf,
}

impl Bed {
    pub async fn new(name: &str) -> Self {
        let api = ApiStub::start().await.unwrap();
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}});
        api.put(namespace).unwrap();
        for number in 0..IMAGES {
            api.put(object(&format!("app-{number:03}"), "1.0.0")).unwrap();
        }
        let files = run_dir().unwrap().folder(name).unwrap();
        let ca = TestCa::new().unwrap();
        ca.server(&["127.0.0.1"]).unwrap().write(&files).unwrap();
        let mut options = KimupOptions::new(binary(), api.kubeconfig());
        name.clone_into(&mut options.name);
        "webhook".clone_into(&mut options.command);
        options.webhook_url = WebhookUrl::None;
        let socket = files.join("sync.sock");
        for (flag, path) in [
            ("--sync-socket", socket.clone()),
            ("--tls-cert-file", files.join("server.crt")),
            ("--tls-key-file", files.join("server.key")),
        ] {
            options.args.extend([flag.to_owned(), path.display().to_string()]);
        }
        Self { api, ca, options, socket }
    }

    pub async fn start(&self) -> KimupProcess {
        KimupProcess::start(self.options.clone()).await.unwrap()
    }

    pub fn client(&self, kimup: &KimupProcess) -> WebhookClient {
        WebhookClient::new(kimup.webhook(), "127.0.0.1", self.ca.pem()).unwrap()
    }

    /// From now on the second page of the Images gets this answer; how often.
    fn second_page(&self, obstacle: Obstacle) -> Arc<AtomicUsize> {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        self.api.obstruct(move |path, query| {
            let meant = path.ends_with("/images") && query.contains_key("continue");
            meant.then(|| {
                counted.fetch_add(1, Ordering::SeqCst);
                obstacle
            })
        });
        count
    }
}

/// An Image that has settled on a tag.
pub fn object(name: &str, tag: &str) -> Value {
    let repository = format!("registry.example/{name}");
    let mut object = serde_json::to_value(image(name, &json!({"spec": {"image": repository}}))).unwrap();
    object["metadata"]["namespace"] = json!("shop");
    object["status"] = json!({"tag": tag, "result": "Success", "repository": repository});
    object
}

/// Of Pods that use one of these.
pub fn reviews(name: &str, tag: &str) -> Reviews {
    let image = format!("registry.example/{name}");
    Reviews { namespace: "shop".to_owned(), text: format!("{image}:0.9.0"), wanted: format!("{image}:{tag}") }
}

async fn times(count: &AtomicUsize, wanted: usize) {
    let reached = async || count.load(Ordering::SeqCst) >= wanted;
    eventually(DEADLINE, &format!("it is asked {wanted} times"), reached).await;
}

#[tokio::test]
async fn half_a_list_is_no_list() {
    let mut bed = Bed::new("half").await;
    let asked = bed.second_page(Obstacle::Refused(500));
    bed.options.ready_within = None;
    let kimup = bed.start().await;
    times(&asked, 2).await;
    let client = bed.client(&kimup);
    // On the page that came.
    let (status, body) = client.post(&reviews("app-000", "1.0.0").body(0)).await.unwrap();
    assert_eq!(status, 503, "{}", String::from_utf8_lossy(&body));
    assert!(kimup.ready().await.is_err());
    bed.api.clear();
    kimup.wait_ready(DEADLINE).await.unwrap();
    // On the page that fails from now on.
    let load = AdmissionLoad::start(client, reviews("app-599", "1.0.0"), RATE).unwrap();
    too_old(&bed, &kimup).await;
    lost(&bed, &kimup).await;
    gone(&bed, &kimup).await;
    let report = load.stop().await.unwrap();
    assert!(report.failures.is_empty(), "{} failed: {:?}", report.failures.len(), report.failures.first());
    assert!(report.answered > 100, "{}", report.answered);
    assert_eq!(kimup.metric("kimup_images", &[]).await.unwrap().to_string(), IMAGES.to_string());
}

/// Waits until a change has arrived. The webhook is ready all the while.
async fn arrives(bed: &Bed, kimup: &KimupProcess, tag: &str) {
    let (client, reviews) = (bed.client(kimup), reviews("app-001", tag));
    eventually(DEADLINE, &format!("{tag} arrives"), async || {
        kimup.ready().await.unwrap();
        let answer = client.post(&reviews.body(0)).await.unwrap();
        reviews.check(0, &answer)
    })
    .await;
}

/// What it has seen is forgotten, and the new list fails half-way, then is slow.
async fn too_old(bed: &Bed, kimup: &KimupProcess) {
    let asked = bed.second_page(Obstacle::Refused(500));
    bed.api.put(object("app-001", "1.1.0")).unwrap();
    arrives(bed, kimup, "1.1.0").await;
    bed.api.expire_watches();
    bed.api.put(object("app-001", "1.2.0")).unwrap();
    times(&asked, 3).await;
    kimup.ready().await.unwrap();
    times(&bed.second_page(Obstacle::Delay(Duration::from_secs(1))), 1).await;
    arrives(bed, kimup, "1.2.0").await;
    bed.api.clear();
}

/// Nobody answers what it asks, which shows as silence; bookmarks are a sign of life.
async fn lost(bed: &Bed, kimup: &KimupProcess) {
    let before = age(kimup).await;
    eventually(DEADLINE, "a bookmark", async || age(kimup).await < before || before < Duration::from_secs(1)).await;
    bed.api.obstruct(|_, _| Some(Obstacle::Refused(503)));
    bed.api.end_watches();
    bed.api.put(object("app-001", "1.3.0")).unwrap();
    eventually(DEADLINE, "it has heard nothing for longer than a bookmark takes", async || {
        kimup.ready().await.unwrap();
        age(kimup).await > BOOKMARK + Duration::from_secs(2)
    })
    .await;
    bed.api.clear();
    arrives(bed, kimup, "1.3.0").await;
    assert!(age(kimup).await < BOOKMARK, "it has heard of the API server");
}

/// A watch ends, and from where it ended none is to be had any more.
async fn gone(bed: &Bed, kimup: &KimupProcess) {
    bed.api.forget();
    bed.api.end_watches();
    bed.api.put(object("app-001", "1.4.0")).unwrap();
    arrives(bed, kimup, "1.4.0").await;
}

/// Waits until Namespaces and Images are watched: what is listed is known before.
async fn watched(bed: &Bed) {
    eventually(DEADLINE, "both are watched", async || bed.api.watches() == 2).await;
}

/// Requests that are never answered on connections that stay open, as behind a load balancer that lost its target: a
/// change is waiting, and lists were asked for and hang.
async fn falls_silent(bed: &Bed) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    bed.api.obstruct(move |_, _| {
        counted.fetch_add(1, Ordering::SeqCst);
        Some(Obstacle::Silence)
    });
    bed.api.expire_watches();
    bed.api.put(object("app-001", "1.1.0")).unwrap();
    times(&asked, 2).await;
    bed.api.clear();
}

/// The client as every process makes it, but for its patience.
#[tokio::test]
async fn an_api_server_that_hangs_is_given_up_in_time() {
    let patience = BOOKMARK + Duration::from_secs(2);
    let bed = Bed::new("silent").await;
    let kubeconfig = Kubeconfig::read_from(bed.api.kubeconfig()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = kube::Client::try_from(bounded(config, patience)).unwrap();
    let (index, _task) = index::start(&client, &Scope::All, Metrics::new(), CancellationToken::new());
    let repository = Repository::parse("registry.example/app-001").unwrap();
    let knows = async |tag: &str| {
        eventually(DEADLINE, &format!("it knows {tag}"), async || {
            let known = index
                .snapshot()
                .namespace("shop")
                .and_then(|shop| shop.image(&repository))
                .and_then(|image| image.tag().map(str::to_owned));
            if known.as_deref() == Some(tag) { Ok(()) } else { Err(format!("{known:?}")) }
        })
        .await;
    };
    knows("1.0.0").await;
    watched(&bed).await;
    let lost = Instant::now();
    falls_silent(&bed).await;
    knows("1.1.0").await;
    assert!(
        index.is_ready() && lost.elapsed() >= patience,
        "the lists that hang were waited for: {:?}",
        lost.elapsed()
    );
}

/// The same as a process, with the patience that it has.
#[tokio::test]
#[ignore = "takes minutes: make test-restarts"]
async fn an_api_server_that_hangs_is_given_up() {
    let bed = Bed::new("hung").await;
    let kimup = bed.start().await;
    arrives(&bed, &kimup, "1.0.0").await;
    watched(&bed).await;
    falls_silent(&bed).await;
    let (client, reviews, lost) = (bed.client(&kimup), reviews("app-001", "1.1.0"), Instant::now());
    eventually(Duration::from_secs(150), "it asks anew", async || {
        kimup.ready().await.unwrap();
        reviews.check(0, &client.post(&reviews.body(0)).await?)
    })
    .await;
    println!("a list that was never answered was asked for anew after {:.0} s", lost.elapsed().as_secs_f64());
}

/// Told to stop while reviews wait for a sync that never answers, another does not come to its end, and the API server
/// answers nothing either: it ends all the same, and those that are whole get their answer before.
#[tokio::test]
async fn what_hangs_does_not_hold_up_the_end() {
    let mut bed = Bed::new("ending").await;
    let socket = UnixListener::bind(&bed.socket).unwrap();
    let (asked, mut questions) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((question, _)) = socket.accept().await {
            asked.send(question).unwrap(); // kept open, never answered
        }
    });
    bed.options.args.extend(["--question-timeout".to_owned(), "8s".to_owned()]);
    let mut new = object("new", "");
    new.as_object_mut().unwrap().remove("status");
    bed.api.put(new).unwrap();
    let mut kimup = bed.start().await;
    let client = Arc::new(bed.client(&kimup));
    let mut half = TcpStream::connect(kimup.webhook()).await.unwrap();
    half.write_all(&[22, 3, 1]).await.unwrap(); // a TLS handshake that goes no further
    let reviews = (0..3).map(|number| {
        let client = Arc::clone(&client);
        tokio::spawn(async move { client.post(&reviews("new", "1.0.0").body(number)).await })
    });
    let reviews: Vec<_> = reviews.collect();
    let _question = questions.recv().await.unwrap();
    bed.api.obstruct(|_, _| Some(Obstacle::Silence));
    bed.api.expire_watches();
    kimup.ask_to_stop().unwrap();
    let told = Instant::now();
    let status = kimup.ended(STOPS_WITHIN).await.unwrap();
    println!("ended {:.1} s after it was told to", told.elapsed().as_secs_f64());
    assert_eq!(status.code(), Some(0), "{}", kimup.log_text());
    for review in reviews {
        let (status, body) = review.await.unwrap().unwrap();
        let body = String::from_utf8_lossy(&body);
        assert!(status == 200 && body.contains("\"response\""), "{status} {body}");
    }
}
