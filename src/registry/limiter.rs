//! How often a host is asked: a rate with a burst, and the pauses that a host asks for. Driven by tokio's clock.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

/// Requests that may go at once before the rate holds.
const BURST: u32 = 5;
/// Above this many hosts, idle ones are forgotten.
const MAX_HOSTS: usize = 1024;

/// One budget per host (`host:port`), shared by everything that asks it: generic cell rate algorithm.
#[derive(Debug)]
pub(super) struct Limiter {
    interval: Duration,
    hosts: Mutex<HashMap<String, Budget>>,
}

#[derive(Debug)]
struct Budget {
    /// When the budget is full again; each request moves it on by one interval.
    full_at: Instant,
    paused_until: Instant,
    /// Turns to come that nobody waits for any more, and how many of each time: no more than were taken.
    given_back: BTreeMap<Instant, u32>,
}

/// A turn that is waited for. Who gives up gives it back: a Pod with hundreds of containers whose question has timed out must
/// not keep everybody else from the registry for a minute.
struct Turn<'a> {
    limiter: &'a Limiter,
    host: &'a str,
    at: Instant,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let now = Instant::now();
        if self.at > now {
            self.limiter.with(self.host, now, |budget| *budget.given_back.entry(self.at).or_default() += 1);
        }
    }
}

/// There is no turn before the deadline.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NoTurn {
    /// How long the wait would have been.
    pub(super) wait: Duration,
}

impl Limiter {
    /// `rate`: requests per second and host, finite and above 0.
    pub(super) fn new(rate: f64) -> Self {
        Self { interval: Duration::from_secs_f64(1.0 / rate), hosts: Mutex::default() }
    }

    /// Waits for a turn. A turn that lies after `deadline` is not taken and answered at once.
    pub(super) async fn turn(&self, host: &str, deadline: Instant) -> Result<(), NoTurn> {
        loop {
            let turn = Turn { limiter: self, host, at: self.reserve(host, deadline)? };
            tokio::time::sleep_until(turn.at).await;
            // A pause may have begun while this turn was waited for: then queue again behind it.
            if self.paused_until(host) <= Instant::now() {
                return Ok(());
            }
        }
    }

    /// No request to this host for `pause` from now.
    pub(super) fn pause(&self, host: &str, pause: Duration) {
        let now = Instant::now();
        self.with(host, now, |budget| {
            budget.paused_until = budget.paused_until.max(now + pause);
        });
    }

    fn reserve(&self, host: &str, deadline: Instant) -> Result<Instant, NoTurn> {
        let now = Instant::now();
        self.with(host, now, |budget| {
            // A pause ends with a burst like any idle time, not with everything that waited for it.
            let open = now.max(budget.paused_until);
            if let Some(at) = budget.take_back(open) {
                if at > deadline {
                    *budget.given_back.entry(at).or_default() += 1;
                    return Err(NoTurn { wait: at - now });
                }
                return Ok(at);
            }
            let full_at = budget.full_at.max(open);
            let at = full_at.checked_sub(self.interval * (BURST - 1)).unwrap_or(open).max(open);
            if at > deadline {
                return Err(NoTurn { wait: at - now });
            }
            budget.full_at = full_at + self.interval;
            Ok(at)
        })
    }

    fn paused_until(&self, host: &str) -> Instant {
        self.with(host, Instant::now(), |budget| budget.paused_until)
    }

    fn with<T>(&self, host: &str, now: Instant, f: impl FnOnce(&mut Budget) -> T) -> T {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if hosts.len() >= MAX_HOSTS && !hosts.contains_key(host) {
            hosts.retain(|_, budget| budget.full_at > now || budget.paused_until > now);
        }
        let fresh = || Budget { full_at: now, paused_until: now, given_back: BTreeMap::new() };
        f(hosts.entry(host.to_owned()).or_insert_with(fresh))
    }
}

