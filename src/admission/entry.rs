//! What an entry of the webhook configuration says of a Pod's Namespace, told by the path at which its reviews come.

use crate::api::annotations::{FailurePolicy, NamespaceSettings};

/// Where reviews are posted; each entry has a path of its own below it.
pub const PATH: &str = "/mutate";

/// How an entry finds Pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// By the label `enabled` of the Namespace.
    Labelled,
    /// By the list of Namespaces with that annotation.
    Annotated,
    /// By the Pod itself, in other Namespaces.
    Pods,
}

/// One combination of what the Namespace's label and the Pod's annotation say of failures; a Pod falls into one.
#[derive(Debug)]
pub(super) struct Case {
    /// Its part of the entry's name.
    pub name: &'static str,
    /// Whether the Namespace has the label `failure-policy: ignore`.
    pub ignores: bool,
    /// Comparison with the Pod's own value.
    pub pod: &'static str,
    /// What the API server does while nobody answers.
    pub policy: &'static str,
}

pub(super) const CASES: [Case; 4] = [
    Case { name: "fail", ignores: false, pod: r#"!= "ignore""#, policy: "Fail" },
    Case { name: "pod-ignores", ignores: false, pod: r#"== "ignore""#, policy: "Ignore" },
    Case { name: "ignore", ignores: true, pod: r#"!= "fail""#, policy: "Ignore" },
    Case { name: "pod-fails", ignores: true, pod: r#"== "fail""#, policy: "Fail" },
];

impl Source {
    const ALL: [Self; 3] = [Self::Labelled, Self::Annotated, Self::Pods];

    fn name(self) -> &'static str {
        match self {
            Self::Labelled => "labelled",
            Self::Annotated => "annotated",
            Self::Pods => "pods",
        }
    }

    /// The entry's name, without what all names end with, and the last segment of its path.
    pub(super) fn entry(self, case: &Case) -> String {
        format!("{}-{}", self.name(), case.name)
    }
}

/// What the API server knows of a Namespace, as far as it told by calling this entry. The default, of a review that came
/// by `/mutate` itself: nothing.
///
/// It decides whether kimup is asked at all, so what it says of a label counts before what kimup's own watch has seen: that
/// may be minutes behind, and then a Pod of a Namespace that was labelled meanwhile would start unchanged with nobody told.
/// The price: of a label that was just taken away, the API server's last look counts. The list of Namespaces with the
/// annotation is no such word: kimup itself wrote it, and while nobody leads it stays as it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    opted_in: bool,
    ignores: bool,
}

impl Entry {
    /// The entry whose reviews come by this path: its last segment.
    pub fn of_path(path: &str) -> Self {
        let Some((_, name)) = path.rsplit_once('/') else {
            return Self::default();
        };
        let split = |source: Source| name.strip_prefix(source.name())?.strip_prefix('-').map(|case| (source, case));
        let found = Source::ALL.into_iter().find_map(split).and_then(|(source, name)| {
            let case = CASES.iter().find(|case| case.name == name)?;
            Some(Self { opted_in: source == Source::Labelled, ignores: case.ignores })
        });
        found.unwrap_or_default()
    }

    /// What a Namespace says, of which this is `known`. One that the watch has not delivered yet counts as opted in,
    /// whichever the entry: somebody had a reason to ask.
    ///
    /// The other way round nothing follows: an entry that selects Namespaces without a label tells nothing of annotations.
    pub(super) fn settings(self, known: Option<NamespaceSettings>) -> NamespaceSettings {
        let mut settings = known.unwrap_or(NamespaceSettings { enabled: true, ..NamespaceSettings::default() });
        settings.enabled |= self.opted_in;
        if self.ignores {
            settings.failure_policy = FailurePolicy::Ignore;
        }
        settings
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_tells_its_entry() {
        fn check(path: &str, opted_in: bool, ignores: bool) {
            assert_eq!(Entry::of_path(path), Entry { opted_in, ignores }, "{path}");
        }
        for (source, opted_in) in [(Source::Labelled, true), (Source::Annotated, false), (Source::Pods, false)] {
            for case in &CASES {
                check(&format!("{PATH}/{}", source.entry(case)), opted_in, case.ignores);
            }
        }
        check("/mutate/team-a/labelled-pod-fails", true, true);
        check("/mutate", false, false);
        check("/mutate/", false, false);
        check("/mutate/pod-fail", false, false);
        check("/mutate/labelled", false, false);
        check("/mutate/labelled-", false, false);
        check("/mutate/labelled-fails", false, false);
        check("/mutate/labelled-fail/", false, false);
        check("labelled-fail", false, false);
    }

    #[test]
    fn what_the_api_server_says_counts_before_the_cache() {
        use FailurePolicy::{Fail, Ignore};
        fn check(entry: &str, known: Option<(bool, FailurePolicy)>, expected: (bool, FailurePolicy)) {
            let known = known.map(|(enabled, failure_policy)| NamespaceSettings {
                enabled,
                failure_policy,
                ..NamespaceSettings::default()
            });
            let found = Entry::of_path(&format!("{PATH}/{entry}")).settings(known);
            assert_eq!((found.enabled, found.failure_policy), expected, "{entry} {known:?}");
        }
        check("", None, (true, Fail));
        check("", Some((false, Ignore)), (false, Ignore));
        check("labelled-fail", None, (true, Fail));
        check("labelled-fail", Some((false, Fail)), (true, Fail));
        // The Namespace's annotation may say so, which no entry knows.
        check("labelled-fail", Some((false, Ignore)), (true, Ignore));
        check("labelled-pod-ignores", Some((false, Fail)), (true, Fail));
        check("labelled-ignore", None, (true, Ignore));
        check("labelled-ignore", Some((false, Fail)), (true, Ignore));
        check("labelled-pod-fails", Some((true, Fail)), (true, Ignore));
        check("annotated-fail", None, (true, Fail));
        check("annotated-fail", Some((false, Fail)), (false, Fail));
        check("annotated-ignore", Some((true, Fail)), (true, Ignore));
        check("pods-fail", None, (true, Fail));
        check("pods-fail", Some((false, Fail)), (false, Fail));
        check("pods-fail", Some((true, Fail)), (true, Fail));
        check("pods-ignore", Some((false, Fail)), (false, Ignore));
    }
}
