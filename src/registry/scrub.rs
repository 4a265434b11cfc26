//! Keeps credentials out of what is shown. A registry knows the credentials that it was sent and may repeat them, in a
//! redirect, a realm or a warning; what it repeats must reach neither a log, an error nor another host.

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::HeaderValue;
use secrecy::{ExposeSecret, SecretString};
use url::Url;

/// Shorter secrets are not looked for in texts: they would be found in every one.
const MIN_IN_TEXT: usize = 4;
/// Shorter secrets are not looked for in addresses: there a chance match refuses a good one.
const MIN_IN_ADDRESS: usize = 12;

/// The secrets that were sent so far, in the spellings in which they went.
#[derive(Default)]
pub(super) struct Scrubber(Vec<SecretString>);

impl Scrubber {
    /// Remembers what an `Authorization` header holds: a token, or base64 of `user:password`.
    pub(super) fn learn_authorization(&mut self, header: &HeaderValue) {
        const LENIENT: GeneralPurpose = GeneralPurpose::new(
            &base64::alphabet::STANDARD,
            GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
        );
        let Some((scheme, value)) = header.to_str().ok().and_then(|text| text.split_once(' ')) else {
            return;
        };
        self.learn(value);
        if scheme == "Basic" {
            self.learn(value.trim_end_matches('='));
            let decoded = LENIENT.decode(value).ok().and_then(|bytes| String::from_utf8(bytes).ok());
            if let Some((_, password)) = decoded.as_deref().and_then(|text| text.split_once(':')) {
                self.learn(password);
            }
        }
    }

    /// Remembers a secret.
    pub(super) fn learn(&mut self, secret: &str) {
        let secret = secret.to_ascii_lowercase();
        if secret.len() >= MIN_IN_TEXT && !self.0.iter().any(|known| known.expose_secret() == secret) {
            self.0.push(secret.into());
            // The longest first: one secret may be a part of another.
            self.0.sort_by_key(|known| std::cmp::Reverse(known.expose_secret().len()));
        }
    }

    /// The text without the secrets, in whatever case (host names are lower-cased).
    pub(super) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for secret in &self.0 {
            let secret = secret.expose_secret();
            let mut from = 0;
            while let Some(at) = text[from..].to_ascii_lowercase().find(secret) {
                text.replace_range(from + at..from + at + secret.len(), "***");
                from += at + 3;
            }
        }
        text
    }

    /// Whether an address repeats one of the secrets, as it is or percent-encoded.
    pub(super) fn is_in(&self, url: &Url) -> bool {
        let spelt = url.as_str().to_ascii_lowercase();
        // A "+" is itself in a path and a blank in a query; base64 has it.
        let pairs = url::form_urlencoded::parse(spelt.replace('+', "%2b").as_bytes()).into_owned().collect::<Vec<_>>();
        let decoded: Vec<String> = pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let decoded = decoded.join("&").to_ascii_lowercase();
        let long = self.0.iter().map(ExposeSecret::expose_secret).filter(|secret| secret.len() >= MIN_IN_ADDRESS);
        long.into_iter().any(|secret| spelt.contains(secret) || decoded.contains(secret))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scrubber() -> Scrubber {
        let mut scrubber = Scrubber::default();
        scrubber.learn_authorization(&HeaderValue::from_static("Basic dXNlcjpIdW50ZXIyLUh1bnRlcjIrLz0="));
        scrubber.learn_authorization(&HeaderValue::from_static("Bearer abc.DEF"));
        scrubber.learn("no!");
        scrubber
    }

    #[test]
    fn texts() {
        let check = |text: &str, expected: &str| assert_eq!(scrubber().text(text), expected, "{text}");
        check("nothing", "nothing");
        check("x Hunter2-Hunter2+/= y", "x *** y");
        check("dXNlcjpIdW50ZXIyLUh1bnRlcjIrLz0=.evil.com", "***.evil.com");
        check("dxnlcjpidw50zxiyluh1bnrlcjirlz0.evil.com", "***.evil.com");
        check("abc.def abc.DEF", "*** ***");
        check("no! é Hunter2-hunter2+/=é", "no! é ***é");
    }

    #[test]
    fn addresses() {
        let check = |url: &str, expected: bool| {
            assert_eq!(scrubber().is_in(&Url::parse(url).unwrap()), expected, "{url}");
        };
        check("https://evil.com/", false);
        check("https://evil.com/?a=Hunter2-Hunter2+/=", true);
        check("https://evil.com/?a=Hunter2-Hunter2%2B%2F%3D", true);
        check("https://evil.com/hunter2-hunter2%2b%2f=", true);
        check("https://evil.com/%48unter2-Hunter2+/=", true);
        check("https://dXNlcjpIdW50ZXIyLUh1bnRlcjIrLz0.evil.com/", true);
        check("https://evil.com/abc.DEF", false); // short: by chance
    }

    proptest::proptest! {
        #[test]
        fn nothing_is_left(before in "\\PC{0,20}", after in "\\PC{0,20}") {
            let text = scrubber().text(&format!("{before}Hunter2-Hunter2+/={after}"));
            proptest::prop_assert!(!text.to_ascii_lowercase().contains("hunter2-hunter2+/="), "{text}");
        }
    }
}
