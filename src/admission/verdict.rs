//! The answer to an `AdmissionReview`, and how it is written.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use json_patch::Patch;

use crate::telemetry::AdmissionOutcome;

/// Longest warning in bytes; Kubernetes cuts those over 256 characters.
const MAX_WARNING: usize = 256;
/// Most warnings of one answer.
const MAX_WARNINGS: usize = 10;
/// Longest message of a denial in bytes.
const MAX_MESSAGE: usize = 2048;
/// Room for a usual answer without its patch, in bytes; and for a patch without images.
const ROOM: usize = 256;

/// What the API server is told.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    uid: String,
    refusal: Option<String>,
    changes: Changes,
    warnings: Vec<String>,
}

/// What changes of a Pod, by a JSON patch (RFC 6902).
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
        serde_json::from_str(&self.changes.to_json()?)
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
    pub fn to_json(&self) -> serde_json::Result<String> {
        let patch = if self.changes.is_empty() { String::new() } else { self.changes.to_json()? };
        let mut json = String::with_capacity(ROOM + patch.len().div_ceil(3) * 4);
        json.push_str(r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"#);
        push_text(&mut json, &self.uid)?;
        match &self.refusal {
            None => json.push_str(r#","allowed":true"#),
            Some(message) => {
                // 403, as the API server's own admission plugins: kubectl says "Forbidden" and does not try again.
                let status =
                    r#","allowed":false,"status":{"status":"Failure","reason":"Forbidden","code":403,"message":"#;
                json.push_str(status);
                push_text(&mut json, message)?;
                json.push('}');
            }
        }
        if !patch.is_empty() {
            json.push_str(r#","patchType":"JSONPatch","patch":""#);
            STANDARD.encode_string(patch, &mut json);
            json.push('"');
        }
        let warnings = self.warnings();
        if !warnings.is_empty() {
            json.push_str(r#","warnings":"#);
            json.push_str(&serde_json::to_string(&warnings)?);
        }
        json.push_str("}}");
        Ok(json)
    }
}

/// The `applied` annotation, in a JSON pointer (RFC 6901).
const APPLIED_POINTER: &str = "/metadata/annotations/kimup.cloudavenue.io~1applied";

impl Changes {
    fn is_empty(&self) -> bool {
        self.images.is_empty() && self.applied.is_none()
    }

    /// As a list of operations.
    fn to_json(&self) -> serde_json::Result<String> {
        let mut json =
            String::with_capacity(ROOM + 128 * self.images.len() + self.applied.as_ref().map_or(0, String::len));
        for SetImage { list, position, reference } in &self.images {
            let path = format_args!("/spec/{list}/{position}/image");
            json.push(if json.is_empty() { '[' } else { ',' });
            let _ = write!(json, r#"{{"op":"replace","path":"{path}","value":"#); // writing to a String cannot fail
            push_text(&mut json, reference)?;
            json.push('}');
        }
        if let Some(applied) = &self.applied {
            json.push(if json.is_empty() { '[' } else { ',' });
            // The annotations of a Pod that had none are added as a whole.
            let (path, key, end) = if self.has_annotations {
                (APPLIED_POINTER, "", "}")
            } else {
                ("/metadata/annotations", r#"{"kimup.cloudavenue.io/applied":"#, "}}")
            };
            for part in [r#"{"op":"add","path":""#, path, r#"","value":"#, key] {
                json.push_str(part);
            }
            push_text(&mut json, applied)?;
            json.push_str(end);
        }
        json.push_str(if json.is_empty() { "[]" } else { "]" });
        Ok(json)
    }
}

/// Writes a text as JSON: mostly as it is, between quotes.
fn push_text(json: &mut String, text: &str) -> serde_json::Result<()> {
    if text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
        json.push_str(&serde_json::to_string(text)?);
    } else {
        for part in ["\"", text, "\""] {
            json.push_str(part);
        }
    }
    Ok(())
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
    use serde_json::{Value, json};

    fn written(verdict: &Verdict) -> Value {
        serde_json::from_str(&verdict.to_json().unwrap()).unwrap()
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
