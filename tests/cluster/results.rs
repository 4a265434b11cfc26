//! Scenario a, second half: each of the nine results is produced, with a message that names the cause and what to do.

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use kimup::api::{Image, ImageStatus, SyncResult};
use kimup_testbed::{FaultReply, eventually};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, WatchEvent, WatchParams};
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
                Some(WatchEvent::Bookmark(_)) => {}
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

/// Name and repository, spec on top, result, reason, two parts of the message.
type Case<'a> = (&'a str, Value, SyncResult, &'a str, [&'a str; 2]);

/// What the registry does or has.
fn registry_failures() -> Vec<Case<'static>> {
    use SyncResult::{PullSecretsError, RegistryError, TagsError};
    let secret = json!({"imagePullSecrets": [{"name": "absent"}]});
    let not_found = ["Secret a-failures/absent: not found", "fix spec.imagePullSecrets[0].name"];
    let no_match = ["a-old can be chosen", "none of those listed matches semver \">=7\""];
    vec![
        ("a-broken", json!({}), RegistryError, "RegistryUnavailable", ["registry 127.0.0.1:", "status 500"]),
        ("a-closed", json!({}), RegistryError, "AccessDenied", ["denies access", "add them to imagePullSecrets"]),
        ("a-unknown", json!({}), TagsError, "TagsUnusable", ["knows no repository a-unknown", "check the name"]),
        ("a-html", json!({}), TagsError, "TagsUnusable", ["registry 127.0.0.1:", "unusable answer"]),
        ("a-empty", json!({}), TagsError, "NoTags", ["a-failures/a-empty", "a-empty lists no tags"]),
        ("a-old", rule("semver", ">=7"), TagsError, "NoMatchingTag", no_match),
        ("a-secret", secret, PullSecretsError, "PullSecretInvalid", not_found),
    ]
}

/// What only a person can repair.
fn spec_failures() -> Vec<Case<'static>> {
    use SyncResult::{Error, GetImageError, GetRuleError};
    let filter = json!({"filter": {"pattern": "(["}});
    let cron = json!({"triggers": [{"type": "crontab", "value": "61 * * * *"}]});
    let image = json!({"image": "registry.example/a//b"});
    let order = ["invalid alphabetical \"up\": use asc, desc or no value", "fix spec.rules[0].value"];
    vec![
        ("a-range", rule("semver", ">=1.x.y"), GetRuleError, "RuleInvalid", [">=1.x.y", "fix spec.rules[0].value"]),
        ("a-filter", filter, GetRuleError, "FilterInvalid", ["([", "fix spec.filter"]),
        ("a-order", rule("alphabetical", "up"), GetRuleError, "RuleInvalid", order),
        ("a-image", image, GetImageError, "ImageInvalid", ["registry.example/a//b", "fix spec.image"]),
        ("a-trigger", cron, Error, "TriggerInvalid", ["\"61 * * * *\"", "fix spec.triggers[0].value"]),
    ]
}

fn rule(kind: &str, value: &str) -> Value {
    json!({"rules": [{"name": "stable", "type": kind, "value": value, "actions": [{"type": "apply"}]}]})
}

#[tokio::test]
async fn each_failure_has_its_result_and_says_what_to_do() {
    let bed = Bed::shared().await;
    let scripted = &bed.registries.scripted;
    scripted.set_tags("a-fine", &["1.0.0", "1.1.0"]);
    scripted.set_tags("a-empty", &[]);
    scripted.set_tags("a-old", &["1.0.0"]);
    scripted.set_answer("a-html", FaultReply::new(200, "<html>sign in</html>").header("content-type", "text/html"));
    scripted.set_answer("a-broken", FaultReply::new(500, "oops"));
    scripted.set_answer("a-closed", FaultReply::new(401, "").header("www-authenticate", "Basic realm=\"x\""));
    let shop = bed.shop("a-failures", &[]).await;
    let create = async |name: &str, patch: &Value| {
        let mut spec = json!({"image": scripted.image(name)});
        json_patch::merge(&mut spec, patch);
        shop.create_image(name, &json!({"spec": spec})).await;
    };
    let unreachable = json!({"image": "127.0.0.1:1/app"});
    let refused = ["registry 127.0.0.1:1 is unreachable (", "refused"];
    let unreachable = ("a-gone", unreachable, SyncResult::RegistryError, "RegistryUnavailable", refused);
    let cases = [vec![unreachable], registry_failures(), spec_failures()].concat();
    create("a-fine", &json!({})).await;
    for (name, patch, ..) in &cases {
        create(name, patch).await;
    }
    for (name, _, result, reason, parts) in cases {
        let status = shop.status_is(name, "has failed", |s| s.result == Some(result)).await;
        let ready = condition(&status, "Ready");
        assert!(ready.starts_with(&format!("False: {reason}: ")), "{name}: {ready}");
        for part in parts {
            assert!(ready.contains(part), "{name}: {ready:?} lacks {part:?}");
        }
        let waits = spec_failures().iter().any(|case| case.0 == name);
        assert_eq!(condition(&status, "Stalled").is_empty(), !waits, "{name}");
        assert_eq!((status.tag, status.rollout), (None, None), "{name}");
    }
    // `kubectl describe` shows it, once.
    for (name, reason) in [("a-empty", "SyncFailed: "), ("a-secret", "SyncFailed: "), ("a-range", "PolicyInvalid: ")] {
        let said = async || {
            let events = shop.events("Image", name).await;
            let count = events.iter().filter(|event| event.starts_with(reason)).count();
            if count == 1 { Ok(()) } else { Err(format!("{events:?}")) }
        };
        eventually(DEADLINE, &format!("one Event {reason}on {name}"), said).await;
    }
    // None of them disturbs another.
    assert_eq!(shop.settles("a-fine", "1.1.0").await.result, Some(SyncResult::Success));
    // What a person repairs is synced at once.
    scripted.set_tags("a-trigger", &["1.0.0"]);
    let patch = Patch::Merge(json!({"spec": {"triggers": [{"type": "crontab", "value": "0 3 * * *"}]}}));
    shop.api::<Image>().patch("a-trigger", &PatchParams::default(), &patch).await.unwrap();
    let status = shop.settles("a-trigger", "1.0.0").await;
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
    // Tried as kimup by what kimup may do: it patches Deployments, and reads none of them one by one.
    let kubeconfig = bed.cluster.kubeconfig_for("kimup-system", "kimup").await.unwrap();
    let client = bed.cluster.client_as(&kubeconfig).await.unwrap();
    let deployments: Api<Deployment> = Api::namespaced(client, &shop.namespace);
    let try_it = PatchParams { dry_run: true, ..PatchParams::default() };
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"probe": "x"}}}));
    eventually(DEADLINE, "the policy counts", async || match deployments.patch("web", &try_it, &patch).await {
        Err(error) if error.to_string().contains("no changes on Fridays") => Ok(()),
        other => Err(format!("{:?}", other.err())),
    })
    .await;

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
