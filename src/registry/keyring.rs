//! Credentials of one Image, from its pull secrets, matched to repositories as the kubelet does
//! (<https://kubernetes.io/docs/concepts/containers/images/#config-json>). Pure.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashSet},
    fmt,
    sync::Arc,
};

use aws_lc_rs::digest;
use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::error::PullSecretError;
use crate::policy::Repository;

/// Largest docker config that is read, in bytes: what the API server allows a Secret to hold.
const MAX_CONFIG: usize = 1024 * 1024;

/// A Kubernetes Secret that an Image names in `imagePullSecrets`.
pub struct PullSecret<'a> {
    /// The Secret's name, for messages.
    pub name: &'a str,
    /// Its type: `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`.
    pub kind: &'a str,
    /// Its decoded data.
    pub data: &'a BTreeMap<String, Vec<u8>>,
}

/// A user name with a password, or a token that a registry's token service takes instead. Prints nothing of it.
#[derive(Clone)]
pub struct Credentials {
    username: SecretString,
    password: SecretString,
    identity_token: Option<SecretString>,
    fingerprint: [u8; 32],
}

impl Credentials {
    /// A user name with a password.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Self {
        Self::new(username.into(), password.into(), None)
    }

    fn new(username: String, password: String, identity_token: Option<String>) -> Self {
        let fields = [username.as_str(), password.as_str(), identity_token.as_deref().unwrap_or_default()];
        let fingerprint = fingerprint(fields.map(str::as_bytes));
        Self {
            username: username.into(),
            password: password.into(),
            identity_token: identity_token.map(SecretString::from),
            fingerprint,
        }
    }

    /// The `user:password` of HTTP Basic (RFC 7617), if there is a password.
    pub(super) fn user_and_password(&self) -> Option<(&str, &str)> {
        let (username, password) = (self.username.expose_secret(), self.password.expose_secret());
        (!password.is_empty()).then_some((username, password))
    }

    /// The refresh token of the docker token service's OAuth 2 flow.
    pub(super) fn identity_token(&self) -> Option<&str> {
        self.identity_token.as_ref().map(ExposeSecret::expose_secret)
    }

    /// Equal for equal credentials. A digest of secrets: for comparing in memory, never to be shown.
    pub(super) fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials(..)")
    }
}

/// The credentials of one Image; empty means anonymous. Cheap to clone; prints only how many entries it has.
#[derive(Clone, Default)]
pub struct Keyring(Arc<[(Pattern, Credentials)]>);

impl fmt::Debug for Keyring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Keyring({} entries)", self.0.len())
    }
}

impl Keyring {
    /// The entries of all secrets together. Registry names that cannot be read are skipped, as the kubelet does, and so
    /// are entries without a password; credential helpers and stores that a secret names are never run.
    pub fn from_secrets<'a>(secrets: impl IntoIterator<Item = PullSecret<'a>>) -> Result<Self, PullSecretError> {
        let mut entries = Vec::new();
        for secret in secrets {
            for (index, (registry, entry)) in secret.entries()?.into_iter().enumerate() {
                let credentials = secret.credentials(index, entry)?;
                if let (Some(pattern), Some(credentials)) = (Pattern::parse(&registry), credentials) {
                    entries.push((pattern, credentials));
                } else {
                    let entry = index + 1;
                    tracing::debug!(secret = secret.name, entry, "skipped a pull secret's entry");
                }
            }
        }
        Ok(Self::sorted(entries))
    }

    /// One user for everything on the repository's registry, as a command line gives it.
    pub fn for_registry(repository: &Repository, credentials: Credentials) -> Self {
        Self::sorted(Pattern::parse(repository.host()).map(|pattern| (pattern, credentials)).into_iter().collect())
    }

    /// Whether there are no credentials at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What to try for this repository, in order: the longest match first; without duplicates.
    pub fn credentials_for(&self, repository: &Repository) -> Vec<Credentials> {
        let matching = |host: &str| -> Vec<_> {
            let target = Target::new(host, repository.path());
            self.0.iter().filter(|(pattern, _)| pattern.matches(&target)).map(|(_, found)| found.clone()).collect()
        };
        let mut found = matching(repository.host());
        if found.is_empty() && repository.host() == "docker.io" {
            // What `docker login` writes for Docker Hub; the kubelet falls back to it.
            found = matching("index.docker.io");
        }
        let mut seen = HashSet::new();
        found.retain(|credentials| seen.insert(credentials.fingerprint()));
        found
    }

    /// Equal for keyrings that give the same credentials to every repository, so that their Images can share a listing.
    /// A digest of secrets: for comparing in memory, never to be shown.
    pub fn fingerprint(&self) -> [u8; 32] {
        let parts = self.0.iter().map(|(pattern, credentials)| {
            let pattern = pattern.to_string();
            fingerprint([pattern.as_bytes(), &credentials.fingerprint])
        });
        let parts: Vec<[u8; 32]> = parts.collect();
        fingerprint(parts.iter().map(<[u8; 32]>::as_slice))
    }

    /// Stable: entries for the same pattern stay in the order of the secrets.
    fn sorted(mut entries: Vec<(Pattern, Credentials)>) -> Self {
        entries.sort_by_cached_key(|(pattern, _)| Reverse(pattern.weight()));
        Self(entries.into())
    }
}

