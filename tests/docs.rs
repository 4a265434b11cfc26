//! What is written down is what the program does: `docs/reference.md`, `deploy/crds.yaml` and `certs/webhook.yaml`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::CommandFactory;
use kimup::api::{Image, annotations, condition};
use kimup::cli::Cli;
use kimup::{notify, telemetry};
use kube::CustomResourceExt;
use serde_json::{Value, json};

type Row = Vec<String>;

fn checkout(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The rows of the tables below a heading, until the next heading of any level.
fn table(heading: &str) -> Vec<Row> {
    let text = fs::read_to_string(checkout("docs/reference.md")).unwrap();
    let (_, rest) = text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no {heading}"));
    let lines = rest.lines().take_while(|line| !line.starts_with('#')).filter(|line| line.starts_with('|'));
    let rows = lines.map(|line| {
        let line = line.replace(r"\|", "\u{1}");
        let cells = line.trim_matches('|').split('|');
        cells.map(|cell| cell.replace('\u{1}', "|").trim().to_owned()).collect()
    });
    let rows: Vec<Row> = rows.skip(2).collect(); // the header and the line below it
    assert!(!rows.is_empty(), "no table below {heading}");
    rows
}

/// A cell that is one word in backticks, without them.
fn code(cell: &str) -> &str {
    cell.trim_matches('`')
}

/// The first cells of a table; none twice.
fn first_cells(heading: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for row in table(heading) {
        assert!(found.insert(code(&row[0]).to_owned()), "{heading}: {} twice", row[0]);
    }
    found
}

#[track_caller]
fn check<T: AsRef<str>>(heading: &str, program: impl IntoIterator<Item = T>) {
    let program: BTreeSet<String> = program.into_iter().map(|name| name.as_ref().to_owned()).collect();
    let documented = first_cells(heading);
    let missing: Vec<_> = program.difference(&documented).collect();
    let stale: Vec<_> = documented.difference(&program).collect();
    assert!(missing.is_empty() && stale.is_empty(), "{heading}: not documented {missing:?}, not in kimup {stale:?}");
}

#[test]
fn commands_are_listed() {
    let cli = Cli::command();
    let visible = cli.get_subcommands().filter(|command| !command.is_hide_set());
    check("## Commands", visible.map(|command| format!("kimup {}", command.get_name())));
}

/// What clap knows of a flag: environment twin, commands, default.
#[derive(Debug, Default, PartialEq)]
struct Flag {
    env: String,
    commands: Vec<String>,
    default: Option<String>,
}

#[test]
fn flags_are_listed_with_their_twins_and_defaults() {
    let cli = Cli::command();
    let mut program: BTreeMap<String, Flag> = BTreeMap::new();
    for command in cli.get_subcommands().filter(|command| !command.is_hide_set()) {
        let flags = command.get_arguments().filter(|flag| !flag.is_positional());
        for flag in flags.filter(|flag| !["help", "version"].contains(&flag.get_id().as_str())) {
            let entry = program.entry(format!("--{}", flag.get_long().unwrap())).or_default();
            entry.env = flag.get_env().unwrap().to_str().unwrap().to_owned();
            entry.commands.push(command.get_name().to_owned());
            let takes_value = flag.get_action().takes_values();
            let defaults = flag.get_default_values().first().filter(|_| takes_value);
            // A command without a default of its own says in its help what it does instead.
            entry.default = defaults.map(|value| value.to_str().unwrap().to_owned()).or(entry.default.take());
        }
    }
    check("## Flags", program.keys());
    for row in table("## Flags") {
        let flag = &program[code(&row[0])];
        assert_eq!(code(&row[1]), flag.env, "{}", row[0]);
        let commands = if row[2] == "all" { "run, webhook, sync" } else { &row[2] };
        assert_eq!(commands, flag.commands.join(", "), "{}", row[0]);
        match &flag.default {
            Some(default) => assert!(is_default(&row[3], default), "{}: {:?}, not {default:?}", row[0], row[3]),
            None => assert!(!row[3].starts_with('`'), "{}: there is no default {}", row[0], row[3]),
        }
    }
}

/// Sizes are documented with a unit.
fn is_default(cell: &str, default: &str) -> bool {
    let cell = code(cell);
    let bytes = cell.strip_suffix("MiB").and_then(|number| number.parse::<u64>().ok()).map(|number| number << 20);
    cell == default || bytes.is_some_and(|bytes| bytes.to_string() == default)
}

fn schema() -> Value {
    serde_json::to_value(Image::crd()).unwrap()["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"].take()
}

/// Every field below a schema by its path, lists as `name[]`.
fn fields(path: &str, schema: &Value, found: &mut Vec<String>) {
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let mut path = format!("{path}.{name}");
        let mut field = field;
        if field["type"] == "array" {
            path += "[]";
            field = &field["items"];
        }
        // Kubernetes' own type.
        if path != "status.conditions[]" {
            fields(&path, field, found);
        }
        found.push(path);
    }
}

