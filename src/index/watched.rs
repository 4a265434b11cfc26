//! A watch that goes on for ever, whatever happens to the API server meanwhile.

use std::fmt::Debug;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use kube::Resource;
use kube::api::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Config, Error, Event};
use serde::de::DeserializeOwned;
use tokio::time::Instant;

/// Lists and watches objects, again and again, with a [`Pause`] after each error.
///
/// Goes on with another of kube's watchers where one would ask for ever: "clients must handle [410 Gone] by clearing their
/// local cache, performing a new get or list operation" (Kubernetes API concepts), but kube's does so only if an event of an
/// open watch says it. Asked for a watch of a version that is gone, an API server may answer with the status.
pub fn watched<K>(api: Api<K>, config: Config) -> BoxStream<'static, Result<Event<K>, Error>>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + 'static,
{
    let begin = move || watcher::watcher(api.clone(), config.clone()).boxed();
    let events = futures::stream::unfold((begin(), begin), |(mut running, begin)| async move {
        let event = running.next().await?;
        if event.as_ref().is_err_and(is_gone) {
            running = begin();
        }
        Some((event, (running, begin)))
    });
    events.backoff(Pause::default()).boxed()
}

fn is_gone(error: &Error) -> bool {
    let (Error::WatchStartFailed(cause) | Error::WatchFailed(cause)) = error else {
        return false;
    };
    matches!(cause, kube::Error::Api(status) if status.code == 410)
}

/// Waits between the attempts of a failing watch: at most 2 seconds, so that a restarted API server is followed again
/// soon (kube's default waits up to 30). After an outage two waits follow one another: the first try may find that the
/// version it knows is too old, and that is a failure too.
pub struct Pause {
    next: Duration,
    last: Option<Instant>,
}

impl Default for Pause {
    fn default() -> Self {
        Self { next: Self::FIRST, last: None }
    }
}

impl Pause {
    const FIRST: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(2);
    /// So long without an error and the waits begin short again.
    const CALM: Duration = Duration::from_secs(30);
}

impl Iterator for Pause {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self.last.is_some_and(|last| now - last > Self::CALM) {
            self.next = Self::FIRST;
        }
        self.last = Some(now);
        let pause = self.next;
        self.next = (pause * 2).min(Self::LONGEST);
        Some(pause.mul_f64(0.75 + fastrand::f64() / 4.0))
    }
}

impl Backoff for Pause {
    /// Nothing: a watcher says that it begins a list before each attempt, which is no success.
    fn reset(&mut self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_grow_and_begin_anew_after_calm() {
        let mut pause = Pause::default();
        let first = pause.next().unwrap();
        assert!(first <= Pause::FIRST && first >= Pause::FIRST.mul_f64(0.75));
        let last = (0..10).filter_map(|_| pause.next()).last().unwrap();
        assert!(last <= Pause::LONGEST && last >= Pause::LONGEST.mul_f64(0.75));
        pause.reset(); // a watcher does so before each attempt
        assert!(pause.next().unwrap() > Duration::from_secs(1));
        tokio::time::advance(Pause::CALM * 2).await;
        assert!(pause.next().unwrap() <= Pause::FIRST);
    }
}
