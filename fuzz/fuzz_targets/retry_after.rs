//! `Retry-After`: whatever it says, an hour is the longest pause that is told, and digits are seconds.
#![no_main]

use std::time::Duration;

use kimup::registry::fuzzing::retry_after;
use libfuzzer_sys::fuzz_target;

const HOUR: Duration = Duration::from_secs(3600);

fuzz_target!(|bytes: &[u8]| {
    let pause = retry_after(bytes);
    assert!(pause.is_none_or(|pause| pause <= HOUR), "{pause:?}");
    if !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit) {
        let text = std::str::from_utf8(bytes).expect("digits");
        assert_eq!(pause, Some(text.parse().map_or(HOUR, Duration::from_secs).min(HOUR)), "{text}");
    }
});
