//! How an Image orders tags: which of two is newer, and which one a container runs.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::policy::{self, Filter, Rule};

use super::image::ImageSpec;
use super::spec::{CompiledSpec, compile_filter, starting_tag};
use super::status::ImageStatus;

/// The order of an Image's rules over tags.
#[derive(Clone, Debug)]
pub struct Order {
    /// Shared: compiled patterns are large, and many Images have the same.
    rules: Arc<Rules>,
    /// The starting tag: a container with this own tag is one that the Image's tag was chosen for. Only where no tag is
    /// replaced by another ([`Self::keeps_tags`]) does it decide anything: else it is not kept.
    #[allow(clippy::box_collection)] // few have one, and an order is a part of each Image in memory
    base: Option<Box<String>>,
    /// Whether the Image was made for the text of one container.
    of_one_text: bool,
}

#[derive(Debug)]
struct Rules {
    list: Vec<Rule>,
    filter: Filter,
    /// Whether one follows a digest; none for those of a spec that cannot be used otherwise.
    follows_digest: Option<bool>,
}

impl Order {
    /// The order of a spec, also of one that cannot be used otherwise: rules that do not parse are left out, and where
    /// none is left plain versions are compared. So a typo in a rule never takes a version backwards at admission.
    pub fn of(spec: &ImageSpec) -> Self {
        let mut rules: Vec<Rule> =
            spec.rules.iter().filter_map(|r| Rule::parse(r.kind.as_str(), r.value.as_deref()).ok()).collect();
        if rules.is_empty() {
            rules.extend(Rule::parse("semver", None));
        }
        let rules = Rules { list: rules, filter: compile_filter(spec).unwrap_or_default(), follows_digest: None };
        Self::new(Arc::new(rules), Some(&spec.base_tag))
    }

    fn new(rules: Arc<Rules>, base: Option<&str>) -> Self {
        Self { rules, base: None, of_one_text: false }.with_base(base)
    }

    fn with_base(mut self, base: Option<&str>) -> Self {
        self.base = base.filter(|_| self.keeps_tags()).map(|base| Box::new(base.to_owned()));
        self
    }

    /// The same rules, with the starting tag of a spec that has them.
    #[must_use]
    pub fn from_base(&self, spec: &ImageSpec) -> Self {
        let base = match self.rules.follows_digest {
            Some(follows) => starting_tag(spec, follows),
            None => Some(spec.base_tag.as_str()),
        };
        Self::new(Arc::clone(&self.rules), base)
    }

    /// Whether another order shares its rules.
    pub fn is_shared(&self) -> bool {
        Arc::strong_count(&self.rules) > 1
    }

    /// The same order, for an Image that was made for the text of one container if `yes`. Such a text may turn to another
    /// variant, which nothing compares with the one before: it stays as it is until the Image has turned too.
    #[must_use]
    pub fn of_one_text(mut self, yes: bool) -> Self {
        self.of_one_text = yes;
        self
    }

    /// The same order, where the status tells which starting tag its tag comes from: the spec may name another since.
    #[must_use]
    pub fn following(mut self, status: &ImageStatus) -> Self {
        if let Some(followed) = &status.base_tag {
            self = self.with_base(Some(followed));
        }
        // On its way to the starting tag the settled one is what is left.
        self.base = self.base.filter(|base| status.rollout.as_ref().is_none_or(|rollout| rollout.tag != **base));
        self
    }

    /// The order of two tags by the first rule that can compare them; none if no rule can (`latest`, another variant).
    pub fn compare(&self, a: &str, b: &str) -> Option<Ordering> {
        let Rules { list, filter, .. } = &*self.rules;
        list.iter().find_map(|rule| policy::compare(rule, filter, a, b))
    }

    /// The tag a container with the own tag `own` runs when its Image says `tag`: the newer of the two. An own tag that
    /// is absent or cannot be compared is replaced (design section 4, point 4), unless nothing but its digest is followed:
    /// then the tag stays. What it stays at may be a newer one than the starting tag, by a rule of before: that counts.
    pub fn newer_of<'a>(&self, own: Option<&'a str>, tag: &'a str) -> &'a str {
        match own {
            Some(own) if self.keeps_tags() => {
                let chosen_for = self.base.as_ref().is_some_and(|base| **base == own);
                let behind =
                    || policy::compare(&Rule::Semver(None), &Filter::default(), own, tag) == Some(Ordering::Less);
                if chosen_for && behind() { tag } else { own }
            }
            Some(own) if self.stays_alone(own, tag) => own,
            Some(own) if self.compare(own, tag) == Some(Ordering::Greater) => own,
            _ => tag,
        }
    }

