//! Who holds a connection, what it waits for, and who goes when there are too many or one takes too long.
//!
//! A seat is what the server knows of a connection. Its state is two numbers that the connection writes without a lock;
//! one sweep reads all of them now and then, which costs less than a timer for each.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::Duration;

use futures::task::AtomicWaker;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::telemetry::{ConnectionEnd, ServerCounts};

/// What a connection is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The peer has not said a whole TLS hello.
    Hello,
    /// The TLS handshake waits for its turn here.
    Queued,
    /// The peer owes the end of the TLS handshake.
    Handshake,
    /// The peer has not begun its first request.
    Fresh,
    /// A request head has begun.
    Head,
    /// The rest of a request body is being waited for.
    Body,
    /// A request is being handled.
    Busy,
    /// Its answer is being written.
    Answered,
    /// Between two requests.
    Idle,
    /// A request was refused, and its peer may still be sending it.
    Lingering,
}

impl Phase {
    const ALL: [Self; 10] = [
        Self::Hello,
        Self::Queued,
        Self::Handshake,
        Self::Fresh,
        Self::Head,
        Self::Body,
        Self::Busy,
        Self::Answered,
        Self::Idle,
        Self::Lingering,
    ];

    fn of(state: u64) -> Self {
        Self::ALL.get((state % SCALE) as usize).copied().unwrap_or(Self::Hello)
    }
}

/// A state is `milliseconds * SCALE + phase`.
const SCALE: u64 = 16;

/// How long a peer may take; times count from the beginning of what they name.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For the TLS handshake.
    pub handshake: Duration,
    /// For a request head, from its first byte.
    pub header: Duration,
    /// Before the first request, and between two.
    pub idle: Duration,
    /// For taking some bytes of an answer.
    pub write: Duration,
}

impl Patience {
    /// How often to look whether it has ended.
    pub fn tick(&self) -> Duration {
        let shortest = self.handshake.min(self.header).min(self.idle).min(self.write);
        (shortest / 4).clamp(Duration::from_millis(10), Duration::from_secs(1))
    }
}

/// How long a connection keeps its seat against a newcomer while its peer owes bytes that take one round trip.
const GRACE: Duration = Duration::from_millis(100);
/// The same while it owes a request, or its next one may be on its way. Less than a newcomer waits, who so gets a seat if
/// there is one at all.
const LONG_GRACE: Duration = Duration::from_millis(250);
/// How long a peer takes no bytes of an answer before it is a reason, and how long a body has been coming that gives way
/// to other bodies.
const SLOW: Duration = Duration::from_secs(1);

/// One connection at one moment.
#[derive(Debug, Clone, Copy)]
struct Glance {
    phase: Phase,
    /// How long it has been in this phase.
    age: Duration,
    /// How long its peer has taken no bytes.
    blocked: Duration,
    /// Connections from the same address.
    peers: usize,
}

impl Glance {
    /// How well a connection can be spared when there are `max`: the greatest goes first. `None`: it stays, since a
    /// request is being answered, or the peer owes nothing, or not for long.
    ///
    /// An address that holds more than half of all seats loses first. All API servers may come from one address (a proxy,
    /// konnectivity), so a share alone is no reason to close anything. Then come those that have said nothing, then those
    /// without a whole request.
    fn spare(self, max: usize) -> Option<(bool, u8, usize, Duration)> {
        let (rank, grace) = match self.phase {
            _ if self.blocked >= SLOW => (1, Duration::ZERO),
            Phase::Hello | Phase::Lingering => (2, GRACE),
            Phase::Handshake => (1, GRACE),
            Phase::Fresh | Phase::Head | Phase::Body => (1, LONG_GRACE),
            Phase::Idle => (0, LONG_GRACE),
            Phase::Queued | Phase::Busy | Phase::Answered => return None,
        };
        (self.age >= grace).then_some((self.peers * 2 > max, rank, self.peers, self.age))
    }

    fn is_overdue(self, patience: &Patience) -> bool {
        let limit = match self.phase {
            Phase::Hello | Phase::Queued | Phase::Handshake => patience.handshake,
            Phase::Fresh | Phase::Idle => patience.idle,
            Phase::Head => patience.header,
            // These have deadlines of their own.
            Phase::Body | Phase::Busy | Phase::Answered | Phase::Lingering => Duration::MAX,
        };
        self.age >= limit || self.blocked >= patience.write
    }
}

/// One connection, as all can see it.
pub(super) struct Seat {
    epoch: Instant,
    /// The phase, and since when.
    state: AtomicU64,
    /// Since when the peer takes no bytes, in milliseconds; 0: it does.
    blocked: AtomicU64,
    peers: Arc<AtomicUsize>,
    leave: AtomicBool,
    cut: AtomicBool,
    finish: AtomicBool,
    unread: AtomicUsize,
    task: AtomicWaker,
}

