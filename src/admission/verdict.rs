//! The answer to an `AdmissionReview`, and how it is written.

use base64::display::Base64Display;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;
use serde::ser::SerializeSeq;
use serde::{Serialize, Serializer};

use crate::telemetry::AdmissionOutcome;

/// Longest warning in bytes; Kubernetes cuts those over 256 characters.
const MAX_WARNING: usize = 256;
/// Most warnings of one answer.
const MAX_WARNINGS: usize = 10;
/// Longest message of a denial in bytes.
const MAX_MESSAGE: usize = 2048;
/// Room for a usual answer, in bytes.
const USUAL_ANSWER: usize = 1024;

/// What the API server is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    uid: String,
    refusal: Option<String>,
    changes: Changes,
    warnings: Vec<String>,
}

/// What changes of a Pod. Written as the list of operations of a JSON patch (RFC 6902).
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Changes {
    pub images: Vec<SetImage>,
    /// The value of the `applied` annotation, if it is another one than before.
    pub applied: Option<String>,
    /// Whether the Pod has annotations that it can be added to.
    pub has_annotations: bool,
}

/// Another image for a container.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SetImage {
    /// `containers` or `initContainers`.
    pub list: &'static str,
    pub position: usize,
    pub reference: String,
}

impl Changes {
    fn is_empty(&self) -> bool {
        self.images.is_empty() && self.applied.is_none()
    }
}

impl Verdict {
    /// Admitted as it came.
    pub(super) fn unchanged(uid: &str, warnings: Vec<String>) -> Self {
        Self::allow(uid, Changes::default(), warnings)
    }

    /// Admitted, with these changes.
    pub(super) fn allow(uid: &str, changes: Changes, warnings: Vec<String>) -> Self {
        Self { uid: uid.to_owned(), refusal: None, changes, warnings }
    }

    /// Denied. `message` says why and what to do.
    pub(super) fn deny(uid: &str, message: &str, warnings: Vec<String>) -> Self {
        let refusal = Some(cut(message, MAX_MESSAGE));
        Self { uid: uid.to_owned(), refusal, changes: Changes::default(), warnings }
    }

    /// Why it is denied; none if it is admitted.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// The patch that is sent (RFC 6902); empty if nothing changes. Cost: it is written and read back.
    ///
    /// # Errors
    /// None that a value of this type can cause.
    pub fn patch(&self) -> serde_json::Result<Patch> {
        serde_json::from_value(serde_json::to_value(&self.changes)?)
    }

    /// What the person who made the request is told beside: at most 10, of at most 256 bytes each.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> =
            self.warnings.iter().map(|warning| cut(&format!("kimup: {warning}"), MAX_WARNING)).collect();
        if warnings.len() > MAX_WARNINGS {
            let more = warnings.len() - (MAX_WARNINGS - 1);
            warnings.truncate(MAX_WARNINGS - 1);
            warnings.push(format!("kimup: {more} more warnings"));
        }
        warnings
    }

    /// How it is counted.
    pub fn outcome(&self) -> AdmissionOutcome {
        match (&self.refusal, self.changes.is_empty()) {
            (Some(_), _) => AdmissionOutcome::Denied,
            (None, false) => AdmissionOutcome::Mutated,
            (None, true) => AdmissionOutcome::Unchanged,
        }
    }

    /// The response as an `AdmissionReview` of `admission.k8s.io/v1`, in JSON.
    ///
    /// # Errors
    /// None that a value of this type can cause.
    pub fn to_json(&self) -> serde_json::Result<Vec<u8>> {
        let patch = if self.changes.is_empty() {
            None
        } else {
            let mut patch = Vec::with_capacity(USUAL_ANSWER);
            serde_json::to_writer(&mut patch, &self.changes)?;
            Some(Base64(patch))
        };
        let response = Response {
            uid: &self.uid,
            allowed: self.refusal.is_none(),
            // 403, as the API server's own admission plugins: kubectl says "Forbidden" and does not try again.
            status: self.refusal.as_deref().map(|message| Refusal {
                status: "Failure",
                reason: "Forbidden",
                code: 403,
                message,
            }),
            patch_type: patch.is_some().then_some("JSONPatch"),
            patch,
            warnings: self.warnings(),
        };
        let mut json = Vec::with_capacity(USUAL_ANSWER);
        let review = Review { api_version: "admission.k8s.io/v1", kind: "AdmissionReview", response };
        serde_json::to_writer(&mut json, &review)?;
        Ok(json)
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Review<'a> {
    api_version: &'static str,
    kind: &'static str,
    response: Response<'a>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Response<'a> {
    uid: &'a str,
    allowed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<Refusal<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch_type: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    patch: Option<Base64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Refusal<'a> {
    status: &'static str,
    reason: &'static str,
    code: u16,
    message: &'a str,
}

/// Bytes, written in base64.
struct Base64(Vec<u8>);

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Base64Display::new(&self.0, &STANDARD))
    }
}

/// The `applied` annotation, in a JSON pointer (RFC 6901).
const APPLIED_POINTER: &str = "/metadata/annotations/kimup.cloudavenue.io~1applied";

/// An operation of a JSON patch.
#[derive(Serialize)]
struct Operation<P, V> {
    op: &'static str,
    path: P,
    value: V,
}

