use super::*;

/// A rule as `type` or `type=value`.
pub(super) fn rule(text: &str) -> Rule {
    let (kind, value) = text
        .split_once('=')
        .map_or((text, None), |(kind, value)| (kind, Some(value)));
    Rule::parse(kind, value).unwrap_or_else(|error| panic!("{error}"))
}

fn filter(pattern: &str) -> Filter {
    Filter::new((!pattern.is_empty()).then_some(pattern), None, &[])
        .unwrap_or_else(|error| panic!("{error}"))
}

/// `-` stands for no tag; tags are separated by blanks.
fn choose(rule_text: &str, filter: &Filter, current: &str, tags: &str) -> Decision {
    let current = (current != "-").then_some(current);
    let tags: Vec<&str> = tags.split_whitespace().collect();
    select(&rule(rule_text), filter, current, &tags)
}

fn check(rule: &str, pattern: &str, current: &str, tags: &str, expected: &str) {
    let filter = filter(pattern);
    let decision = choose(rule, &filter, current, tags);
    let selected = decision.selected.as_deref().unwrap_or("-");
    assert_eq!(
        selected, expected,
        "{rule} /{pattern}/ from {current} in {tags}: {decision:#?}"
    );
    assert_eq!(
        decision.changed,
        selected != "-" && selected != current,
        "{decision:#?}"
    );
    let again = choose(rule, &filter, selected, tags);
    assert_eq!(again.selected, decision.selected, "again: {again:#?}");
}

#[test]
fn steps() {
    let tags =
        "1.2.2 1.2.3 1.2.4 1.2.10 1.3.0 1.10.1 2.0.0 2.5.0 10.1.0 2.0.0-rc.1 11.0.0-rc.1 latest";
    check("semver-patch", "", "1.2.3", tags, "1.2.10");
    check("semver-minor", "", "1.2.3", tags, "1.10.1");
    check("semver-major", "", "1.2.3", tags, "10.1.0");
    check("semver", "", "1.2.3", tags, "10.1.0");
    check("semver-patch", "", "1.2.10", tags, "1.2.10");
    check("semver-minor", "", "1.10.1", tags, "1.10.1");
    check("semver-major", "", "10.1.0", tags, "10.1.0");
    // A step begins at the next number: what lies before it belongs to the smaller steps.
    check("semver-minor", "", "1.2.3", "1.2.3 1.2.4", "1.2.3");
    check("semver-major", "", "1.2.3", "1.2.3 1.3.0", "1.2.3");
    check("semver-patch", "", "1.2.3", "1.3.0 2.0.0", "1.2.3");
    check("semver-minor", "", "1.9.0", "1.9.0 1.10.0", "1.10.0");
    check("semver-major", "", "1.0.0", "1.0.0 2.0.0-rc.1", "1.0.0");
    check("semver-minor", "", "0.9.9", "0.10.0 1.0.0", "0.10.0");
    check("semver-patch", "", "0.0.9", "0.0.10 0.1.0", "0.0.10");
    check(
        "semver-major",
        "",
        "99999999999999999999.0.0",
        "100000000000000000000.0.0",
        "100000000000000000000.0.0",
    );
    check("semver-patch", "", "v1.2", "v1.2.1 v1.3.0", "v1.2.1");
}

#[test]
fn steps_from_a_prerelease() {
    let tags = "1.2.3-rc.1 1.2.3-rc.2 1.2.3-rc.10 1.2.4-rc.1 1.3.0-rc.1";
    check("semver-patch", "", "1.2.3-rc.2", tags, "1.2.3-rc.10");
    check(
        "semver-patch",
        "",
        "1.2.3-rc.2",
        &format!("{tags} 1.2.3"),
        "1.2.3",
    );
    check(
        "semver-patch",
        "",
        "1.2.3-rc.2",
        &format!("{tags} 1.2.5"),
        "1.2.5",
    );
    check(
        "semver-patch",
        "",
        "1.2.3-rc.2",
        &format!("{tags} 1.3.0"),
        "1.2.3-rc.10",
    );
    check(
        "semver-minor",
        "",
        "1.2.3-rc.2",
        &format!("{tags} 1.2.3 1.3.1"),
        "1.3.1",
    );
    check(
        "semver-minor",
        "",
        "1.2.3-rc.2",
        &format!("{tags} 1.2.3"),
        "1.2.3-rc.2",
    );
    check(
        "semver-major",
        "",
        "2.0.0-rc.1",
        "2.0.0 2.1.0 3.0.0",
        "3.0.0",
    );
    check(
        "semver-major",
        "",
        "2.0.0-rc.1",
        "2.0.0 2.1.0",
        "2.0.0-rc.1",
    );
    check("semver", "", "1.2.3-rc.1", tags, "1.2.3-rc.10");
    check(
        "semver",
        "",
        "1.2.3-rc.1",
        &format!("{tags} 1.3.0"),
        "1.3.0",
    );
}

