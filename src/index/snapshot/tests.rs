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
