use super::*;
use crate::api::annotations::{Map, NamespaceSettings};
use crate::index::testing::{image, put, snapshot};
use crate::index::{Labels, Owner, PodFacts, Snapshot};
use serde_json::{Value, json};
use std::borrow::Cow;

mod policies;

/// A Pod's annotations, labels and controller.
type Facts<'a> = (&'a [(&'a str, &'a str)], &'a [(&'a str, &'a str)], &'a str);
const BARE: Facts = (&[], &[], "");

fn map(entries: &[(&str, &str)]) -> Map {
    entries.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn answer(snapshot: &Snapshot, pod: &PodView<'_>, container: &str, text: &str) -> Answer {
    super::answer(snapshot.namespace(pod.namespace()), pod, container, text)
}

/// `run REFERENCE | ENTRY`, `keep`, `keep, WARNING`, `ask NAMESPACE/IMAGE`, `refuse IMAGE: REASON`.
fn ask(snapshot: &Snapshot, (annotations, labels, uid): Facts, text: &str) -> String {
    let pod = PodView::new(PodFacts {
        controller: controller("", "", uid),
        annotations: Cow::Owned(map(annotations)),
        labels: labels_of(labels),
        ..facts()
    });
    words(&answer(snapshot, &pod, "app", text))
}

/// A Pod of one container in an opted-in namespace.
fn facts() -> PodFacts<'static> {
    let settings = NamespaceSettings { enabled: true, ..NamespaceSettings::default() };
    PodFacts { namespace: "shop", settings, regular: vec!["app"], ..PodFacts::default() }
}

fn controller<'a>(kind: &'a str, name: &'a str, uid: &'a str) -> Option<Owner<'a>> {
    (!uid.is_empty()).then_some(Owner { kind, name, uid })
}

fn labels_of<'a>(labels: &[(&'a str, &'a str)]) -> Labels<'a> {
    let get = |key: &str| labels.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
    Labels {
        template_hash: get("pod-template-hash"),
        rollouts_hash: get("rollouts-pod-template-hash"),
        revision_hash: get("controller-revision-hash"),
        rollout: get("kimup.cloudavenue.io/rollout"),
    }
}

fn words(answer: &Answer) -> String {
    match answer {
        Answer::Keep { warning: None } => "keep".to_owned(),
        Answer::Keep { warning: Some(w) } => format!("keep, {w}"),
        Answer::Run { reference, applied } => format!("run {reference} | {applied}"),
        Answer::Ask(open) => format!("ask {}/{}", open.question.namespace, open.question.image),
        Answer::Refuse { image, reason } => format!("refuse {image}: {reason}"),
    }
}

#[test]
fn texts_that_are_left_alone() {
    #[track_caller]
    fn check(text: &str, expected: &str) {
        assert_eq!(ask(&snapshot(&[json!({})]), BARE, text), expected, "{text}");
    }
    let changed = "run ghcr.io/org/app:1.4.2 | app: 1.0.0 -> 1.4.2 (Image web)";
    check("ghcr.io/org/app:1.0.0", changed);
    check("", "keep");
    check("GHCR.io/Org/App:1.0.0", "keep");
    check("ghcr.io/org/app:", "keep");
    let digest = format!("@sha256:{}", "a".repeat(64));
    check(&format!("ghcr.io/org/app{digest}"), "keep");
    check(&format!("ghcr.io/org/app:1.0.0{digest}"), "keep");
    check("ghcr.io/org/other:1.0.0", "keep");
    check("app:1.0.0", "keep");
}

