//! An API server with one Secret, for tests.

use std::sync::{Arc, Mutex, MutexGuard};

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use k8s_openapi::api::core::v1::Secret;
use kube::client::Body;
use serde_json::{Value, json};

use super::ca_rotation::CaState;
use super::ca_secret::CaStore;

/// The Secret `kimup-system/kimup-ca`, versioned as by an API server.
#[derive(Clone, Default)]
pub(super) struct FakeApi(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    secret: Option<Value>,
    version: u64,
    /// Written by another right before the next write.
    rival: Option<Value>,
    /// Verbs of the writes that were done.
    writes: Vec<&'static str>,
    reads: usize,
    down: bool,
}

impl FakeApi {
    pub fn store(&self) -> CaStore {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let (code, answer) = api.inner().answer(&parts.method, &body);
                let body = Body::from(serde_json::to_vec(&answer).unwrap());
                Ok::<_, tower::BoxError>(Response::builder().status(code).body(body).unwrap())
            }
        });
        CaStore::new(&kube::Client::new(service, "default"), "kimup-system", "kimup-ca")
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// The Secret as it stands.
    pub fn secret(&self) -> Option<Secret> {
        self.inner().secret.clone().map(|secret| serde_json::from_value(secret).unwrap())
    }

    /// What another writes.
    pub fn put(&self, secret: Option<Value>) {
        self.inner().put(secret);
    }

    /// What another changes.
    pub fn merge(&self, patch: &Value) {
        let mut inner = self.inner();
        let mut secret = inner.secret.clone().unwrap();
        json_patch::merge(&mut secret, patch);
        inner.put(Some(secret));
    }

    /// What another writes right before the next write.
    pub fn rival(&self, secret: Value) {
        self.inner().rival = Some(secret);
    }

    pub fn set_down(&self, down: bool) {
        self.inner().down = down;
    }

    pub fn writes(&self) -> Vec<&'static str> {
        self.inner().writes.clone()
    }

    pub fn reads(&self) -> usize {
        self.inner().reads
    }

    /// The state that the Secret holds.
    pub async fn state(&self) -> CaState {
        self.store().load().await.unwrap().unwrap()
    }
}

impl Inner {
    fn put(&mut self, secret: Option<Value>) {
        self.version += 1;
        let version = self.version.to_string();
        self.secret = secret.map(|mut secret| {
            secret["metadata"]["resourceVersion"] = json!(version);
            secret
        });
    }

    fn answer(&mut self, method: &Method, body: &[u8]) -> (StatusCode, Value) {
        if self.down {
            return refuse(503, "ServiceUnavailable");
        }
        if *method == Method::GET {
            self.reads += 1;
            return self.secret.clone().map_or_else(|| refuse(404, "NotFound"), |secret| (StatusCode::OK, secret));
        }
        if let Some(rival) = self.rival.take() {
            self.put(Some(rival));
        }
        let given: Value = serde_json::from_slice(body).unwrap();
        match (method.as_str(), &self.secret) {
            ("POST", None) => self.writes.push("create"),
            ("POST", Some(_)) => return refuse(409, "AlreadyExists"),
            ("PUT", None) => return refuse(404, "NotFound"),
            ("PUT", Some(stored)) => {
                let version = &given["metadata"]["resourceVersion"];
                assert!(version.is_string(), "replaced whatever is there");
                if stored["metadata"]["resourceVersion"] != *version {
                    return refuse(409, "Conflict");
                }
                self.writes.push("update");
            }
            (other, _) => panic!("{other}"),
        }
        self.put(Some(given));
        (StatusCode::OK, self.secret.clone().unwrap())
    }
}

fn refuse(code: u16, reason: &str) -> (StatusCode, Value) {
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code});
    (StatusCode::from_u16(code).unwrap(), status)
}
