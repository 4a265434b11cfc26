//! What clients can do to the webhook's server: its memory and connections stay bounded, and others are answered.
//! `make bench-attacks` measures how fast.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../benches/attacks/attack.rs"]
#[allow(dead_code)] // what only the bench reads
mod attack;

use std::time::Duration;

use attack::{Attack, Server, observe};

const MIB: usize = 1 << 20;
/// The connections that a server has at most, those that are just leaving included, and what else is a socket.
const SOCKETS: usize = 512 / 4 * 5 + 16;

#[test]
fn the_process_that_serves() {
    if std::env::var_os(attack::SERVE).is_some() {
        attack::serve();
    }
}

#[test]
fn others_are_answered_and_memory_is_bounded() {
    for attack in Attack::ALL {
        let server = Server::start(&["--exact", "the_process_that_serves", "--nocapture"]);
        let (seen, sockets) = observe(&server.target, Duration::from_secs(2), Some(attack), || server.sockets());
        let (peak, answered) = (server.peak(), seen.answers.len());
        println!(
            "{attack:?}: {} MiB, {sockets} sockets, {answered} answers, {} on new connections, {} lost",
            peak / MIB,
            seen.new_answers.len(),
            seen.new_lost
        );
        assert_eq!(seen.lost, 0, "{attack:?}: requests on a connection in use were lost");
        assert!(answered > 0 && !seen.new_answers.is_empty(), "{attack:?}: nobody was answered");
        assert!(peak < 64 * MIB, "{attack:?}: {} MiB", peak / MIB);
        assert!(sockets <= SOCKETS, "{attack:?}: {sockets} sockets");
    }
}
