//! When an Image is synced next, and what makes a sync due.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::{CompiledSpec, Image, ImageStatus};
use crate::registry::Asker;

use super::engine::{Key, Sync};
use super::image::Memo;
use super::pace::{self, Wanted};
use super::request::Request;
use super::status::{self, Subject};
use super::world::ImageKey;

/// Least time between two writes that tell only how far a rollout is.
const COUNTS_PAUSE: Duration = Duration::from_secs(1);

impl Sync {
    pub(super) fn asker(&self, key: &ImageKey) -> Asker {
        if self.asked().contains_key(key) { Asker::Question } else { Asker::Schedule }
    }

    /// Whether a sync is due, and how new the list of tags must be.
    pub(super) fn wanted(
        &self,
        key: &ImageKey,
        image: &Image,
        status: &ImageStatus,
        request: &Request,
        spec: Option<&CompiledSpec>,
        now: Timestamp,
    ) -> Option<Wanted> {
        let asker = self.asker(key);
        let mut memos = self.memos();
        let memo = memos.entry(key.clone()).or_default();
        let uid = image.uid().unwrap_or_default();
        if memo.uid != uid {
            let last_success = Some(status::failing_since(status).unwrap_or(now));
            *memo = Memo { uid, generation: status.observed_generation, last_success, ..Memo::default() };
            // Taken over from an earlier process: its last sync counts, so that a restart is not a burst.
            let last = status.time.as_deref().and_then(|time| time.parse().ok()).filter(|_| status.tag.is_some());
            let resume = |(last, spec)| pace::resume(spec, last, now, self.options.status_heartbeat);
            memo.next = earlier(last.zip(spec).and_then(resume).or(Some(now)), status::opens(status));
        }
        let changed = memo.generation != image.metadata.generation;
        let fresh = status.observed_generation.is_none();
        if request.any() {
            memo.forced = false;
            return Some(Wanted::new_list(Asker::Person));
        }
        // Whoever creates or changes an Image, or waits for all Images of a workload, means what is there by now.
        if std::mem::take(&mut memo.forced) || changed || fresh {
            return Some(Wanted::new_list(asker));
        }
        // What somebody approves may be newer than any list.
        let passed = memo.next.is_some_and(|next| next <= now);
        if request.approve.is_some() && (passed || memo.approved != request.approve) {
            return Some(Wanted::new_list(Asker::Person));
        }
        passed.then(|| spec.map_or_else(|| Wanted::new_list(asker), |spec| Wanted::shared_list(asker, spec, now)))
    }

    /// Remembers when the next sync is due.
    pub(super) fn schedule(
        &self,
        key: &ImageKey,
        image: &Image,
        spec: Option<&CompiledSpec>,
        failed: bool,
        status: &ImageStatus,
    ) {
        let now = self.now();
        let mut memos = self.memos();
        let memo = memos.entry(key.clone()).or_default();
        memo.generation = image.metadata.generation;
        memo.forced = true; // until the outcome is written: a conflict must not lose it
        (memo.failures, memo.next) = pace::after(spec, memo.failures, failed, now);
        memo.next = earlier(memo.next, status::opens(status).filter(|opens| *opens > now));
        if !failed {
            memo.last_success = Some(now);
        }
    }

    /// Remembers what a sync knew of, and when there is more to say than the status has.
    pub(super) fn handled(&self, key: &ImageKey, request: &Request, wake: Option<Timestamp>) {
        let mut memos = self.memos();
        let memo = memos.entry(key.clone()).or_default();
        memo.approved.clone_from(&request.approve);
        memo.next = earlier(memo.next, wake);
    }

    pub(super) fn mark_stale(
        &self,
        key: &ImageKey,
        status: &mut ImageStatus,
        subject: &Subject<'_>,
        spec: Option<&CompiledSpec>,
        failed: bool,
    ) {
        let Some(last) = self.memos().get(key).and_then(|memo| memo.last_success).filter(|_| failed) else {
            return;
        };
        if spec.is_some_and(|spec| pace::is_stale(spec, last, subject.now)) {
            status::mark_stale(status, subject, &status::rfc3339(last));
        }
    }

    /// A sync that changed nothing writes nothing, but for the time now and then.
    pub(super) fn must_write(&self, old: &ImageStatus, new: &ImageStatus, synced: bool, requested: bool) -> bool {
        if !status::says_the_same(old, new) || requested {
            return true;
        }
        let written = old.time.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
        let heartbeat = self.options.status_heartbeat;
        synced && written.is_none_or(|at| at.saturating_add(heartbeat).is_ok_and(|next| next <= self.now()))
    }

    /// Whether the counts of a rollout were written a moment ago: then they are written again when that is over. One write
    /// for each step of each workload would be most of what a rollout costs the API server.
    pub(super) fn was_counted_just_now(&self, key: &ImageKey, old: &ImageStatus, new: &ImageStatus) -> bool {
        let now = Instant::now();
        let mut memos = self.memos();
        let memo = memos.entry(key.clone()).or_default();
        match memo.written.map(|written| written + COUNTS_PAUSE).filter(|next| *next > now) {
            Some(next) if !status::says_the_same(old, new) => {
                drop(memos);
                self.queue.add(Key::Image(key.clone()), next);
                true
            }
            _ => false,
        }
    }

    pub(super) fn queue_next(&self, key: &ImageKey) {
        let next = self.memos().get(key).and_then(|memo| memo.next);
        if let Some(next) = next {
            self.queue_at(Key::Image(key.clone()), next);
        }
    }

    pub(super) fn queue_at(&self, key: Key, at: Timestamp) {
        let wait = Duration::try_from(self.now().duration_until(at)).unwrap_or_default();
        self.queue.add(key, Instant::now() + wait);
    }
}

/// The earlier of two times, of which there may be none.
fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    a.into_iter().chain(b).min()
}
