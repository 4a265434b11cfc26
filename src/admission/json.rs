//! Reads JSON of which most is skipped: a `serde` deserializer for texts, lists, objects and truth values that are taken,
//! and a fast way past everything else.
//!
//! It takes what is valid and common, and gives up on the rest without a word: [`from_slice`] then leaves the whole text to
//! `serde_json`, which reads it or says what is wrong and where. Of what is skipped only strings and brackets count, so that
//! some invalid values are accepted there.

mod scan;

use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, forward_to_deserialize_any};

use scan::{nested_end, string_end};

/// As [`serde_json::from_slice`], several times as fast where little of a text is taken. Reads what that reads, to the same
/// value, with the same errors; beyond that, what is skipped may hold values that are no JSON.
pub(super) fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> serde_json::Result<T> {
    quickly(bytes).or_else(|GivenUp| serde_json::from_slice(bytes))
}

fn quickly<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T, GivenUp> {
    let mut reader = Reader { bytes, at: 0, open: 0 };
    let value = T::deserialize(&mut reader)?;
    match reader.peek() {
        None => Ok(value),
        Some(_) => Err(GivenUp),
    }
}

/// Reads a text in both ways, for tests: what `serde_json` reads must be read to the same value, and its errors must stay
/// unless they are about what is skipped.
#[cfg(any(test, fuzzing))]
pub(super) fn compare<'de, T: Deserialize<'de> + fmt::Debug>(bytes: &'de [u8]) {
    let debug = |read: serde_json::Result<T>| read.map(|value| format!("{value:?}")).map_err(|error| error.to_string());
    let (ours, theirs) = (debug(from_slice(bytes)), debug(serde_json::from_slice(bytes)));
    let left = quickly::<T>(bytes).is_err();
    if left || theirs.is_ok() {
        assert_eq!(ours, theirs, "{}", String::from_utf8_lossy(bytes));
    }
}

/// Not read here.
#[derive(Debug)]
struct GivenUp;

impl fmt::Display for GivenUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not read")
    }
}

impl std::error::Error for GivenUp {}

impl serde::de::Error for GivenUp {
    fn custom<T: fmt::Display>(_: T) -> Self {
        Self
    }
}

struct Reader<'de> {
    bytes: &'de [u8],
    at: usize,
    /// How many lists and objects are being read.
    open: usize,
}

/// The text of a string, without its quotes.
enum Text<'de> {
    Plain(&'de [u8]),
    Escaped(String),
}

impl<'de> Reader<'de> {
    /// The next byte that is no space, which is not taken.
    #[inline]
    fn peek(&mut self) -> Option<u8> {
        match self.bytes.get(self.at) {
            Some(b' ' | b'\n' | b'\r' | b'\t') => self.peek_after_spaces(),
            byte => byte.copied(),
        }
    }

    #[cold]
    fn peek_after_spaces(&mut self) -> Option<u8> {
        let is_space = |byte: &u8| matches!(byte, b' ' | b'\n' | b'\r' | b'\t');
        let rest = self.bytes.get(self.at..)?;
        self.at += rest.iter().take_while(|byte| is_space(byte)).count();
        self.bytes.get(self.at).copied()
    }

    #[inline]
    fn take(&mut self, wanted: u8) -> Result<(), GivenUp> {
        if self.peek() != Some(wanted) {
            return Err(GivenUp);
        }
        self.at += 1;
        Ok(())
    }

