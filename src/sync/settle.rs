//! What must be on record before the settled tag of an Image moves.

use std::collections::HashSet;
use std::time::Duration;

use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::{Api, ListParams, PartialObjectMeta};

use crate::api::ImageStatus;

use super::engine::Sync;
use super::records::{self, PodRecord};
use super::world::ImageKey;
use super::write::WriteError;

const TIMEOUT: Duration = Duration::from_secs(20);
const PAGE: u32 = 500;

impl Sync {
    /// Reads the namespace's Pods afresh and records what they tell: the watch may be behind, and once the settled tag
    /// has moved, a Pod of an unrecorded revision would get another version than its siblings. Drops the records of
    /// `ReplicaSets` that are gone.
    pub(super) async fn complete_records(&self, key: &ImageKey, status: &mut ImageStatus) -> Result<(), WriteError> {
        let mut told: Vec<PodRecord> = Vec::new();
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.namespace);
        let mut params = ListParams::default().limit(PAGE);
        loop {
            let page = bounded(pods.list(&params)).await?;
            told.extend(page.items.iter().filter_map(records::of_pod));
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params.continue_token = Some(token),
                None => break,
            }
        }
        records::merge(&mut status.revisions, &key.name, &told);
        if status.revisions.iter().any(|r| r.owner.starts_with("ReplicaSet/")) {
            let sets: Api<PartialObjectMeta<ReplicaSet>> = Api::namespaced(self.client.clone(), &key.namespace);
            let sets = bounded(sets.list(&ListParams::default())).await?;
            let live: HashSet<String> = sets.items.iter().filter_map(ResourceExt::uid).collect();
            records::prune(&mut status.revisions, |r| r.owner.starts_with("ReplicaSet/") && !live.contains(&r.uid));
        }
        Ok(())
    }
}

async fn bounded<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, WriteError> {
    let answer = tokio::time::timeout(TIMEOUT, call).await;
    answer
        .map_err(|_| WriteError::Failed("no answer to a list in time".to_owned()))?
        .map_err(|e| WriteError::Failed(e.to_string()))
}
