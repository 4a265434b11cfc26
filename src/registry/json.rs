//! Reads a tag list from its bytes as they arrive (RFC 8259), holding no more of them than one tag. Pure.
//!
//! Nothing but the tags is wanted, so nothing else is built: memory does not depend on what a registry sends.

/// Bytes of one string that are kept; the longest legal tag has 128.
const MAX_TEXT: usize = 129;
/// Arrays and objects within each other.
const MAX_DEPTH: usize = 128;

/// What is wrong with a tag list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flaw {
    /// Where it stops being the JSON of a tag list; from 1.
    Syntax {
        line: usize,
        column: usize,
    },
    /// Begins like HTML or XML.
    Markup,
    NotUtf8,
    /// It has `errors`.
    Errors,
    /// The receiver wants no more.
    Stopped,
}

/// What may come next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Value,
    /// After `[`.
    ValueOrEnd,
    /// After `{`.
    KeyOrEnd,
    Key,
    Colon,
    CommaOrEnd,
    /// After the whole document.
    Nothing,
}

/// The token in which the bytes read so far end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    None,
    String,
    /// After a backslash.
    Escape,
    /// Within `\uXXXX`: digits so far and their value.
    Unicode(u8, u16),
    Number(Number),
    /// The rest of `true`, `false` or `null`.
    Word(&'static [u8]),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Number {
    Minus,
    Zero,
    Digits,
    Point,
    Fraction,
    Exponent,
    Sign,
    Power,
}

/// The key of the outermost object whose value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Tags,
    Errors,
    Other,
}

/// A reader of one document.
pub(super) struct TagReader {
    expect: Expect,
    token: Token,
    /// `true` for an object, `false` for an array.
    stack: Vec<bool>,
    key: Key,
    had_tags: bool,
    errors: bool,
    text: Vec<u8>,
    /// Whether the string is longer than what is kept of it.
    cut: bool,
    utf8: Utf8,
    /// The first half of a surrogate pair, while the second is due.
    surrogate: Option<u16>,
    line: usize,
    column: usize,
}

impl Default for TagReader {
    fn default() -> Self {
        Self {
            expect: Expect::Value,
            token: Token::None,
            stack: Vec::new(),
            key: Key::Other,
            had_tags: false,
            errors: false,
            text: Vec::with_capacity(MAX_TEXT),
            cut: false,
            utf8: Utf8::default(),
            surrogate: None,
            line: 1,
            column: 0,
        }
    }
}

impl TagReader {
    /// Reads on. Each tag goes to `push`, `None` for one that is too long to be legal; `false` from it ends the reading.
    pub(super) fn feed(&mut self, bytes: &[u8], push: &mut dyn FnMut(Option<&str>) -> bool) -> Result<(), Flaw> {
        for &byte in bytes {
            self.column += 1;
            self.step(byte, push)?;
            if byte == b'\n' {
                (self.line, self.column) = (self.line + 1, 0);
            }
        }
        Ok(())
    }

    /// The document must end here.
    pub(super) fn end(&self) -> Result<(), Flaw> {
        match (self.expect, self.token) {
            (Expect::Nothing, Token::None) if self.errors => Err(Flaw::Errors),
            (Expect::Nothing, Token::None) => Ok(()),
            _ => Err(self.flaw()),
        }
    }

    fn flaw(&self) -> Flaw {
        Flaw::Syntax { line: self.line, column: self.column }
    }

    fn step(&mut self, byte: u8, push: &mut dyn FnMut(Option<&str>) -> bool) -> Result<(), Flaw> {
        match self.token {
            Token::None => self.between(byte),
            Token::String => self.in_string(byte, push),
            Token::Escape => self.escape(byte),
            Token::Unicode(digits, value) => self.unicode(digits, value, byte),
            Token::Word(rest) => match rest.split_first() {
                Some((first, rest)) if *first == byte => {
                    self.token = Token::Word(rest);
                    if rest.is_empty() {
                        self.value_ends();
                    }
                    Ok(())
                }
                _ => Err(self.flaw()),
            },
            Token::Number(number) => match number.next(byte) {
                Some(next) => {
                    self.token = Token::Number(next);
                    Ok(())
                }
                None if number.is_whole() => {
                    self.value_ends();
                    self.between(byte)
                }
                None => Err(self.flaw()),
            },
        }
    }

