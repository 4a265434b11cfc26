//! Which Pods the webhook configuration sends, as a real API server sees it, and how the leader keeps it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kimup::admission::configuration::{CaBundle, Endpoint, Options, Trust, build, delete, keep};
use kimup_testbed::{ApiFault, ApiProxy, Cluster, KimupProcess, eventually};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::own::{Own, SYSTEM, admits};
use crate::support::{image_of, pod, with_annotations};

const DEADLINE: Duration = Duration::from_secs(60);
const IN: (&str, &str) = ("kimup.cloudavenue.io/enabled", "true");
const OUT: (&str, &str) = ("kimup.cloudavenue.io/enabled", "false");
const FAIL: (&str, &str) = ("kimup.cloudavenue.io/failure-policy", "fail");
const IGNORE: (&str, &str) = ("kimup.cloudavenue.io/failure-policy", "ignore");
const OTHER: (&str, &str) = ("example.org/note", "x");
const STAMPED: (&str, &str) = ("kimup.cloudavenue.io/rollout", "ab12");

const PATCH: (&str, &str) = ("kimup.cloudavenue.io/policy", "patch");
const PATCH_APP: (&str, &str) = ("policy.kimup.cloudavenue.io/app", "patch");
const IN_APP: (&str, &str) = ("enabled.kimup.cloudavenue.io/app", "true");
const INTERVAL_APP: (&str, &str) = ("interval.kimup.cloudavenue.io/app", "1m");

const ANSWERED: (&str, &str) = ("stamp.kimup.cloudavenue.io/app", "app:0 app:1");
const UNANSWERED: (&str, &str) = ("stamp.kimup.cloudavenue.io/app", "app:1 app:2");

type Pairs = &'static [(&'static str, &'static str)];

/// Name, labels and annotations.
const NAMESPACES: [(&str, Pairs, Pairs); 7] = [
    ("plain", &[], &[]),
    ("labelled", &[IN], &[]),
    ("labelled-ignore", &[IN, IGNORE], &[]),
    ("annotated", &[], &[IN]),
    ("opted-out", &[OUT], &[]),
    ("plain-ignore", &[IGNORE], &[]),
    ("annotated-ignore", &[IGNORE], &[IN]),
];

/// Namespace, labels and annotations of the Pod, the entry that selects it, whether it is denied while nobody answers.
const PODS: [(&str, Pairs, Pairs, Option<&str>, bool); 45] = [
    ("plain", &[], &[], None, false),
    ("plain", &[OTHER], &[OTHER], None, false),
    ("plain", &[], &[IN], Some("pods-fail"), true),
    ("plain", &[STAMPED], &[], Some("pods-fail"), true),
    ("plain", &[STAMPED], &[OUT], None, false),
    ("plain", &[], &[IN, IGNORE], Some("pods-pod-ignores"), false),
    ("opted-out", &[], &[IN], Some("pods-fail"), true),
    ("opted-out", &[], &[], None, false),
    ("labelled", &[], &[], Some("labelled-fail"), true),
    ("labelled", &[OTHER], &[OTHER], Some("labelled-fail"), true),
    ("labelled", &[STAMPED], &[IN], Some("labelled-fail"), true),
    ("labelled", &[], &[OUT], None, false),
    ("labelled", &[], &[FAIL], Some("labelled-fail"), true),
    ("labelled", &[], &[IGNORE], Some("labelled-pod-ignores"), false),
    ("labelled-ignore", &[], &[], Some("labelled-ignore"), false),
    ("labelled-ignore", &[], &[FAIL], Some("labelled-pod-fails"), true),
    ("labelled-ignore", &[], &[IGNORE], Some("labelled-ignore"), false),
    ("annotated", &[], &[], Some("annotated-fail"), true),
    ("annotated", &[STAMPED], &[IN], Some("annotated-fail"), true),
    ("annotated", &[], &[IGNORE], Some("annotated-pod-ignores"), false),
    ("annotated", &[], &[OUT], None, false),
    ("plain", &[], &[PATCH], Some("pods-fail"), true),
    ("plain", &[OTHER], &[OTHER, PATCH_APP], Some("pods-fail"), true),
    ("plain", &[], &[IN_APP], Some("pods-fail"), true),
    ("plain", &[], &[INTERVAL_APP], None, false),
    ("plain", &[], &[PATCH, OUT], None, false),
    ("plain", &[], &[PATCH_APP, IGNORE], Some("pods-pod-ignores"), false),
    ("opted-out", &[], &[PATCH], Some("pods-fail"), true),
    ("labelled", &[], &[PATCH], Some("labelled-fail"), true),
    ("annotated", &[], &[PATCH_APP], Some("annotated-fail"), true),
    ("labelled", &[STAMPED], &[ANSWERED], None, false),
    ("plain", &[STAMPED], &[ANSWERED], None, false),
    ("labelled", &[STAMPED], &[UNANSWERED], Some("labelled-fail"), true),
    ("plain", &[STAMPED], &[UNANSWERED], Some("pods-fail"), true),
    ("labelled", &[], &[ANSWERED], Some("labelled-fail"), true),
    ("plain-ignore", &[], &[], None, false),
    ("plain-ignore", &[], &[IN], Some("pods-ignore"), false),
    ("plain-ignore", &[], &[IN, IGNORE], Some("pods-ignore"), false),
    ("plain-ignore", &[STAMPED], &[FAIL], Some("pods-pod-fails"), true),
    ("annotated-ignore", &[], &[], Some("annotated-ignore"), false),
    ("annotated-ignore", &[], &[IN, IGNORE], Some("annotated-ignore"), false),
    ("annotated-ignore", &[], &[FAIL], Some("annotated-pod-fails"), true),
    ("kube-system", &[STAMPED], &[IN], None, false),
    ("kube-node-lease", &[STAMPED], &[IN], None, false),
    ("kimup-system", &[STAMPED], &[IN], None, false),
];

