//! Kubernetes' rules for admission webhooks, each as the world shows it (docs/webhook-practices.md).

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kimup::api::Image;
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::annotated::{INTERVAL, POLICY, images};
use crate::containers::{INJECT, Injector};
use crate::optin::{APPLIED, IN, shop};
use crate::support::{Bed, DEADLINE, Shop, image_of, pod, with_annotations};

/// A Pod of one container `app`, with this merged over it.
pub fn pod_with(name: &str, text: &str, patch: &Value) -> Pod {
    let mut object = serde_json::to_value(pod(name, text)).unwrap();
    json_patch::merge(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

#[tokio::test]
async fn the_live_configuration_keeps_to_the_rules() {
    let bed = Bed::shared().await;
    let api: Api<MutatingWebhookConfiguration> = Api::all(bed.cluster.client().await.unwrap());
    let entries = api.get("kimup-url").await.unwrap().webhooks.unwrap();
    assert!(entries.len() >= 8);
    for entry in entries {
        let value = serde_json::to_value(&entry).unwrap();
        let expected = json!({
            "sideEffects": "None", "reinvocationPolicy": "IfNeeded", "matchPolicy": "Equivalent",
            "timeoutSeconds": 10, "admissionReviewVersions": ["v1"],
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"],
                       "scope": "Namespaced"}],
        });
        for (key, wanted) in expected.as_object().unwrap() {
            assert_eq!(&value[key], wanted, "{} {key}", entry.name);
        }
        assert!(["Fail", "Ignore"].contains(&value["failurePolicy"].as_str().unwrap()));
        let selector = value["namespaceSelector"].to_string();
        assert!(["kube-system", "kube-node-lease", "kimup-system"].iter().all(|name| selector.contains(name)));
        let conditions = value["matchConditions"].to_string();
        assert!(["not-opted-out", "no-mirror-pod"].iter().all(|name| conditions.contains(name)), "{conditions}");
        assert!(!conditions.contains("namespaceObject"), "{conditions}");
    }
}

/// Everything in a namespace that kimup could have written, but for what is about the Image `barrier`.
async fn written(bed: &Bed, shop: &Shop) -> Vec<String> {
    let mut found = Vec::new();
    for image in shop.api::<Image>().list(&ListParams::default()).await.unwrap() {
        let version = image.resource_version().unwrap();
        found.push(format!("Image {} {version}", image.name_any()));
    }
    for event in shop.api::<Event>().list(&ListParams::default()).await.unwrap() {
        let about = event.regarding.clone().and_then(|object| object.name).unwrap_or_default();
        found.push(format!("Event {} on {about}", event.name_any()));
    }
    found.extend(shop.pods().await.iter().map(|pod| format!("Pod {}", pod.name_any())));
    for request in bed.cluster.audit_log_with(&shop.namespace).unwrap() {
        let (verb, object) = (request["verb"].as_str().unwrap(), &request["objectRef"]);
        if object["namespace"] == shop.namespace && !["get", "list", "watch"].contains(&verb) {
            found.push(format!("{} {verb} {object} {}", request["auditID"], request["requestObject"]));
        }
    }
    found.retain(|line| !line.contains("barrier"));
    found.sort();
    found
}

/// Two further syncs have come and gone, so whatever was to be written by now is.
async fn two_syncs(shop: &Shop) {
    for _ in 0..2 {
        shop.sync("barrier").await;
    }
}

#[tokio::test]
async fn a_dry_run_changes_the_pod_and_nothing_else() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-dry", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    bed.registries.open.push_all("p-barrier", &["1.0.0"]).await.unwrap();
    shop.create_image("barrier", &json!({"spec": {"image": bed.registries.open.image("p-barrier")}})).await;
    shop.sync("web").await;
    two_syncs(&shop).await;
    let before = written(bed, &shop).await;

    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let covered = pod("covered", &text);
    // Its Image does not exist: sync is asked, and answers from the registry.
    let bare = with_annotations(pod("bare", &text), &[(POLICY, "semver"), (INTERVAL, "1h")]);
    for asked in [&covered, &bare] {
        let created = eventually(DEADLINE, "the dry run", async || shop.api::<Pod>().create(&dry, asked).await).await;
        assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"), "{}", asked.name_any());
        assert!(created.annotations()[APPLIED].starts_with("app: 1.0.0 -> 1.1.0 (Image "));
    }
    let manifest = serde_json::to_string(&covered).unwrap();
    let args =
        ["create", "-n", &shop.namespace, "--dry-run=server", "-o", "jsonpath={.spec.containers[0].image}", "-f", "-"];
    let output = bed.cluster.kubectl_with_stdin(&args, &manifest).await.unwrap();
    assert_eq!((output.stdout, output.stderr), (format!("{image}:1.1.0"), String::new()));
    two_syncs(&shop).await;
    assert_eq!(written(bed, &shop).await, before);

    // In earnest the same Pod has its Image made.
    let created = eventually(DEADLINE, "the Pod is admitted", async || shop.create_pod(&bare).await).await;
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"));
    eventually(DEADLINE, "its Image", async || images(&shop).await.len() == 3).await;
    assert_ne!(written(bed, &shop).await, before);
}

