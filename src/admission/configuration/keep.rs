//! The shell: reads the live configuration, writes it when it differs, deletes it.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{Api, DeleteParams, Patch, PatchParams};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::api::annotations::ENABLED;
use crate::net::ca::{Bundle, Carried};

use super::{CaBundle, ConfigurationError, ENTRY_SUFFIX, MAX_ANNOTATED, Options, build};

/// Field manager of the configuration.
pub const FIELD_MANAGER: &str = "kimup-webhook";
const CALL_DEADLINE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(250);

/// Whom the configuration is to trust over time, and whom it is seen to trust.
#[derive(Debug)]
pub struct Trust {
    /// What to write; none: nothing is written, only read. Without a channel it is as the options say.
    trusted: Option<watch::Receiver<Option<Bundle>>>,
    carried: watch::Sender<Option<Carried>>,
}

impl Trust {
    /// The CA bundle of the options, always.
    pub fn fixed() -> Self {
        Self { trusted: None, carried: watch::channel(None).0 }
    }

    /// The bundle that `trusted` has. The receiver has what the live configuration trusts, read at most 5 seconds ago; none
    /// while that is not known or another leads.
    pub fn following(trusted: watch::Receiver<Option<Bundle>>) -> (Self, watch::Receiver<Option<Carried>>) {
        let (carried, seen) = watch::channel(None);
        (Self { trusted: Some(trusted), carried }, seen)
    }

    /// The bundle of the moment; none if it is not known yet.
    fn bundle(&mut self, options: &Options) -> Option<CaBundle> {
        match &mut self.trusted {
            Some(trusted) => trusted.borrow_and_update().as_ref().map(|bundle| CaBundle::Own(bundle.to_pem())),
            None => Some(options.ca_bundle.clone()),
        }
    }

    async fn changed(&mut self) {
        match &mut self.trusted {
            Some(trusted) => changed(trusted).await,
            None => std::future::pending().await,
        }
    }

    fn set(&self, carried: Option<Carried>) {
        self.carried.send_if_modified(|before| {
            let another = *before != carried;
            *before = carried;
            another
        });
    }
}

/// Gives each entry without a CA bundle the one of the live entry of that name, else of any live entry.
pub(super) fn adopt_bundles(wanted: &mut MutatingWebhookConfiguration, live: &MutatingWebhookConfiguration) {
    let live = live.webhooks.as_deref().unwrap_or_default();
    let any = live.iter().find_map(|e| e.client_config.ca_bundle.clone());
    for entry in wanted.webhooks.iter_mut().flatten() {
        let same = live.iter().find(|e| e.name == entry.name);
        let kept = same.and_then(|e| e.client_config.ca_bundle.clone());
        let bundle = &mut entry.client_config.ca_bundle;
        *bundle = bundle.take().or(kept).or_else(|| any.clone());
    }
}

/// Whom our entries trust; those that others added to the object are theirs.
pub(super) fn carried(live: &MutatingWebhookConfiguration) -> Carried {
    let ours = live.webhooks.iter().flatten().filter(|entry| entry.name.ends_with(ENTRY_SUFFIX));
    Carried::of(ours.map(|entry| entry.client_config.ca_bundle.as_ref().map_or(&[][..], |bundle| &bundle.0)))
}

/// Whether everything wanted stands in `live`; what others added does not count.
pub(super) fn says(live: &MutatingWebhookConfiguration, wanted: &MutatingWebhookConfiguration) -> bool {
    let labels = live.metadata.labels.as_ref();
    let mut wanted_labels = wanted.metadata.labels.iter().flatten();
    let owners = live.metadata.owner_references.as_deref().unwrap_or_default();
    let mut wanted_owners = wanted.metadata.owner_references.iter().flatten();
    let entries = live.webhooks.as_deref().unwrap_or_default();
    wanted_labels.all(|(key, value)| labels.and_then(|l| l.get(key)) == Some(value))
        && wanted_owners.all(|owner| owners.contains(owner))
        && wanted.webhooks.iter().flatten().all(|e| entries.contains(e))
}

/// Names of the live entries that are not wanted: our own of the past, or another's.
pub(super) fn surplus<'a>(
    live: &'a MutatingWebhookConfiguration,
    wanted: &MutatingWebhookConfiguration,
) -> Vec<&'a str> {
    let known = |name: &str| wanted.webhooks.iter().flatten().any(|e| e.name == name);
    let names = live.webhooks.iter().flatten().map(|e| e.name.as_str());
    names.filter(|name| !known(name)).collect()
}

