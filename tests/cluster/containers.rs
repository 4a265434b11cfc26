//! Pods of several containers: policies of their own, a Pod-wide policy, and containers that somebody else adds.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kimup::api::Image;
use kimup::api::annotated::image_name;
use kimup_testbed::{FaultReply, FaultRequest, FaultServer, TestCa, eventually};
use kube::ResourceExt;
use kube::api::{Api, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::annotated::{INTERVAL, POLICY, images, on_template, patch_deployment, settles};
use crate::policies::{complained, kubectl_create, kubectl_creates};
use crate::support::{Bed, DEADLINE, Shop, image_of, is_ready, pod};

const CONTAINERS: &str = "kimup.cloudavenue.io/containers";
const APPLIED: &str = "kimup.cloudavenue.io/applied";
/// What the other webhook adds to a Pod.
pub const INJECT: &str = "inject.example.org/image";

/// `app` and these containers, with these annotations on the template.
fn of_containers(annotations: &Value, containers: &Value, init: &Value) -> Value {
    let mut patch = on_template(annotations);
    patch["spec"]["template"]["spec"] = json!({"containers": containers, "initContainers": init});
    patch
}

/// Waits until an app has two ready Pods whose containers run these images.
async fn run(shop: &Shop, app: &str, wanted: &[(&str, &str)]) -> Vec<Pod> {
    let what = format!("the Pods of {}/{app} run {wanted:?}", shop.namespace);
    let pods = eventually(DEADLINE, &what, async || {
        let mut pods = shop.pods().await;
        pods.retain(|pod| pod.labels().get("app").is_some_and(|a| a == app));
        let found: Vec<Vec<String>> =
            pods.iter().map(|pod| wanted.iter().map(|(name, _)| image_of(pod, name)).collect()).collect();
        let right = |images: &Vec<String>| images.iter().eq(wanted.iter().map(|(_, image)| image));
        if pods.len() == 2 && found.iter().all(right) && pods.iter().all(is_ready) {
            Ok(pods)
        } else {
            Err(format!("{found:?}"))
        }
    });
    pods.await
}

#[tokio::test]
async fn each_container_follows_its_own_policy() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("c-own", &["1.0.0", "1.0.1", "1.1.0", "2.0.0"]).await.unwrap();
    registry.push_all("c-init", &["100", "101", "1000"]).await.unwrap();
    let shop = bed.shop("c-own", &[]).await;
    let (own, init) = (registry.image("c-own"), registry.image("c-init"));
    let annotations = json!({
        "policy.kimup.cloudavenue.io/app": "patch", "interval.kimup.cloudavenue.io/app": "10m",
        "policy.kimup.cloudavenue.io/web": "minor", INTERVAL: "1h", CONTAINERS: "app,web,migrate",
        "policy.kimup.cloudavenue.io/migrate": "numerical", "pattern.kimup.cloudavenue.io/migrate": r"^\d{3}$",
    });
    let text = format!("{own}:1.0.0");
    let containers = json!([
        {"name": "app", "image": text}, {"name": "web", "image": text}, {"name": "log", "image": text},
    ]);
    let init_containers = json!([{"name": "migrate", "image": format!("{init}:100")}, {"name": "wait", "image": text}]);
    shop.create_deployment("shop", &text, &of_containers(&annotations, &containers, &init_containers)).await;
    let wanted = async |app: &str, web: &str, migrate: &str| {
        let (app, web, migrate) = (format!("{own}:{app}"), format!("{own}:{web}"), format!("{init}:{migrate}"));
        run(&shop, "shop", &[("app", &*app), ("web", &*web), ("migrate", &*migrate), ("log", &*text), ("wait", &*text)])
            .await
    };
    let names = ["app", "web", "migrate"].map(|container| image_name("Deployment", "shop", container));
    for pod in wanted("1.0.1", "1.1.0", "101").await {
        let [app, web, migrate] = &names;
        let said = format!(
            "app: 1.0.0 -> 1.0.1 (Image {app}); web: 1.0.0 -> 1.1.0 (Image {web}); migrate: 100 -> 101 (Image {migrate})"
        );
        assert_eq!(pod.annotations()[APPLIED], said);
    }
    for (name, tag, interval) in [(&names[0], "1.0.1", "10m"), (&names[1], "1.1.0", "1h"), (&names[2], "101", "1h")] {
        settles(&shop, name, tag).await;
        assert_eq!(shop.api::<Image>().get(name).await.unwrap().spec.triggers[0].value, interval, "{name}");
    }
    assert_eq!(shop.revisions("shop").await, 1);
    assert_eq!(images(&shop).await.len(), 3);

    registry.push_all("c-own", &["1.0.2", "1.2.0", "2.1.0"]).await.unwrap();
    registry.push_all("c-init", &["102", "1001"]).await.unwrap();
    for name in &names {
        shop.sync(name).await;
    }
    wanted("1.0.2", "1.2.0", "102").await;
    for (name, tag) in names.iter().zip(["1.0.2", "1.2.0", "102"]) {
        shop.settles(name, tag).await;
    }
    // One opts out; the others go on.
    let out = json!({"policy.kimup.cloudavenue.io/web": null, "enabled.kimup.cloudavenue.io/web": "false"});
    patch_deployment(&shop, "shop", &on_template(&out)).await;
    wanted("1.0.2", "1.0.0", "102").await;
    registry.push_all("c-own", &["1.0.3", "1.3.0"]).await.unwrap();
    shop.sync(&names[0]).await;
    wanted("1.0.3", "1.0.0", "102").await;
    assert_eq!(images(&shop).await.len(), 2);
}

