//! Images that kimup makes for annotations: whose they are, and what must be written so that they say what the
//! annotations say. Pure. The rest of the spec is the user's.

use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use serde_json::{Map, Value, json};

use crate::api::annotated::RULE_NAME;
use crate::api::annotations::{MANAGED_BY, MANAGED_BY_KIMUP, POLICY_FROM, POLICY_OF_PODS, POLICY_OF_WORKLOAD};
use crate::api::{Image, ImageSpec, RuleSpec};

use super::source::{Source, SourceKey, SourceKind};

/// The field manager of what annotations say.
pub const FIELD_MANAGER: &str = "kimup-annotations";

/// Whether an Image is one that kimup made: such an Image is never found by its repository.
pub fn is_managed(metadata: &ObjectMeta) -> bool {
    metadata.labels.as_ref().and_then(|labels| labels.get(MANAGED_BY)).is_some_and(|by| by == MANAGED_BY_KIMUP)
}

/// For which object kimup made an Image, or that it did for the Pods of its namespace. None: it is a person's.
pub fn source_of(namespace: &str, metadata: &ObjectMeta) -> Option<SourceKey> {
    if !is_managed(metadata) {
        return None;
    }
    let Some(owner) = controller(metadata) else {
        return Some(SourceKey::pods(namespace));
    };
    let kind = SourceKind::owner(&owner.kind)?;
    Some(SourceKey { kind, namespace: namespace.to_owned(), name: owner.name.clone() })
}

/// Whether kimup made an Image for this very object, not for an earlier one of its name.
pub fn is_made_for(image: &Image, source: &Source) -> bool {
    let owner = controller(&image.metadata);
    is_managed(&image.metadata)
        && match source.key.kind {
            SourceKind::Pod => owner.is_none(),
            kind => owner.is_some_and(|o| o.kind == kind.as_str() && o.name == source.key.name && o.uid == source.uid),
        }
}

fn controller(metadata: &ObjectMeta) -> Option<&OwnerReference> {
    metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true))
}

/// The Image as it is before anybody has written it.
///
/// `source`: none for Pods without a controller that kimup knows.
pub fn unwritten(namespace: &str, source: Option<&Source>, name: &str, spec: &ImageSpec) -> Image {
    let mut image = Image::new(name, spec.clone());
    image.metadata.namespace = Some(namespace.to_owned());
    image.metadata.labels = Some([(MANAGED_BY.to_owned(), MANAGED_BY_KIMUP.to_owned())].into());
    image.metadata.owner_references = source.and_then(owner).map(|owner| vec![owner]);
    image
}

fn owner(source: &Source) -> Option<OwnerReference> {
    (source.key.kind != SourceKind::Pod).then(|| OwnerReference {
        api_version: source.key.kind.api_version().to_owned(),
        kind: source.key.kind.as_str().to_owned(),
        name: source.key.name.clone(),
        uid: source.uid.clone(),
        controller: Some(true),
        block_owner_deletion: None, // the owner never waits for it
    })
}

/// What is to be done so that an Image says what the annotations say.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// It does.
    Nothing,
    /// This is to be applied.
    Apply(Value),
    /// It was made for an earlier object of that name: it goes, and another is made.
    Remake,
    /// It is not kimup's to change.
    Foreign,
}

/// Compares the stored Image of that name with what the annotations say.
pub fn step(stored: Option<&Image>, source: &Source, name: &str, spec: &ImageSpec) -> Step {
    let Some(image) = stored else {
        return Step::Apply(body(None, source, name, spec));
    };
    if !is_made_for(image, source) {
        let earlier = source_of(&source.key.namespace, &image.metadata).is_some_and(|of| of == source.key);
        return if earlier { Step::Remake } else { Step::Foreign };
    }
    // One that goes is made anew when it is gone.
    let tells = image.annotations().get(POLICY_FROM).is_some_and(|from| from == policy_from(source, name));
    if (tells && says(image, spec)) || image.metadata.deletion_timestamp.is_some() {
        return Step::Nothing;
    }
    Step::Apply(body(Some(image), source, name, spec))
}

/// Whether Pods carry the policy, for admission: one that should carry it and does not has been opted out.
fn policy_from(source: &Source, name: &str) -> &'static str {
    if source.wish.by_pods.contains(name) { POLICY_OF_PODS } else { POLICY_OF_WORKLOAD }
}

