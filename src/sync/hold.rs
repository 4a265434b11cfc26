//! What people decide about single workloads: the annotation `hold`, resuming, and rollbacks that are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::annotations::{ACTION, HOLD, RESUME};
use crate::api::{self, AfterRollback, Held, HeldBy, Image, ImageStatus, Tagged};
use crate::notify::{Audit, KIMUP, Reason};
use crate::policy::Reference;
use crate::registry::{ManifestRequest, RegistryError};
use crate::rollout::{
    self, ApplyError, FIELD_MANAGER, FactsError, Hold, Holding, Plan, Stay, TIMES, Target, WITHIN, Workload,
    WorkloadKey,
};

use super::engine::{Key, Sync};
use super::observe;
use super::report;
use super::request;
use super::status::{Failure, Holds};
use super::workload::reference;
use super::world::{Cached, ImageKey, User, status_of};
use super::write::{self, WriteError};

/// How long it counts that a registry does not have a tag: it may be pushed.
const ABSENT: Duration = Duration::from_secs(60);

/// How the record of a hold begins whose tag was rejected, and how it goes on behind that.
const WAS_HELD: &str = "it was held at ";
const IS_REJECTED: &str = ", which is rejected, and went back further";

/// What registries said of the tag of the annotation `hold`. Losing it costs one request for each Image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Asked {
    tag: String,
    /// By Image: the digest that the tag has there, or none; and when that was asked.
    answers: BTreeMap<String, (Option<String>, Instant)>,
}

/// What is known of a tag without asking.
enum Known {
    /// The registry has it, with this digest.
    There(String),
    /// It did not have it a moment ago.
    Absent,
    Unasked,
}

impl Sync {
    /// Says where the annotation `hold` keeps each container: at its tag those whose Image's registry has it; if none has,
    /// all of them stay where they are.
    pub(super) async fn stay(&self, workload: &Workload, targets: &mut BTreeMap<String, Target>) {
        let Some(text) = workload.annotations.get(HOLD).map(|text| text.trim()) else {
            return;
        };
        let tag = Tagged::parse(text);
        let mut asks = false;
        for (container, target) in &mut *targets {
            target.holding.stay = match &tag {
                None => None,
                Some(tag) => match self.has(workload, container, target, tag).await {
                    Ok(found) => found.map(Stay::At),
                    Err(failure) => {
                        let (workload, cause) = (&workload.key, failure.message);
                        tracing::warn!(%workload, cause, "cannot ask for the tag of the annotation hold; trying again");
                        asks = true;
                        Some(Stay::Asks)
                    }
                },
            };
        }
        if !asks && targets.values().all(|target| target.holding.stay.is_none()) {
            self.queue.add(Key::Workload(workload.key.clone()), Instant::now() + ABSENT);
            for target in targets.values_mut() {
                target.holding.stay = Some(Stay::Here(text.to_owned()));
            }
        }
    }

    /// The tag, as the container would run it, if the registry has it. One that is stamped already is not asked for.
    async fn has(
        &self,
        workload: &Workload,
        container: &str,
        target: &Target,
        tag: &Tagged,
    ) -> Result<Option<Tagged>, Failure> {
        let text = workload.containers.iter().find(|c| c.name == container).map(|c| c.text.as_str());
        let stamp = workload.stamp(container).filter(|stamp| Some(stamp.text.as_str()) == text);
        let stamped = stamp.and_then(|s| Some((Reference::parse(&s.text).ok()?, Reference::parse(&s.reference).ok()?)));
        if let Some((_, runs)) = stamped.filter(|(text, runs)| text.repository() == runs.repository()) {
            let runs = Tagged::of(&runs);
            if runs.is(tag) {
                return Ok(Some(runs));
            }
        }
        let key = ImageKey { namespace: workload.key.namespace.clone(), name: target.image.clone() };
        let Some(Cached::Read(image)) = self.world.image(&key) else {
            return Ok(None);
        };
        let digest = match self.known_answer(workload, &target.image, tag) {
            Known::There(digest) => Some(digest),
            Known::Absent => None,
            Known::Unasked => {
                let digest = self.digest_of(&image, tag).await?;
                self.keep_answer(workload, &target.image, tag, digest.clone());
                digest
            }
        };
        let pinned = tag.digest.clone().or_else(|| digest.clone().filter(|_| api::pins_digest(&image.spec)));
        Ok(digest.map(|_| Tagged { tag: tag.tag.clone(), digest: pinned }))
    }

