//! The answer for people: the winner, why, and the losers grouped by reason. Pure.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::HashMap;
use std::fmt::Write;

use crate::policy::is_legal_tag;

use super::Report;

/// Most reasons that are told apart: a reason may quote the tag, and then each tag has its own.
const MAX_GROUPS: usize = 15;
/// Of too many reasons, those for fewer than one in so many of the losers are told together with others like them.
const FOLDED: usize = 50;
/// Most characters shown of a tag that is no legal one.
const MAX_SHOWN: usize = 40;
/// Width of the names on the left.
const LABEL: usize = 12;

/// The losers for one reason.
struct Group<'a> {
    reason: String,
    tags: Vec<&'a str>,
}

/// The text, in lines of at most `width` columns unless a single word is longer.
pub fn render(report: &Report<'_>, width: usize) -> String {
    let mut out = String::new();
    let shown = |tag: Option<&str>| tag.map_or_else(|| "none".to_owned(), |tag| shown(tag).into_owned());
    let change = if report.changed { "" } else { " (unchanged)" };
    field(
        &mut out,
        "Selected:",
        &format!("{}{}", shown(report.selected), report.selected.map_or("", |_| change)),
        width,
    );
    field(&mut out, "Current:", &shown(report.current), width);
    field(&mut out, "Why:", &report.reason, width);
    field(&mut out, "Candidates:", &thousands(report.candidates.len()), width);
    if !report.candidates.is_empty() {
        examples(&mut out, &report.candidates, LABEL + 1, width);
    }
    field(&mut out, "Rejected:", &thousands(report.rejected.len()), width);
    groups(&mut out, report, width);
    out
}

fn groups(out: &mut String, report: &Report<'_>, width: usize) {
    let mut groups = grouped(report);
    if groups.len() > MAX_GROUPS {
        groups = folded(groups, report.rejected.len() / FOLDED);
    }
    // Stable: of two reasons for as many tags the one that came first.
    groups.sort_by_key(|group| Reverse(group.tags.len()));
    let kept = if groups.len() > MAX_GROUPS { MAX_GROUPS - 1 } else { groups.len() };
    let others = groups.split_off(kept);
    let rest = Group {
        reason: format!("{} other reasons (-o json has each)", thousands(others.len())),
        tags: others.iter().flat_map(|group| &group.tags).copied().collect(),
    };
    groups.extend(Some(rest).filter(|rest| !rest.tags.is_empty()));
    let column = groups.iter().map(|group| thousands(group.tags.len()).len()).max().unwrap_or(0);
    let indent = column + 4;
    for group in groups {
        let _ = write!(out, "\n  {:>column$}  ", thousands(group.tags.len()));
        wrap(out, &group.reason, indent, width);
        examples(out, &group.tags, indent, width);
    }
}

/// By reason, in the order of the first tag of each.
fn grouped<'a>(report: &Report<'a>) -> Vec<Group<'a>> {
    let mut groups: Vec<Group<'a>> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    let mut reason = String::new();
    for lost in &report.rejected {
        reason.clear();
        let _ = write!(reason, "{}", lost.reason);
        let place = if let Some(place) = places.get(&reason) {
            *place
        } else {
            places.insert(reason.clone(), groups.len());
            groups.push(Group { reason: reason.clone(), tags: Vec::new() });
            groups.len() - 1
        };
        groups[place].tags.push(lost.tag);
    }
    groups
}

/// Groups of at most `small` tags become one with those whose reasons begin alike.
fn folded(groups: Vec<Group<'_>>, small: usize) -> Vec<Group<'_>> {
    let mut out: Vec<Group<'_>> = Vec::new();
    // Where the first of its like is, and how many follow it.
    let mut alike: HashMap<String, (usize, usize)> = HashMap::new();
    for group in groups {
        let beginning = group.reason.split(['"', ':']).next().unwrap_or_default();
        match alike.get_mut(beginning).filter(|_| group.tags.len() <= small) {
            Some((first, others)) => {
                *others += 1;
                out[*first].tags.extend(group.tags);
            }
            None if group.tags.len() <= small => {
                alike.insert(beginning.to_owned(), (out.len(), 0));
                out.push(group);
            }
            None => out.push(group),
        }
    }
    for (first, others) in alike.into_values().filter(|(_, others)| *others > 0) {
        let reasons = if others == 1 { "reason" } else { "reasons" };
        let _ = write!(out[first].reason, " (and {} {reasons} like it)", thousands(others));
    }
    out
}

fn field(out: &mut String, name: &str, value: &str, width: usize) {
    let _ = write!(out, "{name:LABEL$} ");
    wrap(out, value, LABEL + 1, width);
}

/// Words of `text` to the end of the line, and further lines behind an indent.
fn wrap(out: &mut String, text: &str, indent: usize, width: usize) {
    let mut column = indent;
    for word in text.split(' ') {
        let length = word.chars().count();
        if column > indent {
            if column + 1 + length > width {
                let _ = write!(out, "\n{:indent$}", "");
                column = indent;
            } else {
                out.push(' ');
                column += 1;
            }
        }
        out.extend(word.chars().map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c }));
        column += length;
    }
    out.push('\n');
}

