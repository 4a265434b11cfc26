//! Scenario a, second half: each of the nine results is produced, with a message that names the cause and what to do.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kimup::api::{Image, ImageStatus, SyncResult};
use kimup_testbed::{Answer, eventually};
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::{Value, json};

use crate::support::{Bed, DEADLINE, Shop, opted_in};

/// `status: reason: message` of a condition; empty if it is absent.
fn condition(status: &ImageStatus, kind: &str) -> String {
    let found = status.conditions.iter().find(|c| c.type_ == kind);
    found.map(|c| format!("{}: {}: {}", c.status, c.reason, c.message)).unwrap_or_default()
}

/// The results that the API server stored one after the other, until the first that is wanted.
async fn results_until(shop: &Shop, since: &Image, wanted: SyncResult) -> Vec<SyncResult> {
    let params = WatchParams::default().fields(&format!("metadata.name={}", since.name_any()));
    let api = shop.api::<Image>();
    let follow = async {
        let mut events = api.watch(&params, &since.resource_version().unwrap()).await.unwrap().boxed();
        let mut seen = Vec::new();
        while seen.last() != Some(&wanted) {
            match events.try_next().await.unwrap() {
                Some(WatchEvent::Modified(image)) => seen.extend(image.status.and_then(|s| s.result)),
                other => panic!("{other:?} after {seen:?}"),
            }
        }
        seen
    };
    tokio::time::timeout(DEADLINE, follow).await.unwrap()
}

#[tokio::test]
async fn an_image_is_scheduled_before_its_first_sync_and_never_again() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("a-first", &["1.0.0"]).await.unwrap();
    registry.push_all("a-second", &["2.0.0"]).await.unwrap();
    let shop = bed.shop("a-scheduled", &[]).await;
    let created = shop.create_image("web", &json!({"spec": {"image": registry.image("a-first")}})).await;
    let seen = results_until(&shop, &created, SyncResult::Success).await;
    assert_eq!(seen, [SyncResult::Scheduled, SyncResult::Success]);
    // Also where the status starts anew.
    let patch = Patch::Merge(json!({"spec": {"image": registry.image("a-second")}}));
    let changed = shop.api::<Image>().patch("web", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(results_until(&shop, &changed, SyncResult::Success).await, [SyncResult::Success]);
    assert_eq!(shop.settles("web", "2.0.0").await.history.len(), 1, "the tags of another repository are forgotten");
}

