//! What must change on a workload, if anything: a pure decision over everything its Images want at once.
//!
//! The rules are design section 5: roll only when it matters, never backwards, and leave alone what a person put back.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt::Write;

use aws_lc_rs::digest::{SHA256, digest};

use crate::api::Order;
use crate::api::annotations::Stamp;
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
    /// Whether admission gives this tag to new Pods, that is, whether it is the settled tag.
    pub settled: bool,
    /// Name of the rule that chose it.
    pub rule: String,
    /// The rollout ID.
    pub rollout: String,
    /// How the Image orders tags.
    pub order: Order,
    /// The tag that a person left, if this container is held already.
    pub left: Option<String>,
}

/// A workload that keeps another tag because a person said so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hold {
    /// Name of the Image.
    pub image: String,
    /// Name of the container.
    pub container: String,
    /// The tag it keeps.
    pub tag: String,
    /// The tag that was left: a newer one than this ends the hold.
    pub left: String,
    /// True: the manifest's text is older than what ran (`HeldByManifest`). False: an older revision was put back.
    pub by_manifest: bool,
}

/// A container that will run another image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Name of the container.
    pub container: String,
    /// The tag it ran before; empty if that is not known.
    pub from: String,
    /// The tag it will run.
    pub to: String,
    /// Name of the Image.
    pub image: String,
    /// Name of the rule.
    pub rule: String,
    /// The rollout ID.
    pub rollout: String,
}

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
    /// Every stamp the template carries afterwards, by container: one apply says all, or it would take some back.
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
            format!("{} {from} -> {} (Image {}, rule {})", c.container, c.to, c.image, c.rule)
        });
        format!("kimup: {}", said.collect::<Vec<_>>().join(", "))
    }
}

/// The rollout ID of a tag of an Image: the same whoever computes it, so that deciding twice rolls once.
pub fn id(image_uid: &str, tag: &str) -> String {
    let hash = digest(&SHA256, format!("{image_uid} {tag}").as_bytes());
    let mut id = String::with_capacity(10);
    for byte in hash.as_ref().iter().take(5) {
        let _ = write!(id, "{byte:02x}");
    }
    id
}

/// Plans a workload. `targets` are by container name; `facts` may be absent at first (`Blocked::NeedsFacts` asks).
pub fn plan(workload: &Workload, targets: &BTreeMap<String, Target>, facts: Option<&Facts>) -> Plan {
    let mut plan = Plan::default();
    for container in &workload.containers {
        let decision = match targets.get(&container.name) {
            Some(target) => plan_container(workload, container, target, facts),
            None => ContainerPlan::Keep,
        };
        let ours = workload.stamp_owners.get(&container.name).is_some_and(|o| o.contains(FIELD_MANAGER));
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
        if let Some(stamp) = workload.stamp(&container.name).filter(|_| ours) {
            plan.stamps.insert(container.name.clone(), stamp.to_string());
        }
    }
    if plan.blocked.is_some() {
        plan.changes.clear();
    }
    plan
}

fn plan_container(workload: &Workload, container: &Container, target: &Target, facts: Option<&Facts>) -> ContainerPlan {
    let Some(reference) = Reference::parse(&container.text).ok().filter(|r| r.digest().is_none()) else {
        return ContainerPlan::Keep;
    };
    let case = Case { workload, container, target, reference: &reference };
    match workload.stamp(&container.name) {
        Some(stamp) if stamp.text == container.text => case.stamped(&stamp),
        Some(stamp) => case.text_changed(&stamp),
        None => case.unstamped(facts),
    }
}

struct Case<'a> {
    workload: &'a Workload,
    container: &'a Container,
    target: &'a Target,
    reference: &'a Reference,
}

