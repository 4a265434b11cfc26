use std::time::Duration;

use serde_json::json;

use super::*;
use crate::net::ca_bundle::Bundle;
use crate::net::ca_rotation::Step;
use crate::net::ca_testing::FakeApi;
use crate::net::probes::Readiness;

struct Bed {
    api: FakeApi,
    readiness: Readiness,
    metrics: Metrics,
    follower: Follower,
    signing: watch::Receiver<Arc<CertificateAuthority>>,
}

impl Bed {
    async fn new(by_hand: bool) -> Self {
        let (api, readiness, metrics) = (FakeApi::default(), Readiness::default(), Metrics::new());
        let first = api.store().load_or_create().await.unwrap().signing;
        let (sender, signing) = watch::channel(first);
        let following = Following {
            store: api.store(),
            timing: Timing::of(Duration::from_secs(60)),
            by_hand,
            condition: readiness.register("ca"),
            metrics: metrics.clone(),
        };
        let trouble = Trouble::new(CertificatePart::Ca, metrics.clone());
        Self { api, readiness, metrics, follower: Follower { following, signing: sender, trouble }, signing }
    }

    /// Looks twice, for what lasts is said; then `/readyz?verbose` and the metric.
    async fn said(&mut self) -> (String, bool) {
        self.follower.look().await;
        self.follower.look().await;
        assert!(self.readiness.is_ready(), "the old CA is as good as before");
        let failing = self.metrics.encode().contains("kimup_certificate_renewal_failing{part=\"ca\"} 1\n");
        (self.readiness.report(true).1, failing)
    }

    /// Another CA in the Secret, which may sign or not yet.
    async fn another(&self, signs: bool) -> Arc<CertificateAuthority> {
        let now = Timestamp::now();
        let stored = self.api.store().read().await.unwrap().unwrap();
        let mut state = CaState::fresh(Bundle::default(), now).unwrap();
        if signs {
            state = state.after(&Step::Sign, now).unwrap();
        }
        assert!(self.api.store().replace(&stored, &state).await.unwrap());
        state.signing
    }

    fn signs_with(&self, ca: &CertificateAuthority) -> bool {
        self.signing.borrow().der() == ca.der()
    }
}

#[tokio::test]
async fn another_ca_is_taken_when_it_may_sign() {
    let mut bed = Bed::new(false).await;
    let first = bed.signing.borrow().clone();
    bed.another(false).await;
    assert_eq!(bed.said().await, ("[+] ca\nok\n".to_owned(), false));
    assert!(bed.signs_with(&first), "nobody trusts the other yet");
    let another = bed.another(true).await;
    assert_eq!(bed.said().await, ("[+] ca\nok\n".to_owned(), false));
    assert!(bed.signs_with(&another));
}

#[tokio::test]
async fn what_cannot_be_taken_is_said_and_taken_back() {
    let mut bed = Bed::new(false).await;
    let first = bed.signing.borrow().clone();
    let good = serde_json::to_value(bed.api.secret().unwrap()).unwrap();
    let long_ago = CaState::fresh(Bundle::default(), "2010-01-01T00:00:00Z".parse().unwrap()).unwrap();
    let api = bed.api.clone();
    let expired = async || {
        let stored = api.store().read().await.unwrap().unwrap();
        api.store().replace(&stored, &long_ago).await.unwrap();
    };
    let rows = ["expired at", "is gone; the leader", "cannot read Secret", "no usable certificate authority"];
    for reason in rows {
        match reason {
            "expired at" => expired().await,
            "is gone; the leader" => api.put(None),
            "cannot read Secret" => api.set_down(true),
            _ => api.put(Some(json!({"metadata": {}}))),
        }
        let (said, failing) = bed.said().await;
        assert!(said.starts_with("[!] ca: ") && said.contains(reason) && said.contains("kimup-ca"), "{said}");
        assert!(failing && bed.signs_with(&first), "{reason}");
        api.set_down(false);
        api.put(Some(good.clone()));
        assert_eq!(bed.said().await, ("[+] ca\nok\n".to_owned(), false));
    }
}

#[tokio::test]
async fn by_hand_the_secret_counts_at_once_and_its_end_is_announced() {
    let mut bed = Bed::new(true).await;
    let another = bed.another(false).await;
    assert_eq!(bed.said().await.0, "[+] ca\nok\n");
    assert!(bed.signs_with(&another));
    let rotate = |value: Option<&str>| json!({"metadata": {"annotations": {"kimup.cloudavenue.io/action": value}}});
    bed.api.merge(&rotate(Some("rotate")));
    let (said, failing) = bed.said().await;
    assert!(failing && said.contains("is asked to rotate and cannot: with --watch-namespace"), "{said}");
    bed.api.merge(&rotate(None));
    assert!(!bed.said().await.1);
    let years = jiff::SignedDuration::from_hours(7 * 365 * 24);
    let old = CaState::fresh(Bundle::default(), Timestamp::now().checked_sub(years).unwrap()).unwrap();
    let stored = bed.api.store().read().await.unwrap().unwrap();
    assert!(bed.api.store().replace(&stored, &old).await.unwrap());
    let (said, failing) = bed.said().await;
    assert!(failing && said.contains("is not rotated by itself"), "{said}");
    assert!(bed.signs_with(&old.signing));
}

#[tokio::test(start_paused = true)]
async fn the_task_follows_and_ends() {
    let Bed { api, readiness, metrics, signing, .. } = Bed::new(true).await;
    let (timing, condition) = (Timing::of(Duration::from_secs(60)), readiness.register("ca"));
    let following = Following { store: api.store(), timing, by_hand: true, condition, metrics };
    let shutdown = CancellationToken::new();
    let (mut receiver, task) = follow(following, signing.borrow().clone(), shutdown.clone());
    let (before, state) = (api.reads(), CaState::fresh(Bundle::default(), Timestamp::now()).unwrap());
    let stored = api.store().read().await.unwrap().unwrap();
    assert!(api.store().replace(&stored, &state).await.unwrap());
    receiver.changed().await.unwrap();
    assert_eq!(receiver.borrow().der(), state.signing.der());
    assert!(api.reads() - before <= 3, "one read each 10 seconds");
    shutdown.cancel();
    task.await.unwrap();
}
