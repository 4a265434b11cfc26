use super::*;
use std::collections::BTreeMap;

type Map = BTreeMap<String, String>;
type Pairs<'a> = &'a [(&'a str, &'a str)];

fn options() -> Options {
    Options {
        name: "kimup".to_owned(),
        namespace: "kimup-system".to_owned(),
        target: Target::Service {
            namespace: "kimup-system".to_owned(),
            name: "kimup-webhook".to_owned(),
        },
        owner: None,
    }
}

fn map(pairs: Pairs) -> Map {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

fn selects(selector: &LabelSelector, labels: &Map) -> bool {
    assert_eq!(selector.match_labels, None);
    selector.match_expressions.iter().flatten().all(|r| {
        let value = labels.get(&r.key);
        let listed = value.is_some_and(|v| r.values.iter().flatten().any(|known| known == v));
        match r.operator.as_str() {
            "In" => listed,
            "NotIn" => !listed,
            other => panic!("{other} is not known here"),
        }
    })
}

/// The little CEL that the configuration uses.
fn holds(expression: &str, annotations: &Map, labels: &Map) -> bool {
    if expression.contains(" || ") {
        return expression
            .split(" || ")
            .any(|part| holds(part, annotations, labels));
    }
    if let Some(rest) = expression.strip_prefix('!') {
        return !holds(rest, annotations, labels);
    }
    let rest = expression.strip_prefix("object.metadata.?").unwrap();
    let (field, rest) = rest.split_once("[?\"").unwrap();
    let (key, rest) = rest.split_once("\"].").unwrap();
    let value = match field {
        "annotations" => annotations.get(key),
        "labels" => labels.get(key),
        other => panic!("{other} is not known here"),
    };
    if rest == "hasValue()" {
        return value.is_some();
    }
    let (operator, wanted) = rest
        .strip_prefix("orValue(\"\") ")
        .unwrap()
        .split_once(' ')
        .unwrap();
    let equal = format!("{:?}", value.map_or("", String::as_str)) == wanted;
    match operator {
        "==" => equal,
        "!=" => !equal,
        other => panic!("{other} is not known here"),
    }
}

/// Names and failure policies of the entries that select a Pod.
fn selecting(
    configuration: &MutatingWebhookConfiguration,
    namespace: &Map,
    annotations: &Map,
    labels: &Map,
) -> Vec<String> {
    configuration
        .webhooks
        .iter()
        .flatten()
        .filter(|entry| selects(entry.namespace_selector.as_ref().unwrap(), namespace))
        .filter(|entry| {
            let mut conditions = entry.match_conditions.iter().flatten();
            conditions.all(|c| holds(&c.expression, annotations, labels))
        })
        .map(|e| {
            format!(
                "{} {}",
                e.name.trim_end_matches(SUFFIX),
                e.failure_policy.as_ref().unwrap()
            )
        })
        .collect()
}

#[test]
fn each_pod_in_scope_is_selected_by_one_entry() {
    #[track_caller]
    fn check(name: &str, namespace: Pairs, pod: Pairs, labels: Pairs, expected: &str) {
        let configuration = build(
            &options(),
            &["noted".to_owned(), "noted-2".to_owned()],
            |_| None,
        );
        let mut namespace = map(namespace);
        namespace.insert(NAME_LABEL.to_owned(), name.to_owned());
        let found = selecting(&configuration, &namespace, &map(pod), &map(labels));
        let expected: Vec<&str> = Some(expected)
            .filter(|e| !e.is_empty())
            .into_iter()
            .collect();
        assert_eq!(found, expected, "{name} {namespace:?} {pod:?}");
    }
    let on = (ENABLED, "true");
    let off = (ENABLED, "false");
    let ignore = (FAILURE_POLICY, "ignore");
    let fail = (FAILURE_POLICY, "fail");
    let rolled = &[(ROLLOUT, "ab12")][..];
    check("shop", &[], &[], &[], "");
    check("shop", &[on], &[], &[], "labelled-fail Fail");
    check("shop", &[on], &[ignore], &[], "labelled-pod-ignore Ignore");
    check("shop", &[on], &[fail], &[], "labelled-fail Fail");
    check("shop", &[on, ignore], &[], &[], "labelled-ignore Ignore");
    check(
        "shop",
        &[on, ignore],
        &[ignore],
        &[],
        "labelled-ignore Ignore",
    );
    check(
        "shop",
        &[on, ignore],
        &[fail],
        &[],
        "labelled-pod-fail Fail",
    );
    check("shop", &[on, fail], &[], &[], "labelled-fail Fail");
    check("shop", &[on], &[on], rolled, "labelled-fail Fail");
    check("shop", &[on], &[off], rolled, "");
    check("shop", &[on], &[(MIRROR_POD, "x")], &[], "");
    check("shop", &[(ENABLED, "yes")], &[], &[], "");
    check("shop", &[], &[on], &[], "pod-fail Fail");
    check("shop", &[], &[], rolled, "pod-fail Fail");
    check("shop", &[off], &[on], &[], "pod-fail Fail");
    check("shop", &[off], &[], rolled, "pod-fail Fail");
    check("shop", &[], &[off], rolled, "");
    check("shop", &[], &[on, ignore], &[], "pod-pod-ignore Ignore");
    check("shop", &[ignore], &[on], &[], "pod-ignore Ignore");
    check("shop", &[ignore], &[on, fail], &[], "pod-pod-fail Fail");
    check(
        "shop",
        &[],
        &[on, (FAILURE_POLICY, "Ignore")],
        &[],
        "pod-fail Fail",
    );
    check("noted", &[], &[], &[], "annotated-fail Fail");
    check("noted-2", &[ignore], &[], &[], "annotated-ignore Ignore");
    check("noted", &[], &[on], rolled, "annotated-fail Fail");
    check("noted", &[], &[ignore], &[], "annotated-pod-ignore Ignore");
    check("noted", &[ignore], &[fail], &[], "annotated-pod-fail Fail");
    check("noted", &[], &[off], &[], "");
    // Labelled since the list was written.
    check("noted", &[on], &[], &[], "labelled-fail Fail");
    for name in ["kube-system", "kube-node-lease", "kimup-system"] {
        check(name, &[on], &[on], rolled, "");
    }
}

#[test]
fn the_excluded_namespaces_stay_out_also_by_annotation() {
    let annotated = ["kimup-system".to_owned(), "kube-system".to_owned()];
    let names = |annotated: &[String]| {
        let built = build(&options(), annotated, |_| None);
        built.webhooks.unwrap().len()
    };
    assert_eq!(names(&annotated), 8, "no entries for an empty list");
    assert_eq!(names(&["shop".to_owned()]), 12);
}

#[test]
fn every_entry_has_what_the_design_asks() {
    let owner = Owner {
        name: "kimup-system".to_owned(),
        uid: "u".to_owned(),
    };
    let options = Options {
        owner: Some(owner),
        ..options()
    };
    let built = build(&options, &["shop".to_owned()], |name| {
        Some(name.as_bytes().to_vec())
    });
    let owners = built.metadata.owner_references.unwrap();
    assert_eq!(
        (owners[0].kind.as_str(), owners[0].uid.as_str()),
        ("Namespace", "u")
    );
    let mut names = Vec::new();
    for entry in built.webhooks.unwrap() {
        assert_eq!(entry.side_effects, "None");
        assert_eq!(entry.reinvocation_policy.as_deref(), Some("IfNeeded"));
        assert_eq!(entry.match_policy.as_deref(), Some("Equivalent"));
        assert_eq!(entry.timeout_seconds, Some(10));
        assert_eq!(entry.admission_review_versions, ["v1"]);
        let service = entry.client_config.service.unwrap();
        let path = format!("/mutate/{}", entry.name.trim_end_matches(SUFFIX));
        assert_eq!((service.path, service.port), (Some(path), Some(443)));
        assert_eq!(
            entry.client_config.ca_bundle.unwrap().0,
            entry.name.as_bytes()
        );
        for condition in entry.match_conditions.unwrap() {
            assert!(!condition.expression.contains("namespaceObject"));
        }
        names.push(entry.name);
    }
    let total = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), total, "{names:?}");
}

