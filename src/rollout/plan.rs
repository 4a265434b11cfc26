//! What must change on a workload, if anything: a pure decision over everything its Images want at once.
//!
//! The rules are design section 5: roll only when it matters, never backwards, and leave alone what a person put back.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use aws_lc_rs::digest::{SHA256, digest};

use crate::api::annotations::Stamp;
use crate::api::{HeldBy, Order, Tagged};
use crate::policy::Reference;

use super::facts::Facts;
use super::workload::{Container, Workload};

mod hold;

pub use hold::{Holding, Stay};

/// What an Image wants one container to run.
#[derive(Clone, Debug)]
pub struct Target {
    /// Name of the Image.
    pub image: String,
    /// The tag: the one in flight, else the settled one.
    pub tag: String,
    /// Its digest, if the Image pins digests and it is known.
    pub digest: Option<String>,
    /// Whether admission gives this tag to new Pods, that is, whether it is the settled tag.
    pub settled: bool,
    /// Name of the rule that chose it.
    pub rule: String,
    /// The rollout ID.
    pub rollout: String,
    /// How the Image orders tags.
    pub order: Order,
    /// The tag that a person left, with its digest if that alone was left, if this container is held already.
    pub left: Option<String>,
    /// What is known of holds of this container.
    pub holding: Holding,
    /// The tag that it is held at according to the record of that.
    pub held: Option<String>,
    /// Tags that are never enough, as text of `Tagged`: Pods that kimup gave one are rolled, also to an older tag.
    pub rejected: BTreeSet<String>,
    /// Why the newest of them was rejected.
    pub why_rejected: String,
}

/// A container that keeps another tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Name of the Image.
    pub image: String,
    /// Name of the container.
    pub container: String,
    /// The tag it keeps; with the digest if that alone was left.
    pub tag: String,
    /// The tag that was left: a newer one than this ends the hold. With its digest if only that differs. Empty if no tag
    /// ends it.
    pub left: String,
    /// What holds it.
    pub by: HeldBy,
    /// Who takes its stamps away, the tag of the annotation that cannot be had, or the rejected one where it was held.
    pub what: Option<String>,
}

/// A container that will run another image.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Name of the container.
    pub container: String,
    /// The tag it ran before; empty if that is not known. With the digest's first digits if only that changes.
    pub from: String,
    /// The tag it will run; likewise.
    pub to: String,
    /// The digest it will run, if it is pinned.
    pub digest: Option<String>,
    /// Name of the Image.
    pub image: String,
    /// Name of the rule.
    pub rule: String,
    /// The rollout ID.
    pub rollout: String,
    /// Set if it is no newer tag that is rolled out: why it goes there. Nothing delays it.
    pub back: Option<String>,
}

/// What stands for the rule in a rollout that goes back from a rejected tag.
pub const ROLLBACK: &str = "rollback";
/// What stands for the rule where a held container is sent to its tag.
pub const HOLD: &str = "hold";
/// How a change-cause of kimup begins.
pub(super) const CAUSE_PREFIX: &str = "kimup: ";

/// Why a workload cannot be planned yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// Its revisions and Pods must be read first.
    NeedsFacts,
    /// Its controller has not seen its newest template yet.
    Unobserved,
    /// Its Pods are being created and get the tag at admission.
    AwaitsPods,
    /// A registry must be asked for the tag of the annotation `hold`.
    AwaitsRegistry,
}

/// The decision for one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerPlan {
    /// It runs what it should, or nobody says what it should run.
    Keep,
    /// Its Pods must be replaced.
    Roll(Change, Stamp),
    /// It keeps another tag.
    Hold(Hold),
    /// It is to keep another tag than it runs.
    Send(Hold, Change, Stamp),
    /// It would keep another tag, had nobody released it.
    Release(Hold, Change, Stamp),
    /// Not decided.
    Blocked(Blocked),
}

