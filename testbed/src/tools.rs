//! Where the programs of the test bed are.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Result, anyhow, bail};

/// The checkout that this crate was built from.
pub fn checkout() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// The path of one of the programs that `tools/build` provides: `kubectl`, `crane`, `registry`, …
///
/// The first call runs `tools/build`, which takes minutes when nothing is built yet; it says so on stderr.
pub fn tool(name: &str) -> Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| build().map_err(|error| format!("{error:#}"))).as_ref();
    let program = folder.map_err(|error| anyhow!("{error}"))?.join(name);
    if !program.exists() {
        bail!("{} does not exist: `{name}` is not one of the programs of tools/build", program.display());
    }
    Ok(program)
}

fn build() -> Result<PathBuf> {
    let script = checkout().join("tools/build");
    let output = Command::new(&script).stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| anyhow!("running {}: {error}", script.display()))?;
    if !output.status.success() {
        bail!("{} failed ({}); its message is on stderr", script.display(), output.status);
    }
    Ok(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()))
}
