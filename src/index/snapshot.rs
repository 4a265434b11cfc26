//! What admission knows: namespaces and their Images by repository. Immutable once published; copying it shares all
//! namespaces that did not change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::core::DeserializeGuard;

use crate::api::annotations::{
    AnnotationError, MANAGED_BY, MANAGED_BY_KIMUP, Map, NamespaceSettings, POLICY_FROM, POLICY_OF_PODS, Stamp,
};
use crate::api::{self, CompiledSpec, Image, Order, RevisionRecord, Tagged};
use crate::policy::{self, Repository};

/// The known state of the cluster, or of the watched namespaces.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    namespaces: HashMap<String, Arc<Namespace>>,
}

/// One namespace. It may be known by its Images alone: the watches of the two run apart.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    settings: Option<NamespaceSettings>,
    errors: Vec<AnnotationError>,
    images: BTreeMap<String, Arc<Entry>>,
    /// Without the managed ones.
    by_repository: HashMap<Repository, Arc<Entry>>,
    has_managed: bool,
}

/// One Image, reduced to what admission needs.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Name of the Image.
    pub name: String,
    /// Its UID: a deleted and made again Image is another one.
    pub uid: String,
    /// Whether sync made it for annotations: then it covers what it was made for, and is not found by repository.
    pub managed: bool,
    /// Kind and name of its controller: the workload a managed Image was made for.
    pub owner: Option<(String, String)>,
    /// When it was created: of two Images for one repository the older counts.
    pub created: Option<Timestamp>,
    /// The normalised `spec.image`; none if it is no repository, so that the Image covers nothing.
    pub repository: Option<Repository>,
    /// Made for a policy that Pods carry themselves: it does not cover one that carries none.
    pub for_carriers: bool,
    /// The settled tag. None also if the status speaks of another repository, or holds no legal tag.
    pub tag: Option<String>,
    /// Its digest, if Pods are pinned to it.
    pub digest: Option<String>,
    /// Which of two tags is newer.
    pub order: Order,
    /// What may delay its first tag.
    pub gate: Option<&'static str>,
    /// Why the spec cannot be used, with the field to fix.
    pub error: Option<String>,
    records: HashMap<String, Vec<RevisionRecord>>,
}

impl Entry {
    /// Reads an Image. `now` serves to refuse a cron line that never fires again.
    pub fn read(image: &Image, now: Timestamp) -> Self {
        let compiled = api::compile(&image.spec, now);
        let repository = Repository::parse(&image.spec.image).ok();
        let status = image.status.clone().unwrap_or_default();
        let other = match (&status.repository, &repository) {
            (Some(of), Some(now)) => *of != now.to_string(),
            _ => false,
        };
        let labels = image.metadata.labels.as_ref();
        let annotations = image.metadata.annotations.as_ref();
        let managed = labels.and_then(|l| l.get(MANAGED_BY)).is_some_and(|by| by == MANAGED_BY_KIMUP);
        let order = compiled.as_ref().map_or_else(|_| Order::of(&image.spec), Order::from);
        let order = order.following(&status).of_one_text(managed);
        let mut records: HashMap<String, Vec<RevisionRecord>> = HashMap::new();
        for record in status.revisions {
            records.entry(record.uid.clone()).or_default().push(record);
        }
        let owner = image.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        Self {
            name: image.metadata.name.clone().unwrap_or_default(),
            for_carriers: annotations.and_then(|a| a.get(POLICY_FROM)).is_some_and(|from| from == POLICY_OF_PODS),
            managed,
            owner: owner.map(|owner| (owner.kind.clone(), owner.name.clone())),
            uid: image.metadata.uid.clone().unwrap_or_default(),
            created: image.metadata.creation_timestamp.as_ref().map(|t| t.0),
            repository,
            digest: status
                .digest
                .filter(|digest| api::pins_digest(&image.spec) && !other && policy::Digest::parse(digest).is_ok()),
            tag: status.tag.filter(|tag| !other && policy::is_legal_tag(tag)),
            order,
            gate: compiled.as_ref().ok().and_then(CompiledSpec::waits_for),
            error: compiled.err().map(|error| error.to_string()),
            records,
        }
    }

    /// The settled tag, with its digest if Pods are pinned to it.
    pub fn settled(&self) -> Option<Tagged> {
        Some(Tagged::new(self.tag.as_deref()?, self.digest.as_deref()))
    }

