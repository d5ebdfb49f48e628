//! Putting lost mail back into a live store: every lost message once, none twice, none that its user deleted, nothing delivered again.
//!
//! A [`Plan`] is made from a comparison and needed to build an [`Apply`]; `undo` takes a replay back. What a replay does is
//! recorded in a journal in the live store, row by row in the transaction that puts the row back. That journal is all that is
//! kept: after a crash the same command is run again, it compares anew and finds what is left to do.
//!
//! The layer may use `compare` and everything below it. It writes plain SQL with quoted names and needs no more rights than
//! `restante grants --for restore` prints.
//!
//! | module | what it is for |
//! |---|---|
//! | [`plan`] | which messages go where, in which order; nothing is written |
//! | [`raise`] | counters first: no id, UID or MODSEQ is issued twice |
//! | [`parents`] | accounts and mailboxes that were lost, and side folders |
//! | [`apply`] | batches, retries, derived values, hooks |
//! | [`batch`] | one transaction: lock, look again, claim, insert, read again, commit |
//! | [`staging`] | rows of the snapshot in temporary tables of the snapshot's types |
//! | [`journal`] | what was put back, over all replays |
//! | [`undo`] | taking a replay back |

pub mod apply;
mod batch;
mod error;
pub mod journal;
mod parents;
pub mod plan;
mod raise;
mod repair;
mod staging;
pub mod undo;

pub use apply::{Apply, ApplyOptions, ReplayReport};
pub use error::RestoreError;
pub use plan::{Doubtful, Plan, PlanOptions, Window};
