//! Serves admission reviews: reads the current snapshot, asks what it does not hold, answers.

use std::any::Any;
use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::join_all;
use http::header::{CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response, StatusCode};

use crate::index::question::{Answered, Ask, Deduplicated, Question};
use crate::index::{Index, Snapshot};
use crate::net::server::Handler;
use crate::telemetry::{AdmissionOutcome, Metrics, Refused, Seldom};

use super::entry::Entry;
use super::review::{Review, ReviewError, Step};
use super::verdict::Verdict;

pub use super::entry::PATH;

/// Answers what is posted to [`PATH`] or below it, where the path tells the entry. Cheap to clone.
#[derive(Clone)]
pub struct Webhook(Arc<Parts>);

struct Parts {
    index: Arc<Index>,
    ask: Deduplicated<dyn Ask>,
    metrics: Metrics,
    unreadable: Seldom,
    denied: Seldom,
}

impl Handler for Webhook {
    // Without a router: there is one path, and looking it up would cost as much as a small Pod.
    async fn handle(&self, request: Request<Bytes>) -> Response<Body> {
        let below = request.uri().path().strip_prefix(PATH);
        if !below.is_some_and(|below| below.is_empty() || below.starts_with('/')) {
            return plain(StatusCode::NOT_FOUND, &format!("reviews are posted to {PATH}"));
        }
        if request.method() != Method::POST {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "reviews are posted");
        }
        self.mutate(Entry::of_path(request.uri().path()), request.body()).await
    }
}

/// Why there is no `AdmissionReview` to answer with; the API server goes by the failure policy of the entry.
enum Failure {
    NotReady,
    Unreadable(ReviewError),
    Internal,
}

impl Failure {
    fn response(&self) -> Response<Body> {
        match self {
            Self::NotReady => {
                let mut response = plain(StatusCode::SERVICE_UNAVAILABLE, "Namespaces and Images are not listed yet");
                // The API server tries again within `timeoutSeconds`, and may reach another replica.
                response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                response
            }
            Self::Unreadable(error) => plain(StatusCode::BAD_REQUEST, &error.to_string()),
            Self::Internal => plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error, see the log of the webhook"),
        }
    }
}

fn plain(status: StatusCode, message: &str) -> Response<Body> {
    respond(status, "text/plain; charset=utf-8", format!("kimup: {message}\n").into())
}

fn respond(status: StatusCode, content_type: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn written(verdict: &Verdict) -> Result<String, Failure> {
    verdict.to_json().map_err(|error| {
        tracing::error!(%error, "cannot write an answer; this is a bug");
        Failure::Internal
    })
}

impl Webhook {
    /// `deadline` bounds all questions of one Pod together; it must be below the webhook configuration's
    /// `timeoutSeconds`.
    pub fn new(index: Arc<Index>, ask: Arc<dyn Ask>, deadline: Duration, metrics: Metrics) -> Self {
        let ask = Deduplicated::new(ask, deadline, metrics.clone());
        Self(Arc::new(Parts { index, ask, metrics, unreadable: Seldom::default(), denied: Seldom::default() }))
    }

    async fn mutate(&self, entry: Entry, body: &[u8]) -> Response<Body> {
        let start = Instant::now();
        let answer = self.0.answer(entry, body).await.and_then(|verdict| Ok((verdict.outcome(), written(&verdict)?)));
        let outcome = answer.as_ref().map_or(AdmissionOutcome::Error, |(outcome, _)| *outcome);
        self.0.metrics.admission(outcome, start.elapsed());
        match answer {
            Ok((_, json)) => respond(StatusCode::OK, "application/json", json.into()),
            Err(failure) => failure.response(),
        }
    }
}

impl Parts {
    async fn answer(&self, entry: Entry, body: &[u8]) -> Result<Verdict, Failure> {
        if !self.index.is_ready() {
            self.metrics.server().refused(Refused::NotReady);
            return Err(Failure::NotReady);
        }
        let snapshot = self.index.snapshot();
        let deciding = AssertUnwindSafe(self.decide(entry, body, &snapshot)).catch_unwind();
        match deciding.await {
            Ok(Ok(verdict)) => {
                // Each is told to who made the Pod, and counted by the metric of outcomes.
                if let Some(reason) = verdict.refusal()
                    && let Some(left_out) = self.denied.pass(Instant::now())
                {
                    tracing::info!(reason, left_out, "denied a Pod; at most one of these lines a minute");
                }
                Ok(verdict)
            }
            Ok(Err(error)) => {
                if let Some(left_out) = self.unreadable.pass(Instant::now()) {
                    tracing::warn!(%error, left_out, "cannot read a review; at most one of these lines a minute");
                }
                Err(Failure::Unreadable(error))
            }
            Err(panic) => {
                self.metrics.admission_panic();
                let cause = message_of(panic.as_ref());
                tracing::error!(cause, "panic while answering a review; this is a bug");
                after_panic(entry, body, &snapshot).ok_or(Failure::Internal)
            }
        }
    }

    async fn decide(&self, entry: Entry, body: &[u8], snapshot: &Snapshot) -> Result<Verdict, ReviewError> {
        let review = Review::parse(body)?.by(entry);
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

fn after_panic(entry: Entry, body: &[u8], snapshot: &Snapshot) -> Option<Verdict> {
    let what = "internal error while answering for this Pod, see the log of the webhook";
    // What panicked may do so again: then the API server decides.
    let again = || Some(Review::parse(body).ok()?.by(entry).cannot(snapshot, what));
    std::panic::catch_unwind(AssertUnwindSafe(again)).ok()?
}

fn message_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("unknown")
}

#[cfg(test)]
mod tests;
