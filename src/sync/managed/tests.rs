//! What is written, what is left to the user, and what goes.

use super::*;
use crate::sync::source::JobSeen;
use serde_json::json;

fn source(annotations: &Value) -> Source {
    let object = json!({
        "metadata": {"name": "once", "namespace": "shop", "uid": "u"},
        "spec": {"template": {"metadata": {"annotations": annotations}, "spec": {"restartPolicy": "Never", "containers": [
            {"name": "app", "image": "app:1.0.0"}, {"name": "proxy", "image": "proxy:1"}]}}},
    });
    match crate::sync::source::of_job(&serde_json::from_value(object).unwrap()) {
        Some(JobSeen::Own(source)) => *source,
        other => panic!("{other:?}"),
    }
}

fn wanting(policy: &str) -> Source {
    source(&json!({"policy.kimup.cloudavenue.io/app": policy}))
}

fn wanted(source: &Source) -> (&str, &ImageSpec) {
    let (name, spec) = &source.wish.images["app"];
    (name, spec)
}

/// As the API server stores what `step` applies, with `patch` by somebody else.
fn stored(source: &Source, patch: &Value) -> Image {
    let (name, spec) = wanted(source);
    let Step::Apply(mut object) = step(None, source, name, spec) else { panic!("nothing to apply") };
    let mut fields = json!({"f:spec": {"f:image": {}}});
    if object["spec"].get("filter").is_some() {
        fields["f:spec"]["f:filter"] = json!({"f:pattern": {}});
    }
    if object["spec"].get("imagePullSecrets").is_some() {
        fields["f:spec"]["f:imagePullSecrets"] = json!({});
    }
    let entry = json!({"manager": FIELD_MANAGER, "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": fields});
    json_patch::merge(
        &mut object,
        &json!({"metadata": {"uid": "i", "resourceVersion": "9", "managedFields": [entry]}}),
    );
    json_patch::merge(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

#[test]
fn what_says_what_it_should_is_left_alone() {
    #[track_caller]
    fn check(patch: &Value, expected: &str) {
        let source = wanting("semver:^1");
        let (name, spec) = wanted(&source);
        let found = step(Some(&stored(&source, patch)), &source, name, spec);
        let found = match found {
            Step::Nothing => "nothing",
            Step::Apply(_) => "apply",
            Step::Remake => "remake",
            Step::Foreign => "foreign",
        };
        assert_eq!(found, expected, "{patch}");
    }
    let rule = |patch: &Value| {
        let mut rule = json!({"name": RULE_NAME, "type": "semver", "value": "^1", "actions": [{"type": "apply"}]});
        json_patch::merge(&mut rule, patch);
        rule
    };
    check(&json!({}), "nothing");
    // The user's.
    check(&json!({"spec": {"minAge": "24h", "suspend": true, "rollout": {"maxConcurrent": 3}}}), "nothing");
    check(&json!({"spec": {"filter": {"pattern": "mine", "exclude": ["x"]}}}), "nothing");
    check(&json!({"spec": {"imagePullSecrets": [{"name": "mine"}]}}), "nothing");
    check(&json!({"spec": {"rules": [rule(&json!({"actions": [{"type": "request-approval"}]}))]}}), "nothing");
    check(&json!({"spec": {"rules": [rule(&json!({"name": "mine"})), rule(&json!({}))]}}), "nothing");
    // Derived.
    check(&json!({"spec": {"image": "other"}}), "apply");
    check(&json!({"spec": {"baseTag": "0.9.0"}}), "apply");
    check(&json!({"spec": {"triggers": [{"type": "interval", "value": "1h"}]}}), "apply");
    check(&json!({"spec": {"rules": [rule(&json!({"value": "^2"}))]}}), "apply");
    check(&json!({"spec": {"rules": [rule(&json!({"name": "mine"}))]}}), "apply");
    // Not ours.
    check(&json!({"metadata": {"labels": {MANAGED_BY: "Helm"}}}), "foreign");
    check(&json!({"metadata": {"labels": null}}), "foreign");
    check(&json!({"metadata": {"ownerReferences": null}}), "foreign");
    let owner = |kind: &str, uid: &str| {
        let owner = json!({"apiVersion": "batch/v1", "kind": kind, "name": "once", "uid": uid, "controller": true});
        json!({"metadata": {"ownerReferences": [owner]}})
    };
    check(&owner("Job", "u"), "nothing");
    check(&owner("CronJob", "u"), "foreign");
    check(&owner("Job", "earlier"), "remake");
    check(&json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "spec": {"image": "other"}}), "nothing");
}

