//! From a tag to what a rule compares: the way of a tag up to "the rule parses it", and the order behind it.

use std::cmp::Ordering;

use super::digits::{has_leading_zero, natural_cmp};
use super::pattern::{Filter, Passed};
use super::reference::is_legal_tag;
use super::rule::Rule;
use super::version::{Reading, Version};

/// A tag that a rule can read.
#[derive(Clone, Debug)]
pub(super) struct Entry<'t> {
    pub(super) tag: &'t str,
    pub(super) key: Key,
    style: Style<'t>,
}

/// What a rule compares.
#[derive(Clone, Debug)]
pub(super) enum Key {
    Version(Version),
    /// Compared in natural order.
    Text(String),
}

/// How a tag is spelled, where the spelling does not change its place in the order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Style<'t> {
    /// What stands around the version that a pattern found.
    around: (&'t str, &'t str),
    v: bool,
    zeros: bool,
}

impl<'t> Entry<'t> {
    /// Reads a tag that may be chosen; the error is the reason why not.
    pub(super) fn candidate(rule: &Rule, filter: &Filter, tag: &'t str) -> Result<Self, String> {
        if !is_legal_tag(tag) {
            return Err("not a legal tag".to_owned());
        }
        if is_signature(tag) {
            return Err("a signature, attestation or referrers tag".to_owned());
        }
        if let Some(pattern) = filter.excluded_by(tag) {
            return Err(format!("excluded by {:?}", pattern.as_str()));
        }
        let Some(passed) = filter.pass(tag) else {
            let pattern = filter.pattern().map_or("", |pattern| pattern.as_str());
            return Err(format!("does not match the pattern {pattern:?}"));
        };
        match rule {
            Rule::SemverMajor | Rule::SemverMinor | Rule::SemverPatch | Rule::Semver(_) => {
                Self::version(tag, &passed, &[Reading::Candidate]).ok_or_else(|| not_a_version(&passed))
            }
            Rule::Regex(_) | Rule::Always => Self::text(rule, tag, passed),
        }
    }

    /// Reads the tag in use. `None`: it gives the rule nothing to start from, so any matching tag may replace it.
    pub(super) fn current(rule: &Rule, filter: &Filter, tag: &'t str) -> Option<Self> {
        if tag == "latest" || !is_legal_tag(tag) || is_signature(tag) {
            return None;
        }
        let passed = filter.pass(tag);
        match rule {
            Rule::SemverMajor | Rule::SemverMinor | Rule::SemverPatch | Rule::Semver(_) => {
                // A version that the pattern does not match is still never gone behind.
                let passed = passed.unwrap_or(Passed::Unfiltered);
                Self::version(tag, &passed, &[Reading::Candidate, Reading::Current])
            }
            Rule::Regex(_) | Rule::Always => Self::text(rule, tag, passed?).ok(),
        }
    }

    /// The first reading that finds a version: in the extract, else as the whole tag, else, with a pattern, inside the
    /// match and then inside the tag.
    fn version(tag: &'t str, passed: &Passed, readings: &[Reading]) -> Option<Self> {
        readings.iter().find_map(|&reading| match passed {
            Passed::Extracted(text) => {
                Version::parse(text, reading).map(|version| Self::versioned(tag, version, text, ("", "")))
            }
            Passed::Unfiltered => {
                Version::parse(tag, reading).map(|version| Self::versioned(tag, version, tag, ("", "")))
            }
            Passed::Matched(range) => {
                if let Some(version) = Version::parse(tag, reading) {
                    return Some(Self::versioned(tag, version, tag, ("", "")));
                }
                // A pattern may name the prefix only (`^dev-`): then the version is behind it.
                [range.clone(), 0..tag.len()].into_iter().find_map(|part| {
                    let (at, version) = Version::find(tag.get(part.clone())?, reading)?;
                    let (begin, end) = (part.start + at, part.end);
                    let around = (&tag[..begin], &tag[end..]);
                    Some(Self::versioned(tag, version, &tag[begin..end], around))
                })
            }
        })
    }

    fn versioned(tag: &'t str, version: Version, text: &str, around: (&'t str, &'t str)) -> Self {
        let style = Style { around, v: text.starts_with(['v', 'V']), zeros: has_leading_zero(text) };
        Self { tag, key: Key::Version(version), style }
    }

