//! Leadership by a Lease with an expiry: a pure decision and a small shell.
//!
//! One process of an installation writes; which one is agreed through a `coordination.k8s.io/v1` Lease, with the
//! semantics of client-go's leader election. Two guards against two writers: every write of the Lease carries the
//! resourceVersion it is based on, and [`Leadership::is_leader`] is a claim that runs out by itself on the local
//! monotonic clock before anybody else may take over, even if no task of this process gets to run.

mod claim;
mod decision;
mod elector;

use std::time::Duration;

pub use claim::Leadership;
pub use decision::{Action, LeaseRecord, decide};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Metrics;

/// Who stands for election, for which Lease, and how fast.
///
/// `retry_period` < `renew_deadline` < `lease_duration` must hold, each with room; the defaults are those of
/// Kubernetes' own components. A leader that dies is followed after at most `lease_duration` plus 2.2 `retry_period`s
/// (19.4 s: the last renewal may be seen that late), one that stops after at most 2.2 `retry_period`s (about 5 s).
#[derive(Debug, Clone)]
pub struct LeaderConfig {
    /// Namespace of the Lease.
    pub namespace: String,
    /// Name of the Lease.
    pub lease_name: String,
    /// Who this is: unique per process ([`unique_identity`]), or two processes both believe that the Lease is theirs.
    pub identity: String,
    /// How long others wait after the last sign of life. Default 15 s; whole seconds, at least 1.
    pub lease_duration: Duration,
    /// How long a leader tries to renew before it gives up. Default 10 s.
    pub renew_deadline: Duration,
    /// Between two tries. Default 2 s; candidates take up to 2.2 times as long, so that they do not move in step.
    pub retry_period: Duration,
    /// Where `kimup_leader` is kept.
    pub metrics: Metrics,
}

impl LeaderConfig {
    /// With the default times.
    pub fn new(namespace: &str, lease_name: &str, identity: &str, metrics: Metrics) -> Self {
        Self {
            namespace: namespace.to_owned(),
            lease_name: lease_name.to_owned(),
            identity: identity.to_owned(),
            lease_duration: Duration::from_secs(15),
            renew_deadline: Duration::from_secs(10),
            retry_period: Duration::from_secs(2),
            metrics,
        }
    }
}

/// `name` (a Pod's or a host's) with a random suffix: a restarted container keeps its Pod's name and is another process.
pub fn unique_identity(name: &str) -> String {
    format!("{name}_{:016x}", fastrand::u64(..))
}

/// Stands for election in a task until `shutdown`; then gives the Lease up, so that another takes over at once.
///
/// Cancel `shutdown` only when everything that relies on leadership has stopped writing. Losing the Lease or the API
/// server never ends the task: it stands again. `client` must be made with `default_retry = false`: kube's own retries
/// would outlast every deadline here. RBAC: `get`, `create` and `update` on leases in the namespace.
pub fn spawn(client: kube::Client, config: LeaderConfig, shutdown: CancellationToken) -> (Leadership, JoinHandle<()>) {
    let leadership = Leadership::none();
    let elector = elector::Elector::new(client, config, leadership.clone());
    (leadership, tokio::spawn(elector.run(shutdown)))
}

#[cfg(test)]
mod tests;
