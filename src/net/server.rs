//! A bounded HTTP/1.1 server: every connection and every request is limited in size, count and time.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::{AbortOnDropHandle, TaskTracker};

use super::seats::{Patience, Seated, Seats};
use super::tls::SharedTls;
use crate::telemetry::{ConnectionEnd, ServerCounts};

mod connection;
mod request;
mod turns;

use request::Bodies;
pub use request::Handler;
use turns::{Turns, let_others_go_first};

/// Largest request head, and the read buffer of a connection, in bytes.
const MAX_HEAD: usize = 16 << 10;
/// Longest pause after an error of `accept`.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// How long a new connection waits for a seat when nobody can be spared.
const AT_THE_DOOR: Duration = Duration::from_millis(300);
/// How long a connection is read on after a request was refused, so that its client gets to the answer.
const LINGER: Duration = Duration::from_secs(1);
/// How many bytes at most, unless a body that might have been taken was refused for others' sake.
const LINGER_BYTES: usize = 256 << 10;
/// How many connections are accepted before other work gets a turn.
const ACCEPTS: usize = 2;
/// How long a drain waits for the first request of a connection that was just made.
const FIRST_REQUEST: Duration = Duration::from_secs(1);

/// The limits of a server, and what it counts. Times are upper bounds; the defaults suit a webhook.
#[derive(Debug, Clone)]
pub struct ServerOptions {
    /// Connections at once, handshakes included. A further one takes the place of one that waits for its client: first
    /// of an address that holds more than half of all, then of those without a whole request, then of idle ones. None
    /// that is being answered is ever closed for another; if all are, the new one is closed after 0.3 s. Default 512.
    pub max_connections: usize,
    /// For a TLS handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// For a request head, from its first byte. Default 10 s.
    pub header_timeout: Duration,
    /// Before the first request of a connection, and between two. Default 120 s: more than the 90 s after which the API
    /// server closes idle connections itself, so that it never sends a review into a connection that is being closed
    /// here.
    pub idle_timeout: Duration,
    /// For the client to take some bytes of an answer. Default 30 s.
    pub write_timeout: Duration,
    /// For a request body, from the end of the head; then 408. Default 10 s, the longest that the API server waits for
    /// kimup's webhook.
    pub body_timeout: Duration,
    /// From the end of the body to the start of the answer; then 504. Default 30 s, the longest `timeoutSeconds` of a
    /// webhook.
    pub request_timeout: Duration,
    /// Bytes of a request body; more is answered 413, and the connection is closed without reading on. Default 7 MiB: a
    /// review holds an object twice at most, and the API server takes objects of up to 3 MiB.
    pub body_limit: usize,
    /// Bytes of all request bodies that are being read or answered, 16 KiB of each aside. A further one waits 0.25 s and
    /// is then answered 503 with `Retry-After`, and its connection is closed. At least [`body_limit`](Self::body_limit). Default 12 MiB.
    pub bodies_in_memory: usize,
    /// How long everything is still served after `shutdown`, while the endpoint is removed from its Service everywhere:
    /// each answer then says `Connection: close`. Default 0. With `drain` it must stay below the Pod's
    /// `terminationGracePeriodSeconds`.
    pub shutdown_delay: Duration,
    /// How long requests in flight may take after that; then their connections are cut. Default 25 s.
    pub drain: Duration,
    /// Counts what is refused and closed. Default: nobody's.
    pub counts: ServerCounts,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            max_connections: 512,
            handshake_timeout: Duration::from_secs(10),
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(120),
            write_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(30),
            body_limit: 7 << 20,
            bodies_in_memory: 12 << 20,
            shutdown_delay: Duration::ZERO,
            drain: Duration::from_secs(25),
            counts: ServerCounts::default(),
        }
    }
}

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Connections that had to be cut because [`ServerOptions::drain`] was over.
    pub cut: usize,
}

impl ServerOptions {
    fn patience(&self) -> Patience {
        Patience {
            handshake: self.handshake_timeout,
            header: self.header_timeout,
            idle: self.idle_timeout,
            write: self.write_timeout,
        }
    }
}

/// Serves `handler` (a [`axum::Router`], for example) over TLS until `shutdown`, then drains.
///
/// Each connection takes the configuration that `tls` holds when it is accepted. Errors of single connections are logged
/// at debug level, because anybody can cause them.
pub async fn serve_https<H: Handler>(
    listener: TcpListener,
    tls: SharedTls,
    handler: H,
    options: ServerOptions,
    shutdown: CancellationToken,
) -> Drained {
    serve(listener, Transport::Tls(tls), handler, options, shutdown).await
}

/// As [`serve_https`], without TLS.
pub async fn serve_http<H: Handler>(
    listener: TcpListener,
    handler: H,
    options: ServerOptions,
    shutdown: CancellationToken,
) -> Drained {
    serve(listener, Transport::Plain, handler, options, shutdown).await
}

enum Transport {
    Plain,
    Tls(SharedTls),
}

/// What every connection of a server shares.
struct Shared<H> {
    transport: Transport,
    handler: H,
    options: ServerOptions,
    seats: Arc<Seats>,
    bodies: Bodies,
    /// How many handshakes may use a processor at a time.
    handshakes: Turns,
    /// For each piece that is read to be thrown away: apart from those of bodies, which somebody waits for.
    lingering: Turns,
    stopping: AtomicBool,
}

