//! Tools and controllers that write the same workloads: nobody takes anything from the other for long.

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kimup::api::HeldBy;
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{DeleteParams, EvictParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::holds::{
    ACTION, FLUX, STAMP, annotate, apply, apps, is_held, manifest, nothing_happens, object, revisions, said,
};
use crate::support::{Bed, DEADLINE, ENABLED, Shop, image_of};

/// How somebody brings a manifest to the cluster, again and again.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Tool {
    /// `kubectl apply`
    Apply,
    /// `kubectl apply --server-side`
    ServerSide,
    /// A GitOps tool's server-side apply.
    GitOps,
    /// A three-way merge between the manifest of before, that of now and what is there.
    Helm,
    /// `kubectl replace`
    Replace,
}

/// What the manifest says of the annotations of its Pod template.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Annotations {
    /// Nothing.
    Absent,
    /// `{}`
    Empty,
    /// `null`
    Null,
    /// One of its own.
    Own,
}

struct Scene {
    bed: &'static Bed,
    shop: Shop,
    image: String,
    repository: String,
}

impl Scene {
    async fn new(name: &str) -> Self {
        let bed = Bed::shared().await;
        bed.registries.open.push(name, "1.0.0").await.unwrap();
        let image = bed.registries.open.image(name);
        let shop = bed.shop(name, &[(ENABLED, "true")]).await;
        let rollout = json!({"maxConcurrent": 50, "minInterval": "0s"});
        shop.create_image("img", &json!({"spec": {"image": image, "rollout": rollout}})).await;
        shop.settles("img", "1.0.0").await;
        Self { bed, shop, image, repository: name.to_owned() }
    }

    fn text(&self, tag: &str) -> String {
        format!("{}:{tag}", self.image)
    }

    async fn settles_on(&self, tag: &str) {
        self.bed.registries.open.push(&self.repository, tag).await.unwrap();
        self.shop.sync("img").await;
        self.shop.settles("img", tag).await;
    }

    async fn runs(&self, name: &str, count: usize, tag: &str) -> Vec<Pod> {
        self.shop.pods_run(name, count, &self.text(tag)).await
    }

    async fn bring(&self, tool: Tool, manifest: &Value) {
        let namespace = self.shop.namespace.as_str();
        let kubectl = async |args: &[&str]| {
            let args = [&["-n", namespace], args, &["-f", "-"]].concat();
            // `replace` reads first, and a controller may write before it does.
            eventually(DEADLINE, "no conflict", async || {
                let output = self.bed.cluster.kubectl_with_stdin(&args, &manifest.to_string()).await.unwrap();
                assert!(output.success || output.stderr.contains("Conflict"), "{tool:?}: {}", output.stderr);
                if output.success { Ok(()) } else { Err(output.stderr) }
            })
            .await;
        };
        let name = manifest["metadata"]["name"].as_str().unwrap();
        let exists = apps(&self.shop, "Deployment").get_opt(name).await.unwrap().is_some();
        match tool {
            Tool::Apply => kubectl(&["apply"]).await,
            Tool::ServerSide => kubectl(&["apply", "--server-side"]).await,
            Tool::GitOps => apply(&self.shop, "Deployment", FLUX, manifest).await,
            // With the manifest of before the same, the merge is what the manifest says, and takes nothing away.
            Tool::Helm if exists => {
                let patch = Patch::Strategic(manifest);
                let params = PatchParams { field_manager: Some("helm".to_owned()), ..PatchParams::default() };
                apps(&self.shop, "Deployment").patch(name, &params, &patch).await.unwrap();
            }
            Tool::Replace if exists => kubectl(&["replace"]).await,
            Tool::Helm | Tool::Replace => kubectl(&["create"]).await,
        }
    }
}

