//! One look at the beginning of a tag: enough to pass over most tags of a long list. Where it cannot tell, or the tag
//! may win, the tag is read in full; so this may be quick, but only [`Version`](super::version::Version) decides.

use super::digits::Number;
use super::version::Core;

/// Major, minor and patch.
pub(super) type Numbers = [u64; 3];

/// What the beginning of a tag tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Glance {
    /// The tag as a whole is no semantic version to choose.
    NoVersion,
    /// If the tag as a whole is a version, it is one of these numbers.
    Version(Numbers),
    /// Its numbers are too long.
    Unknown,
}

/// Where the numbers of a winner lie.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// What a winner has at least.
    pub(super) least: Numbers,
    /// What a winner has at most.
    pub(super) most: Numbers,
}

impl Window {
    pub(super) fn contains(&self, numbers: &Numbers) -> bool {
        (self.least..=self.most).contains(numbers)
    }

    /// No winner is below `core`.
    pub(super) fn raise(&mut self, core: &Core) {
        if let Some(numbers) = numbers(core) {
            self.least = self.least.max(numbers);
        }
    }

    /// No winner is above `core`.
    pub(super) fn lower(&mut self, core: &Core) {
        if let Some(numbers) = numbers(core) {
            self.most = self.most.min(numbers);
        }
    }
}

impl Default for Window {
    /// Anything may win.
    fn default() -> Self {
        Self { least: [0; 3], most: [u64::MAX; 3] }
    }
}

/// `None` if one of them is too long.
pub(super) fn numbers([major, minor, patch]: &Core) -> Option<Numbers> {
    match (major, minor, patch) {
        (&Number::Small(major), &Number::Small(minor), &Number::Small(patch)) => Some([major, minor, patch]),
        _ => None,
    }
}

/// Costs one pass over the numbers.
pub(super) fn glance(tag: &str) -> Glance {
    /// So many digits always fit.
    const DIGITS: usize = 19;
    let bytes = tag.as_bytes();
    let mut at = usize::from(bytes.first() == Some(&b'v'));
    let mut numbers = [0; 3];
    for (part, number) in numbers.iter_mut().enumerate() {
        if part > 0 {
            if bytes.get(at) != Some(&b'.') {
                return Glance::NoVersion;
            }
            at += 1;
        }
        let begin = at;
        while let Some(digit) = bytes.get(at).map(|byte| byte.wrapping_sub(b'0')).filter(|digit| *digit < 10) {
            // Wraps only for what is not used below.
            *number = u64::wrapping_add(u64::wrapping_mul(*number, 10), u64::from(digit));
            at += 1;
        }
        match at - begin {
            0 => return Glance::NoVersion,
            1..=DIGITS => {}
            _ => return Glance::Unknown,
        }
    }
    match bytes.get(at) {
        None | Some(b'-') => Glance::Version(numbers),
        Some(_) => Glance::NoVersion,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::version::{Grammar, Reading, Version};
    use super::*;

    #[test]
    fn beginnings() {
        let check = |tag: &str, expected: Glance| assert_eq!(glance(tag), expected, "{tag}");
        check("1.2.3", Glance::Version([1, 2, 3]));
        check("v1.2.3", Glance::Version([1, 2, 3]));
        check("01.020.0", Glance::Version([1, 20, 0]));
        check("1.2.3-rc.1", Glance::Version([1, 2, 3]));
        check("1.2.3-", Glance::Version([1, 2, 3]));
        check("9999999999999999999.0.0", Glance::Version([9_999_999_999_999_999_999, 0, 0]));
        check("00000000000000000001.0.0", Glance::Unknown);
        for none in
            ["", "v", "vv1.2.3", "V1.2.3", "1", "1.", "1.2", "1.2.", "1.2.3.4", "1.2.3rc1", "1..2", "-1.2.3", "a"]
        {
            check(none, Glance::NoVersion);
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_glance_never_contradicts_a_reading(tag in r"[vV]?[0-9]{1,2}(\.[0-9]{0,21}){1,3}([-_.a+][a-z0-9.-]{0,6})?") {
            let read = Version::parse(&tag, Grammar::Semver, Reading::Candidate);
            match (glance(&tag), read) {
                (Glance::NoVersion, read) => prop_assert_eq!(read, None),
                (Glance::Version(glanced), Some(read)) => prop_assert_eq!(Some(glanced), numbers(&read.core)),
                (Glance::Version(_), None) | (Glance::Unknown, _) => {}
            }
        }
    }
}
