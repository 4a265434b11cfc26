//! Reconciles one Image: observe, decide (pure), act, report.
//!
//! `decide`, `pace`, `records` and `status` are pure. `world` is what is known of the cluster, `watch` fills it, `engine` runs the
//! queue, `image` and `workload` are what is done for one key, `write` and `observe` are the I/O shells.

mod access;
mod alone;
mod approval;
mod decide;
mod engine;
mod failing;
mod follow;
mod gates;
mod hold;
mod image;
mod limits;
mod managed;
mod manifests;
#[cfg(test)]
mod model;
mod nodes;
mod nudge;
mod observe;
mod outage;
mod pace;
mod question;
mod queue;
mod records;
mod repair;
mod report;
mod request;
mod retry;
mod rollback;
mod settle;
mod source;
mod status;
mod target;
#[cfg(test)]
mod testing;
mod timing;
mod turn;
mod unmutated;
mod verify;
mod view;
mod watch;
mod way_back;
mod workload;
mod world;
mod write;

pub use engine::{Options, Running, Sync, start};
