//! Why a tag lost, in words that a person can act on. Rendered only when asked: a list may have 100,000 losers.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use super::digits::digit_runs;
use super::pattern::Passed;
use super::version::{Grammar, Reading, Version, split_digits};

/// Why a tag is no candidate, in the order of the way of a tag (design section 3). `Display` gives the sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason<'a> {
    /// Not in the alphabet of the OCI distribution spec.
    IllegalTag,
    /// Written by a tool beside an image, not an image to run.
    Signature,
    /// By this exclude pattern.
    Excluded(&'a str),
    /// By this pattern.
    Unmatched(&'a str),
    /// The template gave nothing.
    EmptyExtract,
    /// By this value of a `regex` rule.
    RegexUnmatched(&'a str),
    /// No `x.y.z`.
    NoVersion(Seen<'a>),
    /// No `YYYY.MM.DD`.
    NoDate(Seen<'a>),
    /// No run of 10 or 13 digits.
    NoTimestamp(Seen<'a>),
    /// No whole number.
    NoInteger(Seen<'a>),
    /// `digest` chooses no other tag.
    TagStays,
    /// Of another variant than the current tag; `has` describes that one's.
    OtherVariant { own: Family<'a>, current: &'a str, has: Arc<str> },
    /// There is no current tag of its variant.
    VariantAtStart(Family<'a>),
    /// A short year beside a long one.
    OtherYears { current: &'a str },
    /// By the order of the rule, or of another rule of the same Image.
    Older { current: &'a str },
    /// In another spelling.
    Same { current: &'a str },
    /// Nothing asks for a prerelease.
    Prerelease,
    /// By `calver-prerelease`.
    OtherWord { current: &'a str },
    /// The range of a `semver` rule.
    OutsideRange(&'a str),
    /// Below or beyond what the rule allows from the current tag.
    OutsideStep(Arc<str>),
    /// Nothing is wrong with it: it is what it would be compared with.
    Current,
}

/// What a rule could not read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen<'a> {
    text: Cow<'a, str>,
    how: How,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Tag,
    Matched,
    Extract,
}

impl<'a> Seen<'a> {
    pub(super) fn new(tag: &'a str, passed: Passed<'a>) -> Self {
        match passed {
            Passed::Unfiltered => Self { text: Cow::Borrowed(tag), how: How::Tag },
            Passed::Matched(_) => Self { text: Cow::Borrowed(tag), how: How::Matched },
            Passed::Extracted(text) => Self { text, how: How::Extract },
        }
    }

    /// "not {what}", with what it was looked for in.
    fn is_not(&self, f: &mut fmt::Formatter<'_>, what: &str) -> fmt::Result {
        match self.how {
            How::Tag => write!(f, "not {what}"),
            How::Matched => write!(f, "matches the pattern, but is not {what}"),
            How::Extract => write!(f, "the extract {:?} is not {what}", self.text),
        }
    }
}

/// The family of builds that a tag belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Family<'a> {
    /// Empty for none.
    pub(super) name: Cow<'a, str>,
    /// Only a packaging revision, as in `1.2.3-r5`.
    pub(super) bare_revision: bool,
}

impl fmt::Display for Family<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&*self.name, self.bare_revision) {
            ("", false) => f.write_str("no variant"),
            ("", true) => f.write_str("variant \"r<number>\""),
            (name, _) => write!(f, "variant {name:?}"),
        }
    }
}

impl Reason<'_> {
    /// How far the tag came on its way: of the reasons of several rules the furthest says most.
    pub(super) fn progress(&self) -> u8 {
        match self {
            Self::IllegalTag => 0,
            Self::Signature => 1,
            Self::Excluded(_) => 2,
            Self::Unmatched(_) => 3,
            Self::EmptyExtract => 4,
            Self::RegexUnmatched(_) => 5,
            Self::NoVersion(_) | Self::NoDate(_) | Self::NoTimestamp(_) | Self::NoInteger(_) | Self::TagStays => 6,
            Self::OtherVariant { .. } | Self::VariantAtStart(_) | Self::OtherYears { .. } => 7,
            Self::Older { .. } | Self::Same { .. } => 8,
            Self::Prerelease => 9,
            Self::OtherWord { .. } | Self::OutsideRange(_) | Self::OutsideStep(_) => 10,
            Self::Current => 11,
        }
    }
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IllegalTag => {
                f.write_str("not a legal tag: 1 to 128 letters, digits, `_`, `.`, `-`, and no `.` or `-` first")
            }
            Self::Signature => f.write_str("a signature, attestation or referrers tag"),
            Self::Excluded(pattern) => write!(f, "excluded by {pattern:?}"),
            Self::Unmatched(pattern) => write!(f, "does not match the pattern {pattern:?}"),
            Self::EmptyExtract => f.write_str("the extract is empty"),
            Self::RegexUnmatched(pattern) => write!(f, "does not match the regex {pattern:?}"),
            Self::NoVersion(seen) => {
                seen.is_not(f, "a version x.y.z")?;
                write!(f, ": {}", why_no_version(&seen.text))
            }
            Self::NoDate(seen) => {
                seen.is_not(f, "a calendar version YYYY.MM.DD or YY.MM.DD")?;
                write!(f, ": {}", why_no_date(&seen.text))
            }
            Self::NoTimestamp(seen) => why_no_timestamp(f, seen),
            Self::NoInteger(seen) => seen.is_not(f, "an integer (of several numbers, name one with extract)"),
            Self::TagStays => f.write_str("another tag: digest keeps the tag and follows its digest"),
            Self::OtherVariant { own, current, has } => write!(f, "{own}, but current {current} has {has}"),
            Self::VariantAtStart(own) => {
                write!(f, "{own}: to start with one, set it as the base tag or name it in the pattern")
            }
            Self::OtherYears { current } => {
                write!(f, "years of two and of four digits are not compared (current is {current})")
            }
            Self::Older { current } => write!(f, "older than current {current}"),
            Self::Same { current } => write!(f, "the same version as current {current}"),
            Self::Prerelease => f.write_str(
                "a prerelease: only followed from a prerelease of the same version, or by a range such as >=1.0.0-0",
            ),
            Self::OtherWord { current } => {
                write!(f, "calver-prerelease keeps the date and the word of current {current}, and raises its number")
            }
            Self::OutsideRange(range) => write!(f, "outside the range {range:?}"),
            Self::OutsideStep(step) => write!(f, "outside {step}"),
            Self::Current => f.write_str("is the current tag"),
        }
    }
}

fn why_no_version(text: &str) -> Cow<'static, str> {
    let begins_with_digit = |text: &str| text.starts_with(|c: char| c.is_ascii_digit());
    if text.strip_prefix('V').is_some_and(begins_with_digit) {
        return "it begins with V, and only a lower-case v is read".into();
    }
    let mut rest = text.strip_prefix('v').unwrap_or(text);
    if !begins_with_digit(rest) {
        return match Version::find(text, Grammar::Semver, Reading::Candidate) {
            Some((at, _)) => format!("{:?} stands before it, which a pattern could name", &text[..at]).into(),
            None => "it does not begin with a number".into(),
        };
    }
    let mut parts = 0;
    while begins_with_digit(rest) {
        parts += 1;
        let after = split_digits(rest).1;
        match after.strip_prefix('.') {
            Some(next) if begins_with_digit(next) => rest = next,
            _ => rest = after,
        }
    }
    match (parts, rest) {
        (1, _) => "it has one part, not three".into(),
        (2, _) => "it has two parts, not three".into(),
        (3, "-") => "nothing follows the dash".into(),
        (3, rest) => format!("a dash is missing before {rest:?}").into(),
        _ => "it has more than three parts".into(),
    }
}

fn why_no_date(text: &str) -> Cow<'static, str> {
    let (year, rest) = split_digits(text.strip_prefix('v').unwrap_or(text));
    let date = rest.split('-').next().unwrap_or_default();
    match year.len() {
        0 => "it does not begin with a year".into(),
        2 | 4 if digit_runs(date).count() > 2 => "it has more than three parts".into(),
        2 | 4 if digit_runs(date).any(|run| run.len() > 2) => "month and day have at most two digits".into(),
        2 | 4 => "only a dash may follow the date".into(),
        1 => "its year has 1 digit, not 4 or 2".into(),
        digits => format!("its year has {digits} digits, not 4 or 2").into(),
    }
}

fn why_no_timestamp(f: &mut fmt::Formatter<'_>, seen: &Seen<'_>) -> fmt::Result {
    /// A shorter number is no date that was meant as a time.
    const SHORTEST_DATE: usize = 6;
    seen.is_not(f, "a unix time")?;
    match digit_runs(&seen.text).map(|run| run.len()).max() {
        Some(digits) if digits >= SHORTEST_DATE => {
            write!(f, ": its number has {digits} digits, not 10 or 13 digits; use numerical")
        }
        _ => f.write_str(": it has no number of 10 (seconds) or 13 (milliseconds) digits"),
    }
}
