//! Scenario i: what is wrong with one Image is said on it, and the others go on.

use k8s_openapi::api::rbac::v1::RoleBinding;
use kimup::api::{ImageStatus, SyncResult};
use kimup_testbed::{Cluster, KimupProcess, eventually};
use kube::api::{Api, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::support::{Bed, DEADLINE, DEPLOYED, ENABLED, Shop, USER, image, opted_in, options};

/// Images as they are stored, whatever is in them.
fn stored(shop: &Shop) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("kimup.cloudavenue.io", "v1alpha1", "Image");
    Api::namespaced_with(shop.client.clone(), &shop.namespace, &ApiResource::from_gvk_with_plural(&kind, "images"))
}

/// `reason: message` of the `Ready` condition.
fn ready(status: &ImageStatus) -> String {
    let found = status.conditions.iter().find(|c| c.type_ == "Ready");
    found.map(|c| format!("{}: {}", c.reason, c.message)).unwrap_or_default()
}

#[tokio::test]
async fn hostile_and_wrong_images_stop_nobody_else() {
    let bed = Bed::shared().await;
    let (open, scripted) = (&bed.registries.open, &bed.registries.scripted);
    open.push_all("i-good", &["1.0.0"]).await.unwrap();
    let good = open.image("i-good");
    // Tags as a hostile registry would choose them for a backtracking matcher.
    let long: Vec<String> = (0..2000).map(|n| format!("{}-{n}", "a".repeat(100))).collect();
    scripted.set_tags("i-long", &long.iter().map(String::as_str).collect::<Vec<_>>());
    let rule =
        |kind: &str, value: &str| json!([{"name": "r", "type": kind, "value": value, "actions": [{"type": "apply"}]}]);
    let named = |repository: &str, rules: Value| json!({"spec": {"image": scripted.image(repository), "rules": rules}});
    let cron =
        json!({"spec": {"image": scripted.image("i-cron"), "triggers": [{"type": "crontab", "value": "0 0 31 2 *"}]}});
    let shop = bed.shop("i-hostile", &[]).await;
    let wrong = [
        ("slow-regex", named("i-long", rule("regex", "^(a+)+$")), SyncResult::TagsError, "NoMatchingTag: "),
        ("big-regex", named("i-big", rule("regex", "((a{100}){100}){100}")), SyncResult::GetRuleError, "RuleInvalid: "),
        ("no-regex", named("i-no", rule("regex", "(?<=x)y")), SyncResult::GetRuleError, "RuleInvalid: "),
        ("range", named("i-range", rule("semver", ">=1.0.0 <<2")), SyncResult::GetRuleError, "RuleInvalid: "),
        ("cron", cron, SyncResult::Error, "TriggerInvalid: "),
    ];
    for (name, image, ..) in &wrong {
        shop.create_image(name, image).await;
    }
    shop.create_image("good", &json!({"spec": {"image": good, "triggers": [{"type": "interval", "value": "1s"}]}}))
        .await;
    shop.settles("good", "1.0.0").await;
    shop.create_image("twin", &json!({"spec": {"image": good}})).await;
    for (name, _, result, start) in &wrong {
        let status = shop.status_is(name, "is answered", |s| s.result == Some(*result)).await;
        assert!(ready(&status).starts_with(start), "{name}: {}", ready(&status));
    }
    let status = shop.status_is("twin", "is a duplicate", |s| s.result == Some(SyncResult::Error)).await;
    assert!(ready(&status).starts_with("Duplicate: ") && ready(&status).contains("Image good"), "{}", ready(&status));
    for (name, reason) in [("no-regex", "PolicyInvalid"), ("cron", "PolicyInvalid"), ("twin", "Duplicate")] {
        eventually(DEADLINE, "the Event", async || {
            let events = shop.events("Image", name).await;
            (events.len() == 1 && events[0].starts_with(reason)).then_some(()).ok_or(format!("{events:?}"))
        })
        .await;
    }
    // The good one rolls as if it were alone.
    shop.create_deployment("web", &format!("{good}:1.0.0"), &opted_in()).await;
    shop.pods_run("web", 2, &format!("{good}:1.0.0")).await;
    open.push("i-good", "1.0.1").await.unwrap();
    shop.pods_run("web", 2, &format!("{good}:1.0.1")).await;
    assert_eq!(shop.settles("good", "1.0.1").await.result, Some(SyncResult::Success));
    assert_eq!(shop.revisions("web").await, 2);
    assert_eq!(shop.status("twin").await.tag, None);
}

