//! What a workload whose rollout fails means for the others of its group: they wait for it no longer than they must.

use std::time::{Duration, Instant};

use jiff::{Timestamp, ToSpan};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kimup::api::annotated::image_name;
use kimup::api::{Held, HeldBy, Image, ImageStatus};
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::own::READY_AFTER;
use crate::rollback::{BROKEN, OURS, Stage, condition, get, patch, stamp};
use crate::support::{Bed, DEADLINE, ENABLED, Shop, opted_in};

const CANARY: &str = "kimup.cloudavenue.io/canary";
const REJECT: &str = "kimup.cloudavenue.io/reject";
const POLICY: &str = "kimup.cloudavenue.io/policy";

async fn edit(shop: &Shop, image: &str, spec: &Value) {
    let patch = Patch::Merge(json!({"spec": spec}));
    shop.api::<Image>().patch(image, &PatchParams::default(), &patch).await.unwrap();
}

async fn pause(shop: &Shop, name: &str, paused: bool) {
    patch(shop, "Deployment", name, &json!({"spec": {"paused": paused}})).await;
}

fn stalled(status: &ImageStatus) -> String {
    condition(status, "Stalled")
}

/// Syncs again and again for a while: longer than what must not happen would take.
async fn for_a_while(shop: &Shop, image: &str, seconds: u64, check: impl Fn(&ImageStatus)) {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(seconds) {
        check(&shop.sync(image).await);
    }
}

/// Whom the new tag needs first waits for the place of one that failed, and that one for its turn: neither may.
#[tokio::test]
async fn a_group_gets_past_a_workload_whose_rollout_failed() {
    let stage = Stage::new("gf-stuck", &json!({"rollout": {"deadline": OURS, "minInterval": "0s"}})).await;
    for name in ["a", "b"] {
        stage.workload("Deployment", name, &json!({})).await;
    }
    stage.push(BROKEN).await;
    stage.is_stamped("Deployment", "a", BROKEN).await;
    // Somebody looks into it: it cannot go back, and does not fail.
    pause(&stage.shop, "a", true).await;
    stage.shop.annotate_image("img", REJECT, Some(BROKEN)).await;
    stage.shop.status_is("img", "rejects it", |s| s.rejected.len() == 1).await;
    stage.push("1.4.0").await;
    stage.runs("b", "1.4.0").await;
    assert!(stamp(&get(&stage.shop, "Deployment", "a").await).ends_with(BROKEN));
    pause(&stage.shop, "a", false).await;
    stage.runs("a", "1.4.0").await;
    stage.shop.settles("img", "1.4.0").await;

    // Not rejected, since more than the tag has changed. Whoever went first, it keeps its place: the tag is not proven.
    let worse = "1.5.0-broken";
    stage.push(worse).await;
    stage.is_stamped("Deployment", "a", worse).await;
    let env = json!([{"name": "app", "image": format!("{}:1.0.0", stage.image), "env": [{"name": "A", "value": "1"}]}]);
    patch(&stage.shop, "Deployment", "a", &json!({"spec": {"template": {"spec": {"containers": env}}}})).await;
    stage.shop.status_is("img", "says that it stops", |s| stalled(s).contains("more than its tag")).await;
    patch(&stage.shop, "Deployment", "b", &json!({"metadata": {"annotations": {CANARY: "true"}}})).await;
    for_a_while(&stage.shop, "img", 1, |s| assert!(s.rejected.len() == 1, "{:?}", s.rejected)).await;
    assert!(stamp(&get(&stage.shop, "Deployment", "b").await).ends_with(":1.4.0"));
    // Now the other one goes first.
    stage.push("1.6.0").await;
    for name in ["b", "a"] {
        stage.runs(name, "1.6.0").await;
    }
    stage.shop.settles("img", "1.6.0").await;
    stage.shop.status_is("img", "is well again", |s| stalled(s) == "-").await;
}