#[tokio::test]
async fn each_failure_has_its_result_and_says_what_to_do() {
    let bed = Bed::shared().await;
    let scripted = &bed.registries.scripted;
    let shop = bed.shop("a-failures", &[]).await;
    scripted.set_tags("a-fine", &["1.0.0", "1.1.0"]);
    scripted.set_tags("a-empty", &[]);
    scripted.set_tags("a-old", &["1.0.0"]);
    scripted.set_answer("a-html", Answer::new(200, "<html>sign in</html>").header("content-type", "text/html"));
    scripted.set_answer("a-broken", Answer::new(500, "oops"));
    scripted.set_answer("a-closed", Answer::new(401, "").header("www-authenticate", "Basic realm=\"x\""));
    let with = |repository: &str, patch: Value| {
        let mut spec = json!({"image": scripted.image(repository)});
        json_patch::merge(&mut spec, &patch);
        json!({"spec": spec})
    };
    let rule = |kind: &str, value: &str| {
        let actions = [json!({"type": "apply"})];
        json!({"rules": [{"name": "stable", "type": kind, "value": value, "actions": actions}]})
    };
    let host = scripted.host();
    // Name, Image, result, reason, whether it waits for a person, what the message contains.
    type Case<'a> = (&'a str, Value, SyncResult, &'a str, bool, Vec<&'a str>);
    let cases: Vec<Case> = vec![
        (
            "unreachable",
            json!({"spec": {"image": "127.0.0.1:1/app"}}),
            SyncResult::RegistryError,
            "RegistryUnavailable",
            false,
            vec!["127.0.0.1:1 is unreachable (", "): "],
        ),
        (
            "broken",
            with("a-broken", json!({})),
            SyncResult::RegistryError,
            "RegistryUnavailable",
            false,
            vec![&host, "500"],
        ),
        (
            "closed",
            with("a-closed", json!({})),
            SyncResult::RegistryError,
            "RegistryUnavailable",
            false,
            vec![&host, "denies access", "no credentials were sent"],
        ),
        (
            "unknown",
            with("a-unknown", json!({})),
            SyncResult::TagsError,
            "TagsUnusable",
            false,
            vec!["a-unknown", "check the name"],
        ),
        (
            "html",
            with("a-html", json!({})),
            SyncResult::TagsError,
            "TagsUnusable",
            false,
            vec![&host, "unusable answer"],
        ),
        ("empty", with("a-empty", json!({})), SyncResult::TagsError, "NoTags", false, vec!["a-empty lists no tags"]),
        (
            "nothing-matches",
            with("a-old", rule("semver", ">=7")),
            SyncResult::TagsError,
            "NoMatchingTag",
            false,
            vec!["a-old", "the only tag listed does not match", "\">=7\""],
        ),
        (
            "no-secret",
            with("a-secret", json!({"imagePullSecrets": [{"name": "absent"}]})),
            SyncResult::PullSecretsError,
            "PullSecretInvalid",
            false,
            vec!["Secret a-failures/absent: not found", "fix spec.imagePullSecrets[0].name"],
        ),
        (
            "bad-range",
            with("a-range", rule("semver", ">=1.x.y")),
            SyncResult::GetRuleError,
            "RuleInvalid",
            true,
            vec!["rule \"stable\"", ">=1.x.y", "fix spec.rules[0].value"],
        ),
        (
            "bad-filter",
            with("a-filter", json!({"filter": {"pattern": "(["}})),
            SyncResult::GetRuleError,
            "FilterInvalid",
            true,
            vec!["([", "fix spec.filter"],
        ),
        (
            "later",
            with("a-later", rule("calver-major", "")),
            SyncResult::GetRuleError,
            "RuleNotSupported",
            true,
            vec!["calver-major", "not supported by this version", "fix spec.rules[0].type"],
        ),
        (
            "bad-image",
            json!({"spec": {"image": "registry.example/a//b"}}),
            SyncResult::GetImageError,
            "ImageInvalid",
            true,
            vec!["registry.example/a//b", "fix spec.image"],
        ),
        (
            "bad-trigger",
            with("a-trigger", json!({"triggers": [{"type": "crontab", "value": "61 * * * *"}]})),
            SyncResult::Error,
            "TriggerInvalid",
            true,
            vec!["61 * * * *", "fix spec.triggers[0].value"],
        ),
    ];
    shop.create_image("fine", &with("a-fine", json!({}))).await;
    for (name, patch, ..) in &cases {
        shop.create_image(name, patch).await;
    }
    for (name, _, result, reason, stalled, parts) in cases {
        let status = shop.status_is(name, "has failed", |s| s.result == Some(result)).await;
        let ready = condition(&status, "Ready");
        assert!(ready.starts_with(&format!("False: {reason}: ")), "{name}: {ready}");
        for part in parts {
            assert!(ready.contains(part), "{name}: {ready:?} lacks {part:?}");
        }
        assert_eq!(condition(&status, "Stalled").is_empty(), !stalled, "{name}");
        assert_eq!((status.tag, status.rollout), (None, None), "{name}");
    }
    // None of them disturbs another.
    assert_eq!(shop.settles("fine", "1.1.0").await.result, Some(SyncResult::Success));
    // What a person repairs is synced at once.
    scripted.set_tags("a-trigger", &["1.0.0"]);
    let patch = Patch::Merge(json!({"spec": {"triggers": [{"type": "crontab", "value": "0 3 * * *"}]}}));
    shop.api::<Image>().patch("bad-trigger", &PatchParams::default(), &patch).await.unwrap();
    let status = shop.settles("bad-trigger", "1.0.0").await;
    assert_eq!(condition(&status, "Stalled"), "");
}

