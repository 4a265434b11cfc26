//! Keeps the snapshot: two watches, reduced to what admission needs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, PartialObjectMeta};
use kube::core::DeserializeGuard;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::Image;
use crate::api::annotations::NamespaceSettings;

use super::snapshot::{ImageEntry, NamespaceEntry, Snapshot};

/// How often a Namespace is read that a Role lets us `get` but not watch.
const NAMESPACE_POLL: Duration = Duration::from_secs(30);

/// Which namespaces are watched.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The whole cluster.
    All,
    /// These, with Roles alone.
    Namespaces(Vec<String>),
}

/// The snapshot and what is known about it. Readers never wait for writers.
#[derive(Default)]
pub struct Index {
    current: ArcSwap<Snapshot>,
    state: Mutex<State>,
    annotated: watch::Sender<Vec<String>>,
    listed: watch::Sender<usize>,
    lists: usize,
}

#[derive(Default)]
struct State {
    namespaces: HashMap<String, Known>,
}

#[derive(Default)]
struct Known {
    settings: Option<NamespaceSettings>,
    images: BTreeMap<String, Arc<ImageEntry>>,
}

impl Index {
    /// The snapshot as it is now. One atomic load.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.current.load_full()
    }

    /// Namespaces that opted in by an annotation alone.
    pub fn annotated(&self) -> watch::Receiver<Vec<String>> {
        self.annotated.subscribe()
    }

    /// Waits until Images and Namespaces have been listed once.
    pub async fn ready(&self) {
        let mut listed = self.listed.subscribe();
        let _ = listed.wait_for(|count| *count >= self.lists).await;
    }

    fn change(&self, namespace: &str, change: impl FnOnce(&mut Known)) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let known = state.namespaces.entry(namespace.to_owned()).or_default();
        change(known);
        self.publish(namespace, &mut state);
    }

    /// Publishes one namespace. The caller holds the lock, so that snapshots follow one another.
    fn publish(&self, namespace: &str, state: &mut State) {
        let known = state.namespaces.get(namespace);
        let entry = known
            .filter(|k| k.settings.is_some() || !k.images.is_empty())
            .map(|known| NamespaceEntry::new(known.settings.unwrap_or_default(), known.images.values().cloned()));
        if entry.is_none() {
            state.namespaces.remove(namespace);
        }
        let next = self.current.load().with(namespace, entry);
        let annotated = next.annotated();
        self.current.store(Arc::new(next));
        self.annotated.send_if_modified(|known| {
            let changed = *known != annotated;
            *known = annotated;
            changed
        });
    }

    fn saw_image(&self, guard: DeserializeGuard<Image>) {
        match guard.0 {
            Ok(image) => {
                let (namespace, name) = (image.namespace().unwrap_or_default(), image.name_any());
                let entry = ImageEntry::of(&image).map(Arc::new);
                self.change(&namespace, |known| match entry {
                    Some(entry) => _ = known.images.insert(name, entry),
                    None => _ = known.images.remove(&name),
                });
            }
            // The last form that could be read stays: one bad object must not take a version back.
            Err(invalid) => {
                let namespace = invalid.metadata.namespace.unwrap_or_default();
                let name = invalid.metadata.name.unwrap_or_default();
                tracing::warn!(namespace, name, error = invalid.error, "an Image cannot be read; it is left out");
            }
        }
    }

    fn saw_namespace(&self, name: &str, object: &impl ResourceExt) {
        let (settings, errors) = NamespaceSettings::read(object.labels(), object.annotations());
        for error in errors {
            tracing::warn!(namespace = name, "Namespace {name}: {error}");
        }
        self.change(name, |known| known.settings = Some(settings));
    }

    /// After a complete list of a kind: what it did not show is gone.
    fn retain(&self, seen: &HashSet<(String, String)>, images: bool) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let names: Vec<String> = state.namespaces.keys().cloned().collect();
        for namespace in names {
            let Some(known) = state.namespaces.get_mut(&namespace) else {
                continue;
            };
            if images {
                known.images.retain(|name, _| seen.contains(&(namespace.clone(), name.clone())));
            } else if !seen.contains(&(String::new(), namespace.clone())) {
                known.settings = None;
            }
            self.publish(&namespace, &mut state);
        }
        self.listed.send_modify(|count| *count += 1);
    }
}

