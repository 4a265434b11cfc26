//! Numbers of any length, kept as their digits: a tag may carry more of them than any integer type holds.

use std::cmp::Ordering;
use std::fmt;

/// A non-negative integer: decimal digits without leading zeros, `0` for zero.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Number(Box<str>);

impl Number {
    /// `None` unless `text` is one or more ASCII digits.
    pub(super) fn parse(text: &str) -> Option<Self> {
        if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return None;
        }
        let significant = text.trim_start_matches('0');
        Some(Self(if significant.is_empty() { "0" } else { significant }.into()))
    }

    pub(super) fn zero() -> Self {
        Self("0".into())
    }

    pub(super) fn is_zero(&self) -> bool {
        &*self.0 == "0"
    }

    /// The number plus one.
    pub(super) fn next(&self) -> Self {
        let kept = self.0.trim_end_matches('9');
        let nines = self.0.len() - kept.len();
        let mut digits = String::with_capacity(self.0.len() + 1);
        match kept.as_bytes().split_last() {
            Some((last, head)) => {
                digits.extend(head.iter().map(|&byte| char::from(byte)));
                digits.push(char::from(last + 1));
            }
            None => digits.push('1'),
        }
        digits.extend(std::iter::repeat_n('0', nines));
        Self(digits.into())
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.0.len(), &self.0).cmp(&(other.0.len(), &other.0))
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
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
    text.split(|c: char| !c.is_ascii_digit()).any(|run| run.len() > 1 && run.starts_with('0'))
}

#[cfg(test)]
mod tests {
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
        for bad in ["", "1a", "-1", "١"] {
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

    #[test]
    fn leading_zeros() {
        for (text, expected) in [("1.02.3", true), ("2024.01", true), ("1.0.0", false), ("", false), ("10", false)] {
            assert_eq!(has_leading_zero(text), expected, "{text}");
        }
    }
}
