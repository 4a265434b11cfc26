//! Programs that end with this process, however it ends.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::ports::free_port;
use crate::run_dir::run_dir;

/// Runs the program ("$@") in place of the shell, so that its process ID is the one we know, with a watchdog beside it
/// that holds the other end of a pipe to us. If the pipe closes, we are gone: the watchdog kills the program. A line
/// on the pipe lets the program go. No thread and no exit handler of ours is needed, so it also works after SIGKILL;
/// `PR_SET_PDEATHSIG` would fire when the thread ends that started the program, which a test's thread does early.
const WATCHDOG: &str = r#"
exec 3<&0 </dev/null
{ read -r released <&3 || kill -KILL $$; } >/dev/null 2>&1 &
exec 3<&-
exec "$@"
"#;

/// How often a start is tried with new ports when another process took the old ones first.
const PORT_ATTEMPTS: usize = 5;

/// A program to start.
#[derive(Clone, Debug)]
pub struct ProcessSpec {
    /// What it is called in messages: `kube-apiserver`.
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    /// Its whole environment, but for `PATH`, `TMPDIR` and `HOME` (which is the folder of its log): settings of the
    /// person who runs the tests do not reach it.
    pub env: Vec<(String, String)>,
    /// Where stdout and stderr go; appended to.
    pub log: PathBuf,
}

impl ProcessSpec {
    /// Logs to `<name>.log` in `folder`.
    pub fn new(name: &str, program: PathBuf, folder: &Path) -> Self {
        let log = folder.join(format!("{name}.log"));
        Self { name: name.to_owned(), program, args: Vec::new(), env: Vec::new(), log }
    }

    #[must_use]
    pub fn arg(mut self, arg: impl Into<String>) -> Self {
        self.args.push(arg.into());
        self
    }

    #[must_use]
    pub fn args<A: Into<String>>(mut self, args: impl IntoIterator<Item = A>) -> Self {
        self.args.extend(args.into_iter().map(Into::into));
        self
    }

    /// A Go program that collects its garbage a quarter as often: tests have more memory than processor time.
    #[must_use]
    pub fn rarely_collecting(mut self) -> Self {
        self.env.push(("GOGC".to_owned(), "400".to_owned()));
        self
    }
}

/// A running program. Dropping it kills it; so does the end of this process: a return from `main`, a panic, a signal,
/// SIGKILL.
pub struct Process {
    name: String,
    child: Child,
    /// Open as long as the program may live.
    lifeline: Option<ChildStdin>,
    log: PathBuf,
    /// The length of the log before this start.
    log_start: u64,
    pid_file: PathBuf,
}

impl Process {
    /// Starts it; does not wait for anything.
    pub fn spawn(spec: &ProcessSpec) -> Result<Self> {
        let log = OpenOptions::new().create(true).append(true).open(&spec.log);
        let log = log.with_context(|| format!("opening the log {}", spec.log.display()))?;
        let log_start = log.metadata()?.len();
        let inherited = ["PATH", "TMPDIR"].into_iter().filter_map(|key| Some((key, std::env::var_os(key)?)));
        let mut child = Command::new("sh")
            .args(["-c", WATCHDOG, "kimup-testbed-watchdog"])
            .arg(&spec.program)
            .args(&spec.args)
            .env_clear()
            .envs(inherited)
            .envs(spec.log.parent().map(|folder| ("HOME", folder)))
            .envs(spec.env.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0) // Ctrl-C is for this process alone: it decides who ends when
            .spawn()
            .with_context(|| format!("starting {} through sh", spec.name))?;
        let lifeline = child.stdin.take();
        let pid_file = run_dir()?.pid_file(child.id());
        fs::write(&pid_file, format!("{}\n", child.id()))?;
        Ok(Self { name: spec.name.clone(), child, lifeline, log: spec.log.clone(), log_start, pid_file })
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Where its stdout and stderr go.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// What it has written since this start.
    pub fn log_text(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.seek(SeekFrom::Start(self.log_start));
            let _ = file.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// How it ended, if it has.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        let status = self.child.try_wait().ok().flatten()?;
        self.let_go();
        Some(status)
    }

    /// An error with the end of its log, if it has ended.
    pub fn check_running(&mut self) -> Result<()> {
        match self.exited() {
            None => Ok(()),
            Some(status) => bail!("{} ended by itself ({status}); {}", self.name, self.log_tail()),
        }
    }

    /// Sends a signal; an ended program is not an error.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        if self.exited().is_some() {
            return Ok(());
        }
        let pid = i32::try_from(self.id()).ok().and_then(Pid::from_raw).context("not a process ID")?;
        kill_process(pid, signal).with_context(|| format!("sending {signal:?} to {}", self.name))
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&mut self) {
        let _ = self.child.kill(); // fails only if it has ended
        // First the watchdog, then the process ID: it must not kill whoever gets that ID next.
        self.let_go();
        let _ = self.child.wait();
    }

    /// SIGTERM; how it ended, or an error if it has not within `deadline`.
    pub async fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        self.ended(deadline).await
    }

    /// How it ended, or an error if it has not within `deadline`. Nothing is sent.
    pub async fn ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        let end = Instant::now() + deadline;
        loop {
            if let Some(status) = self.exited() {
                return Ok(status);
            }
            if Instant::now() > end {
                bail!("{} still runs after {deadline:?}; {}", self.name, self.log_tail());
            }
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lets it run on after this process has ended. The script that [`crate::Cluster::leave_running`] returns ends it.
    pub fn leave_running(mut self) {
        if let Some(mut lifeline) = self.lifeline.take() {
            let _ = writeln!(lifeline, "released");
        }
    }

    fn let_go(&mut self) {
        if let Some(mut lifeline) = self.lifeline.take() {
            let _ = writeln!(lifeline, "released"); // a watchdog that is gone needs no telling
            let _ = fs::remove_file(&self.pid_file);
        }
    }

    fn log_tail(&self) -> String {
        let text = self.log_text();
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines[lines.len().saturating_sub(15)..].join("\n  ");
        format!("the end of {}:\n  {tail}", self.log.display())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.lifeline.is_some() {
            self.kill();
        }
    }
}

