//! Rejects what failed, and has an Image go back: written first, acted on by the workloads then.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::annotations::ACTION;
use crate::api::{self, Held, Image, ImageStatus, Rejected, Tagged};
use crate::notify::{Audit, Reason, decided_by};
use crate::registry::{ManifestRequest, RegistryError};
use crate::rollout::WorkloadKey;

use super::engine::{Key, Sync};
use super::failing::Left;
use super::observe;
use super::status::{self, Subject};
use super::world::{ImageKey, status_of};
use super::write::{self, WriteError};

/// Longest time a registry may take to say whether it has the tag to go back to. Later it counts as there.
const REGISTRY_TIMEOUT: Duration = Duration::from_secs(10);
/// Most tags of the past that it is asked for.
pub(super) const MAX_WAYS: usize = 5;

/// What failed of an Image.
struct Failed {
    workload: WorkloadKey,
    container: String,
    left: Left,
    reason: String,
}

impl Sync {
    /// Goes back from what failed, or what another Image of the group rejected, and takes over what they know: they may
    /// go. Returns whether that was written: then
    /// everything else is looked at anew.
    pub(super) async fn go_back(
        &self,
        key: &ImageKey,
        image: &Arc<Image>,
        old: &ImageStatus,
    ) -> Result<bool, WriteError> {
        let mut rejections = self.world.rejections(image);
        let failed = self.failures(image).into_iter().filter(|(_, _, left, _)| left.alone.is_empty());
        let failed = failed.map(|(workload, container, left, reason)| Failed { workload, container, left, reason });
        let known = Rejected::tags(&rejections);
        let failed = failed.filter(|failed| !failed.left.tag.is_in(&known)).min_by(|a, b| a.workload.cmp(&b.workload));
        let mut new = old.clone();
        let learns = status::take_over(&mut new, &rejections);
        if failed.is_none() && status::to_leave(old, &rejections).is_none() {
            if learns {
                write::status(self, key, image, &new).await?;
                self.queue.add_now(Key::Image(key.clone()));
            }
            return Ok(learns);
        }
        let spec = api::compile(&image.spec, Timestamp::now()).ok();
        let subject = self.subject(image, old, spec.as_ref());
        if let Some(Failed { workload, left, reason, .. }) = &failed {
            let text = rejected_text(left);
            status::remember(&mut new, &subject, &text, reason, &workload.to_string());
            rejections.extend(new.rejected.iter().find(|rejected| rejected.tag == text).cloned());
        }
        let mut to = None;
        if let Some(leaves) = status::to_leave(&new, &rejections) {
            let mut ways = status::ways_back(&new, &rejections);
            ways.truncate(MAX_WAYS);
            ways.extend(failed.as_ref().map(|failed| failed.left.before.clone()).filter(|_| ways.is_empty()));
            to = self.first_there(image, &ways).await;
            if failed.is_none() {
                to = to.or_else(|| ways.first().cloned()); // another workload has shown that the tag is no good
            }
            if let (None, Some(failed)) = (&to, &failed) {
                let gone: Vec<String> = ways.iter().map(ToString::to_string).collect();
                let why = format!(
                    "{leaves} is not rejected, since there is nothing to go back to: the registry has {} no longer",
                    gone.join(", ")
                );
                self.cannot_go_back(&failed.workload, &why);
                return Ok(false);
            }
        }
        // Of a settled one any Pod may run it.
        let settled = old.tag.as_ref().is_some_and(|tag| Tagged::new(tag, old.digest.as_deref()).is_in(&known));
        let tried = failed.is_some() || settled || self.is_tried(image, &rejections);
        let counted = status::withdraw(&mut new, &subject, &rejections, to.as_ref(), tried);
        if let Some(failed) = &failed {
            self.hold_again(image, failed, &subject, &mut new).await;
        }
        status::keep_transitions(old, &mut new);
        let written = write::status(self, key, image, &new).await?;
        self.say_rejected(key, &written, failed.as_ref(), counted, to.as_ref()).await;
        Ok(true)
    }

