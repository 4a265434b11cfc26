//! What clients can do to the webhook's server, and what a well-behaved one sees meanwhile.
//!
//! The server is a process of its own, so that its memory is nobody else's; attackers and the client are threads of this
//! one. All come from one address, as through a proxy: the harder case, since nothing tells them apart.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::routing::post;
use kimup::net::ca::CertificateAuthority;
use kimup::net::probes::Readiness;
use kimup::net::server::{ServerOptions, serve_https};
use kimup::net::tls::{self, CertSource};
use kimup::telemetry::Metrics;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

/// Set in the process that serves.
pub const SERVE: &str = "KIMUP_TEST_SERVE";
/// Bytes of the client's request, as those of a small Pod's review.
const BODY: usize = 4 << 10;
/// Requests a second of the client.
const RATE: u32 = 200;
/// How long an attacker whose connection was closed waits.
const AGAIN: Duration = Duration::from_secs(5);
/// How long the client tries to get one answer on a new connection.
const PATIENCE: Duration = Duration::from_secs(20);
const ANSWER: &[u8] = b"\r\n\r\nok";

/// Serves until standard input ends. What it prints first is its address and CA.
pub fn serve() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let ca = Arc::new(CertificateAuthority::generate("test", jiff::Timestamp::now()).unwrap());
        let pem = ca.certificate_pem().replace('\n', "|");
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (_signer, ca) = tokio::sync::watch::channel(ca);
        let source = CertSource::SelfManaged { ca, dns: vec![], ips: vec![address.ip()] };
        let (served, stop) = (Readiness::default().register("certificate"), CancellationToken::new());
        let (clock, metrics) = (tls::system_clock(), Metrics::new());
        let (shared, _) = tls::start(source, None, clock, served, metrics, stop.clone()).await.unwrap();
        let router = Router::new().route("/", post(|_: Bytes| async { "ok" }));
        let serving = tokio::spawn(serve_https(listener, shared, router, ServerOptions::default(), stop));
        println!("serving {address} {pem}");
        tokio::task::spawn_blocking(|| std::io::read_to_string(std::io::stdin())).await.unwrap().unwrap();
        serving.abort();
    });
}

/// The process that serves.
pub struct Server {
    child: Child,
    pub target: Target,
}

/// How to reach it.
#[derive(Clone)]
pub struct Target {
    address: SocketAddr,
    connector: TlsConnector,
}

impl Server {
    /// Starts this executable anew with `arguments`, which must end in [`serve`].
    pub fn start(arguments: &[&str]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        raise_descriptors();
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(arguments)
            .env(SERVE, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let line = lines.into_iter().find_map(|line| Some(line.split_once("serving ")?.1.to_owned())).unwrap();
        let (address, pem) = line.split_once(' ').unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(pem.replace('|', "\n").as_bytes()).unwrap()).unwrap();
        let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        let target = Target { address: address.parse().unwrap(), connector: TlsConnector::from(Arc::new(config)) };
        Self { child, target }
    }

