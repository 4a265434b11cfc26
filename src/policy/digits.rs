//! Numbers of any length, kept as their digits: a tag may carry more of them than any integer type holds.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

/// A non-negative integer of any length.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Number {
    /// At most [`SMALL_DIGITS`] digits.
    Small(u64),
    Big(Big),
}

/// The digits of a number of more than [`SMALL_DIGITS`], without leading zeros.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Big(Box<str>);

/// So many digits always fit.
const SMALL_DIGITS: usize = 19;

impl Number {
    pub(super) const ZERO: Self = Self::Small(0);

    /// `None` unless `text` is one or more ASCII digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut number: u64 = 0;
        for byte in text.bytes() {
            if !byte.is_ascii_digit() {
                return None;
            }
            // Wraps only for what is read again below.
            number = number.wrapping_mul(10).wrapping_add(u64::from(byte - b'0'));
        }
        if text.len() > SMALL_DIGITS {
            let significant = text.trim_start_matches('0');
            if significant.len() > SMALL_DIGITS {
                return Some(Self::Big(Big(significant.into())));
            }
        }
        (!text.is_empty()).then_some(Self::Small(number))
    }

    pub(super) fn is_zero(&self) -> bool {
        *self == Self::ZERO
    }

    /// The number plus one.
    pub(super) fn next(&self) -> Self {
        let digits = match self {
            Self::Small(number) => (u128::from(*number) + 1).to_string(),
            Self::Big(Big(digits)) => increment(digits),
        };
        Self::parse(&digits).unwrap_or(Self::ZERO)
    }
}

fn increment(digits: &str) -> String {
    let kept = digits.trim_end_matches('9');
    let nines = digits.len() - kept.len();
    let mut out = String::with_capacity(digits.len() + 1);
    match kept.as_bytes().split_last() {
        Some((last, head)) => {
            out.extend(head.iter().map(|&byte| char::from(byte)));
            out.push(char::from(last + 1));
        }
        None => out.push('1'),
    }
    out.extend(std::iter::repeat_n('0', nines));
    out
}

impl Ord for Big {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0.len(), &self.0).cmp(&(other.0.len(), &other.0))
    }
}

impl PartialOrd for Big {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Small(number) => number.fmt(f),
            Self::Big(Big(digits)) => f.write_str(digits),
        }
    }
}

/// The maximal runs of ASCII digits in `text`, as byte ranges.
pub(super) fn digit_runs(text: &str) -> impl Iterator<Item = Range<usize>> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        let begin = at + bytes.get(at..)?.iter().position(u8::is_ascii_digit)?;
        at = bytes[begin..].iter().position(|byte| !byte.is_ascii_digit()).map_or(bytes.len(), |run| begin + run);
        Some(begin..at)
    })
}

/// Natural order: runs of digits compare as numbers of any length, everything else as bytes. `1.01` equals `1.1`.
pub(super) fn natural_cmp(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(&first), Some(&second)) = (a.first(), b.first()) else {
            return a.len().cmp(&b.len());
        };
        if first.is_ascii_digit() && second.is_ascii_digit() {
            let (left, right) = (take_run(&mut a), take_run(&mut b));
            match (left.len(), left).cmp(&(right.len(), right)) {
                Ordering::Equal => {}
                unequal => return unequal,
            }
        } else if first == second {
            (a, b) = (&a[1..], &b[1..]);
        } else {
            return first.cmp(&second);
        }
    }
}

/// A number whose order never contradicts [`natural_cmp`]: what has a lower key is lower. Of equal keys it says nothing.
///
/// The beginning of the text, in bytes from the top: a run of digits as how many it has without leading zeros, then
/// these; so a longer number has the higher key. The rest as it is.
pub(super) fn natural_key(text: &str) -> u128 {
    const BYTES: usize = size_of::<u128>();
    /// From here on the count has a byte of its own.
    const MANY: u8 = 9;
    let mut key = [0; BYTES];
    let mut at = 0;
    let mut push = |byte: u8| {
        if let Some(place) = key.get_mut(at) {
            *place = byte;
        }
        at += 1;
        at < BYTES
    };
    let mut rest = text.as_bytes();
    while let Some(&first) = rest.first() {
        let more = if first.is_ascii_digit() {
            let run = take_run(&mut rest);
            // Among the digits, as where a number meets something else the bytes decide. Behind a count that does not
            // fit, nothing is told.
            let count = u8::try_from(run.len()).unwrap_or(u8::MAX);
            let counted = push(b'0' + count.min(MANY)) && (count < MANY || push(count));
            counted && count < u8::MAX && run.iter().all(|&digit| push(digit))
        } else {
            rest = &rest[1..];
            push(first)
        };
        if !more {
            break;
        }
    }
    u128::from_be_bytes(key)
}