/// A workload that was paused when its group was rolled.
#[tokio::test]
async fn a_rollout_that_begins_after_its_tag_has_settled_is_rolled_back() {
    let stage = Stage::new("gf-late", &json!({"rollout": {"deadline": OURS}})).await;
    stage.workload("Deployment", "web", &json!({})).await;
    pause(&stage.shop, "web", true).await;
    stage.push(BROKEN).await;
    stage.shop.settles("img", BROKEN).await;
    pause(&stage.shop, "web", false).await;
    stage.is_stamped("Deployment", "web", BROKEN).await;
    stage.is_rolled_back("Deployment", "web", "ImagePullBackOff: container app of Pod web-").await;
}

/// Where others run the tag well, it need not be to blame: nothing is taken from them.
#[tokio::test]
async fn one_that_comes_late_takes_no_tag_from_those_who_run_it() {
    let stage = Stage::new("gf-later", &json!({"rollout": {"deadline": "3s", "minInterval": "0s"}})).await;
    stage.workload("Deployment", "web", &json!({})).await;
    never_ready(&stage, "late").await;
    pause(&stage.shop, "late", true).await;
    // As long as it takes.
    edit(&stage.shop, "img", &json!({"rollout": {"deadline": "10m"}})).await;
    stage.push("1.4.0").await;
    stage.runs("web", "1.4.0").await;
    stage.shop.settles("img", "1.4.0").await;
    edit(&stage.shop, "img", &json!({"rollout": {"deadline": "3s"}})).await;
    pause(&stage.shop, "late", false).await;
    // It alone goes back; that it fails there too is nobody's fault but its own.
    let alone = |h: &Held| h.by == HeldBy::RolloutFailed && h.workload == "Deployment/late" && h.tag == "1.2.0";
    let held = |s: &ImageStatus| s.held.iter().any(alone);
    stage.shop.status_is("img", "holds it where it was", held).await;
    stage.is_stamped("Deployment", "late", "1.2.0").await;
    let stops = |s: &ImageStatus| stalled(s).contains("nothing is rejected: 1.2.0");
    stage.shop.status_is("img", "says that it stops", stops).await;
    for_a_while(&stage.shop, "img", 1, |s| assert!(s.rejected.is_empty() && s.tag.as_deref() == Some("1.4.0"))).await;
    stage.runs("web", "1.4.0").await;
    assert!(stamp(&get(&stage.shop, "Deployment", "late").await).ends_with(":1.2.0"));
}

/// The rollout of the group goes on, that of `a` ended well: what becomes of its Pods later is no word against the tag.
#[tokio::test]
async fn an_outage_rejects_nothing() {
    let stage = Stage::new("gf-outage", &json!({})).await;
    stage.workload("Deployment", "a", &json!({})).await;
    never_ready(&stage, "b").await;
    patch(&stage.shop, "Deployment", "a", &json!({"metadata": {"annotations": {CANARY: "true"}}})).await;
    stage.push("1.3.0").await;
    stage.runs("a", "1.3.0").await;
    stage.is_stamped("Deployment", "b", "1.3.0").await;
    pause(&stage.shop, "b", true).await;
    stage.shop.status_is("img", "is under way", |s| s.rollout.as_ref().is_some_and(|r| r.updated == 1)).await;
    fail(&stage.shop, "a").await;
    edit(&stage.shop, "img", &json!({"rollout": {"deadline": "1s"}})).await;
    let check = |s: &ImageStatus| assert!(s.rejected.is_empty() && s.rollout.is_some() && stalled(s) == "-", "{s:?}");
    for_a_while(&stage.shop, "img", 4, check).await;
    // What is a rollout is watched all the same.
    pause(&stage.shop, "b", false).await;
    let status = stage.shop.status_is("img", "rejects it", |s| !s.rejected.is_empty()).await;
    assert_eq!(status.rejected[0].workload, "Deployment/b");
}

/// One Pod that kimup gave the settled tag, and that never becomes ready.
async fn never_ready(stage: &Stage, name: &str) {
    let before = stage.shop.pods().await.len();
    let annotations = json!({ENABLED: "true", READY_AFTER: "1h"});
    let patch = json!({"spec": {"replicas": 1, "template": {"metadata": {"annotations": annotations}}}});
    stage.shop.create_deployment(name, &format!("{}:1.0.0", stage.image), &patch).await;
    let made = async || match stage.shop.pods().await.len() {
        now if now == before + 1 => Ok(()),
        other => Err(other),
    };
    eventually(DEADLINE, "its Pod is made", made).await;
}

