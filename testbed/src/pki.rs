//! Keys and certificates of a test cluster and of a TLS registry.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

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

/// Writes a self-signed `server.crt` and its `server.key`. Returns the certificate as PEM.
pub(crate) fn write_self_signed(folder: &Path) -> Result<String> {
    let key = KeyPair::generate()?;
    let pem = params("registry", &NAMES)?.self_signed(&key)?.pem();
    write(folder, "server.crt", &pem)?;
    write(folder, "server.key", &key.serialize_pem())?;
    Ok(pem)
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
