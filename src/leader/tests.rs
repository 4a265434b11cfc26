use std::sync::{Arc, Mutex};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::client::Body;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::decision::{held, released};
use super::*;

#[test]
fn the_decision() {
    fn check(holder: Option<&str>, duration_s: u64, seen_for_ms: u64, action: Action) {
        let since = Instant::now();
        let record = LeaseRecord {
            holder: holder.map(str::to_owned),
            duration: Duration::from_secs(duration_s),
            // Long ago by any clock: must not matter.
            acquired: Some(jiff::Timestamp::UNIX_EPOCH),
            renewed: Some(jiff::Timestamp::UNIX_EPOCH),
            transitions: 3,
        };
        let now = since + Duration::from_millis(seen_for_ms);
        assert_eq!(decide(Some(&record), since, "me", now), action, "{record:?} {seen_for_ms}");
    }
    check(None, 15, 0, Action::Acquire);
    check(None, 1, 99_000, Action::Acquire);
    check(Some("me"), 15, 0, Action::Renew);
    check(Some("me"), 15, 99_000, Action::Renew);
    check(Some("other"), 15, 0, Action::Wait);
    check(Some("other"), 15, 14_999, Action::Wait);
    check(Some("other"), 15, 15_000, Action::Acquire);
    check(Some("other"), 0, 0, Action::Acquire);
    check(Some("Me"), 15, 0, Action::Wait);
    let now = Instant::now();
    assert_eq!(decide(None, now, "me", now), Action::Create);
    // A clock that seems to run backwards is no expiry.
    let record = LeaseRecord::of(&lease(&json!({"holderIdentity": "other", "leaseDurationSeconds": 15})));
    assert_eq!(decide(Some(&record), now + Duration::from_secs(99), "me", now), Action::Wait);
}

fn lease(spec: &Value) -> Lease {
    serde_json::from_value(json!({"metadata": {"name": "kimup"}, "spec": spec})).unwrap()
}

#[test]
fn records_are_read_with_care() {
    fn check(spec: &Value, holder: Option<&str>, duration_s: u64, transitions: i32) {
        let record = LeaseRecord::of(&lease(spec));
        let read = (record.holder.as_deref(), record.duration.as_secs(), record.transitions);
        assert_eq!(read, (holder, duration_s, transitions), "{spec}");
    }
    check(&json!({}), None, 0, 0);
    check(&Value::Null, None, 0, 0);
    check(&json!({"holderIdentity": ""}), None, 0, 0);
    check(&json!({"holderIdentity": "a", "leaseDurationSeconds": 15, "leaseTransitions": 2}), Some("a"), 15, 2);
    check(&json!({"holderIdentity": "a", "leaseDurationSeconds": -1}), Some("a"), 0, 0);
    check(&json!({"holderIdentity": "a", "leaseDurationSeconds": i32::MAX}), Some("a"), 3600, 0);
}

#[test]
fn what_is_written() {
    let now: jiff::Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let check = |before: Option<Value>, transitions: i32, acquired_now: bool| {
        let before: Option<LeaseSpec> = before.map(|spec| serde_json::from_value(spec).unwrap());
        let spec = held(before.as_ref(), "me", Duration::from_secs(15), now);
        assert_eq!(spec.holder_identity.as_deref(), Some("me"));
        assert_eq!(spec.lease_duration_seconds, Some(15));
        assert_eq!(spec.renew_time.as_ref().unwrap().0, now);
        assert_eq!(spec.lease_transitions, Some(transitions), "{before:?}");
        assert_eq!(spec.acquire_time.as_ref().is_some_and(|at| at.0 == now), acquired_now, "{before:?}");
    };
    check(None, 0, true);
    check(Some(json!({"holderIdentity": "other", "leaseTransitions": 4})), 5, true);
    check(Some(json!({"holderIdentity": "", "leaseTransitions": 4})), 5, true);
    check(Some(json!({"leaseTransitions": i32::MAX})), i32::MAX, true);
    let mine = json!({"holderIdentity": "me", "leaseTransitions": 4, "acquireTime": "2025-01-01T00:00:00.000000Z"});
    check(Some(mine.clone()), 4, false);
    let free = released(&serde_json::from_value(mine).unwrap(), now);
    assert_eq!(free.holder_identity.as_deref(), Some(""));
    assert_eq!((free.lease_duration_seconds, free.lease_transitions), (Some(1), Some(4)));
}

/// An API server with one Lease: optimistic locking as Kubernetes does it, and faults on demand.
#[derive(Default)]
struct Server {
    lease: Option<Value>,
    version: u64,
    /// Calls hang.
    hangs: bool,
    /// Answers take so long after what they answer is done.
    lag: Duration,
    /// One in so many calls is slow, one is refused, one is done but its answer is lost.
    faults: Option<fastrand::Rng>,
    calls: usize,
}