#[tokio::test]
async fn a_pod_wide_policy_must_say_which_container_it_means() {
    let bed = Bed::shared().await;
    let registry = &bed.registries.open;
    registry.push_all("c-wide", &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop("c-wide", &[]).await;
    let image = registry.image("c-wide");
    let (text, newest) = (format!("{image}:1.0.0"), format!("{image}:1.1.0"));
    let annotations = json!({POLICY: "semver", INTERVAL: "1h"});
    let containers = json!([{"name": "app", "image": text}, {"name": "web", "image": text}]);
    let several = of_containers(&annotations, &containers, &json!([{"name": "init", "image": text}]));
    shop.create_deployment("web", &text, &several).await;
    run(&shop, "web", &[("app", &text), ("web", &text), ("init", &text)]).await;
    complained(&shop, "web", &[POLICY, "app, web", CONTAINERS]).await;

    let bare = |name: &str, annotations: &Value| -> Pod {
        let mut object = serde_json::to_value(pod(name, &text)).unwrap();
        let patch = json!({"metadata": {"annotations": annotations}, "spec": {"containers": containers}});
        json_patch::merge(&mut object, &patch);
        serde_json::from_value(object).unwrap()
    };
    let (success, said) = kubectl_create(bed.cluster, &shop, &bare("unclear", &annotations)).await;
    assert!(success && said.starts_with("Warning: kimup: "), "{said}");
    assert!([POLICY, "app, web", CONTAINERS].iter().all(|part| said.contains(part)), "{said}");
    let created = shop.api::<Pod>().get("unclear").await.unwrap();
    assert_eq!((image_of(&created, "app"), image_of(&created, "web")), (text.clone(), text.clone()));
    assert!(!created.annotations().contains_key(APPLIED));
    assert_eq!(images(&shop).await, [""; 0]);
    assert_eq!(shop.revisions("web").await, 1);

    // Named, it works.
    let named = json!({POLICY: "semver", INTERVAL: "1h", CONTAINERS: "web"});
    kubectl_creates(bed.cluster, &shop, &bare("clear", &named)).await;
    let created = shop.api::<Pod>().get("clear").await.unwrap();
    assert_eq!((image_of(&created, "app"), image_of(&created, "web")), (text.clone(), newest.clone()));
    patch_deployment(&shop, "web", &on_template(&json!({CONTAINERS: "app"}))).await;
    settles(&shop, &image_name("Deployment", "web", "app"), "1.1.0").await;
    run(&shop, "web", &[("app", &newest), ("web", &text), ("init", &text)]).await;
    // On a busy machine its Pods may have come before its Image, and then it was rolled: that is not taken back.
    let template = shop.api::<Deployment>().get("web").await.unwrap().spec.template.metadata.unwrap();
    let is_stamped = template.annotations.unwrap().contains_key("stamp.kimup.cloudavenue.io/app");
    let app = if is_stamped { &newest } else { &text };
    patch_deployment(&shop, "web", &json!({"metadata": {"annotations": {CONTAINERS: "web"}}})).await;
    patch_deployment(&shop, "web", &on_template(&json!({CONTAINERS: "web, init"}))).await;
    run(&shop, "web", &[("app", app), ("web", &newest), ("init", &newest)]).await;
}

/// Another mutating webhook, as of a service mesh: adds a container and an init container to each Pod that wants one.
pub struct Injector {
    server: FaultServer,
}

impl Injector {
    /// `name` decides whether it is called before kimup (`kimup-url`) or after; `place`: where it puts its container.
    pub async fn start(shop: &Shop, name: &str, place: &'static str) -> Self {
        let ca = TestCa::new().unwrap();
        let certificate = ca.server(&["127.0.0.1"]).unwrap();
        let server = FaultServer::https(&certificate, move |request| inject(request, place)).await.unwrap();
        let configuration = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [{
                "name": "inject.example.org", "admissionReviewVersions": ["v1"], "sideEffects": "None",
                "reinvocationPolicy": "IfNeeded", "failurePolicy": "Fail",
                "clientConfig": {
                    "url": format!("https://{}/", server.host()), "caBundle": ByteString(ca.pem().into()),
                },
                "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": shop.namespace}},
                "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}],
            }],
        });
        let configuration: MutatingWebhookConfiguration = serde_json::from_value(configuration).unwrap();
        let api: Api<MutatingWebhookConfiguration> = Api::all(shop.client.clone());
        api.create(&PostParams::default(), &configuration).await.unwrap();
        let dry = PostParams { dry_run: true, ..PostParams::default() };
        let probe = crate::support::with_annotations(pod("probe", "probe.invalid/app:1"), &[(INJECT, "probe")]);
        eventually(DEADLINE, "the other webhook is called", async || {
            image_of(&shop.api::<Pod>().create(&dry, &probe).await.unwrap(), "proxy") == "probe"
        })
        .await;
        Self { server }
    }

    /// The images that `app` had in a Pod of that app, at each call.
    pub fn saw(&self, app: &str) -> Vec<String> {
        let pods = self.server.requests().into_iter().map(|request| object(&request));
        pods.filter(|pod| pod["metadata"]["labels"]["app"] == app).map(|pod| image_in(&pod)).collect()
    }
}

