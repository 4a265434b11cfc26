use super::*;
use crate::api::{Held, RolloutStatus};
use serde_json::json;

const REPOSITORY: &str = "docker.io/library/app";

pub(in crate::sync) fn subject(minute: i64, used: bool) -> Subject<'static> {
    Subject {
        uid: "uid",
        generation: Some(2),
        repository: Some(REPOSITORY.to_owned()),
        unsupported: Vec::new(),
        pin: false,
        follows: None,
        used,
        closed: None,
        now: Timestamp::from_second(minute * 60).unwrap(),
    }
}

fn at(minute: i64) -> String {
    subject(minute, true).now.to_string()
}

pub(super) fn tag(tag: &str) -> Outcome {
    let (rule, why) = ("minor".to_owned(), "newest".to_owned());
    Outcome::Tag(Choice { tag: tag.to_owned(), rule, why, ..Choice::default() })
}

fn failed(result: SyncResult, stalled: bool) -> Outcome {
    Outcome::Failed(Failure { result, reason: "Wrong", message: "it is wrong".to_owned(), stalled })
}

pub(super) fn settled(tag: &str) -> ImageStatus {
    ImageStatus { tag: Some(tag.to_owned()), result: Some(SyncResult::Success), ..ImageStatus::default() }
}

fn progress(total: u32, at_rest: u32) -> Progress {
    Progress { total, done: at_rest, at_rest, ..Progress::default() }
}

fn held(workload: &str, tag: &str) -> Held {
    Held { workload: workload.to_owned(), container: "app".to_owned(), tag: tag.to_owned(), ..Held::default() }
}

fn condition_of(status: &ImageStatus, kind: &str) -> String {
    let found = status.conditions.iter().find(|c| c.type_ == kind);
    found.map_or_else(|| "-".to_owned(), |c| format!("{} {}: {}", c.status, c.reason, c.message))
}

fn since(status: &ImageStatus, kind: &str) -> String {
    status.conditions.iter().find(|c| c.type_ == kind).unwrap().last_transition_time.0.to_string()
}

#[test]
fn a_sync_chooses() {
    /// `tag` settled before, `expected` as `tag | tag in flight | from -> to`.
    fn check(status: ImageStatus, outcome: &Outcome, used: bool, expected: &str) {
        let mut status = status;
        let selected = after_sync(&mut status, &subject(1, used), outcome);
        let name = |tag: &Option<String>| tag.clone().unwrap_or_else(|| "-".to_owned());
        let moved = selected.map_or_else(|| "-".to_owned(), |s| format!("{} -> {}", name(&s.from), s.to));
        let in_flight = status.rollout.as_ref().map(|r| r.tag.clone());
        assert_eq!(format!("{} | {} | {moved}", name(&status.tag), name(&in_flight)), expected);
        assert_eq!(status.result, Some(SyncResult::Success));
        assert_eq!(status.observed_generation, Some(2));
        if let Some(rollout) = &status.rollout {
            assert_eq!(rollout.id, crate::rollout::id("uid", &rollout.tag));
        }
    }
    let in_flight = |from: &str, to: &str| ImageStatus {
        rollout: Some(RolloutStatus {
            id: crate::rollout::id("uid", to),
            tag: to.to_owned(),
            ..RolloutStatus::default()
        }),
        ..settled(from)
    };
    let adopt = |from: &str, to: &str| {
        let adopted = Some(Tagged::new(from, None));
        Outcome::Tag(Choice { tag: to.to_owned(), adopted, ..Choice::default() })
    };
    // The first tag counts at once, and is rolled out to those that run something else.
    check(ImageStatus::default(), &tag("1.0.0"), true, "1.0.0 | 1.0.0 | - -> 1.0.0");
    check(ImageStatus::default(), &tag("1.0.0"), false, "1.0.0 | - | - -> 1.0.0");
    check(settled("1.0.0"), &tag("1.0.0"), true, "1.0.0 | - | -");
    check(settled("1.0.0"), &tag("1.1.0"), true, "1.0.0 | 1.1.0 | 1.0.0 -> 1.1.0");
    check(settled("1.0.0"), &tag("1.1.0"), false, "1.0.0 | 1.1.0 | 1.0.0 -> 1.1.0");
    check(in_flight("1.0.0", "1.1.0"), &tag("1.1.0"), true, "1.0.0 | 1.1.0 | -");
    check(in_flight("1.0.0", "1.1.0"), &tag("1.2.0"), true, "1.0.0 | 1.2.0 | 1.1.0 -> 1.2.0");
    // A lost status: what the workloads run is settled, what is newer is rolled out.
    check(ImageStatus::default(), &adopt("1.0.0", "1.1.0"), true, "1.0.0 | 1.1.0 | 1.0.0 -> 1.1.0");
    check(ImageStatus::default(), &adopt("1.0.0", "1.0.0"), true, "1.0.0 | 1.0.0 | - -> 1.0.0");
    check(settled("1.0.5"), &adopt("1.0.0", "1.1.0"), true, "1.0.5 | 1.1.0 | 1.0.5 -> 1.1.0");
}

