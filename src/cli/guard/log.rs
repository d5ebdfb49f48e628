//! `restante guard log`

use clap::Args;

use super::{For, Opened, Place};
use crate::cli::context::Context;
use crate::cli::exit::Exit;
use crate::cli::units;
use crate::guard::log::{self, Memory};

/// List what was approved and done
///
/// Exit code 3: entries are missing or were replaced.
#[derive(Args)]
pub struct Log {
    /// Only of this change
    id: Option<String>,
    #[command(flatten)]
    place: Place,
}

impl Log {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let opened = Opened::new(context, &self.place, For::Looking).await?;
        let log = log::Log::load(opened.repository()?).await?;
        for signed in &log.entries {
            let entry = &signed.entry;
            if self.id.is_some() && self.id != entry.id {
                continue;
            }
            context.output.json("guard_log", signed)?;
            let event = serde_json::to_value(entry.event)?;
            let event = event.as_str().unwrap_or_default();
            let id = entry.id.as_deref().unwrap_or("-");
            context.output.line(format!("{}  {:9} {:16} {}", units::time(entry.at), event, id, entry.by));
            for note in &entry.notes {
                context.output.line(format!("    {note}"));
            }
        }
        let mut problems = log.problems.clone();
        if let Err(e) = Memory::of(&opened.folder.path).check(&log) {
            problems.push(e.to_string());
        }
        for problem in &problems {
            context.monitor().warn(problem);
        }
        Ok(if problems.is_empty() { Exit::Done } else { Exit::Findings })
    }
}
