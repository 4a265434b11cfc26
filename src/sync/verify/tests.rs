use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;

use super::*;
use crate::api::{self, Tagged};
use crate::policy::Platform;
use serde_json::{Value, json};

/// `a` … `e`: digests by a letter.
fn digest(letter: &str) -> String {
    format!("sha256:{}", letter.repeat(64))
}

/// Digest and platforms.
type Image = (String, Option<Vec<Platform>>);

/// A registry whose tags are `tag=digest` or `tag=digest:platform,platform`, on nodes for these platforms.
#[derive(Default)]
pub(super) struct Fake {
    manifests: BTreeMap<String, Image>,
    pub down: bool,
    asked: Mutex<Vec<String>>,
}

pub(super) fn fake(manifests: &str) -> Fake {
    let parse = |text: &str| {
        let (tag, rest) = text.split_once('=').unwrap();
        let (letter, platforms) =
            rest.split_once(':').map_or((rest, None), |(letter, platforms)| (letter, Some(platforms)));
        let platforms = platforms.map(|list| list.split(',').map(|p| format!("linux/{p}").parse().unwrap()).collect());
        (tag.to_owned(), (digest(letter), platforms))
    };
    Fake { manifests: manifests.split_whitespace().map(parse).collect(), ..Fake::default() }
}

impl Fake {
    fn find(&self, how: &str, name: &str) -> Result<Option<Image>, Failure> {
        let short = ["a", "b", "c"].iter().find(|letter| digest(letter) == name).map_or(name, |letter| letter);
        self.asked.lock().unwrap().push(format!("{how} {short}"));
        if self.down {
            let (result, message) = (SyncResult::RegistryError, "down".to_owned());
            return Err(Failure { result, reason: "RegistryUnavailable", message, stalled: false });
        }
        let by_digest = || self.manifests.values().find(|(digest, _)| digest == name);
        Ok(self.manifests.get(name).or_else(by_digest).cloned())
    }

    fn asked(&self) -> String {
        std::mem::take(&mut *self.asked.lock().unwrap()).join(", ")
    }
}

impl Manifests for Fake {
    async fn digest(&self, tag: &str) -> Result<Option<String>, Failure> {
        Ok(self.find("HEAD", tag)?.map(|(digest, _)| digest))
    }

    async fn manifest(&self, tag: &str) -> Result<Option<Manifest>, Failure> {
        let found = self.find("GET", tag)?;
        Ok(found.map(|(digest, platforms)| Manifest { digest: digest.parse().unwrap(), platforms }))
    }

    async fn needed(&self) -> Result<Needed, Failure> {
        Ok(Needed::All(vec!["linux/amd64".parse().unwrap()]))
    }
}

/// An Image, as it is known from sync to sync.
pub(super) struct Stage {
    pub spec: CompiledSpec,
    settled: Option<&'static str>,
    followed: Option<&'static str>,
    digest: Option<String>,
    stamped: Option<Tagged>,
    gate: Gate,
    checks: Checks,
    rejected: BTreeSet<String>,
}

pub(super) fn stage(rule: &str, patch: &Value, settled: Option<&'static str>, digest_letter: Option<&str>) -> Stage {
    let mut spec = json!({"image": "app", "triggers": [{"type": "interval", "value": "5m"}],
        "rules": [{"name": "r", "type": rule, "actions": [{"type": "apply"}]}]});
    json_patch::merge(&mut spec, patch);
    let spec = api::compile(&serde_json::from_value(spec).unwrap(), jiff::Timestamp::UNIX_EPOCH).unwrap();
    let digest = digest_letter.map(digest);
    let (gate, checks, rejected) = (Gate::default(), Checks::default(), BTreeSet::new());
    Stage { spec, settled, followed: None, digest, stamped: None, gate, checks, rejected }
}

