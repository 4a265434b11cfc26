//! Watches in, an immutable snapshot out: what should this container run?
//!
//! `snapshot` and `answer` are pure; `watch` is the shell that keeps the snapshot.

mod answer;
pub mod question;
mod snapshot;
mod watch;

pub use answer::{Answer, PodView, answer, with_tag};
pub use snapshot::{ImageEntry, NamespaceEntry, Snapshot};
pub use watch::{Index, Scope, start};
