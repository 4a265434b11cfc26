use std::cmp::Ordering;

use super::*;

mod explain;
mod policies;
mod properties;

/// A rule as `type` or `type=value`.
fn rule(text: &str) -> Rule {
    let (kind, value) = text.split_once('=').map_or((text, None), |(kind, value)| (kind, Some(value)));
    Rule::parse(kind, value).unwrap_or_else(|error| panic!("{error}"))
}

fn filter(pattern: &str) -> Filter {
    Filter::new((!pattern.is_empty()).then_some(pattern), None, &[]).unwrap_or_else(|error| panic!("{error}"))
}

/// A decision with all that can be asked of it.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    selected: Option<String>,
    changed: bool,
    rule: Option<usize>,
    reason: String,
    candidates: Vec<String>,
    /// Tags with their reasons.
    rejected: Vec<(String, String)>,
}

fn answer<T: AsRef<str>>(rules: &[Rule], filter: &Filter, current: Option<&str>, tags: &[T]) -> Answer {
    let decision = choose(rules, filter, current, tags);
    let explanation = decision.explain();
    Answer {
        selected: decision.selected.map(str::to_owned),
        changed: decision.changed,
        rule: decision.rule,
        reason: decision.reason(),
        candidates: explanation.candidates.iter().map(ToString::to_string).collect(),
        rejected: explanation.rejected.iter().map(|it| (it.tag.to_owned(), it.reason.to_string())).collect(),
    }
}

/// Rules are separated by ` + `, tags by blanks; `-` stands for no tag.
fn ask(rules: &str, filter: &Filter, current: &str, tags: &str) -> Answer {
    let rules: Vec<Rule> = rules.split(" + ").map(rule).collect();
    let tags: Vec<&str> = tags.split_whitespace().collect();
    answer(&rules, filter, (current != "-").then_some(current), &tags)
}

fn check(rules: &str, pattern: &str, current: &str, tags: &str, expected: &str) {
    let filter = filter(pattern);
    let decision = ask(rules, &filter, current, tags);
    let selected = decision.selected.as_deref().unwrap_or("-");
    assert_eq!(selected, expected, "{rules} /{pattern}/ from {current} in {tags}: {decision:#?}");
    assert_eq!(decision.changed, selected != "-" && selected != current, "{decision:#?}");
    let again = ask(rules, &filter, selected, tags);
    assert_eq!(again.selected, decision.selected, "again: {again:#?}");
}

/// Checks rows of `rule ; pattern ; current ; tags ; expected`; `TAGS` in a row stands for `tags`.
fn check_rows(tags: &str, rows: &str) {
    for row in rows.lines().map(|row| row.trim().replace("TAGS", tags)) {
        if row.is_empty() || row.starts_with('#') {
            continue;
        }
        let cells: Vec<&str> = row.split(';').map(str::trim).collect();
        let [rule, pattern, current, tags, expected] = cells[..] else { panic!("not five cells: {row}") };
        check(rule, pattern, current, tags, expected);
    }
}

#[test]
fn steps() {
    check_rows(
        "1.2.2 1.2.3 1.2.4 1.2.10 1.3.0 1.10.1 2.0.0 2.5.0 10.1.0 2.0.0-rc.1 11.0.0-rc.1 latest",
        r"
        semver-patch ; ; 1.2.3  ; TAGS ; 1.2.10
        semver-minor ; ; 1.2.3  ; TAGS ; 1.10.1
        semver-major ; ; 1.2.3  ; TAGS ; 10.1.0
        semver       ; ; 1.2.3  ; TAGS ; 10.1.0
        semver-patch ; ; 1.2.10 ; TAGS ; 1.2.10
        semver-minor ; ; 1.10.1 ; TAGS ; 1.10.1
        semver-major ; ; 10.1.0 ; TAGS ; 10.1.0
        # A step begins at the next number: what lies before it belongs to the smaller steps.
        semver-minor ; ; 1.2.3 ; 1.2.3 1.2.4 ; 1.2.3
        semver-major ; ; 1.2.3 ; 1.2.3 1.3.0 ; 1.2.3
        semver-patch ; ; 1.2.3 ; 1.3.0 2.0.0 ; 1.2.3
        semver-minor ; ; 1.9.0 ; 1.9.0 1.10.0 ; 1.10.0
        semver-major ; ; 1.0.0 ; 1.0.0 2.0.0-rc.1 ; 1.0.0
        semver-minor ; ; 0.9.9 ; 0.10.0 1.0.0 ; 0.10.0
        semver-patch ; ; 0.0.9 ; 0.0.10 0.1.0 ; 0.0.10
        semver-major ; ; 99999999999999999999.0.0 ; 100000000000000000000.0.0 ; 100000000000000000000.0.0
        semver-patch ; ; v1.2 ; v1.2.1 v1.3.0 ; v1.2.1
        ",
    );
}

