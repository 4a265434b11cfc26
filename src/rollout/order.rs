//! Which workloads of a group go first, and when the others may follow (design section 5). Pure.
//!
//! The first ones show that a tag runs: those that a person marked, else the smallest with Pods. A workload that is held
//! or cannot be stamped proves nothing and holds up nobody.

use std::time::Duration;

use jiff::Timestamp;

use super::workload::WorkloadKey;

/// How far a workload is on the way to the tag of its group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Runs it, all Pods ready.
    Ready,
    /// Its Pods are being replaced.
    Moving,
    /// Is to be rolled.
    Waiting,
    /// Not looked at yet.
    Unknown,
    /// Its Image has not chosen the tag yet.
    Before,
    /// Runs something else, or cannot be rolled.
    Out,
}

/// A workload of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Which one.
    pub key: WorkloadKey,
    /// Somebody marked it as one that goes first.
    pub canary: bool,
    /// Wanted number of Pods.
    pub replicas: i32,
    /// How far it is.
    pub stage: Stage,
    /// Since when it runs the tag well, where that is on record.
    pub since: Option<Timestamp>,
}

/// Those that go first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lead {
    /// Which ones.
    pub first: Vec<WorkloadKey>,
    /// Whether all of them run the tag well; none if that is not known yet.
    pub ready: Option<bool>,
    /// Since when, where that is on record.
    pub since: Option<Timestamp>,
}

/// Whether a workload may be rolled now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// It may.
    Go,
    /// It waits for the first ones; until a known time if these run well already.
    After(Option<Timestamp>),
}

impl Member {
    /// One whose Image is behind counts only if a person marked it: the others wait for it.
    const fn takes_part(&self) -> bool {
        match self.stage {
            Stage::Out => false,
            Stage::Before => self.canary,
            Stage::Ready | Stage::Moving | Stage::Waiting | Stage::Unknown => true,
        }
    }
}

/// Who goes first; none if nobody would follow. `known` is who did as the status has it: a choice stands once its rollout
/// has begun, whatever replicas become meanwhile.
///
/// Workloads without Pods prove nothing, unless all are.
pub fn lead(members: &[Member], known: Option<&str>) -> Option<Lead> {
    let all: Vec<&Member> = members.iter().filter(|m| m.takes_part()).collect();
    let any_pods = all.iter().any(|m| m.replicas > 0);
    let able: Vec<&Member> = all.iter().copied().filter(|m| m.replicas > 0 || !any_pods).collect();
    let mut first: Vec<&Member> = able.iter().copied().filter(|m| m.canary).collect();
    if first.is_empty() {
        let begun = able.iter().filter(|m| matches!(m.stage, Stage::Ready | Stage::Moving));
        let is_known = |m: &Member| known.is_some_and(|known| known == m.key.to_string());
        let proven = begun.min_by_key(|m| (!is_known(m), m.stage != Stage::Ready, m.replicas, &m.key.name, m.key.kind));
        let smallest = || able.iter().min_by_key(|m| (m.replicas, &m.key.name, m.key.kind));
        first.extend(proven.or_else(smallest));
    }
    first.sort_by(|a, b| a.key.cmp(&b.key));
    let followed = !first.is_empty() && first.len() < all.len();
    followed.then(|| Lead {
        ready: if first.iter().all(|m| m.stage == Stage::Ready) {
            Some(true)
        } else {
            let known = first.iter().any(|m| !matches!(m.stage, Stage::Ready | Stage::Unknown));
            known.then_some(false)
        },
        since: first.iter().map(|m| m.since).collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max()),
        first: first.into_iter().map(|m| m.key.clone()).collect(),
    })
}

impl Lead {
    /// `Deployment/web`; of several, with commas.
    pub fn names(&self) -> String {
        self.first.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
    }

    /// Whether `who` may be rolled. `ready_at` is since when the first ones run well, as it is on record.
    pub fn turn(&self, who: &WorkloadKey, ready_at: Option<Timestamp>, soak: Duration, now: Timestamp) -> Turn {
        if self.first.contains(who) || (self.ready == Some(true) && soak.is_zero()) {
            return Turn::Go;
        }
        let until = ready_at.filter(|_| self.ready == Some(true)).map(|at| soaked(at, soak));
        if until.is_some_and(|until| until <= now) { Turn::Go } else { Turn::After(until) }
    }
}

