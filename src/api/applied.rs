//! The `applied` annotation: what admission did to a Pod, in words that a person reads and sync reads back.

use std::fmt::{self, Write as _};

use super::annotations::{APPLIED, Map};

/// Stands for the own tag of a text without one. Parentheses are not legal in a tag.
const NO_TAG: &str = "(no tag)";

/// Most entries that are read of a Pod: more containers than admission answers for.
const MAX_ENTRIES: usize = 1000;

/// One container's entry: `app: 1.0.0 -> 1.4.2 (Image web, rollout ab12)`, or `app: 1.4.2 (Image web)` if admission left
/// the tag as it was. Entries are separated by `"; "`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Name of the container.
    pub container: String,
    /// The own tag of the container's text; none if it had no tag.
    pub from: Option<String>,
    /// The tag the container runs.
    pub to: String,
    /// Name of the Image that decided, if it was known.
    pub image: Option<String>,
    /// The rollout that stamped the Pod, if one did.
    pub rollout: Option<String>,
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = self.from.as_deref().unwrap_or(NO_TAG);
        write!(f, "{}: ", self.container)?;
        if self.from.as_deref() != Some(&self.to) {
            write!(f, "{from} -> ")?;
        }
        write!(f, "{}", self.to)?;
        match (&self.image, &self.rollout) {
            (Some(image), Some(rollout)) => write!(f, " (Image {image}, rollout {rollout})"),
            (Some(image), None) => write!(f, " (Image {image})"),
            (None, Some(rollout)) => write!(f, " (rollout {rollout})"),
            (None, None) => Ok(()),
        }
    }
}

impl Applied {
    /// Reads the entries of a Pod, at most 1000. Entries that nobody of ours wrote are left out.
    pub fn of(annotations: &Map) -> Vec<Self> {
        let Some(value) = annotations.get(APPLIED) else {
            return Vec::new();
        };
        value.split("; ").filter_map(Self::parse).take(MAX_ENTRIES).collect()
    }

    /// The value of the annotation.
    pub fn join(entries: &[Self]) -> String {
        let mut text = String::new();
        for entry in entries {
            let separator = if text.is_empty() { "" } else { "; " };
            let _ = write!(text, "{separator}{entry}"); // writing to a String cannot fail
        }
        text
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
                assert_eq!(Applied::join(&entries), value);
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
