//! Reconciles one Image: observe, decide, record, report. The only writer of its status.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::annotations::{ACTION, REQUESTED_AT};
use crate::api::{self, CompiledSpec, Image, ImageStatus, SyncResult, Tagged};
use crate::policy::Repository;

use super::decide::Known;
use super::engine::{Key, Sync};
use super::observe;
use super::records;
use super::status::{self, Failure, Outcome, Subject};
use super::verify::Checks;
use super::world::{Cached, ImageKey, status_of};
use super::write::{self, WriteError};

/// First pause after a failed sync; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(5);
/// Longest pause after a failed sync.
const RETRY_MAX: Duration = Duration::from_mins(5);
/// Pause after a conflict: the watch needs a moment to bring what we lost against.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);
/// Missed intervals after which an Image is `Stale`.
const STALE_INTERVALS: i32 = 3;

/// What this process remembers of an Image between syncs. Losing it costs one more listing, nothing else.
#[derive(Clone, Debug, Default)]
pub(super) struct Memo {
    uid: String,
    generation: Option<i64>,
    /// When the next sync is due; none: when asked.
    next: Option<Timestamp>,
    failures: u32,
    last_success: Option<Timestamp>,
    /// When the last sync began whose outcome, whatever it is, is in the status.
    pub(super) synced: Option<Instant>,
    /// Sync at the next occasion, whatever the triggers say.
    pub(super) forced: bool,
    /// What was learned of its tags.
    pub(super) checks: Checks,
}

/// What a person asked for by annotation.
struct Request {
    refresh: bool,
    requested_at: Option<String>,
}

impl Request {
    fn of(image: &Image, status: &ImageStatus) -> Self {
        let annotations = image.annotations();
        let requested_at = annotations.get(REQUESTED_AT).filter(|at| status.last_handled_request.as_ref() != Some(*at));
        Self {
            refresh: annotations.get(ACTION).is_some_and(|action| action == "refresh"),
            requested_at: requested_at.cloned(),
        }
    }

    fn any(&self) -> bool {
        self.refresh || self.requested_at.is_some()
    }
}

impl Sync {
    /// Handles one Image. Failures are recorded, logged and tried again; none reaches another Image.
    pub(super) async fn reconcile_image(&self, key: &ImageKey) {
        let image = match self.world.image(key) {
            None => {
                self.memos().remove(key);
                return;
            }
            Some(_) if !self.leadership.is_leader() => return,
            Some(Cached::Broken(metadata, error)) => {
                match write::broken(&self.client, &self.world, key, &metadata, &error).await {
                    Ok(None) => {}
                    Ok(Some(message)) => self.report_broken(&metadata, &message).await,
                    Err(write) => {
                        tracing::warn!(image = %key, error = %write, "cannot record that the Image is broken");
                        self.queue.add(Key::Image(key.clone()), Instant::now() + RETRY_FIRST);
                    }
                }
                return;
            }
            Some(Cached::Read(image)) => image,
        };
        match self.reconcile_read(key, image).await {
            Ok(()) => {}
            Err(WriteError::Conflict | WriteError::NotLeader) => {
                self.queue.add(Key::Image(key.clone()), Instant::now() + CONFLICT_PAUSE);
            }
            Err(WriteError::Failed(cause)) => {
                tracing::warn!(image = %key, cause, "cannot write the Image's status; trying again");
                self.queue.add(Key::Image(key.clone()), Instant::now() + Duration::from_secs(2));
            }
            // Each try may ask the registry again.
            Err(WriteError::Refused(cause)) => {
                tracing::error!(image = %key, cause, "the Image's status is refused; compare the installed CRD with deploy/crds.yaml");
                self.queue.add(Key::Image(key.clone()), Instant::now() + RETRY_MAX);
            }
        }
    }