#[test]
fn the_newer_of_own_and_settled_tag() {
    #[track_caller]
    fn check(patch: &Value, text: &str, expected: &str) {
        assert_eq!(ask(&snapshot(std::slice::from_ref(patch)), BARE, text), expected, "{patch} {text}");
    }
    let none = json!({});
    let to = |from: &str| format!("run ghcr.io/org/app:1.4.2 | app: {from} -> 1.4.2 (Image web)");
    check(&none, "ghcr.io/org/app:1.0.0", &to("1.0.0"));
    check(&none, "ghcr.io/org/app:1.4.1", &to("1.4.1"));
    check(&none, "ghcr.io/org/app:latest", &to("latest"));
    check(&none, "ghcr.io/org/app", &to("(no tag)"));
    let stays = |tag: &str| format!("run ghcr.io/org/app:{tag} | app: {tag} (Image web)");
    check(&none, "ghcr.io/org/app:1.4.2", &stays("1.4.2"));
    check(&none, "ghcr.io/org/app:1.10.0", &stays("1.10.0"));
    check(&none, "ghcr.io/org/app:2.0.0", &stays("2.0.0"));
    // The spelling of the repository in the text stays.
    let hub = json!({"spec": {"image": "alpine"}, "status": {"repository": "docker.io/library/alpine"}});
    check(&hub, "alpine:1.0.0", "run alpine:1.4.2 | app: 1.0.0 -> 1.4.2 (Image web)");
    check(
        &hub,
        "docker.io/library/alpine:1.0.0",
        "run docker.io/library/alpine:1.4.2 | app: 1.0.0 -> 1.4.2 (Image web)",
    );
    // A wrong rule does not take back what is settled, and a gate does not hold it back either.
    let wrong =
        json!({"spec": {"rules": [{"name": "r", "type": "regex", "value": "(", "actions": [{"type": "apply"}]}]}});
    check(&wrong, "ghcr.io/org/app:1.0.0", &to("1.0.0"));
    check(&wrong, "ghcr.io/org/app:1.5.0", &stays("1.5.0"));
    check(&json!({"spec": {"suspend": true}}), "ghcr.io/org/app:1.0.0", &to("1.0.0"));
}

#[test]
fn without_a_settled_tag() {
    #[track_caller]
    fn check(patch: &Value, expected: &str) {
        let found = ask(&snapshot(std::slice::from_ref(patch)), BARE, "ghcr.io/org/app:1.0.0");
        assert!(found.starts_with(expected), "{patch}: {found}");
    }
    check(&json!({"status": null}), "ask shop/web");
    check(&json!({"status": {"tag": null}}), "ask shop/web");
    check(&json!({"status": {"tag": "not legal"}}), "ask shop/web");
    // The status speaks of the repository before.
    check(&json!({"status": {"repository": "ghcr.io/org/old"}}), "ask shop/web");
    check(&json!({"status": {"repository": null}}), "run ghcr.io/org/app:1.4.2");
    let gated = "keep, container \"app\" keeps its own tag: Image shop/web has no tag yet, and spec.suspend";
    check(&json!({"status": null, "spec": {"suspend": true}}), gated);
    let wrong = json!({"status": null, "spec": {"triggers": [{"type": "crontab", "value": "bad"}]}});
    check(&wrong, "refuse web: invalid crontab \"bad\"");
    check(&json!({"status": null, "spec": {"image": "Not/Legal"}}), "keep");
}

#[test]
fn a_stamp_comes_first() {
    #[track_caller]
    fn check(stamp: &str, text: &str, expected: &str) {
        for known in [&[json!({})][..], &[]] {
            let annotations = [("stamp.kimup.cloudavenue.io/app", stamp)];
            let labels = [("kimup.cloudavenue.io/rollout", "ab12")];
            let found = ask(&snapshot(known), (&annotations, &labels, ""), text);
            // With the Image known its name is in the entry; nothing else depends on it.
            let found = found.replace("(Image web, rollout", "(rollout");
            assert_eq!(found, expected, "{stamp:?} {text:?} {}", known.len());
        }
    }
    let text = "ghcr.io/org/app:1.0.0";
    let ran = "run ghcr.io/org/app:1.3.0 | app: 1.0.0 -> 1.3.0 (rollout ab12)";
    check("ghcr.io/org/app:1.0.0 ghcr.io/org/app:1.3.0", text, ran);
    // Older than the text: all Pods of a revision run one version.
    check(
        "ghcr.io/org/app:1.0.0 ghcr.io/org/app:0.9.0",
        text,
        "run ghcr.io/org/app:0.9.0 | app: 1.0.0 -> 0.9.0 (rollout ab12)",
    );
    check("ghcr.io/org/app:1.0.0 ghcr.io/org/app:1.0.0", text, "run ghcr.io/org/app:1.0.0 | app: 1.0.0 (rollout ab12)");
    check(
        "ghcr.io/org/app ghcr.io/org/app:1.3.0",
        "ghcr.io/org/app",
        "run ghcr.io/org/app:1.3.0 | app: (no tag) -> 1.3.0 (rollout ab12)",
    );
    let digest = format!("ghcr.io/org/app:1.3.0@sha256:{}", "a".repeat(64));
    check(&format!("{text} {digest}"), text, &format!("run {digest} | app: 1.0.0 -> 1.3.0 (rollout ab12)"));
    // For another text: a human changed the manifest since.
    check("ghcr.io/org/app:0.9.0 ghcr.io/org/app:1.3.0", text, "keep");
    check("ghcr.io/org/app:1.0 ghcr.io/org/app:1.3.0", text, "keep");
    let no_image = |names: &str| {
        format!(
            "keep, container \"app\": annotation stamp.kimup.cloudavenue.io/app names {names:?}, which is no image of \
             ghcr.io/org/app; the container keeps its image"
        )
    };
    check("ghcr.io/org/app:1.0.0 evil.example/app:1.3.0", text, &no_image("evil.example/app:1.3.0"));
    check("ghcr.io/org/app:1.0.0 ghcr.io/ORG", text, &no_image("ghcr.io/ORG"));
}

