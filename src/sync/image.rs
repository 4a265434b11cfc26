//! Reconciles one Image: observe, decide, record, report. The only writer of its status.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;

use crate::api::annotations::APPROVE;
use crate::api::{self, Closed, CompiledSpec, Image, ImageStatus, Rejected, RolloutStatus, SyncResult, Tagged};
use crate::policy::Repository;
use crate::registry::{Asker, Listing};
use crate::rollout::PullAccess;

use super::approval::{Answer, Approved};
use super::decide::{self, Known};
use super::engine::{Key, Sync};
use super::gates::{self, Gate};
use super::managed;
use super::observe;
use super::pace::{self, RETRY_MAX, Wanted};
use super::records;
use super::request::{self, Request};
use super::retry::{Recording, Retrying};
use super::status::{self, Failure, Holds, Outcome, Selected, Subject};
use super::verify::{Checks, Chosen, Given};
use super::world::{Cached, ImageKey, status_of};
use super::write::{self, WriteError};

/// Pause before a broken Image is recorded again.
const BROKEN_PAUSE: Duration = Duration::from_secs(5);
/// Pause after a conflict: the watch needs a moment to bring what we lost against.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);

/// What this process remembers of an Image between syncs. Losing it costs one more listing, nothing else.
#[derive(Clone, Debug, Default)]
pub(super) struct Memo {
    pub(super) uid: String,
    pub(super) generation: Option<i64>,
    /// When the next sync is due; none: when asked.
    pub(super) next: Option<Timestamp>,
    pub(super) failures: u32,
    pub(super) last_success: Option<Timestamp>,
    /// When the last sync began whose outcome, whatever it is, is in the status.
    pub(super) synced: Option<Instant>,
    /// Sync at the next occasion, whatever the triggers say.
    pub(super) forced: bool,
    /// When its status was written last.
    pub(super) written: Option<Instant>,
    /// What was learned of its tags.
    pub(super) checks: Checks,
    /// The approval that the last sync knew of: it is not a reason for another one.
    pub(super) approved: Option<Approved>,
    /// Its own `action: retry`, while others have to forget for it.
    pub(super) retrying: Option<Retrying>,
}

/// One look at an Image: what its status said, and what is learned.
#[derive(Default)]
struct Pass {
    old: ImageStatus,
    new: ImageStatus,
    /// When its sync began; none if none was due.
    began: Option<Instant>,
    selected: Option<Selected>,
    settled: Option<RolloutStatus>,
    holds: Holds,
    /// A pinned digest that the registry has no longer.
    gone: Option<String>,
    answer: Option<Answer>,
}

