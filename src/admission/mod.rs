//! From an AdmissionReview to a patch.
pub mod configuration;
