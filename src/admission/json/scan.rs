//! Finds where a JSON value ends without reading it: 64 bytes at a time, as masks with a bit for each byte. Nothing but
//! strings and brackets is looked at, so that a few operations tell of a block inside a large object that it does not end
//! there. No recursion, and nothing is kept but a depth: what is nested costs no more than what is not.
//!
//! Large values are passed over with the widest vectors that the processor has, which is asked once; short strings with those
//! that every processor of its kind has, as calling what is compiled for others would cost more than it saves.
#![allow(clippy::inline_always)] // vectors are only used as such in functions that are compiled for them

use fearless_simd::prelude::*;
use fearless_simd::{Level, dispatch, u8x16, u8x64};

/// What 64 bytes are, a bit for each: the lowest for the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Masks {
    quotes: u64,
    backslashes: u64,
    /// `{` and `[`.
    opens: u64,
    /// `}` and `]`.
    closes: u64,
}

/// Where the string ends whose text begins at `from`, and whether it holds escapes: the index of its closing quote. None
/// if it does not end, or holds what must be escaped before its first escape.
#[inline]
pub(super) fn string_end(bytes: &[u8], from: usize) -> Option<(usize, bool)> {
    let mut at = from;
    while let Some(sixteen) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
        let found = dispatch!(Level::baseline(), simd => specials(simd, sixteen));
        if found != 0 {
            at += found.trailing_zeros() as usize;
            break;
        }
        at += 16;
    }
    loop {
        match bytes.get(at)? {
            b'"' => return Some((at, false)),
            b'\\' => return escaped_string_end(bytes, at).map(|end| (end, true)),
            ..b' ' => return None,
            _ => at += 1,
        }
    }
}

/// The same from the first escape on.
#[inline(never)] // few strings have one: the others need no room for this
fn escaped_string_end(bytes: &[u8], from: usize) -> Option<usize> {
    dispatch!(Level::new(), simd => escaped_string_end_with(simd, bytes, from))
}

#[inline(always)]
fn escaped_string_end_with<S: Simd>(simd: S, bytes: &[u8], from: usize) -> Option<usize> {
    let (mut at, mut escapes) = (from, Escapes::default());
    loop {
        let masks = masks_at(simd, bytes, at)?;
        let quotes = masks.quotes & !escapes.escaped(masks.backslashes);
        if quotes != 0 {
            return Some(at + quotes.trailing_zeros() as usize);
        }
        at += 64;
    }
}

/// The index after the bracket that closes the array or object whose content begins at `from`. Which of the two kinds of
/// brackets it is does not matter. None if it is not closed.
pub(super) fn nested_end(bytes: &[u8], from: usize) -> Option<usize> {
    dispatch!(Level::new(), simd => nested_end_with(simd, bytes, from))
}

#[inline(always)]
fn nested_end_with<S: Simd>(simd: S, bytes: &[u8], from: usize) -> Option<usize> {
    let (mut at, mut depth, mut escapes, mut in_string) = (from, 1, Escapes::default(), 0);
    loop {
        let masks = masks_at(simd, bytes, at)?;
        let quotes = masks.quotes & !escapes.escaped(masks.backslashes);
        let strings = prefix_xor(quotes) ^ in_string;
        in_string = if strings >> 63 == 0 { 0 } else { !0 };
        let (opens, closes) = (masks.opens & !strings, masks.closes & !strings);
        let ended = closes.count_ones();
        if ended < depth {
            depth = depth + opens.count_ones() - ended;
        } else if let Some(end) = end_within(opens, closes, &mut depth) {
            return Some(at + end);
        }
        at += 64;
    }
}

/// Where in a block the depth becomes 0, if it does: the place after the closing bracket.
#[inline(always)]
fn end_within(opens: u64, closes: u64, depth: &mut u32) -> Option<usize> {
    let mut left = opens | closes;
    while left != 0 {
        let lowest = left & left.wrapping_neg();
        if closes & lowest == 0 {
            *depth += 1;
        } else {
            *depth -= 1;
            if *depth == 0 {
                return Some(lowest.trailing_zeros() as usize + 1);
            }
        }
        left ^= lowest;
    }
    None
}

/// The masks of the 64 bytes from `at` on, filled up with spaces at the end. None if there is nothing left.
#[inline(always)]
fn masks_at<S: Simd>(simd: S, bytes: &[u8], at: usize) -> Option<Masks> {
    let rest = bytes.get(at..)?;
    match rest.first_chunk() {
        Some(block) => Some(masks(simd, block)),
        None => last_block(rest).map(|block| masks(simd, &block)),
    }
}

#[cold]
fn last_block(rest: &[u8]) -> Option<[u8; 64]> {
    let mut block = [b' '; 64];
    block.get_mut(..rest.len()).filter(|rest| !rest.is_empty())?.copy_from_slice(rest);
    Some(block)
}

#[inline(always)]
fn masks<S: Simd>(simd: S, block: &[u8; 64]) -> Masks {
    let bytes: u8x64<S> = (*block).simd_into(simd);
    // `[` and `]` become `{` and `}`, and nothing else does but what is written so.
    let lower = bytes | 0x20;
    let equal = |bytes: u8x64<S>, wanted: u8| bytes.simd_eq(wanted).to_bitmask();
    Masks {
        quotes: equal(bytes, b'"'),
        backslashes: equal(bytes, b'\\'),
        opens: equal(lower, b'{'),
        closes: equal(lower, b'}'),
    }
}

