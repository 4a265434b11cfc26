//! The table of what a registry may do: other hosts, redirects, certificates, names, proxies. Each test is a row of it: the
//! outcome, the number of requests and where credentials went.

use kimup_testbed::{FaultReply, FaultRequest, FaultServer, ServerCertificate, TestCa};

use super::super::{Client, Config};
use super::fake::limits;
use super::world::{
    ALICE, PUBLIC, World, bearer, challenge, check, link, page, plain_client, redirect, request, tags, token,
};
use crate::policy::Repository;

const OURS: &str = "registry.example.com";

/// Answers the first request of those who log in.
fn with_login(seen: &FaultRequest, then: impl Fn() -> FaultReply) -> FaultReply {
    if seen.authorization() == ALICE { then() } else { challenge("Basic") }
}

/// The registry sends this to alice; another host, `cdn.net`, answers with tags. Outcome, requests here and there.
async fn check_elsewhere(reply: FaultReply, cdn: &str, expected: &str, requests: (usize, usize)) {
    let mut world = World::new();
    let registry = world.host(OURS, PUBLIC, move |seen| with_login(seen, || reply.clone())).await;
    let cdn = world.host("cdn.net", cdn, |_| tags(&["c"])).await;
    // The same host without TLS, should anybody ask.
    let plain = FaultServer::http(|_| tags(&["p"])).await.unwrap();
    let outcome = world.list(OURS, &["alice:a"]).await;
    let asked = (registry.requests().len(), cdn.requests().len());
    assert_eq!((outcome.text().as_str(), asked), (expected, requests), "{:?}", outcome.result);
    assert!(cdn.authorizations().iter().all(String::is_empty));
    assert!(!String::from_utf8_lossy(&cdn.received()).contains(ALICE));
    assert_eq!(plain.connections(), 0);
    if requests.1 == 0 {
        assert_eq!(cdn.connections(), 0);
    }
}

#[tokio::test]
async fn row_07_link_to_another_host() {
    for elsewhere in [
        "<https://cdn.net/v2/team/app/tags/list?last=a>; rel=next",
        "<//cdn.net/v2/team/app/tags/list?last=a>; rel=next",
        r"<\\cdn.net/v2/team/app/tags/list?last=a>; rel=next",
        "<https://registry.example.com:444/v2/team/app/tags/list?last=a>; rel=next",
        "<https://registry.example.com.cdn.net/v2/team/app/tags/list?last=a>; rel=next",
        "<https://registry.example.com@cdn.net/v2/team/app/tags/list?last=a>; rel=next",
        "<https://169.254.169.254/latest>; rel=next",
        "</v2/team/other/tags/list?last=a>; rel=next",
        "</v2/team/app/../../other/tags/list?last=a>; rel=next",
    ] {
        check_elsewhere(link(elsewhere, &["a"]), PUBLIC, "! refused Link", (2, 0)).await;
    }
}

#[tokio::test]
async fn row_07_relative_link_after_a_redirect() {
    let mut world = World::new();
    let to = "https://cdn.net/v2/team/app/tags/list";
    let registry = world.host(OURS, PUBLIC, move |seen| with_login(seen, || redirect(to))).await;
    let cdn = world.host("cdn.net", PUBLIC, |_| page("a", &["a"])).await;
    assert_eq!(world.list(OURS, &["alice:a"]).await.text(), "! refused Link");
    assert_eq!((registry.requests().len(), cdn.authorizations()), (2, vec![String::new()]));
}

#[tokio::test]
async fn row_08_link_to_http() {
    for downgrade in ["http://registry.example.com", "http://registry.example.com:443", "ftp://registry.example.com"] {
        let to = format!("<{downgrade}/v2/team/app/tags/list?last=a>; rel=next");
        check_elsewhere(link(&to, &["a"]), PUBLIC, "! refused Link", (2, 0)).await;
    }
}

