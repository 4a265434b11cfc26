//! What keeps a container at another tag, and what ends that.

use super::*;
use crate::api::{AfterRollback, Held};
use jiff::Timestamp;

const OLD: &str = "app:1.0.0 app:1.1.0";
const LEFT: &str = "app:1.0.0 app:1.2.0";

/// A hold on record, at 1.1.0.
fn record(by: HeldBy, left: &str) -> Held {
    Held { tag: "1.1.0".to_owned(), left: left.to_owned(), by, ..Held::default() }
}

impl Case {
    fn record(mut self, record: Held) -> Self {
        if record.holds() && record.by.is_behind() {
            self.target.left = Some(record.left.clone());
        }
        self.target.holding.record = Some(record);
        self
    }

    fn after(mut self, after: AfterRollback) -> Self {
        self.target.holding.after = after;
        self
    }

    fn stay(mut self, stay: Stay) -> Self {
        self.target.holding.stay = Some(stay);
        self
    }

    fn resume(mut self) -> Self {
        self.target.holding.resume = true;
        self
    }

    fn unmarked(mut self) -> Self {
        self.workload.marked = false;
        self
    }

    fn paused(mut self) -> Self {
        self.workload.paused = true;
        self
    }

    /// The current revision is the newest of all.
    fn new_revision(mut self) -> Self {
        for revision in self.facts.iter_mut().flat_map(|facts| &mut facts.revisions) {
            revision.created = Some(Timestamp::from_second(i64::from(revision.current)).unwrap());
        }
        self
    }
}

/// As [`super::say`], with everything that concerns holds: `| adopts`, `| released`, and what holds it.
#[track_caller]
fn check(case: Case, expected: &str) {
    let targets = BTreeMap::from([("app".to_owned(), case.target)]);
    let plan = plan(&case.workload, &targets, case.facts.as_ref());
    let mut said = Vec::new();
    said.extend(plan.blocked.map(|why| format!("{why:?}")));
    let change = |c: &Change| format!("{} -> {} as {}", c.from, plan.stamps["app"], c.rule);
    said.extend(plan.changes.first().map(change));
    said.extend(plan.holds.first().map(|hold| format!("{:?} at {}", hold.by, hold.tag)));
    said.extend(plan.released.first().map(|hold| format!("{:?} at {} released", hold.by, hold.tag)));
    said.extend(plan.adopts.get("app").map(|stamp| format!("adopts {stamp}")));
    let said = if said.is_empty() { "keep".to_owned() } else { said.join(", ") };
    assert_eq!(said, expected);
    // Only what is held, or rejected, is sent somewhere at once.
    let at_once = |c: &Change| c.rule == ROLLBACK || (c.rule == HOLD && !plan.holds.is_empty());
    assert!(plan.changes.iter().all(|c| c.back.is_some() == at_once(c)));
}

/// 1.1.0 was rejected.
fn rejecting(mut case: Case) -> Case {
    case.target.rejected.insert("1.1.0".to_owned());
    case.target.holding.rejected = case.target.holding.record.as_ref().is_some_and(|held| held.by.is_behind());
    case
}

fn ours(tag: &str) -> Case {
    case("app:1.0.0", tag).stamp(OLD, &[OURS])
}

fn undone(tag: &str) -> Case {
    case("app:1.0.0", tag).stamp(OLD, &["kubectl-rollout"])
}

#[test]
fn a_stamp_that_was_put_back_becomes_ours_once_it_is_on_record() {
    check(undone("1.2.0").facts(&[OLD, LEFT], &[]), "Undo at 1.1.0");
    check(undone("1.2.0").record(record(HeldBy::Undo, "1.2.0")), &format!("Undo at 1.1.0, adopts {OLD}"));
    // Taken over by a GitOps tool.
    let taken_over = case("app:1.0.0", "1.2.0").stamp(OLD, &["kustomize-controller"]);
    check(taken_over.record(record(HeldBy::Undo, "1.2.0")), &format!("Undo at 1.1.0, adopts {OLD}"));
    // Ours: only the record tells it from unfinished work.
    check(ours("1.2.0").record(record(HeldBy::Undo, "1.2.0")), "Undo at 1.1.0");
    check(ours("1.2.0"), "1.1.0 -> app:1.0.0 app:1.2.0 as minor");
    let other = Held { tag: "1.0.5".to_owned(), ..record(HeldBy::Undo, "1.2.0") };
    check(ours("1.2.0").record(other), "1.1.0 -> app:1.0.0 app:1.2.0 as minor");
    // A newer tag ends it, also with the revisions of the past at hand.
    let newer = ours("1.3.0").record(record(HeldBy::Undo, "1.2.0")).facts(&[OLD, LEFT], &[]);
    check(newer, "1.1.0 -> app:1.0.0 app:1.3.0 as minor");
    check(ours("1.1.0").record(record(HeldBy::Undo, "1.2.0")), "keep");
}