#[test]
fn steps_from_a_prerelease() {
    check_rows(
        "1.2.3-rc.1 1.2.3-rc.2 1.2.3-rc.10 1.2.4-rc.1 1.3.0-rc.1",
        r"
        semver-patch ; ; 1.2.3-rc.2 ; TAGS             ; 1.2.3-rc.10
        semver-patch ; ; 1.2.3-rc.2 ; TAGS 1.2.3       ; 1.2.3
        semver-patch ; ; 1.2.3-rc.2 ; TAGS 1.2.5       ; 1.2.5
        semver-patch ; ; 1.2.3-rc.2 ; TAGS 1.3.0       ; 1.2.3-rc.10
        semver-minor ; ; 1.2.3-rc.2 ; TAGS 1.2.3 1.3.1 ; 1.3.1
        semver-minor ; ; 1.2.3-rc.2 ; TAGS 1.2.3       ; 1.2.3-rc.2
        semver       ; ; 1.2.3-rc.1 ; TAGS             ; 1.2.3-rc.10
        semver       ; ; 1.2.3-rc.1 ; TAGS 1.3.0       ; 1.3.0
        semver-major ; ; 2.0.0-rc.1 ; 2.0.0 2.1.0 3.0.0 ; 3.0.0
        semver-major ; ; 2.0.0-rc.1 ; 2.0.0 2.1.0       ; 2.0.0-rc.1
        ",
    );
}

#[test]
fn ranges() {
    check_rows(
        "1.0.0 1.5.0 1.6.0-rc.1 2.0.0-rc.1 2.0.0 2.5.0-alpine 3.0.0",
        r"
        semver=^1                    ; ; 1.0.0 ; TAGS ; 1.5.0
        semver=>=1.0.0-0 <2          ; ; 1.0.0 ; TAGS ; 2.0.0-rc.1
        semver=>=1.0.0-0 <2.0.0-0    ; ; 1.0.0 ; TAGS ; 1.6.0-rc.1
        semver=>=1.0.0-0 <2.0.0-0    ; ; -     ; TAGS ; 1.6.0-rc.1
        semver=^1 || >=3             ; ; 1.0.0 ; TAGS ; 3.0.0
        semver=<2                    ; ; 3.0.0 ; TAGS ; 3.0.0
        semver=<2                    ; ; -     ; TAGS ; 1.5.0
        semver=>=4                   ; ; 1.0.0 ; TAGS ; 1.0.0
        semver=>=4                   ; ; -     ; TAGS ; -
        # The range alone decides about prereleases, also from one.
        semver=>=1   ; ; 2.0.0-rc.1 ; 2.0.0-rc.1 2.0.0-rc.2 ; 2.0.0-rc.1
        semver=>=1-0 ; ; 2.0.0-rc.1 ; 2.0.0-rc.2 ; 2.0.0-rc.2
        # It tests x.y.z of a variant, and `-0` opens no variants.
        semver=>=1     ; ; 1.0.0-alpine ; TAGS ; 2.5.0-alpine
        semver=<2.5.0  ; ; 1.0.0-alpine ; TAGS ; 1.0.0-alpine
        semver=>=1-0   ; ; 1.0.0 ; 2.5.0-alpine ; 1.0.0
        ",
    );
}

