//! When one CA follows another: a pure decision over the Secret, the webhook configuration and the clock.
//!
//! The order keeps a promise: no replica serves a certificate before every API server trusts the CA that signed it.
//! (1) The next CA is staged in the Secret. (2) The webhook configuration is seen to carry both. (3) Only [`Timing::delay`]
//! later, when every API server has seen that too, does the next CA sign. (4) Replicas follow within [`Timing::poll`].
//! (5) After [`Timing::overlap`] nobody serves a certificate of the old CA any more, and it leaves the bundle. What has been
//! reached is written in the Secret, so that another leader goes on from there.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::ca::{CaError, CertificateAuthority};
use super::ca_bundle::{Bundle, Carried};

/// The name in the subject of every CA.
pub(super) const CA_NAME: &str = "kimup-ca";
/// An overlap is so many delays, and a delay so many polls.
const OVERLAP: u32 = 10;
const POLLS: u32 = 6;
const LONGEST_POLL: Duration = Duration::from_secs(10);

/// How long the steps of a rotation take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From the moment at which the configuration is seen to carry a CA until the CA signs: by then every API server must
    /// have seen the configuration too.
    pub delay: Duration,
    /// How long the old CA stays trusted after another signs: many polls.
    pub overlap: Duration,
    /// How often the Secret is read.
    pub poll: Duration,
}

impl Timing {
    /// With an overlap of ten delays, and six polls in a delay (but one every 10 seconds at least).
    pub fn of(delay: Duration) -> Self {
        Self { delay, overlap: delay * OVERLAP, poll: (delay / POLLS).min(LONGEST_POLL) }
    }
}

/// What the Secret says.
#[derive(Clone, Debug)]
pub struct CaState {
    /// The CA that signs (`tls.crt`, `tls.key`).
    pub signing: Arc<CertificateAuthority>,
    /// The CA that will (`next.crt`, `next.key`).
    pub next: Option<Arc<CertificateAuthority>>,
    /// What is to be trusted (`ca.crt`): the two above, then those of the past.
    pub bundle: Bundle,
    /// Since when `signing` may sign; none as long as it is not known to be trusted.
    pub signing_since: Option<Timestamp>,
    /// Since when the configuration has carried the newest CA, if that does not sign yet.
    pub published_since: Option<Timestamp>,
    /// Somebody wants a rotation.
    pub requested: bool,
}

/// What the leader does to the Secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing for now.
    Wait,
    /// Takes over what the configuration trusts: replicas may serve what was signed by a CA that the Secret does not know.
    Adopt(Bundle),
    /// Notes that the configuration carries the newest CA.
    Published,
    /// Notes that it does no longer.
    Unpublished,
    /// Lets the newest CA sign.
    Sign,
    /// Lets the CAs of the past go.
    Retire,
    /// Makes the next CA.
    Stage,
}

impl CaState {
    /// What stands in a Secret: the pairs, the bundle as it was `written` and the times.
    ///
    /// A bundle is written with the CA that signs first and the next one behind it, so that it says which CAs the times were written
    /// for. A pair that somebody put into the place of one of these is trusted by nobody yet.
    pub(super) fn read(
        signing: Arc<CertificateAuthority>,
        next: Option<Arc<CertificateAuthority>>,
        written: Bundle,
        [signing_since, published_since]: [Option<Timestamp>; 2],
        requested: bool,
    ) -> Self {
        let (both, signs) = (Self::pairs(&signing, next.as_ref()), written.first() == Some(signing.der()));
        Self {
            signing_since: signing_since.filter(|_| signs),
            published_since: published_since.filter(|_| written.begins_with(&both)),
            bundle: both.and(written),
            signing,
            next,
            requested,
        }
    }

    /// A CA that nobody knows yet, beside others that are trusted.
    pub(super) fn fresh(trusted: Bundle, now: Timestamp) -> Result<Self, CaError> {
        let signing = Arc::new(CertificateAuthority::generate(CA_NAME, now)?);
        let bundle = Bundle::default().and([signing.der().clone()]).and(trusted.unexpired(now));
        Ok(Self { signing, next: None, bundle, signing_since: None, published_since: None, requested: false })
    }

