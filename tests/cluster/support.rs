#![allow(dead_code)] // words for scenarios: not each is used in every build

//! What the scenarios share: a cluster with kimup under the RBAC of `deploy/`, registries, and words for objects.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::events::v1::Event;
use kimup::api::{Image, ImageStatus};
use kimup_testbed::{Cluster, KimupOptions, KimupProcess, Registry, ScriptedRegistry, eventually};
use kube::ResourceExt;
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// Long enough for a busy machine; what is waited for takes a second or two.
pub const DEADLINE: Duration = Duration::from_secs(60);
/// The kinds of `deploy/` that kimup as a process needs.
pub const DEPLOYED: &[&str] = &[
    "Namespace",
    "ServiceAccount",
    "ClusterRole",
    "ClusterRoleBinding",
    "Role",
    "RoleBinding",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
];
/// User and password of the private registry.
pub const USER: (&str, &str) = ("robot", "s3cret-pull");

/// Registries, as every scenario may want them.
pub struct Registries {
    /// Anybody may list.
    pub open: Registry,
    /// Asks for [`USER`].
    pub private: Registry,
    /// Shows a certificate that nobody trusts.
    pub tls: Registry,
    /// Says what the test wants.
    pub scripted: ScriptedRegistry,
}

impl Registries {
    pub async fn start() -> Self {
        Self {
            open: Registry::open().await.unwrap(),
            private: Registry::htpasswd(USER.0, USER.1).await.unwrap(),
            tls: Registry::tls().await.unwrap(),
            scripted: ScriptedRegistry::start().await.unwrap(),
        }
    }

    /// `--plain-http-registry` for those that speak plain http.
    pub fn args(&self) -> Vec<String> {
        let hosts = [self.open.host(), self.private.host(), self.scripted.host()];
        hosts.into_iter().flat_map(|host| ["--plain-http-registry".to_owned(), host]).collect()
    }
}

/// The cluster with one kimup that most scenarios share, each in a namespace of its own.
pub struct Bed {
    pub cluster: &'static Cluster,
    pub registries: Registries,
    pub kimup: KimupProcess,
}

impl Bed {
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Bed> = OnceCell::const_new();
        SHARED
            .get_or_init(async || {
                let cluster = Cluster::shared().await;
                let registries = Registries::start().await;
                cluster.apply_deploy(DEPLOYED).await.unwrap();
                let kimup = KimupProcess::start(options(cluster, &registries).await).await.unwrap();
                configured(cluster).await;
                Self { cluster, registries, kimup }
            })
            .await
    }

    /// A namespace of this test's own.
    pub async fn shop(&self, name: &str, labels: &[(&str, &str)]) -> Shop {
        Shop::new(self.cluster, name, labels, &[]).await
    }
}

/// `kimup run` with a ServiceAccount's token, under exactly the RBAC of `deploy/`.
pub async fn options(cluster: &Cluster, registries: &Registries) -> KimupOptions {
    let kubeconfig = cluster.kubeconfig_for("kimup-system", "kimup").await.unwrap();
    let mut options = KimupOptions::new(binary(), kubeconfig);
    options.args = registries.args();
    options.args.extend(["--namespace", "kimup-system", "--log-level", "info,kimup=debug"].map(str::to_owned));
    // All scenarios ask the same few registries, some hundred times a minute.
    options.args.extend(["--registry-rate", "25"].map(str::to_owned));
    options
}

pub fn binary() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_kimup"))
}

/// Waits until the API server calls the webhook for opted-in namespaces.
pub async fn configured(cluster: &Cluster) {
    let api: Api<MutatingWebhookConfiguration> = Api::all(cluster.client().await.unwrap());
    eventually(DEADLINE, "the webhook configuration is written", async || {
        api.get_opt("kimup-url").await.unwrap().is_some()
    })
    .await;
    // The API server takes a moment to act on it: a Pod in a probing namespace tells.
    let client = cluster.client().await.unwrap();
    let shop = Shop::new(cluster, &format!("probe-{}", fastrand::u32(..)), &[(ENABLED, "true")], &[]).await;
    let image = json!({"spec": {"image": "probe.invalid/app", "triggers": [{"type": "interval", "value": "1h"}],
        "rules": [{"name": "r", "type": "always", "actions": [{"type": "apply"}]}]}});
    shop.create_image("probe", &image).await;
    let pods: Api<Pod> = Api::namespaced(client, &shop.namespace);
    let pod = pod("probe", "probe.invalid/app:1");
    let params = PostParams { dry_run: true, ..PostParams::default() };
    eventually(DEADLINE, "the API server calls the webhook", async || match pods.create(&params, &pod).await {
        Err(error) if error.to_string().contains("kimup: ") => Ok(()),
        other => Err(format!("{other:?}")),
    })
    .await;
}

