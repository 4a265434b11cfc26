use super::*;
use crate::sync::status::tests::{settled, subject};

fn entry(tag: &str, from: Option<&str>, outcome: &str) -> HistoryEntry {
    let from = from.map(str::to_owned);
    HistoryEntry { tag: tag.to_owned(), from, outcome: outcome.to_owned(), ..HistoryEntry::default() }
}

fn rolling(mut status: ImageStatus, tag: &str) -> ImageStatus {
    let from = status.tag.clone();
    status.rollout = Some(RolloutStatus { tag: tag.to_owned(), from, ..RolloutStatus::default() });
    status
}

fn past(mut status: ImageStatus, history: &[HistoryEntry]) -> ImageStatus {
    status.history = history.to_vec();
    status
}

/// `settled | in flight < rejected`
fn say(status: &ImageStatus) -> String {
    let tag = status.tag.as_deref().unwrap_or("-");
    let rollout = status.rollout.as_ref().map_or_else(
        || "-".to_owned(),
        |r| format!("{}{}", r.tag, r.back_from.as_ref().map(|from| format!(" < {from}")).unwrap_or_default()),
    );
    format!("{tag} | {rollout}")
}

#[test]
fn a_rejected_tag_is_gone_back_from() {
    #[track_caller]
    fn check(status: &ImageStatus, tag: &str, expected: &str) {
        let mut status = status.clone();
        assert!(reject(&mut status, &subject(1, true), tag, "it crashes", "Deployment/web"));
        assert_eq!(say(&status), expected);
        let again = status.clone();
        assert!(!reject(&mut status, &subject(2, true), tag, "it crashes", "Deployment/web"));
        assert_eq!(status, again);
    }
    let (settles, back) = (|tag, from| entry(tag, from, SETTLED), |tag, from| entry(tag, from, ROLLED_BACK));
    check(&rolling(settled("1.2.0"), "1.3.0"), "1.3.0", "1.2.0 | 1.2.0 < 1.3.0");
    check(&rolling(settled("1.2.0"), "1.4.0"), "1.3.0", "1.2.0 | 1.4.0");
    check(&settled("1.2.0"), "1.3.0", "1.2.0 | -");
    // Settled: the tag before it counts at once.
    let history = [settles("1.3.0", Some("1.2.0")), settles("1.2.0", None)];
    check(&past(settled("1.3.0"), &history), "1.3.0", "1.2.0 | 1.2.0 < 1.3.0");
    check(&past(settled("1.3.0"), &[settles("1.3.0", Some("1.2.0"))]), "1.3.0", "1.2.0 | 1.2.0 < 1.3.0");
    check(&past(rolling(settled("1.3.0"), "1.4.0"), &history), "1.3.0", "1.2.0 | 1.4.0");
    let history = [back("1.2.0", Some("1.4.0")), settles("1.3.0", Some("1.2.0")), settles("1.1.0", None)];
    check(&past(settled("1.2.0"), &history), "1.2.0", "1.3.0 | 1.3.0 < 1.2.0");
    // Nothing before it.
    check(&past(rolling(settled("1.3.0"), "1.3.0"), &[settles("1.3.0", None)]), "1.3.0", "- | -");
    // The second of two digests.
    let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
    let mut moved = rolling(settled("1.2.0"), "1.2.0");
    moved.digest = Some(digest("a"));
    moved.rollout.as_mut().unwrap().digest = Some(digest("b"));
    let text = format!("1.2.0@{}", digest("b"));
    check(&moved, &text, &format!("1.2.0 | 1.2.0 < {text}"));
}

#[test]
fn what_ran_before_counts_where_nothing_is_known() {
    let mut status = past(rolling(settled("1.3.0"), "1.3.0"), &[entry("1.3.0", None, SETTLED)]);
    let rejected = [Rejected { tag: "1.3.0".to_owned(), ..Rejected::default() }];
    assert!(ways_back(&status, &rejected).is_empty());
    let before = Tagged::new("1.1.0", None);
    withdraw(&mut status, &subject(1, true), &rejected, Some(&before), true);
    assert_eq!(say(&status), "1.1.0 | 1.1.0 < 1.3.0");
    assert_eq!(status.rejected, rejected, "on record here too, whatever becomes of the Image where it failed");
    assert_eq!(withdraw(&mut status, &subject(1, true), &rejected, Some(&before), true), None);
    // No workload of this Image has seen it.
    let mut status = rolling(settled("1.2.0"), "1.3.0");
    withdraw(&mut status, &subject(1, true), &rejected, Some(&Tagged::new("1.2.0", None)), false);
    assert_eq!(say(&status), "1.2.0 | -");
}

#[test]
fn rejections_are_told_and_bounded() {
    let mut status = rolling(settled("1.2.0"), "1.3.0");
    reject(&mut status, &subject(1, true), "1.3.0", "it crashes", "Deployment/web");
    let ready = status.conditions.iter().find(|c| c.type_ == condition::READY).unwrap();
    assert_eq!(ready.message, "1.2.0 is kept: 1.3.0 was rejected: Deployment/web: it crashes");
    assert_eq!(status.rollout.as_ref().unwrap().by.as_deref(), Some("rejected: Deployment/web: it crashes"));
    for number in 0..60 {
        reject(&mut status, &subject(2, true), &format!("2.0.{number}"), "rejected by alice", "");
    }
    assert_eq!((status.rejected.len(), status.rejected[49].tag.as_str()), (MAX_REJECTED, "2.0.59"));
    assert_eq!(because(&status.rejected[49]), "rejected by alice");
}
