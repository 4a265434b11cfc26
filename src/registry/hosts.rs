//! Who may ask a host now: so many listings at once for one host and for all, and one at a time, after pauses that grow,
//! while a host cannot be reached. Driven by tokio's clock.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};

use super::{
    error::{RegistryError, Step},
    failure::ListError,
    origin::Origin,
};

/// Listings of one host at once.
const PER_HOST: usize = 4;
/// Listings of all hosts at once.
const IN_ALL: usize = 64;
/// Places on top of those, for whoever should not wait behind the schedule.
const RESERVE_PER_HOST: usize = 2;
const RESERVE_IN_ALL: usize = 16;
/// First pause of a host that cannot be reached; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
const MAX_PAUSE: Duration = Duration::from_mins(5);
/// So many repositories in a row without an answer, and it is the host: fewer may be trouble of their own.
const SUSPECTS: usize = 5;
/// Above this many hosts, those without a listing or a pause are forgotten.
const MAX_HOSTS: usize = 1024;

/// On whose behalf a registry is asked; the later ones go first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Asker {
    /// The clock: waits its turn, and for the end of a host's pause.
    Schedule,
    /// The webhook, for a Pod that waits: a place of the reserve, and a pause counts for five seconds only.
    Question,
    /// A person: a place of the reserve, whatever the pause.
    Person,
}

/// A registry, and whether its certificate is verified: that decides whether it can be reached.
pub(super) type HostKey = (Origin, bool);

/// The places and pauses of all hosts.
pub(super) struct Hosts {
    places: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    known: Mutex<HashMap<HostKey, Arc<Host>>>,
}

struct Host {
    places: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    health: Mutex<Health>,
    /// Tells those who wait for the outcome of the one that asks.
    settled: watch::Sender<()>,
}

type Permit = Option<OwnedSemaphorePermit>;

impl Hosts {
    /// Waits for a place; while the host is down, for the outcome of the one that asks it. The error is what the host
    /// failed with last: then nothing must be sent. Safe to drop at any await point.
    pub(super) async fn enter(&self, key: &HostKey, mut asker: watch::Receiver<Asker>) -> Result<Place, ListError> {
        let host = self.host(key);
        loop {
            // Before a place is waited for, and again when there is one: the host may have failed meanwhile.
            host.health().closed(Instant::now(), *asker.borrow_and_update())?;
            let permits = self.permits(&host, asker.clone()).await;
            let mut settled = host.settled.subscribe();
            let now = Instant::now();
            let verdict = host.health().verdict(now, *asker.borrow_and_update());
            match verdict {
                Verdict::Ask { probe } => return Ok(Place { host, entered: now, probe, _permits: permits }),
                Verdict::Closed(error) => return Err(error),
                Verdict::Wait => drop(permits),
            }
            tokio::select! {
                _ = settled.changed() => {}
                Ok(()) = asker.changed() => {}
            }
        }
    }

    async fn permits(&self, host: &Host, mut asker: watch::Receiver<Asker>) -> (Permit, Permit) {
        // None of the semaphores is ever closed. The host's place comes first: to wait holding it holds up that host only.
        let take = async |of_host: &Arc<Semaphore>, of_all: &Arc<Semaphore>| {
            let of_host = of_host.clone().acquire_owned().await.ok();
            (of_host, of_all.clone().acquire_owned().await.ok())
        };
        let reserved = async {
            if asker.wait_for(|asker| *asker > Asker::Schedule).await.is_err() {
                std::future::pending::<()>().await;
            }
            take(&host.reserve, &self.reserve).await
        };
        tokio::select! {
            biased;
            permits = take(&host.places, &self.places) => permits,
            permits = reserved => permits,
        }
    }

    fn host(&self, key: &HostKey) -> Arc<Host> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MAX_HOSTS && !known.contains_key(key) {
            let now = Instant::now();
            known.retain(|_, host| Arc::strong_count(host) > 1 || host.health().is_pausing(now));
        }
        known.entry(key.clone()).or_default().clone()
    }
}

impl Default for Hosts {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self { places: places(IN_ALL), reserve: places(RESERVE_IN_ALL), known: Mutex::default() }
    }
}

impl Default for Host {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            places: places(PER_HOST),
            reserve: places(RESERVE_PER_HOST),
            health: Mutex::default(),
            settled: watch::Sender::new(()),
        }
    }
}

