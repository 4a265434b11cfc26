use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::index::testing::{image, put};

const NAMESPACES: [&str; 2] = ["a", "b"];
const NAMES: [&str; 5] = ["v", "w", "x", "y", "z"];
const REPOSITORIES: [&str; 3] = ["ghcr.io/org/one", "ghcr.io/org/two", "not a repository"];

/// An Image of the model: its repository, whether it is managed, and when it was created, in seconds.
type Known = (usize, bool, u8);

fn put_known(snapshot: &mut Snapshot, namespace: &str, name: &str, (repository, managed, created): Known) {
    let by = if managed { MANAGED_BY_KIMUP } else { "nobody" };
    put(
        snapshot,
        &image(&json!({
            "metadata": {
                "namespace": namespace, "name": name, "uid": name, "labels": {MANAGED_BY: by},
                "creationTimestamp": format!("2026-01-01T00:00:{created:02}Z")},
            "spec": {"image": REPOSITORIES[repository]},
        })),
    );
}

/// The user's Image that counts, by the rule: the oldest, and of the same age the first by name.
fn counts<'a>(model: &BTreeMap<(&str, &'a str), Known>, namespace: &str, repository: usize) -> Option<&'a str> {
    let users = model.iter().filter(|((ns, _), known)| *ns == namespace && known.0 == repository && !known.1);
    users.min_by_key(|((_, name), known)| (known.2, *name)).map(|((_, name), _)| *name)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn change_by_change_it_says_what_all_images_together_say(
        steps in prop::collection::vec((0..2_usize, 0..5_usize, (0..3_usize, any::<bool>(), 0..3_u8), 0..4_u8), 0..40)
    ) {
        let (mut snapshot, mut model) = (Snapshot::default(), BTreeMap::new());
        for (namespace, name, known, what) in steps {
            let (namespace, name) = (NAMESPACES[namespace], NAMES[name]);
            match what {
                0 => {
                    model.remove(&(namespace, name));
                    snapshot.remove_image(namespace, name);
                }
                // A new list of one namespace, which has this Image alone.
                1 if known.2 == 0 => {
                    model.retain(|(ns, _), _| *ns != namespace);
                    snapshot.replace_images(Some(namespace), ImageList::default());
                    model.insert((namespace, name), known);
                    put_known(&mut snapshot, namespace, name, known);
                }
                _ => {
                    model.insert((namespace, name), known);
                    put_known(&mut snapshot, namespace, name, known);
                }
            }
            prop_assert_eq!(snapshot.images(), model.len());
            for namespace in NAMESPACES {
                let here = || model.iter().filter(|((ns, _), _)| *ns == namespace);
                prop_assert_eq!(snapshot.namespace(namespace).is_some(), here().count() > 0);
                let managed = snapshot.namespace(namespace).is_some_and(Namespace::has_managed);
                prop_assert_eq!(managed, here().any(|(_, known)| known.1));
                for (repository, text) in REPOSITORIES.iter().enumerate().take(2) {
                    let parsed = Repository::parse(text).unwrap();
                    let found = snapshot.image(namespace, &parsed).map(|entry| entry.name());
                    prop_assert_eq!(found, counts(&model, namespace, repository));
                }
            }
        }
    }
}

const UIDS: [&str; 3] = ["rs-1", "rs-2", "job-1"];
/// The last as nobody's controller is: a person may write such an ownerReference.
const OWNERS: [(&str, &str); 5] =
    [("Deployment", "web"), ("StatefulSet", "web"), ("Deployment", "api"), ("CronJob", "web"), ("a/b", "web")];

/// An Image of the model: whether it is managed, of which owner, with whose records, and what it has rejected.
type Made = (bool, Option<usize>, BTreeSet<usize>, bool);

fn made(name: &str, (managed, owner, uids, rejects): &Made) -> Image {
    let by = if *managed { MANAGED_BY_KIMUP } else { "nobody" };
    let owner = owner
        .map(|owner| OWNERS[owner])
        .map(|(kind, name)| json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "o", "controller": true}]));
    let record = |uid: &usize| json!({"owner": "ReplicaSet/x", "uid": UIDS[*uid], "hash": "h", "containers": {"app": "a:1 a:2"}});
    let records: Vec<_> = uids.iter().map(record).collect();
    let rejected = if *rejects { json!([{"tag": "9"}]) } else { json!([]) };
    image(&json!({
        "metadata": {"namespace": "a", "name": name, "uid": name, "labels": {MANAGED_BY: by}, "ownerReferences": owner},
        "status": {"revisions": records, "rejected": rejected},
    }))
}

/// Those with records of a controller, by a walk over all.
fn walk_on_record<'a>(namespace: &'a Namespace, uid: &str) -> BTreeSet<&'a str> {
    let all = namespace.images.iter().filter(|entry| entry.managed && entry.knows(uid));
    all.map(|entry| entry.name()).collect()
}

