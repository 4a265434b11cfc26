//! A byte stream that gives up on a peer that sends or takes nothing.
//!
//! hyper's own header deadline also ends idle keep-alive connections. The API server keeps idle connections for 90
//! seconds, and a connection that the server closes first can swallow a review that is just being sent. So head and
//! idle time are told apart here: a short deadline for a head that has begun, a long one between requests.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep};

/// Whether a request is being answered. While it is, its own deadline counts and reads are not limited here.
#[derive(Clone, Default)]
pub(super) struct Busy(Arc<AtomicBool>);

impl Busy {
    pub fn set(&self, busy: bool) {
        self.0.store(busy, Ordering::Release);
    }

    fn get(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}

/// How long a peer may take.
#[derive(Clone, Copy)]
pub(super) struct Patience {
    /// For a whole request head, from its first byte, or from the start of the connection.
    pub header: Duration,
    /// Between two requests.
    pub idle: Duration,
    /// For taking some bytes of an answer.
    pub write: Duration,
}

#[derive(PartialEq)]
enum Reading {
    Head,
    Idle,
    Body,
}

pub(super) struct GuardIo<S> {
    inner: S,
    busy: Busy,
    patience: Patience,
    reading: Reading,
    read_deadline: Pin<Box<Sleep>>,
    /// Set while a write waits for the peer.
    write_deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> GuardIo<S> {
    pub fn new(inner: S, busy: Busy, patience: Patience) -> Self {
        Self {
            inner,
            busy,
            patience,
            reading: Reading::Head,
            read_deadline: Box::pin(sleep(patience.header)),
            write_deadline: None,
        }
    }

    fn wait_for(&mut self, reading: Reading, at_most: Duration) {
        self.reading = reading;
        self.read_deadline.as_mut().reset(Instant::now() + at_most);
    }

    /// The result of a write, or an error when the peer has taken nothing for too long.
    fn written<T>(&mut self, cx: &mut Context<'_>, result: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_deadline = None;
            return result;
        }
        let patience = self.patience.write;
        let deadline = self.write_deadline.get_or_insert_with(|| Box::pin(sleep(patience)));
        ready!(deadline.as_mut().poll(cx));
        Poll::Ready(Err(timed_out("the peer takes no bytes")))
    }
}

fn timed_out(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, what)
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.busy.get() {
            self.reading = Reading::Body;
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        if self.reading == Reading::Body {
            let idle = self.patience.idle;
            self.wait_for(Reading::Idle, idle);
        }
        if self.read_deadline.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(timed_out("the peer sends no request")));
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.inner).poll_read(cx, buf))?;
        if self.reading == Reading::Idle && buf.filled().len() > before {
            let header = self.patience.header;
            self.wait_for(Reading::Head, header);
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GuardIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(cx, result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.written(cx, result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.written(cx, result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.written(cx, result)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    const PATIENCE: Patience =
        Patience { header: Duration::from_secs(10), idle: Duration::from_secs(120), write: Duration::from_secs(30) };

    /// Seconds until a read fails when the peer stays silent.
    async fn silent_for(io: &mut GuardIo<tokio::io::DuplexStream>) -> u64 {
        let start = Instant::now();
        let error = io.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_connection_must_send_a_head() {
        let (io, mut peer) = duplex(64);
        let mut io = GuardIo::new(io, Busy::default(), PATIENCE);
        peer.write_u8(b'G').await.unwrap();
        io.read_u8().await.unwrap();
        assert_eq!(silent_for(&mut io).await, 10);
    }

    #[tokio::test(start_paused = true)]
    async fn bytes_do_not_buy_time_for_a_head() {
        let (io, mut peer) = duplex(64);
        let mut io = GuardIo::new(io, Busy::default(), PATIENCE);
        let drip = tokio::spawn(async move {
            while peer.write_u8(b'G').await.is_ok() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        });
        let start = Instant::now();
        while io.read_u8().await.is_ok() {}
        assert_eq!(start.elapsed().as_secs(), 10);
        drop(io);
        drip.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn between_requests_the_peer_may_idle() {
        let (io, mut peer) = duplex(64);
        let busy = Busy::default();
        let mut io = GuardIo::new(io, busy.clone(), PATIENCE);
        busy.set(true);
        peer.write_u8(b'b').await.unwrap();
        io.read_u8().await.unwrap();
        busy.set(false);
        let waiting = tokio::time::timeout(Duration::from_secs(100), io.read_u8()).await;
        assert!(waiting.is_err(), "idle is not over");
        peer.write_u8(b'G').await.unwrap();
        io.read_u8().await.unwrap();
        assert_eq!(silent_for(&mut io).await, 10, "a head has begun");
        busy.set(true);
        let body = tokio::time::timeout(Duration::from_secs(1000), io.read_u8()).await;
        assert!(body.is_err(), "a body has the deadline of its request");
        busy.set(false);
        assert_eq!(silent_for(&mut io).await, 120);
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (io, _peer) = duplex(4);
        let mut io = GuardIo::new(io, Busy::default(), PATIENCE);
        let start = Instant::now();
        let error = io.write_all(b"more than four").await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert_eq!(start.elapsed().as_secs(), 30);
    }
}
