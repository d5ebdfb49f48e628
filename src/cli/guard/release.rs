//! `restante guard release`

use clap::Args;

use super::{For, Opened, Place, Taking, run};
use crate::cli::context::Context;
use crate::cli::exit::Exit;
use crate::cli::snapshot::Take;
use crate::guard;

/// Go on with a change that was killed, interrupted or failed
///
/// Before its commands everything is put back as it was; after them the fence is taken away, the server started, and what it did compared. In
/// between it goes on only when you say that the data are as they shall be.
#[derive(Args)]
pub struct Release {
    /// The data are as they shall be: you finished the change by hand, or went back
    #[arg(long)]
    half_done: bool,
    /// You went back, and the server is the one of before: where a change says with [after] that its commands make another one
    #[arg(long, conflicts_with = "half_done")]
    went_back: bool,
    /// Let applications in though the comparison cannot be made
    #[arg(long)]
    without_comparison: bool,
    /// End what the commands left running
    #[arg(long)]
    end_commands: bool,
    #[command(flatten)]
    place: Place,
    #[command(flatten, next_help_heading = "Snapshot after")]
    take: Take,
}

impl Release {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let opened = Opened::new(context, &self.place, For::Release).await?;
        let guard = opened.guard(context);
        let snapshots = Taking { context, repository: opened.opened.as_ref(), take: &self.take };
        let _hangup = run::hangups(context);
        let release = guard::Release {
            half_done: self.half_done,
            went_back: self.went_back,
            without_comparison: self.without_comparison,
            end_commands: self.end_commands,
        };
        let outcome = guard::release(&guard, release, &snapshots).await?;
        run::report(context, &outcome).await
    }
}
