//! A bad image under the same tag: its digest alone is rejected.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use k8s_openapi::api::core::v1::Pod;
use kimup::api::{Image, ImageStatus};
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::own::READY_AFTER;
use crate::support::{Bed, DEADLINE, ENABLED, Shop, image_of, is_ready};

/// Plays the kubelet: Pods run, unless their digest is one of the bad ones.
#[derive(Clone, Default)]
pub struct Kubelet {
    pub bad: Arc<Mutex<BTreeSet<String>>>,
}

impl Kubelet {
    pub async fn runs(self, pods: Api<Pod>) {
        loop {
            for pod in pods.list(&ListParams::default()).await.into_iter().flatten() {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                let image = image_of(&pod, "app");
                if phase != Some("Pending") || pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) {
                    continue;
                }
                let bad = self.bad.lock().unwrap().iter().any(|digest| image.ends_with(digest));
                let patch = status(&pod, bad);
                // It may be gone by now.
                let _ = pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    }
}

/// What the kubelet says of a Pod.
fn status(pod: &Pod, bad: bool) -> Value {
    let ready = if bad { "False" } else { "True" };
    let conditions: Vec<Value> =
        ["Ready", "ContainersReady"].iter().map(|kind| json!({"type": kind, "status": ready})).collect();
    let waiting = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}});
    let state = if bad { waiting } else { json!({"running": {}}) };
    let (image, restarts) = (image_of(pod, "app"), u8::from(bad));
    let container =
        json!({"name": "app", "image": image, "imageID": "", "ready": !bad, "restartCount": restarts, "state": state});
    json!({"status": {"phase": "Running", "conditions": conditions, "containerStatuses": [container]}})
}

struct Stage {
    bed: &'static Bed,
    shop: Shop,
    repository: String,
    image: String,
    kubelet: Kubelet,
}

impl Stage {
    /// An Image `img` and Deployments of one Pod each that run the digest of this tag.
    async fn new(repository: &str, spec: &Value, tag: &str, workloads: &[&str]) -> (Self, String) {
        let bed = Bed::shared().await;
        let first = bed.registries.open.push(repository, tag).await.unwrap();
        let (image, shop) = (bed.registries.open.image(repository), bed.shop(repository, &[]).await);
        let kubelet = Kubelet::default();
        tokio::spawn(kubelet.clone().runs(shop.api()));
        let mut patch = json!({"spec": {"image": image, "rollout": {"deadline": "10s"}}});
        json_patch::merge(&mut patch["spec"], spec);
        shop.create_image("img", &patch).await;
        let annotations = json!({ENABLED: "true", READY_AFTER: "1h"});
        let one = json!({"spec": {"replicas": 1, "template": {"metadata": {"annotations": annotations}}}});
        for name in workloads {
            shop.create_deployment(name, &format!("{image}:{tag}"), &one).await;
        }
        let stage = Self { bed, shop, repository: repository.to_owned(), image, kubelet };
        stage.runs(tag, &first).await;
        (stage, first)
    }

    /// Moves a tag to another digest; `bad`: one that does not run.
    async fn push(&self, tag: &str, bad: bool) -> String {
        let digest = self.bed.registries.open.push(&self.repository, tag).await.unwrap();
        if bad {
            self.kubelet.bad.lock().unwrap().insert(digest.clone());
        }
        self.shop.sync("img").await;
        digest
    }

