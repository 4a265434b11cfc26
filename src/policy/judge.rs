//! One rule with its current tag: which readable tags may replace that one (design section 3, Rules and Suffix).

use std::cell::OnceCell;
use std::cmp::Ordering;
use std::sync::Arc;

use super::digits::Number;
use super::glance::{Glance, Window, glance};
use super::order::{Entry, compare_entries};
use super::pattern::Filter;
use super::reason::Reason;
use super::rule::Rule;
use super::version::{Core, Grammar, Versioned};

/// A rule, ready to judge tags.
pub(super) struct Judge<'a> {
    rule: &'a Rule,
    filter: &'a Filter,
    /// The current tag; none if there is none, or the rule cannot read it.
    start: Option<Entry<'a>>,
    bounds: Option<Bounds>,
    /// What the other rules of the Image read of the tag that all began with: none may go behind it.
    guards: Vec<(&'a Rule, Entry<'a>)>,
    /// What the reasons of many tags say alike: the current tag's variant, and the step.
    has: OnceCell<Arc<str>>,
    step: OnceCell<Arc<str>>,
}

/// The versions that a step may reach: at least the first, below the second.
struct Bounds {
    least: Core,
    below: Option<Core>,
}

/// Why a readable tag is no candidate, without what it takes to say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    Current,
    Tag,
    Variant,
    Years,
    Older,
    /// Older than what all rules began with.
    Behind,
    Same,
    Prerelease,
    Range,
    Step,
    Word,
}

impl<'a> Judge<'a> {
    pub(super) fn new(rule: &'a Rule, filter: &'a Filter, current: Option<&'a str>) -> Self {
        let start = current.and_then(|tag| Entry::current(rule, filter, tag));
        let bounds = start.as_ref().and_then(Entry::version_read).and_then(|current| bounds(rule, current));
        Self { rule, filter, start, bounds, guards: Vec::new(), has: OnceCell::new(), step: OnceCell::new() }
    }

    /// Nothing older than `tag` by the first of `rules` that can compare the two is a candidate.
    pub(super) fn guarded_by(mut self, rules: impl Iterator<Item = &'a Rule>, tag: &'a str) -> Self {
        let filter = self.filter;
        self.guards = rules.filter_map(|rule| Some((rule, Entry::current(rule, filter, tag)?))).collect();
        self
    }

