//! The Secret that holds the CA: read, created, replaced at the version that was read. Nobody overwrites anybody.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, ObjectMeta, PostParams};
use secrecy::{ExposeSecret, SecretString};

use super::ca::{CaError, CertificateAuthority};
use super::ca_bundle::Bundle;
use super::ca_rotation::CaState;

/// One call to the API server; kube itself would wait without end.
const CALL_DEADLINE: Duration = Duration::from_secs(10);
/// Rounds of read and create. More than one is needed only when replicas start at once or a human deletes the Secret meanwhile.
const ROUNDS: usize = 3;

/// Asks for a rotation with the value [`ROTATE`]; removed when it has begun.
const ACTION: &str = "kimup.cloudavenue.io/action";
const ROTATE: &str = "rotate";
/// Since when the CA in `tls.crt` signs, RFC 3339.
const SIGNING_SINCE: &str = "kimup.cloudavenue.io/ca-signing-since";
/// Since when the webhook configuration has carried the CA that does not sign yet, RFC 3339.
const PUBLISHED_SINCE: &str = "kimup.cloudavenue.io/ca-published-since";

const CERTIFICATE: &str = "tls.crt";
const KEY: &str = "tls.key";
const NEXT_CERTIFICATE: &str = "next.crt";
const NEXT_KEY: &str = "next.key";
const BUNDLE: &str = "ca.crt";

/// The Secret with the CA of this installation, of type `kubernetes.io/tls`.
///
/// RBAC: `get` and `update` on its name, `create` on secrets in its namespace. Each call takes at most 10 seconds.
#[derive(Clone)]
pub struct CaStore {
    api: Api<Secret>,
    name: String,
    origin: String,
}

/// The Secret as it was read.
pub(super) struct Stored {
    object: Secret,
    /// What it says; an error if that cannot be used.
    pub state: Result<CaState, CaError>,
    /// An `action` that means nothing here.
    pub unknown_action: Option<String>,
}

impl CaStore {
    /// The Secret `namespace`/`name`.
    pub fn new(client: &kube::Client, namespace: &str, name: &str) -> Self {
        let origin = format!("Secret {namespace}/{name}");
        Self { api: Api::namespaced(client.clone(), namespace), name: name.to_owned(), origin }
    }

    /// What the Secret is called in messages: `Secret kimup-system/kimup-ca`.
    pub fn origin(&self) -> &str {
        &self.origin
    }

    /// The CA as stored; none if there is no Secret. One that exists and is no usable CA is an error.
    pub async fn load(&self) -> Result<Option<CaState>, CaError> {
        self.read().await?.map(|stored| stored.state).transpose()
    }

    /// The CA as stored, which is made if there is none. Replicas that start at once agree: the Secret is only ever created, and
    /// whoever loses that race reads the winner's.
    pub async fn load_or_create(&self) -> Result<CaState, CaError> {
        for _ in 0..ROUNDS {
            if let Some(found) = self.load().await? {
                return Ok(found);
            }
            let made = CaState::fresh(Bundle::default(), Timestamp::now())?;
            if self.create(&made).await? {
                return Ok(made);
            }
        }
        Err(CaError::Api {
            what: format!("cannot create {}", self.origin),
            reason: "it appears and disappears; something deletes it".to_owned(),
        })
    }

    pub(super) async fn read(&self) -> Result<Option<Stored>, CaError> {
        let found = timed(self.api.get_opt(&self.name)).await.map_err(|error| self.error("read", &error))?;
        Ok(found.map(|object| Stored {
            state: from_secret(&self.origin, &object, Timestamp::now()),
            unknown_action: annotation(&object, ACTION).filter(|action| *action != ROTATE).map(str::to_owned),
            object,
        }))
    }