impl Seat {
    fn new(epoch: Instant, peers: Arc<AtomicUsize>) -> Self {
        let seat = Self {
            epoch,
            state: AtomicU64::default(),
            blocked: AtomicU64::default(),
            peers,
            leave: AtomicBool::default(),
            cut: AtomicBool::default(),
            finish: AtomicBool::default(),
            unread: AtomicUsize::default(),
            task: AtomicWaker::new(),
        };
        seat.enter(Phase::Hello);
        seat
    }

    /// Begins a phase.
    pub fn enter(&self, phase: Phase) {
        self.state.store(self.now() * SCALE + phase as u64, Ordering::Relaxed);
    }

    /// Changes the phase, and not since when, which costs nothing: the time of both counts together, or that of the new one
    /// does not count at all.
    pub fn go_on_with(&self, phase: Phase) {
        let since = self.state.load(Ordering::Relaxed) / SCALE;
        self.state.store(since * SCALE + phase as u64, Ordering::Relaxed);
    }

    pub fn phase(&self) -> Phase {
        Phase::of(self.state.load(Ordering::Relaxed))
    }

    /// Whether the peer takes bytes of an answer.
    pub fn set_blocked(&self, blocked: bool) {
        let was = self.blocked.load(Ordering::Relaxed) != 0;
        if was != blocked {
            self.blocked.store(if blocked { self.now().max(1) } else { 0 }, Ordering::Relaxed);
        }
    }

    /// Whether the connection has to end; `Some(true)`: whatever it does. Wakes the task when that, or
    /// [`Seat::must_finish`], changes.
    pub fn must_leave(&self, cx: &Context<'_>) -> Option<bool> {
        self.task.register(cx.waker());
        self.leave.load(Ordering::Acquire).then(|| self.cut.load(Ordering::Acquire))
    }

    /// Whether a connection that has to leave may do so after its request: one is being answered to a peer that takes it, or
    /// may just be arriving. It was chosen a moment ago, perhaps in another phase.
    pub fn may_finish(&self) -> bool {
        match self.phase() {
            Phase::Idle | Phase::Busy => true,
            Phase::Answered => self.blocked.load(Ordering::Relaxed) == 0,
            Phase::Hello
            | Phase::Queued
            | Phase::Handshake
            | Phase::Fresh
            | Phase::Head
            | Phase::Body
            | Phase::Lingering => false,
        }
    }

    /// Makes the request that the connection has, if it has one, the last.
    pub fn finish(&self) {
        self.finish.store(true, Ordering::Release);
    }

    /// Whether the connection ends with the request that it has, if it has one.
    pub fn must_finish(&self) -> bool {
        self.finish.load(Ordering::Acquire)
    }

    /// The last request was refused, and its peer may still send so many bytes of it as are worth reading.
    pub fn leave_unread(&self, bytes: usize) {
        self.unread.store(bytes, Ordering::Relaxed);
    }

    /// What [`Seat::leave_unread`] was told.
    pub fn unread(&self) -> usize {
        self.unread.load(Ordering::Relaxed)
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX / SCALE)
    }

    fn glance(&self, now: u64) -> Glance {
        let (state, blocked) = (self.state.load(Ordering::Relaxed), self.blocked.load(Ordering::Relaxed));
        Glance {
            phase: Phase::of(state),
            age: Duration::from_millis(now.saturating_sub(state / SCALE)),
            blocked: Duration::from_millis(if blocked == 0 { 0 } else { now.saturating_sub(blocked) }),
            peers: self.peers.load(Ordering::Relaxed),
        }
    }
}

/// All connections of a server.
pub(super) struct Seats {
    max: usize,
    epoch: Instant,
    table: Mutex<Table>,
    freed: Notify,
    counts: ServerCounts,
}

#[derive(Default)]
struct Table {
    next: u64,
    seats: HashMap<u64, Arc<Seat>>,
    /// How many of them have been told to leave and have not left yet.
    leaving: usize,
    peers: HashMap<IpAddr, Arc<AtomicUsize>>,
}

impl Table {
    /// Tells a connection to leave, and when told again, to leave whatever it does. The waker is to be called without the
    /// lock.
    fn expel(&mut self, seat: &Seat) -> Option<Waker> {
        if seat.leave.swap(true, Ordering::AcqRel) {
            seat.cut.store(true, Ordering::Release);
        } else {
            self.leaving += 1;
        }
        seat.task.take()
    }

    fn seat(&mut self, peer: IpAddr, epoch: Instant) -> (u64, Arc<Seat>) {
        let peers = Arc::clone(self.peers.entry(peer).or_default());
        peers.fetch_add(1, Ordering::Relaxed);
        let (id, seat) = (self.next, Arc::new(Seat::new(epoch, peers)));
        self.next += 1;
        self.seats.insert(id, Arc::clone(&seat));
        (id, seat)
    }
}