/// Writes and repairs the configuration while `leads` is true: at once on every change, else every 5 seconds. No
/// write when nothing differs.
///
/// Ends only with `shutdown`, after a call in flight (at most 15 seconds), so that a [`delete`] that follows has the last
/// word. An error is logged and tried again after at most 5 seconds. `published` is true while the live object says
/// what is wanted, as far as this process knows; it is left alone while another leads. RBAC: `get`, `create` and `patch` on
/// the name, `get` on the owner's Namespace.
pub async fn keep(
    client: kube::Client,
    options: Options,
    trust: Trust,
    mut annotated: watch::Receiver<Arc<[String]>>,
    mut leads: watch::Receiver<bool>,
    published: watch::Sender<bool>,
    shutdown: CancellationToken,
) {
    let mut keeper =
        Keeper { api: Api::all(client.clone()), namespaces: Api::all(client), options, trust, written: None };
    let mut pause = FIRST_PAUSE;
    let mut complaint = None;
    while !shutdown.is_cancelled() {
        if !*leads.borrow_and_update() {
            keeper.trust.set(None);
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = changed(&mut leads) => {}
            }
            continue;
        }
        let names = annotated.borrow_and_update().clone();
        let wait = match keeper.reconcile(&names, &leads, &published).await {
            Ok(()) => {
                (pause, complaint) = (FIRST_PAUSE, None);
                POLL
            }
            Err(error) => {
                keeper.trust.set(None);
                published.send_if_modified(|said| std::mem::replace(said, false));
                let text = error.to_string();
                if complaint.as_ref() != Some(&text) {
                    tracing::warn!(error = %text, "webhook configuration not written");
                    complaint = Some(text);
                }
                let wait = pause;
                pause = (pause * 2).min(POLL);
                wait
            }
        };
        tokio::select! {
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(wait) => {}
            () = changed(&mut annotated) => {}
            () = changed(&mut leads) => {}
            () = keeper.trust.changed() => {}
        }
    }
}

/// Whether there is a configuration of this name.
pub async fn exists(client: &kube::Client, name: &str) -> Result<bool, ConfigurationError> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    match call("read", name, api.get_metadata_opt(name)).await {
        Ok(found) => Ok(found.is_some()),
        Err(failure) => Err(failure.into_error(name)),
    }
}

/// Deletes the configuration. One that is not there is fine.
pub async fn delete(client: &kube::Client, name: &str) -> Result<(), ConfigurationError> {
    let api: Api<MutatingWebhookConfiguration> = Api::all(client.clone());
    match call("delete", name, api.delete(name, &DeleteParams::default())).await {
        Ok(_) | Err(Failure::NotFound) => Ok(()),
        Err(Failure::Other(error)) => Err(error),
    }
}

