use super::*;
use crate::index::testing::snapshot;
use json_patch::Patch;
use serde_json::{Value, json};

mod properties;

const TEXT: &str = "ghcr.io/org/app:1.0.0";

/// A review of a Pod's CREATE in the namespace `shop`.
fn review(pod: &Value) -> Value {
    json!({
        "apiVersion": VERSION, "kind": "AdmissionReview",
        "request": {
            "uid": "review-1", "namespace": "shop", "operation": "CREATE",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "resource": {"group": "", "version": "v1", "resource": "pods"},
            "name": "", "userInfo": {"username": "a"}, "object": pod, "oldObject": null, "dryRun": false,
        }
    })
}

fn pod(annotations: &Value, containers: &Value) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"annotations": annotations}, "spec": {"containers": containers}})
}

fn app(annotations: &Value) -> Value {
    pod(annotations, &json!([{"name": "app", "image": TEXT}]))
}

/// Decides, with the same answer to every question.
fn decide_with(review: &Value, known: &Snapshot, answer: &Result<Answered, String>) -> Result<Verdict, ReviewError> {
    let body = review.to_string();
    let review = Review::parse(body.as_bytes())?;
    Ok(match review.decide(known)? {
        Step::Done(verdict) => verdict,
        Step::Ask(plan) => {
            let questions = plan.questions().into_iter();
            plan.finish(&questions.map(|q| (q, answer.clone())).collect())
        }
    })
}

fn decided(pod: &Value, known: &Snapshot) -> Verdict {
    decide_with(&review(pod), known, &Err("no answer".to_owned())).unwrap()
}

/// The patch; none if nothing changes.
fn patch_of(verdict: &Verdict) -> Option<Patch> {
    Some(verdict.patch().unwrap()).filter(|patch| !patch.0.is_empty())
}

fn patched(pod: &Value, verdict: &Verdict) -> Value {
    let mut result = pod.clone();
    json_patch::patch(&mut result, &verdict.patch().unwrap()).unwrap();
    result
}

#[test]
fn only_images_and_the_annotation_change() {
    #[track_caller]
    fn check(pod: &Value, changes: &[(&str, &str)]) {
        let known = snapshot(&[json!({})]);
        let verdict = decided(pod, &known);
        let result = patched(pod, &verdict);
        let mut expected = pod.clone();
        for (path, value) in changes {
            match path.strip_prefix("applied") {
                Some(_) => expected["metadata"]["annotations"][annotations::APPLIED] = json!(value),
                None => *expected.pointer_mut(path).unwrap() = json!(value),
            }
        }
        assert_eq!(result, expected);
        assert_eq!(patch_of(&verdict).is_some(), !changes.is_empty());
        let again = decided(&result, &known);
        assert_eq!(patch_of(&again), None, "a second time changes nothing");
    }
    let to = "ghcr.io/org/app:1.4.2";
    let entry = "app: 1.0.0 -> 1.4.2 (Image web)";
    check(&app(&json!({})), &[("/spec/containers/0/image", to), ("applied", entry)]);
    check(&app(&Value::Null), &[("/spec/containers/0/image", to), ("applied", entry)]);
    let unknown = json!({
        "metadata": {"name": "p", "managedFields": [{"x": 1}], "future": {"a": [1, 2.50]}},
        "spec": {"future": true, "containers": [
            {"name": "side", "image": "ghcr.io/org/other:1"},
            {"name": "app", "image": TEXT, "env": [{"name": "ä\u{0}", "value": "\"\\"}], "future": null},
        ], "volumes": [{"image": {"reference": TEXT}}], "ephemeralContainers": [{"name": "e", "image": TEXT}]},
        "status": {"future": [null]},
    });
    check(&unknown, &[("/spec/containers/1/image", to), ("applied", entry)]);
    let init = json!({"metadata": {"annotations": {"a/b~c": "d"}}, "spec": {
        "initContainers": [{"name": "i", "image": "ghcr.io/org/app"}, {"name": "j", "image": "ghcr.io/org/app:1.9.0"}],
        "containers": [{"name": "app", "image": TEXT}],
    }});
    let entries = format!("{entry}; i: (no tag) -> 1.4.2 (Image web); j: 1.9.0 (Image web)");
    check(&init, &[("/spec/containers/0/image", to), ("/spec/initContainers/0/image", to), ("applied", &entries)]);
    // Entries of other containers are kept.
    let before = json!({annotations::APPLIED: "side: 1 -> 2 (Image x); app: 0.1.0 -> 0.2.0 (Image web)"});
    check(&app(&before), &[("/spec/containers/0/image", to), ("applied", &format!("side: 1 -> 2 (Image x); {entry}"))]);
    let uncovered = pod(&json!({}), &json!([{"name": "app", "image": "nginx:1"}, {"name": "b"}, {"image": TEXT}]));
    check(&uncovered, &[]);
    check(&json!({"metadata": {}, "spec": {"containers": null}}), &[]);
    check(&json!({"metadata": {}, "spec": {}}), &[]);
}