    fn between(&mut self, byte: u8) -> Result<(), Flaw> {
        if matches!(byte, b' ' | b'\t' | b'\n' | b'\r') {
            return Ok(());
        }
        match (self.expect, byte) {
            (Expect::Value, b'<') if self.stack.is_empty() => return Err(Flaw::Markup),
            (Expect::ValueOrEnd, b']') | (Expect::KeyOrEnd, b'}') => self.close(),
            (Expect::CommaOrEnd, b']') if self.stack.last() == Some(&false) => self.close(),
            (Expect::CommaOrEnd, b'}') if self.stack.last() == Some(&true) => self.close(),
            (Expect::CommaOrEnd, b',') => {
                self.expect = if self.stack.last() == Some(&true) { Expect::Key } else { Expect::Value };
            }
            (Expect::KeyOrEnd | Expect::Key, b'"') => self.begin_string(),
            (Expect::Colon, b':') => self.expect = Expect::Value,
            (Expect::Value | Expect::ValueOrEnd, _) => return self.begin_value(byte),
            _ => return Err(self.flaw()),
        }
        Ok(())
    }

    /// Whether the value that begins may be of this kind: outermost an object, in it `tags` an array of strings or null.
    fn allows(&self, byte: u8) -> bool {
        match (self.stack.len(), self.key) {
            (0, _) => byte == b'{',
            (1, Key::Tags) => matches!(byte, b'[' | b'n'),
            (2, Key::Tags) => byte == b'"',
            _ => true,
        }
    }

    fn begin_value(&mut self, byte: u8) -> Result<(), Flaw> {
        if !self.allows(byte) {
            return Err(self.flaw());
        }
        if self.stack.len() == 1 && self.key == Key::Errors {
            self.errors |= byte != b'n';
        }
        match byte {
            b'{' | b'[' => {
                if self.stack.len() >= MAX_DEPTH {
                    return Err(self.flaw());
                }
                self.stack.push(byte == b'{');
                self.expect = if byte == b'{' { Expect::KeyOrEnd } else { Expect::ValueOrEnd };
            }
            b'"' => {
                self.expect = Expect::Value; // and no key
                self.begin_string();
            }
            b't' => self.token = Token::Word(b"rue"),
            b'f' => self.token = Token::Word(b"alse"),
            b'n' => self.token = Token::Word(b"ull"),
            _ => self.token = Token::Number(Number::first(byte).ok_or_else(|| self.flaw())?),
        }
        Ok(())
    }

    fn close(&mut self) {
        self.stack.pop();
        self.value_ends();
    }

    fn value_ends(&mut self) {
        self.token = Token::None;
        self.expect = if self.stack.is_empty() { Expect::Nothing } else { Expect::CommaOrEnd };
    }

    fn begin_string(&mut self) {
        self.token = Token::String;
        self.text.clear();
        self.cut = false;
    }

    fn keep(&mut self, bytes: &[u8]) {
        if self.text.len() + bytes.len() > MAX_TEXT {
            self.cut = true;
        } else {
            self.text.extend_from_slice(bytes);
        }
    }

    fn in_string(&mut self, byte: u8, push: &mut dyn FnMut(Option<&str>) -> bool) -> Result<(), Flaw> {
        if self.surrogate.is_some() && byte != b'\\' {
            return Err(self.flaw()); // half a pair
        }
        if !self.utf8.accepts(byte) {
            return Err(Flaw::NotUtf8);
        }
        match byte {
            b'"' => self.string_ends(push),
            b'\\' => {
                self.token = Token::Escape;
                Ok(())
            }
            0..0x20 => Err(self.flaw()),
            _ => {
                self.keep(&[byte]);
                Ok(())
            }
        }
    }

    fn escape(&mut self, byte: u8) -> Result<(), Flaw> {
        let plain = match byte {
            b'"' | b'\\' | b'/' => byte,
            b'b' => 8,
            b'f' => 12,
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'u' => {
                self.token = Token::Unicode(0, 0);
                return Ok(());
            }
            _ => return Err(self.flaw()),
        };
        if self.surrogate.is_some() {
            return Err(self.flaw());
        }
        self.keep(&[plain]);
        self.token = Token::String;
        Ok(())
    }

    fn unicode(&mut self, digits: u8, value: u16, byte: u8) -> Result<(), Flaw> {
        let digit = char::from(byte).to_digit(16).and_then(|digit| u16::try_from(digit).ok());
        let value = value << 4 | digit.ok_or_else(|| self.flaw())?;
        if digits < 3 {
            self.token = Token::Unicode(digits + 1, value);
            return Ok(());
        }
        self.token = Token::String;
        let units = match self.surrogate.take() {
            Some(high) => vec![high, value],
            None if (0xd800..0xdc00).contains(&value) => {
                self.surrogate = Some(value);
                return Ok(());
            }
            None => vec![value],
        };
        for found in char::decode_utf16(units) {
            let found = found.map_err(|_| self.flaw())?;
            self.keep(found.encode_utf8(&mut [0; 4]).as_bytes());
        }
        Ok(())
    }