impl Host {
    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to ask a host, until it is dropped.
pub(super) struct Place {
    host: Arc<Host>,
    entered: Instant,
    probe: bool,
    _permits: (Permit, Permit),
}

impl Place {
    /// What came of it. `host` is the registry's as errors name it: trouble of a token host or of a redirect's target is
    /// trouble of the registry only if several repositories have it.
    pub(super) fn learn<T>(&self, host: &str, repository: &str, outcome: &Result<T, ListError>) {
        let found = outcome.as_ref().map_or_else(|error| Found::of(error, host), |_| Found::Answer);
        let jitter = 0.75 + fastrand::f64() / 4.0;
        self.host.health().learn(Instant::now(), self.entered, repository, found, jitter);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.probe {
            self.host.health().probing = false;
            self.host.settled.send_replace(());
        }
    }
}

/// What a listing says about its host.
#[derive(Debug)]
enum Found {
    /// It answers, whatever it says.
    Answer,
    /// It cannot be reached.
    Unreachable(ListError),
    /// It did not answer this time; that may be the repository.
    Nothing(ListError),
}

impl Found {
    fn of(error: &ListError, host: &str) -> Self {
        match &error.error {
            RegistryError::Unreachable {
                step: Step::Dns | Step::Connect | Step::Tls | Step::ClientCertificate,
                host: failed,
                ..
            } if failed == host => Self::Unreachable(error.clone()),
            RegistryError::Unreachable { .. } | RegistryError::Timeout { .. } | RegistryError::Server { .. } => {
                Self::Nothing(error.clone())
            }
            _ => Self::Answer,
        }
    }
}

/// How a host is doing. Pure: the clock comes from outside.
#[derive(Debug, Default)]
struct Health {
    down: Option<Down>,
    /// Somebody is asking whether it is back.
    probing: bool,
    /// Repositories in a row without an answer.
    suspects: Vec<String>,
}

#[derive(Debug)]
struct Down {
    failures: u32,
    failed_at: Instant,
    retry_at: Instant,
    error: ListError,
}

#[derive(Debug)]
enum Verdict {
    Ask { probe: bool },
    Wait,
    Closed(ListError),
}

impl Health {
    fn closed(&self, now: Instant, asker: Asker) -> Result<(), ListError> {
        match &self.down {
            Some(down) if !self.probing && down.is_closed(now, asker) => Err(down.error.clone()),
            _ => Ok(()),
        }
    }

    fn verdict(&mut self, now: Instant, asker: Asker) -> Verdict {
        if let Err(error) = self.closed(now, asker) {
            return Verdict::Closed(error);
        }
        match (&self.down, self.probing) {
            (None, _) => Verdict::Ask { probe: false },
            (Some(_), true) if asker == Asker::Person => Verdict::Ask { probe: false },
            (Some(_), true) => Verdict::Wait,
            (Some(_), false) => {
                self.probing = true;
                Verdict::Ask { probe: true }
            }
        }
    }

    /// `jitter` is a factor for the pause.
    fn learn(&mut self, now: Instant, entered: Instant, repository: &str, found: Found, jitter: f64) {
        let error = match found {
            Found::Answer => {
                (self.down, self.suspects) = (None, Vec::new());
                return;
            }
            Found::Unreachable(error) => error,
            Found::Nothing(error) => {
                if self.suspects.len() < SUSPECTS && !self.suspects.iter().any(|suspect| suspect == repository) {
                    self.suspects.push(repository.to_owned());
                }
                if self.suspects.len() < SUSPECTS {
                    self.down = None; // it can be reached
                    return;
                }
                error
            }
        };
        let failures = match &self.down {
            // Began before the failure that was counted: the same outage, told once more.
            Some(down) if entered < down.failed_at => return,
            Some(down) => down.failures.saturating_add(1),
            None => 1,
        };
        let pause = FIRST_PAUSE.saturating_mul(1 << (failures - 1).min(16)).min(MAX_PAUSE).mul_f64(jitter);
        tracing::debug!(
            host = error.error.host(),
            failures,
            pause_ms = pause.as_millis(),
            "the registry is left alone"
        );
        self.down = Some(Down { failures, failed_at: now, retry_at: now + pause, error });
    }

    fn is_pausing(&self, now: Instant) -> bool {
        self.down.as_ref().is_some_and(|down| now < down.retry_at)
    }
}

impl Down {
    fn is_closed(&self, now: Instant, asker: Asker) -> bool {
        let opens = match asker {
            Asker::Schedule => self.retry_at,
            Asker::Question => self.retry_at.min(self.failed_at + FIRST_PAUSE),
            Asker::Person => now,
        };
        now < opens
    }
}

#[cfg(test)]
#[path = "tests/hosts.rs"]
mod tests;
