use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;

/// Texts that meet every branch: covered, covered and asked about, gated, pinned, foreign, and no reference at all.
fn text() -> impl Strategy<Value = Value> {
    prop_oneof![
        8 => "(app|docker\\.io/library/app|new|newer|gated)(:[0-2]\\.[0-9]\\.0|:latest|:main)?",
        1 => "(app|other|ghcr\\.io/org/app):[0-2]\\.0\\.0(@sha256:[0-9a-f]{64})?",
        1 => "\\PC{0,12}",
    ]
    .prop_map(Value::from)
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "\\PC{0,8}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z/~.]{1,8}", inner, 0..4)
                .prop_map(|map| Value::from(map.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// Fields that nobody here knows: their names begin with an `x`, which no field of a Pod does.
fn unknown() -> impl Strategy<Value = Map<String, Value>> {
    prop::collection::btree_map("x[a-zA-Z/~]{0,6}", json_value(), 0..3).prop_map(|map| map.into_iter().collect())
}

fn containers(prefix: &'static str) -> impl Strategy<Value = Option<Vec<Value>>> {
    let one = (prop::option::weighted(0.9, text()), unknown());
    prop::option::weighted(0.8, prop::collection::vec(one, 0..4)).prop_map(move |containers| {
        let named = containers?.into_iter().enumerate().map(|(index, (image, mut fields))| {
            fields.insert("name".to_owned(), json!(format!("{prefix}{index}")));
            fields.extend(image.map(|image| ("image".to_owned(), image)));
            Value::from(fields)
        });
        Some(named.collect())
    })
}

fn annotations() -> impl Strategy<Value = Option<Vec<(String, String)>>> {
    let one = prop_oneof![
        4 => ("stamp\\.kimup\\.cloudavenue\\.io/(app|init)[0-3]", "(app|new):[0-2]\\.[0-9]\\.0 (app|new|evil)(:[0-2]\\.[0-9]\\.0)?|junk"),
        1 => ("kimup\\.cloudavenue\\.io/applied", "app0: [0-2]\\.[0-9]\\.0( -> [0-2]\\.[0-9]\\.0)? \\(Image web\\)|\\PC{0,9}"),
        1 => ("kimup\\.cloudavenue\\.io/(enabled|failure-policy|policy)", "true|false|fail|ignore|x"),
        2 => ("[a-z~/]{1,9}", "\\PC{0,9}"),
    ];
    prop::option::of(prop::collection::vec(one, 0..5))
}

fn metadata() -> impl Strategy<Value = Value> {
    let owner = json!([{"kind": "ReplicaSet", "name": "web", "uid": "rs", "controller": true, "xUnknown": 1}]);
    (annotations(), any::<bool>(), any::<bool>(), unknown()).prop_map(move |(annotations, null, owned, mut fields)| {
        let given = annotations.map(|pairs| pairs.into_iter().map(|(key, value)| (key, json!(value))).collect());
        if let Some(value) = given.or(null.then_some(Value::Null)) {
            fields.insert("annotations".to_owned(), value);
        }
        if owned {
            fields.insert("ownerReferences".to_owned(), owner.clone());
            fields.insert("labels".to_owned(), json!({"pod-template-hash": "h"}));
        }
        Value::from(fields)
    })
}

fn any_pod() -> impl Strategy<Value = Value> {
    (metadata(), containers("init"), containers("app"), unknown(), unknown()).prop_map(
        |(metadata, init, app, mut spec, mut pod)| {
            spec.extend(init.map(|init| ("initContainers".to_owned(), json!(init))));
            spec.extend(app.map(|app| ("containers".to_owned(), json!(app))));
            pod.extend([("metadata".to_owned(), metadata), ("spec".to_owned(), Value::from(spec))]);
            Value::from(pod)
        },
    )
}

/// The Pod without what may be changed.
fn untouched(pod: &Value) -> Value {
    let mut pod = pod.clone();
    for list in ["initContainers", "containers"] {
        for container in pod["spec"][list].as_array_mut().into_iter().flatten() {
            container.as_object_mut().unwrap().remove("image");
        }
    }
    let metadata = pod["metadata"].as_object_mut().unwrap();
    if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
        annotations.remove(APPLIED);
    }
    // Absent, null and empty are one to the API server.
    metadata.retain(|key, value| key != "annotations" || value.as_object().is_some_and(|map| !map.is_empty()));
    for list in ["initContainers", "containers"] {
        pod["spec"].as_object_mut().unwrap().retain(|key, value| key != list || !value.is_null());
    }
    pod
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn only_images_and_one_annotation_change_and_only_once(
        pod in any_pod(),
        namespace in prop::sample::select(vec!["in", "out", "lenient", "unknown"]),
        answer in prop::sample::select(vec![Ok("1.5.0"), Ok("main"), Err("down")]),
    ) {
        let first = ask(namespace, &pod, answer);
        if first["allowed"] == false {
            prop_assert!(first.get("patch").is_none() && answer.is_err());
            return Ok(());
        }
        let admitted = patched(&pod, &first);
        prop_assert_eq!(untouched(&admitted), untouched(&pod), "a field is lost or made");
        for operation in patch_of(&first).as_array().unwrap() {
            let path = operation["path"].as_str().unwrap();
            let image = path.starts_with("/spec/") && path.ends_with("/image") && operation["op"] == "replace";
            prop_assert!(image || path.starts_with("/metadata/annotations"), "{operation}");
        }
        // Reinvocation, also when sync would say something else by now.
        let unanswered = first.get("warnings").is_some();
        for answer in [Some(answer), Some(Err("down")), (!unanswered).then_some(Ok("9.9.9"))].into_iter().flatten() {
            prop_assert_eq!(patch_of(&ask(namespace, &admitted, answer)), json!([]), "not idempotent: {}", admitted);
        }
    }

    #[test]
    fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..40), object in json_value(), at in 0..400_usize) {
        let _ = Review::parse(&bytes, &SNAPSHOT);
        let _ = Review::parse(body("in", &object).to_string().as_bytes(), &SNAPSHOT);
        let mut cut = body("in", &pod("app:1.0.0")).to_string().into_bytes();
        cut.truncate(at);
        prop_assert!(Review::parse(&cut, &SNAPSHOT).is_err() || at >= cut.len());
    }
}
