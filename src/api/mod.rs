//! The custom resources, annotations and their validation: the only door from YAML to `policy`.
//!
//! Everything here is pure: text and objects in, values that cannot be wrong out.

pub mod annotated;
pub mod annotations;
mod applied;
mod approval;
mod gates;
mod group;
mod held;
mod image;
mod order;
mod schedule;
mod spec;
mod status;
mod strategy;
mod tagged;

pub use applied::Applied;
pub use approval::{Approval, asks_approval};
pub use gates::{Closed, GateError, Gates};
pub use group::Group;
pub use image::{
    Action, ActionData, ActionType, AfterRollback, FilterSpec, Image, ImageSpec, KeyRef, NameRef, RolloutSpec,
    RuleSpec, RuleType, TriggerSpec, TriggerType, ValueFrom, WindowKind, WindowSpec,
};
pub use order::Order;
pub use schedule::{Phase, Schedule, ScheduleError, shared_age};
pub use spec::{CompiledRule, CompiledSpec, SpecError, compile, pins_digest, unsupported_annotations};
pub use status::{
    Asked, Held, HeldBy, HistoryEntry, ImageStatus, Pending, Rejected, RevisionRecord, RolloutStatus, Seen, SyncResult,
    condition,
};
pub use strategy::Strategy;
pub use tagged::Tagged;

use kube::CustomResourceExt;

/// The API group of kimup's resources.
pub const GROUP: &str = "kimup.cloudavenue.io";

/// The custom resource definitions as one YAML stream, equal to `deploy/crds.yaml`.
///
/// # Errors
/// Only if a definition cannot be written as YAML, which the tests rule out for this binary.
pub fn crds_yaml() -> Result<String, serde_saphyr::ser::Error> {
    // Through JSON: a map keeps the key order of a Kubernetes manifest readable and drops absent fields.
    serde_saphyr::to_string(&Image::crd())
}

/// Eight hexadecimal digits that tell lists of words apart: enough for names within one namespace.
fn short_hash(words: &[&str]) -> String {
    use std::fmt::Write;
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, words.join("\0").as_bytes());
    digest.as_ref().iter().take(4).fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