    async fn reconcile_read(&self, key: &ImageKey, image: Arc<Image>) -> Result<(), WriteError> {
        let mut image = image;
        if status_of(&image).result.is_none() {
            let status = ImageStatus { result: Some(SyncResult::Scheduled), ..status_of(&image) };
            image = write::status(self, key, &image, &status).await?;
        }
        let old = status_of(&image);
        let now = Timestamp::now();
        let compiled = api::compile(&image.spec, now);
        let request = Request::of(&image, &old);
        let mut new = old.clone();
        let mut selected = None;
        let mut began = None;
        let mut gone = None;
        let due = self.is_due(key, &image, &old, &request, now);
        if due {
            began = Some(Instant::now());
            let outcome = self.sync(key, &image, &old, compiled.as_ref().ok(), compiled.as_ref().err()).await;
            if let Outcome::Tag { gone: Some(digest), .. } = &outcome {
                gone = Some(digest.clone());
            }
            let retry = matches!(&outcome, Outcome::Failed(failure) if !failure.stalled);
            let subject = self.subject(&image, compiled.as_ref().ok());
            selected = status::after_sync(&mut new, &subject, &outcome);
            self.metrics.sync(new.result.map_or("Error", SyncResult::as_str));
            self.schedule(key, &image, compiled.as_ref().ok(), retry);
            self.mark_stale(key, &mut new, &subject, compiled.as_ref().ok(), retry);
            if request.requested_at.is_some() {
                new.last_handled_request.clone_from(&request.requested_at);
            }
        }
        let progress = self.progress(key, &image, &new);
        let subject = self.subject(&image, compiled.as_ref().ok());
        let pods = self.world.pods(&key.namespace);
        records::merge(&mut new.revisions, &key.name, pods.iter().map(AsRef::as_ref));
        let holds = status::after_progress(&mut new, &subject, &progress);
        let mut settled = None;
        if new.rollout.is_some() && progress.is_complete() {
            // Before the settled tag moves, every revision that ran the old one is on record.
            self.complete_records(key, &mut new).await?;
            settled = status::settle(&mut new, &subject);
        }
        status::keep_transitions(&old, &mut new);
        let mut written = image.clone();
        if self.must_write(&old, &new, due, request.any()) {
            written = write::status(self, key, &image, &new).await?;
        }
        if let Some(began) = began {
            // Not before its tag is written: workloads with several Images wait for this.
            let mut memos = self.memos();
            let memo = memos.entry(key.clone()).or_default();
            (memo.synced, memo.forced) = (Some(began), false);
        }
        self.report(key, &written, &old, &new, selected, &holds, settled).await;
        if let Some(digest) = gone {
            self.report_gone(&written, &new, &digest).await;
        }
        if due && request.refresh {
            write::remove_action(self, key, &written).await?;
        }
        self.queue_next(key);
        Ok(())
    }

    /// One sync: what should this Image run?
    async fn sync(
        &self,
        key: &ImageKey,
        image: &Image,
        status: &ImageStatus,
        compiled: Option<&CompiledSpec>,
        error: Option<&api::SpecError>,
    ) -> Outcome {
        let Some(spec) = compiled else {
            let message = error.map(ToString::to_string).unwrap_or_default();
            let (result, reason) = error.map_or((SyncResult::Error, "Invalid"), |e| (e.result(), e.reason()));
            let message = format!("Image {key}: {message}");
            return Outcome::Failed(Failure { result, reason, message, stalled: true });
        };
        let counts = self.world.images_by_repository(&key.namespace).get(&spec.repository).cloned();
        if let Some(other) = counts.filter(|other| other.uid() != image.uid()) {
            let message = format!(
                "Image {key}: {} is followed by the older Image {} already; remove one of them",
                spec.repository,
                other.name_any()
            );
            return Outcome::Failed(Failure {
                result: SyncResult::Error,
                reason: status::DUPLICATE,
                message,
                stalled: true,
            });
        }
        self.choose(key, image, status, spec).await.unwrap_or_else(Outcome::Failed)
    }

    /// Asks the registry and decides; also answers the webhook's question, so it writes nothing.
    pub(super) async fn choose(
        &self,
        key: &ImageKey,
        image: &Image,
        status: &ImageStatus,
        spec: &CompiledSpec,
    ) -> Result<Outcome, Failure> {
        let listing = observe::list_tags(&self.client, &self.registry, image, spec).await;
        let host = spec.repository.host();
        let listing = match listing {
            Ok(listing) => {
                self.hosts_down().remove(host);
                listing
            }
            Err(failure) => return Err(failure),
        };
        let stamped = self.newest_stamp(key, spec);
        let known = Known {
            settled: status.tag.as_deref(),
            in_flight: status.rollout.as_ref().map(|r| r.tag.as_str()),
            followed: status.base_tag.as_deref(),
            stamped: stamped.as_ref(),
        };
        self.verified(key, image, status, spec, known, &listing.tags).await
    }

    /// The newest that stamps of the namespace name for this repository (an Image that lost its status adopts it).
    fn newest_stamp(&self, key: &ImageKey, spec: &CompiledSpec) -> Option<Tagged> {
        let order = api::Order::from(spec);
        let users = self.world.users(&key.namespace, &spec.repository);
        let stamps = users.iter().flat_map(|w| w.containers.iter().filter_map(|c| w.stamp(&c.name)));
        let stamped = stamps.filter_map(|stamp| {
            let reference = crate::policy::Reference::parse(&stamp.reference).ok()?;
            let tagged = Tagged::of(&reference);
            // One that no rule can compare is nothing to start from.
            let comparable = order.compare(&tagged.tag, &tagged.tag).is_some();
            (comparable && reference.repository() == &spec.repository).then_some(tagged)
        });
        stamped.max_by(|a, b| order.compare(&a.tag, &b.tag).unwrap_or_else(|| a.tag.cmp(&b.tag)))
    }

