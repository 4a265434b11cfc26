//! What waits for a person's approval, and what a person approved.

use std::cmp::Ordering;

use crate::api::{Approval, CompiledSpec, Order, Tagged};
use crate::sync::approval::{self, Answer, Wish};
use crate::sync::decide::{self, Choice, Rules};
use crate::sync::gates::{self, Ages, Waits};
use crate::sync::status::{Failure, Outcome};

use super::{Checks, Chosen, Fit, Given, Manifests, Picked, check, pick};

/// How a rule that follows the digest of the tag asks for approval, if it does.
pub(super) fn of_digest(spec: &CompiledSpec) -> Option<Approval> {
    let name = spec.follows_digest.as_ref()?;
    spec.rules.iter().find(|rule| rule.name == *name && rule.approval.is_some())?.approval
}

/// What goes by itself, and what would go beyond it if somebody approved it.
pub(super) async fn wish<M: Manifests>(
    given: &Given<'_>,
    free: Result<Picked, Failure>,
    ages: &mut Ages,
    checks: &mut Checks,
    manifests: &M,
) -> Result<(Picked, Option<Wish>), Failure> {
    if !given.spec.asks_approval() {
        return Ok((free?, None));
    }
    if free.is_err() && given.current().is_some() {
        return Ok((free?, None));
    }
    let all = Box::pin(pick(given, Rules::All, ages, checks, manifests)).await?;
    let Ok(mut free) = free else {
        // Without approval there is no tag at all: why not, the other rules tell.
        return Ok(match &all.outcome {
            Outcome::Tag(choice) => {
                let wish = of_choice(given, choice);
                let waits = approval::waits(given.image, &wish.asked(given.gate.asked.as_ref(), given.gate.now));
                (Picked { outcome: Outcome::Waiting(waits), ..all }, Some(wish))
            }
            _ => (all, None),
        });
    };
    let runs = match &free.outcome {
        Outcome::Tag(choice) => Some(choice.tag.as_str()),
        _ => None,
    };
    let beyond = match &all.outcome {
        Outcome::Tag(choice) if given.current() != Some(&choice.tag) && runs != Some(&choice.tag) => choice,
        _ => return Ok((free, None)),
    };
    // The rules that need nobody have come further.
    let behind = |runs| Order::from(given.spec).compare(&beyond.tag, runs) == Some(Ordering::Less);
    if runs.is_some_and(behind) {
        return Ok((free, None));
    }
    let wish = of_choice(given, beyond);
    let known = |tag: &String| free.passed_over.iter().any(|(other, _)| other == tag);
    let more: Vec<_> = all.passed_over.into_iter().filter(|(tag, _)| !known(tag)).collect();
    free.passed_over.extend(more);
    Ok((free, Some(wish)))
}

/// The rule that chose it asks, or one before it did and this one went on from there.
fn of_choice(given: &Given<'_>, choice: &Choice) -> Wish {
    let rules = &given.spec.rules;
    let at = rules.iter().position(|rule| rule.name == choice.rule).map_or(rules.len(), |at| at + 1);
    let before = rules.iter().take(at).rev().find_map(|rule| rule.approval);
    let approval = before.or_else(|| rules.iter().find_map(|rule| rule.approval)).unwrap_or_default();
    Wish { tag: choice.tag.clone(), deadline: approval.deadline }
}

/// Says of what is chosen that something else is asked for.
pub(super) fn tell(given: &Given<'_>, chosen: &mut Chosen, wish: Option<&Wish>) {
    chosen.asked = wish.map(|wish| wish.asked(given.gate.asked.as_ref(), given.gate.now));
    let (Some(asked), Outcome::Tag(choice)) = (&chosen.asked, &mut chosen.outcome) else {
        return;
    };
    // A gate that opens by itself, or for everybody, comes first; what comes of age must not hide what is asked for.
    if choice.waits.as_ref().is_some_and(|waits| gates::waits_for_opening(waits.reason)) {
        return;
    }
    let young = choice.waits.as_ref().and_then(|waits| waits.pending.at.as_ref()?.parse().ok());
    if asked.lapsed {
        choice.passed_over.push(approval::lapsed(asked));
    } else {
        choice.waits = Some(Box::new(approval::waits(given.image, asked)));
        chosen.wake = young;
    }
}

