//! Restores into the reference store, against a real server.
//!
//! The snapshots are taken into memory ([`memory`]), so that a history costs a fraction of a second; that the same rows come out of a
//! repository is for the tests of the snapshot to show.

mod hostile;
mod memory;
mod model;
mod scripted;
pub mod store;
