//! Reviews as the API server posts them: over TLS connections that are kept alive, at a steady rate, each answer checked.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;
use std::{fmt, io};

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncRead as _, AsyncReadExt as _, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, MissedTickBehavior};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::background::runtime;

/// `timeoutSeconds` of kimup's webhook configuration.
const DEADLINE: Duration = Duration::from_secs(10);
/// Idle connections that the API server keeps, and for how long.
const MAX_IDLE: usize = 25;
const IDLE_TIMEOUT: Duration = Duration::from_secs(90);
/// Largest answer.
const MAX_ANSWER: usize = 1 << 20;
/// Requests at once; the rate falls when an answer takes longer.
const MAX_OPEN: usize = 400;

/// A client of one webhook that treats its connections as Go's `http.Transport` does: the one used last is used next; one
/// that the server closed while it was idle is dropped; nothing is sent twice but a request of which no byte was written
/// to a connection used before.
pub struct WebhookClient {
    address: SocketAddr,
    name: ServerName<'static>,
    tls: TlsConnector,
    idle: Mutex<Vec<Connection>>,
    connections: AtomicU64,
    resent: AtomicU64,
}

struct Connection {
    stream: TlsStream<TcpStream>,
    from: SocketAddr,
    since: Instant,
}

/// What becomes of a request whose connection breaks, as part of the error.
#[derive(Debug)]
struct OnConnection {
    /// The client's address.
    from: SocketAddr,
    used: bool,
}

impl fmt::Display for OnConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.used { "on a connection used before" } else { "on a new connection" })
    }
}

/// Why a request has no answer.
enum Broken {
    /// On a connection that had been used before, and before a byte of this request was written.
    Unsent,
    Failed(anyhow::Error),
}

impl WebhookClient {
    /// `ca_pem` signs the server's certificate, which must be for `name` (a DNS name or an IP address).
    pub fn new(address: SocketAddr, name: &str, ca_pem: &str) -> Result<Self> {
        crate::install_crypto_provider();
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
            roots.add(certificate.map_err(|error| anyhow!("the CA is no PEM: {error:?}"))?)?;
        }
        let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Self {
            address,
            name: ServerName::try_from(name.to_owned())?,
            tls: TlsConnector::from(Arc::new(config)),
            idle: Mutex::default(),
            connections: AtomicU64::new(0),
            resent: AtomicU64::new(0),
        })
    }

    /// Posts a review to `/mutate`; status and body of the answer, within 10 seconds.
    pub async fn post(&self, body: &[u8]) -> Result<(u16, Vec<u8>)> {
        let head = format!(
            "POST /mutate?timeout=10s HTTP/1.1\r\nHost: webhook\r\nContent-Type: application/json\r\n\
             Accept: application/json, */*\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        let request = [head.as_bytes(), body].concat();
        let answer = tokio::time::timeout(DEADLINE, self.exchange(&request)).await;
        answer.map_err(|_| anyhow!("no answer within {DEADLINE:?}"))?
    }

    /// How many connections were made so far.
    pub fn connections(&self) -> u64 {
        self.connections.load(Ordering::Relaxed)
    }

    /// How many requests went to a second connection because nothing could be written to the first.
    pub fn resent(&self) -> u64 {
        self.resent.load(Ordering::Relaxed)
    }

    async fn exchange(&self, request: &[u8]) -> Result<(u16, Vec<u8>)> {
        loop {
            let (mut connection, used) = match self.take().await {
                Some(connection) => (connection, true),
                None => (self.connect().await?, false),
            };
            match connection.exchange(request, used).await {
                Ok(answer) => {
                    if answer.keep {
                        self.put(connection);
                    }
                    return Ok((answer.status, answer.body));
                }
                Err(Broken::Unsent) => self.resent.fetch_add(1, Ordering::Relaxed),
                Err(Broken::Failed(error)) => {
                    return Err(error.context(OnConnection { from: connection.from, used }));
                }
            };
        }
    }

    async fn take(&self) -> Option<Connection> {
        loop {
            let mut connection = self.idle().pop()?;
            if connection.since.elapsed() < IDLE_TIMEOUT && connection.is_quiet().await {
                return Some(connection);
            }
        }
    }

    fn put(&self, mut connection: Connection) {
        connection.since = Instant::now();
        let mut idle = self.idle();
        if idle.len() == MAX_IDLE {
            idle.remove(0);
        }
        idle.push(connection);
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connect(&self) -> Result<Connection> {
        let stream = TcpStream::connect(self.address).await.context("connecting")?;
        stream.set_nodelay(true)?;
        let from = stream.local_addr()?;
        let stream = self.tls.connect(self.name.clone(), stream).await.context("the TLS handshake");
        let stream = stream.map_err(|error| error.context(OnConnection { from, used: false }))?;
        self.connections.fetch_add(1, Ordering::Relaxed);
        Ok(Connection { stream, from, since: Instant::now() })
    }
}

struct Answer {
    status: u16,
    body: Vec<u8>,
    keep: bool,
}

impl Connection {
    /// Whether the server has neither closed it nor said anything.
    async fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut byte = ReadBuf::new(&mut byte);
        poll_fn(|context| Poll::Ready(Pin::new(&mut self.stream).poll_read(context, &mut byte).is_pending())).await
    }

    async fn exchange(&mut self, request: &[u8], used: bool) -> Result<Answer, Broken> {
        let mut written = 0;
        while written < request.len() {
            match self.stream.write(&request[written..]).await {
                Ok(count @ 1..) => written += count,
                _ if used && written == 0 => return Err(Broken::Unsent),
                Ok(_) => return Err(Broken::Failed(anyhow!("the connection takes no more bytes"))),
                Err(error) => return Err(failed(error, "writing the request")),
            }
        }
        self.stream.flush().await.map_err(|error| failed(error, "writing the request"))?;
        self.answer().await.map_err(Broken::Failed)
    }

    async fn answer(&mut self) -> Result<Answer> {
        let mut buffer = Vec::new();
        loop {
            if let Some(answer) = parse(&buffer)? {
                return Ok(answer);
            }
            ensure!(buffer.len() < MAX_ANSWER, "the answer does not end");
            let read = self.stream.read_buf(&mut buffer).await;
            let read = read.with_context(|| format!("after {} bytes of the answer", buffer.len()))?;
            ensure!(read > 0, "the connection ended after {} bytes of the answer", buffer.len());
        }
    }
}

