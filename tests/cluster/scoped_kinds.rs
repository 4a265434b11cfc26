//! `--watch-namespace` under Roles alone, with the kinds that other projects bring; and a Rollout that has its Pods from a
//! Deployment.

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use kimup::admission::configuration::{CaBundle, Endpoint, Options, build};
use kimup::rollout::Kind;
use kimup_testbed::{KimupProcess, ServerCertificate, WebhookUrl, eventually};
use kube::ResourceExt;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::foreign_kinds::{api, argo, counts, create, install, kruise, owner, stamp_of, stamped};
use crate::own::{Own, SYSTEM, admits};
use crate::support::{DEADLINE, ENABLED, Shop};

/// What `deploy/` gives for the whole cluster, in these namespaces only.
async fn restrict(own: &Own, shops: &[&Shop]) {
    let client = own.cluster.client().await.unwrap();
    let of_deploy: Api<ClusterRole> = Api::all(client.clone());
    let mut rules = of_deploy.get("kimup").await.unwrap().rules.unwrap();
    let namespaced =
        |resource: &String| !["namespaces", "nodes", "mutatingwebhookconfigurations"].contains(&resource.as_str());
    rules.retain(|rule| rule.resources.iter().flatten().all(namespaced));
    let mut rules = json!(rules);
    rules.as_array_mut().unwrap().push(json!({"apiGroups": [""], "resources": ["namespaces"], "verbs": ["get"]}));
    for shop in shops {
        let role = json!({"metadata": {"name": "kimup"}, "rules": rules});
        shop.api::<Role>().create(&PostParams::default(), &serde_json::from_value(role).unwrap()).await.unwrap();
        let binding = json!({"metadata": {"name": "kimup"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "kimup"},
            "subjects": [{"kind": "ServiceAccount", "name": "kimup", "namespace": SYSTEM}]});
        let binding = serde_json::from_value(binding).unwrap();
        shop.api::<RoleBinding>().create(&PostParams::default(), &binding).await.unwrap();
    }
    let bindings: Api<ClusterRoleBinding> = Api::all(client);
    for name in ["kimup", "kimup-pull-secrets"] {
        bindings.delete(name, &DeleteParams::default()).await.unwrap();
    }
}

/// The static webhook configuration that a person writes then, for the certificate that kimup is given.
async fn configure(own: &Own, kimup: &KimupProcess, certificate: &ServerCertificate) {
    let options = Options {
        name: "kimup-static".to_owned(),
        namespace: SYSTEM.to_owned(),
        endpoint: Endpoint::Url(format!("https://{}", kimup.webhook())),
        owner: None,
        ca_bundle: CaBundle::Own(certificate.root_pem().into()),
    };
    let api = Api::all(own.cluster.client().await.unwrap());
    api.create(&PostParams::default(), &build(&options, &[])).await.unwrap();
}

/// Holds every rollout of the cluster back, by kimup's own Namespace.
async fn freeze(own: &Own, freeze: bool) {
    let value = freeze.then_some("true");
    let patch = Patch::Merge(json!({"metadata": {"annotations": {"kimup.cloudavenue.io/freeze": value}}}));
    let namespaces: Api<Namespace> = Api::all(own.cluster.client().await.unwrap());
    namespaces.patch(SYSTEM, &PatchParams::default(), &patch).await.unwrap();
}

