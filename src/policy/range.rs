//! Ranges of versions in the grammar of Masterminds/semver 3, which Helm and Flux accept.
//!
//! Groups of comparators are joined by `||`; within a group all must hold, separated by spaces or a comma. A
//! comparator is `=` (or nothing), `!=`, `>`, `<`, `>=`, `<=`, `~` or `^` and a version whose missing or `x` parts
//! are open; `1.2 - 3` is `>=1.2 <=3`. A group admits prereleases if one of its versions names one (`>=1.0.0-0`).

use std::cmp::Ordering;
use std::fmt;

use super::digits::Number;
use super::glance::{Numbers, Window, numbers};
use super::pattern::check_length;
use super::rule::RuleError;
use super::version::{Core, cmp_precedence, cmp_prereleases};

/// A constraint on versions.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    source: String,
    groups: Vec<Vec<Comparator>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Comparator {
    operator: Operator,
    version: Bound,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    Equal,
    NotEqual,
    Greater,
    Less,
    GreaterEqual,
    LessEqual,
    Tilde,
    Caret,
}

/// A version as written in a range.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    /// Zero for each open part.
    core: Core,
    given: Given,
    prerelease: Option<Box<str>>,
}

/// How many parts are given; those behind are open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Given {
    Nothing,
    Major,
    Minor,
    Patch,
}

impl Range {
    /// Reads a range of at most 1,000 bytes.
    pub fn parse(text: &str) -> Result<Self, RuleError> {
        check_length("range", text)?;
        let groups = text.split("||").map(|group| Parser(group).group()).collect::<Result<_, _>>();
        let groups = groups.map_err(|reason| RuleError::invalid("range", text, reason))?;
        Ok(Self { source: text.trim().to_owned(), groups })
    }

    /// The range as written.
    pub fn as_str(&self) -> &str {
        &self.source
    }

    /// Whether a version is inside; a variant plays no part.
    pub(super) fn contains(&self, core: &Core, prerelease: Option<&str>) -> bool {
        self.groups.iter().any(|group| {
            (prerelease.is_none() || group.iter().any(|comparator| comparator.version.prerelease.is_some()))
                && group.iter().all(|comparator| comparator.holds(core, prerelease))
        })
    }
}

impl Range {
    /// Lowers `window` to what the range admits at most.
    pub(super) fn limit(&self, window: &mut Window) {
        let most = |group: &Vec<Comparator>| group.iter().map(Comparator::most).min().unwrap_or(ANY);
        window.most = window.most.min(self.groups.iter().map(most).max().unwrap_or(ANY));
    }
}

/// No number is above these.
const ANY: Numbers = [u64::MAX; 3];

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.source)
    }
}

impl Comparator {
    /// What a version has at most for [`holds`](Self::holds): not exact, but never too low.
    fn most(&self) -> Numbers {
        let bound = &self.version;
        let Some(numbers) = numbers(&bound.core).filter(|_| bound.given != Given::Nothing) else {
            return ANY;
        };
        match self.operator {
            Operator::Less => numbers,
            Operator::Equal | Operator::LessEqual if bound.given == Given::Patch => numbers,
            Operator::Tilde if numbers == [0; 3] => ANY,
            Operator::Equal | Operator::LessEqual | Operator::Tilde | Operator::Caret => {
                [numbers[0], u64::MAX, u64::MAX]
            }
            Operator::NotEqual | Operator::Greater | Operator::GreaterEqual => ANY,
        }
    }

    /// The corner cases (`<=*`, `!=*`, `~0.0.0`) are those of Masterminds/semver 3.4, so that a range means here what it
    /// means in a Helm chart. The one exception is `^*`: any version, as its documentation says, not only 0.0.0.
    fn holds(&self, core: &Core, prerelease: Option<&str>) -> bool {
        let bound = &self.version;
        let order = cmp_precedence((core, prerelease), (&bound.core, bound.prerelease.as_deref()));
        let major = core[0].cmp(&bound.core[0]);
        let minor = core[..2].cmp(&bound.core[..2]);
        match self.operator {
            Operator::Less => order == Ordering::Less,
            Operator::GreaterEqual => order != Ordering::Less,
            Operator::Greater => match bound.given {
                Given::Nothing | Given::Patch => order == Ordering::Greater,
                Given::Major => major == Ordering::Greater,
                Given::Minor => minor == Ordering::Greater,
            },
            Operator::LessEqual => match bound.given {
                Given::Patch => order != Ordering::Greater,
                Given::Major => major != Ordering::Greater,
                Given::Nothing | Given::Minor => minor != Ordering::Greater,
            },
            Operator::NotEqual => match bound.given {
                Given::Nothing | Given::Patch => order != Ordering::Equal,
                Given::Major => major != Ordering::Equal,
                Given::Minor => minor != Ordering::Equal || !is_same(prerelease, bound.prerelease.as_deref()),
            },
            Operator::Equal if bound.given == Given::Patch => order == Ordering::Equal,
            Operator::Equal | Operator::Tilde => order != Ordering::Less && bound.tilde(major, minor),
            Operator::Caret => order != Ordering::Less && bound.caret(core, major, minor),
        }
    }
}

fn is_same(a: Option<&str>, b: Option<&str>) -> bool {
    match (a, b) {
        (Some(a), Some(b)) => cmp_prereleases(a, b).is_eq(),
        (a, b) => a.is_none() && b.is_none(),
    }
}