    fn known_answer(&self, workload: &Workload, image: &str, tag: &Tagged) -> Known {
        let views = self.views();
        let view = views.get(&workload.key).filter(|view| view.uid == workload.uid);
        let asked = view.and_then(|view| view.asked.as_ref()).filter(|asked| asked.tag == tag.to_string());
        match asked.and_then(|asked| asked.answers.get(image)) {
            Some((Some(digest), _)) => Known::There(digest.clone()),
            Some((None, at)) if at.elapsed() < ABSENT => Known::Absent,
            _ => Known::Unasked,
        }
    }

    fn keep_answer(&self, workload: &Workload, image: &str, tag: &Tagged, digest: Option<String>) {
        let mut views = self.views();
        let view = views.entry(workload.key.clone()).or_default();
        let tag = tag.to_string();
        let asked = view.asked.take().filter(|asked| asked.tag == tag);
        let mut asked = asked.unwrap_or_else(|| Asked { tag, answers: BTreeMap::new() });
        asked.answers.insert(image.to_owned(), (digest, Instant::now()));
        view.asked = Some(asked);
    }

    /// The digest of a tag in an Image's registry; none if it does not have it.
    async fn digest_of(&self, image: &Image, tag: &Tagged) -> Result<Option<String>, Failure> {
        let spec = match api::compile(&image.spec, Timestamp::now()) {
            Ok(spec) => spec,
            Err(error) => {
                let (result, reason, message) = (error.result(), error.reason(), error.to_string());
                return Err(Failure { result, reason, message, stalled: true });
            }
        };
        let asked = observe::request(&self.client, image, &spec, self.world.access_of(image).as_ref()).await?;
        let request = ManifestRequest {
            repository: asked.request.repository.clone(),
            tag: tag.digest.clone().unwrap_or_else(|| tag.tag.clone()),
            keyring: asked.request.keyring.clone(),
            insecure_skip_tls_verify: asked.request.insecure_skip_tls_verify,
        };
        match Box::pin(self.registry.digest(&request)).await {
            Ok(digest) => Ok(Some(digest.to_string())),
            Err(RegistryError::NoManifest { .. }) => Ok(None),
            Err(error) => Err(observe::manifest_failure(&request.repository, &request.tag, &error)),
        }
    }

    /// The plan; if somebody takes kimup's stamps away over and over, that of leaving the workload alone.
    pub(super) async fn plan_without_fights(
        &self,
        workload: &Arc<Workload>,
        targets: &mut BTreeMap<String, Target>,
    ) -> Result<Plan, FactsError> {
        let plan = self.plan(workload, targets).await?;
        let fights = {
            let mut views = self.views();
            let view = views.entry(workload.key.clone()).or_default();
            if view.uid != workload.uid {
                view.stamps = rollout::Stamps::default();
            }
            let over = |held: &Held| held.by == HeldBy::Fight && !held.holds();
            if targets.values().any(|t| t.holding.resume || t.holding.record.as_ref().is_some_and(over)) {
                view.stamps.forgive();
            }
            view.stamps.see(workload, &plan, self.now())
        };
        if !fights {
            return Ok(plan);
        }
        let manager = workload.changed_by.clone().unwrap_or_else(|| "another client".to_owned());
        for target in targets.values_mut() {
            target.holding.stay = Some(Stay::Fight(manager.clone()));
        }
        self.plan(workload, targets).await
    }

    /// Makes a stamp that a person put back kimup's own, now that the hold is on record. No Pod is replaced.
    pub(super) async fn adopt(&self, workload: &Workload, plan: &Plan) -> Option<String> {
        if !self.leadership.is_leader() {
            return None;
        }
        match rollout::adopt(&self.client, workload, plan).await {
            Ok(adopted) => {
                self.wrote(workload, adopted);
                None
            }
            Err(error) => self.not_written(workload, error).await,
        }
    }

