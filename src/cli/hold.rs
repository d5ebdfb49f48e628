//! `restante hold`

use clap::Args;
use serde_json::json;

use super::context::Context;
use super::exit::Exit;
use crate::repository::{forgotten, snapshots};

/// Keep snapshots from being forgotten
#[derive(Args)]
pub struct Hold {
    /// Id prefix, latest, latest:tag=…, or @TIME
    #[arg(required = true)]
    snapshot: Vec<String>,
    /// Let them be forgotten again
    #[arg(long)]
    release: bool,
}

impl Hold {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let repository = context.open_as_writer().await?;
        let all = context.snapshots(&repository).await?;
        let wanted =
            self.snapshot.iter().map(|wanted| snapshots::select(&all, wanted)).collect::<Result<Vec<_>, _>>()?;
        let (dry_run, held) = (context.global.dry_run, !self.release);
        let verb = if held { "hold" } else { "release" };
        for snapshot in wanted {
            match (dry_run, held) {
                (true, _) => {}
                (false, true) => forgotten::hold(&repository, &snapshot.id).await?,
                (false, false) => forgotten::release(&repository, &snapshot.id).await?,
            }
            context.output.json("held", &json!({ "snapshot": snapshot.id, "held": held, "dry_run": dry_run }))?;
            let would = if dry_run { "would " } else { "" };
            context.output.line(format!("{would}{verb} {}", snapshot.short()));
        }
        Ok(Exit::Done)
    }
}
