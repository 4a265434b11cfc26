use jiff::SignedDuration;
use proptest::prelude::*;

use super::*;

fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_767_225_600 + seconds).unwrap()
}

fn timing() -> Timing {
    Timing::of(Duration::from_secs(60))
}

#[test]
fn times_are_in_proportion() {
    fn check(delay: Duration, overlap: Duration, poll: Duration) {
        assert_eq!(Timing::of(delay), Timing { delay, overlap, poll });
    }
    let seconds = Duration::from_secs;
    check(seconds(60), seconds(600), seconds(10));
    check(seconds(3600), seconds(36_000), seconds(10));
    check(seconds(6), seconds(60), seconds(1));
}

/// Four CAs: `o` is old enough to be followed, `x` is expired.
struct Row(std::collections::BTreeMap<char, Arc<CertificateAuthority>>);

impl Row {
    fn new() -> Self {
        let years = |years: i64| at(-years * 365 * 86400);
        let made = [('a', 0), ('b', 0), ('c', 0), ('o', 7), ('x', 11)];
        Self(made.map(|(name, age)| (name, Arc::new(CertificateAuthority::generate("t", years(age)).unwrap()))).into())
    }

    fn bundle(&self, names: &str) -> Bundle {
        Bundle::default().and(names.chars().map(|name| self.0[&name].der().clone()))
    }

    /// `signing[+next] bundle`, seconds since it signs and since it is published.
    fn state(&self, text: &str, signing: Option<i64>, published: Option<i64>) -> CaState {
        let (pair, bundle) = text.split_once(' ').unwrap();
        let mut pair = pair.split('+').map(|name| self.0[&name.chars().next().unwrap()].clone());
        CaState {
            signing: pair.next().unwrap(),
            next: pair.next(),
            bundle: self.bundle(bundle),
            signing_since: signing.map(|ago| at(-ago)),
            published_since: published.map(|ago| at(-ago)),
            requested: false,
        }
    }
}

#[test]
fn the_next_step() {
    let row = Row::new();
    let carry = |everywhere: &str| {
        let (everywhere, more) = everywhere.split_once('|').unwrap_or((everywhere, ""));
        let everywhere = row.bundle(everywhere);
        Carried { anywhere: everywhere.clone().and(row.bundle(more)), everywhere }
    };
    let check = |state: &str, signing: Option<i64>, published: Option<i64>, carried: &str, expected: Step| {
        let found = next_step(&row.state(state, signing, published), &carry(carried), &timing(), at(0));
        assert_eq!(found, expected, "{state} {signing:?} {published:?} {carried}");
    };
    // A CA that was just made, without a configuration and with one.
    check("a a", None, None, "", Step::Wait);
    check("a a", None, None, "a", Step::Sign);
    check("a ab", None, None, "ab", Step::Published);
    check("a ab", None, Some(59), "ab", Step::Wait);
    check("a ab", None, Some(60), "ab", Step::Sign);
    check("a ab", None, Some(60), "b", Step::Unpublished);
    check("a a", None, Some(60), "", Step::Unpublished);
    // In use.
    check("a a", Some(1_000_000), None, "a", Step::Wait);
    check("a a", Some(1_000_000), None, "", Step::Wait);
    check("o o", Some(1_000_000), None, "o", Step::Stage);
    check("o o", None, None, "", Step::Wait);
    // The next one.
    check("a+b ab", Some(1_000_000), None, "a", Step::Wait);
    check("a+b ab", Some(1_000_000), None, "ab", Step::Published);
    check("a+b ab", Some(1_000_000), None, "a|b", Step::Wait);
    check("a+b ab", Some(1_000_000), Some(59), "ab", Step::Wait);
    check("a+b ab", Some(1_000_000), Some(60), "ab", Step::Sign);
    check("a+b ab", Some(1_000_000), Some(60), "a", Step::Unpublished);
    check("a+b ab", Some(1_000_000), Some(60), "a|b", Step::Unpublished);
    check("a+b ab", Some(1_000_000), Some(60), "", Step::Unpublished);
    // The old one.
    check("b ba", Some(599), None, "ba", Step::Wait);
    check("b ba", Some(600), None, "ba", Step::Retire);
    check("o oa", Some(599), None, "oa", Step::Wait);
    check("o oa", Some(600), None, "oa", Step::Retire);
    // The configuration trusts others: replicas may use them.
    check("a a", None, None, "b", Step::Adopt(row.bundle("ab")));
    check("a a", None, None, "|b", Step::Adopt(row.bundle("ab")));
    check("a a", Some(1_000_000), None, "b", Step::Adopt(row.bundle("ab")));
    check("a+b ab", Some(1_000_000), Some(60), "c", Step::Adopt(row.bundle("abc")));
    check("b ba", Some(1_000_000), None, "a", Step::Adopt(row.bundle("ba")));
    check("b ba", Some(1_000_000), None, "", Step::Retire);
    check("a a", None, None, "x", Step::Wait);
    check("a ab", None, None, "b", Step::Wait);
    check("a a", Some(1_000_000), None, "abc", Step::Wait); // somebody's own addition: repaired
    // Clocks that go wrong.
    check("a+b ab", Some(1_000_000), Some(-5), "ab", Step::Published);
    check("a ab", Some(-5), None, "ab", Step::Published);
    check("b ba", Some(-5), Some(60), "ba", Step::Sign);
}

