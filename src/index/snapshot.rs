//! What admission knows: namespaces and their Images by repository. Immutable once published; copying it shares all
//! namespaces that did not change.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::annotations::{
    AnnotationError, MANAGED_BY, MANAGED_BY_KIMUP, Map, NamespaceSettings, POLICY_FROM, POLICY_OF_PODS, Stamp,
};
use crate::api::{HeldBy, Image, Order, Tagged};
use crate::policy::{self, Repository};

use super::groups::{ByOwner, ByRecord, ByRepository, Groups, owner_key};
use super::listed::Listed;
use super::past::Past;
use super::specs::Specs;
use super::trie::{Keyed, Trie};

/// The known state of the cluster, or of the watched namespaces. A copy costs nothing, and shares what does not change.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    namespaces: Trie<Arc<Namespace>>,
    images: usize,
    annotated: Arc<BTreeSet<String>>,
}

/// One namespace. It may be known by its Images alone: the watches of the two run apart.
#[derive(Clone, Debug, Default)]
pub struct Namespace {
    name: Box<str>,
    settings: Option<NamespaceSettings>,
    errors: Vec<AnnotationError>,
    images: Trie<Arc<Entry>>,
    /// Without the managed ones.
    by_repository: Groups<ByRepository>,
    /// None without managed Images, so that nothing is spent then.
    managed: Option<Box<Managed>>,
    /// How many of the Images have rejected tags on record.
    rejecting: usize,
}

/// What only a namespace with managed Images has.
#[derive(Clone, Debug, Default)]
struct Managed {
    /// How many of its Images are managed.
    count: usize,
    by_owner: Groups<ByOwner>,
    by_record: Groups<ByRecord>,
}

impl Keyed for Arc<Namespace> {
    type Key = str;

    fn has_key(&self, key: &str) -> bool {
        *self.name == *key
    }
}

impl Keyed for Arc<Entry> {
    type Key = str;

    fn has_key(&self, key: &str) -> bool {
        self.name() == key
    }
}

/// One Image, reduced to what admission needs.
#[derive(Clone, Debug)]
pub struct Entry {
    texts: Texts,
    /// A deleted and made again Image is another one.
    uid: Uid,
    /// Whether sync made it for annotations: then it covers what it was made for, and is not found by repository.
    pub managed: bool,
    /// Made for a policy that Pods carry themselves: it does not cover one that carries none.
    pub for_carriers: bool,
    /// Kind and name of its controller: the workload a managed Image was made for.
    pub owner: Option<Box<(String, String)>>,
    /// When it was created, in seconds since the epoch: of two Images for one repository the older counts.
    created: i64,
    /// Which of two tags is newer.
    pub order: Order,
    /// Its `Group`, as a number.
    group: u64,
    /// Mostly none.
    trouble: Option<Box<Trouble>>,
    /// Some have none.
    past: Option<Box<Past>>,
}

/// Name, repository, tag and digest in one piece of memory: an empty one is none.
#[derive(Clone, Debug)]
struct Texts {
    all: Box<str>,
    /// Where the first three end.
    ends: [u16; 3],
}

impl Texts {
    fn new(texts: [&str; 4]) -> Self {
        let mut end = 0;
        let ends = [texts[0], texts[1], texts[2]].map(|text| {
            end += text.len();
            u16::try_from(end).unwrap_or(u16::MAX) // some 640 at most: a name has 253, a repository 255, a tag 128
        });
        Self { all: texts.concat().into(), ends }
    }

    /// One of the four.
    fn get(&self, nth: usize) -> Option<&str> {
        let end = |nth: usize| self.ends.get(nth).map_or(self.all.len(), |end| usize::from(*end));
        let start = if nth == 0 { 0 } else { end(nth - 1) };
        self.all.get(start..end(nth)).filter(|text| !text.is_empty())
    }
}

/// Why an Image may get no tag.
#[derive(Clone, Debug)]
struct Trouble {
    gate: Option<&'static str>,
    error: Option<String>,
}

/// The UID of an object: that of Kubernetes is a UUID, whose text would take five times the room.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Uid {
    Uuid([u8; 16]),
    Other(Box<str>),
}

