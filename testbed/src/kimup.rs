//! kimup itself, as a process.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use reqwest::Client;
use rustix::process::Signal;

use crate::process::{Process, ProcessSpec, start_on_ports};
use crate::run_dir::run_dir;
use crate::wait::try_eventually;

/// What `--webhook-url` says.
#[derive(Clone, Debug, Default)]
pub enum WebhookUrl {
    /// The option is not given.
    #[default]
    None,
    /// This process, at the port it listens on.
    Own,
    /// Somewhere else: a [`crate::Balancer`] in front of several.
    At(SocketAddr),
}

/// How kimup is started. [`KimupOptions::new`] has defaults for all but two.
#[derive(Clone, Debug)]
pub struct KimupOptions {
    /// The program: `env!("CARGO_BIN_EXE_kimup")` in an integration test.
    pub binary: PathBuf,
    /// `run`, `webhook` or `sync`. `sync` has no webhook and is given no `--webhook-listen`.
    pub command: String,
    pub kubeconfig: PathBuf,
    pub webhook_url: WebhookUrl,
    /// Further arguments.
    pub args: Vec<String>,
    /// Its environment, beside `PATH`, `TMPDIR` and `HOME`.
    pub env: Vec<(String, String)>,
    /// What its log is called, to tell replicas apart.
    pub name: String,
    /// How long `/readyz` may take; `None` does not wait for it, only for `/healthz`.
    pub ready_within: Option<Duration>,
}

impl KimupOptions {
    /// `kimup run --kubeconfig …` with its own address as `--webhook-url`, ready within 30 seconds.
    pub fn new(binary: impl Into<PathBuf>, kubeconfig: impl Into<PathBuf>) -> Self {
        Self {
            binary: binary.into(),
            command: "run".to_owned(),
            kubeconfig: kubeconfig.into(),
            webhook_url: WebhookUrl::Own,
            args: Vec::new(),
            // Scenarios push one tag after the other; those about the rest between two rollouts say so in their Image.
            env: vec![("KIMUP_ROLLOUT_MIN_INTERVAL".to_owned(), "0s".to_owned())],
            name: "kimup".to_owned(),
            ready_within: Some(Duration::from_secs(30)),
        }
    }

    fn spec(&self, folder: &Path, [webhook, probes]: [u16; 2]) -> ProcessSpec {
        let mut spec = ProcessSpec::new(&self.name, self.binary.clone(), folder)
            .args([self.command.clone(), "--kubeconfig".to_owned(), self.kubeconfig.display().to_string()])
            .args(["--probes-listen".to_owned(), local(probes).to_string()]);
        if self.command != "sync" {
            spec = spec.args(["--webhook-listen".to_owned(), local(webhook).to_string()]);
        }
        let url = match self.webhook_url {
            WebhookUrl::None => None,
            WebhookUrl::Own => Some(local(webhook)),
            WebhookUrl::At(address) => Some(address),
        };
        if let Some(address) = url {
            spec = spec.args(["--webhook-url".to_owned(), format!("https://{address}")]);
        }
        spec.env.clone_from(&self.env);
        spec.args(self.args.clone())
    }
}

/// A running kimup. Dropping it kills it.
pub struct KimupProcess {
    process: Process,
    webhook: SocketAddr,
    probes: SocketAddr,
    options: KimupOptions,
}

impl KimupProcess {
    /// Starts it on ports from the kernel and waits until it is ready.
    pub async fn start(options: KimupOptions) -> Result<Self> {
        crate::install_crypto_provider();
        let folder = run_dir()?.folder(&options.name)?;
        let (endpoint, deadline) = match options.ready_within {
            Some(deadline) => ("readyz", deadline),
            None => ("healthz", Duration::from_secs(30)),
        };
        let http = http_client()?;
        let (process, [webhook, probes]) = start_on_ports(
            deadline,
            |ports| options.spec(&folder, ports),
            async |_, [_, probes]| probe(&http, local(probes), endpoint).await.map(drop),
        )
        .await?;
        let mut kimup = Self { process, webhook: local(webhook), probes: local(probes), options };
        // If the port was taken, the answer was another process's.
        kimup.process.check_running()?;
        Ok(kimup)
    }

    /// Starts it again after [`KimupProcess::kill`] with the same options, on new ports.
    pub async fn start_again(mut self) -> Result<Self> {
        self.kill();
        Self::start(self.options.clone()).await
    }

    /// Where its webhook listens.
    pub fn webhook(&self) -> SocketAddr {
        self.webhook
    }

    /// Where `/healthz`, `/readyz` and `/metrics` are.
    pub fn probes(&self) -> SocketAddr {
        self.probes
    }

    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Where its stderr goes.
    pub fn log(&self) -> &Path {
        self.process.log()
    }

    /// What it has logged so far.
    pub fn log_text(&self) -> String {
        self.process.log_text()
    }

    /// SIGKILL; returns when it is gone.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// SIGTERM; how it ended, or an error if it has not within `deadline`.
    pub async fn terminate(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.process.terminate(deadline).await
    }

    /// SIGTERM, without waiting for the end; the second one ends it at once.
    pub fn ask_to_stop(&mut self) -> Result<()> {
        self.process.signal(Signal::TERM)
    }

    /// How it ended, or an error if it has not within `deadline`. Nothing is sent.
    pub async fn ended(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.process.ended(deadline).await
    }