#[test]
fn where_only_a_person_ends_a_hold_no_tag_does() {
    let held = |case: Case| case.after(AfterRollback::Hold);
    check(held(ours("1.3.0")).record(record(HeldBy::Undo, "1.2.0")), "Undo at 1.1.0");
    check(held(undone("1.3.0")).facts(&[OLD, LEFT], &[]), "Undo at 1.1.0");
    let text = |tag: &str| case("app:1.0.0", tag).stamp("app:1.1.0 app:1.2.0", &[OURS]);
    check(held(text("1.3.0")).facts(&["-"], &["app:1.0.0"]), "Manifest at 1.0.0");
    // Where nobody went back there is nothing to end.
    check(held(ours("1.3.0")), "1.1.0 -> app:1.0.0 app:1.3.0 as minor");
    check(held(ours("1.3.0")).record(record(HeldBy::Undo, "1.2.0")).resume(), {
        "1.1.0 -> app:1.0.0 app:1.3.0 as minor, Undo at 1.1.0 released"
    });
}

#[test]
fn a_stamp_that_was_taken_away_comes_back() {
    let lost = |tag: &str, running: &[&str]| case("app:1.0.0", tag).facts(&["-", LEFT, OLD], running);
    // Replaced as a whole: a revision of before is no undo.
    check(lost("1.2.0", &["app:1.1.0"]), "Undo at 1.1.0");
    check(lost("1.2.0", &["app:1.1.0"]).unmarked(), "1.1.0 -> app:1.0.0 app:1.2.0 as minor");
    check(lost("1.2.0", &["app:1.2.0"]).unmarked(), "keep");
    // So is a revision that was not there before.
    check(lost("1.2.0", &["app:1.1.0"]).new_revision(), "1.1.0 -> app:1.0.0 app:1.2.0 as minor");
    // Held: it goes back to where it was held, whatever its Pods got meanwhile.
    let held = |running: &[&str]| lost("1.2.0", running).record(record(HeldBy::Undo, "1.2.0"));
    let back = "app:1.0.0 app:1.1.0 as hold, Undo at 1.1.0";
    check(held(&["app:1.2.0"]).new_revision(), &format!("1.2.0 -> {back}"));
    check(held(&["app:1.2.0"]).unmarked(), &format!("1.2.0 -> {back}"));
    // Its Pods to come get that at admission; there may be none for ever.
    check(held(&[]).unmarked(), "Undo at 1.1.0");
    check(held(&[]), "Undo at 1.1.0");
    check(held(&[]).unmarked().resume(), "1.1.0 -> app:1.0.0 app:1.2.0 as minor, Undo at 1.1.0 released");
    let mut none = held(&[]).unmarked();
    none.workload.replicas = 0;
    check(none, "Undo at 1.1.0");
    // But no rejected tag: nobody sends a workload there either.
    let rejected = |running: &[&str]| rejecting(held(running).unmarked());
    check(rejected(&[]), "AwaitsPods");
    check(rejected(&["app:1.2.0"]), "keep");
    check(rejected(&["app:1.1.0"]), "1.1.0 -> app:1.0.0 app:1.2.0 as minor");
    check(rejected(&["app:1.0.0"]), "1.0.0 -> app:1.0.0 app:1.2.0 as minor");
    // An older revision whose Pods have it: they leave it like all others.
    let mut put_back = rejected(&["app:1.1.0"]);
    put_back.workload.marked = true;
    check(put_back, "1.1.0 -> app:1.0.0 app:1.2.0 as minor");
    check(held(&["app:1.1.0"]).unmarked(), "Undo at 1.1.0");
    check(held(&["app:1.1.0", "app:1.2.0"]).new_revision(), &format!("1.2.0 -> {back}"));
    // Newer than the others, but not than the hold: somebody put it back.
    let since = |since: &str| Held { since: since.to_owned(), ..record(HeldBy::Undo, "1.2.0") };
    let put_back = |at: &str| lost("1.2.0", &["app:1.2.0"]).record(since(at)).new_revision();
    check(put_back("1970-01-01T00:00:01Z"), &format!("1.2.0 -> {back}"));
    check(put_back("1970-01-01T00:00:02Z"), "keep");
    // An older revision was put back since.
    check(held(&["app:1.0.5"]), "Undo at 1.0.5");
    // Ended by a newer tag, or by a newer text.
    let newer = lost("1.3.0", &["app:1.2.0"]).record(record(HeldBy::Undo, "1.2.0")).unmarked();
    check(newer, "1.2.0 -> app:1.0.0 app:1.3.0 as minor");
    let text = |text: &str, running: &str| {
        case(text, "1.2.0").facts(&["-", LEFT], &[running]).record(record(HeldBy::Undo, "1.2.0")).unmarked()
    };
    check(text("app:1.2.0", "app:1.2.0"), "keep");
    check(text("app:1.1.5", "app:1.1.5"), "Manifest at 1.1.5");
    check(text("app:1.1.5", "app:1.2.0"), "1.2.0 -> app:1.1.5 app:1.1.5 as hold, Manifest at 1.1.5");
    // One of another variant, where that text alone is followed: nobody else says what it runs.
    let variant = |alone: bool| {
        let at = Held { tag: "1.1.0-bookworm".to_owned(), ..record(HeldBy::Undo, "1.2.0-bookworm") };
        let mut case = case("app:1.2.0-alpine", "1.2.0-bookworm").facts(&["-"], &["app:1.2.0-alpine"]).record(at);
        case.target.order = order("semver-minor", None).of_one_text(alone);
        case.target.rejected.insert("1.0.0".to_owned()); // so that its Pods are looked at
        case.unmarked()
    };
    check(variant(true), "keep");
    let sent = "app:1.2.0-alpine app:1.1.0-bookworm as hold, Undo at 1.1.0-bookworm";
    check(variant(false), &format!("1.2.0-alpine -> {sent}"));
    // On record since after its revision was made.
    let since = Held { since: "1970-01-01T00:00:02Z".to_owned(), ..record(HeldBy::Manifest, "1.2.0") };
    let text = |running: &[&str]| case("app:1.1.0", "1.2.0").facts(&["-", LEFT], running).record(since.clone());
    check(text(&["app:1.1.0"]).new_revision(), "Manifest at 1.1.0");
    check(text(&[]).new_revision(), "Manifest at 1.1.0");
    // The same for an older text: its own tag is what it is held at.
    let text = case("app:1.1.0", "1.2.0").facts(&["-", LEFT], &["app:1.2.0"]);
    check(text.record(record(HeldBy::Manifest, "1.2.0")).unmarked(), {
        "1.2.0 -> app:1.1.0 app:1.1.0 as hold, Manifest at 1.1.0"
    });
    let text = case("app:1.1.0", "1.2.0").stamp("app:1.1.0 app:1.1.0", &[OURS]);
    check(text.record(record(HeldBy::Manifest, "1.2.0")), "Manifest at 1.1.0");
}

