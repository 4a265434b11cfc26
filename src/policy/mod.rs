//! Tags in, a decision with reasons out; image references. No I/O, no clock, no async.
//!
//! [`reference`] reads image texts, [`rule`] what a user wrote as a rule and a filter, [`select`](mod@select) chooses.
//! Everything here is total: no input panics, and the same input in any order gives the same answer.

mod digest;
mod digits;
mod glance;
mod judge;
mod order;
mod pattern;
mod platform;
mod range;
mod reason;
pub mod reference;
pub mod rule;
pub mod select;
mod version;

pub use digest::{Digest, DigestError};
pub use pattern::{Filter, Pattern};
pub use platform::{Platform, PlatformError, covers};
pub use range::Range;
pub use reason::Reason;
pub use reference::{Reference, ReferenceError, Repository, is_legal_tag};
pub use rule::{Direction, Rule, RuleError};
pub use select::{Decision, Explanation, Rejection, choose, compare, select};
