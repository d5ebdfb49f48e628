//! A whole snapshot into an empty database: the schema by `pg_restore` from the archive in the snapshot, the rows by COPY,
//! sequences, then keys, indexes and triggers, which check the rows.

use std::path::PathBuf;
use std::process::Stdio;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::RestoreError;
use super::load::{load_table, use_encoding};
use crate::monitor::{SharedMonitor, Unit};
use crate::postgres::PostgresError;
use crate::postgres::catalog::{Catalog, TableKind, TableName};
use crate::postgres::dsn::Dsn;
use crate::postgres::session::{Session, SessionOptions};
use crate::postgres::sql;
use crate::repository::cbor;
use crate::repository::snapshots::SnapshotReader;

#[derive(Debug, Clone)]
pub struct FullOptions {
    pub pg_restore: PathBuf,
    /// Give objects to their owners and roles their privileges; the roles must exist.
    pub owners: bool,
    pub cancel: CancellationToken,
}

#[derive(Debug, Default, Serialize)]
pub struct FullReport {
    pub tables: u64,
    pub rows: u64,
    pub sequences: u64,
    pub materialized_views: u64,
}

/// Restores everything. The database must be empty; afterwards it holds the very rows of the snapshot, and every
/// constraint was checked by the server.
pub async fn restore(
    reader: &SnapshotReader,
    dsn: &Dsn,
    options: &FullOptions,
    monitor: &SharedMonitor,
) -> Result<FullReport, RestoreError> {
    let manifest = reader.manifest();
    if manifest.schema.dump.is_empty() {
        let reason = "pg_dump was missing or older than the server".to_owned();
        return Err(RestoreError::NoSchema { reason });
    }
    let session = Session::connect(dsn, SessionOptions::default()).await?;
    refuse_unless_empty(&session, dsn).await?;
    let archive = reader.chunks.fetch_joined(&manifest.schema.dump).await?;
    let catalog: Catalog = cbor::decode("catalog", &reader.chunks.fetch_joined(&manifest.schema.catalog).await?)
        .map_err(crate::repository::RepositoryError::from)?;

    let mut report = FullReport::default();
    pg_restore(dsn, &session, options, "pre-data", &archive).await?;
    use_encoding(&session, &manifest.server.encoding).await?;
    monitor.stage("rows", Unit::Rows, Some(manifest.totals.rows));
    for table in &manifest.tables {
        let name = TableName { schema: table.schema.clone(), name: table.name.clone() };
        let described = catalog.table(&table.schema, &table.name);
        let generated: Vec<String> = described
            .into_iter()
            .flat_map(|table| table.live_columns())
            .filter(|column| column.generated.is_some())
            .map(|column| column.name.clone())
            .collect();
        report.rows += load_table(&session, reader, table, &name, &generated, monitor, &options.cancel).await?;
        report.tables += 1;
    }
    session.execute("setting the encoding", "SET client_encoding = 'UTF8'").await?;
    for sequence in &catalog.sequences {
        if let Some(value) = &sequence.value {
            let name = sql::literal(&sequence.name.quoted());
            let set = format!("SELECT setval({name}::regclass, {}, {})", value.last_value, value.is_called);
            session.execute("setting a sequence", &set).await?;
            report.sequences += 1;
        }
    }
    pg_restore(dsn, &session, options, "post-data", &archive).await?;
    report.materialized_views = refresh(&session, &catalog).await?;
    Ok(report)
}

async fn refuse_unless_empty(session: &Session, dsn: &Dsn) -> Result<(), RestoreError> {
    let query = "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
                 WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND n.nspname NOT IN ('pg_catalog', 'information_schema') \
                 AND n.nspname !~ '^pg_(toast|temp)' LIMIT 1";
    let doing = "looking whether the database is empty".to_owned();
    let found =
        session.client().query_opt(query, &[]).await.map_err(|source| PostgresError::Server { doing, source })?;
    match found {
        None => Ok(()),
        Some(row) => Err(RestoreError::NotEmpty { database: dsn.database.clone(), found: row.get(0) }),
    }
}

async fn pg_restore(
    dsn: &Dsn,
    session: &Session,
    options: &FullOptions,
    section: &'static str,
    archive: &[u8],
) -> Result<(), RestoreError> {
    let fail = |message: String| RestoreError::PgRestore { section, message };
    let mut command = Command::new(&options.pg_restore);
    command.args(["--exit-on-error", "--no-password", "--format=custom"]).arg(format!("--section={section}"));
    command.arg(format!("--dbname={}", dsn.database));
    if !options.owners {
        command.args(["--no-owner", "--no-privileges"]);
    }
    let mut child = command
        .envs(dsn.variables(session.endpoint()))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|e| fail(format!("{} could not be started: {e}", options.pg_restore.display())))?;
    if let Some(mut input) = child.stdin.take() {
        // A program that ended early tells why below.
        let _ = input.write_all(archive).await;
    }
    let output = child.wait_with_output().await.map_err(|e| fail(e.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    Err(fail(message.lines().take(4).collect::<Vec<_>>().join("; ")))
}

/// Views that build on others come after them: as long as a round refreshes some, another is worth it.
async fn refresh(session: &Session, catalog: &Catalog) -> Result<u64, RestoreError> {
    let mut waiting: Vec<_> = catalog.tables.iter().filter(|t| t.kind == TableKind::MaterializedView).collect();
    let mut done = 0;
    while !waiting.is_empty() {
        let (mut later, mut failure) = (Vec::new(), None);
        let before = waiting.len();
        for view in waiting {
            let refresh = format!("REFRESH MATERIALIZED VIEW {}", view.name.quoted());
            match session.execute("refreshing a materialized view", &refresh).await {
                Ok(()) => done += 1,
                Err(e) => {
                    failure = Some(e);
                    later.push(view);
                }
            }
        }
        match failure {
            Some(e) if later.len() == before => return Err(e.into()),
            _ => waiting = later,
        }
    }
    Ok(done)
}
