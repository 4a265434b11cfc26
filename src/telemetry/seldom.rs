//! Lines of the log that anybody could cause as often as they like.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The time from one line to the next, at least.
const PERIOD: Duration = Duration::from_secs(60);

/// Lets one line a minute through, and counts those in between.
#[derive(Debug, Default)]
pub struct Seldom(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    last: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    /// Whether a line may be written now: how many were left out since the last one, or none if this one is too.
    pub fn pass(&self, now: Instant) -> Option<u64> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.last.is_some_and(|last| now.saturating_duration_since(last) < PERIOD) {
            lines.left_out += 1;
            return None;
        }
        lines.last = Some(now);
        Some(std::mem::take(&mut lines.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_a_minute_says_how_many_there_were() {
        let (seldom, began) = (Seldom::default(), Instant::now());
        let check = |second: u64, expected: Option<u64>| {
            assert_eq!(seldom.pass(began + Duration::from_secs(second)), expected, "{second}");
        };
        check(0, Some(0));
        check(1, None);
        check(59, None);
        check(60, Some(2));
        check(61, None);
        check(600, Some(1));
        check(700, Some(0));
    }
}
