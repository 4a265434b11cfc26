use proptest::prelude::*;

use super::*;
use crate::api::{self, ImageSpec};
use serde_json::{Value, json};

fn spec(rules: &[&str], patch: &Value) -> CompiledSpec {
    let rules: Vec<Value> = rules
        .iter()
        .map(|rule| {
            let (rule, action) = rule.strip_suffix('!').map_or((*rule, "apply"), |rule| (rule, "alert-slack"));
            let (kind, value) = rule.split_once('=').map_or((rule, None), |(kind, value)| (kind, Some(value)));
            json!({"name": kind, "type": kind, "value": value, "actions": [{"type": action}]})
        })
        .collect();
    let mut object = json!({"image": "app", "triggers": [{"type": "interval", "value": "5m"}], "rules": rules});
    json_patch::merge(&mut object, patch);
    let spec: ImageSpec = serde_json::from_value(object).unwrap();
    api::compile(&spec, jiff::Timestamp::UNIX_EPOCH).unwrap()
}

fn say(verdict: &Verdict) -> String {
    match verdict {
        Verdict::Empty => "empty".to_owned(),
        Verdict::None { why } => format!("none: {why}"),
        Verdict::Tag(Choice { tag, rule, missing, adopted, .. }) => {
            let by = if rule.is_empty() { "kept" } else { rule };
            let missing = if *missing { ", missing" } else { "" };
            let adopted = adopted.as_ref().map(|tag| format!(", adopted {tag}")).unwrap_or_default();
            format!("{tag} {by}{missing}{adopted}")
        }
    }
}

fn none() -> Known<'static> {
    Known::default()
}

fn tagged(tag: &str) -> &'static Tagged {
    Box::leak(Box::new(Tagged::new(tag, None)))
}

fn settled(tag: &str) -> Known<'_> {
    Known { settled: Some(tag), ..none() }
}

#[track_caller]
fn check(spec: &CompiledSpec, known: Known<'_>, tags: &str, expected: &str) {
    let tags: Vec<String> = tags.split_whitespace().map(str::to_owned).collect();
    let found = say(&decide(spec, Rules::Free, known, &tags));
    match expected.strip_suffix('…') {
        Some(start) => assert!(found.starts_with(start), "{found:?} does not begin with {start:?}"),
        None => assert_eq!(found, expected),
    }
}

#[test]
fn rules_run_in_order_over_what_is_known() {
    let minor = spec(&["semver-minor"], &json!({}));
    let tags = "1.0.0 1.9.0 1.10.0 2.0.0 2.0.0-rc.1 latest main";
    check(&minor, none(), tags, "2.0.0 semver-minor");
    check(&minor, settled("1.0.0"), tags, "1.10.0 semver-minor");
    check(&minor, settled("1.10.0"), tags, "1.10.0 kept");
    check(&minor, settled("latest"), tags, "2.0.0 semver-minor");
    // Never backwards, whatever the registry lists.
    check(&minor, settled("1.10.0"), "1.0.0 1.9.0", "1.10.0 kept, missing");
    check(&minor, settled("1.10.0"), "", "empty");
    check(&minor, none(), "", "empty");
    check(&minor, none(), "main dev", "none: …");
    // The tag in flight counts before the settled one.
    check(&minor, Known { settled: Some("1.0.0"), in_flight: Some("1.10.0"), ..none() }, tags, "1.10.0 kept");
    check(&minor, Known { settled: Some("1.0.0"), in_flight: Some("1.9.0"), ..none() }, tags, "1.10.0 semver-minor");
    // An Image that was made for one text follows it to another variant.
    let minor = spec(&["minor"], &json!({"baseTag": "1.0.0"}));
    let (tags, alpine) = ("1.0.0 1.1.0 1.3.0-alpine", settled("1.2.0-alpine"));
    check(&minor, alpine, tags, "1.3.0-alpine minor");
    check(&minor, Known { of_one_text: true, ..alpine }, tags, "1.1.0 minor");
    check(&minor, Known { of_one_text: true, ..settled("1.1.0") }, tags, "1.1.0 kept");
    // Each rule starts from what the one before applied; one without `apply` only tells.
    let both = |first| spec(&[first, "semver-minor"], &json!({}));
    check(&both("semver-major"), settled("1.0.0"), "1.0.0 2.0.0 2.3.0", "2.3.0 semver-major");
    check(&both("semver-patch"), settled("1.0.0"), "1.0.0 1.0.4 1.3.0", "1.3.0 semver-minor");
    check(&both("semver-major!"), settled("1.0.0"), "1.0.0 1.3.0 2.0.0", "1.3.0 semver-minor");
    check(&spec(&["always!"], &json!({})), none(), "1.0.0", "none: no rule has the action apply");
    check(&spec(&["always!"], &json!({})), settled("1.0.0"), "1.0.0 2.0.0", "1.0.0 kept");
    // A later rule that cannot read the current tag must not go behind it.
    check(&spec(&["always", "regex=^1"], &json!({})), settled("9"), "1.5 9", "9 kept");
    check(&spec(&["always", "regex=^1"], &json!({})), none(), "1.5 9", "1.5 regex");
}

