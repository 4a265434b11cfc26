//! Where a listing failed, and what a person can do about it (pure).

use std::fmt;

use super::error::{Cap, PullSecretError, Refusal, RegistryError, Step};

/// What a listing was at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Asking for a token.
    Token,
    /// This page of the list, from 1. How many there are only the last one tells.
    Page(usize),
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Token => f.write_str("asking for a token"),
            Self::Page(page) => write!(f, "list page {page}"),
        }
    }
}

/// Why a repository's tags could not be listed, and at what.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[error("{stage}: {error}")]
pub struct ListError {
    /// What failed.
    pub stage: Stage,
    /// How.
    pub error: RegistryError,
}

/// Before anything was sent.
impl From<RegistryError> for ListError {
    fn from(error: RegistryError) -> Self {
        Self { stage: Stage::Page(1), error }
    }
}

impl RegistryError {
    /// What somebody who runs an Image can do; none if the error's own text says it.
    pub fn next_step(&self) -> Option<&'static str> {
        Some(match self {
            Self::Unreachable { step: Step::Dns, .. } => "check the host in spec.image and the cluster's DNS",
            Self::Unreachable { step: Step::Connect, .. } => {
                "check that the registry runs and that firewalls, network policies and proxies let kimup reach it"
            }
            Self::Unreachable { step: Step::Tls, .. } => {
                "let kimup trust its CA or set spec.insecureSkipTLSVerify; without TLS name it in --plain-http-registry"
            }
            Self::Unreachable { step: Step::ClientCertificate, .. } => {
                "have the operator name one that it accepts as client-cert-file in --registry-config"
            }
            Self::Unreachable { step: Step::Read, .. } => "check the registry and the proxies before it",
            Self::Unauthorized { sent: true, .. } => "renew the pull secret, or let its account pull this repository",
            Self::Unauthorized { sent: false, .. } => {
                "add them to imagePullSecrets of the Image, or of the Pods or their ServiceAccount"
            }
            Self::NotFound { .. } => return None,
            Self::NoManifest { .. } => "push it again, or let the rules choose another tag",
            Self::Malformed { .. } => "check host and port in spec.image, and that no proxy answers in its place",
            Self::TooMuch { cap, .. } => match cap {
                Cap::PageBytes(_) => "raise --registry-max-page-bytes",
                Cap::Pages(_) => "raise --registry-max-pages",
                Cap::Tags(_) => "raise --registry-max-tags",
                Cap::ListBytes(_) => "raise --registry-max-list-bytes",
                Cap::ManifestBytes(_) => "build a smaller image, as no runtime is bound to pull this one",
                Cap::TokenBytes(_) | Cap::Requests(_) => "check its token service and where it redirects to",
                Cap::Entries(_) => "build the image for fewer platforms",
            },
            Self::Server { .. } => "look at the registry's own status and logs",
            Self::RateLimited { .. } => {
                "sync less often, or with credentials that have a higher limit; kimup's own is --registry-rate"
            }
            Self::Refused { why: Refusal::Address(_), .. } => "name a registry in spec.image that may be asked",
            Self::Refused { .. } => "have the registry's operator correct it",
            Self::Timeout { .. } => {
                "check the network; for a slow one raise --registry-page-timeout and --registry-deadline"
            }
            Self::Config { .. } => "correct kimup's flags or spec.image",
        })
    }
}