#[test]
fn a_request_waits_for_the_rotation_before() {
    let row = Row::new();
    let check = |state: &str, signing: Option<i64>, carried: &str, expected: Step| {
        let state = CaState { requested: true, ..row.state(state, signing, None) };
        let bundle = row.bundle(carried);
        let carried = Carried { everywhere: bundle.clone(), anywhere: bundle };
        assert_eq!(next_step(&state, &carried, &timing(), at(0)), expected);
    };
    check("a a", Some(0), "a", Step::Stage);
    check("a a", None, "a", Step::Sign);
    check("a ab", Some(0), "ab", Step::Wait);
    check("a ab", Some(600), "ab", Step::Retire);
    check("a+b ab", Some(600), "a", Step::Wait);
    let asked = CaState { requested: true, ..row.state("a a", Some(0), None) };
    let staged = asked.after(&Step::Stage, at(0)).unwrap();
    assert!(!staged.requested && staged.next.is_some() && staged.bundle.len() == 2);
    let signs = staged.after(&Step::Published, at(1)).unwrap().after(&Step::Sign, at(2)).unwrap();
    assert_eq!(signs.signing.der(), staged.next.unwrap().der());
    assert_eq!((signs.signing_since, signs.published_since, signs.bundle.len()), (Some(at(2)), None, 2));
    assert_eq!(signs.after(&Step::Retire, at(3)).unwrap().bundle.len(), 1);
}

#[test]
fn a_replica_goes_over_when_it_may() {
    let row = Row::new();
    let check = |present: Option<char>, signing: Option<i64>, asked: bool, expected: bool| {
        let by = present.map(|name| row.0[&name].clone());
        let found = takes(by.as_deref(), &row.state("a a", signing, None), asked, at(0));
        assert_eq!(found, expected, "{present:?} {signing:?} {asked}");
    };
    check(None, Some(0), true, true);
    check(None, None, true, false); // put in by hand, and not published yet
    check(None, None, false, true); // the first one of all
    check(Some('b'), None, true, false);
    check(Some('b'), None, false, true); // by hand throughout
    check(Some('b'), Some(0), true, true);
    check(Some('b'), Some(-5), true, true); // the leader's clock is ahead of this one
    check(Some('x'), None, true, true);
}

