//! Tags with rules and patterns, a line each: rule type, rule value, pattern, template, current tag, then the tags.
//! Nothing panics, what is chosen is a legal tag of the list or the current one, and choosing again changes nothing.
#![no_main]

use kimup::policy::{Filter, Rule, is_legal_tag, select};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let mut lines = text.split('\n');
    let mut line = || lines.next().filter(|line| !line.is_empty());
    let (kind, value, pattern, extract, current) = (line(), line(), line(), line(), line());
    let Ok(rule) = Rule::parse(kind.unwrap_or("semver"), value) else { return };
    let Ok(filter) = Filter::new(pattern, extract, &[]) else { return };
    let tags: Vec<&str> = lines.collect();
    let chosen = select(&rule, &filter, current, &tags).selected;
    let Some(tag) = chosen else { return };
    assert!(current == Some(tag) || (tags.contains(&tag) && is_legal_tag(tag)), "{tag:?}");
    assert_eq!(select(&rule, &filter, chosen, &tags).selected, chosen, "once more");
    let reversed: Vec<&str> = tags.iter().rev().copied().collect();
    assert_eq!(select(&rule, &filter, current, &reversed).selected, chosen, "in another order");
    assert_eq!(select(&rule, &filter, current, &tags).explain().candidates.first().copied().or(current), chosen);
});
