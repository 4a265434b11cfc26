use std::sync::LazyLock;

use proptest::prelude::*;
use proptest::sample::{Index, select as one_of};

use super::*;
use crate::policy::is_legal_tag;

/// Tags that are alike enough to meet in every rule, and some that are not tags at all. Made once: a case takes some.
static TAGS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let cores =
        ["0.9.0", "1.0.0", "01.0.0", "1.0.1", "1.2.0", "1.9.0", "1.10.0", "2.0.0", "2.1.10", "1.2", "3", "1.2.3.4"];
    let suffixes = [
        "",
        "-rc.1",
        "-rc2",
        "-RC.10",
        "-0",
        "-alpine",
        "-alpine-r1",
        "-slim",
        "-rc.1-alpine",
        "-r5",
        "rc1",
        "-a1b2c3d",
    ];
    let dates =
        ["2024", "24", "2024.01", "2024.1", "2024.0.0", "2024.01.02", "24.04", "24.10.1", "2025.02", "v2024.02"];
    let words = ["", "-dev.1", "-dev.2", "-rc.1", "-build.3", "-build.12", "-slim"];
    let plain = [
        "latest",
        "main",
        "stable",
        "V1.2.0",
        "9",
        "10",
        "010",
        "0",
        "1.5",
        "99999999999999999999",
        "1700000000",
        "1600000000",
        "1700000000000",
        "1700000000001",
        "20240101120000",
        "main-9-1700000000",
        "main-10-1600000000",
        "preview-1700000001",
        "build-9",
        "build-10",
        "alpha",
        "Bravo",
        "_x",
        "",
        "a:b",
        "-1",
        "1.0.0+x",
        "é",
        "tag ",
        "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855.sig",
    ];
    let versions = ["", "v", "dev-"].into_iter().flat_map(|prefix| {
        cores
            .into_iter()
            .flat_map(move |core| suffixes.into_iter().map(move |suffix| format!("{prefix}{core}{suffix}")))
    });
    let dates = dates.into_iter().flat_map(|date| words.into_iter().map(move |word| format!("{date}{word}")));
    // As many numbers, words and oddities as there are versions.
    let plain = plain.into_iter().cycle().take(240).map(str::to_owned);
    versions.chain(dates.cycle().take(200)).chain(plain).collect()
});

static RULES: LazyLock<Vec<Rule>> = LazyLock::new(|| {
    let texts = [
        "patch",
        "minor",
        "major",
        "semver-major",
        "semver-minor",
        "semver-patch",
        "semver",
        "semver=>=1.0.0-0 <3",
        "semver=^1 || ~2.1",
        "semver=!=1.2.x",
        "calver-major",
        "calver-minor",
        "calver-patch",
        "calver-prerelease",
        "regex=^v?[01]",
        "regex=[0-9]$",
        "always",
        "timestamp",
        "numerical",
        "alphabetical",
        "desc",
        "digest",
    ];
    texts.into_iter().map(rule).collect()
});

static FILTERS: LazyLock<Vec<Filter>> = LazyLock::new(|| {
    let filters = [
        (None, None, None),
        (None, None, Some("^1")),
        (None, None, Some("rc|alpine")),
        (Some(".*"), None, None),
        (Some(r"^\d+.\d+.\d+$"), None, None),
        (Some(r"dev-\d+.\d+.\d+$"), None, Some("1$")),
        (Some("^(dev|main|preview)-"), None, None),
        (Some("preview-*"), None, None),
        (Some("-alpine"), None, None),
        (Some("-(alpine|slim|rc|dev|build)"), None, None),
        (Some(r"^v?(\d+)\.(\d+)\.(\d+)"), Some("$2.$1.$3"), None),
        (Some(r"^v?(?<n>\d+)"), Some("${n}"), Some("^2")),
        (Some(r"^[a-z]+-(\d+)-(?<ts>\d+)?"), Some("$ts"), None),
        (Some(r"(\d+)"), Some("$1$nothing"), None),
    ];
    let filters = filters.map(|(pattern, extract, exclude)| {
        let exclude: Vec<String> = exclude.into_iter().map(str::to_owned).collect();
        Filter::new(pattern, extract, &exclude).unwrap()
    });
    filters.into_iter().collect()
});

fn tag() -> impl Strategy<Value = &'static str> {
    any::<Index>().prop_map(|index| index.get(&TAGS).as_str())
}

fn tags() -> impl Strategy<Value = Vec<&'static str>> {
    prop::collection::vec(tag(), 0..14)
}

fn any_rule() -> impl Strategy<Value = &'static Rule> {
    any::<Index>().prop_map(|index| index.get(&RULES))
}

fn any_filter() -> impl Strategy<Value = &'static Filter> {
    any::<Index>().prop_map(|index| index.get(&FILTERS))
}

