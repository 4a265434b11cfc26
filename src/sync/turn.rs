//! Whose turn it is in a group: the facts for [`rollout::lead`].

use std::cmp::Ordering;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::annotations::CANARY;
use crate::api::{Image, ImageStatus, Order, Strategy, Tagged};
use crate::policy::Reference;
use crate::rollout::{self, Lead, Member, Plan, Stage, Turn, Workload, WorkloadKey};

use super::engine::{Key, Sync};
use super::target::wanted;
use super::view::{State, View, has_ended};
use super::world::{Cached, ImageKey, User, status_of};

impl Sync {
    /// The plan without the Images for whose tag others go first.
    pub(super) fn in_turn(&self, workload: &Workload, plan: &Plan) -> Plan {
        let now = self.now();
        let mut images: BTreeSet<&str> = plan.changes.iter().map(|change| change.image.as_str()).collect();
        images.retain(|name| {
            let key = ImageKey { namespace: workload.key.namespace.clone(), name: (*name).to_owned() };
            let Some(Cached::Read(image)) = self.world.image(&key) else {
                return false;
            };
            let status = status_of(&image);
            let Some(lead) = self.lead(&image, &status) else {
                return false;
            };
            let recorded = status.rollout.filter(|rollout| rollout.first.as_deref() == Some(&lead.names()));
            let is_recorded = recorded.is_some();
            let ready_at = recorded.and_then(|rollout| rollout.first_ready_at?.parse().ok());
            match lead.turn(&workload.key, ready_at, self.soak(&image), now) {
                Turn::Go => false,
                Turn::After(Some(until)) => {
                    self.queue_at(Key::Workload(workload.key.clone()), until);
                    true
                }
                Turn::After(None) => {
                    // Others of the group may have learned of the tag since it was recorded who goes first.
                    if !is_recorded || lead.ready == Some(true) {
                        self.queue.add_now(Key::Image(key));
                    }
                    true
                }
            }
        });
        plan.without(workload, &images)
    }

    /// Whether the last sync of an Image that was recorded began less than so long ago.
    fn has_looked(&self, image: &Image, within: Duration) -> bool {
        let (namespace, name) = (image.metadata.namespace.clone(), image.metadata.name.clone());
        let key = ImageKey { namespace: namespace.unwrap_or_default(), name: name.unwrap_or_default() };
        let synced = self.memos().get(&key).and_then(|memo| memo.synced);
        synced.is_some_and(|began| began.elapsed() < within)
    }

    /// How long the first workload of a group must run well: the longest that an Image of it says.
    pub(super) fn soak(&self, image: &Image) -> Duration {
        let soak = |image: &Arc<Image>| Strategy::parse(&image.spec).map(|strategy| strategy.soak).ok();
        self.world.group_of(image).iter().filter_map(soak).max().unwrap_or_default()
    }

    /// Who goes first for the tag that an Image rolls out; none if nobody follows, or nothing newer is rolled out.
    pub(super) fn lead(&self, image: &Image, status: &ImageStatus) -> Option<Lead> {
        let rollout = status.rollout.as_ref().filter(|rollout| rollout.back_from.is_none())?;
        let tag = wanted(image, status)?;
        let order = Order::of(&image.spec).following(status);
        let since_start = rollout.started_at.parse::<Timestamp>().ok().map(|at| self.now().duration_since(at));
        let since_start = since_start.and_then(|elapsed| Duration::try_from(elapsed).ok()).unwrap_or_default();
        let mut members = Vec::new();
        for of in self.world.group_of(image) {
            // What this Image just learned is not written yet.
            let theirs = if of.metadata.uid == image.metadata.uid { status.clone() } else { status_of(&of) };
            let chosen = wanted(&of, &theirs);
            let has = chosen.as_ref() == Some(&tag);
            let newer = |t: &Tagged| order.compare(&t.tag, &tag.tag) == Some(Ordering::Greater);
            if !has && chosen.as_ref().is_some_and(newer) {
                continue; // past this tag
            }
            for user in self.world.users_of(&of) {
                let workload = &user.workload;
                let stage = match has {
                    true => self.stage(&user, &of, &tag, &order),
                    // It has looked since, and does not want it: its tag is of another line, or waits for something.
                    false if self.has_looked(&of, since_start) => Stage::Out,
                    false => Stage::Before,
                };
                members.push(Member {
                    key: workload.key.clone(),
                    canary: workload.annotations.get(CANARY).is_some_and(|value| value == "true"),
                    replicas: workload.replicas,
                    stage,
                    since: since(&theirs, &tag, workload),
                });
            }
        }
        rollout::lead(&members, rollout.first.as_deref())
    }

