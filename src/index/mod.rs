//! Watches in, an immutable snapshot out: what should this container run?
pub mod question;
