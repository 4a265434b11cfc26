use super::*;

#[test]
fn every_tag_has_its_reason() {
    let hash = "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    // rule ; pattern ; current ; the only tag ; its reason
    let rows = r#"
        semver ; ; 1.0.0 ; a+b ; not a legal tag: 1 to 128 letters, digits, `_`, `.`, `-`, and no `.` or `-` first
        always ; ; 1.0.0 ; HASH ; a signature, attestation or referrers tag
        always ; ; - ; HASH.sig ; a signature, attestation or referrers tag
        always ; ; - ; HASH.att ; a signature, attestation or referrers tag
        always ; ; - ; HASH.sbom ; a signature, attestation or referrers tag
        semver ; ; 1.0.0 ; 1.25 ; not a version x.y.z: it has two parts, not three
        semver ; ; 1.0.0 ; v1.25-alpine ; not a version x.y.z: it has two parts, not three
        semver ; ; 1.0.0 ; 20240101 ; not a version x.y.z: it has one part, not three
        semver ; ; 1.0.0 ; 3f2a1bc ; not a version x.y.z: it has one part, not three
        semver ; ; 1.0.0 ; 1.2.3.4 ; not a version x.y.z: it has more than three parts
        semver ; ; 1.0.0 ; V1.2.3 ; not a version x.y.z: it begins with V, and only a lower-case v is read
        semver ; ; 1.0.0 ; 1.2.3rc1 ; not a version x.y.z: a dash is missing before "rc1"
        semver ; ; 1.0.0 ; 1.2.3_alpine ; not a version x.y.z: a dash is missing before "_alpine"
        semver ; ; 1.0.0 ; 1.2.3- ; not a version x.y.z: nothing follows the dash
        semver ; ; 1.0.0 ; main ; not a version x.y.z: it does not begin with a number
        semver ; ; 1.0.0 ; dev-1.2.3 ; not a version x.y.z: "dev-" stands before it, which a pattern could name
        semver ; ; 1.0.0 ; 1.0.0 ; is the current tag
        semver ; ; 1.0.0-rc.1.4 ; 1.0.0-rc.1.4 ; is the current tag
        semver ; ; 1.0 ; 1.0 ; is the current tag
        semver ; ; 1.0 ; 1.0.0 ; the same version as current 1.0
        semver ; ; 1.0.0 ; 0.9.0 ; older than current 1.0.0
        semver ; ; 1.0.0 ; 1.1.0-rc1 ; a prerelease: only followed from a prerelease of the same version, \
            or by a range such as >=1.0.0-0
        semver ; ; 1.0.0 ; 1.1.0-alpine ; variant "alpine", but current 1.0.0 has no variant
        semver ; ; 1.0.0-alpine ; 1.1.0 ; no variant, but current 1.0.0-alpine has variant "alpine"
        semver ; ; - ; 1.1.0-alpine ; variant "alpine": to start with one, set it as the base tag or \
            name it in the pattern
        semver ; ; 1.0.0 ; 1.1.0-r1 ; variant "r<number>", but current 1.0.0 has no variant
        semver=^1 ; ; 1.0.0 ; 2.0.0 ; outside the range "^1"
        semver-patch ; ; 1.2.3 ; 1.3.0 ; outside >=1.2.4, <1.3.0 (semver-patch from 1.2.3)
        semver-minor ; ; 1.2.3 ; 2.0.0 ; outside >=1.3.0, <2.0.0 (semver-minor from 1.2.3)
        semver-major ; ; 1.2.3 ; 1.9.0 ; outside >=2.0.0 (semver-major from 1.2.3)
        regex=^v ; ; - ; w ; does not match the regex "^v"
        semver ; ^v ; - ; 1.0.0 ; does not match the pattern "^v"
        semver ; ^v ; - ; v1 ; matches the pattern, but is not a version x.y.z: it has one part, not three
        patch ; ; 1.2.3 ; 1.3.0 ; outside >=1.2.3, <1.3.0 (patch from 1.2.3)
        minor ; ; 1.2.3 ; 2.0.0 ; outside >=1.2.3, <2.0.0 (minor from 1.2.3)
        major ; ; 1.2.3 ; 1.2.2 ; older than current 1.2.3
        calver-major ; ; 2024.01 ; 1.2.3 ; not a calendar version YYYY.MM.DD or YY.MM.DD: its year has 1 digit, not 4 or 2
        calver-major ; ; 2024.01 ; 20240101 ; not a calendar version YYYY.MM.DD or YY.MM.DD: its year has 8 digits, not 4 or 2
        calver-major ; ; 2024.01 ; main ; not a calendar version YYYY.MM.DD or YY.MM.DD: it does not begin with a year
        calver-major ; ; 2024.01 ; 2024.100 ; not a calendar version YYYY.MM.DD or YY.MM.DD: month and day have at most \
            two digits
        calver-major ; ; 2024.01 ; 2024.1.2.3 ; not a calendar version YYYY.MM.DD or YY.MM.DD: it has more than three parts
        calver-major ; ; 2024.01 ; 2024.01rc1 ; not a calendar version YYYY.MM.DD or YY.MM.DD: only a dash may follow the date
        calver-major ; ; 2024.01 ; 25.01 ; years of two and of four digits are not compared (current is 2024.01)
        calver-minor ; ; 2024.01.5 ; 2025.01 ; outside >=2024.2.0, <2025.0.0 (calver-minor from 2024.01.5)
        calver-prerelease ; ; 2024.01-rc.1 ; 2024.01 ; calver-prerelease keeps the date and the word of current \
            2024.01-rc.1, and raises its number
        timestamp ; ; - ; 20240101120000 ; not a unix time: its number has 14 digits, not 10 or 13 digits; use numerical
        timestamp ; ; - ; a-20240101 ; not a unix time: its number has 8 digits, not 10 or 13 digits; use numerical
        timestamp ; ; - ; 1.2.3 ; not a unix time: it has no number of 10 (seconds) or 13 (milliseconds) digits
        timestamp ; ; 1700000000 ; 1600000000 ; older than current 1700000000
        timestamp ; ; 1700000000 ; 1700000000000 ; the same version as current 1700000000
        numerical ; ; - ; 1.5 ; not an integer (of several numbers, name one with extract)
        numerical ; ^b ; - ; b1.5 ; matches the pattern, but is not an integer (of several numbers, name one with extract)
        alphabetical ; ; b ; a ; older than current b
        alphabetical=desc ; ; a ; b ; older than current a
        digest ; ; stable ; edge ; another tag: digest keeps the tag and follows its digest
        digest ; ; latest ; latest ; is the current tag
        digest ; ; stable ; HASH.sig ; a signature, attestation or referrers tag"#
        .replace("\\\n", " ")
        .replace("HASH", hash);
    for row in rows.lines().skip(1) {
        let words = row.split_whitespace().collect::<Vec<_>>().join(" ");
        let cells: Vec<&str> = words.splitn(5, ';').map(str::trim).collect();
        let decision = ask(cells[0], &filter(cells[1]), cells[2], cells[3]);
        assert_eq!(decision.rejected, [(cells[3].to_owned(), cells[4].to_owned())], "{row}");
        assert!(decision.candidates.is_empty(), "{row}");
    }
}

