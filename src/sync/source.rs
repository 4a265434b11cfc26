//! Annotated objects, and the Images that their annotations ask for (design section 2, "Annotation mode"). Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::{ObjectReference, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::api::annotated::{self, Containers, Levels, PodHash, bare_image_name, image_name, owners_of};
use crate::api::annotations::{
    APPLIED, CONTAINERS, MIRROR_POD, Map, NUDGED, NamespaceSettings, POLICY, POLICY_PREFIX, STAMP_PREFIX,
};
use crate::api::{Applied, ImageSpec};
use crate::policy::Reference;
use crate::rollout::{self, Container, PullAccess, Workload, WorkloadKey};

/// How the prefixes of kimup's keys end.
const OUR_DOMAIN: &str = "kimup.cloudavenue.io";

/// Kind of an object whose annotations count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceKind {
    /// One that kimup rolls.
    Workload(rollout::Kind),
    /// `batch/v1` `CronJob`.
    CronJob,
    /// `batch/v1` Job that no `CronJob` made.
    Job,
    /// A Pod without a controller that kimup knows.
    Pod,
}

impl SourceKind {
    /// The kind as it stands in YAML.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Workload(kind) => kind.as_str(),
            Self::CronJob => "CronJob",
            Self::Job => "Job",
            Self::Pod => "Pod",
        }
    }

    /// The API version of the kind.
    pub const fn api_version(self) -> &'static str {
        match self {
            Self::Workload(kind) => kind.api_version(),
            Self::CronJob | Self::Job => "batch/v1",
            Self::Pod => "v1",
        }
    }

    /// The kind of this name that may own Images.
    pub fn owner(kind: &str) -> Option<Self> {
        let mut all = rollout::Kind::ALL.map(Self::Workload).into_iter().chain([Self::CronJob, Self::Job]);
        all.find(|known| known.as_str() == kind)
    }
}

/// Names an object whose annotations count.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SourceKey {
    /// Its kind.
    pub kind: SourceKind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl SourceKey {
    /// All Pods of a namespace without a controller that kimup knows: Pods with the same settings share an Image, so they
    /// are looked at together.
    pub fn pods(namespace: &str) -> Self {
        Self { kind: SourceKind::Pod, namespace: namespace.to_owned(), name: String::new() }
    }

    /// The workload of this name, if it is one that kimup rolls.
    pub fn workload(&self) -> Option<WorkloadKey> {
        let SourceKind::Workload(kind) = self.kind else {
            return None;
        };
        Some(WorkloadKey { kind, namespace: self.namespace.clone(), name: self.name.clone() })
    }
}

/// `CronJob/backup`, without the namespace.
impl fmt::Display for SourceKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.kind.as_str(), self.name)
    }
}

impl From<&WorkloadKey> for SourceKey {
    fn from(key: &WorkloadKey) -> Self {
        let (namespace, name) = (key.namespace.clone(), key.name.clone());
        Self { kind: SourceKind::Workload(key.kind), namespace, name }
    }
}

/// An annotated object, reduced to what decides its Images.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// Which one.
    pub key: SourceKey,
    /// Its UID.
    pub uid: String,
    /// It is being deleted: nothing new is made for it.
    pub deleting: bool,
    /// Its containers and init containers, with the text of the manifest.
    pub containers: Vec<Container>,
    /// Where the credentials for its images come from.
    pub access: PullAccess,
    /// What its annotations ask for.
    pub wish: Wish,
}

/// What the annotations of an object ask for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Wish {
    /// By container: name and derived spec of its Image.
    pub images: BTreeMap<String, (String, ImageSpec)>,
    /// Containers that have a policy, but a wrong one, or one of which nobody knows whether it means them: the Image
    /// that was made for them before stays as it is.
    pub unclear: BTreeSet<String>,
    /// Containers that the Pod template opts in and `enabled: "false"` further away opts out: Pods do not carry that word.
    pub off: BTreeSet<String>,
    /// Names of the Images whose policy Pods carry themselves.
    pub by_pods: BTreeSet<String>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// A policy stands somewhere among the annotations.
    pub any_policy: bool,
}

/// What a Job is to annotation mode.
#[derive(Clone, Debug, PartialEq)]
pub enum JobSeen {
    /// Its own annotations count.
    Own(Box<Source>),
    /// Those of the `CronJob` with this name count.
    Of {
        /// Its UID.
        uid: String,
        /// Name of the `CronJob`.
        cron_job: String,
    },
}

