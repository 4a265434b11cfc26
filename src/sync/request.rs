//! What a person asked of an Image by annotation, and the answer.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;

use crate::api::annotations::{ACTION, APPROVE, APPROVED_BY, REJECT, REQUESTED_AT};
use crate::api::{Image, ImageStatus};
use crate::notify::{Audit, Reason};

use super::approval::{Answer, Approved};
use super::engine::Sync;
use super::report::reference;
use super::status;
use super::world::ImageKey;
use super::write::{self, WriteError};

/// What a person asked for by annotation.
pub(super) struct Request {
    pub refresh: bool,
    pub requested_at: Option<String>,
    /// A tag to apply.
    pub approve: Option<Approved>,
    /// A tag that must not run, and the reason: `rejected by bob`.
    pub reject: Option<(String, String)>,
}

impl Request {
    pub fn of(image: &Image, status: &ImageStatus) -> Self {
        let annotations = image.annotations();
        let requested_at = annotations.get(REQUESTED_AT).filter(|at| status.last_handled_request.as_ref() != Some(*at));
        let tag = |key: &str| annotations.get(key).map(|tag| tag.trim().to_owned());
        Self {
            refresh: annotations.get(ACTION).is_some_and(|action| action == "refresh"),
            requested_at: requested_at.cloned(),
            approve: tag(APPROVE).map(|tag| Approved { tag, by: format!("approved by {}", who(image, APPROVE)) }),
            reject: tag(REJECT).map(|tag| (tag, format!("rejected by {}", who(image, REJECT)))),
        }
    }

    pub fn any(&self) -> bool {
        self.refresh || self.requested_at.is_some()
    }
}

/// Who wrote an annotation: the name that stands beside it, else what the API server knows, the field manager.
fn who(image: &Image, key: &str) -> String {
    if let Some(name) = image.annotations().get(APPROVED_BY).map(|name| name.trim()).filter(|name| !name.is_empty()) {
        return name.to_owned();
    }
    let field = format!("f:{key}");
    let owns = |entry: &&ManagedFieldsEntry| {
        entry.subresource.as_deref().unwrap_or_default().is_empty()
            && entry
                .fields_v1
                .as_ref()
                .is_some_and(|fields| fields.0["f:metadata"]["f:annotations"].get(&field).is_some())
    };
    let manager = image.metadata.managed_fields.iter().flatten().find(owns).and_then(|entry| entry.manager.clone());
    manager.map_or_else(|| "a person".to_owned(), |manager| format!("field manager {manager}"))
}

impl Sync {
    /// Takes the annotations away that are answered, once the status says so: an answer counts once. Tells of it after
    /// that, unless it is told already.
    pub(super) async fn acknowledge(
        &self,
        key: &ImageKey,
        image: &Image,
        old: &ImageStatus,
        new: &ImageStatus,
        request: &Request,
        answer: Option<&Answer>,
    ) -> Result<(), WriteError> {
        let applied = request.approve.as_ref().zip(answer);
        if let Some((approved, Answer::Applied { against })) = applied {
            self.tell_approved(key, image, old, new, approved, against.as_deref()).await;
        }
        let approve = applied.is_some_and(|(_, answer)| *answer != Answer::Waits);
        let mut done: Vec<&str> = [(approve, APPROVE)].iter().filter(|(done, _)| *done).map(|(_, key)| *key).collect();
        if done.is_empty() {
            return Ok(());
        }
        if approve || request.approve.is_none() {
            done.push(APPROVED_BY); // while one of the two waits, the name is its
        }
        write::remove_annotations(self, key, image, &done).await?;
        if let Some((approved, Answer::Refused(why))) = applied {
            let note = format!("{}: {} is not applied, though {}: {why}", image.spec.image, approved.tag, approved.by);
            self.events.say(&reference(image), Reason::PolicyInvalid, &note).await;
        }
        Ok(())
    }

    async fn tell_approved(
        &self,
        key: &ImageKey,
        image: &Image,
        old: &ImageStatus,
        new: &ImageStatus,
        approved: &Approved,
        against: Option<&str>,
    ) {
        let Approved { tag, by } = approved;
        let against = against.map(|why| format!(", against a gate: {why}")).unwrap_or_default();
        let note = format!("{}: {tag} was {by}{against}", image.spec.image);
        self.events.say(&reference(image), Reason::TagApproved, &note).await;
        let from = status::current(old).map(|tagged| tagged.tag).unwrap_or_default();
        let rollout = new.rollout.as_ref();
        let (rule, id) = rollout.map(|r| (r.rule.as_str(), r.id.as_str())).unwrap_or_default();
        let (image, digest) = (format!("Image {key}"), rollout.and_then(|r| r.digest.as_deref()).unwrap_or_default());
        Audit { image: &image, workload: "", what: "approve", from: &from, to: tag, digest, rule, rollout: id }.log();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[test]
    fn who_said_it() {
        #[track_caller]
        fn check(metadata: &Value, expected: &str) {
            let mut object = json!({
                "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
                "metadata": {"name": "web", "annotations": {APPROVE: " 1.3.0 "}},
                "spec": {"image": "app", "triggers": [], "rules": []},
            });
            json_patch::merge(&mut object, &json!({"metadata": metadata}));
            let image: Image = serde_json::from_value(object).unwrap();
            let approve = Request::of(&image, &ImageStatus::default()).approve.unwrap();
            assert_eq!((approve.tag.as_str(), approve.by.as_str()), ("1.3.0", expected));
        }
        let entry = |manager: &str, key: &str, subresource: &str| {
            let field = format!("f:{key}");
            json!({"manager": manager, "operation": "Update", "subresource": subresource,
                "fieldsV1": {"f:metadata": {"f:annotations": {field: {}}}}})
        };
        check(&json!({}), "approved by a person");
        check(&json!({"annotations": {APPROVED_BY: "bob"}}), "approved by bob");
        let fields = json!([{"manager": "x"}, entry("flux", REJECT, ""), entry("kubectl-annotate", APPROVE, "")]);
        check(&json!({"managedFields": fields}), "approved by field manager kubectl-annotate");
        check(
            &json!({"managedFields": fields, "annotations": {APPROVED_BY: " "}}),
            "approved by field manager kubectl-annotate",
        );
        check(&json!({"managedFields": fields, "annotations": {APPROVED_BY: "bob"}}), "approved by bob");
    }
}
