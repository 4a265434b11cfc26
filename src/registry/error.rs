//! What can go wrong between kimup and a registry, typed by what a caller does about it.

use std::{fmt, time::Duration};

/// Why a repository's tags could not be listed, or a manifest not be read. A listing is complete or it is one of these,
/// never a part.
///
/// No variant holds a credential, a token, a body or a header of the registry.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum RegistryError {
    /// Nothing that could be read came back.
    #[error("registry {host} is unreachable ({step}): {cause}")]
    Unreachable {
        /// Where it failed.
        step: Step,
        /// The host that was asked: the registry, its token host or a redirect's target.
        host: String,
        /// The innermost error, without the address.
        cause: String,
    },
    /// The registry (or its token host) refuses: 401 after everything was tried, or 403.
    #[error("registry {host} denies access ({}): {cause}", if *.sent { "with credentials" } else { "no credentials were sent" })]
    Unauthorized {
        /// The host that refused.
        host: String,
        /// Whether credentials of the Image were part of what was refused.
        sent: bool,
        /// What was refused and what to do next.
        cause: String,
    },
    /// 404: the registry does not know the repository (or hides it from these credentials). Never "no tags".
    #[error("registry {host} knows no repository {repository}: check the name and the credentials")]
    NotFound {
        /// The registry.
        host: String,
        /// The repository's path on it.
        repository: String,
    },
    /// The registry has the repository, as far as it tells, but no such tag or digest.
    #[error("registry {host} has no manifest {manifest} in repository {repository}")]
    NoManifest {
        /// The registry.
        host: String,
        /// The repository's path on it.
        repository: String,
        /// The tag or digest that was asked for.
        manifest: String,
    },
    /// The answer is not what the OCI distribution specification describes.
    #[error("registry {host} sent an unusable answer: {cause}")]
    Malformed {
        /// The host that answered.
        host: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The answer exceeds one of the caps in [`super::Limits`].
    #[error("registry {host} sent too much: {cap}")]
    TooMuch {
        /// The host that answered.
        host: String,
        /// Which cap.
        cap: Cap,
    },
    /// A status that says nothing about tags, after the retries that are allowed.
    #[error("registry {host} answered with status {status}")]
    Server {
        /// The host that answered.
        host: String,
        /// The HTTP status.
        status: u16,
    },
    /// The host asked for a pause (429), or the client's own rate leaves no room, beyond the deadline.
    #[error("registry {host} limits the rate{}", retry_text(*.retry_after))]
    RateLimited {
        /// The host.
        host: String,
        /// When to try again, capped at an hour; `None` if the host did not say.
        retry_after: Option<Duration>,
    },
    /// The registry points where credentials and requests of an Image must not go.
    #[error("registry {host}: refused to follow {why}")]
    Refused {
        /// The host that pointed there.
        host: String,
        /// What was refused.
        why: Refusal,
    },
    /// Too slow: the page timeout or the deadline of the whole listing passed.
    #[error("registry {host} did not answer within {}s", .after.as_secs_f64())]
    Timeout {
        /// The host that was waited for.
        host: String,
        /// The limit that passed.
        after: Duration,
    },
    /// The client's own configuration is wrong; no request was sent.
    #[error("registry client: {cause}")]
    Config {
        /// What to correct.
        cause: String,
    },
}

impl RegistryError {
    /// Whether the registry answered but not with a usable tag list or manifest (`TagsError` of the Image's status); false when it
    /// could not be asked (`RegistryError`).
    pub fn is_tags_error(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::NoManifest { .. } | Self::Malformed { .. } | Self::TooMuch { .. } => true,
            Self::Refused { why, .. } => matches!(why, Refusal::Link(_) | Refusal::Loop),
            _ => false,
        }
    }

    /// The error with its texts changed.
    pub(super) fn map_texts(mut self, change: impl Fn(&str) -> String) -> Self {
        let texts: [Option<&mut String>; 2] = match &mut self {
            Self::Unreachable { host, cause, step: _ }
            | Self::Unauthorized { host, cause, sent: _ }
            | Self::Malformed { host, cause } => [Some(host), Some(cause)],
            Self::NotFound { host, repository } | Self::NoManifest { host, repository, manifest: _ } => {
                [Some(host), Some(repository)]
            }
            Self::Refused { host, why } => [Some(host), why.text_mut()],
            Self::TooMuch { host, cap: _ }
            | Self::Server { host, status: _ }
            | Self::RateLimited { host, retry_after: _ }
            | Self::Timeout { host, after: _ } => [Some(host), None],
            Self::Config { cause } => [Some(cause), None],
        };
        for text in texts.into_iter().flatten() {
            *text = change(text);
        }
        self
    }

    /// The host that the error is about; empty for [`RegistryError::Config`].
    pub fn host(&self) -> &str {
        match self {
            Self::Unreachable { host, .. }
            | Self::Unauthorized { host, .. }
            | Self::NotFound { host, .. }
            | Self::NoManifest { host, .. }
            | Self::Malformed { host, .. }
            | Self::TooMuch { host, .. }
            | Self::Server { host, .. }
            | Self::RateLimited { host, .. }
            | Self::Refused { host, .. }
            | Self::Timeout { host, .. } => host,
            Self::Config { .. } => "",
        }
    }
}

