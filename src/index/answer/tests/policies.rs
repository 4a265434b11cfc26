//! Annotation mode: whose Image covers a container, and what is asked where none is known.

use super::*;
use crate::api::annotated::{bare_image_name, image_name};
use crate::api::annotations::{MANAGED_BY, MANAGED_BY_KIMUP};
use crate::index::question::PodQuestion;
use crate::index::trie::looked;

const TEXT: &str = "ghcr.io/org/app:1.0.0";
const APP: &[&str] = &["app"];
const TWO: &[&str] = &["app", "proxy"];

/// `policy=semver; stamp./app=…`: kimup's prefix is left out.
fn annotations(text: &str) -> Map {
    let full = |key: &str| match key.split_once("./") {
        Some((prefix, container)) => format!("{prefix}.kimup.cloudavenue.io/{container}"),
        None => format!("kimup.cloudavenue.io/{key}"),
    };
    let pairs = text.split(';').filter_map(|pair| pair.trim().split_once('='));
    pairs.map(|(key, value)| (full(key), value.to_owned())).collect()
}

/// An Image that sync made, with the tag 1.2.0.
fn made(name: &str, owner: Option<(&str, &str)>) -> Value {
    let owners: Vec<Value> = owner
        .iter()
        .map(|(kind, name)| json!({"apiVersion": "v1", "kind": kind, "name": name, "uid": "o", "controller": true}))
        .collect();
    json!({"metadata": {"name": name, "uid": name, "labels": {MANAGED_BY: MANAGED_BY_KIMUP}, "ownerReferences": owners,
        "creationTimestamp": "2020-01-01T00:00:00Z"}, "status": {"tag": "1.2.0"}})
}

fn made_for(kind: &str, name: &str, container: &str) -> Value {
    made(&image_name(kind, name, container), Some((kind, name)))
}

