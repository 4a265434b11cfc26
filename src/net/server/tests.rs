use std::sync::Arc;

use axum::Router;
use axum::body::Bytes;
use axum::routing::{get, post};
use jiff::Timestamp;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use super::*;
use crate::net::ca::CertificateAuthority;
use crate::net::probes::Readiness;
use crate::net::tls::{self, CertSource};
use crate::telemetry::Metrics;

/// A server on a port of the kernel's choice, and a client that trusts its CA and nothing else.
struct Served {
    address: std::net::SocketAddr,
    client: reqwest::Client,
    shutdown: CancellationToken,
    task: JoinHandle<Drained>,
    /// A request to `/wait` is being handled.
    entered: Arc<Notify>,
    /// Lets it answer.
    leave: Arc<Notify>,
}

impl Served {
    async fn start(options: ServerOptions) -> Self {
        Self::start_with(options, |builder| builder).await
    }

    async fn start_with(
        options: ServerOptions,
        configure: impl FnOnce(reqwest::ClientBuilder) -> reqwest::ClientBuilder,
    ) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ca = Arc::new(CertificateAuthority::generate("test", Timestamp::now()).unwrap());
        let root = reqwest::Certificate::from_pem(ca.certificate_pem().as_bytes()).unwrap();
        let client = configure(reqwest::Client::builder().tls_certs_only([root])).build().unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let source = CertSource::SelfManaged {
            ca: tokio::sync::watch::channel(ca).1,
            dns: vec![],
            ips: vec!["127.0.0.1".parse().unwrap()],
        };
        let shutdown = CancellationToken::new();
        let served = Readiness::default().register("certificate");
        let clock = tls::system_clock();
        let (tls, _) = tls::start(source, None, clock, served, Metrics::new(), shutdown.clone()).await.unwrap();
        let (entered, leave) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let router = router(Arc::clone(&entered), Arc::clone(&leave));
        let task = tokio::spawn(serve_https(listener, tls, router, options, shutdown.clone()));
        Self { address, client, shutdown, task, entered, leave }
    }

    fn url(&self, path: &str) -> String {
        format!("https://{}{path}", self.address)
    }

    async fn get(&self, path: &str) -> reqwest::Result<reqwest::Response> {
        self.client.get(self.url(path)).send().await
    }

    async fn post(&self, size: usize) -> u16 {
        let sent = self.client.post(self.url("/size")).body(vec![b'x'; size]).send().await;
        sent.unwrap().status().as_u16()
    }

    async fn stop(self) -> Drained {
        self.shutdown.cancel();
        self.task.await.unwrap()
    }
}

fn router(entered: Arc<Notify>, leave: Arc<Notify>) -> Router {
    let hold = {
        let (entered, leave) = (Arc::clone(&entered), Arc::clone(&leave));
        async move |body: Bytes| {
            entered.notify_one();
            leave.notified().await;
            body.len().to_string()
        }
    };
    let wait = async move || {
        entered.notify_one();
        leave.notified().await;
        "done"
    };
    Router::new()
        .route("/", get(|| async { "hello" }))
        .route("/hold", post(hold))
        .route("/size", post(|body: Bytes| async move { body.len().to_string() }))
        .route("/panic", get(|| async { panic!("a secret") as &'static str }))
        .route("/wait", get(wait))
}

/// Reads to the end; that the server ends it is the point.
async fn ends(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A reset instead of an orderly end is as good.
    let _ = stream.read_to_end(&mut bytes).await;
    String::from_utf8_lossy(&bytes).into_owned()
}

fn short() -> Duration {
    Duration::from_millis(100)
}

#[tokio::test]
async fn both_versions_of_tls_over_http_1() {
    use reqwest::tls::Version;
    for version in [Version::TLS_1_2, Version::TLS_1_3] {
        let served = Served::start_with(ServerOptions::default(), |builder| {
            builder.min_tls_version(version).max_tls_version(version)
        })
        .await;
        let response = served.get("/").await.unwrap();
        assert_eq!(response.version(), reqwest::Version::HTTP_11);
        assert_eq!(response.text().await.unwrap(), "hello");
        assert_eq!(served.stop().await, Drained { cut: 0 });
    }
}

#[tokio::test]
async fn bodies_are_bounded() {
    // More than axum's own limit of 2 MB, which must not be the one that counts.
    let limit = 3 << 20;
    let served = Served::start(ServerOptions { body_limit: limit, ..ServerOptions::default() }).await;
    assert_eq!(served.post(0).await, 200);
    assert_eq!(served.post(limit).await, 200);
    assert_eq!(served.post(limit + 1).await, 413);
    // Without a Content-Length the limit shows only while reading.
    let chunks = futures::stream::iter((0..4).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 1 << 20])));
    let request = served.client.post(served.url("/size")).body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(request.send().await.unwrap().status().as_u16(), 413);
    assert_eq!(served.post(10).await, 200);
}