#[tokio::test]
async fn row_25_redirects() {
    // Same host: followed, with credentials.
    let mut world = World::new();
    let moved = |seen: &FaultRequest| match seen.path() {
        "/moved" => with_login(seen, || tags(&["1"])),
        _ => redirect("/moved"),
    };
    let registry = world.host(OURS, PUBLIC, moved).await;
    assert_eq!(world.list(OURS, &["alice:a"]).await.text(), "1");
    assert_eq!(registry.authorizations(), ["", "", ALICE, ALICE]);
    for code in [301, 302, 303, 307, 308] {
        let once = move |seen: &FaultRequest| match seen.path() {
            "/moved" => tags(&["1"]),
            _ => FaultReply::new(code, "").header("location", "/moved"),
        };
        check(once, "1", 2).await;
    }

    // Another host: followed without credentials, over https only.
    check_elsewhere(redirect("https://cdn.net/x"), PUBLIC, "c", (2, 1)).await;
    check_elsewhere(redirect("http://cdn.net/x"), PUBLIC, "! refused Redirect", (2, 0)).await;
    check_elsewhere(redirect("http://registry.example.com/x"), PUBLIC, "! refused Redirect", (2, 0)).await;
    check_elsewhere(redirect("file:///etc/passwd"), PUBLIC, "! refused Redirect", (2, 0)).await;
    check_elsewhere(redirect("https://alice:a@cdn.net/x"), PUBLIC, "! refused Address", (2, 0)).await;
    check_elsewhere(redirect("https://169.254.169.254/x"), PUBLIC, "! refused Address", (2, 0)).await;
    check_elsewhere(redirect("https://[::ffff:a9fe:a9fe]/x"), PUBLIC, "! refused Address", (2, 0)).await;
    check_elsewhere(redirect("https://2852039166/x"), PUBLIC, "! refused Address", (2, 0)).await;
    check_elsewhere(redirect("https://10.0.0.1/x"), PUBLIC, "! refused Address", (2, 0)).await;
    check_elsewhere(redirect("https://127.0.0.1/x"), PUBLIC, "! refused Address", (2, 0)).await;
    for address in ["169.254.169.254", "fe80::1", "10.0.0.1", "127.0.0.1", "::1"] {
        check_elsewhere(redirect("https://cdn.net/x"), address, "! refused Address", (2, 0)).await;
    }
    check_elsewhere(FaultReply::new(307, ""), PUBLIC, "! malformed", (2, 0)).await;
    check(|seen| redirect(&format!("/{}", seen.nth)), "! refused Redirect", 6).await;
    check(|seen| if seen.nth < 5 { redirect(&format!("/{}", seen.nth)) } else { tags(&["1"]) }, "1", 6).await;
}

#[tokio::test]
async fn row_25_credentials_do_not_come_back_from_elsewhere() {
    let mut world = World::new();
    let registry = world
        .host(OURS, PUBLIC, |seen| match seen.path() {
            "/back" => tags(&["1"]),
            _ => with_login(seen, || redirect("https://cdn.net/")),
        })
        .await;
    let cdn = world.host("cdn.net", PUBLIC, |_| redirect("https://registry.example.com/back")).await;
    assert_eq!(world.list(OURS, &["alice:a"]).await.text(), "1");
    assert_eq!(registry.authorizations(), ["", ALICE, ""]);
    assert_eq!(cdn.authorizations(), [""]);
}

#[tokio::test]
async fn row_25_a_challenge_from_elsewhere_is_not_answered() {
    for ask in [challenge("Basic"), bearer("https://auth.example.com/token")] {
        let mut world = World::new();
        let registry = world.host(OURS, PUBLIC, |seen| with_login(seen, || redirect("https://cdn.net/"))).await;
        let cdn = world.host("cdn.net", PUBLIC, move |_| ask.clone()).await;
        let auth = world.host("auth.example.com", PUBLIC, |_| token("t")).await;
        assert_eq!(world.list(OURS, &["alice:a"]).await.text(), "! unauthorized false");
        assert_eq!((registry.requests().len(), cdn.authorizations(), auth.connections()), (2, vec![String::new()], 0));
    }
}