/// The CRD with a spec that takes anything.
async fn loosen(cluster: &Cluster) {
    let text = cluster.kubectl_ok(&["get", "crd", "images.kimup.cloudavenue.io", "-o", "json"]).await.unwrap();
    let mut crd: Value = serde_json::from_str(&text).unwrap();
    let version = &mut crd["spec"]["versions"][0];
    version["schema"]["openAPIV3Schema"]["properties"]["spec"] =
        json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    version.as_object_mut().unwrap().remove("selectableFields");
    let output = cluster.kubectl_with_stdin(&["replace", "-f", "-"], &crd.to_string()).await.unwrap();
    assert!(output.success, "{}", output.stderr);
}

/// Stores an Image that the real CRD refuses.
async fn store(shop: &Shop, name: &str, patch: &Value) {
    let mut object = serde_json::to_value(image(name, &json!({"spec": {"image": "127.0.0.1:1/x"}}))).unwrap();
    json_patch::merge(&mut object, &json!({"spec": patch}));
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    eventually(DEADLINE, "the loose CRD counts", async || {
        stored(shop).create(&PostParams::default(), &object).await.map(drop)
    })
    .await;
}

/// Stores what an API server with another CRD let in, and brings the real one back.
async fn store_what_is_wrong(cluster: &Cluster, shop: &Shop) {
    loosen(cluster).await;
    let rules = json!([{"name": "r", "type": "semver-mayor", "actions": [{"type": "apply"}]}]);
    store(shop, "unknown-rule", &json!({"rules": rules})).await;
    store(shop, "wrong-type", &json!({"rules": "none"})).await;
    store(shop, "no-image", &json!({"image": null})).await;
    store(shop, "with-tag", &json!({"image": "alpine:3"})).await;
    let crds = include_str!("../../deploy/crds.yaml");
    cluster.apply(&["--server-side", "--force-conflicts"], crds).await.unwrap();
    eventually(DEADLINE, "the real CRD counts", async || {
        let object = image("probe", &json!({"spec": {"image": "alpine:3"}}));
        let dry_run = PostParams { dry_run: true, ..PostParams::default() };
        shop.api().create(&dry_run, &object).await.is_err()
    })
    .await;
}

#[tokio::test]
async fn what_is_stored_wrongly_blocks_neither_others_nor_edits() {
    let registries = &Bed::shared().await.registries;
    registries.open.push_all("i-stored", &["1.0.0", "1.1.0"]).await.unwrap();
    registries.scripted.set_tags("i-repaired", &["2.0.0"]);
    let cluster = Cluster::start().await.unwrap();
    cluster.apply_deploy(DEPLOYED).await.unwrap();
    let shop = Shop::new(&cluster, "i-stored", &[(ENABLED, "true")], &[]).await;
    store_what_is_wrong(&cluster, &shop).await;
    let good = registries.open.image("i-stored");
    shop.create_image("good", &json!({"spec": {"image": good}})).await;
    let mut kimup = KimupProcess::start(options(&cluster, registries).await).await.unwrap();
    each_is_named(&shop).await;
    // The others go on.
    assert_eq!(shop.settles("good", "1.1.0").await.result, Some(SyncResult::Success));
    shop.create_deployment("web", &format!("{good}:1.0.0"), &json!({})).await;
    shop.pods_run("web", 2, &format!("{good}:1.1.0")).await;

    // Said once: nothing more is written, also after a restart.
    let versions = async || {
        let list = stored(&shop).list(&ListParams::default()).await.unwrap();
        let wrong = list.items.into_iter().filter(|i| i.metadata.name.as_deref() != Some("good"));
        wrong.map(|i| i.metadata.resource_version).collect::<Vec<_>>()
    };
    let before = versions().await;
    kimup.terminate(DEADLINE).await.unwrap(); // gives the Lease back
    kimup = kimup.start_again().await.unwrap();
    registries.open.push("i-stored", "1.2.0").await.unwrap();
    let synced = async |tag: &str| {
        shop.annotate_image("good", "kimup.cloudavenue.io/action", Some("refresh")).await;
        shop.settles("good", tag).await
    };
    synced("1.2.0").await;
    assert_eq!(versions().await, before);

    edits_are_possible(&shop).await;
    // What is repaired is synced at once.
    let spec = json!({"image": registries.scripted.image("i-repaired"), "rules":
        [{"name": "r", "type": "always", "actions": [{"type": "apply"}]}]});
    let patch = Patch::Merge(json!({"spec": spec}));
    stored(&shop).patch("wrong-type", &PatchParams::default(), &patch).await.unwrap();
    // What was written of it as wrong goes with a write of its own.
    let types = |status: &ImageStatus| status.conditions.iter().map(|c| c.type_.clone()).collect::<Vec<_>>();
    let repaired = |status: &ImageStatus| status.tag.as_deref() == Some("2.0.0") && types(status) == ["Ready"];
    let status = shop.status_is("wrong-type", "is as any other", repaired).await;
    assert_eq!(status.result, Some(SyncResult::Success));

    a_missing_role_binding_is_named(&cluster, &shop, registries).await;
    kimup.check_running().unwrap();
}

