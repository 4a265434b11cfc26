//! An API server that has bad days: a proxy in front of a real one, between it and one client.

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use futures::{Stream, StreamExt as _, stream};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::background::{Task, runtime};

/// Longest that a request is held up that nothing answers.
const HANGS: Duration = Duration::from_mins(2);

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ApiFault {
    /// The API server answers, after so long.
    After(Duration),
    /// It is not asked; this status is the answer.
    Refused(u16),
    /// It does what was asked, and the client reads this status instead of its answer.
    DoneBut(u16),
    /// It does what was asked, and the connection breaks before the answer.
    DoneAndLost,
}

type Script = dyn FnMut(&Method, &str) -> ApiFault + Send;

/// Listens on a port of 127.0.0.1, in plain http, and forwards each request with its credentials, or does what its
/// script says. It runs on threads of its own until it is dropped.
pub struct ApiProxy {
    address: SocketAddr,
    cut: watch::Sender<bool>,
    _server: Task,
}

struct Shared {
    server: String,
    http: reqwest::Client,
    script: Mutex<Box<Script>>,
    cut: watch::Receiver<bool>,
}

impl ApiProxy {
    /// Starts it in front of the API server at `server` (host and port), whose certificate `ca_pem` has signed.
    /// `script` is asked for each request: its method, and its path with the query.
    pub async fn start(
        server: &str,
        ca_pem: &str,
        script: impl FnMut(&Method, &str) -> ApiFault + Send + 'static,
    ) -> Result<Self> {
        crate::install_crypto_provider();
        let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes())?;
        let http = reqwest::Client::builder().tls_certs_only([ca]).no_proxy().no_gzip().build()?;
        let listener = runtime()?.spawn(TcpListener::bind("127.0.0.1:0")).await?.context("binding the proxy")?;
        let address = listener.local_addr()?;
        let (cut, cut_seen) = watch::channel(false);
        let script: Mutex<Box<Script>> = Mutex::new(Box::new(script));
        let shared = Arc::new(Shared { server: server.to_owned(), http, script, cut: cut_seen });
        let router = Router::new().fallback(answer).with_state(shared);
        let server = Task::spawn(async move { drop(axum::serve(listener, router).await) })?;
        Ok(Self { address, cut, _server: server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// While `true`, the client is cut off: nothing is forwarded or answered, and open watches break.
    pub fn cut_off(&self, cut: bool) {
        self.cut.send_replace(cut);
    }
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut cut = shared.cut.clone();
    let connected = tokio::time::timeout(HANGS, cut.wait_for(|cut| !cut)).await.is_ok_and(|waited| waited.is_ok());
    if !connected {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let fault = (shared.script.lock().unwrap_or_else(PoisonError::into_inner))(&method, path);
    match fault {
        ApiFault::After(pause) => {
            tokio::time::sleep(pause).await;
            forward(&shared, method, path, headers, body)
                .await
                .map_or_else(|error| failed(&error), |answer| passed(answer, cut))
        }
        ApiFault::Refused(code) => refused(code),
        ApiFault::DoneBut(code) => {
            let _ = forward(&shared, method, path, headers, body).await;
            refused(code)
        }
        ApiFault::DoneAndLost => {
            let _ = forward(&shared, method, path, headers, body).await;
            let broken = stream::once(async { Err::<Bytes, _>(std::io::Error::other("the connection breaks")) });
            // Nothing was written yet: the error ends the connection.
            Response::builder()
                .header(header::CONTENT_LENGTH, 1)
                .body(Body::from_stream(broken))
                .unwrap_or_else(|_| StatusCode::BAD_GATEWAY.into_response())
        }
    }
}

async fn forward(
    shared: &Shared,
    method: Method,
    path: &str,
    mut headers: HeaderMap,
    body: Bytes,
) -> Result<reqwest::Response> {
    headers.remove(header::HOST);
    headers.remove(header::ACCEPT_ENCODING);
    let url = format!("https://{}{path}", shared.server);
    Ok(shared.http.request(method, url).headers(headers).body(body).send().await?)
}

/// The answer as it comes; a cut ends it in the middle.
fn passed(answer: reqwest::Response, mut cut: watch::Receiver<bool>) -> Response {
    let (status, mut headers) = (answer.status(), answer.headers().clone());
    headers.remove(header::TRANSFER_ENCODING);
    headers.remove(header::CONTENT_LENGTH);
    let cut = async move { _ = cut.wait_for(|cut| *cut).await };
    let body: Pin<Box<dyn Stream<Item = _> + Send>> = Box::pin(answer.bytes_stream().take_until(Box::pin(cut)));
    let mut passed = Response::new(Body::from_stream(body));
    (*passed.status_mut(), *passed.headers_mut()) = (status, headers);
    passed
}

/// A refusal in the API server's own words (`meta/v1` Status).
fn refused(code: u16) -> Response {
    let reason = match code {
        404 => "NotFound",
        429 => "TooManyRequests",
        504 => "Timeout",
        _ => "InternalError",
    };
    let status = serde_json::json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason, "code": code,
        "message": format!("a bad day: {reason}"),
    });
    let code = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (code, [(header::CONTENT_TYPE, "application/json")], status.to_string()).into_response()
}

fn failed(error: &anyhow::Error) -> Response {
    (StatusCode::BAD_GATEWAY, error.to_string()).into_response()
}
