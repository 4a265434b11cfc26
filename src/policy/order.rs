//! From a tag to what a rule compares: the way of a tag up to "the rule parses it", and the order behind it.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::ops::Range;

use super::digits::{Number, digit_runs, has_leading_zero, natural_cmp};
use super::pattern::{Filter, Passed};
use super::reason::{Family, Reason, Seen};
use super::reference::is_legal_tag;
use super::rule::{Direction, Rule};
use super::version::{Grammar, Reading, Version, Versioned};

/// A tag that a rule can read.
#[derive(Clone, Debug)]
pub(super) struct Entry<'a> {
    pub(super) tag: &'a str,
    text: Text<'a>,
    key: Key,
}

/// What the rule read.
#[derive(Clone, Debug)]
enum Text<'a> {
    /// The whole tag.
    Whole,
    /// A part of it, in bytes.
    Part(Range<usize>),
    Extract(Cow<'a, str>),
}

/// What a rule compares.
#[derive(Clone, Debug)]
enum Key {
    Version(Version),
    Number(Number),
    /// The text, in natural order.
    Natural,
    /// The text, by bytes.
    Bytes(Direction),
}

impl<'a> Entry<'a> {
    /// Reads a tag that may be chosen; the error is the reason why not.
    pub(super) fn candidate(rule: &'a Rule, filter: &'a Filter, tag: &'a str) -> Result<Self, Reason<'a>> {
        if !is_legal_tag(tag) {
            return Err(Reason::IllegalTag);
        }
        if is_signature(tag) {
            return Err(Reason::Signature);
        }
        if let Some(pattern) = filter.excluded_by(tag) {
            return Err(Reason::Excluded(pattern.as_str()));
        }
        match filter.pass(tag) {
            Some(passed) => Self::read(rule, tag, passed, &[Reading::Candidate]),
            None => Err(Reason::Unmatched(filter.pattern().map_or("", |pattern| pattern.as_str()))),
        }
    }

    /// Reads the tag in use. `None`: it gives the rule nothing to start from, so any matching tag may replace it.
    pub(super) fn current(rule: &'a Rule, filter: &'a Filter, tag: &'a str) -> Option<Self> {
        if !is_legal_tag(tag) {
            return None;
        }
        if matches!(rule, Rule::Digest) {
            // Whatever it is called, it stays.
            return Some(Self { tag, text: Text::Whole, key: Key::Natural });
        }
        if tag == "latest" || is_signature(tag) {
            return None;
        }
        let passed = match (filter.pass(tag), rule) {
            (None, Rule::Regex(_) | Rule::Always | Rule::Alphabetical(_)) => return None,
            // What the rule can read is never gone behind, also when the pattern does not match it.
            (passed, _) => passed.unwrap_or(Passed::Unfiltered),
        };
        Self::read(rule, tag, passed, &[Reading::Candidate, Reading::Current]).ok()
    }

    fn read(rule: &'a Rule, tag: &'a str, passed: Passed<'a>, readings: &[Reading]) -> Result<Self, Reason<'a>> {
        if matches!(&passed, Passed::Extracted(text) if text.is_empty()) {
            return Err(Reason::EmptyExtract);
        }
        if let Some(grammar) = rule.grammar() {
            return Self::version(tag, passed, grammar, readings);
        }
        match rule {
            Rule::Timestamp => Self::timestamp(tag, passed),
            Rule::Numerical => Self::integer(tag, passed),
            Rule::Alphabetical(direction) => Ok(Self::text(tag, passed, Key::Bytes(*direction))),
            Rule::Regex(pattern) => {
                let entry = Self::text(tag, passed, Key::Natural);
                if pattern.is_match(entry.as_str()) { Ok(entry) } else { Err(Reason::RegexUnmatched(pattern.as_str())) }
            }
            _ => Ok(Self::text(tag, passed, Key::Natural)),
        }
    }

    /// The first reading that finds a version: in the extract, else as the whole tag, else, with a pattern, inside the
    /// match and then inside the tag: a pattern may name the prefix only (`^dev-`), and the version is behind it.
    fn version(tag: &'a str, passed: Passed<'a>, grammar: Grammar, readings: &[Reading]) -> Result<Self, Reason<'a>> {
        let whole = if let Passed::Extracted(text) = &passed { text } else { tag };
        for &reading in readings {
            if let Some(version) = Version::parse(whole, grammar, reading) {
                return Ok(Self::text(tag, passed, Key::Version(version)));
            }
            let Passed::Matched(range) = &passed else { continue };
            for part in [range.clone(), 0..tag.len()] {
                let found = tag.get(part.clone()).and_then(|text| Version::find(text, grammar, reading));
                if let Some((at, version)) = found {
                    let text = Text::Part(part.start + at..part.end);
                    return Ok(Self { tag, text, key: Key::Version(version) });
                }
            }
        }
        Err(match grammar {
            Grammar::Semver => Reason::NoVersion(Seen::new(tag, passed)),
            Grammar::Calver { .. } => Reason::NoDate(Seen::new(tag, passed)),
        })
    }

    fn timestamp(tag: &'a str, passed: Passed<'a>) -> Result<Self, Reason<'a>> {
        let text = if let Passed::Extracted(text) = &passed { text } else { tag };
        let run = digit_runs(text).find(|run| matches!(run.len(), 10 | 13)).map(|run| &text[run]);
        let read = run.and_then(|digits| digits.parse::<u64>().ok().map(|time| (digits.len(), time)));
        match read {
            Some((length, time)) => {
                let milliseconds = if length == 10 { time * 1_000 } else { time };
                Ok(Self::text(tag, passed, Key::Number(Number::Small(milliseconds))))
            }
            None => Err(Reason::NoTimestamp(Seen::new(tag, passed))),
        }
    }

