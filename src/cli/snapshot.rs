//! `restante snapshot`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use jiff::Timestamp;
use serde::Serialize;

use super::context::{Context, heads_path};
use super::exit::{Exit, UsageError};
use super::heads::Heads;
use super::units;
use crate::postgres::PostgresError;
use crate::postgres::reading::ReadingOptions;
use crate::repository::Repository;
use crate::repository::manifest::{NotCovered, ReadWhole};
use crate::repository::snapshots::Snapshot;
use crate::snapshot::{SEGMENT_BYTES, SnapshotError, SnapshotOptions, TablePattern, take};

/// Take a snapshot of the whole store
///
/// Every table is read at one instant. The snapshot counts as made when all of it was fetched back, opened and certified.
#[derive(Args)]
pub struct Take {
    /// A word to find the snapshot by, as pre-change:CHG-1042; may be repeated
    #[arg(short, long, value_name = "TAG")]
    tag: Vec<String>,
    /// Leave a table out: table, schema.table or schema.prefix*; may be repeated
    #[arg(long, value_name = "TABLE")]
    exclude: Vec<String>,
    /// Readers side by side, each with a connection and a thread [default: one a core, at most 4]
    #[arg(short, long, value_name = "N")]
    jobs: Option<usize>,
    /// Memory for buffers [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    memory: Option<String>,
    /// Read at most so much in a second, all readers together, as 20MB
    #[arg(long, value_name = "SIZE")]
    rate_limit: Option<String>,
    /// Give way when somebody waits behind the snapshot's locks for so many seconds; 0 never
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    yield_after: u64,
    /// Give up when the snapshot is so many seconds old: VACUUM is held back as long; 0 never
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    max_snapshot_age: u64,
    /// How often to begin again after giving way or a lost connection
    #[arg(long, value_name = "N", default_value_t = 3)]
    retries: usize,
    /// Rows that may vanish from a table before the snapshot is called suspect
    #[arg(long, value_name = "PERCENT", default_value_t = 20, value_parser = clap::value_parser!(u8).range(0..=100))]
    suspect_percent: u8,
    /// What is gone since the last good snapshot was removed on purpose: do not call this one suspect
    #[arg(long)]
    accept_loss: bool,
    /// The storage lost snapshots that this writer made, and they do not come back: go on with what is there
    #[arg(long)]
    storage_lost: bool,
    /// Make none where not a row, column or sequence changed since the last one. (That one stays as old as it is: see verify --newest-within.)
    #[arg(long, conflicts_with = "full")]
    skip_if_unchanged: bool,
    /// Read every row, even those that an earlier snapshot has
    #[arg(long)]
    full: bool,
    /// Where no marker can be left (a standby, no right to): nobody set the server back to an earlier state since the last snapshot
    #[arg(long)]
    trust_history: bool,
    /// Write finished work down so often, for the next run should this one be cut short
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    checkpoint_every: u64,
    /// The pg_dump to save the schema with
    #[arg(long, value_name = "PROGRAM")]
    pg_dump: Option<PathBuf>,
}

#[derive(Serialize)]
struct Taken<'a> {
    snapshot: String,
    taken: jiff::Timestamp,
    sequence: u64,
    complete: bool,
    suspect: &'a [String],
    not_covered: &'a [NotCovered],
    tables: u64,
    rows: u64,
    value_bytes: u64,
    read_rows: u64,
    read_bytes: u64,
    read_whole: &'a [ReadWhole],
    stored_bytes: u64,
    new_chunks: u64,
    new_packs: u64,
    seconds: f64,
    /// Nothing changed, and none was made: it is the last one.
    unchanged: bool,
}