/// The decision for a workload.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// What changes; empty if nothing does.
    pub changes: Vec<Change>,
    /// Every stamp of ours that the template carries afterwards, by container: one apply says all, or it would take some
    /// back. Those of containers that are gone are left out, and go.
    pub stamps: BTreeMap<String, String>,
    /// What keeps another tag.
    pub holds: Vec<Hold>,
    /// Holds that somebody has ended.
    pub released: Vec<Hold>,
    /// Not empty if a stamp that stays is not kimup's yet (of one that a person put back: once the hold is on record). Then
    /// every stamp that kimup owns from now on, as the template has them: an apply of these changes nothing, and keeps them
    /// whatever becomes of who wrote them.
    pub adopts: BTreeMap<String, String>,
    /// Set if a container cannot be decided yet; then nothing changes.
    pub blocked: Option<Blocked>,
}

impl Plan {
    /// The value of `kubernetes.io/change-cause`.
    pub fn change_cause(&self) -> String {
        let said = self.changes.iter().map(|c| {
            let from = if c.from.is_empty() { "?" } else { &c.from };
            let why = c.back.as_ref().map_or_else(|| format!("rule {}", c.rule), |why| format!("{}: {why}", c.rule));
            format!("{} {from} -> {} (Image {}, {why})", c.container, c.to, c.image)
        });
        format!("{CAUSE_PREFIX}{}", said.collect::<Vec<_>>().join(", "))
    }

    /// Whether it takes a rejected tag away, or sends a held container to its tag: that waits for nothing.
    pub fn goes_back(&self) -> bool {
        self.changes.iter().any(|change| change.back.is_some())
    }

    /// The same without what goes forward.
    #[must_use]
    pub fn back_only(&self, workload: &Workload) -> Self {
        self.without(workload, &self.changes.iter().map(|change| change.image.as_str()).collect())
    }

    /// The same, but what these Images change stays as it is on `workload`, save what nothing delays.
    #[must_use]
    pub fn without(&self, workload: &Workload, images: &BTreeSet<&str>) -> Self {
        let mut plan = self.clone();
        let waits = |change: &Change| change.back.is_none() && images.contains(change.image.as_str());
        plan.changes.retain(|change| !waits(change));
        for change in self.changes.iter().filter(|change| waits(change)) {
            let container = &change.container;
            match workload.stamp(container).filter(|_| workload.owns_stamp(container)) {
                Some(stamp) => _ = plan.stamps.insert(container.clone(), stamp.to_string()),
                None => _ = plan.stamps.remove(container),
            }
        }
        plan
    }
}

/// The rollout ID of a tag (pinned: `tag@sha256:…`) of an Image: the same whoever computes it, so that deciding twice rolls
/// once.
pub fn id(image_uid: &str, tag: &str) -> String {
    let hash = digest(&SHA256, format!("{image_uid} {tag}").as_bytes());
    let mut id = String::with_capacity(10);
    for byte in hash.as_ref().iter().take(5) {
        let _ = write!(id, "{byte:02x}");
    }
    id
}

/// The rollout ID of going back from a rejected tag to one whose own ID is `forward`: another one, because that tag was
/// rolled out before.
pub fn back_id(forward: &str, rejected: &str) -> String {
    id(forward, rejected)
}

