//! Lists tags and resolves digests, with credentials and rate limits.
