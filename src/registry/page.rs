//! One page of a tag list, read straight into the listing: only the tags that are kept are ever in memory.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    hash::{BuildHasher, RandomState},
};

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::error::Cap;
use crate::policy;

/// Pages in a row without a new tag, after which the registry is taken to go round in a circle.
const MAX_BARREN_PAGES: usize = 10;

/// The tags of a listing so far.
#[derive(Default)]
pub(super) struct Collector {
    tags: Vec<String>,
    dropped: usize,
    received: usize,
    max_tags: usize,
    barren: usize,
    /// Where a tag with this hash is in `tags`: a second set of the strings would double the memory.
    seen: HashMap<u64, usize>,
    /// The tags whose hash another one has taken.
    collided: HashSet<String>,
    hasher: RandomState,
}

/// Why a page is no page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PageError {
    TooMuch(Cap),
    /// Says where, never quotes the answer.
    Malformed(String),
}

impl Collector {
    pub(super) fn new(max_tags: usize) -> Self {
        Self { max_tags, ..Self::default() }
    }

    /// Reads the body of a 200. An error leaves the collector useless: the listing is over.
    pub(super) fn read(&mut self, body: &[u8]) -> Result<(), PageError> {
        let before = self.tags.len();
        let text = std::str::from_utf8(body).map_err(|_| PageError::Malformed("it is not UTF-8".to_owned()))?;
        let mut json = serde_json::Deserializer::from_str(text);
        let page = PageSeed(self).deserialize(&mut json).and_then(|page| json.end().map(|()| page));
        if self.received > self.max_tags {
            return Err(PageError::TooMuch(Cap::Tags(self.max_tags)));
        }
        match page {
            Ok(Seen { errors: true }) => Err(PageError::Malformed("it reports errors with status 200".to_owned())),
            Ok(Seen { errors: false }) => {
                self.barren = if self.tags.len() > before { 0 } else { self.barren + 1 };
                Ok(())
            }
            Err(error) => Err(PageError::Malformed(describe(&error, text))),
        }
    }

    /// Whether the pages read last brought nothing new for so long that more will not either.
    pub(super) fn is_going_round(&self) -> bool {
        self.barren >= MAX_BARREN_PAGES
    }

    /// The tags in the registry's order and the number of illegal ones.
    pub(super) fn finish(self) -> (Vec<String>, usize) {
        (self.tags, self.dropped)
    }

    /// False once the cap is passed.
    fn push(&mut self, tag: &str) -> bool {
        self.received += 1;
        if self.received > self.max_tags {
            return false;
        }
        if !policy::is_legal_tag(tag) {
            self.dropped += 1;
            return true;
        }
        let hash = self.hasher.hash_one(tag);
        match self.seen.get(&hash) {
            None => {
                self.seen.insert(hash, self.tags.len());
                self.tags.push(tag.to_owned());
            }
            Some(&at) if self.tags[at] == tag => {}
            Some(_) => {
                if self.collided.insert(tag.to_owned()) {
                    self.tags.push(tag.to_owned());
                }
            }
        }
        true
    }
}

fn describe(error: &serde_json::Error, text: &str) -> String {
    if text.trim_start().starts_with('<') {
        return "it is a web page, no tag list: check the registry's name and port".to_owned();
    }
    // serde_json's own text may quote the answer.
    format!("it is no tag list (line {}, column {})", error.line(), error.column())
}

struct Seen {
    errors: bool,
}

struct PageSeed<'a>(&'a mut Collector);

impl<'de> DeserializeSeed<'de> for PageSeed<'_> {
    type Value = Seen;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Seen, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for PageSeed<'_> {
    type Value = Seen;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tag list")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Seen, A::Error> {
        let mut seen = Seen { errors: false };
        let mut had_tags = false;
        while let Some(key) = map.next_key::<std::borrow::Cow<'_, str>>()? {
            match key.as_ref() {
                "tags" if had_tags => return Err(A::Error::custom("tags twice")),
                "tags" => {
                    had_tags = true;
                    map.next_value_seed(TagsSeed(self.0))?;
                }
                "errors" => seen.errors |= map.next_value::<Option<IgnoredAny>>()?.is_some(),
                _ => drop(map.next_value::<IgnoredAny>()?),
            }
        }
        Ok(seen)
    }
}

struct TagsSeed<'a>(&'a mut Collector);

impl<'de> DeserializeSeed<'de> for TagsSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_option(self)
    }
}

impl<'de> Visitor<'de> for TagsSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tags or null")
    }

    fn visit_none<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(TagSeed(self.0))?.is_some() {}
        Ok(())
    }
}

