use super::*;
use crate::api::ImageSpec;
use crate::api::annotations::{Map, stamp_key};
use crate::rollout::facts::{PodImages, Revision};
use crate::rollout::{Kind, Placement, PullAccess, WorkloadKey};
use serde_json::json;

fn order(rule: &str, value: Option<&str>) -> Order {
    let spec = json!({
        "image": "app",
        "triggers": [{"type": "interval", "value": "5m"}],
        "rules": [{"name": "r", "type": rule, "value": value, "actions": [{"type": "apply"}]}],
    });
    Order::of(&serde_json::from_value::<ImageSpec>(spec).unwrap())
}

fn target(tag: &str) -> Target {
    Target {
        image: "web".to_owned(),
        tag: tag.to_owned(),
        digest: None,
        settled: false,
        rule: "minor".to_owned(),
        rollout: id("uid", tag),
        order: order("semver-minor", None),
        left: None,
        held: None,
        rejected: BTreeSet::new(),
        why_rejected: String::new(),
    }
}

/// A workload of two Pods whose container `app` has this text.
fn workload(text: &str) -> Workload {
    Workload {
        key: WorkloadKey { kind: Kind::Deployment, namespace: "shop".to_owned(), name: "web".to_owned() },
        uid: "u".to_owned(),
        resource_version: "1".to_owned(),
        generation: 1,
        annotations: Map::new(),
        template_annotations: Map::new(),
        rollout: None,
        containers: vec![Container { name: "app".to_owned(), text: text.to_owned(), init: false }],
        placement: Placement::default(),
        access: PullAccess::default(),
        deleting: false,
        stamp_owners: BTreeMap::new(),
        stamped_at: None,
        selector: None,
        replicas: 2,
        observed: true,
        complete: true,
        paused: false,
        exceeded: None,
        trouble: None,
        denied: None,
        revision: None,
        aborted: None,
        unrollable: None,
    }
}

pub(super) const OURS: &str = FIELD_MANAGER;

fn stamp(workload: &mut Workload, container: &str, value: &str, owners: &[&str]) {
    workload.template_annotations.insert(stamp_key(container), value.to_owned());
    let owners = owners.iter().map(|o| (*o).to_owned()).collect();
    workload.stamp_owners.insert(container.to_owned(), owners);
}

/// The first revision is the template's, and `running` what its Pods run. `-` is a revision without a stamp.
fn facts(revisions: &[&str], running: &[&str]) -> Facts {
    let revisions = revisions.iter().enumerate().map(|(i, value)| {
        let stamps = Stamp::parse(value).map(|stamp| ("app".to_owned(), stamp));
        Revision { hash: i.to_string(), current: i == 0, stamps: stamps.into_iter().collect() }
    });
    let pod = |image: &&str| PodImages {
        hash: "0".to_owned(),
        images: BTreeMap::from([("app".to_owned(), (*image).to_owned())]),
    };
    Facts { revisions: revisions.collect(), pods: running.iter().map(pod).collect() }
}

pub(super) struct Case {
    pub workload: Workload,
    pub target: Target,
    facts: Option<Facts>,
}

pub(super) fn case(text: &str, tag: &str) -> Case {
    Case { workload: workload(text), target: target(tag), facts: None }
}

impl Case {
    pub fn stamp(mut self, value: &str, owners: &[&str]) -> Self {
        stamp(&mut self.workload, "app", value, owners);
        self
    }

    pub fn facts(mut self, revisions: &[&str], running: &[&str]) -> Self {
        self.facts = Some(facts(revisions, running));
        self
    }

    fn left(mut self, tag: &str) -> Self {
        self.target.left = Some(tag.to_owned());
        self
    }

    fn settled(mut self) -> Self {
        self.target.settled = true;
        self
    }

    fn replicas(mut self, replicas: i32) -> Self {
        self.workload.replicas = replicas;
        self
    }

    fn order(mut self, rule: &str, value: Option<&str>) -> Self {
        self.target.order = order(rule, value);
        self
    }
}

