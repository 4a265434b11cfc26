//! What an Image remembers: what Pods of a revision got first, who is held, and what was rejected, by it or by its group.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::api::annotations::Stamp;
use crate::api::{HeldBy, ImageSpec, ImageStatus, Order, Rejected, RevisionRecord, Tagged};
use crate::policy::Reference;

use super::held::Holds;

/// What an Image remembers. Some remember nothing.
#[derive(Clone, Debug, Default)]
pub struct Past {
    /// What the first Pods of revisions got, by the UID of their controller.
    records: HashMap<String, Vec<RevisionRecord>>,
    holds: Holds,
    /// Tags that it has rejected itself.
    pub rejected: BTreeSet<String>,
    /// Tags that its group has rejected, its own among them.
    pub of_group: Arc<BTreeSet<String>>,
}

impl Past {
    /// What a status says; none if that is nothing. `other`: it speaks of another repository.
    pub fn of(status: &ImageStatus, other: bool, spec: &ImageSpec) -> Option<Box<Self>> {
        let mut past = Self::default();
        if !other {
            past.holds = Holds::of(status);
            if !status.rejected_elsewhere(spec) {
                past.rejected = Rejected::tags(&status.rejected);
            }
            past.of_group = Arc::new(past.rejected.clone());
        }
        for record in &status.revisions {
            past.records.entry(record.uid.clone()).or_default().push(record.clone());
        }
        let is_empty = past.records.is_empty() && past.holds.is_empty() && past.rejected.is_empty();
        (!is_empty).then(|| Box::new(past))
    }

    /// Whether there are records of this controller's revisions.
    pub fn knows(&self, uid: &str) -> bool {
        self.records.contains_key(uid)
    }

    /// The UIDs of the controllers with records.
    pub fn controllers(&self) -> impl Iterator<Item = &str> {
        self.records.keys().map(String::as_str)
    }

    /// What the first Pods of a revision got. No Pod is given what was rejected since, but where its own text names it.
    pub fn record(&self, uid: &str, hash: &str, container: &str) -> Option<Stamp> {
        let record = self.records.get(uid)?.iter().find(|record| record.hash == hash)?;
        let stamp = Stamp::parse(record.containers.get(container)?)?;
        let tagged = |text: &str| Reference::parse(text).map(|reference| Tagged::of(&reference)).unwrap_or_default();
        let run = || tagged(&stamp.reference);
        let may_run = self.of_group.is_empty() || !run().is_in(&self.of_group) || run() == tagged(&stamp.text);
        may_run.then_some(stamp)
    }

    /// Where a container of one of these workloads (kind and name) is held. `own` is the tag of its text.
    pub fn held(
        &self,
        order: &Order,
        owners: &[(&'static str, String)],
        container: &str,
        own: Option<&str>,
    ) -> Option<(Tagged, HeldBy)> {
        self.holds.at(&self.of_group, order, owners, container, own)
    }
}
