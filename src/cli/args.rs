//! The flags. Each has an environment twin `KIMUP_…`; the reference documentation lists them all.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::registry::Limits;
use crate::telemetry::LogFormat;

use super::mutate::MutateArgs;
use super::select::SelectArgs;
use super::tags::TagsArgs;

/// Keeps Kubernetes workloads on the newest image tag a rule allows, without editing manifests.
#[derive(Parser, Debug)]
#[command(name = "kimup", version, about, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the webhook and sync in one process.
    Run(RunArgs),
    /// Run the admission webhook.
    Webhook(WebhookArgs),
    /// Run the sync loop, the webhook's sidecar.
    Sync(SyncArgs),
    /// Say which of a list of tags would be chosen, and why not each other one. Offline.
    Select(SelectArgs),
    /// List the tags of a repository as sync would: all of them, or an error.
    Tags(TagsArgs),
    /// Say what admission would make of a Pod. Offline.
    Mutate(MutateArgs),
    /// Print the custom resource definitions as YAML.
    Crds,
    /// Print the static webhook configuration, for certificates from files.
    #[command(hide = true)]
    WebhookConfiguration(ConfigurationArgs),
}

/// Flags of `webhook-configuration`.
#[derive(Args, Debug)]
pub struct ConfigurationArgs {
    /// kimup's namespace.
    #[arg(long, default_value = "kimup-system")]
    pub namespace: String,
}

/// Flags of `run`.
#[derive(Args, Debug)]
pub struct RunArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub endpoint: EndpointArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub server: ServerArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sync: LoopArgs,
}

/// Flags of `webhook`.
#[derive(Args, Debug)]
pub struct WebhookArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub endpoint: EndpointArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub server: ServerArgs,
    /// Unix socket on which sync answers.
    #[arg(long, env = "KIMUP_SYNC_SOCKET", value_name = "PATH")]
    pub sync_socket: PathBuf,
}

/// Flags of `sync`.
#[derive(Args, Debug)]
pub struct SyncArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub endpoint: EndpointArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub sync: LoopArgs,
    /// Unix socket on which to answer the webhook.
    #[arg(long, env = "KIMUP_SYNC_SOCKET", value_name = "PATH")]
    pub sync_socket: PathBuf,
}