/// Sends this over plain HTTP and returns all that comes until the server closes.
async fn raw(options: ServerOptions, parts: &[&[u8]]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let router = router(Arc::default(), Arc::default());
    let server = tokio::spawn(serve_http(listener, router, options, CancellationToken::new()));
    for part in parts {
        stream.write_all(part).await.unwrap();
    }
    let answer = timeout(Duration::from_secs(5), ends(stream)).await.expect("the connection stays open");
    server.abort();
    answer
}

#[tokio::test]
async fn a_body_that_is_refused_is_not_read_on() {
    async fn check(head: &str, parts: &[&[u8]], status: &str) {
        let options = ServerOptions { body_limit: 100, body_timeout: short(), ..ServerOptions::default() };
        let head = format!("POST /size HTTP/1.1\r\nhost: x\r\n{head}\r\n\r\n");
        let parts: Vec<&[u8]> = [head.as_bytes()].into_iter().chain(parts.iter().copied()).collect();
        let answer = raw(options, &parts).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{head}: {answer}");
        assert!(answer.contains("connection: close\r\n"), "{answer}");
    }
    // Nothing of the body is sent, or not all of it: each is answered nevertheless.
    check("content-length: 101", &[], "413").await;
    check("content-length: 9223372036854775807", &[], "413").await;
    check("transfer-encoding: chunked", &[b"65\r\n", &[b'x'; 101]], "413").await;
    check("transfer-encoding: chunked", &[b"1\r\nx\r\n", b"64\r\n", &[b'x'; 100]], "413").await;
    check("transfer-encoding: chunked", &[b"64\r\n", &[b'x'; 99]], "408").await;
    check("content-length: 100", &[], "408").await;
    check("content-length: 100", &[&[b'x'; 99]], "408").await;
}

#[tokio::test]
async fn heads_are_bounded() {
    let line = format!("x-long: {}\r\n", "x".repeat(1000));
    let lines = line.repeat(1000);
    let answer = raw(ServerOptions::default(), &[b"GET / HTTP/1.1\r\n", &lines.as_bytes()[..2 * MAX_HEAD]]).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
}

#[tokio::test]
async fn the_bytes_of_all_bodies_are_bounded() {
    let size = 256 << 10;
    let served =
        Served::start(ServerOptions { body_limit: size, bodies_in_memory: size, ..ServerOptions::default() }).await;
    let post = |path: &str, size: usize| served.client.post(served.url(path)).body(vec![b'x'; size]).send();
    let held = tokio::spawn(post("/hold", size));
    served.entered.notified().await;
    let refused = post("/size", size).await.unwrap();
    assert_eq!((refused.status().as_u16(), refused.headers()["retry-after"].to_str().unwrap()), (503, "1"));
    assert_eq!(post("/size", 16 << 10).await.unwrap().status().as_u16(), 200, "small ones always fit");
    served.leave.notify_one();
    assert_eq!(held.await.unwrap().unwrap().text().await.unwrap(), size.to_string());
    assert_eq!(served.post(size).await, 200);
}

/// Posts to a server that has no room for more bodies, over plain HTTP; `send` sends the body.
async fn refused_for_others(send: impl AsyncFnOnce(&mut TcpStream, &[u8])) -> String {
    let size = 2 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let entered = Arc::new(Notify::new());
    let router = router(Arc::clone(&entered), Arc::default());
    let options = ServerOptions { body_limit: size, bodies_in_memory: size, ..ServerOptions::default() };
    let server = tokio::spawn(serve_http(listener, router, options, CancellationToken::new()));
    let body = vec![b'x'; size];
    let head = |path: &str| format!("POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {size}\r\n\r\n");
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(head("/hold").as_bytes()).await.unwrap();
    first.write_all(&body).await.unwrap();
    entered.notified().await;
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(head("/size").as_bytes()).await.unwrap();
    send(&mut second, &body).await;
    let answer = timeout(Duration::from_secs(8), ends(second)).await.expect("no answer before the body has a deadline");
    server.abort();
    answer
}

#[tokio::test]
async fn overload_is_told_before_the_body_has_come() {
    // All but the last byte, which never comes.
    let answer = refused_for_others(async |stream, body| stream.write_all(&body[1..]).await.unwrap()).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("connection: close\r\n"), "{answer}");
}

