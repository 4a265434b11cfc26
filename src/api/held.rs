//! What a hold says of Pods whose template carries no stamp that counts.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::order::Order;
use super::status::{Held, HeldBy};
use super::tagged::Tagged;

impl Held {
    /// Whether it is one of a container of one of these workloads (kind and name).
    pub fn is_of(&self, owners: &[(&'static str, String)], container: &str) -> bool {
        let is = |(kind, name): &(&'static str, String)| self.workload.split_once('/') == Some((kind, name));
        self.container == container && owners.iter().any(is)
    }

    /// Whether its tag is one of these, which its Image has rejected (as text of [`Tagged`]), so that Pods without a stamp are
    /// not given it. The annotation names its tag on purpose, and counts all the same.
    pub fn is_rejected(&self, rejected: &BTreeSet<String>) -> bool {
        self.by.is_behind() && Tagged::parse(&self.tag).is_some_and(|tag| tag.is_in(rejected))
    }

    /// What the container runs without a stamp while this holds, and what holds it then; none if it follows its Image as
    /// any other. `own` is the tag of its text, `order` that of its Image.
    ///
    /// A person's rollback is that also after another change of the template. A newer text than its tag is a newer word:
    /// older than what was left, it is what it is held at from now on; else it ends the hold. So does one of another variant
    /// where the Image was made for that text alone: nothing but the text says what it runs then. A pause holds no Pods of a new
    /// revision: there are none until it is over. And who takes stamps away decides what comes instead.
    pub fn runs(&self, order: &Order, own: Option<&str>) -> Option<(Tagged, HeldBy)> {
        let tag = Tagged::parse(&self.tag).filter(|_| self.holds())?;
        let own = own.unwrap_or_default();
        match self.by {
            HeldBy::Annotation => Some((tag, self.by)),
            by if by.is_behind() && order.stays_alone(own, &tag.tag) => None,
            by if by.is_behind() && order.compare(own, &tag.tag) != Some(Ordering::Greater) => Some((tag, by)),
            HeldBy::Undo | HeldBy::Manifest | HeldBy::RolloutFailed => {
                let left = Tagged::parse(&self.left)?;
                let is_behind = order.compare(own, &left.tag) == Some(Ordering::Less);
                is_behind.then(|| (Tagged::new(own, None), HeldBy::Manifest))
            }
            HeldBy::Paused | HeldBy::Fight => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::ImageSpec;
    use serde_json::json;

    #[test]
    fn what_a_held_container_runs_without_a_stamp() {
        #[track_caller]
        fn check(by: HeldBy, (tag, left): (&str, &str), own: Option<&str>, expected: Option<(&str, HeldBy)>) {
            let spec = json!({"image": "app", "triggers": [],
                "rules": [{"name": "r", "type": "semver-minor", "actions": [{"type": "apply"}]}]});
            let order = Order::of(&serde_json::from_value::<ImageSpec>(spec).unwrap());
            let mut held = Held { tag: tag.to_owned(), left: left.to_owned(), by, ..Held::default() };
            let found = held.runs(&order, own).map(|(tagged, by)| (tagged.to_string(), by));
            assert_eq!(found, expected.map(|(tag, by)| (tag.to_owned(), by)), "{held:?} {own:?}");
            held.released = Some("then".to_owned());
            assert_eq!(held.runs(&order, own), None, "released: {held:?} {own:?}");
        }
        use HeldBy::{Annotation, Fight, Manifest, Paused, RolloutFailed, Undo};
        let at = ("1.1.0", "1.2.0");
        for by in [Undo, Manifest, RolloutFailed] {
            for own in [Some("1.0.0"), Some("1.1.0"), Some("latest"), None] {
                check(by, at, own, Some(("1.1.0", by)));
            }
            // A newer text: older than what was left, or not.
            check(by, at, Some("1.1.5"), Some(("1.1.5", Manifest)));
            check(by, at, Some("1.2.0"), None);
            check(by, at, Some("1.3.0"), None);
            check(by, ("1.1.0", ""), Some("1.1.5"), None);
        }
        let digest = format!("sha256:{}", "a".repeat(64));
        let (tag, left) = (format!("1.1.0@{digest}"), format!("1.1.0@sha256:{}", "b".repeat(64)));
        check(Undo, (&tag, &left), Some("1.0.0"), Some((&tag, Undo)));
        check(Undo, ("no tag", "1.2.0"), Some("1.0.0"), None);
        // Whatever the text.
        for own in [Some("1.0.0"), Some("3.0.0"), None] {
            check(Annotation, ("1.1.0", ""), own, Some(("1.1.0", Annotation)));
            check(Paused, ("1.1.0", ""), own, None);
            check(Fight, ("1.1.0", ""), own, None);
        }
    }

    #[test]
    fn a_text_of_another_variant_ends_it_where_it_is_the_only_one() {
        #[track_caller]
        fn check(by: HeldBy, own: &str, shared: Option<&str>, alone: Option<&str>) {
            let spec = json!({"image": "app", "triggers": [],
                "rules": [{"name": "r", "type": "semver-minor", "actions": [{"type": "apply"}]}]});
            let order = Order::of(&serde_json::from_value::<ImageSpec>(spec).unwrap());
            let (tag, left) = ("1.1.0-bookworm".to_owned(), "1.2.0-bookworm".to_owned());
            let held = Held { tag, left, by, ..Held::default() };
            let found = |order: &Order| held.runs(order, Some(own)).map(|(tagged, _)| tagged.to_string());
            assert_eq!(found(&order).as_deref(), shared, "{by:?} {own}");
            assert_eq!(found(&order.of_one_text(true)).as_deref(), alone, "{by:?} {own}");
        }
        let at = Some("1.1.0-bookworm");
        for by in [HeldBy::Undo, HeldBy::Manifest] {
            check(by, "1.2.0-alpine", at, None);
            check(by, "1.0.0-alpine", at, None);
            check(by, "1.2.0", at, None);
            check(by, "1.0.0-bookworm", at, at);
            check(by, "1.1.5-bookworm", Some("1.1.5-bookworm"), Some("1.1.5-bookworm"));
            // Nothing that the rules can read.
            check(by, "latest", at, at);
        }
        check(HeldBy::Annotation, "1.2.0-alpine", at, at);
    }

    #[test]
    fn a_rejected_tag_is_given_to_who_names_it_only() {
        #[track_caller]
        fn check(by: HeldBy, tag: &str, rejected: &str, expected: bool) {
            let held = Held { tag: tag.to_owned(), by, ..Held::default() };
            assert_eq!(held.is_rejected(&BTreeSet::from([rejected.to_owned()])), expected, "{by:?} {tag} {rejected}");
        }
        let digest = format!("1.1.0@sha256:{}", "a".repeat(64));
        for by in [HeldBy::Undo, HeldBy::Manifest, HeldBy::RolloutFailed] {
            check(by, "1.1.0", "1.1.0", true);
            check(by, "1.1.0", "1.1.1", false);
            check(by, &digest, "1.1.0", true);
            check(by, &digest, &digest, true);
            check(by, "1.1.0", &digest, false);
        }
        check(HeldBy::Annotation, "1.1.0", "1.1.0", false);
    }
}
