//! A bounded HTTP/1.1 server: every connection and every request is limited in size, count and time.

use std::any::Any;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use axum::http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tower_http::catch_panic::CatchPanicLayer;
use tower_http::limit::RequestBodyLimitLayer;
use tower_http::timeout::TimeoutLayer;

use super::guard_io::{Busy, GuardIo, Patience};
use super::tls::SharedTls;

/// Largest request head, and the read buffer of a connection, in bytes.
const MAX_HEAD: usize = 64 * 1024;
/// Longest pause after an error of `accept`.
const MAX_PAUSE: Duration = Duration::from_secs(1);

/// The limits of a server. Times are upper bounds; the defaults suit a webhook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerOptions {
    /// Connections at once, handshakes included; further ones wait in the kernel's queue. Default 1000.
    pub max_connections: usize,
    /// For a TLS handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// For a request head, from its first byte (from the end of the handshake for the first one). Default 10 s.
    pub header_timeout: Duration,
    /// Between two requests of a connection. Default 120 s: more than the 90 s after which the API server closes idle
    /// connections itself, so that it never sends a review into a connection that is being closed here.
    pub idle_timeout: Duration,
    /// For the client to take some bytes of an answer. Default 30 s.
    pub write_timeout: Duration,
    /// From the end of the head to the start of the answer, reading the body included; then 504. Default 30 s, the
    /// longest `timeoutSeconds` of a webhook.
    pub request_timeout: Duration,
    /// Bytes of a request body; more is answered 413. Default 7 MiB: a review holds an object twice at most, and the
    /// API server takes objects of up to 3 MiB.
    pub body_limit: usize,
    /// How long new connections are still taken after `shutdown`, while the endpoint is removed from its Service
    /// everywhere. Default 0. With `drain` it must stay below the Pod's `terminationGracePeriodSeconds`.
    pub shutdown_delay: Duration,
    /// How long requests in flight may take after that; then their connections are cut. Default 25 s.
    pub drain: Duration,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 1000,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(30),
            request_timeout: Duration::from_secs(30),
            body_limit: 7 << 20,
            shutdown_delay: Duration::ZERO,
            drain: Duration::from_secs(25),
        }
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that had to be cut because [`ServerOptions::drain`] was over.
    pub cut: usize,
}

/// Serves `router` over TLS until `shutdown`, then drains.
///
/// Each connection takes the configuration that `tls` holds when it is accepted. A panic in a handler is answered 500;
/// errors of single connections are logged at debug level, because anybody can cause them.
pub async fn serve_https(
    listener: TcpListener,
    tls: SharedTls,
    router: Router,
    options: ServerOptions,
    shutdown: CancellationToken,
) -> Drained {
    serve(listener, Transport::Tls(tls), router, options, shutdown).await
}

/// As [`serve_https`], without TLS.
pub async fn serve_http(
    listener: TcpListener,
    router: Router,
    options: ServerOptions,
    shutdown: CancellationToken,
) -> Drained {
    serve(listener, Transport::Plain, router, options, shutdown).await
}

#[derive(Clone)]
enum Transport {
    Plain,
    Tls(SharedTls),
}

/// What every connection of a server shares.
struct Shared {
    transport: Transport,
    router: Router,
    options: ServerOptions,
    /// Cancelled: finish the request in flight and close.
    closing: CancellationToken,
    /// Cancelled: close now.
    cut: CancellationToken,
}

async fn serve(
    listener: TcpListener,
    transport: Transport,
    router: Router,
    options: ServerOptions,
    shutdown: CancellationToken,
) -> Drained {
    let router = bounded(router, &options);
    let (closing, cut) = (CancellationToken::new(), CancellationToken::new());
    let slots = Arc::new(Semaphore::new(options.max_connections));
    let shared = Arc::new(Shared { transport, router, options, closing, cut });
    let connections = TaskTracker::new();
    let stop = async {
        shutdown.cancelled().await;
        sleep(shared.options.shutdown_delay).await;
    };
    tokio::pin!(stop);
    let mut pause = Duration::ZERO;
    loop {
        let (stream, permit) = tokio::select! {
            biased;
            () = &mut stop => break,
            accepted = accept(&listener, &slots, &mut pause) => accepted,
        };
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let cut = shared.cut.clone();
            cut.run_until_cancelled_owned(connection(stream, &shared)).await;
            drop(permit);
        });
    }
    drop(listener);
    drain(&shared, connections).await
}