    fn word(&mut self, word: &[u8]) -> Result<(), GivenUp> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        if !rest.starts_with(word) {
            return Err(GivenUp);
        }
        self.at += word.len();
        Ok(())
    }

    #[inline]
    fn text(&mut self) -> Result<Text<'de>, GivenUp> {
        self.take(b'"')?;
        let from = self.at;
        let (end, escapes) = string_end(self.bytes, from).ok_or(GivenUp)?;
        self.at = end + 1;
        if escapes {
            let quoted = self.bytes.get(from - 1..=end).ok_or(GivenUp)?;
            return serde_json::from_slice(quoted).map(Text::Escaped).map_err(|_| GivenUp);
        }
        self.bytes.get(from..end).map(Text::Plain).ok_or(GivenUp)
    }

    /// Goes past any value.
    fn skip(&mut self) -> Result<(), GivenUp> {
        match self.peek().ok_or(GivenUp)? {
            b'"' => self.at = string_end(self.bytes, self.at + 1).ok_or(GivenUp)?.0 + 1,
            b'{' | b'[' => match self.bytes.get(self.at + 1) {
                Some(b'}' | b']') => self.at += 2,
                _ => self.at = nested_end(self.bytes, self.at + 1).ok_or(GivenUp)?,
            },
            _ => {
                let ends = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b':' | b' ' | b'\n' | b'\r' | b'\t');
                let rest = self.bytes.get(self.at..).unwrap_or_default();
                match rest.iter().position(ends) {
                    Some(1..) => self.at += rest.iter().position(ends).unwrap_or_default(),
                    _ => return Err(GivenUp),
                }
            }
        }
        Ok(())
    }

    /// Reads a list or an object, whose bracket is next, to its end.
    fn inside<T>(&mut self, read: impl FnOnce(Items<'_, 'de>) -> Result<T, GivenUp>) -> Result<T, GivenUp> {
        let before = self.open;
        self.at += 1;
        self.open += 1;
        let value = read(Items { reader: self, first: true })?;
        if self.open == before { Ok(value) } else { Err(GivenUp) }
    }
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = GivenUp;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        match self.peek().ok_or(GivenUp)? {
            b'{' => self.deserialize_map(visitor),
            b'[' => self.deserialize_seq(visitor),
            b'"' => self.deserialize_str(visitor),
            b'n' => self.word(b"null").and_then(|()| visitor.visit_unit()),
            b't' => self.word(b"true").and_then(|()| visitor.visit_bool(true)),
            b'f' => self.word(b"false").and_then(|()| visitor.visit_bool(false)),
            _ => Err(GivenUp), // a number: nobody here takes one
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        match self.text()? {
            Text::Plain(text) => visitor.visit_borrowed_str(std::str::from_utf8(text).map_err(|_| GivenUp)?),
            Text::Escaped(text) => visitor.visit_string(text),
        }
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        self.deserialize_str(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        match self.peek() {
            Some(b'{') => self.inside(|fields| visitor.visit_map(fields)),
            _ => Err(GivenUp),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, GivenUp> {
        self.deserialize_map(visitor)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        match self.peek() {
            Some(b'[') => self.inside(|items| visitor.visit_seq(items)),
            _ => Err(GivenUp),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        match self.peek() {
            Some(b'n') => self.word(b"null").and_then(|()| visitor.visit_none()),
            _ => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, GivenUp> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        match self.text()? {
            Text::Plain(text) => visitor.visit_borrowed_bytes(text),
            Text::Escaped(text) => visitor.visit_string(text),
        }
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, GivenUp> {
        self.skip()?;
        visitor.visit_unit()
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct enum
    }
}

/// What is inside of a list or an object.
struct Items<'r, 'de> {
    reader: &'r mut Reader<'de>,
    first: bool,
}

impl Items<'_, '_> {
    /// Whether another one follows, which then is next; else the closing bracket has been taken.
    #[inline]
    fn has_next(&mut self, closing: u8) -> Result<bool, GivenUp> {
        match self.reader.peek() {
            Some(byte) if byte == closing => {
                self.reader.at += 1;
                self.reader.open -= 1;
                return Ok(false);
            }
            _ if std::mem::take(&mut self.first) => {}
            _ => self.reader.take(b',')?,
        }
        Ok(true)
    }
}

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = GivenUp;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, GivenUp> {
        if self.has_next(b']')? { seed.deserialize(&mut *self.reader).map(Some) } else { Ok(None) }
    }
}

impl<'de> MapAccess<'de> for Items<'_, 'de> {
    type Error = GivenUp;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, GivenUp> {
        if !self.has_next(b'}')? {
            return Ok(None);
        }
        match self.reader.peek() {
            Some(b'"') => seed.deserialize(&mut *self.reader).map(Some),
            _ => Err(GivenUp),
        }
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, GivenUp> {
        self.reader.take(b':')?;
        seed.deserialize(&mut *self.reader)
    }
}

#[cfg(test)]
mod tests;
