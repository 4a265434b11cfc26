//! Digests in the status.

use super::tests::{settled, subject};
use super::*;
use crate::api::RolloutStatus;

fn digest(letter: &str) -> String {
    format!("sha256:{}", letter.repeat(64))
}

fn tagged(text: &str) -> Tagged {
    match text.split_once('@') {
        Some((tag, letter)) => Tagged::new(tag, Some(&digest(letter))),
        None => Tagged::new(text, None),
    }
}

/// `settled | in flight | from -> to`
fn say(status: &ImageStatus, selected: Option<&Selected>) -> String {
    let text = |tag: &str, digest: Option<&str>| match digest {
        Some(digest) => format!("{tag}@{}", &digest[7..8]),
        None => tag.to_owned(),
    };
    let settled = status.tag.as_deref().map_or_else(|| "-".to_owned(), |tag| text(tag, status.digest.as_deref()));
    let in_flight = status.rollout.as_ref().map_or_else(|| "-".to_owned(), |r| text(&r.tag, r.digest.as_deref()));
    let moved =
        selected.map_or_else(|| "-".to_owned(), |s| format!("{} -> {}", s.from.as_deref().unwrap_or("none"), s.to));
    format!(
        "{settled} | {in_flight} | {}",
        ["a", "b", "c"].iter().fold(moved, |text, l| text.replace(&l.repeat(12), l))
    )
}

fn before(settled_at: &str, in_flight: &str) -> ImageStatus {
    let now = tagged(settled_at);
    let rollout = (!in_flight.is_empty()).then(|| {
        let Tagged { tag, digest } = tagged(in_flight);
        RolloutStatus { tag, digest, ..RolloutStatus::default() }
    });
    match settled_at {
        "" => ImageStatus::default(),
        _ => ImageStatus { digest: now.digest, rollout, ..settled(&now.tag) },
    }
}

#[test]
fn a_sync_brings_digests() {
    #[track_caller]
    fn check(pin: bool, settled: &str, in_flight: &str, now: &str, expected: &str) {
        let mut status = before(settled, in_flight);
        let Tagged { tag, digest } = tagged(now);
        let (rule, why) = ("r".to_owned(), String::new());
        let outcome = Outcome::Tag(Choice { tag, rule, why, digest, ..Choice::default() });
        let selected = after_sync(&mut status, &Subject { pin, ..subject(1, true) }, &outcome);
        assert_eq!(say(&status, selected.as_ref()), expected, "{pin} {settled} {in_flight} {now}");
        let ids = status.rollout.iter().filter(|r| !r.id.is_empty()).map(|r| r.id.clone()).collect::<Vec<_>>();
        let wanted = pinned(pin, &tagged(now));
        assert!(ids.iter().all(|id| *id == crate::rollout::id("uid", &wanted.to_string())));
    }
    // The first tag with its digest; then a newer tag.
    check(true, "", "", "1@a", "1@a | 1@a | none -> 1");
    check(false, "", "", "1@a", "1@a | 1@a | none -> 1");
    check(true, "1@a", "", "2@b", "1@a | 2@b | 1 -> 2");
    // Nothing new.
    check(true, "1@a", "", "1@a", "1@a | - | -");
    check(true, "1@a", "2@b", "2@b", "1@a | 2@b | -");
    // The digest moved: a newer decision where it is pinned, noted where it is not.
    check(true, "1@a", "", "1@b", "1@a | 1@b | 1@sha256:a -> 1@sha256:b");
    check(true, "1@a", "1@b", "1@c", "1@a | 1@c | 1@sha256:b -> 1@sha256:c");
    check(true, "1@a", "1@b", "1@a", "1@a | 1@a | 1@sha256:b -> 1@sha256:a");
    check(true, "1@a", "1@b", "1@b", "1@a | 1@b | -");
    check(false, "1@a", "", "1@b", "1@b | - | -");
    // The first digest of a tag that is settled counts at once.
    check(true, "1", "", "1@a", "1@a | 1@a | 1 -> 1@sha256:a");
    check(false, "1", "", "1@a", "1@a | - | -");
    check(false, "1", "1", "1@a", "1@a | 1@a | -");
    check(false, "1@a", "2", "2@b", "1@a | 2@b | -");
    // Gone: run by its tag, without a rollout.
    check(true, "1@a", "", "1", "1 | - | -");
    check(true, "1@a", "2@b", "2", "1@a | 2 | -");
    check(true, "1@a", "1@b", "1", "1@a | 1 | -");
}

