//! A page of tags; the first byte says how large the chunks are. However it is cut, the same comes out: legal tags, none
//! twice, no more than the cap; and it is JSON.
#![no_main]

use std::collections::HashSet;

use kimup::policy::is_legal_tag;
use kimup::registry::fuzzing::tag_list;
use libfuzzer_sys::fuzz_target;

const MAX_TAGS: usize = 100;

fuzz_target!(|bytes: &[u8]| {
    let Some((&size, body)) = bytes.split_first() else { return };
    let found = tag_list(MAX_TAGS, body.chunks(usize::from(size).max(1)));
    assert_eq!(found, tag_list(MAX_TAGS, [body]), "in one piece");
    let Some((tags, dropped)) = found else { return };
    assert!(tags.len() + dropped <= MAX_TAGS);
    assert!(tags.iter().all(|tag| is_legal_tag(tag)), "{tags:?}");
    assert_eq!(tags.iter().collect::<HashSet<_>>().len(), tags.len(), "{tags:?}");
});
