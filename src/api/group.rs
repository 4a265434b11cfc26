//! Which Images belong together: a group shares the order of its rollouts, its limits and what it rejects.

use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::json;

use super::approval::asks_approval;
use super::image::{ImageSpec, RuleType};
use super::status::ImageStatus;
use crate::policy::Digest;

/// What the Images of one namespace and repository have in common that are of one group: rules and filter, and whether
/// they ask for approval. What one of them rejects counts for all, so who may not do so for one must not do so through
/// another.
#[derive(Debug, PartialEq, Eq, Hash)]
pub struct Group<'a> {
    rules: Vec<(RuleType, Option<&'a str>)>,
    filter: (Option<&'a str>, Option<&'a str>, &'a [String]),
    asks_approval: bool,
}

impl<'a> Group<'a> {
    /// That of an Image.
    pub fn of(spec: &'a ImageSpec) -> Self {
        let filter = spec.filter.as_ref();
        Self {
            rules: spec.rules.iter().map(|rule| (rule.kind, rule.value.as_deref())).collect(),
            filter: (
                filter.and_then(|filter| filter.pattern.as_deref()),
                filter.and_then(|filter| filter.extract.as_deref()),
                filter.map(|filter| filter.exclude.as_slice()).unwrap_or_default(),
            ),
            asks_approval: asks_approval(spec),
        }
    }

    /// A number that stands for it in this process: as good as the group itself among the Images of one namespace.
    pub fn number(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        self.hash(&mut hasher);
        hasher.finish()
    }

    /// A text that stands for it in a status, the same in every version: the first 16 digits of the SHA-256 of its JSON.
    /// Changed, it would have every Image forget what it rejected. Cost: about a microsecond.
    pub fn id(&self) -> String {
        let json = json!([self.rules, self.filter, self.asks_approval]).to_string();
        Digest::sha256_of(json.as_bytes()).as_str().chars().skip("sha256:".len()).take(16).collect()
    }
}

impl ImageStatus {
    /// Whether what it has rejected was rejected in another group than that of `spec`: it counts for nobody then. A status
    /// that names no group speaks of the one that its Image is in.
    pub fn rejected_elsewhere(&self, spec: &ImageSpec) -> bool {
        self.group.as_ref().is_some_and(|of| *of != Group::of(spec).id())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn id(spec: &Value) -> String {
        let mut all = json!({
            "image": "app", "triggers": [{"type": "webhook"}],
            "rules": [{"name": "r", "type": "semver", "value": ">=1", "actions": [{"type": "apply"}]}],
        });
        json_patch::merge(&mut all, spec);
        Group::of(&serde_json::from_value(all).unwrap()).id()
    }

    #[test]
    fn the_id_is_that_of_what_a_group_has_in_common() {
        #[track_caller]
        fn check(spec: &Value, same: bool) {
            assert_eq!(id(spec) == "e0815da338ae3e8d", same, "{spec}: {}", id(spec));
        }
        let rule = |kind: &str, action: &str| json!([{"name": "q", "type": kind, "value": ">=1", "actions": [{"type": action}]}]);
        check(&json!({}), true);
        check(&json!({"image": "other", "baseTag": "1.0.0", "suspend": true}), true);
        check(&json!({"rules": rule("semver", "apply")}), true);
        check(&json!({"rules": rule("semver", "request-approval")}), false);
        check(&json!({"rules": rule("regex", "apply")}), false);
        check(&json!({"filter": {"pattern": "^v"}}), false);
        check(&json!({"filter": {"exclude": ["1.0.0"]}}), false);
    }
}