#[test]
fn the_base_tag_is_where_it_starts() {
    let base = |tag: &str| spec(&["semver-minor"], &json!({"baseTag": tag}));
    let tags = "1.0.0 1.4.0 2.0.0 2.3.0";
    check(&base("1.0.0"), none(), tags, "1.4.0 semver-minor");
    check(&base("1.4.0"), none(), tags, "1.4.0 kept");
    check(&base("latest"), none(), tags, "2.3.0 semver-minor");
    // Nobody runs it unless the registry lists it.
    check(&base("1.1.0"), none(), tags, "1.4.0 semver-minor");
    check(&base("1.5.0"), none(), tags, "none: the registry does not list the starting tag 1.5.0, and …");
    check(&base("2.9.0"), settled("1.4.0"), tags, "1.4.0 kept");
    // Raised above the current tag it counts, at the same height or below not; nor does one that cannot be compared.
    check(&base("2.0.0"), settled("1.0.0"), tags, "2.3.0 semver-minor");
    check(&base("2.3.0"), settled("1.0.0"), tags, "2.3.0 kept");
    check(&base("1.0.0"), settled("2.0.0"), tags, "2.3.0 semver-minor");
    check(&base("main"), settled("1.0.0"), tags, "1.4.0 semver-minor");
    check(&base("2.0.0"), settled("latest"), tags, "2.3.0 semver-minor");
    check(&base("2.3.0"), settled("latest"), tags, "2.3.0 kept");
    // A rule that only tells raises nothing.
    let told = spec(&["semver-minor", "always!"], &json!({"baseTag": "main"}));
    check(&told, settled("0.1.0"), "0.1.0 1.0.0", "0.1.0 kept");
    check(
        &base("2.0.0"),
        Known { settled: Some("1.0.0"), in_flight: Some("1.4.0"), ..none() },
        tags,
        "2.3.0 semver-minor",
    );
    check(
        &base("1.4.0"),
        Known { settled: Some("1.0.0"), in_flight: Some("2.0.0"), ..none() },
        tags,
        "2.3.0 semver-minor",
    );
}

#[test]
fn digest_keeps_the_tag() {
    let digest = |base: &str| spec(&["digest"], &json!({"baseTag": base}));
    check(&digest("latest"), none(), "latest 1.0.0", "latest kept");
    check(&digest("stable"), none(), "latest 1.0.0", "none: the registry does not list the starting tag stable…");
    check(&digest("latest"), settled("stable"), "latest stable", "stable kept");
    check(&digest("latest"), settled("stable"), "latest", "stable kept, missing");
}

#[test]
fn a_lost_status_takes_the_stamps_as_settled() {
    let minor = spec(&["semver-minor"], &json!({}));
    let stamped = |tag| Known { stamped: Some(tagged(tag)), ..none() };
    check(&minor, stamped("1.4.0"), "1.4.0 1.5.0 2.0.0", "1.5.0 semver-minor, adopted 1.4.0");
    check(&minor, stamped("1.4.0"), "1.0.0", "1.4.0 kept, missing, adopted 1.4.0");
    check(&minor, stamped("main"), "1.4.0 main", "1.4.0 semver-minor");
    check(&minor, stamped("main"), "main", "none: …");
    check(&minor, Known { settled: Some("1.0.0"), ..stamped("1.4.0") }, "1.0.0 1.2.0", "1.2.0 semver-minor");
    let raised = spec(&["semver-minor"], &json!({"baseTag": "2.0.0"}));
    check(&raised, stamped("1.4.0"), "1.4.0 2.0.0", "2.0.0 kept, adopted 1.4.0");
}

