//! One request: its body within bounds, its deadline, and an answer whatever the handler does.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::DefaultBodyLimit;
use bytes::Bytes;
use futures::FutureExt;
use http::header::{CONNECTION, RETRY_AFTER};
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::error::Elapsed;
use tokio::time::timeout;
use tower::Service;

use super::turns::Turns;
use super::{LINGER_BYTES, Shared};
use crate::net::seats::{Phase, Seat, Seats};
use crate::telemetry::Refused;

/// Bytes of a body that do not count against [`super::ServerOptions::bodies_in_memory`]: every connection may have them.
const FREE: usize = 16 << 10;
/// Largest buffer that is made because a head says that so much will come.
const FIRST_BUFFER: usize = 128 << 10;
/// How long a body waits for others to end when there are too many bytes of them.
const WAIT: Duration = Duration::from_millis(250);

/// How much of a body is read before it waits for turns: more than most reviews have.
const FIRST_PIECE: usize = 128 << 10;
/// How much is read of it in a turn: some 30 µs of work.
pub(super) const PIECE: usize = 32 << 10;

/// What answers requests. Bodies are read before, so that a handler meets neither slow nor endless ones.
///
/// Each connection handles one request at a time; `self` is shared by all.
pub trait Handler: Clone + Send + Sync + 'static {
    /// The answer. A panic is answered 500.
    fn handle(&self, request: Request<Bytes>) -> impl Future<Output = Response<Body>> + Send;
}

