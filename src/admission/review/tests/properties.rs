//! What holds of every Pod, over generated ones.

use proptest::prelude::*;

use super::*;
use crate::policy::Reference;

fn any_image() -> impl Strategy<Value = String> {
    prop_oneof![
        2 => Just("ghcr.io/org/app".to_owned()),
        3 => Just(TEXT.to_owned()),
        2 => "ghcr\\.io/org/(app|db|api):[0-2]\\.[0-9]\\.[0-9]",
        1 => "ghcr\\.io/org/app:[a-z]{1,6}",
        2 => "(docker\\.io/library/)?(nginx|alpine):[0-9]\\.[0-9]",
        1 => Just(format!("ghcr.io/org/app@sha256:{}", "a".repeat(64))),
        1 => ".{0,20}",
    ]
}

/// Any value, for fields that kimup does not know.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        Just(json!({"image": TEXT, "name": "c0"})),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            prop::collection::btree_map(".{0,6}", inner, 0..3).prop_map(|map| json!(map)),
        ]
    })
}

fn any_containers() -> impl Strategy<Value = Value> {
    let container = (any_image(), prop::option::of((".{1,8}", any_json())));
    prop::collection::vec(container, 0..5).prop_map(|list| {
        let containers = list.into_iter().enumerate().map(|(i, (image, stray))| {
            let mut container = json!({"name": format!("c{i}"), "image": image});
            if let Some((key, value)) = stray {
                container[format!("x{key}")] = value;
            }
            container
        });
        Value::Array(containers.collect())
    })
}

/// Annotations of the annotation mode, right and wrong.
fn any_settings() -> impl Strategy<Value = Map> {
    let prefix = "(policy\\.|pattern\\.|enabled\\.|interval\\.|stamp\\.)kimup\\.cloudavenue\\.io/(c0|c1|i0|x)";
    let key = prop_oneof![prefix, "kimup\\.cloudavenue\\.io/(policy|pattern|interval|containers|enabled|applied)"];
    let value = prop_oneof!["(patch|semver|semver:\\^1|true|false|5m|c0|c0,i0|\\^v)", any_image(), ".{0,12}"];
    prop::collection::btree_map(key, value, 0..5)
}

fn any_annotations() -> impl Strategy<Value = Option<Value>> {
    prop_oneof![
        Just(None),
        Just(Some(Value::Null)),
        Just(Some(json!({}))),
        prop::collection::btree_map(".{0,8}", ".{0,8}", 0..3).prop_map(|map| Some(json!(map))),
        any_image().prop_map(|text| Some(json!({
            "stamp.kimup.cloudavenue.io/c0": format!("{text} ghcr.io/org/app:1.2.3"),
            "stamp.kimup.cloudavenue.io/c1": "ghcr.io/org/app ghcr.io/org/app:1.3.0",
        }))),
        ".{0,30}".prop_map(|text| Some(json!({annotations::APPLIED: text}))),
        any_settings().prop_map(|map| Some(json!(map))),
    ]
}

/// Owner and labels that name the revision, as records and holds know it or not.
fn any_origin() -> impl Strategy<Value = (Value, Map)> {
    let kind = prop_oneof![Just("ReplicaSet"), Just("StatefulSet"), Just("Job"), Just("Other")];
    let owner = (kind, "web(-5d8f)?", "u[12]", any::<bool>()).prop_map(
        |(kind, name, uid, controller)| json!([{"kind": kind, "name": name, "uid": uid, "controller": controller}]),
    );
    let key = "(pod-template-hash|controller-revision-hash|kimup\\.cloudavenue\\.io/rollout|a)";
    let any = (prop_oneof![Just(Value::Null), owner], prop::collection::btree_map(key, "(5d8f|ab12)", 0..4));
    let web = json!([{"kind": "ReplicaSet", "name": "web-5d8f", "uid": "u1", "controller": true}]);
    let labels = Map::from([("pod-template-hash".to_owned(), "5d8f".to_owned())]);
    prop_oneof![Just((web, labels)), any]
}

fn any_pod() -> impl Strategy<Value = Value> {
    let lists = (any_containers(), any_containers(), any_containers());
    let strays = prop::collection::vec(any_json(), 4);
    (any_annotations(), lists, strays, any_origin()).prop_map(
        |(annotations, (main, mut init, ephemeral), strays, (owners, labels))| {
            for (i, container) in init.as_array_mut().unwrap().iter_mut().enumerate() {
                container["name"] = json!(format!("i{i}"));
            }
            let mut pod = json!({
                "metadata": {"labels": labels, "ownerReferences": owners, "stray": strays[0]},
                "spec": {
                    "containers": main, "initContainers": init, "ephemeralContainers": ephemeral, "stray": strays[1],
                    "volumes": [{"name": "v", "image": {"reference": TEXT, "stray": strays[2]}}],
                },
                "status": {"containerStatuses": [{"name": "c0", "image": TEXT}]}, "stray": strays[3],
            });
            if let Some(annotations) = annotations {
                pod["metadata"]["annotations"] = annotations;
            }
            pod
        },
    )
}

/// Repositories of the Images that [`any_snapshot`] may have.
const COVERED: [&str; 3] = ["ghcr.io/org/app", "ghcr.io/org/db", "docker.io/library/nginx"];