#[test]
fn a_stamp_that_was_put_in_before_is_recorded_as_ours() {
    #[track_caller]
    fn check(stamp: &str, text: &str, expected: &str) {
        for applied in ["", "app: 1.0.0 -> 1.3.0 (rollout ab12)"] {
            let annotations = [("stamp.kimup.cloudavenue.io/app", stamp), ("kimup.cloudavenue.io/applied", applied)];
            let labels = [("kimup.cloudavenue.io/rollout", "ab12")];
            assert_eq!(ask(&snapshot(&[]), (&annotations, &labels, ""), text), expected, "{stamp:?} {text:?}");
        }
    }
    let (app, digest) = ("ghcr.io/org/app", format!("sha256:{}", "a".repeat(64)));
    let ran = |from: &str| format!("run {app}:1.3.0 | app: {from} -> 1.3.0 (rollout ab12)");
    check(&format!("{app}:1.0.0 {app}:1.3.0"), &format!("{app}:1.3.0"), &ran("1.0.0"));
    check(&format!("{app} {app}:1.3.0"), &format!("{app}:1.3.0"), &ran("(no tag)"));
    let pinned = format!("{app}:1.3.0@{digest}");
    let by_digest = format!("run {pinned} | app: 1.0.0 -> 1.3.0 (rollout ab12)");
    check(&format!("{app}:1.0.0 {pinned}"), &pinned, &by_digest);
    // Not what the stamp names, not of its repository, or of a text that is left alone.
    check(&format!("{app}:1.0.0 {app}:1.3.0"), &format!("{app}:1.3.1"), "keep");
    check(&format!("{app}:1.0.0 {pinned}"), &format!("{app}@{digest}"), "keep");
    check(&format!("other:1.0.0 {app}:1.3.0"), &format!("{app}:1.3.0"), "keep");
    check(&format!("{app}@{digest} {app}:1.3.0"), &format!("{app}:1.3.0"), "keep");
}

#[test]
fn a_value_that_is_no_stamp_and_a_stamp_of_another_container_count_as_none() {
    #[track_caller]
    fn check(key: &str, value: &str) {
        let known = snapshot(&[json!({})]);
        let found = ask(&known, (&[(key, value)], &[], ""), "ghcr.io/org/app:1.0.0");
        assert!(found.starts_with("run ghcr.io/org/app:1.4.2"), "{key} {value}: {found}");
    }
    check("stamp.kimup.cloudavenue.io/app", "ghcr.io/org/app:1.0.0");
    check("stamp.kimup.cloudavenue.io/app", "");
    check("stamp.kimup.cloudavenue.io/other", "ghcr.io/org/app:1.0.0 ghcr.io/org/app:1.3.0");
}