/// Which bytes end the text of a string or must not stand in it, a bit for each.
#[inline(always)]
fn specials<S: Simd>(simd: S, bytes: &[u8; 16]) -> u64 {
    let bytes: u8x16<S> = (*bytes).simd_into(simd);
    let controls = bytes.min(0x1f).simd_eq(bytes); // without comparing by size, which the oldest processors cannot
    (bytes.simd_eq(b'"') | bytes.simd_eq(b'\\') | controls).to_bitmask()
}

/// Each bit becomes the parity of itself and those below: with the quotes, what is inside of strings, the opening quote
/// included.
#[inline(always)]
fn prefix_xor(mut bits: u64) -> u64 {
    for shift in [1, 2, 4, 8, 16, 32] {
        bits ^= bits << shift;
    }
    bits
}

/// Which bytes are escaped by a backslash, from block to block.
#[derive(Default)]
struct Escapes {
    /// 1 if the first byte of the next block is.
    first: u64,
}

impl Escapes {
    #[inline(always)]
    fn escaped(&mut self, backslashes: u64) -> u64 {
        const EVEN: u64 = 0x5555_5555_5555_5555;
        if backslashes == 0 {
            return std::mem::take(&mut self.first);
        }
        // In a run of backslashes each second one is escaped, and so is what follows a run of odd length. Adding the
        // starts of runs carries each to its end; runs that start at an odd place do so with the other parity.
        let escaping = backslashes & !self.first;
        let after = escaping << 1 | self.first;
        let odd_starts = escaping & !EVEN & !after;
        let (ends, carried) = odd_starts.overflowing_add(escaping);
        self.first = u64::from(carried);
        (EVEN ^ (ends << 1)) & after
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Byte by byte.
    fn plain(block: &[u8; 64]) -> Masks {
        let all = |wanted: &[u8]| {
            (0..64).map(|at| u64::from(wanted.contains(&block[at])) << at).fold(0, std::ops::BitOr::bitor)
        };
        Masks { quotes: all(b"\""), backslashes: all(b"\\"), opens: all(b"{["), closes: all(b"}]") }
    }

    fn plain_end(bytes: &[u8], from: usize, mut depth: usize, mut inside: bool) -> Option<usize> {
        let mut at = from;
        while at < bytes.len() {
            match bytes[at] {
                b'\\' if matches!(bytes.get(at + 1), Some(b'"' | b'\\')) => at += 1,
                b'"' => inside = !inside,
                b'{' | b'[' if !inside => depth += 1,
                b'}' | b']' if !inside => depth -= 1,
                _ => {}
            }
            at += 1;
            if depth == 0 && !inside {
                return Some(at);
            }
        }
        None
    }

    /// On each kind of vectors that this processor has.
    #[test]
    fn every_byte_is_told_apart_in_every_place() {
        let level = Level::new();
        for byte in 0..=u8::MAX {
            for other in [b' ', b'"', 0x1f, 0x80, byte ^ 0x80, byte ^ 0x20, byte.wrapping_sub(1)] {
                for at in 0..64 {
                    let mut block = [other; 64];
                    block[at] = byte;
                    let expected = plain(&block);
                    assert_eq!(dispatch!(level, simd => masks(simd, &block)), expected, "{byte} among {other}");
                    assert_eq!(
                        dispatch!(Level::baseline(), simd => masks(simd, &block)),
                        expected,
                        "{byte} among {other}"
                    );
                    let special = |at: usize| u64::from(block[at] < b' ' || b"\"\\".contains(&block[at])) << at;
                    let expected = (0..16).map(special).fold(0, std::ops::BitOr::bitor);
                    let first = block.first_chunk().unwrap();
                    let found = dispatch!(Level::baseline(), simd => specials(simd, first));
                    assert_eq!(found, expected, "{byte} among {other}");
                }
            }
        }
    }

    #[test]
    fn ends_are_found() {
        #[track_caller]
        fn check(text: &str, expected: Option<usize>) {
            assert_eq!(nested_end(text.as_bytes(), 0), expected, "{text}");
        }
        check("", None);
        check("}", Some(1));
        check("]rest", Some(1));
        check("\"}\"", None);
        check("\"}\"}", Some(4));
        check(r#""\"}"}"#, Some(6));
        check(r#""\\"}"#, Some(5));
        check("{}[]}", Some(5));
        for n in [0, 1, 30, 31, 32, 33, 62, 63, 64, 65, 1000] {
            let (deep, closed) = ("[".repeat(n), "]".repeat(n + 1));
            check(&format!("{deep}{closed}]"), Some(2 * n + 1));
            check(&format!("{deep}{}", "]".repeat(n)), None);
            let backslashes = "\\".repeat(n);
            let ends = n % 2 == 0;
            check(&format!("\"{backslashes}\"}}"), ends.then_some(n + 3));
            check(&format!("{}\"{backslashes}\"}} \"]", " ".repeat(63)), Some(63 + n + if ends { 3 } else { 6 }));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn blocks_find_what_bytes_find(text in r#"([\[{"\\x]{0,9}|[^"\\]{0,70}|[\]}\\"é]{0,9}){0,20}"#, from in 0..70_usize) {
            let bytes = text.as_bytes();
            let from = from.min(bytes.len());
            prop_assert_eq!(nested_end(bytes, from), plain_end(bytes, from, 1, false));
            let end = string_end(bytes, from);
            let control = bytes[from..].iter().take_while(|byte| !b"\"\\".contains(byte)).any(|byte| *byte < b' ');
            let expected = plain_end(bytes, from, 0, true).filter(|_| !control);
            prop_assert_eq!(end.map(|(end, _)| end + 1), expected);
            if let Some((end, escapes)) = end {
                prop_assert_eq!(escapes, bytes[from..end].contains(&b'\\'));
            }
        }
    }
}
