//! The test bed itself does what the scenarios rely on.

use std::time::{Duration, Instant};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kimup_testbed::{Balancer, Cluster, Registry, eventually};
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

const DEADLINE: Duration = Duration::from_secs(60);

fn deployment(name: &str, images: &[&str], annotations: &Value) -> Deployment {
    let containers: Vec<Value> = images
        .iter()
        .enumerate()
        .map(|(number, image)| json!({"name": format!("c{number}"), "image": image}))
        .collect();
    serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": 2, "progressDeadlineSeconds": 5, "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}, "annotations": annotations},
                "spec": {"containers": containers, "initContainers": [{"name": "init", "image": "init:1"}]},
            },
        },
    }))
    .unwrap()
}

fn condition(deployment: &Deployment, wanted: &str) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_.as_deref() == Some(wanted))?.reason.clone()
}

#[tokio::test]
async fn a_deployment_rolls_out() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace("smoke-rollout", &[("team", "a")], &[("note", "b")]).await.unwrap();
    let deployments: Api<Deployment> = Api::namespaced(cluster.client().await.unwrap(), &namespace);
    let web = deployment("web", &["app:1.0.0", "sidecar:2.0.0"], &json!({}));
    deployments.create(&PostParams::default(), &web).await.unwrap();
    let output = cluster.kubectl_ok(&["-n", &namespace, "rollout", "status", "deployment/web", "--timeout=60s"]).await;
    assert!(output.unwrap().contains("successfully rolled out"));
    let pods: Api<Pod> = Api::namespaced(cluster.client().await.unwrap(), &namespace);
    let status = pods.list(&ListParams::default()).await.unwrap().items.remove(0).status.unwrap();
    assert_eq!((status.phase.as_deref(), status.container_statuses.map(|list| list.len())), (Some("Running"), Some(2)));
    assert!(status.pod_ip.is_some() && status.host_ip.is_some(), "a running Pod has addresses");
    deployments.delete("web", &DeleteParams::default()).await.unwrap();
    let gone = async || pods.list(&ListParams::default()).await.unwrap().items.is_empty();
    eventually(DEADLINE, "deleted Pods go", gone).await;
}

#[tokio::test]
async fn a_broken_image_never_starts() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace("smoke-broken", &[], &[]).await.unwrap();
    let client = cluster.client().await.unwrap();
    let (deployments, pods) =
        (Api::<Deployment>::namespaced(client.clone(), &namespace), Api::<Pod>::namespaced(client, &namespace));
    let cases = [
        ("path", vec!["registry:5000/broken:1.0.0"]),
        ("tag", vec!["app:1.0.0-broken"]),
        ("pinned", vec!["app:1.0.0-broken@sha256:0123456789012345678901234567890123456789012345678901234567890123"]),
        ("second", vec!["app:1.0.0", "team/broken/app:1"]),
    ];
    for (name, images) in &cases {
        deployments.create(&PostParams::default(), &deployment(name, images, &json!({}))).await.unwrap();
    }
    let fine = ["unbroken:1.0.0", "app:1.0.0-brokenly", "app:broken"];
    deployments.create(&PostParams::default(), &deployment("fine", &fine, &json!({}))).await.unwrap();
    for (name, _) in &cases {
        let exceeded = async || {
            let reason = condition(&deployments.get(name).await.unwrap(), "Progressing");
            if reason.as_deref() == Some("ProgressDeadlineExceeded") { Ok(()) } else { Err(format!("{reason:?}")) }
        };
        eventually(DEADLINE, &format!("{name} exceeds its progress deadline"), exceeded).await;
        let of_it = ListParams::default().labels(&format!("app={name}"));
        for pod in pods.list(&of_it).await.unwrap() {
            let pod = serde_json::to_value(pod).unwrap();
            assert_eq!(pod["status"]["phase"], "Pending", "{name}");
            let reason = &pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"];
            assert_eq!(reason, "ImagePullBackOff", "{name}");
        }
    }
    let fine = async || {
        let reason = condition(&deployments.get("fine").await.unwrap(), "Progressing");
        if reason.as_deref() == Some("NewReplicaSetAvailable") { Ok(()) } else { Err(format!("{reason:?}")) }
    };
    eventually(DEADLINE, "the other one is complete", fine).await;
}

