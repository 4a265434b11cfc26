//! TLS with reload, the bounded HTTPS server, probes, drain.
//!
//! Everything here is bounded in size, count and time, because everything here faces clients that kimup does not know.

pub mod ca;
mod ca_bundle;
mod ca_follow;
mod ca_leader;
#[cfg(test)]
mod ca_load;
mod ca_rotation;
mod ca_secret;
#[cfg(test)]
mod ca_testing;
pub mod client_ca;
pub mod clock;
mod file;
mod guard_io;
pub mod probes;
mod seats;
pub mod server;
pub mod shutdown;
pub mod silence;
pub mod socket;
pub mod tls;
#[cfg(test)]
mod tls_testing;
mod trouble;
pub mod vitals;
