//! What all listings share: connections with and without verified certificates, the resolver, the hosts' budgets; and
//! what a failed connection means.

use std::{error::Error as StdError, io, sync::OnceLock, time::Duration};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::{
    Config, Limits,
    error::{Refusal, RegistryError, Step},
    limiter::Limiter,
    origin,
};
use crate::telemetry::Metrics;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The connections and budgets that all listings share.
pub(super) struct Transport {
    verifying: reqwest::Client,
    /// Apart from the other: a connection whose certificate nobody checked is never used by those who want it checked.
    skipping: OnceLock<reqwest::Client>,
    extra_ca: Vec<reqwest::Certificate>,
    pub(super) limiter: Limiter,
    pub(super) limits: Limits,
    pub(super) tuning: Tuning,
    pub(super) metrics: Metrics,
}

/// What only tests change.
#[derive(Clone, Copy)]
pub(super) struct Tuning {
    /// The wait before the first retry; doubles with each.
    pub(super) first_backoff: Duration,
    /// Whether the environment's proxies are used.
    pub(super) proxies: bool,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { first_backoff: Duration::from_millis(500), proxies: true }
    }
}

impl Transport {
    /// Loads the system's trust roots (tens of milliseconds).
    pub(super) fn new(config: Config, tuning: Tuning) -> Result<Self, RegistryError> {
        let extra_ca = match &config.extra_ca_pem {
            None => Vec::new(),
            Some(pem) => reqwest::Certificate::from_pem_bundle(pem)
                .ok()
                .filter(|found| !found.is_empty())
                .ok_or_else(|| RegistryError::Config { cause: "the extra CA is no PEM certificate".to_owned() })?,
        };
        Ok(Self {
            verifying: build_client(&extra_ca, false, tuning)?,
            skipping: OnceLock::new(),
            extra_ca,
            limiter: Limiter::new(config.limits.rate),
            limits: config.limits,
            tuning,
            metrics: config.metrics,
        })
    }

    pub(super) fn client(&self, skip_verify: bool) -> Result<&reqwest::Client, RegistryError> {
        if !skip_verify {
            return Ok(&self.verifying);
        }
        if let Some(client) = self.skipping.get() {
            return Ok(client);
        }
        let client = build_client(&self.extra_ca, true, self.tuning)?;
        Ok(self.skipping.get_or_init(|| client))
    }
}

/// Proxies come from the environment (`HTTP_PROXY`, `HTTPS_PROXY`, `NO_PROXY`): reqwest's default.
fn build_client(
    extra_ca: &[reqwest::Certificate],
    skip_verify: bool,
    tuning: Tuning,
) -> Result<reqwest::Client, RegistryError> {
    let builder = reqwest::Client::builder();
    let builder = if tuning.proxies { builder } else { builder.no_proxy() };
    builder
        .user_agent(concat!("kimup/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .referer(false)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(Duration::from_secs(60))
        .pool_max_idle_per_host(4)
        .dns_resolver(Resolver)
        .tls_certs_merge(extra_ca.iter().cloned())
        .tls_danger_accept_invalid_certs(skip_verify)
        .build()
        .map_err(|error| RegistryError::Config { cause: innermost(&error) })
}

/// The system's resolver, but for names that lead to the node's own services.
struct Resolver;

#[derive(thiserror::Error, Debug)]
#[error("it resolves to a link-local or metadata address")]
struct ForbiddenName;

impl Resolve for Resolver {
    fn resolve(&self, name: Name) -> Resolving {
        Box::pin(async move {
            let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
            if found.iter().any(|address| origin::is_forbidden(address.ip())) {
                return Err(ForbiddenName.into());
            }
            Ok(Box::new(found.into_iter()) as Addrs)
        })
    }
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

/// The cause itself: the outer errors repeat the address, which is a header's content for a token realm.
fn innermost(error: &(dyn StdError + 'static)) -> String {
    chain(error).last().map_or_else(String::new, ToString::to_string)
}

/// What a failed request says, without the address and without the answer.
pub(super) fn transport_error(error: &reqwest::Error, host: &str) -> RegistryError {
    let host = host.to_owned();
    let has = |test: fn(&(dyn StdError + 'static)) -> bool| chain(error).any(test);
    if has(<dyn StdError>::is::<ForbiddenName>) {
        return RegistryError::Refused { why: Refusal::Address(format!("{host} {ForbiddenName}")), host };
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
    } else if has(<dyn StdError>::is::<rustls::Error>) {
        Step::Tls
    } else if error.is_connect() {
        Step::Connect
    } else {
        Step::Read
    };
    let cause = if error.is_timeout() { "timed out".to_owned() } else { innermost(error) };
    RegistryError::Unreachable { step, host, cause }
}
