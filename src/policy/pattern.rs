//! Regular expressions on tags, and the filter made of them. Linear time, bounded size (design section 3, Parsing).

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use regex::bytes::{Captures, Regex, RegexBuilder};

use super::rule::RuleError;

/// Longest source of a pattern, a range or an extract template, in bytes.
pub(super) const MAX_SOURCE_LENGTH: usize = 1_000;
/// Largest compiled pattern, in bytes.
const MAX_COMPILED_SIZE: usize = 256 * 1024;
/// Most `exclude` patterns of a filter.
const MAX_EXCLUDES: usize = 100;
/// Longest text an extract template may give, in bytes: a tag has at most 128.
const MAX_EXTRACT_LENGTH: usize = 512;

/// A regular expression on a tag: RE2 syntax, not anchored, no look-around and no back-references.
#[derive(Clone)]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles `source`. `kind` is what the user calls it in an error: `pattern`, `exclude`, `regex`.
    pub fn new(kind: &'static str, source: &str) -> Result<Self, RuleError> {
        check_length(kind, source)?;
        // Tags are ASCII, so ASCII classes match the same as Unicode's and compile to a fraction of the size. What
        // cannot be said without Unicode (`\p{L}`, `[é]`) is compiled with it.
        let compiled = match build(source, false) {
            Err(regex::Error::Syntax(_)) => build(source, true),
            other => other,
        };
        compiled.map(Self).map_err(|error| RuleError::invalid(kind, source, describe(&error)))
    }

    /// Whether the pattern matches anywhere in `text`.
    pub fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text.as_bytes())
    }

    /// The pattern as written.
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Debug for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pattern").field(&self.as_str()).finish()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.as_str() == other.as_str()
    }
}

impl Eq for Pattern {}

/// What a tag must look like before the rule sees it. The default lets every tag pass.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pattern: Option<Pattern>,
    extract: Option<Template>,
    exclude: Vec<Pattern>,
}

/// What a pattern made of a tag.
pub(super) enum Passed<'t> {
    /// There is no pattern.
    Unfiltered,
    /// There is a pattern and it matched these bytes of the tag.
    Matched(Range<usize>),
    /// The extract template gave this text.
    Extracted(Cow<'t, str>),
}

impl Filter {
    /// A tag passes if it matches `pattern` and none of `exclude` (at most 100). `extract` is a template on the groups
    /// of `pattern`, as in Go's `Regexp.Expand`; the rule then reads its result instead of the tag.
    pub fn new(pattern: Option<&str>, extract: Option<&str>, exclude: &[String]) -> Result<Self, RuleError> {
        if exclude.len() > MAX_EXCLUDES {
            let reason = format!("{} patterns, at most {MAX_EXCLUDES} are allowed", exclude.len());
            return Err(RuleError::invalid("exclude", "", reason));
        }
        if let Some(template) = extract {
            check_length("extract", template)?;
            if pattern.is_none() {
                let reason = "it needs a pattern whose groups it can name".to_owned();
                return Err(RuleError::invalid("extract", template, reason));
            }
            if template.is_empty() {
                let reason = "it is empty: leave it out, or name a group such as $1".to_owned();
                return Err(RuleError::invalid("extract", template, reason));
            }
        }
        let pattern = pattern.map(|source| Pattern::new("pattern", source)).transpose()?;
        Ok(Self {
            extract: pattern.as_ref().zip(extract).map(|(pattern, template)| Template::new(template, &pattern.0)),
            pattern,
            exclude: exclude.iter().map(|source| Pattern::new("exclude", source)).collect::<Result<_, _>>()?,
        })
    }

    pub(super) fn pattern(&self) -> Option<&Pattern> {
        self.pattern.as_ref()
    }

    pub(super) fn has_extract(&self) -> bool {
        self.extract.is_some()
    }

    /// Whether there is a pattern and it matches `tag`.
    pub(super) fn pattern_matches(&self, tag: &str) -> bool {
        self.pattern.as_ref().is_some_and(|pattern| pattern.is_match(tag))
    }

    /// The first exclude pattern that matches `tag`.
    pub(super) fn excluded_by(&self, tag: &str) -> Option<&Pattern> {
        self.exclude.iter().find(|pattern| pattern.is_match(tag))
    }

