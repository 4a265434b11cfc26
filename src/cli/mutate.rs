//! `kimup mutate`: what admission would make of a Pod, through the same code as the server. Pure but for reading its
//! input: no network, no runtime, no log.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail, ensure};
use clap::{Args, ValueEnum};
use jiff::Timestamp;
use json_patch::Patch;
use serde_json::{Value, json};

use crate::admission::Verdict;
use crate::admission::review::{Review, Step};
use crate::api::Image;
use crate::api::annotations::Map;
use crate::index::{Entry, Seen, Snapshot};

use super::{Failure, input};

/// Largest Pod in bytes: more than the API server takes.
const MAX_POD: usize = 4 * 1024 * 1024;
/// Largest file of Images in bytes: those of a cluster with tens of thousands.
const MAX_IMAGES: usize = 64 * 1024 * 1024;
/// Where a Pod without a namespace is created, unless the user says otherwise.
const DEFAULT_NAMESPACE: &str = "default";

/// Flags of `mutate`.
#[derive(Args, Debug)]
pub struct MutateArgs {
    /// Manifest of one Pod; - is standard input. Without a namespace it is in `default`.
    #[arg(short, long, env = "KIMUP_FILENAME", value_name = "FILE")]
    pub filename: PathBuf,
    /// Manifest of the Images with their status, and of Namespaces; - is standard input. Images without a namespace are
    /// in the Pod's. A Namespace that is not there counts as one without labels and annotations: not opted in.
    #[arg(long, env = "KIMUP_IMAGES", value_name = "FILE")]
    pub images: PathBuf,
    /// Format of the result on stdout: the Pod, or the JSON patch (RFC 6902) [default: yaml].
    #[arg(short, long, env = "KIMUP_OUTPUT", value_name = "FORMAT")]
    pub output: Option<Format>,
}

/// How the result is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The Pod as YAML.
    #[default]
    Yaml,
    /// The Pod as JSON.
    Json,
    /// What changes, as a JSON patch.
    Patch,
}

/// What the cluster holds, for a preview.
struct Cluster {
    snapshot: Snapshot,
    knows_namespace: bool,
}

/// The Pod or the patch, ready to be printed. Warnings go to stderr, as `kubectl` prints them.
pub fn run(args: &MutateArgs) -> Result<Vec<u8>, Failure> {
    if input::is_stdin(&args.filename) && input::is_stdin(&args.images) {
        return Err(Failure::usage(anyhow!("--filename and --images cannot both be standard input")));
    }
    let pod = manifest(&args.filename, MAX_POD, "--filename", pod)?;
    let namespace = pod["metadata"]["namespace"].as_str().unwrap_or(DEFAULT_NAMESPACE);
    let cluster = manifest(&args.images, MAX_IMAGES, "--images", |text| cluster(text, namespace))?;
    let verdict = decide(&pod, namespace, &cluster.snapshot)
        .map_err(|error| Failure::Usage(error.context(args.filename.display().to_string())))?;
    if let Some(refusal) = verdict.refusal() {
        return Err(Failure::Work(anyhow!("{}", refusal.trim_start_matches("kimup: "))));
    }
    let patch = verdict.patch()?;
    let mut warnings = verdict.warnings();
    if patch.is_empty() && !cluster.knows_namespace {
        warnings.push(format!(
            "kimup: Namespace {namespace} is not in {}: it counts as not opted in",
            args.images.display()
        ));
    }
    let rendered = render(pod, &patch, args.output.unwrap_or_default())?;
    for warning in warnings {
        // Not `eprintln!`: it panics when stderr is closed.
        let _ = writeln!(io::stderr(), "Warning: {warning}");
    }
    Ok(rendered)
}

/// Reads a file and what it says. A file that cannot be read is a failure, one that says something wrong bad usage.
fn manifest<T>(
    path: &Path,
    max: usize,
    flag: &'static str,
    read: impl FnOnce(&str) -> anyhow::Result<T>,
) -> Result<T, Failure> {
    let bytes = input::read(path, max).context(flag)?;
    let text = std::str::from_utf8(&bytes).context("it is not UTF-8");
    text.and_then(read).map_err(|error| Failure::Usage(error.context(path.display().to_string())))
}