#[tokio::test]
async fn the_version_stays_whatever_applies_the_same_manifest_again() {
    let scene = &Scene::new("f-tools").await;
    let mut cases = Vec::new();
    for tool in [Tool::Apply, Tool::ServerSide, Tool::GitOps, Tool::Helm, Tool::Replace] {
        for annotations in [Annotations::Absent, Annotations::Empty, Annotations::Null, Annotations::Own] {
            cases.push((tool, annotations));
        }
    }
    let manifests: Vec<(Tool, Annotations, Value)> = cases
        .into_iter()
        .map(|(tool, annotations)| {
            let name = format!("{tool:?}-{annotations:?}").to_lowercase();
            let mut object = manifest("Deployment", &name, &scene.text("1.0.0"));
            object["spec"]["replicas"] = json!(1);
            let template = &mut object["spec"]["template"]["metadata"];
            match annotations {
                Annotations::Absent => {}
                Annotations::Empty => template["annotations"] = json!({}),
                Annotations::Null => template["annotations"] = Value::Null,
                Annotations::Own => template["annotations"] = json!({"team": "shop"}),
            }
            (tool, annotations, object)
        })
        .collect();
    futures::future::join_all(manifests.iter().map(|(tool, _, object)| scene.bring(*tool, object))).await;
    for tag in ["1.1.0", "1.2.0"] {
        scene.settles_on(tag).await;
    }
    let run = async |tag: &str| {
        for (_, _, object) in &manifests {
            scene.runs(object["metadata"]["name"].as_str().unwrap(), 1, tag).await;
        }
    };
    run("1.2.0").await;
    let mut before = Vec::new();
    for (tool, annotations, object) in &manifests {
        before.push(revisions(&scene.shop, "Deployment", object["metadata"]["name"].as_str().unwrap()).await);
        does_not_drift(scene, *tool, *annotations, object).await;
    }
    for round in 0..2 {
        futures::future::join_all(manifests.iter().map(|(tool, _, object)| scene.bring(*tool, object))).await;
        for _ in 0..3 {
            scene.shop.sync("img").await;
        }
        let what = "all run it";
        scene.shop.status_is("img", what, |s| s.workloads.as_deref() == Some("20/20") && s.rollout.is_none()).await;
        run("1.2.0").await;
        for ((tool, annotations, object), before) in manifests.iter().zip(&before) {
            let name = object["metadata"]["name"].as_str().unwrap();
            let after = revisions(&scene.shop, "Deployment", name).await;
            // Only what takes the stamp away costs a rollout.
            let most = usize::from(*annotations == Annotations::Null || *tool == Tool::Replace);
            assert!(after.difference(before).count() <= most, "{name}, round {round}: {before:?} {after:?}");
        }
    }
    assert_eq!(scene.shop.status("img").await.held, [], "nobody decided anything");
}

/// What kimup writes is no difference to the manifest.
async fn does_not_drift(scene: &Scene, tool: Tool, annotations: Annotations, object: &Value) {
    if !matches!(tool, Tool::Apply | Tool::ServerSide) || annotations == Annotations::Null {
        return;
    }
    let mut diff = vec!["-n", &scene.shop.namespace, "diff", "-f", "-"];
    diff.extend((tool == Tool::ServerSide).then_some("--server-side"));
    // A controller may write between the two that it compares.
    eventually(DEADLINE, &format!("{tool:?} {annotations:?} finds no difference"), async || {
        let diff = scene.bed.cluster.kubectl_with_stdin(&diff, &object.to_string()).await.unwrap();
        if diff.success && diff.stdout.is_empty() { Ok(()) } else { Err(diff.stdout + &diff.stderr) }
    })
    .await;
}

#[tokio::test]
async fn who_takes_the_stamp_away_again_and_again_is_named_and_left_alone() {
    let scene = Scene::new("f-fight").await;
    let shop = &scene.shop;
    let meddler = PostParams { field_manager: Some("meddler".to_owned()), ..PostParams::default() };
    let whole: Deployment = serde_json::from_value(manifest("Deployment", "web", &scene.text("1.0.0"))).unwrap();
    shop.api::<Deployment>().create(&meddler, &whole).await.unwrap();
    scene.settles_on("1.1.0").await;
    scene.runs("web", 2, "1.1.0").await;
    let stamped = async || {
        object(shop, "Deployment", "web").await["spec"]["template"]["metadata"]["annotations"][STAMP].is_string()
    };
    for round in 0..3 {
        eventually(DEADLINE, &format!("it is stamped, round {round}"), stamped).await;
        // Seen at rest, so that this is no part of the rollout before.
        nothing_happens(shop, "Deployment", "web", "img").await;
        shop.api::<Deployment>().replace("web", &meddler, &whole).await.unwrap();
    }
    let held = is_held(shop, "img", "Deployment/web", HeldBy::Fight, "1.0.0").await;
    assert!(held.why.starts_with("meddler ") && held.why.contains("action=resume"), "{}", held.why);
    for (kind, name) in [("Deployment", "web"), ("Image", "img")] {
        assert_eq!(said(shop, kind, name, &["StampFight: ", "meddler took kimup's stamp away 3 times"]).await, 1);
    }
    scene.settles_on("1.2.0").await;
    shop.api::<Deployment>().replace("web", &meddler, &whole).await.unwrap();
    nothing_happens(shop, "Deployment", "web", "img").await;
    assert!(!stamped().await, "left alone");
    assert_eq!(is_held(shop, "img", "Deployment/web", HeldBy::Fight, "1.0.0").await.why, held.why);
    annotate(shop, "Deployment", "web", &json!({ACTION: "resume"})).await;
    scene.runs("web", 2, "1.2.0").await;
    said(shop, "Deployment", "web", &["Resumed: "]).await;
    shop.status_is("img", "holds nothing", |s| s.held.is_empty() && s.workloads.as_deref() == Some("1/1")).await;
}

