//! Triggers as times: when is an Image due after a given moment?

use std::time::Duration;

use croner::Cron;
use croner::parser::CronParser;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::image::{TriggerSpec, TriggerType};
use crate::policy::Repository;

/// The shortest interval: below it a registry would be asked without pause.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The longest interval, ten years: above it the sum of times could overflow.
const MAX_INTERVAL: Duration = Duration::from_hours(87840);
/// Longest delay of a cron trigger, by which the repositories of one cron line are spread.
const CRON_SPREAD: Duration = Duration::from_secs(10);
/// Longest age of a list of tags that a sync by the clock may share.
const MAX_SHARED_AGE: Duration = Duration::from_secs(30);
/// Longest cron line that is parsed, in bytes.
const MAX_CRON: usize = 128;

/// A trigger that fires by the clock.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// Every so long after the last time.
    Every(Duration),
    /// At the times of a cron line, UTC.
    Cron(Box<Cron>),
}

/// Where a repository stands within every interval: the same for all its Images and in every process, so that they come
/// due together, and different repositories do not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Phase(u64);

impl Phase {
    /// The phase of a repository.
    pub fn of(repository: &Repository) -> Self {
        // FNV-1a, then the finaliser of MurmurHash3: the low bits must depend on every character.
        let text = repository.to_string();
        let fnv = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        let mut hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, fnv);
        for factor in [0xff51_afd7_ed55_8ccd, 0xc4ce_b9fe_1a85_ec53] {
            hash = (hash ^ (hash >> 33)).wrapping_mul(factor);
        }
        Self(hash ^ (hash >> 33))
    }

    /// Its share of `whole`: from nothing to just below `whole`. Shares of a multiple agree modulo `whole`, so that of the
    /// times of a long interval every one is also a time of the shorter ones that divide it.
    pub fn share_of(self, whole: Duration) -> Duration {
        let nanos = u128::from(self.0) % whole.as_nanos().max(1);
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }
}

/// Why a trigger cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScheduleError {
    /// Not a duration.
    #[error("invalid interval {value:?}: {cause}; use a duration such as 30s, 5m or 1h30m")]
    Interval {
        /// What stands there.
        value: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Not a cron line, or one that never fires.
    #[error("invalid crontab {value:?}: {cause}; use 5, 6 or 7 fields (UTC) or a nickname such as @hourly")]
    Crontab {
        /// What stands there.
        value: String,
        /// What is wrong with it.
        cause: String,
    },
}

impl Schedule {
    /// Reads a trigger. `Ok(None)`: it does not fire by the clock (`webhook`).
    ///
    /// Cron weekdays are 0 to 6 for Sunday to Saturday, 7 is Sunday again; with six fields the first is seconds, with
    /// seven the last is the year. `now` is needed because a line that never fires again is refused.
    pub fn parse(trigger: &TriggerSpec, now: Timestamp) -> Result<Option<Self>, ScheduleError> {
        match trigger.kind {
            TriggerType::Webhook => Ok(None),
            TriggerType::Interval => parse_interval(&trigger.value).map(|d| Some(Self::Every(d))),
            TriggerType::Crontab => parse_crontab(trigger.value.trim(), now).map(Some),
        }
    }

    /// Reads a cron line alone, as the start of a window; `@every` is none.
    pub(super) fn cron(line: &str, now: Timestamp) -> Result<Box<Cron>, ScheduleError> {
        match parse_crontab(line.trim(), now)? {
            Self::Cron(cron) => Ok(cron),
            Self::Every(_) => {
                Err(ScheduleError::Crontab { value: line.to_owned(), cause: "it has no times of day".to_owned() })
            }
        }
    }

    /// The first time after `last`, or none if there is none.
    pub fn next_after(&self, last: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(period) => last.checked_add(*period).ok(),
            Self::Cron(cron) => next_cron(cron, last).ok(),
        }
    }

    /// When to sync next after a sync at `last`, spread by the repository's phase; none if never again.
    ///
    /// An interval: the first time of the repository's grid that is more than half an interval away, then exactly every
    /// interval. Cron: up to 10 seconds after the line's time.
    pub fn next_in_phase(&self, last: Timestamp, phase: Phase) -> Option<Timestamp> {
        match self {
            Self::Every(period) => next_on_grid(last, *period, phase),
            Self::Cron(cron) => {
                let delay = phase.share_of(CRON_SPREAD);
                next_cron(cron, last.checked_sub(delay).ok()?).ok()?.checked_add(delay).ok()
            }
        }
    }

    /// The time from one sync to the next, around `now`.
    pub fn period(&self, now: Timestamp) -> Option<Duration> {
        match self {
            Self::Every(period) => Some(*period),
            Self::Cron(_) => {
                let next = self.next_after(now)?;
                Duration::try_from(next.duration_until(self.next_after(next)?)).ok()
            }
        }
    }
}

