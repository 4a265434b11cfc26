//! A table for each policy; the versions of `semver` and its steps have theirs in the parent module.

use super::*;

#[test]
fn patch_minor_major() {
    check_rows(
        "1.2.2 1.2.3 1.2.4 1.2.10 1.3.0 1.10.1 2.0.0 10.1.0 11.0.0-rc.1 1.2.11-alpine latest",
        r"
        patch ; ; 1.2.3  ; TAGS ; 1.2.10
        minor ; ; 1.2.3  ; TAGS ; 1.10.1
        major ; ; 1.2.3  ; TAGS ; 10.1.0
        # Unlike a step, it takes what lies before the next number too.
        minor ; ; 1.2.3  ; 1.2.3 1.2.4 ; 1.2.4
        major ; ; 1.2.3  ; 1.2.4 1.3.0 ; 1.3.0
        patch ; ; 1.2.10 ; TAGS ; 1.2.10
        patch ; ; 1.2    ; TAGS ; 1.2.10
        patch ; ; 1.2.11 ; TAGS ; 1.2.11
        minor ; ; 1.11.0 ; TAGS ; 1.11.0
        patch ; ; -      ; TAGS ; 10.1.0
        patch ; ; latest ; TAGS ; 10.1.0
        minor ; ; 0.9.0  ; 0.10.0 1.0.0 ; 0.10.0
        patch ; ; 0.0.9  ; 0.0.10 0.1.0 ; 0.0.10
        patch ; ; 1.2.3  ; v1.2.4 1.2.3 ; v1.2.4
        patch ; ; v1.2.3 ; v1.2.4 1.2.4 ; v1.2.4
        patch ; ; 1.2.3  ; ; 1.2.3
        # Prereleases and variants as elsewhere.
        patch ; ; 1.2.3-rc.1 ; 1.2.3-rc.2 1.2.3-rc.10 1.2.4-rc.1 ; 1.2.3-rc.10
        patch ; ; 1.2.3-rc.1 ; 1.2.3-rc.2 1.2.3 ; 1.2.3
        patch ; ; 1.2.3-rc.1 ; 1.2.9 1.3.0 ; 1.2.9
        minor ; ; 2.0.0-rc.1 ; 2.0.0 2.4.0 3.0.0 ; 2.4.0
        major ; ; 1.0.0 ; 2.0.0-rc.1 ; 1.0.0
        minor ; ; 1.2.3-alpine ; 1.4.0-alpine 1.5.0 1.6.0-slim ; 1.4.0-alpine
        minor ; -alpine$ ; 1.2.3 ; 1.4.0-alpine 1.5.0 2.0.0-alpine ; 1.4.0-alpine
        major ; ^\d+\.\d+\.\d+-rc ; 1.0.0-rc.1 ; 1.0.0-rc.2 2.0.0-rc.1 ; 2.0.0-rc.1
        minor ; ^\d+\.\d+\.\d+-rc ; 1.0.0-rc.1 ; 1.0.0-rc.2 2.0.0-rc.1 ; 1.0.0-rc.2
        ",
    );
}

