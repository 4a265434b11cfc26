//! What should this container run? The order of design section 4. Pure.

use std::sync::Arc;

use crate::api::Applied;
use crate::api::annotations::{Map, Stamp};
use crate::policy::Reference;

use super::snapshot::{ImageEntry, NamespaceEntry};

/// A Pod, as far as the answer depends on it.
#[derive(Clone, Copy, Debug)]
pub struct PodView<'a> {
    /// Its annotations.
    pub annotations: &'a Map,
    /// UID of its controller.
    pub owner_uid: Option<&'a str>,
    /// Its `pod-template-hash` or `controller-revision-hash`; empty if it has none.
    pub hash: &'a str,
    /// Its label `kimup.cloudavenue.io/rollout`.
    pub rollout: Option<&'a str>,
    /// What admission did to it before (reinvocation).
    pub applied: &'a [Applied],
}

/// The answer for one container.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It stays as it is, and nobody of ours has a say in it.
    Keep {
        /// What the user should know, if anything.
        warning: Option<String>,
    },
    /// It is covered, and runs this.
    Run {
        /// The image reference, equal to the text if that is what it runs.
        reference: String,
        /// The entry of the `applied` annotation.
        applied: Applied,
    },
    /// Nothing is known yet: sync must be asked, then `with_tag` gives the answer.
    Ask(Arc<ImageEntry>),
}

const KEEP: Answer = Answer::Keep { warning: None };

/// Answers for one container with the image `text`. `namespace` is none if nothing is known of it.
pub fn answer(namespace: Option<&NamespaceEntry>, pod: &PodView<'_>, container: &str, text: &str) -> Answer {
    let Ok(reference) = Reference::parse(text) else {
        return KEEP;
    };
    if reference.digest().is_some() {
        return KEEP;
    }
    let image = namespace.and_then(|n| n.image(reference.repository()));
    if let Some(stamp) = Stamp::of(pod.annotations, container) {
        return stamped(&stamp, &reference, pod, container, text, image);
    }
    let Some(image) = image else { return KEEP };
    let answered = pod.applied.iter().any(|a| a.container == container && Some(&*a.to) == reference.tag());
    if answered {
        return KEEP;
    }
    let recorded = pod.owner_uid.and_then(|uid| image.recorded(uid, pod.hash, container));
    if let Some(stamp) = recorded.filter(|stamp| stamp.text == text) {
        return run(&stamp.reference, &reference, container, Some(image), None);
    }
    match (&image.tag, image.gate) {
        (Some(tag), _) => with_tag(image, container, text, tag),
        (None, Some(gate)) => {
            let (name, tag) = (&image.name, "keeps the tag of its manifest");
            let why = format!("Image {name}: {gate} is not acted on by this version");
            Answer::Keep { warning: Some(format!("kimup: container {container:?} {tag}: {why}")) }
        }
        (None, None) => Answer::Ask(image.clone()),
    }
}

/// The answer once the Image's tag is known: the newer of it and the container's own.
pub fn with_tag(image: &ImageEntry, container: &str, text: &str, tag: &str) -> Answer {
    let Ok(reference) = Reference::parse(text) else {
        return KEEP;
    };
    let newer = image.order.newer_of(reference.tag(), tag);
    let wanted = if reference.tag() == Some(newer) { text.to_owned() } else { reference.with_tag(newer) };
    run(&wanted, &reference, container, Some(image), None)
}

fn stamped(
    stamp: &Stamp,
    reference: &Reference,
    pod: &PodView<'_>,
    container: &str,
    text: &str,
    image: Option<&Arc<ImageEntry>>,
) -> Answer {
    if stamp.text != text {
        // A person changed the manifest since; sync decides what that means.
        return KEEP;
    }
    let same = Reference::parse(&stamp.reference).is_ok_and(|to| to.repository() == reference.repository());
    if !same {
        let warning = format!("kimup: container {container:?}: its stamp names another repository and is not followed");
        return Answer::Keep { warning: Some(warning) };
    }
    run(&stamp.reference, reference, container, image.map(AsRef::as_ref), pod.rollout)
}

