//! The `MutatingWebhookConfiguration`: which Pods the API server sends, and what it does while nobody answers.
//!
//! [`build`] is pure (design section 4); [`keep()`] is the shell in which the leader writes and repairs it.

use std::collections::BTreeMap;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MatchCondition, MutatingWebhook, MutatingWebhookConfiguration, RuleWithOperations, ServiceReference,
    WebhookClientConfig,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement, OwnerReference};
use kube::api::ObjectMeta;

use crate::api::annotations::{
    ENABLED, ENABLED_PREFIX, FAILURE_POLICY, MIRROR_POD, POLICY, POLICY_PREFIX, ROLLOUT, STAMP_PREFIX,
    SYSTEM_NAMESPACES,
};

use super::entry::{CASES, Case, PATH, Source};

mod keep;

pub use keep::{FIELD_MANAGER, Trust, delete, exists, keep};

/// Namespaces by annotation that the configuration names, the first by name; those beyond need the label. With the
/// longest names that is 1 MiB in eight lists, which etcd (1.5 MiB) takes.
pub const MAX_ANNOTATED: usize = 2000;

/// Most annotations of a Pod that are looked through for one that opts a container in. The API server's time for that grows with the
/// square of their number: with 75,000, which fit into an object, it takes longer than a request may.
const MAX_SEARCHED: usize = 2000;

/// The label that the API server puts on every Namespace.
const NAME_LABEL: &str = "kubernetes.io/metadata.name";
const TIMEOUT_SECONDS: i32 = 10;
/// How the names of all our entries end.
const ENTRY_SUFFIX: &str = ".kimup.cloudavenue.io";
const STATIC_NAME: &str = "kimup";
const STATIC_SERVICE: &str = "kimup-webhook";
const INJECT_CA: &str = "cert-manager.io/inject-ca-from";

/// Where the API server finds the webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A Service in the cluster, at port 443 and `/mutate/<entry>`.
    Service {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// An `https` URL. Without a path of its own it gets `/mutate/<entry>`; one with a path goes as it is.
    Url(String),
}

/// Whom the API server trusts to be the webhook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CaBundle {
    /// These certificates, as PEM.
    Own(Vec<u8>),
    /// Whatever stands in the live object: another writes it, such as cert-manager. A new entry takes over the bundle of
    /// an older one.
    Keep,
}

/// What the configuration is made from.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Its name: `kimup` or `kimup-url`, the two that RBAC allows.
    pub name: String,
    /// kimup's own namespace, whose Pods are never sent: they could not start while kimup is away.
    pub namespace: String,
    /// Where the webhook is.
    pub endpoint: Endpoint,
    /// kimup's Namespace, with which the configuration goes.
    pub owner: Option<OwnerReference>,
    /// Whom to trust.
    pub ca_bundle: CaBundle,
}

/// Why the configuration was not written, deleted or printed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigurationError {
    /// RBAC does not allow it.
    #[error("cannot {verb}: {reason}; apply deploy/rbac.yaml, which allows the names kimup and kimup-url")]
    Forbidden {
        /// What was tried, with the object's name.
        verb: String,
        /// The API server's words.
        reason: String,
    },
    /// Another wrote it since it was read: read again.
    #[error("MutatingWebhookConfiguration {0} changed since it was read; trying again")]
    Changed(String),
    /// The API server refused it, or did not answer: then the write may have gone through.
    #[error("cannot {verb}: {reason}")]
    Api {
        /// What was tried, with the object's name.
        verb: String,
        /// The cause.
        reason: String,
    },
    /// A configuration written now would outlive its owner and refuse Pods.
    #[error(
        "Namespace {0} is gone, going, or another than when kimup started, so no webhook configuration is written; restart kimup if the Namespace is here to stay"
    )]
    OwnerGone(String),
    /// Not expressible as YAML.
    #[error("cannot print the webhook configuration as YAML: {0}")]
    Yaml(#[from] serde_saphyr::ser::Error),
}

