//! Sequences of what people, tools and registries do to one workload, against a small model of what it must run.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use proptest::prelude::*;
use serde_json::json;

use crate::api::annotations::{ACTION, RESUME, STAMP_PREFIX, Stamp, stamp_key};
use crate::api::{HistoryEntry, Image, ImageStatus, Rejected, Tagged};
use crate::policy::Reference;
use crate::rollout::{self, FIELD_MANAGER, Facts, Holding, Plan, PodImages, Revision, Workload};

use super::hold::{on_record, went_on};
use super::status::{Progress, Subject, after_progress, tests};
use super::target::{further, target};

const TEXT: &str = "app:1.0.0";

/// What may happen. Each but the last is followed by some steps of kimup, not always until there is nothing left to do.
#[derive(Clone, Copy, Debug)]
enum Event {
    /// `kubectl rollout undo` to one of the revisions; looked at before and after, before anything else happens.
    Undo(usize),
    /// A GitOps tool takes over what `kubectl` owns, and applies the manifest.
    GitOps,
    /// `kubectl replace`
    Replace,
    /// `kubectl apply` of a template with `annotations: null`
    Null,
    /// A newer tag has settled elsewhere.
    Newer,
    /// `action: resume`
    Resume,
    /// The tag at which it is held is rejected.
    Reject,
}

/// A revision: the stamp of its template, its rollout label, what its Pods run, and when it was made.
#[derive(Clone, Debug)]
struct Made {
    stamp: Option<Stamp>,
    label: Option<String>,
    runs: String,
    created: i64,
}

struct World {
    workload: Workload,
    image: Image,
    revisions: Vec<Made>,
    current: usize,
    clock: i64,
    /// What it must run when kimup has nothing left to do: the tag of the hold, or the Image's.
    held: Option<String>,
}

impl World {
    fn new() -> Self {
        let image = json!({"apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
            "metadata": {"name": "web", "namespace": "shop", "uid": "i"},
            "spec": {"image": "app", "triggers": [{"type": "webhook"}],
                "rules": [{"name": "minor", "type": "minor", "actions": [{"type": "apply"}]}]},
            "status": {"tag": "1.1.0", "history": [{"tag": "1.1.0", "outcome": "Settled"}]}});
        let object = json!({"metadata": {"name": "web", "namespace": "shop", "uid": "u", "resourceVersion": "7", "generation": 1},
            "spec": {"replicas": 1, "selector": {}, "template": {"spec": {"containers": [{"name": "app", "image": TEXT}]}}},
            "status": {"observedGeneration": 1, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1}});
        let object: Deployment = serde_json::from_value(object).unwrap();
        let first = Made { stamp: None, label: None, runs: "1.1.0".to_owned(), created: 0 };
        Self {
            workload: Workload::from_deployment(&object).unwrap(),
            image: serde_json::from_value(image).unwrap(),
            revisions: vec![first],
            current: 0,
            clock: 0,
            held: None,
        }
    }

    fn status(&mut self) -> &mut ImageStatus {
        self.image.status.get_or_insert_default()
    }

    fn wanted(&self) -> String {
        self.held.clone().or_else(|| self.image.status.as_ref()?.tag.clone()).unwrap()
    }

    fn rejections(&self) -> Vec<Rejected> {
        self.image.status.as_ref().map(|status| status.rejected.clone()).unwrap_or_default()
    }

    fn is_rejected(&self, tag: &str) -> bool {
        self.rejections().iter().any(|rejected| rejected.tag == tag)
    }

    fn runs(&self) -> &str {
        &self.revisions[self.current].runs
    }

