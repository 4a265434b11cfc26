//! Which of the newer tags may go now, and which waits for what. Pure.
//!
//! A least age counts from the first time a tag was seen. So that it can be told after a restart, the status remembers
//! newer tags with that time: as many as [`MAX_SEEN`]. Of more, those in between are forgotten, not the older ones:
//! however often a tag is pushed, one of them comes of age.

use std::time::Duration;

use jiff::Timestamp;

use crate::api::{Asked, Closed, CompiledSpec, Order, Pending, Seen, Tagged};

use super::approval::{self, Approved};
use super::status::rfc3339;

const FROZEN: &str = "Frozen";
/// Reason of the `Pending` condition of a tag that comes of age by itself.
const TOO_YOUNG: &str = "TooYoung";
/// Most tags that a status remembers.
pub(super) const MAX_SEEN: usize = 50;

/// The gates of an Image at one moment.
#[derive(Clone, Debug, Default)]
pub(super) struct Gate {
    /// No rollout may start.
    pub closed: Option<Closed>,
    /// How long a tag must be known.
    pub min_age: Option<Duration>,
    /// What the status remembers.
    pub seen: Vec<Seen>,
    /// The time.
    pub now: Timestamp,
    /// No rollout may start, not even of what a person approved.
    pub brake: Option<Closed>,
    /// What a person approved.
    pub approved: Option<Approved>,
    /// What people are asked to approve, as the status has it.
    pub asked: Option<Asked>,
}

/// A tag that waits.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Waits {
    /// The reason of the `Pending` condition.
    pub reason: &'static str,
    /// What the status says of it.
    pub pending: Pending,
}

impl Waits {
    /// For a gate that is closed.
    pub fn closed(tag: &str, closed: &Closed) -> Self {
        let pending = Pending { tag: tag.to_owned(), reason: closed.why.clone(), at: closed.until.map(rfc3339) };
        Self { reason: closed.reason, pending }
    }

    /// What it means for an Image without any tag.
    pub fn for_the_first(&self) -> String {
        format!("no tag is chosen yet: {} waits, {}", self.pending.tag, self.pending.reason)
    }
}

/// Why no rollout may start in a namespace that somebody froze.
pub(super) fn frozen(namespace: &str) -> Closed {
    Closed { reason: FROZEN, why: format!("Namespace {namespace} is frozen"), until: None }
}

/// Whether a tag is old enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Age {
    /// It may go.
    Old,
    /// It waits.
    Young,
    /// It waits, and nobody can tell how long: there are too many newer ones that wait.
    Untold,
}

/// The ages of tags, and what is learned of them in one sync.
#[derive(Debug)]
pub(super) struct Ages {
    min_age: Option<Duration>,
    now: Timestamp,
    known: Vec<(String, Timestamp)>,
    /// Tags asked for in this sync that wait, and those that may go.
    asked: Vec<String>,
}

impl Ages {
    pub fn new(gate: &Gate) -> Self {
        // A time that somebody made unreadable counts from now on.
        let known = gate.seen.iter().map(|seen| (seen.tag.clone(), seen.since.parse().unwrap_or(gate.now))).collect();
        Self { min_age: gate.min_age, now: gate.now, known, asked: Vec::new() }
    }

    /// Whether `tag`, which the rules chose, is old enough. One that is seen for the first time is remembered.
    pub fn of(&mut self, tag: &str) -> Age {
        let Some(min_age) = self.min_age else {
            return Age::Old;
        };
        let first = self.asked.is_empty();
        let since = self.known.iter().find(|(known, _)| known == tag).map(|(_, since)| *since);
        if since.is_none() {
            // The newest of all is always remembered; `seen` makes room for it.
            if self.known.len() >= MAX_SEEN && !first {
                return Age::Untold;
            }
            self.known.push((tag.to_owned(), self.now));
        }
        self.asked.push(tag.to_owned());
        let ready = ready(since.unwrap_or(self.now), min_age);
        if ready.is_some_and(|ready| ready <= self.now) { Age::Old } else { Age::Young }
    }

    /// Whether it is remembered.
    pub fn knows(&self, tag: &str) -> bool {
        self.known.iter().any(|(known, _)| known == tag)
    }

    /// The tag of those asked for that goes next, if one waits.
    pub fn waits(&self) -> Option<Waits> {
        let min_age = self.min_age?;
        let waits = self.known.iter().filter(|(tag, _)| self.asked.contains(tag));
        let waits = waits.filter_map(|(tag, since)| Some((tag, ready(*since, min_age)?)));
        let (tag, ready) = waits.filter(|(_, ready)| *ready > self.now).min_by_key(|(tag, ready)| (*ready, *tag))?;
        let age = humantime::format_duration(min_age);
        let reason = format!("it is not known for {age} yet (spec.minAge)");
        Some(Waits { reason: TOO_YOUNG, pending: Pending { tag: tag.clone(), reason, at: Some(rfc3339(ready)) } })
    }

