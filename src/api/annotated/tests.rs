//! What annotations say.

use super::*;

fn map(text: &str) -> Map {
    let full = |key: &str| {
        if key.contains('/') {
            key.replace(".k/", ".kimup.cloudavenue.io/")
        } else {
            format!("kimup.cloudavenue.io/{key}")
        }
    };
    let pairs = text.split(';').map(str::trim).filter(|pair| !pair.is_empty()).filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (full(key.trim()), value.to_owned())).collect()
}

/// `app=semver /pattern/ 5m`, `!` before a problem's first words.
#[track_caller]
fn check(template: &str, workload: &str, regular: &[&str], init: &[&str], expected: &[&str]) {
    let (template, workload) = (map(template), map(workload));
    let found = read(Levels(&[&template, &workload]), Containers { regular, init });
    let mut said: Vec<String> = found
        .containers
        .iter()
        .map(|(name, w)| {
            let pattern = w.pattern.as_ref().map(|p| format!(" /{p}/")).unwrap_or_default();
            format!("{name}={}{pattern} {}", w.policy, w.interval)
        })
        .collect();
    said.extend(found.problems.iter().map(|problem| format!("!{problem}")));
    assert_eq!(said.len(), expected.len(), "{said:#?}");
    for (said, expected) in said.iter().zip(expected) {
        assert!(
            if expected.starts_with('!') { said.starts_with(expected) } else { said == expected },
            "{said:?} is not {expected:?}"
        );
    }
}

#[test]
fn a_container_gets_the_nearest_setting() {
    let (one, two) = (&["app"][..], &["app", "proxy"][..]);
    check("", "", one, &[], &[]);
    check("enabled=true", "", one, &[], &[]);
    check("policy=semver", "", one, &[], &["app=semver 5m"]);
    check("", "policy=semver;interval=1h30m", one, &[], &["app=semver 1h30m"]);
    check("policy=semver:^1", "policy=semver;interval=1m", one, &[], &["app=semver:^1 1m"]);
    check("policy=semver;pattern=^v", "", one, &["setup"], &["app=semver /^v/ 5m"]);
    check("policy=semver;containers=app, setup", "", one, &["setup"], &["app=semver 5m", "setup=semver 5m"]);
    check("policy=semver;containers=proxy", "", two, &[], &["proxy=semver 5m"]);
    check("policy.k/app=semver;pattern.k/app=^1", "", two, &[], &["app=semver /^1/ 5m"]);
    check("policy=semver;policy.k/proxy=semver:^2", "", one, &["proxy"], &["app=semver 5m", "proxy=semver:^2 5m"]);
    check(
        "policy=semver;policy.k/app=semver:1;policy.k/proxy=semver:2",
        "",
        two,
        &[],
        &["app=semver:1 5m", "proxy=semver:2 5m"],
    );
    check(
        "policy=semver;containers=app;policy.k/proxy=semver:2;interval=30s",
        "",
        two,
        &[],
        &["app=semver 30s", "proxy=semver:2 5m"],
    );
    // Opted out.
    check("policy=semver;enabled=false", "", one, &[], &[]);
    check("enabled=false", "policy=semver", one, &[], &[]);
    check("enabled=true", "policy=semver;enabled=false", one, &[], &["app=semver 5m"]);
    check("policy=semver;containers=app,proxy;enabled.k/proxy=false", "", two, &[], &["app=semver 5m"]);
}

