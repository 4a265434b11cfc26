//! The time by the API server's clock. What decides over a rollout is written there: when it was stamped, when its Pods came
//! to be, turned ready, or were given up. A clock of this machine that is minutes ahead would reject what has only begun.
//!
//! The server tells its time with each answer (`Date`, RFC 9110, 6.6.1). Between answers time goes on by the steady clock of
//! this machine: a step of its other one (NTP, an operator who repairs it) moves nothing.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, header::DATE};
use jiff::fmt::rfc2822::DateTimeParser;
use jiff::{SignedDuration, Timestamp};
use kube::client::Body;

use crate::telemetry::Metrics;

/// An answer that takes longer tells too little.
const LONGEST: Duration = Duration::from_secs(1);
/// The server tells whole seconds: less than this may be no difference at all, and is none.
const LEAST: SignedDuration = SignedDuration::from_secs(2);
/// A difference that people should know of.
const WRONG: SignedDuration = SignedDuration::from_secs(5);
/// Answers that count: of so many the one in the middle, so that a single odd one moves nothing.
const COUNTED: usize = 9;

/// The API server's time. Clones are the same.
#[derive(Clone)]
pub struct Clock {
    inner: Arc<Inner>,
}

struct Inner {
    /// The time when this was made, by both clocks of this machine.
    start: (Timestamp, Instant),
    /// What the server's clock is ahead of the time since then, in milliseconds; 0 while that is not worth it.
    ahead: AtomicI64,
    /// Whether people were told that the clocks differ.
    wrong: AtomicBool,
    seen: Mutex<VecDeque<SignedDuration>>,
    metrics: Metrics,
}

impl std::fmt::Debug for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Clock").field(&self.inner.ahead).finish()
    }
}

impl Clock {
    /// That of this machine, until an answer tells better.
    pub fn new(metrics: Metrics) -> Self {
        Self::starting(metrics, Timestamp::now())
    }

    fn starting(metrics: Metrics, wall: Timestamp) -> Self {
        let start = (wall, Instant::now());
        let (ahead, wrong, seen) = (AtomicI64::default(), AtomicBool::default(), Mutex::default());
        Self { inner: Arc::new(Inner { start, ahead, wrong, seen, metrics }) }
    }

    /// The time there.
    pub fn now(&self) -> Timestamp {
        let ahead = SignedDuration::from_millis(self.inner.ahead.load(Ordering::Relaxed));
        self.steady().checked_add(ahead).unwrap_or(Timestamp::MAX)
    }

    /// The time of this machine, had nobody set it since the start.
    fn steady(&self) -> Timestamp {
        let (wall, steady) = self.inner.start;
        wall.checked_add(steady.elapsed()).unwrap_or(Timestamp::MAX)
    }

    /// A client like this one that notes the server's time with each answer.
    pub fn client(&self, client: &kube::Client) -> kube::Client {
        let (inner, clock) = (client.clone(), self.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (inner, clock) = (inner.clone(), clock.clone());
            async move {
                let (sent_at, sent) = (clock.steady(), Instant::now());
                let response = inner.send(request).await?;
                clock.see(response.headers(), sent_at, sent.elapsed());
                Ok::<_, kube::Error>(response)
            }
        });
        kube::Client::new(service, client.default_namespace())
    }

    fn see(&self, headers: &HeaderMap, sent: Timestamp, took: Duration) {
        let date = headers.get(DATE).and_then(|date| date.to_str().ok());
        let date = date.and_then(|date| DateTimeParser::new().parse_timestamp(date).ok());
        let Some(ahead) = date.and_then(|date| ahead(date, sent, took)) else {
            return;
        };
        let offset = {
            let mut seen = self.inner.seen.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push_back(ahead);
            if seen.len() > COUNTED {
                seen.pop_front();
            }
            middle(seen.iter().copied())
        };
        self.follow(offset);
        // What people are told is about the clock that they can set.
        self.tell(offset + self.steady().duration_since(Timestamp::now()));
    }

    /// Goes by the server's clock from now on, if that is worth it.
    fn follow(&self, offset: SignedDuration) {
        let ahead = if offset.abs() < LEAST { SignedDuration::ZERO } else { offset };
        self.inner.ahead.store(i64::try_from(ahead.as_millis()).unwrap_or_default(), Ordering::Relaxed);
    }

    fn tell(&self, offset: SignedDuration) {
        self.inner.metrics.set_clock_offset(offset.as_secs_f64());
        let (seconds, wrong) = (offset.as_secs(), offset.abs() > WRONG);
        match (self.inner.wrong.swap(wrong, Ordering::Relaxed), wrong) {
            (false, true) => tracing::warn!(
                seconds,
                "the clock of this machine differs from the API server's, which is so many seconds ahead: kimup goes by the API server's; check time synchronisation (NTP) on both"
            ),
            (true, false) => tracing::info!(seconds, "the clock of this machine agrees with the API server's again"),
            _ => {}
        }
    }

    /// Says how much the server's clock is ahead.
    #[cfg(test)]
    pub fn set(&self, ahead: SignedDuration) {
        self.inner.ahead.store(i64::try_from(ahead.as_millis()).unwrap_or_default(), Ordering::Relaxed);
    }
}

