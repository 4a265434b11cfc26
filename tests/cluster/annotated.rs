//! Annotation mode: policies as annotations, and the Images that kimup makes for them.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::{Pod, Secret, ServiceAccount};
use kimup::api::Image;
use kimup::api::annotated::image_name;
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::support::{Bed, DEADLINE, Shop, USER, image_of, pod, with_annotations};

pub const POLICY: &str = "kimup.cloudavenue.io/policy";
pub const INTERVAL: &str = "kimup.cloudavenue.io/interval";

/// Annotations on the Pod template, for `deployment`'s patch.
pub fn on_template(annotations: &Value) -> Value {
    json!({"spec": {"template": {"metadata": {"annotations": annotations}}}})
}

pub async fn images(shop: &Shop) -> Vec<String> {
    shop.api::<Image>().list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect()
}

/// Waits until an Image is made and has settled on a tag.
pub async fn settles(shop: &Shop, name: &str, tag: &str) {
    eventually(DEADLINE, &format!("Image {}/{name} is made", shop.namespace), async || {
        shop.api::<Image>().get_opt(name).await.unwrap().is_some_and(|made| made.metadata.deletion_timestamp.is_none())
    })
    .await;
    shop.settles(name, tag).await;
}

pub async fn patch_deployment(shop: &Shop, name: &str, patch: &Value) {
    shop.api::<Deployment>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
}