impl Stage {
    /// `tag@digest by rule; …` with what was passed over and what is gone, then the requests.
    async fn check(&mut self, tags: &str, fake: &Fake, expected: &str, requests: &str) {
        let key = ImageKey { namespace: "shop".to_owned(), name: "web".to_owned() };
        let tags: Vec<&str> = tags.split_whitespace().collect();
        let known = Known {
            settled: self.settled,
            stamped: self.stamped.as_ref(),
            followed: self.followed,
            rejected: Some(&self.rejected),
            ..Known::default()
        };
        let given = Given {
            image: &key,
            spec: &self.spec,
            known,
            digest: self.digest.clone(),
            tags: &tags,
            gate: self.gate.clone(),
        };
        let chosen = choose(&given, &mut self.checks, fake).await.map(|chosen| {
            self.gate.seen = chosen.seen;
            chosen.outcome
        });
        let waiting =
            |waits: Option<Waits>| waits.map(|w| format!("; {} {}", w.pending.tag, w.reason)).unwrap_or_default();
        let said = match chosen {
            Err(failure) => format!("{:?}: {}", failure.result, failure.message),
            Ok(Outcome::Failed(_)) => unreachable!("failures are errors"),
            Ok(Outcome::Waiting(waits)) => format!("none{}", waiting(Some(waits))),
            Ok(Outcome::Tag(Choice { tag, rule, missing, adopted, digest, passed_over, gone, waits, .. })) => {
                let digest = digest.map_or_else(|| "-".to_owned(), |digest| digest[7..8].to_owned());
                let mut said = format!("{tag}@{digest}");
                let mut add = |what: &str, when: bool| said += if when { what } else { "" };
                add(&format!(" by {rule}"), !rule.is_empty());
                add(" missing", missing);
                add(" adopted", adopted.is_some());
                add(" gone", gone.is_some());
                for sentence in passed_over {
                    add(&format!("; {sentence}"), true);
                }
                said += &waiting(waits.map(|waits| *waits));
                said
            }
        };
        assert_eq!((said.as_str(), fake.asked().as_str()), (expected, requests));
    }
}

#[tokio::test]
async fn a_newer_tag_is_looked_at_once() {
    let minor = |settled, letter| stage("semver", &json!({}), settled, letter);
    let all = fake("1.0.0=a 1.1.0=b:amd64,arm64 1.2.0=c");
    minor(None, None).check("1.0.0 1.1.0", &all, "1.1.0@b by r", "GET 1.1.0").await;
    minor(Some("1.0.0"), Some("a")).check("1.0.0 1.1.0", &all, "1.1.0@b by r", "GET 1.1.0").await;
    // One that does not tell its platforms will do.
    minor(Some("1.0.0"), Some("a")).check("1.2.0", &all, "1.2.0@c by r", "GET 1.2.0").await;
    // What is run already is not asked for, but for a digest that is not known; in vain only once.
    minor(Some("1.1.0"), Some("b")).check("1.0.0 1.1.0", &all, "1.1.0@b", "").await;
    let mut unknown = minor(Some("1.1.0"), None);
    unknown.check("1.0.0 1.1.0", &all, "1.1.0@b", "HEAD 1.1.0").await;
    unknown.check("1.0.0 1.1.0", &all, "1.1.0@-", "").await;
    minor(Some("1.1.0"), None).check("1.1.0", &fake(""), "1.1.0@-", "HEAD 1.1.0").await;
    minor(Some("1.1.0"), None).check("1.0.0", &all, "1.1.0@- missing", "").await;
    // Chosen again at once, because it could not be written.
    let mut again = minor(Some("1.0.0"), Some("a"));
    again.check("1.1.0", &all, "1.1.0@b by r", "GET 1.1.0").await;
    again.check("1.1.0", &all, "1.1.0@b by r", "HEAD 1.1.0").await;
    // Never applied unverified.
    let down = Fake { down: true, ..fake("1.1.0=b") };
    minor(Some("1.0.0"), Some("a")).check("1.1.0", &down, "RegistryError: down", "GET 1.1.0").await;
    minor(None, None).check("1.1.0", &down, "RegistryError: down", "GET 1.1.0").await;
    minor(Some("1.1.0"), None).check("1.1.0", &down, "1.1.0@-", "HEAD 1.1.0").await;
    minor(None, None)
        .check(
            "",
            &all,
            "TagsError: Image shop/web: docker.io/library/app lists no tags; push one, or check spec.image",
            "",
        )
        .await;
}