#[test]
fn a_text_older_than_what_was_left_is_a_decision() {
    let held =
        |text: &str| case(text, "1.4.0").stamp("app:1.0.0 app:1.1.0", &[OURS]).record(record(HeldBy::Undo, "1.4.0"));
    check(held("app:1.0.5"), "Manifest at 1.0.5");
    check(held("app:1.2.0"), "Manifest at 1.2.0");
    check(held("app:1.4.0"), "keep");
    check(held("app:1.5.0"), "keep");
    check(case("app:1.2.0", "1.4.0").stamp("app:1.0.0 app:1.1.0", &[OURS]), "1.2.0 -> app:1.2.0 app:1.4.0 as minor");
}

#[test]
fn the_annotation_keeps_it_at_its_tag() {
    let at = |tag: &str| Stay::At(Tagged::new(tag, None));
    check(ours("1.2.0").stay(at("1.1.0")), "Annotation at 1.1.0");
    // Also backwards, also forwards, also beside what the rules order.
    check(ours("1.2.0").stay(at("1.0.5")), "1.1.0 -> app:1.0.0 app:1.0.5 as hold, Annotation at 1.0.5");
    check(ours("1.2.0").stay(at("2.0.0")), "1.1.0 -> app:1.0.0 app:2.0.0 as hold, Annotation at 2.0.0");
    check(ours("1.2.0").stay(at("main")), "1.1.0 -> app:1.0.0 app:main as hold, Annotation at main");
    check(undone("1.2.0").stay(at("1.2.0")), "1.1.0 -> app:1.0.0 app:1.2.0 as hold, Annotation at 1.2.0");
    // A stamp that somebody else wrote becomes ours once it is on record.
    check(undone("1.2.0").stay(at("1.1.0")), "Annotation at 1.1.0");
    let on_record = undone("1.2.0").stay(at("1.1.0")).record(record(HeldBy::Annotation, ""));
    check(on_record, &format!("Annotation at 1.1.0, adopts {OLD}"));
    // Another text, older or newer, is not what the annotation says.
    let text = |text: &str| case(text, "1.2.0").stamp(OLD, &[OURS]).stay(at("1.1.0"));
    check(text("app:1.0.5"), "1.0.5 -> app:1.0.5 app:1.1.0 as hold, Annotation at 1.1.0");
    check(text("app:3.0.0"), "3.0.0 -> app:3.0.0 app:1.1.0 as hold, Annotation at 1.1.0");
    // Without a stamp it depends on what its Pods run.
    let plain = || case("app:1.0.0", "1.2.0").stay(at("1.1.0"));
    check(plain(), "NeedsFacts");
    check(plain().facts(&["-"], &["app:1.1.0"]), "Annotation at 1.1.0");
    check(plain().facts(&["-"], &["app:1.2.0"]), "1.2.0 -> app:1.0.0 app:1.1.0 as hold, Annotation at 1.1.0");
    check(plain().facts(&["-"], &[]), " -> app:1.0.0 app:1.1.0 as hold, Annotation at 1.1.0");
    check(plain().facts(&["-"], &[]).record(record(HeldBy::Annotation, "")), "Annotation at 1.1.0");
    let mut rejected = plain().facts(&["-"], &[]).record(record(HeldBy::Annotation, ""));
    rejected.target.rejected.insert("1.1.0".to_owned());
    check(rejected, "Annotation at 1.1.0");
    // It does not name what it would have to run.
    check(ours("1.2.0").stay(Stay::Here("9.9.9".to_owned())), "Annotation at 1.1.0");
    check(case("app:1.0.0", "1.2.0").stay(Stay::Here("9".to_owned())), "NeedsFacts");
    let here = case("app:1.0.0", "1.2.0").stay(Stay::Here("9".to_owned()));
    check(here.facts(&["-"], &["app:1.1.0"]), "Annotation at 1.1.0");
    let here = || case("app:1.0.0", "1.2.0").stay(Stay::Here("9".to_owned())).facts(&["-"], &[]);
    check(here(), "AwaitsPods");
    check(here().record(record(HeldBy::Annotation, "")), "Annotation at 1.1.0");
    // A stamp for another text says as little as none; what a rollback held is not asked for then.
    let text = || case("app:1.0.5", "1.2.0").stamp(OLD, &[OURS]).stay(Stay::Here("9".to_owned()));
    check(text(), "Annotation at 1.0.5");
    check(text().record(Held { tag: "1.2.0".to_owned(), ..record(HeldBy::Annotation, "") }), "Annotation at 1.2.0");
    check(text().record(record(HeldBy::Undo, "1.2.0")), "Annotation at 1.0.5");
    // Taken away: its Pods run what they were given, not that text.
    let ended = |text: &str| case(text, "1.2.0").stamp(OLD, &[OURS]).record(record(HeldBy::Annotation, ""));
    check(ended("app:3.0.0"), "1.1.0 -> app:3.0.0 app:3.0.0 as minor, Annotation at 1.1.0 released");
    check(ended("app:1.1.5"), "1.1.5 -> app:1.1.5 app:1.2.0 as minor, Annotation at 1.1.0 released");
    check(ended("app:1.0.5").facts(&[OLD], &[]), "1.0.5 -> app:1.0.5 app:1.2.0 as minor, Annotation at 1.1.0 released");
    let older = ended("app:1.0.5").facts(&[OLD, LEFT], &[]);
    check(older, "1.1.0 -> app:1.0.5 app:1.0.5 as hold, Manifest at 1.0.5");
    check(ended("app:1.1.0").order("digest", None), "Annotation at 1.1.0 released");
    let mut none = here();
    none.workload.replicas = 0;
    check(none, "Annotation at 1.0.0");
    check(ours("1.2.0").stay(Stay::Asks), "AwaitsRegistry");
    // Resumed, or taken away.
    let held = || ours("1.2.0").record(record(HeldBy::Annotation, ""));
    check(held().stay(at("1.1.0")), "Annotation at 1.1.0");
    let ended = "1.1.0 -> app:1.0.0 app:1.2.0 as minor, Annotation at 1.1.0 released";
    check(held().stay(at("1.1.0")).resume(), ended);
    check(held(), ended);
    let newer = case("app:1.0.0", "1.1.0").stamp("app:1.0.0 app:1.1.0", &[OURS]);
    check(newer.record(record(HeldBy::Annotation, "")), "Annotation at 1.1.0 released");
}

