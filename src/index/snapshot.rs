//! What admission knows: an immutable picture of Namespaces and Images, shared by all readers.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use kube::ResourceExt;

use crate::api::annotations::{NamespaceSettings, Stamp};
use crate::api::{self, Image, Order};
use crate::policy::Repository;

/// The picture. Cloning it costs one pointer per namespace; a change replaces one namespace's part.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    namespaces: HashMap<String, Arc<NamespaceEntry>>,
}

/// One namespace.
#[derive(Clone, Debug, Default)]
pub struct NamespaceEntry {
    /// What the Namespace says.
    pub settings: NamespaceSettings,
    images: HashMap<Repository, Arc<ImageEntry>>,
}

/// One Image, as far as admission needs it.
#[derive(Clone, Debug)]
pub struct ImageEntry {
    /// Its name.
    pub name: String,
    /// The settled tag.
    pub tag: Option<String>,
    /// How it orders tags.
    pub order: Order,
    /// A field that stops every choice (`api::gate`).
    pub gate: Option<&'static str>,
    repository: Repository,
    created: Option<Timestamp>,
    /// By controller UID and revision hash: what the first Pods got, by container.
    revisions: HashMap<(String, String), HashMap<String, Stamp>>,
}

impl ImageEntry {
    /// Reads an Image. None if `spec.image` is no repository: then no container can be meant.
    pub fn of(image: &Image) -> Option<Self> {
        let repository = Repository::parse(&image.spec.image).ok()?;
        let status = image.status.clone().unwrap_or_default();
        // A status that speaks of another repository is none: the spec changed since.
        let current = status.repository.as_ref().is_none_or(|then| *then == repository.to_string());
        let records = if current { status.revisions } else { Vec::new() };
        let revisions = records.into_iter().map(|record| {
            let stamps = record.containers.iter().filter_map(|(c, s)| Some((c.clone(), Stamp::parse(s)?)));
            ((record.uid, record.hash), stamps.collect())
        });
        Some(Self {
            name: image.name_any(),
            tag: status.tag.filter(|_| current),
            order: Order::of(&image.spec),
            gate: api::gate(&image.spec),
            repository,
            created: image.metadata.creation_timestamp.as_ref().map(|t| t.0),
            revisions: revisions.collect(),
        })
    }

    /// What the first Pods of a revision got in a container.
    pub fn recorded(&self, owner_uid: &str, hash: &str, container: &str) -> Option<&Stamp> {
        if self.revisions.is_empty() {
            return None;
        }
        self.revisions.get(&(owner_uid.to_owned(), hash.to_owned()))?.get(container)
    }
}

impl NamespaceEntry {
    /// Builds a namespace's part. Of several Images for one repository the oldest counts.
    pub fn new(settings: NamespaceSettings, images: impl IntoIterator<Item = Arc<ImageEntry>>) -> Self {
        let mut by_repository: HashMap<Repository, Arc<ImageEntry>> = HashMap::new();
        for image in images {
            let older = by_repository
                .get(&image.repository)
                .is_none_or(|known| (image.created, &image.name) < (known.created, &known.name));
            if older {
                by_repository.insert(image.repository.clone(), image);
            }
        }
        Self { settings, images: by_repository }
    }

    /// The Image for a repository.
    pub fn image(&self, repository: &Repository) -> Option<&Arc<ImageEntry>> {
        self.images.get(repository)
    }
}

impl Snapshot {
    /// A namespace's part; none if nothing is known of it.
    pub fn namespace(&self, name: &str) -> Option<&NamespaceEntry> {
        self.namespaces.get(name).map(AsRef::as_ref)
    }

    /// The same picture with one namespace's part replaced, or taken out.
    #[must_use]
    pub fn with(&self, name: &str, entry: Option<NamespaceEntry>) -> Self {
        let mut namespaces = self.namespaces.clone();
        match entry {
            Some(entry) => namespaces.insert(name.to_owned(), Arc::new(entry)),
            None => namespaces.remove(name),
        };
        Self { namespaces }
    }

    /// Namespaces that opted in by an annotation alone, sorted: the webhook configuration must name them.
    pub fn annotated(&self) -> Vec<String> {
        let annotated = self.namespaces.iter().filter(|(_, entry)| entry.settings.enabled_by_annotation);
        let mut names: Vec<String> = annotated.map(|(name, _)| name.clone()).collect();
        names.sort_unstable();
        names
    }
}

impl FromIterator<(String, NamespaceEntry)> for Snapshot {
    fn from_iter<I: IntoIterator<Item = (String, NamespaceEntry)>>(entries: I) -> Self {
        Self { namespaces: entries.into_iter().map(|(name, entry)| (name, Arc::new(entry))).collect() }
    }
}