#[test]
fn what_is_wrong_is_said_and_nothing_happens() {
    let (one, two) = (&["app"][..], &["app", "proxy"][..]);
    check(
        "policy=",
        "",
        one,
        &[],
        &["!annotation kimup.cloudavenue.io/policy: unknown policy \"\": use one of patch, minor,"],
    );
    check("policy=Semver", "", one, &[], &["!annotation kimup.cloudavenue.io/policy: unknown policy \"Semver\""]);
    check("policy=semver:", "", one, &[], &["!annotation kimup.cloudavenue.io/policy: unknown policy \"semver:\""]);
    check("policy=semver-minor", "", one, &[], &["!annotation kimup.cloudavenue.io/policy: unknown policy"]);
    check("policy.k/app=semver:>=1.x.y", "", one, &[], &["!annotation policy.kimup.cloudavenue.io/app: invalid range"]);
    check(
        "policy=semver;pattern=(",
        "",
        one,
        &[],
        &["!annotation kimup.cloudavenue.io/pattern: invalid pattern \"(\""],
    );
    check(
        "policy=semver;interval=5",
        "",
        one,
        &[],
        &["!annotation kimup.cloudavenue.io/interval: invalid interval \"5\""],
    );
    check(
        "policy=semver",
        "",
        two,
        &[],
        &["!annotation kimup.cloudavenue.io/policy does not say which of the containers app, proxy"],
    );
    check(
        "policy=semver;policy.k/app=semver",
        "",
        two,
        &[],
        &["app=semver 5m", "!annotation kimup.cloudavenue.io/policy does not say"],
    );
    check(
        "policy=semver;containers=web",
        "",
        one,
        &[],
        &["!annotation kimup.cloudavenue.io/containers: there is no container \"web\""],
    );
    check(
        "policy.k/web=semver",
        "",
        one,
        &[],
        &["!annotation policy.kimup.cloudavenue.io/web: there is no container \"web\""],
    );
    check("pattern=^v", "", one, &[], &["!annotation kimup.cloudavenue.io/pattern has no effect without"]);
    check("", "interval.k/app=1m", one, &[], &["!annotation interval.kimup.cloudavenue.io/app has no effect without"]);
    check(
        "image-pull-secrets=a",
        "",
        one,
        &[],
        &["!annotation kimup.cloudavenue.io/image-pull-secrets has no effect without"],
    );
    check(
        "policy=semver;enabled=yes",
        "",
        one,
        &[],
        &["!annotation kimup.cloudavenue.io/enabled: unknown value \"yes\""],
    );
    // Of several containers only the wrong one stands still.
    check(
        "policy.k/app=semver;policy.k/proxy=sem",
        "",
        two,
        &[],
        &["app=semver 5m", "!annotation policy.kimup.cloudavenue.io/proxy"],
    );
}

#[test]
fn a_container_follows_what_covers_it() {
    #[track_caller]
    fn check(pod: &str, workload: &str, stamped: bool, namespace: bool, expected: Option<bool>) {
        let (pod, workload) = (map(pod), map(workload));
        let settings = NamespaceSettings { enabled: namespace, ..NamespaceSettings::default() };
        let levels = Levels(&[&pod, &workload]);
        assert_eq!(levels.enabled("app", stamped, settings).ok(), expected);
        if expected == Some(true) {
            assert_eq!(levels.any_enabled(stamped, settings), Ok(true));
        }
    }
    check("", "", false, false, Some(false));
    check("", "", false, true, Some(true));
    check("", "", true, false, Some(true));
    check("enabled=false", "", true, true, Some(false));
    check("enabled=false;enabled.k/app=true", "", true, true, Some(false));
    check("enabled.k/app=true", "", false, false, Some(true));
    check("enabled.k/app=false", "", true, true, Some(false));
    check("enabled.k/proxy=true", "", false, false, Some(false));
    check("policy=semver", "", false, false, Some(true));
    check("policy.k/app=semver", "", false, false, Some(true));
    check("policy.k/proxy=semver", "", false, false, Some(false));
    check("", "enabled=true", false, false, Some(true));
    check("enabled=true", "enabled=false", false, false, Some(true));
    check("", "enabled=false", false, true, Some(false));
    check("enabled.k/app=maybe", "", false, true, None);
}

#[test]
fn a_pod_is_read_on_if_anything_in_it_may_follow_something() {
    #[track_caller]
    fn check(pod: &str, stamped: bool, namespace: bool, expected: Option<bool>) {
        let pod = map(pod);
        let settings = NamespaceSettings { enabled: namespace, ..NamespaceSettings::default() };
        assert_eq!(Levels(&[&pod]).any_enabled(stamped, settings).ok(), expected, "{pod:?} {stamped} {namespace}");
    }
    check("", false, false, Some(false));
    check("", false, true, Some(true));
    check("", true, false, Some(true));
    check("enabled=true", false, false, Some(true));
    check("enabled=false", true, true, Some(false));
    check("enabled=false;policy=semver", true, true, Some(false));
    check("enabled=yes", true, true, None);
    check("policy=semver", false, false, Some(true));
    check("policy.k/app=semver", false, false, Some(true));
    check("enabled.k/app=true", false, false, Some(true));
    check("pattern=^v", false, false, Some(false));
}

#[test]
fn an_image_says_what_the_annotations_say() {
    let annotations = map("policy=semver:^1;pattern=^v;interval=1m;image-pull-secrets=a, b");
    let found = read(Levels(&[&annotations]), Containers { regular: &["app"], init: &[] });
    let spec = found.containers["app"].spec(&Reference::parse("ghcr.io/org/app:v1.2.0").unwrap());
    let expected = serde_json::json!({
        "image": "ghcr.io/org/app", "baseTag": "v1.2.0", "imagePullSecrets": [{"name": "a"}, {"name": "b"}],
        "triggers": [{"type": "interval", "value": "1m"}],
        "rules": [{"name": "annotation", "type": "semver", "value": "^1", "actions": [{"type": "apply"}]}],
        "filter": {"pattern": "^v"},
    });
    assert_eq!(serde_json::to_value(&spec).unwrap(), expected);
    assert!(crate::api::compile(&spec, Timestamp::UNIX_EPOCH).is_ok());
}