#[test]
fn who_is_opted_in() {
    #[track_caller]
    fn check(annotations: &Value, namespace: &Value, changed: bool, warning: &str) {
        let mut known = snapshot(&[json!({})]);
        let labels = serde_json::from_value(namespace.clone()).unwrap();
        known.put_namespace("shop", &labels, &Map::new());
        let verdict = decided(&app(annotations), &known);
        assert_eq!(patch_of(&verdict).is_some(), changed, "{annotations} {namespace}");
        let warnings = verdict.warnings().join("\n");
        assert_eq!(warning.is_empty(), warnings.is_empty(), "{warnings}");
        assert!(warnings.contains(warning), "{warnings:?} lacks {warning:?}");
    }
    let on = json!({annotations::ENABLED: "true"});
    let off = json!({annotations::ENABLED: "false"});
    let none = json!({});
    check(&none, &none, false, "");
    check(&none, &on, true, "");
    check(&on, &none, true, "");
    check(&on, &off, true, "");
    check(&off, &on, false, "");
    check(&json!({annotations::ENABLED: "yes"}), &on, false, "kimup.cloudavenue.io/enabled: unknown value \"yes\"");
    let stamp = json!({"stamp.kimup.cloudavenue.io/app": format!("{TEXT} ghcr.io/org/app:1.1.0")});
    check(&stamp, &none, true, "");
    check(&json!({MIRROR_POD: "x"}), &on, false, "");
    let wrong = json!({annotations::ENABLED: "true", FAILURE_POLICY: "Ignore"});
    check(&none, &wrong, true, "Namespace shop: annotation kimup.cloudavenue.io/failure-policy: unknown value");
    check(&wrong, &none, true, "annotation kimup.cloudavenue.io/failure-policy: unknown value \"Ignore\"");
    let wrong = |key: &str, value: &str| json!({format!("kimup.cloudavenue.io/{key}"): value});
    check(&wrong("policy", "patsh"), &on, false, "annotation kimup.cloudavenue.io/policy: unknown policy \"patsh\"");
    check(&wrong("policy", "patsh"), &none, false, "annotation kimup.cloudavenue.io/policy: unknown policy \"patsh\"");
    check(&wrong("pattern", "^v"), &on, true, "annotation kimup.cloudavenue.io/pattern has no effect without");
    check(&wrong("interval", "1m"), &none, false, "");
    let own = |value: &str| json!({"enabled.kimup.cloudavenue.io/app": value});
    check(&own("true"), &none, true, "");
    check(&own("true"), &off, true, "");
    check(&own("false"), &on, false, "");
    check(&own("no"), &on, false, "annotation enabled.kimup.cloudavenue.io/app: unknown value \"no\"; use");
    // No Image covers it, and nothing else opts in: only the stamp is left.
    let other = json!({"stamp.kimup.cloudavenue.io/app": "ghcr.io/org/x:1 ghcr.io/org/x:2"});
    let containers = json!([{"name": "app", "image": "ghcr.io/org/x:1"}]);
    let known = |labels: &Value| {
        let mut known = snapshot(&[json!({})]);
        known.put_namespace("shop", &serde_json::from_value(labels.clone()).unwrap(), &Map::new());
        known
    };
    assert_eq!(patch_of(&decided(&pod(&other, &containers), &known(&none))), None);
    assert!(patch_of(&decided(&pod(&other, &containers), &known(&on))).is_some());
}