fn options(owner: Option<OwnerReference>, ca_bundle: CaBundle) -> Options {
    Options {
        name: "kimup".to_owned(),
        namespace: "kimup-system".to_owned(),
        // Port 1: nobody listens there.
        endpoint: Endpoint::Url("https://127.0.0.1:1".to_owned()),
        owner,
        ca_bundle,
    }
}

fn owned(pairs: &[(&str, &str)]) -> Option<BTreeMap<String, String>> {
    let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
    // None rather than empty: a Pod without any annotation is where an unguarded expression fails.
    (!pairs.is_empty()).then(|| pairs.iter().map(owned).collect())
}

/// The entry that was called in vain and denied the Pod; None if the Pod is admitted.
async fn denied_by(client: &kube::Client, namespace: &str, labels: Pairs, annotations: Pairs) -> Option<String> {
    let mut pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "probe"},
        "spec": {
            "containers": [{"name": "app", "image": "app:1"}],
        },
    }))
    .unwrap();
    pod.metadata.labels = owned(labels);
    pod.metadata.annotations = owned(annotations);
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    match pods.create(&dry_run, &pod).await {
        Ok(_) => None,
        Err(kube::Error::Api(status)) => {
            let (_, rest) =
                status.message.split_once("failed calling webhook \"").unwrap_or_else(|| panic!("{}", status.message));
            let (entry, _) = rest.split_once(".kimup.cloudavenue.io\"").unwrap();
            Some(entry.to_owned())
        }
        Err(error) => panic!("{error}"),
    }
}

async fn put(client: &kube::Client, configuration: &MutatingWebhookConfiguration) {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    let params = PatchParams::apply("kimup-webhook").force();
    api.patch("kimup", &params, &Patch::Apply(configuration)).await.unwrap();
}

#[tokio::test]
async fn the_configuration_selects_the_pods_it_should() {
    let cluster = Cluster::start().await.unwrap();
    let client = cluster.client().await.unwrap();
    for (name, labels, annotations) in NAMESPACES {
        cluster.namespace(name, labels, annotations).await.unwrap();
    }
    cluster.namespace("kimup-system", &[], &[]).await.unwrap();
    for name in ["kube-system", "kube-node-lease", "kimup-system"] {
        let label = format!("{}={}", IN.0, IN.1);
        cluster.kubectl_ok(&["label", "namespace", name, &label]).await.unwrap();
    }
    let mut configuration =
        build(&options(None, CaBundle::Keep), &["annotated".to_owned(), "annotated-ignore".to_owned()]);
    put(&client, &configuration).await;
    eventually(DEADLINE, "the configuration counts", async || denied_by(&client, "labelled", &[], &[]).await).await;
    for (namespace, labels, annotations, entry, denied) in PODS {
        let expected = entry.filter(|_| denied);
        let found = denied_by(&client, namespace, labels, annotations).await;
        assert_eq!(found.as_deref(), expected, "{namespace} {labels:?} {annotations:?}");
    }
    // With `Fail` everywhere the API server tells which entry selects, also where it would have been ignored.
    for entry in configuration.webhooks.iter_mut().flatten() {
        entry.failure_policy = Some("Fail".to_owned());
    }
    put(&client, &configuration).await;
    eventually(DEADLINE, "the second configuration counts", async || {
        denied_by(&client, "labelled", &[], &[IGNORE]).await
    })
    .await;
    for (namespace, labels, annotations, entry, _) in PODS {
        let found = denied_by(&client, namespace, labels, annotations).await;
        assert_eq!(found.as_deref(), entry, "{namespace} {labels:?} {annotations:?}");
    }
    let entries: BTreeSet<&str> =
        configuration.webhooks.iter().flatten().map(|e| e.name.split_once('.').unwrap().0).collect();
    let tried: BTreeSet<&str> = PODS.iter().filter_map(|(_, _, _, entry, _)| *entry).collect();
    assert_eq!(tried, entries, "each entry is tried");
}