pub const ENABLED: &str = "kimup.cloudavenue.io/enabled";
pub const FAILURE_POLICY: &str = "kimup.cloudavenue.io/failure-policy";

/// A namespace and the objects in it.
pub struct Shop {
    pub namespace: String,
    pub client: kube::Client,
}

impl Shop {
    pub async fn new(cluster: &Cluster, name: &str, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Self {
        let namespace = cluster.namespace(name, labels, annotations).await.unwrap();
        Self { namespace, client: cluster.client().await.unwrap() }
    }

    pub fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = k8s_openapi::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates an Image: `patch` over one with a long interval, the rules minor and patch.
    pub async fn create_image(&self, name: &str, patch: &Value) -> Image {
        self.api::<Image>().create(&PostParams::default(), &image(name, patch)).await.unwrap()
    }

    pub async fn status(&self, name: &str) -> ImageStatus {
        self.api::<Image>().get(name).await.unwrap().status.unwrap_or_default()
    }

    /// Waits until an Image's status is as wanted.
    pub async fn status_is(&self, name: &str, what: &str, wanted: impl Fn(&ImageStatus) -> bool) -> ImageStatus {
        eventually(DEADLINE, &format!("Image {}/{name}: {what}", self.namespace), async || {
            let status = self.status(name).await;
            if wanted(&status) { Ok(status) } else { Err(serde_json::to_string(&status).unwrap()) }
        })
        .await
    }

    /// Waits until an Image has settled on a tag.
    pub async fn settles(&self, name: &str, tag: &str) -> ImageStatus {
        let what = format!("settles on {tag}");
        self.status_is(name, &what, |s| s.tag.as_deref() == Some(tag) && s.rollout.is_none()).await
    }

    /// Asks for a sync by `requestedAt` and waits until it is answered.
    pub async fn sync(&self, name: &str) -> ImageStatus {
        let at = format!("{}", fastrand::u64(..));
        self.annotate_image(name, "kimup.cloudavenue.io/requestedAt", Some(&at)).await;
        self.status_is(name, "answers requestedAt", |s| s.last_handled_request.as_ref() == Some(&at)).await
    }

    pub async fn annotate_image(&self, name: &str, key: &str, value: Option<&str>) {
        let patch = json!({"metadata": {"annotations": {key: value}}});
        self.api::<Image>().patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }

    /// Creates a Deployment: one container `app` with this image text; `patch` on top.
    pub async fn create_deployment(&self, name: &str, text: &str, patch: &Value) -> Deployment {
        self.api::<Deployment>().create(&PostParams::default(), &deployment(name, text, patch)).await.unwrap()
    }

    /// The Pods that are not ending, by name.
    pub async fn pods(&self) -> Vec<Pod> {
        let pods = self.api::<Pod>().list(&ListParams::default()).await.unwrap().items;
        pods.into_iter().filter(|p| p.metadata.deletion_timestamp.is_none()).collect()
    }

    /// Waits until the Pods of an app are `count`, all ready, and all run exactly this image in container `app`.
    pub async fn pods_run(&self, app: &str, count: usize, reference: &str) -> Vec<Pod> {
        eventually(DEADLINE, &format!("{count} Pods of {}/{app} run {reference}", self.namespace), async || {
            let pods: Vec<Pod> =
                self.pods().await.into_iter().filter(|p| p.labels().get("app").is_some_and(|a| a == app)).collect();
            let images: Vec<String> = pods.iter().map(|p| image_of(p, "app")).collect();
            let right = images.len() == count && images.iter().all(|i| i == reference) && pods.iter().all(is_ready);
            if right { Ok(pods) } else { Err(format!("{images:?}")) }
        })
        .await
    }

    /// How many rollouts a Deployment has had: its `ReplicaSets`.
    pub async fn revisions(&self, app: &str) -> usize {
        let sets = self.api::<ReplicaSet>().list(&ListParams::default().labels(&format!("app={app}"))).await.unwrap();
        sets.items.len()
    }

    /// The Events on an object, oldest first: `reason: note`.
    pub async fn events(&self, kind: &str, name: &str) -> Vec<String> {
        let mut events = self.api::<Event>().list(&ListParams::default()).await.unwrap().items;
        events.retain(|e| {
            e.regarding.as_ref().is_some_and(|r| r.kind.as_deref() == Some(kind) && r.name.as_deref() == Some(name))
        });
        events.retain(|e| e.reporting_controller.as_deref() == Some("kimup.cloudavenue.io/kimup"));
        events.sort_by_key(|e| e.event_time.as_ref().map(|t| t.0));
        let say = |e: Event| format!("{}: {}", e.reason.unwrap_or_default(), e.note.unwrap_or_default());
        events.into_iter().map(say).collect()
    }

    /// Who decided, by the audit lines of the shared kimup for an Image, oldest first.
    pub async fn audited(&self, image: &str, what: &str) -> Vec<String> {
        let log = Bed::shared().await.kimup.log_text();
        let begins = format!("kimup::audit: {what} image=\"Image {}/{image}\"", self.namespace);
        let lines = log.lines().filter(|line| line.contains(&begins));
        let by = |line: &str| line.rsplit_once("by=").map(|(_, by)| by.trim().trim_matches('"').to_owned());
        lines.filter_map(by).collect()
    }

    /// Creates a Pod that admission has a question about. Where many ask the same registry at once its answer may come too
    /// late; then the Pod is denied, and created again.
    pub async fn create_asked(&self, pod: &Pod) -> Pod {
        eventually(DEADLINE, "the Pod is admitted", async || match self.create_pod(pod).await {
            Err(late) if late.contains("did not answer") => Err(late),
            created => Ok(created.unwrap()),
        })
        .await
    }

    /// Creates a Pod; the error is what a user of kubectl reads.
    pub async fn create_pod(&self, pod: &Pod) -> Result<Pod, String> {
        match self.api::<Pod>().create(&PostParams::default(), pod).await {
            Ok(pod) => Ok(pod),
            Err(kube::Error::Api(status)) => Err(status.message.clone()),
            Err(error) => Err(error.to_string()),
        }
    }
}

pub fn image(name: &str, patch: &Value) -> Image {
    let mut object = json!({
        "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image", "metadata": {"name": name},
        "spec": {
            "triggers": [{"type": "interval", "value": "1h"}],
            "rules": [
                {"name": "patch", "type": "semver-patch", "actions": [{"type": "apply"}]},
                {"name": "minor", "type": "semver-minor", "actions": [{"type": "apply"}]},
            ],
        },
    });
    json_patch::merge(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

pub fn deployment(name: &str, text: &str, patch: &Value) -> Deployment {
    let mut object = json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 2, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "app", "image": text}], "terminationGracePeriodSeconds": 0},
            },
        },
    });
    json_patch::merge(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

/// Opts in by the Pod template, for `deployment`'s patch.
pub fn opted_in() -> Value {
    json!({"spec": {"template": {"metadata": {"annotations": {ENABLED: "true"}}}}})
}

pub fn pod(name: &str, text: &str) -> Pod {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"containers": [{"name": "app", "image": text}], "terminationGracePeriodSeconds": 0},
    }))
    .unwrap()
}

/// Annotations on a Pod.
pub fn with_annotations(mut pod: Pod, annotations: &[(&str, &str)]) -> Pod {
    let map: BTreeMap<String, String> = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    pod.metadata.annotations = Some(map);
    pod
}

pub fn image_of(pod: &Pod, container: &str) -> String {
    let spec = pod.spec.as_ref().unwrap();
    let mut all = spec.init_containers.iter().flatten().chain(&spec.containers);
    all.find(|c| c.name == container).and_then(|c| c.image.clone()).unwrap_or_default()
}

pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.is_some_and(|list| list.iter().any(|c| c.type_.as_str() == "Ready" && c.status == "True"))
}
