//! The one metrics registry of the process, in `OpenMetrics` text form.

use std::collections::HashSet;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use super::histogram::Histogram;

/// Media type of [`Metrics::encode`] (`OpenMetrics` 1.0).
pub const METRICS_CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Distinct `host` values kept; further hosts count as `other`. Hosts come from users' Images, so they must not grow without end.
const MAX_HOSTS: usize = 200;

/// Every metric by its exposed name, with its help text. The reference page lists the same.
pub const METRICS: &[(&str, &str)] = &[
    (ADMISSION_REQUESTS, "Pods answered by the webhook, by outcome: mutated, unchanged, denied or error"),
    (ADMISSION_DURATION, "Time from the request head to the answer of the webhook"),
    (ADMISSION_PANICS, "Panics while a Pod was answered by the webhook, each a bug of kimup"),
    (
        REQUESTS_REFUSED,
        "Requests that got no answer to their review, by reason: not-ready and overload (503), too-large (413), too-slow (408), broken (400), timeout (504)",
    ),
    (
        CONNECTIONS_CLOSED,
        "Connections that the webhook's server closed by itself, by reason: pushed-out by a new one, overdue, or full when it found no place",
    ),
    (QUESTIONS, "Questions of the webhook to sync, by outcome: answered, failed or timeout"),
    (SYNCS, "Syncs of an Image, by the result in its status"),
    (REGISTRY_REQUESTS, "Requests sent to registries and their token services, by registry host"),
    (REGISTRY_ERRORS, "Requests to registries without a usable answer, by registry host"),
    (ROLLOUTS, "Rollouts of workloads, by outcome: started or settled"),
    (KUBERNETES_WRITES, "Writes to the Kubernetes API, by kind of object"),
    (LEADER, "1 while this process holds the Lease, else 0"),
    (CLOCK_OFFSET, "What the API server's clock is ahead of this machine's, in seconds; within about one"),
    (IMAGES, "Images in the cache of this process"),
    (
        LAST_SEEN,
        "When the watches of the cache last heard of the API server (event, bookmark or list), in seconds since the epoch",
    ),
    (CERTIFICATE_EXPIRY, "When the certificate that is served now expires, in seconds since the epoch"),
    (CA_EXPIRY, "When the self-managed CA that signs now expires, in seconds since the epoch; 0 without one"),
    (
        CERTIFICATE_FAILING,
        "1 while a newer certificate or CA cannot be taken and the old one stays in use, by part: serving, ca, rotation or client-ca",
    ),
    (BUILD_INFO, "Always 1; the version of kimup is a label"),
    (RESIDENT_MEMORY, "Resident memory of the process (Linux only)"),
    (CPU_SECONDS, "User and system time of the process (Linux only)"),
];

const ADMISSION_REQUESTS: &str = "kimup_admission_requests_total";
const ADMISSION_DURATION: &str = "kimup_admission_duration_seconds";
const ADMISSION_PANICS: &str = "kimup_admission_panics_total";
const REQUESTS_REFUSED: &str = "kimup_requests_refused_total";
const CONNECTIONS_CLOSED: &str = "kimup_connections_closed_total";
const QUESTIONS: &str = "kimup_questions_total";
const SYNCS: &str = "kimup_syncs_total";
const REGISTRY_REQUESTS: &str = "kimup_registry_requests_total";
const REGISTRY_ERRORS: &str = "kimup_registry_errors_total";
const ROLLOUTS: &str = "kimup_rollouts_total";
const KUBERNETES_WRITES: &str = "kimup_kubernetes_writes_total";
const LEADER: &str = "kimup_leader";
const CLOCK_OFFSET: &str = "kimup_clock_offset_seconds";
const IMAGES: &str = "kimup_images";
const LAST_SEEN: &str = "kimup_watch_last_seen_timestamp_seconds";
const CERTIFICATE_EXPIRY: &str = "kimup_certificate_expiry_timestamp_seconds";
const CA_EXPIRY: &str = "kimup_ca_expiry_timestamp_seconds";
const CERTIFICATE_FAILING: &str = "kimup_certificate_renewal_failing";
const BUILD_INFO: &str = "kimup_build_info";
const RESIDENT_MEMORY: &str = "process_resident_memory_bytes";
const CPU_SECONDS: &str = "process_cpu_seconds_total";