/// The plan for `app` in words: `1.0.0 -> 1.1.0 | <stamp>`, `1.0.0 held, left 1.1.0`, or why nothing is planned.
fn say(plan: &Plan) -> String {
    match (plan.blocked, plan.changes.first(), plan.holds.first()) {
        (Some(why), ..) => format!("{why:?}"),
        (_, Some(change), _) => format!("{} -> {} | {}", change.from, change.to, plan.stamps[&change.container]),
        (_, _, Some(hold)) => {
            let by = if hold.by_manifest { " by manifest" } else { "" };
            format!("{} held{by}, left {}", hold.tag, hold.left)
        }
        _ => "keep".to_owned(),
    }
}

#[track_caller]
pub(super) fn check(case: Case, expected: &str) {
    let targets = BTreeMap::from([("app".to_owned(), case.target)]);
    let found = plan(&case.workload, &targets, case.facts.as_ref());
    assert_eq!(say(&found), expected);
}

#[test]
fn a_stamp_for_this_text() {
    let ours = |value: &str, tag: &str| case("app:1.0.0", tag).stamp(value, &[OURS]);
    check(ours("app:1.0.0 app:1.1.0", "1.1.0"), "keep");
    check(ours("app:1.0.0 docker.io/library/app:1.1.0", "1.1.0"), "keep");
    check(ours("app:1.0.0 app:1.1.0", "1.2.0"), "1.1.0 -> 1.2.0 | app:1.0.0 app:1.2.0");
    // Co-owned is owned.
    let both = case("app:1.0.0", "1.2.0").stamp("app:1.0.0 app:1.1.0", &["kubectl-rollout", OURS]);
    check(both, "1.1.0 -> 1.2.0 | app:1.0.0 app:1.2.0");
    // Never backwards, and the same version in another spelling is not worth a rollout.
    check(ours("app:1.0.0 app:1.3.0", "1.2.0"), "keep");
    check(ours("app:1.0.0 app:v1.2.0", "1.2.0"), "keep");
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    check(ours(&format!("app:1.0.0 app:1.2.0@{digest}"), "1.2.0"), "keep");
    // The own tag is newer than the target.
    let own = |stamp: &str| case("app:2.0.0", "1.2.0").stamp(stamp, &[OURS]);
    check(own("app:2.0.0 app:2.0.0"), "keep");
    check(own("app:2.0.0 app:1.1.0"), "1.1.0 -> 2.0.0 | app:2.0.0 app:2.0.0");
    // A rule that cannot compare the stamp's tag: it is replaced, once.
    check(ours("app:1.0.0 app:main", "1.2.0"), "main -> 1.2.0 | app:1.0.0 app:1.2.0");
    let regex = |stamp: &str| case("app:main-1", "main-3").stamp(stamp, &[OURS]).order("regex", Some("^main-"));
    check(regex("app:main-1 app:2.0.0"), "2.0.0 -> main-3 | app:main-1 app:main-3");
    check(regex("app:main-1 app:main-10"), "keep");
    // Admission does not follow a stamp for another repository, and one that is none is no stamp.
    check(ours("app:1.0.0 other:9.0.0", "1.2.0"), "1.0.0 -> 1.2.0 | app:1.0.0 app:1.2.0");
    check(ours("broken", "1.2.0"), "NeedsFacts");
}

