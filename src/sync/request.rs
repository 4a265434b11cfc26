//! What a person asked of an Image by annotation, and the answer: each counts once.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use kube::ResourceExt;

use crate::api::annotations::{ACTION, APPROVE, APPROVED_BY, REJECT, REQUESTED_AT, RESUME, RETRY};
use crate::api::{self, Image, ImageStatus, Tagged};
use crate::notify::{Audit, Reason, decided_by};

use super::approval::{Answer, Approved};
use super::engine::Sync;
use super::report::reference;
use super::status::{self, Outcome};
use super::world::{Cached, ImageKey};
use super::write::{self, WriteError};

/// What a person asked for by annotation.
pub(super) struct Request {
    pub refresh: bool,
    /// End all holds. Asks for no sync.
    pub resume: bool,
    /// Rejected tags are tried again.
    pub retry: bool,
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
        let asks = |wanted: &str| annotations.get(ACTION).is_some_and(|action| action == wanted);
        let tag = |key: &str| annotations.get(key).map(|tag| tag.trim().to_owned());
        Self {
            refresh: asks("refresh"),
            retry: asks(RETRY),
            resume: asks(RESUME),
            requested_at: requested_at.cloned(),
            approve: tag(APPROVE).map(|tag| Approved { tag, by: format!("approved by {}", who(image, APPROVE)) }),
            reject: tag(REJECT).map(|tag| (tag, format!("rejected by {}", who(image, REJECT)))),
        }
    }

    pub fn any(&self) -> bool {
        self.refresh || self.retry || self.requested_at.is_some()
    }
}

/// Who wrote an annotation: the name that stands beside it, else what the API server knows, the field manager.
pub(super) fn who(image: &Image, key: &str) -> String {
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

/// The answer, now that the status is made: going back comes first, and what is approved meanwhile is not lost.
pub(super) fn taken(answer: Option<Answer>, outcome: &Outcome, new: &ImageStatus) -> Option<Answer> {
    let is_current = |tag: &str| status::current(new).is_some_and(|current| current.tag == tag);
    match (answer?, outcome) {
        (Answer::Applied { .. }, Outcome::Tag(choice)) if !is_current(&choice.tag) => Some(Answer::Waits),
        (answer, _) => Some(answer),
    }
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
        if applied.is_none_or(|(_, answer)| *answer == Answer::Waits) {
            return Ok(());
        }
        write::remove_annotations(self, key, image, &[APPROVE, APPROVED_BY]).await?;
        if let Some((approved, Answer::Refused(why))) = applied {
            let note = format!("{}: {} is not applied, though {}: {why}", image.spec.image, approved.tag, approved.by);
            self.events.say(&reference(image), Reason::PolicyInvalid, &note).await;
        }
        Ok(())
    }

    /// Rejects what a person rejects, before anything else is decided: that needs no registry. Returns whether there was
    /// anything to do; then the Image is to be looked at again.
    pub(super) async fn reject_by_word(
        &self,
        key: &ImageKey,
        image: &Arc<Image>,
        old: &ImageStatus,
        request: &Request,
    ) -> Result<bool, WriteError> {
        let Some((tag, by)) = &request.reject else {
            return Ok(false);
        };
        // While a tag is to be approved, too, the name is that one's.
        let (both, alone) = ([REJECT, APPROVED_BY], [REJECT]);
        let done: &[&str] = if request.approve.is_none() { &both } else { &alone };
        let Some(tag) = Tagged::parse(tag).map(|tag| tag.to_string()) else {
            write::remove_annotations(self, key, image, done).await?;
            let note = format!("{}: {tag:?} is not rejected, though {by}: it is no tag", image.spec.image);
            self.events.say(&reference(image), Reason::PolicyInvalid, &note).await;
            return Ok(true);
        };
        let mut new = old.clone();
        let spec = api::compile(&image.spec, Timestamp::now()).ok();
        let subject = self.subject(image, old, spec.as_ref());
        let is_new = status::remember(&mut new, &subject, &tag, by, "");
        status::forget_waiting(&mut new, &subject, &tag);
        let mut written = image.clone();
        if new != *old {
            written = write::status(self, key, image, &new).await?;
        }
        // What comes next instead is another sync's to choose.
        self.memos().entry(key.clone()).or_default().forced = true;
        if self.go_back(key, &written, &new).await? {
            if let Some(Cached::Read(image)) = self.world.image(key) {
                written = image;
            }
        } else if is_new {
            let note = format!("{}: {tag} was {by}; it is not chosen any more", image.spec.image);
            self.events.say(&reference(image), Reason::TagRejected, &note).await;
            let (name, from) = (format!("Image {key}"), tag.as_str());
            let (rule, by) = (by, decided_by(Some(by)));
            Audit { image: &name, workload: "", what: "reject", from, to: "", digest: "", rule, rollout: "", by }.log();
            self.queue_group(key, &written);
        }
        write::remove_annotations(self, key, &written, done).await?;
        Ok(true)
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
        let (from, by) = (&from, decided_by(Some(by)));
        Audit { image: &image, workload: "", what: "approve", from, to: tag, digest, rule, rollout: id, by }.log();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sync::decide::Choice;
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
    #[test]
    fn what_is_not_taken_yet_is_not_lost() {
        #[track_caller]
        fn check(in_flight: &str, answer: Answer, expected: &Answer) {
            let rollout = crate::api::RolloutStatus { tag: in_flight.to_owned(), ..Default::default() };
            let status =
                ImageStatus { tag: Some("1.0.0".to_owned()), rollout: Some(rollout), ..ImageStatus::default() };
            let choice = Choice { tag: "1.2.0".to_owned(), approved: true, ..Choice::default() };
            assert_eq!(taken(Some(answer), &Outcome::Tag(choice), &status).as_ref(), Some(expected));
        }
        let applied = || Answer::Applied { against: None };
        check("1.2.0", applied(), &applied());
        // On its way back from another one.
        check("1.0.0", applied(), &Answer::Waits);
        check("1.0.0", Answer::Already, &Answer::Already);
        assert_eq!(taken(None, &Outcome::Tag(Choice::default()), &ImageStatus::default()), None);
    }
}