#[test]
fn what_is_released_is_rolled_when_its_turn_comes() {
    let released = || Held { released: Some("then".to_owned()), ..record(HeldBy::Undo, "1.2.0") };
    let ended = "1.1.0 -> app:1.0.0 app:1.2.0 as minor, Undo at 1.1.0 released";
    check(undone("1.2.0").facts(&[OLD, LEFT], &[]).resume(), ended);
    check(undone("1.2.0").record(record(HeldBy::Undo, "1.2.0")).resume(), ended);
    check(ours("1.2.0").record(record(HeldBy::Undo, "1.2.0")).resume(), ended);
    // The annotation is gone, a gate is closed still.
    check(undone("1.2.0").facts(&[OLD, LEFT], &[]).record(released()), ended);
    check(ours("1.2.0").record(released()), "1.1.0 -> app:1.0.0 app:1.2.0 as minor");
    let unstamped = case("app:1.0.0", "1.2.0").facts(&["-", LEFT], &["app:1.1.0"]);
    check(unstamped.record(released()), ended);
    let text = case("app:1.1.0", "1.2.0").stamp("app:1.0.0 app:1.2.0", &[OURS]).facts(&[LEFT], &[]);
    check(text.record(Held { by: HeldBy::Manifest, ..released() }), {
        "1.1.0 -> app:1.1.0 app:1.2.0 as minor, Manifest at 1.1.0 released"
    });
    // Somebody went back again since, to another tag.
    let again = case("app:1.0.0", "1.2.0").stamp("app:1.0.0 app:1.0.5", &["kubectl-rollout"]);
    check(again.facts(&["app:1.0.0 app:1.0.5", LEFT], &[]).record(released()), "Undo at 1.0.5");
    // Nothing was held.
    check(ours("1.2.0").resume(), "1.1.0 -> app:1.0.0 app:1.2.0 as minor");
}

