//! The commands as a user runs them: arguments and standard input in; standard output, errors and exit code out.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::Write;
use std::process::{Command, Stdio};

use kimup_testbed::{FaultReply, ScriptedRegistry};
use serde_json::{Value, json};

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

/// Without the environment of the caller: a `KIMUP_…` or a proxy there would change the outcome.
fn kimup(args: &[&str], stdin: &str, env: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kimup"));
    command.args(args).env_clear().envs(env.iter().copied());
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    // Bad usage ends before the input is read.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    let output = child.wait_with_output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) }
}

/// Splits at blanks; `'…'` holds blanks together.
fn words(line: &str) -> Vec<String> {
    let parts = line.split('\'').enumerate().flat_map(|(at, part)| match at % 2 {
        0 => part.split_whitespace().map(str::to_owned).collect(),
        _ => vec![part.to_owned()],
    });
    parts.collect()
}

fn run(line: &str, stdin: &str, env: &[(&str, &str)]) -> Ran {
    let words = words(line);
    kimup(&words.iter().map(String::as_str).collect::<Vec<_>>(), stdin, env)
}

#[track_caller]
fn fails(line: &str, stdin: &str, code: i32, part: &str) {
    let ran = run(line, stdin, &[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{line}: {}", ran.stderr);
    assert!(ran.stderr.contains(part), "{line}: {}", ran.stderr);
}

const TAGS: &str = "1.0.0\r\n1.2.0\n\n  1.2.3 \n1.3.0\n1.3.0-rc.1\n2.0.0\n1.3.0-alpine\n1.2.3\nsha256-\n";

#[test]
fn select_answers_in_json() {
    #[track_caller]
    fn check(args: &str, current: Option<&str>, selected: Option<&str>, candidates: &[&str]) {
        let ran = run(&format!("select {args} --tags - -o json"), TAGS, &[]);
        assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{args}");
        assert_eq!(ran.stdout.lines().count(), 1);
        let found: Value = serde_json::from_str(&ran.stdout).unwrap();
        let keys: Vec<&String> = found.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["candidates", "changed", "current", "reason", "rejected", "selected"], "{args}");
        let wanted = (&json!(current), &json!(selected), &json!(candidates), &json!(selected != current));
        assert_eq!((&found["current"], &found["selected"], &found["candidates"], &found["changed"]), wanted, "{args}");
        assert!(found["reason"].as_str().is_some_and(|reason| !reason.is_empty()));
        let rejected = found["rejected"].as_array().unwrap();
        assert_eq!(candidates.len() + rejected.len(), 8, "each tag once: {found}");
        assert!(rejected.iter().all(|lost| lost["tag"].is_string() && lost["reason"].is_string()), "{found}");
    }
    check("--policy minor --current 1.2.0", Some("1.2.0"), Some("1.3.0"), &["1.3.0", "1.2.3"]);
    check("--policy patch --current 1.2.0", Some("1.2.0"), Some("1.2.3"), &["1.2.3"]);
    check("--policy major --current 2.0.0", Some("2.0.0"), Some("2.0.0"), &[]);
    check("--policy 'semver:>=1.2, <1.3'", None, Some("1.2.3"), &["1.2.3", "1.2.0"]);
    check("--policy minor --current ''", None, Some("2.0.0"), &["2.0.0", "1.3.0", "1.2.3", "1.2.0", "1.0.0"]);
    check("--policy timestamp", None, None, &[]);
    check("--policy minor --current 1.2.0 --exclude ^1.3", Some("1.2.0"), Some("1.2.3"), &["1.2.3"]);
    check("--policy minor --current 1.2.0 --pattern -alpine$", Some("1.2.0"), Some("1.3.0-alpine"), &["1.3.0-alpine"]);
    check("--rule semver-minor --current 1.2.0", Some("1.2.0"), Some("1.3.0"), &["1.3.0"]);
    check("--rule 'semver=^1' --current 1.2.0", Some("1.2.0"), Some("1.3.0"), &["1.3.0", "1.2.3"]);
    check("--rule semver-patch --rule semver-major --current 1.2.0", Some("1.2.0"), Some("2.0.0"), &["2.0.0", "1.2.3"]);
    check(
        "--rule numerical --pattern ^(\\d+)\\.2 --extract $1 --current x",
        Some("x"),
        Some("1.2.3"),
        &["1.2.3", "1.2.0"],
    );
}

#[test]
fn select_reads_an_image() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let image = "apiVersion: kimup.cloudavenue.io/v1alpha1\nkind: Image\nmetadata: {name: web}\nspec:\n  image: alpine\n  \
                 baseTag: 1.0.0\n  triggers: [{type: interval, value: 5m}]\n  rules:\n  - {name: minor, type: semver-minor, \
                 actions: [{type: apply}]}\n";
    let plain = write("image.yaml", &format!("kind: Secret\n---\n{image}"));
    let settled = write("settled.yaml", &format!("{image}status: {{tag: 1.2.3}}\n"));
    let tags = write("tags", TAGS);
    let check = |args: &str, stdin: &str, current: &str, selected: &str| {
        let ran = run(&format!("select {args} -o json"), stdin, &[]);
        assert_eq!(ran.code, 0, "{args}: {}", ran.stderr);
        let found: Value = serde_json::from_str(&ran.stdout).unwrap();
        assert_eq!((found["current"].as_str(), found["selected"].as_str()), (Some(current), Some(selected)), "{args}");
    };
    check(&format!("-f {plain} --tags {tags}"), "", "1.0.0", "1.3.0");
    check(&format!("-f {settled} --tags {tags}"), "", "1.2.3", "1.3.0");
    check(&format!("-f {settled} --tags {tags} --current 1.3.0"), "", "1.3.0", "1.3.0");
    check(&format!("-f - --tags {tags}"), image, "1.0.0", "1.3.0");
    let wrong = write("wrong.yaml", &image.replace("semver-minor", "regex, value: '('"));
    fails(&format!("select -f {wrong} --tags {tags}"), "", 2, "Image \"web\": rule \"minor\": invalid regex \"(\"");
    fails(&format!("select -f {tags} --tags {tags}"), "", 2, &tags);
    fails(&format!("select -f {plain} --tags {tags} --pattern a"), "", 2, "--pattern");
    fails("select -f - --tags -", image, 2, "cannot both be standard input");
    fails(&format!("select -f {plain}.not --tags {tags}"), "", 1, "cannot read");
}

