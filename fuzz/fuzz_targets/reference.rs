//! Image references: whatever the text, parsing ends without a panic, and what was read is read again from what it prints.
#![no_main]

use kimup::policy::{Reference, Repository};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Ok(reference) = Reference::parse(text) {
        let again = Reference::parse(&reference.with_tag("1.0")).expect("a reference with another tag is one");
        assert_eq!(again.repository(), reference.repository());
        // A host of one word is told from a path by its capitals alone, and the normal form has none.
        let host = reference.repository().host();
        if host.contains(['.', ':']) || host == "localhost" {
            let name = reference.repository().to_string();
            assert_eq!(Repository::parse(&name).expect("a normalised name is a name"), *reference.repository());
        }
    }
});
