//! What every replica does: reads the Secret now and then, and goes over to the CA that signs there.

use std::sync::Arc;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::ca::{CaError, CertificateAuthority};
use super::ca_rotation::{CaState, Timing, takes};
use super::ca_secret::CaStore;
use super::probes::Condition;
use super::trouble::Trouble;
use crate::telemetry::{CertificatePart, Metrics};

/// How a replica follows the CA.
pub struct Following {
    /// Where the CA is.
    pub store: CaStore,
    /// How often it is read.
    pub timing: Timing,
    /// Nobody rotates the CA, because nobody here may write the webhook configuration: what the Secret says counts at once,
    /// and its end is announced.
    pub by_hand: bool,
    /// Met while there is a CA; degraded while a newer one cannot be taken.
    pub condition: Condition,
    /// Where failures are counted.
    pub metrics: Metrics,
}

/// The CA that a replica begins to sign with, if it may: none of its own vouches for it yet. `asked` says whether there is a
/// webhook configuration, which a leader keeps.
pub fn first(store: &CaStore, found: &CaState, asked: bool) -> Result<Arc<CertificateAuthority>, CaError> {
    if takes(None, found, asked, Timestamp::now()) {
        return Ok(found.signing.clone());
    }
    Err(CaError::Unpublished { origin: store.origin().to_owned() })
}

/// Follows the CA from `first` on, in a task until `shutdown`. The receiver has the one to sign with. Failures leave it as it is.
pub fn follow(
    following: Following,
    first: Arc<CertificateAuthority>,
    shutdown: CancellationToken,
) -> (watch::Receiver<Arc<CertificateAuthority>>, JoinHandle<()>) {
    let (signing, receiver) = watch::channel(first);
    let trouble = Trouble::new(CertificatePart::Ca, following.metrics.clone());
    let poll = following.timing.poll;
    let mut follower = Follower { following, signing, trouble };
    let task = tokio::spawn(async move {
        while shutdown.run_until_cancelled(tokio::time::sleep(poll)).await.is_some() {
            shutdown.run_until_cancelled(follower.look()).await;
        }
    });
    (receiver, task)
}

struct Follower {
    following: Following,
    signing: watch::Sender<Arc<CertificateAuthority>>,
    trouble: Trouble,
}

impl Follower {
    async fn look(&mut self) {
        match self.following.store.load().await {
            Ok(Some(state)) => self.found(&state, Timestamp::now()),
            Ok(None) => {
                let (origin, who) = (self.following.store.origin(), self.successor());
                self.trouble.failed(&format!("{origin} is gone; {who}"));
            }
            Err(error) => self.trouble.failed(&error),
        }
        match self.trouble.reason() {
            Some(reason) => self.following.condition.degrade(reason),
            None => self.following.condition.set(true, ""),
        }
    }

    fn successor(&self) -> &'static str {
        if self.following.by_hand { "restart kimup and it makes another" } else { "the leader makes another" }
    }

    fn found(&mut self, state: &CaState, now: Timestamp) {
        let present = self.signing.borrow().clone();
        let another = present.der() != state.signing.der();
        if another && takes(Some(&present), state, !self.following.by_hand, now) {
            tracing::info!(secret = %self.following.store.origin(), not_after = %state.signing.not_after(), "another CA signs");
            self.signing.send_replace(state.signing.clone());
        }
        match self.by_hand_only(state, now) {
            Some(reason) => self.trouble.failed(&reason),
            None => self.trouble.over(),
        }
    }

    /// What a person has to do who put the CA into the webhook configuration by hand.
    fn by_hand_only(&self, state: &CaState, now: Timestamp) -> Option<String> {
        let why = if state.signing.is_due(now) {
            format!("expires at {} and is not rotated by itself", state.signing.not_after())
        } else if state.requested {
            "is asked to rotate and cannot".to_owned()
        } else {
            return None;
        };
        let origin = self.following.store.origin();
        self.following.by_hand.then(|| {
            format!(
                "the CA of {origin} {why}: with --watch-namespace the webhook configuration is yours; add a new CA there, then put it into the Secret"
            )
        })
    }
}

#[cfg(test)]
mod tests;
