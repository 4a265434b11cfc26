//! The `Image` resource as a user of kubectl meets it: what is refused, and what is shown.

use kimup::api::{Image, ImageStatus, SyncResult};
use kube::api::{Api, DynamicObject, PostParams};
use kube::core::{ApiResource, GroupVersionKind};
use serde_json::{Value, json};

use crate::support::{Bed, image, opted_in};

fn images(client: kube::Client, namespace: &str) -> Api<DynamicObject> {
    let kind = GroupVersionKind::gvk("kimup.cloudavenue.io", "v1alpha1", "Image");
    Api::namespaced_with(client, namespace, &ApiResource::from_gvk_with_plural(&kind, "images"))
}

#[tokio::test]
async fn wrong_specs_are_refused_with_words_that_help() {
    let bed = Bed::shared().await;
    let shop = bed.shop("crd-refused", &[]).await;
    let api = images(shop.client.clone(), &shop.namespace);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let base = serde_json::to_value(image("web", &json!({"spec": {"image": "alpine"}}))).unwrap();
    let check = async |patch: Value, expected: &[&str]| {
        let mut object = base.clone();
        json_patch::merge(&mut object, &json!({"spec": patch}));
        let said = match api.create(&dry_run, &serde_json::from_value(object).unwrap()).await {
            Ok(_) => String::new(),
            Err(kube::Error::Api(status)) => status.message.clone(),
            Err(error) => panic!("{error}"),
        };
        assert_eq!(said.is_empty(), expected.is_empty(), "{patch}: {said}");
        for part in expected {
            assert!(said.contains(part), "{patch}: {said:?} lacks {part:?}");
        }
    };
    let trigger = |kind: &str, value: &str| json!({"triggers": [{"type": kind, "value": value}]});
    let rule = |patch: Value| {
        let mut rule = json!({"name": "r", "type": "semver", "actions": [{"type": "apply"}]});
        json_patch::merge(&mut rule, &patch);
        json!({"rules": [rule]})
    };
    let tag = ["spec.image is a repository without tag or digest; put the starting tag into spec.baseTag"];
    let scheme = ["spec.image is a repository such as ghcr.io/org/app, without a scheme or blanks"];
    let case = ["spec.image is a repository such as ghcr.io/org/app: its path must be lower case"];
    let interval = ["spec.triggers[0]", "an interval needs a duration as value, for example 30s, 5m or 1h30m"];
    let crontab = ["spec.triggers[0]", "a crontab needs a cron line of 5, 6 or 7 fields as value", "@hourly"];
    for image in ["alpine", "ghcr.io/org/app", "registry:5000/app", "127.0.0.1:1/a", "GHCR.io/org/app", "[::1]:5000/a"]
    {
        check(json!({"image": image}), &[]).await;
    }
    check(json!({"image": "alpine:3"}), &tag).await;
    check(json!({"image": "registry:5000"}), &tag).await;
    check(json!({"image": "alpine@sha256:00"}), &tag).await;
    check(json!({"image": "https://ghcr.io/org/app"}), &scheme).await;
    check(json!({"image": "al pine"}), &scheme).await;
    check(json!({"image": "ghcr.io/Org/app"}), &case).await;
    check(json!({"image": ""}), &["spec.image", "at least 1 chars"]).await;
    check(json!({"image": null}), &["spec.image: Required value"]).await;
    check(json!({"baseTag": "a b"}), &["spec.baseTag"]).await;
    check(json!({"triggers": []}), &["spec.triggers", "at least 1 items"]).await;
    check(json!({"rules": []}), &["spec.rules", "at least 1 items"]).await;
    for value in ["30s", "1m", "1h30m", "1.5h", "1d", "1500ms"] {
        check(trigger("interval", value), &[]).await;
    }
    for value in ["", "5", "5 minutes", "0s", "-5m", "@hourly"] {
        check(trigger("interval", value), &interval).await;
    }
    for value in ["*/5 * * * *", "0 */5 * * * *", "0 0 12 * * MON 2027", "@hourly", "@every 5m", " 0 3 * * * "] {
        check(trigger("crontab", value), &[]).await;
    }
    for value in ["", "hourly", "every day", "* * * *", "* * * * * * * *", "5m"] {
        check(trigger("crontab", value), &crontab).await;
    }
    check(trigger("cron", "@hourly"), &["spec.triggers[0].type", "\"crontab\", \"interval\", \"webhook\""]).await;
    check(trigger("webhook", ""), &[]).await;
    check(rule(json!({"type": "semver-mayor"})), &["spec.rules[0].type", "\"semver-major\""]).await;
    check(rule(json!({"type": "regex"})), &["spec.rules[0]", "a regex rule needs the pattern as value"]).await;
    check(rule(json!({"actions": []})), &["spec.rules[0].actions", "at least 1 items"]).await;
    check(rule(json!({"actions": [{"type": "aply"}]})), &["spec.rules[0].actions[0].type", "\"apply\""]).await;
    check(rule(json!({"name": ""})), &["spec.rules[0].name"]).await;
    // Every type of the design is taken, also where a later version acts on it.
    for kind in ["calver-prerelease", "timestamp", "numerical", "alphabetical", "digest", "always"] {
        check(rule(json!({"type": kind})), &[]).await;
    }
}

