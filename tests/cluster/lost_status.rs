//! Images restored without their status, made again, pointed elsewhere or given another starting tag: never backwards.

use kimup::api::Image;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{Bed, ENABLED, Shop};

/// A namespace with the Image `web` and the Deployment `web` on the newest of three tags; its repository's path.
async fn settled(bed: &Bed, name: &str) -> (Shop, String) {
    let shop = bed.shop(name, &[(ENABLED, "true")]).await;
    let path = format!("{}/app", shop.namespace);
    let scripted = &bed.registries.scripted;
    scripted.set_tags(&path, &["1.0.0", "1.1.0"]);
    shop.create_image("web", &image(&scripted.image(&path))).await;
    shop.settles("web", "1.1.0").await;
    shop.create_deployment("web", &format!("{}:1.0.0", scripted.image(&path)), &json!({})).await;
    shop.pods_run("web", 2, &format!("{}:1.1.0", scripted.image(&path))).await;
    scripted.set_tags(&path, &["1.0.0", "1.1.0", "1.2.0"]);
    shop.sync("web").await;
    shop.settles("web", "1.2.0").await;
    shop.pods_run("web", 2, &format!("{}:1.2.0", scripted.image(&path))).await;
    (shop, path)
}

fn image(repository: &str) -> Value {
    json!({"spec": {"image": repository, "rollout": {"minInterval": "0s"}}})
}

/// Nothing moves in further syncs, and a newer tag goes on from 1.2.0.
async fn goes_on(bed: &Bed, shop: &Shop, path: &str) {
    let scripted = &bed.registries.scripted;
    let revisions = shop.revisions("web").await;
    for _ in 0..3 {
        assert_eq!(shop.sync("web").await.tag.as_deref(), Some("1.2.0"));
    }
    shop.settles("web", "1.2.0").await;
    assert_eq!(shop.revisions("web").await, revisions);
    scripted.set_tags(path, &["1.0.0", "1.3.0"]);
    shop.sync("web").await;
    shop.settles("web", "1.3.0").await;
    shop.pods_run("web", 2, &format!("{}:1.3.0", scripted.image(path))).await;
    assert_eq!(shop.revisions("web").await, revisions + 1);
}

#[tokio::test]
async fn an_image_restored_without_status_goes_on_from_its_stamps() {
    let bed = Bed::shared().await;
    let (shop, path) = settled(bed, "restored").await;
    let scripted = &bed.registries.scripted;
    // The registry has lost the newest tag meanwhile: what the stamps say is all that is left of it.
    scripted.set_tags(&path, &["1.0.0", "1.1.0"]);
    shop.api::<Image>().delete("web", &DeleteParams::default()).await.unwrap();
    shop.create_image("web", &image(&scripted.image(&path))).await;
    let status = shop.settles("web", "1.2.0").await;
    assert!(status.conditions.iter().any(|c| c.reason == "TagMissing"), "{:?}", status.conditions);
    goes_on(bed, &shop, &path).await;
}

#[tokio::test]
async fn a_status_that_is_emptied_comes_back() {
    let bed = Bed::shared().await;
    let (shop, path) = settled(bed, "emptied").await;
    bed.registries.scripted.set_tags(&path, &["1.0.0", "1.1.0"]);
    let empty = Patch::Merge(json!({"status": null}));
    shop.api::<Image>().patch_status("web", &PatchParams::default(), &empty).await.unwrap();
    shop.settles("web", "1.2.0").await;
    goes_on(bed, &shop, &path).await;
}

#[tokio::test]
async fn another_repository_starts_anew() {
    let bed = Bed::shared().await;
    let (shop, path) = settled(bed, "moved").await;
    let (scripted, other) = (&bed.registries.scripted, format!("{path}-v2"));
    // Behind the tags of the first: they say nothing of this one.
    scripted.set_tags(&other, &["0.1.0", "0.2.0"]);
    let change = Patch::Merge(json!({"spec": {"image": scripted.image(&other)}}));
    shop.api::<Image>().patch("web", &PatchParams::default(), &change).await.unwrap();
    let status = shop.settles("web", "0.2.0").await;
    assert_eq!(status.history.len(), 1, "{:?}", status.history);
    assert_eq!(status.workloads, None);
    // Nobody covers the first repository any more: what runs, runs on.
    let revisions = shop.revisions("web").await;
    shop.create_deployment("next", &format!("{}:0.1.0", scripted.image(&other)), &json!({})).await;
    shop.pods_run("next", 2, &format!("{}:0.2.0", scripted.image(&other))).await;
    shop.sync("web").await;
    shop.pods_run("web", 2, &format!("{}:1.2.0", scripted.image(&path))).await;
    assert_eq!(shop.revisions("web").await, revisions);
}

#[tokio::test]
async fn a_raised_starting_tag_becomes_current_and_a_lowered_one_does_not() {
    let bed = Bed::shared().await;
    let (shop, path) = settled(bed, "raised").await;
    let scripted = &bed.registries.scripted;
    // No rule of the Image goes to another major version.
    scripted.set_tags(&path, &["1.0.0", "1.2.0", "2.0.0", "2.0.1"]);
    assert_eq!(shop.sync("web").await.tag.as_deref(), Some("1.2.0"));
    let base = async |tag: &str| {
        let change = Patch::Merge(json!({"spec": {"baseTag": tag}}));
        let image = shop.api::<Image>().patch("web", &PatchParams::default(), &change).await.unwrap();
        let seen = image.metadata.generation;
        shop.status_is("web", "has seen the starting tag", |s| s.observed_generation == seen).await;
    };
    base("2.0.0").await;
    shop.settles("web", "2.0.1").await;
    shop.pods_run("web", 2, &format!("{}:2.0.1", scripted.image(&path))).await;
    base("1.0.0").await;
    let revisions = shop.revisions("web").await;
    for _ in 0..3 {
        assert_eq!(shop.sync("web").await.tag.as_deref(), Some("2.0.1"));
    }
    assert_eq!(shop.revisions("web").await, revisions);
}
