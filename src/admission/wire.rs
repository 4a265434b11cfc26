//! The parts of an `AdmissionReview` (`admission.k8s.io/v1`) that decide something. Texts are borrowed from the body
//! where JSON has no escapes in them; everything else is skipped, not copied.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;

use crate::api::annotations::{MIRROR_POD, Map};
use crate::index::PodView;
use crate::index::question::Controller;

/// A text that stays borrowed inside options, lists and maps, where a bare `Cow` would be copied.
#[derive(Deserialize, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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
    #[serde(borrow)]
    pub object: Option<&'a RawValue>,
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

/// Any object, for its metadata alone.
#[derive(Deserialize, Debug)]
pub(super) struct Object<'a> {
    #[serde(borrow)]
    pub metadata: Metadata<'a>,
}

#[derive(Deserialize, Debug)]
pub(super) struct Pod<'a> {
    #[serde(borrow)]
    pub metadata: Metadata<'a>,
    #[serde(borrow)]
    pub spec: PodSpec<'a>,
}

#[derive(Deserialize, Debug)]
#[serde(rename_all = "camelCase")]
pub(super) struct Metadata<'a> {
    #[serde(borrow)]
    annotations: Option<BTreeMap<Text<'a>, Text<'a>>>,
    #[serde(borrow)]
    labels: Option<BTreeMap<Text<'a>, Text<'a>>>,
    #[serde(borrow)]
    owner_references: Option<Vec<Owner<'a>>>,
}

#[derive(Deserialize, Debug)]
struct Owner<'a> {
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
        self.annotations.iter().flatten().map(|(key, value)| key.as_str().len() + value.as_str().len()).sum()
    }

    /// kimup's annotations, and the mark of a mirror Pod.
    pub fn annotations(&self) -> Map {
        let ours = |key: &str| key == MIRROR_POD || key.contains("kimup.cloudavenue.io/");
        select(self.annotations.as_ref(), ours)
    }

    /// The labels that say which revision and rollout a Pod belongs to.
    pub fn labels(&self) -> Map {
        select(self.labels.as_ref(), PodView::needs_label)
    }

    /// The controller that made it.
    pub fn controller(&self) -> Option<Controller> {
        let mut owners = self.owner_references.iter().flatten();
        let owner = owners.find(|owner| owner.controller == Some(true))?;
        let text = |text: &Cow<'_, str>| text.clone().into_owned();
        Some(Controller { kind: text(&owner.kind), name: text(&owner.name), uid: text(&owner.uid) })
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
    containers.into_iter().flatten().filter_map(|c| c.name.as_ref()).map(Text::as_str).collect()
}

fn select(map: Option<&BTreeMap<Text<'_>, Text<'_>>>, wanted: impl Fn(&str) -> bool) -> Map {
    map.into_iter()
        .flatten()
        .filter(|(key, _)| wanted(key.as_str()))
        .map(|(key, value)| (key.as_str().to_owned(), value.as_str().to_owned()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_borrowed_unless_they_hold_escapes() {
        fn check(json: &str, borrowed: bool) {
            let pod: Pod = serde_json::from_str(json).unwrap();
            let map = pod.metadata.annotations.unwrap();
            let (key, value) = map.iter().next().unwrap();
            assert_eq!(matches!((&key.0, &value.0), (Cow::Borrowed(_), Cow::Borrowed(_))), borrowed);
            let containers = pod.spec.containers.unwrap();
            let image = containers[0].image.as_ref().unwrap();
            assert_eq!(matches!(image.0, Cow::Borrowed(_)), borrowed, "{json}");
        }
        check(r#"{"metadata": {"annotations": {"a": "b"}}, "spec": {"containers": [{"image": "app:1"}]}}"#, true);
        check(
            r#"{"metadata": {"annotations": {"\u0061": "b"}}, "spec": {"containers": [{"image": "app\u003a1"}]}}"#,
            false,
        );
    }

    #[test]
    fn the_controller_is_the_owner_that_says_so() {
        fn check(owners: &str, expected: Option<&str>) {
            let json = format!(r#"{{"metadata": {{"ownerReferences": {owners}}}}}"#);
            let object: Object = serde_json::from_str(&json).unwrap();
            assert_eq!(
                object.metadata.controller().map(|c| format!("{}/{} {}", c.kind, c.name, c.uid)).as_deref(),
                expected,
                "{owners}"
            );
        }
        check("null", None);
        check("[]", None);
        check(r#"[{"uid": "a"}, {"uid": "b", "controller": false}]"#, None);
        check(r#"[{"uid": "a"}, {"uid": "b", "controller": true}]"#, Some("/ b"));
        check(r#"[{"kind": "Job", "name": "x", "uid": "b", "controller": true}]"#, Some("Job/x b"));
    }
}
