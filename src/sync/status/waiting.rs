//! What a status says of a tag that waits while its workloads are rolled.

use super::tests::{settled, subject, tag};
use super::*;

fn closed() -> Closed {
    Closed { reason: "Suspended", why: "spec.suspend is set".to_owned(), until: None }
}

fn failed(stalled: bool) -> Outcome {
    let message = "it is wrong".to_owned();
    Outcome::Failed(Failure { result: SyncResult::RegistryError, reason: "Wrong", message, stalled })
}

#[test]
fn a_rollout_waits_with_the_workloads_that_are_left() {
    /// Workloads that move, wait and are not known yet, of three; the tag that is said to wait before and after.
    #[track_caller]
    fn check(open: bool, in_flight: bool, [moving, waiting, unknown]: [u32; 3], before: &str, after: &str) {
        let subject = Subject { closed: (!open).then(closed), ..subject(1, true) };
        let mut status = settled("1.0.0");
        if in_flight {
            after_sync(&mut status, &subject, &tag("1.1.0"));
        }
        let waits = Some(before).filter(|tag| !tag.is_empty()).map(|tag| Waits::closed(tag, &closed()));
        wait(&mut status, &subject, waits.as_ref());
        let at_rest = 3 - moving - waiting - unknown;
        let undecided = (0..waiting + unknown).map(|n| format!("Deployment/{n}")).collect();
        let progress = Progress { total: 3, done: at_rest, at_rest, moving, waiting, undecided, ..Progress::default() };
        after_progress(&mut status, &subject, &progress);
        if in_flight && progress.is_complete() {
            settle(&mut status, &subject);
        }
        assert_eq!(status.pending.as_ref().map_or("", |pending| pending.tag.as_str()), after);
        assert_eq!(was_closed(&status), !after.is_empty());
        let moves = status.conditions.iter().any(|c| c.type_ == condition::RECONCILING);
        assert_eq!(moves, !progress.is_complete() && in_flight && (open || moving > 0));
    }
    // One is left; all are under way; that was said too much; the last one ends.
    check(false, true, [1, 1, 0], "", "1.1.0");
    check(false, true, [0, 2, 0], "1.1.0", "1.1.0");
    check(false, true, [3, 0, 0], "", "");
    check(false, true, [1, 0, 0], "1.1.0", "");
    check(false, true, [0, 0, 0], "1.1.0", "");
    // Nobody knows yet, after a restart: what was said stays.
    check(false, true, [0, 0, 3], "1.1.0", "1.1.0");
    check(false, true, [0, 0, 3], "", "");
    // The gate is open.
    check(true, true, [1, 1, 0], "1.1.0", "");
    check(true, true, [1, 1, 0], "", "");
    // A newer one waits behind it: it is said when nothing waits for the one under way.
    check(false, true, [1, 1, 0], "1.2.0", "1.1.0");
    check(false, true, [3, 0, 0], "1.2.0", "1.2.0");
    check(true, true, [1, 1, 0], "1.2.0", "1.2.0");
    // A workload that is opted in waits for the settled tag, unless a newer one waits.
    check(false, false, [0, 1, 0], "", "1.0.0");
    check(false, false, [0, 0, 0], "1.0.0", "");
    check(true, false, [0, 1, 0], "1.0.0", "");
    check(false, false, [0, 1, 0], "1.1.0", "1.1.0");
}

#[test]
fn what_waits_is_kept_through_failures_that_pass() {
    #[track_caller]
    fn check(stalled: bool, expected: Option<&str>) {
        let (subject, mut status) = (Subject { closed: Some(closed()), ..subject(1, true) }, settled("1.0.0"));
        wait(&mut status, &subject, Some(&Waits::closed("1.1.0", &closed())));
        after_sync(&mut status, &subject, &failed(stalled));
        assert_eq!(status.pending.as_ref().map(|pending| pending.tag.as_str()), expected);
        assert_eq!(was_closed(&status), expected.is_some());
    }
    check(false, Some("1.1.0"));
    check(true, None);
}

#[test]
fn what_is_approved_names_who_approved_it() {
    #[track_caller]
    fn check(status: ImageStatus, choice: &Outcome, in_flight: Option<(&str, bool)>, history: &[Option<&str>]) {
        let mut status = status;
        after_sync(&mut status, &subject(1, true), choice);
        let rollout = status.rollout.as_ref().map(|r| (r.by.as_deref().unwrap_or_default(), r.approved));
        assert_eq!(rollout, in_flight);
        settle(&mut status, &subject(2, true));
        assert_eq!(status.history.iter().map(|entry| entry.by.as_deref()).collect::<Vec<_>>(), history);
    }
    let approved = |tag: &str| {
        let (rule, why) = ("minor".to_owned(), "approved by bob".to_owned());
        Outcome::Tag(Choice { tag: tag.to_owned(), rule, why, approved: true, ..Choice::default() })
    };
    let bob = Some("approved by bob");
    check(settled("1.0.0"), &approved("1.1.0"), Some(("approved by bob", true)), &[bob]);
    check(settled("1.0.0"), &tag("1.1.0"), Some(("", false)), &[None]);
    // The first tag is on record at once. What runs already is nobody's new word.
    check(ImageStatus::default(), &approved("1.1.0"), Some(("approved by bob", true)), &[bob]);
    check(settled("1.1.0"), &approved("1.1.0"), None, &[]);
}

#[test]
fn what_is_rejected_is_waited_for_no_longer() {
    #[track_caller]
    fn check(tag: &str, expected: Option<&str>) {
        let mut status = settled("1.0.0");
        wait(&mut status, &subject(1, true), Some(&Waits::closed("1.1.0", &closed())));
        status.asked = Some(crate::api::Asked { tag: "1.1.0".to_owned(), ..crate::api::Asked::default() });
        forget_waiting(&mut status, &subject(1, true), tag);
        assert_eq!(status.pending.as_ref().map(|pending| pending.tag.as_str()), expected);
        assert_eq!(status.asked.as_ref().map(|asked| asked.tag.as_str()), expected);
        assert_eq!(was_closed(&status), expected.is_some());
    }
    check("1.1.0", None);
    check("1.2.0", Some("1.1.0"));
}
