use super::*;
use crate::api::annotations::Stamp;
use crate::rollout;
use crate::sync::source::JobSeen;
use k8s_openapi::api::apps::v1::Deployment;
use serde_json::{Value, json};

fn image(name: &str, patch: &Value) -> Image {
    let mut object = json!({
        "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
        "metadata": {"name": name, "namespace": "shop", "uid": "u", "resourceVersion": "7", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"image": "app", "triggers": [{"type": "interval", "value": "5m"}],
            "rules": [{"name": "r", "type": "semver-minor", "actions": [{"type": "apply"}]}]},
    });
    json_patch::merge(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

fn key(name: &str) -> ImageKey {
    ImageKey { namespace: "shop".to_owned(), name: name.to_owned() }
}

fn put(world: &World, image: Image) -> bool {
    world.put_image(&key(image.metadata.name.as_ref().unwrap()), Cached::Read(Arc::new(image)))
}

fn workload(name: &str, patch: &Value) -> Workload {
    let mut object = json!({
        "metadata": {"name": name, "namespace": "shop", "uid": "u", "resourceVersion": "7"},
        "spec": {"selector": {"matchLabels": {"app": "web"}}, "template": {"spec": {"containers": [{"name": "app", "image": "app:1.0.0"}]}}},
    });
    json_patch::merge(&mut object, patch);
    Workload::from_deployment(&serde_json::from_value::<Deployment>(object).unwrap()).unwrap()
}

fn version(uid: &str, version: &str) -> Value {
    json!({"metadata": {"uid": uid, "resourceVersion": version}})
}

/// Versions of one object as they arrive, and whether each is taken.
const ARRIVALS: [(&str, &str, bool); 9] = [
    ("a", "10", true),
    ("a", "9", false),
    ("a", "10", false),
    ("a", "11", true),
    ("a", "100", true),
    ("a", "99", false),
    // Another object of that name, whose versions say nothing.
    ("b", "5", true),
    // Not numbers: the last that arrives counts.
    ("b", "x", true),
    ("b", "w", true),
];

#[test]
fn older_versions_never_replace_newer() {
    let world = World::default();
    let changed = world.changed();
    for (step, (uid, number, taken)) in ARRIVALS.into_iter().enumerate() {
        let before = *changed.borrow();
        assert_eq!(put(&world, image("web", &version(uid, number))), taken, "Image, step {step}");
        assert_eq!(*changed.borrow() != before, taken, "step {step}");
        assert_eq!(world.put_workload(workload("web", &version(uid, number))), taken, "workload, step {step}");
    }
    let Some(Cached::Read(known)) = world.image(&key("web")) else { panic!("no Image") };
    assert_eq!(known.metadata.resource_version.as_deref(), Some("w"));
    let broken =
        ObjectMeta { uid: Some("b".to_owned()), resource_version: Some("x".to_owned()), ..ObjectMeta::default() };
    assert!(world.put_image(&key("web"), Cached::Broken(Arc::new(broken), "unreadable".into())));
    assert!(matches!(world.image(&key("web")), Some(Cached::Broken(..))));
    world.remove_image(&key("web"));
    assert!(world.image(&key("web")).is_none() && world.image_keys().is_empty());
}

#[test]
fn of_duplicates_the_oldest_counts() {
    fn check(images: &[(&str, &str, &str)], expected: &[(&str, &str)]) {
        for turned in [false, true] {
            let world = World::default();
            let mut images = images.to_vec();
            if turned {
                images.reverse();
            }
            for (name, repository, created) in images {
                let patch = json!({"metadata": {"creationTimestamp": created}, "spec": {"image": repository}});
                put(&world, image(name, &patch));
            }
            let broken = ObjectMeta { name: Some("0".to_owned()), ..ObjectMeta::default() };
            world.put_image(&key("0"), Cached::Broken(Arc::new(broken), "unreadable".into()));
            let found = world.images_by_repository("shop");
            let mut found: Vec<_> =
                found.iter().map(|(r, i)| (r.to_string(), i.metadata.name.clone().unwrap())).collect();
            found.sort();
            let expected: Vec<_> = expected.iter().map(|(r, n)| ((*r).to_owned(), (*n).to_owned())).collect();
            assert_eq!(found, expected);
            assert!(world.images_by_repository("other").is_empty());
        }
    }
    let (old, new) = ("2026-01-01T00:00:00Z", "2026-02-01T00:00:00Z");
    let app = "docker.io/library/app";
    check(&[("a", "app", new), ("b", "app", old)], &[(app, "b")]);
    check(&[("a", "app", old), ("b", "docker.io/library/app", old)], &[(app, "a")]);
    check(&[("b", "index.docker.io/app", new), ("c", "app", old), ("a", "app", new)], &[(app, "c")]);
    check(&[("a", "app", old), ("b", "ghcr.io/app", new)], &[(app, "a"), ("ghcr.io/app", "b")]);
    check(&[("a", "NOT:A:REPOSITORY", old), ("b", "app", new)], &[(app, "b")]);
}

#[test]
fn users_of_a_repository() {
    let check = |namespace: bool, patch: &Value, used: bool| {
        let world = World::default();
        world.put_namespace("shop", NamespaceSettings { enabled: namespace, ..NamespaceSettings::default() });
        world.put_workload(workload("web", patch));
        let web = image("web", &json!({}));
        put(&world, web.clone());
        assert_eq!(world.users_of(&web).len(), usize::from(used), "{namespace} {patch}");
        assert!(world.users_of(&image("web", &json!({"metadata": {"namespace": "other"}}))).is_empty());
        assert!(world.users_of(&image("other", &json!({}))).is_empty());
    };
    let enabled = |value: &str| json!({"metadata": {"annotations": {"kimup.cloudavenue.io/enabled": value}}});
    let image = |text: &str| json!({"spec": {"template": {"spec": {"containers": [{"name": "app", "image": text}]}}}});
    check(true, &json!({}), true);
    check(false, &json!({}), false);
    check(false, &enabled("true"), true);
    check(true, &enabled("false"), false);
    check(true, &enabled("maybe"), false);
    check(true, &image("docker.io/library/app"), true);
    check(true, &image("other/app:1.0.0"), false);
    check(true, &image("NOT A REFERENCE"), false);
    check(true, &image("app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), false);
    let init = json!({"spec": {"template": {"spec": {
        "initContainers": [{"name": "init", "image": "app:1"}], "containers": [{"name": "app", "image": "other:1"}]}}}});
    check(true, &init, true);
}

#[test]
fn what_a_complete_list_does_not_show_is_unseen() {
    let world = World::default();
    for name in ["a", "b"] {
        put(&world, image(name, &json!({})));
        world.put_workload(workload(name, &json!({})));
        world.put_pod("shop", name, record());
    }
    world.put_pod("other", "c", record());
    assert!(!world.put_pod("shop", "a", record()), "nothing new");
    let check = |kind: Kind, within: Option<&str>, seen: &[(&str, &str)], expected: &[(&str, &str)]| {
        let owned = |(namespace, name): &(&str, &str)| ((*namespace).to_owned(), (*name).to_owned());
        let mut found = world.unseen(kind, within, &seen.iter().map(owned).collect());
        found.sort();
        assert_eq!(found, expected.iter().map(owned).collect::<Vec<_>>(), "{kind:?} {within:?} {seen:?}");
    };
    let deployments = Kind::Workloads(rollout::Kind::Deployment);
    check(Kind::Images, None, &[("shop", "a")], &[("shop", "b")]);
    let job = |name: &str| SourceKey { kind: SourceKind::Job, namespace: "shop".to_owned(), name: name.to_owned() };
    world.put_job(&job("made"), JobSeen::Of { uid: "u".to_owned(), cron_job: "c".to_owned() });
    check(Kind::Jobs, None, &[], &[("shop", "made")]);
    check(Kind::CronJobs, None, &[], &[]);
    check(Kind::Workloads(rollout::Kind::StatefulSet), None, &[], &[]);
    check(deployments, None, &[("shop", "b")], &[("shop", "a")]);
    check(Kind::Pods, None, &[("other", "a")], &[("other", "c"), ("shop", "a"), ("shop", "b")]);
    // The list of one namespace says nothing of another.
    check(Kind::Pods, Some("shop"), &[("shop", "a")], &[("shop", "b")]);
    check(Kind::Pods, Some("empty"), &[], &[]);
    check(Kind::Namespaces, None, &[("", "shop")], &[("", "other")]);
}

#[test]
fn a_namespace_of_which_nothing_is_left_is_forgotten() {
    let world = World::default();
    let namespaces = || world.lock().len();
    put(&world, image("a", &json!({})));
    let web = workload("a", &json!({}));
    world.put_workload(web.clone());
    world.put_pod("shop", "a", record());
    world.put_namespace("shop", NamespaceSettings { enabled: true, ..NamespaceSettings::default() });
    world.remove_namespace("shop");
    assert!(!world.settings("shop").enabled);
    world.remove_pod("shop", "a");
    world.remove_workload(&web.key);
    let job = SourceKey { kind: SourceKind::Job, namespace: "shop".to_owned(), name: "a".to_owned() };
    world.put_job(&job, JobSeen::Of { uid: "u".to_owned(), cron_job: "c".to_owned() });
    assert_eq!(world.cron_job_of("shop", "a", "u").as_deref(), Some("c"));
    assert_eq!(world.cron_job_of("shop", "a", "other"), None);
    assert_eq!((namespaces(), world.image_keys().len()), (1, 1));
    world.remove_image(&key("a"));
    assert_eq!(namespaces(), 1);
    world.remove_job(&job);
    assert_eq!(namespaces(), 0);
}

fn record() -> PodRecord {
    let (created, owner, uid, hash) = ("now".to_owned(), "ReplicaSet/web".to_owned(), "u".to_owned(), "h".to_owned());
    PodRecord { created, owner, uid, hash, containers: Vec::new() }
}

/// A Pod may be replaced before anything of it is written.
#[test]
fn what_a_pod_told_stays_until_it_is_on_record() {
    /// Of a Pod that ran containers of these Images, once it is gone: whether what it told is known, before and after
    /// this status of `a` is seen (none: it is deleted).
    #[track_caller]
    fn check(images: &[&str], status: Option<&Value>, kept: bool, kept_then: bool) {
        let world = World::default();
        put(&world, image("a", &json!({})));
        let gave = |image: &&str| {
            let stamp = Stamp { text: "app:1.0.0".to_owned(), reference: "app:1.0.0".to_owned() };
            ((*image).to_owned(), format!("of-{image}"), stamp)
        };
        let told = PodRecord { containers: images.iter().map(gave).collect(), ..record() };
        world.put_pod("shop", "web", told.clone());
        world.remove_pod("shop", "web");
        let known = || world.pods("shop").iter().any(|pod| **pod == told);
        assert_eq!(known(), kept, "{images:?}");
        if let Some(status) = status {
            put(&world, image("a", &json!({"metadata": {"resourceVersion": "8"}, "status": status})));
        } else {
            world.remove_image(&key("a"));
        }
        assert_eq!(known(), kept_then, "{images:?} {status:?}");
        world.remove_image(&key("a"));
        assert_eq!(world.lock().len(), 0, "nothing is left");
    }
    let records = |uid: &str, container: &str| json!({"revisions": [{"owner": "ReplicaSet/web", "uid": uid, "hash": "h", "containers": {container: "app:1.0.0 app:1.0.0"}}]});
    check(&["a"], Some(&json!({"tag": "1.1.0"})), true, true);
    check(&["a"], Some(&records("u", "of-a")), true, false);
    check(&["a"], Some(&records("other", "of-a")), true, true);
    check(&["a"], Some(&records("u", "other")), true, true);
    check(&["a"], None, true, false);
    check(&["a", "gone"], Some(&records("u", "of-a")), true, false);
    check(&["gone"], Some(&json!({})), false, false);
    check(&[], Some(&json!({})), false, false);
}

#[test]
fn what_pods_told_is_bounded() {
    let world = World::default();
    put(&world, image("a", &json!({})));
    let stamp = Stamp { text: "app:1.0.0".to_owned(), reference: "app:1.0.0".to_owned() };
    for number in 0..300 {
        let containers = vec![("a".to_owned(), "app".to_owned(), stamp.clone())];
        world.put_pod("shop", "web", PodRecord { uid: number.to_string(), containers, ..record() });
        world.remove_pod("shop", "web");
    }
    let known: Vec<String> = world.pods("shop").iter().map(|pod| pod.uid.clone()).collect();
    assert_eq!(known, (100..300).map(|number: i32| number.to_string()).collect::<Vec<_>>());
}

#[test]
fn a_status_of_another_repository_is_none() {
    fn check(image_field: &str, repository: Option<&str>, kept: bool) {
        let status = json!({"tag": "1.0.0", "result": "Success", "repository": repository,
            "rollout": {"tag": "1.1.0"}, "revisions": [{"owner": "ReplicaSet/web", "uid": "u", "containers": {}}]});
        let found = status_of(&image("web", &json!({"spec": {"image": image_field}, "status": status})));
        let counts = (found.tag.is_some(), found.rollout.is_some(), found.revisions.len());
        assert_eq!(counts, if kept { (true, true, 1) } else { (false, false, 0) }, "{image_field}");
        // It never goes back to `Scheduled`.
        assert!(found.result.is_some(), "{image_field}");
    }
    check("app", Some("docker.io/library/app"), true);
    check("docker.io/library/app", Some("docker.io/library/app"), true);
    check("app", None, true);
    check("other", Some("docker.io/library/app"), false);
    check("ghcr.io/app", Some("docker.io/library/app"), false);
    // A typo starts nothing anew.
    check("NOT:A:REPOSITORY", Some("docker.io/library/app"), true);
}
