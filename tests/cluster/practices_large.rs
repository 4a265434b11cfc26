//! Pods as large as the API server takes them.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{Api, PostParams};
use serde_json::{Map, Value, json};

use crate::optin::{APPLIED, IN, shop};
use crate::practices::pod_with;
use crate::practices_threats::Peer;
use crate::support::{Bed, DEADLINE, ENABLED, FAILURE_POLICY, image_of, pod};

/// Largest body of a request that the API server reads.
const MAX_REQUEST: usize = 3 << 20;
/// Most bytes of keys and values of an object's annotations together.
const MAX_ANNOTATIONS: usize = 256 << 10;

#[tokio::test]
async fn two_hundred_and_fifty_containers() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-many", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    let named = |prefix: &str, count: usize| -> Vec<Value> {
        (0..count).map(|n| json!({"name": format!("{prefix}-{n}"), "image": text})).collect()
    };
    let (regular, init) = (named("c", 250), named("i", 10));
    let many = pod_with("many", &text, &json!({"spec": {"containers": regular, "initContainers": init}}));
    let created = shop.create_pod(&many).await.unwrap();
    for container in regular.iter().chain(&init) {
        let name = container["name"].as_str().unwrap();
        assert_eq!(image_of(&created, name), format!("{image}:1.1.0"), "{name}");
    }
    assert_eq!(created.annotations()[APPLIED].split("; ").count(), 260);
}

/// A Pod whose request is as long as this.
fn of_size(text: &str, size: usize, filler: &str) -> Pod {
    let with = |value: &str| {
        pod_with(
            "large",
            text,
            &json!({"spec": {"containers": [
        {"name": "app", "image": text, "env": [{"name": "DATA", "value": value}]}]}}),
        )
    };
    let rest = size - serde_json::to_vec(&with("")).unwrap().len();
    with(&filler.repeat(rest))
}

#[tokio::test]
async fn the_largest_pod_that_the_api_server_takes() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-large", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let create = async |size: usize| shop.api::<Pod>().create(&dry, &of_size(&text, size, "x")).await;
    let created = create(MAX_REQUEST).await.unwrap();
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"));
    let error = create(MAX_REQUEST + 1).await.unwrap_err().to_string();
    assert!(error.contains("limit is 3145728"), "that was the largest: {error}");
    // What etcd takes besides is stored, changed.
    let created = shop.create_pod(&of_size(&text, 1_400_000, "x")).await.unwrap();
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"));
}

#[tokio::test]
async fn a_review_that_holds_the_largest_object_twice() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-twice", &[IN], &[]).await;
    let object = serde_json::to_value(of_size(&format!("{image}:1.0.0"), MAX_REQUEST, "x")).unwrap();
    let body = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u", "namespace": shop.namespace, "operation": "CREATE",
        "resource": {"group": "", "version": "v1", "resource": "pods"}, "object": object, "oldObject": object,
    }})
    .to_string();
    assert!(body.len() > 2 * MAX_REQUEST);
    let (status, text) = Peer::new(bed).post(body).await;
    let answer: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((status, answer["response"]["patchType"].as_str()), (200, Some("JSONPatch")), "{text}");
}

/// The API server writes `<` as six bytes, so a Pod of 3 MiB becomes a review of 18.
#[tokio::test]
async fn a_review_that_is_too_large_goes_by_the_failure_policy() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-too-large", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    let mut large = of_size(&text, MAX_REQUEST - 100, "<");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let error = shop.api::<Pod>().create(&dry, &large).await.unwrap_err().to_string();
    assert!(error.contains("failed calling webhook") && error.contains("kimup"), "{error}");
    large.annotations_mut().insert(FAILURE_POLICY.to_owned(), "ignore".to_owned());
    let created = shop.api::<Pod>().create(&dry, &large).await.unwrap();
    assert_eq!(image_of(&created, "app"), text);
    // Nobody else notices.
    let created = shop.create_pod(&pod("next", &text)).await.unwrap();
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"));
}

#[tokio::test]
async fn a_pod_whose_annotations_are_full_is_changed_all_the_same() {
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-full", &[IN], &[]).await;
    let text = format!("{image}:1.0.0");
    let filler = "x".repeat(MAX_ANNOTATIONS - "note".len());
    let full = pod_with("full", &text, &json!({"metadata": {"annotations": {"note": filler}}}));
    let created = shop.create_pod(&full).await.unwrap();
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"));
    assert!(!created.annotations().contains_key(APPLIED), "it would not fit");
}

/// This many annotations, with short keys.
fn crowd(count: usize) -> Map<String, Value> {
    (0..count).map(|n| (format!("x{n}"), json!(""))).collect()
}

/// For each Pod the API server evaluates kimup's conditions, whether anybody opted in or not.
#[tokio::test]
async fn a_stranger_with_many_annotations_costs_the_api_server_little() {
    const MANY: usize = 30_000;
    let bed = Bed::shared().await;
    let (shop, image) = shop(bed, "p-crowd", &[], &[]).await;
    let text = format!("{image}:1.0.0");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let create = async |namespace: &str, annotations: &Map<String, Value>| {
        let asked = pod_with("web", &text, &json!({"metadata": {"annotations": annotations}}));
        let pods: Api<Pod> = Api::namespaced(shop.client.clone(), namespace);
        let start = Instant::now();
        let created = eventually(DEADLINE, "an answer", async || pods.create(&dry, &asked).await).await;
        (start.elapsed(), image_of(&created, "app"))
    };
    // Where no condition is evaluated, and where one is; the best of ten rounds.
    let (mut outside, mut inside) = (Duration::MAX, Duration::MAX);
    for _ in 0..10 {
        outside = outside.min(create("kube-system", &crowd(MANY)).await.0);
        let (taken, image) = create(&shop.namespace, &crowd(MANY)).await;
        inside = inside.min(taken);
        assert_eq!(image, text);
    }
    assert!(inside < 4 * outside, "{inside:?} instead of {outside:?}");
    // Opted in by one key, however many others there are; for one container alone only among 2,000.
    let own = "enabled.kimup.cloudavenue.io/app";
    let cases = [(MANY, ENABLED, "1.1.0"), (1999, own, "1.1.0"), (2000, own, "1.0.0")];
    for (count, key, tag) in cases {
        let mut annotations = crowd(count);
        annotations.insert(key.to_owned(), json!("true"));
        assert_eq!(create(&shop.namespace, &annotations).await.1, format!("{image}:{tag}"), "{count} and {key}");
    }
}
