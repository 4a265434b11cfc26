//! From an AdmissionReview to a patch.
