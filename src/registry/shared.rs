//! One listing for all who ask for the same thing: whoever comes while it runs waits for it, and whoever comes soon after
//! takes what it found.

use std::{
    collections::HashMap,
    future::Future,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::{hmac, rand::SystemRandom};
use tokio::{sync::watch, time::Instant};

use super::{
    Client, ListRequest, Listing,
    error::RegistryError,
    failure::ListError,
    hosts::Asker,
    origin::{self, Origin, host_text},
    registries::Endpoint,
};
use crate::policy::Repository;

/// How long after its beginning a listing may be taken.
const KEEP: Duration = Duration::from_secs(30);
/// Tags that are kept in all, about 8 MiB. A larger listing is shared by those who wait for it, and then gone.
const MAX_KEPT_TAGS: usize = 100_000;

type Outcome = Result<Arc<Listing>, ListError>;

impl Client {
    /// Lists all tags, together with everybody who asks for the same repository with the same credentials.
    ///
    /// Joins a listing that has begun at or after `not_before` or has not begun, takes what such a listing found up to 30
    /// seconds ago, or else begins one: at most 4 of one host and 64 in all run at a time, and a host that cannot be
    /// reached is asked by one at a time after pauses of 5 seconds to 5 minutes. The limit on a listing's time counts from its
    /// beginning. A failure is told to all who wait for it, and is not kept.
    ///
    /// Safe to drop at any await point: the listing goes on for the others.
    pub async fn list_tags_shared(
        &self,
        request: &ListRequest,
        not_before: Instant,
        asker: Asker,
    ) -> Result<Arc<Listing>, ListError> {
        // The registry itself, or what stands for it: mirrors come before it.
        let endpoints = self.0.endpoints(&request.repository, request.insecure_skip_tls_verify)?;
        let home = endpoints.last().map_or(&request.repository, |endpoint| &endpoint.repository).clone();
        let skip_verify = endpoints.last().is_some_and(|endpoint| endpoint.skip_verify);
        let first = origin::tags_url(&home, &self.0.plain_http)?;
        let unusable = || RegistryError::Config { cause: format!("{} has no usable host", request.repository) };
        let host = (Origin::of(&first).ok_or_else(unusable)?, skip_verify);
        let (client, request, key) = (self.clone(), request.clone(), self.0.shared.key(request, &endpoints));
        let list = move |flight: Flight| async move {
            let place = client.0.hosts.enter(&host, flight.asker()).await?;
            flight.begin();
            let listing = client.list_by_stage(&request).await;
            place.learn(&host_text(&first), home.path(), &listing);
            listing
        };
        self.0.shared.ask(key, not_before, asker, list).await
    }

    /// Lets a listing of this repository that waits for its turn go first: a Pod waits for it.
    pub fn hurry(&self, repository: &Repository) {
        self.0.shared.hurry(repository);
    }
}

/// What two requests must have in common to share a listing.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Key {
    repository: Repository,
    skip_verify: bool,
    /// Of the credentials that would be sent, in their order, mirror by mirror.
    credentials: [u8; 32],
}

/// The listings that run or were found a moment ago.
pub(super) struct Shared {
    /// So that what is kept of credentials says nothing outside of this process.
    hash: hmac::Key,
    slots: Mutex<HashMap<Key, Slot>>,
    ids: AtomicU64,
}

#[derive(Default)]
struct Slot {
    running: Option<Running>,
    found: Option<Found>,
}

struct Running {
    id: u64,
    /// None: it waits for its turn.
    began: Option<Instant>,
    asker: Arc<watch::Sender<Asker>>,
    outcome: watch::Receiver<Option<Outcome>>,
}

struct Found {
    began: Instant,
    listing: Arc<Listing>,
}

