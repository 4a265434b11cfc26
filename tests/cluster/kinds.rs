//! Annotation mode by kind of object: workloads are rolled, Pods of Jobs get their tag at creation.

use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use kimup::api::Image;
use kimup::api::annotated::image_name;
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::GroupVersionKind;
use serde_json::{Value, json};

use crate::support::{Bed, DEADLINE, Shop, image_of, pod, with_annotations};

const POLICY: &str = "kimup.cloudavenue.io/policy";
const INTERVAL: &str = "kimup.cloudavenue.io/interval";
const PATTERN: &str = "kimup.cloudavenue.io/pattern";
const APPLIED: &str = "kimup.cloudavenue.io/applied";
const STAMP: &str = "stamp.kimup.cloudavenue.io/app";

fn apps(shop: &Shop, kind: &str) -> Api<DynamicObject> {
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", kind));
    Api::namespaced_with(shop.client.clone(), &shop.namespace, &resource)
}

async fn annotate(shop: &Shop, kind: &str, annotations: &Value) {
    let patch = json!({"metadata": {"annotations": annotations}});
    apps(shop, kind).patch("web", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

/// A workload `web` of two Pods (a DaemonSet has one on each of the two Nodes) with annotations on its metadata only.
async fn create(shop: &Shop, kind: &str, text: &str, annotations: &Value) -> DynamicObject {
    let mut workload = json!({
        "apiVersion": "apps/v1", "kind": kind,
        "metadata": {"name": "web", "labels": {"app": "web", "team": "shop"}, "annotations": annotations},
        "spec": {
            "selector": {"matchLabels": {"app": "web"}},
            "template": {
                "metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "app", "image": text}], "terminationGracePeriodSeconds": 0},
            },
        },
    });
    if kind != "DaemonSet" {
        workload["spec"]["replicas"] = json!(2);
    }
    if kind == "StatefulSet" {
        workload["spec"]["serviceName"] = json!("web");
    }
    let workload = serde_json::from_value(workload).unwrap();
    apps(shop, kind).create(&PostParams::default(), &workload).await.unwrap()
}

/// The revisions that a workload has had, as text.
async fn revisions(shop: &Shop, kind: &str) -> Vec<String> {
    let of = if kind == "Deployment" { "ReplicaSet" } else { "ControllerRevision" };
    let list = apps(shop, of).list(&ListParams::default().labels("app=web")).await.unwrap().items;
    list.iter().map(|revision| serde_json::to_string(&revision.data).unwrap()).collect()
}

/// Waits until an Image that kimup made is as wanted.
async fn made_is(shop: &Shop, name: &str, what: &str, wanted: impl Fn(&Image) -> bool) -> Image {
    eventually(DEADLINE, &format!("Image {}/{name} {what}", shop.namespace), async || {
        match shop.api::<Image>().get_opt(name).await.unwrap() {
            Some(made) if wanted(&made) => Ok(made),
            other => Err(serde_json::to_string(&other.map(|made| made.spec)).unwrap()),
        }
    })
    .await
}

async fn settles(shop: &Shop, name: &str, tag: &str) -> Image {
    made_is(shop, name, &format!("settles on {tag}"), |made| {
        made.status.as_ref().is_some_and(|s| s.tag.as_deref() == Some(tag) && s.rollout.is_none())
    })
    .await
}

async fn images_are(shop: &Shop, wanted: &[&str]) {
    let mut wanted = wanted.to_vec();
    wanted.sort_unstable();
    eventually(DEADLINE, &format!("the Images of {} are {wanted:?}", shop.namespace), async || {
        let list = shop.api::<Image>().list(&ListParams::default()).await.unwrap();
        let names: Vec<String> = list.iter().map(ResourceExt::name_any).collect();
        if names == wanted { Ok(()) } else { Err(format!("{names:?}")) }
    })
    .await;
}

#[track_caller]
fn is_made_for(made: &Image, owner: &(&str, &str, &str, Option<String>)) {
    let found = made.owner_references();
    assert_eq!(found.len(), 1, "{found:?}");
    let found = &found[0];
    assert_eq!((&*found.api_version, &*found.kind, &*found.name, Some(found.uid.clone())), *owner);
    assert_eq!((found.controller, found.block_owner_deletion.unwrap_or_default()), (Some(true), false));
    has_only_our_label(made);
}

#[track_caller]
fn has_only_our_label(made: &Image) {
    let labels: Vec<_> = made.labels().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(labels, [("app.kubernetes.io/managed-by", "kimup")]);
}

#[tokio::test]
async fn annotations_on_a_workload_are_followed() {
    let bed = Bed::shared().await;
    tokio::join!(
        annotations_are_followed(bed, "Deployment"),
        annotations_are_followed(bed, "StatefulSet"),
        annotations_are_followed(bed, "DaemonSet"),
    );
}

async fn annotations_are_followed(bed: &Bed, kind: &str) {
    let registry = &bed.registries.open;
    let repository = format!("kinds-{}", kind.to_lowercase());
    registry.push_all(&repository, &["1.0.0", "1.1.0", "2.0.0"]).await.unwrap();
    let shop = bed.shop(&repository, &[]).await;
    let image = registry.image(&repository);
    let name = image_name(kind, "web", "app");
    let owner = create(&shop, kind, &format!("{image}:1.0.0"), &json!({POLICY: "minor", INTERVAL: "1h"})).await;

    // The first Pods start with their own tag and are rolled.
    let pods = shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    for pod in &pods {
        let applied = &pod.annotations()[APPLIED];
        assert!(applied.starts_with(&format!("app: 1.0.0 -> 1.1.0 (Image {name}, rollout ")), "{applied}");
    }
    let seen = revisions(&shop, kind).await;
    assert_eq!(seen.len(), 2, "{kind}: {seen:?}");
    assert_eq!(seen.iter().filter(|revision| revision.contains(STAMP)).count(), 1, "{kind}: {seen:?}");
    is_made_for(&settles(&shop, &name, "1.1.0").await, &("apps/v1", kind, "web", owner.uid()));

    // What a person adds to the Image counts, and stays whatever the annotations say later.
    let ours = json!({"spec": {"rollout": {"maxConcurrent": 3}, "filter": {"exclude": ["^2\\.1"]}}});
    shop.api::<Image>().patch(&name, &PatchParams::default(), &Patch::Merge(ours)).await.unwrap();
    let keeps = |made: &Image, pattern: Option<&str>| {
        let filter = made.spec.filter.clone().unwrap_or_default();
        assert_eq!((filter.pattern.as_deref(), filter.exclude), (pattern, vec!["^2\\.1".to_owned()]), "{kind}");
        assert_eq!(made.spec.rollout.as_ref().and_then(|r| r.max_concurrent), Some(3), "{kind}");
    };
    registry.push(&repository, "2.1.0").await.unwrap();
    annotate(&shop, kind, &json!({POLICY: "major"})).await;
    shop.pods_run("web", 2, &format!("{image}:2.0.0")).await;
    keeps(&settles(&shop, &name, "2.0.0").await, None);
    annotate(&shop, kind, &json!({PATTERN: "^[0-9]", INTERVAL: "30m"})).await;
    let made = made_is(&shop, &name, "has the interval 30m", |made| made.spec.triggers[0].value == "30m").await;
    keeps(&made, Some("^[0-9]"));
    annotate(&shop, kind, &json!({PATTERN: null})).await;
    let no_pattern = |made: &Image| made.spec.filter.as_ref().is_none_or(|filter| filter.pattern.is_none());
    keeps(&made_is(&shop, &name, "has no pattern", no_pattern).await, None);
    for _ in 0..3 {
        shop.sync(&name).await;
    }
    shop.pods_run("web", 2, &format!("{image}:2.0.0")).await;
    assert_eq!(revisions(&shop, kind).await.len(), 3, "{kind}");
    // Left out by the person, not by chance.
    let filter = json!({"spec": {"filter": {"exclude": null}}});
    shop.api::<Image>().patch(&name, &PatchParams::default(), &Patch::Merge(filter)).await.unwrap();
    shop.pods_run("web", 2, &format!("{image}:2.1.0")).await;

    apps(&shop, kind).delete("web", &DeleteParams::background()).await.unwrap();
    images_are(&shop, &[]).await;
}

/// A Pod template whose Pods never get past Pending, so that a Job of it goes on.
fn template(text: &str, annotations: &Value) -> Value {
    let mut metadata = json!({"annotations": {"testbed.kimup/ready-after": "1h"}});
    json_patch::merge(&mut metadata["annotations"], annotations);
    let container = json!({"name": "app", "image": text});
    json!({"metadata": metadata, "spec": {"restartPolicy": "Never", "terminationGracePeriodSeconds": 0, "containers": [container]}})
}

async fn job_pods(shop: &Shop, job: &str) -> Vec<Pod> {
    let of = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
    shop.api::<Pod>().list(&of).await.unwrap().items
}

/// Waits until a Job has had `count` Pods, and all of them run exactly this image.
async fn job_runs(shop: &Shop, job: &str, count: usize, reference: &str) -> Vec<Pod> {
    let pods = eventually(DEADLINE, &format!("Job {}/{job} has had {count} Pods", shop.namespace), async || {
        let pods = job_pods(shop, job).await;
        if pods.len() == count { Ok(pods) } else { Err(format!("{}", pods.len())) }
    })
    .await;
    let run: Vec<String> = pods.iter().map(|pod| image_of(pod, "app")).collect();
    assert!(run.iter().all(|run| run == reference), "{job}: {run:?}");
    pods
}

async fn is_on_record(shop: &Shop, image: &str, job: &str) {
    let uid = shop.api::<Job>().get(job).await.unwrap().uid().unwrap();
    let what = format!("has Job {job} on record");
    shop.status_is(image, &what, |status| status.revisions.iter().any(|record| record.uid == uid)).await;
}

async fn one_more_at_a_time(shop: &Shop, job: &str) {
    let patch = json!({"spec": {"parallelism": 2}});
    shop.api::<Job>().patch(job, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

async fn fail(shop: &Shop, pod: &Pod) {
    let patch = json!({"status": {"phase": "Failed"}});
    shop.api::<Pod>().patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

/// Makes the schedule of a `CronJob` due: its last run was years ago. Returns the name of the Job that its controller makes.
async fn becomes_due(shop: &Shop, name: &str) -> String {
    let api = shop.api::<CronJob>();
    let last = json!({"status": {"lastScheduleTime": "2020-01-01T00:00:00Z"}});
    api.patch_status(name, &PatchParams::default(), &Patch::Merge(last)).await.unwrap();
    let resume = json!({"spec": {"suspend": false}});
    api.patch(name, &PatchParams::default(), &Patch::Merge(resume)).await.unwrap();
    eventually(DEADLINE, "its controller makes a Job", async || {
        let jobs = shop.api::<Job>().list(&ListParams::default()).await.unwrap();
        jobs.iter().map(ResourceExt::name_any).find(|job| job.starts_with(&format!("{name}-"))).ok_or("none")
    })
    .await
}

#[tokio::test]
async fn the_pods_of_one_job_of_a_cron_job_share_one_tag() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("kinds-cron", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("kinds-cron", &[]).await;
    let image = registry.image("kinds-cron");
    let template = template(&format!("{image}:1.0.0"), &json!({POLICY: "semver", INTERVAL: "1h"}));
    let cron_job: CronJob = serde_json::from_value(json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "backup", "labels": {"team": "shop"}},
        "spec": {"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": {
            "metadata": {"labels": {"team": "shop"}},
            "spec": {"parallelism": 1, "completions": 4, "template": template}}},
    }))
    .unwrap();
    let owner = shop.api::<CronJob>().create(&PostParams::default(), &cron_job).await.unwrap();
    let by_hand = async |job: &str| {
        let kubectl = ["-n", &shop.namespace, "create", "job", job, "--from=cronjob/backup"];
        bed.cluster.kubectl_ok(&kubectl).await.unwrap();
    };
    // At once: the Image may not be there yet.
    by_hand("by-hand").await;
    let (old, newest) = (format!("{image}:1.1.0"), format!("{image}:1.2.0"));
    let first = job_runs(&shop, "by-hand", 1, &old).await;
    let scheduled = becomes_due(&shop, "backup").await;
    job_runs(&shop, &scheduled, 1, &old).await;
    let name = image_name("CronJob", "backup", "app");
    is_made_for(&settles(&shop, &name, "1.1.0").await, &("batch/v1", "CronJob", "backup", owner.uid()));
    is_on_record(&shop, &name, "by-hand").await;
    is_on_record(&shop, &name, &scheduled).await;

    registry.push("kinds-cron", "1.2.0").await.unwrap();
    shop.sync(&name).await;
    settles(&shop, &name, "1.2.0").await;
    one_more_at_a_time(&shop, "by-hand").await;
    one_more_at_a_time(&shop, &scheduled).await;
    fail(&shop, &first[0]).await;
    by_hand("later").await;
    let scheduled = job_runs(&shop, &scheduled, 2, &old).await;
    assert_eq!(scheduled[0].annotations()[APPLIED], format!("app: 1.0.0 -> 1.1.0 (Image {name})"));
    job_runs(&shop, "later", 1, &newest).await;
    // The one that failed, the one beside it, and the retry.
    job_runs(&shop, "by-hand", 3, &old).await;
    images_are(&shop, &[&name]).await;
}

#[tokio::test]
async fn a_job_without_a_cron_job_has_its_own_image() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("kinds-job", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("kinds-job", &[]).await;
    let image = registry.image("kinds-job");
    let create = async |name: &str| {
        let template = template(&format!("{image}:1.0.0"), &json!({POLICY: "semver", INTERVAL: "1h"}));
        let job = json!({"metadata": {"name": name, "labels": {"team": "shop"}},
            "spec": {"parallelism": 1, "completions": 4, "template": template}});
        shop.api::<Job>().create(&PostParams::default(), &serde_json::from_value(job).unwrap()).await.unwrap()
    };
    let owner = create("migrate").await;
    let (old, newest) = (format!("{image}:1.1.0"), format!("{image}:1.2.0"));
    let first = job_runs(&shop, "migrate", 1, &old).await;
    let (name, other) = (image_name("Job", "migrate", "app"), image_name("Job", "index", "app"));
    is_made_for(&settles(&shop, &name, "1.1.0").await, &("batch/v1", "Job", "migrate", owner.uid()));
    is_on_record(&shop, &name, "migrate").await;

    registry.push("kinds-job", "1.2.0").await.unwrap();
    shop.sync(&name).await;
    settles(&shop, &name, "1.2.0").await;
    one_more_at_a_time(&shop, "migrate").await;
    fail(&shop, &first[0]).await;
    create("index").await;
    job_runs(&shop, "index", 1, &newest).await;
    settles(&shop, &other, "1.2.0").await;
    job_runs(&shop, "migrate", 3, &old).await;
    images_are(&shop, &[&name, &other]).await;
    shop.api::<Job>().delete("migrate", &DeleteParams::background()).await.unwrap();
    images_are(&shop, &[&other]).await;
}

#[tokio::test]
async fn bare_pods_with_other_settings_have_another_image() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("kinds-bare", &["1.0.0", "1.0.1", "1.1.0"]).await.unwrap();
    let shop = bed.shop("kinds-bare", &[]).await;
    let image = registry.image("kinds-bare");
    // The Image that admission names.
    let create = async |name: &str, policy: &str, tag: &str| {
        let bare = with_annotations(pod(name, &format!("{image}:1.0.0")), &[(POLICY, policy), (INTERVAL, "1h")]);
        let created = shop.create_asked(&bare).await;
        assert_eq!(image_of(&created, "app"), format!("{image}:{tag}"), "{:?}", created.metadata.annotations);
        let applied = &created.annotations()[APPLIED];
        let named = applied.strip_prefix(&format!("app: 1.0.0 -> {tag} (Image ")).and_then(|s| s.strip_suffix(')'));
        named.unwrap_or_else(|| panic!("{applied}")).to_owned()
    };
    let patch = create("one", "patch", "1.0.1").await;
    assert_eq!(create("two", "patch", "1.0.1").await, patch);
    let minor = create("three", "minor", "1.1.0").await;
    images_are(&shop, &[&patch, &minor]).await;
    for (name, tag) in [(&patch, "1.0.1"), (&minor, "1.1.0")] {
        let made = settles(&shop, name, tag).await;
        assert_eq!(made.owner_references(), []);
        has_only_our_label(&made);
    }
    // A Pod that has ended uses nothing.
    let ended = json!({"status": {"phase": "Succeeded"}});
    shop.api::<Pod>().patch_status("three", &PatchParams::default(), &Patch::Merge(ended)).await.unwrap();
    images_are(&shop, &[&patch]).await;
}
