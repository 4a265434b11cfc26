//! Scenario b, the rest: the ways to opt in, and everything that stays as it is.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};

use crate::support::{Bed, DEADLINE, ENABLED, Shop, image_of, pod, with_annotations};

pub const IN: (&str, &str) = (ENABLED, "true");
const OUT: (&str, &str) = (ENABLED, "false");
pub const APPLIED: &str = "kimup.cloudavenue.io/applied";

/// A repository with 1.0.0 and 1.1.0 and a namespace whose Image `web` has settled on 1.1.0.
pub async fn shop(bed: &Bed, name: &str, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> (Shop, String) {
    let registry = &bed.registries.open;
    registry.push_all(name, &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = Shop::new(bed.cluster, name, labels, annotations).await;
    let image = registry.image(name);
    shop.create_image("web", &json!({"spec": {"image": image}})).await;
    shop.settles("web", "1.1.0").await;
    (shop, image)
}

#[tokio::test]
async fn a_namespace_opts_in_by_label() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "b-label", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    let check = async |pod: Pod, tag: &str| {
        let created = shop.create_pod(&pod).await.unwrap();
        assert_eq!(image_of(&created, "app"), format!("{image}:{tag}"), "{:?}", created.metadata.annotations);
        assert_eq!(created.annotations().contains_key(APPLIED), tag != "1.0.0");
    };
    check(pod("plain", &text), "1.1.0").await;
    check(with_annotations(pod("in", &text), &[IN]), "1.1.0").await;
    check(with_annotations(pod("out", &text), &[OUT]), "1.0.0").await;
    // Not even a stamp is followed.
    let stamp = format!("{text} {image}:1.1.0");
    let stamped = with_annotations(pod("stamped", &text), &[OUT, ("stamp.kimup.cloudavenue.io/app", &stamp)]);
    check(stamped, "1.0.0").await;
}

#[tokio::test]
async fn a_namespace_opts_in_by_annotation() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "b-annotation", &[], &[IN]).await;
    let text = format!("{image}:1.0.0");
    let wanted = format!("{image}:1.1.0");
    // The API server does not see annotations of namespaces: kimup has to name this one in its configuration first.
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    eventually(DEADLINE, "Pods of the annotated namespace are changed", async || {
        let created = shop.api::<Pod>().create(&dry, &pod("dry", &text)).await.unwrap();
        image_of(&created, "app") == wanted
    })
    .await;
    assert_eq!(image_of(&shop.create_pod(&pod("plain", &text)).await.unwrap(), "app"), wanted);
    let out = with_annotations(pod("out", &text), &[OUT]);
    assert_eq!(image_of(&shop.create_pod(&out).await.unwrap(), "app"), text);
}

#[tokio::test]
async fn a_workload_opts_in_by_its_own_metadata() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "b-metadata", &[], &[]).await;
    let text = format!("{image}:1.0.0");
    shop.create_deployment("web", &text, &json!({"metadata": {"annotations": {ENABLED: "true"}}})).await;
    let pods = shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    assert_eq!(shop.revisions("web").await, 2, "the first Pods started with their own tag and were rolled");
    for pod in &pods {
        let applied = &pod.annotations()[APPLIED];
        assert!(applied.starts_with("app: 1.0.0 -> 1.1.0 (Image web, rollout "), "{applied}");
    }
    let events = shop.events("Deployment", "web").await;
    assert!(events[0].starts_with("RolloutStarted: ") && events[0].contains("app 1.0.0 -> 1.1.0"), "{events:?}");
    let template = shop.api::<Deployment>().get("web").await.unwrap().spec.template;
    assert_eq!(template.spec.unwrap().containers[0].image.as_deref(), Some(&*text));
    shop.status_is("web", "counts it", |s| s.workloads.as_deref() == Some("1/1")).await;

    // The Pod template's word beats the workload's.
    let patch = json!({"metadata": {"annotations": {ENABLED: "true"}},
        "spec": {"template": {"metadata": {"annotations": {ENABLED: "false"}}}}});
    shop.create_deployment("out", &text, &patch).await;
    shop.pods_run("out", 2, &text).await;
    for _ in 0..5 {
        shop.sync("web").await;
    }
    assert_eq!(shop.revisions("out").await, 1);
    shop.pods_run("out", 2, &text).await;
}

#[tokio::test]
async fn only_what_an_image_covers_is_changed() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "b-covered", &[IN], &[]).await;
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let containers = json!([
        {"name": "app", "image": format!("{image}:1.0.0")},
        {"name": "other", "image": "other.invalid/app:1.0.0"},
        {"name": "near", "image": format!("{image}-near:1.0.0")},
        {"name": "pinned", "image": format!("{image}@{digest}")},
        {"name": "both", "image": format!("{image}:1.0.0@{digest}")},
        {"name": "untagged", "image": image},
        {"name": "latest", "image": format!("{image}:latest")},
        {"name": "newest", "image": format!("{image}:1.1.0")},
    ]);
    let init = json!([
        {"name": "init", "image": format!("{image}:1.0.0")},
        {"name": "sidecar", "image": format!("{image}:1.0.0"), "restartPolicy": "Always"},
        {"name": "uncovered", "image": "busybox"},
    ]);
    let wanted = json!({"spec": {"containers": containers, "initContainers": init}});
    let mut object = serde_json::to_value(pod("many", "x:1")).unwrap();
    json_patch::merge(&mut object, &wanted);
    let created = shop.create_pod(&serde_json::from_value(object).unwrap()).await.unwrap();
    let newest = ["app", "untagged", "latest", "newest", "init", "sidecar"];
    for container in wanted["spec"].as_object().unwrap().values().flat_map(|list| list.as_array().unwrap()) {
        let name = container["name"].as_str().unwrap();
        let expected = if newest.contains(&name) {
            format!("{image}:1.1.0")
        } else {
            container["image"].as_str().unwrap().to_owned()
        };
        assert_eq!(image_of(&created, name), expected, "{name}");
    }
    assert_eq!(
        created.annotations()[APPLIED],
        "app: 1.0.0 -> 1.1.0 (Image web); untagged: (no tag) -> 1.1.0 (Image web); latest: latest -> 1.1.0 (Image web); \
         newest: 1.1.0 (Image web); init: 1.0.0 -> 1.1.0 (Image web); sidecar: 1.0.0 -> 1.1.0 (Image web)"
    );
    // Nothing that an Image covers: nothing is written at all.
    let created = shop.create_pod(&pod("stranger", "other.invalid/app:1.0.0")).await.unwrap();
    assert_eq!(image_of(&created, "app"), "other.invalid/app:1.0.0");
    assert_eq!(created.metadata.annotations, None);
}