    fn string_ends(&mut self, push: &mut dyn FnMut(Option<&str>) -> bool) -> Result<(), Flaw> {
        self.token = Token::None;
        let text = if self.cut { None } else { std::str::from_utf8(&self.text).ok() };
        let in_list = self.stack.len() == 2 && self.key == Key::Tags;
        match self.expect {
            Expect::Key | Expect::KeyOrEnd => {
                self.expect = Expect::Colon;
                if self.stack.len() == 1 {
                    self.key = match text {
                        Some("tags") => Key::Tags,
                        Some("errors") => Key::Errors,
                        _ => Key::Other,
                    };
                    // Which of two lists counts is anybody's guess.
                    if self.key == Key::Tags && std::mem::replace(&mut self.had_tags, true) {
                        return Err(self.flaw());
                    }
                }
            }
            _ => {
                if in_list && !push(text) {
                    return Err(Flaw::Stopped);
                }
                self.value_ends();
            }
        }
        Ok(())
    }
}

impl Number {
    fn first(byte: u8) -> Option<Self> {
        match byte {
            b'-' => Some(Self::Minus),
            b'0' => Some(Self::Zero),
            b'1'..=b'9' => Some(Self::Digits),
            _ => None,
        }
    }

    fn next(self, byte: u8) -> Option<Self> {
        match (self, byte) {
            (Self::Minus, b'0') => Some(Self::Zero),
            (Self::Minus, b'1'..=b'9') | (Self::Digits, b'0'..=b'9') => Some(Self::Digits),
            (Self::Zero | Self::Digits, b'.') => Some(Self::Point),
            (Self::Point | Self::Fraction, b'0'..=b'9') => Some(Self::Fraction),
            (Self::Zero | Self::Digits | Self::Fraction, b'e' | b'E') => Some(Self::Exponent),
            (Self::Exponent, b'+' | b'-') => Some(Self::Sign),
            (Self::Exponent | Self::Sign | Self::Power, b'0'..=b'9') => Some(Self::Power),
            _ => None,
        }
    }

    fn is_whole(self) -> bool {
        matches!(self, Self::Zero | Self::Digits | Self::Fraction | Self::Power)
    }
}

/// Follows UTF-8 byte by byte (Unicode 15, table 3-7): how many bytes of a character are due, and the range of the next.
#[derive(Clone, Copy, Debug, Default)]
struct Utf8 {
    due: u8,
    next: (u8, u8),
}