impl Seats {
    pub fn new(max: usize) -> Self {
        let (epoch, counts) = (Instant::now(), ServerCounts::default());
        Self { max, epoch, table: Mutex::default(), freed: Notify::new(), counts }
    }

    /// The same, where those whom it tells to leave are counted.
    pub fn counting(self, counts: ServerCounts) -> Self {
        Self { counts, ..self }
    }

    /// A seat for a new connection: a free one, or that of the connection that can best be spared. `None`: there is
    /// neither.
    pub fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Seated> {
        let peer = peer.to_canonical();
        let mut table = self.lock();
        let mut woken = None;
        if table.seats.len() - table.leaving >= self.max {
            // Those that are leaving still hold memory: there must not be many of them.
            if table.leaving > self.max / 4 {
                return None;
            }
            let best = self.find(&table, |glance| glance.spare(self.max))?;
            woken = table.expel(&best);
            self.counts.closed(ConnectionEnd::PushedOut, 1);
        }
        let (id, seat) = table.seat(peer, self.epoch);
        drop(table);
        woken.into_iter().for_each(Waker::wake);
        Some(Seated { seats: Arc::clone(self), id, peer, seat })
    }

    /// Waits until somebody has left since the last call, or `at_most` this long.
    pub async fn freed(&self, at_most: Duration) {
        let _ = tokio::time::timeout(at_most, self.freed.notified()).await;
    }

    /// Closes the connection whose body has been coming for the longest, if that is long.
    pub fn push_out_slowest_body(&self) {
        let mut table = self.lock();
        let slow = |glance: Glance| glance.phase == Phase::Body && glance.age >= SLOW;
        let found = self.find(&table, |glance| slow(glance).then_some(glance.age));
        self.counts.closed(ConnectionEnd::PushedOut, usize::from(found.is_some()));
        let woken = found.and_then(|seat| table.expel(&seat));
        drop(table);
        woken.into_iter().for_each(Waker::wake);
    }

    /// Closes what has taken longer than it may.
    pub fn sweep(&self, patience: &Patience) {
        let fresh = self.expel_all(|glance| glance.is_overdue(patience));
        self.counts.closed(ConnectionEnd::Overdue, fresh);
    }

    /// Closes what has not got as far as a whole request head.
    pub fn expel_unbegun(&self) {
        self.expel_all(|glance| !matches!(glance.phase, Phase::Body | Phase::Busy | Phase::Answered));
    }

    /// Closes everything now.
    pub fn expel_everybody(&self) {
        self.expel_all(|_| true);
        self.expel_all(|_| true);
    }

    /// Lets everybody finish the request they have and leave.
    pub fn finish_all(&self) {
        let seats: Vec<_> = self.lock().seats.values().cloned().collect();
        for seat in seats {
            seat.finish();
            seat.task.wake();
        }
    }

    /// How many of them had not been told before.
    fn expel_all(&self, which: impl Fn(Glance) -> bool) -> usize {
        let now = self.now();
        let mut table = self.lock();
        let before = table.leaving;
        let found: Vec<_> = table.seats.values().filter(|seat| which(seat.glance(now))).cloned().collect();
        let woken: Vec<_> = found.iter().filter_map(|seat| table.expel(seat)).collect();
        let fresh = table.leaving - before;
        drop(table);
        woken.into_iter().for_each(Waker::wake);
        fresh
    }

    /// The one with the greatest `key` of those that are not leaving yet.
    fn find<K: Ord>(&self, table: &Table, key: impl Fn(Glance) -> Option<K>) -> Option<Arc<Seat>> {
        let now = self.now();
        let staying = table.seats.values().filter(|seat| !seat.leave.load(Ordering::Acquire));
        let keyed = staying.filter_map(|seat| Some((key(seat.glance(now))?, seat)));
        keyed.max_by(|(one, _), (other, _)| one.cmp(other)).map(|(_, seat)| Arc::clone(seat))
    }

    fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX / SCALE)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A connection's hold on its seat, until it is dropped.
pub(super) struct Seated {
    seats: Arc<Seats>,
    id: u64,
    peer: IpAddr,
    pub seat: Arc<Seat>,
}

impl Drop for Seated {
    fn drop(&mut self) {
        let mut table = self.seats.lock();
        table.seats.remove(&self.id);
        if self.seat.leave.load(Ordering::Acquire) {
            table.leaving -= 1;
        }
        if self.seat.peers.fetch_sub(1, Ordering::Relaxed) == 1 {
            table.peers.remove(&self.peer);
        }
        drop(table);
        self.seats.freed.notify_one();
    }
}

#[cfg(test)]
mod tests;
