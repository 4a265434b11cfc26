//! Decides on an `AdmissionReview`: bytes and a snapshot in; an answer out, or the questions to ask first. Pure.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::api::annotated::Levels;
use crate::api::annotations::{
    self, AnnotationError, FAILURE_POLICY, FailurePolicy, MIRROR_POD, Map, NamespaceSettings,
};
use crate::api::{Applied, Tagged};
use crate::index::question::{Answered, Question};
use crate::index::{Answer, Namespace, Open, PodFacts, PodView, Snapshot, answer};

use super::entry::Entry;
use super::json;
use super::verdict::{Changes, SetImage, Verdict, cut};
use super::wire::{Container, Envelope, Metadata, NO_ANNOTATIONS, PodSpec, Request, Text, names};

const VERSION: &str = "admission.k8s.io/v1";
/// Longest reason of sync's that a message repeats, in bytes.
const MAX_REASON: usize = 512;
/// Most containers of one Pod, init containers included. The API server validates after the webhooks, so that a Pod may
/// come with as many as fit into a request.
const MAX_CONTAINERS: usize = 1000;
/// Most bytes of the keys and values of an object's annotations; the API server refuses more.
const MAX_ANNOTATIONS: usize = 256 << 10;

/// A body that cannot be answered by an `AdmissionReview`. Answered with HTTP 400, so that the API server goes by the
/// failure policy of the webhook's entry.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// It is no JSON, or no `AdmissionReview`, or its Pod is none.
    #[error("the body cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Another version or kind.
    #[error(
        "this webhook answers AdmissionReview of {VERSION}, not {kind:?} of {api_version:?}; set admissionReviewVersions: [v1]"
    )]
    Version {
        /// `apiVersion` of the body.
        api_version: String,
        /// `kind` of the body.
        kind: String,
    },
    /// There is nothing to answer.
    #[error("the AdmissionReview has no request")]
    NoRequest,
    /// A Pod's CREATE without the Pod.
    #[error("the request has no object")]
    NoObject,
}

/// What comes next.
#[derive(Debug)]
pub enum Step<'a> {
    /// The answer.
    Done(Verdict),
    /// Some containers wait for answers to [`Plan::questions`].
    Ask(Plan<'a>),
}

/// What is known of a Pod while its questions are asked.
#[derive(Debug)]
pub struct Plan<'a> {
    uid: &'a str,
    namespace: &'a str,
    has_annotations: bool,
    /// Bytes that its annotations may grow by.
    room: usize,
    /// The value of the `applied` annotation as it came.
    annotation: Option<&'a str>,
    /// The containers in it with their entries.
    applied: Vec<(Cow<'a, str>, String)>,
    failure_policy: FailurePolicy,
    warnings: Vec<String>,
    slots: Vec<Slot<'a>>,
}

/// A container that something is to be done or said about.
#[derive(Debug)]
struct Slot<'a> {
    list: &'static str,
    position: usize,
    name: &'a str,
    text: &'a str,
    answer: Answer,
}

/// Why a container has no answer.
struct Problem {
    container: String,
    image: String,
    reason: String,
    cause: Cause,
}

#[derive(Clone, Copy, Debug)]
enum Cause {
    /// The Image has no tag yet.
    NoTag,
    /// The Image's spec is wrong: waiting does not help.
    Spec,
    /// The Image that follows from annotations is not known yet.
    Policy,
    /// The same, of a Pod that nobody made: its Image comes after the Pod.
    Bare,
}

/// A body, with the parts of its Pod that count.
#[derive(Debug)]
pub struct Review<'a> {
    request: Request<'a>,
    entry: Entry,
}

impl<'a> Review<'a> {
    /// Reads a body. Cost: one pass over it.
    pub fn parse(body: &'a [u8]) -> Result<Self, ReviewError> {
        let envelope: Envelope<'_> = json::from_slice(body)?;
        if envelope.api_version != VERSION || envelope.kind != "AdmissionReview" {
            return Err(ReviewError::Version {
                api_version: cut(&envelope.api_version, MAX_REASON),
                kind: cut(&envelope.kind, MAX_REASON),
            });
        }
        let request = envelope.request.ok_or(ReviewError::NoRequest)?;
        Ok(Self { request, entry: Entry::default() })
    }