fn image_in(pod: &Value) -> String {
    let containers = pod["spec"]["containers"].as_array().unwrap();
    let container = containers.iter().find(|container| container["name"] == "app").unwrap();
    container["image"].as_str().unwrap().to_owned()
}

fn object(request: &FaultRequest) -> Value {
    serde_json::from_slice::<Value>(&request.body).unwrap()["request"]["object"].take()
}

fn inject(request: &FaultRequest, place: &str) -> FaultReply {
    let review: Value = serde_json::from_slice(&request.body).unwrap();
    let pod = &review["request"]["object"];
    let mut response = json!({"uid": review["request"]["uid"], "allowed": true});
    let is_there = pod["spec"]["containers"].as_array().unwrap().iter().any(|c| c["name"] == "proxy");
    if let Some(image) = pod["metadata"]["annotations"][INJECT].as_str().filter(|_| !is_there) {
        let init = json!([{"name": "proxy-init", "image": image}]);
        let patch = json!([
            {"op": "add", "path": format!("/spec/containers/{place}"), "value": {"name": "proxy", "image": image}},
            {"op": "add", "path": "/spec/initContainers", "value": init},
        ]);
        response["patchType"] = json!("JSONPatch");
        response["patch"] = json!(ByteString(serde_json::to_vec(&patch).unwrap()));
    }
    let answer = json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response});
    FaultReply::new(200, answer.to_string()).header("content-type", "application/json")
}

/// Deployments with one container and a Pod-wide policy, to whose Pods the other webhook adds containers: with an image
/// from elsewhere, and with one of the very repository that the policy is about.
async fn check_injected(bed: &Bed, name: &'static str, webhook: &str, place: &'static str, first: &str) {
    let registry = &bed.registries.open;
    registry.push_all(name, &["1.0.0", "1.1.0"]).await.unwrap();
    let shop = bed.shop(name, &[]).await;
    let image = registry.image(name);
    let injector = Injector::start(&shop, webhook, place).await;
    let (text, newest) = (format!("{image}:1.0.0"), format!("{image}:1.1.0"));
    let cases = [("other", "mesh.invalid/proxy:1.0.0"), ("same", &*text)];
    for (app, proxy) in cases {
        let annotations = json!({POLICY: "semver", INTERVAL: "1h", INJECT: proxy});
        shop.create_deployment(app, &text, &on_template(&annotations)).await;
        let made = image_name("Deployment", app, "app");
        for pod in run(&shop, app, &[("app", &newest), ("proxy", proxy), ("proxy-init", proxy)]).await {
            assert_eq!(pod.annotations()[APPLIED], format!("app: 1.0.0 -> 1.1.0 (Image {made})"));
        }
        assert_eq!(injector.saw(app)[0], format!("{image}:{first}"), "who was called first");
        settles(&shop, &made, "1.1.0").await;
    }
    registry.push(name, "1.2.0").await.unwrap();
    let newest = format!("{image}:1.2.0");
    for (app, proxy) in cases {
        let made = image_name("Deployment", app, "app");
        shop.sync(&made).await;
        run(&shop, app, &[("app", &newest), ("proxy", proxy), ("proxy-init", proxy)]).await;
        shop.settles(&made, "1.2.0").await;
        shop.sync(&made).await;
        assert_eq!(shop.revisions(app).await, 2, "{app}");
        let events = shop.events("Deployment", app).await;
        assert!(!events.iter().any(|event| event.starts_with("PolicyInvalid")), "{events:?}");
        // A Pod that comes later is like the others.
        let scaled = Patch::Merge(json!({"spec": {"replicas": 3}}));
        shop.api::<Deployment>().patch(app, &PatchParams::default(), &scaled).await.unwrap();
        let pods = shop.pods_run(app, 3, &newest).await;
        assert!(pods.iter().all(|pod| image_of(pod, "proxy") == proxy));
    }
    let mut made = cases.map(|(app, _)| image_name("Deployment", app, "app"));
    made.sort();
    assert_eq!(images(&shop).await, made);
}

#[tokio::test]
async fn what_another_webhook_adds_before_is_left_alone() {
    check_injected(Bed::shared().await, "c-before", "a-inject", "0", "1.0.0").await;
}

#[tokio::test]
async fn what_another_webhook_adds_afterwards_is_left_alone() {
    check_injected(Bed::shared().await, "c-after", "z-inject", "-", "1.1.0").await;
}
