//! Which Image counts for a container, and the containers for which an Image counts: the one place that knows.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use kube::ResourceExt;

use crate::api::annotations::{ACTION, NamespaceSettings, RETRY};
use crate::api::{Group, Image, Rejected};
use crate::policy::{Reference, Repository};
use crate::rollout::{Container, Workload, WorkloadKey};

use super::{Cached, Namespace, World, age, managed};
use crate::sync::source::{Source, SourceKey};

/// A workload, and those of its containers for which an Image counts.
pub struct User {
    /// The workload.
    pub workload: Arc<Workload>,
    /// Names of the containers.
    pub containers: Vec<String>,
}

/// What is needed to look up the Images of one namespace.
struct Lookup<'a> {
    namespace: &'a Namespace,
    settings: NamespaceSettings,
    by_repository: HashMap<Repository, Arc<Image>>,
}

impl World {
    /// The Images of a namespace that people made, by repository: of several for one repository, the oldest.
    pub fn images_by_repository(&self, namespace: &str) -> HashMap<Repository, Arc<Image>> {
        self.lock().get(namespace).map(Namespace::by_repository).unwrap_or_default()
    }

    /// The Image that counts for each container of a workload: the one that kimup made for it, else one of a person by
    /// repository. Containers that are not opted in, or pinned by digest, have none, and so has a workload that cannot be
    /// rolled.
    pub fn images_of(&self, workload: &Workload) -> BTreeMap<String, Arc<Image>> {
        if workload.unrollable.is_some() { BTreeMap::new() } else { self.images_covering(workload) }
    }

    /// The same, whether or not the workload can be rolled.
    pub fn images_covering(&self, workload: &Workload) -> BTreeMap<String, Arc<Image>> {
        let namespaces = self.lock();
        let Some(namespace) = namespaces.get(&workload.key.namespace) else {
            return BTreeMap::new();
        };
        Lookup::new(namespace).images_of(workload)
    }

    /// The workloads for which an Image counts and that can be rolled.
    pub fn users_of(&self, image: &Image) -> Vec<User> {
        let mut users = self.covered_by(image);
        users.retain(|user| user.workload.unrollable.is_none());
        users
    }

    /// The workloads for which an Image counts.
    pub fn covered_by(&self, image: &Image) -> Vec<User> {
        let (name, of) = (image.name_any(), image.namespace().unwrap_or_default());
        let (namespaces, Ok(repository)) = (self.lock(), Repository::parse(&image.spec.image)) else {
            return Vec::new();
        };
        let Some(namespace) = namespaces.get(&of) else {
            return Vec::new();
        };
        let lookup = Lookup::new(namespace);
        let mut users = Vec::new();
        let candidates: Vec<&Arc<Workload>> = match managed::source_of(&of, &image.metadata) {
            Some(owner) => owner.workload().and_then(|key| namespace.workloads.get(&key)).into_iter().collect(),
            None => namespace.workloads.values().collect(),
        };
        for workload in candidates {
            if !workload.containers.iter().any(|c| reference(c).is_some_and(|r| *r.repository() == repository)) {
                continue; // most of them: the look-up costs more
            }
            let mut covered = lookup.images_of(workload);
            covered.retain(|_, counts| counts.name_any() == name);
            if !covered.is_empty() {
                let containers = covered.into_keys().collect();
                users.push(User { workload: workload.clone(), containers });
            }
        }
        users
    }

    /// How many workloads of an Image's group may roll at a time: the least that an Image of it allows. To a group belong
    /// the Images of a namespace with the same repository, rules and filter.
    pub fn max_concurrent(&self, image: &Image) -> usize {
        let most = |image: &Image| image.spec.rollout.as_ref().and_then(|r| r.max_concurrent).unwrap_or(1).max(1);
        let namespaces = self.lock();
        let known = namespaces.get(image.metadata.namespace.as_deref().unwrap_or_default());
        let mut least = most(image);
        for cached in known.into_iter().flat_map(|known| known.images.values()) {
            if let Cached::Read(other) = cached
                && most(other) < least
                && same_group(image, other)
            {
                least = most(other);
            }
        }
        least as usize
    }

