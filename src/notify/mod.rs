//! Events and alerts, each said once.