impl Handler for Router {
    async fn handle(&self, request: Request<Bytes>) -> Response<Body> {
        let mut request = request.map(Body::from);
        // axum's own limit of 2 MB would refuse large reviews; the body is within the server's limit already.
        DefaultBodyLimit::disable().apply(&mut request);
        match self.clone().call(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

/// How many bytes of bodies are held at once.
pub(super) struct Bodies {
    /// In KiB.
    budget: Arc<Semaphore>,
    limit: usize,
    /// For each further piece of a body.
    turns: Turns,
}

impl Bodies {
    pub fn new(limit: usize, in_memory: usize) -> Self {
        // More than a body may have: or the largest could never be read.
        let kibibytes = in_memory.max(limit) >> 10;
        Self { budget: Arc::new(Semaphore::new(kibibytes + 1)), limit, turns: Turns::new(1) }
    }

    /// Room for `len` bytes of one body in all. Waits shortly, and makes the slowest body give way.
    async fn reserve(&self, held: &mut Option<OwnedSemaphorePermit>, len: usize, seats: &Seats) -> Result<(), Refusal> {
        let have = held.as_ref().map_or(0, OwnedSemaphorePermit::num_permits);
        let need = len.saturating_sub(FREE).div_ceil(1 << 10);
        let more = u32::try_from(need.saturating_sub(have)).map_err(|_| Refusal::TooLarge)?;
        if more == 0 {
            return Ok(());
        }
        let permit = if let Ok(permit) = Arc::clone(&self.budget).try_acquire_many_owned(more) {
            permit
        } else {
            seats.push_out_slowest_body();
            let waiting = Arc::clone(&self.budget).acquire_many_owned(more);
            timeout(WAIT, waiting).await.ok().and_then(Result::ok).ok_or(Refusal::Overload)?
        };
        match held {
            Some(held) => held.merge(permit),
            None => *held = Some(permit),
        }
        Ok(())
    }

    /// The whole body, and what it holds of the budget.
    async fn read(
        &self,
        body: &mut Incoming,
        seat: &Seat,
        seats: &Seats,
    ) -> Result<(Bytes, Option<OwnedSemaphorePermit>), Refusal> {
        let announced = body.size_hint().exact();
        if announced.unwrap_or(0) > self.limit as u64 {
            return Err(Refusal::TooLarge);
        }
        let mut held = None;
        seat.go_on_with(Phase::Body);
        let Some(first) = next(body).await? else {
            return Ok((Bytes::new(), held));
        };
        if announced == Some(first.len() as u64) {
            return Ok((first, held)); // in one piece, as most are
        }
        let most = announced.and_then(|length| usize::try_from(length).ok()).unwrap_or(self.limit);
        let mut whole = Vec::with_capacity(if announced.is_some() { most.min(FIRST_BUFFER) } else { first.len() });
        let mut piece = Some(first);
        let mut next_turn = FIRST_PIECE;
        while let Some(bytes) = piece {
            let len = whole.len() + bytes.len();
            if len > self.limit {
                return Err(Refusal::TooLarge);
            }
            // Until the next piece is waited for, it is not the peer that owes something.
            seat.go_on_with(Phase::Busy);
            self.reserve(&mut held, len, seats).await?;
            if len > whole.capacity() {
                let room = (whole.capacity() * 2).min(most).max(len);
                whole.reserve_exact(room - whole.len());
            }
            whole.extend_from_slice(&bytes);
            if whole.len() >= next_turn {
                next_turn = whole.len() + PIECE;
                drop(self.turns.take().await);
            }
            seat.go_on_with(Phase::Body);
            piece = next(body).await?;
        }
        Ok((whole.into(), held))
    }
}

/// The next bytes of a body; none at its end. Trailers are no part of it.
async fn next(body: &mut Incoming) -> Result<Option<Bytes>, Refusal> {
    loop {
        match body.frame().await {
            None => return Ok(None),
            Some(Err(_)) => return Err(Refusal::Broken),
            Some(Ok(frame)) => {
                if let Ok(bytes) = frame.into_data() {
                    return Ok(Some(bytes));
                }
            }
        }
    }
}

/// As [`timeout`], without a timer for what is done at once, as most is; `waits` is called if it is not.
async fn within<F: Future>(time: Duration, future: F, waits: impl FnOnce()) -> Result<F::Output, Elapsed> {
    let mut future = pin!(future);
    match futures::poll!(&mut future) {
        Poll::Ready(done) => Ok(done),
        Poll::Pending => {
            waits();
            timeout(time, future).await
        }
    }
}

/// Why a request does not get as far as its handler.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    TooLarge,
    TooSlow,
    Broken,
    Overload,
}

impl Refusal {
    fn counted(self) -> Refused {
        match self {
            Self::TooLarge => Refused::TooLarge,
            Self::TooSlow => Refused::TooSlow,
            Self::Broken => Refused::Broken,
            Self::Overload => Refused::Overload,
        }
    }

    fn response(self) -> Response<Body> {
        let (status, text) = match self {
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "the body is too large\n"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "the body took too long\n"),
            Self::Broken => (StatusCode::BAD_REQUEST, "the body cannot be read\n"),
            Self::Overload => (StatusCode::SERVICE_UNAVAILABLE, "too many large requests at once, try again\n"),
        };
        let mut response = plain(status, text);
        if self == Self::Overload {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        close(&mut response); // the rest of the body is no request
        response
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(text));
    *response.status_mut() = status;
    response
}

fn close(response: &mut Response<Body>) {
    response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
}

/// The answer to one request. It says `Connection: close` while the server stops, and when the connection is given to another:
/// so clients move over by themselves, and none of them sends a request into a connection that is being closed.
pub(super) async fn answer<H: Handler>(
    request: Request<Incoming>,
    seat: Arc<Seat>,
    shared: Arc<Shared<H>>,
) -> Result<Response<Body>, Infallible> {
    // Most bodies have arrived with their heads; nobody owes anything then, and no clock needs to be read.
    seat.go_on_with(Phase::Busy);
    let (parts, mut body) = request.into_parts();
    let reading = shared.bodies.read(&mut body, &seat, &shared.seats);
    // From the first wait on, whoever it is for.
    let read = within(shared.options.body_timeout, reading, || seat.enter(seat.phase())).await;
    let read = read.unwrap_or(Err(Refusal::TooSlow));
    let mut response = match read {
        Ok((bytes, held)) => {
            seat.go_on_with(Phase::Busy);
            let response = handle(Request::from_parts(parts, bytes), &shared).await;
            drop(held);
            response
        }
        Err(refusal) => {
            tracing::debug!(?refusal, "refused a request");
            shared.options.counts.refused(refusal.counted());
            seat.leave_unread(match refusal {
                Refusal::Overload => shared.options.body_limit,
                Refusal::TooLarge | Refusal::TooSlow | Refusal::Broken => LINGER_BYTES,
            });
            refusal.response()
        }
    };
    if shared.is_stopping() || seat.must_finish() {
        close(&mut response);
    }
    seat.go_on_with(Phase::Answered);
    Ok(response)
}

async fn handle<H: Handler>(request: Request<Bytes>, shared: &Shared<H>) -> Response<Body> {
    let handling = AssertUnwindSafe(async { shared.handler.handle(request).await }).catch_unwind();
    match within(shared.options.request_timeout, handling, || {}).await {
        Ok(Ok(response)) => response,
        // The panic itself is on stderr by then, and may quote what is not the client's to read.
        Ok(Err(_)) => {
            tracing::error!("a request handler panicked");
            plain(StatusCode::INTERNAL_SERVER_ERROR, "internal error, see kimup's log\n")
        }
        Err(_) => {
            shared.options.counts.refused(Refused::Timeout);
            plain(StatusCode::GATEWAY_TIMEOUT, "the answer took too long\n")
        }
    }
}
