//! Wires the modules into a process, and takes it down again in an order that loses no review.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::admission::configuration::{self, CaBundle, Endpoint, Trust};
use crate::admission::handler::Webhook;
use crate::index::question::{Answered, Ask, Question};
use crate::index::{self, Index};
use crate::leader::{self, LeaderConfig, Leadership};
use crate::net::ca::{self, CaStore, CertificateAuthority, Following, Rotation, Timing};
use crate::net::clock::Clock;
use crate::net::probes::{Condition, Readiness, serve_probes};
use crate::net::server::{ServerOptions, serve_https};
use crate::net::socket::SocketError;
use crate::net::tls::{self, CertSource};
use crate::net::vitals::Vitals;
use crate::net::{client_ca, shutdown, socket};
use crate::notify::Events;
use crate::registry;
use crate::sync;
use crate::telemetry::Metrics;

use super::args::{Common, EndpointArgs, LoopArgs, RunArgs, ServerArgs, SyncArgs, WebhookArgs};
use super::cluster::{self, Names};

/// Longest time from the signal to the end, below the 30 seconds that the kubelet gives: an API server that hangs would
/// take longer.
const STOP_DEADLINE: Duration = Duration::from_secs(24);
/// How long the webhook goes on serving after it turned unready: endpoints take a moment to follow.
const UNREADY_DELAY: Duration = Duration::from_secs(5);
/// How long a question waits for a sync that is not there: it starts beside the webhook, or again.
const SYNC_STARTS: Duration = Duration::from_secs(1);
/// Pause between two tries to get the CA.
const CA_PAUSE: Duration = Duration::from_secs(2);
/// How long a replica's question may take beyond the webhook's own deadline, so that the webhook's message wins.
const QUESTION_MARGIN: Duration = Duration::from_millis(200);
/// The readiness condition of the caches that admission answers from.
const IMAGES: &str = "images";

/// What a process does.
pub struct Roles {
    endpoint: EndpointArgs,
    server: Option<ServerArgs>,
    sync: Option<LoopArgs>,
    socket: Option<PathBuf>,
}

impl Roles {
    /// Both, in one process.
    pub fn run(args: RunArgs) -> anyhow::Result<Self> {
        Self { endpoint: args.endpoint, server: Some(args.server), sync: Some(args.sync), socket: None }.checked()
    }

    /// The webhook.
    pub fn webhook(args: WebhookArgs) -> anyhow::Result<Self> {
        let socket = Some(args.sync_socket);
        Self { endpoint: args.endpoint, server: Some(args.server), sync: None, socket }.checked()
    }

    /// Sync.
    pub fn sync(args: SyncArgs) -> anyhow::Result<Self> {
        let socket = Some(args.sync_socket);
        Self { endpoint: args.endpoint, server: None, sync: Some(args.sync), socket }.checked()
    }

    /// Whether there is work that keeps a thread for milliseconds: sync chooses among many tags.
    pub fn compute(&self) -> bool {
        self.sync.is_some()
    }

    fn checked(self) -> anyhow::Result<Self> {
        let files = self.endpoint.tls_cert_file.is_some();
        anyhow::ensure!(
            !(files && self.endpoint.webhook_url.is_some()),
            "--webhook-url and --tls-cert-file exclude each other: with files the webhook configuration is yours"
        );
        Ok(self)
    }
}

/// What every part of the process shares.
struct Process {
    common: Common,
    client: kube::Client,
    clock: Clock,
    namespace: String,
    identity: String,
    names: Names,
    metrics: Metrics,
    readiness: Readiness,
    vitals: Vitals,
}

