//! A failure that is tried again: said once, when it lasts, and taken back when it is over.

use std::fmt::Display;

use crate::telemetry::{CertificatePart, Metrics};

/// Failures in a row after which it is said. One alone is also what a look at the wrong moment gives: between two files that
/// belong together, or while the API server restarts.
const PATIENCE: u32 = 2;

/// The failures of one thing that is looked at again and again.
#[derive(Debug)]
pub(super) struct Trouble {
    part: CertificatePart,
    metrics: Metrics,
    failures: u32,
    reason: Option<String>,
}

impl Trouble {
    pub fn new(part: CertificatePart, metrics: Metrics) -> Self {
        Self { part, metrics, failures: 0, reason: None }
    }

    /// Why it fails, if it does for more than a moment.
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref()
    }

    /// One more failure. The log has each reason once.
    pub fn failed(&mut self, error: &dyn Display) {
        self.failures = self.failures.saturating_add(1);
        if self.failures < PATIENCE {
            return;
        }
        let reason = error.to_string();
        if self.reason.as_ref() != Some(&reason) {
            tracing::warn!(part = self.part.as_str(), error = %reason, "the certificate in use stays; no newer one can be taken");
            self.reason = Some(reason);
        }
        self.metrics.set_certificate_failing(self.part, true);
    }

    /// It works.
    pub fn over(&mut self) {
        self.failures = 0;
        if self.reason.take().is_some() {
            tracing::info!(part = self.part.as_str(), "certificates are well again");
        }
        self.metrics.set_certificate_failing(self.part, false);
    }
}
