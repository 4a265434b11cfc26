//! What a registry says beside its answer: when to come back (`Retry-After`), and warnings for people (`Warning`).

use std::{
    collections::{HashMap, HashSet},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use http::{
    HeaderMap,
    header::{RETRY_AFTER, WARNING},
};

use super::scrub::Scrubber;

/// Longest text of a warning that is logged, in characters.
const MAX_TEXT: usize = 300;
/// Different warnings that one host gets logged, and hosts whose warnings are remembered: a log is not theirs to fill.
const MAX_WARNINGS: usize = 5;
const MAX_HOSTS: usize = 1000;
/// Longest wait that is told apart from longer ones.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

/// The warnings that were logged already.
pub(super) struct Warnings {
    with_text: bool,
    known: Mutex<HashMap<String, HashSet<String>>>,
}

impl Warnings {
    /// `with_text`: nobody else's credentials can be in a warning.
    pub(super) fn new(with_text: bool) -> Self {
        Self { with_text, known: Mutex::default() }
    }

    /// Logs each warning of a host once. Nothing else follows from it.
    pub(super) fn log(&self, host: &str, headers: &HeaderMap, scrubber: &Scrubber) {
        for value in headers.get_all(WARNING).iter().take(MAX_WARNINGS) {
            let Some(text) = warning_text(&String::from_utf8_lossy(value.as_bytes())) else {
                continue;
            };
            let text = scrubber.text(&text);
            if !self.is_new(host, &text) {
                continue;
            }
            if self.with_text {
                tracing::warn!(host, warning = text, "the registry warns");
            } else {
                let characters = text.chars().count();
                tracing::warn!(host, characters, "the registry warns; kimup tags shows the text");
            }
        }
    }

    fn is_new(&self, host: &str, text: &str) -> bool {
        let mut hosts = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= MAX_HOSTS && !hosts.contains_key(host) {
            return false;
        }
        let known = hosts.entry(host.to_owned()).or_default();
        known.len() < MAX_WARNINGS && known.insert(text.to_owned())
    }
}

/// The text of `299 - "text"` (OCI distribution specification, "Warnings"); other codes are a cache's own business.
fn warning_text(value: &str) -> Option<String> {
    let quoted = value.trim().strip_prefix("299 ")?.split_once('"')?.1;
    let mut text = String::new();
    let mut characters = quoted.chars();
    while let Some(c) = characters.next() {
        match c {
            '"' => return Some(text),
            '\\' => text.extend(characters.next().filter(|c| !c.is_control())),
            c if c.is_control() => {}
            c => text.push(c),
        }
        if text.chars().count() >= MAX_TEXT {
            return Some(text);
        }
    }
    None
}

/// `Retry-After` in seconds or as a date (RFC 9110, 10.2.3); a date that has passed is no wait.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        return Some(text.parse().map_or(LONGEST, Duration::from_secs).min(LONGEST));
    }
    let wait = http_date(text)?.duration_since(jiff::Timestamp::now());
    Some(Duration::try_from(wait).unwrap_or_default().min(LONGEST))
}

/// An HTTP date in one of its three spellings (RFC 9110, 5.6.7), all in GMT. A wrong day of the week does not make the
/// moment unclear.
fn http_date(text: &str) -> Option<jiff::Timestamp> {
    const IMF: jiff::fmt::rfc2822::DateTimeParser = jiff::fmt::rfc2822::DateTimeParser::new().relaxed_weekday(true);
    if let Ok(found) = IMF.parse_timestamp(text) {
        return Some(found);
    }
    // RFC 850: `Sunday, 06-Nov-94 08:49:37 GMT`; asctime: `Sun Nov  6 08:49:37 1994`.
    let civil = |format: &str, text: &str| jiff::civil::DateTime::strptime(format, text).ok();
    let found = match text.split_once(", ") {
        Some((_, rest)) => civil("%d-%b-%y %H:%M:%S GMT", rest).map(in_this_age),
        None => civil("%b %e %H:%M:%S %Y", text.split_once(' ')?.1.trim_start()),
    };
    found?.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|found| found.timestamp())
}

/// Two digits of a year that seem to be more than 50 years ahead mean the past century (RFC 9110, 5.6.7).
fn in_this_age(date: jiff::civil::DateTime) -> jiff::civil::DateTime {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC).year();
    let century = now - now % 100;
    let ahead = century + date.year().rem_euclid(100);
    let year = if ahead > now + 50 { ahead - 100 } else { ahead };
    date.with().year(year).build().unwrap_or(date)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wait(value: &str) -> Option<Duration> {
        retry_after(&HeaderMap::from_iter([(RETRY_AFTER, value.parse().unwrap())]))
    }

    #[test]
    fn retry_after_values() {
        let check = |value: &str, expected: Option<u64>| {
            assert_eq!(wait(value), expected.map(Duration::from_secs), "{value:?}");
        };
        check("0", Some(0));
        check(" 120 ", Some(120));
        check("99999999999999999999999", Some(u64::from(u32::MAX)));
        check("-1", None);
        check("1.5", None);
        check("soon", None);
        check("", None);
        check("Sun, 06 Nov 1994 08:49:37 GMT", Some(0));
        check("Sunday, 06-Nov-94 08:49:37 GMT", Some(0));
        check("Sun Nov  6 08:49:37 1994", Some(0));
        check("Sun, 99 Nov 1994 08:49:37 GMT", None);
        check("Sunday, 06-Nov-94", None);
        check("Sun Nov", None);
        assert_eq!(retry_after(&HeaderMap::new()), None);
    }

    #[test]
    fn dates_ahead() {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(100);
        let at = at.to_zoned(jiff::tz::TimeZone::UTC);
        for format in ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"] {
            let text = at.strftime(format).to_string();
            let found = wait(&text).unwrap_or_default().as_secs();
            assert!((90..=100).contains(&found), "{text}: {found}");
        }
        assert!(wait("Sun, 06 Nov 2094 08:49:37 GMT").unwrap() > Duration::from_hours(24 * 365 * 60));
    }

    #[test]
    fn warning_texts() {
        let check = |value: &str, expected: Option<&str>| {
            assert_eq!(warning_text(value).as_deref(), expected, "{value}");
        };
        check(r#"299 - "use the other one""#, Some("use the other one"));
        check(r#"299 - "say \"no\" \\" "Sun, 06 Nov 1994 08:49:37 GMT""#, Some(r#"say "no" \"#));
        check("299 - \"a\u{7}b\u{1b}[31mc\nd\"", Some("ab[31mcd"));
        check(r#"199 - "other""#, None);
        check(r#"299 - "open"#, None);
        check("299", None);
        check("", None);
        check(&format!("299 - \"{}\"", "x".repeat(1000)), Some(&"x".repeat(MAX_TEXT)));
    }

    #[test]
    fn each_warning_once() {
        let warnings = Warnings::new(true);
        assert!(warnings.is_new("a", "1") && !warnings.is_new("a", "1") && warnings.is_new("b", "1"));
        assert_eq!((0..1000).filter(|n| warnings.is_new("c", &n.to_string())).count(), MAX_WARNINGS);
        assert_eq!((0..2000).filter(|n| warnings.is_new(&format!("h{n}"), "1")).count(), MAX_HOSTS - 3);
    }

    proptest::proptest! {
        #[test]
        fn never_panics(value in "[ -~]{0,60}") {
            let _ = (wait(&value), warning_text(&value), http_date(&value));
        }
    }
}