/// Starts the watches. A failed one keeps what is known; a new list takes effect when it is complete.
pub fn start(client: &kube::Client, scope: &Scope, shutdown: &CancellationToken) -> Arc<Index> {
    let lists = match scope {
        Scope::All => 2,
        Scope::Namespaces(names) => 2 * names.len(),
    };
    let index = Arc::new(Index { lists, ..Index::default() });
    match scope {
        Scope::All => {
            let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
            let stream = watcher::watcher(api, watcher::Config::default()).boxed();
            let saw =
                |index: &Index, object: PartialObjectMeta<Namespace>| index.saw_namespace(&object.name_any(), &object);
            let gone = |index: &Index, _: &str, name: &str| index.change(name, |known| known.settings = None);
            tokio::spawn(follow(stream, index.clone(), shutdown.clone(), Some(false), saw, gone));
            watch_images(Api::all(client.clone()), &index, shutdown, Some(true));
        }
        Scope::Namespaces(names) => {
            for name in names {
                tokio::spawn(poll_namespace(client.clone(), index.clone(), name.clone(), shutdown.clone()));
                watch_images(Api::namespaced(client.clone(), name), &index, shutdown, None);
            }
        }
    }
    index
}

fn watch_images(
    api: Api<DeserializeGuard<Image>>,
    index: &Arc<Index>,
    shutdown: &CancellationToken,
    retain: Option<bool>,
) {
    let stream = watcher::watcher(api, watcher::Config::default()).boxed();
    let gone =
        |index: &Index, namespace: &str, name: &str| index.change(namespace, |known| _ = known.images.remove(name));
    tokio::spawn(follow(stream, index.clone(), shutdown.clone(), retain, Index::saw_image, gone));
}

async fn poll_namespace(client: kube::Client, index: Arc<Index>, name: String, shutdown: CancellationToken) {
    let api: Api<Namespace> = Api::all(client);
    let mut pause = Pause::default();
    let mut first = true;
    loop {
        let wait = match tokio::time::timeout(Duration::from_secs(10), api.get(&name)).await {
            Ok(Ok(namespace)) => {
                index.saw_namespace(&name, &namespace);
                if std::mem::take(&mut first) {
                    index.listed.send_modify(|count| *count += 1);
                }
                pause.reset();
                NAMESPACE_POLL
            }
            failed => {
                tracing::warn!(namespace = name, ?failed, "cannot read the Namespace; trying again");
                pause.next().unwrap_or(NAMESPACE_POLL)
            }
        };
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

/// `retain`: Some(true) for the only list of Images, Some(false) for that of Namespaces, none for one list of several.
async fn follow<K>(
    stream: BoxStream<'static, Result<Event<K>, watcher::Error>>,
    index: Arc<Index>,
    shutdown: CancellationToken,
    retain: Option<bool>,
    saw: impl Fn(&Index, K),
    gone: impl Fn(&Index, &str, &str),
) where
    K: Resource<DynamicType = ()> + Send + 'static,
{
    let mut stream = stream.backoff(Pause::default()).boxed();
    let mut seen = HashSet::new();
    loop {
        let event = tokio::select! {
            event = stream.try_next() => event,
            () = shutdown.cancelled() => return,
        };
        let name = |object: &K| (object.meta().namespace.clone().unwrap_or_default(), object.name_any());
        match event {
            Ok(Some(Event::Init)) => seen.clear(),
            Ok(Some(Event::InitApply(object))) => {
                seen.insert(name(&object));
                saw(&index, object);
            }
            Ok(Some(Event::InitDone)) => match retain {
                Some(images) => index.retain(&std::mem::take(&mut seen), images),
                None => index.listed.send_modify(|count| *count += 1),
            },
            Ok(Some(Event::Apply(object))) => saw(&index, object),
            Ok(Some(Event::Delete(object))) => {
                let (namespace, name) = name(&object);
                gone(&index, &namespace, &name);
            }
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%error, "a watch failed; what is known stays, trying again");
            }
        }
    }
}

/// Longest pause before a failed watch is tried again. After an outage two such pauses follow one another: the first try
/// may find that the version it knows is too old, and that is a failure too.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

/// Short pauses: after an API server's return everything is watched again within seconds (the default waits 30 s).
struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(Duration::from_millis(200))
    }
}

impl Iterator for Pause {
    type Item = Duration;
    fn next(&mut self) -> Option<Duration> {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        Some(pause.mul_f64(0.75 + fastrand::f64() / 2.0))
    }
}

impl Backoff for Pause {
    fn reset(&mut self) {
        *self = Self::default();
    }
}
