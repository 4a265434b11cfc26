//! The Secret that holds the CA: read, or created once. Nobody overwrites anybody.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use secrecy::{ExposeSecret, SecretString};

use super::ca::{CaError, CertificateAuthority};

/// One call to the API server; kube itself would wait without end.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Rounds of read and create. More than one is needed only when replicas start at once or a human deletes the Secret meanwhile.
const ROUNDS: usize = 3;

/// The CA of this installation: the one in the Secret `namespace`/`secret`, which is made if it does not exist.
///
/// Replicas that start at once agree: the Secret is only ever created, and whoever loses that race reads the winner's.
/// The Secret has type `kubernetes.io/tls` with `tls.crt`, `tls.key` and `ca.crt`. One that exists and is no usable CA is
/// an error and is left alone. RBAC: `get` and `create` on secrets in `namespace`. At most 60 seconds.
pub async fn load_or_create_ca(
    client: &kube::Client,
    namespace: &str,
    secret: &str,
) -> Result<CertificateAuthority, CaError> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let origin = format!("Secret {namespace}/{secret}");
    for _ in 0..ROUNDS {
        if let Some(found) = call("read", &origin, api.get_opt(secret)).await? {
            return from_secret(&origin, found);
        }
        let ca = CertificateAuthority::generate("kimup-ca", Timestamp::now())?;
        let made = to_secret(secret, &ca);
        match timed(api.create(&PostParams::default(), &made)).await {
            Ok(_) => {
                tracing::info!(secret = %origin, not_after = %ca.not_after(), "certificate authority created");
                return Ok(ca);
            }
            Err(kube::Error::Api(status)) if status.code == 409 => {
                tracing::debug!(secret = %origin, "another replica created the certificate authority first");
            }
            Err(error) => return Err(api_error("create", &origin, &error)),
        }
    }
    Err(CaError::Api {
        what: format!("cannot create {origin}"),
        reason: "it appears and disappears; something deletes it".to_owned(),
    })
}

async fn call<T>(verb: &str, origin: &str, work: impl Future<Output = kube::Result<T>>) -> Result<T, CaError> {
    timed(work).await.map_err(|error| api_error(verb, origin, &error))
}

/// The work's own result, or a deadline that looks like a failed connection.
async fn timed<T>(work: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(CALL_DEADLINE, work).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}

fn api_error(verb: &str, origin: &str, error: &kube::Error) -> CaError {
    // serde's messages may quote the value they stumbled over, and this object is a Secret.
    let reason = match error {
        kube::Error::SerdeError(_) => "the answer does not parse as a Secret".to_owned(),
        other => other.to_string(),
    };
    CaError::Api { what: format!("cannot {verb} {origin}"), reason }
}

fn to_secret(name: &str, ca: &CertificateAuthority) -> Secret {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(BTreeMap::from([
                ("app.kubernetes.io/name".to_owned(), "kimup".to_owned()),
                ("app.kubernetes.io/managed-by".to_owned(), "kimup".to_owned()),
            ])),
            ..ObjectMeta::default()
        },
        type_: Some("kubernetes.io/tls".to_owned()),
        data: Some(BTreeMap::from([
            ("tls.crt".to_owned(), bytes(ca.certificate_pem())),
            ("ca.crt".to_owned(), bytes(ca.certificate_pem())),
            ("tls.key".to_owned(), bytes(ca.key_pem().expose_secret())),
        ])),
        ..Secret::default()
    }
}

