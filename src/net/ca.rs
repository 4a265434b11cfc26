//! The self-managed certificate authority: one CA per installation in one Secret, a leaf per replica in memory.

use std::net::IpAddr;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use secrecy::{ExposeSecret, SecretString};
use x509_parser::prelude::{FromDer, X509Certificate};

pub use super::ca_bundle::{Bundle, Carried};
pub use super::ca_follow::{Following, first, follow};
pub use super::ca_leader::{Rotation, rotate};
pub use super::ca_rotation::{CaState, Timing};
pub use super::ca_secret::CaStore;

/// How long a CA lives: longer than an installation goes without being set up anew.
const CA_LIFE: SignedDuration = SignedDuration::from_hours(10 * 365 * 24);
/// How long a leaf lives. It is renewed at two thirds of it.
const LEAF_LIFE: SignedDuration = SignedDuration::from_hours(90 * 24);
/// Certificates are valid from a little before they are made: the clocks of the nodes differ.
const BACKDATED: SignedDuration = SignedDuration::from_hours(1);
/// Names in one leaf, DNS and IP together.
const MAX_NAMES: usize = 64;

/// Why there is no CA or no leaf. No variant holds key material.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A key or a certificate could not be made.
    #[error("cannot make the certificate of `{name}`: {source}")]
    Make {
        /// Subject of the certificate.
        name: String,
        /// What the certificate library says.
        source: rcgen::Error,
    },
    /// A leaf was asked for without a name, or with too many.
    #[error("a serving certificate takes 1 to {MAX_NAMES} names, not {names}")]
    Names {
        /// How many were given.
        names: usize,
    },
    /// The CA is expired.
    #[error("the certificate authority of {origin} expired at {not_after}; the leader replaces it")]
    Expired {
        /// What was read (`Secret kimup-system/kimup-ca`).
        origin: String,
        /// When.
        not_after: Timestamp,
    },
    /// API servers do not trust the CA yet, and the replica has no other.
    #[error(
        "API servers do not trust the CA in `tls.crt` of {origin} yet: the leader publishes it in the webhook configuration, and after \
         --ca-rotation-delay it signs; if that does not come, see whether one leads (`kubectl get lease -A`) and what its `/readyz?verbose` \
         says of ca-rotation, and whether something else writes caBundle there; or put back the pair that was there"
    )]
    Unpublished {
        /// What was read (`Secret kimup-system/kimup-ca`).
        origin: String,
    },
    /// The stored pair is no usable CA.
    #[error("{origin} is no usable certificate authority: {reason}; delete it and kimup makes a new one")]
    Unusable {
        /// What was read (`Secret kimup-system/kimup-ca`).
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Reading or writing the Secret failed.
    #[error("{what}: {reason}; kimup needs `get`, `create` and `update` on this Secret (deploy/rbac.yaml)")]
    Api {
        /// The call (`cannot read Secret kimup-system/kimup-ca`).
        what: String,
        /// What the API server or the connection says.
        reason: String,
    },
}

/// A CA certificate and its private key.
///
/// All replicas share one: the API server trusts the certificate (`caBundle`), each replica signs its own leaf.
pub struct CertificateAuthority {
    name: String,
    certificate: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
    validity: Validity,
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority")
            .field("name", &self.name)
            .field("not_after", &self.validity.not_after)
            .finish_non_exhaustive()
    }
}

/// A serving certificate, signed by a [`CertificateAuthority`].
#[derive(Debug)]
pub struct Leaf {
    /// The chain to serve, PEM: the leaf alone, for the client has the CA.
    pub chain: String,
    /// Its private key, PEM (PKCS#8).
    pub key: SecretString,
    /// Valid from.
    pub not_before: Timestamp,
    /// Valid until.
    pub not_after: Timestamp,
}

impl CertificateAuthority {
    /// A new CA (ECDSA P-256) named `name`, valid for ten years from an hour before `now`.
    pub fn generate(name: &str, now: Timestamp) -> Result<Self, CaError> {
        let make = |source| CaError::Make { name: name.to_owned(), source };
        let validity = Validity { not_before: backdated(now), not_after: later(now, CA_LIFE) };
        let mut params = CertificateParams::default();
        params.distinguished_name = subject(name);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        set_validity(&mut params, validity);
        let key = KeyPair::generate().map_err(make)?;
        let signed = params.self_signed(&key).map_err(make)?;
        let (certificate, der) = (signed.pem(), signed.der().clone());
        Ok(Self { name: name.to_owned(), certificate, der, issuer: Issuer::new(params, key), validity })
    }

