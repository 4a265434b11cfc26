//! From the rules' choice to an image that can be run: it exists, and it is for the nodes it is wanted on. The digest of
//! what is run already is followed, kept or found again.
//!
//! What is asked goes through `Manifests`, so that every answer, and the number of requests, is tested by tables.

use std::borrow::Cow;
use std::collections::HashMap;

use jiff::Timestamp;

use crate::api::{Asked, CompiledSpec, ImageStatus, Seen, SyncResult, Tagged};
use crate::registry::Manifest;

use super::approval::{Answer, Wish};
use super::decide::{self, Choice, Known, Rules, Verdict};
use super::gates::{Age, Ages, Gate, Waits};
use super::nodes::Needed;
use super::status::{self, Failure, Outcome};
use super::world::ImageKey;

mod asks;

/// Most tags that one sync passes over.
const MAX_PASSED_OVER: usize = 5;

/// Asks a registry about one repository, and the cluster about its nodes.
pub(super) trait Manifests: Sync {
    /// The digest that a tag or digest has now; none if there is no such manifest. A HEAD.
    fn digest(&self, tag: &str) -> impl Future<Output = Result<Option<String>, Failure>> + Send;
    /// Its digest and platforms. A GET, or two.
    fn manifest(&self, tag: &str) -> impl Future<Output = Result<Option<Manifest>, Failure>> + Send;
    /// Where a tag must run.
    fn needed(&self) -> impl Future<Output = Result<Needed, Failure>> + Send;
}

/// What was learned of tags, so that a manifest is read once; by tag. Losing it costs requests, nothing else.
///
/// None: there was no manifest.
pub(super) type Checks = HashMap<String, Option<Manifest>>;

/// What a sync knows when it chooses.
pub(super) struct Given<'a> {
    pub image: &'a ImageKey,
    pub spec: &'a CompiledSpec,
    pub known: Known<'a>,
    /// The digest of the current tag, in flight or settled.
    pub digest: Option<String>,
    /// Every tag that the registry lists.
    pub tags: &'a [&'a str],
    /// What newer tags wait for.
    pub gate: Gate,
}

/// What a sync comes to.
#[derive(Debug)]
pub(super) struct Chosen {
    pub outcome: Outcome,
    /// Which tags to remember, and since when they are known.
    pub seen: Vec<Seen>,
    /// What people are asked to approve.
    pub asked: Option<Asked>,
    /// What became of what a person approved.
    pub answer: Option<Answer>,
    /// When another tag comes of age, where the status tells of one that is asked for.
    pub wake: Option<Timestamp>,
}

impl Chosen {
    /// Nothing is known anew. Only what somebody must change ends an approval: it cannot be applied until then.
    pub fn failed(status: &ImageStatus, failure: Failure) -> Self {
        let answer = failure.stalled.then(|| Answer::Refused(failure.message.clone()));
        let (seen, asked) = (status.seen.clone(), status.asked.clone());
        Self { outcome: Outcome::Failed(failure), seen, asked, answer, wake: None }
    }

    /// Nothing about approval is known anew.
    fn new(given: &Given<'_>, outcome: Outcome, seen: Vec<Seen>) -> Self {
        Self { outcome, seen, asked: given.gate.asked.clone(), answer: None, wake: None }
    }
}

/// A tag that can be run, or why it cannot.
enum Fit {
    Yes(String),
    No(String),
    /// What it is now was rejected: it is not tried again, until it is something else.
    Rejected(String),
}

/// What the rules come to, before it is known whether it has to wait.
struct Picked {
    outcome: Outcome,
    passed_over: Vec<(String, String)>,
}

/// Decides which tag and digest to run. An error means that nothing is decided: whatever runs is kept.
pub(super) async fn choose<M: Manifests>(
    given: &Given<'_>,
    checks: &mut Checks,
    manifests: &M,
) -> Result<Chosen, Failure> {
    let answer = Box::pin(asks::answer(given, checks, manifests)).await?;
    if let Some((answer, Some(outcome))) = answer {
        let mut ages = Ages::new(&given.gate);
        if let Outcome::Tag(choice) = &outcome {
            ages.of(&choice.tag);
        }
        let seen = ages.seen("", |tag| given.lists(tag));
        let asked = given.gate.asked.clone().filter(|asked| answer == Answer::Waits || !given.is_approved(&asked.tag));
        return Ok(Chosen { answer: Some(answer), asked, ..Chosen::new(given, outcome, seen) });
    }
    let mut ages = Ages::new(&given.gate);
    let free = Box::pin(pick(given, Rules::Free, &mut ages, checks, manifests)).await;
    let (picked, mut wish) = Box::pin(asks::wish(given, free, &mut ages, checks, manifests)).await?;
    let keep = wish.as_ref().map(|wish| wish.tag.clone());
    let mut chosen = match picked.outcome {
        Outcome::Tag(choice) => {
            let known = (picked.passed_over, keep);
            let (choice, moved) = finish(given, choice, known, &mut ages, checks, manifests).await?;
            wish = wish.or(moved);
            given.hold_back(choice, ages)
        }
        outcome => Chosen::new(given, outcome, ages.seen("", |tag| given.lists(tag))),
    };
    asks::tell(given, &mut chosen, wish.as_ref());
    chosen.answer = answer.map(|(answer, _)| answer);
    Ok(chosen)
}

