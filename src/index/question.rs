//! The one question admission may ask sync: which tag should Pods of an Image run that has none on record yet?

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use serde::{Deserialize, Serialize};

/// Which Image. No credentials, no Pod: what the answer depends on is in the cluster.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, Hash)]
pub struct Question {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub image: String,
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Answered {
    /// The tag; none if no tag can be chosen.
    pub tag: Option<String>,
    /// Why this tag, or why none.
    pub reason: String,
}

/// Somebody who answers: sync in the same process, or beyond a socket.
pub trait Ask: Send + Sync {
    /// Asks. The error says why there is no answer.
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answered, String>>;
}

type Pending = Shared<BoxFuture<'static, Result<Answered, String>>>;

/// Asks once for all that ask the same at the same time, and waits no longer than a deadline.
pub struct Deduplicated {
    inner: Arc<dyn Ask>,
    deadline: Duration,
    pending: Arc<Mutex<HashMap<Question, Pending>>>,
}

impl Deduplicated {
    /// `deadline` counts for each who asks, from when it asks.
    pub fn new(inner: Arc<dyn Ask>, deadline: Duration) -> Self {
        Self { inner, deadline, pending: Arc::default() }
    }

    /// Asks, or joins those who are asking.
    pub async fn ask(&self, question: Question) -> Result<Answered, String> {
        let answer = self.join(&question);
        tokio::time::timeout(self.deadline, answer)
            .await
            .unwrap_or_else(|_| Err(format!("no answer within {}", humantime::format_duration(self.deadline))))
    }

    fn join(&self, question: &Question) -> Pending {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answer) = pending.get(question) {
            return answer.clone();
        }
        let (inner, all, key) = (self.inner.clone(), self.pending.clone(), question.clone());
        let deadline = self.deadline;
        // A task of its own, so that it ends and is forgotten also when everybody who asked has gone.
        let task = tokio::spawn(async move {
            let answer = tokio::time::timeout(deadline, inner.ask(key.clone())).await;
            all.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            answer.unwrap_or_else(|_| Err("no answer in time".to_owned()))
        });
        let answer = async move { task.await.unwrap_or_else(|_| Err("the question was dropped".to_owned())) };
        let answer = answer.boxed().shared();
        pending.insert(question.clone(), answer.clone());
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[derive(Default)]
    struct Slow {
        asked: AtomicUsize,
        never: bool,
    }

    impl Ask for Slow {
        fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answered, String>> {
            self.asked.fetch_add(1, Ordering::SeqCst);
            async move {
                let wait = if self.never { 3600 } else { 1 };
                tokio::time::sleep(Duration::from_secs(wait)).await;
                Ok(Answered { tag: Some(question.image), reason: String::new() })
            }
            .boxed()
        }
    }

    fn question(image: &str) -> Question {
        Question { namespace: "shop".to_owned(), image: image.to_owned() }
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_the_same_at_once_asks_once() {
        let slow = Arc::new(Slow::default());
        let asker = Deduplicated::new(slow.clone(), Duration::from_secs(2));
        let all =
            futures::future::join_all((0..10).map(|i| asker.ask(question(if i % 2 == 0 { "a" } else { "b" })))).await;
        assert!(all.iter().all(Result::is_ok));
        assert_eq!(slow.asked.load(Ordering::SeqCst), 2);
        asker.ask(question("a")).await.unwrap();
        assert_eq!(slow.asked.load(Ordering::SeqCst), 3, "an answer is not kept");
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_past_the_deadline() {
        let asker = Deduplicated::new(Arc::new(Slow { never: true, ..Slow::default() }), Duration::from_secs(2));
        let start = tokio::time::Instant::now();
        let error = asker.ask(question("a")).await.unwrap_err();
        assert!(error.contains("2s") || error.contains("in time"), "{error}");
        assert_eq!(start.elapsed(), Duration::from_secs(2));
    }
}