    /// The same review, by this entry of the webhook configuration.
    #[must_use]
    pub fn by(self, entry: Entry) -> Self {
        Self { entry, ..self }
    }

    /// Panics if a body is read to something else than `serde_json` reads.
    #[cfg(fuzzing)]
    pub fn compare_readers(body: &[u8]) {
        json::compare::<Envelope<'_>>(body);
    }

    /// Decides. A Pod is changed only if it is opted in, and only where an Image or a stamp covers a container.
    pub fn decide<'b>(&'b self, snapshot: &Snapshot) -> Result<Step<'b>, ReviewError> {
        let request = &self.request;
        if !request.creates_pod() {
            let what = format!(
                "this webhook answers for Pods at CREATE, not for {} of {}; correct the rules of the webhook configuration",
                cut(&request.operation, 64),
                cut(&request.resource.resource, 64)
            );
            return Ok(Step::Done(self.cannot(snapshot, &what)));
        }
        let object = request.object.as_ref().ok_or(ReviewError::NoObject)?;
        let metadata = object.metadata.as_ref().ok_or_else(|| missing("metadata"))?;
        let spec = object.spec.as_ref().ok_or_else(|| missing("spec"))?;
        let count = spec.count();
        if count > MAX_CONTAINERS {
            let what = format!("this Pod has {count} containers, and kimup answers for at most {MAX_CONTAINERS}");
            return Ok(Step::Done(self.cannot(snapshot, &what)));
        }
        Ok(decide(self, metadata, spec, snapshot))
    }

    /// The answer when something else than a missing tag is in the way (`what`), by the failure policy as far as it can
    /// be read from the object and its namespace.
    pub fn cannot(&self, snapshot: &Snapshot, what: &str) -> Verdict {
        let request = &self.request;
        let metadata = request.object.as_ref().and_then(|object| object.metadata.as_ref());
        let own = metadata.map_or(&NO_ANNOTATIONS, Metadata::annotations);
        let settings = self.settings(snapshot.namespace(request.namespace()));
        let policy = FailurePolicy::read(own).ok().flatten();
        let denies =
            policy.unwrap_or(settings.failure_policy) == FailurePolicy::Fail && enabled(own, settings) == Ok(true);
        if denies {
            let message = format!("kimup: {what}. To admit it unchanged, {}", ignore_hint());
            Verdict::deny(&request.uid, &message, Vec::new())
        } else {
            Verdict::unchanged(&request.uid, vec![what.to_owned()])
        }
    }

    fn settings(&self, known: Option<&Namespace>) -> NamespaceSettings {
        self.entry.settings(known.and_then(Namespace::settings))
    }
}

/// An object of which the API server would say the same.
fn missing(field: &'static str) -> serde_json::Error {
    serde::de::Error::missing_field(field)
}

fn decide<'b>(
    review: &'b Review<'_>,
    metadata: &'b Metadata<'_>,
    spec: &'b PodSpec<'_>,
    snapshot: &Snapshot,
) -> Step<'b> {
    let request = &review.request;
    let uid: &str = &request.uid;
    let own = metadata.annotations();
    if own.contains_key(MIRROR_POD) {
        return Step::Done(Verdict::unchanged(uid, Vec::new()));
    }
    let namespace = request.namespace();
    let known = snapshot.namespace(namespace);
    let settings = review.settings(known);
    match enabled(own, settings) {
        Ok(true) => {}
        Ok(false) => return Step::Done(Verdict::unchanged(uid, Vec::new())),
        Err(error) => {
            let warning = format!("{error}; the Pod is left as it is");
            return Step::Done(Verdict::unchanged(uid, vec![warning]));
        }
    }
    let mut warnings: Vec<String> =
        known.map_or(&[][..], Namespace::errors).iter().map(|e| format!("Namespace {namespace}: {e}")).collect();
    let failure_policy = failure_policy(own, settings, &mut warnings);
    let view = view(namespace, metadata, spec, settings);
    warnings.extend(view.problems().iter().cloned());
    let mut plan = Plan {
        uid,
        namespace,
        has_annotations: metadata.has_annotations(),
        room: MAX_ANNOTATIONS.saturating_sub(metadata.annotation_bytes()),
        annotation: own.get(annotations::APPLIED).map(String::as_str),
        applied: view.applied().iter().map(|known| (known.container.clone().into(), known.text())).collect(),
        failure_policy,
        warnings,
        slots: Vec::new(),
    };
    plan.add("containers", spec.containers.as_deref(), &view, known);
    plan.add("initContainers", spec.init_containers.as_deref(), &view, known);
    if plan.is_open() { Step::Ask(plan) } else { Step::Done(plan.finish(&HashMap::new())) }
}

