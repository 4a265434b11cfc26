//! Whose annotations count for a Pod, and which Image follows from them.

use super::*;
use crate::api::annotated::image_name;
use crate::api::annotations::NamespaceSettings;
use crate::index::question::Controller;
use crate::rollout::Workload;
use crate::sync::source::{JobSeen, of_job};
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

const POLICY: &str = "policy.kimup.cloudavenue.io/app";

fn template(policy: &str) -> Value {
    let annotations = if policy.is_empty() { json!({}) } else { json!({POLICY: policy}) };
    let containers = json!([{"name": "app", "image": "app:1.0.0"}]);
    json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers, "serviceAccountName": "robot"}})
}

/// A Deployment `web`, a `CronJob` `backup` with the Job `by-hand`, and a Job `once`.
fn world(policy: &str) -> World {
    let world = World::default();
    world.put_namespace("shop", NamespaceSettings::default());
    let web: Deployment = serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "shop", "uid": "d", "resourceVersion": "1"},
        "spec": {"selector": {}, "template": template(policy)}}))
    .unwrap();
    world.put_workload(Workload::from_deployment(&web).unwrap());
    let cron_job = json!({"metadata": {"name": "backup", "namespace": "shop", "uid": "c"},
        "spec": {"schedule": "@daily", "jobTemplate": {"spec": {"template": template(policy)}}}});
    let source = Source::of_cron_job(&serde_json::from_value(cron_job).unwrap()).unwrap();
    world.put_source(&source.key.clone(), Some(source));
    let key = |name: &str| SourceKey { kind: SourceKind::Job, namespace: "shop".to_owned(), name: name.to_owned() };
    world.put_job(&key("by-hand"), JobSeen::Of { uid: "j1".to_owned(), cron_job: "backup".to_owned() });
    let once =
        json!({"metadata": {"name": "once", "namespace": "shop", "uid": "j2"}, "spec": {"template": template(policy)}});
    world.put_job(&key("once"), of_job(&serde_json::from_value(once).unwrap()).unwrap());
    world
}

fn asked(controller: Option<(&str, &str, &str)>, container: &str, text: &str, own: bool) -> PodQuestion {
    let spec = json!({"image": "app", "baseTag": "1.0.0", "triggers": [{"type": "interval", "value": "5m"}],
        "rules": [{"name": "annotation", "type": "semver", "actions": [{"type": "apply"}]}]});
    PodQuestion {
        controller: controller.map(|(kind, name, uid)| Controller {
            kind: kind.to_owned(),
            name: name.to_owned(),
            uid: uid.to_owned(),
        }),
        hash: "5d8f".to_owned(),
        of_rollout: false,
        container: container.to_owned(),
        text: text.to_owned(),
        spec: own.then(|| serde_json::from_value(spec).unwrap()),
        pull_secrets: Vec::new(),
        service_account: "own".to_owned(),
        images: Vec::new(),
    }
}

fn said(world: &World, pod: &PodQuestion) -> String {
    match find(world, "shop", pod, &Reference::parse(&pod.text).unwrap()) {
        Found::Made(image) => format!("made {}", image.metadata.name.as_deref().unwrap()),
        Found::Unmade { image, access, by } => {
            let by = by.map_or_else(|| "nobody".to_owned(), |by| by.to_string());
            format!("{} for {by} as {}", image.metadata.name.as_deref().unwrap(), access.service_account)
        }
        Found::Behind { alone } => format!("behind {alone}"),
        Found::NotCovered => "not covered".to_owned(),
    }
}

