//! What people decide stays: `kubectl rollout undo` and `kubectl set image`.

use kimup::api::Held;
use serde_json::json;

use super::{count, create, nothing_happens, writes};
use crate::own::admits;
use crate::support::{Bed, Shop};

/// A Deployment `web` with an Image `img`, and what the registry has pushed.
struct Stage {
    bed: &'static Bed,
    shop: Shop,
    repository: String,
    image: String,
}

impl Stage {
    /// Pods on 1.1.0 that kimup never rolled, then stamps for 1.2.0 and 1.3.0.
    async fn new(name: &str) -> Self {
        let bed = Bed::shared().await;
        let registry = &bed.registries.open;
        registry.push_all(name, &["1.0.0", "1.1.0"]).await.unwrap();
        let image = registry.image(name);
        let shop = bed.shop(name, &[]).await;
        shop.create_image("img", &json!({"spec": {"image": image}})).await;
        admits(&shop, &format!("{image}:1.0.0"), &format!("{image}:1.1.0")).await;
        create(&shop, "Deployment", "web", &json!([{"name": "app", "image": format!("{image}:1.0.0")}])).await;
        let stage = Self { bed, shop, repository: name.to_owned(), image };
        stage.runs("1.1.0").await;
        stage.shop.settles("img", "1.1.0").await;
        stage.rolls_to("1.2.0").await;
        stage.rolls_to("1.3.0").await;
        stage
    }

    async fn runs(&self, tag: &str) {
        self.shop.pods_run("web", 2, &format!("{}:{tag}", self.image)).await;
    }

    async fn rolls_to(&self, tag: &str) {
        self.bed.registries.open.push(&self.repository, tag).await.unwrap();
        self.shop.sync("img").await;
        self.runs(tag).await;
        let status = self.shop.settles("img", tag).await;
        assert!(status.held.is_empty(), "{:?}", status.held);
        assert_eq!(status.workloads.as_deref(), Some("1/1"));
    }

    async fn kubectl(&self, args: &[&str]) {
        self.bed.cluster.kubectl_ok(&[&["-n", self.shop.namespace.as_str()], args].concat()).await.unwrap();
    }

    /// The Deployment runs `tag` because of a person and stays there; the Image says so, once.
    async fn is_held(&self, tag: &str, left: &str, why: &str, reason: &str) {
        self.runs(tag).await;
        let held = |h: &Held| (h.tag == tag && h.left == left).then(|| h.clone());
        let what = format!("shows the hold at {tag}");
        let status = self.shop.status_is("img", &what, |s| s.held.iter().any(|h| held(h).is_some())).await;
        let [held] = &status.held[..] else { panic!("one hold: {:?}", status.held) };
        assert_eq!((held.workload.as_str(), held.container.as_str()), ("Deployment/web", "app"));
        assert!(held.why.contains(why) && held.why.contains(left), "{}", held.why);
        assert!(held.since.parse::<jiff::Timestamp>().is_ok(), "{}", held.since);
        assert_eq!(status.workloads.as_deref(), Some("0/1, 1 held"));
        assert_eq!(status.tag.as_deref(), Some(left), "the Image itself goes nowhere");
        let before = writes(self.bed, &self.shop, "web");
        nothing_happens(&self.shop, "Deployment", "web", "img", 5).await;
        self.runs(tag).await;
        assert_eq!(writes(self.bed, &self.shop, "web"), before);
        let note = format!("stays at {tag}");
        for (kind, name) in [("Image", "img"), ("Deployment", "web")] {
            let events = self.shop.events(kind, name).await;
            assert_eq!(count(&events, &[&format!("{reason}: "), &note, left]), 1, "{kind}: {events:?}");
        }
    }
}

#[tokio::test]
async fn an_undone_rollout_stays_undone_until_a_newer_tag() {
    let stage = Stage::new("d-undo").await;
    stage.kubectl(&["rollout", "undo", "deployment/web"]).await;
    stage.is_held("1.2.0", "1.3.0", "an older revision was put back", "Held").await;
    stage.rolls_to("1.4.0").await;
    // Back to before kimup's first stamp: the record gives the Pods the tag they had then.
    stage.kubectl(&["rollout", "undo", "deployment/web", "--to-revision=1"]).await;
    stage.is_held("1.1.0", "1.4.0", "an older revision was put back", "Held").await;
    stage.rolls_to("1.5.0").await;
    // A person who takes the undo back ends the hold.
    stage.kubectl(&["rollout", "undo", "deployment/web"]).await;
    stage.is_held("1.1.0", "1.5.0", "an older revision was put back", "Held").await;
    stage.kubectl(&["rollout", "undo", "deployment/web"]).await;
    stage.runs("1.5.0").await;
    stage.shop.status_is("img", "holds nothing", |s| s.held.is_empty() && s.workloads.as_deref() == Some("1/1")).await;
}

#[tokio::test]
async fn an_older_text_stays_and_a_newer_one_is_taken() {
    let stage = Stage::new("d-text").await;
    let set = async |tag: &str| {
        let image = format!("app={}:{tag}", stage.image);
        stage.kubectl(&["set", "image", "deployment/web", &image]).await;
    };
    set("1.1.0").await;
    stage.is_held("1.1.0", "1.3.0", "its manifest names an older tag", "HeldByManifest").await;
    stage.rolls_to("1.4.0").await;

    // Newer than everything the registry lists: it counts for this workload alone.
    set("1.8.0").await;
    stage.runs("1.8.0").await;
    let before = writes(stage.bed, &stage.shop, "web");
    nothing_happens(&stage.shop, "Deployment", "web", "img", 5).await;
    stage.runs("1.8.0").await;
    let status = stage.shop.settles("img", "1.4.0").await;
    assert!(status.held.is_empty(), "{:?}", status.held);
    assert_eq!(writes(stage.bed, &stage.shop, "web"), before, "the text is what it runs");

    stage.rolls_to("1.9.0").await;
}
