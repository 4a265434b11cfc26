//! The table of what a registry may do: pages, tags, bodies, broken answers. Each test is a row of it: the outcome and the
//! number of requests.

use std::time::{Duration, Instant};

use kimup_testbed::{FaultReply, FaultRequest, FaultServer};

use super::super::Limits;
use super::fake::limits;
use super::world::{check, check_within, link, page, plain_client, request, status, tags};
use crate::policy::{Filter, Rule, select};

/// What sync makes of a list when it runs `current`.
fn decision(tags: &[&str], current: &str) -> Option<String> {
    let rule = Rule::parse("semver-minor", None).unwrap();
    select(&rule, &Filter::default(), Some(current), tags).selected.map(str::to_owned)
}

#[tokio::test]
async fn row_01_tags() {
    let registry = check(|_| tags(&["1.0", "1.1"]), "1.0 1.1", 1).await;
    let seen = &registry.requests()[0];
    assert_eq!((seen.method.as_str(), seen.target.as_str()), ("GET", "/v2/team/app/tags/list?n=1000"));
    assert_eq!(seen.authorization(), "");
}

#[tokio::test]
async fn row_02_no_tags() {
    for body in [r#"{"name":"team/app","tags":null}"#, r#"{"name":"team/app"}"#, "{}"] {
        check(move |_| FaultReply::new(200, body), "", 1).await;
    }
}

#[tokio::test]
async fn row_03_empty_list_keeps_the_tag() {
    check(|_| tags(&[]), "", 1).await;
    assert_eq!(decision(&[], "1.2.0").as_deref(), Some("1.2.0"));
}

#[tokio::test]
async fn row_04_relative_link() {
    check(|seen| if seen.nth == 0 { page("b", &["a", "b"]) } else { tags(&["c"]) }, "a b c", 2).await;
    check(|seen| if seen.nth == 0 { link("<?last=b>; rel=next", &["a"]) } else { tags(&["c"]) }, "a c", 2).await;
}

#[tokio::test]
async fn row_05_absolute_link_to_the_same_origin() {
    let script = |seen: &FaultRequest| match seen.nth {
        0 => link(&format!("<http://{}/v2/team/app/tags/list?last=b>; rel=\"next\"", seen.address), &["a"]),
        _ => tags(&["c"]),
    };
    let registry = check(script, "a c", 2).await;
    assert_eq!(registry.requests()[1].query("last"), "b");
}

#[tokio::test]
async fn row_06_odd_links() {
    for odd in [
        "/v2/team/app/tags/list?last=b; rel=next",
        "</v2/team/app/tags/list?last=b>; rel=next",
        "</v2/team/app/tags/list?last=b>; title=\"a, b; rel=prev\"; rel=\"next\"; type=x",
        "</other>; rel=\"prev\", </v2/team/app/tags/list?last=b>; rel=\"next\"",
        "</v2/team/app/tags/list?last=b>",
    ] {
        check(move |seen| if seen.nth == 0 { link(odd, &["a"]) } else { tags(&["c"]) }, "a c", 2).await;
    }
    let two = |seen: &FaultRequest| match seen.nth {
        0 => page("b", &["a"]).header("link", "</elsewhere>; rel=\"first\""),
        _ => tags(&["c"]),
    };
    check(two, "a c", 2).await;
    // One that cannot be read must not pass for the end of the list.
    for broken in
        ["</v2/team/app/tags/list?last=b; rel=next", "<>; rel=next", "<?last=a>; rel=next, <?last=b>; rel=next"]
    {
        check(move |_| link(broken, &["a"]), "! malformed", 1).await;
    }
}

#[tokio::test]
async fn row_09_link_loop() {
    check(|_| page("b", &["a", "b"]), "! refused Loop", 2).await;
    let reordered = |seen: &FaultRequest| match seen.nth % 2 {
        0 => link("<?last=b&n=2>; rel=next", &[&seen.nth.to_string()]),
        _ => link("<?n=2&last=%62>; rel=next", &[&seen.nth.to_string()]),
    };
    check(reordered, "! refused Loop", 2).await;
    let between_two = |seen: &FaultRequest| match seen.query("last").as_str() {
        "a" => page("b", &["b"]),
        _ => page("a", &["a"]),
    };
    check(between_two, "! refused Loop", 3).await;
    // Ever new cursors that bring nothing new.
    check(|seen| page(&seen.nth.to_string(), &["a"]), "! refused Loop", 11).await;
}