#[test]
fn select_says_what_is_wrong() {
    let check = |args: &str, code: i32, part: &str| fails(&format!("select {args}"), TAGS, code, part);
    check("--tags -", 2, "--policy");
    check("--policy minor", 2, "--tags");
    check("--policy minor --rule semver --tags -", 2, "cannot be used with");
    check("--policy minor --policy patch --tags -", 2, "cannot be used multiple times");
    check("--policy newest --tags -", 2, "kimup: unknown policy \"newest\": use one of patch, minor");
    check("--policy semver:>=1.x.y --tags -", 2, "kimup: policy \"semver:>=1.x.y\": invalid range \">=1.x.y\": ");
    check("--rule newest --tags -", 2, "kimup: unknown rule type \"newest\": use one of");
    check("--rule semver=>=1.x.y --tags -", 2, "kimup: rule \"semver\": invalid range \">=1.x.y\": ");
    check("--rule regex=( --tags -", 2, "kimup: rule \"regex\": invalid regex \"(\": ");
    check("--policy minor --pattern ( --tags -", 2, "kimup: invalid pattern \"(\": ");
    check("--policy minor --exclude ( --tags -", 2, "kimup: invalid exclude \"(\": ");
    check("--policy minor --extract $1 --tags -", 2, "kimup: invalid extract \"$1\": it needs a pattern");
    check("--policy minor --tags /does/not/exist", 1, "cannot read /does/not/exist: No such file");
    check("--policy minor --tags /", 1, "cannot read /: is a directory");
    check("--policy minor --tags - -o yaml", 2, "yaml");
}