/// A Deployment that waits for `kubectl rollout resume`.
async fn paused(scene: &Scene) {
    let shop = &scene.shop;
    let held = is_held(shop, "img", "Deployment/paused", HeldBy::Paused, "1.0.0").await;
    assert!(held.why.contains("kubectl rollout resume deployment/paused"), "{}", held.why);
    nothing_happens(shop, "Deployment", "paused", "img").await;
    let template = object(shop, "Deployment", "paused").await["spec"]["template"].clone();
    assert!(template["metadata"]["annotations"][STAMP].is_null(), "{template}");
    let resume = ["-n", &shop.namespace, "rollout", "resume", "deployment/paused"];
    scene.bed.cluster.kubectl_ok(&resume).await.unwrap();
    scene.runs("paused", 2, "1.1.0").await;
}

/// Pods are replaced as somebody deletes them.
async fn on_delete(scene: &Scene, kind: &str, name: &str) {
    let shop = &scene.shop;
    nothing_happens(shop, kind, name, "img").await;
    let pods = scene.runs(name, 2, "1.0.0").await;
    let stamp = object(shop, kind, name).await["spec"]["template"]["metadata"]["annotations"][STAMP].clone();
    assert_eq!(stamp, format!("{} {}", scene.text("1.0.0"), scene.text("1.1.0")));
    for pod in pods {
        shop.api::<Pod>().delete(&pod.name_any(), &DeleteParams::default()).await.unwrap();
    }
    scene.runs(name, 2, "1.1.0").await;
}

/// Below the partition Pods keep their revision, also when they are made anew.
async fn partitioned(scene: &Scene) {
    let shop = &scene.shop;
    let run = async |wanted: [&str; 2]| {
        let what = format!("the Pods of the partitioned StatefulSet run {wanted:?}");
        eventually(DEADLINE, &what, async || {
            let pods = shop.pods().await;
            let runs =
                ["part-0", "part-1"].map(|name| pods.iter().find(|p| p.name_any() == name).map(|p| image_of(p, "app")));
            if runs == wanted.map(|tag| Some(scene.text(tag))) { Ok(()) } else { Err(format!("{runs:?}")) }
        })
        .await;
    };
    run(["1.0.0", "1.1.0"]).await;
    shop.api::<Pod>().delete("part-0", &DeleteParams::default()).await.unwrap();
    eventually(DEADLINE, "part-0 is made anew", async || {
        let pods = shop.pods().await;
        pods.iter().any(|p| p.name_any() == "part-0" && crate::support::is_ready(p))
    })
    .await;
    run(["1.0.0", "1.1.0"]).await;
    nothing_happens(shop, "StatefulSet", "part", "img").await;
    let all = json!({"spec": {"updateStrategy": {"rollingUpdate": {"partition": 0}}}});
    shop.api::<StatefulSet>().patch("part", &PatchParams::default(), &Patch::Merge(all)).await.unwrap();
    run(["1.1.0", "1.1.0"]).await;
}

/// Stamped without Pods; those of later have the tag.
async fn at_zero(scene: &Scene) {
    assert_eq!(scale(&scene.shop, "zero").await, 0);
    scale_to(&scene.shop, "zero", 2).await;
    scene.runs("zero", 2, "1.1.0").await;
}

/// Replicas are the autoscaler's; Pods that may not be evicted are replaced by a rollout all the same, and one that is
/// evicted comes back as it was.
async fn scaled(scene: &Scene) {
    let shop = &scene.shop;
    scene.runs("scaled", 3, "1.1.0").await;
    assert_eq!(scale(shop, "scaled").await, 3, "as the autoscaler left it");
    let fields = object(shop, "Deployment", "scaled").await["metadata"]["managedFields"].clone();
    let owners: Vec<&str> = fields
        .as_array()
        .unwrap()
        .iter()
        .filter(|e| e["fieldsV1"]["f:spec"]["f:replicas"].is_object())
        .filter_map(|e| e["manager"].as_str())
        .collect();
    assert_eq!(owners, ["autoscaler"]);
    scale_to(shop, "scaled", 4).await;
    let pods = scene.runs("scaled", 4, "1.1.0").await;
    nothing_happens(shop, "Deployment", "scaled", "img").await;
    let evict = async || shop.api::<Pod>().evict(&pods[0].name_any(), &EvictParams::default()).await;
    assert!(evict().await.is_err(), "the budget allows none");
    let budget = shop.api::<PodDisruptionBudget>();
    let one = Patch::Merge(json!({"spec": {"maxUnavailable": 1}}));
    budget.patch("scaled", &PatchParams::default(), &one).await.unwrap();
    eventually(DEADLINE, "the budget allows one", async || evict().await.map(|_| ()).map_err(|e| e.to_string())).await;
    scene.runs("scaled", 4, "1.1.0").await;
}