impl<H> Shared<H> {
    fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }
}

async fn serve<H: Handler>(
    listener: TcpListener,
    transport: Transport,
    handler: H,
    options: ServerOptions,
    shutdown: CancellationToken,
) -> Drained {
    let seats = Arc::new(Seats::new(options.max_connections).counting(options.counts.clone()));
    let sweeper = AbortOnDropHandle::new(tokio::spawn(sweep(Arc::clone(&seats), options.patience())));
    let bodies = Bodies::new(options.body_limit, options.bodies_in_memory);
    // Half of the processors: the other half is for requests.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let handshakes = Turns::new((processors / 2).max(1));
    let (lingering, stopping) = (Turns::new(1), AtomicBool::new(false));
    let shared = Arc::new(Shared { transport, handler, options, seats, bodies, handshakes, lingering, stopping });
    let connections = TaskTracker::new();
    let stop = async {
        shutdown.cancelled().await;
        shared.stopping.store(true, Ordering::Release);
        sleep(shared.options.shutdown_delay).await;
    };
    let mut door = Door::default();
    tokio::select! {
        biased;
        () = stop => {}
        never = accept_all(&listener, &mut door, &shared, &connections) => match never {},
    }
    accept_waiting(&listener, door, &shared, &connections).await;
    drop(listener);
    let drained = drain(&shared, connections).await;
    drop(sweeper);
    drained
}

async fn sweep(seats: Arc<Seats>, patience: Patience) {
    loop {
        sleep(patience.tick()).await;
        seats.sweep(&patience);
    }
}

async fn drain<H>(shared: &Shared<H>, connections: TaskTracker) -> Drained {
    shared.seats.finish_all();
    connections.close();
    let (all, first) = (shared.options.drain, FIRST_REQUEST.min(shared.options.drain / 2));
    if timeout(first, connections.wait()).await.is_err() {
        shared.seats.expel_unbegun();
    }
    let cut = match timeout(all.saturating_sub(first), connections.wait()).await {
        Ok(()) => 0,
        Err(_) => connections.len(),
    };
    if cut > 0 {
        tracing::warn!(connections = cut, "requests did not end in time: their connections are cut");
    }
    shared.seats.expel_everybody();
    connections.wait().await;
    Drained { cut }
}

/// Where new connections wait for seats.
#[derive(Default)]
struct Door {
    /// Who waits. Kept here, so that who has waited when the server stops is still answered.
    waiting: Option<(TcpStream, SocketAddr)>,
    /// Since when there has been no seat.
    full_since: Option<Instant>,
}

impl Door {
    /// Seats who waits, or closes the connection.
    async fn admit<H: Handler>(&mut self, shared: &Arc<Shared<H>>, connections: &TaskTracker) {
        let Some((_, peer)) = &self.waiting else { return };
        let seated = seat(&shared.seats, peer.ip(), &mut self.full_since).await;
        match (self.waiting.take(), seated) {
            (Some((stream, _)), Some(seated)) => {
                connections.spawn(connection::run(stream, seated, Arc::clone(shared)));
            }
            _ => shared.options.counts.closed(ConnectionEnd::Full, 1),
        }
    }
}

/// Accepts connections until it is dropped.
async fn accept_all<H: Handler>(
    listener: &TcpListener,
    door: &mut Door,
    shared: &Arc<Shared<H>>,
    connections: &TaskTracker,
) -> std::convert::Infallible {
    let mut pause = Duration::ZERO;
    for nth in 1_usize.. {
        door.waiting = Some(accept(listener, &mut pause).await);
        door.admit(shared, connections).await;
        if nth.is_multiple_of(ACCEPTS) {
            let_others_go_first().await;
        }
    }
    std::future::pending().await
}

/// Takes the connections that the kernel has accepted already: closing the listener would reset them.
async fn accept_waiting<H: Handler>(
    listener: &TcpListener,
    mut door: Door,
    shared: &Arc<Shared<H>>,
    connections: &TaskTracker,
) {
    door.admit(shared, connections).await;
    yield_now().await; // so that the runtime hears of them
    while let Ok(Ok(accepted)) = timeout(Duration::ZERO, listener.accept()).await {
        door.waiting = Some(accepted);
        door.admit(shared, connections).await;
    }
}

/// A seat for a new connection. When there is none the first one waits shortly; those behind it are closed at once until
/// there is one again, so that what cannot be served is told so quickly.
async fn seat(seats: &Arc<Seats>, peer: IpAddr, full_since: &mut Option<Instant>) -> Option<Seated> {
    let mut waited = false;
    loop {
        if let Some(seated) = seats.take(peer) {
            *full_since = None;
            return Some(seated);
        }
        if full_since.get_or_insert_with(Instant::now).elapsed() >= AT_THE_DOOR {
            if waited {
                tracing::warn!("every connection is in use: new ones are closed");
            }
            return None;
        }
        waited = true;
        seats.freed(Duration::from_millis(20)).await;
    }
}

/// The next connection.
async fn accept(listener: &TcpListener, pause: &mut Duration) -> (TcpStream, SocketAddr) {
    loop {
        if !pause.is_zero() {
            sleep(*pause).await;
        }
        match listener.accept().await {
            Ok(accepted) => {
                *pause = Duration::ZERO;
                return accepted;
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

#[cfg(test)]
mod tests;
