//! Images that pin digests.

use super::*;

const A: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
const B: &str = "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb";
const C: &str = "sha256:cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc";

/// Digests by a letter: `1.0@a`.
fn full(text: &str) -> String {
    text.replace("@a", &format!("@{A}")).replace("@b", &format!("@{B}")).replace("@c", &format!("@{C}"))
}

/// `wanted` is the target.
fn pinned(text: &str, wanted: &str) -> Case {
    let wanted = Tagged::parse(&full(wanted)).unwrap();
    let mut case = case(text, &wanted.tag);
    case.target.digest = wanted.digest;
    case
}

#[track_caller]
fn check_pinned(case: Case, expected: &str) {
    let targets = BTreeMap::from([("app".to_owned(), case.target)]);
    let found = say(&plan(&case.workload, &targets, case.facts.as_ref()));
    let short = [A, B, C]
        .iter()
        .fold(found, |text, digest| text.replace(digest, &digest[7..8]).replace(&digest[..19], &digest[7..8]));
    assert_eq!(short, expected);
}

#[test]
fn the_same_tag_needs_the_same_digest() {
    let ours = |stamp: &str, wanted: &str| pinned("app:1.0.0", wanted).stamp(&full(stamp), &[OURS]);
    check_pinned(ours("app:1.0.0 app:1.1.0@a", "1.1.0@a"), "keep");
    check_pinned(ours("app:1.0.0 app:1.1.0@a", "1.1.0@b"), "1.1.0@a -> 1.1.0@b | app:1.0.0 app:1.1.0@b");
    check_pinned(ours("app:1.0.0 app:1.1.0", "1.1.0@a"), "1.1.0 -> 1.1.0@a | app:1.0.0 app:1.1.0@a");
    check_pinned(ours("app:1.0.0 app:1.1.0@a", "1.2.0@b"), "1.1.0 -> 1.2.0 | app:1.0.0 app:1.2.0@b");
    check_pinned(ours("app:1.0.0 app:1.2.0@a", "1.1.0@b"), "keep");
    // Not pinned, or not any more: whatever runs of the tag is left alone.
    check_pinned(ours("app:1.0.0 app:1.1.0@a", "1.1.0"), "keep");
    check_pinned(ours("app:1.0.0 app:1.1.0@a", "1.2.0"), "1.1.0 -> 1.2.0 | app:1.0.0 app:1.2.0");
}

#[test]
fn a_digest_rule_takes_no_stamp_of_a_rule_before_back() {
    #[track_caller]
    fn check(text: &str, stamp: &str, wanted: &str, expected: &str) {
        let mut case = pinned(text, wanted);
        case.target.order = order("digest", None);
        check_pinned(case.stamp(&full(stamp), &[OURS]), expected);
    }
    check("app:1.0.0", "app:1.0.0 app:1.4.2", "1.4.2@a", "keep");
    check("app:1.0.0", "app:1.0.0 app:1.3.0", "1.4.2@a", "keep");
    check("app:1.0.0", "app:1.0.0 app:1.0.0@a", "1.0.0@b", "1.0.0@a -> 1.0.0@b | app:1.0.0 app:1.0.0@b");
    // It was chosen for this text, whose tag is where the choice began.
    let latest = "latest@a -> latest@b | app:latest app:latest@b";
    check("app:latest", "app:latest app:latest@a", "latest@b", latest);
}

#[test]
fn what_is_not_stamped_yet() {
    let plain = |wanted: &str, running: &[&str]| {
        let running: Vec<String> = running.iter().map(|text| full(text)).collect();
        pinned("app:1.0.0", wanted).facts(&["-"], &running.iter().map(String::as_str).collect::<Vec<_>>())
    };
    check_pinned(pinned("app:1.0.0", "1.0.0@a"), "NeedsFacts");
    check_pinned(plain("1.0.0@a", &["app:1.0.0@a"]), "keep");
    check_pinned(plain("1.0.0@a", &["app:1.0.0"]), "1.0.0 -> 1.0.0@a | app:1.0.0 app:1.0.0@a");
    check_pinned(plain("1.0.0@b", &["app:1.0.0@b", "app:1.0.0@a"]), "1.0.0@a -> 1.0.0@b | app:1.0.0 app:1.0.0@b");
    // No digest is known of an own tag.
    check_pinned(pinned("app:2.0.0", "1.0.0@a"), "keep");
    check_pinned(pinned("app:2.0.0", "1.0.0@a").stamp(&full("app:1.0.0 app:1.0.0@a"), &[OURS]), "keep");
    let digest = full("app:1.0.0@b");
    check_pinned(pinned(&digest, "1.0.0@a"), "keep");
}

#[test]
fn an_undo_to_another_digest_is_a_decision() {
    let stamps = ["app:latest app:latest@a", "app:latest app:latest@b", "app:latest app:latest@c"].map(full);
    let [a, b, c] = stamps.each_ref().map(String::as_str);
    let undone = |wanted: &str| pinned("app:latest", wanted).stamp(a, &["kubectl-rollout"]);
    check_pinned(undone("latest@a"), "keep");
    check_pinned(undone("latest@b"), "NeedsFacts");
    check_pinned(undone("latest@b").facts(&[a, b], &[]), "latest@a held, left latest@b");
    check_pinned(undone("latest@b").facts(&[b, a], &[]), "latest@a held, left latest@b");
    // On record; a digest that is neither ends it.
    let left = full("latest@b");
    check_pinned(undone("latest@b").left(&left), "latest@a held, left latest@b");
    check_pinned(undone("latest@c").left(&left).facts(&[a, b], &[]), "latest@a -> latest@c | app:latest app:latest@c");
    check_pinned(undone("latest@c").left(&left).facts(&[a, b, c], &[]), "latest@a held, left latest@c");
    // To a Pod template that was never stamped.
    let first = pinned("app:latest", "latest@b").facts(&["-", b], &["app:latest"]);
    check_pinned(first, "latest held, left latest@b");
    // Between tags only the tags are named.
    let tag = pinned("app:1.0.0", "1.2.0@b").stamp(&full("app:1.0.0 app:1.1.0@a"), &["kubectl-rollout"]);
    check_pinned(tag.facts(&[&full("app:1.0.0 app:1.2.0@b")], &[]), "1.1.0 held, left 1.2.0");
}
