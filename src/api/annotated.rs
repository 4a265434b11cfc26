//! Annotation mode: what the annotations of a workload and its Pod template say of each container, and the Image that
//! follows from it (design section 2, "Annotation mode"). Pure: admission and sync read the same annotations the same way.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use serde::Deserialize as _;
use serde::de::value::{Error as NoKind, StrDeserializer};

use crate::policy::{Filter, Reference, Rule, RuleError};

use super::annotations::{
    AnnotationError, CONTAINERS, ENABLED, ENABLED_PREFIX, IMAGE_PULL_SECRETS, INTERVAL, INTERVAL_PREFIX, Map,
    NamespaceSettings, PATTERN, PATTERN_PREFIX, POLICY, POLICY_PREFIX, container_enabled, enabled, has_prefix,
    of_container,
};
use super::image::{Action, ActionType, FilterSpec, ImageSpec, NameRef, RuleSpec, RuleType, TriggerSpec, TriggerType};
use super::schedule::Schedule;

/// The interval if nothing is said.
const DEFAULT_INTERVAL: &str = "5m";
/// Name of the rule in an Image that kimup writes.
pub const RULE_NAME: &str = "annotation";
/// Longest annotation value that is read, in bytes.
const MAX_VALUE: usize = 1000;
/// Most problems that are told of one object; whoever corrects these hears of the rest. Admission reads Pods that nobody
/// has validated yet, with as many keys as fit into a request.
const MAX_PROBLEMS: usize = 20;

/// The annotations that count for a container, the nearest first: those of the Pod or Pod template, then those of the
/// workload. A key of a nearer one hides the same key further away, and a container's own key hides the Pod-wide one.
#[derive(Clone, Copy, Debug)]
pub struct Levels<'a>(pub &'a [&'a Map]);

/// The containers of a Pod or Pod template, by name.
#[derive(Clone, Copy, Debug, Default)]
pub struct Containers<'a> {
    /// `spec.containers`
    pub regular: &'a [&'a str],
    /// `spec.initContainers`
    pub init: &'a [&'a str],
}

/// What the annotations say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Annotated {
    /// The containers that have a policy.
    pub containers: BTreeMap<String, Wanted>,
    /// The containers that have a policy which cannot be used, as a problem says: nothing else may be made of them.
    pub wrong: BTreeSet<String>,
    /// What is wrong, one sentence each, at most 20: nothing happens for what is wrong, and somebody must hear of it.
    pub problems: Vec<String>,
    /// A Pod-wide policy means nobody knows which container: there are several and no `containers` annotation.
    pub ambiguous: bool,
}

/// What the annotations say of one container with a policy. Everything in it is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// The policy as written.
    pub policy: String,
    kind: RuleType,
    value: Option<String>,
    pattern: Option<String>,
    interval: String,
    /// The pull secrets as written; empty: the Pod's own and its ServiceAccount's.
    pub pull_secrets: Vec<String>,
}

impl<'a> Levels<'a> {
    /// Whether the nearest of them, which Pods carry, has a policy that may mean a container.
    pub fn pods_carry_policy(&self, container: &str) -> bool {
        let own = |map: &Map| map.contains_key(POLICY) || of_container(map, POLICY_PREFIX, container).is_some();
        self.0.first().is_some_and(|map| own(map))
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        self.0.iter().find_map(|map| map.get(key)).map(String::as_str)
    }

