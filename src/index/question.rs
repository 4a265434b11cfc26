//! The one question that admission may ask sync: which tag should a Pod run whose Image has none on record?

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, WeakShared};
use serde::{Deserialize, Serialize};

use crate::telemetry::{Metrics, QuestionOutcome};

/// How long the answer may take if nothing else is said: well below the webhook's `timeoutSeconds`.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Names the Image that is asked for.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, Hash)]
pub struct Question {
    /// Namespace of the Image.
    pub namespace: String,
    /// Name of the Image.
    pub image: String,
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Answered {
    /// The tag, `tag@sha256:…` if Pods are pinned to its digest; none if no tag can be chosen.
    pub tag: Option<String>,
    /// Why this tag, or why none: shown to whoever created the Pod.
    pub reason: String,
}

/// Somebody who answers. The error says why there is no answer, in words for a person.
pub trait Ask: Send + Sync {
    /// Asks. Reads only, also under dry-run.
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answered, String>>;
}

type Asking = BoxFuture<'static, Result<Answered, String>>;

/// Asks once for all who ask the same at the same time, and waits no longer than a deadline.
pub struct Deduplicated<A: ?Sized> {
    inner: Arc<A>,
    deadline: Duration,
    metrics: Metrics,
    /// Weak: when all who asked are gone (answered, or cancelled by the API server) nothing is left to ask for.
    asking: Mutex<HashMap<Question, WeakShared<Asking>>>,
}

impl<A: Ask + ?Sized + 'static> Deduplicated<A> {
    /// Wraps `inner`. Each question waits `deadline` at most, counted for everyone from when they asked.
    pub fn new(inner: Arc<A>, deadline: Duration, metrics: Metrics) -> Self {
        Self { inner, deadline, metrics, asking: Mutex::default() }
    }

    fn shared(&self, question: &Question) -> futures::future::Shared<Asking> {
        let mut asking = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = asking.get(question).and_then(WeakShared::upgrade) {
            return known;
        }
        asking.retain(|_, weak| weak.upgrade().is_some());
        let (inner, asked) = (Arc::clone(&self.inner), question.clone());
        let shared = async move { inner.ask(asked).await }.boxed().shared();
        if let Some(weak) = shared.downgrade() {
            asking.insert(question.clone(), weak);
        }
        shared
    }
}

impl<A: Ask + ?Sized + 'static> Ask for Deduplicated<A> {
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answered, String>> {
        let shared = self.shared(&question);
        async move {
            let answer = tokio::time::timeout(self.deadline, shared).await;
            self.metrics.question(match &answer {
                Ok(Ok(_)) => QuestionOutcome::Answered,
                Ok(Err(_)) => QuestionOutcome::Failed,
                Err(_) => QuestionOutcome::Timeout,
            });
            let late = self.deadline.as_millis();
            answer.unwrap_or_else(|_| Err(format!("sync did not answer within {late} ms")))
        }
        .boxed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Semaphore;

    /// Answers once a permit is there.
    struct Slow {
        asked: AtomicUsize,
        permits: Semaphore,
    }

    impl Ask for Slow {
        fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answered, String>> {
            async move {
                self.asked.fetch_add(1, Ordering::SeqCst);
                let _permit = self.permits.acquire().await;
                let tag = Some(question.image);
                Ok(Answered { tag, reason: String::new() })
            }
            .boxed()
        }
    }

    fn setup(permits: usize) -> (Arc<Slow>, Deduplicated<Slow>) {
        let slow = Arc::new(Slow { asked: AtomicUsize::new(0), permits: Semaphore::new(permits) });
        (Arc::clone(&slow), Deduplicated::new(slow, DEADLINE, Metrics::new()))
    }

    fn question(image: &str) -> Question {
        Question { namespace: "shop".to_owned(), image: image.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_same_question_at_the_same_time_is_asked_once() {
        let (slow, dedup) = setup(0);
        let together = futures::future::join4(
            dedup.ask(question("a")),
            dedup.ask(question("a")),
            dedup.ask(question("b")),
            async {
                tokio::task::yield_now().await;
                slow.permits.add_permits(1);
            },
        );
        let (one, two, other, ()) = together.await;
        assert_eq!(one, two);
        assert_eq!(other.unwrap().tag.as_deref(), Some("b"));
        assert_eq!(slow.asked.load(Ordering::SeqCst), 2);
        // Answered is over: later it is asked anew, since the answer may have changed.
        dedup.ask(question("a")).await.unwrap();
        assert_eq!(slow.asked.load(Ordering::SeqCst), 3);
        assert!(dedup.asking.lock().unwrap().len() <= 1);
    }

    #[tokio::test(start_paused = true)]
    async fn one_who_leaves_does_not_take_the_answer_along() {
        let (slow, dedup) = setup(0);
        let mut first = dedup.ask(question("a"));
        assert!(futures::poll!(&mut first).is_pending());
        let second = dedup.ask(question("a"));
        drop(first);
        slow.permits.add_permits(1);
        assert!(second.await.is_ok());
        assert_eq!(slow.asked.load(Ordering::SeqCst), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_longer_than_the_deadline() {
        let (slow, dedup) = setup(0);
        let start = tokio::time::Instant::now();
        let error = dedup.ask(question("a")).await.unwrap_err();
        assert_eq!(error, "sync did not answer within 2000 ms");
        assert_eq!(start.elapsed(), DEADLINE);
        slow.permits.add_permits(1);
        assert!(dedup.ask(question("a")).await.is_ok());
    }
}
