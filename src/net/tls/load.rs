//! Files are renewed under load: no handshake and no request fails, whatever a look finds in between.

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;

use super::*;
use crate::net::probes::Readiness;
use crate::net::server::{ServerOptions, serve_https};
use crate::net::tls_testing::{ANSWER, Chains, Connection, Files, Load, Parts, Way, trusting};

/// Requests in one connection, for each client: new connections, some that are kept for a while, and one that is kept throughout.
const KEPT: [usize; 3] = [1, 20, usize::MAX];
const WAYS: [Way; 3] = [Way::InPlace, Way::Rename, Way::Symlink];

/// What a look finds between an old pair and the next one.
#[derive(Clone, Copy, Debug)]
enum Between {
    /// The old pair.
    Nothing,
    /// The key already, the chain not yet.
    Mismatch,
    /// The chain up to a place inside a certificate.
    Half,
    /// The chain up to the end of the leaf: it fits, and clients cannot verify it.
    Cut,
    /// Files that are emptied before they are written.
    Empty,
}

const BETWEEN: [Between; 5] = [Between::Nothing, Between::Mismatch, Between::Half, Between::Cut, Between::Empty];

impl Between {
    fn write(self, files: &Files, way: Way, old: &Parts, new: &Parts) {
        let half = &new.leaf[..new.leaf.len() / 2];
        match self {
            Self::Nothing => {}
            Self::Mismatch => files.write(way, &old.chain(), &new.key),
            Self::Half => files.write(way, half, &new.key),
            Self::Cut => files.write(way, &new.leaf, &new.key),
            Self::Empty => files.write(way, "", &new.key),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hundred_renewals_of_files_under_load() {
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let (files, chains, stop) = (Files::new(), Chains::new(), CancellationToken::new());
    let mut now = chains.sign();
    files.write(WAYS[0], &now.chain(), &now.key);
    let served = Readiness::default().register("certificate");
    let mut keeper = Keeper::start(files.source(), None, system_clock(), served, Metrics::new()).await.unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", get(|| async { ANSWER }));
    tokio::spawn(serve_https(listener, keeper.shared.clone(), router, ServerOptions::default(), stop.clone()));

    let config = trusting([chains.root()]);
    let client = config.clone();
    let load = Load::start(&KEPT, move |_, _| {
        let config = client.clone();
        async move { Connection::open(address, config).await.map(Some) }
    });
    for renewal in 0..100 {
        let (way, between) = (WAYS[renewal % WAYS.len()], BETWEEN[renewal % BETWEEN.len()]);
        let next = chains.sign();
        between.write(&files, way, &now, &next);
        keeper.check().await;
        load.goes_on().await;
        files.write(way, &next.chain(), &next.key);
        keeper.check().await;
        keeper.check().await;
        load.goes_on().await;
        let leaf = Connection::open(address, config.clone()).await.unwrap().leaf();
        let wanted = CertificateDer::from_pem_slice(next.leaf.as_bytes()).unwrap();
        assert_eq!(leaf, wanted, "not taken at the second look: {renewal} {way:?} {between:?}");
        now = next;
    }
    let tally = load.end().await;
    stop.cancel();
    let (served, failed) = (tally.served, tally.failed);
    println!("{served} requests");
    assert!(failed.is_empty(), "{served} served, {} failed: {:?}", failed.len(), failed.first());
    assert!(served >= 100 * 2 * KEPT.len(), "{served}");
}