fn failed(error: io::Error, what: &'static str) -> Broken {
    Broken::Failed(anyhow::Error::from(error).context(what))
}

/// An answer, once it is complete. One without a length is an error: kimup announces it.
fn parse(bytes: &[u8]) -> Result<Option<Answer>> {
    let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&bytes[..end])?.to_ascii_lowercase();
    let header = |name: &str| {
        let mut headers = head.lines().skip(1).filter_map(|line| line.split_once(':'));
        headers.find(|(found, _)| *found == name).map(|(_, value)| value.trim())
    };
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status in the answer")?;
    let length: usize = header("content-length").context("no length in the answer")?.parse()?;
    let body = &bytes[end + 4..];
    ensure!(body.len() <= length, "more bytes than the answer announced");
    let keep = header("connection") != Some("close");
    Ok((body.len() == length).then(|| Answer { status, body: body.to_vec(), keep }))
}

/// Reviews of Pods that must all come back with the same image.
#[derive(Clone, Debug)]
pub struct Reviews {
    pub namespace: String,
    /// The image in the Pod's manifest.
    pub text: String,
    /// The image that the patch must set.
    pub wanted: String,
}

impl Reviews {
    /// The review with this number: of an opted-in Pod with one container `app`.
    pub fn body(&self, number: u64) -> Vec<u8> {
        let name = format!("load-{number}");
        let env: Vec<Value> =
            (0..20).map(|n| json!({"name": format!("SETTING_{n}"), "value": "x".repeat(40)})).collect();
        let container = json!({"name": "app", "image": self.text, "env": env, "imagePullPolicy": "IfNotPresent"});
        let review = json!({
            "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview",
            "request": {
                "uid": uid(number), "operation": "CREATE", "namespace": self.namespace, "name": name,
                "kind": {"group": "", "version": "v1", "kind": "Pod"},
                "resource": {"group": "", "version": "v1", "resource": "pods"},
                "object": {
                    "apiVersion": "v1", "kind": "Pod",
                    "metadata": {"name": name, "namespace": self.namespace,
                        "annotations": {"kimup.cloudavenue.io/enabled": "true"}},
                    "spec": {"containers": [container], "serviceAccountName": "default"},
                },
            },
        });
        review.to_string().into_bytes()
    }

    /// Whether an answer is to this review, admits the Pod and sets the image.
    pub fn check(&self, number: u64, (status, body): &(u16, Vec<u8>)) -> Result<()> {
        ensure!(*status == 200, "status {status}: {}", String::from_utf8_lossy(body).trim());
        let review: Value = serde_json::from_slice(body)?;
        let response = &review["response"];
        ensure!(response["uid"] == uid(number), "the answer to another review: {review}");
        ensure!(response["allowed"] == true, "denied: {}", response["status"]["message"]);
        let patch = response["patch"].as_str().context("unmutated: no patch")?;
        let patch: Vec<Value> = serde_json::from_slice(&STANDARD.decode(patch)?)?;
        let image = patch.iter().find(|step| step["path"] == "/spec/containers/0/image");
        match image.map(|step| &step["value"]) {
            Some(image) if *image == self.wanted => Ok(()),
            other => bail!("unmutated: {other:?} instead of {}", self.wanted),
        }
    }
}