/// Runs until a signal says to stop. An error is one that trying again cannot mend.
pub async fn run(common: Common, roles: Roles) -> anyhow::Result<()> {
    let stop = shutdown::on_signals().context("cannot listen for signals")?;
    let probes_at = common.probes_listen;
    let listener = TcpListener::bind(probes_at).await.with_context(|| format!("cannot listen on {probes_at}"))?;
    let (client, namespace) = cluster::connect(&common).await?;
    let names = Names::of(&roles.endpoint, &namespace)?;
    if roles.sync.is_some() {
        cluster::refuse_second(&client, &roles.endpoint).await?;
    }
    let (metrics, readiness, vitals) = (Metrics::new(), Readiness::default(), Vitals::default());
    let clock = Clock::new(metrics.clone());
    let client = clock.client(&client);
    // Before anybody can ask: without a condition it would be ready.
    readiness.register(IMAGES).set(false, "Images and Namespaces are not listed yet");
    let probes_stop = CancellationToken::new();
    let serving = serve_probes(listener, readiness.clone(), vitals.clone(), metrics.clone(), probes_stop.clone());
    let probes = tokio::spawn(serving);
    let identity = common.identity.clone().unwrap_or_else(host_name);
    let process = Process { common, client, clock, namespace, identity, names, metrics, readiness, vitals };
    let done = process.run(roles, &stop).await;
    probes_stop.cancel();
    let _ = probes.await;
    done
}

impl Process {
    async fn run(&self, roles: Roles, stop: &CancellationToken) -> anyhow::Result<()> {
        tracing::info!(version = env!("CARGO_PKG_VERSION"), namespace = self.namespace, "kimup starts");
        let (stages, mut parts) = (Stages::default(), Parts::default());
        let scope = scope(&self.common.watch_namespace);
        let (index, indexing) = index::start(&self.client, &scope, self.metrics.clone(), stages.caches.clone());
        self.vitals.watch("index", &indexing);
        let started = stop.run_until_cancelled(self.start(&roles, &index, &stages, &mut parts)).await;
        if let Some(Ok(())) = started {
            self.serve(&index, stop).await;
        }
        tracing::info!("stopping");
        self.vitals.release();
        self.readiness.register("running").set(false, "stopping");
        if tokio::time::timeout(STOP_DEADLINE, self.take_down(parts, stages, &roles)).await.is_err() {
            tracing::warn!("not everything stopped in time; the Lease expires by itself");
        }
        started.unwrap_or(Ok(()))
    }

    async fn start(&self, roles: &Roles, index: &Arc<Index>, stages: &Stages, parts: &mut Parts) -> anyhow::Result<()> {
        let mut asker: Option<Arc<dyn Ask>> = None;
        if let Some(args) = &roles.sync {
            let sync = self.start_sync(args, roles, index, stages, parts)?;
            asker = Some(sync);
        } else if let Some(path) = &roles.socket {
            asker = Some(Arc::new(OverSocket::new(path.clone())));
        }
        if let (Some(args), Some(asker)) = (&roles.server, asker) {
            self.start_webhook(args, roles, index, asker, stages, parts).await?;
        }
        Ok(())
    }

    /// Until the signal.
    async fn serve(&self, index: &Index, stop: &CancellationToken) {
        let filled = self.readiness.register(IMAGES);
        let mut ready = index.ready();
        if stop.run_until_cancelled(ready.wait_for(|ready| *ready)).await.is_some() {
            filled.set(true, "");
        }
        stop.cancelled().await;
    }

    /// Stops what has started, in order. In a cluster the webhook goes first: others serve on, and as long as this one
    /// drains, a review may put a question to sync. Behind a URL of its own it is the last, after the configuration.
    async fn take_down(&self, mut parts: Parts, stages: Stages, roles: &Roles) {
        if roles.endpoint.webhook_url.is_none() {
            stages.server.cancel();
            finish(std::mem::take(&mut parts.server)).await;
        }
        stages.sync.cancel();
        finish(parts.sync).await;
        if let Some(leadership) = parts.leadership.filter(|_| roles.endpoint.webhook_url.is_some())
            && leadership.is_leader()
            && let Err(error) = configuration::delete(&self.client, self.names.name).await
        {
            tracing::warn!(%error, "cannot delete the webhook configuration; delete it by hand");
        }
        stages.lease.cancel();
        finish(parts.lease).await;
        stages.server.cancel();
        finish(parts.server).await;
        stages.caches.cancel();
    }

    /// Where the self-managed CA is.
    fn ca_store(&self) -> CaStore {
        CaStore::new(&self.client, &self.namespace, self.names.ca_secret)
    }

