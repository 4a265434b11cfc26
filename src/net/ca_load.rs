//! Rotations under load: servers, and clients that trust only what an API server would trust at that moment.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::get;
use jiff::{SignedDuration, Timestamp};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ca::{Bundle, Carried, Following, Rotation, Timing, follow, rotate};
use super::ca_rotation::CaState;
use super::ca_testing::FakeApi;
use super::probes::Readiness;
use super::server::{ServerOptions, serve_https};
use super::tls::{CertSource, Clock, SharedTls, start_every};
use super::tls_testing::{ANSWER, Connection, Load, Tally, trusting};
use crate::telemetry::Metrics;

/// As in a cluster, faster.
const TIMING: Timing =
    Timing { delay: Duration::from_millis(200), overlap: Duration::from_millis(400), poll: Duration::from_millis(10) };
/// How much later an API server sees the configuration, at most: within the delay.
const LAG: Duration = Duration::from_millis(150);

/// Requests in one connection, for each client: new connections, some that are kept for a while, and one that is kept through
/// every rotation.
const KEPT: [usize; 3] = [1, 10, usize::MAX];

struct Replica {
    address: SocketAddr,
    tls: SharedTls,
}

struct Bed {
    api: FakeApi,
    replicas: Vec<Replica>,
    /// Moves the clock of the replicas' certificates, in hours.
    hours: Arc<AtomicI64>,
    live: Live,
    shutdown: CancellationToken,
}

