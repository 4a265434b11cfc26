use super::*;

fn parse(text: &str) -> Result<Registries, RegistriesError> {
    Registries::parse(text, &|path| Err(format!("no {}", path.display())))
}

#[test]
fn mistakes_are_named() {
    let check = |text: &str, line: usize, part: &str| {
        let error = parse(text).unwrap_err();
        assert!(error.line == line && error.cause.contains(part), "{text}: {error}");
    };
    let registry = |rest: &str| format!("[[registry]]\nprefix = 'r.io'\n{rest}");
    check("[[registry]]", 1, "neither prefix nor location");
    check("\n\n[[registry]]\nprefix = 'r.io'\nblocked = true", 5, "unknown field `blocked`");
    check("unqualified-search-registries = ['docker.io']", 1, "unknown field");
    check(&registry("insecure = true"), 3, "plain-http = true for HTTP, or skip-verify");
    check(&registry("insecure = false"), 3, "plain-http = true for HTTP, or skip-verify");
    check(&registry("plain-http = 'yes'"), 3, "expected a boolean");
    check(&registry("plain-http = true\nplain-http = true"), 4, "duplicate");
    check(&registry("plain-http = true\nskip-verify = true"), 1, "no certificates");
    check(&registry("plain-http = true\nca-file = 'x'"), 1, "no certificates");
    check(&registry("ca-file = 'x'"), 1, "ca-file: no x");
    check(&registry("client-cert-file = 'x'"), 1, "go together");
    check(&registry("client-key-file = 'x'"), 1, "go together");
    check(&registry("token-hosts = ['https://a.io/']"), 1, "token-hosts");
    check(&registry("[[registry.mirror]]"), 3, "without location");
    check(&registry("[[registry.mirror]]\nlocation = 'm.io'\nprefix = 'x.io'"), 3, "neither a prefix nor mirrors");
    check(&registry("[[registry.mirror]]\nlocation = 'm.io'\nunknown = 1"), 5, "unknown field `unknown`");
    check(&registry(&"[[registry.mirror]]\nlocation = 'm.io'\n".repeat(11)), 1, "more than 10 mirrors");
    check(&registry("[[registry]]\nprefix = 'r.io'"), 3, "a second [[registry]] for r.io");
    for (place, part) in [
        ("https://r.io", "leave out the scheme"),
        ("*.r.io", "wildcards"),
        ("team/app", "no host"),
        ("", "no host"),
        ("r.io/", "HOST[:PORT][/PATH]"),
        ("r.io/Team", "lower case"),
        ("r.io:x", "HOST[:PORT][/PATH]"),
    ] {
        check(&format!("[[registry]]\nprefix = '{place}'"), 1, part);
        check(&format!("[[registry]]\nprefix = 'r.io'\nlocation = '{place}'"), 1, part);
        check(&registry(&format!("[[registry.mirror]]\nlocation = '{place}'")), 3, part);
    }
    assert_eq!(
        parse(&(0..1001).map(|n| format!("[[registry]]\nprefix = 'r{n}.io'\n")).collect::<Vec<_>>().concat())
            .map_err(|e| e.line)
            .unwrap_err(),
        2001
    );
}

const FILE: &str = "
[[registry]]
prefix = 'docker.io'
[[registry.mirror]]
location = 'mirror.io/hub'
[[registry.mirror]]
location = 'plain.io:5000'
plain-http = true

[[registry]]
prefix = 'docker.io/team'
location = 'team.io'

[[registry]]
location = 'old.io/a'
prefix = 'old.io/a/b'

[[registry]]
prefix = 'loose.io'
skip-verify = true
[[registry.mirror]]
location = 'mirror.io/loose'

[[registry]]
prefix = 'one.io/app'
location = 'two.io/other'
";

