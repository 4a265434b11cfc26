//! From an `ImageSpec` to values that cannot be wrong: the parsed repository, rules, filter and schedules.

use jiff::Timestamp;

use crate::policy::{self, Filter, Platform, PlatformError, ReferenceError, Repository, Rule, RuleError};

use super::annotations::{ACTION, Map, RESUME, RETRY};
use super::approval::Approval;
use super::gates::{GATE_INVALID, GateError, Gates};
use super::image::{ActionType, ImageSpec, RuleSpec, RuleType, TriggerType};
use super::schedule::{Schedule, ScheduleError};
use super::status::SyncResult;
use super::strategy::Strategy;

/// What a spec means.
#[derive(Clone, Debug)]
pub struct CompiledSpec {
    /// The normalised repository.
    pub repository: Repository,
    /// The starting tag; none if it is empty, or `latest` where a rule may choose another.
    pub base_tag: Option<String>,
    /// When to look at the registry. Empty: only when asked (`refresh`, `requestedAt`).
    pub schedules: Vec<Schedule>,
    /// The rules in order, at least one.
    pub rules: Vec<CompiledRule>,
    /// Which tags the rules see.
    pub filter: Filter,
    /// Fields and values that this version does not act on, one sentence each.
    pub unsupported: Vec<String>,
    /// What makes newer tags wait.
    pub gates: Gates,
    /// How the workloads are rolled.
    pub strategy: Strategy,
    /// Whether Pods run `repo:tag@sha256:…`: `spec.pinDigest`, or a rule that follows the digest.
    pub pin: bool,
    /// Name of the rule that follows the digest of the tag, if one does.
    pub follows_digest: Option<String>,
    /// Platforms that a tag must be for; empty: those of the cluster's nodes.
    pub platforms: Vec<Platform>,
}

impl CompiledSpec {
    /// The tag to stay at, if no rule chooses another: only its digest is followed.
    pub fn tag_to_follow(&self) -> Option<&str> {
        let stays = self.rules.iter().filter(|rule| rule.apply).all(|rule| rule.rule == Rule::Digest);
        self.base_tag.as_deref().filter(|_| stays && self.follows_digest.is_some())
    }

    /// What newer tags, and the first one, may have to wait for; none: for nothing.
    pub fn waits_for(&self) -> Option<&'static str> {
        let approval = self.asks_approval().then_some("the action request-approval");
        approval.or_else(|| self.gates.any().then_some("spec.suspend, spec.minAge or spec.windows"))
    }

    /// Whether a rule asks for approval.
    pub fn asks_approval(&self) -> bool {
        self.rules.iter().any(|rule| rule.approval.is_some())
    }

    /// What the rules leave out, against what most people expect: `semver-minor` alone takes no patch.
    pub fn left_out(&self) -> Option<String> {
        let takes_patches = |rule: &CompiledRule| {
            matches!(rule.rule, Rule::SemverPatch | Rule::Patch | Rule::Minor | Rule::Major | Rule::Semver(_))
        };
        let (index, rule) = self.rules.iter().enumerate().find(|(_, rule)| rule.rule == Rule::SemverMinor)?;
        (!self.rules.iter().any(takes_patches)).then(|| {
            format!(
                "rule {:?} (spec.rules[{index}]) is semver-minor without semver-patch beside it: 1.2.3 would never become \
                 1.2.4; add a rule of type semver-patch, or use minor",
                rule.name
            )
        })
    }
}

/// One rule, ready to be used.
#[derive(Clone, Debug)]
pub struct CompiledRule {
    /// Its name in the spec.
    pub name: String,
    /// How it chooses.
    pub rule: Rule,
    /// Whether a tag it chooses is applied, be it after approval; otherwise it only tells.
    pub apply: bool,
    /// A person approves what it chooses first.
    pub approval: Option<Approval>,
}

