//! Pages, caps, retries and redirects.

use std::{io, time::Duration};

use axum::{body::Body, response::Response};
use bytes::Bytes;
use futures::{StreamExt as _, stream};

use super::super::{Cap, Keyring, Limits, Refusal, RegistryError, Step};
use super::fake::{Fake, answer, client, limits, page, redirect, status, tags, tags_and};
use crate::policy::Repository;

/// Lists from a registry with this script: the outcome and how often the registry was asked.
async fn outcome(script: impl Fn(&super::fake::Seen) -> Response + Send + Sync + 'static) -> (Found, usize) {
    let registry = Fake::new(script).await;
    let listing = registry.list().await;
    let requests = registry.log().len();
    if let Ok(listing) = &listing {
        assert_eq!(listing.requests, requests);
    }
    (listing.map(|listing| listing.tags().map(str::to_owned).collect()), requests)
}

/// The tags of an outcome, as text.
type Found = Result<Vec<String>, RegistryError>;

fn is(found: &Found, tags: &[&str]) -> bool {
    found.as_ref().is_ok_and(|found| found == tags)
}

#[tokio::test]
async fn asks_for_the_tags() {
    let registry = Fake::new(|_| tags(&["1.0", "1.1"])).await;
    let listing = registry.list().await.unwrap();
    assert_eq!((listing.tags().len(), listing.dropped, listing.requests), (2, 0, 1));
    let log = registry.log();
    assert_eq!(
        (log[0].method.as_str(), log[0].path.as_str(), log[0].query("n")),
        ("GET", "/v2/team/app/tags/list", "1000")
    );
    assert_eq!(log[0].user_agent, concat!("kimup/", env!("CARGO_PKG_VERSION")));
}

#[tokio::test]
async fn requests_are_counted() {
    let check = async |first: u16, requests: usize, errors: usize| {
        let script = move |seen: &super::fake::Seen| if seen.nth == 0 { status(first) } else { tags(&["1"]) };
        let registry = Fake::new(script).await;
        let metrics = crate::telemetry::Metrics::new();
        let plain_http = vec![registry.addr.to_string()];
        let config =
            super::super::Config { plain_http, limits: limits(), metrics: metrics.clone(), ..Default::default() };
        let _ = client(config).list_tags(&registry.request(Keyring::default())).await;
        let text = metrics.encode();
        for (metric, count) in [("requests", requests), ("errors", errors)] {
            let line = format!("kimup_registry_{metric}_total{{host=\"{}\"}} {count}\n", registry.addr);
            assert_eq!(text.contains(&line), count > 0, "{first}: {line}{text}");
        }
    };
    check(200, 1, 0).await;
    check(404, 1, 0).await; // an answer that tells something
    check(429, 2, 1).await;
    check(503, 2, 1).await;
}

