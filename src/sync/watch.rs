//! Fills the world from watches, and asks for what a change concerns.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use futures::TryStreamExt;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, PartialObjectMeta};
use kube::core::{DeserializeGuard, NamespaceResourceScope};
use kube::runtime::watcher::{self, Event};
use kube::{Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio::sync::watch::Receiver;
use tokio_util::sync::CancellationToken;

use crate::api::Image;
use crate::api::annotations::{Map, NamespaceSettings};
use crate::index::{Pause, Scope, watched};
use crate::rollout::{self, Workload, WorkloadKey};

use super::engine::{Key, Sync};
use super::records;
use super::source::{self, Source, SourceKey, SourceKind};
use super::unmutated;
use super::world::{Cached, ImageKey, Kind};

mod foreign;

pub(super) use foreign::Served;

/// How often a Namespace is read that a Role lets us `get` but not watch.
const NAMESPACE_POLL: Duration = Duration::from_secs(10);

/// The running watches.
pub(super) struct Watches {
    first: Vec<Receiver<bool>>,
}

impl Watches {
    /// Waits until each watch has delivered a complete list once.
    pub async fn first_lists(mut self) {
        for watch in &mut self.first {
            let _ = watch.wait_for(|listed| *listed).await;
        }
    }
}

/// Starts every watch.
pub(super) fn start(sync: &Arc<Sync>, shutdown: &CancellationToken) -> Watches {
    let mut first = Vec::new();
    watch_namespaces(sync, shutdown, &mut first);
    let mut each = Each { sync, shutdown, first: &mut first };
    each.watch(
        Kind::Images,
        |sync, object: DeserializeGuard<Image>| sync.saw_image(object),
        |sync, namespace, name| {
            let key = ImageKey { namespace: namespace.to_owned(), name: name.to_owned() };
            let removed = sync.world.remove_image(&key);
            sync.queue.add_now(Key::Image(key));
            if !removed.is_some_and(|image| sync.queue_owner(namespace, &image)) {
                sync.queue_namespace(namespace);
                sync.queue_told(namespace);
                sync.revisit_duplicates(namespace);
            }
        },
    );
    each.workloads(rollout::Kind::Deployment, |object: &Deployment| Workload::from_deployment(object));
    each.workloads(rollout::Kind::StatefulSet, |object: &StatefulSet| Workload::from_stateful_set(object));
    each.workloads(rollout::Kind::DaemonSet, |object: &DaemonSet| Workload::from_daemon_set(object));
    each.watch(
        Kind::CronJobs,
        |sync, object: CronJob| {
            if let Some(source) = Source::of_cron_job(&object) {
                sync.saw_source(&source.key.clone(), Some(source));
            }
        },
        |sync, namespace, name| sync.saw_source(&named(SourceKind::CronJob, namespace, name), None),
    );
    each.watch(
        Kind::Jobs,
        |sync, object: Job| sync.saw_job(&object),
        |sync, namespace, name| {
            sync.nudges.saw_job(namespace, name, None);
            sync.world.remove_job(&named(SourceKind::Job, namespace, name));
        },
    );
    each.watch(
        Kind::Pods,
        |sync, pod: Pod| sync.saw_pod(&pod),
        |sync, namespace, name| {
            sync.world.remove_pod(namespace, name);
            sync.saw_source(&named(SourceKind::Pod, namespace, name), None);
        },
    );
    first.extend(foreign::start(sync, shutdown));
    Watches { first }
}

fn workload_gone(sync: &Sync, kind: rollout::Kind, namespace: &str, name: &str) {
    let key = WorkloadKey { kind, namespace: namespace.to_owned(), name: name.to_owned() };
    sync.world.remove_workload(&key);
    sync.queue.add_now(Key::Source(SourceKey::from(&key)));
    sync.queue.add_now(Key::Workload(key));
}

/// What one watch each is for: all namespaces, or each of those that kimup is for.
fn scopes<T>(sync: &Sync, api: impl Fn(kube::Client, Option<&str>) -> T) -> Vec<(Option<String>, T)> {
    match &sync.options.scope {
        Scope::All => vec![(None, api(sync.client.clone(), None))],
        Scope::Namespaces(names) => {
            names.iter().map(|name| (Some(name.clone()), api(sync.client.clone(), Some(name)))).collect()
        }
    }
}

fn named(kind: SourceKind, namespace: &str, name: &str) -> SourceKey {
    SourceKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

struct Each<'a> {
    sync: &'a Arc<Sync>,
    shutdown: &'a CancellationToken,
    first: &'a mut Vec<Receiver<bool>>,
}

impl Each<'_> {
    fn workloads<K>(&mut self, kind: rollout::Kind, read: fn(&K) -> Option<Workload>)
    where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        self.watch(
            Kind::Workloads(kind),
            move |sync, object: K| {
                if let Some(workload) = read(&object) {
                    sync.saw_workload(workload);
                }
            },
            move |sync, namespace, name| workload_gone(sync, kind, namespace, name),
        );
    }

    fn watch<K>(
        &mut self,
        kind: Kind,
        saw: impl Fn(&Sync, K) + Clone + Send + 'static,
        gone: impl Fn(&Sync, &str, &str) + Clone + Send + 'static,
    ) where
        K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
            + Clone
            + Debug
            + DeserializeOwned
            + Send
            + 'static,
    {
        let api = |client, within: Option<&str>| match within {
            Some(namespace) => Api::<K>::namespaced(client, namespace),
            None => Api::all(client),
        };
        for (within, api) in scopes(self.sync, api) {
            self.first.push(follow(
                api,
                self.sync.clone(),
                self.shutdown.clone(),
                kind,
                within,
                saw.clone(),
                gone.clone(),
            ));
        }
    }
}

