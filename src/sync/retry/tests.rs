use std::collections::BTreeSet;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::api::Rejected;
use crate::sync::{status, testing};

#[test]
fn what_a_retry_asks_for() {
    #[track_caller]
    fn check(own: &str, others: &[&str], expected: Step) {
        let member = |text: &str| Member {
            asks: text.contains('?'),
            remembers: text.contains('R'),
            records: text.contains('w'),
        };
        let others: Vec<_> = others.iter().map(|text| member(text)).collect();
        assert_eq!(step(member(own), &others), expected, "{own:?} {others:?}");
    }
    check("", &["", ""], Step::Learn);
    check("R", &["R", ""], Step::Learn);
    check("R", &["Rw"], Step::Learn);
    // Whoever asks.
    check("?R", &[], Step::Forget);
    check("?R", &["R"], Step::Forget);
    check("R", &["?R"], Step::Forget);
    check("R", &["?", "R"], Step::Forget);
    check("?", &["R", ""], Step::Wait);
    check("", &["?R"], Step::Wait);
    // It may be about to remember.
    check("?", &["w"], Step::Wait);
    check("?", &["", ""], Step::Done);
    check("?", &["?"], Step::Done);
    check("?", &["?R"], Step::Wait);
}

#[test]
fn each_is_asked_once_and_not_for_ever() {
    let (began, mut retrying) = (Instant::now(), Retrying::new(Instant::now()));
    let mut check = |others: &[&str], expected: &[&str]| {
        let others: Vec<_> = others.iter().map(|name| key(name)).collect();
        let asked: Vec<_> = retrying.ask(&others).into_iter().map(|key| key.name).collect();
        assert_eq!(asked, expected, "{others:?}");
    };
    check(&["one", "two"], &["one", "two"]);
    check(&["one", "two"], &[]);
    check(&["two", "three"], &["three"]);
    let retrying = Retrying::new(began);
    assert!(!retrying.is_over(began));
    assert!(!retrying.is_over(began + LIMIT - Duration::from_millis(1)));
    assert!(retrying.is_over(began + LIMIT));
}

fn key(name: &str) -> ImageKey {
    ImageKey { namespace: "shop".to_owned(), name: name.to_owned() }
}

/// One that remembers 1.3.0, or that asks.
fn image(name: &str, asks: bool) -> Arc<Image> {
    let annotations = if asks { json!({ACTION: RETRY}) } else { json!({}) };
    let rejected = if asks { json!([]) } else { json!([{"tag": "1.3.0"}]) };
    let image = json!({
        "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
        "metadata": {"name": name, "namespace": "shop", "uid": name, "annotations": annotations},
        "spec": {"image": "app", "triggers": [{"type": "webhook"}],
            "rules": [{"name": "r", "type": "semver", "actions": [{"type": "apply"}]}]},
        "status": {"tag": "1.2.0", "rejected": rejected},
    });
    Arc::new(serde_json::from_value(image).unwrap())
}

/// Of an API server that refuses statuses and takes everything else.
fn process() -> Sync {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let server = tower::service_fn(|request: http::Request<kube::client::Body>| async move {
        let refused = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": "Invalid", "message": "no", "code": 422});
        let (code, body) = match request.uri().path() {
            path if path.ends_with("/status") => (422, refused),
            path => (200, json!(*image(path.rsplit('/').next().unwrap(), false))),
        };
        let body = kube::client::Body::from(body.to_string().into_bytes());
        Ok::<_, std::io::Error>(http::Response::builder().status(code).body(body).unwrap())
    });
    let sync = testing::sync(kube::Client::new(server, "default"), [1, 1]);
    for (name, asks) in [("asks", true), ("stuck", false)] {
        sync.world.put_image(&key(name), Cached::Read(image(name, asks)));
    }
    sync
}

#[tokio::test(start_paused = true)]
async fn who_cannot_forget_stops_nobody_for_long() {
    let (sync, began) = (process(), Instant::now());
    let mut looks = 0;
    let after = loop {
        let after = sync.retry(&key("asks"), image("asks", true)).await.unwrap();
        if after.is_some() {
            break after;
        }
        loop {
            let Key::Image(next) = sync.queue.next().await else { panic!("Images alone are asked for") };
            sync.queue.done(&Key::Image(next.clone()));
            if next == key("asks") {
                break;
            }
            assert_eq!(next, key("stuck"));
            looks += 1;
            let refused = sync.retry(&next, image("stuck", false)).await;
            assert!(matches!(refused, Err(WriteError::Refused(_))), "{refused:?}");
        }
    };
    assert_eq!(looks, 1, "it has a pause of its own");
    assert!((LIMIT..LIMIT + 2 * PAUSE).contains(&began.elapsed()), "{:?}", began.elapsed());
    assert!(!after.unwrap().annotations().contains_key(ACTION), "the group goes on");
}

