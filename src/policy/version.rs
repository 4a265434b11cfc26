//! Versions in tags: `x.y.z` or a date, then a prerelease, a variant or both (design section 3, Parsing and Suffix).

use std::cmp::Ordering;

use super::digits::Number;

/// Words that make a suffix a prerelease, in any case.
const PRERELEASE_WORDS: [&str; 14] =
    ["alpha", "beta", "a", "b", "rc", "pre", "preview", "dev", "snapshot", "nightly", "canary", "next", "m", "ea"];

/// Major, minor and patch; of a date, year, month and day.
pub(super) type Core = [Number; 3];

/// A version with the suffix of a tag. Holds places in the text it was read from, not copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) core: Core,
    pub(super) scheme: Scheme,
    prerelease: Option<Span>,
    /// Without the revision; empty for none.
    variant: Span,
    /// No revision is below `r0`.
    pub(super) revision: Option<Number>,
}

/// Versions of different schemes are not compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    Semver,
    /// A year of two digits.
    ShortYear,
    /// A year of four digits.
    LongYear,
}

/// A place in a text, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(usize, usize);

impl Span {
    fn of(self, text: &str) -> &str {
        text.get(self.0..self.1).unwrap_or_default()
    }
}

/// What counts as a version.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Grammar {
    /// `x.y.z[-suffix]`, as strictly as the reading says.
    Semver,
    /// `YYYY|YY[.MM[.DD]][-suffix]`.
    Calver {
        /// Any word makes a prerelease, so there are no variants but behind a known word.
        any_word: bool,
    },
}

/// How strictly a text is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reading {
    /// A tag to choose: exactly three numbers, then nothing or `-suffix`; at most a lower-case `v` before.
    Candidate,
    /// The tag in use: one number is enough (`1.25` is 1.25.0), `V` and `1.2rc1` are understood.
    Current,
}

impl Version {
    /// Reads the whole text.
    pub(super) fn parse(text: &str, grammar: Grammar, reading: Reading) -> Option<Self> {
        match grammar {
            Grammar::Semver => Self::parse_semver(text, reading == Reading::Current),
            Grammar::Calver { any_word } => Self::parse_calver(text, any_word),
        }
    }

    fn parse_semver(text: &str, lenient: bool) -> Option<Self> {
        let mut rest = text.strip_prefix('v').or_else(|| text.strip_prefix('V').filter(|_| lenient)).unwrap_or(text);
        let mut core = [Number::ZERO; 3];
        let mut written = 0;
        for part in &mut core {
            let (digits, after) = split_digits(rest);
            *part = Number::parse(digits)?;
            rest = after;
            written += 1;
            match rest.strip_prefix('.') {
                Some(next) if written < 3 && next.starts_with(|c: char| c.is_ascii_digit()) => rest = next,
                _ => break,
            }
        }
        if written < 3 && !lenient {
            return None;
        }
        let glued = lenient && written > 1 && is_glued_prerelease(rest);
        let suffix = if glued { rest } else { suffix_of(rest)? };
        Some(Self::with_suffix(core, Scheme::Semver, text, suffix, false))
    }

    fn parse_calver(text: &str, any_word: bool) -> Option<Self> {
        let (year, mut rest) = split_digits(text.strip_prefix('v').unwrap_or(text));
        let scheme = match year.len() {
            2 => Scheme::ShortYear,
            4 => Scheme::LongYear,
            _ => return None,
        };
        let mut core = [Number::parse(year)?, Number::ZERO, Number::ZERO];
        for part in &mut core[1..] {
            let Some(next) = rest.strip_prefix('.') else { break };
            let (digits, after) = split_digits(next);
            *part = Number::parse(digits).filter(|_| digits.len() <= 2)?;
            rest = after;
        }
        let suffix = suffix_of(rest)?;
        Some(Self::with_suffix(core, scheme, text, suffix, any_word))
    }

    /// `suffix` is the end of `text`, without its dash; empty for none.
    fn with_suffix(core: Core, scheme: Scheme, text: &str, suffix: &str, any_word: bool) -> Self {
        if suffix.is_empty() {
            return Self { core, scheme, prerelease: None, variant: Span(0, 0), revision: None };
        }
        let (prerelease, variant) = match split_suffix(suffix) {
            (0, _) if any_word => (suffix.len(), suffix.len()),
            ends => ends,
        };
        let at = text.len() - suffix.len();
        let (name, revision) = split_revision(&suffix[variant..]);
        Self {
            core,
            scheme,
            prerelease: (prerelease > 0).then_some(Span(at, at + prerelease)),
            variant: Span(at + variant, at + variant + name.len()),
            revision,
        }
    }

