//! Triggers as times: when is an Image due after a given moment?

use std::time::Duration;

use croner::Cron;
use croner::parser::CronParser;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::image::{TriggerSpec, TriggerType};

/// The shortest interval: below it a registry would be asked without pause.
const MIN_INTERVAL: Duration = Duration::from_secs(1);
/// The longest interval, ten years: above it the sum of times could overflow.
const MAX_INTERVAL: Duration = Duration::from_hours(87840);
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

    /// The first time after `last`, or none if there is none.
    pub fn next_after(&self, last: Timestamp) -> Option<Timestamp> {
        match self {
            Self::Every(period) => last.checked_add(*period).ok(),
            Self::Cron(cron) => next_cron(cron, last).ok(),
        }
    }
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
}
