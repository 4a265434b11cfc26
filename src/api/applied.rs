//! The `applied` annotation: what admission did to a Pod, in words that a person reads and sync reads back.

use std::fmt;

use super::annotations::{APPLIED, Map};

/// Stands for the own tag of a text without one. Parentheses are not legal in a tag.
const NO_TAG: &str = "(no tag)";

/// Most entries that are read of a Pod: more containers than admission answers for.
const MAX_ENTRIES: usize = 1000;

/// Between two entries.
const SEPARATOR: &str = "; ";

/// Room for a usual entry, in bytes.
const ROOM: usize = 128;

/// One container's entry: `app: 1.0.0 -> 1.4.2 (Image web, rollout ab12)`, or `app: 1.4.2 (Image web)` if admission left
/// the tag as it was. Entries are separated by `"; "`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied<S = String> {
    /// Name of the container.
    pub container: S,
    /// The own tag of the container's text; none if it had no tag.
    pub from: Option<S>,
    /// The tag the container runs.
    pub to: S,
    /// Name of the Image that decided, if it was known.
    pub image: Option<S>,
    /// The rollout that stamped the Pod, if one did.
    pub rollout: Option<S>,
}

impl<S: AsRef<str>> Applied<S> {
    /// The entry as it is written.
    pub fn text(&self) -> String {
        let (to, from) = (self.to.as_ref(), self.from.as_ref().map(S::as_ref));
        let mut text = String::with_capacity(ROOM);
        let mut push = |parts: &[&str]| parts.iter().for_each(|part| text.push_str(part));
        push(&[self.container.as_ref(), ": "]);
        if from != Some(to) {
            push(&[from.unwrap_or(NO_TAG), " -> "]);
        }
        push(&[to]);
        match (self.image.as_ref().map(S::as_ref), self.rollout.as_ref().map(S::as_ref)) {
            (Some(image), Some(rollout)) => push(&[" (Image ", image, ", rollout ", rollout, ")"]),
            (Some(image), None) => push(&[" (Image ", image, ")"]),
            (None, Some(rollout)) => push(&[" (rollout ", rollout, ")"]),
            (None, None) => {}
        }
        text
    }
}

impl<S: AsRef<str>> fmt::Display for Applied<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())
    }
}

impl Applied {
    /// Reads the entries of a Pod, at most 1000. Entries that nobody of ours wrote are left out.
    pub fn of(annotations: &Map) -> Vec<Self> {
        let Some(value) = annotations.get(APPLIED) else {
            return Vec::new();
        };
        value.split(SEPARATOR).filter_map(Self::parse).take(MAX_ENTRIES).collect()
    }

    /// The value of the annotation with these entries, as [`text`](Self::text) writes them.
    pub fn join<'a>(entries: impl Iterator<Item = &'a str>) -> String {
        let mut value = String::new();
        for entry in entries {
            if !value.is_empty() {
                value.push_str(SEPARATOR);
            }
            value.push_str(entry);
        }
        value
    }

    fn parse(entry: &str) -> Option<Self> {
        let (container, rest) = entry.split_once(": ")?;
        let (tags, note) = match rest.rsplit_once(" (") {
            Some((tags, note)) if note.ends_with(')') && note != "no tag)" => (tags, note.trim_end_matches(')')),
            _ => (rest, ""),
        };
        let (from, to) = match tags.split_once(" -> ") {
            Some((from, to)) => ((from != NO_TAG).then(|| from.to_owned()), to),
            None => (Some(tags.to_owned()), tags),
        };
        if to.is_empty() || to.contains(' ') {
            return None;
        }
        let field = |name: &str| note.split(", ").find_map(|part| part.strip_prefix(name)).map(str::to_owned);
        Some(Self {
            container: container.to_owned(),
            from,
            to: to.to_owned(),
            image: field("Image "),
            rollout: field("rollout "),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_read_back() {
        type Entry<'a> = (&'a str, Option<&'a str>, &'a str, Option<&'a str>, Option<&'a str>);
        fn check(value: &str, expected: &[Entry]) {
            let map = Map::from([(APPLIED.to_owned(), value.to_owned())]);
            let entries = Applied::of(&map);
            let found: Vec<_> = entries
                .iter()
                .map(|a| {
                    (a.container.as_str(), a.from.as_deref(), a.to.as_str(), a.image.as_deref(), a.rollout.as_deref())
                })
                .collect();
            assert_eq!(found, expected, "{value:?}");
            if !expected.is_empty() {
                let texts: Vec<String> = entries.iter().map(Applied::text).collect();
                assert_eq!(Applied::join(texts.iter().map(String::as_str)), value);
            }
        }
        check(
            "app: 1.0.0 -> 1.4.2 (Image web, rollout ab12)",
            &[("app", Some("1.0.0"), "1.4.2", Some("web"), Some("ab12"))],
        );
        check("app: 1.4.2 (Image web)", &[("app", Some("1.4.2"), "1.4.2", Some("web"), None)]);
        check("app: 1.0.0 -> 1.4.2 (rollout ab12)", &[("app", Some("1.0.0"), "1.4.2", None, Some("ab12"))]);
        check("app: (no tag) -> 1.4.2 (Image web)", &[("app", None, "1.4.2", Some("web"), None)]);
        check("app: (no tag) -> 1.4.2", &[("app", None, "1.4.2", None, None)]);
        check(
            "a: 1 -> 2 (Image x); b: 3 (Image y)",
            &[("a", Some("1"), "2", Some("x"), None), ("b", Some("3"), "3", Some("y"), None)],
        );
        check("", &[]);
        check("nonsense", &[]);
        check("app: ", &[]);
        check("app: one two three", &[]);
    }
}
