use super::*;

/// `x.y.z|prerelease parts|variant family|revision`, or nothing.
fn show_as(text: &str, grammar: Grammar, reading: Reading) -> Option<String> {
    let version = &Version::parse(text, grammar, reading)?;
    let versioned = Versioned { version, text };
    let parts = versioned.prerelease().map_or(String::new(), |prerelease| {
        let parts = parts(prerelease).map(|part| match part {
            Part::Number(number) => number.to_string(),
            Part::Word(word) => word.to_lowercase(),
        });
        format!("[{}]", parts.collect::<Vec<_>>().join(" "))
    });
    let [major, minor, patch] = &version.core;
    let revision = version.revision.as_ref().map_or(String::new(), ToString::to_string);
    Some(format!("{major}.{minor}.{patch}|{parts}|{}|{revision}", versioned.family().0))
}

fn show(text: &str, reading: Reading) -> Option<String> {
    show_as(text, Grammar::Semver, reading)
}

#[test]
fn candidates() {
    let check = |text: &str, expected: &str| {
        assert_eq!(show(text, Reading::Candidate).as_deref(), Some(expected), "{text}");
    };
    check("1.2.3", "1.2.3|||");
    check("v1.2.3", "1.2.3|||");
    check("01.002.0003", "1.2.3|||");
    check("0.0.0", "0.0.0|||");
    check("1.2.340282366920938463463374607431768211456", "1.2.340282366920938463463374607431768211456|||");
    for text in ["rc1", "rc.1", "RC.1", "rc-1", "rc_1", "Rc01"] {
        check(&format!("1.2.3-{text}"), "1.2.3|[rc 1]||");
    }
    for word in PRERELEASE_WORDS {
        check(&format!("1.2.3-{word}"), &format!("1.2.3|[{word}]||"));
        check(&format!("1.2.3-{word}12"), &format!("1.2.3|[{word} 12]||"));
    }
    check("1.2.3-0", "1.2.3|[0]||");
    check("1.2.3-20240101", "1.2.3|[20240101]||");
    check("1.2.3-alpha.beta.2", "1.2.3|[alpha beta 2]||");
    check("1.2.3-beta-2", "1.2.3|[beta 2]||");
    check("1.2.3-dev.x86", "1.2.3|[dev x 86]||");
    check("1.2.3-rc.1-alpine", "1.2.3|[rc 1]|alpine|");
    check("1.2.3-rc1-debian-12-r5", "1.2.3|[rc 1]|debian-12|5");
    check("1.2.3-rc.1-r5", "1.2.3|[rc 1]||5");
    check("1.2.3-1-alpine", "1.2.3|[1]|alpine|");
    check("1.2.3-nightly-20240101-alpine", "1.2.3|[nightly 20240101]|alpine|");
    check("1.2.3-alpine", "1.2.3||alpine|");
    check("1.2.3-alpine3.19", "1.2.3||alpine3.19|");
    check("1.2.3-alpine-rc1", "1.2.3||alpine-rc1|");
    check("1.2.3-debian-12", "1.2.3||debian-12|");
    check("1.2.3-debian-12-r05", "1.2.3||debian-12|5");
    check("1.2.3-r5", "1.2.3|||5");
    check("1.2.3-r5a", "1.2.3||r5a|");
    check("1.2.3-a1b2c3d", "1.2.3||a1b2c3d|");
    check("1.2.3-1a2b", "1.2.3||1a2b|");
    check("1.2.3-release", "1.2.3||release|");
    check("1.2.3-rcx", "1.2.3||rcx|");
    check("1.2.3--rc1", "1.2.3||-rc1|");
    check("1.2.3--r5", "1.2.3||-r5|");
    check("1.2.3-rc.", "1.2.3|[rc]||");
    check("1.2.3-rc-", "1.2.3|[rc]||");
}

#[test]
fn what_is_no_version_and_how_a_current_tag_is_read() {
    let check = |text: &str, as_current: Option<&str>| {
        assert_eq!(show(text, Reading::Candidate), None, "{text}");
        assert_eq!(show(text, Reading::Current).as_deref(), as_current, "{text}");
    };
    check("1.25", Some("1.25.0|||"));
    check("7", Some("7.0.0|||"));
    check("v7", Some("7.0.0|||"));
    check("1.25-alpine", Some("1.25.0||alpine|"));
    check("7-alpine", Some("7.0.0||alpine|"));
    check("20240101", Some("20240101.0.0|||"));
    check("1.2.3rc1", Some("1.2.3|[rc 1]||"));
    check("1.25rc1-alpine", Some("1.25.0|[rc 1]|alpine|"));
    check("V1.2.3", Some("1.2.3|||"));
    check("vV1.2.3", None);
    check("1.2.3.4", None);
    check("1.2.3_alpine", None);
    check("1.2.3+build", None);
    check("1.2.3-", None);
    check("1.2.3-a b", None);
    check("1.2.3-é", None);
    check("1.2.3 ", None);
    check(" 1.2.3", None);
    check("-1.2.3", None);
    check("1.2.", None);
    check("1..3", None);
    check("1.2.3x", None);
    check("3f2a1bc", None);
    check("7rc1", None);
    check("", None);
    check("v", None);
    check("latest", None);
    check("dev-1.2.3", None);
}

