//! The command lines of the control plane's programs, and what each needs before it counts as started.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use crate::pki::write_cluster_pki;
use crate::process::{Process, ProcessSpec, start_on_ports};
use crate::tools::{checkout, tool};

/// For one program to become ready: it takes one or two seconds, more on a machine that compiles at the same time.
pub(crate) const START_DEADLINE: Duration = Duration::from_secs(120);

/// Who may do what, as the API server's token file has it.
const USERS: [(&str, &str); 4] = [
    ("admin", "system:masters"),
    ("kwok", "system:masters"),
    ("system:kube-controller-manager", ""),
    ("system:kube-scheduler", ""),
];

/// Every request of kimup, with what it wrote. Tests read it to see who wrote what, and that nothing was written.
const AUDIT_POLICY: &str = r#"{"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "omitStages": ["RequestReceived"], "rules": [
  {"level": "Request", "userGroups": ["system:serviceaccounts:kimup-system"], "omitManagedFields": true},
  {"level": "None"}]}"#;

/// The files of one cluster.
pub(crate) struct Files {
    pub(crate) folder: PathBuf,
    pub(crate) ca_pem: String,
}

impl Files {
    pub(crate) fn create(folder: PathBuf) -> Result<Self> {
        let ca_pem = write_cluster_pki(&folder)?;
        fs::write(folder.join("audit-policy.json"), AUDIT_POLICY)?;
        let mut tokens = String::new();
        for (user, group) in USERS {
            tokens.extend([token(user).as_str(), ",", user, ",", user, ",", group, "\n"]);
        }
        fs::write(folder.join("tokens.csv"), tokens)?;
        Ok(Self { folder, ca_pem })
    }

    fn path(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    /// Writes a kubeconfig for the API server at `address` (host and port, or a URL), and returns its path.
    pub(crate) fn write_kubeconfig(&self, name: &str, address: &str, token: &str) -> Result<PathBuf> {
        let server = if address.contains("://") { address.to_owned() } else { format!("https://{address}") };
        let path = self.folder.join(format!("{name}.kubeconfig"));
        // JSON is YAML.
        let text = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "testbed",
            "clusters": [{"name": "testbed", "cluster": {
                "server": server, "certificate-authority": self.path("ca.crt")}}],
            "users": [{"name": name, "user": {"token": token}}],
            "contexts": [{"name": "testbed", "context": {"cluster": "testbed", "user": name}}],
        });
        fs::write(&path, text.to_string()).with_context(|| format!("writing {}", path.display()))?;
        Ok(path)
    }
}

/// The fixed token of one of [`USERS`]: the API server listens on 127.0.0.1 only, for as long as a test runs.
pub(crate) fn token(user: &str) -> String {
    format!("token-of-{}", user.trim_start_matches("system:"))
}

/// Starts etcd; the client URL.
pub(crate) async fn start_etcd(files: &Files) -> Result<(Process, String)> {
    let program = tool("etcd")?;
    let spec = |[client, peer]: [u16; 2]| {
        let (client, peer) = (format!("http://127.0.0.1:{client}"), format!("http://127.0.0.1:{peer}"));
        ProcessSpec::new("etcd", program.clone(), &files.folder)
            .args(["--data-dir", &files.path("data/etcd"), "--unsafe-no-fsync", "--quota-backend-bytes=1000000000"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &format!("default={peer}")])
    };
    // Its own log, not an answer on the port: that could be another cluster's etcd.
    let ready = async |process: &Process, _| {
        let serving = process.log_text().contains("serving client traffic insecurely");
        if serving { Ok(()) } else { bail!("it does not serve yet") }
    };
    let (process, [client, _]) = start_on_ports(START_DEADLINE, spec, ready).await?;
    Ok((process, format!("http://127.0.0.1:{client}")))
}

/// How the API server is started on `port`.
pub(crate) fn apiserver(files: &Files, program: &Path, etcd: &str, port: u16) -> ProcessSpec {
    ProcessSpec::new("kube-apiserver", program.to_owned(), &files.folder)
        .rarely_collecting()
        .args(["--etcd-servers", etcd, "--secure-port", &port.to_string()])
        .args(["--bind-address", "127.0.0.1", "--advertise-address", "127.0.0.1", "--endpoint-reconciler-type", "none"])
        .args(["--tls-cert-file", &files.path("server.crt"), "--tls-private-key-file", &files.path("server.key")])
        .args(["--service-account-key-file", &files.path("sa.pub")])
        .args(["--service-account-signing-key-file", &files.path("sa.key")])
        .args(["--service-account-issuer", "https://kubernetes.default.svc"])
        .args(["--token-auth-file", &files.path("tokens.csv"), "--authorization-mode", "RBAC"])
        .args(["--audit-policy-file", &files.path("audit-policy.json"), "--audit-log-path", &files.path("audit.log")])
        .args(["--service-cluster-ip-range", "10.0.0.0/24", "--allow-privileged", "--profiling=false"])
}

/// An error unless the API server says that it is ready. Its certificate tells ours from another cluster's.
pub(crate) async fn apiserver_ready(client: &reqwest::Client, port: u16) -> Result<()> {
    let answer = client.get(format!("https://127.0.0.1:{port}/readyz")).bearer_auth(token("admin")).send().await?;
    if !answer.status().is_success() {
        let checks = answer.text().await.unwrap_or_default();
        let failing: Vec<&str> = checks.lines().filter(|line| line.starts_with("[-]")).collect();
        bail!("/readyz fails: {}", failing.join(" "));
    }
    Ok(())
}

/// Starts the rest: controllers, scheduler and the simulated kubelet. They have no port to wait for; the cluster
/// waits for what they do.
pub(crate) fn start_controllers(files: &Files, address: &str) -> Result<Vec<Process>> {
    let kubeconfig = |user: &str| -> Result<String> {
        let name = user.trim_start_matches("system:");
        Ok(files.write_kubeconfig(name, address, &token(user))?.display().to_string())
    };
    let spec = |name: &str| -> Result<ProcessSpec> {
        Ok(ProcessSpec::new(name, tool(name)?, &files.folder).rarely_collecting())
    };
    let manager = spec("kube-controller-manager")?
        .args(["--kubeconfig", &kubeconfig("system:kube-controller-manager")?, "--leader-elect=false"])
        .args(["--use-service-account-credentials", "--secure-port=0", "--profiling=false"])
        .args(["--service-account-private-key-file", &files.path("sa.key"), "--root-ca-file", &files.path("ca.crt")])
        // kwok's heartbeat may be late on a machine that compiles; that is not what the tests are about.
        .args(["--node-monitor-grace-period=10m", "--kube-api-qps=200", "--kube-api-burst=400"]);
    let scheduler = spec("kube-scheduler")?
        .args(["--kubeconfig", &kubeconfig("system:kube-scheduler")?, "--leader-elect=false"])
        .args(["--secure-port=0", "--kube-api-qps=200", "--kube-api-burst=400"]);
    let stages = checkout().join("tools/kube/stages.yaml").display().to_string();
    let kwok = spec("kwok")?.args([
        "--kubeconfig",
        &kubeconfig("kwok")?,
        "--config",
        &stages,
        "--manage-all-nodes",
        "--node-ip=127.0.0.1",
    ]);
    [manager, scheduler, kwok].iter().map(Process::spawn).collect()
}
