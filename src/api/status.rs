//! The `Image` resource's status: what was decided, what is under way, and why.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Condition types and reasons, in the words that `docs/reference.md` explains.
pub mod condition {
    /// The last sync did its work, and no setting of the Image is wrong.
    pub const READY: &str = "Ready";
    /// A rollout moves (kstatus: in progress).
    pub const RECONCILING: &str = "Reconciling";
    /// Nothing will move until somebody changes something (kstatus: failed).
    pub const STALLED: &str = "Stalled";
    /// No sync has succeeded for three intervals.
    pub const STALE: &str = "Stale";
    /// A newer tag waits for something; the message says for what.
    pub const PENDING: &str = "Pending";
    /// The spec uses fields this version does not act on; the message names them.
    pub const UNSUPPORTED: &str = "Unsupported";
    /// Every type above, for the reference documentation.
    pub const TYPES: &[&str] = &[READY, RECONCILING, STALLED, STALE, PENDING, UNSUPPORTED];
}

/// What kimup observed and decided for an Image.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct ImageStatus {
    /// The settled tag: the last one whose rollout ended well.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Result of the last sync.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<SyncResult>,
    /// Time of the last sync that was recorded (RFC 3339, UTC).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
    /// The `metadata.generation` that this status speaks of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The normalised repository that this status speaks of; another one in the spec starts it anew.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The manifest digest of `tag`, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// With the rule `digest` alone: the starting tag that was followed last. Another one in the spec is a decision.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_tag: Option<String>,
    /// `Ready`, and the others while they hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
    /// The rollout in flight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// A tag that waits for something.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pending: Option<Pending>,
    /// The tag that people are asked to approve.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub asked: Option<Asked>,
    /// With `spec.minAge`: newer tags, and since when each is known. At most 50; of more, some in between are left out.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub seen: Vec<Seen>,
    /// Tags whose rollout failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rejected: Vec<Rejected>,
    /// The group in which they were rejected, as a hash of its rules and filter; in another one they count for nobody.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Workloads that keep another tag than `tag`, and why.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<Held>,
    /// Which tags the first Pods of unstamped revisions got.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub revisions: Vec<RevisionRecord>,
    /// The last ten tags, the newest first.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub history: Vec<HistoryEntry>,
    /// The value of the annotation `requestedAt` that was last answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_handled_request: Option<String>,
    /// How many of the workloads that use this Image run `tag`, for people: `3/4, 1 held`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workloads: Option<String>,
}

/// Result of a sync: the nine values of the seed.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
pub enum SyncResult {
    /// Rolling a workload failed.
    ActionError,
    /// Something else failed: a trigger that cannot be parsed, a duplicate, a call to the API server.
    Error,
    /// The Image itself cannot be read.
    GetImageError,
    /// A rule or filter cannot be used.
    GetRuleError,
    /// A pull secret is missing, of a wrong type or malformed.
    PullSecretsError,
    /// The registry cannot be reached or refuses.
    RegistryError,
    /// Seen, not synced yet. Never set again once a sync has ended.
    Scheduled,
    /// The last sync did its work.
    Success,
    /// The registry answered, but not with a usable list of tags.
    TagsError,
}

impl SyncResult {
    /// The value as it stands in the status.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ActionError => "ActionError",
            Self::Error => "Error",
            Self::GetImageError => "GetImageError",
            Self::GetRuleError => "GetRuleError",
            Self::PullSecretsError => "PullSecretsError",
            Self::RegistryError => "RegistryError",
            Self::Scheduled => "Scheduled",
            Self::Success => "Success",
            Self::TagsError => "TagsError",
        }
    }
}

/// A rollout in flight.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RolloutStatus {
    /// The rollout ID, also the label `kimup.cloudavenue.io/rollout` of its Pods.
    pub id: String,
    /// The tag being rolled out.
    pub tag: String,
    /// Its manifest digest, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The settled tag when it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// The rejected tag that this rollout goes back from; none if it goes forward.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub back_from: Option<String>,
    /// Name of the rule that chose the tag.
    pub rule: String,
    /// Who or what asked for it, where that was not a rule alone: `approved by alice`, `rejected: …`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// Somebody approved it: `spec.windows` do not hold it back.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub approved: bool,
    /// When it began (RFC 3339, UTC).
    pub started_at: String,
    /// The workload that goes first, for example `Deployment/web`, where others follow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first: Option<String>,
    /// Since when that one runs the tag with all Pods ready (RFC 3339): `spec.rollout.soak` counts from here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub first_ready_at: Option<String>,
    /// How many workloads use this Image.
    #[schemars(extend("format" = "int32"))] // Kubernetes knows no unsigned formats
    pub total: u32,
    /// How many of them run the tag with all Pods ready.
    #[schemars(extend("format" = "int32"))] // Kubernetes knows no unsigned formats
    pub updated: u32,
}

