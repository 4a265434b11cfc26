//! A queue of keys with times: each key once, at the earliest time asked for, and never handled twice at once.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio::time::Instant;

/// The queue. All methods take a short lock; `next` waits without one.
pub struct Queue<K> {
    inner: Mutex<Inner<K>>,
    changed: Notify,
}

struct Inner<K> {
    due: HashMap<K, Instant>,
    order: BTreeSet<(Instant, K)>,
    running: HashSet<K>,
    /// Asked for while running: taken over when done.
    again: HashMap<K, Instant>,
}

impl<K: Clone + Eq + Hash + Ord> Default for Queue<K> {
    fn default() -> Self {
        let inner =
            Inner { due: HashMap::new(), order: BTreeSet::new(), running: HashSet::new(), again: HashMap::new() };
        Self { inner: Mutex::new(inner), changed: Notify::new() }
    }
}

impl<K: Clone + Eq + Hash + Ord> Queue<K> {
    /// Asks for `key` at `at`. If it is asked for already, the earlier time counts.
    pub fn add(&self, key: K, at: Instant) {
        self.lock().add(key, at);
        self.changed.notify_one();
    }

    /// Asks for `key` now.
    pub fn add_now(&self, key: K) {
        self.add(key, Instant::now());
    }

    /// Waits for the next key that is due. It counts as running until `done`.
    pub async fn next(&self) -> K {
        loop {
            let changed = self.changed.notified();
            let wait_until = {
                let mut inner = self.lock();
                if let Some(key) = inner.pop(Instant::now()) {
                    // Another waiter may have something to do as well.
                    self.changed.notify_one();
                    return key;
                }
                inner.order.first().map(|(at, _)| *at)
            };
            match wait_until {
                Some(at) => {
                    let _ = tokio::time::timeout_at(at, changed).await;
                }
                None => changed.await,
            }
        }
    }

    /// `key` has been handled; if it was asked for meanwhile it is due again.
    pub fn done(&self, key: &K) {
        let mut inner = self.lock();
        inner.running.remove(key);
        if let Some(at) = inner.again.remove(key) {
            inner.add(key.clone(), at);
        }
        drop(inner);
        self.changed.notify_one();
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Clone + Eq + Hash + Ord> Inner<K> {
    fn add(&mut self, key: K, at: Instant) {
        if self.running.contains(&key) {
            let earliest = self.again.entry(key).or_insert(at);
            *earliest = at.min(*earliest);
            return;
        }
        if let Some(before) = self.due.get(&key) {
            if *before <= at {
                return;
            }
            self.order.remove(&(*before, key.clone()));
        }
        self.due.insert(key.clone(), at);
        self.order.insert((at, key));
    }

    fn pop(&mut self, now: Instant) -> Option<K> {
        let (at, key) = self.order.first()?.clone();
        if at > now {
            return None;
        }
        self.order.remove(&(at, key.clone()));
        self.due.remove(&key);
        self.running.insert(key.clone());
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test(start_paused = true)]
    async fn keys_come_once_and_in_time() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add("late", start + Duration::from_secs(60));
        queue.add("soon", start + Duration::from_secs(5));
        queue.add("late", start + Duration::from_secs(10));
        queue.add("late", start + Duration::from_secs(90));
        assert_eq!(queue.next().await, "soon");
        assert_eq!(start.elapsed(), Duration::from_secs(5));
        assert_eq!(queue.next().await, "late");
        assert_eq!(start.elapsed(), Duration::from_secs(10));
        assert!(tokio::time::timeout(Duration::from_secs(600), queue.next()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_running_key_waits_until_it_is_done() {
        let queue = Queue::default();
        queue.add_now("a");
        assert_eq!(queue.next().await, "a");
        queue.add_now("a");
        queue.add_now("b");
        assert_eq!(queue.next().await, "b");
        assert!(tokio::time::timeout(Duration::from_secs(60), queue.next()).await.is_err());
        queue.done(&"a");
        assert_eq!(queue.next().await, "a");
    }
}
