//! Images that are due by their schedules, a registry client, and registries that count, in tokio's time.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::extract::Request;
use axum::response::Response;
use jiff::Timestamp;
use kimup::api::{Phase, Schedule, shared_age};
use kimup::policy::Repository;
use kimup::registry::{Asker, Client, Config, Keyring, ListRequest, PullSecret};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// How far the time moves when nobody has anything to do but wait.
const STEP: Duration = Duration::from_millis(10);
/// Turns without a request after which everybody waits for the time.
const QUIET_TURNS: usize = 30;
/// Longest that a request may have waited for its host's rate: four listings at once, five requests a second.
const RATE_WAIT: Duration = Duration::from_secs(2);

#[derive(Clone, Copy, Debug)]
pub struct Plan {
    pub images: usize,
    pub repositories: usize,
    pub hosts: usize,
    pub interval: Duration,
    pub intervals: u32,
    /// Whether Images share listings, as in sync.
    pub shared: bool,
}

/// What the registries counted.
#[derive(Debug, Default)]
pub struct Count {
    /// Requests for tags, refused ones included.
    pub lists: usize,
    /// Of them: answered with 401.
    pub refused: usize,
    pub tokens: usize,
    /// Lifetimes of tokens, per registry, scope and credentials: fewer than tokens, if one came while another held.
    pub lifetimes: usize,
    /// Syncs of Images.
    pub syncs: usize,
    pub failed: usize,
    /// Most requests for tags within one second after the first interval.
    pub busiest: usize,
    seconds: HashMap<u64, usize>,
    held: HashMap<String, Instant>,
    requests: usize,
}

impl Plan {
    /// Requests for tags per repository and interval.
    #[allow(clippy::cast_precision_loss)]
    pub fn per_interval(&self, count: &Count) -> f64 {
        count.lists as f64 / (self.repositories as f64 * f64::from(self.intervals))
    }

    /// Runs the whole time. On a runtime of one thread whose time is paused.
    pub async fn run(self) -> Count {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let count = Arc::new(Mutex::new(Count::default()));
        let mut hosts = Vec::new();
        for n in 0..self.hosts {
            // Docker Hub's tokens hold for five minutes; others' for an hour.
            let life = Duration::from_secs(if n % 2 == 0 { 300 } else { 3600 });
            hosts.push(serve(count.clone(), life, Instant::now() + self.interval).await);
        }
        // While a blocking task runs the time moves by hand only: not whenever an answer is on its way.
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let hold = tokio::task::spawn_blocking(move || stopped.recv().is_err());
        let config = Config { plain_http: hosts.clone(), ..Config::default() };
        let client = Client::new(config).expect("a client");
        self.drive(&client, &hosts, &count).await;
        drop(stop);
        hold.await.expect("held");
        let mut count = std::mem::take(&mut *count.lock().expect("counted"));
        count.busiest = count.seconds.values().copied().max().unwrap_or(0);
        count
    }

    async fn drive(&self, client: &Client, hosts: &[String], count: &Mutex<Count>) {
        let keyrings: Vec<Keyring> = hosts.iter().map(|host| keyring(host)).collect();
        let requests: Vec<ListRequest> = (0..self.images)
            .map(|image| {
                let repository = image % self.repositories;
                let host = repository % hosts.len();
                ListRequest {
                    repository: Repository::parse(&format!("{}/team/app-{repository}", hosts[host])).expect("a name"),
                    keyring: keyrings[host].clone(),
                    insecure_skip_tls_verify: false,
                }
            })
            .collect();
        let (began, epoch) = (Instant::now(), "2026-01-01T00:00:00Z".parse::<Timestamp>().expect("a time"));
        let end = epoch + self.interval * self.intervals;
        let mut due: BTreeSet<(Timestamp, usize)> = (0..self.images).map(|image| (epoch, image)).collect();
        let mut syncs: JoinSet<(usize, bool)> = JoinSet::new();
        loop {
            let now = epoch + began.elapsed();
            while due.first().is_some_and(|(at, _)| *at <= now) {
                let Some((_, image)) = due.pop_first() else { break };
                syncs.spawn(sync(client.clone(), requests[image].clone(), image, self.age(), self.shared));
            }
            let moved = quiet(count).await;
            let mut ended = false;
            while let Some(Ok((image, listed))) = syncs.try_join_next() {
                ended = true;
                let mut count = count.lock().expect("counted");
                count.syncs += 1;
                count.failed += usize::from(!listed);
                let phase = Phase::of(&requests[image].repository);
                let next = Schedule::Every(self.interval).next_in_phase(epoch + began.elapsed(), phase);
                due.extend(next.map(|next| (next, image)));
            }
            match due.first() {
                _ if moved || ended => {}
                _ if !syncs.is_empty() => tokio::time::advance(STEP).await,
                Some((at, _)) if *at < end => {
                    let wait = Duration::try_from((epoch + began.elapsed()).duration_until(*at)).unwrap_or_default();
                    tokio::time::advance(wait.max(Duration::from_millis(1))).await;
                }
                _ => return,
            }
        }
    }

