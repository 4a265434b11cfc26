//! The choice of a tag: pure, total, and with a reason for every tag (design section 3).

use std::borrow::Borrow;
use std::collections::BTreeSet;

use super::digits::{natural_cmp, natural_key};
use super::judge::Judge;
use super::order::Entry;
use super::pattern::shorten;
use super::reason::Reason;
use super::rule::{Filter, Rule};

pub use super::order::compare;

/// What [`select`] or [`choose`] decided. Borrows what it was given; the lists and sentences are made when asked.
#[derive(Clone, Debug)]
pub struct Decision<'a, T> {
    /// The tag to run: the current one if nothing is newer, also when it is no longer listed. `None` if nothing
    /// matches and there is no current tag that a rule can compare: the caller leaves everything as it is.
    pub selected: Option<&'a str>,
    /// Whether `selected` is another tag than the current one.
    pub changed: bool,
    /// Position of the rule that chose `selected`; none if it is not changed.
    pub rule: Option<usize>,
    filter: &'a Filter,
    current: Option<&'a str>,
    tags: &'a [T],
    stages: Vec<Stage<'a>>,
}

/// One rule, with what it began with.
#[derive(Clone, Copy, Debug)]
struct Stage<'a> {
    rule: &'a Rule,
    current: Option<&'a str>,
    names_suffixes: bool,
}

/// Every distinct tag of the input is either a candidate or rejected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation<'a> {
    /// The tags that may replace the current one, best first; of several rules the last one's come first.
    pub candidates: Vec<&'a str>,
    /// All other tags, in descending natural order.
    pub rejected: Vec<Rejection<'a>>,
}

/// A tag that is no candidate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection<'a> {
    pub tag: &'a str,
    /// Why; under several rules the reason of the rule where the tag came furthest, of equal ones the last.
    pub reason: Reason<'a>,
}

/// Chooses among `tags` by one rule, starting from `current`. The order and repetition of tags do not matter, selecting
/// again from the answer changes nothing, and a current tag that the rule can compare is never gone behind. `latest` and
/// a current tag that the rule cannot read count as none. Costs one reading per tag and no memory that grows with them.
pub fn select<'a, T: AsRef<str>>(
    rule: &'a Rule,
    filter: &'a Filter,
    current: Option<&'a str>,
    tags: &'a [T],
) -> Decision<'a, T> {
    choose(std::slice::from_ref(rule), filter, current, tags)
}

/// Chooses by several rules, as [`select`] does by one: each starts from the tag that the one before chose. A tag is not
/// chosen if the first rule that can compare it with `current` calls it older.
pub fn choose<'a, R: Borrow<Rule>, T: AsRef<str>>(
    rules: &'a [R],
    filter: &'a Filter,
    current: Option<&'a str>,
    tags: &'a [T],
) -> Decision<'a, T> {
    let stages = Vec::with_capacity(rules.len());
    let mut decision = Decision { selected: None, changed: false, rule: None, filter, current, tags, stages };
    let all: Vec<&Rule> = rules.iter().map(Borrow::borrow).collect();
    let mut at = current;
    for (position, &rule) in all.iter().enumerate() {
        let judge = decision.judge(rule, at, &all);
        let (best, names_suffixes) = best(&judge, tags);
        decision.stages.push(Stage { rule, current: at, names_suffixes });
        if let Some(best) = best.filter(|best| Some(*best) != at) {
            at = Some(best);
            decision.rule = Some(position);
        } else if judge.start().is_some() || best.is_some() {
            // The current tag is one that this rule knows: it may stay.
            decision.selected = at;
        }
        if decision.rule.is_some() {
            decision.selected = at;
        }
    }
    decision.changed = decision.selected.is_some() && decision.selected != current;
    if !decision.changed {
        decision.rule = None;
    }
    decision
}

