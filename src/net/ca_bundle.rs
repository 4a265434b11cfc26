//! CA certificates that are trusted together: what stands in a `caBundle`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::ca::Validity;

/// Certificates in one bundle. A rotation needs two; the rest is room for what others left in a configuration.
const MAX_CERTIFICATES: usize = 16;
/// Columns of a line of PEM (RFC 7468).
const PEM_LINE: usize = 64;

/// CA certificates in order, none twice, at most 16.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bundle(Vec<CertificateDer<'static>>);

impl std::fmt::Debug for Bundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bundle({} certificates)", self.0.len())
    }
}

impl Bundle {
    /// The CA certificates of a PEM text. What is anything else, or does not parse, is left out: others may have written it.
    pub fn from_pem(pem: &[u8]) -> Self {
        let found = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok);
        Self::default().and(found.filter(|der| validity(der).is_some()))
    }

    /// As PEM; the same certificates always give the same bytes.
    pub fn to_pem(&self) -> Vec<u8> {
        let mut pem = Vec::new();
        for der in &self.0 {
            pem.extend_from_slice(b"-----BEGIN CERTIFICATE-----\n");
            for line in STANDARD.encode(der).as_bytes().chunks(PEM_LINE) {
                pem.extend_from_slice(line);
                pem.push(b'\n');
            }
            pem.extend_from_slice(b"-----END CERTIFICATE-----\n");
        }
        pem
    }

    /// With these behind its own, as far as there is room.
    #[must_use]
    pub fn and(mut self, more: impl IntoIterator<Item = CertificateDer<'static>>) -> Self {
        for der in more {
            if self.0.len() < MAX_CERTIFICATES && !self.0.contains(&der) {
                self.0.push(der);
            }
        }
        self
    }

    /// Without those that are expired at `now`.
    #[must_use]
    pub fn unexpired(mut self, now: Timestamp) -> Self {
        self.0.retain(|der| validity(der).is_some_and(|validity| now < validity.not_after));
        self
    }

    /// What both have, in this one's order.
    #[must_use]
    pub fn common(mut self, other: &Self) -> Self {
        self.0.retain(|der| other.contains(der));
        self
    }

    /// Whether it has this certificate.
    pub fn contains(&self, der: &CertificateDer<'_>) -> bool {
        self.0.iter().any(|own| own == der)
    }

    /// The first, if there is one.
    pub fn first(&self) -> Option<&CertificateDer<'static>> {
        self.0.first()
    }

    /// Whether these are its first ones, in this order.
    pub fn begins_with(&self, others: &Self) -> bool {
        self.0.starts_with(&others.0)
    }

    /// Whether there is none in it.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }
}

impl IntoIterator for Bundle {
    type Item = CertificateDer<'static>;
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// What the entries of the live webhook configuration trust.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// In every entry: a certificate that one of these signed is trusted for each Pod.
    pub everywhere: Bundle,
    /// In one entry at least.
    pub anywhere: Bundle,
}

impl Carried {
    /// Of the `caBundle` of each entry, as PEM; nothing without entries.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut carried: Option<(Self, &[u8])> = None;
        for pem in entries {
            carried = Some(match carried {
                Some((carried, last)) if last == pem => (carried, last), // as a rule all are the same
                Some((carried, _)) => {
                    let bundle = Bundle::from_pem(pem);
                    (
                        Self { everywhere: carried.everywhere.common(&bundle), anywhere: carried.anywhere.and(bundle) },
                        pem,
                    )
                }
                None => {
                    let bundle = Bundle::from_pem(pem);
                    (Self { everywhere: bundle.clone(), anywhere: bundle }, pem)
                }
            });
        }
        carried.map(|(carried, _)| carried).unwrap_or_default()
    }
}

