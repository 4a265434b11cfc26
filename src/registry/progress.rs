//! How far listings are, for whoever waits for one in front of a terminal.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

/// Pages asked for by all listings of a client so far. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct Progress(Arc<AtomicUsize>);

impl Progress {
    /// The page that is waited for, from 1; 0 before the first.
    pub fn page(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    pub(super) fn next_page(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}
