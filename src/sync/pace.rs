//! When to look at a registry again, how old a list may be, and who may use the API server meanwhile.

use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::api::{self, CompiledSpec, Phase};
use crate::registry::Asker;

/// First pause after a failed sync; doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(5);
/// Longest pause after a failed sync.
pub(super) const RETRY_MAX: Duration = Duration::from_mins(5);
/// Missed intervals after which an Image is `Stale`.
const STALE_INTERVALS: usize = 3;

/// What a listing must be like.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// The list must have been asked for at or after this moment.
    pub not_before: Instant,
    /// On whose behalf.
    pub asker: Asker,
}

impl Wanted {
    /// A list from now on.
    pub fn new_list(asker: Asker) -> Self {
        Self { not_before: Instant::now(), asker }
    }

    /// A list that may be shared with the Images of the same repository that came due a moment ago.
    pub fn shared_list(asker: Asker, spec: &CompiledSpec, now: Timestamp) -> Self {
        let period = spec.schedules.iter().filter_map(|schedule| schedule.period(now)).min();
        let age = period.map_or(Duration::ZERO, api::shared_age);
        let began = Instant::now();
        Self { not_before: began.checked_sub(age).unwrap_or(began), asker }
    }
}

/// When the triggers fire next after a sync at `last`.
pub fn next(spec: &CompiledSpec, last: Timestamp) -> Option<Timestamp> {
    let phase = Phase::of(&spec.repository);
    spec.schedules.iter().filter_map(|schedule| schedule.next_in_phase(last, phase)).min()
}

/// Whether a trigger has fired three times since the last sync that succeeded.
pub fn is_stale(spec: &CompiledSpec, last_success: Timestamp, now: Timestamp) -> bool {
    let third =
        |schedule: &api::Schedule| (0..STALE_INTERVALS).try_fold(last_success, |last, _| schedule.next_after(last));
    spec.schedules.iter().filter_map(third).min().is_some_and(|third| third < now)
}

/// What follows a sync that ended `now`, after so many in a row that failed: how many these are by now, and when the next
/// sync is due (none: when asked).
pub fn after(spec: Option<&CompiledSpec>, failures: u32, failed: bool, now: Timestamp) -> (u32, Option<Timestamp>) {
    let regular = spec.and_then(|spec| next(spec, now));
    if !failed {
        return (0, regular);
    }
    let failures = failures.saturating_add(1);
    let retry = now.saturating_add(retry_pause(spec, failures)).unwrap_or(now);
    (failures, Some(regular.map_or(retry, |regular| regular.min(retry))))
}

/// How long the next try of a failed sync takes at most, however often it has failed.
pub fn longest_wait(spec: &CompiledSpec, now: Timestamp) -> Duration {
    let period = spec.schedules.iter().filter_map(|schedule| schedule.period(now)).min();
    period.map_or(RETRY_MAX, |period| period.min(RETRY_MAX))
}

/// When an Image is due that an earlier process synced last at `last`, as its status has it.
///
/// The status may be behind by the heartbeat, so an Image that looks overdue by less has most likely been synced at its
/// last time: it goes on with the next, or a restart would be a burst.
pub fn resume(spec: &CompiledSpec, last: Timestamp, now: Timestamp, heartbeat: Duration) -> Option<Timestamp> {
    let due = next(spec, last)?;
    let ago = |schedule: &api::Schedule| schedule.period(now).filter(|period| *period <= heartbeat);
    let often = spec.schedules.iter().filter_map(ago).min();
    let age = Duration::try_from(last.duration_until(now)).unwrap_or_default();
    match often {
        Some(period) if due <= now && age <= heartbeat + period => {
            // The first time of the grid after now, and not the first that is half an interval away.
            next(spec, now.checked_sub(period / 2).ok()?)
        }
        _ => Some(due),
    }
}

/// The pause after so many failures in a row, from 1. It is the same for Images of one repository, which have failed
/// together: trying together they share the next listing as well.
pub fn retry_pause(spec: Option<&CompiledSpec>, failures: u32) -> Duration {
    let pause = RETRY_FIRST.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(RETRY_MAX);
    let jitter = spec.map(|spec| Phase::of(&spec.repository).share_of(pause / 4));
    pause.saturating_sub(jitter.unwrap_or_default())
}

