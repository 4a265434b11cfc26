//! kimup on a real Kubernetes control plane: one module per group of scenarios.
//!
//! All tests share one cluster (`Cluster::shared()`) and keep to a namespace of their own. What would disturb others,
//! such as killing the API server, starts a cluster for itself (`Cluster::start()`).
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // in helpers too: everything here is a test

mod admission;
mod annotated;
mod apiserver;
mod approval;
mod availability;
mod canary;
mod certificates;
mod chaos;
mod client_ca;
mod configuration;
mod containers;
mod crash_loops;
mod crd;
mod degraded;
mod degraded_stub;
mod digest_rejected;
mod digests;
mod down;
mod exactly_once;
mod examples;
mod failing;
mod fights;
mod first_digest;
mod foreign_holds;
mod foreign_kinds;
mod frozen;
mod gated_rollouts;
mod gates;
mod group_failures;
mod held_pods;
mod holds;
mod hostile;
mod killed;
mod kinds;
mod load;
mod lost_status;
mod manifests;
mod optin;
mod order;
mod own;
mod places;
mod policies;
mod practices;
mod practices_large;
mod practices_threats;
mod private;
mod processes;
mod registries;
mod registry_config;
mod replicas;
mod results;
mod rollback;
mod rollouts;
mod scoped_kinds;
mod sides;
mod smoke;
mod split;
mod support;
mod triggers;
mod way_back;
