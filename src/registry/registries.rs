//! `--registry-config`: where repositories are asked instead (mirrors, remapped registries), and how those hosts are
//! reached. Pure: files come through a function.

use std::{
    collections::{HashMap, HashSet},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Deserializer, de::Error as _};
use toml::Spanned;

use super::{
    error::RegistryError,
    origin::{self, Authority, Origin, PlainHttp},
};
use crate::policy::Repository;

/// Most `[[registry]]` tables, and `[[registry.mirror]]` tables of one.
const MAX_REGISTRIES: usize = 1000;
const MAX_MIRRORS: usize = 10;

/// Why a registry configuration is none.
#[derive(thiserror::Error, Debug, Clone, PartialEq, Eq)]
#[error("line {line}: {cause}")]
pub struct RegistriesError {
    /// Where, from 1.
    pub line: usize,
    /// What is wrong; never what a file of keys holds.
    pub cause: String,
}

/// What a `--registry-config` file says; empty: every registry is asked itself, over https.
#[derive(Clone, Debug, Default)]
pub struct Registries {
    /// The longest prefix first.
    rules: Vec<Rule>,
    hosts: Vec<HostTable>,
}

/// One `[[registry]]`.
#[derive(Clone, Debug)]
struct Rule {
    prefix: Place,
    /// In the order in which they are asked; the registry itself comes last.
    places: Vec<Place>,
}

/// A registry, or the part of it below a path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Place {
    host: String,
    path: String,
}

/// How a host is reached, as one table says it.
#[derive(Clone, Debug)]
struct HostTable {
    host: String,
    line: usize,
    said: Said,
    host_tls: HostTls,
    token_hosts: Vec<Authority>,
}

/// What two tables about one host must agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Said {
    plain_http: bool,
    skip_verify: bool,
    files: [Option<PathBuf>; 3],
    token_hosts: Vec<String>,
}

/// What connections to one host need beside the system's certificates.
#[derive(Clone, Debug, Default)]
pub(super) struct HostTls {
    pub(super) ca: Vec<reqwest::Certificate>,
    /// Shown only to a registry that is asked for tags or manifests, never where it points to.
    pub(super) identity: Option<reqwest::Identity>,
}

/// How the hosts of the configuration are reached.
#[derive(Clone, Debug, Default)]
pub(super) struct Hosts(HashMap<Origin, HostTable>);

/// Where a repository is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint {
    /// There: credentials are those that the keyring has for this name.
    pub(super) repository: Repository,
    pub(super) skip_verify: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    registry: Vec<Spanned<Table>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Table {
    prefix: Option<String>,
    location: Option<String>,
    #[serde(default)]
    plain_http: bool,
    #[serde(default)]
    skip_verify: bool,
    ca_file: Option<PathBuf>,
    client_cert_file: Option<PathBuf>,
    client_key_file: Option<PathBuf>,
    #[serde(default)]
    token_hosts: Vec<String>,
    #[serde(default)]
    mirror: Vec<Spanned<Table>>,
    #[serde(default, rename = "insecure", deserialize_with = "insecure")]
    _insecure: (),
}

/// `insecure` of registries.conf means two things, and nobody can tell which one was meant.
fn insecure<'de, D: Deserializer<'de>>(_: D) -> Result<(), D::Error> {
    Err(D::Error::custom("insecure: write plain-http = true for HTTP, or skip-verify = true for any certificate"))
}

impl Registries {
    /// Reads the TOML text. `read` gives the content of a PEM file that it names, or why not.
    pub fn parse(text: &str, read: &dyn Fn(&Path) -> Result<Vec<u8>, String>) -> Result<Self, RegistriesError> {
        let file: File = toml::from_str(text).map_err(|error| {
            let at = error.span().map_or(0, |span| span.start);
            RegistriesError { line: line_of(text, at), cause: error.message().to_owned() }
        })?;
        let mut found = Self::default();
        let mut prefixes = HashSet::new();
        for table in &file.registry {
            let line = line_of(text, table.span().start);
            let fail = |cause: String| RegistriesError { line, cause };
            let rule = found.rule(text, line, table.get_ref(), read)?;
            if !prefixes.insert(rule.prefix.clone()) {
                return Err(fail(format!("a second [[registry]] for {}", rule.prefix.text())));
            }
            if found.rules.len() >= MAX_REGISTRIES {
                return Err(fail(format!("more than {MAX_REGISTRIES} tables")));
            }
            found.rules.push(rule);
        }
        found.rules.sort_by_key(|rule| std::cmp::Reverse(rule.prefix.path.len()));
        Ok(found)
    }

