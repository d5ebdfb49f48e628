//! Snapshots of real servers: that they hold what the store held at their instant, say what they do not hold, tell nobody
//! without a reader's identity anything of it, and come back whole.

mod command;
mod coverage;
#[cfg(feature = "failpoints")]
mod deaths;
mod histories;
mod incremental;
mod keys;
mod memory;
mod oracle;
mod repeated;
pub mod support;
mod types;