/// The only object of a manifest, a Pod.
fn pod(text: &str) -> anyhow::Result<Value> {
    let mut objects = input::objects(text)?;
    ensure!(objects.len() == 1, "it holds {} objects, not one Pod", objects.len());
    let pod = objects.remove(0);
    let kind = pod["kind"].as_str().unwrap_or_default();
    if kind != "Pod" || pod["apiVersion"] != "v1" {
        let version = pod["apiVersion"].as_str().unwrap_or_default();
        bail!("it holds {kind:?} of {version:?}, not a Pod of \"v1\"; write the Pod that its template makes");
    }
    Ok(pod)
}

/// Images and Namespaces; other objects are skipped.
fn cluster(text: &str, namespace: &str) -> anyhow::Result<Cluster> {
    let mut snapshot = Snapshot::default();
    for object in input::objects(text)? {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if input::is_image(&object) {
            let entry = image(&object).with_context(|| format!("Image {name:?}"))?;
            let of = object["metadata"]["namespace"].as_str().unwrap_or(namespace);
            snapshot.put_image(of, &name, Seen::Read(entry.into()));
        } else if object["kind"] == "Namespace" && object["apiVersion"] == "v1" {
            let map = |field: &str| {
                strings(&object["metadata"][field]).with_context(|| format!("Namespace {name:?}: {field}"))
            };
            snapshot.put_namespace(&name, &map("labels")?, &map("annotations")?);
        }
    }
    let knows_namespace = snapshot.namespace(namespace).is_some_and(|known| known.settings().is_some());
    if !knows_namespace {
        snapshot.put_namespace(namespace, &Map::new(), &Map::new());
    }
    Ok(Cluster { snapshot, knows_namespace })
}

fn image(object: &Value) -> anyhow::Result<Entry> {
    let image: Image =
        serde_path_to_error::deserialize(object).map_err(|error| anyhow!("{}: {}", error.path(), error.inner()))?;
    ensure!(image.metadata.name.is_some(), "metadata.name is missing");
    Ok(Entry::read(&image, Timestamp::now()))
}

fn strings(value: &Value) -> serde_json::Result<Map> {
    Ok(serde_json::from_value::<Option<Map>>(value.clone())?.unwrap_or_default())
}

fn decide(pod: &Value, namespace: &str, snapshot: &Snapshot) -> anyhow::Result<Verdict> {
    let body = json!({
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
        "request": {
            "uid": "", "namespace": namespace, "operation": "CREATE", "object": pod,
            "resource": {"group": "", "version": "v1", "resource": "pods"},
        },
    });
    let body = serde_json::to_vec(&body)?;
    let review = Review::parse(&body)?;
    Ok(match review.decide(snapshot)? {
        Step::Done(verdict) => verdict,
        Step::Ask(plan) => {
            let unknown = || Err("a preview asks no registry; only a status.tag tells".to_owned());
            let answers: HashMap<_, _> = plan.questions().into_iter().map(|question| (question, unknown())).collect();
            plan.finish(&answers)
        }
    })
}

fn render(mut pod: Value, patch: &Patch, format: Format) -> anyhow::Result<Vec<u8>> {
    json_patch::patch(&mut pod, patch).context("the patch does not fit the Pod")?;
    let text = match format {
        Format::Yaml => return Ok(serde_saphyr::to_string(&pod)?.into_bytes()),
        Format::Json => serde_json::to_string_pretty(&pod)?,
        Format::Patch => serde_json::to_string(patch)?,
    };
    Ok(format!("{text}\n").into_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_pod_is_taken() {
        #[track_caller]
        fn check(text: &str, expected: Result<&str, &str>) {
            let found = pod(text).map(|pod| pod["metadata"]["name"].as_str().unwrap_or("-").to_owned());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{text}"),
                (Err(error), Err(part)) => assert!(format!("{error:#}").contains(part), "{text}: {error:#}"),
                (found, _) => panic!("{text}: {found:?}"),
            }
        }
        let one = "{apiVersion: v1, kind: Pod, metadata: {name: a}}";
        check(one, Ok("a"));
        check("{apiVersion: v1, kind: Pod}", Ok("-"));
        check(&format!("---\n{one}\n---\n"), Ok("a"));
        check(&format!("{{apiVersion: v1, kind: List, items: [{one}]}}"), Ok("a"));
        check(&format!("{one}\n---\n{one}"), Err("2 objects"));
        check("", Err("0 objects"));
        check("7", Err("0 objects"));
        check("{apiVersion: apps/v1, kind: Deployment}", Err("\"Deployment\" of \"apps/v1\", not a Pod"));
        check("{apiVersion: v2, kind: Pod}", Err("\"Pod\" of \"v2\", not a Pod of \"v1\""));
        check("{", Err("line 1"));
    }
}