#[test]
fn signature_tags_need_the_whole_digest() {
    let hash = "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    for tag in ["sha256-abc", &hash.replace("e3", "g3"), &format!("{hash}.x"), &format!("{hash}0")] {
        check("always", "", "-", tag, tag);
    }
}

#[test]
fn extracts_and_excludes_are_named() {
    let filter = Filter::new(Some("^(a+)-"), Some("$1.$1"), &["z$".to_owned()]).unwrap();
    let decision = ask("semver", &filter, "-", "aa-1 aa-z");
    let reasons: Vec<&str> = decision.rejected.iter().map(|(_, reason)| reason.as_str()).collect();
    assert_eq!(
        reasons,
        ["excluded by \"z$\"", "the extract \"aa.aa\" is not a version x.y.z: it does not begin with a number"]
    );
}

#[test]
fn decisions_explain_themselves() {
    // rules ; current ; tags ; reason
    let rows = r#"
        semver-minor ; 1.0.0 ; 1.1.0 1.2.0 ; 1.2.0 is the newest tag that semver-minor allows from 1.0.0
        semver=^1 ; 1.0.0 ; 1.1.0 ; 1.1.0 is the newest tag that semver "^1" allows from 1.0.0
        semver ; latest ; 1.1.0 ; 1.1.0 is the newest tag that semver allows: current "latest" cannot be compared
        semver ; - ; 1.1.0 ; 1.1.0 is the newest tag that semver allows: there is no current tag
        alphabetical=desc ; b ; a ; a is the newest tag that alphabetical:desc allows from b
        semver-minor + semver-major ; 1.0.0 ; 1.1.0 2.0.0 ; 2.0.0 is the newest tag that semver-major allows from 1.1.0
        semver ; 1.0.0 ; 1.0.0 0.9.0 ; 1.0.0 stays: no tag listed is newer by semver
        patch + minor ; 1.0.0 ; 1.0.0 ; 1.0.0 stays: no tag listed is newer by patch or minor
        semver ; 1.0.0 ; ; 1.0.0 stays: the list of tags is empty
        semver ; 1.0.0 ; 0.8.0 0.9.0 ; 1.0.0 stays although it is not listed any more: no tag listed is newer by semver
        semver ; - ; ; no tag: the list of tags is empty
        regex=z ; - ; a b ; no tag: none of those listed matches regex "z"
        digest ; stable ; a b ; stable stays: digest keeps the tag and follows its digest
        digest ; - ; a b ; no tag: digest needs a tag to follow, set the current or base tag"#;
    for row in rows.lines().skip(1) {
        let cells: Vec<&str> = row.split(';').map(str::trim).collect();
        let decision = ask(cells[0], &Filter::default(), cells[1], cells[2]);
        assert_eq!(decision.reason, cells[3]);
    }
}