#[test]
fn calver() {
    check_rows(
        "2023.12.31 2024.01.02 2024.01.09 2024.01.10 2024.02 2024.11.05 2025.01.01 2026 25.12.01 v2024.01.04 20270101",
        r"
        calver-patch ; ; 2024.01.02 ; TAGS ; 2024.01.10
        calver-minor ; ; 2024.01.02 ; TAGS ; 2024.11.05
        calver-major ; ; 2024.01.02 ; TAGS ; 2026
        calver-patch ; ; 2024.01.10 ; TAGS ; 2024.01.10
        # A step begins at the next number.
        calver-minor ; ; 2024.01.02 ; 2024.01.03 ; 2024.01.02
        calver-major ; ; 2024.01.02 ; 2024.02 ; 2024.01.02
        calver-patch ; ; 2024.01.02 ; 2024.02 ; 2024.01.02
        # Precisions mix: what is missing is zero.
        calver-minor ; ; 2024 ; 2024.01.02 2025 ; 2024.01.02
        calver-patch ; ; 2024.01 ; 2024.01.02 2024.02 ; 2024.01.02
        calver-major ; ; 2024.01.02 ; 2025 2024.12 ; 2025
        calver-minor ; ; 2024.01.02 ; 2024.03 2024.02.27 ; 2024.03
        # Short and long years do not.
        calver-major ; ; 24.01 ; 2025.01 25.02 24.09 ; 25.02
        calver-major ; ; 24.01 ; 2025.01 ; 24.01
        calver-major ; ; 2024.01 ; 99.01 ; 2024.01
        calver-major ; ; - ; 2024.01 25.02 ; 2024.01
        # Month 0, leading zeros and a leading v.
        calver-minor ; ; 2024.0.0 ; 2024.1.0 2024.0.1 ; 2024.1.0
        calver-patch ; ; 2024.0.0 ; 2024.0.1 2024.0.2 2024.1.0 ; 2024.0.2
        calver-minor ; ; 2024.01 ; 2024.2 2024.02 ; 2024.02
        calver-minor ; ; 2024.1 ; 2024.2 2024.02 ; 2024.2
        calver-minor ; ; v2024.1 ; 2024.2 v2024.2 ; v2024.2
        calver-minor ; ; v2024.01.09 ; v2024.02.01 ; v2024.02.01
        calver-minor ; ; - ; 24.04 24.10 ; 24.10
        calver-minor ; ; 1.2.3 ; 24.04 24.10 ; 24.10
        calver-minor ; ; latest ; TAGS ; 2026
        # Prereleases and variants.
        calver-minor ; ; 2024.01 ; 2024.02-rc.1 2024.02-alpine ; 2024.01
        calver-patch ; ; 2024.0.0-dev.1 ; 2024.0.0-dev.2 2024.0.1-dev.1 ; 2024.0.0-dev.2
        calver-patch ; ; 2024.0.0-dev.1 ; 2024.0.0-dev.2 2024.0.0 ; 2024.0.0
        calver-minor ; ; 24.04-slim ; 24.10-slim 24.10 25.04-slim ; 24.10-slim
        calver-minor ; ^\d\d\.\d\d-slim$ ; 24.04 ; 24.10-slim 24.12 ; 24.10-slim
        # Inside of a pattern's match.
        calver-minor ; ^rel- ; rel-24.04 ; rel-24.10 24.12 rel-25.04 ; rel-24.10
        ",
    );
}

#[test]
fn calver_prerelease() {
    check_rows(
        "2024.01-dev.1 2024.01-dev.2 2024.01-dev.10 2024.01-rc.3 2024.02-dev.20 2024.01 2024.02",
        r"
        calver-prerelease ; ; 2024.01-dev.1 ; TAGS ; 2024.01-dev.10
        calver-prerelease ; ; 2024.01-dev.10 ; TAGS ; 2024.01-dev.10
        calver-prerelease ; ; 2024.01-dev ; TAGS ; 2024.01-dev.10
        calver-prerelease ; ; 2024.01 ; TAGS ; 2024.01
        calver-prerelease ; ; - ; TAGS ; 2024.02
        calver-prerelease ; ; - ; 2024.01-dev.1 ; -
        calver-prerelease ; -dev ; - ; 2024.01-dev.1 2024.01-dev.2 ; 2024.01-dev.2
        calver-prerelease ; -dev ; 2024.01-dev.1 ; 2024.01-dev.2 2024.02-dev.3 ; 2024.01-dev.2
        calver-prerelease ; ; 2024.01-rc1 ; 2024.01-RC.2 2024.01.00-rc-3 ; 2024.01.00-rc-3
        # Any word will do.
        calver-prerelease ; ; 24.1-build.9 ; 24.1-build.10 24.1-other.11 ; 24.1-build.10
        calver-prerelease ; ; 24.1-rc.1-alpine ; 24.1-rc.2-alpine 24.1-rc.3 ; 24.1-rc.2-alpine
        # A packaging revision is not that number.
        calver-prerelease ; ; 24.1-rc.1-alpine-r1 ; 24.1-rc.1-alpine-r2 ; 24.1-rc.1-alpine-r1
        ",
    );
}

#[test]
fn timestamp() {
    check_rows(
        "1600000000 1700000000 1650000000000 main-1680000000 20240101120000",
        r"
        timestamp ; ; -          ; TAGS ; 1700000000
        timestamp ; ; 1600000000 ; TAGS ; 1700000000
        timestamp ; ; 1800000000 ; TAGS ; 1800000000
        timestamp ; ; latest     ; TAGS ; 1700000000
        timestamp ; ; 20240101   ; TAGS ; 1700000000
        # Seconds and milliseconds are one time line.
        timestamp ; ; 1700000000 ; 1700000000001 1600000000999 ; 1700000000001
        timestamp ; ; 1700000000999 ; 1700000000 1700000001 ; 1700000001
        timestamp ; ; 1700000000 ; 1700000000000 ; 1700000000
        timestamp ; ; - ; 1700000000 1700000000000 ; 1700000000000
        # The first maximal run of exactly so many digits.
        timestamp ; ; - ; 12345678901-1700000000 1600000000-1800000000 ; 12345678901-1700000000
        timestamp ; ; - ; a1700000000b2 17000000001 ; a1700000000b2
        # The tag is read, also what the pattern does not match of it.
        timestamp ; ^main- ; main-1600000000 ; main-1700000000 dev-1800000000 ; main-1700000000
        timestamp ; ^main- ; dev-1800000000 ; main-1700000000 ; dev-1800000000
        ",
    );
}