/// Places for work that asks the API server. Nobody keeps one while a registry is waited for: one that hangs would hold
/// up Images that have nothing to do with it.
pub(super) struct Places {
    semaphore: Semaphore,
    closed: CancellationToken,
}

impl Places {
    pub(super) fn new(count: usize) -> Self {
        Self { semaphore: Semaphore::new(count), closed: CancellationToken::new() }
    }

    /// Waits for a place; none once they are closed.
    pub(super) async fn take(&self) -> Option<SemaphorePermit<'_>> {
        self.semaphore.acquire().await.ok()
    }

    /// Nothing new begins.
    pub(super) fn close(&self) {
        self.semaphore.close();
        self.closed.cancel();
    }

    /// Waits for what needs no place, until the places are closed.
    pub(super) async fn outside<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        self.closed.run_until_cancelled(work).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(triggers: &[(&str, &str)]) -> CompiledSpec {
        let triggers: Vec<_> =
            triggers.iter().map(|(kind, value)| serde_json::json!({"type": kind, "value": value})).collect();
        let spec = serde_json::json!({
            "image": "ghcr.io/team/app",
            "triggers": triggers,
            "rules": [{"name": "r", "type": "semver-minor", "actions": [{"type": "apply"}]}],
        });
        api::compile(&serde_json::from_value(spec).unwrap(), at("2026-11-21T10:00:00Z")).unwrap()
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn a_restart_is_no_burst() {
        let now = at("2026-11-21T10:00:00Z");
        let heartbeat = Duration::from_mins(10);
        let check = |interval: &str, ago: Duration, earliest: i64, latest: i64| {
            let last = now.checked_sub(ago).unwrap();
            let due = resume(&spec(&[("interval", interval)]), last, now, heartbeat).unwrap();
            let wait = now.duration_until(due).as_secs();
            assert!((earliest..=latest).contains(&wait), "{interval}, {ago:?} ago: due in {wait} s");
        };
        let mins = Duration::from_mins;
        check("5m", mins(1), 90, 390);
        // The status is behind by up to the heartbeat.
        check("5m", mins(9), 0, 300);
        check("5m", mins(14), 0, 300);
        check("1m", mins(10), 0, 60);
        // It was down for longer.
        check("5m", mins(16), -999, -1);
        check("1m", mins(12), -999, -1);
        // Of a long interval the status knows each sync.
        check("24h", mins(60), 11 * 3600 - 1, 35 * 3600);
        check("24h", mins(36 * 60 + 1), -99_999, -1);
        // A time that passed while it was down is made up for.
        check("1h", mins(91), -4000, -1);
    }

    #[test]
    fn resumed_images_keep_the_grid() {
        let (now, spec) = (at("2026-11-21T10:00:00Z"), spec(&[("interval", "5m")]));
        let grid = next(&spec, at("2026-11-21T08:00:00Z")).unwrap();
        for ago in [1, 6, 9, 14] {
            let due = resume(&spec, now.checked_sub(Duration::from_mins(ago)).unwrap(), now, Duration::from_mins(10));
            let due = due.unwrap();
            assert_eq!(grid.duration_until(due).as_millis() % 300_000, 0, "{ago}");
            assert!(due > now);
        }
    }

    #[test]
    fn the_first_trigger_counts() {
        let now = at("2026-11-21T10:00:00Z");
        let check = |triggers: &[(&str, &str)], latest: Option<i64>| {
            let wait = next(&spec(triggers), now).map(|next| now.duration_until(next).as_secs());
            assert_eq!(wait.is_some(), latest.is_some(), "{triggers:?}");
            assert!(wait.zip(latest).is_none_or(|(wait, latest)| wait <= latest), "{triggers:?}: {wait:?}");
        };
        check(&[("interval", "1h"), ("interval", "1m")], Some(90));
        check(&[("interval", "1h"), ("crontab", "*/5 * * * *")], Some(310));
        check(&[("webhook", "")], None);
    }

    #[tokio::test(start_paused = true)]
    async fn how_old_a_list_may_be() {
        let now = at("2026-11-21T10:00:00Z");
        tokio::time::advance(Duration::from_hours(1)).await;
        let check = |triggers: &[(&str, &str)], age: u64| {
            let wanted = Wanted::shared_list(Asker::Schedule, &spec(triggers), now);
            assert_eq!(Instant::now() - wanted.not_before, Duration::from_secs(age), "{triggers:?}");
        };
        check(&[("interval", "1m")], 6);
        check(&[("interval", "1m"), ("interval", "10s")], 1);
        check(&[("crontab", "@daily")], 30);
        check(&[("webhook", "")], 0);
        assert_eq!(Wanted::new_list(Asker::Person).not_before, Instant::now());
    }

    #[test]
    fn retries_are_spread_and_capped() {
        let spec = spec(&[("interval", "1h")]);
        let pauses: Vec<f64> = (1..12).map(|n| retry_pause(Some(&spec), n).as_secs_f64()).collect();
        for (nth, pause) in pauses.iter().enumerate() {
            let whole = (5 << nth.min(6)).min(300);
            assert!(*pause <= f64::from(whole) && *pause >= f64::from(whole) * 0.75, "{pauses:?}");
        }
        assert_eq!(retry_pause(None, 1), RETRY_FIRST);
        assert_eq!(retry_pause(None, u32::MAX), RETRY_MAX);
    }

    #[test]
    fn what_follows_a_sync() {
        let (now, spec) = (at("2026-11-21T10:00:00Z"), spec(&[("interval", "1h")]));
        let regular = next(&spec, now);
        let mut failures = 0;
        for _ in 0..20 {
            let due;
            (failures, due) = after(Some(&spec), failures, true, now);
            assert_eq!(due, regular.min(now.checked_add(retry_pause(Some(&spec), failures)).ok()));
        }
        assert_eq!(failures, 20);
        assert_eq!(after(Some(&spec), failures, false, now), (0, regular), "a success starts anew");
        assert_eq!(after(Some(&spec), 0, true, now).0, 1);
        assert_eq!(after(None, 0, false, now), (0, None), "nothing fires by the clock");
    }

    #[test]
    fn a_next_try_is_told_by_its_longest_wait() {
        let now = at("2026-11-21T10:00:00Z");
        let check = |triggers: &[(&str, &str)], expected: u64| {
            let (spec, expected) = (spec(triggers), Duration::from_secs(expected));
            assert_eq!(longest_wait(&spec, now), expected, "{triggers:?}");
            assert!((1..20).all(|failures| retry_pause(Some(&spec), failures) <= RETRY_MAX));
        };
        check(&[("interval", "1h")], 300);
        check(&[("interval", "1h"), ("interval", "1m")], 60);
        check(&[("crontab", "@daily")], 300);
        check(&[("webhook", "")], 300);
    }

    #[test]
    fn three_missed_intervals_are_stale() {
        let check = |triggers: &[(&str, &str)], ago: Duration, expected: bool| {
            let now = at("2026-11-21T10:00:00Z");
            assert_eq!(is_stale(&spec(triggers), now.checked_sub(ago).unwrap(), now), expected, "{triggers:?} {ago:?}");
        };
        let mins = Duration::from_mins;
        check(&[("interval", "5m")], mins(15), false);
        check(&[("interval", "5m")], mins(16), true);
        check(&[("interval", "1h"), ("interval", "5m")], mins(16), true);
        // At 3 each night: the third one counts, wherever in the day it began.
        check(&[("crontab", "0 3 * * *")], Duration::from_hours(48 + 6), false);
        check(&[("crontab", "0 3 * * *")], Duration::from_hours(48 + 8), true);
        check(&[("webhook", "")], Duration::from_hours(9999), false);
    }

    #[tokio::test]
    async fn closed_places_let_go() {
        let places = Places::new(1);
        let place = places.take().await;
        assert!(place.is_some());
        assert_eq!(places.outside(std::future::ready(1)).await, Some(1));
        let (waiting, hanging, ()) =
            tokio::join!(places.take(), places.outside(std::future::pending::<()>()), async { places.close() });
        assert!(waiting.is_none() && hanging.is_none());
    }
}