impl Server {
    fn handle(&mut self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
        self.calls += 1;
        let status = |code: u16| {
            let reason = if code == 404 { "NotFound" } else { "Conflict" };
            let status = json!({"kind": "Status", "status": "Failure", "code": code, "message": "", "reason": reason});
            (StatusCode::from_u16(code).unwrap(), status)
        };
        let mut sent: Value = match *method {
            Method::GET => {
                return self.lease.clone().map_or(status(404), |l| (StatusCode::OK, l));
            }
            _ => serde_json::from_slice(body).unwrap(),
        };
        match (method.as_str(), &self.lease) {
            ("POST", Some(_)) => return status(409),
            ("PUT", None) => return status(404),
            ("PUT", Some(now)) if sent["metadata"]["resourceVersion"] != now["metadata"]["resourceVersion"] => {
                return status(409);
            }
            ("POST" | "PUT", _) => {}
            (other, _) => panic!("{other} is not allowed by kimup's Role"),
        }
        self.version += 1;
        sent["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.lease = Some(sent.clone());
        (StatusCode::OK, sent)
    }

    fn holder(&self) -> &str {
        self.lease.as_ref().and_then(|l| l["spec"]["holderIdentity"].as_str()).unwrap_or("nobody")
    }
}

#[derive(Clone, Default)]
struct Cluster(Arc<Mutex<Server>>);

impl Cluster {
    fn server(&self) -> std::sync::MutexGuard<'_, Server> {
        self.0.lock().unwrap()
    }

    async fn call(self, request: Request<Body>) -> Result<Response<Body>, tower::BoxError> {
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let die = |server: &mut Server| server.faults.as_mut().map_or(99, |rng| rng.u8(0..20));
        let (fault, before, after) = {
            let mut server = self.server();
            let fault = die(&mut server);
            let mut slow = || server.faults.as_mut().map_or(0, |rng| rng.u64(0..7000));
            (fault, slow(), slow())
        };
        if self.server().hangs {
            std::future::pending::<()>().await;
        }
        if fault < 4 {
            sleep(Duration::from_millis(before)).await;
        }
        if (4..7).contains(&fault) {
            return Err("connection refused".into());
        }
        let (code, answer) = self.server().handle(&parts.method, &body);
        let lag = self.server().lag;
        sleep(lag).await;
        match fault {
            7..10 => return Err("connection reset".into()),
            10..13 => sleep(Duration::from_millis(after)).await,
            _ => {}
        }
        Ok(Response::builder().status(code).body(Body::from(serde_json::to_vec(&answer)?))?)
    }

    fn stand(&self, identity: &str) -> Candidate {
        let cluster = self.clone();
        let service = tower::service_fn(move |request| cluster.clone().call(request));
        let metrics = Metrics::new();
        let config = LeaderConfig::new("kimup-system", "kimup", identity, metrics.clone());
        let shutdown = CancellationToken::new();
        let client = kube::Client::new(service, "kimup-system");
        let (leadership, task) = spawn(client, config, shutdown.clone());
        Candidate { leadership, task, shutdown, metrics }
    }
}

struct Candidate {
    leadership: Leadership,
    task: JoinHandle<()>,
    shutdown: CancellationToken,
    metrics: Metrics,
}

impl Candidate {
    /// Seconds until it leads.
    async fn leads(&self) -> u64 {
        let start = Instant::now();
        let mut changes = self.leadership.subscribe();
        timeout(Duration::from_secs(60), changes.wait_for(|leads| *leads)).await.unwrap().unwrap();
        assert!(self.leadership.is_leader());
        assert!(self.metrics.encode().contains("kimup_leader 1\n"));
        start.elapsed().as_secs()
    }

