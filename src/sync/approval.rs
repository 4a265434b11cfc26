//! What people approve: which tag they are asked for, until when, and what becomes of their answer. Pure.

use std::time::Duration;

use jiff::Timestamp;

use crate::api::annotations::APPROVE;
use crate::api::{Asked, Pending};

use super::gates::Waits;
use super::status::rfc3339;
use super::world::ImageKey;

/// Reason of the `Pending` condition of a tag that nobody has approved yet.
pub(super) const AWAITS: &str = "AwaitsApproval";
/// The same, after the deadline.
const LAPSED: &str = "ApprovalLapsed";

/// What somebody wrote into the annotation `approve`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Approved {
    /// The tag, as it is written there.
    pub tag: String,
    /// `approved by bob`
    pub by: String,
}

/// What becomes of an approval.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The tag is chosen. `against`: what else would have kept it from that.
    Applied {
        /// `spec.windows let no rollout start now`
        against: Option<String>,
    },
    /// It is chosen already, or runs.
    Already,
    /// It waits for a brake that an approval does not release: the annotation stays until then.
    Waits,
    /// It cannot be chosen, for this reason.
    Refused(String),
}

/// A tag that would go if somebody approved it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wish {
    /// The tag; with the digest if that alone is new.
    pub tag: String,
    /// After how long nobody is asked for it any more.
    pub deadline: Option<Duration>,
}

impl Wish {
    /// What the status says of it: since when it is asked for, and whether it still is.
    pub fn asked(&self, before: Option<&Asked>, now: Timestamp) -> Asked {
        let before = before.filter(|before| before.tag == self.tag);
        // A time that somebody made unreadable counts from now on.
        let since: Timestamp = before.and_then(|before| before.since.parse().ok()).unwrap_or(now);
        let until = self.deadline.and_then(|deadline| since.checked_add(deadline).ok());
        Asked {
            tag: self.tag.clone(),
            since: rfc3339(since),
            lapsed: until.is_some_and(|until| until <= now),
            until: until.map(rfc3339),
        }
    }
}

/// What to type to approve a tag.
fn command(image: &ImageKey, tag: &str) -> String {
    format!("kubectl annotate image {} -n {} --overwrite {APPROVE}={tag}", image.name, image.namespace)
}

/// For a tag that is asked for.
pub(super) fn waits(image: &ImageKey, asked: &Asked) -> Waits {
    let Asked { tag, until, lapsed, .. } = asked;
    let until = until.as_ref().map(|until| format!(" (until {until})")).unwrap_or_default();
    let (reason, why) = if *lapsed {
        (LAPSED, format!("nobody approved it in time{until}; to apply it all the same:"))
    } else {
        (AWAITS, format!("for approval{until}:"))
    };
    let reason_text = format!("{why} {}", command(image, tag));
    Waits { reason, pending: Pending { tag: tag.clone(), reason: reason_text, at: None } }
}

/// What `Ready` says of a tag that nobody approved in time.
pub(super) fn lapsed(asked: &Asked) -> String {
    let until = asked.until.as_deref().unwrap_or_default();
    format!("{} was not approved until {until} and is not asked for any more", asked.tag)
}

/// Whether the reason of a `Pending` condition is one of these.
pub(super) fn is_reason(reason: &str) -> bool {
    [AWAITS, LAPSED].contains(&reason)
}

/// When a request lapses that has not yet.
pub(super) fn lapses(asked: Option<&Asked>) -> Option<Timestamp> {
    asked.filter(|asked| !asked.lapsed)?.until.as_ref()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).unwrap()
    }

    #[test]
    fn a_request_lapses_once_and_a_newer_tag_is_asked_for_anew() {
        #[track_caller]
        fn check(before: Option<(&str, &str)>, deadline: Option<u64>, minute: i64, expected: &str) {
            let before =
                before.map(|(tag, since)| Asked { tag: tag.to_owned(), since: since.to_owned(), ..Asked::default() });
            let deadline = deadline.map(|minutes| Duration::from_secs(minutes * 60));
            let Asked { since, until, lapsed, .. } =
                Wish { tag: "1.1.0".to_owned(), deadline }.asked(before.as_ref(), at(minute));
            let said = format!("{since} {} {lapsed}", until.unwrap_or_default());
            assert_eq!(said.replace("1970-01-01T00:", ""), expected);
        }
        check(None, None, 5, "05:00Z  false");
        check(None, Some(10), 5, "05:00Z 15:00Z false");
        let before = Some(("1.1.0", "1970-01-01T00:02:00Z"));
        check(before, Some(10), 11, "02:00Z 12:00Z false");
        check(before, Some(10), 12, "02:00Z 12:00Z true");
        check(before, None, 59, "02:00Z  false");
        check(Some(("1.0.9", "1970-01-01T00:02:00Z")), Some(10), 40, "40:00Z 50:00Z false");
        check(Some(("1.1.0", "never")), Some(10), 40, "40:00Z 50:00Z false");
    }

    #[test]
    fn what_waits_says_what_to_type() {
        let image = ImageKey { namespace: "shop".to_owned(), name: "web".to_owned() };
        let check = |asked: &Asked, reason: &str, text: &str| {
            let waits = waits(&image, asked);
            assert_eq!((waits.reason, waits.pending.reason.as_str()), (reason, text));
            assert!(is_reason(waits.reason));
        };
        let asked = Asked { tag: "1.3.0".to_owned(), ..Asked::default() };
        let typed = "kubectl annotate image web -n shop --overwrite kimup.cloudavenue.io/approve=1.3.0";
        check(&asked, "AwaitsApproval", &format!("for approval: {typed}"));
        let until = Asked { until: Some("12:00".to_owned()), ..asked };
        check(&until, "AwaitsApproval", &format!("for approval (until 12:00): {typed}"));
        let late = format!("nobody approved it in time (until 12:00); to apply it all the same: {typed}");
        check(&Asked { lapsed: true, ..until }, "ApprovalLapsed", &late);
    }
}
