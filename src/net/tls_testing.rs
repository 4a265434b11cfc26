//! Clients under load, chains with an intermediate CA and files that are renewed, for tests.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use secrecy::{ExposeSecret, SecretString};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::tls::CertSource;

/// What the servers of these tests answer.
pub(super) const ANSWER: &str = "well";
/// Between two requests of a client, so that the load leaves time for what it is there to disturb.
const PACE: Duration = Duration::from_millis(1);

/// A client that trusts these and nothing else.
pub(super) fn trusting(cas: impl IntoIterator<Item = CertificateDer<'static>>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(cas);
    Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth())
}

/// A connection that is kept.
pub(super) struct Connection(TlsStream<TcpStream>);

impl Connection {
    pub async fn open(address: SocketAddr, config: Arc<ClientConfig>) -> Result<Self, String> {
        let stream = TcpStream::connect(address).await.map_err(|e| format!("connect: {e}"))?;
        let connecting = TlsConnector::from(config).connect(ServerName::from(address.ip()), stream);
        connecting.await.map(Self).map_err(|e| format!("handshake: {e}"))
    }

    /// The server's own certificate.
    pub fn leaf(&self) -> CertificateDer<'static> {
        self.0.get_ref().1.peer_certificates().unwrap()[0].clone().into_owned()
    }

    pub async fn request(&mut self) -> Result<(), String> {
        self.0.write_all(b"GET / HTTP/1.1\r\nhost: test\r\n\r\n").await.map_err(|e| format!("write: {e}"))?;
        let (mut answer, mut part) = (Vec::new(), [0; 1024]);
        while !answer.ends_with(ANSWER.as_bytes()) {
            match self.0.read(&mut part).await {
                Ok(0) => return Err(format!("the end after {:?}", String::from_utf8_lossy(&answer))),
                Ok(read) => answer.extend_from_slice(&part[..read]),
                Err(error) => return Err(format!("read: {error}")),
            }
        }
        if answer.starts_with(b"HTTP/1.1 200") { Ok(()) } else { Err(String::from_utf8_lossy(&answer).into_owned()) }
    }
}

/// Clients that ask one request after the other.
pub(super) struct Load {
    clients: Vec<(watch::Receiver<usize>, JoinHandle<()>)>,
    outcome: Arc<Outcome>,
    enough: CancellationToken,
}

#[derive(Default)]
struct Outcome {
    failed: Mutex<Vec<String>>,
    dropped: AtomicUsize,
}

/// What came of a load.
pub(super) struct Tally {
    pub served: usize,
    /// Connections that did not count.
    pub dropped: usize,
    pub failed: Vec<String>,
}

impl Load {
    /// A client for each number of `requests`: so many in one connection. `connect` gets the number of the client and that
    /// of the connection; without a connection and an error the try does not count.
    pub fn start<C, F>(requests: &[usize], connect: C) -> Self
    where
        C: Fn(usize, usize) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Result<Option<Connection>, String>> + Send + 'static,
    {
        let (outcome, enough) = (Arc::new(Outcome::default()), CancellationToken::new());
        let clients = requests.iter().enumerate().map(|(number, requests)| {
            let (done, seen) = watch::channel(0);
            let asking = ask(number, *requests, connect.clone(), done, outcome.clone(), enough.clone());
            (seen, tokio::spawn(asking))
        });
        Self { clients: clients.collect(), outcome, enough }
    }

    /// Waits until each client has begun and ended a request.
    pub async fn goes_on(&self) {
        for (seen, _) in &self.clients {
            let mut seen = seen.clone();
            let before = *seen.borrow();
            seen.wait_for(|done| *done >= before + 2).await.unwrap(); // the first may have begun before
        }
    }

    pub async fn end(self) -> Tally {
        self.enough.cancel();
        let mut done = 0;
        for (seen, client) in self.clients {
            client.await.unwrap();
            done += *seen.borrow();
        }
        let failed = std::mem::take(&mut *self.outcome.failed.lock().unwrap());
        Tally { served: done - failed.len(), dropped: self.outcome.dropped.load(Ordering::Relaxed), failed }
    }
}

