//! What all listings share: connections with and without verified certificates, the hosts' budgets, proxies; and what a
//! failed connection means.

use std::{
    collections::HashMap,
    error::Error as StdError,
    io,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use hyper_util::client::proxy::matcher::Matcher;
use url::Url;

use super::{
    Config, Limits,
    error::{Refusal, RegistryError, Step},
    limiter::Limiter,
    notice::Warnings,
    origin::{self, Origin, Reach},
    registries::{HostTls, Hosts},
    resolver::{ForbiddenName, Names, Resolver},
};
use crate::telemetry::Metrics;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The connections and budgets that all listings share.
pub(super) struct Transport {
    /// Apart from each other: a connection whose certificate nobody checked is never used by those who want it checked,
    /// and one to a private address never by those who may not reach it.
    verifying: reqwest::Client,
    skipping: OnceLock<reqwest::Client>,
    public_only: OnceLock<reqwest::Client>,
    extra_ca: Vec<reqwest::Certificate>,
    hosts: Arc<Hosts>,
    /// Of the hosts that need certificates of their own: nobody else's connections trust or show those.
    own: Mutex<HashMap<OwnKey, reqwest::Client>>,
    /// The rules of `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, as the connections follow them.
    proxies: Option<Matcher>,
    pub(super) limiter: Limiter,
    pub(super) limits: Limits,
    pub(super) tuning: Tuning,
    pub(super) metrics: Metrics,
    pub(super) warnings: Warnings,
}

/// A host, the way to it, and whether it is the registry that is asked: only that one is shown a client certificate.
type OwnKey = (Origin, Route, bool);

/// What only tests change.
#[derive(Clone)]
pub(super) struct Tuning {
    /// The wait before the first retry; doubles with each.
    pub(super) first_backoff: Duration,
    /// Whether the environment's proxies are used.
    pub(super) proxies: bool,
    /// Whether the system's trust roots count beside the extra ones; reading them takes a while.
    pub(super) system_roots: bool,
    /// Names that are not asked of the system.
    pub(super) names: Option<Names>,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { first_backoff: Duration::from_millis(500), proxies: true, system_roots: true, names: None }
    }
}

/// Which connection a request may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Route {
    /// To the registry itself, or wherever it may lead: any address but forbidden ones.
    Verified,
    /// The same, with any certificate.
    Unverified,
    /// To a host that the registry named, from a registry that is not in a private network itself.
    PublicOnly,
}

impl Transport {
    /// Loads the system's trust roots (tens of milliseconds).
    pub(super) fn new(config: Config, hosts: Arc<Hosts>, tuning: Tuning) -> Result<Self, RegistryError> {
        let extra_ca = match &config.extra_ca_pem {
            None => Vec::new(),
            Some(pem) => reqwest::Certificate::from_pem_bundle(pem)
                .ok()
                .filter(|found| !found.is_empty())
                .ok_or_else(|| RegistryError::Config { cause: "the extra CA is no PEM certificate".to_owned() })?,
        };
        let transport = Self {
            verifying: build_client(&extra_ca, None, Route::Verified, &tuning)?,
            skipping: OnceLock::new(),
            public_only: OnceLock::new(),
            extra_ca,
            hosts,
            own: Mutex::default(),
            proxies: tuning.proxies.then(Matcher::from_system),
            limiter: Limiter::new(config.limits.rate),
            limits: config.limits,
            tuning,
            metrics: config.metrics,
            warnings: Warnings::new(config.own_credentials_only),
        };
        // A key that does not fit its certificate is seen now, not at the first sync.
        for (origin, verified) in transport.hosts.with_tls() {
            let route = if verified { Route::Verified } else { Route::Unverified };
            transport.own_client(origin, route, true)?;
        }
        Ok(transport)
    }

    /// `at_home`: it goes to the registry that is asked, not where that points to.
    pub(super) fn client(&self, route: Route, to: &Url, at_home: bool) -> Result<reqwest::Client, RegistryError> {
        match Origin::of(to).filter(|origin| self.hosts.tls(origin).is_some()) {
            Some(origin) => self.own_client(&origin, route, at_home),
            None => self.common_client(route).cloned(),
        }
    }

    fn own_client(&self, to: &Origin, route: Route, at_home: bool) -> Result<reqwest::Client, RegistryError> {
        let key = (to.clone(), route, at_home);
        if let Some(client) = self.own().get(&key) {
            return Ok(client.clone());
        }
        let tls = self.hosts.tls(to).cloned().unwrap_or_default();
        let identity = tls.identity.filter(|_| at_home);
        let client = build_client(&self.extra_ca, Some(HostTls { identity, ..tls }), route, &self.tuning)?;
        Ok(self.own().entry(key).or_insert(client).clone())
    }

