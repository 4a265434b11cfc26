use super::*;
use crate::telemetry::Metrics;

const PATIENCE: Patience = Patience {
    handshake: Duration::from_secs(10),
    header: Duration::from_secs(11),
    idle: Duration::from_secs(120),
    write: Duration::from_secs(30),
};

fn glance(phase: Phase, age_ms: u64) -> Glance {
    Glance { phase, age: Duration::from_millis(age_ms), blocked: Duration::ZERO, peers: 1 }
}

#[test]
fn the_state_is_what_was_entered() {
    let seat = Seat::new(Instant::now(), Arc::default());
    assert_eq!(seat.phase(), Phase::Hello);
    for phase in Phase::ALL {
        seat.enter(phase);
        assert_eq!(seat.phase(), phase);
        seat.go_on_with(phase);
        assert_eq!(seat.phase(), phase);
    }
}

#[test]
fn each_phase_has_its_patience() {
    fn check(phase: Phase, seconds: Option<u64>) {
        let overdue = |s: u64| glance(phase, s * 1000).is_overdue(&PATIENCE);
        match seconds {
            Some(seconds) => assert_eq!((overdue(seconds - 1), overdue(seconds)), (false, true), "{phase:?}"),
            None => assert!(!overdue(1_000_000), "{phase:?}"),
        }
    }
    check(Phase::Hello, Some(10));
    check(Phase::Handshake, Some(10));
    check(Phase::Queued, Some(10));
    check(Phase::Fresh, Some(120));
    check(Phase::Head, Some(11));
    check(Phase::Body, None);
    check(Phase::Busy, None);
    check(Phase::Answered, None);
    check(Phase::Idle, Some(120));
    check(Phase::Lingering, None);
    let blocked = |s| Glance { blocked: Duration::from_secs(s), ..glance(Phase::Answered, 0) };
    assert!(!blocked(29).is_overdue(&PATIENCE));
    assert!(blocked(30).is_overdue(&PATIENCE));
}

#[test]
fn a_seat_is_spared_only_while_the_peer_owes_something() {
    fn check(phase: Phase, from_ms: Option<u64>) {
        let spared = |ms| glance(phase, ms).spare(10).is_some();
        match from_ms {
            Some(ms) => assert_eq!((spared(ms - 1), spared(ms)), (false, true), "{phase:?}"),
            None => assert!(!spared(1_000_000), "{phase:?}"),
        }
    }
    check(Phase::Hello, Some(100));
    check(Phase::Handshake, Some(100));
    check(Phase::Queued, None);
    check(Phase::Fresh, Some(250));
    check(Phase::Head, Some(250));
    check(Phase::Body, Some(250));
    check(Phase::Busy, None);
    check(Phase::Answered, None);
    check(Phase::Idle, Some(250));
    check(Phase::Lingering, Some(100));
    let blocked = |ms| Glance { blocked: Duration::from_millis(ms), ..glance(Phase::Answered, 0) };
    assert!(blocked(999).spare(10).is_none());
    assert!(blocked(1000).spare(10).is_some());
}

#[test]
fn who_goes_first() {
    /// The first goes before the second, of ten seats.
    fn check(first: (Phase, u64, usize), second: (Phase, u64, usize)) {
        let key = |(phase, age_ms, peers)| Glance { peers, ..glance(phase, age_ms) }.spare(10).unwrap();
        assert!(key(first) > key(second), "{first:?} {second:?}");
    }
    // Who has said nothing.
    check((Phase::Hello, 200, 1), (Phase::Handshake, 9000, 2));
    check((Phase::Hello, 200, 1), (Phase::Head, 9000, 2));
    check((Phase::Lingering, 200, 1), (Phase::Head, 9000, 2));
    // Without a whole request before idle, the longest first.
    check((Phase::Fresh, 1000, 1), (Phase::Idle, 9000, 1));
    check((Phase::Body, 2000, 1), (Phase::Idle, 9000, 1));
    check((Phase::Idle, 3000, 1), (Phase::Idle, 2000, 1));
    check((Phase::Handshake, 300, 1), (Phase::Head, 299, 1));
    // Among equals the address with most of them.
    check((Phase::Idle, 2000, 3), (Phase::Idle, 9000, 2));
    check((Phase::Handshake, 200, 3), (Phase::Fresh, 9000, 2));
    // Up to half of all the API servers' proxy may hold, beyond that it loses first.
    check((Phase::Fresh, 1000, 1), (Phase::Idle, 9000, 5));
    check((Phase::Idle, 2000, 6), (Phase::Fresh, 9000, 1));
    check((Phase::Fresh, 1000, 6), (Phase::Idle, 9000, 6));
}

fn address(last: u8) -> IpAddr {
    IpAddr::from([10, 0, 0, last])
}

fn leaves(seat: &Seated) -> bool {
    seat.seat.leave.load(Ordering::Acquire)
}