    /// The extract or the whole tag, else, with a pattern, the first integer inside the match and then inside the tag.
    fn integer(tag: &'a str, passed: Passed<'a>) -> Result<Self, Reason<'a>> {
        let whole = if let Passed::Extracted(text) = &passed { text } else { tag };
        if let Some(number) = Number::parse(whole) {
            return Ok(Self::text(tag, passed, Key::Number(number)));
        }
        if let Passed::Matched(range) = &passed {
            let found = [range.clone(), 0..tag.len()].into_iter().find_map(|part| {
                let runs = digit_runs(tag.get(part.clone())?);
                let mut runs = runs.map(|run| part.start + run.start..part.start + run.end);
                runs.find(|run| stands_alone(tag, run))
            });
            if let Some((run, number)) = found.and_then(|run| Some((run.clone(), Number::parse(tag.get(run)?)?))) {
                return Ok(Self { tag, text: Text::Part(run), key: Key::Number(number) });
            }
        }
        Err(Reason::NoInteger(Seen::new(tag, passed)))
    }

    fn text(tag: &'a str, passed: Passed<'a>, key: Key) -> Self {
        let text = if let Passed::Extracted(text) = passed { Text::Extract(text) } else { Text::Whole };
        Self { tag, text, key }
    }

    /// What the rule read.
    pub(super) fn as_str(&self) -> &str {
        match &self.text {
            Text::Whole => self.tag,
            Text::Part(range) => self.tag.get(range.clone()).unwrap_or_default(),
            Text::Extract(text) => text,
        }
    }

    pub(super) fn version_read(&self) -> Option<Versioned<'_>> {
        match &self.key {
            Key::Version(version) => Some(Versioned { version, text: self.as_str() }),
            _ => None,
        }
    }

    /// The family of builds it belongs to; none for what is no version.
    pub(super) fn family(&self) -> Family<'a> {
        let Key::Version(version) = &self.key else {
            return Family { name: Cow::Borrowed(""), bare_revision: false };
        };
        let name = match &self.text {
            Text::Whole => Cow::Borrowed(version.variant_in(self.tag)),
            Text::Part(range) => Cow::Borrowed(version.variant_in(self.tag.get(range.clone()).unwrap_or_default())),
            Text::Extract(Cow::Borrowed(text)) => Cow::Borrowed(version.variant_in(text)),
            Text::Extract(Cow::Owned(text)) => Cow::Owned(version.variant_in(text).to_owned()),
        };
        Family { bare_revision: name.is_empty() && version.revision.is_some(), name }
    }

    /// Whether the tag is a version without prerelease and variant.
    pub(super) fn is_plain_version(&self) -> bool {
        matches!(&self.key, Key::Version(version) if version.is_plain())
    }

    /// The order of two tags that one rule reads. `None` for versions that are not compared.
    pub(super) fn cmp_keys(&self, other: &Entry<'_>) -> Option<Ordering> {
        match (&self.key, &other.key) {
            (Key::Number(a), Key::Number(b)) => Some(a.cmp(b)),
            (Key::Natural, Key::Natural) => Some(natural_cmp(self.as_str(), other.as_str())),
            (Key::Bytes(Direction::Ascending), Key::Bytes(_)) => Some(self.as_str().cmp(other.as_str())),
            (Key::Bytes(Direction::Descending), Key::Bytes(_)) => Some(other.as_str().cmp(self.as_str())),
            _ => self.version_read()?.cmp_versions(other.version_read()?),
        }
    }

    /// Ascending order of tags that may be chosen from `current`: best last. Total: no two different tags are equal.
    pub(super) fn rank(&self, other: &Self, current: Option<&Self>) -> Ordering {
        self.rank_keys(other, current)
            .then_with(|| current.map_or(Ordering::Equal, |current| self.rank_styles(other, &current.style())))
            .then_with(|| self.tag.len().cmp(&other.tag.len()))
            .then_with(|| self.tag.cmp(other.tag))
    }

    fn rank_keys(&self, other: &Self, current: Option<&Self>) -> Ordering {
        let (Some(a), Some(b)) = (self.version_read(), other.version_read()) else {
            // One rule reads all tags the same way.
            return self.cmp_keys(other).unwrap_or(Ordering::Equal);
        };
        let current = current.and_then(Self::version_read);
        let kept = |version: Versioned<'_>| current.is_some_and(|current| current.is_same_family(version));
        // Revisions count within a variant only, so the variants are ranked before them.
        let families = || {
            let ((a, a_bare), (b, b_bare)) = (a.family(), b.family());
            (a.len(), a, a_bare).cmp(&(b.len(), b, b_bare))
        };
        a.cmp_precedence(b)
            .then_with(|| kept(a).cmp(&kept(b)))
            .then_with(families)
            .then_with(|| a.version.revision.cmp(&b.version.revision))
    }

    fn rank_styles(&self, other: &Self, current: &Style<'_>) -> Ordering {
        let alike =
            |style: &Style<'_>| (style.v == current.v, style.zeros == current.zeros, style.around == current.around);
        alike(&self.style()).cmp(&alike(&other.style()))
    }

    fn style(&self) -> Style<'_> {
        let text = self.as_str();
        let around = match &self.text {
            Text::Part(range) => (&self.tag[..range.start], &self.tag[range.end..]),
            Text::Whole | Text::Extract(_) => ("", ""),
        };
        Style { around, v: text.starts_with(['v', 'V']), zeros: has_leading_zero(text) }
    }
}