#[test]
fn what_was_adopted_is_what_the_stamps_say() {
    fn check(adopted: &str, now: &str, expected: &str) {
        let mut status = ImageStatus::default();
        let Tagged { tag, digest } = tagged(now);
        let (rule, why) = (String::new(), String::new());
        let (adopted, passed_over) = (Some(tagged(adopted)), Vec::new());
        let outcome = Outcome::Tag(Choice { tag, rule, why, adopted, digest, passed_over, ..Choice::default() });
        let selected = after_sync(&mut status, &Subject { pin: true, ..subject(1, true) }, &outcome);
        assert_eq!(say(&status, selected.as_ref()), expected);
    }
    check("1@a", "1@a", "1@a | 1@a | none -> 1");
    check("1@a", "1@b", "1@a | 1@b | 1@sha256:a -> 1@sha256:b");
    check("1@a", "2@b", "1@a | 2@b | 1 -> 2");
    check("1", "1@a", "1@a | 1@a | none -> 1");
}

#[test]
fn a_moved_digest_settles_with_an_entry_of_its_own() {
    fn check(settled_at: &str, in_flight: &str, history: &[&str]) {
        let mut status = before(settled_at, in_flight);
        settle(&mut status, &subject(2, true));
        assert_eq!(say(&status, None), format!("{in_flight} | - | -"));
        let entries = status.history.iter().map(|h| {
            let digest = h.digest.as_deref().map(|digest| &digest[7..8]).unwrap_or_default();
            format!("{}@{digest}", h.tag)
        });
        assert_eq!(entries.collect::<Vec<_>>(), history);
    }
    check("1@a", "1@b", &["1@b"]);
    check("1@a", "2@b", &["2@b"]);
    check("1@a", "1@a", &[]);
}

#[test]
fn the_starting_tag_that_is_followed_is_remembered() {
    fn check(before: Option<&str>, follows: Option<&str>, chosen: &str, expected: Option<&str>) {
        let mut status = ImageStatus { base_tag: before.map(str::to_owned), ..settled("1") };
        let subject = Subject { follows: follows.map(str::to_owned), ..subject(1, true) };
        after_sync(&mut status, &subject, &super::tests::tag(chosen));
        assert_eq!(status.base_tag.as_deref(), expected);
    }
    check(None, Some("1"), "1", Some("1"));
    check(Some("1"), Some("2"), "2", Some("2"));
    // Not listed yet: it is still another one than before.
    check(Some("1"), Some("2"), "1", Some("1"));
    // The rule was another one before: what it chose stays.
    check(None, Some("latest"), "1", Some("latest"));
    check(Some("1"), None, "1", None);
}

#[test]
fn what_was_passed_over_is_said() {
    let mut status = settled("1");
    let passed_over = vec!["2 passed over: no linux/arm64".to_owned(), "3 passed over: it is gone".to_owned()];
    let (tag, rule, why) = ("1".to_owned(), String::new(), String::new());
    let outcome = Outcome::Tag(Choice { tag, rule, why, passed_over, ..Choice::default() });
    after_sync(&mut status, &subject(1, true), &outcome);
    let said = "1 is the newest tag that the rules allow; 2 passed over: no linux/arm64; 3 passed over: it is gone";
    assert_eq!(status.conditions[0].message, said);
}