#[test]
fn prereleases_and_variants() {
    check_rows(
        "",
        r"
        semver ; ; 1.0.0 ; 1.1.0-rc.1 1.1.0-alpine ; 1.0.0
        semver ; ; 1.1.0-alpha ; 1.1.0-beta 1.1.0-RC2 1.1.0-rc10 ; 1.1.0-rc10
        semver ; ; 1.0.0-alpine ; 1.1.0 1.2.0-debian 1.1.0-alpine 1.2.0-rc.1-alpine ; 1.1.0-alpine
        semver ; ; 1.2.0-rc.1-alpine ; 1.2.0-rc.2-alpine 1.2.0-rc.3 ; 1.2.0-rc.2-alpine
        semver ; ; 1.2.0-rc.1-alpine ; 1.2.0-alpine 1.3.0-rc.1-alpine 1.3.0 ; 1.2.0-alpine
        semver ; ; 1.0.0-alpine3.19 ; 1.1.0-alpine3.20 1.0.1-alpine3.19 ; 1.0.1-alpine3.19
        semver ; ; 1.0.0-a1b2c3d ; 1.1.0-b1b2c3d 1.1.0 ; 1.0.0-a1b2c3d
        semver ; ; 7-alpine ; 7.4.1-alpine 7.4.2 ; 7.4.1-alpine
        # Revisions.
        semver ; ; 1.0.0-debian-12-r9 ; 1.0.0-debian-12-r10 1.0.0-debian-11-r99 ; 1.0.0-debian-12-r10
        semver ; ; 1.0.0-alpine-r01 ; 1.0.0-alpine-r010 1.0.0-alpine-r11 ; 1.0.0-alpine-r11
        semver ; ; 1.0.0-debian-12 ; 1.0.0-debian-12-r0 ; 1.0.0-debian-12-r0
        semver ; ; 1.0.0-debian-12-r5 ; 1.0.0-debian-12 1.0.0-debian-12-r4 ; 1.0.0-debian-12-r5
        semver ; ; 1.0.0-debian-12-r5 ; 1.1.0-debian-12-r0 1.0.0-debian-12-r6 ; 1.1.0-debian-12-r0
        semver ; ; 1.0.0-r5 ; 1.0.0-r6 1.1.0 1.1.0-alpine-r1 ; 1.0.0-r6
        semver ; ; 1.0.0 ; 1.0.0-r6 1.1.0-r1 ; 1.0.0
        semver-patch ; ; 1.0.0-alpine-r1 ; 1.0.0-alpine-r2 1.0.1-alpine-r0 ; 1.0.1-alpine-r0
        ",
    );
}

