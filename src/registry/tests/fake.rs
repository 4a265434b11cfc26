//! A registry that answers from a function and remembers what it was asked.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    response::Response,
};
use tokio::{net::TcpListener, task::JoinHandle};

use super::super::{
    Client, Config, Keyring, Limits, ListRequest, Listing, ManifestRequest, PullSecret, RegistryError, Tuning,
};
use crate::policy::Repository;

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) query: BTreeMap<String, String>,
    pub(super) authorization: Option<String>,
    pub(super) accept: String,
    pub(super) user_agent: String,
    pub(super) body: String,
    /// How many requests came before.
    pub(super) nth: usize,
}

impl Seen {
    pub(super) fn query(&self, name: &str) -> &str {
        self.query.get(name).map_or("", String::as_str)
    }
}

/// What tells the registry's answers; given the registry's address.
pub(super) type Script = dyn Fn(&Seen) -> Response + Send + Sync;

pub(super) struct Fake {
    pub(super) addr: SocketAddr,
    log: Arc<Mutex<Vec<Seen>>>,
    server: JoinHandle<()>,
}

impl Drop for Fake {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Fake {
    pub(super) async fn new(script: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> Self {
        Self::serve(TcpListener::bind("127.0.0.1:0").await.unwrap(), Arc::new(script))
    }

    /// For answers that hold the registry's own address.
    pub(super) async fn with_address(script: impl Fn(&Seen, SocketAddr) -> Response + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        Self::serve(listener, Arc::new(move |seen: &Seen| script(seen, addr)))
    }

    pub(super) fn serve<L>(listener: L, script: Arc<Script>) -> Self
    where
        L: axum::serve::Listener<Addr = SocketAddr>,
    {
        let addr = listener.local_addr().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let state = log.clone();
        let app = axum::Router::new().fallback(move |request: Request| {
            let (log, script) = (state.clone(), script.clone());
            async move { script(&remember(&log, request).await) }
        });
        let server = tokio::spawn(async move { drop(axum::serve(listener, app).await) });
        Self { addr, log, server }
    }

    pub(super) fn log(&self) -> Vec<Seen> {
        self.log.lock().unwrap().clone()
    }

    /// The authorizations that arrived, in order; "" for none.
    pub(super) fn authorizations(&self) -> Vec<String> {
        self.log().into_iter().map(|seen| seen.authorization.unwrap_or_default()).collect()
    }

    pub(super) fn request(&self, keyring: Keyring) -> ListRequest {
        let repository = Repository::parse(&format!("{}/team/app", self.addr)).unwrap();
        ListRequest { repository, keyring, insecure_skip_tls_verify: false }
    }

    pub(super) fn manifest_request(&self, tag: &str, keyring: Keyring) -> ManifestRequest {
        let ListRequest { repository, keyring, insecure_skip_tls_verify } = self.request(keyring);
        ManifestRequest { repository, tag: tag.to_owned(), keyring, insecure_skip_tls_verify }
    }

    /// Lists anonymously with a client of its own.
    pub(super) async fn list(&self) -> Result<Listing, RegistryError> {
        self.list_within(limits()).await
    }

    pub(super) async fn list_within(&self, limits: Limits) -> Result<Listing, RegistryError> {
        self.client(limits).list_tags(&self.request(Keyring::default())).await
    }

    pub(super) fn client(&self, limits: Limits) -> Client {
        client(Config { plain_http: vec![self.addr.to_string()], limits, ..Config::default() })
    }

    /// Credentials for this registry, each `user:password`, in this order.
    pub(super) fn keyring(&self, users: &[&str]) -> Keyring {
        keyring(&self.addr.to_string(), users)
    }
}

async fn remember(log: &Mutex<Vec<Seen>>, request: Request) -> Seen {
    let (parts, body) = request.into_parts();
    let body = to_bytes(body, 1 << 20).await.unwrap();
    let header = |name: &str| parts.headers.get(name).map(|value| value.to_str().unwrap().to_owned());
    let query = parts.uri.query().unwrap_or_default();
    let mut log = log.lock().unwrap();
    let seen = Seen {
        method: parts.method.to_string(),
        path: parts.uri.path().to_owned(),
        query: url::form_urlencoded::parse(query.as_bytes()).into_owned().collect(),
        authorization: header("authorization"),
        accept: header("accept").unwrap_or_default(),
        user_agent: header("user-agent").unwrap_or_default(),
        body: String::from_utf8(body.to_vec()).unwrap(),
        nth: log.len(),
    };
    log.push(seen.clone());
    seen
}

pub(super) fn client(config: Config) -> Client {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let tuning = Tuning { first_backoff: Duration::from_millis(1), proxies: false, system_roots: false, names: None };
    Client::tuned(config, tuning).unwrap()
}

/// The defaults, but for a rate that no test waits for.
pub(super) fn limits() -> Limits {
    Limits { rate: 1e6, ..Limits::default() }
}

pub(super) fn keyring(registry: &str, users: &[&str]) -> Keyring {
    let configs = users.iter().map(|user| {
        let (username, password) = user.split_once(':').unwrap();
        let config = serde_json::json!({ registry: { "username": username, "password": password } });
        BTreeMap::from([(".dockercfg".to_owned(), config.to_string().into_bytes())])
    });
    let configs: Vec<_> = configs.collect();
    let secrets = configs.iter().map(|data| PullSecret { name: "pull", kind: "kubernetes.io/dockercfg", data });
    Keyring::from_secrets(secrets).unwrap()
}

pub(super) fn answer(status: u16, headers: &[(&str, &str)], body: impl Into<Body>) -> Response {
    let mut builder = Response::builder().status(status);
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    builder.body(body.into()).unwrap()
}

pub(super) fn status(status: u16) -> Response {
    answer(status, &[], "")
}

pub(super) fn tags(tags: &[&str]) -> Response {
    tags_and(&[], tags)
}

pub(super) fn tags_and(headers: &[(&str, &str)], tags: &[&str]) -> Response {
    answer(200, headers, serde_json::json!({ "name": "team/app", "tags": tags }).to_string())
}

pub(super) fn redirect(to: &str) -> Response {
    answer(307, &[("location", to)], "")
}

/// A 401 with these challenges.
pub(super) fn challenge(challenges: &[&str]) -> Response {
    let headers: Vec<_> = challenges.iter().map(|value| ("www-authenticate", *value)).collect();
    answer(401, &headers, r#"{"errors":[{"code":"UNAUTHORIZED"}]}"#)
}

pub(super) fn bearer(addr: SocketAddr) -> Response {
    challenge(&[&format!(r#"Bearer realm="http://{addr}/token",service="fake",scope="repository:team/app:pull""#)])
}
