//! Who may connect: clients with a certificate that a CA of a file has signed (`--client-ca-file`).

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use tokio_util::sync::CancellationToken;

use super::file::{self, Look, Settling};
use super::probes::Condition;
use super::trouble::Trouble;
use crate::telemetry::{CertificatePart, Metrics};

/// Why clients cannot be checked.
#[derive(Debug, thiserror::Error)]
pub enum ClientCaError {
    /// The file cannot be read.
    #[error("cannot read the client CA file {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// What the file system says.
        source: std::io::Error,
    },
    /// The file is not what is needed.
    #[error(
        "the client CA file {path} cannot be used: {reason}; it must hold the PEM certificates of the CAs that sign the API server's client certificate"
    )]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A verifier of client certificates that follows `path` until `shutdown`: the file is read every 2 seconds and compared
/// by bytes, and a new one is taken when two looks in a row find the same. One that cannot be used is not taken; the last
/// good one stays in use, and if it lasts, `condition`, a metric and the log say why. Connections that are there already
/// stay. The first one must be good.
pub async fn start(
    path: PathBuf,
    condition: Condition,
    metrics: Metrics,
    shutdown: CancellationToken,
) -> Result<Arc<dyn ClientCertVerifier>, ClientCaError> {
    let mut file = Watched::open(path, condition, metrics).await?;
    let verifier = Arc::clone(&file.verifier);
    tokio::spawn(async move {
        while shutdown.run_until_cancelled(tokio::time::sleep(file::POLL)).await.is_some() {
            file.check().await;
        }
    });
    Ok(verifier)
}

/// The file, and what came of it.
struct Watched {
    path: PathBuf,
    bytes: Vec<u8>,
    /// Another content, seen once.
    settling: Settling<Vec<u8>>,
    verifier: Arc<Following>,
    condition: Condition,
    trouble: Trouble,
}

impl Watched {
    async fn open(path: PathBuf, condition: Condition, metrics: Metrics) -> Result<Self, ClientCaError> {
        let bytes = read(&path).await?;
        let verifier = Arc::new(Following { current: ArcSwap::from_pointee(verifier(&path, &bytes)?) });
        condition.set(true, "");
        let trouble = Trouble::new(CertificatePart::Clients, metrics);
        Ok(Self { path, bytes, settling: Settling::new(), verifier, condition, trouble })
    }

    async fn check(&mut self) {
        match self.renew().await {
            Ok(Look::Unsettled) => {}
            Ok(look) => {
                self.trouble.over();
                if look == Look::Taken {
                    tracing::info!(path = %self.path.display(), "checking clients against a new CA file");
                }
            }
            Err(error) => self.trouble.failed(&error),
        }
        match self.trouble.reason() {
            Some(reason) => self.condition.degrade(reason),
            None => self.condition.set(true, ""),
        }
    }

    async fn renew(&mut self) -> Result<Look, ClientCaError> {
        let bytes = read(&self.path).await.inspect_err(|_| self.settling.forget())?;
        if bytes == self.bytes {
            self.settling.forget();
            return Ok(Look::Same);
        }
        let judged = verifier(&self.path, &bytes);
        let settled = self.settling.settled(bytes);
        let verifier = judged?;
        let Some(bytes) = settled else {
            return Ok(Look::Unsettled);
        };
        self.verifier.current.store(Arc::new(verifier));
        self.bytes = bytes;
        Ok(Look::Taken)
    }
}

async fn read(path: &Path) -> Result<Vec<u8>, ClientCaError> {
    file::read(path).await.map_err(|source| ClientCaError::Read { path: path.to_owned(), source })
}

fn verifier(path: &Path, pem: &[u8]) -> Result<Arc<dyn ClientCertVerifier>, ClientCaError> {
    let refuse = |reason: String| ClientCaError::Content { path: path.to_path_buf(), reason };
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|e| refuse(format!("it is no PEM: {e}")))?;
        roots.add(certificate).map_err(|e| refuse(format!("a certificate does not parse: {e}")))?;
    }
    if roots.is_empty() {
        return Err(refuse("it holds no certificate".to_owned()));
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().map_err(|e| refuse(e.to_string()))
}

/// Delegates to whatever the file last held, so that no server configuration has to be made anew.
#[derive(Debug)]
struct Following {
    current: ArcSwap<Arc<dyn ClientCertVerifier>>,
}

impl ClientCertVerifier for Following {
    /// None: hints only help clients with several certificates to choose, and these change.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.current.load().verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current.load().verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.current.load().verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.current.load().supported_verify_schemes()
    }
}

#[cfg(test)]
mod tests;
