//! What the cluster does without kimup, and how both come back by themselves (issue "Down, yet right").

mod checked;
mod drill;
mod policy;
mod repair;
mod uninstall;