/// Starts what `spec` gives for some free ports and waits until `ready`; if another process took one of the ports
/// meanwhile, tries again with others. `ready` must not be content with an answer of that other process.
pub(crate) async fn start_on_ports<const N: usize>(
    deadline: Duration,
    spec: impl Fn([u16; N]) -> ProcessSpec,
    ready: impl AsyncFn(&Process, [u16; N]) -> Result<()>,
) -> Result<(Process, [u16; N])> {
    let mut attempt = 1;
    loop {
        let mut ports = [0; N];
        for port in &mut ports {
            *port = free_port()?;
        }
        let spec = spec(ports);
        match start(deadline, &spec, async |process| ready(process, ports).await).await? {
            Started::Ready(process) => return Ok((process, ports)),
            Started::PortTaken if attempt < PORT_ATTEMPTS => attempt += 1,
            Started::PortTaken => {
                bail!("{} found its ports taken {attempt} times; see {}", spec.name, spec.log.display())
            }
        }
    }
}

pub(crate) enum Started {
    Ready(Process),
    PortTaken,
}

/// Starts `spec` and waits until `ready`.
pub(crate) async fn start(
    deadline: Duration,
    spec: &ProcessSpec,
    ready: impl AsyncFn(&Process) -> Result<()>,
) -> Result<Started> {
    let mut process = Process::spawn(spec)?;
    let end = Instant::now() + deadline;
    loop {
        if process.exited().is_some() && port_taken(&process.log_text()) {
            return Ok(Started::PortTaken);
        }
        process.check_running()?;
        let left = end.saturating_duration_since(Instant::now());
        let state = match tokio::time::timeout(left, ready(&process)).await {
            Ok(Ok(())) => return Ok(Started::Ready(process)),
            Ok(Err(error)) => format!("{error:#}"),
            Err(_) => "no answer".to_owned(),
        };
        if Instant::now() >= end {
            bail!("{} is not ready after {deadline:?}: {state}; {}", spec.name, process.log_tail());
        }
        sleep(Duration::from_millis(30)).await;
    }
}

fn port_taken(log: &str) -> bool {
    let log = log.to_ascii_lowercase();
    log.contains("address already in use") || log.contains("address in use")
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    /// Starts one shell script after the other, as attempts to start the same program.
    async fn check(scripts: &[&str], deadline: Duration, expected: Result<usize, &str>) {
        let folder = run_dir().unwrap().folder("process-test").unwrap();
        let attempts = Cell::new(0);
        let spec = |_: [u16; 1]| {
            let script = scripts[attempts.get() % scripts.len()];
            attempts.set(attempts.get() + 1);
            ProcessSpec::new("it", "/bin/sh".into(), &folder).args(["-c", script])
        };
        let ready = async |process: &Process, _| {
            if process.log_text().contains("up") { Ok(()) } else { bail!("it is not up") }
        };
        let started = start_on_ports(deadline, spec, ready).await;
        match (started, expected) {
            (Ok(_), Ok(wanted)) => assert_eq!(attempts.get(), wanted, "{scripts:?}"),
            (Err(error), Err(wanted)) => assert!(format!("{error:#}").contains(wanted), "{scripts:?}: {error:#}"),
            (Ok(_), Err(wanted)) => panic!("{scripts:?}: started, expected {wanted}"),
            (Err(error), Ok(_)) => panic!("{scripts:?}: {error:#}"),
        }
    }

    #[tokio::test]
    async fn a_taken_port_is_tried_again_and_nothing_else() {
        let (up, taken) = ("echo up; sleep 60", "echo 'listen tcp: bind: Address already in use'; exit 1");
        check(&[up], DEADLINE, Ok(1)).await;
        check(&[taken, taken, up], DEADLINE, Ok(3)).await;
        check(&[taken], DEADLINE, Err("found its ports taken 5 times")).await;
        check(&["echo bad flag; exit 2"], DEADLINE, Err("it ended by itself (exit status: 2); the end of")).await;
        check(&["echo bad flag; exit 2"], DEADLINE, Err("bad flag")).await;
        check(&["sleep 60"], Duration::from_millis(200), Err("it is not ready after 200ms: it is not up")).await;
    }

    #[tokio::test]
    async fn terminate_is_polite_and_has_a_deadline() {
        let folder = run_dir().unwrap().folder("process-test").unwrap();
        let start = async |script: &str| {
            let spec = ProcessSpec::new("it", "/bin/sh".into(), &folder).args(["-c", script]);
            let process = Process::spawn(&spec).unwrap();
            crate::eventually(DEADLINE, "it is up", async || process.log_text().contains("up")).await;
            process
        };
        let mut polite = start("trap 'exit 7' TERM; echo up; while :; do sleep 0.02; done").await;
        assert_eq!(polite.terminate(DEADLINE).await.unwrap().code(), Some(7));
        let mut deaf = start("trap '' TERM; echo up; while :; do sleep 0.02; done").await;
        let error = deaf.terminate(Duration::from_millis(200)).await.unwrap_err();
        assert!(error.to_string().contains("still runs"), "{error}");
        deaf.kill();
        assert!(deaf.exited().is_some());
    }
}
