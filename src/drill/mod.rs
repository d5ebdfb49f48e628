//! A drill: the whole snapshot restored into a PostgreSQL of its own, or into an empty database that is given, and what is there then compared with
//! what the snapshot says, table by table, row by row. Its time is the recovery time; [`crate::repository::drills`] keeps it.
//!
//! The comparison shares nothing with the restore: it reads the restored tables as a snapshot reads a store, and computes the keyed digest of every
//! row anew ([`crate::repository::rows`]). Uses `restore`, `postgres` and `repository`.

pub mod compare;
pub mod scratch;

use std::path::PathBuf;
use std::time::Instant;

use jiff::Timestamp;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use crate::monitor::SharedMonitor;
use crate::postgres::PostgresError;
use crate::postgres::dsn::{Dsn, DsnError};
use crate::postgres::session::{Session, SessionOptions};
use crate::repository::RepositoryError;
use crate::repository::drills::Drill;
use crate::repository::snapshots::SnapshotReader;
use crate::restore::{RestoreError, full};

use scratch::Scratch;

#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DrillError {
    #[error(transparent)]
    Restore(#[from] RestoreError),
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error(transparent)]
    Dsn(#[from] DsnError),
    #[error(
        "no PostgreSQL {wanted} or newer is installed here: install it, say with `--pg-bin` where its programs are, or give an empty database with `--into`"
    )]
    NoServer { wanted: u32 },
    #[error("the scratch server could not be {doing}: {message}")]
    Scratch { doing: &'static str, message: String },
    #[error("the command of `--check` could not be started: {0}")]
    Check(std::io::Error),
    #[error(
        "the database has the encoding {found}, the snapshot {wanted}: make one with it (`createdb -T template0 -E {wanted}`)"
    )]
    Encoding { found: String, wanted: String },
}

/// Where to restore.
#[derive(Debug, Clone)]
pub enum Target {
    /// A server of its own, made for the drill.
    Scratch {
        /// Where `initdb`, `postgres` and `pg_restore` are; `None`: they are looked for.
        bin: Option<PathBuf>,
        /// Where its data are put meanwhile.
        folder: PathBuf,
    },
    /// An empty database, and the `pg_restore` to use.
    Database { dsn: Box<Dsn>, pg_restore: PathBuf },
}

#[derive(Debug, Clone)]
pub struct DrillOptions {
    pub target: Target,
    /// A shell command that looks at the restored database (`PG*` variables lead to it). It runs before the comparison, so
    /// what it changes is found.
    pub check: Option<String>,
    pub cancel: CancellationToken,
}

/// Restores and compares. A difference is in the report; an error means that the drill could not be held.
pub async fn drill(
    reader: &SnapshotReader,
    options: &DrillOptions,
    monitor: &SharedMonitor,
) -> Result<Drill, DrillError> {
    let manifest = reader.manifest();
    let began = Timestamp::now();
    let (scratch, dsn, pg_restore) = match &options.target {
        Target::Database { dsn, pg_restore } => (None, (**dsn).clone(), pg_restore.clone()),
        Target::Scratch { bin, folder } => {
            let bin = scratch::programs(bin.as_deref(), manifest.server.version_num / 10_000)?;
            let scratch = Scratch::start(&bin, folder, &manifest.server.encoding).await?;
            let dsn = scratch.dsn()?;
            (Some(scratch), dsn, bin.join("pg_restore"))
        }
    };
    let started = Instant::now();
    let full = full::FullOptions { pg_restore, owners: false, cancel: options.cancel.clone() };
    let restored = full::restore(reader, &dsn, &full, monitor).await?;
    let recovery_seconds = started.elapsed().as_secs_f64();
    let mut differences = restored.problems;
    differences
        .extend(manifest.not_covered.iter().map(|one| format!("not in the snapshot: {}, {}", one.object, one.reason)));
    let mut check_seconds = None;
    if let Some(command) = &options.check {
        let started = Instant::now();
        differences.extend(check(command, &dsn).await?);
        check_seconds = Some(started.elapsed().as_secs_f64());
    }
    let started = Instant::now();
    let compared = compare::compare(reader, &dsn, &options.cancel, monitor).await?;
    differences.extend(compared.differences);
    let held = Drill {
        version: 1,
        snapshot: reader.snapshot.id,
        taken: manifest.taken,
        began,
        server: compared.server / 10_000,
        tables: compared.tables,
        rows: compared.rows,
        value_bytes: manifest.totals.value_bytes,
        sequences: compared.sequences,
        constraints: compared.constraints,
        indexes: compared.indexes,
        recovery_seconds,
        compare_seconds: started.elapsed().as_secs_f64(),
        check_seconds,
        differences,
    };
    if let Some(scratch) = scratch {
        scratch.stop().await;
    }
    Ok(held)
}

/// Runs the user's command; what it says against the restored database.
async fn check(command: &str, dsn: &Dsn) -> Result<Option<String>, DrillError> {
    let session = Session::connect(dsn, SessionOptions::default()).await?;
    let mut shell = Command::new("/bin/sh");
    shell.arg("-c").arg(command).envs(dsn.variables(session.endpoint())).env("PGDATABASE", &dsn.database);
    // Standard output is for results.
    shell.stdin(std::process::Stdio::null()).stdout(std::io::stderr()).kill_on_drop(true);
    let status = shell.status().await.map_err(DrillError::Check)?;
    Ok((!status.success()).then(|| format!("the command of `--check` ended with {status}")))
}
