//! `action: retry`: every Image of a group forgets what the group rejected, and none of them gives it back to the others.
//!
//! The annotation itself is what the group goes by, so that it counts from the moment it is seen, and after a restart: while
//! it stands, each Image forgets, and nobody records or takes over a rejected tag. It goes once nobody remembers any. What is
//! rejected meanwhile waits for that, a second at most, and then counts. An Image that cannot forget (its status is refused) is
//! waited for no longer than [`LIMIT`], as nothing of the group goes back meanwhile: what it knows stays rejected, and who asked
//! is told.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::annotations::{ACTION, RETRY};
use crate::api::{Image, ImageStatus};
use crate::notify::{Audit, Reason};

use super::engine::{Key, Sync};
use super::report;
use super::request;
use super::world::{Cached, ImageKey, status_of};
use super::write::{self, WriteError};

/// Pause until the other Images of a group have forgotten what they rejected.
const PAUSE: Duration = Duration::from_millis(300);
/// How long they may take for that.
const LIMIT: Duration = Duration::from_secs(30);

/// An Image of a group, as far as this goes.
#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// `action: retry` stands on it.
    asks: bool,
    /// It has rejected tags on record.
    remembers: bool,
    /// It may be recording one right now.
    records: bool,
}

/// What an Image does about what its group rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It records and takes over: nobody wants anything tried again.
    Learn,
    /// It forgets.
    Forget,
    /// It learns nothing: others have not forgotten yet.
    Wait,
    /// Everybody has forgotten: the request is done.
    Done,
}

fn step(own: Member, others: &[Member]) -> Step {
    if !own.asks && !others.iter().any(|other| other.asks) {
        Step::Learn
    } else if own.remembers {
        Step::Forget
    } else if others.iter().any(|other| other.holds_up()) {
        Step::Wait
    } else {
        Step::Done
    }
}

impl Member {
    fn holds_up(self) -> bool {
        self.remembers || self.records
    }
}

/// How far an Image's own request is.
#[derive(Clone, Debug)]
pub(super) struct Retrying {
    since: Instant,
    /// Who was asked to look at once. No second time: who cannot forget has a pause of its own between its tries.
    asked: BTreeSet<ImageKey>,
}

impl Retrying {
    fn new(now: Instant) -> Self {
        Self { since: now, asked: BTreeSet::new() }
    }

    fn is_over(&self, now: Instant) -> bool {
        now.duration_since(self.since) >= LIMIT
    }

    /// Those of them that were not asked before.
    fn ask(&mut self, of: &[ImageKey]) -> Vec<ImageKey> {
        of.iter().filter(|key| self.asked.insert((*key).clone())).cloned().collect()
    }
}

/// While it is there, an Image may be recording a rejected tag. To be made before it is asked whether it may.
pub(super) struct Recording<'a> {
    sync: &'a Sync,
    key: ImageKey,
}

impl<'a> Recording<'a> {
    pub(super) fn new(sync: &'a Sync, key: &ImageKey) -> Self {
        sync.recording().insert(key.clone());
        Self { sync, key: key.clone() }
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        self.sync.recording().remove(&self.key);
    }
}

impl Sync {
    /// Does what `action: retry` on an Image of the group asks for. Returns the Image as it is then; none if that is its own
    /// request, and others have to forget first.
    pub(super) async fn retry(&self, key: &ImageKey, mut image: Arc<Image>) -> Result<Option<Arc<Image>>, WriteError> {
        let asking = self.world.retried(&image);
        let mut own = Member {
            asks: image.annotations().get(ACTION).is_some_and(|action| action == RETRY),
            remembers: !status_of(&image).rejected.is_empty(),
            records: false, // that is done under its key, as this is
        };
        let over = self.is_over(key, own.asks);
        let Some(asks) = asking.first() else {
            return Ok(Some(image));
        };
        if own.remembers {
            match self.forget_rejected(key, &image, asks).await {
                Ok(forgot) => (image, own.remembers) = (forgot, false),
                Err(WriteError::Refused(_) | WriteError::Failed(_)) if over => {}
                Err(error) => {
                    if own.asks {
                        self.queue.add(Key::Image(key.clone()), Instant::now() + LIMIT);
                    }
                    return Err(error);
                }
            }
        }
        let key_of = |other: &Image| ImageKey { namespace: key.namespace.clone(), name: other.name_any() };
        let group = self.world.group_of(&image);
        let mut members = Vec::new();
        for other in group.iter().filter(|other| other.metadata.uid != image.metadata.uid) {
            members.push((key_of(other), self.member(&key_of(other), other)));
        }
        let all: Vec<Member> = members.iter().map(|(_, member)| *member).collect();
        let held_up = members.into_iter().filter(|(_, member)| member.holds_up()).map(|(key, _)| key);
        match step(own, &all) {
            Step::Wait if own.asks && !over => {
                self.have_forget(key, &held_up.collect::<Vec<_>>());
                self.look_after_retry(key);
                return Ok(None);
            }
            Step::Wait | Step::Forget if own.asks => {
                let own = own.remembers.then(|| key.clone());
                let left: Vec<String> = own.into_iter().chain(held_up).map(|key| key.name).collect();
                self.give_up(key, &image, &left.join(", ")).await;
            }
            Step::Done if own.asks => {}
            _ => return Ok(Some(image)),
        }
        write::remove_action(self, key, &image).await?;
        // What they may try again they learn from a sync; and what was rejected meanwhile has waited.
        for other in &group {
            self.memos().entry(key_of(other)).or_default().forced = true;
            self.queue.add_now(Key::Image(key_of(other)));
        }
        let now = self.world.image(key);
        Ok(Some(if let Some(Cached::Read(image)) = now { image } else { image }))
    }