/// The parts of an object of which a source is made.
struct Parts<'a> {
    kind: SourceKind,
    metadata: &'a ObjectMeta,
    /// The annotations, the nearest to the Pod first.
    levels: &'a [Option<&'a Map>],
    pod: &'a PodSpec,
}

impl Source {
    /// Reads a workload.
    pub fn of_workload(workload: &Workload) -> Self {
        let levels = [ours(&workload.template_annotations), ours(&workload.annotations)];
        let key = SourceKey::from(&workload.key);
        Self {
            wish: wish(&key, &levels, &workload.containers),
            key,
            uid: workload.uid.clone(),
            deleting: workload.deleting,
            containers: workload.containers.clone(),
            access: workload.access.clone(),
        }
    }

    /// Whether annotations of a workload may ask for something: else it need not be read.
    pub fn is_annotated(workload: &Workload) -> bool {
        [&workload.template_annotations, &workload.annotations].iter().any(|map| map.keys().any(|key| is_ours(key)))
    }

    /// Reads a `CronJob`. None if it lacks what every stored object has.
    pub fn of_cron_job(object: &CronJob) -> Option<Self> {
        let job = &object.spec.job_template;
        let template = &job.spec.as_ref()?.template;
        let annotations = |metadata: Option<&'_ ObjectMeta>| metadata.and_then(|m| m.annotations.clone());
        let levels = [
            annotations(template.metadata.as_ref()),
            annotations(job.metadata.as_ref()),
            object.metadata.annotations.clone(),
        ];
        Self::of(&Parts {
            kind: SourceKind::CronJob,
            metadata: &object.metadata,
            levels: &levels.each_ref().map(Option::as_ref),
            pod: template.spec.as_ref()?,
        })
    }

    /// Reads a Pod. None if its controller is one that kimup knows, or if it has no policy.
    pub fn of_pod(pod: &Pod) -> Option<Self> {
        let annotations = pod.metadata.annotations.as_ref()?;
        let finished = matches!(pod.status.as_ref().and_then(|s| s.phase.as_deref()), Some("Succeeded" | "Failed"));
        if finished || annotations.contains_key(MIRROR_POD) || !Levels(&[annotations]).has_policy() {
            return None;
        }
        let controller = pod.metadata.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        let hash = PodHash::of(pod.metadata.labels.as_ref());
        if controller.is_some_and(|o| !owners_of(&o.kind, &o.name, hash).is_empty()) {
            return None;
        }
        let spec = own_texts(pod.spec.as_ref()?, &Applied::of(annotations));
        let levels = [Some(annotations)];
        Self::of(&Parts { kind: SourceKind::Pod, metadata: &pod.metadata, levels: &levels, pod: &spec })
    }

    fn of(parts: &Parts<'_>) -> Option<Self> {
        let Parts { kind, metadata, levels, pod } = parts;
        let (namespace, name) = (metadata.namespace.clone()?, metadata.name.clone()?);
        let key = SourceKey { kind: *kind, namespace, name };
        let levels: Vec<Map> = levels.iter().flatten().map(|map| ours(map)).collect();
        let containers = Container::of(pod);
        Some(Self {
            wish: wish(&key, &levels, &containers),
            key,
            uid: metadata.uid.clone()?,
            deleting: metadata.deletion_timestamp.is_some(),
            containers,
            access: PullAccess::of(pod),
        })
    }

    /// The name of the Image for one of its containers, unless it is a Pod.
    pub fn image_name(&self, container: &str) -> String {
        image_name(self.key.kind.as_str(), &self.key.name, container)
    }

    /// The reference that Events on it carry.
    pub fn reference(&self) -> ObjectReference {
        ObjectReference {
            api_version: Some(self.key.kind.api_version().to_owned()),
            kind: Some(self.key.kind.as_str().to_owned()),
            namespace: Some(self.key.namespace.clone()),
            name: Some(self.key.name.clone()),
            uid: Some(self.uid.clone()),
            ..ObjectReference::default()
        }
    }
}