    fn own(&self) -> MutexGuard<'_, HashMap<OwnKey, reqwest::Client>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn common_client(&self, route: Route) -> Result<&reqwest::Client, RegistryError> {
        let cell = match route {
            Route::Verified => return Ok(&self.verifying),
            Route::Unverified => &self.skipping,
            Route::PublicOnly => &self.public_only,
        };
        if let Some(client) = cell.get() {
            return Ok(client);
        }
        let client = build_client(&self.extra_ca, None, route, &self.tuning)?;
        Ok(cell.get_or_init(|| client))
    }

    /// Whether a proxy is asked for this address: then it resolves the name, and where it may connect is its business.
    pub(super) fn is_proxied(&self, url: &Url) -> bool {
        let uri = url.as_str().parse::<http::Uri>();
        self.proxies.as_ref().zip(uri.ok()).is_some_and(|(proxies, uri)| proxies.intercept(&uri).is_some())
    }

    /// Whether a host is in a private network: all its addresses are. A name that does not resolve is in none.
    pub(super) async fn is_private(&self, url: &Url) -> bool {
        let private = |ip: IpAddr| origin::reach(ip) == Reach::Private;
        if let Some(ip) = origin::literal(url) {
            return private(ip);
        }
        let resolver = Resolver::new(self.tuning.names.clone(), false);
        match resolver.lookup(url.host_str().unwrap_or_default()).await {
            Ok(found) => !found.is_empty() && found.iter().all(|found| private(found.ip)),
            Err(_) => false,
        }
    }
}

fn build_client(
    extra_ca: &[reqwest::Certificate],
    own: Option<HostTls>,
    route: Route,
    tuning: &Tuning,
) -> Result<reqwest::Client, RegistryError> {
    let builder = reqwest::Client::builder();
    // Otherwise proxies come from the environment: reqwest's default.
    let builder = if tuning.proxies { builder } else { builder.no_proxy() };
    let HostTls { ca, identity } = own.unwrap_or_default();
    let builder = match identity {
        Some(identity) => builder.identity(identity),
        None => builder,
    };
    let extra_ca = extra_ca.iter().cloned().chain(ca);
    let builder =
        if tuning.system_roots { builder.tls_certs_merge(extra_ca) } else { builder.tls_certs_only(extra_ca) };
    builder
        .user_agent(concat!("kimup/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(4)
        .dns_resolver(Resolver::new(tuning.names.clone(), route == Route::PublicOnly))
        .tls_danger_accept_invalid_certs(route == Route::Unverified)
        .build()
        .map_err(|error| RegistryError::Config { cause: innermost(&error) })
}

/// Every error in the chain, with those that an I/O error wraps.
fn chain<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    let mut next = Some(error);
    std::iter::from_fn(move || {
        let error = next?;
        let wrapped: Option<&'a (dyn StdError + 'static)> =
            match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                Some(inner) => Some(inner),
                None => error.source(),
            };
        next = wrapped;
        Some(error)
    })
}

/// Longest cause that is told, in characters: a certificate may name thousands of hosts, and the error lists them.
const MAX_CAUSE: usize = 300;

/// The cause itself: the outer errors repeat the address, which is a header's content for a token realm.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map_or_else(String::new, |cause| cause.to_string().chars().take(MAX_CAUSE).collect())
}

/// Only a client's certificate is a server's business: an alert about one is about ours, or that there is none.
fn tls_step(error: &rustls::Error) -> Step {
    use rustls::AlertDescription as Alert;
    match error {
        rustls::Error::AlertReceived(
            Alert::CertificateRequired
            | Alert::NoCertificate
            | Alert::BadCertificate
            | Alert::UnsupportedCertificate
            | Alert::CertificateRevoked
            | Alert::CertificateExpired
            | Alert::CertificateUnknown
            | Alert::UnknownCA
            | Alert::AccessDenied
            // The signature of one that another authority of the same name has signed.
            | Alert::DecryptError,
        ) => Step::ClientCertificate,
        _ => Step::Tls,
    }
}

/// What a failed request says, without the address and without the answer.
pub(super) fn transport_error(error: &reqwest::Error, host: &str) -> RegistryError {
    let host = host.to_owned();
    let has = |test: fn(&(dyn StdError + 'static)) -> bool| chain(error).any(test);
    if let Some(name) = chain(error).find_map(<dyn StdError>::downcast_ref::<ForbiddenName>) {
        return RegistryError::Refused { why: Refusal::Address(format!("{host} {name}")), host };
    }
    // A body that ends too early is a broken connection, whoever notices first; what is left is broken compression.
    let cut_off = |error: &(dyn StdError + 'static)| {
        let kind = error.downcast_ref::<io::Error>().map(io::Error::kind);
        error.is::<hyper::Error>() || kind == Some(io::ErrorKind::UnexpectedEof)
    };
    if error.is_decode() && !has(cut_off) {
        return RegistryError::Malformed { host, cause: "its compression is broken".to_owned() };
    }
    let step = if error.is_dns() {
        Step::Dns
    } else if let Some(error) = chain(error).find_map(<dyn StdError>::downcast_ref::<rustls::Error>) {
        tls_step(error)
    } else if error.is_connect() {
        Step::Connect
    } else {
        Step::Read
    };
    let cause = if error.is_timeout() { "timed out".to_owned() } else { innermost(error) };
    RegistryError::Unreachable { step, host, cause }
}