    fn own(&self, prefix: &str, container: &str) -> Option<&'a str> {
        self.0.iter().find_map(|map| of_container(map, prefix, container))
    }

    /// Whether any of them carries a policy: such an object is read with [`read`].
    pub fn has_policy(&self) -> bool {
        self.0.iter().any(|map| map.contains_key(POLICY) || has_prefix(map, POLICY_PREFIX))
    }

    /// Whether a container follows what covers it: an Image or a policy. `stamped`: the container carries a stamp, which
    /// opts it in unless somebody opts it out.
    ///
    /// # Errors
    /// `enabled`, or the container's own `enabled.`, is neither `"true"` nor `"false"`.
    pub fn enabled(
        &self,
        container: &str,
        stamped: bool,
        namespace: NamespaceSettings,
    ) -> Result<bool, AnnotationError> {
        let wide = self.0.iter().find_map(|map| enabled(map).transpose()).transpose()?;
        if wide == Some(false) {
            return Ok(false);
        }
        if let Some(own) = self.0.iter().find_map(|map| container_enabled(map, container).transpose()).transpose()? {
            return Ok(own);
        }
        let implied = || self.get(POLICY).is_some() || self.own(POLICY_PREFIX, container).is_some();
        Ok(wide == Some(true) || implied() || stamped || namespace.enabled)
    }

    /// Whether any container may follow something: where this is false nothing else needs to be read.
    ///
    /// # Errors
    /// `enabled` is neither `"true"` nor `"false"`.
    pub fn any_enabled(&self, stamped: bool, namespace: NamespaceSettings) -> Result<bool, AnnotationError> {
        let wide = self.0.iter().find_map(|map| enabled(map).transpose()).transpose()?;
        let own = || self.0.iter().any(|map| has_prefix(map, ENABLED_PREFIX));
        Ok(wide.unwrap_or_else(|| self.has_policy() || own() || stamped || namespace.enabled))
    }
}

/// Reads the annotations of a Pod, or of a workload with its Pod template. What is wrong for one container does not
/// touch the others.
pub fn read(levels: Levels<'_>, containers: Containers<'_>) -> Annotated {
    let mut found = Annotated::default();
    let all: BTreeSet<&str> = containers.regular.iter().chain(containers.init).copied().collect();
    let meant = meant(levels, containers, &all, &mut found);
    for (prefix, _) in PREFIXES {
        for key in levels.0.iter().flat_map(|map| map.keys()).filter(|key| key.starts_with(prefix)) {
            let name = &key[prefix.len()..];
            if !all.contains(name) {
                found.problem(format!("annotation {key}: there is no container {name:?}"));
            }
        }
    }
    for name in containers.regular.iter().chain(containers.init) {
        let wide = meant.contains(name);
        let get = |prefix: &str, key: &str| levels.own(prefix, name).or_else(|| levels.get(key).filter(|_| wide));
        let Some(policy) = get(POLICY_PREFIX, POLICY) else {
            continue;
        };
        match levels.enabled(name, false, NamespaceSettings::default()) {
            Ok(true) => {}
            Ok(false) => continue,
            Err(error) => {
                found.wrong((*name).to_owned(), error.to_string());
                continue;
            }
        }
        let key = if levels.own(POLICY_PREFIX, name).is_some() {
            format!("{POLICY_PREFIX}{name}")
        } else {
            POLICY.to_owned()
        };
        let wanted = Wanted::read(
            (&key, policy),
            get(PATTERN_PREFIX, PATTERN),
            get(INTERVAL_PREFIX, INTERVAL),
            levels.get(IMAGE_PULL_SECRETS),
        );
        match wanted {
            Ok(wanted) => _ = found.containers.insert((*name).to_owned(), wanted),
            Err(problem) => found.wrong((*name).to_owned(), problem),
        }
    }
    if !levels.has_policy()
        && let Some(key) = levels.0.iter().flat_map(|map| map.keys()).find(|key| is_beside_policy(key))
    {
        found.problem(format!("annotation {key} has no effect without {POLICY}; there is no default policy"));
    }
    if let Err(error) = levels.any_enabled(false, NamespaceSettings::default()) {
        found.problem(error.to_string());
    }
    found
}

/// Whether a key says something beside a policy: alone it has no effect.
pub fn is_beside_policy(key: &str) -> bool {
    [PATTERN, INTERVAL, IMAGE_PULL_SECRETS, CONTAINERS].contains(&key)
        || [PATTERN_PREFIX, INTERVAL_PREFIX].iter().any(|prefix| key.starts_with(prefix))
}

/// Keys that end in a container's name, and the Pod-wide key of each.
const PREFIXES: [(&str, &str); 4] =
    [(POLICY_PREFIX, POLICY), (ENABLED_PREFIX, ENABLED), (PATTERN_PREFIX, PATTERN), (INTERVAL_PREFIX, INTERVAL)];