/// How a tag is spelled, where the spelling does not change its place in the order.
struct Style<'a> {
    /// What stands around the part that a pattern found.
    around: (&'a str, &'a str),
    v: bool,
    zeros: bool,
}

/// Whether a run of digits is a whole number of the tag: no part of `1.5`, nor the beginning of `3rd`.
fn stands_alone(tag: &str, run: &Range<usize>) -> bool {
    let bytes = tag.as_bytes();
    let at = |at: Option<usize>| at.and_then(|at| bytes.get(at)).copied().unwrap_or(b'-');
    let (before, after) = (at(run.start.checked_sub(1)), at(Some(run.end)));
    let fraction = after == b'.' && at(Some(run.end + 1)).is_ascii_digit();
    let whole = before == b'.' && at(run.start.checked_sub(2)).is_ascii_digit();
    !(fraction || whole || after.is_ascii_alphanumeric() || before.is_ascii_digit())
}

/// The rule's order between two tags, as they are in use: neither bounds nor `exclude` play a part. `None` if one of
/// them is `latest`, illegal or not read by the rule, or if they are of different variants or of short and long years.
/// Two variants are compared only if the filter's pattern matches one of them, as such a pattern may name suffixed tags.
/// Under `digest` a tag is compared with itself only: it is never replaced by another.
pub fn compare(rule: &Rule, filter: &Filter, a: &str, b: &str) -> Option<Ordering> {
    let a = Entry::current(rule, filter, a)?;
    let b = Entry::current(rule, filter, b)?;
    compare_entries(rule, filter, &a, &b)
}

pub(super) fn compare_entries(rule: &Rule, filter: &Filter, a: &Entry<'_>, b: &Entry<'_>) -> Option<Ordering> {
    if matches!(rule, Rule::Digest) {
        return (a.tag == b.tag).then_some(Ordering::Equal);
    }
    let (Some(left), Some(right)) = (a.version_read(), b.version_read()) else {
        return a.cmp_keys(b);
    };
    if left.is_same_family(right) || left.version.scheme != right.version.scheme {
        return left.cmp_versions(right);
    }
    let named = |entry: &Entry<'_>| !entry.is_plain_version() && filter.pattern_matches(entry.tag);
    (named(a) || named(b)).then(|| left.cmp_precedence(right))
}

/// `sha256-<64 hex>` with or without `.sig`, `.att`, `.sbom`: what cosign and the OCI referrers tag schema write.
fn is_signature(tag: &str) -> bool {
    tag.strip_prefix("sha256-").and_then(|rest| rest.split_at_checked(64)).is_some_and(|(digest, suffix)| {
        digest.bytes().all(|byte| byte.is_ascii_hexdigit()) && matches!(suffix, "" | ".sig" | ".att" | ".sbom")
    })
}
