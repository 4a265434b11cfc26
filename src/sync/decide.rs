//! Which tag an Image should run: its rules in order, over what is known. Pure.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use crate::api::{CompiledRule, CompiledSpec, Order, Tagged};
use crate::policy::{self, Rule};

use super::gates::Waits;

/// What is known of an Image before the registry is asked.
#[derive(Clone, Copy, Debug, Default)]
pub struct Known<'a> {
    /// The settled tag.
    pub settled: Option<&'a str>,
    /// The tag being rolled out.
    pub in_flight: Option<&'a str>,
    /// The starting tag that was followed before, where no rule chooses a tag.
    pub followed: Option<&'a str>,
    /// The newest among the stamps of its namespace: counts as settled if the status was lost.
    pub stamped: Option<&'a Tagged>,
    /// The Image was made for the text of one container: its starting tag is that text's.
    pub of_one_text: bool,
    /// Tags that are not tried again, as text of [`Tagged`].
    pub rejected: Option<&'a BTreeSet<String>>,
}

impl Known<'_> {
    /// Whether a tag is not tried again, whatever its digest.
    pub fn is_rejected(&self, tag: &str) -> bool {
        self.rejected.is_some_and(|rejected| rejected.contains(tag))
    }
}

/// The tag that an Image should run.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Choice {
    /// The tag.
    pub tag: String,
    /// Name of the rule that chose it; empty if the current tag stays.
    pub rule: String,
    /// Why, in a sentence.
    pub why: String,
    /// The registry no longer lists it. It is kept: never backwards.
    pub missing: bool,
    /// What an Image that lost its status had settled, from the stamps of its namespace.
    pub adopted: Option<Tagged>,
    /// The manifest digest that counts for the tag; none if it is not known, or the registry has it no longer.
    pub digest: Option<String>,
    /// Newer tags that cannot be run, one sentence each: `1.4.3 passed over: …`.
    pub passed_over: Vec<String>,
    /// A pinned digest that the registry has no longer.
    pub gone: Option<String>,
    /// A newer tag that is not tried again, and why, in a sentence.
    pub rejected: Option<String>,
    /// A newer tag that has to wait.
    pub waits: Option<Box<Waits>>,
    /// A person asked for it; `why` says who: `approved by bob`.
    pub approved: bool,
}

/// Which rules choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// Those whose tags go by themselves.
    Free,
    /// Also those whose tags a person approves.
    All,
}

impl Rules {
    /// Names and rules, in order.
    fn of(self, spec: &CompiledSpec) -> (Vec<&str>, Vec<&Rule>) {
        let chooses = |rule: &&CompiledRule| rule.apply && (self == Self::All || rule.approval.is_none());
        spec.rules.iter().filter(chooses).map(|rule| (&*rule.name, &rule.rule)).unzip()
    }
}

/// The decision.
#[allow(clippy::large_enum_variant)] // one for each sync
#[derive(Clone, Debug, PartialEq)]
pub enum Verdict {
    /// The Image should run this tag, the current one or a newer.
    Tag(Choice),
    /// The registry lists nothing; whatever runs is kept.
    Empty,
    /// There is no current tag, and no rule allows one of those listed.
    None {
        /// Why, in a sentence.
        why: String,
    },
}

/// Decides over a complete list of tags. The answer does not depend on their order.
pub fn decide<T: AsRef<str>>(spec: &CompiledSpec, which: Rules, known: Known<'_>, tags: &[T]) -> Verdict {
    let order = Order::from(spec);
    // A stamp that no rule can compare is nothing to start from.
    let comparable = |tag: &str| order.compare(tag, tag).is_some();
    let counts = |stamped: &&Tagged| comparable(&stamped.tag) && !known.is_rejected(&stamped.tag);
    let stamped = known.stamped.filter(|_| known.settled.is_none()).filter(counts);
    let current = known.in_flight.or(known.settled).or(stamped.map(|stamped| stamped.tag.as_str()));
    let adopted = stamped.cloned();
    let kept = |tag: &str| {
        Verdict::Tag(Choice {
            tag: tag.to_owned(),
            why: "no rule allows a newer one".to_owned(),
            missing: !tags.iter().any(|t| t.as_ref() == tag),
            adopted: adopted.clone(),
            ..Choice::default()
        })
    };
    if tags.is_empty() {
        return Verdict::Empty;
    }
    let (names, rules) = which.of(spec);
    let start = start(spec, &order, &rules, current, &known);
    let offered: Vec<&str> = tags.iter().map(AsRef::as_ref).filter(|tag| !known.is_rejected(tag)).collect();
    let decision = policy::choose(&rules, &spec.filter, start, &offered);
    let why = match rules.is_empty() {
        true if spec.asks_approval() => "each rule asks for approval".to_owned(),
        true => "no rule has the action apply".to_owned(),
        false => decision.reason(),
    };
    match (decision.selected, decision.rule, start) {
        // A rule may choose what is behind the current tag by the order of one that only tells.
        (Some(tag), Some(_), _) if current.is_some_and(|c| order.compare(tag, c) == Some(Ordering::Less)) => {
            kept(current.unwrap_or(tag))
        }
        (Some(tag), Some(rule), _) => {
            let rule = names.get(rule).copied().unwrap_or_default().to_owned();
            Verdict::Tag(Choice { tag: tag.to_owned(), rule, why, adopted, ..Choice::default() })
        }
        // Of these a person decides on the first tag: one that could be compared would be the current one by now.
        _ if current.is_none() && which == Rules::Free && spec.asks_approval() => Verdict::None { why },
        // Newer ones than a rejected starting tag are taken, itself is not.
        (_, _, Some(tag)) if current != Some(tag) && known.is_rejected(tag) => match current {
            Some(current) => kept(current),
            None => Verdict::None { why: format!("the starting tag {tag} was rejected, and {why}") },
        },
        // The starting tag is an input to the choice: nobody runs it unless the registry lists it.
        (_, _, Some(tag)) if current != Some(tag) && !tags.iter().any(|t| t.as_ref() == tag) => match current {
            Some(current) => kept(current),
            None => Verdict::None { why: format!("the registry does not list the starting tag {tag}, and {why}") },
        },
        (_, _, Some(tag)) => kept(tag),
        (_, _, None) => Verdict::None { why },
    }
}