/// The containers that the Pod-wide keys mean.
fn meant<'a>(
    levels: Levels<'a>,
    containers: Containers<'a>,
    all: &BTreeSet<&'a str>,
    found: &mut Annotated,
) -> BTreeSet<&'a str> {
    if let Some(names) = levels.get(CONTAINERS) {
        if words(names).next().is_none() && levels.get(POLICY).is_some() {
            found.problem(format!("annotation {CONTAINERS} names no container"));
        }
        for name in words(names).filter(|name| !all.contains(name)) {
            found.problem(format!("annotation {CONTAINERS}: there is no container {name:?}"));
        }
        return words(names).filter(|name| all.contains(name)).collect();
    }
    let without_own = |name: &&&str| levels.own(POLICY_PREFIX, name).is_none();
    match containers.regular {
        [only] => BTreeSet::from([*only]),
        // Every container has a policy of its own, so the Pod-wide one means nobody's.
        several if levels.get(POLICY).is_some() && several.iter().any(|name| without_own(&name)) => {
            found.ambiguous = true;
            found.problem(format!(
                "annotation {POLICY} does not say which of the containers {} it means; name them in {CONTAINERS}, or \
                 use {POLICY_PREFIX}<container>",
                several.join(", ")
            ));
            BTreeSet::new()
        }
        _ => BTreeSet::new(),
    }
}

fn words(value: &str) -> impl Iterator<Item = &str> {
    value.split(|c: char| c == ',' || c.is_whitespace()).filter(|word| !word.is_empty())
}

impl Annotated {
    /// The problems but for the ambiguity, which the annotations of a level not seen here may resolve.
    pub fn problems_beside_ambiguity(&self) -> &[String] {
        // It is found before any other.
        &self.problems[usize::from(self.ambiguous).min(self.problems.len())..]
    }

    fn wrong(&mut self, container: String, problem: String) {
        self.wrong.insert(container);
        self.problem(problem);
    }

    fn problem(&mut self, problem: String) {
        if self.problems.len() < MAX_PROBLEMS && !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }
}

impl Wanted {
    /// The error names the key, what is wrong and what to do.
    fn read(
        (key, policy): (&str, &str),
        pattern: Option<&str>,
        interval: Option<&str>,
        pull_secrets: Option<&str>,
    ) -> Result<Self, String> {
        for value in [Some(policy), pattern, interval].into_iter().flatten() {
            if value.len() > MAX_VALUE {
                return Err(format!("annotation {key} or those beside it are longer than {MAX_VALUE} bytes"));
            }
        }
        let policy = policy.trim();
        let (kind, value) = rule_of(policy).map_err(|error| format!("annotation {key}: {error}"))?;
        let pattern = pattern.filter(|pattern| !pattern.is_empty());
        Filter::new(pattern, None, &[]).map_err(|error| format!("annotation {PATTERN}: {error}"))?;
        let interval = interval.map_or(DEFAULT_INTERVAL, str::trim);
        let trigger = TriggerSpec { kind: TriggerType::Interval, value: interval.to_owned() };
        Schedule::parse(&trigger, Timestamp::UNIX_EPOCH).map_err(|error| format!("annotation {INTERVAL}: {error}"))?;
        Ok(Self {
            policy: policy.to_owned(),
            kind,
            value,
            pattern: pattern.map(str::to_owned),
            interval: interval.to_owned(),
            pull_secrets: pull_secrets.into_iter().flat_map(words).map(str::to_owned).collect(),
        })
    }

    /// The spec of the Image that follows from it, for a container whose text is `text`. The own tag is where the choice
    /// starts.
    pub fn spec(&self, text: &Reference) -> ImageSpec {
        ImageSpec {
            image: text.name().to_owned(),
            base_tag: text.tag().unwrap_or("latest").to_owned(),
            image_pull_secrets: self.pull_secrets.iter().map(|name| NameRef { name: name.clone() }).collect(),
            insecure_skip_tls_verify: false,
            triggers: vec![TriggerSpec { kind: TriggerType::Interval, value: self.interval.clone() }],
            rules: vec![RuleSpec {
                name: RULE_NAME.to_owned(),
                kind: self.kind,
                value: self.value.clone(),
                actions: vec![Action { kind: ActionType::Apply, data: None }],
            }],
            filter: self
                .pattern
                .as_ref()
                .map(|pattern| FilterSpec { pattern: Some(pattern.clone()), ..FilterSpec::default() }),
            suspend: None,
            min_age: None,
            windows: Vec::new(),
            rollout: None,
            pin_digest: None,
            platforms: Vec::new(),
        }
    }
}

