//! Digests that are followed or pinned, and tags that do not run on the cluster's Nodes.

use kimup::api::ImageStatus;
use kube::api::{Api, Patch, PatchParams};
use serde_json::{Value, json};

use crate::support::{Bed, Shop, opted_in};

struct Stage {
    bed: &'static Bed,
    shop: Shop,
    repository: String,
    image: String,
}

impl Stage {
    /// An Image `img` with this spec, and a Deployment `web` with this tag in its text.
    async fn new(repository: &str, spec: &Value, tag: &str) -> Self {
        let bed = Bed::shared().await;
        let image = bed.registries.open.image(repository);
        let shop = bed.shop(repository, &[]).await;
        let mut patch = json!({"spec": {"image": image}});
        json_patch::merge(&mut patch["spec"], spec);
        shop.create_image("img", &patch).await;
        shop.create_deployment("web", &format!("{image}:{tag}"), &opted_in()).await;
        Self { bed, shop, repository: repository.to_owned(), image }
    }

    async fn push(&self, tag: &str) -> String {
        self.bed.registries.open.push(&self.repository, tag).await.unwrap()
    }

    async fn delete(&self, tag: &str) {
        self.bed.registries.open.delete_tag(&self.repository, tag).await.unwrap();
    }

    /// The Pods run this tag and digest, and the Image has settled there.
    async fn runs(&self, tag: &str, digest: &str) -> ImageStatus {
        self.shop.pods_run("web", 2, &format!("{}:{tag}@{digest}", self.image)).await;
        let settled = |s: &ImageStatus| s.tag.as_deref() == Some(tag) && s.digest.as_deref() == Some(digest);
        let what = format!("settles on {tag}@{digest}");
        self.shop.status_is("img", &what, |s| settled(s) && s.rollout.is_none()).await
    }

    /// How many Events on the Image have all these words.
    async fn events(&self, words: &[&str]) -> usize {
        let events = self.shop.events("Image", "img").await;
        events.iter().filter(|event| words.iter().all(|word| event.contains(word))).count()
    }
}

fn follows(tag: &str) -> Value {
    json!({"baseTag": tag, "rules": [{"name": "follow", "type": "digest", "actions": [{"type": "apply"}]}]})
}

fn ready(status: &ImageStatus) -> String {
    status.conditions.iter().find(|c| c.type_ == "Ready").map(|c| c.message.clone()).unwrap_or_default()
}

#[tokio::test]
async fn a_digest_that_moves_under_its_tag_rolls() {
    let registry = &Bed::shared().await.registries.open;
    let first = registry.push("n-follow", "latest").await.unwrap();
    let stage = Stage::new("n-follow", &follows("latest"), "latest").await;
    stage.runs("latest", &first).await;
    assert_eq!(stage.shop.revisions("web").await, 1, "Pods that start right are not rolled");

    let second = stage.push("latest").await;
    stage.shop.sync("img").await;
    let status = stage.runs("latest", &second).await;
    let history: Vec<_> =
        status.history.iter().map(|h| (h.tag.as_str(), h.from.as_deref(), h.digest.as_deref())).collect();
    assert_eq!(history, [("latest", Some("latest"), Some(&*second)), ("latest", None, Some(&*first))]);
    stage.shop.sync("img").await; // the Events of a turn follow its status
    let moved = format!("latest@{} -> latest@{} by rule follow", &first[..19], &second[..19]);
    assert_eq!(stage.events(&["TagSelected", &moved]).await, 1);
    assert_eq!(stage.events(&["RolloutSettled", &second[..19]]).await, 1);
    assert_eq!(stage.shop.revisions("web").await, 2);

    // Undone by a person: it stays, until the digest moves again.
    let undo = ["-n", &stage.shop.namespace, "rollout", "undo", "deployment/web", "--to-revision=1"];
    stage.bed.cluster.kubectl_ok(&undo).await.unwrap();
    let held =
        |s: &ImageStatus| s.held.iter().any(|h| h.left == format!("latest@{second}") && h.tag.contains("latest"));
    stage.shop.status_is("img", "holds the first digest", held).await;
    stage.shop.pods_run("web", 2, &format!("{}:latest@{first}", stage.image)).await;
    stage.shop.sync("img").await;
    stage.shop.pods_run("web", 2, &format!("{}:latest@{first}", stage.image)).await;
    let third = stage.push("latest").await;
    stage.shop.sync("img").await;
    assert!(stage.runs("latest", &third).await.held.is_empty());

    // The tag goes: what runs is kept.
    stage.delete("latest").await;
    stage.push("other").await;
    assert!(ready(&stage.shop.sync("img").await).contains("no longer lists it"));
    stage.runs("latest", &third).await;
}