#[test]
fn reinvocation_changes_nothing() {
    #[track_caller]
    fn check(applied: &str, text: &str, expected: &str) {
        let annotations = [("kimup.cloudavenue.io/applied", applied)];
        let found = ask(&snapshot(&[json!({})]), (&annotations, &[], ""), text);
        assert!(found.starts_with(expected), "{applied:?} {text:?}: {found}");
    }
    let again = "app: 1.0.0 -> 1.3.0 (Image web)";
    check(again, "ghcr.io/org/app:1.3.0", "keep");
    check("b: 1 -> 2; app: 1.3.0 (Image web)", "ghcr.io/org/app:1.3.0", "keep");
    // The text is another one now, or the entry is another container's.
    check(again, "ghcr.io/org/app:1.0.0", "run ghcr.io/org/app:1.4.2");
    check(again, "ghcr.io/org/app", "run ghcr.io/org/app:1.4.2");
    check("b: 1.0.0 -> 1.3.0", "ghcr.io/org/app:1.3.0", "run ghcr.io/org/app:1.4.2");
    check("nonsense", "ghcr.io/org/app:1.3.0", "run ghcr.io/org/app:1.4.2");
}

#[test]
fn a_revision_keeps_what_its_first_pods_got() {
    #[track_caller]
    fn check(labels: &[(&str, &str)], uid: &str, text: &str, expected: &str) {
        let record = |uid: &str, hash: &str, tag: &str| {
            json!({"owner": "X/x", "uid": uid, "hash": hash, "containers": {
                "app": format!("ghcr.io/org/app:1.0.0 ghcr.io/org/app:{tag}"),
                "init": "ghcr.io/org/app:1.0.0 ghcr.io/org/app:7.7.7",
            }})
        };
        let patch = json!({"status": {"revisions": [
            record("rs-1", "5d8f", "1.1.0"), record("sts", "db-1", "1.2.0"), record("sts", "db-2", "1.3.0"),
            record("job", "", "1.2.5"), record("evil", "", "1.2.5@x"),
            {"owner": "X/y", "uid": "broken", "containers": {"app": "ghcr.io/org/app:1.0.0 evil.example/app:1"}},
        ]}});
        let found = ask(&snapshot(&[patch]), (&[], labels, uid), text);
        assert_eq!(found, expected, "{labels:?} {uid} {text}");
    }
    let to = |tag: &str| format!("run ghcr.io/org/app:{tag} | app: 1.0.0 -> {tag} (Image web)");
    let text = "ghcr.io/org/app:1.0.0";
    // A ReplicaSet of a Deployment or of an Argo Rollout, a StatefulSet or DaemonSet, a Job, a bare ReplicaSet.
    check(&[("pod-template-hash", "5d8f")], "rs-1", text, &to("1.1.0"));
    check(&[("rollouts-pod-template-hash", "5d8f")], "rs-1", text, &to("1.1.0"));
    check(&[("controller-revision-hash", "db-1")], "sts", text, &to("1.2.0"));
    check(&[("controller-revision-hash", "db-2")], "sts", text, &to("1.3.0"));
    check(&[("job-name", "x")], "job", text, &to("1.2.5"));
    check(&[], "job", text, &to("1.2.5"));
    // Another revision, another owner, no owner, another text: no record.
    check(&[("pod-template-hash", "6e9a")], "rs-1", text, &to("1.4.2"));
    check(&[("controller-revision-hash", "db-3")], "sts", text, &to("1.4.2"));
    check(&[("pod-template-hash", "5d8f")], "rs-2", text, &to("1.4.2"));
    check(&[], "rs-1", text, &to("1.4.2"));
    check(&[("pod-template-hash", "5d8f")], "", text, &to("1.4.2"));
    check(
        &[("pod-template-hash", "5d8f")],
        "rs-1",
        "ghcr.io/org/app:1.0.1",
        "run ghcr.io/org/app:1.4.2 | app: 1.0.1 -> 1.4.2 (Image web)",
    );
    // A record that names another image is nobody's.
    check(&[], "evil", text, &to("1.4.2"));
    check(&[], "broken", text, &to("1.4.2"));
}