/// How much the server's clock is ahead by one answer to a request that was sent at `sent`, and that began to arrive after
/// `took`; none if that took too long. Within a second and a half: what was cut off the second, and the way of the answer.
fn ahead(date: Timestamp, sent: Timestamp, took: Duration) -> Option<SignedDuration> {
    let half = SignedDuration::try_from(took).ok().filter(|_| took <= LONGEST)? / 2;
    Some(date.duration_since(sent) + SignedDuration::from_millis(500) - half)
}

/// The one in the middle; of an even number the one nearer to none.
fn middle(seen: impl Iterator<Item = SignedDuration>) -> SignedDuration {
    let mut seen: Vec<SignedDuration> = seen.collect();
    seen.sort_unstable();
    let two = [seen.len().saturating_sub(1) / 2, seen.len() / 2].map(|at| seen.get(at));
    two.into_iter().flatten().copied().min_by_key(|offset| offset.abs()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::Response;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::Api;

    #[test]
    fn one_answer() {
        #[track_caller]
        fn check(date: i64, sent: &str, took: u64, expected: Option<i64>) {
            let date = Timestamp::from_second(date).unwrap();
            let found = ahead(date, sent.parse().unwrap(), Duration::from_millis(took));
            assert_eq!(found, expected.map(SignedDuration::from_millis), "{date} {sent} {took}");
        }
        check(100, "1970-01-01T00:01:40.5Z", 0, Some(0));
        check(100, "1970-01-01T00:01:40Z", 1000, Some(0));
        // What the second may hide.
        check(100, "1970-01-01T00:01:40Z", 0, Some(500));
        check(100, "1970-01-01T00:01:40.999Z", 0, Some(-499));
        // Ahead and behind.
        check(700, "1970-01-01T00:01:40.5Z", 0, Some(600_000));
        check(40, "1970-01-01T00:01:40.5Z", 200, Some(-60_100));
        // It may have been any time on the way.
        check(700, "1970-01-01T00:01:40.5Z", 1001, None);
    }

    #[test]
    fn a_single_odd_answer_moves_nothing() {
        #[track_caller]
        fn check(seen: &[i64], expected: i64) {
            let seen = seen.iter().map(|&seconds| SignedDuration::from_secs(seconds));
            assert_eq!(middle(seen).as_secs(), expected);
        }
        check(&[], 0);
        check(&[-90], -90);
        check(&[0, 600], 0);
        check(&[-600, -1], -1);
        check(&[1, 600, 0], 1);
        check(&[0, 600, 601, 600], 600);
    }

    /// A client of a server whose clock is so many seconds ahead.
    fn server(clock: &Clock, ahead: i64) -> kube::Client {
        let inner = tower::service_fn(move |_: Request<Body>| async move {
            let date = Timestamp::now() + SignedDuration::from_secs(ahead);
            let date = jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&date).unwrap();
            let body = Body::from(br#"{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}}"#.to_vec());
            Ok::<_, kube::Error>(Response::builder().header(DATE, date).body(body).unwrap())
        });
        clock.client(&kube::Client::new(inner, "default"))
    }

    #[tokio::test]
    async fn goes_by_the_servers_clock() {
        #[track_caller]
        fn check(clock: &Clock, metrics: &Metrics, expected: i32) {
            let ahead = clock.now().duration_since(Timestamp::now()).as_secs_f64();
            let expected = f64::from(expected);
            assert!((ahead - expected).abs() < 1.6, "{ahead}, not {expected}");
            let told = metrics.encode();
            let line = told.lines().find(|line| line.starts_with("kimup_clock_offset_seconds ")).unwrap();
            let told: f64 = line.split(' ').next_back().unwrap().parse().unwrap();
            assert!((told - expected).abs() < 1.6, "{line}, not {expected}");
        }
        let metrics = Metrics::new();
        let clock = Clock::new(metrics.clone());
        check(&clock, &metrics, 0);
        for ahead in [0, 600, -600, 1] {
            let api: Api<ConfigMap> = Api::default_namespaced(server(&clock, ahead.into()));
            for _ in 0..COUNTED {
                api.get("a").await.unwrap();
            }
            check(&clock, &metrics, ahead);
        }
        assert_eq!(clock.inner.ahead.load(Ordering::Relaxed), 0, "a second is no difference");
    }

    /// A machine whose clock was ten minutes wrong when kimup started, and is set right after that.
    #[tokio::test]
    async fn setting_the_clock_of_the_machine_moves_nothing() {
        for wrong in [600, -600] {
            let metrics = Metrics::new();
            let started = Timestamp::now() + SignedDuration::from_secs(wrong);
            let clock = Clock::starting(metrics.clone(), started);
            let api: Api<ConfigMap> = Api::default_namespaced(server(&clock, 0));
            for answers in 0..COUNTED {
                let ahead = clock.now().duration_since(Timestamp::now()).as_secs_f64();
                let expected = if answers == 0 { f64::from(i32::try_from(wrong).unwrap()) } else { 0.0 };
                assert!((ahead - expected).abs() < 1.6, "{ahead} after {answers} answers");
                api.get("a").await.unwrap();
            }
            let told = metrics.encode();
            let told = told.lines().find_map(|line| line.strip_prefix("kimup_clock_offset_seconds ")).unwrap();
            assert!(told.parse::<f64>().unwrap().abs() < 1.6, "it is right by now, not {told}");
        }
    }
}
