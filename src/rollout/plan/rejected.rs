//! Tags that are never enough.

use super::tests::{OURS, case, check};
use super::*;

fn rejected(text: &str, tag: &str, tags: &[&str]) -> super::tests::Case {
    let mut case = case(text, tag);
    case.target.rejected = tags.iter().map(|&tag| tag.to_owned()).collect();
    case.target.why_rejected = "Deployment/web: it crashes".to_owned();
    case
}

#[test]
fn a_rejected_tag_is_left() {
    let stamped = |tag: &str, tags: &[&str]| rejected("app:1.0.0", tag, tags).stamp("app:1.0.0 app:1.3.0", &[OURS]);
    check(stamped("1.2.0", &["1.3.0"]), "1.3.0 -> 1.2.0 | app:1.0.0 app:1.2.0");
    check(stamped("1.2.0", &[]), "keep");
    check(stamped("1.2.0", &["1.4.0"]), "keep");
    check(stamped("1.4.0", &["1.3.0"]), "1.3.0 -> 1.4.0 | app:1.0.0 app:1.4.0");
    // Back to the text itself: its Pods must not get what is on record for them.
    check(stamped("1.0.0", &["1.3.0"]), "1.3.0 -> 1.0.0 | app:1.0.0 app:1.0.0");
    check(stamped("1.3.0", &["1.3.0"]), "keep");
    // Its Image has not gone back from it yet: nobody else is given it.
    check(rejected("app:1.0.0", "1.3.0", &["1.3.0"]).stamp("app:1.0.0 app:1.2.0", &[OURS]), "AwaitsPods");
    check(rejected("app:1.3.0", "1.3.0", &["1.3.0"]).stamp("app:1.0.0 app:1.2.0", &[OURS]), "keep");
    // Given by admission.
    let unstamped = |text: &str, running: &str| rejected(text, "1.2.0", &["1.3.0"]).facts(&["-"], &[running]);
    check(unstamped("app:1.0.0", "app:1.3.0"), "1.3.0 -> 1.2.0 | app:1.0.0 app:1.2.0");
    check(unstamped("app:1.2.0", "app:1.3.0"), "1.3.0 -> 1.2.0 | app:1.2.0 app:1.2.0");
    check(unstamped("app:1.2.0", "app:1.2.0"), "keep");
    check(rejected("app:1.2.0", "1.2.0", &["1.3.0"]), "NeedsFacts");
    check(rejected("app:1.2.0", "1.2.0", &["1.3.0"]).facts(&["-"], &[]), "keep");
    check(
        rejected("app:1.0.0", "1.2.0", &["1.3.0"]).facts(&["-", "app:1.0.0 app:1.2.0"], &["app:1.3.0"]),
        "1.3.0 -> 1.2.0 | app:1.0.0 app:1.2.0",
    );
    // A person's own text, and a person's undo.
    check(rejected("app:1.3.0", "1.2.0", &["1.3.0"]).stamp("app:1.0.0 app:1.2.0", &[OURS]), "keep");
    check(unstamped("app:1.3.0", "app:1.3.0"), "keep");
}

#[test]
fn what_was_held_is_held_again() {
    #[track_caller]
    fn held(stamp: &str, tag: &str, left: &str, expected: &str) {
        let mut case = rejected("app:1.0.0", tag, &["1.3.0"]).stamp(stamp, &[OURS]);
        (case.target.held, case.target.left) = (Some("1.1.0".to_owned()), Some(left.to_owned()));
        check(case, expected);
    }
    held("app:1.0.0 app:1.3.0", "1.2.0", "1.2.0", "1.3.0 -> 1.1.0 | app:1.0.0 app:1.1.0");
    held("app:1.0.0 app:1.1.0", "1.2.0", "1.2.0", "1.1.0 held, left 1.2.0");
    // A newer tag ends it.
    held("app:1.0.0 app:1.3.0", "1.4.0", "1.2.0", "1.3.0 -> 1.4.0 | app:1.0.0 app:1.4.0");
    held("app:1.0.0 app:1.1.0", "1.4.0", "1.2.0", "1.1.0 -> 1.4.0 | app:1.0.0 app:1.4.0");
    held("app:1.0.0 app:1.0.5", "1.2.0", "1.2.0", "1.0.5 -> 1.2.0 | app:1.0.0 app:1.2.0");
}

#[test]
fn a_rollout_back_says_why() {
    #[track_caller]
    fn check(tag: &str, rollout: &str, expected: &str) {
        let case = rejected("app:1.0.0", tag, &["1.3.0"]).stamp("app:1.0.0 app:1.3.0", &[OURS]);
        let plan = plan(&case.workload, &BTreeMap::from([("app".to_owned(), case.target)]), None);
        assert_eq!((plan.change_cause().as_str(), plan.changes[0].rollout.as_str()), (expected, rollout));
    }
    let back = back_id(&id("uid", "1.2.0"), "1.3.0");
    assert_ne!(back, id("uid", "1.2.0"));
    check("1.2.0", &back, "kimup: app 1.3.0 -> 1.2.0 (Image web, rollback: Deployment/web: it crashes)");
    check("1.4.0", &id("uid", "1.4.0"), "kimup: app 1.3.0 -> 1.4.0 (Image web, rule minor)");
}
