//! From an `AdmissionReview` to a patch, and the configuration that brings them here.
//!
//! `review`, `verdict` and `configuration` are pure; `handler` is the HTTP shell and asks sync's question when nothing is
//! known yet.

pub mod configuration;
mod entry;
pub mod handler;
mod json;
pub mod review;
mod verdict;
mod wire;

pub use entry::Entry;
pub use verdict::Verdict;
