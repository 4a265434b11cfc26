//! The client against a registry in this process that does what a test tells it to.

mod access;
mod fake;
mod listing;
mod logins;
mod manifest;
mod sharing;
mod tls;
