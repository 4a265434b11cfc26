//! Keys and certificates of a test cluster and of a TLS registry.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};

/// The names under which everything here is reached.
const NAMES: [&str; 4] = ["127.0.0.1", "localhost", "kubernetes", "kubernetes.default.svc"];

/// Writes `ca.crt`, `server.crt` and `server.key` (signed by it), and the key pair `sa.key`, `sa.pub` that signs
/// ServiceAccount tokens. Returns the CA certificate as PEM.
pub(crate) fn write_cluster_pki(folder: &Path) -> Result<String> {
    let mut ca = params("kimup-testbed-ca", &[])?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let ca_key = KeyPair::generate()?;
    let ca_pem = ca.self_signed(&ca_key)?.pem();
    let server_key = KeyPair::generate()?;
    let server = params("kube-apiserver", &NAMES)?.signed_by(&server_key, &Issuer::new(ca, ca_key))?;
    let token_key = KeyPair::generate()?;
    write(folder, "ca.crt", &ca_pem)?;
    write(folder, "server.crt", &server.pem())?;
    write(folder, "server.key", &server_key.serialize_pem())?;
    write(folder, "sa.key", &token_key.serialize_pem())?;
    write(folder, "sa.pub", &token_key.public_key_pem())?;
    Ok(ca_pem)
}

fn params(name: &str, alternative_names: &[&str]) -> Result<CertificateParams> {
    let names: Vec<String> = alternative_names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    Ok(params)
}

fn write(folder: &Path, name: &str, pem: &str) -> Result<()> {
    let path = folder.join(name);
    fs::write(&path, pem).with_context(|| format!("writing {}", path.display()))
}

/// A certificate authority for hosts of a test ([`crate::FaultServer`]).
pub struct TestCa {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
pub struct ServerCertificate {
    /// In DER.
    pub(crate) chain: Vec<Vec<u8>>,
    /// In DER (PKCS #8): an ECDSA key on the curve P-256.
    pub(crate) key: Vec<u8>,
    pem: String,
    key_pem: String,
    root_pem: String,
}

impl ServerCertificate {
    /// The certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// Its key in PEM (PKCS #8).
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The certificate in DER, as it goes over the wire.
    pub fn der(&self) -> &[u8] {
        self.chain.first().map_or(&[], Vec::as_slice)
    }

    /// What a client trusts that accepts it, in PEM: the authority's certificate, or its own.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// Signed by itself.
    pub fn self_signed(names: &[&str]) -> Result<Self> {
        let key = KeyPair::generate()?;
        Ok(Self::new(&params("self-signed", names)?.self_signed(&key)?, &key, None))
    }

    /// Signed by itself, for the names under which everything here is reached.
    pub(crate) fn own() -> Result<Self> {
        Self::self_signed(&NAMES)
    }

    /// Writes `server.crt` and `server.key`.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write(folder, "server.crt", &self.pem)?;
        write(folder, "server.key", &self.key_pem)
    }

    fn new(certificate: &rcgen::Certificate, key: &KeyPair, root: Option<&str>) -> Self {
        let pem = certificate.pem();
        Self {
            chain: vec![certificate.der().to_vec()],
            key: key.serialize_der(),
            key_pem: key.serialize_pem(),
            root_pem: root.unwrap_or(&pem).to_owned(),
            pem,
        }
    }
}

impl TestCa {
    pub fn new() -> Result<Self> {
        let mut params = params("kimup-testbed-fault-ca", &[])?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self { pem, issuer: Issuer::new(params, key) })
    }

    /// Its own certificate in PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A certificate for these names and IP addresses.
    pub fn server(&self, names: &[&str]) -> Result<ServerCertificate> {
        self.sign(&params("server", names)?)
    }

    /// A certificate with which this client shows who it is.
    pub fn client(&self, name: &str) -> Result<ServerCertificate> {
        let mut params = params(name, &[])?;
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    /// The same as [`TestCa::server`], but it expired in the year 2001.
    pub fn expired(&self, names: &[&str]) -> Result<ServerCertificate> {
        let mut params = params("server", names)?;
        params.not_before = rcgen::date_time_ymd(2000, 1, 1);
        params.not_after = rcgen::date_time_ymd(2001, 1, 1);
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Result<ServerCertificate> {
        let key = KeyPair::generate()?;
        Ok(ServerCertificate::new(&params.signed_by(&key, &self.issuer)?, &key, Some(&self.pem)))
    }
}
