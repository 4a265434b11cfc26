//! Asks the registry for an Image: its Secrets, then the list of tags.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;

use crate::api::{CompiledSpec, Image, SyncResult};
use crate::registry::{self, Keyring, ListRequest, Listing, PullSecret, RegistryError};
use crate::rollout::PullAccess;

use super::access;
use super::pace::Wanted;
use super::status::Failure;

pub(super) const SECRET_TIMEOUT: Duration = Duration::from_secs(10);

/// What to ask a registry for.
pub struct Asked {
    /// The repository, with the credentials that may be sent.
    pub request: ListRequest,
    /// Pull secrets by default that are not there, as the kubelet skips them too.
    skipped: Vec<String>,
}

/// What to ask the registry for: an Image's repository, with its pull secrets; with those of `access` if it names none.
///
/// Secrets are read by `get` at each call, so a changed one takes effect at the next sync and a removed one stops use at
/// once. Nothing of them outlives the listing but in the registry client's token cache.
pub async fn request(
    client: &kube::Client,
    image: &Image,
    spec: &CompiledSpec,
    access: Option<&PullAccess>,
) -> Result<Asked, Failure> {
    let (keyring, skipped) = match access.filter(|_| image.spec.image_pull_secrets.is_empty()) {
        Some(access) => {
            access::keyring(client, image.metadata.namespace.as_deref().unwrap_or_default(), access).await?
        }
        None => (keyring(client, image).await?, Vec::new()),
    };
    let request = ListRequest {
        repository: spec.repository.clone(),
        keyring,
        insecure_skip_tls_verify: image.spec.insecure_skip_tls_verify,
    };
    Ok(Asked { request, skipped })
}

/// Lists the tags, together with the other Images that ask for the same.
pub async fn list_tags(registry: &registry::Client, asked: &Asked, wanted: Wanted) -> Result<Arc<Listing>, Failure> {
    let listing = registry.list_tags_shared(&asked.request, wanted.not_before, wanted.asker).await;
    listing.map_err(|error| access::explain(registry_failure(&error), &error, &asked.skipped))
}

async fn keyring(client: &kube::Client, image: &Image) -> Result<Keyring, Failure> {
    let namespace = image.metadata.namespace.as_deref().unwrap_or_default();
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut found: Vec<(String, String, BTreeMap<String, Vec<u8>>)> = Vec::new();
    for (index, reference) in image.spec.image_pull_secrets.iter().enumerate() {
        let name = &reference.name;
        let failure = |cause: String| secret_failure(format!("Secret {namespace}/{name}: {cause}"));
        let secret = match tokio::time::timeout(SECRET_TIMEOUT, api.get_opt(name)).await {
            Ok(Ok(Some(secret))) => secret,
            Ok(Ok(None)) => {
                return Err(failure(format!("not found; create it or fix spec.imagePullSecrets[{index}].name")));
            }
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                return Err(failure(forbidden(namespace)));
            }
            Ok(Err(error)) => return Err(failure(format!("cannot be read: {error}"))),
            Err(_) => {
                return Err(failure("cannot be read: no answer from the API server in time".to_owned()));
            }
        };
        let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
        found.push((name.clone(), secret.type_.unwrap_or_default(), data));
    }
    let secrets = found.iter().map(|(name, kind, data)| PullSecret { name, kind, data });
    Keyring::from_secrets(secrets).map_err(|error| secret_failure(error.to_string()))
}

/// What is missing if the API server refuses a Secret.
pub(super) fn forbidden(namespace: &str) -> String {
    format!(
        "kimup may not read it; bind the ClusterRole kimup-pull-secrets to its ServiceAccount by a RoleBinding in \
         namespace {namespace}"
    )
}

pub(super) fn secret_failure(message: String) -> Failure {
    Failure { result: SyncResult::PullSecretsError, reason: "PullSecretInvalid", message, stalled: false }
}

/// What a registry's error means for an Image.
pub fn registry_failure(error: &RegistryError) -> Failure {
    let (result, reason) = if error.is_tags_error() {
        (SyncResult::TagsError, "TagsUnusable")
    } else {
        (SyncResult::RegistryError, "RegistryUnavailable")
    };
    let message = match error {
        // Not when to try again: a condition whose message counts down would be written at each sync.
        RegistryError::RateLimited { host, .. } => {
            RegistryError::RateLimited { host: host.clone(), retry_after: None }.to_string()
        }
        other => other.to_string(),
    };
    Failure { result, reason, message, stalled: false }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_again_says_the_same_again() {
        let limited = |seconds| RegistryError::RateLimited {
            host: "ghcr.io".to_owned(),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let failure = registry_failure(&limited(7));
        assert_eq!(failure, registry_failure(&limited(30)));
        assert_eq!(failure.message, "registry ghcr.io limits the rate");
    }
}
