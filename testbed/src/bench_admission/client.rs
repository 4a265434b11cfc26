//! Load: a thread that polls its connections, so that the server has nobody to wake; threads that block for handshakes.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, ClientConnection, DigitallySignedStruct, SignatureScheme, StreamOwned};

/// For one answer.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// A keep-alive connection.
pub struct Connection {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: Vec<u8>,
}

impl Connection {
    pub fn open(address: SocketAddr, config: &Arc<ClientConfig>) -> Result<Self> {
        let tcp = TcpStream::connect(address)?;
        tcp.set_nodelay(true)?;
        tcp.set_read_timeout(Some(DEADLINE))?;
        let client = ClientConnection::new(Arc::clone(config), ServerName::try_from("localhost")?)?;
        let mut stream = StreamOwned::new(client, tcp);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self { stream, buffer: Vec::with_capacity(16 * 1024) })
    }

    /// Sends a whole request; the body of its answer, which must be a 200.
    pub fn exchange(&mut self, request: &[u8]) -> Result<&[u8]> {
        self.send(request)?;
        let answer = self.receive()?.context("no answer in time")?;
        Ok(&self.buffer[answer])
    }

    fn send(&mut self, request: &[u8]) -> Result<()> {
        let mut rest = request;
        while !rest.is_empty() {
            let written = again(|| self.stream.write(rest))?;
            rest = &rest[written..];
        }
        again(|| self.stream.flush())?;
        self.buffer.clear();
        Ok(())
    }

    /// Where in the buffer the body of the answer is, once all of it is there; none if nothing more comes for now.
    fn receive(&mut self) -> Result<Option<Range<usize>>> {
        let mut chunk = [0; 16 * 1024];
        loop {
            let read = match self.stream.read(&mut chunk) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                read => read?,
            };
            ensure!(read > 0, "the connection was closed");
            self.buffer.extend_from_slice(&chunk[..read]);
            if let Some((start, length)) = body(&self.buffer)?
                && self.buffer.len() >= start + length
            {
                return Ok(Some(start..start + length));
            }
        }
    }
}

/// Until there is room for what is sent.
fn again<T>(mut send: impl FnMut() -> std::io::Result<T>) -> std::io::Result<T> {
    loop {
        match send() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            done => return done,
        }
    }
}

/// Where the body of an answer starts and how long it is, once its head is there.
fn body(answer: &[u8]) -> Result<Option<(usize, usize)>> {
    let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") else {
        return Ok(None);
    };
    let head = std::str::from_utf8(&answer[..end])?;
    if !head.starts_with("HTTP/1.1 200") {
        bail!("the answer is {:?}", String::from_utf8_lossy(answer));
    }
    let length = head.lines().filter_map(|line| line.split_once(':'));
    let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length")).map(|(_, value)| value).next();
    Ok(Some((end + 4, length.context("no content-length")?.trim().parse()?)))
}

