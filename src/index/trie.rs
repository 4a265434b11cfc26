//! A hash set whose copies share what did not change (a hash array mapped trie): a copy costs nothing, a change copies
//! the one path that leads to it. So a snapshot can be published for every change, however many Images there are.

use std::hash::{BuildHasher, Hash, RandomState};
use std::sync::Arc;

/// Most values of a leaf; beyond that it becomes a branch.
const LEAF: usize = 32;
/// Bits of the hash that a branch consumes.
const BITS: u32 = 2;
const CHILDREN: usize = 1 << BITS;

/// What is found by a part of itself.
pub(super) trait Keyed: Clone {
    type Key: Hash + ?Sized;

    /// Whether this is its key; equal keys have equal hashes.
    fn has_key(&self, key: &Self::Key) -> bool;
}

/// The set. Not ordered.
#[derive(Clone, Debug)]
pub(super) struct Trie<T> {
    root: Arc<Node<T>>,
    len: usize,
    hasher: RandomState,
}

#[derive(Clone, Debug)]
enum Node<T> {
    /// Values with their hashes, which tell most of them apart without a look at the value.
    Leaf(Vec<(u64, T)>),
    Branch([Arc<Node<T>>; CHILDREN]),
}

impl<T> Default for Trie<T> {
    fn default() -> Self {
        Self { root: Arc::default(), len: 0, hasher: RandomState::new() }
    }
}

impl<T> Default for Node<T> {
    fn default() -> Self {
        Self::Leaf(Vec::new())
    }
}

impl<T> Trie<T> {
    pub fn len(&self) -> usize {
        self.len
    }

    /// All values.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        let mut waiting: Vec<&Node<T>> = vec![&self.root];
        std::iter::from_fn(move || {
            loop {
                match waiting.pop()? {
                    Node::Leaf(values) => return Some(values),
                    Node::Branch(children) => waiting.extend(children.iter().map(|child| &**child)),
                }
            }
        })
        .flatten()
        .map(|(_, value)| {
            #[cfg(test)]
            looked::one_more();
            value
        })
    }
}

/// How many values were looked at by this thread.
#[cfg(test)]
pub(super) mod looked {
    thread_local!(static VALUES: std::cell::Cell<usize> = const { std::cell::Cell::new(0) });

    pub fn one_more() {
        VALUES.set(VALUES.get() + 1);
    }

    pub fn at() -> usize {
        VALUES.get()
    }
}

impl<T: Keyed> Trie<T> {
    pub fn get(&self, key: &T::Key) -> Option<&T> {
        if self.len == 0 {
            return None;
        }
        let hash = self.hasher.hash_one(key);
        let (mut node, mut bits) = (&*self.root, hash);
        loop {
            match node {
                Node::Leaf(values) => return position(values, hash, key).map(|at| &values[at].1),
                Node::Branch(children) => node = &children[slot(bits)],
            }
            bits >>= BITS;
        }
    }

    /// Puts a value in that has this key, in place of the one that has it, which is returned.
    pub fn insert(&mut self, key: &T::Key, value: T) -> Option<T> {
        let hash = self.hasher.hash_one(key);
        let before = Node::insert(&mut self.root, 0, hash, key, value);
        self.len += usize::from(before.is_none());
        before
    }

    pub fn remove(&mut self, key: &T::Key) -> Option<T> {
        self.get(key)?; // nothing is copied in vain
        let hash = self.hasher.hash_one(key);
        let removed = Node::remove(&mut self.root, hash, hash, key);
        self.len -= usize::from(removed.is_some());
        if self.len == 0 {
            self.root = Arc::default();
        }
        removed
    }
}

impl<T: Keyed> Node<T> {
    fn insert(this: &mut Arc<Self>, depth: u32, hash: u64, key: &T::Key, value: T) -> Option<T> {
        let node = Arc::make_mut(this);
        match node {
            Self::Branch(children) => {
                return Self::insert(&mut children[slot(hash >> (depth * BITS))], depth + 1, hash, key, value);
            }
            Self::Leaf(values) => {
                if let Some(at) = position(values, hash, key) {
                    return Some(std::mem::replace(&mut values[at].1, value));
                }
                // Doubling would leave half of the memory unused.
                values.reserve_exact(if values.len() < 4 { 1 } else { 4 });
                values.push((hash, value));
                if values.len() > LEAF && depth * BITS < u64::BITS {
                    *node = Self::split(std::mem::take(values), depth);
                }
            }
        }
        None
    }

    fn split(values: Vec<(u64, T)>, depth: u32) -> Self {
        let mut children: [Vec<(u64, T)>; CHILDREN] = Default::default();
        for (hash, value) in values {
            children[slot(hash >> (depth * BITS))].push((hash, value));
        }
        Self::Branch(children.map(|mut values| {
            values.shrink_to_fit();
            Arc::new(Self::Leaf(values))
        }))
    }

    fn remove(this: &mut Arc<Self>, bits: u64, hash: u64, key: &T::Key) -> Option<T> {
        match Arc::make_mut(this) {
            Self::Branch(children) => Self::remove(&mut children[slot(bits)], bits >> BITS, hash, key),
            Self::Leaf(values) => position(values, hash, key).map(|at| values.swap_remove(at).1),
        }
    }
}

fn position<T: Keyed>(values: &[(u64, T)], hash: u64, key: &T::Key) -> Option<usize> {
    values.iter().position(|(of, value)| {
        *of == hash && {
            #[cfg(test)]
            looked::one_more();
            value.has_key(key)
        }
    })
}

#[allow(clippy::cast_possible_truncation)] // of two bits
fn slot(bits: u64) -> usize {
    bits as usize % CHILDREN
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Pair(u16, u32);

    impl Keyed for Pair {
        type Key = u16;

        fn has_key(&self, key: &u16) -> bool {
            self.0 == *key
        }
    }

    fn contents(trie: &Trie<Pair>) -> BTreeMap<u16, u32> {
        trie.iter().map(|pair| (pair.0, pair.1)).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn it_is_a_map_and_its_copies_do_not_change(
            steps in prop::collection::vec((0..600_u16, any::<u32>(), 0..4_u8), 0..3_000)
        ) {
            let (mut trie, mut model) = (Trie::default(), BTreeMap::new());
            let mut copies = Vec::new();
            for (at, (key, value, what)) in steps.into_iter().enumerate() {
                if what == 0 {
                    prop_assert_eq!(trie.remove(&key).map(|pair: Pair| pair.1), model.remove(&key));
                } else {
                    prop_assert_eq!(trie.insert(&key, Pair(key, value)).map(|pair| pair.1), model.insert(key, value));
                }
                prop_assert_eq!(trie.len(), model.len());
                prop_assert_eq!(trie.get(&key).map(|pair| pair.1), model.get(&key).copied());
                if at % 500 == 0 {
                    copies.push((trie.clone(), model.clone()));
                }
            }
            copies.push((trie, model));
            for (copy, model) in copies {
                prop_assert_eq!(contents(&copy), model);
            }
        }
    }
}
