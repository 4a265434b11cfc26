//! How fast the webhook answers a well-behaved client while others attack it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attack;
mod client;
mod server;

use std::process::ExitCode;
use std::time::Duration;

use attack::{Attack, CROWD, Round, descriptors, observe};
use client::percentile;
use server::Server;

/// p99 under attack by p99 before, at most.
const RATIO_BAR: f64 = 2.0;
/// Resident memory, at most.
const MEMORY_BAR: usize = 64 << 20;
/// What attackers do of what they mean to, at least: or it was no attack.
const REACHED_BAR: f64 = 0.9;
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_secs(3);

fn main() -> ExitCode {
    // Names of attacks, for those who want to see some only.
    let named: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let wanted = |attack: &Attack| named.is_empty() || named.contains(&format!("{attack:?}"));
    println!("             client's connection              new connections       server");
    println!(
        "attack       p99 before  p99 under ratio lost p50 before p50 under lost  core before core under sockets peak MiB  reached"
    );
    let passed: Vec<bool> = Attack::ALL.into_iter().filter(wanted).map(measure).collect();
    let crowd = descriptors(CROWD);
    if crowd < CROWD {
        println!("Idle had {crowd} connections only: raise the hard limit of open files (ulimit -Hn)");
    }
    if passed.contains(&false) {
        eprintln!(
            "a bar is missed: ratio {RATIO_BAR}, nothing lost, {} MiB, {REACHED_BAR} of what attackers want",
            MEMORY_BAR >> 20
        );
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

/// A line of the table, and whether it is within the bars.
fn measure(attack: Attack) -> bool {
    let server = Server::start(true);
    observe(&server, Duration::from_secs(1), None);
    let mut rounds: Vec<(Round, Round)> =
        (0..ROUNDS).map(|_| (observe(&server, ROUND, None), observe(&server, ROUND, Some(attack)))).collect();
    let p99 = |round: &Round| percentile(&round.seen.answers, 99);
    let ratio = |(before, under): &(Round, Round)| p99(under).as_secs_f64() / p99(before).as_secs_f64();
    rounds.sort_by(|one, other| ratio(one).total_cmp(&ratio(other)));
    let (before, under) = &rounds[ROUNDS / 2];
    let new = |round: &Round| percentile(&round.seen.new_answers, 50).as_micros();
    let lost: usize = rounds.iter().map(|(_, under)| under.seen.lost).sum();
    let new_lost: usize = rounds.iter().map(|(_, under)| under.seen.new_lost).sum();
    let sockets = rounds.iter().map(|(_, under)| under.sockets).max().unwrap_or_default();
    let reached = rounds.iter().map(|(_, under)| under.reached).fold(f64::INFINITY, f64::min);
    let (ratio, peak) = (ratio(&rounds[ROUNDS / 2]), server.peak());
    println!(
        "{:<12} {:>7} us {:>7} us {ratio:>5.2} {lost:>4} {:>7} us {:>7} us {new_lost:>4} {:>10.1} % {:>8.1} % {sockets:>7} {:>8} {:>6.0} %",
        format!("{attack:?}"),
        p99(before).as_micros(),
        p99(under).as_micros(),
        new(before),
        new(under),
        before.processor * 100.0,
        under.processor * 100.0,
        peak >> 20,
        reached * 100.0,
    );
    ratio <= RATIO_BAR && lost == 0 && new_lost == 0 && peak <= MEMORY_BAR && reached >= REACHED_BAR
}