impl Uid {
    fn read(text: &str) -> Self {
        let digits = text.len() == 36 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-'));
        let uuid = digits.then(|| u128::from_str_radix(&text.replace('-', ""), 16).ok()).flatten();
        uuid.map_or_else(|| Self::Other(text.into()), |uuid| Self::Uuid(uuid.to_be_bytes()))
    }
}

impl Entry {
    /// Reads an Image. `now` serves to refuse a cron line that never fires again.
    pub fn read(image: &Image, now: Timestamp) -> Self {
        Self::read_with(&mut Specs::default(), image, now)
    }

    /// The same, where what was compiled for another Image serves for this one.
    pub fn read_with(specs: &mut Specs, image: &Image, now: Timestamp) -> Self {
        let repository = Repository::parse(&image.spec.image).ok();
        // Without a repository that is what is wrong, whatever the rules.
        let spec = match &repository {
            Some(_) => specs.read(&image.spec, now),
            None => Specs::default().read(&image.spec, now),
        };
        let status = image.status.clone().unwrap_or_default();
        let other = match (&status.repository, &repository) {
            (Some(of), Some(now)) => *of != now.to_string(),
            _ => false,
        };
        let labels = image.metadata.labels.as_ref();
        let annotations = image.metadata.annotations.as_ref();
        let managed = labels.and_then(|l| l.get(MANAGED_BY)).is_some_and(|by| by == MANAGED_BY_KIMUP);
        let order = spec.order.following(&status).of_one_text(managed);
        let past = Past::of(&status, other, &image.spec);
        let digest = status.digest.filter(|digest| spec.pins && !other && policy::Digest::parse(digest).is_ok());
        let trouble = spec.gate.is_some() || spec.error.is_some();
        let owner = image.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
        let tag = status.tag.filter(|tag| !other && policy::is_legal_tag(tag));
        let name = image.metadata.name.as_deref();
        let texts = [name, repository.as_ref().map(Repository::as_str), tag.as_deref(), digest.as_deref()];
        Self {
            texts: Texts::new(texts.map(Option::unwrap_or_default)),
            for_carriers: annotations.and_then(|a| a.get(POLICY_FROM)).is_some_and(|from| from == POLICY_OF_PODS),
            managed,
            owner: owner.map(|owner| Box::new((owner.kind.clone(), owner.name.clone()))),
            uid: Uid::read(image.metadata.uid.as_deref().unwrap_or_default()),
            created: image.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |t| t.0.as_second()),
            order,
            trouble: trouble.then(|| Box::new(Trouble { gate: spec.gate, error: spec.error })),
            group: spec.group,
            past,
        }
    }

    /// Name of the Image.
    pub fn name(&self) -> &str {
        self.texts.get(0).unwrap_or_default()
    }

    /// The normalised `spec.image`; none if it is no repository, so that the Image covers nothing.
    pub fn repository(&self) -> Option<&str> {
        self.texts.get(1)
    }

    /// The settled tag. None also if the status speaks of another repository, or holds no legal tag.
    pub fn tag(&self) -> Option<&str> {
        self.texts.get(2)
    }

    /// The digest of the settled tag, if Pods are pinned to it.
    pub fn digest(&self) -> Option<&str> {
        self.texts.get(3)
    }

    /// What may delay its first tag.
    pub fn gate(&self) -> Option<&'static str> {
        self.trouble.as_ref()?.gate
    }

    /// Why the spec cannot be used, with the field to fix.
    pub fn error(&self) -> Option<&str> {
        self.trouble.as_ref()?.error.as_deref()
    }

    /// What the first Pods of a revision got, unless its group has rejected that since: `uid` is their controller's, `hash` their `pod-template-hash` or
    /// `controller-revision-hash`, empty for controllers without one.
    pub fn record(&self, uid: &str, hash: &str, container: &str) -> Option<Stamp> {
        self.past.as_ref()?.record(uid, hash, container)
    }

    /// Where a container of one of these workloads (kind and name) is held whose template carries no stamp that counts,
    /// and what holds it. `own` is the tag of its text.
    pub fn held(
        &self,
        owners: &[(&'static str, String)],
        container: &str,
        own: Option<&str>,
    ) -> Option<(Tagged, HeldBy)> {
        self.past.as_ref()?.held(&self.order, owners, container, own)
    }

    fn has_rejected(&self) -> bool {
        self.past.as_ref().is_some_and(|past| !past.rejected.is_empty())
    }

    fn group(&self) -> (u64, Option<&str>) {
        (self.group, self.repository())
    }

    /// What its group has rejected, if this is the Image that was `before`, as far as that goes.
    fn of_group(&self, before: &Self) -> Option<Arc<BTreeSet<String>>> {
        let (past, known) = (self.past.as_ref()?, before.past.as_ref()?);
        (self.group() == before.group() && past.rejected == known.rejected).then(|| Arc::clone(&known.of_group))
    }

    fn is_owned_by(&self, kind: &str, name: &str) -> bool {
        self.owner.as_ref().is_some_and(|owner| (owner.0.as_str(), owner.1.as_str()) == (kind, name))
    }

    /// Whether there are records of this controller's revisions.
    pub(super) fn knows(&self, uid: &str) -> bool {
        self.past.as_ref().is_some_and(|past| past.knows(uid))
    }

    /// The UIDs of the controllers with revisions on record.
    fn controllers(&self) -> impl Iterator<Item = &str> {
        self.past.iter().flat_map(|past| past.controllers())
    }

    /// By which they are sorted: of two of the same age the first by name counts.
    pub(super) fn age(&self) -> (i64, &str) {
        (self.created, self.name())
    }
}

impl Namespace {
    fn new(name: &str) -> Self {
        Self { name: name.into(), ..Self::default() }
    }

    /// Its Images are these from now on.
    fn replace(&mut self, entries: Vec<Arc<Entry>>) {
        (self.images, self.by_repository) = Default::default();
        (self.managed, self.rejecting) = (None, 0);
        let knows = |entry: &&Arc<Entry>| entry.past.as_ref().is_some_and(|past| !past.of_group.is_empty());
        let remembering: Vec<_> = entries.iter().filter(knows).cloned().collect();
        for entry in entries {
            self.place(entry);
        }
        let mut shared = HashSet::new();
        for entry in &remembering {
            if shared.insert(entry.group()) {
                self.share_rejected(entry);
            }
        }
    }

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

    /// The user's Image that counts for a repository.
    pub fn image(&self, repository: &Repository) -> Option<&Arc<Entry>> {
        self.by_repository.first(repository.as_str())
    }

    /// Whether sync made any Image here: else nobody needs to look for one.
    pub fn has_managed(&self) -> bool {
        self.managed.is_some()
    }

    /// Whether sync made an Image for one of these workloads (kind and name), whatever the container.
    pub fn has_managed_for(&self, owners: &[(&str, String)]) -> bool {
        let is_there = |managed: &Managed| {
            owners.iter().any(|(kind, name)| managed.by_owner.first(&owner_key(kind, name)).is_some())
        };
        self.managed.as_deref().is_some_and(is_there)
    }

    /// The managed Images with records ([`Entry::record`]) of this controller's revisions, the oldest first.
    pub fn on_record(&self, uid: &str) -> impl Iterator<Item = &Arc<Entry>> {
        self.managed.iter().flat_map(|managed| managed.by_record.all(uid))
    }

    fn put(&mut self, entry: Arc<Entry>) {
        let before = self.images.get(entry.name()).cloned();
        if let Some(all) = before.as_ref().and_then(|before| entry.of_group(before)) {
            let mut entry = entry;
            if let Some(past) = &mut Arc::make_mut(&mut entry).past {
                past.of_group = all;
            }
            return self.place(entry);
        }
        self.place(Arc::clone(&entry));
        // It may be of another group now.
        for entry in [before, Some(entry)].into_iter().flatten() {
            if entry.has_rejected() || self.rejecting > 0 {
                self.share_rejected(&entry);
            }
        }
    }

    fn remove(&mut self, name: &str) {
        if let Some(entry) = self.take(name).filter(|entry| entry.has_rejected()) {
            self.share_rejected(&entry);
        }
    }

    /// Has all Images of a group know what any of them has rejected: so nobody has to look for that later. Cost: all Images.
    fn share_rejected(&mut self, of: &Entry) {
        let same = |entry: &&Arc<Entry>| entry.group() == of.group();
        let group = || self.images.iter().filter(same);
        let rejected = group().filter_map(|entry| Some(&entry.past.as_ref()?.rejected));
        let all: BTreeSet<String> = rejected.flatten().cloned().collect();
        let differs = |entry: &&Arc<Entry>| entry.past.as_ref().is_some_and(|past| *past.of_group != all);
        let stale: Vec<Arc<Entry>> = group().filter(differs).cloned().collect();
        let all = Arc::new(all);
        for entry in stale {
            let mut entry = Entry::clone(&entry);
            if let Some(past) = &mut entry.past {
                past.of_group = Arc::clone(&all);
            }
            self.place(Arc::new(entry));
        }
    }

    fn place(&mut self, entry: Arc<Entry>) {
        self.take(entry.name());
        self.rejecting += usize::from(entry.has_rejected());
        if entry.managed {
            self.managed.get_or_insert_default().put(&entry);
        } else if let Some(repository) = entry.repository() {
            self.by_repository.put(repository, &entry);
        }
        self.images.insert(Arc::clone(&entry).name(), entry);
    }

    fn take(&mut self, name: &str) -> Option<Arc<Entry>> {
        let entry = self.images.remove(name)?;
        self.rejecting -= usize::from(entry.has_rejected());
        if !entry.managed {
            entry.repository().into_iter().for_each(|repository| self.by_repository.remove(repository, name));
        } else if let Some(managed) = &mut self.managed {
            managed.remove(&entry);
            self.managed.take_if(|managed| managed.count == 0);
        }
        Some(entry)
    }

    fn is_empty(&self) -> bool {
        self.settings.is_none() && self.images.len() == 0
    }
}

impl Managed {
    fn put(&mut self, entry: &Arc<Entry>) {
        self.count += 1;
        entry.owner.iter().for_each(|owner| self.by_owner.put(&owner_key(&owner.0, &owner.1), entry));
        entry.controllers().for_each(|uid| self.by_record.put(uid, entry));
    }

    fn remove(&mut self, entry: &Entry) {
        self.count -= 1;
        let name = entry.name();
        entry.owner.iter().for_each(|owner| self.by_owner.remove(&owner_key(&owner.0, &owner.1), name));
        entry.controllers().for_each(|uid| self.by_record.remove(uid, name));
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
    pub fn of(specs: &mut Specs, listed: Listed, now: Timestamp) -> (String, String, Self) {
        let names = |metadata: &ObjectMeta| {
            (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
        };
        match listed.into_image() {
            Ok(image) => {
                let (namespace, name) = names(&image.metadata);
                (namespace, name, Self::Read(Arc::new(Entry::read_with(specs, &image, now))))
            }
            Err(invalid) => {
                let (metadata, error) = *invalid;
                let (namespace, name) = names(&metadata);
                (namespace, name, Self::Broken { uid: metadata.uid.unwrap_or_default(), error })
            }
        }
    }
}

/// A list of Images on its way, page by page.
#[derive(Debug, Default)]
pub struct ImageList {
    /// By namespace.
    read: HashMap<String, Vec<Arc<Entry>>>,
    /// UIDs by namespace and name.
    broken: HashMap<(String, String), String>,
}

impl ImageList {
    /// Takes in the next one.
    pub fn push(&mut self, namespace: String, name: String, seen: Seen) {
        match seen {
            Seen::Read(entry) => self.read.entry(namespace).or_default().push(entry),
            Seen::Broken { uid, .. } => {
                self.broken.insert((namespace, name), uid);
            }
        }
    }

    /// Whether an Image (namespace and name) is among those that cannot be read.
    pub fn is_broken(&self, key: &(String, String)) -> bool {
        self.broken.contains_key(key)
    }
}

impl Snapshot {
    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name).map(AsRef::as_ref)
    }

    #[cfg(test)]
    pub(super) fn image(&self, namespace: &str, repository: &Repository) -> Option<&Arc<Entry>> {
        self.namespace(namespace)?.image(repository)
    }

    /// How many Images are known, duplicates included.
    pub fn images(&self) -> usize {
        self.images
    }

    /// The namespaces opted in by an annotation alone: the webhook configuration must name them. Another pointer than
    /// before only if the list is another one.
    pub fn annotated(&self) -> &Arc<BTreeSet<String>> {
        &self.annotated
    }

    /// Takes in a Namespace. Returns the errors that were not known before.
    pub fn put_namespace(&mut self, name: &str, labels: &Map, annotations: &Map) -> Vec<AnnotationError> {
        let (settings, errors) = NamespaceSettings::read(labels, annotations);
        let known = self.namespace(name).map(|known| known.errors.as_slice()).unwrap_or_default();
        let fresh = errors.iter().filter(|e| !known.contains(e)).cloned().collect();
        self.edit(name, |namespace| {
            namespace.settings = Some(settings);
            namespace.errors = errors;
        });
        fresh
    }

    /// Forgets a Namespace. Its Images stay until their own watch says that they are gone.
    pub fn remove_namespace(&mut self, name: &str) {
        if self.namespace(name).is_some() {
            self.edit(name, |namespace| {
                namespace.settings = None;
                namespace.errors.clear();
            });
        }
    }

    /// Forgets every Namespace that is not among `names`.
    pub fn retain_namespaces(&mut self, names: &HashSet<String>) {
        let known = self.namespaces.iter().map(|namespace| &namespace.name);
        let gone: Vec<Box<str>> = known.filter(|name| !names.contains(&***name)).cloned().collect();
        for name in gone {
            self.remove_namespace(&name);
        }
    }

    /// Takes in an Image. One that cannot be read leaves its last good state where it is.
    pub fn put_image(&mut self, namespace: &str, name: &str, seen: Seen) {
        match seen {
            Seen::Read(entry) => self.edit(namespace, |namespace| namespace.put(entry)),
            // Another object of that name: the state known is of one that is gone.
            Seen::Broken { uid, .. } if self.known(namespace, name, &uid).is_none() => {
                self.remove_image(namespace, name);
            }
            Seen::Broken { .. } => {}
        }
    }

    /// Forgets an Image.
    pub fn remove_image(&mut self, namespace: &str, name: &str) {
        if self.namespace(namespace).is_some() {
            self.edit(namespace, |namespace| namespace.remove(name));
        }
    }

    /// Replaces the Images of `scope` (a namespace; none: all) by a complete new list.
    pub fn replace_images(&mut self, scope: Option<&str>, list: ImageList) {
        let ImageList { mut read, broken } = list;
        for ((namespace, name), uid) in broken {
            if let Some(entry) = self.known(&namespace, &name, &uid).cloned() {
                read.entry(namespace).or_default().push(entry);
            }
        }
        let mut names: BTreeSet<String> = match scope {
            Some(one) => [one.to_owned()].into(),
            None => self.namespaces.iter().map(|namespace| (*namespace.name).to_owned()).collect(),
        };
        names.extend(read.keys().cloned());
        for name in names {
            let entries = read.remove(&name).unwrap_or_default();
            self.edit(&name, |namespace| namespace.replace(entries));
        }
    }

    /// The last good state of an Image, if it is of this object.
    fn known(&self, namespace: &str, name: &str, uid: &str) -> Option<&Arc<Entry>> {
        self.namespace(namespace)?.images.get(name).filter(|entry| entry.uid == Uid::read(uid))
    }

    /// Changes a namespace, which is there if it is not empty afterwards, and what is counted over all of them.
    fn edit(&mut self, name: &str, change: impl FnOnce(&mut Namespace)) {
        let mut namespace = self.namespaces.remove(name).unwrap_or_else(|| Arc::new(Namespace::new(name)));
        let edited = Arc::make_mut(&mut namespace);
        self.images -= edited.images.len();
        change(edited);
        self.images += edited.images.len();
        let annotated = edited.settings.is_some_and(|settings| settings.enabled_by_annotation);
        if annotated != self.annotated.contains(name) {
            let all = Arc::make_mut(&mut self.annotated);
            if annotated {
                all.insert(name.to_owned())
            } else {
                all.remove(name)
            };
        }
        if !edited.is_empty() {
            self.namespaces.insert(name, namespace);
        }
    }
}

#[cfg(test)]
mod tests;
