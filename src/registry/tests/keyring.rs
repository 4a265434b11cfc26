use super::*;

type Data = BTreeMap<String, Vec<u8>>;

fn data(key: &str, value: &str) -> Data {
    BTreeMap::from([(key.to_owned(), value.as_bytes().to_vec())])
}

fn json(value: &str) -> Data {
    data(".dockerconfigjson", value)
}

fn secret(data: &Data) -> PullSecret<'_> {
    let kind = data.keys().next().map_or("x", |key| &key[1..]);
    PullSecret { name: "pull", kind: Box::leak(format!("kubernetes.io/{kind}").into_boxed_str()), data }
}

/// A keyring with one entry per registry name, whose password is the name.
fn keyring(keys: &[&str]) -> Keyring {
    let entries: BTreeMap<_, _> =
        keys.iter().map(|key| (key, serde_json::json!({"username": "u", "password": key}))).collect();
    let data = json(&serde_json::json!({ "auths": entries }).to_string());
    Keyring::from_secrets([secret(&data)]).unwrap()
}

fn passwords(keyring: &Keyring, image: &str) -> Vec<String> {
    let found = keyring.credentials_for(&Repository::parse(image).unwrap());
    found.iter().map(|found| found.password.expose_secret().to_owned()).collect()
}

#[test]
fn matching() {
    let check = |key: &str, image: &str, expected: bool| {
        assert_eq!(!passwords(&keyring(&[key]), image).is_empty(), expected, "{key} for {image}");
    };
    check("ghcr.io", "ghcr.io/org/app", true);
    check("GHCR.io", "ghcr.io/org/app", true);
    check("ghcr.io", "evil.ghcr.io/org/app", false);
    check("ghcr.io", "ghcr.io.evil.com/org/app", false);
    check("https://ghcr.io", "ghcr.io/org/app", true);
    check("https://ghcr.io/", "ghcr.io/org/app", true);
    check("http://ghcr.io/v1/", "ghcr.io/org/app", true);
    check("https://ghcr.io/v2/", "ghcr.io/org/app", true);
    check("https://ghcr.io/v2/org", "ghcr.io/org/app", true);
    check("ghcr.io/org", "ghcr.io/org/app", true);
    check("ghcr.io/org/", "ghcr.io/org/app", true);
    check("ghcr.io/org/app", "ghcr.io/org/app", true);
    check("ghcr.io/org/app/x", "ghcr.io/org/app", false);
    check("ghcr.io/team", "ghcr.io/team-evil/app", false);
    check("ghcr.io/team/ap", "ghcr.io/team/app", false);
    check("ghcr.io/*", "ghcr.io/org/app", false);
    check("*.example.com", "r.example.com/app", true);
    check("*.example.com", "a.r.example.com/app", false);
    check("*.example.com", "example.com/app", false);
    check("*.*.example.com", "a.r.example.com/app", true);
    check("r*y.example.com", "registry.example.com/app", true);
    check("r*y.example.com", "registry2.example.com/app", false);
    check("*.example.com/org", "r.example.com/org/app", true);
    check("*.example.com/org", "r.example.com/other/app", false);
    check("*.*", "ghcr.io/org/app", true);
    check("*", "ghcr.io/org/app", false);
    check("registry:5000", "registry:5000/app", true);
    check("registry:5000", "registry:5001/app", false);
    check("r.example.com", "r.example.com:5000/app", false);
    check("r.example.com:5000", "r.example.com/app", false);
    check("*.example.com:5000", "r.example.com:5000/app", true);
    check("r.example.com:*", "r.example.com:5000/app", false);
    check("registry?.example.com", "registry2.example.com/app", true);
    check("registry?.example.com", "registry.example.com/app", false);
    check("registry[1-3].example.com", "registry2.example.com/app", true);
    check("registry[1-3].example.com", "registry4.example.com/app", false);
    check("[rq].example.com:5000", "r.example.com:5000/app", true);
    check("[^rq].example.com", "r.example.com/app", false);
    check("[^rq].example.com", "s.example.com/app", true);
    check("registry[].example.com", "registry.example.com/app", false);
    check("registry[1.example.com", "registry1.example.com/app", false);
    check(r"r\*.example.com", "r1.example.com/app", false);
    check("[::1]:5000", "1:5000/app", false);
    check("[::1]:5000", "[::1]:5000/app", true);
    check("[::1]:5000", "[::2]:5000/app", false);
    check("docker.io", "alpine", true);
    check("docker.io/library", "alpine", true);
    check("docker.io/org", "alpine", false);
    check("https://index.docker.io/v1/", "alpine", true);
    check("index.docker.io", "docker.io/org/app", true);
    check("https://index.docker.io/v1/", "ghcr.io/alpine", false);
    check("ghcr.io@evil.com", "evil.com/app", false);
    check("", "alpine", false);
    check("ghcr.io:port", "ghcr.io/app", false);
}

