//! What keeps a container at another tag than its Image's: what people decided, and who cannot be won over.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::api::annotations::Stamp;
use crate::api::{AfterRollback, Held, HeldBy, Tagged};

use super::{Blocked, Case, Change, ContainerPlan, HOLD, Hold, ROLLBACK, Target, back_id, id, tagged};
use crate::rollout::facts::Facts;

/// What is known of holds of one container.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// What is on record, released or not.
    pub record: Option<Held>,
    /// Its Image has rejected the tag of the record: no Pod is given that without a stamp.
    pub rejected: bool,
    /// Then the tag that it goes back to and is held at instead: older, and there. None if it follows its Image.
    pub further: Option<Tagged>,
    /// What ends a hold that a person's rollback made.
    pub after: AfterRollback,
    /// Where it must stay, whatever it runs.
    pub stay: Option<Stay>,
    /// `action: resume` stands on the workload.
    pub resume: bool,
}

/// Where a container must stay, whatever it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stay {
    /// The annotation `hold`: at this tag, which the registry has; with its digest if the Image pins digests.
    At(Tagged),
    /// The annotation `hold` names this tag, which cannot be had: a brake that is misspelled is a brake.
    Here(String),
    /// Whether the registry has the tag of the annotation `hold` is not known yet.
    Asks,
    /// Another controller, of this field manager as far as that is known, takes its stamp away over and over.
    Fight(String),
}

impl Holding {
    /// The record, if nobody has released it.
    pub fn in_force(&self) -> Option<&Held> {
        self.record.as_ref().filter(|record| record.holds() && !self.resume)
    }

    /// That of a workload that went back alone.
    fn alone(&self) -> Option<&Held> {
        self.in_force().filter(|record| record.by == HeldBy::RolloutFailed)
    }

    /// Whether a hold that keeps a stamp in place is on record.
    pub(super) fn keeps(&self, hold: &Hold) -> bool {
        let by = hold.by.is_behind() || hold.by == HeldBy::Annotation;
        self.in_force().is_some_and(|record| by && record.by == hold.by && record.tag == hold.tag)
    }
}

/// The hold that somebody ended, if it was there and is not any more.
pub(super) fn released(target: &Target, container: &str, decision: &ContainerPlan) -> Option<Hold> {
    match decision {
        ContainerPlan::Release(hold, ..) => Some(hold.clone()),
        ContainerPlan::Hold(_) | ContainerPlan::Send(..) | ContainerPlan::Blocked(_) => None,
        ContainerPlan::Keep | ContainerPlan::Roll(..) => {
            let record = target.holding.record.as_ref().filter(|record| record.holds())?;
            let resumed = target.holding.resume && record.by != HeldBy::Paused;
            (resumed || record.by == HeldBy::Annotation).then(|| Hold {
                image: target.image.clone(),
                container: container.to_owned(),
                tag: record.tag.clone(),
                left: record.left.clone(),
                by: record.by,
                what: None,
            })
        }
    }
}

impl Target {
    /// Tags that none of its Pods should run any more: what was rejected, and what it alone went back from.
    pub fn left_behind(&self) -> BTreeSet<String> {
        self.rejected.iter().cloned().chain(self.holding.alone().map(|record| record.left.clone())).collect()
    }

    /// Whether its tag ends a hold since `left` was left.
    pub fn ends(&self, left: &Tagged) -> bool {
        if self.holding.after == AfterRollback::Hold {
            return false;
        }
        let moved = self.tag == left.tag
            && left.digest.is_some()
            && self.digest.as_ref().is_some_and(|digest| left.digest.as_ref() != Some(digest));
        moved || self.order.compare(&self.tag, &left.tag) == Some(Ordering::Greater)
    }

    /// Where a container goes back to that runs `ran`, if it alone fails with that: what is on record, whatever ends it.
    pub fn back_alone(&self, ran: &Tagged) -> Option<Tagged> {
        let record = self.holding.alone().filter(|_| !self.holding.rejected)?;
        Tagged::parse(&record.left).filter(|left| ran.is(left)).and_then(|_| Tagged::parse(&record.tag))
    }
}

