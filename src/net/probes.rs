//! Liveness, readiness and metrics over plain HTTP, for the kubelet and Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use axum::Router;
use axum::extract::{RawQuery, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::server::{ServerOptions, serve_http};
use super::vitals::Vitals;
use crate::telemetry::{METRICS_CONTENT_TYPE, Metrics};

/// The conditions by name.
type Conditions = BTreeMap<String, Word>;

/// What was last said of a condition.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Word {
    Met,
    /// Met, but somebody should look.
    Degraded(String),
    Unmet(String),
}

impl Word {
    fn holds(&self) -> bool {
        !matches!(self, Self::Unmet(_))
    }
}

/// Everything that must hold before this process takes traffic. Clones share one list; an empty list is ready.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    conditions: Arc<RwLock<Conditions>>,
}

/// The handle to set one condition of a [`Readiness`]. It need not be kept: the last word counts.
#[derive(Clone, Debug)]
pub struct Condition {
    name: String,
    all: Readiness,
}

impl Readiness {
    /// Adds a condition, not met until [`Condition::set`] says so. Registering a name again gives a handle to the same one.
    pub fn register(&self, name: &str) -> Condition {
        self.write(|all| {
            all.entry(name.to_owned()).or_insert_with(|| Word::Unmet("not reported yet".to_owned()));
        });
        Condition { name: name.to_owned(), all: self.clone() }
    }

    /// Whether every condition is met.
    pub fn is_ready(&self) -> bool {
        self.read(|all| all.values().all(Word::holds))
    }

    /// The answer of `/readyz`: `ok`, or a line for each condition that is not met; with `verbose` a line for each, and
    /// what is wrong with those that are met all the same.
    pub(super) fn report(&self, verbose: bool) -> (bool, String) {
        self.read(|all| {
            let ready = all.values().all(Word::holds);
            let mut text = String::new();
            for (name, state) in all {
                // Writing to a String cannot fail.
                let _ = match (state, verbose) {
                    (Word::Unmet(reason), false) => writeln!(text, "{name}: {reason}"),
                    (Word::Unmet(reason), true) => writeln!(text, "[-] {name}: {reason}"),
                    (Word::Degraded(reason), true) => writeln!(text, "[!] {name}: {reason}"),
                    (Word::Met, true) => writeln!(text, "[+] {name}"),
                    (Word::Met | Word::Degraded(_), false) => Ok(()),
                };
            }
            if ready {
                text.push_str("ok\n");
            }
            (ready, text)
        })
    }

