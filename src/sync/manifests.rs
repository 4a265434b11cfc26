//! Asks the registry for manifests, as an Image: the I/O behind `verify`.

use crate::api::Image;
use crate::index::Scope;
use crate::registry::{ListRequest, Manifest, ManifestRequest, RegistryError};
use crate::rollout::Placement;

use super::engine::Sync;
use super::nodes::{self, Needed};
use super::observe;
use super::status::Failure;
use super::verify::{self, Chosen, Given, Manifests};

impl Sync {
    /// Decides over the listed tags, and makes sure that what is newly chosen can be run.
    pub(super) async fn verified(
        &self,
        image: &Image,
        given: &Given<'_>,
        listed: &ListRequest,
    ) -> Result<Chosen, Failure> {
        let mut checks = self.memos().get(given.image).map(|memo| memo.checks.clone()).unwrap_or_default();
        let asks = Asks { sync: self, image, given, listed };
        let chosen = verify::choose(given, &mut checks, &asks).await;
        // Also after a failure: what was learned before it need not be asked for again.
        if let Some(memo) = self.memos().get_mut(given.image) {
            memo.checks = checks;
        }
        chosen
    }
}

struct Asks<'a> {
    sync: &'a Sync,
    image: &'a Image,
    given: &'a Given<'a>,
    /// As the tags were listed.
    listed: &'a ListRequest,
}

impl Asks<'_> {
    fn request(&self, tag: &str) -> ManifestRequest {
        let ListRequest { repository, keyring, insecure_skip_tls_verify } = self.listed.clone();
        ManifestRequest { repository, tag: tag.to_owned(), keyring, insecure_skip_tls_verify }
    }
}

/// No such manifest is an answer, not a failure.
fn found<T>(of: &ManifestRequest, answer: Result<T, RegistryError>) -> Result<Option<T>, Failure> {
    match answer {
        Ok(found) => Ok(Some(found)),
        Err(RegistryError::NoManifest { .. }) => Ok(None),
        Err(error) => Err(observe::manifest_failure(&of.repository, &of.tag, &error)),
    }
}

impl Manifests for Asks<'_> {
    async fn digest(&self, tag: &str) -> Result<Option<String>, Failure> {
        let request = self.request(tag);
        Ok(found(&request, Box::pin(self.sync.registry.digest(&request)).await)?.map(|digest| digest.to_string()))
    }

    async fn manifest(&self, tag: &str) -> Result<Option<Manifest>, Failure> {
        let request = self.request(tag);
        found(&request, Box::pin(self.sync.registry.manifest(&request)).await)
    }

    async fn needed(&self) -> Result<Needed, Failure> {
        if !self.given.spec.platforms.is_empty() {
            return Ok(Needed::All(self.given.spec.platforms.clone()));
        }
        if matches!(self.sync.options.scope, Scope::Namespaces(_)) {
            return Ok(Needed::Unknown); // Roles cannot allow nodes
        }
        let nodes = self.sync.nodes.get(&self.sync.client).await?;
        let users = self.sync.world.users_of(self.image);
        let placements: Vec<&Placement> = users.iter().map(|user| &user.workload.placement).collect();
        Ok(nodes::needed(&nodes, placements))
    }
}
