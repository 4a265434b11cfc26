//! Watches the rollouts that kimup caused: judges those that do not end in time, and frees what a failed one left behind.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::{Image, ImageStatus, Strategy, Tagged, annotations::Stamp};
use crate::policy::Reference;
use crate::rollout::{
    self, ApplyError, Before, Evidence, FIELD_MANAGER, Kind, Past, Target, Verdict, Workload, WorkloadKey,
};

use super::engine::{Key, Sync};
use super::target::wanted;
use super::view::has_ended;
use super::way_back::went_back;
use super::world::{Cached, ImageKey, User, status_of};

/// How soon a rollout that fails is judged again, while its Images have not acted on that.
const PAUSE: Duration = Duration::from_secs(5);
/// How soon one is judged again that nothing is done about.
const STOPPED_PAUSE: Duration = Duration::from_secs(30);
/// Pause after its Pods could not be read.
pub(super) const FAILURE_PAUSE: Duration = Duration::from_secs(10);

/// What the last judgement of a workload's rollout came to. Losing it costs another one.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Judgement {
    /// The generation that was judged, and when that is worth doing again.
    next: Option<(Instant, i64)>,
    /// It fails.
    pub failing: Option<Failing>,
    /// It does not go on, and nothing is rejected: why.
    pub stopped: Option<String>,
    /// The generation of which no Pod of a rejected tag is left in the way.
    freed: Option<i64>,
}

/// A rollout that fails.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Failing {
    generation: i64,
    /// What is wrong.
    pub reason: String,
    /// What is to be rejected, by container.
    pub tags: BTreeMap<String, Left>,
}

/// A tag that is to be rejected.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Left {
    /// The Image it comes from.
    pub image: String,
    /// The tag.
    pub tag: Tagged,
    /// What the container ran before.
    pub before: Tagged,
    /// It was held there: what it had left then.
    pub held: Option<String>,
    /// Others run the tag well: this workload alone goes back, to the first of these that can be had. Empty: the tag is to be
    /// rejected.
    pub alone: Vec<Tagged>,
}

/// Whether a workload was stamped with a tag after that had settled: it was held then, or opted in later. Both times are in
/// whole seconds: within one of them it may be either, and whoever was well by then has ended its rollout.
fn began_later(workload: &Workload, status: &ImageStatus, tag: &Tagged) -> bool {
    let finished = status.history.iter().find(|entry| entry.tag == tag.tag).map(|entry| entry.finished.parse());
    let finished: Option<Timestamp> = finished.and_then(Result::ok);
    finished.zip(workload.stamped_at).is_some_and(|(finished, stamped)| stamped >= finished)
}

/// A container whose rollout is watched.
struct Tried<'a> {
    target: &'a Target,
    tag: Tagged,
    /// It goes back to this tag, or a person sent it there: there is nothing to reject.
    kept: bool,
    /// Others of its group run the tag well.
    proven: bool,
}

impl Sync {
    /// Judges the rollout of a workload, if it should have ended. What is found stands in its view; its Images act on it.
    pub(super) async fn watch_rollout(&self, workload: &Workload, targets: &BTreeMap<String, Target>) {
        let key = &workload.key;
        let tried = self.tried(workload, targets);
        let deadline = self.deadline(workload);
        let due = rollout::due(workload, deadline).filter(|_| !tried.is_empty());
        let now = self.now();
        if due.is_none_or(|due| due > now) {
            self.judged(workload, None, None);
            if let Some(due) = due {
                self.queue_at(Key::Workload(key.clone()), due);
            }
            return;
        }
        let next = self.judgements().get(key).and_then(|known| known.next).filter(|(_, of)| *of == workload.generation);
        if let Some((next, _)) = next.filter(|(next, _)| *next > Instant::now()) {
            return self.queue.add(Key::Workload(key.clone()), next);
        }
        let evidence = match rollout::evidence(&self.client, workload).await {
            Ok(evidence) => evidence,
            Err(error) => {
                tracing::warn!(workload = %key, namespace = key.namespace, %error, "cannot judge the rollout; trying again");
                return self.queue.add(Key::Workload(key.clone()), Instant::now() + FAILURE_PAUSE);
            }
        };
        match rollout::judge(workload, &evidence.current(), deadline, now) {
            Verdict::Fine(until) => {
                self.judged(workload, None, None);
                if let Some(until) = until {
                    self.queue_at(Key::Workload(key.clone()), until);
                }
            }
            Verdict::Untried { why } => self.judged(workload, None, Some(why)),
            Verdict::Failing { reason, containers } => match self.failing(workload, &tried, &evidence, &containers) {
                Ok(tags) => {
                    self.judged(workload, Some(Failing { reason, tags, generation: workload.generation }), None);
                }
                Err(why) => self.judged(workload, None, Some(format!("{reason}; {why}"))),
            },
        }
    }

