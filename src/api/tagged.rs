//! A tag, with the digest that it is pinned to: what a container runs of its repository.

use std::collections::BTreeSet;
use std::fmt;

use crate::policy::{Digest, Reference, is_legal_tag};

/// Hexadecimal digits of a digest that tell it apart for a person.
const SHORT: usize = 12;

/// `1.4.2`, or `1.4.2@sha256:…`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tagged {
    /// The tag; empty for a reference without one.
    pub tag: String,
    /// The digest with its algorithm; none if the tag is run as the registry has it.
    pub digest: Option<String>,
}

impl Tagged {
    /// A tag with a digest or without.
    pub fn new(tag: &str, digest: Option<&str>) -> Self {
        Self { tag: tag.to_owned(), digest: digest.map(str::to_owned) }
    }

    /// Reads what `Display` writes. None if the tag is not legal, or the digest none that can be verified.
    pub fn parse(text: &str) -> Option<Self> {
        let (tag, digest) = match text.split_once('@') {
            Some((tag, digest)) => (tag, Some(Digest::parse(digest).ok()?.as_str().to_owned())),
            None => (text, None),
        };
        is_legal_tag(tag).then(|| Self { tag: tag.to_owned(), digest })
    }

    /// Tag and digest of a reference.
    pub fn of(reference: &Reference) -> Self {
        Self::new(reference.tag().unwrap_or_default(), reference.digest())
    }

    /// The image of the repository of `reference`, in its spelling.
    pub fn image(&self, reference: &Reference) -> String {
        let tagged = reference.with_tag(&self.tag);
        match &self.digest {
            Some(digest) => format!("{tagged}@{digest}"),
            None => tagged,
        }
    }

    /// Whether it is what `wanted` says: that tag and, where one is named, that digest.
    pub fn is(&self, wanted: &Self) -> bool {
        self.tag == wanted.tag && (wanted.digest.is_none() || self.digest == wanted.digest)
    }

    /// Whether it is one of these: `1.4.2` means every digest, `1.4.2@sha256:…` that one.
    pub fn is_in(&self, tags: &BTreeSet<String>) -> bool {
        !tags.is_empty() && (tags.contains(&self.tag) || tags.contains(&self.to_string()))
    }

    /// As a person tells the two apart: by tag, and by the first digits of the digest where only that differs.
    pub fn difference(&self, other: &Self) -> (String, String) {
        if self.tag == other.tag && self != other {
            return (self.short(), other.short());
        }
        (self.tag.clone(), other.tag.clone())
    }

    fn short(&self) -> String {
        let Some((algorithm, hex)) = self.digest.as_deref().and_then(|digest| digest.split_once(':')) else {
            return self.tag.clone();
        };
        format!("{}@{algorithm}:{}", self.tag, &hex[..hex.floor_char_boundary(SHORT)])
    }
}

impl fmt::Display for Tagged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.tag)?;
        self.digest.iter().try_for_each(|digest| write!(f, "@{digest}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(digit: char) -> String {
        format!("sha256:{}", digit.to_string().repeat(64))
    }

    #[test]
    fn texts_read_back() {
        fn check(text: &str, expected: Option<(&str, Option<&str>)>) {
            let parsed = Tagged::parse(text);
            assert_eq!(parsed.as_ref().map(|t| (t.tag.as_str(), t.digest.as_deref())), expected, "{text}");
            assert!(parsed.is_none_or(|parsed| parsed.to_string() == text));
        }
        let a = digest('a');
        check("1.4.2", Some(("1.4.2", None)));
        check(&format!("latest@{a}"), Some(("latest", Some(&a))));
        check("", None);
        check("a b", None);
        check("1.4.2@", None);
        check("1.4.2@sha256:abc", None);
        check(&format!("@{a}"), None);
    }

    #[test]
    fn images_keep_the_spelling() {
        fn check(text: &str, tagged: &Tagged, expected: &str) {
            assert_eq!(tagged.image(&Reference::parse(text).unwrap()), expected);
        }
        let a = digest('a');
        check("app:1", &Tagged::new("2", None), "app:2");
        check("app", &Tagged::new("2", Some(&a)), &format!("app:2@{a}"));
        check("ghcr.io/org/app:1", &Tagged::new("1", Some(&a)), &format!("ghcr.io/org/app:1@{a}"));
    }

    #[test]
    fn a_person_sees_what_differs() {
        fn check(a: &Tagged, b: &Tagged, expected: (&str, &str)) {
            let (left, right) = a.difference(b);
            assert_eq!((left.as_str(), right.as_str()), expected);
        }
        let (a, b) = (digest('a'), digest('b'));
        check(&Tagged::new("1", Some(&a)), &Tagged::new("2", Some(&b)), ("1", "2"));
        check(&Tagged::new("1", Some(&a)), &Tagged::new("1", Some(&a)), ("1", "1"));
        check(
            &Tagged::new("1", Some(&a)),
            &Tagged::new("1", Some(&b)),
            ("1@sha256:aaaaaaaaaaaa", "1@sha256:bbbbbbbbbbbb"),
        );
        check(&Tagged::new("1", None), &Tagged::new("1", Some(&b)), ("1", "1@sha256:bbbbbbbbbbbb"));
    }
}
