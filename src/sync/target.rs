//! What an Image wants one container of a workload to run.

use kube::ResourceExt;

use crate::api::{self, Image, ImageStatus, Order, Rejected, Tagged};
use crate::rollout::{self, Target, Workload};

use super::managed;
use super::status;
use super::world::status_of;

/// What an Image wants its workloads to run.
pub(super) fn wanted(image: &Image, status: &ImageStatus) -> Option<Tagged> {
    status::current(status).map(|current| status::pinned(api::pins_digest(&image.spec), &current))
}

/// What an Image wants a container of `workload` to run; none if it has no tag yet.
pub(super) fn target(image: &Image, workload: &Workload, container: &str, rejections: Vec<Rejected>) -> Option<Target> {
    let status = status_of(image);
    let wanted = wanted(image, &status)?;
    let rollout = status.rollout.as_ref();
    let rule = rollout
        .map(|r| r.rule.clone())
        .or_else(|| status.history.iter().find(|entry| entry.tag == wanted.tag).map(|entry| entry.rule.clone()));
    let name = workload.key.to_string();
    let held = status.held.iter().find(|h| h.workload == name && h.container == container);
    Some(Target {
        image: image.name_any(),
        settled: status.tag.as_deref() == Some(&wanted.tag)
            && (wanted.digest.is_none() || status.digest == wanted.digest),
        rule: rule.filter(|rule| !rule.is_empty()).unwrap_or_else(|| "none".to_owned()),
        rollout: rollout::id(image.metadata.uid.as_deref().unwrap_or_default(), &wanted.to_string()),
        order: Order::of(&image.spec).following(&status).of_one_text(managed::is_managed(&image.metadata)),
        why_rejected: rejections.last().map(status::because).unwrap_or_default(),
        rejected: rejections.into_iter().map(|rejected| rejected.tag).collect(),
        held: held.map(|h| h.tag.clone()),
        left: held.map(|h| h.left.clone()).filter(|left| !left.is_empty()),
        tag: wanted.tag,
        digest: wanted.digest,
    })
}