async fn drain(shared: &Shared, connections: TaskTracker) -> Drained {
    shared.closing.cancel();
    connections.close();
    let cut = match timeout(shared.options.drain, connections.wait()).await {
        Ok(()) => 0,
        Err(_) => connections.len(),
    };
    if cut > 0 {
        tracing::warn!(connections = cut, "requests did not end in time: their connections are cut");
    }
    shared.cut.cancel();
    connections.wait().await;
    Drained { cut }
}

/// The next connection, with its slot. Waits for a slot first, so that a full server queues in the kernel.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
    pause: &mut Duration,
) -> (TcpStream, Option<OwnedSemaphorePermit>) {
    // The semaphore is never closed; without a permit a connection would only not be counted.
    let permit = Arc::clone(slots).acquire_owned().await.ok();
    loop {
        sleep(*pause).await;
        match listener.accept().await {
            Ok((stream, _)) => {
                *pause = Duration::ZERO;
                return (stream, permit);
            }
            Err(error) => {
                let next = pause_after(error.kind(), *pause);
                if pause.is_zero() && !next.is_zero() {
                    tracing::warn!(%error, "cannot accept connections, trying again");
                }
                *pause = next;
            }
        }
    }
}

/// How long to wait after an error of `accept`: not at all if it was about that one connection (accept(2)); else it is
/// about this process (no descriptor, no memory) and trying again at once would only burn time.
fn pause_after(kind: ErrorKind, before: Duration) -> Duration {
    match kind {
        ErrorKind::ConnectionAborted
        | ErrorKind::ConnectionRefused
        | ErrorKind::ConnectionReset
        | ErrorKind::Interrupted => Duration::ZERO,
        _ => (before * 2).clamp(Duration::from_millis(10), MAX_PAUSE),
    }
}

async fn connection(stream: TcpStream, shared: &Shared) {
    // An answer is one small write: waiting for more bytes to send only delays it.
    let _ = stream.set_nodelay(true);
    match &shared.transport {
        Transport::Plain => exchange(stream, shared).await,
        Transport::Tls(tls) => {
            let handshake = TlsAcceptor::from(tls.load_full()).accept(stream);
            match timeout(shared.options.handshake_timeout, handshake).await {
                Ok(Ok(stream)) => exchange(stream, shared).await,
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake took too long"),
            }
        }
    }
}

/// The requests of one connection.
async fn exchange<S>(stream: S, shared: &Shared)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let busy = Busy::default();
    let patience = Patience {
        header: shared.options.header_timeout,
        idle: shared.options.idle_timeout,
        write: shared.options.write_timeout,
    };
    let io = TokioIo::new(GuardIo::new(stream, busy.clone(), patience));
    let service = service_fn(|request: Request<Incoming>| {
        busy.set(true);
        let (busy, router) = (busy.clone(), shared.router.clone());
        async move {
            let response = router.oneshot(request.map(Body::new)).await;
            busy.set(false);
            response
        }
    });
    // No timer is given to hyper: the deadlines are those of GuardIo.
    let connection = hyper::server::conn::http1::Builder::new().max_buf_size(MAX_HEAD).serve_connection(io, service);
    tokio::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shared.closing.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(error = &error as &dyn std::error::Error, "connection ended");
    }
}

/// `router` with the limits of each request.
fn bounded(router: Router, options: &ServerOptions) -> Router {
    router
        // axum's own limit of 2 MB would refuse large reviews before the one below.
        .layer(DefaultBodyLimit::disable())
        .layer(RequestBodyLimitLayer::new(options.body_limit))
        .layer(TimeoutLayer::with_status_code(StatusCode::GATEWAY_TIMEOUT, options.request_timeout))
        .layer(CatchPanicLayer::custom(panicked))
}

/// The panic itself is on stderr by then, and may quote what is not the client's to read.
fn panicked(_panic: Box<dyn Any + Send>) -> Response<Body> {
    tracing::error!("a request handler panicked");
    let mut response = Response::new(Body::from("internal error, see kimup's log\n"));
    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
    response
}

#[cfg(test)]
mod tests;