#[tokio::test]
async fn kinds_of_other_projects_are_rolled_under_roles_alone() {
    let own = Own::start().await;
    own.registry.push("app", "1.0.0").await.unwrap();
    let image = own.registry.image("app");
    let [old, new] = ["1.0.0", "1.1.0"].map(|tag| format!("{image}:{tag}"));
    let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    for kind in [Kind::Rollout, Kind::CloneSet] {
        install(&own.cluster, kind, &open).await;
    }
    let enabled = [(ENABLED, "true")];
    let [argos, kruises, elsewhere] =
        ["argos", "kruises", "elsewhere"].map(|name| Shop::new(&own.cluster, name, &enabled, &[]));
    let (argos, kruises, elsewhere) = (argos.await, kruises.await, elsewhere.await);
    restrict(&own, &[&argos, &kruises]).await;
    freeze(&own, true).await;
    for shop in [&argos, &kruises, &elsewhere] {
        shop.create_image("app", &json!({"spec": {"image": image}})).await;
    }
    let mut options = own.options("scoped").await;
    options
        .args
        .extend(["argos", "kruises"].iter().flat_map(|name| ["--watch-namespace".to_owned(), (*name).to_owned()]));
    let certificate = ServerCertificate::self_signed(&["127.0.0.1"]).unwrap();
    let folder = own.cluster.folder().join("webhook");
    std::fs::create_dir(&folder).unwrap();
    certificate.write(&folder).unwrap();
    for (flag, file) in [("--tls-cert-file", "server.crt"), ("--tls-key-file", "server.key")] {
        options.args.extend([flag.to_owned(), folder.join(file).display().to_string()]);
    }
    options.webhook_url = WebhookUrl::None;
    let kimup = KimupProcess::start(options).await.unwrap();
    configure(&own, &kimup, &certificate).await;
    admits(&argos, &old, &old).await;

    for (shop, kind, name) in [(&argos, Kind::Rollout, "web"), (&kruises, Kind::CloneSet, "set")] {
        shop.settles("app", "1.0.0").await;
        create(shop, kind, name, &old, &json!({})).await;
    }
    argo(&argos, "web", 2, "Healthy").await;
    kruise(&kruises, "set", 2).await;
    referred(&argos, &old).await;
    counts(&argos, "app", "2/2").await;
    counts(&kruises, "app", "1/1").await;

    own.registry.push("app", "1.1.0").await.unwrap();
    for shop in [&argos, &kruises] {
        let pending = shop.sync("app").await.pending;
        assert!(pending.is_some_and(|pending| pending.reason.contains(SYSTEM)), "everything is frozen");
    }
    freeze(&own, false).await;
    stamped(&argos, Kind::Rollout, "web", &old, &new).await;
    argo(&argos, "web", 2, "Healthy").await;
    stamped(&kruises, Kind::CloneSet, "set", &old, &new).await;
    kruise(&kruises, "set", 2).await;
    follows(&argos, &old, &new).await;
    for (shop, workloads) in [(&argos, "2/2"), (&kruises, "1/1")] {
        shop.settles("app", "1.1.0").await;
        counts(shop, "app", workloads).await;
    }
    assert_eq!(elsewhere.status("app").await.result, None, "nobody follows it");
    let log = kimup.log_text();
    for word in ["forbidden", "panicked", "is not allowed"] {
        assert!(!log.contains(word), "{word}: {:?}", log.lines().find(|line| line.contains(word)));
    }
}

/// A Rollout `ref` without a Pod template: it has that of the Deployment `api`, which has no Pods of its own.
async fn referred(shop: &Shop, text: &str) {
    shop.create_deployment("api", text, &json!({"spec": {"replicas": 0}})).await;
    let reference = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": "api"});
    let spec = json!({"template": null, "selector": null, "replicas": 1, "workloadRef": reference});
    create(shop, Kind::Rollout, "ref", text, &json!({"spec": spec})).await;
}

/// The Deployment is stamped and the Rollout left alone, whose Pods get the tag by the template that it takes over.
async fn follows(shop: &Shop, old: &str, new: &str) {
    let wanted = format!("{old} {new}");
    let deployment = eventually(DEADLINE, "the Deployment is stamped", async || {
        let deployment = shop.api::<Deployment>().get("api").await.unwrap();
        let annotations = deployment.spec.template.metadata.clone().unwrap_or_default().annotations.unwrap_or_default();
        match annotations.get("stamp.kimup.cloudavenue.io/app") {
            Some(stamp) if *stamp == wanted => Ok(deployment),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let rollout = api(shop, Kind::Rollout).get("ref").await.unwrap();
    assert_eq!((stamp_of(&rollout).as_str(), rollout.metadata.generation), ("", Some(1)));
    let mut template: Value = json!(deployment.spec.template);
    let labels = json!({"app": "ref", "rollouts-pod-template-hash": "5d8f"});
    json_patch::merge(&mut template, &json!({"metadata": {"labels": labels}}));
    let set = json!({"metadata": {"name": "ref-5d8f", "labels": labels, "ownerReferences": owner(&rollout)},
        "spec": {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}});
    shop.api::<ReplicaSet>().create(&PostParams::default(), &serde_json::from_value(set).unwrap()).await.unwrap();
    let pods = shop.pods_run("ref", 1, new).await;
    let applied = &pods[0].annotations()["kimup.cloudavenue.io/applied"];
    assert!(applied.starts_with("app: 1.0.0 -> 1.1.0 (Image app, rollout "), "{applied}");
}
