//! Lists the tags of a repository on an OCI registry: complete or an error, with the credentials of one Image, and bounded
//! in size, count and time whatever the registry does. Tells which digest and platforms a tag has.
//!
//! | file | job |
//! |---|---|
//! | `origin` | where requests and tokens may go (pure) |
//! | `keyring` | pull secrets, matched as the kubelet does (pure) |
//! | `auth` | challenges, tokens and their cache |
//! | `login`, `memory` | which credentials to try next in one listing; what the next listing need not ask again |
//! | `http` | sending: rate, retries, redirects, caps |
//! | `transport`, `resolver` | connections, TLS, proxies, names; what a broken connection means |
//! | `failure` | which step failed, and what to do (pure) |
//! | `notice` | `Retry-After` and `Warning` |
//! | `scrub` | keeps what was sent out of what is shown (pure) |
//! | `link` | the next page's address (pure) |
//! | `page`, `json` | the tags of all pages; one page as it arrives (pure) |
//! | `manifest`, `document` | asking for a tag's manifest; reading it (pure) |
//! | `limiter` | the budget of each host |
//! | `progress` | how far a listing is |
//! | `hosts` | places and pauses of each host |
//! | `registries`, `turns` | mirrors and remapped registries: where to ask (pure); asking one after the other |
//! | `shared` | one listing for all who ask for the same |

mod auth;
mod document;
mod error;
mod failure;
#[cfg(fuzzing)]
pub mod fuzzing;
mod hosts;
mod http;
mod json;
mod keyring;
mod limiter;
mod link;
mod login;
mod manifest;
mod memory;
mod notice;
mod origin;
mod page;
mod progress;
mod registries;
mod resolver;
mod scrub;
mod shared;
#[cfg(test)]
mod tests;
mod transport;
mod turns;

use std::{collections::HashSet, sync::Arc, time::Duration};

use tokio::time::Instant;
use url::Url;

use self::{
    auth::{TokenCache, TokenKey},
    hosts::Hosts,
    http::{Answer, Session},
    login::Login,
    origin::{Origin, PlainHttp, host_text},
    page::Collector,
    registries::{Endpoint, Hosts as RegistryHosts},
    shared::Shared,
    transport::{Transport, Tuning},
    turns::{Failing, Turns},
};
pub use self::{
    error::{Cap, PullSecretError, Refusal, RegistryError, Step},
    failure::{ListError, Stage},
    hosts::Asker,
    keyring::{Credentials, Keyring, PullSecret},
    manifest::{Manifest, ManifestRequest},
    page::Tags,
    progress::Progress,
    registries::{Registries, RegistriesError},
};
use crate::policy;
/// What a [`Manifest`] is made of.
pub use crate::policy::{Digest, Platform, covers};
use crate::telemetry::Metrics;

/// How the client behaves for every registry.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// Registries that speak plain http, as `HOST:PORT` (port 80 if left out); all others are asked over https.
    pub plain_http: Vec<String>,
    /// Caps of a listing.
    pub limits: Limits,
    /// Mirrors, remapped registries, and how their hosts are reached.
    pub registries: Registries,
    /// Certificates in PEM that are trusted besides the system's.
    pub extra_ca_pem: Option<Vec<u8>>,
    /// All credentials are of the one who reads the log: then it has the texts of the registries' warnings. Else only that
    /// there are warnings: a registry knows what others have sent it, and may repeat it to anybody.
    pub own_credentials_only: bool,
    /// Where requests are counted.
    pub metrics: Metrics,
    /// Where pages are counted while they are read.
    pub progress: Progress,
}

/// What a registry may cost at most.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// Bytes of one answer after decompression. Default 16 MiB.
    pub max_page_bytes: usize,
    /// Pages of one listing. Default 1000.
    pub max_pages: usize,
    /// Tags of one listing, illegal ones and duplicates included. Default 500,000.
    pub max_tags: usize,
    /// Bytes of all tags of one listing together, illegal ones and duplicates excluded: what it holds in memory. Default
    /// 32 MiB, which is 65 for each of 500,000 tags.
    pub max_list_bytes: usize,
    /// Time for one request, from connecting to the last byte. Default 30 s.
    pub page_timeout: Duration,
    /// Time for a whole listing, with waiting for the rate, tokens and retries. Default 5 min.
    pub deadline: Duration,
    /// Requests per second to one host, after a burst of 5. From 0.001 to 1,000,000. Default 5.
    pub rate: f64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_page_bytes: 16 * 1024 * 1024,
            max_pages: 1000,
            max_tags: 500_000,
            max_list_bytes: 32 * 1024 * 1024,
            page_timeout: Duration::from_secs(30),
            deadline: Duration::from_secs(5 * 60),
            rate: 5.0,
        }
    }
}