impl Utf8 {
    fn accepts(&mut self, byte: u8) -> bool {
        const ANY: (u8, u8) = (0x80, 0xbf);
        if self.due > 0 {
            let fits = (self.next.0..=self.next.1).contains(&byte);
            *self = Self { due: self.due - 1, next: ANY };
            return fits;
        }
        let (due, next) = match byte {
            0..0x80 => (0, ANY),
            0xc2..=0xdf => (1, ANY),
            0xe0 => (2, (0xa0, 0xbf)),
            0xed => (2, (0x80, 0x9f)),
            0xe1..=0xef => (2, ANY),
            0xf0 => (3, (0x90, 0xbf)),
            0xf1..=0xf3 => (3, ANY),
            0xf4 => (3, (0x80, 0x8f)),
            _ => return false,
        };
        *self = Self { due, next };
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The tags of a document that arrives in pieces of this size.
    fn read(body: &[u8], size: usize) -> Result<Vec<Option<String>>, Flaw> {
        let mut reader = TagReader::default();
        let mut tags = Vec::new();
        for piece in body.chunks(size) {
            reader.feed(piece, &mut |tag| {
                tags.push(tag.map(str::to_owned));
                true
            })?;
        }
        reader.end().map(|()| tags)
    }

    #[test]
    fn flaws() {
        let check = |body: &str, line: usize, column: usize| {
            assert_eq!(read(body.as_bytes(), 1), Err(Flaw::Syntax { line, column }), "{body}");
        };
        check("", 1, 0);
        check("[]", 1, 1);
        check("{\n \"tags\": [1]}", 2, 11);
        check(r#"{"tags":["1"]"#, 1, 13);
        check(r#"{"tags":[]}x"#, 1, 12);
        check(r#"{"tags":[],"tags":[]}"#, 1, 17);
        check(r#"{"tags":["\ud800"]}"#, 1, 17);
        check(r#"{"a":01}"#, 1, 7);
        assert_eq!(read(b" \n<html>", 1), Err(Flaw::Markup));
        assert_eq!(read(b"{\"a\":\"\xff\"}", 1), Err(Flaw::NotUtf8));
        assert_eq!(read(b"{\"errors\":[]}", 1), Err(Flaw::Errors));
        assert_eq!(read(b"{\"errors\":null}", 1), Ok(Vec::new()));
        let deep = |depth: usize| format!("{{\"a\":{}1{}}}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(read(deep(MAX_DEPTH - 1).as_bytes(), 7), Ok(Vec::new()));
        assert!(read(deep(MAX_DEPTH).as_bytes(), 7).is_err());
    }

    #[test]
    fn long_strings_are_not_kept() {
        let body = format!(r#"{{"tags":["{}","{}"]}}"#, "a".repeat(129), "\\u00e4".repeat(65));
        assert_eq!(read(body.as_bytes(), 10), Ok(vec![Some("a".repeat(129)), None]));
    }

    #[test]
    fn the_receiver_can_stop() {
        let mut reader = TagReader::default();
        assert_eq!(reader.feed(br#"{"tags":["1"#, &mut |_| false), Ok(()));
        assert_eq!(reader.feed(br#"","#, &mut |_| false), Err(Flaw::Stopped));
    }

    /// What a general JSON parser makes of the same bytes.
    fn expected(body: &[u8]) -> Option<Vec<String>> {
        let text = std::str::from_utf8(body).ok()?;
        let value: serde_json::Value = serde_json::from_str(text).ok()?;
        match value.as_object()?.get("tags") {
            None | Some(serde_json::Value::Null) => Some(Vec::new()),
            Some(tags) => tags.as_array()?.iter().map(|tag| tag.as_str().map(str::to_owned)).collect(),
        }
    }

    fn agree(body: &[u8], size: usize) {
        let found = read(body, size).ok().map(|tags| tags.into_iter().flatten().collect());
        assert_eq!(found, expected(body), "{}", String::from_utf8_lossy(body));
    }

    #[test]
    fn agrees_with_serde_json() {
        for body in [
            r#"{"name":"a","tags":["1","2"]}"#,
            r#" { "tags" : [ "1" , "\u0041\n\"\\\/\b\f\r\t" ] , "x" : [ { } , [ ] , null , true , false ] } "#,
            r#"{"tags":["\ud83d\ude00","t\u00e4g","täg","😀"]}"#,
            r#"{"a":-0.5e+10,"b":0,"c":-1,"d":1E5,"e":10.25,"tags":null}"#,
            r#"{"a":{"tags":["no"]},"b":[{"tags":["no"]}]}"#,
            r#"{"a":1.}"#,
            r#"{"a":-}"#,
            r#"{"a":+1}"#,
            r#"{"a":1e}"#,
            r#"{"a":.5}"#,
            r#"{"a":00}"#,
            r#"{"a":tru}"#,
            r#"{"a":nulll}"#,
            r#"{"a"}"#,
            r#"{"a":}"#,
            "{,}",
            r#"{"a":1,}"#,
            r#"{"tags":["1",]}"#,
            r#"{"tags":[,]}"#,
            r#"{"tags":["1" "2"]}"#,
            r#"{"tags":["1"}"#,
            r#"{"tags":["1"]]"#,
            "{a:1}",
            r#"{"tags":"1"}"#,
            r#"{"tags":[["1"]]}"#,
            r#"{"tags":["\x"]}"#,
            r#"{"tags":["\u12g4"]}"#,
            r#"{"tags":["\ude00"]}"#,
            r#"{"tags":["\ud83dx"]}"#,
            r#"{"tags":["\ud83d\n"]}"#,
            r#"{"tags":["\ud83d\ud83d"]}"#,
            "{\"tags\":[\"a\nb\"]}",
            "\u{feff}{}",
            "{}{}",
            "{} ",
            "null",
            "\"tags\"",
            "7",
            "{",
            "{\"",
            "{\"a\":\"",
            "{\"tags\":[\"1\"",
        ] {
            agree(body.as_bytes(), 1);
            agree(body.as_bytes(), 3);
            agree(body.as_bytes(), 1000);
        }
    }

    proptest::proptest! {
        #[test]
        fn any_text_agrees(body in r#"\{("tags"|"a"):[\[\]{}:,"0-9a-e\\u.+ ä-]{0,30}\}?"#, size in 1usize..8) {
            agree(body.as_bytes(), size);
        }

        #[test]
        fn any_strings_agree(tags in proptest::collection::vec("\\PC{0,20}", 0..5), size in 1usize..8) {
            agree(serde_json::json!({ "a": [1, { "b": 2.5 }], "tags": tags }).to_string().as_bytes(), size);
        }

        #[test]
        fn any_bytes_agree(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..12), size in 1usize..8) {
            agree(&body, size);
            agree(&[b"{\"tags\":[\"", &body[..], b"\"]}"].concat(), size);
        }
    }
}
