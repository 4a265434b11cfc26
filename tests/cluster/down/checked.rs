//! The policy of `deploy/overlays/stamp-check`: a stamped Pod that nobody changed does not go unnoticed.

use kimup::api::annotations::ROLLOUT;
use kimup_testbed::eventually;
use kube::api::PostParams;
use serde_json::{Value, json};

use crate::own::Own;
use crate::support::{DEADLINE, ENABLED, Shop, pod};

const CHECK: &str = include_str!("../../../deploy/overlays/stamp-check/policy.yaml");
const DENY: &str = r#"{"spec": {"validationActions": ["Deny", "Audit"]}}"#;

/// A Pod with a stamp for its one container; `patch` on top.
fn stamped(text: &str, stamp: &str, patch: &Value) -> Value {
    let mut object = serde_json::to_value(pod("p", text)).unwrap();
    let metadata = json!({"labels": {ROLLOUT: "ab12"}, "annotations": {"stamp.kimup.cloudavenue.io/app": stamp}});
    json_patch::merge(&mut object, &json!({"metadata": metadata}));
    json_patch::merge(&mut object, patch);
    object
}

/// Creates a Pod while no kimup runs and no webhook is configured: what kubectl says beside `created`.
async fn said(own: &Own, shop: &Shop, object: &Value) -> String {
    let args = ["-n", &shop.namespace, "create", "--dry-run=server", "-f", "-"];
    let output = own.cluster.kubectl_with_stdin(&args, &object.to_string()).await.unwrap();
    assert!(output.success, "{}", output.stderr);
    output.stderr
}

#[tokio::test]
async fn a_stamped_pod_that_nobody_changed_is_warned_about() {
    let own = Own::start().await;
    let shop = Shop::new(&own.cluster, "checked", &[(ENABLED, "true")], &[]).await;
    let annotated = Shop::new(&own.cluster, "checked-too", &[], &[(ENABLED, "true")]).await;
    let nobody = Shop::new(&own.cluster, "checked-out", &[], &[]).await;
    own.cluster.apply(&[], CHECK).await.unwrap();
    let missed = stamped("app:1.0.0", "app:1.0.0 app:2", &json!({}));
    let warning = "container app starts with app:1.0.0 and not with the tag that kimup rolled out, app:2: kimup did not \
                   see this Pod";
    eventually(DEADLINE, "the policy counts", async || {
        let said = said(&own, &shop, &missed).await;
        if said.contains(warning) { Ok(()) } else { Err(said) }
    })
    .await;

    let check = async |shop: &Shop, text: &str, stamp: &str, patch: Value, warned: bool| {
        let said = said(&own, shop, &stamped(text, stamp, &patch)).await;
        assert_eq!(said.contains("Warning: "), warned, "{text}: {stamp} {patch}: {said}");
    };
    let noted = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}});
    let none = || json!({});
    check(&annotated, "app:1.0.0", "app:1.0.0 app:2", none(), true).await;
    check(&shop, "app", "app app:2", none(), true).await;
    check(&shop, "r.example:5000/t/app:1", "r.example:5000/t/app:1 r.example:5000/t/app:2", none(), true).await;
    // What kimup made of it, what it would leave alone, and what no stamp may lead to.
    check(&shop, "app:2", "app:1.0.0 app:2", none(), false).await;
    check(&shop, "app:1.0.0", "app:1.0.0 app:1.0.0", none(), false).await;
    check(&shop, "app:1.0.1", "app:1.0.0 app:2", none(), false).await;
    check(&shop, "app:1.0.0", "app:1.0.0 other:2", none(), false).await;
    check(&shop, "app:1.0.0", "", none(), false).await;
    check(&shop, "app:1.0.0", "app:1.0.0 app:2", json!({"metadata": {"labels": {ROLLOUT: null}}}), false).await;
    // Who is opted in, and who is not.
    let own_enabled = "enabled.kimup.cloudavenue.io/app";
    check(&shop, "app:1.0.0", "app:1.0.0 app:2", noted(ENABLED, "false"), false).await;
    check(&shop, "app:1.0.0", "app:1.0.0 app:2", noted(own_enabled, "false"), false).await;
    check(&nobody, "app:1.0.0", "app:1.0.0 app:2", none(), false).await;
    check(&nobody, "app:1.0.0", "app:1.0.0 app:2", noted(ENABLED, "true"), true).await;
    check(&nobody, "app:1.0.0", "app:1.0.0 app:2", noted(own_enabled, "true"), true).await;
    check(&nobody, "app:1.0.0", "app:1.0.0 app:2", noted("kimup.cloudavenue.io/policy", "minor"), true).await;
    check(&nobody, "app:1.0.0", "app:1.0.0 app:2", noted("policy.kimup.cloudavenue.io/app", "minor"), true).await;
    check(&nobody, "app:1.0.0", "app:1.0.0 app:2", noted("policy.kimup.cloudavenue.io/other", "minor"), false).await;
    // Many containers do not exhaust what CEL may cost.
    let stamps: serde_json::Map<String, Value> =
        (0..250).map(|n| (format!("stamp.kimup.cloudavenue.io/c{n}"), json!("app:1.0.0 app:2"))).collect();
    let containers: Vec<Value> = (0..250).map(|n| json!({"name": format!("c{n}"), "image": "app:1.0.0"})).collect();
    let many = json!({"metadata": {"annotations": stamps}, "spec": {"containers": containers}});
    check(&shop, "app:1.0.0", "", many, true).await;

    // Whoever wants it strict.
    let args = ["patch", "validatingadmissionpolicybinding", "kimup-stamp-check", "--type=merge", "-p", DENY];
    own.cluster.kubectl_ok(&args).await.unwrap();
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    let missed = serde_json::from_value(missed).unwrap();
    eventually(DEADLINE, "it is refused", async || {
        match shop.api::<k8s_openapi::api::core::v1::Pod>().create(&dry, &missed).await {
            // By the name in it sync knows that kimup did not see the Pod, and nudges its owner later.
            Err(error) if error.to_string().contains(warning) && error.to_string().contains("'kimup-stamp-check'") => {
                Ok(())
            }
            other => Err(format!("{other:?}")),
        }
    })
    .await;
}