#[test]
fn a_namespace_that_is_not_known_yet_counts_as_opted_in() {
    let mut known = snapshot(&[json!({})]);
    known.remove_namespace("shop");
    assert!(patch_of(&decided(&app(&json!({})), &known)).is_some());
    let off = app(&json!({annotations::ENABLED: "false"}));
    assert!(patch_of(&decided(&off, &known)).is_none());
}

#[test]
fn an_entry_that_selects_by_label_opts_in_a_namespace_that_seems_not_to_be() {
    #[track_caller]
    fn check(path: &str, namespace: &Value, own: &Value, changed: bool) {
        let mut known = snapshot(&[json!({})]);
        known.put_namespace("shop", &serde_json::from_value(namespace.clone()).unwrap(), &Map::new());
        let body = review(&app(own)).to_string();
        let review = Review::parse(body.as_bytes()).unwrap().by(Entry::of_path(path));
        let Step::Done(verdict) = review.decide(&known).unwrap() else { panic!("asks") };
        assert_eq!(patch_of(&verdict).is_some(), changed, "{path} {namespace} {own}");
        assert!(verdict.warnings().is_empty());
        // What cannot be answered for another reason goes by the same settings.
        let opted_in = changed && !path.ends_with("-ignore");
        assert_eq!(review.cannot(&known, "a bug").refusal().is_some(), opted_in, "{path} {namespace} {own}");
    }
    let (none, off) = (json!({}), json!({annotations::ENABLED: "false"}));
    for stale in [&none, &off] {
        check("/mutate", stale, &none, false);
        check("/mutate/pods-fail", stale, &none, false);
        check("/mutate/annotated-fail", stale, &none, false);
        check("/mutate/labelled-fail", stale, &none, true);
        check("/mutate/labelled-ignore", stale, &none, true);
        check("/mutate/labelled-fail", stale, &off, false);
    }
}

#[test]
fn a_pod_without_an_answer_goes_by_the_failure_policy() {
    #[track_caller]
    fn check(own: &str, label: &str, annotation: &str, denied: bool) {
        let map = |value: &str| match value {
            "" => Map::new(),
            value => Map::from([(FAILURE_POLICY.to_owned(), value.to_owned())]),
        };
        let mut known = snapshot(&[json!({"status": null})]);
        known.put_namespace("shop", &map(label), &map(annotation));
        let mut annotations = map(own);
        annotations.insert(annotations::ENABLED.to_owned(), "true".to_owned());
        let containers = json!([{"name": "app", "image": TEXT}, {"name": "b", "image": "ghcr.io/org/app"}]);
        let pod = pod(&json!(annotations), &containers);
        let no_tag = Answered::new(None, "the registry refuses.");
        let illegal = Answered::new(Some("a b".to_owned()), "");
        for answer in [Ok(no_tag), Ok(illegal), Err("sync did not answer".to_owned())] {
            let verdict = decide_with(&review(&pod), &known, &answer).unwrap();
            assert_eq!(verdict.refusal().is_some(), denied, "{own:?} {label:?} {annotation:?}");
            assert_eq!(patch_of(&verdict), None);
            let warnings = verdict.warnings().join("\n");
            let named = warnings.contains("container \"app\" keeps its own image: Image shop/web has no tag yet: ");
            assert_eq!(named, !denied, "{warnings}");
        }
    }
    check("", "", "", true);
    check("ignore", "", "", false);
    check("", "ignore", "", false);
    check("", "", "ignore", false);
    check("fail", "ignore", "ignore", true);
    check("ignore", "fail", "fail", false);
    check("", "fail", "ignore", true);
    check("", "ignore", "fail", false);
    check("Ignore", "", "", true);
    check("Fail", "ignore", "", false);
}

