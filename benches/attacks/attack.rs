//! What clients can do to the webhook's server. All come from one address, as through a proxy: the harder case, since
//! nothing tells them apart.

use std::io;
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rustls::ClientConnection;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use crate::client::{Connection, Seen, watch};
use crate::server::{Server, Target, head};

/// In which the connections of a crowd are made, and after which the client begins.
const FORMING: Duration = Duration::from_millis(800);
const WARM_UP: Duration = Duration::from_secs(1);
/// How long an attacker whose connection was closed waits.
const AGAIN: Duration = Duration::from_secs(5);
/// How many connections [`Attack::Idle`] wants to have.
pub const CROWD: usize = 10_000;

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
    /// 200 connections a second that are reset in the middle of a handshake, of a body or of an answer, in turn.
    Midway,
}

/// How often an attack is made.
#[derive(Clone, Copy)]
enum Scale {
    /// So many at the same time, again and again.
    Crowd(usize),
    /// So many a second.
    Storm(u32),
}

impl Attack {
    pub const ALL: [Self; 10] = [
        Self::Idle,
        Self::SlowHeads,
        Self::SlowBodies,
        Self::KeepAlive,
        Self::Garbage,
        Self::Handshakes,
        Self::LongHeads,
        Self::LargeBodies,
        Self::Resets,
        Self::Midway,
    ];

    fn scale(self) -> Scale {
        match self {
            Self::Idle => Scale::Crowd(descriptors(CROWD)),
            Self::SlowHeads | Self::SlowBodies | Self::KeepAlive => Scale::Crowd(600),
            Self::LargeBodies => Scale::Crowd(20),
            Self::Garbage | Self::Resets => Scale::Storm(1000),
            Self::Handshakes | Self::Midway => Scale::Storm(200),
            Self::LongHeads => Scale::Storm(20),
        }
    }

    /// The `nth` time; `done` is called as soon as it has been an attack.
    async fn once(self, nth: usize, at: &Target, done: &dyn Fn()) -> io::Result<()> {
        match self {
            Self::Idle => {
                let stream = tcp(at).await?;
                done();
                wait(stream).await
            }
            Self::SlowHeads => drip(tls(at).await?, b"POST / HTTP/1.1\r\nx: ", done).await,
            Self::SlowBodies => drip(tls(at).await?, &head(1 << 20), done).await,
            Self::KeepAlive => {
                let mut stream = tls(at).await?;
                stream.write_all(&at.request).await?;
                stream.read_u8().await?;
                done();
                wait(stream).await
            }
            Self::Garbage => {
                let mut stream = tcp(at).await?;
                stream.write_all(&[b'x'; 300]).await?;
                done();
                wait(stream).await
            }
            Self::Handshakes => {
                tls(at).await?;
                done();
                Ok(())
            }
            Self::LongHeads => {
                let mut stream = tls(at).await?;
                stream.write_all(b"POST / HTTP/1.1\r\nx: ").await?;
                done(); // the server does not read all of it
                stream.write_all(&vec![b'x'; 1 << 20]).await
            }
            Self::LargeBodies => {
                let mut stream = tls(at).await?;
                stream.write_all(&head(7 << 20)).await?;
                done(); // it does not take all of them at a time
                for _ in 0..447 {
                    stream.write_all(&[b'x'; 16 << 10]).await?;
                }
                wait(stream).await
            }
            Self::Resets => {
                let stream = tcp(at).await?;
                done();
                stream.set_zero_linger()
            }
            Self::Midway => reset_midway(nth, at, done).await,
        }
    }

    /// Goes on until it is dropped.
    async fn run(self, target: Target, tally: Arc<AtomicUsize>) {
        let (target, set) = (Rc::new(target), tokio::task::LocalSet::new());
        let once = async move |nth: usize, at: &Target| {
            self.once(nth, at, &|| _ = tally.fetch_add(1, Ordering::Relaxed)).await
        };
        let once = Rc::new(once);
        match self.scale() {
            Scale::Crowd(count) => {
                for nth in 0..count {
                    let (target, once) = (Rc::clone(&target), Rc::clone(&once));
                    set.spawn_local(async move {
                        // Not all in one instant.
                        sleep(FORMING * u32::try_from(nth).unwrap() / u32::try_from(count).unwrap()).await;
                        loop {
                            let _ = once(nth, &target).await;
                            sleep(AGAIN).await;
                        }
                    });
                }
                set.await;
            }
            Scale::Storm(rate) => {
                let storm = async {
                    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
                    for nth in 0.. {
                        ticks.tick().await;
                        let (target, once) = (Rc::clone(&target), Rc::clone(&once));
                        tokio::task::spawn_local(
                            async move { timeout(Duration::from_secs(5), once(nth, &target)).await },
                        );
                    }
                };
                set.run_until(storm).await;
            }
        }
    }
}