    fn wrote(&self, workload: &Workload, written: Option<Workload>) {
        self.metrics.kubernetes_write(workload.key.kind.as_str());
        if let Some(written) = written {
            self.world.put_workload(written);
        }
        self.queue.add_now(Key::Workload(workload.key.clone()));
    }

    /// Removes `action: resume` and `hold` from a workload once every hold of it is released on record.
    pub(super) async fn finish_resume(&self, workload: &Workload, targets: &BTreeMap<String, Target>, plan: &Plan) {
        let asked = targets.values().any(|target| target.holding.resume);
        if !asked || !self.leadership.is_leader() {
            return;
        }
        if plan.blocked.is_none() && self.is_released(&workload.key, targets, plan) {
            self.remove_requests(workload).await;
        }
    }

    fn is_released(&self, key: &WorkloadKey, targets: &BTreeMap<String, Target>, plan: &Plan) -> bool {
        let name = key.to_string();
        targets.iter().all(|(container, target)| {
            let image = ImageKey { namespace: key.namespace.clone(), name: target.image.clone() };
            let Some(Cached::Read(image)) = self.world.image(&image) else {
                return true;
            };
            let status = status_of(&image);
            let record = status.held.iter().find(|h| h.workload == name && h.container == *container);
            let released = plan.released.iter().any(|hold| hold.container == *container);
            match record {
                Some(record) => !record.holds() || record.by == HeldBy::Paused,
                None => !released,
            }
        })
    }

    async fn remove_requests(&self, workload: &Workload) {
        match rollout::remove_requests(&self.client, workload).await {
            Ok(written) => self.wrote(workload, written),
            Err(ApplyError::Refused(cause)) => {
                _ = self.not_written(workload, ApplyError::Refused(cause)).await;
            }
            Err(error) => _ = self.not_written(workload, error).await,
        }
    }

    /// Ends what `action: resume` on an Image cannot end in its status, the annotations of workloads; then removes it.
    pub(super) async fn resume(&self, key: &ImageKey, image: &Image, status: &ImageStatus) -> Result<(), WriteError> {
        let by_annotation = status.held.iter().filter(|hold| hold.holds() && hold.by == HeldBy::Annotation);
        let names: BTreeSet<&str> = by_annotation.map(|hold| hold.workload.as_str()).collect();
        for User { workload, .. } in self.world.users_of(image) {
            if !names.contains(workload.key.to_string().as_str()) || !workload.annotations.contains_key(HOLD) {
                continue;
            }
            if !self.leadership.is_leader() {
                return Err(WriteError::NotLeader);
            }
            match rollout::remove_requests(&self.client, &workload).await {
                Ok(written) => self.wrote(&workload, written),
                Err(ApplyError::Conflict) => return Err(WriteError::Conflict),
                Err(ApplyError::Refused(cause) | ApplyError::Unknown(cause)) => return Err(WriteError::Failed(cause)),
            }
        }
        write::remove_action(self, key, image).await
    }

    /// Says which holds began and which were ended, and has their workloads looked at again: what is on record counts.
    pub(super) async fn report_holds(&self, key: &ImageKey, image: &Image, holds: &Holds) {
        for hold in &holds.began {
            let reason = match hold.by {
                HeldBy::Manifest => Reason::HeldByManifest,
                HeldBy::Fight => Reason::StampFight,
                HeldBy::Undo | HeldBy::Annotation | HeldBy::Paused | HeldBy::RolloutFailed => Reason::Held,
            };
            let note = format!("stays at {} since {}: {}", hold.tag, hold.since, hold.why);
            self.report_hold(key, image, hold, reason, &note).await;
        }
        for hold in &holds.ended {
            let note = format!("is no longer held at {} (since {}, {})", hold.tag, hold.since, what(hold.by));
            self.report_hold(key, image, hold, Reason::Resumed, &note).await;
        }
    }