/// What the wrong CRD lets in, and where it is wrong.
const STORED: [(&str, &str); 4] = [
    ("unknown-rule", "spec.rules[0].type: unknown variant `semver-mayor`, expected one of "),
    ("wrong-type", "spec.rules: invalid type: string \"none\", expected a sequence; fix that field"),
    ("no-image", "spec: missing field `image`; fix that field"),
    ("with-tag", "fix spec.image"),
];

/// Its status, an Event and the condition `Stalled` tell what is wrong with each.
async fn each_is_named(shop: &Shop) {
    for (name, part) in STORED {
        let said = eventually(DEADLINE, name, async || {
            let object = stored(shop).get(name).await.unwrap();
            let status: Option<ImageStatus> =
                object.data.get("status").map(|s| serde_json::from_value(s.clone()).unwrap());
            status.filter(|s| s.result == Some(SyncResult::GetImageError))
        })
        .await;
        let message = ready(&said);
        assert!(message.starts_with("ImageInvalid: Image i-stored/") && message.contains(part), "{name}: {message}");
        let stalled = said.conditions.iter().any(|c| c.type_ == "Stalled" && c.status == "True");
        assert!(stalled, "{name}: {said:?}");
        eventually(DEADLINE, "the Event", async || shop.events("Image", name).await.len() == 1).await;
    }
}

/// Annotations and status of what is stored wrongly can be edited, also by others than kimup.
async fn edits_are_possible(shop: &Shop) {
    for (name, _) in STORED {
        let annotate = Patch::Merge(json!({"metadata": {"annotations": {"example.org/note": "x"}}}));
        stored(shop).patch(name, &PatchParams::default(), &annotate).await.unwrap();
        let status = Patch::Merge(json!({"status": {"digest": "sha256:00"}}));
        let written = stored(shop).patch_status(name, &PatchParams::default(), &status).await.unwrap();
        assert_eq!(written.data["status"]["digest"], "sha256:00", "{name}");
    }
}

/// Without the right to read Secrets in a namespace, the message says which binding gives it.
async fn a_missing_role_binding_is_named(cluster: &Cluster, shop: &Shop, registries: &crate::support::Registries) {
    registries.private.push("i-binding", "1.0.0").await.unwrap();
    cluster.kubectl_ok(&["delete", "clusterrolebinding", "kimup-pull-secrets"]).await.unwrap();
    let account = "--as=system:serviceaccount:kimup-system:kimup";
    eventually(DEADLINE, "the API server knows that it is gone", async || {
        let answer =
            cluster.kubectl(&["-n", &shop.namespace, "auth", "can-i", "get", "secrets", account]).await.unwrap();
        if answer.stdout.trim() == "no" { Ok(()) } else { Err(answer.stdout) }
    })
    .await;
    let (server, user, password) = (
        format!("--docker-server={}", registries.private.host()),
        format!("--docker-username={}", USER.0),
        format!("--docker-password={}", USER.1),
    );
    let args = ["-n", &shop.namespace, "create", "secret", "docker-registry", "pull", &server, &user, &password];
    cluster.kubectl_ok(&args).await.unwrap();
    let spec = json!({"image": registries.private.image("i-binding"), "imagePullSecrets": [{"name": "pull"}]});
    shop.create_image("bound", &json!({"spec": spec})).await;
    let status = shop.status_is("bound", "is answered", |s| s.result == Some(SyncResult::PullSecretsError)).await;
    let message = ready(&status);
    assert!(message.contains("bind the ClusterRole kimup-pull-secrets"), "{message}");
    assert!(message.contains("RoleBinding in namespace i-stored"), "{message}");
    // As it says.
    let binding: RoleBinding = serde_json::from_value(json!({
        "metadata": {"name": "kimup-pull-secrets"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "kimup-pull-secrets"},
        "subjects": [{"kind": "ServiceAccount", "name": "kimup", "namespace": "kimup-system"}],
    }))
    .unwrap();
    shop.api().create(&PostParams::default(), &binding).await.unwrap();
    assert_eq!(shop.settles("bound", "1.0.0").await.result, Some(SyncResult::Success));
}