#[test]
fn what_annotations_no_longer_say_goes() {
    let key = "pattern.kimup.cloudavenue.io/app";
    let policy = "policy.kimup.cloudavenue.io/app";
    let secrets = "kimup.cloudavenue.io/image-pull-secrets";
    let before = source(&json!({policy: "semver", key: "^v", secrets: "one"}));
    let image = stored(&before, &json!({}));
    let (name, spec) = wanted(&before);
    assert_eq!(step(Some(&image), &before, name, spec), Step::Nothing);
    let after = wanting("semver");
    let (name, spec) = wanted(&after);
    let Step::Apply(body) = step(Some(&image), &after, name, spec) else { panic!("nothing changes") };
    assert_eq!((body["spec"].get("filter"), body["spec"].get("imagePullSecrets")), (None, None));
}

#[test]
fn an_apply_says_only_what_annotations_say() {
    let before = wanting("semver:^1");
    let mine = json!({"name": "mine", "type": "always", "actions": [{"type": "alert-slack"}]});
    let ours = json!({"name": RULE_NAME, "type": "semver", "value": "^1", "actions": [{"type": "request-approval"}]});
    let patch = json!({"spec": {"rules": [mine, ours], "minAge": "24h", "rollout": {"maxConcurrent": 2}}});
    let after = wanting("semver:^2");
    let (name, spec) = wanted(&after);
    let Step::Apply(body) = step(Some(&stored(&before, &patch)), &after, name, spec) else { panic!("nothing") };
    let mut changed = ours.clone();
    changed["value"] = json!("^2");
    let expected = json!({
        "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
        "metadata": {
            "name": name, "namespace": "shop", "uid": "i", "resourceVersion": "9", "labels": {MANAGED_BY: "kimup"},
            "ownerReferences": [{"apiVersion": "batch/v1", "kind": "Job", "name": "once", "uid": "u", "controller": true}],
        },
        "spec": {
            "image": "app", "baseTag": "1.0.0", "triggers": [{"type": "interval", "value": "5m"}],
            "rules": [mine, changed],
        },
    });
    assert_eq!(body, expected);
}

#[test]
fn what_nobody_wants_goes() {
    #[track_caller]
    fn check(patch: &Value, now: Option<Source>, expected: &str) {
        let image = stored(&wanting("semver"), patch);
        let sources: Vec<Arc<Source>> = now.into_iter().map(Arc::new).collect();
        let found = match fate(&image, &sources) {
            Fate::Stays => "stays",
            Fate::Goes => "goes",
            Fate::OptedOut(_, container) => container,
        };
        assert_eq!(found, expected, "{patch}");
    }
    let off = || source(&json!({}));
    check(&json!({}), Some(wanting("semver")), "stays");
    check(&json!({}), Some(wanting("semver:^1")), "stays");
    check(&json!({}), Some(off()), "app");
    check(&json!({}), Some(source(&json!({"policy.kimup.cloudavenue.io/proxy": "semver"}))), "app");
    check(
        &json!({}),
        Some(source(&json!({"policy.kimup.cloudavenue.io/app": "semver", "kimup.cloudavenue.io/enabled": "false"}))),
        "app",
    );
    // A typo, an owner that goes, and what the garbage collector does.
    check(&json!({}), Some(wanting("semvre")), "stays");
    check(&json!({}), Some(Source { deleting: true, ..off() }), "stays");
    check(&json!({}), None, "stays");
    check(&json!({}), Some(Source { uid: "later".to_owned(), ..off() }), "goes");
    check(&json!({}), Some(Source { containers: Vec::new(), ..off() }), "goes");
    // Somebody else's with a copied label.
    check(&json!({"metadata": {"managedFields": null}}), Some(off()), "stays");
    // For bare Pods: it goes when none wants it.
    let bare = json!({"metadata": {"ownerReferences": null, "name": "pod-app-1"}});
    check(&bare, None, "goes");
    check(&bare, Some(off()), "goes");
    check(&bare, Some(wanting("semvre")), "stays");
}
