use std::sync::Mutex;

use jiff::SignedDuration;
use secrecy::SecretString;

use super::*;
use crate::net::ca::Leaf;
use crate::net::probes::Readiness;
use crate::net::tls_testing::{Chains, Files, Parts, Way};

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
    fn failing(&self) -> bool {
        self.metrics.encode().contains("kimup_certificate_renewal_failing{part=\"serving\"} 1\n")
    }
    /// The conditions as `/readyz?verbose` has them.
    fn said(&self) -> String {
        self.readiness.report(true).1
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

fn self_managed(ca: Arc<CertificateAuthority>) -> (watch::Sender<Arc<CertificateAuthority>>, CertSource) {
    let (sender, ca) = watch::channel(ca);
    (sender, CertSource::SelfManaged { ca, dns: vec!["kimup.test".to_owned()], ips: vec![] })
}

fn sign(ca: &CertificateAuthority, at: Timestamp) -> Leaf {
    ca.sign_leaf(&["kimup.test".to_owned()], &[], at).unwrap()
}

#[tokio::test]
async fn a_leaf_is_renewed_at_two_thirds_of_its_life() {
    let bed = Bed::new();
    let ca = authority(&bed.hands);
    let (_ca, source) = self_managed(ca);
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
    let (_ca, source) = self_managed(ca);
    let mut keeper = bed.keeper(source).await.unwrap();
    bed.hands.advance(11 * 365);
    keeper.check().await;
    keeper.check().await;
    assert!(!bed.readiness.is_ready());
    assert!(keeper.trouble.reason().unwrap().contains("expired"), "{:?}", keeper.trouble);
}

#[tokio::test]
async fn another_ca_signs_another_leaf() {
    let bed = Bed::new();
    let (first, second) = (authority(&bed.hands), authority(&bed.hands));
    let (ca, source) = self_managed(first.clone());
    let mut keeper = bed.keeper(source).await.unwrap();
    let before = keeper.shared.load_full();
    ca.send_replace(first);
    keeper.check().await;
    assert!(Arc::ptr_eq(&before, &keeper.shared.load_full()), "the same CA");
    ca.send_replace(second.clone());
    keeper.check().await;
    assert!(!Arc::ptr_eq(&before, &keeper.shared.load_full()), "another CA");
    let leaf = CertificateDer::from_pem_slice(&keeper.pair.chain).unwrap();
    assert_eq!(key_identifiers(&leaf), key_identifiers(second.der()), "signed by the second");
}

/// Of the key that signed a leaf, or of a CA's own.
fn key_identifiers(der: &CertificateDer<'_>) -> Vec<Vec<u8>> {
    use x509_parser::extensions::ParsedExtension::{AuthorityKeyIdentifier, SubjectKeyIdentifier};
    let (_, certificate) = X509Certificate::from_der(der).unwrap();
    let identifiers = certificate.extensions().iter().filter_map(|extension| match extension.parsed_extension() {
        AuthorityKeyIdentifier(found) => Some(found.key_identifier.as_ref().unwrap().0.to_vec()),
        SubjectKeyIdentifier(found) if certificate.is_ca() => Some(found.0.to_vec()),
        _ => None,
    });
    let identifiers: Vec<_> = identifiers.collect();
    assert_eq!(identifiers.len(), 1);
    identifiers
}

#[tokio::test]
async fn files_are_taken_when_whole_matched_and_valid() {
    for way in [Way::InPlace, Way::Rename, Way::Symlink] {
        renewed_by(way).await;
    }
}

async fn renewed_by(way: Way) {
    let bed = Bed::new();
    let ca = authority(&bed.hands);
    let now = bed.hands.now();
    let files = Files::new();
    let first = sign(&ca, now);
    files.write(way, &first.chain, &first.key);
    let mut keeper = bed.keeper(files.source()).await.unwrap();
    let before = keeper.shared.load_full();
    let second = sign(&ca, now);
    refused(&bed, (&files, way), &mut keeper, (&first, &second)).await;

    files.write(way, &first.chain, &first.key);
    keeper.check().await;
    assert!(Arc::ptr_eq(&before, &keeper.shared.load_full()), "the same bytes are no change");
    assert_eq!((bed.failing(), bed.said().as_str()), (false, "[+] certificate\nok\n"), "well again");

    files.write(way, &second.chain, &second.key);
    keeper.check().await;
    assert!(Arc::ptr_eq(&before, &keeper.shared.load_full()), "taken at first sight");
    keeper.check().await;
    assert!(!Arc::ptr_eq(&before, &keeper.shared.load_full()), "not taken");
    bed.hands.advance(91);
    keeper.check().await;
    assert!(!bed.readiness.is_ready(), "expired");
    let third = sign(&ca, bed.hands.now());
    files.write(way, &third.chain, &third.key);
    keeper.check().await;
    keeper.check().await;
    assert!(bed.readiness.is_ready(), "served again");
    assert_eq!(bed.expiry(), third.not_after);
}

/// What cannot be served is not taken; it is said when it lasts.
async fn refused(bed: &Bed, (files, way): (&Files, Way), keeper: &mut Keeper, (first, second): (&Leaf, &Leaf)) {
    let ca = authority(&bed.hands);
    let now = bed.hands.now();
    let before = keeper.shared.load_full();
    let later = now.checked_add(SignedDuration::from_hours(48)).unwrap();
    let ago = now.checked_sub(SignedDuration::from_hours(24 * 100)).unwrap();
    let (expired, early) = (sign(&ca, ago), sign(&ca, later));
    let half = &second.chain[..second.chain.len() / 2];
    let (empty, half_key) = (SecretString::from(""), &second.key.expose_secret()[..40]);
    let half_key = SecretString::from(half_key);
    let refused = [
        (second.chain.as_str(), &first.key, "KeyMismatch"),
        (half, &second.key, "no PEM"),
        ("", &second.key, "has none"),
        (&second.chain, &empty, "private key is no PEM"),
        (&second.chain, &half_key, "private key is no PEM"),
        (&expired.chain, &expired.key, "expired at"),
        (&early.chain, &early.key, "valid only from"),
    ];
    for (chain, key, reason) in refused {
        keeper.trouble.over();
        files.write(way, chain, key);
        keeper.check().await;
        assert!(!bed.failing(), "said at first sight: {reason}");
        keeper.check().await;
        assert!(Arc::ptr_eq(&before, &keeper.shared.load_full()), "taken: {reason}");
        let said = bed.said();
        assert!(said.starts_with("[!] certificate: served until 2026-04-01") && said.contains(reason), "{said}");
        assert!(!said.contains("PRIVATE"), "{said}");
        assert!(bed.readiness.is_ready() && bed.failing(), "{reason}");
    }
    std::fs::remove_file(files.path("tls.key")).unwrap();
    keeper.check().await;
    assert!(bed.said().contains("cannot read"), "{}", bed.said());
    assert!(bed.readiness.is_ready());
}

/// The old pair, its chain beside the new key, the new leaf alone, the new chain.
fn state<'a>(name: char, old: &'a Parts, new: &'a Parts) -> (String, &'a SecretString) {
    match name {
        'o' => (old.chain(), &old.key),
        'm' => (old.chain(), &new.key),
        'c' => (new.leaf.clone(), &new.key),
        _ => (new.chain(), &new.key),
    }
}

