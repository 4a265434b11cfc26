//! `kimup select`: which of a list of tags would be chosen, and why not each other one. Pure but for reading its input:
//! no network, no runtime, no log.

mod manifest;
mod text;

use std::fmt;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::Context;
use clap::{ArgGroup, Args};
use serde::{Serialize, Serializer};

use crate::policy::{self, Filter, Reason, Rule, RuleError};

use super::args::Output;
use super::{Failure, input};

/// Largest list of tags: 500,000 tags of 128 characters, the most that a registry is asked for.
const MAX_TAGS: usize = 64 * 1024 * 1024;
const MAX_MANIFEST: usize = 4 * 1024 * 1024;

/// Flags of `select`.
#[derive(Args, Debug)]
#[command(group(ArgGroup::new("source").required(true).multiple(false)))]
pub struct SelectArgs {
    /// Value of a policy annotation: patch, minor, major, semver, semver:<range>, timestamp, numerical,
    /// alphabetical[:asc|:desc], asc, desc or digest.
    #[arg(long, env = "KIMUP_POLICY", group = "source")]
    pub policy: Option<String>,
    /// Rule of an Image, as its type and value: semver-minor, 'semver=>=1.2 <2', 'regex=^v'. Several are run in order.
    #[arg(long, env = "KIMUP_RULE", value_name = "TYPE[=VALUE]", group = "source")]
    pub rule: Vec<String>,
    /// Manifest with one Image, whose rules and filter are used; - is standard input.
    #[arg(short, long, env = "KIMUP_FILENAME", value_name = "FILE", group = "source")]
    pub filename: Option<PathBuf>,
    /// Regular expression (RE2) that a tag must match.
    #[arg(long, env = "KIMUP_PATTERN", value_name = "REGEX", conflicts_with = "filename", allow_hyphen_values = true)]
    pub pattern: Option<String>,
    /// What of a tag is compared: a template on the pattern's groups, such as $ts or $1.
    #[arg(long, env = "KIMUP_EXTRACT", value_name = "TEMPLATE", conflicts_with = "filename")]
    pub extract: Option<String>,
    /// Regular expression that no tag may match (repeatable).
    #[arg(long, env = "KIMUP_EXCLUDE", value_name = "REGEX", conflicts_with = "filename", allow_hyphen_values = true)]
    pub exclude: Vec<String>,
    /// Current tag [default: with --filename status.tag, else spec.baseTag].
    #[arg(long, env = "KIMUP_CURRENT", value_name = "TAG")]
    pub current: Option<String>,
    /// The tags, one a line; - is standard input.
    #[arg(long, env = "KIMUP_TAGS", value_name = "FILE")]
    pub tags: PathBuf,
    /// Format of the result on stdout.
    #[arg(short, long, env = "KIMUP_OUTPUT", value_name = "FORMAT", default_value = "text")]
    pub output: Output,
}

/// What chooses, and from where.
#[derive(Debug, PartialEq)]
struct Choice {
    rules: Vec<Rule>,
    filter: Filter,
    current: Option<String>,
}

/// The answer.
#[derive(Debug, Serialize)]
struct Report<'a> {
    current: Option<&'a str>,
    selected: Option<&'a str>,
    changed: bool,
    reason: String,
    candidates: Vec<&'a str>,
    rejected: Vec<Lost<'a>>,
}

#[derive(Debug, Serialize)]
struct Lost<'a> {
    tag: &'a str,
    #[serde(serialize_with = "display")]
    reason: Why<'a>,
}

/// Why a tag lost.
#[derive(Debug)]
enum Why<'a> {
    Rules(Reason<'a>),
    /// There is no rule to lose by.
    NoRule,
}

impl fmt::Display for Why<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rules(reason) => reason.fmt(f),
            Self::NoRule => f.write_str(NO_RULE),
        }
    }
}

const NO_RULE: &str = "no rule of the Image applies a tag or asks for approval";

fn display<S: Serializer>(why: &Why<'_>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(why)
}

/// The answer, ready to be printed.
pub fn run(args: &SelectArgs) -> Result<Vec<u8>, Failure> {
    let from_stdin = [Some(&args.tags), args.filename.as_ref()];
    if from_stdin.into_iter().flatten().filter(|path| input::is_stdin(path)).count() > 1 {
        return Err(Failure::usage(anyhow::anyhow!("--tags and --filename cannot both be standard input")));
    }
    let choice = choice(args)?;
    let bytes = input::read(&args.tags, MAX_TAGS).context("--tags")?;
    let list = decode(&args.tags, &bytes)?;
    let tags = lines(list);
    let report = report(&choice, &tags);
    match args.output {
        Output::Json => json(&report),
        Output::Text => Ok(text::render(&report, width()).into_bytes()),
    }
}

fn choice(args: &SelectArgs) -> Result<Choice, Failure> {
    let given = args.current.as_deref().map(str::trim).filter(|tag| !tag.is_empty()).map(str::to_owned);
    if let Some(path) = &args.filename {
        let bytes = input::read(path, MAX_MANIFEST).context("--filename")?;
        let invalid = |error: anyhow::Error| Failure::Usage(error.context(path.display().to_string()));
        let manifest = std::str::from_utf8(&bytes).map_err(|_| invalid(anyhow::anyhow!("it is not UTF-8")))?;
        let mut choice = manifest::read(manifest).map_err(invalid)?;
        choice.current = given.or(choice.current);
        return Ok(choice);
    }
    let rules = match &args.policy {
        Some(policy) => vec![Rule::parse_policy(policy).map_err(|error| wrong("policy", policy, error))?],
        None => args.rule.iter().map(|text| rule(text)).collect::<Result<_, _>>()?,
    };
    let filter =
        Filter::new(args.pattern.as_deref(), args.extract.as_deref(), &args.exclude).map_err(Failure::usage)?;
    Ok(Choice { rules, filter, current: given })
}

