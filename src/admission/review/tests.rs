use std::sync::LazyLock;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;
use crate::api::Image;
use crate::index::NamespaceEntry;

mod properties;

fn image(name: &str, repository: &str, patch: &Value) -> Arc<ImageEntry> {
    let mut object = json!({
        "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
        "metadata": {"name": name, "namespace": "shop"},
        "spec": {
            "image": repository,
            "triggers": [{"type": "interval", "value": "5m"}],
            "rules": [{"name": "r", "type": "semver-minor", "actions": [{"type": "apply"}]}]
        },
        "status": {"tag": "1.4.2"}
    });
    json_patch::merge(&mut object, patch);
    Arc::new(ImageEntry::of(&serde_json::from_value::<Image>(object).unwrap()).unwrap())
}

/// `in` is opted in, `out` is not, `lenient` is opted in and ignores failures. Of `app` 1.4.2 is settled, of `new` and
/// `newer` nothing is known, `gated` must not choose.
static SNAPSHOT: LazyLock<Snapshot> = LazyLock::new(|| {
    let images = || {
        let record = json!({"status": {"revisions": [
            {"owner": "ReplicaSet/web", "uid": "rs", "hash": "h", "containers": {"app": "app:1.0.0 app:1.3.0"}}]}});
        [
            image("web", "app", &record),
            image("new", "new", &json!({"status": null})),
            image("newer", "newer", &json!({"status": null})),
            image("gated", "gated", &json!({"status": null, "spec": {"suspend": true}})),
        ]
    };
    let settings = |enabled, failure_policy| NamespaceSettings { enabled, failure_policy, ..Default::default() };
    [
        ("in", settings(true, FailurePolicy::Fail)),
        ("out", settings(false, FailurePolicy::Fail)),
        ("lenient", settings(true, FailurePolicy::Ignore)),
    ]
    .into_iter()
    .map(|(name, settings)| (name.to_owned(), NamespaceEntry::new(settings, images())))
    .collect()
});

/// A Pod with one container `app`.
fn pod(text: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-1"},
        "spec": {"containers": [{"name": "app", "image": text}]}})
}

fn annotated(text: &str, annotations: &Value) -> Value {
    let mut pod = pod(text);
    pod["metadata"]["annotations"] = annotations.clone();
    pod
}

fn body(namespace: &str, object: &Value) -> Value {
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "42", "namespace": namespace, "operation": "CREATE",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "object": object, "oldObject": null, "dryRun": true,
    }})
}

/// The answer to a Pod, when questions come to `answer`.
fn ask(namespace: &str, object: &Value, answer: Result<&str, &str>) -> Value {
    answer_to(&body(namespace, object), answer)
}

fn answer_to(body: &Value, answer: Result<&str, &str>) -> Value {
    let mut review = Review::parse(body.to_string().as_bytes(), &SNAPSHOT).unwrap();
    for image in review.questions() {
        review.resolve(&image, answer.map(str::to_owned).map_err(str::to_owned));
    }
    let response = review.respond();
    let (allowed, patched) = (response.is_allowed(), response.is_patched());
    let json = serde_json::to_value(&response).unwrap();
    assert_eq!((&json["apiVersion"], &json["kind"]), (&json!("admission.k8s.io/v1"), &json!("AdmissionReview")));
    let response = json["response"].clone();
    assert_eq!((&response["uid"], &response["allowed"]), (&json!("42"), &json!(allowed)));
    assert_eq!(response.get("patch").is_some(), patched);
    assert_eq!(response.get("patchType"), patched.then_some(&json!("JSONPatch")), "the type goes with the patch");
    response
}

fn patch_of(response: &Value) -> Value {
    let Some(patch) = response["patch"].as_str() else {
        return json!([]);
    };
    serde_json::from_slice(&STANDARD.decode(patch).unwrap()).unwrap()
}

fn patched(object: &Value, response: &Value) -> Value {
    let mut object = object.clone();
    let operations: json_patch::Patch = serde_json::from_value(patch_of(response)).unwrap();
    json_patch::patch(&mut object, &operations).unwrap();
    object
}

