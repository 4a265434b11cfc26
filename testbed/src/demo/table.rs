//! Who did what, when and why: from what the cluster says, and what this person did.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

/// Widest line, in characters: the last column is folded to fit.
const WIDTH: usize = 118;
const APPLIED: &str = "kimup.cloudavenue.io/applied";
const CONTROLLER: &str = "kimup.cloudavenue.io/kimup";
const SYNC: &str = "kimup, sync";
const API_SERVER: &str = "API server";

/// How well the time of a row is known, to sort by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Clock {
    /// Exactly. In its second it comes before the Pods, which it may have caused.
    Exact,
    /// Exactly. It ends what happened to the Pods.
    End,
    /// To the second, as Kubernetes tells when a Pod was created.
    Second,
}

/// One line of the table.
#[derive(Clone, Debug)]
struct Row {
    scene: usize,
    when: Timestamp,
    clock: Clock,
    who: &'static str,
    what: String,
    why: String,
}

/// The rows so far, and which Pods they tell about.
#[derive(Default)]
pub struct Table {
    /// When each scene began.
    scenes: Vec<Timestamp>,
    rows: Vec<Row>,
    pods_seen: BTreeSet<String>,
}

impl Table {
    /// A new scene begins: all that follows is later than all before.
    pub fn scene(&mut self) {
        self.scenes.push(Timestamp::now());
    }

    /// Something that this person did, now.
    pub fn you(&mut self, what: &str, why: &str) {
        self.add(Timestamp::now(), Clock::Exact, "you", what, why);
    }

    /// Something that sync did, now, and says in a condition.
    pub fn sync(&mut self, what: &str, why: &str) {
        self.add(Timestamp::now(), Clock::End, SYNC, what, why);
    }

    fn add(&mut self, when: Timestamp, clock: Clock, who: &'static str, what: &str, why: &str) {
        let (what, why) = (what.to_owned(), why.to_owned());
        self.rows.push(Row { scene: self.scenes.len(), when, clock, who, what, why });
    }

    /// Pods that were not there at the last look, by the annotation that admission left on them
    /// (`kubectl get pods -o json`). To be called in their scene, before they go.
    pub fn pods(&mut self, list: &Value) {
        let mut alike: BTreeMap<String, (Timestamp, usize)> = BTreeMap::new();
        for pod in items(list) {
            let metadata = &pod["metadata"];
            if !self.pods_seen.insert(text(&metadata["uid"])) {
                continue;
            }
            let created = time(&metadata["creationTimestamp"]);
            let group = alike.entry(text(&metadata["annotations"][APPLIED])).or_insert((created, 0));
            *group = (group.0.min(created), group.1 + 1);
        }
        for (applied, (when, count)) in alike {
            let what = if count == 1 { "1 Pod created".to_owned() } else { format!("{count} Pods created") };
            if applied.is_empty() {
                self.add(when, Clock::Second, API_SERVER, &what, "not opted in: kimup is not asked");
            } else {
                self.add(when, Clock::Second, "kimup, admission", &what, &applied);
            }
        }
    }

    /// The denial among the Events of a namespace (`kubectl get events.v1.events.k8s.io -o json`), in its scene.
    pub fn denial(&mut self, list: &Value) {
        let of_kimup = |event: &&Value| event["reason"] == "FailedCreate" && text(&event["note"]).contains("kimup");
        if let Some(event) = items(list).find(of_kimup) {
            let note = text(&event["note"]);
            let cause = note.rsplit_once("dial tcp ").map_or(&*note, |(_, cause)| cause);
            let why = format!("failure policy fail, and kimup cannot be asked: {cause}");
            let when = time(&event["deprecatedFirstTimestamp"]);
            self.add(when, Clock::Second, API_SERVER, "1 Pod denied", &why);
        }
    }

    /// kimup's Events of a namespace (`kubectl get events.v1.events.k8s.io -o json`). A rollout is said on its Image
    /// and on its workloads: its start is shown once for each workload, its end once.
    pub fn events(&mut self, list: &Value) {
        for event in items(list).filter(|event| event["reportingController"] == CONTROLLER) {
            let (reason, kind) = (text(&event["reason"]), text(&event["regarding"]["kind"]));
            if (reason == "RolloutStarted") == (kind == "Image") && reason.starts_with("Rollout") {
                continue;
            }
            let when = time(&event["eventTime"]);
            let clock = if reason == "RolloutSettled" { Clock::End } else { Clock::Exact };
            let scene = self.scenes.iter().filter(|began| **began <= when).count();
            let what = format!("{reason} ({kind} {})", text(&event["regarding"]["name"]));
            self.rows.push(Row { scene, when, clock, who: SYNC, what, why: text(&event["note"]) });
        }
    }