#[test]
fn who_takes_stamps_away_is_left_alone() {
    let fight = || Stay::Fight("flux".to_owned());
    let lost = |running: &[&str]| case("app:1.0.0", "1.2.0").facts(&["-", LEFT], running);
    check(lost(&["app:1.1.0"]).unmarked().stay(fight()), "Fight at 1.1.0");
    check(lost(&[]).unmarked().stay(fight()), "Fight at 1.0.0");
    check(ours("1.2.0").stay(fight()), "Fight at 1.1.0");
    // On record it lasts, whatever becomes of the stamp, and of newer tags.
    for case in [lost(&["app:1.2.0"]), ours("1.3.0"), undone("1.3.0"), case("app:1.0.0", "1.3.0")] {
        check(case.record(record(HeldBy::Fight, "")), "Fight at 1.1.0");
    }
    let at = Stay::At(Tagged::new("1.0.5", None));
    check(ours("1.2.0").stay(at).record(record(HeldBy::Fight, "")), "Fight at 1.1.0");
    // Until somebody says otherwise.
    let ended = "1.1.0 -> app:1.0.0 app:1.2.0 as minor";
    check(lost(&["app:1.1.0"]).unmarked().record(record(HeldBy::Fight, "")).resume(), {
        "1.1.0 -> app:1.0.0 app:1.2.0 as minor, Fight at 1.1.0 released"
    });
    let released = Held { released: Some("then".to_owned()), ..record(HeldBy::Fight, "") };
    check(lost(&["app:1.1.0"]).unmarked().record(released), ended);
}

