//! The reader of reviews beside `serde_json`: the same value from every text that both read, the same error from every text that
//! it leaves, and no panic, whatever the bytes.
#![no_main]

use kimup::admission::review::Review;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    Review::compare_readers(bytes);
    // Where most of a review is, and where most of it is taken.
    for [before, after] in [
        ["", ""],
        [r#""metadata":"#, ""],
        [r#""metadata":{"labels":{"pod-template-hash":"a"},"other":"#, "}"],
        [r#""spec":{"containers":[{"env":"#, r#","image":"a"}]}"#],
        [r#""spec":{"containers":["#, "]}"],
    ] {
        let head = br#"{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview","request":{"uid":"u","object":{"#;
        Review::compare_readers(&[head, before.as_bytes(), bytes, after.as_bytes(), b"}}}"].concat());
    }
});
