use proptest::prelude::*;

use super::*;
use crate::policy::is_legal_tag;

/// Tags that are alike enough to meet in every rule, and some that are not tags at all.
fn tag() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "v?0{0,1}[0-3]\\.[0-3]\\.(0|1|9|10)",
        6 => "v?[0-2]\\.[0-2]\\.[0-2]-(rc|alpha|RC)?[.]?[0-2](-alpine)?",
        4 => "[0-2]\\.[0-2]\\.[0-2]-(alpine|slim|debian-12)(-r(0|1|10))?",
        2 => "[0-2]\\.[0-2]\\.[0-2]-r[0-2]",
        2 => "(dev|prod)-v?[0-2]\\.[0-2](\\.[0-2])?",
        1 => "[vV]?[0-9]{1,30}(\\.[0-9]{1,30}){0,3}(rc[0-9])?",
        1 => "latest|main|1|2\\.1|1\\.2-alpine",
        1 => "\\PC{0,12}",
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    let texts = [
        "semver-major",
        "semver-minor",
        "semver-patch",
        "semver",
        "semver=>=1.0.0-0 <3",
        "semver=^1 || ~2.1",
        "semver=!=1.1.x",
        "regex=^v?[01]",
        "always",
    ];
    prop::sample::select(texts.to_vec()).prop_map(rule)
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let filters = [
        (None, None, None),
        (None, None, Some("^1")),
        (Some(".*"), None, None),
        (Some(r"^\d+.\d+.\d+$"), None, None),
        (Some(r"dev-\d+.\d+.\d+$"), None, Some("1$")),
        (Some("-alpine"), None, None),
        (Some("-(alpine|slim|rc)"), None, None),
        (Some(r"^v?(\d+)\.(\d+)\.(\d+)"), Some("$2.$1.$3"), None),
        (Some(r"^v?(?<n>\d+)"), Some("${n}"), None),
    ];
    prop::sample::select(filters.to_vec()).prop_map(|(pattern, extract, exclude)| {
        let exclude: Vec<String> = exclude.into_iter().map(str::to_owned).collect();
        Filter::new(pattern, extract, &exclude).unwrap()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 800, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_always_holds(
        rule in any_rule(),
        filter in any_filter(),
        current in prop::option::of(tag()),
        tags in prop::collection::vec(tag(), 0..14),
        list_current in any::<bool>(),
    ) {
        let mut tags = tags;
        tags.extend(current.clone().filter(|_| list_current));
        let current = current.as_deref();
        let decision = select(&rule, &filter, current, &tags);

        let mut turned: Vec<&String> = tags.iter().rev().collect();
        turned.extend(tags.iter().step_by(2));
        prop_assert_eq!(&select(&rule, &filter, current, &turned), &decision, "order or repetition matters");

        let again = select(&rule, &filter, decision.selected.as_deref(), &tags);
        prop_assert_eq!(&again.selected, &decision.selected, "selecting again changes the answer");

        let mut seen: Vec<&str> = decision.candidates.iter().map(String::as_str).collect();
        seen.extend(decision.rejected.iter().map(|rejection| rejection.tag.as_str()));
        seen.sort_unstable();
        let distinct: BTreeSet<&str> = tags.iter().map(String::as_str).collect();
        prop_assert_eq!(seen, distinct.into_iter().collect::<Vec<_>>(), "a tag is told twice or not at all");

        prop_assert_eq!(decision.changed, decision.selected.is_some() && decision.selected.as_deref() != current);
        let usable = current.is_some_and(|tag| compare(&rule, &filter, tag, tag).is_some());
        match (&decision.selected, current) {
            (Some(selected), _) if tags.contains(selected) && decision.changed => {
                prop_assert!(is_legal_tag(selected));
                prop_assert_eq!(decision.candidates.first(), Some(selected));
            }
            (Some(selected), Some(current)) => prop_assert_eq!(selected, current),
            (Some(selected), None) => prop_assert!(false, "{} comes from nowhere", selected),
            (None, _) => prop_assert!(!usable && decision.candidates.is_empty(), "a usable current tag is lost"),
        }
        if let (Some(selected), Some(current), true) = (&decision.selected, current, decision.changed) {
            prop_assert_ne!(compare(&rule, &filter, selected, current), Some(Ordering::Less), "went backwards");
            prop_assert!(!usable || compare(&rule, &filter, selected, current) != Some(Ordering::Equal));
        }
    }

    #[test]
    fn the_order_is_an_order(rule in any_rule(), filter in any_filter(), a in tag(), b in tag(), c in tag()) {
        let order = |a: &str, b: &str| compare(&rule, &filter, a, b);
        prop_assert_eq!(order(&a, &b), order(&b, &a).map(Ordering::reverse));
        if filter.pattern().is_none() && order(&a, &b) == Some(Ordering::Less) && order(&b, &c) == Some(Ordering::Less) {
            prop_assert_eq!(order(&a, &c), Some(Ordering::Less));
        }
    }

    #[test]
    fn hostile_rules_are_refused_or_work(
        kind in "semver|regex|always|\\PC{0,8}",
        value in "[0-9x.*<>=!~^|, -]{0,20}|\\PC{0,30}",
        template in "[$a-z0-9{}é]{0,10}",
        current in "\\PC{0,20}",
        tags in prop::collection::vec("\\PC{0,20}|[0-9a-z.-]{0,20}", 0..5),
    ) {
        let filter = Filter::new(Some(&value), Some(&template), std::slice::from_ref(&template));
        for filter in [Filter::default()].into_iter().chain(filter) {
            if let Ok(rule) = Rule::parse(&kind, Some(&value)) {
                select(&rule, &filter, Some(&current), &tags);
            }
        }
    }
}
