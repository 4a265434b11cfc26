//! The `Image` resource's spec: every field of the seed, of the original kimup and of the design.
//!
//! Fields that this version does not act on are kept, and named in the `Unsupported` condition (`spec::compile`).

#![allow(clippy::duplicated_attributes)] // each printcolumn repeats its keys

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::status::ImageStatus;

/// What kimup follows: one repository, the rules that choose its tag, and what to do with a newer one.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "kimup.cloudavenue.io",
    version = "v1alpha1",
    kind = "Image",
    plural = "images",
    shortname = "kimg",
    category = "kimup",
    namespaced,
    status = "ImageStatus",
    derive = "PartialEq",
    doc = "An image repository whose newest tag, as its rules allow, the opted-in workloads of this namespace run.",
    printcolumn(name = "Image", type_ = "string", json_path = ".spec.image"),
    printcolumn(name = "Tag", type_ = "string", json_path = ".status.tag"),
    printcolumn(name = "Last-Result", type_ = "string", json_path = ".status.result"),
    printcolumn(name = "Last-Sync", type_ = "date", json_path = ".status.time"),
    printcolumn(name = "Ready", type_ = "string", json_path = ".status.conditions[?(@.type==\"Ready\")].status"),
    printcolumn(name = "Pending", type_ = "string", json_path = ".status.pending.tag"),
    printcolumn(name = "Workloads", type_ = "string", json_path = ".status.workloads"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".status.result",
    selectable = ".spec.image"
)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// Repository without tag or digest: `alpine`, `ghcr.io/org/app`, `registry:5000/app`. Compared after normalising
    /// (`alpine` is `docker.io/library/alpine`). Changing it starts the status anew.
    #[schemars(length(min = 1, max = 255))]
    #[x_kube(
        validation = Rule::new("!self.contains('@') && !self.matches(':[^/]*$')")
            .message("spec.image is a repository without tag or digest; put the starting tag into spec.baseTag"),
        validation = Rule::new("!self.contains('://') && !self.matches('\\\\s')")
            .message("spec.image is a repository such as ghcr.io/org/app, without a scheme or blanks"),
        // What comes before the first slash is a host if it has a dot or a colon in it.
        validation = Rule::new("self.matches('^([^/]*[.:][^/]*/)?[^A-Z]*$')")
            .message("spec.image is a repository such as ghcr.io/org/app: its path must be lower case")
    )]
    pub image: String,

    /// Starting tag: an input to the first choice, never given to a Pod unless the registry lists it. Raised above
    /// `status.tag` by the rule's order, it becomes the current tag.
    #[serde(default = "default_base_tag")]
    #[schemars(length(max = 128), regex(pattern = "^([A-Za-z0-9_][A-Za-z0-9._-]{0,127})?$"))]
    pub base_tag: String,

    /// Secrets in the same namespace, of type `kubernetes.io/dockerconfigjson` or `kubernetes.io/dockercfg`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub image_pull_secrets: Vec<NameRef>,

    /// Accept any certificate from this Image's registry (and from no other host).
    #[serde(default, rename = "insecureSkipTLSVerify", skip_serializing_if = "std::ops::Not::not")]
    pub insecure_skip_tls_verify: bool,

    /// When to look at the registry.
    #[schemars(length(min = 1, max = 16))]
    pub triggers: Vec<TriggerSpec>,

    /// How to choose a tag, evaluated in order.
    #[schemars(length(min = 1, max = 32))]
    pub rules: Vec<RuleSpec>,

    /// Which tags the rules see, and which part of each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<FilterSpec>,

    /// Choose nothing newer while true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub suspend: Option<bool>,

    /// How long a tag must be known before it is chosen, for example `24h`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub min_age: Option<String>,

    /// When rollouts may start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub windows: Vec<WindowSpec>,

    /// How rollouts are made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutSpec>,

    /// Run `repo:tag@sha256:…` instead of `repo:tag`, with the digest that the tag had when it was chosen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin_digest: Option<bool>,

    /// Platforms a tag must exist for, for example `linux/amd64`; default: those of the cluster's nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        inner(length(max = 64), regex(pattern = "^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)?$"))
    )]
    pub platforms: Vec<String>,
}

fn default_base_tag() -> String {
    "latest".to_owned()
}

/// The name of an object in the same namespace.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct NameRef {
    /// Name of the object.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub name: String,
}

/// One occasion to look at the registry.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, KubeSchema)]
#[x_kube(
    validation = Rule::new("self.type != 'interval' || (has(self.value) && self.value.matches('^([0-9]+([.][0-9]+)?(ms|s|m|h|d))+$') && self.value.matches('[1-9]'))")
        .message("an interval needs a duration as value, for example 30s, 5m or 1h30m"),
    validation = Rule::new("self.type != 'crontab' || (has(self.value) && self.value.matches('^ *(@[a-z]+( .*)?|([^ ]+ +){4,6}[^ ]+) *$'))")
        .message("a crontab needs a cron line of 5, 6 or 7 fields as value, for example \"0 */5 * * * *\", or a nickname such as @hourly")
)]
pub struct TriggerSpec {
    /// `interval`, `crontab` or `webhook`.
    #[serde(rename = "type")]
    pub kind: TriggerType,
    /// The duration of an interval, or the cron line (UTC) of a crontab.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 128))]
    pub value: String,
}

/// Kind of a trigger.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum TriggerType {
    /// A cron line of 5, 6 or 7 fields, or a nickname such as `@hourly`; UTC.
    Crontab,
    /// A fixed period.
    Interval,
    /// A call from the registry.
    Webhook,
}

