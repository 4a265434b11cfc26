//! Tracing and metrics roots.
//!
//! [`init`] installs the one subscriber of the process, [`Metrics`] is the one registry. Neither knows anything of the
//! rest of kimup: every other module may use them.

mod histogram;
mod logging;
mod metrics;
mod seldom;

pub use logging::{AUDIT_TARGET, LogFormat, TelemetryError, init};
pub use metrics::{
    AdmissionOutcome, CertificatePart, ConnectionEnd, LastSeen, METRICS, METRICS_CONTENT_TYPE, Metrics,
    QuestionOutcome, Refused, RolloutOutcome, ServerCounts,
};
pub use seldom::Seldom;
