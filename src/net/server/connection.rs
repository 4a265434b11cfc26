//! One connection, from its handshake to its last answer.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::yield_now;
use tokio_rustls::LazyConfigAcceptor;
use tokio_rustls::server::TlsStream;

use super::request::{Handler, answer};
use super::{MAX_HEAD, Shared, Transport};
use crate::net::guard_io::GuardIo;
use crate::net::seats::{Phase, Seat, Seated};
use crate::net::tls::SharedTls;

/// Serves a connection until it ends or has to leave.
pub(super) async fn run<H: Handler>(stream: TcpStream, seated: Seated, shared: Arc<Shared<H>>) {
    let seat = &seated.seat;
    let mut serving = pin!(serve(stream, seat, &shared));
    let mut finishing = false;
    poll_fn(|cx| {
        if let Some(at_once) = seat.must_leave(cx) {
            // A request may just have arrived on an idle connection: then it is the last.
            finishing |= seat.phase() == Phase::Idle;
            if at_once || !finishing {
                return Poll::Ready(());
            }
            seat.finish();
        }
        serving.as_mut().poll(cx)
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
        // The semaphore is never closed; without a permit it would only not be counted.
        let _turn = shared.handshakes.acquire().await;
        // Whatever has arrived meanwhile goes first.
        yield_now().await;
        hello.into_stream(tls.load_full())
    };
    seat.go_on_with(Phase::Handshake);
    signing.await
}

/// The requests of one connection.
async fn exchange<S, H>(stream: S, seat: &Arc<Seat>, shared: &Arc<Shared<H>>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
    H: Handler,
{
    seat.enter(Phase::Fresh);
    let io = TokioIo::new(GuardIo::new(stream, Arc::clone(seat)));
    let service = service_fn(|request| answer(request, Arc::clone(seat), Arc::clone(shared)));
    // No timer is given to hyper: the deadlines are those of the seats.
    let connection = hyper::server::conn::http1::Builder::new().max_buf_size(MAX_HEAD).serve_connection(io, service);
    let mut connection = pin!(connection);
    let mut told = false;
    let result = poll_fn(|cx| {
        // First what has arrived: a request that is here already must not be lost because the server stops.
        if let Poll::Ready(result) = connection.as_mut().poll(cx) {
            return Poll::Ready(result);
        }
        // Before its first request a connection would be closed by this, while that request may be on its way.
        if told || !seat.must_finish() || seat.phase() == Phase::Fresh {
            return Poll::Pending;
        }
        told = true;
        connection.as_mut().graceful_shutdown();
        connection.as_mut().poll(cx)
    });
    if let Err(error) = result.await {
        tracing::debug!(error = &error as &dyn std::error::Error, "connection ended");
    }
}