/// SHA-256 over the parts, each with its length, so that no two lists of parts look alike.
fn fingerprint<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> [u8; 32] {
    let mut context = digest::Context::new(&digest::SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

#[derive(Deserialize)]
struct DockerConfigJson {
    auths: Option<BTreeMap<String, Option<Entry>>>,
}

#[derive(Deserialize, Default)]
struct Entry {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
    identitytoken: Option<String>,
}

impl PullSecret<'_> {
    fn key(&self) -> Result<&'static str, PullSecretError> {
        match self.kind {
            "kubernetes.io/dockerconfigjson" => Ok(".dockerconfigjson"),
            "kubernetes.io/dockercfg" => Ok(".dockercfg"),
            _ => Err(PullSecretError::WrongType { name: self.name.to_owned(), kind: self.kind.to_owned() }),
        }
    }

    fn entries(&self) -> Result<BTreeMap<String, Option<Entry>>, PullSecretError> {
        let key = self.key()?;
        let name = || self.name.to_owned();
        let value = self.data.get(key).ok_or_else(|| PullSecretError::MissingKey { name: name(), key })?;
        if value.len() > MAX_CONFIG {
            return Err(PullSecretError::TooLarge { name: name(), key, max: MAX_CONFIG });
        }
        let entries = if key == ".dockerconfigjson" {
            serde_json::from_slice::<DockerConfigJson>(value).map(|config| config.auths.unwrap_or_default())
        } else {
            serde_json::from_slice(value)
        };
        // serde_json's own text quotes values.
        entries.map_err(|error| PullSecretError::BadJson {
            name: name(),
            key,
            line: error.line(),
            column: error.column(),
        })
    }

    /// `None` for an entry that holds nothing to log in with, for example because a helper is to be asked.
    fn credentials(&self, index: usize, entry: Option<Entry>) -> Result<Option<Credentials>, PullSecretError> {
        let entry = entry.unwrap_or_default();
        let filled = |text: Option<String>| text.filter(|text| !text.is_empty());
        let identity_token = filled(entry.identitytoken);
        let user_and_password = match filled(entry.auth) {
            Some(auth) => decode_auth(&auth).ok_or_else(|| PullSecretError::BadAuth {
                name: self.name.to_owned(),
                key: self.key().unwrap_or_default(),
                entry: index + 1,
            })?,
            None => (entry.username.unwrap_or_default(), entry.password.unwrap_or_default()),
        };
        let (username, password) = user_and_password;
        let usable = identity_token.is_some() || !password.is_empty();
        Ok(usable.then(|| Credentials::new(username, password, identity_token)))
    }
}

/// `auth`: base64 of `user:password`, with padding or without, as the kubelet takes it.
fn decode_auth(auth: &str) -> Option<(String, String)> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &base64::alphabet::STANDARD,
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
    );
    let text = String::from_utf8(LENIENT.decode(auth.trim()).ok()?).ok()?;
    let (username, password) = text.split_once(':')?;
    // docker itself pads old entries with NUL.
    Some((username.to_owned(), password.trim_end_matches('\0').to_owned()))
}

/// A key of a docker config: a host whose labels may hold `*`, an optional port, an optional path.
#[derive(Debug, PartialEq, Eq)]
struct Pattern {
    labels: Vec<String>,
    port: Option<u16>,
    path: Vec<String>,
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let port = self.port.map(|port| format!(":{port}")).unwrap_or_default();
        write!(f, "{}{port}/{}", self.labels.join("."), self.path.join("/"))
    }
}

impl Pattern {
    fn parse(key: &str) -> Option<Self> {
        let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
        let (host, path) = key.split_once('/').unwrap_or((key, ""));
        // `https://index.docker.io/v1/` and the like mean the whole host.
        let path = path.strip_prefix("v1/").or_else(|| path.strip_prefix("v2/")).unwrap_or(path);
        let (host, port) = split_port(host)?;
        if host.is_empty() || path.contains(['?', '#']) || host.contains(['#', '@', ' ']) {
            return None;
        }
        let path = path.split('/').filter(|segment| !segment.is_empty()).map(str::to_owned).collect();
        Some(Self { labels: labels(host), port, path })
    }