/// The configuration for these options and the namespaces that are opted in by annotation alone (in any order).
///
/// Up to twelve entries, of which at most one selects a given Pod: by label, by annotation of the Namespace or by the Pod
/// itself, times the Namespace's failure policy (its label), times the Pod's. The API server sees neither a
/// Namespace's annotations nor, in a matchCondition, any part of it: `namespaceObject` is not available to webhooks.
pub fn build(options: &Options, annotated: &[String]) -> MutatingWebhookConfiguration {
    let excluded = excluded(&options.namespace);
    let mut named: Vec<String> = annotated.iter().filter(|name| !excluded.contains(name)).cloned().collect();
    named.sort_unstable();
    named.dedup();
    named.truncate(MAX_ANNOTATED);
    let entries = selections(&excluded, &named)
        .into_iter()
        .flat_map(|selection| CASES.iter().map(move |case| (selection.clone(), case)))
        .map(|(selection, case)| entry(selection, case, options))
        .collect();
    MutatingWebhookConfiguration {
        metadata: ObjectMeta {
            name: Some(options.name.clone()),
            labels: Some(BTreeMap::from(
                [("app.kubernetes.io/name", "kimup"), ("app.kubernetes.io/managed-by", "kimup")]
                    .map(|(key, value)| (key.to_owned(), value.to_owned())),
            )),
            owner_references: options.owner.clone().map(|owner| vec![owner]),
            ..ObjectMeta::default()
        },
        webhooks: Some(entries),
    }
}

/// The static configuration, for certificates from cert-manager: `certs/webhook.yaml`.
///
/// Namespaces by label and Pods by annotation; nobody is there to follow the annotations of Namespaces.
pub fn static_yaml(namespace: &str) -> Result<String, ConfigurationError> {
    let mut configuration = build(
        &Options {
            name: STATIC_NAME.to_owned(),
            namespace: namespace.to_owned(),
            endpoint: Endpoint::Service { namespace: namespace.to_owned(), name: STATIC_SERVICE.to_owned() },
            owner: None,
            ca_bundle: CaBundle::Keep,
        },
        &[],
    );
    if let Some(labels) = &mut configuration.metadata.labels {
        labels.remove("app.kubernetes.io/managed-by"); // kimup does not manage this one
    }
    let certificate = format!("{namespace}/{STATIC_SERVICE}");
    configuration.metadata.annotations = Some(BTreeMap::from([(INJECT_CA.to_owned(), certificate)]));
    Ok(serde_saphyr::to_string(&configuration)?)
}

/// One way to be opted in.
#[derive(Clone)]
struct Selection {
    source: Source,
    namespaces: Vec<LabelSelectorRequirement>,
    /// What the Pod itself must say.
    condition: Option<MatchCondition>,
}

fn excluded(own: &str) -> Vec<String> {
    let mut names: Vec<String> = SYSTEM_NAMESPACES.map(str::to_owned).to_vec();
    if !SYSTEM_NAMESPACES.contains(&own) {
        names.push(own.to_owned());
    }
    names
}

fn selections(excluded: &[String], annotated: &[String]) -> Vec<Selection> {
    let enabled = |operator| requirement(ENABLED, operator, vec!["true".to_owned()]);
    let named = |operator, names: &[String]| requirement(NAME_LABEL, operator, names.to_vec());
    let by_label = vec![enabled("In"), named("NotIn", excluded)];
    let mut found = vec![Selection { source: Source::Labelled, namespaces: by_label, condition: None }];
    if !annotated.is_empty() {
        found.push(Selection {
            source: Source::Annotated,
            // NotIn: a label that came after the list was made.
            namespaces: vec![enabled("NotIn"), named("In", annotated), named("NotIn", excluded)],
            condition: None,
        });
    }
    found.push(Selection {
        source: Source::Pods,
        namespaces: vec![enabled("NotIn"), named("NotIn", &[excluded, annotated].concat())],
        condition: Some(condition("opted-in", opted_in())),
    });
    found
}