#[test]
fn numerical() {
    check_rows(
        "9 10 100 007 1.5 1e9 v11 main",
        r"
        numerical ; ; -   ; TAGS ; 100
        numerical ; ; 10  ; TAGS ; 100
        numerical ; ; 101 ; TAGS ; 101
        numerical ; ; latest ; TAGS ; 100
        numerical ; ; 1.5 ; TAGS ; 100
        numerical ; ; - ; 20240101120000 20240101120001 ; 20240101120001
        numerical ; ; - ; 9007199254740993 9007199254740992 ; 9007199254740993
        numerical ; ; - ; 99999999999999999999999999999998 99999999999999999999999999999999 ; 99999999999999999999999999999999
        numerical ; ; 9 ; 18446744073709551616 18446744073709551615 ; 18446744073709551616
        numerical ; ; 10 ; 010 0010 ; 10
        numerical ; ; 9 ; 10 010 ; 10
        numerical ; ; 09 ; 10 010 ; 010
        numerical ; ; - ; 10 010 ; 010
        # With a pattern, the first integer inside the match.
        numerical ; ^build-\d+$ ; build-9 ; build-10 build-9 11 ; build-10
        numerical ; ^build- ; build-9 ; build-10 ; build-10
        numerical ; ^build ; build9 ; build10 build-3rd build-12.5 ; build10
        numerical ; \d+ ; - ; 1.5 0.3 7 ; 7
        numerical ; ^build- ; 12 ; build-10 ; 12
        ",
    );
}

#[test]
fn alphabetical() {
    check_rows(
        "alpha Bravo charlie 10 9 _x",
        r"
        alphabetical      ; ; -     ; TAGS ; charlie
        alphabetical=asc  ; ; alpha ; TAGS ; charlie
        asc               ; ; alpha ; TAGS ; charlie
        alphabetical:asc  ; ; delta ; TAGS ; delta
        alphabetical:desc ; ; -     ; TAGS ; 10
        alphabetical=desc ; ; 9     ; TAGS ; 10
        desc              ; ; 0     ; TAGS ; 0
        alphabetical      ; ; 10    ; 9 10 ; 9
        # What the pattern does not match counts as none.
        alphabetical ; ^[A-Z] ; zulu ; TAGS ; Bravo
        alphabetical ; ^[A-Z] ; Zulu ; TAGS ; Zulu
        desc ; ^[a-z] ; 10 ; TAGS ; alpha
        alphabetical ; ; latest ; b a ; b
        ",
    );
}

#[test]
fn digest() {
    check_rows(
        "1.0.0 2.0.0 latest stable",
        r"
        digest ; ; stable ; TAGS ; stable
        digest ; ; latest ; TAGS ; latest
        digest ; ; 1.0.0  ; TAGS ; 1.0.0
        digest ; ; gone   ; TAGS ; gone
        digest ; ; gone   ; ; gone
        digest ; ^2 ; 1.0.0 ; TAGS ; 1.0.0
        digest ; ; -      ; TAGS ; -
        digest ; ; not/legal ; TAGS ; -
        ",
    );
}

#[test]
fn the_seeds_examples() {
    check_rows(
        "",
        r"
        semver    ; ^\d+.\d+.\d+$     ; 1.2.0     ; 1.2.0 1.2.1 1.2.1-rc.1 dev-9.9.9 latest ; 1.2.1
        semver    ; dev-\d+.\d+.\d+$  ; dev-1.2.0 ; dev-1.2.0 dev-1.2.1 1.9.0 ; dev-1.2.1
        timestamp ; .*                ; 1700000000 ; 1700000000 1700000060 main-1700000090 main ; main-1700000090
        timestamp ; preview-*         ; preview-1700000000 ; preview-1700000060 1800000000 ; preview-1700000060
        # The default pattern, x.x.x: without one, plain tags come to the same.
        semver    ; ; 1.2.0 ; 1.2.0 1.2.1 1.2.2-rc.1 dev-9.9.9 latest ; 1.2.1
        ",
    );
}

