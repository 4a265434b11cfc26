//! `action: retry`: every Image of a group forgets what the group rejected, and none of them gives it back to the others.
//!
//! The annotation itself is what the group goes by, so that it counts from the moment it is seen, and after a restart: while
//! it stands, each Image forgets, and nobody records or takes over a rejected tag. It goes once nobody remembers any. What is
//! rejected meanwhile waits for that, a second at most, and then counts.

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
    } else if others.iter().any(|other| other.remembers || other.records) {
        Step::Wait
    } else {
        Step::Done
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
        let Some(asks) = asking.first() else {
            return Ok(Some(image));
        };
        let own = Member {
            asks: image.annotations().get(ACTION).is_some_and(|action| action == RETRY),
            remembers: !status_of(&image).rejected.is_empty(),
            records: false, // that is done under its key, as this is
        };
        if own.remembers {
            image = self.forget_rejected(key, &image, asks).await?;
        }
        let own = Member { remembers: false, ..own };
        let group = self.world.group_of(&image);
        let others: Vec<_> = group.iter().filter(|other| other.metadata.uid != image.metadata.uid).collect();
        let key_of = |other: &Image| ImageKey { namespace: key.namespace.clone(), name: other.name_any() };
        let members: Vec<Member> = others.iter().map(|other| self.member(&key_of(other), other)).collect();
        match step(own, &members) {
            Step::Wait if own.asks => {
                for other in others {
                    self.queue.add_now(Key::Image(key_of(other)));
                }
                self.look_after_retry(key);
                Ok(None)
            }
            Step::Done if own.asks => {
                write::remove_action(self, key, &image).await?;
                // What they may try again they learn from a sync; and what was rejected meanwhile has waited.
                for other in &group {
                    self.memos().entry(key_of(other)).or_default().forced = true;
                    self.queue.add_now(Key::Image(key_of(other)));
                }
                let now = self.world.image(key);
                Ok(Some(if let Some(Cached::Read(image)) = now { image } else { image }))
            }
            _ => Ok(Some(image)),
        }
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
