//! The shell around the decision: reads and writes the Lease, keeps the claim.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::decision::{Action, LeaseRecord, decide, held, released};
use super::{LeaderConfig, Leadership};

/// Writes tried in one round: a conflict means that somebody else wrote, so look again, but do not fight.
const WRITES_PER_ROUND: usize = 3;

/// The Lease as last read or written.
struct Observed {
    lease: Lease,
    record: LeaseRecord,
    since: Instant,
}

pub(super) struct Elector {
    api: Api<Lease>,
    config: LeaderConfig,
    leadership: Leadership,
    observed: Option<Observed>,
    /// When a leader that could not renew gives up. None while not leading.
    give_up: Option<Instant>,
    /// A failure has been reported and not yet been followed by a success.
    failing: bool,
}

impl Elector {
    pub fn new(client: kube::Client, config: LeaderConfig, leadership: Leadership) -> Self {
        let api = Api::namespaced(client, &config.namespace);
        Self { api, config, leadership, observed: None, give_up: None, failing: false }
    }

    pub async fn run(mut self, shutdown: CancellationToken) {
        // A round that is interrupted may have written without our knowing what came of it.
        let mut interrupted = true;
        while shutdown.run_until_cancelled(self.round()).await.is_some() {
            let pause = self.pause();
            if shutdown.run_until_cancelled(sleep(pause)).await.is_none() {
                interrupted = false;
                break;
            }
        }
        self.step_down("stopping");
        if interrupted || self.holds_by_record() {
            self.release(interrupted).await;
        }
    }

    /// One try to get or keep the Lease.
    async fn round(&mut self) {
        let started = Instant::now();
        let mut deadline = started + self.config.renew_deadline / 2;
        if self.give_up.is_some() && !self.leadership.is_leader() {
            self.step_down("its claim ran out");
        }
        if let Some(give_up) = self.give_up {
            deadline = deadline.min(give_up);
        }
        let failure = match timeout_at(deadline, self.attempt()).await {
            Ok(Ok(Some(written))) => return self.lead(written),
            Ok(Ok(None)) => {
                self.recovered();
                return self.step_down("another process holds the Lease");
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the API server does not answer".to_owned(),
        };
        self.failed(&failure);
        if self.give_up.is_some_and(|give_up| Instant::now() >= give_up) {
            self.step_down("the Lease could not be renewed in time");
        }
    }

    /// Reads (unless it leads: then the last write is what it knows), decides, writes. The answer is when the
    /// successful write began, or none if another process holds the Lease.
    async fn attempt(&mut self) -> kube::Result<Option<Instant>> {
        if self.give_up.is_none() || self.observed.is_none() {
            self.observe().await?;
        }
        let mut conflict = None;
        for _ in 0..WRITES_PER_ROUND {
            let started = Instant::now();
            let (record, since) = match &self.observed {
                Some(observed) => (Some(&observed.record), observed.since),
                None => (None, started),
            };
            let action = decide(record, since, &self.config.identity, started);
            if action == Action::Wait {
                return Ok(None);
            }
            match self.write(action).await {
                Ok(lease) => {
                    self.note(Some(lease));
                    return Ok(Some(started));
                }
                // 409: written or created by somebody else; 404: deleted. Neither says who holds it now.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                    conflict = Some(kube::Error::Api(status));
                    self.observe().await?;
                }
                Err(error) => return Err(error),
            }
        }
        conflict.map_or(Ok(None), Err)
    }

    async fn observe(&mut self) -> kube::Result<()> {
        let lease = self.api.get_opt(&self.config.lease_name).await?;
        self.note(lease);
        Ok(())
    }

    /// Remembers what was read. An unchanged record keeps the time at which it was first seen, also when something else
    /// of the object (a label) has changed.
    fn note(&mut self, lease: Option<Lease>) {
        let before = self.observed.take();
        self.observed = lease.map(|lease| {
            let record = LeaseRecord::of(&lease);
            let since = match before {
                Some(before) if before.record == record => before.since,
                _ => Instant::now(),
            };
            Observed { lease, record, since }
        });
    }

