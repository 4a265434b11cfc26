//! Runs sync: the queue of keys, the workers, and what the process remembers between them.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::index::Scope;
use crate::leader::Leadership;
use crate::net::clock::Clock;
use crate::notify::Events;
use crate::registry;
use crate::rollout::WorkloadKey;
use crate::telemetry::Metrics;

use super::failing::Judgement;
use super::image::Memo;
use super::limits::Waits;
use super::nodes::Nodes;
use super::nudge::{self, Nudges};
use super::outage::Outages;
use super::pace::Places;
use super::queue::Queue;
use super::source::SourceKey;
use super::view::View;
use super::watch::{self, Served};
use super::world::{ImageKey, World};

/// Images at once that use the API server. Those that wait for a registry do not count: the registry client has limits of
/// its own.
const IMAGE_WORKERS: usize = 64;
/// Workloads handled at once, beside the Images: these must not hold up rollouts under way.
const WORKLOAD_WORKERS: usize = 16;
/// For what is being written when sync stops.
const DRAIN: Duration = Duration::from_secs(10);

/// How often everything is looked at again, in case a watch left something out. The first time is at once.
const RESYNC: Duration = Duration::from_mins(10);

/// Settings of sync.
#[derive(Clone, Debug)]
pub struct Options {
    /// Which namespaces.
    pub scope: Scope,
    /// kimup's own: frozen, it freezes the whole cluster.
    pub own_namespace: String,
    /// Most workloads of one namespace that roll at a time.
    pub max_rollouts_per_namespace: usize,
    /// Most workloads of the cluster that roll at a time.
    pub max_rollouts: usize,
    /// How long a rollout may make no progress, where an Image does not say.
    pub rollout_deadline: Duration,
    /// Least time between two rollouts of one workload, where its Image does not say.
    pub rollout_min_interval: Duration,
    /// How often `status.time` is written when nothing else changed.
    pub status_heartbeat: Duration,
    /// By whose time everything is decided and recorded.
    pub clock: Clock,
    /// How long the webhook's question may take here.
    pub question_timeout: Duration,
}

/// What sync needs from outside.
pub struct Sync {
    pub(super) client: kube::Client,
    pub(super) registry: registry::Client,
    pub(super) leadership: Leadership,
    pub(super) events: Events,
    pub(super) metrics: Metrics,
    pub(super) options: Options,
    pub(super) world: World,
    pub(super) queue: Queue<Key>,
    /// Taken by Images for what they ask the API server.
    pub(super) places: Places,
    /// Images that Pods wait for.
    asked: Mutex<HashMap<ImageKey, usize>>,
    /// Images that may be recording a rejected tag right now.
    recording: Mutex<BTreeSet<ImageKey>>,
    memos: Mutex<HashMap<ImageKey, Memo>>,
    views: Mutex<HashMap<WorkloadKey, View>>,
    pub(super) outages: Outages,
    /// Held from counting the rollouts in flight to the write that adds one.
    pub(super) rolling: tokio::sync::Mutex<()>,
    pub(super) nodes: Nodes,
    pub(super) nudges: Nudges,
    waiting: Mutex<HashMap<WorkloadKey, Waits>>,
    pending: Mutex<HashMap<WorkloadKey, Instant>>,
    told: Mutex<HashMap<SourceKey, (String, Vec<String>)>>,
    judgements: Mutex<HashMap<WorkloadKey, Judgement>>,
    served: Mutex<Served>,
}

/// What the queue holds.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    /// One Image.
    Image(ImageKey),
    /// One workload, for all its Images.
    Workload(WorkloadKey),
    /// One annotated object, for all its Images.
    Source(SourceKey),
    /// The limits: a rollout's deadline has passed.
    Places,
}

/// Sync, running.
pub struct Running {
    /// Answers the webhook's questions.
    pub sync: Arc<Sync>,
    /// Ends after the token is cancelled.
    pub task: JoinHandle<()>,
    /// True once every watch has delivered its first list.
    pub warm: tokio::sync::watch::Receiver<bool>,
}

/// Starts sync. It watches and answers questions whoever leads; it writes only while `leadership` holds.
pub fn start(
    client: kube::Client,
    registry: registry::Client,
    leadership: Leadership,
    events: Events,
    metrics: Metrics,
    options: Options,
    shutdown: CancellationToken,
) -> Running {
    let sync = Arc::new(Sync::new(client, registry, leadership, events, metrics, options));
    let (warm_sender, warm) = tokio::sync::watch::channel(false);
    let task = tokio::spawn(run(sync.clone(), warm_sender, shutdown));
    Running { sync, task, warm }
}

