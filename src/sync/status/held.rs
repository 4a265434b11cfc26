//! What becomes of holds while the tag moves.

use std::collections::BTreeSet;

use super::*;
use crate::api::{Held, HeldBy};

fn hold(workload: &str, left: &str) -> Held {
    Held { workload: workload.to_owned(), container: "app".to_owned(), left: left.to_owned(), ..Held::default() }
}

#[test]
fn a_hold_outlives_that_its_image_does_not_count() {
    let subject = super::tests::subject(1, true);
    let known = vec![hold("Deployment/a", "1.3.0")];
    let mut status = ImageStatus { held: known.clone(), ..ImageStatus::default() };
    let progress = Progress { excluded: true, ..Progress::default() };
    assert!(after_progress(&mut status, &subject, &progress).ended.is_empty());
    assert_eq!(status.held, known);
}

#[test]
fn a_hold_is_kept_until_its_workload_is_decided() {
    #[track_caller]
    fn check(known: &[Held], held: &[Held], undecided: &[&str], kept: &[&str], workloads: &str, fresh: usize) {
        let subject = super::tests::subject(0, true);
        let undecided = undecided.iter().map(|&name| name.to_owned()).collect();
        let progress = Progress { total: 2, held: held.to_vec(), undecided, ..Progress::default() };
        let mut status = ImageStatus { held: known.to_vec(), ..ImageStatus::default() };
        assert_eq!(after_progress(&mut status, &subject, &progress).began.len(), fresh);
        let left: Vec<_> = status.held.iter().map(|h| h.left.as_str()).collect();
        assert_eq!((left, status.workloads.as_deref()), (kept.to_vec(), Some(workloads)));
    }
    let (a, b) = (&[hold("Deployment/a", "1.3.0")], &[hold("Deployment/b", "1.2.0")]);
    // A newer tag was chosen, or the stamp waits for its turn: the plan still needs to know what was left.
    check(a, &[], &["Deployment/a"], &["1.3.0"], "0/2, 1 held", 0);
    // Of two, one is decided.
    check(a, b, &["Deployment/a"], &["1.3.0", "1.2.0"], "0/2, 2 held", 1);
    // Decided: it rolls, or is held as before.
    check(a, &[], &[], &[], "0/2", 0);
    check(a, &[], &["Deployment/b"], &[], "0/2", 0);
    check(a, a, &[], &["1.3.0"], "0/2, 1 held", 0);
    check(&[], a, &[], &["1.3.0"], "0/2, 1 held", 1);
}

#[test]
fn a_hold_is_kept_while_its_kind_is_not_served() {
    #[track_caller]
    fn check(unseen: &[&str], kept: &[&str]) {
        let subject = super::tests::subject(0, true);
        let unseen = unseen.iter().map(|&name| name.to_owned()).collect();
        let progress = Progress { total: 1, unseen, ..Progress::default() };
        let held = vec![hold("CloneSet/b", "1.3.0"), hold("Rollout/a", "1.3.0")];
        let mut status = ImageStatus { held, ..ImageStatus::default() };
        assert_eq!(after_progress(&mut status, &subject, &progress), Holds::default());
        assert_eq!(status.held.iter().map(|h| h.workload.as_str()).collect::<Vec<_>>(), kept);
    }
    check(&["CloneSet/b", "Rollout/a"], &["CloneSet/b", "Rollout/a"]);
    check(&["Rollout/a"], &["Rollout/a"]);
    check(&[], &[]);
}

#[test]
fn it_is_said_that_a_rejected_tag_holds_nobody_any_more() {
    #[track_caller]
    fn check(known: &Held, held: &[Held], undecided: &[&str], ended: bool) {
        let subject = super::tests::subject(0, true);
        let undecided = undecided.iter().map(|&name| name.to_owned()).collect();
        let rejected = BTreeSet::from(["1.1.0".to_owned()]);
        let progress = Progress { total: 1, held: held.to_vec(), undecided, rejected, ..Progress::default() };
        let mut status = ImageStatus { held: vec![known.clone()], ..ImageStatus::default() };
        let found = after_progress(&mut status, &subject, &progress).ended;
        assert_eq!(found, if ended { vec![known.clone()] } else { Vec::new() }, "{known:?} {held:?}");
    }
    let at = |tag: &str| Held { tag: tag.to_owned(), ..hold("Deployment/web", "1.2.0") };
    check(&at("1.1.0"), &[], &[], true);
    // It has not left it yet, or is held elsewhere; that it ends with a newer tag is said by that.
    check(&at("1.1.0"), &[], &["Deployment/web"], false);
    check(&at("1.1.0"), &[at("1.0.0")], &[], false);
    check(&at("1.0.0"), &[], &[], false);
    check(&Held { released: Some("then".to_owned()), ..at("1.1.0") }, &[], &[], false);
    check(&Held { by: crate::api::HeldBy::Annotation, ..at("1.1.0") }, &[], &[], false);
}

#[test]
fn a_hold_that_goes_further_back_is_the_same_hold() {
    #[track_caller]
    fn check(known: &Held, held: &Held, rejected: &str, since: &str) {
        let subject = super::tests::subject(0, true);
        let rejected = BTreeSet::from([rejected.to_owned()]);
        let progress = Progress { total: 1, held: vec![held.clone()], rejected, ..Progress::default() };
        let mut status = ImageStatus { held: vec![known.clone()], ..ImageStatus::default() };
        let found = after_progress(&mut status, &subject, &progress);
        assert_eq!((found.began.len(), found.ended.len()), (1, 0), "{known:?} {held:?}");
        let since = if since.is_empty() { rfc3339(subject.now) } else { since.to_owned() };
        assert_eq!((status.held[0].tag.as_str(), &status.held[0].since), (held.tag.as_str(), &since));
    }
    let at = |tag: &str| Held { tag: tag.to_owned(), since: "then".to_owned(), ..hold("Deployment/web", "1.2.0") };
    check(&at("1.1.0"), &at("1.0.0"), "1.1.0", "then");
    // A person put something else there.
    check(&at("1.1.0"), &at("1.0.0"), "1.0.5", "");
    check(&at("1.1.0"), &Held { by: HeldBy::Manifest, ..at("1.0.0") }, "1.1.0", "");
    check(&at("1.1.0"), &Held { left: "1.3.0".to_owned(), ..at("1.0.0") }, "1.1.0", "");
}
