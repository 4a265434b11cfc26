//! kimup keeps Kubernetes workloads on the newest image tag a rule allows, without editing their manifests.
//!
//! The modules are declared bottom-up: a module uses only those above it (`tests/architecture.rs` keeps that order,
//! `docs/architecture.md` explains it).

pub mod policy;

pub mod api;

pub mod telemetry;

pub mod net;

pub mod leader;

pub mod registry;

pub mod index;

pub mod admission;

pub mod notify;

pub mod rollout;

pub mod sync;

pub mod cli;
