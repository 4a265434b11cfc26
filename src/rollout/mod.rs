//! Which workloads change, how they are changed, and whether they settled.
