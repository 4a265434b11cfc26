//! On which platforms a tag must run: `spec.platforms`, else those of the nodes that its workloads may run on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, ListParams, PartialObjectMeta};
use tokio::time::Instant;

use crate::api::SyncResult;
use crate::api::annotations::Map;
use crate::policy::{Platform, covers};
use crate::rollout::Placement;

use super::status::Failure;

/// How long a list of nodes counts.
const FRESH: Duration = Duration::from_mins(1);
const TIMEOUT: Duration = Duration::from_secs(10);
const PAGE: u32 = 500;
/// Most nodes that are looked at; Kubernetes is built for 5,000.
const MAX_NODES: usize = 20_000;

/// What decides of a node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeFacts {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: Map,
}

impl NodeFacts {
    fn platform(&self) -> Option<Platform> {
        let label = |key: &str| self.labels.get(key).map(String::as_str);
        Platform::new(label("kubernetes.io/os")?, label("kubernetes.io/arch")?, None)
    }
}

/// On which platforms a tag must run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Needed {
    /// Nothing is known of that: any tag will do.
    Unknown,
    /// On each of these.
    All(Vec<Platform>),
    /// On one of these at least: nobody knows yet where its Pods will run.
    Any(Vec<Platform>),
}

impl Needed {
    /// Why an image for `platforms` will not do.
    pub fn lacks(&self, platforms: &[Platform]) -> Option<String> {
        let words = |list: &[Platform]| list.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        match self {
            Self::Unknown => None,
            Self::All(needed) => covers(platforms, needed).err().map(|missing| format!("no {}", words(&missing))),
            Self::Any(needed) => {
                let runs = needed.iter().any(|one| covers(platforms, std::slice::from_ref(one)).is_ok());
                (!runs).then(|| format!("no {}", words(needed)))
            }
        }
    }
}

/// What the workloads with these placements need of a tag. Nodes without the well-known labels tell nothing.
pub fn needed<'a>(nodes: &[NodeFacts], placements: impl IntoIterator<Item = &'a Placement>) -> Needed {
    let mut placements = placements.into_iter().peekable();
    if placements.peek().is_none() {
        let all: BTreeSet<Platform> = nodes.iter().filter_map(NodeFacts::platform).collect();
        return if all.is_empty() { Needed::Unknown } else { Needed::Any(all.into_iter().collect()) };
    }
    let mut found = BTreeSet::new();
    for placement in placements {
        let allowed = nodes.iter().filter(|node| placement.allows(&node.name, &node.labels));
        found.extend(allowed.filter_map(NodeFacts::platform));
    }
    if found.is_empty() { Needed::Unknown } else { Needed::All(found.into_iter().collect()) }
}

/// The nodes of the cluster, listed when they are needed and at most once a minute.
#[derive(Default)]
pub struct Nodes {
    known: tokio::sync::Mutex<Option<(Instant, Arc<[NodeFacts]>)>>,
}

impl Nodes {
    /// The nodes; none without the right to list them.
    pub async fn get(&self, client: &kube::Client) -> Result<Arc<[NodeFacts]>, Failure> {
        let mut known = self.known.lock().await;
        if let Some((at, nodes)) = known.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            tracing::trace!(age = ?at.elapsed(), "the nodes are known");
            return Ok(nodes.clone());
        }
        let nodes: Arc<[NodeFacts]> = match tokio::time::timeout(TIMEOUT, list(client)).await {
            Ok(Ok(nodes)) => nodes.into(),
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => {
                tracing::warn!("kimup may not list nodes: tags are not checked for their platforms");
                Arc::new([])
            }
            // Those of a minute ago are better than none.
            Ok(Err(error)) => return known_or(known.as_ref(), &error.to_string()),
            Err(_) => return known_or(known.as_ref(), "no answer in time"),
        };
        *known = Some((Instant::now(), nodes.clone()));
        Ok(nodes)
    }
}

