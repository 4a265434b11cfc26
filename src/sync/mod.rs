//! Reconciles one Image: observe, decide (pure), act, report.
