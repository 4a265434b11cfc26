//! Scenario m with an API server that misbehaves as told: lists that fail half-way, watches that are gone or too old.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use kimup_testbed::{
    AdmissionLoad, ApiStub, KimupOptions, KimupProcess, Obstacle, Reviews, TestCa, WebhookClient, WebhookUrl,
    eventually, run_dir,
};
use serde_json::{Value, json};

use crate::degraded::age;
use crate::support::{DEADLINE, binary, image};

/// More than a page of a list.
const IMAGES: usize = 600;
/// Reviews a second.
const RATE: u32 = 50;
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

/// Requests that are never answered on connections that stay open, as behind a load balancer that lost its target.
#[tokio::test]
#[ignore = "takes minutes: make test-restarts"]
async fn an_api_server_that_hangs_is_given_up() {
    let bed = Bed::new("hung").await;
    let kimup = bed.start().await;
    arrives(&bed, &kimup, "1.0.0").await;
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
    let (client, reviews, lost) = (bed.client(&kimup), reviews("app-001", "1.1.0"), Instant::now());
    eventually(Duration::from_secs(150), "it asks anew", async || {
        kimup.ready().await.unwrap();
        reviews.check(0, &client.post(&reviews.body(0)).await?)
    })
    .await;
    println!("a list that was never answered was asked for anew after {:.0} s", lost.elapsed().as_secs_f64());
}