#[test]
fn nothing_is_stamped_while_it_is_paused() {
    check(ours("1.2.0").paused(), "Paused at 1.1.0");
    check(ours("1.1.0").paused(), "keep");
    check(case("app:1.0.0", "1.2.0").facts(&["-"], &["app:1.1.0"]).paused(), "Paused at 1.1.0");
    check(case("app:1.0.0", "1.2.0").facts(&["-"], &[]).paused(), "Paused at 1.0.0");
    check(ours("1.2.0").paused().stay(Stay::At(Tagged::new("1.0.5", None))), "Annotation at 1.0.5");
    // A pause that is over.
    check(ours("1.2.0").record(record(HeldBy::Paused, "")), "1.1.0 -> app:1.0.0 app:1.2.0 as minor");
    check(undone("1.2.0").record(record(HeldBy::Undo, "1.2.0")).paused(), &format!("Undo at 1.1.0, adopts {OLD}"));
}

#[test]
fn the_cause_says_that_it_was_sent_back() {
    let mut held = target("1.2.0");
    held.holding.stay = Some(Stay::At(Tagged::new("1.0.5", None)));
    let mut web = workload("app:1.0.0");
    stamp(&mut web, "app", OLD, &[OURS]);
    let plan = plan(&web, &BTreeMap::from([("app".to_owned(), held)]), None);
    assert_eq!(plan.change_cause(), "kimup: app 1.1.0 -> 1.0.5 (Image web, hold: annotation)");
    assert_ne!(plan.changes[0].rollout, id("uid", "1.0.5"), "that tag was rolled out before");
}

#[test]
fn who_fails_alone_goes_back_and_stays_there() {
    let failed = || record(HeldBy::RolloutFailed, "1.2.0");
    let tried = |tag: &str| case("app:1.0.0", tag).stamp(LEFT, &[OURS]);
    let back = |tag: &str| case("app:1.0.0", tag).stamp(OLD, &[OURS]);
    check(tried("1.2.0"), "keep");
    check(tried("1.2.0").record(failed()), &format!("1.2.0 -> {OLD} as rollback, RolloutFailed at 1.1.0"));
    check(back("1.2.0").record(failed()), "RolloutFailed at 1.1.0");
    check(tried("1.2.0").record(failed()).paused(), "RolloutFailed at 1.1.0");
    // A newer tag ends it, or a person.
    check(tried("1.3.0").record(failed()), "1.2.0 -> app:1.0.0 app:1.3.0 as minor");
    check(back("1.3.0").record(failed()).facts(&[OLD, LEFT], &[]), "1.1.0 -> app:1.0.0 app:1.3.0 as minor");
    check(back("1.3.0").record(failed()).after(AfterRollback::Hold), "RolloutFailed at 1.1.0");
    let released = Held { released: Some("then".to_owned()), ..failed() };
    check(tried("1.2.0").record(released.clone()), "keep");
    check(back("1.2.0").record(released), "1.1.0 -> app:1.0.0 app:1.2.0 as minor");
    check(tried("1.2.0").record(failed()).resume(), "RolloutFailed at 1.1.0 released");
    let resumed = "1.1.0 -> app:1.0.0 app:1.2.0 as minor, RolloutFailed at 1.1.0 released";
    check(back("1.2.0").record(failed()).resume(), resumed);
    // What it went back to was rejected since.
    let mut rejected = tried("1.2.0").record(failed());
    rejected.target.holding.rejected = true;
    check(rejected, "keep");
    // Another decision of a person: an undo further back, a text, the annotation.
    let undone = case("app:1.0.0", "1.2.0").stamp("app:1.0.0 app:1.0.5", &["kubectl-rollout"]);
    check(undone.record(failed()), "Undo at 1.0.5");
    check(case("app:1.2.0", "1.2.0").stamp(OLD, &[OURS]).record(failed()), "keep");
    let annotated = tried("1.2.0").record(failed()).stay(Stay::At(Tagged::new("1.0.7", None)));
    check(annotated, "1.2.0 -> app:1.0.0 app:1.0.7 as hold, Annotation at 1.0.7");
    // Its stamp was lost: the Pods to come start where it is held, those that are there go there.
    let lost =
        |running: &[&str]| case("app:1.0.0", "1.2.0").record(failed()).facts(&["-", OLD, LEFT], running).unmarked();
    check(lost(&[]), "RolloutFailed at 1.1.0");
    check(lost(&["app:1.1.0"]), "RolloutFailed at 1.1.0");
    check(lost(&["app:1.2.0"]), &format!("1.2.0 -> {OLD} as rollback, RolloutFailed at 1.1.0"));
}