#[test]
fn an_address_outside_the_cluster_takes_the_place_of_the_service() {
    #[track_caller]
    fn check(url: &str, expected: &str) {
        let options = Options {
            target: Target::Url(url.to_owned()),
            ..options()
        };
        let entry = build(&options, &[], |_| None).webhooks.unwrap().remove(0);
        assert_eq!(entry.client_config.url.as_deref(), Some(expected));
        assert_eq!(entry.client_config.service, None);
    }
    check(
        "https://192.0.2.7:8443",
        "https://192.0.2.7:8443/mutate/labelled-fail",
    );
    check(
        "https://192.0.2.7:8443/",
        "https://192.0.2.7:8443/mutate/labelled-fail",
    );
}

#[test]
fn the_static_configuration_reads_back() {
    let yaml = static_yaml(&options(), Some("kimup-system/kimup-webhook")).unwrap();
    let read: MutatingWebhookConfiguration = serde_saphyr::from_str(&yaml).unwrap();
    let annotations = read.metadata.annotations.clone().unwrap();
    assert_eq!(
        annotations["cert-manager.io/inject-ca-from"],
        "kimup-system/kimup-webhook"
    );
    let mut built = build(&options(), &[], |_| None);
    built.metadata.annotations = read.metadata.annotations.clone();
    assert_eq!(read, built);
    assert!(yaml.starts_with(
        "apiVersion: admissionregistration.k8s.io/v1\nkind: MutatingWebhookConfiguration\n"
    ));
    assert!(!yaml.contains("caBundle"));
    assert!(
        !static_yaml(&options(), None)
            .unwrap()
            .contains("cert-manager")
    );
}