/// As many tags as fit into one line, at least one, and how many more there are.
fn examples(out: &mut String, tags: &[&str], indent: usize, width: usize) {
    let _ = write!(out, "{:indent$}", "");
    let mut column = indent;
    for (at, tag) in tags.iter().enumerate() {
        let tag = shown(tag);
        let left = tags.len() - at - 1;
        let more = if left == 0 { 0 } else { more(left).chars().count() };
        let separator = if at == 0 { 0 } else { 2 };
        let end = column + separator + tag.chars().count();
        if at > 0 && end + more > width {
            out.push_str(&self::more(tags.len() - at));
            break;
        }
        out.push_str(if at == 0 { "" } else { ", " });
        out.push_str(&tag);
        column = end;
    }
    out.push('\n');
}

fn more(count: usize) -> String {
    format!(", … and {} more", thousands(count))
}

/// A legal tag as it is; anything else short, quoted and without what a terminal would act on.
fn shown(tag: &str) -> Cow<'_, str> {
    if is_legal_tag(tag) {
        return Cow::Borrowed(tag);
    }
    let start: String = tag.chars().take(MAX_SHOWN).collect();
    let cut = if start.len() < tag.len() { "…" } else { "" };
    Cow::Owned(format!("{start:?}{cut}"))
}

/// `12,345`
fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::select::{Choice, report};
    use crate::policy::{Filter, Rule};

    fn rendered(policy: &str, current: Option<&str>, tags: &[&str], width: usize) -> String {
        let rules = vec![Rule::parse_policy(policy).unwrap()];
        let choice = Choice { rules, filter: Filter::default(), current: current.map(str::to_owned) };
        render(&report(&choice, tags), width)
    }

    #[test]
    fn few_tags_are_all_shown() {
        let text = rendered("minor", Some("1.2.0"), &["1.2.0", "1.2.3", "1.3.0", "2.0.0", "1.1.0", "1.0.0"], 100);
        let expected = "\
Selected:    1.3.0
Current:     1.2.0
Why:         1.3.0 is the newest tag that minor allows from 1.2.0
Candidates:  2
             1.3.0, 1.2.3
Rejected:    4

  2  older than current 1.2.0
     1.1.0, 1.0.0

  1  outside >=1.2.0, <2.0.0 (minor from 1.2.0)
     2.0.0

  1  is the current tag
     1.2.0
";
        assert_eq!(text, expected);
    }

    #[test]
    fn nothing_to_say_is_said() {
        let none = rendered("minor", None, &[], 100);
        assert!(none.starts_with("Selected:    none\nCurrent:     none\nWhy:         no tag: "), "{none}");
        assert!(none.ends_with("Candidates:  0\nRejected:    0\n"), "{none}");
        let same = rendered("minor", Some("1.2.0"), &["1.2.0"], 100);
        assert!(same.starts_with("Selected:    1.2.0 (unchanged)\n"), "{same}");
    }

    #[test]
    fn many_tags_stay_readable() {
        let tags: Vec<String> = (0..5_000).map(|n| format!("0.{}.{}", n / 100, n % 100)).collect();
        // Each of these has a reason of its own.
        let odd: Vec<String> = (0..90).map(|n| format!("1.0.0odd{n}")).collect();
        let all: Vec<&str> = tags.iter().chain(&odd).map(String::as_str).collect();
        for width in [40, 80, 100, 200] {
            let text = rendered("minor", Some("1.0.0"), &all, width);
            assert!(text.contains("  5,000  older than current 1.0.0\n         0.49.99, "), "{text}");
            assert!(text.lines().count() < 20, "{text}");
            let longest = text.lines().max_by_key(|line| line.chars().count()).unwrap();
            assert!(longest.chars().count() <= width, "{width}: {longest}");
        }
        let text = rendered("minor", Some("1.0.0"), &all, 100);
        let odd = "     90  not a version x.y.z: a dash is missing before \"odd89\" (and 89 reasons like it)\n         1.0.0odd89,";
        assert!(text.contains(odd), "{text}");
        let text = rendered("minor", Some("1.0.0"), &all, 60);
        assert!(text.contains("0.49.99, 0.49.98, 0.49.97, … and 4,997 more\n"), "{text}");
    }

    #[test]
    fn reasons_that_nothing_is_like_are_counted() {
        let groups: Vec<Group<'_>> =
            (0..40).map(|n| Group { reason: format!("reason {n}"), tags: vec!["1"; n] }).collect();
        assert_eq!(folded(groups, 100).len(), 40);
        let variants: Vec<String> = (0..400).map(|n| format!("1.0.{n}-v{}x", n % 20)).collect();
        let all: Vec<&str> = variants.iter().map(String::as_str).collect();
        let text = rendered("minor", Some("1.0.0"), &all, 100);
        assert_eq!(text.matches(" of variant ").count() + text.matches("variant \"").count(), 14, "{text}");
        assert!(text.contains("6 other reasons (-o json has each)\n"), "{text}");
    }

    #[test]
    fn what_a_terminal_would_act_on_is_not_printed() {
        let long = "x".repeat(1_000);
        let text = rendered("minor", None, &["a\x1b[31mb", "\u{7}", &long, "1.0.0\u{9b}1"], 100);
        assert!(!text.contains(|c: char| c.is_control() && c != '\n'), "{text:?}");
        assert!(text.contains(r#""a\u{1b}[31mb""#) && !text.contains(&long), "{text}");
    }

    #[test]
    fn numbers_are_grouped() {
        let check = |number: usize, expected: &str| assert_eq!(thousands(number), expected);
        check(0, "0");
        check(999, "999");
        check(1_000, "1,000");
        check(1_234_567, "1,234,567");
    }
}