#[test]
fn a_sync_is_told_by_conditions() {
    let check = |status: &ImageStatus, outcome: &Outcome, result: SyncResult, expected: [&str; 2]| {
        let mut status = status.clone();
        after_sync(&mut status, &subject(1, true), outcome);
        assert_eq!(status.result, Some(result));
        let [ready, stalled] = [condition::READY, condition::STALLED].map(|kind| condition_of(&status, kind));
        assert_eq!([&*ready, &*stalled], expected);
        assert_eq!(status.time, Some(at(1)));
    };
    let (none, some) = (ImageStatus::default(), settled("1.0.0"));
    let missing = Choice { tag: "1.0.0".to_owned(), missing: true, ..Choice::default() };
    let closed = Closed { reason: "Suspended", why: "it is suspended".to_owned(), until: None };
    let waits = Some(Box::new(Waits::closed("1.1.0", &closed)));
    let waiting = |missing| Choice { tag: "1.0.0".to_owned(), missing, waits: waits.clone(), ..Choice::default() };
    check(
        &none,
        &tag("1.0.0"),
        SyncResult::Success,
        ["True Synced: 1.0.0 is the newest tag that the rules allow", "-"],
    );
    let kept = "True TagMissing: 1.0.0 is kept: no rule allows a newer one; the registry no longer lists it";
    check(&some, &Outcome::Tag(missing), SyncResult::Success, [kept, "-"]);
    let waits_for = "True Synced: 1.0.0 is the newest tag that may go now: 1.1.0 waits";
    check(&some, &Outcome::Tag(waiting(false)), SyncResult::Success, [waits_for, "-"]);
    let waits_for = "True TagMissing: 1.0.0 is kept while 1.1.0 waits; the registry no longer lists it";
    check(&some, &Outcome::Tag(waiting(true)), SyncResult::Success, [waits_for, "-"]);
    let first = "True Waiting: no tag is chosen yet: 1.1.0 waits, it is suspended";
    check(&none, &Outcome::Waiting(Waits::closed("1.1.0", &closed)), SyncResult::Success, [first, "-"]);
    let wrong = "False Wrong: it is wrong";
    for result in [SyncResult::RegistryError, SyncResult::TagsError, SyncResult::PullSecretsError] {
        check(&none, &failed(result, false), result, [wrong, "-"]);
    }
    let stuck = "True Wrong: it is wrong";
    check(&none, &failed(SyncResult::GetRuleError, true), SyncResult::GetRuleError, [wrong, stuck]);
    let kept = "False Wrong: it is wrong; 1.0.0 is kept";
    check(&some, &failed(SyncResult::Error, true), SyncResult::Error, [kept, stuck]);
    // What is over is gone.
    let mut stalled = some.clone();
    after_sync(&mut stalled, &subject(0, true), &failed(SyncResult::Error, true));
    mark_stale(&mut stalled, &subject(0, true), "yesterday");
    assert_eq!(condition_of(&stalled, condition::STALE), "True SyncsFail: no sync has succeeded since yesterday");
    check(&stalled, &failed(SyncResult::RegistryError, false), SyncResult::RegistryError, [kept, "-"]);
    after_sync(&mut stalled, &subject(1, true), &tag("1.0.0"));
    assert_eq!(condition_of(&stalled, condition::STALE), "-");
}

#[test]
fn what_is_not_acted_on_is_said_and_taken_back() {
    let mut status = settled("1.0.0");
    let unsupported = ["é".repeat(MAX_MESSAGE), "second".to_owned()];
    after_sync(&mut status, &Subject { unsupported: unsupported.to_vec(), ..subject(1, true) }, &tag("1.0.0"));
    let said = condition_of(&status, condition::UNSUPPORTED);
    assert!(said.starts_with("True NotImplemented: éé") && said.len() < MAX_MESSAGE + 30, "{said}");
    after_sync(&mut status, &subject(1, true), &tag("1.0.0"));
    assert_eq!(condition_of(&status, condition::UNSUPPORTED), "-");
}

