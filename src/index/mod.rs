//! Watches in, an immutable snapshot out: what should this container run?
//!
//! [`watch::start`] follows Namespaces and Images and publishes a [`Snapshot`]; [`answer`] reads one, without I/O. What
//! no snapshot holds is asked by [`question`].

mod answer;
mod groups;
mod held;
mod listed;
mod past;
mod pod;
mod pulse;
pub mod question;
mod snapshot;
mod specs;
#[cfg(test)]
pub(crate) mod testing;
mod trie;
mod watch;
mod watched;

pub use answer::{Answer, Open, answer};
pub use held::Holds;
pub use pod::{Labels, Owner, PodFacts, PodView};
pub use snapshot::{Entry, Namespace, Seen, Snapshot};
pub use watch::{Index, Scope, start};
pub use watched::{Pause, watched};