    /// What to remember: of the tags that `listed` says are there, those that wait, those that may go and cannot be run
    /// (else they would wait anew), and `chosen`. Oldest first.
    pub fn seen(mut self, chosen: &str, listed: impl Fn(&str) -> bool) -> Vec<Seen> {
        let Some(min_age) = self.min_age else {
            return Vec::new();
        };
        let waits = |since: Timestamp| ready(since, min_age).is_none_or(|ready| ready > self.now);
        let asked = std::mem::take(&mut self.asked);
        self.known.retain(|(tag, since)| listed(tag) && (tag == chosen || asked.contains(tag) || waits(*since)));
        self.known.sort_by(|a, b| (a.1, &a.0).cmp(&(b.1, &b.0)));
        while self.known.len() > MAX_SEEN {
            // The one whose neighbours are nearest to each other is missed least; the first and the last stay.
            let gap = |i: &usize| self.known[*i - 1].1.duration_until(self.known[*i + 1].1);
            let least = (1..self.known.len() - 1).min_by_key(gap).unwrap_or(1);
            self.known.remove(least);
        }
        self.known.into_iter().map(|(tag, since)| Seen { tag, since: rfc3339(since) }).collect()
    }
}

/// What counts as chosen where nothing was chosen yet: the starting tag, if the rules can compare it and it is listed.
pub(super) fn own_tag(spec: &CompiledSpec, tags: &[&str]) -> Option<Tagged> {
    let base = spec.base_tag.as_deref()?;
    let comparable = Order::from(spec).compare(base, base).is_some();
    (comparable && tags.contains(&base)).then(|| Tagged::new(base, None))
}

/// Whether a status tells of a tag that waits for a gate that can only be opened, not for its age or a person.
pub(super) fn waits_for_opening(reason: &str) -> bool {
    reason != TOO_YOUNG && !approval::is_reason(reason)
}

fn ready(since: Timestamp, min_age: Duration) -> Option<Timestamp> {
    since.checked_add(min_age).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(minute: i64) -> Timestamp {
        Timestamp::from_second(minute * 60).unwrap()
    }

    /// One sync over the tags `1` to `newest`, of which the rules like the greatest best; what is chosen, if any.
    fn sync(gate: &mut Gate, minute: i64, newest: u32) -> Option<u32> {
        gate.now = at(minute);
        let mut ages = Ages::new(gate);
        let mut untold = false;
        let old = |tag: &u32, ages: &mut Ages, untold: &mut bool| {
            let tag = tag.to_string();
            if *untold && !ages.knows(&tag) {
                return false;
            }
            let age = ages.of(&tag);
            *untold |= age == Age::Untold;
            age == Age::Old
        };
        let chosen = (1..=newest).rev().find(|tag| old(tag, &mut ages, &mut untold));
        let name = chosen.map(|tag| tag.to_string()).unwrap_or_default();
        gate.seen = ages.seen(&name, |_| true);
        chosen
    }

    #[test]
    fn however_often_a_tag_comes_one_comes_of_age() {
        fn check(min_age_minutes: i64, every: i64) {
            let min_age = Duration::from_secs(min_age_minutes.unsigned_abs() * 60);
            let mut gate = Gate { min_age: Some(min_age), ..Gate::default() };
            let mut chosen = 0;
            for minute in (0..min_age_minutes * 4).step_by(usize::try_from(every).unwrap()) {
                let newest = u32::try_from(minute / every + 1).unwrap();
                let now = sync(&mut gate, minute, newest).unwrap_or(0);
                assert!(now >= chosen, "never backwards: {now} after {chosen}");
                chosen = now;
                let age = minute - i64::from(chosen.saturating_sub(1)) * every;
                assert!(chosen == 0 || age >= min_age_minutes, "{chosen} is {age} minutes old");
                // A twelfth of the age is what 50 remembered tags are good for.
                let latest = min_age_minutes + (min_age_minutes / 12).max(2 * every);
                assert!(minute < latest || age <= latest, "{chosen} is {age} minutes old at {minute}");
                assert!(gate.seen.len() <= MAX_SEEN);
            }
            assert!(chosen > 0);
        }
        check(24 * 60, 60);
        check(24 * 60, 10);
        check(24 * 60, 1);
        check(60, 1);
        check(10, 1);
    }

    #[test]
    fn without_a_least_age_nothing_is_remembered() {
        let mut gate = Gate::default();
        assert_eq!(sync(&mut gate, 0, 3), Some(3));
        assert_eq!(gate.seen, []);
    }

    #[test]
    fn what_is_remembered_says_the_same_until_something_happens() {
        let mut gate = Gate { min_age: Some(Duration::from_hours(1)), ..Gate::default() };
        assert_eq!(sync(&mut gate, 0, 80), None);
        let seen = gate.seen.clone();
        assert_eq!(seen.len(), MAX_SEEN);
        assert_eq!(sync(&mut gate, 1, 80), None);
        assert_eq!(gate.seen, seen);
        assert_eq!(sync(&mut gate, 60, 80), Some(80));
        assert_eq!(gate.seen.len(), 1, "only what was chosen");
        assert_eq!(sync(&mut gate, 61, 80), Some(80));
    }

    #[test]
    fn what_waits_says_for_what() {
        let mut gate = Gate { min_age: Some(Duration::from_hours(24)), ..Gate::default() };
        gate.now = at(0);
        let mut ages = Ages::new(&gate);
        assert_eq!(ages.of("1.1.0"), Age::Young);
        let waits = ages.waits().unwrap();
        assert_eq!((waits.reason, waits.pending.tag.as_str()), ("TooYoung", "1.1.0"));
        assert_eq!(waits.pending.reason, "it is not known for 1day yet (spec.minAge)");
        assert_eq!(waits.pending.at.as_deref(), Some("1970-01-02T00:00:00Z"));
        let waits = Waits::closed("1.1.0", &frozen("shop"));
        assert_eq!((waits.reason, waits.pending.reason.as_str()), ("Frozen", "Namespace shop is frozen"));
    }
}
