//! The certificate that is served, and its renewal: from the self-managed CA, or from files that something else renews.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use secrecy::{ExposeSecret, SecretSlice};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ca::{CaError, CertificateAuthority, Validity};
use super::file::{self, Look, Settling};
use super::probes::Condition;
use super::trouble::Trouble;
use crate::telemetry::{CertificatePart, Metrics};

/// How often the age of a self-signed leaf is looked at.
const POLL_LEAF: Duration = Duration::from_secs(60);

/// The wall clock; another one in tests.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The wall clock of this machine.
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

/// The configuration for new connections; it changes when the certificate does. Loading it takes no lock.
pub type SharedTls = Arc<ArcSwap<ServerConfig>>;

/// Where the serving certificate comes from.
#[derive(Debug)]
pub enum CertSource {
    /// A leaf that this process signs, and signs anew at two thirds of its life or with another CA.
    SelfManaged {
        /// The CA that signs, which clients trust already.
        ca: watch::Receiver<Arc<CertificateAuthority>>,
        /// DNS names of the server.
        dns: Vec<String>,
        /// IP addresses of the server.
        ips: Vec<IpAddr>,
    },
    /// PEM files (`--tls-cert-file`, `--tls-key-file`), read every 2 seconds and compared by bytes, so that it does
    /// not matter how they are renewed: in place, by rename or by a symlink. A new pair is taken when two looks in a row find
    /// the same, so after two to four seconds. One that is half-written, mismatched, expired or not yet valid is not taken; the
    /// old one stays in use, and if it lasts, the condition, a metric and the log say why.
    Files {
        /// The chain, leaf first.
        certificate: PathBuf,
        /// The private key.
        key: PathBuf,
    },
}

/// Why there is no certificate to serve. Errors never quote key material.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A leaf could not be signed.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A file could not be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: std::io::Error,
    },
    /// The pair cannot be served.
    #[error("cannot serve the certificate of {origin}: {reason}")]
    Pair {
        /// The certificate file, or `the self-managed CA`.
        origin: String,
        /// What is wrong with the pair.
        reason: String,
    },
}