/// Reads a Job. None if it lacks what every stored object has.
pub fn of_job(object: &Job) -> Option<JobSeen> {
    let owners = object.metadata.owner_references.iter().flatten();
    let mut made_by = owners.filter(|o| o.kind == "CronJob" && o.api_version.starts_with("batch/"));
    if let Some(owner) = made_by.next() {
        return Some(JobSeen::Of { uid: object.metadata.uid.clone()?, cron_job: owner.name.clone() });
    }
    let template = &object.spec.as_ref()?.template;
    let levels = [
        template.metadata.as_ref().and_then(|metadata| metadata.annotations.as_ref()),
        object.metadata.annotations.as_ref(),
    ];
    let pod = template.spec.as_ref()?;
    Source::of(&Parts { kind: SourceKind::Job, metadata: &object.metadata, levels: &levels, pod })
        .map(|source| JobSeen::Own(Box::new(source)))
}

fn is_ours(key: &str) -> bool {
    key.split_once('/').is_some_and(|(prefix, _)| prefix.ends_with(OUR_DOMAIN))
        && !key.starts_with(STAMP_PREFIX)
        && ![APPLIED, NUDGED].contains(&key)
}

fn ours(map: &Map) -> Map {
    map.iter().filter(|(key, _)| is_ours(key)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The Pod as its manifest had it: admission has rewritten the texts of those containers that it tells of.
fn own_texts(pod: &PodSpec, applied: &[Applied]) -> PodSpec {
    let mut pod = pod.clone();
    for container in pod.init_containers.iter_mut().flatten().chain(&mut pod.containers) {
        let (Some(entry), Some(text)) = (applied.iter().find(|a| a.container == container.name), &mut container.image)
        else {
            continue;
        };
        if let Ok(reference) = Reference::parse(text) {
            let from = entry.from.as_deref();
            *text = from.map_or_else(|| reference.name().to_owned(), |from| reference.with_tag(from));
        }
    }
    pod
}

fn wish(key: &SourceKey, levels: &[Map], containers: &[Container]) -> Wish {
    let levels: Vec<&Map> = levels.iter().collect();
    let (nearest, levels) = (Levels(levels.get(..1).unwrap_or_default()), Levels(&levels));
    let enabled = |levels: Levels<'_>, name: &str| levels.enabled(name, false, NamespaceSettings::default());
    let names = |init| containers.iter().filter(|c| c.init == init).map(|c| c.name.as_str()).collect::<Vec<_>>();
    let (regular, init) = (names(false), names(true));
    let found = annotated::read(levels, Containers { regular: &regular, init: &init });
    let mut wish = Wish { problems: found.problems, any_policy: levels.has_policy(), ..Wish::default() };
    for container in containers {
        let name = &container.name;
        let Some(wanted) = found.containers.get(name) else {
            if may_mean(levels, name, containers) {
                wish.unclear.insert(name.clone());
            } else if enabled(levels, name) == Ok(false) && enabled(nearest, name) == Ok(true) {
                wish.off.insert(name.clone());
            }
            continue;
        };
        match Reference::parse(&container.text) {
            Ok(text) if text.digest().is_none() => {
                let spec = wanted.spec(&text);
                let image = match key.kind {
                    SourceKind::Pod => bare_image_name(name, &spec),
                    kind => image_name(kind.as_str(), &key.name, name),
                };
                if nearest.pods_carry_policy(name) {
                    wish.by_pods.insert(image.clone());
                }
                wish.images.insert(name.clone(), (image, spec));
            }
            Ok(_) => wish.problems.push(format!(
                "container {name:?} has a policy, but its image is pinned by digest in the manifest, so it stays"
            )),
            Err(error) => {
                wish.unclear.insert(name.clone());
                wish.problems.push(format!("container {name:?} has a policy, but {error}"));
            }
        }
    }
    wish
}

/// Whether a container without a valid policy may have been meant to have one: then a typo is no opting out.
fn may_mean(levels: Levels<'_>, container: &str, containers: &[Container]) -> bool {
    if levels.enabled(container, false, NamespaceSettings::default()) == Ok(false) {
        return false;
    }
    let get = |key: &str| levels.0.iter().find_map(|map| map.get(key));
    if get(&format!("{POLICY_PREFIX}{container}")).is_some() {
        return true;
    }
    let named = get(CONTAINERS).map(|names| {
        let mut names = names.split(|c: char| c == ',' || c.is_whitespace()).filter(|name| !name.is_empty());
        // One name that nobody has may be a misspelling of this one.
        names.any(|name| name == container || containers.iter().all(|c| c.name != name))
    });
    let regular = || containers.iter().any(|c| c.name == container && !c.init);
    get(POLICY).is_some() && named.unwrap_or_else(regular)
}

#[cfg(test)]
mod tests;
