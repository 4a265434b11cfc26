//! A small Internet of hosts that misbehave: names, addresses and certificates as a test wants them.

use std::{
    collections::HashMap,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use kimup_testbed::{FaultReply, FaultRequest, FaultServer, ServerCertificate, TestCa};

use super::{
    super::{Client, Config, Limits, ListRequest, Listing, RegistryError, Tuning, resolver::Found},
    fake::{keyring, limits},
};
use crate::{policy::Repository, telemetry::Metrics};

/// An address of the Internet (RFC 5737), as far as the client can see.
pub(super) const PUBLIC: &str = "203.0.113.1";
pub(super) const ALICE: &str = "Basic YWxpY2U6YQ==";
pub(super) const BOB: &str = "Basic Ym9iOmI=";

/// How a listing ended.
pub(super) struct Outcome {
    pub(super) result: Result<Listing, RegistryError>,
}

impl Outcome {
    /// The tags, or what kind of error; kinds are what a caller tells apart, so they are what is compared.
    pub(super) fn text(&self) -> String {
        match &self.result {
            Ok(listing) => listing.tags().collect::<Vec<_>>().join(" "),
            Err(error) => kind(error),
        }
    }
}

fn kind(error: &RegistryError) -> String {
    match error {
        RegistryError::Unreachable { step, .. } => format!("! unreachable {step}"),
        RegistryError::Unauthorized { sent, .. } => format!("! unauthorized {sent}"),
        RegistryError::NotFound { .. } => "! not found".to_owned(),
        RegistryError::NoManifest { .. } => "! no manifest".to_owned(),
        RegistryError::Malformed { .. } => "! malformed".to_owned(),
        RegistryError::TooMuch { cap, .. } => format!("! {cap}"),
        RegistryError::Server { status, .. } => format!("! status {status}"),
        RegistryError::RateLimited { .. } => "! rate limited".to_owned(),
        RegistryError::Refused { why, .. } => {
            format!("! refused {}", format!("{why:?}").split(['(', ' ']).next().unwrap_or_default())
        }
        RegistryError::Timeout { .. } => "! timeout".to_owned(),
        RegistryError::Config { .. } => "! configuration".to_owned(),
    }
}

/// One plain-http registry that answers so; its outcome must be this after so many requests. Returns it.
pub(super) async fn check(
    script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    expected: &str,
    requests: usize,
) -> FaultServer {
    check_within(limits(), &[], script, expected, requests).await
}

pub(super) async fn check_within(
    limits: Limits,
    users: &[&str],
    script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    expected: &str,
    requests: usize,
) -> FaultServer {
    let registry = FaultServer::http(script).await.unwrap();
    let client = plain_client(&registry, limits);
    let outcome = Outcome { result: client.list_tags(&request(&registry.host(), users)).await };
    assert_eq!((outcome.text().as_str(), registry.requests().len()), (expected, requests), "{:?}", outcome.result);
    if let Ok(listing) = outcome.result {
        assert_eq!(listing.requests, requests);
    }
    registry
}

pub(super) fn plain_client(registry: &FaultServer, limits: Limits) -> Client {
    super::fake::client(Config { plain_http: vec![registry.host()], limits, ..Config::default() })
}

/// `team/app` on a host, for these users (`user:password`).
pub(super) fn request(host: &str, users: &[&str]) -> ListRequest {
    let repository = Repository::parse(&format!("{host}/team/app")).unwrap();
    ListRequest { keyring: keyring(host, users), repository, insecure_skip_tls_verify: false }
}

/// Hosts with names, each at an address that the client believes in and with a certificate of one CA.
pub(super) struct World {
    pub(super) ca: TestCa,
    names: HashMap<String, Vec<Found>>,
    pub(super) metrics: Metrics,
}

impl World {
    pub(super) fn new() -> Self {
        let ca = TestCa::new().unwrap();
        Self { ca, names: HashMap::new(), metrics: Metrics::new() }
    }

    /// A host that speaks https on port 443 of `address`.
    pub(super) async fn host(
        &mut self,
        name: &str,
        address: &str,
        script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    ) -> FaultServer {
        let certificate = self.ca.server(&[name]).unwrap();
        self.host_with(&certificate, name, address, script).await
    }

    pub(super) async fn host_with(
        &mut self,
        certificate: &ServerCertificate,
        name: &str,
        address: &str,
        script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    ) -> FaultServer {
        let server = FaultServer::https(certificate, script).await.unwrap();
        self.name(name, address, server.address());
        server
    }

    /// One more address of a name.
    pub(super) fn name(&mut self, name: &str, address: &str, to: SocketAddr) {
        let ip: IpAddr = address.parse().unwrap();
        self.names.entry(name.to_owned()).or_default().push(Found { ip, to });
    }

    pub(super) fn client(&self) -> Client {
        self.client_with(self.config())
    }

    /// Whose log is read by the one whose credentials it has.
    pub(super) fn client_of_one_user(&self) -> Client {
        self.client_with(Config { own_credentials_only: true, ..self.config() })
    }

    fn config(&self) -> Config {
        Config {
            limits: limits(),
            extra_ca_pem: Some(self.ca.pem().as_bytes().to_vec()),
            metrics: self.metrics.clone(),
            ..Config::default()
        }
    }

    /// Knows the names, and of the certificates what the configuration says.
    pub(super) fn client_with(&self, config: Config) -> Client {
        let names = self.names.clone();
        let tuning = Tuning {
            first_backoff: Duration::from_millis(1),
            proxies: false,
            system_roots: false,
            names: Some(Arc::new(move |name| Some(names.get(name).cloned().unwrap_or_default()))),
        };
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        Client::tuned(config, tuning).unwrap()
    }

    /// Lists `team/app` on this host with a client of its own.
    pub(super) async fn list(&self, host: &str, users: &[&str]) -> Outcome {
        Outcome { result: self.client().list_tags(&request(host, users)).await }
    }
}

pub(super) fn status(status: u16) -> FaultReply {
    FaultReply::new(status, r#"{"errors":[{"code":"UNKNOWN"}]}"#)
}

pub(super) fn tags(tags: &[&str]) -> FaultReply {
    FaultReply::new(200, serde_json::json!({ "name": "team/app", "tags": tags }).to_string())
        .header("content-type", "application/json")
}

pub(super) fn link(link: &str, found: &[&str]) -> FaultReply {
    tags(found).header("link", link)
}

/// A page that links to what follows `last`.
pub(super) fn page(last: &str, found: &[&str]) -> FaultReply {
    link(&format!("</v2/team/app/tags/list?last={last}&n=2>; rel=\"next\""), found)
}

pub(super) fn challenge(value: &str) -> FaultReply {
    status(401).header("www-authenticate", value)
}

pub(super) fn bearer(realm: &str) -> FaultReply {
    challenge(&format!(r#"Bearer realm="{realm}",service="registry",scope="repository:team/app:pull""#))
}

pub(super) fn token(token: &str) -> FaultReply {
    FaultReply::new(200, serde_json::json!({ "token": token, "expires_in": 300 }).to_string())
}

pub(super) fn redirect(to: &str) -> FaultReply {
    FaultReply::new(307, "").header("location", to)
}