    async fn soaks(&self, soak: &str) {
        let patch = json!({"spec": {"rollout": {"soak": soak}}});
        self.shop.api::<Image>().patch("img", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// A Pod that ran crashes.
    async fn fail(&self, pod: &Pod) {
        let pods = self.shop.api::<Pod>();
        pods.patch_status(&pod.name_any(), &PatchParams::default(), &Patch::Merge(status(pod, true))).await.unwrap();
    }

    async fn runs(&self, tag: &str, digest: &str) -> ImageStatus {
        let wanted = format!("{}:{tag}@{digest}", self.image);
        eventually(DEADLINE, &format!("all run {wanted}"), async || {
            let pods = self.shop.pods().await;
            let images: Vec<String> = pods.iter().map(|pod| image_of(pod, "app")).collect();
            let right = !images.is_empty() && images.iter().all(|image| *image == wanted);
            if right && pods.iter().all(is_ready) { Ok(()) } else { Err(format!("{images:?}")) }
        })
        .await;
        let settled = |s: &ImageStatus| s.tag.as_deref() == Some(tag) && s.digest.as_deref() == Some(digest);
        self.shop.status_is("img", &format!("is at {digest}"), |s| settled(s) && s.rollout.is_none()).await
    }

    /// The digest under a tag goes bad: back to the one before, and there it stays until the next.
    async fn goes_back(&self, tag: &str, first: &str) {
        let bad = self.push(tag, true).await;
        let of_digest = |s: &ImageStatus| s.rejected.iter().any(|r| r.tag == format!("{tag}@{bad}"));
        self.shop.status_is("img", "rejects the digest", of_digest).await;
        let status = self.runs(tag, first).await;
        let [rejected] = &status.rejected[..] else { panic!("one: {:?}", status.rejected) };
        assert_eq!(rejected.workload, "Deployment/web");
        assert!(rejected.reason.contains("CrashLoopBackOff"), "{}", rejected.reason);
        let entry = &status.history[0];
        let told = (entry.tag.as_str(), entry.digest.as_deref(), entry.outcome.as_str());
        assert_eq!(told, (tag, Some(first), "RolledBack"));
        let revisions = self.shop.revisions("web").await;
        for _ in 0..3 {
            let status = self.shop.sync("img").await;
            assert_eq!((status.digest.as_deref(), &status.rollout), (Some(first), &None));
        }
        self.runs(tag, first).await;
        assert_eq!(self.shop.revisions("web").await, revisions, "it is not tried again");
    }
}

pub fn follows() -> Value {
    json!({"baseTag": "latest", "rules": [{"name": "f", "type": "digest", "actions": [{"type": "apply"}]}]})
}

#[tokio::test]
async fn a_bad_digest_is_rejected_and_not_its_tag() {
    let (stage, first) = Stage::new("dig-follow", &follows(), "latest", &["web"]).await;
    stage.goes_back("latest", &first).await;
    let third = stage.push("latest", false).await;
    let status = stage.runs("latest", &third).await;
    assert_eq!(status.rejected.len(), 1, "{:?}", status.rejected);
}

/// The pinned digest is gone from the registry, and what stands there now is bad: there is the tag before it.
#[tokio::test]
async fn a_bad_digest_of_a_pinned_tag_is_rejected_and_not_the_tag() {
    let (stage, first) = Stage::new("dig-pin", &json!({"pinDigest": true}), "1.0.0", &["web"]).await;
    let second = stage.push("1.1.0", false).await;
    stage.runs("1.1.0", &second).await;
    let bad = stage.push("1.1.0", true).await;
    stage.bed.registries.open.delete_tag(&stage.repository, &second).await.unwrap();
    stage.shop.sync("img").await;
    let of_digest = |s: &ImageStatus| s.rejected.iter().any(|r| r.tag == format!("1.1.0@{bad}"));
    stage.shop.status_is("img", "rejects the digest", of_digest).await;
    stage.runs("1.0.0", &first).await;
    for _ in 0..3 {
        let status = stage.shop.sync("img").await;
        assert_eq!((status.digest.as_deref(), status.rollout), (Some(&*first), None));
    }
    let third = stage.push("1.1.0", false).await;
    stage.runs("1.1.0", &third).await;
}

/// The others carry a stamp of the same tag: that is no sign that they followed.
#[tokio::test]
async fn a_digest_that_fails_while_it_soaks_is_rejected() {
    let mut spec = follows();
    spec["rollout"] = json!({"soak": "1h"});
    let (stage, first) = Stage::new("dig-soak", &spec, "latest", &["api", "web"]).await;
    let soaked = |s: &ImageStatus| s.rollout.as_ref().is_some_and(|r| r.first_ready_at.is_some());
    let second = stage.push("latest", false).await;
    stage.shop.status_is("img", "soaks", soaked).await;
    // From stamp to stamp, so that each carries one of the tag: the first one's soak is long.
    stage.soaks("0s").await;
    stage.runs("latest", &second).await;
    stage.soaks("1h").await;

    let third = stage.push("latest", false).await;
    stage.shop.status_is("img", "soaks again", soaked).await;
    let pods = stage.shop.pods().await;
    let new: Vec<&Pod> = pods.iter().filter(|pod| image_of(pod, "app").ends_with(&third)).collect();
    let [failing] = new[..] else { panic!("one goes first: {}", new.len()) };
    stage.kubelet.bad.lock().unwrap().insert(third.clone());
    stage.fail(failing).await;
    let of_digest = |s: &ImageStatus| s.rejected.iter().any(|r| r.tag == format!("latest@{third}"));
    stage.shop.status_is("img", "rejects the digest", of_digest).await;
    stage.runs("latest", &second).await;
    assert_ne!(first, second);
}