#[tokio::test]
async fn row_10_short_page() {
    // Shorter than n: the Link alone tells whether more follows.
    check(|seen| if seen.nth == 0 { page("a", &["a"]) } else { tags(&["b"]) }, "a b", 2).await;
    check(|seen| if seen.nth == 0 { page("a", &[]) } else { tags(&["b"]) }, "b", 2).await;
    check(|_| tags(&["a"]), "a", 1).await;
}

/// `count` tags from `t00000` on.
fn numbered(from: usize, count: usize) -> Vec<String> {
    (from..from + count).map(|n| format!("t{n:05}")).collect()
}

fn numbered_page(from: usize, count: usize) -> FaultReply {
    tags(&numbered(from, count).iter().map(String::as_str).collect::<Vec<_>>())
}

/// A registry of `total` tags that gives at most `most` at once, after `last`; with or without a `Link`.
fn paged(total: usize, most: usize, with_link: bool) -> impl Fn(&FaultRequest) -> FaultReply + Send + Sync + Clone {
    move |seen| {
        let from = seen.query("last").strip_prefix('t').map_or(0, |last| last.parse::<usize>().unwrap() + 1);
        let count = most.min(total - from);
        let reply = numbered_page(from, count);
        if !with_link || from + count >= total {
            return reply;
        }
        let last = format!("t{:05}", from + count - 1);
        reply.header("link", &format!("</v2/team/app/tags/list?n={most}&last={last}>; rel=\"next\""))
    }
}

#[tokio::test]
async fn row_11_clamped_n() {
    for (total, most, requests) in [(250, 100, 3), (2500, 1000, 3), (200, 100, 2), (2000, 1000, 2)] {
        check(paged(total, most, true), &numbered(0, total).join(" "), requests).await;
    }
}

#[tokio::test]
async fn row_11_full_pages_without_link() {
    // A Link is optional in the specification: a page as full as it may be is not taken for the last one.
    for (total, requests) in [(2500, 3), (2000, 3), (1000, 2), (999, 1)] {
        check(paged(total, 1000, false), &numbered(0, total).join(" "), requests).await;
    }
}

#[tokio::test]
async fn row_12_ignored_n() {
    check(|_| numbered_page(0, 5000), &numbered(0, 5000).join(" "), 1).await;
}

#[tokio::test]
async fn row_13_ignored_last() {
    check(|_| page("b", &["a", "b"]), "! refused Loop", 2).await;
    check(|_| numbered_page(0, 1000), &numbered(0, 1000).join(" "), 2).await;
    let links_later = |seen: &FaultRequest| match seen.nth {
        0 => numbered_page(0, 1000),
        _ => numbered_page(0, 1000).header("link", "</v2/team/app/tags/list?last=x>; rel=next"),
    };
    check(links_later, &numbered(0, 1000).join(" "), 2).await;
}

#[tokio::test]
async fn row_14_any_order_gives_one_decision() {
    for order in [["1.10.0", "1.2.0", "1.9.0"], ["1.2.0", "1.9.0", "1.10.0"], ["1.9.0", "1.10.0", "1.2.0"]] {
        check(move |_| tags(&order), &order.join(" "), 1).await;
        assert_eq!(decision(&order, "1.2.0").as_deref(), Some("1.10.0"));
    }
}

#[tokio::test]
async fn row_15_duplicates() {
    let script = |seen: &FaultRequest| match seen.nth {
        0 => page("b", &["1.2.0", "1.9.0", "1.2.0"]),
        _ => tags(&["1.9.0", "1.10.0", "1.2.0"]),
    };
    check(script, "1.2.0 1.9.0 1.10.0", 2).await;
    assert_eq!(decision(&["1.2.0", "1.9.0", "1.10.0"], "1.2.0").as_deref(), Some("1.10.0"));
}

#[tokio::test]
async fn row_16_illegal_tags() {
    let long = "a".repeat(129);
    let longest = "a".repeat(128);
    let found = ["1", &long, "a b", "", "-x", ".x", "t\u{e4}g", "a/b", "a:b", "\n", &longest];
    let body = serde_json::json!({ "tags": found }).to_string();
    let registry = FaultServer::http(move |_| FaultReply::new(200, body.clone())).await.unwrap();
    let listing = plain_client(&registry, limits()).list_tags(&request(&registry.host(), &[])).await.unwrap();
    assert_eq!((listing.tags().collect::<Vec<_>>(), listing.dropped), (vec!["1", longest.as_str()], 9));
}

#[tokio::test]
async fn row_21_forbidden() {
    check(|_| status(403), "! unauthorized false", 1).await;
    let to_alice = |seen: &FaultRequest| match seen.authorization() {
        "" => status(401).header("www-authenticate", "Basic"),
        _ => status(403),
    };
    check_within(limits(), &["alice:a"], to_alice, "! unauthorized true", 2).await;
    check_within(limits(), &["alice:a", "bob:b"], to_alice, "! unauthorized true", 3).await;
}