/// What to list, and as whom.
#[derive(Clone, Debug)]
pub struct ListRequest {
    /// The repository, normalised.
    pub repository: policy::Repository,
    /// The Image's credentials.
    pub keyring: Keyring,
    /// Accept any certificate of the registry itself; its token host elsewhere is verified all the same.
    pub insecure_skip_tls_verify: bool,
}

/// All tags of a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    pub(crate) tags: Tags,
    /// How many tags were left out because a container runtime could not pull them.
    pub dropped: usize,
    /// HTTP requests that it took: pages, tokens, redirects, retries, and mirrors that failed.
    pub requests: usize,
    /// What was asked, as [`Client::endpoint`] writes it.
    pub endpoint: String,
}

impl Listing {
    /// Legal tags without duplicates, in the registry's order.
    pub fn tags(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        self.tags.iter()
    }
}

/// A registry client. Clones share connections, rates and tokens; one per process is meant.
#[derive(Clone)]
pub struct Client(Arc<Inner>);

struct Inner {
    transport: Transport,
    tokens: TokenCache,
    plain_http: PlainHttp,
    registries: Registries,
    registry_hosts: Arc<RegistryHosts>,
    limits: Limits,
    progress: Progress,
    hosts: Hosts,
    failing: Failing,
    shared: Arc<Shared>,
}

impl Client {
    /// Loads the system's trust roots (tens of milliseconds; fails where there are none). The process must have installed
    /// a rustls crypto provider.
    pub fn new(config: Config) -> Result<Self, RegistryError> {
        Self::tuned(config, Tuning::default())
    }

    fn tuned(config: Config, tuning: Tuning) -> Result<Self, RegistryError> {
        if !(0.001..=1e6).contains(&config.limits.rate) {
            let cause = format!("a rate of {} requests per second is not in 0.001 to 1000000", config.limits.rate);
            return Err(RegistryError::Config { cause });
        }
        let plain_http = config.plain_http.iter().cloned().chain(config.registries.plain_http());
        let plain_http = PlainHttp::parse(&plain_http.collect::<Vec<_>>())?;
        let registry_hosts = Arc::new(config.registries.hosts(&plain_http)?);
        Ok(Self(Arc::new(Inner {
            plain_http,
            registries: config.registries.clone(),
            registry_hosts: registry_hosts.clone(),
            tokens: TokenCache::default(),
            limits: config.limits.clone(),
            progress: config.progress.clone(),
            hosts: Hosts::default(),
            failing: Failing::default(),
            shared: Arc::new(Shared::new()?),
            transport: Transport::new(config, registry_hosts, tuning)?,
        })))
    }

    /// Where the repository's tags are asked for first: `https://registry-1.docker.io`, without a port if it is the
    /// scheme's own, or the first mirror.
    pub fn endpoint(&self, repository: &policy::Repository) -> Result<String, RegistryError> {
        let endpoints = self.0.endpoints(repository, false)?;
        let repository = endpoints.first().map_or(repository, |first| &first.repository);
        let url = origin::tags_url(repository, &self.0.plain_http)?;
        Ok(url.origin().ascii_serialization())
    }

    /// Lists all tags, or fails: never a part of them, and all of one endpoint. Costs one request per page once a token is
    /// cached.
    ///
    /// Safe to drop at any await point.
    pub async fn list_tags(&self, request: &ListRequest) -> Result<Listing, RegistryError> {
        self.list_by_stage(request).await.map_err(|failed| failed.error)
    }

    async fn list_by_stage(&self, request: &ListRequest) -> Result<Listing, ListError> {
        let listing = self.0.list(request).await;
        match &listing {
            Ok(found) => tracing::debug!(
                repository = %request.repository, tags = found.tags.len(), requests = found.requests, "listed tags"
            ),
            Err(error) => {
                tracing::debug!(repository = %request.repository, %error, "listing tags failed");
            }
        }
        listing
    }
}

impl Inner {
    fn endpoints(&self, repository: &policy::Repository, skip_verify: bool) -> Result<Vec<Endpoint>, RegistryError> {
        self.registries.endpoints(repository, skip_verify, &self.registry_hosts, &self.plain_http)
    }

    /// What the requests of one listing or manifest share; `first` is the address of the first of them.
    fn begin(
        &self,
        repository: &policy::Repository,
        keyring: &Keyring,
        skip_verify: bool,
        first: &Url,
        deadline: Instant,
    ) -> Result<(Origin, Session<'_>, Login<'_>), RegistryError> {
        let unusable = || RegistryError::Config { cause: format!("{repository} has no usable host") };
        let registry = Origin::of(first).ok_or_else(unusable)?;
        let credentials = keyring.credentials_for(repository);
        let mut session = Session::new(&self.transport, registry.clone(), first.clone(), skip_verify, deadline);
        session.learn(&credentials);
        let path = repository.path().to_owned();
        let key = TokenKey { registry: registry.clone(), skip_verify, repository: path, credentials: None };
        let token_hosts = self.registry_hosts.token_hosts(&registry);
        let login = Login::new(&self.tokens, token_hosts, key, first, credentials);
        Ok((registry, session, login))
    }