#[tokio::test]
async fn row_30_certificates() {
    let (ca, other) = (TestCa::new().unwrap(), TestCa::new().unwrap());
    let check = async |certificate: ServerCertificate, trust: Option<&str>, skip_verify: bool, accepted: bool| {
        let registry = FaultServer::https(&certificate, |seen| with_login(seen, || tags(&["1"]))).await.unwrap();
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let pem = trust.map(|pem| pem.as_bytes().to_vec());
        let client = super::fake::client(Config { limits: limits(), extra_ca_pem: pem, ..Config::default() });
        let mut request = request(&registry.host(), &["alice:a"]);
        request.insecure_skip_tls_verify = skip_verify;
        let outcome = super::world::Outcome { result: client.list_tags(&request).await };
        let expected = if accepted { ("1", 2) } else { ("! unreachable tls", 0) };
        assert_eq!((outcome.text().as_str(), registry.requests().len()), expected, "{:?}", outcome.result);
        // Another Image of the same host that did not ask for it, on the same client.
        request.insecure_skip_tls_verify = false;
        let outcome = super::world::Outcome { result: client.list_tags(&request).await };
        let trusted = accepted && !skip_verify;
        assert_eq!(outcome.text(), if trusted { "1" } else { "! unreachable tls" });
    };
    let names = ["127.0.0.1"];
    check(ca.server(&names).unwrap(), Some(ca.pem()), false, true).await;
    check(ca.server(&names).unwrap(), None, false, false).await;
    check(ca.server(&names).unwrap(), Some(other.pem()), false, false).await;
    check(ca.server(&["localhost"]).unwrap(), Some(ca.pem()), false, false).await;
    check(ca.expired(&names).unwrap(), Some(ca.pem()), false, false).await;
    check(ServerCertificate::self_signed(&names).unwrap(), Some(ca.pem()), false, false).await;
    check(ServerCertificate::self_signed(&names).unwrap(), None, true, true).await;
    check(ca.expired(&["localhost"]).unwrap(), None, true, true).await;
}

#[tokio::test]
async fn row_30_the_exception_holds_for_the_registry_only() {
    for elsewhere in ["auth.example.com", "registry.example.com"] {
        let mut world = World::new();
        let theirs = TestCa::new().unwrap();
        let url = format!("https://{elsewhere}{}/token", if elsewhere == OURS { ":444" } else { "" });
        let registry = world.host_with(&theirs.server(&[OURS]).unwrap(), OURS, PUBLIC, move |_| bearer(&url)).await;
        let certificate = theirs.server(&["auth.example.com"]).unwrap();
        let auth = world.host_with(&certificate, "auth.example.com", PUBLIC, |_| token("t")).await;
        let mut request = request(OURS, &["alice:a"]);
        request.insecure_skip_tls_verify = true;
        let outcome = super::world::Outcome { result: world.client().list_tags(&request).await };
        assert!(outcome.text().starts_with("! unreachable"), "{:?}", outcome.result);
        assert_eq!((registry.requests().len(), auth.received().len()), (1, 0));
    }
}