/// Why a spec cannot be used, with the path of the field to fix.
#[derive(Clone, Debug, thiserror::Error)]
pub enum SpecError {
    /// `spec.image` is no repository.
    #[error("{0}; fix spec.image")]
    Image(#[from] ReferenceError),
    /// A rule cannot be used.
    #[error("rule {name:?}: {cause}; fix spec.rules[{index}].{field}")]
    Rule {
        /// Name of the rule.
        name: String,
        /// Position in `spec.rules`.
        index: usize,
        /// The field of the rule to fix.
        field: &'static str,
        /// What is wrong.
        cause: RuleError,
    },
    /// The filter cannot be used.
    #[error("filter: {0}; fix spec.filter")]
    Filter(RuleError),
    /// A platform cannot be used.
    #[error("{cause}; fix spec.platforms[{index}]")]
    Platform {
        /// Position in `spec.platforms`.
        index: usize,
        /// What is wrong.
        cause: PlatformError,
    },
    /// `spec.minAge` or a window cannot be used.
    #[error(transparent)]
    Gate(#[from] GateError),
    /// A trigger cannot be used.
    #[error("{cause}; fix spec.triggers[{index}].value")]
    Trigger {
        /// Position in `spec.triggers`.
        index: usize,
        /// What is wrong.
        cause: ScheduleError,
    },
}

impl SpecError {
    /// The result that the status shows.
    pub const fn result(&self) -> SyncResult {
        match self {
            Self::Image(_) => SyncResult::GetImageError,
            Self::Rule { .. } | Self::Filter(_) => SyncResult::GetRuleError,
            Self::Trigger { .. } | Self::Platform { .. } | Self::Gate(_) => SyncResult::Error,
        }
    }

    /// The reason of the `Ready` condition.
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Image(_) => "ImageInvalid",
            Self::Rule { .. } => "RuleInvalid",
            Self::Filter(_) => "FilterInvalid",
            Self::Trigger { .. } => "TriggerInvalid",
            Self::Platform { .. } => "PlatformInvalid",
            Self::Gate(_) => GATE_INVALID,
        }
    }
}

/// Parses a spec. Pure; `now` serves to refuse a cron line that never fires again.
pub fn compile(spec: &ImageSpec, now: Timestamp) -> Result<CompiledSpec, SpecError> {
    let repository = Repository::parse(&spec.image)?;
    let rules: Vec<CompiledRule> =
        spec.rules.iter().enumerate().map(|(i, rule)| compile_rule(i, rule)).collect::<Result<_, _>>()?;
    let filter = compile_filter(spec)?;
    let mut schedules = Vec::new();
    for (index, trigger) in spec.triggers.iter().enumerate() {
        let schedule = Schedule::parse(trigger, now).map_err(|cause| SpecError::Trigger { index, cause })?;
        schedules.extend(schedule);
    }
    let platforms = spec.platforms.iter().enumerate();
    let platforms = platforms
        .map(|(index, text)| text.parse().map_err(|cause| SpecError::Platform { index, cause }))
        .collect::<Result<_, _>>()?;
    let follows = |rule: &&CompiledRule| rule.apply && rule.rule == Rule::Digest;
    let follows_digest = rules.iter().find(follows).map(|rule| rule.name.clone());
    let base_tag = starting_tag(spec, follows_digest.is_some());
    Ok(CompiledSpec {
        repository,
        base_tag: base_tag.map(str::to_owned),
        schedules,
        rules,
        filter,
        unsupported: unsupported(spec),
        gates: Gates::parse(spec)?,
        strategy: Strategy::parse(spec)?,
        pin: pins_digest(spec),
        follows_digest,
        platforms,
    })
}

/// [`CompiledSpec::base_tag`].
pub(super) fn starting_tag(spec: &ImageSpec, follows_digest: bool) -> Option<&str> {
    Some(spec.base_tag.as_str()).filter(|tag| policy::is_legal_tag(tag) && (*tag != "latest" || follows_digest))
}

fn compile_rule(index: usize, spec: &RuleSpec) -> Result<CompiledRule, SpecError> {
    let rule = Rule::parse(spec.kind.as_str(), spec.value.as_deref()).map_err(|cause| SpecError::Rule {
        name: spec.name.clone(),
        index,
        field: if matches!(cause, RuleError::Invalid { .. }) { "value" } else { "type" },
        cause,
    })?;
    let approval = Approval::parse(index, spec)?;
    Ok(CompiledRule { name: spec.name.clone(), rule, apply: applies(spec), approval })
}