/// How many connections this process may have, of so many.
pub fn descriptors(wanted: usize) -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let allowed = limit.map_or(wanted, |limit| usize::try_from(limit).unwrap_or(wanted));
    wanted.min(allowed.saturating_sub(500))
}

async fn tcp(at: &Target) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(at.address).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn tls(at: &Target) -> io::Result<TlsStream<TcpStream>> {
    TlsConnector::from(Arc::clone(&at.tls)).connect(at.name(), tcp(at).await?).await
}

/// Until the server closes.
async fn wait<S: tokio::io::AsyncRead + Unpin>(mut stream: S) -> io::Result<()> {
    let mut bytes = [0; 512];
    while stream.read(&mut bytes).await? > 0 {}
    Ok(())
}

async fn drip(mut stream: TlsStream<TcpStream>, first: &[u8], done: &dyn Fn()) -> io::Result<()> {
    stream.write_all(first).await?;
    done();
    loop {
        sleep(Duration::from_secs(1)).await;
        stream.write_all(b"x").await?;
    }
}

async fn reset_midway(nth: usize, at: &Target, done: &dyn Fn()) -> io::Result<()> {
    if nth.is_multiple_of(3) {
        let mut hello = Vec::new();
        let mut client = ClientConnection::new(Arc::clone(&at.tls), at.name()).map_err(io::Error::other)?;
        client.write_tls(&mut hello)?;
        let mut stream = tcp(at).await?;
        stream.write_all(&hello).await?;
        stream.read_u8().await?; // the server has signed
        done();
        return stream.set_zero_linger();
    }
    let mut stream = tls(at).await?;
    if nth % 3 == 1 {
        stream.write_all(&head(1 << 20)).await?;
        stream.write_all(&vec![b'x'; 64 << 10]).await?;
    } else {
        stream.write_all(&at.request).await?;
    }
    done();
    stream.get_ref().0.set_zero_linger()
}

/// What a client saw for a while, and what it took.
pub struct Round {
    pub seen: Seen,
    /// Of one processor's time, what the server took.
    pub processor: f64,
    /// The server's open sockets half-way.
    pub sockets: usize,
    /// What attackers did, by what they wanted to.
    pub reached: f64,
}

/// What a client sees for so long, with an attack or without. It connects before.
pub fn observe(server: &Server, time: Duration, attack: Option<Attack>) -> Round {
    let target = &server.target;
    let mut connection = Connection::open(target).unwrap();
    connection.ask(target).unwrap();
    let (tally, stop) = (Arc::new(AtomicUsize::new(0)), CancellationToken::new());
    let began = Instant::now();
    thread::scope(|scope| {
        let attacker = attack.map(|attack| {
            let (target, tally, stop) = (target.clone(), Arc::clone(&tally), stop.clone());
            scope.spawn(move || {
                if server.apart {
                    stand_back();
                }
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                runtime.block_on(stop.run_until_cancelled_owned(attack.run(target, tally)));
            })
        });
        let warm_up = attack.map_or(Duration::ZERO, |_| WARM_UP);
        let client = scope.spawn(move || watch(target, connection, warm_up, time));
        thread::sleep(warm_up);
        let (before, watching) = (server.cpu_time(), Instant::now());
        thread::sleep(time / 2);
        let sockets = server.sockets();
        let seen = client.join().unwrap();
        let took = server.cpu_time().saturating_sub(before);
        let processor = took.as_secs_f64() / watching.elapsed().as_secs_f64();
        let wanted = attack.map_or(0.0, |attack| match attack.scale() {
            Scale::Crowd(count) => real(count),
            Scale::Storm(rate) => f64::from(rate) * began.elapsed().as_secs_f64(),
        });
        let reached = real(tally.load(Ordering::Relaxed)) / wanted;
        stop.cancel();
        let _ = attacker.map(thread::ScopedJoinHandle::join);
        Round { seen, processor, sockets, reached }
    })
}

/// Gives this thread the lowest priority there is, so that the client goes first on the processor that they share.
fn stand_back() {
    let thread = rustix::thread::gettid().as_raw_nonzero().to_string();
    let idle = Command::new("chrt").args(["--idle", "--pid", "0", &thread]).status();
    if !idle.is_ok_and(|status| status.success()) {
        let _ = rustix::process::nice(19);
    }
}

#[allow(clippy::cast_precision_loss)] // far below 2^53
fn real(number: usize) -> f64 {
    number as f64
}