#[test]
fn select_reads_its_environment_twins() {
    let env = [("KIMUP_POLICY", "minor"), ("KIMUP_CURRENT", "1.2.0"), ("KIMUP_TAGS", "-"), ("KIMUP_OUTPUT", "json")];
    let ran = run("select --current 1.3.0", TAGS, &env);
    assert!(ran.stdout.contains(r#""selected":"1.3.0""#), "the flag wins: {} {}", ran.stdout, ran.stderr);
    // No list: a rule may hold a comma.
    let ran = run("select --tags - -o json", TAGS, &[("KIMUP_RULE", "semver=>=1.0, <1.3")]);
    assert!(ran.stdout.contains(r#""selected":"1.2.3""#), "{} {}", ran.stdout, ran.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_are_listed_completely_or_not_at_all() {
    let registry = ScriptedRegistry::start().await.unwrap();
    registry.set_tags("team/app", &["1.1.0", "1.0.0", "1.1.0", "-illegal"]);
    registry.set_answer("team/broken", FaultReply::new(200, r#"{"tags":["1.0.0""#));
    registry.set_answer("team/private", FaultReply::new(401, "").header("www-authenticate", "Basic realm=\"r\""));
    let (app, host) = (registry.image("team/app"), registry.host());

    let ran = run(&format!("tags {app} --plain-http"), "", &[]);
    assert_eq!((ran.code, ran.stdout.as_str()), (0, "1.1.0\n1.0.0\n"), "{}", ran.stderr);
    let summary = format!("{app}: 2 tags from http://{host}, 1 request, 1 tag left out as illegal\n");
    assert_eq!(ran.stderr, summary);

    let ran = run(&format!("tags {app} --plain-http -o json"), "", &[]);
    let expected = json!({"image": app, "tags": ["1.1.0", "1.0.0"], "dropped": 1, "requests": 1});
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    assert_eq!(serde_json::from_str::<Value>(&ran.stdout).unwrap(), expected);

    let plain = |name: &str, more: &str| format!("tags {} --plain-http {more}", registry.image(name));
    fails(&plain("team/broken", ""), "", 1, "unusable answer");
    fails(&plain("team/unknown", "-o json"), "", 1, "knows no repository team/unknown");
    fails(&plain("team/private", ""), "", 1, "--docker-config, or --username");
    fails(&plain("team/app", "--registry-max-tags 1"), "", 1, "raise --registry-max-tags");
    fails(&plain("team/app", "--registry-max-page-bytes 10"), "", 1, "raise --registry-max-page-bytes");
    fails(&format!("tags {app}"), "", 1, "--plain-http");
}

#[tokio::test(flavor = "multi_thread")]
async fn tags_keeps_credentials_to_itself() {
    const PASSWORD: &str = "s3cr3t-canary";
    const BASIC: &str = "dXNlcjpzM2NyM3QtY2FuYXJ5"; // base64 of user:s3cr3t-canary
    let registry = ScriptedRegistry::start().await.unwrap();
    registry.set_answer("team/app", FaultReply::new(401, "").header("www-authenticate", "Basic realm=\"r\""));
    let folder = tempfile::tempdir().unwrap();
    let config = |text: &str| {
        let path = folder.path().join("config.json");
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let line = format!("tags {} --plain-http --log-level trace", registry.image("team/app"));
    let docker = json!({"auths": {registry.host(): {"auth": BASIC}}, "credsStore": "never-run"}).to_string();
    let docker = config(&docker);
    for (more, stdin) in [
        ("--username user --password-stdin".to_owned(), format!("{PASSWORD}\n")),
        (format!("--docker-config {docker}"), String::new()),
    ] {
        let before = registry.requests().len();
        let ran = run(&format!("{line} {more}"), &stdin, &[]);
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{}", ran.stderr);
        let requests = registry.requests().into_iter().skip(before);
        let sent: Vec<_> = requests.map(|request| request.authorization().to_owned()).collect();
        assert_eq!(sent, [String::new(), format!("Basic {BASIC}")], "{more}");
        assert!(ran.stderr.contains("/v2/team/app/tags/list") && ran.stderr.contains("401"), "{}", ran.stderr);
        assert!(ran.stderr.contains("denies access (with credentials)"), "{}", ran.stderr);
        assert!(!ran.stderr.contains(PASSWORD) && !ran.stderr.contains(BASIC), "{}", ran.stderr);
    }
    let elsewhere = config(&json!({"auths": {"other.example.com": {"auth": BASIC}}}).to_string());
    fails(&format!("{line} --docker-config {elsewhere}"), "", 1, "the docker config has none for this repository");
    let broken = config("{\"auths\": 7}");
    fails(&format!("{line} --docker-config {broken}"), "", 1, "it is no docker config.json (line 1, column ");
    let broken = config(&json!({"auths": {"a": {"auth": "%"}}}).to_string());
    fails(&format!("{line} --docker-config {broken}"), "", 1, "is not base64 of user:password");
}

#[test]
fn tags_says_what_is_wrong() {
    let check = |args: &str, stdin: &str, code: i32, part: &str| fails(&format!("tags {args}"), stdin, code, part);
    check("", "", 2, "<IMAGE>");
    check("alpine:3", "", 2, "give the repository alone");
    check("Alpine", "", 2, "lower case");
    check("alpine --username user", "", 2, "--password-stdin");
    check("alpine --password-stdin", "", 2, "--username");
    check("alpine --username user --password-stdin", "", 2, "standard input is empty");
    check("alpine --username a:b --password-stdin", "x", 2, "--username");
    check("alpine --username a --password-stdin --docker-config f", "x", 2, "cannot be used with");
    check("alpine --log-level loud", "", 2, "log level `loud`");
    check("alpine --docker-config /does/not/exist", "", 1, "--docker-config: cannot read /does/not/exist");
    check("alpine --ca-file /does/not/exist", "", 1, "--ca-file: cannot read /does/not/exist");
    check("127.0.0.1:1/app", "", 1, "is unreachable (connect)");
    check("alpine --registry-rate 0", "", 2, "from 0.001");
    check("alpine --registry-rate NaN", "", 2, "from 0.001");
}