fn rule(text: &str) -> Result<Rule, Failure> {
    let (kind, value) = text.split_once('=').map_or((text, None), |(kind, value)| (kind, Some(value)));
    Rule::parse(kind, value).map_err(|error| wrong("rule", kind, error))
}

fn wrong(what: &str, name: &str, error: RuleError) -> Failure {
    match error {
        // It names the rule itself.
        RuleError::Unknown { .. } | RuleError::UnknownPolicy { .. } => Failure::usage(error),
        RuleError::Invalid { .. } => Failure::Usage(anyhow::anyhow!("{what} {name:?}: {error}")),
    }
}

fn decode<'a>(path: &Path, bytes: &'a [u8]) -> anyhow::Result<&'a str> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    std::str::from_utf8(bytes).map_err(|error| {
        let line = bytes[..error.valid_up_to()].split(|byte| *byte == b'\n').count();
        anyhow::anyhow!("--tags {}: line {line} is not UTF-8", path.display())
    })
}

/// The tags of a list with one a line.
fn lines(list: &str) -> Vec<&str> {
    list.split('\n').map(|line| line.trim_matches([' ', '\t', '\r'])).filter(|line| !line.is_empty()).collect()
}

fn report<'a>(choice: &'a Choice, tags: &'a [&'a str]) -> Report<'a> {
    let current = choice.current.as_deref();
    if choice.rules.is_empty() {
        let mut rejected: Vec<_> = tags.iter().map(|tag| Lost { tag, reason: Why::NoRule }).collect();
        rejected.sort_unstable_by_key(|lost| lost.tag);
        rejected.dedup_by_key(|lost| lost.tag);
        let reason = NO_RULE.to_owned();
        return Report { current, selected: current, changed: false, reason, candidates: Vec::new(), rejected };
    }
    let decision = policy::choose(&choice.rules, &choice.filter, current, tags);
    let explanation = decision.explain();
    let lost = |lost: policy::Rejection<'a>| Lost { tag: lost.tag, reason: Why::Rules(lost.reason) };
    Report {
        current,
        selected: decision.selected,
        changed: decision.changed,
        reason: decision.reason(),
        candidates: explanation.candidates,
        rejected: explanation.rejected.into_iter().map(lost).collect(),
    }
}

fn json(report: &Report<'_>) -> Result<Vec<u8>, Failure> {
    let mut out = serde_json::to_vec(report)?;
    out.push(b'\n');
    Ok(out)
}

/// Columns to write in: the terminal's, or enough for a file.
fn width() -> usize {
    const DEFAULT: usize = 100;
    const NARROWEST: usize = 40;
    let stdout = std::io::stdout();
    if !stdout.is_terminal() {
        return DEFAULT;
    }
    let columns = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
    if columns == 0 { DEFAULT } else { columns.max(NARROWEST) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_one_a_line() {
        let check = |list: &[u8], expected: Result<&[&str], &str>| {
            let found = decode(Path::new("FILE"), list).map(lines).map_err(|error| error.to_string());
            assert_eq!(found, expected.map(<[&str]>::to_vec).map_err(str::to_owned));
        };
        check(b"", Ok(&[]));
        check(b"\n\r\n \n", Ok(&[]));
        check(b"1.0.0", Ok(&["1.0.0"]));
        check(b" 1.0.0 \r\n\t1.1.0\n\n1.2.0\r\n", Ok(&["1.0.0", "1.1.0", "1.2.0"]));
        check(b"\xef\xbb\xbf1.0.0\n", Ok(&["1.0.0"]));
        check(b"a b\n", Ok(&["a b"]));
        check(b"1.0.0\n\xff\xfe\n", Err("--tags FILE: line 2 is not UTF-8"));
    }

    #[test]
    fn rules_have_a_type_and_a_value() {
        let check = |text: &str, kind: &str, value: Option<&str>| {
            assert_eq!(rule(text).unwrap(), Rule::parse(kind, value).unwrap(), "{text}");
        };
        check("semver", "semver", None);
        check("semver=", "semver", None);
        check("semver=>=1.2, <2", "semver", Some(">=1.2, <2"));
        check("regex=^a=b{1,2}$", "regex", Some("^a=b{1,2}$"));
        let fails = |text: &str, expected: &str| match rule(text).unwrap_err() {
            Failure::Usage(error) => assert!(error.to_string().starts_with(expected), "{error}"),
            Failure::Work(error) => panic!("{error}"),
        };
        fails("semver=>=1.x.y", r#"rule "semver": invalid range ">=1.x.y": "#);
        fails("regex=(", r#"rule "regex": invalid regex "(": unclosed"#);
        fails("semver>=1", r#"unknown rule type "semver>": use one of"#);
        fails("", r#"unknown rule type """#);
    }

    #[test]
    fn without_a_rule_every_tag_loses() {
        let choice = Choice { rules: Vec::new(), filter: Filter::default(), current: Some("1".to_owned()) };
        let report = report(&choice, &["2", "1", "2"]);
        let value = serde_json::to_value(&report).unwrap();
        let lost = |tag: &str| serde_json::json!({"tag": tag, "reason": NO_RULE});
        let expected = serde_json::json!({
            "current": "1", "selected": "1", "changed": false, "reason": NO_RULE, "candidates": [],
            "rejected": [lost("1"), lost("2")],
        });
        assert_eq!(value, expected);
    }
}
