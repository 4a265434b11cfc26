//! What a registry can make this process hold: the peak memory of a process of its own that lists tags from one that does
//! its worst. Only the process that [`measure`] starts does the listing: its peak is nobody else's.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{sync::Arc, time::Duration};

use kimup::{
    policy::Repository,
    registry::{Client, Config, Keyring, Limits, ListRequest},
};
use kimup_testbed::{FaultReply, FaultRequest, FaultServer};

const MIB: usize = 1024 * 1024;
/// Host, listings at once, most bytes of all tags together: what the process that lists is told.
const TOLD: &str = "KIMUP_TEST_LIST";

/// What one process saw: how a listing ended, and its peak resident memory in bytes.
struct Measured {
    outcome: String,
    peak: usize,
}

/// Lists from such a registry, `at_once` times at the same time.
async fn measure(
    at_once: usize,
    most_bytes: usize,
    script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
) -> Measured {
    let registry = FaultServer::http(script).await.unwrap();
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_lists", "--nocapture"])
        .env(TOLD, format!("{} {at_once} {most_bytes}", registry.host()))
        .env("NO_PROXY", "127.0.0.1")
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    let line = text.lines().find_map(|line| line.split_once("measured ").map(|(_, found)| found.to_owned()));
    let line = line.unwrap_or_else(|| panic!("nothing was measured: {text}"));
    let (peak, outcome) = line.split_once(' ').unwrap();
    let measured = Measured { outcome: outcome.to_owned(), peak: peak.parse().unwrap() };
    println!("{:3} MiB: {}", measured.peak / MIB, measured.outcome);
    measured
}

async fn check(
    at_once: usize,
    script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    outcome: &str,
    below: usize,
) {
    check_within(Limits::default().max_list_bytes, at_once, script, outcome, below).await;
}

async fn check_within(
    most_bytes: usize,
    at_once: usize,
    script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    outcome: &str,
    below: usize,
) {
    let found = measure(at_once, most_bytes, script).await;
    assert!(found.outcome.contains(outcome), "{}", found.outcome);
    assert!(found.peak < below * MIB, "{} MiB: {}", found.peak / MIB, found.outcome);
}

#[tokio::test]
async fn the_process_that_lists() {
    let Ok(told) = std::env::var(TOLD) else { return };
    let told: Vec<&str> = told.split(' ').collect();
    let (host, at_once, max_list_bytes) = (told[0], told[1], told[2].parse().unwrap());
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    // The defaults, but for time: a byte a second must not take half a minute, nor 1,000 pages 200 s.
    let limits = Limits { page_timeout: Duration::from_secs(20), rate: 1e6, max_list_bytes, ..Limits::default() };
    let client = Client::new(Config { plain_http: vec![host.to_owned()], limits, ..Config::default() }).unwrap();
    let request = ListRequest {
        repository: Repository::parse(&format!("{host}/team/app")).unwrap(),
        keyring: Keyring::default(),
        insecure_skip_tls_verify: false,
    };
    let request = Arc::new(request);
    let listings = (0..at_once.parse().unwrap()).map(|_| {
        let (client, request) = (client.clone(), request.clone());
        tokio::spawn(async move { client.list_tags(&request).await })
    });
    let outcomes: Vec<_> = futures::future::join_all(listings).await;
    let outcomes: Vec<_> = outcomes.into_iter().map(Result::unwrap).collect();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: usize = peak.trim().trim_end_matches(" kB").parse().unwrap();
    let outcome = match &outcomes[0] {
        Ok(listing) => format!("{} tags in {} requests", listing.tags().len(), listing.requests),
        Err(error) => error.to_string(),
    };
    println!("measured {} {outcome}", peak * 1024);
}

/// A gibibyte of this piece between a beginning and an end.
fn gibibyte(begin: &str, piece: &[u8], end: &str) -> FaultReply {
    let piece = piece.repeat(64 * 1024 / piece.len());
    let times = 1024 * MIB / piece.len();
    let parts = [(begin.as_bytes().to_vec(), 1), (piece, times), (end.as_bytes().to_vec(), 1)];
    FaultReply::chunks(parts, Duration::ZERO)
}

