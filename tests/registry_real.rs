//! The registry client and `kimup tags` against the registry that most people run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::HashSet;
use std::path::PathBuf;
use std::process::Stdio;

use kimup::policy::Repository;
use kimup::registry::{Client, Config, Keyring, Limits, ListRequest};
use kimup_testbed::{FaultReply, FaultServer, Registry, TestCa, TokenService, TokenUser};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

const USER: &str = "robot";
const PASSWORD: &str = "r3al-p4ssw0rd";
const WRONG: &str = "wr0ng-p4ssw0rd";
const IDENTITY: &str = "id3ntity-t0ken";
/// base64 of `robot:r3al-p4ssw0rd` and of `robot:wr0ng-p4ssw0rd`.
const ENCODED: [&str; 2] = ["cm9ib3Q6cjNhbC1wNHNzdzByZA==", "cm9ib3Q6d3IwbmctcDRzc3cwcmQ="];
const LOGIN: &str = "--username robot --password-stdin";

/// Runs of `kimup tags`, with nothing of the caller's environment.
#[derive(Default)]
struct Tags {
    env: Vec<(&'static str, String)>,
}

struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Tags {
    async fn run(&self, image: &str, args: &str, stdin: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kimup"));
        command.args(["tags", image]).args(args.split_whitespace()).env_clear().envs(self.env.iter().cloned());
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // It may end before it reads.
        let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes()).await;
        let output = child.wait_with_output().await.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        let ran = Ran { code: output.status.code().unwrap(), stdout: text(output.stdout), stderr: text(output.stderr) };
        for secret in [PASSWORD, WRONG, IDENTITY].iter().chain(&ENCODED) {
            assert!(!ran.stdout.contains(secret) && !ran.stderr.contains(secret), "{image} {args}: {}", ran.stderr);
        }
        ran
    }

    /// It lists these tags, with so many requests.
    async fn lists(&self, image: &str, args: &str, stdin: &str, requests: usize) {
        let ran = self.run(image, &format!("{args} -o json --log-level trace"), stdin).await;
        assert_eq!(ran.code, 0, "{image} {args}: {}", ran.stderr);
        let found: Value = serde_json::from_str(&ran.stdout).unwrap();
        let expected = (&json!(["1.0.0", "1.1.0"]), &json!(0), &json!(requests));
        assert_eq!((&found["tags"], &found["dropped"], &found["requests"]), expected, "{image} {args}");
        assert_eq!(found["image"], image);
    }

    /// It lists nothing and says why.
    async fn fails(&self, image: &str, args: &str, stdin: &str, parts: &[&str]) {
        let ran = self.run(image, &format!("{args} --log-level trace"), stdin).await;
        assert_eq!((ran.code, ran.stdout.as_str()), (1, ""), "{image} {args}: {}", ran.stderr);
        let last = ran.stderr.lines().last().unwrap_or_default();
        for part in parts {
            assert!(last.contains(part), "{image} {args}: {part:?} is not in {last:?}");
        }
    }
}