/// What becomes of what a person approved, and, if it decides the sync, what the sync comes to.
pub(super) async fn answer<M: Manifests>(
    given: &Given<'_>,
    checks: &mut Checks,
    manifests: &M,
) -> Result<Option<(Answer, Option<Outcome>)>, Failure> {
    let Some(approved) = &given.gate.approved else {
        return Ok(None);
    };
    let Some(wanted) = Tagged::parse(&approved.tag) else {
        return Ok(Some((Answer::Refused("it is no tag".to_owned()), None)));
    };
    let (rule, digest) = match fits(given, &wanted, checks, manifests).await? {
        Ok(Some(fits)) => fits,
        Ok(None) => return Ok(Some((Answer::Already, None))),
        Err(why) => return Ok(Some((Answer::Refused(why), None))),
    };
    let choice = Choice {
        tag: wanted.tag.clone(),
        rule,
        why: approved.by.clone(),
        adopted: given.known.stamped.filter(|_| given.known.settled.is_none()).cloned(),
        digest: Some(digest),
        approved: true,
        ..Choice::default()
    };
    let Some(brake) = &given.gate.brake else {
        let against = given.gate.closed.as_ref().map(|closed| closed.why.clone());
        return Ok(Some((Answer::Applied { against }, Some(Outcome::Tag(choice)))));
    };
    let waits = Waits::closed(&approved.tag, brake);
    let Some(current) = given.current() else {
        return Ok(Some((Answer::Waits, Some(Outcome::Waiting(waits)))));
    };
    let kept = Choice {
        tag: current.to_owned(),
        rule: String::new(),
        why: brake.why.clone(),
        missing: !given.lists(current),
        digest: given.digest.clone(),
        waits: Some(Box::new(waits)),
        approved: false,
        ..choice
    };
    Ok(Some((Answer::Waits, Some(Outcome::Tag(kept)))))
}

/// Whether an approved tag can be applied: the rule that allows it and its digest, none if it is the current one already;
/// or why not.
async fn fits<M: Manifests>(
    given: &Given<'_>,
    wanted: &Tagged,
    checks: &mut Checks,
    manifests: &M,
) -> Result<Result<Option<(String, String)>, String>, Failure> {
    let Tagged { tag, digest } = wanted;
    let is_current = given.current() == Some(tag);
    if is_current && (digest.is_none() || *digest == given.digest) {
        let says = of_digest(given.spec).zip(given.gate.asked.as_ref()).filter(|_| digest.is_none());
        return Ok(match says {
            Some((_, asked)) if asked.tag.starts_with(&format!("{tag}@")) => {
                Err(format!("it runs already; its newer digest is {}", asked.tag))
            }
            _ => Ok(None),
        });
    }
    if !given.tags.contains(&tag.as_str()) {
        return Ok(Err(format!("{} does not list it", given.spec.repository)));
    }
    let rule = match (is_current, &given.spec.follows_digest) {
        (true, Some(rule)) => rule.clone(),
        (true, None) => return Ok(Err("no rule follows the digest of a tag".to_owned())),
        (false, _) => match decide::allows(given.spec, given.known, given.current(), given.tags, tag) {
            Ok(rule) => rule,
            Err(why) => return Ok(Err(why)),
        },
    };
    Ok(match check(given, tag, None, checks, manifests).await? {
        Fit::Yes(now) if digest.as_ref().is_some_and(|digest| *digest != now) => Err(format!("{tag} is {now} by now")),
        Fit::Yes(now) => Ok(Some((rule, now))),
        Fit::No(reason) | Fit::Rejected(reason) => Err(reason),
    })
}
