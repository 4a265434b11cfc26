use super::*;

#[test]
fn every_tag_has_its_reason() {
    let hash = "sha256-e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    // rule ; pattern ; current ; the only tag ; its reason
    let rows = r#"
        semver ; ; 1.0.0 ; a+b ; not a legal tag
        always ; ; 1.0.0 ; HASH ; a signature, attestation or referrers tag
        always ; ; - ; HASH.sig ; a signature, attestation or referrers tag
        always ; ; - ; HASH.att ; a signature, attestation or referrers tag
        always ; ; - ; HASH.sbom ; a signature, attestation or referrers tag
        semver ; ; 1.0.0 ; 1.25 ; not a version x.y.z
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
        semver ; ^v ; - ; v1 ; the pattern matches, but there is no version x.y.z"#
        .replace("\\\n", " ")
        .replace("HASH", hash);
    for row in rows.lines().skip(1) {
        let words = row.split_whitespace().collect::<Vec<_>>().join(" ");
        let cells: Vec<&str> = words.split(';').map(str::trim).collect();
        let decision = choose(cells[0], &filter(cells[1]), cells[2], cells[3]);
        let expected = Rejection { tag: cells[3].to_owned(), reason: cells[4].to_owned() };
        assert_eq!(decision.rejected, [expected], "{row}");
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
    let decision = choose("semver", &filter, "-", "aa-1 aa-z");
    let reasons: Vec<&str> = decision.rejected.iter().map(|it| it.reason.as_str()).collect();
    assert_eq!(reasons, ["excluded by \"z$\"", "the extract \"aa.aa\" is not a version x.y.z"]);
}

#[test]
fn decisions_explain_themselves() {
    // rule ; current ; tags ; reason
    let rows = r#"
        semver-minor ; 1.0.0 ; 1.1.0 1.2.0 ; 1.2.0 is the newest of 2 tags that semver-minor allows from 1.0.0
        semver=^1 ; 1.0.0 ; 1.1.0 ; 1.1.0 is the only tag that semver "^1" allows from 1.0.0
        semver ; latest ; 1.1.0 ; 1.1.0 is the only tag that semver allows: current "latest" cannot be compared
        semver ; - ; 1.1.0 ; 1.1.0 is the only tag that semver allows: there is no current tag
        semver ; 1.0.0 ; 1.0.0 0.9.0 ; 1.0.0 stays: by semver none of 2 tags is newer
        semver ; 1.0.0 ; 1.0.0 ; 1.0.0 stays: by semver the only tag listed is not newer
        semver ; 1.0.0 ; ; 1.0.0 stays: the list of tags is empty
        semver ; 1.0.0 ; 0.8.0 0.9.0 ; 1.0.0 stays although it is not listed any more: by semver none of 2 tags is newer
        semver ; - ; ; no tag: the list of tags is empty
        regex=z ; - ; a ; no tag: the only tag listed does not match regex "z"
        regex=z ; - ; a b ; no tag: none of 2 tags matches regex "z""#;
    for row in rows.lines().skip(1) {
        let cells: Vec<&str> = row.split(';').map(str::trim).collect();
        let decision = choose(cells[0], &Filter::default(), cells[1], cells[2]);
        assert_eq!(decision.reason, cells[3]);
    }
}

#[test]
fn candidates_and_rejections_are_in_order() {
    let tags = "1.1.0 1.10.0 1.9.0 1.0.0 0.1.0 0.10.0 0.9.0";
    let decision = choose("semver", &Filter::default(), "1.0.0", tags);
    assert_eq!(decision.candidates, ["1.10.0", "1.9.0", "1.1.0"]);
    let rejected: Vec<&str> = decision.rejected.iter().map(|it| it.tag.as_str()).collect();
    assert_eq!(rejected, ["1.0.0", "0.10.0", "0.9.0", "0.1.0"]);
}