    fn text(rule: &Rule, tag: &'t str, passed: Passed) -> Result<Self, String> {
        let text = match passed {
            Passed::Extracted(text) if text.is_empty() => {
                return Err("the extract is empty".to_owned());
            }
            Passed::Extracted(text) => text,
            Passed::Unfiltered | Passed::Matched(_) => tag.to_owned(),
        };
        if let Rule::Regex(pattern) = rule
            && !pattern.is_match(&text)
        {
            return Err(format!("does not match the regex {:?}", pattern.as_str()));
        }
        let style = Style { around: ("", ""), v: text.starts_with('v'), zeros: has_leading_zero(&text) };
        Ok(Self { tag, key: Key::Text(text), style })
    }

    /// Whether the tag is a version without prerelease and variant.
    pub(super) fn is_plain_version(&self) -> bool {
        matches!(&self.key, Key::Version(version) if version.is_plain())
    }

    /// Ascending order of tags that may be chosen from `current`: best last. Total: no two different tags are equal.
    pub(super) fn rank(&self, other: &Self, current: Option<&Self>) -> Ordering {
        self.rank_keys(other, current)
            .then_with(|| current.map_or(Ordering::Equal, |current| self.rank_styles(other, &current.style)))
            .then_with(|| self.tag.len().cmp(&other.tag.len()))
            .then_with(|| self.tag.cmp(other.tag))
    }

    fn rank_keys(&self, other: &Self, current: Option<&Self>) -> Ordering {
        match (&self.key, &other.key) {
            (Key::Version(a), Key::Version(b)) => {
                let kept = |version: &Version| {
                    matches!(current, Some(Self { key: Key::Version(current), .. })
                        if current.variant.is_same_family(&version.variant))
                };
                // Revisions count within a variant only, so the variants are ranked before them.
                let families = || {
                    let ((a, a_bare), (b, b_bare)) = (a.variant.family(), b.variant.family());
                    (a.len(), a, a_bare).cmp(&(b.len(), b, b_bare))
                };
                a.cmp_precedence(b)
                    .then_with(|| kept(a).cmp(&kept(b)))
                    .then_with(families)
                    .then_with(|| a.variant.revision.cmp(&b.variant.revision))
            }
            (Key::Text(a), Key::Text(b)) => natural_cmp(a, b),
            // One rule reads all tags the same way.
            (Key::Version(_), Key::Text(_)) => Ordering::Greater,
            (Key::Text(_), Key::Version(_)) => Ordering::Less,
        }
    }

    fn rank_styles(&self, other: &Self, current: &Style<'_>) -> Ordering {
        let alike =
            |style: &Style<'_>| (style.v == current.v, style.zeros == current.zeros, style.around == current.around);
        alike(&self.style).cmp(&alike(&other.style))
    }
}

/// The rule's order between two tags, as they are in use: neither bounds nor `exclude` play a part. `None` if one of
/// them is `latest`, illegal or not read by the rule, or if they are of different variants. Two variants are compared
/// only if the filter's pattern matches one of them, as such a pattern may name suffixed tags.
pub fn compare(rule: &Rule, filter: &Filter, a: &str, b: &str) -> Option<Ordering> {
    let a = Entry::current(rule, filter, a)?;
    let b = Entry::current(rule, filter, b)?;
    match (&a.key, &b.key) {
        (Key::Text(a), Key::Text(b)) => Some(natural_cmp(a, b)),
        (Key::Version(left), Key::Version(right)) => {
            if left.variant.is_same_family(&right.variant) {
                return left.cmp_versions(right);
            }
            let named = |entry: &Entry<'_>| !entry.is_plain_version() && filter.pattern_matches(entry.tag);
            (named(&a) || named(&b)).then(|| left.cmp_precedence(right))
        }
        _ => None,
    }
}

/// `sha256-<64 hex>` with or without `.sig`, `.att`, `.sbom`: what cosign and the OCI referrers tag schema write.
fn is_signature(tag: &str) -> bool {
    tag.strip_prefix("sha256-").and_then(|rest| rest.split_at_checked(64)).is_some_and(|(digest, suffix)| {
        digest.bytes().all(|byte| byte.is_ascii_hexdigit()) && matches!(suffix, "" | ".sig" | ".att" | ".sbom")
    })
}

fn not_a_version(passed: &Passed) -> String {
    match passed {
        Passed::Unfiltered => "not a version x.y.z".to_owned(),
        Passed::Matched(_) => "the pattern matches, but there is no version x.y.z".to_owned(),
        Passed::Extracted(text) => format!("the extract {text:?} is not a version x.y.z"),
    }
}
