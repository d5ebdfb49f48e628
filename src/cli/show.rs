//! `restante show`

use clap::Args;

use super::context::Context;
use super::exit::Exit;
use super::output::{inert, table};
use super::{snapshots, units};

/// Show one snapshot: tables, rows, what is not covered
#[derive(Args)]
pub struct Show {
    /// Id prefix, latest, latest:tag=…, or @TIME
    #[arg(default_value = "latest")]
    snapshot: String,
}

impl Show {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let repository = context.open_to_look().await?;
        let snapshot = context.snapshot(&repository, &self.snapshot).await?;
        let manifest = &*snapshot.manifest;
        let output = &context.output;
        output.json("snapshot_shown", &serde_json::json!({ "snapshot": snapshot.id, "manifest": manifest }))?;
        let server = &manifest.server;
        output.line(format!("snapshot   {}", snapshot.id));
        output.line(format!("state      {}", snapshots::state(&snapshot)));
        output.line(format!("taken      {} of {}", units::time(manifest.taken), manifest.store.database));
        output.line(format!("server     PostgreSQL {}, {}", server.version_num / 10_000, server.encoding));
        let open = server.in_progress.iter().map(u64::to_string).collect::<Vec<_>>().join(",");
        output.line(format!("sees       {}:{}:{open} (pg_current_snapshot)", server.xmin, server.xmax));
        output.line(format!("number     {}", manifest.sequence));
        if !manifest.tags.is_empty() {
            output.line(format!("tags       {}", manifest.tags.join(" ")));
        }
        for missing in &manifest.not_covered {
            output.line(format!("not covered  {}: {}", missing.object, missing.reason));
        }
        for why in &manifest.suspect {
            output.line(format!("suspect    {why}"));
        }
        let mut lines = table(&["table", "rows", "size", "segments"], &[1, 2, 3]);
        for entry in &manifest.tables {
            lines.add_row([
                inert(&entry.label()),
                units::count(entry.rows),
                units::bytes(entry.value_bytes),
                entry.segments.to_string(),
            ]);
        }
        output.table(&lines);
        Ok(Exit::Done)
    }
}
