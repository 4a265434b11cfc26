use k8s_openapi::Resource;

use super::super::entry::Entry;
use super::keep::{adopt_bundles, carried, says, surplus};
use super::*;
use crate::api::annotations::{FailurePolicy, NamespaceSettings};

type Pairs<'a> = &'a [(&'a str, &'a str)];

fn options(endpoint: Endpoint, ca_bundle: CaBundle) -> Options {
    Options { name: "kimup".to_owned(), namespace: "kimup-system".to_owned(), endpoint, owner: None, ca_bundle }
}

fn own() -> Options {
    let service = Endpoint::Service { namespace: "kimup-system".to_owned(), name: "kimup-webhook".to_owned() };
    options(service, CaBundle::Own(b"ca".to_vec()))
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn entries(configuration: &MutatingWebhookConfiguration) -> &[MutatingWebhook] {
    configuration.webhooks.as_deref().unwrap()
}

fn get<'a>(pairs: Pairs<'a>, key: &str) -> Option<&'a str> {
    pairs.iter().find(|(k, _)| *k == key).map(|(_, v)| *v)
}

/// Label selectors as Kubernetes defines them: `NotIn` also selects what has no such label.
fn selects(selector: &LabelSelector, labels: Pairs) -> bool {
    selector.match_expressions.iter().flatten().all(|requirement| {
        let values = requirement.values.as_deref().unwrap();
        let within = get(labels, &requirement.key).is_some_and(|v| values.iter().any(|x| x == v));
        match requirement.operator.as_str() {
            "In" => within,
            "NotIn" => !within,
            other => panic!("{other}"),
        }
    })
}