#[tokio::test(start_paused = true)]
async fn a_newcomer_takes_the_seat_that_can_be_spared() {
    let seats = Arc::new(Seats::new(4));
    let held: Vec<_> = (0..4).map(|nth| seats.take(address(nth)).unwrap()).collect();
    assert!(seats.take(address(9)).is_none(), "none owes anything for long");
    for (nth, phase) in [Phase::Busy, Phase::Idle, Phase::Head, Phase::Busy].into_iter().enumerate() {
        held[nth].seat.enter(phase);
    }
    tokio::time::advance(Duration::from_secs(2)).await;
    let fifth = seats.take(address(9)).unwrap();
    assert_eq!(held.iter().map(leaves).collect::<Vec<_>>(), [false, false, true, false]);
    fifth.seat.enter(Phase::Busy);
    let sixth = seats.take(address(9)).unwrap();
    assert_eq!(held.iter().map(leaves).collect::<Vec<_>>(), [false, true, true, false]);
    sixth.seat.enter(Phase::Busy);
    assert!(seats.take(address(9)).is_none(), "all are being answered");
    drop(held);
    let more: Vec<_> = (0..2).map(|nth| seats.take(address(nth)).unwrap()).collect();
    assert!(seats.take(address(9)).is_none(), "four are four again");
    drop((fifth, sixth, more));
    let table = seats.lock();
    assert_eq!((table.seats.len(), table.leaving, table.peers.len()), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn those_who_are_leaving_are_few() {
    let seats = Arc::new(Seats::new(8));
    let mut held: Vec<_> = (0..8).map(|_| seats.take(address(1)).unwrap()).collect();
    tokio::time::advance(Duration::from_secs(1)).await;
    while let Some(seated) = seats.take(address(2)) {
        held.push(seated);
    }
    assert_eq!(held.len(), 8 + 3, "nobody has let go yet");
}

#[tokio::test(start_paused = true)]
async fn the_sweep_closes_what_is_overdue_and_nothing_else() {
    let seats = Arc::new(Seats::new(8));
    let (head, idle, busy) = (seats.take(address(1)).unwrap(), seats.take(address(1)).unwrap(), seats.take(address(1)));
    let busy = busy.unwrap();
    head.seat.enter(Phase::Head);
    idle.seat.enter(Phase::Idle);
    busy.seat.enter(Phase::Busy);
    tokio::time::advance(Duration::from_secs(11)).await;
    seats.sweep(&PATIENCE);
    assert_eq!((leaves(&head), leaves(&idle), leaves(&busy)), (true, false, false));
    seats.expel_unbegun();
    assert_eq!((leaves(&idle), leaves(&busy)), (true, false));
    seats.expel_everybody();
    assert!(leaves(&busy));
    for seated in [&head, &idle, &busy] {
        assert!(seated.seat.cut.load(Ordering::Acquire));
    }
}

#[tokio::test(start_paused = true)]
async fn the_slowest_body_gives_way() {
    let seats = Arc::new(Seats::new(8));
    let held: Vec<_> = (0..3).map(|_| seats.take(address(1)).unwrap()).collect();
    held[0].seat.enter(Phase::Head);
    held[1].seat.enter(Phase::Body);
    tokio::time::advance(Duration::from_millis(999)).await;
    held[2].seat.enter(Phase::Body);
    seats.push_out_slowest_body();
    assert!(!held.iter().any(leaves), "none is slow yet");
    tokio::time::advance(Duration::from_millis(1)).await;
    seats.push_out_slowest_body();
    assert_eq!(held.iter().map(leaves).collect::<Vec<_>>(), [false, true, false]);
}

#[tokio::test(start_paused = true)]
async fn those_told_to_leave_are_counted_once() {
    let metrics = Metrics::new();
    let seats = Arc::new(Seats::new(8).counting(metrics.server()));
    let check = |pushed_out: usize, overdue: usize| {
        let text = metrics.encode();
        for (reason, count) in [("pushed-out", pushed_out), ("overdue", overdue)] {
            let line = format!("kimup_connections_closed_total{{reason=\"{reason}\"}} {count}\n");
            assert!(text.contains(&line), "no {line} in {text}");
        }
    };
    let mut held: Vec<_> = (0..8).map(|_| seats.take(address(1)).unwrap()).collect();
    for seated in &held {
        seated.seat.enter(Phase::Head);
    }
    held[0].seat.enter(Phase::Body);
    tokio::time::advance(Duration::from_secs(1)).await;
    check(0, 0);
    seats.push_out_slowest_body();
    check(1, 0);
    held.push(seats.take(address(2)).unwrap());
    check(1, 0);
    held.push(seats.take(address(2)).unwrap());
    check(2, 0);
    tokio::time::advance(Duration::from_secs(11)).await;
    seats.sweep(&PATIENCE);
    check(2, 8);
    seats.sweep(&PATIENCE);
    check(2, 8);
}