#[tokio::test(start_paused = true)]
async fn who_asks_and_cannot_forget_itself_goes_on_too() {
    let sync = process();
    let mut asks = image("asks", true);
    Arc::make_mut(&mut asks).status.clone_from(&image("stuck", false).status);
    sync.world.remove_image(&key("stuck"));
    sync.world.put_image(&key("asks"), Cached::Read(asks.clone()));
    let refused = sync.retry(&key("asks"), asks.clone()).await;
    assert!(matches!(refused, Err(WriteError::Refused(_))), "{refused:?}");
    assert_eq!(sync.queue.next().await, Key::Image(key("asks")));
    let after = sync.retry(&key("asks"), asks).await.unwrap().unwrap();
    assert!(!after.annotations().contains_key(ACTION));
}

/// An Image of a group as the API server has it, and what one process does with it.
#[derive(Clone, Debug, Default)]
struct Known {
    status: ImageStatus,
    asks: bool,
    /// What is to be rejected: it stays until that is on record.
    wishes: BTreeSet<String>,
    /// A status that is on its way to the API server, and the wish that is done with it.
    writes: Option<(ImageStatus, Option<String>)>,
    records: bool,
    gone: bool,
}

struct World {
    images: Vec<Known>,
    clock: u32,
    /// What the group has rejected.
    expected: BTreeSet<String>,
}

#[derive(Clone, Debug)]
enum Event {
    /// An Image is looked at: what it decides is on its way then, or done if it was.
    Look(usize),
    Reject(usize, u8),
    Retry(usize),
    /// The process ends: what is on its way arrives or does not.
    Restart(bool),
    /// One goes whose group knows all that it knows.
    Delete(usize),
}

impl World {
    fn members(&self, but: usize) -> Vec<Member> {
        let others = self.images.iter().enumerate().filter(|(i, known)| *i != but && !known.gone);
        others.map(|(_, known)| member(known)).collect()
    }

    fn union(&self, own: usize) -> Vec<Rejected> {
        let mut all = self.images[own].status.rejected.clone();
        for known in self.images.iter().filter(|known| !known.gone) {
            for rejected in &known.status.rejected {
                if all.iter().all(|other| other.tag != rejected.tag) {
                    all.push(rejected.clone());
                }
            }
        }
        all
    }

    /// One step of the look at an Image; whether anything was done.
    fn look(&mut self, i: usize) -> bool {
        if self.images[i].gone {
            return false;
        }
        if let Some((status, wish)) = self.images[i].writes.take() {
            let known = &mut self.images[i];
            known.records = false;
            known.status = status;
            if let Some(tag) = wish {
                known.wishes.remove(&tag);
                self.expected.insert(tag);
            }
            return true;
        }
        let own = member(&self.images[i]);
        match step(own, &self.members(i)) {
            Step::Learn => self.learn(i),
            Step::Forget => {
                let status = ImageStatus { rejected: Vec::new(), ..self.images[i].status.clone() };
                self.images[i].writes = Some((status, None));
                true
            }
            Step::Done if own.asks => {
                self.images[i].asks = false;
                if !self.images.iter().any(|known| known.asks && !known.gone) {
                    self.expected.clear();
                }
                true
            }
            Step::Wait | Step::Done => false,
        }
    }

    fn learn(&mut self, i: usize) -> bool {
        let (union, clock) = (self.union(i), self.clock);
        let mut status = self.images[i].status.clone();
        let mut changed = status::take_over(&mut status, &union);
        let wish = self.images[i].wishes.first().cloned();
        if let Some(tag) = wish.clone() {
            let time = format!("2026-01-01T00:{:02}:{:02}Z", clock / 60, clock % 60);
            let subject = status::Subject { now: time.parse().unwrap(), ..status::tests::subject(0, true) };
            status::remember(&mut status, &subject, &tag, "it crashes", "Deployment/web");
            changed = true;
        }
        if changed {
            self.images[i].records = true;
            self.images[i].writes = Some((status, wish));
        }
        changed
    }