#[tokio::test]
async fn a_client_that_sends_on_gets_to_the_answer() {
    // The answer is there, and unread, while most of the body is still to come.
    let answer = refused_for_others(async |stream, body| {
        stream.write_all(&body[..100 << 10]).await.unwrap();
        stream.readable().await.unwrap();
        for piece in body[100 << 10..].chunks(1 << 10) {
            stream.write_all(piece).await.unwrap();
        }
    })
    .await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
}

#[tokio::test]
async fn who_waits_for_a_seat_when_the_server_stops_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let seats = Arc::new(Seats::new(1));
    let options = ServerOptions::default();
    let shared = Arc::new(Shared {
        transport: Transport::Plain,
        handler: router(Arc::default(), Arc::default()),
        bodies: Bodies::new(options.body_limit, options.bodies_in_memory),
        options,
        seats: Arc::clone(&seats),
        handshakes: Turns::new(1),
        lingering: Turns::new(1),
        stopping: AtomicBool::new(true),
    });
    let held = seats.take(IpAddr::from([10, 0, 0, 1])).unwrap();
    held.seat.enter(crate::net::seats::Phase::Busy);
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        clients.push(client);
    }
    // One is at the door, the other in the kernel's queue.
    let door = Door { waiting: Some(listener.accept().await.unwrap()), full_since: None };
    let connections = TaskTracker::new();
    let release = async {
        yield_now().await;
        drop(held);
    };
    tokio::join!(accept_waiting(&listener, door, &shared, &connections), release);
    drop(listener);
    for client in clients {
        let answer = ends(client).await;
        assert!(answer.ends_with("hello"), "{answer}");
    }
}

#[tokio::test]
async fn a_panic_is_an_answer() {
    let served = Served::start(ServerOptions::default()).await;
    let response = served.get("/panic").await.unwrap();
    assert_eq!(response.status().as_u16(), 500);
    assert!(!response.text().await.unwrap().contains("secret"));
    assert_eq!(served.get("/").await.unwrap().status().as_u16(), 200);
}

#[tokio::test]
async fn a_request_has_a_deadline() {
    let options = ServerOptions { request_timeout: short(), ..ServerOptions::default() };
    let served = Served::start(options).await;
    assert_eq!(served.get("/wait").await.unwrap().status().as_u16(), 504);
    assert_eq!(served.get("/").await.unwrap().status().as_u16(), 200);
}

#[tokio::test]
async fn silent_peers_are_closed_and_hold_up_nobody() {
    let options = ServerOptions { handshake_timeout: Duration::from_millis(500), ..ServerOptions::default() };
    let served = Served::start(options).await;
    let silent = TcpStream::connect(served.address).await.unwrap();
    let mut garbage = TcpStream::connect(served.address).await.unwrap();
    garbage.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert_eq!(served.get("/").await.unwrap().status().as_u16(), 200);
    ends(silent).await;
    ends(garbage).await;
}

#[tokio::test]
async fn a_head_has_a_deadline() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let options = ServerOptions { header_timeout: short(), ..ServerOptions::default() };
    let shutdown = CancellationToken::new();
    let router = router(Arc::default(), Arc::default());
    let server = tokio::spawn(serve_http(listener, router, options, shutdown.clone()));
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nx-slow: ").await.unwrap();
    assert!(!ends(slow).await.contains("hello"));
    // A whole head is answered, and the connection then may idle for longer than a head may take.
    let mut fine = TcpStream::connect(address).await.unwrap();
    for _ in 0..2 {
        fine.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            assert_ne!(fine.read_buf(&mut answer).await.unwrap(), 0, "closed");
        }
        let idle = timeout(short() * 3, fine.read_u8()).await;
        assert!(idle.is_err(), "an idle connection was closed: {idle:?}");
    }
    // The deadline holds for every head of a connection, not only for the first.
    let mut second = TcpStream::connect(address).await.unwrap();
    second.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"hello") {
        assert_ne!(second.read_buf(&mut answer).await.unwrap(), 0, "closed");
    }
    second.write_all(b"GET / HTTP/1.1\r\nx-slow: ").await.unwrap();
    timeout(Duration::from_secs(5), ends(second)).await.expect("a slow second head is waited for");
    // A drain does not wait for an idle connection.
    shutdown.cancel();
    assert_eq!(server.await.unwrap(), Drained { cut: 0 });
    ends(fine).await;
}

#[tokio::test]
async fn a_connection_that_asks_nothing_gives_way() {
    let served = Served::start(ServerOptions { max_connections: 2, ..ServerOptions::default() }).await;
    let silent = TcpStream::connect(served.address).await.unwrap();
    // An idle one that has had its answer comes after one that has asked nothing yet.
    assert_eq!(served.get("/").await.unwrap().status().as_u16(), 200);
    let other = TcpStream::connect(served.address).await.unwrap();
    timeout(Duration::from_secs(5), ends(silent)).await.expect("the longest silent one stays");
    assert_eq!(served.get("/").await.unwrap().status().as_u16(), 200);
    drop(other);
}

