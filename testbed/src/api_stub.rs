//! An API server for what the webhook asks of one: Images and Namespaces to list and watch, Secrets to keep.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Query, State};
use axum::http::{Method, StatusCode, Uri, header};
use axum::response::{IntoResponse as _, Response};
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::background::{Task, runtime};
use crate::https::serve_tls;
use crate::pki::ServerCertificate;
use crate::run_dir::run_dir;

/// How many events a watch may be behind; older ones are answered 410.
const REMEMBERED: usize = 10_000;
/// How often a watch that nothing happens on is told the current version, if it wants to know. Kubernetes: a minute.
const BOOKMARK: Duration = Duration::from_secs(5);
const FOREVER: Duration = Duration::from_secs(3600);
const KIMUP: &str = "/apis/kimup.cloudavenue.io/v1alpha1";

/// An in-process HTTPS server that lists (in pages) and watches Namespaces, Images and Secrets, reads each by name, and
/// takes creates, updates and patches of Secrets. Everything else is unknown (404). Objects are kept as they are put,
/// but for `resourceVersion` and `uid`. It runs on threads of its own until it is dropped.
pub struct ApiStub {
    address: SocketAddr,
    kubeconfig: PathBuf,
    shared: Arc<Shared>,
    _server: Task,
}

/// What becomes of a request instead of an answer, or before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// It is answered with this status.
    Refused(u16),
    /// It is never answered, and its connection stays.
    Silence,
    /// It is answered so much later.
    Delay(Duration),
}

/// Tells the obstacle in the way of a request, by its path and query.
type Obstacles = dyn Fn(&str, &HashMap<String, String>) -> Option<Obstacle> + Send + Sync;

#[derive(Default)]
struct Shared {
    requests: AtomicU64,
    state: Mutex<Cluster>,
    obstacles: Mutex<Option<Arc<Obstacles>>>,
}

/// All objects, and what happened to them.
#[derive(Default)]
struct Cluster {
    version: u64,
    /// Up to this version nothing that happened is known any more.
    forgotten: u64,
    kinds: HashMap<&'static str, Kind>,
}

#[derive(Default)]
struct Kind {
    /// As JSON, by namespace and name.
    objects: BTreeMap<(String, String), Arc<str>>,
    events: VecDeque<(u64, Key, Bytes)>,
    watches: Vec<(Filter, mpsc::UnboundedSender<Bytes>)>,
}

type Key = (String, String);

/// A namespace and a name, where they are given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Filter {
    namespace: Option<String>,
    name: Option<String>,
}

impl Filter {
    fn admits(&self, (namespace, name): &Key) -> bool {
        let is = |wanted: &Option<String>, found: &String| wanted.as_ref().is_none_or(|wanted| wanted == found);
        is(&self.namespace, namespace) && is(&self.name, name)
    }
}

/// What a path names: a kind's plural, and where.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    plural: &'static str,
    filter: Filter,
}

impl ApiStub {
    pub async fn start() -> Result<Self> {
        crate::install_crypto_provider();
        let folder = run_dir()?.folder("api-stub")?;
        let certificate = ServerCertificate::own()?;
        certificate.write(&folder)?;
        let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
        let key = PrivatePkcs8KeyDer::from(certificate.key.clone()).into();
        let config = rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
        // Bound on the runtime that serves it.
        let listener = runtime()?.spawn(TcpListener::bind("127.0.0.1:0")).await?.context("binding the API server")?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let server = Task::spawn(serve_tls(listener, Arc::new(config), router))?;
        let kubeconfig = write_kubeconfig(&folder, address)?;
        Ok(Self { address, kubeconfig, shared, _server: server })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A kubeconfig that leads here.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }

    /// How many requests it has had, watches included.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::SeqCst)
    }

    /// How many watches are open.
    pub fn watches(&self) -> usize {
        let state = lock(&self.shared.state);
        let all = state.kinds.values().flat_map(|kind| &kind.watches);
        all.filter(|(_, watch)| !watch.is_closed()).count()
    }

    /// Creates or replaces a Namespace, Image or Secret (by its `kind`), and tells those who watch.
    pub fn put(&self, object: Value) -> Result<()> {
        let plural = match object["kind"].as_str() {
            Some("Namespace") => "namespaces",
            Some("Image") => "images",
            Some("Secret") => "secrets",
            other => anyhow::bail!("no Namespace, Image or Secret: {other:?}"),
        };
        let key = key(&object);
        ensure!(!key.1.is_empty(), "the object has no name");
        lock(&self.shared.state).put(plural, key, object);
        Ok(())
    }

    /// Ends every watch, without an error: those who watch begin anew from what they know.
    pub fn end_watches(&self) {
        for kind in lock(&self.shared.state).kinds.values_mut() {
            kind.watches.clear();
        }
    }

    /// Forgets what happened so far: whoever asks to watch from there gets the status 410 `Expired`.
    pub fn forget(&self) {
        lock(&self.shared.state).forget();
    }

    /// Forgets what happened so far and says so to those who watch (410 `Expired`): they must list anew.
    pub fn expire_watches(&self) {
        let mut state = lock(&self.shared.state);
        state.forget();
        let line = Bytes::from(format!("{}\n", json!({"type": "ERROR", "object": status(410, "Expired")})));
        for (_, watch) in state.kinds.values_mut().flat_map(|kind| kind.watches.drain(..)) {
            let _ = watch.send(line.clone()); // who is gone needs no telling
        }
    }

    /// From now on puts these in the way of requests, instead of those before.
    pub fn obstruct(
        &self,
        obstacles: impl Fn(&str, &HashMap<String, String>) -> Option<Obstacle> + Send + Sync + 'static,
    ) {
        *lock(&self.shared.obstacles) = Some(Arc::new(obstacles));
    }

    /// From now on nothing is in the way of requests.
    pub fn clear(&self) {
        *lock(&self.shared.obstacles) = None;
    }
}

fn write_kubeconfig(folder: &Path, address: SocketAddr) -> Result<PathBuf> {
    let path = folder.join("kubeconfig");
    let text = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "stub",
        "clusters": [{"name": "stub", "cluster": {
            "server": format!("https://{address}"), "certificate-authority": folder.join("server.crt")}}],
        "users": [{"name": "stub", "user": {"token": "stub"}}],
        "contexts": [{"name": "stub", "context": {"cluster": "stub", "user": "stub"}}],
    });
    fs::write(&path, text.to_string()).with_context(|| format!("writing {}", path.display()))?;
    Ok(path)
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

fn key(object: &Value) -> Key {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

impl Cluster {
    fn forget(&mut self) {
        self.version += 1;
        self.forgotten = self.version;
    }

    /// The object as it is stored.
    fn put(&mut self, plural: &'static str, key: Key, mut object: Value) -> Arc<str> {
        self.version += 1;
        let version = self.version;
        let kind = self.kinds.entry(plural).or_default();
        object["metadata"]["resourceVersion"] = json!(version.to_string());
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{version}"));
        }
        let text: Arc<str> = object.to_string().into();
        let known = kind.objects.insert(key.clone(), Arc::clone(&text)).is_some();
        let change = if known { "MODIFIED" } else { "ADDED" };
        let line = Bytes::from(format!("{{\"type\":\"{change}\",\"object\":{text}}}\n"));
        kind.watches.retain(|(filter, watch)| !filter.admits(&key) || watch.send(line.clone()).is_ok());
        kind.events.push_back((version, key, line));
        if kind.events.len() > REMEMBERED {
            kind.events.pop_front();
        }
        text
    }

    fn list(&self, target: &Target, query: &HashMap<String, String>) -> String {
        let limit = query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0);
        let start: usize = query.get("continue").and_then(|token| token.parse().ok()).unwrap_or_default();
        let limit = limit.unwrap_or(usize::MAX);
        let all = self.kinds.get(target.plural).map(|kind| &kind.objects);
        let mut found = all.into_iter().flatten().filter(|(key, _)| target.filter.admits(key)).skip(start);
        let items: Vec<&str> = found.by_ref().take(limit).map(|(_, text)| &**text).collect();
        let more = found.next().map(|_| (start + items.len()).to_string()).unwrap_or_default();
        let (api_version, kind) = kind_of(target.plural);
        format!(
            "{{\"kind\":\"{kind}List\",\"apiVersion\":\"{api_version}\",\"metadata\":{{\"resourceVersion\":\"{}\",\"continue\":\"{more}\"}},\"items\":[{}]}}",
            self.version,
            items.join(",")
        )
    }

    /// The events since a version and all that follow; none if it is too old.
    fn watch(&mut self, target: &Target, since: u64) -> Option<mpsc::UnboundedReceiver<Bytes>> {
        let kind = self.kinds.entry(target.plural).or_default();
        if since < self.forgotten {
            return None;
        }
        if kind.events.len() == REMEMBERED && kind.events.front().is_some_and(|(oldest, ..)| *oldest > since + 1) {
            return None;
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        for (_, _, line) in kind.events.iter().filter(|(at, key, _)| *at > since && target.filter.admits(key)) {
            let _ = sender.send(line.clone()); // the receiver is right here
        }
        kind.watches.push((target.filter.clone(), sender));
        Some(receiver)
    }
}