#[test]
fn patterns_that_name_suffixed_tags() {
    check_rows(
        "",
        r"
        semver ; -alpine$ ; - ; 1.0.0 1.1.0 1.0.0-alpine ; 1.0.0-alpine
        semver ; -alpine$ ; 1.0.0 ; 1.1.0 1.0.1-alpine ; 1.0.1-alpine
        semver ; -alpine$ ; 1.2.0 ; 1.3.0 1.0.1-alpine ; 1.2.0
        semver ; -alpine$ ; 1.0.0-slim ; 1.1.0-slim 1.0.1-alpine ; 1.0.1-alpine
        semver ; -rc\.\d+$ ; 1.0.0 ; 1.1.0-rc.2 1.1.0-rc.10 1.1.0 ; 1.1.0-rc.10
        semver-minor ; -rc\.\d+$ ; 1.0.0-rc.3 ; 1.1.0-rc.1 1.0.0-rc.4 2.0.0-rc.1 ; 1.1.0-rc.1
        semver ; -[0-9a-f]{7}$ ; 1.0.0-a1b2c3d ; 1.0.1-ffeeddc 1.0.0-fffffff ; 1.0.1-ffeeddc
        semver ; -(alpine|slim)$ ; 1.0.0-slim ; 1.1.0-alpine 1.1.0-slim ; 1.1.0-slim
        semver ; -(alpine|slim)$ ; - ; 1.1.0-alpine 1.1.0-slim ; 1.1.0-alpine
        semver ; -debian- ; - ; 1.1.0-debian-12-r5 1.1.0-debian-11-r9 ; 1.1.0-debian-12-r5
        # One plain match, and the usual rules hold.
        semver ; ^1 ; - ; 1.0.0 1.1.0-alpine 1.1.0-rc.1 ; 1.0.0
        semver ; ^1 ; 1.0.0 ; 1.0.0 1.1.0-alpine 1.1.0-rc.1 ; 1.0.0
        semver ; ^1 ; 1.0.0 ; 0.9.0 1.1.0-rc.1 ; 1.0.0
        # Also one that cannot win itself, and in any place.
        semver ; ^\d ; 1.2.0-alpine ; 0.9.0 1.3.0-alpine 1.4.0-slim ; 1.3.0-alpine
        semver ; ^\d ; 1.2.0-alpine ; 1.3.0-alpine 1.4.0-slim 0.9.0 ; 1.3.0-alpine
        semver=<2 ; ^\d ; 1.2.0-alpine ; 9.0.0 1.3.0-alpine 1.4.0-slim ; 1.3.0-alpine
        # An explicit range still decides about prereleases.
        semver=>=1 ; -rc\.\d+$ ; - ; 1.1.0-rc.2 ; -
        semver=>=1-0 ; -rc\.\d+$ ; - ; 1.1.0-rc.2 ; 1.1.0-rc.2
        # Nor does a prerelease that a range took after a plain one open variants.
        semver=>=1-0 ; .* ; 1.0.0 ; 1.1.0-rc.1 1.1.0-alpine ; 1.1.0-rc.1
        semver=>=1 ; -alpine$ ; - ; 1.1.0-alpine ; 1.1.0-alpine
        ",
    );
}

#[test]
fn the_seeds_patterns() {
    check_rows(
        "",
        r"
        semver ; ^\d+.\d+.\d+$ ; 1.2.0  ; 1.2.0 1.2.1 v1.2.2 1.2.3-rc.1 dev-1.2.4 ; 1.2.1
        semver ; ^\d+.\d+.\d+$ ; latest ; 1.2.0 1.2.1 latest ; 1.2.1
        semver ; dev-\d+.\d+.\d+$ ; dev-1.9.0 ; dev-1.10.0 dev-1.2.0 1.11.0 prod-2.0.0 ; dev-1.10.0
        semver ; dev-\d+.\d+.\d+$ ; - ; dev-1.10.0 dev-1.2.0 1.11.0 ; dev-1.10.0
        semver ; dev-\d+.\d+.\d+$ ; 1.11.0 ; dev-1.10.0 ; 1.11.0
        semver-minor ; dev-\d+.\d+.\d+$ ; dev-1.9.0 ; dev-1.10.0 dev-2.0.0 ; dev-1.10.0
        semver ; dev-.* ; dev-1.9 ; dev-1.8.0 ; dev-1.9
        semver ; dev-.* ; dev-1.9 ; dev-1.8.0 dev-1.9.1 ; dev-1.9.1
        # The match is looked at before the tag.
        semver ; app-\d+\.\d+\.\d+ ; - ; on-9.0.0-app-1.2.0 on-8.0.0-app-1.3.0 ; on-8.0.0-app-1.3.0
        # A pattern that matches the prefix only.
        semver ; ^dev- ; dev-1.9 ; dev-1.8.0 dev-1.9.1 2.0.0 ; dev-1.9.1
        semver ; preview-* ; preview-1.0.0 ; preview-1.1.0 1.2.0 ; preview-1.1.0
        ",
    );
}