    /// A stored CA. `origin` names where it came from, for errors. Refused: what does not parse, is no CA, has another
    /// key than the certificate's or is expired at `now`.
    pub fn from_pem(origin: &str, certificate: &str, key: &SecretString, now: Timestamp) -> Result<Self, CaError> {
        let unusable = |reason: String| CaError::Unusable { origin: origin.to_owned(), reason };
        let der = CertificateDer::from_pem_slice(certificate.as_bytes())
            .map_err(|e| unusable(format!("the certificate is no PEM: {e}")))?;
        let (_, parsed) =
            X509Certificate::from_der(&der).map_err(|e| unusable(format!("the certificate does not parse: {e}")))?;
        if !parsed.is_ca() {
            return Err(unusable("the certificate is not one of a CA".to_owned()));
        }
        // The library's error could quote what it could not read: the key.
        let key = KeyPair::from_pem(key.expose_secret())
            .map_err(|_| unusable("the private key does not parse".to_owned()))?;
        if key.subject_public_key_info() != parsed.public_key().raw {
            return Err(unusable("the private key is not the certificate's".to_owned()));
        }
        let validity = Validity::of(&parsed);
        if validity.not_after <= now {
            return Err(CaError::Expired { origin: origin.to_owned(), not_after: validity.not_after });
        }
        let name = origin.to_owned();
        let issuer = Issuer::from_ca_cert_der(&der, key).map_err(|e| unusable(e.to_string()))?;
        Ok(Self { name, certificate: certificate.to_owned(), der, issuer, validity })
    }

    /// The CA certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.certificate
    }

    /// The CA certificate, DER: what tells one CA from another.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// The private key, PEM (PKCS#8), for the Secret.
    pub fn key_pem(&self) -> SecretString {
        self.issuer.key().serialize_pem().into()
    }

    /// Until when the CA is valid.
    pub fn not_after(&self) -> Timestamp {
        self.validity.not_after
    }

    /// Whether two thirds of its life are over: time for the next one.
    pub fn is_due(&self, now: Timestamp) -> bool {
        self.validity.is_due(now)
    }

    /// A new key and a serving certificate for it: 90 days, but never longer than the CA, from an hour before `now`.
    ///
    /// At least one name is needed, at most 64. Takes about a millisecond.
    pub fn sign_leaf(&self, dns: &[String], ips: &[IpAddr], now: Timestamp) -> Result<Leaf, CaError> {
        let names = dns.len() + ips.len();
        if names == 0 || names > MAX_NAMES {
            return Err(CaError::Names { names });
        }
        if self.not_after() <= now {
            return Err(CaError::Expired { origin: self.name.clone(), not_after: self.not_after() });
        }
        let name = dns.first().cloned().unwrap_or_else(|| format!("{ips:?}"));
        let make = |source| CaError::Make { name: name.clone(), source };
        let not_before = backdated(now);
        let not_after = later(now, LEAF_LIFE).min(self.not_after());
        let mut params = CertificateParams::new(dns.to_vec()).map_err(make)?;
        params.subject_alt_names.extend(ips.iter().copied().map(SanType::IpAddress));
        params.distinguished_name = subject("kimup webhook");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        set_validity(&mut params, Validity { not_before, not_after });
        let key = KeyPair::generate().map_err(make)?;
        let chain = params.signed_by(&key, &self.issuer).map_err(make)?.pem();
        Ok(Leaf { chain, key: key.serialize_pem().into(), not_before, not_after })
    }
}

