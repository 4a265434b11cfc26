//! The policy of `deploy/overlays/stamp-policy`: stamped Pods get their tag with no kimup process at all.
