//! The credentials of an Image that kimup made and whose annotations name no pull secrets: those of its Pods.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::Api;

use crate::registry::{Keyring, PullSecret, RegistryError};
use crate::rollout::PullAccess;

use super::observe::{SECRET_TIMEOUT, forbidden, secret_failure, unusable_secret};
use super::status::Failure;

/// Most pull secrets that are read for one Image; `spec.imagePullSecrets` may name as many.
const MAX_SECRETS: usize = 16;
const ACCOUNT_TIMEOUT: Duration = Duration::from_secs(10);

/// The credentials of a Pod: its own pull secrets, then those of its ServiceAccount. What is missing or cannot be used is
/// skipped, as the kubelet does; the texts say what and why, in case the registry then denies access.
pub async fn keyring(
    client: &kube::Client,
    namespace: &str,
    access: &PullAccess,
) -> Result<(Keyring, Vec<String>), Failure> {
    let mut skipped = Vec::new();
    let mut names = access.secrets.clone();
    match account(client, namespace, &access.service_account).await? {
        Ok(more) => names.extend(more),
        Err(why) => skipped.push(why),
    }
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    if names.len() > MAX_SECRETS {
        skipped.push(format!("all pull secrets after the first {MAX_SECRETS}"));
        names.truncate(MAX_SECRETS);
    }
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let mut found: Vec<(String, String, BTreeMap<String, Vec<u8>>)> = Vec::new();
    for name in names {
        let what = format!("Secret {namespace}/{name}");
        match tokio::time::timeout(SECRET_TIMEOUT, api.get_opt(&name)).await {
            Ok(Ok(Some(secret))) => {
                let data = secret.data.unwrap_or_default().into_iter().map(|(key, value)| (key, value.0)).collect();
                let (kind, data) = (secret.type_.unwrap_or_default(), data);
                match Keyring::from_secrets([PullSecret { name: &name, kind: &kind, data: &data }]) {
                    Ok(_) => found.push((name, kind, data)),
                    Err(error) => skipped.push(error.to_string()),
                }
            }
            Ok(Ok(None)) => skipped.push(format!("{what}: not found")),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                skipped.push(format!("{what}: {}", forbidden(namespace)));
            }
            Ok(Err(error)) => return Err(secret_failure(format!("{what}: cannot be read: {error}"))),
            Err(_) => return Err(secret_failure(format!("{what}: no answer from the API server in time"))),
        }
    }
    let secrets = found.iter().map(|(name, kind, data)| PullSecret { name, kind, data });
    let keyring = Keyring::from_secrets(secrets).map_err(|error| unusable_secret(&error))?;
    Ok((keyring, skipped))
}

/// The pull secrets that a ServiceAccount names, or why it tells none.
async fn account(client: &kube::Client, namespace: &str, name: &str) -> Result<Result<Vec<String>, String>, Failure> {
    let api: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let what = format!("ServiceAccount {namespace}/{name}");
    match tokio::time::timeout(ACCOUNT_TIMEOUT, api.get_opt(name)).await {
        Ok(Ok(Some(account))) => {
            let secrets = account.image_pull_secrets.into_iter().flatten().map(|secret| secret.name);
            Ok(Ok(secrets.filter(|name| !name.is_empty()).collect()))
        }
        Ok(Ok(None)) => Ok(Err(format!("{what}: not found"))),
        Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
            Ok(Err(format!("{what}: kimup may not read it; grant get on serviceaccounts, as deploy/rbac.yaml does")))
        }
        Ok(Err(error)) => Err(secret_failure(format!("{what}: cannot be read: {error}"))),
        Err(_) => Err(secret_failure(format!("{what}: no answer from the API server in time"))),
    }
}

/// A registry that denies access may do so for want of what was skipped.
pub fn explain(failure: Failure, error: &RegistryError, skipped: &[String]) -> Failure {
    let denied = matches!(error, RegistryError::Unauthorized { .. } | RegistryError::NotFound { .. });
    if !denied || skipped.is_empty() {
        return failure;
    }
    Failure { message: format!("{}; skipped: {}", failure.message, skipped.join("; ")), ..failure }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::SyncResult;

    #[test]
    fn what_was_skipped_is_said_if_access_is_denied() {
        #[track_caller]
        fn check(error: &RegistryError, skipped: &[&str], expected: &str) {
            let (result, reason) = (SyncResult::RegistryError, "RegistryUnavailable");
            let failure = Failure { result, reason, message: "denied".to_owned(), stalled: false };
            let skipped: Vec<String> = skipped.iter().map(|&s| s.to_owned()).collect();
            assert_eq!(explain(failure, error, &skipped).message, expected);
        }
        let host = || "ghcr.io".to_owned();
        let denied = RegistryError::Unauthorized { host: host(), sent: false, cause: String::new() };
        let hidden = RegistryError::NotFound { host: host(), repository: "app".to_owned() };
        check(&denied, &[], "denied");
        check(&denied, &["Secret shop/a: not found"], "denied; skipped: Secret shop/a: not found");
        check(&hidden, &["a", "b"], "denied; skipped: a; b");
        check(&RegistryError::Server { host: host(), status: 500 }, &["a"], "denied");
    }
}