fn from_secret(origin: &str, secret: Secret) -> Result<CertificateAuthority, CaError> {
    let unusable = |reason: String| CaError::Unusable { origin: origin.to_owned(), reason };
    let mut data = secret.data.unwrap_or_default();
    let mut take = |key: &str| {
        let value = data.remove(key).ok_or_else(|| unusable(format!("it has no `{key}`")))?;
        String::from_utf8(value.0).map_err(|_| unusable(format!("its `{key}` is no text")))
    };
    let certificate = take("tls.crt")?;
    let key = SecretString::from(take("tls.key")?);
    CertificateAuthority::from_pem(origin, &certificate, &key, Timestamp::now())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use http::{Method, Request, Response, StatusCode};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use serde_json::json;

    use super::*;

    /// The Secret as the API server has it, and what happens before the next create.
    #[derive(Default)]
    struct Store {
        secret: Option<Vec<u8>>,
        /// Another replica's Secret, created between our read and our create.
        rival: Option<Vec<u8>>,
        writes: usize,
    }

    fn client(store: &Arc<Mutex<Store>>) -> kube::Client {
        let store = Arc::clone(store);
        let service = tower::service_fn(move |request: Request<Body>| {
            let store = Arc::clone(&store);
            async move {
                let (parts, body) = request.into_parts();
                let body = body.collect().await?.to_bytes().to_vec();
                let mut store = store.lock().unwrap();
                let (code, body) = if parts.method == Method::GET {
                    match &store.secret {
                        Some(secret) => (StatusCode::OK, secret.clone()),
                        None => (StatusCode::NOT_FOUND, status(404, "NotFound")),
                    }
                } else {
                    assert_eq!(parts.method, Method::POST, "only ever created");
                    if let Some(rival) = store.rival.take() {
                        store.secret = Some(rival);
                        (StatusCode::CONFLICT, status(409, "AlreadyExists"))
                    } else {
                        store.writes += 1;
                        store.secret = Some(body.clone());
                        (StatusCode::CREATED, body)
                    }
                };
                let response = Response::builder().status(code).body(Body::from(body)).unwrap();
                Ok::<_, tower::BoxError>(response)
            }
        });
        kube::Client::new(service, "default")
    }

    fn status(code: u16, reason: &str) -> Vec<u8> {
        let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": reason, "reason": reason, "code": code});
        serde_json::to_vec(&status).unwrap()
    }

    async fn load(store: &Arc<Mutex<Store>>) -> Result<CertificateAuthority, CaError> {
        load_or_create_ca(&client(store), "kimup-system", "kimup-ca").await
    }

    #[tokio::test]
    async fn created_once_then_read() {
        let store = Arc::new(Mutex::new(Store::default()));
        let first = load(&store).await.unwrap();
        let second = load(&store).await.unwrap();
        assert_eq!(first.certificate_pem(), second.certificate_pem());
        let store = store.lock().unwrap();
        assert_eq!(store.writes, 1);
        let stored: Secret = serde_json::from_slice(store.secret.as_ref().unwrap()).unwrap();
        assert_eq!(stored.type_.as_deref(), Some("kubernetes.io/tls"));
        let keys: Vec<String> = stored.data.unwrap().into_keys().collect();
        assert_eq!(keys, ["ca.crt", "tls.crt", "tls.key"]);
    }

    #[tokio::test]
    async fn the_loser_of_a_race_takes_the_winners() {
        let winner = CertificateAuthority::generate("kimup-ca", Timestamp::now()).unwrap();
        let rival = serde_json::to_vec(&to_secret("kimup-ca", &winner)).unwrap();
        let store = Arc::new(Mutex::new(Store { rival: Some(rival), ..Store::default() }));
        let loaded = load(&store).await.unwrap();
        assert_eq!(loaded.certificate_pem(), winner.certificate_pem());
        assert_eq!(store.lock().unwrap().writes, 0);
    }

    #[tokio::test]
    async fn an_unusable_secret_is_named_and_left_alone() {
        async fn check(secret: serde_json::Value, reason: &str) {
            let body = serde_json::to_vec(&secret).unwrap();
            let store = Arc::new(Mutex::new(Store { secret: Some(body.clone()), ..Store::default() }));
            let error = load(&store).await.unwrap_err().to_string();
            assert!(error.contains("Secret kimup-system/kimup-ca"), "{error}");
            assert!(error.contains(reason), "{error}");
            assert!(!error.contains("c2VjcmV0"), "{error}");
            assert_eq!(store.lock().unwrap().secret.as_ref(), Some(&body));
        }
        let base = json!({"metadata": {"name": "kimup-ca"}});
        check(base, "no `tls.crt`").await;
        check(json!({"data": {"tls.crt": "c2VjcmV0", "tls.key": "c2VjcmV0"}}), "no PEM").await;
        check(json!({"data": {"tls.crt": "/w==", "tls.key": "c2VjcmV0"}}), "no text").await;
        check(json!({"data": {"tls.crt": 7, "x": "c2VjcmV0"}}), "does not parse").await;
    }
}
