//! `restante restore`

use std::path::PathBuf;

use clap::Args;

use super::context::{self, Context};
use super::exit::{Exit, UsageError};
use super::units;
use super::window::{self, WindowArgs};
use crate::repository::manifest::Table;
use crate::repository::snapshots::{Snapshot, SnapshotReader};
use crate::restore::{RestoreError, full, rescue};

/// Put lost mail back into the live store; or a whole snapshot, or a table, into a database
#[derive(Args)]
pub struct Restore {
    /// Id prefix, latest, latest:tag=…, or @TIME; for lost mail the fullest if left out. Several with `--union`
    snapshot: Vec<String>,
    #[command(flatten)]
    window: WindowArgs,
    /// Everything, into an empty database
    #[arg(long, conflicts_with = "table", requires = "into")]
    full: bool,
    /// One table (schema.table), into a schema of its own
    #[arg(long, value_name = "TABLE", requires = "into")]
    table: Option<String>,
    /// The database to restore into
    #[arg(long, value_name = "DSN")]
    into: Option<String>,
    /// Schema for `--table`
    #[arg(long, value_name = "SCHEMA", default_value = "rescue")]
    schema: String,
    /// With `--full`: give objects to their owners, who must exist
    #[arg(long)]
    owners: bool,
    /// The pg_restore to make the schema with
    #[arg(long, value_name = "PROGRAM", default_value = "pg_restore")]
    pg_restore: PathBuf,
}

impl Restore {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let Some(into) = &self.into else {
            return window::restore(&self.window, context, &self.snapshot).await;
        };
        let [wanted] = &self.snapshot[..] else {
            return Err(UsageError("say which snapshot to restore, and one alone".into()).into());
        };
        let dsn = context::dsn(into)?;
        let repository = context.open_as_reader().await?;
        let snapshot = context.snapshot(&repository, wanted).await?;
        let reader = SnapshotReader::open(&repository, &snapshot).await?;
        match &self.table {
            Some(table) => self.rescue(context, &snapshot, &reader, &dsn, table).await,
            None if self.full => self.full(context, &snapshot, &reader, &dsn).await,
            None => Err(UsageError("say `--full` or `--table T`".into()).into()),
        }
    }

    async fn full(
        &self,
        context: &Context,
        snapshot: &Snapshot,
        reader: &SnapshotReader,
        dsn: &crate::postgres::dsn::Dsn,
    ) -> anyhow::Result<Exit> {
        let totals = &snapshot.manifest.totals;
        if context.global.dry_run {
            let (rows, size) = (units::count(totals.rows), units::bytes(totals.value_bytes));
            context.output.line(format!("would restore {rows} rows ({size}) of {} tables into {dsn}", totals.tables));
            return Ok(Exit::Done);
        }
        let options = full::FullOptions {
            pg_restore: self.pg_restore.clone(),
            owners: self.owners,
            cancel: context.cancel.clone(),
        };
        let report = full::restore(reader, dsn, &options, &context.monitor()).await?;
        context.progress.finish();
        context.output.json("restored_full", &report)?;
        for problem in &report.problems {
            context.output.line(format!("NOT MADE  {problem}"));
        }
        let checked = if report.problems.is_empty() { "every constraint was checked" } else { "see what was not made" };
        context.output.line(format!(
            "restored {} rows of {} tables and {} sequences from {}; {checked}",
            units::count(report.rows),
            report.tables,
            report.sequences,
            snapshot.short()
        ));
        if !self.owners {
            context
                .output
                .note("owners and privileges (GRANT) were left out: `--owners` brings them, where the roles are there");
        }
        Ok(if report.problems.is_empty() { Exit::Done } else { Exit::Findings })
    }

    async fn rescue(
        &self,
        context: &Context,
        snapshot: &Snapshot,
        reader: &SnapshotReader,
        dsn: &crate::postgres::dsn::Dsn,
        wanted: &str,
    ) -> anyhow::Result<Exit> {
        let table = find_table(snapshot, wanted)?;
        if context.global.dry_run {
            let rows = units::count(table.rows);
            context.output.line(format!("would restore {rows} rows into {}.{} of {dsn}", self.schema, table.name));
            return Ok(Exit::Done);
        }
        let report = rescue::rescue(reader, table, dsn, &self.schema, &context.monitor(), &context.cancel).await?;
        context.progress.finish();
        context.output.json("restored_table", &report)?;
        for other in &report.substituted {
            let text = format!("column {} is {}: the database has no {}", other.column, other.used, other.wanted);
            context.output.line(text);
        }
        context.output.line(format!("restored {} rows into {}", units::count(report.rows), report.table));
        Ok(Exit::Done)
    }
}

/// `schema.table`, or the table alone where no other schema has one of that name. Names may hold dots themselves.
pub fn find_table<'a>(snapshot: &'a Snapshot, wanted: &str) -> Result<&'a Table, RestoreError> {
    let tables = &snapshot.manifest.tables;
    let mut named = tables.iter().filter(|table| table.name == wanted);
    let only = named.next().filter(|_| named.next().is_none());
    tables.iter().find(|table| table.label() == wanted).or(only).ok_or_else(|| {
        let known: Vec<String> = tables.iter().map(Table::label).take(20).collect();
        RestoreError::NoSuchTable { table: wanted.to_owned(), known: known.join(", ") }
    })
}
