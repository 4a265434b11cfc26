//! Watches in, an immutable snapshot out: what should this container run?