#[test]
fn what_was_rejected_since_is_no_record() {
    #[track_caller]
    fn check(rejected: &str, text: &str, gave: &str, expected: &str) {
        let digest = format!("sha256:{}", "a".repeat(64));
        let stamp = format!("ghcr.io/org/app:{text} ghcr.io/org/app:{gave}").replace('A', &digest);
        let record = json!({"owner": "ReplicaSet/x", "uid": "rs", "hash": "h", "containers": {"app": stamp}});
        let rejected = json!({"tag": rejected.replace('A', &digest), "reason": "", "workload": "", "time": ""});
        let known = snapshot(&[json!({"status": {"rejected": [rejected], "revisions": [record]}})]);
        let found = ask(&known, (&[], &[("pod-template-hash", "h")], "rs"), &format!("ghcr.io/org/app:{text}"));
        let found = found.replace(&digest, "A").replace("ghcr.io/org/app:", "");
        assert!(found.starts_with(&format!("run {expected} ")), "{rejected} {text} {gave}: {found}");
    }
    check("1.5.0", "1.0.0", "1.5.0", "1.4.2");
    check("1.5.0", "1.0.0", "1.5.0@A", "1.4.2");
    check("1.5.0@A", "1.0.0", "1.5.0@A", "1.4.2");
    check("1.5.0@A", "1.0.0", "1.5.0", "1.5.0");
    check("1.5.1", "1.0.0", "1.5.0", "1.5.0");
    // What somebody wrote into the manifest is left alone.
    check("1.5.0", "1.5.0", "1.5.0", "1.5.0");
    check("1.3.0", "1.3.0", "1.3.0", "1.3.0");
}

#[test]
fn a_stamp_beats_a_record_and_a_record_beats_the_settled_tag() {
    let record =
        json!({"owner": "X/x", "uid": "rs", "hash": "h", "containers": {"app": "ghcr.io/org/app:1 ghcr.io/org/app:2"}});
    let known = snapshot(&[json!({"status": {"tag": null, "revisions": [record]}})]);
    let labels = [("pod-template-hash", "h")];
    let text = "ghcr.io/org/app:1";
    let by_record = ask(&known, (&[], &labels, "rs"), text);
    assert!(by_record.starts_with("run ghcr.io/org/app:2 "), "{by_record}");
    let stamp = [("stamp.kimup.cloudavenue.io/app", "ghcr.io/org/app:1 ghcr.io/org/app:3")];
    let by_stamp = ask(&known, (&stamp, &labels, "rs"), text);
    assert!(by_stamp.starts_with("run ghcr.io/org/app:3 "), "{by_stamp}");
}

/// Kind, name and labels of who made a Pod.
type Of<'a> = (&'a str, &'a str, &'a [(&'a str, &'a str)]);

/// What a Pod runs whose workload is held at 1.3.0 and left 1.4.2, which is settled; `hold` is merged into that.
#[track_caller]
fn check_held(hold: &Value, (kind, name, labels): Of, annotations: &[(&str, &str)], text: &str, expected: &str) {
    let digest = format!("sha256:{}", "a".repeat(64));
    let base = json!({"workload": "Deployment/web", "container": "app", "tag": "1.3.0", "left": "1.4.2",
        "by": "Undo", "since": "2026-11-21T10:00:00Z", "why": "it was put back"});
    let patched = |patch: &Value| {
        let mut patched = base.clone();
        json_patch::merge(&mut patched, patch);
        patched
    };
    let mut status = json!({"held": [patched(&json!({"container": "other", "tag": "9.9.9"})), patched(hold)]});
    status["rejected"] = hold["rejected"].clone();
    let status = status.to_string().replace("DIGEST", &digest);
    let record = json!({"owner": "ReplicaSet/x", "uid": "rs", "hash": "old",
        "containers": {"app": "ghcr.io/org/app:1.0.0 ghcr.io/org/app:1.2.0"}});
    let mut patch = json!({"status": serde_json::from_str::<Value>(&status).unwrap()});
    patch["status"]["revisions"] = json!([record]);
    let pod = PodView::new(PodFacts {
        controller: controller(kind, name, "rs"),
        annotations: Cow::Owned(map(annotations)),
        labels: labels_of(labels),
        ..facts()
    });
    let found = words(&answer(&snapshot(&[patch]), &pod, "app", &format!("ghcr.io/org/app:{text}")));
    let found = found.replace(&digest, "DIGEST").replace("ghcr.io/org/app:", "").replace(" (Image web)", "");
    assert_eq!(found, expected, "{hold} {kind}/{name} {annotations:?} {text}");
}

const WEB: Of = ("ReplicaSet", "web-5d8f", &[("pod-template-hash", "5d8f")]);