    /// What the first Pods of a revision got: `uid` is their controller's, `hash` their `pod-template-hash` or
    /// `controller-revision-hash`, empty for controllers without one.
    pub fn record(&self, uid: &str, hash: &str, container: &str) -> Option<Stamp> {
        let record = self.records.get(uid)?.iter().find(|r| r.hash == hash)?;
        Stamp::parse(record.containers.get(container)?)
    }

    fn is_owned_by(&self, kind: &str, name: &str) -> bool {
        self.owner.as_ref().is_some_and(|owner| (owner.0.as_str(), owner.1.as_str()) == (kind, name))
    }

    fn age(&self) -> (bool, Option<Timestamp>, &str) {
        (self.created.is_none(), self.created, &self.name)
    }
}

impl Namespace {
    /// What its labels and annotations say. None if the Namespace itself has not been seen.
    pub fn settings(&self) -> Option<NamespaceSettings> {
        self.settings
    }

    /// Its labels and annotations with values that are none of those allowed.
    pub fn errors(&self) -> &[AnnotationError] {
        &self.errors
    }

    /// The Image of that name, if sync made it for that owner (kind and name), or for Pods without one.
    pub fn managed(&self, name: &str, owner: Option<(&str, &str)>) -> Option<&Arc<Entry>> {
        let is_for = |entry: &&Arc<Entry>| match owner {
            Some((kind, name)) => entry.is_owned_by(kind, name),
            None => entry.owner.is_none(),
        };
        self.images.get(name).filter(|entry| entry.managed).filter(is_for)
    }

    /// Whether sync made any Image here: else nobody needs to look for one.
    pub fn has_managed(&self) -> bool {
        self.has_managed
    }

    /// Whether sync made an Image for one of these workloads (kind and name), whatever the container. Cost: all Images.
    pub fn has_managed_for(&self, owners: &[(&str, String)]) -> bool {
        let made_for = |entry: &Arc<Entry>| owners.iter().any(|(kind, name)| entry.is_owned_by(kind, name));
        self.has_managed && self.images.values().any(|entry| entry.managed && made_for(entry))
    }

    /// What the first Pods of a revision got, whichever managed Image has it on record ([`Entry::record`]). Cost: all
    /// Images.
    pub fn record(&self, uid: &str, hash: &str, container: &str) -> Option<(&Arc<Entry>, Stamp)> {
        let mut managed = self.images.values().filter(|entry| self.has_managed && entry.managed);
        managed.find_map(|entry| Some((entry, entry.record(uid, hash, container)?)))
    }

    fn index(&mut self) {
        self.has_managed = self.images.values().any(|entry| entry.managed);
        let mut entries: Vec<&Arc<Entry>> = self.images.values().filter(|entry| !entry.managed).collect();
        entries.sort_by(|a, b| b.age().cmp(&a.age())); // the oldest last: it overwrites the others
        self.by_repository =
            entries.into_iter().filter_map(|entry| Some((entry.repository.clone()?, Arc::clone(entry)))).collect();
    }

    fn is_empty(&self) -> bool {
        self.settings.is_none() && self.images.is_empty()
    }
}

/// One Image as a watch delivered it.
#[derive(Clone, Debug)]
pub enum Seen {
    /// It was read.
    Read(Arc<Entry>),
    /// It is stored in a form that cannot be read.
    Broken {
        /// Its UID.
        uid: String,
        /// What is wrong.
        error: String,
    },
}

