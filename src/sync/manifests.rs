//! Asks the registry for manifests, as an Image: the I/O behind `verify`.

use crate::api::{CompiledSpec, Image, ImageStatus};
use crate::index::Scope;
use crate::registry::{Keyring, Manifest, ManifestRequest, RegistryError};
use crate::rollout::Placement;

use super::decide::Known;
use super::engine::Sync;
use super::nodes::{self, Needed};
use super::observe;
use super::status::{self, Failure, Outcome};
use super::verify::{self, Given, Manifests};
use super::world::ImageKey;

impl Sync {
    /// Decides over the listed tags, and makes sure that what is newly chosen can be run.
    pub(super) async fn verified(
        &self,
        key: &ImageKey,
        image: &Image,
        status: &ImageStatus,
        spec: &CompiledSpec,
        known: Known<'_>,
        tags: &[String],
    ) -> Result<Outcome, Failure> {
        let current = status::current(status).or_else(|| known.stamped.cloned());
        let given = Given { image: key, spec, known, digest: current.as_ref().and_then(|c| c.digest.as_deref()), tags };
        let mut checks = self.memos().get(key).map(|memo| memo.checks.clone()).unwrap_or_default();
        let asks = Asks { sync: self, key, image, spec, keyring: tokio::sync::OnceCell::new() };
        let outcome = verify::choose(&given, &mut checks, &asks).await;
        // Also after a failure: what was learned before it need not be asked for again.
        if let Some(memo) = self.memos().get_mut(key) {
            memo.checks = checks;
        }
        outcome
    }
}

struct Asks<'a> {
    sync: &'a Sync,
    key: &'a ImageKey,
    image: &'a Image,
    spec: &'a CompiledSpec,
    /// Read when the first request needs it.
    keyring: tokio::sync::OnceCell<Keyring>,
}

impl Asks<'_> {
    async fn request(&self, tag: &str) -> Result<ManifestRequest, Failure> {
        let keyring = self.keyring.get_or_try_init(|| observe::keyring(&self.sync.client, self.image)).await?;
        Ok(ManifestRequest {
            repository: self.spec.repository.clone(),
            tag: tag.to_owned(),
            keyring: keyring.clone(),
            insecure_skip_tls_verify: self.image.spec.insecure_skip_tls_verify,
        })
    }
}

/// No such manifest is an answer, not a failure.
fn found<T>(answer: Result<T, RegistryError>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(RegistryError::NoManifest { .. }) => Ok(None),
        Err(error) => Err(observe::registry_failure(&error)),
    }
}

impl Manifests for Asks<'_> {
    async fn digest(&self, tag: &str) -> Result<Option<String>, Failure> {
        let request = self.request(tag).await?;
        Ok(found(self.sync.registry.digest(&request).await)?.map(|digest| digest.to_string()))
    }

    async fn manifest(&self, tag: &str) -> Result<Option<Manifest>, Failure> {
        let request = self.request(tag).await?;
        found(self.sync.registry.manifest(&request).await)
    }

    async fn needed(&self) -> Result<Needed, Failure> {
        if !self.spec.platforms.is_empty() {
            return Ok(Needed::All(self.spec.platforms.clone()));
        }
        if matches!(self.sync.options.scope, Scope::Namespaces(_)) {
            return Ok(Needed::Unknown); // Roles cannot allow nodes
        }
        let nodes = self.sync.nodes.get(&self.sync.client).await?;
        let users = self.sync.world.users(&self.key.namespace, &self.spec.repository);
        let placements: Vec<&Placement> = users.iter().map(|workload| &workload.placement).collect();
        Ok(nodes::needed(&nodes, placements))
    }
}
