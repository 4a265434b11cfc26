//! When each watch showed its last sign of life. A watch that is lost looks like a quiet cluster from above: nothing
//! comes. Below, the API server sends a bookmark about once a minute, so the bytes are watched, not the events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use hyper::body::Body as HttpBody;
use jiff::Timestamp;
use kube::client::Body;
use tokio::time::Instant;

use crate::telemetry::LastSeen;

/// The last sign of life of one watch. Clones are the same.
#[derive(Clone, Debug)]
pub(super) struct Pulse {
    began: Instant,
    /// Milliseconds since then.
    last: Arc<AtomicU64>,
    metric: LastSeen,
}

impl Pulse {
    pub fn new(metric: LastSeen) -> Self {
        Self { began: Instant::now(), last: Arc::default(), metric }
    }

    /// Now.
    pub fn beat(&self) {
        let passed = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(passed, Ordering::Relaxed);
        self.metric.set(Timestamp::now().as_second());
    }

    /// Time since the last one, or since the start.
    pub fn age(&self) -> Duration {
        self.began.elapsed().saturating_sub(Duration::from_millis(self.last.load(Ordering::Relaxed)))
    }

    /// A client like this one, for one watch: each part of a good answer is a sign of life.
    pub fn client(&self, client: &kube::Client) -> kube::Client {
        let (inner, pulse) = (client.clone(), self.clone());
        let service = tower::service_fn(move |request: Request<Body>| {
            let (inner, pulse) = (inner.clone(), pulse.clone());
            async move { inner.send(request).await.map(|response| pulse.watch(response)) }
        });
        kube::Client::new(service, client.default_namespace())
    }

    fn watch(self, response: Response<Body>) -> Response<impl HttpBody<Data = Bytes, Error = kube::Error> + Send> {
        let pulse = Some(self).filter(|_| response.status().is_success());
        pulse.iter().for_each(Self::beat);
        response.map(|body| {
            body.map_frame(move |frame| {
                pulse.iter().for_each(Self::beat);
                frame
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use futures::StreamExt;
    use futures::channel::mpsc;
    use http_body_util::{Either, Empty, StreamBody};
    use hyper::body::Frame;
    use kube::api::{Api, WatchParams};

    use super::*;
    use crate::telemetry::Metrics;

    #[tokio::test(start_paused = true)]
    async fn every_line_of_a_good_answer_is_a_sign_of_life() {
        let (lines, watched) = mpsc::unbounded::<Result<Frame<Bytes>, std::io::Error>>();
        let mut watched = Some(watched);
        let inner = tower::service_fn(move |_: Request<Body>| {
            let answer = match watched.take() {
                Some(lines) => Response::new(Either::Left(StreamBody::new(lines))),
                None => Response::builder().status(500).body(Either::Right(Empty::new())).unwrap(),
            };
            async move { Ok::<_, tower::BoxError>(answer) }
        });
        let pulse = Pulse::new(Metrics::new().last_seen("images", ""));
        let later = async || tokio::time::advance(Duration::from_secs(60)).await;
        later().await;
        assert_eq!(pulse.age(), Duration::from_secs(60));
        let client = pulse.client(&kube::Client::new(inner, "default"));
        let api: Api<crate::api::Image> = Api::all(client);
        let mut events = std::pin::pin!(api.watch(&WatchParams::default(), "0").await.unwrap());
        assert_eq!(pulse.age(), Duration::ZERO);
        later().await;
        assert_eq!(pulse.age(), Duration::from_secs(60));
        let bookmark = r#"{"type":"BOOKMARK","object":{"kind":"Image","apiVersion":"kimup.cloudavenue.io/v1alpha1","metadata":{"resourceVersion":"2"}}}"#;
        lines.unbounded_send(Ok(Frame::data(Bytes::from(format!("{bookmark}\n"))))).unwrap();
        assert!(events.next().await.unwrap().is_ok());
        assert_eq!(pulse.age(), Duration::ZERO);
        later().await;
        assert!(api.watch(&WatchParams::default(), "0").await.is_err() || pulse.age() > Duration::ZERO);
        assert_eq!(pulse.age(), Duration::from_secs(60), "an error is no sign of life");
    }
}
