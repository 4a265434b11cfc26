//! Which workloads change, how they are changed, and whether they settled.
//!
//! `workload` and `plan` are pure: objects in, a plan out. `apply` and `facts` are the thin shells that write and read.

mod apply;
mod evidence;
mod facts;
mod failing;
mod fight;
mod foreign;
mod nudge;
mod order;
mod placement;
mod plan;
mod repair;
mod workload;

pub use apply::{ApplyError, FIELD_MANAGER, adopt, apply, remove_requests};
pub use evidence::{Evidence, Past, PodState, delete_pod, evidence};
pub use facts::{Facts, FactsError, PodImages, Revision, observe};
pub use failing::{Before, Verdict, before, due, judge};
pub use fight::{Stamps, TIMES, WITHIN};
pub use nudge::{OwnerKind, PodOwner, nudge, pod_owners};
pub use order::{Lead, Member, Stage, Turn, lead, rested, soaked};
pub use placement::Placement;
pub use plan::{Blocked, Change, ContainerPlan, Hold, Holding, Plan, ROLLBACK, Stay, Target, back_id, id, plan};
pub use repair::{REPAIRED, Repair, repair};
pub use workload::{Container, Denied, Kind, PullAccess, Workload, WorkloadKey};