async fn run(sync: Arc<Sync>, warm: tokio::sync::watch::Sender<bool>, shutdown: CancellationToken) {
    let watches = watch::start(&sync, &shutdown);
    // Nothing is decided before everything is known: an empty world has no stamps, holds or duplicates.
    tokio::select! {
        () = watches.first_lists() => {}
        () = shutdown.cancelled() => return,
    }
    warm.send_replace(true);
    let nudging = tokio::spawn(nudge::run(sync.clone(), shutdown.clone()));
    let workers = Workers::default();
    let mut led = sync.leadership.subscribe();
    let mut resync = tokio::time::interval(RESYNC);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => break,
            _ = resync.tick() => sync.queue_everything(),
            changed = led.changed() => {
                if changed.is_ok() && sync.leadership.is_leader() {
                    sync.queue_everything();
                }
                if changed.is_err() { break }
            }
            key = sync.queue.next() => {
                workers.handle(sync.clone(), key);
            }
        }
    }
    workers.stop(&sync).await;
    nudging.abort(); // what it may be writing is a mark without consequence
}

/// Handles keys: workloads as many at once as there are places, Images as they take places themselves. The queue gives a
/// key to one task at a time, so there are never more tasks than Images and workloads.
struct Workers {
    workloads: Arc<Semaphore>,
    tasks: TaskTracker,
}

impl Default for Workers {
    fn default() -> Self {
        Self { workloads: Arc::new(Semaphore::new(WORKLOAD_WORKERS)), tasks: TaskTracker::new() }
    }
}

impl Workers {
    fn handle(&self, sync: Arc<Sync>, key: Key) {
        let workloads = self.workloads.clone();
        self.tasks.spawn(async move {
            // A panic in one key's work must not leave the key marked as running for ever.
            let _done = Done { sync: &sync, key: key.clone() };
            match &key {
                Key::Image(image) => sync.reconcile_image(image).await,
                Key::Workload(workload) => {
                    // Waited for here and not where the queue is read: that would keep the process from stopping.
                    if let Ok(_place) = workloads.acquire().await {
                        sync.reconcile_workload(workload).await;
                    }
                }
                Key::Source(source) => {
                    if let Ok(_place) = workloads.acquire().await {
                        sync.reconcile_source(source).await;
                    }
                }
                Key::Places => sync.free_places(),
            }
        });
    }

    /// What is being written may end; nothing new begins.
    async fn stop(&self, sync: &Sync) {
        sync.places.close();
        self.workloads.close();
        self.tasks.close();
        let _ = tokio::time::timeout(DRAIN, self.tasks.wait()).await;
    }
}

struct Done<'a> {
    sync: &'a Sync,
    key: Key,
}

impl Drop for Done<'_> {
    fn drop(&mut self) {
        self.sync.queue.done(&self.key);
    }
}

impl Sync {
    pub(super) fn new(
        client: kube::Client,
        registry: registry::Client,
        leadership: Leadership,
        events: Events,
        metrics: Metrics,
        options: Options,
    ) -> Self {
        Self {
            client,
            registry,
            leadership,
            events,
            metrics,
            options,
            world: World::default(),
            queue: Queue::default(),
            places: Places::new(IMAGE_WORKERS),
            asked: Mutex::default(),
            recording: Mutex::default(),
            memos: Mutex::default(),
            views: Mutex::default(),
            outages: Outages::default(),
            rolling: tokio::sync::Mutex::default(),
            nodes: Nodes::default(),
            nudges: Nudges::default(),
            waiting: Mutex::default(),
            pending: Mutex::default(),
            told: Mutex::default(),
            judgements: Mutex::default(),
            served: Mutex::default(),
        }
    }

    /// The time by the API server's clock: what is compared with its times, or stands in a status.
    pub(super) fn now(&self) -> Timestamp {
        self.options.clock.now()
    }

    pub(super) fn memos(&self) -> MutexGuard<'_, HashMap<ImageKey, Memo>> {
        self.memos.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn views(&self) -> MutexGuard<'_, HashMap<WorkloadKey, View>> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many Pods wait for the first tag of each Image.
    pub(super) fn asked(&self) -> MutexGuard<'_, HashMap<ImageKey, usize>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn recording(&self) -> MutexGuard<'_, BTreeSet<ImageKey>> {
        self.recording.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Workloads that wait for others.
    pub(super) fn waiting(&self) -> MutexGuard<'_, HashMap<WorkloadKey, Waits>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Workloads with a change that is not written yet, and since when.
    pub(super) fn pending(&self) -> MutexGuard<'_, HashMap<WorkloadKey, Instant>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What was said of each annotated object: its UID, and what is wrong.
    pub(super) fn told(&self) -> MutexGuard<'_, HashMap<SourceKey, (String, Vec<String>)>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What became of rollouts that did not end in time.
    pub(super) fn judgements(&self) -> MutexGuard<'_, HashMap<WorkloadKey, Judgement>> {
        self.judgements.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watches of kinds that other projects bring.
    pub(super) fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn queue_everything(&self) {
        for key in self.world.source_keys() {
            self.queue.add_now(Key::Source(key));
        }
        for key in self.world.image_keys() {
            self.queue.add_now(Key::Image(key));
        }
        for workload in self.world.workloads(None) {
            self.queue.add_now(Key::Workload(workload.key.clone()));
        }
    }
}