    fn rule(
        &mut self,
        text: &str,
        line: usize,
        table: &Table,
        read: &dyn Fn(&Path) -> Result<Vec<u8>, String>,
    ) -> Result<Rule, RegistriesError> {
        let fail = |cause: String| RegistriesError { line, cause };
        let neither = || fail("neither prefix nor location: name the registry".to_owned());
        let prefix = table.prefix.as_ref().or(table.location.as_ref()).ok_or_else(neither)?;
        let location = table.location.as_ref().unwrap_or(prefix);
        let prefix = Place::parse(prefix).map_err(fail)?;
        let location = Place::parse(location).map_err(fail)?;
        if table.mirror.len() > MAX_MIRRORS {
            return Err(fail(format!("more than {MAX_MIRRORS} mirrors")));
        }
        self.hosts.push(HostTable::new(&location, line, table, read).map_err(fail)?);
        let mut places = Vec::new();
        for mirror in &table.mirror {
            let line = line_of(text, mirror.span().start);
            let mirror = mirror.get_ref();
            let fail = |cause: String| RegistriesError { line, cause };
            if mirror.prefix.is_some() || !mirror.mirror.is_empty() {
                return Err(fail("a mirror has neither a prefix nor mirrors of its own".to_owned()));
            }
            let place = mirror.location.as_ref().ok_or_else(|| fail("a mirror without location".to_owned()))?;
            let place = Place::parse(place).map_err(fail)?;
            self.hosts.push(HostTable::new(&place, line, mirror, read).map_err(fail)?);
            places.push(place);
        }
        places.push(location);
        Ok(Rule { prefix, places })
    }

    /// The registries that are asked over plain http.
    pub(super) fn plain_http(&self) -> impl Iterator<Item = String> {
        self.hosts.iter().filter(|host| host.said.plain_http).map(|host| host.host.clone())
    }

    /// One answer for each host. Tables that say nothing about it leave it to the others.
    pub(super) fn hosts(&self, plain_http: &PlainHttp) -> Result<Hosts, RegistryError> {
        let mut found: HashMap<Origin, HostTable> = HashMap::new();
        for table in self.hosts.iter().filter(|table| table.said != Said::default()) {
            let origin = origin::registry_origin(&table.host, plain_http)?;
            match found.get(&origin) {
                Some(other) if other.said != table.said => {
                    let (host, a, b) = (&table.host, other.line, table.line);
                    let cause = format!(
                        "the registry configuration says in lines {a} and {b} two things about {host}: how a host is \
                         reached holds for all its repositories"
                    );
                    return Err(RegistryError::Config { cause });
                }
                Some(_) => {}
                None => drop(found.insert(origin, table.clone())),
            }
        }
        Ok(Hosts(found))
    }

    /// Where to ask for a repository, in order; at least one. `skip_verify` is the Image's own wish, and holds for the
    /// registry that the Image names only.
    pub(super) fn endpoints(
        &self,
        repository: &Repository,
        skip_verify: bool,
        hosts: &Hosts,
        plain_http: &PlainHttp,
    ) -> Result<Vec<Endpoint>, RegistryError> {
        let rule = self.rules.iter().find_map(|rule| Some((rule, rule.prefix.rest(repository)?)));
        let mut found = Vec::new();
        let places = match rule {
            None => vec![repository.clone()],
            Some((rule, rest)) => rule.places.iter().map(|place| place.join(rest)).collect::<Result<Vec<_>, _>>()?,
        };
        for place in places {
            let origin = origin::registry_origin(place.host(), plain_http)?;
            let own = skip_verify && place.host() == repository.host();
            let skip_verify = own || hosts.0.get(&origin).is_some_and(|table| table.said.skip_verify);
            let endpoint = Endpoint { repository: place, skip_verify };
            if !found.contains(&endpoint) {
                found.push(endpoint);
            }
        }
        Ok(found)
    }
}

impl Hosts {
    /// Hosts that may hand out tokens for this registry, whatever their domain.
    pub(super) fn token_hosts(&self, registry: &Origin) -> &[Authority] {
        self.0.get(registry).map_or(&[], |table| &table.token_hosts)
    }

    /// What a connection needs, if it needs anything.
    pub(super) fn tls(&self, to: &Origin) -> Option<&HostTls> {
        let tls = &self.0.get(to)?.host_tls;
        (!tls.ca.is_empty() || tls.identity.is_some()).then_some(tls)
    }