#[test]
fn an_older_stamp_that_a_person_put_back() {
    let undone = |tag: &str| case("app:1.0.0", tag).stamp("app:1.0.0 app:1.1.0", &["kubectl-rollout"]);
    let (older, this, left) = ("app:1.0.0 app:1.0.5", "app:1.0.0 app:1.1.0", "app:1.0.0 app:1.2.0");
    check(undone("1.1.0"), "keep");
    check(undone("1.2.0"), "NeedsFacts");
    check(undone("1.2.0").facts(&[this, left, older], &[]), "1.1.0 held, left 1.2.0");
    // Right after the undo, the revision that was left is still the current one.
    check(undone("1.2.0").facts(&[left, this], &[]), "1.1.0 held, left 1.2.0");
    check(undone("1.3.0").facts(&[this, left], &[]), "1.1.0 -> 1.3.0 | app:1.0.0 app:1.3.0");
    // On record, the hold needs no facts, and outlives the revision that was left.
    check(undone("1.2.0").left("1.2.0"), "1.1.0 held, left 1.2.0");
    check(undone("1.2.0").left("1.4.0"), "1.1.0 held, left 1.4.0");
    check(undone("1.3.0").left("1.2.0"), "NeedsFacts");
    check(undone("1.3.0").left("1.2.0").facts(&[this], &[]), "1.1.0 -> 1.3.0 | app:1.0.0 app:1.3.0");
    // Gone back again before the record was cleared.
    let newer = "app:1.0.0 app:1.3.0";
    check(undone("1.3.0").left("1.2.0").facts(&[this, left, newer], &[]), "1.1.0 held, left 1.3.0");
    // Nobody left anything: a copied manifest, or an undo forward to what was the newest.
    check(undone("1.2.0").facts(&[this], &[]), "1.1.0 -> 1.2.0 | app:1.0.0 app:1.2.0");
    check(undone("1.2.0").facts(&[this, older], &[]), "1.1.0 -> 1.2.0 | app:1.0.0 app:1.2.0");
    // What another image of that container ran says nothing.
    check(undone("1.2.0").facts(&[this, "db:1 db:16.0.0"], &[]), "1.1.0 -> 1.2.0 | app:1.0.0 app:1.2.0");
    // Not comparable, but left.
    let main = |tag: &str| case("app:main", tag).stamp("app:main app:main-7", &["kubectl-rollout"]);
    check(main("1.2.0").facts(&["app:main app:main-7", "app:main app:1.2.0"], &[]), "main-7 held, left 1.2.0");
    check(main("1.2.0").facts(&["app:main app:main-7"], &[]), "main-7 -> 1.2.0 | app:main app:1.2.0");
}

#[test]
fn a_stamp_for_another_text() {
    let ran = "app:1.1.0 app:1.2.0";
    let changed = |text: &str, tag: &str| case(text, tag).stamp(ran, &[OURS]);
    // Newer than what ran: taken, also above the target.
    check(changed("app:1.3.0", "1.2.0"), "keep");
    check(changed("app:1.3.0", "1.4.0"), "1.3.0 -> 1.4.0 | app:1.3.0 app:1.4.0");
    // Equal.
    check(changed("app:1.2.0", "1.2.0"), "keep");
    check(changed("app:1.2.0", "1.3.0"), "1.2.0 -> 1.3.0 | app:1.2.0 app:1.3.0");
    // Older: a decision, whatever the stamp's revision was.
    check(changed("app:1.0.0", "1.2.0"), "NeedsFacts");
    let older = |tag: &str| changed("app:1.0.0", tag).facts(&["-", ran], &["app:1.0.0"]);
    check(older("1.2.0"), "1.0.0 held by manifest, left 1.2.0");
    check(older("1.3.0"), "1.0.0 -> 1.3.0 | app:1.0.0 app:1.3.0");
    check(older("1.2.0").left("1.2.0"), "1.0.0 held by manifest, left 1.2.0");
    check(changed("app:1.0.0", "1.2.0").left("1.2.0"), "1.0.0 held by manifest, left 1.2.0");
    check(changed("app:1.0.0", "1.2.0").facts(&[], &[]), "1.0.0 held by manifest, left 1.2.0");
    // Gone back twice before anybody looked: what the first step left counts.
    let twice = changed("app:1.0.0", "1.4.0").facts(&["-", ran, "app:1.1.0 app:1.4.0"], &[]);
    check(twice, "1.0.0 held by manifest, left 1.4.0");
    // Older than what ran, though newer than the text before.
    let between = case("app:1.1.0", "1.2.0").stamp("app:1.0.0 app:1.2.0", &[OURS]).left("1.2.0");
    check(between, "1.1.0 held by manifest, left 1.2.0");
    // The same tag in another spelling, a tag that cannot be compared, and another repository are no way back.
    check(changed("docker.io/library/app:1.1.0", "1.2.0"), {
        "1.1.0 -> 1.2.0 | docker.io/library/app:1.1.0 docker.io/library/app:1.2.0"
    });
    check(changed("app:latest", "1.2.0"), "latest -> 1.2.0 | app:latest app:1.2.0");
    check(changed("app", "1.2.0"), " -> 1.2.0 | app app:1.2.0");
    check(case("app:1.0.0", "1.1.0").stamp("db:16 db:16.4.0", &[OURS]), "1.0.0 -> 1.1.0 | app:1.0.0 app:1.1.0");
    check(case("app:1.0.0", "1.0.0").stamp("db:16 db:16.4.0", &[OURS]), "keep");
}

