//! Admission reviews, and Pods inside one: whatever the bytes, there is an answer in JSON or a named error. A patch fits the
//! Pod, changes nothing but images of its containers and one annotation, and is empty when the Pod is sent again.
#![no_main]

use std::sync::LazyLock;

use jiff::Timestamp;
use kimup::admission::Verdict;
use kimup::admission::review::{Review, Step};
use kimup::api::Image;
use kimup::index::question::Answered;
use kimup::index::{Entry, Seen, Snapshot};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};

static KNOWN: LazyLock<Snapshot> = LazyLock::new(|| {
    let mut snapshot = Snapshot::default();
    let labels = [("kimup.cloudavenue.io/enabled".to_owned(), "true".to_owned())];
    snapshot.put_namespace("shop", &labels.into(), &[].into());
    for (name, status) in [("app", json!({"tag": "1.4.2"})), ("fresh", Value::Null)] {
        let image: Image = serde_json::from_value(json!({
            "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image", "metadata": {"name": name},
            "spec": {"image": name, "triggers": [{"type": "interval", "value": "5m"}],
                "rules": [{"name": "r", "type": "semver-minor", "actions": [{"type": "apply"}]}]},
            "status": status,
        }))
        .expect("an Image");
        let entry = Entry::read(&image, Timestamp::UNIX_EPOCH);
        snapshot.put_image("shop", name, Seen::Read(entry.into()));
    }
    snapshot
});

fuzz_target!(|bytes: &[u8]| {
    answered(bytes);
    if let Ok(object) = serde_json::from_slice(bytes) {
        created(&object);
    }
    if let Ok(text) = std::str::from_utf8(bytes) {
        created(&pod(text));
    }
});

/// A Pod of lines: `c` and an image, `i` and an image of an init container, or a key and a value of an annotation.
fn pod(text: &str) -> Value {
    let (mut main, mut init, mut annotations) = (Vec::new(), Vec::new(), Map::new());
    for (key, value) in text.lines().filter_map(|line| line.split_once(' ')) {
        match key {
            "c" => main.push(json!({"name": format!("c{}", main.len()), "image": value, "other": value})),
            "i" => init.push(json!({"name": format!("i{}", init.len()), "image": value})),
            key => _ = annotations.insert(key.replace("kimup/", "kimup.cloudavenue.io/"), json!(value)),
        }
    }
    let labels = json!({"pod-template-hash": "5d8f"});
    let owners = json!([{"kind": "ReplicaSet", "name": "web-5d8f", "uid": "1", "controller": main.len() % 2 == 0}]);
    json!({
        "metadata": {"annotations": annotations, "labels": labels, "ownerReferences": owners},
        "spec": {"containers": main, "initContainers": init},
    })
}

fn created(object: &Value) {
    let decide = |object: &Value| {
        let resource = json!({"group": "", "version": "v1", "resource": "pods"});
        let request =
            json!({"uid": "u", "namespace": "shop", "operation": "CREATE", "resource": resource, "object": object});
        let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request});
        answered(body.to_string().as_bytes())
    };
    let Some(verdict) = decide(object) else { return };
    let mut result = object.clone();
    json_patch::patch(&mut result, &verdict.patch().expect("a patch")).expect("it fits");
    assert_eq!(rest(&result), rest(object));
    let again = decide(&result).expect("it was answered before");
    assert!(again.patch().expect("a patch").is_empty(), "{object} {again:?}");
}

/// The answer, where sync would say 1.5.0 to every question.
fn answered(body: &[u8]) -> Option<Verdict> {
    let review = Review::parse(body).ok()?;
    let verdict = match review.decide(&KNOWN).ok()? {
        Step::Done(verdict) => verdict,
        Step::Ask(plan) => {
            let answer = || Ok(Answered::new(Some("1.5.0".to_owned()), ""));
            let answers = plan.questions().into_iter().map(|question| (question, answer())).collect();
            plan.finish(&answers)
        }
    };
    let written: Value = serde_json::from_str(&verdict.to_json().expect("an answer")).expect("it is JSON");
    assert_eq!(written["response"]["allowed"], verdict.refusal().is_none());
    Some(verdict)
}

/// An object without what may change in it.
fn rest(object: &Value) -> Value {
    let mut rest = object.clone();
    for list in ["/spec/containers", "/spec/initContainers"] {
        let containers = rest.pointer_mut(list).and_then(Value::as_array_mut);
        for container in containers.into_iter().flatten().filter_map(Value::as_object_mut) {
            container.remove("image");
        }
    }
    if let Some(metadata) = rest.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("kimup.cloudavenue.io/applied");
        }
        if metadata.get("annotations").is_some_and(|left| left.is_null() || *left == json!({})) {
            metadata.remove("annotations");
        }
    }
    rest
}
