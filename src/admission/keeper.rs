//! Keeps the webhook configuration as it should be, while this process leads.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::{MutatingWebhook, MutatingWebhookConfiguration};
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use serde_json::json;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::index::Index;
use crate::telemetry::Metrics;

use super::configuration::{self, Options, SUFFIX};

/// Owner of the fields in `managedFields`.
const FIELD_MANAGER: &str = "kimup-webhook";
/// How often the configuration is looked at when nothing is known to have changed.
const PERIOD: Duration = Duration::from_secs(10);
/// After a write that failed: another replica or the API server had a reason that passes.
const RETRY: Duration = Duration::from_secs(2);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// Where the `caBundle` comes from.
#[derive(Clone, Debug)]
pub enum CaBundle {
    /// kimup's own CA, as PEM. Nothing is written while it is empty.
    Ours(watch::Receiver<Vec<u8>>),
    /// Whatever stands there is kept: somebody else (cert-manager's injector) writes it.
    Keep,
}

/// Why the configuration could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum KeepError {
    /// The API server refuses.
    #[error("MutatingWebhookConfiguration {name}: {source}")]
    Api {
        /// Name of the configuration.
        name: String,
        /// What it says.
        source: Box<kube::Error>,
    },
    /// It does not answer.
    #[error("MutatingWebhookConfiguration {name}: no answer within {} s", CALL_TIMEOUT.as_secs())]
    Timeout {
        /// Name of the configuration.
        name: String,
    },
}

/// Keeps the configuration until `shutdown`. Writes only while `leader` holds and after `index` is ready, and only what
/// differs. Needs `get`, `create` and `patch` on the configuration by its name.
pub async fn keep(
    client: kube::Client,
    options: Options,
    index: Arc<Index>,
    mut leader: watch::Receiver<bool>,
    mut ca_bundle: CaBundle,
    metrics: Metrics,
    shutdown: CancellationToken,
) {
    let mut ready = index.ready();
    let mut annotated = index.annotated();
    let keeper = Keeper {
        api: Api::all(client),
        options,
        metrics,
    };
    let keeping = async {
        loop {
            // An error means that the sender is gone, which happens only when the process ends.
            if ready.wait_for(|ready| *ready).await.is_err()
                || leader.wait_for(|leads| *leads).await.is_err()
            {
                return;
            }
            let names = Arc::clone(&annotated.borrow_and_update());
            let ours = ca_bundle.current();
            let wait = match keeper.repair(&names, ours.as_deref()).await {
                Ok(()) => PERIOD,
                Err(error) => {
                    tracing::warn!(%error, "cannot keep the webhook configuration, trying again");
                    RETRY
                }
            };
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                Ok(()) = annotated.changed() => {}
                Ok(()) = leader.changed() => {}
                () = ca_bundle.changed() => {}
            }
        }
    };
    shutdown.run_until_cancelled(keeping).await;
}

/// Deletes the configuration `name`; that it is gone already is fine. For `--webhook-url`, at exit.
pub async fn delete(client: kube::Client, name: &str) -> Result<(), KeepError> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client);
    match call(name, api.delete(name, &DeleteParams::default())).await {
        Err(error) if error.code() != Some(404) => Err(error),
        _ => Ok(()),
    }
}

impl KeepError {
    fn code(&self) -> Option<u16> {
        match self {
            Self::Api { source, .. } => match source.as_ref() {
                kube::Error::Api(status) => Some(status.code),
                _ => None,
            },
            Self::Timeout { .. } => None,
        }
    }
}

impl CaBundle {
    /// The PEM bundle to write; none to keep what is there.
    fn current(&mut self) -> Option<Vec<u8>> {
        match self {
            Self::Ours(receiver) => Some(receiver.borrow_and_update().clone()),
            Self::Keep => None,
        }
    }

    async fn changed(&mut self) {
        if let Self::Ours(receiver) = self
            && receiver.changed().await.is_ok()
        {
            return;
        }
        std::future::pending::<()>().await;
    }
}

async fn call<T>(
    name: &str,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, KeepError> {
    let name = name.to_owned();
    match tokio::time::timeout(CALL_TIMEOUT, call).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(source)) => Err(KeepError::Api {
            name,
            source: Box::new(source),
        }),
        Err(_) => Err(KeepError::Timeout { name }),
    }
}

struct Keeper {
    api: Api<MutatingWebhookConfiguration>,
    options: Options,
    metrics: Metrics,
}