    async fn report_hold(&self, key: &ImageKey, image: &Image, hold: &Held, reason: Reason, note: &str) {
        self.events.say(&report::reference(image), reason, &format!("{} {note}", hold.workload)).await;
        let name = format!("Image {key}");
        let workloads = self.world.workloads(Some(&key.namespace));
        let workload = workloads.iter().find(|w| w.key.to_string() == hold.workload);
        if let Some(workload) = workload {
            let note = format!("container {} {note} ({name})", hold.container);
            self.events.say(&reference(workload), reason, &note).await;
            self.queue.add_now(Key::Workload(workload.key.clone()));
        }
        let resumed = reason == Reason::Resumed;
        let what = if resumed { "resume" } else { "hold" };
        let (from, to) = if resumed { (&hold.tag, &hold.left) } else { (&hold.left, &hold.tag) };
        let of_image = resumed && image.annotations().get(ACTION).is_some_and(|action| action == RESUME);
        let manager = || workload.and_then(|workload| manager(workload, hold, resumed));
        let by = if of_image {
            Some(request::who(image, ACTION))
        } else if !resumed && held_before(hold).is_some() {
            Some(KIMUP.to_owned())
        } else {
            manager()
        };
        let by = by.unwrap_or_else(|| "unknown".to_owned());
        let (workload, by) = (&hold.workload, by.as_str());
        Audit { image: &name, workload, what, from, to, digest: "", rule: "", rollout: "", by }.log();
    }
}

/// The field manager that made a hold or ended it, as far as the workload tells. An undo that takes a stamp away leaves no
/// trace.
fn manager(workload: &Workload, hold: &Held, resumed: bool) -> Option<String> {
    let manager = if hold.by == HeldBy::Undo && !resumed {
        let owners = workload.stamp_owners.get(&hold.container)?;
        owners.iter().find(|owner| *owner != FIELD_MANAGER)
    } else {
        workload.changed_by.as_ref()
    };
    manager.map(|manager| format!("field manager {manager}"))
}

/// What the annotation `hold` says that cannot be done.
pub(super) fn unknown(targets: &BTreeMap<String, Target>) -> Option<String> {
    let here = targets.values().find_map(|target| match &target.holding.stay {
        Some(Stay::Here(tag)) => Some(tag),
        _ => None,
    })?;
    Some(format!("the annotation {HOLD}: {here:?} is no tag that the registry has; the workload stays where it is"))
}

/// What holds, in a few words.
const fn what(by: HeldBy) -> &'static str {
    match by {
        HeldBy::Undo => "an older revision was put back",
        HeldBy::Manifest => "its manifest names an older tag than it ran",
        HeldBy::Annotation => "annotation hold",
        HeldBy::Paused => "it is paused",
        HeldBy::Fight => "its stamp was taken away over and over",
        HeldBy::RolloutFailed => "its rollout failed",
    }
}

/// A hold with the rejected tag where it was before, as its record has that.
pub(super) fn went_on(hold: &Hold, holding: Option<&Holding>) -> Hold {
    let record = holding.and_then(Holding::in_force);
    let same = record.filter(|record| record.tag == hold.tag && record.by == hold.by);
    let before = same.and_then(|record| held_before(record)).map(str::to_owned);
    Hold { what: hold.what.clone().or(before), ..hold.clone() }
}

/// The rejected tag where it was held before, if its record says so: kimup sent it further back then, no person.
fn held_before(held: &Held) -> Option<&str> {
    let tag = held.why.strip_prefix(WAS_HELD)?.split_once(IS_REJECTED)?.0;
    Some(tag).filter(|_| held.by.is_behind())
}

/// A workload, as `kubectl` takes it.
fn object(key: &WorkloadKey) -> String {
    format!("{}/{} -n {}", key.kind.as_str().to_lowercase(), key.name, key.namespace)
}

/// What a person types to end a hold of a workload.
pub(super) fn resume_command(key: &WorkloadKey) -> String {
    format!("kubectl annotate {} {ACTION}={RESUME}", object(key))
}

