//! Fills the snapshot from watches. One task owns the working copy; a failed watch keeps what is known, and a new list
//! replaces it only when it is complete.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::StreamExt;
use futures::stream::{BoxStream, SelectAll};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::ResourceExt;
use kube::api::{Api, PartialObjectMeta};
use kube::runtime::watcher::{self, Event};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::api::annotations::Map;
use crate::telemetry::Metrics;

use super::listed::Listed;
use super::pulse::Pulse;
use super::snapshot::{ImageList, Seen, Snapshot};
use super::specs::Specs;
use super::watched::{Pause, watched};

/// How often a Namespace is read that a Role lets us `get` but not watch.
const NAMESPACE_POLL: Duration = Duration::from_secs(30);
const CALL_TIMEOUT: Duration = Duration::from_secs(10);
/// Images of one page of a list: a page is held whole, as text and as objects, and some kilobytes are usual for one.
const PAGE: u32 = 50;
/// Changes taken in before the next snapshot is published, if that many are waiting.
const BATCH: usize = 256;

/// Which namespaces are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole cluster.
    All,
    /// These namespaces, with Roles alone.
    Namespaces(Vec<String>),
}

/// The current snapshot, and how good it is.
pub struct Index {
    snapshot: ArcSwap<Snapshot>,
    pulses: Vec<Pulse>,
    /// Beside the channel, which takes a lock to tell.
    is_ready: AtomicBool,
    ready: watch::Sender<bool>,
    annotated: watch::Sender<Arc<[String]>>,
    metrics: Metrics,
}

impl Index {
    /// An index that holds `snapshot` and follows nothing: for tests and for work without a cluster.
    pub fn fixed(snapshot: Snapshot) -> Arc<Self> {
        let index = Self::empty(Metrics::new(), Vec::new());
        index.publish(snapshot);
        index.set_ready();
        Arc::new(index)
    }

    /// An index that knows nothing and never will.
    #[cfg(test)]
    pub(crate) fn unfilled() -> Arc<Self> {
        Arc::new(Self::empty(Metrics::new(), Vec::new()))
    }

    fn empty(metrics: Metrics, pulses: Vec<Pulse>) -> Self {
        Self {
            snapshot: ArcSwap::default(),
            pulses,
            is_ready: AtomicBool::new(false),
            ready: watch::Sender::new(false),
            annotated: watch::Sender::new(Arc::default()),
            metrics,
        }
    }

    /// The snapshot. Takes no lock, and never waits for one that is being made; hold it for one request only.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.snapshot.load_full()
    }

    /// Whether Namespaces and Images have been listed once. It stays so: a failed watch keeps what is known.
    pub fn is_ready(&self) -> bool {
        self.is_ready.load(Ordering::Acquire)
    }

    /// Tells when [`Self::is_ready`] becomes true.
    pub fn ready(&self) -> watch::Receiver<bool> {
        self.ready.subscribe()
    }

    /// Time since the watch that has been silent longest showed a sign of life: an event, a bookmark (about one a minute
    /// while nothing changes) or a list. What is older than some minutes may be wrong; it is served all the same.
    pub fn age(&self) -> Duration {
        self.pulses.iter().map(Pulse::age).max().unwrap_or_default()
    }

    /// The namespaces opted in by an annotation alone ([`Snapshot::annotated`]), told only when the list changes.
    pub fn annotated(&self) -> watch::Receiver<Arc<[String]>> {
        self.annotated.subscribe()
    }

    /// The snapshot is complete from now on.
    fn set_ready(&self) {
        self.is_ready.store(true, Ordering::Release);
        self.ready.send_replace(true);
    }

    fn publish(&self, snapshot: Snapshot) {
        self.metrics.set_images(snapshot.images());
        let before = self.snapshot.swap(Arc::new(snapshot));
        let snapshot = self.snapshot.load();
        if !Arc::ptr_eq(before.annotated(), snapshot.annotated()) {
            let now: Arc<[String]> = snapshot.annotated().iter().cloned().collect();
            self.annotated.send_if_modified(|known| {
                let changed = **known != *now;
                *known = now;
                changed
            });
        }
    }
}