#[test]
fn a_denial_says_what_to_do() {
    #[track_caller]
    fn check(image: &Value, answer: &str, expected: &str) {
        let containers = json!([{"name": "app", "image": TEXT}]);
        let pod = pod(&json!({}), &containers);
        let known = snapshot(std::slice::from_ref(image));
        let answered = Ok(Answered::new(None, answer));
        let verdict = decide_with(&review(&pod), &known, &answered).unwrap();
        assert_eq!(verdict.refusal(), Some(expected));
    }
    check(
        &json!({"status": null}),
        "ghcr.io refuses: 401.",
        "kimup: container \"app\": Image shop/web has no tag yet: ghcr.io refuses: 401. Wait for its first sync (kubectl \
         describe image web -n shop), or set kimup.cloudavenue.io/failure-policy: ignore on the Pod or the Namespace",
    );
    check(
        &json!({"status": null, "spec": {"triggers": [{"type": "interval", "value": "soon"}]}}),
        "",
        "kimup: container \"app\": Image shop/web has no tag, and its spec cannot be used: invalid interval \"soon\": \
         expected number at 0; use a duration such as 30s, 5m or 1h30m; fix spec.triggers[0].value. Correct it (kubectl \
         edit image web -n shop), or set kimup.cloudavenue.io/failure-policy: ignore on the Pod or the Namespace",
    );
}

#[test]
fn a_policy_without_an_image_is_asked_for() {
    #[track_caller]
    fn check(own: &Value, owner: &Value, containers: &[&str], answer: &Result<Answered, String>, expected: &str) {
        let containers: Vec<Value> = containers.iter().map(|name| json!({"name": name, "image": TEXT})).collect();
        let mut pod = pod(own, &json!(containers));
        pod["metadata"]["ownerReferences"] = owner.clone();
        pod["metadata"]["labels"] = json!({"pod-template-hash": "5d8f"});
        pod["spec"]["imagePullSecrets"] = json!([{"name": "pull"}, {}]);
        let verdict = decide_with(&review(&pod), &snapshot(&[]), answer).unwrap();
        let result = patched(&pod, &verdict);
        let told = match verdict.refusal() {
            Some(refusal) => refusal.to_owned(),
            None => {
                format!("{} {}", result["metadata"]["annotations"][annotations::APPLIED], verdict.warnings().join(""))
            }
        };
        assert_eq!(told, expected, "{own}");
    }
    let web = json!([{"kind": "ReplicaSet", "name": "web-5d8f", "uid": "1", "controller": true}]);
    let policy = json!({"kimup.cloudavenue.io/policy": "semver"});
    let image = crate::api::annotated::image_name("Deployment", "web", "app");
    let tag = Ok(Answered::new(Some("1.5.0".to_owned()), ""));
    check(&policy, &web, &["app"], &tag, &format!("\"app: 1.0.0 -> 1.5.0 (Image {image})\" "));
    let other = Ok(Answered { image: Some("n".to_owned()), ..Answered::new(Some("1.5.0".to_owned()), "") });
    check(&policy, &web, &["app"], &other, "\"app: 1.0.0 -> 1.5.0 (Image n)\" ");
    let hint = "or set kimup.cloudavenue.io/failure-policy: ignore on the Pod or the Namespace";
    let denied = |name: &str, reason: &str| {
        format!(
            "kimup: container {name:?}: no tag is known yet for its policy: {reason}. Wait for its Image {image} (kubectl \
             describe images -n shop), {hint}"
        )
    };
    check(&policy, &web, &["app"], &Err("no answer".to_owned()), &denied("app", "no answer"));
    check(&policy, &web, &["app"], &Ok(Answered::new(None, "nothing matches.")), &denied("app", "nothing matches"));
    // A Pod that nobody made has no Image before it is there.
    let bare = format!(
        "kimup: container \"app\": no tag is known yet for its policy: nothing matches. Create the Pod again once that is \
         solved, {hint}"
    );
    check(&policy, &Value::Null, &["app"], &Ok(Answered::new(None, "nothing matches.")), &bare);
    // A container was added on the way: sync tells which one is meant, and the other one is left alone.
    check(&policy, &web, &["app", "proxy"], &Ok(Answered::not_covered()), "null ");
    check(
        &policy,
        &Value::Null,
        &["app", "proxy"],
        &Err(String::new()),
        "null kimup: annotation kimup.cloudavenue.io/policy does not say which of the containers app, proxy it means; \
         name them in kimup.cloudavenue.io/containers, or use policy.kimup.cloudavenue.io/<container>",
    );
    let ignores = json!({"kimup.cloudavenue.io/policy": "semver", FAILURE_POLICY: "ignore"});
    check(
        &ignores,
        &web,
        &["app"],
        &Err("no answer".to_owned()),
        "null kimup: container \"app\" keeps its own image: no tag is known yet for its policy: no answer",
    );
}