    /// Whether the webhook configuration is another's: nobody here may publish a CA.
    fn is_static(&self) -> bool {
        !self.common.watch_namespace.is_empty()
    }

    /// The self-managed CA. Tried until the API server gives one.
    async fn ca(&self, store: &CaStore, condition: &Condition) -> Arc<CertificateAuthority> {
        loop {
            match self.try_ca(store).await {
                Ok(authority) => {
                    condition.set(true, "");
                    return authority;
                }
                Err(error) => {
                    let error = format!("{error:#}");
                    tracing::warn!(error, "no CA yet; trying again");
                    condition.set(false, format!("no CA from {} yet: {error}", store.origin()));
                }
            }
            tokio::time::sleep(CA_PAUSE).await;
        }
    }

    async fn try_ca(&self, store: &CaStore) -> anyhow::Result<Arc<CertificateAuthority>> {
        let found = store.load().await?;
        if let Some(found) = &found
            && let Ok(signing) = ca::first(store, found, true)
        {
            return Ok(signing);
        }
        // Where there is a configuration, a new CA must be published before anybody serves what it signed.
        let asked = !self.is_static() && configuration::exists(&self.client, self.names.name).await?;
        match found {
            Some(found) => Ok(ca::first(store, &found, asked)?),
            None if asked => anyhow::bail!("it is gone; the leader makes it again"),
            None => Ok(store.load_or_create().await?.signing),
        }
    }

    fn start_sync(
        &self,
        args: &LoopArgs,
        roles: &Roles,
        index: &Arc<Index>,
        stages: &Stages,
        parts: &mut Parts,
    ) -> anyhow::Result<Arc<sync::Sync>> {
        let config = registry::Config {
            plain_http: args.plain_http_registry.clone(),
            registries: super::registries::read(args.registry.registry_config.as_deref())?,
            limits: args.registry.limits(),
            metrics: self.metrics.clone(),
            ..registry::Config::default()
        };
        let registry = registry::Client::new(config).context("cannot make the registry client")?;
        let identity = leader::unique_identity(&self.identity);
        let lease = LeaderConfig::new(&self.namespace, self.names.name, &identity, self.metrics.clone());
        let (leadership, lease) = leader::spawn(self.client.clone(), lease, stages.lease.clone());
        self.vitals.watch("lease", &lease);
        parts.lease.push(lease);
        parts.leadership = Some(leadership.clone());
        let events = Events::new(self.client.clone(), self.identity.clone(), self.metrics.clone());
        let question_timeout = roles.server.as_ref().map_or(Duration::from_secs(2), |s| s.question_timeout);
        let options = sync::Options {
            scope: scope(&self.common.watch_namespace),
            own_namespace: self.namespace.clone(),
            max_rollouts: args.max_rollouts,
            max_rollouts_per_namespace: args.max_rollouts_per_namespace,
            rollout_deadline: args.rollout_deadline,
            rollout_min_interval: args.rollout_min_interval,
            status_heartbeat: args.status_heartbeat,
            clock: self.clock.clone(),
            question_timeout: question_timeout.saturating_sub(QUESTION_MARGIN),
        };
        let (client, metrics) = (self.client.clone(), self.metrics.clone());
        let running = sync::start(client, registry, leadership.clone(), events, metrics, options, stages.sync.clone());
        self.vitals.watch("sync", &running.task);
        parts.sync.push(running.task);
        let warm = self.readiness.register("workloads");
        warm.set(false, "workloads are not listed yet");
        let mut listed = running.warm;
        tokio::spawn(async move {
            if listed.wait_for(|listed| *listed).await.is_ok() {
                warm.set(true, "");
            }
        });
        if roles.endpoint.tls_cert_file.is_none() && !self.is_static() {
            parts.sync.extend(self.keep_configuration(roles, index, &leadership, stages));
        }
        if let Some(path) = roles.socket.clone() {
            parts.sync.push(answer_on(path, running.sync.clone(), stages.sync.clone()));
        }
        Ok(running.sync)
    }

