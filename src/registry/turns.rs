//! Endpoints that are asked one after the other, until one answers.

use std::collections::VecDeque;

use tokio::time::Instant;

use super::{error::RegistryError, registries::Endpoint};

/// The endpoints of one listing or manifest that are left.
pub(super) struct Turns {
    left: VecDeque<Endpoint>,
    deadline: Instant,
}

impl Turns {
    pub(super) fn new(endpoints: Vec<Endpoint>, deadline: Instant) -> Self {
        Self { left: endpoints.into(), deadline }
    }

    /// The next one and its deadline: a mirror that hangs leaves the others their share of the time.
    pub(super) fn next(&mut self) -> Option<(Endpoint, Instant)> {
        let endpoint = self.left.pop_front()?;
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
        match outcome {
            Err(error) if !self.left.is_empty() && may_pass(cause(&error)) => {
                let error = cause(&error);
                tracing::info!(%error, "a mirror failed, asking the next endpoint");
                None
            }
            outcome => Some(outcome),
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
