//! A server that misbehaves on purpose: an HTTP or HTTPS host on 127.0.0.1 that answers as a script says, down to the
//! bytes on the wire, and remembers every byte that it received.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::background::{Task, runtime};
use crate::pki::{ServerCertificate, TestCa};

/// Bytes of one request that are read before the connection is dropped.
const MAX_REQUEST: usize = 8 << 20;

/// A request as it came.
#[derive(Clone, Debug)]
pub struct FaultRequest {
    pub method: String,
    /// As in the request line: path and query, `host:port` of a `CONNECT`, a whole address at a proxy.
    pub target: String,
    /// Names in lower case, in their order.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// How many requests this host had before.
    pub nth: usize,
    /// This host's own address.
    pub address: SocketAddr,
}

impl FaultRequest {
    /// The first header of this name, in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }

    /// The `Authorization` header, or `""`.
    pub fn authorization(&self) -> &str {
        self.header("authorization").unwrap_or_default()
    }

    /// The target without its query.
    pub fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }

    /// A parameter of the query, decoded; `""` without.
    pub fn query(&self, name: &str) -> String {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        let mut pairs = url::form_urlencoded::parse(query.as_bytes());
        pairs.find(|(found, _)| found == name).map_or_else(String::new, |(_, value)| value.into_owned())
    }
}

/// What a script answers.
#[derive(Clone, Debug)]
pub struct FaultReply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Body,
    delay: Duration,
}

#[derive(Clone, Debug)]
enum Body {
    /// With its length announced.
    Whole(Vec<u8>),
    /// Chunks: each of the parts as often as it says, `pause` after each chunk; the last part may be endless.
    Chunks { parts: Vec<(Vec<u8>, usize)>, pause: Duration },
    /// A length that is never reached: the connection ends after these bytes.
    Cut(Vec<u8>),
    /// Instead of an answer: these bytes, then the end of the connection.
    Raw(Vec<u8>),
    /// No answer, and the connection stays.
    Silence,
    /// The rest of the connection goes to this address, as a proxy does after `CONNECT`.
    Tunnel(SocketAddr),
}

impl FaultReply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self { status, headers: Vec::new(), body: Body::Whole(body.into()), delay: Duration::ZERO }
    }

    fn with(status: u16, body: Body) -> Self {
        Self { body, ..Self::new(status, "") }
    }

    /// 200 with these parts in chunks, each as often as it says (`usize::MAX`: for ever), with a pause after each chunk.
    pub fn chunks(parts: impl IntoIterator<Item = (Vec<u8>, usize)>, pause: Duration) -> Self {
        Self::with(200, Body::Chunks { parts: parts.into_iter().collect(), pause })
    }

    /// 200 with one byte at a time.
    pub fn drip(body: &[u8], pause: Duration) -> Self {
        Self::chunks(body.iter().map(|byte| (vec![*byte], 1)), pause)
    }

    /// 200 whose body breaks off after these bytes.
    pub fn cut(body: impl Into<Vec<u8>>) -> Self {
        Self::with(200, Body::Cut(body.into()))
    }

    /// These bytes instead of an answer; none: the connection just ends.
    pub fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        Self::with(200, Body::Raw(bytes.into()))
    }

    /// The request is never answered.
    pub fn silence() -> Self {
        Self::with(200, Body::Silence)
    }

    /// What a proxy answers to `CONNECT`: from now on the connection is one with `to`.
    pub fn tunnel(to: SocketAddr) -> Self {
        Self::with(200, Body::Tunnel(to))
    }

    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Waits before it answers.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }

    fn head(&self) -> String {
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        let mut line = |name: &str, value: &str| head.extend([name, ": ", value, "\r\n"]);
        for (name, value) in &self.headers {
            line(name, value);
        }
        match &self.body {
            Body::Whole(body) => line("content-length", &body.len().to_string()),
            Body::Cut(body) => line("content-length", &(body.len() + 1000).to_string()),
            Body::Chunks { .. } => line("transfer-encoding", "chunked"),
            Body::Raw(_) | Body::Silence | Body::Tunnel(_) => {}
        }
        head.push_str("\r\n");
        head
    }
}