#[test]
fn ranges() {
    let tags = "1.0.0 1.5.0 1.6.0-rc.1 2.0.0-rc.1 2.0.0 2.5.0-alpine 3.0.0";
    check("semver=^1", "", "1.0.0", tags, "1.5.0");
    check("semver=>=1.0.0-0 <2", "", "1.0.0", tags, "2.0.0-rc.1");
    check("semver=>=1.0.0-0 <2.0.0-0", "", "1.0.0", tags, "1.6.0-rc.1");
    check("semver=>=1.0.0-0 <2.0.0-0", "", "-", tags, "1.6.0-rc.1");
    check("semver=^1 || >=3", "", "1.0.0", tags, "3.0.0");
    check("semver=<2", "", "3.0.0", tags, "3.0.0");
    check("semver=<2", "", "-", tags, "1.5.0");
    check("semver=>=4", "", "1.0.0", tags, "1.0.0");
    check("semver=>=4", "", "-", tags, "-");
    // The range alone decides about prereleases, also from one.
    check(
        "semver=>=1",
        "",
        "2.0.0-rc.1",
        "2.0.0-rc.1 2.0.0-rc.2",
        "2.0.0-rc.1",
    );
    check("semver=>=1-0", "", "2.0.0-rc.1", "2.0.0-rc.2", "2.0.0-rc.2");
    // It tests x.y.z of a variant, and `-0` opens no variants.
    check("semver=>=1", "", "1.0.0-alpine", tags, "2.5.0-alpine");
    check("semver=>=1-0", "", "1.0.0", "2.5.0-alpine", "1.0.0");
    check("semver=<2.5.0", "", "1.0.0-alpine", tags, "1.0.0-alpine");
}

#[test]
fn prereleases_and_variants() {
    check("semver", "", "1.0.0", "1.1.0-rc.1 1.1.0-alpine", "1.0.0");
    check(
        "semver",
        "",
        "1.1.0-alpha",
        "1.1.0-beta 1.1.0-RC2 1.1.0-rc10",
        "1.1.0-rc10",
    );
    check(
        "semver",
        "",
        "1.0.0-alpine",
        "1.1.0 1.2.0-debian 1.1.0-alpine 1.2.0-rc.1-alpine",
        "1.1.0-alpine",
    );
    check(
        "semver",
        "",
        "1.2.0-rc.1-alpine",
        "1.2.0-rc.2-alpine 1.2.0-rc.3",
        "1.2.0-rc.2-alpine",
    );
    check(
        "semver",
        "",
        "1.2.0-rc.1-alpine",
        "1.2.0-alpine 1.3.0-rc.1-alpine 1.3.0",
        "1.2.0-alpine",
    );
    check(
        "semver",
        "",
        "1.0.0-alpine3.19",
        "1.1.0-alpine3.20 1.0.1-alpine3.19",
        "1.0.1-alpine3.19",
    );
    check(
        "semver",
        "",
        "1.0.0-a1b2c3d",
        "1.1.0-b1b2c3d 1.1.0",
        "1.0.0-a1b2c3d",
    );
    check(
        "semver",
        "",
        "7-alpine",
        "7.4.1-alpine 7.4.2",
        "7.4.1-alpine",
    );
    // Revisions.
    check(
        "semver",
        "",
        "1.0.0-debian-12-r9",
        "1.0.0-debian-12-r10 1.0.0-debian-11-r99",
        "1.0.0-debian-12-r10",
    );
    check(
        "semver",
        "",
        "1.0.0-debian-12",
        "1.0.0-debian-12-r0",
        "1.0.0-debian-12-r0",
    );
    check(
        "semver",
        "",
        "1.0.0-debian-12-r5",
        "1.0.0-debian-12 1.0.0-debian-12-r4",
        "1.0.0-debian-12-r5",
    );
    check(
        "semver",
        "",
        "1.0.0-debian-12-r5",
        "1.1.0-debian-12-r0 1.0.0-debian-12-r6",
        "1.1.0-debian-12-r0",
    );
    check(
        "semver",
        "",
        "1.0.0-r5",
        "1.0.0-r6 1.1.0 1.1.0-alpine-r1",
        "1.0.0-r6",
    );
    check("semver", "", "1.0.0", "1.0.0-r6 1.1.0-r1", "1.0.0");
    check(
        "semver-patch",
        "",
        "1.0.0-alpine-r1",
        "1.0.0-alpine-r2 1.0.1-alpine-r0",
        "1.0.1-alpine-r0",
    );
}

