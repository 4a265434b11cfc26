//! A registry that many use knows the credentials of all. What it repeats of one's to another is not told to that one.

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kimup_testbed::{FaultReply, FaultRequest};

use super::canary::capture;
use super::world::{BOB, PUBLIC, World, bearer, challenge, link, page, redirect, request, status, tags, token};

const OURS: &str = "registry.example.com";
const SECRET: &str = "Canary-7f3a9b-Of-Alice";

fn basic() -> String {
    STANDARD.encode(format!("alice:{SECRET}"))
}

/// What it is called, and what the registry answers.
type Repetition = (&'static str, fn() -> FaultReply);

/// What the registry answers to Bob, once Alice has been there.
fn repetitions() -> Vec<Repetition> {
    vec![
        ("warning", || tags(&["1"]).header("warning", &format!("299 - \"{SECRET} {}\"", basic()))),
        ("error", || FaultReply::new(500, format!("{SECRET} {}", basic()))),
        ("error in JSON", || {
            FaultReply::new(403, format!(r#"{{"errors":[{{"code":"{SECRET}","message":"{SECRET}"}}]}}"#))
        }),
        ("unknown", || FaultReply::new(404, SECRET)),
        ("no JSON", || FaultReply::new(200, format!("{{\"{SECRET}\":{SECRET}"))),
        ("an illegal tag", || tags(&[&format!("{SECRET} x"), "1"])),
        ("error_description", || {
            challenge(&format!(r#"Bearer realm="https://auth.example.com/token",error_description="{SECRET}""#))
        }),
        ("service", || challenge(&format!(r#"Bearer realm="https://auth.example.com/token",service="{SECRET}""#))),
        ("realm of Basic", || challenge(&format!(r#"Basic realm="{SECRET}""#))),
        ("path of a realm", || bearer(&format!("https://auth.example.com/{SECRET}?x={SECRET}"))),
        ("path of a realm elsewhere", || bearer(&format!("https://evil.com/{SECRET}?x={SECRET}"))),
        ("user of a realm", || bearer(&format!("https://{SECRET}:{SECRET}@auth.example.com/"))),
        ("path of a redirect", || redirect(&format!("https://{OURS}/{SECRET}?x={SECRET}"))),
        ("path of a redirect elsewhere", || redirect(&format!("https://evil.com/{SECRET}?x={SECRET}"))),
        ("path of a redirect over http", || redirect(&format!("http://evil.com/{SECRET}?x={SECRET}"))),
        ("user of a redirect", || redirect(&format!("https://{SECRET}:{SECRET}@evil.com/"))),
        ("broken redirect", || redirect(&format!("https://[{SECRET}]/"))),
        ("cursor", || page(SECRET, &["1"])),
        ("path of a link", || link(&format!("</v2/{SECRET}/tags/list>; rel=next"), &["1"])),
        ("broken link", || link(&format!("<https://[{SECRET}>"), &["1"])),
        ("retry-after", || status(429).header("retry-after", SECRET)),
        ("status line", || FaultReply::raw(format!("HTTP/1.1 418 {SECRET}\r\ncontent-length: 0\r\n\r\n"))),
        ("no HTTP", || FaultReply::raw(format!("HTTP/9.9 {SECRET}\r\n\r\n"))),
        ("other headers", || tags(&["1"]).header("x-echo", SECRET).header("set-cookie", SECRET)),
    ]
}

#[tokio::test]
async fn what_one_has_sent_is_not_told_to_another() {
    let (log, _guard) = capture();
    for (name, repetition) in repetitions() {
        let mut world = World::new();
        let alice = format!("Basic {}", basic());
        let registry = move |seen: &FaultRequest| match seen.authorization() {
            sent if sent == alice => tags(&["1"]),
            BOB | "Bearer t" if seen.query("last").is_empty() => repetition(),
            BOB | "Bearer t" => tags(&["2"]),
            _ => challenge("Basic"),
        };
        let registry = world.host(OURS, PUBLIC, registry).await;
        // It has heard of Alice, too.
        let auth = |_: &FaultRequest| token("t").header("warning", &format!("299 - \"{SECRET}\""));
        let _auth = world.host("auth.example.com", "203.0.113.2", auth).await;
        let _evil = world.host("evil.com", "203.0.113.66", |_| tags(&["1"])).await;
        let client = world.client();
        client.list_tags(&request(OURS, &[&format!("alice:{SECRET}")])).await.unwrap();
        assert!(String::from_utf8_lossy(&registry.received()).contains(&basic()), "the registry knows it");

        log.0.lock().unwrap().clear();
        let shown = match client.list_tags(&request(OURS, &["bob:b"])).await {
            Ok(listing) => format!("{} {}", listing.dropped, listing.endpoint),
            Err(error) => format!("{error} {error:?} {} {:?}", error.host(), error.next_step()),
        };
        let shown = format!("{shown} {}", world.metrics.encode());
        let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
        assert!(registry.authorizations().iter().any(|sent| sent == BOB), "{name}: Bob was never there");
        assert!(logged.contains("TRACE") && logged.contains("registry request"), "{logged}");
        for (place, text) in [("shown", &shown), ("logged", &logged)] {
            let text = text.to_ascii_lowercase();
            for mark in [SECRET.to_owned(), basic()] {
                let found = text.find(&mark.to_ascii_lowercase());
                let around = found.map(|at| text.get(at.saturating_sub(300)..(at + 60).min(text.len())));
                assert_eq!(around, None, "{place} by {name:?}");
            }
        }
    }
}
