//! What the leader does: carries the rotation of the CA through, one written step after the other.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ca::CaError;
use super::ca_bundle::{Bundle, Carried};
use super::ca_rotation::{CaState, Step, Timing, next_step};
use super::ca_secret::{CaStore, Stored};
use super::probes::Condition;
use super::trouble::Trouble;
use crate::telemetry::{CertificatePart, Metrics};

/// Steps in a row. A rotation has five, and waits between them.
const STEPS: usize = 8;

/// What a rotation needs.
pub struct Rotation {
    /// Where the CA is.
    pub store: CaStore,
    /// How long the steps take.
    pub timing: Timing,
    /// Wakes when leadership begins or ends.
    pub leads: watch::Receiver<bool>,
    /// Whether this process may write right now; asked before each write.
    pub may_write: Arc<dyn Fn() -> bool + Send + Sync>,
    /// What the live webhook configuration trusts; none while that is not known.
    pub carried: watch::Receiver<Option<Carried>>,
    /// What it has to trust, for whoever writes it; none while this process does not lead or does not know.
    pub trusted: watch::Sender<Option<Bundle>>,
    /// Degraded while the CA can be neither read nor rotated.
    pub condition: Condition,
    /// Where failures and the CA's expiry go.
    pub metrics: Metrics,
}

/// Makes, publishes and rotates the CA while this process leads, until `shutdown`. A failure is tried again at the next poll.
///
/// Only reads while another leads: whoever leads next then still knows a CA that somebody deletes meanwhile.
pub async fn rotate(rotation: Rotation, shutdown: CancellationToken) {
    let trouble = Trouble::new(CertificatePart::Rotation, rotation.metrics.clone());
    let mut leader = Leader { rotation, trouble, last: None, unknown: None };
    leader.rotation.condition.set(true, "");
    while !shutdown.is_cancelled() {
        leader.rotation.leads.mark_unchanged();
        leader.rotation.carried.mark_unchanged();
        match shutdown.run_until_cancelled(leader.round()).await {
            Some(Ok(())) => leader.trouble.over(),
            Some(Err(error)) => leader.trouble.failed(&error),
            None => return,
        }
        match leader.trouble.reason() {
            Some(reason) => leader.rotation.condition.degrade(reason),
            None => leader.rotation.condition.set(true, ""),
        }
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(leader.rotation.timing.poll) => {}
            Ok(()) = leader.rotation.leads.changed() => {}
            Ok(()) = leader.rotation.carried.changed() => {}
        }
    }
}

struct Leader {
    rotation: Rotation,
    trouble: Trouble,
    /// What the Secret last said.
    last: Option<CaState>,
    /// The last `action` that means nothing.
    unknown: Option<String>,
}

impl Leader {
    /// As many steps as can be done now, each from what the Secret says then.
    async fn round(&mut self) -> Result<(), CaError> {
        for _ in 0..STEPS {
            let stored = self.rotation.store.read().await?;
            if let Some(Stored { state: Ok(state), .. }) = &stored {
                self.rotation.metrics.set_ca_expiry(state.signing.not_after().as_second());
                self.last = Some(state.clone());
            }
            if !(self.rotation.may_write)() {
                self.rotation.trusted.send_if_modified(|trusted| trusted.take().is_some());
                return Ok(());
            }
            let Some(carried) = self.rotation.carried.borrow().clone() else {
                return Ok(());
            };
            let settled = match stored {
                Some(stored) => self.forward(stored, &carried).await?,
                None => self.begin(carried).await?,
            };
            if settled {
                return Ok(());
            }
        }
        Ok(())
    }

    /// There is no Secret.
    async fn begin(&mut self, carried: Carried) -> Result<bool, CaError> {
        let now = Timestamp::now();
        let state = match &self.last {
            Some(last) => last.restored(now)?,
            None => CaState::fresh(carried.anywhere, now)?,
        };
        if self.rotation.store.create(&state).await? {
            tracing::info!(secret = self.rotation.store.origin(), again = self.last.is_some(), "the CA is made");
        }
        Ok(false)
    }

    /// One step; true if there is none to do.
    async fn forward(&mut self, stored: Stored, carried: &Carried) -> Result<bool, CaError> {
        let now = Timestamp::now();
        let origin = self.rotation.store.origin().to_owned();
        self.mention(&stored);
        let (done, after) = match &stored.state {
            Ok(state) => {
                let step = next_step(state, carried, &self.rotation.timing, now);
                if !matches!(step, Step::Adopt(_)) {
                    self.trust(&state.bundle); // before the step, which may not be allowed
                }
                if step == Step::Wait {
                    return Ok(true);
                }
                (said(&step), state.after(&step, now)?)
            }
            Err(CaError::Expired { .. }) => {
                let trusted = self.last.as_ref().map(|last| last.bundle.clone()).unwrap_or_default();
                ("an expired one is replaced", CaState::fresh(trusted.and(carried.anywhere.clone()), now)?)
            }
            Err(_) => return stored.state.map(|_| true),
        };
        if self.rotation.store.replace(&stored, &after).await? {
            tracing::info!(secret = %origin, trusted = after.bundle.len(), "CA: {done}");
        }
        Ok(false)
    }

    /// Tells the writer of the configuration whom to trust.
    fn trust(&self, bundle: &Bundle) {
        self.rotation.trusted.send_if_modified(|trusted| {
            let another = trusted.as_ref() != Some(bundle);
            *trusted = Some(bundle.clone());
            another
        });
    }

    /// Says once that an `action` means nothing.
    fn mention(&mut self, stored: &Stored) {
        if self.unknown != stored.unknown_action {
            self.unknown.clone_from(&stored.unknown_action);
            if let Some(action) = &self.unknown {
                tracing::warn!(
                    secret = self.rotation.store.origin(),
                    action,
                    "unknown action; `rotate` is the one there is"
                );
            }
        }
    }
}

fn said(step: &Step) -> &'static str {
    match step {
        Step::Wait => "nothing to do",
        Step::Adopt(_) => "others that the webhook configuration trusts stay trusted for a while",
        Step::Published => "the webhook configuration carries the newest one",
        Step::Unpublished => "the webhook configuration does not carry the newest one any more",
        Step::Sign => "the newest one signs from now on",
        Step::Retire => "the old one is no longer trusted",
        Step::Stage => "the next one is made",
    }
}

#[cfg(test)]
mod tests;