/// The API server knows labels of a Namespace before kimup does, or while kimup cannot see it change: what it says by
/// calling the entry for labelled Namespaces counts.
#[tokio::test]
async fn a_namespace_is_opted_in_as_soon_as_the_api_server_knows() {
    let own = Own::start().await;
    own.registry.push("app", "1.1.0").await.unwrap();
    let image = own.registry.image("app");
    let (text, wanted) = (format!("{image}:1.0.0"), format!("{image}:1.1.0"));
    let open = |_: &_, _: &str| ApiFault::After(Duration::ZERO);
    let proxy = ApiProxy::start(&own.cluster.address(), own.cluster.ca_pem(), open).await.unwrap();
    let mut options = own.options("late").await;
    let through = format!("http://{}", proxy.address());
    options.kubeconfig = own.cluster.kubeconfig_via(SYSTEM, "kimup", &through).await.unwrap();
    let _kimup = KimupProcess::start(options).await.unwrap();
    let shop = own.shop("late").await;
    shop.create_image("app", &json!({"spec": {"image": image}})).await;
    shop.settles("app", "1.1.0").await;
    admits(&shop, &text, &wanted).await;
    assert_eq!(image_of(&shop.create_pod(&pod("before", &text)).await.unwrap(), "app"), text);

    proxy.cut_off(true);
    own.cluster.kubectl_ok(&["label", "namespace", "late", &format!("{}={}", IN.0, IN.1)]).await.unwrap();
    // The API server's own cache follows within milliseconds.
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    eventually(DEADLINE, "a Pod of the Namespace gets its tag", async || {
        let found = shop.api::<Pod>().create(&dry_run, &pod("probe", &text)).await.map(|pod| image_of(&pod, "app"));
        if found.as_ref().is_ok_and(|image| *image == wanted) { Ok(()) } else { Err(format!("{found:?}")) }
    })
    .await;
    let bare = shop.create_pod(&pod("bare", &text)).await.unwrap();
    assert_eq!(image_of(&bare, "app"), wanted);
    let out = with_annotations(pod("out", &text), &[OUT]);
    assert_eq!(image_of(&shop.create_pod(&out).await.unwrap(), "app"), text, "who says no is left alone");
    proxy.cut_off(false);
}

/// A client with kimup's rights in `deploy/`, and kimup's Namespace as an owner.
async fn as_kimup(cluster: &Cluster) -> (kube::Client, OwnerReference) {
    for manifests in [include_str!("../../deploy/namespace.yaml"), include_str!("../../deploy/rbac.yaml")] {
        cluster.apply(&[], manifests).await.unwrap();
    }
    let kubeconfig = cluster.kubeconfig_for("kimup-system", "kimup").await.unwrap();
    let client = cluster.client_as(&kubeconfig).await.unwrap();
    let namespaces: Api<Namespace> = Api::all(cluster.client().await.unwrap());
    let namespace = namespaces.get("kimup-system").await.unwrap();
    let owner = OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        name: "kimup-system".to_owned(),
        uid: namespace.metadata.uid.unwrap(),
        ..OwnerReference::default()
    };
    (client, owner)
}

async fn edit(live: &Api<MutatingWebhookConfiguration>, operations: serde_json::Value) {
    let operations: json_patch::Patch = serde_json::from_value(operations).unwrap();
    live.patch("kimup", &PatchParams::default(), &Patch::Json::<()>(operations)).await.unwrap();
}