#[test]
fn a_rule_that_asks_for_approval_chooses_nothing_by_itself() {
    let asks = json!({"rules": [{"name": "r", "type": "semver-minor",
        "actions": [{"type": "apply"}, {"type": "request-approval"}]}]});
    let spec = spec(&["semver-minor"], &asks);
    check(&spec, settled("1.0.0"), "1.0.0 1.1.0 3.0.0", "1.0.0 kept");
    check(&spec, settled("1.0.0"), "1.1.0", "1.0.0 kept, missing");
    check(&spec, Known { in_flight: Some("1.1.0"), ..settled("1.0.0") }, "1.0.0 1.1.0 1.2.0", "1.1.0 kept");
    check(&spec, Known { stamped: Some(tagged("1.1.0")), ..none() }, "1.1.0 1.2.0", "1.1.0 kept, adopted 1.1.0");
    check(&spec, none(), "1.0.0 1.1.0", "none: each rule asks for approval");
    check(&spec, settled("1.0.0"), "", "empty");
    let all = decide(&spec, Rules::All, settled("1.0.0"), &["1.0.0", "1.1.0"]);
    assert_eq!(say(&all), "1.1.0 r");
}

fn any_tag() -> impl Strategy<Value = String> {
    prop_oneof![
        8 => "v?[0-3]\\.[0-3]\\.(0|1|9|10)",
        2 => "[0-2]\\.[0-2]\\.[0-2]-(alpine|rc\\.[0-2])",
        1 => "[0-3]|1\\.2|latest|main|dev-[0-9]",
    ]
}

/// Rules whose answer from their own answer is that answer again.
const RULES: [&[&str]; 8] = [
    &["semver-minor"],
    &["semver-patch"],
    &["semver-major", "semver-minor", "semver-patch"],
    &["semver-patch", "semver-minor"],
    &["semver=>=1.0.0 <3"],
    &["regex=^[12]"],
    &["always"],
    &["semver-minor", "always!"],
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_always_holds(
        rules in prop::sample::select(RULES.to_vec()),
        base in prop::option::of(any_tag()),
        suspended in prop::bool::weighted(0.1),
        known in (prop::option::of(any_tag()), prop::option::of(any_tag()), prop::option::of(any_tag())),
        tags in prop::collection::vec(any_tag(), 0..12),
    ) {
        let spec = spec(rules, &json!({"baseTag": base.unwrap_or_default(), "suspend": suspended}));
        let (settled_tag, in_flight, stamped) = known;
        let known = Known {
            in_flight: in_flight.as_deref().filter(|_| settled_tag.is_some()),
            settled: settled_tag.as_deref(),
            followed: None,
            stamped: stamped.as_deref().map(tagged), ..none()
        };
        let verdict = decide(&spec, Rules::Free, known, &tags);

        let mut turned: Vec<String> = tags.iter().rev().cloned().collect();
        turned.extend(tags.iter().step_by(2).cloned());
        prop_assert_eq!(&decide(&spec, Rules::Free, known, &turned), &verdict, "order or repetition matters");

        let order = Order::from(&spec);
        let current = known.in_flight.or(known.settled).or(known.stamped.map(|stamped| stamped.tag.as_str()));
        let comparable = current.filter(|tag| order.compare(tag, tag).is_some());
        match &verdict {
            Verdict::Tag(Choice { tag, missing, .. }) => {
                if let Some(current) = current {
                    prop_assert_ne!(order.compare(tag, current), Some(Ordering::Less), "went backwards");
                }
                prop_assert_eq!(*missing, !tags.contains(tag));
                prop_assert!(!missing || current == Some(&**tag), "{} is not listed", tag);
                let again = decide(&spec, Rules::Free, settled(tag), &tags);
                prop_assert!(matches!(&again, Verdict::Tag(again) if again.tag == *tag), "{again:?}");
            }
            Verdict::Empty => prop_assert!(tags.is_empty()),
            Verdict::None { .. } => prop_assert!(comparable.is_none(), "the current tag is lost"),
        }
    }

    #[test]
    fn any_chain_of_rules_never_goes_backwards(
        rules in prop::collection::vec(prop::sample::select(
            vec!["semver-major", "semver-minor", "semver-patch", "semver=^1 || ^2", "regex=^[12]", "regex=^dev-", "always"]), 1..4),
        current in any_tag(),
        tags in prop::collection::vec(any_tag(), 1..12),
    ) {
        let spec = spec(&rules, &json!({}));
        let Verdict::Tag(Choice { tag, .. }) = decide(&spec, Rules::Free, settled(&current), &tags) else {
            return Err(TestCaseError::fail("the current tag is lost"));
        };
        prop_assert_ne!(Order::from(&spec).compare(&tag, &current), Some(Ordering::Less));
    }
}

