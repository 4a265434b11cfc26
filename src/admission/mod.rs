//! From an AdmissionReview to a patch.
//!
//! [`review`] decides (pure), [`handler`] serves it, [`configuration`] says which Pods the API server sends, and
//! [`keeper`] keeps that written.

pub mod configuration;
pub mod handler;
pub mod keeper;
pub mod review;
mod verdict;
mod wire;

pub use verdict::Verdict;
