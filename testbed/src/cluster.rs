//! A cluster: its life, its namespaces, its users.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::core::v1::{Namespace, Node, ServiceAccount};
use kube::api::{Api, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::control_plane::{Files, START_DEADLINE, apiserver, apiserver_ready, start_controllers, start_etcd, token};
use crate::process::{Process, ProcessSpec, Started, start, start_on_ports};
use crate::run_dir::run_dir;
use crate::tools::{checkout, tool};
use crate::wait::try_eventually;

/// For something small that the running cluster does: a Node ready, a default ServiceAccount made.
const SETTLE_DEADLINE: Duration = Duration::from_secs(60);

/// How many Nodes there are: `node-0`, …
const NODES: usize = 2;

/// etcd, kube-apiserver, kube-controller-manager, kube-scheduler and kwok with two Nodes, and kimup's CRDs if
/// `deploy/` has them. About 540 MB and five seconds. Dropping it ends it.
///
/// Pods become Ready at once; `tools/kube/stages.yaml` says which do not.
pub struct Cluster {
    files: Files,
    port: u16,
    admin: PathBuf,
    apiserver_spec: ProcessSpec,
    /// `None` while it is killed.
    apiserver: Mutex<Option<Process>>,
    others: Vec<Process>,
}

/// What a run of kubectl gave.
#[derive(Clone, Debug)]
pub struct KubectlOutput {
    /// Whether it exited with 0.
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

impl Cluster {
    /// Starts a cluster of one's own: for what would disturb others, such as [`Cluster::kill_apiserver`].
    pub async fn start() -> Result<Self> {
        Self::start_with(&[]).await
    }

    /// As [`Cluster::start`], with further arguments for the API server.
    pub async fn start_with(apiserver_args: &[String]) -> Result<Self> {
        crate::install_crypto_provider();
        let files = Files::create(run_dir()?.folder("cluster")?)?;
        let (etcd, etcd_url) = start_etcd(&files).await?;
        let program = tool("kube-apiserver")?;
        let http = https_client(&files.ca_pem)?;
        let (server, [port]) = start_on_ports(
            START_DEADLINE,
            |[port]| apiserver(&files, &program, &etcd_url, port).args(apiserver_args),
            async |_, [port]| apiserver_ready(&http, port).await,
        )
        .await?;
        let address = format!("127.0.0.1:{port}");
        let admin = files.write_kubeconfig("admin", &address, &token("admin"))?;
        let mut others = start_controllers(&files, &address)?;
        others.push(etcd);
        let apiserver_spec = apiserver(&files, &program, &etcd_url, port).args(apiserver_args);
        let cluster = Self { files, port, admin, apiserver_spec, apiserver: Mutex::new(Some(server)), others };
        cluster.settle().await?;
        Ok(cluster)
    }

    /// The cluster that the tests of this process share, started on first use. Separate by [`Cluster::namespace`].
    ///
    /// # Panics
    /// If it cannot be started; every test then fails with the same message.
    #[expect(clippy::panic, reason = "for tests, which cannot go on without a cluster")]
    pub async fn shared() -> &'static Self {
        static SHARED: OnceCell<Result<Cluster, String>> = OnceCell::const_new();
        let started = async || Self::start().await.map_err(|error| format!("{error:#}"));
        match SHARED.get_or_init(started).await {
            Ok(cluster) => cluster,
            Err(error) => panic!("the shared cluster did not start: {error}"),
        }
    }

    async fn settle(&self) -> Result<()> {
        let client = self.client().await?;
        let nodes: Api<Node> = Api::all(client.clone());
        for number in 0..NODES {
            nodes.create(&PostParams::default(), &node(&format!("node-{number}"))?).await.context("creating a Node")?;
        }
        self.apply_crds().await?;
        try_eventually(SETTLE_DEADLINE, "the Nodes become schedulable", async || nodes_ready(&nodes).await).await?;
        self.wait_default_account("default").await
    }

    async fn wait_default_account(&self, namespace: &str) -> Result<()> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let what = format!("the default ServiceAccount of {namespace}, without which Pods are refused");
        let made = async || accounts.get_opt("default").await.ok().flatten().map(drop);
        try_eventually(SETTLE_DEADLINE, &what, made).await
    }

    /// Host and port of the API server: `127.0.0.1:12345`. It stays the same over a restart.
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// The CA certificate of the API server, as PEM.
    pub fn ca_pem(&self) -> &str {
        &self.files.ca_pem
    }

    /// The folder with the logs.
    pub fn folder(&self) -> &Path {
        &self.files.folder
    }

    /// The kubeconfig of the administrator.
    pub fn admin_kubeconfig(&self) -> &Path {
        &self.admin
    }

    /// A client as administrator that retries nothing. It belongs to the caller's runtime.
    pub async fn client(&self) -> Result<kube::Client> {
        self.client_as(&self.admin).await
    }

    /// A client with the identity of a kubeconfig, that retries nothing.
    pub async fn client_as(&self, kubeconfig: &Path) -> Result<kube::Client> {
        let kubeconfig = Kubeconfig::read_from(kubeconfig)?;
        let mut config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
        config.default_retry = false;
        config.proxy_url = None;
        Ok(kube::Client::try_from(config)?)
    }

    /// Makes a namespace in which Pods can be created, and returns its name. One that exists is an error.
    pub async fn namespace(&self, name: &str, labels: &[(&str, &str)], annotations: &[(&str, &str)]) -> Result<String> {
        let namespaces: Api<Namespace> = Api::all(self.client().await?);
        let map = |pairs: &[(&str, &str)]| {
            let owned = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
            Some(owned.collect::<BTreeMap<_, _>>())
        };
        let mut namespace = Namespace::default();
        namespace.metadata.name = Some(name.to_owned());
        namespace.metadata.labels = map(labels);
        namespace.metadata.annotations = map(annotations);
        let created = namespaces.create(&PostParams::default(), &namespace).await;
        created.with_context(|| format!("creating the namespace {name}"))?;
        self.wait_default_account(name).await?;
        Ok(name.to_owned())
    }

    /// A kubeconfig with a token of a ServiceAccount (made by `TokenRequest`, good for a day): its holder may do exactly
    /// what RBAC gives that account.
    pub async fn kubeconfig_for(&self, namespace: &str, account: &str) -> Result<PathBuf> {
        self.kubeconfig_via(namespace, account, &self.address()).await
    }

    /// As [`Cluster::kubeconfig_for`], but reaching the API server through `address`, a [`crate::Balancer`] for
    /// example, whose connections can be held back, or through a URL, an [`crate::ApiProxy`]'s.
    pub async fn kubeconfig_via(&self, namespace: &str, account: &str, address: &str) -> Result<PathBuf> {
        let accounts: Api<ServiceAccount> = Api::namespaced(self.client().await?, namespace);
        let request: TokenRequest =
            serde_json::from_value(json!({"spec": {"audiences": [], "expirationSeconds": 86_400}}))?;
        let answer = accounts.create_token_request(account, &PostParams::default(), &request).await;
        let answer =
            answer.with_context(|| format!("requesting a token of the ServiceAccount {namespace}/{account}"))?;
        let token = answer.status.and_then(|status| status.token);
        let token = token.context("the API server answered a TokenRequest without a token")?;
        let name = format!("{namespace}-{account}-{}", address.replace([':', '/'], "-"));
        self.files.write_kubeconfig(&name, address, &token)
    }

    /// Runs kubectl as administrator; a failure of kubectl is in the output, not an error.
    pub async fn kubectl(&self, args: &[&str]) -> Result<KubectlOutput> {
        self.kubectl_with_stdin(args, "").await
    }

    /// Runs kubectl as administrator; its stdout, or its stderr as the error.
    pub async fn kubectl_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.kubectl(args).await?;
        if !output.success {
            bail!("kubectl {} failed: {}", args.join(" "), output.stderr.trim());
        }
        Ok(output.stdout)
    }

    /// `kubectl apply -f -` as administrator, of YAML or JSON documents; `args` may name a namespace.
    pub async fn apply(&self, args: &[&str], manifests: &str) -> Result<()> {
        let output = self.kubectl_with_stdin(&[&["apply", "-f", "-"], args].concat(), manifests).await?;
        if !output.success {
            bail!("kubectl apply failed: {}", output.stderr.trim());
        }
        Ok(())
    }

    /// As [`Cluster::kubectl`], with `stdin` (`-f -`).
    pub async fn kubectl_with_stdin(&self, args: &[&str], stdin: &str) -> Result<KubectlOutput> {
        let mut command = Command::new(tool("kubectl")?);
        command.arg("--kubeconfig").arg(&self.admin).args(args);
        command.env("KUBECTL_KUBERC", "false").env("HOME", &self.files.folder).env_remove("KUBECONFIG");
        let stdin = stdin.to_owned();
        tokio::task::spawn_blocking(move || run(command, &stdin)).await?
    }

    /// Applies those manifests of `kubectl kustomize deploy` whose kind is listed, or all if the list is empty. Tests
    /// of kimup as a process want everything but its Deployment and webhook configuration.
    pub async fn apply_deploy(&self, kinds: &[&str]) -> Result<()> {
        let deploy = checkout().join("deploy").display().to_string();
        let manifests = self.kubectl_ok(&["kustomize", &deploy]).await?;
        self.apply(&["--server-side"], &documents(&manifests, |kind| kinds.is_empty() || kinds.contains(&kind))).await
    }

    async fn apply_crds(&self) -> Result<()> {
        let mut manifests = String::new();
        for file in yaml_files(&checkout().join("deploy"))? {
            manifests += &documents(&fs::read_to_string(&file)?, |kind| kind == "CustomResourceDefinition");
        }
        if manifests.is_empty() {
            return Ok(());
        }
        self.apply(&["--server-side"], &manifests).await.context("applying the CRDs of deploy/")?;
        self.kubectl_ok(&["wait", "--for=condition=Established", "crd", "--all", "--timeout=60s"]).await.map(drop)
    }

    /// The audit log so far: each request of a ServiceAccount in `kimup-system`, with what it wrote, as
    /// `audit.k8s.io/v1` Events in the order of their ends.
    pub fn audit_log(&self) -> Result<Vec<Value>> {
        self.audit_log_with("")
    }

    /// The part of the audit log whose lines have this text somewhere: to read all of a long one takes half a second.
    pub fn audit_log_with(&self, part: &str) -> Result<Vec<Value>> {
        let text = fs::read_to_string(self.files.folder.join("audit.log")).unwrap_or_default();
        // The last line may be half written.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let lines = whole.lines().filter(|line| line.contains(part));
        lines.map(|line| serde_json::from_str(line).context("a broken line in the audit log")).collect()
    }

    /// SIGKILL to the API server; its data stays. Only for a cluster of one's own.
    pub fn kill_apiserver(&self) {
        self.apiserver.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Starts the API server again on the same port and data, and waits until it is ready. Controllers, scheduler and
    /// kwok find it by themselves.
    pub async fn restart_apiserver(&self) -> Result<()> {
        self.kill_apiserver();
        let http = https_client(&self.files.ca_pem)?;
        let restart = async || match start(START_DEADLINE, &self.apiserver_spec, async |_: &Process| {
            apiserver_ready(&http, self.port).await
        })
        .await
        {
            // A connection attempt of somebody's may hold the port for a moment: it is from the ephemeral range.
            Ok(Started::PortTaken) => Err(anyhow!("its port {} is taken", self.port)),
            Ok(Started::Ready(process)) => Ok(Ok(process)),
            Err(error) => Ok(Err(error)),
        };
        let process = try_eventually(START_DEADLINE, "the API server starts again", restart).await??;
        *self.apiserver.lock().unwrap_or_else(PoisonError::into_inner) = Some(process);
        Ok(())
    }

    /// Lets the cluster run on after this process; the path of a script that ends it and removes its files.
    pub fn leave_running(self) -> Result<PathBuf> {
        let script = run_dir()?.leave()?;
        let server = self.apiserver.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.others.into_iter().chain(server).for_each(Process::leave_running);
        Ok(script)
    }
}

