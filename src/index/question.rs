//! The one question that admission may ask sync: which tag should a Pod run whose Image has none on record?

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use futures::future::{BoxFuture, WeakShared};
use serde::{Deserialize, Serialize};

use crate::api::ImageSpec;
use crate::telemetry::{Metrics, QuestionOutcome};

/// How long the answer may take if nothing else is said: well below the webhook's `timeoutSeconds`.
pub const DEADLINE: Duration = Duration::from_secs(2);

/// Names the Image that is asked for.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, Hash)]
pub struct Question {
    /// Namespace of the Image.
    pub namespace: String,
    /// Name of the Image. With `pod`: the first of the names it may have.
    pub image: String,
    /// Set if no Image is known and annotations ask for one: the container that needs a tag.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Box<PodQuestion>>,
}

/// A container whose annotations, or those of its owner, may ask for an Image that is not known yet.
///
/// The tag of the answer is the one to run: the own tag in `text` is taken into account by who answers, because only
/// there the rule is known.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodQuestion {
    /// The Pod's controller; none for a Pod that nobody made.
    pub controller: Option<Controller>,
    /// The `pod-template-hash` or `controller-revision-hash` of the Pod, empty if it has none.
    #[serde(default)]
    pub hash: String,
    /// The hash is the `rollouts-pod-template-hash` of an Argo Rollout.
    #[serde(default)]
    pub of_rollout: bool,
    /// Name of the container.
    pub container: String,
    /// Its image text.
    pub text: String,
    /// What the Pod's own annotations say of it; none if they do not say which container they mean.
    pub spec: Option<ImageSpec>,
    /// Names of the Pod's `imagePullSecrets`.
    pub pull_secrets: Vec<String>,
    /// The Pod's ServiceAccount.
    pub service_account: String,
    /// The names that its Image may have, in the order in which they are to be tried.
    pub images: Vec<String>,
}

/// Who made a Pod: its ownerReference with `controller: true`.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq, Hash)]
pub struct Controller {
    /// Its kind, for example `ReplicaSet`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
}

impl Eq for PodQuestion {} // a spec holds no floating point numbers

impl Hash for PodQuestion {
    /// Equal questions have equal hashes; the spec, which cannot be hashed, follows from the rest nearly always.
    fn hash<H: Hasher>(&self, state: &mut H) {
        (&self.controller, &self.container, &self.text, &self.service_account).hash(state);
    }
}

/// The answer.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq, Eq)]
pub struct Answered {
    /// The tag, `tag@sha256:…` if Pods are pinned to its digest; none if no tag can be chosen.
    pub tag: Option<String>,
    /// Why this tag, or why none: shown to whoever created the Pod.
    pub reason: String,
    /// False: no policy means this container, so it is left as it is.
    #[serde(default = "covered")]
    pub covered: bool,
    /// Name of the Image that the answer is about, if it is another one than that of the question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
}

fn covered() -> bool {
    true
}

impl Answered {
    /// An answer about the Image of the question.
    pub fn new(tag: Option<String>, reason: impl Into<String>) -> Self {
        Self { tag, reason: reason.into(), covered: true, image: None }
    }

    /// No policy means this container.
    pub fn not_covered() -> Self {
        Self { covered: false, ..Self::new(None, "no policy means this container") }
    }
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
        // Only when there is no room left, which then doubles at most: a Pod with many containers asks many questions.
        if asking.len() == asking.capacity() {
            asking.retain(|_, weak| weak.upgrade().is_some());
        }
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
                Ok(Answered::new(tag, ""))
            }
            .boxed()
        }
    }

    fn setup(permits: usize) -> (Arc<Slow>, Deduplicated<Slow>) {
        let slow = Arc::new(Slow { asked: AtomicUsize::new(0), permits: Semaphore::new(permits) });
        (Arc::clone(&slow), Deduplicated::new(slow, DEADLINE, Metrics::new()))
    }

    fn question(image: &str) -> Question {
        Question { namespace: "shop".to_owned(), image: image.to_owned(), pod: None }
    }

    #[test]
    fn peers_of_another_version_are_understood() {
        let old: Question = serde_json::from_str(r#"{"namespace": "shop", "image": "a"}"#).unwrap();
        assert_eq!(old, question("a"));
        assert_eq!(serde_json::to_string(&old).unwrap(), r#"{"namespace":"shop","image":"a"}"#);
        let old: Answered = serde_json::from_str(r#"{"tag": "1", "reason": "settled"}"#).unwrap();
        assert_eq!(old, Answered::new(Some("1".to_owned()), "settled"));
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
        slow.permits.add_permits(1000);
        for n in 0..1000 {
            dedup.ask(question(&n.to_string())).await.unwrap();
            assert!(dedup.asking.lock().unwrap().len() < 16, "what is over is forgotten");
        }
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