/// A Pod as it was created, to be sent again.
fn resent(created: &Pod, name: &str) -> Pod {
    let value = serde_json::to_value(created).unwrap();
    serde_json::from_value(json!({
        "metadata": {"name": name, "labels": value["metadata"]["labels"], "annotations": value["metadata"]["annotations"]},
        "spec": {"containers": value["spec"]["containers"].as_array().unwrap().iter().map(bare_container).collect::<Vec<_>>(),
                 "initContainers": value["spec"]["initContainers"].as_array().unwrap().iter().map(bare_container).collect::<Vec<_>>()},
    }))
    .unwrap()
}

fn bare_container(container: &Value) -> Value {
    json!({"name": container["name"], "image": container["image"]})
}

/// Another webhook adds containers that the namespace's Image covers.
async fn check_injected_and_covered(name: &'static str, webhook: &str, place: &'static str, saw: &[&str]) {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, name, &[IN], &[]).await;
    let injector = Injector::start(&shop, webhook, place).await;
    let (text, newest) = (format!("{image}:1.0.0"), format!("{image}:1.1.0"));
    let created = shop.create_pod(&with_annotations(pod("web", &text), &[(INJECT, &text)])).await.unwrap();
    for container in ["app", "proxy", "proxy-init"] {
        assert_eq!(image_of(&created, container), newest, "{container}");
    }
    let applied = &created.annotations()[APPLIED];
    let mut entries: Vec<&str> = applied.split("; ").collect();
    entries.sort_unstable();
    let of = |container: &str| format!("{container}: 1.0.0 -> 1.1.0 (Image web)");
    assert_eq!(entries, [of("app"), of("proxy-init"), of("proxy")]);
    let expected: Vec<String> = saw.iter().map(|tag| format!("{image}:{tag}")).collect();
    assert_eq!(injector.saw("web"), expected, "who was called when");

    // Both webhooks see their own work and leave it.
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let again = shop.api::<Pod>().create(&dry, &resent(&created, "again")).await.unwrap();
    assert_eq!(&again.annotations()[APPLIED], applied);
    let both = [&created, &again].map(|pod| serde_json::to_value(resent(pod, "same")).unwrap());
    assert_eq!(both[0], both[1]);
}

#[tokio::test]
async fn what_another_webhook_adds_before_follows_its_image() {
    // It adds; kimup changes what it sees; it is called once more and changes nothing.
    check_injected_and_covered("p-before", "a-practices", "0", &["1.0.0", "1.1.0"]).await;
}

#[tokio::test]
async fn what_another_webhook_adds_afterwards_follows_its_image() {
    // kimup is called again for what was added.
    check_injected_and_covered("p-after", "z-practices", "-", &["1.1.0", "1.1.0"]).await;
}

#[tokio::test]
async fn a_mirror_pod_is_left_alone() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-mirror", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    let on_a_node = json!({"spec": {"nodeName": "node-0"}});
    let mut mirror = pod_with("mirror", &text, &on_a_node);
    // As the kubelet does it for a static Pod.
    let annotations = [("kubernetes.io/config.mirror", "abc"), ("kubernetes.io/config.source", "file"), IN];
    mirror = with_annotations(mirror, &annotations);
    let created = shop.create_pod(&mirror).await.unwrap();
    assert_eq!(image_of(&created, "app"), text);
    assert!(!created.annotations().contains_key(APPLIED));
    let plain = shop.create_pod(&pod_with("plain", &text, &on_a_node)).await.unwrap();
    assert_eq!(image_of(&plain, "app"), format!("{image}:1.1.0"), "without the mark it would be changed");
}