fn view<'b>(
    namespace: &'b str,
    metadata: &'b Metadata<'_>,
    spec: &'b PodSpec<'_>,
    settings: NamespaceSettings,
) -> PodView<'b> {
    PodView::new(PodFacts {
        namespace,
        settings,
        annotations: Cow::Borrowed(metadata.annotations()),
        labels: metadata.labels(),
        controller: metadata.controller(),
        regular: names(spec.containers.as_deref()),
        init: names(spec.init_containers.as_deref()),
        pull_secrets: spec.pull_secrets(),
        service_account: spec.service_account(),
    })
}

/// Whether any container may be changed: else nothing more needs to be read.
fn enabled(own: &Map, namespace: NamespaceSettings) -> Result<bool, AnnotationError> {
    Levels(&[own]).any_enabled(annotations::has_stamp(own), namespace)
}

fn failure_policy(own: &Map, namespace: NamespaceSettings, warnings: &mut Vec<String>) -> FailurePolicy {
    match FailurePolicy::read(own) {
        Ok(found) => found.unwrap_or(namespace.failure_policy),
        Err(error) => {
            warnings.push(format!("{error}; the Namespace's failure policy counts"));
            namespace.failure_policy
        }
    }
}

fn ignore_hint() -> String {
    format!("set {FAILURE_POLICY}: ignore on the Pod or the Namespace")
}

