//! What rules that ask for approval come to, and what an approval does.

use std::time::Duration;

use super::tests::fake;
use super::*;
use crate::api::{self, Closed};
use crate::sync::approval::Approved;
use serde_json::{Value, json};

const MINUTE: i64 = 60;

/// Rules as `type[=value][?[minutes]][,…]`: those with `?` ask for approval, within so many minutes.
fn spec(rules: &str, patch: &Value) -> CompiledSpec {
    let rule = |text: &str| {
        let (rule, asks) = text.split_once('?').map_or((text, None), |(rule, minutes)| (rule, Some(minutes)));
        let mut actions = vec![json!({"type": "apply"})];
        let deadline = asks.map(|minutes| if minutes.is_empty() { String::new() } else { format!("{minutes}m") });
        actions.extend(deadline.map(|value| json!({"type": "request-approval", "data": {"value": value}})));
        let (kind, value) = rule.split_once('=').map_or((rule, None), |(kind, value)| (kind, Some(value)));
        json!({"name": kind, "type": kind, "value": value, "actions": actions})
    };
    let rules: Vec<Value> = rules.split(',').map(rule).collect();
    let mut spec = json!({"image": "app", "triggers": [{"type": "interval", "value": "5m"}], "rules": rules});
    json_patch::merge(&mut spec, patch);
    api::compile(&serde_json::from_value(spec).unwrap(), Timestamp::UNIX_EPOCH).unwrap()
}

/// What is known of an Image at a minute.
struct Web {
    spec: CompiledSpec,
    settled: Option<&'static str>,
    digest: Option<String>,
    own: Option<Tagged>,
    gate: Gate,
}

fn web(rules: &str, settled: Option<&'static str>) -> Web {
    Web { spec: spec(rules, &json!({})), settled, digest: None, own: None, gate: Gate::default() }
}

fn closed(reason: &'static str) -> Closed {
    Closed { reason, why: format!("it is {reason}"), until: None }
}

impl Web {
    fn at(mut self, minute: i64) -> Self {
        self.gate.now = Timestamp::from_second(minute * MINUTE).unwrap();
        self
    }

    fn approved(mut self, tag: &str) -> Self {
        self.gate.approved = Some(Approved { tag: tag.to_owned(), by: "approved by bob".to_owned() });
        self
    }

    fn behind(mut self, closed: Option<Closed>, brake: Option<Closed>) -> Self {
        self.gate.closed = closed.or_else(|| brake.clone());
        self.gate.brake = brake;
        self
    }

    async fn choose(&self, manifests: &str) -> Result<Chosen, Failure> {
        let registry = fake(manifests);
        let image = ImageKey { namespace: "shop".to_owned(), name: "web".to_owned() };
        let tags: Vec<&str> =
            manifests.split_whitespace().map(|tag| tag.split_once('=').map_or(tag, |(tag, _)| tag)).collect();
        let known = Known { settled: self.settled, stamped: self.own.as_ref(), ..Known::default() };
        let (spec, digest, gate) = (&self.spec, self.digest.clone(), self.gate.clone());
        let given = Given { image: &image, spec, known, digest, tags: &tags, gate };
        choose(&given, &mut Checks::default(), &registry).await
    }

    /// `tag [by rule] [!who]; pending reason; asked tag [lapsed]; answer`
    async fn check(&mut self, manifests: &str, expected: &str) {
        let Chosen { outcome, asked, answer, .. } = match self.choose(manifests).await {
            Ok(chosen) => chosen,
            Err(failure) => {
                let message = failure.message.replace("Image shop/web: no tag of docker.io/library/app ", "");
                assert_eq!(message, expected);
                return;
            }
        };
        let mut said = Vec::new();
        let waits = match outcome {
            Outcome::Failed(_) => unreachable!("failures are errors"),
            Outcome::Waiting(waits) => {
                said.push("none".to_owned());
                Some(waits)
            }
            Outcome::Tag(Choice { tag, rule, approved, waits, .. }) => {
                let by = if rule.is_empty() { String::new() } else { format!(" by {rule}") };
                said.push(format!("{tag}{by}{}", if approved { " !" } else { "" }));
                waits.map(|waits| *waits)
            }
        };
        said.extend(waits.map(|waits| format!("{} {}", waits.pending.tag, waits.reason)));
        let asked_for = asked.as_ref().filter(|asked| asked.lapsed || self.gate.asked.as_ref() != Some(asked));
        said.extend(asked_for.map(|a| format!("asked {}{}", a.tag, if a.lapsed { " lapsed" } else { "" })));
        said.extend(answer.map(|answer| match answer {
            Answer::Applied { against } => against.map_or_else(|| "applied".to_owned(), |why| format!("against {why}")),
            Answer::Refused(why) => format!("refused: {why}"),
            other => format!("{other:?}").to_lowercase(),
        }));
        assert_eq!(said.join("; "), expected);
        self.gate.asked = asked;
    }
}

