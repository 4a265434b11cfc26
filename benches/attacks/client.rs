//! A well-behaved client: blocking threads, so that it costs little and its own scheduling does not count.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use rustls::{ClientConnection, StreamOwned};

use crate::server::Target;

/// Requests a second on the steady connection.
const RATE: u32 = 400;
/// New connections a second.
const NEW_RATE: u32 = 8;
/// For one answer.
const DEADLINE: Duration = Duration::from_secs(5);

/// What a client saw.
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

/// A keep-alive connection.
pub struct Connection(StreamOwned<ClientConnection, TcpStream>);

impl Connection {
    /// Connects and shakes hands.
    pub fn open(target: &Target) -> io::Result<Self> {
        let tcp = TcpStream::connect_timeout(&target.address, DEADLINE)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(DEADLINE))?;
        let tls = ClientConnection::new(Arc::clone(&target.tls), target.name()).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(tls, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self(stream))
    }

    /// Asks for a review, which must be answered with a patch.
    pub fn ask(&mut self, target: &Target) -> io::Result<()> {
        self.0.write_all(&target.request)?;
        let mut answer = Vec::with_capacity(2048);
        let mut piece = [0; 2048];
        while !is_whole(&answer) {
            let read = self.0.read(&mut piece)?;
            if read == 0 {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            answer.extend_from_slice(&piece[..read]);
        }
        let patched = answer.windows(8).any(|bytes| bytes == b"\"patch\":");
        if patched { Ok(()) } else { Err(io::Error::other(String::from_utf8_lossy(&answer).into_owned())) }
    }
}

fn is_whole(answer: &[u8]) -> bool {
    let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else {
        return false;
    };
    let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    length.is_none_or(|length: usize| answer.len() >= end + 4 + length)
}

/// Asks steadily on `connection`, and at times on a new one, for so long; for `warm_up` before that on `connection` alone,
/// when nothing counts but what is lost.
pub fn watch(target: &Target, connection: Connection, warm_up: Duration, time: Duration) -> Seen {
    let begin = Instant::now() + warm_up;
    thread::scope(|scope| {
        let new = scope.spawn(move || {
            thread::sleep(warm_up);
            ask_anew(target, time)
        });
        let (answers, lost) = ask_steadily(target, connection, begin, time);
        let (new_answers, new_lost) = new.join().unwrap();
        Seen { answers, lost, new_answers, new_lost }
    })
}

/// The clock runs from when a request was due, so that one that waits for the one before it counts in full; if the
/// sender had nothing else to do but woke up late, from when it woke: that is not the server's.
fn ask_steadily(target: &Target, connection: Connection, begin: Instant, time: Duration) -> (Vec<Duration>, usize) {
    let (mut answers, mut lost, mut connection) = (Vec::new(), 0, Ok(connection));
    paced(RATE, begin.saturating_duration_since(Instant::now()) + time, |due| {
        let asked = match &mut connection {
            Ok(connection) => connection.ask(target),
            Err(_) => Err(ErrorKind::NotConnected.into()),
        };
        if asked.is_ok() {
            if due >= begin {
                answers.push(due.elapsed());
            }
        } else {
            lost += 1;
            connection = Connection::open(target);
        }
    });
    answers.sort_unstable();
    (answers, lost)
}

fn ask_anew(target: &Target, time: Duration) -> (Vec<Duration>, usize) {
    let (mut answers, mut lost) = (Vec::new(), 0);
    paced(NEW_RATE, time, |due| match Connection::open(target).and_then(|mut new| new.ask(target)) {
        Ok(()) => answers.push(due.elapsed()),
        Err(_) => lost += 1,
    });
    answers.sort_unstable();
    (answers, lost)
}

/// Does this so many times a second for `time`, and tells it since when it counts.
fn paced(rate: u32, time: Duration, mut each: impl FnMut(Instant)) {
    let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
    let begin = Instant::now();
    let mut due = begin;
    while due < begin + time {
        let wait = due.saturating_duration_since(Instant::now());
        if wait.is_zero() {
            each(due);
        } else {
            thread::sleep(wait);
            each(Instant::now());
        }
        due += Duration::from_secs(1) / rate;
    }
}