impl Sync {
    /// Handles one Image. Failures are recorded, logged and tried again; none reaches another Image.
    pub(super) async fn reconcile_image(&self, key: &ImageKey) {
        // None: sync is stopping.
        let Some(place) = self.places.take().await else {
            return;
        };
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
                        self.queue.add(Key::Image(key.clone()), Instant::now() + BROKEN_PAUSE);
                    }
                }
                return;
            }
            Some(Cached::Read(image)) => image,
        };
        match self.reconcile_read(key, image, place).await {
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

    async fn reconcile_read<'a>(
        &'a self,
        key: &ImageKey,
        mut image: Arc<Image>,
        mut place: SemaphorePermit<'a>,
    ) -> Result<(), WriteError> {
        if status_of(&image).result.is_none() {
            let status = ImageStatus { result: Some(SyncResult::Scheduled), ..status_of(&image) };
            image = write::status(self, key, &image, &status).await?;
        }
        let request = Request::of(&image, &status_of(&image));
        let Some(image) = self.without_registry(key, image, &request).await? else {
            return Ok(());
        };
        let (old, now) = (status_of(&image), self.now());
        let compiled = api::compile(&image.spec, now);
        let mut pass = Pass { new: old.clone(), old, ..Pass::default() };
        let wanted = self.wanted(key, &image, &pass.old, &request, compiled.as_ref().ok(), now);
        let wanted = wanted.or_else(|| self.gate_opened(key, &image, &pass.old, compiled.as_ref().ok(), now));
        if let Some(wanted) = wanted {
            pass.began = Some(Instant::now());
            // A registry may take long: the place is for others until it has answered.
            drop(place);
            let chosen = self.sync(key, &image, &pass.old, compiled.as_ref(), wanted).await;
            place = self.places.take().await.ok_or(WriteError::NotLeader)?;
            self.take_in(key, &image, &mut pass, chosen, &request, compiled.as_ref().ok());
        }
        if !self.follow_workloads(key, &image, &mut pass, &request, compiled.as_ref().ok()).await? {
            return Ok(());
        }
        let mut written = image.clone();
        if self.must_write(&pass.old, &pass.new, pass.began.is_some(), request.any()) {
            written = write::status(self, key, &image, &pass.new).await?;
        }
        self.wake_others(key, &pass);
        self.tell_pass(key, &written, &mut pass, compiled.as_ref().ok()).await;
        self.acknowledge(key, &written, &pass.old, &pass.new, &request, pass.answer.as_ref()).await?;
        if request.resume {
            self.resume(key, &written, &pass.new).await?;
        } else if pass.began.is_some() && request.refresh {
            write::remove_action(self, key, &written).await?;
        }
        drop(place);
        self.queue_next(key);
        Ok(())
    }

    /// Takes in what a sync came to.
    fn take_in(
        &self,
        key: &ImageKey,
        image: &Image,
        pass: &mut Pass,
        chosen: Chosen,
        request: &Request,
        spec: Option<&CompiledSpec>,
    ) {
        let Chosen { outcome, seen, asked, answer, wake } = chosen;
        if let Outcome::Tag(choice) = &outcome {
            pass.gone.clone_from(&choice.gone);
        }
        let retry = matches!(&outcome, Outcome::Failed(failure) if !failure.stalled);
        let subject = self.subject(image, &pass.old, spec);
        let new = &mut pass.new;
        pass.selected = status::after_sync(new, &subject, &outcome);
        (new.seen, new.asked) = (seen, asked);
        pass.answer = request::taken(answer, &outcome, new);
        self.metrics.sync(new.result.map_or("Error", SyncResult::as_str));
        self.schedule(key, image, spec, retry, new);
        self.handled(key, request, wake);
        self.mark_stale(key, new, &subject, spec, retry);
        if request.requested_at.is_some() {
            new.last_handled_request.clone_from(&request.requested_at);
        }
    }

    /// Takes in how far the workloads are. Returns false if all that is new are counts, and those were written a moment
    /// ago.
    async fn follow_workloads(
        &self,
        key: &ImageKey,
        image: &Image,
        pass: &mut Pass,
        request: &Request,
        spec: Option<&CompiledSpec>,
    ) -> Result<bool, WriteError> {
        let new = &mut pass.new;
        let progress = self.progress(key, image, new);
        let subject = self.subject(image, new, spec);
        let pods = self.world.pods(&key.namespace);
        records::merge(&mut new.revisions, &key.name, pods.iter().map(AsRef::as_ref));
        let resumed = if request.resume { status::release(new, &subject) } else { Vec::new() };
        pass.holds = status::after_progress(new, &subject, &progress);
        pass.holds.ended.extend(resumed);
        if new.rollout.is_some() && progress.is_complete() {
            // Before the settled tag moves, every revision that ran the old one is on record.
            self.complete_records(key, new).await?;
            pass.settled = status::settle(new, &subject);
        }
        status::keep_transitions(&pass.old, new);
        if let Some(until) = status::soaks_until(new, &progress, subject.now) {
            self.queue_at(Key::Image(key.clone()), until);
        }
        let asked_for = pass.began.is_some() || request.any() || pass.settled.is_some();
        let told_later = !asked_for && status::differ_in_counts_only(&pass.old, new);
        Ok(!(told_later && self.was_counted_just_now(key, &pass.old, new)))
    }

    /// Once the status is written: whom it concerns looks again.
    fn wake_others(&self, key: &ImageKey, Pass { old, new, began, settled, .. }: &Pass) {
        let led = |s: &ImageStatus| s.rollout.as_ref().map(|r| (r.first.clone(), r.first_ready_at.clone()));
        if led(old) != led(new) {
            self.free_turns(&key.namespace);
        }
        if old.tag.is_none() && new.tag.is_some() {
            self.nudges.hurry(&key.namespace); // Pods may have been denied for want of it
        }
        if let Some(began) = began {
            // Not before its tag is written: workloads with several Images wait for this.
            let mut memos = self.memos();
            let memo = memos.entry(key.clone()).or_default();
            (memo.synced, memo.forced) = (Some(*began), false);
        }
        if settled.as_ref().is_some_and(|rollout| rollout.back_from.is_some()) {
            // A newer tag may have come meanwhile: it waited for the way back.
            self.memos().entry(key.clone()).or_default().forced = true;
            self.queue.add_now(Key::Image(key.clone()));
        }
    }

    /// Says what is new.
    async fn tell_pass(&self, key: &ImageKey, written: &Image, pass: &mut Pass, spec: Option<&CompiledSpec>) {
        let (selected, settled) = (pass.selected.take(), pass.settled.take());
        let Pass { old, new, holds, gone, .. } = pass;
        self.report(key, written, old, new, selected, settled).await;
        self.report_holds(key, written, holds).await;
        self.report_pending(key, written, old, new).await;
        self.report_left_out(written, old, new, spec).await;
        self.report_asked(key, written, old, new).await;
        if let Some(digest) = gone {
            self.report_gone(written, new, digest).await;
        }
    }

    /// What comes before anything else, since a registry may take long to answer: people's words about rejected tags, and
    /// going back. None if that was written: then the Image is looked at again.
    async fn without_registry(
        &self,
        key: &ImageKey,
        image: Arc<Image>,
        request: &Request,
    ) -> Result<Option<Arc<Image>>, WriteError> {
        let Some(image) = self.retry(key, image).await? else {
            return Ok(None); // others of its group have to forget too
        };
        let _recording = Recording::new(self, key);
        if !self.world.retried(&image).is_empty() {
            if request.reject.is_some() {
                self.look_after_retry(key);
            }
            return Ok(Some(image));
        }
        let old = status_of(&image);
        if self.go_back(key, &image, &old).await? {
            return Ok(None);
        }
        if self.go_back_alone(key, &image, &old).await? {
            return Ok(None);
        }
        if self.reject_by_word(key, &image, &old, request).await? {
            self.queue.add_now(Key::Image(key.clone()));
            return Ok(None);
        }
        Ok(Some(image))
    }

    /// One sync: what should this Image run?
    async fn sync(
        &self,
        key: &ImageKey,
        image: &Image,
        status: &ImageStatus,
        compiled: Result<&CompiledSpec, &api::SpecError>,
        wanted: Wanted,
    ) -> Chosen {
        let failed = |failure| Chosen::failed(status, failure);
        let spec = match compiled {
            Ok(spec) => spec,
            Err(error) => {
                let (result, reason, message) = (error.result(), error.reason(), format!("Image {key}: {error}"));
                return failed(Failure { result, reason, message, stalled: true });
            }
        };
        if let Some(other) = self.duplicate_of(image, &spec.repository) {
            let message = format!(
                "Image {key}: {} is followed by the older Image {} already; remove one of them",
                spec.repository,
                other.name_any()
            );
            return failed(Failure { result: SyncResult::Error, reason: status::DUPLICATE, message, stalled: true });
        }
        let access = self.world.access_of(image);
        match self.choose(key, image, status, spec, access.as_ref(), wanted).await {
            Ok(chosen) => chosen,
            Err(failure) => failed(failure.tried_again(pace::longest_wait(spec, self.now()))),
        }
    }

    /// The older Image of a person that counts for the repository. An Image that kimup made counts beside it.
    pub(super) fn duplicate_of(&self, image: &Image, repository: &Repository) -> Option<Arc<Image>> {
        if managed::is_managed(&image.metadata) {
            return None;
        }
        let namespace = image.metadata.namespace.as_deref().unwrap_or_default();
        let counts = self.world.images_by_repository(namespace).get(repository).cloned();
        counts.filter(|other| other.uid() != image.uid())
    }

    /// What the registry lists, and how it was asked.
    async fn listed(
        &self,
        key: &ImageKey,
        image: &Image,
        spec: &CompiledSpec,
        access: Option<&PullAccess>,
        wanted: Wanted,
    ) -> Result<(observe::Asked, Arc<Listing>), Failure> {
        // Secrets come from the API server; without any there is nothing to wait for.
        let asks = !image.spec.image_pull_secrets.is_empty() || access.is_some();
        let place = if asks { self.places.take().await } else { None };
        let asked = observe::request(&self.client, image, spec, access).await?;
        drop(place);
        let wanted = Wanted { asker: wanted.asker.max(self.asker(key)), ..wanted };
        let listing = self.places.outside(observe::list_tags(&self.registry, &asked, wanted)).await;
        let listing = listing.ok_or_else(stopping)??;
        self.host_answers(spec.repository.host());
        Ok((asked, listing))
    }

    /// Asks the registry and decides; also answers the webhook's question, so it writes nothing.
    pub(super) async fn choose(
        &self,
        key: &ImageKey,
        image: &Image,
        status: &ImageStatus,
        spec: &CompiledSpec,
        access: Option<&PullAccess>,
        wanted: Wanted,
    ) -> Result<Chosen, Failure> {
        let (asked, listing) = self.listed(key, image, spec, access, wanted).await?;
        let tags: Vec<&str> = listing.tags().collect();
        let rejections = self.world.rejections(image);
        let rejected = Rejected::tags(&rejections);
        let stamped = self.newest_stamp(image, spec, &rejected);
        let frozen = self.frozen(&key.namespace);
        // Where a newer tag may have to wait, what the manifest says counts as chosen meanwhile.
        let gated = spec.asks_approval() || spec.gates.any() || frozen.is_some();
        let stamped = stamped.or_else(|| gates::own_tag(spec, &tags).filter(|_| gated));
        let stamped = stamped.filter(|stamped| !stamped.is_in(&rejected));
        let known = Known {
            settled: status.tag.as_deref(),
            in_flight: status.rollout.as_ref().map(|r| r.tag.as_str()),
            followed: status.base_tag.as_deref(),
            stamped: stamped.as_ref(),
            of_one_text: managed::is_managed(&image.metadata),
            rejected: Some(&rejected),
        };
        let now = self.now();
        let nothing_runs = known.settled.is_none() && known.in_flight.is_none() && known.stamped.is_none();
        // Nobody asked a frozen namespace to be without tags: the first one rolls nothing.
        let frozen = frozen.filter(|_| !nothing_runs);
        let gate = Gate {
            brake: spec.gates.suspended().or_else(|| frozen.clone()),
            closed: spec.gates.closed(now).or(frozen),
            min_age: spec.gates.min_age,
            seen: status.seen.clone(),
            now,
            approved: Request::of(image, status).approve,
            asked: status.asked.clone(),
        };
        let given = Given::new(key, spec, status, known, &tags, gate);
        let mut chosen = self
            .places
            .outside(Box::pin(self.verified(image, &given, &asked.request)))
            .await
            .ok_or_else(stopping)??;
        if let Outcome::Tag(choice) = &mut chosen.outcome {
            let refused = decide::refused(spec, known, &tags, &choice.tag);
            let of = |r: &&Rejected| Some(&r.tag) == refused.as_ref() || r.tag.starts_with(&format!("{}@", choice.tag));
            choice.rejected = rejections.iter().rev().find(of).map(status::rejected_in_words);
        }
        Ok(chosen)
    }

    /// The newest that stamps of its users name for this repository (an Image that lost its status adopts it).
    fn newest_stamp(&self, image: &Image, spec: &CompiledSpec, rejected: &BTreeSet<String>) -> Option<Tagged> {
        let order = api::Order::from(spec);
        let users = self.world.users_of(image);
        let stamps = users.iter().flat_map(|user| user.containers.iter().filter_map(|c| user.workload.stamp(c)));
        let stamped = stamps.filter_map(|stamp| {
            let reference = crate::policy::Reference::parse(&stamp.reference).ok()?;
            let tagged = Tagged::of(&reference);
            // One that no rule can compare is nothing to start from.
            let comparable = order.compare(&tagged.tag, &tagged.tag).is_some() && !tagged.is_in(rejected);
            (comparable && reference.repository() == &spec.repository).then_some(tagged)
        });
        stamped.max_by(|a, b| order.compare(&a.tag, &b.tag).unwrap_or_else(|| a.tag.cmp(&b.tag)))
    }

    pub(super) fn subject<'a>(
        &self,
        image: &'a Image,
        status: &ImageStatus,
        compiled: Option<&CompiledSpec>,
    ) -> Subject<'a> {
        let repository = Repository::parse(&image.spec.image).ok();
        let used = !self.world.users_of(image).is_empty();
        Subject {
            uid: image.metadata.uid.as_deref().unwrap_or_default(),
            generation: image.metadata.generation,
            repository: repository.map(|r| r.to_string()),
            unsupported: {
                let mut unsupported = compiled.map(|c| c.unsupported.clone()).unwrap_or_default();
                unsupported.extend(api::unsupported_annotations(image.annotations()));
                unsupported.extend(self.unrollable(image));
                unsupported
            },
            pin: api::pins_digest(&image.spec),
            follows: compiled.and_then(|spec| spec.tag_to_follow().map(str::to_owned)),
            used,
            closed: self.closed(image, status),
            now: self.now(),
        }
    }

    /// Why no rollout of an Image may start now. Windows do not hold back what somebody approved.
    pub(super) fn closed(&self, image: &Image, status: &ImageStatus) -> Option<Closed> {
        let approved = status.rollout.as_ref().is_some_and(|rollout| rollout.approved);
        self.closed_for(image, approved)
    }

    fn closed_for(&self, image: &Image, approved: bool) -> Option<Closed> {
        let closed = match api::Gates::parse(&image.spec) {
            Err(error) => Some(Closed::from(&error)),
            Ok(gates) if approved => gates.suspended(),
            Ok(gates) => gates.closed(self.now()),
        };
        closed.or_else(|| self.frozen(image.metadata.namespace.as_deref().unwrap_or_default()))
    }

    /// What held a tag back does so no longer: a sync is due, or it is tried again already.
    fn gate_opened(
        &self,
        key: &ImageKey,
        image: &Image,
        status: &ImageStatus,
        spec: Option<&CompiledSpec>,
        now: Timestamp,
    ) -> Option<Wanted> {
        let approved = image.annotations().contains_key(APPROVE);
        let open = || self.closed(image, status).is_none() || (approved && self.closed_for(image, true).is_none());
        let spec = spec.filter(|_| status::was_closed(status) && open())?;
        self.free_waiting();
        let fails = self.memos().get(key).is_some_and(|memo| memo.failures > 0);
        (!fails).then(|| Wanted::shared_list(Asker::Schedule, spec, now))
    }
}

/// What everybody hears whom kimup's end interrupts.
fn stopping() -> Failure {
    let message = "kimup is stopping".to_owned();
    Failure { result: SyncResult::Error, reason: "Stopping", message, stalled: false }
}