#[test]
fn extracts_of_numbers() {
    let listed = "main-9-1700000000 main-10-1600000000 main-x other-11-1800000000";
    let rows = r"
        timestamp    ; $ts     ; -                  ; main-9-1700000000
        timestamp    ; $n      ; -                  ; -
        numerical    ; $n      ; -                  ; main-10-1600000000
        numerical    ; ${n}    ; main-9-1700000000  ; main-10-1600000000
        numerical    ; $n.$n   ; -                  ; -
        numerical    ; $n$ts   ; -                  ; main-10-1600000000
        alphabetical ; $n      ; -                  ; main-9-1700000000
        alphabetical ; $n      ; other-99-1         ; main-9-1700000000
        alphabetical:desc ; $n ; -                  ; main-10-1600000000
        calver-patch ; 24.$n   ; main-9-1700000000  ; main-9-1700000000
        calver-minor ; 24.$n   ; main-9-1700000000  ; main-10-1600000000
        minor        ; 1.$n.0  ; main-9-1700000000  ; main-10-1600000000";
    for row in rows.lines().skip(1) {
        let cells: Vec<&str> = row.split(';').map(str::trim).collect();
        let filter = Filter::new(Some(r"^main-(?P<n>\d+)-(?P<ts>\d+)$"), Some(cells[1]), &[]).unwrap();
        let decision = ask(cells[0], &filter, cells[2], listed);
        assert_eq!(decision.selected.as_deref().unwrap_or("-"), cells[3], "{row}: {decision:#?}");
    }
}

#[test]
fn several_rules() {
    check_rows(
        "1.0.0 1.0.4 1.3.0 1.3.2 2.0.0 2.1.0",
        r"
        semver-patch + semver-minor ; ; 1.0.0 ; TAGS ; 1.3.2
        semver-minor + semver-patch ; ; 1.0.0 ; TAGS ; 1.3.2
        semver-minor + semver-patch ; ; 1.0.0 ; 1.0.4 ; 1.0.4
        semver-patch + semver-minor + semver-major ; ; 1.0.0 ; TAGS ; 2.1.0
        patch + semver-major ; ; 1.0.0 ; 1.0.4 1.3.0 ; 1.0.4
        semver-minor + timestamp ; ; 1.0.0 ; TAGS ; 1.3.2
        timestamp + semver-minor ; ; 1.0.0 ; TAGS ; 1.3.2
        timestamp + semver-minor ; ; 1.9.0 ; 1.0.4 ; 1.9.0
        timestamp + semver-minor ; ; - ; main ; -
        semver-minor + digest ; ; latest ; main ; latest
        semver-minor + digest ; ; 1.0.0 ; TAGS ; 1.3.2
        # A rule that cannot read the current tag does not go behind it by the order of one that can.
        always + regex=^1 ; ; 9 ; 1.5 9 ; 9
        always + regex=^1 ; ; 9 ; 1.5 9 10 ; 10
        semver + timestamp ; ^(1|2)\. ; 2.0.0 ; 1.1700000000.0 2.1.0 ; 2.1.0
        ",
    );
}

#[test]
fn the_order_between_two_tags_of_each_policy() {
    // rule ; pattern ; a ; order ; b
    let rows = r"
        patch ; ; 1.9.0 ; < ; 1.10.0
        major ; ; 2.0.0 ; > ; 1.10.0
        minor ; ; 1.2.0-alpine ; ? ; 1.3.0
        calver-major ; ; 2024.01 ; < ; 2024.02.01
        calver-major ; ; 2024.01 ; = ; v2024.1.0
        calver-major ; ; 2024.01 ; ? ; 24.02
        calver-major ; ; 2024.01-rc.1 ; < ; 2024.01
        calver-major ; ; 2024.01-slim ; ? ; 2024.02
        calver-major ; ; 2024.01 ; ? ; 1.2.3
        calver-prerelease ; ; 2024.01-build.9 ; < ; 2024.01-build.10
        calver-prerelease ; ; 2024.01-build.9 ; < ; 2024.01
        timestamp ; ; 1700000000 ; < ; a-1700000000001
        timestamp ; ; 1700000000 ; = ; 1700000000000
        timestamp ; ; 1700000000 ; ? ; 17000000001
        timestamp ; ; 1700000000 ; ? ; latest
        numerical ; ; 9 ; < ; 10
        numerical ; ; 010 ; = ; 10
        numerical ; ; 9 ; ? ; 1.5
        alphabetical ; ; 10 ; < ; 9
        alphabetical:desc ; ; 10 ; > ; 9
        alphabetical ; ^a ; ab ; ? ; b
        alphabetical ; ; a ; ? ; latest
        digest ; ; latest ; = ; latest
        digest ; ; 1.0.0 ; ? ; 2.0.0
        digest ; ; a:b ; ? ; a:b";
    check_orders(rows);
}
