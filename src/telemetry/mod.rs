//! Tracing and metrics roots.
