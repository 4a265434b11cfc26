//! Follows annotations: writes and deletes the Images that an annotated object asks for, and says what is wrong.

use std::sync::Arc;
use std::time::Duration;

use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use tokio::time::Instant;

use crate::api::{Image, ImageSpec};
use crate::notify::Reason;

use super::engine::{Key, Sync};
use super::managed::{self, FIELD_MANAGER, Fate, Step};
use super::source::{Source, SourceKey, SourceKind};
use super::world::{Cached, ImageKey};
use super::write::{WriteError, call};

/// Pause after a conflict: the watch needs a moment to bring what we lost against.
const CONFLICT_PAUSE: Duration = Duration::from_millis(200);
/// Pause after a write that failed.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);

impl Sync {
    /// Handles one annotated object, or all bare Pods of a namespace. What fails is tried again.
    pub(super) async fn reconcile_source(&self, key: &SourceKey) {
        if !self.leadership.is_leader() {
            return;
        }
        let sources = match key.kind {
            SourceKind::Pod => self.world.bare_pods(&key.namespace),
            _ => self.world.source(key).into_iter().collect(),
        };
        let mut failed = Vec::new();
        for source in sources.iter().filter(|source| !source.deleting) {
            let mut problems = source.wish.problems.clone();
            for (name, spec) in source.wish.images.values() {
                match self.make(source, name, spec).await {
                    Ok(problem) => problems.extend(problem),
                    Err(error) => failed.push(error),
                }
            }
            self.tell(source, problems).await;
        }
        self.told_of(key, &sources);
        for (image_key, image) in self.world.made_for(key) {
            if let Err(error) = self.keep_or_remove(&image_key, &image, &sources).await {
                failed.push(error);
            }
        }
        let Some(pause) = failed.iter().map(pause).max() else {
            return;
        };
        for error in failed.iter().filter(|error| matches!(error, WriteError::Refused(_) | WriteError::Failed(_))) {
            let namespace = &key.namespace;
            tracing::warn!(source = %key, namespace, %error, "cannot write an Image for the annotations; trying again");
        }
        self.queue.add(Key::Source(key.clone()), Instant::now() + pause);
    }

    /// Makes or corrects one Image. Returns what keeps it from that for good, in words for the object's owner.
    async fn make(&self, source: &Source, name: &str, spec: &ImageSpec) -> Result<Option<String>, WriteError> {
        let key = ImageKey { namespace: source.key.namespace.clone(), name: name.to_owned() };
        match self.world.image(&key) {
            Some(Cached::Read(image)) if managed::step(Some(&image), source, name, spec) == Step::Nothing => {
                return Ok(None);
            }
            Some(Cached::Broken(..)) => return Ok(None), // said on the Image itself
            _ => {}
        }
        let api: Api<Image> = Api::namespaced(self.client.clone(), &key.namespace);
        let stored = call(api.get_opt(name)).await?;
        let body = match managed::step(stored.as_ref(), source, name, spec) {
            Step::Nothing => return Ok(None),
            Step::Foreign => {
                return Ok(Some(format!(
                    "Image {key} was not made for this object; delete it or give it another name"
                )));
            }
            Step::Remake => {
                if let Some(earlier) = stored {
                    self.delete(&key, &earlier).await?;
                }
                return Err(WriteError::Conflict);
            }
            Step::Apply(body) => body,
        };
        if !self.leadership.is_leader() {
            return Err(WriteError::NotLeader);
        }
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let written = match call(api.patch(name, &params, &Patch::Apply(body))).await {
            Err(WriteError::Refused(cause)) => return Ok(Some(format!("Image {key} cannot be written: {cause}"))),
            other => other?,
        };
        self.metrics.kubernetes_write("Image");
        self.world.put_image(&key, Cached::Read(Arc::new(written)));
        self.queue.add_now(Key::Image(key));
        Ok(None)
    }

    async fn keep_or_remove(&self, key: &ImageKey, image: &Image, sources: &[Arc<Source>]) -> Result<(), WriteError> {
        match managed::fate(image, sources) {
            Fate::Stays => {}
            Fate::Goes => {
                self.delete(key, image).await?;
                tracing::info!(image = %key, "nothing asks for the Image any more; it is removed");
            }
            Fate::OptedOut(source, container) => {
                self.delete(key, image).await?;
                let note = format!(
                    "container {container} has no policy any more: Image {key} is removed, Pods that run stay as they \
                     are, new ones start with the manifest's own tag unless another Image covers them or, where they are \
                     opted in still, a rollout has stamped them"
                );
                self.events.say(&source.reference(), Reason::OptedOut, &note).await;
            }
        }
        Ok(())
    }

    /// Deletes an Image, provided nothing changed since it was read.
    async fn delete(&self, key: &ImageKey, image: &Image) -> Result<(), WriteError> {
        if !self.leadership.is_leader() {
            return Err(WriteError::NotLeader);
        }
        let api: Api<Image> = Api::namespaced(self.client.clone(), &key.namespace);
        let preconditions = Preconditions { uid: image.uid(), resource_version: image.resource_version() };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        call(api.delete(&key.name, &params)).await?;
        self.metrics.kubernetes_write("Image");
        Ok(())
    }

    /// Says what is wrong with an object's annotations, each thing once.
    async fn tell(&self, source: &Source, problems: Vec<String>) {
        let known = {
            let mut told = self.told();
            let known = told.remove(&source.key).filter(|(uid, _)| *uid == source.uid);
            if !problems.is_empty() {
                told.insert(source.key.clone(), (source.uid.clone(), problems.clone()));
            }
            known.map(|(_, known)| known).unwrap_or_default()
        };
        let fresh: Vec<String> = problems.into_iter().filter(|problem| !known.contains(problem)).collect();
        if fresh.is_empty() {
            return;
        }
        let unclear = |name: &str| source.wish.unclear.iter().any(|container| source.image_name(container) == name);
        let kept = self.world.made_for(&source.key).iter().any(|(key, _)| unclear(&key.name));
        let kept = if kept { "; the settings before stay in force" } else { "" };
        self.events.say(&source.reference(), Reason::PolicyInvalid, &format!("{}{kept}", fresh.join("; "))).await;
    }

    /// Forgets what was said on objects that are gone.
    fn told_of(&self, key: &SourceKey, sources: &[Arc<Source>]) {
        self.told().retain(|told, _| {
            let concerned = *told == *key
                || (key.kind == SourceKind::Pod && told.kind == key.kind && told.namespace == key.namespace);
            !concerned || sources.iter().any(|source| source.key == *told)
        });
    }

    /// Looks again at the objects of a namespace on which something was said: an Image in the way may have gone.
    pub(super) fn queue_told(&self, namespace: &str) {
        for key in self.told().keys().filter(|key| key.namespace == namespace) {
            let key = if key.kind == SourceKind::Pod { SourceKey::pods(namespace) } else { key.clone() };
            self.queue.add_now(Key::Source(key));
        }
    }

    /// Asks for what a change of an Image that kimup made concerns; false if a person made it.
    pub(super) fn queue_owner(&self, namespace: &str, image: &Cached) -> bool {
        let Some(source) = managed::source_of(namespace, image.metadata()) else {
            return false;
        };
        if let Some(workload) = source.workload() {
            self.queue.add_now(Key::Workload(workload));
        }
        self.queue.add_now(Key::Source(source));
        true
    }
}

/// When to look again.
fn pause(error: &WriteError) -> Duration {
    match error {
        WriteError::Conflict | WriteError::NotLeader => CONFLICT_PAUSE,
        WriteError::Refused(_) | WriteError::Failed(_) => FAILURE_PAUSE,
    }
}