#[test]
fn versions_inside_a_text() {
    let check = |text: &str, expected: Option<(usize, &str)>| {
        let (grammar, reading) = (Grammar::Semver, Reading::Candidate);
        let found = Version::find(text, grammar, reading);
        let expected = expected.map(|(at, version)| (at, Version::parse(version, grammar, reading).unwrap()));
        assert_eq!(found, expected, "{text}");
    };
    check("dev-1.2.3", Some((4, "1.2.3")));
    check("dev-v1.2.3", Some((4, "1.2.3")));
    check("dev1.2.3", Some((3, "1.2.3")));
    check("release.1.2.3", Some((8, "1.2.3")));
    check("app-1.2.3-rc1", Some((4, "1.2.3-rc1")));
    check("2.4-app-1.2.3", Some((8, "1.2.3")));
    check("1.2.3.4", None);
    check("a-1.2.3.4", None);
    check("a-1.2.3b", None);
    check("a-1.2", None);
    check("", None);
    let current = |text: &str| Version::find(text, Grammar::Semver, Reading::Current).map(|(at, _)| at);
    assert_eq!([current("a-1.2"), current("1.2.3.4-rc.1"), current("a-7")], [Some(2), None, None]);
}

#[test]
fn prereleases_are_ordered() {
    let ascending = [
        "1.0.0-0",
        "1.0.0-1",
        "1.0.0-alpha",
        "1.0.0-alpha.1",
        "1.0.0-alpha.beta",
        "1.0.0-beta",
        "1.0.0-beta.2",
        "1.0.0-BETA.11",
        "1.0.0-rc2",
        "1.0.0-rc.10",
        "1.0.0-rc.18446744073709551616",
        "1.0.0",
        "1.0.1-rc.1",
        "1.9.0",
        "1.10.0",
    ];
    let versions = ascending.map(|text| Version::parse(text, Grammar::Semver, Reading::Candidate).unwrap());
    let versioned = |at: usize| Versioned { version: &versions[at], text: ascending[at] };
    for (i, a) in (0..ascending.len()).map(|at| (at, versioned(at))) {
        for (j, b) in (0..ascending.len()).map(|at| (at, versioned(at))) {
            assert_eq!(a.cmp_versions(b), Some(i.cmp(&j)), "{} {}", ascending[i], ascending[j]);
        }
    }
}

#[test]
fn dates() {
    let check = |text: &str, expected: Option<&str>| {
        let found = show_as(text, Grammar::Calver { any_word: false }, Reading::Candidate);
        assert_eq!(found.as_deref(), expected, "{text}");
    };
    check("2024", Some("2024.0.0|||"));
    check("24", Some("24.0.0|||"));
    check("2024.01", Some("2024.1.0|||"));
    check("2024.0.0", Some("2024.0.0|||"));
    check("v2024.01.09", Some("2024.1.9|||"));
    check("24.1.1", Some("24.1.1|||"));
    check("2024.01.01-dev.1", Some("2024.1.1|[dev 1]||"));
    check("2024.01-rc1-alpine-r2", Some("2024.1.0|[rc 1]|alpine|2"));
    check("24.04-slim", Some("24.4.0||slim|"));
    check("2024-5", Some("2024.0.0|[5]||"));
    for no in [
        "",
        "v",
        "V2024.01",
        "202",
        "20240101",
        "1.2.3",
        "2024.",
        "2024.100",
        "2024.01.100",
        "2024.01.01.01",
        "2024.01-",
    ] {
        check(no, None);
    }
    for no in ["2024.01rc1", "2024_01", "2024.01+x", "2024..01", "dev-2024.01"] {
        check(no, None);
    }
    let any_word = |text: &str| show_as(text, Grammar::Calver { any_word: true }, Reading::Candidate);
    assert_eq!(any_word("2024.01-build.7").as_deref(), Some("2024.1.0|[build 7]||"));
    assert_eq!(any_word("2024.01-rc.7-alpine").as_deref(), Some("2024.1.0|[rc 7]|alpine|"));
}

#[test]
fn words_and_numbers() {
    let check = |text: &str, word: &str, number: Option<u64>| {
        let version = &Version::parse(text, Grammar::Calver { any_word: true }, Reading::Candidate).unwrap();
        let found = Versioned { version, text }.word_and_number();
        assert_eq!(found, Some((word, number.map(Number::Small))), "{text}");
    };
    check("2024.01-dev.1", "dev", Some(1));
    check("2024.01-rc2", "rc", Some(2));
    check("2024.01-alpha.beta.2", "alpha.beta", Some(2));
    check("2024.01-dev", "dev", None);
    check("2024.01-7", "", Some(7));
    check("2024.01-build-7", "build", Some(7));
    check("2024.01-rc.3-alpine", "rc", Some(3));
}