    /// The webhook configuration, written and repaired by the leader, and the CA that it trusts.
    fn keep_configuration(
        &self,
        roles: &Roles,
        index: &Arc<Index>,
        leadership: &Leadership,
        stages: &Stages,
    ) -> [JoinHandle<()>; 2] {
        let endpoint = match &roles.endpoint.webhook_url {
            Some(url) => Endpoint::Url(url.to_string()),
            None => Endpoint::Service { namespace: self.namespace.clone(), name: Names::service().to_owned() },
        };
        let (client, namespace, name) = (self.client.clone(), self.namespace.clone(), self.names.name.to_owned());
        let (trusted, trusted_seen) = tokio::sync::watch::channel(None);
        let (trust, carried) = Trust::following(trusted_seen);
        let claim = leadership.clone();
        let rotation = Rotation {
            store: self.ca_store(),
            timing: Timing::of(roles.endpoint.ca_rotation_delay),
            leads: leadership.subscribe(),
            may_write: Arc::new(move || claim.is_leader()),
            carried,
            trusted,
            condition: self.readiness.register("ca-rotation"),
            metrics: self.metrics.clone(),
        };
        let rotating = tokio::spawn(ca::rotate(rotation, stages.sync.clone()));
        let (index, leads, stop) = (index.clone(), leadership.subscribe(), stages.sync.clone());
        let (published, _) = tokio::sync::watch::channel(false);
        let ca_bundle = CaBundle::Keep; // until the CA is known, nothing is written
        let keeping = tokio::spawn(async move {
            let begin = async {
                let _ = index.ready().wait_for(|ready| *ready).await;
                cluster::owner(&client, &namespace).await
            };
            let Some(owner) = stop.run_until_cancelled(begin).await else {
                return;
            };
            let options = configuration::Options { name, namespace, endpoint, owner: Some(owner), ca_bundle };
            // Not cut short: a write on its way would come after the deletion at exit, and refuse Pods from then on.
            configuration::keep(client, options, trust, index.annotated(), leads, published, stop).await;
        });
        self.vitals.watch("CA rotation", &rotating);
        self.vitals.watch("webhook configuration", &keeping);
        [rotating, keeping]
    }

    /// Where the webhook's certificate comes from; waits for the first CA.
    async fn certificates(&self, endpoint: &EndpointArgs, stages: &Stages) -> CertSource {
        let files = endpoint.tls_cert_file.clone().zip(endpoint.tls_key_file.clone());
        if let Some((certificate, key)) = files {
            return CertSource::Files { certificate, key };
        }
        let (store, condition) = (self.ca_store(), self.readiness.register("ca"));
        let first = self.ca(&store, &condition).await;
        let timing = Timing::of(endpoint.ca_rotation_delay);
        let (by_hand, metrics) = (self.is_static(), self.metrics.clone());
        let following = Following { store, timing, by_hand, condition, metrics };
        let (ca, task) = ca::follow(following, first, stages.server.clone());
        self.vitals.watch("CA", &task);
        CertSource::SelfManaged { ca, dns: self.names.dns.clone(), ips: self.names.ips.clone() }
    }

    async fn start_webhook(
        &self,
        args: &ServerArgs,
        roles: &Roles,
        index: &Arc<Index>,
        asker: Arc<dyn Ask>,
        stages: &Stages,
        parts: &mut Parts,
    ) -> anyhow::Result<()> {
        let at = args.webhook_listen;
        let listener = TcpListener::bind(at).await.with_context(|| format!("cannot listen on {at}"))?;
        let source = self.certificates(&roles.endpoint, stages).await;
        let served = self.readiness.register("certificate");
        let clients = match &args.client_ca_file {
            Some(path) => {
                let condition = self.readiness.register("client-ca");
                Some(client_ca::start(path.clone(), condition, self.metrics.clone(), stages.server.clone()).await?)
            }
            None => None,
        };
        let (metrics, stop) = (self.metrics.clone(), stages.server.clone());
        let (shared, renewing) = tls::start(source, clients, tls::system_clock(), served, metrics, stop).await?;
        self.vitals.watch("certificate", &renewing);
        let routes = Webhook::new(index.clone(), asker, args.question_timeout, self.metrics.clone());
        let in_cluster = roles.endpoint.webhook_url.is_none();
        let options = ServerOptions {
            shutdown_delay: if in_cluster { UNREADY_DELAY } else { Duration::ZERO },
            drain: Duration::from_secs(15),
            counts: self.metrics.server(),
            ..ServerOptions::default()
        };
        tracing::info!(address = %at, "the webhook listens");
        let serving = serve_https(listener, shared, routes, options, stages.server.clone());
        let serving = tokio::spawn(serving.map(|drained| {
            if drained.cut > 0 {
                tracing::warn!(connections = drained.cut, "connections were cut: they did not end in time");
            }
        }));
        self.vitals.watch("webhook", &serving);
        parts.server.push(serving);
        Ok(())
    }
}

