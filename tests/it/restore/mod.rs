//! Restores into the reference store, and the model test over all stores, against a real server.
//!
//! The snapshots are taken into memory ([`memory`]), so that a history costs a fraction of a second; that the same rows come out of a
//! repository is for the tests of the snapshot to show.

mod changed;
mod check;
mod equal;
mod fields;
mod hard;
mod history;
mod links;
mod marked;
mod memory;
mod model;
mod naive;
pub mod names;
mod plain;
mod references;
mod scripted;
pub mod store;
mod threads;
mod throttled;
mod ways;
