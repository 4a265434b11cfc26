//! What a cluster would have and send: Namespaces, Images, and reviews of Pods of a given size.

use serde_json::{Map, Value, json};

pub const NAMESPACES: usize = 100;
/// The tag in the manifests, and the one that the Images have settled on.
const OWN: &str = "1.0.0";
pub const SETTLED: &str = "1.4.2";

const STAMP_PREFIX: &str = "stamp.kimup.cloudavenue.io/";
const ROLLOUT: &str = "kimup.cloudavenue.io/rollout";

/// How many different Pods are sent in turn: as in a cluster, one finds the caches used by others.
const POD_KINDS: usize = 64;

pub fn namespace(number: usize) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": namespace_name(number), "uid": format!("5b0c1f3e-0000-4000-8000-{number:012}"),
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"kubernetes.io/metadata.name": namespace_name(number), "kimup.cloudavenue.io/enabled": "true"},
        },
        "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Active"},
    })
}

/// The Image with this number; Images are spread evenly over the namespaces. `tag` is the settled one.
pub fn image(number: usize, tag: &str) -> Value {
    let (namespace, name) = (number % NAMESPACES, number / NAMESPACES);
    let digest = format!("sha256:{number:064x}");
    let past = |age: usize| json!({"tag": format!("1.{}.{age}", 3 - age / 4), "time": "2026-02-01T10:00:00Z"});
    json!({
        "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
        "metadata": {
            "name": format!("app-{name}"), "namespace": namespace_name(namespace), "generation": 3,
            "uid": format!("9e107d9d-0000-4000-8000-{number:012}"), "creationTimestamp": "2026-01-02T00:00:00Z",
            "labels": {"app.kubernetes.io/instance": "shop", "app.kubernetes.io/part-of": "web"},
            "annotations": {"kubectl.kubernetes.io/last-applied-configuration": spec(namespace, name).to_string()},
            "managedFields": managed_fields_of_image(),
        },
        "spec": spec(namespace, name),
        "status": {
            "tag": tag, "result": "Success", "time": "2026-03-01T10:00:00Z", "observedGeneration": 3,
            "repository": repository(namespace, name), "digest": digest, "workloads": "3/3",
            "conditions": [{
                "type": "Ready", "status": "True", "reason": "Success", "observedGeneration": 3,
                "message": format!("runs {tag}, the newest tag that the rules allow"),
                "lastTransitionTime": "2026-02-01T10:00:00Z"}],
            "history": (0..8).map(past).collect::<Vec<_>>(),
        },
    })
}

fn spec(namespace: usize, name: usize) -> Value {
    let apply = json!([{"type": "apply"}]);
    let (rules, filter) = match name % 4 {
        0 => (json!([{"name": "range", "type": "semver", "value": ">=1.0.0 <3.0.0", "actions": apply}]), None),
        1 => {
            let filter = json!({"pattern": r"^v?\d+\.\d+\.\d+$", "exclude": ["-rc", "-alpha"]});
            (json!([{"name": "minor", "type": "minor", "actions": apply}]), Some(filter))
        }
        _ => {
            let patch = json!({"name": "patch", "type": "semver-patch", "actions": apply});
            (json!([patch, {"name": "minor", "type": "semver-minor", "actions": apply}]), None)
        }
    };
    let mut spec = json!({
        "image": repository(namespace, name), "baseTag": OWN,
        "triggers": [{"type": "interval", "value": "5m"}], "rules": rules,
    });
    if let Some(filter) = filter {
        spec["filter"] = filter;
    }
    spec
}

fn managed_fields_of_image() -> Value {
    json!([
        {"manager": "kubectl-client-side-apply", "operation": "Update", "apiVersion": "kimup.cloudavenue.io/v1alpha1",
            "time": "2026-01-02T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {
                "f:metadata": {"f:annotations": {".": {}, "f:kubectl.kubernetes.io/last-applied-configuration": {}}},
                "f:spec": {".": {}, "f:baseTag": {}, "f:image": {}, "f:rules": {}, "f:triggers": {}}}},
        {"manager": "kimup", "operation": "Apply", "apiVersion": "kimup.cloudavenue.io/v1alpha1",
            "time": "2026-03-01T10:00:00Z", "fieldsType": "FieldsV1", "subresource": "status", "fieldsV1": {
                "f:status": {"f:conditions": {"k:{\"type\":\"Ready\"}": {".": {}, "f:message": {}, "f:status": {}}},
                    "f:digest": {}, "f:history": {}, "f:repository": {}, "f:result": {}, "f:tag": {}, "f:time": {}}}},
    ])
}