/// What is told to stop.
#[derive(Default)]
struct Stages {
    sync: CancellationToken,
    lease: CancellationToken,
    server: CancellationToken,
    caches: CancellationToken,
}

/// What must have ended.
#[derive(Default)]
struct Parts {
    sync: Vec<JoinHandle<()>>,
    lease: Vec<JoinHandle<()>>,
    server: Vec<JoinHandle<()>>,
    leadership: Option<Leadership>,
}

async fn finish(tasks: Vec<JoinHandle<()>>) {
    for task in tasks {
        if let Err(error) = task.await {
            tracing::error!(%error, "a part of the process ended badly");
        }
    }
}

fn scope(namespaces: &[String]) -> index::Scope {
    if namespaces.is_empty() { index::Scope::All } else { index::Scope::Namespaces(namespaces.to_vec()) }
}

fn answer_on(path: PathBuf, sync: Arc<sync::Sync>, stop: CancellationToken) -> JoinHandle<()> {
    tokio::spawn(async move {
        let handler = move |question: Question| {
            let sync = sync.clone();
            async move { sync.ask(question).await }
        };
        while !stop.is_cancelled() {
            if let Err(error) = socket::serve_socket(&path, handler.clone(), stop.clone()).await {
                tracing::error!(%error, "the webhook's questions cannot be answered; trying again");
                stop.run_until_cancelled(tokio::time::sleep(Duration::from_secs(2))).await;
            }
        }
    })
}

/// Sync, beyond a Unix socket.
struct OverSocket {
    path: PathBuf,
    /// One Pod may have a thousand questions, and the process only so many descriptors.
    slots: Semaphore,
}

impl OverSocket {
    fn new(path: PathBuf) -> Self {
        Self { path, slots: Semaphore::new(socket::MAX_CONNECTIONS) }
    }
}

impl Ask for OverSocket {
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answered, String>> {
        async move {
            let _slot = self.slots.acquire().await; // never closed
            let asked = Instant::now();
            loop {
                // The asker's own deadline is the one that counts; this one only bounds what it leaves behind.
                let deadline = Duration::from_secs(10);
                match socket::ask(&self.path, &question, deadline).await {
                    Ok(answer) => return answer,
                    Err(SocketError::Connect { .. }) if asked.elapsed() < SYNC_STARTS => {
                        tokio::time::sleep(SYNC_STARTS / 20).await;
                    }
                    Err(error) => return Err(format!("sync does not answer: {error}")),
                }
            }
        }
        .boxed()
    }
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").map(|name| name.trim().to_owned());
    name.ok().filter(|n| !n.is_empty()).unwrap_or_else(|| format!("kimup-{}", Timestamp::now().as_millisecond()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn questions_at_once_are_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sync.sock");
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        let sync = OverSocket::new(path);
        let question = |n: usize| Question { namespace: "shop".to_owned(), image: n.to_string(), pod: None };
        let asking = futures::future::join_all((0..300).map(|n| sync.ask(question(n))));
        let accepting = async {
            let mut open = Vec::new();
            while open.len() < socket::MAX_CONNECTIONS {
                open.push(listener.accept().await.unwrap());
            }
            assert_eq!(sync.slots.available_permits(), 0, "one more could come");
        };
        tokio::select! {
            _ = asking => panic!("nobody answers"),
            () = accepting => {}
        }
    }
}