#[test]
fn answers_are_put_in_and_each_question_is_asked_once() {
    let known = snapshot(&[
        json!({"status": null}),
        json!({"metadata": {"name": "db", "uid": "2"}, "spec": {"image": "postgres"}, "status": null}),
    ]);
    let containers = json!([
        {"name": "a", "image": TEXT}, {"name": "b", "image": "ghcr.io/org/app:2.0.0"}, {"name": "c", "image": "postgres:16.0.0"}
    ]);
    let pod = pod(&json!({}), &containers);
    let body = review(&pod).to_string();
    let parsed = Review::parse(body.as_bytes()).unwrap();
    let Step::Ask(plan) = parsed.decide(&known).unwrap() else { panic!("should ask") };
    let images: Vec<String> = plan.questions().into_iter().map(|q| q.image).collect();
    assert_eq!(images, ["web", "db"]);
    let tag = |tag: &str| Ok(Answered::new(Some(tag.to_owned()), ""));
    let answers = plan.questions().into_iter().zip([tag("1.5.0"), tag("16.2.0")]).collect();
    let result = patched(&pod, &plan.finish(&answers));
    let image = |i: usize| result["spec"]["containers"][i]["image"].as_str().unwrap();
    assert_eq!([image(0), image(1), image(2)], ["ghcr.io/org/app:1.5.0", "ghcr.io/org/app:2.0.0", "postgres:16.2.0"]);
    assert_eq!(
        result["metadata"]["annotations"][annotations::APPLIED],
        "a: 1.0.0 -> 1.5.0 (Image web); b: 2.0.0 (Image web); c: 16.0.0 -> 16.2.0 (Image db)"
    );
}

#[test]
fn other_requests_get_a_clear_answer() {
    #[track_caller]
    fn check(patch: &Value, own: &Value, denied: bool, expected: &str) {
        let mut body = review(&app(own));
        json_patch::merge(&mut body, patch);
        let verdict = decide_with(&body, &snapshot(&[json!({})]), &Err(String::new())).unwrap();
        assert_eq!(verdict.refusal().is_some(), denied, "{patch}");
        assert_eq!(patch_of(&verdict), None);
        let told = verdict.refusal().map_or_else(|| verdict.warnings().join("\n"), str::to_owned);
        assert!(told.contains(expected), "{told:?} lacks {expected:?}");
    }
    let update = json!({"request": {"operation": "UPDATE"}});
    let none = json!({});
    check(&update, &none, true, "answers for Pods at CREATE, not for UPDATE of pods");
    check(&update, &json!({FAILURE_POLICY: "ignore"}), false, "correct the rules of the webhook");
    check(&update, &json!({annotations::ENABLED: "false"}), false, "not for UPDATE of pods");
    let resource = |name: &str| json!({"request": {"resource": {"group": "apps", "version": "v1", "resource": name}}});
    check(&resource("deployments"), &none, true, "not for CREATE of deployments");
    check(&json!({"request": {"subResource": "binding"}}), &none, true, "not for CREATE of pods");
    check(&json!({"request": {"operation": "DELETE", "object": null}}), &none, true, "not for DELETE of pods");
    check(&json!({"request": {"operation": "CONNECT", "object": 7}}), &none, true, "not for CONNECT of pods");
}

