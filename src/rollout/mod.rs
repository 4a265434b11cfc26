//! Which workloads change, how they are changed, and whether they settled.
//!
//! `workload` and `plan` are pure: objects in, a plan out. `apply` and `facts` are the thin shells that write and read.

mod apply;
mod facts;
mod fight;
mod nudge;
mod placement;
mod plan;
mod repair;
mod workload;

pub use apply::{ApplyError, FIELD_MANAGER, adopt, apply, remove_requests};
pub use facts::{Facts, FactsError, PodImages, Revision, observe};
pub use fight::{Stamps, TIMES, WITHIN};
pub use nudge::{OwnerKind, PodOwner, nudge, pod_owners};
pub use placement::Placement;
pub use plan::{Blocked, Change, ContainerPlan, Hold, Holding, Plan, Stay, Target, id, plan};
pub use repair::{Repair, repair};
pub use workload::{Container, Denied, Kind, PullAccess, Workload, WorkloadKey};