/// Requests of kimup with this verb for webhook configurations.
fn requests(cluster: &Cluster, verb: &str) -> usize {
    let log = cluster.audit_log().unwrap();
    log.iter()
        .filter(|e| e["verb"] == verb && e["responseStatus"]["code"] != 409)
        .filter(|e| e["objectRef"]["resource"] == "mutatingwebhookconfigurations")
        .filter(|e| e["user"]["username"] == "system:serviceaccount:kimup-system:kimup")
        .count()
}

#[tokio::test]
async fn the_leader_keeps_the_configuration() {
    let cluster = Cluster::start().await.unwrap();
    let admin = cluster.client().await.unwrap();
    let (client, owner) = as_kimup(&cluster).await;
    let namespaces: Api<Namespace> = Api::all(admin.clone());
    let (annotated, annotated_seen) = watch::channel(std::sync::Arc::from([]));
    let (leads, leads_seen) = watch::channel(false);
    let (published, mut published_seen) = watch::channel(false);
    let shutdown = CancellationToken::new();
    let keeper = tokio::spawn(keep(
        client.clone(),
        options(Some(owner), CaBundle::Keep),
        Trust::fixed(),
        annotated_seen,
        leads_seen,
        published,
        shutdown.clone(),
    ));
    let live: Api<MutatingWebhookConfiguration> = Api::all(admin.clone());
    assert!(live.get_opt("kimup").await.unwrap().is_none(), "another leads");

    leads.send(true).unwrap();
    published_seen.wait_for(|said| *said).await.unwrap();
    let first = live.get("kimup").await.unwrap();
    let count = |c: &MutatingWebhookConfiguration| c.webhooks.as_ref().map_or(0, Vec::len);
    assert_eq!(count(&first), 8);

    // Another injects the CA bundle; it is kept, also for new entries.
    let bundle = serde_json::to_value(ByteString(cluster.ca_pem().into())).unwrap();
    let bundle: Vec<_> = (0..8)
        .map(|n| json!({"op": "add", "path": format!("/webhooks/{n}/clientConfig/caBundle"), "value": bundle}))
        .collect();
    edit(&live, json!(bundle)).await;
    annotated.send(std::sync::Arc::from(["shop".to_owned()])).unwrap();
    let with_bundles = async |wanted: usize| {
        let now = live.get("kimup").await.unwrap();
        let kept = now.webhooks.iter().flatten().all(|e| e.client_config.ca_bundle.is_some());
        (count(&now) == wanted).then_some((kept, now))
    };
    let (kept, _) =
        eventually(DEADLINE, "the entries for an annotated Namespace", async || with_bundles(12).await).await;
    assert!(kept, "each entry has the bundle");
    annotated.send(std::sync::Arc::from([])).unwrap();
    let (kept, settled) = eventually(DEADLINE, "the entries go again", async || with_bundles(8).await).await;
    assert!(kept);

    // What a human breaks is repaired.
    let broken = json!([{"op": "replace", "path": "/webhooks/0/failurePolicy", "value": "Ignore"}]);
    edit(&live, broken).await;
    eventually(DEADLINE, "the repair", async || {
        (live.get("kimup").await.unwrap().webhooks == settled.webhooks).then_some(())
    })
    .await;
    live.delete("kimup", &DeleteParams::default()).await.unwrap();
    eventually(DEADLINE, "it is written again", async || live.get_opt("kimup").await.unwrap()).await;
    // First, entries, no entries, repair, again; a look every 5 s writes nothing.
    let looks = requests(&cluster, "get");
    eventually(DEADLINE, "two more looks", async || (requests(&cluster, "get") >= looks + 2).then_some(())).await;
    let writes = requests(&cluster, "patch");
    assert!((5..=6).contains(&writes), "{writes}");

    // It goes with the Namespace, and a leader that is still there does not bring it back.
    namespaces.delete("kimup-system", &DeleteParams::default()).await.unwrap();
    eventually(DEADLINE, "the configuration goes", async || {
        live.get_opt("kimup").await.unwrap().is_none().then_some(())
    })
    .await;
    published_seen.wait_for(|said| !*said).await.unwrap();
    assert!(live.get_opt("kimup").await.unwrap().is_none());
    shutdown.cancel();
    keeper.await.unwrap();
    delete(&admin, "kimup").await.unwrap();
}
