//! The demo: `stage` is what it runs on, `story` what happens, `table` its summary.

mod shell;
mod stage;
mod story;
mod table;

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use kimup_testbed::run_dir;

/// Shows it all. A failure keeps the logs and says where.
pub async fn run(kimup: PathBuf, keep: bool) -> Result<()> {
    // A relative path would be looked up in the folder that the commands run in.
    let kimup = kimup.canonicalize().with_context(|| format!("there is no kimup at {}", kimup.display()))?;
    let told = story::tell(kimup, keep).await;
    if told.is_err() {
        run_dir()?.keep_logs();
    }
    told
}