/// All Pods of an app turn unready, as after the loss of a database.
async fn fail(shop: &Shop, app: &str) {
    let pods = shop.api::<Pod>();
    let conditions: Vec<Value> =
        ["Ready", "ContainersReady"].iter().map(|kind| json!({"type": kind, "status": "False"})).collect();
    for pod in pods.list(&ListParams::default().labels(&format!("app={app}"))).await.unwrap() {
        let patch = Patch::Strategic(json!({"status": {"conditions": conditions}}));
        pods.patch_status(&pod.name_any(), &PatchParams::default(), &patch).await.unwrap();
    }
    eventually(DEADLINE, "its controller has seen it", async || {
        let status = shop.api::<Deployment>().get(app).await.unwrap().status.unwrap_or_default();
        let ready = status.ready_replicas.unwrap_or_default();
        if ready == 0 { Ok(()) } else { Err(ready) }
    })
    .await;
}

/// A Deployment `name` that annotations have followed, on the newest tag of its line.
pub async fn followed(shop: &Shop, name: &str, text: &str, policy: &str, tag: &str, patch: &Value) -> String {
    let annotations = json!({POLICY: policy, "kimup.cloudavenue.io/interval": "1h"});
    let mut all = json!({"spec": {"replicas": 1, "template": {"metadata": {"annotations": annotations}}}});
    json_patch::merge(&mut all, patch);
    shop.create_deployment(name, text, &all).await;
    let of = image_name("Deployment", name, "app");
    crate::annotated::settles(shop, &of, tag).await;
    let (repository, _) = text.rsplit_once(':').unwrap();
    shop.pods_run(name, 1, &format!("{repository}:{tag}")).await;
    edit(shop, &of, &json!({"rollout": {"minInterval": "0s"}})).await;
    of
}

#[tokio::test]
async fn one_of_another_line_does_not_hold_up_its_group() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("gf-lines", &["1.0.0", "2.0.0"]).await.unwrap();
    let (shop, image) = (bed.shop("gf-lines", &[]).await, registry.image("gf-lines"));
    let marked = json!({"metadata": {"annotations": {CANARY: "true"}}});
    let one = followed(&shop, "one", &format!("{image}:1.0.0"), "patch", "1.0.0", &marked).await;
    let two = followed(&shop, "two", &format!("{image}:2.0.0"), "patch", "2.0.0", &json!({})).await;
    registry.push("gf-lines", "2.0.1").await.unwrap();
    shop.sync(&two).await;
    shop.pods_run("two", 1, &format!("{image}:2.0.1")).await;
    shop.settles(&two, "2.0.1").await;
    registry.push("gf-lines", "1.0.1").await.unwrap();
    shop.sync(&one).await;
    shop.pods_run("one", 1, &format!("{image}:1.0.1")).await;
    shop.settles(&one, "1.0.1").await;
    assert_eq!((shop.revisions("one").await, shop.revisions("two").await), (2, 2));
}

#[tokio::test]
async fn a_rejection_outlives_the_image_that_made_it() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push("gf-heirs", "1.2.0").await.unwrap();
    let (shop, image) = (bed.shop("gf-heirs", &[]).await, registry.image("gf-heirs"));
    let text = format!("{image}:1.2.0");
    let a = followed(&shop, "a", &text, "alphabetical", "1.2.0", &json!({})).await;
    let b = followed(&shop, "b", &text, "alphabetical", "1.2.0", &json!({})).await;
    registry.push("gf-heirs", BROKEN).await.unwrap();
    for name in [&a, &b] {
        shop.sync(name).await;
        shop.status_is(name, "has it in flight", |s| s.rollout.as_ref().is_some_and(|r| r.tag == BROKEN)).await;
    }
    let stamped = async || {
        let stamp = stamp(&get(&shop, "Deployment", "a").await);
        if stamp.ends_with(BROKEN) { Ok(()) } else { Err(stamp) }
    };
    eventually(DEADLINE, "a is stamped", stamped).await;
    edit(&shop, &a, &json!({"rollout": {"deadline": "1s"}})).await;
    let rejects = |s: &ImageStatus| s.rejected.iter().any(|r| r.tag == BROKEN && r.workload == "Deployment/a");
    shop.status_is(&a, "rejects it", rejects).await;
    shop.status_is(&b, "goes back", |s| s.tag.as_deref() == Some("1.2.0") && s.rollout.is_none()).await;
    shop.api::<Deployment>().delete("a", &DeleteParams::background()).await.unwrap();
    let gone = async || match shop.api::<Image>().get_opt(&a).await.unwrap() {
        None => Ok(()),
        Some(_) => Err("still there"),
    };
    eventually(DEADLINE, "its Image goes with it", gone).await;
    for _ in 0..3 {
        let status = shop.sync(&b).await;
        assert!(rejects(&status) && status.rollout.is_none(), "{status:?}");
    }
    shop.pods_run("b", 1, &text).await;
    assert_eq!(shop.revisions("b").await, 1, "it never saw the tag");
}

