//! Answers for a container of which the webhook knows no Image: annotations may ask for one that is not made yet.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::time::Instant;

use crate::api::annotated::{PodHash, bare_image_name, owners_of};
use crate::api::{Image, Order, Rejected};
use crate::index::Holds;
use crate::index::question::{Answered, PodQuestion, Question};
use crate::policy::{Reference, Repository};
use crate::rollout::PullAccess;
use crate::sync::engine::{Key, Sync};
use crate::sync::managed;
use crate::sync::source::{Source, SourceKey, SourceKind};
use crate::sync::world::{Cached, ImageKey, World, status_of};

use super::{Asked, on_record};

/// What is known of a container's Image.
enum Found {
    /// It is there.
    Made(Arc<Image>),
    /// It is wanted. `by`: who asks for it; none if nobody does before the Pod is there.
    Unmade { image: Box<Image>, access: PullAccess, by: Option<SourceKey> },
    /// The Pod's owner is not known here yet, or as it was before. `alone`: the Pod tells enough by itself.
    Behind { alone: bool },
    /// No policy means the container.
    NotCovered,
}

/// Whose annotations count for a Pod.
enum Owner {
    Known(Arc<Source>),
    Unknown,
    Nobody,
}

impl Sync {
    pub(super) async fn answer_pod(&self, question: &Question, pod: &PodQuestion) -> Result<Answered, String> {
        let Some(text) = Reference::parse(&pod.text).ok().filter(|text| text.digest().is_none()) else {
            return Ok(Answered::not_covered());
        };
        let deadline = Instant::now() + self.options.question_timeout;
        let patience = Instant::now() + self.options.question_timeout / 2;
        let mut changed = self.world.changed();
        let mut asked: Option<Key> = None;
        let mut first: Option<Asked<'_>> = None;
        let found = loop {
            changed.mark_unchanged();
            let found = find(&self.world, &question.namespace, pod, &text);
            match &found {
                Found::Made(image) => _ = first.get_or_insert_with(|| Asked::new(self, key_of(image))),
                Found::Unmade { image, .. } => _ = first.get_or_insert_with(|| Asked::new(self, key_of(image))),
                Found::Behind { .. } | Found::NotCovered => {}
            }
            // The leader makes the Image and records its tag any moment.
            let (key, until) = match &found {
                Found::NotCovered | Found::Unmade { by: None, .. } => break found,
                Found::Made(image) => match on_record(image) {
                    Some(answered) => {
                        return Ok(spoken(answered, question, pod, (image, &self.rejected(image)), &text));
                    }
                    None => {
                        (Some(Key::Image(key_of(image))), if self.leadership.is_leader() { deadline } else { patience })
                    }
                },
                Found::Unmade { by, .. } => (by.clone().map(Key::Source), patience),
                Found::Behind { .. } => (None, patience),
            };
            if let Some(key) = key.filter(|key| self.leadership.is_leader() && asked.as_ref() != Some(key)) {
                self.queue.add_now(key.clone());
                asked = Some(key);
            }
            match tokio::time::timeout_at(until, changed.changed()).await {
                Ok(Ok(())) => {}
                _ => break found,
            }
        };
        let (image, access) = match found {
            Found::Made(image) => (image.as_ref().clone(), self.world.access_of(&image)),
            Found::Unmade { image, access, .. } => (*image, Some(access)),
            Found::Behind { alone: true } => match ahead_of_owner(question, pod) {
                Some(image) => (image, Some(access(pod))),
                None => return Ok(Answered::not_covered()),
            },
            Found::Behind { alone: false } | Found::NotCovered => return Ok(Answered::not_covered()),
        };
        let answered = self.decide_alone(&key_of(&image), &image, access.as_ref(), deadline).await?;
        Ok(spoken(answered, question, pod, (&image, &self.rejected(&image)), &text))
    }
}

fn find(world: &World, namespace: &str, pod: &PodQuestion, text: &Reference) -> Found {
    let source = match owner(world, namespace, pod) {
        Owner::Known(source) => source,
        Owner::Unknown => return Found::Behind { alone: true },
        Owner::Nobody => return find_bare(world, namespace, pod),
    };
    let about = |image: &str| Repository::parse(image).is_ok_and(|repository| repository == *text.repository());
    let made = |name: &str| {
        let key = ImageKey { namespace: namespace.to_owned(), name: name.to_owned() };
        match world.image(&key) {
            Some(Cached::Read(image)) if managed::is_made_for(&image, &source) => Some(image),
            _ => None,
        }
    };
    if let Some((name, spec)) = source.wish.images.get(&pod.container) {
        if !about(&spec.image) {
            return Found::Behind { alone: false }; // or somebody else rewrites images
        }
        return match made(name).filter(|image| about(&image.spec.image)) {
            Some(image) => Found::Made(image),
            None => Found::Unmade {
                image: Box::new(managed::unwritten(namespace, Some(&source), name, spec)),
                access: source.access.clone(),
                by: Some(source.key.clone()),
            },
        };
    }
    if source.wish.unclear.contains(&pod.container) {
        let image = made(&source.image_name(&pod.container)).filter(|image| about(&image.spec.image));
        return image.map_or(Found::NotCovered, Found::Made);
    }
    if source.wish.off.contains(&pod.container) {
        return Found::NotCovered;
    }
    // The Pod was made from a template that has a policy: this one may be the one before.
    if pod.spec.is_some() || !source.wish.any_policy {
        return Found::Behind { alone: true };
    }
    Found::NotCovered
}

