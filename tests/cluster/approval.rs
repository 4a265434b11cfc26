//! Rules that ask for approval: who may give it, what it does, and how a tag is rejected. With two users: `alice` may
//! edit Images, `bob` holds `kimup-approver`.

use std::time::Duration;

use k8s_openapi::api::batch::v1::CronJob;
use k8s_openapi::api::core::v1::Pod;
use kimup::api::{Image, ImageStatus};
use kimup_testbed::eventually;
use kube::ResourceExt;
use kube::api::{ListParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::gates::{conditions, edit, push};
use crate::own::admits;
use crate::support::{Bed, DEADLINE, ENABLED, Shop, image_of, opted_in};

const APPROVE: &str = "kimup.cloudavenue.io/approve";
const REJECT: &str = "kimup.cloudavenue.io/reject";
const APPROVED_BY: &str = "kimup.cloudavenue.io/approved-by";
/// Names who approves; for the namespaces of one test.
const NAMES: &str = include_str!("../../deploy/overlays/approved-by/policy.yaml");

fn asks(deadline: &str) -> Value {
    let asks = json!({"type": "request-approval", "data": {"value": deadline}});
    json!([{"name": "minor", "type": "minor", "actions": [{"type": "apply"}, asks]}])
}

/// A shop whose Deployment and Image `web` run 1.0.0, where `alice` and `bob` may do what they may.
async fn shop(name: &str, spec: &Value) -> (Shop, String) {
    let bed = Bed::shared().await;
    push(name, "1.0.0").await;
    let image = bed.registries.open.image(name);
    let shop = bed.shop(name, &[]).await;
    let mut patch = json!({"spec": {"image": image, "baseTag": "1.0.0", "rules": asks("")}});
    json_patch::merge(&mut patch, &json!({"spec": spec}));
    shop.create_image("web", &patch).await;
    shop.settles("web", "1.0.0").await;
    shop.create_deployment("web", &format!("{image}:1.0.0"), &opted_in()).await;
    shop.pods_run("web", 2, &format!("{image}:1.0.0")).await;
    let verbs = "--verb=get,list,patch,update,create";
    for args in [
        &["create", "role", "edit-images", verbs, "--resource=images.kimup.cloudavenue.io"][..],
        &["create", "rolebinding", "alice", "--role=edit-images", "--user=alice"],
        &["create", "rolebinding", "bob", "--clusterrole=kimup-approver", "--user=bob"],
    ] {
        bed.cluster.kubectl_ok(&[&["-n", name], args].concat()).await.unwrap();
    }
    guarded(&shop).await;
    (shop, image)
}

/// Waits until the API server acts on the policy of `deploy/`: from then on it does.
async fn guarded(shop: &Shop) {
    static GUARDED: OnceCell<()> = OnceCell::const_new();
    let refused = async || {
        let args = [&format!("{APPROVE}=0.0.1"), "--dry-run=server"];
        match by("alice", shop, &args.map(|arg| arg as &str)).await {
            Err(said) if said.contains("may not set") => Ok(()), // and not because her role does not count yet
            other => Err(format!("{other:?}")),
        }
    };
    GUARDED.get_or_init(async || eventually(DEADLINE, "the policy is in force", refused).await).await;
}

/// `kubectl annotate image web … --overwrite`, as a user; the error is what that user reads.
async fn by(user: &str, shop: &Shop, annotations: &[&str]) -> Result<String, String> {
    let args = ["-n", &shop.namespace, "--as", user, "annotate", "image", "web", "--overwrite"];
    run(&[&args[..], annotations].concat()).await
}

async fn run(args: &[&str]) -> Result<String, String> {
    let output = Bed::shared().await.cluster.kubectl(args).await.unwrap();
    if output.success { Ok(output.stdout) } else { Err(output.stderr) }
}

async fn bob_approves(shop: &Shop, tag: &str) {
    by("bob", shop, &[&format!("{APPROVE}={tag}"), &format!("{APPROVED_BY}=bob")]).await.unwrap();
}

/// Waits until what people wrote is answered.
async fn answered(shop: &Shop) {
    eventually(DEADLINE, "the annotations are removed", async || {
        let annotations = shop.api::<Image>().get("web").await.unwrap().annotations().clone();
        let left = [APPROVE, REJECT, APPROVED_BY].iter().any(|key| annotations.contains_key(*key));
        if left { Err(format!("{annotations:?}")) } else { Ok(()) }
    })
    .await;
}

async fn said(shop: &Shop, reason: &str) -> Vec<String> {
    shop.events("Image", "web").await.into_iter().filter(|event| event.starts_with(reason)).collect()
}

/// Nothing that changes anything follows.
async fn stays(shop: &Shop, revisions: usize) -> ImageStatus {
    for _ in 0..2 {
        shop.sync("web").await;
    }
    assert_eq!(shop.revisions("web").await, revisions);
    shop.sync("web").await
}

/// The policy of the overlay, for one namespace.
async fn names_in(shop: &Shop) {
    let bed = Bed::shared().await;
    let bound = format!(
        "  policyName: kimup-approved-by\n  matchResources:\n    namespaceSelector:\n      matchLabels:\n        \
         kubernetes.io/metadata.name: {}\n",
        shop.namespace
    );
    let policy = NAMES.replace("  policyName: kimup-approved-by\n", &bound);
    assert_ne!(policy, NAMES);
    bed.cluster.apply(&[], &policy).await.unwrap();
    eventually(DEADLINE, "the API server names who approves", async || {
        let args = [&format!("{APPROVE}=0.0.1"), "--dry-run=server", "-o", "yaml"];
        let dry = by("bob", shop, &args.map(|arg| arg as &str)).await?;
        if dry.contains(&format!("{APPROVED_BY}: bob")) { Ok(()) } else { Err(dry) }
    })
    .await;
}

#[tokio::test]
async fn only_who_may_approve_does_and_the_history_names_them() {
    let name = "approval-who";
    let (shop, image) = shop(name, &json!({})).await;
    names_in(&shop).await;
    push(name, "1.1.0").await;
    let status = shop.sync("web").await;
    let (tag, reason) = status.pending.map(|pending| (pending.tag, pending.reason)).expect("it waits");
    let command = format!("kubectl annotate image web -n {name} --overwrite {APPROVE}=1.1.0");
    assert_eq!((tag.as_str(), reason), ("1.1.0", format!("for approval: {command}")));
    let status = stays(&shop, 1).await;
    assert_eq!(
        conditions(&status),
        (Some(format!("AwaitsApproval: 1.1.0 waits: for approval: {command}")), "True".to_owned())
    );
    assert_eq!(said(&shop, "TagPending").await.len(), 1, "said once");

    let refused = by("alice", &shop, &[&format!("{APPROVE}=1.1.0")]).await.unwrap_err();
    for part in ["alice may not set approve", "the verb update on images/approve", "ClusterRole kimup-approver"] {
        assert!(refused.contains(part), "{refused}");
    }
    let free = json!([{"name": "minor", "type": "minor", "actions": [{"type": "apply"}]}]);
    for (what, spec) in
        [("rules", free), ("suspend", json!(true)), ("minAge", json!("1h")), ("baseTag", json!("1.1.0"))]
    {
        let patch = json!({"spec": {what: spec}}).to_string();
        let args = ["-n", name, "--as", "alice", "patch", "image", "web", "--type=merge", "-p", &patch];
        let refused = run(&args).await.unwrap_err();
        assert!(refused.contains(&format!("may not set spec.{what}")), "{refused}");
        run(&[&args[..], &["--as", "bob", "--dry-run=server"]].concat()).await.unwrap();
    }
    for word in [&format!("{REJECT}=1.1.0"), "kimup.cloudavenue.io/action=retry", "kimup.cloudavenue.io/action=resume"]
    {
        by("alice", &shop, &[word]).await.unwrap_err();
    }
    let other = by("bob", &shop, &[&format!("{APPROVED_BY}=alice")]).await.unwrap_err();
    assert!(other.contains("approved-by says alice, but you are bob"), "{other}");
    // What approves nothing is everybody's who may edit.
    by("alice", &shop, &["team=shop", "kimup.cloudavenue.io/action=refresh"]).await.unwrap();
    let triggers = json!({"spec": {"triggers": [{"type": "interval", "value": "2h"}]}}).to_string();
    run(&["-n", name, "--as", "alice", "patch", "image", "web", "--type=merge", "-p", &triggers]).await.unwrap();
    stays(&shop, 1).await;

    // What the status says to type.
    let typed: Vec<&str> = command.split(' ').skip(1).chain(["--as", "bob"]).collect();
    run(&typed).await.unwrap();
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    let status = shop.settles("web", "1.1.0").await;
    let last = &status.history[0];
    assert_eq!(
        (last.tag.as_str(), last.by.as_deref(), last.rule.as_str()),
        ("1.1.0", Some("approved by bob"), "minor")
    );
    answered(&shop).await;
    let status = stays(&shop, 2).await;
    assert_eq!((conditions(&status).0, status.pending, status.asked), (None, None, None));
    assert_eq!(said(&shop, "TagApproved").await, [format!("TagApproved: {image}: 1.1.0 was approved by bob")]);
}

/// What the next Job of the `CronJob` `backup` runs.
async fn next_job_runs(shop: &Shop, job: &str, reference: &str) {
    // A Job's Pod is never corrected: the webhook must know what the status says.
    let (image, _) = reference.rsplit_once(':').unwrap();
    admits(shop, &format!("{image}:1.0.0"), reference).await;
    run(&["-n", &shop.namespace, "create", "job", job, "--from=cronjob/backup"]).await.unwrap();
    let pods = eventually(DEADLINE, "the Job has a Pod", async || {
        let params = ListParams::default().labels(&format!("batch.kubernetes.io/job-name={job}"));
        let pods = shop.api::<Pod>().list(&params).await.unwrap().items;
        if pods.is_empty() { Err("none") } else { Ok(pods) }
    })
    .await;
    assert_eq!(image_of(&pods[0], "app"), reference, "{job}");
}

#[tokio::test]
async fn what_is_rejected_is_not_asked_for_and_is_gone_back_from() {
    let name = "approval-reject";
    let (shop, image) = shop(name, &json!({})).await;
    let cron_job: CronJob = serde_json::from_value(json!({
        "metadata": {"name": "backup"},
        "spec": {"schedule": "0 0 1 1 *", "suspend": true, "jobTemplate": {"spec": {"template": {
            "metadata": {"annotations": {ENABLED: "true"}},
            "spec": {"restartPolicy": "Never", "containers": [{"name": "app", "image": format!("{image}:1.0.0")}]}}}}},
    }))
    .unwrap();
    shop.api::<CronJob>().create(&PostParams::default(), &cron_job).await.unwrap();
    push(name, "1.1.0").await;
    assert_eq!(shop.sync("web").await.pending.expect("it waits").tag, "1.1.0");
    by("bob", &shop, &[&format!("{REJECT}=1.1.0"), &format!("{APPROVED_BY}=bob")]).await.unwrap();
    answered(&shop).await;
    let status = stays(&shop, 1).await;
    assert_eq!((status.pending, status.asked), (None, None));
    let rejected: Vec<_> = status.rejected.iter().map(|r| (r.tag.as_str(), r.reason.as_str())).collect();
    assert_eq!(rejected, [("1.1.0", "rejected by bob")]);

    push(name, "1.2.0").await;
    assert_eq!(shop.sync("web").await.pending.expect("it waits").tag, "1.2.0");
    bob_approves(&shop, "1.2.0").await;
    shop.pods_run("web", 2, &format!("{image}:1.2.0")).await;
    shop.settles("web", "1.2.0").await;
    answered(&shop).await;
    next_job_runs(&shop, "before", &format!("{image}:1.2.0")).await;

    by("bob", &shop, &[&format!("{REJECT}=1.2.0"), &format!("{APPROVED_BY}=bob")]).await.unwrap();
    shop.status_is("web", "goes back at once", |status| status.tag.as_deref() == Some("1.0.0")).await;
    shop.pods_run("web", 2, &format!("{image}:1.0.0")).await;
    shop.settles("web", "1.0.0").await;
    answered(&shop).await;
    next_job_runs(&shop, "after", &format!("{image}:1.0.0")).await;
    assert_eq!(said(&shop, "TagRejected").await.len(), 2, "each once");
    let bob = || vec!["bob".to_owned()];
    assert_eq!(shop.audited("web", "approve").await, ["bob"]);
    assert_eq!(shop.audited("web", "reject").await, ["bob", "bob"]);
    assert_eq!(shop.audited("web", "select").await, ["kimup", "bob"]);
    assert_eq!((shop.audited("web", "roll").await, shop.audited("web", "rollback").await), (bob(), bob()));
    // Approved by mistake.
    bob_approves(&shop, "1.2.0").await;
    answered(&shop).await;
    let status = shop.sync("web").await;
    assert_eq!((status.tag.as_deref(), status.rollout), (Some("1.0.0"), None));
    let refused = eventually(DEADLINE, "it is said why not", async || said(&shop, "PolicyInvalid").await.pop()).await;
    assert!(refused.contains("1.2.0 is not applied, though approved by bob: it was rejected"), "{refused}");
    shop.pods_run("web", 2, &format!("{image}:1.0.0")).await;
}

#[tokio::test]
async fn an_approval_goes_against_a_window_and_waits_while_suspended() {
    let name = "approval-window";
    let all_day = json!([{"kind": "deny", "schedule": "0 0 * * *", "duration": "24h"}]);
    let (shop, image) = shop(name, &json!({"windows": all_day})).await;
    push(name, "1.1.0").await;
    let status = shop.sync("web").await;
    assert!(conditions(&status).0.is_some_and(|pending| pending.starts_with("AwaitsApproval: 1.1.0")));
    bob_approves(&shop, "1.1.0").await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    shop.settles("web", "1.1.0").await;
    answered(&shop).await;
    let note = "1.1.0 was approved by bob, against a gate: spec.windows let no rollout start now";
    assert_eq!(said(&shop, "TagApproved").await, [format!("TagApproved: {image}: {note}")]);

    // Somebody's brake holds all the same, and the word is kept until it is released.
    edit(&shop, &json!({"suspend": true})).await;
    push(name, "1.2.0").await;
    shop.sync("web").await;
    bob_approves(&shop, "1.2.0").await;
    let suspended =
        |status: &ImageStatus| conditions(status).0.is_some_and(|p| p.starts_with("Suspended: 1.2.0 waits"));
    shop.status_is("web", "waits", suspended).await;
    let status = stays(&shop, 2).await;
    assert_eq!((status.tag.as_deref(), &status.rollout), (Some("1.1.0"), &None));
    edit(&shop, &json!({"suspend": false})).await;
    shop.pods_run("web", 2, &format!("{image}:1.2.0")).await;
    shop.settles("web", "1.2.0").await;
    answered(&shop).await;
    assert_eq!(said(&shop, "TagApproved").await.len(), 2);
}

#[tokio::test]
async fn a_request_lapses_by_itself_until_a_newer_tag_comes() {
    let name = "approval-lapse";
    let (shop, image) = shop(name, &json!({"rules": asks("4s")})).await;
    push(name, "1.1.0").await;
    let asked = shop.sync("web").await.asked.expect("it is asked for");
    assert_eq!((asked.tag.as_str(), asked.lapsed), ("1.1.0", false));
    let lapsed = |status: &ImageStatus| status.asked.as_ref().is_some_and(|asked| asked.lapsed);
    // Nobody asks: the interval is an hour.
    let status = tokio::time::timeout(Duration::from_secs(60), shop.status_is("web", "lapses", lapsed)).await.unwrap();
    assert_eq!((status.pending, status.asked.map(|asked| asked.since)), (None, Some(asked.since)));
    let status = stays(&shop, 1).await;
    let ready = status.conditions.iter().find(|c| c.type_ == "Ready").unwrap();
    assert!(ready.message.contains("1.1.0 was not approved until "), "{}", ready.message);
    assert_eq!(said(&shop, "TagPending").await.len(), 2, "asked for, and not any more");

    push(name, "1.2.0").await;
    assert_eq!(shop.sync("web").await.asked.expect("a newer one is").tag, "1.2.0");
    // Late, and not the newest: what is approved is applied.
    bob_approves(&shop, "1.1.0").await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    assert_eq!(shop.settles("web", "1.1.0").await.history[0].by.as_deref(), Some("approved by bob"));
}

#[tokio::test]
async fn where_nobody_has_to_approve_who_may_edit_rejects() {
    let name = "approval-none";
    let free = json!([{"name": "minor", "type": "minor", "actions": [{"type": "apply"}]}]);
    let (shop, image) = shop(name, &json!({"rules": free})).await;
    push(name, "1.1.0").await;
    shop.sync("web").await;
    shop.pods_run("web", 2, &format!("{image}:1.1.0")).await;
    shop.settles("web", "1.1.0").await;
    by("alice", &shop, &[&format!("{REJECT}=1.1.0")]).await.unwrap();
    shop.pods_run("web", 2, &format!("{image}:1.0.0")).await;
    let status = shop.settles("web", "1.0.0").await;
    answered(&shop).await;
    let word = "rejected by field manager kubectl-annotate";
    assert_eq!((status.rejected[0].reason.as_str(), status.history[0].by.as_deref()), (word, Some(word)));
    let revisions = shop.revisions("web").await;
    let status = stays(&shop, revisions).await;
    assert_eq!((status.tag.as_deref(), status.rollout), (Some("1.0.0"), None));
}
