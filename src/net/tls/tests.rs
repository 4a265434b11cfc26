use std::path::Path;
use std::sync::Mutex;

use jiff::SignedDuration;
use secrecy::SecretString;

use super::*;
use crate::net::ca::Leaf;
use crate::net::probes::Readiness;

/// A clock that stands still until it is set.
#[derive(Clone)]
struct Hands(Arc<Mutex<Timestamp>>);

impl Hands {
    fn new() -> Self {
        Self(Arc::new(Mutex::new("2026-01-01T00:00:00Z".parse().unwrap())))
    }
    fn now(&self) -> Timestamp {
        *self.0.lock().unwrap()
    }
    fn advance(&self, days: i64) {
        let mut now = self.0.lock().unwrap();
        *now = now.checked_add(SignedDuration::from_hours(24 * days)).unwrap();
    }
    fn clock(&self) -> Clock {
        let hands = self.clone();
        Arc::new(move || hands.now())
    }
}

struct Bed {
    hands: Hands,
    readiness: Readiness,
    metrics: Metrics,
}

impl Bed {
    fn new() -> Self {
        Self { hands: Hands::new(), readiness: Readiness::default(), metrics: Metrics::new() }
    }
    async fn keeper(&self, source: CertSource) -> Result<Keeper, TlsError> {
        let served = self.readiness.register("certificate");
        Keeper::start(source, None, self.hands.clock(), served, self.metrics.clone()).await
    }
    fn expiry(&self) -> Timestamp {
        let text = self.metrics.encode();
        let line = text.lines().find_map(|l| l.strip_prefix("kimup_certificate_expiry_timestamp_seconds "));
        Timestamp::from_second(line.unwrap().parse().unwrap()).unwrap()
    }
}

fn authority(hands: &Hands) -> Arc<CertificateAuthority> {
    Arc::new(CertificateAuthority::generate("test", hands.now()).unwrap())
}

fn sign(ca: &CertificateAuthority, at: Timestamp) -> Leaf {
    ca.sign_leaf(&["kimup.test".to_owned()], &[], at).unwrap()
}

#[tokio::test]
async fn a_leaf_is_renewed_at_two_thirds_of_its_life() {
    let bed = Bed::new();
    let ca = authority(&bed.hands);
    let source = CertSource::SelfManaged { ca, dns: vec!["kimup.test".to_owned()], ips: vec![] };
    let mut keeper = bed.keeper(source).await.unwrap();
    let first = keeper.shared.load_full();
    assert!(bed.readiness.is_ready());
    assert_eq!(bed.expiry(), "2026-04-01T00:00:00Z".parse().unwrap());

    bed.hands.advance(59);
    keeper.check().await;
    assert!(Arc::ptr_eq(&first, &keeper.shared.load_full()), "renewed too early");
    bed.hands.advance(1);
    keeper.check().await;
    assert!(!Arc::ptr_eq(&first, &keeper.shared.load_full()), "not renewed");
    assert_eq!(bed.expiry(), "2026-05-31T00:00:00Z".parse().unwrap());

    let second = keeper.shared.load_full();
    bed.hands.advance(-30);
    keeper.check().await;
    assert!(!Arc::ptr_eq(&second, &keeper.shared.load_full()), "not valid yet by this clock");
}

#[tokio::test]
async fn an_expired_ca_is_said_and_unreadies() {
    let bed = Bed::new();
    let ca = authority(&bed.hands);
    let source = CertSource::SelfManaged { ca, dns: vec!["kimup.test".to_owned()], ips: vec![] };
    let mut keeper = bed.keeper(source).await.unwrap();
    bed.hands.advance(11 * 365);
    keeper.check().await;
    assert!(!bed.readiness.is_ready());
    assert!(keeper.warned.as_ref().unwrap().contains("expired"), "{:?}", keeper.warned);
}

/// A folder with `tls.crt` and `tls.key`.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self, name: &str) -> PathBuf {
        Path::new(self.0.path()).join(name)
    }
    fn write(&self, chain: &str, key: &SecretString) {
        std::fs::write(self.path("tls.crt"), chain).unwrap();
        std::fs::write(self.path("tls.key"), key.expose_secret()).unwrap();
    }
    fn source(&self) -> CertSource {
        CertSource::Files { certificate: self.path("tls.crt"), key: self.path("tls.key") }
    }
}