/// Gets the first certificate and keeps it fresh in a task until `shutdown`.
///
/// `served` becomes true with the first certificate and false when the one in use has expired and there is no other.
/// Its expiry goes to `metrics`. With `clients` only clients with a certificate that it accepts may connect. The first
/// certificate must be good: there is nothing older to fall back to.
pub async fn start(
    source: CertSource,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    clock: Clock,
    served: Condition,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(SharedTls, JoinHandle<()>), TlsError> {
    let poll = match source {
        CertSource::SelfManaged { .. } => POLL_LEAF,
        CertSource::Files { .. } => file::POLL,
    };
    start_every(poll, source, clients, clock, served, metrics, shutdown).await
}

/// As [`start`], looking as often as `poll` says.
pub(super) async fn start_every(
    poll: Duration,
    source: CertSource,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    clock: Clock,
    served: Condition,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<(SharedTls, JoinHandle<()>), TlsError> {
    let keeper = Keeper::start(source, clients, clock, served, metrics).await?;
    let shared = Arc::clone(&keeper.shared);
    Ok((shared, tokio::spawn(keeper.run(poll, shutdown))))
}

/// One certificate with its key, not yet judged.
struct Pair {
    chain: Vec<u8>,
    key: SecretSlice<u8>,
}

impl PartialEq for Pair {
    fn eq(&self, other: &Self) -> bool {
        self.chain == other.chain && self.key.expose_secret() == other.key.expose_secret()
    }
}

/// What is served now and where the next comes from.
struct Keeper {
    source: CertSource,
    clients: Option<Arc<dyn ClientCertVerifier>>,
    clock: Clock,
    served: Condition,
    metrics: Metrics,
    shared: SharedTls,
    pair: Pair,
    /// Another pair of files, seen once.
    settling: Settling<Pair>,
    validity: Validity,
    /// The CA that signed the pair, if this process has it.
    signer: Option<Arc<CertificateAuthority>>,
    trouble: Trouble,
}

impl Keeper {
    async fn start(
        source: CertSource,
        clients: Option<Arc<dyn ClientCertVerifier>>,
        clock: Clock,
        served: Condition,
        metrics: Metrics,
    ) -> Result<Self, TlsError> {
        let now = clock();
        let (pair, signer) = source.next(now).await?;
        let (config, validity) = source.judge(&pair, clients.clone(), now)?;
        let shared = Arc::new(ArcSwap::from_pointee(config));
        let trouble = Trouble::new(CertificatePart::Serving, metrics.clone());
        // The first pair is taken at sight: there is nothing else to serve. If it was cut, the next looks find the rest.
        let settling = Settling::new();
        let keeper =
            Self { source, clients, clock, served, metrics, shared, pair, settling, validity, signer, trouble };
        keeper.report(now);
        Ok(keeper)
    }

    async fn run(mut self, poll: Duration, shutdown: CancellationToken) {
        while shutdown.run_until_cancelled(self.source.pause(poll)).await.is_some() {
            self.check().await;
        }
    }

    /// One look at the source. Never fails: the pair in use stays until there is a better one.
    async fn check(&mut self) {
        let now = (self.clock)();
        if self.is_due(now) {
            match self.renewed(now).await {
                Ok(Look::Unsettled) => {}
                Ok(look) => {
                    self.trouble.over();
                    if look == Look::Taken {
                        tracing::info!(not_after = %self.validity.not_after, "serving a new certificate");
                    }
                }
                Err(error) => self.trouble.failed(&error),
            }
        }
        self.report(now);
    }

    /// Whether it is time to ask for the next pair: files always, a leaf when another CA signs, at two thirds of its life or
    /// when the clock went back behind its start.
    fn is_due(&self, now: Timestamp) -> bool {
        let CertSource::SelfManaged { ca, .. } = &self.source else {
            return true;
        };
        self.signer.as_ref().is_none_or(|signer| signer.der() != ca.borrow().der())
            || now < self.validity.not_before
            || self.validity.is_due(now)
    }

    /// Takes the next pair if it is another and a good one; of files, at the second look.
    async fn renewed(&mut self, now: Timestamp) -> Result<Look, TlsError> {
        let (pair, signer) = self.source.next(now).await.inspect_err(|_| self.settling.forget())?;
        if pair == self.pair {
            self.settling.forget();
            return Ok(Look::Same);
        }
        let judged = self.source.judge(&pair, self.clients.clone(), now);
        // What this process signs is whole.
        let settled = if signer.is_some() { Some(pair) } else { self.settling.settled(pair) };
        let (config, validity) = judged?;
        let Some(pair) = settled else {
            return Ok(Look::Unsettled);
        };
        self.shared.store(Arc::new(config));
        (self.pair, self.validity, self.signer) = (pair, validity, signer);
        Ok(Look::Taken)
    }

    fn report(&self, now: Timestamp) {
        let not_after = self.validity.not_after;
        self.metrics.set_certificate_expiry(not_after.as_second());
        if let Some(ca) = &self.signer {
            self.metrics.set_ca_expiry(ca.not_after().as_second());
        }
        match (now < not_after, self.trouble.reason()) {
            (true, None) => self.served.set(true, ""),
            (true, Some(reason)) => self.served.degrade(format!("served until {not_after}; {reason}")),
            (false, None) => self.served.set(false, format!("the certificate expired at {not_after}")),
            (false, Some(reason)) => {
                self.served.set(false, format!("the certificate expired at {not_after}; {reason}"));
            }
        }
    }
}

impl CertSource {
    /// Until it is time to look again.
    async fn pause(&mut self, poll: Duration) {
        let elapsed = tokio::time::sleep(poll);
        match self {
            Self::SelfManaged { ca, .. } => tokio::select! {
                () = elapsed => {}
                Ok(()) = ca.changed() => {}
            },
            Self::Files { .. } => elapsed.await,
        }
    }

    /// The pair to serve, and the CA that signed it if that is ours.
    async fn next(&self, now: Timestamp) -> Result<(Pair, Option<Arc<CertificateAuthority>>), TlsError> {
        match self {
            Self::SelfManaged { ca, dns, ips } => {
                let ca = Arc::clone(&ca.borrow());
                let leaf = ca.sign_leaf(dns, ips, now)?;
                let key = leaf.key.expose_secret().as_bytes().to_vec().into();
                Ok((Pair { chain: leaf.chain.into_bytes(), key }, Some(ca)))
            }
            Self::Files { certificate, key } => {
                Ok((Pair { chain: read(certificate).await?, key: read(key).await?.into() }, None))
            }
        }
    }

    /// The server configuration for a pair, if it is whole, matched and valid now.
    fn judge(
        &self,
        pair: &Pair,
        clients: Option<Arc<dyn ClientCertVerifier>>,
        now: Timestamp,
    ) -> Result<(ServerConfig, Validity), TlsError> {
        let refuse = |reason: String| TlsError::Pair { origin: self.origin(), reason };
        let chain = CertificateDer::pem_slice_iter(&pair.chain)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| refuse(format!("the certificate is no PEM: {e}")))?;
        let leaf = chain.first().ok_or_else(|| refuse("the certificate file has none".to_owned()))?;
        let (_, parsed) =
            X509Certificate::from_der(leaf).map_err(|e| refuse(format!("the certificate does not parse: {e}")))?;
        let validity = Validity::of(&parsed);
        if validity.not_after <= now {
            return Err(refuse(format!("it expired at {}", validity.not_after)));
        }
        if validity.not_before > now {
            return Err(refuse(format!("it is valid only from {}", validity.not_before)));
        }
        // The library's error could quote what it could not read: the key.
        let key = PrivateKeyDer::from_pem_slice(pair.key.expose_secret())
            .map_err(|_| refuse("the private key is no PEM".to_owned()))?;
        // Refuses a key that is not the certificate's.
        let config = server_config(chain, key, clients).map_err(|e| refuse(e.to_string()))?;
        Ok((config, validity))
    }

    fn origin(&self) -> String {
        match self {
            Self::SelfManaged { .. } => "the self-managed CA".to_owned(),
            Self::Files { certificate, .. } => certificate.display().to_string(),
        }
    }
}

/// TLS 1.2 and 1.3, `http/1.1` only: with HTTP/2 the API server would keep one connection, and so one replica.
fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    clients: Option<Arc<dyn ClientCertVerifier>>,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_client_cert_verifier(clients.unwrap_or_else(WebPkiClientVerifier::no_client_auth))
        .with_single_cert(chain, key)?;
    // The API server resumes no sessions: keeping them would cost time at each handshake, and a resumed one would not be
    // checked against a client CA that has changed since.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

async fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    file::read(path).await.map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

#[cfg(test)]
mod load;
#[cfg(test)]
mod tests;