#[tokio::test]
async fn a_pod_may_start_late() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace("smoke-late", &[], &[]).await.unwrap();
    let deployments: Api<Deployment> = Api::namespaced(cluster.client().await.unwrap(), &namespace);
    let started = Instant::now();
    let late = deployment("late", &["app:1"], &json!({"testbed.kimup/ready-after": "2s"}));
    deployments.create(&PostParams::default(), &late).await.unwrap();
    let available = async || {
        condition(&deployments.get("late").await.unwrap(), "Available")?.eq("MinimumReplicasAvailable").then_some(())
    };
    eventually(DEADLINE, "the late Pods become available", available).await;
    assert!(started.elapsed() >= Duration::from_secs(2), "{:?}", started.elapsed());
}

#[tokio::test]
async fn a_job_ends() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace("smoke-job", &[], &[]).await.unwrap();
    cluster.kubectl_ok(&["-n", &namespace, "create", "job", "once", "--image=app:1"]).await.unwrap();
    cluster
        .kubectl_ok(&["-n", &namespace, "wait", "--for=condition=Complete", "job/once", "--timeout=60s"])
        .await
        .unwrap();
}

#[tokio::test]
async fn a_service_account_may_do_what_its_role_says() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace("smoke-rbac", &[], &[]).await.unwrap();
    cluster
        .kubectl_ok(&["-n", &namespace, "create", "role", "reader", "--verb=list", "--resource=pods"])
        .await
        .unwrap();
    let binding =
        ["-n", &namespace, "create", "rolebinding", "reader", "--role=reader", "--serviceaccount=smoke-rbac:default"];
    cluster.kubectl_ok(&binding).await.unwrap();
    let kubeconfig = cluster.kubeconfig_for(&namespace, "default").await.unwrap();
    let client = cluster.client_as(&kubeconfig).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    eventually(DEADLINE, "the role counts", async || pods.list(&ListParams::default()).await).await;
    let maps: Api<ConfigMap> = Api::namespaced(client, &namespace);
    assert!(matches!(maps.list(&ListParams::default()).await, Err(kube::Error::Api(status)) if status.code == 403));
}

#[tokio::test]
async fn requests_of_kimup_are_in_the_audit_log() {
    let cluster = Cluster::shared().await;
    cluster.apply_deploy(&["Namespace"]).await.unwrap();
    let account = r#"{"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "smoke-audit", "namespace": "kimup-system"}}"#;
    cluster.apply(&[], account).await.unwrap();
    let kubeconfig = cluster.kubeconfig_for("kimup-system", "smoke-audit").await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(cluster.client_as(&kubeconfig).await.unwrap(), "kimup-system");
    maps.delete("absent", &DeleteParams::default()).await.unwrap_err();
    let seen = async || {
        let log = cluster.audit_log().unwrap();
        log.into_iter().find(|event| event["verb"] == "delete" && event["objectRef"]["name"] == "absent")
    };
    let event = eventually(DEADLINE, "the request in the audit log", seen).await;
    assert_eq!(event["user"]["username"], "system:serviceaccount:kimup-system:smoke-audit");
}

