//! The patch: RFC 6902 on image fields and one annotation, nothing else.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::api::annotations::APPLIED;

#[derive(Serialize)]
struct Operation<'a> {
    op: &'static str,
    path: &'a str,
    value: Value<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Value<'a> {
    Text(&'a str),
    Annotations(std::collections::BTreeMap<&'static str, &'a str>),
}

/// A patch in base64, or none if nothing changes. `images` are pointers to image fields that exist, and their new values;
/// `applied` is the new value of that annotation.
pub fn encode(images: &[(String, String)], applied: Option<&str>, has_annotations: bool) -> Option<String> {
    let mut operations: Vec<Operation<'_>> = images
        .iter()
        .map(|(path, reference)| Operation { op: "replace", path, value: Value::Text(reference) })
        .collect();
    // RFC 6901: a slash in a key is written ~1.
    let pointer = format!("/metadata/annotations/{}", APPLIED.replace('~', "~0").replace('/', "~1"));
    if let Some(applied) = applied {
        operations.push(if has_annotations {
            Operation { op: "add", path: &pointer, value: Value::Text(applied) }
        } else {
            let annotations = std::iter::once((APPLIED, applied)).collect();
            Operation { op: "add", path: "/metadata/annotations", value: Value::Annotations(annotations) }
        });
    }
    if operations.is_empty() {
        return None;
    }
    // Strings and maps of strings can always be written as JSON.
    serde_json::to_vec(&operations).ok().map(|json| STANDARD.encode(json))
}