#[test]
fn patterns_that_name_suffixed_tags() {
    check(
        "semver",
        "-alpine$",
        "-",
        "1.0.0 1.1.0 1.0.0-alpine",
        "1.0.0-alpine",
    );
    check(
        "semver",
        "-alpine$",
        "1.0.0",
        "1.1.0 1.0.1-alpine",
        "1.0.1-alpine",
    );
    check("semver", "-alpine$", "1.2.0", "1.3.0 1.0.1-alpine", "1.2.0");
    check(
        "semver",
        "-alpine$",
        "1.0.0-slim",
        "1.1.0-slim 1.0.1-alpine",
        "1.0.1-alpine",
    );
    check(
        "semver",
        r"-rc\.\d+$",
        "1.0.0",
        "1.1.0-rc.2 1.1.0-rc.10 1.1.0",
        "1.1.0-rc.10",
    );
    check(
        "semver-minor",
        r"-rc\.\d+$",
        "1.0.0-rc.3",
        "1.1.0-rc.1 1.0.0-rc.4 2.0.0-rc.1",
        "1.1.0-rc.1",
    );
    check(
        "semver",
        "-[0-9a-f]{7}$",
        "1.0.0-a1b2c3d",
        "1.0.1-ffeeddc 1.0.0-fffffff",
        "1.0.1-ffeeddc",
    );
    check(
        "semver",
        "-(alpine|slim)$",
        "1.0.0-slim",
        "1.1.0-alpine 1.1.0-slim",
        "1.1.0-slim",
    );
    check(
        "semver",
        "-(alpine|slim)$",
        "-",
        "1.1.0-alpine 1.1.0-slim",
        "1.1.0-alpine",
    );
    // One plain match, and the usual rules hold.
    check(
        "semver",
        "^1",
        "-",
        "1.0.0 1.1.0-alpine 1.1.0-rc.1",
        "1.0.0",
    );
    check(
        "semver",
        "^1",
        "1.0.0",
        "1.0.0 1.1.0-alpine 1.1.0-rc.1",
        "1.0.0",
    );
    check("semver", "^1", "1.0.0", "0.9.0 1.1.0-rc.1", "1.0.0");
    // An explicit range still decides about prereleases.
    check("semver=>=1", r"-rc\.\d+$", "-", "1.1.0-rc.2", "-");
    check(
        "semver=>=1-0",
        r"-rc\.\d+$",
        "-",
        "1.1.0-rc.2",
        "1.1.0-rc.2",
    );
    check(
        "semver=>=1",
        "-alpine$",
        "-",
        "1.1.0-alpine",
        "1.1.0-alpine",
    );
}