/// The conditions by their names; that the expressions mean the same is tested on an API server.
fn holds(condition: &MatchCondition, labels: Pairs, annotations: Pairs) -> bool {
    let own = get(annotations, FAILURE_POLICY).unwrap_or("");
    match condition.name.as_str() {
        "not-opted-out" => get(annotations, ENABLED) != Some("false"),
        "no-mirror-pod" => get(annotations, MIRROR_POD).is_none(),
        "not-answered" => true, // no stamp here is of the image that runs
        "opted-in" => {
            let own = |key: &str| key == POLICY || key.starts_with(POLICY_PREFIX) || key.starts_with(ENABLED_PREFIX);
            get(annotations, ENABLED) == Some("true")
                || get(labels, ROLLOUT).is_some()
                || annotations.iter().any(|(key, _)| own(key))
        }
        "failure-policy" => match condition.expression.split_once(r#".orValue("") "#) {
            Some((_, r#"!= "ignore""#)) => own != "ignore",
            Some((_, r#"== "ignore""#)) => own == "ignore",
            Some((_, r#"!= "fail""#)) => own != "fail",
            Some((_, r#"== "fail""#)) => own == "fail",
            other => panic!("{other:?}"),
        },
        other => panic!("{other}"),
    }
}

const IN: (&str, &str) = (ENABLED, "true");
const OUT: (&str, &str) = (ENABLED, "false");
const FAIL: (&str, &str) = (FAILURE_POLICY, "fail");
const IGNORE: (&str, &str) = (FAILURE_POLICY, "ignore");
const STAMPED: (&str, &str) = (ROLLOUT, "ab12");

/// Namespace and its labels, labels and annotations of the Pod, the entry that selects it and its policy.
type Selected = (&'static str, Pairs<'static>, Pairs<'static>, Pairs<'static>, Option<(&'static str, &'static str)>);

const PATCH: (&str, &str) = (POLICY, "patch");
const PATCH_APP: (&str, &str) = ("policy.kimup.cloudavenue.io/app", "patch");
const IN_APP: (&str, &str) = ("enabled.kimup.cloudavenue.io/app", "true");
const INTERVAL_APP: (&str, &str) = ("interval.kimup.cloudavenue.io/app", "1m");

const SELECTED: [Selected; 32] = [
    ("a", &[], &[], &[], None),
    ("a", &[IN], &[], &[], Some(("labelled-fail", "Fail"))),
    ("a", &[IN], &[], &[FAIL], Some(("labelled-fail", "Fail"))),
    ("a", &[IN], &[], &[IGNORE], Some(("labelled-pod-ignores", "Ignore"))),
    ("a", &[IN, IGNORE], &[], &[], Some(("labelled-ignore", "Ignore"))),
    ("a", &[IN, IGNORE], &[], &[IGNORE], Some(("labelled-ignore", "Ignore"))),
    ("a", &[IN, IGNORE], &[], &[FAIL], Some(("labelled-pod-fails", "Fail"))),
    ("a", &[IN, FAIL], &[], &[], Some(("labelled-fail", "Fail"))),
    ("a", &[IN], &[STAMPED], &[IN], Some(("labelled-fail", "Fail"))),
    ("a", &[IN], &[STAMPED], &[OUT], None),
    ("a", &[IN], &[], &[(MIRROR_POD, "x")], None),
    ("by-annotation", &[], &[], &[], Some(("annotated-fail", "Fail"))),
    ("by-annotation", &[], &[STAMPED], &[IN], Some(("annotated-fail", "Fail"))),
    ("by-annotation", &[IN], &[], &[IN], Some(("labelled-fail", "Fail"))),
    ("by-annotation", &[IGNORE], &[], &[], Some(("annotated-ignore", "Ignore"))),
    ("by-annotation", &[], &[], &[IGNORE], Some(("annotated-pod-ignores", "Ignore"))),
    ("by-annotation", &[], &[], &[OUT], None),
    ("a", &[], &[], &[IN], Some(("pods-fail", "Fail"))),
    ("a", &[OUT], &[], &[IN], Some(("pods-fail", "Fail"))),
    ("a", &[], &[STAMPED], &[], Some(("pods-fail", "Fail"))),
    ("a", &[], &[STAMPED], &[OUT], None),
    ("a", &[], &[], &[IN, IGNORE], Some(("pods-pod-ignores", "Ignore"))),
    ("a", &[IGNORE], &[], &[IN], Some(("pods-ignore", "Ignore"))),
    ("a", &[IGNORE], &[], &[IN, FAIL], Some(("pods-pod-fails", "Fail"))),
    ("a", &[], &[], &[IN, (MIRROR_POD, "x")], None),
    ("a", &[], &[], &[PATCH], Some(("pods-fail", "Fail"))),
    ("a", &[], &[], &[PATCH_APP], Some(("pods-fail", "Fail"))),
    ("a", &[OUT], &[], &[IN_APP, IGNORE], Some(("pods-pod-ignores", "Ignore"))),
    ("a", &[], &[], &[INTERVAL_APP], None),
    ("a", &[], &[], &[PATCH, OUT], None),
    ("a", &[IN], &[], &[PATCH], Some(("labelled-fail", "Fail"))),
    ("by-annotation", &[], &[], &[PATCH_APP], Some(("annotated-fail", "Fail"))),
];

#[test]
fn a_pod_is_selected_by_one_entry_or_none() {
    fn check((namespace, namespace_labels, labels, annotations, expected): Selected) {
        let configuration = build(&own(), &names(&["by-annotation", "kube-system"]));
        let all = [namespace_labels, &[(NAME_LABEL, namespace)]].concat();
        let selected: Vec<_> = entries(&configuration)
            .iter()
            .filter(|e| selects(e.namespace_selector.as_ref().unwrap(), &all))
            .filter(|e| {
                let mut conditions = e.match_conditions.iter().flatten();
                conditions.all(|condition| holds(condition, labels, annotations))
            })
            .map(|e| {
                let name = e.name.strip_suffix(".kimup.cloudavenue.io").unwrap();
                (name, e.failure_policy.as_deref().unwrap())
            })
            .collect();
        assert_eq!(selected, Vec::from_iter(expected), "{namespace} {namespace_labels:?} {labels:?} {annotations:?}");
    }
    for row in SELECTED {
        check(row);
    }
    for excluded in ["kube-system", "kube-node-lease", "kimup-system"] {
        check((excluded, &[IN], &[STAMPED], &[IN], None));
        check((excluded, &[], &[STAMPED], &[IN], None));
    }
}

#[test]
fn the_list_of_annotated_namespaces_is_sorted_and_bounded() {
    fn check(annotated: &[String], expected: Option<&[String]>) {
        let configuration = build(&own(), annotated);
        let list = entries(&configuration)
            .iter()
            .filter(|e| e.name.starts_with("annotated-"))
            .flat_map(|e| e.namespace_selector.as_ref().unwrap().match_expressions.as_ref().unwrap())
            .find(|r| r.key == NAME_LABEL && r.operator == "In")
            .map(|r| r.values.as_deref().unwrap());
        assert_eq!(list, expected);
        let expected_entries = if expected.is_some() { 12 } else { 8 };
        assert_eq!(entries(&configuration).len(), expected_entries);
    }
    check(&[], None);
    check(&names(&["kimup-system", "kube-system"]), None);
    check(&names(&["b", "a", "b", "kimup-system"]), Some(&names(&["a", "b"])));
    let many: Vec<String> = (0..=MAX_ANNOTATED).map(|n| format!("n{n:04}")).collect();
    check(&many, Some(&many[..MAX_ANNOTATED]));
}

#[test]
fn the_configuration_stays_below_what_etcd_takes() {
    let longest: Vec<String> = (0..MAX_ANNOTATED).map(|n| format!("{n:063}")).collect();
    let size = serde_json::to_vec(&build(&own(), &longest)).unwrap().len();
    assert!(size < 1_300_000, "{size}");
}

#[test]
fn the_endpoint_is_written_out() {
    fn check(url: &str, expected: &str) {
        let options = options(Endpoint::Url(url.to_owned()), CaBundle::Keep);
        let configuration = build(&options, &[]);
        for entry in entries(&configuration) {
            let name = entry.name.strip_suffix(".kimup.cloudavenue.io").unwrap();
            assert_eq!(entry.client_config.url, Some(expected.replace("NAME", name)));
            assert_eq!(entry.client_config.service, None);
        }
    }
    check("https://192.0.2.7:8443", "https://192.0.2.7:8443/mutate/NAME");
    check("https://192.0.2.7:8443/", "https://192.0.2.7:8443/mutate/NAME");
    check("https://192.0.2.7:8443/mutate", "https://192.0.2.7:8443/mutate/NAME");
    check("https://example.org/hook", "https://example.org/hook");
    check("https://example.org/mutate/", "https://example.org/mutate/NAME");
    // The API server refuses these.
    check("https://example.org/hook?a=b", "https://example.org/hook?a=b");
    check("https://example.org?a=b", "https://example.org?a=b");
    check("https://example.org/#a", "https://example.org/#a");
    check("mailto:a@example.org", "mailto:a@example.org");
    check("nonsense", "nonsense");
    let configuration = build(&own(), &[]);
    for entry in entries(&configuration) {
        let service = entry.client_config.service.as_ref().unwrap();
        let path = format!("/mutate/{}", entry.name.strip_suffix(".kimup.cloudavenue.io").unwrap());
        assert_eq!(
            (service.namespace.as_str(), service.name.as_str(), service.path.as_ref(), service.port),
            ("kimup-system", "kimup-webhook", Some(&path), Some(443))
        );
        assert_eq!(entry.client_config.ca_bundle, Some(ByteString(b"ca".to_vec())));
    }
}

/// The path of each entry says of the Namespace what its selector asks for.
#[test]
fn a_path_tells_what_the_selector_asked_for() {
    let configuration = build(&own(), &names(&["by-annotation"]));
    for entry in entries(&configuration) {
        let selector = entry.namespace_selector.as_ref().unwrap();
        let asks = |key: &str, value: &str| {
            let mut all = selector.match_expressions.iter().flatten();
            all.any(|r| r.key == key && r.operator == "In" && r.values.iter().flatten().any(|v| v == value))
        };
        let opted_in = asks(ENABLED, "true");
        let path = entry.client_config.service.as_ref().unwrap().path.as_deref().unwrap();
        let (known, ignores) = (NamespaceSettings::default(), asks(FAILURE_POLICY, "ignore"));
        let found = Entry::of_path(path).settings(Some(known));
        assert_eq!((found.enabled, found.failure_policy == FailurePolicy::Ignore), (opted_in, ignores), "{path}");
    }
}

#[test]
fn a_bundle_is_kept() {
    let live_with = |change: fn(usize) -> Option<&'static [u8]>| {
        let mut live = build(&own(), &[]);
        for (number, entry) in live.webhooks.iter_mut().flatten().enumerate() {
            entry.client_config.ca_bundle = change(number).map(|b| ByteString(b.to_vec()));
        }
        live
    };
    let check = |ca_bundle: CaBundle, live: &MutatingWebhookConfiguration, expected: &[&str]| {
        let mut options = own();
        options.ca_bundle = ca_bundle;
        let mut wanted = build(&options, &names(&["by-annotation"]));
        adopt_bundles(&mut wanted, live);
        let bundle = |prefix: &str| {
            let entry = entries(&wanted).iter().find(|e| e.name.starts_with(prefix));
            let bundle = entry.unwrap().client_config.ca_bundle.clone();
            bundle.map_or(String::new(), |b| String::from_utf8(b.0).unwrap())
        };
        let found = ["labelled-fail", "labelled-pod-ignores", "annotated-fail"].map(bundle);
        assert_eq!(found, expected);
    };
    let live = live_with(|n| Some(if n == 0 { b"first" } else { b"other" }));
    check(CaBundle::Keep, &live, &["first", "other", "first"]);
    check(CaBundle::Own(b"own".to_vec()), &live, &["own", "own", "own"]);
    check(CaBundle::Keep, &live_with(|_| None), &["", "", ""]);
    let late = live_with(|n| (n == 1).then_some(b"late"));
    check(CaBundle::Keep, &late, &["late", "late", "late"]);
}

#[test]
fn whom_the_live_configuration_trusts() {
    let ca = || crate::net::ca::CertificateAuthority::generate("test", jiff::Timestamp::now()).unwrap();
    let (first, second) = (ca(), ca());
    let pem = |ca: &crate::net::ca::CertificateAuthority| ca.certificate_pem().as_bytes().to_vec();
    let check = |change: &dyn Fn(&mut MutatingWebhookConfiguration), everywhere: usize, anywhere: usize| {
        let both = [pem(&first), pem(&second)].concat();
        let mut live = build(&options(Endpoint::Url("https://a".to_owned()), CaBundle::Own(both)), &[]);
        change(&mut live);
        let found = carried(&live);
        assert_eq!((found.everywhere.len(), found.anywhere.len()), (everywhere, anywhere));
    };
    let set = |live: &mut MutatingWebhookConfiguration, bundle: Option<Vec<u8>>| {
        live.webhooks.as_mut().unwrap()[3].client_config.ca_bundle = bundle.map(ByteString);
    };
    check(&|_| (), 2, 2);
    check(&|live| set(live, Some(pem(&second))), 1, 2);
    check(&|live| set(live, None), 0, 2);
    check(&|live| live.webhooks = None, 0, 0);
    let another = |live: &mut MutatingWebhookConfiguration| {
        set(live, None);
        live.webhooks.as_mut().unwrap()[3].name = "another.example.org".to_owned();
    };
    check(&another, 2, 2);
}

#[test]
fn a_difference_is_seen() {
    fn check(change: fn(&mut MutatingWebhookConfiguration), says_it: bool, extra: usize) {
        let mut options = own();
        options.owner =
            Some(OwnerReference { name: "kimup-system".to_owned(), uid: "1".to_owned(), ..OwnerReference::default() });
        let wanted = build(&options, &names(&["by-annotation"]));
        let mut live = wanted.clone();
        change(&mut live);
        assert_eq!((says(&live, &wanted), surplus(&live, &wanted).len()), (says_it, extra));
    }
    fn first(live: &mut MutatingWebhookConfiguration) -> &mut MutatingWebhook {
        &mut live.webhooks.as_mut().unwrap()[0]
    }
    check(|_| (), true, 0);
    check(|live| live.webhooks.as_mut().unwrap().reverse(), true, 0);
    check(
        |live| {
            let labels = live.metadata.labels.as_mut().unwrap();
            labels.insert("team".to_owned(), "a".to_owned());
        },
        true,
        0,
    );
    check(
        |live| {
            let mut another = first(live).clone();
            another.name = "another.example.org".to_owned();
            live.webhooks.as_mut().unwrap().push(another);
        },
        true,
        1,
    );
    check(|live| live.metadata.labels = None, false, 0);
    check(|live| live.metadata.owner_references = None, false, 0);
    check(|live| drop(live.webhooks.as_mut().unwrap().remove(0)), false, 0);
    check(|live| first(live).failure_policy = Some("Ignore".to_owned()), false, 0);
    check(|live| first(live).client_config.ca_bundle = None, false, 0);
    check(|live| first(live).match_conditions = None, false, 0);
    check(|live| first(live).timeout_seconds = Some(1), false, 0);
}

#[test]
fn the_static_configuration_says() {
    let yaml = static_yaml("elsewhere").unwrap();
    let read: MutatingWebhookConfiguration = serde_saphyr::from_str(&yaml).unwrap();
    assert!(yaml.contains(&format!("kind: {}", MutatingWebhookConfiguration::KIND)));
    let annotations = read.metadata.annotations.as_ref().unwrap();
    assert_eq!(annotations.get(INJECT_CA).map(String::as_str), Some("elsewhere/kimup-webhook"));
    let found: Vec<&str> = entries(&read).iter().map(|e| e.name.as_str()).collect();
    assert_eq!(found.len(), 8);
    for entry in entries(&read) {
        let service = entry.client_config.service.as_ref().unwrap();
        assert_eq!((service.namespace.as_str(), service.name.as_str()), ("elsewhere", "kimup-webhook"));
        assert_eq!(entry.client_config.ca_bundle, None);
    }
    assert!(!yaml.contains("namespaceObject"));
}

/// `KIMUP_UPDATE=1 cargo test --lib configuration` writes the file anew.
#[test]
fn the_static_configuration_is_the_committed_one() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/certs/webhook.yaml");
    let wanted = format!(
        "# Generated from src/admission/configuration.rs; a test compares.\n{}",
        static_yaml("kimup-system").unwrap()
    );
    if std::env::var_os("KIMUP_UPDATE").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    assert_eq!(std::fs::read_to_string(path).unwrap(), wanted);
}

/// The policy that answers for stamps in the API server is YAML by hand: it speaks of the same keys and namespaces.
#[test]
fn the_policy_of_stamps_says_what_kimup_says() {
    use crate::api::annotations::{APPLIED, ENABLED_PREFIX, STAMP_PREFIX};
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/overlays/stamp-policy/policy.yaml");
    let text = std::fs::read_to_string(path).unwrap();
    for key in [ENABLED, ENABLED_PREFIX, STAMP_PREFIX, APPLIED, MIRROR_POD] {
        assert!(text.contains(&format!("\"{key}\"")), "{key}");
    }
    assert!(text.contains(&format!("key: {ROLLOUT}\n")));
    assert!(text.contains(&format!("values: [{}]", excluded("kimup-system").join(", "))));
    assert!(!text.contains("namespaceObject"));
}
