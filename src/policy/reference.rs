//! Image references: the grammar of the OCI distribution reference implementation, as the kubelet reads it, with
//! its normalisation (`alpine` is `docker.io/library/alpine`). The spelling of the manifest is kept beside it, because
//! that is what a patch must preserve.

use std::fmt::{self, Write};
use std::net::Ipv6Addr;

/// Longest name (host and path, normalised) in bytes; the limit of the distribution implementation.
pub const MAX_NAME_LENGTH: usize = 255;
/// Longest tag in bytes (OCI distribution spec, "Pulling manifests").
pub const MAX_TAG_LENGTH: usize = 128;
/// Longest digest in bytes that is read; a sha512 digest has 135.
const MAX_DIGEST_LENGTH: usize = 255;

const DOCKER_HUB: &str = "docker.io";

/// A repository, normalised: two texts that pull from the same place compare equal.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Repository {
    /// Host and path, with a slash between them.
    name: Box<str>,
    /// Length of the host.
    host: u8,
}

impl Repository {
    /// Reads a repository without tag or digest, as in `spec.image`: `alpine`, `ghcr.io/org/app`, `registry:5000/app`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let error = |problem| ReferenceError::new(text, problem);
        if text.contains('@') {
            return Err(error(Problem::UnexpectedDigest));
        }
        let (name, tag) = split_tag(text);
        // `registry:5000` is a tag by the grammar, but whoever writes it may mean a host: both readings are refused.
        if tag.is_some() {
            return Err(error(Problem::UnexpectedTag));
        }
        Self::from_name(name).map_err(error)
    }

    /// Host and path, with a slash between them.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The registry: `docker.io`, `registry:5000`, `[::1]:5000`; lower case.
    pub fn host(&self) -> &str {
        &self.name[..usize::from(self.host)]
    }

    /// The path below the host, for example `library/alpine`.
    pub fn path(&self) -> &str {
        &self.name[usize::from(self.host) + 1..]
    }

    fn from_name(name: &str) -> Result<Self, Problem> {
        if name.is_empty() {
            return Err(Problem::Empty);
        }
        // Checked before anything is copied; checked again below, as normalising may lengthen the name.
        if name.len() > MAX_NAME_LENGTH {
            return Err(Problem::NameTooLong);
        }
        let (host, path) = match name.split_once('/') {
            Some((first, rest)) if is_host(first) => (Some(first), rest),
            _ => (None, name),
        };
        // A name with a host mostly stays as it is: then this is all the room it takes.
        let room = if host.is_some() { name.len() } else { DOCKER_HUB.len() + "/library/".len() + name.len() };
        let mut whole = String::with_capacity(room);
        match host {
            Some(host) => normalise_host(host, &mut whole)?,
            None => whole.push_str(DOCKER_HUB),
        }
        check_path(path)?;
        let bare_id = path.len() == 64 && path.bytes().all(is_lower_hex);
        if bare_id && path.len() == name.len() {
            return Err(Problem::ImageId);
        }
        let library = whole == DOCKER_HUB && !path.contains('/');
        let host = whole.len();
        whole.push_str(if library { "/library/" } else { "/" });
        whole.push_str(path);
        match u8::try_from(host) {
            Ok(host) if whole.len() <= MAX_NAME_LENGTH => Ok(Self { name: whole.into(), host }),
            _ => Err(Problem::NameTooLong),
        }
    }
}

impl fmt::Display for Repository {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

/// The image text of a container, with its spelling kept: `name[:tag][@digest]`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reference {
    text: Box<str>,
    /// Where the name ends.
    name: usize,
    /// Where the tag ends, if there is one: it begins after the colon behind the name.
    tag: Option<usize>,
    repository: Repository,
}

impl Reference {
    /// Reads an image text. A missing tag stays missing: the caller decides that it means `latest`.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        let error = |problem| ReferenceError::new(text, problem);
        let (name, tag) = split(text).map_err(error)?;
        let repository = Repository::from_name(name).map_err(error)?;
        Ok(Self { text: text.into(), name: name.len(), tag, repository })
    }

    /// Reads an image text of the same repository, however it is spelled; none if it is of another one or none at all.
    pub fn sibling(&self, text: &str) -> Option<Self> {
        let (name, tag) = split(text).ok()?;
        // Mostly it is spelled alike: then it need not be checked and normalised again.
        let other = (name != self.name()).then(|| Repository::from_name(name)).transpose().ok()?;
        let repository = other.unwrap_or_else(|| self.repository.clone());
        (repository == self.repository).then(|| Self { text: text.into(), name: name.len(), tag, repository })
    }

    /// The name as written, without tag and digest.
    pub fn name(&self) -> &str {
        &self.text[..self.name]
    }

    /// The normalised repository.
    pub fn repository(&self) -> &Repository {
        &self.repository
    }

    /// The tag as written, if there is one.
    pub fn tag(&self) -> Option<&str> {
        self.tag.map(|end| &self.text[self.name + 1..end])
    }

    /// The digest with its algorithm (`sha256:…`), if there is one.
    pub fn digest(&self) -> Option<&str> {
        self.text[self.tag.unwrap_or(self.name)..].strip_prefix('@')
    }

    /// The text that names `tag` of the same repository in the same spelling; a digest is left out.
    pub fn with_tag(&self, tag: &str) -> String {
        [self.name(), ":", tag].concat()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// A text that is no image reference. `Display` names the text, what is wrong and what is right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid image {text:?}: {problem}")]
pub struct ReferenceError {
    text: String,
    problem: Problem,
}

impl ReferenceError {
    fn new(text: &str, problem: Problem) -> Self {
        Self { text: super::pattern::shorten(text), problem }
    }

    /// What is wrong, for callers that branch.
    pub fn problem(&self) -> Problem {
        self.problem
    }
}

/// What is wrong with an image text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("it has no name")]
    Empty,
    #[error("the name is longer than {MAX_NAME_LENGTH} characters")]
    NameTooLong,
    #[error("the registry host is not a host name, an IPv4 address or an IPv6 address in brackets")]
    Host,
    #[error("the port is not a number from 1 to 65535")]
    Port,
    #[error(
        "the path has an illegal part: lower-case letters and digits, separated by one '.', one or two '_' or several \
         '-'"
    )]
    Path,
    #[error("the path must be lower case")]
    UpperCase,
    #[error("64 hexadecimal digits are an image ID, not a name")]
    ImageId,
    #[error(
        "the tag is not 1 to {MAX_TAG_LENGTH} letters, digits, '_', '.' or '-', beginning with none of '.' and '-'"
    )]
    Tag,
    #[error("the digest is not of the form sha256:<64 lower-case hexadecimal digits>")]
    Digest,
    #[error("a repository is named without a tag; if this was meant as host and port, the path is missing")]
    UnexpectedTag,
    #[error("a repository is named without a digest")]
    UnexpectedDigest,
}