/// What some of the rules choose, of what is old enough and can be run.
async fn pick<M: Manifests>(
    given: &Given<'_>,
    rules: Rules,
    ages: &mut Ages,
    checks: &mut Checks,
    manifests: &M,
) -> Result<Picked, Failure> {
    let mut tags = Cow::Borrowed(given.tags);
    let mut passed_over: Vec<(String, String)> = Vec::new();
    let outcome = loop {
        let choice = match decide::decide(given.spec, rules, given.known, &tags) {
            Verdict::Tag(choice) => choice,
            verdict => break given.nothing(verdict, &passed_over, ages.waits())?,
        };
        let tag = &choice.tag;
        if given.current() == Some(tag) {
            let missing = choice.missing && !given.tags.contains(&&**tag);
            break Outcome::Tag(Choice { missing, ..choice });
        }
        // The starting tag is a person's word: no rule chose it.
        match if choice.rule.is_empty() { Age::Old } else { ages.of(tag) } {
            Age::Old => {}
            Age::Young => {
                tags.to_mut().retain(|other| other != tag);
                continue;
            }
            Age::Untold => {
                tags.to_mut().retain(|other| ages.knows(other) || given.stays(other));
                continue;
            }
        }
        if passed_over.len() >= MAX_PASSED_OVER {
            break given.keep(&passed_over)?;
        }
        match check(given, tag, None, checks, manifests).await? {
            Fit::Yes(digest) => break Outcome::Tag(Choice { digest: Some(digest), ..choice }),
            Fit::No(reason) | Fit::Rejected(reason) => {
                tags.to_mut().retain(|other| other != tag);
                passed_over.push((choice.tag, reason));
            }
        }
    };
    Ok(Picked { outcome, passed_over })
}

/// Adds what is known of the digest, and forgets what was learned of tags that play no part any more.
async fn finish<M: Manifests>(
    given: &Given<'_>,
    mut choice: Choice,
    (mut passed_over, keep): (Vec<(String, String)>, Option<String>),
    ages: &mut Ages,
    checks: &mut Checks,
    manifests: &M,
) -> Result<(Choice, Option<Wish>), Failure> {
    let tag = &choice.tag;
    let mut wish = None;
    if given.current() == Some(tag) {
        let present = current_digest(given, tag, choice.missing, ages, checks, manifests).await?;
        choice.digest = present.digest;
        choice.missing |= present.missing;
        choice.gone = present.gone;
        wish = present.wish;
        passed_over.extend(present.unfit.map(|reason| (format!("the newer digest of {tag}"), reason)));
        if let (Some(name), true) = (&given.spec.follows_digest, present.moved) {
            choice.rule.clone_from(name);
            choice.why = format!("the digest of {tag} has changed");
        }
    }
    checks.retain(|checked, _| {
        checked == tag || keep.as_ref() == Some(checked) || passed_over.iter().any(|(passed, _)| passed == checked)
    });
    choice.passed_over = passed_over.iter().map(|(tag, reason)| format!("{tag} passed over: {reason}")).collect();
    Ok((choice, wish))
}

/// What became of the digest of a tag that stays.
#[derive(Default)]
struct Present {
    digest: Option<String>,
    /// It is another one than before.
    moved: bool,
    /// The registry does not have the tag any more.
    missing: bool,
    /// The digest that is gone.
    gone: Option<String>,
    /// Why the tag's newer digest cannot be run.
    unfit: Option<String>,
    /// The tag's newer digest, if somebody has to approve it.
    wish: Option<Wish>,
}