#[test]
fn a_held_workload_starts_where_it_is_held() {
    let web_runs = |hold: Value, text: &str, expected: &str| check_held(&hold, WEB, &[], text, expected);
    web_runs(json!({}), "1.0.0", "run 1.3.0 | app: 1.0.0 -> 1.3.0");
    web_runs(json!({}), "1.3.0", "run 1.3.0 | app: 1.3.0");
    web_runs(json!({}), "latest", "run 1.3.0 | app: latest -> 1.3.0");
    web_runs(json!({"tag": "1.3.0@DIGEST"}), "1.0.0", "run 1.3.0@DIGEST | app: 1.0.0 -> 1.3.0");
    web_runs(json!({"by": "Manifest"}), "1.3.0", "run 1.3.0 | app: 1.3.0");
    // A newer text is a newer word.
    web_runs(json!({}), "1.3.5", "run 1.3.5 | app: 1.3.5");
    web_runs(json!({}), "1.4.2", "run 1.4.2 | app: 1.4.2");
    web_runs(json!({}), "1.5.0", "run 1.5.0 | app: 1.5.0");
    web_runs(json!({"by": "Annotation", "left": null}), "1.5.0", "run 1.3.0 | app: 1.5.0 -> 1.3.0");
    // What says nothing of new Pods.
    let settled = "run 1.4.2 | app: 1.0.0 -> 1.4.2";
    web_runs(json!({"by": "Paused", "left": null}), "1.0.0", settled);
    web_runs(json!({"by": "Fight", "left": null}), "1.0.0", settled);
    web_runs(json!({"released": "2026-11-21T11:00:00Z"}), "1.0.0", settled);
    web_runs(json!({"tag": "no tag"}), "1.0.0", settled);
    web_runs(json!({"container": "sidecar"}), "1.0.0", settled);
    web_runs(json!({"workload": "Deployment/we"}), "1.0.0", settled);
    web_runs(json!({"workload": "web"}), "1.0.0", settled);
    let rejected = |tag: &str| json!({"rejected": [{"tag": tag, "reason": "", "workload": "", "time": ""}]});
    web_runs(rejected("1.3.0"), "1.0.0", settled);
    web_runs(rejected("1.3.1"), "1.0.0", "run 1.3.0 | app: 1.0.0 -> 1.3.0");
    let mut named = rejected("1.3.0");
    (named["by"], named["left"]) = (json!("Annotation"), json!(null));
    web_runs(named, "1.0.0", "run 1.3.0 | app: 1.0.0 -> 1.3.0");
}

#[test]
fn what_is_nearer_to_a_pod_than_a_hold() {
    let settled = "run 1.4.2 | app: 1.0.0 -> 1.4.2";
    // Whose Pod it is.
    let of = |workload: &str, pod: Of, expected: &str| {
        check_held(&json!({"workload": workload}), pod, &[], "1.0.0", expected);
    };
    let at = "run 1.3.0 | app: 1.0.0 -> 1.3.0";
    of("StatefulSet/db", ("StatefulSet", "db", &[("controller-revision-hash", "db-1")]), at);
    of("DaemonSet/db", ("DaemonSet", "db", &[]), at);
    of("CloneSet/db", ("CloneSet", "db", &[]), at);
    of("StatefulSet/db", ("DaemonSet", "db", &[]), settled);
    of("Rollout/web", ("ReplicaSet", "web-5d8f", &[("rollouts-pod-template-hash", "5d8f")]), at);
    of("Rollout/web", WEB, settled);
    of("ReplicaSet/web-5d8f", WEB, settled);
    of("Deployment/web", ("ReplicaSet", "web-5d8f", &[]), settled);
    of("Deployment/web", ("Job", "web", &[]), settled);
    // What the revision's first Pods got, and its stamp, are nearer to it.
    of("Deployment/web", ("ReplicaSet", "web-old", &[("pod-template-hash", "old")]), "run 1.2.0 | app: 1.0.0 -> 1.2.0");
    let stamp = [("stamp.kimup.cloudavenue.io/app", "ghcr.io/org/app:1.0.0 ghcr.io/org/app:1.4.0")];
    check_held(&json!({}), WEB, &stamp, "1.0.0", "run 1.4.0 | app: 1.0.0 -> 1.4.0");
    // One for another text: only the annotation says more than that.
    check_held(&json!({}), WEB, &stamp, "1.0.5", "keep");
    let annotation = json!({"by": "Annotation", "left": null});
    check_held(&annotation, WEB, &stamp, "1.0.5", "run 1.3.0 | app: 1.0.5 -> 1.3.0");
    let again = [stamp[0], ("kimup.cloudavenue.io/applied", "app: 1.0.5 -> 1.3.0 (Image web)")];
    check_held(&annotation, WEB, &again, "1.3.0", "keep");
    check_held(&json!({}), WEB, &[("kimup.cloudavenue.io/enabled", "false")], "1.0.0", "keep");
}