/// Waits for a change; without end if there can be none any more.
async fn changed<T>(receiver: &mut watch::Receiver<T>) {
    if receiver.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

struct Keeper {
    api: Api<MutatingWebhookConfiguration>,
    namespaces: Api<Namespace>,
    options: Options,
    trust: Trust,
    /// The last write and the resource version it led to: what differs although it stands is not ours to change.
    written: Option<(MutatingWebhookConfiguration, Option<String>)>,
}

impl Keeper {
    async fn reconcile(
        &mut self,
        annotated: &[String],
        leads: &watch::Receiver<bool>,
        published: &watch::Sender<bool>,
    ) -> Result<(), ConfigurationError> {
        // Before the read: what is reported as seen then also answers it.
        let bundle = self.trust.bundle(&self.options);
        let name = &self.options.name;
        let live = match call("read", name, self.api.get_opt(name)).await {
            Ok(live) => live,
            Err(failure) => return Err(failure.into_error(name)),
        };
        self.trust.set(Some(live.as_ref().map(carried).unwrap_or_default()));
        let Some(bundle) = bundle else {
            return Ok(());
        };
        self.options.ca_bundle = bundle;
        let mut wanted = build(&self.options, annotated);
        let mut said = false;
        if let Some(live) = &live {
            adopt_bundles(&mut wanted, live);
            said = says(live, &wanted);
            let version = &live.metadata.resource_version;
            let ours = self.written.as_ref();
            let stands = ours.is_some_and(|(w, v)| *w == wanted && v == version);
            if said && (stands || surplus(live, &wanted).is_empty()) {
                published.send_if_modified(|before| !std::mem::replace(before, true));
                return Ok(());
            }
        }
        if !*leads.borrow() {
            return Ok(());
        }
        if !said {
            published.send_if_modified(|before| std::mem::replace(before, false));
        }
        if live.is_none() {
            self.owner_is_here().await?;
        }
        let result = self.write(&wanted, live.as_ref()).await?;
        self.trust.set(Some(carried(&result)));
        let extra = surplus(&result, &wanted);
        if !extra.is_empty() {
            tracing::warn!(name = %self.options.name, entries = ?extra, "the webhook configuration has entries of another field manager; they are left alone");
        }
        if annotated.len() > MAX_ANNOTATED {
            tracing::warn!(
                count = annotated.len(),
                limit = MAX_ANNOTATED,
                "too many namespaces are opted in by annotation and the last by name are left out; use the label {ENABLED}=true"
            );
        }
        let stands = says(&result, &wanted);
        published.send_if_modified(|before| std::mem::replace(before, stands) != stands);
        let version = result.metadata.resource_version;
        self.written = Some((wanted, version));
        Ok(())
    }

    /// A leader that outlives its Namespace for a moment must not write again what the garbage collector took.
    async fn owner_is_here(&self) -> Result<(), ConfigurationError> {
        let Some(owner) = &self.options.owner else {
            return Ok(());
        };
        let gone = || ConfigurationError::OwnerGone(owner.name.clone());
        let found = call_on(format!("read Namespace {}", owner.name), self.namespaces.get_metadata(&owner.name));
        match found.await {
            Ok(found)
                if found.metadata.deletion_timestamp.is_none() && found.metadata.uid.as_ref() == Some(&owner.uid) =>
            {
                Ok(())
            }
            Ok(_) | Err(Failure::NotFound) => Err(gone()),
            Err(Failure::Other(error)) => Err(error),
        }
    }

    /// The resource version makes sure that nothing unseen is overwritten, a CA bundle above all.
    async fn write(
        &self,
        wanted: &MutatingWebhookConfiguration,
        live: Option<&MutatingWebhookConfiguration>,
    ) -> Result<MutatingWebhookConfiguration, ConfigurationError> {
        let name = &self.options.name;
        let mut body = wanted.clone();
        body.metadata.resource_version = live.and_then(|l| l.metadata.resource_version.clone());
        let params = PatchParams::apply(FIELD_MANAGER).force();
        let patch = Patch::Apply(&body);
        let result = match call("apply", name, self.api.patch(name, &params, &patch)).await {
            Ok(result) => result,
            Err(failure) => return Err(failure.into_error(name)),
        };
        let done = if live.is_some() { "updated" } else { "created" };
        tracing::info!(%name, entries = wanted.webhooks.as_ref().map_or(0, Vec::len), "webhook configuration {done}");
        Ok(result)
    }
}

enum Failure {
    NotFound,
    Other(ConfigurationError),
}

impl Failure {
    fn into_error(self, name: &str) -> ConfigurationError {
        match self {
            Self::NotFound => ConfigurationError::Changed(name.to_owned()),
            Self::Other(error) => error,
        }
    }
}

async fn call<T>(verb: &str, name: &str, work: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    match call_on(format!("{verb} MutatingWebhookConfiguration {name}"), work).await {
        Err(Failure::Other(ConfigurationError::Changed(_))) => {
            Err(Failure::Other(ConfigurationError::Changed(name.to_owned())))
        }
        other => other,
    }
}

async fn call_on<T>(verb: String, work: impl Future<Output = kube::Result<T>>) -> Result<T, Failure> {
    let error = match tokio::time::timeout(CALL_DEADLINE, work).await {
        Ok(Ok(value)) => return Ok(value),
        Ok(Err(kube::Error::Api(status))) => {
            let reason = status.message.clone();
            match status.code {
                404 => return Err(Failure::NotFound),
                403 => ConfigurationError::Forbidden { verb, reason },
                409 => ConfigurationError::Changed(verb),
                _ => ConfigurationError::Api { verb, reason },
            }
        }
        Ok(Err(error)) => ConfigurationError::Api { verb, reason: error.to_string() },
        Err(_) => ConfigurationError::Api {
            verb,
            reason: format!("no answer from the API server within {} s", CALL_DEADLINE.as_secs()),
        },
    };
    Err(Failure::Other(error))
}
