//! The measure of what a webhook costs at least: the same protocols, and no work.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result};
use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::header;
use axum::routing::post;
use rcgen::{CertificateParams, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::NoServerSessionStorage;
use tokio::net::TcpListener;

const ANSWER: &str = r#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","response":{"uid":"0f6a5e4c-0000-4000-8000-000000000000","allowed":true}}"#;

/// Reads each body and says yes, until it is killed.
pub async fn serve(listen: &str) -> Result<()> {
    kimup_testbed::install_crypto_provider();
    let listen: SocketAddr = listen.parse().context("no address")?;
    let listener = TcpListener::bind(listen).await?;
    let router = Router::new().route("/mutate", post(admit)).layer(DefaultBodyLimit::max(7 << 20));
    kimup_testbed::serve_tls(listener, Arc::new(tls()?), router).await;
    Ok(())
}

async fn admit(_review: Bytes) -> ([(header::HeaderName, &'static str); 1], &'static str) {
    ([(header::CONTENT_TYPE, "application/json")], ANSWER)
}

/// As kimup's own: TLS 1.2 and 1.3, HTTP/1.1, one certificate with a key on P-256, and nothing kept to resume a session.
fn tls() -> Result<ServerConfig> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
    let chain = vec![certificate.der().clone()];
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let mut config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key)?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    Ok(config)
}
