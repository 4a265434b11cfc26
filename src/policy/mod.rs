//! Tags in, a decision with reasons out; image references. No I/O, no clock, no async.
