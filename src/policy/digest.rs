//! Content digests (OCI image spec, "Digests").

use std::{fmt, str::FromStr};

use aws_lc_rs::digest;

use super::pattern::shorten;

/// The digest of a manifest or blob: `sha256:` and 64, or `sha512:` and 128, lower-case hexadecimal digits. The two
/// algorithms that can be verified; an image text may name others.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest(String);

/// A text that is no [`Digest`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no digest: write sha256:<64 lower-case hexadecimal digits>, or sha512:<128>")]
pub struct DigestError(String);

impl Digest {
    /// Reads a digest; no blanks, no upper case.
    pub fn parse(text: &str) -> Result<Self, DigestError> {
        let lower_hex = |digits: &str| digits.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        let legal = match text.split_once(':') {
            Some(("sha256", digits)) => digits.len() == 64 && lower_hex(digits),
            Some(("sha512", digits)) => digits.len() == 128 && lower_hex(digits),
            _ => false,
        };
        if legal { Ok(Self(text.to_owned())) } else { Err(DigestError(shorten(text))) }
    }

    /// The SHA-256 digest of this content: a pass over it.
    pub fn sha256_of(content: &[u8]) -> Self {
        Self::compute("sha256", &digest::SHA256, content)
    }

    /// Whether this is the digest of `content`, by its own algorithm: a pass over it.
    pub fn is_of(&self, content: &[u8]) -> bool {
        let computed = match self.algorithm() {
            "sha512" => Self::compute("sha512", &digest::SHA512, content),
            _ => Self::sha256_of(content),
        };
        *self == computed
    }

    /// `sha256` or `sha512`.
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    /// The text with its algorithm: `sha256:…`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    fn compute(name: &str, algorithm: &'static digest::Algorithm, content: &[u8]) -> Self {
        use fmt::Write as _;
        let mut text = format!("{name}:");
        for byte in digest::digest(algorithm, content).as_ref() {
            let _ = write!(text, "{byte:02x}"); // writing to a String cannot fail
        }
        Self(text)
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        Self::parse(text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // FIPS 180-2, the message "abc".
    const SHA256_ABC: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
    const SHA512_ABC: &str = "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a2192992a274fc1a8\
                              36ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    #[test]
    fn texts() {
        let check = |text: &str, legal: bool| {
            let parsed = text.parse::<Digest>();
            assert_eq!(parsed.is_ok(), legal, "{text}");
            match parsed {
                Ok(digest) => assert_eq!((digest.as_str(), &*digest.to_string()), (text, text)),
                Err(error) => assert!(error.to_string().contains("is no digest") && error.to_string().len() < 200),
            }
        };
        check(SHA256_ABC, true);
        check(SHA512_ABC, true);
        check(&SHA256_ABC.to_uppercase(), false);
        check(&SHA256_ABC.replace("ba78", "BA78"), false);
        check(&format!("{SHA256_ABC}0"), false);
        check(&format!(" {SHA256_ABC}"), false);
        check(&SHA256_ABC[..70], false);
        check(&SHA256_ABC.replace("ba78", "ga78"), false);
        check(&SHA256_ABC.replace("sha256", "sha512"), false);
        check(&SHA256_ABC.replace("sha256", "sha384"), false);
        check(&SHA256_ABC.replace("sha256:", ""), false);
        check("sha256:", false);
        check("", false);
        check(&"x".repeat(100_000), false);
    }

    #[test]
    fn contents() {
        let check = |digest: &str, content: &[u8], expected: bool| {
            assert_eq!(Digest::parse(digest).unwrap().is_of(content), expected, "{digest}");
        };
        check(SHA256_ABC, b"abc", true);
        check(SHA256_ABC, b"abcd", false);
        check(SHA512_ABC, b"abc", true);
        check(SHA512_ABC, b"", false);
        assert_eq!(Digest::sha256_of(b"abc").as_str(), SHA256_ABC);
        assert_eq!(Digest::parse(SHA512_ABC).unwrap().algorithm(), "sha512");
    }
}
