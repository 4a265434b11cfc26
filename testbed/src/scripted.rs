//! A registry inside this process that says what a test tells it to.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use serde_json::json;
use tokio::net::TcpListener;

use crate::background::{Task, runtime};

/// How many requests are remembered; the count goes on.
const REMEMBERED: usize = 10_000;

/// An answer to be given word for word.
#[derive(Clone, Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
    /// How long the client waits for it.
    pub delay: Duration,
}

impl Answer {
    /// A status with a body and nothing else.
    pub fn new(status: u16, body: &str) -> Self {
        Self { status, headers: Vec::new(), body: body.to_owned(), delay: Duration::ZERO }
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct RecordedRequest {
    pub method: String,
    /// With the query.
    pub path: String,
    /// The `Authorization` header.
    pub authorization: Option<String>,
}

/// A plain-http registry on 127.0.0.1 that knows `tags/list`, and an index for linux/amd64 for whatever tag it is asked for. It runs on threads of its own until it is dropped.
pub struct ScriptedRegistry {
    address: SocketAddr,
    script: Arc<Mutex<Script>>,
    _server: Task,
}

#[derive(Default)]
struct Script {
    tags: HashMap<String, Vec<String>>,
    answers: HashMap<String, Answer>,
    lists: HashMap<String, usize>,
    requests: Vec<RecordedRequest>,
}

impl ScriptedRegistry {
    pub async fn start() -> Result<Self> {
        // Bound on the runtime that serves it.
        let listener = runtime()?.spawn(TcpListener::bind("127.0.0.1:0")).await?.context("binding the registry")?;
        let address = listener.local_addr()?;
        let script = Arc::new(Mutex::new(Script::default()));
        let router = Router::new().fallback(answer).with_state(Arc::clone(&script));
        let server = Task::spawn(async move {
            let _ = axum::serve(listener, router).await; // runs until it is aborted
        })?;
        Ok(Self { address, script, _server: server })
    }

    /// Host and port, as in an image reference.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// An image reference without tag.
    pub fn image(&self, repository: &str) -> String {
        format!("{}/{repository}", self.address)
    }

    /// From now on `repository` has these tags, in one page; a repository without tags set is unknown (404).
    pub fn set_tags(&self, repository: &str, tags: &[&str]) {
        let tags = tags.iter().map(|&tag| tag.to_owned()).collect();
        let mut script = lock(&self.script);
        script.answers.remove(repository);
        script.tags.insert(repository.to_owned(), tags);
    }

    /// From now on `tags/list` of `repository` is answered so, until [`ScriptedRegistry::set_tags`].
    pub fn set_answer(&self, repository: &str, answer: Answer) {
        lock(&self.script).answers.insert(repository.to_owned(), answer);
    }

    /// How often `tags/list` of `repository` was asked for.
    pub fn lists(&self, repository: &str) -> usize {
        lock(&self.script).lists.get(repository).copied().unwrap_or_default()
    }

    /// The first 10000 requests of any kind.
    pub fn requests(&self) -> Vec<RecordedRequest> {
        lock(&self.script).requests.clone()
    }
}

fn lock(script: &Mutex<Script>) -> MutexGuard<'_, Script> {
    script.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(script): State<Arc<Mutex<Script>>>, request: Request<Body>) -> Response {
    let answer = lock(&script).answer(&request);
    tokio::time::sleep(answer.delay).await;
    let mut response = answer.body.into_response();
    *response.status_mut() = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    for (name, value) in answer.headers {
        if let (Ok(name), Ok(value)) = (name.parse::<header::HeaderName>(), value.parse()) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

impl Script {
    fn answer(&mut self, request: &Request<Body>) -> Answer {
        let authorization = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        if self.requests.len() < REMEMBERED {
            self.requests.push(RecordedRequest {
                method: request.method().to_string(),
                path: request.uri().to_string(),
                authorization: authorization.map(str::to_owned),
            });
        }
        let path = request.uri().path();
        let json = |status, body: serde_json::Value| {
            Answer::new(status, &body.to_string()).header("content-type", "application/json")
        };
        let unknown = || json(404, json!({"errors": [{"code": "NAME_UNKNOWN", "message": "not in the script"}]}));
        if path == "/v2/" {
            return json(200, json!({}));
        }
        if let Some((_, tag)) = path.split_once("/manifests/").filter(|(_, tag)| !tag.contains(':')) {
            return index(tag);
        }
        let Some(name) = path.strip_prefix("/v2/").and_then(|path| path.strip_suffix("/tags/list")) else {
            return unknown();
        };
        *self.lists.entry(name.to_owned()).or_default() += 1;
        match (self.answers.get(name), self.tags.get(name)) {
            (Some(answer), _) => answer.clone(),
            (None, Some(tags)) => json(200, json!({"name": name, "tags": tags})),
            (None, None) => unknown(),
        }
    }
}

/// Each tag has an index of its own.
fn index(tag: &str) -> Answer {
    let media_type = "application/vnd.oci.image.index.v1+json";
    let image = json!({
        "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": format!("sha256:{}", "0".repeat(64)), "size": 2,
        "platform": {"os": "linux", "architecture": "amd64"},
    });
    let body = json!({
        "schemaVersion": 2, "mediaType": media_type, "manifests": [image], "annotations": {"tag": tag},
    });
    Answer::new(200, &body.to_string()).header("content-type", media_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_says_what_it_is_told_and_counts() {
        crate::install_crypto_provider();
        let registry = ScriptedRegistry::start().await.unwrap();
        let client = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
        let check = async |repository: &str, status: u16, body: &str| {
            let url = format!("http://{}/v2/{repository}/tags/list?n=10", registry.host());
            let answer = client.get(url).bearer_auth("secret").send().await.unwrap();
            assert_eq!(answer.status(), status);
            assert!(answer.text().await.unwrap().contains(body), "{repository}: {body}");
        };
        check("team/app", 404, "NAME_UNKNOWN").await;
        registry.set_tags("team/app", &["1.0.0", "1.1.0"]);
        check("team/app", 200, r#""tags":["1.0.0","1.1.0"]"#).await;
        registry.set_answer("team/app", Answer::new(429, "later").header("retry-after", "7"));
        check("team/app", 429, "later").await;
        registry.set_tags("team/app", &[]);
        check("team/app", 200, r#""tags":[]"#).await;
        assert_eq!((registry.lists("team/app"), registry.lists("other")), (4, 0));
        let seen = registry.requests();
        assert_eq!((seen[0].method.as_str(), seen[0].path.as_str()), ("GET", "/v2/team/app/tags/list?n=10"));
        assert_eq!(seen[0].authorization.as_deref(), Some("Bearer secret"));
    }
}