    /// Says that a tag is rejected, and has everybody look whom it concerns.
    async fn say_rejected(
        &self,
        key: &ImageKey,
        image: &Image,
        failed: Option<&Failed>,
        counted: Option<Rejected>,
        to: Option<&Tagged>,
    ) {
        let text = failed.map(|failed| rejected_text(&failed.left));
        let own = status_of(image).rejected.into_iter().find(|rejected| Some(&rejected.tag) == text.as_ref());
        if let Some(rejected) = own.or(counted) {
            let back = to.map(|to| format!("; back to {to}")).unwrap_or_default();
            let note = format!(
                "{}: {}{back}; to try it again: kubectl annotate image {} {}=retry",
                image.spec.image,
                status::rejected_in_words(&rejected),
                key.name,
                ACTION
            );
            self.events.say(&super::report::reference(image), Reason::TagRejected, &note).await;
            let to = to.map(ToString::to_string).unwrap_or_default();
            let (name, workload) = (format!("Image {key}"), &rejected.workload);
            let (from, rule) = (&rejected.tag, &rejected.reason);
            let (to, by) = (&to, decided_by(Some(rule).filter(|_| workload.is_empty()).map(String::as_str)));
            Audit { image: &name, workload, what: "reject", from, to, digest: "", rule, rollout: "", by }.log();
        }
        self.queue_group(key, image);
    }

    /// Has everybody look whom it concerns what an Image has rejected: its group first, then their workloads.
    pub(super) fn queue_group(&self, key: &ImageKey, image: &Image) {
        let group = self.world.group_of(image);
        let name = |other: &Image| ImageKey { namespace: key.namespace.clone(), name: other.name_any() };
        for other in &group {
            self.queue.add_now(Key::Image(name(other)));
        }
        for other in &group {
            self.queue_users(&name(other), other);
        }
    }

    /// Whether a workload was stamped for a rejected tag.
    fn is_tried(&self, image: &Image, rejections: &[Rejected]) -> bool {
        let all = Rejected::tags(rejections);
        self.world.users_of(image).iter().any(|user| {
            let mut stamped = user.containers.iter().filter_map(|container| user.workload.stamped(container));
            stamped.any(|tagged| tagged.is_in(&all))
        })
    }

    /// A workload that was held before this tag was tried is held there again, if the registry still has that.
    async fn hold_again(&self, image: &Image, failed: &Failed, subject: &Subject<'_>, new: &mut ImageStatus) {
        let Some(left) = failed.left.held.clone() else {
            return;
        };
        let before = &failed.left.before;
        if self.first_there(image, std::slice::from_ref(before)).await.is_none() {
            return;
        }
        let (workload, container) = (failed.workload.to_string(), failed.container.clone());
        let why = format!("it was held there before {} was tried; a newer tag than {left} ends this", failed.left.tag);
        let (tag, since) = (before.tag.clone(), status::rfc3339(subject.now));
        status::hold(new, Held { workload, container, tag, left, since, why, ..Held::default() });
    }

    /// The first of these tags that the registry has; one that does not answer is taken to have it.
    pub(super) async fn first_there(&self, image: &Image, ways: &[Tagged]) -> Option<Tagged> {
        let until = Instant::now() + REGISTRY_TIMEOUT;
        for way in ways {
            let there = tokio::time::timeout_at(until, self.is_there(image, way)).await;
            if there.unwrap_or(true) {
                return Some(way.clone());
            }
        }
        None
    }

    async fn is_there(&self, image: &Image, tagged: &Tagged) -> bool {
        let Ok(spec) = api::compile(&image.spec, Timestamp::now()) else {
            return true;
        };
        let access = self.world.access_of(image);
        let Ok(asked) = observe::request(&self.client, image, &spec, access.as_ref()).await else {
            return true;
        };
        let registry = asked.request;
        let tag = tagged.digest.clone().filter(|_| spec.pin).unwrap_or_else(|| tagged.tag.clone());
        let request = ManifestRequest {
            repository: registry.repository,
            tag,
            keyring: registry.keyring,
            insecure_skip_tls_verify: registry.insecure_skip_tls_verify,
        };
        let answer = Box::pin(self.registry.digest(&request)).await;
        !matches!(answer, Err(RegistryError::NoManifest { .. }))
    }
}

/// What is rejected: the tag, or, where only its digest moved, that digest.
fn rejected_text(left: &Left) -> String {
    if left.tag.tag == left.before.tag { left.tag.to_string() } else { left.tag.tag.clone() }
}
