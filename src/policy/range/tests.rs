use proptest::prelude::*;

use super::*;
use crate::policy::version::{Grammar, Reading, Version, Versioned};

fn inside(range: &str, text: &str) -> bool {
    let version = Version::parse(text, Grammar::Semver, Reading::Current);
    let version = &version.unwrap_or_else(|| panic!("{text} is no version"));
    let range = Range::parse(range).unwrap_or_else(|error| panic!("{error}"));
    range.contains(&version.core, Versioned { version, text }.prerelease())
}

/// Checks every row and returns how many there were.
fn check_rows(rows: &str) -> usize {
    let mut count = 0;
    for row in rows.lines().filter(|row| !row.starts_with('#') && !row.is_empty()) {
        let [range, version, expected] = row.split('\t').collect::<Vec<_>>()[..] else { panic!("{row}") };
        assert_eq!(inside(range, version).to_string(), expected, "{range} on {version}");
        count += 1;
    }
    count
}

#[test]
fn vectors() {
    assert_eq!(check_rows(include_str!("../../../tests/vectors/semver-ranges.tsv")), 197);
}

#[test]
fn more_of_the_grammar() {
    let check = |range: &str, version: &str, expected: bool| {
        assert_eq!(inside(range, version), expected, "{range} on {version}");
    };
    check("=>1.2", "1.2.0", true);
    check("=<1.2", "1.3.0", false);
    check("~>1.2.3", "1.2.9", true);
    check("~>1.2.3", "1.3.0", false);
    check("v1.2.3", "1.2.3", true);
    check(">= v1.2 < v2", "1.9.0", true);
    check("X.1.2", "7.0.0", true);
    check("1.X", "1.9.0", true);
    check("^*", "7.0.0", true);
    check("^0", "0.9.0", true);
    check("^0", "1.0.0", false);
    check("^0.0", "0.0.9", true);
    check("^0.0", "0.1.0", false);
    check("^0.2.3", "0.2.9", true);
    check("^0.2.3", "0.3.0", false);
    check("!=4", "4.1.0", false);
    check("1.2.3+build.5", "1.2.3", true);
    check(">=1.2.3-rc.2", "1.2.3-rc.10", true);
    check(">=1.2.3-rc.2", "1.2.3-rc1", false);
    check(">=1.0.0-0", "2.0.0-rc.1", true);
    check(">=1.0.0", "2.0.0-rc.1", false);
    check("<2.0.0-0", "2.0.0-alpha", false);
    check("1 - 2 || 4 - 5", "4.7.0", true);
    check("1 - 2 || 4 - 5", "3.0.0", false);
    check("\t1.2.x\n", "1.2.9", true);
    check(">=1.2.3,<1.2.5", "1.2.4", true);
    check(">=99999999999999999999999.0.0", "99999999999999999999998.9.9", false);
    check(">=99999999999999999999999.0.0", "100000000000000000000000.0.0", true);
}

#[test]
fn errors_say_where() {
    let check = |range: &str, reason: &str| {
        let error = Range::parse(range).unwrap_err().to_string();
        assert!(error.starts_with("invalid range ") && error.contains(reason), "{range}: {error}");
    };
    check("", "a version is missing");
    check(" ", "a version is missing");
    check("||", "a version is missing");
    check("1 ||", "a version is missing");
    check(">=", "expected a number, x or * at the end");
    check(">=1.x.y", "expected a number, x or * at 'y'");
    check("==1", "expected a number, x or * at '='");
    check(">>1", "at '>'");
    check("a", "at 'a'");
    check("1.2.3.4", "expected a space, a comma or || at '.'");
    check("1x", "at 'x'");
    check("1,", "at the end");
    check(",1", "at ','");
    check("1,,2", "at ','");
    check(">1<2", "at '<'");
    check("1.", "at the end");
    check("1 | 2", "at '|'");
    check("1.2.3-", "an identifier is missing behind '-'");
    check("1.2.3-a..b", "an identifier is missing behind '-'");
    check("1.2.3+", "an identifier is missing behind '+'");
    check(">1 - 2", "a range with a hyphen has no operator");
    check("1 - >2", "at '>'");
    check("1 -", "at '-'");
    check("V1", "at 'V'");
    check("١", "at '١'");
    check(&"1 ".repeat(501), "1002 bytes");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_inside_a_range_is_inside_its_limit(range in any_range(), version in r"[0-3]\.[0-3]\.[0-3](-rc\.[0-2])?") {
        let mut window = Window::default();
        Range::parse(&range).map_err(|error| TestCaseError::fail(error.to_string()))?.limit(&mut window);
        let read = Version::parse(&version, Grammar::Semver, Reading::Candidate).and_then(|it| numbers(&it.core));
        prop_assert!(!inside(&range, &version) || read.is_some_and(|read| window.contains(&read)), "{window:?}");
    }
}

fn any_range() -> impl Strategy<Value = String> {
    let comparator = r"(=|!=|<|>|<=|>=|~|\^)?[0-3x](\.[0-3x](\.[0-3x](-0|-rc\.1)?)?)?";
    prop::collection::vec(prop::collection::vec(comparator, 1..3), 1..3)
        .prop_map(|groups| groups.iter().map(|group| group.join(" ")).collect::<Vec<_>>().join(" || "))
}

#[test]
fn limits() {
    let check = |range: &str, expected: Numbers| {
        let mut window = Window::default();
        Range::parse(range).unwrap().limit(&mut window);
        assert_eq!((window.least, window.most), ([0; 3], expected), "{range}");
    };
    check("<2", [2, 0, 0]);
    check(">=1.2.0, <5.1.0", [5, 1, 0]);
    check("<=2.1.3", [2, 1, 3]);
    check("<=2.1", [2, u64::MAX, u64::MAX]);
    check("^1.2.3", [1, u64::MAX, u64::MAX]);
    check("^1 || ~3.1", [3, u64::MAX, u64::MAX]);
    check("^1 || >3", ANY);
    check("*", ANY);
    check("~0.0.0", ANY);
    check("<99999999999999999999", ANY);
}