#[test]
fn an_unstamped_template() {
    let plain = |tag: &str| case("app:1.0.0", tag);
    check(plain("1.0.0"), "keep");
    check(plain("0.9.0"), "keep");
    check(plain("1.1.0"), "NeedsFacts");
    // It depends on what its Pods run, not on the text.
    check(plain("1.1.0").facts(&["-"], &["app:1.1.0", "app:1.1.0"]), "keep");
    check(plain("1.1.0").facts(&["-"], &["app:1.2.0", "app:1.1.0"]), "keep");
    check(plain("1.1.0").facts(&["-"], &["mirror.local/app:1.1.0"]), "keep");
    check(plain("1.1.0").facts(&["-"], &["app:1.1.0", "app:1.0.0"]), "1.0.0 -> 1.1.0 | app:1.0.0 app:1.1.0");
    check(plain("1.1.0").facts(&["-"], &["app:1.0.9", "app:1.0.10"]), "1.0.9 -> 1.1.0 | app:1.0.0 app:1.1.0");
    check(case("app", "1.1.0").facts(&["-"], &["app:latest"]), "latest -> 1.1.0 | app app:1.1.0");
    check(case("app:main", "1.1.0").facts(&["-"], &["app:main"]), "main -> 1.1.0 | app:main app:1.1.0");
    // Without Pods: those to come get the settled tag at admission, one in flight only by a stamp.
    check(plain("1.1.0").settled().facts(&["-"], &[]), "AwaitsPods");
    check(plain("1.1.0").settled().facts(&["-"], &[]).replicas(0), "keep");
    check(plain("1.1.0").facts(&["-"], &[]), " -> 1.1.0 | app:1.0.0 app:1.1.0");
    check(plain("1.1.0").facts(&["-"], &[]).replicas(0), " -> 1.1.0 | app:1.0.0 app:1.1.0");
    check(plain("1.1.0").settled().facts(&["-"], &["app:1.0.0"]), "1.0.0 -> 1.1.0 | app:1.0.0 app:1.1.0");
    // Nobody's to change.
    let digest = "app:1.0.0@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    check(case(digest, "1.1.0").facts(&["-"], &[digest]), "keep");
    check(case("NOT A REFERENCE", "1.1.0").facts(&["-"], &[]), "keep");
}

#[test]
fn an_undo_to_an_unstamped_revision() {
    let left = "app:1.0.0 app:1.2.0";
    let undone = |tag: &str, running: &[&str]| case("app:1.0.0", tag).facts(&["-", left], running);
    check(undone("1.2.0", &["app:1.1.0"]), "1.1.0 held, left 1.2.0");
    check(undone("1.2.0", &["app:1.1.0"]).settled(), "1.1.0 held, left 1.2.0");
    check(undone("1.3.0", &["app:1.1.0"]), "1.1.0 -> 1.3.0 | app:1.0.0 app:1.3.0");
    check(undone("1.2.0", &["app:1.2.0"]), "keep");
    check(undone("1.2.0", &["app:main"]), "main held, left 1.2.0");
    check(undone("1.3.0", &["app:1.1.0"]).left("1.3.0"), "1.1.0 held, left 1.3.0");
    // Its Pods show to what the person went back: nothing is decided before there are some.
    check(undone("1.2.0", &[]), "AwaitsPods");
    check(undone("1.2.0", &[]).replicas(0), "keep");
    let stale = case("app:1.0.0", "1.2.0").facts(&[left, "-"], &["app:1.2.0"]);
    check(stale, "AwaitsPods");
    // The revision that was left is pruned, the record stays; a new object of that name has no revision to go back to.
    check(case("app:1.0.0", "1.2.0").left("1.2.0").facts(&["-", "-"], &["app:1.1.0"]), "1.1.0 held, left 1.2.0");
    let anew = case("app:1.0.0", "1.2.0").left("1.2.0").facts(&["-"], &["app:1.1.0"]);
    check(anew, "1.1.0 -> 1.2.0 | app:1.0.0 app:1.2.0");
    // Stamps that are older, or of another repository, tell of no way back.
    check(case("app:1.0.0", "1.2.0").facts(&["-", "app:1.0.0 app:1.1.0"], &["app:1.1.0"]), {
        "1.1.0 -> 1.2.0 | app:1.0.0 app:1.2.0"
    });
    check(case("app:1.0.0", "1.2.0").facts(&["-", "db:16 db:16.4.0"], &["app:1.1.0"]), {
        "1.1.0 -> 1.2.0 | app:1.0.0 app:1.2.0"
    });
}