fn entry(selection: Selection, case: &Case, options: &Options) -> MutatingWebhook {
    let name = selection.source.entry(case);
    let mut namespaces = selection.namespaces;
    let ignores = if case.ignores { "In" } else { "NotIn" };
    namespaces.push(requirement(FAILURE_POLICY, ignores, vec!["ignore".to_owned()]));
    let mut conditions = vec![
        condition("not-opted-out", format!(r#"{} != "false""#, annotation(ENABLED))),
        condition("no-mirror-pod", format!(r#"!object.metadata.?annotations[?"{MIRROR_POD}"].hasValue()"#)),
        condition("failure-policy", format!("{} {}", annotation(FAILURE_POLICY), case.pod)),
        condition("not-answered", unanswered()),
    ];
    conditions.extend(selection.condition);
    let one = |value: &str| Some(vec![value.to_owned()]);
    // Fields that the API server would default are set, so that the live object compares equal.
    MutatingWebhook {
        admission_review_versions: vec!["v1".to_owned()],
        client_config: client_config(options, &name),
        failure_policy: Some(case.policy.to_owned()),
        match_conditions: Some(conditions),
        match_policy: Some("Equivalent".to_owned()),
        name: format!("{name}{ENTRY_SUFFIX}"),
        namespace_selector: Some(LabelSelector { match_expressions: Some(namespaces), match_labels: None }),
        object_selector: Some(LabelSelector::default()),
        reinvocation_policy: Some("IfNeeded".to_owned()),
        rules: Some(vec![RuleWithOperations {
            api_groups: one(""),
            api_versions: one("v1"),
            operations: one("CREATE"),
            resources: one("pods"),
            scope: Some("Namespaced".to_owned()),
        }]),
        side_effects: "None".to_owned(),
        timeout_seconds: Some(TIMEOUT_SECONDS),
    }
}

fn client_config(options: &Options, entry: &str) -> WebhookClientConfig {
    let (service, url) = match &options.endpoint {
        Endpoint::Service { namespace, name } => (
            Some(ServiceReference {
                name: name.clone(),
                namespace: namespace.clone(),
                path: Some(format!("{PATH}/{entry}")),
                port: Some(443),
            }),
            None,
        ),
        Endpoint::Url(base) => (None, Some(with_path(base, entry))),
    };
    let ca_bundle = match &options.ca_bundle {
        CaBundle::Own(pem) => Some(ByteString(pem.clone())),
        CaBundle::Keep => None,
    };
    WebhookClientConfig { ca_bundle, service, url }
}

/// A path that is not kimup's own goes as it is: who answers there, and what it passes on, is not known. So does what is no URL,
/// or has a query: the API server refuses it and says why.
fn with_path(base: &str, entry: &str) -> String {
    match url::Url::parse(base) {
        Ok(mut url)
            if matches!(url.path().trim_end_matches('/'), "" | PATH)
                && url.query().is_none()
                && url.fragment().is_none() =>
        {
            url.set_path(&format!("{PATH}/{entry}"));
            url.into()
        }
        _ => base.to_owned(),
    }
}

fn requirement(key: &str, operator: &str, values: Vec<String>) -> LabelSelectorRequirement {
    LabelSelectorRequirement { key: key.to_owned(), operator: operator.to_owned(), values: Some(values) }
}

fn condition(name: &str, expression: String) -> MatchCondition {
    MatchCondition { name: name.to_owned(), expression }
}

/// CEL for a Pod that says something for itself, or is stamped.
fn opted_in() -> String {
    let (annotation, has) =
        (annotation(ENABLED), |map: &str, key: &str| format!(r#"object.metadata.?{map}[?"{key}"].hasValue()"#));
    let own = format!(r#"k.startsWith("{POLICY_PREFIX}") || k.startsWith("{ENABLED_PREFIX}")"#);
    let all = "object.metadata.?annotations.orValue({})";
    format!(
        r#"{annotation} == "true" || {} || {} || {all}.size() <= {MAX_SEARCHED} && {all}.exists(k, {own})"#,
        has("labels", ROLLOUT),
        has("annotations", POLICY),
    )
}

/// CEL for a Pod that is not yet all as its stamps say. One that is has nothing to ask for: the policy of
/// `deploy/overlays/stamp-policy` answers before webhooks are called, and such a Pod must not wait for kimup.
fn unanswered() -> String {
    let stamp = format!(r#"object.metadata.?annotations[?"{STAMP_PREFIX}" + string(c.?name.orValue(""))].orValue("")"#);
    let all = |list: &str| {
        format!(r#"object.?spec.?{list}.orValue([]).all(c, {stamp}.endsWith(" " + string(c.?image.orValue(""))))"#)
    };
    let (regular, init) = (all("containers"), all("initContainers"));
    format!(r#"!object.metadata.?labels[?"{ROLLOUT}"].hasValue() || !({regular} && {init})"#)
}

/// CEL for a Pod's annotation, empty if absent. Guarded: an expression that fails refuses the Pod.
fn annotation(key: &str) -> String {
    format!(r#"object.metadata.?annotations[?"{key}"].orValue("")"#)
}

#[cfg(test)]
mod tests;