async fn ask<C, F>(
    number: usize,
    requests: usize,
    connect: C,
    done: watch::Sender<usize>,
    outcome: Arc<Outcome>,
    enough: CancellationToken,
) where
    C: Fn(usize, usize) -> F,
    F: Future<Output = Result<Option<Connection>, String>>,
{
    let tell = |result: Result<(), String>| {
        let fine = result.is_ok();
        outcome.failed.lock().unwrap().extend(result.err());
        done.send_modify(|done| *done += 1);
        fine
    };
    for nth in 0.. {
        match connect(number, nth).await {
            Ok(Some(mut connection)) => {
                let mut left = requests;
                while left > 0 && !enough.is_cancelled() && tell(connection.request().await) {
                    left -= 1;
                    tokio::time::sleep(PACE).await;
                }
            }
            Ok(None) => drop(outcome.dropped.fetch_add(1, Ordering::Relaxed)),
            Err(error) => drop(tell(Err(error))),
        }
        if enough.is_cancelled() {
            return;
        }
    }
}

/// A root that clients trust, and an intermediate CA that they do not know.
pub(super) struct Chains {
    root: CertifiedIssuer<'static, KeyPair>,
    intermediate: CertifiedIssuer<'static, KeyPair>,
}

/// A certificate for 127.0.0.1, in parts.
pub(super) struct Parts {
    pub leaf: String,
    pub intermediate: String,
    pub key: SecretString,
}

impl Chains {
    pub fn new() -> Self {
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.distinguished_name.push(rcgen::DnType::CommonName, name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let root = CertifiedIssuer::self_signed(params("root"), KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let intermediate = CertifiedIssuer::signed_by(params("intermediate"), key, &root).unwrap();
        Self { root, intermediate }
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.root.der().clone()
    }

    pub fn sign(&self) -> Parts {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let leaf = params.signed_by(&key, &self.intermediate).unwrap().pem();
        Parts { leaf, intermediate: self.intermediate.pem(), key: key.serialize_pem().into() }
    }
}

impl Parts {
    pub fn chain(&self) -> String {
        self.leaf.clone() + &self.intermediate
    }
}

/// How files are renewed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Way {
    /// The same file is written again.
    InPlace,
    /// Another file takes the name.
    Rename,
    /// As the kubelet: the names are symlinks into `..data`, which is a symlink that is replaced.
    Symlink,
}

/// A folder with `tls.crt` and `tls.key`.
pub(super) struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        Path::new(self.0.path()).join(name)
    }

    pub fn write(&self, way: Way, chain: &str, key: &SecretString) {
        let files = [("tls.crt", chain), ("tls.key", key.expose_secret())];
        match way {
            Way::InPlace => files.iter().for_each(|(name, text)| std::fs::write(self.path(name), text).unwrap()),
            Way::Rename => {
                for (name, text) in files {
                    std::fs::write(self.path("new"), text).unwrap();
                    std::fs::rename(self.path("new"), self.path(name)).unwrap();
                }
            }
            Way::Symlink => self.swap(files),
        }
    }

    fn swap(&self, files: [(&str, &str); 2]) {
        let version = format!("..{:x}", fastrand::u64(..));
        std::fs::create_dir(self.path(&version)).unwrap();
        for (name, text) in files {
            std::fs::write(self.path(&version).join(name), text).unwrap();
        }
        let before = std::fs::read_link(self.path("..data"));
        std::os::unix::fs::symlink(&version, self.path("..data_tmp")).unwrap();
        std::fs::rename(self.path("..data_tmp"), self.path("..data")).unwrap();
        for (name, _) in files {
            std::os::unix::fs::symlink(Path::new("..data").join(name), self.path("..name_tmp")).unwrap();
            std::fs::rename(self.path("..name_tmp"), self.path(name)).unwrap();
        }
        if let Ok(before) = before {
            std::fs::remove_dir_all(self.path(before.to_str().unwrap())).unwrap();
        }
    }

    pub fn source(&self) -> CertSource {
        CertSource::Files { certificate: self.path("tls.crt"), key: self.path("tls.key") }
    }
}