#[tokio::test]
async fn files_are_taken_when_whole_matched_and_valid() {
    let bed = Bed::new();
    let ca = authority(&bed.hands);
    let now = bed.hands.now();
    let files = Files::new();
    let first = sign(&ca, now);
    files.write(&first.chain, &first.key);
    let mut keeper = bed.keeper(files.source()).await.unwrap();
    let before = keeper.shared.load_full();

    let later = now.checked_add(SignedDuration::from_hours(48)).unwrap();
    let ago = now.checked_sub(SignedDuration::from_hours(24 * 100)).unwrap();
    let second = sign(&ca, now);
    let (expired, early) = (sign(&ca, ago), sign(&ca, later));
    let half = &second.chain[..second.chain.len() / 2];
    let empty = SecretString::from("");
    let refused = [
        (second.chain.as_str(), &first.key, "KeyMismatch"),
        (half, &second.key, "no PEM"),
        ("", &second.key, "has none"),
        (&second.chain, &empty, "private key is no PEM"),
        (&expired.chain, &expired.key, "expired at"),
        (&early.chain, &early.key, "valid only from"),
    ];
    for (chain, key, reason) in refused {
        files.write(chain, key);
        keeper.check().await;
        let warned = keeper.warned.clone().unwrap_or_default();
        assert!(Arc::ptr_eq(&before, &keeper.shared.load_full()), "taken: {reason}");
        assert!(warned.contains(reason), "{warned}");
        assert!(bed.readiness.is_ready(), "{reason}");
    }
    std::fs::remove_file(files.path("tls.key")).unwrap();
    keeper.check().await;
    assert!(keeper.warned.clone().unwrap().contains("cannot read"), "{:?}", keeper.warned);

    files.write(&first.chain, &first.key);
    keeper.check().await;
    assert!(Arc::ptr_eq(&before, &keeper.shared.load_full()), "the same bytes are no change");
    assert_eq!(keeper.warned, None, "well again");

    files.write(&second.chain, &second.key);
    keeper.check().await;
    assert!(!Arc::ptr_eq(&before, &keeper.shared.load_full()), "not taken");
    bed.hands.advance(91);
    keeper.check().await;
    assert!(!bed.readiness.is_ready(), "expired");
    let third = sign(&ca, bed.hands.now());
    files.write(&third.chain, &third.key);
    keeper.check().await;
    assert!(bed.readiness.is_ready(), "served again");
    assert_eq!(bed.expiry(), third.not_after);
}

#[tokio::test]
async fn the_first_pair_must_be_good() {
    let bed = Bed::new();
    let files = Files::new();
    let check = async |reason: &str| {
        let error = bed.keeper(files.source()).await.err().expect("started").to_string();
        assert!(error.contains(reason) && error.contains("tls.crt"), "{error}");
    };
    check("cannot read").await;
    let ca = authority(&bed.hands);
    files.write(&sign(&ca, bed.hands.now()).chain, &sign(&ca, bed.hands.now()).key);
    check("KeyMismatch").await;
    std::fs::write(files.path("tls.crt"), vec![b'x'; (1 << 20) + 1]).unwrap();
    check("larger than").await;
}

#[tokio::test(start_paused = true)]
async fn the_task_polls_and_ends() {
    let bed = Bed::new();
    let ca = authority(&bed.hands);
    let files = Files::new();
    let (first, second) = (sign(&ca, bed.hands.now()), sign(&ca, bed.hands.now()));
    files.write(&first.chain, &first.key);
    let shutdown = CancellationToken::new();
    let served = bed.readiness.register("certificate");
    let (shared, task) =
        start(files.source(), None, bed.hands.clock(), served, bed.metrics.clone(), shutdown.clone()).await.unwrap();
    let before = shared.load_full();
    files.write(&second.chain, &second.key);
    while Arc::ptr_eq(&before, &shared.load_full()) {
        tokio::time::sleep(POLL_FILES).await;
    }
    shutdown.cancel();
    task.await.unwrap();
}