    /// `None` if the pattern does not match `tag`.
    pub(super) fn pass<'t>(&self, tag: &'t str) -> Option<Passed<'t>> {
        let Some(pattern) = &self.pattern else {
            return Some(Passed::Unfiltered);
        };
        if let Some(template) = &self.extract {
            // Groups cost several times what a match does, and most tags may not match.
            if !pattern.is_match(tag) {
                return None;
            }
            let groups = pattern.0.captures(tag.as_bytes())?;
            return Some(Passed::Extracted(template.expand(&groups)));
        }
        pattern.0.find(tag.as_bytes()).map(|found| Passed::Matched(found.range()))
    }
}

fn build(source: &str, unicode: bool) -> Result<Regex, regex::Error> {
    RegexBuilder::new(source).unicode(unicode).size_limit(MAX_COMPILED_SIZE).build()
}

pub(super) fn check_length(kind: &'static str, source: &str) -> Result<(), RuleError> {
    if source.len() <= MAX_SOURCE_LENGTH {
        return Ok(());
    }
    let reason = format!("it has {} bytes, at most {MAX_SOURCE_LENGTH} are allowed", source.len());
    Err(RuleError::invalid(kind, source, reason))
}

/// One line: the crate's own text draws the pattern with a marker under it.
fn describe(error: &regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(limit) => format!(
            "it compiles to more than {} KiB: use smaller repetition counts or fewer character classes",
            limit / 1024
        ),
        other => {
            let text = other.to_string();
            let line = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
            line.trim().trim_start_matches("error: ").to_owned()
        }
    }
}

/// The start of a text from outside, short enough for an error or an Event.
pub(super) fn shorten(text: &str) -> String {
    const KEPT: usize = 100;
    match text.char_indices().nth(KEPT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// An extract template, as in Go's `Regexp.Expand`: `$name` takes the longest run of letters, digits and `_`, so `$1x` is
/// the group `1x`; `${name}` sets its end, `$$` is a dollar sign, a group that does not exist or did not match is empty,
/// and a `$` that begins nothing stays as it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Template(Vec<Piece>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Piece {
    Text(String),
    Group(usize),
}

impl Template {
    fn new(template: &str, pattern: &Regex) -> Self {
        let mut pieces = Vec::new();
        let mut text = String::new();
        let mut rest = template;
        while let Some(dollar) = rest.find('$') {
            text.push_str(&rest[..dollar]);
            rest = &rest[dollar + 1..];
            if let Some(after) = rest.strip_prefix('$') {
                text.push('$');
                rest = after;
            } else if let Some((name, after)) = group_name(rest) {
                if let Some(group) = group_index(name, pattern) {
                    pieces.extend([Piece::Text(std::mem::take(&mut text)), Piece::Group(group)]);
                }
                rest = after;
            } else {
                text.push('$');
            }
        }
        text.push_str(rest);
        pieces.push(Piece::Text(text));
        pieces.retain(|piece| !matches!(piece, Piece::Text(text) if text.is_empty()));
        Self(pieces)
    }

    /// At most [`MAX_EXTRACT_LENGTH`] bytes: nothing that a rule reads is longer than a tag, so what is cut is refused in
    /// either case.
    fn expand<'t>(&self, groups: &Captures<'t>) -> Cow<'t, str> {
        let group = |at: usize| -> &'t str {
            groups.get(at).and_then(|group| std::str::from_utf8(group.as_bytes()).ok()).unwrap_or_default()
        };
        if let [Piece::Group(only)] = self.0[..] {
            return Cow::Borrowed(group(only));
        }
        let mut out = String::new();
        for piece in &self.0 {
            out.push_str(match piece {
                Piece::Text(text) => text,
                Piece::Group(at) => group(*at),
            });
            if out.len() > MAX_EXTRACT_LENGTH {
                out.truncate(out.floor_char_boundary(MAX_EXTRACT_LENGTH));
                break;
            }
        }
        Cow::Owned(out)
    }
}

/// The group named after a dollar sign, and what follows it.
fn group_name(text: &str) -> Option<(&str, &str)> {
    let braced = text.strip_prefix('{');
    let body = braced.unwrap_or(text);
    let end = body.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(body.len());
    let (name, after) = body.split_at(end);
    if name.is_empty() {
        return None;
    }
    if braced.is_some() { after.strip_prefix('}').map(|after| (name, after)) } else { Some((name, after)) }
}

