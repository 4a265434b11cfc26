//! Versions in tags: `x.y.z`, then a prerelease, a variant or both (design section 3, Parsing and Suffix).

use std::cmp::Ordering;

use super::digits::Number;

/// Words that make a suffix a prerelease, in any case.
const PRERELEASE_WORDS: [&str; 14] =
    ["alpha", "beta", "a", "b", "rc", "pre", "preview", "dev", "snapshot", "nightly", "canary", "next", "m", "ea"];

/// Major, minor and patch.
pub(super) type Core = [Number; 3];

/// A version with the suffix of a tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) core: Core,
    pub(super) prerelease: Option<Prerelease>,
    pub(super) variant: Variant,
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
    pub(super) fn parse(text: &str, reading: Reading) -> Option<Self> {
        let lenient = reading == Reading::Current;
        let mut rest = text.strip_prefix('v').or_else(|| text.strip_prefix('V').filter(|_| lenient)).unwrap_or(text);
        let mut core = Vec::with_capacity(3);
        loop {
            let (digits, after) = split_digits(rest);
            core.push(Number::parse(digits)?);
            rest = after;
            match rest.strip_prefix('.') {
                Some(next) if core.len() < 3 && next.starts_with(|c: char| c.is_ascii_digit()) => {
                    rest = next;
                }
                _ => break,
            }
        }
        let written = core.len();
        if written < 3 && !lenient {
            return None;
        }
        core.resize(3, Number::zero());
        let core = Core::try_from(core).ok()?;
        let suffix = match rest.strip_prefix('-') {
            Some(suffix) if !suffix.is_empty() => suffix,
            None if rest.is_empty() => {
                return Some(Self { core, prerelease: None, variant: Variant::default() });
            }
            None if lenient && written > 1 && is_glued_prerelease(rest) => rest,
            _ => return None,
        };
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if !suffix.bytes().all(legal) {
            return None;
        }
        let (prerelease, variant) = split_suffix(suffix);
        Some(Self { core, prerelease: prerelease.map(Prerelease::parse), variant: Variant::parse(variant) })
    }

    /// The first version inside the text, and where it begins. A number that continues one before it (the `2` of
    /// `1.2` in `1.2.3.4`) begins none.
    pub(super) fn find(text: &str, reading: Reading) -> Option<(usize, Self)> {
        let bytes = text.as_bytes();
        let digit = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_digit);
        (0..bytes.len())
            .filter(|&at| digit(at))
            .filter(|&at| at == 0 || !(digit(at - 1) || (bytes[at - 1] == b'.' && at > 1 && digit(at - 2))))
            .map(|at| if begins_with_v(bytes, at) { at - 1 } else { at })
            .find_map(|at| Self::parse(&text[at..], reading).map(|version| (at, version)))
    }

    /// Whether there is no suffix.
    pub(super) fn is_plain(&self) -> bool {
        self.prerelease.is_none() && self.variant.is_none()
    }

    /// Order by version number, then prerelease (below its release). Variants are not looked at.
    pub(super) fn cmp_precedence(&self, other: &Self) -> Ordering {
        cmp_precedence((&self.core, self.prerelease.as_ref()), (&other.core, other.prerelease.as_ref()))
    }

    /// Order within a variant: precedence, then revision. `None` for two variants of the same precedence.
    pub(super) fn cmp_versions(&self, other: &Self) -> Option<Ordering> {
        match self.cmp_precedence(other) {
            Ordering::Equal if self.variant.is_same_family(&other.variant) => {
                Some(self.variant.revision.cmp(&other.variant.revision))
            }
            Ordering::Equal => None,
            unequal => Some(unequal),
        }
    }
}

/// Semantic Versioning 2.0.0, section 11: a prerelease is below its release.
pub(super) fn cmp_precedence(a: (&Core, Option<&Prerelease>), b: (&Core, Option<&Prerelease>)) -> Ordering {
    a.0.cmp(b.0).then_with(|| match (a.1, b.1) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Greater,
        (Some(_), None) => Ordering::Less,
        (Some(a), Some(b)) => a.cmp(b),
    })
}

/// The words and numbers of a prerelease. Numbers compare as numbers and are below words, the shorter of two is
/// below the longer, case and separators do not matter: `rc2` is `RC.2` and below `rc.10`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Prerelease(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Number(Number),
    Word(String),
}

impl Prerelease {
    pub(super) fn parse(text: &str) -> Self {
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (digits, after) = split_digits(rest);
            if let Some(number) = Number::parse(digits) {
                parts.push(Part::Number(number));
                rest = after;
                continue;
            }
            let end = rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(rest.len());
            if end > 0 {
                parts.push(Part::Word(rest[..end].to_ascii_lowercase()));
            }
            // Skips a separator; a letter run ends at a digit, which the next turn takes.
            rest = rest[end..].trim_start_matches(|c: char| !c.is_ascii_alphanumeric());
        }
        Self(parts)
    }
}

/// What a build of the same version is made for: `alpine`, `debian-12`, with a packaging revision (`-r5`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Variant {
    /// Without the revision; empty for none.
    pub(super) name: String,
    /// No revision is below `r0`.
    pub(super) revision: Option<Number>,
}

impl Variant {
    fn parse(text: &str) -> Self {
        let revision = |text: &str| text.strip_prefix('r').and_then(Number::parse);
        if let Some(number) = revision(text) {
            return Self { name: String::new(), revision: Some(number) };
        }
        if let Some((name, last)) = text.rsplit_once('-')
            && let Some(number) = revision(last)
            && !name.is_empty()
        {
            return Self { name: name.to_owned(), revision: Some(number) };
        }
        Self { name: text.to_owned(), revision: None }
    }

    pub(super) fn is_none(&self) -> bool {
        self.name.is_empty() && self.revision.is_none()
    }

    /// Whether both are builds of the same kind: only such are compared. A bare `-r5` is not the plain version.
    pub(super) fn is_same_family(&self, other: &Self) -> bool {
        self.family() == other.family()
    }

    /// Name of the family, and whether it is that of bare revisions.
    pub(super) fn family(&self) -> (&str, bool) {
        (&self.name, self.name.is_empty() && self.revision.is_some())
    }

    /// For messages: `variant "alpine"`, or `no variant`.
    pub(super) fn describe(&self) -> String {
        match self.family() {
            ("", false) => "no variant".to_owned(),
            ("", true) => "variant \"r<number>\"".to_owned(),
            (name, _) => format!("variant {name:?}"),
        }
    }
}

/// Splits a suffix into the prerelease and the variant behind it, as in `rc.1-alpine`. A prerelease goes on over
/// further numbers and prerelease words, and over everything that a dot joins to it.
fn split_suffix(suffix: &str) -> (Option<&str>, &str) {
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
        0 => (None, suffix),
        _ => (Some(&suffix[..end]), suffix[end..].trim_start_matches(is_separator)),
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
    rest.starts_with(|c: char| c.is_ascii_alphabetic())
        && is_prerelease_piece(&rest[..rest.find(is_separator).unwrap_or(rest.len())])
}

fn is_separator(c: char) -> bool {
    matches!(c, '.' | '-' | '_')
}

/// Whether the number at `at` is written with a `v` that is not the end of a word.
fn begins_with_v(bytes: &[u8], at: usize) -> bool {
    at > 0 && bytes[at - 1] == b'v' && (at == 1 || !bytes[at - 2].is_ascii_alphanumeric())
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()))
}

#[cfg(test)]
mod tests;
