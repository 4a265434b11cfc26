//! A rule as the user wrote it: its type and value in the resource, or the value of a `policy` annotation (design
//! sections 2 and 3).

use std::fmt;

pub use super::pattern::{Filter, Pattern};
pub use super::range::Range;
use super::version::Grammar;

/// Which tags are newer than the current one, and by which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// At least the current version, below the next minor.
    Patch,
    /// At least the current version, below the next major.
    Minor,
    /// At least the current version.
    Major,
    /// At least the next major version.
    SemverMajor,
    /// At least the next minor version, below the next major.
    SemverMinor,
    /// At least the next patch version, below the next minor.
    SemverPatch,
    /// The newest version that the range admits; without a range the newest version.
    Semver(Option<Range>),
    /// At least the next year.
    CalverMajor,
    /// At least the next month, within the year.
    CalverMinor,
    /// At least the next day, within the month.
    CalverPatch,
    /// A higher number behind the same date and word: `2024.01-rc.1` to `2024.01-rc.2`.
    CalverPrerelease,
    /// The greatest tag, in natural order, that the pattern matches.
    Regex(Pattern),
    /// The greatest tag in natural order.
    Always,
    /// The latest unix time: the first run of exactly 10 (seconds) or 13 (milliseconds) digits.
    Timestamp,
    /// The greatest integer.
    Numerical,
    /// The greatest tag by bytes, or the least.
    Alphabetical(Direction),
    /// The tag stays; its digest is followed.
    Digest,
}

/// Which end of the alphabet is the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The greatest by bytes wins.
    Ascending,
    /// The least by bytes wins.
    Descending,
}

/// The values of a `policy` annotation, for errors.
const POLICIES: &str = "patch, minor, major, semver, semver:<range>, timestamp, numerical, alphabetical, alphabetical:asc, \
     alphabetical:desc, asc, desc, digest";

/// Rule types whose value plays no part, and that a `policy` annotation may name as well.
const POLICY_KINDS: [(&str, Rule); 11] = [
    ("patch", Rule::Patch),
    ("minor", Rule::Minor),
    ("major", Rule::Major),
    ("semver", Rule::Semver(None)),
    ("timestamp", Rule::Timestamp),
    ("numerical", Rule::Numerical),
    ("alphabetical", Rule::Alphabetical(Direction::Ascending)),
    ("alphabetical:asc", Rule::Alphabetical(Direction::Ascending)),
    ("alphabetical:desc", Rule::Alphabetical(Direction::Descending)),
    ("asc", Rule::Alphabetical(Direction::Ascending)),
    ("desc", Rule::Alphabetical(Direction::Descending)),
];

impl Rule {
    /// Reads a rule's `type` and `value`. `regex` needs a value, `semver` may have a range, `alphabetical` may have `asc`
    /// or `desc`; the other types ignore theirs, as the original resource did. A blank value is none.
    pub fn parse(kind: &str, value: Option<&str>) -> Result<Self, RuleError> {
        let value = value.filter(|value| !value.trim().is_empty());
        match (kind, value) {
            ("semver", Some(range)) => Range::parse(range).map(|range| Self::Semver(Some(range))),
            ("semver-major", _) => Ok(Self::SemverMajor),
            ("semver-minor", _) => Ok(Self::SemverMinor),
            ("semver-patch", _) => Ok(Self::SemverPatch),
            ("calver-major", _) => Ok(Self::CalverMajor),
            ("calver-minor", _) => Ok(Self::CalverMinor),
            ("calver-patch", _) => Ok(Self::CalverPatch),
            ("calver-prerelease", _) => Ok(Self::CalverPrerelease),
            ("regex", Some(source)) => Pattern::new("regex", source).map(Self::Regex),
            ("regex", None) => {
                let reason = "the rule needs a value, the regular expression that tags must match".to_owned();
                Err(RuleError::invalid("regex", "", reason))
            }
            ("always", _) => Ok(Self::Always),
            ("digest", _) => Ok(Self::Digest),
            ("alphabetical", Some(value)) => match value.trim() {
                "asc" => Ok(Self::Alphabetical(Direction::Ascending)),
                "desc" => Ok(Self::Alphabetical(Direction::Descending)),
                _ => Err(RuleError::invalid("alphabetical", value, "use asc, desc or no value".to_owned())),
            },
            _ => Self::plain(kind).ok_or_else(|| RuleError::Unknown { kind: super::pattern::shorten(kind) }),
        }
    }

