//! Which Images annotated objects want.

use super::*;
use serde_json::{Value, json};

/// `a=1; b=2` as annotations; `~` is kimup's prefix.
fn annotations(text: &str) -> Value {
    let pairs = text.split(';').filter_map(|pair| pair.trim().split_once('='));
    let map = pairs.map(|(key, value)| (key.replace('~', "kimup.cloudavenue.io"), json!(value)));
    Value::Object(map.collect())
}

fn template(text: &str, containers: &[(&str, &str)]) -> Value {
    let containers: Vec<Value> = containers.iter().map(|(name, image)| json!({"name": name, "image": image})).collect();
    json!({"metadata": {"annotations": annotations(text)}, "spec": {"containers": containers, "restartPolicy": "Never"}})
}

fn deployment(own: &str, template: &Value) -> Source {
    let object = json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "annotations": annotations(own)},
        "spec": {"selector": {}, "template": template},
    });
    Source::of_workload(&Workload::from_deployment(&serde_json::from_value(object).unwrap()).unwrap())
}

/// `app=repository:base`, `?app` for an unclear container, `!` and the number of problems.
fn said(source: &Source) -> Vec<String> {
    let images = source.wish.images.iter().map(|(name, (_, spec))| format!("{name}={}:{}", spec.image, spec.base_tag));
    let unclear = source.wish.unclear.iter().map(|name| format!("?{name}"));
    let problems = (!source.wish.problems.is_empty()).then(|| format!("!{}", source.wish.problems.len()));
    images.chain(unclear).chain(problems).collect()
}

#[test]
fn a_workload_wants_an_image_for_each_container_with_a_policy() {
    #[track_caller]
    fn check(own: &str, on_template: &str, containers: &[(&str, &str)], expected: &[&str]) {
        let source = deployment(own, &template(on_template, containers));
        assert_eq!(said(&source), expected, "{:?}", source.wish.problems);
        for (container, (name, _)) in &source.wish.images {
            assert_eq!(*name, image_name("Deployment", "web", container));
        }
    }
    let one = &[("app", "ghcr.io/org/app:1.0.0")][..];
    let two = &[("app", "app:1.0.0"), ("proxy", "proxy")][..];
    check("", "", one, &[]);
    check("", "~/enabled=true", one, &[]);
    check("", "~/policy=semver", one, &["app=ghcr.io/org/app:1.0.0"]);
    check("~/policy=semver:^1", "", one, &["app=ghcr.io/org/app:1.0.0"]);
    check("~/policy=semver", "policy.~/proxy=semver; ~/containers=app", two, &["app=app:1.0.0", "proxy=proxy:latest"]);
    // Opted out.
    check("~/policy=semver", "~/enabled=false", one, &[]);
    check("", "policy.~/app=semver; enabled.~/app=false", two, &[]);
    check("", "~/policy=semver; ~/containers=app", two, &["app=app:1.0.0"]);
    // Wrong, so nobody knows.
    check("", "~/policy=semver", two, &["?app", "?proxy", "!1"]);
    check("", "~/policy=semvre", one, &["?app", "!1"]);
    check("", "policy.~/app=semver:>; policy.~/proxy=semver", two, &["proxy=proxy:latest", "?app", "!1"]);
    check("", "~/policy=semver; ~/containers=ap", two, &["?app", "?proxy", "!1"]);
    check("", "~/policy=semver; ~/enabled=yes", one, &["?app", "!1"]);
    check("", "~/policy=semver; ~/pattern=(", one, &["?app", "!1"]);
    check("", "~/policy=semver", &[("app", "NOT AN IMAGE")], &["?app", "!1"]);
    let digest = "app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    check("", "~/policy=semver", &[("app", digest)], &["!1"]);
}

#[test]
fn only_what_asks_for_images_is_kept() {
    let source =
        deployment("~/policy=semver; note=x", &template("stamp.~/app=a:1 a:2; ~/applied=x; y=z", &[("app", "a:1")]));
    assert_eq!(source, deployment("~/policy=semver", &template("", &[("app", "a:1")])));
    assert_ne!(source, deployment("~/policy=semver", &template("", &[("app", "a:2")])));
    let annotated = |own: &str, on_template: &str| {
        let object = json!({"metadata": {"name": "w", "namespace": "s", "uid": "u", "resourceVersion": "1", "annotations": annotations(own)},
            "spec": {"selector": {}, "template": template(on_template, &[])}});
        Source::is_annotated(&Workload::from_deployment(&serde_json::from_value(object).unwrap()).unwrap())
    };
    assert!(!annotated("note=x", "stamp.~/app=a:1 a:2"));
    assert!(annotated("interval.~/app=5m", "") && annotated("", "~/enabled=true"));
}