impl Seen {
    /// Reads what a watch delivered, with its namespace and name.
    pub fn of(guard: DeserializeGuard<Image>, now: Timestamp) -> (String, String, Self) {
        let names = |metadata: &ObjectMeta| {
            (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
        };
        match guard.0 {
            Ok(image) => {
                let (namespace, name) = names(&image.metadata);
                (namespace, name, Self::Read(Arc::new(Entry::read(&image, now))))
            }
            Err(invalid) => {
                let (namespace, name) = names(&invalid.metadata);
                let uid = invalid.metadata.uid.unwrap_or_default();
                let error = invalid.error;
                (namespace, name, Self::Broken { uid, error })
            }
        }
    }
}

impl Snapshot {
    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name).map(AsRef::as_ref)
    }

    /// The user's Image that counts for a repository in a namespace.
    pub fn image(&self, namespace: &str, repository: &Repository) -> Option<&Arc<Entry>> {
        self.namespaces.get(namespace)?.by_repository.get(repository)
    }

    /// How many Images are known, duplicates included.
    pub fn images(&self) -> usize {
        self.namespaces.values().map(|n| n.images.len()).sum()
    }

    /// The namespaces opted in by an annotation alone, sorted: the webhook configuration must name them.
    pub fn annotated(&self) -> Vec<String> {
        let by_annotation = |n: &Arc<Namespace>| n.settings.is_some_and(|s| s.enabled_by_annotation);
        let mut names: Vec<String> = self
            .namespaces
            .iter()
            .filter(|(_, namespace)| by_annotation(namespace))
            .map(|(name, _)| name.clone())
            .collect();
        names.sort_unstable();
        names
    }

    /// Takes in a Namespace. Returns the errors that were not known before.
    pub fn put_namespace(&mut self, name: &str, labels: &Map, annotations: &Map) -> Vec<AnnotationError> {
        let (settings, errors) = NamespaceSettings::read(labels, annotations);
        let namespace = self.edit(name);
        let fresh = errors.iter().filter(|e| !namespace.errors.contains(e));
        let fresh = fresh.cloned().collect();
        namespace.settings = Some(settings);
        namespace.errors = errors;
        fresh
    }

    /// Forgets a Namespace. Its Images stay until their own watch says that they are gone.
    pub fn remove_namespace(&mut self, name: &str) {
        if self.namespaces.contains_key(name) {
            let namespace = self.edit(name);
            namespace.settings = None;
            namespace.errors.clear();
            self.drop_if_empty(name);
        }
    }

    /// Forgets every Namespace that is not among `names`.
    pub fn retain_namespaces(&mut self, names: &[String]) {
        let gone: Vec<String> = self.namespaces.keys().cloned().collect();
        for name in gone.iter().filter(|name| !names.contains(name)) {
            self.remove_namespace(name);
        }
    }

    /// Takes in an Image. One that cannot be read leaves its last good state where it is.
    pub fn put_image(&mut self, namespace: &str, name: &str, seen: Seen) {
        match seen {
            Seen::Read(entry) => {
                let namespace = self.edit(namespace);
                namespace.images.insert(name.to_owned(), entry);
                namespace.index();
            }
            // Another object of that name: the state known is of one that is gone.
            Seen::Broken { uid, .. } if !self.is_known(namespace, name, &uid) => {
                self.remove_image(namespace, name);
            }
            Seen::Broken { .. } => {}
        }
    }

    /// Forgets an Image.
    pub fn remove_image(&mut self, namespace: &str, name: &str) {
        if self.namespaces.contains_key(namespace) {
            let known = self.edit(namespace);
            known.images.remove(name);
            known.index();
            self.drop_if_empty(namespace);
        }
    }

    /// Replaces the Images of `scope` (a namespace; none: all) by a complete new list.
    pub fn replace_images(&mut self, scope: Option<&str>, list: Vec<(String, String, Seen)>) {
        let mut fresh: HashMap<String, BTreeMap<String, Arc<Entry>>> = HashMap::new();
        for (namespace, name, seen) in list {
            let entry = match seen {
                Seen::Read(entry) => Some(entry),
                Seen::Broken { uid, .. } if self.is_known(&namespace, &name, &uid) => {
                    self.namespaces[&namespace].images.get(&name).cloned()
                }
                Seen::Broken { .. } => None,
            };
            if let Some(entry) = entry {
                fresh.entry(namespace).or_default().insert(name, entry);
            }
        }
        let mut names: Vec<String> = match scope {
            Some(one) => vec![one.to_owned()],
            None => self.namespaces.keys().cloned().collect(),
        };
        names.extend(fresh.keys().cloned());
        names.sort_unstable();
        names.dedup();
        for name in names {
            let images = fresh.remove(&name).unwrap_or_default();
            let namespace = self.edit(&name);
            namespace.images = images;
            namespace.index();
            self.drop_if_empty(&name);
        }
    }

    fn is_known(&self, namespace: &str, name: &str, uid: &str) -> bool {
        self.namespaces.get(namespace).and_then(|n| n.images.get(name)).is_some_and(|entry| entry.uid == uid)
    }

    fn edit(&mut self, name: &str) -> &mut Namespace {
        Arc::make_mut(self.namespaces.entry(name.to_owned()).or_default())
    }

    fn drop_if_empty(&mut self, name: &str) {
        if self.namespaces.get(name).is_some_and(|n| n.is_empty()) {
            self.namespaces.remove(name);
        }
    }
}