impl Bound {
    /// `~1.2.3` and `~1.2` stay within 1.2, `~1` within 1.
    fn tilde(&self, major: Ordering, minor: Ordering) -> bool {
        match self.given {
            Given::Nothing => true,
            Given::Major => major == Ordering::Equal,
            Given::Minor => minor == Ordering::Equal,
            Given::Patch => minor == Ordering::Equal || self.core.iter().all(Number::is_zero),
        }
    }

    /// `^` keeps the first part that is not zero.
    fn caret(&self, core: &Core, major: Ordering, minor: Ordering) -> bool {
        if self.given == Given::Nothing {
            true
        } else if self.given == Given::Major || !self.core[0].is_zero() {
            major == Ordering::Equal
        } else if self.given == Given::Minor || !self.core[1].is_zero() {
            minor == Ordering::Equal
        } else {
            *core == self.core
        }
    }
}

/// What is left of a group.
struct Parser<'a>(&'a str);

impl<'a> Parser<'a> {
    fn group(mut self) -> Result<Vec<Comparator>, String> {
        let mut comparators = Vec::new();
        self.skip_spaces();
        if self.0.is_empty() {
            return Err("a version is missing (use * for any)".to_owned());
        }
        loop {
            self.comparator(&mut comparators)?;
            let spaced = self.skip_spaces();
            if self.0.is_empty() {
                return Ok(comparators);
            }
            if let Some(rest) = self.0.strip_prefix(',') {
                self.0 = rest;
                self.skip_spaces();
            } else if !spaced {
                return Err(self.unexpected("a space, a comma or ||"));
            }
        }
    }

    /// One comparator, or the two of a hyphen range.
    fn comparator(&mut self, into: &mut Vec<Comparator>) -> Result<(), String> {
        let operator = self.operator();
        self.skip_spaces();
        let version = self.version()?;
        if let Some(rest) = self.after_hyphen() {
            if operator.is_some() {
                return Err("a range with a hyphen has no operator".to_owned());
            }
            self.0 = rest;
            into.push(Comparator { operator: Operator::GreaterEqual, version });
            into.push(Comparator { operator: Operator::LessEqual, version: self.version()? });
            return Ok(());
        }
        into.push(Comparator { operator: operator.unwrap_or(Operator::Equal), version });
        Ok(())
    }

    fn operator(&mut self) -> Option<Operator> {
        // Longer spellings first.
        const SPELLINGS: [(&str, Operator); 11] = [
            ("!=", Operator::NotEqual),
            (">=", Operator::GreaterEqual),
            ("=>", Operator::GreaterEqual),
            ("<=", Operator::LessEqual),
            ("=<", Operator::LessEqual),
            ("~>", Operator::Tilde),
            ("=", Operator::Equal),
            (">", Operator::Greater),
            ("<", Operator::Less),
            ("~", Operator::Tilde),
            ("^", Operator::Caret),
        ];
        SPELLINGS.into_iter().find_map(|(spelling, operator)| {
            self.0 = self.0.strip_prefix(spelling)?;
            Some(operator)
        })
    }

    fn version(&mut self) -> Result<Bound, String> {
        self.0 = self.0.strip_prefix('v').unwrap_or(self.0);
        let mut core = [Number::ZERO; 3];
        let mut given = 0;
        let mut open = false;
        for (at, part) in core.iter_mut().enumerate() {
            if at > 0 {
                let Some(rest) = self.0.strip_prefix('.') else {
                    break;
                };
                self.0 = rest;
            }
            if let Some(rest) = self.0.strip_prefix(['x', 'X', '*']) {
                self.0 = rest;
                open = true;
            } else {
                let digits = self.take_while(|c| c.is_ascii_digit());
                let number = Number::parse(digits).ok_or_else(|| self.unexpected("a number, x or *"))?;
                // What follows an open part does not count.
                if !open {
                    *part = number;
                    given += 1;
                }
            }
        }
        let prerelease = self.identifiers('-')?.map(Box::from);
        self.identifiers('+')?; // Build metadata: tags have none, and it has no order.
        let given = [Given::Nothing, Given::Major, Given::Minor, Given::Patch][given];
        Ok(Bound { core, given, prerelease })
    }

    /// Dot-separated identifiers behind `sign`, if it is next.
    fn identifiers(&mut self, sign: char) -> Result<Option<&'a str>, String> {
        let Some(rest) = self.0.strip_prefix(sign) else {
            return Ok(None);
        };
        self.0 = rest;
        let text = self.take_while(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '.'));
        if text.split('.').any(str::is_empty) {
            return Err(format!("an identifier is missing behind {sign:?}"));
        }
        Ok(Some(text))
    }

    /// What follows ` - `, if that is next.
    fn after_hyphen(&self) -> Option<&'a str> {
        let rest = trim_start(self.0);
        let after = rest.strip_prefix('-').filter(|_| rest.len() < self.0.len())?;
        let version = trim_start(after);
        (version.len() < after.len()).then_some(version)
    }

    fn take_while(&mut self, accept: impl Fn(char) -> bool) -> &'a str {
        let (taken, rest) = self.0.split_at(self.0.find(|c| !accept(c)).unwrap_or(self.0.len()));
        self.0 = rest;
        taken
    }

    /// Whether there were any.
    fn skip_spaces(&mut self) -> bool {
        let before = self.0.len();
        self.0 = trim_start(self.0);
        self.0.len() < before
    }

    fn unexpected(&self, expected: &str) -> String {
        match self.0.chars().next() {
            Some(found) => format!("expected {expected} at {found:?}"),
            None => format!("expected {expected} at the end"),
        }
    }
}

fn trim_start(text: &str) -> &str {
    text.trim_start_matches(|c: char| c.is_ascii_whitespace())
}

#[cfg(test)]
mod tests;
