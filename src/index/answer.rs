//! What should this container run? Pure: a snapshot and a Pod in, an answer out, in the order of design section 4.

use std::sync::Arc;

use crate::api::annotations::{Map, ROLLOUT, Stamp};
use crate::api::{Applied, Tagged, annotations};
use crate::policy::Reference;

use super::question::Question;
use super::snapshot::{Entry, Snapshot};

/// Labels that name a Pod's revision: the first is set by Deployments, the second by `StatefulSets` and `DaemonSets`.
const REVISION_LABELS: [&str; 2] = ["pod-template-hash", "controller-revision-hash"];

/// What counts of a Pod, whatever its container.
#[derive(Clone, Debug, Default)]
pub struct PodView<'a> {
    namespace: &'a str,
    annotations: Map,
    applied: Vec<Applied>,
    rollout: Option<String>,
    controller: Option<&'a str>,
    hash: String,
}

impl<'a> PodView<'a> {
    /// `annotations` and `labels` may leave out what is not kimup's and no revision label. `controller` is the UID of
    /// the `ownerReference` with `controller: true`.
    pub fn new(namespace: &'a str, annotations: Map, labels: &Map, controller: Option<&'a str>) -> Self {
        let hash = REVISION_LABELS.iter().find_map(|label| labels.get(*label));
        Self {
            namespace,
            applied: Applied::of(&annotations),
            rollout: labels.get(ROLLOUT).cloned(),
            controller,
            hash: hash.cloned().unwrap_or_default(),
            annotations,
        }
    }

    /// Whether a label decides something here, so that a caller may leave out the others.
    pub fn needs_label(key: &str) -> bool {
        key == ROLLOUT || REVISION_LABELS.contains(&key)
    }

    /// The namespace.
    pub fn namespace(&self) -> &'a str {
        self.namespace
    }

    /// The annotations it was made of.
    pub fn annotations(&self) -> &Map {
        &self.annotations
    }

    /// The entries of its `applied` annotation.
    pub fn applied(&self) -> &[Applied] {
        &self.applied
    }
}

/// What to do with one container.
#[derive(Clone, Debug)]
pub enum Answer {
    /// Leave it as it is.
    Keep {
        /// What its owner should know.
        warning: Option<String>,
    },
    /// Run `reference` (which may be the text itself) and say so in the `applied` annotation.
    Run {
        /// The image reference.
        reference: String,
        /// The container's entry.
        applied: Applied,
    },
    /// The Image has no tag on record: ask sync, then [`Open::answered`].
    Ask(Open),
    /// The Image has no tag and cannot get one as it is.
    Refuse {
        /// Name of the Image.
        image: String,
        /// What is wrong with it.
        reason: String,
    },
}

const KEEP: Answer = Answer::Keep { warning: None };

/// A container that waits for sync.
#[derive(Clone, Debug)]
pub struct Open {
    /// What to ask.
    pub question: Question,
    entry: Arc<Entry>,
    container: String,
    reference: Reference,
}

impl Open {
    /// The answer, now that sync named a tag.
    pub fn answered(&self, tag: &Tagged) -> Answer {
        newer(&self.entry, &self.container, &self.reference, tag)
    }
}

