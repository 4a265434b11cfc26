//! Registries that ask who the client is: the certificate of `--registry-config`, and who sees it.

use std::path::Path;

use kimup_testbed::{ClientCertificates, FaultReply, FaultRequest, FaultServer, ServerCertificate, TestCa};

use super::super::{Client, Config, ListRequest, Registries, RegistryError, Step};
use super::fake::{client, limits};
use super::world::{redirect, request, tags};

/// A host on 127.0.0.1 with a certificate of this CA.
async fn host(
    ca: &TestCa,
    clients: ClientCertificates<'_>,
    script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
) -> FaultServer {
    FaultServer::https_asking(&ca.server(&["127.0.0.1"]).unwrap(), clients, script).await.unwrap()
}

/// Trusts this CA, and shows this certificate to that host.
fn showing(ca: &TestCa, certificate: Option<(&ServerCertificate, &FaultServer)>) -> Client {
    let text = certificate.map_or_else(String::new, |(_, host)| {
        let files = "client-cert-file = 'client.pem'\nclient-key-file = 'client-key.pem'";
        format!("[[registry]]\nprefix = '{}'\n{files}", host.host())
    });
    let read = |path: &Path| match (certificate, path.to_str()) {
        (Some((shown, _)), Some("client.pem")) => Ok(shown.pem().as_bytes().to_vec()),
        (Some((shown, _)), Some("client-key.pem")) => Ok(shown.key_pem().as_bytes().to_vec()),
        _ => Err("not found".to_owned()),
    };
    let registries = Registries::parse(&text, &read).unwrap();
    let extra_ca_pem = Some(ca.pem().as_bytes().to_vec());
    client(Config { registries, extra_ca_pem, limits: limits(), ..Config::default() })
}

async fn list(client: &Client, host: &FaultServer) -> Result<Vec<String>, RegistryError> {
    let found = client.list_tags(&request(&host.host(), &[])).await?;
    Ok(found.tags().map(str::to_owned).collect())
}

#[tokio::test]
async fn a_registry_that_requires_one() {
    let (ca, other) = (TestCa::new().unwrap(), TestCa::new().unwrap());
    let registry = host(&ca, ClientCertificates::Required(&ca), |_| tags(&["1"])).await;
    let ours = ca.client("kimup").unwrap();
    assert_eq!(list(&showing(&ca, Some((&ours, &registry))), &registry).await, Ok(vec!["1".to_owned()]));
    assert_eq!(registry.client_certificates(), [Some(ours.der().to_vec())]);

    let strange = other.client("kimup").unwrap();
    for (name, wrong) in [("none", None), ("of another authority", Some((&strange, &registry)))] {
        let error = list(&showing(&ca, wrong), &registry).await.unwrap_err();
        let is_named = matches!(error, RegistryError::Unreachable { step: Step::ClientCertificate, .. });
        assert!(is_named && error.host() == registry.host(), "{name}: {error:?}");
        assert!(error.to_string().contains("unreachable (tls, client certificate)"), "{name}: {error}");
        assert!(error.next_step().is_some_and(|next| next.contains("client-cert-file")), "{name}");
    }
    assert_eq!((registry.client_certificates().len(), registry.requests().len()), (1, 1), "nobody else was let in");
}

#[tokio::test]
async fn it_is_shown_to_its_registry_only() {
    let ca = TestCa::new().unwrap();
    let asked = ClientCertificates::Optional(&ca);
    let other = host(&ca, asked, |_| tags(&["2"])).await;
    let elsewhere = format!("https://{}/elsewhere", other.host());
    let registry = host(&ca, asked, move |seen| if seen.nth == 0 { tags(&["1"]) } else { redirect(&elsewhere) }).await;
    let back = format!("https://{}/v2/team/app/tags/list", registry.host());
    let third = host(&ca, asked, move |_| redirect(&back)).await;
    let ours = ca.client("kimup").unwrap();
    let client = showing(&ca, Some((&ours, &registry)));
    let check = async |host: &FaultServer, expected: &str| {
        assert_eq!(list(&client, host).await.unwrap().join(" "), expected);
    };
    check(&registry, "1").await;
    // Another registry, with the same client.
    check(&other, "2").await;
    // Where the registry leads to.
    check(&registry, "2").await;
    assert!(registry.client_certificates().iter().all(|shown| shown.as_deref() == Some(ours.der())));
    assert_eq!(other.client_certificates(), [None]);
    // Nor to the registry itself when another one leads there: whose Image this is, it cannot tell.
    let before = registry.client_certificates().len();
    check(&third, "2").await;
    assert_eq!(registry.client_certificates()[before..], [None]);
    assert_eq!(third.client_certificates(), [None]);
}

#[tokio::test]
async fn it_is_shown_with_any_certificate_of_the_registry_too() {
    let ca = TestCa::new().unwrap();
    let registry = host(&ca, ClientCertificates::Required(&ca), |_| tags(&["1"])).await;
    let ours = ca.client("kimup").unwrap();
    let client = showing(&ca, Some((&ours, &registry)));
    let unverified = ListRequest { insecure_skip_tls_verify: true, ..request(&registry.host(), &[]) };
    client.list_tags(&unverified).await.unwrap();
    assert_eq!(registry.client_certificates(), [Some(ours.der().to_vec())]);
}
