//! Version constraints: whatever the text, it is a range or a named error, and choosing by it ends and changes nothing
//! when it is done again.
#![no_main]

use kimup::policy::{Filter, Rule, select};
use libfuzzer_sys::fuzz_target;

const TAGS: [&str; 12] = [
    "0.0.1",
    "0.1.0",
    "1.0.0",
    "v1.0.1",
    "1.2.3-rc.1",
    "1.2.3",
    "1.2.3-alpine",
    "2.0.0-0",
    "2.0.0",
    "10.20.30",
    "99999999999999999999.0.0",
    "latest",
];

fuzz_target!(|text: &str| {
    let Ok(rule) = Rule::parse("semver", Some(text)) else { return };
    let filter = Filter::default();
    let chosen = select(&rule, &filter, None, &TAGS).selected;
    let again = select(&rule, &filter, chosen, &TAGS);
    assert_eq!(again.selected, chosen, "{text:?}");
    // What a rule prints can be written into an Image and read back.
    let (kind, value) = rule.to_crd();
    assert_eq!(Rule::parse(kind, value.as_deref()), Ok(rule), "{text:?}");
});