/// Whether one was made for a workload, by a walk over all.
fn walk_managed_for(namespace: &Namespace, (kind, name): (&str, &str)) -> bool {
    let is_of = |owner: &(String, String)| (owner.0.as_str(), owner.1.as_str()) == (kind, name);
    namespace.images.iter().any(|entry| entry.managed && entry.owner.as_deref().is_some_and(is_of))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn one_look_up_finds_what_a_walk_over_all_images_finds(steps in prop::collection::vec(
        (0..5_usize,
         (any::<bool>(), prop::option::of(0..OWNERS.len()), prop::collection::btree_set(0..3_usize, 0..3), any::<bool>()),
         0..6_u8), 0..40
    )) {
        let (mut snapshot, mut model) = (Snapshot::default(), BTreeMap::<&str, Made>::new());
        for (name, known, what) in steps {
            let name = NAMES[name];
            match what {
                0 => {
                    model.remove(name);
                    snapshot.remove_image("a", name);
                }
                1 => {
                    let mut list = ImageList::default();
                    for (name, known) in &model {
                        let entry = Arc::new(Entry::read(&made(name, known), Timestamp::UNIX_EPOCH));
                        list.push("a".to_owned(), (*name).to_owned(), Seen::Read(entry));
                    }
                    snapshot.replace_images(None, list);
                }
                _ => {
                    put(&mut snapshot, &made(name, &known));
                    model.insert(name, known);
                }
            }
            let Some(namespace) = snapshot.namespace("a") else {
                prop_assert!(model.is_empty());
                continue;
            };
            prop_assert_eq!(namespace.has_managed(), model.values().any(|known| known.0));
            for uid in UIDS.into_iter().chain(["nobody"]) {
                let found: Vec<_> = namespace.on_record(uid).collect();
                let names: BTreeSet<_> = found.iter().map(|entry| entry.name()).collect();
                prop_assert_eq!(found.len(), names.len());
                prop_assert_eq!(names, walk_on_record(namespace, uid));
                // Not an Image as it was before.
                prop_assert!(found.iter().all(|entry| Arc::ptr_eq(entry, namespace.images.get(entry.name()).unwrap())));
            }
            for owner in OWNERS.into_iter().chain([("Deployment", "nobody")]) {
                let found = namespace.has_managed_for(&[("Job", "none".to_owned()), (owner.0, owner.1.to_owned())]);
                prop_assert_eq!(found, walk_managed_for(namespace, owner));
            }
        }
    }
}

#[test]
fn the_list_of_annotated_namespaces_is_another_one_only_when_it_differs() {
    let on: Map = [("kimup.cloudavenue.io/enabled".to_owned(), "true".to_owned())].into();
    let none = Map::new();
    let mut snapshot = Snapshot::default();
    let mut check = |change: &dyn Fn(&mut Snapshot), expected: &[&str], same: bool| {
        let before = Arc::clone(snapshot.annotated());
        change(&mut snapshot);
        assert_eq!(snapshot.annotated().iter().map(String::as_str).collect::<Vec<_>>(), expected);
        assert_eq!(Arc::ptr_eq(&before, snapshot.annotated()), same, "{expected:?}");
    };
    check(&|s| drop(s.put_namespace("b", &none, &on)), &["b"], false);
    check(&|s| drop(s.put_namespace("b", &none, &on)), &["b"], true);
    check(&|s| drop(s.put_namespace("a", &none, &on)), &["a", "b"], false);
    check(&|s| drop(s.put_namespace("c", &on, &none)), &["a", "b"], true);
    check(&|s| put_known(s, "a", "x", (0, false, 0)), &["a", "b"], true);
    check(&|s| s.remove_namespace("a"), &["b"], false);
    check(&|s| s.retain_namespaces(&["c".to_owned()].into()), &[], false);
}

#[test]
fn an_image_is_small() {
    // A cluster may have a hundred thousand.
    assert!(size_of::<Entry>() <= 208, "{}", size_of::<Entry>());
}

/// An Image of the model: its repository and rule, what it rejected, and whether it remembers more than that.
type Rejecting = (usize, bool, BTreeSet<u8>, bool);