    /// Gives the workload a template; its controller makes the revision, or takes the one that there is, and the Pods get
    /// what admission says: the stamp, what the revision's first Pods got, else the settled tag.
    fn template(&mut self, stamp: Option<Stamp>, label: Option<String>, owners: &[&str]) {
        self.clock += 1;
        self.workload.template_annotations.retain(|key, _| !key.starts_with(STAMP_PREFIX));
        self.workload.stamp_owners.clear();
        if let Some(stamp) = &stamp {
            self.workload.template_annotations.insert(stamp_key("app"), stamp.to_string());
            let owners: BTreeSet<String> = owners.iter().map(|&owner| owner.to_owned()).collect();
            self.workload.stamp_owners.insert("app".to_owned(), owners);
        }
        self.workload.rollout.clone_from(&label);
        let known = self.revisions.iter().position(|made| made.stamp == stamp && made.label == label);
        self.current = known.unwrap_or_else(|| {
            let stamped =
                stamp.as_ref().map(|stamp| Reference::parse(&stamp.reference).unwrap().tag().unwrap().to_owned());
            let runs = stamped.or_else(|| self.image.status.as_ref()?.tag.clone()).unwrap();
            self.revisions.push(Made { stamp, label, runs, created: self.clock });
            self.revisions.len() - 1
        });
        // Without a stamp no Pod is given what was rejected since, but what is on record, or the settled tag.
        let Made { stamp, runs, .. } = &self.revisions[self.current];
        if stamp.is_none() && self.is_rejected(runs) {
            let status = self.image.status.as_ref().unwrap();
            let held = status.held.first().filter(|held| held.holds() && !self.is_rejected(&held.tag));
            let runs = held.map(|held| held.tag.clone()).or_else(|| status.tag.clone()).unwrap();
            self.revisions[self.current].runs = runs;
        }
    }

    fn happens(&mut self, event: Event) {
        let ours = self.workload.owns_stamp("app");
        match event {
            Event::Undo(to) => {
                // What it has not run yet nobody can have left.
                self.settle();
                let to = to % self.revisions.len();
                let Made { stamp, label, runs, .. } = self.revisions[to].clone();
                // Nobody can tell going back to one that lost its stamp from losing it.
                if to != self.current && stamp.is_some() == label.is_some() {
                    self.template(stamp, label, &["kubectl-rollout"]);
                    let newest = self.image.status.as_ref().and_then(|s| s.tag.clone()).unwrap();
                    // What ran without a stamp of its own nobody can tell afterwards.
                    let left = self.revisions.iter().any(|m| m.stamp.is_some() && number(&m.runs) >= number(&newest));
                    // One that was rejected is no place to be put back to.
                    if !self.is_rejected(&runs) {
                        self.held = Some(runs).filter(|runs| left && number(runs) < number(&newest));
                    }
                    self.settle();
                }
            }
            Event::GitOps if ours => {
                self.workload.stamp_owners.insert("app".to_owned(), BTreeSet::from([FIELD_MANAGER.to_owned()]));
            }
            // The stamp and the label that an undo wrote.
            Event::GitOps if self.workload.stamp("app").is_some() => self.template(None, None, &[]),
            Event::GitOps => {}
            Event::Replace => {
                self.workload.marked = false;
                self.template(None, None, &[]);
            }
            Event::Null => {
                let label = self.workload.rollout.clone();
                // A template that there was before brings its revision back, which nobody can tell from an undo.
                if !self.revisions.iter().any(|made| made.stamp.is_none() && made.label == label) {
                    self.template(None, label, &[]);
                }
            }
            Event::Newer => {
                let newer = number(self.status().tag.as_ref().unwrap()) + 1;
                let tag = format!("1.{newer}.0");
                let settled = HistoryEntry { tag: tag.clone(), outcome: "Settled".to_owned(), ..Default::default() };
                self.status().history.insert(0, settled);
                self.status().tag = Some(tag);
                self.held = None;
            }
            Event::Resume => {
                self.workload.annotations.insert(ACTION.to_owned(), RESUME.to_owned());
                self.held = None;
            }
            Event::Reject => {
                self.settle();
                let Some(tag) = self.held.take() else { return };
                self.status().rejected.push(Rejected { tag: tag.clone(), ..Rejected::default() });
                let older = (1..number(&tag)).rev().map(|number| format!("1.{number}.0"));
                self.held = older.into_iter().find(|tag| !self.is_rejected(tag));
            }
        }
    }

    fn facts(&self) -> Facts {
        let revision = |(index, made): (usize, &Made)| Revision {
            hash: index.to_string(),
            current: index == self.current,
            stamps: made.stamp.iter().map(|stamp| ("app".to_owned(), stamp.clone())).collect(),
            created: Some(Timestamp::from_second(made.created).unwrap()),
        };
        let images = BTreeMap::from([("app".to_owned(), format!("app:{}", self.runs()))]);
        Facts {
            revisions: self.revisions.iter().enumerate().map(revision).collect(),
            pods: vec![PodImages { hash: self.current.to_string(), images }],
        }
    }