fn subject(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

/// Whole seconds, never before 1970. rcgen takes dates of the `time` crate; the one it hands out is a calendar day.
fn set_validity(params: &mut CertificateParams, validity: Validity) {
    let date = |at: Timestamp| {
        rcgen::date_time_ymd(1970, 1, 1) + Duration::from_secs(u64::try_from(at.as_second()).unwrap_or(0))
    };
    params.not_before = date(validity.not_before);
    params.not_after = date(validity.not_after);
}

fn later(at: Timestamp, by: SignedDuration) -> Timestamp {
    at.saturating_add(by).unwrap_or(Timestamp::MAX)
}

fn backdated(now: Timestamp) -> Timestamp {
    now.saturating_sub(BACKDATED).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// When a certificate is valid, as read from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Validity {
    pub not_before: Timestamp,
    pub not_after: Timestamp,
}

impl Validity {
    pub fn of(certificate: &X509Certificate<'_>) -> Self {
        let at = |seconds, otherwise| Timestamp::from_second(seconds).unwrap_or(otherwise);
        let validity = certificate.validity();
        Self {
            not_before: at(validity.not_before.timestamp(), Timestamp::MIN),
            not_after: at(validity.not_after.timestamp(), Timestamp::MAX),
        }
    }

    /// Whether two thirds of it are over: time for the next one.
    pub fn is_due(self, now: Timestamp) -> bool {
        let life = self.not_after.as_second() - self.not_before.as_second();
        now.as_second() - self.not_before.as_second() >= life / 3 * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn generated() -> CertificateAuthority {
        CertificateAuthority::generate("kimup-ca", at("2026-01-01T00:00:00Z")).unwrap()
    }

    #[test]
    fn a_stored_pair_signs_leaves_that_chain_to_it() {
        let ca = generated();
        let now = at("2026-02-01T00:00:00Z");
        let stored = CertificateAuthority::from_pem("Secret a/b", ca.certificate_pem(), &ca.key_pem(), now).unwrap();
        assert_eq!(stored.certificate_pem(), ca.certificate_pem());
        assert_eq!(stored.not_after(), at("2035-12-30T00:00:00Z"));
        let names = ["kimup.kimup-system.svc".to_owned()];
        let leaf = stored.sign_leaf(&names, &["::1".parse().unwrap()], now).unwrap();
        assert_eq!(leaf.not_before, at("2026-01-31T23:00:00Z"));
        assert_eq!(leaf.not_after, at("2026-05-02T00:00:00Z"));

        let der = CertificateDer::from_pem_slice(leaf.chain.as_bytes()).unwrap();
        let ca_der = CertificateDer::from_pem_slice(ca.certificate_pem().as_bytes()).unwrap();
        let (_, parsed) = X509Certificate::from_der(&der).unwrap();
        let (_, issuer) = X509Certificate::from_der(&ca_der).unwrap();
        assert_eq!(parsed.issuer(), issuer.subject());
        assert!(!parsed.is_ca() && issuer.is_ca());
        let validity = Validity::of(&parsed);
        assert_eq!((validity.not_before, validity.not_after), (leaf.not_before, leaf.not_after));
        let san = parsed.subject_alternative_name().unwrap().unwrap();
        let names = format!("{:?}", san.value.general_names);
        assert!(names.contains("kimup.kimup-system.svc"), "{names}");
    }

    #[test]
    fn unusable_pairs_are_refused_with_the_reason() {
        let ca = generated();
        let now = at("2026-02-01T00:00:00Z");
        let leaf = ca.sign_leaf(&["a.b".to_owned()], &[], now).unwrap();
        let check = |certificate: &str, key: &SecretString, now: Timestamp, reason: &str| {
            let error = CertificateAuthority::from_pem("Secret a/b", certificate, key, now).unwrap_err().to_string();
            assert!(error.starts_with("Secret a/b is no usable"), "{error}");
            assert!(error.contains(reason), "{error}");
        };
        let (good, key) = (ca.certificate_pem(), ca.key_pem());
        check("", &key, now, "no PEM");
        check(&good[..good.len() / 2], &key, now, "no PEM");
        check(good, &"".into(), now, "private key does not parse");
        check(good, &generated().key_pem(), now, "not the certificate's");
        check(&leaf.chain, &leaf.key, now, "not one of a CA");
        let expired = CertificateAuthority::from_pem("Secret a/b", good, &key, at("2036-01-01T00:00:00Z")).unwrap_err();
        assert!(matches!(expired, CaError::Expired { .. }), "{expired}");
        assert!(expired.to_string().contains("Secret a/b expired at 2035-12-30"), "{expired}");
    }

    #[test]
    fn a_leaf_never_outlives_its_ca() {
        let ca = generated();
        let last_month = at("2035-12-01T00:00:00Z");
        let leaf = ca.sign_leaf(&["a.b".to_owned()], &[], last_month).unwrap();
        assert_eq!(leaf.not_after, ca.not_after());
        let error = ca.sign_leaf(&["a.b".to_owned()], &[], ca.not_after()).unwrap_err();
        assert!(matches!(error, CaError::Expired { .. }), "{error}");
    }

    #[test]
    fn names_are_counted() {
        let ca = generated();
        let now = at("2026-02-01T00:00:00Z");
        let check = |count: usize, good: bool| {
            let names: Vec<String> = (0..count).map(|n| format!("name-{n}")).collect();
            assert_eq!(ca.sign_leaf(&names, &[], now).is_ok(), good, "{count} names");
        };
        check(0, false);
        check(1, true);
        check(MAX_NAMES, true);
        check(MAX_NAMES + 1, false);
    }

    #[test]
    fn keys_do_not_print() {
        let ca = generated();
        let leaf = ca.sign_leaf(&["a.b".to_owned()], &[], at("2026-02-01T00:00:00Z")).unwrap();
        let printed = format!("{ca:?} {leaf:?} {:?}", ca.key_pem());
        assert!(!printed.contains("PRIVATE"), "{printed}");
    }
}
