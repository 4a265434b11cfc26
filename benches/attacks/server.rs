//! `kimup webhook` as a process of its own, so that its memory and its time are nobody else's, on a stub of an API server.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kimup_testbed::{ApiStub, Process, ProcessSpec, Reviews, ServerCertificate, free_port, run_dir};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustls::client::Resumption;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;

/// The processor of the server in the bench, and that of all others.
const SERVER: usize = 0;
const OTHERS: usize = 1;
const READY: Duration = Duration::from_secs(60);
const NAMESPACE: &str = "shop";

/// A server under attack.
pub struct Server {
    process: Process,
    _api: ApiStub,
    pub target: Target,
    /// Whether it has a processor of its own.
    pub apart: bool,
}

/// How to reach it, and what to ask.
#[derive(Clone)]
pub struct Target {
    pub address: SocketAddr,
    pub tls: Arc<ClientConfig>,
    /// A whole request with the review of a small Pod.
    pub request: Arc<[u8]>,
}

impl Target {
    pub fn name(&self) -> ServerName<'static> {
        ServerName::from(self.address.ip())
    }
}

impl Server {
    /// Starts it; `apart`: on a processor of its own, and everything that this thread starts later on another.
    pub fn start(apart: bool) -> Self {
        raise_descriptors();
        let api = cluster();
        let folder = run_dir().unwrap().folder("kimup").unwrap();
        let certificate = ServerCertificate::self_signed(&["127.0.0.1"]).unwrap();
        let written = |name: &str, text: &str| {
            let path = folder.join(name);
            std::fs::write(&path, text).unwrap();
            path.display().to_string()
        };
        let (certificate_file, key_file) =
            (written("tls.crt", certificate.pem()), written("tls.key", certificate.key_pem()));
        let (webhook, probes) = (local(free_port().unwrap()), local(free_port().unwrap()));
        let spec = ProcessSpec::new("kimup", Path::new(env!("CARGO_BIN_EXE_kimup")).to_owned(), &folder)
            .args(["webhook", "--namespace", "kimup-system", "--kubeconfig"])
            .arg(api.kubeconfig().display().to_string())
            .args(["--sync-socket".to_owned(), folder.join("sync.sock").display().to_string()])
            .args(["--webhook-listen".to_owned(), webhook.to_string()])
            .args(["--probes-listen".to_owned(), probes.to_string()])
            .args(["--tls-cert-file".to_owned(), certificate_file, "--tls-key-file".to_owned(), key_file]);
        if apart {
            move_to(SERVER); // what is started inherits it
        }
        let process = Process::spawn(&spec);
        if apart {
            move_to(OTHERS);
        }
        let (mut process, began) = (process.unwrap(), Instant::now());
        while !is_ready(probes) {
            process.check_running().unwrap();
            assert!(began.elapsed() < READY, "kimup is not ready: {}", process.log_text());
            std::thread::sleep(Duration::from_millis(5));
        }
        Self { process, _api: api, target: target(webhook, &certificate), apart }
    }

    /// The most resident memory that it has had, in bytes.
    pub fn peak(&self) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
        peak.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
    }

    /// Its open sockets.
    pub fn sockets(&self) -> usize {
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.process.id())).unwrap();
        let links = open.filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok());
        links.filter(|link| link.to_string_lossy().starts_with("socket:")).count()
    }

    /// The time that its threads have had of the processors, by the scheduler's account.
    pub fn cpu_time(&self) -> Duration {
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.process.id())).unwrap();
        // A thread may have ended meanwhile.
        let times = threads.filter_map(|thread| std::fs::read_to_string(thread.ok()?.path().join("schedstat")).ok());
        Duration::from_nanos(times.filter_map(|time| time.split(' ').next()?.parse::<u64>().ok()).sum())
    }
}

/// A namespace that opted in, and an Image that has settled.
fn cluster() -> ApiStub {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let api = runtime.block_on(ApiStub::start()).unwrap();
    let labels = json!({"kubernetes.io/metadata.name": NAMESPACE, "kimup.cloudavenue.io/enabled": "true"});
    let namespace = json!({"name": NAMESPACE, "uid": "1", "labels": labels});
    api.put(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": namespace})).unwrap();
    let rule = json!({"name": "minor", "type": "semver-minor", "actions": [{"type": "apply"}]});
    let image = json!({
        "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
        "metadata": {"name": "app", "namespace": NAMESPACE, "uid": "2", "generation": 1},
        "spec": {"image": "registry.example.com/shop/app", "baseTag": "1.0.0", "rules": [rule],
            "triggers": [{"type": "interval", "value": "5m"}]},
        "status": {"tag": "1.4.2", "result": "Success", "time": "2026-03-01T10:00:00Z", "observedGeneration": 1},
    });
    api.put(image).unwrap();
    api
}

fn target(address: SocketAddr, certificate: &ServerCertificate) -> Target {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.root_pem().as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.resumption = Resumption::disabled();
    let text = "registry.example.com/shop/app:1.0.0".to_owned();
    let wanted = "registry.example.com/shop/app:1.4.2".to_owned();
    let review = Reviews { namespace: NAMESPACE.to_owned(), text, wanted }.body(0);
    Target { address, tls: Arc::new(config), request: [head(review.len()), review].concat().into() }
}

/// The head of a request with a body of so many bytes.
pub fn head(length: usize) -> Vec<u8> {
    let head = format!(
        "POST /mutate?timeout=10s HTTP/1.1\r\nhost: kimup\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n"
    );
    head.into_bytes()
}

fn is_ready(probes: SocketAddr) -> bool {
    let ask = || -> std::io::Result<bool> {
        let mut stream = TcpStream::connect(probes)?;
        stream.write_all(b"GET /readyz HTTP/1.1\r\nhost: kimup\r\nconnection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer.starts_with("HTTP/1.1 200"))
    };
    ask().unwrap_or(false)
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((IpAddr::from(Ipv4Addr::LOCALHOST), port))
}

/// This thread, and all that it starts from now on.
fn move_to(processor: usize) {
    let mut processors = CpuSet::new();
    processors.set(processor);
    sched_setaffinity(None, &processors).expect("this needs two processors: one for the server, one for the others");
}

/// As many as the system allows: an attack of 10,000 connections needs them here.
fn raise_descriptors() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
