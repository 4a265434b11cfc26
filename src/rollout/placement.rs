//! Which nodes the Pods of a template may run on: its node selector and required node affinity. Pure.
//!
//! The rules are those of the Kubernetes page "Assigning Pods to Nodes". Taints and resources do not count: they change.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelectorRequirement, NodeSelectorTerm, PodSpec};

use crate::api::annotations::Map;

/// What a Pod template asks of its nodes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Placement {
    selector: BTreeMap<String, String>,
    /// At least one must match; none: no affinity is required.
    terms: Option<Vec<NodeSelectorTerm>>,
    name: Option<String>,
}

impl Placement {
    /// Reads a Pod spec.
    pub fn of(pod: &PodSpec) -> Self {
        let affinity = pod.affinity.as_ref().and_then(|a| a.node_affinity.as_ref());
        let required = affinity.and_then(|a| a.required_during_scheduling_ignored_during_execution.as_ref());
        Self {
            selector: pod.node_selector.clone().unwrap_or_default(),
            terms: required.map(|required| required.node_selector_terms.clone()),
            name: pod.node_name.clone().filter(|name| !name.is_empty()),
        }
    }

    /// Whether its Pods may run on the node with this name and these labels.
    pub fn allows(&self, name: &str, labels: &Map) -> bool {
        self.name.as_deref().is_none_or(|wanted| wanted == name)
            && self.selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && self.terms.as_ref().is_none_or(|terms| terms.iter().any(|term| matches(term, name, labels)))
    }
}

fn matches(term: &NodeSelectorTerm, name: &str, labels: &Map) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    // A term without requirements matches no node.
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let field = |r: &NodeSelectorRequirement| r.key == "metadata.name" && holds(r, Some(name));
    expressions.iter().all(|r| holds(r, labels.get(&r.key).map(String::as_str))) && fields.iter().all(field)
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = value.is_some_and(|value| values.iter().any(|v| v == value));
    let number = |text: &str| text.parse::<i64>().ok();
    let bound = values.first().and_then(|text| number(text)).filter(|_| values.len() == 1);
    let compared = value.and_then(number).zip(bound);
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => compared.is_some_and(|(value, bound)| value > bound),
        "Lt" => compared.is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn nodes_are_allowed() {
        #[track_caller]
        fn check(spec: &Value, expected: bool) {
            let mut pod = json!({"containers": []});
            json_patch::merge(&mut pod, spec);
            let placement = Placement::of(&serde_json::from_value(pod).unwrap());
            let labels = [("kubernetes.io/arch", "arm64"), ("cores", "8")];
            let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into_iter().collect();
            assert_eq!(placement.allows("node-1", &labels), expected, "{spec}");
        }
        let terms = |terms: Value| {
            let required = json!({"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": terms}});
            json!({"affinity": {"nodeAffinity": required}})
        };
        let one =
            |key: &str, operator: &str, values: Value| json!({"key": key, "operator": operator, "values": values});
        let label = |operator: &str, values: Value| {
            terms(json!([{"matchExpressions": [one("kubernetes.io/arch", operator, values)]}]))
        };
        check(&json!({}), true);
        check(&json!({"nodeSelector": {"kubernetes.io/arch": "arm64"}}), true);
        check(&json!({"nodeSelector": {"kubernetes.io/arch": "arm64", "cores": "9"}}), false);
        check(&json!({"nodeName": "node-1"}), true);
        check(&json!({"nodeName": "node-2"}), false);
        check(&label("In", json!(["amd64", "arm64"])), true);
        check(&label("In", json!(["amd64"])), false);
        check(&label("NotIn", json!(["amd64"])), true);
        check(&label("NotIn", json!(["arm64"])), false);
        check(&label("Exists", json!(null)), true);
        check(&label("DoesNotExist", json!(null)), false);
        check(&label("Unknown", json!(null)), false);
        let cores =
            |operator: &str, than: &str| terms(json!([{"matchExpressions": [one("cores", operator, json!([than]))]}]));
        check(&cores("Gt", "7"), true);
        check(&cores("Gt", "8"), false);
        check(&cores("Lt", "10"), true);
        check(&cores("Lt", "many"), false);
        // One term is enough; within a term all count.
        let arch = |arch: &str| one("kubernetes.io/arch", "In", json!([arch]));
        check(&terms(json!([{"matchExpressions": [arch("amd64")]}, {"matchExpressions": [arch("arm64")]}])), true);
        check(&terms(json!([{"matchExpressions": [arch("amd64"), arch("arm64")]}])), false);
        check(&terms(json!([{}])), false);
        check(&terms(json!([])), false);
        check(&terms(json!([{"matchFields": [one("metadata.name", "In", json!(["node-1"]))]}])), true);
        check(&terms(json!([{"matchFields": [one("metadata.name", "In", json!(["node-2"]))]}])), false);
        check(&terms(json!([{"matchFields": [one("spec.other", "In", json!(["node-1"]))]}])), false);
    }
}
