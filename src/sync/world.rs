//! What sync knows of the cluster: the watched objects, reduced to the facts that decide something.
//!
//! One short lock around maps by namespace; readers take clones of `Arc`s and leave.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tokio::sync::watch;

use crate::api::annotations::NamespaceSettings;
use crate::api::{Image, ImageStatus, condition};
use crate::policy::Repository;
use crate::rollout::{Workload, WorkloadKey};

use super::managed;
use super::records::PodRecord;
use super::source::{Source, SourceKey, SourceKind};
use super::status::DUPLICATE;
use super::unmutated::Unmutated;

mod cover;
mod pods;
mod sources;
mod unmutated;

pub use cover::{User, same_group};

/// Names an Image.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageKey {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// `shop/web`
impl std::fmt::Display for ImageKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// An Image as the watch delivered it.
#[derive(Clone)]
pub enum Cached {
    /// It was read.
    Read(Arc<Image>),
    /// It is stored in a form that cannot be read; the others go on.
    Broken(Arc<ObjectMeta>, Arc<str>),
}

impl Cached {
    pub(super) fn metadata(&self) -> &ObjectMeta {
        match self {
            Self::Read(image) => &image.metadata,
            Self::Broken(metadata, _) => metadata,
        }
    }
}

#[derive(Default)]
struct Namespace {
    settings: Option<NamespaceSettings>,
    /// Since when it says so about `enabled`, if that is known.
    opted_in: Option<Timestamp>,
    images: BTreeMap<String, Cached>,
    workloads: BTreeMap<WorkloadKey, Arc<Workload>>,
    pods: BTreeMap<String, Arc<PodRecord>>,
    /// What Pods that are gone tell, and no status has yet. Oldest first.
    unwritten: Vec<Arc<PodRecord>>,
    /// By name of the Pod.
    unmutated: BTreeMap<String, Unmutated>,
    /// Of workloads only those with annotations of ours.
    sources: BTreeMap<SourceKey, Arc<Source>>,
    /// Jobs that a `CronJob` made: UID of the Job and name of the `CronJob`.
    jobs: BTreeMap<String, (String, String)>,
}

impl Namespace {
    fn is_empty(&self) -> bool {
        self.settings.is_none()
            && self.images.is_empty()
            && self.workloads.is_empty()
            && self.pods.is_empty()
            && self.unwritten.is_empty()
            && self.unmutated.is_empty()
            && self.sources.is_empty()
            && self.jobs.is_empty()
    }
}

/// The known world.
pub struct World {
    namespaces: Mutex<HashMap<String, Namespace>>,
    changed: watch::Sender<u64>,
}

impl Default for World {
    fn default() -> Self {
        Self { namespaces: Mutex::default(), changed: watch::Sender::new(0) }
    }
}

