//! The tags of a listing, collected page by page in as little memory as they need.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
};

use super::{
    error::{Cap, RegistryError},
    http::BodySink,
    json::{Flaw, TagReader},
};
use crate::policy;

/// Pages in a row without a new tag, after which the registry is taken to go round in a circle.
const MAX_BARREN_PAGES: usize = 10;

/// Many tags in one piece of memory: a `String` for each would cost three times as much.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Tags {
    text: String,
    /// Where each tag ends in `text`.
    ends: Vec<u32>,
}

impl fmt::Debug for Tags {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl Tags {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The tags in the registry's order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        (0..self.len()).map(|at| self.at(at))
    }

    fn at(&self, at: usize) -> &str {
        let offset = |at: usize| self.ends.get(at).map_or(0, |&end| end as usize);
        let from = if at == 0 { 0 } else { offset(at - 1) };
        self.text.get(from..offset(at)).unwrap_or_default()
    }

    /// False if they are too many to be counted: 4 GiB.
    fn push(&mut self, tag: &str) -> bool {
        let Ok(end) = u32::try_from(self.text.len() + tag.len()) else { return false };
        self.text.push_str(tag);
        self.ends.push(end);
        true
    }

    fn truncate(&mut self, len: usize) {
        self.ends.truncate(len);
        self.text.truncate(self.ends.last().map_or(0, |&end| end as usize));
    }
}

/// As they come; what is too much to be counted is left out.
impl<'a> FromIterator<&'a str> for Tags {
    fn from_iter<I: IntoIterator<Item = &'a str>>(tags: I) -> Self {
        let mut found = Self::default();
        for tag in tags {
            found.push(tag);
        }
        found
    }
}

/// The tags of a listing so far, without duplicates.
#[derive(Default)]
pub(super) struct Collector {
    tags: Tags,
    /// Open addressing: 1 + the index of a tag, 0 for a free slot. At most half full.
    slots: Vec<u32>,
    hasher: RandomState,
    max_tags: usize,
    max_bytes: usize,
    dropped: usize,
    received: usize,
    barren: usize,
    reader: TagReader,
    /// As it was before the page that is being read.
    before: Before,
    last: String,
}

#[derive(Clone, Copy, Default)]
struct Before {
    tags: usize,
    dropped: usize,
    received: usize,
}

/// What a page was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Page {
    /// Tags on it, illegal ones and duplicates included.
    pub(super) received: usize,
    /// Tags that no page before had.
    pub(super) new: usize,
}

/// Why a page is no page.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum PageError {
    TooMuch(Cap),
    /// Says where, never quotes the answer.
    Malformed(String),
}

impl PageError {
    /// As an error of this host.
    pub(super) fn of(self, host: String) -> RegistryError {
        match self {
            Self::TooMuch(cap) => RegistryError::TooMuch { host, cap },
            Self::Malformed(cause) => RegistryError::Malformed { host, cause },
        }
    }
}

impl BodySink for Collector {
    /// Forgets what a broken connection left of the page.
    fn begin(&mut self) {
        let Before { tags, dropped, received } = self.before;
        (self.dropped, self.received) = (dropped, received);
        self.reader = TagReader::default();
        if self.tags.len() > tags {
            self.tags.truncate(tags);
            self.rebuild(self.slots.len());
        }
    }

    fn chunk(&mut self, bytes: &[u8]) -> Result<(), PageError> {
        let mut reader = std::mem::take(&mut self.reader);
        let read = reader.feed(bytes, &mut |tag| self.push(tag));
        self.reader = reader;
        read.map_err(|flaw| self.error(flaw))
    }
}

impl Collector {
    pub(super) fn new(max_tags: usize, max_bytes: usize) -> Self {
        Self { max_tags, max_bytes, ..Self::default() }
    }

    /// The body of the page is complete.
    pub(super) fn end_page(&mut self) -> Result<Page, PageError> {
        self.reader.end().map_err(|flaw| self.error(flaw))?;
        let page = Page { received: self.received - self.before.received, new: self.tags.len() - self.before.tags };
        self.barren = if page.new > 0 { 0 } else { self.barren + 1 };
        self.before = Before { tags: self.tags.len(), dropped: self.dropped, received: self.received };
        Ok(page)
    }

    /// Whether the pages read last brought nothing new for so long that more will not either.
    pub(super) fn is_going_round(&self) -> bool {
        self.barren >= MAX_BARREN_PAGES
    }

    /// The tag that came last, if it is legal: where a next page would go on.
    pub(super) fn last(&self) -> Option<&str> {
        (!self.last.is_empty()).then_some(&self.last)
    }

    /// The tags in the registry's order and the number of illegal ones.
    pub(super) fn finish(mut self) -> (Tags, usize) {
        self.tags.text.shrink_to_fit();
        self.tags.ends.shrink_to_fit();
        (self.tags, self.dropped)
    }

    fn error(&self, flaw: Flaw) -> PageError {
        PageError::Malformed(match flaw {
            Flaw::Stopped => return PageError::TooMuch(self.cap()),
            Flaw::Markup => "it is a web page, no tag list: check the registry's name and port".to_owned(),
            Flaw::NotUtf8 => "it is not UTF-8".to_owned(),
            Flaw::Errors => "it reports errors with status 200".to_owned(),
            Flaw::Syntax { line, column } => format!("it is no tag list (line {line}, column {column})"),
        })
    }

