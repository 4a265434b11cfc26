//! For scenarios that kill things: a cluster, a registry and kimups of their own, two such scenarios at a time.

use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::coordination::v1::Lease;
use kimup_testbed::{Cluster, KimupOptions, KimupProcess, Registry, eventually};
use kube::api::{Api, DeleteParams};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::support::{DEADLINE, DEPLOYED, Shop, binary};

pub const SYSTEM: &str = "kimup-system";
/// Annotation with which a Pod starts late.
pub const READY_AFTER: &str = "testbed.kimup/ready-after";

/// A cluster of one's own. A whole control plane is large, so of many such scenarios two run at a time. With one at a time,
/// those that wait for their turn would take most of the threads for tests.
pub struct Own {
    pub cluster: Cluster,
    pub registry: Registry,
    _turn: SemaphorePermit<'static>,
}

impl Own {
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// With further arguments for the API server.
    pub async fn start_with(apiserver_args: &[String]) -> Self {
        static TURNS: Semaphore = Semaphore::const_new(2);
        let turn = TURNS.acquire().await.unwrap();
        let (cluster, registry) = tokio::join!(Cluster::start_with(apiserver_args), Registry::open());
        let cluster = cluster.unwrap();
        cluster.apply_deploy(DEPLOYED).await.unwrap();
        Self { cluster, registry: registry.unwrap(), _turn: turn }
    }

    /// `kimup run` as the ServiceAccount of `deploy/`.
    pub async fn options(&self, name: &str) -> KimupOptions {
        let kubeconfig = self.cluster.kubeconfig_for(SYSTEM, "kimup").await.unwrap();
        let mut options = KimupOptions::new(binary(), kubeconfig);
        name.clone_into(&mut options.name);
        options.args = ["--namespace", SYSTEM, "--log-level", "info,kimup=debug"].map(str::to_owned).to_vec();
        options.args.extend(self.plain_http());
        options
    }

    /// `kimup webhook` knows no registries.
    pub fn plain_http(&self) -> [String; 2] {
        ["--plain-http-registry".to_owned(), self.registry.host()]
    }

    pub async fn shop(&self, name: &str) -> Shop {
        Shop::new(&self.cluster, name, &[], &[]).await
    }

    pub async fn configuration(&self, name: &str) -> Option<MutatingWebhookConfiguration> {
        Api::all(self.cluster.client().await.unwrap()).get_opt(name).await.unwrap()
    }

    /// Who holds the Lease; none if it was released.
    pub async fn holder(&self, lease: &str) -> Option<String> {
        let leases: Api<Lease> = Api::namespaced(self.cluster.client().await.unwrap(), SYSTEM);
        let lease = leases.get_opt(lease).await.unwrap();
        lease.and_then(|l| l.spec?.holder_identity).filter(|holder| !holder.is_empty())
    }

    /// The Lease of a process that was killed runs out at once, not after 15 seconds.
    pub async fn expire_lease(&self, lease: &str) {
        let leases: Api<Lease> = Api::namespaced(self.cluster.client().await.unwrap(), SYSTEM);
        leases.delete(lease, &DeleteParams::default()).await.unwrap();
    }

    /// What a ServiceAccount wrote: verb, resource and namespace/name of each request that changed something, the
    /// renewals of its Lease aside.
    pub fn writes(&self, account: &str) -> Vec<String> {
        let user = format!("system:serviceaccount:{SYSTEM}:{account}");
        let log = self.cluster.audit_log().unwrap();
        log.iter().filter(|event| event["user"]["username"] == user.as_str()).filter_map(said).collect()
    }
}

fn said(event: &Value) -> Option<String> {
    let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let (verb, resource) = (text("/verb"), text("/objectRef/resource"));
    let wrote = matches!(verb, "create" | "update" | "patch" | "delete") && resource != "leases";
    let code = event.pointer("/responseStatus/code").and_then(Value::as_u64);
    let done = code.is_some_and(|code| code < 300);
    let (sub, namespace, name) =
        (text("/objectRef/subresource"), text("/objectRef/namespace"), text("/objectRef/name"));
    let slash = if sub.is_empty() { "" } else { "/" };
    (wrote && done).then(|| format!("{verb} {resource}{slash}{sub} {namespace}/{name}"))
}

/// Waits until a process leads.
pub async fn leads(kimup: &KimupProcess, within: Duration) {
    eventually(within, "it leads", async || kimup.metric("kimup_leader", &[]).await.is_ok_and(|leads| leads > 0.0))
        .await;
}

/// Waits until one of them leads.
pub async fn one_leads(kimups: impl Iterator<Item = &KimupProcess> + Clone) {
    eventually(DEADLINE, "one leads", async || {
        let leads = kimups.clone().map(|kimup| async { kimup.metric("kimup_leader", &[]).await.unwrap_or_default() });
        futures::future::join_all(leads).await.iter().any(|leads| *leads > 0.0)
    })
    .await;
}

/// Waits until the API server calls the webhook: a Pod of this Image's repository is changed.
pub async fn admits(shop: &Shop, text: &str, wanted: &str) {
    let params = kube::api::PostParams { dry_run: true, ..Default::default() };
    let name = format!("probe-{}", fastrand::u32(..));
    let pod = crate::support::with_annotations(crate::support::pod(&name, text), &[(crate::support::ENABLED, "true")]);
    eventually(DEADLINE, "the webhook answers", async || {
        match shop.api::<k8s_openapi::api::core::v1::Pod>().create(&params, &pod).await {
            Ok(pod) if crate::support::image_of(&pod, "app") == wanted => Ok(()),
            Ok(pod) => Err(crate::support::image_of(&pod, "app")),
            Err(error) => Err(error.to_string()),
        }
    })
    .await;
}
