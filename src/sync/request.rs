//! What a person asked of an Image by annotation.

use kube::ResourceExt;

use crate::api::annotations::{ACTION, REQUESTED_AT, RESUME};
use crate::api::{Image, ImageStatus};

/// What a person asked for by annotation.
pub(super) struct Request {
    pub refresh: bool,
    /// End all holds. Asks for no sync.
    pub resume: bool,
    pub requested_at: Option<String>,
}

impl Request {
    pub fn of(image: &Image, status: &ImageStatus) -> Self {
        let annotations = image.annotations();
        let requested_at = annotations.get(REQUESTED_AT).filter(|at| status.last_handled_request.as_ref() != Some(*at));
        Self {
            refresh: annotations.get(ACTION).is_some_and(|action| action == "refresh"),
            resume: annotations.get(ACTION).is_some_and(|action| action == RESUME),
            requested_at: requested_at.cloned(),
        }
    }

    pub fn any(&self) -> bool {
        self.refresh || self.requested_at.is_some()
    }
}