impl Case<'_> {
    /// What a rollout that failed for this workload alone makes of a stamp that runs `ran`: back to what is on record, and
    /// held there. None if it is not so, or a person has put something else there.
    pub(super) fn went_back_alone(&self, ran: &Tagged) -> Option<ContainerPlan> {
        let holding = &self.target.holding;
        let record = holding.alone().filter(|_| !holding.rejected)?;
        let (tag, left) = (Tagged::parse(&record.tag)?, self.left().filter(|left| !self.ends(left))?);
        let hold = self.hold(&tag, record.by);
        if ran.is(&tag) {
            return Some(ContainerPlan::Hold(hold));
        }
        ran.is(&left).then(|| self.send(hold, ran, &tag))
    }

    /// What becomes of a hold whose tag was rejected: it is held further back, once that is on record. None if it follows
    /// its Image.
    pub(super) fn held_further(&self) -> Option<ContainerPlan> {
        let holding = &self.target.holding;
        let record = holding.in_force().filter(|record| record.by.is_behind() && holding.rejected)?;
        let to = holding.further.as_ref().filter(|_| self.left().is_some_and(|left| !self.ends(&left)))?;
        let hold = Hold { what: Some(record.tag.clone()), ..self.hold(to, record.by) };
        Some(ContainerPlan::Hold(hold))
    }

    /// What is on record of a container that runs `ran`, which was rejected: where it was held, and is not any more. None
    /// if nothing is, or its Image says what it runs.
    pub(super) fn sent_further(&self, ran: &Tagged) -> Option<ContainerPlan> {
        let holding = &self.target.holding;
        if holding.rejected {
            return self.held_further();
        }
        let record = holding.in_force().filter(|record| record.by.is_behind())?;
        let (tag, left) = (Tagged::parse(&record.tag)?, self.left().filter(|left| !self.ends(left))?);
        let was_held = self.compare(&tag.tag, &ran.tag) == Some(Ordering::Less)
            && self.compare(&ran.tag, &left.tag) != Some(Ordering::Greater);
        was_held.then(|| self.send(self.hold(&tag, record.by), ran, &tag))
    }

    /// What the annotation `hold` or a fight makes of it; none if there is neither.
    pub(super) fn stays(&self) -> Option<ContainerPlan> {
        let holding = &self.target.holding;
        if holding.resume {
            return None;
        }
        let stays_here = |by: HeldBy, what: Option<String>| match self.runs() {
            Some(tag) => ContainerPlan::Hold(Hold { what, ..self.hold(&tag, by) }),
            None => ContainerPlan::Blocked(Blocked::NeedsFacts),
        };
        if let Some(record) = holding.in_force().filter(|record| record.by == HeldBy::Fight) {
            let tag = Tagged::parse(&record.tag).unwrap_or_default();
            return Some(ContainerPlan::Hold(self.hold(&tag, HeldBy::Fight)));
        }
        Some(match holding.stay.as_ref()? {
            Stay::Fight(manager) => stays_here(HeldBy::Fight, Some(manager.clone())),
            Stay::At(tag) => self.stay_at(tag),
            // Its text is not what it ran: not known before its Pods are there.
            Stay::Here(_) if self.has_nothing_to_show() => ContainerPlan::Blocked(Blocked::AwaitsPods),
            Stay::Here(tag) => stays_here(HeldBy::Annotation, Some(tag.clone())),
            Stay::Asks => ContainerPlan::Blocked(Blocked::AwaitsRegistry),
        })
    }

    fn stay_at(&self, tag: &Tagged) -> ContainerPlan {
        let Some(stamp) = self.workload.stamp(&self.container.name) else {
            return match self.running_now() {
                Ok(running) => self.keep_at(tag, &running, HeldBy::Annotation),
                Err(blocked) => ContainerPlan::Blocked(blocked),
            };
        };
        let ran = self.here(&stamp.reference).filter(|_| stamp.text == self.container.text);
        self.keep_at(tag, &[ran.unwrap_or_else(|| self.own())], HeldBy::Annotation)
    }

    /// What the Pods of the template's own revision run.
    pub(super) fn running_now(&self) -> Result<Vec<Tagged>, Blocked> {
        if !self.workload.observed {
            // The revision counted as current may be the one before: an undo would be taken for what it undid.
            return Err(Blocked::Unobserved);
        }
        let facts = self.facts.ok_or(Blocked::NeedsFacts)?;
        let name = &self.container.name;
        if facts.revisions.iter().any(|r| r.current && r.stamps.contains_key(name)) {
            // The template's own revision is not made yet: the Pods seen are those of the one before.
            return Err(Blocked::AwaitsPods);
        }
        Ok(facts.running(name).into_iter().map(tagged).collect())
    }

    /// Held at `tag`; sent there if it runs something else.
    pub(super) fn keep_at(&self, tag: &Tagged, running: &[Tagged], by: HeldBy) -> ContainerPlan {
        let hold = self.hold(tag, by);
        // Pods may never come (`OnDelete`, a partition, a quota). If they come with another tag, that is seen then.
        if running.is_empty() && self.is_given(tag) {
            return ContainerPlan::Hold(hold);
        }
        let unknown = running.is_empty().then(Tagged::default);
        let Some(from) = running.iter().find(|ran| !ran.is(tag)).or(unknown.as_ref()) else {
            return ContainerPlan::Hold(hold);
        };
        self.send(hold, from, tag)
    }

    fn send(&self, hold: Hold, from: &Tagged, tag: &Tagged) -> ContainerPlan {
        let (ran, (from, to)) = (from, from.difference(tag));
        let rejected = hold.by.is_behind() && self.is_rejected(ran);
        let why = match hold.by {
            _ if rejected => &self.target.why_rejected,
            HeldBy::Annotation => "annotation",
            HeldBy::RolloutFailed => "its rollout failed",
            _ if self.workload.stamp(&self.container.name).is_some() => "its text names an older tag",
            _ => "its stamp was lost",
        };
        let rollout = id(&self.target.rollout, &format!("{HOLD} {tag}"));
        let change = Change {
            container: self.container.name.clone(),
            from,
            to,
            digest: tag.digest.clone(),
            image: self.target.image.clone(),
            rule: if rejected || hold.by == HeldBy::RolloutFailed { ROLLBACK } else { HOLD }.to_owned(),
            rollout: if rejected { back_id(&rollout, &ran.to_string()) } else { rollout },
            back: Some(why.to_owned()),
        };
        let stamp = Stamp { text: self.container.text.clone(), reference: tag.image(self.reference) };
        ContainerPlan::Send(hold, change, stamp)
    }

    /// Where the stamp is for another text, the Pods run the text: but for what the annotation `hold` gave them until now.
    pub(super) fn unless_given(&self, decision: ContainerPlan) -> ContainerPlan {
        let own = self.own();
        let record = self.target.holding.record.as_ref().filter(|record| record.by == HeldBy::Annotation);
        let given = record.and_then(|record| Tagged::parse(&record.tag)).filter(|given| *given != own);
        match (decision, given) {
            (ContainerPlan::Keep, Some(given)) => self.roll(&given),
            (ContainerPlan::Hold(hold), Some(given)) => self.send(hold, &given, &own),
            (decision, _) => decision,
        }
    }

    fn hold(&self, tag: &Tagged, by: HeldBy) -> Hold {
        let left = self.target.left.clone().filter(|_| by.is_behind());
        Hold {
            image: self.target.image.clone(),
            container: self.container.name.clone(),
            tag: tag.to_string(),
            left: left.unwrap_or_default(),
            by,
            what: None,
        }
    }

    /// What it runs now, as far as that can be told; none if facts are missing.
    fn runs(&self) -> Option<Tagged> {
        let stamp = self.workload.stamp(&self.container.name);
        let record = self.target.holding.in_force();
        // As admission has it: where the stamp is for another text, of what is on record only the annotation counts.
        let other_text = stamp.as_ref().is_some_and(|stamp| stamp.text != self.container.text);
        let record = record.filter(|record| !other_text || record.by == HeldBy::Annotation);
        let record = record.and_then(|record| Tagged::parse(&record.tag));
        if other_text {
            return Some(record.unwrap_or_else(|| self.own()));
        }
        stamp.and_then(|stamp| self.here(&stamp.reference)).or(record).or_else(|| {
            let running = self.facts?.running(&self.container.name).into_iter().map(tagged);
            Some(running.min_by(|a, b| self.order(a, b)).unwrap_or_else(|| self.own()))
        })
    }

    /// Whether nothing tells yet what it runs: its Pods are still to come.
    fn has_nothing_to_show(&self) -> bool {
        let known = self.workload.stamp(&self.container.name).is_some() || self.target.holding.in_force().is_some();
        let none_run = self.facts.is_some_and(|facts| facts.running(&self.container.name).is_empty());
        !known && none_run && self.workload.replicas > 0
    }

    /// Why it is held at `ran`, if that is on record.
    pub(super) fn on_record(&self, ran: &Tagged) -> Option<HeldBy> {
        let record = self.target.holding.record.as_ref().filter(|record| record.holds())?;
        let tag = Tagged::parse(&record.tag)?;
        let same = ran.is(&tag);
        (same && record.by.is_behind()).then_some(record.by)
    }

    /// Where a person's rollback that is on record keeps it without a stamp, unless a newer tag or a newer text has ended
    /// that.
    pub(super) fn held_at(&self) -> Option<(Tagged, HeldBy)> {
        let record = self.target.holding.record.as_ref()?;
        let counts = record.by.is_behind() && !self.target.holding.rejected;
        let held = record.runs(&self.target.order, self.reference.tag()).filter(|_| counts)?;
        (!self.left().is_some_and(|left| self.ends(&left))).then_some(held)
    }

    /// Whether admission gives new Pods this tag because that is on record: a template without a stamp needs none then.
    fn is_given(&self, tag: &Tagged) -> bool {
        let record = self.target.holding.record.as_ref().filter(|_| !self.target.holding.rejected);
        let given = record.and_then(|record| record.runs(&self.target.order, self.reference.tag()));
        given.is_some_and(|(given, _)| given == *tag)
    }

    /// The tag that a person left.
    pub(super) fn left(&self) -> Option<Tagged> {
        self.target.left.as_deref().and_then(Tagged::parse)
    }

    /// Whether an unstamped template is one that somebody took the stamp from, and no older revision that was put back:
    /// an undo leaves the workload's own labels alone and makes no new revision.
    pub(super) fn lost_its_stamp(&self, facts: &Facts) -> bool {
        let since = self.target.holding.record.as_ref().filter(|record| record.holds() && record.by != HeldBy::Paused);
        let is_new = match since.and_then(|record| record.since.parse::<Timestamp>().ok()) {
            Some(since) => facts.is_newer_than(since),
            None => facts.is_new(),
        };
        !self.workload.marked || is_new
    }

    /// A hold that a person has released is none.
    pub(super) fn unless_released(&self, decision: ContainerPlan) -> ContainerPlan {
        let (ContainerPlan::Hold(hold) | ContainerPlan::Send(hold, ..)) = &decision else {
            return decision;
        };
        let holding = &self.target.holding;
        let recorded = holding.record.as_ref().is_some_and(|r| r.released.is_some() && r.tag == hold.tag);
        if !hold.by.is_behind() || !(holding.resume || recorded) {
            return decision;
        }
        let ran = Tagged::parse(&hold.tag).unwrap_or_default();
        match self.roll(&ran) {
            ContainerPlan::Roll(change, stamp) => ContainerPlan::Release(hold.clone(), change, stamp),
            other => other,
        }
    }

    /// Nobody's Pods are replaced while a person has paused the workload.
    pub(super) fn while_paused(&self, decision: ContainerPlan) -> ContainerPlan {
        match decision {
            ContainerPlan::Roll(change, _) | ContainerPlan::Release(_, change, _) if self.workload.paused => {
                let from = if change.from.is_empty() { self.own() } else { Tagged::new(&change.from, None) };
                ContainerPlan::Hold(self.hold(&from, HeldBy::Paused))
            }
            ContainerPlan::Send(hold, ..) if self.workload.paused => ContainerPlan::Hold(hold),
            other => other,
        }
    }

    /// Not our doing that it runs `ran`. If it ran a newer tag before (`left`, a hold on record, the stamp of another
    /// revision), or the target's digest of the same tag, a person went back: it stays until there is a newer tag than the
    /// one that was left, or another digest of it.
    pub(super) fn put_back(&self, ran: &Tagged, left: Option<Tagged>, by: HeldBy) -> ContainerPlan {
        // One on record keeps its words.
        let known = self.on_record(ran).and(self.target.holding.record.as_ref()).map(|record| record.tag.clone());
        let hold = |ran: &Tagged, left: &Tagged| {
            let (image, container) = (self.target.image.clone(), self.container.name.clone());
            let whole = ran.tag == left.tag;
            let text = |tagged: &Tagged| if whole { tagged.to_string() } else { tagged.tag.clone() };
            let tag = known.clone().unwrap_or_else(|| text(ran));
            ContainerPlan::Hold(Hold { image, container, tag, left: text(left), by, what: None })
        };
        let recorded = self.left();
        if let Some(recorded) = recorded.as_ref().filter(|left| !self.ends(left)) {
            return hold(ran, recorded);
        }
        let Some(facts) = self.facts else {
            return ContainerPlan::Blocked(Blocked::NeedsFacts);
        };
        let known = self.newer_stamps(facts, ran).chain(left).chain(recorded);
        match known.max_by(|a, b| self.order(a, b)) {
            Some(left) if !self.ends(&left) => hold(ran, &left),
            _ => self.roll(ran),
        }
    }

    /// Whether the target ends a hold since `left` was left.
    pub(super) fn ends(&self, left: &Tagged) -> bool {
        self.target.ends(left)
    }

    /// What revisions that were stamped for this container ran, if newer than `ran`; the target's own counts also where
    /// the rule cannot compare. Every revision counts: right after an undo the left one is still the current.
    pub(super) fn newer_stamps<'f>(&'f self, facts: &'f Facts, ran: &Tagged) -> impl Iterator<Item = Tagged> + use<'f> {
        let ran = ran.clone();
        let stamped = facts.stamps(&self.container.name).filter_map(|stamp| self.here(&stamp.reference));
        stamped.filter(move |tagged| {
            let newer = self.compare(&tagged.tag, &ran.tag) == Some(Ordering::Greater);
            newer || (*tagged == self.target() && *tagged != ran)
        })
    }
}