#[test]
fn a_status_speaks_of_the_last_repository_that_could_be_read() {
    let mut status = settled("1.0.0");
    let check = |status: &mut ImageStatus, repository: Option<&str>, expected: &str| {
        let subject = Subject { repository: repository.map(str::to_owned), ..subject(1, true) };
        after_sync(status, &subject, &failed(SyncResult::GetImageError, true));
        assert_eq!(status.repository.as_deref(), Some(expected));
        assert_eq!(status.tag.as_deref(), Some("1.0.0"));
    };
    check(&mut status, Some("docker.io/library/redis"), "docker.io/library/redis");
    // A typo must not let the next repository inherit the tag.
    check(&mut status, None, "docker.io/library/redis");
}

#[test]
fn times_move_with_the_status_of_a_condition_only() {
    let mut status = ImageStatus::default();
    let mut check = |minute, outcome: &Outcome, failed: bool, expected: i64| {
        let old = status.clone();
        after_sync(&mut status, &subject(minute, true), outcome);
        let failed = failed.then(|| ("Deployment/web".to_owned(), "refused".to_owned()));
        after_progress(&mut status, &subject(minute, true), &Progress { failed, ..progress(1, 0) });
        keep_transitions(&old, &mut status);
        assert_eq!(since(&status, condition::READY), at(expected), "minute {minute}");
        assert_eq!(since(&status, condition::RECONCILING), at(1), "minute {minute}");
    };
    let error = failed(SyncResult::RegistryError, false);
    check(1, &tag("1.0.0"), false, 1);
    check(2, &tag("1.1.0"), false, 1);
    check(3, &error, false, 3);
    check(4, &failed(SyncResult::TagsError, true), false, 3);
    check(5, &tag("1.1.0"), false, 5);
    // A sync that succeeds while a workload cannot be rolled: false before, false after.
    check(6, &tag("1.1.0"), true, 6);
    check(7, &tag("1.1.0"), true, 6);
    check(8, &error, true, 6);
    check(9, &tag("1.1.0"), false, 9);
}

#[test]
fn a_workload_that_cannot_be_rolled_is_an_action_error_while_it_lasts() {
    let mut status = settled("1.0.0");
    let mut check = |failed: bool, result: SyncResult, ready: &str| {
        let failed = failed.then(|| ("Deployment/web".to_owned(), "quota".to_owned()));
        after_progress(&mut status, &subject(1, true), &Progress { failed, ..progress(2, 1) });
        assert_eq!(status.result, Some(result));
        assert_eq!(condition_of(&status, condition::READY), ready);
    };
    check(false, SyncResult::Success, "-");
    check(true, SyncResult::ActionError, "False RolloutFailed: Deployment/web cannot be rolled: quota");
    check(true, SyncResult::ActionError, "False RolloutFailed: Deployment/web cannot be rolled: quota");
    check(false, SyncResult::Success, "True Synced: every workload can be rolled again");
}

#[test]
fn progress_counts() {
    fn check(progress: &Progress, workloads: Option<&str>, complete: bool) {
        let mut status = settled("1.0.0");
        after_sync(&mut status, &subject(0, true), &tag("1.1.0"));
        after_progress(&mut status, &subject(1, true), progress);
        assert_eq!(status.workloads.as_deref(), workloads);
        assert_eq!(progress.is_complete(), complete, "{workloads:?}");
        let rollout = status.rollout.as_ref().unwrap();
        assert_eq!((rollout.total, rollout.updated), (progress.total, progress.done));
        assert_eq!(condition_of(&status, condition::RECONCILING), "True RollingOut: rolling out 1.1.0");
        assert_eq!(status.result, Some(SyncResult::Success));
    }
    check(&progress(0, 0), None, true);
    check(&progress(4, 3), Some("3/4"), false);
    check(&progress(4, 4), Some("4/4"), true);
    // A typo in spec.image, or an older Image: none is left, but that is no end.
    check(&Progress { excluded: true, ..progress(0, 0) }, None, false);
    let holds = vec![held("Deployment/a", "1.0.0"), Held { container: "log".to_owned(), ..held("Deployment/a", "2") }];
    check(
        &Progress { total: 4, done: 3, at_rest: 4, held: holds.clone(), ..progress(0, 0) },
        Some("3/4, 1 held"),
        true,
    );
    // Held in one container, still rolling in another.
    check(&Progress { total: 4, done: 3, at_rest: 3, held: holds, ..progress(0, 0) }, Some("3/4, 1 held"), false);
}