#[tokio::test]
async fn what_needs_approval_waits_and_the_rest_goes() {
    let tags = "1.0.0=a 1.0.1=b 1.1.0=c";
    web("minor?", Some("1.0.0")).check(tags, "1.0.0; 1.1.0 AwaitsApproval; asked 1.1.0").await;
    web("patch,minor?", Some("1.0.0")).check(tags, "1.0.1 by patch; 1.1.0 AwaitsApproval; asked 1.1.0").await;
    web("minor?,patch", Some("1.0.0")).check(tags, "1.0.1 by patch; 1.1.0 AwaitsApproval; asked 1.1.0").await;
    web("patch?,minor", Some("1.0.0")).check(tags, "1.1.0 by minor").await;
    web("patch?,minor", Some("1.1.0")).check(tags, "1.1.0").await;
    web("patch?", Some("1.0.0")).check("1.0.0=a", "1.0.0").await;
    // One that cannot be run is not asked for.
    web("minor?", Some("1.0.0"))
        .check("1.0.0=a 1.0.1=b 1.1.0=c:arm64", "1.0.0; 1.0.1 AwaitsApproval; asked 1.0.1")
        .await;
    // Said once; a newer one is asked for anew.
    let mut once = web("minor?", Some("1.0.0"));
    once.check(tags, "1.0.0; 1.1.0 AwaitsApproval; asked 1.1.0").await;
    once.check(tags, "1.0.0; 1.1.0 AwaitsApproval").await;
    once.check("1.0.0=a 1.1.0=b 1.2.0=c", "1.0.0; 1.2.0 AwaitsApproval; asked 1.2.0").await;
    once.check("1.0.0=a", "1.0.0").await;
    // A rule that needs nobody has come further.
    web("regex=^0?,minor", Some("1.0.0")).check("0.9=a 1.0.0=a 1.1.0=b", "1.1.0 by minor").await;
}

#[tokio::test]
async fn the_first_tag_waits_too_unless_the_own_one_is_adopted() {
    let tags = "1.0.0=a 1.1.0=c";
    web("minor?", None).check(tags, "none; 1.1.0 AwaitsApproval; asked 1.1.0").await;
    web("minor?", None).approved("1.0.0").check(tags, "1.0.0 by minor !; applied").await;
    web("minor?", None).check("main=a", "can be chosen: none of those listed matches minor").await;
    let mut own = web("minor?", None);
    own.own = Some(Tagged::new("1.0.0", None));
    own.check(tags, "1.0.0; 1.1.0 AwaitsApproval; asked 1.1.0").await;
    // A starting tag that the rules cannot compare is not run without a word.
    let mut main = web("minor?", None);
    main.spec = spec("minor?", &json!({"baseTag": "main"}));
    main.check("main=a 1.1.0=b", "none; 1.1.0 AwaitsApproval; asked 1.1.0").await;
}

#[tokio::test]
async fn a_request_lapses() {
    let tags = "1.0.0=a 1.1.0=c";
    let mut web = web("minor?10", Some("1.0.0")).at(0);
    web.check(tags, "1.0.0; 1.1.0 AwaitsApproval; asked 1.1.0").await;
    web = web.at(9);
    web.check(tags, "1.0.0; 1.1.0 AwaitsApproval").await;
    web = web.at(10);
    web.check(tags, "1.0.0; asked 1.1.0 lapsed").await;
    web = web.at(99);
    web.check(tags, "1.0.0; asked 1.1.0 lapsed").await;
    web.check("1.0.0=a 1.1.0=c 1.1.1=d", "1.0.0; 1.1.1 AwaitsApproval; asked 1.1.1").await;
    // It may be approved all the same.
    web = web.approved("1.1.0");
    web.check(tags, "1.1.0 by minor !; applied").await;
}