async fn current_digest<M: Manifests>(
    given: &Given<'_>,
    tag: &str,
    missing: bool,
    ages: &mut Ages,
    checks: &mut Checks,
    manifests: &M,
) -> Result<Present, Failure> {
    let spec = given.spec;
    let Some(before) = given.digest.as_deref() else {
        return first_digest(given, tag, missing, checks, manifests).await;
    };
    let kept = Present { digest: Some(before.to_owned()), ..Present::default() };
    if !spec.pin {
        return Ok(kept); // run by its tag
    }
    let (now, gone) = if spec.follows_digest.is_some() {
        match manifests.digest(tag).await? {
            Some(now) if now == before => return Ok(kept),
            Some(now) if given.is_rejected(&Tagged::new(tag, Some(&now))) => return Ok(kept),
            Some(now) if ages.of(&Tagged::new(tag, Some(&now)).to_string()) != Age::Old => return Ok(kept),
            None => return Ok(Present { missing: true, ..kept }),
            now => (now, None),
        }
    } else {
        if manifests.digest(before).await?.is_some() {
            return Ok(kept);
        }
        (None, Some(before.to_owned()))
    };
    match check(given, tag, now, checks, manifests).await? {
        // Rather one that is gone than one that was rejected.
        Fit::Rejected(_) => Ok(kept),
        Fit::Yes(now)
            if gone.is_none()
                && now != before
                && let Some(approval) = asks::of_digest(spec) =>
        {
            let tag = Tagged::new(tag, Some(&now)).to_string();
            Ok(Present { wish: Some(Wish { tag, deadline: approval.deadline }), ..kept })
        }
        Fit::Yes(now) => Ok(Present { moved: now != before, digest: Some(now), gone, ..Present::default() }),
        Fit::No(unfit) if gone.is_none() => Ok(Present { unfit: Some(unfit), ..kept }),
        Fit::No(_) => Ok(Present { gone, ..Present::default() }),
    }
}

/// The digest of a tag that is run already and whose digest is not known: not worth a failure, unless it is pinned. None if
/// that digest was rejected: there is none to go back to, so the tag is run as it is.
async fn first_digest<M: Manifests>(
    given: &Given<'_>,
    tag: &str,
    missing: bool,
    checks: &mut Checks,
    manifests: &M,
) -> Result<Present, Failure> {
    let allowed = |digest: &String| !given.is_rejected(&Tagged::new(tag, Some(digest)));
    if given.spec.pin {
        let digest = manifests.digest(tag).await?.filter(allowed);
        return Ok(Present { moved: digest.is_some(), digest, ..Present::default() });
    }
    if missing || checks.contains_key(tag) {
        return Ok(Present::default()); // asked for before, in vain
    }
    checks.insert(tag.to_owned(), None);
    let digest = manifests.digest(tag).await.unwrap_or_else(|failure| {
        tracing::debug!(tag, cause = failure.message, "the digest of the current tag stays unknown");
        None
    });
    Ok(Present { digest: digest.filter(allowed), ..Present::default() })
}

/// Whether a tag can be run. What was learned before counts as long as its digest is the same; `now` is the digest, if it
/// has just been asked for.
async fn check<M: Manifests>(
    given: &Given<'_>,
    tag: &str,
    now: Option<String>,
    checks: &mut Checks,
    manifests: &M,
) -> Result<Fit, Failure> {
    let known = match checks.get(tag) {
        None => manifests.manifest(tag).await?,
        Some(before) => {
            let now = match now {
                Some(now) => Some(now),
                None => manifests.digest(tag).await?,
            };
            match (now, before) {
                (None, _) => None,
                (Some(now), Some(manifest)) if now == manifest.digest.as_str() => Some(manifest.clone()),
                (Some(_), _) => manifests.manifest(tag).await?,
            }
        }
    };
    checks.insert(tag.to_owned(), known.clone());
    let Some(manifest) = known else {
        return Ok(Fit::No("the registry lists it but has no manifest of that name".to_owned()));
    };
    let digest = manifest.digest.to_string();
    if given.is_rejected(&Tagged::new(tag, Some(&digest))) {
        return Ok(Fit::Rejected(format!("{digest} was rejected; action=retry clears that")));
    }
    if let Some(platforms) = &manifest.platforms
        && let Some(lacks) = manifests.needed().await?.lacks(platforms)
    {
        return Ok(Fit::No(lacks));
    }
    Ok(Fit::Yes(digest))
}

impl<'a> Given<'a> {
    /// What is known from the status, or, if that was lost, from stamps.
    pub fn new(
        image: &'a ImageKey,
        spec: &'a CompiledSpec,
        status: &ImageStatus,
        known: Known<'a>,
        tags: &'a [&'a str],
        gate: Gate,
    ) -> Self {
        let current = status::current(status).or_else(|| known.stamped.cloned());
        Self { image, spec, known, digest: current.and_then(|current| current.digest), tags, gate }
    }
}

