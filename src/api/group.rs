//! Which Images belong together: a group shares the order of its rollouts, its limits and what it rejects.

use std::hash::{DefaultHasher, Hash, Hasher};

use super::approval::asks_approval;
use super::image::{ImageSpec, RuleType};

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
}