#[tokio::test]
async fn what_is_cut_between_two_certificates_is_waited_for() {
    let (chains, bed) = (Chains::new(), Bed::new());
    let (old, new) = (chains.sign(), chains.sign());
    // What is there at the start, and at each look; what is served at the start, and after each look.
    let check = async |looks: &str, expected: &str| {
        let files = Files::new();
        let write = |name: char| {
            let (chain, key) = state(name, &old, &new);
            files.write(Way::InPlace, &chain, key);
        };
        let (first, rest) = looks.split_at(1);
        write(first.chars().next().unwrap());
        let mut keeper = bed.keeper(files.source()).await.unwrap();
        let mut served = String::new();
        let mut note = |keeper: &Keeper| {
            let is = |name: &char| keeper.pair.chain == state(*name, &old, &new).0.as_bytes();
            served.push(['o', 'c', 'w'].into_iter().find(is).unwrap());
        };
        note(&keeper);
        for look in rest.chars() {
            write(look);
            keeper.check().await;
            assert!(keeper.trouble.reason().is_none(), "{looks}: {:?}", keeper.trouble);
            note(&keeper);
        }
        assert_eq!(served, expected, "{looks}");
    };
    check("oww", "oow").await;
    check("ocww", "ooow").await;
    check("omcww", "oooow").await;
    check("ocwcww", "ooooow").await;
    check("ocowo", "ooooo").await;
    check("owow", "oooo").await;
    check("occ", "ooc").await; // it is meant so
    check("cww", "ccw").await; // the first pair is taken at sight
    check("ccww", "cccw").await;
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
    files.write(Way::InPlace, &sign(&ca, bed.hands.now()).chain, &sign(&ca, bed.hands.now()).key);
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
    files.write(Way::InPlace, &first.chain, &first.key);
    let shutdown = CancellationToken::new();
    let served = bed.readiness.register("certificate");
    let (shared, task) =
        start(files.source(), None, bed.hands.clock(), served, bed.metrics.clone(), shutdown.clone()).await.unwrap();
    let before = shared.load_full();
    files.write(Way::InPlace, &second.chain, &second.key);
    let began = tokio::time::Instant::now();
    while Arc::ptr_eq(&before, &shared.load_full()) {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    shutdown.cancel();
    task.await.unwrap();
}
