//! A whole [`Sync`] for tests, without a cluster.

use std::time::Duration;

use crate::index::Scope;
use crate::leader::Leadership;
use crate::net::clock::Clock;
use crate::notify::Events;
use crate::registry;
use crate::telemetry::Metrics;

use super::engine::{Options, Sync};

/// One that leads, of the whole cluster that `client` is of, with these limits (of the cluster, of a namespace).
pub fn sync(client: kube::Client, [max_rollouts, max_rollouts_per_namespace]: [usize; 2]) -> Sync {
    let metrics = Metrics::new();
    let options = Options {
        scope: Scope::All,
        own_namespace: "kimup-system".to_owned(),
        max_rollouts_per_namespace,
        max_rollouts,
        rollout_deadline: Duration::from_secs(600),
        rollout_min_interval: Duration::ZERO,
        status_heartbeat: Duration::from_secs(600),
        clock: Clock::new(metrics.clone()),
        question_timeout: Duration::from_secs(2),
    };
    let registry = registry::Client::new(registry::Config::default()).unwrap();
    let events = Events::new(client.clone(), "test".to_owned(), metrics.clone());
    Sync::new(client, registry, Leadership::always(), events, metrics, options)
}