/// Who may not approve for an Image must not reject or retry for it through one that asks nobody.
#[tokio::test]
async fn images_with_and_without_approval_reject_for_themselves() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push("gf-asks", "1.2.0").await.unwrap();
    let (shop, image) = (bed.shop("gf-asks", &[]).await, registry.image("gf-asks"));
    let text = format!("{image}:1.2.0");
    let free = followed(&shop, "free", &text, "alphabetical", "1.2.0", &json!({})).await;
    let mut rules = serde_json::to_value(&shop.api::<Image>().get(&free).await.unwrap().spec.rules).unwrap();
    rules[0]["actions"] = json!([{"type": "apply"}, {"type": "request-approval"}]);
    shop.create_image("img", &json!({"spec": {"image": image, "baseTag": "1.2.0", "rules": rules}})).await;
    shop.settles("img", "1.2.0").await;
    shop.create_deployment("asks", &text, &opted_in()).await;
    shop.pods_run("asks", 2, &text).await;

    registry.push("gf-asks", "1.3.0").await.unwrap();
    shop.annotate_image(&free, REJECT, Some("1.3.0")).await;
    shop.status_is(&free, "rejects it", |s| s.rejected.len() == 1).await;
    let asked = shop.sync("img").await;
    assert_eq!(asked.pending.map(|p| p.tag).as_deref(), Some("1.3.0"), "still to be approved");
    shop.annotate_image("img", "kimup.cloudavenue.io/approve", Some("1.3.0")).await;
    shop.pods_run("asks", 2, &format!("{image}:1.3.0")).await;
    shop.settles("img", "1.3.0").await;
    shop.pods_run("free", 1, &text).await;
    // The other way round.
    shop.annotate_image("img", REJECT, Some("1.3.0")).await;
    shop.pods_run("asks", 2, &text).await;
    shop.settles("img", "1.2.0").await;
    shop.annotate_image(&free, "kimup.cloudavenue.io/action", Some("retry")).await;
    shop.pods_run("free", 1, &format!("{image}:1.3.0")).await;
    for _ in 0..2 {
        let status = shop.sync("img").await;
        assert_eq!((status.rejected.len(), status.pending.is_none()), (1, true), "{status:?}");
    }
    shop.pods_run("asks", 2, &text).await;
    assert!(stamp(&get(&shop, "Deployment", "asks").await).ends_with(":1.2.0"));
}

