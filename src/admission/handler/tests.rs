use super::*;
use crate::index::testing::snapshot;
use futures::future::BoxFuture;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Answers `1.5.0`, panics for the Image `panics`, never answers for `hangs`.
struct Sync;

impl Ask for Sync {
    fn ask(&self, question: Question) -> BoxFuture<'_, Result<Answered, String>> {
        async move {
            match question.image.as_str() {
                "panics" => panic!("a bug"),
                "hangs" => std::future::pending().await,
                _ => Ok(Answered::new(Some("1.5.0".to_owned()), "")),
            }
        }
        .boxed()
    }
}

const DEADLINE: Duration = Duration::from_secs(2);

fn service(images: &[Value]) -> (Webhook, Metrics) {
    let metrics = Metrics::new();
    let index = Index::fixed(snapshot(images));
    (Webhook::new(index, Arc::new(Sync), DEADLINE, metrics.clone()), metrics)
}

async fn post_to(webhook: Webhook, path: &str, body: impl Into<Bytes>) -> (StatusCode, String) {
    let request = Request::post(path).body(body.into()).unwrap();
    let response = webhook.handle(request).await;
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn review(annotations: &Value, images: &[&str]) -> String {
    let containers: Vec<Value> = images.iter().map(|image| json!({"name": "app", "image": image})).collect();
    json!({"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": {
        "uid": "u", "namespace": "shop", "operation": "CREATE", "dryRun": true,
        "resource": {"group": "", "version": "v1", "resource": "pods"},
        "object": {"metadata": {"annotations": annotations}, "spec": {"containers": containers}},
    }})
    .to_string()
}

fn named(name: &str) -> Value {
    json!({"metadata": {"name": name}, "spec": {"image": name}, "status": null})
}

#[tokio::test(start_paused = true)]
async fn answers() {
    async fn check(path: &str, own: &Value, images: &[&str], allowed: bool, expected: &str, outcome: &str) {
        let known = [named("good"), named("panics"), named("hangs")];
        let (webhook, metrics) = service(&known);
        let start = tokio::time::Instant::now();
        let (status, body) = post_to(webhook, path, review(own, images)).await;
        assert_eq!(status, 200, "{body}");
        let answer: Value = serde_json::from_str(&body).unwrap();
        assert_eq!(answer["response"]["uid"], "u");
        assert_eq!(answer["response"]["allowed"], allowed, "{body}");
        assert!(body.contains(expected), "{body} lacks {expected:?}");
        assert!(start.elapsed() <= DEADLINE, "one deadline for all questions");
        let line = format!("kimup_admission_requests_total{{outcome=\"{outcome}\"}} 1");
        assert!(metrics.encode().contains(&line), "{}", metrics.encode());
        let panics = usize::from(images.contains(&"panics:1"));
        assert!(metrics.encode().contains(&format!("kimup_admission_panics_total {panics}\n")));
    }
    let none = json!({});
    let ignore = json!({"kimup.cloudavenue.io/failure-policy": "ignore"});
    check("/mutate", &none, &["nginx:1"], true, "", "unchanged").await;
    check("/mutate", &none, &["good:1.0.0"], true, "JSONPatch", "mutated").await;
    check("/mutate/pod-fail", &none, &["good:1.0.0"], true, "JSONPatch", "mutated").await;
    check("/mutate/labelled-fail", &none, &["good:1.0.0"], true, "JSONPatch", "mutated").await;
    check("/mutate", &none, &["good:1", "hangs:1", "hangs:2"], false, "sync did not answer within 2000 ms", "denied")
        .await;
    check("/mutate", &ignore, &["hangs:1"], true, "did not answer", "unchanged").await;
    check("/mutate", &ignore, &["good:1", "hangs:1"], true, "JSONPatch", "mutated").await;
    check("/mutate/labelled-fail", &none, &["hangs:1"], false, "did not answer", "denied").await;
    check("/mutate/labelled-ignore?timeout=10s", &none, &["hangs:1"], true, "did not answer", "unchanged").await;
    check("/mutate", &none, &["panics:1"], false, "internal error while answering", "denied").await;
    check("/mutate/labelled-ignore", &none, &["panics:1"], true, "internal error while answering", "unchanged").await;
    check("/mutate", &ignore, &["panics:1"], true, "internal error while answering", "unchanged").await;
}

#[tokio::test]
async fn what_cannot_be_answered_is_a_plain_error() {
    async fn check(body: Vec<u8>, status: u16, expected: &str) {
        let (webhook, metrics) = service(&[]);
        let (found, text) = post_to(webhook, "/mutate", body).await;
        assert_eq!(found, status, "{text}");
        assert!(text.contains(expected), "{text:?} lacks {expected:?}");
        let line = "kimup_admission_requests_total{outcome=\"error\"} 1";
        assert!(metrics.encode().contains(line));
    }
    check(b"{".to_vec(), 400, "the body cannot be read").await;
    check(vec![0xff, 0xfe], 400, "the body cannot be read").await;
    check(b"{}".to_vec(), 400, "set admissionReviewVersions: [v1]").await;
    check(vec![b' '; 7 << 20], 400, "the body cannot be read").await;
}

#[tokio::test]
async fn nothing_is_answered_before_the_caches_are_filled() {
    let index = Index::unfilled();
    let webhook = Webhook::new(index, Arc::new(Sync), DEADLINE, Metrics::new());
    let metrics = webhook.0.metrics.clone();
    let (status, text) = post_to(webhook, "/mutate", review(&json!({}), &["good:1"])).await;
    assert_eq!(status, 503);
    assert!(metrics.encode().contains("kimup_requests_refused_total{reason=\"not-ready\"} 1"));
    assert!(text.contains("not listed yet"), "{text}");
}

#[tokio::test]
async fn only_posts_to_the_path_are_answered() {
    async fn check(method: &str, path: &str, expected: u16) {
        let request = Request::builder().method(method).uri(path).body(Bytes::from(review(&json!({}), &["good:1"])));
        let response = service(&[]).0.handle(request.unwrap()).await;
        assert_eq!(response.status(), expected, "{method} {path}");
    }
    check("POST", "/mutate", 200).await;
    check("POST", "/mutate?timeout=10s", 200).await;
    check("POST", "/mutate/pod-fail?timeout=10s", 200).await;
    check("POST", "/mutated", 404).await;
    check("POST", "/", 404).await;
    check("GET", "/mutate", 405).await;
}

/// Counts, and knows nothing.
#[derive(Default)]
struct Counting(AtomicUsize);

impl Ask for Counting {
    fn ask(&self, _: Question) -> BoxFuture<'_, Result<Answered, String>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        async { Err("nobody knows".to_owned()) }.boxed()
    }
}

