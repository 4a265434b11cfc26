//! The annotated objects, as the watches delivered them.

use std::sync::Arc;

use crate::api::Image;
use crate::rollout::PullAccess;

use super::{Cached, ImageKey, Namespace, World, managed};
use crate::sync::source::{JobSeen, Source, SourceKey, SourceKind};

impl Namespace {
    /// Takes in what an object asks for (none: it is gone, or asks for nothing); returns whether that changed.
    pub(super) fn put_source(&mut self, key: &SourceKey, source: Option<Source>) -> bool {
        match source {
            Some(source) if self.sources.get(key).is_some_and(|known| **known == source) => false,
            Some(source) => {
                self.sources.insert(key.clone(), Arc::new(source));
                true
            }
            None => self.sources.remove(key).is_some(),
        }
    }

    /// Names of the known objects of a kind.
    pub(super) fn source_names(&self, kind: SourceKind) -> impl Iterator<Item = &String> {
        self.sources.keys().filter(move |key| key.kind == kind).map(|key| &key.name)
    }
}

impl World {
    /// Takes in a `CronJob` or a Pod; `None` if it asks for nothing or is gone. Returns whether that is new.
    pub fn put_source(&self, key: &SourceKey, source: Option<Source>) -> bool {
        let mut changed = false;
        if source.is_some() {
            self.lock().entry(key.namespace.clone()).or_default();
        }
        self.edit(&key.namespace, |namespace| changed = namespace.put_source(key, source));
        if changed {
            self.changed.send_modify(|version| *version += 1);
        }
        changed
    }

    /// Takes in a Job; returns whether what its own annotations ask for is new.
    pub fn put_job(&self, key: &SourceKey, job: JobSeen) -> bool {
        let (source, made_by) = match job {
            JobSeen::Own(source) => (Some(*source), None),
            JobSeen::Of { uid, cron_job } => (None, Some((uid, cron_job))),
        };
        {
            let mut namespaces = self.lock();
            let jobs = &mut namespaces.entry(key.namespace.clone()).or_default().jobs;
            match made_by {
                Some(made_by) => _ = jobs.insert(key.name.clone(), made_by),
                None => _ = jobs.remove(&key.name),
            }
        }
        let changed = self.put_source(key, source);
        self.changed.send_modify(|version| *version += 1);
        changed
    }

    /// Forgets a Job.
    pub fn remove_job(&self, key: &SourceKey) {
        self.edit(&key.namespace, |namespace| {
            namespace.jobs.remove(&key.name);
            namespace.put_source(key, None);
        });
    }

    /// An object whose annotations count; one without annotations of ours asks for nothing.
    pub fn source(&self, key: &SourceKey) -> Option<Arc<Source>> {
        let namespaces = self.lock();
        let namespace = namespaces.get(&key.namespace)?;
        if let Some(source) = namespace.sources.get(key) {
            return Some(source.clone());
        }
        let workload = namespace.workloads.get(&key.workload()?)?.clone();
        drop(namespaces);
        Some(Arc::new(Source::of_workload(&workload)))
    }

    /// Whether an object is known to have annotations of ours.
    pub fn is_annotated(&self, key: &SourceKey) -> bool {
        self.lock().get(&key.namespace).is_some_and(|known| known.sources.contains_key(key))
    }

    /// Every object that asks for something, and everyone for whom an Image was made.
    pub fn source_keys(&self) -> Vec<SourceKey> {
        let mut keys = Vec::new();
        for (name, namespace) in &*self.lock() {
            keys.extend(namespace.sources.keys().filter(|key| key.kind != SourceKind::Pod).cloned());
            keys.extend(namespace.source_names(SourceKind::Pod).next().map(|_| SourceKey::pods(name)));
            keys.extend(namespace.images.values().filter_map(|image| managed::source_of(name, image.metadata())));
        }
        keys.sort_unstable();
        keys.dedup();
        keys
    }

    /// The Pods of a namespace that have a policy and no controller that kimup knows.
    pub fn bare_pods(&self, namespace: &str) -> Vec<Arc<Source>> {
        let namespaces = self.lock();
        let sources = namespaces.get(namespace).into_iter().flat_map(|known| &known.sources);
        sources.filter(|(key, _)| key.kind == SourceKind::Pod).map(|(_, source)| source.clone()).collect()
    }

    /// Where the Pods of an Image that kimup made have their credentials from. None for one of a person, and for one that
    /// was made for an earlier object of its owner's name: those of another are not used.
    pub fn access_of(&self, image: &Image) -> Option<PullAccess> {
        let namespace = image.metadata.namespace.as_deref().unwrap_or_default();
        let key = managed::source_of(namespace, &image.metadata)?;
        if key.kind != SourceKind::Pod {
            let source = self.source(&key).filter(|source| managed::is_made_for(image, source))?;
            return Some(source.access.clone());
        }
        let name = image.metadata.name.as_deref().unwrap_or_default();
        let pods = self.bare_pods(namespace);
        let mut users = pods.iter().filter(|pod| pod.wish.images.values().any(|(wanted, _)| wanted == name));
        users.next().map(|pod| pod.access.clone())
    }

    /// The `CronJob` that made a Job, by the Job's UID.
    pub fn cron_job_of(&self, namespace: &str, job: &str, uid: &str) -> Option<String> {
        let namespaces = self.lock();
        let (of, cron_job) = namespaces.get(namespace)?.jobs.get(job)?;
        (of == uid).then(|| cron_job.clone())
    }

    /// The Images that kimup made for an object, or for the Pods of a namespace.
    pub fn made_for(&self, key: &SourceKey) -> Vec<(ImageKey, Arc<Image>)> {
        let namespaces = self.lock();
        let images = namespaces.get(&key.namespace).into_iter().flat_map(|known| &known.images);
        let of = |(name, cached): (&String, &Cached)| {
            let Cached::Read(image) = cached else {
                return None;
            };
            let same = managed::source_of(&key.namespace, &image.metadata)? == *key;
            same.then(|| (ImageKey { namespace: key.namespace.clone(), name: name.clone() }, image.clone()))
        };
        images.filter_map(of).collect()
    }
}