#[tokio::test]
async fn kubectl_refuses_a_misspelt_field() {
    let bed = Bed::shared().await;
    let shop = bed.shop("crd-misspelt", &[]).await;
    let mut object = serde_json::to_value(image("web", &json!({"spec": {"image": "alpine"}}))).unwrap();
    object["spec"]["imagePullSecret"] = json!([]);
    let args = ["-n", &shop.namespace, "apply", "-f", "-"];
    let output = bed.cluster.kubectl_with_stdin(&args, &object.to_string()).await.unwrap();
    assert!(!output.success && output.stderr.contains("unknown field \"spec.imagePullSecret\""), "{}", output.stderr);
}

#[tokio::test]
async fn kubectl_shows_an_image_at_a_glance() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("crd-columns", &["1.0.0", "1.1.0"]).await.unwrap();
    let repository = registry.image("crd-columns");
    let shop = bed.shop("crd-columns", &[]).await;
    shop.create_image("web", &json!({"spec": {"image": repository}})).await;
    shop.create_image("bad", &json!({"spec": {"image": "127.0.0.1:1/app"}})).await;
    shop.settles("web", "1.1.0").await;
    shop.create_deployment("web", &format!("{repository}:1.0.0"), &opted_in()).await;
    shop.status_is("web", "knows its workload", |s| s.workloads.as_deref() == Some("1/1")).await;
    shop.status_is("bad", "fails", |s| s.result == Some(SyncResult::RegistryError)).await;
    let kubectl = async |args: &[&str]| {
        let text = bed.cluster.kubectl_ok(&[&["-n", &shop.namespace], args].concat()).await.unwrap();
        let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        text.lines().map(words).collect::<Vec<_>>()
    };
    // By short name and by category.
    for name in ["kimg", "kimup"] {
        let table = kubectl(&["get", name]).await;
        let header = "NAME IMAGE TAG LAST-RESULT LAST-SYNC READY PENDING WORKLOADS AGE";
        assert_eq!(table[0].join(" "), header);
        // An empty column leaves no word: Pending in both, Tag and Workloads in the first.
        let [_, bad, web] = &table[..] else { panic!("{table:?}") };
        assert_eq!((bad.len(), web.len()), (6, 8), "{table:?}");
    }
    for (selector, expected) in [
        ("status.result=Success".to_owned(), "image.kimup.cloudavenue.io/web"),
        ("status.result=RegistryError".to_owned(), "image.kimup.cloudavenue.io/bad"),
        (format!("spec.image={repository}"), "image.kimup.cloudavenue.io/web"),
    ] {
        let found = kubectl(&["get", "images", "--field-selector", &selector, "-o", "name"]).await;
        assert_eq!(found.concat(), [expected], "{selector}");
    }
    let explained = kubectl(&["explain", "image.spec.rules"]).await.concat().join(" ");
    assert!(explained.contains("How to choose a tag, evaluated in order"), "{explained}");
}

#[tokio::test]
async fn what_a_later_version_acts_on_is_accepted_and_named() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.scripted;
    registry.set_tags("crd-gated", &["1.0.0", "1.1.0"]);
    registry.set_tags("crd-later", &["1.0.0", "1.1.0"]);
    let shop = bed.shop("crd-later", &[]).await;
    let apply = json!({"type": "apply"});
    let alert = json!({"type": "alert-slack", "data": {"valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}});
    let later = json!({"spec": {
        "image": registry.image("crd-later"),
        "triggers": [{"type": "interval", "value": "1h"}, {"type": "webhook"}],
        "rules": [{"name": "r", "type": "semver", "actions": [apply, alert]}],
        "rollout": {"deadline": "5m", "soak": "1m", "minInterval": "1m", "afterRollback": "hold", "maxConcurrent": 2},
    }});
    let gated = json!({"spec": {
        "image": registry.image("crd-gated"), "suspend": true, "minAge": "24h",
        "windows": [{"kind": "deny", "schedule": "0 0 * * *", "duration": "8h", "timeZone": "Europe/Paris"}],
        "rules": [{"name": "r", "type": "semver", "actions": [apply, {"type": "request-approval"}]}],
    }});
    let unsupported = |status: &ImageStatus| {
        let found = status.conditions.iter().find(|c| c.type_ == "Unsupported");
        found.map(|c| (c.status.clone(), c.reason.clone(), c.message.clone()))
    };
    shop.create_image("later", &later).await;
    let status = shop.settles("later", "1.1.0").await;
    let (holds, reason, message) = unsupported(&status).unwrap();
    assert_eq!((holds.as_str(), reason.as_str()), ("True", "NotImplemented"));
    for field in ["trigger of type webhook", "alert-slack"] {
        assert!(message.contains(field), "{message}");
    }
    for field in ["maxConcurrent", "deadline", "soak", "minInterval", "afterRollback"] {
        assert!(!message.contains(field), "{message}");
    }
    assert_eq!(status.conditions[0].type_, "Ready", "what everybody looks for comes first");

    // What is meant to delay a newer tag is not passed over.
    shop.create_image("gated", &gated).await;
    let status = shop.status_is("gated", "is answered", |s| s.pending.is_some()).await;
    assert_eq!(unsupported(&status), None);
    assert_eq!((status.tag, status.rollout), (None, None));
    // Nothing of it is lost: the API server keeps what was written.
    let stored: Image = shop.api().get("gated").await.unwrap();
    assert_eq!(stored.spec, image("gated", &gated).spec);
    // Without these fields the condition goes.
    let object = image("later", &json!({"spec": {"image": registry.image("crd-later")}}));
    shop.api::<Image>().delete("later", &kube::api::DeleteParams::default()).await.unwrap();
    shop.api::<Image>().create(&PostParams::default(), &object).await.unwrap();
    let status = shop.settles("later", "1.1.0").await;
    assert_eq!(unsupported(&status), None);
}