/// Refuses kimup's changes of Deployments in one namespace, as a policy engine might.
fn policy(namespace: &str) -> String {
    json!({"apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": namespace},
            "spec": {
                "matchConstraints": {"resourceRules": [{"apiGroups": ["apps"], "apiVersions": ["v1"],
                    "operations": ["UPDATE"], "resources": ["deployments"]}]},
                "matchConditions": [{"name": "kimup",
                    "expression": "request.userInfo.username == 'system:serviceaccount:kimup-system:kimup'"}],
                "validations": [{"expression": "false", "message": "no changes on Fridays"}],
            },
        },
        {
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": namespace},
            "spec": {"policyName": namespace, "validationActions": ["Deny"], "matchResources":
                {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}},
        },
    ]})
    .to_string()
}

#[tokio::test]
async fn a_workload_that_cannot_be_rolled_is_an_action_error() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("a-action", &["1.0.0"]).await.unwrap();
    let image = registry.image("a-action");
    let shop = bed.shop("a-action", &[]).await;
    shop.create_image("web", &json!({"spec": {"image": image}})).await;
    shop.settles("web", "1.0.0").await;
    shop.create_deployment("web", &format!("{image}:1.0.0"), &opted_in()).await;
    shop.pods_run("web", 2, &format!("{image}:1.0.0")).await;
    bed.cluster.apply(&[], &policy(&shop.namespace)).await.unwrap();
    let kimup = ["--as", "system:serviceaccount:kimup-system:kimup", "-n", &shop.namespace];
    let try_it = [&kimup[..], &["annotate", "deployment/web", "--dry-run=server", "probe=x"]].concat();
    eventually(DEADLINE, "the policy counts", async || !bed.cluster.kubectl(&try_it).await.unwrap().success).await;

    registry.push("a-action", "1.0.1").await.unwrap();
    shop.annotate_image("web", "kimup.cloudavenue.io/action", Some("refresh")).await;
    let failed = |s: &ImageStatus| s.result == Some(SyncResult::ActionError);
    let status = shop.status_is("web", "has failed", failed).await;
    let ready = condition(&status, "Ready");
    assert!(ready.starts_with("False: RolloutFailed: Deployment/web cannot be rolled: "), "{ready}");
    assert!(ready.contains("no changes on Fridays"), "{ready}");
    assert_eq!(status.tag.as_deref(), Some("1.0.0"), "not settled");
    let events = shop.events("Deployment", "web").await;
    assert!(events.iter().any(|e| e.starts_with("RolloutFailed: ") && e.contains("Fridays")), "{events:?}");
    // A sync meanwhile does not call it a success.
    assert_eq!(shop.sync("web").await.result, Some(SyncResult::ActionError));
    assert_eq!(shop.revisions("web").await, 1);

    let delete = ["delete", "validatingadmissionpolicybinding", &shop.namespace];
    bed.cluster.kubectl_ok(&delete).await.unwrap();
    let status = shop.settles("web", "1.0.1").await;
    assert_eq!(status.result, Some(SyncResult::Success), "{status:?}");
    assert!(condition(&status, "Ready").starts_with("True: Synced: "), "{status:?}");
    shop.pods_run("web", 2, &format!("{image}:1.0.1")).await;
    let events = shop.events("Deployment", "web").await;
    assert_eq!(events.iter().filter(|e| e.starts_with("RolloutFailed")).count(), 1, "said once: {events:?}");
    let text = shop.api::<Deployment>().get("web").await.unwrap().spec.template.spec.unwrap();
    assert_eq!(text.containers[0].image.as_deref(), Some(&*format!("{image}:1.0.0")));
}