/// An enum whose variants are label values.
macro_rules! label_value {
    ($(#[$meta:meta])* $name:ident { $($(#[$vmeta:meta])* $variant:ident = $text:literal),+ $(,)? }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant),+ }

        impl $name {
            const ALL: &[Self] = &[$(Self::$variant),+];

            /// The label value.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }
        }
    };
}

label_value! {
    /// How the webhook answered.
    AdmissionOutcome {
        /// Admitted with at least one image changed.
        Mutated = "mutated",
        /// Admitted as it came.
        Unchanged = "unchanged",
        /// Refused by the failure policy.
        Denied = "denied",
        /// The request was no AdmissionReview of a Pod, or answering it failed.
        Error = "error",
    }
}

label_value! {
    /// Why a request got no answer to its review.
    Refused {
        /// Namespaces and Images are not listed yet.
        NotReady = "not-ready",
        /// Too many bytes of bodies are held at once.
        Overload = "overload",
        /// The body is larger than any review.
        TooLarge = "too-large",
        /// The body did not arrive in time.
        TooSlow = "too-slow",
        /// The body ended early.
        Broken = "broken",
        /// The answer took too long.
        Timeout = "timeout",
    }
}

label_value! {
    /// Why a server closed a connection by itself.
    ConnectionEnd {
        /// For another one, while its client owed something.
        PushedOut = "pushed-out",
        /// Its client took longer than it may.
        Overdue = "overdue",
        /// It was new, and every other one was being answered.
        Full = "full",
    }
}

label_value! {
    /// How a question of the webhook to sync ended.
    QuestionOutcome {
        /// With a tag or a definite "none".
        Answered = "answered",
        /// With an error.
        Failed = "failed",
        /// Not before the deadline.
        Timeout = "timeout",
    }
}

label_value! {
    /// What is renewed.
    CertificatePart {
        /// The certificate that is served.
        Serving = "serving",
        /// The CA that signs it, as read from its Secret.
        Ca = "ca",
        /// The CA in the Secret, and in the webhook configuration.
        Rotation = "rotation",
        /// The CAs that clients are checked against.
        Clients = "client-ca",
    }
}

label_value! {
    /// What happened to a rollout.
    RolloutOutcome {
        /// A stamp was written.
        Started = "started",
        /// All Pods of the workload run the new revision.
        Settled = "settled",
        /// An Image's workloads went back from a rejected tag.
        RolledBack = "rolled_back",
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabel {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct PartLabel {
    part: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResultLabel {
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HostLabel {
    host: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WatchLabel {
    resource: &'static str,
    namespace: String,
}

/// `kimup_watch_last_seen_timestamp_seconds` of one watch.
#[derive(Clone, Debug)]
pub struct LastSeen(Gauge);

impl LastSeen {
    /// Seconds since the epoch.
    pub fn set(&self, now: i64) {
        self.0.set(now);
    }
}

/// What a server counts: `kimup_requests_refused_total` and `kimup_connections_closed_total`. Those by default are nobody's.
#[derive(Clone, Debug, Default)]
pub struct ServerCounts {
    refused: Family<ReasonLabel, Counter>,
    closed: Family<ReasonLabel, Counter>,
}

impl ServerCounts {
    fn new() -> Self {
        let refused = reasons(Refused::ALL.iter().map(|reason| reason.as_str()));
        Self { refused, closed: reasons(ConnectionEnd::ALL.iter().map(|reason| reason.as_str())) }
    }

    /// One more request.
    pub fn refused(&self, why: Refused) {
        self.refused.get_or_create(&ReasonLabel { reason: why.as_str() }).inc();
    }

    /// So many more connections.
    pub fn closed(&self, why: ConnectionEnd, count: usize) {
        self.closed.get_or_create(&ReasonLabel { reason: why.as_str() }).inc_by(count as u64);
    }
}

/// All metrics of the process. Cheap to clone; clones count together. Recording never fails and never waits for I/O.
#[derive(Clone, Debug)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    registry: Registry,
    hosts: Mutex<HashSet<String>>,
    admission_requests: Family<OutcomeLabel, Counter>,
    /// The counters of the line above, in the order of [`AdmissionOutcome::ALL`]: this one is on the way of every Pod.
    admission_outcomes: Vec<Counter>,
    admission_panics: Counter,
    admission_duration: Histogram,
    server: ServerCounts,
    questions: Family<OutcomeLabel, Counter>,
    syncs: Family<ResultLabel, Counter>,
    registry_requests: Family<HostLabel, Counter>,
    registry_errors: Family<HostLabel, Counter>,
    rollouts: Family<OutcomeLabel, Counter>,
    kubernetes_writes: Family<KindLabel, Counter>,
    leader: Gauge,
    clock_offset: Gauge<f64, AtomicU64>,
    images: Gauge,
    last_seen: Family<WatchLabel, Gauge>,
    certificate_expiry: Gauge,
    ca_expiry: Gauge,
    certificate_failing: Family<PartLabel, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// A registry of its own with everything at zero. One per process; tests may have many.
    pub fn new() -> Self {
        // From half a millisecond (answered from memory) to the longest webhook timeout Kubernetes allows.
        let buckets = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
        let admission_requests = outcomes(AdmissionOutcome::ALL.iter().map(|o| o.as_str()));
        let counter = |outcome: &AdmissionOutcome| {
            admission_requests.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).clone()
        };
        let mut inner = Inner {
            registry: Registry::default(),
            hosts: Mutex::default(),
            admission_outcomes: AdmissionOutcome::ALL.iter().map(counter).collect(),
            admission_requests,
            admission_panics: Counter::default(),
            admission_duration: Histogram::new(&buckets),
            server: ServerCounts::new(),
            questions: outcomes(QuestionOutcome::ALL.iter().map(|o| o.as_str())),
            syncs: Family::default(),
            registry_requests: Family::default(),
            registry_errors: Family::default(),
            rollouts: outcomes(RolloutOutcome::ALL.iter().map(|o| o.as_str())),
            kubernetes_writes: Family::default(),
            leader: Gauge::default(),
            clock_offset: Gauge::default(),
            images: Gauge::default(),
            last_seen: Family::default(),
            certificate_expiry: Gauge::default(),
            ca_expiry: Gauge::default(),
            certificate_failing: Family::default(),
        };
        for part in CertificatePart::ALL {
            drop(inner.certificate_failing.get_or_create(&PartLabel { part: part.as_str() }));
        }
        inner.register_all();
        Self { inner: Arc::new(inner) }
    }

    /// `kimup_admission_requests_total{outcome}` and `kimup_admission_duration_seconds`: one answered AdmissionReview.
    pub fn admission(&self, outcome: AdmissionOutcome, took: Duration) {
        if let Some(counter) = self.inner.admission_outcomes.get(outcome as usize) {
            counter.inc();
        }
        self.inner.admission_duration.observe(took);
    }

    /// `kimup_admission_panics_total`: answering a Pod panicked; it was answered by the failure policy.
    pub fn admission_panic(&self) {
        self.inner.admission_panics.inc();
    }

    /// `kimup_requests_refused_total{reason}` and `kimup_connections_closed_total{reason}`, for the webhook's server.
    pub fn server(&self) -> ServerCounts {
        self.inner.server.clone()
    }

    /// `kimup_questions_total{outcome}`: one question of the webhook to sync.
    pub fn question(&self, outcome: QuestionOutcome) {
        self.inner.questions.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
    }

    /// `kimup_syncs_total{result}`: one sync of an Image; `result` is the text of `status.result`.
    pub fn sync(&self, result: &'static str) {
        self.inner.syncs.get_or_create(&ResultLabel { result }).inc();
    }

    /// `kimup_registry_requests_total{host}`: one HTTP request sent for the registry `host` (`host[:port]`).
    pub fn registry_request(&self, host: &str) {
        let host = self.inner.host(host);
        self.inner.registry_requests.get_or_create(&HostLabel { host }).inc();
    }

    /// `kimup_registry_errors_total{host}`: one request without a usable answer (no connection, bad status, bad body).
    pub fn registry_error(&self, host: &str) {
        let host = self.inner.host(host);
        self.inner.registry_errors.get_or_create(&HostLabel { host }).inc();
    }

    /// `kimup_rollouts_total{outcome}`.
    pub fn rollout(&self, outcome: RolloutOutcome) {
        self.inner.rollouts.get_or_create(&OutcomeLabel { outcome: outcome.as_str() }).inc();
    }

    /// `kimup_kubernetes_writes_total{kind}`: one write sent to the API server; `kind` as in a manifest (`Deployment`).
    pub fn kubernetes_write(&self, kind: &'static str) {
        self.inner.kubernetes_writes.get_or_create(&KindLabel { kind }).inc();
    }

    /// `kimup_leader`.
    pub fn set_leader(&self, leader: bool) {
        self.inner.leader.set(i64::from(leader));
    }

    /// `kimup_clock_offset_seconds`: what the API server's clock is ahead of this machine's; negative if it is behind.
    pub fn set_clock_offset(&self, seconds: f64) {
        self.inner.clock_offset.set(seconds);
    }

    /// `kimup_images`: how many Images the cache of this process holds.
    pub fn set_images(&self, images: usize) {
        self.inner.images.set(i64::try_from(images).unwrap_or(i64::MAX));
    }

    /// `kimup_watch_last_seen_timestamp_seconds{resource,namespace}` of the watch of a resource (`images`), in one namespace
    /// or, with `""`, in all. 0 until it is set.
    pub fn last_seen(&self, resource: &'static str, namespace: &str) -> LastSeen {
        let label = WatchLabel { resource, namespace: namespace.to_owned() };
        LastSeen(self.inner.last_seen.get_or_create(&label).clone())
    }

    /// `kimup_certificate_expiry_timestamp_seconds`: `notAfter` of the certificate that is served, in seconds since the epoch.
    pub fn set_certificate_expiry(&self, not_after: i64) {
        self.inner.certificate_expiry.set(not_after);
    }

    /// `kimup_ca_expiry_timestamp_seconds`: `notAfter` of the self-managed CA that signs, in seconds since the epoch.
    pub fn set_ca_expiry(&self, not_after: i64) {
        self.inner.ca_expiry.set(not_after);
    }

    /// `kimup_certificate_renewal_failing{part}`: whether something newer cannot be taken.
    pub fn set_certificate_failing(&self, part: CertificatePart, failing: bool) {
        let gauge = self.inner.certificate_failing.get_or_create(&PartLabel { part: part.as_str() });
        gauge.set(i64::from(failing));
    }

    /// Everything as `OpenMetrics` text ([`METRICS_CONTENT_TYPE`]). Reads `/proc/self` where there is one.
    pub fn encode(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail; should an encoder refuse, a scrape without its end marker is an error in
        // Prometheus, which is the right answer to half of the metrics.
        if let Err(error) = prometheus_client::encoding::text::encode(&mut text, &self.inner.registry) {
            tracing::error!(%error, "metrics cannot be encoded");
        }
        text
    }
}

impl Inner {
    /// `host` as a label value: itself, or `other` when [`MAX_HOSTS`] are known already.
    fn host(&self, host: &str) -> String {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        if !hosts.contains(host) {
            if hosts.len() >= MAX_HOSTS {
                return "other".to_owned();
            }
            hosts.insert(host.to_owned());
        }
        host.to_owned()
    }

    fn register_all(&mut self) {
        let registry = &mut self.registry;
        add(registry, ADMISSION_REQUESTS, self.admission_requests.clone());
        add(registry, ADMISSION_DURATION, self.admission_duration.clone());
        add(registry, ADMISSION_PANICS, self.admission_panics.clone());
        add(registry, REQUESTS_REFUSED, self.server.refused.clone());
        add(registry, CONNECTIONS_CLOSED, self.server.closed.clone());
        add(registry, QUESTIONS, self.questions.clone());
        add(registry, SYNCS, self.syncs.clone());
        add(registry, REGISTRY_REQUESTS, self.registry_requests.clone());
        add(registry, REGISTRY_ERRORS, self.registry_errors.clone());
        add(registry, ROLLOUTS, self.rollouts.clone());
        add(registry, KUBERNETES_WRITES, self.kubernetes_writes.clone());
        add(registry, LEADER, self.leader.clone());
        add(registry, CLOCK_OFFSET, self.clock_offset.clone());
        add(registry, IMAGES, self.images.clone());
        add(registry, LAST_SEEN, self.last_seen.clone());
        add(registry, CERTIFICATE_EXPIRY, self.certificate_expiry.clone());
        add(registry, CA_EXPIRY, self.ca_expiry.clone());
        add(registry, CERTIFICATE_FAILING, self.certificate_failing.clone());
        add(registry, BUILD_INFO, Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        registry.register_collector(Box::new(ProcessCollector));
    }
}

/// Outcomes start at zero, so that `rate()` sees the first one too.
fn outcomes(all: impl Iterator<Item = &'static str>) -> Family<OutcomeLabel, Counter> {
    let family = Family::<OutcomeLabel, Counter>::default();
    for outcome in all {
        drop(family.get_or_create(&OutcomeLabel { outcome }));
    }
    family
}

fn reasons(all: impl Iterator<Item = &'static str>) -> Family<ReasonLabel, Counter> {
    let family = Family::<ReasonLabel, Counter>::default();
    for reason in all {
        drop(family.get_or_create(&ReasonLabel { reason }));
    }
    family
}

fn help(name: &str) -> &'static str {
    METRICS.iter().find(|(known, _)| *known == name).map_or("", |(_, help)| help)
}

/// The name without what the encoder adds for the type.
fn stem(name: &str) -> &str {
    name.strip_suffix("_total").or_else(|| name.strip_suffix("_info")).unwrap_or(name)
}

fn add(registry: &mut Registry, name: &str, metric: impl Metric) {
    registry.register(stem(name), help(name), metric);
}

/// The process metrics by their conventional names, read at each scrape.
#[derive(Debug)]
struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder) -> std::fmt::Result {
        let read = |path: &str| std::fs::read_to_string(path).ok();
        if let Some(bytes) = read("/proc/self/status").as_deref().and_then(resident_bytes) {
            let gauge = ConstGauge::new(bytes);
            let name = RESIDENT_MEMORY;
            gauge.encode(encoder.encode_descriptor(stem(name), help(name), None, gauge.metric_type())?)?;
        }
        if let Some(seconds) = read("/proc/self/stat").as_deref().and_then(cpu_seconds) {
            let counter = ConstCounter::new(seconds);
            let name = CPU_SECONDS;
            counter.encode(encoder.encode_descriptor(stem(name), help(name), None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

/// `VmRSS` of `/proc/PID/status`, which is in KiB (`proc_pid_status(5)`).
fn resident_bytes(status: &str) -> Option<i64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kibibytes: i64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

/// utime and stime of `/proc/PID/stat` (`proc_pid_stat(5)`), in ticks of 1/100 s: `USER_HZ` is 100 on every Linux
/// architecture that kimup is built for.
fn cpu_seconds(stat: &str) -> Option<f64> {
    // The command name is in parentheses and may hold anything, parentheses and blanks too.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let user: u32 = fields.next()?.parse().ok()?;
    let system: u32 = fields.next()?.parse().ok()?;
    Some((f64::from(user) + f64::from(system)) / 100.0)
}

#[cfg(test)]
mod tests;
