//! Answers the webhook's question: which tag should Pods of an Image run that has none on record yet?
//!
//! Read-only: the answer comes from the status as soon as there is one, else from a decision that nobody writes.

use std::collections::hash_map::Entry;
use std::time::Duration;

use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::api::{self, Image, SyncResult, Tagged, condition};
use crate::index::question::{Answered, Ask, Question};
use crate::policy::Repository;
use crate::registry::Asker;
use crate::rollout::PullAccess;

use super::decide::Choice;
use super::engine::{Key, Sync};
use super::pace::Wanted;
use super::status::{self, Outcome};
use super::world::{Cached, ImageKey, status_of};

mod pod;

impl Ask for Sync {
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answered, String>> {
        self.answer(question).boxed()
    }
}

impl Sync {
    async fn answer(&self, question: Question) -> Result<Answered, String> {
        if let Some(pod) = &question.pod {
            return self.answer_pod(&question, pod).await;
        }
        let key = ImageKey { namespace: question.namespace, name: question.image };
        let deadline = Instant::now() + self.options.question_timeout;
        // The leader records the tag any moment; only if it does not, a replica decides for itself.
        let patience = Instant::now() + self.options.question_timeout / 2;
        let mut changed = self.world.changed();
        let _asked = Asked::new(self, key.clone());
        if self.leadership.is_leader() {
            self.queue.add_now(Key::Image(key.clone()));
        }
        loop {
            changed.mark_unchanged();
            let image = match self.world.image(&key) {
                Some(Cached::Read(image)) => Some(image),
                Some(Cached::Broken(_, error)) => {
                    return Err(format!("Image {key} cannot be read: {error}"));
                }
                None => None, // this replica's watch may be behind the webhook's
            };
            if let Some(answer) = image.as_deref().and_then(on_record) {
                return Ok(answer);
            }
            let until = if self.leadership.is_leader() { deadline } else { patience };
            if !matches!(tokio::time::timeout_at(until, changed.changed()).await, Ok(Ok(()))) {
                let image = image.ok_or_else(|| format!("Image {key} is not known here yet"))?;
                let access = self.world.access_of(&image);
                return self.decide_alone(&key, &image, access.as_ref(), deadline).await;
            }
        }
    }

    async fn decide_alone(
        &self,
        key: &ImageKey,
        image: &Image,
        access: Option<&PullAccess>,
        deadline: Instant,
    ) -> Result<Answered, String> {
        let spec = api::compile(&image.spec, Timestamp::now()).map_err(|e| format!("Image {key}: {e}"))?;
        let status = status_of(image);
        let wanted = Wanted::shared_list(Asker::Question, &spec, self.now());
        // Even with the time used up a cached token and a near registry can still answer.
        let deadline = deadline.max(Instant::now() + Duration::from_millis(50));
        match tokio::time::timeout_at(deadline, self.choose(key, image, &status, &spec, access, wanted)).await {
            Ok(Ok(chosen)) => Ok(match chosen.outcome {
                Outcome::Tag(Choice { tag, why, adopted, digest, .. }) => {
                    let tagged = status::pinned(spec.pin, &adopted.unwrap_or(Tagged { tag, digest }));
                    Answered::new(Some(tagged.to_string()), why)
                }
                Outcome::Waiting(waits) => Answered::new(None, waits.for_the_first()),
                Outcome::Failed(failure) => Answered::new(None, failure.message),
            }),
            Ok(Err(failure)) => Ok(Answered::new(None, failure.message)),
            Err(_) => Err(format!("Image {key}: the registry did not answer in time")),
        }
    }
}

/// While it lives, the registry is asked for the Image ahead of the schedule.
struct Asked<'a> {
    sync: &'a Sync,
    key: ImageKey,
}

impl<'a> Asked<'a> {
    fn new(sync: &'a Sync, key: ImageKey) -> Self {
        *sync.asked().entry(key.clone()).or_default() += 1;
        // Its listing may wait for its turn already.
        if let Some(Cached::Read(image)) = sync.world.image(&key)
            && let Ok(repository) = Repository::parse(&image.spec.image)
        {
            sync.registry.hurry(&repository);
        }
        Self { sync, key }
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if let Entry::Occupied(mut waiting) = self.sync.asked().entry(self.key.clone()) {
            *waiting.get_mut() -= 1;
            if *waiting.get() == 0 {
                waiting.remove();
            }
        }
    }
}

/// What the status says: a tag, or why there is none.
fn on_record(image: &Image) -> Option<Answered> {
    let status = status_of(image);
    if let Some(tag) = status.tag {
        let settled = status::pinned(api::pins_digest(&image.spec), &Tagged { tag, digest: status.digest });
        return Some(Answered::new(Some(settled.to_string()), "settled"));
    }
    if matches!(status.result, None | Some(SyncResult::Scheduled)) {
        return None;
    }
    let current = status.observed_generation == image.metadata.generation;
    let ready = status.conditions.into_iter().find(|c| c.type_ == condition::READY && c.status == "False")?;
    current.then(|| Answered::new(None, ready.message))
}