#[test]
fn times_count_for_the_cas_that_they_were_written_for() {
    let row = Row::new();
    let check = |pairs: &str, written: &str, signing: bool, published: bool, bundle: &str| {
        let state = row.state(&format!("{pairs} {written}"), None, None);
        let times = [Some(at(-9)), Some(at(-8))];
        let found = CaState::read(state.signing, state.next, state.bundle, times, false);
        let expected = (times[0].filter(|_| signing), times[1].filter(|_| published), row.bundle(bundle));
        assert_eq!((found.signing_since, found.published_since, found.bundle), expected, "{pairs} {written}");
    };
    check("a", "a", true, true, "a");
    check("a", "ab", true, true, "ab");
    check("a+b", "ab", true, true, "ab");
    check("a+b", "abc", true, true, "abc");
    // The pair that signs is another, the next one, or both.
    check("c", "ab", false, false, "cab");
    check("c+b", "ab", false, false, "cba");
    check("a+c", "ab", true, false, "acb");
    check("a+c", "a", true, false, "ac");
    check("c", "", false, false, "c");
    // Not among the first.
    check("b", "ab", false, false, "ba");
    check("b+a", "ab", false, false, "ba");
}

#[test]
fn an_expired_ca_does_not_come_back() {
    let row = Row::new();
    let restored = row.state("a+b abc", Some(9), None).restored(at(0)).unwrap();
    assert_eq!(restored.signing.der(), row.0[&'a'].der());
    assert_eq!((restored.signing_since, restored.bundle.len()), (Some(at(0)), 4), "nobody loses trust");
    let fresh = row.state("x xc", Some(9), None).restored(at(0)).unwrap();
    assert_eq!((fresh.signing_since, fresh.bundle.len()), (None, 2));
    assert!(!fresh.bundle.contains(row.0[&'x'].der()));
}

/// Leaders, replicas and API servers around one Secret and one configuration, in any order of events.
struct World {
    now: Timestamp,
    secret: Option<CaState>,
    /// The configuration's bundles, and since when.
    bundles: Vec<(Timestamp, Bundle)>,
    /// Which of them each API server knows.
    servers: [usize; 2],
    /// What each replica signs with, and when it last looked.
    replicas: [(Option<Arc<CertificateAuthority>>, Timestamp); 3],
    /// What each candidate last read, and when.
    memory: [(CaState, Timestamp); 2],
    leader: usize,
    trusted: Option<Bundle>,
    carried: Option<Carried>,
    signed: usize,
    /// How often the Secret was deleted, or another CA put in.
    meddled: usize,
}

impl World {
    fn new() -> Self {
        let now = at(0);
        let mut secret = CaState::fresh(Bundle::default(), now).unwrap();
        secret.signing_since = Some(now);
        let replica = (Some(secret.signing.clone()), now);
        Self {
            now,
            bundles: vec![(now, secret.bundle.clone())],
            servers: [0, 0],
            replicas: [replica.clone(), replica.clone(), replica],
            memory: [(secret.clone(), now), (secret.clone(), now)],
            secret: Some(secret),
            leader: 0,
            trusted: None,
            carried: None,
            signed: 0,
            meddled: 0,
        }
    }

    fn happen(&mut self, (kind, which): (u8, usize)) {
        match kind {
            0..=2 => self.lead(true),
            3..=4 => self.keep(),
            5 => self.follow(which % 3),
            6 => {
                self.replicas[which % 3].0 = None; // it starts again
                self.follow(which % 3);
            }
            7 => self.servers[which % 2] = self.bundles.len() - 1,
            8 => self.remember(which % 2),
            9 => (self.leader, self.trusted, self.carried) = (which % 2, None, None),
            10 => self.secret.iter_mut().for_each(|secret| secret.requested = true),
            11 if which == 0 && self.meddled < 8 => (self.secret, self.meddled) = (None, self.meddled + 1),
            12..=13 => self.pass([1, 5, 9][which % 3]),
            14 => self.pass_much(),
            15 => self.lead(false),
            16 if which < 2 => self.put_by_hand(which == 0),
            _ => {}
        }
    }