    /// Reads the value of a `policy` annotation (design section 2), exactly as it is listed there.
    pub fn parse_policy(text: &str) -> Result<Self, RuleError> {
        if let Some(range) = text.strip_prefix("semver:") {
            return Range::parse(range).map(|range| Self::Semver(Some(range)));
        }
        if text == "digest" {
            return Ok(Self::Digest);
        }
        Self::plain(text).ok_or_else(|| RuleError::UnknownPolicy { policy: super::pattern::shorten(text) })
    }

    fn plain(kind: &str) -> Option<Self> {
        POLICY_KINDS.iter().find(|(name, _)| *name == kind).map(|(_, rule)| rule.clone())
    }

    /// The rule's type and value as written in the resource: [`Rule::parse`] reads the same rule from them.
    pub fn to_crd(&self) -> (&'static str, Option<String>) {
        let value = match self {
            Self::Semver(range) => range.as_ref().map(ToString::to_string),
            Self::Regex(pattern) => Some(pattern.as_str().to_owned()),
            Self::Alphabetical(Direction::Descending) => Some("desc".to_owned()),
            _ => None,
        };
        (self.kind(), value)
    }

    /// The rule's type as written in the resource.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Patch => "patch",
            Self::Minor => "minor",
            Self::Major => "major",
            Self::SemverMajor => "semver-major",
            Self::SemverMinor => "semver-minor",
            Self::SemverPatch => "semver-patch",
            Self::Semver(_) => "semver",
            Self::CalverMajor => "calver-major",
            Self::CalverMinor => "calver-minor",
            Self::CalverPatch => "calver-patch",
            Self::CalverPrerelease => "calver-prerelease",
            Self::Regex(_) => "regex",
            Self::Always => "always",
            Self::Timestamp => "timestamp",
            Self::Numerical => "numerical",
            Self::Alphabetical(_) => "alphabetical",
            Self::Digest => "digest",
        }
    }

    /// What the rule reads as a version; none if it reads something else.
    pub(super) fn grammar(&self) -> Option<Grammar> {
        match self {
            Self::Patch
            | Self::Minor
            | Self::Major
            | Self::SemverMajor
            | Self::SemverMinor
            | Self::SemverPatch
            | Self::Semver(_) => Some(Grammar::Semver),
            Self::CalverMajor | Self::CalverMinor | Self::CalverPatch => Some(Grammar::Calver { any_word: false }),
            Self::CalverPrerelease => Some(Grammar::Calver { any_word: true }),
            Self::Regex(_)
            | Self::Always
            | Self::Timestamp
            | Self::Numerical
            | Self::Alphabetical(_)
            | Self::Digest => None,
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::Semver(Some(range)) => write!(f, " {:?}", range.to_string()),
            Self::Regex(pattern) => write!(f, " {:?}", pattern.as_str()),
            Self::Alphabetical(Direction::Descending) => f.write_str(":desc"),
            _ => Ok(()),
        }
    }
}

/// A rule or filter that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No such rule type.
    #[error(
        "unknown rule type {kind:?}: use one of semver, semver-major, semver-minor, semver-patch, patch, minor, major, \
         calver-major, calver-minor, calver-patch, calver-prerelease, regex, always, timestamp, numerical, alphabetical, \
         digest"
    )]
    Unknown { kind: String },
    /// No such value of a `policy` annotation.
    #[error("unknown policy {policy:?}: use one of {POLICIES}")]
    UnknownPolicy { policy: String },
    /// `kind` is what is wrong: `range`, `regex`, `alphabetical`, `pattern`, `extract` or `exclude`.
    #[error("invalid {kind} {value:?}: {reason}")]
    Invalid { kind: &'static str, value: String, reason: String },
}

