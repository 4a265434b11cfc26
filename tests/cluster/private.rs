//! Scenario e: a private registry. Each way in which a pull secret can be wrong has its result, and no other Image notices.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kimup::api::{ImageStatus, SyncResult};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::support::{Bed, Shop, USER};

const WRONG: &str = "wr0ng-p4ssw0rd";
const CONFIG: (&str, &str) = ("kubernetes.io/dockerconfigjson", ".dockerconfigjson");

fn secret(name: &str, kind: &str, key: &str, value: &str) -> Secret {
    let mut secret = Secret::default();
    secret.metadata.name = Some(name.to_owned());
    secret.type_ = Some(kind.to_owned());
    secret.data = Some(BTreeMap::from([(key.to_owned(), ByteString(value.as_bytes().to_vec()))]));
    secret
}

async fn create(shop: &Shop, secret: &Secret) {
    shop.api::<Secret>().create(&PostParams::default(), secret).await.unwrap();
}

/// Waits for a result; the message of the `Ready` condition.
async fn says(shop: &Shop, name: &str, result: SyncResult) -> String {
    let status = shop.status_is(name, "has its result", |s| s.result == Some(result)).await;
    let ready = status.conditions.into_iter().find(|c| c.type_ == "Ready").unwrap();
    assert_eq!(ready.status, if result == SyncResult::Success { "True" } else { "False" }, "{name}");
    ready.message
}

#[tokio::test]
async fn a_wrong_pull_secret_is_named_and_stops_nobody_else() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.private;
    let shop = bed.shop("e-private", &[]).await;
    let names = ["right", "old-style", "second", "wrong", "missing", "other-type", "not-json", "other-host", "none"];
    for name in names {
        registry.push_all(&format!("e-{name}"), &["1.0.0", "1.1.0"]).await.unwrap();
    }
    bed.registries.open.push_all("e-open", &["1.0.0"]).await.unwrap();
    let (right, wrong) = (registry.docker_config(USER.0, USER.1), registry.docker_config(USER.0, WRONG));
    let old_style: Value = serde_json::from_str(&right).unwrap();
    create(&shop, &secret("right", CONFIG.0, CONFIG.1, &right)).await;
    create(&shop, &secret("wrong", CONFIG.0, CONFIG.1, &wrong)).await;
    create(&shop, &secret("old-style", "kubernetes.io/dockercfg", ".dockercfg", &old_style["auths"].to_string())).await;
    create(&shop, &secret("other-type", "Opaque", CONFIG.1, &right)).await;
    // Valid JSON, or the API server refuses the Secret; but no docker config.
    create(&shop, &secret("not-json", CONFIG.0, CONFIG.1, &format!("{{\"auths\": \"{}\"}}", USER.1))).await;
    let elsewhere = right.replace(&registry.host(), "registry.example");
    create(&shop, &secret("other-host", CONFIG.0, CONFIG.1, &elsewhere)).await;
    for name in names {
        let secrets = match name {
            "none" => json!([]),
            "second" => json!([{"name": "other-host"}, {"name": "wrong"}, {"name": "right"}]),
            name => json!([{"name": name}]),
        };
        let spec = json!({"image": registry.image(&format!("e-{name}")), "imagePullSecrets": secrets});
        shop.create_image(name, &json!({"spec": spec})).await;
    }
    shop.create_image("open", &json!({"spec": {"image": bed.registries.open.image("e-open")}})).await;

    let host = registry.host();
    let refused = format!("registry {host} denies access (with credentials): ");
    let anonymous = format!("registry {host} denies access (no credentials were sent): ");
    let cases: [(&str, SyncResult, &str, &str); 9] = [
        ("right", SyncResult::Success, "1.1.0 is the newest", ""),
        ("old-style", SyncResult::Success, "1.1.0 is the newest", ""),
        ("second", SyncResult::Success, "1.1.0 is the newest", ""),
        (
            "wrong",
            SyncResult::RegistryError,
            &refused,
            "it does not accept the credentials (401); renew the pull secret",
        ),
        ("missing", SyncResult::PullSecretsError, "Secret e-private/missing: not found; create it", ""),
        ("other-type", SyncResult::PullSecretsError, "Secret other-type has type Opaque", CONFIG.0),
        ("not-json", SyncResult::PullSecretsError, "Secret not-json: key .dockerconfigjson is not a docker config", ""),
        ("other-host", SyncResult::RegistryError, &anonymous, "add them to imagePullSecrets"),
        ("none", SyncResult::RegistryError, &anonymous, "add them to imagePullSecrets"),
    ];
    for (name, result, start, part) in cases {
        let message = says(&shop, name, result).await;
        assert!(message.contains(start) && message.contains(part), "{name}: {message}");
    }
    assert_eq!(shop.settles("open", "1.0.0").await.result, Some(SyncResult::Success));

    // What is repaired is found without being asked.
    create(&shop, &secret("missing", CONFIG.0, CONFIG.1, &right)).await;
    let data = json!({"data": {CONFIG.1: ByteString(right.clone().into_bytes())}});
    shop.api::<Secret>().patch("wrong", &PatchParams::default(), &Patch::Merge(data)).await.unwrap();
    for name in ["missing", "wrong"] {
        assert_eq!(shop.settles(name, "1.1.0").await.result, Some(SyncResult::Success));
    }
    // What is taken away counts at once, and takes no version back.
    shop.api::<Secret>().delete("right", &kube::api::DeleteParams::default()).await.unwrap();
    registry.push("e-right", "1.2.0").await.unwrap();
    let status: ImageStatus = shop.sync("right").await;
    assert_eq!((status.result, status.tag.as_deref()), (Some(SyncResult::PullSecretsError), Some("1.1.0")));
    assert!(status.conditions[0].message.ends_with("; 1.1.0 is kept"), "{:?}", status.conditions);

    tells_no_password(bed, &shop, &names).await;
}

/// No password, in clear or in base64, in what anybody can read: Images, Events, logs.
async fn tells_no_password(bed: &Bed, shop: &Shop, names: &[&str]) {
    let mut said = vec![bed.kimup.log_text(), bed.kimup.metrics().await.unwrap()];
    for name in names {
        said.push(serde_json::to_string(&shop.status(name).await).unwrap());
        said.extend(shop.events("Image", name).await);
    }
    let said = said.concat();
    assert!(said.contains("e-private"), "the log is read");
    for password in [USER.1, WRONG] {
        let base64 = |text: String| serde_json::to_value(ByteString(text.into_bytes())).unwrap();
        let encoded = base64(format!("{}:{password}", USER.0));
        for secret in [password, encoded.as_str().unwrap()] {
            assert!(!said.contains(secret), "{secret} is told");
        }
    }
}
