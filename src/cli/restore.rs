//! `restante restore`

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::Args;

use super::context::{self, Context};
use super::exit::{Exit, UsageError};
use super::live::{Choice, DoubtfulChoice, Sides};
use super::units;
use crate::repository::Repository;
use crate::repository::snapshots::{Snapshot, SnapshotReader};
use crate::restore::{Apply, ApplyOptions, Plan, ReplayReport, RestoreError, full, rescue};

/// Put lost mail back into live mailboxes; or a whole snapshot, or a table of it, into a database
///
/// Without --full and --table the snapshot is held against the live store (`-d`), and every message that is lost is put back
/// once, under fresh UIDs, with its flags and its time. Run it again after an interruption: it goes on where it stopped.
#[derive(Args)]
pub struct Restore {
    /// Id prefix, latest, latest:tag=…, or @TIME; without one, the fullest snapshot
    snapshot: Option<String>,
    #[command(flatten)]
    choice: Choice,
    /// Mail of which nobody can tell whether its user removed it
    #[arg(long, value_enum, default_value = "restore", value_name = "HOW")]
    doubtful: DoubtfulChoice,
    /// Put mail of deleted mailboxes into Recovered/<mailbox>
    #[arg(long)]
    orphans: bool,
    /// Everything, into an empty database
    #[arg(long, conflicts_with = "table", requires = "into")]
    full: bool,
    /// One table (schema.table), into a schema of its own
    #[arg(long, value_name = "TABLE", requires = "into")]
    table: Option<String>,
    /// The database for `--full` and `--table`
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
        let repository = context.open_as_reader().await?;
        if let Some(into) = &self.into {
            let Some(wanted) = &self.snapshot else {
                return Err(UsageError("name the snapshot, or `latest`".into()).into());
            };
            let dsn = context::dsn(into)?;
            let snapshot = context.snapshot(&repository, wanted).await?;
            let reader = SnapshotReader::open(&repository, &snapshot).await?;
            return match &self.table {
                Some(table) => self.rescue(context, &snapshot, &reader, &dsn, table).await,
                None if self.full => self.full(context, &snapshot, &reader, &dsn).await,
                None => Err(UsageError("`--into` goes with `--full` or `--table T`".into()).into()),
            };
        }
        self.replay(context, &repository).await
    }

    async fn replay(&self, context: &Context, repository: &Repository) -> anyhow::Result<Exit> {
        let output = &context.output;
        let snapshot = context.snapshot(repository, self.snapshot.as_deref().unwrap_or("latest")).await?;
        let sides = Sides::open(context, &self.choice, repository, &snapshot).await?;
        let plan = Plan::new(sides.compare(&self.choice).await?, &self.choice.plan(self.doubtful, self.orphans));
        context.progress.finish();
        output.line(format!(
            "{} {} messages into {} mailboxes from snapshot {}",
            if context.global.dry_run { "would put back" } else { "to put back:" },
            units::count(plan.moves.len() as u64),
            plan.moves.iter().map(|one| one.mailbox).collect::<BTreeSet<_>>().len(),
            snapshot.short()
        ));
        let decided = decided(&plan);
        for (class, reason, messages) in &decided {
            output.line(format!("  {messages:>8}  {class}: {reason}"));
        }
        let incomplete = plan.comparison.incomplete.messages.len();
        if plan.repair && incomplete > 0 {
            output.line(format!("{incomplete} living messages miss parts, which are put back under them"));
        }
        if plan.outside > 0 {
            output
                .line(format!("{} lost messages lie outside the chosen window, accounts and mailboxes", plan.outside));
        }
        if plan.left_out > 0 {
            output.line(format!("{} are left out: doubtful, or of deleted mailboxes", plan.left_out));
        }
        if context.global.dry_run {
            let found = plan.outside > 0 || plan.left_out > 0;
            output.json(
                "plan",
                &serde_json::json!({ "snapshot": snapshot.id, "messages": plan.moves.len(),
                "incomplete": incomplete, "outside": plan.outside, "left_out": plan.left_out }),
            )?;
            return Ok(if found { Exit::Findings } else { Exit::Done });
        }
        if plan.is_empty() {
            output.json("replayed", &ReplayReport::default())?;
            output.line("there is nothing to do");
            return Ok(Exit::Done);
        }
        if !context.confirm("Write into the live store?")? {
            return Ok(Exit::Refused);
        }
        let monitor = context.monitor();
        let apply = Apply::new(plan, ApplyOptions::default());
        let report = apply.run(&sides.session, &sides.source, &sides.profile, &*monitor).await?;
        context.progress.finish();
        output.json("replayed", &report)?;
        output.line(format!(
            "put back {} messages; {} mailboxes and {} accounts were made again; {} living messages are whole again",
            units::count(report.mail.restored),
            report.mailboxes,
            report.owners,
            report.repaired_messages
        ));
        if let Some(replay) = &report.replay {
            output.line(format!("undo with: restante undo {replay}"));
        }
        for statement in &report.by_hand {
            output.line(format!("to be run by hand: {statement}"));
        }
        Ok(if report.has_findings() { Exit::Findings } else { Exit::Done })
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
        context.output.line(format!(
            "restored {} rows of {} tables and {} sequences from {}; every constraint was checked",
            units::count(report.rows),
            report.tables,
            report.sequences,
            snapshot.short()
        ));
        Ok(Exit::Done)
    }

    async fn rescue(
        &self,
        context: &Context,
        snapshot: &Snapshot,
        reader: &SnapshotReader,
        dsn: &crate::postgres::dsn::Dsn,
        wanted: &str,
    ) -> anyhow::Result<Exit> {
        let (schema, name) = wanted.split_once('.').unwrap_or(("public", wanted));
        let table = snapshot.manifest.table(schema, name).ok_or_else(|| {
            let known: Vec<String> = snapshot.manifest.tables.iter().map(|t| t.label()).take(20).collect();
            RestoreError::NoSuchTable { table: wanted.to_owned(), known: known.join(", ") }
        })?;
        if context.global.dry_run {
            let rows = units::count(table.rows);
            context.output.line(format!("would restore {rows} rows into {}.{name} of {dsn}", self.schema));
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

/// How many messages of the snapshot that are not where they were got which class, and what decided.
fn decided(plan: &Plan) -> Vec<(String, String, u64)> {
    let mut counts = BTreeMap::new();
    for leftover in &plan.comparison.leftovers {
        *counts.entry((leftover.class, leftover.reason)).or_insert(0) += 1;
    }
    let word = |value: serde_json::Result<serde_json::Value>| match value {
        Ok(serde_json::Value::String(word)) => word,
        Ok(other) => other.to_string().replace(['{', '}', '"'], "").replace(':', " by "),
        Err(_) => String::new(),
    };
    counts
        .into_iter()
        .map(|((class, reason), messages)| {
            (word(serde_json::to_value(class)), word(serde_json::to_value(reason)), messages)
        })
        .collect()
}
