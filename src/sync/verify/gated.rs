//! What holds whatever gates open and close, tags come and go, and registries fail.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::json;

use super::tests::{closed, fake, stage};
use super::*;

const MIN_AGE: i64 = 60;

/// What happens before a sync.
#[derive(Clone, Debug)]
struct Step {
    minutes: i64,
    pushed: Option<u32>,
    removed: Option<u32>,
    closed: bool,
    down: bool,
}

fn step() -> impl Strategy<Value = Step> {
    let tag = || prop::option::of(0..12_u32);
    (0..MIN_AGE, tag(), prop::option::weighted(0.2, 0..12_u32), any::<bool>(), prop::bool::weighted(0.2))
        .prop_map(|(minutes, pushed, removed, closed, down)| Step { minutes, pushed, removed, closed, down })
}

/// One Image, from sync to sync.
#[derive(Default)]
struct Life {
    minute: i64,
    settled: Option<String>,
    gate: Gate,
    listed: BTreeSet<u32>,
    /// When each tag was pushed; again only if a sync found it gone meanwhile.
    pushed: BTreeMap<u32, i64>,
}

impl Life {
    /// A sync of an Image that runs at once what is chosen. None: it failed.
    fn sync(&self, tags: &[String], down: bool) -> Option<(Outcome, Vec<Seen>)> {
        let spec = stage("semver", &json!({}), None, None).spec;
        let image = ImageKey { namespace: "shop".to_owned(), name: "web".to_owned() };
        let tags: Vec<&str> = tags.iter().map(String::as_str).collect();
        let known = Known { settled: self.settled.as_deref(), ..Known::default() };
        let (digest, gate) = (self.settled.as_ref().map(|_| "sha256:0".to_owned()), self.gate.clone());
        let given = Given { image: &image, spec: &spec, known, digest, tags: &tags, gate };
        let mut registry = fake(&tags.iter().map(|tag| format!("{tag}=a")).collect::<Vec<_>>().join(" "));
        registry.down = down;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let chosen = runtime.block_on(choose(&given, &mut Checks::default(), &registry));
        chosen.ok().map(|chosen| (chosen.outcome, chosen.seen))
    }

    fn step(&mut self, step: &Step) -> Result<(), TestCaseError> {
        self.minute += step.minutes;
        if let Some(tag) = step.pushed {
            self.listed.insert(tag);
            self.pushed.entry(tag).or_insert(self.minute);
        }
        step.removed.map(|tag| self.listed.remove(&tag));
        self.gate.now = jiff::Timestamp::from_second(self.minute * 60).unwrap();
        self.gate.min_age = Some(std::time::Duration::from_secs(MIN_AGE.unsigned_abs() * 60));
        self.gate.closed = step.closed.then(closed);
        let tags: Vec<String> = self.listed.iter().map(|tag| format!("1.{tag}.0")).collect();
        let Some((outcome, seen)) = self.sync(&tags, step.down) else {
            return Ok(());
        };
        let backwards: Vec<String> = tags.iter().rev().chain(&tags).cloned().collect();
        prop_assert_eq!(&self.sync(&backwards, step.down), &Some((outcome.clone(), seen.clone())), "the order counts");
        self.gate.seen = seen;
        self.pushed.retain(|tag, _| self.listed.contains(tag));
        let number = |tag: &str| tag.split('.').nth(1).and_then(|n| n.parse::<u32>().ok());
        if let Outcome::Tag(choice) = &outcome
            && self.settled.as_ref() != Some(&choice.tag)
        {
            let (before, now) = (self.settled.as_deref().and_then(number), number(&choice.tag).unwrap());
            prop_assert!(before.is_none_or(|before| before < now), "backwards: {before:?} {now}");
            prop_assert!(!step.closed, "{now} was chosen behind a closed gate");
            let age = self.minute - self.pushed[&now];
            prop_assert!(age >= MIN_AGE, "{now} is {age} minutes old");
            self.settled = Some(choice.tag.clone());
        }
        // The same again: nothing new is chosen, and nothing that has to be written is remembered otherwise.
        let Some((again, seen)) = self.sync(&tags, step.down) else {
            return Ok(());
        };
        prop_assert_eq!(&self.gate.seen, &seen);
        match (again, outcome) {
            (Outcome::Tag(again), Outcome::Tag(first)) => {
                prop_assert_eq!((again.tag, again.waits), (first.tag, first.waits));
            }
            (again, first) => prop_assert_eq!(again, first),
        }
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn nothing_goes_backwards_or_early_and_in_the_end_the_newest_goes(steps in prop::collection::vec(step(), 1..30)) {
        let mut life = Life::default();
        for step in &steps {
            life.step(step)?;
        }
        let open = |minutes| Step { minutes, pushed: Some(12), removed: None, closed: false, down: false };
        life.step(&open(1))?;
        life.step(&open(MIN_AGE))?;
        prop_assert_eq!(life.settled.as_deref(), Some("1.12.0"));
    }
}