#[test]
fn what_none_of_its_pods_runs_any_more() {
    #[track_caller]
    fn check(case: &Case, expected: &[&str]) {
        assert_eq!(case.target.left_behind(), expected.iter().map(|&tag| tag.to_owned()).collect());
    }
    check(&ours("1.2.0"), &[]);
    check(&ours("1.2.0").record(record(HeldBy::Undo, "1.2.0")), &[]);
    check(&ours("1.2.0").record(record(HeldBy::RolloutFailed, "1.2.0")), &["1.2.0"]);
    check(&ours("1.2.0").record(record(HeldBy::RolloutFailed, "1.2.0")).resume(), &[]);
    check(&rejecting(ours("1.2.0")).record(record(HeldBy::RolloutFailed, "1.2.0")), &["1.1.0", "1.2.0"]);
}

#[test]
fn nobody_is_held_at_a_tag_that_is_rejected_later() {
    let undo = || record(HeldBy::Undo, "1.2.0");
    let follows = "1.1.0 -> app:1.0.0 app:1.2.0 as minor";
    check(rejecting(ours("1.2.0").record(undo())), follows);
    check(rejecting(undone("1.2.0").record(undo())), follows);
    check(rejecting(undone("1.2.0").facts(&[OLD, LEFT], &[])), follows);
    check(rejecting(ours("1.2.0").record(record(HeldBy::RolloutFailed, "1.2.0"))), follows);
    let back = "1.1.0 -> app:1.0.0 app:1.0.5 as rollback";
    check(rejecting(ours("1.0.5").record(undo())), back);
    let released = Held { released: Some("then".to_owned()), ..undo() };
    check(rejecting(ours("1.2.0").record(released)), follows);
    // Only a person ends it: or the tag.
    check(rejecting(ours("1.2.0").record(undo()).after(AfterRollback::Hold)), follows);
    // Somebody named that very tag.
    let at = || Stay::At(Tagged::new("1.1.0", None));
    check(rejecting(ours("1.2.0").stay(at())), "Annotation at 1.1.0");
    check(rejecting(ours("1.2.0").record(record(HeldBy::Annotation, "")).stay(at())), "Annotation at 1.1.0");
    let text = case("app:1.1.0", "1.2.0").stamp(LEFT, &[OURS]);
    check(rejecting(text.record(record(HeldBy::Manifest, "1.2.0"))), "Manifest at 1.1.0");
}

/// 1.1.0 was rejected, and 1.0.5 is what ran before it.
fn further(case: Case) -> Case {
    let mut case = rejecting(case);
    case.target.holding.further = Some(Tagged::new("1.0.5", None));
    case
}

/// The same once that is on record.
fn recorded(mut case: Case) -> Case {
    case.target.rejected.insert("1.1.0".to_owned());
    case.target.why_rejected = "it crashes".to_owned();
    case
}