    fn happens(&mut self, event: &Event) {
        self.clock = (self.clock + 1) % 3600;
        let count = self.images.len();
        match event {
            Event::Look(i) => _ = self.look(i % count),
            Event::Reject(i, tag) => _ = self.images[i % count].wishes.insert(format!("1.{tag}.0")),
            Event::Retry(i) => self.images[i % count].asks = true,
            Event::Restart(arrives) => {
                for i in 0..count {
                    if *arrives && self.images[i].writes.is_some() {
                        self.look(i);
                    }
                    (self.images[i].writes, self.images[i].records) = (None, false);
                }
            }
            Event::Delete(i) => {
                let (gone, left) = (i % count, self.images.iter().filter(|known| !known.gone).count());
                let known = |of: &Known| Rejected::tags(&of.status.rejected);
                let own = &self.images[gone];
                let others = self.images.iter().enumerate().filter(|(i, of)| *i != gone && !of.gone);
                let heirs = others.filter(|(_, of)| known(of).is_superset(&known(own))).count();
                if left > 1 && heirs + 1 == left && !own.asks && own.writes.is_none() {
                    self.images[gone] = Known { gone: true, ..Known::default() };
                }
            }
        }
    }

    fn settle(&mut self) {
        let busy = |world: &mut Self| (0..world.images.len()).filter(|i| world.look(*i)).count() > 0;
        assert!((0..200).any(|_| !busy(self)), "it never ends: {:?}", self.images);
    }
}

fn member(known: &Known) -> Member {
    let remembers = !known.status.rejected.is_empty();
    Member { asks: known.asks && !known.gone, remembers, records: known.records }
}

#[test]
fn who_is_about_to_remember_is_waited_for() {
    use Event::{Look, Reject, Retry};
    let mut world = World { images: vec![Known::default(); 2], clock: 0, expected: BTreeSet::new() };
    // The second one is about to take it over when the first one forgets.
    let events = [Reject(0, 1), Look(0), Look(0), Look(1), Retry(0), Look(0), Look(0), Look(0), Look(0), Look(1)];
    for event in &events {
        world.happens(event);
    }
    world.settle();
    assert!(world.images.iter().all(|known| known.status.rejected.is_empty() && !known.asks), "{:?}", world.images);
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        8 => (0..4_usize).prop_map(Event::Look),
        2 => (0..4_usize, 0..4_u8).prop_map(|(i, tag)| Event::Reject(i, tag)),
        2 => (0..4_usize).prop_map(Event::Retry),
        1 => any::<bool>().prop_map(Event::Restart),
        1 => (0..4_usize).prop_map(Event::Delete),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever comes between any two steps: in the end all Images of a group know the same, which is what was rejected
    /// since the last retry was done.
    #[test]
    fn a_group_remembers_and_forgets_as_one(count in 1..4_usize, events in prop::collection::vec(event(), 0..40)) {
        let mut world = World { images: vec![Known::default(); count], clock: 0, expected: BTreeSet::new() };
        for event in events {
            world.happens(&event);
        }
        world.settle();
        for known in world.images.iter().filter(|known| !known.gone) {
            prop_assert_eq!(&Rejected::tags(&known.status.rejected), &world.expected);
            prop_assert!(!known.asks && known.wishes.is_empty());
        }
    }

    /// More than a status holds, at all times and in any order: they agree on the newest, and come to an end.
    #[test]
    fn the_newest_are_taken_over(lists in prop::collection::vec(prop::collection::btree_map(0..80_u8, 0..9_u8, 0..50), 1..4)) {
        let rejected = |(tag, time): (&u8, &u8)| {
            let time = format!("2026-01-01T00:00:0{time}Z");
            Rejected { tag: format!("1.{tag}.0"), time, ..Rejected::default() }
        };
        let of = |list: &std::collections::BTreeMap<u8, u8>| {
            let status = ImageStatus { rejected: list.iter().map(rejected).collect(), ..ImageStatus::default() };
            Known { status, ..Known::default() }
        };
        let mut world = World { images: lists.iter().map(of).collect(), clock: 0, expected: BTreeSet::new() };
        let all = world.images.iter().fold(BTreeSet::new(), |all, known| &all | &Rejected::tags(&known.status.rejected));
        world.settle();
        let first = Rejected::tags(&world.images[0].status.rejected);
        prop_assert_eq!(first.len(), all.len().min(50));
        for known in &world.images {
            prop_assert_eq!(&Rejected::tags(&known.status.rejected), &first);
        }
    }
}