/// The tag that would be chosen, were it not rejected; none if `chosen` is.
pub fn refused<T: AsRef<str>>(spec: &CompiledSpec, known: Known<'_>, tags: &[T], chosen: &str) -> Option<String> {
    known.rejected.filter(|rejected| !rejected.is_empty())?;
    let Verdict::Tag(choice) = decide(spec, Rules::All, Known { rejected: None, ..known }, tags) else {
        return None;
    };
    Some(choice.tag).filter(|tag| tag != chosen && known.is_rejected(tag))
}

/// The current tag, or the starting tag if there is none or it has been raised above. Where only its digest is followed,
/// another starting tag than before is a decision. What only a rule calls newer that does not choose (it only tells) is not
/// raised: from there those that choose might start anew with each answer of theirs.
fn start<'a>(
    spec: &'a CompiledSpec,
    order: &Order,
    rules: &[&Rule],
    current: Option<&'a str>,
    known: &Known<'_>,
) -> Option<&'a str> {
    if let (Some(before), Some(base)) = (known.followed, spec.tag_to_follow())
        && before != base
    {
        return Some(base);
    }
    let is_raised = |base: &str, current: &str| {
        let by_choosing = rules.iter().find_map(|rule| policy::compare(rule, &spec.filter, base, current));
        let newer = Some(Ordering::Greater);
        order.compare(base, current) == newer && (rules.is_empty() || by_choosing == newer)
    };
    let is_known = |tag: &str| order.compare(tag, tag).is_some();
    match (current, spec.base_tag.as_deref()) {
        // A current tag like `latest` counts as none.
        (Some(current), Some(base)) if !is_known(current) && is_known(base) => Some(base),
        // Raised, or, of an Image that was made for it, turned to another variant.
        (Some(current), Some(base)) if is_raised(base, current) => Some(base),
        (Some(current), Some(base))
            if known.of_one_text && !order.keeps_tags() && order.is_another_family(base, current) =>
        {
            Some(base)
        }
        (Some(current), _) => Some(current),
        (None, base) => base,
    }
}

/// Whether the rules allow `tag`, which somebody approved, to replace what is current: the name of the rule, or why not.
pub fn allows<T: AsRef<str>>(
    spec: &CompiledSpec,
    known: Known<'_>,
    current: Option<&str>,
    tags: &[T],
    tag: &str,
) -> Result<String, String> {
    let order = Order::from(spec);
    if known.is_rejected(tag) {
        return Err("it was rejected; the annotation action=retry clears that".to_owned());
    }
    if let Some(current) = current.filter(|current| order.compare(tag, current) == Some(Ordering::Less)) {
        return Err(format!("it is older than {current}; to go back, reject {current} or undo its rollout"));
    }
    let (names, rules) = Rules::All.of(spec);
    let start = start(spec, &order, &rules, current, &known);
    // What stands between is of no account: each rule is asked for this tag alone.
    let alone = policy::choose(&rules, &spec.filter, start, &[tag]).rule.and_then(|rule| names.get(rule).copied());
    let explained = policy::choose(&rules, &spec.filter, start, tags).explain();
    if explained.candidates.contains(&tag) {
        return Ok(alone.unwrap_or_default().to_owned());
    }
    let lost = explained.rejected.iter().find(|rejection| rejection.tag == tag);
    Err(lost
        .map_or_else(|| "no rule allows it".to_owned(), |rejection| format!("no rule allows it: {}", rejection.reason)))
}

#[cfg(test)]
mod tests;