fn known_or(known: Option<&(Instant, Arc<[NodeFacts]>)>, cause: &str) -> Result<Arc<[NodeFacts]>, Failure> {
    known.map(|(_, nodes)| nodes.clone()).ok_or_else(|| Failure {
        result: SyncResult::Error,
        reason: "NodesUnavailable",
        message: format!("cannot list nodes, whose platforms a newer tag must be for: {cause}"),
        stalled: false,
    })
}

async fn list(client: &kube::Client) -> Result<Vec<NodeFacts>, kube::Error> {
    let api: Api<PartialObjectMeta<Node>> = Api::all(client.clone());
    let mut params = ListParams::default().limit(PAGE);
    let mut nodes = Vec::new();
    loop {
        let page = api.list_metadata(&params).await?;
        nodes.extend(page.items.into_iter().map(|node| NodeFacts {
            name: node.metadata.name.unwrap_or_default(),
            labels: node.metadata.labels.unwrap_or_default(),
        }));
        match page.metadata.continue_.filter(|token| !token.is_empty() && nodes.len() < MAX_NODES) {
            Some(token) => params.continue_token = Some(token),
            None => return Ok(nodes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn node(name: &str, platform: &str) -> NodeFacts {
        let (os, arch) = platform.split_once('/').unwrap_or_default();
        let labels = [("kubernetes.io/os", os), ("kubernetes.io/arch", arch), ("pool", name)];
        let labels = labels.into_iter().filter(|(_, value)| !value.is_empty());
        NodeFacts { name: name.to_owned(), labels: labels.map(|(k, v)| (k.to_owned(), v.to_owned())).collect() }
    }

    fn on(pool: &str) -> Placement {
        let selector = if pool.is_empty() { json!({}) } else { json!({"pool": pool}) };
        Placement::of(&serde_json::from_value(json!({"containers": [], "nodeSelector": selector})).unwrap())
    }

    #[test]
    fn workloads_need_the_platforms_of_their_nodes() {
        #[track_caller]
        fn check(pools: &[&str], expected: &str) {
            let nodes = [node("a", "linux/amd64"), node("b", "linux/arm64"), node("c", "linux/amd64"), node("d", "")];
            let placements: Vec<Placement> = pools.iter().map(|pool| on(pool)).collect();
            let words = |kind: &str, list: Vec<Platform>| {
                format!("{kind} {}", list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "))
            };
            let found = match needed(&nodes, &placements) {
                Needed::Unknown => "unknown".to_owned(),
                Needed::All(list) => words("all", list),
                Needed::Any(list) => words("any", list),
            };
            assert_eq!(found, expected, "{pools:?}");
        }
        check(&[""], "all linux/amd64 linux/arm64");
        check(&["a"], "all linux/amd64");
        check(&["a", "b"], "all linux/amd64 linux/arm64");
        check(&["d"], "unknown");
        check(&["not there"], "unknown");
        check(&["not there", "b"], "all linux/arm64");
        check(&[], "any linux/amd64 linux/arm64");
        assert_eq!(needed(&[], &[on("")]), Needed::Unknown);
        assert_eq!(needed(&[], &[]), Needed::Unknown);
    }

    #[test]
    fn what_is_lacking_is_named() {
        fn check(needed: &Needed, platforms: &str, expected: Option<&str>) {
            let platforms: Vec<Platform> = platforms.split_whitespace().map(|p| p.parse().unwrap()).collect();
            assert_eq!(needed.lacks(&platforms).as_deref(), expected, "{needed:?} {platforms:?}");
        }
        let both: Vec<Platform> = vec!["linux/amd64".parse().unwrap(), "linux/arm64".parse().unwrap()];
        check(&Needed::Unknown, "windows/amd64", None);
        check(&Needed::All(both.clone()), "linux/amd64 linux/arm64/v8", None);
        check(&Needed::All(both.clone()), "linux/amd64", Some("no linux/arm64"));
        check(&Needed::All(both.clone()), "", Some("no linux/amd64, linux/arm64"));
        check(&Needed::Any(both.clone()), "linux/arm64", None);
        check(&Needed::Any(both), "windows/amd64", Some("no linux/amd64, linux/arm64"));
    }
}
