//! The two servers as processes on one core, and what they take of it. Everything else is on another core.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use kimup_testbed::{ApiStub, Process, ProcessSpec, free_port, run_dir};
use rustix::thread::{CpuSet, sched_setaffinity};

/// How long a server may take to be ready before the bench gives up.
const READY: Duration = Duration::from_secs(60);

/// The core of the servers, and the core of everything else.
const SERVERS: usize = 0;
const LOAD: usize = 1;

/// Moves this thread, and all that it starts from now on, to the core of the load.
pub fn move_to_load() -> Result<()> {
    let cores = thread::available_parallelism()?.get();
    ensure!(cores >= 2, "this needs two cores: one for the servers, one for the load");
    move_to(LOAD)
}

fn move_to(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).with_context(|| format!("moving to core {core}"))
}

/// A server under measure.
pub struct Server {
    process: Process,
    pub address: SocketAddr,
    /// From its start until it was ready.
    pub ready_after: Duration,
}

impl Server {
    /// `kimup webhook` on the API server `api`; it asks sync at `socket`.
    pub fn kimup(program: &Path, api: &ApiStub, socket: &Path) -> Result<Self> {
        let (webhook, probes) = (local(free_port()?), local(free_port()?));
        let spec = ProcessSpec::new("kimup", program.to_owned(), &run_dir()?.folder("kimup")?)
            .args(["webhook", "--namespace", "kimup-system", "--kubeconfig"])
            .arg(api.kubeconfig().display().to_string())
            .args(["--sync-socket".to_owned(), socket.display().to_string()])
            .args(["--webhook-listen".to_owned(), webhook.to_string()])
            .args(["--probes-listen".to_owned(), probes.to_string()]);
        Self::start(&spec, webhook, || is_ready(probes))
    }

    /// The server that does nothing.
    pub fn noop() -> Result<Self> {
        let address = local(free_port()?);
        let spec = ProcessSpec::new("noop", std::env::current_exe()?, &run_dir()?.folder("noop")?)
            .args([super::NOOP.to_owned(), address.to_string()]);
        Self::start(&spec, address, || TcpStream::connect(address).is_ok())
    }

    fn start(spec: &ProcessSpec, address: SocketAddr, ready: impl Fn() -> bool) -> Result<Self> {
        move_to(SERVERS)?; // what is started inherits it
        let (began, process) = (Instant::now(), Process::spawn(spec));
        move_to(LOAD)?;
        let mut process = process?;
        while !ready() {
            process.check_running()?;
            if began.elapsed() > READY {
                bail!("{} is not ready after {READY:?}: {}", spec.name, process.log_text());
            }
            thread::sleep(Duration::from_millis(2));
        }
        Ok(Self { process, address, ready_after: began.elapsed() })
    }

    /// Its process ID.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// On-CPU time of all its threads, in nanoseconds of the scheduler.
    pub fn cpu_time(&self) -> Result<Duration> {
        let mut total = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.process.id()))? {
            // A thread that ended meanwhile.
            let Ok(text) = fs::read_to_string(thread?.path().join("schedstat")) else { continue };
            let running: u64 = text.split_whitespace().next().context("an empty schedstat")?.parse()?;
            total += running;
        }
        Ok(Duration::from_nanos(total))
    }

    /// Its resident memory, in bytes, the pages of the program itself included.
    pub fn rss(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// What of it is not of a file: heap and stacks, and no more than that of what it keeps.
    pub fn anonymous(&self) -> Result<u64> {
        self.status_bytes("RssAnon:")
    }

    fn status_bytes(&self, name: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("it has ended")?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kilobytes * 1024)
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn is_ready(probes: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(probes)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: kimup\r\nConnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

/// A socket where sync would answer; it hangs up at once.
pub struct SyncSocket {
    pub path: PathBuf,
    connects: Arc<AtomicU64>,
}

impl SyncSocket {
    pub fn listen() -> Result<Self> {
        let path = run_dir()?.folder("sync")?.join("sync.sock");
        let listener = UnixListener::bind(&path)?;
        let connects = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&connects);
        thread::spawn(move || {
            for _ in listener.incoming() {
                count.fetch_add(1, Ordering::SeqCst);
            }
        });
        Ok(Self { path, connects })
    }

    /// How often somebody asked.
    pub fn connects(&self) -> u64 {
        self.connects.load(Ordering::SeqCst)
    }
}
