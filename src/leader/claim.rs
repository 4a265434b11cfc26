//! The claim to be the leader, with its own expiry.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::time::Instant;

/// Whether this process may write. Clones share one claim.
#[derive(Debug, Clone)]
pub struct Leadership {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    claim: Mutex<Claim>,
    changes: watch::Sender<bool>,
}

#[derive(Debug, Clone, Copy)]
enum Claim {
    None,
    Until(Instant),
    Always,
}

impl Leadership {
    /// A process that always leads: for tests, and where there is nobody to compete with.
    pub fn always() -> Self {
        Self::with(Claim::Always)
    }

    pub(super) fn none() -> Self {
        Self::with(Claim::None)
    }

    fn with(claim: Claim) -> Self {
        let (changes, _) = watch::channel(!matches!(claim, Claim::None));
        Self { inner: Arc::new(Inner { claim: Mutex::new(claim), changes }) }
    }

    /// Whether this process leads right now. Ask before each write: it takes a lock that is held for nanoseconds.
    ///
    /// True only within `lease_duration`, less a tenth, of the *start* of the last renewal that succeeded, measured on
    /// the monotonic clock. That clock stands still while a machine is suspended; a write after that is refused by its
    /// resourceVersion if another process has written meanwhile.
    pub fn is_leader(&self) -> bool {
        match *self.claim() {
            Claim::None => false,
            Claim::Until(end) => Instant::now() < end,
            Claim::Always => true,
        }
    }

    /// Tells when leadership begins and ends, to start and stop work. [`Leadership::is_leader`] is the word that counts:
    /// a claim may run out a moment before this channel says so.
    pub fn subscribe(&self) -> watch::Receiver<bool> {
        self.inner.changes.subscribe()
    }

    /// Leads until `end`. Returns whether that is news.
    pub(super) fn hold(&self, end: Instant) -> bool {
        *self.claim() = Claim::Until(end);
        self.announce(true)
    }

    /// No longer leads. Returns whether that is news.
    pub(super) fn lose(&self) -> bool {
        *self.claim() = Claim::None;
        self.announce(false)
    }

    fn announce(&self, leading: bool) -> bool {
        self.inner.changes.send_if_modified(|said| std::mem::replace(said, leading) != leading)
    }

    fn claim(&self) -> std::sync::MutexGuard<'_, Claim> {
        self.inner.claim.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
