//! How long the choice of a tag takes, against the bars of `docs/benchmarks.md` and against the naive way in the same
//! run. Ends with exit code 1 if a bar is missed.

mod tags;

use std::hint::black_box;
use std::io::Write;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use kimup::policy::{Filter, Rule, select};
use rustix::time::{ClockId, clock_gettime};

const ROUNDS: usize = 60;
const PROCESSES: usize = 30;
const RANGE: &str = ">=1.2.0, <5.0.0";
const BUILDS: &str = r"^main-[0-9a-f]+-(?<time>\d+)$";
const CURRENT: &str = "1.4.2";
/// Most that a choice by a range may take of the naive way's time.
const SHARE: f64 = 0.5;

/// What is asked, and the most it may take; none for what has no bar.
struct Case {
    name: &'static str,
    rule: (&'static str, Option<&'static str>),
    pattern: Option<(&'static str, Option<&'static str>)>,
    current: Option<&'static str>,
    bar: Option<Duration>,
    versus_naive: bool,
}

const fn case(name: &'static str, rule: &'static str, current: Option<&'static str>) -> Case {
    Case { name, rule: (rule, None), pattern: None, current, bar: None, versus_naive: false }
}

const fn range(name: &'static str, current: Option<&'static str>) -> Case {
    let bar = Some(Duration::from_millis(3));
    Case { name, rule: ("semver", Some(RANGE)), pattern: None, current, bar, versus_naive: true }
}

const CASES: [Case; 8] = [
    range("semver range", Some(CURRENT)),
    range("semver range, no current tag", None),
    range("semver range, from a variant", Some("1.4.2-alpine")),
    case("semver-minor", "semver-minor", Some(CURRENT)),
    Case {
        name: "regex with numeric extract",
        rule: ("numerical", None),
        pattern: Some((BUILDS, Some("$time"))),
        current: Some("main-0000000-1600000000"),
        bar: Some(Duration::from_millis(8)),
        versus_naive: false,
    },
    Case { pattern: Some((r"-alpine$", None)), ..case("semver with a pattern", "semver", Some("1.4.2-alpine")) },
    case("calver-major", "calver-major", Some("2018.01")),
    case("always", "always", None),
];

fn main() -> anyhow::Result<ExitCode> {
    let tags = tags::mixed();
    let mut met = true;
    println!("{} tags, {} bytes; least of {ROUNDS} rounds, processor time\n", tags.len(), tags::bytes(&tags));
    println!("{:38} {:>9} {:>9} {:>9}", "", "ms", "bar", "x naive");
    let (newest, naive) = fastest(|| naive(&tags));
    row("the semver crate: parse, sort, filter", naive, None, None);
    for case in &CASES {
        let (pattern, extract) = case.pattern.map_or((None, None), |(pattern, extract)| (Some(pattern), extract));
        let filter = Filter::new(pattern, extract, &[])?;
        let rule = Rule::parse(case.rule.0, case.rule.1)?;
        let (selected, took) = fastest(|| select(&rule, &filter, case.current, &tags).selected.map(str::to_owned));
        ensure!(selected.is_some(), "{}: nothing is selected", case.name);
        let plain = |tag: &str| tag.trim_start_matches('v').to_owned();
        let same = case.current != Some(CURRENT) || newest.as_deref().map(plain) == selected.as_deref().map(plain);
        ensure!(!case.versus_naive || same, "{}: {selected:?}, but the naive way finds {newest:?}", case.name);
        met &= row(case.name, took, case.bar, case.versus_naive.then_some(naive));
    }
    let (filter, rule) = (Filter::default(), Rule::parse("semver", Some(RANGE))?);
    let decision = select(&rule, &filter, Some(CURRENT), &tags);
    let (_, took) = fastest(|| decision.explain().rejected.len());
    row("a reason for each tag (explain)", took, None, None);
    for output in ["text", "json"] {
        let bar = (output == "text").then_some(Duration::from_millis(60));
        met &= row(&format!("kimup select -o {output}, wall time"), process(&tags, output)?, bar, None);
    }
    println!("\n{}", if met { "all bars are met" } else { "a bar is missed" });
    Ok(if met { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints a row; whether its bars are met.
fn row(name: &str, took: Duration, bar: Option<Duration>, naive: Option<Duration>) -> bool {
    let millis = |duration: Duration| duration.as_secs_f64() * 1_000.0;
    let share = naive.map(|naive| took.as_secs_f64() / naive.as_secs_f64());
    let met = bar.is_none_or(|bar| took <= bar) && share.is_none_or(|share| share <= SHARE);
    let bar = bar.map(|bar| format!("{:.0}", millis(bar))).unwrap_or_default();
    let share = share.map(|share| format!("{share:.2}")).unwrap_or_default();
    println!("{name:38} {:9.2} {bar:>9} {share:>9}{}", millis(took), if met { "" } else { "  MISSED" });
    met
}

/// The answer and the least processor time of this thread: other processes disturb only by their caches.
fn fastest<T>(mut run: impl FnMut() -> T) -> (T, Duration) {
    let mut timed = || {
        let before = clock_gettime(ClockId::ThreadCPUTime);
        let answer = black_box(run());
        let after = clock_gettime(ClockId::ThreadCPUTime);
        (answer, Duration::try_from(after - before).unwrap_or(Duration::MAX))
    };
    let (answer, mut least) = timed();
    for _ in 1..ROUNDS {
        least = least.min(timed().1);
    }
    (answer, least)
}

/// What one would write without kimup: all tags that are versions, sorted, the last that the range admits.
fn naive(tags: &[String]) -> Option<String> {
    let range = semver::VersionReq::parse(RANGE).ok()?;
    let parse = |tag: &String| semver::Version::parse(tag.strip_prefix('v').unwrap_or(tag)).ok();
    let mut versions: Vec<(semver::Version, &str)> =
        tags.iter().filter_map(|tag| Some((parse(tag)?, tag.as_str()))).collect();
    versions.sort();
    versions.iter().rev().find(|(version, _)| range.matches(version)).map(|(_, tag)| (*tag).to_owned())
}

/// The least wall time of `kimup select` with the tags on its standard input, from start to exit.
fn process(tags: &[String], output: &str) -> anyhow::Result<Duration> {
    let list = tags.join("\n");
    let mut least = Duration::MAX;
    for _ in 0..PROCESSES {
        let before = Instant::now();
        let mut child = Command::new(env!("CARGO_BIN_EXE_kimup"))
            .args(["select", "--rule", &format!("semver={RANGE}"), "--current", CURRENT, "--tags", "-", "-o", output])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start kimup")?;
        child.stdin.take().context("standard input is not a pipe")?.write_all(list.as_bytes())?;
        ensure!(child.wait()?.success(), "kimup select failed");
        least = least.min(before.elapsed());
    }
    Ok(least)
}