/// Of the reasons under several rules the one that says most: where the tag came furthest, else the last.
#[test]
fn one_reason_under_several_rules() {
    // rules ; current ; tags ; reason of the last tag
    let rows = r"
        timestamp + semver ; 1.0.0 ; 1.0.0 ; is the current tag
        semver + timestamp ; 1.0.0 ; 0.9.0 ; older than current 1.0.0
        timestamp + semver ; 1.0.0 ; main ; not a version x.y.z: it does not begin with a number
        semver-patch + semver-minor ; 1.0.0 ; 1.0.4 2.0.0 ; outside >=1.1.0, <2.0.0 (semver-minor from 1.0.4)
        semver-patch + semver-minor ; 1.0.0 ; 1.0.4 1.1.0 1.0.0 ; is the current tag
        always + regex=^1 ; 9 ; 9 1.5 ; older than current 9";
    for row in rows.lines().skip(1) {
        let cells: Vec<&str> = row.split(" ; ").map(str::trim).collect();
        let decision = ask(cells[0], &Filter::default(), cells[1], cells[2]);
        let tag = cells[2].split(' ').next_back().unwrap();
        let reason = decision.rejected.iter().find(|(rejected, _)| rejected == tag);
        assert_eq!(reason.map(|(_, reason)| reason.as_str()), Some(cells[3]), "{row}");
    }
}

#[test]
fn candidates_and_rejections_are_in_order() {
    let tags = "1.1.0 1.10.0 1.9.0 1.0.0 0.1.0 0.10.0 0.9.0";
    let decision = ask("semver", &Filter::default(), "1.0.0", tags);
    assert_eq!(decision.candidates, ["1.10.0", "1.9.0", "1.1.0"]);
    let rejected: Vec<&str> = decision.rejected.iter().map(|(tag, _)| tag.as_str()).collect();
    assert_eq!(rejected, ["1.0.0", "0.10.0", "0.9.0", "0.1.0"]);
    // Of several rules the last one's come first.
    let decision =
        ask("semver-patch + semver-minor + timestamp", &Filter::default(), "1.0.0", "1.0.4 1.0.3 1.2.0 1.1.0");
    assert_eq!(decision.candidates, ["1.2.0", "1.1.0", "1.0.4", "1.0.3"]);
    assert_eq!(decision.rule, Some(1));
}