/// The step at which a connection failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The name does not resolve.
    Dns,
    /// No connection.
    Connect,
    /// The TLS handshake failed, for example because of the certificate.
    Tls,
    /// The TLS handshake failed because the host wants a client certificate: there is none for it, or it refuses the one it
    /// was shown.
    ClientCertificate,
    /// The connection broke before the answer was complete.
    Read,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dns => "dns",
            Self::Connect => "connect",
            Self::Tls => "tls",
            Self::ClientCertificate => "tls, client certificate",
            Self::Read => "read",
        })
    }
}

/// A cap that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cap {
    /// Bytes of one answer, after decompression.
    PageBytes(usize),
    /// Bytes of a manifest, index or image config. Fixed: registries need not take larger ones.
    ManifestBytes(usize),
    /// Bytes of a token service's answer. Fixed.
    TokenBytes(usize),
    /// Pages of a listing.
    Pages(usize),
    /// Tags of a listing, illegal ones and duplicates included.
    Tags(usize),
    /// Bytes of all tags of a listing together.
    ListBytes(usize),
    /// HTTP requests that one page (or one manifest) may cost, with tokens, redirects and retries.
    Requests(usize),
    /// Images in one index.
    Entries(usize),
}

impl fmt::Display for Cap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PageBytes(n) => write!(f, "more than {n} bytes in one answer"),
            Self::ManifestBytes(n) => write!(f, "more than {n} bytes in one manifest or image config"),
            Self::TokenBytes(n) => write!(f, "more than {n} bytes instead of a token"),
            Self::Pages(n) => write!(f, "more than {n} pages"),
            Self::Tags(n) => write!(f, "more than {n} tags"),
            Self::ListBytes(n) => write!(f, "more than {n} bytes of tags in one list"),
            Self::Requests(n) => write!(f, "one answer needs more than {n} requests"),
            Self::Entries(n) => write!(f, "more than {n} images in one index"),
        }
    }
}

/// Something a registry asked for that the client does not do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// A token realm outside the registry's own domain, or not over https.
    Realm(String),
    /// A `Link` to another origin, scheme or repository.
    Link(String),
    /// A `Link` that leads back to a page that was read, or page after page without a new tag.
    Loop,
    /// A redirect to plain http, or more than five.
    Redirect(String),
    /// An address that only a host itself may use (link-local, cloud metadata), or one with a user name in it.
    Address(String),
}

impl Refusal {
    fn text_mut(&mut self) -> Option<&mut String> {
        match self {
            Self::Realm(text) | Self::Link(text) | Self::Redirect(text) | Self::Address(text) => Some(text),
            Self::Loop => None,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Realm(why) => write!(f, "its token realm: {why}"),
            Self::Link(why) => write!(f, "the Link to the next page: {why}"),
            Self::Loop => f.write_str("the Link to the next page: the pages go round in a circle"),
            Self::Redirect(why) => write!(f, "a redirect: {why}"),
            Self::Address(why) => write!(f, "an address: {why}"),
        }
    }
}

fn retry_text(after: Option<Duration>) -> String {
    after.map_or_else(String::new, |after| format!(", try again in {}s", after.as_secs().max(1)))
}

/// A pull secret that cannot be used. Names the Secret, never shows its content.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum PullSecretError {
    /// Not a Secret type that holds registry credentials.
    #[error(
        "Secret {name} has type {kind}: a pull secret has type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg"
    )]
    WrongType {
        /// The Secret.
        name: String,
        /// Its type.
        kind: String,
    },
    /// The key that its type demands is not there.
    #[error("Secret {name} has no key {key}: create it with kubectl create secret docker-registry")]
    MissingKey {
        /// The Secret.
        name: String,
        /// The key.
        key: &'static str,
    },
    /// Larger than the API server stores (1 MiB).
    #[error("Secret {name}: key {key} is larger than {max} bytes")]
    TooLarge {
        /// The Secret.
        name: String,
        /// The key.
        key: &'static str,
        /// The cap in bytes.
        max: usize,
    },
    /// The value is not JSON of the docker config's shape.
    #[error("Secret {name}: key {key} is not a docker config (line {line}, column {column})")]
    BadJson {
        /// The Secret.
        name: String,
        /// The key.
        key: &'static str,
        /// Line of the error, from 1.
        line: usize,
        /// Column of the error, from 1.
        column: usize,
    },
    /// An entry's `auth` is not base64 of `user:password`.
    #[error("Secret {name}: the auth of entry {entry} in key {key} is not base64 of user:password")]
    BadAuth {
        /// The Secret.
        name: String,
        /// The key.
        key: &'static str,
        /// Which entry, from 1, in the order of the registries' names.
        entry: usize,
    },
}