impl Budget {
    /// The first turn that was given back and is not over by `open`.
    fn take_back(&mut self, open: Instant) -> Option<Instant> {
        self.given_back = self.given_back.split_off(&open);
        let mut first = self.given_back.first_entry()?;
        let at = *first.key();
        *first.get_mut() -= 1;
        if *first.get() == 0 {
            first.remove();
        }
        Some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn elapsed(limiter: &Limiter, host: &str, requests: u32) -> Duration {
        let start = Instant::now();
        for _ in 0..requests {
            limiter.turn(host, start + Duration::from_mins(5)).await.unwrap();
        }
        start.elapsed()
    }

    fn near(a: Duration, seconds: f64) {
        assert!((a.as_secs_f64() - seconds).abs() < 0.02, "{a:?} is not {seconds}s");
    }

    #[tokio::test(start_paused = true)]
    async fn five_at_once_then_five_a_second() {
        let limiter = Limiter::new(5.0);
        near(elapsed(&limiter, "a", 5).await, 0.0);
        near(elapsed(&limiter, "a", 10).await, 2.0);
        near(elapsed(&limiter, "b", 5).await, 0.0); // another host has a budget of its own
        tokio::time::sleep(Duration::from_hours(1)).await;
        near(elapsed(&limiter, "a", 6).await, 0.2); // an idle hour does not save up more than the burst
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_holds_the_whole_host() {
        let limiter = Limiter::new(5.0);
        limiter.pause("a", Duration::from_secs(30));
        limiter.pause("a", Duration::from_secs(3)); // a shorter one does not shorten it
        near(elapsed(&limiter, "b", 1).await, 0.0);
        let soon = Instant::now() + Duration::from_secs(10);
        assert_eq!(limiter.turn("a", soon).await, Err(NoTurn { wait: Duration::from_secs(30) }));
        near(elapsed(&limiter, "a", 1).await, 30.0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_rate_holds_after_a_pause() {
        let limiter = Limiter::new(5.0);
        limiter.pause("a", Duration::from_secs(30));
        near(elapsed(&limiter, "a", 15).await, 32.0);
        limiter.pause("a", Duration::from_secs(30));
        let start = Instant::now();
        let turns = (0..15).map(|_| limiter.turn("a", start + Duration::from_mins(5)));
        assert!(futures::future::join_all(turns).await.iter().all(Result::is_ok));
        near(start.elapsed(), 32.0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_that_begins_meanwhile_holds_those_who_wait() {
        let limiter = Limiter::new(1.0);
        let start = Instant::now();
        elapsed(&limiter, "a", 5).await;
        let waiting = limiter.turn("a", start + Duration::from_mins(5));
        let pausing = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            limiter.pause("a", Duration::from_secs(60));
        };
        let (turn, ()) = tokio::join!(waiting, pausing);
        turn.unwrap();
        assert!(start.elapsed() >= Duration::from_secs(60), "{:?}", start.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_gives_the_turn_back() {
        let limiter = Limiter::new(5.0);
        let late = Instant::now() + Duration::from_mins(5);
        let many = futures::future::join_all((0..255).map(|_| limiter.turn("a", late)));
        assert!(tokio::time::timeout(Duration::from_millis(1100), many).await.is_err());
        // Five at once and five in this second were used; of the others each is used once.
        near(elapsed(&limiter, "a", 10).await, 1.9);
        near(elapsed(&limiter, "a", 235).await, 47.0);
        near(elapsed(&limiter, "a", 5).await, 1.0);
        // None is left that is over, or within a pause.
        let many =
            futures::future::join_all((0..10).map(|_| limiter.turn("a", Instant::now() + Duration::from_mins(5))));
        assert!(tokio::time::timeout(Duration::from_millis(100), many).await.is_err());
        limiter.pause("a", Duration::from_secs(30));
        near(elapsed(&limiter, "a", 6).await, 30.2);
        assert!(limiter.hosts.lock().unwrap()["a"].given_back.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn forgets_idle_hosts() {
        let limiter = Limiter::new(5.0);
        for n in 0..MAX_HOSTS * 2 {
            limiter.turn(&n.to_string(), Instant::now()).await.unwrap();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        assert!(limiter.hosts.lock().unwrap().len() <= MAX_HOSTS);
    }
}