    /// Whether the rules can read `own`, but not compare it with `tag`: another variant.
    pub fn is_another_family(&self, own: &str, tag: &str) -> bool {
        self.compare(own, tag).is_none() && self.compare(own, own).is_some()
    }

    /// Whether the one text that an Image was made for has turned to another variant than `tag`.
    pub fn stays_alone(&self, own: &str, tag: &str) -> bool {
        self.of_one_text && self.is_another_family(own, tag)
    }

    /// Whether every rule follows a digest, so that no tag is replaced by another.
    pub fn keeps_tags(&self) -> bool {
        let rules = &self.rules.list;
        !rules.is_empty() && rules.iter().all(|rule| *rule == Rule::Digest)
    }
}

impl From<&CompiledSpec> for Order {
    fn from(spec: &CompiledSpec) -> Self {
        let rules = Rules {
            list: spec.rules.iter().map(|r| r.rule.clone()).collect(),
            filter: spec.filter.clone(),
            follows_digest: Some(spec.follows_digest.is_some()),
        };
        Self::new(Arc::new(rules), spec.base_tag.as_deref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::status::RolloutStatus;
    use serde_json::json;

    #[test]
    fn a_text_of_another_variant_is_replaced_where_many_share_an_image() {
        #[track_caller]
        fn check(own: &str, tag: &str, shared: &str, alone: &str) {
            let spec = json!({
                "image": "app", "triggers": [{"type": "interval", "value": "5m"}],
                "rules": [{"name": "r", "type": "minor", "actions": [{"type": "apply"}]}],
            });
            let order = Order::of(&serde_json::from_value(spec).unwrap());
            assert_eq!(order.newer_of(Some(own), tag), shared);
            assert_eq!(order.of_one_text(true).newer_of(Some(own), tag), alone);
        }
        check("1.0.0", "1.4.2", "1.4.2", "1.4.2");
        check("2.0.0", "1.4.2", "2.0.0", "2.0.0");
        check("latest", "1.4.2", "1.4.2", "1.4.2");
        check("20.1.0", "20.2.0-alpine", "20.2.0-alpine", "20.1.0");
        check("20.1.0-bookworm", "20.2.0-alpine", "20.2.0-alpine", "20.1.0-bookworm");
    }

    #[test]
    fn a_followed_digest_never_takes_a_tag_back() {
        #[track_caller]
        fn check(base: &str, followed: Option<&str>, in_flight: Option<&str>, own: &str, tag: &str, expected: &str) {
            let spec = json!({
                "image": "app", "baseTag": base, "triggers": [{"type": "interval", "value": "5m"}],
                "rules": [{"name": "r", "type": "digest", "actions": [{"type": "apply"}]}],
            });
            let order = Order::of(&serde_json::from_value(spec).unwrap());
            let rollout = in_flight.map(|tag| RolloutStatus { tag: tag.to_owned(), ..RolloutStatus::default() });
            let status = ImageStatus { base_tag: followed.map(str::to_owned), rollout, ..ImageStatus::default() };
            assert_eq!(order.following(&status).newer_of(Some(own), tag), expected, "{base} {followed:?} {own} {tag}");
        }
        check("1.0.0", Some("1.0.0"), None, "1.0.0", "1.0.0", "1.0.0");
        // The rule was another one before, which chose a newer tag: not synced since, and synced.
        check("1.0.0", None, None, "1.0.0", "1.4.2", "1.4.2");
        check("1.0.0", None, Some("1.5.0"), "1.0.0", "1.4.2", "1.4.2");
        check("1.0.0", Some("1.0.0"), None, "1.0.0", "1.4.2", "1.4.2");
        // Another text than the one it was chosen for.
        check("1.0.0", Some("1.0.0"), None, "1.1.0", "1.4.2", "1.1.0");
        check("2.0.0", Some("1.0.0"), None, "2.0.0", "1.4.2", "2.0.0");
        check("2.0.0", None, None, "2.0.0", "1.4.2", "2.0.0");
        check("latest", None, None, "1.0.0", "1.4.2", "1.0.0");
        check("latest", Some("latest"), None, "latest", "1.4.2", "latest");
        // A person went back to an older text.
        check("1.0.0", Some("2.0.0"), None, "1.0.0", "2.0.0", "1.0.0");
        check("1.0.0", Some("1.0.0"), Some("1.0.0"), "1.0.0", "2.0.0", "1.0.0");
    }
}