    pub(super) fn subject<'a>(&self, image: &'a Image, compiled: Option<&CompiledSpec>) -> Subject<'a> {
        let namespace = image.metadata.namespace.as_deref().unwrap_or_default();
        let repository = Repository::parse(&image.spec.image).ok();
        let used = repository.as_ref().is_some_and(|r| !self.world.users(namespace, r).is_empty());
        Subject {
            uid: image.metadata.uid.as_deref().unwrap_or_default(),
            generation: image.metadata.generation,
            repository: repository.map(|r| r.to_string()),
            unsupported: {
                let mut unsupported = compiled.map(|c| c.unsupported.clone()).unwrap_or_default();
                unsupported.extend(api::unsupported_annotations(image.annotations()));
                unsupported
            },
            pin: api::pins_digest(&image.spec),
            follows: compiled.and_then(|spec| spec.tag_to_follow().map(str::to_owned)),
            used,
            now: Timestamp::now(),
        }
    }

    fn is_due(&self, key: &ImageKey, image: &Image, status: &ImageStatus, request: &Request, now: Timestamp) -> bool {
        let mut memos = self.memos();
        let memo = memos.entry(key.clone()).or_default();
        let uid = image.uid().unwrap_or_default();
        if memo.uid != uid {
            *memo = Memo { uid, generation: status.observed_generation, last_success: Some(now), ..Memo::default() };
            // Taken over from an earlier process: its last sync counts, so that a restart is not a burst.
            let last = status.time.as_deref().and_then(|time| time.parse().ok()).filter(|_| status.tag.is_some());
            memo.next = Some(last.and_then(|last| next_time(image, last, now)).unwrap_or(now));
        }
        let changed = memo.generation != image.metadata.generation;
        let fresh = status.observed_generation.is_none();
        let passed = memo.next.is_some_and(|next| next <= now);
        request.any() || changed || fresh || passed || std::mem::take(&mut memo.forced)
    }

    /// Remembers when the next sync is due.
    fn schedule(&self, key: &ImageKey, image: &Image, spec: Option<&CompiledSpec>, failed: bool) {
        let now = Timestamp::now();
        let regular = spec.and_then(|spec| next_of(spec, now)).map(jittered(now));
        let mut memos = self.memos();
        let memo = memos.entry(key.clone()).or_default();
        memo.generation = image.metadata.generation;
        memo.forced = true; // until the outcome is written: a conflict must not lose it
        if failed {
            memo.failures = memo.failures.saturating_add(1);
            let pause = RETRY_FIRST.saturating_mul(1 << (memo.failures - 1).min(16)).min(RETRY_MAX);
            let retry = now.saturating_add(pause).unwrap_or(now);
            memo.next = Some(regular.map_or(retry, |regular| regular.min(retry)));
        } else {
            memo.failures = 0;
            memo.last_success = Some(now);
            memo.next = regular;
        }
    }

    fn mark_stale(
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
        let Some(next) = spec.and_then(|spec| next_of(spec, last)) else {
            return;
        };
        let missed = last.checked_add(last.duration_until(next) * STALE_INTERVALS);
        if missed.is_ok_and(|missed| missed < subject.now) {
            status::mark_stale(status, subject, &status::rfc3339(last));
        }
    }

    /// A sync that changed nothing writes nothing, but for the time now and then.
    fn must_write(&self, old: &ImageStatus, new: &ImageStatus, synced: bool, requested: bool) -> bool {
        if !status::says_the_same(old, new) || requested {
            return true;
        }
        let written = old.time.as_deref().and_then(|time| time.parse::<Timestamp>().ok());
        let heartbeat = self.options.status_heartbeat;
        synced && written.is_none_or(|at| at.saturating_add(heartbeat).is_ok_and(|next| next <= Timestamp::now()))
    }

    fn queue_next(&self, key: &ImageKey) {
        let next = self.memos().get(key).and_then(|memo| memo.next);
        if let Some(next) = next {
            let wait = Timestamp::now().duration_until(next);
            let wait = Duration::try_from(wait).unwrap_or_default();
            self.queue.add(Key::Image(key.clone()), Instant::now() + wait);
        }
    }
}

fn next_of(spec: &CompiledSpec, after: Timestamp) -> Option<Timestamp> {
    spec.schedules.iter().filter_map(|schedule| schedule.next_after(after)).min()
}

fn next_time(image: &Image, last: Timestamp, now: Timestamp) -> Option<Timestamp> {
    next_of(&api::compile(&image.spec, now).ok()?, last)
}

/// Spreads syncs a little, so that a thousand Images of one interval are not one burst: at most 5 %, at most 10 s.
fn jittered(now: Timestamp) -> impl Fn(Timestamp) -> Timestamp {
    move |next| {
        let spread = (now.duration_until(next).as_secs_f64() * 0.05).clamp(0.0, 10.0);
        next.saturating_add(Duration::from_secs_f64(spread * fastrand::f64())).unwrap_or(next)
    }
}