    pub(super) fn start(&self) -> Option<&Entry<'a>> {
        self.start.as_ref()
    }

    /// Reads a tag that may be chosen; the error is the reason why not.
    pub(super) fn read(&self, tag: &'a str) -> Result<Entry<'a>, Reason<'a>> {
        match Entry::candidate(self.rule, self.filter, tag) {
            Err(_) if self.start.as_ref().is_some_and(|start| start.tag == tag) => Err(Reason::Current),
            read => read,
        }
    }

    /// Where the versions that may win lie; none if the rule reads no `x.y.z`.
    pub(super) fn window(&self) -> Option<Window> {
        self.rule.grammar().filter(|grammar| *grammar == Grammar::Semver)?;
        let mut window = Window::default();
        if let Some(current) = self.start.as_ref().and_then(Entry::version_read) {
            window.raise(&current.version.core);
        }
        if let Some(bounds) = &self.bounds {
            window.raise(&bounds.least);
            bounds.below.iter().for_each(|below| window.lower(below));
        }
        if let Rule::Semver(Some(range)) = self.rule {
            range.limit(&mut window);
        }
        Some(window)
    }

    /// Whether a glance is enough to see that `tag` does not win. Of a rule that has a window.
    pub(super) fn is_outside(&self, window: &Window, tag: &str) -> bool {
        if self.filter.has_extract() {
            return false;
        }
        match glance(tag) {
            Glance::Version(numbers) => !window.contains(&numbers),
            // With a pattern there may be a version inside.
            Glance::NoVersion => self.filter.pattern().is_none(),
            Glance::Unknown => false,
        }
    }

    /// Whether the pattern may name suffixed tags only: not if it matches the current tag, and that has no suffix. The
    /// current tag counts also when it is not listed, so that a partial listing never opens suffixes. Nor if it is a
    /// prerelease that a range allows: it may have come after a plain one, and must not open variants that did not count
    /// then.
    pub(super) fn may_name_suffixes(&self) -> bool {
        let is_plain = |start: &Entry<'_>| match start.version_read() {
            Some(read) if matches!(self.rule, Rule::Semver(Some(_))) => read.version.has_no_variant(),
            _ => start.is_plain_version(),
        };
        self.rule.grammar().is_some()
            && self.filter.pattern().is_some()
            && !self.start.as_ref().is_some_and(|start| is_plain(start) && self.filter.pattern_matches(start.tag))
    }

    /// Whether a tag is a candidate, or why it is none.
    pub(super) fn verdict(&self, tag: &'a str, names_suffixes: bool) -> Result<Entry<'a>, Reason<'a>> {
        let entry = self.read(tag)?;
        match self.admit(&entry, names_suffixes) {
            Ok(()) => Ok(entry),
            Err(fault) => Err(self.explain(fault, &entry)),
        }
    }

    /// Whether a tag may replace the current one. `names_suffixes`: the pattern matches suffixed tags only, so a suffix
    /// does not disqualify.
    pub(super) fn admit(&self, entry: &Entry<'a>, names_suffixes: bool) -> Result<(), Fault> {
        if self.start.as_ref().is_some_and(|start| start.tag == entry.tag) {
            return Err(Fault::Current);
        }
        if matches!(self.rule, Rule::Digest) {
            return Err(Fault::Tag);
        }
        match (entry.version_read(), &self.start) {
            (Some(version), start) => {
                self.admit_version(version, start.as_ref().and_then(Entry::version_read), names_suffixes)?;
            }
            (None, Some(start)) => admit_newer(entry.cmp_keys(start))?,
            (None, None) => {}
        }
        self.admit_guarded(entry)
    }

    fn admit_version(
        &self,
        version: Versioned<'_>,
        current: Option<Versioned<'_>>,
        names_suffixes: bool,
    ) -> Result<(), Fault> {
        let fits = |current: Versioned<'_>| current.is_same_family(version);
        if !names_suffixes && !current.map_or(version.version.has_no_variant(), fits) {
            return Err(Fault::Variant);
        }
        if current.is_some_and(|current| current.version.scheme != version.version.scheme) {
            return Err(Fault::Years);
        }
        if let Some(current) = current {
            admit_newer(version.cmp_versions(current))?;
        }
        let continues =
            |current: Versioned<'_>| current.version.is_prerelease() && current.version.core == version.version.core;
        let range = if let Rule::Semver(range) = self.rule { range.as_ref() } else { None };
        let may_be_prerelease = range.is_some() || names_suffixes || current.is_some_and(continues);
        if version.version.is_prerelease() && !may_be_prerelease {
            return Err(Fault::Prerelease);
        }
        if range.is_some_and(|range| !range.contains(&version.version.core, version.prerelease())) {
            return Err(Fault::Range);
        }
        match (self.rule, current) {
            (Rule::CalverPrerelease, Some(current)) if !raises_number(current, version) => Err(Fault::Word),
            // The bounds are on x.y.z: a prerelease of the next major version is beyond `semver-minor`.
            _ if self.bounds.as_ref().is_some_and(|bounds| !bounds.contain(&version.version.core)) => Err(Fault::Step),
            _ => Ok(()),
        }
    }

    fn admit_guarded(&self, entry: &Entry<'a>) -> Result<(), Fault> {
        let order = self.guards.iter().find_map(|(rule, first)| {
            let entry = Entry::current(rule, self.filter, entry.tag)?;
            compare_entries(rule, self.filter, &entry, first)
        });
        if order == Some(Ordering::Less) { Err(Fault::Behind) } else { Ok(()) }
    }

    /// Says a fault of [`Judge::admit`].
    pub(super) fn explain(&self, fault: Fault, entry: &Entry<'a>) -> Reason<'a> {
        let current = self.start.as_ref().map_or("", |start| start.tag);
        let range = if let Rule::Semver(Some(range)) = self.rule { range.as_str() } else { "" };
        match fault {
            Fault::Current => Reason::Current,
            Fault::Tag => Reason::TagStays,
            Fault::Variant => match &self.start {
                Some(start) => {
                    let has = self.has.get_or_init(|| start.family().to_string().into());
                    Reason::OtherVariant { own: entry.family(), current, has: Arc::clone(has) }
                }
                None => Reason::VariantAtStart(entry.family()),
            },
            Fault::Years => Reason::OtherYears { current },
            Fault::Older => Reason::Older { current },
            Fault::Behind => Reason::Older { current: self.guards.first().map_or(current, |(_, first)| first.tag) },
            Fault::Same => Reason::Same { current },
            Fault::Prerelease => Reason::Prerelease,
            Fault::Range => Reason::OutsideRange(range),
            Fault::Step => Reason::OutsideStep(Arc::clone(self.step.get_or_init(|| self.step(current)))),
            Fault::Word => Reason::OtherWord { current },
        }
    }

    fn step(&self, current: &str) -> Arc<str> {
        let display = |[major, minor, patch]: &Core| format!("{major}.{minor}.{patch}");
        let (least, below) = match &self.bounds {
            Some(bounds) => (display(&bounds.least), bounds.below.as_ref().map(display)),
            None => (String::new(), None),
        };
        let below = below.map(|below| format!(", <{below}")).unwrap_or_default();
        format!(">={least}{below} ({} from {current})", self.rule.kind()).into()
    }
}

impl Bounds {
    fn contain(&self, core: &Core) -> bool {
        *core >= self.least && self.below.as_ref().is_none_or(|below| core < below)
    }
}

fn admit_newer(order: Option<Ordering>) -> Result<(), Fault> {
    match order {
        Some(Ordering::Greater) => Ok(()),
        Some(Ordering::Less) => Err(Fault::Older),
        Some(Ordering::Equal) | None => Err(Fault::Same),
    }
}

fn bounds(rule: &Rule, current: Versioned<'_>) -> Option<Bounds> {
    let core = &current.version.core;
    let [major, minor, patch] = core.clone();
    let next_major = [major.next(), Number::ZERO, Number::ZERO];
    let next_minor = [major.clone(), minor.next(), Number::ZERO];
    let (least, below) = match rule {
        Rule::Patch => (core.clone(), Some(next_minor)),
        Rule::Minor => (core.clone(), Some(next_major)),
        Rule::SemverMajor | Rule::CalverMajor => (next_major, None),
        Rule::SemverMinor | Rule::CalverMinor => (next_minor, Some(next_major)),
        // From a prerelease, its own release is a patch.
        Rule::SemverPatch | Rule::CalverPatch if current.version.is_prerelease() => (core.clone(), Some(next_minor)),
        Rule::SemverPatch | Rule::CalverPatch => ([major, minor, patch.next()], Some(next_minor)),
        _ => return None,
    };
    Some(Bounds { least, below })
}

/// Whether only the number behind the same date and word is higher.
fn raises_number(current: Versioned<'_>, version: Versioned<'_>) -> bool {
    let same_date = current.version.core == version.version.core;
    match (current.word_and_number(), version.word_and_number()) {
        (Some((a, below)), Some((b, number))) => same_date && a.eq_ignore_ascii_case(b) && number > below,
        _ => false,
    }
}