#[test]
fn longest_match_first() {
    let check = |keys: &[&str], image: &str, expected: &[&str]| {
        assert_eq!(passwords(&keyring(keys), image), expected, "{keys:?} for {image}");
    };
    check(
        &["ghcr.io", "ghcr.io/org", "ghcr.io/org/app"],
        "ghcr.io/org/app",
        &["ghcr.io/org/app", "ghcr.io/org", "ghcr.io"],
    );
    check(&["*.example.com", "r.example.com"], "r.example.com/a", &["r.example.com", "*.example.com"]);
    check(
        &["*.example.com", "r*.example.com", "re*.example.com"],
        "registry.example.com/a",
        &["re*.example.com", "r*.example.com", "*.example.com"],
    );
    check(&["*.example.com/a", "r.example.com"], "r.example.com/a", &["*.example.com/a", "r.example.com"]);
    // Docker Hub's own key counts only where no other matches.
    check(&["docker.io", "https://index.docker.io/v1/"], "alpine", &["docker.io"]);
}

#[test]
fn several_secrets_in_their_order() {
    let entry =
        |password: &str| json(&format!(r#"{{"auths":{{"ghcr.io":{{"username":"u","password":"{password}"}}}}}}"#));
    let (a, b) = (entry("a"), entry("b"));
    let both = Keyring::from_secrets([secret(&b), secret(&a), secret(&b)]).unwrap();
    assert_eq!(passwords(&both, "ghcr.io/app"), ["b", "a"]);
}

#[test]
fn entries() {
    let check = |entry: &str, expected: Option<(&str, &str, Option<&str>)>| {
        for data in [
            json(&format!(r#"{{"auths":{{"ghcr.io":{entry}}}}}"#)),
            data(".dockercfg", &format!(r#"{{"ghcr.io":{entry}}}"#)),
        ] {
            let keyring = Keyring::from_secrets([secret(&data)]).unwrap();
            let found = keyring.credentials_for(&Repository::parse("ghcr.io/app").unwrap());
            let found: Vec<_> = found
                .iter()
                .map(|found| (found.username.expose_secret(), found.password.expose_secret(), found.identity_token()))
                .collect();
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{entry}");
        }
    };
    check(r#"{"username":"u","password":"p"}"#, Some(("u", "p", None)));
    check(r#"{"auth":"dTpw"}"#, Some(("u", "p", None)));
    check(r#"{"auth":" dTpw\n"}"#, Some(("u", "p", None)));
    check(r#"{"auth":"dTpwOnE="}"#, Some(("u", "p:q", None)));
    check(r#"{"auth":"dTpwOnE"}"#, Some(("u", "p:q", None)));
    check(r#"{"auth":"dTpw","username":"x","password":"y"}"#, Some(("u", "p", None)));
    check(r#"{"auth":"","username":"u","password":"p","email":"e"}"#, Some(("u", "p", None)));
    check(r#"{"identitytoken":"t"}"#, Some(("", "", Some("t"))));
    check(r#"{"auth":"dTo=","identitytoken":"t"}"#, Some(("u", "", Some("t"))));
    check(r#"{"username":"u"}"#, None);
    check("{}", None);
    check("null", None);
}

#[test]
fn unusable_secrets() {
    let check = |data: &Data, kind: &str, expected: &str| {
        let error = Keyring::from_secrets([PullSecret { name: "pull", kind, data }]).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(expected) && text.contains("Secret pull"), "{text} has no {expected:?}");
        assert!(!format!("{text}{error:?}").contains("hunter2"), "{text}");
    };
    let jsonkind = "kubernetes.io/dockerconfigjson";
    check(&json("{}"), "Opaque", "has type Opaque");
    check(&json("{}"), "kubernetes.io/dockercfg", "no key .dockercfg");
    check(&data(".dockercfg", "{}"), jsonkind, "no key .dockerconfigjson");
    check(&json("hunter2"), jsonkind, "line 1, column 1");
    check(&json(r#"{"auths":"hunter2"}"#), jsonkind, "line 1");
    check(&json(r#"{"auths":{"ghcr.io":"hunter2"}}"#), jsonkind, "line 1");
    check(&json(r#"{"auths":{"ghcr.io":{"auth":"hunter2!"}}}"#), jsonkind, "entry 1");
    check(&json(r#"{"auths":{"ghcr.io":{"auth":"aHVudGVyMg=="}}}"#), jsonkind, "entry 1"); // no colon
    check(&json(&" ".repeat(MAX_CONFIG + 1)), jsonkind, "larger than");
    check(&data(".dockercfg", "[]"), "kubernetes.io/dockercfg", "not a docker config");
}

#[test]
fn helpers_are_ignored() {
    let data = json(r#"{"credsStore":"evil","credHelpers":{"ghcr.io":"evil"},"auths":{"ghcr.io":{}}}"#);
    let keyring = Keyring::from_secrets([secret(&data)]).unwrap();
    assert!(keyring.is_empty());
    assert!(Keyring::from_secrets([secret(&json("{}"))]).unwrap().is_empty());
}

#[test]
fn prints_no_secret() {
    let keyring = keyring(&["hunter2.example.com"]);
    let found = keyring.credentials_for(&Repository::parse("hunter2.example.com/app").unwrap());
    let text = format!("{keyring:?} {keyring:#?} {found:?}");
    assert_eq!(found.len(), 1);
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn fingerprints() {
    assert_eq!(keyring(&["a.io", "b.io"]).fingerprint(), keyring(&["b.io", "a.io"]).fingerprint());
    let all = [&["a.io"][..], &["b.io"], &["a.io", "b.io"], &["a.io/b"], &["a.io:1"], &["*.io"], &[]];
    let all: HashSet<_> = all.iter().map(|keys| keyring(keys).fingerprint()).collect();
    assert_eq!(all.len(), 7);
    let of = |username: &str, password: &str| Credentials::basic(username, password).fingerprint();
    assert_ne!(of("ab", "c"), of("a", "bc"));
}

#[test]
fn for_registry() {
    let repository = Repository::parse("ghcr.io/org/app").unwrap();
    let keyring = Keyring::for_registry(&repository, Credentials::basic("u", "p"));
    assert_eq!(passwords(&keyring, "ghcr.io/other"), ["p"]);
    assert_eq!(passwords(&keyring, "quay.io/other"), [""; 0]);
    let hub = Keyring::for_registry(&Repository::parse("alpine").unwrap(), Credentials::basic("u", "p"));
    assert_eq!(passwords(&hub, "redis"), ["p"]);
}

proptest::proptest! {
    #[test]
    fn globs_agree_with_a_regex(glob in r"([ab*?]|\[a\]|\[\^a\]|\[a-b\]){0,6}", label in "[abc]{0,8}") {
        let regex = regex::Regex::new(&format!("^{}$", glob.replace('?', ".").replace('*', ".*"))).unwrap();
        proptest::prop_assert_eq!(glob_matches(&glob, &label), regex.is_match(&label));
    }

    #[test]
    fn keys_never_panic(key in "\\PC{0,40}") {
        let _ = Pattern::parse(&key);
    }
}