impl Case<'_> {
    fn stamped(&self, stamp: &Stamp) -> ContainerPlan {
        let ran = tag_of(&stamp.reference);
        if stamp.reference == self.wanted() || self.compare(&ran, self.want()) == Some(Ordering::Greater) {
            return ContainerPlan::Keep;
        }
        let owners = self.workload.stamp_owners.get(&self.container.name);
        if owners.is_some_and(|o| o.contains(FIELD_MANAGER)) {
            return self.roll(ran); // an older stamp of our own is unfinished work
        }
        self.hold_unless_newer(ran, None, false)
    }

    fn text_changed(&self, stamp: &Stamp) -> ContainerPlan {
        let ran = tag_of(&stamp.reference);
        let own = self.reference.tag().unwrap_or_default().to_owned();
        if self.compare(&own, &ran) == Some(Ordering::Less) {
            return self.hold_unless_newer(own, None, true);
        }
        if self.wanted() == self.container.text {
            return ContainerPlan::Keep;
        }
        self.roll(own)
    }

    fn unstamped(&self, facts: Option<&Facts>) -> ContainerPlan {
        let wanted = self.wanted();
        if wanted == self.container.text {
            return ContainerPlan::Keep;
        }
        if !self.workload.observed {
            // The revision counted as current may be the one before: an undo would be taken for what it undid.
            return ContainerPlan::Blocked(Blocked::Unobserved);
        }
        let Some(facts) = facts else {
            return ContainerPlan::Blocked(Blocked::NeedsFacts);
        };
        let running = facts.running(&self.container.name);
        if !running.is_empty() && running.iter().all(|image| *image == wanted) {
            return ContainerPlan::Keep;
        }
        let oldest = running.iter().map(|image| tag_of(image)).min_by(|a, b| self.order(a, b));
        let stamped = facts.stamped_elsewhere(&self.container.name);
        let left = stamped.iter().map(|stamp| tag_of(&stamp.reference)).max_by(|a, b| self.order(a, b));
        if let (Some(ran), Some(left)) = (&oldest, &left)
            && self.compare(ran, left) == Some(Ordering::Less)
        {
            return self.hold_unless_newer(ran.clone(), Some(left), false);
        }
        if running.is_empty() && self.target.settled {
            // Without Pods there is nothing to replace: those to come get the settled tag at admission.
            let none_wanted = self.workload.replicas == 0;
            return if none_wanted { ContainerPlan::Keep } else { ContainerPlan::Blocked(Blocked::AwaitsPods) };
        }
        self.roll(oldest.unwrap_or_default())
    }

    /// A person went back to `ran`: stays until a newer tag than the one that was left.
    fn hold_unless_newer(&self, ran: String, left: Option<&str>, by_manifest: bool) -> ContainerPlan {
        let left = self.target.left.as_deref().or(left).unwrap_or(&self.target.tag);
        if self.compare(&self.target.tag, left) == Some(Ordering::Greater) {
            return self.roll(ran);
        }
        ContainerPlan::Hold(Hold {
            image: self.target.image.clone(),
            container: self.container.name.clone(),
            tag: ran,
            left: left.to_owned(),
            by_manifest,
        })
    }

    fn roll(&self, from: String) -> ContainerPlan {
        let change = Change {
            container: self.container.name.clone(),
            from,
            to: self.want().to_owned(),
            image: self.target.image.clone(),
            rule: self.target.rule.clone(),
            rollout: self.target.rollout.clone(),
        };
        ContainerPlan::Roll(change, Stamp { text: self.container.text.clone(), reference: self.wanted() })
    }

    /// The tag this container should run.
    fn want(&self) -> &str {
        self.target.order.newer_of(self.reference.tag(), &self.target.tag)
    }

    /// The image this container should run.
    fn wanted(&self) -> String {
        if self.reference.tag() == Some(self.want()) {
            return self.container.text.clone();
        }
        self.reference.with_tag(self.want())
    }

    fn compare(&self, a: &str, b: &str) -> Option<Ordering> {
        self.target.order.compare(a, b)
    }

    fn order(&self, a: &str, b: &str) -> Ordering {
        self.compare(a, b).unwrap_or_else(|| a.cmp(b))
    }
}

fn tag_of(reference: &str) -> String {
    Reference::parse(reference).ok().and_then(|r| r.tag().map(str::to_owned)).unwrap_or_default()
}

#[cfg(test)]
mod unobserved;