struct TagSeed<'a>(&'a mut Collector);

impl<'de> DeserializeSeed<'de> for TagSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for TagSeed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tag")
    }

    fn visit_str<E: serde::de::Error>(self, tag: &str) -> Result<(), E> {
        if self.0.push(tag) { Ok(()) } else { Err(E::custom("too many tags")) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(max_tags: usize, pages: &[&[u8]]) -> Result<(Vec<String>, usize), PageError> {
        let mut collector = Collector::new(max_tags);
        for page in pages {
            collector.read(page)?;
        }
        Ok(collector.finish())
    }

    #[test]
    fn tags() {
        let check = |pages: &[&str], expected: &[&str], dropped: usize| {
            let bodies: Vec<&[u8]> = pages.iter().map(|page| page.as_bytes()).collect();
            let expected: Vec<String> = expected.iter().map(|&tag| tag.to_owned()).collect();
            assert_eq!(read(100, &bodies), Ok((expected, dropped)), "{pages:?}");
        };
        check(&[r#"{"name":"a","tags":["1","2"]}"#], &["1", "2"], 0);
        check(&[r#"{"tags":["2"],"extra":{"a":[1,{}]}}"#, r#"{"tags":["1","2"]}"#], &["2", "1"], 0);
        check(&[r#"{"tags":null}"#], &[], 0);
        check(&[r#"{"tags":[]}"#], &[], 0);
        check(&["{}"], &[], 0);
        check(&[r#"{"name":"a","errors":null}"#], &[], 0);
        check(&[r#"{"tags":["a b","","-x","\u0041","t\u00e4g"]}"#], &["A"], 4);
        check(&[&format!(r#"{{"tags":["{}","{}"]}}"#, "a".repeat(128), "a".repeat(129))], &[&"a".repeat(128)], 1);
    }

    #[test]
    fn no_tag_list() {
        let check = |body: &[u8], expected: &str| match read(100, &[body]) {
            Err(PageError::Malformed(cause)) => {
                assert!(cause.contains(expected), "{cause} has no {expected:?}");
            }
            other => panic!("{:?}: {other:?}", String::from_utf8_lossy(body)),
        };
        check(b"", "line 1");
        check(b"null", "line 1");
        check(b"[]", "line 1");
        check(br#"{"tags":["1"]"#, "line 1");
        check(br#"{"tags":["1"]} x"#, "line 1");
        check(br#"{"tags":["1"]}{"#, "line 1");
        check(br#"{"tags":"1"}"#, "line 1");
        check(br#"{"tags":["1",2]}"#, "line 1");
        check(br#"{"tags":["1",null]}"#, "line 1");
        check(br#"{"tags":["1"],"tags":["2"]}"#, "line 1");
        check(br#"{"tags":["\ud800"]}"#, "line 1");
        check(b"{\"tags\":[\"\xff\"]}", "UTF-8");
        check(b"{\"name\":\"\xff\",\"tags\":[]}", "UTF-8");
        check(b" <html></html>", "web page");
        check(br#"{"errors":[{"code":"UNAUTHORIZED"}]}"#, "errors");
        check(br#"{"tags":["1"],"errors":[]}"#, "errors");
    }

    #[test]
    fn caps() {
        let too_many = Err(PageError::TooMuch(Cap::Tags(2)));
        assert!(read(2, &[br#"{"tags":["1","2"]}"#]).is_ok());
        assert_eq!(read(2, &[br#"{"tags":["1","2","3"]}"#]), too_many);
        assert_eq!(read(2, &[br#"{"tags":["1","1","1"]}"#]), too_many); // duplicates and illegal ones count
        assert_eq!(read(2, &[br#"{"tags":["1"]}"#, br#"{"tags":["-","-"]}"#]), too_many);
    }

    #[test]
    fn going_round() {
        let mut collector = Collector::new(100);
        collector.read(br#"{"tags":["1"]}"#).unwrap();
        for _ in 0..MAX_BARREN_PAGES {
            assert!(!collector.is_going_round());
            collector.read(br#"{"tags":["1"]}"#).unwrap();
        }
        assert!(collector.is_going_round());
    }

    #[test]
    fn equal_hashes_are_not_equal_tags() {
        let mut collector = Collector::new(100);
        collector.tags.push("other".to_owned());
        collector.seen.insert(collector.hasher.hash_one("1"), 0);
        collector.read(br#"{"tags":["1","1"]}"#).unwrap();
        assert_eq!(collector.finish().0, ["other", "1"]);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60)) {
            let _ = read(3, &[&body]);
        }
    }
}