const ENABLED: &str = annotations::ENABLED;
const FAILURES: &str = annotations::FAILURE_POLICY;
const APPLIED: &str = annotations::APPLIED;
const STAMP: &str = "stamp.kimup.cloudavenue.io/app";

#[test]
fn pods_that_are_opted_in_are_changed() {
    fn check(namespace: &str, annotations: &Value, expected: &str) {
        let object = annotated("app:1.0.0", annotations);
        let found = patched(&object, &ask(namespace, &object, Err("not asked")));
        assert_eq!(found["spec"]["containers"][0]["image"], expected, "{namespace} {annotations}");
    }
    check("in", &json!({}), "app:1.4.2");
    check("in", &json!(null), "app:1.4.2");
    check("in", &json!({ENABLED: "false"}), "app:1.0.0");
    check("in", &json!({ENABLED: "yes"}), "app:1.0.0");
    check("out", &json!({}), "app:1.0.0");
    check("out", &json!({ENABLED: "true"}), "app:1.4.2");
    check("unknown", &json!({ENABLED: "true"}), "app:1.0.0");
    check("in", &json!({"kubernetes.io/config.mirror": "x"}), "app:1.0.0");
    // A stamp opts in, unless the Pod says no.
    check("out", &json!({STAMP: "app:1.0.0 app:1.2.0"}), "app:1.2.0");
    check("unknown", &json!({STAMP: "app:1.0.0 app:1.2.0"}), "app:1.2.0");
    check("in", &json!({STAMP: "app:1.0.0 app:1.2.0", ENABLED: "false"}), "app:1.0.0");
    check("in", &json!({STAMP: "app:0.9.0 app:1.2.0"}), "app:1.0.0");
    check("in", &json!({STAMP: "nonsense"}), "app:1.4.2");
}