async fn scale(shop: &Shop, name: &str) -> i32 {
    let scale: Scale =
        shop.api::<Deployment>().get_scale(name).await.map(|s| serde_json::from_value(json!(s)).unwrap()).unwrap();
    scale.spec.and_then(|spec| spec.replicas).unwrap_or_default()
}

/// As a `HorizontalPodAutoscaler` does.
async fn scale_to(shop: &Shop, name: &str, replicas: i32) {
    let params = PatchParams { field_manager: Some("autoscaler".to_owned()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    shop.api::<Deployment>().patch_scale(name, &params, &patch).await.unwrap();
}

/// One that has ended, whose Pod has ended with it.
async fn create_finished_job(scene: &Scene) -> Job {
    let template = json!({
        "metadata": {"annotations": {ENABLED: "true"}, "labels": {"app": "job"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "app", "image": scene.text("1.0.0")}]},
    });
    let job = json!({"metadata": {"name": "job"}, "spec": {"template": template}});
    let api = scene.shop.api::<Job>();
    api.create(&PostParams::default(), &serde_json::from_value(job).unwrap()).await.unwrap();
    let pods = scene.shop.api::<Pod>();
    eventually(DEADLINE, "the Job is done", async || {
        for pod in pods.list(&ListParams::default().labels("app=job")).await.unwrap() {
            let ended = Patch::Merge(json!({"status": {"phase": "Succeeded"}}));
            let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &ended).await;
        }
        let job = api.get("job").await.unwrap();
        let conditions = job.status.as_ref().and_then(|s| s.conditions.clone()).unwrap_or_default();
        if conditions.iter().any(|c| c.type_ == "Complete" && c.status == "True") { Ok(job) } else { Err("not yet") }
    })
    .await
}

async fn create(scene: &Scene, kind: &str, name: &str, patch: &Value) {
    let mut object = manifest(kind, name, &scene.text("1.0.0"));
    json_patch::merge(&mut object, patch);
    let object = serde_json::from_value(object).unwrap();
    apps(&scene.shop, kind).create(&PostParams::default(), &object).await.unwrap();
}

#[tokio::test]
async fn every_kind_and_state_behaves_as_documented() {
    let scene = Scene::new("f-kinds").await;
    let on_delete_strategy = json!({"spec": {"updateStrategy": {"type": "OnDelete"}}});
    create(&scene, "Deployment", "paused", &json!({})).await;
    create(&scene, "StatefulSet", "parted", &on_delete_strategy).await;
    create(&scene, "DaemonSet", "daemons", &on_delete_strategy).await;
    let partition = json!({"spec": {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}}});
    create(&scene, "StatefulSet", "part", &partition).await;
    create(&scene, "Deployment", "zero", &json!({})).await;
    create(&scene, "Deployment", "scaled", &json!({})).await;
    for name in ["paused", "parted", "daemons", "part", "zero", "scaled"] {
        scene.runs(name, 2, "1.0.0").await;
    }
    let pause = ["-n", &scene.shop.namespace, "rollout", "pause", "deployment/paused"];
    scene.bed.cluster.kubectl_ok(&pause).await.unwrap();
    scale_to(&scene.shop, "zero", 0).await;
    scale_to(&scene.shop, "scaled", 3).await;
    scene.runs("scaled", 3, "1.0.0").await;
    let budget = json!({"metadata": {"name": "scaled"}, "spec": {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "scaled"}}}});
    let budgets = scene.shop.api::<PodDisruptionBudget>();
    budgets.create(&PostParams::default(), &serde_json::from_value(budget).unwrap()).await.unwrap();
    let job = create_finished_job(&scene).await;

    scene.settles_on("1.1.0").await;
    let on_delete = async |kind: &str, name: &str| on_delete(&scene, kind, name).await;
    scaled(&scene).await;
    at_zero(&scene).await;
    partitioned(&scene).await;
    on_delete("StatefulSet", "parted").await;
    on_delete("DaemonSet", "daemons").await;
    paused(&scene).await;
    let after = scene.shop.api::<Job>().get("job").await.unwrap();
    assert_eq!(after.spec, job.spec);
    assert_eq!(after.metadata.annotations, job.metadata.annotations);
    scene.shop.status_is("img", "all run it", |s| s.workloads.as_deref() == Some("6/6") && s.held.is_empty()).await;
}
