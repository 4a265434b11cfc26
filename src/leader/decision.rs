//! What to do about a Lease: pure, on what was observed and the local clock.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::time::Instant;

/// Longest `leaseDurationSeconds` that is believed: a broken record must not keep everybody out for ever.
const MAX_DURATION: Duration = Duration::from_secs(3600);

/// What a Lease says. Two equal records mean that its holder gave no sign of life in between.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeaseRecord {
    /// Who holds it; none when it was released.
    pub holder: Option<String>,
    /// How long the holder may be silent, by its own word. Zero if it gives none.
    pub duration: Duration,
    /// When this holder got it, by the holder's clock.
    pub acquired: Option<Timestamp>,
    /// When it was renewed, by the holder's clock. Only compared with itself, never with the local clock.
    pub renewed: Option<Timestamp>,
    /// How often the holder changed.
    pub transitions: i32,
}

impl LeaseRecord {
    /// What `lease` says.
    pub fn of(lease: &Lease) -> Self {
        let empty = LeaseSpec::default();
        let spec = lease.spec.as_ref().unwrap_or(&empty);
        let seconds = u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0);
        Self {
            holder: spec.holder_identity.clone().filter(|holder| !holder.is_empty()),
            duration: Duration::from_secs(seconds).min(MAX_DURATION),
            acquired: spec.acquire_time.as_ref().map(|at| at.0),
            renewed: spec.renew_time.as_ref().map(|at| at.0),
            transitions: spec.lease_transitions.unwrap_or(0),
        }
    }
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// There is no Lease: create it, held by this process.
    Create,
    /// Nobody holds it, or its holder has been silent for too long: take it.
    Acquire,
    /// This process holds it: renew it.
    Renew,
    /// Another process holds it.
    Wait,
}

/// What `me` should do about the Lease.
///
/// `observed` is the record as last read, `observed_since` when this process first read it like that. A holder has
/// expired when its record has not changed for its duration by the **local** clock; the times in the record come from
/// the holder's clock and say nothing here. An action that writes must carry the resourceVersion of `observed`.
pub fn decide(observed: Option<&LeaseRecord>, observed_since: Instant, me: &str, now: Instant) -> Action {
    let Some(record) = observed else {
        return Action::Create;
    };
    match record.holder.as_deref() {
        None => Action::Acquire,
        Some(holder) if holder == me => Action::Renew,
        Some(_) if now.saturating_duration_since(observed_since) >= record.duration => Action::Acquire,
        Some(_) => Action::Wait,
    }
}

/// The spec to write for `me` to hold the Lease after `before`; the same holder keeps its time and count.
pub(super) fn held(before: Option<&LeaseSpec>, me: &str, duration: Duration, now: Timestamp) -> LeaseSpec {
    let mut spec = before.cloned().unwrap_or_default();
    if spec.holder_identity.as_deref() != Some(me) {
        // The first holder is no transition.
        let transitions = spec.lease_transitions.unwrap_or(0);
        spec.lease_transitions = Some(if before.is_some() { transitions.saturating_add(1) } else { 0 });
        spec.acquire_time = Some(MicroTime(now));
        spec.holder_identity = Some(me.to_owned());
    }
    spec.lease_duration_seconds = Some(i32::try_from(duration.as_secs()).unwrap_or(i32::MAX).max(1));
    spec.renew_time = Some(MicroTime(now));
    spec
}

/// The spec to write to give the Lease up. Others see that nobody holds it; the short duration is for those that look
/// only at that (as client-go does it).
pub(super) fn released(before: &LeaseSpec, now: Timestamp) -> LeaseSpec {
    LeaseSpec {
        holder_identity: Some(String::new()),
        lease_duration_seconds: Some(1),
        renew_time: Some(MicroTime(now)),
        acquire_time: Some(MicroTime(now)),
        ..before.clone()
    }
}
