//! What the tests of `index` and `admission` share: Images and snapshots from JSON.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::api::Image;

use super::{Entry, Seen, Snapshot};

/// The Image `shop/web` of `ghcr.io/org/app`, with the settled tag 1.4.2, changed by a merge patch.
pub fn image(patch: &Value) -> Image {
    let mut object = json!({
        "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
        "metadata": {"name": "web", "namespace": "shop", "uid": "image-1", "creationTimestamp": "2026-11-21T10:00:00Z"},
        "spec": {
            "image": "ghcr.io/org/app",
            "triggers": [{"type": "interval", "value": "5m"}],
            "rules": [{"name": "minor", "type": "semver-minor", "actions": [{"type": "apply"}]}]
        },
        "status": {"tag": "1.4.2", "repository": "ghcr.io/org/app"}
    });
    json_patch::merge(&mut object, patch);
    serde_json::from_value(object).unwrap()
}

/// A snapshot with the namespace `shop`, opted in, and these Images (patches of [`image`]).
pub fn snapshot(images: &[Value]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    let labels = [("kimup.cloudavenue.io/enabled".to_owned(), "true".to_owned())].into();
    snapshot.put_namespace("shop", &labels, &[].into());
    for patch in images {
        put(&mut snapshot, &image(patch));
    }
    snapshot
}

/// Takes in an Image.
pub fn put(snapshot: &mut Snapshot, image: &Image) {
    let entry = Arc::new(Entry::read(image, Timestamp::UNIX_EPOCH));
    let namespace = image.metadata.namespace.clone().unwrap();
    let name = image.metadata.name.clone().unwrap();
    snapshot.put_image(&namespace, &name, Seen::Read(entry));
}
