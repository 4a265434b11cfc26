//! The parts of an `AdmissionReview` (`admission.k8s.io/v1`) that decide something, read in one pass over the body. Texts
//! are borrowed from it where JSON has no escapes in them; everything else is skipped, not copied.

use std::borrow::Cow;
use std::fmt;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::api::annotations::{MIRROR_POD, Map};
use crate::index::{Labels, Owner};

pub(super) static NO_ANNOTATIONS: Map = Map::new();

/// A text that stays borrowed inside options and lists, where a bare `Cow` would be copied.
#[derive(Deserialize, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

impl Text<'_> {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct Envelope<'a> {
    #[serde(borrow, default)]
    pub api_version: Cow<'a, str>,
    #[serde(borrow, default)]
    pub kind: Cow<'a, str>,
    #[serde(borrow)]
    pub request: Option<Request<'a>>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct Request<'a> {
    #[serde(borrow)]
    pub uid: Cow<'a, str>,
    #[serde(borrow, default)]
    pub resource: GroupVersionResource<'a>,
    #[serde(borrow)]
    pub sub_resource: Option<Text<'a>>,
    #[serde(borrow)]
    pub namespace: Option<Text<'a>>,
    #[serde(borrow, default)]
    pub operation: Cow<'a, str>,
    #[serde(borrow, default, deserialize_with = "object")]
    pub object: Option<Object<'a>>,
}

#[derive(Deserialize, Debug, Default)]
pub(super) struct GroupVersionResource<'a> {
    #[serde(borrow, default)]
    pub group: Cow<'a, str>,
    #[serde(borrow, default)]
    pub version: Cow<'a, str>,
    #[serde(borrow, default)]
    pub resource: Cow<'a, str>,
}

impl Request<'_> {
    pub fn creates_pod(&self) -> bool {
        let resource = &self.resource;
        let sub = self.sub_resource.as_ref().map_or("", Text::as_str);
        (&*resource.group, &*resource.version, &*resource.resource) == ("", "v1", "pods")
            && sub.is_empty()
            && self.operation == "CREATE"
    }

    pub fn namespace(&self) -> &str {
        self.namespace.as_ref().map_or("", Text::as_str)
    }
}

/// The object of a request: a Pod, or whatever else a wrong webhook configuration sends.
#[derive(Deserialize, Debug, Default)]
pub(super) struct Object<'a> {
    #[serde(borrow)]
    pub metadata: Option<Metadata<'a>>,
    #[serde(borrow)]
    pub spec: Option<PodSpec<'a>>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata<'a> {
    annotations: Option<Ours>,
    #[serde(borrow)]
    labels: Option<PodLabels<'a>>,
    #[serde(borrow)]
    owner_references: Option<Vec<OwnerReference<'a>>>,
}

/// kimup's annotations, and the mark of a mirror Pod.
#[derive(Debug, Default)]
struct Ours {
    map: Map,
    /// Bytes of the keys and values of all annotations.
    bytes: usize,
}

/// The bytes of a text that is not kept.
struct Length(usize);

/// The labels that say which revision and rollout a Pod belongs to.
#[derive(Deserialize, Debug)]
struct PodLabels<'a> {
    #[serde(borrow, rename = "pod-template-hash")]
    template_hash: Option<Text<'a>>,
    #[serde(borrow, rename = "rollouts-pod-template-hash")]
    rollouts_hash: Option<Text<'a>>,
    #[serde(borrow, rename = "controller-revision-hash")]
    revision_hash: Option<Text<'a>>,
    #[serde(borrow, rename = "kimup.cloudavenue.io/rollout")]
    rollout: Option<Text<'a>>,
}

#[derive(Deserialize, Debug)]
struct OwnerReference<'a> {
    #[serde(borrow, default)]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    name: Cow<'a, str>,
    #[serde(borrow)]
    uid: Cow<'a, str>,
    controller: Option<bool>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct PodSpec<'a> {
    #[serde(borrow)]
    pub containers: Option<Vec<Container<'a>>>,
    #[serde(borrow)]
    pub init_containers: Option<Vec<Container<'a>>>,
    #[serde(borrow)]
    image_pull_secrets: Option<Vec<Named<'a>>>,
    #[serde(borrow)]
    service_account_name: Option<Text<'a>>,
}

#[derive(Deserialize, Debug)]
struct Named<'a> {
    #[serde(borrow)]
    name: Option<Text<'a>>,
}

#[derive(Deserialize, Debug)]
pub(super) struct Container<'a> {
    #[serde(borrow)]
    pub name: Option<Text<'a>>,
    #[serde(borrow)]
    pub image: Option<Text<'a>>,
}

