//! Holds that new Pods follow: those of workloads whose template carries no stamp that counts.

use std::collections::BTreeSet;

use crate::api::{Held, HeldBy, ImageStatus, Order, Tagged};

/// Of an Image's holds those that may say what a Pod runs. Mostly none, and then nothing is spent on them.
#[derive(Clone, Debug, Default)]
pub struct Holds(#[allow(clippy::box_collection)] Option<Box<Vec<Held>>>); // a pointer less than a Vec

impl Holds {
    /// Those of a status. What a rollback holds at a rejected tag is left out.
    pub fn of(status: &ImageStatus) -> Self {
        if status.held.is_empty() {
            return Self::default();
        }
        let rejected: BTreeSet<String> = status.rejected.iter().map(|rejected| rejected.tag.clone()).collect();
        let counts = |held: &&Held| {
            let gives = matches!(held.by, HeldBy::Undo | HeldBy::Manifest | HeldBy::Annotation);
            gives && held.holds() && !held.is_rejected(&rejected)
        };
        // Without what is for people.
        let lean = |held: &Held| Held { since: String::new(), why: String::new(), ..held.clone() };
        let holds: Vec<Held> = status.held.iter().filter(counts).map(lean).collect();
        Self(Some(holds).filter(|holds| !holds.is_empty()).map(Box::new))
    }

    /// Where a container of one of these workloads (kind and name) is held, and what holds it. `own` is the tag of its
    /// text.
    pub fn at(
        &self,
        order: &Order,
        owners: &[(&'static str, String)],
        container: &str,
        own: Option<&str>,
    ) -> Option<(Tagged, HeldBy)> {
        self.0.as_ref()?.iter().find(|held| held.is_of(owners, container))?.runs(order, own)
    }
}
