//! Repository → live store.
//!
//! A whole snapshot into an empty database ([`full`]), one table beside the live ones ([`rescue`]); both need no profile, so they
//! work on the day of the incident whatever the store is.
//!
//! Lost mail back into a live store: every lost message once, none twice, none that its user deleted, nothing delivered again.
//! A [`Plan`] is made from a comparison and needed to build an [`Apply`]; [`undo`] takes a replay back. What a replay does is
//! recorded in a journal in the live store, row by row in the transaction that puts the row back. That journal is all that is
//! kept: after a crash the same command is run again, it compares anew and finds what is left to do.
//!
//! The layer may use `compare` and everything below it. It writes plain SQL with quoted names and needs no more rights than
//! `restante grants --for restore` prints.
//!
//! | module | what it is for |
//! |---|---|
//! | [`plan`] | which messages go where, in which order; nothing is written |
//! | `fits` | tables that changed since the snapshot: is anything lost? |
//! | `raise` | counters first: no id, UID or MODSEQ is issued twice |
//! | `parents` | accounts and mailboxes that were lost, and side folders |
//! | [`apply`] | batches, retries, derived values, hooks |
//! | `batch` | one transaction: lock, look again (`look`), insert (`write`), read again and write the journal (`reread`), commit |
//! | `contents` | mail that several links share |
//! | `alive` | parts that the live store still has are taken from there |
//! | `columns` | columns of living messages that a wrong UPDATE changed |
//! | `dictionaries` | what rows refer to: accounts, mailboxes, shared values |
//! | `answers` | references from message to message |
//! | `repair` | what living messages miss |
//! | `staging` | rows of the snapshot in temporary tables of the snapshot's types |
//! | `throttle` | standbys and replication slots are waited for |
//! | [`accounts`] | what was done, or would be, for each account |
//! | `clients` | what mail clients will make of it |
//! | [`journal`] | what was put back, over all replays |
//! | [`rights`] | what a role must be granted for it |
//! | [`undo`] | taking a replay back |

pub mod accounts;
mod alive;
mod answers;
pub mod apply;
mod batch;
mod clients;
mod columns;
mod contents;
mod dictionaries;
mod error;
mod fits;
pub mod full;
pub mod journal;
mod load;
mod look;
mod parents;
pub mod plan;
mod raise;
mod repair;
mod reread;
pub mod rescue;
pub mod rights;
mod staging;
mod throttle;
pub mod undo;
mod write;

pub use apply::{Apply, ApplyOptions, ReplayReport};
pub use error::ReplayError;
pub use fits::fits;
pub use plan::{Doubtful, Plan, PlanOptions};
pub use throttle::Limits;

use crate::postgres::PostgresError;
use crate::repository::RepositoryError;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RestoreError {
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(
        "the database {database} is not empty ({found} is there): a full restore goes into a new database only (`createdb`)"
    )]
    NotEmpty { database: String, found: String },
    #[error("the snapshot holds no schema dump, because {reason}: restore single tables with `--table`")]
    NoSchema { reason: String },
    #[error("pg_restore failed on {section}: {message}")]
    PgRestore { section: &'static str, message: String },
    #[error("table {table} is not in the snapshot; it has: {known}")]
    NoSuchTable { table: String, known: String },
    #[error("{schema}.{table} exists already: name another `--schema`, or drop it")]
    TableExists { schema: String, table: String },
    #[error("{table}: {found} rows arrived, the snapshot has {wanted}")]
    RowCount { table: String, found: u64, wanted: u64 },
    #[error("interrupted; drop the half-filled database and begin again")]
    Interrupted,
}