#[tokio::test]
async fn row_22_unknown_name() {
    let unknown = r#"{"errors":[{"code":"NAME_UNKNOWN","message":"repository name not known to registry"}]}"#;
    check(move |_| FaultReply::new(404, unknown), "! not found", 1).await;
    // In the middle of a list, too: never what was read so far.
    check(move |seen| if seen.nth == 0 { page("a", &["a"]) } else { FaultReply::new(404, unknown) }, "! not found", 2)
        .await;
}

/// Waits of a registry that says so once, then answers: how long the listing took, in seconds.
async fn waited(first: FaultReply) -> f64 {
    let started = Instant::now();
    check(move |seen| if seen.nth == 0 { first.clone() } else { tags(&["1"]) }, "1", 2).await;
    started.elapsed().as_secs_f64()
}

fn http_date(ahead: i64, format: &str) -> String {
    let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(ahead);
    at.to_zoned(jiff::tz::TimeZone::UTC).strftime(format).to_string()
}

#[tokio::test]
async fn row_23_too_many_requests() {
    let after = |value: &str| status(429).header("retry-after", value);
    assert!(waited(after("1")).await >= 1.0);
    for format in ["%a, %d %b %Y %H:%M:%S GMT", "%A, %d-%b-%y %H:%M:%S GMT", "%a %b %e %H:%M:%S %Y"] {
        assert!(waited(after(&http_date(2, format))).await >= 0.9, "{format}");
    }
    for soon in ["0", "", "-1", "soon", "Sun, 06 Nov 1994 08:49:37 GMT"] {
        assert!(waited(after(soon)).await < 1.0, "{soon}");
    }
    assert!(waited(status(429)).await < 1.0);
    check(|_| status(429), "! rate limited", 4).await;

    // Longer than the deadline, or absurd: an error at once, and the host is left alone, for a capped time.
    let dates = [http_date(400, "%a, %d %b %Y %H:%M:%S GMT"), "Sun, 06 Nov 2094 08:49:37 GMT".to_owned()];
    for long in ["301", "999999999999999999999", &dates[0], &dates[1]] {
        let reply = after(long);
        let registry = FaultServer::http(move |_| reply.clone()).await.unwrap();
        let client = plain_client(&registry, Limits { deadline: Duration::from_mins(4), ..limits() });
        for name in ["app", "other"] {
            let repository = crate::policy::Repository::parse(&format!("{}/team/{name}", registry.host())).unwrap();
            let request = super::super::ListRequest { repository, ..request(&registry.host(), &[]) };
            let listed = client.list_tags(&request);
            let error = tokio::time::timeout(Duration::from_secs(5), listed).await.unwrap().unwrap_err();
            assert!(error.to_string().contains("limits the rate"), "{long}: {error}");
        }
        assert_eq!(registry.requests().len(), 1, "{long}");
    }
}