    /// SIGSTOP: it hangs, and its connections stay open.
    pub fn freeze(&mut self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// SIGCONT.
    pub fn thaw(&mut self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// An error with the end of its log, if it has ended by itself.
    pub fn check_running(&mut self) -> Result<()> {
        self.process.check_running()
    }

    /// Whether `/readyz` says so; the error says what it says instead.
    pub async fn ready(&self) -> Result<()> {
        probe(&http_client()?, self.probes, "readyz").await.map(drop)
    }

    /// Waits until `/readyz` says so.
    pub async fn wait_ready(&self, within: Duration) -> Result<()> {
        let http = http_client()?;
        let ready = async || probe(&http, self.probes, "readyz").await;
        try_eventually(within, "kimup is ready", ready).await.map(drop)
    }

    /// `/metrics` in the text format.
    pub async fn metrics(&self) -> Result<String> {
        probe(&http_client()?, self.probes, "metrics").await
    }

    /// The sum over the series of one metric whose labels are among others these (`[("result", "Success")]`); 0 if
    /// there is none.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> Result<f64> {
        Ok(sum(&self.metrics().await?, name, labels))
    }

    /// Resident memory now, in bytes.
    pub fn rss_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    /// The most resident memory it has had since it started, in bytes.
    pub fn peak_rss_bytes(&self) -> Result<u64> {
        self.status_bytes("VmHWM:")
    }

    fn status_bytes(&self, name: &str) -> Result<u64> {
        let status = self.proc("status")?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let line = line.with_context(|| format!("no {name} it has ended"))?;
        let kilobytes: u64 = line.trim().trim_end_matches(" kB").trim().parse()?;
        Ok(kilobytes * 1024)
    }

    /// User and system time of all its threads since it started, in steps of 10 ms.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = self.proc("stat")?;
        // After the name in parentheses, which may hold anything; fields 14 and 15 of proc(5).
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = fields.get(11).zip(fields.get(12)).context("no times in /proc/PID/stat")?;
        Ok(Duration::from_millis((ticks.0.parse::<u64>()? + ticks.1.parse::<u64>()?) * 10)) // USER_HZ is 100
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.process.id());
        std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))
    }

    /// Lets it run on after this process, as [`crate::Cluster::leave_running`] does; the same script ends it.
    pub fn leave_running(self) -> Result<PathBuf> {
        let script = run_dir()?.leave()?;
        self.process.leave_running();
        Ok(script)
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn http_client() -> Result<Client> {
    crate::install_crypto_provider();
    Ok(Client::builder().tls_certs_only([]).no_proxy().timeout(Duration::from_secs(5)).build()?)
}

async fn probe(http: &Client, address: SocketAddr, path: &str) -> Result<String> {
    let answer = http.get(format!("http://{address}/{path}")).send().await?;
    let status = answer.status();
    let body = answer.text().await?;
    if !status.is_success() {
        bail!("/{path} answers {status}: {body}");
    }
    Ok(body)
}

fn sum(exposition: &str, name: &str, labels: &[(&str, &str)]) -> f64 {
    let series = exposition.lines().filter(|line| !line.starts_with('#'));
    series.filter_map(|line| value_of(line, name, labels)).sum()
}

/// The value of one line, `name{key="value",…} 1`, if it is of this metric and has these labels. Good for labels
/// without quotes and commas in them.
fn value_of(line: &str, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
    let rest = line.strip_prefix(name)?;
    let (found, value) = match rest.strip_prefix('{') {
        Some(rest) => rest.split_once('}')?,
        None if rest.starts_with(' ') => ("", rest),
        None => return None,
    };
    let found: BTreeMap<&str, &str> = found.split(',').filter_map(|pair| pair.split_once('=')).collect();
    let has = |(key, value): &(&str, &str)| found.get(key).is_some_and(|found| found.trim_matches('"') == *value);
    if !labels.iter().all(has) {
        return None;
    }
    value.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_summed_over_matching_series() {
        #[track_caller]
        fn check(text: &str, name: &str, labels: &[(&str, &str)], expected: f64) {
            let found = sum(text, name, labels);
            assert!((found - expected).abs() < 1e-9, "{name} {labels:?}: {found}");
        }
        let text = "# HELP syncs x\nsyncs{result=\"Success\",ns=\"a\"} 2\nsyncs{result=\"Success\",ns=\"b\"} 3\n\
                    syncs{result=\"Error\",ns=\"a\"} 1 1700000000\nsyncs_total 9\nup 1\n# EOF\n";
        check(text, "syncs", &[("result", "Success")], 5.0);
        check(text, "syncs", &[("ns", "a"), ("result", "Success")], 2.0);
        check(text, "syncs", &[], 6.0);
        check(text, "syncs", &[("result", "None")], 0.0);
        check(text, "syncs_total", &[], 9.0);
        check(text, "up", &[], 1.0);
        check(text, "absent", &[], 0.0);
    }

    #[test]
    fn each_command_gets_its_own_flags() {
        fn check(command: &str, url: WebhookUrl, expected: &str) {
            let mut options = KimupOptions::new("kimup", "/k");
            (options.command, options.webhook_url) = (command.to_owned(), url);
            options.args = vec!["--x".to_owned()];
            assert_eq!(options.spec(Path::new("/f"), [1, 2]).args.join(" "), expected);
        }
        let other = WebhookUrl::At(local(9));
        check(
            "run",
            WebhookUrl::Own,
            "run --kubeconfig /k --probes-listen 127.0.0.1:2 --webhook-listen 127.0.0.1:1 --webhook-url https://127.0.0.1:1 --x",
        );
        check(
            "webhook",
            other,
            "webhook --kubeconfig /k --probes-listen 127.0.0.1:2 --webhook-listen 127.0.0.1:1 --webhook-url https://127.0.0.1:9 --x",
        );
        check("sync", WebhookUrl::None, "sync --kubeconfig /k --probes-listen 127.0.0.1:2 --x");
    }
}