    /// The first version inside the text, and where it begins. A number that continues one before it (the `2` of
    /// `1.2` in `1.2.3.4`) begins none.
    pub(super) fn find(text: &str, grammar: Grammar, reading: Reading) -> Option<(usize, Self)> {
        let bytes = text.as_bytes();
        let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
        (0..bytes.len())
            .filter(|&at| digit(at))
            .filter(|&at| at == 0 || !(digit(at - 1) || (bytes[at - 1] == b'.' && at > 1 && digit(at - 2))))
            // A bare number inside a tag is the end of something else, as in `1.2.3.4-rc.1`.
            .filter(|&at| {
                reading == Reading::Candidate || {
                    let after = text[at..].trim_start_matches(|c: char| c.is_ascii_digit());
                    after.strip_prefix('.').is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
                }
            })
            .map(|at| if begins_with_v(bytes, at) { at - 1 } else { at })
            .find_map(|at| Self::parse(&text[at..], grammar, reading).map(|version| (at, version)))
    }

    /// Whether there is no suffix.
    pub(super) fn is_plain(&self) -> bool {
        self.prerelease.is_none() && self.has_no_variant()
    }

    pub(super) fn has_no_variant(&self) -> bool {
        self.variant.0 == self.variant.1 && self.revision.is_none()
    }

    /// Name of the variant, of a version that was read from `text`.
    pub(super) fn variant_in<'t>(&self, text: &'t str) -> &'t str {
        self.variant.of(text)
    }

    pub(super) fn is_prerelease(&self) -> bool {
        self.prerelease.is_some()
    }
}

/// A version with the text it was read from.
#[derive(Clone, Copy, Debug)]
pub(super) struct Versioned<'a> {
    pub(super) version: &'a Version,
    pub(super) text: &'a str,
}

impl<'a> Versioned<'a> {
    pub(super) fn prerelease(self) -> Option<&'a str> {
        self.version.prerelease.map(|span| span.of(self.text))
    }

    /// Word and number of the prerelease: `rc` and 2 of `rc.2`.
    pub(super) fn word_and_number(self) -> Option<(&'a str, Option<Number>)> {
        let text = self.prerelease()?;
        let word = text.trim_end_matches(|c: char| c.is_ascii_digit());
        Some((word.trim_end_matches(is_separator), Number::parse(&text[word.len()..])))
    }

    /// What a build is made for: the name of its variant, and whether it is the family of bare revisions (`-r5`).
    pub(super) fn family(self) -> (&'a str, bool) {
        let name = self.version.variant_in(self.text);
        (name, name.is_empty() && self.version.revision.is_some())
    }

    /// Whether both are builds of the same kind: only such are compared. A bare `-r5` is not the plain version.
    pub(super) fn is_same_family(self, other: Versioned<'_>) -> bool {
        self.family() == other.family()
    }

    /// Order by version number, then prerelease (below its release). Variants are not looked at.
    pub(super) fn cmp_precedence(self, other: Versioned<'_>) -> Ordering {
        cmp_precedence((&self.version.core, self.prerelease()), (&other.version.core, other.prerelease()))
    }

    /// Order within a variant: precedence, then revision. `None` for two schemes, and for two variants of the same
    /// precedence.
    pub(super) fn cmp_versions(self, other: Versioned<'_>) -> Option<Ordering> {
        if self.version.scheme != other.version.scheme {
            return None;
        }
        match self.cmp_precedence(other) {
            Ordering::Equal if self.is_same_family(other) => Some(self.version.revision.cmp(&other.version.revision)),
            Ordering::Equal => None,
            unequal => Some(unequal),
        }
    }
}

/// Semantic Versioning 2.0.0, section 11: a prerelease is below its release.
pub(super) fn cmp_precedence(a: (&Core, Option<&str>), b: (&Core, Option<&str>)) -> Ordering {
    a.0.cmp(b.0).then_with(|| match (a.1, b.1) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => cmp_prereleases(a, b),
    })
}

/// A piece of a prerelease. Numbers are below words.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Part<'a> {
    Number(Number),
    Word(&'a str),
}

