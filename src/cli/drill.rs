//! `restante drill`

use std::path::PathBuf;

use clap::Args;

use super::context::{self, Context};
use super::exit::{Exit, UsageError};
use super::output::table;
use super::units;
use crate::drill::{DrillOptions, Target, drill};
use crate::repository::drills;
use crate::repository::snapshots::SnapshotReader;

/// Restore a snapshot aside and prove that it is what was there
///
/// The schema and all rows go into a PostgreSQL that is made for it and removed afterwards, every constraint is checked, and each table is compared with the
/// snapshot row by row. The recovery time is written down where a verifier's key is given too. A difference is a finding (exit code 3).
#[derive(Args)]
pub struct Drill {
    /// Id prefix, latest, latest:tag=…, or @TIME
    #[arg(default_value = "latest")]
    snapshot: String,
    /// An empty database to restore into, instead of a PostgreSQL of its own; it is left as it is then
    #[arg(long, value_name = "DSN")]
    into: Option<String>,
    /// Where initdb, postgres and pg_restore are [default: of the snapshot's version, or the next newer one that is installed]
    #[arg(long, value_name = "FOLDER")]
    pg_bin: Option<PathBuf>,
    /// Where the PostgreSQL of its own has its files: as much room as the store needs
    #[arg(long, value_name = "FOLDER")]
    scratch: Option<PathBuf>,
    /// A shell command that looks at the restored database; PG* variables lead to it
    #[arg(long, value_name = "COMMAND")]
    check: Option<String>,
    /// Show the drills that were held
    #[arg(long, conflicts_with_all = ["into", "pg_bin", "scratch", "check"])]
    history: bool,
}

impl Drill {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        if self.history {
            return show(context).await;
        }
        let repository = context.open_as_reader().await?;
        let snapshot = context.snapshot(&repository, &self.snapshot).await?;
        let target = match &self.into {
            Some(into) => {
                let pg_restore = self.pg_bin.as_ref().map_or_else(|| "pg_restore".into(), |bin| bin.join("pg_restore"));
                Target::Database { dsn: Box::new(context::dsn(into)?), pg_restore }
            }
            None => {
                let folder = self.scratch.clone().unwrap_or_else(std::env::temp_dir);
                if !folder.is_dir() {
                    return Err(UsageError(format!("--scratch: {} is not a folder", folder.display())).into());
                }
                Target::Scratch { bin: self.pg_bin.clone(), folder }
            }
        };
        let totals = &snapshot.manifest.totals;
        if context.global.dry_run {
            let (rows, size) = (units::count(totals.rows), units::bytes(totals.value_bytes));
            context.output.line(format!("would restore {rows} rows ({size}) of {} and compare them", snapshot.short()));
            return Ok(Exit::Done);
        }
        let log = match context.key_path() {
            Some(_) => Some(context.open_to_check().await?),
            None => None,
        };
        let reader = SnapshotReader::open(&repository, &snapshot).await?;
        let options = DrillOptions { target, check: self.check.clone(), cancel: context.cancel.clone() };
        let report = drill(&reader, &options, &context.monitor()).await?;
        context.progress.finish();
        let metrics = &context.metrics;
        metrics.set("drill_recovery_seconds", "How long the last drill took to restore", &[], report.recovery_seconds);
        metrics.set("drill_differences", "What the last drill found", &[], report.differences.len() as f64);
        metrics.at("drill_snapshot_timestamp_seconds", "When its snapshot was taken", &[], report.taken);
        tell(context, &report)?;
        match log {
            Some(log) => drills::write(&log, &report).await?,
            None => context.output.note("not written down: that needs a verifier's key too (`--key`)"),
        }
        Ok(if report.is_proven() { Exit::Done } else { Exit::Findings })
    }
}

fn tell(context: &Context, report: &drills::Drill) -> anyhow::Result<()> {
    let output = &context.output;
    output.json("drilled", report)?;
    for difference in &report.differences {
        output.line(format!("DIFFERENT  {difference}"));
    }
    output.line(format!(
        "{} tables with {} rows, {} sequences, {} constraints, {} indexes compared with snapshot {}",
        report.tables,
        units::count(report.rows),
        report.sequences,
        report.constraints,
        report.indexes,
        &report.snapshot.to_hex()[..12],
    ));
    output.line(format!(
        "restored in {:.1} s ({}/s), compared in {:.1} s: {}",
        report.recovery_seconds,
        units::bytes((report.value_bytes as f64 / report.recovery_seconds.max(0.001)) as u64),
        report.compare_seconds,
        if report.is_proven() { "the same".to_owned() } else { format!("{} differences", report.differences.len()) }
    ));
    Ok(())
}

async fn show(context: &Context) -> anyhow::Result<Exit> {
    let repository = context.open_to_look().await?;
    let (reports, problems) = drills::list(&repository).await?;
    for problem in &problems {
        context.monitor().warn(&format!("a drill is left out: {problem}"));
    }
    let columns = ["held", "snapshot", "taken", "rows", "size", "server", "restored in", ""];
    let mut lines = table(&columns, &[3, 4, 5, 6]);
    for report in &reports {
        context.output.json("drill_listed", report)?;
        lines.add_row([
            units::time(report.began),
            report.snapshot.to_hex()[..12].to_owned(),
            units::time(report.taken),
            units::count(report.rows),
            units::bytes(report.value_bytes),
            report.server.to_string(),
            format!("{:.1} s", report.recovery_seconds),
            if report.is_proven() {
                "the same".to_owned()
            } else {
                format!("{} differences", report.differences.len())
            },
        ]);
    }
    if reports.is_empty() {
        context.output.line("no drill was written down");
    } else {
        context.output.table(&lines);
    }
    Ok(Exit::Done)
}
