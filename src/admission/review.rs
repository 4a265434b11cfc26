//! One AdmissionReview: what is asked, what each container gets, and the response. Pure.

use std::borrow::Cow;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::api::Applied;
use crate::api::annotations::{self, FailurePolicy, MIRROR_POD, Map, NamespaceSettings, POLICY, ROLLOUT};
use crate::index::{Answer, ImageEntry, PodView, Snapshot, answer, with_tag};

use super::patch;

/// Longest warning the API server passes on whole, in bytes, and most of them (admission webhook good practices).
const MAX_WARNING: usize = 256;
const MAX_WARNINGS: usize = 10;

/// Why a body is no review that can be answered.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Not JSON of the expected shape.
    #[error("the body is no admission.k8s.io/v1 AdmissionReview of a Pod: {0}")]
    Malformed(#[from] serde_json::Error),
    /// Another version or kind.
    #[error("{api_version} {kind} is not answered here; send admission.k8s.io/v1 AdmissionReview")]
    Unknown {
        /// `apiVersion` as sent.
        api_version: String,
        /// `kind` as sent.
        kind: String,
    },
    /// A review without a request.
    #[error("the AdmissionReview has no request")]
    Empty,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body<'a> {
    #[serde(borrow, default)]
    api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow)]
    request: Option<Request<'a>>,
}

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
    #[serde(borrow, default)]
    namespace: Cow<'a, str>,
    #[serde(borrow, default)]
    operation: Cow<'a, str>,
    #[serde(borrow)]
    resource: Resource<'a>,
    #[serde(rename = "subResource", borrow, default)]
    sub_resource: Option<Cow<'a, str>>,
    /// Read only if it is a Pod: another kind has another shape.
    #[serde(borrow, default)]
    object: Option<&'a serde_json::value::RawValue>,
}

#[derive(Deserialize)]
struct Resource<'a> {
    #[serde(borrow, default)]
    group: Cow<'a, str>,
    #[serde(borrow, default)]
    resource: Cow<'a, str>,
}

#[derive(Deserialize)]
struct Pod<'a> {
    #[serde(borrow, default)]
    metadata: Metadata<'a>,
    #[serde(borrow)]
    spec: Spec<'a>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Metadata<'a> {
    annotations: Option<Map>,
    labels: Option<Map>,
    #[serde(borrow)]
    owner_references: Option<Vec<Owner<'a>>>,
}

#[derive(Deserialize)]
struct Owner<'a> {
    #[serde(borrow, default)]
    uid: Cow<'a, str>,
    #[serde(default)]
    controller: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec<'a> {
    #[serde(borrow, default)]
    containers: Option<Vec<Container<'a>>>,
    #[serde(borrow, default)]
    init_containers: Option<Vec<Container<'a>>>,
}

#[derive(Deserialize)]
struct Container<'a> {
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow, default)]
    image: Option<Cow<'a, str>>,
}

/// A review under way: parsed, and answered as far as memory knows.
pub struct Review {
    uid: String,
    namespace: String,
    failure_policy: FailurePolicy,
    containers: Vec<Asked>,
    has_annotations: bool,
    applied_before: Vec<Applied>,
    warnings: Vec<String>,
}

/// One container and its answer.
struct Asked {
    name: String,
    text: String,
    path: String,
    answer: Answer,
}

/// The response, as the API server reads it.
#[derive(Serialize, Debug)]
#[allow(clippy::struct_field_names)] // the names are those of admission.k8s.io/v1
#[serde(rename_all = "camelCase")]
pub struct Response {
    api_version: &'static str,
    kind: &'static str,
    response: Verdict,
}

#[derive(Serialize, Debug, Default)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    uid: String,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Denial>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize, Debug)]
struct Denial {
    message: String,
    reason: &'static str,
    code: u16,
}

impl Response {
    fn new(response: Verdict) -> Self {
        Self { api_version: "admission.k8s.io/v1", kind: "AdmissionReview", response }
    }

    /// Whether the Pod is changed.
    pub fn is_patched(&self) -> bool {
        self.response.patch.is_some()
    }

    /// Whether the Pod is admitted.
    pub fn is_allowed(&self) -> bool {
        self.response.allowed
    }
}

impl Review {
    /// Parses a body and answers from the snapshot. A request that is no Pod being created has nothing to answer.
    pub fn parse(body: &[u8], snapshot: &Snapshot) -> Result<Self, ReviewError> {
        let body: Body<'_> = serde_json::from_slice(body)?;
        if body.api_version != "admission.k8s.io/v1" || body.kind != "AdmissionReview" {
            let (api_version, kind) = (body.api_version.into_owned(), body.kind.into_owned());
            return Err(ReviewError::Unknown { api_version, kind });
        }
        let request = body.request.ok_or(ReviewError::Empty)?;
        let namespace = snapshot.namespace(&request.namespace);
        let settings = namespace.map(|n| n.settings).unwrap_or_default();
        let mut review = Self {
            uid: request.uid.into_owned(),
            namespace: request.namespace.into_owned(),
            failure_policy: settings.failure_policy,
            containers: Vec::new(),
            has_annotations: false,
            applied_before: Vec::new(),
            warnings: Vec::new(),
        };
        let is_pod = request.resource.group.is_empty() && request.resource.resource == "pods";
        let creates = request.operation == "CREATE" && request.sub_resource.is_none_or(|s| s.is_empty());
        if let (true, true, Some(object)) = (is_pod, creates, request.object) {
            let pod: Pod<'_> = serde_json::from_str(object.get())?;
            review.answer(pod, settings, snapshot);
        }
        Ok(review)
    }