#[test]
fn who_is_held_at_a_tag_that_is_rejected_later_goes_back_and_not_to_what_was_left() {
    use HeldBy::{Manifest, RolloutFailed, Undo};
    let at = |by| Held { tag: "1.0.5".to_owned(), ..record(by, "1.2.0") };
    let older = |tag: &str| case("app:1.0.0", tag).stamp("app:1.0.0 app:1.0.5", &[OURS]);
    for by in [Undo, Manifest, RolloutFailed] {
        let stays = format!("{by:?} at 1.0.5");
        let goes = format!("1.1.0 -> app:1.0.0 app:1.0.5 as rollback, {stays}");
        let follows = "1.1.0 -> app:1.0.0 app:1.2.0 as minor";
        // On record first; who wrote the stamp does not matter, and it is adopted by nobody.
        check(further(ours("1.2.0").record(record(by, "1.2.0"))), &stays);
        check(further(undone("1.2.0").record(record(by, "1.2.0"))), &stays);
        check(recorded(ours("1.2.0").record(at(by))), &goes);
        check(recorded(undone("1.2.0").record(at(by))), &goes);
        check(recorded(ours("1.2.0").record(at(by)).paused()), &stays);
        check(recorded(older("1.2.0").record(at(by))), &stays);
        // Nothing older is there.
        check(rejecting(ours("1.2.0").record(record(by, "1.2.0"))), follows);
        // A newer tag ends it, but where only a person does; so does a person.
        let newer = "1.1.0 -> app:1.0.0 app:1.3.0 as minor";
        check(further(ours("1.3.0").record(record(by, "1.2.0"))), newer);
        check(recorded(ours("1.3.0").record(at(by)).facts(&[OLD, LEFT], &[])), newer);
        check(further(ours("1.3.0").record(record(by, "1.2.0")).after(AfterRollback::Hold)), &stays);
        check(recorded(ours("1.3.0").record(at(by)).after(AfterRollback::Hold)), &goes);
        check(
            further(ours("1.2.0").record(record(by, "1.2.0")).resume()),
            &format!("{follows}, {by:?} at 1.1.0 released"),
        );
        let released = Held { released: Some("then".to_owned()), ..record(by, "1.2.0") };
        check(further(ours("1.2.0").record(released)), follows);
        // It went there while a newer tag could not go, which has failed since.
        check(further(older("1.2.0").record(record(by, "1.2.0"))), &stays);
        // Without a stamp the same: its Pods run the rejected tag, or none do.
        let without = |running: &[&str]| case("app:1.0.0", "1.2.0").facts(&["-", LEFT, OLD], running);
        for marked in [true, false] {
            let lost = |mut case: Case| {
                case.workload.marked = marked;
                case
            };
            check(further(lost(without(&["app:1.1.0"]).record(record(by, "1.2.0")))), &stays);
            check(further(lost(without(&[]).record(record(by, "1.2.0")))), &stays);
            check(recorded(lost(without(&["app:1.1.0"]).record(at(by)))), &goes);
            check(recorded(lost(without(&["app:1.0.5", "app:1.1.0"]).record(at(by)))), &goes);
            check(recorded(lost(without(&["app:1.0.5"]).record(at(by)))), &stays);
            check(recorded(lost(without(&[]).record(at(by)))), &stays);
        }
        // Admission gave them what was left before it was on record.
        check(further(without(&["app:1.2.0"]).record(record(by, "1.2.0")).unmarked()), &stays);
        let rule = if by == RolloutFailed { "rollback" } else { "hold" };
        let sent = format!("1.2.0 -> app:1.0.0 app:1.0.5 as {rule}, {stays}");
        check(recorded(without(&["app:1.2.0"]).record(at(by)).unmarked()), &sent);
    }
    // An undo of that, to the rejected one; and further back than what is on record.
    check(recorded(undone("1.2.0").record(at(Undo)).facts(&["app:1.0.0 app:1.0.5", LEFT, OLD], &[])), {
        "1.1.0 -> app:1.0.0 app:1.0.5 as rollback, Undo at 1.0.5"
    });
    let further_back = case("app:1.0.0", "1.2.0").stamp("app:1.0.0 app:1.0.2", &["kubectl-rollout"]);
    check(further(further_back.record(record(Undo, "1.2.0"))), "Undo at 1.0.2");
    // Somebody's own text, or what somebody named.
    let text = case("app:1.1.0", "1.2.0").stamp(LEFT, &[OURS]).record(record(Manifest, "1.2.0"));
    check(further(text), "Manifest at 1.1.0");
    let stay = Stay::At(Tagged::new("1.1.0", None));
    check(rejecting(ours("1.2.0").record(record(HeldBy::Annotation, "")).stay(stay)), "Annotation at 1.1.0");
}

#[test]
fn a_hold_on_record_keeps_its_digest() {
    let digest = format!("sha256:{}", "a".repeat(64));
    let (tag, stamp) = (format!("1.0.5@{digest}"), format!("app:1.0.0 app:1.0.5@{digest}"));
    let held = Held { tag: tag.clone(), ..record(HeldBy::Undo, "1.2.0") };
    let sent = format!("1.1.0 -> {stamp} as rollback, Undo at {tag}");
    check(recorded(ours("1.2.0").record(held.clone())), &sent);
    check(recorded(case("app:1.0.0", "1.2.0").stamp(&stamp, &[OURS]).record(held)), &format!("Undo at {tag}"));
}

#[test]
fn a_hold_that_goes_further_back_says_from_where() {
    let plan = |case: Case| plan(&case.workload, &BTreeMap::from([("app".to_owned(), case.target)]), None);
    let pending = plan(further(ours("1.2.0").record(record(HeldBy::Undo, "1.2.0"))));
    let said = &pending.holds[0];
    assert_eq!((said.what.as_deref(), said.left.as_str()), (Some("1.1.0"), "1.2.0"));
    let at = Held { tag: "1.0.5".to_owned(), ..record(HeldBy::Undo, "1.2.0") };
    let sent = plan(recorded(ours("1.2.0").record(at)));
    assert_eq!(sent.change_cause(), "kimup: app 1.1.0 -> 1.0.5 (Image web, rollback: it crashes)");
    assert!(sent.goes_back());
}