/// One rule that chooses a tag, and what to do with it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, KubeSchema)]
#[x_kube(validation = Rule::new("self.type != 'regex' || (has(self.value) && self.value.size() > 0)")
    .message("a regex rule needs the pattern as value"))]
pub struct RuleSpec {
    /// Name of the rule, shown in Events, status and change-cause.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// How tags are parsed, ordered and bounded.
    #[serde(rename = "type")]
    pub kind: RuleType,
    /// What the type needs: the range of `semver`, the pattern of `regex`, `desc` of `alphabetical`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000))]
    pub value: Option<String>,
    /// What to do when the rule chooses a newer tag.
    #[schemars(length(min = 1, max = 16))]
    pub actions: Vec<Action>,
}

/// Type of a rule.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[allow(missing_docs)] // each name is the annotation value of design.md section 3
pub enum RuleType {
    Patch,
    Minor,
    Major,
    Semver,
    SemverMajor,
    SemverMinor,
    SemverPatch,
    CalverMajor,
    CalverMinor,
    CalverPatch,
    CalverPrerelease,
    Regex,
    Always,
    Timestamp,
    Numerical,
    Alphabetical,
    Digest,
}

impl RuleType {
    /// The name as it stands in YAML.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Patch => "patch",
            Self::Minor => "minor",
            Self::Major => "major",
            Self::Semver => "semver",
            Self::SemverMajor => "semver-major",
            Self::SemverMinor => "semver-minor",
            Self::SemverPatch => "semver-patch",
            Self::CalverMajor => "calver-major",
            Self::CalverMinor => "calver-minor",
            Self::CalverPatch => "calver-patch",
            Self::CalverPrerelease => "calver-prerelease",
            Self::Regex => "regex",
            Self::Always => "always",
            Self::Timestamp => "timestamp",
            Self::Numerical => "numerical",
            Self::Alphabetical => "alphabetical",
            Self::Digest => "digest",
        }
    }
}

/// One action of a rule.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
pub struct Action {
    /// What to do.
    #[serde(rename = "type")]
    pub kind: ActionType,
    /// What the action needs, given here or read from another object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<ActionData>,
}

/// Type of an action.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum ActionType {
    /// Roll the workloads to the tag.
    Apply,
    /// Ask a person first.
    RequestApproval,
    /// Tell a Discord channel.
    AlertDiscord,
    /// Send a mail.
    AlertEmail,
    /// Tell a Slack channel.
    AlertSlack,
    /// Call a URL.
    AlertWebhook,
}

impl ActionType {
    /// The name as it stands in YAML.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "apply",
            Self::RequestApproval => "request-approval",
            Self::AlertDiscord => "alert-discord",
            Self::AlertEmail => "alert-email",
            Self::AlertSlack => "alert-slack",
            Self::AlertWebhook => "alert-webhook",
        }
    }
}

/// What an action needs: a text, or where to read one.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ActionData {
    /// The text itself; ignored if `valueFrom` is given.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(length(max = 4096))]
    pub value: String,
    /// Where to read the text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_from: Option<ValueFrom>,
}

/// Where to read a text: at most one of the fields.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValueFrom {
    /// A key of a Secret in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_key_ref: Option<KeyRef>,
    /// A key of a ConfigMap in the same namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_map_key_ref: Option<KeyRef>,
    /// An alert configuration.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub alert_config_ref: Option<NameRef>,
}

/// A key of a Secret or ConfigMap.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
pub struct KeyRef {
    /// Name of the object.
    #[serde(default)]
    #[schemars(length(max = 253))]
    pub name: String,
    /// Key in its data.
    #[schemars(length(max = 253))]
    pub key: String,
    /// Whether the object or key may be missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub optional: Option<bool>,
}

/// Which tags the rules see, and which part of each.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
pub struct FilterSpec {
    /// RE2 pattern on the tag, unanchored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000))]
    pub pattern: Option<String>,
    /// Template on the pattern's groups, as in Go's `Expand`: `$ts`, `${ts}`, `$1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1000))]
    pub extract: Option<String>,
    /// RE2 patterns of tags that are never chosen.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 1000)))]
    pub exclude: Vec<String>,
}

/// A time in which rollouts may, or may not, start.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WindowSpec {
    /// Whether rollouts may start in it.
    pub kind: WindowKind,
    /// Cron line of the window's start.
    #[schemars(length(min = 1, max = 128))]
    pub schedule: String,
    /// How long it lasts, for example `8h`.
    #[schemars(length(min = 1, max = 32))]
    pub duration: String,
    /// IANA name, default UTC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub time_zone: Option<String>,
}

/// Kind of a window.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum WindowKind {
    /// Rollouts start only in such a window.
    Allow,
    /// Rollouts do not start in it.
    Deny,
}

/// How rollouts are made.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RolloutSpec {
    /// How many workloads of a group roll at a time; default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000), extend("format" = "int32"))]
    // Kubernetes knows no unsigned formats
    pub max_concurrent: Option<u32>,
    /// How long a rollout may take, default `10m`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub deadline: Option<String>,
    /// How long the first workload of a group must run well before the others roll, default `0s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub soak: Option<String>,
    /// The least time between two rollouts of one workload, default `30s`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub min_interval: Option<String>,
    /// What ends a hold that a rollback made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after_rollback: Option<AfterRollback>,
}

/// What ends a hold that a person's rollback made.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum AfterRollback {
    /// A newer tag than the one that was left.
    #[default]
    Next,
    /// Only a person.
    Hold,
}
