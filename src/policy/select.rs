//! The choice of a tag: pure, total, and with a reason for every tag (design section 3).

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::digits::{Number, natural_cmp};
use super::order::{Entry, Key};
use super::rule::{Filter, Rule};
use super::version::{Core, Version};

pub use super::order::compare;

/// What [`select`] decided. Every distinct tag of the input is either a candidate or rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// The tag to run: the current one if nothing is newer, also when it is no longer listed. `None` if nothing
    /// matches and there is no current tag that the rule can compare: the caller leaves everything as it is.
    pub selected: Option<String>,
    /// Whether `selected` is another tag than the current one.
    pub changed: bool,
    /// One sentence for a human: why this tag.
    pub reason: String,
    /// The tags that may replace the current one, best first.
    pub candidates: Vec<String>,
    /// All other tags, in descending natural order.
    pub rejected: Vec<Rejection>,
}

/// A tag that is no candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub tag: String,
    /// Why, for a human.
    pub reason: String,
}

/// Chooses among `tags`, starting from `current`. The order and repetition of tags do not matter, selecting again from
/// the answer changes nothing, and a current tag that the rule can compare is never gone behind. `latest` and a current
/// tag that the rule cannot read count as none. Costs one reading per tag and a sort of the candidates.
pub fn select<T: AsRef<str>>(rule: &Rule, filter: &Filter, current: Option<&str>, tags: &[T]) -> Decision {
    let distinct: BTreeSet<&str> = tags.iter().map(AsRef::as_ref).collect();
    let start = current.and_then(|tag| Entry::current(rule, filter, tag));

    let mut rejected = Vec::new();
    let mut reject = |tag: &str, reason| {
        rejected.push(Rejection { tag: tag.to_owned(), reason });
    };
    let mut readable = Vec::new();
    for &tag in &distinct {
        match Entry::candidate(rule, filter, tag) {
            Ok(entry) => readable.push(entry),
            Err(_) if start.as_ref().is_some_and(|start| start.tag == tag) => {
                reject(tag, CURRENT.to_owned());
            }
            Err(reason) => reject(tag, reason),
        }
    }
    // The current tag counts also when it is not listed, so that a partial listing never opens suffixes.
    let named = start.iter().filter(|start| filter.pattern_matches(start.tag));
    let names_suffixes = filter.pattern().is_some() && !readable.iter().chain(named).any(Entry::is_plain_version);
    let judge = Judge { rule, start: start.as_ref(), names_suffixes };
    let mut candidates = Vec::new();
    for entry in readable {
        match judge.admit(&entry) {
            Ok(()) => candidates.push(entry),
            Err(reason) => reject(entry.tag, reason),
        }
    }
    candidates.sort_by(|a, b| b.rank(a, start.as_ref()));
    rejected.sort_by(|a, b| natural_cmp(&b.tag, &a.tag).then_with(|| b.tag.cmp(&a.tag)));

    let kept = start.as_ref().map(|start| start.tag);
    let selected = candidates.first().map(|best| best.tag).or(kept);
    Decision {
        selected: selected.map(str::to_owned),
        changed: selected.is_some() && selected != current,
        reason: explain(rule, current, kept, &distinct, &candidates),
        candidates: candidates.into_iter().map(|entry| entry.tag.to_owned()).collect(),
        rejected,
    }
}

const CURRENT: &str = "is the current tag";

/// The rules that compare a readable tag with the current one.
struct Judge<'a> {
    rule: &'a Rule,
    start: Option<&'a Entry<'a>>,
    /// The pattern matches suffixed tags only, so a suffix does not disqualify.
    names_suffixes: bool,
}