#[test]
fn the_patch_says_the_least() {
    fn check(object: &Value, expected: &Value) {
        assert_eq!(patch_of(&ask("in", object, Ok("2.0.0"))), *expected, "{object}");
    }
    let image = |path: &str, value: &str| json!({"op": "replace", "path": path, "value": value});
    let (app, note) = ("/spec/containers/0/image", "app: 1.0.0 -> 1.4.2 (Image web)");
    // The annotations are there, empty, null or absent.
    let added = json!({"op": "add", "path": "/metadata/annotations/kimup.cloudavenue.io~1applied", "value": note});
    let made = json!({"op": "add", "path": "/metadata/annotations", "value": {APPLIED: note}});
    check(&annotated("app:1.0.0", &json!({"other": "x"})), &json!([image(app, "app:1.4.2"), added]));
    check(&annotated("app:1.0.0", &json!({})), &json!([image(app, "app:1.4.2"), added]));
    check(&annotated("app:1.0.0", &json!(null)), &json!([image(app, "app:1.4.2"), made]));
    check(&pod("app:1.0.0"), &json!([image(app, "app:1.4.2"), made]));
    // An answer that leaves the image as it is, is on record all the same.
    let kept = json!({"op": "add", "path": "/metadata/annotations", "value": {APPLIED: "app: 1.9.0 (Image web)"}});
    check(&pod("app:1.9.0"), &json!([kept]));
    check(&pod("other:1.0.0"), &json!([]));
    check(&pod("app:1.0.0@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), &json!([]));
    // Init containers, several containers, one without an image, one that is asked about.
    let many = json!({"metadata": {}, "spec": {
        "initContainers": [{"name": "x", "image": "other:1"}, {"name": "init", "image": "app:1.0.0"}],
        "containers": [{"name": "none"}, {"name": "app", "image": "app"}, {"name": "new", "image": "new:1.0.0"}],
    }});
    let notes = "init: 1.0.0 -> 1.4.2 (Image web); app: (no tag) -> 1.4.2 (Image web); new: 1.0.0 -> 2.0.0 (Image new)";
    let expected = json!([
        image("/spec/initContainers/1/image", "app:1.4.2"),
        image("/spec/containers/1/image", "app:1.4.2"),
        image("/spec/containers/2/image", "new:2.0.0"),
        {"op": "add", "path": "/metadata/annotations", "value": {APPLIED: notes}},
    ]);
    check(&many, &expected);
    // An entry of the same container that is not true any more gives way.
    let old = annotated("app:1.0.0", &json!({APPLIED: "app: 0.9.0 -> 1.2.0 (Image web)"}));
    check(&old, &json!([image(app, "app:1.4.2"), added]));
    // What somebody else wrote into our annotation is not kept.
    let junk = annotated("app:1.0.0", &json!({APPLIED: "junk; old: 1 -> 2 (Image x)"}));
    let note = format!("old: 1 -> 2 (Image x); {note}");
    let added = json!({"op": "add", "path": "/metadata/annotations/kimup.cloudavenue.io~1applied", "value": note});
    check(&junk, &json!([image(app, "app:1.4.2"), added]));
}

#[test]
fn a_revision_and_a_rollout_are_recognised() {
    fn check(metadata: &Value, expected: &str) {
        let mut object = pod("app:1.0.0");
        json_patch::merge(&mut object, &json!({"metadata": metadata}));
        let found = patched(&object, &ask("in", &object, Err("not asked")));
        assert_eq!(found["metadata"]["annotations"][APPLIED], expected, "{metadata}");
    }
    let owner = |uid: &str, controller: bool| json!([{"kind": "ReplicaSet", "name": "web", "uid": uid, "controller": controller}]);
    let recorded = "app: 1.0.0 -> 1.3.0 (Image web)";
    let settled = "app: 1.0.0 -> 1.4.2 (Image web)";
    check(&json!({"labels": {"pod-template-hash": "h"}, "ownerReferences": owner("rs", true)}), recorded);
    check(&json!({"labels": {"controller-revision-hash": "h"}, "ownerReferences": owner("rs", true)}), recorded);
    check(&json!({"labels": {"pod-template-hash": "other"}, "ownerReferences": owner("rs", true)}), settled);
    check(&json!({"labels": {"pod-template-hash": "h"}, "ownerReferences": owner("rs", false)}), settled);
    check(&json!({"labels": {"pod-template-hash": "h"}, "ownerReferences": owner("x", true)}), settled);
    let stamped = json!({"labels": {"kimup.cloudavenue.io/rollout": "ab12", "pod-template-hash": "h"},
        "annotations": {STAMP: "app:1.0.0 app:1.1.0"}, "ownerReferences": owner("rs", true)});
    check(&stamped, "app: 1.0.0 -> 1.1.0 (Image web, rollout ab12)");
}

#[test]
fn what_cannot_be_answered_follows_the_failure_policy() {
    /// `expected`: whether the Pod is denied.
    fn check(namespace: &str, text: &str, own: Option<&str>, answer: Result<&str, &str>, expected: bool) {
        let annotations = own.map_or_else(|| json!({ENABLED: "true"}), |own| json!({ENABLED: "true", FAILURES: own}));
        let response = ask(namespace, &annotated(text, &annotations), answer);
        assert_eq!(response["allowed"], !expected, "{namespace} {text} {own:?} {answer:?}");
        assert_eq!(response.get("status").is_some(), expected);
    }
    let why = Err("the registry did not answer in time");
    check("in", "new:1.0.0", None, why, true);
    check("in", "new:1.0.0", Some("ignore"), why, false);
    check("in", "new:1.0.0", Some("sometimes"), why, true);
    check("lenient", "new:1.0.0", None, why, false);
    check("lenient", "new:1.0.0", Some("fail"), why, true);
    check("lenient", "new:1.0.0", Some("sometimes"), why, false);
    check("in", "new:1.0.0", None, Ok("1.0.0"), false);
    // Nobody's business, or known: never denied.
    check("in", "other:1.0.0", None, why, false);
    check("in", "app:1.0.0", None, why, false);
    check("in", "gated:1.0.0", None, why, false);
    check("unknown", "new:1.0.0", None, why, false);
}

#[test]
fn a_denial_says_what_to_do() {
    let mut object = pod("new:1.0.0");
    object["spec"]["initContainers"] =
        json!([{"name": "init", "image": "new:1.0.0"}, {"name": "known", "image": "app:1"}]);
    let response = ask("in", &object, Err("registry down"));
    let message = "kimup: container \"init\": Image in/new has no tag yet: registry down; \
        container \"app\": Image in/new has no tag yet: registry down. \
        Look at it with: kubectl describe images -n in; or let Pods start with the tag of their manifest: \
        annotation kimup.cloudavenue.io/failure-policy: ignore on the Pod, or label on the Namespace";
    assert_eq!(response["status"], json!({"message": message, "reason": "Forbidden", "code": 403}));
    assert_eq!(response.get("patch"), None);
    assert_eq!(response.get("warnings"), None);
}

#[test]
fn warnings_are_said_and_cut() {
    fn check(namespace: &str, annotations: &Value, text: &str, expected: &[&str]) {
        let response = ask(namespace, &annotated(text, annotations), Err("registry down"));
        let warnings: Vec<&str> =
            response["warnings"].as_array().into_iter().flatten().map(|w| w.as_str().unwrap()).collect();
        assert_eq!(warnings.len(), expected.len(), "{warnings:?}");
        for (found, part) in warnings.iter().zip(expected) {
            assert!(found.starts_with("kimup: ") && found.contains(part), "{found:?} lacks {part:?}");
            assert!(found.len() <= 256, "{found}");
        }
    }
    let long = "é".repeat(200);
    check("in", &json!({}), "app:1.0.0", &[]);
    check("lenient", &json!({}), "new:1.0.0", &["Image lenient/new has no tag yet: registry down; it keeps the tag"]);
    check(
        "in",
        &json!({ENABLED: "on"}),
        "app:1.0.0",
        &["unknown value \"on\"; use \"true\" or \"false\"; the Pod stays"],
    );
    check(
        "in",
        &json!({FAILURES: "x"}),
        "app:1.0.0",
        &["unknown value \"x\"; use \"fail\" or \"ignore\"; the Namespace's"],
    );
    check("in", &json!({ENABLED: long}), "app:1.0.0", &["unknown value \"éé"]);
    let policy = "the annotation kimup.cloudavenue.io/policy is not acted on";
    check("in", &json!({annotations::POLICY: "minor"}), "app:1.0.0", &[policy]);
    check("in", &json!({"policy.kimup.cloudavenue.io/app": "minor"}), "app:1.0.0", &[policy]);
    check("in", &json!({STAMP: "app:1.0.0 evil:9"}), "app:1.0.0", &["its stamp names another repository"]);
    check("in", &json!({}), "gated:1.0.0", &["Image gated: spec.suspend is not acted on by this version"]);

    let mut object = pod("other:1");
    let containers = (0..30).map(|i| json!({"name": format!("c{i}"), "image": "new:1.0.0"}));
    object["spec"]["containers"] = containers.collect();
    let response = ask("lenient", &object, Err(&"x".repeat(1000)));
    assert_eq!(response["warnings"].as_array().unwrap().len(), 10);
    assert!(response["warnings"].as_array().unwrap().iter().all(|w| w.as_str().unwrap().len() == 256));
}

#[test]
fn each_image_is_asked_about_once() {
    let object = json!({"metadata": {}, "spec": {"containers": [
        {"name": "a", "image": "new:1.0.0"}, {"name": "b", "image": "docker.io/library/new:3.0.0"},
        {"name": "c", "image": "newer:1.0.0"}, {"name": "d", "image": "app:1.0.0"}]}});
    let mut review = Review::parse(body("in", &object).to_string().as_bytes(), &SNAPSHOT).unwrap();
    let questions = review.questions();
    assert_eq!(questions.iter().map(|image| image.name.as_str()).collect::<Vec<_>>(), ["new", "newer"]);
    assert_eq!(review.namespace(), "in");
    review.resolve(&questions[0], Ok("2.0.0".to_owned()));
    // One that nobody asked about is no reason to admit.
    let response = serde_json::to_value(review.respond()).unwrap();
    assert_eq!(response["response"]["allowed"], false);
    let response = ask("in", &object, Ok("2.0.0"));
    let found = patched(&object, &response);
    let images: Vec<_> = found["spec"]["containers"].as_array().unwrap().iter().map(|c| c["image"].clone()).collect();
    assert_eq!(images, ["new:2.0.0", "docker.io/library/new:3.0.0", "newer:2.0.0", "app:1.4.2"]);
}

#[test]
fn only_the_creation_of_pods_is_answered() {
    fn check(patch: &Value, changed: bool) {
        let mut body = body("in", &pod("app:1.0.0"));
        json_patch::merge(&mut body, patch);
        let response = answer_to(&body, Err("not asked"));
        assert_eq!(response["allowed"], true, "{patch}");
        assert_eq!(response.get("patch").is_some(), changed, "{patch}");
    }
    let request = |request: &Value| json!({"request": request});
    check(&json!({}), true);
    check(&json!({"unknown": {"deep": [1, null]}, "request": {"more": "é\n\"", "subResource": ""}}), true);
    check(&request(&json!({"operation": "UPDATE"})), false);
    check(&request(&json!({"operation": "DELETE", "object": null})), false);
    check(&request(&json!({"operation": null, "subResource": "binding", "object": {"target": {}}})), false);
    check(&request(&json!({"subResource": "ephemeralcontainers"})), false);
    check(&request(&json!({"object": null})), false);
    check(&request(&json!({"resource": {"resource": "deployments", "group": "apps"}, "object": {"spec": 7}})), false);
    check(&request(&json!({"resource": {"group": "metrics.k8s.io"}})), false);
}

#[test]
fn what_is_no_review_is_an_error() {
    fn check(body: &[u8], expected: &str) {
        let error = Review::parse(body, &SNAPSHOT).err().map(|e| e.to_string()).unwrap_or_default();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
    let with = |patch: &Value| {
        let mut body = body("in", &pod("app:1.0.0"));
        json_patch::merge(&mut body, patch);
        body.to_string().into_bytes()
    };
    let malformed = "the body is no admission.k8s.io/v1 AdmissionReview of a Pod: ";
    check(b"", malformed);
    check(b"\xff\xfe{}", malformed);
    check(b"[]", malformed);
    check(b"{\"request\":", malformed);
    check("[".repeat(100_000).as_bytes(), malformed);
    check(b"{}", "is not answered here; send admission.k8s.io/v1 AdmissionReview");
    check(&with(&json!({"apiVersion": "admission.k8s.io/v1beta1"})), "admission.k8s.io/v1beta1 AdmissionReview is not");
    check(&with(&json!({"kind": "Pod"})), "admission.k8s.io/v1 Pod is not");
    check(&with(&json!({"request": null})), "the AdmissionReview has no request");
    check(&with(&json!({"request": {"uid": null}})), malformed);
    check(&with(&json!({"request": {"object": {"spec": null}}})), malformed);
    check(&with(&json!({"request": {"object": {"spec": {"containers": 7}}}})), malformed);
    check(&with(&json!({"request": {"object": {"metadata": {"annotations": {"a": 1}}}}})), malformed);
    check(&with(&json!({"request": {"object": "a Pod"}})), malformed);
}

#[test]
fn texts_with_escaped_characters_are_read() {
    // A parser that borrows every text from the body would fail on these.
    let body = body("in", &pod("app:1.0.0")).to_string();
    let escaped = body.replace("app:1.0.0", r"\u0061pp:1.0.0").replace("\"app\"", r#""\u0061pp""#);
    assert_ne!(escaped, body);
    let review = Review::parse(escaped.as_bytes(), &SNAPSHOT).unwrap();
    let response = serde_json::to_value(review.respond()).unwrap();
    assert_eq!(patch_of(&response["response"])[0]["value"], "app:1.4.2");
}
