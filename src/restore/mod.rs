//! Repository → live store. A whole snapshot into an empty database ([`full`]), one table beside the live ones ([`rescue`]);
//! both need no profile, so they work on the day of the incident whatever the store is.

pub mod full;
mod load;
pub mod rescue;

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