/// How old a list of tags may be for a sync by the clock: a tenth of the interval, at most 30 seconds.
pub fn shared_age(period: Duration) -> Duration {
    (period / 10).min(MAX_SHARED_AGE)
}

fn next_on_grid(last: Timestamp, period: Duration, phase: Phase) -> Option<Timestamp> {
    let nanos = |duration: Duration| i128::try_from(duration.as_nanos()).ok();
    let (period, phase) = (nanos(period)?.max(1), nanos(phase.share_of(period))?);
    let from = last.as_nanosecond() + period / 2;
    Timestamp::from_nanosecond(((from - phase).div_euclid(period) + 1) * period + phase).ok()
}

fn parse_interval(value: &str) -> Result<Duration, ScheduleError> {
    let error = |cause: String| ScheduleError::Interval { value: value.to_owned(), cause };
    let period = humantime::parse_duration(value.trim()).map_err(|e| error(e.to_string()))?;
    if period < MIN_INTERVAL {
        return Err(error("it is shorter than 1s".to_owned()));
    }
    if period > MAX_INTERVAL {
        return Err(error("it is longer than ten years".to_owned()));
    }
    Ok(period)
}

fn parse_crontab(value: &str, now: Timestamp) -> Result<Schedule, ScheduleError> {
    let error = |cause: String| ScheduleError::Crontab { value: value.to_owned(), cause };
    if value.len() > MAX_CRON {
        return Err(error(format!("it is longer than {MAX_CRON} bytes")));
    }
    if let Some(period) = value.strip_prefix("@every ") {
        return parse_interval(period).map(Schedule::Every).map_err(|e| error(e.to_string()));
    }
    // `0/10` is no Vixie cron, but the original kimup accepted it, and its manifests work unchanged.
    let parser = CronParser::builder().sloppy_ranges(true).build();
    let cron = parser.parse(value).map_err(|e| error(e.to_string().trim_end_matches('.').to_owned()))?;
    next_cron(&cron, now).map_err(|()| error("it never fires".to_owned()))?;
    Ok(Schedule::Cron(Box::new(cron)))
}

