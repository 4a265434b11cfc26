//! What counts of a Pod, whatever its container: whose Image may cover it, and what its own annotations say.

use std::borrow::Cow;
use std::sync::Arc;

use crate::api::annotated::{
    self, Annotated, Containers, Levels, PodHash, Wanted, bare_image_name, image_name, is_beside_policy, owners_of,
};
use crate::api::annotations::{AnnotationError, Map, NamespaceSettings};
use crate::api::{Applied, HeldBy, Tagged};
use crate::policy::Reference;

use super::question::{Controller, PodQuestion, Question};
use super::snapshot::{Entry, Namespace};

/// Most pull secrets of a Pod that a question names, as many as an Image may have.
const MAX_PULL_SECRETS: usize = 16;

/// The labels of a Pod that decide something here.
#[derive(Clone, Copy, Debug, Default)]
pub struct Labels<'a> {
    /// `pod-template-hash`, set by Deployments: names the revision.
    pub template_hash: Option<&'a str>,
    /// `rollouts-pod-template-hash`, set by Argo Rollouts: names the revision.
    pub rollouts_hash: Option<&'a str>,
    /// `controller-revision-hash`, set by `StatefulSets` and `DaemonSets`: names the revision.
    pub revision_hash: Option<&'a str>,
    /// The rollout that stamped the Pod template.
    pub rollout: Option<&'a str>,
}

/// Who made a Pod: its ownerReference with `controller: true`.
#[derive(Clone, Copy, Debug)]
pub struct Owner<'a> {
    /// Its kind, for example `ReplicaSet`.
    pub kind: &'a str,
    /// Its name.
    pub name: &'a str,
    /// Its UID.
    pub uid: &'a str,
}

/// What a caller reads of a Pod. `annotations` may leave out what is not kimup's.
#[derive(Clone, Debug, Default)]
pub struct PodFacts<'a> {
    /// Its namespace.
    pub namespace: &'a str,
    /// What the namespace says.
    pub settings: NamespaceSettings,
    /// Its annotations.
    pub annotations: Cow<'a, Map>,
    /// Its labels.
    pub labels: Labels<'a>,
    /// Who made it.
    pub controller: Option<Owner<'a>>,
    /// The names of its containers.
    pub regular: Vec<&'a str>,
    /// The names of its init containers.
    pub init: Vec<&'a str>,
    /// The names of its `imagePullSecrets`.
    pub pull_secrets: Vec<&'a str>,
    /// Its ServiceAccount.
    pub service_account: &'a str,
}

/// A Pod, read.
#[derive(Clone, Debug, Default)]
pub struct PodView<'a> {
    facts: PodFacts<'a>,
    applied: Vec<Applied>,
    hash: PodHash<'a>,
    /// Whose annotations may count for it; empty if nobody knows: then only its own do.
    owners: Vec<(&'static str, String)>,
    annotated: Option<Annotated>,
}

/// Whether a container follows what covers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opted {
    In,
    /// Nobody said anything.
    Not,
    /// Somebody said no.
    Out,
}

/// What the Pod's own annotations say of a container for which no Image was made yet.
pub(super) enum Policy<'a> {
    /// Nothing.
    None,
    /// Something that cannot be used; [`PodView::problems`] says what.
    Wrong,
    /// A policy.
    Own(&'a Wanted),
    /// A Pod-wide policy that may mean it: the owner's annotations may say so.
    Perhaps,
}

impl From<Owner<'_>> for Controller {
    fn from(owner: Owner<'_>) -> Self {
        let [kind, name, uid] = [owner.kind, owner.name, owner.uid].map(str::to_owned);
        Self { kind, name, uid }
    }
}

impl<'a> PodView<'a> {
    /// Reads a Pod.
    pub fn new(facts: PodFacts<'a>) -> Self {
        let Labels { template_hash, rollouts_hash, revision_hash, .. } = facts.labels;
        let hash = PodHash::new(template_hash, rollouts_hash, revision_hash);
        let owners = facts.controller.map(|owner| owners_of(owner.kind, owner.name, hash)).unwrap_or_default();
        let levels = Levels(&[&facts.annotations]);
        // What is beside no policy may be beside one of the workload, if there is a workload.
        let counts =
            levels.has_policy() || owners.is_empty() && facts.annotations.keys().any(|key| is_beside_policy(key));
        let containers = Containers { regular: &facts.regular, init: &facts.init };
        let annotated = counts.then(|| annotated::read(levels, containers));
        let applied = Applied::of(&facts.annotations);
        Self { facts, applied, hash, owners, annotated }
    }