    /// Sorts the longest match first: the deeper path, then the host with more of it written out.
    fn weight(&self) -> (usize, usize, String) {
        let written = |label: &String| {
            let globs = parse_glob(label).unwrap_or_default();
            globs.iter().filter(|glob| matches!(glob, Glob::Char(_))).count()
        };
        (self.path.len(), self.labels.iter().map(written).sum(), self.to_string())
    }

    fn matches(&self, target: &Target<'_>) -> bool {
        self.port == target.port
            && self.labels.len() == target.labels.len()
            && self.labels.iter().zip(&target.labels).all(|(glob, label)| glob_matches(glob, label))
            && self.path.len() <= target.path.len()
            && self.path.iter().zip(&target.path).all(|(ours, theirs)| ours == theirs)
    }
}

/// A repository, cut up as a pattern is.
struct Target<'a> {
    labels: Vec<String>,
    port: Option<u16>,
    path: Vec<&'a str>,
}

impl<'a> Target<'a> {
    fn new(host: &str, path: &'a str) -> Self {
        let (host, port) = split_port(host).unwrap_or((host, None));
        Self { labels: labels(host), port, path: path.split('/').collect() }
    }
}

/// An IPv6 address in brackets is one label.
fn labels(host: &str) -> Vec<String> {
    let host = host.to_ascii_lowercase();
    if host.contains(':') { vec![host] } else { host.split('.').map(str::to_owned).collect() }
}

fn split_port(host: &str) -> Option<(&str, Option<u16>)> {
    let after_address = host.rfind(']').map_or(0, |at| at + 1);
    match host[after_address..].rfind(':') {
        None => Some((host, None)),
        Some(at) => {
            let (name, port) = host.split_at(after_address + at);
            let port = &port[1..];
            if name.contains(':') && after_address == 0 || !port.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            port.parse().ok().map(|port| (name, Some(port)))
        }
    }
}

/// One element of a pattern for a label.
#[derive(Debug, PartialEq, Eq)]
enum Glob {
    /// `*`
    Any,
    /// `?`
    One,
    /// `[a-z]`, or `[^a-z]`: not one of these.
    Class {
        not: bool,
        ranges: Vec<(char, char)>,
    },
    Char(char),
}

/// The pattern's elements, with the syntax that Kubernetes documents; `None` if it is malformed.
fn parse_glob(text: &str) -> Option<Vec<Glob>> {
    let mut globs = Vec::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        globs.push(match c {
            '*' => Glob::Any,
            '?' => Glob::One,
            '\\' => Glob::Char(chars.next()?),
            '[' => {
                let rest = chars.as_str();
                let (inner, after) = rest.split_once(']')?;
                chars = after.chars();
                parse_class(inner)?
            }
            c => Glob::Char(c),
        });
    }
    Some(globs)
}

fn parse_class(inner: &str) -> Option<Glob> {
    let (not, inner) = inner.strip_prefix('^').map_or((false, inner), |inner| (true, inner));
    let mut ranges = Vec::new();
    let mut chars = inner.chars().peekable();
    while let Some(low) = chars.next() {
        let high = match chars.next_if_eq(&'-') {
            Some(_) => chars.next()?,
            None => low,
        };
        ranges.push((low, high));
    }
    (!ranges.is_empty()).then_some(Glob::Class { not, ranges })
}

/// Whether a label matches. A malformed pattern matches nothing. Linear in the label for each star.
fn glob_matches(glob: &str, label: &str) -> bool {
    if glob.contains(':') || label.contains(':') {
        return glob == label; // an IPv6 address, whose brackets are no class
    }
    let Some(globs) = parse_glob(glob) else { return false };
    let label: Vec<char> = label.chars().collect();
    let fits = |glob: Option<&Glob>, c: char| match glob {
        Some(Glob::One) => true,
        Some(Glob::Char(own)) => *own == c,
        Some(Glob::Class { not, ranges }) => ranges.iter().any(|(low, high)| (*low..=*high).contains(&c)) != *not,
        Some(Glob::Any) | None => false,
    };
    // The last star takes one character more each time that what follows it does not fit.
    let (mut at, mut from, mut star) = (0, 0, None);
    while let Some(&c) = label.get(at) {
        if globs.get(from) == Some(&Glob::Any) {
            star = Some((from, at));
            from += 1;
        } else if fits(globs.get(from), c) {
            (from, at) = (from + 1, at + 1);
        } else if let Some((glob, taken)) = star {
            star = Some((glob, taken + 1));
            (from, at) = (glob + 1, taken + 1);
        } else {
            return false;
        }
    }
    globs.iter().skip(from).all(|glob| *glob == Glob::Any)
}

#[cfg(test)]
#[path = "tests/keyring.rs"]
mod tests;
