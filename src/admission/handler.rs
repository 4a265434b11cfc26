//! The HTTP shell of admission.

use std::sync::Arc;
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::future::join_all;

use crate::index::Index;
use crate::index::question::{Deduplicated, Question};
use crate::telemetry::{AdmissionOutcome, Metrics, QuestionOutcome};

use super::review::Review;

/// What the handler needs. Everything in it is shared and answers from memory, but for the question.
pub struct Admission {
    /// The snapshot.
    pub index: Arc<Index>,
    /// Sync, for Images without a tag on record.
    pub asker: Deduplicated,
    /// Counters.
    pub metrics: Metrics,
}

/// The routes of the webhook: `POST /mutate`.
pub fn router(admission: Arc<Admission>) -> Router {
    Router::new().route("/mutate", post(mutate)).with_state(admission)
}

async fn mutate(State(admission): State<Arc<Admission>>, body: Bytes) -> Response {
    let started = Instant::now();
    let (outcome, response) = admission.review(&body).await;
    admission.metrics.admission(outcome, started.elapsed());
    response
}

impl Admission {
    async fn review(&self, body: &[u8]) -> (AdmissionOutcome, Response) {
        let snapshot = self.index.snapshot();
        let mut review = match Review::parse(body, &snapshot) {
            Ok(review) => review,
            // An error status makes the API server follow the failure policy of the entry that called.
            Err(error) => {
                return (AdmissionOutcome::Error, (StatusCode::BAD_REQUEST, format!("{error}\n")).into_response());
            }
        };
        let questions = review.questions();
        if !questions.is_empty() {
            let asked = questions.iter().map(|image| self.ask(review.namespace(), &image.name));
            let answers = join_all(asked).await;
            for (image, answer) in questions.iter().zip(answers) {
                review.resolve(image, answer);
            }
        }
        let response = review.respond();
        let outcome = match (response.is_allowed(), response.is_patched()) {
            (false, _) => AdmissionOutcome::Denied,
            (true, true) => AdmissionOutcome::Mutated,
            (true, false) => AdmissionOutcome::Unchanged,
        };
        match serde_json::to_vec(&response) {
            Ok(json) => (outcome, ([(header::CONTENT_TYPE, "application/json")], json).into_response()),
            Err(error) => {
                (AdmissionOutcome::Error, (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response())
            }
        }
    }

    async fn ask(&self, namespace: &str, image: &str) -> Result<String, String> {
        let question = Question { namespace: namespace.to_owned(), image: image.to_owned() };
        let answered = self.asker.ask(question).await;
        let (outcome, answer) = match answered {
            Ok(answered) => match answered.tag {
                Some(tag) => (QuestionOutcome::Answered, Ok(tag)),
                None => (QuestionOutcome::Failed, Err(answered.reason)),
            },
            Err(why) => (QuestionOutcome::Timeout, Err(why)),
        };
        self.metrics.question(outcome);
        answer
    }
}