/// Whether a tag that the rule chooses is applied, be it after approval.
fn applies(rule: &RuleSpec) -> bool {
    rule.actions.iter().any(|a| matches!(a.kind, ActionType::Apply | ActionType::RequestApproval))
}

/// Whether Pods of this spec run `repo:tag@sha256:…`, also of one that cannot be used otherwise.
pub fn pins_digest(spec: &ImageSpec) -> bool {
    spec.pin_digest == Some(true) || spec.rules.iter().any(|rule| rule.kind == RuleType::Digest && applies(rule))
}

/// The filter of a spec.
pub(super) fn compile_filter(spec: &ImageSpec) -> Result<Filter, SpecError> {
    let Some(filter) = &spec.filter else {
        return Ok(Filter::default());
    };
    Filter::new(filter.pattern.as_deref(), filter.extract.as_deref(), &filter.exclude).map_err(SpecError::Filter)
}

/// Annotations of an Image that a later version acts on, one sentence each: a person who set one waits for something.
pub fn unsupported_annotations(annotations: &Map) -> Vec<String> {
    let value = |key: &str| annotations.get(key).map(String::as_str);
    let mut found = Vec::new();
    if let Some(action) = value(ACTION).filter(|action| !["refresh", RETRY, RESUME].contains(action)) {
        let known = "it knows refresh, retry and resume";
        found.push(format!("the annotation {ACTION}: {action} is not acted on by this version; {known}"));
    }
    found
}

