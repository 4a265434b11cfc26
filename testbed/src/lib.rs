//! A real Kubernetes control plane and OCI registries, as plain processes on this machine: no containers, no root.
//!
//! [`Cluster`] is etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok (a simulated kubelet);
//! [`Registry`] is the distribution registry, [`TokenService`] gives out its tokens; [`KimupProcess`] is kimup itself.
//! [`FaultServer`] is a host that misbehaves, [`ApiStub`] an API server for the webhook alone. `tools/build` builds the programs on first use. Everything started here ends with the process that started it, however that ends (see [`Process`]), and
//! its files with it, unless something panicked or `KIMUP_KEEP_LOGS` is set: then the logs stay.
//!
//! Meant for tests and the demo only. Values are shared between tests that each have a Tokio runtime of their own, so
//! nothing here holds on to a runtime: clients are built by the caller, servers inside this process run on threads of
//! their own.

mod admission_load;
mod api_proxy;
mod api_stub;
mod arguments;
mod background;
mod balancer;
mod cluster;
mod control_plane;
mod fault;
mod https;
mod kimup;
mod load;
mod pki;
mod ports;
mod process;
mod registry;
mod rollout_load;
mod run_dir;
mod scripted;
mod token;
mod tools;
mod wait;

pub use admission_load::{AdmissionLoad, LoadFailure, LoadReport, Reviews, WebhookClient};
pub use api_proxy::{ApiFault, ApiProxy};
pub use api_stub::{ApiStub, Obstacle};
pub use arguments::Arguments;
pub use balancer::Balancer;
pub use cluster::{Cluster, KubectlOutput};
pub use fault::{ClientCertificates, FaultReply, FaultRequest, FaultServer};
pub use https::serve_tls;
pub use kimup::{KimupOptions, KimupProcess, WebhookUrl};
pub use load::{SyncCost, SyncLoad};
pub use pki::{ServerCertificate, TestCa};
pub use ports::free_port;
pub use process::{Process, ProcessSpec};
pub use registry::Registry;
pub use rollout_load::{InFlight, RolloutCost, RolloutLoad};
pub use run_dir::{RunDir, run_dir};
pub use scripted::ScriptedRegistry;
pub use token::{TokenService, TokenUser};
pub use tools::{checkout, tool};
pub use wait::{Attempt, eventually, try_eventually};

/// Makes aws-lc-rs the TLS provider of this process. Needed before the first reqwest or rustls use; harmless when
/// repeated, and everything in this crate that needs it calls it.
pub fn install_crypto_provider() {
    // An error means that a provider is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}