/// Starts the watches. They need `list` and `watch` on Images and, for [`Scope::All`], on Namespaces; else `get` on each
/// Namespace. The task ends after `shutdown`, never by itself.
pub fn start(
    client: &kube::Client,
    scope: &Scope,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> (Arc<Index>, JoinHandle<()>) {
    let watches = Watches::new(client, scope, &metrics);
    let index = Arc::new(Index::empty(metrics, watches.pulses));
    let changes = watches.changes;
    let collector = Collector::new(scope);
    let task = tokio::spawn(run(Arc::clone(&index), changes, collector, shutdown));
    (index, task)
}

async fn run(
    index: Arc<Index>,
    changes: SelectAll<BoxStream<'static, Change>>,
    mut collector: Collector,
    shutdown: CancellationToken,
) {
    let mut batches = changes.ready_chunks(BATCH);
    loop {
        let batch = tokio::select! {
            batch = batches.next() => batch,
            () = shutdown.cancelled() => return,
        };
        let Some(batch) = batch else {
            return shutdown.cancelled().await; // no watch at all: an empty list of namespaces
        };
        let mut dirty = false;
        for change in batch {
            dirty |= collector.take(change, Timestamp::now());
        }
        if dirty {
            index.publish(collector.snapshot.clone());
        }
        if collector.is_complete() && !index.is_ready() {
            index.set_ready();
            tracing::info!(images = collector.snapshot.images(), "Namespaces and Images are listed");
        }
    }
}

/// One watch: of Namespaces, or of Images (all of them, or those of a namespace).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Source {
    Namespaces,
    Namespace(String),
    Images(Option<String>),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Namespaces => write!(f, "Namespaces"),
            Self::Namespace(name) => write!(f, "Namespace {name}"),
            Self::Images(None) => write!(f, "Images"),
            Self::Images(Some(namespace)) => write!(f, "Images of namespace {namespace}"),
        }
    }
}

/// What a watch says.
enum Change {
    /// From the watch of all Namespaces.
    Namespace(Box<Event<PartialObjectMeta<Namespace>>>),
    /// A Namespace read by name; none if there is no such Namespace.
    Polled(String, Option<Box<Namespace>>),
    /// From a watch of Images, with its namespace unless it is of all.
    Image(Option<String>, Box<Event<Listed>>),
    Failed(Source, String),
}

/// The watches of a scope.
struct Watches {
    changes: SelectAll<BoxStream<'static, Change>>,
    pulses: Vec<Pulse>,
}

impl Watches {
    fn new(client: &kube::Client, scope: &Scope, metrics: &Metrics) -> Self {
        let mut watches = Self { changes: SelectAll::new(), pulses: Vec::new() };
        for source in Source::of(scope) {
            let pulse = match &source {
                Source::Namespaces => metrics.last_seen("namespaces", ""),
                Source::Namespace(name) => metrics.last_seen("namespaces", name),
                Source::Images(namespace) => metrics.last_seen("images", namespace.as_deref().unwrap_or_default()),
            };
            let pulse = Pulse::new(pulse);
            watches.changes.push(source.follow(pulse.client(client)));
            watches.pulses.push(pulse);
        }
        watches
    }
}

impl Source {
    fn of(scope: &Scope) -> Vec<Self> {
        match scope {
            Scope::All => vec![Self::Namespaces, Self::Images(None)],
            Scope::Namespaces(names) => {
                names.iter().flat_map(|n| [Self::Namespace(n.clone()), Self::Images(Some(n.clone()))]).collect()
            }
        }
    }

    fn follow(self, client: kube::Client) -> BoxStream<'static, Change> {
        match self {
            Self::Namespaces => namespaces(Api::all(client)),
            Self::Namespace(name) => poll(Api::all(client), name),
            Self::Images(None) => images(Api::all(client), None),
            Self::Images(Some(namespace)) => images(Api::namespaced(client, &namespace), Some(namespace)),
        }
    }
}

fn namespaces(api: Api<PartialObjectMeta<Namespace>>) -> BoxStream<'static, Change> {
    watched(api, watcher::Config::default())
        .map(|event| match event {
            Ok(event) => Change::Namespace(Box::new(event)),
            Err(error) => Change::Failed(Source::Namespaces, error.to_string()),
        })
        .boxed()
}

fn images(api: Api<Listed>, namespace: Option<String>) -> BoxStream<'static, Change> {
    watched(api, watcher::Config::default().page_size(PAGE))
        .map(move |event| match event {
            Ok(event) => Change::Image(namespace.clone(), Box::new(event)),
            Err(error) => Change::Failed(Source::Images(namespace.clone()), error.to_string()),
        })
        .boxed()
}

fn poll(api: Api<Namespace>, name: String) -> BoxStream<'static, Change> {
    let state = (api, name, Duration::ZERO, Pause::default());
    futures::stream::unfold(state, |(api, name, wait, mut pause)| async move {
        tokio::time::sleep(wait).await;
        let answer = tokio::time::timeout(CALL_TIMEOUT, api.get_opt(&name)).await;
        let (change, wait) = match answer {
            Ok(Ok(found)) => (Change::Polled(name.clone(), found.map(Box::new)), NAMESPACE_POLL),
            failed => {
                let cause = match failed {
                    Ok(Err(error)) => error.to_string(),
                    _ => "no answer in time".to_owned(),
                };
                let wait = pause.next().unwrap_or(NAMESPACE_POLL);
                (Change::Failed(Source::Namespace(name.clone()), cause), wait)
            }
        };
        Some((change, (api, name, wait, pause)))
    })
    .boxed()
}

