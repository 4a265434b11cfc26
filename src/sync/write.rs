//! Writes of sync on Images: the status by server-side apply, the answered action by a patch. Leader only.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta};
use kube::Resource;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::api::annotations::ACTION;
use crate::api::{Group, Image, ImageStatus, SyncResult, condition};

use super::engine::{Key, Sync};
use super::status::rfc3339;
use super::world::{Cached, ImageKey, World};

/// The field manager of statuses.
const FIELD_MANAGER: &str = "kimup-sync";
const TIMEOUT: Duration = Duration::from_secs(15);
/// How often a status is applied to an Image whose annotations change meanwhile.
const TRIES: u32 = 5;

/// Why a write did not happen.
#[derive(Debug, thiserror::Error)]
pub(super) enum WriteError {
    /// The object changed or went since it was read: observe again.
    #[error("it changed since it was read")]
    Conflict,
    /// Another process leads now.
    #[error("another process leads")]
    NotLeader,
    /// The API server finds it invalid (HTTP 400 or 422): trying again soon will not help.
    #[error("{0}")]
    Refused(String),
    /// Anything else: no answer, or one of a server in trouble.
    #[error("{0}")]
    Failed(String),
}

/// Writes a status, provided nothing changed since `image` was read; returns and remembers the Image as it is then.
pub(super) async fn status(
    sync: &Sync,
    key: &ImageKey,
    image: &Image,
    status: &ImageStatus,
) -> Result<Arc<Image>, WriteError> {
    let status = &of_its_group(image, status);
    if !sync.leadership.is_leader() {
        return Err(WriteError::NotLeader);
    }
    let api: Api<Image> = Api::namespaced(sync.client.clone(), &key.namespace);
    let mut written = apply(&api, image, status).await?;
    sync.metrics.kubernetes_write("Image");
    let foreign = |c: &Condition| !status.conditions.iter().any(|ours| ours.type_ == c.type_);
    if written.status.iter().flat_map(|s| &s.conditions).any(foreign) {
        // An apply takes away only what an apply wrote, so not the conditions of `broken`.
        let patch = json!({
            "metadata": {"resourceVersion": written.metadata.resource_version},
            "status": {"conditions": status.conditions},
        });
        written = call(api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch))).await?;
        sync.metrics.kubernetes_write("Image");
    }
    if written.metadata.annotations != image.metadata.annotations {
        // The watch will tell nothing new of it.
        sync.queue.add_now(Key::Image(key.clone()));
    }
    let written = Arc::new(written);
    sync.world.put_image(key, Cached::Read(written.clone()));
    sync.memos().entry(key.clone()).or_default().written = Some(Instant::now());
    Ok(written)
}

/// A status with the group in which its tags were rejected: who made it has left out those of another one.
fn of_its_group(image: &Image, status: &ImageStatus) -> ImageStatus {
    let group = (!status.rejected.is_empty()).then(|| Group::of(&image.spec).id());
    ImageStatus { group, ..status.clone() }
}

/// Applies a status. If the Image has changed since it was read, in nothing that a status is made of, it is applied all the
/// same: who writes annotations all the time must not keep a newer tag from being recorded.
async fn apply(api: &Api<Image>, image: &Image, status: &ImageStatus) -> Result<Image, WriteError> {
    let params = PatchParams::apply(FIELD_MANAGER).force();
    let mut metadata = image.metadata.clone();
    for _ in 0..TRIES {
        let patch = Patch::Apply(body(&metadata, &json!(status)));
        match call(api.patch_status(&metadata.name.clone().unwrap_or_default(), &params, &patch)).await {
            Err(WriteError::Conflict) => {
                let now = call(api.get(image.metadata.name.as_deref().unwrap_or_default())).await?;
                if !is_annotated_only(image, &now) {
                    return Err(WriteError::Conflict);
                }
                metadata = now.metadata;
            }
            outcome => return outcome,
        }
    }
    Err(WriteError::Conflict)
}

/// Whether an Image differs from itself as it was read before in its metadata alone.
fn is_annotated_only(before: &Image, now: &Image) -> bool {
    before.metadata.uid == now.metadata.uid
        && before.metadata.generation == now.metadata.generation
        && before.metadata.deletion_timestamp == now.metadata.deletion_timestamp
        && before.status == now.status
}

/// Removes the annotation `action` once it is done.
pub(super) async fn remove_action(sync: &Sync, key: &ImageKey, image: &Image) -> Result<(), WriteError> {
    remove_annotations(sync, key, image, &[ACTION]).await
}

/// Removes annotations that are answered, provided nothing changed since `image` was read.
pub(super) async fn remove_annotations(
    sync: &Sync,
    key: &ImageKey,
    image: &Image,
    keys: &[&str],
) -> Result<(), WriteError> {
    if !sync.leadership.is_leader() {
        return Err(WriteError::NotLeader);
    }
    let api: Api<Image> = Api::namespaced(sync.client.clone(), &key.namespace);
    let version = &image.metadata.resource_version;
    let gone: BTreeMap<&str, Value> = keys.iter().map(|key| (*key, Value::Null)).collect();
    let patch = json!({"metadata": {"resourceVersion": version, "annotations": gone}});
    let written = call(api.patch(&key.name, &PatchParams::default(), &Patch::Merge(patch))).await?;
    sync.metrics.kubernetes_write("Image");
    sync.world.put_image(key, Cached::Read(Arc::new(written)));
    Ok(())
}