/// What was told to go back does so, whatever closes meanwhile.
#[tokio::test]
async fn nothing_that_closes_later_stops_a_rollback() {
    let stage = Stage::new("gf-closed", &json!({"rollout": {"maxConcurrent": 2}})).await;
    for name in ["a", "b"] {
        stage.workload("Deployment", name, &json!({})).await;
        patch(&stage.shop, "Deployment", name, &json!({"metadata": {"annotations": {CANARY: "true"}}})).await;
    }
    stage.push(BROKEN).await;
    for name in ["a", "b"] {
        stage.is_stamped("Deployment", name, BROKEN).await;
    }
    // One goes back, the other one cannot yet.
    pause(&stage.shop, "b", true).await;
    stage.shop.annotate_image("img", REJECT, Some(BROKEN)).await;
    stage.is_stamped("Deployment", "a", "1.2.0").await;
    stage.runs("a", "1.2.0").await;
    let namespaces: Api<Namespace> = Api::all(stage.shop.client.clone());
    let freeze = json!({"metadata": {"annotations": {"kimup.cloudavenue.io/freeze": "true"}}});
    namespaces.patch(&stage.shop.namespace, &PatchParams::default(), &Patch::Merge(freeze)).await.unwrap();
    let windows = crate::gates::denied_until(Timestamp::now() + 60.seconds());
    edit(&stage.shop, "img", &json!({"suspend": true, "windows": windows})).await;
    stage.push("1.4.0").await;
    let waits = |s: &ImageStatus| s.pending.as_ref().is_some_and(|pending| pending.tag == "1.4.0");
    stage.shop.status_is("img", "is closed", waits).await;
    assert!(stamp(&get(&stage.shop, "Deployment", "b").await).ends_with(BROKEN));
    pause(&stage.shop, "b", false).await;
    stage.is_stamped("Deployment", "b", "1.2.0").await;
    stage.runs("b", "1.2.0").await;
    let status = stage.shop.settles("img", "1.2.0").await;
    assert!(waits(&status), "{status:?}");
}

/// An Image for which another one counts, for a moment or longer, knows what people held when it counts again.
#[tokio::test]
async fn a_duplicate_keeps_its_holds() {
    let bed = Bed::shared().await;
    let (shop, registry) = (bed.shop("gf-twice", &[]).await, &bed.registries.open);
    // An older Image, of something else yet, whose rules allow nothing here.
    let nothing = json!([{"name": "none", "type": "regex", "value": "^never$", "actions": [{"type": "apply"}]}]);
    registry.push("gf-other", "1.0.0").await.unwrap();
    let other = registry.image("gf-other");
    shop.create_image("older", &json!({"spec": {"image": other, "rules": nothing}})).await;
    shop.status_is("older", "is seen", |s| s.result.is_some()).await;
    later_than(&shop, "older").await;
    let stage = Stage::on(shop, registry, "gf-twice", &json!({})).await;
    stage.workload("Deployment", "web", &json!({})).await;
    stage.push("1.3.0").await;
    stage.runs("web", "1.3.0").await;
    stage.shop.settles("img", "1.3.0").await;
    bed.cluster.kubectl_ok(&["-n", &stage.shop.namespace, "rollout", "undo", "deployment/web"]).await.unwrap();
    let held = |s: &ImageStatus| s.held.iter().any(|h| (h.tag.as_str(), h.left.as_str()) == ("1.2.0", "1.3.0"));
    let before = stage.shop.status_is("img", "is held", held).await.held;
    // The older Image knows no tag: while it counts, no Pod is made.
    stage.runs("web", "1.2.0").await;
    edit(&stage.shop, "older", &json!({"image": stage.image})).await;
    let is_duplicate = |s: &ImageStatus| condition(s, "Ready").contains("Duplicate");
    stage.shop.annotate_image("img", "kimup.cloudavenue.io/requestedAt", Some("now")).await;
    stage.shop.status_is("img", "is a duplicate", is_duplicate).await;
    for _ in 0..3 {
        assert_eq!(stage.shop.sync("img").await.held, before);
    }
    stage.runs("web", "1.2.0").await;
    edit(&stage.shop, "older", &json!({"image": other})).await;
    stage.shop.annotate_image("img", "kimup.cloudavenue.io/requestedAt", Some("again")).await;
    stage.shop.status_is("img", "counts again", |s| !is_duplicate(s)).await;
    for _ in 0..3 {
        assert_eq!(stage.shop.sync("img").await.held, before);
    }
    stage.runs("web", "1.2.0").await;
    stage.push("1.4.0").await;
    stage.runs("web", "1.4.0").await;
}

/// Waits until an object that is created now is younger: times are whole seconds.
async fn later_than(shop: &Shop, image: &str) {
    let created = shop.api::<Image>().get(image).await.unwrap().creation_timestamp().unwrap().0;
    eventually(DEADLINE, "a second has passed", async || {
        if Timestamp::now().duration_since(created).as_secs() >= 1 { Ok(()) } else { Err("not yet") }
    })
    .await;
}