/// The request with a review, as the API server would send it.
pub fn request(body: &[u8]) -> Vec<u8> {
    let head = format!(
        "POST /mutate?timeout=10s HTTP/1.1\r\nHost: kimup-webhook.kimup-system.svc:443\r\nUser-Agent: kube-apiserver-admission\r\n\
         Content-Length: {}\r\nAccept: application/json, */*\r\nContent-Type: application/json\r\nAccept-Encoding: gzip\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// Sends one request after the other on each connection for `time`; how many were answered. By one thread, as in [`paced`].
pub fn closed_loop(connections: &mut [Connection], requests: &[Vec<u8>], time: Duration) -> Result<u64> {
    let end = Instant::now() + time;
    let mut turns = turns(connections, requests, |_| Ok(end))?;
    let mut answered = 0;
    for turn in &mut turns {
        turn.send(Instant::now())?;
    }
    let mut open = turns.len();
    while open > 0 {
        for turn in &mut turns {
            if turn.answered()?.is_some() {
                answered += 1;
                if Instant::now() < end {
                    turn.send(Instant::now())?;
                } else {
                    open -= 1;
                }
            }
        }
    }
    Ok(answered)
}

/// Sends `rate` requests a second for `time`, spread over the connections; how long each took, sorted.
///
/// One thread looks after all connections and never sleeps: the server does not have to wake a client, which on a virtual
/// machine costs it more than to write the answer, and which a client on another node never asks of it.
///
/// The clock runs from when a request was due, so that one that waits for the one before it counts in full; if the
/// sender was at another connection then, from when it came: that is not the server's.
pub fn paced(connections: &mut [Connection], requests: &[Vec<u8>], rate: u32, time: Duration) -> Result<Vec<Duration>> {
    let share = u32::try_from(connections.len())?;
    let (period, offset) = (Duration::from_secs(1) * share / rate, Duration::from_secs(1) / rate);
    let start = Instant::now() + Duration::from_millis(2);
    let mut turns = turns(connections, requests, |number| Ok(start + offset * u32::try_from(number)?))?;
    let (mut all, mut open) = (Vec::new(), turns.len());
    while open > 0 {
        open = 0;
        for turn in &mut turns {
            if let Some(took) = turn.answered()? {
                all.push(took);
                turn.due += period;
                if turn.due < Instant::now() && turn.due < start + time {
                    turn.send(turn.due)?;
                }
            } else if turn.began.is_none() && turn.due < start + time && turn.due <= Instant::now() {
                turn.send(Instant::now())?;
            }
            open += usize::from(turn.began.is_some() || turn.due < start + time);
        }
        thread::yield_now(); // the API server lives on this core too
    }
    all.sort_unstable();
    Ok(all)
}

/// A connection with its requests to come.
struct Turn<'a, I> {
    connection: &'a mut Connection,
    requests: I,
    due: Instant,
    /// If it waits for an answer, since when.
    began: Option<Instant>,
}

/// Of each connection, which does not block from now on.
fn turns<'a>(
    connections: &'a mut [Connection],
    requests: &'a [Vec<u8>],
    due: impl Fn(usize) -> Result<Instant>,
) -> Result<Vec<Turn<'a, impl Iterator<Item = &'a Vec<u8>>>>> {
    let turn = |(number, connection): (usize, &'a mut Connection)| {
        connection.stream.sock.set_nonblocking(true)?;
        // As in a cluster, each at another Pod.
        let requests = requests.iter().cycle().skip(number * 5 % requests.len());
        Ok(Turn { connection, requests, due: due(number)?, began: None })
    };
    connections.iter_mut().enumerate().map(turn).collect()
}

impl<'a, I: Iterator<Item = &'a Vec<u8>>> Turn<'a, I> {
    /// If the answer has come, how long it took.
    fn answered(&mut self) -> Result<Option<Duration>> {
        let Some(began) = self.began else { return Ok(None) };
        let Some(_) = self.connection.receive()? else {
            ensure!(began.elapsed() < DEADLINE, "no answer within {DEADLINE:?}");
            return Ok(None);
        };
        self.began = None;
        Ok(Some(began.elapsed()))
    }

    fn send(&mut self, began: Instant) -> Result<()> {
        self.connection.send(self.requests.next().context("no more requests")?)?;
        self.began = Some(began);
        Ok(())
    }
}

/// Opens and closes connections for `time` from so many threads; how many.
pub fn handshakes(address: SocketAddr, config: &Arc<ClientConfig>, threads: usize, time: Duration) -> Result<u64> {
    let end = Instant::now() + time;
    let work = |_: (usize, &mut ())| -> Result<u64> {
        let mut opened = 0;
        while Instant::now() < end {
            Connection::open(address, config)?;
            opened += 1;
        }
        Ok(opened)
    };
    Ok(in_parallel(&mut vec![(); threads], work)?.iter().sum())
}

fn in_parallel<C: Send, T: Send>(each: &mut [C], work: impl Fn((usize, &mut C)) -> Result<T> + Sync) -> Result<Vec<T>> {
    thread::scope(|scope| {
        let running: Vec<_> = each.iter_mut().enumerate().map(|one| scope.spawn(|| work(one))).collect();
        let ended = running.into_iter().map(|thread| thread.join().ok().context("a thread panicked")?);
        ended.collect()
    })
}

/// TLS 1.3 alone, every handshake a full one, any certificate: the client's work is not what is measured.
pub fn tls() -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyServer))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

#[derive(Debug)]
struct AnyServer;

impl ServerCertVerifier for AnyServer {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