impl Part<'_> {
    fn cmp(&self, other: &Part<'_>) -> Ordering {
        match (self, other) {
            (Self::Number(a), Part::Number(b)) => a.cmp(b),
            (Self::Word(a), Part::Word(b)) => {
                a.bytes().map(|b| b.to_ascii_lowercase()).cmp(b.bytes().map(|b| b.to_ascii_lowercase()))
            }
            (Self::Number(_), Part::Word(_)) => Ordering::Less,
            (Self::Word(_), Part::Number(_)) => Ordering::Greater,
        }
    }
}

/// Orders by words and numbers. Numbers compare as numbers and are below words, the shorter of two is below the longer,
/// case and separators do not matter: `rc2` is `RC.2` and below `rc.10`.
pub(super) fn cmp_prereleases(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (parts(a), parts(b));
    loop {
        match (a.next(), b.next()) {
            (None, None) => return Ordering::Equal,
            (None, Some(_)) => return Ordering::Less,
            (Some(_), None) => return Ordering::Greater,
            (Some(a), Some(b)) => match a.cmp(&b) {
                Ordering::Equal => {}
                unequal => return unequal,
            },
        }
    }
}

fn parts(text: &str) -> impl Iterator<Item = Part<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        rest = rest.trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        let (digits, after) = split_digits(rest);
        if let Some(number) = Number::parse(digits) {
            rest = after;
            return Some(Part::Number(number));
        }
        let (word, after) = rest.split_at(rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len()));
        rest = after;
        (!word.is_empty()).then_some(Part::Word(word))
    })
}

/// What follows the dash; empty if nothing is left. `None` if something else is left.
fn suffix_of(rest: &str) -> Option<&str> {
    if rest.is_empty() {
        return Some(rest);
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    rest.strip_prefix('-').filter(|suffix| !suffix.is_empty() && suffix.bytes().all(legal))
}

/// Splits the packaging revision (`-r5`) from a variant.
fn split_revision(variant: &str) -> (&str, Option<Number>) {
    let revision = |text: &str| text.strip_prefix('r').and_then(Number::parse);
    if let Some(number) = revision(variant) {
        return ("", Some(number));
    }
    if let Some((name, last)) = variant.rsplit_once('-')
        && let Some(number) = revision(last)
        && !name.is_empty()
    {
        return (name, Some(number));
    }
    (variant, None)
}

/// Splits a suffix into the prerelease and the variant behind it, as in `rc.1-alpine`: where the first ends and where
/// the second begins. A prerelease goes on over further numbers and prerelease words, and over everything that a dot
/// joins to it.
fn split_suffix(suffix: &str) -> (usize, usize) {
    let mut end = 0;
    loop {
        let rest = &suffix[end..];
        // The first piece has no separator before it, every later one has.
        let begin = usize::from(end > 0);
        let piece = &rest[begin..];
        let piece = &piece[..piece.find(is_separator).unwrap_or(piece.len())];
        let joined = end > 0 && (rest.starts_with('.') || piece.is_empty());
        if !joined && !is_prerelease_piece(piece) {
            break;
        }
        end += begin + piece.len();
        if end == suffix.len() {
            break;
        }
    }
    match end {
        0 => (0, 0),
        _ => (end, suffix.len() - suffix[end..].trim_start_matches(is_separator).len()),
    }
}

/// A prerelease word alone or with a number behind it, or a number.
fn is_prerelease_piece(piece: &str) -> bool {
    let end = piece.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(piece.len());
    let (word, number) = piece.split_at(end);
    let all_digits = number.bytes().all(|byte| byte.is_ascii_digit());
    if word.is_empty() {
        return all_digits && !number.is_empty();
    }
    all_digits && PRERELEASE_WORDS.iter().any(|known| known.eq_ignore_ascii_case(word))
}

/// Whether `rest` is a prerelease written without a dash, as in `1.25rc1`.
fn is_glued_prerelease(rest: &str) -> bool {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
    rest.starts_with(|c: char| c.is_ascii_alphabetic())
        && rest.bytes().all(legal)
        && is_prerelease_piece(&rest[..rest.find(is_separator).unwrap_or(rest.len())])
}

fn is_separator(c: char) -> bool {
    matches!(c, '.' | '-' | '_')
}

/// Whether the number at `at` is written with a `v` that is not the end of a word.
fn begins_with_v(bytes: &[u8], at: usize) -> bool {
    at > 0 && bytes[at - 1] == b'v' && (at == 1 || !bytes[at - 2].is_ascii_alphanumeric())
}

pub(super) fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests;