#[test]
fn a_cron_job_counts_for_its_jobs() {
    let check = |own: &str, job: &str, on_template: &str, expected: &[&str]| {
        let spec = json!({"schedule": "@daily", "jobTemplate": {
            "metadata": {"annotations": annotations(job)},
            "spec": {"template": template(on_template, &[("app", "app:1.0.0")])}}});
        let object = json!({"metadata": {"name": "backup", "namespace": "shop", "uid": "u", "annotations": annotations(own)}, "spec": spec});
        let source = Source::of_cron_job(&serde_json::from_value(object).unwrap()).unwrap();
        assert_eq!(said(&source), expected);
        assert!(source.wish.images.values().all(|(name, _)| *name == image_name("CronJob", "backup", "app")));
    };
    check("~/policy=semver", "", "", &["app=app:1.0.0"]);
    check("", "~/policy=semver", "", &["app=app:1.0.0"]);
    check("", "", "~/policy=semver", &["app=app:1.0.0"]);
    check("~/policy=semver", "~/enabled=false", "", &[]);
    check("", "", "", &[]);
}

#[test]
fn a_job_is_its_own_or_of_a_cron_job() {
    let job = |owner: &Value| {
        let object = json!({"metadata": {"name": "once", "namespace": "shop", "uid": "j", "ownerReferences": owner},
            "spec": {"template": template("~/policy=semver", &[("app", "app:1.0.0")])}});
        of_job(&serde_json::from_value(object).unwrap()).unwrap()
    };
    let owner = |api: &str, kind: &str| json!([{"apiVersion": api, "kind": kind, "name": "backup", "uid": "c"}]);
    let cron_job = "backup".to_owned();
    assert_eq!(job(&owner("batch/v1", "CronJob")), JobSeen::Of { uid: "j".to_owned(), cron_job });
    for own in [json!(null), owner("example.org/v1", "CronJob"), owner("batch/v1", "Else")] {
        let JobSeen::Own(source) = job(&own) else { panic!("{own}") };
        assert_eq!((source.key.to_string().as_str(), said(&source)), ("Job/once", vec!["app=app:1.0.0".to_owned()]));
    }
}

#[test]
fn a_pod_without_a_known_controller_wants_an_image() {
    #[track_caller]
    fn check(text: &str, image: &str, patch: &Value, expected: Option<&[&str]>) {
        let mut object = template(text, &[("app", image)]);
        let metadata = json!({"name": "p", "namespace": "shop", "uid": "u"});
        json_patch::merge(&mut object, &json!({"metadata": metadata}));
        json_patch::merge(&mut object, patch);
        let source = Source::of_pod(&serde_json::from_value(object).unwrap());
        let expected = expected.map(|list| list.iter().map(|&s| s.to_owned()).collect());
        assert_eq!(source.as_ref().map(said), expected, "{patch}");
        for (container, (name, spec)) in source.iter().flat_map(|source| &source.wish.images) {
            assert_eq!(*name, bare_image_name(container, spec));
        }
    }
    let owned = |kind: &str, name: &str| {
        json!({"metadata": {"labels": {"pod-template-hash": "5d8f"},
            "ownerReferences": [{"apiVersion": "apps/v1", "kind": kind, "name": name, "uid": "o", "controller": true}]}})
    };
    let policy = "~/policy=semver";
    check(policy, "app:1.0.0", &json!({}), Some(&["app=app:1.0.0"]));
    check("", "app:1.0.0", &json!({}), None);
    check("~/policy=nonsense", "app:1.0.0", &json!({}), Some(&["?app", "!1"]));
    check(policy, "app:1.0.0", &owned("ReplicaSet", "web-5d8f"), None);
    check(policy, "app:1.0.0", &owned("StatefulSet", "db"), None);
    check(policy, "app:1.0.0", &owned("Job", "backup-1"), None);
    // A ReplicaSet of its own, or of something else than a Deployment.
    check(policy, "app:1.0.0", &owned("ReplicaSet", "web"), Some(&["app=app:1.0.0"]));
    check(policy, "app:1.0.0", &owned("Workflow", "w"), Some(&["app=app:1.0.0"]));
    check(policy, "app:1.0.0", &json!({"status": {"phase": "Succeeded"}}), None);
    check(policy, "app:1.0.0", &json!({"metadata": {"annotations": {MIRROR_POD: "x"}}}), None);
    // Admission has rewritten the text.
    let applied = |entry: &str| json!({"metadata": {"annotations": {APPLIED: entry}}});
    check(policy, "app:1.4.0", &applied("app: 1.0.0 -> 1.4.0 (Image x)"), Some(&["app=app:1.0.0"]));
    check(policy, "app:1.4.0", &applied("app: (no tag) -> 1.4.0 (Image x)"), Some(&["app=app:latest"]));
    check(policy, "app:1.4.0", &applied("other: 1.0.0 -> 1.4.0 (Image x)"), Some(&["app=app:1.4.0"]));
}