fn gzip(reply: &[(&str, &[u8], usize)]) -> Vec<u8> {
    use std::io::Write as _;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    for (begin, piece, times) in reply {
        encoder.write_all(begin.as_bytes()).unwrap();
        for _ in 0..*times {
            encoder.write_all(piece).unwrap();
        }
    }
    encoder.finish().unwrap()
}

#[tokio::test]
async fn a_gibibyte_in_one_answer() {
    let too_much = "more than 16777216 bytes in one answer";
    check(1, |_| gibibyte("{", b" ", "}"), too_much, 64).await;
    check(1, |_| gibibyte(r#"{"tags":[""#, b"a", r#""]}"#), too_much, 64).await;
    check(1, |_| gibibyte(r#"{"name":""#, b"a", r#""}"#), too_much, 64).await;
    check(1, |_| gibibyte(r#"{"tags":["#, br#""","#, r#""a"]}"#), "more than 500000 tags", 64).await;
    check(1, |_| gibibyte(r#"{"a":"#, b"[", ""), "no tag list", 64).await;
    check(1, |_| FaultReply::new(200, vec![b' '; 17 * MIB]), too_much, 64).await;
    // Sixteen at once.
    check(16, |_| gibibyte(r#"{"tags":[""#, b"a", r#""]}"#), too_much, 64).await;
}

#[tokio::test]
async fn a_gzip_bomb() {
    let bomb = gzip(&[("{", &b" ".repeat(64 * 1024), 16 * 1024)]);
    assert!(bomb.len() < 16 * MIB, "{}", bomb.len());
    let script = move |_: &FaultRequest| FaultReply::new(200, bomb.clone()).header("content-encoding", "gzip");
    check(4, script, "more than 16777216 bytes in one answer", 64).await;
}

#[tokio::test]
async fn a_byte_a_second() {
    let script = |_: &FaultRequest| FaultReply::drip(&[b' '; 1000], Duration::from_secs(1));
    check(16, script, "did not answer within 20s", 64).await;
}

/// Tags as long as these, from a page on: `count` of them.
fn tags(page: usize, count: usize, width: usize) -> String {
    let tags: Vec<String> = (0..count).map(|n| format!("v{:0width$}", page * count + n, width = width - 1)).collect();
    serde_json::json!({ "name": "team/app", "tags": tags }).to_string()
}

/// `pages` pages of 1,000 tags, linked.
fn pages(pages: usize, width: usize) -> impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static {
    move |seen| {
        let page: usize = seen.query("last").parse().unwrap_or(0);
        let reply = FaultReply::new(200, tags(page, 1000, width));
        if page + 1 == pages {
            return reply;
        }
        reply.header("link", &format!("</v2/team/app/tags/list?n=1000&last={}>; rel=\"next\"", page + 1))
    }
}

#[tokio::test]
async fn endless_pages() {
    check(1, pages(usize::MAX, 12), "more than 500000 tags", 64).await;
    check(1, pages(usize::MAX, 128), "more than 33554432 bytes of tags in one list", 64).await;
    check(1, pages(usize::MAX, 65), "500000 tags", 64).await;
    check(1, |seen| FaultReply::new(200, "{}").header("link", &format!("<?x={}>; rel=next", seen.nth)), "circle", 64)
        .await;
}

#[tokio::test]
async fn four_hundred_thousand_tags() {
    check(1, pages(400, 40), "400000 tags in 400 requests", 96).await;
    check(1, |_| FaultReply::new(200, tags(0, 400_000, 32)), "400000 tags in 1 requests", 96).await;
    // The longest that a tag can be: more than the default takes.
    check(1, pages(400, 128), "33554432 bytes of tags", 64).await;
    check_within(64 * MIB, 1, pages(400, 128), "400000 tags in 400 requests", 96).await;
}