#[test]
fn full_annotations_get_nothing_added() {
    #[track_caller]
    fn check(free: usize, mut own: Map, written: bool) {
        let used: usize = own.iter().map(|(key, value)| key.len() + value.len()).sum();
        own.insert("note".to_owned(), "x".repeat(MAX_ANNOTATIONS - used - "note".len() - free));
        let verdict = decided(&app(&json!(own)), &snapshot(&[json!({})]));
        let paths: Vec<String> =
            verdict.patch().unwrap().iter().map(|operation| operation.path().to_string()).collect();
        assert_eq!(paths[0], "/spec/containers/0/image");
        assert_eq!(paths.len() == 2, written, "{paths:?}");
        assert_eq!(verdict.warnings().is_empty(), written, "{:?}", verdict.warnings());
    }
    let entry = "app: 1.0.0 -> 1.4.2 (Image web)";
    let size = annotations::APPLIED.len() + entry.len();
    check(size, Map::new(), true);
    check(size - 1, Map::new(), false);
    check(0, Map::new(), false);
    // What is replaced makes room.
    let longer = Map::from([(annotations::APPLIED.to_owned(), "app: 0.1.0-rc.1 -> 0.2.0-rc.1 (Image web)".to_owned())]);
    check(0, longer, true);
    let shorter = Map::from([(annotations::APPLIED.to_owned(), "app: 1 -> 2".to_owned())]);
    check(0, shorter, false);
}

#[test]
fn containers_are_counted() {
    #[track_caller]
    fn check(regular: usize, init: usize, own: &Value, denied: bool, expected: &str) {
        let named = |count: usize| vec![json!({"name": "app", "image": TEXT}); count];
        let mut body = pod(own, &json!(named(regular)));
        body["spec"]["initContainers"] = json!(named(init));
        let verdict = decided(&body, &snapshot(&[json!({})]));
        assert_eq!(verdict.refusal().is_some(), denied);
        assert_eq!(patch_of(&verdict).is_some(), expected.is_empty());
        let told = verdict.refusal().map_or_else(|| verdict.warnings().join("\n"), str::to_owned);
        assert!(told.contains(expected), "{told:?} lacks {expected:?}");
    }
    let none = json!({});
    check(MAX_CONTAINERS, 0, &none, false, "");
    check(MAX_CONTAINERS - 10, 10, &none, false, "");
    check(MAX_CONTAINERS - 10, 11, &none, true, "this Pod has 1001 containers, and kimup answers for at most 1000");
    check(60_000, 0, &json!({FAILURE_POLICY: "ignore"}), false, "has 60000 containers");
}

#[test]
fn garbage_is_named() {
    #[track_caller]
    fn check(body: &str, expected: &str) {
        let known = snapshot(&[]);
        let error = Review::parse(body.as_bytes())
            .and_then(|review| review.decide(&known).map(|_| ()))
            .unwrap_err()
            .to_string();
        assert!(error.contains(expected), "{error:?} lacks {expected:?}");
    }
    check("", "the body cannot be read: EOF");
    check("{", "the body cannot be read: EOF");
    check("[]", "the body cannot be read");
    check("{}", "not \"\" of \"\"");
    let with = |patch: &Value| {
        let mut body = review(&app(&json!({})));
        json_patch::merge(&mut body, patch);
        body.to_string()
    };
    check(&with(&json!({"apiVersion": "admission.k8s.io/v1beta1"})), "of \"admission.k8s.io/v1beta1\"");
    check(&with(&json!({"kind": "Pod"})), "not \"Pod\"");
    check(&with(&json!({"request": null})), "no request");
    check(&with(&json!({"request": {"uid": 7}})), "invalid type: integer `7`");
    check(&with(&json!({"request": {"object": null}})), "no object");
    check(&with(&json!({"request": {"object": 7}})), "the body cannot be read");
    check(&with(&json!({"request": {"object": {"spec": {"containers": 7}}}})), "the body cannot be read");
}
