//! The table of what a registry may do: challenges, tokens and realms. Each test is a row of it: the outcome, the number
//! of requests and where credentials went.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use kimup_testbed::{FaultReply, FaultRequest, FaultServer};

use super::fake::limits;
use super::world::{
    ALICE, BOB, Outcome, PUBLIC, World, bearer, challenge, check_within, page, plain_client, redirect, request, status,
    tags, token,
};

/// A registry that is its own token service over plain http: `asks` are its challenges, `gives` answers for a token.
async fn check_tokens(
    users: &[&str],
    asks: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    gives: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    expected: &str,
    authorizations: &[&str],
) -> FaultServer {
    let script = move |seen: &FaultRequest| match (seen.path(), seen.authorization()) {
        ("/token", _) => gives(seen),
        (_, "Bearer good") => tags(&["1"]),
        _ => asks(seen),
    };
    let registry = check_within(limits(), users, script, expected, authorizations.len()).await;
    assert_eq!(registry.authorizations(), authorizations);
    registry
}

fn own_realm(seen: &FaultRequest) -> String {
    format!("http://{}/token", seen.address)
}

#[tokio::test]
async fn row_17_challenges() {
    let bearers: [fn(&str) -> FaultReply; 9] = [
        |realm| challenge(&format!(r#"Bearer realm="{realm}",service="registry",scope="repository:team/app:pull""#)),
        |realm| {
            challenge(&format!(r#"Bearer realm="{realm}",service="registry",scope="repository:team/app:pull,push""#))
        },
        |realm| challenge(&format!(r#"Bearer realm="{realm}",service="registry""#)),
        |realm| challenge(&format!(r#"bEARER REALM="{realm}" , Service=registry"#)),
        |realm| challenge(&format!(r#"Basic realm="a, b", Bearer realm="{realm}",service="registry""#)),
        |realm| challenge(&format!(r#"Bearer realm="{realm}",service="registry", Basic realm="a""#)),
        |realm| challenge(&format!(r#"Bearer error="x, \"y\"",realm="{realm}",service="registry""#)),
        |realm| {
            challenge(r#"Basic realm="a""#)
                .header("www-authenticate", &format!(r#"Bearer realm="{realm}",service="registry""#))
        },
        |realm| {
            challenge("Negotiate").header("www-authenticate", &format!(r#"Bearer realm="{realm}",service="registry""#))
        },
    ];
    for ask in bearers {
        let seen = check_tokens(
            &["alice:a"],
            move |seen| ask(&own_realm(seen)),
            |_| token("good"),
            "1",
            &["", ALICE, "Bearer good"],
        )
        .await;
        let asked = &seen.requests()[1];
        assert_eq!(
            (asked.query("service"), asked.query("scope")),
            ("registry".into(), "repository:team/app:pull".into())
        );
    }
    // The realm's own parameters stay.
    let with_query = |seen: &FaultRequest| bearer(&format!("{}?account=x%26y", own_realm(seen)));
    let seen = check_tokens(&[], with_query, |_| token("good"), "1", &["", "", "Bearer good"]).await;
    assert_eq!(seen.requests()[1].query("account"), "x&y");

    let basic = |seen: &FaultRequest| match seen.authorization() {
        ALICE => tags(&["1"]),
        _ => challenge(r#"bASIC realm="a, b""#),
    };
    check_within(limits(), &["alice:a"], basic, "1", 2).await;
    check_within(limits(), &[], basic, "! unauthorized false", 1).await;
    check_within(limits(), &["bob:b"], basic, "! unauthorized true", 2).await;
    for useless in ["Negotiate", "", "Bearer", r#"Bearer realm="token""#, r#"Digest realm="x", nonce="y""#] {
        let script = move |_: &FaultRequest| challenge(useless);
        check_within(limits(), &["alice:a"], script, "! unauthorized false", 1).await;
    }
}

/// `registry` is asked, its token service is `realm`: whether it was asked, and with what.
async fn check_realm(registry: (&str, &str), realm: (&str, &str), url: &str, allowed: bool) {
    let mut world = World::new();
    let url = url.to_owned();
    let home = world
        .host(registry.0, registry.1, move |seen| match (seen.path(), seen.authorization()) {
            ("/token", _) => token("good"),
            (_, "Bearer good") => tags(&["1"]),
            _ => bearer(&url),
        })
        .await;
    let elsewhere = world.host(realm.0, realm.1, |_| token("good")).await;
    let client = world.client();
    for users in [&["alice:a"][..], &[]] {
        let before = (home.requests().len(), elsewhere.requests().len());
        let outcome = Outcome { result: client.list_tags(&request(registry.0, users)).await };
        let asked = (home.requests().len() - before.0, elsewhere.requests().len() - before.1);
        let context = format!("{registry:?} {realm:?}: {:?}", outcome.result);
        if allowed {
            assert_eq!((outcome.text().as_str(), asked), ("1", (2, 1)), "{context}");
        } else {
            assert!(outcome.text().starts_with("! refused"), "{context}");
            assert_eq!(asked, (1, 0), "{context}");
        }
    }
    if allowed {
        assert_eq!(elsewhere.authorizations(), [ALICE, ""]);
    } else {
        assert_eq!((elsewhere.received().len(), elsewhere.connections()), (0, 0));
    }
    assert!(!String::from_utf8_lossy(&home.received()).contains(ALICE));
}

#[tokio::test]
async fn row_18_realm_on_another_host() {
    let check = check_realm;
    let hub = ("registry-1.docker.io", PUBLIC);
    // `docker.io` is asked at `registry-1.docker.io`.
    let mut world = World::new();
    let registry = world
        .host(hub.0, hub.1, |seen| match seen.authorization() {
            "Bearer good" => tags(&["1"]),
            _ => bearer("https://auth.docker.io/token"),
        })
        .await;
    let auth = world.host("auth.docker.io", "203.0.113.2", |_| token("good")).await;
    assert_eq!(world.list("docker.io", &["alice:a"]).await.text(), "1");
    assert_eq!(registry.requests()[0].path(), "/v2/team/app/tags/list");
    assert_eq!(
        (registry.authorizations(), auth.authorizations()),
        (vec![String::new(), "Bearer good".into()], vec![ALICE.into()])
    );

    let ours = ("registry.example.com", PUBLIC);
    check(ours, ("auth.example.com", "203.0.113.2"), "https://auth.example.com/token", true).await;
    check(ours, ("auth.example.com", "203.0.113.2"), "http://auth.example.com/token", false).await;
    check(ours, ("evil.com", "203.0.113.2"), "https://evil.com/token", false).await;
    check(ours, ("auth.docker.io", "203.0.113.2"), "https://auth.docker.io/token", false).await;
    check(ours, ("example.com.evil.com", "203.0.113.2"), "https://example.com.evil.com/token", false).await;
    check(ours, ("evilexample.com", "203.0.113.2"), "https://evilexample.com/token", false).await;
    check(("r.co.uk", PUBLIC), ("evil.co.uk", "203.0.113.2"), "https://evil.co.uk/token", false).await;
    check(ours, ("a.example.com", "203.0.113.2"), "https://alice@a.example.com/token", false).await;
    check(ours, ("127.0.0.1", "127.0.0.1"), "https://127.0.0.1/token", false).await;
    check(ours, ("127.0.0.1", "127.0.0.1"), "https://169.254.169.254/token", false).await;

    // A name in the registry's domain that leads into a private network: only if the registry is there too.
    for private in ["10.0.0.1", "127.0.0.1", "192.168.1.1", "100.64.0.1", "::1", "fd00::1", "::ffff:10.0.0.1"] {
        check(ours, ("auth.example.com", private), "https://auth.example.com/token", false).await;
        check(
            ("registry.example.com", "10.9.9.9"),
            ("auth.example.com", private),
            "https://auth.example.com/token",
            true,
        )
        .await;
    }
    // Metadata and link-local addresses: never.
    for own in [PUBLIC, "10.9.9.9"] {
        for node in
            ["169.254.169.254", "169.254.1.1", "fe80::1", "fd00:ec2::254", "100.100.100.200", "64:ff9b::a9fe:a9fe"]
        {
            let ours = ("registry.example.com", own);
            check(ours, ("auth.example.com", node), "https://auth.example.com/token", false).await;
        }
    }
}

#[tokio::test]
async fn row_18_one_private_address_is_enough() {
    let mut world = World::new();
    let _registry = world.host("registry.example.com", PUBLIC, |_| bearer("https://auth.example.com/token")).await;
    let auth = world.host("auth.example.com", PUBLIC, |_| token("good")).await;
    world.name("auth.example.com", "10.0.0.1", auth.address());
    assert_eq!(world.list("registry.example.com", &["alice:a"]).await.text(), "! refused Address");
    assert_eq!(auth.connections(), 0);
    // Nor does a registry get into a private network by one private address of its own.
    let auth = world.host("auth2.example.com", "10.0.0.1", |_| token("good")).await;
    let mixed = world.host("mixed.example.com", PUBLIC, |_| bearer("https://auth2.example.com/token")).await;
    world.name("mixed.example.com", "10.0.0.1", mixed.address());
    assert_eq!(world.list("mixed.example.com", &["alice:a"]).await.text(), "! refused Address");
    assert_eq!(auth.connections(), 0);
}

#[tokio::test]
async fn row_18_realms_do_not_redirect() {
    let mut world = World::new();
    let _registry = world.host("registry.example.com", PUBLIC, |_| bearer("https://auth.example.com/token")).await;
    let auth = world.host("auth.example.com", PUBLIC, |_| redirect("https://evil.com/token")).await;
    let evil = world.host("evil.com", PUBLIC, |_| token("good")).await;
    assert_eq!(world.list("registry.example.com", &["alice:a"]).await.text(), "! refused Redirect");
    assert_eq!((auth.requests().len(), evil.connections()), (1, 0));
}

#[tokio::test]
async fn row_19_token_answers() {
    let lists = &["", "", "Bearer good"][..];
    for body in [
        r#"{"token":"good"}"#,
        r#"{"access_token":"good"}"#,
        r#"{"token":"good","access_token":"bad"}"#,
        r#"{"token":"good","expires_in":0}"#,
        r#"{"token":"good","expires_in":-60}"#,
        r#"{"token":"good","expires_in":null,"issued_at":"2001-01-01T00:00:00Z"}"#,
        r#"{"token":"good","expires_in":300,"issued_at":"2094-01-01T00:00:00Z"}"#,
        r#"{"token":"good","expires_in":1e300}"#,
        r#"{"token":"good","expires_in":"soon"}"#,
    ] {
        check_tokens(&[], |seen| bearer(&own_realm(seen)), move |_| FaultReply::new(200, body), "1", lists).await;
    }
    for body in ["", "{}", "null", "<html>", r#"{"token":""}"#, r#"{"token":"a\nb"}"#, r#"{"token":7}"#] {
        let gives = move |_: &FaultRequest| FaultReply::new(200, body);
        check_tokens(&[], |seen| bearer(&own_realm(seen)), gives, "! malformed", &["", ""]).await;
    }
    let huge = |_: &FaultRequest| FaultReply::chunks([(vec![b' '; 1 << 16], usize::MAX)], Duration::ZERO);
    let too_much = format!("! more than {} bytes instead of a token", 256 * 1024);
    check_tokens(&[], |seen| bearer(&own_realm(seen)), huge, &too_much, &["", ""]).await;
}

/// A registry whose tokens are `1`, `2`, …; `accepts` says whether one holds for a page (`""`, `a`, `b`).
fn counting(
    expires_in: &'static str,
    accepts: impl Fn(usize, &str) -> bool + Send + Sync + 'static,
) -> impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static {
    let issued = AtomicUsize::new(0);
    move |seen| {
        if seen.path() == "/token" {
            let nth = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return FaultReply::new(200, format!(r#"{{"token":"{nth}","expires_in":{expires_in}}}"#));
        }
        let held = seen.authorization().strip_prefix("Bearer ").and_then(|token| token.parse().ok()).unwrap_or(0);
        match seen.query("last").as_str() {
            last if held == 0 || !accepts(held, last) => bearer(&own_realm(seen)),
            "" => page("a", &["a"]),
            "a" => page("b", &["b"]),
            _ => tags(&["c"]),
        }
    }
}

#[tokio::test]
async fn row_19_one_refresh_in_the_middle() {
    // The token of the first page does not hold for the second: 3 pages, 2 refusals, 2 tokens.
    let registry =
        check_within(limits(), &["alice:a"], counting("300", |held, last| held == 2 || last.is_empty()), "a b c", 7)
            .await;
    let expected = ["", ALICE, "Bearer 1", "Bearer 1", ALICE, "Bearer 2", "Bearer 2"];
    assert_eq!(registry.authorizations(), expected);
    // One that says when it ends is renewed before it is refused.
    let registry = check_within(limits(), &["alice:a"], counting("1e-9", |_, _| true), "a b c", 7).await;
    let expected = ["", ALICE, "Bearer 1", ALICE, "Bearer 2", ALICE, "Bearer 3"];
    assert_eq!(registry.authorizations(), expected);
}

#[tokio::test]
async fn row_19_a_token_is_kept_for_its_life() {
    // The clock of this test moves by hand: 60 s where the registry says nothing, and a tenth less to be sure.
    let registry = FaultServer::http(counting("null", |_, _| true)).await.unwrap();
    let client = plain_client(&registry, limits());
    let list = async || client.list_tags(&request(&registry.host(), &["alice:a"])).await.unwrap().requests;
    assert_eq!(list().await, 5);
    assert_eq!(list().await, 3);
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(55)).await;
    tokio::time::resume();
    assert_eq!(list().await, 4); // it need not ask again
    assert_eq!(registry.authorizations().iter().filter(|sent| *sent == ALICE).count(), 2);
}

#[tokio::test]
async fn row_19_a_cached_token_is_refused() {
    let revoked = std::sync::Arc::new(AtomicUsize::new(0));
    let until = revoked.clone();
    let registry =
        FaultServer::http(counting("300", move |held, _| held > until.load(Ordering::SeqCst))).await.unwrap();
    let client = plain_client(&registry, limits());
    let list = async || client.list_tags(&request(&registry.host(), &["alice:a"])).await.map(|found| found.requests);
    assert_eq!(list().await, Ok(5));
    revoked.store(1, Ordering::SeqCst);
    assert_eq!(list().await, Ok(5)); // refused, renewed, three pages
    revoked.store(1000, Ordering::SeqCst);
    assert!(list().await.is_err());
    assert_eq!(registry.requests().len(), 5 + 5 + 3); // refused, renewed, refused
}

#[tokio::test]
async fn row_20_refused_again_after_a_refresh() {
    let refused = "! unauthorized true";
    let ask = |seen: &FaultRequest| bearer(&own_realm(seen));
    check_tokens(&["alice:a"], ask, |_| token("bad"), refused, &["", ALICE, "Bearer bad"]).await;
    check_tokens(&[], ask, |_| token("bad"), "! unauthorized false", &["", "", "Bearer bad"]).await;
    check_tokens(&["alice:a"], ask, |_| status(401), refused, &["", ALICE]).await;
    check_tokens(&["alice:a"], ask, |_| status(403), refused, &["", ALICE]).await;
    // On the second page: one refresh, then the end.
    let registry = check_within(limits(), &["alice:a"], counting("300", |_, last| last.is_empty()), refused, 6).await;
    assert_eq!(registry.authorizations(), ["", ALICE, "Bearer 1", "Bearer 1", ALICE, "Bearer 2"]);
    // A token that is refused with 403 may not list: no second one would.
    let forbidden = |seen: &FaultRequest| match (seen.path(), seen.authorization()) {
        ("/token", _) => token("good"),
        (_, "") => bearer(&own_realm(seen)),
        _ => status(403),
    };
    check_within(limits(), &["alice:a"], forbidden, refused, 3).await;
    // A new challenge with each refusal: other realms, other services. Bounded all the same.
    let ever_new = |seen: &FaultRequest| match seen.path() {
        "/v2/team/app/tags/list" => bearer(&format!("http://{}/token{}", seen.address, seen.nth)),
        _ => token(&seen.nth.to_string()),
    };
    check_within(limits(), &["alice:a"], ever_new, refused, 3).await;
    let many: Vec<String> = (0..50).map(|n| format!("user{n}:x")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    check_within(limits(), &many, |_| challenge("Basic"), "! one answer needs more than 12 requests", 12).await;
}

#[tokio::test]
async fn credentials_are_tried_in_turn() {
    let basic = |seen: &FaultRequest| match seen.authorization() {
        BOB => tags(&["1"]),
        _ => challenge("Basic"),
    };
    let registry = check_within(limits(), &["alice:a", "bob:b"], basic, "1", 3).await;
    assert_eq!(registry.authorizations(), ["", ALICE, BOB]);
    let by_token = |seen: &FaultRequest| if seen.authorization() == BOB { token("good") } else { status(401) };
    let expected = ["", ALICE, BOB, "Bearer good"];
    check_tokens(&["alice:a", "bob:b"], |seen| bearer(&own_realm(seen)), by_token, "1", &expected).await;
    // Alice gets a token that does not open this repository.
    let each = |seen: &FaultRequest| token(if seen.authorization() == BOB { "good" } else { "alice" });
    let expected = ["", ALICE, "Bearer alice", BOB, "Bearer good"];
    check_tokens(&["alice:a", "bob:b"], |seen| bearer(&own_realm(seen)), each, "1", &expected).await;
}
