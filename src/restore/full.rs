//! A whole snapshot into an empty database: the schema by `pg_restore` from the archive in the snapshot, the rows by COPY,
//! sequences, then keys, indexes and triggers, which check the rows.

use std::path::PathBuf;
use std::process::Stdio;

use serde::Serialize;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

use super::RestoreError;
use super::load::load_table;
use crate::monitor::{SharedMonitor, Unit};
use crate::postgres::PostgresError;
use crate::postgres::catalog::{Catalog, TableKind, TableName};
use crate::postgres::dsn::Dsn;
use crate::postgres::session::{Session, SessionOptions};
use crate::postgres::sql;
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
    /// What could not be made, in the server's words: a foreign key to a table that was left out, for one.
    pub problems: Vec<String>,
}

/// Restores everything. The database must be empty; afterwards it holds the very rows of the snapshot, and every
/// constraint was checked by the server. Rows that do not arrive are an error; what stands around them is told in the report.
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
    let catalog = reader.catalog().await?;

    let mut report = FullReport::default();
    pg_restore(dsn, &session, options, "pre-data", &archive, manifest.complete, &mut report).await?;
    monitor.stage("rows", Unit::Rows, Some(manifest.totals.rows));
    for table in &manifest.tables {
        let name = TableName { schema: table.schema.clone(), name: table.name.clone() };
        let described = catalog.table(&table.schema, &table.name);
        if described.is_some_and(|table| table.extension.is_some()) {
            let clear = format!("DELETE FROM ONLY {}", name.quoted());
            session.execute("removing the rows that an extension brings", &clear).await?;
        }
        let generated: Vec<String> = described
            .into_iter()
            .flat_map(|table| table.live_columns())
            .filter(|column| column.generated.is_some())
            .map(|column| column.name.clone())
            .collect();
        match load_table(&session, reader, table, &name, &generated, monitor, &options.cancel).await {
            Ok(rows) => report.rows += rows,
            // Why the table is not there is the better answer.
            Err(RestoreError::Postgres(_)) if !report.problems.is_empty() => {
                let message = report.problems.join("; ");
                return Err(RestoreError::PgRestore { section: "pre-data", message });
            }
            Err(e) => return Err(e),
        }
        report.tables += 1;
    }
    for sequence in &catalog.sequences {
        if let Some(value) = &sequence.value {
            let name = sql::literal(&sequence.name.quoted());
            let set = format!("SELECT setval({name}::regclass, {}, {})", value.last_value, value.is_called);
            match session.execute(&format!("setting the sequence {}", sequence.name), &set).await {
                Ok(()) => report.sequences += 1,
                // It went with the table that owns it, which the snapshot does not cover.
                Err(e) if !manifest.complete => report.problems.push(e.to_string()),
                Err(e) => return Err(e.into()),
            }
        }
    }
    pg_restore(dsn, &session, options, "post-data", &archive, false, &mut report).await?;
    refresh(&session, &catalog, &mut report).await;
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
    strict: bool,
    report: &mut FullReport,
) -> Result<(), RestoreError> {
    let fail = |message: String| RestoreError::PgRestore { section, message };
    let mut command = Command::new(&options.pg_restore);
    command.args(["--no-password", "--format=custom"]).arg(format!("--section={section}"));
    // Ctrl-C is ours to pass on.
    command.process_group(0);
    command.arg(format!("--dbname={}", dsn.database));
    if !options.owners {
        command.args(["--no-owner", "--no-privileges"]);
    }
    let mut child = command
        .envs(dsn.variables(session.endpoint()))
        // What it says is read below.
        .env("LC_ALL", "C")
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
    let output = tokio::select! {
        output = child.wait_with_output() => output.map_err(|e| fail(e.to_string()))?,
        () = options.cancel.cancelled() => return Err(RestoreError::Interrupted),
    };
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr);
    let went_on = message.contains("errors ignored on restore");
    // From 17 on it begins with `SET transaction_timeout = 0`, also for a server that does not know such a limit.
    let knows_limit = session.version() >= 170_000;
    let mut errors: Vec<&str> = message
        .lines()
        .filter_map(|line| line.strip_prefix("pg_restore: error: "))
        .filter(|error| knows_limit || !error.contains("transaction_timeout"))
        .collect();
    if went_on && errors.is_empty() {
        return Ok(());
    }
    if strict || !went_on {
        errors.truncate(4);
        let shown = if errors.is_empty() { message.trim().to_owned() } else { errors.join("; ") };
        return Err(fail(shown));
    }
    report.problems.extend(errors.into_iter().map(str::to_owned));
    Ok(())
}

/// Views that build on others come after them: as long as a round refreshes some, another is worth it.
async fn refresh(session: &Session, catalog: &Catalog, report: &mut FullReport) {
    let mut waiting: Vec<_> = catalog.tables.iter().filter(|t| t.kind == TableKind::MaterializedView).collect();
    loop {
        let (mut later, mut failures, before) = (Vec::new(), Vec::new(), waiting.len());
        for view in waiting {
            let refresh = format!("REFRESH MATERIALIZED VIEW {}", view.name.quoted());
            match session.execute(&format!("refreshing {}", view.name), &refresh).await {
                Ok(()) => report.materialized_views += 1,
                Err(e) => {
                    failures.push(e.to_string());
                    later.push(view);
                }
            }
        }
        if later.is_empty() || later.len() == before {
            report.problems.extend(failures);
            return;
        }
        waiting = later;
    }
}