#[test]
fn the_owner_of_a_pod_counts() {
    #[track_caller]
    fn check(policy: &str, pod: &PodQuestion, expected: &str) {
        assert_eq!(said(&world(policy), pod), expected, "{policy} {:?}", pod.controller);
    }
    let web = Some(("ReplicaSet", "web-5d8f", "r"));
    let text = "app:1.0.0";
    let for_web = format!("{} for Deployment/web as robot", image_name("Deployment", "web", "app"));
    check("semver", &asked(web, "app", text, true), &for_web);
    check("semver", &asked(web, "app", text, false), &for_web);
    // An injected sidecar.
    check("semver", &asked(web, "proxy", "proxy:1", false), "not covered");
    // What is known of the Deployment is from before the policy; or somebody else rewrites images.
    check("", &asked(web, "app", text, true), "behind true");
    check("", &asked(web, "app", text, false), "behind true");
    check("semver", &asked(web, "app", "mirror.example/app:1.0.0", true), "behind false");
    check("semvre", &asked(web, "app", text, true), "not covered");
    check("semver", &asked(Some(("ReplicaSet", "new-5d8f", "r")), "app", text, true), "behind true");
    // An Argo Rollout of the same name is another owner.
    let of_rollout = PodQuestion { of_rollout: true, ..asked(web, "app", text, true) };
    check("semver", &of_rollout, "behind true");
    let of_cron_job = format!("{} for CronJob/backup as robot", image_name("CronJob", "backup", "app"));
    check("semver", &asked(Some(("Job", "by-hand", "j1")), "app", text, true), &of_cron_job);
    check("semver", &asked(Some(("Job", "by-hand", "other")), "app", text, true), "behind true");
    let of_job = format!("{} for Job/once as robot", image_name("Job", "once", "app"));
    check("semver", &asked(Some(("Job", "once", "j2")), "app", text, true), &of_job);
    check("semver", &asked(Some(("Job", "once", "other")), "app", text, true), "behind true");
    // Nobody that kimup knows: the Pod's own word.
    let bare = asked(None, "app", text, true);
    let own = format!("{} for nobody as own", bare_image_name("app", bare.spec.as_ref().unwrap()));
    check("semver", &bare, &own);
    check("semver", &asked(Some(("Workflow", "w", "x")), "app", text, true), &own);
    check("semver", &asked(None, "app", text, false), "not covered");
}

#[test]
fn the_owners_metadata_switches_a_policy_off() {
    #[track_caller]
    fn check(enabled: &str, on_template: &str, expected: &str) {
        let mut template = template("semver");
        if !on_template.is_empty() {
            template["metadata"]["annotations"]["kimup.cloudavenue.io/enabled"] = json!(on_template);
        }
        let web: Deployment = serde_json::from_value(json!({
            "metadata": {"name": "web", "namespace": "shop", "uid": "d", "resourceVersion": "1",
                "annotations": {"enabled.kimup.cloudavenue.io/app": enabled}},
            "spec": {"selector": {}, "template": template}}))
        .unwrap();
        let world = World::default();
        world.put_workload(Workload::from_deployment(&web).unwrap());
        let pod = asked(Some(("ReplicaSet", "web-5d8f", "r")), "app", "app:1.0.0", true);
        assert_eq!(said(&world, &pod), expected, "{enabled} {on_template}");
    }
    let wanted = format!("{} for Deployment/web as robot", image_name("Deployment", "web", "app"));
    check("true", "", &wanted);
    check("false", "", "not covered");
    check("false", "true", "not covered");
    // The Pod says nothing of it, so it is of another template than this one.
    check("true", "false", "behind true");
}

#[test]
fn the_image_that_is_there_counts() {
    let put = |world: &World, image: Image| _ = world.put_image(&key_of(&image), Cached::Read(Arc::new(image)));
    let web = asked(Some(("ReplicaSet", "web-5d8f", "r")), "app", "app:1.0.0", true);
    let name = image_name("Deployment", "web", "app");
    let made = |world: &World| match find(world, "shop", &web, &Reference::parse("app:1.0.0").unwrap()) {
        Found::Unmade { image, .. } => *image,
        _ => panic!("made already"),
    };
    let world = world("semver");
    put(&world, made(&world));
    assert_eq!(said(&world, &web), format!("made {name}"));
    // A typo since: it counts still.
    let unclear = self::world("semvre");
    put(&unclear, made(&self::world("semver")));
    assert_eq!(said(&unclear, &web), format!("made {name}"));
    // Not for this repository yet, or a person's of that name.
    let mut other = made(&self::world("semver"));
    other.spec.image = "other".to_owned();
    put(&world, other);
    assert!(said(&world, &web).starts_with(&name));
    let mut foreign = made(&self::world("semver"));
    foreign.metadata.labels = None;
    put(&world, foreign);
    assert!(said(&world, &web).starts_with(&name));
    let bare = asked(None, "app", "app:1.0.0", true);
    let image = by_itself("shop", &bare).unwrap();
    put(&world, image.clone());
    assert_eq!(said(&world, &bare), format!("made {}", image.metadata.name.unwrap()));
}