    async fn loses(&self) -> u64 {
        let start = Instant::now();
        let mut changes = self.leadership.subscribe();
        timeout(Duration::from_secs(60), changes.wait_for(|leads| !*leads)).await.unwrap().unwrap();
        assert!(!self.leadership.is_leader());
        assert!(self.metrics.encode().contains("kimup_leader 0\n"));
        start.elapsed().as_secs()
    }
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_renews() {
    let cluster = Cluster::default();
    let first = cluster.stand("first");
    assert_eq!(first.leads().await, 0);
    let second = cluster.stand("second");
    let calls = cluster.server().calls;
    for _ in 0..100 {
        sleep(Duration::from_secs(1)).await;
        assert!(first.leadership.is_leader() && !second.leadership.is_leader());
    }
    // A renewal is one call each two seconds, a candidate looks each 2 to 4.4 seconds.
    let calls = cluster.server().calls - calls;
    assert!((70..=105).contains(&calls), "{calls}");
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_followed_within_20_seconds_and_a_stopped_one_at_once() {
    let cluster = Cluster::default();
    let first = cluster.stand("first");
    first.leads().await;
    let second = cluster.stand("second");
    sleep(Duration::from_secs(30)).await;
    first.task.abort();
    let took = second.leads().await;
    assert!((13..20).contains(&took), "{took}");
    assert!(!first.leadership.is_leader(), "the claim of a dead task runs out");

    let third = cluster.stand("third");
    sleep(Duration::from_secs(30)).await;
    second.shutdown.cancel();
    second.task.await.unwrap();
    assert!(!second.leadership.is_leader());
    assert_eq!(cluster.server().holder(), "");
    let took = third.leads().await;
    assert!(took < 5, "{took}");
    assert_eq!(cluster.server().lease.as_ref().unwrap()["spec"]["leaseTransitions"], 2);
}

#[tokio::test(start_paused = true)]
async fn a_dead_leader_is_followed_within_20_seconds_whenever_it_dies() {
    for _ in 0..100 {
        let cluster = Cluster::default();
        let first = cluster.stand("first");
        first.leads().await;
        let second = cluster.stand("second");
        sleep(Duration::from_millis(20_000 + fastrand::u64(0..2_000))).await;
        first.task.abort();
        let took = second.leads().await;
        assert!(took < 20, "{took}");
        second.task.abort();
    }
}

#[tokio::test(start_paused = true)]
async fn losing_the_api_server_ends_leadership_and_not_the_task() {
    let cluster = Cluster::default();
    let only = cluster.stand("only");
    only.leads().await;
    cluster.server().hangs = true;
    let took = only.loses().await;
    assert!((8..=10).contains(&took), "{took}");
    cluster.server().hangs = false;
    let took = only.leads().await;
    assert!(took < 10, "{took}");
    assert!(!only.task.is_finished());
}

#[tokio::test(start_paused = true)]
async fn a_claim_counts_from_the_start_of_the_write() {
    let cluster = Cluster::default();
    cluster.server().lag = Duration::from_secs(2);
    let slow = cluster.stand("slow");
    slow.leads().await;
    slow.task.abort();
    let start = Instant::now();
    while slow.leadership.is_leader() {
        sleep(Duration::from_millis(100)).await;
    }
    // 15 s less a tenth, of which the answer took two.
    let held = start.elapsed().as_millis();
    assert!((11_400..=11_700).contains(&held), "{held} ms");
}

#[tokio::test(start_paused = true)]
async fn a_lease_taken_away_or_deleted() {
    let cluster = Cluster::default();
    let only = cluster.stand("only");
    only.leads().await;
    {
        let mut server = cluster.server();
        let version = server.version + 1;
        server.version = version;
        let lease = server.lease.as_mut().unwrap();
        lease["spec"]["holderIdentity"] = json!("thief");
        lease["metadata"]["resourceVersion"] = json!(version.to_string());
    }
    assert!(only.loses().await <= 2);
    assert!(only.leads().await >= 15, "the thief's time has to pass");
    cluster.server().lease = None;
    sleep(Duration::from_secs(5)).await;
    assert!(only.leadership.is_leader());
    assert_eq!(cluster.server().holder(), "only");
}

#[tokio::test(start_paused = true)]
async fn a_stop_never_releases_another_ones_lease() {
    let cluster = Cluster::default();
    let first = cluster.stand("first");
    first.leads().await;
    let second = cluster.stand("second");
    sleep(Duration::from_secs(10)).await;
    second.shutdown.cancel();
    second.task.await.unwrap();
    assert_eq!(cluster.server().holder(), "first");
}

#[tokio::test(start_paused = true)]
async fn never_two_leaders_under_faults() {
    let mut led = 0_u32;
    for seed in 0..20 {
        let cluster = Cluster::default();
        cluster.server().faults = Some(fastrand::Rng::with_seed(seed));
        let mut candidates: Vec<Candidate> =
            ["a", "b", "c"].into_iter().map(|identity| cluster.stand(identity)).collect();
        for tick in 1..=3000 {
            sleep(Duration::from_millis(100)).await;
            let leading = |c: &&Candidate| c.leadership.is_leader();
            let leaders = candidates.iter().filter(leading).count();
            assert!(leaders <= 1, "{leaders} leaders with seed {seed} at {tick}");
            led += u32::try_from(leaders).unwrap();
            // The leader stops dead, and only the clock can end its claim.
            if tick % 400 == 0
                && let Some(leader) = candidates.iter().find(leading)
            {
                leader.task.abort();
                candidates.push(cluster.stand(&format!("d{tick}")));
            }
        }
        for candidate in &candidates {
            candidate.task.abort();
        }
    }
    assert!(led > 20 * 3000 / 4, "there is a leader for much of the time: {led}");
}

#[tokio::test(start_paused = true)]
async fn a_claim_runs_out_by_itself() {
    let leadership = Leadership::none();
    assert!(!leadership.is_leader());
    assert!(leadership.hold(Instant::now() + Duration::from_secs(10)));
    assert!(!leadership.hold(Instant::now() + Duration::from_secs(10)), "no news");
    tokio::time::advance(Duration::from_millis(9_999)).await;
    assert!(leadership.is_leader());
    tokio::time::advance(Duration::from_millis(1)).await;
    assert!(!leadership.is_leader());
    assert!(leadership.lose());
    assert!(Leadership::always().is_leader() && *Leadership::always().subscribe().borrow());
}

#[test]
fn identities_are_unique() {
    assert_ne!(unique_identity("pod"), unique_identity("pod"));
    assert!(unique_identity("pod").starts_with("pod_"));
}
