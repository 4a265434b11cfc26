//! The policy of `deploy/overlays/stamp-policy`: stamped Pods get their tag with no kimup process at all.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kimup::api::annotations::{APPLIED, ROLLOUT};
use kimup_testbed::{KimupProcess, eventually};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::containers::{INJECT, Injector};
use crate::own::{Own, admits};
use crate::support::{DEADLINE, ENABLED, Shop, image_of, pod};

const POLICY: &str = include_str!("../../../deploy/overlays/stamp-policy/policy.yaml");
const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Creates a Pod with one container `app` for nobody but the policy (dry-run): what it runs, and the `applied` annotation.
async fn created(shop: &Shop, patch: &Value) -> (String, String) {
    try_created(shop, patch).await.unwrap()
}

async fn try_created(shop: &Shop, patch: &Value) -> Result<(String, String), kube::Error> {
    let mut object = serde_json::to_value(pod("p", "app:1.0.0")).unwrap();
    json_patch::merge(&mut object, patch);
    if patch.pointer("/metadata/labels").is_none() {
        json_patch::merge(&mut object, &json!({"metadata": {"labels": {ROLLOUT: "ab12"}}}));
    }
    let params = PostParams { dry_run: true, ..PostParams::default() };
    let pod: Pod = shop.api().create(&params, &serde_json::from_value(object).unwrap()).await?;
    Ok((image_of(&pod, "app"), pod.annotations().get(APPLIED).cloned().unwrap_or_default()))
}

fn stamped(text: &str, stamp: &str) -> Value {
    json!({
        "metadata": {"annotations": {"stamp.kimup.cloudavenue.io/app": stamp}},
        "spec": {"containers": [{"name": "app", "image": text}]},
    })
}

/// What the stamp makes of the text: the same as the webhook's own rule, and nothing of another repository.
async fn what_a_stamp_does(shop: &Shop) {
    let check = async |text: &str, stamp: &str, expected: &str| {
        let (image, _) = created(shop, &stamped(text, stamp)).await;
        assert_eq!(image, if expected.is_empty() { text } else { expected }, "{text}: {stamp}");
    };
    let pinned = format!("app:1.0.0@{DIGEST}");
    check("app:1.0.0", "app:1.0.0 app:1.4.2", "app:1.4.2").await;
    check("app", "app app:1.4.2", "app:1.4.2").await;
    check("app:1.0.0", &format!("app:1.0.0 {pinned}"), &pinned).await;
    check("app:1.0.0", &format!("app:1.0.0 app@{DIGEST}"), &format!("app@{DIGEST}")).await;
    check("r.example:5000/t/app:1", "r.example:5000/t/app:1 r.example:5000/t/app:2", "r.example:5000/t/app:2").await;
    check("r.example:5000/app", "r.example:5000/app r.example:5000/app:2", "r.example:5000/app:2").await;
    // Another text, or another repository.
    check("app:1.0.0", "app:1.0.1 app:1.4.2", "").await;
    check("app", "app:1.0.0 app:1.4.2", "").await;
    for reference in
        ["apps:2", "app/evil:2", "evil.example/app:2", "app:5000/evil:2", "app", "app:", "app:2 x", "app:2@sha256:0"]
    {
        check("app:1.0.0", &format!("app:1.0.0 {reference}"), "").await;
    }
    check(&pinned, &format!("{pinned} app:2"), "").await;
    check("app:1.0.0", "app:1.0.0", "").await;
    check("app:1.0.0", "", "").await;
}