    fn answer(&mut self, pod: Pod<'_>, settings: NamespaceSettings, snapshot: &Snapshot) {
        self.has_annotations = pod.metadata.annotations.is_some();
        let annotations = pod.metadata.annotations.unwrap_or_default();
        let labels = pod.metadata.labels.unwrap_or_default();
        if annotations.contains_key(MIRROR_POD) || !self.is_enabled(&annotations, settings) {
            return;
        }
        self.applied_before = Applied::of(&annotations);
        let owner = pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        let label = |key: &str| labels.get(key).map(String::as_str);
        let view = PodView {
            annotations: &annotations,
            owner_uid: owner.map(|o| &*o.uid),
            hash: label("pod-template-hash").or_else(|| label("controller-revision-hash")).unwrap_or_default(),
            rollout: label(ROLLOUT),
            applied: &self.applied_before,
        };
        let namespace = snapshot.namespace(&self.namespace);
        let lists = [("initContainers", pod.spec.init_containers), ("containers", pod.spec.containers)];
        for (list, containers) in lists {
            for (index, container) in containers.unwrap_or_default().into_iter().enumerate() {
                let Some(text) = container.image else {
                    continue;
                };
                let answer = match answer(namespace, &view, &container.name, &text) {
                    Answer::Keep { warning } => {
                        self.warnings.extend(warning);
                        continue;
                    }
                    answer => answer,
                };
                let path = format!("/spec/{list}/{index}/image");
                self.containers.push(Asked { name: container.name.into(), text: text.into(), path, answer });
            }
        }
    }

    /// Whether the Pod is opted in; a value that is none of those allowed is said, and changes nothing.
    fn is_enabled(&mut self, annotations: &Map, settings: NamespaceSettings) -> bool {
        match FailurePolicy::read(annotations) {
            Ok(own) => self.failure_policy = own.unwrap_or(settings.failure_policy),
            Err(error) => self.warnings.push(format!("kimup: {error}; the Namespace's policy counts")),
        }
        if annotations.keys().any(|key| key == POLICY || key.starts_with("policy.kimup.cloudavenue.io/")) {
            self.warnings
                .push(format!("kimup: the annotation {POLICY} is not acted on by this version; write an Image"));
        }
        annotations::pod_enabled(annotations, settings).unwrap_or_else(|error| {
            self.warnings.push(format!("kimup: {error}; the Pod stays as it is"));
            false
        })
    }

    /// The Images that sync must be asked about, each once.
    pub fn questions(&self) -> Vec<Arc<ImageEntry>> {
        let mut images: Vec<Arc<ImageEntry>> = Vec::new();
        for asked in &self.containers {
            if let Answer::Ask(image) = &asked.answer
                && !images.iter().any(|known| known.name == image.name)
            {
                images.push(image.clone());
            }
        }
        images
    }

    /// The namespace of the Pod.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Takes in the answer to a question: the Image's tag, or why there is none.
    pub fn resolve(&mut self, image: &ImageEntry, tag: Result<String, String>) {
        match tag {
            Ok(tag) => {
                for asked in &mut self.containers {
                    if matches!(&asked.answer, Answer::Ask(wanted) if wanted.name == image.name) {
                        asked.answer = with_tag(image, &asked.name, &asked.text, &tag);
                    }
                }
            }
            Err(why) => {
                let namespace = &self.namespace;
                let name = &image.name;
                for asked in &mut self.containers {
                    if matches!(&asked.answer, Answer::Ask(wanted) if wanted.name == *name) {
                        let why = format!("container {:?}: Image {namespace}/{name} has no tag yet: {why}", asked.name);
                        asked.answer = Answer::Keep { warning: Some(why) };
                    }
                }
            }
        }
    }

    /// The response, once every question is resolved.
    pub fn respond(mut self) -> Response {
        let mut unanswered = Vec::new();
        let mut patches = Vec::new();
        let mut applied = self.applied_before;
        let changes_before = applied.clone();
        for asked in self.containers {
            match asked.answer {
                Answer::Run { reference, applied: entry } => {
                    if reference != asked.text {
                        patches.push((asked.path, reference));
                    }
                    applied.retain(|known| known.container != entry.container);
                    applied.push(entry);
                }
                Answer::Keep { warning } => unanswered.extend(warning),
                Answer::Ask(image) => unanswered.push(format!("Image {} was not asked about", image.name)),
            }
        }
        let fails = !unanswered.is_empty() && self.failure_policy == FailurePolicy::Fail;
        if fails {
            let message = format!(
                "kimup: {}. Look at it with: kubectl describe images -n {}; or let Pods start with the tag of their manifest: annotation {}: ignore on the Pod, or label on the Namespace",
                unanswered.join("; "),
                self.namespace,
                annotations::FAILURE_POLICY,
            );
            let status = Some(Denial { message, reason: "Forbidden", code: 403 });
            return Response::new(Verdict { uid: self.uid, status, ..Verdict::default() });
        }
        self.warnings
            .extend(unanswered.into_iter().map(|why| format!("kimup: {why}; it keeps the tag of its manifest")));
        let mut warnings = self.warnings;
        warnings.truncate(MAX_WARNINGS);
        for warning in &mut warnings {
            warning.truncate(warning.floor_char_boundary(MAX_WARNING));
        }
        let note = (applied != changes_before).then(|| Applied::join(&applied));
        let patch = patch::encode(&patches, note.as_deref(), self.has_annotations);
        Response::new(Verdict {
            uid: self.uid,
            allowed: true,
            status: None,
            patch_type: patch.is_some().then_some("JSONPatch"),
            patch,
            warnings,
        })
    }
}

#[cfg(test)]
mod tests;
