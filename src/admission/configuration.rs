//! Which Pods the API server sends: the `MutatingWebhookConfiguration` (design section 4). Pure.
//!
//! Three sources: namespaces opted in by label, by annotation (by name, since a selector sees labels only), and Pods
//! opted in anywhere else. Each is split by failure policy as far as the API server can see it. Every Pod is selected by
//! one entry at most.

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations,
    ServiceReference, WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{
    LabelSelector, LabelSelectorRequirement, ObjectMeta, OwnerReference,
};

use crate::api::annotations::{ENABLED, FAILURE_POLICY, MIRROR_POD, ROLLOUT};

use super::handler;

/// Every entry's name ends so.
pub const SUFFIX: &str = ".kimup.cloudavenue.io";
/// The label that the API server sets on every Namespace (Kubernetes, "Well-Known Labels").
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
/// Never in any entry, beside kimup's own namespace: an outage of kimup must not stop the cluster's own Pods.
const EXCLUDED: [&str; 2] = ["kube-system", "kube-node-lease"];
/// Seconds that the API server waits for an answer.
pub const TIMEOUT_SECONDS: i32 = 10;

/// Where the API server finds the webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// A Service, on port 443.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An address outside the cluster, `https://host:port`, without a path.
    Url(String),
}

/// The Namespace that the configuration goes with when it is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

/// What does not change while kimup runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Name of the configuration.
    pub name: String,
    /// kimup's own namespace: excluded, so that kimup can start without kimup.
    pub namespace: String,
    /// Where the webhook is.
    pub target: Target,
    /// Lets the configuration go with kimup's Namespace: left behind it refuses every Pod in scope.
    pub owner: Option<Owner>,
}

/// Builds the configuration. `annotated` are the namespaces opted in by annotation alone, sorted; `ca_bundle` gives the PEM
/// bundle of each entry, by its name.
pub fn build(
    options: &Options,
    annotated: &[String],
    ca_bundle: impl Fn(&str) -> Option<Vec<u8>>,
) -> MutatingWebhookConfiguration {
    let excluded = excluded(options);
    let annotated: Vec<String> = annotated
        .iter()
        .filter(|name| !excluded.contains(name))
        .cloned()
        .collect();
    let sources = sources(&excluded, &annotated);
    let webhooks = sources
        .iter()
        .flat_map(|source| SPLITS.iter().map(move |split| (source, split)))
        .map(|(source, split)| {
            let name = format!("{}-{}", source.name, split.name);
            let bundle = ca_bundle(&format!("{name}{SUFFIX}"));
            entry(options, &name, source, split, bundle)
        })
        .collect();
    MutatingWebhookConfiguration {
        metadata: ObjectMeta {
            name: Some(options.name.clone()),
            labels: Some(
                [
                    ("app.kubernetes.io/name", "kimup"),
                    ("app.kubernetes.io/managed-by", "kimup"),
                ]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            ),
            owner_references: options.owner.as_ref().map(|owner| vec![owned_by(owner)]),
            ..ObjectMeta::default()
        },
        webhooks: Some(webhooks),
    }
}

/// The static configuration, for certificates that come from files: it names no namespace, so that the annotation on a
/// Namespace is not seen. With `inject_ca_from` (`namespace/certificate`) cert-manager fills in the `caBundle`.
///
/// # Errors
/// Only if the configuration cannot be written as YAML, which the tests rule out.
pub fn static_yaml(
    options: &Options,
    inject_ca_from: Option<&str>,
) -> Result<String, serde_saphyr::ser::Error> {
    let mut configuration = build(options, &[], |_| None);
    configuration.metadata.annotations = inject_ca_from
        .map(|from| [("cert-manager.io/inject-ca-from".to_owned(), from.to_owned())].into());
    serde_saphyr::to_string(&configuration)
}

struct Source {
    name: &'static str,
    namespaces: Vec<LabelSelectorRequirement>,
    conditions: Vec<MatchCondition>,
}

fn sources(excluded: &[String], annotated: &[String]) -> Vec<Source> {
    let not_excluded = || requirement(NAME_LABEL, "NotIn", excluded);
    let mut elsewhere = excluded.to_vec();
    elsewhere.extend_from_slice(annotated);
    let mut sources = vec![
        Source {
            name: "labelled",
            namespaces: vec![requirement(ENABLED, "In", &["true"]), not_excluded()],
            conditions: Vec::new(),
        },
        Source {
            name: "pod",
            namespaces: vec![
                requirement(ENABLED, "NotIn", &["true"]),
                requirement(NAME_LABEL, "NotIn", &elsewhere),
            ],
            conditions: vec![opted_in_itself()],
        },
    ];
    if !annotated.is_empty() {
        sources.push(Source {
            name: "annotated",
            namespaces: vec![
                requirement(NAME_LABEL, "In", annotated),
                // Labelled since the list was written: the other entries see the label at once.
                requirement(ENABLED, "NotIn", &["true", "false"]),
            ],
            conditions: Vec::new(),
        });
    }
    sources
}

