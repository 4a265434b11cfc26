//! What makes a newer tag wait: suspension, windows and a least age. Pure.

use std::time::Duration;

use croner::Cron;
use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::image::{ImageSpec, WindowKind, WindowSpec};
use super::schedule::{Schedule, ScheduleError};

/// Longest duration of a window, and longest least age.
const MAX_DURATION: Duration = Duration::from_hours(366 * 24);
/// Reason of conditions that speak of a gate that cannot be read.
pub(super) const GATE_INVALID: &str = "GateInvalid";
/// Most starts and ends of windows that are looked at for the time when rollouts may start again.
const MAX_STEPS: usize = 1000;

/// The gates of an Image.
#[derive(Clone, Debug, Default)]
pub struct Gates {
    suspend: bool,
    /// How long a tag must be known before it is chosen (`spec.minAge`); none: not at all.
    pub min_age: Option<Duration>,
    windows: Vec<Window>,
}

/// No rollout may start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// The reason of the `Pending` condition.
    pub reason: &'static str,
    /// Why, as a part of a sentence: `spec.suspend is set`.
    pub why: String,
    /// When rollouts may start again; none if nobody knows.
    pub until: Option<Timestamp>,
}

/// Why a gate cannot be used: what is wrong with which field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{cause}; fix spec.{field}")]
pub struct GateError {
    field: String,
    cause: String,
}

/// A gate that cannot be read is closed: ignoring it would roll what somebody wanted to wait.
impl From<&GateError> for Closed {
    fn from(error: &GateError) -> Self {
        Self { reason: GATE_INVALID, why: error.to_string(), until: None }
    }
}

/// A time in which rollouts may, or may not, start: from each time of a cron line for so long.
#[derive(Clone, Debug)]
struct Window {
    kind: WindowKind,
    starts: Box<Cron>,
    /// Elapsed time: where clocks are changed, a window ends at another time of day.
    duration: Duration,
    zone: TimeZone,
}

impl GateError {
    /// What is wrong with `spec.FIELD`.
    pub(super) const fn new(field: String, cause: String) -> Self {
        Self { field, cause }
    }
}

impl Gates {
    /// Reads the gates of a spec.
    pub fn parse(spec: &ImageSpec) -> Result<Self, GateError> {
        let min_age = spec.min_age.as_deref().map(|text| {
            let cause = |cause| format!("invalid age {text:?}: {cause}; use a duration such as 24h");
            duration(text).map_err(|e| GateError { field: "minAge".to_owned(), cause: cause(e) })
        });
        let windows = spec.windows.iter().enumerate();
        let windows = windows.map(|(index, window)| Window::parse(index, window)).collect::<Result<_, _>>()?;
        Ok(Self { suspend: spec.suspend == Some(true), min_age: min_age.transpose()?, windows })
    }

    /// Whether there is any.
    pub fn any(&self) -> bool {
        self.suspend || self.min_age.is_some() || !self.windows.is_empty()
    }

    /// Whether a rollout may start now. A window that denies counts more than one that allows; where there is one that
    /// allows, it is needed.
    pub fn closed(&self, now: Timestamp) -> Option<Closed> {
        if let Some(suspended) = self.suspended() {
            return Some(suspended);
        }
        let opens = self.opens(now);
        (opens != Some(now)).then(|| Closed {
            reason: "OutsideWindow",
            why: "spec.windows let no rollout start now".to_owned(),
            until: opens,
        })
    }

    /// Whether the Image is suspended, whatever its windows.
    pub fn suspended(&self) -> Option<Closed> {
        let why = || Closed { reason: "Suspended", why: "spec.suspend is set".to_owned(), until: None };
        self.suspend.then(why)
    }

    /// The first time from `now` on when the windows let a rollout start.
    fn opens(&self, now: Timestamp) -> Option<Timestamp> {
        let of = |kind: WindowKind| self.windows.iter().filter(move |window| window.kind == kind);
        let mut at = now;
        for _ in 0..MAX_STEPS {
            if let Some(end) = of(WindowKind::Deny).filter_map(|window| window.end(at)).max() {
                at = end;
            } else if of(WindowKind::Allow).next().is_none()
                || of(WindowKind::Allow).any(|window| window.end(at).is_some())
            {
                return Some(at);
            } else {
                at = of(WindowKind::Allow).filter_map(|window| window.next(at)).min()?;
            }
        }
        None
    }
}