#[tokio::test]
async fn a_known_image_is_answered_without_asking_anybody() {
    let asked = Arc::new(Counting::default());
    let index = Index::fixed(snapshot(&[json!({}), named("untagged")]));
    let webhook = Webhook::new(index, Arc::clone(&asked) as Arc<dyn Ask>, DEADLINE, Metrics::new());
    for round in 0..10_000 {
        let own = format!("ghcr.io/org/app:1.{}.{}", round % 7, round % 11);
        let (status, body) = post_to(webhook.clone(), "/mutate", review(&Value::Null, &[&own, "nginx:1"])).await;
        assert!(status == 200 && body.contains("\"allowed\":true"), "{body}");
    }
    assert_eq!(asked.0.load(Ordering::SeqCst), 0);
    post_to(webhook, "/mutate", review(&Value::Null, &["untagged:1"])).await;
    assert_eq!(asked.0.load(Ordering::SeqCst), 1, "the count counts");
}

#[tokio::test]
async fn a_panic_before_the_review_is_read_is_an_internal_error() {
    assert!(after_panic(Entry::default(), b"{", &snapshot(&[])).is_none());
    let response = Failure::Internal.response();
    assert_eq!(response.status(), 500);
    let text: Box<dyn Any + Send> = Box::new("text".to_owned());
    assert_eq!(message_of(text.as_ref()), "text");
}