impl PullSecretError {
    /// What to do with the Secret; none if the error's own text says it.
    pub fn next_step(&self) -> Option<&'static str> {
        match self {
            Self::WrongType { .. } | Self::MissingKey { .. } => None,
            Self::TooLarge { .. } => Some("leave only the registries in it that are needed"),
            Self::BadJson { .. } | Self::BadAuth { .. } => {
                Some("create it anew with kubectl create secret docker-registry")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn host() -> String {
        "ghcr.io".to_owned()
    }

    #[test]
    fn every_error_says_what_is_wrong_and_what_to_do() {
        let check = |error: RegistryError, cause: &str, next: &str| {
            let said = format!("{error}; {}", error.next_step().unwrap_or_default());
            for part in [cause, next] {
                assert!(said.contains(part), "{said:?} lacks {part:?}");
            }
            assert!(error.next_step().is_none_or(|next| !error.to_string().contains(next)), "{said}");
        };
        let unreachable = |step| RegistryError::Unreachable { step, host: host(), cause: "it is gone".to_owned() };
        check(unreachable(Step::Dns), "unreachable (dns): it is gone", "DNS");
        check(unreachable(Step::Connect), "unreachable (connect): it is gone", "network policies");
        check(unreachable(Step::Tls), "unreachable (tls): it is gone", "insecureSkipTLSVerify");
        check(unreachable(Step::ClientCertificate), "(tls, client certificate): it is gone", "client-cert-file");
        check(unreachable(Step::Read), "unreachable (read): it is gone", "proxies");
        let denied = |sent| RegistryError::Unauthorized { host: host(), sent, cause: "who are you".to_owned() };
        check(denied(true), "denies access (with credentials): who are you", "renew the pull secret");
        check(denied(false), "no credentials were sent", "ServiceAccount");
        let (repository, manifest) = ("team/app".to_owned(), "1.0.0".to_owned());
        let not_found = RegistryError::NotFound { host: host(), repository: repository.clone() };
        check(not_found, "knows no repository team/app", "check the name");
        check(RegistryError::NoManifest { host: host(), repository, manifest }, "no manifest 1.0.0", "push it again");
        check(RegistryError::Malformed { host: host(), cause: "a web page".to_owned() }, "a web page", "host and port");
        let too_much = |cap| RegistryError::TooMuch { host: host(), cap };
        check(too_much(Cap::PageBytes(7)), "7 bytes", "--registry-max-page-bytes");
        check(too_much(Cap::Pages(7)), "7 pages", "--registry-max-pages");
        check(too_much(Cap::Tags(7)), "7 tags", "--registry-max-tags");
        check(too_much(Cap::ListBytes(7)), "7 bytes of tags", "--registry-max-list-bytes");
        check(too_much(Cap::ManifestBytes(7)), "7 bytes in one manifest", "smaller image");
        check(too_much(Cap::TokenBytes(7)), "7 bytes instead of a token", "token service");
        check(too_much(Cap::Requests(7)), "7 requests", "token service");
        check(too_much(Cap::Entries(7)), "7 images", "fewer platforms");
        check(RegistryError::Server { host: host(), status: 503 }, "status 503", "the registry's own");
        check(RegistryError::RateLimited { host: host(), retry_after: None }, "limits the rate", "less often");
        let refused = |why| RegistryError::Refused { host: host(), why };
        check(refused(Refusal::Realm("evil.io".to_owned())), "its token realm: evil.io", "operator");
        check(refused(Refusal::Link("evil.io".to_owned())), "next page: evil.io", "operator");
        check(refused(Refusal::Loop), "in a circle", "operator");
        check(refused(Refusal::Redirect("evil.io".to_owned())), "a redirect: evil.io", "operator");
        check(refused(Refusal::Address("169.254.0.1".to_owned())), "169.254.0.1", "spec.image");
        let after = Duration::from_secs(30);
        check(RegistryError::Timeout { host: host(), after }, "within 30s", "--registry-page-timeout");
        check(RegistryError::Config { cause: "no HOST:PORT".to_owned() }, "no HOST:PORT", "flags");
    }

    #[test]
    fn every_secret_says_what_is_wrong_and_what_to_do() {
        let check = |error: PullSecretError, next: &str| {
            let said = format!("{error}; {}", error.next_step().unwrap_or_default());
            assert!(said.contains("Secret pull") && said.contains(next), "{said:?} lacks {next:?}");
        };
        let (name, key) = (|| "pull".to_owned(), ".dockerconfigjson");
        check(PullSecretError::WrongType { name: name(), kind: "Opaque".to_owned() }, "kubernetes.io/dockerconfigjson");
        check(PullSecretError::MissingKey { name: name(), key }, "kubectl create secret docker-registry");
        check(PullSecretError::TooLarge { name: name(), key, max: 9 }, "only the registries");
        check(PullSecretError::BadJson { name: name(), key, line: 1, column: 2 }, "kubectl create secret");
        check(PullSecretError::BadAuth { name: name(), key, entry: 1 }, "kubectl create secret");
    }

    #[test]
    fn the_stage_comes_first() {
        let check = |stage, expected: &str| {
            let error = RegistryError::Server { host: host(), status: 500 };
            assert_eq!(ListError { stage, error }.to_string(), expected);
        };
        check(Stage::Token, "asking for a token: registry ghcr.io answered with status 500");
        check(Stage::Page(3), "list page 3: registry ghcr.io answered with status 500");
    }
}
