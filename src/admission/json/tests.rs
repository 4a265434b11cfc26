use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::wire::Envelope;
use super::*;

#[track_caller]
fn agree(body: &[u8]) {
    compare::<Envelope<'_>>(body);
}

fn review(object: &Value) -> Value {
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": "u", "kind": {"group": "", "version": "v1", "kind": "Pod"}, "operation": "CREATE", "dryRun": false,
            "resource": {"group": "", "version": "v1", "resource": "pods"}, "namespace": "shop",
            "userInfo": {"groups": ["a", "b"], "extra": {"n": [1, -2.5e3, true, null]}}, "object": object, "oldObject": null,
        },
    })
}

#[test]
fn what_is_common_is_not_left_to_serde_json() {
    #[track_caller]
    fn check(text: &str) {
        assert!(quickly::<Envelope<'_>>(text.as_bytes()).is_ok(), "{text}");
        agree(text.as_bytes());
    }
    let owner =
        json!({"kind": "ReplicaSet", "name": "web", "uid": "1", "controller": true, "blockOwnerDeletion": true});
    let pod = json!({
        "metadata": {
            "annotations": {"a\"\\\u{1}": "é\n\"}", "kimup.cloudavenue.io/enabled": "\"true\"", "b": ""}, "labels": {"pod-template-hash": "é"},
            "ownerReferences": [owner], "managedFields": [{"f:\"x\\": {}, "k:{\"name\":\"}\"}": {"f:image": {}}}, [[[]]], []],
            "creationTimestamp": null, "finalizers": []},
        "spec": {
            "containers": [{"name": "app", "image": "app:1", "env": [{"name": "A", "value": "]}\"\\"}], "tty": true}, {"image": "b\u{9}"}],
            "initContainers": [], "priority": -12, "imagePullSecrets": [{"name": "x"}, {}], "serviceAccountName": null},
        "status": {},
    });
    check(&review(&pod).to_string());
    check(&serde_json::to_string_pretty(&review(&pod)).unwrap());
    check(&format!(" \r\n\t{} \n", review(&pod)));
    for object in [json!(null), json!("x\n"), json!(true), json!(false), json!([]), json!([1, {"a": [2]}]), json!({})] {
        check(&review(&object).to_string());
    }
    check("{}");
}

#[test]
fn the_rest_is_left_to_it() {
    #[track_caller]
    fn check(text: &[u8]) {
        assert!(quickly::<Envelope<'_>>(text).is_err(), "{}", String::from_utf8_lossy(text));
        agree(text);
    }
    for text in [
        "",
        " ",
        "{",
        "}",
        "[",
        "[]",
        "null",
        "7",
        "\"",
        "{}}",
        "{} x",
        "{,}",
        "{\"a\":1,}",
        "{\"a\"}",
        "{\"a\":}",
        "{a:1}",
        "{\"a\" 1}",
        "{\"a\":1 \"b\":2}",
        "{\"kind\":\"a\n\"}",
        "{\"kind\":\"\\ud800\"}",
        "{\"kind\":\"a",
        "{\"kind\":nul}",
        "{\"kind\":\"a\\",
        "{\"a\":[}",
        "{\"a\":{",
        "{\"a\":\"",
        "{\"a\":\"\\",
        "{\"kind\":\"a\",\"kind\":\"b\"}",
        "{\"kind\":7}",
        "{\"request\":{}}",
        "{\"request\":{\"uid\":null}}",
        "{\"request\":{\"uid\":\"a\",\"object\":-7}}",
        "{\"\\x\":1}",
        "{\"request\":[\"a\"]}",
        "{\"request\":{\"uid\":\"a\",\"object\":{\"spec\":{\"containers\":[,]}}}}",
        "{\"request\":{\"uid\":\"a\",\"object\":{\"spec\":{\"containers\":[{},]}}}}",
    ] {
        check(text.as_bytes());
    }
    check(b"{\"kind\":\"\xff\"}");
    check(b"{\"kind\":\"\\n\xff\"}");
    check(b"\xef\xbb\xbf{}");
}

#[test]
fn of_what_is_skipped_only_strings_and_brackets_count() {
    #[track_caller]
    fn check(skipped: &str, taken: bool) {
        let text = format!("{{\"other\":{skipped},\"kind\":\"K\"}}");
        let read = quickly::<Envelope<'_>>(text.as_bytes());
        assert_eq!(read.ok().map(|envelope| envelope.kind.into_owned()), taken.then(|| "K".to_owned()), "{text}");
    }
    check("[1 2 {]]", true);
    check("nonsense", true);
    check("\"\\x\n\"", true);
    check("\"\n\"", false);
    check("[[]", false);
    check("[]]", false);
    check("", false);
    check("\"\"\"", false);
    let deep = 200_000;
    check(&format!("{}{}", "[".repeat(deep), "]".repeat(deep)), true);
    check(&"[".repeat(deep), false);
}

/// Any value, and often one with the names that count.
fn any_json() -> impl Strategy<Value = Value> {
    let text = prop_oneof![".{0,12}", "[\"\\\\{}\\[\\]a]{0,80}", "[a-z/.:-]{0,70}"];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f32>().prop_map(|number| json!(number)),
        text.clone().prop_map(Value::from),
    ];
    let names = "(metadata|spec|annotations|labels|ownerReferences|containers|initContainers|name|image|uid|kind|controller|pod-template-hash|imagePullSecrets|serviceAccountName|kimup\\.cloudavenue\\.io/enabled)";
    let key = prop_oneof![4 => names, 1 => text];
    leaf.prop_recursive(5, 60, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::btree_map(key.clone(), inner, 0..6).prop_map(|map| json!(map)),
        ]
    })
}