fn run(mut command: Command, stdin: &str) -> Result<KubectlOutput> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pipe = child.stdin.take();
    std::thread::scope(|scope| {
        // kubectl may not read its stdin to the end before it writes, nor at all.
        scope.spawn(|| pipe.map(|mut pipe| pipe.write_all(stdin.as_bytes())));
        let output = child.wait_with_output()?;
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(KubectlOutput { success: output.status.success(), stdout: text(output.stdout), stderr: text(output.stderr) })
    })
}

fn https_client(ca_pem: &str) -> Result<reqwest::Client> {
    let ca = reqwest::Certificate::from_pem(ca_pem.as_bytes())?;
    let client = reqwest::Client::builder().tls_certs_only([ca]).no_proxy().timeout(Duration::from_secs(5));
    Ok(client.build()?)
}

fn node(name: &str) -> Result<Node> {
    let resources = json!({"cpu": "64", "memory": "256Gi", "pods": "1000", "ephemeral-storage": "100Gi"});
    let node = json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {"name": name, "labels": {
            "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": "amd64"}},
        "status": {"capacity": resources, "allocatable": resources},
    });
    Ok(serde_json::from_value(node)?)
}

/// An error that names the first Node that is not Ready or still has a taint.
async fn nodes_ready(nodes: &Api<Node>) -> Result<()> {
    let list = nodes.list(&kube::api::ListParams::default()).await?;
    for node in list {
        let name = node.metadata.name.unwrap_or_default();
        let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
        if let Some(taint) = taints.first() {
            bail!("{name} has the taint {}", taint.key);
        }
        let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
        if !conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True") {
            bail!("{name} is not Ready");
        }
    }
    Ok(())
}