/// Flags of every process.
#[derive(Args, Clone, Debug)]
pub struct Common {
    /// How to reach the API server [default: KUBECONFIG, ~/.kube/config or the ServiceAccount].
    #[arg(long, env = "KIMUP_KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// kimup's own namespace, for its Lease and CA [default: that of the kubeconfig or ServiceAccount, else kimup-system].
    #[arg(long, env = "KIMUP_NAMESPACE")]
    pub namespace: Option<String>,
    /// Name of this replica in the Lease and in Events [default: the host name].
    #[arg(long, env = "KIMUP_IDENTITY")]
    pub identity: Option<String>,
    /// Address of /healthz, /readyz and /metrics (HTTP).
    #[arg(long, env = "KIMUP_PROBES_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    pub probes_listen: SocketAddr,
    /// Look after these namespaces only; Roles there are enough, and the webhook configuration is static.
    #[arg(long, env = "KIMUP_WATCH_NAMESPACE", value_name = "NAMESPACE", value_delimiter = ',')]
    pub watch_namespace: Vec<String>,
    /// Format of the log on stderr.
    #[arg(long, env = "KIMUP_LOG_FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    /// error, warn, info, debug or trace, or directives such as `info,kimup::registry=debug`.
    #[arg(long, env = "KIMUP_LOG_LEVEL", value_name = "LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Where the API server finds the webhook.
#[derive(Args, Clone, Debug)]
pub struct EndpointArgs {
    /// Outside a cluster: the URL at which the API server reaches the webhook, instead of a Service.
    #[arg(long, env = "KIMUP_WEBHOOK_URL", value_name = "URL")]
    pub webhook_url: Option<url::Url>,
    /// Run with --webhook-url beside a kimup that runs in the cluster.
    #[arg(long, env = "KIMUP_TAKEOVER", requires = "webhook_url")]
    pub takeover: bool,
    /// PEM chain of the webhook's certificate [default: self-managed]. Makes the webhook configuration static.
    #[arg(long, env = "KIMUP_TLS_CERT_FILE", value_name = "FILE", requires = "tls_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// PEM key of that certificate.
    #[arg(long, env = "KIMUP_TLS_KEY_FILE", value_name = "FILE", requires = "tls_cert_file")]
    pub tls_key_file: Option<PathBuf>,
    /// When the CA is rotated: from its publication to the first certificate that it signs. The old one stays trusted ten times
    /// as long. The same for all processes.
    #[arg(long, env = "KIMUP_CA_ROTATION_DELAY", value_name = "DURATION", default_value = "1m", value_parser = rotation_delay)]
    pub ca_rotation_delay: Duration,
}

/// Flags of the webhook's server.
#[derive(Args, Clone, Debug)]
pub struct ServerArgs {
    /// Address of the webhook (HTTPS).
    #[arg(long, env = "KIMUP_WEBHOOK_LISTEN", value_name = "ADDRESS", default_value = "0.0.0.0:8443")]
    pub webhook_listen: SocketAddr,
    /// PEM certificates of the CAs that sign the API server's client certificate; others may not connect [default: all may].
    #[arg(long, env = "KIMUP_CLIENT_CA_FILE", value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// How long a Pod may wait for the first tag of an Image; below the webhook's own 10s.
    #[arg(long, env = "KIMUP_QUESTION_TIMEOUT", value_name = "DURATION", default_value = "2s", value_parser = question_timeout)]
    pub question_timeout: Duration,
}

/// Flags of the sync loop.
#[derive(Args, Clone, Debug)]
pub struct LoopArgs {
    /// Registries that speak plain HTTP, as HOST:PORT.
    #[arg(long, env = "KIMUP_PLAIN_HTTP_REGISTRY", value_name = "HOST:PORT", value_delimiter = ',')]
    pub plain_http_registry: Vec<String>,
    /// Most rollouts in flight in the whole cluster.
    #[arg(long, env = "KIMUP_MAX_ROLLOUTS", default_value_t = 20, value_parser = at_least_one)]
    pub max_rollouts: usize,
    /// Most rollouts in flight in one namespace.
    #[arg(long, env = "KIMUP_MAX_ROLLOUTS_PER_NAMESPACE", default_value_t = 5, value_parser = at_least_one)]
    pub max_rollouts_per_namespace: usize,
    /// How long a rollout may make no progress before it is rolled back, where spec.rollout.deadline does not say.
    #[arg(long, env = "KIMUP_ROLLOUT_DEADLINE", value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub rollout_deadline: Duration,
    /// Least time between two rollouts of one workload, where its Image does not say.
    #[arg(long, env = "KIMUP_ROLLOUT_MIN_INTERVAL", value_name = "DURATION", default_value = "30s", value_parser = zero_or_duration)]
    pub rollout_min_interval: Duration,
    /// How often status.time is written when nothing else changes.
    #[arg(long, env = "KIMUP_STATUS_HEARTBEAT", value_name = "DURATION", default_value = "10m", value_parser = duration)]
    pub status_heartbeat: Duration,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub registry: RegistryArgs,
}

/// How registries are asked, and what a list of tags may cost.
#[allow(clippy::struct_field_names)] // as the flags
#[derive(Args, Clone, Debug)]
pub struct RegistryArgs {
    /// TOML file with mirrors, remapped registries, and how their hosts are reached. Read at the start.
    #[arg(long, env = "KIMUP_REGISTRY_CONFIG", value_name = "FILE")]
    pub registry_config: Option<PathBuf>,
    /// Largest answer of a registry, after decompression.
    #[arg(long, env = "KIMUP_REGISTRY_MAX_PAGE_BYTES", value_name = "SIZE", default_value = "16MiB", value_parser = bytes)]
    pub registry_max_page_bytes: usize,
    /// Most pages of one list of tags.
    #[arg(long, env = "KIMUP_REGISTRY_MAX_PAGES", default_value_t = 1000, value_parser = at_least_one)]
    pub registry_max_pages: usize,
    /// Most tags of one list.
    #[arg(long, env = "KIMUP_REGISTRY_MAX_TAGS", default_value_t = 500_000, value_parser = at_least_one)]
    pub registry_max_tags: usize,
    /// Largest list: all its tags together.
    #[arg(long, env = "KIMUP_REGISTRY_MAX_LIST_BYTES", value_name = "SIZE", default_value = "32MiB", value_parser = bytes)]
    pub registry_max_list_bytes: usize,
    /// Time for one page.
    #[arg(long, env = "KIMUP_REGISTRY_PAGE_TIMEOUT", value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub registry_page_timeout: Duration,
    /// Time for one list, retries included.
    #[arg(long, env = "KIMUP_REGISTRY_DEADLINE", value_name = "DURATION", default_value = "5m", value_parser = duration)]
    pub registry_deadline: Duration,
    /// Requests a second to one registry host.
    #[arg(long, env = "KIMUP_REGISTRY_RATE", default_value_t = 5.0, value_parser = rate)]
    pub registry_rate: f64,
}

impl RegistryArgs {
    /// The caps as the registry client takes them.
    pub fn limits(&self) -> Limits {
        Limits {
            max_page_bytes: self.registry_max_page_bytes,
            max_pages: self.registry_max_pages,
            max_tags: self.registry_max_tags,
            max_list_bytes: self.registry_max_list_bytes,
            page_timeout: self.registry_page_timeout,
            deadline: self.registry_deadline,
            rate: self.registry_rate,
        }
    }
}

/// How a command prints its result on stdout.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    Text,
    /// For programs: one JSON object.
    Json,
}