impl Keeper {
    async fn repair(&self, annotated: &[String], ours: Option<&[u8]>) -> Result<(), KeepError> {
        if ours.is_some_and(<[u8]>::is_empty) {
            return Ok(());
        }
        let name = &self.options.name;
        let live = call(name, self.api.get_opt(name)).await?;
        let mut wanted = wanted(&self.options, annotated, ours, live.as_ref());
        if live.as_ref().is_some_and(|live| is_kept(&wanted, live)) {
            return Ok(());
        }
        // What was read may be old by now: then the API server says so, and it is read again.
        wanted.metadata.resource_version = live
            .as_ref()
            .and_then(|live| live.metadata.resource_version.clone());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let applying = call(name, self.api.patch(name, &params, &Patch::Apply(&wanted))).await;
        let applied = match (applying, live) {
            // What others own does not go together with ours, such as a `service` beside our `url`.
            (Err(error), Some(live)) if error.code() == Some(422) => live,
            (applying, _) => {
                let applied = applying?;
                self.wrote("wrote the webhook configuration");
                applied
            }
        };
        if is_kept(&wanted, &applied) {
            return Ok(());
        }
        self.overwrite(&wanted, &applied).await
    }

    fn wrote(&self, what: &str) {
        self.metrics
            .kubernetes_write("MutatingWebhookConfiguration");
        tracing::info!(name = self.options.name, "{what}");
    }

    /// Server-side apply leaves what others added inside our entries, such as a condition that narrows them. The whole
    /// list replaces it; entries that are not kimup's stay.
    async fn overwrite(
        &self,
        wanted: &MutatingWebhookConfiguration,
        live: &MutatingWebhookConfiguration,
    ) -> Result<(), KeepError> {
        let foreign = entries(live).filter(|entry| !entry.name.ends_with(SUFFIX));
        let webhooks: Vec<&MutatingWebhook> = entries(wanted).chain(foreign).collect();
        let patch = json!({
            "metadata": {"resourceVersion": live.metadata.resource_version},
            "webhooks": webhooks,
        });
        let params = PatchParams {
            field_manager: Some(FIELD_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let name = &self.options.name;
        call(name, self.api.patch(name, &params, &Patch::Merge(&patch))).await?;
        self.wrote(
            "wrote the webhook configuration over what somebody else had added to its entries",
        );
        Ok(())
    }
}

/// The configuration as it should be. Without a bundle of ours each entry keeps the live one's; a new entry takes that
/// of any other.
fn wanted(
    options: &Options,
    annotated: &[String],
    ours: Option<&[u8]>,
    live: Option<&MutatingWebhookConfiguration>,
) -> MutatingWebhookConfiguration {
    let live_bundle = |name: &str| {
        let bundles = || {
            live.into_iter()
                .flat_map(entries)
                .filter(|entry| entry.name.ends_with(SUFFIX))
                .filter_map(|entry| Some((&entry.name, &entry.client_config.ca_bundle.as_ref()?.0)))
        };
        let own = bundles().find(|(known, _)| *known == name);
        own.or_else(|| bundles().next()).map(|(_, pem)| pem.clone())
    };
    configuration::build(options, annotated, |name| {
        ours.map_or_else(|| live_bundle(name), |pem| Some(pem.to_vec()))
    })
}

/// Whether `live` says what `wanted` says in everything that is kimup's.
fn is_kept(wanted: &MutatingWebhookConfiguration, live: &MutatingWebhookConfiguration) -> bool {
    let labels = |object: &MutatingWebhookConfiguration| object.metadata.labels.clone();
    let live_labels = labels(live).unwrap_or_default();
    let labelled = labels(wanted)
        .into_iter()
        .flatten()
        .all(|(key, value)| live_labels.get(&key) == Some(&value));
    let owners = |object: &MutatingWebhookConfiguration| object.metadata.owner_references.clone();
    let live_owners = owners(live).unwrap_or_default();
    let owned = owners(wanted)
        .into_iter()
        .flatten()
        .all(|owner| live_owners.contains(&owner));
    let ours = |object| -> Vec<MutatingWebhook> {
        let mut ours: Vec<_> = entries(object)
            .filter(|entry| entry.name.ends_with(SUFFIX))
            .cloned()
            .collect();
        ours.sort_by(|a, b| a.name.cmp(&b.name));
        ours
    };
    labelled && owned && ours(wanted) == ours(live)
}

fn entries(object: &MutatingWebhookConfiguration) -> impl Iterator<Item = &MutatingWebhook> {
    object.webhooks.iter().flatten()
}

#[cfg(test)]
mod tests;