impl Given<'_> {
    /// Whether a tag may be run whatever its age: it runs already, or a person wrote it down.
    fn stays(&self, tag: &str) -> bool {
        self.current() == Some(tag) || self.spec.base_tag.as_deref() == Some(tag)
    }

    /// The choice as the gates let it be: while they are closed the current tag stays, and the chosen one waits.
    fn hold_back(&self, choice: Choice, ages: Ages) -> Chosen {
        let young = ages.waits();
        let moved = self.spec.pin && self.digest.is_some() && choice.digest != self.digest;
        let to = match (moved, &choice.gone) {
            (true, None) => Tagged::new(&choice.tag, choice.digest.as_deref()).to_string(),
            _ => choice.tag.clone(),
        };
        let seen = ages.seen(&to, |tag| self.lists(tag));
        // A digest that is gone can run nowhere, whatever the gates say.
        let changes = choice.gone.is_none() && (self.current() != Some(&choice.tag) || moved);
        let outcome = match (self.gate.closed.as_ref().filter(|_| changes), self.current()) {
            (None, _) => Outcome::Tag(Choice { waits: young.map(Box::new), ..choice }),
            (Some(closed), None) => Outcome::Waiting(Waits::closed(&to, closed)),
            (Some(closed), Some(current)) => Outcome::Tag(Choice {
                tag: current.to_owned(),
                rule: String::new(),
                why: closed.why.clone(),
                missing: !self.lists(current),
                digest: self.digest.clone(),
                waits: Some(Box::new(Waits::closed(&to, closed))),
                ..choice
            }),
        };
        Chosen::new(self, outcome, seen)
    }

    fn is_approved(&self, tag: &str) -> bool {
        self.gate.approved.as_ref().is_some_and(|approved| approved.tag == tag)
    }

    /// Whether the registry lists a tag, with or without a digest.
    fn lists(&self, tag: &str) -> bool {
        let tag = tag.split_once('@').map_or(tag, |(tag, _)| tag);
        self.tags.contains(&tag)
    }

    fn is_rejected(&self, tagged: &Tagged) -> bool {
        self.known.rejected.is_some_and(|rejected| tagged.is_in(rejected))
    }

    fn current(&self) -> Option<&str> {
        let stamped = self.known.stamped.map(|stamped| stamped.tag.as_str());
        self.known.in_flight.or(self.known.settled).or(stamped)
    }

    /// No tag is left that can be run: the current one is kept, if there is one.
    fn keep(&self, passed_over: &[(String, String)]) -> Result<Outcome, Failure> {
        let none = || {
            let sentences: Vec<String> = passed_over.iter().map(|(tag, reason)| format!("{tag}: {reason}")).collect();
            self.failure(
                "NoMatchingTag",
                &format!("no tag of {} can be run: {}", self.spec.repository, sentences.join("; ")),
            )
        };
        let tag = self.current().ok_or_else(none)?.to_owned();
        let missing = !self.tags.contains(&&*tag);
        let adopted = self.known.stamped.filter(|_| self.known.settled.is_none()).cloned();
        let why = "no newer one can be run".to_owned();
        Ok(Outcome::Tag(Choice { tag, why, missing, adopted, ..Choice::default() }))
    }

    fn nothing(
        &self,
        verdict: Verdict,
        passed_over: &[(String, String)],
        young: Option<Waits>,
    ) -> Result<Outcome, Failure> {
        match (verdict, young) {
            // Every tag that the rules would choose has to wait.
            (_, Some(_)) if self.current().is_some() => self.keep(passed_over),
            (_, Some(waits)) => Ok(Outcome::Waiting(waits)),
            (verdict, None) => self.nothing_at_all(verdict, passed_over),
        }
    }

    fn nothing_at_all(&self, verdict: Verdict, passed_over: &[(String, String)]) -> Result<Outcome, Failure> {
        let repository = &self.spec.repository;
        match verdict {
            _ if !passed_over.is_empty() => self.keep(passed_over),
            Verdict::None { why } => {
                let why = why.trim_start_matches("no tag: ");
                Err(self.failure("NoMatchingTag", &format!("no tag of {repository} can be chosen: {why}")))
            }
            _ => Err(self.failure("NoTags", &format!("{repository} lists no tags; push one, or check spec.image"))),
        }
    }

    fn failure(&self, reason: &'static str, message: &str) -> Failure {
        let message = format!("Image {}: {message}", self.image);
        Failure { result: SyncResult::TagsError, reason, message, stalled: false }
    }
}

#[cfg(test)]
mod approved;
#[cfg(test)]
mod gated;
#[cfg(test)]
mod tests;