    /// When to sort a row in: one that is known to the second comes after its possible causes in that second.
    fn place(&self, row: &Row) -> (usize, Timestamp, bool) {
        let causes = self.rows.iter().filter(|cause| {
            let same_second = cause.when.as_second() == row.when.as_second();
            cause.scene == row.scene && cause.clock == Clock::Exact && same_second
        });
        let cause = causes.map(|cause| cause.when).max().filter(|_| row.clock == Clock::Second);
        (row.scene, cause.unwrap_or(row.when), row.clock == Clock::Second)
    }

    /// The table, oldest first, without `noise`.
    pub fn render(&self, noise: &str) -> String {
        let mut rows: Vec<&Row> = self.rows.iter().collect();
        rows.sort_by_key(|row| self.place(row));
        let mut lines = vec![["WHEN", "WHO", "WHAT", "WHY"].map(str::to_owned)];
        lines.extend(rows.into_iter().map(|row| {
            let when = row.when.strftime("%H:%M:%S").to_string();
            [when, row.who.to_owned(), row.what.clone(), row.why.replace(noise, "")]
        }));
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or(0);
        let (when, who, what) = (width(0), width(1), width(2));
        let indent = when + who + what + 6;
        let mut text = String::new();
        for [a, b, c, d] in &lines {
            let mut start = format!("{a:when$}  {b:who$}  {c:what$}  ");
            for part in fold(d, WIDTH.saturating_sub(indent).max(30)) {
                text += format!("{start}{part}").trim_end();
                text.push('\n');
                start = " ".repeat(indent);
            }
        }
        text
    }
}

/// Breaks at spaces; a word that is too long stays whole. At least one line.
fn fold(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let Some(line) = lines.last_mut() else {
            continue;
        };
        if line.is_empty() {
            line.push_str(word);
        } else if line.chars().count() + 1 + word.chars().count() <= width {
            line.push(' ');
            line.push_str(word);
        } else {
            lines.push(word.to_owned());
        }
    }
    lines
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list["items"].as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// A time without one sorts first, where it is seen.
fn time(value: &Value) -> Timestamp {
    value.as_str().and_then(|text| text.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn text_is_folded_at_spaces() {
        #[track_caller]
        fn check(text: &str, width: usize, expected: &[&str]) {
            assert_eq!(fold(text, width), expected);
        }
        check("", 5, &[""]);
        check("ab cd ef", 5, &["ab cd", "ef"]);
        check("ab cd ef", 8, &["ab cd ef"]);
        check("abcdefgh ij", 5, &["abcdefgh", "ij"]);
    }

    #[test]
    fn causes_come_before_what_they_cause() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        let mut table = Table::default();
        table.scenes.push(at("2026-01-01T10:00:00.1Z"));
        table.add(at("2026-01-01T10:00:00.2Z"), Clock::Exact, "you", "pushed 1.1.0", "");
        let metadata =
            json!({"uid": "1", "creationTimestamp": "2026-01-01T10:00:00Z", "annotations": {APPLIED: "app: 1 -> 2"}});
        let pods = json!({"items": [{"metadata": metadata}]});
        table.pods(&pods);
        table.pods(&pods);
        table.scenes.push(at("2026-01-01T10:00:00.8Z"));
        table.add(at("2026-01-01T10:00:00.9Z"), Clock::Exact, "you", "went", "away");
        let event = |reason: &str, kind: &str, time: &str| {
            json!({"reason": reason, "reportingController": CONTROLLER, "eventTime": time,
                "regarding": {"kind": kind, "name": "web"}, "note": "noise/why"})
        };
        let events = [
            event("RolloutSettled", "Image", "2026-01-01T10:00:00.5Z"),
            event("RolloutStarted", "Image", "2026-01-01T10:00:00.4Z"),
            event("TagSelected", "Image", "2026-01-01T10:00:00.3Z"),
        ];
        table.events(&json!({"items": events}));
        let text = table.render("noise/");
        let shown: Vec<&str> = text.lines().filter_map(|line| line.get(10..)).map(str::trim_end).collect();
        let expected = [
            "WHO               WHAT                        WHY",
            "you               pushed 1.1.0",
            "kimup, sync       TagSelected (Image web)     why",
            "kimup, admission  1 Pod created               app: 1 -> 2",
            "kimup, sync       RolloutSettled (Image web)  why",
            "you               went                        away",
        ];
        assert_eq!(shown, expected);
    }
}
