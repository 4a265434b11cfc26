//! A TCP forwarder: what a Service in front of several replicas is in a cluster.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::background::{Task, runtime};

/// Listens on a port of 127.0.0.1 and forwards each connection to the next of its backends that accepts one; without
/// any, it closes the connection. It runs on threads of its own; dropping it closes the port, and each connection at
/// the next bytes from its backend.
pub struct Balancer {
    address: SocketAddr,
    backends: watch::Sender<Vec<SocketAddr>>,
    held: watch::Sender<bool>,
    open: Open,
    made: Made,
    _server: Task,
}

/// How many connections there are to each backend.
type Open = Arc<Mutex<HashMap<SocketAddr, usize>>>;
/// Which backend each client's connection went to; a port used again counts for the last connection.
type Made = Arc<Mutex<HashMap<SocketAddr, SocketAddr>>>;

impl Balancer {
    pub async fn start(backends: &[SocketAddr]) -> Result<Self> {
        let listener = runtime()?.spawn(TcpListener::bind("127.0.0.1:0")).await?.context("binding the balancer")?;
        let address = listener.local_addr()?;
        let (backends, backends_seen) = watch::channel(backends.to_vec());
        let (held, held_seen) = watch::channel(false);
        let (open, made) = (Open::default(), Made::default());
        let server = serve(listener, backends_seen, held_seen, Arc::clone(&open), Arc::clone(&made));
        let server = Task::spawn(server)?;
        Ok(Self { address, backends, held, open, made, _server: server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes where new connections go; the open ones stay where they are, as with kube-proxy.
    pub fn set_backends(&self, backends: &[SocketAddr]) {
        self.backends.send_replace(backends.to_vec());
    }

    /// How many connections to a backend are open.
    pub fn connections_to(&self, backend: SocketAddr) -> usize {
        lock(&self.open).get(&backend).copied().unwrap_or_default()
    }

    /// Where the connection from this address of a client's went, also if it has ended; none if no backend took it.
    pub fn backend_of(&self, client: SocketAddr) -> Option<SocketAddr> {
        lock(&self.made).get(&client).copied()
    }

    /// While `true`, nothing that the backends send arrives; it is not lost, and no connection breaks. In front of the
    /// API server this is a watch that falls behind.
    pub fn hold_back(&self, held: bool) {
        self.held.send_replace(held);
    }
}

fn lock<V>(map: &Mutex<HashMap<SocketAddr, V>>) -> MutexGuard<'_, HashMap<SocketAddr, V>> {
    map.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    listener: TcpListener,
    backends: watch::Receiver<Vec<SocketAddr>>,
    held: watch::Receiver<bool>,
    open: Open,
    made: Made,
) {
    let next = Arc::new(AtomicUsize::new(0));
    loop {
        // A failed accept is the client's or passes by itself.
        let Ok((client, from)) = listener.accept().await else {
            continue;
        };
        let (backends, held, next) = (backends.borrow().clone(), held.clone(), Arc::clone(&next));
        let (open, made) = (Arc::clone(&open), Arc::clone(&made));
        tokio::spawn(async move {
            if let Some((address, backend)) = connect(&backends, &next).await {
                lock(&made).insert(from, address);
                *lock(&open).entry(address).or_default() += 1;
                forward(client, backend, held).await;
                lock(&open).entry(address).and_modify(|count| *count -= 1);
            }
        });
    }
}

async fn connect(backends: &[SocketAddr], next: &AtomicUsize) -> Option<(SocketAddr, TcpStream)> {
    // Counted once: between two counts another connection could skip the one that accepts.
    let first = next.fetch_add(1, Ordering::Relaxed);
    for nth in 0..backends.len() {
        let backend = backends[(first + nth) % backends.len()];
        if let Ok(stream) = TcpStream::connect(backend).await {
            return Some((backend, stream));
        }
    }
    None
}

async fn forward(client: TcpStream, backend: TcpStream, held: watch::Receiver<bool>) {
    let (from_client, to_client) = client.into_split();
    let (from_backend, to_backend) = backend.into_split();
    let (_never, free) = watch::channel(false);
    tokio::join!(copy(from_client, to_backend, free), copy(from_backend, to_client, held));
}

/// Until either side ends; what was read is then written, and the end passed on.
async fn copy(mut from: impl AsyncRead + Unpin, mut to: impl AsyncWrite + Unpin, mut held: watch::Receiver<bool>) {
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if held.wait_for(|held| !held).await.is_err() || to.write_all(&buffer[..length]).await.is_err() {
            break;
        }
    }
    let _ = to.shutdown().await; // the other side may have closed first
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    /// A server that says its name to each connection and then echoes.
    async fn named(name: &'static str) -> (SocketAddr, Task) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let listener = listener.into_std().unwrap();
        let task = Task::spawn(async move {
            let listener = TcpListener::from_std(listener).unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                stream.write_all(name.as_bytes()).await.unwrap();
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        (address, task.unwrap())
    }

    async fn greeting(balancer: &Balancer) -> String {
        let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
        let mut name = [0; 1];
        match stream.read(&mut name).await {
            Ok(1) => String::from_utf8(name.to_vec()).unwrap(),
            _ => String::new(),
        }
    }

    #[tokio::test]
    async fn connections_go_round_and_skip_who_refuses() {
        let ((a, _a), (b, b_server)) = (named("a").await, named("b").await);
        let balancer = Balancer::start(&[a, b]).await.unwrap();
        let check = async |expected: &[&str]| {
            for &name in expected {
                assert_eq!(greeting(&balancer).await, name);
            }
        };
        check(&["a", "b", "a", "b"]).await;
        let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
        stream.read_exact(&mut [0; 1]).await.unwrap();
        let from = stream.local_addr().unwrap();
        assert_eq!(balancer.backend_of(from), Some(a));
        let count = |expected: [usize; 2]| {
            let balancer = &balancer;
            crate::eventually(Duration::from_secs(5), "the count", async move || {
                let found = [balancer.connections_to(a), balancer.connections_to(b)];
                if found == expected { Ok(()) } else { Err(format!("{found:?}")) }
            })
        };
        count([1, 0]).await;
        drop(stream);
        count([0, 0]).await;
        assert_eq!(balancer.backend_of(from), Some(a), "it is remembered");
        check(&["b"]).await;
        drop(b_server);
        crate::eventually(Duration::from_secs(5), "b refuses", async || TcpStream::connect(b).await.is_err()).await;
        check(&["a", "a", "a"]).await;
        balancer.set_backends(&[]);
        check(&[""]).await;
        balancer.set_backends(&[a]);
        check(&["a"]).await;
    }

    #[tokio::test]
    async fn what_is_held_back_arrives_later() {
        let (a, _a) = named("a").await;
        let balancer = Balancer::start(&[a]).await.unwrap();
        let mut stream = TcpStream::connect(balancer.address()).await.unwrap();
        let mut byte = [0; 1];
        stream.read_exact(&mut byte).await.unwrap();
        balancer.hold_back(true);
        stream.write_all(b"x").await.unwrap();
        assert!(timeout(Duration::from_millis(200), stream.read_exact(&mut byte)).await.is_err(), "held back");
        balancer.hold_back(false);
        timeout(Duration::from_secs(5), stream.read_exact(&mut byte)).await.unwrap().unwrap();
        assert_eq!(&byte, b"x");
    }
}
