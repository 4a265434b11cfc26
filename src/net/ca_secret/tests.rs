use serde_json::{Value, json};

use super::*;
use crate::net::ca_rotation::Step;
use crate::net::ca_testing::FakeApi;

fn as_value(state: &CaState) -> Value {
    let mut secret = Secret::default();
    write(&mut secret, state);
    serde_json::to_value(&secret).unwrap()
}

fn fresh() -> CaState {
    CaState::fresh(Bundle::default(), Timestamp::now()).unwrap()
}

#[tokio::test]
async fn created_once_then_read() {
    let api = FakeApi::default();
    let first = api.store().load_or_create().await.unwrap();
    let second = api.store().load_or_create().await.unwrap();
    assert_eq!(first.signing.certificate_pem(), second.signing.certificate_pem());
    assert_eq!(api.writes(), ["create"]);
    let stored = api.secret().unwrap();
    assert_eq!(stored.type_.as_deref(), Some("kubernetes.io/tls"));
    let keys: Vec<String> = stored.data.unwrap().into_keys().collect();
    assert_eq!(keys, ["ca.crt", "tls.crt", "tls.key"]);
}

#[tokio::test]
async fn the_loser_of_a_race_takes_the_winners() {
    let (api, winner) = (FakeApi::default(), fresh());
    api.rival(as_value(&winner));
    let loaded = api.store().load_or_create().await.unwrap();
    assert_eq!(loaded.signing.certificate_pem(), winner.signing.certificate_pem());
    assert!(api.writes().is_empty());
}

#[tokio::test]
async fn what_changed_since_it_was_read_is_not_overwritten() {
    let api = FakeApi::default();
    let state = api.store().load_or_create().await.unwrap();
    let stored = api.store().read().await.unwrap().unwrap();
    let (next, another) = (state.after(&Step::Stage, Timestamp::now()).unwrap(), fresh());
    api.put(Some(as_value(&another)));
    assert!(!api.store().replace(&stored, &next).await.unwrap());
    assert_eq!(api.state().await.signing.der(), another.signing.der());
    api.put(None);
    assert!(!api.store().replace(&stored, &next).await.unwrap());
    assert!(api.secret().is_none(), "what was deleted is not created by an update");
}

#[tokio::test]
async fn every_part_is_written_and_read() {
    let api = FakeApi::default();
    api.store().load_or_create().await.unwrap();
    let action = |value: &str| json!({"metadata": {"annotations": {ACTION: value, "example.org/note": "x"}}});
    api.merge(&action("rotate"));
    api.merge(&json!({"data": {"note": "bm90ZQ=="}, "metadata": {"labels": {"team": "a"}}}));
    let stored = api.store().read().await.unwrap().unwrap();
    let state = stored.state.as_ref().unwrap();
    assert!(state.requested);
    let now: Timestamp = "2026-01-01T00:00:00.25Z".parse().unwrap();
    let published = state.after(&Step::Published, now).unwrap();
    assert!(api.store().replace(&stored, &published).await.unwrap());
    let stored = api.store().read().await.unwrap().unwrap();
    let state = stored.state.as_ref().unwrap();
    assert_eq!((state.requested, state.published_since, state.signing_since), (true, Some(now), None));

    let staged = state.after(&Step::Sign, now).unwrap().after(&Step::Stage, Timestamp::now()).unwrap();
    assert!(api.store().replace(&stored, &staged).await.unwrap());
    let read = api.state().await;
    assert_eq!(read.signing.der(), staged.signing.der());
    assert_eq!(read.next.unwrap().der(), staged.next.as_ref().unwrap().der());
    assert_eq!((&read.bundle, read.signing_since, read.requested), (&staged.bundle, Some(now), false));
    let secret = api.secret().unwrap();
    let annotations = secret.metadata.annotations.unwrap();
    assert_eq!(annotations.keys().collect::<Vec<_>>(), ["example.org/note", SIGNING_SINCE], "begun, so not asked for");
    assert!(secret.data.unwrap().contains_key("note") && secret.metadata.labels.unwrap().contains_key("team"));

    api.merge(&action("restart"));
    assert_eq!(api.store().read().await.unwrap().unwrap().unknown_action.as_deref(), Some("restart"));
}

#[tokio::test]
async fn an_unusable_secret_is_named_and_left_alone() {
    async fn check(secret: Value, reason: &str) {
        let api = FakeApi::default();
        api.put(Some(secret));
        let error = api.store().load_or_create().await.unwrap_err().to_string();
        assert!(error.contains("Secret kimup-system/kimup-ca"), "{error}");
        assert!(error.contains(reason), "{error}");
        assert!(!error.contains("c2VjcmV0"), "{error}");
        assert!(api.writes().is_empty());
    }
    check(json!({"metadata": {"name": "kimup-ca"}}), "no `tls.crt`").await;
    check(json!({"metadata": {}, "data": {"tls.crt": "c2VjcmV0", "tls.key": "c2VjcmV0"}}), "no PEM").await;
    check(json!({"metadata": {}, "data": {"tls.crt": "/w==", "tls.key": "c2VjcmV0"}}), "no text").await;
    check(json!({"metadata": {}, "data": {"tls.crt": 7, "x": "c2VjcmV0"}}), "does not parse").await;
    let long_ago = CaState::fresh(Bundle::default(), "2010-01-01T00:00:00Z".parse().unwrap()).unwrap();
    let mut expired = as_value(&long_ago);
    expired["metadata"] = json!({"name": "kimup-ca"});
    check(expired, "expired at 2019-12-30").await;
}

#[tokio::test]
async fn a_ca_that_somebody_put_in_does_not_inherit_the_time_of_the_one_before() {
    let api = FakeApi::default();
    let now: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
    let ours = fresh().after(&Step::Sign, now).unwrap();
    api.put(Some(as_value(&ours)));
    assert_eq!(api.state().await.signing_since, Some(now));
    let another = as_value(&fresh());
    api.merge(&json!({"data": {"tls.crt": another["data"]["tls.crt"], "tls.key": another["data"]["tls.key"]}}));
    let found = api.state().await;
    assert_eq!((found.signing_since, found.bundle.len()), (None, 2), "the one before stays trusted");
    assert!(found.bundle.contains(ours.signing.der()));
}

#[tokio::test]
async fn a_next_ca_that_cannot_be_used_is_left_out() {
    let api = FakeApi::default();
    api.store().load_or_create().await.unwrap();
    for next in [json!({"next.crt": "c2VjcmV0"}), json!({"next.crt": "c2VjcmV0", "next.key": "c2VjcmV0"})] {
        api.merge(&json!({"data": next}));
        assert!(api.state().await.next.is_none());
    }
    let stored = api.store().read().await.unwrap().unwrap();
    assert!(api.store().replace(&stored, stored.state.as_ref().unwrap()).await.unwrap());
    assert_eq!(api.secret().unwrap().data.unwrap().len(), 3, "and goes with the next write");
}
