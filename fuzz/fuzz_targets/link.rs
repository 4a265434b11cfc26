//! `Link` headers, one a line: the next page is on the registry's own origin and of the same repository.
#![no_main]

use kimup::registry::fuzzing::next_page;
use libfuzzer_sys::fuzz_target;
use url::Url;

fuzz_target!(|bytes: &[u8]| {
    let values: Vec<&[u8]> = bytes.split(|&byte| byte == b'\n').collect();
    let first = Url::parse("https://registry.example.com/v2/team/app/tags/list?n=1000").expect("an address");
    if let Ok(Some(next)) = next_page(&first, &values) {
        assert_eq!((next.origin(), next.path()), (first.origin(), first.path()), "{next}");
        assert!(next.username().is_empty() && next.password().is_none() && next.fragment().is_none(), "{next}");
    }
});