    /// The most resident memory that it has had, in bytes.
    pub fn peak(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// Its open sockets.
    pub fn sockets(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap();
        let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// As many as the system allows: an attack of 10,000 connections needs them here.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

/// How many connections an attack can have open.
fn descriptors(wanted: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let allowed = limit.map_or(wanted, |limit| usize::try_from(limit).unwrap_or(wanted));
    wanted.min(allowed.saturating_sub(500))
}

impl Target {
    async fn tcp(&self) -> std::io::Result<TcpStream> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    async fn tls(&self) -> std::io::Result<TlsStream<TcpStream>> {
        self.connector.connect(ServerName::from(self.address.ip()), self.tcp().await?).await
    }
}

/// What attackers do.
#[derive(Clone, Copy, Debug)]
pub enum Attack {
    /// 10,000 connections that send nothing; each that is closed is made again after a while.
    Idle,
    /// 600 request heads, a byte a second.
    SlowHeads,
    /// 600 request bodies, a byte a second.
    SlowBodies,
    /// 600 connections that ask once and stay.
    KeepAlive,
    /// 1,000 connections a second that send no TLS.
    Garbage,
    /// 200 TLS handshakes a second.
    Handshakes,
    /// 20 request heads of 1 MB a second.
    LongHeads,
    /// 20 bodies of 7 MB at a time, held back before their last byte.
    LargeBodies,
    /// 1,000 connections a second that are reset at once.
    Resets,
}

impl Attack {
    pub const ALL: [Self; 9] = [
        Self::Idle,
        Self::SlowHeads,
        Self::SlowBodies,
        Self::KeepAlive,
        Self::Garbage,
        Self::Handshakes,
        Self::LongHeads,
        Self::LargeBodies,
        Self::Resets,
    ];

    /// Goes on until it is dropped.
    async fn run(self, target: Target) {
        let head =
            |length: usize| format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {length}\r\n\r\n").into_bytes();
        match self {
            Self::Idle => crowd(descriptors(10_000), target, async |target| wait(target.tcp().await?).await).await,
            Self::SlowHeads => {
                crowd(600, target, async |target| drip(target.tls().await?, b"POST / HTTP/1.1\r\nx: ", b"x").await)
                    .await;
            }
            Self::SlowBodies => {
                let head = head(1 << 20);
                crowd(600, target, async move |target| drip(target.tls().await?, &head, b"x").await).await;
            }
            Self::KeepAlive => {
                crowd(600, target, async |target| {
                    let mut stream = target.tls().await?;
                    request(&mut stream).await?;
                    wait(stream).await
                })
                .await;
            }
            Self::Garbage => {
                storm(1000, target, async |target| {
                    let mut stream = target.tcp().await?;
                    stream.write_all(&[b'x'; 300]).await?;
                    wait(stream).await
                })
                .await;
            }
            Self::Handshakes => storm(200, target, async |target| target.tls().await.map(drop)).await,
            Self::LongHeads => {
                storm(20, target, async |target| {
                    let mut stream = target.tls().await?;
                    stream.write_all(b"POST / HTTP/1.1\r\nx: ").await?;
                    stream.write_all(&vec![b'x'; 1 << 20]).await
                })
                .await;
            }
            Self::LargeBodies => {
                let head = head(7 << 20);
                crowd(20, target, async move |target| {
                    let mut stream = target.tls().await?;
                    stream.write_all(&head).await?;
                    for _ in 0..447 {
                        stream.write_all(&[b'x'; 16 << 10]).await?;
                    }
                    wait(stream).await
                })
                .await;
            }
            Self::Resets => {
                storm(1000, target, async |target| {
                    let stream = target.tcp().await?;
                    stream.set_zero_linger()
                })
                .await;
            }
        }
    }
}

/// `count` that do this at the same time, again and again.
async fn crowd<F>(count: usize, target: Target, each: F)
where
    F: AsyncFn(&Target) -> std::io::Result<()> + Clone + 'static,
{
    let set = tokio::task::LocalSet::new();
    for nth in 0..count {
        let (target, each) = (target.clone(), each.clone());
        set.spawn_local(async move {
            sleep(Duration::from_micros(200) * u32::try_from(nth).unwrap()).await; // not all in one instant
            loop {
                let _ = each(&target).await;
                sleep(AGAIN).await;
            }
        });
    }
    set.await;
}

/// Does this so many times a second.
async fn storm<F>(rate: u32, target: Target, each: F)
where
    F: AsyncFn(&Target) -> std::io::Result<()> + Clone + 'static,
{
    let set = tokio::task::LocalSet::new();
    set.run_until(async {
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
        loop {
            ticks.tick().await;
            let (target, each) = (target.clone(), each.clone());
            tokio::task::spawn_local(async move { timeout(Duration::from_secs(5), each(&target)).await });
        }
    })
    .await;
}

/// Until the server closes.
async fn wait<S: tokio::io::AsyncRead + Unpin>(mut stream: S) -> std::io::Result<()> {
    let mut bytes = [0; 512];
    while stream.read(&mut bytes).await? > 0 {}
    Ok(())
}

async fn drip(mut stream: TlsStream<TcpStream>, first: &[u8], then: &[u8]) -> std::io::Result<()> {
    stream.write_all(first).await?;
    loop {
        sleep(Duration::from_secs(1)).await;
        stream.write_all(then).await?;
    }
}

/// A well-behaved request and its answer.
async fn request(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    let mut bytes = format!("POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {BODY}\r\n\r\n").into_bytes();
    bytes.resize(bytes.len() + BODY, b'x');
    stream.write_all(&bytes).await?;
    let mut answer = Vec::with_capacity(512);
    while !answer.ends_with(ANSWER) {
        if stream.read_buf(&mut answer).await? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(())
}

/// What a well-behaved client saw.
#[derive(Default)]
pub struct Seen {
    /// Time of each answer on a connection that was there before, sorted.
    pub answers: Vec<Duration>,
    /// Requests on it that were not answered.
    pub lost: usize,
    /// Time of each answer on a new connection, the handshake included, sorted.
    pub new_answers: Vec<Duration>,
    /// New connections that did not get one.
    pub new_lost: usize,
}

/// The time that `percent` of all do not exceed.
pub fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// What a client sees that asks steadily on one connection, and four times a second on a new one. It connects before the
/// attack, if there is one. Half-way `probe` is called.
pub fn observe<T>(target: &Target, at_most: Duration, attack: Option<Attack>, probe: impl FnOnce() -> T) -> (Seen, T) {
    let (there, connected) = std::sync::mpsc::channel();
    let (go, begin) = tokio::sync::oneshot::channel();
    let client = target.clone();
    let observer = in_thread(move || async move {
        let mut stream = client.tls().await.unwrap();
        request(&mut stream).await.unwrap();
        there.send(()).unwrap();
        begin.await.unwrap();
        watch(&client, Ok(stream), at_most).await
    });
    connected.recv().unwrap();
    let (stop, target) = (CancellationToken::new(), target.clone());
    let attacking = stop.clone();
    let attacker = attack.map(|it| in_thread(move || attacking.run_until_cancelled_owned(it.run(target))));
    std::thread::sleep(Duration::from_millis(500));
    go.send(()).unwrap();
    std::thread::sleep(at_most / 2);
    let probed = probe();
    let seen = observer.join().unwrap();
    stop.cancel();
    let _ = attacker.map(std::thread::JoinHandle::join);
    (seen, probed)
}

async fn watch(target: &Target, stream: std::io::Result<TlsStream<TcpStream>>, at_most: Duration) -> Seen {
    let begin = Instant::now();
    let fresh = async {
        let (mut answers, mut lost) = (Vec::new(), 0);
        while begin.elapsed() < at_most || (answers.is_empty() && begin.elapsed() < PATIENCE) {
            let start = Instant::now();
            let asking = async { request(&mut target.tls().await?).await };
            match timeout(Duration::from_secs(5), asking).await {
                Ok(Ok(())) => answers.push(start.elapsed()),
                _ => lost += 1,
            }
            sleep(Duration::from_millis(250)).await;
        }
        (answers, lost)
    };
    let steady = async {
        let (mut stream, mut answers, mut lost) = (stream, Vec::new(), 0);
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / RATE);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
        while begin.elapsed() < at_most {
            ticks.tick().await;
            let start = Instant::now();
            let answered = match &mut stream {
                Ok(stream) => request(stream).await.is_ok(),
                Err(_) => false,
            };
            if answered {
                answers.push(start.elapsed());
            } else {
                lost += 1;
                stream = target.tls().await;
            }
        }
        (answers, lost)
    };
    let ((mut answers, lost), (mut new_answers, new_lost)) = tokio::join!(steady, fresh);
    answers.sort_unstable();
    new_answers.sort_unstable();
    Seen { answers, lost, new_answers, new_lost }
}

/// On a thread and a runtime of its own: what does not share them does not wait for others' work.
fn in_thread<T, F>(work: impl FnOnce() -> F + Send + 'static) -> std::thread::JoinHandle<T>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(work())
    })
}
