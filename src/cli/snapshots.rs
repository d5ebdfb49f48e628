//! `restante snapshots`

use clap::Args;
use serde::Serialize;

use super::context::Context;
use super::exit::Exit;
use super::output::table;
use super::units;
use crate::repository::forgotten;
use crate::repository::snapshots::Snapshot;

/// List snapshots
#[derive(Args)]
pub struct List {
    /// Also those that have no certificate: never read back in full, or the certificate was lost
    #[arg(long)]
    uncertified: bool,
    /// Only those that are forgotten and not yet removed
    #[arg(long)]
    forgotten: bool,
    /// Only snapshots with this tag
    #[arg(short, long, value_name = "TAG")]
    tag: Option<String>,
}

#[derive(Serialize)]
struct Line<'a> {
    snapshot: String,
    taken: jiff::Timestamp,
    stored: jiff::Timestamp,
    database: &'a str,
    sequence: u64,
    rows: u64,
    value_bytes: u64,
    stored_bytes: u64,
    certified: bool,
    complete: bool,
    suspect: bool,
    held: bool,
    /// Forgotten: from when on it may be removed.
    removable: Option<jiff::Timestamp>,
    tags: &'a [String],
}

impl List {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let repository = context.open_to_look().await?;
        let all = context.all_snapshots(&repository).await?;
        let held = forgotten::held(&*repository.storage).await?;
        let wanted = |s: &&Snapshot| {
            s.removable.is_some() == self.forgotten
                && (self.uncertified || self.forgotten || s.certificate.is_some())
                && self.tag.as_ref().is_none_or(|tag| s.manifest.tags.contains(tag))
        };
        let mut lines =
            table(&["snapshot", "taken", "database", "rows", "size", "stored", "state", "tags"], &[3, 4, 5]);
        let mut shown = 0;
        for snapshot in all.iter().filter(wanted) {
            let manifest = &*snapshot.manifest;
            shown += 1;
            context.output.json(
                "snapshot_listed",
                &Line {
                    snapshot: snapshot.id.to_string(),
                    taken: manifest.taken,
                    stored: snapshot.stored,
                    database: &manifest.store.database,
                    sequence: manifest.sequence,
                    rows: manifest.totals.rows,
                    value_bytes: manifest.totals.value_bytes,
                    stored_bytes: manifest.totals.stored_bytes,
                    certified: snapshot.certificate.is_some(),
                    complete: manifest.complete,
                    suspect: !manifest.suspect.is_empty(),
                    held: held.contains(&snapshot.id),
                    removable: snapshot.removable,
                    tags: &manifest.tags,
                },
            )?;
            lines.add_row([
                snapshot.short(),
                units::time(manifest.taken),
                super::output::inert(&manifest.store.database),
                units::count(manifest.totals.rows),
                units::bytes(manifest.totals.value_bytes),
                units::bytes(manifest.totals.stored_bytes),
                described(snapshot, held.contains(&snapshot.id)),
                super::output::inert(&manifest.tags.join(" ")),
            ]);
        }
        if shown == 0 {
            context.output.note("no snapshots");
        } else {
            context.output.table(&lines);
        }
        Ok(Exit::Done)
    }
}

/// With what was decided about it.
fn described(snapshot: &Snapshot, held: bool) -> String {
    let held = if held { ", held" } else { "" };
    let removable = snapshot.removable.map(|at| format!(", forgotten, removable from {}", units::time(at)));
    format!("{}{held}{}", state(snapshot), removable.unwrap_or_default())
}

/// In words: what a person should know before relying on it.
pub fn state(snapshot: &Snapshot) -> String {
    let manifest = &*snapshot.manifest;
    let mut words = Vec::new();
    if snapshot.certificate.is_none() {
        words.push("not certified");
    }
    if !manifest.complete {
        words.push("incomplete");
    }
    if !manifest.suspect.is_empty() {
        words.push("suspect");
    }
    if words.is_empty() { "good".to_owned() } else { words.join(", ") }
}