    /// The longest that an Image of the workload allows.
    fn deadline(&self, workload: &Workload) -> Duration {
        let images = self.world.images_of(workload);
        let own = |image: &Image| Strategy::parse(&image.spec).ok().and_then(|strategy| strategy.deadline);
        let all = images.values().map(|image| own(image).unwrap_or(self.options.rollout_deadline));
        all.max().unwrap_or(self.options.rollout_deadline)
    }

    /// The containers that run a tag by a stamp of kimup's whose rollout has not ended.
    fn tried<'a>(&self, workload: &Workload, targets: &'a BTreeMap<String, Target>) -> BTreeMap<String, Tried<'a>> {
        let ended = has_ended(&self.views(), workload);
        let of = |container: &rollout::Container| {
            let target = targets.get(&container.name)?;
            let ours = workload.stamp_owners.get(&container.name)?.contains(FIELD_MANAGER);
            let stamp = workload.stamp(&container.name).filter(|stamp| ours && stamp.text == container.text)?;
            let tag = ran(&stamp, &container.text)?;
            if tag.is_in(&target.rejected) {
                return None; // on its way back
            }
            let key = ImageKey { namespace: workload.key.namespace.clone(), name: target.image.clone() };
            let Some(Cached::Read(image)) = self.world.image(&key) else {
                return None;
            };
            let status = status_of(&image);
            let (name, text) = (workload.key.to_string(), tag.to_string());
            let held = status.held.iter().any(|h| h.workload == name && h.container == container.name && h.tag == text);
            // Pods that fail after the end of their rollout are no rollout: it may be an outage.
            if ended && !self.soaks(&image, &status, &name) {
                return None;
            }
            let is_current = |of: &ImageStatus| of.rollout.as_ref().is_some_and(|r| r.tag == tag.tag);
            let settled = status.tag.as_ref() == Some(&tag.tag)
                && !is_current(&status)
                && !self.world.group_of(&image).iter().any(|other| is_current(&status_of(other)));
            if settled && !began_later(workload, &status, &tag) {
                return None; // for everybody
            }
            let back = status.rollout.as_ref().is_some_and(|r| r.back_from.is_some() && r.tag == tag.tag)
                || went_back(workload, image.metadata.uid.as_deref().unwrap_or_default(), &tag, &target.rejected);
            let behind = status
                .tag
                .as_ref()
                .is_some_and(|settled| target.order.compare(&tag.tag, settled) == Some(std::cmp::Ordering::Less));
            // Others run it well: it need not be the tag.
            let proven = settled && self.is_proven(&image, &tag, workload);
            Some((container.name.clone(), Tried { target, tag, kept: held || back || behind, proven }))
        };
        workload.containers.iter().filter_map(of).collect()
    }

    /// Whether the workload that an Image rolls first is to run well for a while yet.
    fn soaks(&self, image: &Image, status: &ImageStatus, workload: &str) -> bool {
        let soak = self.soak(image);
        let Some(rollout) = status.rollout.as_ref().filter(|_| !soak.is_zero()) else {
            return false;
        };
        let first: Vec<&str> = rollout.first.iter().flat_map(|first| first.split(", ")).collect();
        let ready_at: Option<Timestamp> = rollout.first_ready_at.as_ref().and_then(|at| at.parse().ok());
        let until = ready_at.and_then(|at| at.checked_add(soak).ok());
        // The time is taken back when its Pods fail: whether it had passed by then, those who followed tell.
        let soaks = || until.map_or_else(|| !self.is_followed(image, status, &first), |until| until > self.now());
        first.contains(&workload) && soaks()
    }

    /// Whether others than the first ones have begun to roll to what an Image rolls out. One that is held there has not
    /// followed.
    fn is_followed(&self, image: &Image, status: &ImageStatus, first: &[&str]) -> bool {
        let Some(wanted) = wanted(image, status) else {
            return false;
        };
        let runs = |user: &User, of: &ImageStatus| {
            let name = user.workload.key.to_string();
            let free = |container: &&String| {
                !of.held.iter().any(|held| held.holds() && held.workload == name && held.container == **container)
            };
            let mut stamped =
                user.containers.iter().filter(free).filter_map(|container| user.workload.stamped(container));
            !first.contains(&name.as_str()) && stamped.any(|tagged| tagged.is(&wanted))
        };
        let group = self.world.group_of(image);
        group.iter().any(|of| {
            let theirs = status_of(of);
            self.world.users_of(of).iter().any(|user| runs(user, &theirs))
        })
    }

    /// Which tags are to be rejected, or why none is.
    fn failing(
        &self,
        workload: &Workload,
        tried: &BTreeMap<String, Tried<'_>>,
        evidence: &Evidence,
        troubled: &BTreeSet<String>,
    ) -> Result<BTreeMap<String, Left>, String> {
        let text = |name: &str| workload.containers.iter().find(|c| c.name == name).map(|c| c.text.as_str());
        let of_rejected = |container: &str, stamp: &Stamp| {
            let tried = tried.get(container).zip(text(container));
            tried.is_some_and(|(tried, text)| {
                ran(stamp, text).is_some_and(|ran| ran == tried.tag || ran.is_in(&tried.target.rejected))
            })
        };
        let past = match rollout::before(&evidence.past, &evidence.pods, of_rejected) {
            Before::Revision(past) => past,
            Before::Unknown => {
                return Err(
                    "nothing is rolled back: no earlier revision of it is left (revisionHistoryLimit)".to_owned()
                );
            }
            Before::Changed => {
                return Err(
                    "nothing is rejected or rolled back: more than its tag has changed since the last revision \
                            that ran; fix the template, or undo it"
                        .to_owned(),
                );
            }
        };
        let (mut left, mut alone) = (BTreeMap::new(), BTreeMap::new());
        for (container, tried) in tried.iter().filter(|(_, tried)| !tried.kept) {
            let Some(before) =
                text(container).and_then(|text| self.ran_before(workload, tried, past, evidence, container, text))
            else {
                continue;
            };
            if before != tried.tag {
                let held = self.held_before(workload, tried, past, evidence, (container, &before));
                let (image, tag) = (tried.target.image.clone(), tried.tag.clone());
                let ways = text(container)
                    .filter(|_| tried.proven)
                    .map(|text| self.ways_alone(workload, tried, past, evidence, container, text));
                let of = if tried.proven { &mut alone } else { &mut left };
                of.insert(container.clone(), Left { image, tag, before, held, alone: ways.unwrap_or_default() });
            }
        }
        let left = to_blame(left, alone, troubled);
        if left.is_empty() {
            let to: Vec<String> = tried.values().map(|tried| tried.tag.to_string()).collect();
            return Err(format!(
                "nothing is rejected: {} runs well elsewhere, ran well before, or is where it went back to",
                to.join(", ")
            ));
        }
        Ok(left)
    }

    /// What a container ran in an earlier revision: by its stamp, by its record, as its Pods show, or its text.
    fn ran_before(
        &self,
        workload: &Workload,
        tried: &Tried<'_>,
        past: &Past,
        evidence: &Evidence,
        container: &str,
        text: &str,
    ) -> Option<Tagged> {
        if let Some(stamp) = past.stamps.get(container).filter(|stamp| stamp.text == text) {
            return ran(stamp, text);
        }
        let key = ImageKey { namespace: workload.key.namespace.clone(), name: tried.target.image.clone() };
        let status = match self.world.image(&key) {
            Some(Cached::Read(image)) => status_of(&image),
            _ => ImageStatus::default(),
        };
        let record = status.revisions.iter().find(|r| r.uid == past.owner && r.hash == past.hash);
        let record = record.and_then(|r| Stamp::parse(r.containers.get(container)?)).filter(|stamp| stamp.text == text);
        let pod = || evidence.pods.iter().find(|pod| pod.hash == past.hash)?.images.get(container).cloned();
        let run = record.map(|stamp| stamp.reference).or_else(pod).unwrap_or_else(|| text.to_owned());
        Reference::parse(&run).ok().map(|reference| Tagged::of(&reference))
    }

    /// Where a workload may go back to that fails alone, best first: what ran before, then what older revisions of the same
    /// template ran.
    fn ways_alone(
        &self,
        workload: &Workload,
        tried: &Tried<'_>,
        past: &Past,
        evidence: &Evidence,
        container: &str,
        text: &str,
    ) -> Vec<Tagged> {
        let usable = |r: &&Past| !r.current && r.number <= past.number && r.template == past.template;
        let mut revisions: Vec<&Past> = evidence.past.iter().filter(usable).collect();
        revisions.sort_by_key(|revision| std::cmp::Reverse(revision.number));
        let ran = revisions.into_iter().filter_map(|r| self.ran_before(workload, tried, r, evidence, container, text));
        let mut ways: Vec<Tagged> = Vec::new();
        for way in ran.filter(|way| *way != tried.tag && !way.is_in(&tried.target.rejected)) {
            if !ways.contains(&way) {
                ways.push(way);
            }
        }
        ways
    }

    /// What a workload had left that was held at `before`, behind the settled tag, until this tag was tried: the newest
    /// that an older revision of it ran.
    fn held_before(
        &self,
        workload: &Workload,
        tried: &Tried<'_>,
        past: &Past,
        evidence: &Evidence,
        (container, before): (&String, &Tagged),
    ) -> Option<String> {
        use std::cmp::Ordering::Greater;
        let order = &tried.target.order;
        let key = ImageKey { namespace: workload.key.namespace.clone(), name: tried.target.image.clone() };
        let Some(Cached::Read(image)) = self.world.image(&key) else {
            return None;
        };
        let settled = status_of(&image).tag?;
        if order.compare(&settled, &before.tag) != Some(Greater) {
            return None;
        }
        let earlier = evidence.past.iter().filter(|r| !r.current && r.number < past.number);
        let stamps = earlier.filter_map(|r| r.stamps.get(container)).filter_map(|stamp| ran(stamp, &stamp.text));
        let newer = stamps.filter(|left| {
            let lost = left.is_in(&tried.target.rejected) || *left == tried.tag;
            !lost && order.compare(&left.tag, &before.tag) == Some(Greater)
        });
        let newest = newer.max_by(|a, b| order.compare(&a.tag, &b.tag).unwrap_or(std::cmp::Ordering::Equal));
        newest.map(|left| left.tag)
    }

    /// Deletes the Pods of a StatefulSet that a rejected tag left behind and that are not ready: its controller waits for
    /// them before it makes others (<https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#forced-rollback>).
    pub(super) async fn unstick(&self, workload: &Workload, targets: &BTreeMap<String, Target>) {
        let key = &workload.key;
        let may = key.kind == Kind::StatefulSet && workload.observed && !workload.complete && !workload.paused;
        let freed = |known: &Judgement| known.freed == Some(workload.generation);
        if !may
            || targets.values().all(|target| target.left_behind().is_empty())
            || self.judgements().get(key).is_some_and(freed)
        {
            return;
        }
        let evidence = match rollout::evidence(&self.client, workload).await {
            Ok(evidence) => evidence,
            Err(error) => {
                tracing::warn!(workload = %key, namespace = key.namespace, %error, "cannot look for Pods in the way; trying again");
                return self.queue.add(Key::Workload(key.clone()), Instant::now() + FAILURE_PAUSE);
            }
        };
        let rejected = |revision: &Past| {
            let mut stamps = revision.stamps.iter();
            stamps.any(|(container, stamp)| {
                let target = targets.get(container);
                target.is_some_and(|t| ran(stamp, &stamp.text).is_some_and(|ran| ran.is_in(&t.left_behind())))
            })
        };
        let hashes: BTreeSet<&String> =
            evidence.past.iter().filter(|r| !r.current && rejected(r)).map(|r| &r.hash).collect();
        let left: Vec<_> = evidence.pods.iter().filter(|pod| hashes.contains(&pod.hash)).collect();
        let stuck = left.iter().filter(|pod| !pod.ready);
        for pod in stuck {
            if !self.leadership.is_leader() {
                return;
            }
            match rollout::delete_pod(&self.client, &key.namespace, pod).await {
                Ok(()) => {
                    self.metrics.kubernetes_write("Pod");
                    tracing::info!(workload = %key, namespace = key.namespace, pod = pod.name, "deleted a Pod of a rejected tag that is not ready");
                }
                Err(ApplyError::Conflict) => {}
                Err(error) => {
                    tracing::warn!(workload = %key, namespace = key.namespace, pod = pod.name, %error, "cannot delete the Pod of a rejected tag");
                }
            }
        }
        if left.is_empty() {
            self.judgements().entry(key.clone()).or_default().freed = Some(workload.generation);
        } else {
            self.queue.add(Key::Workload(key.clone()), Instant::now() + PAUSE);
        }
    }

    /// Remembers a judgement, and has the Images look if it is another one than before.
    fn judged(&self, workload: &Workload, failing: Option<Failing>, stopped: Option<String>) {
        let key = &workload.key;
        let pause = if failing.is_some() { PAUSE } else { STOPPED_PAUSE };
        let next = (failing.is_some() || stopped.is_some()).then(|| Instant::now() + pause);
        let mut judgements = self.judgements();
        if next.is_none() && !judgements.contains_key(key) {
            return;
        }
        let known = judgements.entry(key.clone()).or_default();
        let same = known.next.is_some_and(|(_, of)| of == workload.generation)
            && known.stopped.is_some() == stopped.is_some()
            && known.failing.is_some() == failing.is_some();
        let mut changed = !same && (known.next.is_some() || next.is_some());
        if !same {
            (known.failing, known.stopped) = (failing, stopped);
        } else if let (Some(known), Some(failing)) = (&mut known.failing, failing) {
            // The first words stay: counts in them would be written again and again. Where it can go back to does not.
            changed = known.tags != failing.tags;
            known.tags = failing.tags;
        }
        known.next = next.map(|next| (next, workload.generation));
        drop(judgements);
        if let Some(next) = next {
            self.queue.add(Key::Workload(key.clone()), next);
        }
        if changed {
            for name in self.world.images_of(workload).values().map(|image| image.name_any()) {
                self.queue.add_now(Key::Image(ImageKey { namespace: key.namespace.clone(), name }));
            }
        }
    }

    /// Why the rollouts of these workloads do not go on, if they do not: the workload, and the reason.
    pub(super) fn stopped<'a>(&self, workloads: impl Iterator<Item = &'a Workload>) -> Option<(String, String)> {
        let judgements = self.judgements();
        let mut stopped = workloads.filter_map(|w| Some((w.key.to_string(), judgements.get(&w.key)?.stopped.clone()?)));
        stopped.next()
    }

    /// What is to be rejected of an Image: the workload, its container, the tag and the reason.
    pub(super) fn failures(&self, image: &Image) -> Vec<(WorkloadKey, String, Left, String)> {
        let (name, judgements) = (image.name_any(), self.judgements());
        let mut found = Vec::new();
        for User { workload, .. } in self.world.users_of(image) {
            let judgement = judgements.get(&workload.key).and_then(|known| known.failing.as_ref());
            // Of another template by now: that is to be judged anew.
            let Some(failing) = judgement.filter(|failing| failing.generation == workload.generation) else {
                continue;
            };
            let tags = failing.tags.iter().filter(|(_, left)| left.image == name);
            found.extend(tags.map(|(c, left)| (workload.key.clone(), c.clone(), left.clone(), failing.reason.clone())));
        }
        found
    }

    /// Notes that a failing rollout cannot be rolled back.
    pub(super) fn cannot_go_back(&self, key: &WorkloadKey, why: &str) {
        let mut judgements = self.judgements();
        if let Some(known) = judgements.get_mut(key)
            && let Some(failing) = known.failing.take()
        {
            known.stopped = Some(format!("{}; {why}", failing.reason));
            known.next = Some((Instant::now() + STOPPED_PAUSE, failing.generation));
        }
    }
}