#[tokio::test]
async fn a_policy_on_the_template_counts_from_the_first_pod_on() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("a-template", &["1.0.0", "1.1.0", "2.0.0"]).await.unwrap();
    let shop = bed.shop("a-template", &[]).await;
    let image = registry.image("a-template");
    let annotations = json!({POLICY: "semver:^1", INTERVAL: "1h"});
    shop.create_deployment("web", &format!("{image}:1.0.0"), &on_template(&annotations)).await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    assert_eq!(shop.revisions("web").await, 1);
    let name = image_name("Deployment", "web", "app");
    settles(&shop, &name, "1.1.0").await;
    let made = shop.api::<Image>().get(&name).await.unwrap();
    let web = shop.api::<Deployment>().get("web").await.unwrap();
    let owner = &made.owner_references()[0];
    assert_eq!(
        (owner.kind.as_str(), Some(&owner.uid), owner.controller),
        ("Deployment", web.uid().as_ref(), Some(true))
    );
    assert_eq!(
        made.labels().iter().collect::<Vec<_>>(),
        [(&"app.kubernetes.io/managed-by".to_owned(), &"kimup".to_owned())]
    );
    // A newer tag rolls it out.
    registry.push("a-template", "1.2.0").await.unwrap();
    shop.sync(&name).await;
    shop.pods_run("web", 2, &format!("{image}:1.2.0")).await;
    shop.settles(&name, "1.2.0").await;
    // What is the user's stays; a changed annotation follows.
    let gate = json!({"spec": {"rollout": {"maxConcurrent": 2}}});
    shop.api::<Image>().patch(&name, &PatchParams::default(), &Patch::Merge(&gate)).await.unwrap();
    patch_deployment(&shop, "web", &on_template(&json!({POLICY: "semver"}))).await;
    shop.pods_run("web", 2, &format!("{image}:2.0.0")).await;
    let made = shop.api::<Image>().get(&name).await.unwrap();
    assert_eq!(made.spec.rollout.unwrap().max_concurrent, Some(2));
    // A typo is no opting out, and is said.
    patch_deployment(
        &shop,
        "web",
        &json!({"metadata": {"annotations": {"policy.kimup.cloudavenue.io/app": "semvre"}}}),
    )
    .await;
    eventually(DEADLINE, "the typo is said", async || {
        let events = shop.events("Deployment", "web").await;
        let said = events.iter().any(|e| {
            e.starts_with("PolicyInvalid") && e.contains("semvre") && e.contains("settings before stay in force")
        });
        if said { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    assert_eq!(images(&shop).await, std::slice::from_ref(&name));
}

#[tokio::test]
async fn a_policy_on_the_workload_rolls_it() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("a-metadata", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("a-metadata", &[]).await;
    let image = registry.image("a-metadata");
    let text = format!("{image}:1.0.0");
    // Beside a person's Image for the same repository, which others of the namespace follow.
    shop.create_image("mine", &json!({"spec": {"image": image, "suspend": true}})).await;
    shop.create_deployment("web", &text, &json!({})).await;
    shop.pods_run("web", 2, &text).await;
    patch_deployment(&shop, "web", &json!({"metadata": {"annotations": {POLICY: "semver", INTERVAL: "1h"}}})).await;
    let name = image_name("Deployment", "web", "app");
    settles(&shop, &name, "1.1.0").await;
    let pods = shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    assert!(pods.iter().all(|pod| pod.labels().contains_key("kimup.cloudavenue.io/rollout")));
    assert_eq!(shop.revisions("web").await, 2);
    // Removed by somebody, it is made again, and takes up what runs.
    let earlier = shop.api::<Image>().get(&name).await.unwrap().uid();
    shop.api::<Image>().delete(&name, &DeleteParams::default()).await.unwrap();
    eventually(DEADLINE, "it is made again", async || {
        shop.api::<Image>().get_opt(&name).await.unwrap().is_some_and(|made| made.uid() != earlier)
    })
    .await;
    shop.settles(&name, "1.1.0").await;
    // Opting out: the Image goes, what runs stays.
    let before = shop.api::<Deployment>().get("web").await.unwrap().spec.template;
    patch_deployment(&shop, "web", &json!({"metadata": {"annotations": {POLICY: null, INTERVAL: null}}})).await;
    eventually(DEADLINE, "the Image goes", async || {
        let left = images(&shop).await;
        if left == ["mine"] { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    eventually(DEADLINE, "it is said", async || {
        let events = shop.events("Deployment", "web").await;
        let said = events.iter().any(|e| e.starts_with("OptedOut") && e.contains("the manifest's own tag"));
        if said { Ok(()) } else { Err(format!("{events:?}")) }
    })
    .await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    assert_eq!(shop.api::<Deployment>().get("web").await.unwrap().spec.template, before);
    assert_eq!(shop.revisions("web").await, 2);
}

#[tokio::test]
async fn a_bare_pod_has_its_image_as_long_as_it_lives() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("a-bare", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("a-bare", &[]).await;
    let image = registry.image("a-bare");
    let bare =
        |name: &str| with_annotations(pod(name, &format!("{image}:1.0.0")), &[(POLICY, "semver"), (INTERVAL, "1h")]);
    let created = shop.create_asked(&bare("one")).await;
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"), "{:?}", created.metadata.annotations);
    let made = eventually(DEADLINE, "its Image is made", async || {
        let made = images(&shop).await;
        if made.len() == 1 { Ok(made) } else { Err(format!("{made:?}")) }
    })
    .await;
    shop.settles(&made[0], "1.1.0").await;
    // Another with the same settings shares it.
    let created = shop.create_pod(&bare("two")).await.unwrap();
    let applied = &created.annotations()["kimup.cloudavenue.io/applied"];
    assert_eq!(*applied, format!("app: 1.0.0 -> 1.1.0 (Image {})", made[0]));
    let params = DeleteParams::default().grace_period(0);
    shop.api::<Pod>().delete("one", &params).await.unwrap();
    shop.sync(&made[0]).await;
    shop.api::<Pod>().delete("two", &params).await.unwrap();
    eventually(DEADLINE, "the Image goes", async || {
        let left = images(&shop).await;
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
}

#[tokio::test]
async fn jobs_of_a_cron_job_get_its_tag() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("a-cron", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("a-cron", &[]).await;
    let image = registry.image("a-cron");
    let template = json!({
        "metadata": {"annotations": {POLICY: "semver", INTERVAL: "1h"}},
        "spec": {"restartPolicy": "Never", "containers": [{"name": "app", "image": format!("{image}:1.0.0")}]},
    });
    let cron_job: CronJob = serde_json::from_value(json!({
        "apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "backup"},
        "spec": {"schedule": "0 0 1 1 *", "jobTemplate": {"spec": {"completions": 2, "template": template}}},
    }))
    .unwrap();
    shop.api::<CronJob>().create(&PostParams::default(), &cron_job).await.unwrap();
    settles(&shop, &image_name("CronJob", "backup", "app"), "1.1.0").await;
    let kubectl = ["-n", &shop.namespace, "create", "job", "by-hand", "--from=cronjob/backup"];
    bed.cluster.kubectl_ok(&kubectl).await.unwrap();
    eventually(DEADLINE, "its Pods run the newest tag", async || {
        let pods = shop.pods().await;
        let run: Vec<String> = pods.iter().map(|pod| image_of(pod, "app")).collect();
        let right = run.len() == 2 && run.iter().all(|run| *run == format!("{image}:1.1.0"));
        if right { Ok(()) } else { Err(format!("{run:?}")) }
    })
    .await;
    assert_eq!(images(&shop).await, [image_name("CronJob", "backup", "app")]);
}

#[tokio::test]
async fn the_service_accounts_pull_secret_counts() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.private;
    registry.push_all("a-account", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("a-account", &[]).await;
    let image = registry.image("a-account");
    let account = json!({"metadata": {"name": "robot"}, "imagePullSecrets": [{"name": "missing"}, {"name": "pull"}]});
    let account: ServiceAccount = serde_json::from_value(account).unwrap();
    shop.api::<ServiceAccount>().create(&PostParams::default(), &account).await.unwrap();
    let mut patch = on_template(&json!({INTERVAL: "1h"}));
    patch["metadata"] = json!({"annotations": {POLICY: "semver"}});
    patch["spec"]["template"]["spec"] = json!({"serviceAccountName": "robot"});
    let text = format!("{image}:1.0.0");
    shop.create_deployment("web", &text, &patch).await;
    let name = image_name("Deployment", "web", "app");
    // Skipped, as the kubelet does; but said, now that the registry denies access.
    eventually(DEADLINE, "what is missing is named", async || {
        let status = shop.api::<Image>().get_opt(&name).await.unwrap().and_then(|made| made.status);
        let said = serde_json::to_string(&status).unwrap();
        let (missing, pull) = (format!("{}/missing", shop.namespace), format!("{}/pull", shop.namespace));
        if said.contains(&missing) && said.contains(&pull) { Ok(()) } else { Err(said) }
    })
    .await;
    let secret = json!({
        "metadata": {"name": "pull"}, "type": "kubernetes.io/dockerconfigjson",
        "stringData": {".dockerconfigjson": registry.docker_config(USER.0, USER.1)},
    });
    let secret: Secret = serde_json::from_value(secret).unwrap();
    shop.api::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
    shop.sync(&name).await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    shop.settles(&name, "1.1.0").await;
}

#[tokio::test]
async fn workloads_of_a_group_roll_one_at_a_time() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("a-group", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("a-group", &[]).await;
    let text = format!("{}:1.0.0", registry.image("a-group"));
    let names = ["one", "two", "three"];
    for name in names {
        // Long enough that two at a time would be seen.
        let mut patch = on_template(&json!({"testbed.kimup/ready-after": "1s"}));
        patch["metadata"] = json!({"annotations": {POLICY: "semver", INTERVAL: "1h"}});
        patch["spec"]["replicas"] = json!(1);
        shop.create_deployment(name, &text, &patch).await;
    }
    let mut most = 0;
    eventually(DEADLINE, "all have rolled", async || {
        let all = shop.api::<Deployment>().list(&ListParams::default()).await.unwrap().items;
        let stamped = |d: &&Deployment| {
            let metadata = d.spec.template.metadata.as_ref().and_then(|m| m.annotations.as_ref());
            metadata.is_some_and(|map| map.contains_key("stamp.kimup.cloudavenue.io/app"))
        };
        let status = |d: &Deployment| d.status.clone().unwrap_or_default();
        let ready = |d: &&Deployment| {
            let status = status(d);
            status.observed_generation >= d.metadata.generation
                && (status.updated_replicas, status.replicas, status.available_replicas) == (Some(1), Some(1), Some(1))
        };
        most = most.max(all.iter().filter(stamped).filter(|d| !ready(d)).count());
        let done = all.iter().filter(stamped).filter(ready).count();
        if done == names.len() { Ok(()) } else { Err(format!("{done}")) }
    })
    .await;
    assert_eq!(most, 1);
}
