//! Asks the registry for an Image: its Secrets, then the list of tags.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Secret;
use kube::api::Api;

use crate::api::{CompiledSpec, Image, SyncResult};
use crate::policy::Repository;
use crate::registry::{self, Keyring, ListError, ListRequest, Listing, PullSecret, PullSecretError, RegistryError};
use crate::rollout::PullAccess;

use super::access;
use super::pace::Wanted;
use super::status::Failure;

/// Reason of `Ready` where a registry fails for everybody: said by one Event for all Images.
pub(super) const HOST_FAILS: &str = "RegistryUnavailable";
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
    listing.map_err(|failed| {
        let failure = list_failure(&asked.request.repository, &failed);
        access::explain(failure, &failed.error, &asked.skipped)
    })
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
    Keyring::from_secrets(secrets).map_err(|error| unusable_secret(&error))
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

/// A Secret that is there and cannot be used.
pub(super) fn unusable_secret(error: &PullSecretError) -> Failure {
    let next = error.next_step().map(|next| format!("; {next}")).unwrap_or_default();
    secret_failure(format!("{error}{next}"))
}

/// What a list that could not be had means for an Image: of which repository, at what, what is wrong and what to do.
fn list_failure(repository: &Repository, failed: &ListError) -> Failure {
    let failure = registry_failure(&failed.error);
    Failure { message: format!("{repository}: {}: {}", failed.stage, failure.message), ..failure }
}

/// What a manifest that could not be had means for an Image.
pub fn manifest_failure(repository: &Repository, tag: &str, error: &RegistryError) -> Failure {
    let failure = registry_failure(error);
    Failure { message: format!("{repository}: manifest {tag}: {}", failure.message), ..failure }
}

/// What a registry's error means for an Image: a result, what is wrong and what to do.
fn registry_failure(error: &RegistryError) -> Failure {
    let (result, reason) = match error {
        error if error.is_tags_error() => (SyncResult::TagsError, "TagsUnusable"),
        // A matter of this Image's credentials; everything else concerns all Images of the host.
        RegistryError::Unauthorized { .. } => (SyncResult::RegistryError, "AccessDenied"),
        _ => (SyncResult::RegistryError, HOST_FAILS),
    };
    let message = match error {
        // Not when to try again: a condition whose message counts down would be written at each sync.
        RegistryError::RateLimited { host, .. } => {
            RegistryError::RateLimited { host: host.clone(), retry_after: None }.to_string()
        }
        other => other.to_string(),
    };
    let message = error.next_step().map_or_else(|| message.clone(), |next| format!("{message}; {next}"));
    Failure { result, reason, message, stalled: false }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Stage;

    #[test]
    fn what_fails_again_says_the_same_again() {
        let limited = |seconds| RegistryError::RateLimited {
            host: "ghcr.io".to_owned(),
            retry_after: Some(Duration::from_secs(seconds)),
        };
        let failure = registry_failure(&limited(7));
        assert_eq!(failure, registry_failure(&limited(30)));
        assert!(failure.message.starts_with("registry ghcr.io limits the rate; "), "{}", failure.message);
    }

    #[test]
    fn a_failure_has_its_result_and_tells_everything() {
        let check = |error: RegistryError, result: SyncResult, reason: &str, message: &str| {
            let repository = Repository::parse("ghcr.io/team/app").unwrap();
            let failure = list_failure(&repository, &ListError { stage: Stage::Page(2), error });
            assert_eq!((failure.result, failure.reason, failure.stalled), (result, reason, false));
            assert_eq!(failure.message, format!("ghcr.io/team/app: list page 2: registry ghcr.io {message}"));
        };
        let host = || "ghcr.io".to_owned();
        let (registry, tags) = (SyncResult::RegistryError, SyncResult::TagsError);
        let logs = "answered with status 503; look at the registry's own status and logs";
        check(RegistryError::Server { host: host(), status: 503 }, registry, "RegistryUnavailable", logs);
        let denied = RegistryError::Unauthorized { host: host(), sent: true, cause: "403".to_owned() };
        let renew =
            "denies access (with credentials): 403; renew the pull secret, or let its account pull this repository";
        check(denied, registry, "AccessDenied", renew);
        let unknown = "knows no repository team/app: check the name and the credentials";
        check(
            RegistryError::NotFound { host: host(), repository: "team/app".to_owned() },
            tags,
            "TagsUnusable",
            unknown,
        );
    }

    #[test]
    fn a_secret_says_what_to_do() {
        let key = ".dockerconfigjson";
        let failure = unusable_secret(&PullSecretError::BadAuth { name: "pull".to_owned(), key, entry: 1 });
        assert_eq!(failure.result, SyncResult::PullSecretsError);
        assert!(
            failure.message.ends_with("; create it anew with kubectl create secret docker-registry"),
            "{failure:?}"
        );
    }
}