impl Window {
    fn parse(index: usize, spec: &WindowSpec) -> Result<Self, GateError> {
        let wrong = |field: &str, cause: String| GateError { field: format!("windows[{index}].{field}"), cause };
        let (text, name) = (&spec.duration, spec.time_zone.as_deref());
        let duration = duration(text).map_err(|cause| {
            wrong("duration", format!("invalid duration {text:?}: {cause}; use one such as 8h or 1h30m"))
        })?;
        let zone = match name {
            None | Some("" | "UTC") => TimeZone::UTC,
            Some(name) => TimeZone::get(name).map_err(|_| {
                let cause = "it is not in the time zone database; use an IANA name such as Europe/Paris";
                wrong("timeZone", format!("unknown time zone {name:?}: {cause}"))
            })?,
        };
        // One that lies in the past is over, not wrong: the Image goes on.
        let starts = Schedule::cron(&spec.schedule, Timestamp::UNIX_EPOCH)
            .map_err(|error: ScheduleError| wrong("schedule", error.to_string().replace("(UTC) ", "")))?;
        Ok(Self { kind: spec.kind, starts, duration, zone })
    }

    /// The first start after `at`.
    fn next(&self, at: Timestamp) -> Option<Timestamp> {
        let at = at.to_zoned(self.zone.clone());
        self.starts.find_next_occurrence(&at, false).ok().map(|start| start.timestamp())
    }

