use axum::Router;
use axum::routing::get;
use jiff::Timestamp;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use tokio::net::TcpListener;

use super::*;
use crate::net::ca::CertificateAuthority;
use crate::net::probes::Readiness;
use crate::net::server::{ServerOptions, serve_https};
use crate::net::tls::{self, CertSource};
use crate::telemetry::Metrics;

/// A CA that signs clients.
struct Signer(CertifiedIssuer<'static, KeyPair>);

impl Signer {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn client(&self) -> reqwest::Identity {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &self.0).unwrap();
        reqwest::Identity::from_pem((certificate.pem() + &key.serialize_pem()).as_bytes()).unwrap()
    }
}

#[tokio::test]
async fn only_clients_of_the_ca_get_in() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (one, two) = (Signer::new(), Signer::new());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ca.crt");
    std::fs::write(&path, one.pem()).unwrap();
    let (readiness, metrics) = (Readiness::default(), Metrics::new());
    let mut watched = Watched::open(path.clone(), readiness.register("client-ca"), metrics.clone()).await.unwrap();

    let ca = Arc::new(CertificateAuthority::generate("test", Timestamp::now()).unwrap());
    let root = reqwest::Certificate::from_pem(ca.certificate_pem().as_bytes()).unwrap();
    let (_signer, ca) = tokio::sync::watch::channel(ca);
    let source = CertSource::SelfManaged { ca, dns: vec![], ips: vec!["127.0.0.1".parse().unwrap()] };
    let (served, stop) = (readiness.register("certificate"), CancellationToken::new());
    let clients: Arc<dyn ClientCertVerifier> = watched.verifier.clone();
    let clock = tls::system_clock();
    let (shared, _) = tls::start(source, Some(clients), clock, served, metrics.clone(), stop.clone()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let router = Router::new().route("/", get(|| async { "hello" }));
    tokio::spawn(serve_https(listener, shared, router, ServerOptions::default(), stop));

    let check = async |who: &str, identity: Option<reqwest::Identity>, allowed: bool| {
        for version in [reqwest::tls::Version::TLS_1_2, reqwest::tls::Version::TLS_1_3] {
            let builder = reqwest::Client::builder().tls_certs_only([root.clone()]).max_tls_version(version);
            let client = identity.clone().into_iter().fold(builder, reqwest::ClientBuilder::identity);
            let answer = client.build().unwrap().get(&url).send().await;
            assert_eq!(answer.is_ok(), allowed, "{who}: {answer:?}");
        }
    };
    check("nobody", None, false).await;
    check("one", Some(one.client()), true).await;
    check("two", Some(two.client()), false).await;
    // Half a file changes nothing, and is said if it stays.
    let said = |expected: bool| {
        let (ready, conditions) = readiness.report(true);
        assert!(ready && conditions.contains("[!] client-ca: ") == expected, "{conditions}");
        let line = "kimup_certificate_renewal_failing{part=\"client-ca\"} 1\n";
        assert_eq!(metrics.encode().contains(line), expected);
    };
    std::fs::write(&path, &two.pem()[..100]).unwrap();
    watched.check().await;
    said(false);
    watched.check().await;
    said(true);
    check("one", Some(one.client()), true).await;
    std::fs::write(&path, two.pem()).unwrap();
    watched.check().await;
    watched.check().await;
    said(false);
    check("one", Some(one.client()), false).await;
    check("two", Some(two.client()), true).await;
    // Both, while one takes the other's place; a bundle that is cut behind its first CA is waited for.
    std::fs::write(&path, one.pem()).unwrap();
    watched.check().await;
    check("two", Some(two.client()), true).await;
    std::fs::write(&path, one.pem() + &two.pem()).unwrap();
    watched.check().await;
    check("two", Some(two.client()), true).await;
    watched.check().await;
    said(false);
    check("one", Some(one.client()), true).await;
    check("two", Some(two.client()), true).await;
    check("nobody", None, false).await;
}

#[tokio::test]
async fn a_file_that_cannot_be_used_is_an_error_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let check = async |content: Option<&str>, part: &str| {
        let path = folder.path().join("ca.crt");
        let _ = std::fs::remove_file(&path);
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let condition = Readiness::default().register("client-ca");
        let error =
            start(path.clone(), condition, Metrics::new(), CancellationToken::new()).await.unwrap_err().to_string();
        assert!(error.contains(part) && error.contains(path.to_str().unwrap()), "{error}");
    };
    check(None, "No such file").await;
    check(Some(""), "holds no certificate").await;
    check(Some("-----BEGIN CERTIFICATE-----\nAAAA\n"), "no PEM").await;
    check(Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), "does not parse").await;
    check(Some(&"x".repeat(2 << 20)), "larger than").await;
}