impl Judge<'_> {
    /// The error is the reason why the tag is no candidate.
    fn admit(&self, entry: &Entry<'_>) -> Result<(), String> {
        if self.start.is_some_and(|start| start.tag == entry.tag) {
            return Err(CURRENT.to_owned());
        }
        match (&entry.key, self.start.map(|start| (start.tag, &start.key))) {
            (Key::Version(version), Some((tag, Key::Version(current)))) => {
                self.admit_variant(version, Some((tag, current)))?;
                admit_newer(version.cmp_versions(current), tag)?;
                self.admit_prerelease(version, Some(current))?;
                self.admit_range(version)?;
                self.admit_step(version, tag, current)
            }
            (Key::Version(version), _) => {
                self.admit_variant(version, None)?;
                self.admit_prerelease(version, None)?;
                self.admit_range(version)
            }
            (Key::Text(text), Some((tag, Key::Text(current)))) => admit_newer(Some(natural_cmp(text, current)), tag),
            (Key::Text(_), _) => Ok(()),
        }
    }

    fn admit_variant(&self, version: &Version, current: Option<(&str, &Version)>) -> Result<(), String> {
        if self.names_suffixes {
            return Ok(());
        }
        match current {
            Some((_, current)) if current.variant.is_same_family(&version.variant) => Ok(()),
            Some((tag, current)) => {
                Err(format!("{}, but current {tag} has {}", version.variant.describe(), current.variant.describe()))
            }
            None if version.variant.is_none() => Ok(()),
            None => Err(format!(
                "{}: to start with one, set it as the base tag or name it in the pattern",
                version.variant.describe()
            )),
        }
    }

    fn admit_prerelease(&self, version: &Version, current: Option<&Version>) -> Result<(), String> {
        let continues = |current: &Version| current.prerelease.is_some() && current.core == version.core;
        let range_decides = matches!(self.rule, Rule::Semver(Some(_)));
        if version.prerelease.is_none() || range_decides || self.names_suffixes || current.is_some_and(continues) {
            return Ok(());
        }
        Err("a prerelease: only followed from a prerelease of the same version, or by a range such as >=1.0.0-0".into())
    }

    fn admit_range(&self, version: &Version) -> Result<(), String> {
        match self.rule {
            Rule::Semver(Some(range)) if !range.contains(&version.core, version.prerelease.as_ref()) => {
                Err(format!("outside the range {:?}", range.to_string()))
            }
            _ => Ok(()),
        }
    }

    /// The bounds are on x.y.z: a prerelease of the next major version is beyond `semver-minor`.
    fn admit_step(&self, version: &Version, tag: &str, current: &Version) -> Result<(), String> {
        let Some((least, below)) = step(self.rule, current) else {
            return Ok(());
        };
        if version.core >= least && below.as_ref().is_none_or(|below| version.core < *below) {
            return Ok(());
        }
        let below = below.map(|below| format!(", <{}", display(&below))).unwrap_or_default();
        Err(format!("outside >={}{below} ({} from {tag})", display(&least), self.rule.kind()))
    }
}

fn admit_newer(order: Option<Ordering>, current: &str) -> Result<(), String> {
    match order {
        Some(Ordering::Greater) => Ok(()),
        Some(Ordering::Less) => Err(format!("older than current {current}")),
        Some(Ordering::Equal) | None => Err(format!("the same version as current {current}")),
    }
}

/// The versions a step may reach: at least the first, below the second.
fn step(rule: &Rule, current: &Version) -> Option<(Core, Option<Core>)> {
    let [major, minor, patch] = current.core.clone();
    let zero = Number::zero;
    let next_major = [major.next(), zero(), zero()];
    let next_minor = [major.clone(), minor.next(), zero()];
    match rule {
        Rule::SemverMajor => Some((next_major, None)),
        Rule::SemverMinor => Some((next_minor, Some(next_major))),
        // From a prerelease, its own release is a patch.
        Rule::SemverPatch if current.prerelease.is_some() => Some((current.core.clone(), Some(next_minor))),
        Rule::SemverPatch => Some(([major, minor, patch.next()], Some(next_minor))),
        Rule::Semver(_) | Rule::Regex(_) | Rule::Always => None,
    }
}

fn display([major, minor, patch]: &Core) -> String {
    format!("{major}.{minor}.{patch}")
}

fn explain(
    rule: &Rule,
    current: Option<&str>,
    kept: Option<&str>,
    tags: &BTreeSet<&str>,
    candidates: &[Entry<'_>],
) -> String {
    let among = match candidates.len() {
        1 => "the only tag".to_owned(),
        count => format!("the newest of {count} tags"),
    };
    let listed = match tags.len() {
        0 => "the list of tags is empty".to_owned(),
        1 => format!("by {rule} the only tag listed is not newer"),
        count => format!("by {rule} none of {count} tags is newer"),
    };
    match (candidates.first(), kept, current) {
        (Some(best), Some(kept), _) => {
            format!("{} is {among} that {rule} allows from {kept}", best.tag)
        }
        (Some(best), None, Some(current)) => {
            let current = super::pattern::shorten(current);
            format!("{} is {among} that {rule} allows: current {current:?} cannot be compared", best.tag)
        }
        (Some(best), None, None) => format!("{} is {among} that {rule} allows: there is no current tag", best.tag),
        (None, Some(kept), _) if tags.contains(kept) || tags.is_empty() => {
            format!("{kept} stays: {listed}")
        }
        (None, Some(kept), _) => {
            format!("{kept} stays although it is not listed any more: {listed}")
        }
        (None, None, _) if tags.is_empty() => "no tag: the list of tags is empty".to_owned(),
        (None, None, _) if tags.len() == 1 => format!("no tag: the only tag listed does not match {rule}"),
        (None, None, _) => format!("no tag: none of {} tags matches {rule}", tags.len()),
    }
}

#[cfg(test)]
mod tests;