impl Take {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let repository = context.open_as_writer().await?;
        if context.global.dry_run {
            self.options(context)?;
            let dsn = context.dsn()?;
            context.output.line(format!("would take a snapshot of {dsn} into {}", repository.storage.address()));
            return Ok(Exit::Done);
        }
        let began = Timestamp::now();
        let snapshot = self.take(context, &repository, Vec::new(), false).await?;
        context.progress.finish();
        report(context, &snapshot, snapshot.manifest.finished < began)
    }

    /// Takes it, again where that is worth while, and remembers it beside the key.
    pub async fn take(
        &self,
        context: &Context,
        repository: &Repository,
        tags: Vec<String>,
        accept_loss: bool,
    ) -> anyhow::Result<Snapshot> {
        let mut options = self.options(context)?;
        options.tags.extend(tags);
        options.accept_loss |= accept_loss;
        let dsn = context.dsn()?;
        let heads = Heads::load(&heads_path(&context.key_path().unwrap_or_default()))?;
        options.heads = if self.storage_lost { Vec::new() } else { heads.heads.clone() };
        let monitor = context.monitor();
        let mut attempt = 0;
        let snapshot = loop {
            attempt += 1;
            match take(repository, &dsn, &options, &monitor).await {
                // A server that was never reached is rather a mistake in the connection string.
                Err(SnapshotError::Postgres(e))
                    if e.is_retryable()
                        && attempt <= self.retries
                        && !(attempt == 1 && matches!(e, PostgresError::Unreachable { .. }))
                        && !context.cancel.is_cancelled() =>
                {
                    monitor.warn(&format!("{e}; beginning again (what is stored is not stored twice)"));
                    tokio::time::sleep(Duration::from_secs(2)).await;
                }
                other => break other?,
            }
        };
        heads.record(&snapshot.manifest.store, snapshot.manifest.sequence)?;
        Ok(snapshot)
    }

    fn options(&self, context: &Context) -> anyhow::Result<SnapshotOptions> {
        let config = &context.config;
        let memory = self.memory.as_deref().or(config.memory.as_deref()).unwrap_or("256MiB");
        let memory = units::parse_size(memory).map_err(|e| UsageError(format!("--memory: {e}")))?;
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let jobs = self.jobs.or(config.jobs).unwrap_or(cores.min(4));
        if jobs == 0 {
            return Err(UsageError("--jobs: at least 1".into()).into());
        }
        let rate_limit = self.rate_limit.as_deref().map(units::parse_size).transpose();
        let rate_limit = rate_limit.map_err(|e| UsageError(format!("--rate-limit: {e}")))?;
        if rate_limit == Some(0) {
            return Err(UsageError("--rate-limit: at least one byte a second".into()).into());
        }
        let exclude = self.exclude.iter().chain(&config.exclude);
        let exclude = exclude.map(|text| text.parse::<TablePattern>()).collect::<Result<_, _>>();
        let seconds = |n: u64| (n > 0).then(|| Duration::from_secs(n));
        Ok(SnapshotOptions {
            jobs,
            memory: memory as usize,
            segment_bytes: SEGMENT_BYTES,
            tags: self.tag.iter().chain(&config.tags).cloned().collect(),
            exclude: exclude.map_err(|e| UsageError(format!("--exclude: {e}")))?,
            reading: ReadingOptions {
                yield_after: seconds(self.yield_after),
                max_snapshot_age: seconds(self.max_snapshot_age),
                cancel: context.cancel.clone(),
                ..Default::default()
            },
            pg_dump: self.pg_dump.clone().or_else(|| config.pg_dump.clone()).unwrap_or_else(|| "pg_dump".into()),
            heads: Vec::new(),
            suspect_percent: self.suspect_percent,
            accept_loss: self.accept_loss,
            skip_if_unchanged: self.skip_if_unchanged,
            full: self.full,
            trust_history: self.trust_history,
            rate_limit,
            checkpoint_every: Duration::from_secs(self.checkpoint_every),
        })
    }
}

/// `unchanged`: it is an earlier one.
fn report(context: &Context, snapshot: &Snapshot, unchanged: bool) -> anyhow::Result<Exit> {
    let manifest = &*snapshot.manifest;
    let seconds = manifest.finished.duration_since(manifest.started).as_secs_f64();
    let totals = &manifest.totals;
    let output = &context.output;
    output.json(
        "snapshot",
        &Taken {
            snapshot: snapshot.id.to_string(),
            taken: manifest.taken,
            sequence: manifest.sequence,
            complete: manifest.complete,
            suspect: &manifest.suspect,
            not_covered: &manifest.not_covered,
            tables: totals.tables,
            rows: totals.rows,
            value_bytes: totals.value_bytes,
            read_rows: totals.read_rows,
            read_bytes: totals.read_bytes,
            read_whole: &manifest.read_whole,
            stored_bytes: totals.stored_bytes,
            new_chunks: totals.new_chunks,
            new_packs: totals.new_packs,
            seconds,
            unchanged,
        },
    )?;
    if unchanged {
        output.line(format!("nothing changed since snapshot {} of {}", snapshot.short(), units::time(manifest.taken)));
        return Ok(if manifest.complete && manifest.suspect.is_empty() { Exit::Done } else { Exit::Findings });
    }
    output.line(format!(
        "snapshot {}  {} rows of {} tables; {} rows with {} read, {} stored, {seconds:.1} s, read back and certified",
        snapshot.short(),
        units::count(totals.rows),
        totals.tables,
        units::count(totals.read_rows),
        units::bytes(totals.read_bytes),
        units::bytes(totals.stored_bytes),
    ));
    for ReadWhole { table, reason } in &manifest.read_whole {
        output.line(format!("read whole  {}: {reason}", table.as_deref().unwrap_or("every table")));
    }
    for missing in &manifest.not_covered {
        output.line(format!("NOT COVERED  {}: {}", missing.object, missing.reason));
    }
    for why in &manifest.suspect {
        output.line(format!("SUSPECT  {why}"));
    }
    Ok(if manifest.complete && manifest.suspect.is_empty() { Exit::Done } else { Exit::Findings })
}