/// The Images of a Namespace, some of them missing, some with a digest, records and holds, right and wrong.
fn any_snapshot() -> impl Strategy<Value = Snapshot> {
    let digest = format!("sha256:{}", "b".repeat(64));
    let record = |reference: &str| {
        json!({"owner": "ReplicaSet/web-5d8f", "uid": "u1", "hash": "5d8f",
            "containers": {"c0": format!("{TEXT} {reference}"), "c1": format!("{TEXT} {reference}"),
                "i0": format!("{TEXT} {reference}"), "i1": "nginx:1.0 docker.io/library/nginx:1.1"}})
    };
    let hold = json!({"workload": "Deployment/web", "container": "c0", "tag": "1.1.0", "left": "1.4.2", "by": "Undo",
        "since": "2026-11-21T10:00:00Z", "why": "it was put back"});
    let app = prop_oneof![
        Just(json!({})),
        Just(json!({"status": null})),
        Just(json!({"status": {"digest": digest}, "spec": {"pinDigest": true}})),
        Just(json!({"status": {"held": [hold]}})),
        prop_oneof![Just("ghcr.io/org/app:1.3.0"), Just("ghcr.io/org/evil:1.3.0"), Just("")]
            .prop_map(move |reference| json!({"status": {"revisions": [record(reference)]}})),
    ];
    let of = |name: &str, image: &str, tag: Option<&str>| json!({"metadata": {"name": name, "uid": name}, "spec": {"image": image}, "status": {"tag": tag, "repository": null}});
    let others =
        vec![of("db", "ghcr.io/org/db", Some("2.0.0")), of("edge", "nginx", None), of("nginx", "nginx", Some("1.9"))];
    (prop::option::weighted(0.8, app), prop::sample::subsequence(others, 0..=3))
        .prop_map(|(app, others)| snapshot(&app.into_iter().chain(others).collect::<Vec<_>>()))
}

/// Whether something may give this container another tag. What does is another test's.
fn may_change(pod: &Value, name: &str, text: &str) -> bool {
    let own = |key: &str| pod["metadata"]["annotations"][key].is_string();
    let covers = |reference: Reference| COVERED.contains(&reference.repository().as_str());
    let covered = Reference::parse(text).is_ok_and(covers);
    covered
        || own(annotations::POLICY)
        || own(&format!("{}{name}", annotations::POLICY_PREFIX))
        || own(&annotations::stamp_key(name))
}

/// The Pod with what kimup may take from `result`: tags and digests of containers that something covers, and the one
/// annotation.
fn allowed(pod: &Value, result: &Value) -> Value {
    let mut expected = pod.clone();
    for list in ["containers", "initContainers"] {
        for (index, before) in pod["spec"][list].as_array().unwrap().iter().enumerate() {
            let after = &result["spec"][list][index]["image"];
            let (name, text) = (before["name"].as_str().unwrap(), before["image"].as_str().unwrap());
            let repository = |text: &str| Reference::parse(text).map(|r| r.repository().clone()).ok();
            let same = || repository(text).is_some() && repository(after.as_str().unwrap()) == repository(text);
            if after != text && may_change(pod, name, text) && same() {
                expected["spec"][list][index]["image"] = after.clone();
            }
        }
    }
    if let Some(applied) = result["metadata"]["annotations"].get(annotations::APPLIED) {
        expected["metadata"]["annotations"][annotations::APPLIED] = applied.clone();
    }
    expected
}

proptest! {
    #[test]
    fn nothing_else_changes_and_a_second_time_nothing_does(
        pod in any_pod(),
        known in any_snapshot(),
        answered in any::<bool>(),
    ) {
        let tag = Some("1.5.0".to_owned()).filter(|_| answered);
        let ask = |pod: &Value| decide_with(&review(pod), &known, &Ok(Answered::new(tag.clone(), ""))).unwrap();
        let verdict = ask(&pod);
        // Only what has no tag yet needs an answer.
        prop_assert!(verdict.refusal().is_none() || !answered);
        let result = patched(&pod, &verdict);
        prop_assert_eq!(&result, &allowed(&pod, &result));
        let again = ask(&result);
        prop_assert_eq!(patch_of(&again), None);
    }

    #[test]
    fn the_order_of_containers_decides_nothing(pod in any_pod(), known in any_snapshot()) {
        let images = |pod: &Value| {
            let answered = Ok(Answered::new(Some("1.5.0".to_owned()), ""));
            let result = patched(pod, &decide_with(&review(pod), &known, &answered).unwrap());
            let lists = ["containers", "initContainers"].map(|list| result["spec"][list].as_array().unwrap().clone());
            let named = lists.into_iter().flatten();
            named.map(|c| (c["name"].to_string(), c["image"].to_string())).collect::<std::collections::BTreeMap<_, _>>()
        };
        let mut reversed = pod.clone();
        for list in ["containers", "initContainers"] {
            reversed["spec"][list].as_array_mut().unwrap().reverse();
        }
        prop_assert_eq!(images(&reversed), images(&pod));
    }

    #[test]
    fn no_body_panics(body in ".{0,200}") {
        if let Ok(review) = Review::parse(body.as_bytes()) {
            let _ = review.decide(&snapshot(&[]));
        }
    }
}