fn next_cron(cron: &Cron, after: Timestamp) -> Result<Timestamp, ()> {
    let start = after.to_zoned(TimeZone::UTC);
    cron.find_next_occurrence(&start, false).map(|next| next.timestamp()).map_err(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(kind: TriggerType, value: &str) -> Result<Option<Schedule>, ScheduleError> {
        let now = "2026-11-21T10:20:30Z".parse().unwrap(); // a Saturday
        Schedule::parse(&TriggerSpec { kind, value: value.to_owned() }, now)
    }

    #[test]
    fn cron_lines_fire_at() {
        fn check(line: &str, expected: &str) {
            let schedule = parse(TriggerType::Crontab, line).unwrap().unwrap();
            let next = schedule.next_after("2026-11-21T10:20:30Z".parse().unwrap()).unwrap();
            assert_eq!(next.to_string(), expected, "{line}");
        }
        check("*/5 * * * *", "2026-11-21T10:25:00Z");
        check("00 */12 * * * *", "2026-11-21T10:24:00Z");
        check("0 0 12 * * * 2027", "2027-01-01T12:00:00Z");
        check("@hourly", "2026-11-21T11:00:00Z");
        check("@daily", "2026-11-22T00:00:00Z");
        check("@weekly", "2026-11-22T00:00:00Z");
        check("@monthly", "2026-12-01T00:00:00Z");
        check("@yearly", "2027-01-01T00:00:00Z");
        check("@every 90s", "2026-11-21T10:22:00Z");
        // 0 to 6 are Sunday to Saturday, 7 is Sunday.
        check("0 0 * * 0", "2026-11-22T00:00:00Z");
        check("0 0 * * 1", "2026-11-23T00:00:00Z");
        check("0 0 * * 6", "2026-11-28T00:00:00Z");
        check("0 0 * * 7", "2026-11-22T00:00:00Z");
        check("0 0 * * SUN", "2026-11-22T00:00:00Z");
        check("0 0 * * MON-FRI", "2026-11-23T00:00:00Z");
        check("0/10 * * * *", "2026-11-21T10:30:00Z");
    }

    #[test]
    fn intervals_last() {
        fn check(value: &str, seconds: Option<u64>) {
            let period = match parse(TriggerType::Interval, value) {
                Ok(Some(Schedule::Every(d))) => Some(d.as_secs()),
                _ => None,
            };
            assert_eq!(period, seconds, "{value:?}");
        }
        check("30s", Some(30));
        check("1m", Some(60));
        check("1h30m", Some(5400));
        check("1s", Some(1));
        check("500ms", None);
        check("0s", None);
        check("-5m", None);
        check("5", None);
        check("", None);
        check("99999999999h", None);
    }

    #[test]
    fn broken_lines_are_named() {
        fn check(line: &str) {
            let error = parse(TriggerType::Crontab, line).unwrap_err().to_string();
            assert!(error.starts_with(&format!("invalid crontab {line:?}")), "{error}");
            assert!(!error.contains(".;"), "{error}");
        }
        check("");
        check("* * *");
        check("61 * * * *");
        check("every day");
        check("0 0 31 2 *");
        check("@every never");
        check(&"1,".repeat(100));
    }

    fn phase(number: usize) -> Phase {
        Phase::of(&Repository::parse(&format!("ghcr.io/team/app-{number}")).unwrap())
    }

    #[test]
    fn phases_are_the_same_in_every_process() {
        assert_eq!(Phase::of(&Repository::parse("alpine").unwrap()), Phase(5_762_196_118_286_906_726));
        assert_ne!(phase(1), phase(2));
    }

    #[test]
    fn a_thousand_repositories_are_no_burst() {
        let now: Timestamp = "2026-11-21T10:20:30Z".parse().unwrap();
        let period = Duration::from_mins(5);
        let mut per_second = [0; 300];
        for number in 0..1000 {
            let next = Schedule::Every(period).next_in_phase(now, phase(number)).unwrap();
            per_second[usize::try_from(next.as_second() % 300).unwrap()] += 1;
        }
        let busiest = per_second.iter().max().unwrap();
        assert!(*busiest <= 13, "{busiest} in one second, 3.3 on average");
        let idle = per_second.iter().filter(|n| **n == 0).count();
        assert!(idle < 30, "{idle} seconds without any");
    }

    #[test]
    fn cron_fires_at_most_ten_seconds_late() {
        let now: Timestamp = "2026-11-21T10:20:30Z".parse().unwrap();
        let schedule = parse(TriggerType::Crontab, "*/5 * * * *").unwrap().unwrap();
        let mut delays = std::collections::BTreeSet::new();
        for number in 0..100 {
            let next = schedule.next_in_phase(now, phase(number)).unwrap();
            assert!((0..10).contains(&(next.as_second() % 300)), "{next}");
            delays.insert(next.as_second() % 300);
            let after = schedule.next_in_phase(next, phase(number)).unwrap();
            assert_eq!(next.duration_until(after).as_secs(), 300, "each time once");
        }
        assert_eq!(delays.len(), 10, "{delays:?}");
        assert_eq!(schedule.period(now), Some(Duration::from_mins(5)));
    }

    #[test]
    fn shared_ages() {
        fn check(period: u64, age: u64) {
            assert_eq!(shared_age(Duration::from_secs(period)), Duration::from_secs(age), "{period}s");
        }
        check(10, 1);
        check(60, 6);
        check(300, 30);
        check(86_400, 30);
    }

    proptest::proptest! {
        #[test]
        fn the_grid_is_never_near_and_never_skips(
            last in -1_000_000_000_000i64..10_000_000_000_000,
            period in 1_000u64..100_000_000,
            repository in 0usize..1000,
        ) {
            let last = Timestamp::from_millisecond(last).unwrap();
            let period = Duration::from_millis(period);
            let schedule = Schedule::Every(period);
            let next = schedule.next_in_phase(last, phase(repository)).unwrap();
            let wait = Duration::try_from(last.duration_until(next)).unwrap();
            proptest::prop_assert!(wait > period / 2 && wait <= period / 2 + period);
            // A sync that ends a little later does not move the grid.
            for late in [Duration::ZERO, period / 3] {
                let after = schedule.next_in_phase(next + late, phase(repository)).unwrap();
                proptest::prop_assert_eq!(after, next + period);
            }
            // A refresh in between keeps to the grid, and so does an interval that is a multiple.
            let multiple = Schedule::Every(period * 3).next_in_phase(last, phase(repository)).unwrap();
            let off = multiple.as_nanosecond() - next.as_nanosecond();
            proptest::prop_assert_eq!(off % i128::try_from(period.as_nanos()).unwrap(), 0);
        }
    }
}
