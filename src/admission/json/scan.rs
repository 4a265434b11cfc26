//! Finds where a JSON value ends without reading it: 64 bytes at a time, as masks with a bit for each byte. Nothing but
//! strings and brackets is looked at, so that a few operations tell of a block inside a large object that it does not end
//! there. No recursion, and nothing is kept but a depth: what is nested costs no more than what is not.

/// What 64 bytes are, a bit for each: the lowest for the first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Masks {
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
        let found = chosen::specials(sixteen);
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
fn escaped_string_end(bytes: &[u8], from: usize) -> Option<usize> {
    let (mut at, mut escapes) = (from, Escapes::default());
    loop {
        let masks = masks(bytes, at)?;
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
    let (mut at, mut depth, mut escapes, mut in_string) = (from, 1, Escapes::default(), 0);
    loop {
        let masks = masks(bytes, at)?;
        let quotes = masks.quotes & !escapes.escaped(masks.backslashes);
        let strings = prefix_xor(quotes) ^ in_string;
        in_string = if strings >> 63 == 0 { 0 } else { !0 };
        let (opens, closes) = (masks.opens & !strings, masks.closes & !strings);
        let ended = ones(closes);
        if ended < depth {
            depth = depth + ones(opens) - ended;
        } else if let Some(end) = end_within(opens, closes, &mut depth) {
            return Some(at + end);
        }
        at += 64;
    }
}

/// How many bits are set: a few mostly. The oldest processors that a binary for x86-64 is for cannot count them in one step, so
/// that `count_ones` would take a dozen.
#[inline]
fn ones(mut bits: u64) -> usize {
    let mut ones = 0;
    while bits != 0 {
        bits &= bits - 1;
        ones += 1;
    }
    ones
}

/// Where in a block the depth becomes 0, if it does: the place after the closing bracket.
#[inline]
fn end_within(opens: u64, closes: u64, depth: &mut usize) -> Option<usize> {
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
#[inline]
fn masks(bytes: &[u8], at: usize) -> Option<Masks> {
    let rest = bytes.get(at..)?;
    match rest.first_chunk() {
        Some(block) => Some(chosen::masks(block)),
        None => last_masks(rest),
    }
}

#[cold]
fn last_masks(rest: &[u8]) -> Option<Masks> {
    let mut block = [b' '; 64];
    block.get_mut(..rest.len()).filter(|rest| !rest.is_empty())?.copy_from_slice(rest);
    Some(chosen::masks(&block))
}

/// Each bit becomes the parity of itself and those below: with the quotes, what is inside of strings, the opening quote
/// included.
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

#[cfg(target_arch = "x86_64")]
use sse2 as chosen;
#[cfg(not(target_arch = "x86_64"))]
use words as chosen;

/// With the vectors that every x86-64 has.
#[cfg(target_arch = "x86_64")]
mod sse2 {
    use safe_arch::{
        bitor_m128i, cmp_eq_mask_i8_m128i, load_unaligned_m128i, m128i, min_u8_m128i, move_mask_i8_m128i,
        set_splat_i8_m128i,
    };

    use super::Masks;

    #[inline]
    pub fn masks(block: &[u8; 64]) -> Masks {
        let (quarters, _) = block.as_chunks();
        let mut masks = Masks::default();
        for quarter in quarters.iter().rev() {
            let bytes = load_unaligned_m128i(quarter);
            // `[` and `]` become `{` and `}`, and nothing else does but what is written so.
            let lower = bitor_m128i(bytes, set_splat_i8_m128i(0x20));
            masks.quotes = masks.quotes << 16 | u64::from(equal(bytes, b'"'));
            masks.backslashes = masks.backslashes << 16 | u64::from(equal(bytes, b'\\'));
            masks.opens = masks.opens << 16 | u64::from(equal(lower, b'{'));
            masks.closes = masks.closes << 16 | u64::from(equal(lower, b'}'));
        }
        masks
    }

    #[inline]
    pub fn specials(bytes: &[u8; 16]) -> u16 {
        let bytes = load_unaligned_m128i(bytes);
        let quotes = cmp_eq_mask_i8_m128i(bytes, set_splat_i8_m128i(b'"'.cast_signed()));
        let backslashes = cmp_eq_mask_i8_m128i(bytes, set_splat_i8_m128i(b'\\'.cast_signed()));
        let controls = cmp_eq_mask_i8_m128i(min_u8_m128i(bytes, set_splat_i8_m128i(0x1f)), bytes);
        mask(bitor_m128i(bitor_m128i(quotes, backslashes), controls))
    }

    #[inline]
    fn equal(bytes: m128i, wanted: u8) -> u16 {
        mask(cmp_eq_mask_i8_m128i(bytes, set_splat_i8_m128i(wanted.cast_signed())))
    }

    #[inline]
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 16 bits
    fn mask(bytes: m128i) -> u16 {
        move_mask_i8_m128i(bytes) as u16
    }
}

/// With words of 64 bits, where there are no vectors that every processor of the kind has.
#[cfg(any(test, not(target_arch = "x86_64")))]
mod words {
    use super::Masks;

    const ONES: u64 = u64::MAX / 0xff;
    const LOW_BITS: u64 = ONES * 0x7f;

    #[inline]
    pub fn masks(block: &[u8; 64]) -> Masks {
        let (eighths, _) = block.as_chunks();
        let mut masks = Masks::default();
        for eighth in eighths.iter().rev() {
            let bytes = u64::from_le_bytes(*eighth);
            let lower = bytes | (ONES * 0x20);
            masks.quotes = masks.quotes << 8 | equal(bytes, b'"');
            masks.backslashes = masks.backslashes << 8 | equal(bytes, b'\\');
            masks.opens = masks.opens << 8 | equal(lower, b'{');
            masks.closes = masks.closes << 8 | equal(lower, b'}');
        }
        masks
    }

    #[inline]
    pub fn specials(bytes: &[u8; 16]) -> u16 {
        let (halves, _) = bytes.as_chunks();
        let found = halves.iter().rev().fold(0, |found, half| {
            let bytes = u64::from_le_bytes(*half);
            // Controls have none of the upper three bits.
            let upper = (bytes >> 5 | bytes >> 6 | bytes >> 7) & ONES;
            found << 8 | equal(bytes, b'"') | equal(bytes, b'\\') | gather(upper ^ ONES)
        });
        #[allow(clippy::cast_possible_truncation)] // 16 bits
        let mask = found as u16;
        mask
    }

    /// A bit for each byte, in the lowest eight.
    #[inline]
    fn equal(bytes: u64, wanted: u8) -> u64 {
        let differs = bytes ^ (ONES * u64::from(wanted));
        // The top bit of each byte that is zero; without carries from one to the next.
        gather(!(((differs & LOW_BITS) + LOW_BITS) | differs | LOW_BITS) >> 7)
    }

    /// The lowest bits of the bytes, of which each is moved to another place in the top byte.
    #[inline]
    fn gather(bits: u64) -> u64 {
        bits.wrapping_mul(0x0102_0408_1020_4080) >> 56
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

    #[test]
    fn every_byte_is_told_apart_in_every_place() {
        for byte in 0..=u8::MAX {
            for other in [b' ', b'"', 0x1f, 0x80, byte ^ 0x80, byte ^ 0x20, byte.wrapping_sub(1)] {
                for at in 0..64 {
                    let mut block = [other; 64];
                    block[at] = byte;
                    let expected = plain(&block);
                    assert_eq!(chosen::masks(&block), expected, "{byte} among {other}");
                    assert_eq!(words::masks(&block), expected, "{byte} among {other}");
                    let first = block.first_chunk().unwrap();
                    let special = |at: usize| u16::from(block[at] < b' ' || b"\"\\".contains(&block[at])) << at;
                    let expected = (0..16).map(special).fold(0, std::ops::BitOr::bitor);
                    assert_eq!(chosen::specials(first), expected, "{byte} among {other}");
                    assert_eq!(words::specials(first), expected, "{byte} among {other}");
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