    /// The Images of an Image's group, itself among them. Cost: a look at every Image of the namespace.
    pub fn group_of(&self, image: &Image) -> Vec<Arc<Image>> {
        let namespaces = self.lock();
        let known = namespaces.get(image.metadata.namespace.as_deref().unwrap_or_default());
        let group = known.into_iter().flat_map(|known| known.images.values()).filter_map(|cached| match cached {
            Cached::Read(other) => same_group(image, other).then(|| other.clone()),
            Cached::Broken(..) => None,
        });
        group.collect()
    }

    /// What was rejected in an Image's group, each tag once, oldest first. Cost: a look at every Image of the namespace.
    pub fn rejections(&self, image: &Image) -> Vec<Rejected> {
        let namespaces = self.lock();
        let known = namespaces.get(image.metadata.namespace.as_deref().unwrap_or_default());
        let others = known.into_iter().flat_map(|known| known.images.values()).filter_map(|cached| match cached {
            Cached::Read(other) if other.metadata.uid != image.metadata.uid => Some(&**other),
            _ => None,
        });
        let mut speakers = std::iter::once(image).chain(others).filter(|image| !recorded(image).is_empty()).peekable();
        if speakers.peek().is_none() {
            return Vec::new(); // most of them
        }
        let group = Membership::of(image);
        let (mut tags, mut all) = (HashSet::new(), Vec::new());
        for other in speakers.filter(|other| group.rejects(other)) {
            for (at, rejected) in recorded(other).iter().enumerate() {
                // Mostly they know the same, in the same order.
                let known = all.get(at).is_some_and(|known: &&Rejected| known.tag == rejected.tag);
                if !known && tags.insert(rejected.tag.as_str()) {
                    all.push(rejected);
                }
            }
        }
        let mut all: Vec<Rejected> = all.into_iter().cloned().collect();
        all.sort_by(|a, b| a.time.cmp(&b.time));
        all
    }

    /// The Images of an Image's group by which somebody wants rejected tags tried again (`action: retry`). Cost: a look at
    /// every Image of the namespace.
    pub fn retried(&self, image: &Image) -> Vec<Arc<Image>> {
        let namespaces = self.lock();
        let known = namespaces.get(image.metadata.namespace.as_deref().unwrap_or_default());
        let asks = |other: &Image| other.annotations().get(ACTION).is_some_and(|action| action == RETRY);
        let asking = known.into_iter().flat_map(|known| known.images.values()).filter_map(|cached| match cached {
            Cached::Read(other) if asks(other) && same_group(image, other) => Some(other.clone()),
            _ => None,
        });
        asking.collect()
    }
}

impl World {
    /// The Images whose rollout names a workload as the one that goes first.
    pub fn led_by(&self, key: &WorkloadKey) -> Vec<String> {
        let (namespaces, name) = (self.lock(), key.to_string());
        let images = namespaces.get(&key.namespace).into_iter().flat_map(|known| &known.images);
        let led = images.filter(|(_, cached)| match cached {
            Cached::Read(image) => {
                let first = image.status.as_ref().and_then(|status| status.rollout.as_ref()?.first.as_deref());
                first.is_some_and(|first| first.split(", ").any(|first| first == name))
            }
            Cached::Broken(..) => false,
        });
        led.map(|(name, _)| name.clone()).collect()
    }
}

/// What a status has on record as rejected, whether or not it still counts.
fn recorded(image: &Image) -> &[Rejected] {
    image.status.as_ref().map(|status| status.rejected.as_slice()).unwrap_or_default()
}

/// What an Image's group goes by, worked out once.
struct Membership<'a> {
    image: &'a Image,
    repository: Option<String>,
    id: String,
}