#[tokio::test]
async fn a_rejected_digest_is_not_tried_again() {
    let pinned = |settled, letter| Stage {
        rejected: BTreeSet::from([format!("1.1.0@{}", digest("b"))]),
        ..stage("semver", &json!({"pinDigest": true}), Some(settled), Some(letter))
    };
    let said = format!("1.0.0@a; 1.1.0 passed over: {} was rejected; action=retry clears that", digest("b"));
    let mut web = pinned("1.0.0", "a");
    web.check("1.0.0 1.1.0", &fake("1.0.0=a 1.1.0=b"), &said, "GET 1.1.0, HEAD a").await;
    web.check("1.0.0 1.1.0", &fake("1.0.0=a 1.1.0=b"), &said, "HEAD 1.1.0, HEAD a").await;
    web.check("1.0.0 1.1.0", &fake("1.0.0=a 1.1.0=c"), "1.1.0@c by r", "HEAD 1.1.0, GET 1.1.0").await;
    // Not in place of one that is gone either, nor as the first one of a tag that is run already.
    pinned("1.1.0", "a").check("1.1.0", &fake("1.1.0=b"), "1.1.0@a", "HEAD a, GET 1.1.0").await;
    let mut unknown = Stage { digest: None, ..pinned("1.1.0", "a") };
    unknown.check("1.1.0", &fake("1.1.0=b"), "1.1.0@-", "HEAD 1.1.0").await;
    unknown.check("1.1.0", &fake("1.1.0=c"), "1.1.0@c", "HEAD 1.1.0").await;
}

#[tokio::test]
async fn a_tag_that_cannot_be_run_is_passed_over() {
    let mut web = stage("semver", &json!({}), Some("1.0.0"), Some("a"));
    let arm = "1.0.0@a; 1.1.0 passed over: no linux/amd64";
    web.check("1.0.0 1.1.0", &fake("1.1.0=b:arm64"), arm, "GET 1.1.0").await;
    // Looked at again by HEAD, read again if it moved.
    web.check("1.0.0 1.1.0", &fake("1.1.0=b:arm64"), arm, "HEAD 1.1.0").await;
    web.check("1.0.0 1.1.0", &fake("1.1.0=c:amd64"), "1.1.0@c by r", "HEAD 1.1.0, GET 1.1.0").await;
    // The next best, also as the first; one whose manifest is not there, asked for by HEAD from then on.
    let none = "1.1.0@b by r; 1.2.0 passed over: the registry lists it but has no manifest of that name";
    let mut web = stage("semver", &json!({}), Some("1.0.0"), Some("a"));
    web.check("1.1.0 1.2.0", &fake("1.1.0=b"), none, "GET 1.2.0, GET 1.1.0").await;
    web.check("1.1.0 1.2.0", &fake("1.1.0=b"), none, "HEAD 1.2.0, HEAD 1.1.0").await;
    stage("semver", &json!({}), None, None).check("1.1.0 1.2.0", &fake("1.1.0=b"), none, "GET 1.2.0, GET 1.1.0").await;
    // At most five; what is not chosen for that is not asked for.
    let many = "1.1.0 1.2.0 1.3.0 1.4.0 1.5.0 1.6.0 1.7.0";
    let mut web = stage("semver", &json!({}), Some("1.0.0"), Some("a"));
    let known = Known { settled: web.settled, ..Known::default() };
    let tags: Vec<&str> = many.split(' ').collect();
    let image = ImageKey { namespace: String::new(), name: String::new() };
    let given = Given { image: &image, spec: &web.spec, known, digest: None, tags: &tags, gate: Gate::default() };
    let nothing = fake("");
    let outcome = choose(&given, &mut web.checks, &nothing).await.unwrap().outcome;
    assert!(
        matches!(outcome, Outcome::Tag(Choice { tag, passed_over, missing: true, .. }) if tag == "1.0.0" && passed_over.len() == 5)
    );
    assert_eq!(nothing.asked(), "GET 1.7.0, GET 1.6.0, GET 1.5.0, GET 1.4.0, GET 1.3.0");
    let none = "TagsError: Image shop/web: no tag of docker.io/library/app can be run: 1.1.0: no linux/amd64";
    stage("semver", &json!({}), None, None).check("1.1.0", &fake("1.1.0=a:arm64"), none, "GET 1.1.0").await;
}