#[tokio::test]
async fn pods_whose_name_comes_later_are_changed() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-generate", &[IN], &[]).await;
    let (text, newest) = (format!("{image}:1.0.0"), format!("{image}:1.1.0"));
    let nameless = json!({"metadata": {"name": null, "generateName": "web-"}});
    let covered = pod_with("", &text, &nameless);
    let bare = with_annotations(covered.clone(), &[(POLICY, "semver"), (INTERVAL, "1h")]);
    let mut names = Vec::new();
    for asked in [&covered, &covered, &bare, &bare] {
        let created = eventually(DEADLINE, "the Pod is admitted", async || shop.create_pod(asked).await).await;
        assert_eq!(image_of(&created, "app"), newest);
        names.push(created.name_any());
    }
    names.sort();
    names.dedup();
    assert!(names.len() == 4 && names.iter().all(|name| name.starts_with("web-")), "{names:?}");
    // A ReplicaSet names its Pods that way, one without a Deployment too.
    let set = json!({
        "metadata": {"name": "set"},
        "spec": {"replicas": 2, "selector": {"matchLabels": {"app": "set"}}, "template": {
            "metadata": {"labels": {"app": "set"}}, "spec": {"containers": [{"name": "app", "image": text}]},
        }},
    });
    let set: ReplicaSet = serde_json::from_value(set).unwrap();
    shop.api::<ReplicaSet>().create(&PostParams::default(), &set).await.unwrap();
    for pod in shop.pods_run("set", 2, &newest).await {
        assert_eq!(pod.metadata.generate_name.as_deref(), Some("set-"));
    }
}

#[tokio::test]
async fn an_ephemeral_container_runs_what_was_asked_for() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-debug", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    shop.create_pod(&pod("web", &text)).await.unwrap();
    let before = shop.pods_run("web", 1, &format!("{image}:1.1.0")).await.remove(0);
    let flag = format!("--image={text}");
    let args = ["debug", "-n", &shop.namespace, "web", &flag, "-c", "debugger", "--attach=false"];
    bed.cluster.kubectl_ok(&args).await.unwrap();
    let after = shop.api::<Pod>().get("web").await.unwrap();
    let debuggers = after.spec.clone().unwrap().ephemeral_containers.unwrap();
    assert_eq!((debuggers.len(), debuggers[0].image.as_deref()), (1, Some(&*text)));
    assert_eq!(image_of(&after, "app"), format!("{image}:1.1.0"));
    assert_eq!(after.annotations()[APPLIED], before.annotations()[APPLIED]);
}

#[tokio::test]
async fn an_image_volume_is_data_and_stays() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-volume", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    let volumes = json!([{"name": "data", "image": {"reference": text, "pullPolicy": "IfNotPresent"}}]);
    let created = shop.create_pod(&pod_with("web", &text, &json!({"spec": {"volumes": volumes}}))).await.unwrap();
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"));
    let volumes = created.spec.unwrap().volumes.unwrap();
    let volume = volumes.iter().find(|volume| volume.name == "data").unwrap();
    assert_eq!(volume.image.as_ref().unwrap().reference.as_deref(), Some(&*text));
}

#[tokio::test]
async fn no_kind_of_pod_is_special() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-kinds", &[IN], &[]).await;
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let check = async |name: &str, spec: Value| {
        let asked = pod_with(name, &format!("{image}:1.0.0"), &json!({"spec": spec}));
        let created = shop.api::<Pod>().create(&dry, &asked).await.unwrap();
        assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"), "{name}");
        assert_eq!(created.annotations()[APPLIED], "app: 1.0.0 -> 1.1.0 (Image web)", "{name}");
        let (found, wanted) = (serde_json::to_value(created.spec).unwrap(), serde_json::to_value(asked.spec).unwrap());
        for key in spec.as_object().unwrap().keys() {
            assert_eq!(found[key], wanted[key], "{name}");
        }
    };
    check("host-network", json!({"hostNetwork": true, "hostPID": true, "hostIPC": true})).await;
    check("windows", json!({"os": {"name": "windows"}, "nodeSelector": {"kubernetes.io/os": "windows"}})).await;
    check("other-scheduler", json!({"schedulerName": "example", "priorityClassName": "system-node-critical"})).await;
    check("other-runtime", json!({"restartPolicy": "Never", "hostUsers": false, "enableServiceLinks": false})).await;
    let anywhere = json!([{"operator": "Exists"}]);
    check("tolerant", json!({"tolerations": anywhere, "terminationGracePeriodSeconds": 0})).await;
}

#[tokio::test]
async fn an_update_is_never_touched() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-update", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    let created = shop.create_pod(&pod("web", &text)).await.unwrap();
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"));
    let back = Patch::Strategic(json!({"spec": {"containers": [{"name": "app", "image": text}]}}));
    let updated = shop.api::<Pod>().patch("web", &PatchParams::default(), &back).await.unwrap();
    assert_eq!(image_of(&updated, "app"), text, "who may update a Pod decides");
    for _ in 0..2 {
        shop.sync("web").await;
    }
    assert_eq!(image_of(&shop.api::<Pod>().get("web").await.unwrap(), "app"), text);
}