/// Whether a TLS host wants its clients to show a certificate.
#[derive(Clone, Copy)]
pub enum ClientCertificates<'a> {
    /// They are not asked.
    Unasked,
    /// Asked for one of this authority; none is fine.
    Optional(&'a TestCa),
    /// Nobody is let in without one of this authority.
    Required(&'a TestCa),
}

fn acceptor(certificate: &ServerCertificate, clients: ClientCertificates<'_>) -> Result<TlsAcceptor> {
    crate::install_crypto_provider();
    let verifier = |ca: &TestCa| -> Result<_> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes())?)?;
        Ok(WebPkiClientVerifier::builder(Arc::new(roots)))
    };
    let verifier = match clients {
        ClientCertificates::Unasked => WebPkiClientVerifier::no_client_auth(),
        ClientCertificates::Optional(ca) => verifier(ca)?.allow_unauthenticated().build()?,
        ClientCertificates::Required(ca) => verifier(ca)?.build()?,
    };
    let chain = certificate.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let key = PrivatePkcs8KeyDer::from(certificate.key.clone()).into();
    let config = rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_single_cert(chain, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

type Script = dyn Fn(&FaultRequest) -> FaultReply + Send + Sync;

/// One host of a test. It runs on threads of its own until it is dropped.
pub struct FaultServer {
    address: SocketAddr,
    log: Arc<Log>,
    _server: Task,
}

#[derive(Default)]
struct Log {
    bytes: Mutex<Vec<u8>>,
    requests: Mutex<Vec<FaultRequest>>,
    connections: AtomicUsize,
    clients: Mutex<Vec<Option<Vec<u8>>>>,
}

impl FaultServer {
    /// A host that speaks plain HTTP/1.1.
    pub async fn http(script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static) -> Result<Self> {
        Self::start("127.0.0.1:0", None, Arc::new(script)).await
    }

    /// A host that speaks HTTP/1.1 over TLS with this certificate.
    pub async fn https(
        certificate: &ServerCertificate,
        script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::https_on("127.0.0.1:0", certificate, script).await
    }

    /// The same at another address of this machine, `IP:PORT`.
    pub async fn https_on(
        listen: &'static str,
        certificate: &ServerCertificate,
        script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::start(listen, Some(acceptor(certificate, ClientCertificates::Unasked)?), Arc::new(script)).await
    }

    /// [`FaultServer::https`] that asks who the client is; what it shows is in [`FaultServer::client_certificates`].
    pub async fn https_asking(
        certificate: &ServerCertificate,
        clients: ClientCertificates<'_>,
        script: impl Fn(&FaultRequest) -> FaultReply + Send + Sync + 'static,
    ) -> Result<Self> {
        Self::start("127.0.0.1:0", Some(acceptor(certificate, clients)?), Arc::new(script)).await
    }

    async fn start(listen: &'static str, tls: Option<TlsAcceptor>, script: Arc<Script>) -> Result<Self> {
        // Bound on the runtime that serves it.
        let listener = runtime()?.spawn(TcpListener::bind(listen)).await?.context("binding a scripted host")?;
        let address = listener.local_addr()?;
        let log = Arc::new(Log::default());
        let host = Host { address, log: Arc::clone(&log), script };
        let server = Task::spawn(accept(listener, tls, host))?;
        Ok(Self { address, log, _server: server })
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Host and port, as in an image reference.
    pub fn host(&self) -> String {
        self.address.to_string()
    }

    /// All requests so far, complete ones only.
    pub fn requests(&self) -> Vec<FaultRequest> {
        lock(&self.log.requests).clone()
    }

    /// The `Authorization` headers in their order, `""` for none.
    pub fn authorizations(&self) -> Vec<String> {
        self.requests().iter().map(|request| request.authorization().to_owned()).collect()
    }

    /// Every byte that was received, decrypted, of incomplete requests too.
    pub fn received(&self) -> Vec<u8> {
        lock(&self.log.bytes).clone()
    }

    /// What each client of a complete TLS handshake showed, in DER, in their order.
    pub fn client_certificates(&self) -> Vec<Option<Vec<u8>>> {
        lock(&self.log.clients).clone()
    }

    /// Connections that were accepted, those included whose handshake failed.
    pub fn connections(&self) -> usize {
        self.log.connections.load(Ordering::SeqCst)
    }
}

fn lock<T>(value: &Mutex<T>) -> MutexGuard<'_, T> {
    value.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Clone)]