#[tokio::test]
async fn bodies() {
    let check = async |body: &'static str, expected: &[&str]| {
        let (result, requests) = outcome(move |_| answer(200, &[], body)).await;
        assert!(is(&result, expected) && requests == 1, "{body}: {result:?}");
    };
    check(r#"{"tags":["1"]}"#, &["1"]).await;
    check(r#"{"tags":null}"#, &[]).await;
    check("{}", &[]).await;
    check(r#"{"tags":["a b","1","1"]}"#, &["1"]).await;
    for body in ["", "null", "<html>", r#"{"tags":["1"]"#, r#"{"errors":[{"code":"DENIED"}]}"#] {
        let (result, requests) = outcome(move |_| answer(200, &[], body)).await;
        assert!(matches!(result, Err(RegistryError::Malformed { .. })), "{body}: {result:?}");
        assert_eq!(requests, 1);
    }
}

#[tokio::test]
async fn statuses() {
    let check = async |code: u16, expected: &str, tags_error: bool, expected_requests: usize| {
        let (result, requests) = outcome(move |_| answer(code, &[], r#"{"tags":["1"]}"#)).await;
        let error = result.unwrap_err();
        assert!(format!("{error:?}").starts_with(expected), "{code}: {error:?}");
        assert_eq!((error.is_tags_error(), requests), (tags_error, expected_requests), "{code}");
    };
    check(204, "Malformed", true, 1).await;
    check(206, "Malformed", true, 1).await;
    check(304, "Malformed", true, 1).await;
    check(307, "Malformed", true, 1).await; // without a Location
    check(400, "Server", false, 1).await;
    check(401, "Unauthorized", false, 1).await;
    check(403, "Unauthorized", false, 1).await;
    check(404, "NotFound", true, 1).await;
    check(429, "RateLimited", false, 4).await;
    check(500, "Server", false, 4).await;
    check(503, "Server", false, 4).await;
}

#[tokio::test]
async fn follows_pages() {
    let (result, requests) = outcome(|seen| match seen.query("last") {
        "" => page("b", &["a", "b"]),
        "b" => page("c", &["b", "c"]),
        _ => tags(&["d"]),
    })
    .await;
    assert!(is(&result, &["a", "b", "c", "d"]) && requests == 3, "{result:?}");
}

#[tokio::test]
async fn follows_an_absolute_link() {
    let registry = Fake::with_address(|seen, addr| {
        let link = format!("<http://{addr}/v2/team/app/tags/list?last=a>; rel=next");
        if seen.nth == 0 { tags_and(&[("link", &link)], &["a"]) } else { tags(&["b"]) }
    })
    .await;
    assert_eq!(registry.list().await.unwrap().tags().collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test]
async fn a_link_to_another_host_is_refused() {
    let other = Fake::new(|_| tags(&["x"])).await;
    let link = format!("<http://{}/v2/team/app/tags/list?last=a>; rel=next", other.addr);
    let registry = Fake::new(move |_| tags_and(&[("link", &link)], &["a"])).await;
    let error = registry.list().await.unwrap_err();
    assert!(
        matches!(error, RegistryError::Refused { why: Refusal::Link(_), .. }) && error.is_tags_error(),
        "{error:?}"
    );
    assert_eq!((registry.log().len(), other.log().len()), (1, 0));
}

#[tokio::test]
async fn circles_end() {
    let going_round = |result| matches!(result, Err(RegistryError::Refused { why: Refusal::Loop, .. }));
    // Ignores `last`: the same page with the same Link.
    let (result, requests) = outcome(|_| page("b", &["a", "b"])).await;
    assert!(going_round(result) && requests == 2, "{requests}");
    // The same cursor in another order of parameters.
    let (result, requests) = outcome(|seen| {
        let link = if seen.nth % 2 == 0 { "<?last=b&n=2>; rel=next" } else { "<?n=2&last=b>; rel=next" };
        tags_and(&[("link", link)], &["a"])
    })
    .await;
    assert!(going_round(result) && requests == 2, "{requests}");
    // Ever new cursors to the same tags.
    let (result, requests) = outcome(|seen| page(&seen.nth.to_string(), &["a"])).await;
    assert!(going_round(result) && requests == 11, "{requests}");
}

#[tokio::test]
async fn a_broken_page_is_no_listing() {
    let (result, requests) = outcome(|seen| if seen.nth == 0 { page("b", &["a"]) } else { status(502) }).await;
    assert!(matches!(result, Err(RegistryError::Server { status: 502, .. })), "{result:?}");
    assert_eq!(requests, 5);
}

#[tokio::test]
async fn caps() {
    let check = async |limits: Limits, cap: Cap| {
        let registry = Fake::new(|seen| page(&seen.nth.to_string(), &[&seen.nth.to_string(), "x"])).await;
        let error = registry.list_within(limits).await.unwrap_err();
        assert!(
            matches!(&error, RegistryError::TooMuch { cap: found, .. } if *found == cap),
            "{error:?} is not {cap:?}"
        );
    };
    check(Limits { max_pages: 3, ..limits() }, Cap::Pages(3)).await;
    check(Limits { max_tags: 9, ..limits() }, Cap::Tags(9)).await;
    check(Limits { max_page_bytes: 20, ..limits() }, Cap::PageBytes(20)).await;
}

#[tokio::test]
async fn endless_bodies_are_cut() {
    let chunk = Bytes::from(vec![b' '; 1000]);
    let registry =
        Fake::new(move |_| answer(200, &[], Body::from_stream(stream::repeat(chunk.clone()).map(Ok::<_, io::Error>))))
            .await;
    let error = registry.list_within(Limits { max_page_bytes: 5000, ..limits() }).await.unwrap_err();
    assert!(matches!(error, RegistryError::TooMuch { cap: Cap::PageBytes(5000), .. }), "{error:?}");
    assert_eq!(registry.log().len(), 1);
}

#[tokio::test]
async fn gzip() {
    // {"tags":["1"]} · the same, then a mebibyte of blanks · the first, cut off · broken inside
    let zip = |hex: &str| -> Vec<u8> {
        (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect()
    };
    let good = zip(GOOD);
    let bomb = zip(BOMB);
    let cut = good[..good.len() - 6].to_vec();
    let mut broken = good.clone();
    broken[10..14].copy_from_slice(&[0xff; 4]);
    let check = async |body: Vec<u8>, expected: fn(&Found) -> bool, requests: usize| {
        let registry = Fake::new(move |_| answer(200, &[("content-encoding", "gzip")], body.clone())).await;
        let limits = Limits { max_page_bytes: 10_000, ..limits() };
        let result = registry.list_within(limits).await.map(|listing| listing.tags().map(str::to_owned).collect());
        assert!(expected(&result), "{result:?}");
        assert_eq!(registry.log().len(), requests, "{result:?}");
    };
    check(good, |result| is(result, &["1"]), 1).await;
    check(bomb, |result| matches!(result, Err(RegistryError::TooMuch { .. })), 1).await;
    check(cut, |result| matches!(result, Err(RegistryError::Unreachable { step: Step::Read, .. })), 4).await;
    check(broken, |result| matches!(result, Err(RegistryError::Malformed { .. })), 1).await;
}

#[tokio::test]
async fn slow_is_a_timeout() {
    let registry = Fake::new(|_| {
        let drip = stream::once(async { Ok::<_, io::Error>(Bytes::from_static(b"{")) }).chain(stream::pending());
        answer(200, &[], Body::from_stream(drip))
    })
    .await;
    let brief = Duration::from_millis(50);
    let error = registry.list_within(Limits { page_timeout: brief, ..limits() }).await.unwrap_err();
    assert!(matches!(error, RegistryError::Timeout { after, .. } if after == brief), "{error:?}");
    let error = registry.list_within(Limits { deadline: brief, ..limits() }).await.unwrap_err();
    assert!(matches!(error, RegistryError::Timeout { after, .. } if after == brief), "{error:?}");
    assert_eq!(registry.log().len(), 2);
}

#[tokio::test]
async fn tries_again() {
    let broken = || {
        let parts = [Ok(Bytes::from_static(b"{\"tags\":[")), Err(io::Error::other("reset"))];
        answer(200, &[("content-length", "100")], Body::from_stream(stream::iter(parts)))
    };
    for flaw in [500, 502, 503, 504, 429, 0] {
        let once = move |seen: &super::fake::Seen| match (seen.nth, flaw) {
            (0, 0) => broken(),
            (0, 429) => answer(429, &[("retry-after", "0")], ""),
            (0, flaw) => status(flaw),
            _ => tags(&["1"]),
        };
        let (result, requests) = outcome(once).await;
        assert!(is(&result, &["1"]) && requests == 2, "{flaw}: {result:?}");
    }
    let (result, requests) = outcome(move |_| broken()).await;
    assert!(matches!(result, Err(RegistryError::Unreachable { step: Step::Read, .. })), "{result:?}");
    assert_eq!(requests, 4);
}

#[tokio::test]
async fn a_long_pause_holds_the_host() {
    let registry = Fake::new(|_| answer(429, &[("retry-after", "99999999999")], "")).await;
    let client = registry.client(Limits { deadline: Duration::from_mins(4), ..limits() });
    let request = registry.request(Keyring::default());
    let error = client.list_tags(&request).await.unwrap_err();
    let hour = Some(Duration::from_hours(1));
    assert!(matches!(error, RegistryError::RateLimited { retry_after, .. } if retry_after == hour), "{error:?}");
    // The host is left alone, by other listings too; and for a capped time only.
    let error = client.list_tags(&request).await.unwrap_err();
    let RegistryError::RateLimited { retry_after: Some(wait), .. } = error else { panic!("{error:?}") };
    assert!(wait <= Duration::from_mins(5), "{wait:?}");
    assert_eq!(registry.log().len(), 1);
}

#[tokio::test]
async fn redirects() {
    let moved = Fake::new(|seen| match seen.path.as_str() {
        "/moved" => tags(&["1"]),
        _ => redirect("/moved"),
    })
    .await;
    assert_eq!(moved.list().await.unwrap().requests, 2);

    let endless = Fake::new(|seen| redirect(&format!("/{}", seen.nth))).await;
    let error = endless.list().await.unwrap_err();
    assert!(matches!(error, RegistryError::Refused { why: Refusal::Redirect(_), .. }), "{error:?}");
    assert_eq!(endless.log().len(), 6);

    let other = Fake::new(|_| tags(&["x"])).await;
    for target in
        [format!("http://{}/", other.addr), "http://169.254.169.254/".to_owned(), "https://169.254.169.254/".to_owned()]
    {
        let registry = Fake::new(move |_| redirect(&target)).await;
        let error = registry.list().await.unwrap_err();
        assert!(matches!(error, RegistryError::Refused { .. }) && !error.is_tags_error(), "{error:?}");
    }
    assert_eq!(other.log().len(), 0);
}

#[tokio::test]
async fn unreachable_hosts() {
    let free = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap()
    };
    let check = async |host: String, expected: fn(&RegistryError) -> bool| {
        let config = super::super::Config { plain_http: vec![host.clone()], limits: limits(), ..Default::default() };
        let repository = Repository::parse(&format!("{host}/team/app")).unwrap();
        let request =
            super::super::ListRequest { repository, keyring: Keyring::default(), insecure_skip_tls_verify: false };
        let error = client(config).list_tags(&request).await.unwrap_err();
        assert!(expected(&error) && error.host() == host, "{error:?}");
    };
    check(free.to_string(), |error| matches!(error, RegistryError::Unreachable { step: Step::Connect, .. })).await;
    check("registry.invalid:5000".to_owned(), |error| {
        matches!(error, RegistryError::Unreachable { step: Step::Dns, .. })
    })
    .await;
    check("169.254.169.254:5000".to_owned(), |error| {
        matches!(error, RegistryError::Refused { why: Refusal::Address(_), .. })
    })
    .await;
}

const GOOD: &str = "1f8b0800000000000203ab562a494c2f56b28a5632548aad05000e243ad30e000000";
const BOMB: &str = concat!(
    "1f8b0800000000000203edc1310d00210004302be41cb06285fcc08400d808de5f046bdb933de64aeba9f96e010000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000",
    "0000000000000000000078f4034581e88e0e001000",
);