    /// When the window ends that is open at `at`; none if none is.
    fn end(&self, at: Timestamp) -> Option<Timestamp> {
        let start = self.next(at.checked_sub(self.duration).ok()?)?;
        start.checked_add(self.duration).ok().filter(|_| start <= at)
    }
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let duration = humantime::parse_duration(text.trim()).map_err(|e| e.to_string())?;
    match duration {
        Duration::ZERO => Err("it is nothing".to_owned()),
        duration if duration > MAX_DURATION => Err("it is longer than a year".to_owned()),
        duration => Ok(duration),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn gates(patch: &Value) -> Result<Gates, GateError> {
        let mut spec = json!({
            "image": "app", "triggers": [{"type": "interval", "value": "5m"}],
            "rules": [{"name": "r", "type": "semver", "actions": [{"type": "apply"}]}],
        });
        json_patch::merge(&mut spec, patch);
        Gates::parse(&serde_json::from_value(spec).unwrap())
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn window(kind: &str, schedule: &str, duration: &str, zone: Option<&str>) -> Value {
        json!({"kind": kind, "schedule": schedule, "duration": duration, "timeZone": zone})
    }

    #[test]
    fn windows_open_and_close() {
        #[track_caller]
        fn check(windows: &[Value], now: &str, opens: Option<&str>) {
            let gates = gates(&json!({"windows": windows})).unwrap();
            assert_eq!(gates.opens(at(now)), opens.map(at), "{windows:?} at {now}");
            assert_eq!(gates.closed(at(now)).is_none(), opens == Some(now), "{windows:?} at {now}");
        }
        let night = window("allow", "0 22 * * *", "8h", None);
        let noon = window("deny", "0 12 * * *", "1h", None);
        check(&[], "2026-11-21T10:00:00Z", Some("2026-11-21T10:00:00Z"));
        // A start belongs to the window, an end does not.
        check(std::slice::from_ref(&night), "2026-11-21T21:59:59Z", Some("2026-11-21T22:00:00Z"));
        check(std::slice::from_ref(&night), "2026-11-21T22:00:00Z", Some("2026-11-21T22:00:00Z"));
        check(std::slice::from_ref(&night), "2026-11-22T05:59:59Z", Some("2026-11-22T05:59:59Z"));
        check(std::slice::from_ref(&night), "2026-11-22T06:00:00Z", Some("2026-11-22T22:00:00Z"));
        check(std::slice::from_ref(&noon), "2026-11-21T11:59:59Z", Some("2026-11-21T11:59:59Z"));
        check(std::slice::from_ref(&noon), "2026-11-21T12:00:00Z", Some("2026-11-21T13:00:00Z"));
        check(std::slice::from_ref(&noon), "2026-11-21T13:00:00Z", Some("2026-11-21T13:00:00Z"));
        // To deny counts more than to allow.
        let half = window("deny", "30 22 * * *", "30m", None);
        check(&[night.clone(), half.clone()], "2026-11-21T22:29:00Z", Some("2026-11-21T22:29:00Z"));
        check(&[night.clone(), half.clone()], "2026-11-21T22:30:00Z", Some("2026-11-21T23:00:00Z"));
        // Two that allow: either will do. Two that deny in a row: after the second.
        check(
            &[night.clone(), window("allow", "0 12 * * *", "1h", None)],
            "2026-11-21T12:30:00Z",
            Some("2026-11-21T12:30:00Z"),
        );
        check(
            &[noon.clone(), window("deny", "0 13 * * *", "1h", None)],
            "2026-11-21T12:30:00Z",
            Some("2026-11-21T14:00:00Z"),
        );
        // Always denied, or denied whenever allowed.
        check(&[window("deny", "0 0 * * *", "24h", None)], "2026-11-21T12:30:00Z", None);
        check(&[night.clone(), window("deny", "0 22 * * *", "8h", None)], "2026-11-21T12:30:00Z", None);
        // A window longer than its period never closes.
        check(&[window("allow", "0 0 * * *", "48h", None)], "2026-11-21T12:30:00Z", Some("2026-11-21T12:30:00Z"));
        // One of last year is over.
        check(
            &[window("deny", "0 0 0 24 12 * 2025", "48h", None)],
            "2026-11-21T12:30:00Z",
            Some("2026-11-21T12:30:00Z"),
        );
        // Weekends, for the whole of them.
        check(&[window("deny", "0 0 * * SAT", "48h", None)], "2026-11-21T12:30:00Z", Some("2026-11-23T00:00:00Z"));
        // Other zones, and the change of clocks: 22:00 in Paris is 21:00 UTC in winter, 20:00 in summer.
        let paris = window("allow", "0 22 * * *", "1h", Some("Europe/Paris"));
        check(std::slice::from_ref(&paris), "2026-11-21T20:59:00Z", Some("2026-11-21T21:00:00Z"));
        check(std::slice::from_ref(&paris), "2026-06-21T19:59:00Z", Some("2026-06-21T20:00:00Z"));
        check(std::slice::from_ref(&paris), "2026-06-21T20:30:00Z", Some("2026-06-21T20:30:00Z"));
    }

    #[test]
    fn suspended_is_closed_without_an_end() {
        let closed = gates(&json!({"suspend": true})).unwrap().closed(at("2026-11-21T10:00:00Z")).unwrap();
        assert_eq!((closed.why.as_str(), closed.until), ("spec.suspend is set", None));
        assert!(gates(&json!({"suspend": false})).unwrap().closed(at("2026-11-21T10:00:00Z")).is_none());
    }

    #[test]
    fn there_are_gates() {
        fn check(patch: &Value, expected: bool) {
            assert_eq!(gates(patch).unwrap().any(), expected, "{patch}");
        }
        check(&json!({}), false);
        check(&json!({"suspend": false, "windows": []}), false);
        check(&json!({"suspend": true}), true);
        check(&json!({"minAge": "24h"}), true);
        check(&json!({"windows": [window("deny", "@daily", "1h", None)]}), true);
    }

    #[test]
    fn an_error_names_the_field_and_the_fix() {
        #[track_caller]
        fn check(patch: &Value, expected: &[&str]) {
            let error = gates(patch).unwrap_err().to_string();
            for part in expected {
                assert!(error.contains(part), "{error:?} lacks {part:?}");
            }
        }
        let one = |schedule: &str, duration: &str, zone: Option<&str>| json!({"windows": [window("deny", "@daily", "1h", None), window("deny", schedule, duration, zone)]});
        check(&json!({"minAge": "soon"}), &["invalid age \"soon\"", "such as 24h", "fix spec.minAge"]);
        check(&json!({"minAge": "0s"}), &["nothing", "fix spec.minAge"]);
        check(&json!({"minAge": "900d"}), &["longer than a year", "fix spec.minAge"]);
        check(&one("bad", "1h", None), &["invalid crontab \"bad\"", "fix spec.windows[1].schedule"]);
        check(&one("0 0 30 2 *", "1h", None), &["never fires", "fix spec.windows[1].schedule"]);
        check(&one("@daily", "eight", None), &["invalid duration \"eight\"", "fix spec.windows[1].duration"]);
        check(&one("@daily", "1h", Some("Mars/Olympus")), &["unknown time zone", "fix spec.windows[1].timeZone"]);
    }
}