struct Host {
    address: SocketAddr,
    log: Arc<Log>,
    script: Arc<Script>,
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, host: Host) {
    // Dropped with this task: no connection outlives the server.
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        while connections.try_join_next().is_some() {}
        let _ = stream.set_nodelay(true); // else each answer waits for an acknowledgement in its middle
        host.log.connections.fetch_add(1, Ordering::SeqCst);
        let (tls, host) = (tls.clone(), host.clone());
        connections.spawn(async move {
            // A client that goes away in the middle is what these tests are about.
            let _: std::io::Result<()> = match tls {
                None => host.serve(stream).await,
                Some(tls) => match tls.accept(stream).await {
                    Ok(stream) => {
                        let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
                        lock(&host.log.clients).push(shown.map(|certificate| certificate.to_vec()));
                        host.serve(stream).await
                    }
                    Err(error) => Err(error),
                },
            };
        });
    }
}

impl Host {
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> std::io::Result<()> {
        let mut buffer = Vec::new();
        loop {
            let request = match self.read(&mut stream, &mut buffer).await {
                Ok(Some(request)) => request,
                Ok(None) => break,
                Err(_) => {
                    stream.write_all(b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await?;
                    break;
                }
            };
            let reply = (self.script)(&request);
            tokio::time::sleep(reply.delay).await;
            if !write(&mut stream, &reply).await? {
                break;
            }
        }
        stream.shutdown().await
    }

    /// The next request, or `None` at the end of the connection.
    async fn read(
        &self,
        stream: &mut (impl AsyncRead + Unpin),
        buffer: &mut Vec<u8>,
    ) -> std::io::Result<Option<FaultRequest>> {
        let mut chunk = vec![0; 16 * 1024];
        loop {
            if let Some((request, length)) = parse(buffer) {
                buffer.drain(..length);
                let mut requests = lock(&self.log.requests);
                let request = FaultRequest { nth: requests.len(), address: self.address, ..request };
                requests.push(request.clone());
                return Ok(Some(request));
            }
            if buffer.first().is_some_and(|first| !first.is_ascii_uppercase()) {
                return Err(std::io::ErrorKind::InvalidData.into()); // TLS, for example
            }
            let read = stream.read(&mut chunk).await?;
            if read == 0 || buffer.len() > MAX_REQUEST {
                return Ok(None);
            }
            lock(&self.log.bytes).extend_from_slice(&chunk[..read]);
            buffer.extend_from_slice(&chunk[..read]);
        }
    }
}

/// A whole request at the beginning of `buffer` and its length.
fn parse(buffer: &[u8]) -> Option<(FaultRequest, usize)> {
    let head = buffer.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let text = String::from_utf8_lossy(&buffer[..head]);
    let mut lines = text.lines();
    let mut first = lines.next()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length").map_or(Ok(0), |(_, value)| value.parse());
    let end = head.checked_add(length.ok()?)?;
    let body = buffer.get(head..end)?.to_vec();
    let address = SocketAddr::from(([0, 0, 0, 0], 0)); // filled in by the host
    Some((FaultRequest { method, target, headers, body, nth: 0, address }, end))
}

/// Whether the connection goes on.
async fn write(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), reply: &FaultReply) -> std::io::Result<bool> {
    if let Body::Raw(bytes) = &reply.body {
        stream.write_all(bytes).await?;
        return Ok(false);
    }
    if matches!(reply.body, Body::Silence) {
        return std::future::pending().await;
    }
    stream.write_all(reply.head().as_bytes()).await?;
    stream.flush().await?;
    match &reply.body {
        Body::Whole(body) | Body::Cut(body) => stream.write_all(body).await?,
        Body::Chunks { parts, pause } => write_chunks(stream, parts, *pause).await?,
        Body::Tunnel(to) => {
            let mut other = TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(stream, &mut other).await?;
        }
        Body::Raw(_) | Body::Silence => {}
    }
    stream.flush().await?;
    Ok(matches!(reply.body, Body::Whole(_) | Body::Chunks { .. }))
}

