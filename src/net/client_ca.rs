//! Who may connect: clients with a certificate that a CA of a file has signed (`--client-ca-file`).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, RootCertStore, SignatureScheme};
use tokio::io::AsyncReadExt;
use tokio_util::sync::CancellationToken;

/// How often the file is read, as those of the serving certificate.
const POLL: Duration = Duration::from_secs(10);
/// Largest file that is read: more than a `ConfigMap` or Secret can hold.
const MAX_FILE: u64 = 1 << 20;

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

/// A verifier of client certificates that follows `path` until `shutdown`: the file is read every 10 seconds and compared
/// by bytes. One that cannot be used is not taken; the last good one stays in use, and the reason is logged once. Connections
/// that are there already stay. The first one must be good.
pub async fn start(path: PathBuf, shutdown: CancellationToken) -> Result<Arc<dyn ClientCertVerifier>, ClientCaError> {
    let mut file = Watched::open(path).await?;
    let verifier = Arc::clone(&file.verifier);
    tokio::spawn(async move {
        while shutdown.run_until_cancelled(tokio::time::sleep(POLL)).await.is_some() {
            file.check().await;
        }
    });
    Ok(verifier)
}

/// The file, and what came of it.
struct Watched {
    path: PathBuf,
    bytes: Vec<u8>,
    verifier: Arc<Following>,
    warned: Option<String>,
}

impl Watched {
    async fn open(path: PathBuf) -> Result<Self, ClientCaError> {
        let bytes = read(&path).await?;
        let verifier = Following { current: ArcSwap::from_pointee(verifier(&path, &bytes)?) };
        Ok(Self { path, bytes, verifier: Arc::new(verifier), warned: None })
    }

    async fn check(&mut self) {
        match self.renew().await {
            Ok(true) => {
                self.warned = None;
                tracing::info!(path = %self.path.display(), "checking clients against a new CA file");
            }
            Ok(false) => self.warned = None,
            Err(error) => {
                let text = error.to_string();
                if self.warned.as_ref() != Some(&text) {
                    tracing::warn!(error = %text, "the client CAs in use stay");
                    self.warned = Some(text);
                }
            }
        }
    }

    async fn renew(&mut self) -> Result<bool, ClientCaError> {
        let bytes = read(&self.path).await?;
        if bytes == self.bytes {
            return Ok(false);
        }
        self.verifier.current.store(Arc::new(verifier(&self.path, &bytes)?));
        self.bytes = bytes;
        Ok(true)
    }
}

async fn read(path: &PathBuf) -> Result<Vec<u8>, ClientCaError> {
    let failed = |source| ClientCaError::Read { path: path.clone(), source };
    let file = tokio::fs::File::open(path).await.map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).await.map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(failed(std::io::Error::other(format!("larger than {MAX_FILE} bytes"))));
    }
    Ok(bytes)
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