#[test]
fn the_newer_of_own_tag_and_answer_is_spoken() {
    #[track_caller]
    fn check(text: &str, tag: Option<&str>, expected: Option<&str>) {
        let pod = asked(None, "app", text, true);
        let image = by_itself("shop", &pod).unwrap();
        let question = Question { namespace: "shop".to_owned(), image: "first".to_owned(), pod: None };
        let answered = Answered::new(tag.map(str::to_owned), "why");
        let found = spoken(answered, &question, &pod, (&image, &BTreeSet::new()), &Reference::parse(text).unwrap());
        assert_eq!((found.tag.as_deref(), found.image), (expected, image.metadata.name));
    }
    check("app:1.0.0", Some("1.1.0"), Some("1.1.0"));
    check("app:1.2.0", Some("1.1.0"), Some("1.2.0"));
    check("app", Some("1.1.0"), Some("1.1.0"));
    check("app:latest", Some("1.1.0"), Some("1.1.0"));
    check("app:1.0.0", None, None);
}

#[test]
fn a_held_workload_is_told_where_it_is_held() {
    #[track_caller]
    fn check(controller: Option<(&str, &str, &str)>, text: &str, expected: &str) {
        let pod = asked(controller, "app", text, true);
        let mut image = by_itself("shop", &pod).unwrap();
        let held = json!([{"workload": "Deployment/web", "container": "app", "tag": "1.1.0", "left": "1.2.0",
            "by": "Undo", "since": "", "why": ""}]);
        image.status = Some(serde_json::from_value(json!({"tag": "1.2.0", "held": held})).unwrap());
        let question = Question { namespace: "shop".to_owned(), image: "first".to_owned(), pod: None };
        let answered = Answered::new(Some("1.2.0".to_owned()), "settled");
        let found = spoken(answered, &question, &pod, (&image, &BTreeSet::new()), &Reference::parse(text).unwrap());
        assert_eq!(found.tag.as_deref(), Some(expected), "{controller:?} {text}");
    }
    let web = Some(("ReplicaSet", "web-5d8f", "r"));
    check(web, "app:1.0.0", "1.1.0");
    check(web, "app:1.3.0", "1.3.0");
    check(Some(("ReplicaSet", "other-5d8f", "r")), "app:1.0.0", "1.2.0");
    check(None, "app:1.0.0", "1.2.0");
}

#[test]
fn an_answer_ahead_of_the_owner_carries_the_name_of_its_image() {
    let pod = asked(Some(("ReplicaSet", "web-5d8f", "r")), "app", "app:1.0.0", true);
    let name = image_name("Deployment", "web", "app");
    let question = Question { namespace: "shop".to_owned(), image: name.clone(), pod: None };
    let image = ahead_of_owner(&question, &pod).unwrap();
    assert_eq!(image.metadata.name.as_ref(), Some(&name));
    // So the webhook writes the name that it asked for.
    let answered = Answered::new(Some("1.1.0".to_owned()), "why");
    let found = spoken(answered, &question, &pod, (&image, &BTreeSet::new()), &Reference::parse("app:1.0.0").unwrap());
    assert_eq!((found.tag.as_deref(), found.image), (Some("1.1.0"), None));
    let silent = asked(Some(("ReplicaSet", "web-5d8f", "r")), "app", "app:1.0.0", false);
    assert!(ahead_of_owner(&question, &silent).is_none());
}
