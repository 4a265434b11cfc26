//! Holds that new Pods follow: those of workloads whose template carries no stamp that counts.

use std::collections::BTreeSet;

use crate::api::{Held, HeldBy, ImageStatus, Order, Tagged};

/// Of an Image's holds those that may say what a Pod runs. Mostly none, and then nothing is spent on them.
#[derive(Clone, Debug, Default)]
pub struct Holds(#[allow(clippy::box_collection)] Option<Box<Vec<Held>>>); // a pointer less than a Vec

impl Holds {
    /// Those of a status.
    pub fn of(status: &ImageStatus) -> Self {
        if status.held.is_empty() {
            return Self::default();
        }
        let counts = |held: &&Held| (held.by.is_behind() || held.by == HeldBy::Annotation) && held.holds();
        // Without what is for people.
        let lean = |held: &Held| Held { since: String::new(), why: String::new(), ..held.clone() };
        let holds: Vec<Held> = status.held.iter().filter(counts).map(lean).collect();
        Self(Some(holds).filter(|holds| !holds.is_empty()).map(Box::new))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Where a container of one of these workloads (kind and name) is held, and what holds it. `own` is the tag of its
    /// text; what a rollback holds at one of the `rejected` tags is left out.
    pub fn at(
        &self,
        rejected: &BTreeSet<String>,
        order: &Order,
        owners: &[(&'static str, String)],
        container: &str,
        own: Option<&str>,
    ) -> Option<(Tagged, HeldBy)> {
        let of = |held: &&Held| held.is_of(owners, container) && !held.is_rejected(rejected);
        self.0.as_ref()?.iter().find(of)?.runs(order, own)
    }
}