impl<'a> Membership<'a> {
    fn of(image: &'a Image) -> Self {
        let repository = Repository::parse(&image.spec.image).ok().map(|repository| repository.to_string());
        Self { image, repository, id: Group::of(&image.spec).id() }
    }

    /// Whether what an Image has on record was rejected in this group, and it is still in it: as [`super::status_of`] has it.
    fn rejects(&self, other: &Image) -> bool {
        let Some(status) = &other.status else {
            return false;
        };
        let here = |of: Option<&String>, now: Option<&String>| of.is_none() || now.is_none() || of == now;
        same_group(self.image, other)
            && here(status.repository.as_ref(), self.repository.as_ref())
            && here(status.group.as_ref(), Some(&self.id))
    }
}

/// Whether two Images of a namespace belong to one group: the rollouts of their workloads count together.
pub fn same_group(a: &Image, b: &Image) -> bool {
    let repository = |image: &Image| Repository::parse(&image.spec.image).ok();
    let same_repository = a.spec.image == b.spec.image || repository(a).is_some_and(|r| Some(r) == repository(b));
    same_repository && Group::of(&a.spec) == Group::of(&b.spec)
}

impl Namespace {
    fn by_repository(&self) -> HashMap<Repository, Arc<Image>> {
        let mut by_repository: HashMap<Repository, Arc<Image>> = HashMap::new();
        for cached in self.images.values() {
            let Cached::Read(image) = cached else {
                continue;
            };
            if managed::is_managed(&image.metadata) {
                continue;
            }
            let Ok(repository) = Repository::parse(&image.spec.image) else {
                continue;
            };
            match by_repository.get(&repository) {
                Some(known) if age(known) <= age(image) => {}
                _ => _ = by_repository.insert(repository, image.clone()),
            }
        }
        by_repository
    }
}

impl<'a> Lookup<'a> {
    fn new(namespace: &'a Namespace) -> Self {
        let settings = namespace.settings.unwrap_or_default();
        Self { namespace, settings, by_repository: namespace.by_repository() }
    }

    fn images_of(&self, workload: &Workload) -> BTreeMap<String, Arc<Image>> {
        let source = self.namespace.sources.get(&SourceKey::from(&workload.key));
        let found = workload.containers.iter().filter_map(|container| {
            let reference = reference(container)?;
            // A wrong value is said on the object, by who reads its annotations.
            if !workload.follows(&container.name, self.settings).unwrap_or(false) {
                return None;
            }
            let image = self.image_of(source.map(AsRef::as_ref), container, reference.repository())?;
            Some((container.name.clone(), image))
        });
        found.collect()
    }

    fn image_of(&self, source: Option<&Source>, container: &Container, of: &Repository) -> Option<Arc<Image>> {
        let users = || self.by_repository.get(of).cloned();
        let Some(source) = source else {
            return users();
        };
        if let Some((name, _)) = source.wish.images.get(&container.name) {
            // Its own or none: that of a person would count for the moment until its own is made.
            return self.made(source, name, of);
        }
        if source.wish.unclear.contains(&container.name) {
            return self.made(source, &source.image_name(&container.name), of).or_else(users);
        }
        users()
    }

    /// The Image that was made for an object, if it is about this repository already.
    fn made(&self, source: &Source, name: &str, of: &Repository) -> Option<Arc<Image>> {
        let Some(Cached::Read(image)) = self.namespace.images.get(name) else {
            return None;
        };
        let counts =
            managed::is_made_for(image, source) && Repository::parse(&image.spec.image).is_ok_and(|r| r == *of);
        counts.then(|| image.clone())
    }
}

/// What a container follows by: none if it is pinned by digest.
fn reference(container: &Container) -> Option<Reference> {
    Reference::parse(&container.text).ok().filter(|reference| reference.digest().is_none())
}