fn file(folder: &TempDir, name: &str, text: &str) -> String {
    let path: PathBuf = folder.path().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_open_registry() {
    let registry = Registry::open().await.unwrap();
    registry.push_all("team/app", &["1.0.0", "1.1.0"]).await.unwrap();
    let (tags, image) = (Tags::default(), registry.image("team/app"));
    tags.lists(&image, "--plain-http", "", 1).await;
    // Nobody asked for the password.
    tags.lists(&image, &format!("--plain-http {LOGIN}"), PASSWORD, 1).await;
    let gone = ["knows no repository team/none"];
    tags.fails(&registry.image("team/none"), "--plain-http", "", &gone).await;
    tags.fails(&image, "", "", &["is unreachable (tls)", "--plain-http"]).await;
}

#[tokio::test]
async fn a_registry_with_passwords() {
    let registry = Registry::htpasswd(USER, PASSWORD).await.unwrap();
    registry.push_all("team/app", &["1.0.0", "1.1.0"]).await.unwrap();
    let (tags, image, host) = (Tags::default(), registry.image("team/app"), registry.host());
    let folder = tempfile::tempdir().unwrap();
    let login = format!("--plain-http {LOGIN}");
    tags.lists(&image, &login, PASSWORD, 2).await;
    let config = |name: &str, auths: Value| {
        format!("--plain-http --docker-config {}", file(&folder, name, &json!({"auths": auths}).to_string()))
    };
    let auth = |encoded: &str| json!({"auth": encoded});
    tags.lists(&image, &config("right", json!({&host: auth(ENCODED[0])})), "", 2).await;
    // The longest match first; the other one when that is refused.
    let two = json!({format!("{host}/team/app"): auth(ENCODED[1]), &host: auth(ENCODED[0])});
    tags.lists(&image, &config("two", two), "", 3).await;

    let denied = format!("registry {host} denies access (with credentials)");
    tags.fails(&image, &login, WRONG, &[&denied, "(401)"]).await;
    tags.fails(&image, &config("wrong", json!({&host: auth(ENCODED[1])})), "", &[&denied, "(401)"]).await;
    let anonymous = format!("registry {host} denies access (no credentials were sent)");
    tags.fails(&image, "--plain-http", "", &[&anonymous, "--docker-config, or --username"]).await;
    let elsewhere = config("elsewhere", json!({"127.0.0.1:1": auth(ENCODED[0])}));
    tags.fails(&image, &elsewhere, "", &[&anonymous, "the docker config has none for this repository"]).await;
}

/// Two registries whose tokens come from a host of the same domain, as with Docker Hub. The names exist for a proxy only.
struct Domain {
    ca: TestCa,
    tokens: TokenService,
    registry: Registry,
    /// Trusts another token service than the one that it names.
    distrustful: Registry,
    _proxy: FaultServer,
    tags: Tags,
    _folder: TempDir,
}

impl Domain {
    async fn start() -> Self {
        let ca = TestCa::new().unwrap();
        let certificate = |name: &str| ca.server(&[name, "127.0.0.1"]).unwrap();
        let service = async || {
            let user = TokenUser {
                name: USER.to_owned(),
                password: PASSWORD.to_owned(),
                identity_token: IDENTITY.to_owned(),
                pulls: "team/".to_owned(),
            };
            TokenService::start(&certificate("auth.kimup.test"), user).await.unwrap()
        };
        let (tokens, strangers) = (service().await, service().await);
        let start = async |name: &str, tokens| {
            let registry = Registry::https_token(&certificate(name), tokens, "auth.kimup.test").await.unwrap();
            registry.push_all("team/app", &["1.0.0", "1.1.0"]).await.unwrap();
            registry
        };
        let registry = start("registry.kimup.test", &tokens).await;
        registry.push("other/app", "1.0.0").await.unwrap();
        let distrustful = start("distrustful.kimup.test", &strangers).await;
        let routes = [
            ("registry.kimup.test:443", registry.host().parse().unwrap()),
            ("distrustful.kimup.test:443", distrustful.host().parse().unwrap()),
            ("auth.kimup.test:443", tokens.server().address()),
        ];
        let proxy = FaultServer::http(move |request| {
            let route = routes.iter().find(|(name, _)| *name == request.target);
            route.map_or_else(|| FaultReply::new(502, ""), |(_, address)| FaultReply::tunnel(*address))
        });
        let proxy = proxy.await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let root = file(&folder, "ca.crt", ca.pem());
        let env = vec![("HTTPS_PROXY", format!("http://{}", proxy.host())), ("KIMUP_CA_FILE", root)];
        Self { ca, tokens, registry, distrustful, _proxy: proxy, tags: Tags { env }, _folder: folder }
    }

    /// What the token service was asked since the last look: method, how, scope.
    fn asked(&self, before: usize) -> Vec<String> {
        let scope = |query: String| if query.is_empty() { String::new() } else { format!(" {query}") };
        let requests = self.tokens.server().requests().into_iter().skip(before);
        let say = |request: kimup_testbed::FaultRequest| {
            let login = request.authorization().split(' ').next().unwrap_or_default().to_owned();
            format!("{} {login}{}", request.method, scope(request.query("scope")))
        };
        requests.map(say).collect()
    }
}

#[tokio::test]
async fn a_registry_with_tokens() {
    const IMAGE: &str = "registry.kimup.test/team/app";
    let domain = Domain::start().await;
    let tags = &domain.tags;
    let folder = tempfile::tempdir().unwrap();
    // The registry asks for a token, the token service gives one, the registry lists.
    tags.lists(IMAGE, LOGIN, PASSWORD, 3).await;
    assert_eq!(domain.asked(0), ["GET Basic repository:team/app:pull"]);
    let identity = json!({"auths": {"registry.kimup.test": {"identitytoken": IDENTITY}}}).to_string();
    let identity = format!("--docker-config {}", file(&folder, "identity", &identity));
    tags.lists(IMAGE, &identity, "", 3).await;
    assert_eq!(domain.asked(1), ["POST "]);

    let denied = "registry.kimup.test denies access (with credentials)";
    let whose = "its token service auth.kimup.test does not accept the credentials; check the user name";
    tags.fails(IMAGE, LOGIN, WRONG, &[denied, whose]).await;
    assert_eq!(domain.asked(2), ["GET Basic repository:team/app:pull"]);
    // Tokens that open nothing, because nobody asked or because somebody else may.
    tags.fails(IMAGE, "", "", &["registry.kimup.test denies access (no credentials were sent)"]).await;
    assert_eq!(domain.asked(3), ["GET  repository:team/app:pull"]);
    let other = "registry.kimup.test/other/app";
    tags.fails(other, LOGIN, PASSWORD, &["registry.kimup.test denies access (with credentials)"]).await;
    assert_eq!(domain.asked(4), ["GET Basic repository:other/app:pull"]);
    // One whose signature the registry does not trust is not asked for again and again.
    let distrustful = "distrustful.kimup.test/team/app";
    tags.fails(distrustful, LOGIN, PASSWORD, &["distrustful.kimup.test denies access (with credentials)"]).await;
    assert_eq!(domain.asked(5).len(), 1);
}

#[tokio::test]
async fn a_token_service_on_another_host_gets_nothing() {
    let domain = Domain::start().await;
    let folder = tempfile::tempdir().unwrap();
    let certificate = domain.ca.server(&["127.0.0.1"]).unwrap();
    let realm = domain.tokens.server().host();
    let registry = Registry::https_token(&certificate, &domain.tokens, &realm).await.unwrap();
    registry.push("team/app", "1.0.0").await.unwrap();
    let args = format!("{LOGIN} --ca-file {}", file(&folder, "ca.crt", domain.ca.pem()));
    let refused = format!("refused to follow its token realm: {realm}");
    Tags::default().fails(&registry.image("team/app"), &args, PASSWORD, &[&registry.host(), &refused]).await;
    // Nor one that the name of its registry does not lead to.
    domain.tags.fails("127.0.0.1:1/team/app", LOGIN, PASSWORD, &["127.0.0.1:1"]).await;
    assert_eq!((domain.tokens.server().connections(), domain.asked(0).len()), (0, 0));
    drop((domain.registry, domain.distrustful));
}

#[tokio::test]
async fn a_private_certificate_authority() {
    let (ca, other) = (TestCa::new().unwrap(), TestCa::new().unwrap());
    let registry = Registry::https(&ca.server(&["127.0.0.1"]).unwrap()).await.unwrap();
    registry.push_all("team/app", &["1.0.0", "1.1.0"]).await.unwrap();
    let image = registry.image("team/app");
    let folder = tempfile::tempdir().unwrap();
    let (right, wrong) = (file(&folder, "right.crt", ca.pem()), file(&folder, "wrong.crt", other.pem()));
    let both = file(&folder, "both.crt", &format!("# two\n{}\n{}", other.pem(), ca.pem()));
    let tags = Tags::default();
    tags.lists(&image, &format!("--ca-file {right}"), "", 1).await;
    tags.lists(&image, &format!("--ca-file {both}"), "", 1).await;
    tags.lists(&image, "--insecure-skip-tls-verify", "", 1).await;
    tags.lists(&image, &format!("--insecure-skip-tls-verify --ca-file {wrong}"), "", 1).await;
    // What the system trusts is trusted, wherever its certificates are.
    let system = Tags { env: vec![("SSL_CERT_FILE", right.clone())] };
    system.lists(&image, "", "", 1).await;

    let refused = ["is unreachable (tls)", &registry.host(), "--ca-file"];
    tags.fails(&image, "", "", &refused).await;
    tags.fails(&image, &format!("--ca-file {wrong}"), "", &refused).await;
    let empty = file(&folder, "empty.crt", "");
    tags.fails(&image, &format!("--ca-file {empty}"), "", &["is no PEM certificate"]).await;
    tags.fails(&image, &format!("--ca-file {empty}.not"), "", &["--ca-file", "empty.crt.not"]).await;
    tags.fails(&image, "--plain-http", "", &["status 400"]).await;
}

#[tokio::test]
async fn five_thousand_tags() {
    let mut registry = Registry::open().await.unwrap();
    let pushed: Vec<String> = (0..5000).map(|n| format!("1.{}.{}", n / 100, n % 100)).collect();
    registry.push_with_tags("team/app", &pushed).await.unwrap();
    let expected: HashSet<&str> = pushed.iter().map(String::as_str).collect();
    let image = registry.image("team/app");
    rustls::crypto::aws_lc_rs::default_provider().install_default().ok();
    let limits = Limits { rate: 1000.0, ..Limits::default() };
    let config = Config { plain_http: vec![registry.host()], limits, ..Config::default() };
    let client = Client::new(config).unwrap();
    let request = ListRequest {
        repository: Repository::parse(&image).unwrap(),
        keyring: Keyring::default(),
        insecure_skip_tls_verify: false,
    };
    for page in [1000, 100] {
        if page != 1000 {
            registry.start_again_with_pages_of(page).await.unwrap();
        }
        let listing = client.list_tags(&request).await.unwrap();
        let pages = expected.len() / page;
        assert!((pages..=pages + 1).contains(&listing.requests), "{} requests", listing.requests);
        assert_eq!((listing.tags().len(), listing.dropped), (expected.len(), 0));
        assert_eq!(listing.tags().collect::<HashSet<_>>(), expected);

        let ran = Tags::default().run(&image, "--plain-http --registry-rate 1000", "").await;
        assert_eq!(ran.code, 0, "{}", ran.stderr);
        assert_eq!(ran.stdout.lines().count(), expected.len());
        assert_eq!(ran.stdout.lines().collect::<HashSet<_>>(), expected);
        // A part is never told.
        let cap = format!("--plain-http --registry-rate 1000 --registry-max-pages {}", pages - 1);
        Tags::default().fails(&image, &cap, "", &["sent too much", "raise --registry-max-pages"]).await;
    }
}

/// Hosts of `--registry-config` stand for names that nobody could ask: they end in `.test` (RFC 6761).
#[tokio::test]
async fn a_registry_configuration() {
    let ca = TestCa::new().unwrap();
    let private = Registry::https(&ca.server(&["127.0.0.1"]).unwrap()).await.unwrap();
    let open = Registry::open().await.unwrap();
    private.push_all("team/app", &["1.0.0", "1.1.0"]).await.unwrap();
    open.push_all("hub/team/app", &["1.0.0", "1.1.0"]).await.unwrap();
    open.push("team/app", "9.0.0").await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    file(&folder, "ca.pem", ca.pem());
    let (private, open) = (private.host(), open.host());
    let text = format!(
        r#"
        [[registry]]
        prefix = "{private}"
        ca-file = "ca.pem"
        [[registry]]
        prefix = "{open}"
        plain-http = true
        [[registry]]
        prefix = "apps.test/west"
        location = "{private}/team"
        ca-file = "ca.pem"
        [[registry]]
        prefix = "mirrored.test"
        [[registry.mirror]]
        location = "127.0.0.1:1"
        [[registry.mirror]]
        location = "{open}/hub"
        plain-http = true
        [[registry]]
        prefix = "behind.test"
        location = "{private}"
        ca-file = "ca.pem"
        [[registry.mirror]]
        location = "{open}/none"
        plain-http = true
        "#
    );
    let config = format!("--registry-config {}", file(&folder, "registries.toml", &text));
    let tags = Tags::default();
    // A private CA, plain HTTP, another place.
    tags.lists(&format!("{private}/team/app"), &config, "", 1).await;
    tags.lists(&format!("{open}/hub/team/app"), &config, "", 1).await;
    tags.lists("apps.test/west/app", &config, "", 1).await;
    // One mirror is down; one has no such repository. Both are told without being asked.
    tags.lists("mirrored.test/team/app", &config, "", 2).await;
    tags.lists("behind.test/team/app", &config, "", 2).await;
    let ran = tags.run("mirrored.test/team/app", &config, "").await;
    assert!(ran.stderr.contains("a mirror fails") && ran.stderr.contains("127.0.0.1:1/team/app"), "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("2 tags from http://{open}")), "{}", ran.stderr);
    // The table is about a part of the host.
    tags.fails("apps.test/east/app", &config, "", &["apps.test", "is unreachable (dns)"]).await;
    // What stands beside it counts for others still.
    tags.fails(&format!("{private}/team/app"), "", "", &["is unreachable (tls)", "--ca-file"]).await;
}
