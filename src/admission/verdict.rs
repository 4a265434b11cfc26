//! The answer to an `AdmissionReview`.

use json_patch::Patch;
use serde_json::{Value, json};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::telemetry::AdmissionOutcome;

/// Longest warning in bytes; Kubernetes cuts those over 256 characters.
const MAX_WARNING: usize = 256;
/// Most warnings of one answer.
const MAX_WARNINGS: usize = 10;
/// Longest message of a denial in bytes.
const MAX_MESSAGE: usize = 2048;

/// What the API server is told. It can always be written.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    uid: String,
    refusal: Option<String>,
    patch: Option<Patch>,
    warnings: Vec<String>,
}

impl Verdict {
    /// Admitted, with a patch if something changes.
    pub(super) fn allow(uid: &str, patch: Option<Patch>, warnings: Vec<String>) -> Self {
        Self { uid: uid.to_owned(), refusal: None, patch, warnings }
    }

    /// Denied. `message` says why and what to do.
    pub(super) fn deny(uid: &str, message: &str, warnings: Vec<String>) -> Self {
        Self { uid: uid.to_owned(), refusal: Some(cut(message, MAX_MESSAGE)), patch: None, warnings }
    }

    /// Why it is denied; none if it is admitted.
    pub fn refusal(&self) -> Option<&str> {
        self.refusal.as_deref()
    }

    /// The RFC 6902 patch; none if nothing changes.
    pub fn patch(&self) -> Option<&Patch> {
        self.patch.as_ref()
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
        match (&self.refusal, &self.patch) {
            (Some(_), _) => AdmissionOutcome::Denied,
            (None, Some(_)) => AdmissionOutcome::Mutated,
            (None, None) => AdmissionOutcome::Unchanged,
        }
    }

    /// The response as an `AdmissionReview` of `admission.k8s.io/v1`.
    pub fn to_json(&self) -> Value {
        let mut response = json!({"uid": self.uid, "allowed": self.refusal.is_none()});
        if let Some(message) = &self.refusal {
            // 403, as the API server's own admission plugins: kubectl says "Forbidden" and does not try again.
            response["status"] = json!({
                "status": "Failure", "reason": "Forbidden", "code": 403, "message": message,
            });
        }
        if let Some(patch) = &self.patch {
            // `Patch` writes itself as a list of operations; its `Display` is that JSON.
            response["patchType"] = json!("JSONPatch");
            response["patch"] = json!(STANDARD.encode(patch.to_string()));
        }
        let warnings = self.warnings();
        if !warnings.is_empty() {
            response["warnings"] = json!(warnings);
        }
        json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response})
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
            let found = Verdict::allow("u", None, warnings).warnings();
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
        let patch: Patch = serde_json::from_value(json!([{"op": "replace", "path": "/a", "value": 1}])).unwrap();
        let allowed = Verdict::allow("u1", Some(patch), vec!["w".to_owned()]).to_json();
        assert_eq!(allowed["response"]["uid"], "u1");
        assert_eq!(allowed["response"]["allowed"], true);
        assert_eq!(allowed["response"]["patchType"], "JSONPatch");
        let bytes = STANDARD.decode(allowed["response"]["patch"].as_str().unwrap()).unwrap();
        let read: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(read, json!([{"op": "replace", "path": "/a", "value": 1}]));
        assert_eq!(allowed["response"]["warnings"], json!(["kimup: w"]));
        let denied = Verdict::deny("u2", &"x".repeat(5000), Vec::new()).to_json();
        assert_eq!(denied["response"]["allowed"], false);
        assert_eq!(denied["response"]["status"]["code"], 403);
        let message = denied["response"]["status"]["message"].as_str().unwrap();
        assert_eq!(message.len(), MAX_MESSAGE);
        let plain = Verdict::allow("u3", None, Vec::new()).to_json();
        assert_eq!(
            plain,
            json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
                   "response": {"uid": "u3", "allowed": true}})
        );
    }
}