    /// Asks the endpoints in turn.
    async fn list(&self, request: &ListRequest) -> Result<Listing, ListError> {
        let endpoints = self.endpoints(&request.repository, request.insecure_skip_tls_verify)?;
        let mut turns = Turns::new(endpoints, Instant::now() + self.limits.deadline, &self.failing);
        let mut requests = 0;
        while let Some((endpoint, until)) = turns.next() {
            let Endpoint { repository, skip_verify } = endpoint;
            let keyring = request.keyring.clone();
            let there = ListRequest { repository, keyring, insecure_skip_tls_verify: skip_verify };
            let listing = self.list_there(&there, until, &mut requests).await;
            if let Some(listing) = turns.settle(listing, |failed| &failed.error) {
                return listing.map(|found| Listing { requests, ..found });
            }
        }
        Err(Turns::none_left().into())
    }

    async fn list_there(
        &self,
        request: &ListRequest,
        until: Instant,
        requests: &mut usize,
    ) -> Result<Listing, ListError> {
        let first = origin::tags_url(&request.repository, &self.plain_http)?;
        let (registry, mut session, mut login) =
            self.begin(&request.repository, &request.keyring, request.insecure_skip_tls_verify, &first, until)?;
        let listing = self.list_in(&mut session, &mut login, &registry, request, &first);
        let late = || RegistryError::Timeout { host: host_text(&first), after: self.limits.deadline };
        let listing = tokio::time::timeout_at(until, listing).await.unwrap_or_else(|_| Err(late()));
        *requests += session.requests();
        listing.map_err(|error| ListError { stage: session.stage(), error: session.scrub(error) })
    }

    async fn list_in(
        &self,
        session: &mut Session<'_>,
        login: &mut Login<'_>,
        registry: &Origin,
        request: &ListRequest,
        first: &Url,
    ) -> Result<Listing, RegistryError> {
        let host = host_text(first);
        let mut collector = Collector::new(self.limits.max_tags, self.limits.max_list_bytes);
        let mut seen = HashSet::new();
        let mut next = Some(first.clone());
        let (mut links, mut probing) = (false, false);
        let round = || RegistryError::Refused { host: host.clone(), why: Refusal::Loop };
        while let Some(url) = next {
            if seen.len() >= self.limits.max_pages {
                let cap = Cap::Pages(self.limits.max_pages);
                return Err(RegistryError::TooMuch { host, cap });
            }
            if !seen.insert(link::page_key(&url)) {
                return Err(round());
            }
            session.begin_page();
            self.progress.next_page();
            let answer = fetch_page(session, login, &url, &request.repository, &mut collector).await?;
            let page = collector.end_page().map_err(|error| error.of(host_text(&answer.url)))?;
            let link = link::next_page(&answer.headers, &answer.url, registry, first)?;
            links |= link.is_some();
            next = if probing && page.new == 0 { None } else { link };
            if next.is_some() && collector.is_going_round() {
                return Err(round());
            }
            // A Link is optional (OCI distribution specification): where there are none, a page as full as it was allowed
            // to be is only the last if nothing new follows it.
            probing = !links && page.received == origin::PAGE_SIZE && page.new > 0;
            if probing {
                next = collector.last().map(|last| origin::page_after(first, last));
            }
        }
        let (tags, dropped) = collector.finish();
        let endpoint = first.origin().ascii_serialization();
        Ok(Listing { tags, dropped, requests: session.requests(), endpoint })
    }
}

/// Asks for one page until it is answered with tags; the session's budget bounds how often.
async fn fetch_page(
    session: &mut Session<'_>,
    login: &mut Login<'_>,
    url: &Url,
    repository: &policy::Repository,
    collector: &mut Collector,
) -> Result<Answer, RegistryError> {
    loop {
        let authorization = login.header(session).await?;
        let answer = session.get_into(url, authorization.as_ref(), collector).await?;
        let host = host_text(&answer.url);
        match answer.status.as_u16() {
            200 => {
                login.accepted();
                return Ok(answer);
            }
            401 | 403 => login.denied(session, &answer).await?,
            404 => {
                return Err(RegistryError::NotFound { host, repository: repository.path().to_owned() });
            }
            // 206 above all: a part of a page is no page.
            status @ 200..=399 => {
                let cause = format!("status {status} to a request for tags");
                return Err(RegistryError::Malformed { host, cause });
            }
            status => return Err(RegistryError::Server { host, status }),
        }
    }
}
