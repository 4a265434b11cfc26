//! What clients can do to the webhook: its memory and connections stay bounded, and others are answered.
//! `make bench-attacks` measures how fast.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "../benches/attacks/attack.rs"]
#[allow(dead_code)] // what only the bench reads
mod attack;
#[path = "../benches/attacks/client.rs"]
#[allow(dead_code)]
mod client;
#[path = "../benches/attacks/server.rs"]
mod server;

use std::time::Duration;

use attack::{Attack, CROWD, descriptors, observe};
use server::Server;

const MIB: usize = 1 << 20;
/// The connections that a server has at most, those that are just leaving included, and what else is a socket.
const SOCKETS: usize = 512 / 4 * 5 + 16;

#[test]
fn others_are_answered_and_memory_is_bounded() {
    for attack in Attack::ALL {
        let server = Server::start(false);
        let idle = server.peak();
        let round = observe(&server, Duration::from_secs(2), Some(attack));
        let (seen, sockets, peak) = (round.seen, round.sockets, server.peak());
        println!(
            "{attack:?}: {} MiB, {} before, {sockets} sockets, {} answers, {} lost, {} on new connections, {} lost, {:.0} % of the attack",
            peak / MIB,
            idle / MIB,
            seen.answers.len(),
            seen.lost,
            seen.new_answers.len(),
            seen.new_lost,
            round.reached * 100.0
        );
        assert_eq!((seen.lost, seen.new_lost), (0, 0), "{attack:?}: requests were lost, also on new connections");
        assert!(!seen.answers.is_empty() && !seen.new_answers.is_empty(), "{attack:?}: nobody was answered");
        assert!(round.reached > 0.5, "{attack:?}: that was no attack");
        // A program that is not built for release is larger by itself.
        assert!(peak - idle < 48 * MIB, "{attack:?}: {} MiB, {} before", peak / MIB, idle / MIB);
        assert!(sockets <= SOCKETS, "{attack:?}: {sockets} sockets");
    }
}

#[test]
fn ten_thousand_connections_are_as_many_as_that() {
    use rustix::process::{Resource, getrlimit};
    let hard = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    let server = Server::start(false); // takes what the hard limit allows
    let crowd = descriptors(CROWD);
    assert!(crowd == CROWD || hard < CROWD as u64 + 500, "{crowd} of {CROWD} connections, with a hard limit of {hard}");
    drop(server);
}