/// An Image before and after a change of its status, for [`kimup_testbed::ApiStub::put`].
pub fn changed_image(number: usize, turn: usize) -> Value {
    image(number, changed_tag(turn))
}

/// What an Image has settled on since its change of this turn.
pub fn changed_tag(turn: usize) -> &'static str {
    if turn.is_multiple_of(2) { "1.4.3" } else { SETTLED }
}

pub fn settled_image(number: usize) -> Value {
    image(number, SETTLED)
}

fn namespace_name(number: usize) -> String {
    format!("team-{number}")
}

fn repository(namespace: usize, name: usize) -> String {
    format!("registry.example.com/team-{namespace}/app-{name}")
}

/// Reviews of Pods that differ in namespace and images.
pub struct Reviews {
    pub bodies: Vec<Vec<u8>>,
    /// How many containers of each an Image covers: half of them.
    pub covered: usize,
}

impl Reviews {
    /// Reviews of about `size` bytes, for a cluster with so many Images; if `stamped` of Pods that a rollout has stamped.
    pub fn of(size: usize, images: usize, stamped: bool) -> Self {
        let containers = match size {
            ..6_000 => 2,
            6_000..20_000 => 4,
            _ => 8,
        };
        let build = |number: usize, filling: usize| {
            let mut pod = pod(number, namespace_of(number), images, containers, filling);
            if stamped {
                stamp(&mut pod);
            }
            review(number, namespace_of(number), &pod).to_string().into_bytes()
        };
        let mut filling = 0;
        while build(0, filling + 1).len() <= size {
            filling += 1;
        }
        let bodies = (0..POD_KINDS).map(|number| build(number, filling)).collect();
        Self { bodies, covered: containers / 2 }
    }
}

/// A review of a Pod of one container, which is of this Image.
pub fn review_of_image(number: usize) -> Vec<u8> {
    let (namespace, name) = (number % NAMESPACES, number / NAMESPACES);
    let image = format!("{}:{OWN}", repository(namespace, name));
    let mut pod = pod(0, namespace, NAMESPACES, 1, 1);
    pod["spec"]["containers"][0]["image"] = json!(image);
    review(number, namespace, &pod).to_string().into_bytes()
}

/// As sync stamps what it rolls.
fn stamp(pod: &mut Value) {
    let stamps: Vec<(String, Value)> = pod["spec"]["containers"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|container| {
            let (name, text) = (container["name"].as_str()?, container["image"].as_str()?);
            let own = text.strip_suffix(OWN).filter(|own| own.ends_with(':'))?;
            Some((format!("{STAMP_PREFIX}{name}"), json!(format!("{text} {own}{SETTLED}"))))
        })
        .collect();
    pod["metadata"]["labels"][ROLLOUT] = json!("7c1e0a52");
    pod["metadata"]["annotations"].as_object_mut().into_iter().for_each(|all| all.extend(stamps.clone()));
}

fn namespace_of(pod: usize) -> usize {
    pod * 7 % NAMESPACES
}

fn review(number: usize, namespace: usize, pod: &Value) -> Value {
    let group = json!({"group": "", "version": "v1", "resource": "pods"});
    let kind = json!({"group": "", "version": "v1", "kind": "Pod"});
    json!({
        "kind": "AdmissionReview", "apiVersion": "admission.k8s.io/v1",
        "request": {
            "uid": format!("0f6a5e4c-0000-4000-8000-{number:012}"), "kind": kind, "resource": group,
            "requestKind": kind, "requestResource": group, "namespace": namespace_name(namespace), "operation": "CREATE",
            "userInfo": {
                "username": "system:serviceaccount:kube-system:replicaset-controller",
                "uid": "3d8e7a52-5a0c-4a5b-9d7e-7b0d0c1f2a3b",
                "groups": ["system:serviceaccounts", "system:serviceaccounts:kube-system", "system:authenticated"]},
            "object": pod,
            "oldObject": null, "dryRun": false, "options": {"kind": "CreateOptions", "apiVersion": "meta.k8s.io/v1"},
        },
    })
}