/// Plans a workload. `targets` are by container name; `facts` may be absent at first (`Blocked::NeedsFacts` asks).
pub fn plan(workload: &Workload, targets: &BTreeMap<String, Target>, facts: Option<&Facts>) -> Plan {
    let mut plan = Plan::default();
    let mut adopts = false;
    for container in &workload.containers {
        let name = &container.name;
        let target = targets.get(name);
        let decision = target.map_or(ContainerPlan::Keep, |target| plan_container(workload, container, target, facts));
        plan.released.extend(target.and_then(|target| hold::released(target, name, &decision)));
        let stamp = workload.stamp(name).filter(|_| workload.owns_stamp(name));
        // One that somebody else wrote: kept, or held and on record.
        let stays = match (&decision, target) {
            (ContainerPlan::Hold(hold), Some(target)) => target.holding.keeps(hold),
            (ContainerPlan::Keep, Some(_)) => true,
            _ => false,
        };
        let others = workload.stamp(name).filter(|stamp| stays && stamp.text == container.text);
        let put_back = others.filter(|_| stamp.is_none());
        adopts |= put_back.is_some();
        if let Some(stamp) = stamp.or(put_back) {
            plan.adopts.insert(name.clone(), stamp.to_string());
            plan.stamps.insert(name.clone(), stamp.to_string());
        }
        match decision {
            ContainerPlan::Roll(change, stamp) | ContainerPlan::Release(_, change, stamp) => {
                plan.changes.push(change);
                plan.stamps.insert(name.clone(), stamp.to_string());
            }
            ContainerPlan::Send(hold, change, stamp) => {
                plan.holds.push(hold);
                plan.changes.push(change);
                plan.stamps.insert(name.clone(), stamp.to_string());
            }
            ContainerPlan::Hold(hold) => plan.holds.push(hold),
            ContainerPlan::Blocked(why) => plan.blocked = Some(why),
            ContainerPlan::Keep => {}
        }
    }
    if plan.blocked.is_some() {
        plan.changes.clear();
        plan.stamps.clear();
    }
    if plan.blocked.is_some() || !adopts {
        plan.adopts.clear();
    }
    plan
}

fn plan_container(workload: &Workload, container: &Container, target: &Target, facts: Option<&Facts>) -> ContainerPlan {
    let Some(reference) = Reference::parse(&container.text).ok().filter(|r| r.digest().is_none()) else {
        return ContainerPlan::Keep;
    };
    let case = Case { workload, container, target, reference: &reference, facts };
    let decision = case.stays().unwrap_or_else(|| match workload.stamp(&container.name) {
        Some(stamp) if stamp.text == container.text => case.stamped(&stamp),
        Some(stamp) => case.unless_given(case.text_changed(&stamp)),
        None => case.unstamped(),
    });
    case.while_paused(case.unless_released(decision))
}

struct Case<'a> {
    workload: &'a Workload,
    container: &'a Container,
    target: &'a Target,
    reference: &'a Reference,
    facts: Option<&'a Facts>,
}