    /// One look of kimup at the workload, and what the Image then says of it. True if there was something to do.
    fn step(&mut self) -> bool {
        let rejections = self.rejections();
        let mut target = target(&self.image, &self.workload, "app", &rejections).unwrap();
        target.holding.further = further(&self.image, &target, TEXT, &rejections).into_iter().next();
        let holding = target.holding.clone();
        let plan = rollout::plan(&self.workload, &BTreeMap::from([("app".to_owned(), target)]), Some(&self.facts()));
        assert_eq!(plan.blocked, None);
        let mut busy = !plan.adopts.is_empty() || !plan.changes.is_empty();
        if !plan.adopts.is_empty() {
            self.workload.marked = true;
            self.workload.stamp_owners.get_mut("app").unwrap().insert(FIELD_MANAGER.to_owned());
        } else if let Some(change) = plan.changes.first() {
            let stamp = Stamp::parse(&plan.stamps["app"]).unwrap();
            let to = Reference::parse(&stamp.reference).unwrap().tag().map(number).unwrap();
            assert!(to >= number(self.runs()) || change.back.is_some(), "backwards by itself: {change:?}");
            self.workload.marked = true;
            self.template(Some(stamp), Some(change.rollout.clone()), &[FIELD_MANAGER]);
        }
        let before = self.status().held.clone();
        self.report(&plan, &holding);
        busy |= self.status().held != before;
        let released = plan.released.is_empty() || self.status().held.iter().all(|held| !held.holds());
        if self.workload.annotations.contains_key(ACTION) && released && plan.adopts.is_empty() {
            self.workload.annotations.remove(ACTION);
            busy = true;
        }
        busy
    }

    fn report(&mut self, plan: &Plan, holding: &Holding) {
        let key = self.workload.key.clone();
        let words = |holds: &[rollout::Hold]| {
            let went_on = holds.iter().map(|hold| went_on(hold, Some(holding)));
            went_on.map(|hold| on_record(&key, &hold, crate::api::AfterRollback::Next, false)).collect()
        };
        let waiting = plan.changes.first().map(|_| key.to_string()).into_iter().collect();
        let rejected = Rejected::tags(&self.rejections());
        let (held, released) = (words(&plan.holds), words(&plan.released));
        let progress = Progress { total: 1, held, released, undecided: waiting, rejected, ..Progress::default() };
        let now = Timestamp::from_second(self.clock).unwrap();
        let subject = Subject { uid: "i", now, ..tests::subject(0, true) };
        after_progress(self.status(), &subject, &progress);
    }

    fn settle(&mut self) {
        let steps = (0..20).take_while(|_| self.step()).count();
        assert!(steps < 20, "it never ends: {:?}", self.status());
        let wanted = self.wanted();
        assert_eq!(self.runs(), wanted, "{:?}", self.image.status);
        let held: Vec<String> = self.status().held.iter().map(|held| held.tag.clone()).collect();
        assert_eq!(held, self.held.clone().into_iter().collect::<Vec<_>>());
    }
}

fn number(tag: &str) -> u32 {
    Tagged::new(tag, None).tag.split('.').nth(1).unwrap().parse().unwrap()
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (0..8_usize).prop_map(Event::Undo),
        2 => Just(Event::GitOps),
        1 => Just(Event::Replace),
        1 => Just(Event::Null),
        2 => Just(Event::Newer),
        1 => Just(Event::Resume),
        2 => Just(Event::Reject),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, failure_persistence: None, ..ProptestConfig::default() })]
    /// A held workload never moves but by a newer tag or a person, and nothing goes backwards but where a person sent it,
    /// with kimup starting anew between any two steps: a step remembers nothing.
    #[test]
    fn what_people_decide_stays(events in prop::collection::vec((event(), 0..4_usize), 0..14)) {
        let mut world = World::new();
        world.settle();
        for (event, steps) in events {
            world.happens(event);
            for _ in 0..steps {
                world.step();
            }
        }
        world.settle();
    }
}

/// A person resumes what was to be held further back, before it has got there.
#[test]
fn who_is_resumed_on_the_way_back_follows() {
    let mut world = World::new();
    world.settle();
    for event in [Event::Newer, Event::Undo(0), Event::Newer, Event::Undo(1), Event::Reject] {
        world.happens(event);
    }
    world.step();
    let held = world.status().held[0].tag.clone();
    assert_eq!((world.runs(), &*held), ("1.2.0", "1.1.0"));
    world.happens(Event::Resume);
    world.settle();
    assert_eq!(world.runs(), "1.3.0");
}