fn pod(number: usize, namespace: usize, images: usize, containers: usize, filling: usize) -> Value {
    let per_namespace = (images / NAMESPACES).max(1);
    let containers: Vec<Value> = (0..containers)
        .map(|position| {
            let image = if position % 2 == 0 {
                let name = (number * 13 + position) % per_namespace;
                format!("{}:{OWN}", repository(namespace, name))
            } else {
                format!("quay.io/sidecars/helper-{position}:2.1.{number}")
            };
            container(position, &image, filling / containers + usize::from(position < filling % containers))
        })
        .collect();
    let annotations = json!({
        "prometheus.io/port": "9090", "prometheus.io/scrape": "true", "checksum/config": format!("{number:064x}"),
        "kubectl.kubernetes.io/restartedAt": "2026-03-01T10:00:00Z"});
    json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {
            "generateName": "web-6d4b9c7f5d-", "namespace": namespace_name(namespace), "creationTimestamp": null,
            "labels": {
                "app.kubernetes.io/name": "web", "app.kubernetes.io/instance": "shop", "pod-template-hash": "6d4b9c7f5d"},
            "annotations": annotations,
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "web-6d4b9c7f5d", "controller": true,
                "uid": format!("77b0c1d2-0000-4000-8000-{number:012}"), "blockOwnerDeletion": true}],
            "managedFields": managed_fields_of_pod(&containers),
        },
        "spec": {
            "containers": containers, "volumes": volumes(), "restartPolicy": "Always", "dnsPolicy": "ClusterFirst",
            "terminationGracePeriodSeconds": 30, "serviceAccountName": "web", "serviceAccount": "web",
            "securityContext": {"runAsNonRoot": true, "fsGroup": 2000}, "schedulerName": "default-scheduler",
            "tolerations": [{
                "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}],
            "priority": 0, "enableServiceLinks": true, "preemptionPolicy": "PreemptLowerPriority",
        },
        "status": {},
    })
}

fn volumes() -> Value {
    json!([
        {"name": "config", "configMap": {"name": "web-config", "defaultMode": 420}},
        {"name": "kube-api-access-x7k2p", "projected": {"defaultMode": 420, "sources": [
            {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
            {"configMap": {"name": "kube-root-ca.crt", "items": [{"key": "ca.crt", "path": "ca.crt"}]}}]}},
    ])
}

/// A container with `filling` environment variables.
fn container(position: usize, image: &str, filling: usize) -> Value {
    let variable = |n: usize| {
        if n % 4 == 3 {
            json!({"name": format!("SHOP_SECRET_{n}"), "valueFrom": {"secretKeyRef": {"name": "web", "key": format!("key-{n}")}}})
        } else {
            json!({"name": format!("SHOP_SETTING_{n}"), "value": format!("http://service-{n}.shop.svc.cluster.local:8080/")})
        }
    };
    let probe = |path: &str| json!({"httpGet": {"path": path, "port": 8080, "scheme": "HTTP"}, "periodSeconds": 10});
    json!({
        "name": format!("container-{position}"), "image": image, "imagePullPolicy": "IfNotPresent",
        "ports": [{"name": "http", "containerPort": 8080 + position, "protocol": "TCP"}],
        "env": (0..filling).map(variable).collect::<Vec<_>>(),
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "livenessProbe": probe("/healthz"), "readinessProbe": probe("/readyz"),
        "volumeMounts": [
            {"name": "config", "mountPath": "/etc/web"},
            {"name": "kube-api-access-x7k2p", "readOnly": true, "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}],
        "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
        "securityContext": {"allowPrivilegeEscalation": false, "capabilities": {"drop": ["ALL"]}},
    })
}

fn managed_fields_of_pod(containers: &[Value]) -> Value {
    let mut fields = Map::new();
    for container in containers {
        let name = container["name"].as_str().unwrap_or_default();
        let mut env = Map::new();
        for variable in container["env"].as_array().into_iter().flatten() {
            let key = format!("k:{{\"name\":{}}}", variable["name"]);
            env.insert(key, json!({".": {}, "f:name": {}, "f:value": {}}));
        }
        let value = json!({".": {}, "f:env": env, "f:image": {}, "f:imagePullPolicy": {}, "f:livenessProbe": {},
            "f:name": {}, "f:ports": {}, "f:readinessProbe": {}, "f:resources": {}, "f:volumeMounts": {}});
        fields.insert(format!("k:{{\"name\":\"{name}\"}}"), value);
    }
    json!([{
        "manager": "kube-controller-manager", "operation": "Update", "apiVersion": "v1", "time": "2026-03-01T10:00:00Z",
        "fieldsType": "FieldsV1", "fieldsV1": {
            "f:metadata": {"f:annotations": {".": {}}, "f:generateName": {}, "f:labels": {".": {}}, "f:ownerReferences": {".": {}}},
            "f:spec": {"f:containers": fields, "f:dnsPolicy": {}, "f:restartPolicy": {}, "f:volumes": {".": {}}}},
    }])
}