#[tokio::test]
async fn a_pinned_digest_stays_as_long_as_it_is_there() {
    let pin = json!({"pinDigest": true});
    let pinned = |letter| stage("semver", &pin, Some("1.0.0"), letter);
    // The tag has moved: that is not followed.
    pinned(Some("a")).check("1.0.0", &fake("1.0.0=b old=a"), "1.0.0@a", "HEAD a").await;
    pinned(Some("a")).check("1.0.0", &fake("1.0.0=b"), "1.0.0@b gone", "HEAD a, GET 1.0.0").await;
    pinned(Some("a")).check("0.9.0", &fake("0.9.0=b"), "1.0.0@- missing gone", "HEAD a, GET 1.0.0").await;
    pinned(Some("a")).check("1.0.0", &fake("1.0.0=b:arm64"), "1.0.0@- gone", "HEAD a, GET 1.0.0").await;
    pinned(None).check("1.0.0", &fake("1.0.0=b"), "1.0.0@b", "HEAD 1.0.0").await;
    pinned(None).check("1.0.0", &fake(""), "1.0.0@-", "HEAD 1.0.0").await;
    pinned(Some("a")).check("1.0.0 1.1.0", &fake("1.0.0=a 1.1.0=b"), "1.1.0@b by r", "GET 1.1.0").await;
    let down = Fake { down: true, ..fake("") };
    pinned(Some("a")).check("1.0.0", &down, "RegistryError: down", "HEAD a").await;
    pinned(None).check("1.0.0", &down, "RegistryError: down", "HEAD 1.0.0").await;
    // What is gone can run nowhere, whatever the gates say; that no rollout starts is for the limits to see.
    let mut gated = pinned(Some("a"));
    gated.gate.closed = Some(closed());
    gated.check("1.0.0", &fake("1.0.0=b"), "1.0.0@b gone", "HEAD a, GET 1.0.0").await;
    // What the stamps say counts, if the status was lost.
    let mut lost = stage("semver", &pin, None, Some("a"));
    lost.stamped = Some(Tagged::new("1.0.0", Some(&digest("a"))));
    lost.check("1.0.0", &fake("1.0.0=b old=a"), "1.0.0@a adopted", "HEAD a").await;
}