#[test]
fn of_two_images_for_a_repository_the_older_counts() {
    #[track_caller]
    fn check(first: &str, second: &str, expected: &str) {
        let named = |name: &str, created: &str| {
            image(&json!({"metadata": {"name": name, "creationTimestamp": created}, "status": {"tag": null}}))
        };
        let (a, b) = (named("a", first), named("b", second));
        for order in [[&a, &b], [&b, &a]] {
            let mut known = snapshot(&[]);
            for image in order {
                put(&mut known, image);
            }
            assert_eq!(known.images(), 2);
            assert_eq!(ask(&known, BARE, "ghcr.io/org/app:1.0.0"), format!("ask shop/{expected}"));
        }
    }
    check("2026-11-21T10:00:00Z", "2026-11-21T11:00:00Z", "a");
    check("2026-11-21T11:00:00Z", "2026-11-21T10:00:00Z", "b");
    check("2026-11-21T10:00:00Z", "2026-11-21T10:00:00Z", "a");
}

#[test]
fn an_answer_of_syncs_counts_like_a_settled_tag() {
    #[track_caller]
    fn check(text: &str, tag: &str, expected: &str) {
        let known = snapshot(&[json!({"status": null})]);
        let pod = PodView::new(facts());
        let Answer::Ask(open) = answer(&known, &pod, "app", text) else {
            panic!("{text} should be asked");
        };
        assert_eq!(words(&open.answered(&Tagged::parse(tag).unwrap(), Some("elsewhere"))), expected);
    }
    check("ghcr.io/org/app:1.0.0", "1.5.0", "run ghcr.io/org/app:1.5.0 | app: 1.0.0 -> 1.5.0 (Image web)");
    check("ghcr.io/org/app:1.6.0", "1.5.0", "run ghcr.io/org/app:1.6.0 | app: 1.6.0 (Image web)");
    check("ghcr.io/org/app", "1.5.0", "run ghcr.io/org/app:1.5.0 | app: (no tag) -> 1.5.0 (Image web)");
    let digest = format!("@sha256:{}", "a".repeat(64));
    let pinned = format!("run ghcr.io/org/app:1.5.0{digest} | app: 1.0.0 -> 1.5.0 (Image web)");
    check("ghcr.io/org/app:1.0.0", &format!("1.5.0{digest}"), &pinned);
}

#[test]
fn a_pinned_image_is_run_by_its_digest() {
    #[track_caller]
    fn check(patch: &Value, text: &str, expected: &str) {
        let digest = format!("sha256:{}", "a".repeat(64));
        let mut base = json!({"spec": {"pinDigest": true}, "status": {"digest": digest}});
        json_patch::merge(&mut base, patch);
        let found = ask(&snapshot(&[base]), BARE, text);
        assert_eq!(found.replace(&digest, "A"), expected, "{patch} {text}");
    }
    let app = "ghcr.io/org/app";
    check(&json!({}), &format!("{app}:1.0.0"), &format!("run {app}:1.4.2@A | app: 1.0.0 -> 1.4.2 (Image web)"));
    check(&json!({}), &format!("{app}:1.4.2"), &format!("run {app}:1.4.2@A | app: 1.4.2 (Image web)"));
    check(&json!({}), &format!("{app}:1.5.0"), &format!("run {app}:1.5.0 | app: 1.5.0 (Image web)"));
    let plain = format!("run {app}:1.4.2 | app: 1.4.2 (Image web)");
    check(&json!({"spec": {"pinDigest": false}}), &format!("{app}:1.4.2"), &plain);
    check(&json!({"status": {"digest": null}}), &format!("{app}:1.4.2"), &plain);
    check(&json!({"status": {"digest": "sha256:none"}}), &format!("{app}:1.4.2"), &plain);
}

#[test]
fn an_image_of_another_namespace_covers_nothing() {
    let known = snapshot(&[json!({"metadata": {"namespace": "other"}})]);
    assert_eq!(ask(&known, BARE, "ghcr.io/org/app:1.0.0"), "keep");
}
