//! A runtime for servers that live inside this process.

use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;

/// The runtime of in-process servers. Not the caller's: a test that blocks its thread, on kubectl for example, would
/// stop the server that kubectl is waiting for.
pub(crate) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<Option<Runtime>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| Builder::new_multi_thread().worker_threads(2).thread_name("testbed").enable_all().build().ok())
        .as_ref()
        .context("starting the threads of the in-process servers")
}

/// A task that ends when this is dropped.
pub(crate) struct Task(JoinHandle<()>);

impl Task {
    pub(crate) fn spawn(work: impl Future<Output = ()> + Send + 'static) -> Result<Self> {
        Ok(Self(runtime()?.spawn(work)))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}