async fn write_chunks(
    stream: &mut (impl AsyncWrite + Unpin),
    parts: &[(Vec<u8>, usize)],
    pause: Duration,
) -> std::io::Result<()> {
    for (part, times) in parts {
        let mut chunk = format!("{:x}\r\n", part.len()).into_bytes();
        chunk.extend_from_slice(part);
        chunk.extend_from_slice(b"\r\n");
        for _ in 0..*times {
            stream.write_all(&chunk).await?;
            if !pause.is_zero() {
                stream.flush().await?;
                tokio::time::sleep(pause).await;
            }
        }
    }
    stream.write_all(b"0\r\n\r\n").await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TestCa;

    fn client(ca: &TestCa) -> reqwest::Client {
        crate::install_crypto_provider();
        let root = reqwest::Certificate::from_pem(ca.pem().as_bytes()).unwrap();
        reqwest::Client::builder().tls_certs_only([root]).no_proxy().build().unwrap()
    }

    #[tokio::test]
    async fn it_answers_as_told_and_remembers_every_byte() {
        let ca = TestCa::new().unwrap();
        let script = |request: &FaultRequest| match (request.path(), request.query("q").as_str()) {
            ("/whole", "a b") => FaultReply::new(201, "hello").header("x-y", "z"),
            ("/chunks", _) => FaultReply::chunks([(b"ab".to_vec(), 3)], Duration::ZERO),
            ("/drip", _) => FaultReply::drip(b"xyz", Duration::from_millis(1)),
            ("/cut", _) => FaultReply::cut("part"),
            ("/raw", _) => FaultReply::raw(""),
            _ => FaultReply::new(404, format!("{}", request.nth)),
        };
        let plain = FaultServer::http(script).await.unwrap();
        let tls = FaultServer::https(&ca.server(&["127.0.0.1"]).unwrap(), script).await.unwrap();
        let client = client(&ca);
        for (server, base) in [(&plain, format!("http://{}", plain.host())), (&tls, format!("https://{}", tls.host()))]
        {
            let check = async |path: &str, expected: Option<(u16, &str)>| {
                let sent = client.post(format!("{base}{path}")).bearer_auth("canary").body("payload").send().await;
                let found = match sent {
                    Err(_) => None,
                    Ok(response) => {
                        let status = response.status().as_u16();
                        response.text().await.ok().map(|text| (status, text))
                    }
                };
                assert_eq!(found.as_ref().map(|(status, text)| (*status, text.as_str())), expected, "{base}{path}");
            };
            check("/whole?q=a%20b", Some((201, "hello"))).await;
            check("/chunks", Some((200, "ababab"))).await;
            check("/drip", Some((200, "xyz"))).await;
            check("/cut", None).await;
            check("/raw", None).await;
            check("/other", Some((404, "5"))).await;
            assert_eq!(server.requests().len(), 6);
            assert_eq!(server.authorizations(), ["Bearer canary"; 6]);
            assert_eq!(server.requests()[0].body, b"payload");
            let received = String::from_utf8(server.received()).unwrap();
            assert_eq!(received.matches("Bearer canary").count(), 6, "{received}");
            assert!(server.connections() >= 1);
        }
    }

    #[tokio::test]
    async fn a_connection_that_fails_is_counted() {
        let (ours, other) = (TestCa::new().unwrap(), TestCa::new().unwrap());
        let tls =
            FaultServer::https(&other.server(&["127.0.0.1"]).unwrap(), |_| FaultReply::new(200, "")).await.unwrap();
        assert!(client(&ours).get(format!("https://{}/", tls.host())).send().await.is_err());
        assert_eq!((tls.connections(), tls.requests().len()), (1, 0));
    }
}
