//! `restante diff`

use clap::Args;

use super::context::Context;
use super::exit::Exit;
use super::output::{inert, table};
use super::units;
use crate::compare::diff::tables;
use crate::repository::snapshots::{self, SnapshotReader};

/// Show what changed between two snapshots, table by table
///
/// Counts rows without opening them, so the writer key is enough. An updated row counts as removed and added.
#[derive(Args)]
pub struct Diff {
    /// The older one: id prefix, latest, latest:tag=…, or @TIME
    before: String,
    /// The newer one
    #[arg(default_value = "latest")]
    after: String,
    /// Also tables without a change
    #[arg(long)]
    all: bool,
}

impl Diff {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let repository = context.open_to_look().await?;
        let all = context.snapshots(&repository).await?;
        let (before, after) = (snapshots::select(&all, &self.before)?, snapshots::select(&all, &self.after)?);
        if before.manifest.store != after.manifest.store {
            context.monitor().warn("the two snapshots are of different stores");
        }
        let (older, newer) =
            (SnapshotReader::open(&repository, before).await?, SnapshotReader::open(&repository, after).await?);
        let diffs = tables(&older, &newer).await?;
        context.progress.finish();
        let mut lines = table(&["table", "before", "after", "removed", "added", ""], &[1, 2, 3, 4]);
        let count = |number: Option<u64>| number.map(units::count).unwrap_or_default();
        let mut same = 0;
        for diff in &diffs {
            context.output.json("table_compared", diff)?;
            if diff.is_same() && !self.all {
                same += 1;
                continue;
            }
            lines.add_row([
                inert(&diff.table.replace('\n', "\\n")),
                count(diff.rows_before),
                count(diff.rows_after),
                count(diff.removed),
                count(diff.added),
                diff.note.unwrap_or_default().to_owned(),
            ]);
        }
        let taken = |one: &snapshots::Snapshot| format!("{} ({})", one.short(), units::time(one.manifest.taken));
        context.output.line(format!("{} → {}", taken(before), taken(after)));
        if !lines.is_empty() {
            context.output.table(&lines);
        }
        if same > 0 {
            context.output.line(format!("{same} tables are the same"));
        }
        Ok(Exit::Done)
    }
}
