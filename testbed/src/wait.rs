//! Waiting for a condition, with a deadline and a message that says what was seen last.

use std::fmt::Display;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout};

/// Pause between the first two attempts. Each further one is a quarter longer, up to [`LONGEST`]: what comes soon is seen
/// soon, and what takes long costs few requests.
const INTERVAL: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_millis(250);

/// What one look at the world gives: the value that was waited for, or what is there instead.
pub trait Attempt {
    /// What was waited for.
    type Value;
    /// The value, or the state that was seen instead of it, for the message at the deadline.
    fn outcome(self) -> Result<Self::Value, String>;
}

impl<T> Attempt for Option<T> {
    type Value = T;
    fn outcome(self) -> Result<T, String> {
        self.ok_or_else(|| "nothing".to_owned())
    }
}

impl Attempt for bool {
    type Value = ();
    fn outcome(self) -> Result<(), String> {
        if self { Ok(()) } else { Err("not yet".to_owned()) }
    }
}

impl<T, E: Display> Attempt for Result<T, E> {
    type Value = T;
    fn outcome(self) -> Result<T, String> {
        self.map_err(|error| format!("{error:#}"))
    }
}

/// Repeats `attempt` until it gives a value; an error after `within` names `what` and the state seen last.
///
/// `attempt` may give an `Option`, a `bool`, or a `Result` whose error describes the state. One that hangs is cut off
/// at the deadline.
pub async fn try_eventually<A: Attempt>(
    within: Duration,
    what: &str,
    mut attempt: impl AsyncFnMut() -> A,
) -> Result<A::Value> {
    let deadline = Instant::now() + within;
    let mut seen = "nothing: the first look did not end".to_owned();
    let mut pause = INTERVAL;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match timeout(left, attempt()).await.map(Attempt::outcome) {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(state)) => seen = state,
            Err(_) => bail!("{what}: not within {within:?}; last seen: {seen}"),
        }
        if Instant::now() + pause >= deadline {
            bail!("{what}: not within {within:?}; last seen: {seen}");
        }
        sleep(pause).await;
        pause = (pause * 5 / 4).min(LONGEST);
    }
}

/// As [`try_eventually`], for tests.
///
/// # Panics
/// At the deadline, naming `what` and the state seen last.
#[expect(clippy::panic, reason = "an assertion for tests")]
pub async fn eventually<A: Attempt>(within: Duration, what: &str, attempt: impl AsyncFnMut() -> A) -> A::Value {
    match try_eventually(within, what, attempt).await {
        Ok(value) => value,
        Err(error) => panic!("{error:#}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Duration = Duration::from_millis(200);

    #[tokio::test]
    async fn the_value_is_returned_as_soon_as_it_is_there() {
        let mut looks = 0;
        let value = eventually(Duration::from_secs(5), "three looks", async || {
            looks += 1;
            (looks == 3).then_some(looks)
        })
        .await;
        assert_eq!(value, 3);
        eventually(SHORT, "a bool", async || true).await;
    }

    #[tokio::test]
    async fn the_message_names_what_and_the_last_state() {
        async fn check<A: Attempt<Value = ()>>(attempt: impl AsyncFnMut() -> A, expected: &str) {
            let error = try_eventually(SHORT, "the rollout", attempt).await.unwrap_err().to_string();
            assert_eq!(error, format!("the rollout: not within 200ms; last seen: {expected}"));
        }
        check(async || None, "nothing").await;
        check(async || false, "not yet").await;
        check(async || Err::<(), _>("2 of 3 Pods"), "2 of 3 Pods").await;
        check(async || std::future::pending::<bool>().await, "nothing: the first look did not end").await;
    }
}