    /// What follows when somebody deleted the Secret: replicas still serve what the last CA signed, so it comes back for as
    /// long as the next one needs.
    pub(super) fn restored(&self, now: Timestamp) -> Result<Self, CaError> {
        if self.signing.not_after() <= now {
            return Self::fresh(self.bundle.clone(), now);
        }
        let signing_since = self.signing_since.map(|_| now); // a full overlap for whatever was trusted
        Self { signing_since, ..self.clone() }.after(&Step::Stage, now)
    }

    /// The CA that is to sign next, or has just begun to exist.
    fn newest(&self) -> &CertificateAuthority {
        self.next.as_ref().unwrap_or(&self.signing)
    }

    /// The bundle without the past.
    fn present(&self) -> Bundle {
        Self::pairs(&self.signing, self.next.as_ref())
    }

    fn pairs(signing: &Arc<CertificateAuthority>, next: Option<&Arc<CertificateAuthority>>) -> Bundle {
        Bundle::default().and([Some(signing), next].into_iter().flatten().map(|ca| ca.der().clone()))
    }

    /// The state after a step. Only [`Step::Stage`] can fail: it makes a key.
    pub(super) fn after(&self, step: &Step, now: Timestamp) -> Result<Self, CaError> {
        let mut state = self.clone();
        match step {
            Step::Wait => {}
            Step::Adopt(bundle) => {
                state.bundle = bundle.clone();
                (state.signing_since, state.published_since) = (None, None);
            }
            Step::Published => state.published_since = Some(now),
            Step::Unpublished => state.published_since = None,
            Step::Sign => {
                if let Some(next) = state.next.take() {
                    state.signing = next;
                }
                (state.signing_since, state.published_since) = (Some(now), None);
            }
            Step::Retire => state.bundle = state.present(),
            Step::Stage => {
                state.next = Some(Arc::new(CertificateAuthority::generate(CA_NAME, now)?));
                (state.published_since, state.requested) = (None, false);
            }
        }
        state.bundle = state.present().and(state.bundle);
        Ok(state)
    }
}

/// The next step of the leader. `carried` is what the live configuration was last seen to trust.
pub(super) fn next_step(state: &CaState, carried: &Carried, timing: &Timing, now: Timestamp) -> Step {
    // A time in the future was written by a clock that was wrong then, or is now: it does not count.
    let signing_since = state.signing_since.filter(|since| *since <= now);
    let published_since = state.published_since.filter(|since| *since <= now);
    if !carried.everywhere.contains(state.signing.der()) {
        let bundle = state.bundle.clone().and(carried.anywhere.clone().unexpired(now));
        // Also if the Secret knows them all: who signs was put in by hand then, and has to be published first.
        if bundle != state.bundle || signing_since.is_some() && !carried.anywhere.is_empty() {
            return Step::Adopt(bundle);
        }
    }
    if state.next.is_some() || signing_since.is_none() {
        let published = carried.everywhere.contains(state.newest().der());
        if published && state.bundle.len() == 1 {
            return Step::Sign; // the only one there ever was: nobody can serve another's
        }
        match published_since {
            None if published => return Step::Published,
            Some(_) if !published => return Step::Unpublished,
            Some(since) if over(since, timing.delay, now) => return Step::Sign,
            _ => {}
        }
    }
    let Some(since) = signing_since else {
        return Step::Wait;
    };
    if state.bundle != state.present() {
        return if over(since, timing.overlap, now) { Step::Retire } else { Step::Wait };
    }
    if state.next.is_none() && (state.requested || state.signing.is_due(now)) {
        return Step::Stage;
    }
    Step::Wait
}

/// Whether a replica signs with the CA of the Secret from now on: not before that is trusted. `present` is the one it has been
/// signing with, none if it has just started. `asked` says whether there is a configuration by which API servers ask it, and in which
/// a leader publishes the CA. Without, and with an expired one, a replica has nothing to lose.
pub(super) fn takes(present: Option<&CertificateAuthority>, found: &CaState, asked: bool, now: Timestamp) -> bool {
    !asked || found.signing_since.is_some() || present.is_some_and(|present| present.not_after() <= now)
}

fn over(since: Timestamp, duration: Duration, now: Timestamp) -> bool {
    Duration::try_from(now.duration_since(since)).is_ok_and(|passed| passed >= duration)
}

#[cfg(test)]
mod tests;