/// Values of the right kinds in the right places, and strays among them.
fn any_object() -> impl Strategy<Value = Value> {
    let text = || prop_oneof![".{0,9}", "[a-z:/.]{0,40}", "[\"\\\\]{0,9}"];
    let strays = || prop::collection::btree_map("x.{0,9}", any_json(), 0..3);
    let named = (prop::option::of(text()), prop::option::of(text()), strays());
    let named = named.prop_map(|(name, image, mut fields)| {
        fields.extend(name.map(|name| ("name".to_owned(), json!(name))));
        fields.extend(image.map(|image| ("image".to_owned(), json!(image))));
        json!(fields)
    });
    let named = named.boxed();
    let owner = (text(), any::<bool>(), any_json()).prop_map(|(name, controller, stray)| {
        json!({"kind": name, "name": name, "uid": name, "controller": controller, "apiVersion": stray})
    });
    let list = |of: BoxedStrategy<Value>| prop::collection::vec(of, 0..5);
    let lists = (list(named.clone()), list(named), list(owner.boxed()));
    let key = prop_oneof![text(), Just("kimup.cloudavenue.io/policy".to_owned()), Just("pod-template-hash".to_owned())];
    let map = || prop::collection::btree_map(key.clone(), text(), 0..5);
    let maps = (map(), map());
    (lists, maps, strays(), any_json()).prop_map(|((main, init, owners), (annotations, labels), mut strays, stray)| {
        let spec = json!({"containers": main, "initContainers": init, "imagePullSecrets": main, "volumes": stray});
        strays.insert("spec".to_owned(), spec);
        let metadata =
            json!({"annotations": annotations, "labels": labels, "ownerReferences": owners, "managedFields": stray});
        strays.insert("metadata".to_owned(), metadata);
        json!(strays)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_pod_is_read_as_serde_json_reads_it(object in any_object(), pretty in any::<bool>()) {
        let review = review(&object);
        let text = if pretty { serde_json::to_string_pretty(&review).unwrap() } else { review.to_string() };
        prop_assert!(quickly::<Envelope<'_>>(text.as_bytes()).is_ok(), "{}", text);
        agree(text.as_bytes());
    }

    #[test]
    fn any_object_is_read_as_serde_json_reads_it(object in any_json()) {
        agree(review(&object).to_string().as_bytes());
        agree(json!({"kind": object, "request": object}).to_string().as_bytes());
    }

    #[test]
    fn garbage_is_read_as_serde_json_reads_it(
        object in any_object(), at in any::<prop::sample::Index>(), bytes in prop::collection::vec(any::<u8>(), 0..4), cut in any::<bool>()
    ) {
        let mut body = review(&object).to_string().into_bytes();
        let at = at.index(body.len());
        let end = if cut { body.len() } else { (at + bytes.len()).min(body.len()) };
        body.splice(at..end, bytes);
        agree(&body);
    }

    #[test]
    fn noise_does_no_harm(body in prop::collection::vec(prop_oneof![any::<u8>(), prop::sample::select(&b"{}[]\",:\\ \nn"[..])], 0..300)) {
        agree(&body);
    }
}