#[tokio::test]
async fn a_followed_digest_moves() {
    let followed = |settled, letter| stage("digest", &json!({"baseTag": "1.0.0"}), settled, letter);
    let latest = |settled, letter| stage("digest", &json!({}), settled, letter);
    // The first time, it must run as any other; `latest` is a tag like any other.
    followed(None, None).check("1.0.0 2.0.0", &fake("1.0.0=a 2.0.0=b"), "1.0.0@a", "GET 1.0.0").await;
    latest(None, None).check("latest 2.0.0", &fake("latest=a"), "latest@a", "GET latest").await;
    let none = "TagsError: Image shop/web: no tag of docker.io/library/app can be chosen: the registry does not list the \
                starting tag latest, and ";
    let key = ImageKey { namespace: "shop".to_owned(), name: "web".to_owned() };
    let web = latest(None, None);
    let (known, gate) = (Known::default(), Gate::default());
    let given = Given { image: &key, spec: &web.spec, known, digest: None, tags: &["2.0.0"], gate };
    let failure = choose(&given, &mut Checks::default(), &fake("2.0.0=b")).await.unwrap_err();
    assert!(format!("{:?}: {}", failure.result, failure.message).starts_with(none), "{}", failure.message);
    // Unchanged: a HEAD. Changed: read, and by the rule.
    followed(Some("1.0.0"), Some("a")).check("1.0.0", &fake("1.0.0=a"), "1.0.0@a", "HEAD 1.0.0").await;
    let moved = "HEAD 1.0.0, GET 1.0.0";
    followed(Some("1.0.0"), Some("a")).check("1.0.0", &fake("1.0.0=b"), "1.0.0@b by r", moved).await;
    followed(Some("1.0.0"), None).check("1.0.0", &fake("1.0.0=b"), "1.0.0@b by r", "HEAD 1.0.0").await;
    // It stays while the registry does not have the tag, and while what it has cannot be run.
    followed(Some("1.0.0"), Some("a")).check("2.0.0", &fake(""), "1.0.0@a missing", "HEAD 1.0.0").await;
    let mut arm = followed(Some("1.0.0"), Some("a"));
    let unfit = "1.0.0@a; the newer digest of 1.0.0 passed over: no linux/amd64";
    arm.check("1.0.0", &fake("1.0.0=b:arm64"), unfit, moved).await;
    arm.check("1.0.0", &fake("1.0.0=b:arm64"), unfit, "HEAD 1.0.0").await;
    arm.check("1.0.0", &fake("1.0.0=c:amd64"), "1.0.0@c by r", moved).await;
    let down = Fake { down: true, ..fake("") };
    followed(Some("1.0.0"), Some("a")).check("1.0.0", &down, "RegistryError: down", "HEAD 1.0.0").await;
    // Another starting tag is a person's decision.
    let other = || Stage { followed: Some("0.9.0"), ..followed(Some("0.9.0"), Some("a")) };
    other().check("0.9.0 1.0.0", &fake("1.0.0=b"), "1.0.0@b", "GET 1.0.0").await;
    other().check("0.9.0", &fake("0.9.0=a"), "0.9.0@a", "HEAD 0.9.0").await;
    // That the rule was another one before is none.
    followed(Some("1.2.0"), Some("a")).check("1.0.0 1.2.0", &fake("1.2.0=a"), "1.2.0@a", "HEAD 1.2.0").await;
    // Beside a rule that chooses tags, that rule goes first.
    let rules = json!({"rules": [{"name": "s", "type": "semver", "actions": [{"type": "apply"}]},
        {"name": "d", "type": "digest", "actions": [{"type": "apply"}]}]});
    let both = || stage("semver", &rules, Some("1.0.0"), Some("a"));
    both().check("1.0.0 1.1.0", &fake("1.1.0=b"), "1.1.0@b by s", "GET 1.1.0").await;
    both().check("1.0.0", &fake("1.0.0=b"), "1.0.0@b by d", moved).await;
}

pub(super) fn closed() -> api::Closed {
    api::Closed { reason: "Suspended", why: "spec.suspend is set".to_owned(), until: None }
}

#[tokio::test]
async fn what_is_chosen_waits_while_no_rollout_may_start() {
    let all = fake("1.0.0=a 1.1.0=b");
    let mut web = stage("semver", &json!({}), Some("1.0.0"), Some("a"));
    web.gate.closed = Some(closed());
    web.check("1.0.0", &all, "1.0.0@a", "").await;
    web.check("1.0.0 1.1.0", &all, "1.0.0@a; 1.1.0 Suspended", "GET 1.1.0").await;
    web.gate.closed = None;
    web.check("1.0.0 1.1.0", &all, "1.1.0@b by r", "HEAD 1.1.0").await;
    // What an Image that lost its status had is adopted all the same; without any there is no tag.
    let mut lost = stage("semver", &json!({}), None, None);
    lost.gate.closed = Some(closed());
    lost.check("1.0.0 1.1.0", &all, "none; 1.1.0 Suspended", "GET 1.1.0").await;
    lost.stamped = Some(Tagged::new("1.0.0", None));
    lost.check("1.0.0 1.1.0", &all, "1.0.0@- adopted; 1.1.0 Suspended", "HEAD 1.1.0").await;
    // Another digest of the tag waits too.
    let mut moved = stage("digest", &json!({"baseTag": "1.0.0"}), Some("1.0.0"), Some("b"));
    moved.gate.closed = Some(closed());
    let waits = format!("1.0.0@b; 1.0.0@{} Suspended", digest("a"));
    moved.check("1.0.0", &all, &waits, "HEAD 1.0.0, GET 1.0.0").await;
}