/// `app` and `side` with the same Image, `log` with another, `own` with none.
fn sidecars() -> (Workload, BTreeMap<String, Target>) {
    let mut workload = workload("app:1.0.0");
    for (name, text) in [("side", "app:1.0.0"), ("log", "log:3"), ("own", "own:1")] {
        workload.containers.push(Container { name: name.to_owned(), text: text.to_owned(), init: false });
    }
    stamp(&mut workload, "app", "app:1.0.0 app:1.1.0", &[OURS]);
    stamp(&mut workload, "side", "app:1.0.0 app:1.1.0", &[OURS]);
    stamp(&mut workload, "log", "log:3 log:3.1.0", &[OURS]);
    stamp(&mut workload, "own", "own:1 own:1.5.0", &[OURS]);
    stamp(&mut workload, "gone", "gone:1 gone:2", &[OURS]);
    let log = Target { image: "log".to_owned(), rule: "any".to_owned(), ..target("3.1.0") };
    let targets = [("app", target("1.2.0")), ("side", target("1.2.0")), ("log", log)];
    (workload, targets.map(|(name, target)| (name.to_owned(), target)).into())
}

#[test]
fn one_apply_says_every_stamp_of_ours() {
    fn check(workload: &Workload, targets: &BTreeMap<String, Target>, changes: &[&str], stamps: &[&str]) {
        let plan = plan(workload, targets, None);
        let moving: Vec<_> = plan.changes.iter().map(|c| c.container.as_str()).collect();
        assert_eq!(moving, changes);
        let said: Vec<_> = plan.stamps.iter().map(|(container, value)| format!("{container} {value}")).collect();
        assert_eq!(said, stamps);
    }
    let (mut workload, mut targets) = sidecars();
    let (app, side) = ("app app:1.0.0 app:1.2.0", "side app:1.0.0 app:1.2.0");
    let (log, own) = ("log log:3 log:3.1.0", "own own:1 own:1.5.0");
    // Both containers of one Image move; the others' stamps stay, with and without an Image; a removed container's goes.
    check(&workload, &targets, &["app", "side"], &[app, log, own, side]);
    // What a person put back stays the person's: nothing of it is said.
    stamp(&mut workload, "side", "app:1.0.0 app:1.1.0", &["kubectl-rollout"]);
    targets.get_mut("side").unwrap().left = Some("1.2.0".to_owned());
    check(&workload, &targets, &["app"], &[app, log, own]);
    // The stamp of another text says what was left: it stays as it is.
    stamp(&mut workload, "side", "app:0.9.0 app:1.1.0", &[OURS]);
    check(&workload, &targets, &["app"], &[app, log, own, "side app:0.9.0 app:1.1.0"]);
    // A blocked container blocks all: two rollouts would follow one another.
    workload.template_annotations.remove(&stamp_key("log"));
    check(&workload, &targets, &[], &[]);
    assert_eq!(plan(&workload, &targets, None).blocked, Some(Blocked::NeedsFacts));
}

