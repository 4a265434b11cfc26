//! The connection to the API server, and what this process is called there.

use std::time::Duration;

use anyhow::Context;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::ResourceExt;
use kube::api::Api;
use kube::config::{KubeConfigOptions, Kubeconfig};
use url::Host;

use crate::net::silence::{SILENCE, bounded};

use super::args::{Common, EndpointArgs};

/// Longest wait for one answer at start.
const TIMEOUT: Duration = Duration::from_secs(10);
const DEFAULT_NAMESPACE: &str = "kimup-system";
const SERVICE: &str = "kimup-webhook";

/// A client, and the namespace that is kimup's own.
pub async fn connect(common: &Common) -> anyhow::Result<(kube::Client, String)> {
    let config = match &common.kubeconfig {
        Some(path) => {
            let kubeconfig = Kubeconfig::read_from(path)
                .with_context(|| format!("cannot read the kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("cannot use the kubeconfig {}", path.display()))?
        }
        None => kube::Config::infer().await.context("no API server found; name a kubeconfig with --kubeconfig")?,
    };
    let config = bounded(config, SILENCE);
    let inferred = Some(config.default_namespace.clone()).filter(|n| n != "default");
    let namespace = common.namespace.clone().or(inferred).unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let client = kube::Client::try_from(config).context("cannot make a client for the API server")?;
    Ok((client, namespace))
}

/// What the objects of this process are called. Outside a cluster they are others than those of a kimup inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// The webhook configuration and the Lease.
    pub name: &'static str,
    /// The Secret with the CA.
    pub ca_secret: &'static str,
    /// DNS names of the serving certificate.
    pub dns: Vec<String>,
    /// IP addresses of the serving certificate.
    pub ips: Vec<std::net::IpAddr>,
}

impl Names {
    /// The names for an endpoint.
    pub fn of(endpoint: &EndpointArgs, namespace: &str) -> anyhow::Result<Self> {
        let Some(url) = &endpoint.webhook_url else {
            let dns = ["", ".svc", ".svc.cluster.local"].map(|suffix| format!("{SERVICE}.{namespace}{suffix}"));
            return Ok(Self { name: "kimup", ca_secret: "kimup-ca", dns: dns.to_vec(), ips: Vec::new() });
        };
        anyhow::ensure!(url.scheme() == "https", "--webhook-url {url}: the API server calls webhooks over https only");
        let (mut dns, mut ips) = (Vec::new(), Vec::new());
        match url.host() {
            Some(Host::Domain(name)) => dns.push(name.to_owned()),
            Some(Host::Ipv4(ip)) => ips.push(ip.into()),
            Some(Host::Ipv6(ip)) => ips.push(ip.into()),
            None => anyhow::bail!("--webhook-url {url}: it names no host"),
        }
        Ok(Self { name: "kimup-url", ca_secret: "kimup-url-ca", dns, ips })
    }

    /// The Service in front of the webhook.
    pub const fn service() -> &'static str {
        SERVICE
    }
}

/// Refuses to run with a URL beside a kimup in the cluster, unless told to.
pub async fn refuse_second(client: &kube::Client, endpoint: &EndpointArgs) -> anyhow::Result<()> {
    if endpoint.webhook_url.is_none() || endpoint.takeover {
        return Ok(());
    }
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let found = tokio::time::timeout(TIMEOUT, api.get_opt("kimup"))
        .await
        .context("no answer from the API server")?
        .context("cannot tell whether a kimup runs in the cluster; allow get of mutatingwebhookconfigurations, or if none runs there say --takeover")?;
    if found.is_some() {
        anyhow::bail!(
            "a kimup runs in this cluster already (MutatingWebhookConfiguration kimup); stop it, or run beside it with --takeover"
        );
    }
    Ok(())
}

/// The owner of the webhook configuration: deleting kimup's Namespace takes it along. Tried until it is there.
pub async fn owner(client: &kube::Client, namespace: &str) -> OwnerReference {
    let api: Api<Namespace> = Api::all(client.clone());
    loop {
        match tokio::time::timeout(TIMEOUT, api.get(namespace)).await {
            Ok(Ok(found)) => {
                return OwnerReference {
                    api_version: "v1".to_owned(),
                    kind: "Namespace".to_owned(),
                    name: namespace.to_owned(),
                    uid: found.uid().unwrap_or_default(),
                    ..OwnerReference::default()
                };
            }
            Ok(Err(error)) => {
                tracing::warn!(namespace, %error, "cannot read kimup's own Namespace; trying again");
            }
            Err(_) => tracing::warn!(namespace, "cannot read kimup's own Namespace in time; trying again"),
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_depend_on_the_endpoint() {
        fn check(url: Option<&str>, expected: Option<(&str, &[&str], &[&str])>) {
            let webhook_url = url.map(|u| u.parse().unwrap());
            let endpoint = EndpointArgs {
                webhook_url,
                takeover: false,
                tls_cert_file: None,
                tls_key_file: None,
                ca_rotation_delay: Duration::from_secs(60),
            };
            let names = Names::of(&endpoint, "ns").ok();
            let found = names.map(|n| (n.name, n.dns, n.ips.iter().map(ToString::to_string).collect::<Vec<_>>()));
            let text = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
            assert_eq!(found, expected.map(|(name, dns, ips)| (name, text(dns), text(ips))), "{url:?}");
        }
        let service = ["kimup-webhook.ns", "kimup-webhook.ns.svc", "kimup-webhook.ns.svc.cluster.local"];
        check(None, Some(("kimup", &service, &[])));
        check(Some("https://127.0.0.1:8443"), Some(("kimup-url", &[], &["127.0.0.1"])));
        check(Some("https://[::1]:8443/x"), Some(("kimup-url", &[], &["::1"])));
        check(Some("https://laptop.example:1"), Some(("kimup-url", &["laptop.example"], &[])));
        check(Some("http://127.0.0.1:8443"), None);
    }
}
