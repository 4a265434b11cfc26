//! Scenario f: Pods that cannot be answered, because nothing is known or because kimup is down.

use kimup_testbed::{Cluster, FaultReply, KimupProcess, eventually};
use serde_json::{Value, json};

use crate::support::{
    Bed, DEADLINE, DEPLOYED, ENABLED, FAILURE_POLICY, Registries, Shop, configured, image_of, options, pod,
    with_annotations,
};

type Pairs = &'static [(&'static str, &'static str)];

const IN: (&str, &str) = (ENABLED, "true");
const FAIL: (&str, &str) = (FAILURE_POLICY, "fail");
const IGNORE: (&str, &str) = (FAILURE_POLICY, "ignore");

/// What kubectl shows of a Pod's creation: whether it came to be, and stderr.
async fn kubectl_create(cluster: &Cluster, namespace: &str, pod: &Value) -> (bool, String) {
    let output = cluster.kubectl_with_stdin(&["-n", namespace, "create", "-f", "-"], &pod.to_string()).await.unwrap();
    (output.success, output.stderr)
}

#[tokio::test]
async fn an_image_without_a_tag_denies_or_warns() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.scripted;
    let repository = "f-unknown";
    registry.set_answer(repository, FaultReply::new(503, "later"));
    let image = registry.image(repository);
    let text = format!("{image}:1.0.0");
    let labelled = Shop::new(bed.cluster, "f-labelled", &[IN, IGNORE], &[]).await;
    let annotated = Shop::new(bed.cluster, "f-annotated", &[], &[IGNORE]).await;
    let plain = bed.shop("f-plain", &[]).await;
    for shop in [&labelled, &annotated, &plain] {
        shop.create_image("img", &json!({"spec": {"image": image}})).await;
        shop.status_is("img", "has failed", |s| s.result == Some(kimup::api::SyncResult::RegistryError)).await;
    }
    let check = async |shop: &Shop, annotations: &[(&str, &str)], allowed: bool| {
        let name = format!("p{:x}", fastrand::u32(..));
        let pod = serde_json::to_value(with_annotations(pod(&name, &text), annotations)).unwrap();
        let (success, said) = kubectl_create(bed.cluster, &shop.namespace, &pod).await;
        assert_eq!(success, allowed, "{} {annotations:?}: {said}", shop.namespace);
        for part in ["container \"app\"", &format!("Image {}/img has no tag yet", shop.namespace), "503"] {
            assert!(said.contains(part), "{part:?} is missing: {said}");
        }
        if allowed {
            assert!(said.starts_with("Warning: kimup: "), "{said}");
            assert!(said.contains("keeps its own image"), "{said}");
            let created = shop.api::<k8s_openapi::api::core::v1::Pod>().get(&name).await.unwrap();
            assert_eq!(image_of(&created, "app"), text);
        } else {
            let next =
                [format!("kubectl describe image img -n {}", shop.namespace), format!("{FAILURE_POLICY}: ignore")];
            assert!(next.iter().all(|part| said.contains(part)), "{said}");
        }
    };
    check(&plain, &[IN], false).await;
    check(&plain, &[IN, FAIL], false).await;
    check(&plain, &[IN, IGNORE], true).await;
    check(&labelled, &[], true).await;
    check(&labelled, &[FAIL], false).await;
    check(&annotated, &[IN], true).await;
    check(&annotated, &[IN, FAIL], false).await;
    // Who is not opted in, or whom no Image covers, is none of kimup's business.
    assert_eq!(image_of(&plain.create_pod(&pod("out", &text)).await.unwrap(), "app"), text);
    let other = with_annotations(pod("other", "other.invalid/app:1"), &[IN]);
    assert_eq!(image_of(&plain.create_pod(&other).await.unwrap(), "app"), "other.invalid/app:1");

    // As soon as the registry answers, Pods get the newest tag, without anybody asking.
    registry.set_tags(repository, &["1.0.0", "1.2.0"]);
    plain.settles("img", "1.2.0").await;
    let created = plain.create_pod(&with_annotations(pod("late", &text), &[IN])).await.unwrap();
    assert_eq!(image_of(&created, "app"), format!("{image}:1.2.0"));
}

#[tokio::test]
async fn while_kimup_is_down_the_failure_policy_decides() {
    let cluster = Cluster::start().await.unwrap();
    let registries = Registries::start().await;
    cluster.apply_deploy(DEPLOYED).await.unwrap();
    let mut kimup = KimupProcess::start(options(&cluster, &registries).await).await.unwrap();
    configured(&cluster).await;
    registries.scripted.set_tags("app", &["1.0.0", "1.1.0"]);
    let image = registries.scripted.image("app");
    let plain = Shop::new(&cluster, "plain", &[], &[]).await;
    let opted_in = Shop::new(&cluster, "opted-in", &[IN], &[]).await;
    let ignoring = Shop::new(&cluster, "ignoring", &[IN, IGNORE], &[]).await;
    for shop in [&plain, &opted_in, &ignoring] {
        shop.create_image("img", &json!({"spec": {"image": image}})).await;
        shop.settles("img", "1.1.0").await;
    }
    let text = format!("{image}:1.0.0");
    let cases: [(&Shop, Pairs, bool); 8] = [
        (&plain, &[], true),
        (&plain, &[IN], false),
        (&plain, &[IN, IGNORE], true),
        (&opted_in, &[], false),
        (&opted_in, &[IGNORE], true),
        (&ignoring, &[], true),
        (&ignoring, &[FAIL], false),
        (&ignoring, &[(ENABLED, "false")], true),
    ];
    kimup.kill();
    for (number, (shop, annotations, allowed)) in cases.into_iter().enumerate() {
        let pod = with_annotations(pod(&format!("down-{number}"), &text), annotations);
        match (shop.create_pod(&pod).await, allowed) {
            (Ok(created), true) => assert_eq!(image_of(&created, "app"), text),
            (Err(error), false) => assert!(error.contains("kimup.cloudavenue.io"), "who denied: {error}"),
            (other, _) => panic!("{} {annotations:?}: {other:?}", shop.namespace),
        }
    }
    let kimup = kimup.start_again().await.unwrap();
    // It listens at another port now, and says so once the Lease of the killed one has expired.
    let again = async || opted_in.create_pod(&pod("again", &text)).await;
    let created = eventually(DEADLINE, "Pods are admitted again", again).await;
    assert_eq!(image_of(&created, "app"), format!("{image}:1.1.0"));
    drop(kimup);
}