#[tokio::test]
async fn row_24_server_errors() {
    for code in [500, 502, 503, 504] {
        check(move |_| status(code), &format!("! status {code}"), 4).await;
        check(move |seen| if seen.nth < 3 { status(code) } else { tags(&["1"]) }, "1", 4).await;
        let later = move |seen: &FaultRequest| if seen.nth == 0 { page("a", &["a"]) } else { status(code) };
        check(later, &format!("! status {code}"), 5).await;
    }
    for broken in
        [FaultReply::cut(r#"{"tags":["1"]}"#), FaultReply::raw(""), FaultReply::raw("HTTP/1.1 200 OK\r\ncont")]
    {
        let always = broken.clone();
        check(move |_| always.clone(), "! unreachable read", 4).await;
        check(move |seen| if seen.nth == 0 { broken.clone() } else { tags(&["1"]) }, "1", 2).await;
    }
    assert!(waited(status(503).header("retry-after", "1")).await >= 1.0);
    check(|_| status(503).header("retry-after", "999999"), "! status 503", 1).await;
}

#[tokio::test]
async fn row_26_gzip() {
    for (body, expected, requests) in [
        (gzip(r#"{"tags":["1"]}"#, 0), "1", 1),
        (gzip(r#"{"tags":["1"]}"#, 1 << 20), "! more than 10000 bytes in one answer", 1),
        (gzip(r#"{"tags":["1"]}"#, 0)[..20].to_vec(), "! unreachable read", 4),
        (b"no gzip at all, but said to be".to_vec(), "! malformed", 1),
    ] {
        let limits = Limits { max_page_bytes: 10_000, ..limits() };
        let script = move |_: &FaultRequest| FaultReply::new(200, body.clone()).header("content-encoding", "gzip");
        let registry = check_within(limits, &[], script, expected, requests).await;
        assert!(registry.requests()[0].header("accept-encoding").is_some_and(|accepted| accepted.contains("gzip")));
    }
}

/// `text` and so many blanks, compressed.
fn gzip(text: &str, blanks: usize) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    encoder.write_all(text.as_bytes()).unwrap();
    encoder.write_all(&vec![b' '; blanks]).unwrap();
    encoder.finish().unwrap()
}

#[tokio::test]
async fn row_27_too_much_or_too_slow() {
    let small = || Limits { max_page_bytes: 10_000, max_tags: 50, max_pages: 4, ..limits() };
    let too_long = "! more than 10000 bytes in one answer";
    check_within(small(), &[], |_| FaultReply::new(200, vec![b' '; 10_001]), too_long, 1).await;
    let endless = |_: &FaultRequest| FaultReply::chunks([(vec![b' '; 1000], usize::MAX)], Duration::ZERO);
    check_within(small(), &[], endless, too_long, 1).await;
    check_within(small(), &[], |_| numbered_page(0, 51), "! more than 50 tags", 1).await;
    check_within(small(), &[], paged(60, 20, true), "! more than 50 tags", 3).await;
    check_within(small(), &[], paged(50, 10, true), "! more than 4 pages", 4).await;

    let drip = |_: &FaultRequest| FaultReply::drip(&[b' '; 1000], Duration::from_secs(1));
    let brief = Duration::from_millis(700);
    for limits in [Limits { page_timeout: brief, ..limits() }, Limits { deadline: brief, ..limits() }] {
        check_within(limits.clone(), &[], drip, "! timeout", 1).await;
        check_within(limits, &[], |_| FaultReply::silence(), "! timeout", 1).await;
    }
    // Some pages in time, but not all of them together.
    let slow = |seen: &FaultRequest| match seen.nth {
        0 | 1 => page(&seen.nth.to_string(), &[&seen.nth.to_string()]),
        _ => FaultReply::silence(),
    };
    check_within(Limits { deadline: Duration::from_secs(3), ..limits() }, &[], slow, "! timeout", 3).await;
    // Endless headers.
    let headers = format!("HTTP/1.1 200 OK\r\n{}", "x: y\r\n".repeat(200_000));
    check(move |_| FaultReply::raw(headers.clone()), "! unreachable read", 4).await;
}

#[tokio::test]
async fn row_28_no_tag_list() {
    for body in [
        &b"{\"tags\":[\"\xff\"]}"[..],
        b"{\"name\":\"\xff\",\"tags\":[\"1\"]}",
        b"",
        b"null",
        b"[\"1\"]",
        b"{\"tags\":[\"1\"]",
        b"{\"tags\":[\"1\"]} {}",
        b"{\"tags\":[\"1\"],}",
        b"{\"tags\":[\"\\ud800\"]}",
        b"{\"tags\":{\"1\":2}}",
        b"{\"tags\":[1]}",
        b"<!DOCTYPE html><html><body>Sign in</body></html>",
        b"{\"errors\":[{\"code\":\"UNAUTHORIZED\"}]}",
        b"{\"tags\":[\"1\"],\"errors\":[{\"code\":\"DENIED\"}]}",
    ] {
        check(move |_| FaultReply::new(200, body), "! malformed", 1).await;
        check(move |seen| if seen.nth == 0 { page("a", &["a"]) } else { FaultReply::new(200, body) }, "! malformed", 2)
            .await;
    }
    check(|_| FaultReply::new(206, r#"{"tags":["1"]}"#), "! malformed", 1).await;
}

#[tokio::test]
async fn row_29_wrong_content_type() {
    for kind in ["text/html", "text/plain; charset=latin1", "application/octet-stream", "nonsense", ""] {
        check(move |_| FaultReply::new(200, r#"{"tags":["1"]}"#).header("content-type", kind), "1", 1).await;
    }
    check(|_| FaultReply::new(200, r#"{"tags":["1"]}"#), "1", 1).await;
}

#[tokio::test]
async fn row_33_warnings_change_nothing() {
    // That each is logged once is tested where it is decided (`notice`) and, in a log, with the canary.
    let warning = r#"299 - "this registry goes away; use https://evil.com/""#;
    let warned = move |seen: &FaultRequest| match seen.nth {
        0 => page("a", &["a"]).header("warning", warning).header("warning", "199 - \"no\""),
        _ => tags(&["b"]).header("warning", warning),
    };
    check(warned, "a b", 2).await;
}
