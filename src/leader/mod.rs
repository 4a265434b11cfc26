//! Leadership by a Lease with an expiry: a pure decision and a small shell.
