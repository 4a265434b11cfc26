//! `kimup mutate` as a user runs it: manifests in; the Pod or its patch, warnings and exit code out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::Write;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

/// The Image `web` of `ghcr.io/org/app` at 1.4.2.
const IMAGE: &str = "
apiVersion: kimup.cloudavenue.io/v1alpha1
kind: Image
metadata: {name: web, namespace: shop}
spec:
  image: ghcr.io/org/app
  triggers: [{type: interval, value: 5m}]
  rules: [{name: minor, type: semver-minor, actions: [{type: apply}]}]
status: {tag: 1.4.2, result: Success}
";
const SHOP: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {kimup.cloudavenue.io/enabled: 'true'}}
";

/// A Pod of one container, with more lines of its metadata.
fn pod(metadata: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{namespace: shop, {metadata}}}\nspec:\n  future: {{a: [1, 2.5, null]}}\n  \
         containers: [{{name: app, image: 'ghcr.io/org/app:1.0.0', env: [{{name: A, value: 'true'}}]}}]\n"
    )
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Runs it with the Pod on standard input.
fn mutate(args: &[&str], pod: &str, images: &str) -> Ran {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("images.yaml");
    fs::write(&file, images).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_kimup"));
    command.args(["mutate", "-f", "-", "--images"]).arg(&file).args(args).env_clear();
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // Bad usage ends before the input is read.
    let _ = child.stdin.take().unwrap().write_all(pod.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// The reference that the container would run, and what is told on stderr.
#[track_caller]
fn check(pod: &str, images: &str, expected: &str, warning: &str) {
    let ran = mutate(&["-o", "json"], pod, images);
    assert_eq!(ran.code, 0, "{}", ran.stderr);
    let found: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!(found["spec"]["containers"][0]["image"], expected, "{pod} {images}");
    assert_eq!(ran.stderr.is_empty(), warning.is_empty(), "{}", ran.stderr);
    assert!(ran.stderr.lines().all(|line| line.starts_with("Warning: kimup: ")), "{}", ran.stderr);
    assert!(ran.stderr.contains(warning), "{}", ran.stderr);
}

const OWN: &str = "ghcr.io/org/app:1.0.0";
const NEWER: &str = "ghcr.io/org/app:1.4.2";

#[test]
fn what_a_pod_would_run() {
    let both = format!("{SHOP}---{IMAGE}");
    check(&pod("name: a"), &both, NEWER, "");
    check(&pod("generateName: a-"), &both, NEWER, "");
    let own = |key: &str, value: &str| pod(&format!("annotations: {{{key}: '{value}'}}"));
    let enabled = "kimup.cloudavenue.io/enabled";
    check(&own(enabled, "true"), IMAGE, NEWER, "");
    check(&own(enabled, "false"), &both, OWN, "");
    check(&own(enabled, "yes"), &both, OWN, "unknown value \"yes\"");
    check(
        &own("stamp.kimup.cloudavenue.io/app", &format!("{OWN} ghcr.io/org/app:1.2.0")),
        &both,
        "ghcr.io/org/app:1.2.0",
        "",
    );
    // Of a workload that is held.
    let of_web = pod(
        "name: a, labels: {pod-template-hash: 5d8f}, ownerReferences: [{apiVersion: apps/v1, kind: ReplicaSet, name: \
         web-5d8f, uid: r, controller: true}]",
    );
    let entry = "{workload: Deployment/web, container: app, tag: 1.3.0, left: 1.4.2, since: '', by: Undo, why: ''}";
    let held = both.replace("result: Success", &format!("result: Success, held: [{entry}]"));
    check(&of_web, &held, "ghcr.io/org/app:1.3.0", "");
    check(&pod("name: a"), &held, NEWER, "");
    // As in a cluster, a Namespace must opt in; the list may be a list.
    check(&pod("name: a"), IMAGE, OWN, "Namespace shop is not in ");
    check(&pod("name: a"), &SHOP.replace("'true'", "'false'"), OWN, "");
    let list = |objects: &[Value]| json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop",
        "annotations": {"kimup.cloudavenue.io/enabled": "true"}}});
    let image = json!({"apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image", "metadata": {"name": "web"},
        "spec": {"image": "ghcr.io/org/app", "triggers": [{"type": "interval", "value": "5m"}],
            "rules": [{"name": "r", "type": "semver", "actions": [{"type": "apply"}]}]}, "status": {"tag": "1.5.0"}});
    check(&pod("name: a"), &list(&[namespace.clone(), image.clone()]), "ghcr.io/org/app:1.5.0", "");
    check(
        &pod("name: a").replace("namespace: shop,", ""),
        &list(&[namespace, image]),
        OWN,
        "Namespace default is not in",
    );
    check(&own(enabled, "true").replace("namespace: shop,", ""), IMAGE, OWN, "Namespace default is not in");
}