fn find_bare(world: &World, namespace: &str, pod: &PodQuestion) -> Found {
    let Some(image) = by_itself(namespace, pod) else {
        return Found::NotCovered;
    };
    match world.image(&key_of(&image)) {
        Some(Cached::Read(made))
            if managed::source_of(namespace, &made.metadata).is_some_and(|of| of.kind == SourceKind::Pod) =>
        {
            Found::Made(made)
        }
        _ => Found::Unmade { image: Box::new(image), access: access(pod), by: None },
    }
}

fn owner(world: &World, namespace: &str, pod: &PodQuestion) -> Owner {
    let Some(controller) = &pod.controller else {
        return Owner::Nobody;
    };
    let known =
        |kind, name: &str| world.source(&SourceKey { kind, namespace: namespace.to_owned(), name: name.to_owned() });
    let source = if controller.kind == SourceKind::Job.as_str() {
        match world.cron_job_of(namespace, &controller.name, &controller.uid) {
            Some(cron_job) => known(SourceKind::CronJob, &cron_job),
            None => known(SourceKind::Job, &controller.name).filter(|job| job.uid == controller.uid),
        }
    } else {
        let hash = PodHash { value: &pod.hash, of_rollout: pod.of_rollout };
        let owners = owners_of(&controller.kind, &controller.name, hash);
        let Some((kind, name)) = owners.first() else {
            return Owner::Nobody;
        };
        SourceKind::owner(kind).and_then(|kind| known(kind, name))
    };
    source.map_or(Owner::Unknown, Owner::Known)
}

/// The Image that the Pod's own annotations ask for.
fn by_itself(namespace: &str, pod: &PodQuestion) -> Option<Image> {
    let spec = pod.spec.as_ref()?;
    let name = bare_image_name(&pod.container, spec);
    Some(managed::unwritten(namespace, None, &name, spec))
}

/// The same for a Pod whose owner is not known here yet, named as the owner's will be: that one has the Pod's revision on
/// record later, by the name that the Pod carries.
fn ahead_of_owner(question: &Question, pod: &PodQuestion) -> Option<Image> {
    let mut image = by_itself(&question.namespace, pod)?;
    image.metadata.name = Some(question.image.clone());
    Some(image)
}

fn access(pod: &PodQuestion) -> PullAccess {
    PullAccess { secrets: pod.pull_secrets.clone(), service_account: pod.service_account.clone() }
}

fn key_of(image: &Image) -> ImageKey {
    let metadata = &image.metadata;
    let (namespace, name) = (metadata.namespace.clone(), metadata.name.clone());
    ImageKey { namespace: namespace.unwrap_or_default(), name: name.unwrap_or_default() }
}

impl Sync {
    fn rejected(&self, image: &Image) -> BTreeSet<String> {
        Rejected::tags(&self.world.rejections(image))
    }
}

/// The answer as the Pod's container needs it: where a person holds its workload, else the newer of its own tag and the
/// Image's. `rejected` is what its group has rejected.
fn spoken(
    answered: Answered,
    question: &Question,
    pod: &PodQuestion,
    (image, rejected): (&Image, &BTreeSet<String>),
    text: &Reference,
) -> Answered {
    let status = status_of(image);
    let order = Order::of(&image.spec).following(&status).of_one_text(true);
    let name = image.metadata.name.clone().filter(|name| *name != question.image);
    let hash = PodHash { value: &pod.hash, of_rollout: pod.of_rollout };
    let owners = pod.controller.as_ref().map(|owner| owners_of(&owner.kind, &owner.name, hash)).unwrap_or_default();
    if let Some((tag, _)) = Holds::of(&status).at(rejected, &order, &owners, &pod.container, text.tag()) {
        return Answered { tag: Some(tag.to_string()), reason: "held".to_owned(), image: name, ..answered };
    }
    let tag = answered.tag.map(|tag| {
        let bare = tag.split('@').next().unwrap_or_default();
        let newer = order.newer_of(text.tag(), bare);
        // Of an own tag no digest is known.
        if newer == bare { tag.clone() } else { newer.to_owned() }
    });
    Answered { tag, image: name, ..answered }
}

#[cfg(test)]
mod tests;