#[test]
fn every_field_of_an_image_is_listed() {
    let schema = schema();
    for part in ["spec", "status"] {
        let mut found = Vec::new();
        fields(part, &schema[part], &mut found);
        assert!(found.len() > 20, "{found:?}");
        check(&format!("## Image: {part}"), found);
    }
    let text = fs::read_to_string(checkout("docs/reference.md")).unwrap();
    let (_, required) = text.split_once("Required: ").unwrap();
    let required: BTreeSet<&str> = required.split_once('.').unwrap().0.split(", ").map(code).collect();
    assert_eq!(json!(required), schema["spec"]["required"]);
}

#[test]
fn every_value_of_an_enumeration_is_listed() {
    let schema = schema();
    let values = |pointer: &str| -> Vec<String> {
        let list = schema.pointer(pointer).unwrap_or_else(|| panic!("no {pointer}"));
        list.as_array().unwrap().iter().filter_map(|v| v.as_str().map(str::to_owned)).collect()
    };
    let rule = "/spec/properties/rules/items/properties";
    check("### Triggers", values("/spec/properties/triggers/items/properties/type/enum"));
    check("### Rules", values(&format!("{rule}/type/enum")));
    check("### Actions", values(&format!("{rule}/actions/items/properties/type/enum")));
    check("### Results", values("/status/properties/result/enum"));
    assert_eq!(first_cells("### Results").len(), 9, "as in the original kimup");
}

/// Every source below `src/`, in one text.
fn sources(folder: &Path) -> String {
    let mut text = String::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            text += &sources(&path);
        } else {
            text += &fs::read_to_string(&path).unwrap();
        }
    }
    text
}

#[test]
fn what_kimup_says_is_listed() {
    check("### Conditions", condition::TYPES);
    check("## Events", notify::Reason::ALL.iter().map(|reason| reason.as_str()));
    check("## Metrics", telemetry::METRICS.iter().map(|(name, _)| name));
    let sources = sources(&checkout("src"));
    for reason in first_cells("### Reasons") {
        assert!(sources.contains(&format!("{reason:?}")), "the reason {reason} is not in the sources");
    }
    for row in table("### Reasons") {
        for kind in row[1].split(", ") {
            assert!(condition::TYPES.contains(&kind), "{}: {kind} is no condition", row[0]);
        }
    }
}

#[test]
fn every_annotation_is_listed() {
    check("## Annotations and labels", annotations::ALL);
}

fn kimup(args: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_kimup")).args(args).output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `KIMUP_UPDATE=1 cargo test --test docs` writes the files anew.
#[test]
fn generated_files_are_what_the_program_prints() {
    let note = "# Generated from src/admission/configuration.rs; a test compares.\n";
    let files = [
        ("deploy/crds.yaml", kimup(&["crds"])),
        ("certs/webhook.yaml", format!("{note}{}", kimup(&["webhook-configuration"]))),
    ];
    for (path, wanted) in files {
        if std::env::var_os("KIMUP_UPDATE").is_some() {
            fs::write(checkout(path), &wanted).unwrap();
        }
        assert!(
            fs::read_to_string(checkout(path)).unwrap() == wanted,
            "{path} is not what kimup prints: KIMUP_UPDATE=1"
        );
    }
}

/// A process that is not told of the files would write a webhook configuration with a CA of its own over the static one.
#[test]
fn every_container_of_the_certs_variant_is_told_of_the_files() {
    let read = |path: &str| -> Value { serde_saphyr::from_str(&fs::read_to_string(checkout(path)).unwrap()).unwrap() };
    let (deployment, patch) = (read("deploy/deployment.yaml"), read("certs/deployment-patch.yaml"));
    let count = |list: &str| deployment["spec"]["template"]["spec"][list].as_array().unwrap().len();
    for flag in ["--tls-cert-file=", "--tls-key-file="] {
        let adds =
            patch.as_array().unwrap().iter().filter(|op| op["value"].as_str().is_some_and(|v| v.starts_with(flag)));
        let paths: BTreeSet<_> = adds.map(|op| op["path"].as_str().unwrap().to_owned()).collect();
        let wanted = ["containers", "initContainers"]
            .into_iter()
            .flat_map(|list| (0..count(list)).map(move |i| format!("/spec/template/spec/{list}/{i}/args/-")));
        assert_eq!(paths, wanted.collect(), "{flag}");
    }
}

/// A rule that is added before the one that the certs variant takes away moves it.
#[test]
fn the_certs_variant_takes_the_right_to_the_webhook_configuration_away() {
    let rbac = fs::read_to_string(checkout("deploy/rbac.yaml")).unwrap();
    let role = rbac
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str::<Value>(document).unwrap())
        .find(|object| object["kind"] == "ClusterRole" && object["metadata"]["name"] == "kimup")
        .unwrap();
    let patch: Value =
        serde_saphyr::from_str(&fs::read_to_string(checkout("certs/clusterrole-patch.yaml")).unwrap()).unwrap();
    let removes: Vec<&str> = patch
        .as_array()
        .unwrap()
        .iter()
        .filter(|op| op["op"] == "remove")
        .map(|op| op["path"].as_str().unwrap())
        .collect();
    assert_eq!(removes.len(), 1);
    assert_eq!(role.pointer(removes[0]).unwrap()["resources"], json!(["mutatingwebhookconfigurations"]));
    for test in patch.as_array().unwrap().iter().filter(|op| op["op"] == "test") {
        assert_eq!(role.pointer(test["path"].as_str().unwrap()), Some(&test["value"]));
    }
}