    fn read<T>(&self, work: impl FnOnce(&Conditions) -> T) -> T {
        work(&self.conditions.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, work: impl FnOnce(&mut Conditions) -> T) -> T {
        work(&mut self.conditions.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Condition {
    /// Sets the condition. `reason` says why it is not met (`not listed yet`); it is not kept when it is.
    pub fn set(&self, met: bool, reason: impl Into<String>) {
        self.put(if met { Word::Met } else { Word::Unmet(reason.into()) });
    }

    /// The condition is met, but `reason` should be looked at before it no longer is: `/readyz?verbose` says so.
    pub fn degrade(&self, reason: impl Into<String>) {
        self.put(Word::Degraded(reason.into()));
    }

    fn put(&self, state: Word) {
        let before = self.all.write(|all| all.insert(self.name.clone(), state.clone()));
        let held = before.is_none_or(|before| before.holds());
        match state {
            Word::Unmet(reason) if held => {
                tracing::warn!(condition = %self.name, %reason, "readiness condition is not met");
            }
            Word::Met | Word::Degraded(_) if !held => {
                tracing::info!(condition = %self.name, "readiness condition is met");
            }
            _ => {}
        }
    }
}

/// Serves `/healthz`, `/readyz` (`?verbose`) and `/metrics` until `shutdown`.
///
/// Cancel `shutdown` after the webhook's own server has drained: the kubelet asks until the end.
pub async fn serve_probes(
    listener: TcpListener,
    readiness: Readiness,
    vitals: Vitals,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let options = ServerOptions {
        max_connections: 64,
        body_limit: 1024,
        request_timeout: Duration::from_secs(5),
        drain: Duration::from_secs(1),
        ..ServerOptions::default()
    };
    serve_http(listener, router(readiness, vitals, metrics), options, shutdown).await;
}

fn router(readiness: Readiness, vitals: Vitals, metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(healthz).with_state(vitals))
        .route("/readyz", get(readyz).with_state(readiness))
        .route("/metrics", get(expose).with_state(metrics))
}

/// That this is answered at all is half of the check: the runtime schedules tasks.
async fn healthz(State(vitals): State<Vitals>) -> Response {
    match vitals.ended().as_slice() {
        [] => "ok\n".into_response(),
        ended => {
            let text = format!("ended by itself, see the log: {}; restart this process\n", ended.join(", "));
            (StatusCode::INTERNAL_SERVER_ERROR, text).into_response()
        }
    }
}

async fn readyz(State(readiness): State<Readiness>, RawQuery(query): RawQuery) -> Response {
    let verbose =
        query.is_some_and(|query| query.split('&').any(|part| part == "verbose" || part.starts_with("verbose=")));
    let (ready, text) = readiness.report(verbose);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text).into_response()
}

async fn expose(State(metrics): State<Metrics>) -> Response {
    ([(header::CONTENT_TYPE, METRICS_CONTENT_TYPE)], metrics.encode()).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_names_what_is_missing() {
        fn check(set: &[(&str, Option<bool>)], verbose: bool, ready: bool, text: &str) {
            let readiness = Readiness::default();
            for (name, met) in set {
                let condition = readiness.register(name);
                if let Some(met) = met {
                    condition.set(*met, "not listed yet");
                }
            }
            assert_eq!(readiness.report(verbose), (ready, text.to_owned()), "{set:?}");
            assert_eq!(readiness.is_ready(), ready, "{set:?}");
        }
        check(&[], false, true, "ok\n");
        check(&[("images", None)], false, false, "images: not reported yet\n");
        check(&[("images", Some(false))], false, false, "images: not listed yet\n");
        check(&[("images", Some(true))], false, true, "ok\n");
        check(&[("images", Some(true)), ("images", None)], false, true, "ok\n");
        check(&[("a", Some(true)), ("b", Some(false))], false, false, "b: not listed yet\n");
        check(&[("a", Some(true)), ("b", Some(false))], true, false, "[+] a\n[-] b: not listed yet\n");
        check(&[("a", Some(true)), ("b", Some(true))], true, true, "[+] a\n[+] b\nok\n");
    }

    #[tokio::test]
    async fn served_over_http() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let (readiness, metrics) = (Readiness::default(), Metrics::new());
        let images = readiness.register("images");
        let shutdown = CancellationToken::new();
        let vitals = Vitals::default();
        let probes = serve_probes(listener, readiness, vitals.clone(), metrics.clone(), shutdown.clone());
        let server = tokio::spawn(probes);
        let client = reqwest::Client::new();
        let check = async |path: &str, status: u16, part: &str| {
            let response = client.get(format!("{base}{path}")).send().await.unwrap();
            assert_eq!(response.status().as_u16(), status, "{path}");
            let text = response.text().await.unwrap();
            assert!(text.contains(part), "{path}: {text}");
        };
        check("/healthz", 200, "ok").await;
        check("/readyz", 503, "images: not reported yet").await;
        check("/readyz?verbose", 503, "[-] images").await;
        images.set(true, "");
        check("/readyz", 200, "ok").await;
        check("/readyz?verbose", 200, "[+] images").await;
        images.degrade("late");
        check("/readyz", 200, "ok").await;
        check("/readyz?verbose", 200, "[!] images: late").await;
        metrics.set_images(3);
        check("/metrics", 200, "kimup_images 3").await;
        check("/nothing", 404, "").await;
        let (task, said) = (tokio::spawn(async { panic!("on purpose") }), "ended by itself, see the log: index");
        vitals.watch("index", &task);
        let _: Result<(), _> = task.await;
        check("/healthz", 500, said).await;
        check("/readyz", 200, "ok").await;
        shutdown.cancel();
        server.await.unwrap();
    }
}