fn kind_of(plural: &str) -> (&'static str, &'static str) {
    match plural {
        "images" => ("kimup.cloudavenue.io/v1alpha1", "Image"),
        "secrets" => ("v1", "Secret"),
        _ => ("v1", "Namespace"),
    }
}

/// What a path and its field selector name; none if there is nothing like it here.
fn target(path: &str, selector: Option<&String>) -> Option<Target> {
    let (core, path) = match path.strip_prefix("/api/v1/") {
        Some(rest) => (true, rest),
        None => (false, path.strip_prefix(KIMUP)?.strip_prefix('/')?),
    };
    let some = |name: &str| Some(name.to_owned());
    let parts: Vec<&str> = path.split('/').collect();
    let plurals: &[&str] = if core { &["secrets", "namespaces"] } else { &["images"] };
    let plural = |name: &str| match name {
        "secrets" => Some("secrets"),
        "images" => Some("images"),
        "namespaces" => Some("namespaces"),
        _ => None,
    };
    let (name, namespace, object) = match parts[..] {
        ["namespaces", namespace, name] => (name, some(namespace), None),
        ["namespaces", namespace, name, object] => (name, some(namespace), some(object)),
        ["namespaces", object] => ("namespaces", None, some(object)),
        [name] => (name, None, None),
        _ => return None,
    };
    let selected = selector.and_then(|selector| selector.strip_prefix("metadata.name=")).and_then(some);
    let plural = plural(name).filter(|plural| plurals.contains(plural))?;
    Some(Target { plural, filter: Filter { namespace, name: object.or(selected) } })
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    Query(query): Query<HashMap<String, String>>,
    body: Bytes,
) -> Response {
    shared.requests.fetch_add(1, Ordering::SeqCst);
    let obstacles = lock(&shared.obstacles).clone();
    match obstacles.and_then(|obstacles| obstacles(uri.path(), &query)) {
        None => {}
        Some(Obstacle::Refused(code)) => return failure(code, "InternalError"),
        Some(Obstacle::Silence) => std::future::pending().await,
        Some(Obstacle::Delay(delay)) => tokio::time::sleep(delay).await,
    }
    let Some(target) = target(uri.path(), query.get("fieldSelector")) else {
        return failure(404, "NotFound");
    };
    let names_one = !query.contains_key("fieldSelector") && target.filter.name.is_some();
    if method == Method::GET {
        let is_watch = query.get("watch").is_some_and(|watch| watch == "true" || watch == "1");
        return match (names_one, is_watch) {
            (true, _) => shared.get(target),
            (false, true) => shared.watch(&target, &query),
            (false, false) => json_response(200, lock(&shared.state).list(&target, &query)),
        };
    }
    match serde_json::from_slice(&body) {
        Ok(sent) if target.plural == "secrets" => shared.write(&method, target, sent),
        _ => failure(405, "MethodNotAllowed"),
    }
}

impl Shared {
    fn get(&self, target: Target) -> Response {
        let state = lock(&self.state);
        let key = key_of(target.filter);
        let found = state.kinds.get(target.plural).and_then(|kind| kind.objects.get(&key));
        found.map_or_else(|| failure(404, "NotFound"), |text| json_response(200, text.to_string()))
    }

