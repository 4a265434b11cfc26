//! Which digest and platforms a tag of a real registry has.

use kimup::policy::Repository;
use kimup::registry::{Client, Config, Keyring, ManifestRequest, PullSecret, RegistryError};
use kimup_testbed::Registry;

#[tokio::test]
async fn a_tag_has_a_digest_and_platforms() {
    let registry = Registry::htpasswd("alice", "a").await.unwrap();
    let pushed = registry.push("team/app", "1.0").await.unwrap();
    let client = Client::new(Config { plain_http: vec![registry.host()], ..Config::default() }).unwrap();
    let docker_config = registry.docker_config("alice", "a").into_bytes();
    let data = [(".dockerconfigjson".to_owned(), docker_config)].into();
    let secret = PullSecret { name: "pull", kind: "kubernetes.io/dockerconfigjson", data: &data };
    let keyring = Keyring::from_secrets([secret]).unwrap();
    let request = |tag: &str| ManifestRequest {
        repository: Repository::parse(&registry.image("team/app")).unwrap(),
        tag: tag.to_owned(),
        keyring: keyring.clone(),
        insecure_skip_tls_verify: false,
    };
    for tag in ["1.0", &*pushed] {
        assert_eq!(client.digest(&request(tag)).await.unwrap().as_str(), pushed);
        let manifest = client.manifest(&request(tag)).await.unwrap();
        let platforms: Vec<_> = manifest.platforms.iter().flatten().map(ToString::to_string).collect();
        assert_eq!((manifest.digest.as_str(), platforms), (&*pushed, vec!["linux/amd64".to_owned()]));
    }
    let moved = registry.push("team/app", "1.0").await.unwrap();
    assert_eq!(client.digest(&request("1.0")).await.unwrap().as_str(), moved);
    let nothing = format!("sha256:{}", "0".repeat(64));
    for missing in ["2.0", &*nothing] {
        let found = client.manifest(&request(missing)).await;
        assert!(matches!(found, Err(RegistryError::NoManifest { .. })), "{missing}: {found:?}");
        let found = client.digest(&request(missing)).await;
        assert!(matches!(found, Err(RegistryError::NoManifest { .. })), "{missing}: {found:?}");
    }
}
