//! The one temporary folder of this process, and the janitor that removes it.

use std::fs;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{ChildStdin, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::{Context as _, Result, anyhow};

/// Waits until this process is gone, whatever ended it, and then removes its folder ($1). A line on stdin says what
/// to spare: `logs` (data goes) or `all`. Removing is tried again for a while, since the programs that write there
/// are killed at the same moment.
const JANITOR: &str = r#"
keep=none
while read -r word; do keep=$word; done
[ "$keep" = all ] && exit 0
tries=0
while [ $tries -lt 50 ]; do
  if [ "$keep" = logs ]; then rm -rf "$1"/*/data "$1/pids"; else rm -rf "$1"; fi && exit 0
  tries=$((tries + 1)); sleep 0.1
done 2>/dev/null
"#;

/// The temporary folder of this process. Each thing that is started gets a folder in it; what is in a `data` folder
/// there is removed even where logs are kept.
pub struct RunDir {
    path: PathBuf,
    janitor: Mutex<ChildStdin>,
    next: AtomicUsize,
    kept: AtomicBool,
}

/// The folder of this process, made on first use.
pub fn run_dir() -> Result<&'static RunDir> {
    static RUN_DIR: OnceLock<Result<RunDir, String>> = OnceLock::new();
    static HOOK: OnceLock<()> = OnceLock::new();
    let made = RUN_DIR.get_or_init(|| RunDir::create().map_err(|error| format!("{error:#}"))).as_ref();
    let run_dir = made.map_err(|error| anyhow!("{error}"))?;
    HOOK.get_or_init(|| keep_logs_on_panic(run_dir));
    Ok(run_dir)
}

fn keep_logs_on_panic(run_dir: &'static RunDir) {
    let before = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        before(panic);
        run_dir.keep_logs();
    }));
}

impl RunDir {
    fn create() -> Result<Self> {
        let path = tempfile::Builder::new().prefix("kimup-testbed-").tempdir()?.keep();
        fs::create_dir(path.join("pids"))?;
        let mut janitor = Command::new("sh")
            .args(["-c", JANITOR, "kimup-testbed-janitor"])
            .arg(&path)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0) // Ctrl-C is for this process; the janitor acts on its end
            .spawn()
            .context("starting sh, which removes the temporary folder at the end")?;
        let janitor = Mutex::new(janitor.stdin.take().context("the janitor has no stdin")?);
        let run_dir = Self { path, janitor, next: AtomicUsize::new(0), kept: AtomicBool::new(false) };
        if std::env::var_os("KIMUP_KEEP_LOGS").is_some_and(|value| !value.is_empty()) {
            run_dir.keep_logs();
        }
        Ok(run_dir)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A new folder in it, named after what it is for.
    pub fn folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.path.join(format!("{name}-{}", self.next.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir_all(folder.join("data")).with_context(|| format!("creating {}", folder.display()))?;
        Ok(folder)
    }

    /// Leaves the logs behind when this process ends, and says on stderr where. A panic anywhere does this by itself.
    pub fn keep_logs(&self) {
        if !self.kept.swap(true, Ordering::Relaxed) {
            self.tell_janitor("logs");
            eprintln!("kimup-testbed: logs are kept in {}", self.path.display());
        }
    }

    /// Leaves everything behind and writes a script there that ends the programs that were left running and removes
    /// the folder; its path.
    pub(crate) fn leave(&self) -> Result<PathBuf> {
        let script = self.path.join("stop");
        let folder = self.path.display();
        let text = format!("#!/bin/sh\nkill -KILL $(cat '{folder}'/pids/*) 2>/dev/null\nsleep 1\nrm -rf '{folder}'\n");
        fs::write(&script, text).with_context(|| format!("writing {}", script.display()))?;
        fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        self.kept.store(true, Ordering::Relaxed);
        self.tell_janitor("all");
        Ok(script)
    }

    pub(crate) fn pid_file(&self, pid: u32) -> PathBuf {
        self.path.join("pids").join(pid.to_string())
    }

    fn tell_janitor(&self, word: &str) {
        let mut janitor = self.janitor.lock().unwrap_or_else(PoisonError::into_inner);
        // A janitor that is gone cannot remove anything either.
        let _ = writeln!(janitor, "{word}");
    }
}