/// Answers for the container `container` with the image text `text`. No I/O, no clock; one look-up by repository.
pub fn answer(snapshot: &Snapshot, pod: &PodView<'_>, container: &str, text: &str) -> Answer {
    let Ok(reference) = Reference::parse(text) else {
        return KEEP;
    };
    if reference.digest().is_some() {
        return KEEP;
    }
    let entry = snapshot.image(pod.namespace, reference.repository());
    if let Some(stamp) = Stamp::of(&pod.annotations, container) {
        return stamped(pod, container, &reference, &stamp, text, entry);
    }
    let Some(entry) = entry else {
        return KEEP;
    };
    if is_answered(pod, container, &reference) {
        return KEEP;
    }
    if let Some(reference) = recorded(pod, container, &reference, text, entry) {
        return reference;
    }
    match (&entry.tag, entry.gate, &entry.error) {
        (Some(tag), _, _) => newer(entry, container, &reference, &Tagged::new(tag, entry.digest.as_deref())),
        (None, _, Some(error)) => Answer::Refuse { image: entry.name.clone(), reason: error.clone() },
        (None, Some(gate), None) => Answer::Keep {
            warning: Some(format!(
                "container {container:?} keeps its own tag: Image {}/{} has no tag yet, and {gate}, which this version \
                 does not act on, keeps it from choosing one",
                pod.namespace, entry.name
            )),
        },
        (None, None, None) => Answer::Ask(Open {
            question: Question { namespace: pod.namespace.to_owned(), image: entry.name.clone() },
            entry: Arc::clone(entry),
            container: container.to_owned(),
            reference,
        }),
    }
}

fn stamped(
    pod: &PodView<'_>,
    container: &str,
    reference: &Reference,
    stamp: &Stamp,
    text: &str,
    entry: Option<&Arc<Entry>>,
) -> Answer {
    if stamp.text != text {
        return KEEP; // a human changed the manifest since: sync decides what that means
    }
    let Some(target) = same_repository(reference, &stamp.reference) else {
        return Answer::Keep {
            warning: Some(format!(
                "container {container:?}: annotation {} names {:?}, which is no image of {}; the container keeps its \
                 image",
                annotations::stamp_key(container),
                stamp.reference,
                reference.repository()
            )),
        };
    };
    let image = entry.map(|entry| entry.name.clone());
    run(container, reference, &target, image, stamp.reference.clone(), pod.rollout.clone())
}

/// A reference that may be run for another: it parses and is of the same repository. Nobody who may write annotations
/// or a status gets another image into a Pod that way.
fn same_repository(of: &Reference, text: &str) -> Option<Reference> {
    let target = Reference::parse(text).ok()?;
    (target.repository() == of.repository()).then_some(target)
}

/// Whether admission answered for this container before and somebody sends the Pod again (reinvocation).
fn is_answered(pod: &PodView<'_>, container: &str, reference: &Reference) -> bool {
    let entry = pod.applied.iter().find(|a| a.container == container);
    entry.is_some_and(|entry| reference.tag() == Some(&entry.to))
}

fn recorded(pod: &PodView<'_>, container: &str, reference: &Reference, text: &str, entry: &Entry) -> Option<Answer> {
    let stamp = entry.record(pod.controller?, &pod.hash, container)?;
    if stamp.text != text {
        return None;
    }
    let target = same_repository(reference, &stamp.reference)?;
    let image = Some(entry.name.clone());
    Some(run(container, reference, &target, image, stamp.reference, None))
}

fn newer(entry: &Entry, container: &str, reference: &Reference, settled: &Tagged) -> Answer {
    let to = entry.order.newer_of(reference.tag(), &settled.tag);
    // Of another tag than the Image's no digest is known.
    let image = if to == settled.tag { settled.image(reference) } else { reference.with_tag(to) };
    Answer::Run {
        reference: image,
        applied: Applied {
            container: container.to_owned(),
            from: reference.tag().map(str::to_owned),
            to: to.to_owned(),
            image: Some(entry.name.clone()),
            rollout: None,
        },
    }
}

fn run(
    container: &str,
    own: &Reference,
    target: &Reference,
    image: Option<String>,
    reference: String,
    rollout: Option<String>,
) -> Answer {
    // A reference by digest alone has no tag to name.
    let to = target.tag().or(target.digest()).unwrap_or("latest");
    let applied = Applied {
        container: container.to_owned(),
        from: own.tag().map(str::to_owned),
        to: to.to_owned(),
        image,
        rollout,
    };
    Answer::Run { reference, applied }
}

#[cfg(test)]
mod tests;