impl Metadata<'_> {
    /// Whether there is an object to add an annotation to.
    pub fn has_annotations(&self) -> bool {
        self.annotations.is_some()
    }

    /// The bytes of the keys and values of all annotations, as the API server counts them.
    pub fn annotation_bytes(&self) -> usize {
        self.annotations.as_ref().map_or(0, |ours| ours.bytes)
    }

    /// kimup's annotations, and the mark of a mirror Pod.
    pub fn annotations(&self) -> &Map {
        self.annotations.as_ref().map_or(&NO_ANNOTATIONS, |ours| &ours.map)
    }

    /// The labels that say which revision and rollout a Pod belongs to.
    pub fn labels(&self) -> Labels<'_> {
        let Some(labels) = &self.labels else {
            return Labels::default();
        };
        Labels {
            template_hash: labels.template_hash.as_ref().map(Text::as_str),
            rollouts_hash: labels.rollouts_hash.as_ref().map(Text::as_str),
            revision_hash: labels.revision_hash.as_ref().map(Text::as_str),
            rollout: labels.rollout.as_ref().map(Text::as_str),
        }
    }

    /// The controller that made it.
    pub fn controller(&self) -> Option<Owner<'_>> {
        let mut owners = self.owner_references.iter().flatten();
        let owner = owners.find(|owner| owner.controller == Some(true))?;
        Some(Owner { kind: &owner.kind, name: &owner.name, uid: &owner.uid })
    }
}

impl PodSpec<'_> {
    /// How many containers it has, init containers included.
    pub fn count(&self) -> usize {
        [&self.containers, &self.init_containers].into_iter().flatten().map(Vec::len).sum()
    }

    /// The names of its pull secrets.
    pub fn pull_secrets(&self) -> Vec<&str> {
        self.image_pull_secrets.iter().flatten().filter_map(|s| s.name.as_ref()).map(Text::as_str).collect()
    }

    /// Its ServiceAccount; the API server names `default` where the Pod names none.
    pub fn service_account(&self) -> &str {
        self.service_account_name.as_ref().map_or("default", Text::as_str)
    }
}

/// The names of containers.
pub(super) fn names<'a>(containers: Option<&'a [Container<'_>]>) -> Vec<&'a str> {
    let containers = containers.unwrap_or_default();
    let mut names = Vec::with_capacity(containers.len());
    names.extend(containers.iter().filter_map(|c| c.name.as_ref()).map(Text::as_str));
    names
}

impl<'de> Deserialize<'de> for Ours {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(OursVisitor)
    }
}

struct OursVisitor;

impl<'de> Visitor<'de> for OursVisitor {
    type Value = Ours;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("annotations")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Ours, A::Error> {
        let mut ours = Ours::default();
        while let Some(Text(key)) = entries.next_key()? {
            ours.bytes += key.len();
            if key == MIRROR_POD || key.contains("kimup.cloudavenue.io/") {
                let value: String = entries.next_value()?;
                ours.bytes += value.len();
                ours.map.insert(key.into_owned(), value);
            } else {
                let Length(bytes) = entries.next_value()?;
                ours.bytes += bytes;
            }
        }
        Ok(ours)
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(LengthVisitor)
    }
}

struct LengthVisitor;

impl Visitor<'_> for LengthVisitor {
    type Value = Length;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Length, E> {
        Ok(Length(text.len()))
    }
}

/// Reads any value. Who creates a Pod sends an object, but a configuration that was edited may bring anything.
fn object<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Object<'de>>, D::Error> {
    deserializer.deserialize_any(AnyObject)
}

struct AnyObject;