#[test]
fn three_formats() {
    let pod = pod("name: a, annotations: {kimup.cloudavenue.io/enabled: 'true'}");
    let yaml = mutate(&[], &pod, IMAGE);
    assert_eq!((yaml.code, &*yaml.stderr), (0, ""));
    assert_eq!(yaml.stdout, mutate(&["-o", "yaml"], &pod, IMAGE).stdout);
    let json = mutate(&["-o", "json"], &pod, IMAGE);
    let parsed: Value = serde_json::from_str(&json.stdout).unwrap();
    assert_eq!(serde_saphyr::from_str::<Value>(&yaml.stdout).unwrap(), parsed);
    let expected = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"namespace": "shop", "name": "a", "annotations": {
            "kimup.cloudavenue.io/enabled": "true",
            "kimup.cloudavenue.io/applied": "app: 1.0.0 -> 1.4.2 (Image web)",
        }},
        "spec": {"future": {"a": [1, 2.5, null]}, "containers": [
            {"name": "app", "image": NEWER, "env": [{"name": "A", "value": "true"}]},
        ]},
    });
    assert_eq!(parsed, expected);
    let patch = mutate(&["-o", "patch"], &pod, IMAGE);
    let patch: Value = serde_json::from_str(&patch.stdout).unwrap();
    assert_eq!(patch[0], json!({"op": "replace", "path": "/spec/containers/0/image", "value": NEWER}));
    assert_eq!(patch.as_array().unwrap().len(), 2);
    // What was mutated once is left as it is.
    let again = mutate(&["-o", "patch"], &json.stdout, IMAGE);
    assert_eq!(again.stdout, "[]\n", "{}", again.stderr);
}

#[test]
fn failures_print_nothing_on_stdout() {
    #[track_caller]
    fn check(args: &[&str], pod: &str, images: &str, code: i32, part: &str) {
        let ran = mutate(args, pod, images);
        assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{}", ran.stderr);
        assert!(ran.stderr.contains(part), "{}", ran.stderr);
    }
    let on = pod("annotations: {kimup.cloudavenue.io/enabled: 'true'}");
    let untagged = IMAGE.split("status:").next().unwrap();
    let denial = "kimup: container \"app\": Image shop/web has no tag yet: a preview asks no registry";
    check(&[], &on, untagged, 1, denial);
    check(&[], &on.replace("kind: Pod", "kind: Deployment"), IMAGE, 2, "\"Deployment\" of \"v1\", not a Pod");
    check(&[], &format!("{on}---\n{on}"), IMAGE, 2, "-: it holds 2 objects, not one Pod");
    check(&[], "{", IMAGE, 2, "line 1");
    check(&[], &on.replace("containers: [", "containers: [7, "), IMAGE, 2, "the body cannot be read");
    check(&[], &on, &IMAGE.replace("rules:", "rule:"), 2, "Image \"web\": spec: missing field `rules`");
    check(&[], &on, &IMAGE.replace("name: web,", ""), 2, "metadata.name is missing");
    check(&[], &on, &SHOP.replace("'true'", "7"), 2, "Namespace \"shop\": labels");
    check(&["-o", "text"], &on, IMAGE, 2, "invalid value 'text'");
}

#[test]
fn by_the_failure_policy_a_pod_without_an_answer_stays_as_it_is() {
    let keys = "kimup.cloudavenue.io/enabled: 'true', kimup.cloudavenue.io/failure-policy: ignore";
    let untagged = IMAGE.split("status:").next().unwrap();
    let warning = "container \"app\" keeps its own image: Image shop/web has no tag yet: a preview asks no registry";
    check(&pod(&format!("annotations: {{{keys}}}")), &format!("{SHOP}---{untagged}"), OWN, warning);
}

#[test]
fn only_one_file_can_be_standard_input() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kimup"));
    let output = command.args(["mutate", "-f", "-", "--images", "-"]).env_clear().output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr.contains("cannot both be standard input"), "{stderr}");
}