#[tokio::test]
async fn row_31_addresses() {
    let mut world = World::new();
    let hub = world.host("registry-1.docker.io", PUBLIC, |_| tags(&["1"])).await;
    let ours = world.host(OURS, PUBLIC, |_| tags(&["1"])).await;
    let client = world.client();
    let check = async |server: &FaultServer, image: &str, path: &str, host: &str| {
        let repository = Repository::parse(image).unwrap();
        let request = super::super::ListRequest {
            repository,
            keyring: super::super::Keyring::default(),
            insecure_skip_tls_verify: false,
        };
        client.list_tags(&request).await.unwrap();
        let seen = server.requests();
        let seen = seen.last().unwrap();
        assert_eq!((seen.path(), seen.header("host").unwrap_or_default()), (path, host), "{image}");
    };
    check(&hub, "alpine", "/v2/library/alpine/tags/list", "registry-1.docker.io").await;
    check(&hub, "docker.io/alpine", "/v2/library/alpine/tags/list", "registry-1.docker.io").await;
    check(&hub, "docker.io/org/app", "/v2/org/app/tags/list", "registry-1.docker.io").await;
    check(&hub, "index.docker.io/org/app", "/v2/org/app/tags/list", "registry-1.docker.io").await;
    check(&ours, "Registry.EXAMPLE.com/org/app", "/v2/org/app/tags/list", OURS).await;
    check(&ours, "registry.example.com:443/org/app", "/v2/org/app/tags/list", OURS).await;
    assert_eq!((hub.requests().len(), ours.requests().len()), (4, 2));

    // A port, and an IPv6 literal, on a real socket.
    let script = |_: &FaultRequest| tags(&["1"]);
    let certificate = world.ca.server(&["::1"]).unwrap();
    let v6 = FaultServer::https_on("[::1]:0", &certificate, script).await.unwrap();
    assert_eq!(world.list(&v6.host(), &[]).await.text(), "1");
    assert!(v6.host().starts_with("[::1]:"));
    assert_eq!(v6.requests()[0].header("host"), Some(v6.host().as_str()));
}

#[tokio::test]
async fn row_32_names() {
    let mut world = World::new();
    for (nth, address) in
        ["169.254.169.254", "169.254.1.1", "fe80::1", "fd00:ec2::254", "100.100.100.200"].into_iter().enumerate()
    {
        let name = format!("r{nth}.example.com");
        let registry = world.host(&name, address, |_| tags(&["1"])).await;
        assert_eq!(world.list(&name, &["alice:a"]).await.text(), "! refused Address", "{address}");
        assert_eq!(registry.connections(), 0);
    }
    // One bad address among good ones.
    let registry = world.host("mixed.example.com", PUBLIC, |_| tags(&["1"])).await;
    world.name("mixed.example.com", "169.254.169.254", registry.address());
    assert_eq!(world.list("mixed.example.com", &[]).await.text(), "! refused Address");
    assert_eq!(registry.connections(), 0);
    assert_eq!(world.list("169.254.169.254", &[]).await.text(), "! refused Address");
    // Private registries are what many have.
    let private = world.host("private.example.com", "10.0.0.1", |_| tags(&["1"])).await;
    assert_eq!(world.list("private.example.com", &[]).await.text(), "1");
    assert_eq!(private.requests().len(), 1);

    let unknown = super::fake::client(Config { limits: limits(), ..Config::default() });
    let outcome = super::world::Outcome { result: unknown.list_tags(&request("registry.invalid", &[])).await };
    assert_eq!(outcome.text(), "! unreachable dns");
}