/// A tag that waits for something.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Pending {
    /// The tag.
    pub tag: String,
    /// What it waits for.
    pub reason: String,
    /// When it will go, if a time is known (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
}

/// A tag that people are asked to approve.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Asked {
    /// The tag; `tag@sha256:…` for another digest of the tag that runs.
    pub tag: String,
    /// Since when (RFC 3339).
    pub since: String,
    /// Until when, if the action has a deadline (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Nobody approved it in time: it is not asked for any more.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lapsed: bool,
}

/// A tag that is known, and not chosen yet.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Seen {
    /// The tag; `tag@sha256:…` for another digest of the tag that runs.
    pub tag: String,
    /// Since when (RFC 3339).
    pub since: String,
}

/// A tag whose rollout failed.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Rejected {
    /// The tag; `tag@sha256:…` if one digest of it alone was rejected.
    pub tag: String,
    /// What went wrong.
    pub reason: String,
    /// Where it went wrong, for example `Deployment/web`.
    pub workload: String,
    /// When (RFC 3339).
    pub time: String,
}

impl Rejected {
    /// The tags of these, as text of [`Tagged`](super::Tagged).
    pub fn tags<'a>(all: impl IntoIterator<Item = &'a Self>) -> BTreeSet<String> {
        all.into_iter().map(|rejected| rejected.tag.clone()).collect()
    }
}

/// A workload that keeps another tag than the Image's.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct Held {
    /// `Deployment/web`.
    pub workload: String,
    /// Name of the container.
    pub container: String,
    /// The tag it keeps; with the digest if that alone was left.
    pub tag: String,
    /// The tag that was left: a newer one than this ends the hold. `tag@sha256:…` if another digest of the same tag was left.
    /// Empty if no tag ends it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub left: String,
    /// Since when (RFC 3339).
    pub since: String,
    /// What holds it.
    pub by: HeldBy,
    /// The same for people, and what releases it.
    pub why: String,
    /// Since when it is released and waits for its turn (RFC 3339); none while it is held.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub released: Option<String>,
}

impl Held {
    /// Whether nobody has released it yet.
    pub const fn holds(&self) -> bool {
        self.released.is_none()
    }
}

/// What holds a workload.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum HeldBy {
    /// An older revision was put back (`kubectl rollout undo`).
    #[default]
    Undo,
    /// The manifest names an older tag than it ran.
    Manifest,
    /// The annotation `hold`.
    Annotation,
    /// `spec.paused` of the workload.
    Paused,
    /// Another controller took kimup's stamp away over and over.
    Fight,
    /// Its rollout failed with a tag that others of its group run well: it alone went back.
    RolloutFailed,
}

impl HeldBy {
    /// Whether it is behind a tag that was left: a newer one than that ends it.
    pub const fn is_behind(self) -> bool {
        matches!(self, Self::Undo | Self::Manifest | Self::RolloutFailed)
    }
}

/// Which references the first Pods of an unstamped revision got, so that its later Pods get the same.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct RevisionRecord {
    /// The controller that makes the Pods, for example `ReplicaSet/web-5d8f`.
    pub owner: String,
    /// Its UID.
    pub uid: String,
    /// `pod-template-hash` or `controller-revision-hash`; empty for owners without one (a Job, a bare `ReplicaSet`).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub hash: String,
    /// By container name: what its Pods got, as a stamp's value (`"<text> <reference>"`).
    pub containers: BTreeMap<String, String>,
}

/// One tag of the past.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
pub struct HistoryEntry {
    /// The tag.
    pub tag: String,
    /// Its manifest digest, where it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
    /// The tag before it; the same one if its digest moved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Name of the rule that chose it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// When its rollout began (RFC 3339).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub started: String,
    /// When its rollout settled (RFC 3339).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub finished: String,
    /// Who or what asked for it, where that was not a rule alone: `approved by alice`, `rejected: …`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// `Settled`, or `RolledBack`: it went back to this tag from the rejected one in `from`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub outcome: String,
    /// How many workloads used the Image then.
    #[schemars(extend("format" = "int32"))] // Kubernetes knows no unsigned formats
    pub workloads: u32,
    /// How many of them were held at another tag.
    #[schemars(extend("format" = "int32"))] // Kubernetes knows no unsigned formats
    pub held: u32,
}
