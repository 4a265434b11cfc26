use std::time::Duration;

use jiff::SignedDuration;
use serde_json::json;
use tokio::task::JoinHandle;

use super::*;
use crate::net::ca_testing::FakeApi;
use crate::net::probes::Readiness;

/// A rotation against a Secret, and the two ends of its configuration.
struct Bed {
    api: FakeApi,
    readiness: Readiness,
    metrics: Metrics,
    carried: watch::Sender<Option<Carried>>,
    trusted: watch::Receiver<Option<Bundle>>,
    leads: watch::Sender<bool>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Bed {
    fn start(api: &FakeApi, leads: bool) -> Self {
        let (readiness, metrics) = (Readiness::default(), Metrics::new());
        let (carried, carried_seen) = watch::channel(None);
        let (trusted, trusted_seen) = watch::channel(None);
        let (leads, leads_seen) = watch::channel(leads);
        let claim = leads_seen.clone();
        let timing = Timing {
            delay: Duration::from_millis(60),
            overlap: Duration::from_millis(200),
            poll: Duration::from_millis(10),
        };
        let rotation = Rotation {
            store: api.store(),
            timing,
            leads: leads_seen,
            may_write: Arc::new(move || *claim.borrow()),
            carried: carried_seen,
            trusted,
            condition: readiness.register("ca-rotation"),
            metrics: metrics.clone(),
        };
        let shutdown = CancellationToken::new();
        let task = tokio::spawn(rotate(rotation, shutdown.clone()));
        Self { api: api.clone(), readiness, metrics, carried, trusted: trusted_seen, leads, shutdown, task }
    }

    /// The configuration carries this.
    fn carry(&self, bundle: &Bundle) {
        self.carried.send_replace(Some(Carried { everywhere: bundle.clone(), anywhere: bundle.clone() }));
    }

    /// Waits until this bundle is to be trusted, and carries it.
    async fn published(&mut self, len: usize) -> Bundle {
        let wanted = |trusted: &Option<Bundle>| trusted.as_ref().is_some_and(|trusted| trusted.len() == len);
        let trusted = tokio::time::timeout(Duration::from_secs(20), self.trusted.wait_for(wanted)).await;
        let bundle = trusted.expect("not trusted").unwrap().clone().unwrap();
        self.carry(&bundle);
        bundle
    }

    async fn state_is(&self, what: &str, wanted: impl Fn(&CaState) -> bool) -> CaState {
        for _ in 0..2000 {
            if let Ok(Some(state)) = self.api.store().load().await
                && wanted(&state)
            {
                return state;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("never {what}");
    }

    /// Waits for some more rounds: whatever was to happen has happened.
    async fn rounds(&self) {
        let reads = self.api.reads();
        while self.api.reads() < reads + 10 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    async fn end(self) {
        self.shutdown.cancel();
        self.task.await.unwrap();
    }
}

#[tokio::test]
async fn a_rotation_from_the_first_ca_on() {
    let api = FakeApi::default();
    let mut bed = Bed::start(&api, true);
    bed.rounds().await;
    assert!(api.secret().is_none(), "not before the configuration is known");
    bed.carry(&Bundle::default());
    bed.published(1).await;
    let first = bed.state_is("signing", |state| state.signing_since.is_some()).await;
    api.merge(&json!({"metadata": {"annotations": {"kimup.cloudavenue.io/action": "rotate"}}}));
    let both = bed.trusted.wait_for(|trusted| trusted.as_ref().is_some_and(|t| t.len() == 2)).await.unwrap().clone();
    bed.rounds().await;
    let staged = api.state().await;
    assert_eq!((staged.published_since, staged.requested), (None, false), "the configuration does not carry it yet");
    assert_eq!(staged.signing.der(), first.signing.der());
    bed.carry(&both.unwrap());
    let second = bed.state_is("another", |state| state.signing.der() != first.signing.der()).await;
    assert_eq!((second.signing.der(), second.bundle.len()), (staged.next.unwrap().der(), 2));
    let last = bed.published(1).await;
    assert!(last.contains(second.signing.der()));
    bed.end().await;
}

#[tokio::test]
async fn another_leader_goes_on_from_there() {
    let api = FakeApi::default();
    let mut bed = Bed::start(&api, true);
    bed.carry(&Bundle::default());
    bed.published(1).await;
    let first = bed.state_is("signing", |state| state.signing_since.is_some()).await;
    api.merge(&json!({"metadata": {"annotations": {"kimup.cloudavenue.io/action": "rotate"}}}));
    let both = bed.published(2).await;
    bed.state_is("published", |state| state.published_since.is_some() || state.next.is_none()).await;
    bed.leads.send_replace(false);
    bed.trusted.wait_for(Option::is_none).await.unwrap();
    let writes = api.writes().len();
    bed.rounds().await;
    assert_eq!(api.writes().len(), writes, "only the leader writes");
    let mut other = Bed::start(&api, true);
    other.carry(&both);
    other.state_is("another", |state| state.signing.der() != first.signing.der()).await;
    other.published(1).await;
    other.end().await;
    bed.end().await;
}

#[tokio::test]
async fn a_deleted_secret_is_a_rotation() {
    let api = FakeApi::default();
    let mut bed = Bed::start(&api, true);
    bed.carry(&Bundle::default());
    bed.published(1).await;
    let first = bed.state_is("signing", |state| state.signing_since.is_some()).await;
    bed.rounds().await;
    api.put(None);
    let back = bed.state_is("back", |_| true).await;
    assert_eq!(back.signing.der(), first.signing.der(), "replicas serve what it signed");
    bed.published(2).await;
    let second = bed.state_is("another", |state| state.signing.der() != first.signing.der()).await;
    assert!(!bed.published(1).await.contains(first.signing.der()));
    assert_eq!(api.writes().iter().filter(|verb| **verb == "create").count(), 2);
    drop(second);
    bed.end().await;
}

#[tokio::test]
async fn a_new_ca_beside_whatever_the_configuration_trusts() {
    let (api, old) = (FakeApi::default(), CaState::fresh(Bundle::default(), Timestamp::now()).unwrap());
    let mut bed = Bed::start(&api, true);
    bed.carry(&old.bundle);
    let both = bed.published(2).await;
    assert!(both.contains(old.signing.der()));
    let last = bed.published(1).await;
    assert!(!last.contains(old.signing.der()), "the old one goes when the overlap is over");
    bed.end().await;
}

#[tokio::test]
async fn an_expired_ca_is_replaced_and_garbage_is_not() {
    let api = FakeApi::default();
    let years = SignedDuration::from_hours(11 * 365 * 24);
    let long_ago = Timestamp::now().checked_sub(years).unwrap();
    assert!(api.store().create(&CaState::fresh(Bundle::default(), long_ago).unwrap()).await.unwrap());
    let mut bed = Bed::start(&api, true);
    bed.carry(&Bundle::default());
    bed.published(1).await;
    bed.state_is("signing", |state| state.signing_since.is_some()).await;

    let good = serde_json::to_value(api.secret().unwrap()).unwrap();
    api.put(Some(json!({"metadata": {}, "data": {"tls.crt": "c2VjcmV0"}})));
    let writes = api.writes().len();
    bed.rounds().await;
    let said = bed.readiness.report(true).1;
    assert!(said.contains("[!] ca-rotation: Secret kimup-system/kimup-ca is no usable"), "{said}");
    assert!(bed.metrics.encode().contains("{part=\"rotation\"} 1"));
    assert!(bed.readiness.is_ready() && bed.trusted.borrow().is_some(), "what is trusted stays");
    assert_eq!(api.writes().len(), writes, "it is somebody's");
    api.put(Some(good));
    bed.rounds().await;
    assert_eq!(bed.readiness.report(true).1, "[+] ca-rotation\nok\n");
    bed.end().await;
}

/// Somebody writes between every read and write of the leader.
#[tokio::test]
async fn nobody_is_overwritten() {
    let api = FakeApi::default();
    let mut bed = Bed::start(&api, true);
    bed.carry(&Bundle::default());
    bed.published(1).await;
    bed.state_is("signing", |state| state.signing_since.is_some()).await;
    let mut secret = serde_json::to_value(api.secret().unwrap()).unwrap();
    secret["metadata"]["annotations"]["kimup.cloudavenue.io/action"] = json!("rotate");
    let mut noted = secret.clone();
    noted["metadata"]["annotations"]["example.org/note"] = json!("mine");
    api.rival(noted);
    api.put(Some(secret));
    bed.published(2).await;
    let annotations = api.secret().unwrap().metadata.annotations.unwrap();
    assert_eq!(annotations.get("example.org/note").map(String::as_str), Some("mine"));
    bed.end().await;
}