fn says(image: &Image, spec: &ImageSpec) -> bool {
    let now = &image.spec;
    let pattern = |spec: &ImageSpec| spec.filter.as_ref().and_then(|filter| filter.pattern.clone());
    let wanted = spec.rules.first();
    let rule = now.rules.iter().find(|rule| rule.name == RULE_NAME);
    // What the annotations no longer say goes, but not what a person put into its place.
    let secrets = if spec.image_pull_secrets.is_empty() {
        !owns(image, &["f:imagePullSecrets"])
    } else {
        now.image_pull_secrets == spec.image_pull_secrets
    };
    let pattern = match pattern(spec) {
        None => !owns(image, &["f:filter", "f:pattern"]),
        some => pattern(now) == some,
    };
    now.image == spec.image
        && now.base_tag == spec.base_tag
        && now.triggers == spec.triggers
        && rule.map(|r| (r.kind, &r.value)) == wanted.map(|r| (r.kind, &r.value))
        && secrets
        && pattern
}

/// Whether kimup's last apply wrote this field of the spec.
fn owns(image: &Image, path: &[&str]) -> bool {
    applied(image).any(|fields| path.iter().try_fold(&fields["f:spec"], |value, key| value.get(key)).is_some())
}

/// What kimup's applies wrote, as `managedFields` has it.
fn applied(image: &Image) -> impl Iterator<Item = &Value> {
    let entries = image.metadata.managed_fields.iter().flatten();
    let ours =
        entries.filter(|e| e.manager.as_deref() == Some(FIELD_MANAGER) && e.operation.as_deref() == Some("Apply"));
    ours.filter_map(|entry| entry.fields_v1.as_ref()).map(|fields| &fields.0)
}

/// A list of rules belongs to one manager as a whole, so the user's rules and actions are carried over.
fn rules(image: Option<&Image>, spec: &ImageSpec) -> Vec<RuleSpec> {
    let mut rules = image.map(|image| image.spec.rules.clone()).unwrap_or_default();
    for wanted in &spec.rules {
        match rules.iter_mut().find(|rule| rule.name == wanted.name) {
            Some(rule) => (rule.kind, rule.value) = (wanted.kind, wanted.value.clone()),
            None => rules.insert(0, wanted.clone()),
        }
    }
    rules
}

fn body(image: Option<&Image>, source: &Source, name: &str, spec: &ImageSpec) -> Value {
    let mut fields = Map::new();
    fields.insert("image".to_owned(), json!(spec.image));
    fields.insert("baseTag".to_owned(), json!(spec.base_tag));
    fields.insert("triggers".to_owned(), json!(spec.triggers));
    fields.insert("rules".to_owned(), json!(rules(image, spec)));
    if !spec.image_pull_secrets.is_empty() {
        fields.insert("imagePullSecrets".to_owned(), json!(spec.image_pull_secrets));
    }
    if let Some(filter) = &spec.filter {
        fields.insert("filter".to_owned(), json!({"pattern": filter.pattern}));
    }
    let mut metadata = json!({
        "name": name,
        "namespace": source.key.namespace,
        "labels": {MANAGED_BY: MANAGED_BY_KIMUP},
        "annotations": {POLICY_FROM: policy_from(source, name)},
    });
    if let Some(owner) = owner(source) {
        metadata["ownerReferences"] = json!([owner]);
    }
    if let Some(image) = image {
        metadata["uid"] = json!(image.metadata.uid);
        metadata["resourceVersion"] = json!(image.metadata.resource_version);
    }
    json!({"apiVersion": Image::api_version(&()), "kind": Image::kind(&()), "metadata": metadata, "spec": fields})
}

/// What becomes of an Image that kimup made.
#[derive(Clone, Debug, PartialEq)]
pub enum Fate<'a> {
    /// It stays.
    Stays,
    /// Nobody wants it.
    Goes,
    /// A container has no policy any more.
    OptedOut(&'a Source, &'a str),
}

/// Whether an Image that kimup made is wanted still. `sources`: its owner, or all bare Pods of its namespace.
pub fn fate<'a>(image: &Image, sources: &'a [Arc<Source>]) -> Fate<'a> {
    let name = image.name_any();
    let wanted = |source: &Arc<Source>| source.wish.images.values().any(|(wanted, _)| *wanted == name);
    // The label alone may have been copied: what kimup never wrote it does not delete.
    if sources.iter().any(wanted) || applied(image).next().is_none() {
        return Fate::Stays;
    }
    let Some(owner) = controller(&image.metadata) else {
        let unclear = |c: &String| name.starts_with(&format!("pod-{c}-"));
        let kept = sources.iter().any(|source| source.wish.unclear.iter().any(unclear));
        return if kept { Fate::Stays } else { Fate::Goes };
    };
    // Without an owner it is for the garbage collector.
    let Some(source) = sources.first().filter(|source| !source.deleting) else {
        return Fate::Stays;
    };
    if owner.uid != source.uid {
        return Fate::Goes;
    }
    match source.containers.iter().find(|c| source.image_name(&c.name) == name) {
        Some(container) if source.wish.unclear.contains(&container.name) => Fate::Stays,
        Some(container) => Fate::OptedOut(source, &container.name),
        None => Fate::Goes,
    }
}

#[cfg(test)]
mod tests;
