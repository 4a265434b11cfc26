//! Certificates, and credentials across https hosts.

use std::{net::SocketAddr, sync::Arc};

use axum::response::Response;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use super::super::{Config, ListRequest, RegistryError, Step};
use super::fake::{Fake, Seen, answer, challenge, client, keyring, limits, redirect, tags};
use crate::policy::{Digest, Repository};

struct TlsListener {
    tcp: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for TlsListener {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let Ok((stream, addr)) = self.tcp.accept().await else {
                continue;
            };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, addr);
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.tcp.local_addr()
    }
}

/// A registry with a self-signed certificate for these names, and the certificate in PEM.
async fn https(names: &[&str], script: impl Fn(&Seen) -> Response + Send + Sync + 'static) -> (Fake, Vec<u8>) {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![made.cert.der().clone()], key).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = TlsListener { tcp, acceptor: TlsAcceptor::from(Arc::new(config)) };
    (Fake::serve(listener, Arc::new(script)), made.cert.pem().into_bytes())
}

fn request(host: &str, skip_verify: bool, users: &[&str]) -> ListRequest {
    let repository = Repository::parse(&format!("{host}/team/app")).unwrap();
    ListRequest { repository, keyring: keyring(host, users), insecure_skip_tls_verify: skip_verify }
}

fn with_ca(pem: Option<Vec<u8>>) -> super::super::Client {
    client(Config { limits: limits(), extra_ca_pem: pem, ..Config::default() })
}

fn is_tls(error: &RegistryError) -> bool {
    matches!(error, RegistryError::Unreachable { step: Step::Tls, .. })
}

#[tokio::test]
async fn a_bad_ca_is_a_configuration_error() {
    for pem in ["", "hello", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let config = Config { extra_ca_pem: Some(pem.as_bytes().to_vec()), ..Config::default() };
        let result = super::super::Client::new(config);
        assert!(matches!(result.err(), Some(RegistryError::Config { .. })), "{pem:?}");
    }
}

#[tokio::test]
async fn skipping_the_check_holds_for_the_registry_only() {
    let (other, _) = https(&["127.0.0.1"], |_| tags(&["x"])).await;
    let to = format!("https://{}/", other.addr);
    let (registry, _) = https(&["127.0.0.1"], move |_| redirect(&to)).await;
    let error = with_ca(None).list_tags(&request(&registry.addr.to_string(), true, &[])).await.unwrap_err();
    assert!(is_tls(&error) && error.host() == other.addr.to_string(), "{error:?}");
    assert_eq!(other.log().len(), 0);
}

#[tokio::test]
async fn credentials_do_not_follow_a_redirect_of_a_config() {
    const CONFIG: &str = r#"{"os":"linux","architecture":"arm64"}"#;
    let (cdn, pem) = https(&["localhost"], |_| answer(200, &[], CONFIG)).await;
    let to = format!("https://localhost:{}/config", cdn.addr.port());
    let registry = Fake::new(move |seen| match (&seen.authorization, seen.path.contains("/blobs/")) {
        (None, _) => challenge(&["Basic"]),
        (Some(_), true) => redirect(&to),
        (Some(_), false) => {
            let digest = Digest::sha256_of(CONFIG.as_bytes());
            let kind = "application/vnd.docker.container.image.v1+json";
            let config = serde_json::json!({ "mediaType": kind, "digest": digest.as_str(), "size": CONFIG.len() });
            answer(200, &[], serde_json::json!({ "schemaVersion": 2, "config": config }).to_string())
        }
    })
    .await;
    let host = registry.addr.to_string();
    let config =
        Config { plain_http: vec![host.clone()], limits: limits(), extra_ca_pem: Some(pem), ..Config::default() };
    let request = registry.manifest_request("1", keyring(&host, &["alice:a"]));
    let platforms = client(config).manifest(&request).await.unwrap().platforms.unwrap();
    assert_eq!(platforms.iter().map(ToString::to_string).collect::<Vec<_>>(), ["linux/arm64"]);
    assert_eq!((registry.authorizations().len(), cdn.authorizations()), (3, vec![String::new()]));
}