    /// Whether the Secret is now this; false if there is one already.
    pub(super) async fn create(&self, state: &CaState) -> Result<bool, CaError> {
        let mut secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(BTreeMap::from(
                    [("app.kubernetes.io/name", "kimup"), ("app.kubernetes.io/managed-by", "kimup")]
                        .map(|(key, value)| (key.to_owned(), value.to_owned())),
                )),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            ..Secret::default()
        };
        write(&mut secret, state);
        match timed(self.api.create(&PostParams::default(), &secret)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
            Err(error) => Err(self.error("create", &error)),
        }
    }

    /// Whether the Secret that was read is now this; false if it has changed since, or is gone.
    pub(super) async fn replace(&self, stored: &Stored, state: &CaState) -> Result<bool, CaError> {
        let mut secret = stored.object.clone();
        write(&mut secret, state);
        match timed(self.api.replace(&self.name, &PostParams::default(), &secret)).await {
            Ok(_) => Ok(true),
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(false),
            Err(error) => Err(self.error("update", &error)),
        }
    }

    fn error(&self, verb: &str, error: &kube::Error) -> CaError {
        // serde's messages may quote the value they stumbled over, and this object is a Secret.
        let reason = match error {
            kube::Error::SerdeError(_) => "the answer does not parse as a Secret".to_owned(),
            other => other.to_string(),
        };
        CaError::Api { what: format!("cannot {verb} {}", self.origin), reason }
    }
}

/// The work's own result, or a deadline that looks like a failed connection.
async fn timed<T>(work: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
    match tokio::time::timeout(CALL_DEADLINE, work).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}

fn annotation<'a>(secret: &'a Secret, key: &str) -> Option<&'a str> {
    secret.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Writes what belongs to the state; everything else of the Secret is another's.
fn write(secret: &mut Secret, state: &CaState) {
    let pair = |ca: &CertificateAuthority| {
        let key = ca.key_pem().expose_secret().as_bytes().to_vec();
        [ca.certificate_pem().as_bytes().to_vec(), key]
    };
    let data = secret.data.get_or_insert_default();
    let mut put = |key: &str, value: Vec<u8>| drop(data.insert(key.to_owned(), ByteString(value)));
    let [certificate, key] = pair(&state.signing);
    put(CERTIFICATE, certificate);
    put(KEY, key);
    put(BUNDLE, state.bundle.to_pem());
    if let Some(next) = &state.next {
        let [certificate, key] = pair(next);
        put(NEXT_CERTIFICATE, certificate);
        put(NEXT_KEY, key);
    } else {
        data.remove(NEXT_CERTIFICATE);
        data.remove(NEXT_KEY);
    }
    let annotations = secret.metadata.annotations.get_or_insert_default();
    for (key, since) in [(SIGNING_SINCE, state.signing_since), (PUBLISHED_SINCE, state.published_since)] {
        match since {
            Some(since) => drop(annotations.insert(key.to_owned(), since.to_string())),
            None => drop(annotations.remove(key)),
        }
    }
    if !state.requested && annotations.get(ACTION).is_some_and(|action| action == ROTATE) {
        annotations.remove(ACTION);
    }
}

fn from_secret(origin: &str, secret: &Secret, now: Timestamp) -> Result<CaState, CaError> {
    let pair = |certificate: &str, key: &str| {
        let (certificate, key) = (text(origin, secret, certificate)?, text(origin, secret, key)?);
        CertificateAuthority::from_pem(origin, certificate, &SecretString::from(key), now).map(Arc::new)
    };
    let signing = pair(CERTIFICATE, KEY)?;
    let data = secret.data.as_ref();
    let next = data.filter(|data| data.contains_key(NEXT_CERTIFICATE)).map(|_| pair(NEXT_CERTIFICATE, NEXT_KEY));
    // Another is made when it is due; what signs now is not its fault.
    let next = next.and_then(|next| next.inspect_err(|error| tracing::debug!(%error, "the next CA is left out")).ok());
    let written = data.and_then(|data| data.get(BUNDLE)).map_or_else(Bundle::default, |pem| Bundle::from_pem(&pem.0));
    let since = |key: &str| annotation(secret, key).and_then(|text| text.parse::<Timestamp>().ok());
    let times = [since(SIGNING_SINCE), since(PUBLISHED_SINCE)];
    Ok(CaState::read(signing, next, written, times, annotation(secret, ACTION) == Some(ROTATE)))
}

fn text<'a>(origin: &str, secret: &'a Secret, key: &str) -> Result<&'a str, CaError> {
    let unusable = |reason: String| CaError::Unusable { origin: origin.to_owned(), reason };
    let value = secret.data.as_ref().and_then(|data| data.get(key));
    let value = value.ok_or_else(|| unusable(format!("it has no `{key}`")))?;
    std::str::from_utf8(&value.0).map_err(|_| unusable(format!("its `{key}` is no text")))
}

#[cfg(test)]
mod tests;
