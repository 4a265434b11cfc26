//! A byte stream that keeps account of what its peer owes: the beginning of a request, or room for an answer.
//!
//! hyper's own header deadline also ends idle keep-alive connections. The API server keeps idle connections for 90
//! seconds, and a connection that the server closes first can swallow a review that is just being sent. So head and
//! idle time are told apart here; the deadlines themselves are those of [`super::seats`].

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::seats::{Phase, Seat};

pub(super) struct GuardIo<S> {
    inner: S,
    seat: Arc<Seat>,
}

impl<S> GuardIo<S> {
    pub fn new(inner: S, seat: Arc<Seat>) -> Self {
        Self { inner, seat }
    }

    fn written<T>(&self, result: Poll<T>) -> Poll<T> {
        self.seat.set_blocked(result.is_pending());
        result
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for GuardIo<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(cx, buf);
        let is_more = buf.filled().len() > before;
        // The next head is read only when the whole answer is written.
        match self.seat.phase() {
            Phase::Fresh | Phase::Idle | Phase::Answered if is_more => self.seat.enter(Phase::Head),
            Phase::Answered => self.seat.enter(Phase::Idle),
            _ => {}
        }
        read
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for GuardIo<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.written(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.written(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_flush(cx);
        self.written(result)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let result = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.written(result)
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use crate::net::seats::Seats;

    #[tokio::test]
    async fn the_first_byte_begins_a_head() {
        let seated = Arc::new(Seats::new(1)).take(IpAddr::from([10, 0, 0, 1])).unwrap();
        let seat = &seated.seat;
        let (io, mut peer) = duplex(64);
        let mut io = GuardIo::new(io, Arc::clone(seat));
        let mut check = async |before: Phase, bytes: usize, after: Phase| {
            seat.enter(before);
            peer.write_all(&vec![b'G'; bytes]).await.unwrap();
            let mut read = [0; 8];
            assert_eq!(futures::poll!(std::pin::pin!(io.read(&mut read))).is_ready(), bytes > 0, "{before:?}");
            assert_eq!(seat.phase(), after, "{before:?}, {bytes} bytes");
        };
        check(Phase::Fresh, 0, Phase::Fresh).await;
        check(Phase::Fresh, 1, Phase::Head).await;
        check(Phase::Head, 1, Phase::Head).await;
        check(Phase::Body, 1, Phase::Body).await;
        check(Phase::Busy, 0, Phase::Busy).await;
        check(Phase::Answered, 0, Phase::Idle).await;
        check(Phase::Answered, 1, Phase::Head).await;
        check(Phase::Idle, 1, Phase::Head).await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_peer_that_takes_nothing_is_noticed() {
        let seats = Arc::new(Seats::new(1));
        let seated = seats.take(IpAddr::from([10, 0, 0, 1])).unwrap();
        let (io, mut peer) = duplex(4);
        let mut io = GuardIo::new(io, Arc::clone(&seated.seat));
        seated.seat.enter(Phase::Answered);
        let taken = |seats: &Arc<Seats>| seats.take(IpAddr::from([10, 0, 0, 2])).is_some();
        assert!(futures::poll!(std::pin::pin!(io.write_all(b"more than four"))).is_pending());
        tokio::time::advance(std::time::Duration::from_millis(999)).await;
        assert!(!taken(&seats), "not for long");
        peer.read_exact(&mut [0; 4]).await.unwrap();
        assert!(futures::poll!(std::pin::pin!(io.write(b"more"))).is_ready());
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert!(!taken(&seats), "it took some");
        assert!(futures::poll!(std::pin::pin!(io.write(b"more"))).is_pending());
        tokio::time::advance(std::time::Duration::from_secs(1)).await;
        assert!(taken(&seats));
    }
}