impl Case<'_> {
    fn stamped(&self, stamp: &Stamp) -> ContainerPlan {
        let Some(ran) = self.here(&stamp.reference) else {
            return self.roll(&self.own()); // of another repository: admission does not follow it
        };
        if let Some(alone) = self.went_back_alone(&ran) {
            return alone;
        }
        // Also where a person put it back: without a stamp nobody would be held there either.
        if self.is_rejected(&ran) {
            return self.sent_further(&ran).unwrap_or_else(|| self.roll(&ran));
        }
        // It is there already, before that was on record.
        if let Some(hold) =
            self.held_further().filter(|_| self.target.holding.further.as_ref().is_some_and(|to| ran.is(to)))
        {
            return hold;
        }
        let want = self.want();
        // Where only digests are followed, a stamp with another tag is of a rule before: it is not taken back.
        let of_before = self.target.order.keeps_tags() && ran.tag != want.tag && want.tag == self.own().tag;
        if self.is_enough(&ran) || of_before {
            return ContainerPlan::Keep;
        }
        // An older stamp of our own is unfinished work, unless it was made ours because a person put it back.
        let held = || (self.target.held.as_ref() == Some(&ran.to_string()) && self.is_held()).then_some(HeldBy::Undo);
        match self.on_record(&ran).or_else(held) {
            None if self.workload.owns_stamp(&self.container.name) => self.roll(&ran),
            by => self.put_back(&ran, None, by.unwrap_or(HeldBy::Undo)),
        }
    }

    fn text_changed(&self, stamp: &Stamp) -> ContainerPlan {
        let own = self.own();
        let before = Reference::parse(&stamp.text).ok();
        let respelled =
            before.is_some_and(|b| b.repository() == self.reference.repository() && b.tag() == self.reference.tag());
        // A stamp for another repository says nothing of this one, and the same tag in another spelling is no decision.
        let ran = self.here(&stamp.reference).filter(|_| !respelled);
        // While it is held, what was left before counts too.
        let before = |ran: &Tagged| self.left().into_iter().chain([ran.clone()]).max_by(|a, b| self.order(a, b));
        match ran.map(|ran| (before(&ran).unwrap_or_else(|| ran.clone()), ran)) {
            Some((before, ran)) if self.compare(&own.tag, &before.tag) == Some(Ordering::Less) => {
                self.put_back(&own, Some(ran), HeldBy::Manifest)
            }
            _ if self.wanted() == self.container.text => ContainerPlan::Keep,
            _ => self.roll(&own),
        }
    }

    fn unstamped(&self) -> ContainerPlan {
        // Pods may run a tag that admission gave before it was rejected.
        if self.wanted() == self.container.text && self.target.rejected.is_empty() {
            return ContainerPlan::Keep;
        }
        let (running, facts) = match (self.running_now(), self.facts) {
            (Ok(running), Some(facts)) => (running, facts),
            (Err(blocked), _) => return ContainerPlan::Blocked(blocked),
            (_, None) => return ContainerPlan::Blocked(Blocked::NeedsFacts),
        };
        // Without Pods nothing tells that another revision was put back: what is on record stays.
        let stays = running.is_empty() || self.lost_its_stamp(facts);
        if let Some((tag, by)) = self.held_at().filter(|_| stays) {
            return self.keep_at(&tag, &running, by);
        }
        if let Some(hold) = self.held_further().filter(|_| stays) {
            return hold;
        }
        let Some(oldest) = running.iter().min_by(|a, b| self.order(a, b)).cloned() else {
            return self.without_pods(facts);
        };
        if running.iter().all(|ran| self.is_enough(ran)) {
            return ContainerPlan::Keep;
        }
        if let Some(rejected) = running.iter().find(|ran| self.is_rejected(ran)) {
            return self.sent_further(rejected).unwrap_or_else(|| self.roll(rejected));
        }
        let recorded = self.target.left.is_some() && facts.revisions.len() > 1;
        let went_back = recorded || self.newer_stamps(facts, &oldest).next().is_some();
        if went_back && !self.lost_its_stamp(facts) {
            return self.put_back(&oldest, None, self.on_record(&oldest).unwrap_or(HeldBy::Undo));
        }
        self.roll(&oldest)
    }

    fn without_pods(&self, facts: &Facts) -> ContainerPlan {
        // After a stamped revision a person may have gone back to this one: its Pods show to which tag.
        let stamped_before = facts.stamps(&self.container.name).any(|s| self.here(&s.reference).is_some());
        // Else the Pods to come get the settled tag at admission, but one in flight by a stamp alone.
        match (self.target.settled || stamped_before, self.workload.replicas) {
            (_, _) if self.wanted() == self.container.text => ContainerPlan::Keep,
            (true, 0) => ContainerPlan::Keep,
            (true, _) => ContainerPlan::Blocked(Blocked::AwaitsPods),
            (false, _) => self.roll(&Tagged::default()),
        }
    }

    fn roll(&self, ran: &Tagged) -> ContainerPlan {
        // Where it was held before a rejected tag was tried, it is held again.
        let held = self.target.held.as_deref().and_then(Tagged::parse);
        let held = held.filter(|held| !held.is_in(&self.target.rejected) && self.is_rejected(ran) && self.is_held());
        let want = held.unwrap_or_else(|| self.want());
        if want.is_in(&self.target.rejected) && want != self.own() {
            return ContainerPlan::Blocked(Blocked::AwaitsPods); // its Image is about to go back from that
        }
        let reference = self.image(&want);
        let (from, to) = ran.difference(&want);
        let change = Change {
            container: self.container.name.clone(),
            from,
            to,
            digest: want.digest,
            image: self.target.image.clone(),
            rule: self.target.rule.clone(),
            rollout: self.target.rollout.clone(),
            back: None,
        };
        let change = if self.goes_back(ran) { self.back(ran, change) } else { change };
        ContainerPlan::Roll(change, Stamp { text: self.container.text.clone(), reference })
    }

    /// Whether what is wanted is not newer than `ran`, which was rejected.
    fn goes_back(&self, ran: &Tagged) -> bool {
        self.is_rejected(ran) && self.compare(&self.want().tag, &ran.tag) != Some(Ordering::Greater)
    }

    fn back(&self, ran: &Tagged, change: Change) -> Change {
        let rejected = if self.target.rejected.contains(&ran.tag) { ran.tag.clone() } else { ran.to_string() };
        let why = self.target.why_rejected.clone();
        Change {
            rule: ROLLBACK.to_owned(),
            rollout: back_id(&self.target.rollout, &rejected),
            back: Some(why),
            ..change
        }
    }

    /// Whether a container that runs `ran` is left alone: it is what it should run, the same version or a newer one. Where
    /// no digest is wanted, any of the tag is right.
    fn is_enough(&self, ran: &Tagged) -> bool {
        let want = self.want();
        if self.is_rejected(ran) {
            return false;
        }
        if ran.tag == want.tag {
            return want.digest.is_none() || ran.digest == want.digest;
        }
        matches!(self.compare(&ran.tag, &want.tag), Some(Ordering::Equal | Ordering::Greater))
    }

    /// Whether a tag that kimup gave is taken back: one that is rejected, unless it is the container's own text.
    fn is_rejected(&self, ran: &Tagged) -> bool {
        ran.is_in(&self.target.rejected) && *ran != self.own() && *ran != self.want()
    }

    /// The tag of the container's text.
    fn own(&self) -> Tagged {
        Tagged::of(self.reference)
    }

    /// What a reference to the container's own repository runs.
    fn here(&self, reference: &str) -> Option<Tagged> {
        let reference = Reference::parse(reference).ok()?;
        (reference.repository() == self.reference.repository()).then(|| Tagged::of(&reference))
    }

    fn target(&self) -> Tagged {
        Tagged { tag: self.target.tag.clone(), digest: self.target.digest.clone() }
    }

    /// What this container should run. Of its own tag no digest is known.
    fn want(&self) -> Tagged {
        let tag = self.target.order.newer_of(self.reference.tag(), &self.target.tag);
        if tag == self.target.tag { self.target() } else { Tagged::new(tag, None) }
    }

    /// The image this container should run.
    fn wanted(&self) -> String {
        self.image(&self.want())
    }

    fn image(&self, want: &Tagged) -> String {
        if want.digest.is_none() && self.reference.tag() == Some(want.tag.as_str()) {
            return self.container.text.clone();
        }
        want.image(self.reference)
    }

    /// Whether a hold is on record that has not ended, neither by its tag nor by a person.
    fn is_held(&self) -> bool {
        let left = self.target.left.as_deref().filter(|_| !self.target.holding.resume).and_then(Tagged::parse);
        left.is_some_and(|left| !self.ends(&left))
    }

    fn compare(&self, a: &str, b: &str) -> Option<Ordering> {
        self.target.order.compare(a, b)
    }

    /// Of several digests of one tag, the target's is the last.
    fn order(&self, a: &Tagged, b: &Tagged) -> Ordering {
        let target = self.target();
        let tags = self.compare(&a.tag, &b.tag).unwrap_or_else(|| a.tag.cmp(&b.tag));
        tags.then((*a == target).cmp(&(*b == target)))
    }
}

fn tagged(reference: &str) -> Tagged {
    Reference::parse(reference).map(|reference| Tagged::of(&reference)).unwrap_or_default()
}

#[cfg(test)]
mod rejected;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod unobserved;