/// The annotations of a Pod that had none.
#[derive(Serialize)]
struct Annotations<'a> {
    #[serde(rename = "kimup.cloudavenue.io/applied")]
    applied: &'a str,
}

impl Serialize for Changes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut operations = serializer.serialize_seq(None)?;
        for SetImage { list, position, reference } in &self.images {
            let path = format_args!("/spec/{list}/{position}/image");
            operations.serialize_element(&Operation { op: "replace", path, value: reference })?;
        }
        match &self.applied {
            Some(applied) if self.has_annotations => {
                operations.serialize_element(&Operation { op: "add", path: APPLIED_POINTER, value: applied })?;
            }
            Some(applied) => {
                let (path, value) = ("/metadata/annotations", Annotations { applied });
                operations.serialize_element(&Operation { op: "add", path, value })?;
            }
            None => {}
        }
        operations.end()
    }
}

/// At most `max` bytes of a text, with a mark where it was cut.
pub(super) fn cut(text: &str, max: usize) -> String {
    const MARK: &str = "…";
    if text.len() <= max {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(max - MARK.len());
    format!("{}{MARK}", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::annotations::APPLIED;
    use base64::Engine;
    use serde_json::{Value, json};

    fn written(verdict: &Verdict) -> Value {
        serde_json::from_slice(&verdict.to_json().unwrap()).unwrap()
    }

    #[test]
    fn texts_are_cut_between_characters() {
        fn check(text: &str, max: usize, expected: &str) {
            assert_eq!(cut(text, max), expected);
            assert!(cut(text, max).len() <= max);
        }
        check("abcdef", 6, "abcdef");
        check("abcdefg", 6, "abc…");
        check("äöüä", 8, "äöüä");
        check("äöüäx", 8, "äö…");
        check("", 6, "");
    }

    #[test]
    fn warnings_are_bounded() {
        fn check(count: usize, expected: usize, last: &str) {
            let warnings = (0..count).map(|i| format!("{i} {}", "x".repeat(300))).collect();
            let found = Verdict::unchanged("u", warnings).warnings();
            assert_eq!(found.len(), expected);
            assert!(found.iter().all(|w| w.len() <= 256 && w.starts_with("kimup: ")), "{found:?}");
            assert!(found.last().is_none_or(|w| w.starts_with(last)), "{found:?}");
        }
        check(0, 0, "");
        check(10, 10, "kimup: 9 x");
        check(11, 10, "kimup: 2 more warnings");
    }

    #[test]
    fn the_response_has_the_shape_the_api_server_reads() {
        let images = vec![SetImage { list: "containers", position: 12, reference: "app:2".to_owned() }];
        let changes = Changes { images, applied: None, has_annotations: true };
        let operations = json!([{"op": "replace", "path": "/spec/containers/12/image", "value": "app:2"}]);
        let verdict = Verdict::allow("u1", changes, vec!["w".to_owned()]);
        let allowed = written(&verdict);
        assert_eq!(allowed["response"]["uid"], "u1");
        assert_eq!(allowed["response"]["allowed"], true);
        assert_eq!(allowed["response"]["patchType"], "JSONPatch");
        let bytes = STANDARD.decode(allowed["response"]["patch"].as_str().unwrap()).unwrap();
        assert_eq!(serde_json::from_slice::<Value>(&bytes).unwrap(), operations);
        assert_eq!(serde_json::to_value(verdict.patch().unwrap()).unwrap(), operations);
        assert_eq!(allowed["response"]["warnings"], json!(["kimup: w"]));
        let denied = written(&Verdict::deny("u2", &"x".repeat(5000), Vec::new()));
        assert_eq!(denied["response"]["allowed"], false);
        assert_eq!(denied["response"]["status"]["code"], 403);
        let message = denied["response"]["status"]["message"].as_str().unwrap();
        assert_eq!(message.len(), MAX_MESSAGE);
        let plain = written(&Verdict::unchanged("u3\"", Vec::new()));
        assert_eq!(
            plain,
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                   "response": {"uid": "u3\"", "allowed": true}})
        );
    }

    #[test]
    fn the_annotation_is_added_beside_others_or_with_their_map() {
        #[track_caller]
        fn check(before: &Value, after: &Value) {
            let has_annotations = !before["metadata"]["annotations"].is_null();
            let changes = Changes { applied: Some("a \" b".to_owned()), has_annotations, ..Changes::default() };
            let mut pod = before.clone();
            json_patch::patch(&mut pod, &Verdict::allow("u", changes, Vec::new()).patch().unwrap()).unwrap();
            assert_eq!(pod["metadata"]["annotations"], *after, "{before}");
        }
        let entry = "a \" b";
        check(&json!({"metadata": {}}), &json!({APPLIED: entry}));
        check(&json!({"metadata": {"annotations": null}}), &json!({APPLIED: entry}));
        check(&json!({"metadata": {"annotations": {}}}), &json!({APPLIED: entry}));
        check(&json!({"metadata": {"annotations": {"a": "b"}}}), &json!({"a": "b", APPLIED: entry}));
        check(&json!({"metadata": {"annotations": {APPLIED: "x"}}}), &json!({APPLIED: entry}));
    }
}