#[test]
fn examples_are_images_that_can_be_used() {
    let now = "2026-01-01T00:00:00Z".parse().unwrap();
    for name in ["basic", "private-registry", "self-signed"] {
        let text = fs::read_to_string(checkout(&format!("examples/{name}.yaml"))).unwrap();
        let image: Image = serde_saphyr::from_str(&text).unwrap();
        let compiled = kimup::api::compile(&image.spec, now).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(json!(compiled.unsupported), json!([]), "{name}");
    }
}

#[test]
fn the_annotated_example_is_followed() {
    use kimup::api::annotated::{Containers, Levels, read};
    let text = fs::read_to_string(checkout("examples/annotation.yaml")).unwrap();
    let object: k8s_openapi::api::apps::v1::Deployment = serde_saphyr::from_str(&text).unwrap();
    let template = object.spec.template.metadata.unwrap().annotations.unwrap();
    let found = read(Levels(&[&template]), Containers { regular: &["app"], init: &[] });
    assert_eq!((found.problems.len(), found.containers["app"].policy.as_str()), (0, "minor"));
}

/// `path` or `path::name` in backticks: the file is there; a `.rs` file has a function of that name, another that text.
#[test]
fn what_the_practices_cite_exists() {
    let text = fs::read_to_string(checkout("docs/webhook-practices.md")).unwrap();
    let folders = ["tests/", "src/", "deploy/", "certs/", "docs/", "tools/", "examples/"];
    let mut found = 0;
    for cited in text.split('`').skip(1).step_by(2).filter(|code| folders.iter().any(|folder| code.starts_with(folder)))
    {
        let (path, name) = cited.split_once("::").unwrap_or((cited, ""));
        let file = checkout(path);
        assert!(file.exists(), "{cited}: there is no {path}");
        if name.is_empty() {
            continue;
        }
        let text = fs::read_to_string(&file).unwrap();
        let is_source = file.extension().is_some_and(|extension| extension == "rs");
        let wanted = if is_source { format!("fn {name}(") } else { name.to_owned() };
        assert!(text.contains(&wanted), "{cited}: {path} has no {wanted:?}");
        found += 1;
    }
    assert!(found > 60, "only {found} references were found");
}

#[test]
fn every_point_of_the_practices_is_there_once() {
    let text = fs::read_to_string(checkout("docs/webhook-practices.md")).unwrap();
    for (heading, points) in [("## Good practices", 33), ("## Threats", 18), ("## Mitigations", 10)] {
        let (_, rest) = text.split_once(&format!("\n{heading}\n")).unwrap();
        let rows = rest.lines().take_while(|line| !line.starts_with("## ")).filter_map(|line| line.strip_prefix("| "));
        let numbers: Vec<usize> = rows.filter_map(|row| row.split_once(' ')?.0.parse().ok()).collect();
        assert_eq!(numbers, (1..=points).collect::<Vec<_>>(), "{heading}");
    }
}
