//! Which registry hosts fail, so that one Event and one line of the log speak for all Images.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Hosts come from users' Images: above this many none is remembered, and each Image speaks for itself.
const MAX_HOSTS: usize = 1024;

/// The hosts that failed last time, and since when.
#[derive(Default)]
pub(super) struct Outages(Mutex<HashMap<String, Instant>>);

impl Outages {
    /// Remembers that a host fails; false if that was known.
    pub(super) fn begins(&self, host: &str) -> bool {
        let mut hosts = self.lock();
        if hosts.contains_key(host) {
            return false;
        }
        if hosts.len() < MAX_HOSTS {
            hosts.insert(host.to_owned(), Instant::now());
        }
        true
    }

    /// Remembers that a host answers; how long it did not, if it failed before.
    pub(super) fn ends(&self, host: &str) -> Option<Duration> {
        self.lock().remove(host).map(|since| since.elapsed())
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_told_once_and_so_is_its_end() {
        let outages = Outages::default();
        assert_eq!(outages.ends("ghcr.io"), None);
        assert!(outages.begins("ghcr.io"));
        tokio::time::advance(Duration::from_secs(90)).await;
        assert!(!outages.begins("ghcr.io"), "the next Image says nothing");
        assert!(outages.begins("quay.io"), "another host is another outage");
        assert_eq!(outages.ends("ghcr.io"), Some(Duration::from_secs(90)));
        assert_eq!(outages.ends("ghcr.io"), None, "once");
        assert!(outages.begins("ghcr.io"), "again");
    }

    #[test]
    fn hosts_without_end_are_not_remembered() {
        let outages = Outages::default();
        for n in 0..MAX_HOSTS * 2 {
            assert!(outages.begins(&format!("r{n}.io")));
        }
        assert_eq!(outages.lock().len(), MAX_HOSTS);
        assert!(!outages.begins("r0.io"));
    }
}