    fn watch(self: Arc<Self>, target: &Target, query: &HashMap<String, String>) -> Response {
        let since = query.get("resourceVersion").and_then(|version| version.parse().ok()).unwrap_or_default();
        let Some(events) = lock(&self.state).watch(target, since) else {
            return failure(410, "Expired");
        };
        let pause = query.get("allowWatchBookmarks").filter(|wanted| *wanted == "true").map_or(FOREVER, |_| BOOKMARK);
        let (api_version, kind) = kind_of(target.plural);
        let lines = futures::stream::unfold((self, events), move |(shared, mut events)| async move {
            let line = if let Ok(line) = tokio::time::timeout(pause, events.recv()).await {
                line?
            } else {
                let metadata = json!({"resourceVersion": lock(&shared.state).version.to_string()});
                let object = json!({"kind": kind, "apiVersion": api_version, "metadata": metadata});
                Bytes::from(format!("{}\n", json!({"type": "BOOKMARK", "object": object})))
            };
            Some((Ok::<_, Infallible>(line), (shared, events)))
        });
        ([(header::CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
    }

    fn write(&self, method: &Method, target: Target, sent: Value) -> Response {
        let mut state = lock(&self.state);
        let mut key = key_of(target.filter);
        if *method == Method::POST {
            key.1 = self::key(&sent).1;
        }
        let known = state.kinds.get(target.plural).and_then(|kind| kind.objects.get(&key)).cloned();
        let known: Option<Value> = known.and_then(|text| serde_json::from_str(&text).ok());
        let version = |object: &Value| object["metadata"]["resourceVersion"].as_str().map(str::to_owned);
        let is_conflict = |known: &Value| version(&sent).is_some_and(|wanted| version(known) != Some(wanted));
        let (code, object) = match (method.as_str(), known) {
            ("POST", Some(_)) => return failure(409, "AlreadyExists"),
            ("PUT" | "PATCH", Some(known)) if is_conflict(&known) => return failure(409, "Conflict"),
            ("POST", None) => (201, sent),
            ("PUT", Some(known)) => {
                let mut object = sent;
                object["metadata"]["uid"] = known["metadata"]["uid"].clone();
                (200, object)
            }
            ("PATCH", Some(mut known)) => {
                merge(&mut known, sent);
                (200, known)
            }
            _ => return failure(404, "NotFound"),
        };
        let stored = state.put(target.plural, key, object);
        json_response(code, stored.to_string())
    }
}

fn key_of(filter: Filter) -> Key {
    (filter.namespace.unwrap_or_default(), filter.name.unwrap_or_default())
}

/// RFC 7386. An apply patch is taken for one too: no managed fields are kept here.
fn merge(into: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else {
        *into = patch;
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (key, value) in patch {
        if value.is_null() {
            if let Some(into) = into.as_object_mut() {
                into.remove(&key);
            }
        } else {
            merge(&mut into[key], value);
        }
    }
}

fn json_response(code: u16, body: String) -> Response {
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    (status, [(header::CONTENT_TYPE, "application/json")], body).into_response()
}

fn failure(code: u16, reason: &str) -> Response {
    json_response(code, status(code, reason).to_string())
}

fn status(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("the stub says {reason}"), "reason": reason, "code": code})
}

#[cfg(test)]
mod tests {
    use kube::api::{
        Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
    };
    use kube::config::{KubeConfigOptions, Kubeconfig};
    use kube::core::GroupVersionKind;

    use super::*;

    async fn client(stub: &ApiStub) -> kube::Client {
        let kubeconfig = Kubeconfig::read_from(stub.kubeconfig()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
        kube::Client::try_from(config).unwrap()
    }

    fn resource(group: &str, version: &str, kind: &str, plural: &str) -> ApiResource {
        ApiResource::from_gvk_with_plural(&GroupVersionKind::gvk(group, version, kind), plural)
    }

    #[test]
    fn a_path_names_a_kind_and_where() {
        #[track_caller]
        fn check(path: &str, selector: &str, expected: Option<(&str, Option<&str>, Option<&str>)>) {
            let selector = Some(selector.to_owned()).filter(|selector| !selector.is_empty());
            let found = target(path, selector.as_ref());
            let own = |text: Option<&str>| text.map(str::to_owned);
            let found = found.map(|t| (t.plural, t.filter));
            let expected = expected
                .map(|(plural, namespace, name)| (plural, Filter { namespace: own(namespace), name: own(name) }));
            assert_eq!(found, expected, "{path}");
        }
        check("/api/v1/namespaces", "", Some(("namespaces", None, None)));
        check("/api/v1/namespaces/shop", "", Some(("namespaces", None, Some("shop"))));
        check("/api/v1/secrets", "", Some(("secrets", None, None)));
        check("/api/v1/namespaces/shop/secrets", "", Some(("secrets", Some("shop"), None)));
        check("/api/v1/namespaces/shop/secrets", "metadata.name=ca", Some(("secrets", Some("shop"), Some("ca"))));
        check("/api/v1/namespaces/shop/secrets/ca", "", Some(("secrets", Some("shop"), Some("ca"))));
        check(&format!("{KIMUP}/images"), "", Some(("images", None, None)));
        check(&format!("{KIMUP}/namespaces/shop/images/web"), "", Some(("images", Some("shop"), Some("web"))));
        check("/api/v1/pods", "", None);
        check("/api/v1/images", "", None);
        check("/apis/apps/v1/deployments", "", None);
        check("/version", "", None);
    }

    #[tokio::test]
    async fn lists_come_in_pages_and_watches_go_on_from_them() {
        let stub = ApiStub::start().await.unwrap();
        let image = |name: &str, tag: &str| {
            json!({"apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
                "metadata": {"name": name, "namespace": "shop"}, "status": {"tag": tag}})
        };
        for name in ["a", "b", "c"] {
            stub.put(image(name, "1")).unwrap();
        }
        let kind = resource("kimup.cloudavenue.io", "v1alpha1", "Image", "images");
        let api: Api<DynamicObject> = Api::all_with(client(&stub).await, &kind);
        let first = api.list(&ListParams::default().limit(2)).await.unwrap();
        let token = first.metadata.continue_.clone().unwrap();
        let rest = api.list(&ListParams::default().limit(2).continue_token(&token)).await.unwrap();
        let names: Vec<String> =
            first.items.iter().chain(&rest.items).filter_map(|i| i.metadata.name.clone()).collect();
        assert_eq!(names, ["a", "b", "c"]);
        assert!(rest.metadata.continue_.is_none_or(|token| token.is_empty()));
        stub.put(image("b", "2")).unwrap(); // between list and watch
        let version = first.metadata.resource_version.unwrap();
        let events = api.watch(&WatchParams::default(), &version).await.unwrap();
        stub.put(image("c", "3")).unwrap();
        let mut events = std::pin::pin!(events);
        for tag in ["2", "3"] {
            let event = futures::StreamExt::next(&mut events).await.unwrap().unwrap();
            assert!(matches!(event, WatchEvent::Modified(image) if image.data["status"]["tag"] == tag));
        }
        assert_eq!(stub.requests(), 3);
        stub.end_watches();
        assert!(futures::StreamExt::next(&mut events).await.is_none());
    }

    #[tokio::test]
    async fn what_happened_is_forgotten_and_requests_are_obstructed() {
        let stub = ApiStub::start().await.unwrap();
        let api: Api<DynamicObject> =
            Api::all_with(client(&stub).await, &resource("kimup.cloudavenue.io", "v1alpha1", "Image", "images"));
        let version = async || api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
        let old = version().await;
        let mut events = std::pin::pin!(api.watch(&WatchParams::default(), &old).await.unwrap());
        stub.expire_watches();
        let event = futures::StreamExt::next(&mut events).await.unwrap().unwrap();
        assert!(matches!(&event, WatchEvent::Error(status) if status.code == 410), "{event:?}");
        assert!(futures::StreamExt::next(&mut events).await.is_none());
        let again = api.watch(&WatchParams::default(), &old).await.map(drop).unwrap_err();
        assert!(matches!(&again, kube::Error::Api(status) if status.code == 410), "{again}");
        assert!(api.watch(&WatchParams::default(), &version().await).await.is_ok());
        stub.obstruct(|path, query| {
            let watched = query.contains_key("watch");
            (path.ends_with("/images") && !watched).then_some(Obstacle::Refused(500))
        });
        assert!(api.list(&ListParams::default()).await.is_err());
        stub.obstruct(|_, _| Some(Obstacle::Silence));
        let listed = tokio::time::timeout(Duration::from_millis(200), version()).await;
        assert!(listed.is_err(), "never answered");
        stub.clear();
        version().await;
    }

    #[tokio::test]
    async fn secrets_are_kept() {
        let stub = ApiStub::start().await.unwrap();
        let api: Api<DynamicObject> =
            Api::namespaced_with(client(&stub).await, "kimup-system", &resource("", "v1", "Secret", "secrets"));
        assert!(api.get_opt("ca").await.unwrap().is_none());
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ca", "namespace": "kimup-system"},
            "data": {"a": "MQ==", "b": "Mg=="}});
        let secret: DynamicObject = serde_json::from_value(secret).unwrap();
        let created = api.create(&PostParams::default(), &secret).await.unwrap();
        let code = |error: kube::Error| match error {
            kube::Error::Api(status) => status.code,
            other => panic!("{other}"),
        };
        assert_eq!(code(api.create(&PostParams::default(), &secret).await.unwrap_err()), 409);
        let patch = json!({"data": {"a": null, "c": "Mw=="}});
        let patched = api.patch("ca", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        assert_eq!(patched.data["data"], json!({"b": "Mg==", "c": "Mw=="}));
        assert_eq!(patched.metadata.uid, created.metadata.uid);
        // Somebody wrote meanwhile.
        assert_eq!(code(api.replace("ca", &PostParams::default(), &created).await.unwrap_err()), 409);
        assert!(api.replace("ca", &PostParams::default(), &patched).await.is_ok());
    }
}
