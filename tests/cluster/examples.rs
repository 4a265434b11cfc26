//! Scenario a, first half: the manifests of `examples/`, which are the seed's, reach `Success`.

use kimup::api::{ImageStatus, SyncResult};

use crate::support::{Bed, Shop, USER};

const TAGS: [&str; 5] = ["v1.0.0", "v1.0.3", "v1.2.0", "3.18.0", "3.20.1"];

/// Applies a manifest as a person does, with other image names; the Image it makes settles on this tag.
async fn reaches_success(bed: &Bed, shop: &Shop, manifest: &str, names: (&str, &str), tag: &str) -> ImageStatus {
    let line = format!("  image: {}\n", names.0);
    assert!(manifest.contains(&line), "{manifest}");
    let manifest = manifest.replace(&line, &format!("  image: {}\n", names.1));
    bed.cluster.apply(&["-n", &shop.namespace], &manifest).await.unwrap();
    let status = shop.settles("image-sample", tag).await;
    assert_eq!(status.result, Some(SyncResult::Success));
    let args = ["-n", &shop.namespace, "wait", "--for=condition=Ready", "image/image-sample", "--timeout=60s"];
    bed.cluster.kubectl_ok(&args).await.unwrap();
    status
}

#[tokio::test]
async fn the_basic_example_and_its_deployment() {
    let bed = Bed::shared().await;
    bed.registries.open.push_all("a-basic", &TAGS).await.unwrap();
    let image = bed.registries.open.image("a-basic");
    let shop = bed.shop("a-basic", &[]).await;
    let manifest = include_str!("../../examples/basic.yaml");
    reaches_success(bed, &shop, manifest, ("alpine", &image), "3.20.1").await;
    let deployment = include_str!("../../examples/deployment.yaml");
    let text = "image: alpine:3.18.0\n";
    assert!(deployment.contains(text), "{deployment}");
    let deployment = deployment.replace(text, &format!("image: {image}:3.18.0\n"));
    bed.cluster.apply(&["-n", &shop.namespace], &deployment).await.unwrap();
    shop.pods_run("web", 2, &format!("{image}:3.20.1")).await;
    assert_eq!(shop.revisions("web").await, 1, "Pods that start right are not rolled");
}

#[tokio::test]
async fn the_private_example_with_its_secret() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.private;
    registry.push_all("a-private", &TAGS).await.unwrap();
    let shop = bed.shop("a-private", &[]).await;
    // As the comment in the manifest says.
    let (server, user, password) = (
        format!("--docker-server={}", registry.host()),
        format!("--docker-username={}", USER.0),
        format!("--docker-password={}", USER.1),
    );
    let args = ["-n", &shop.namespace, "create", "secret", "docker-registry", "registry-local"];
    bed.cluster.kubectl_ok(&[&args[..], &[&server, &user, &password]].concat()).await.unwrap();
    let manifest = include_str!("../../examples/private-registry.yaml");
    let image = registry.image("a-private");
    reaches_success(bed, &shop, manifest, ("custom-registry.io/image", &image), "v1.2.0").await;
}

#[tokio::test]
async fn the_self_signed_example() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.tls;
    registry.push_all("a-self-signed", &TAGS).await.unwrap();
    let image = registry.image("a-self-signed");
    let shop = bed.shop("a-self-signed", &[]).await;
    let manifest = include_str!("../../examples/self-signed.yaml");
    reaches_success(bed, &shop, manifest, ("custom-registry.io/image", &image), "v1.2.0").await;

    // Without that one field the same registry is not trusted.
    let strict = bed.shop("a-self-signed-strict", &[]).await;
    let manifest = manifest.replace("  insecureSkipTLSVerify: true\n", "").replace("custom-registry.io/image", &image);
    assert!(!manifest.contains("insecure"));
    bed.cluster.apply(&["-n", &strict.namespace], &manifest).await.unwrap();
    let wanted = |s: &ImageStatus| s.result == Some(SyncResult::RegistryError);
    let status = strict.status_is("image-sample", "the certificate is refused", wanted).await;
    assert_eq!(status.tag, None);
    let message = &status.conditions[0].message;
    assert!(message.contains(&registry.host()) && message.contains("(tls)"), "{message}");
}
