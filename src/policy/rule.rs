//! A rule as the user wrote it: its type and value (design section 3, Rules).

use std::fmt;

pub use super::pattern::{Filter, Pattern};
pub use super::range::Range;

/// Which tags are newer than the current one, and by which order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rule {
    /// At least the next major version.
    SemverMajor,
    /// At least the next minor version, below the next major.
    SemverMinor,
    /// At least the next patch version, below the next minor.
    SemverPatch,
    /// The newest version that the range admits; without a range the newest version.
    Semver(Option<Range>),
    /// The greatest tag, in natural order, that the pattern matches.
    Regex(Pattern),
    /// The greatest tag in natural order.
    Always,
}

/// Rule types that the resource knows and this version does not carry out.
const LATER: [&str; 12] = [
    "calver-major",
    "calver-minor",
    "calver-patch",
    "calver-prerelease",
    "timestamp",
    "numerical",
    "alphabetical",
    "alphabetical:asc",
    "alphabetical:desc",
    "asc",
    "desc",
    "digest",
];

impl Rule {
    /// Reads a rule's `type` and `value`. `regex` needs a value, `semver` may have a range; the other types ignore
    /// theirs, as the original resource did. A blank value is none.
    pub fn parse(kind: &str, value: Option<&str>) -> Result<Self, RuleError> {
        let value = value.filter(|value| !value.trim().is_empty());
        match kind {
            "semver-major" => Ok(Self::SemverMajor),
            "semver-minor" => Ok(Self::SemverMinor),
            "semver-patch" => Ok(Self::SemverPatch),
            "semver" => value.map(Range::parse).transpose().map(Self::Semver),
            "regex" => match value {
                Some(source) => Pattern::new("regex", source).map(Self::Regex),
                None => Err(RuleError::invalid(
                    "regex",
                    "",
                    "the rule needs a value, the regular expression that tags must match".to_owned(),
                )),
            },
            "always" => Ok(Self::Always),
            later if LATER.contains(&later) => Err(RuleError::NotSupported { kind: kind.to_owned() }),
            unknown => Err(RuleError::Unknown { kind: super::pattern::shorten(unknown) }),
        }
    }

    /// The rule's type as written in the resource.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SemverMajor => "semver-major",
            Self::SemverMinor => "semver-minor",
            Self::SemverPatch => "semver-patch",
            Self::Semver(_) => "semver",
            Self::Regex(_) => "regex",
            Self::Always => "always",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind())?;
        match self {
            Self::Semver(Some(range)) => write!(f, " {:?}", range.to_string()),
            Self::Regex(pattern) => write!(f, " {:?}", pattern.as_str()),
            _ => Ok(()),
        }
    }
}

/// A rule or filter that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// No such rule type.
    #[error("unknown rule type {kind:?}: use one of semver, semver-major, semver-minor, semver-patch, regex, always")]
    Unknown { kind: String },
    /// A rule type that a later version brings.
    #[error("rule type {kind:?} is not supported by this version of kimup")]
    NotSupported { kind: String },
    /// `kind` is what is wrong: `range`, `regex`, `pattern`, `extract` or `exclude`.
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
    use super::*;

    #[test]
    fn rules_are_read_by_type_and_value() {
        let check = |kind: &str, value: Option<&str>| {
            assert_eq!(Rule::parse(kind, value).unwrap().kind(), kind, "{kind} {value:?}");
        };
        check("semver-major", None);
        check("semver-minor", None);
        check("semver-patch", Some("ignored"));
        check("semver", None);
        check("semver", Some(""));
        check("semver", Some(">=1.0, <2 || ^3.x"));
        check("regex", Some("^v"));
        check("always", None);
        assert_eq!(Rule::parse("semver", Some(" ")), Ok(Rule::Semver(None)));
        assert!(matches!(Rule::parse("semver", Some("*")), Ok(Rule::Semver(Some(_)))));
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
        check("Semver", None, r#"unknown rule type "Semver": use one of semver, "#);
        check("", None, r#"unknown rule type """#);
        check(&"x".repeat(5_000), None, r#"unknown rule type "xxx"#);
        for later in LATER {
            check(later, None, &format!("rule type {later:?} is not supported by this version"));
        }
    }
}
