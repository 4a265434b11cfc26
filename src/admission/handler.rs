//! Serves admission reviews: reads the current snapshot, asks what it does not hold, answers.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::{DefaultBodyLimit, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use http::StatusCode;
use http::header::CONTENT_TYPE;

use crate::index::question::{Answered, Ask, Deduplicated, Question};
use crate::index::{Index, Snapshot};
use crate::telemetry::{AdmissionOutcome, Metrics};

use super::review::{Review, ReviewError, Step};
use super::verdict::Verdict;

/// Where reviews are posted; `/mutate/<entry>` does the same, so that a log tells the webhook's entries apart.
pub const PATH: &str = "/mutate";
/// Largest body in bytes: as `net::server::ServerOptions`, which must not be cut short by axum's default of 2 MiB.
const BODY_LIMIT: usize = 7 << 20;

struct Webhook {
    index: Arc<Index>,
    ask: Deduplicated<dyn Ask>,
    metrics: Metrics,
}

/// The routes of the webhook. `deadline` bounds all questions of one Pod together; it must be below the webhook
/// configuration's `timeoutSeconds`.
pub fn router(index: Arc<Index>, ask: Arc<dyn Ask>, deadline: Duration, metrics: Metrics) -> Router {
    let webhook = Arc::new(Webhook { index, ask: Deduplicated::new(ask, deadline, metrics.clone()), metrics });
    Router::new()
        .route(PATH, post(mutate))
        .route("/mutate/{*entry}", post(mutate))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(webhook)
}

/// Why there is no `AdmissionReview` to answer with; the API server goes by the failure policy of the entry.
enum Failure {
    NotReady,
    Unreadable(ReviewError),
    Internal,
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let (status, message) = match self {
            Self::NotReady => (StatusCode::SERVICE_UNAVAILABLE, "Namespaces and Images are not listed yet".to_owned()),
            Self::Unreadable(error) => (StatusCode::BAD_REQUEST, error.to_string()),
            Self::Internal => {
                (StatusCode::INTERNAL_SERVER_ERROR, "internal error, see the log of the webhook".to_owned())
            }
        };
        (status, format!("kimup: {message}\n")).into_response()
    }
}

async fn mutate(State(webhook): State<Arc<Webhook>>, body: Bytes) -> Response {
    let start = Instant::now();
    let answer = webhook.answer(&body).await.and_then(|verdict| Ok((verdict.outcome(), written(&verdict)?)));
    let outcome = answer.as_ref().map_or(AdmissionOutcome::Error, |(outcome, _)| *outcome);
    webhook.metrics.admission(outcome, start.elapsed());
    match answer {
        Ok((_, json)) => ([(CONTENT_TYPE, "application/json")], json).into_response(),
        Err(failure) => failure.into_response(),
    }
}

fn written(verdict: &Verdict) -> Result<Vec<u8>, Failure> {
    verdict.to_json().map_err(|error| {
        tracing::error!(%error, "cannot write an answer; this is a bug");
        Failure::Internal
    })
}

impl Webhook {
    async fn answer(&self, body: &[u8]) -> Result<Verdict, Failure> {
        if !self.index.is_ready() {
            return Err(Failure::NotReady);
        }
        let snapshot = self.index.snapshot();
        let deciding = AssertUnwindSafe(self.decide(body, &snapshot)).catch_unwind();
        match deciding.await {
            Ok(Ok(verdict)) => {
                if let Some(message) = verdict.refusal() {
                    tracing::info!(message, "denied a Pod");
                }
                Ok(verdict)
            }
            Ok(Err(error)) => {
                tracing::warn!(%error, "cannot read a review");
                Err(Failure::Unreadable(error))
            }
            Err(panic) => {
                self.metrics.admission_panic();
                let cause = message_of(panic.as_ref());
                tracing::error!(cause, "panic while answering a review; this is a bug");
                after_panic(body, &snapshot).ok_or(Failure::Internal)
            }
        }
    }

    async fn decide(&self, body: &[u8], snapshot: &Snapshot) -> Result<Verdict, ReviewError> {
        let review = Review::parse(body)?;
        match review.decide(snapshot)? {
            Step::Done(verdict) => Ok(verdict),
            Step::Ask(plan) => {
                let answers = self.ask_all(plan.questions()).await;
                Ok(plan.finish(&answers))
            }
        }
    }

    /// All at once, so that the deadline of one is the deadline of all.
    async fn ask_all(&self, questions: Vec<Question>) -> HashMap<Question, Result<Answered, String>> {
        let asking = questions.into_iter().map(|question| async {
            let answer = self.ask.ask(question.clone()).await;
            (question, answer)
        });
        join_all(asking).await.into_iter().collect()
    }
}

fn after_panic(body: &[u8], snapshot: &Snapshot) -> Option<Verdict> {
    let what = "internal error while answering for this Pod, see the log of the webhook";
    // What panicked may do so again: then the API server decides.
    let again = || Some(Review::parse(body).ok()?.cannot(snapshot, what));
    std::panic::catch_unwind(AssertUnwindSafe(again)).ok()?
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown")
}

#[cfg(test)]
mod tests;