impl Shared {
    pub(super) fn new() -> Result<Self, RegistryError> {
        let hash = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new())
            .map_err(|_| RegistryError::Config { cause: "the system has no random numbers".to_owned() })?;
        Ok(Self { hash, slots: Mutex::default(), ids: AtomicU64::new(0) })
    }

    /// Costs a match of the keyring's entries.
    pub(super) fn key(&self, request: &ListRequest, endpoints: &[Endpoint]) -> Key {
        let mut context = hmac::Context::with_key(&self.hash);
        let mut add = |repository: &Repository| {
            let found = request.keyring.credentials_for(repository);
            context.update(&(found.len() as u64).to_be_bytes());
            for credentials in &found {
                context.update(&credentials.fingerprint());
            }
        };
        add(&request.repository);
        for endpoint in endpoints {
            add(&endpoint.repository);
        }
        let mut credentials = [0; 32];
        credentials.copy_from_slice(context.sign().as_ref());
        Key { repository: request.repository.clone(), skip_verify: request.insecure_skip_tls_verify, credentials }
    }

    /// `list` does the work, once for all; it says when it begins, which may be long after it was asked.
    async fn ask<F, W>(self: &Arc<Self>, key: Key, not_before: Instant, asker: Asker, list: F) -> Outcome
    where
        F: FnOnce(Flight) -> W,
        W: Future<Output = Result<Listing, ListError>> + Send + 'static,
    {
        let mut outcome = match self.join(&key, not_before.min(Instant::now()), asker) {
            Joined::Found(listing) => return Ok(listing),
            Joined::Running(outcome) => outcome,
            Joined::Begin(flight, outcome) => {
                // A task of its own: it must not end with whoever happened to ask first.
                let (done, work) = (flight.share(), list(flight));
                tokio::spawn(async move { done.land(work.await.map(Arc::new)) });
                outcome
            }
        };
        let done = outcome.wait_for(Option::is_some).await.ok().and_then(|done| done.clone());
        done.unwrap_or_else(|| Err(RegistryError::Config { cause: "the listing was given up".to_owned() }.into()))
    }

    fn join(self: &Arc<Self>, key: &Key, not_before: Instant, asker: Asker) -> Joined {
        let mut slots = self.lock();
        let slot = slots.entry(key.clone()).or_default();
        if let Some(found) = slot.found.as_ref().filter(|found| found.began >= not_before) {
            return Joined::Found(found.listing.clone());
        }
        if let Some(running) = &slot.running
            && running.began.is_none_or(|began| began >= not_before)
        {
            running.raise(asker);
            return Joined::Running(running.outcome.clone());
        }
        let (sender, outcome) = watch::channel(None);
        let asker = Arc::new(watch::Sender::new(asker));
        let id = self.ids.fetch_add(1, Ordering::Relaxed);
        // One that began too early goes on for those who wait for it, and is joined by nobody any more.
        slot.running = Some(Running { id, began: None, asker: asker.clone(), outcome: outcome.clone() });
        let flight = Flight(Arc::new(Inner { shared: self.clone(), key: key.clone(), id, asker, outcome: sender }));
        Joined::Begin(flight, outcome)
    }

    fn hurry(&self, repository: &Repository) {
        let slots = self.lock();
        let waiting = slots.iter().filter(|(key, _)| key.repository == *repository);
        waiting.filter_map(|(_, slot)| slot.running.as_ref()).for_each(|running| running.raise(Asker::Question));
    }

    /// Forgets what was found once nobody may take it any more.
    fn expire(self: &Arc<Self>, key: &Key, began: Instant) {
        let (shared, key) = (Arc::downgrade(self), key.clone());
        tokio::spawn(async move {
            tokio::time::sleep_until(began + KEEP).await;
            if let Some(shared) = shared.upgrade() {
                shared.forget(&key, began);
            }
        });
    }

    fn forget(&self, key: &Key, began: Instant) {
        let mut slots = self.lock();
        if let Some(slot) = slots.get_mut(key) {
            slot.found.take_if(|found| found.began <= began);
            if slot.is_empty() {
                slots.remove(key);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn drop_oldest(slots: &mut HashMap<Key, Slot>) {
    let kept = |slot: &Slot| slot.found.as_ref().map_or(0, |found| found.listing.tags.len());
    let mut total: usize = slots.values().map(kept).sum();
    while total > MAX_KEPT_TAGS {
        let began = |slot: &Slot| slot.found.as_ref().map(|found| found.began);
        let oldest = slots.values_mut().filter(|slot| slot.found.is_some()).min_by_key(|slot| began(slot));
        let Some(found) = oldest.and_then(|slot| slot.found.take()) else {
            return;
        };
        total -= found.listing.tags.len();
    }
    slots.retain(|_, slot| !slot.is_empty());
}

impl Slot {
    fn is_empty(&self) -> bool {
        self.running.is_none() && self.found.is_none()
    }
}

impl Running {
    fn raise(&self, asker: Asker) {
        self.asker.send_if_modified(|known| {
            let raised = asker > *known;
            *known = asker.max(*known);
            raised
        });
    }
}

enum Joined {
    Found(Arc<Listing>),
    Running(watch::Receiver<Option<Outcome>>),
    Begin(Flight, watch::Receiver<Option<Outcome>>),
}

/// A listing under way.
struct Flight(Arc<Inner>);

struct Inner {
    shared: Arc<Shared>,
    key: Key,
    id: u64,
    asker: Arc<watch::Sender<Asker>>,
    outcome: watch::Sender<Option<Outcome>>,
}

impl Flight {
    fn share(&self) -> Self {
        Self(self.0.clone())
    }

    /// On whose behalf: the most urgent of those who have joined.
    fn asker(&self) -> watch::Receiver<Asker> {
        self.0.asker.subscribe()
    }

    /// The first request goes out now: what is pushed from here on may be missing.
    fn begin(&self) {
        if let Some(running) = self.0.shared.lock().get_mut(&self.0.key).and_then(|slot| slot.running.as_mut())
            && running.id == self.0.id
        {
            running.began = Some(Instant::now());
        }
    }

    fn land(&self, outcome: Outcome) {
        if let Some(began) = self.0.leave(outcome.as_ref().ok()) {
            self.0.shared.expire(&self.0.key, began);
        }
        self.0.outcome.send_replace(Some(outcome));
    }
}

impl Inner {
    /// Nobody joins it from here on. What was found is kept if somebody may take it still; then says when it began.
    fn leave(&self, found: Option<&Arc<Listing>>) -> Option<Instant> {
        let mut slots = self.shared.lock();
        let slot = slots.get_mut(&self.key)?;
        // None if another has begun meanwhile: that one will find more.
        let began = slot.running.take_if(|running| running.id == self.id).and_then(|running| running.began);
        let worth = |listing: &&Arc<Listing>| listing.tags.len() <= MAX_KEPT_TAGS;
        let kept = began.zip(found.filter(worth)).filter(|(began, _)| Instant::now() < *began + KEEP);
        if let Some((began, listing)) = kept {
            slot.found = Some(Found { began, listing: listing.clone() });
            drop_oldest(&mut slots);
        } else if slot.is_empty() {
            slots.remove(&self.key);
        }
        kept.map(|(began, _)| began)
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // Also when the work panics.
        self.leave(None);
    }
}

#[cfg(test)]
#[path = "tests/shared.rs"]
mod tests;