#[tokio::test]
async fn the_api_server_comes_back_with_its_data() {
    let cluster = Cluster::start().await.unwrap();
    let namespace = cluster.namespace("kept", &[], &[]).await.unwrap();
    let kubeconfig = cluster.kubeconfig_for(&namespace, "default").await.unwrap();
    cluster.kill_apiserver();
    let deployments: Api<Deployment> = Api::namespaced(cluster.client().await.unwrap(), &namespace);
    assert!(
        matches!(deployments.list(&ListParams::default()).await, Err(error) if !matches!(error, kube::Error::Api(_)))
    );
    cluster.restart_apiserver().await.unwrap();
    deployments.create(&PostParams::default(), &deployment("web", &["app:1"], &json!({}))).await.unwrap();
    let available = async || {
        condition(&deployments.get("web").await.unwrap(), "Available")?.eq("MinimumReplicasAvailable").then_some(())
    };
    eventually(DEADLINE, "the controllers and the kubelet go on", available).await;
    let client = cluster.client_as(&kubeconfig).await.unwrap();
    let answer = Api::<Pod>::namespaced(client, &namespace).list(&ListParams::default()).await;
    assert!(
        matches!(answer, Err(kube::Error::Api(status)) if status.code == 403),
        "the old token still names its owner"
    );
}

#[tokio::test]
async fn a_watch_can_be_held_back() {
    let cluster = Cluster::shared().await;
    let namespace = cluster.namespace("smoke-held", &[], &[]).await.unwrap();
    let balancer = Balancer::start(&[cluster.address().parse().unwrap()]).await.unwrap();
    let kubeconfig = cluster.kubeconfig_via(&namespace, "default", &balancer.address().to_string()).await.unwrap();
    let client = cluster.client_as(&kubeconfig).await.unwrap();
    client.apiserver_version().await.unwrap();
    balancer.hold_back(true);
    let asked = tokio::spawn(async move { client.apiserver_version().await });
    assert!(!asked.is_finished());
    balancer.hold_back(false);
    tokio::time::timeout(DEADLINE, asked).await.unwrap().unwrap().unwrap();
}

async fn check_registry(mut registry: Registry, outsider_status: u16) {
    let first = registry.push("team/app", "1.0.0").await.unwrap();
    registry.push_all("team/app", &["1.1.0", "2.0.0-rc.1"]).await.unwrap();
    assert_ne!(registry.push("team/app", "1.0.0").await.unwrap(), first, "pushing again moves a tag");
    assert_eq!(registry.tags("team/app").await.unwrap(), ["1.0.0", "1.1.0", "2.0.0-rc.1"]);
    let pem = registry.certificate_pem().map(|pem| reqwest::Certificate::from_pem(pem.as_bytes()).unwrap());
    let scheme = if pem.is_some() { "https" } else { "http" };
    let outsider = reqwest::Client::builder().tls_certs_only(pem).no_proxy().build().unwrap();
    let answer = outsider.get(format!("{scheme}://{}/v2/team/app/tags/list", registry.host())).send().await.unwrap();
    assert_eq!(answer.status(), outsider_status);
    registry.delete_tag("team/app", "1.1.0").await.unwrap();
    assert_eq!(registry.tags("team/app").await.unwrap(), ["1.0.0", "2.0.0-rc.1"]);
    registry.stop();
    assert!(registry.tags("team/app").await.is_err(), "nobody answers");
    registry.start_again().await.unwrap();
    assert_eq!(registry.tags("team/app").await.unwrap(), ["1.0.0", "2.0.0-rc.1"]);
    registry.delete_all().await.unwrap();
    assert!(registry.tags("team/app").await.unwrap().is_empty());
    registry.push("team/app", "3.0.0").await.unwrap();
    assert_eq!(registry.tags("team/app").await.unwrap(), ["3.0.0"]);
}

#[tokio::test]
async fn each_registry_takes_images() {
    check_registry(Registry::open().await.unwrap(), 200).await;
    check_registry(Registry::htpasswd("robot", "pass:word").await.unwrap(), 401).await;
    check_registry(Registry::tls().await.unwrap(), 200).await;
    check_registry(Registry::tls_htpasswd("robot", "secret").await.unwrap(), 401).await;
}

#[tokio::test]
async fn a_self_signed_certificate_is_not_trusted_by_default() {
    let registry = Registry::tls().await.unwrap();
    let stranger = reqwest::Client::builder().tls_certs_only([]).no_proxy().build().unwrap();
    assert!(stranger.get(format!("https://{}/v2/", registry.host())).send().await.is_err());
}