    async fn write(&self, action: Action) -> kube::Result<Lease> {
        let (config, now) = (&self.config, Timestamp::now());
        let params = PostParams::default();
        if let (Some(observed), Action::Acquire | Action::Renew) = (&self.observed, action) {
            let before = observed.lease.spec.clone().unwrap_or_default();
            let spec = Some(held(Some(&before), &config.identity, config.lease_duration, now));
            // The metadata, and with it the resourceVersion, is that of what was read.
            let metadata = observed.lease.metadata.clone();
            let lease = Lease { metadata, spec };
            return self.api.replace(&config.lease_name, &params, &lease).await;
        }
        let spec = Some(held(None, &config.identity, config.lease_duration, now));
        let name = Some(config.lease_name.clone());
        let metadata = ObjectMeta { name, ..ObjectMeta::default() };
        self.api.create(&params, &Lease { metadata, spec }).await
    }

    /// A write that began at `written` has succeeded.
    fn lead(&mut self, written: Instant) {
        self.recovered();
        // Others count from when they see the write, which is later than when it began; the tenth is for clocks that do
        // not run at the same speed and for writes that are on their way when the claim runs out.
        let life = self.config.lease_duration.mul_f64(0.9);
        self.give_up = Some(written + self.config.renew_deadline);
        if self.leadership.hold(written + life) {
            self.config.metrics.set_leader(true);
            tracing::info!(lease = %self.config.lease_name, identity = %self.config.identity, "leading");
        }
    }

    fn step_down(&mut self, reason: &str) {
        self.give_up = None;
        if self.leadership.lose() {
            self.config.metrics.set_leader(false);
            tracing::info!(lease = %self.config.lease_name, reason, "no longer leading");
        }
    }

    fn failed(&mut self, error: &str) {
        if !std::mem::replace(&mut self.failing, true) {
            tracing::warn!(
                lease = %self.config.lease_name, namespace = %self.config.namespace, error,
                "cannot read or write the Lease, trying again"
            );
        }
    }

    fn recovered(&mut self) {
        if std::mem::take(&mut self.failing) {
            tracing::info!(lease = %self.config.lease_name, "the Lease can be read and written again");
        }
    }

    /// Until the next try: never past the moment at which a leader has to give up, or at which the Lease of another runs
    /// out.
    fn pause(&self) -> Duration {
        let period = self.config.retry_period;
        let now = Instant::now();
        if let Some(give_up) = self.give_up {
            return period.min(give_up.saturating_duration_since(now));
        }
        let pause = period.mul_f64(1.0 + 1.2 * fastrand::f64());
        let left = self.observed.as_ref().map(|o| (o.since + o.record.duration).saturating_duration_since(now));
        // One that has run out already could not be taken: that is tried at the usual pace.
        left.filter(|left| !left.is_zero()).map_or(pause, |left| pause.min(left))
    }

    fn holds_by_record(&self) -> bool {
        let holder = self.observed.as_ref().and_then(|observed| observed.record.holder.as_deref());
        holder == Some(self.config.identity.as_str())
    }

    /// Gives the Lease up if it is ours. If that fails, it expires.
    async fn release(&mut self, look_first: bool) {
        let patience = self.config.renew_deadline / 2;
        let releasing = async {
            if look_first {
                self.observe().await?;
            }
            for _ in 0..WRITES_PER_ROUND {
                if !self.holds_by_record() {
                    return Ok(());
                }
                let Some(observed) = &self.observed else {
                    return Ok(());
                };
                let before = observed.lease.spec.clone().unwrap_or_default();
                let lease = Lease {
                    metadata: observed.lease.metadata.clone(),
                    spec: Some(released(&before, Timestamp::now())),
                };
                let params = PostParams::default();
                match self.api.replace(&self.config.lease_name, &params, &lease).await {
                    Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {
                        self.observe().await?;
                    }
                    result => return result.map(drop),
                }
            }
            Ok(())
        };
        match timeout(patience, releasing).await {
            Ok(Ok(())) => tracing::info!(lease = %self.config.lease_name, "the Lease is released"),
            Ok(Err(error)) => tracing::warn!(%error, "the Lease could not be released; it expires"),
            Err(_) => tracing::warn!("the Lease could not be released in time; it expires"),
        }
    }
}