#[test]
fn images_are_named_after_their_owner() {
    assert_ne!(image_name("Deployment", "a-b", "c"), image_name("Deployment", "a", "b-c"));
    assert_ne!(image_name("Deployment", "a", "c"), image_name("StatefulSet", "a", "c"));
    assert!(image_name("Deployment", "web", "app").starts_with("web-app-"));
    assert!(image_name("Deployment", &"x".repeat(253), "app").len() < 220);
    assert!(image_name("Deployment", &"é".repeat(253), "app").len() < 220);
}

#[test]
fn a_controller_tells_whose_annotations_count() {
    #[track_caller]
    fn check(kind: &str, name: &str, hash: &str, expected: &[(&str, &str)]) {
        let labels = match hash.split_once('=') {
            Some((label, value)) => Map::from([(label.to_owned(), value.to_owned())]),
            None => Map::from([("pod-template-hash".to_owned(), hash.to_owned())]),
        };
        let found = owners_of(kind, name, PodHash::of(Some(&labels)));
        assert_eq!(found.iter().map(|(kind, name)| (*kind, name.as_str())).collect::<Vec<_>>(), expected);
    }
    check("ReplicaSet", "web-5d8f", "5d8f", &[("Deployment", "web")]);
    check("ReplicaSet", "web-5d8f", "", &[]);
    check("ReplicaSet", "web", "5d8f", &[]);
    check("StatefulSet", "db", "db-1", &[("StatefulSet", "db")]);
    check("DaemonSet", "log", "x", &[("DaemonSet", "log")]);
    check("Job", "once", "", &[("Job", "once")]);
    check("Job", "nightly-29012345", "", &[("Job", "nightly-29012345"), ("CronJob", "nightly")]);
    check("Rollout", "web", "5d8f", &[]);
    check("ReplicaSet", "web-5d8f", "rollouts-pod-template-hash=5d8f", &[("Rollout", "web")]);
    check("ReplicaSet", "web-5d8f", "rollouts-pod-template-hash=6e9a", &[]);
    check("CloneSet", "web", "controller-revision-hash=web-5d8f", &[("CloneSet", "web")]);
}

#[test]
fn what_cannot_be_used_is_told_apart_from_what_is_not_said() {
    #[track_caller]
    fn check(text: &str, wrong: &[&str], beside_ambiguity: usize) {
        let annotations = map(text);
        let found = read(Levels(&[&annotations]), Containers { regular: &["app", "proxy"], init: &["setup"] });
        assert_eq!(found.wrong.iter().map(String::as_str).collect::<Vec<_>>(), wrong);
        assert_eq!(found.problems_beside_ambiguity().len(), beside_ambiguity, "{:?}", found.problems);
        assert!(found.problems_beside_ambiguity().iter().all(|problem| !problem.contains("does not say which")));
    }
    check("", &[], 0);
    check("policy=semver;containers=app", &[], 0);
    check("policy=sem;containers=app,setup", &["app", "setup"], 1);
    check("policy=semver", &[], 0);
    check("policy=semver;policy.k/app=sem", &["app"], 1);
    check("policy=semver;policy.k/app=semver;enabled.k/app=x", &["app"], 1);
    check("policy=semver;policy.k/web=semver", &[], 1);
}

#[test]
fn problems_are_bounded() {
    #[track_caller]
    fn check(annotations: &Map, first: &str) {
        let found = read(Levels(&[annotations]), Containers { regular: &["app"], init: &[] });
        assert_eq!(found.problems.len(), MAX_PROBLEMS);
        assert!(found.problems[0].starts_with(first), "{}", found.problems[0]);
    }
    // As many as fit into a request: compared with each other they would take minutes.
    let policies = (0..60_000).map(|n| (format!("{POLICY_PREFIX}{n}"), "patch".to_owned())).collect();
    check(&policies, "annotation policy.kimup.cloudavenue.io/0: there is no container");
    let list = (0..400_000).map(|n| n.to_string()).collect::<Vec<_>>().join(",");
    let listed = Map::from([(POLICY.to_owned(), "patch".to_owned()), (CONTAINERS.to_owned(), list)]);
    check(&listed, "annotation kimup.cloudavenue.io/containers: there is no container \"0\"");
}