    fn age(&self) -> Duration {
        shared_age(self.interval)
    }
}

async fn sync(client: Client, request: ListRequest, image: usize, age: Duration, shared: bool) -> (usize, bool) {
    let now = Instant::now();
    let listed = if shared {
        let not_before = now.checked_sub(age).unwrap_or(now);
        client.list_tags_shared(&request, not_before, Asker::Schedule).await.is_ok()
    } else {
        client.list_tags(&request).await.is_ok()
    };
    (image, listed)
}

/// Lets everybody do what can be done now; whether there was a request.
async fn quiet(count: &Mutex<Count>) -> bool {
    let requests = || count.lock().expect("counted").requests;
    let (first, mut seen, mut turns) = (requests(), requests(), 0);
    while turns < QUIET_TURNS {
        tokio::task::yield_now().await;
        turns += 1;
        if requests() != seen {
            (seen, turns) = (requests(), 0);
        }
    }
    seen != first
}

fn keyring(host: &str) -> Keyring {
    let config = serde_json::json!({ host: { "username": "kimup", "password": "bench" } }).to_string();
    let data = BTreeMap::from([(".dockercfg".to_owned(), config.into_bytes())]);
    let secret = PullSecret { name: "pull", kind: "kubernetes.io/dockercfg", data: &data };
    Keyring::from_secrets([secret]).expect("a pull secret")
}

/// A registry that asks for tokens; returns its address.
async fn serve(count: Arc<Mutex<Count>>, life: Duration, settled: Instant) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let host = listener.local_addr().expect("an address").to_string();
    let realm = format!(r#"Bearer realm="http://{host}/token",service="bench""#);
    let app = axum::Router::new().fallback(move |request: Request| {
        let (count, realm) = (count.clone(), realm.clone());
        async move { answer(&mut count.lock().expect("counted"), &request, &realm, life, settled) }
    });
    tokio::spawn(async move { drop(axum::serve(listener, app).await) });
    host
}

fn answer(count: &mut Count, request: &Request, realm: &str, life: Duration, settled: Instant) -> Response {
    count.requests += 1;
    let now = Instant::now();
    let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    let respond = |status: u16, body: String| {
        let builder = Response::builder().status(status).header("www-authenticate", realm);
        builder.body(body.into()).expect("an answer")
    };
    if request.uri().path() == "/token" {
        count.tokens += 1;
        let scope = format!("{realm} {:?} {authorization:?}", request.uri().query());
        // The client renews a token after nine tenths of its life, counted from before it waits for its rate.
        if count.held.get(&scope).is_none_or(|until| *until <= now) {
            count.lifetimes += 1;
            count.held.insert(scope, now + life.mul_f64(0.9) - RATE_WAIT);
        }
        let token = serde_json::json!({ "token": "t", "expires_in": life.as_secs() });
        return respond(200, token.to_string());
    }
    count.lists += 1;
    if let Some(since) = now.checked_duration_since(settled) {
        *count.seconds.entry(since.as_secs()).or_default() += 1;
    }
    if authorization != Some("Bearer t") {
        count.refused += 1;
        return respond(401, String::new());
    }
    respond(200, serde_json::json!({ "tags": ["1.0.0", "1.1.0", "1.2.0"] }).to_string())
}