fn watch_namespaces(sync: &Arc<Sync>, shutdown: &CancellationToken, first: &mut Vec<Receiver<bool>>) {
    if let Scope::Namespaces(names) = &sync.options.scope {
        let own = Some(&sync.options.own_namespace).filter(|own| !names.contains(own));
        for name in names.iter().chain(own) {
            first.push(poll_namespace(sync.clone(), shutdown.clone(), name.clone()));
        }
        return;
    }
    let api: Api<PartialObjectMeta<Namespace>> = Api::all(sync.client.clone());
    let saw = |sync: &Sync, namespace: PartialObjectMeta<Namespace>| {
        sync.saw_namespace(&namespace.name_any(), &namespace.metadata);
    };
    let gone = |sync: &Sync, _: &str, name: &str| sync.world.remove_namespace(name);
    first.push(follow(api, sync.clone(), shutdown.clone(), Kind::Namespaces, None, saw, gone));
}

fn poll_namespace(sync: Arc<Sync>, shutdown: CancellationToken, name: String) -> Receiver<bool> {
    let (listed, receiver) = tokio::sync::watch::channel(false);
    let api: Api<Namespace> = Api::all(sync.client.clone());
    tokio::spawn(async move {
        let (mut pause, mut told) = (Pause::default(), false);
        loop {
            let wait = match tokio::time::timeout(Duration::from_secs(10), api.get_opt(&name)).await {
                // A brake for the whole cluster is not worth standing still without it.
                Ok(Err(kube::Error::Api(refused))) if refused.code == 403 && name == sync.options.own_namespace => {
                    if !std::mem::replace(&mut told, true) {
                        tracing::warn!(
                            namespace = name, error = %refused.message,
                            "the annotation freeze of this Namespace is not seen: give kimup get on it, as the Role in deploy/rbac.yaml does"
                        );
                    }
                    listed.send_replace(true);
                    NAMESPACE_POLL
                }
                Ok(Ok(found)) => {
                    match found {
                        Some(namespace) => sync.saw_namespace(&name, &namespace.metadata),
                        None => sync.world.remove_namespace(&name), // one that is not there holds up no other
                    }
                    listed.send_replace(true);
                    pause = Pause::default();
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
    });
    receiver
}

/// Follows one watch, of the namespace `within` or of all. A failed one keeps what is known; a new list replaces it when
/// it is complete: what went meanwhile is `gone` like what is deleted before our eyes.
fn follow<K>(
    api: Api<K>,
    sync: Arc<Sync>,
    shutdown: CancellationToken,
    kind: Kind,
    within: Option<String>,
    saw: impl Fn(&Sync, K) + Send + 'static,
    gone: impl Fn(&Sync, &str, &str) + Send + 'static,
) -> Receiver<bool>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let (listed, receiver) = tokio::sync::watch::channel(false);
    let mut stream = watched(api, watcher::Config::default());
    tokio::spawn(async move {
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
                    saw(&sync, object);
                }
                Ok(Some(Event::InitDone)) => {
                    for (namespace, name) in sync.world.unseen(kind, within.as_deref(), &seen) {
                        gone(&sync, &namespace, &name);
                    }
                    seen.clear();
                    listed.send_replace(true);
                }
                Ok(Some(Event::Apply(object))) => saw(&sync, object),
                Ok(Some(Event::Delete(object))) => {
                    let (namespace, name) = name(&object);
                    gone(&sync, &namespace, &name);
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(kind = ?kind, %error, "a watch failed; what is known stays, trying again");
                }
            }
        }
    });
    receiver
}