/// Who opted out, who was not stamped, and what else a Pod may hold.
async fn whose_stamp_counts(shop: &Shop) {
    let check = async |patch: Value, expected: &str| {
        let mut object = stamped("app:1.0.0", "app:1.0.0 app:2");
        json_patch::merge(&mut object, &patch);
        assert_eq!(created(shop, &object).await.0, expected, "{patch}");
    };
    let annotated = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}});
    check(json!({}), "app:2").await;
    check(annotated(ENABLED, "true"), "app:2").await;
    check(annotated(ENABLED, "false"), "app:1.0.0").await;
    check(annotated(ENABLED, "no"), "app:1.0.0").await;
    check(annotated("enabled.kimup.cloudavenue.io/app", "false"), "app:1.0.0").await;
    check(annotated("enabled.kimup.cloudavenue.io/other", "false"), "app:2").await;
    check(json!({"metadata": {"labels": {"app": "p"}}}), "app:1.0.0").await;
    let hidden = json!({"spec": {"containers": [{"name": "app", "image": "app:1.0.0",
        "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}]}});
    check(hidden, "app:2").await;
    // Many containers do not exhaust what CEL may cost.
    let mut annotations: serde_json::Map<String, Value> =
        (0..250).map(|n| (format!("stamp.kimup.cloudavenue.io/c{n}"), json!("app:1.0.0 app:2"))).collect();
    let before: Vec<String> = (0..250).map(|n| format!("c{n}: 0.9.0 -> 1.0.0 (Image web, rollout ab12)")).collect();
    annotations.insert(APPLIED.to_owned(), json!(before.join("; ")));
    let mut containers: Vec<Value> = (0..250).map(|n| json!({"name": format!("c{n}"), "image": "app:1.0.0"})).collect();
    containers.push(json!({"name": "app", "image": "app:1.0.0"}));
    check(json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}}), "app:2").await;
    // What is done is told, init containers last.
    let mut object = stamped("app:1.0.0", "app:1.0.0 app:2");
    json_patch::merge(
        &mut object,
        &json!({
            "metadata": {"annotations": {"stamp.kimup.cloudavenue.io/init": format!("app:1.0.0 app:1.0.0@{DIGEST}"),
                "stamp.kimup.cloudavenue.io/bare": "app app:3"}},
            "spec": {"initContainers": [{"name": "init", "image": "app:1.0.0"}, {"name": "bare", "image": "app"}]},
        }),
    );
    let (_, applied) = created(shop, &object).await;
    let said = "app: 1.0.0 -> 2 (rollout ab12); init: 1.0.0 (rollout ab12); bare: (no tag) -> 3 (rollout ab12)";
    assert_eq!(applied, said);
}

/// What stood in `applied` before, and what stands there afterwards.
async fn what_was_said_before_stays(shop: &Shop) {
    let app = "app: 1.0.0 -> 2 (rollout ab12)";
    let check = async |before: &str, expected: &str| {
        let mut object = stamped("app:1.0.0", "app:1.0.0 app:2");
        object["metadata"]["annotations"][APPLIED] = json!(before);
        assert_eq!(created(shop, &object).await, ("app:2".to_owned(), expected.to_owned()), "{before}");
    };
    check("", app).await;
    check("nonsense", app).await;
    check("side: 1 -> 1.5 (Image y)", &format!("side: 1 -> 1.5 (Image y); {app}")).await;
    check("a: 1 (Image y); app: 0.9 -> 1 (Image x); b: 2 (Image y)", &format!("a: 1 (Image y); {app}; b: 2 (Image y)"))
        .await;
    check("app: 1.0.0 -> 2 (rollout cd34)", app).await;
    check("apps: 1 (Image y)", &format!("apps: 1 (Image y); {app}")).await;
    // kimup says more.
    check("app: 1.0.0 -> 2 (Image web, rollout ab12)", "app: 1.0.0 -> 2 (Image web, rollout ab12)").await;
}

async fn scale(shop: &Shop, replicas: usize) {
    let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
    shop.api::<Deployment>().patch("web", &PatchParams::default(), &patch).await.unwrap();
}

/// Waits until the policy counts, in a Namespace that is not opted in.
async fn with_the_policy(own: &Own) -> Shop {
    own.cluster.apply(&[], POLICY).await.unwrap();
    let quiet = own.shop("quiet").await;
    eventually(DEADLINE, "the policy counts", async || {
        created(&quiet, &stamped("app:1.0.0", "app:1.0.0 app:2")).await.0 == "app:2"
    })
    .await;
    quiet
}

/// Two Pods of a revision, one before and one after a newer tag, to which another webhook adds a container: so the policy
/// and kimup are called again. The policy answers again for `app`, whose stamp names its own text; what kimup said of
/// `side` is how it knows its own answer again.
#[tokio::test]
async fn what_kimup_said_outlives_a_second_call_of_the_policy() {
    let own = Own::start().await;
    let _kimup = KimupProcess::start(own.options("again").await).await.unwrap();
    own.registry.push("side", "1.1.0").await.unwrap();
    let side = own.registry.image("side");
    let (text, wanted) = (format!("{side}:1.0.0"), format!("{side}:1.1.0"));
    let shop = Shop::new(&own.cluster, "again", &[(ENABLED, "true")], &[]).await;
    shop.create_image("side", &json!({"spec": {"image": side}})).await;
    shop.settles("side", "1.1.0").await;
    admits(&shop, &text, &wanted).await;
    with_the_policy(&own).await;
    let proxy = "mesh.invalid/proxy:1";
    let injector = Injector::start(&shop, "z-inject", "-").await;
    let set = json!({"metadata": {"name": "web"}, "spec": {"replicas": 1, "selector": {"matchLabels": {"app": "web"}},
    "template": {
        "metadata": {
            "labels": {"app": "web", ROLLOUT: "ab12"},
            "annotations": {"stamp.kimup.cloudavenue.io/app": "app:1 app:1", INJECT: proxy},
        },
        "spec": {"containers": [{"name": "app", "image": "app:1"}, {"name": "side", "image": text}]},
    }}});
    let sets: Api<ReplicaSet> = shop.api();
    sets.create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
    let check = async |count: usize| {
        for pod in shop.pods_run("web", count, "app:1").await {
            let found = ["app", "side", "proxy"].map(|name| image_of(&pod, name));
            assert_eq!(found, ["app:1", &wanted, proxy]);
            assert_eq!(pod.annotations()[APPLIED], "app: 1 (rollout ab12); side: 1.0.0 -> 1.1.0 (Image side)");
        }
    };
    check(1).await;
    shop.status_is("side", "has the revision on record", |status| !status.revisions.is_empty()).await;
    own.registry.push("side", "1.2.0").await.unwrap();
    shop.sync("side").await;
    shop.settles("side", "1.2.0").await;
    let patch = Patch::Merge(json!({"spec": {"replicas": 2}}));
    sets.patch("web", &PatchParams::default(), &patch).await.unwrap();
    check(2).await;
    assert!(injector.saw("web").len() > 2, "all are called again");
}

#[tokio::test]
async fn stamped_pods_start_without_kimup() {
    let own = Own::start().await;
    let mut kimup = KimupProcess::start(own.options("policy").await).await.unwrap();
    own.registry.push("app", "1.0.0").await.unwrap();
    let image = own.registry.image("app");
    let (text, wanted) = (format!("{image}:0.9.0"), format!("{image}:1.1.0"));
    let shop = Shop::new(&own.cluster, "stamped", &[(ENABLED, "true")], &[]).await;
    shop.create_image("app", &json!({"spec": {"image": image}})).await;
    shop.settles("app", "1.0.0").await;
    admits(&shop, &text, &format!("{image}:1.0.0")).await;
    shop.create_deployment("web", &text, &json!({})).await;
    shop.pods_run("web", 2, &format!("{image}:1.0.0")).await;
    own.registry.push("app", "1.1.0").await.unwrap();
    shop.sync("app").await;
    shop.settles("app", "1.1.0").await;
    shop.pods_run("web", 2, &wanted).await;

    // Together: one result, one rollout.
    let quiet = with_the_policy(&own).await;
    what_a_stamp_does(&quiet).await;
    whose_stamp_counts(&quiet).await;
    what_was_said_before_stays(&quiet).await;
    let excluded = Shop { namespace: "kube-system".to_owned(), client: own.cluster.client().await.unwrap() };
    assert_eq!(created(&excluded, &stamped("app:1.0.0", "app:1.0.0 app:2")).await.0, "app:1.0.0");
    scale(&shop, 3).await;
    let pods = shop.pods_run("web", 3, &wanted).await;
    assert!(pods.iter().all(|p| p.annotations()[APPLIED].starts_with("app: 0.9.0 -> 1.1.0 (")), "each is told of");

    // Alone, and with `fail`: stamped Pods are not denied.
    kimup.kill();
    scale(&shop, 5).await;
    shop.pods_run("web", 5, &wanted).await;
    let denied = shop.create_pod(&pod("loose", &text)).await.unwrap_err();
    assert!(denied.contains("failed calling webhook"), "who is not stamped is: {denied}");
    let policies: Api<k8s_openapi::api::admissionregistration::v1::MutatingAdmissionPolicy> =
        Api::all(own.cluster.client().await.unwrap());
    policies.delete("kimup-stamps", &DeleteParams::default()).await.unwrap();
    let stamped = stamped("app:1.0.0", "app:1.0.0 app:2");
    eventually(DEADLINE, "without the policy they wait for kimup", async || {
        try_created(&quiet, &stamped).await.is_err()
    })
    .await;
}