/// As [`duration`], and `0s`.
fn zero_or_duration(text: &str) -> Result<Duration, String> {
    if humantime::parse_duration(text).is_ok_and(|found| found.is_zero()) { Ok(Duration::ZERO) } else { duration(text) }
}

fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(zero) if zero.is_zero() => Err("it must be longer than 0s".to_owned()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; use a duration such as 30s or 5m")),
    }
}

/// Below that, what has been published may not have arrived; above, rotations would take days.
fn rotation_delay(text: &str) -> Result<Duration, String> {
    let delay = duration(text)?;
    if !(Duration::from_millis(100)..=Duration::from_secs(3600)).contains(&delay) {
        return Err("it must be from 100ms to 1h".to_owned());
    }
    Ok(delay)
}

fn question_timeout(text: &str) -> Result<Duration, String> {
    let timeout = duration(text)?;
    if timeout >= Duration::from_secs(10) {
        return Err("it must be shorter than the webhook's own timeout of 10s".to_owned());
    }
    Ok(timeout)
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(error) => Err(format!("{error}")),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if (0.001..=1e6).contains(&rate) => Ok(rate),
        Ok(_) => Err("it must be from 0.001 to 1000000".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// `16MiB`, `512KiB`, `1GiB` or a bare number of bytes.
fn bytes(text: &str) -> Result<usize, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        other => return Err(format!("unknown unit {other:?}; use KiB, MiB or GiB")),
    };
    let number: usize = digits.trim().parse().map_err(|e| format!("{e}"))?;
    number.checked_mul(unit).filter(|n| *n > 0).ok_or_else(|| "it is out of range".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_has_its_environment_twin() {
        for command in Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let flags = command.get_arguments().filter(|a| !a.is_positional());
            for flag in flags.filter(|a| !["help", "version"].contains(&a.get_id().as_str())) {
                let long = flag.get_long().unwrap();
                let twin = format!("KIMUP_{}", long.replace('-', "_").to_uppercase());
                assert_eq!(flag.get_env().and_then(|e| e.to_str()), Some(&*twin), "--{long} of {}", command.get_name());
            }
        }
    }

    #[test]
    fn sizes_are_read() {
        fn check(text: &str, expected: Option<usize>) {
            assert_eq!(bytes(text).ok(), expected, "{text}");
        }
        check("16MiB", Some(16 << 20));
        check("512KiB", Some(512 << 10));
        check("1GiB", Some(1 << 30));
        check("100", Some(100));
        check("0", None);
        check("16MB", None);
        check("-1MiB", None);
        check("", None);
        check("99999999999999999999GiB", None);
    }
}