#[test]
fn holds_are_said_once_and_kept_until_a_plan_is_made_without_them() {
    let mut status = settled("1.1.0");
    let mut check = |minute, holds: &[Held], undecided: &[&str], fresh: &[&str], expected: &[(&str, &str, i64)]| {
        let undecided = undecided.iter().map(|name| (*name).to_owned()).collect();
        let now = Progress { held: holds.to_vec(), undecided, ..progress(3, 0) };
        let said = after_progress(&mut status, &subject(minute, true), &now);
        assert_eq!(said.began.iter().map(|h| h.workload.as_str()).collect::<Vec<_>>(), fresh, "minute {minute}");
        let found: Vec<_> =
            status.held.iter().map(|h| (h.workload.as_str(), h.tag.as_str(), h.since.clone())).collect();
        let expected: Vec<_> = expected.iter().map(|(workload, tag, minute)| (*workload, *tag, at(*minute))).collect();
        assert_eq!(found, expected, "minute {minute}");
    };
    let (a, b) = ("Deployment/a", "Deployment/b");
    check(1, &[held(a, "1.0.0")], &[], &[a], &[(a, "1.0.0", 1)]);
    check(2, &[held(a, "1.0.0"), held(b, "1.0.5")], &[], &[b], &[(a, "1.0.0", 1), (b, "1.0.5", 2)]);
    // Not looked at yet for the tag that is wanted now: what was left must not be forgotten.
    check(3, &[held(b, "1.0.5")], &[a], &[], &[(a, "1.0.0", 1), (b, "1.0.5", 2)]);
    check(4, &[], &[a, b, "Deployment/c"], &[], &[(a, "1.0.0", 1), (b, "1.0.5", 2)]);
    check(5, &[held(a, "0.9.0")], &[], &[a], &[(a, "0.9.0", 5)]);
    check(6, &[], &[], &[], &[]);
}

#[test]
fn a_rollout_settles() {
    let mut status = settled("1.0.0");
    status.digest = Some("sha256:0".to_owned());
    assert_eq!(settle(&mut status, &subject(1, true)), None);
    after_sync(&mut status, &subject(1, true), &tag("1.1.0"));
    after_progress(&mut status, &subject(2, true), &progress(3, 3));
    let rollout = settle(&mut status, &subject(3, true)).unwrap();
    assert_eq!((rollout.tag.as_str(), rollout.from.as_deref(), rollout.updated), ("1.1.0", Some("1.0.0"), 3));
    assert_eq!((status.tag.as_deref(), &status.digest, &status.rollout), (Some("1.1.0"), &None, &None));
    assert_eq!(condition_of(&status, condition::RECONCILING), "-");
    let expected = json!([{"tag": "1.1.0", "from": "1.0.0", "rule": "minor", "started": at(1), "finished": at(3),
        "outcome": "Settled", "workloads": 3, "held": 0}]);
    assert_eq!(json!(status.history), expected);
}

#[test]
fn the_history_begins_with_the_first_tag_and_keeps_ten() {
    let mut status = ImageStatus::default();
    for minute in 0..=12 {
        after_sync(&mut status, &subject(minute, true), &tag(&format!("1.{minute}.0")));
        after_progress(&mut status, &subject(minute, true), &progress(2, 2));
        settle(&mut status, &subject(minute, true));
        if minute == 0 {
            // Once: when it was chosen; with the workloads that run it since.
            let first = json!([{"tag": "1.0.0", "rule": "minor", "started": at(0), "finished": at(0),
                "outcome": "Settled", "workloads": 2, "held": 0}]);
            assert_eq!(json!(status.history), first);
        }
    }
    let tags: Vec<_> = status.history.iter().map(|entry| entry.tag.as_str()).collect();
    let expected = ["1.12.0", "1.11.0", "1.10.0", "1.9.0", "1.8.0", "1.7.0", "1.6.0", "1.5.0", "1.4.0", "1.3.0"];
    assert_eq!(tags, expected);
}

#[test]
fn a_sync_that_changed_nothing_says_the_same() {
    let mut first = ImageStatus::default();
    after_sync(&mut first, &subject(1, true), &tag("1.0.0"));
    after_progress(
        &mut first,
        &subject(1, true),
        &Progress { held: vec![held("Deployment/a", "0.9.0")], ..progress(2, 1) },
    );
    let mut second = first.clone();
    after_sync(&mut second, &subject(9, true), &tag("1.0.0"));
    after_progress(
        &mut second,
        &subject(9, true),
        &Progress { held: vec![held("Deployment/a", "0.9.0")], ..progress(2, 1) },
    );
    assert_ne!(first.time, second.time);
    assert!(says_the_same(&first, &second));
    let check = |change: fn(&mut ImageStatus)| {
        let mut other = first.clone();
        change(&mut other);
        assert!(!says_the_same(&first, &other), "{other:?}");
    };
    check(|s| s.tag = None);
    check(|s| s.result = Some(SyncResult::ActionError));
    check(|s| s.held.clear());
    check(|s| s.conditions[0].message.push('.'));
    check(|s| s.workloads = None);
    check(|s| s.last_handled_request = Some("now".to_owned()));
}