/// Records on an Image that cannot be read that it cannot be read; returns the message if that is new. Once per stored
/// version.
pub(super) async fn broken(
    client: &kube::Client,
    world: &World,
    key: &ImageKey,
    metadata: &ObjectMeta,
    error: &str,
) -> Result<Option<String>, WriteError> {
    let resource = ApiResource::erase::<Image>(&());
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), &key.namespace, &resource);
    let object = call(api.get(&key.name)).await?;
    // Repaired since: the watch is about to bring it, and what was said of it must not be said of what it is now.
    let repaired = object.metadata.resource_version != metadata.resource_version;
    let cause = match unreadable(&object) {
        Some(cause) => cause,
        None if repaired => return Ok(None),
        None => error.to_owned(),
    };
    let message = format!("Image {key} cannot be read: {cause}; fix that field");
    let said = object.data.pointer("/status/conditions/0/message").and_then(Value::as_str);
    if said == Some(&message) {
        return Ok(None);
    }
    let now = rfc3339(Timestamp::now());
    let condition = |kind: &str, status: &str| {
        json!({
            "type": kind, "status": status, "reason": "ImageInvalid", "message": message,
            "lastTransitionTime": now, "observedGeneration": metadata.generation,
        })
    };
    let status = json!({
        "result": SyncResult::GetImageError,
        "time": now,
        "conditions": [condition(condition::READY, "False"), condition(condition::STALLED, "True")],
    });
    let patch =
        Patch::Merge(json!({"metadata": {"resourceVersion": object.metadata.resource_version}, "status": status}));
    let written = call(api.patch_status(&key.name, &PatchParams::default(), &patch)).await?;
    world.put_image(key, Cached::Broken(Arc::new(written.metadata), error.into()));
    Ok(Some(message))
}

/// Where an object is no Image, and why: `spec.rules[0].type: unknown variant …`. None if it is one.
fn unreadable(object: &DynamicObject) -> Option<String> {
    let value = serde_json::to_value(object).ok()?;
    let error = serde_path_to_error::deserialize::<_, Image>(value).err()?;
    Some(format!("{}: {}", error.path(), error.inner()))
}

fn body(metadata: &ObjectMeta, status: &Value) -> Value {
    json!({
        "apiVersion": Image::api_version(&()),
        "kind": Image::kind(&()),
        "metadata": {
            "name": metadata.name,
            "namespace": metadata.namespace,
            "uid": metadata.uid,
            "resourceVersion": metadata.resource_version,
        },
        "status": status,
    })
}

pub(super) async fn call<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, WriteError> {
    match tokio::time::timeout(TIMEOUT, request).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) => Err(match status.code {
            404 | 409 => WriteError::Conflict,
            400 | 422 => WriteError::Refused(status.message.clone()),
            _ => WriteError::Failed(status.message.clone()), // 403 too: an API server that starts has no RBAC yet
        }),
        Ok(Err(error)) => Err(WriteError::Failed(error.to_string())),
        Err(_) => Err(WriteError::Failed(format!("no answer within {} s", TIMEOUT.as_secs()))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_tell_whether_to_try_again() {
        async fn check(code: u16, expected: &str) {
            let status = kube::core::Status { code, message: "no".to_owned(), ..kube::core::Status::default() };
            let error = call::<()>(std::future::ready(Err(kube::Error::Api(status.into())))).await.unwrap_err();
            assert_eq!(format!("{error:?}"), expected, "{code}");
        }
        check(404, "Conflict").await;
        check(409, "Conflict").await;
        check(403, "Failed(\"no\")").await;
        check(400, "Refused(\"no\")").await;
        check(422, "Refused(\"no\")").await;
        check(429, "Failed(\"no\")").await;
        check(503, "Failed(\"no\")").await;
    }

    #[test]
    fn what_a_status_is_made_of() {
        #[track_caller]
        fn check(patch: &Value, expected: bool) {
            let mut object = json!({
                "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
                "metadata": {"name": "web", "uid": "u", "generation": 1, "resourceVersion": "7"},
                "spec": {
                    "image": "app", "triggers": [{"type": "webhook"}],
                    "rules": [{"name": "r", "type": "always", "actions": [{"type": "apply"}]}],
                },
                "status": {"tag": "1.0.0"},
            });
            let before: Image = serde_json::from_value(object.clone()).unwrap();
            json_patch::merge(&mut object, patch);
            let now: Image = serde_json::from_value(object).unwrap();
            assert_eq!(is_annotated_only(&before, &now), expected, "{patch}");
        }
        check(&json!({}), true);
        check(&json!({"metadata": {"resourceVersion": "8", "annotations": {"a": "b"}}}), true);
        check(&json!({"metadata": {"generation": 2}}), false);
        check(&json!({"metadata": {"uid": "v"}}), false);
        check(&json!({"status": {"tag": "1.1.0"}}), false);
    }

    #[test]
    fn the_field_that_cannot_be_read_is_named() {
        fn check(patch: &Value, expected: &str) {
            let mut object = json!({
                "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image", "metadata": {"name": "web"},
                "spec": {
                    "image": "app", "triggers": [{"type": "webhook"}],
                    "rules": [{"name": "r", "type": "always", "actions": [{"type": "apply"}]}],
                },
            });
            json_patch::merge(&mut object, patch);
            let object: DynamicObject = serde_json::from_value(object).unwrap();
            let found = unreadable(&object).unwrap_or_default();
            assert!(found.starts_with(expected) && found.is_empty() == expected.is_empty(), "{found:?}");
        }
        check(&json!({}), "");
        check(&json!({"spec": {"image": null}}), "spec: missing field `image`");
        check(&json!({"spec": {"rules": "none"}}), "spec.rules: invalid type: string \"none\", expected a sequence");
        let rule = json!([{"name": "r", "type": "semver-mayor", "actions": []}]);
        check(
            &json!({"spec": {"rules": rule}}),
            "spec.rules[0].type: unknown variant `semver-mayor`, expected one of ",
        );
        check(&json!({"spec": null}), ".: missing field `spec`");
    }
}