impl Sync {
    fn saw_image(&self, guard: DeserializeGuard<Image>) {
        let (metadata, cached) = match guard.0 {
            Ok(image) => (image.metadata.clone(), Cached::Read(Arc::new(image))),
            Err(invalid) => {
                let metadata = Arc::new(invalid.metadata);
                ((*metadata).clone(), Cached::Broken(metadata, invalid.error.into()))
            }
        };
        let (Some(namespace), Some(name)) = (metadata.namespace, metadata.name) else {
            return;
        };
        let key = ImageKey { namespace, name };
        if self.world.put_image(&key, cached.clone()) {
            if !self.queue_owner(&key.namespace, &cached) {
                self.queue_namespace(&key.namespace);
                self.revisit_duplicates(&key.namespace);
            }
            self.queue.add_now(Key::Image(key));
        }
    }

    /// The older Image of a pair may have gone, or follow another repository now.
    fn revisit_duplicates(&self, namespace: &str) {
        for key in self.world.duplicates(namespace) {
            if let Some(memo) = self.memos().get_mut(&key) {
                memo.forced = true;
            }
            self.queue.add_now(Key::Image(key));
        }
    }

    fn saw_workload(&self, workload: Workload) {
        let key = workload.key.clone();
        let source = SourceKey::from(&key);
        let before = self.world.is_annotated(&source);
        if self.world.put_workload(workload) {
            self.queue.add_now(Key::Workload(key));
            if before || self.world.is_annotated(&source) {
                self.queue.add_now(Key::Source(source));
            }
        }
    }

    fn saw_source(&self, key: &SourceKey, source: Option<Source>) {
        if self.world.put_source(key, source) {
            let key = if key.kind == SourceKind::Pod { SourceKey::pods(&key.namespace) } else { key.clone() };
            self.queue.add_now(Key::Source(key));
        }
    }

    fn saw_job(&self, job: &Job) {
        let (Some(namespace), Some(name)) = (job.namespace(), job.metadata.name.as_deref()) else {
            return;
        };
        self.nudges.saw_job(&namespace, name, Some(job));
        let key = named(SourceKind::Job, &namespace, name);
        if source::of_job(job).is_some_and(|seen| self.world.put_job(&key, seen)) {
            self.queue.add_now(Key::Source(key));
        }
    }

    fn saw_pod(&self, pod: &Pod) {
        let (Some(namespace), Some(name)) = (pod.namespace(), pod.metadata.name.as_deref()) else {
            return;
        };
        self.saw_source(&named(SourceKind::Pod, &namespace, name), Source::of_pod(pod));
        self.saw_unmutated(&namespace, name, pod);
        let Some(record) = records::of_pod(pod) else {
            return;
        };
        let images: HashSet<String> = record.containers.iter().map(|(image, _, _)| image.clone()).collect();
        if self.world.put_pod(&namespace, name, record) {
            for name in images {
                self.queue.add_now(Key::Image(ImageKey { namespace: namespace.clone(), name }));
            }
        }
    }

    fn saw_namespace(&self, name: &str, metadata: &ObjectMeta) {
        let none = Map::new();
        let (labels, annotations) = (metadata.labels.as_ref(), metadata.annotations.as_ref());
        let (settings, errors) = NamespaceSettings::read(labels.unwrap_or(&none), annotations.unwrap_or(&none));
        self.world.put_opted_in(name, unmutated::opted_in_since(metadata));
        for error in errors {
            tracing::warn!(namespace = name, "Namespace {name}: {error}");
        }
        if self.world.put_namespace(name, settings) {
            self.nudges.hurry(name); // another failure policy, perhaps
            if name == self.options.own_namespace {
                self.queue_everything();
            } else {
                self.queue_namespace(name);
            }
        }
    }

    fn queue_namespace(&self, namespace: &str) {
        for key in self.world.image_keys().into_iter().filter(|key| key.namespace == namespace) {
            self.queue.add_now(Key::Image(key));
        }
        for workload in self.world.workloads(Some(namespace)) {
            self.queue.add_now(Key::Workload(workload.key.clone()));
        }
    }
}