fn named<const N: usize>(fields: [(bool, &'static str); N]) -> Vec<&'static str> {
    fields.into_iter().filter_map(|(set, name)| set.then_some(name)).collect()
}

/// Every field and value that this version does not act on: one sentence for each of what follows from that.
fn unsupported(spec: &ImageSpec) -> Vec<String> {
    let webhook = spec.triggers.iter().any(|t| t.kind == TriggerType::Webhook);
    let mut alerts: Vec<_> = spec.rules.iter().flat_map(|r| &r.actions).map(|a| a.kind).collect();
    alerts.retain(|kind| !matches!(kind, ActionType::Apply | ActionType::RequestApproval));
    let mut alerts: Vec<_> = alerts.into_iter().map(ActionType::as_str).collect();
    alerts.sort_unstable();
    alerts.dedup();
    let sentences = [("never fires", named([(webhook, "a trigger of type webhook")])), ("nothing is sent", alerts)];
    let said = sentences.into_iter().filter(|(_, fields)| !fields.is_empty());
    said.map(|(so, fields)| format!("not acted on by this version, {so}: {}", fields.join(", "))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn spec(patch: &Value) -> ImageSpec {
        let mut base = json!({
            "image": "alpine",
            "triggers": [{"type": "interval", "value": "5m"}],
            "rules": [{"name": "r", "type": "semver-minor", "actions": [{"type": "apply"}]}],
        });
        json_patch::merge(&mut base, patch);
        serde_json::from_value(base).unwrap()
    }

    #[test]
    fn a_wrong_spec_names_the_field_to_fix() {
        fn check(patch: &Value, expected: &[&str], result: SyncResult) {
            let error = compile(&spec(patch), Timestamp::UNIX_EPOCH).unwrap_err();
            let text = error.to_string();
            for part in expected {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
            assert_eq!(error.result(), result, "{text}");
        }
        let rule = |kind: &str, value: &str| json!({"rules": [{"name": "stable", "type": kind, "value": value, "actions": [{"type": "apply"}]}]});
        check(&json!({"image": "UPPER/Case:tag"}), &["fix spec.image"], SyncResult::GetImageError);
        check(
            &rule("semver", ">=1.x.y"),
            &["rule \"stable\"", ">=1.x.y", "fix spec.rules[0].value"],
            SyncResult::GetRuleError,
        );
        check(&rule("regex", "("), &["rule \"stable\"", "fix spec.rules[0].value"], SyncResult::GetRuleError);
        check(
            &rule("alphabetical", "up"),
            &["invalid alphabetical \"up\": use asc, desc", "fix spec.rules[0].value"],
            SyncResult::GetRuleError,
        );
        check(&json!({"filter": {"pattern": "("}}), &["filter", "fix spec.filter"], SyncResult::GetRuleError);
        check(
            &json!({"triggers": [{"type": "crontab", "value": "bad"}]}),
            &["invalid crontab \"bad\"", "fix spec.triggers[0].value"],
            SyncResult::Error,
        );
        check(&json!({"minAge": "soon"}), &["invalid age \"soon\"", "fix spec.minAge"], SyncResult::Error);
        check(
            &json!({"platforms": ["linux/arm64", "arm64"]}),
            &["\"arm64\"", "fix spec.platforms[1]"],
            SyncResult::Error,
        );
    }

    #[test]
    fn what_is_not_acted_on_is_named() {
        fn check(patch: &Value, expected: &[&str], approval: bool) {
            let compiled = compile(&spec(patch), Timestamp::UNIX_EPOCH).unwrap();
            let text = compiled.unsupported.join("; ");
            assert_eq!(text.is_empty(), expected.is_empty(), "{patch}: {text}");
            for part in expected {
                assert!(text.contains(part), "{text:?} lacks {part:?}");
            }
            assert_eq!(compiled.asks_approval(), approval, "{patch}");
        }
        let action = |kind: &str| json!({"rules": [{"name": "r", "type": "always", "actions": [{"type": "apply"}, {"type": kind}]}]});
        check(&json!({}), &[], false);
        check(&json!({"suspend": false}), &[], false);
        check(&json!({"suspend": true, "minAge": "24h"}), &[], false);
        check(&json!({"windows": [{"kind": "deny", "schedule": "0 0 * * *", "duration": "8h"}]}), &[], false);
        check(&json!({"rollout": {"maxConcurrent": 2, "afterRollback": "next"}}), &[], false);
        check(&json!({"rollout": {"soak": "1m", "minInterval": "1m"}}), &[], false);
        check(&json!({"rollout": {"deadline": "5m", "afterRollback": "hold"}}), &[], false);
        check(&json!({"pinDigest": true, "platforms": ["linux/amd64"]}), &[], false);
        check(&json!({"triggers": [{"type": "webhook"}]}), &["webhook"], false);
        check(&action("alert-slack"), &["alert-slack"], false);
        check(&action("request-approval"), &[], true);
    }

    #[test]
    fn semver_minor_alone_is_pointed_out() {
        fn check(rules: &[&str], expected: bool) {
            let rules = rules.iter().map(|kind| json!({"name": "r", "type": kind, "actions": [{"type": "apply"}]}));
            let compiled = compile(&spec(&json!({"rules": rules.collect::<Vec<_>>()})), Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(compiled.left_out().is_some(), expected, "{:?}", compiled.rules);
        }
        check(&["semver-minor"], true);
        check(&["semver-major", "semver-minor"], true);
        check(&["semver-minor", "semver-patch"], false);
        check(&["patch", "semver-minor"], false);
        check(&["semver-minor", "semver"], false);
        check(&["semver-major"], false);
        check(&["minor"], false);
        check(&["always"], false);
    }

    #[test]
    fn annotations_of_later_versions_are_named() {
        fn check(annotations: &[(&str, &str)], expected: usize) {
            let map = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            assert_eq!(unsupported_annotations(&map).len(), expected, "{annotations:?}");
        }
        check(&[], 0);
        check(&[(ACTION, "refresh")], 0);
        check(&[(ACTION, "resume")], 0);
        check(&[(ACTION, "rewind")], 1);
    }

    #[test]
    fn a_base_tag_counts_unless_it_is_latest() {
        fn check(base_tag: &str, expected: Option<&str>) {
            let compiled = compile(&spec(&json!({"baseTag": base_tag})), Timestamp::UNIX_EPOCH).unwrap();
            assert_eq!(compiled.base_tag.as_deref(), expected);
        }
        let digest = json!({"rules": [{"name": "r", "type": "digest", "actions": [{"type": "apply"}]}]});
        let compiled = compile(&spec(&digest), Timestamp::UNIX_EPOCH).unwrap();
        assert_eq!(compiled.base_tag.as_deref(), Some("latest"));
        check("v1.0.0", Some("v1.0.0"));
        check("latest", None);
        check("", None);
    }
}
