//! What Pods tell of their revisions, until it is on record.

use std::sync::Arc;

use super::{Cached, Namespace, World};
use crate::sync::records::{self, PodRecord};

/// Most Pods of a namespace that are gone and of which something is still to be written; of more, the oldest are forgotten.
const MAX_UNWRITTEN: usize = 200;

impl World {
    /// Takes in what a Pod tells of its revision.
    pub fn put_pod(&self, namespace: &str, name: &str, record: PodRecord) -> bool {
        let mut namespaces = self.lock();
        let pods = &mut namespaces.entry(namespace.to_owned()).or_default().pods;
        let known = pods.get(name).is_some_and(|known| **known == record);
        if !known {
            pods.insert(name.to_owned(), Arc::new(record));
        }
        !known
    }

    /// Forgets a Pod. What it tells of its revision stays until its Images have it on record: a status may be written a
    /// moment later than the Pod is replaced, and nothing else tells afterwards what the revision ran.
    pub fn remove_pod(&self, namespace: &str, name: &str) {
        self.edit(namespace, |namespace| {
            if let Some(record) = namespace.pods.remove(name).filter(|record| namespace.is_unwritten(record)) {
                if namespace.unwritten.len() >= MAX_UNWRITTEN {
                    namespace.unwritten.remove(0);
                }
                namespace.unwritten.push(record);
            }
        });
        self.remove_unmutated(namespace, name);
    }

    /// What the Pods of a namespace tell, those that are gone and not on record yet among them.
    pub fn pods(&self, namespace: &str) -> Vec<Arc<PodRecord>> {
        let namespaces = self.lock();
        let known = namespaces.get(namespace).into_iter();
        known.flat_map(|known| known.unwritten.iter().chain(known.pods.values())).cloned().collect()
    }
}

impl Namespace {
    /// Whether an Image that is there lacks what a Pod tells.
    fn is_unwritten(&self, record: &PodRecord) -> bool {
        record.containers.iter().any(|(image, container, _)| match self.images.get(image) {
            Some(Cached::Read(image)) => {
                let status = image.status.as_ref();
                !status.is_some_and(|status| records::is_on_record(&status.revisions, record, container))
            }
            Some(Cached::Broken(..)) | None => false,
        })
    }

    /// Forgets of Pods that are gone what the Images have on record by now, and what was told of Images that are gone.
    pub(super) fn drop_written(&mut self) {
        if !self.unwritten.is_empty() {
            let mut unwritten = std::mem::take(&mut self.unwritten);
            unwritten.retain(|record| self.is_unwritten(record));
            self.unwritten = unwritten;
        }
    }
}