#[test]
fn no_current() {
    let tags = "1.0.0 1.2.0 2.0.0-rc.1 3.0.0-alpine latest";
    for rule in ["semver-major", "semver-minor", "semver-patch", "semver"] {
        for current in ["-", "latest", "main", "1.2.3.4", "not/legal", "sha-abc"] {
            check(rule, "", current, tags, "1.2.0");
        }
        check(rule, "", "-", "1.2.0-rc.1 1.2.0-alpine 1.2 latest", "-");
        check(rule, "", "-", "", "-");
        check(rule, "", "latest", "", "-");
        check(rule, "", "1.2.0", "", "1.2.0");
        check(rule, "", "1.2.0", "latest", "1.2.0");
    }
    check("semver", "", "2.0", tags, "2.0");
    check("semver", "", "1.1", tags, "1.2.0");
}

#[test]
fn ties() {
    check_rows(
        "",
        r"
        semver ; ; 1.2.0 ; v1.2.0 01.2.0 1.2.0 ; 1.2.0
        semver ; ; 1.2.0 ; v1.2.0 01.2.0 ; 1.2.0
        semver ; ; 1.2 ; 1.2.0 ; 1.2
        semver ; ; v1.1.0 ; v1.2.0 1.2.0 0001.2.0 ; v1.2.0
        semver ; ; 1.1.0 ; v1.2.0 1.2.0 0001.2.0 ; 1.2.0
        semver ; ; 2024.01.0 ; 2024.2.0 2024.02.0 ; 2024.02.0
        semver ; ; 2024.1.0 ; 2024.2.0 2024.02.0 ; 2024.2.0
        semver ; ; - ; v1.2.0 1.2.0 ; v1.2.0
        semver ; ; - ; v1.2.0 01.2.0 ; v1.2.0
        semver ; ; - ; 1.02.0 01.2.0 ; 1.02.0
        semver ; \d+\.\d+\.\d+$ ; a-1.0.0 ; a-1.1.0 bcd-1.1.0 ; a-1.1.0
        always ; ; b1 ; b02 b2 ; b2
        always ; ; b01 ; b002 b2 ; b002
        always ; ; - ; b02 b2 ; b02
        ",
    );
}

#[test]
fn natural_rules() {
    check_rows(
        "",
        r"
        always ; ; 1.9 ; 1.9 1.10 1.2 ; 1.10
        always ; ; 1.9 ; 1.8 ; 1.9
        always ; ; 1.9 ; ; 1.9
        always ; ; - ; build-9 build-10 ; build-10
        always ; ^build- ; 1.9 ; build-9 build-10 z ; build-10
        always ; ^build- ; build-11 ; build-9 build-10 z ; build-11
        regex=^v ; ; v1.9 ; v1.9 v1.10 w2 ; v1.10
        regex=^v ; ; x7 ; v1.9 v1.10 ; v1.10
        regex=^v ; ; v2 ; v1.9 v1.10 ; v2
        regex=^v ; 0$ ; v1.9 ; v1.8 v1.11 v1.10 ; v1.10
        regex=^v ; ; latest ; latest ; -
        ",
    );
}

#[test]
fn extracts() {
    let pattern = r"^(?<name>[a-z]+)-(?<ver>[\d.]+)-(?<n>\d+)$";
    let listed = "app-1.2.0-7 app-1.10.0-3 app-1.9.0-12 other 2.0.0";
    let rows = r"
        semver       ; $ver   ; app-1.2.0-7 ; LISTED ; app-1.10.0-3
        semver-minor ; ${ver} ; app-1.2.0-7 ; LISTED ; app-1.10.0-3
        semver       ; ${ver}-r$n ; app-1.2.0-7 ; app-1.2.0-8 app-1.2.0-10 ; app-1.2.0-10
        semver       ; $verx  ; -           ; LISTED ; -
        semver       ; $ver   ; app-1.11-7  ; LISTED ; app-1.11-7
        semver       ; $ver   ; 1.11        ; LISTED ; 1.11
        always       ; $n     ; app-1.2.0-7 ; LISTED ; app-1.9.0-12
        always       ; $nope  ; -           ; LISTED ; -
        regex=^1     ; $n     ; -           ; LISTED ; app-1.9.0-12";
    for row in rows.lines().skip(1).map(|row| row.replace("LISTED", listed)) {
        let cells: Vec<&str> = row.split(';').map(str::trim).collect();
        let filter = Filter::new(Some(pattern), Some(cells[1]), &[]).unwrap();
        let decision = ask(cells[0], &filter, cells[2], cells[3]);
        let selected = decision.selected.as_deref().unwrap_or("-");
        assert_eq!(selected, cells[4], "{row}: {decision:#?}");
    }
}