    /// One step of the leader; only as far as it tells whom to trust if its write fails.
    fn lead(&mut self, writes: bool) {
        self.remember(self.leader);
        let Some(carried) = &self.carried else { return };
        let Some(secret) = &self.secret else {
            self.secret = Some(self.memory[self.leader].0.restored(self.now).unwrap()).filter(|_| writes);
            return;
        };
        let step = next_step(secret, carried, &timing(), self.now);
        if !matches!(step, Step::Adopt(_)) {
            self.trusted = Some(secret.bundle.clone());
        }
        if writes {
            self.signed += usize::from(step == Step::Sign);
            self.secret = Some(secret.after(&step, self.now).unwrap());
        }
    }

    /// Somebody puts in a CA of their own: only the pair, or a whole Secret with nothing else in it.
    fn put_by_hand(&mut self, only_the_pair: bool) {
        let Some(secret) = self.secret.clone().filter(|_| self.meddled < 8) else { return };
        let own = Arc::new(CertificateAuthority::generate("own", self.now).unwrap());
        let times = [secret.signing_since, secret.published_since];
        self.secret = Some(if only_the_pair {
            CaState::read(own, secret.next, secret.bundle, times, secret.requested)
        } else {
            CaState::read(own, None, Bundle::default(), [None, None], false)
        });
        self.meddled += 1;
    }

    fn remember(&mut self, candidate: usize) {
        if let Some(secret) = &self.secret {
            self.memory[candidate] = (secret.clone(), self.now);
        }
    }

    /// Writes the configuration, and reads it back.
    fn keep(&mut self) {
        let last = self.bundles.len() - 1;
        if let Some(trusted) = &self.trusted
            && *trusted != self.bundles[last].1
        {
            self.bundles.push((self.now, trusted.clone()));
        }
        let live = self.bundles.last().unwrap().1.clone();
        self.carried = Some(Carried { everywhere: live.clone(), anywhere: live });
    }

    fn follow(&mut self, replica: usize) {
        let (present, looked) = &mut self.replicas[replica];
        *looked = self.now;
        if let Some(secret) = &self.secret
            && takes(present.as_deref(), secret, true, self.now)
        {
            *present = Some(secret.signing.clone());
        }
    }

    /// Time passes; what has a deadline happens by then.
    fn pass(&mut self, seconds: i64) {
        for _ in 0..seconds {
            self.now = self.now.checked_add(SignedDuration::from_secs(1)).unwrap();
            for server in 0..2 {
                let late = self.bundles.iter().rposition(|(since, _)| over(*since, timing().delay, self.now));
                self.servers[server] = self.servers[server].max(late.unwrap_or(0));
            }
            for replica in 0..3 {
                if over(self.replicas[replica].1, timing().poll * 3, self.now) {
                    self.follow(replica);
                }
            }
            for candidate in 0..2 {
                if over(self.memory[candidate].1, timing().poll, self.now) {
                    self.remember(candidate);
                }
            }
        }
    }

    fn pass_much(&mut self) {
        for _ in 0..8 {
            self.pass(9);
            self.lead(true);
            self.keep();
        }
    }

    fn check(&self) {
        for (signer, _) in &self.replicas {
            let Some(signer) = signer else { continue };
            for server in self.servers {
                let (_, bundle) = &self.bundles[server];
                assert!(bundle.contains(signer.der()), "an API server meets a CA that it does not trust");
            }
        }
        let all = self.secret.iter().map(|secret| secret.bundle.len()).max();
        // Each within an overlap leaves one more that may still be served.
        assert!(all.is_none_or(|all| all <= 3 + self.meddled), "the bundle grows");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]
    #[test]
    fn every_api_server_trusts_every_replica(events in prop::collection::vec((0..17u8, 0..6usize), 50..300)) {
        let mut world = World::new();
        for event in events {
            world.happen(event);
            world.check();
        }
    }
}

#[test]
fn rotations_come_to_an_end() {
    let mut world = World::new();
    for rotation in 1..=10 {
        world.happen((10, 0));
        for _ in 0..12 {
            world.pass_much();
            world.check();
        }
        let secret = world.secret.as_ref().unwrap();
        assert_eq!((world.signed, secret.bundle.len(), secret.next.is_some()), (rotation, 1, false));
    }
}