/// What holds for one rule and for several.
fn check_decision(
    rules: &[&Rule],
    filter: &Filter,
    current: Option<&str>,
    tags: &[&str],
) -> Result<Option<String>, TestCaseError> {
    let decision = choose(rules, filter, current, tags);
    let explanation = decision.explain();
    prop_assert!(!decision.reason().is_empty());

    let mut turned: Vec<&str> = tags.iter().rev().copied().collect();
    turned.extend(tags.iter().step_by(2));
    let other = choose(rules, filter, current, &turned);
    prop_assert_eq!(other.selected, decision.selected, "order or repetition matters");
    prop_assert_eq!((other.rule, other.reason()), (decision.rule, decision.reason()));
    prop_assert_eq!(other.explain(), explanation.clone(), "order or repetition matters");

    let mut seen = explanation.candidates.clone();
    seen.extend(explanation.rejected.iter().map(|rejection| rejection.tag));
    seen.sort_unstable();
    let distinct: BTreeSet<&str> = tags.iter().copied().collect();
    prop_assert_eq!(seen, distinct.into_iter().collect::<Vec<_>>(), "a tag is told twice or not at all");
    for rejection in &explanation.rejected {
        prop_assert!(!rejection.reason.to_string().is_empty());
    }

    prop_assert_eq!(decision.changed, decision.selected.is_some() && decision.selected != current);
    prop_assert_eq!(decision.changed, decision.rule.is_some());
    let usable = |tag: &str| rules.iter().any(|rule| compare(rule, filter, tag, tag).is_some());
    match (decision.selected, current) {
        (Some(selected), _) if decision.changed => {
            prop_assert!(tags.contains(&selected) && is_legal_tag(selected));
            prop_assert_eq!(explanation.candidates.first(), Some(&selected));
        }
        // Of several rules one may lead back to where another one left. A current tag that counts as none (`latest`) is a
        // candidate like any other, and may be the best one.
        (Some(selected), _) => {
            let best = explanation.candidates.first().is_none_or(|best| *best == selected);
            prop_assert!(rules.len() > 1 || best, "a candidate is not chosen");
        }
        (None, current) => {
            prop_assert!(explanation.candidates.is_empty());
            prop_assert!(!current.is_some_and(usable), "a usable current tag is lost");
        }
    }
    if let (Some(selected), Some(current), true) = (decision.selected, current, decision.changed) {
        let order = rules.iter().find_map(|rule| compare(rule, filter, selected, current));
        prop_assert_ne!(order, Some(Ordering::Less), "went backwards");
        prop_assert!(rules.len() > 1 || order.is_some() || !usable(current) || selected == "latest", "not compared");
        prop_assert!(rules.len() > 1 || order != Some(Ordering::Equal), "the same in another spelling");
    }
    Ok(decision.selected.map(str::to_owned))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_always_holds_for_a_rule(
        rule in any_rule(),
        filter in any_filter(),
        current in prop::option::of(tag()),
        mut tags in tags(),
        list_current in any::<bool>(),
    ) {
        tags.extend(current.filter(|_| list_current));
        let selected = check_decision(&[rule], filter, current, &tags)?;
        let again = select(rule, filter, selected.as_deref(), &tags);
        prop_assert_eq!(again.selected, selected.as_deref(), "selecting again changes the answer");
        prop_assert!(!again.changed);
    }

    #[test]
    fn what_always_holds_for_several_rules(
        rules in prop::collection::vec(any_rule(), 1..4),
        filter in any_filter(),
        current in prop::option::of(tag()),
        tags in tags(),
    ) {
        check_decision(&rules, filter, current, &tags)?;
    }

    #[test]
    fn steps_beside_each_other_come_to_rest(
        rules in prop::collection::vec(
            one_of(vec!["patch", "minor", "major", "semver-patch", "semver-minor", "semver-major", "semver"]).prop_map(rule), 1..4),
        filter in any_filter(),
        current in prop::option::of(tag()),
        tags in tags(),
    ) {
        let selected = choose(&rules, filter, current, &tags).selected;
        let mut at = selected;
        // Each rule may find something of its own from where another led, but only upwards.
        for _ in 0..rules.len() + tags.len() {
            let next = choose(&rules, filter, at, &tags).selected;
            if next == at {
                break;
            }
            at = next;
        }
        prop_assert_eq!(choose(&rules, filter, at, &tags).selected, at);
    }

    #[test]
    fn the_order_is_an_order(rule in any_rule(), filter in any_filter(), a in tag(), b in tag(), c in tag()) {
        let order = |a: &str, b: &str| compare(rule, filter, a, b);
        prop_assert_eq!(order(a, b), order(b, a).map(Ordering::reverse));
        if filter.pattern().is_none() && order(a, b) == Some(Ordering::Less) && order(b, c) == Some(Ordering::Less) {
            prop_assert_eq!(order(a, c), Some(Ordering::Less));
        }
    }

    #[test]
    fn hostile_rules_and_tags_are_refused_or_work(
        kind in any::<Index>(),
        policy in hostile(12),
        value in hostile(20),
        template in hostile(8),
        current in hostile(20),
        tags in prop::collection::vec(hostile(20), 0..5),
    ) {
        let known = kind.get(&RULES);
        let parsed =
            [Rule::parse(known.kind(), Some(&value)), Rule::parse(&policy, Some(&value)), Rule::parse_policy(&policy)];
        let rules: Vec<Rule> = parsed.into_iter().flatten().chain([known.clone()]).collect();
        let filter = Filter::new(Some(&value), Some(&template), std::slice::from_ref(&policy));
        for filter in [Filter::default()].iter().chain(&filter) {
            let decision = choose(&rules, filter, Some(&current), &tags);
            let told: usize = decision.explain().rejected.iter().map(|it| it.reason.to_string().len()).sum();
            prop_assert!(told + decision.reason().len() > 0);
        }
    }
}

/// Anything, mostly of what rules, templates and tags are made of.
fn hostile(length: usize) -> impl Strategy<Value = String> {
    let known = one_of("0123456789.-_vVxX*<>=!~^|, $(){}[]?+\\rc:dev".chars().collect::<Vec<_>>());
    prop::collection::vec(prop_oneof![9 => known, 1 => any::<char>()], 0..length)
        .prop_map(|chars| chars.into_iter().collect())
}