    /// The hosts whose connections need something, and whether their certificates are verified.
    pub(super) fn with_tls(&self) -> impl Iterator<Item = (&Origin, bool)> {
        let found = self.0.iter().filter(|(origin, _)| self.tls(origin).is_some());
        found.map(|(origin, table)| (origin, !table.said.skip_verify))
    }
}

impl HostTable {
    fn new(
        place: &Place,
        line: usize,
        table: &Table,
        read: &dyn Fn(&Path) -> Result<Vec<u8>, String>,
    ) -> Result<Self, String> {
        let files = [&table.ca_file, &table.client_cert_file, &table.client_key_file];
        if table.plain_http && (table.skip_verify || files.iter().any(|file| file.is_some())) {
            return Err("plain-http has no certificates: leave out skip-verify and the files".to_owned());
        }
        let pem = |key: &str, file: &Path| read(file).map_err(|why| format!("{key}: {why}"));
        let mut host_tls = HostTls::default();
        if let Some(file) = &table.ca_file {
            let found = reqwest::Certificate::from_pem_bundle(&pem("ca-file", file)?).unwrap_or_default();
            if found.is_empty() {
                return Err(format!("ca-file: {} holds no PEM certificate", file.display()));
            }
            host_tls.ca = found;
        }
        host_tls.identity = match (&table.client_cert_file, &table.client_key_file) {
            (None, None) => None,
            (Some(cert), Some(key)) => {
                let mut both = pem("client-cert-file", cert)?;
                both.push(b'\n');
                both.extend(pem("client-key-file", key)?);
                let identity = reqwest::Identity::from_pem(&both).map_err(|_| {
                    format!("{} and {} hold no PEM certificate and its key", cert.display(), key.display())
                })?;
                Some(identity)
            }
            _ => return Err("client-cert-file and client-key-file go together".to_owned()),
        };
        let token_hosts = table.token_hosts.iter().map(|text| origin::authority(text, 443));
        let token_hosts =
            token_hosts.collect::<Result<_, _>>().map_err(|_| "token-hosts: each is HOST or HOST:PORT".to_owned())?;
        let said = Said {
            plain_http: table.plain_http,
            skip_verify: table.skip_verify,
            files: files.map(Clone::clone),
            token_hosts: table.token_hosts.clone(),
        };
        Ok(Self { host: place.host.clone(), line, said, host_tls, token_hosts })
    }
}

impl Place {
    /// `HOST[:PORT][/PATH]`, as registries.conf writes it.
    fn parse(text: &str) -> Result<Self, String> {
        let bad = |why: &str| Err(format!("{text:?} is no HOST[:PORT][/PATH]: {why}"));
        let host = text.split('/').next().unwrap_or_default();
        if text.contains("://") {
            return bad("leave out the scheme, and say plain-http = true for HTTP");
        }
        if text.contains('*') {
            return bad("wildcards are not supported, name each registry");
        }
        if !host.contains(['.', ':']) && host != "localhost" {
            return bad("it begins with no host");
        }
        // With two more segments every place is a repository, whatever it lacks.
        let repository = match Repository::parse(&format!("{text}/x/x")) {
            Ok(repository) => repository,
            Err(error) => return bad(&error.to_string()),
        };
        let path = repository.path().strip_suffix("x/x").unwrap_or_default().trim_end_matches('/').to_owned();
        Ok(Self { host: repository.host().to_owned(), path })
    }

    fn text(&self) -> String {
        format!("{}/{}", self.host, self.path).trim_end_matches('/').to_owned()
    }

    /// What follows this place in a repository's path, at a boundary of segments; `None` if the repository is not in it.
    fn rest<'a>(&self, repository: &'a Repository) -> Option<&'a str> {
        let path = repository.path();
        match path.strip_prefix(&*self.path).filter(|_| self.host == repository.host())? {
            "" => Some(""),
            rest if self.path.is_empty() => Some(rest),
            rest => rest.strip_prefix('/'),
        }
    }

    fn join(&self, rest: &str) -> Result<Repository, RegistryError> {
        let text = format!("{}/{rest}", self.text());
        let text = text.trim_end_matches('/');
        let cause = |why: String| RegistryError::Config { cause: format!("the registry configuration leads to {why}") };
        Repository::parse(text).map_err(|error| cause(format!("{text:?}: {error}")))
    }
}

fn line_of(text: &str, at: usize) -> usize {
    1 + text.bytes().take(at).filter(|&byte| byte == b'\n').count()
}

#[cfg(test)]
#[path = "tests/registries.rs"]
mod tests;
