//! An Image as the API server delivers it, read as far as admission needs it: most of the object (managed fields, history,
//! conditions) is skipped, and a mistake in there disturbs nobody.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};
use kube::Resource;
use kube::core::NamespaceResourceScope;
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

use crate::api::annotations::{MANAGED_BY, Map, POLICY_FROM};
use crate::api::{Held, Image, ImageSpec, ImageStatus, Rejected, RevisionRecord, RolloutStatus};

/// The Image without what admission has no use for, or what is wrong with it.
#[derive(Clone, Debug)]
pub struct Listed {
    metadata: ObjectMeta,
    read: Result<Box<(ImageSpec, Option<ImageStatus>)>, String>,
}

impl Listed {
    /// The Image, or its metadata with what is wrong.
    pub fn into_image(self) -> Result<Image, Box<(ObjectMeta, String)>> {
        match self.read {
            Ok(read) => Ok(Image { metadata: self.metadata, spec: read.0, status: read.1 }),
            Err(error) => Err(Box::new((self.metadata, error))),
        }
    }
}

impl<'de> Deserialize<'de> for Listed {
    /// From JSON text that is there as a whole: it is read a second time for the metadata when the object cannot be read.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(deserializer)?;
        match serde_json::from_str::<Lean>(raw.get()) {
            Ok(lean) => {
                let read = Ok(Box::new((lean.spec, lean.status.map(Into::into))));
                Ok(Self { metadata: lean.metadata.into(), read })
            }
            Err(error) => {
                let named: Named = serde_json::from_str(raw.get()).map_err(serde::de::Error::custom)?;
                Ok(Self { metadata: named.metadata.into(), read: Err(error.to_string()) })
            }
        }
    }
}

impl Resource for Listed {
    type DynamicType = ();
    type Scope = NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        Image::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        Image::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        Image::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        Image::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[derive(Deserialize)]
struct Named {
    metadata: LeanMetadata,
}

#[derive(Deserialize)]
struct Lean {
    metadata: LeanMetadata,
    spec: ImageSpec,
    status: Option<LeanStatus>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct LeanMetadata {
    name: Option<String>,
    namespace: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    creation_timestamp: Option<Time>,
    owner_references: Option<Vec<OwnerReference>>,
    labels: Option<LeanMap>,
    annotations: Option<LeanMap>,
}

/// Of labels and annotations those that an [`super::Entry`] is made of: `kubectl` puts the whole object into one of them.
struct LeanMap(Map);

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct LeanStatus {
    tag: Option<String>,
    repository: Option<String>,
    digest: Option<String>,
    base_tag: Option<String>,
    rollout: Option<RolloutStatus>,
    revisions: Vec<RevisionRecord>,
    /// One that a newer kimup wrote of another kind says nothing here, and makes nothing unreadable.
    held: Vec<serde_json::Value>,
    rejected: Vec<Rejected>,
    group: Option<String>,
}

impl<'de> Deserialize<'de> for LeanMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let all = std::collections::BTreeMap::<Cow<'de, str>, &'de RawValue>::deserialize(deserializer)?;
        let wanted = all.into_iter().filter(|(key, _)| [MANAGED_BY, POLICY_FROM].contains(&&**key));
        let read = wanted.map(|(key, value)| Ok((key.into_owned(), serde_json::from_str(value.get())?)));
        read.collect::<Result<Map, serde_json::Error>>().map(Self).map_err(serde::de::Error::custom)
    }
}

impl From<LeanMetadata> for ObjectMeta {
    fn from(lean: LeanMetadata) -> Self {
        Self {
            name: lean.name,
            namespace: lean.namespace,
            uid: lean.uid,
            resource_version: lean.resource_version,
            creation_timestamp: lean.creation_timestamp,
            owner_references: lean.owner_references,
            labels: lean.labels.map(|map| map.0),
            annotations: lean.annotations.map(|map| map.0),
            ..Self::default()
        }
    }
}

impl From<LeanStatus> for ImageStatus {
    fn from(lean: LeanStatus) -> Self {
        Self {
            tag: lean.tag,
            repository: lean.repository,
            digest: lean.digest,
            base_tag: lean.base_tag,
            rollout: lean.rollout,
            revisions: lean.revisions,
            held: lean.held.into_iter().filter_map(|held| serde_json::from_value::<Held>(held).ok()).collect(),
            rejected: lean.rejected,
            group: lean.group,
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_group_of_what_was_rejected_is_read() {
        let image = crate::index::testing::image(&json!({"status": {"group": "g", "rejected": [{"tag": "1.0.0"}]}}));
        let listed: Listed = serde_json::from_str(&serde_json::to_string(&image).unwrap()).unwrap();
        let status = listed.into_image().unwrap().status.unwrap();
        assert_eq!((status.group.as_deref(), status.rejected.len()), (Some("g"), 1));
    }

    #[test]
    fn a_hold_of_a_kind_that_is_not_known_makes_nothing_unreadable() {
        let held = |by: &str| json!({"workload": "Deployment/web", "container": "app", "tag": "1.0.0", "by": by});
        let mut image = serde_json::to_value(crate::index::testing::image(&json!({}))).unwrap();
        image["status"]["held"] = json!([held("OfANewerVersion"), held("Manifest")]);
        let listed: Listed = serde_json::from_str(&image.to_string()).unwrap();
        let read: Vec<String> =
            listed.into_image().unwrap().status.unwrap().held.iter().map(|held| format!("{:?}", held.by)).collect();
        assert_eq!(read, ["Manifest"]);
    }
}
