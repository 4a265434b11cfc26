//! What each status means, and what is counted.

use axum::response::Response;

use super::super::{Keyring, RegistryError};
use super::fake::{Fake, answer, client, limits, status, tags};

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