    /// The namespace.
    pub fn namespace(&self) -> &'a str {
        self.facts.namespace
    }

    /// The annotations it was made of.
    pub fn annotations(&self) -> &Map {
        &self.facts.annotations
    }

    /// The entries of its `applied` annotation.
    pub fn applied(&self) -> &[Applied] {
        &self.applied
    }

    /// What is wrong with its annotations, one sentence each. That a Pod-wide policy does not say which container it
    /// means is left out for a Pod with an owner: the owner's annotations may say it, and a container may have been added
    /// to the Pod on its way.
    pub fn problems(&self) -> &[String] {
        match &self.annotated {
            Some(annotated) if self.owners.is_empty() => &annotated.problems,
            Some(annotated) => annotated.problems_beside_ambiguity(),
            None => &[],
        }
    }

    pub(super) fn rollout(&self) -> Option<&'a str> {
        self.facts.labels.rollout
    }

    pub(super) fn revision(&self) -> Option<(&'a str, &'a str)> {
        self.facts.controller.map(|owner| (owner.uid, self.hash.value))
    }

    pub(super) fn opted(&self, container: &str) -> Result<Opted, AnnotationError> {
        let (own, namespace) = (&self.facts.annotations, self.facts.settings);
        if own.is_empty() {
            return Ok(if namespace.enabled { Opted::In } else { Opted::Not });
        }
        let levels = Levels(&[own]);
        Ok(match levels.enabled(container, false, namespace)? {
            true => Opted::In,
            // A stamp opts in whatever nobody opted out.
            false if levels.enabled(container, true, namespace)? => Opted::Not,
            false => Opted::Out,
        })
    }

    /// The Image that sync made for this container, if it counts.
    pub(super) fn managed<'s>(
        &self,
        known: Option<&'s Namespace>,
        container: &str,
        reference: &Reference,
    ) -> Option<&'s Arc<Entry>> {
        let namespace = known.filter(|known| known.has_managed())?;
        if self.means_others(container) {
            return None;
        }
        let found = if self.owners.is_empty() {
            let wanted = self.annotated.as_ref()?.containers.get(container)?;
            namespace.managed(&bare_image_name(container, &wanted.spec(reference)), None)
        } else {
            self.owners
                .iter()
                .find_map(|(kind, name)| namespace.managed(&image_name(kind, name, container), Some((kind, name))))
        };
        // Of another repository: the text is another one since it was made. Of a policy that this Pod does not carry:
        // somebody took it away, and the Image goes any moment.
        let carried = |entry: &Entry| !entry.for_carriers || self.annotated.is_some();
        found.filter(|entry| entry.repository() == Some(reference.repository().as_str()) && carried(entry))
    }

    /// Where its workload is held, if the Image has that on record, and what holds it.
    pub(super) fn held(&self, entry: &Entry, container: &str, reference: &Reference) -> Option<(Tagged, HeldBy)> {
        entry.held(&self.owners, container, reference.tag())
    }

    /// Whether the Pod's own policies are for other containers than this one. An Image that is still there for it is one of
    /// the template before, which goes any moment: a Pod that came a moment earlier would run another version than the
    /// rest of its revision. If a policy of the workload's metadata means it, a stamp follows; Jobs get none.
    fn means_others(&self, container: &str) -> bool {
        let is_job = self.facts.controller.is_some_and(|controller| controller.kind == "Job");
        let Some(own) = self.annotated.as_ref().filter(|_| !is_job) else {
            return false;
        };
        let perhaps = own.ambiguous && self.facts.regular.contains(&container);
        !perhaps && !own.containers.contains_key(container) && !own.wrong.contains(container)
    }

    pub(super) fn policy(&self, known: Option<&Namespace>, container: &str) -> Policy<'_> {
        let Some(annotated) = &self.annotated else {
            return Policy::None;
        };
        if let Some(wanted) = annotated.containers.get(container) {
            return Policy::Own(wanted);
        }
        if annotated.wrong.contains(container) {
            return Policy::Wrong;
        }
        if !annotated.ambiguous || !self.facts.regular.contains(&container) {
            return Policy::None;
        }
        match known {
            _ if self.owners.is_empty() => Policy::Wrong,
            // Sync has read the owner's annotations, and this container is none of those they mean.
            Some(known) if known.has_managed_for(&self.owners) => Policy::None,
            _ => Policy::Perhaps,
        }
    }

    /// Whether its revision may be on record in an Image that its controller's name does not lead to: a Job that
    /// somebody made of a `CronJob`, or a Pod whose Image is another one since.
    pub(super) fn may_be_on_record(&self) -> bool {
        let is_job = self.facts.controller.is_some_and(|controller| controller.kind == "Job");
        is_job || self.annotated.is_some()
    }

    /// The question for a container whose Image is not known; none if it cannot even be named.
    pub(super) fn question(
        &self,
        container: &str,
        text: &str,
        reference: &Reference,
        wanted: Option<&Wanted>,
    ) -> Option<Question> {
        let facts = &self.facts;
        let spec = wanted.map(|wanted| wanted.spec(reference));
        let images: Vec<String> = if self.owners.is_empty() {
            spec.iter().map(|spec| bare_image_name(container, spec)).collect()
        } else {
            self.owners.iter().map(|(kind, name)| image_name(kind, name, container)).collect()
        };
        let pull_secrets = facts.pull_secrets.iter().take(MAX_PULL_SECRETS).map(|name| (*name).to_owned());
        let pod = PodQuestion {
            controller: facts.controller.map(Controller::from),
            hash: self.hash.value.to_owned(),
            of_rollout: self.hash.of_rollout,
            container: container.to_owned(),
            text: text.to_owned(),
            spec,
            pull_secrets: pull_secrets.collect(),
            service_account: facts.service_account.to_owned(),
            images,
        };
        let image = pod.images.first()?.clone();
        Some(Question { namespace: facts.namespace.to_owned(), image, pod: Some(Box::new(pod)) })
    }
}