    /// The cap that was passed.
    fn cap(&self) -> Cap {
        if self.received > self.max_tags { Cap::Tags(self.max_tags) } else { Cap::ListBytes(self.max_bytes) }
    }

    /// False once a cap is passed.
    fn push(&mut self, tag: Option<&str>) -> bool {
        self.received += 1;
        if self.received > self.max_tags {
            return false;
        }
        self.last.clear();
        let Some(tag) = tag.filter(|tag| policy::is_legal_tag(tag)) else {
            self.dropped += 1;
            return true;
        };
        self.last.push_str(tag);
        if (self.tags.len() + 1) * 2 > self.slots.len() {
            self.rebuild((self.slots.len() * 2).max(64));
        }
        let slot = self.slot_of(tag);
        if self.slots.get(slot).is_none_or(|&taken| taken != 0) {
            return true;
        }
        if self.tags.text.len() + tag.len() > self.max_bytes {
            return false;
        }
        let Ok(index) = u32::try_from(self.tags.len() + 1) else { return false };
        if let Some(free) = self.slots.get_mut(slot) {
            *free = index;
        }
        self.tags.push(tag)
    }

    /// The slot that holds this tag, or the free one that would.
    fn slot_of(&self, tag: &str) -> usize {
        let mask = self.slots.len() - 1; // a power of two
        let hash = self.hasher.hash_one(tag);
        let mut slot = usize::try_from(hash & mask as u64).unwrap_or(0);
        while let Some(&taken) = self.slots.get(slot) {
            if taken == 0 || self.tags.at(taken as usize - 1) == tag {
                break;
            }
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn rebuild(&mut self, size: usize) {
        self.slots = vec![0; size];
        for at in 0..self.tags.len() {
            let slot = self.slot_of(self.tags.at(at));
            if let (Some(free), Ok(index)) = (self.slots.get_mut(slot), u32::try_from(at + 1)) {
                *free = index;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(max_tags: usize, pages: &[&[u8]]) -> Result<(Vec<String>, usize), PageError> {
        read_within(max_tags, 1000, pages)
    }

    fn read_within(max_tags: usize, max_bytes: usize, pages: &[&[u8]]) -> Result<(Vec<String>, usize), PageError> {
        let mut collector = Collector::new(max_tags, max_bytes);
        for page in pages {
            read_page(&mut collector, page)?;
        }
        let (tags, dropped) = collector.finish();
        Ok((tags.iter().map(str::to_owned).collect(), dropped))
    }

    fn read_page(collector: &mut Collector, page: &[u8]) -> Result<Page, PageError> {
        collector.begin();
        for piece in page.chunks(3) {
            collector.chunk(piece)?;
        }
        collector.end_page()
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
        check(b"null", "line 1, column 1");
        check(br#"{"tags":["1"]"#, "line 1, column 13");
        check(b"{\"tags\":[\"\xff\"]}", "UTF-8");
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

        let check = |max_bytes: usize, pages: &[&[u8]], fits: bool| {
            let found = read_within(9, max_bytes, pages);
            let expected = PageError::TooMuch(Cap::ListBytes(max_bytes));
            assert_eq!(found.as_ref().err(), (!fits).then_some(&expected), "{max_bytes} {found:?}");
        };
        let three: &[&[u8]] = &[br#"{"tags":["a","bb"]}"#, br#"{"tags":["ccc"]}"#];
        check(6, three, true);
        check(5, three, false);
        // What is not kept does not count.
        check(2, &[br#"{"tags":["bb","bb","-illegal"]}"#], true);
    }

    #[test]
    fn going_round() {
        let mut collector = Collector::new(100, 1000);
        read_page(&mut collector, br#"{"tags":["1"]}"#).unwrap();
        for _ in 0..MAX_BARREN_PAGES {
            assert!(!collector.is_going_round());
            assert_eq!(read_page(&mut collector, br#"{"tags":["1"]}"#), Ok(Page { received: 1, new: 0 }));
        }
        assert!(collector.is_going_round());
    }

    #[test]
    fn a_page_that_breaks_off_leaves_nothing() {
        let mut collector = Collector::new(6, 1000);
        read_page(&mut collector, br#"{"tags":["1","-"]}"#).unwrap();
        collector.begin();
        collector.chunk(br#"{"tags":["1","2","3","-","#).unwrap();
        assert_eq!(collector.last(), None);
        assert_eq!(read_page(&mut collector, br#"{"tags":["4","3"]}"#), Ok(Page { received: 2, new: 2 }));
        assert_eq!(collector.last(), Some("3"));
        let (tags, dropped) = collector.finish();
        assert_eq!((tags.iter().collect::<Vec<_>>(), dropped), (vec!["1", "4", "3"], 1));
    }

    proptest::proptest! {
        #[test]
        fn a_set_in_order(tags in proptest::collection::vec("[a-c]{1,3}", 0..300)) {
            let mut expected: Vec<String> = Vec::new();
            for tag in &tags {
                if !expected.contains(tag) {
                    expected.push(tag.clone());
                }
            }
            let body = serde_json::json!({ "tags": tags }).to_string();
            proptest::prop_assert_eq!(read(1000, &[body.as_bytes()]), Ok((expected, 0)));
        }

        #[test]
        fn never_panics(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60)) {
            let _ = read(3, &[&body]);
        }
    }
}