#[test]
fn repositories_have_endpoints() {
    let registries = parse(FILE).unwrap();
    let plain_http = PlainHttp::parse(&registries.plain_http().collect::<Vec<_>>()).unwrap();
    let hosts = registries.hosts(&plain_http).unwrap();
    let check = |image: &str, skip_verify: bool, expected: &str| {
        let repository = Repository::parse(image).unwrap();
        let found = registries.endpoints(&repository, skip_verify, &hosts, &plain_http).unwrap();
        let text = found.iter().map(|endpoint| {
            let url = origin::repository_url(&endpoint.repository, &plain_http, "").unwrap();
            format!("{url}{}", if endpoint.skip_verify { "!" } else { "" })
        });
        assert_eq!(text.collect::<Vec<_>>().join(" "), expected, "{image}");
    };
    let hub = "https://mirror.io/v2/hub/library/alpine/ http://plain.io:5000/v2/library/alpine/";
    check("alpine", false, &format!("{hub} https://registry-1.docker.io/v2/library/alpine/"));
    check("alpine", true, &format!("{hub} https://registry-1.docker.io/v2/library/alpine/!"));
    check("team/app", false, "https://team.io/v2/app/");
    check("team/app", true, "https://team.io/v2/app/");
    check("team/app/sub", false, "https://team.io/v2/app/sub/");
    check(
        "docker.io/team-evil/app",
        false,
        "https://mirror.io/v2/hub/team-evil/app/ http://plain.io:5000/v2/team-evil/app/ \
        https://registry-1.docker.io/v2/team-evil/app/",
    );
    check("old.io/a/b/c", false, "https://old.io/v2/a/c/");
    check("old.io/a/bc", false, "https://old.io/v2/a/bc/");
    check("loose.io/x", false, "https://mirror.io/v2/loose/x/ https://loose.io/v2/x/!");
    check("mirror.io/hub/x", false, "https://mirror.io/v2/hub/x/");
    check("plain.io:5000/x", true, "http://plain.io:5000/v2/x/!");
    check("plain.io/x", false, "https://plain.io/v2/x/");
    check("one.io/app", false, "https://two.io/v2/other/");
    check("one.io/app/sub", false, "https://two.io/v2/other/sub/");
    check("else.io:5000/x", true, "https://else.io:5000/v2/x/!");
}

#[test]
fn a_host_is_reached_in_one_way() {
    let check = |text: &str, expected: Option<&str>| {
        let registries = parse(text).unwrap();
        let plain_http = PlainHttp::parse(&registries.plain_http().collect::<Vec<_>>()).unwrap();
        let error = registries.hosts(&plain_http).err().map(|error| error.to_string());
        assert!(error.as_deref().unwrap_or("none").contains(expected.unwrap_or("none")), "{text}: {error:?}");
    };
    let two = |a: &str, b: &str| format!("[[registry]]\nprefix = 'r.io/a'\n{a}\n[[registry]]\nprefix = 'r.io/b'\n{b}");
    check(&two("skip-verify = true", ""), None);
    check(&two("skip-verify = true", "skip-verify = true"), None);
    check(&two("skip-verify = true", "token-hosts = ['a.io']"), Some("lines 1 and 4 two things about r.io"));
    let other = two("skip-verify = true", "token-hosts = ['a.io']").replace("r.io/b", "r.io:443/b");
    check(&other, Some("two things about r.io:443"));
}

#[test]
fn the_documented_examples_are_read() {
    let text = include_str!("../../../docs/registries.md");
    let made = rcgen::generate_simple_self_signed(vec!["r.io".to_owned()]).unwrap();
    let read = |path: &Path| match path.to_str() {
        Some("client-key.pem") => Ok(made.signing_key.serialize_pem().into_bytes()),
        Some("ca.pem" | "client.pem") => Ok(made.cert.pem().into_bytes()),
        _ => Err("not found".to_owned()),
    };
    let examples: Vec<_> = text.split("```toml\n").skip(1).map(|rest| rest.split("```").next().unwrap()).collect();
    assert_eq!(examples.len(), 5);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    for example in &examples {
        let registries = Registries::parse(example, &read).unwrap_or_else(|error| panic!("{example}: {error}"));
        let config = crate::registry::Config { registries, ..Default::default() };
        assert!(crate::registry::Client::new(config).is_ok(), "{example}");
    }
}
