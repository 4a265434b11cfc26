//! How the workloads of an Image are rolled: `spec.rollout`. Pure.

use std::time::Duration;

use super::approval::asks_approval;
use super::gates::{GateError, duration};
use super::image::{AfterRollback, ImageSpec};

/// How the workloads of an Image are rolled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Strategy {
    /// How long the rollout of one workload may take before it counts as failed; none: the process's default.
    pub deadline: Option<Duration>,
    /// How long the first workload of a group must run well before the others follow.
    pub soak: Duration,
    /// The least time between two rollouts of one workload; none: the process's default.
    pub min_interval: Option<Duration>,
    /// What ends a hold that a rollback made.
    pub after_rollback: AfterRollback,
}

impl Default for Strategy {
    fn default() -> Self {
        Self { deadline: None, soak: Duration::ZERO, min_interval: None, after_rollback: AfterRollback::Next }
    }
}

impl Strategy {
    /// Reads `spec.rollout`.
    ///
    /// # Errors
    /// A duration that cannot be read.
    pub fn parse(spec: &ImageSpec) -> Result<Self, GateError> {
        let (default, rollout) = (Self::default(), spec.rollout.clone().unwrap_or_default());
        // Where people approve, a person's rollback is theirs to end (design section 5).
        let after = if asks_approval(spec) { AfterRollback::Hold } else { AfterRollback::Next };
        Ok(Self {
            deadline: read("deadline", "10m", rollout.deadline.as_deref())?,
            soak: zero_or("soak", "15m", rollout.soak.as_deref())?.unwrap_or(default.soak),
            min_interval: zero_or("minInterval", "30s", rollout.min_interval.as_deref())?,
            after_rollback: rollout.after_rollback.unwrap_or(after),
        })
    }
}

fn zero_or(field: &str, example: &str, text: Option<&str>) -> Result<Option<Duration>, GateError> {
    match text.map(|text| humantime::parse_duration(text.trim())) {
        Some(Ok(Duration::ZERO)) => Ok(Some(Duration::ZERO)),
        _ => read(field, example, text),
    }
}

fn read(field: &str, example: &str, text: Option<&str>) -> Result<Option<Duration>, GateError> {
    let Some(text) = text else {
        return Ok(None);
    };
    let wrong = |cause| format!("invalid duration {text:?}: {cause}; use a duration such as {example}");
    duration(text).map(Some).map_err(|cause| GateError::new(format!("rollout.{field}"), wrong(cause)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(rollout: &Value, action: &str) -> ImageSpec {
        serde_json::from_value(json!({
            "image": "app", "triggers": [{"type": "webhook"}], "rollout": rollout,
            "rules": [{"name": "r", "type": "always", "actions": [{"type": action}]}],
        }))
        .unwrap()
    }

    #[test]
    fn durations_are_read() {
        #[track_caller]
        fn check(rollout: &Value, expected: Result<(Option<u64>, u64, Option<u64>), &str>) {
            let seconds = |d: Option<Duration>| d.map(|d| d.as_secs());
            let seconds = |s: Strategy| (seconds(s.deadline), s.soak.as_secs(), seconds(s.min_interval));
            let found = Strategy::parse(&spec(rollout, "apply")).map(seconds).map_err(|e| e.to_string());
            match (found, expected) {
                (Err(found), Err(end)) => assert!(found.ends_with(end), "{found}"),
                (found, expected) => assert_eq!(found, expected.map_err(str::to_owned), "{rollout}"),
            }
        }
        check(&json!(null), Ok((None, 0, None)));
        check(&json!({"deadline": "2m", "soak": "1h", "minInterval": "5m"}), Ok((Some(120), 3600, Some(300))));
        check(&json!({"soak": "0s", "minInterval": "0s"}), Ok((None, 0, Some(0))));
        check(&json!({"deadline": "0s"}), Err("fix spec.rollout.deadline"));
        check(&json!({"soak": "soon"}), Err("use a duration such as 15m; fix spec.rollout.soak"));
        check(&json!({"minInterval": "2years"}), Err("fix spec.rollout.minInterval"));
    }

    #[test]
    fn a_rollback_is_ended_by_whom() {
        #[track_caller]
        fn check(rollout: &Value, action: &str, expected: AfterRollback) {
            assert_eq!(Strategy::parse(&spec(rollout, action)).unwrap().after_rollback, expected);
        }
        check(&json!({}), "apply", AfterRollback::Next);
        check(&json!({"afterRollback": "hold"}), "apply", AfterRollback::Hold);
        check(&json!({}), "request-approval", AfterRollback::Hold);
        check(&json!({"afterRollback": "next"}), "request-approval", AfterRollback::Next);
    }
}