/// The best candidate, and whether the pattern names suffixed tags only. Both cases of the latter are followed, as only
/// the last tag settles it.
fn best<'a, T: AsRef<str>>(judge: &Judge<'a>, tags: &'a [T]) -> (Option<&'a str>, bool) {
    let mut names_suffixes = judge.may_name_suffixes();
    let [mut plain, mut suffixed]: [Option<Entry<'a>>; 2] = [None, None];
    let mut window = judge.window();
    let keep = |best: &mut Option<Entry<'a>>, entry: &Entry<'a>, suffixed: bool| {
        // Most tags are behind the best one so far, which is known sooner than whether they may be chosen.
        let ahead = best.as_ref().is_none_or(|best| entry.rank(best, judge.start()).is_gt());
        let better = ahead && judge.admit(entry, suffixed).is_ok();
        if better {
            *best = Some(entry.clone());
        }
        better
    };
    for tag in tags {
        let tag = tag.as_ref();
        // While it is open what the pattern names, each tag may settle it.
        if !names_suffixes && window.as_ref().is_some_and(|window| judge.is_outside(window, tag)) {
            continue;
        }
        let Ok(entry) = judge.read(tag) else { continue };
        names_suffixes = names_suffixes && !entry.is_plain_version();
        if keep(&mut plain, &entry, false)
            && let (Some(window), Some(best)) = (&mut window, entry.version_read())
        {
            window.raise(&best.version.core);
        }
        if names_suffixes {
            keep(&mut suffixed, &entry, true);
        }
    }
    let best = if names_suffixes { suffixed } else { plain };
    (best.map(|best| best.tag), names_suffixes)
}

impl<'a, T: AsRef<str>> Decision<'a, T> {
    fn judge(&self, rule: &'a Rule, current: Option<&'a str>, rules: &[&'a Rule]) -> Judge<'a> {
        let judge = Judge::new(rule, self.filter, current);
        match self.current {
            // What all rules order alike needs no guard.
            Some(first) if !order_alike(rules) => judge.guarded_by(rules.iter().copied(), first),
            _ => judge,
        }
    }

    /// Every tag with its reason. Costs a sort of the tags, and some hundred bytes for each.
    pub fn explain(&self) -> Explanation<'a> {
        let rules: Vec<&Rule> = self.stages.iter().map(|stage| stage.rule).collect();
        let judges: Vec<Judge<'a>> = self.stages.iter().map(|it| self.judge(it.rule, it.current, &rules)).collect();
        let mut found: Vec<Vec<Entry<'a>>> = judges.iter().map(|_| Vec::new()).collect();
        let mut rejected = Vec::new();
        for tag in self.descending() {
            let mut lost: Option<Reason<'a>> = None;
            let mut is_candidate = false;
            for ((stage, judge), found) in self.stages.iter().zip(&judges).zip(&mut found) {
                match judge.verdict(tag, stage.names_suffixes) {
                    Ok(entry) => {
                        found.push(entry);
                        is_candidate = true;
                    }
                    Err(reason) if lost.as_ref().is_none_or(|lost| reason.progress() >= lost.progress()) => {
                        lost = Some(reason);
                    }
                    Err(_) => {}
                }
            }
            if let Some(reason) = lost.filter(|_| !is_candidate) {
                rejected.push(Rejection { tag, reason });
            }
        }
        for (judge, entries) in judges.iter().zip(&mut found) {
            // They are in natural order, which most rules nearly keep.
            entries.sort_by(|a, b| b.rank(a, judge.start()));
        }
        let mut candidates: Vec<&str> = found.iter().rev().flatten().map(|entry| entry.tag).collect();
        if judges.len() > 1 {
            let mut seen = BTreeSet::new();
            candidates.retain(|tag| seen.insert(*tag));
        }
        Explanation { candidates, rejected }
    }

    /// Each tag once, in descending natural order.
    fn descending(&self) -> impl Iterator<Item = &'a str> {
        let mut tags: Vec<_> = self.tags.iter().map(|tag| (natural_key(tag.as_ref()), tag.as_ref())).collect();
        tags.sort_unstable_by(|(key, tag), (other_key, other)| {
            // Most are told apart by their beginning.
            other_key.cmp(key).then_with(|| natural_cmp(other, tag)).then_with(|| other.cmp(tag))
        });
        tags.dedup_by_key(|(_, tag)| *tag);
        tags.into_iter().map(|(_, tag)| tag)
    }

    /// One sentence for a human: why this tag. Costs at most one look at each tag.
    pub fn reason(&self) -> String {
        let rules = self.stages.iter().map(|stage| stage.rule.to_string()).collect::<Vec<_>>().join(" or ");
        let chosen_by = self.rule.and_then(|rule| self.stages.get(rule));
        if let (Some(selected), Some(stage)) = (self.selected, chosen_by) {
            let newest = format!("{selected} is the newest tag that {} allows", stage.rule);
            return match stage.current {
                Some(current) if Entry::current(stage.rule, self.filter, current).is_some() => {
                    format!("{newest} from {current}")
                }
                Some(current) => format!("{newest}: current {:?} cannot be compared", shorten(current)),
                None => format!("{newest}: there is no current tag"),
            };
        }
        if self.stages.is_empty() {
            return "no rule is given".to_owned();
        }
        if let [Stage { rule: Rule::Digest, .. }] = self.stages[..] {
            return match self.selected {
                Some(tag) => format!("{tag} stays: digest keeps the tag and follows its digest"),
                None => "no tag: digest needs a tag to follow, set the current or base tag".to_owned(),
            };
        }
        match self.selected {
            Some(tag) if self.tags.is_empty() => format!("{tag} stays: the list of tags is empty"),
            Some(tag) if self.tags.iter().any(|it| it.as_ref() == tag) => {
                format!("{tag} stays: no tag listed is newer by {rules}")
            }
            Some(tag) => format!("{tag} stays although it is not listed any more: no tag listed is newer by {rules}"),
            None if self.tags.is_empty() => "no tag: the list of tags is empty".to_owned(),
            None => format!("no tag: none of those listed matches {rules}"),
        }
    }
}

/// Whether each rule can read what each other one can, and orders it alike.
fn order_alike(rules: &[&Rule]) -> bool {
    rules
        .windows(2)
        .all(|pair| pair[0] == pair[1] || (pair[0].grammar().is_some() && pair[0].grammar() == pair[1].grammar()))
}

#[cfg(test)]
mod tests;
