//! Endpoints that are asked one after the other, until one answers.

use std::{
    collections::{HashSet, VecDeque},
    sync::{Mutex, PoisonError},
};

use tokio::time::Instant;

use super::{error::RegistryError, registries::Endpoint};

/// Repositories of mirrors that are remembered to fail.
const MAX_FAILING: usize = 10_000;

/// The mirrors' repositories that failed when they were asked last. Each is told once, and again when it answers: an
/// operator wants to know, and not at every sync.
#[derive(Default)]
pub(super) struct Failing(Mutex<HashSet<String>>);

impl Failing {
    /// Whether it answered until now.
    fn begins(&self, mirror: &str) -> bool {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.len() < MAX_FAILING && known.insert(mirror.to_owned())
    }

    /// Whether it failed until now.
    fn ends(&self, mirror: &str) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(mirror)
    }
}

/// The endpoints of one listing or manifest that are left.
pub(super) struct Turns<'a> {
    left: VecDeque<Endpoint>,
    deadline: Instant,
    failing: &'a Failing,
    /// Whose turn it is, as an image names it.
    asked: String,
}

impl<'a> Turns<'a> {
    pub(super) fn new(endpoints: Vec<Endpoint>, deadline: Instant, failing: &'a Failing) -> Self {
        Self { left: endpoints.into(), deadline, failing, asked: String::new() }
    }

    /// The next one and its deadline: a mirror that hangs leaves the others their share of the time.
    pub(super) fn next(&mut self) -> Option<(Endpoint, Instant)> {
        let endpoint = self.left.pop_front()?;
        self.asked = endpoint.repository.to_string();
        let now = Instant::now();
        let share = u32::try_from(self.left.len() + 1).unwrap_or(u32::MAX);
        let until = if share == 1 { self.deadline } else { now + (self.deadline - now) / share };
        Some((endpoint, until))
    }

    /// The outcome, or `None` if the next endpoint is to be asked instead.
    pub(super) fn settle<T, E>(
        &self,
        outcome: Result<T, E>,
        cause: impl Fn(&E) -> &RegistryError,
    ) -> Option<Result<T, E>> {
        let mirror = &*self.asked;
        match outcome {
            Err(error) if !self.left.is_empty() && may_pass(cause(&error)) => {
                let error = cause(&error);
                if self.failing.begins(mirror) {
                    tracing::warn!(mirror, %error, "a mirror fails, the next endpoint is asked until it answers again");
                } else {
                    tracing::debug!(mirror, %error, "a mirror still fails, asking the next endpoint");
                }
                None
            }
            outcome => {
                if outcome.is_ok() && self.failing.ends(mirror) {
                    tracing::info!(mirror, "the mirror answers again");
                }
                Some(outcome)
            }
        }
    }

    pub(super) fn none_left() -> RegistryError {
        RegistryError::Config { cause: "there is no endpoint to ask".to_owned() }
    }
}

/// Whether a mirror's failure says nothing about the others.
///
/// What looks like an attack or a wrong address (answers that are none, too much, or that point elsewhere) is told instead:
/// a mirror in that state is not to be worked around in silence.
fn may_pass(error: &RegistryError) -> bool {
    match error {
        RegistryError::Unreachable { .. }
        | RegistryError::Server { .. }
        | RegistryError::NotFound { .. }
        | RegistryError::NoManifest { .. }
        | RegistryError::Unauthorized { .. }
        | RegistryError::RateLimited { .. }
        | RegistryError::Timeout { .. } => true,
        RegistryError::Malformed { .. }
        | RegistryError::TooMuch { .. }
        | RegistryError::Refused { .. }
        | RegistryError::Config { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_mirror_is_told_once() {
        let failing = Failing::default();
        assert!(!failing.ends("m/a"), "nothing has failed yet");
        assert!(failing.begins("m/a") && !failing.begins("m/a") && failing.begins("m/b"));
        assert!(failing.ends("m/a") && !failing.ends("m/a") && failing.begins("m/a"));
        assert_eq!((0..2 * MAX_FAILING).filter(|n| failing.begins(&format!("n/{n}"))).count(), MAX_FAILING - 2);
    }
}