impl<'a> Plan<'a> {
    fn is_open(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot.answer, Answer::Ask(_)))
    }

    /// What must be asked, each question once.
    pub fn questions(&self) -> Vec<Question> {
        let mut questions: Vec<Question> = Vec::new();
        for slot in &self.slots {
            if let Answer::Ask(open) = &slot.answer
                && !questions.contains(&open.question)
            {
                questions.push(open.question.clone());
            }
        }
        questions
    }

    fn add(
        &mut self,
        list: &'static str,
        containers: Option<&'a [Container<'_>]>,
        view: &PodView<'_>,
        known: Option<&Namespace>,
    ) {
        for (position, container) in containers.into_iter().flatten().enumerate() {
            let (Some(name), Some(text)) = (&container.name, &container.image) else {
                continue; // not ours to complain: the API server checks what is required
            };
            let (name, text) = (Text::as_str(name), Text::as_str(text));
            let answer = answer(known, view, name, text);
            if !matches!(answer, Answer::Keep { warning: None }) {
                self.slots.push(Slot { list, position, name, text, answer });
            }
        }
    }

    /// The answer, with what came back for each question; one without an answer counts as failed.
    pub fn finish(mut self, answers: &HashMap<Question, Result<Answered, String>>) -> Verdict {
        let mut problems = Vec::new();
        let mut images = Vec::new();
        for slot in std::mem::take(&mut self.slots) {
            let answer = match slot.answer {
                Answer::Ask(ref open) => match resolve(open, answers.get(&open.question)) {
                    Ok(answer) => answer,
                    Err(reason) => {
                        let image = open.question.image.clone();
                        let cause = Cause::of(&open.question);
                        problems.push(Problem { container: slot.name.to_owned(), image, reason, cause });
                        continue;
                    }
                },
                other => other,
            };
            match answer {
                Answer::Run { reference, applied } => {
                    if reference != slot.text {
                        images.push(SetImage { list: slot.list, position: slot.position, reference });
                    }
                    self.note(slot.name, applied);
                }
                Answer::Keep { warning } => self.warnings.extend(warning),
                Answer::Refuse { image, reason } => {
                    let container = slot.name.to_owned();
                    problems.push(Problem { container, image, reason, cause: Cause::Spec });
                }
                Answer::Ask(_) => {} // answered above
            }
        }
        self.conclude(&problems, images)
    }

    /// Takes in a container's entry, in the place of the one it had: sent again, a Pod has the same entries in the same order.
    fn note(&mut self, container: &'a str, entry: String) {
        let of_it = |(known, _): &(Cow<'_, str>, String)| *known == container;
        let place = self.applied.iter().position(of_it).unwrap_or(self.applied.len());
        self.applied.retain(|known| !of_it(known));
        self.applied.insert(place, (container.into(), entry));
    }

    fn conclude(mut self, problems: &[Problem], images: Vec<SetImage>) -> Verdict {
        if self.failure_policy == FailurePolicy::Fail
            && let Some(first) = problems.first()
        {
            let message = self.refusal(problems, first);
            return Verdict::deny(self.uid, &message, self.warnings);
        }
        for problem in problems {
            let (container, sentence) = (&problem.container, problem.sentence(self.namespace));
            self.warnings.push(format!("container {container:?} keeps its own image: {sentence}"));
        }
        let changes = Changes { images, applied: self.annotate(), has_annotations: self.has_annotations };
        Verdict::allow(self.uid, changes, self.warnings)
    }

    fn refusal(&self, problems: &[Problem], first: &Problem) -> String {
        let sentences: Vec<String> =
            problems.iter().map(|p| format!("container {:?}: {}", p.container, p.sentence(self.namespace))).collect();
        let (image, namespace) = (&first.image, self.namespace);
        let step = match first.cause {
            Cause::Spec => format!("Correct it (kubectl edit image {image} -n {namespace})"),
            Cause::NoTag => format!("Wait for its first sync (kubectl describe image {image} -n {namespace})"),
            Cause::Policy => format!("Wait for its Image {image} (kubectl describe images -n {namespace})"),
            Cause::Bare => "Create the Pod again once that is solved".to_owned(),
        };
        format!("kimup: {}. {step}, or {}", sentences.join("; "), ignore_hint())
    }

    /// The value of the `applied` annotation, if it is another one than before. A Pod whose annotations are full goes
    /// without: it would be refused for what kimup adds.
    fn annotate(&mut self) -> Option<String> {
        if self.applied.is_empty() {
            return None;
        }
        let value = Applied::join(self.applied.iter().map(|(_, entry)| entry.as_str()));
        if self.annotation == Some(&value) {
            return None;
        }
        let before = self.annotation.map_or(0, |before| annotations::APPLIED.len() + before.len());
        if annotations::APPLIED.len() + value.len() > self.room + before {
            self.warnings.push(format!("its annotations have no room for {}, which is left out", annotations::APPLIED));
            return None;
        }
        Some(value)
    }
}

impl Cause {
    /// Why a question has no answer.
    fn of(question: &Question) -> Self {
        match &question.pod {
            None => Self::NoTag,
            Some(pod) if pod.controller.is_none() => Self::Bare,
            Some(_) => Self::Policy,
        }
    }
}

impl Problem {
    fn sentence(&self, namespace: &str) -> String {
        let reason = cut(self.reason.trim_end_matches('.'), MAX_REASON);
        let image = &self.image;
        match self.cause {
            Cause::Spec => format!("Image {namespace}/{image} has no tag, and its spec cannot be used: {reason}"),
            Cause::NoTag => format!("Image {namespace}/{image} has no tag yet: {reason}"),
            Cause::Policy | Cause::Bare => format!("no tag is known yet for its policy: {reason}"),
        }
    }
}

/// What sync's answer means for a container; the error says why there is none.
fn resolve(open: &Open, answer: Option<&Result<Answered, String>>) -> Result<Answer, String> {
    if let Some(Ok(Answered { covered: false, .. })) = answer {
        return Ok(open.not_covered());
    }
    let image = answer.and_then(|answer| answer.as_ref().ok()?.image.as_deref());
    tag_of(answer).map(|tag| open.answered(&tag, image))
}

fn tag_of(answer: Option<&Result<Answered, String>>) -> Result<Tagged, String> {
    match answer {
        Some(Ok(Answered { tag: Some(tag), .. })) => {
            Tagged::parse(tag).ok_or_else(|| format!("{tag:?} is no legal tag"))
        }
        Some(Ok(Answered { tag: None, reason, .. }) | Err(reason)) => Err(reason.clone()),
        None => Err("nobody was asked".to_owned()),
    }
}

#[cfg(test)]
mod tests;
