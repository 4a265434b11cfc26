//! What the demo runs on: a cluster, a private registry, kimup as a process under the RBAC of `deploy/`.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kimup_testbed::{Cluster, Process, ProcessSpec, Registry, checkout, free_port, run_dir, tool, try_eventually};

use super::shell::Shell;

/// How long kimup may take to be ready.
const READY: Duration = Duration::from_secs(30);

/// User and password of the registry.
pub const USER: (&str, &str) = ("robot", "s3cret-pull");

pub struct Stage {
    pub shell: Shell,
    pub registry: String,
    folder: PathBuf,
    cluster: Cluster,
    registry_process: Registry,
    kimup: Kimup,
    exports: Vec<Export>,
}

/// kimup, on the same ports at each start, so that the API server finds it where it was.
struct Kimup {
    spec: ProcessSpec,
    probes: u16,
    process: Option<Process>,
}

impl Stage {
    /// Starts the cluster and the registry, and prepares the shell.
    pub async fn set(kimup: &Path) -> Result<Self> {
        let (cluster, registry_process) =
            tokio::try_join!(Cluster::start(), Registry::htpasswd(USER.0, USER.1)).context("starting the test bed")?;
        let folder = run_dir()?.folder("demo")?;
        let registry = registry_process.host();
        let exports = exports(&cluster, &registry, kimup, &folder)?;
        let mut env: Vec<_> = exports.iter().map(|export| (export.key.to_owned(), export.value.clone())).collect();
        // The preferences of the person who looks on would change what kubectl shows.
        env.push(("KUBECTL_KUBERC".to_owned(), "false".to_owned()));
        let shell = Shell::new(checkout().to_owned(), env);
        let spec = ProcessSpec::new("kimup", kimup.to_owned(), &folder);
        let kimup = Kimup { spec, probes: free_port()?, process: None };
        Ok(Self { shell, registry, folder, cluster, registry_process, kimup, exports })
    }

    /// The environment, as a person would set it.
    pub fn print_exports(&self) {
        for export in &self.exports {
            self.shell.prompt(&export.typed);
        }
    }

    /// Prints kimup's command line and starts it; returns when it is ready.
    pub async fn start_kimup(&mut self) -> Result<()> {
        if self.kimup.spec.args.is_empty() {
            let token = self.cluster.kubeconfig_for("kimup-system", "kimup").await?;
            let kubeconfig = self.folder.join("kimup.kubeconfig");
            fs::copy(token, &kubeconfig)?;
            let webhook = format!("127.0.0.1:{}", free_port()?);
            let (probes, url) = (format!("127.0.0.1:{}", self.kimup.probes), format!("https://{webhook}"));
            let spec = self.kimup.spec.clone().args(["run", "--kubeconfig", &kubeconfig.display().to_string()]);
            let spec = spec.args(["--namespace", "kimup-system", "--plain-http-registry", &self.registry]);
            let spec = spec.args(["--webhook-listen", &webhook, "--webhook-url", &url]);
            self.kimup.spec = spec.args(["--probes-listen", &probes]);
        }
        let command = format!("kimup {} 2>>kimup.log &", self.kimup.spec.args.join(" "));
        let command = command.replace(" --webhook-listen", " \\\n    --webhook-listen");
        let command = command.replace(&self.registry, "$REGISTRY").replace(" 2>>", " 2>>$DEMO/");
        self.shell.prompt(&command.replace(&self.folder.display().to_string(), "$DEMO"));
        self.kimup.start().await
    }

    /// The process ID of the running kimup.
    pub fn kimup_id(&self) -> Result<u32> {
        self.kimup.process.as_ref().map(Process::id).context("kimup does not run")
    }

    /// Lets go of a kimup that was killed by a command.
    pub async fn kimup_is_gone(&mut self) -> Result<()> {
        let mut process = self.kimup.process.take().context("kimup does not run")?;
        let gone = async || process.exited().is_some();
        try_eventually(Duration::from_secs(10), "kimup is gone", gone).await
    }

    /// Leaves everything running, and prints how to look around.
    pub async fn keep(self) -> Result<()> {
        let shell = self.shell;
        println!("\nSync leads again when the Lease of the kimup that was killed has run out; waiting ...");
        let leads =
            "kubectl wait lease kimup-url -n kimup-system --for=jsonpath='{.spec.leaseTransitions}'=1 --timeout=60s";
        shell.quietly(leads).await?;
        if let Some(process) = self.kimup.process {
            process.leave_running();
        }
        self.registry_process.leave_running()?;
        let stop = self.cluster.leave_running()?;
        shell.title("Everything is left running");
        shell.say("Look around (kubectl, crane and kimup are on this PATH):");
        for export in &self.exports {
            println!("{}", export.typed);
        }
        println!();
        println!("kubectl get kimg,deployments,pods -n demo");
        println!("less $DEMO/kimup.log");
        println!();
        shell.say("Push a newer tag, and see it rolled out:");
        println!("tar -cf - LICENSE | crane append -f - -t $REGISTRY/shop/web:1.3.0");
        println!("kubectl annotate image web -n demo kimup.cloudavenue.io/action=refresh");
        println!("kubectl rollout history deployment/web -n demo");
        println!();
        shell.say("Stop all of it and remove its files:");
        println!("{}", stop.display());
        Ok(())
    }
}

impl Kimup {
    async fn start(&mut self) -> Result<()> {
        let http = reqwest::Client::builder().tls_certs_only([]).no_proxy().timeout(Duration::from_secs(5)).build()?;
        let url = format!("http://127.0.0.1:{}/readyz", self.probes);
        let look = async || {
            if self.process.is_none() {
                self.process = Some(Process::spawn(&self.spec)?);
            }
            let process = self.process.as_mut().context("kimup was not started")?;
            if let Err(ended) = process.check_running() {
                // Somebody may hold one of its ports for a moment after it was killed: the next look starts it again.
                let port_taken = process.log_text().to_ascii_lowercase().contains("address already in use");
                self.process = None;
                return if port_taken { Err(ended) } else { Ok(Err(ended)) };
            }
            let answer = http.get(&url).send().await.and_then(reqwest::Response::error_for_status);
            answer.map(|_| Ok(())).with_context(|| format!("its log is {}", self.spec.log.display()))
        };
        try_eventually(READY, "kimup is ready", look).await?
    }
}

/// A variable that leads kubectl, crane or kimup to this stage.
struct Export {
    key: &'static str,
    value: String,
    /// As a person would type it.
    typed: String,
}

fn exports(cluster: &Cluster, registry: &str, kimup: &Path, folder: &Path) -> Result<Vec<Export>> {
    let (kubectl, folder) = (tool("kubectl")?, folder.display().to_string());
    let programs = [&kubectl, kimup].into_iter().filter_map(|program| program.parent());
    let programs = programs.map(|p| p.display().to_string()).collect::<Vec<_>>().join(":");
    let path = format!("{programs}:{}", std::env::var("PATH").unwrap_or_default());
    let export =
        |key, value: &str, typed: &str| Export { key, value: value.to_owned(), typed: format!("export {key}={typed}") };
    let kubeconfig = cluster.admin_kubeconfig().display().to_string();
    Ok(vec![
        export("PATH", &path, &format!("{programs}:$PATH")),
        export("KUBECONFIG", &kubeconfig, &kubeconfig),
        export("REGISTRY", registry, registry),
        export("DEMO", &folder, &folder),
        export("DOCKER_CONFIG", &folder, "$DEMO"),
    ])
}