#[tokio::test]
async fn row_30_a_certificate_of_many_names_is_a_short_error() {
    let ca = TestCa::new().unwrap();
    let names: Vec<String> = (0..500).map(|n| format!("host{n}.example.com")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let registry = FaultServer::https(&ca.server(&names).unwrap(), |_| tags(&["1"])).await.unwrap();
    let pem = Some(ca.pem().as_bytes().to_vec());
    let client = super::fake::client(Config { limits: limits(), extra_ca_pem: pem, ..Config::default() });
    let error = client.list_tags(&request(&registry.host(), &[])).await.unwrap_err().to_string();
    assert!(error.contains("(tls)") && error.len() < 500, "{error}");
}

/// Marks the process that [`row_34_proxies`] starts with the variables set: nothing else may change them for this one.
const PROXY_CHILD: &str = "KIMUP_TEST_PROXY_CHILD";

#[tokio::test]
async fn row_34_proxies() {
    let ca = TestCa::new().unwrap();
    let certificate = ca.server(&["registry.example.com", "auth.example.com"]).unwrap();
    let https = FaultServer::https(&certificate, |seen| match (seen.path(), seen.authorization()) {
        ("/token", _) => token("good"),
        (_, "Bearer good") => tags(&["https"]),
        _ => bearer("https://auth.example.com/token"),
    })
    .await
    .unwrap();
    let behind = https.address();
    let proxy = FaultServer::http(move |seen| match seen.method.as_str() {
        "CONNECT" => FaultReply::tunnel(behind),
        _ if seen.target.starts_with("http://plain.example.com/v2/team/app/tags/list") => tags(&["http"]),
        _ => FaultReply::new(502, ""),
    })
    .await
    .unwrap();
    let direct = FaultServer::http(|_| tags(&["direct"])).await.unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), ca.pem()).unwrap();
    let address = format!("http://{}", proxy.host());
    let child = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "registry::tests::rows_hosts::row_34_child", "--nocapture"])
        .env(PROXY_CHILD, format!("{} {}", direct.host(), file.path().display()))
        .env("HTTP_PROXY", &address)
        .env("http_proxy", &address)
        .env("HTTPS_PROXY", &address)
        .env("NO_PROXY", "127.0.0.1,other.example.com")
        .env_remove("no_proxy")
        .env_remove("https_proxy")
        .env_remove("ALL_PROXY")
        .env_remove("all_proxy")
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&child.stdout).into_owned() + &String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success() && text.contains("1 passed"), "{text}");
    let lines: Vec<String> = proxy
        .requests()
        .iter()
        .map(|seen| format!("{} {}", seen.method, seen.target.split('?').next().unwrap()))
        .collect();
    let expected = [
        "GET http://plain.example.com/v2/team/app/tags/list",
        "CONNECT registry.example.com:443",
        "CONNECT auth.example.com:443",
    ];
    assert_eq!(lines, expected);
    assert_eq!(direct.requests().len(), 1);
    assert_eq!(https.authorizations(), ["", ALICE, "Bearer good"]);
    assert!(!String::from_utf8_lossy(&proxy.received()).contains(ALICE));
}

/// Lists with the proxies of the environment. Does nothing unless [`row_34_proxies`] starts it.
#[tokio::test]
async fn row_34_child() {
    let Ok(given) = std::env::var(PROXY_CHILD) else { return };
    let (direct, pem) = given.split_once(' ').unwrap();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let config = Config {
        plain_http: vec!["plain.example.com".to_owned(), direct.to_owned()],
        limits: limits(),
        extra_ca_pem: Some(std::fs::read(pem).unwrap()),
        ..Config::default()
    };
    let client = Client::new(config).unwrap();
    for (host, expected) in [("plain.example.com", "http"), (OURS, "https"), (direct, "direct")] {
        let outcome = super::world::Outcome { result: client.list_tags(&request(host, &["alice:a"])).await };
        assert_eq!(outcome.text(), expected, "{host}: {:?}", outcome.result);
    }
    // What is written as an address is judged all the same.
    let outcome = super::world::Outcome { result: client.list_tags(&request("169.254.169.254", &[])).await };
    assert_eq!(outcome.text(), "! refused Address");
}

#[tokio::test]
async fn unreachable_hosts() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let client = super::fake::client(Config { plain_http: vec![free.clone()], limits: limits(), ..Config::default() });
    let outcome = super::world::Outcome { result: client.list_tags(&request(&free, &[])).await };
    assert_eq!(outcome.text(), "! unreachable connect");
    // A plain-http registry that was not declared so.
    let plain = FaultServer::http(|_| tags(&["1"])).await.unwrap();
    let client = super::fake::client(Config { limits: limits(), ..Config::default() });
    let outcome = super::world::Outcome { result: client.list_tags(&request(&plain.host(), &["alice:a"])).await };
    assert_eq!(outcome.text(), "! unreachable tls");
    assert!(!String::from_utf8_lossy(&plain.received()).contains(ALICE));
    let declared = plain_client(&plain, limits());
    assert!(declared.list_tags(&request(&plain.host(), &[])).await.is_ok());
}