/// Whether `tag` is a tag by the OCI distribution spec: `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`.
#[expect(clippy::needless_bitwise_bool, reason = "without a branch for each byte the compiler looks at many at once")]
pub fn is_legal_tag(tag: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_alphanumeric() | (byte == b'_');
    tag.len() <= MAX_TAG_LENGTH
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().fold(true, |legal, byte| legal & (word(byte) | (byte == b'.') | (byte == b'-')))
}

/// The name of an image text, not checked yet, and where its tag ends, if there is one.
fn split(text: &str) -> Result<(&str, Option<usize>), Problem> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (text, None),
    };
    let (name, tag) = split_tag(rest);
    if tag.is_some_and(|tag| !is_legal_tag(tag)) {
        return Err(Problem::Tag);
    }
    if digest.is_some_and(|digest| !is_digest(digest)) {
        return Err(Problem::Digest);
    }
    Ok((name, tag.map(|_| rest.len())))
}

/// Splits at the last colon of the last path component: an earlier one belongs to a port.
fn split_tag(text: &str) -> (&str, Option<&str>) {
    let last_component = text.rfind('/').map_or(0, |slash| slash + 1);
    match text[last_component..].find(':') {
        Some(colon) => (&text[..last_component + colon], Some(&text[last_component + colon + 1..])),
        None => (text, None),
    }
}

/// Whether the first component of a name with several is a host, as the distribution implementation tells it.
fn is_host(component: &str) -> bool {
    component == "localhost" || component.bytes().any(|byte| matches!(byte, b'.' | b':' | b'A'..=b'Z'))
}

/// Writes a host as it is compared.
fn normalise_host(text: &str, to: &mut String) -> Result<(), Problem> {
    let (host, port) = split_port(text)?;
    let address = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let legal = match address {
        Some(address) => !address.contains('.') && address.parse::<Ipv6Addr>().is_ok(),
        None => host.split('.').all(is_host_label),
    };
    if !legal {
        return Err(Problem::Host);
    }
    let is_hub = |alias: &&str| port.is_none() && host.eq_ignore_ascii_case(alias);
    if ["index.docker.io", "registry-1.docker.io"].iter().any(is_hub) {
        to.push_str(DOCKER_HUB);
        return Ok(());
    }
    let start = to.len();
    to.push_str(host);
    to[start..].make_ascii_lowercase();
    if let Some(port) = port {
        let _ = write!(to, ":{port}"); // writing to a String cannot fail
    }
    Ok(())
}

/// Splits `host[:port]`; the colons inside brackets belong to an IPv6 address.
fn split_port(text: &str) -> Result<(&str, Option<u16>), Problem> {
    let after_address = text.rfind(']').map_or(0, |bracket| bracket + 1);
    let Some(colon) = text[after_address..].find(':') else {
        return Ok((text, None));
    };
    let (host, port) = (&text[..after_address + colon], &text[after_address + colon + 1..]);
    // `u16::from_str` accepts a sign.
    if !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(Problem::Port);
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok((host, Some(port))),
        _ => Err(Problem::Port),
    }
}

fn is_host_label(label: &str) -> bool {
    !label.is_empty()
        && !label.starts_with('-')
        && !label.ends_with('-')
        && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

fn check_path(path: &str) -> Result<(), Problem> {
    if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
        return Err(Problem::UpperCase);
    }
    if path.split('/').all(is_path_component) { Ok(()) } else { Err(Problem::Path) }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(component: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let ends_well = |end: Option<&u8>| end.is_some_and(|&byte| alphanumeric(byte));
    ends_well(bytes.first())
        && ends_well(bytes.last())
        && bytes.split(|&byte| alphanumeric(byte)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&byte| byte == b'-')
        })
}

/// A digest by the OCI image spec, with the lengths of the registered algorithms.
fn is_digest(digest: &str) -> bool {
    let Some((algorithm, encoded)) = digest.split_once(':') else {
        return false;
    };
    let right_length = match algorithm {
        "sha256" => encoded.len() == 64,
        "sha384" => encoded.len() == 96,
        "sha512" => encoded.len() == 128,
        _ => encoded.len() >= 32,
    };
    right_length
        && digest.len() <= MAX_DIGEST_LENGTH
        && encoded.bytes().all(is_lower_hex)
        && algorithm.split(['+', '.', '-', '_']).all(|part| {
            part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|byte| byte.is_ascii_alphanumeric())
        })
}

fn is_lower_hex(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

#[cfg(test)]
mod tests;
