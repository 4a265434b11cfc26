//! Images of a namespace that have something in common, found by it with one look-up. Copies share what did not change.

use std::marker::PhantomData;
use std::sync::Arc;

use super::snapshot::Entry;
use super::trie::{Keyed, Trie};

/// What Images have in common, as a text.
pub(super) trait Common: Clone {
    /// Whether an Image has it.
    fn has(entry: &Entry, key: &str) -> bool;
}

/// The normalised repository.
#[derive(Clone, Debug, Default)]
pub(super) struct ByRepository;

/// The controller, as [`owner_key`] writes it.
#[derive(Clone, Debug, Default)]
pub(super) struct ByOwner;

/// The UID of a controller whose revisions are on record.
#[derive(Clone, Debug, Default)]
pub(super) struct ByRecord;

impl Common for ByRepository {
    fn has(entry: &Entry, key: &str) -> bool {
        entry.repository() == Some(key)
    }
}

impl Common for ByOwner {
    fn has(entry: &Entry, key: &str) -> bool {
        // Not split at the slash: nobody checks the kind that somebody writes into an ownerReference.
        let name_in = |kind: &str| key.strip_prefix(kind)?.strip_prefix('/');
        entry.owner.as_ref().is_some_and(|owner| name_in(&owner.0) == Some(&owner.1))
    }
}

impl Common for ByRecord {
    fn has(entry: &Entry, key: &str) -> bool {
        entry.knows(key)
    }
}

/// The key of a workload among owners.
pub(super) fn owner_key(kind: &str, name: &str) -> String {
    format!("{kind}/{name}")
}

/// Images by what they have in common.
#[derive(Clone, Debug, Default)]
pub(super) struct Groups<C>(Trie<Group<C>>);

/// Images that have the same in common.
#[derive(Clone, Debug)]
struct Group<C> {
    /// The oldest.
    first: Arc<Entry>,
    /// The others by age. Mostly none, and then nothing is spent on them.
    #[allow(clippy::box_collection)] // a pointer less than a Vec in every Image's place
    others: Option<Box<Vec<Arc<Entry>>>>,
    by: PhantomData<C>,
}

impl<C: Common> Keyed for Group<C> {
    type Key = str;

    fn has_key(&self, key: &str) -> bool {
        C::has(&self.first, key)
    }
}

impl<C: Common> Groups<C> {
    /// The oldest of a group.
    pub fn first(&self, key: &str) -> Option<&Arc<Entry>> {
        self.0.get(key).map(|group| &group.first)
    }

    /// A group, the oldest first.
    pub fn all(&self, key: &str) -> impl Iterator<Item = &Arc<Entry>> {
        let group = self.0.get(key).into_iter();
        group.flat_map(|group| [&group.first].into_iter().chain(group.others.iter().flat_map(|others| others.iter())))
    }

    /// Takes in an Image that has this in common with others, and is none of them.
    pub fn put(&mut self, key: &str, entry: &Arc<Entry>) {
        let mut all = self.take_all(key);
        all.push(Arc::clone(entry));
        self.put_all(key, all);
    }

    /// Leaves an Image out.
    pub fn remove(&mut self, key: &str, name: &str) {
        let mut all = self.take_all(key);
        all.retain(|entry| entry.name() != name);
        self.put_all(key, all);
    }

    fn take_all(&mut self, key: &str) -> Vec<Arc<Entry>> {
        let Some(group) = self.0.remove(key) else {
            return Vec::new();
        };
        let others = group.others.map(|others| *others).unwrap_or_default();
        [group.first].into_iter().chain(others).collect()
    }

    fn put_all(&mut self, key: &str, mut all: Vec<Arc<Entry>>) {
        all.sort_by(|a, b| a.age().cmp(&b.age()));
        let mut all = all.into_iter();
        if let Some(first) = all.next() {
            let others: Vec<_> = all.collect();
            let others = Some(others).filter(|others| !others.is_empty()).map(Box::new);
            self.0.insert(key, Group { first, others, by: PhantomData });
        }
    }
}