    /// Whether an Image has asked for so long that it goes on without those that have not forgotten.
    fn is_over(&self, key: &ImageKey, asks: bool) -> bool {
        let (mut memos, now) = (self.memos(), Instant::now());
        if asks {
            let memo = memos.entry(key.clone()).or_default();
            return memo.retrying.get_or_insert_with(|| Retrying::new(now)).is_over(now);
        }
        if let Some(memo) = memos.get_mut(key) {
            memo.retrying = None;
        }
        false
    }

    /// Has others forget, each asked once.
    fn have_forget(&self, key: &ImageKey, others: &[ImageKey]) {
        let mut memos = self.memos();
        let retrying = memos.entry(key.clone()).or_default().retrying.as_mut();
        let new = retrying.map(|retrying| retrying.ask(others)).unwrap_or_default();
        drop(memos);
        for other in new {
            self.queue.add_now(Key::Image(other));
        }
    }

    /// Says who has not forgotten, and that it is not waited for any longer.
    async fn give_up(&self, key: &ImageKey, image: &Image, left: &str) {
        let tags: Vec<String> = self.world.rejections(image).into_iter().map(|rejected| rejected.tag).collect();
        let (tags, limit) = (tags.join(", "), humantime::format_duration(LIMIT));
        tracing::warn!(image = %key, left, tags, "action: retry is over without all Images of the group; what these have rejected stays rejected");
        let note = format!(
            "{}: not tried again: {tags}; Image {left} could not forget that within {limit}: the log of sync says why its status is not written; then again: kubectl annotate image {} {ACTION}={RETRY}",
            image.spec.image, key.name,
        );
        self.events.say(&report::reference(image), Reason::TagRejected, &note).await;
    }

    /// Has an Image looked at again when a retry of its group may be done.
    pub(super) fn look_after_retry(&self, key: &ImageKey) {
        self.queue.add(Key::Image(key.clone()), Instant::now() + PAUSE);
    }

    fn member(&self, key: &ImageKey, image: &Image) -> Member {
        Member {
            asks: image.annotations().get(ACTION).is_some_and(|action| action == RETRY),
            remembers: !status_of(image).rejected.is_empty(),
            records: self.recording().contains(key),
        }
    }

    /// Forgets what an Image rejected, as `asks` wants it; returns it as it is then.
    async fn forget_rejected(
        &self,
        key: &ImageKey,
        image: &Arc<Image>,
        asks: &Image,
    ) -> Result<Arc<Image>, WriteError> {
        let old = status_of(image);
        let tags: Vec<&str> = old.rejected.iter().map(|rejected| rejected.tag.as_str()).collect();
        let (name, tags) = (format!("Image {key}"), tags.join(", "));
        let written = write::status(self, key, image, &ImageStatus { rejected: Vec::new(), ..old.clone() }).await?;
        let note = format!("{}: rejected tags may be tried again: {tags}", image.spec.image);
        self.events.say(&report::reference(&written), Reason::Retried, &note).await;
        let (from, by) = (&tags, &request::who(asks, ACTION));
        Audit { image: &name, workload: "", what: "retry", from, to: "", digest: "", rule: "", rollout: "", by }.log();
        self.queue_users(key, &written);
        Ok(written)
    }
}

#[cfg(test)]
mod tests;
