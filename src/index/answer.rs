//! What should this container run? Pure: a snapshot and a Pod in, an answer out, in the order of design section 4. Before
//! the settled tag comes the one that a person holds the workload at.

use std::sync::Arc;

use crate::api::annotations::{self, Stamp};
use crate::api::{Applied, HeldBy, Tagged};
use crate::policy::Reference;

use super::pod::{Opted, PodView, Policy};
use super::question::Question;
use super::snapshot::{Entry, Namespace};

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
        /// The container's entry of the `applied` annotation.
        applied: String,
    },
    /// The Image has no tag on record, or annotations ask for one that is not known: ask sync, then [`Open::answered`]
    /// or [`Open::not_covered`].
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
    /// The Image that is asked for; for a container without a known one, the user's Image of its repository.
    entry: Option<Arc<Entry>>,
    /// The answer if that Image counts and has it on record that the workload is held.
    held: Option<Box<Answer>>,
    container: String,
    reference: Reference,
}

impl Open {
    /// The answer, now that sync named a tag, and perhaps the Image it comes from.
    pub fn answered(&self, tag: &Tagged, image: Option<&str>) -> Answer {
        if self.question.pod.is_none()
            && let Some(entry) = &self.entry
        {
            return newer(entry, &self.container, &self.reference, &tag.tag, tag.digest.as_deref());
        }
        let image = image.filter(|name| is_name(name)).unwrap_or(&self.question.image);
        Answer::Run {
            reference: tag.image(&self.reference),
            applied: Applied {
                container: &*self.container,
                from: self.reference.tag(),
                to: &tag.tag,
                image: Some(image),
                rollout: None,
            }
            .text(),
        }
    }

    /// The answer, now that sync said that no policy means this container: the user's Image is left.
    pub fn not_covered(&self) -> Answer {
        if let Some(held) = &self.held {
            return Answer::clone(held);
        }
        match &self.entry {
            Some(entry) => match entry.tag() {
                Some(tag) => newer(entry, &self.container, &self.reference, tag, entry.digest()),
                None => Answer::Keep {
                    warning: Some(format!(
                        "container {:?} keeps its own tag: Image {} has no tag yet",
                        self.container,
                        entry.name()
                    )),
                },
            },
            None => KEEP,
        }
    }
}

/// The name of an object, so that it can stand in the `applied` annotation.
fn is_name(name: &str) -> bool {
    name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'.') && (1..=253).contains(&name.len())
}

/// Answers for the container `container` with the image text `text`, where `known` is the Pod's namespace. No I/O, no clock;
/// look-ups by name and repository.
pub fn answer(known: Option<&Namespace>, pod: &PodView<'_>, container: &str, text: &str) -> Answer {
    let Ok(reference) = Reference::parse(text) else {
        return KEEP;
    };
    let stamp = Stamp::of(pod.annotations(), container);
    // Stamps may have been put in before, by a MutatingAdmissionPolicy: then the container is taken as it came.
    let before = stamp.as_ref().filter(|stamp| stamp.reference == text).and_then(|stamp| {
        let own = reference.sibling(&stamp.text)?;
        Some((stamp.text.as_str(), own))
    });
    let (text, reference) = before.unwrap_or((text, reference));
    if reference.digest().is_some() {
        return KEEP;
    }
    let opted = match pod.opted(container) {
        Ok(Opted::Out) => return KEEP,
        Ok(opted) => opted,
        Err(error) => {
            let warning = Some(format!("{error}; container {container:?} keeps its own image"));
            return Answer::Keep { warning };
        }
    };
    let made = pod.managed(known, container, &reference);
    let users = known.and_then(|known| known.image(reference.repository()));
    if let Some(stamp) = &stamp {
        let entry = made.or(users);
        // Where nothing opts in any more only the stamp is left: new Pods start with the manifest's own tag.
        let counts = opted == Opted::In || entry.is_some();
        return if counts { stamped(pod, container, &reference, stamp, text, entry) } else { KEEP };
    }
    if opted != Opted::In || is_answered(pod, container, &reference) {
        return KEEP;
    }
    if let Some(answer) = recorded(known, pod, container, &reference, text, [made, users]) {
        return answer;
    }
    if let Some(made) = made {
        return covered(pod, container, reference, made);
    }
    let wanted = match pod.policy(known, container) {
        Policy::None => return users.map_or(KEEP, |entry| covered(pod, container, reference, entry)),
        Policy::Wrong => return KEEP, // the Pod's warnings say why
        Policy::Own(wanted) => Some(wanted),
        Policy::Perhaps => None,
    };
    pod.question(container, text, &reference, wanted).map_or(KEEP, |question| {
        let held = users.and_then(|entry| held(pod, container, &reference, entry)).map(Box::new);
        Answer::Ask(Open { question, entry: users.cloned(), held, container: container.to_owned(), reference })
    })
}