/// When a certificate is valid; none if it is not one of a CA.
fn validity(der: &CertificateDer<'_>) -> Option<Validity> {
    let (_, parsed) = X509Certificate::from_der(der).ok()?;
    parsed.is_ca().then(|| Validity::of(&parsed))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::ca::CertificateAuthority;

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn authority(from: &str) -> CertificateAuthority {
        CertificateAuthority::generate("test", at(from)).unwrap()
    }

    #[test]
    fn only_ca_certificates_are_taken_once_and_in_order() {
        let (a, b) = (authority("2026-01-01T00:00:00Z"), authority("2020-01-01T00:00:00Z"));
        let leaf = a.sign_leaf(&["x".to_owned()], &[], at("2026-01-01T00:00:00Z")).unwrap();
        let both = Bundle::default().and([a.der().clone(), b.der().clone()]);
        let check = |parts: &[&str], expected: &Bundle| {
            assert_eq!(&Bundle::from_pem(parts.concat().as_bytes()), expected, "{parts:?}");
        };
        let (pem_a, pem_b) = (a.certificate_pem(), b.certificate_pem());
        check(&[], &Bundle::default());
        check(&["garbage"], &Bundle::default());
        check(&[pem_a, pem_b], &both);
        check(&[pem_a, pem_a, &leaf.chain, "garbage\n", pem_b, pem_a], &both);
        check(&["-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", pem_a, pem_b], &both);
        check(&[pem_a, pem_b, &pem_a[..pem_a.len() / 2]], &both);
        check(&[std::str::from_utf8(&both.to_pem()).unwrap()], &both);
        assert!(both.to_pem().split(|byte| *byte == b'\n').all(|line| line.len() <= PEM_LINE));
    }

    /// Makes bundles of three CAs by their numbers: `"02"` is the first and the last.
    fn numbered() -> impl Fn(&str) -> Bundle {
        let authorities: Vec<_> = (0..3).map(|_| authority("2026-01-01T00:00:00Z")).collect();
        move |numbers| {
            let ders = numbers.bytes().map(|number| authorities[usize::from(number - b'0')].der().clone());
            Bundle::default().and(ders)
        }
    }

    #[test]
    fn the_first_ones_are_compared_in_order() {
        let bundle = numbered();
        let check = |whole: &str, first: &str, expected: bool| {
            assert_eq!(bundle(whole).begins_with(&bundle(first)), expected, "{whole} {first}");
        };
        check("", "", true);
        check("01", "", true);
        check("01", "0", true);
        check("012", "01", true);
        check("012", "10", false);
        check("012", "1", false);
        check("0", "01", false);
    }

    #[test]
    fn the_expired_go_and_the_number_is_bounded() {
        let (young, old) = (authority("2026-01-01T00:00:00Z"), authority("2020-01-01T00:00:00Z"));
        let both = Bundle::default().and([old.der().clone(), young.der().clone()]);
        let left = both.unexpired(at("2031-01-01T00:00:00Z"));
        assert_eq!(left, Bundle::default().and([young.der().clone()]));
        let many = (0..20).map(|_| authority("2026-01-01T00:00:00Z").der().clone());
        assert_eq!(left.and(many).len(), MAX_CERTIFICATES);
    }

    #[test]
    fn carried_is_what_entries_have_in_common_and_in_all() {
        let bundle = numbered();
        let check = |entries: &[&str], everywhere: &str, anywhere: &str| {
            let entries: Vec<Vec<u8>> = entries.iter().map(|numbers| bundle(numbers).to_pem()).collect();
            let found = Carried::of(entries.iter().map(Vec::as_slice));
            assert_eq!((found.everywhere, found.anywhere), (bundle(everywhere), bundle(anywhere)), "{entries:?}");
        };
        check(&[], "", "");
        check(&[""], "", "");
        check(&["01", "01", "01"], "01", "01");
        check(&["01", "1"], "1", "01");
        check(&["01", "12", "01"], "1", "012");
        check(&["0", ""], "", "0");
    }
}
