//! From an AdmissionReview to a patch.
//!
//! `review` and `patch` are pure; `handler` is the HTTP shell and asks sync's question when nothing is known yet.

pub mod configuration;
mod handler;
mod patch;
mod review;

pub use handler::{Admission, router};
pub use review::{Review, ReviewError};