/// The answer for a container of a known Image, but for stamps and records.
fn covered(pod: &PodView<'_>, container: &str, reference: Reference, entry: &Arc<Entry>) -> Answer {
    if let Some(held) = held(pod, container, &reference, entry) {
        return held;
    }
    match (entry.tag(), entry.gate(), entry.error()) {
        (Some(tag), _, _) => newer(entry, container, &reference, tag, entry.digest()),
        (None, _, Some(error)) => Answer::Refuse { image: entry.name().to_owned(), reason: error.to_owned() },
        (None, Some(gate), None) => Answer::Keep {
            warning: Some(format!(
                "container {container:?} keeps its own tag: Image {}/{} has no tag yet, and {gate} may keep it from \
                 choosing one",
                pod.namespace(),
                entry.name()
            )),
        },
        (None, None, None) => Answer::Ask(Open {
            question: Question { namespace: pod.namespace().to_owned(), image: entry.name().to_owned(), pod: None },
            entry: Some(Arc::clone(entry)),
            held: None,
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
        // A human changed the manifest since: sync decides what that means, unless the annotation `hold` does.
        let annotated = entry.filter(|entry| {
            let by = pod.held(entry, container, reference).map(|(_, by)| by);
            by == Some(HeldBy::Annotation) && !is_answered(pod, container, reference)
        });
        return annotated.and_then(|entry| held(pod, container, reference, entry)).unwrap_or(KEEP);
    }
    // Nobody who may write annotations or a status gets another image into a Pod.
    let Some(target) = reference.sibling(&stamp.reference) else {
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
    let image = entry.map(|entry| entry.name());
    run(container, reference, &target, image, stamp.reference.clone(), pod.rollout())
}

/// Whether admission answered for this container before and somebody sends the Pod again (reinvocation).
fn is_answered(pod: &PodView<'_>, container: &str, reference: &Reference) -> bool {
    let entry = pod.applied().iter().find(|a| a.container == container);
    entry.is_some_and(|entry| reference.tag() == Some(&entry.to))
}

/// What the first Pods of this revision got, whichever Image covered them then.
fn recorded<'s>(
    known: Option<&'s Namespace>,
    pod: &PodView<'_>,
    container: &str,
    reference: &Reference,
    text: &str,
    covering: [Option<&'s Arc<Entry>>; 2],
) -> Option<Answer> {
    let (uid, hash) = pod.revision()?;
    let by_entry = |entry: &'s Arc<Entry>| Some((entry, entry.record(uid, hash, container)?));
    let elsewhere = || known.filter(|_| pod.may_be_on_record())?.on_record(uid).find_map(by_entry);
    let found = covering.into_iter().flatten().find_map(by_entry).or_else(elsewhere);
    let (entry, stamp) = found.filter(|(_, stamp)| stamp.text == text)?;
    let target = reference.sibling(&stamp.reference)?;
    Some(run(container, reference, &target, Some(entry.name()), stamp.reference, None))
}

/// What a held workload's container runs: not the tag that somebody left.
fn held(pod: &PodView<'_>, container: &str, reference: &Reference, entry: &Entry) -> Option<Answer> {
    let (tag, _) = pod.held(entry, container, reference)?;
    let applied =
        Applied { container, from: reference.tag(), to: &tag.tag, image: Some(entry.name()), rollout: None }.text();
    Some(Answer::Run { reference: tag.image(reference), applied })
}

fn newer(entry: &Entry, container: &str, reference: &Reference, settled: &str, digest: Option<&str>) -> Answer {
    let to = entry.order.newer_of(reference.tag(), settled);
    let mut image = reference.with_tag(to);
    // Of another tag than the Image's no digest is known.
    if let Some(digest) = digest.filter(|_| to == settled) {
        image.extend(["@", digest]);
    }
    let applied = Applied { container, from: reference.tag(), to, image: Some(entry.name()), rollout: None }.text();
    Answer::Run { reference: image, applied }
}

fn run(
    container: &str,
    own: &Reference,
    target: &Reference,
    image: Option<&str>,
    reference: String,
    rollout: Option<&str>,
) -> Answer {
    // A reference by digest alone has no tag to name.
    let to = target.tag().or(target.digest()).unwrap_or("latest");
    let applied = Applied { container, from: own.tag(), to, image, rollout }.text();
    Answer::Run { reference, applied }
}

#[cfg(test)]
mod tests;