/// The rule of the resource that a policy annotation stands for.
fn rule_of(policy: &str) -> Result<(RuleType, Option<String>), RuleError> {
    // An empty range would be every version: never a silent default.
    if policy.strip_prefix("semver:").is_some_and(|range| range.trim().is_empty()) {
        return Err(RuleError::UnknownPolicy { policy: policy.to_owned() });
    }
    let rule = Rule::parse_policy(policy)?;
    let (kind, value) = rule.to_crd();
    let known = RuleType::deserialize(StrDeserializer::<NoKind>::new(kind));
    let known = known.map_err(|_| RuleError::Unknown { kind: kind.to_owned() })?;
    Ok((known, value))
}

/// The name of the Image that sync writes for a container of a workload: readable, and the same whoever computes it.
/// `kind` and `owner` are those of the object that the user annotated (a `CronJob`, not its Jobs).
pub fn image_name(kind: &str, owner: &str, container: &str) -> String {
    let hash = super::short_hash(&[kind, owner, container]);
    format!("{}-{hash}", readable(&format!("{owner}-{container}")))
}

/// The name of the Image for Pods without a controller that kimup knows: those with the same settings share it.
pub fn bare_image_name(container: &str, spec: &ImageSpec) -> String {
    let spec = serde_json::to_string(spec).unwrap_or_default();
    format!("{}-{}", readable(&format!("pod-{container}")), super::short_hash(&["Pod", container, &spec]))
}

/// The part of a name that a person reads, with a hash behind it well below the 253 bytes of a name (RFC 1123). What
/// admission sees is not validated yet, so a name may be anything.
fn readable(name: &str) -> &str {
    let end = name.char_indices().map(|(at, c)| at + c.len_utf8()).take_while(|end| *end <= 200).last();
    name[..end.unwrap_or(0)].trim_end_matches(['-', '.'])
}

/// What the labels of a Pod say of its revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PodHash<'a> {
    /// Names the revision; empty for a Pod of a controller without revisions.
    pub value: &'a str,
    /// It is an Argo Rollout's: its `ReplicaSets` are named like those of a Deployment, which may have the same name.
    pub of_rollout: bool,
}

impl<'a> PodHash<'a> {
    /// The first of `pod-template-hash` (Deployments, `CloneSets`), `rollouts-pod-template-hash` (Argo Rollouts) and
    /// `controller-revision-hash` (`StatefulSets`, `DaemonSets`) that a Pod has.
    pub fn new(template: Option<&'a str>, rollouts: Option<&'a str>, revision: Option<&'a str>) -> Self {
        let value = template.or(rollouts).or(revision).unwrap_or_default();
        Self { value, of_rollout: template.is_none() && rollouts.is_some() }
    }

    /// From the labels of a Pod.
    pub fn of(labels: Option<&'a Map>) -> Self {
        let get = |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str);
        Self::new(get("pod-template-hash"), get("rollouts-pod-template-hash"), get("controller-revision-hash"))
    }
}

/// Names the object whose annotations count for a Pod, from its controller, without asking anybody: a Deployment and an
/// Argo Rollout name their `ReplicaSets` after themselves and the template's hash, a `CronJob` its Jobs after itself and
/// a number.
///
/// The candidates come in the order in which they are to be tried.
pub fn owners_of(kind: &str, name: &str, hash: PodHash<'_>) -> Vec<(&'static str, String)> {
    match kind {
        "ReplicaSet" => {
            let kind = if hash.of_rollout { "Rollout" } else { "Deployment" };
            let owner = name.strip_suffix(hash.value).and_then(|rest| rest.strip_suffix('-'));
            owner.filter(|_| !hash.value.is_empty()).map(|owner| (kind, owner.to_owned())).into_iter().collect()
        }
        "StatefulSet" => vec![("StatefulSet", name.to_owned())],
        "DaemonSet" => vec![("DaemonSet", name.to_owned())],
        "CloneSet" => vec![("CloneSet", name.to_owned())],
        "Job" => {
            let mut owners = vec![("Job", name.to_owned())];
            let cron = name.rsplit_once('-').filter(|(_, n)| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()));
            owners.extend(cron.map(|(cron, _)| ("CronJob", cron.to_owned())));
            owners
        }
        _ => Vec::new(),
    }
}

#[cfg(test)]
mod tests;