#[test]
fn excludes() {
    let check = |exclude: &[&str], current: &str, tags: &str, expected: &str| {
        let exclude: Vec<String> = exclude.iter().map(ToString::to_string).collect();
        let filter = Filter::new(None, None, &exclude).unwrap();
        let decision = ask("semver", &filter, current, tags);
        assert_eq!(decision.selected.as_deref(), Some(expected), "{decision:#?}");
    };
    check(&["^1.3", "rc"], "1.2.0", "1.2.1 1.3.0 1.3.1", "1.2.1");
    check(&["."], "1.2.0", "1.2.1", "1.2.0");
    // Excluded while in use: kept until something newer comes.
    check(&["^1.2.0$"], "1.2.0", "1.1.0 1.2.0", "1.2.0");
    check(&["^1.2.0$"], "1.2.0", "1.1.0 1.2.0 1.3.0", "1.3.0");
}

#[test]
fn the_order_between_two_tags() {
    let rows = r"
        semver-patch ; ; 1.9.0 ; < ; 1.10.0
        semver-patch ; ; 1.2 ; = ; 1.2.0
        semver=<1 ; ; 2.0.0 ; > ; 1.0.0
        semver ; ; 1.2.0-rc.1 ; < ; 1.2.0
        semver ; ; 1.2.0-alpine ; ? ; 1.2.0
        semver ; ; 1.2.0-alpine ; ? ; 1.3.0-slim
        semver ; ; 1.2.0-alpine-r9 ; < ; 1.2.0-alpine-r10
        semver ; ; 1.2.0 ; ? ; latest
        semver ; ; 1.2.0 ; ? ; main
        semver ; ; 1.2.0 ; ? ; 1.3.0+x
        semver ; -alpine$ ; 1.2.0-alpine ; > ; 1.1.0
        semver ; ^1 ; 1.2.0 ; < ; 1.3.0-alpine
        semver ; ^2 ; 1.2.0 ; ? ; 1.3.0-alpine
        semver ; -[0-9a-f]{7}$ ; 1.2.0-aaaaaaa ; = ; 1.2.0-bbbbbbb
        semver ; dev-\d+.\d+.\d+$ ; dev-1.2.0 ; < ; dev-1.10.0
        always ; ; 1.9 ; < ; 1.10
        always ; ; latest ; ? ; 1.10
        always ; ; a:b ; ? ; 1.10
        regex=^v ; ; v1 ; < ; v2
        regex=^v ; ; v1 ; ? ; w2";
    check_orders(rows);
}

/// Checks rows of `rule ; pattern ; a ; order ; b`; `?` stands for tags that are not compared.
fn check_orders(rows: &str) {
    for row in rows.lines().skip(1) {
        let cells: Vec<&str> = row.split(';').map(str::trim).collect();
        let (rule, filter) = (rule(cells[0]), filter(cells[1]));
        let expected = match cells[3] {
            "<" => Some(Ordering::Less),
            "=" => Some(Ordering::Equal),
            ">" => Some(Ordering::Greater),
            _ => None,
        };
        let turned = expected.map(Ordering::reverse);
        assert_eq!(compare(&rule, &filter, cells[2], cells[4]), expected, "{row}");
        assert_eq!(compare(&rule, &filter, cells[4], cells[2]), turned, "turned: {row}");
    }
}