fn group_index(name: &str, pattern: &Regex) -> Option<usize> {
    let is_index = name.bytes().all(|byte| byte.is_ascii_digit()) && (name.len() == 1 || !name.starts_with('0'));
    if is_index {
        return name.parse().ok().filter(|&index| index < pattern.captures_len());
    }
    pattern.capture_names().position(|group| group == Some(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn extract(pattern: &str, template: &str, tag: &str) -> Option<String> {
        let filter = Filter::new(Some(pattern), Some(template), &[]).unwrap();
        filter.pass(tag).map(|passed| match passed {
            Passed::Extracted(text) => text.into_owned(),
            _ => panic!("{template} did not extract"),
        })
    }

    #[test]
    fn templates_expand_as_in_go() {
        let check = |pattern: &str, template: &str, tag: &str, expected: &str| {
            assert_eq!(extract(pattern, template, tag).as_deref(), Some(expected), "{pattern} {template} {tag}");
        };
        let named = r"^main-(?P<sha>[0-9a-f]+)-(?P<ts>\d+)$";
        check(named, "$ts", "main-abc-17", "17");
        check(named, "${ts}", "main-abc-17", "17");
        check(named, "${ts}1", "main-abc-17", "171");
        check(named, "$2", "main-abc-17", "17");
        check(named, "${2}x", "main-abc-17", "17x");
        check(named, "$2x", "main-abc-17", "");
        check(named, "$ts.$sha", "main-abc-17", "17.abc");
        check(named, "$ts_$sha", "main-abc-17", "abc");
        check(named, "$0", "main-abc-17", "main-abc-17");
        check(named, "$02", "main-abc-17", "");
        check(named, "$9", "main-abc-17", "");
        check(named, "$99999999999999999999", "main-abc-17", "");
        check(named, "$nothing", "main-abc-17", "");
        check(named, "$$ts", "main-abc-17", "$ts");
        check(named, "$", "main-abc-17", "$");
        check(named, "a$-b", "main-abc-17", "a$-b");
        check(named, "${ts", "main-abc-17", "${ts");
        check(named, "${}", "main-abc-17", "${}");
        check(named, "${t-s}", "main-abc-17", "${t-s}");
        check(named, "1.2.3", "main-abc-17", "1.2.3");
        check("(a)?b", "[$1]", "b", "[]");
        check("(?<x>a)", "$x", "cab", "a");
        assert_eq!(extract(named, "$ts", "main-17"), None);
        let long = extract("(.*)", &"$1".repeat(500), &"a".repeat(128)).unwrap();
        assert_eq!(long.len(), MAX_EXTRACT_LENGTH);
    }

    #[test]
    fn patterns_are_linear_and_bounded() {
        let fails = |source: &str, reason: &str| {
            let error = Filter::new(Some(source), None, &[]).unwrap_err().to_string();
            assert!(error.starts_with("invalid pattern ") && error.contains(reason), "{source}: {error}");
            assert!(!error.contains('\n') && error.len() < 400, "{error}");
        };
        fails("(", "unclosed group");
        fails("*", "repetition operator missing expression");
        fails("(?=a)", "look-around");
        fails(r"(a)\1", "backreferences");
        fails(r"((a{1,100}){1,100}){1,100}", "256 KiB");
        fails(r"\p{L}{1000}", "256 KiB");
        fails(&"a".repeat(1_001), "1001 bytes");
        let matches = |source: &str, tag: &str, expected: bool| {
            assert_eq!(Pattern::new("pattern", source).unwrap().is_match(tag), expected, "{source} {tag}");
        };
        matches(r"^\w+-\w+-\w+-\w+-\w+-\w+-\w+-\w+-\w+$", "a-b-c-d-e-f-g-h-i", true);
        matches(r"[é1]", "1", true);
        matches(r"\p{L}", "a", true);
        matches("é", "e", false);
        matches("b", "abc", true);
        matches("^b", "abc", false);
        matches("(?i)ABC", "abc", true);
        matches("", "anything", true);
    }

    #[test]
    fn filters_refuse_what_cannot_work() {
        let check = |pattern: Option<&str>, extract: Option<&str>, exclude: &[String], expected: &str| {
            let error = Filter::new(pattern, extract, exclude).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(None, Some("$1"), &[], r#"invalid extract "$1": it needs a pattern"#);
        check(Some("a"), Some(""), &[], r#"invalid extract "": it is empty"#);
        check(Some("a"), Some(&"a".repeat(1_001)), &[], "1001 bytes");
        check(None, None, &["[".to_owned()], r#"invalid exclude "[": "#);
        check(None, None, &vec![String::new(); 101], "101 patterns");
    }

    #[test]
    fn long_texts_are_shortened_at_a_character() {
        assert_eq!(shorten("abc"), "abc");
        assert_eq!(shorten(&"é".repeat(200)), format!("{}…", "é".repeat(100)));
    }
}