/// Turns what the watches say into snapshots. Pure but for log lines.
struct Collector {
    snapshot: Snapshot,
    specs: Specs,
    namespaces: Option<Vec<PartialObjectMeta<Namespace>>>,
    images: HashMap<Option<String>, ImageList>,
    /// Not listed completely yet.
    missing: Vec<Source>,
    failing: Vec<Source>,
    /// Images that cannot be read, each said once.
    broken: HashMap<(String, String), String>,
}

impl Collector {
    fn new(scope: &Scope) -> Self {
        Self {
            snapshot: Snapshot::default(),
            specs: Specs::default(),
            namespaces: None,
            images: HashMap::new(),
            missing: Source::of(scope),
            failing: Vec::new(),
            broken: HashMap::new(),
        }
    }

    fn is_complete(&self) -> bool {
        self.missing.is_empty()
    }

    /// Takes in a change. Returns whether the snapshot is another one now.
    fn take(&mut self, change: Change, now: Timestamp) -> bool {
        match change {
            Change::Namespace(event) => self.namespace(*event),
            Change::Polled(name, found) => {
                self.works(&Source::Namespace(name.clone()));
                match found {
                    Some(found) => self.put_namespace(&name, found.labels(), found.annotations()),
                    None => self.snapshot.remove_namespace(&name),
                }
                true
            }
            Change::Image(scope, event) => self.image(scope, *event, now),
            Change::Failed(source, error) => {
                if !self.failing.contains(&source) {
                    tracing::warn!("cannot watch {source}: {error}; what is known stays, trying again");
                    self.failing.push(source);
                }
                false
            }
        }
    }

    fn namespace(&mut self, event: Event<PartialObjectMeta<Namespace>>) -> bool {
        match event {
            Event::Init => {
                self.namespaces = Some(Vec::new());
                return false;
            }
            Event::InitApply(object) => {
                self.namespaces.get_or_insert_default().push(object);
                return false;
            }
            Event::InitDone => {
                let list = self.namespaces.take().unwrap_or_default();
                let names: HashSet<String> = list.iter().map(ResourceExt::name_any).collect();
                self.snapshot.retain_namespaces(&names);
                for object in list {
                    self.put_namespace(&object.name_any(), object.labels(), object.annotations());
                }
            }
            Event::Apply(object) => {
                self.put_namespace(&object.name_any(), object.labels(), object.annotations());
            }
            Event::Delete(object) => self.snapshot.remove_namespace(&object.name_any()),
        }
        self.works(&Source::Namespaces);
        true
    }

    fn image(&mut self, scope: Option<String>, event: Event<Listed>, now: Timestamp) -> bool {
        match event {
            Event::Init => {
                self.images.insert(scope, ImageList::default());
                return false;
            }
            Event::InitApply(listed) => {
                let (namespace, name, seen) = self.see(listed, now);
                self.images.entry(scope).or_default().push(namespace, name, seen);
                return false;
            }
            Event::InitDone => {
                let list = self.images.remove(&scope).unwrap_or_default();
                self.broken.retain(|key, _| scope.as_ref().is_some_and(|s| *s != key.0) || list.is_broken(key));
                self.snapshot.replace_images(scope.as_deref(), list);
            }
            Event::Apply(listed) => {
                let (namespace, name, seen) = self.see(listed, now);
                self.snapshot.put_image(&namespace, &name, seen);
            }
            Event::Delete(listed) => {
                let (namespace, name) = (listed.namespace().unwrap_or_default(), listed.name_any());
                self.snapshot.remove_image(&namespace, &name);
                self.broken.remove(&(namespace, name));
            }
        }
        self.works(&Source::Images(scope));
        true
    }

    fn see(&mut self, listed: Listed, now: Timestamp) -> (String, String, Seen) {
        let (namespace, name, seen) = Seen::of(&mut self.specs, listed, now);
        let key = (namespace.clone(), name.clone());
        match &seen {
            Seen::Read(_) => {
                self.broken.remove(&key);
            }
            Seen::Broken { error, .. } => {
                if self.broken.insert(key, error.clone()).as_ref() != Some(error) {
                    tracing::warn!(
                        "Image {namespace}/{name} cannot be read: {error}; it is left out, or kept as it was last read. \
                         Correct it, or delete it and apply it again"
                    );
                }
            }
        }
        (namespace, name, seen)
    }

    fn put_namespace(&mut self, name: &str, labels: &Map, annotations: &Map) {
        for error in self.snapshot.put_namespace(name, labels, annotations) {
            tracing::warn!("Namespace {name}: {error}; it counts as absent");
        }
    }

    fn works(&mut self, source: &Source) {
        self.missing.retain(|missing| missing != source);
        if self.failing.contains(source) {
            self.failing.retain(|failing| failing != source);
            tracing::info!("watching {source} again");
        }
    }
}

#[cfg(test)]
mod tests;