fn run(wanted: &str, own: &Reference, container: &str, image: Option<&ImageEntry>, rollout: Option<&str>) -> Answer {
    let to = Reference::parse(wanted).ok().and_then(|r| r.tag().map(str::to_owned)).unwrap_or_default();
    let applied = Applied {
        container: container.to_owned(),
        from: own.tag().map(str::to_owned),
        to,
        image: image.map(|i| i.name.clone()),
        rollout: rollout.map(str::to_owned),
    };
    Answer::Run { reference: wanted.to_owned(), applied }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::Image;
    use crate::api::annotations::NamespaceSettings;
    use serde_json::{Value, json};

    fn image(name: &str, repository: &str, created: &str, patch: &Value) -> Arc<ImageEntry> {
        let mut object = json!({
            "apiVersion": "kimup.cloudavenue.io/v1alpha1", "kind": "Image",
            "metadata": {"name": name, "namespace": "shop", "creationTimestamp": created},
            "spec": {
                "image": repository,
                "triggers": [{"type": "interval", "value": "5m"}],
                "rules": [{"name": "r", "type": "semver-minor", "actions": [{"type": "apply"}]}]
            },
            "status": {"tag": "1.4.2"}
        });
        json_patch::merge(&mut object, patch);
        Arc::new(ImageEntry::of(&serde_json::from_value::<Image>(object).unwrap()).unwrap())
    }

    struct Pod {
        annotations: Map,
        owner: Option<&'static str>,
        hash: &'static str,
    }

    impl Pod {
        fn new(annotations: &[(&str, &str)]) -> Self {
            let pairs = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
            Self { annotations: pairs.collect(), owner: None, hash: "" }
        }

        fn of(owner: &'static str, hash: &'static str) -> Self {
            Self { owner: Some(owner), hash, ..Self::new(&[]) }
        }
    }

    fn ask(entry: &NamespaceEntry, pod: &Pod, text: &str) -> String {
        let applied = Applied::of(&pod.annotations);
        let rollout = Some("ab12");
        let view =
            PodView { annotations: &pod.annotations, owner_uid: pod.owner, hash: pod.hash, rollout, applied: &applied };
        match answer(Some(entry), &view, "app", text) {
            Answer::Keep { warning: None } => "keep".to_owned(),
            Answer::Keep { warning: Some(warning) } => format!("keep with warning: {warning}"),
            Answer::Run { reference, applied } => format!("{reference} | {applied}"),
            Answer::Ask(image) => format!("ask {}", image.name),
        }
    }

    #[test]
    fn the_first_that_answers_answers() {
        let record = json!({"status": {"revisions": [
            {"owner": "ReplicaSet/web-1", "uid": "rs", "hash": "h1", "containers": {"app": "app:1.0.0 app:1.3.0"}},
            {"owner": "Job/once", "uid": "job", "containers": {"app": "app:1.0.0 app:1.2.0"}},
            {"owner": "StatefulSet/db", "uid": "sts", "hash": "db-1", "containers": {"other": "app:1.0.0 app:1.1.0"}},
        ]}});
        let entry = NamespaceEntry::new(
            NamespaceSettings::default(),
            [
                image("web", "app", "2026-01-01T00:00:00Z", &record),
                image("younger", "app", "2026-02-01T00:00:00Z", &json!({"status": {"tag": "9.9.9"}})),
                image("untagged", "new", "2026-01-01T00:00:00Z", &json!({"status": null})),
                image(
                    "moved",
                    "now",
                    "2026-01-01T00:00:00Z",
                    &json!({"status": {"repository": "docker.io/library/then"}}),
                ),
                image("gated", "gated", "2026-01-01T00:00:00Z", &json!({"status": null, "spec": {"suspend": true}})),
                image(
                    "typo",
                    "typo",
                    "2026-01-01T00:00:00Z",
                    &json!({"spec": {"rules": [{"name": "r", "type": "semver", "value": ">=x.y.1.2", "actions": [{"type": "apply"}]}]}}),
                ),
            ],
        );
        let check = |pod: &Pod, text: &str, expected: &str| assert_eq!(ask(&entry, pod, text), expected, "{text}");
        let plain = Pod::new(&[]);
        let stamp = |value| Pod::new(&[("stamp.kimup.cloudavenue.io/app", value)]);
        // A stamp for exactly this text; with an Image, and without.
        check(&stamp("app:1.0.0 app:1.4.0"), "app:1.0.0", "app:1.4.0 | app: 1.0.0 -> 1.4.0 (Image web, rollout ab12)");
        check(&stamp("x/y:1 x/y:2"), "x/y:1", "x/y:2 | app: 1 -> 2 (rollout ab12)");
        // A stamp for another text, for another repository, or that is none.
        check(&stamp("app:1.0.0 app:1.4.0"), "app:1.1.0", "keep");
        check(
            &stamp("app:1.0.0 evil:1.4.0"),
            "app:1.0.0",
            "keep with warning: kimup: container \"app\": its stamp names another repository and is not followed",
        );
        check(&stamp("broken"), "app:1.0.0", "app:1.4.2 | app: 1.0.0 -> 1.4.2 (Image web)");
        // Not ours.
        check(&plain, "other:1.0.0", "keep");
        check(&plain, "app@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", "keep");
        check(&plain, "NOT A REFERENCE", "keep");
        // Reinvocation.
        check(&Pod::new(&[("kimup.cloudavenue.io/applied", "app: 1.0.0 -> 1.3.0 (Image web)")]), "app:1.3.0", "keep");
        // A recorded revision, by owner, hash, container and text.
        check(&Pod::of("rs", "h1"), "app:1.0.0", "app:1.3.0 | app: 1.0.0 -> 1.3.0 (Image web)");
        check(&Pod::of("job", ""), "app:1.0.0", "app:1.2.0 | app: 1.0.0 -> 1.2.0 (Image web)");
        check(&Pod::of("rs", "h2"), "app:1.0.0", "app:1.4.2 | app: 1.0.0 -> 1.4.2 (Image web)");
        check(&Pod::of("rs", "h1"), "app:1.0.1", "app:1.4.2 | app: 1.0.1 -> 1.4.2 (Image web)");
        check(&Pod::of("sts", "db-1"), "app:1.0.0", "app:1.4.2 | app: 1.0.0 -> 1.4.2 (Image web)");
        // The newer of own and settled, in any spelling of the repository; `latest` and none are replaced.
        check(&plain, "docker.io/library/app:1.0.0", "docker.io/library/app:1.4.2 | app: 1.0.0 -> 1.4.2 (Image web)");
        check(&plain, "app:1.4.2", "app:1.4.2 | app: 1.4.2 (Image web)");
        check(&plain, "app:1.10.0", "app:1.10.0 | app: 1.10.0 (Image web)");
        check(&plain, "app:latest", "app:1.4.2 | app: latest -> 1.4.2 (Image web)");
        check(&plain, "app", "app:1.4.2 | app: (no tag) -> 1.4.2 (Image web)");
        check(&plain, "typo:2.0.0", "typo:2.0.0 | app: 2.0.0 (Image typo)");
        // Nothing known.
        check(&plain, "new:1.0.0", "ask untagged");
        check(&plain, "now:1.0.0", "ask moved");
        let warning = "keep with warning: kimup: container \"app\" keeps the tag of its manifest: Image gated: spec.suspend is not acted on by this version";
        check(&plain, "gated:1.0.0", warning);
    }
}