#[tokio::test]
async fn exactly_what_is_approved_is_applied() {
    let tags = "1.0.0=a 1.0.1=b 1.1.0=c 1.2.0=c:arm64 2.0.0=d";
    let minor = |tag: &str| web("minor?", Some("1.0.1")).approved(tag);
    minor("1.1.0").check(tags, "1.1.0 by minor !; applied").await;
    let kept = |why: &str| format!("1.0.1; 1.1.0 AwaitsApproval; asked 1.1.0; {why}");
    minor("1.0.1").check(tags, &kept("already")).await;
    let older = "it is older than 1.0.1; to go back, reject 1.0.1 or undo its rollout";
    minor("1.0.0").check(tags, &kept(&format!("refused: {older}"))).await;
    minor("1.3.0").check(tags, &kept("refused: docker.io/library/app does not list it")).await;
    minor("1.2.0").check(tags, &kept("refused: no linux/amd64")).await;
    minor("a b").check(tags, &kept("refused: it is no tag")).await;
    let other = web("minor?", Some("1.0.1")).approved("2.0.0").choose(tags).await.unwrap();
    let Some(Answer::Refused(why)) = other.answer else { panic!("{:?}", other.answer) };
    assert!(why.starts_with("no rule allows it: "), "{why}");
    // One that nobody was asked for, of a rule that needs nobody: approved is approved.
    web("patch,minor?", Some("1.0.0")).approved("1.0.1").check(tags, "1.0.1 by patch !; applied").await;
    // By its digest it is that one or none.
    let (c, d) = (format!("1.1.0@sha256:{}", "c".repeat(64)), format!("1.1.0@sha256:{}", "d".repeat(64)));
    minor(&c).check(tags, "1.1.0 by minor !; applied").await;
    let moved = format!("refused: 1.1.0 is sha256:{} by now", "c".repeat(64));
    minor(&d).check(tags, &kept(&moved)).await;
}

#[tokio::test]
async fn an_approval_overrides_windows_and_age_but_no_brake() {
    let tags = "1.0.0=a 1.1.0=c";
    let minor = || web("minor?", Some("1.0.0"));
    let window = || Some(closed("OutsideWindow"));
    minor().behind(window(), None).check(tags, "1.0.0; 1.1.0 AwaitsApproval; asked 1.1.0").await;
    let approved = minor().behind(window(), None).approved("1.1.0");
    { approved }.check(tags, "1.1.0 by minor !; against it is OutsideWindow").await;
    let frozen = || Some(closed("Frozen"));
    minor().behind(window(), frozen()).approved("1.1.0").check(tags, "1.0.0; 1.1.0 Frozen; waits").await;
    web("minor?", None).behind(None, frozen()).approved("1.1.0").check(tags, "none; 1.1.0 Frozen; waits").await;
    // Without approval, what goes by itself waits for the window, and is said first.
    web("patch,minor?", Some("1.0.0"))
        .behind(window(), None)
        .check("1.0.0=a 1.0.1=b 1.1.0=c", "1.0.0; 1.0.1 OutsideWindow; asked 1.1.0")
        .await;
    let mut young = minor();
    young.gate.min_age = Some(Duration::from_secs(600));
    young.check(tags, "1.0.0; 1.1.0 TooYoung").await;
    young.approved("1.1.0").check(tags, "1.1.0 by minor !; applied").await;
    // The one that is old enough is asked for; the status is looked at again when the younger one is.
    let mut older = minor().at(20);
    older.gate.min_age = Some(Duration::from_secs(600));
    older.gate.seen = vec![Seen { tag: "1.1.0".to_owned(), since: "1970-01-01T00:00:00Z".to_owned() }];
    let chosen = older.choose("1.0.0=a 1.1.0=b 1.2.0=c").await.unwrap();
    assert_eq!((chosen.asked.unwrap().tag, chosen.wake), ("1.1.0".to_owned(), Timestamp::from_second(1800).ok()));
}

#[tokio::test]
async fn another_digest_of_the_same_tag_is_approved_by_its_digest() {
    let digest = |letter: &str| format!("sha256:{}", letter.repeat(64));
    let latest = |settled| {
        let mut web = web("digest?", settled);
        web.spec = spec("digest?", &json!({"baseTag": "latest"}));
        web.digest = Some(digest("a"));
        web
    };
    let newer = format!("latest@{}", digest("b"));
    latest(Some("latest")).check("latest=a", "latest").await;
    let asks = format!("latest; {newer} AwaitsApproval; asked {newer}");
    let mut web = latest(Some("latest"));
    web.check("latest=b", &asks).await;
    // Which one is meant must be said.
    let says = format!("latest; {newer} AwaitsApproval; refused: it runs already; its newer digest is {newer}");
    let mut vague = latest(Some("latest")).approved("latest");
    vague.gate.asked.clone_from(&web.gate.asked);
    vague.check("latest=b", &says).await;
    web.approved(&newer).check("latest=b", "latest by digest !; applied").await;
    let moved = format!("refused: latest is {} by now", digest("c"));
    let third = format!("latest@{}", digest("c"));
    let asks = format!("latest; {third} AwaitsApproval; asked {third}; {moved}");
    latest(Some("latest")).approved(&newer).check("latest=c", &asks).await;
}