fn uid(number: u64) -> String {
    format!("00000000-0000-4000-8000-{number:012}")
}

/// A review that failed, or was answered wrongly.
#[derive(Clone, Debug)]
pub struct LoadFailure {
    /// When it was sent.
    pub sent: Instant,
    /// The client's address of the connection that broke; none if the answer is wrong, or no connection was made.
    pub connection: Option<SocketAddr>,
    pub cause: String,
}

/// What a load has done so far.
#[derive(Clone, Debug, Default)]
pub struct LoadReport {
    /// Answered, and rightly.
    pub answered: u64,
    pub failures: Vec<LoadFailure>,
    /// [`WebhookClient::connections`].
    pub connections: u64,
    /// [`WebhookClient::resent`].
    pub resent: u64,
    /// Reviews that were not sent at their time because 400 were open.
    pub skipped: u64,
    /// Of the right answers, sorted.
    pub times: Vec<Duration>,
}

impl LoadReport {
    /// The time that a share of the answers (0 to 1) took at most.
    pub fn quantile(&self, share: f64) -> Duration {
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let index = ((self.times.len() as f64) * share) as usize;
        self.times.get(index.min(self.times.len().saturating_sub(1))).copied().unwrap_or_default()
    }
}

/// Posts reviews at a steady rate, whatever becomes of those before, on threads of its own.
pub struct AdmissionLoad {
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

struct Shared {
    client: WebhookClient,
    reviews: Reviews,
    open: AtomicUsize,
    skipped: AtomicU64,
    done: Mutex<Done>,
}

#[derive(Default)]
struct Done {
    times: Vec<Duration>,
    failures: Vec<LoadFailure>,
}

impl AdmissionLoad {
    /// `rate` reviews a second.
    pub fn start(client: WebhookClient, reviews: Reviews, rate: u32) -> Result<Self> {
        let shared =
            Shared { client, reviews, open: AtomicUsize::new(0), skipped: AtomicU64::new(0), done: Mutex::default() };
        let shared = Arc::new(shared);
        let (stop, stopped) = watch::channel(false);
        let task = runtime()?.spawn(run(Arc::clone(&shared), Duration::from_secs(1) / rate.max(1), stopped));
        Ok(Self { shared, stop, task })
    }

    /// How many are open now.
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::SeqCst)
    }

    /// What was done so far.
    pub fn so_far(&self) -> LoadReport {
        self.shared.report()
    }

    /// Ends it, once the open ones are answered.
    pub async fn stop(self) -> Result<LoadReport> {
        self.stop.send_replace(true);
        self.task.await?;
        Ok(self.shared.report())
    }
}

impl Shared {
    fn done(&self) -> MutexGuard<'_, Done> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> LoadReport {
        let (mut times, failures) = {
            let done = self.done();
            (done.times.clone(), done.failures.clone())
        };
        times.sort_unstable();
        LoadReport {
            answered: times.len() as u64,
            failures,
            connections: self.client.connections(),
            resent: self.client.resent(),
            skipped: self.skipped.load(Ordering::Relaxed),
            times,
        }
    }

    async fn review(&self, number: u64) {
        let sent = Instant::now();
        let answer = self.client.post(&self.reviews.body(number)).await;
        let took = sent.elapsed();
        let checked = answer.and_then(|answer| self.reviews.check(number, &answer));
        let mut done = self.done();
        match checked {
            Ok(()) => done.times.push(took),
            Err(error) => {
                let connection = error.downcast_ref::<OnConnection>().map(|connection| connection.from);
                let cause = format!("after {took:?}: {error:#}");
                done.failures.push(LoadFailure { sent, connection, cause });
            }
        }
        drop(done);
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
}

async fn run(shared: Arc<Shared>, period: Duration, mut stopped: watch::Receiver<bool>) {
    let mut ticks = tokio::time::interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    let mut open = JoinSet::new();
    for number in 0.. {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
        while open.try_join_next().is_some() {}
        if open.len() >= MAX_OPEN {
            shared.skipped.fetch_add(1, Ordering::Relaxed);
            continue;
        }
        shared.open.fetch_add(1, Ordering::SeqCst);
        let shared = Arc::clone(&shared);
        open.spawn(async move { shared.review(number).await });
    }
    while open.join_next().await.is_some() {}
}

#[cfg(test)]
mod tests;
