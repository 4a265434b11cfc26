//! TLS with reload, the bounded HTTPS server, probes, drain.
