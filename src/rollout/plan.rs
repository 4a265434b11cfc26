//! What must change on a workload, if anything: a pure decision over everything its Images want at once.
//!
//! The rules are design section 5: roll only when it matters, never backwards, and leave alone what a person put back.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use aws_lc_rs::digest::{SHA256, digest};

use crate::api::annotations::Stamp;
use crate::api::{Order, Tagged};
use crate::policy::Reference;

use super::apply::FIELD_MANAGER;
use super::facts::Facts;
use super::workload::{Container, Workload};

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
    /// The tag that it is held at according to the record of that.
    pub held: Option<String>,
    /// Tags that are never enough, as text of `Tagged`: Pods that kimup gave one are rolled, also to an older tag.
    pub rejected: BTreeSet<String>,
    /// Why the newest of them was rejected.
    pub why_rejected: String,
}

/// A workload that keeps another tag because a person said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Name of the Image.
    pub image: String,
    /// Name of the container.
    pub container: String,
    /// The tag it keeps; with the digest if that alone was left.
    pub tag: String,
    /// The tag that was left: a newer one than this ends the hold. With its digest if only that differs.
    pub left: String,
    /// True: the manifest's text is older than what ran (`HeldByManifest`). False: an older revision was put back.
    pub by_manifest: bool,
}

/// A container that will run another image.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Set if it goes back from a rejected tag: why that was rejected.
    pub back: Option<String>,
}

/// What stands for the rule in a rollout that goes back from a rejected tag.
pub const ROLLBACK: &str = "rollback";

/// Why a workload cannot be planned yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blocked {
    /// Its revisions and Pods must be read first.
    NeedsFacts,
    /// Its controller has not seen its newest template yet.
    Unobserved,
    /// Its Pods are being created and get the tag at admission.
    AwaitsPods,
}

/// The decision for one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerPlan {
    /// It runs what it should, or nobody says what it should run.
    Keep,
    /// Its Pods must be replaced.
    Roll(Change, Stamp),
    /// A person put it back.
    Hold(Hold),
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
    /// What a person put back.
    pub holds: Vec<Hold>,
    /// Set if a container cannot be decided yet; then nothing changes.
    pub blocked: Option<Blocked>,
}

impl Plan {
    /// The value of `kubernetes.io/change-cause`.
    pub fn change_cause(&self) -> String {
        let said = self.changes.iter().map(|c| {
            let from = if c.from.is_empty() { "?" } else { &c.from };
            let why = c.back.as_ref().map_or_else(|| format!("rule {}", c.rule), |why| format!("{ROLLBACK}: {why}"));
            format!("{} {from} -> {} (Image {}, {why})", c.container, c.to, c.image)
        });
        format!("kimup: {}", said.collect::<Vec<_>>().join(", "))
    }

    /// Whether it takes a rejected tag away: that waits for nothing.
    pub fn goes_back(&self) -> bool {
        self.changes.iter().any(|change| change.back.is_some())
    }

    /// The same without the Images that go forward.
    #[must_use]
    pub fn back_only(&self, workload: &Workload) -> Self {
        let back: BTreeSet<&str> = self.changes.iter().filter(|c| c.back.is_some()).map(|c| c.image.as_str()).collect();
        let forward = self.changes.iter().map(|c| c.image.as_str()).filter(|image| !back.contains(image)).collect();
        self.without(workload, &forward)
    }

    /// The same, but what these Images change stays as it is on `workload`.
    #[must_use]
    pub fn without(&self, workload: &Workload, images: &BTreeSet<&str>) -> Self {
        let mut plan = self.clone();
        plan.changes.retain(|change| !images.contains(change.image.as_str()));
        for change in self.changes.iter().filter(|change| images.contains(change.image.as_str())) {
            let container = &change.container;
            match workload.stamp(container).filter(|_| is_ours(workload, container)) {
                Some(stamp) => _ = plan.stamps.insert(container.clone(), stamp.to_string()),
                None => _ = plan.stamps.remove(container),
            }
        }
        plan
    }
}

/// Whether kimup applied the stamp of a container.
fn is_ours(workload: &Workload, container: &str) -> bool {
    workload.stamp_owners.get(container).is_some_and(|owners| owners.contains(FIELD_MANAGER))
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
    for container in &workload.containers {
        let decision = match targets.get(&container.name) {
            Some(target) => plan_container(workload, container, target, facts),
            None => ContainerPlan::Keep,
        };
        match decision {
            ContainerPlan::Roll(change, stamp) => {
                plan.changes.push(change);
                plan.stamps.insert(container.name.clone(), stamp.to_string());
                continue;
            }
            ContainerPlan::Hold(hold) => plan.holds.push(hold),
            ContainerPlan::Blocked(why) => plan.blocked = Some(why),
            ContainerPlan::Keep => {}
        }
        if let Some(stamp) = workload.stamp(&container.name).filter(|_| is_ours(workload, &container.name)) {
            plan.stamps.insert(container.name.clone(), stamp.to_string());
        }
    }
    if plan.blocked.is_some() {
        plan.changes.clear();
        plan.stamps.clear();
    }
    plan
}