impl World {
    /// Wakes at every change of an Image, and of what asks for Images.
    pub fn changed(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Takes in an Image, unless a newer one is known already (our own writes arrive before the watch tells of them).
    pub fn put_image(&self, key: &ImageKey, image: Cached) -> bool {
        let mut namespaces = self.lock();
        let namespace = namespaces.entry(key.namespace.clone()).or_default();
        let version = |image: &Cached| (image.metadata().uid.clone(), image.metadata().resource_version.clone());
        if namespace.images.get(&key.name).is_some_and(|known| is_newer(&version(known), &version(&image))) {
            return false;
        }
        namespace.images.insert(key.name.clone(), image);
        namespace.drop_written();
        drop(namespaces);
        self.changed.send_modify(|version| *version += 1);
        true
    }

    /// Forgets an Image; returns it.
    pub fn remove_image(&self, key: &ImageKey) -> Option<Cached> {
        let mut removed = None;
        self.edit(&key.namespace, |namespace| {
            removed = namespace.images.remove(&key.name);
            namespace.drop_written();
        });
        self.changed.send_modify(|version| *version += 1);
        removed
    }

    /// An Image.
    pub fn image(&self, key: &ImageKey) -> Option<Cached> {
        self.lock().get(&key.namespace)?.images.get(&key.name).cloned()
    }

    /// Every Image.
    pub fn image_keys(&self) -> Vec<ImageKey> {
        let namespaces = self.lock();
        let keys = namespaces.iter().flat_map(|(namespace, known)| {
            known.images.keys().map(|name| ImageKey { namespace: namespace.clone(), name: name.clone() })
        });
        keys.collect()
    }

    /// The Images of a namespace that were found to be duplicates of older ones.
    pub fn duplicates(&self, namespace: &str) -> Vec<ImageKey> {
        let namespaces = self.lock();
        let images = namespaces.get(namespace).into_iter().flat_map(|known| &known.images);
        let is_duplicate = |cached: &Cached| match cached {
            Cached::Read(image) => {
                let conditions = image.status.iter().flat_map(|s| &s.conditions);
                conditions.into_iter().any(|c| c.type_ == condition::READY && c.reason == DUPLICATE)
            }
            Cached::Broken(..) => false,
        };
        let found = images.filter(|(_, cached)| is_duplicate(cached));
        found.map(|(name, _)| ImageKey { namespace: namespace.to_owned(), name: name.clone() }).collect()
    }

    /// Takes in a Namespace; returns whether its settings changed.
    pub fn put_namespace(&self, name: &str, settings: NamespaceSettings) -> bool {
        let mut namespaces = self.lock();
        let known = namespaces.entry(name.to_owned()).or_default();
        known.settings.replace(settings) != Some(settings)
    }

    /// The settings of a Namespace; the defaults until it is known.
    pub fn settings(&self, namespace: &str) -> NamespaceSettings {
        self.known_settings(namespace).unwrap_or_default()
    }

    /// The settings of a Namespace, if it is known.
    pub fn known_settings(&self, namespace: &str) -> Option<NamespaceSettings> {
        self.lock().get(namespace).and_then(|n| n.settings)
    }

    /// Forgets a Namespace's settings.
    pub fn remove_namespace(&self, name: &str) {
        self.edit(name, |namespace| namespace.settings = None);
    }

    /// Takes in a workload, unless a newer one is known already; returns whether it changed.
    pub fn put_workload(&self, workload: Workload) -> bool {
        let source = Source::is_annotated(&workload).then(|| Source::of_workload(&workload));
        let mut namespaces = self.lock();
        let namespace = namespaces.entry(workload.key.namespace.clone()).or_default();
        let version = |w: &Workload| (Some(w.uid.clone()), Some(w.resource_version.clone()));
        let known = namespace.workloads.get(&workload.key);
        if known.is_some_and(|known| is_newer(&version(known), &version(&workload))) {
            return false;
        }
        // At once with the workload: an annotated one never goes by the Images of other people for a moment.
        let changed = namespace.put_source(&SourceKey::from(&workload.key), source);
        namespace.workloads.insert(workload.key.clone(), Arc::new(workload));
        drop(namespaces);
        if changed {
            self.changed.send_modify(|version| *version += 1);
        }
        true
    }

    /// Forgets a workload.
    pub fn remove_workload(&self, key: &WorkloadKey) {
        self.edit(&key.namespace, |namespace| {
            namespace.put_source(&SourceKey::from(key), None);
            namespace.workloads.remove(key);
        });
    }

    /// A workload.
    pub fn workload(&self, key: &WorkloadKey) -> Option<Arc<Workload>> {
        self.lock().get(&key.namespace)?.workloads.get(key).cloned()
    }

    /// Every workload, or those of one namespace.
    pub fn workloads(&self, namespace: Option<&str>) -> Vec<Arc<Workload>> {
        let namespaces = self.lock();
        let wanted = namespaces.iter().filter(|(name, _)| namespace.is_none_or(|n| n == name.as_str()));
        wanted.flat_map(|(_, known)| known.workloads.values().cloned()).collect()
    }

    /// Those workloads for which this holds.
    pub fn workloads_that(&self, holds: impl Fn(&Workload) -> bool) -> Vec<Arc<Workload>> {
        let namespaces = self.lock();
        let all = namespaces.values().flat_map(|known| known.workloads.values());
        all.filter(|workload| holds(workload)).cloned().collect()
    }

    /// Namespace and name of every known object of a kind, of the namespace `within` or of all, that a complete list did
    /// not show.
    pub fn unseen(&self, kind: Kind, within: Option<&str>, seen: &HashSet<(String, String)>) -> Vec<(String, String)> {
        let namespaces = self.lock();
        let listed = namespaces.iter().filter(|(name, _)| within.is_none_or(|within| within == name.as_str()));
        let known = listed.flat_map(|(namespace, known)| {
            let names: Vec<&String> = match kind {
                Kind::Images => known.images.keys().collect(),
                Kind::Pods => {
                    let own = known.pods.keys().chain(known.unmutated.keys());
                    own.chain(known.source_names(SourceKind::Pod)).collect()
                }
                Kind::Jobs => known.jobs.keys().chain(known.source_names(SourceKind::Job)).collect(),
                Kind::CronJobs => known.source_names(SourceKind::CronJob).collect(),
                Kind::Workloads(kind) => known.workloads.keys().filter(|k| k.kind == kind).map(|k| &k.name).collect(),
                // A Namespace is in none.
                Kind::Namespaces => return vec![(String::new(), namespace.clone())],
            };
            names.into_iter().map(|name| (namespace.clone(), name.clone())).collect()
        });
        known.filter(|object| !seen.contains(object)).collect()
    }

    /// Takes something out of a namespace. One of which nothing is left goes: namespaces come and go without end.
    fn edit(&self, name: &str, change: impl FnOnce(&mut Namespace)) {
        let mut namespaces = self.lock();
        if let Some(namespace) = namespaces.get_mut(name) {
            change(namespace);
            if namespace.is_empty() {
                namespaces.remove(name);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Namespace>> {
        self.namespaces.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A kind of watched objects.
#[derive(Clone, Copy, Debug)]
pub enum Kind {
    /// `Image`
    Images,
    /// `Namespace`
    Namespaces,
    /// `Pod`
    Pods,
    /// `Job`
    Jobs,
    /// `CronJob`
    CronJobs,
    /// Deployments, `StatefulSets` or `DaemonSets`.
    Workloads(crate::rollout::Kind),
}

/// The status that counts: none of it if `spec.image` names another repository since, nothing rejected if the rules or the
/// filter are others since.
pub fn status_of(image: &Image) -> ImageStatus {
    let mut status = image.status.clone().unwrap_or_default();
    if status.rejected_elsewhere(&image.spec) {
        (status.rejected, status.group) = (Vec::new(), None);
    }
    let now = Repository::parse(&image.spec.image).map(|r| r.to_string()).ok();
    match (&status.repository, now) {
        (Some(then), Some(now)) if *then != now => ImageStatus { result: status.result, ..ImageStatus::default() },
        _ => status,
    }
}

/// UID and resource version.
type Version = (Option<String>, Option<String>);

/// Whether what is known is this version of the object or a newer one. Resource versions of one kind are ordered numbers
/// (Kubernetes API conventions, since 1.35; etcd revisions before); others count as not newer.
fn is_newer(known: &Version, other: &Version) -> bool {
    let number = |version: &Version| version.1.as_deref().and_then(|v| v.parse::<u64>().ok());
    known.0 == other.0 && matches!((number(known), number(other)), (Some(a), Some(b)) if a >= b)
}

fn age(image: &Image) -> (Option<jiff::Timestamp>, &str) {
    let created = image.metadata.creation_timestamp.as_ref().map(|t| t.0);
    (created, image.metadata.name.as_deref().unwrap_or_default())
}

#[cfg(test)]
mod cover_tests;
#[cfg(test)]
mod tests;
