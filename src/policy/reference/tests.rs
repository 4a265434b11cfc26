use super::*;
use proptest::prelude::*;

const SHA256: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

#[test]
fn repositories_are_normalised() {
    let check = |text: &str, host: &str, path: &str| {
        let repository = Repository::parse(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((repository.host(), repository.path()), (host, path), "{text}");
        assert_eq!(repository.to_string(), format!("{host}/{path}"));
    };
    check("alpine", "docker.io", "library/alpine");
    check("library/alpine", "docker.io", "library/alpine");
    check("org/app", "docker.io", "org/app");
    check("docker.io/alpine", "docker.io", "library/alpine");
    check("docker.io/library/alpine", "docker.io", "library/alpine");
    check("index.docker.io/alpine", "docker.io", "library/alpine");
    check("registry-1.docker.io/library/alpine", "docker.io", "library/alpine");
    check("Docker.IO/alpine", "docker.io", "library/alpine");
    check("docker.io:443/alpine", "docker.io:443", "alpine");
    check("ghcr.io/org/app", "ghcr.io", "org/app");
    check("GHCR.io/org/app", "ghcr.io", "org/app");
    check("registry:5000/app", "registry:5000", "app");
    check("registry:05000/app", "registry:5000", "app");
    check("registry:65535/app", "registry:65535", "app");
    check("localhost/app", "localhost", "app");
    check("localhost:5000/app", "localhost:5000", "app");
    check("Registry/app", "registry", "app");
    check("registry/app", "docker.io", "registry/app");
    check("127.0.0.1:5000/app", "127.0.0.1:5000", "app");
    check("[::1]:5000/app", "[::1]:5000", "app");
    check("[2001:DB8::1]/a/b", "[2001:db8::1]", "a/b");
    check("xn--bcher-kva.example/app", "xn--bcher-kva.example", "app");
    check("a.b/c/d/e/f", "a.b", "c/d/e/f");
    check("a_b__c-d---e.f", "docker.io", "library/a_b__c-d---e.f");
    check("localhost", "docker.io", "library/localhost");
}

#[test]
fn repositories_are_refused() {
    let check = |text: &str, problem: Problem| {
        let error = Repository::parse(text).unwrap_err();
        assert_eq!(error.problem(), problem, "{text}");
        assert!(error.to_string().starts_with("invalid image ") && error.to_string().len() < 500, "{error}");
    };
    check("", Problem::Empty);
    check("alpine:3", Problem::UnexpectedTag);
    check("alpine:", Problem::UnexpectedTag);
    check("registry:5000", Problem::UnexpectedTag);
    check("registry:5000/app:1", Problem::UnexpectedTag);
    check(&format!("alpine@{SHA256}"), Problem::UnexpectedDigest);
    check(&format!("alpine:1@{SHA256}"), Problem::UnexpectedDigest);
    check("Alpine", Problem::UpperCase);
    check("ghcr.io/Org/app", Problem::UpperCase);
    check("registry:0/app", Problem::Port);
    check("registry:65536/app", Problem::Port);
    check("registry:99999999999999999999/app", Problem::Port);
    check("registry:/app", Problem::Port);
    check("registry:+80/app", Problem::Port);
    check("registry:50x/app", Problem::Port);
    check("-a.b/app", Problem::Host);
    check("a-.b/app", Problem::Host);
    check("a..b/app", Problem::Host);
    check("a.b./app", Problem::Host);
    check(".../app", Problem::Host);
    check(":80/app", Problem::Host);
    check("a_b.c/app", Problem::Host);
    check("[::1/app", Problem::Port);
    check("[::g]:80/app", Problem::Host);
    check("[]:80/app", Problem::Host);
    check("[::1]x:80/app", Problem::Host);
    check("[::ffff:1.2.3.4]/app", Problem::Host);
    check("[fe80::1%25eth0]:80/app", Problem::Host);
    check("https://ghcr.io/org/app", Problem::Port);
    check("ghcr.io/", Problem::Path);
    check("ghcr.io//app", Problem::Path);
    check("/app", Problem::Path);
    check("app/", Problem::Path);
    check("a..b", Problem::Path);
    check("a___b", Problem::Path);
    check("a._b", Problem::Path);
    check("-a", Problem::Path);
    check("a-", Problem::Path);
    check("täg", Problem::Path);
    check("a b", Problem::Path);
    check(" alpine", Problem::Path);
    check("alpine\n", Problem::Path);
    check("alpine\0", Problem::Path);
    check(&"a".repeat(64), Problem::ImageId);
    check(&"a".repeat(256), Problem::NameTooLong);
    check(&"a".repeat(240), Problem::NameTooLong);
    check(&"a/".repeat(1_000_000), Problem::NameTooLong);
    assert!(Repository::parse(&"a".repeat(237)).is_ok());
}

#[test]
fn references_keep_their_spelling() {
    let check = |text: &str, name: &str, repository: &str, tag: Option<&str>, digest: Option<&str>| {
        let reference = Reference::parse(text).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!((reference.name(), reference.tag(), reference.digest()), (name, tag, digest), "{text}");
        assert_eq!(reference.repository().to_string(), repository, "{text}");
        assert_eq!(reference.to_string(), text);
        assert_eq!(reference.with_tag("9"), format!("{name}:9"));
    };
    check("alpine", "alpine", "docker.io/library/alpine", None, None);
    check("alpine:3", "alpine", "docker.io/library/alpine", Some("3"), None);
    check("registry:5000", "registry", "docker.io/library/registry", Some("5000"), None);
    check("registry:5000/app", "registry:5000/app", "registry:5000/app", None, None);
    check("registry:5000/app:1.0", "registry:5000/app", "registry:5000/app", Some("1.0"), None);
    check("GHCR.io/a/b:V1", "GHCR.io/a/b", "ghcr.io/a/b", Some("V1"), None);
    check("[::1]:5000/app:1", "[::1]:5000/app", "[::1]:5000/app", Some("1"), None);
    check(&format!("a@{SHA256}"), "a", "docker.io/library/a", None, Some(SHA256));
    check(&format!("a:1@{SHA256}"), "a", "docker.io/library/a", Some("1"), Some(SHA256));
    let sha512 = format!("sha512:{}", "0a".repeat(64));
    check(&format!("a@{sha512}"), "a", "docker.io/library/a", None, Some(&sha512));
    let other = format!("md6+b-x:{}", "0".repeat(32));
    check(&format!("a@{other}"), "a", "docker.io/library/a", None, Some(&other));
}

#[test]
fn references_are_refused() {
    let check = |text: &str, problem: Problem| {
        assert_eq!(Reference::parse(text).unwrap_err().problem(), problem, "{text}");
    };
    check("", Problem::Empty);
    check(":1", Problem::Empty);
    check("alpine:", Problem::Tag);
    check("alpine:-1", Problem::Tag);
    check("alpine:.1", Problem::Tag);
    check("alpine:täg", Problem::Tag);
    check("alpine:1:2", Problem::Tag);
    check("alpine:1+2", Problem::Tag);
    check(&format!("alpine:{}", "a".repeat(129)), Problem::Tag);
    check("alpine@", Problem::Digest);
    check("alpine@sha256:abc", Problem::Digest);
    check(&format!("alpine@{}", SHA256.to_uppercase()), Problem::Digest);
    check(&format!("alpine@{}", SHA256.replace("e3b", "E3B")), Problem::Digest);
    check(&format!("alpine@{SHA256}0"), Problem::Digest);
    check(&format!("alpine@{SHA256}@{SHA256}"), Problem::Digest);
    check(&format!("alpine@1x:{}", "0".repeat(32)), Problem::Digest);
    check(&format!("alpine@x:{}", "0".repeat(300)), Problem::Digest);
    check(&format!("@{SHA256}"), Problem::Empty);
    check("Alpine:1", Problem::UpperCase);
}

#[test]
fn siblings_are_of_the_same_repository() {
    let check = |text: &str, other: &str, expected: bool| {
        let (own, parsed) = (Reference::parse(text).unwrap(), Reference::parse(other).ok());
        let by_both = parsed.filter(|parsed| parsed.repository() == own.repository());
        assert_eq!(own.sibling(other), by_both, "{text} {other}");
        assert_eq!(own.sibling(other).is_some(), expected, "{text} {other}");
    };
    check("alpine:3", "alpine:4", true);
    check("alpine", &format!("alpine:4@{SHA256}"), true);
    check("alpine:3", "docker.io/library/alpine:4", true);
    check("registry:5000/app", "registry:05000/app:1", true);
    check("registry:5000/app", "registry:5001/app:1", false);
    check("alpine:3", "alpines:4", false);
    check("alpine:3", "evil.example/alpine:4", false);
    check("alpine:3", "alpine:-", false);
    check("alpine:3", "alpine@sha256:0", false);
    check("alpine:3", "Alpine:4", false);
    check("alpine:3", "", false);
}

#[test]
fn tags() {
    for tag in ["a", "1", "_", "v1.2.3", "A-b_c.d", &"a".repeat(128)] {
        assert!(is_legal_tag(tag), "{tag}");
    }
    for tag in ["", ".a", "-a", "a b", "a+b", "a/b", "a:b", "é", "a\n", &"a".repeat(129)] {
        assert!(!is_legal_tag(tag), "{tag}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_is_read_or_refused(text in "\\PC{0,40}|[a-zA-Z0-9./:@\\[\\]_-]{0,60}") {
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(reference.to_string(), text);
            let again = Repository::parse(reference.name());
            prop_assert_eq!(again.as_ref(), Ok(reference.repository()));
        } else {
            prop_assert!(Repository::parse(&text).is_err() || text.contains('@'));
        }
    }

    #[test]
    fn normalising_again_changes_nothing(text in "([a-z]{1,5}\\.[a-z]{2}(:[1-9][0-9]{0,3})?/)?[a-z0-9]{1,5}([_-][a-z0-9]{1,4}){0,2}(/[a-z]{1,5}){0,2}") {
        let repository = Repository::parse(&text).unwrap();
        prop_assert_eq!(Repository::parse(&repository.to_string()), Ok(repository.clone()));
    }
}