/// One way to end up with a failure policy: what the Namespace's label says, and the Pod's annotation.
struct Split {
    name: &'static str,
    namespace: &'static str,
    pod: &'static str,
    failure_policy: &'static str,
}

const SPLITS: [Split; 4] = [
    Split {
        name: "fail",
        namespace: "NotIn",
        pod: "!= \"ignore\"",
        failure_policy: "Fail",
    },
    Split {
        name: "pod-ignore",
        namespace: "NotIn",
        pod: "== \"ignore\"",
        failure_policy: "Ignore",
    },
    Split {
        name: "ignore",
        namespace: "In",
        pod: "!= \"fail\"",
        failure_policy: "Ignore",
    },
    Split {
        name: "pod-fail",
        namespace: "In",
        pod: "== \"fail\"",
        failure_policy: "Fail",
    },
];

fn entry(
    options: &Options,
    name: &str,
    source: &Source,
    split: &Split,
    ca_bundle: Option<Vec<u8>>,
) -> MutatingWebhook {
    let mut namespaces = source.namespaces.clone();
    namespaces.push(requirement(FAILURE_POLICY, split.namespace, &["ignore"]));
    let mut conditions = vec![not_opted_out(), not_a_mirror_pod()];
    conditions.extend(source.conditions.iter().cloned());
    let policy = annotation(FAILURE_POLICY);
    conditions.push(condition(
        "failure-policy",
        format!("{policy} {}", split.pod),
    ));
    MutatingWebhook {
        name: format!("{name}{SUFFIX}"),
        client_config: client_config(&options.target, name, ca_bundle),
        rules: Some(vec![RuleWithOperations {
            api_groups: Some(vec![String::new()]),
            api_versions: Some(vec!["v1".to_owned()]),
            operations: Some(vec!["CREATE".to_owned()]),
            resources: Some(vec!["pods".to_owned()]),
            scope: Some("Namespaced".to_owned()),
        }]),
        failure_policy: Some(split.failure_policy.to_owned()),
        match_policy: Some("Equivalent".to_owned()),
        namespace_selector: Some(LabelSelector {
            match_expressions: Some(namespaces),
            match_labels: None,
        }),
        object_selector: Some(LabelSelector::default()),
        match_conditions: Some(conditions),
        side_effects: "None".to_owned(),
        reinvocation_policy: Some("IfNeeded".to_owned()),
        timeout_seconds: Some(TIMEOUT_SECONDS),
        admission_review_versions: vec!["v1".to_owned()],
    }
}

fn client_config(target: &Target, entry: &str, ca_bundle: Option<Vec<u8>>) -> WebhookClientConfig {
    let path = format!("{}/{entry}", handler::PATH);
    let ca_bundle = ca_bundle.map(ByteString);
    match target {
        Target::Service { namespace, name } => WebhookClientConfig {
            ca_bundle,
            service: Some(ServiceReference {
                namespace: namespace.clone(),
                name: name.clone(),
                path: Some(path),
                port: Some(443),
            }),
            url: None,
        },
        Target::Url(url) => WebhookClientConfig {
            ca_bundle,
            service: None,
            url: Some(format!("{}{path}", url.trim_end_matches('/'))),
        },
    }
}

fn excluded(options: &Options) -> Vec<String> {
    let mut names: Vec<String> = EXCLUDED.map(str::to_owned).to_vec();
    if !names.contains(&options.namespace) {
        names.push(options.namespace.clone());
    }
    names
}

fn requirement<S: AsRef<str>>(key: &str, operator: &str, values: &[S]) -> LabelSelectorRequirement {
    LabelSelectorRequirement {
        key: key.to_owned(),
        operator: operator.to_owned(),
        values: Some(values.iter().map(|v| v.as_ref().to_owned()).collect()),
    }
}

/// The value of an annotation of the Pod, empty if it is absent. Guarded: an expression that fails refuses the Pod, or
/// lets it pass, by the failure policy. `namespaceObject` is not used: it fails for every Pod.
fn annotation(key: &str) -> String {
    format!("object.metadata.?annotations[?\"{key}\"].orValue(\"\")")
}

fn not_opted_out() -> MatchCondition {
    condition(
        "not-opted-out",
        format!("{} != \"false\"", annotation(ENABLED)),
    )
}

fn not_a_mirror_pod() -> MatchCondition {
    let expression = format!("!object.metadata.?annotations[?\"{MIRROR_POD}\"].hasValue()");
    condition("not-a-mirror-pod", expression)
}

fn opted_in_itself() -> MatchCondition {
    let stamped = format!("object.metadata.?labels[?\"{ROLLOUT}\"].hasValue()");
    let expression = format!("{} == \"true\" || {stamped}", annotation(ENABLED));
    condition("opted-in", expression)
}

fn condition(name: &str, expression: String) -> MatchCondition {
    MatchCondition {
        name: name.to_owned(),
        expression,
    }
}

fn owned_by(owner: &Owner) -> OwnerReference {
    OwnerReference {
        api_version: "v1".to_owned(),
        kind: "Namespace".to_owned(),
        name: owner.name.clone(),
        uid: owner.uid.clone(),
        ..OwnerReference::default()
    }
}

#[cfg(test)]
mod tests;