fn rejecting(name: &str, (repository, patch, rejected, records): &Rejecting) -> Image {
    let rule = if *patch { "semver-patch" } else { "semver-minor" };
    let rejected: Vec<_> = rejected.iter().map(|tag| json!({"tag": tag.to_string()})).collect();
    let record = json!({"owner": "ReplicaSet/x", "uid": "rs", "hash": "h", "containers": {"app": "a:1 a:2"}});
    image(&json!({
        "metadata": {"namespace": "a", "name": name, "uid": name},
        "spec": {"image": REPOSITORIES[*repository], "rules": [{"name": "r", "type": rule, "actions": [{"type": "apply"}]}]},
        "status": {"repository": null, "rejected": rejected, "revisions": if *records { json!([record]) } else { json!([]) }},
    }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_image_knows_what_its_group_rejected(steps in prop::collection::vec(
        (0..5_usize, (0..2_usize, any::<bool>(), prop::collection::btree_set(0..3_u8, 0..3), any::<bool>()), 0..5_u8), 0..40
    )) {
        let (mut snapshot, mut model) = (Snapshot::default(), BTreeMap::<&str, Rejecting>::new());
        for (name, known, what) in steps {
            let name = NAMES[name];
            match what {
                0 => {
                    model.remove(name);
                    snapshot.remove_image("a", name);
                }
                // All anew; this one cannot be read, and stays as it was.
                1 => {
                    let mut list = ImageList::default();
                    for (other, known) in &model {
                        let entry = Arc::new(Entry::read(&rejecting(other, known), Timestamp::UNIX_EPOCH));
                        let broken = Seen::Broken { uid: (*other).to_owned(), error: String::new() };
                        let seen = if *other == name { broken } else { Seen::Read(entry) };
                        list.push("a".to_owned(), (*other).to_owned(), seen);
                    }
                    snapshot.replace_images(None, list);
                }
                _ => {
                    put(&mut snapshot, &rejecting(name, &known));
                    model.insert(name, known);
                }
            }
            for (name, known) in &model {
                let group = model.values().filter(|other| (other.0, other.1) == (known.0, known.1));
                let expected: BTreeSet<String> = group.flat_map(|other| &other.2).map(u8::to_string).collect();
                let namespace = snapshot.namespace("a").unwrap();
                let past = &namespace.images.get(name).unwrap().past;
                let found = past.as_ref().map(|past| &*past.of_group);
                // Who remembers nothing need not know.
                prop_assert!(found == Some(&expected) || (found.is_none() && known.2.is_empty() && !known.3), "{found:?} {expected:?}");
                let user = namespace.image(&Repository::parse(REPOSITORIES[known.0]).unwrap()).unwrap();
                prop_assert!(Arc::ptr_eq(user, namespace.images.get(user.name()).unwrap()));
            }
        }
    }
}

#[test]
fn what_the_group_rejected_is_given_to_nobody() {
    #[track_caller]
    fn check(other: &serde_json::Value, record: bool, held: bool) {
        let text = "ghcr.io/org/app:1.0.0";
        let mine = json!({"metadata": {"namespace": "a", "name": "mine", "uid": "mine"}, "status": {
            "revisions": [{"owner": "X/x", "uid": "rs", "hash": "h", "containers": {"app": format!("{text} ghcr.io/org/app:1.5.0")}}],
            "held": [{"workload": "Deployment/web", "container": "app", "tag": "1.5.0", "left": "1.6.0", "by": "Undo", "since": "", "why": ""}]}});
        let mut all = json!({"metadata": {"namespace": "a", "name": "other", "uid": "other"},
            "status": {"rejected": [{"tag": "1.5.0", "reason": "", "workload": "", "time": ""}]}});
        json_patch::merge(&mut all, other);
        let mut snapshot = Snapshot::default();
        put(&mut snapshot, &image(&mine));
        put(&mut snapshot, &image(&all));
        let entry = &snapshot.namespace(NAMESPACES[0]).unwrap().images.get("mine").unwrap().clone();
        assert_eq!(entry.record("rs", "h", "app").is_some(), record, "{other}");
        let owners = [("Deployment", "web".to_owned())];
        assert_eq!(entry.held(&owners, "app", Some("1.0.0")).is_some(), held, "{other}");
    }
    check(&json!({}), false, false);
    check(&json!({"status": {"rejected": [{"tag": "1.5.1"}]}}), true, true);
    check(&json!({"spec": {"image": "ghcr.io/org/other"}}), true, true);
    check(&json!({"spec": {"filter": {"exclude": ["rc"]}}}), true, true);
    check(&json!({"spec": {"filter": {"exclude": []}, "triggers": [{"type": "webhook"}]}}), false, false);
    let approved = json!([{"name": "minor", "type": "semver-minor", "actions": [{"type": "request-approval"}]}]);
    check(&json!({"spec": {"rules": approved}}), true, true);
    // It speaks of what it followed before.
    check(&json!({"status": {"repository": "ghcr.io/org/before"}}), true, true);
    check(&json!({"status": {"group": "of-before"}}), true, true);
    let group = crate::api::Group::of(&image(&json!({})).spec).id();
    check(&json!({"status": {"group": group}}), false, false);
}