/// When the first ones have run well for long enough.
pub fn soaked(ready_at: Timestamp, soak: Duration) -> Timestamp {
    ready_at.checked_add(soak).unwrap_or(Timestamp::MAX)
}

/// When a workload that was stamped at `stamped_at` may be stamped again; none if it may now.
///
/// The API server tells whole seconds: the one that was cut off counts. A time that is further ahead than any wait is of a
/// clock that cannot be trusted, and holds up nobody.
pub fn rested(stamped_at: Option<Timestamp>, least: Duration, now: Timestamp) -> Option<Timestamp> {
    let stamped_at = stamped_at.filter(|at| !least.is_zero() && at.duration_until(now).as_secs() > -60)?;
    let due = stamped_at.checked_add(least + Duration::from_secs(1)).ok()?;
    (due > now).then_some(due)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::Kind;
    use proptest::prelude::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn key(name: &str) -> WorkloadKey {
        WorkloadKey { kind: Kind::Deployment, namespace: "shop".to_owned(), name: name.to_owned() }
    }

    /// `a*2R`: a marked one with two replicas that is ready.
    fn member(text: &str) -> Member {
        let canary = text.contains('*');
        let stage = match text.chars().last().unwrap() {
            'R' => Stage::Ready,
            'M' => Stage::Moving,
            'W' => Stage::Waiting,
            'U' => Stage::Unknown,
            'B' => Stage::Before,
            _ => Stage::Out,
        };
        let digits: String = text.chars().filter(char::is_ascii_digit).collect();
        Member { key: key(&text[..1]), canary, replicas: digits.parse().unwrap(), stage, since: None }
    }

    fn members(text: &str) -> Vec<Member> {
        text.split_whitespace().map(member).collect()
    }

    #[test]
    fn who_goes_first() {
        #[track_caller]
        fn check(group: &str, known: Option<&str>, expected: Option<(&str, Option<bool>)>) {
            let known = known.map(|name| key(name).to_string());
            let found = lead(&members(group), known.as_deref());
            let names = |lead: &Lead| lead.first.iter().map(|k| k.name.clone()).collect::<String>();
            let found = found.map(|lead| (names(&lead), lead.ready));
            assert_eq!(found, expected.map(|(names, ready)| (names.to_owned(), ready)), "{group}");
        }
        // Alone, or with nobody who would follow.
        check("", None, None);
        check("a1W", None, None);
        check("a1W b1O", None, None);
        check("a1W b1B", None, None);
        check("a*1W b*1W", None, None);
        // The smallest, then by name.
        check("a3W b2W c2W", None, Some(("b", Some(false))));
        check("a3U b2U", None, Some(("b", None)));
        check("b1R c2W", None, Some(("b", Some(true))));
        // Without Pods nothing is proven, unless none has any.
        check("a0R b2W", None, Some(("b", Some(false))));
        check("a0W b0W", None, Some(("a", Some(false))));
        check("a*0W b2W c3W", None, Some(("b", Some(false))));
        // Marked ones.
        check("a1W b*5W c*9W", None, Some(("bc", Some(false))));
        check("a1W b*5R c*9M", None, Some(("bc", Some(false))));
        check("a1W b*5R c*9U", None, Some(("bc", None)));
        check("a1W b*5R c*9R", None, Some(("bc", Some(true))));
        check("a1R b*5W", None, Some(("b", Some(false))));
        // One that is marked and has not heard of the tag is waited for; another one is not.
        check("a1W b*5B", None, Some(("b", Some(false))));
        check("a1B b2W c3W", None, Some(("b", Some(false))));
        // Held ones are skipped.
        check("a1O b2W c3W", None, Some(("b", Some(false))));
        check("a1W b*5O c2W", None, Some(("a", Some(false))));
        // Whoever has begun stays the first.
        check("a5M b2W", None, Some(("a", Some(false))));
        check("a5R b2M c1W", None, Some(("a", Some(true))));
        check("a5M b2R c1W", Some("a"), Some(("a", Some(false))));
        check("a5W b2W", Some("a"), Some(("b", Some(false))));
        check("a5O b2W c3W", Some("a"), Some(("b", Some(false))));
    }

    #[test]
    fn when_the_others_follow() {
        #[track_caller]
        fn check(group: &str, who: &str, ready_at: Option<i64>, soak: u64, expected: Turn) {
            let lead = lead(&members(group), None).unwrap();
            let found = lead.turn(&key(who), ready_at.map(at), Duration::from_secs(soak), at(100));
            assert_eq!(found, expected, "{group} {who}");
        }
        use Turn::{After, Go};
        check("a1W b2W", "a", None, 60, Go);
        check("a1W b2W", "b", None, 60, After(None));
        check("a1W b2W", "b", None, 0, After(None));
        check("a1M b2W", "b", Some(10), 60, After(None));
        check("a1U b2W", "b", Some(10), 60, After(None));
        check("a1R b2W", "b", None, 60, After(None));
        check("a1R b2W", "b", Some(50), 60, After(Some(at(110))));
        check("a1R b2W", "b", Some(40), 60, Go);
        check("a1R b2W", "b", None, 0, Go);
        check("a*1R b*2W c3W", "b", None, 60, Go);
        check("a*1R b*2W c3W", "c", Some(0), 60, After(None));
    }

    #[test]
    fn since_when_the_first_run_well() {
        #[track_caller]
        fn check(since: [Option<i64>; 2], expected: Option<i64>) {
            let mut group = members("a*1R b*1R c1W");
            for (member, since) in group.iter_mut().zip(since) {
                member.since = since.map(at);
            }
            assert_eq!(lead(&group, None).unwrap().since, expected.map(at), "{since:?}");
        }
        check([Some(5), Some(9)], Some(9));
        check([Some(5), None], None);
    }

    #[test]
    fn one_that_was_stamped_a_moment_ago_rests() {
        #[track_caller]
        fn check(stamped_at: Option<i64>, least: u64, expected: Option<i64>) {
            assert_eq!(rested(stamped_at.map(at), Duration::from_secs(least), at(1000)), expected.map(at));
        }
        check(None, 30, None);
        check(Some(1000), 30, Some(1031));
        check(Some(970), 30, Some(1001));
        check(Some(969), 30, None);
        check(Some(1000), 0, None);
        // Another machine's clock.
        check(Some(1005), 30, Some(1036));
        check(Some(5000), 30, None);
    }

    proptest! {
        /// However the group looks, somebody may go: it never waits for nobody.
        #[test]
        fn somebody_always_may_go(
            stages in proptest::collection::vec((0_usize..6, any::<bool>(), 0_i32..3), 1..6),
            known in proptest::option::of(0_usize..6),
        ) {
            let all = [Stage::Ready, Stage::Moving, Stage::Waiting, Stage::Unknown, Stage::Before, Stage::Out];
            let group: Vec<Member> = stages.iter().enumerate().map(|(i, (stage, canary, replicas))| Member {
                key: key(&format!("w{i}")), canary: *canary, replicas: *replicas, stage: all[*stage], since: None,
            }).collect();
            let known = known.map(|i| key(&format!("w{i}")).to_string());
            if let Some(lead) = lead(&group, known.as_deref()) {
                for first in &lead.first {
                    prop_assert!(group.iter().any(|m| m.key == *first && m.takes_part()));
                    prop_assert_eq!(lead.turn(first, None, Duration::from_secs(1), at(0)), Turn::Go);
                }
                // Nobody overtakes the first ones.
                let followers = group.iter().filter(|m| !lead.first.contains(&m.key));
                for follower in followers.filter(|_| lead.ready != Some(true)) {
                    prop_assert_ne!(lead.turn(&follower.key, Some(at(0)), Duration::ZERO, at(9)), Turn::Go);
                }
            }
        }
    }
}