#[test]
fn the_seeds_patterns() {
    let plain = r"^\d+.\d+.\d+$";
    check(
        "semver",
        plain,
        "1.2.0",
        "1.2.0 1.2.1 v1.2.2 1.2.3-rc.1 dev-1.2.4",
        "1.2.1",
    );
    check("semver", plain, "latest", "1.2.0 1.2.1 latest", "1.2.1");
    let dev = r"dev-\d+.\d+.\d+$";
    check(
        "semver",
        dev,
        "dev-1.9.0",
        "dev-1.10.0 dev-1.2.0 1.11.0 prod-2.0.0",
        "dev-1.10.0",
    );
    check(
        "semver",
        dev,
        "-",
        "dev-1.10.0 dev-1.2.0 1.11.0",
        "dev-1.10.0",
    );
    // A pattern that matches the prefix only.
    check(
        "semver",
        "^dev-",
        "dev-1.9",
        "dev-1.8.0 dev-1.9.1 2.0.0",
        "dev-1.9.1",
    );
    check("semver", "dev-.*", "dev-1.9", "dev-1.8.0", "dev-1.9");
    check(
        "semver",
        "dev-.*",
        "dev-1.9",
        "dev-1.8.0 dev-1.9.1",
        "dev-1.9.1",
    );
    check(
        "semver-minor",
        dev,
        "dev-1.9.0",
        "dev-1.10.0 dev-2.0.0",
        "dev-1.10.0",
    );
    check("semver", dev, "1.11.0", "dev-1.10.0", "1.11.0");
    check(
        "semver",
        "preview-*",
        "preview-1.1.0",
        "preview-1.1.0 1.2.0",
        "preview-1.1.0",
    );
    check(
        "semver",
        "preview-.*",
        "preview-1.0.0",
        "preview-1.1.0 1.2.0",
        "preview-1.1.0",
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
    check("semver", "", "1.2.0", "v1.2.0 01.2.0 1.2.0", "1.2.0");
    check("semver", "", "1.2.0", "v1.2.0 01.2.0", "1.2.0");
    check("semver", "", "1.2", "1.2.0", "1.2");
    check("semver", "", "v1.1.0", "v1.2.0 1.2.0 0001.2.0", "v1.2.0");
    check("semver", "", "1.1.0", "v1.2.0 1.2.0 0001.2.0", "1.2.0");
    check("semver", "", "2024.01.0", "2024.2.0 2024.02.0", "2024.02.0");
    check("semver", "", "2024.1.0", "2024.2.0 2024.02.0", "2024.2.0");
    check("semver", "", "-", "v1.2.0 1.2.0", "v1.2.0");
    check("semver", "", "-", "v1.2.0 01.2.0", "v1.2.0");
    check("semver", "", "-", "1.02.0 01.2.0", "1.02.0");
    check(
        "semver",
        r"\d+\.\d+\.\d+$",
        "a-1.0.0",
        "a-1.1.0 bcd-1.1.0",
        "a-1.1.0",
    );
    check("always", "", "b1", "b02 b2", "b2");
    check("always", "", "b01", "b002 b2", "b002");
    check("always", "", "-", "b02 b2", "b02");
}

#[test]
fn natural_rules() {
    check("always", "", "1.9", "1.9 1.10 1.2", "1.10");
    check("always", "", "1.9", "1.8", "1.9");
    check("always", "", "1.9", "", "1.9");
    check("always", "", "-", "build-9 build-10", "build-10");
    check("always", "^build-", "1.9", "build-9 build-10 z", "build-10");
    check(
        "always",
        "^build-",
        "build-11",
        "build-9 build-10 z",
        "build-11",
    );
    check("regex=^v", "", "v1.9", "v1.9 v1.10 w2", "v1.10");
    check("regex=^v", "", "x7", "v1.9 v1.10", "v1.10");
    check("regex=^v", "", "v2", "v1.9 v1.10", "v2");
    check("regex=^v", "0$", "v1.9", "v1.8 v1.11 v1.10", "v1.10");
    check("regex=^v", "", "latest", "latest", "-");
}

#[test]
fn extracts_and_excludes() {
    let pick =
        |rule: &str, extract: &str, exclude: &[&str], current: &str, tags: &str, expected: &str| {
            let exclude: Vec<String> = exclude.iter().map(ToString::to_string).collect();
            let (pattern, extract) = if extract.is_empty() {
                (None, None)
            } else {
                (
                    Some(r"^(?<name>[a-z]+)-(?<ver>[\d.]+)-(?<n>\d+)$"),
                    Some(extract),
                )
            };
            let filter = Filter::new(pattern, extract, &exclude).unwrap();
            let decision = choose(rule, &filter, current, tags);
            assert_eq!(
                decision.selected.as_deref().unwrap_or("-"),
                expected,
                "{rule} {extract:?}: {decision:#?}"
            );
        };
    let tags = "app-1.2.0-7 app-1.10.0-3 app-1.9.0-12 other 2.0.0";
    pick("semver", "$ver", &[], "app-1.2.0-7", tags, "app-1.10.0-3");
    pick(
        "semver-minor",
        "${ver}",
        &[],
        "app-1.2.0-7",
        tags,
        "app-1.10.0-3",
    );
    pick(
        "semver",
        "${ver}-r$n",
        &[],
        "app-1.2.0-7",
        "app-1.2.0-8 app-1.2.0-10",
        "app-1.2.0-10",
    );
    pick("semver", "$verx", &[], "-", tags, "-");
    pick("semver", "$ver", &[], "app-1.11-7", tags, "app-1.11-7");
    pick("semver", "$ver", &[], "1.11", tags, "1.11");
    pick("always", "$n", &[], "app-1.2.0-7", tags, "app-1.9.0-12");
    pick("regex=^1", "$n", &[], "-", tags, "app-1.9.0-12");
    pick("always", "$nope", &[], "-", tags, "-");
    pick(
        "semver",
        "",
        &["^1.3", "rc"],
        "1.2.0",
        "1.2.1 1.3.0 1.3.1",
        "1.2.1",
    );
    pick("semver", "", &["."], "1.2.0", "1.2.1", "1.2.0");
    // Excluded while in use: kept until something newer comes.
    pick("semver", "", &["^1.2.0$"], "1.2.0", "1.1.0 1.2.0", "1.2.0");
}

#[test]
fn every_tag_has_its_reason() {
    let hash = "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let reason =
        |rule: &str, pattern: &str, current: &str, tags: &str, tag: &str, expected: &str| {
            let decision = choose(rule, &filter(pattern), current, tags);
            let found = decision
                .rejected
                .iter()
                .find(|rejection| rejection.tag == tag);
            let found = found.unwrap_or_else(|| panic!("{tag} is not rejected: {decision:#?}"));
            assert!(found.reason.contains(expected), "{tag}: {found:?}");
        };
    let lone = |rule: &str, current: &str, tag: &str, expected: &str| {
        reason(rule, "", current, tag, tag, expected);
    };
    lone("semver", "1.0.0", "a+b", "not a legal tag");
    lone(
        "always",
        "1.0.0",
        hash,
        "a signature, attestation or referrers tag",
    );
    for suffix in ["sig", "att", "sbom"] {
        lone("always", "-", &format!("{hash}.{suffix}"), "a signature");
    }
    lone("semver", "1.0.0", "1.25", "not a version x.y.z");
    lone("semver", "1.0.0", "1.0.0", "is the current tag");
    lone("semver", "1.0", "1.0.0", "the same version as current 1.0");
    lone("semver", "1.0.0", "0.9.0", "older than current 1.0.0");
    lone("semver", "1.0.0", "1.1.0-rc1", "a prerelease");
    lone(
        "semver",
        "1.0.0",
        "1.1.0-alpine",
        "variant \"alpine\", but current 1.0.0 has no variant",
    );
    lone(
        "semver",
        "1.0.0-alpine",
        "1.1.0",
        "no variant, but current 1.0.0-alpine has variant \"alpine\"",
    );
    lone("semver", "-", "1.1.0-alpine", "variant \"alpine\"");
    lone("semver", "-", "1.1.0-r1", "variant \"r<number>\"");
    lone("semver=^1", "1.0.0", "2.0.0", "outside the range \"^1\"");
    lone(
        "semver-minor",
        "1.2.3",
        "2.0.0",
        "outside >=1.3.0, <2.0.0 (semver-minor from 1.2.3)",
    );
    lone(
        "semver-major",
        "1.2.3",
        "1.9.0",
        "outside >=2.0.0 (semver-major from 1.2.3)",
    );
    lone("regex=^v", "-", "w", "does not match the regex \"^v\"");
    reason(
        "semver",
        "^v",
        "-",
        "1.0.0",
        "1.0.0",
        "does not match the pattern \"^v\"",
    );
    reason(
        "semver",
        "^v",
        "-",
        "v1",
        "v1",
        "the pattern matches, but there is no version x.y.z",
    );
    // Signature tags need the whole digest.
    check("always", "", "-", "sha256-abc", "sha256-abc");
    check(
        "always",
        "",
        "-",
        &format!("{hash}.other"),
        &format!("{hash}.other"),
    );
}

#[test]
fn decisions_explain_themselves() {
    let explained = |rule: &str, current: &str, tags: &str, expected: &str| {
        assert_eq!(
            choose(rule, &Filter::default(), current, tags).reason,
            expected
        );
    };
    explained(
        "semver-minor",
        "1.0.0",
        "1.1.0 1.2.0",
        "1.2.0 is the newest of 2 tags that semver-minor allows from 1.0.0",
    );
    explained(
        "semver=^1",
        "1.0.0",
        "1.1.0",
        "1.1.0 is the only tag that semver \"^1\" allows from 1.0.0",
    );
    explained(
        "semver",
        "-",
        "1.1.0",
        "1.1.0 is the only tag that semver allows; there is no current tag",
    );
    let compared =
        "1.1.0 is the only tag that semver allows; current \"latest\" cannot be compared";
    explained("semver", "latest", "1.1.0", compared);
    explained(
        "semver",
        "1.0.0",
        "1.0.0 0.9.0",
        "1.0.0 stays: by semver none of 2 tags is newer",
    );
    explained(
        "semver",
        "1.0.0",
        "1.0.0",
        "1.0.0 stays: by semver the only tag listed is not newer",
    );
    explained(
        "semver",
        "1.0.0",
        "",
        "1.0.0 stays: the list of tags is empty",
    );
    let vanished =
        "1.0.0 stays although it is not listed any more: by semver none of 2 tags is newer";
    explained("semver", "1.0.0", "0.8.0 0.9.0", vanished);
    explained("semver", "-", "", "no tag: the list of tags is empty");
    explained(
        "semver",
        "-",
        "a b",
        "no tag: none of 2 tags matches semver",
    );
    let decision = choose(
        "semver",
        &Filter::default(),
        "1.0.0",
        "1.1.0 1.10.0 1.9.0 1.0.0 0.1.0",
    );
    assert_eq!(decision.candidates, ["1.10.0", "1.9.0", "1.1.0"]);
    assert_eq!(
        decision
            .rejected
            .iter()
            .map(|it| it.tag.as_str())
            .collect::<Vec<_>>(),
        ["1.0.0", "0.1.0"]
    );
}

#[test]
fn the_order_between_two_tags() {
    use Ordering::{Equal, Greater, Less};
    let order = |rule_text: &str, pattern: &str, a: &str, b: &str, expected: Option<Ordering>| {
        let (rule, filter) = (rule(rule_text), filter(pattern));
        assert_eq!(
            compare(&rule, &filter, a, b),
            expected,
            "{rule_text} {a} {b}"
        );
        assert_eq!(
            compare(&rule, &filter, b, a),
            expected.map(Ordering::reverse),
            "{rule_text} {b} {a}"
        );
    };
    order("semver-patch", "", "1.9.0", "1.10.0", Some(Less));
    order("semver-patch", "", "1.2", "1.2.0", Some(Equal));
    order("semver=<1", "", "2.0.0", "1.0.0", Some(Greater));
    order("semver", "", "1.2.0-rc.1", "1.2.0", Some(Less));
    order("semver", "", "1.2.0-alpine", "1.2.0", None);
    order("semver", "", "1.2.0-alpine", "1.3.0-slim", None);
    order(
        "semver",
        "",
        "1.2.0-alpine-r9",
        "1.2.0-alpine-r10",
        Some(Less),
    );
    order("semver", "", "1.2.0", "latest", None);
    order("semver", "", "1.2.0", "main", None);
    order("semver", "", "1.2.0", "1.3.0+x", None);
    order("semver", "-alpine$", "1.2.0-alpine", "1.1.0", Some(Greater));
    order("semver", "^1", "1.2.0", "1.3.0-alpine", Some(Less));
    order("semver", "^2", "1.2.0", "1.3.0-alpine", None);
    order(
        "semver",
        "-[0-9a-f]{7}$",
        "1.2.0-aaaaaaa",
        "1.2.0-bbbbbbb",
        Some(Equal),
    );
    order(
        "semver",
        r"dev-\d+.\d+.\d+$",
        "dev-1.2.0",
        "dev-1.10.0",
        Some(Less),
    );
    order("always", "", "1.9", "1.10", Some(Less));
    order("always", "", "latest", "1.10", None);
    order("always", "", "a:b", "1.10", None);
    order("regex=^v", "", "v1", "v2", Some(Less));
    order("regex=^v", "", "v1", "w2", None);
}

mod properties;
