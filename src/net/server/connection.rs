//! One connection, from its handshake to its last answer.

use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use axum::body::Body;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::request::{Handler, PIECE, answer};
use super::{LINGER, LINGER_BYTES, MAX_HEAD, Shared, Transport};
use crate::net::guard_io::GuardIo;
use crate::net::seats::{Phase, Seat, Seated};
use crate::net::tls::SharedTls;

/// Serves a connection until it ends or has to leave.
pub(super) async fn run<H: Handler>(stream: TcpStream, seated: Seated, shared: Arc<Shared<H>>) {
    until_left(&seated.seat, serve(stream, &seated.seat, &shared)).await;
}

/// Polls `serving` until it ends or has to leave. What was told to leave while its peer owed something may have got a whole
/// request in the same moment: that is answered, as the last.
async fn until_left(seat: &Seat, serving: impl Future<Output = ()>) {
    let mut serving = pin!(serving);
    let mut finishing = false;
    poll_fn(|cx| {
        let Some(at_once) = seat.must_leave(cx) else {
            return serving.as_mut().poll(cx);
        };
        if at_once {
            return Poll::Ready(());
        }
        finishing |= seat.may_finish();
        if finishing {
            seat.finish();
        }
        if serving.as_mut().poll(cx).is_ready() {
            return Poll::Ready(());
        }
        if !finishing && seat.may_finish() {
            finishing = true;
            cx.waker().wake_by_ref(); // so that it is told
        }
        if finishing { Poll::Pending } else { Poll::Ready(()) }
    })
    .await;
}

async fn serve<H: Handler>(stream: TcpStream, seat: &Arc<Seat>, shared: &Arc<Shared<H>>) {
    // An answer is one small write: waiting for more bytes to send only delays it.
    let _ = stream.set_nodelay(true);
    match &shared.transport {
        Transport::Plain => exchange(stream, seat, shared).await,
        Transport::Tls(tls) => match handshake(stream, tls, seat, shared).await {
            Ok(stream) => exchange(stream, seat, shared).await,
            Err(error) => tracing::debug!(%error, "TLS handshake failed"),
        },
    }
}

/// The TLS handshake. Its expensive step, the signature, waits for its turn, so that a storm of new connections leaves
/// time for the requests of those that are there.
async fn handshake<H: Handler>(
    stream: TcpStream,
    tls: &SharedTls,
    seat: &Seat,
    shared: &Shared<H>,
) -> io::Result<TlsStream<TcpStream>> {
    let hello = LazyConfigAcceptor::new(Acceptor::default(), stream).await?;
    seat.go_on_with(Phase::Queued);
    let signing = {
        let _turn = shared.handshakes.take().await;
        hello.into_stream(tls.load_full())
    };
    seat.go_on_with(Phase::Handshake);
    signing.await
}

/// The requests of one connection.
async fn exchange<S, H>(mut stream: S, seat: &Arc<Seat>, shared: &Arc<Shared<H>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Handler,
{
    seat.enter(Phase::Fresh);
    let io = TokioIo::new(GuardIo::new(&mut stream, Arc::clone(seat)));
    let service = service_fn(|request| answer(request, Arc::clone(seat), Arc::clone(shared)));
    // No timer is given to hyper: the deadlines are those of the seats.
    let connection = hyper::server::conn::http1::Builder::new().max_buf_size(MAX_HEAD).serve_connection(io, service);
    if let Err(error) = until_finished(connection, seat).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "connection ended");
    }
    let unread = match (seat.unread(), seat.phase()) {
        // hyper has refused it, as too long or as no head at all.
        (0, Phase::Head) => LINGER_BYTES,
        (bytes, _) => bytes,
    };
    if unread > 0 {
        seat.enter(Phase::Lingering);
        let _ = timeout(LINGER, linger(&mut stream, unread, shared)).await;
    }
}

/// Reads on what the peer sends, and throws it away: to close with bytes unread would reset the connection, and the answer
/// might be lost that the peer has not read yet (RFC 9112, section 9.6).
async fn linger<S: AsyncRead + Unpin, H>(stream: &mut S, at_most: usize, shared: &Shared<H>) {
    let (mut piece, mut rest) = (vec![0; 4 << 10], at_most);
    loop {
        let mut turn = 0;
        while turn < PIECE {
            match stream.read(&mut piece).await {
                Ok(len @ 1..) if len <= rest => (turn, rest) = (turn + len, rest - len),
                _ => return,
            }
        }
        drop(shared.lingering.take().await);
    }
}

/// Drives hyper's connection to its end, which is after the request that it has once it must finish.
async fn until_finished<I, S>(
    connection: hyper::server::conn::http1::Connection<I, S>,
    seat: &Seat,
) -> hyper::Result<()>
where
    I: hyper::rt::Read + hyper::rt::Write + Unpin,
    S: hyper::service::HttpService<Incoming, ResBody = Body, Error = Infallible>,
{
    let mut connection = pin!(connection);
    let mut told = false;
    poll_fn(|cx| {
        // First what has arrived: a request that is here already must not be lost because the server stops.
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        // Before its first request, and with half a head, a connection would be closed by this, while the rest is on its way.
        if told || !seat.must_finish() || matches!(seat.phase(), Phase::Fresh | Phase::Head) {
            return Poll::Pending;
        }
        told = true;
        connection.as_mut().graceful_shutdown();
        connection.as_mut().poll(cx)
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;
    use crate::net::seats::Seats;

    #[tokio::test]
    async fn who_has_a_whole_request_ends_it_before_leaving() {
        /// Told to leave before the first of these phases; how many of them are reached.
        async fn check(phases: &[Phase], cut: bool, expected: usize) {
            let seats = Arc::new(Seats::new(1));
            let seated = seats.take(IpAddr::from([10, 0, 0, 1])).unwrap();
            let seat = &seated.seat;
            if cut {
                seats.expel_everybody();
            } else {
                seats.expel_unbegun();
            }
            let mut reached = 0;
            let serving = async {
                for phase in phases {
                    seat.enter(*phase);
                    reached += 1;
                    tokio::task::yield_now().await;
                }
            };
            until_left(seat, serving).await;
            assert_eq!(reached, expected, "{phases:?}, cut {cut}");
            assert_eq!(seat.must_finish(), expected > 1, "{phases:?}, cut {cut}");
        }
        check(&[Phase::Busy, Phase::Answered, Phase::Idle], false, 3).await;
        check(&[Phase::Answered, Phase::Idle], false, 2).await;
        check(&[Phase::Idle, Phase::Head, Phase::Body, Phase::Busy], false, 4).await;
        check(&[Phase::Fresh, Phase::Head, Phase::Busy], false, 1).await;
        check(&[Phase::Head, Phase::Busy], false, 1).await;
        check(&[Phase::Body, Phase::Busy], false, 1).await;
        check(&[Phase::Hello, Phase::Handshake], false, 1).await;
        check(&[Phase::Busy, Phase::Answered], true, 0).await;
    }
}
