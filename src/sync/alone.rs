//! A workload that fails with a tag that others of its group run well: it alone goes back, and is held there. Written first;
//! its plan does the rest.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::ResourceExt;

use crate::api::{AfterRollback, Held, HeldBy, Image, ImageStatus, Rejected, Tagged};
use crate::notify::{Audit, KIMUP, Reason};
use crate::rollout::WorkloadKey;

use super::engine::{Key, Sync};
use super::failing::Left;
use super::hold::resume_command;
use super::report;
use super::rollback::MAX_WAYS;
use super::status;
use super::workload::reference;
use super::world::ImageKey;
use super::write::{self, WriteError};

impl Sync {
    /// Sends a workload of an Image back that fails alone, to the first tag that the registry still has of those that it ran.
    /// Returns whether that was written.
    pub(super) async fn go_back_alone(
        &self,
        key: &ImageKey,
        image: &Arc<Image>,
        old: &ImageStatus,
    ) -> Result<bool, WriteError> {
        let failures = self.failures(image).into_iter();
        let alone = failures.filter(|(workload, container, left, _)| {
            !left.alone.is_empty() && !is_on_record(old, &workload.to_string(), container, left)
        });
        let Some((workload, container, left, reason)) = alone.min_by(|a, b| (&a.0, &a.1).cmp(&(&b.0, &b.1))) else {
            return Ok(false);
        };
        let ways = ways(&left, &Rejected::tags(&self.world.rejections(image)));
        let Some(to) = self.first_there(image, &ways).await else {
            let why = nowhere(&left, &ways);
            self.cannot_go_back(&workload, &why);
            return Ok(false);
        };
        let why = because(&workload, &left.tag, &reason, AfterRollback::of(&image.spec));
        let held = Held {
            workload: workload.to_string(),
            container,
            tag: to.to_string(),
            left: left.tag.to_string(),
            since: status::rfc3339(self.now()),
            by: HeldBy::RolloutFailed,
            why,
            released: None,
        };
        let mut new = old.clone();
        status::hold(&mut new, held.clone());
        let written = write::status(self, key, image, &new).await?;
        self.say_alone(key, &written, &workload, &held).await;
        self.queue.add_now(Key::Workload(workload));
        self.queue.add_now(Key::Image(key.clone()));
        Ok(true)
    }

    async fn say_alone(&self, key: &ImageKey, image: &Image, workload: &WorkloadKey, held: &Held) {
        let note = format!("stays at {} since {}: {}", held.tag, held.since, held.why);
        self.events.say(&report::reference(image), Reason::Held, &format!("{workload} {note}")).await;
        if let Some(workload) = self.world.workload(workload) {
            let note = format!("container {} {note} (Image {})", held.container, image.name_any());
            self.events.say(&reference(&workload), Reason::Held, &note).await;
        }
        let (name, workload, by) = (format!("Image {key}"), &held.workload, KIMUP);
        let (from, to, rule) = (&held.left, &held.tag, &held.why);
        Audit { image: &name, workload, what: "hold", from, to, digest: "", rule, rollout: "", by }.log();
    }
}

/// Where it can go back to, best first: nowhere that was rejected since its rollout was judged.
fn ways(left: &Left, rejected: &BTreeSet<String>) -> Vec<Tagged> {
    left.alone.iter().filter(|way| !way.is_in(rejected)).take(MAX_WAYS).cloned().collect()
}

/// Why it goes nowhere, if the registry has none of these ways.
fn nowhere(left: &Left, ways: &[Tagged]) -> String {
    let said = |tags: &[Tagged]| tags.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
    let why = match ways {
        [] => format!("rejected since: {}", said(&left.alone)),
        ways => format!("the registry has {} no longer", said(ways)),
    };
    format!("others run {} well, and there is nothing to go back to: {why}", left.tag)
}

/// Whether it is on record that a container goes back from this tag.
fn is_on_record(status: &ImageStatus, workload: &str, container: &str, left: &Left) -> bool {
    let tag = left.tag.to_string();
    let of_it = |held: &Held| held.workload == workload && held.container == container && held.holds();
    status.held.iter().any(|held| of_it(held) && held.by == HeldBy::RolloutFailed && held.left == tag)
}

/// In words that say what releases it.
fn because(workload: &WorkloadKey, tag: &Tagged, reason: &str, after: AfterRollback) -> String {
    let ends = match after {
        AfterRollback::Next => format!("a newer tag than {tag} ends this, or"),
        AfterRollback::Hold => "only a person ends this".to_owned(),
    };
    let resume = resume_command(workload);
    format!("its rollout failed with {tag}, which others of its group run well: {reason}; {ends}: {resume}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_goes_nowhere_that_was_rejected_since() {
        #[track_caller]
        fn check(alone: &[&str], rejected: &[&str], expected: &[&str], why: &str) {
            let tagged = |tag: &&str| Tagged::new(tag, None);
            let left = Left {
                image: "img".to_owned(),
                tag: Tagged::new("1.4.0", None),
                before: Tagged::new("1.3.0", None),
                held: None,
                alone: alone.iter().map(tagged).collect(),
            };
            let found = ways(&left, &rejected.iter().map(|&tag| tag.to_owned()).collect());
            assert_eq!(found, expected.iter().map(tagged).collect::<Vec<_>>(), "{alone:?} {rejected:?}");
            let said = format!("others run 1.4.0 well, and there is nothing to go back to: {why}");
            assert_eq!(nowhere(&left, &found), said);
        }
        let gone = "the registry has 1.3.0, 1.2.0 no longer";
        check(&["1.3.0", "1.2.0"], &[], &["1.3.0", "1.2.0"], gone);
        check(&["1.3.0", "1.2.0"], &["1.3.0"], &["1.2.0"], "the registry has 1.2.0 no longer");
        check(&["1.3.0", "1.2.0"], &["1.2.0", "1.3.0"], &[], "rejected since: 1.3.0, 1.2.0");
    }
}