#[tokio::test]
async fn system_namespaces_are_left_alone() {
    let bed = Bed::shared().await;
    let (_, image) = shop(bed, "b-system", &[], &[]).await;
    for namespace in ["kube-system", "kube-node-lease"] {
        let shop = Shop { namespace: namespace.to_owned(), client: bed.cluster.client().await.unwrap() };
        let text = format!("{image}:1.0.0");
        // An Image with a tag would change its Pods, one without would deny them.
        shop.create_image("b-system", &json!({"spec": {"image": image}})).await;
        shop.settles("b-system", "1.1.0").await;
        shop.create_image("b-unknown", &json!({"spec": {"image": "unknown.invalid/app"}})).await;
        for (name, text) in [("b-covered", text.as_str()), ("b-denied", "unknown.invalid/app:1")] {
            let opted_in = with_annotations(pod(name, text), &[IN]);
            let create = async || match shop.create_pod(&opted_in).await {
                // The controller may not have made it yet.
                Err(error) if error.contains("serviceaccount") => Err(error),
                other => Ok(other),
            };
            let created = eventually(DEADLINE, "the default ServiceAccount", create).await.unwrap();
            assert_eq!(image_of(&created, "app"), text);
            shop.api::<Pod>().delete(name, &DeleteParams::default()).await.unwrap();
        }
        let images: Api<kimup::api::Image> = shop.api();
        for name in ["b-system", "b-unknown"] {
            images.delete(name, &DeleteParams::default()).await.unwrap();
        }
    }
}

/// Fields that kimup has no use for, nor types.
fn rich(name: &str, text: &str, annotations: &Value) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": "rich", "a/b": ""}, "annotations": annotations, "finalizers": ["example.org/stay"]},
        "spec": {
            "containers": [{
                "name": "app", "image": text, "imagePullPolicy": "Always", "args": ["--quote=\"", "~/a~1b", "\u{00fc}\u{2028}"],
                "env": [{"name": "EMPTY", "value": ""}, {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}],
                "resources": {"limits": {"cpu": "1500m", "memory": "1Gi"}, "requests": {"cpu": "0.1"}},
                "resizePolicy": [{"resourceName": "cpu", "restartPolicy": "RestartContainer"}],
                "securityContext": {"runAsUser": 1000, "seccompProfile": {"type": "RuntimeDefault"}, "capabilities": {"drop": ["ALL"]}},
                "volumeMounts": [{"name": "tmp", "mountPath": "/tmp", "recursiveReadOnly": "Disabled"}],
                "lifecycle": {"preStop": {"sleep": {"seconds": 1}}},
            }],
            "ephemeralContainers": [],
            "volumes": [{"name": "tmp", "emptyDir": {"sizeLimit": "1Mi"}}],
            "schedulingGates": [{"name": "example.org/wait"}],
            "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway", "matchLabelKeys": ["a/b"], "labelSelector": {"matchLabels": {"app": "rich"}}}],
            "hostUsers": false, "setHostnameAsFQDN": true, "os": {"name": "linux"}, "terminationGracePeriodSeconds": 5,
        },
    }))
    .unwrap()
}

#[tokio::test]
async fn everything_else_of_a_pod_survives() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "b-fields", &[], &[]).await;
    let text = format!("{image}:1.0.0");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let create = async |annotations: Value| {
        let created = shop.api::<Pod>().create(&dry, &rich("rich", &text, &annotations)).await.unwrap();
        serde_json::to_value(created).unwrap()
    };
    let kept = create(json!({"note": "x"})).await;
    let mut changed = create(json!({"note": "x", ENABLED: "true"})).await;
    assert_eq!(changed["spec"]["containers"][0]["image"], format!("{image}:1.1.0"));
    changed["spec"]["containers"][0]["image"] = json!(text);
    let token = |pod: &mut Value| {
        // The name of the token's volume is random.
        let pod_text = pod["spec"].to_string();
        let start = pod_text.find("kube-api-access-").unwrap();
        let name = &pod_text[start..start + "kube-api-access-xxxxx".len()];
        serde_json::from_str::<Value>(&pod_text.replace(name, "token")).unwrap()
    };
    assert_eq!(token(&mut changed), token(&mut kept.clone()));
    let mut annotations = changed["metadata"]["annotations"].clone();
    annotations.as_object_mut().unwrap().retain(|key, _| !key.starts_with("kimup."));
    assert_eq!(annotations, kept["metadata"]["annotations"]);
    for key in ["labels", "finalizers"] {
        assert_eq!(changed["metadata"][key], kept["metadata"][key]);
    }
}
