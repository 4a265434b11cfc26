//! How an Image orders tags: which of two is newer, and which one a container runs.

use std::cmp::Ordering;

use crate::policy::{self, Filter, Rule};

use super::image::ImageSpec;
use super::spec::{CompiledSpec, compile_filter};

/// The order of an Image's rules over tags.
#[derive(Clone, Debug)]
pub struct Order {
    rules: Vec<Rule>,
    filter: Filter,
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
        Self { rules, filter: compile_filter(spec).unwrap_or_default() }
    }

    /// The order of two tags by the first rule that can compare them; none if no rule can (`latest`, another variant).
    pub fn compare(&self, a: &str, b: &str) -> Option<Ordering> {
        self.rules.iter().find_map(|rule| policy::compare(rule, &self.filter, a, b))
    }

    /// The tag a container with the own tag `own` runs when its Image says `tag`: the newer of the two. An own tag that
    /// is absent or cannot be compared is replaced (design section 4, point 4), unless nothing but its digest is followed:
    /// then the tag stays.
    pub fn newer_of<'a>(&self, own: Option<&'a str>, tag: &'a str) -> &'a str {
        match own {
            Some(own) if self.keeps_tags() || self.compare(own, tag) == Some(Ordering::Greater) => own,
            _ => tag,
        }
    }

    /// Whether every rule follows a digest, so that no tag is replaced by another.
    fn keeps_tags(&self) -> bool {
        !self.rules.is_empty() && self.rules.iter().all(|rule| *rule == Rule::Digest)
    }
}

impl From<&CompiledSpec> for Order {
    fn from(spec: &CompiledSpec) -> Self {
        Self { rules: spec.rules.iter().map(|r| r.rule.clone()).collect(), filter: spec.filter.clone() }
    }
}