#[tokio::test]
async fn a_request_that_is_being_answered_never_gives_way() {
    let served = Served::start(ServerOptions { max_connections: 1, ..ServerOptions::default() }).await;
    let request = tokio::spawn(served.client.get(served.url("/wait")).send());
    served.entered.notified().await;
    for _ in 0..3 {
        let more = TcpStream::connect(served.address).await.unwrap();
        timeout(Duration::from_secs(5), ends(more)).await.expect("a connection too many is kept waiting");
    }
    served.leave.notify_one();
    assert_eq!(request.await.unwrap().unwrap().text().await.unwrap(), "done");
}

#[tokio::test]
async fn a_drain_ends_what_has_started_and_takes_nothing_new() {
    let served = Served::start(ServerOptions::default()).await;
    let request = tokio::spawn(served.client.get(served.url("/wait")).send());
    served.entered.notified().await;
    served.shutdown.cancel();
    while TcpStream::connect(served.address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    served.leave.notify_one();
    let response = request.await.unwrap().unwrap();
    assert_eq!(response.headers()["connection"], "close");
    assert_eq!(response.text().await.unwrap(), "done");
    assert_eq!(served.task.await.unwrap(), Drained { cut: 0 });
}

#[tokio::test]
async fn a_drain_has_a_deadline() {
    let served = Served::start(ServerOptions { drain: short(), ..ServerOptions::default() }).await;
    let request = tokio::spawn(served.client.get(served.url("/wait")).send());
    served.entered.notified().await;
    assert_eq!(served.stop().await, Drained { cut: 1 });
    assert!(request.await.unwrap().is_err());
}

#[tokio::test]
async fn while_stopping_every_answer_says_close() {
    let options = ServerOptions { shutdown_delay: Duration::from_secs(60), ..ServerOptions::default() };
    let served = Served::start(options).await;
    let before = served.get("/").await.unwrap();
    assert!(before.headers().get("connection").is_none());
    before.bytes().await.unwrap();
    served.shutdown.cancel();
    // The connection from before, and each later one is a new one.
    for _ in 0..3 {
        let after = served.get("/").await.unwrap();
        assert_eq!(after.headers()["connection"], "close");
        assert_eq!(after.text().await.unwrap(), "hello");
    }
    served.task.abort();
}

#[tokio::test]
async fn a_first_request_that_comes_late_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let router = router(Arc::default(), Arc::default());
    // The one is known to the kernel only when the server stops.
    let mut early = TcpStream::connect(address).await.unwrap();
    shutdown.cancel();
    let server = tokio::spawn(serve_http(listener, router, ServerOptions::default(), shutdown));
    while TcpStream::connect(address).await.is_ok() {
        tokio::task::yield_now().await;
    }
    early.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let answer = ends(early).await;
    assert!(answer.contains("connection: close") && answer.ends_with("hello"), "{answer}");
    assert_eq!(server.await.unwrap(), Drained { cut: 0 });
}

#[tokio::test]
async fn a_request_that_meets_the_end_of_its_idle_connection_is_answered() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let options = ServerOptions { idle_timeout: short(), ..ServerOptions::default() };
    let router = router(Arc::default(), Arc::default());
    tokio::spawn(serve_http(listener, router, options, CancellationToken::new()));
    let answered = async |stream: &mut TcpStream| {
        let mut answer = Vec::new();
        while !answer.ends_with(b"hello") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "closed");
        }
    };
    let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
    stream.write_all(request).await.unwrap();
    answered(&mut stream).await;
    // Blocks the only thread of this runtime, so that the server sees the request and the end of its patience at once.
    std::thread::sleep(short() * 3);
    assert_eq!(stream.try_write(request).unwrap(), request.len());
    answered(&mut stream).await;
}

#[test]
fn pauses_after_accept_errors() {
    fn check(kind: ErrorKind, before_ms: u64, after_ms: u64) {
        let pause = pause_after(kind, Duration::from_millis(before_ms));
        assert_eq!(pause, Duration::from_millis(after_ms), "{kind:?} after {before_ms}");
    }
    check(ErrorKind::ConnectionAborted, 0, 0);
    check(ErrorKind::ConnectionReset, 500, 0);
    check(ErrorKind::Interrupted, 0, 0);
    check(ErrorKind::Other, 0, 10);
    check(ErrorKind::Other, 10, 20);
    check(ErrorKind::OutOfMemory, 640, 1000);
    check(ErrorKind::Other, 1000, 1000);
}