#[test]
fn a_rejected_tag_is_not_offered() {
    #[track_caller]
    fn check_rejected(spec: &CompiledSpec, known: Known<'_>, rejected: &[&str], tags: &str, expected: &str) {
        let rejected = rejected.iter().map(|&tag| tag.to_owned()).collect();
        check(spec, Known { rejected: Some(&rejected), ..known }, tags, expected);
    }
    let minor = spec(&["semver-minor"], &json!({}));
    check_rejected(&minor, settled("1.2.0"), &["1.3.0"], "1.2.0 1.3.0", "1.2.0 kept");
    check_rejected(&minor, settled("1.2.0"), &["1.3.0"], "1.2.0 1.3.0 1.4.0", "1.4.0 semver-minor");
    check_rejected(&minor, settled("1.1.0"), &["1.3.0"], "1.1.0 1.2.0 1.3.0", "1.2.0 semver-minor");
    check_rejected(&minor, none(), &["1.3.0"], "1.2.0 1.3.0", "1.2.0 semver-minor");
    check_rejected(&minor, none(), &["1.3.0"], "1.3.0", "none: …");
    // A digest alone says nothing of the tag.
    check_rejected(&minor, settled("1.2.0"), &["1.3.0@sha256:a"], "1.2.0 1.3.0", "1.3.0 semver-minor");
    // The starting tag stays a bound, and is not taken.
    let base = spec(&["semver-patch"], &json!({"baseTag": "1.3.0"}));
    check_rejected(&base, settled("1.2.0"), &["1.3.0"], "1.2.0 1.2.1 1.3.0", "1.2.0 kept");
    check_rejected(&base, settled("1.2.0"), &["1.3.0"], "1.2.0 1.3.0 1.3.1", "1.3.1 semver-patch");
    check_rejected(&base, none(), &["1.3.0"], "1.2.0 1.3.0", "none: the starting tag 1.3.0 was rejected…");
    check_rejected(&base, Known { stamped: Some(tagged("1.3.0")), ..none() }, &["1.3.0"], "1.3.0", "none: …");
}

#[test]
fn what_is_refused_is_named() {
    #[track_caller]
    fn refused_of(rejected: &[&str], tags: &str, chosen: &str, expected: Option<&str>) {
        let minor = spec(&["semver-minor"], &json!({}));
        let rejected = rejected.iter().map(|&tag| tag.to_owned()).collect();
        let tags: Vec<&str> = tags.split_whitespace().collect();
        let known = Known { rejected: Some(&rejected), ..settled("1.2.0") };
        assert_eq!(refused(&minor, known, &tags, chosen).as_deref(), expected);
    }
    refused_of(&["1.3.0"], "1.2.0 1.3.0", "1.2.0", Some("1.3.0"));
    refused_of(&["1.3.0"], "1.2.0 1.3.0 1.4.0", "1.4.0", None);
    refused_of(&["1.4.0"], "1.2.0 1.3.0 1.4.0", "1.3.0", Some("1.4.0"));
    refused_of(&["1.3.0"], "1.2.0", "1.2.0", None);
    refused_of(&[], "1.2.0 1.3.0", "1.2.0", None);
}