/// The documents of a YAML stream whose top-level `kind` is wanted.
fn documents(stream: &str, wanted: impl Fn(&str) -> bool) -> String {
    let is_wanted = |document: &&str| {
        let kind = document.lines().find_map(|line| line.strip_prefix("kind:"));
        kind.is_some_and(|kind| wanted(kind.trim().trim_matches('"')))
    };
    let stream = format!("\n{stream}");
    let mut chosen = String::new();
    for document in stream.split("\n---").filter(is_wanted) {
        chosen.extend(["---", document, "\n"]);
    }
    chosen
}

/// The `.yaml` files in a folder and the folders in it, sorted; none if it does not exist.
fn yaml_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Ok(Vec::new());
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            files.extend(yaml_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "yaml") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::documents;

    #[test]
    fn documents_are_chosen_by_their_top_level_kind() {
        let stream =
            "# a\nkind: Role\nrules:\n  kind: Secret\n---\napiVersion: v1\nkind: \"Secret\"\n---\nkind: Service\n";
        let check = |kind: &str, expected: &str| {
            assert_eq!(documents(stream, |found| found == kind), expected, "{kind}");
        };
        check("Role", "---\n# a\nkind: Role\nrules:\n  kind: Secret\n");
        check("Secret", "---\napiVersion: v1\nkind: \"Secret\"\n");
        check("Service", "---\nkind: Service\n\n");
        check("Deployment", "");
    }
}