/// Which tags are to be left, of those that are to be rejected and those that a workload leaves alone: those of containers
/// in trouble, as far as that is known.
fn to_blame(
    mut rejected: BTreeMap<String, Left>,
    mut alone: BTreeMap<String, Left>,
    troubled: &BTreeSet<String>,
) -> BTreeMap<String, Left> {
    // One that there is nowhere to go back from.
    alone.retain(|_, left| !left.alone.is_empty());
    let in_trouble = |of: &BTreeMap<String, Left>| of.keys().any(|container| troubled.contains(container));
    if in_trouble(&rejected) {
        rejected.retain(|container, _| troubled.contains(container));
        return rejected;
    }
    if in_trouble(&alone) {
        alone.retain(|container, _| troubled.contains(container));
        return alone;
    }
    if rejected.is_empty() { alone } else { rejected }
}

/// What a stamp runs, if that is of the repository of `text`.
fn ran(stamp: &Stamp, text: &str) -> Option<Tagged> {
    let (own, run) = (Reference::parse(text).ok()?, Reference::parse(&stamp.reference).ok()?);
    (own.repository() == run.repository()).then(|| Tagged::of(&run))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_to_blame() {
        #[track_caller]
        fn check(rejected: &str, alone: &str, troubled: &str, expected: &str) {
            let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<BTreeSet<String>>();
            let left = |ways: Vec<Tagged>| {
                let (tag, before) = (Tagged::new("1.3.0", None), Tagged::new("1.2.0", None));
                Left { image: "img".to_owned(), tag, before, held: None, alone: ways }
            };
            let rejected = words(rejected).into_iter().map(|container| (container, left(Vec::new()))).collect();
            let ways = |container: &str| if container.ends_with('-') { Vec::new() } else { vec![Tagged::default()] };
            let alone = words(alone).into_iter().map(|container| (container.clone(), left(ways(&container)))).collect();
            let found = to_blame(rejected, alone, &words(troubled));
            let said: Vec<_> = found.keys().map(String::as_str).collect();
            assert_eq!(said.join(" "), expected, "{troubled}");
        }
        check("", "", "a", "");
        check("a b", "", "", "a b");
        check("a b", "", "a", "a");
        check("a b", "", "c", "a b");
        // Others run what `c` runs: that is left by this workload alone, if it is what fails.
        check("", "c", "", "c");
        check("", "c", "c", "c");
        check("", "c d", "d", "d");
        check("a", "c", "c", "c");
        check("a", "c", "a", "a");
        check("a", "c", "a c", "a");
        check("a", "c", "", "a");
        // There is nowhere to go back to.
        check("", "c-", "c-", "");
        check("a", "c-", "c-", "a");
    }
}
