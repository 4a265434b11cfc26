//! What a person asked of an Image by annotation.

use kube::ResourceExt;

use crate::api::annotations::{ACTION, REQUESTED_AT};
use crate::api::{Image, ImageStatus};

/// What a person asked for by annotation.
pub(super) struct Request {
    pub refresh: bool,
    /// Rejected tags are tried again.
    pub retry: bool,
    pub requested_at: Option<String>,
}

impl Request {
    pub fn of(image: &Image, status: &ImageStatus) -> Self {
        let annotations = image.annotations();
        let requested_at = annotations.get(REQUESTED_AT).filter(|at| status.last_handled_request.as_ref() != Some(*at));
        let asks = |wanted: &str| annotations.get(ACTION).is_some_and(|action| action == wanted);
        Self { refresh: asks("refresh"), retry: asks("retry"), requested_at: requested_at.cloned() }
    }

    pub fn any(&self) -> bool {
        self.refresh || self.retry || self.requested_at.is_some()
    }
}