/// A hold as the status has it, in words that say what releases it. `rejected`: its tag is.
pub(super) fn on_record(key: &WorkloadKey, hold: &Hold, after: AfterRollback, rejected: bool) -> Held {
    let (object, resume) = (object(key), resume_command(key));
    let (by, left) = (what(hold.by), &hold.left);
    let why = match (hold.by, &hold.what, after) {
        (by, Some(rejected), AfterRollback::Next) if by.is_behind() => {
            format!("{WAS_HELD}{rejected}{IS_REJECTED}; a newer tag than {left} ends this, or: {resume}")
        }
        (by, Some(rejected), AfterRollback::Hold) if by.is_behind() => {
            format!("{WAS_HELD}{rejected}{IS_REJECTED}; it left {left}, and only a person ends this: {resume}")
        }
        (HeldBy::Undo | HeldBy::Manifest, _, AfterRollback::Next) => {
            format!("{by}; a newer tag than {left} ends this, or: {resume}")
        }
        (HeldBy::Undo | HeldBy::Manifest, _, AfterRollback::Hold) => {
            format!("{by}; it left {left}, and only a person ends this: {resume}")
        }
        (HeldBy::Annotation, None, _) if rejected => {
            format!("{by}; {} is rejected, and stays as it is named here: remove or change it, or: {resume}", hold.tag)
        }
        (HeldBy::Annotation, None, _) => format!("{by}; remove or change it, or: {resume}"),
        (HeldBy::Annotation, Some(tag), _) => {
            format!(
                "the annotation hold names {tag:?}, which the registry does not have; correct or remove it, or: {resume}"
            )
        }
        (HeldBy::Paused, ..) => format!("{by}; kubectl rollout resume {object} ends this"),
        (HeldBy::Fight, Some(who), _) => fight(who, &resume),
        // On record already: it has said who.
        (HeldBy::Fight, None, _) | (HeldBy::RolloutFailed, ..) => String::new(),
    };
    Held {
        workload: key.to_string(),
        container: hold.container.clone(),
        tag: hold.tag.clone(),
        left: hold.left.clone(),
        by: hold.by,
        why,
        ..Held::default()
    }
}

fn fight(who: &str, resume: &str) -> String {
    let minutes = WITHIN.as_secs() / 60;
    format!(
        "{who} took kimup's stamp away {TIMES} times within {minutes} minutes; have it leave the stamp alone, then: {resume}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rollout::{Holding, Kind};

    /// What a hold says, and what it says while it is on record as that.
    #[test]
    fn a_hold_that_went_further_back_says_so_for_as_long_as_it_lasts() {
        #[track_caller]
        fn check(by: HeldBy, what: Option<&str>, after: AfterRollback, expected: &str) {
            let key = WorkloadKey { kind: Kind::Deployment, namespace: "shop".to_owned(), name: "web".to_owned() };
            let container = "app".to_owned();
            let (tag, left, what) = ("1.0.0".to_owned(), "1.2.0".to_owned(), what.map(str::to_owned));
            let hold = Hold { image: "img".to_owned(), container, tag, left, by, what };
            let said = on_record(&key, &hold, after, false);
            assert_eq!(said.why, format!("{expected}kubectl annotate deployment/web -n shop {ACTION}={RESUME}"));
            assert_eq!(held_before(&said), hold.what.as_deref());
            // Planned anew, nothing says from where it came but the record.
            let later = Hold { what: None, ..hold.clone() };
            let went_on = |record: Held| went_on(&later, Some(&Holding { record: Some(record), ..Holding::default() }));
            assert_eq!(went_on(said.clone()), hold);
            assert_eq!(went_on(Held { tag: "1.0.5".to_owned(), ..said.clone() }), later);
            assert_eq!(went_on(Held { released: Some("then".to_owned()), ..said }), later);
        }
        use HeldBy::{Manifest, RolloutFailed, Undo};
        for by in [Undo, Manifest, RolloutFailed] {
            let at = "it was held at 1.1.0, which is rejected, and went back further; ";
            check(by, Some("1.1.0"), AfterRollback::Next, &format!("{at}a newer tag than 1.2.0 ends this, or: "));
            let person = format!("{at}it left 1.2.0, and only a person ends this: ");
            check(by, Some("1.1.0"), AfterRollback::Hold, &person);
        }
        check(
            Undo,
            None,
            AfterRollback::Next,
            "an older revision was put back; a newer tag than 1.2.0 ends this, or: ",
        );
    }
}