impl<'de> Visitor<'de> for AnyObject {
    type Value = Option<Object<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, fields: A) -> Result<Self::Value, A::Error> {
        Object::deserialize(MapAccessDeserializer::new(fields)).map(Some)
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_bool<E: Error>(self, _: bool) -> Result<Self::Value, E> {
        Ok(Some(Object::default()))
    }

    fn visit_i64<E: Error>(self, _: i64) -> Result<Self::Value, E> {
        Ok(Some(Object::default()))
    }

    fn visit_u64<E: Error>(self, _: u64) -> Result<Self::Value, E> {
        Ok(Some(Object::default()))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(Some(Object::default()))
    }

    fn visit_str<E: Error>(self, _: &str) -> Result<Self::Value, E> {
        Ok(Some(Object::default()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Some(Object::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_borrowed_unless_they_hold_escapes() {
        fn check(json: &str, borrowed: bool) {
            let pod: Object = serde_json::from_str(json).unwrap();
            let labels = pod.metadata.unwrap().labels.unwrap();
            assert_eq!(matches!(labels.template_hash.unwrap().0, Cow::Borrowed(_)), borrowed, "{json}");
            let containers = pod.spec.unwrap().containers.unwrap();
            let image = containers[0].image.as_ref().unwrap();
            assert_eq!((image.as_str(), matches!(image.0, Cow::Borrowed(_))), ("app:1", borrowed), "{json}");
        }
        check(
            r#"{"metadata": {"labels": {"pod-template-hash": "b"}}, "spec": {"containers": [{"image": "app:1"}]}}"#,
            true,
        );
        check(
            r#"{"metadata": {"labels": {"pod-template-has\u0068": "\u0061"}}, "spec": {"containers": [{"image": "app\u003a1"}]}}"#,
            false,
        );
    }

    #[test]
    fn of_the_annotations_only_kimups_are_kept() {
        #[track_caller]
        fn check(annotations: &str, present: bool, expected: &[(&str, &str)]) {
            let json = format!(r#"{{"metadata": {{"annotations": {annotations}}}}}"#);
            let object: Object = serde_json::from_str(&json).unwrap();
            let metadata = object.metadata.unwrap();
            let found: Vec<(&str, &str)> =
                metadata.annotations().iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
            assert_eq!((metadata.has_annotations(), &*found), (present, expected), "{annotations}");
            let all: Option<Map> = serde_json::from_str(annotations).unwrap();
            let bytes: usize = all.iter().flatten().map(|(key, value)| key.len() + value.len()).sum();
            assert_eq!(metadata.annotation_bytes(), bytes, "{annotations}");
        }
        check("null", false, &[]);
        check("{}", true, &[]);
        check(r#"{"a": "b\u00e4\n", "kimup.io/x": "y"}"#, true, &[]);
        check(r#"{"kimup.cloudavenue.io/enabled": "\"", "a": "b"}"#, true, &[("kimup.cloudavenue.io/enabled", "\"")]);
        check(r#"{"stamp.kimup.cloudavenue.io\/app": "a b"}"#, true, &[("stamp.kimup.cloudavenue.io/app", "a b")]);
        check(r#"{"kubernetes.io/config.mirror": "x"}"#, true, &[(MIRROR_POD, "x")]);
    }

    #[test]
    fn the_label_of_rollouts_is_the_one_that_is_written() {
        let json = format!(
            r#"{{"{}": "ab12", "controller-revision-hash": "c", "rollouts-pod-template-hash": "r"}}"#,
            crate::api::annotations::ROLLOUT
        );
        let labels: PodLabels = serde_json::from_str(&json).unwrap();
        let text = |label: Option<Text<'_>>| label.map(|text| text.0.into_owned());
        let found = [labels.template_hash, labels.rollouts_hash, labels.revision_hash, labels.rollout].map(text);
        assert_eq!(found, [None, Some("r"), Some("c"), Some("ab12")].map(|text| text.map(str::to_owned)));
    }

    #[test]
    fn the_controller_is_the_owner_that_says_so() {
        fn check(owners: &str, expected: Option<&str>) {
            let json = format!(r#"{{"metadata": {{"ownerReferences": {owners}}}}}"#);
            let object: Object = serde_json::from_str(&json).unwrap();
            let metadata = object.metadata.unwrap();
            let found = metadata.controller().map(|c| format!("{}/{} {}", c.kind, c.name, c.uid));
            assert_eq!(found.as_deref(), expected, "{owners}");
        }
        check("null", None);
        check("[]", None);
        check(r#"[{"uid": "a"}, {"uid": "b", "controller": false}]"#, None);
        check(r#"[{"uid": "a"}, {"uid": "b", "controller": true}]"#, Some("/ b"));
        check(r#"[{"kind": "Job", "name": "x", "uid": "b", "controller": true}]"#, Some("Job/x b"));
    }

    #[test]
    fn any_value_may_stand_for_the_object() {
        #[track_caller]
        fn check(object: &str, expected: Option<bool>) {
            let json = format!(r#"{{"uid": "u", "object": {object}}}"#);
            let request: Request = serde_json::from_str(&json).unwrap();
            assert_eq!(request.object.map(|object| object.metadata.is_some()), expected, "{object}");
        }
        check("null", None);
        for other in ["7", "-7", "7.5", "true", r#""text""#, "[1, {}]", "{}"] {
            check(other, Some(false));
        }
        check(r#"{"metadata": {}}"#, Some(true));
        let absent: Request = serde_json::from_str(r#"{"uid": "u"}"#).unwrap();
        assert!(absent.object.is_none());
    }
}