impl Bed {
    async fn start() -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (api, shutdown) = (FakeApi::default(), CancellationToken::new());
        let hours = Arc::new(AtomicI64::new(0));
        let first = api.store().load_or_create().await.unwrap();
        let live = lead(&api, &shutdown);
        let mut replicas = Vec::new();
        for _ in 0..2 {
            replicas.push(replica(&api, &first, &hours, &shutdown).await);
        }
        Self { api, replicas, hours, live, shutdown }
    }

    /// Waits until the Secret says so.
    async fn state_is(&self, what: &str, wanted: impl Fn(&CaState) -> bool) -> CaState {
        for _ in 0..3000 {
            let state = self.api.state().await;
            if wanted(&state) {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {what}");
    }

    /// Every replica signs itself another leaf: by its clock the one it has is not valid yet.
    async fn rotate_leaves(&self) {
        let before: Vec<_> = self.replicas.iter().map(|replica| replica.tls.load_full()).collect();
        self.hours.fetch_sub(2, Ordering::Relaxed);
        for (replica, before) in self.replicas.iter().zip(before) {
            while Arc::ptr_eq(&before, &replica.tls.load_full()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        }
    }

    async fn rotate_ca(&self) {
        let before = self.api.state().await;
        self.api.merge(&json!({"metadata": {"annotations": {"kimup.cloudavenue.io/action": "rotate"}}}));
        let after = self.state_is("rotated", |state| {
            state.signing.der() != before.signing.der() && state.bundle.len() == 1 && state.next.is_none()
        });
        assert!(!after.await.requested);
    }
}

/// What the configuration carries, and has carried since when.
#[derive(Clone)]
struct Live {
    now: watch::Receiver<Bundle>,
    history: Arc<Mutex<Vec<(Instant, Bundle)>>>,
}

impl Live {
    /// Whether a client that trusts this may expect to be served: it is what the configuration carried within the delay. On a
    /// machine that stalls, an API server of this test can be later than one of a cluster ever is.
    fn is_promised(&self, trusted: &Bundle) -> bool {
        let history = self.history.lock().unwrap();
        let last = history.iter().rposition(|(_, bundle)| bundle == trusted);
        let replaced = last.and_then(|last| history.get(last + 1));
        replaced.is_none_or(|(at, _)| at.elapsed() < TIMING.delay)
    }
}

/// The leader, and a keeper of the configuration.
fn lead(api: &FakeApi, shutdown: &CancellationToken) -> Live {
    let (carried, carried_seen) = watch::channel(Some(Carried::default()));
    let (trusted, mut trusted_seen) = watch::channel(None::<Bundle>);
    let (_, leads) = watch::channel(true);
    let rotation = Rotation {
        store: api.store(),
        timing: TIMING,
        leads,
        may_write: Arc::new(|| true),
        carried: carried_seen,
        trusted,
        condition: Readiness::default().register("ca-rotation"),
        metrics: Metrics::new(),
    };
    tokio::spawn(rotate(rotation, shutdown.clone()));
    let (configuration, now) = watch::channel(Bundle::default());
    let history = Arc::new(Mutex::new(Vec::new()));
    let live = Live { now, history: history.clone() };
    tokio::spawn(async move {
        while trusted_seen.changed().await.is_ok() {
            let Some(bundle) = trusted_seen.borrow_and_update().clone() else { continue };
            history.lock().unwrap().push((Instant::now(), bundle.clone()));
            configuration.send_replace(bundle.clone());
            carried.send_replace(Some(Carried { everywhere: bundle.clone(), anywhere: bundle }));
        }
    });
    live
}

async fn replica(api: &FakeApi, first: &CaState, hours: &Arc<AtomicI64>, shutdown: &CancellationToken) -> Replica {
    let (readiness, metrics) = (Readiness::default(), Metrics::new());
    let following = Following {
        store: api.store(),
        timing: TIMING,
        by_hand: false,
        condition: readiness.register("ca"),
        metrics: metrics.clone(),
    };
    let (ca, _) = follow(following, first.signing.clone(), shutdown.clone());
    let source = CertSource::SelfManaged { ca, dns: vec![], ips: vec!["127.0.0.1".parse().unwrap()] };
    let hours = hours.clone();
    let clock: Clock = Arc::new(move || {
        let moved = SignedDuration::from_hours(hours.load(Ordering::Relaxed));
        Timestamp::now().checked_add(moved).unwrap()
    });
    let (served, poll) = (readiness.register("certificate"), Duration::from_millis(5));
    let (tls, _) = start_every(poll, source, None, clock, served, metrics, shutdown.clone()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", get(|| async { ANSWER }));
    tokio::spawn(serve_https(listener, tls.clone(), router, ServerOptions::default(), shutdown.clone()));
    Replica { address, tls }
}

/// What an API server knows of the configuration: the same, later.
fn late(mut live: watch::Receiver<Bundle>) -> watch::Receiver<Bundle> {
    let (view, seen) = watch::channel(live.borrow_and_update().clone());
    tokio::spawn(async move {
        while live.changed().await.is_ok() {
            tokio::time::sleep(LAG.mul_f64(fastrand::f64())).await;
            let bundle = live.borrow_and_update().clone();
            view.send_replace(bundle);
        }
    });
    seen
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_leaves_and_ten_cas_under_load() {
    let bed = Bed::start().await;
    bed.state_is("signing", |state| state.signing_since.is_some()).await;
    let addresses: Vec<SocketAddr> = bed.replicas.iter().map(|replica| replica.address).collect();
    let views: Vec<_> = KEPT.iter().map(|_| late(bed.live.now.clone())).collect();
    let live = bed.live.clone();
    let load = Load::start(&KEPT, move |client, nth| {
        let address = addresses[(client + nth) % addresses.len()];
        let (trusted, live) = (views[client].borrow().clone(), live.clone());
        async move {
            match Connection::open(address, trusting(trusted.clone())).await {
                Err(error) if live.is_promised(&trusted) => Err(error),
                opened => Ok(opened.ok()),
            }
        }
    });
    let mut rotations = 0;
    for _ in 0..10 {
        for _ in 0..10 {
            bed.rotate_leaves().await;
            load.goes_on().await;
            rotations += 1;
        }
        bed.rotate_ca().await;
        load.goes_on().await;
        rotations += 1;
    }
    let Tally { served, dropped, failed } = load.end().await;
    bed.shutdown.cancel();
    println!("{served} requests, {dropped} connections outside of what is promised");
    assert!(failed.is_empty(), "{served} served, {} failed: {:?}", failed.len(), failed.first());
    assert!(served >= rotations * KEPT.len() * 2, "{served} in {rotations} rotations");
    assert!(dropped * 4 < served, "{served} served, {dropped} dropped");
}
