//! The client against a registry in this process that does what a test tells it to.

mod access;
mod canary;
mod canary_others;
mod client_certificates;
mod fake;
mod listing;
mod logins;
mod manifest;
mod mirrors;
mod rows_access;
mod rows_hosts;
mod rows_listing;
mod sharing;
mod tls;
mod world;