fn pod<'a>(text: &str, owner: &'a str, containers: &[&'static str], opted_in: bool) -> PodView<'a> {
    let (kind, name) = owner.split_once(' ').unwrap_or_default();
    let template_hash = (kind == "ReplicaSet").then_some("5d8f");
    PodView::new(PodFacts {
        settings: NamespaceSettings { enabled: opted_in, ..NamespaceSettings::default() },
        annotations: Cow::Owned(annotations(text)),
        labels: Labels { template_hash, ..Labels::default() },
        controller: controller(kind, name, if kind.is_empty() { "" } else { "uid" }),
        regular: containers.to_vec(),
        pull_secrets: vec!["pull"],
        service_account: "robot",
        ..facts()
    })
}

/// `run TAG by IMAGE`, `ask IMAGE…`, or as [`words`].
fn said(snapshot: &Snapshot, pod: &PodView<'_>, text: &str) -> String {
    match answer(snapshot, pod, "app", text) {
        Answer::Run { reference, applied } => {
            let tag = reference.rsplit_once(':').unwrap().1.to_owned();
            let image = applied.rsplit_once("(Image ").map_or("", |(_, image)| image.trim_end_matches(')'));
            format!("run {tag} by {image}")
        }
        Answer::Ask(Open { question, .. }) => match question.pod {
            Some(pod) => format!("ask {}", pod.images.join(" or ")),
            None => format!("ask for {}", question.image),
        },
        other => words(&other),
    }
}

#[test]
fn the_image_made_for_a_container_comes_first() {
    #[track_caller]
    fn check(images: &[Value], text: &str, owner: &str, opted_in: bool, expected: &str) {
        let found = said(&snapshot(images), &pod(text, owner, APP, opted_in), TEXT);
        assert_eq!(found, expected, "{text:?} {owner:?}");
    }
    let deployment = image_name("Deployment", "web", "app");
    let mine = made_for("Deployment", "web", "app");
    let users = json!({});
    let both = [users.clone(), mine.clone()];
    let rs = "ReplicaSet web-5d8f";
    let by_mine = format!("run 1.2.0 by {deployment}");
    check(&both, "policy=semver", rs, false, &by_mine);
    check(&both, "enabled=true", rs, false, &by_mine);
    check(&both, "", rs, true, &by_mine); // the annotations are the Deployment's
    check(&both, "", rs, false, "keep");
    check(&both, "policy=semver;enabled=false", rs, true, "keep");
    check(&both, "policy=semver;enabled./app=false", rs, true, "keep");
    // A wrong value is no opting out: what was made of the settings before counts.
    check(&both, "policy=patsh", rs, false, &by_mine);
    // Others' are never found, not even by repository, though they are older.
    check(&both, "", "ReplicaSet other-5d8f", true, "run 1.4.2 by web");
    check(&both, "", "StatefulSet web", true, "run 1.4.2 by web");
    check(&both, "", "", true, "run 1.4.2 by web");
    check(&[made_for("Deployment", "web", "proxy")], "", rs, true, "keep");
    // The name alone does not make it ours.
    let foreign = json!({"metadata": {"name": deployment}, "spec": {"image": "ghcr.io/org/x"}});
    check(&[foreign], "", rs, true, "keep");
    check(&[users.clone(), made(&deployment, Some(("Deployment", "x")))], "", rs, true, "run 1.4.2 by web");
    check(&[users.clone(), made(&deployment, None)], "", rs, true, "run 1.4.2 by web");
    let mut moved = mine.clone();
    moved["spec"] = json!({"image": "ghcr.io/org/before"});
    check(&[users, moved.clone()], "", rs, true, "run 1.4.2 by web");
    check(&[moved], "policy=semver", rs, false, &format!("ask {deployment}"));
    let mut fresh = mine;
    fresh["status"] = Value::Null;
    check(&[fresh], "policy=semver", rs, false, &format!("ask for {deployment}"));
    for kind in ["StatefulSet", "DaemonSet", "CloneSet", "Job"] {
        let by = format!("run 1.2.0 by {}", image_name(kind, "db", "app"));
        check(&[made_for(kind, "db", "app")], "policy=semver", &format!("{kind} db"), false, &by);
    }
    let argo = PodView::new(PodFacts {
        annotations: Cow::Owned(annotations("policy=semver")),
        labels: Labels { rollouts_hash: Some("5d8f"), ..Labels::default() },
        controller: controller("ReplicaSet", "web-5d8f", "uid"),
        ..facts()
    });
    let of_rollout = format!("run 1.2.0 by {}", image_name("Rollout", "web", "app"));
    let each = [made_for("Deployment", "web", "app"), made_for("Rollout", "web", "app")];
    assert_eq!(said(&snapshot(&each), &argo, TEXT), of_rollout);
    let cron = format!("run 1.2.0 by {}", image_name("CronJob", "night", "app"));
    check(&[made_for("CronJob", "night", "app")], "policy=semver", "Job night-29012345", false, &cron);
}

#[test]
fn an_image_of_the_template_before_does_not_count() {
    #[track_caller]
    fn check(text: &str, owner: &str, containers: &[&'static str], expected: &str) {
        let kind = owner.split_once(' ').unwrap().0.replace("ReplicaSet", "Deployment");
        let known = snapshot(&[made_for(&kind, "web", "app"), made_for(&kind, "web", "proxy")]);
        let found = said(&known, &pod(text, owner, containers, true), TEXT);
        assert!(found.starts_with(expected), "{text:?} {owner:?}: {found}");
    }
    let rs = "ReplicaSet web-5d8f";
    check("policy=semver;containers=proxy", rs, TWO, "keep");
    check("policy./proxy=semver", rs, TWO, "keep");
    check("policy./proxy=semver", "StatefulSet web", TWO, "keep");
    check("policy=semver;containers=app", rs, TWO, "run 1.2.0");
    check("policy./proxy=semver;policy./app=patsh", rs, TWO, "run 1.2.0"); // the settings before stay in force
    check("policy=semver", rs, TWO, "run 1.2.0"); // the workload's annotations say which it means
    check("containers=proxy", rs, TWO, "run 1.2.0"); // the policy is the workload's
    check("enabled=true", rs, TWO, "run 1.2.0");
    check("policy./proxy=semver", "Job web", TWO, "run 1.2.0"); // no stamp would follow
}

#[test]
fn without_an_image_a_policy_is_asked_for() {
    #[track_caller]
    fn check(images: &[Value], text: &str, owner: &str, containers: &[&'static str], expected: &str) {
        let found = said(&snapshot(images), &pod(text, owner, containers, false), TEXT);
        assert_eq!(found, expected, "{text:?} {owner:?}");
    }
    let rs = "ReplicaSet web-5d8f";
    let asks = format!("ask {}", image_name("Deployment", "web", "app"));
    check(&[], "policy=semver", rs, APP, &asks);
    check(&[], "policy./app=semver", rs, TWO, &asks);
    check(&[], "policy=semver;containers=app", rs, TWO, &asks);
    check(&[json!({})], "policy=semver", rs, APP, &asks); // the user's Image does not count before it
    let job = format!("ask {} or {}", image_name("Job", "n-1", "app"), image_name("CronJob", "n", "app"));
    check(&[], "policy=semver", "Job n-1", APP, &job);
    // Without an own policy the user's Image is followed.
    check(&[json!({})], "policy./proxy=semver;enabled=true", rs, TWO, "run 1.4.2 by web");
    check(&[json!({})], "policy=semver;containers=proxy", rs, TWO, "run 1.4.2 by web");
    check(&[], "policy=semver;containers=proxy", rs, TWO, "keep");
    // What is wrong changes nothing, whatever Image there is.
    check(&[json!({})], "policy=patsh", rs, APP, "keep");
    check(&[json!({})], "policy=semver;pattern=(", rs, APP, "keep");
    check(&[json!({})], "policy=patsh", "", APP, "keep");
    // A Pod-wide policy with two containers: the owner's annotations may say more.
    check(&[json!({})], "policy=semver", rs, TWO, &asks);
    check(&[made_for("Deployment", "web", "proxy")], "policy=semver", rs, TWO, "keep");
    check(&[json!({}), made_for("Deployment", "web", "proxy")], "policy=semver", rs, TWO, "run 1.4.2 by web");
    check(&[made_for("Deployment", "other", "proxy")], "policy=semver", rs, TWO, &asks);
    check(&[json!({})], "policy=semver", "", TWO, "keep");
}

#[test]
fn pods_that_nobody_made_share_the_image_of_their_settings() {
    #[track_caller]
    fn check(images: &[Value], text: &str, owner: &str, image: &str, expected: &str) {
        assert_eq!(said(&snapshot(images), &pod(text, owner, APP, true), image), expected, "{text:?} {image}");
    }
    let semver = pod("policy=semver", "", APP, false);
    let Answer::Ask(open) = answer(&snapshot(&[]), &semver, "app", TEXT) else { panic!("should ask") };
    let name = open.question.image;
    let known = [made(&name, None)];
    let by_it = format!("run 1.2.0 by {name}");
    check(&known, "policy=semver", "", TEXT, &by_it);
    check(&known, "policy=semver", "ReplicaSet bare", TEXT, &by_it);
    check(&known, "policy=semver", "Workflow x", TEXT, &by_it);
    check(&known, "", "", TEXT, "keep");
    check(&[made(&name, Some(("Deployment", "web")))], "policy=semver", "", TEXT, &format!("ask {name}"));
    let question = open.question.pod.unwrap();
    let mut other = question.spec.unwrap();
    other.rules[0].value = Some("^1".to_owned());
    check(&known, "policy=semver:^1", "", TEXT, &format!("ask {}", bare_image_name("app", &other)));
    // Sent again after the tag was set.
    check(&[], "policy=semver;applied=app: 1.0.0 -> 1.2.0 (Image x)", "", "ghcr.io/org/app:1.2.0", "keep");
}

#[test]
fn a_question_carries_what_sync_needs() {
    let view = pod("policy=semver;pattern=^1", "ReplicaSet web-5d8f", APP, false);
    let Answer::Ask(open) = answer(&snapshot(&[]), &view, "app", TEXT) else { panic!("should ask") };
    let PodQuestion { controller, hash, of_rollout, container, text, spec, pull_secrets, service_account, images } =
        *open.question.pod.unwrap();
    let controller = controller.unwrap();
    assert_eq!((&*controller.kind, &*controller.name, &*controller.uid), ("ReplicaSet", "web-5d8f", "uid"));
    assert_eq!((&*hash, of_rollout, &*container, &*text), ("5d8f", false, "app", TEXT));
    assert_eq!((pull_secrets, &*service_account), (vec!["pull".to_owned()], "robot"));
    assert_eq!(images, [open.question.image]);
    assert_eq!(spec.unwrap().base_tag, "1.0.0");
    let unsure = pod("policy=semver", "ReplicaSet web-5d8f", TWO, false);
    let Answer::Ask(open) = answer(&snapshot(&[]), &unsure, "app", TEXT) else { panic!("should ask") };
    assert_eq!(open.question.pod.unwrap().spec, None);
}

#[test]
fn what_sync_answers_is_run() {
    let view = pod("policy=semver", "Job n-1", TWO, false);
    let open = |images: &[Value]| match answer(&snapshot(images), &view, "app", TEXT) {
        Answer::Ask(open) => open,
        other => panic!("{other:?}"),
    };
    let of = |image: &str| format!("run ghcr.io/org/app:1.0.3 | app: 1.0.0 -> 1.0.3 (Image {image})");
    let job = image_name("Job", "n-1", "app");
    // Not what the user's Image would say, which is newer.
    let asked = open(&[json!({})]);
    assert_eq!(words(&asked.answered(&Tagged::new("1.0.3", None), Some("n-app-ab12"))), of("n-app-ab12"));
    assert_eq!(words(&asked.answered(&Tagged::new("1.0.3", None), None)), of(&job));
    assert_eq!(words(&asked.answered(&Tagged::new("1.0.3", None), Some("x), rollout y"))), of(&job));
    assert!(words(&asked.not_covered()).starts_with("run ghcr.io/org/app:1.4.2 "));
    let held = json!([{"workload": "Job/n-1", "container": "app", "tag": "1.2.0", "left": "1.4.2", "by": "Undo"}]);
    let held = words(&open(&[json!({"status": {"held": held}})]).not_covered());
    assert!(held.starts_with("run ghcr.io/org/app:1.2.0 "), "{held}");
    assert_eq!(words(&open(&[]).not_covered()), "keep");
    let untagged = words(&open(&[json!({"status": null})]).not_covered());
    assert_eq!(untagged, "keep, container \"app\" keeps its own tag: Image web has no tag yet");
}

#[test]
fn a_stamp_counts_while_something_opts_in() {
    #[track_caller]
    fn check(images: &[Value], text: &str, opted_in: bool, runs: bool) {
        let text = format!("stamp./app={TEXT} ghcr.io/org/app:1.3.0;{text}");
        let found = said(&snapshot(images), &pod(&text, "ReplicaSet web-5d8f", APP, opted_in), TEXT);
        assert_eq!(found.starts_with("run 1.3.0"), runs, "{found}");
        assert_eq!(found == "keep", !runs, "{found}");
    }
    check(&[], "", false, false);
    check(&[], "", true, true);
    check(&[], "policy=semver", false, true);
    check(&[], "enabled=true", false, true);
    check(&[], "enabled./app=true", false, true);
    check(&[], "enabled./proxy=true", false, false);
    check(&[json!({})], "", false, true);
    check(&[made_for("Deployment", "web", "app")], "", false, true);
    check(&[made_for("Deployment", "other", "app")], "", false, false);
    // The policy stood on the template, and this Pod was made without it: its Image goes any moment.
    let mut of_template = made_for("Deployment", "web", "app");
    of_template["metadata"]["annotations"]["kimup.cloudavenue.io/policy-from"] = json!("template");
    check(std::slice::from_ref(&of_template), "policy=semver", false, true);
    check(&[of_template], "", false, false);
    check(&[json!({})], "enabled=false", true, false);
    check(&[json!({})], "enabled./app=false", true, false);
    check(&[made_for("Deployment", "web", "app")], "enabled=false;policy=semver", true, false);
}

#[test]
fn a_record_is_found_whichever_image_has_it() {
    #[track_caller]
    fn check(image: &Value, owner: &str, text: &str, expected: &str) {
        let mut image = image.clone();
        let containers = json!({"app": format!("{TEXT} ghcr.io/org/app:1.1.0")});
        let records = json!([{"owner": "X/x", "uid": "uid", "hash": "", "containers": containers}]);
        json_patch::merge(&mut image, &json!({"status": {"revisions": records}}));
        let found = said(&snapshot(&[image]), &pod(text, owner, APP, true), TEXT);
        assert!(found.starts_with(expected), "{owner} {text:?}: {found}");
    }
    let cron = made_for("CronJob", "night", "app");
    check(&cron, "Job night-29012345", "policy=semver", "run 1.1.0");
    check(&cron, "Job by-hand", "policy=semver", "run 1.1.0");
    check(&cron, "Job by-hand", "", "run 1.1.0");
    check(&cron, "StatefulSet db", "policy=semver", "run 1.1.0");
    check(&cron, "StatefulSet db", "", "keep"); // not looked for
    // Settings came to a workload whose first Pods followed the user's Image.
    check(&json!({}), "StatefulSet db", "policy=semver", "run 1.1.0");
}

#[test]
fn problems_are_told_where_they_stand() {
    #[track_caller]
    fn check(text: &str, owner: &str, containers: &[&'static str], expected: &[&str]) {
        let view = pod(text, owner, containers, true);
        let found = view.problems();
        assert_eq!(found.len(), expected.len(), "{found:?}");
        assert!(found.iter().zip(expected).all(|(found, expected)| found.contains(expected)), "{found:?}");
    }
    let rs = "ReplicaSet web-5d8f";
    check("", "", TWO, &[]);
    check("policy=semver", rs, APP, &[]);
    check("policy=patsh", rs, APP, &["unknown policy \"patsh\""]);
    check("policy=patsh", "", APP, &["unknown policy \"patsh\""]);
    check("policy=semver", "", TWO, &["does not say which of the containers app, proxy"]);
    check("policy=semver", rs, TWO, &[]);
    check("policy=semver;policy./proxy=x", rs, TWO, &["unknown policy \"x\""]);
    check("policy=semver;policy./proxy=x", "", TWO, &["does not say", "unknown policy \"x\""]);
    check("policy=semver;containers=x", rs, TWO, &["there is no container \"x\""]);
    // The policy may be the workload's.
    check("interval=1m", rs, APP, &[]);
    check("interval=1m", "", APP, &["kimup.cloudavenue.io/interval has no effect without"]);
    check("interval./app=1m", "", TWO, &["interval.kimup.cloudavenue.io/app has no effect without"]);
}

#[test]
fn an_answer_costs_the_same_however_many_images_there_are() {
    // Of others, each with a record.
    let other = |number: usize| {
        let mut other = made_for("StatefulSet", &format!("other-{number}"), "app");
        let containers = json!({"app": format!("{TEXT} ghcr.io/org/app:1.1.0")});
        other["status"]["revisions"] =
            json!([{"owner": "X/x", "uid": format!("uid-{number}"), "containers": containers}]);
        other
    };
    let beside = |count: usize, own: &[Value]| snapshot(&(0..count).map(other).chain(own.to_vec()).collect::<Vec<_>>());
    let check = |own: &[Value], text: &str, owner: &str, containers: &[&'static str], expected: &str| {
        let cost = |count: usize| {
            let (snapshot, pod) = (beside(count, own), pod(text, owner, containers, true));
            let before = looked::at();
            assert_eq!(said(&snapshot, &pod, TEXT), expected, "{text:?} {owner:?} beside {count}");
            looked::at() - before
        };
        let (few, many) = (cost(3), cost(600));
        assert!(few > 0 && few == many, "{text:?} {owner:?}: {few} with few, {many} with many");
    };
    let rs = "ReplicaSet web-5d8f";
    let asked = format!("ask {}", image_name("Deployment", "web", "app"));
    // A Job that somebody made, and a revision without a record.
    check(&[], "", "Job x", APP, "keep");
    check(&[], "policy=semver", rs, APP, &asked);
    // Its policy may be for another container: its owner has an Image, or has none.
    check(&[made_for("Deployment", "web", "proxy")], "policy=semver", rs, TWO, "keep");
    check(&[], "policy=semver", rs, TWO, &asked);
    // What its Job got before is on record with the Image of a CronJob.
    let mut recorded = other(0);
    recorded["metadata"]["name"] = json!("recorded");
    recorded["status"]["revisions"][0]["uid"] = json!("uid");
    check(&[recorded], "", "Job x", APP, "run 1.1.0 by recorded");
}