#[tokio::test]
async fn what_is_chosen_waits_until_it_is_old_enough() {
    let minute = |minute: i64| jiff::Timestamp::from_second(minute * 60).unwrap();
    let all = fake("1.0.0=a 1.1.0=b 1.2.0=c 1.3.0=d");
    let mut web = stage("semver", &json!({}), Some("1.0.0"), Some("a"));
    web.gate.min_age = Some(std::time::Duration::from_hours(1));
    web.gate.now = minute(0);
    web.check("1.0.0 1.1.0", &all, "1.0.0@a; 1.1.0 TooYoung", "").await;
    web.gate.now = minute(30);
    web.check("1.0.0 1.1.0 1.2.0", &all, "1.0.0@a; 1.1.0 TooYoung", "").await;
    web.gate.now = minute(59);
    web.check("1.0.0 1.1.0 1.2.0", &all, "1.0.0@a; 1.1.0 TooYoung", "").await;
    // The newest that is old enough goes; one that vanished in between is not waited for.
    web.gate.now = minute(60);
    web.check("1.0.0 1.1.0 1.2.0 1.3.0", &all, "1.1.0@b by r; 1.2.0 TooYoung", "GET 1.1.0").await;
    (web.settled, web.digest) = (Some("1.1.0"), Some(digest("b")));
    web.check("1.0.0 1.1.0 1.3.0", &all, "1.1.0@b; 1.3.0 TooYoung", "").await;
    web.gate.now = minute(120);
    web.check("1.0.0 1.1.0 1.3.0", &all, "1.3.0@d by r", "GET 1.3.0").await;
    // Nothing is old enough for a first choice; a starting tag that is raised is a person's word.
    let mut new = stage("semver", &json!({}), None, None);
    new.gate.min_age = Some(std::time::Duration::from_hours(1));
    new.check("1.0.0", &all, "none; 1.0.0 TooYoung", "").await;
    // Another digest of the tag has an age of its own.
    let mut moved = stage("digest", &json!({"baseTag": "1.0.0"}), Some("1.0.0"), Some("b"));
    moved.gate.min_age = Some(std::time::Duration::from_hours(1));
    let waits = format!("1.0.0@b; 1.0.0@{} TooYoung", digest("a"));
    moved.check("1.0.0", &all, &waits, "HEAD 1.0.0").await;
    moved.gate.now = minute(60);
    moved.check("1.0.0", &all, "1.0.0@a by r", "HEAD 1.0.0, GET 1.0.0").await;
}

#[tokio::test]
async fn a_tag_that_cannot_be_run_does_not_come_of_age_twice() {
    let arm = fake("1.1.0=b 1.2.0=c:arm64");
    let mut web = stage("semver", &json!({}), Some("1.1.0"), Some("b"));
    web.gate.min_age = Some(std::time::Duration::from_hours(1));
    web.check("1.1.0 1.2.0", &arm, "1.1.0@b; 1.2.0 TooYoung", "").await;
    web.gate.now = jiff::Timestamp::from_second(3600).unwrap();
    let passed = "1.1.0@b; 1.2.0 passed over: no linux/amd64";
    web.check("1.1.0 1.2.0", &arm, passed, "GET 1.2.0").await;
    web.check("1.1.0 1.2.0", &arm, passed, "HEAD 1.2.0").await;
    web.check("1.1.0 1.2.0", &fake("1.2.0=a:amd64"), "1.2.0@a by r", "HEAD 1.2.0, GET 1.2.0").await;
}