    /// Whether Pods of another workload of the group run a tag well, or did when its rollout ended: that they all fail now
    /// may be an outage.
    pub(super) fn is_proven(&self, image: &Image, tag: &Tagged, but: &Workload) -> bool {
        self.world.group_of(image).iter().any(|of| {
            let order = Order::of(&of.spec).following(&status_of(of));
            let users = self.world.users_of(of).into_iter();
            let mut others = users.filter(|user| user.workload.key != but.key && user.workload.replicas > 0);
            others.any(|user| self.stage(&user, of, tag, &order) == Stage::Ready || self.ran_well(&user, tag))
        })
    }

    /// Whether a workload that was stamped with a tag has ended its rollout.
    fn ran_well(&self, user: &User, tag: &Tagged) -> bool {
        let mut stamped = user.containers.iter().filter_map(|container| user.workload.stamped(container));
        stamped.any(|tagged| tagged == *tag) && has_ended(&self.views(), &user.workload)
    }

    /// The Images that share a group with these Images of a workload and do not know what these roll out.
    pub(super) fn behind(&self, workload: &WorkloadKey, names: &BTreeSet<String>) -> BTreeSet<String> {
        let mut behind = BTreeSet::new();
        for name in names {
            let key = ImageKey { namespace: workload.namespace.clone(), name: name.clone() };
            let Some(Cached::Read(image)) = self.world.image(&key) else {
                continue;
            };
            let status = status_of(&image);
            let tag = wanted(&image, &status).filter(|_| status.rollout.is_some());
            let order = Order::of(&image.spec).following(&status);
            for of in self.world.group_of(&image).iter().filter(|_| tag.is_some()) {
                let theirs = wanted(of, &status_of(of));
                let compared = theirs.as_ref().zip(tag.as_ref()).and_then(|(a, b)| order.compare(&a.tag, &b.tag));
                if theirs != tag && compared != Some(Ordering::Greater) {
                    behind.extend(of.metadata.name.clone());
                }
            }
        }
        behind
    }

    fn stage(&self, user: &User, image: &Image, tag: &Tagged, order: &Order) -> Stage {
        let name = image.metadata.name.as_deref().unwrap_or_default();
        let views = self.views();
        let view = views.get(&user.workload.key).filter(|view| view.uid == user.workload.uid);
        let state = view.and_then(|view: &View| view.state(name, tag));
        stage(user, state, tag, order)
    }
}

/// How far a workload is, from what it carries; `state` is what its last reconcile found, if that was for this tag.
fn stage(user: &User, state: Option<&State>, tag: &Tagged, order: &Order) -> Stage {
    let workload = &user.workload;
    if matches!(state, Some(State::Held | State::Failed(_))) {
        return Stage::Out;
    }
    let containers = || workload.containers.iter().filter(|c| user.containers.contains(&c.name));
    let own_is_newer = |text: &str| {
        let own = Reference::parse(text).ok().and_then(|r| r.tag().map(str::to_owned));
        own.is_some_and(|own| order.compare(&own, &tag.tag) == Some(Ordering::Greater))
    };
    if containers().any(|c| own_is_newer(&c.text)) {
        return Stage::Out; // what it runs says nothing of this tag
    }
    let stamped = |c: &rollout::Container| {
        let stamp = workload.stamp(&c.name).filter(|stamp| stamp.text == c.text);
        stamp.and_then(|s| Reference::parse(&s.reference).ok()).is_some_and(|r| Tagged::of(&r) == *tag)
    };
    match state {
        _ if containers().all(stamped) && workload.complete => Stage::Ready,
        _ if containers().all(stamped) => Stage::Moving,
        Some(State::Done) => Stage::Ready,
        Some(State::Moving) => Stage::Moving,
        Some(State::Waiting | State::Returning) => Stage::Waiting,
        _ => Stage::Unknown,
    }
}

/// Since when a workload runs a tag well, as the status of its Image has it.
fn since(status: &ImageStatus, tag: &Tagged, workload: &Workload) -> Option<Timestamp> {
    match &status.rollout {
        Some(rollout) if rollout.first.as_ref() == Some(&workload.key.to_string()) => {
            rollout.first_ready_at.as_ref()?.parse().ok()
        }
        Some(_) => None,
        None => status.history.iter().find(|entry| entry.tag == tag.tag)?.finished.parse().ok(),
    }
}