#[test]
fn the_change_cause_reads_as_history() {
    let (mut workload, mut targets) = sidecars();
    workload.template_annotations.remove(&stamp_key("log"));
    targets.get_mut("log").unwrap().settled = false;
    let plan = plan(&workload, &targets, Some(&facts(&["-"], &[])));
    assert_eq!(
        plan.change_cause(),
        "kimup: app 1.1.0 -> 1.2.0 (Image web, rule minor), side 1.1.0 -> 1.2.0 (Image web, rule minor), \
         log ? -> 3.1.0 (Image log, rule any)"
    );
    assert!(plan.changes.iter().take(2).all(|c| c.rollout == id("uid", "1.2.0")));
}

#[test]
fn the_rollout_id_is_stable() {
    fn check(uid: &str, tag: &str, expected: &str) {
        assert_eq!(id(uid, tag), expected, "{uid} {tag}");
    }
    // SHA-256 of "<uid> <tag>", the first ten digits: later versions must come to the same.
    check("0b1c", "1.2.0", "cdc1853b2c");
    check("0b1c", "1.2.1", "86261064d1");
    check("0b1d", "1.2.0", "f4676c3290");
}

#[test]
fn deciding_again_with_the_plan_applied_changes_nothing() {
    let running = ["app:1.0.0", "app:1.1.0"];
    let texts = ["app", "app:latest", "app:1.0.0", "app:v1.2.0", "app:2.0.0", "registry:5000/app:1.0.0"];
    let stamps = ["", "app:1.0.0 app:1.1.0", "app:1.1.0 app:1.2.0", "app:latest app:main", "app:1.0.0 other:1"];
    for (text, value) in texts.iter().flat_map(|text| stamps.iter().map(move |value| (text, value))) {
        let mut workload = workload(text);
        stamp(&mut workload, "app", value, &[OURS]);
        let targets = BTreeMap::from([("app".to_owned(), target("1.2.0"))]);
        let facts = facts(&["-"], &running);
        let first = plan(&workload, &targets, Some(&facts));
        for (container, value) in &first.stamps {
            stamp(&mut workload, container, value, &[OURS]);
        }
        let second = plan(&workload, &targets, Some(&facts));
        assert_eq!(second.changes, [], "{text} {value}");
        assert_eq!(second.holds, first.holds, "{text} {value}");
        assert_eq!(second.blocked, None, "{text} {value}");
    }
}

mod pinned;

#[test]
fn what_must_wait_stays_as_it_is() {
    /// The stamps of `app` (Image web) and `side` (Image log), of which neither is changed by a closed Image.
    #[track_caller]
    fn check(owners: &[&str], closed: &[&str], changes: &[&str], app: Option<&str>, side: Option<&str>) {
        let mut web = workload("app:1.0.0");
        web.containers.push(Container { name: "side".to_owned(), text: "app:1.0.0".to_owned(), init: false });
        stamp(&mut web, "app", "app:1.0.0 app:1.0.5", owners);
        let to_change = |container: &str, from: &str, image: &str, to: &str| Change {
            container: container.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            digest: None,
            image: image.to_owned(),
            rule: String::new(),
            rollout: String::new(),
            back: None,
        };
        let all = Plan {
            changes: vec![to_change("app", "1.0.5", "web", "1.1.0"), to_change("side", "1.0.0", "log", "1.2.0")],
            stamps: [("app", "app:1.0.0 app:1.1.0"), ("side", "app:1.0.0 app:1.2.0")]
                .map(|(name, stamp)| (name.to_owned(), stamp.to_owned()))
                .into(),
            ..Plan::default()
        };
        let left = all.without(&web, &closed.iter().copied().collect());
        assert_eq!(left.changes.iter().map(|c| c.image.as_str()).collect::<Vec<_>>(), changes);
        assert_eq!(left.stamps.get("app").map(String::as_str), app);
        assert_eq!(left.stamps.get("side").map(String::as_str), side);
    }
    let (old, new, side) = (Some("app:1.0.0 app:1.0.5"), Some("app:1.0.0 app:1.1.0"), Some("app:1.0.0 app:1.2.0"));
    check(&[OURS], &[], &["web", "log"], new, side);
    check(&[OURS], &["web"], &["log"], old, side);
    check(&[OURS], &["log"], &["web"], new, None);
    check(&[OURS], &["web", "log"], &[], old, None);
    // A stamp that somebody else owns is not taken over.
    check(&["kubectl"], &["web"], &["log"], None, side);
}