fn plan_container(workload: &Workload, container: &Container, target: &Target, facts: Option<&Facts>) -> ContainerPlan {
    let Some(reference) = Reference::parse(&container.text).ok().filter(|r| r.digest().is_none()) else {
        return ContainerPlan::Keep;
    };
    let case = Case { workload, container, target, reference: &reference, facts };
    match workload.stamp(&container.name) {
        Some(stamp) if stamp.text == container.text => case.stamped(&stamp),
        Some(stamp) => case.text_changed(&stamp),
        None => case.unstamped(),
    }
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
        let want = self.want();
        // Where only digests are followed, a stamp with another tag is of a rule before: it is not taken back.
        let of_before = self.target.order.keeps_tags() && ran.tag != want.tag && want.tag == self.own().tag;
        if self.is_enough(&ran) || of_before {
            return ContainerPlan::Keep;
        }
        let held = self.target.held.as_ref() == Some(&ran.to_string()) && self.is_held();
        if is_ours(self.workload, &self.container.name) && !held {
            return self.roll(&ran); // an older stamp of our own is unfinished work
        }
        self.put_back(&ran, None, false)
    }

    fn text_changed(&self, stamp: &Stamp) -> ContainerPlan {
        let own = self.own();
        let before = Reference::parse(&stamp.text).ok();
        let respelled =
            before.is_some_and(|b| b.repository() == self.reference.repository() && b.tag() == self.reference.tag());
        // A stamp for another repository says nothing of this one, and the same tag in another spelling is no decision.
        let ran = self.here(&stamp.reference).filter(|_| !respelled);
        match ran {
            Some(ran) if self.compare(&own.tag, &ran.tag) == Some(Ordering::Less) => {
                self.put_back(&own, Some(ran), true)
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
        if !self.workload.observed {
            // The revision counted as current may be the one before: an undo would be taken for what it undid.
            return ContainerPlan::Blocked(Blocked::Unobserved);
        }
        let Some(facts) = self.facts else {
            return ContainerPlan::Blocked(Blocked::NeedsFacts);
        };
        let name = &self.container.name;
        if facts.revisions.iter().any(|r| r.current && r.stamps.contains_key(name)) {
            // The template's own revision is not made yet: the Pods seen are those of the one before.
            return ContainerPlan::Blocked(Blocked::AwaitsPods);
        }
        let running: Vec<Tagged> = facts.running(name).into_iter().map(tagged).collect();
        let Some(oldest) = running.iter().min_by(|a, b| self.order(a, b)).cloned() else {
            return self.without_pods(facts);
        };
        if running.iter().all(|ran| self.is_enough(ran)) {
            return ContainerPlan::Keep;
        }
        if let Some(rejected) = running.iter().find(|ran| self.is_rejected(ran)) {
            return self.roll(rejected);
        }
        let recorded = self.target.left.is_some() && facts.revisions.len() > 1;
        if recorded || self.newer_stamps(facts, &oldest).next().is_some() {
            return self.put_back(&oldest, None, false);
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

    /// Not our doing that it runs `ran`. If it ran a newer tag before (`left`, a hold on record, the stamp of another
    /// revision), or the target's digest of the same tag, a person went back: it stays until there is a newer tag than the
    /// one that was left, or another digest of it.
    fn put_back(&self, ran: &Tagged, left: Option<Tagged>, by_manifest: bool) -> ContainerPlan {
        let hold = |ran: &Tagged, left: &Tagged| {
            let (image, container) = (self.target.image.clone(), self.container.name.clone());
            let whole = ran.tag == left.tag;
            let text = |tagged: &Tagged| if whole { tagged.to_string() } else { tagged.tag.clone() };
            ContainerPlan::Hold(Hold { image, container, tag: text(ran), left: text(left), by_manifest })
        };
        let recorded = self.target.left.as_deref().and_then(Tagged::parse);
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
    fn ends(&self, left: &Tagged) -> bool {
        let target = self.target();
        let moved =
            target.tag == left.tag && left.digest.is_some() && target.digest.is_some_and(|d| left.digest != Some(d));
        moved || self.compare(&target.tag, &left.tag) == Some(Ordering::Greater)
    }

    /// What revisions that were stamped for this container ran, if newer than `ran`; the target's own counts also where
    /// the rule cannot compare. Every revision counts: right after an undo the left one is still the current.
    fn newer_stamps<'f>(&'f self, facts: &'f Facts, ran: &Tagged) -> impl Iterator<Item = Tagged> + use<'f> {
        let ran = ran.clone();
        let stamped = facts.stamps(&self.container.name).filter_map(|stamp| self.here(&stamp.reference));
        stamped.filter(move |tagged| {
            let newer = self.compare(&tagged.tag, &ran.tag) == Some(Ordering::Greater);
            newer || (*tagged == self.target() && *tagged != ran)
        })
    }

    fn roll(&self, ran: &Tagged) -> ContainerPlan {
        // Where it was held before a rejected tag was tried, it is held again.
        let held =
            self.target.held.as_deref().and_then(Tagged::parse).filter(|_| self.is_rejected(ran) && self.is_held());
        let want = held.unwrap_or_else(|| self.want());
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

    /// Whether a hold is on record that has not ended.
    fn is_held(&self) -> bool {
        self.target.left.as_deref().and_then(Tagged::parse).is_some_and(|left| !self.ends(&left))
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
