//! The tasks that a process cannot do without: once one has ended by itself, only a restart helps.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::task::{AbortHandle, JoinHandle};

/// The tasks that must run until the process is told to stop. Clones share one list.
///
/// One of them ends by itself if it panics. What it kept up to date stands still then: the process goes on with what it
/// has, and `/healthz` fails, so that the kubelet restarts the container in good order.
#[derive(Clone, Debug, Default)]
pub struct Vitals(Arc<Mutex<Vec<(&'static str, AbortHandle)>>>);

impl Vitals {
    /// Adds a task; `name` is what `/healthz` calls it.
    pub fn watch<T>(&self, name: &'static str, task: &JoinHandle<T>) {
        self.lock().push((name, task.abort_handle()));
    }

    /// From now on tasks may end: the process stops.
    pub fn release(&self) {
        self.lock().clear();
    }

    /// The names of those that have ended.
    pub(super) fn ended(&self) -> Vec<&'static str> {
        self.lock().iter().filter(|(_, task)| task.is_finished()).map(|(name, _)| *name).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<(&'static str, AbortHandle)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn those_that_ended_are_named() {
        let vitals = Vitals::default();
        let (runs, fails) = (tokio::spawn(std::future::pending::<()>()), tokio::spawn(async { panic!("on purpose") }));
        vitals.watch("runs", &runs);
        vitals.watch("fails", &fails);
        let _: Result<(), _> = fails.await;
        assert_eq!(vitals.ended(), ["fails"]);
        vitals.release();
        runs.abort();
        assert!(runs.await.is_err());
        assert_eq!(vitals.ended(), [""; 0]);
    }
}