/// Takes the leading run of digits and returns it without its leading zeros (nothing, for zero).
fn take_run<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let end = bytes.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(bytes.len());
    let (run, rest) = bytes.split_at(end);
    *bytes = rest;
    let zeros = run.iter().take_while(|&&byte| byte == b'0').count();
    &run[zeros..]
}

/// Whether a run of digits in `text` is written with a leading zero, as in `2024.01`.
pub(super) fn has_leading_zero(text: &str) -> bool {
    digit_runs(text).any(|run| run.len() > 1 && text[run].starts_with('0'))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn numbers_of_any_length_count_up() {
        let check = |text: &str, next: &str| {
            assert_eq!(Number::parse(text).unwrap().next().to_string(), next, "{text}");
        };
        check("0", "1");
        check("000", "1");
        check("009", "10");
        check("1", "2");
        check("19", "20");
        check("99", "100");
        check("18446744073709551615", "18446744073709551616");
        check("99999999999999999999999999999999", "100000000000000000000000000000000");
        check("9999999999999999999", "10000000000000000000");
        check("09999999999999999999", "10000000000000000000");
        check("000000000000000000000000000000000041", "42");
        let number = |text| Number::parse(text).unwrap();
        assert!(number("9999999999999999999") < number("10000000000000000000"));
        assert!(number("10000000000000000001") < number("100000000000000000000"));
        assert_eq!(number("00000000000000000000000000000"), Number::ZERO);
        for bad in ["", "1a", "99999999999999999999x", "-1", "١"] {
            assert_eq!(Number::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn natural_order() {
        let check = |a: &str, expected: Ordering, b: &str| {
            assert_eq!(natural_cmp(a, b), expected, "{a} {b}");
            assert_eq!(natural_cmp(b, a), expected.reverse(), "{b} {a}");
        };
        check("1.9", Ordering::Less, "1.10");
        check("1.01", Ordering::Equal, "1.1");
        check("build-9", Ordering::Less, "build-10");
        check("build", Ordering::Less, "build-1");
        check("a", Ordering::Greater, "1");
        check("-", Ordering::Less, "1");
        check("v2", Ordering::Greater, "v1.99");
        check("20240101000000000000000000000001", Ordering::Less, "20240101000000000000000000000002");
        check("0", Ordering::Equal, "00");
        check("A", Ordering::Less, "a");
        check("", Ordering::Less, "0");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 10_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn keys_never_contradict_the_natural_order(a in "[a0-2.:\\x00é]{0,24}", b in "[a0-2.:\\x00é]{0,24}", kept in 0..24usize) {
            let both_begin_alike: String = a.chars().take(kept).chain(b.chars()).collect();
            for b in [&b, &both_begin_alike] {
                match natural_key(&a).cmp(&natural_key(b)) {
                    Ordering::Equal => {}
                    unequal => prop_assert_eq!(natural_cmp(&a, b), unequal, "{:?} {:?}", a, b),
                }
            }
        }
    }

    #[test]
    fn natural_keys() {
        let check = |a: &str, expected: Ordering, b: &str| {
            assert_eq!(natural_key(a).cmp(&natural_key(b)), expected, "{a} {b}");
        };
        check("1.9.0", Ordering::Less, "1.10.0");
        check("m-1700000000", Ordering::Less, "m-1700000001");
        check("999999999", Ordering::Less, "1000000000");
        check("1.01", Ordering::Equal, "1.1");
        check("the-beginning-only-1", Ordering::Equal, "the-beginning-only-2");
        check(&"9".repeat(256), Ordering::Equal, &"1".repeat(300));
        check(&"9".repeat(254), Ordering::Less, &"1".repeat(300));
    }

    #[test]
    fn runs_of_digits() {
        let check = |text: &str, expected: &[&str]| {
            assert_eq!(digit_runs(text).map(|run| &text[run]).collect::<Vec<_>>(), expected, "{text}");
        };
        check("", &[]);
        check("abc", &[]);
        check("12", &["12"]);
        check("a1b22.333", &["1", "22", "333"]);
        check("é1", &["1"]);
    }

    #[test]
    fn leading_zeros() {
        for (text, expected) in [("1.02.3", true), ("2024.01", true), ("1.0.0", false), ("", false), ("10", false)] {
            assert_eq!(has_leading_zero(text), expected, "{text}");
        }
    }
}