#[tokio::test]
async fn a_pinned_digest_is_kept_until_it_is_gone() {
    let registry = &Bed::shared().await.registries.open;
    let first = registry.push("n-pin", "1.0.0").await.unwrap();
    let stage = Stage::new("n-pin", &json!({"pinDigest": true}), "1.0.0").await;
    stage.runs("1.0.0", &first).await;
    let newer = stage.push("1.1.0").await;
    stage.shop.sync("img").await;
    stage.runs("1.1.0", &newer).await;
    assert_eq!(stage.shop.revisions("web").await, 2);

    let moved = stage.push("1.1.0").await;
    stage.shop.sync("img").await;
    stage.runs("1.1.0", &newer).await;
    assert_eq!(stage.shop.revisions("web").await, 2, "a moved tag is not followed");

    stage.delete(&newer).await;
    stage.shop.sync("img").await;
    stage.runs("1.1.0", &moved).await;
    assert_eq!(stage.events(&["DigestGone", &newer, &moved]).await, 1);

    // Nothing to pin: Pods that run are left alone.
    stage.delete(&moved).await;
    stage.shop.sync("img").await;
    let status = stage.shop.status_is("img", "knows no digest", |s| s.digest.is_none()).await;
    assert_eq!((status.tag.as_deref(), status.rollout), (Some("1.1.0"), None));
    stage.shop.sync("img").await;
    stage.shop.pods_run("web", 2, &format!("{}:1.1.0@{moved}", stage.image)).await;
    assert_eq!(
        (stage.events(&["DigestGone", &moved, "without a digest"]).await, stage.events(&["DigestGone"]).await),
        (1, 2)
    );
    let back = stage.push("1.1.0").await;
    stage.shop.sync("img").await;
    stage.runs("1.1.0", &back).await;
}

#[tokio::test]
async fn a_tag_that_does_not_run_here_is_passed_over() {
    let registry = &Bed::shared().await.registries.open;
    let first = registry.push("n-arch", "1.0.0").await.unwrap();
    registry.push_for("n-arch", "1.1.0", "arm64").await.unwrap();
    let stage = Stage::new("n-arch", &json!({}), "1.0.0").await;
    let run = |tag: &str| format!("{}:{tag}", stage.image);
    stage.shop.pods_run("web", 2, &run("1.0.0")).await;
    let passed_over = |s: &ImageStatus| ready(s).contains("1.1.0 passed over: no linux/amd64");
    let status = stage.shop.status_is("img", "says why", passed_over).await;
    assert_eq!((status.tag.as_deref(), status.digest.as_deref()), (Some("1.0.0"), Some(&*first)));
    assert!(passed_over(&stage.shop.sync("img").await));

    // Pushed again, for these Nodes.
    let second = stage.push("1.1.0").await;
    assert!(!passed_over(&stage.shop.sync("img").await));
    stage.shop.pods_run("web", 2, &run("1.1.0")).await;
    assert_eq!(stage.shop.settles("img", "1.1.0").await.digest, Some(second));

    // The user's own list counts instead of the Nodes.
    let images: Api<kimup::api::Image> = stage.shop.api();
    let platforms = Patch::Merge(json!({"spec": {"platforms": ["linux/arm64"]}}));
    images.patch("img", &PatchParams::default(), &platforms).await.unwrap();
    stage.push("1.2.0").await;
    registry.push_for("n-arch", "1.3.0", "arm64").await.unwrap();
    registry.push_for("n-arch", "1.4.0", "s390x").await.unwrap();
    let status = stage.shop.sync("img").await;
    assert!(ready(&status).contains("1.4.0 passed over: no linux/arm64"), "{}", ready(&status));
    stage.shop.pods_run("web", 2, &run("1.3.0")).await;
    stage.shop.settles("img", "1.3.0").await;
}