impl RuleError {
    pub(super) fn invalid(kind: &'static str, value: &str, reason: String) -> Self {
        Self::Invalid { kind, value: super::pattern::shorten(value), reason }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rules_are_read_by_type_and_value() {
        let check = |kind: &str, value: Option<&str>| {
            assert_eq!(Rule::parse(kind, value).unwrap().kind(), kind, "{kind} {value:?}");
        };
        check("semver-major", None);
        check("semver-minor", None);
        check("semver-patch", Some("ignored"));
        check("patch", None);
        check("minor", Some("ignored"));
        check("major", None);
        check("calver-major", None);
        check("calver-minor", None);
        check("calver-patch", None);
        check("calver-prerelease", None);
        check("semver", None);
        check("semver", Some(""));
        check("semver", Some(">=1.0, <2 || ^3.x"));
        check("regex", Some("^v"));
        check("always", None);
        check("timestamp", Some("ignored"));
        check("numerical", None);
        check("alphabetical", None);
        check("digest", Some("ignored"));
        assert_eq!(Rule::parse("semver", Some(" ")), Ok(Rule::Semver(None)));
        assert!(matches!(Rule::parse("semver", Some("*")), Ok(Rule::Semver(Some(_)))));
        for (kind, value, direction) in [
            ("alphabetical", None, Direction::Ascending),
            ("alphabetical", Some("asc"), Direction::Ascending),
            ("alphabetical", Some("desc"), Direction::Descending),
            ("alphabetical:asc", None, Direction::Ascending),
            ("alphabetical:desc", None, Direction::Descending),
            ("asc", None, Direction::Ascending),
            ("desc", None, Direction::Descending),
        ] {
            assert_eq!(Rule::parse(kind, value), Ok(Rule::Alphabetical(direction)), "{kind} {value:?}");
        }
    }

    #[test]
    fn annotation_values_are_exactly_those_of_the_reference() {
        let check = |text: &str, kind: &str, value: Option<&str>| {
            let rule = Rule::parse_policy(text).unwrap_or_else(|error| panic!("{error}"));
            assert_eq!(rule.to_crd(), (kind, value.map(str::to_owned)), "{text}");
            assert_eq!(Rule::parse(kind, value), Ok(rule), "{text}");
        };
        check("patch", "patch", None);
        check("minor", "minor", None);
        check("major", "major", None);
        check("semver", "semver", None);
        check("semver:>=1.2 <2", "semver", Some(">=1.2 <2"));
        check("semver:*", "semver", Some("*"));
        check("timestamp", "timestamp", None);
        check("numerical", "numerical", None);
        check("alphabetical", "alphabetical", None);
        check("alphabetical:asc", "alphabetical", None);
        check("alphabetical:desc", "alphabetical", Some("desc"));
        check("asc", "alphabetical", None);
        check("desc", "alphabetical", Some("desc"));
        check("digest", "digest", None);
        let wrong = ["", "Patch", " patch", "patch ", "semver-minor", "calver-major", "regex", "always", "latest"];
        for text in wrong.into_iter().chain(["timestamp:asc", "alphabetical:", "numerical:desc", "regex:^v"]) {
            let error = Rule::parse_policy(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("unknown policy {text:?}: use one of patch, minor")), "{error}");
            for (name, _) in POLICY_KINDS {
                assert!(error.contains(name), "{error} lacks {name}");
            }
        }
        for text in ["semver:", "semver: ", "semver:>=1.x.y", "semver:latest"] {
            let error = Rule::parse_policy(text).unwrap_err().to_string();
            assert!(error.starts_with("invalid range "), "{error}");
        }
    }

    #[test]
    fn errors_name_the_object_the_cause_and_the_next_step() {
        let check = |kind: &str, value: Option<&str>, expected: &str| {
            let error = Rule::parse(kind, value).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{kind} {value:?}: {error}");
        };
        check("semver", Some(">=1.x.y"), r#"invalid range ">=1.x.y": "#);
        check("regex", Some("("), r#"invalid regex "(": unclosed group"#);
        check("regex", None, r#"invalid regex "": the rule needs a value"#);
        check("regex", Some(""), r#"invalid regex "": the rule needs a value"#);
        check("alphabetical", Some("up"), r#"invalid alphabetical "up": use asc, desc or no value"#);
        check("Semver", None, r#"unknown rule type "Semver": use one of semver, "#);
        check("semver:^1", None, r#"unknown rule type "semver:^1""#);
        check("", None, r#"unknown rule type """#);
        check(&"x".repeat(5_000), None, r#"unknown rule type "xxx"#);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn what_is_read_is_written_as_the_same_rule(text in any_policy()) {
            if let Ok(rule) = Rule::parse_policy(&text) {
                let (kind, value) = rule.to_crd();
                prop_assert_eq!(Rule::parse(kind, value.as_deref()), Ok(rule));
            }
        }
    }

    fn any_policy() -> impl Strategy<Value = String> {
        let operator = prop::sample::select(vec!["", ">=", "<", "^", "~", "!=", " ", "=>"]);
        let version = prop::sample::select(vec!["1", "1.2", "1.2.3-0", "*", "1.x", "2 - 3", "1 || 3", "x.y", ""]);
        let range = (operator, version).prop_map(|(operator, version)| format!("semver:{operator}{version} "));
        let plain = prop::sample::select(POLICY_KINDS.map(|(name, _)| name).to_vec()).prop_map(str::to_owned);
        prop_oneof![4 => range, 2 => plain, 1 => Just("digest".to_owned()), 1 => prop::collection::vec(any::<char>(), 0..8)
            .prop_map(|chars| chars.into_iter().collect())]
    }
}
