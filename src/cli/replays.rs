//! `restante replays` and `restante undo`

use clap::Args;

use super::comparing::Live;
use super::context::Context;
use super::exit::Exit;
use super::output::table;
use super::units;
use crate::compare::layout::layout_of_live;
use crate::postgres::session::{Session, SessionOptions};
use crate::restore::undo::{UndoOptions, undo};
use crate::restore::{apply, journal};

/// List the replays that put mail back into the store
#[derive(Args)]
pub struct Replays {}

impl Replays {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let session = Session::connect(&context.dsn()?, SessionOptions::default()).await?;
        let replays = journal::replays(&session).await?;
        let mut lines = table(&["replay", "begun", "snapshot", "restored", "undone", "state"], &[3, 4]);
        for replay in &replays {
            context.output.json("replay", replay)?;
            lines.add_row([
                replay.id.clone(),
                replay.begun.clone(),
                replay.snapshot.chars().take(12).collect(),
                units::count(replay.restored.unsigned_abs()),
                units::count(replay.undone.unsigned_abs()),
                if replay.ended.is_some() { "done".to_owned() } else { "cut short: run the restore again".to_owned() },
            ]);
        }
        if replays.is_empty() {
            context.output.note("no replays");
        } else {
            context.output.table(&lines);
        }
        Ok(Exit::Done)
    }
}

/// Take back what a replay restored, where nobody touched it since
#[derive(Args)]
pub struct Undo {
    /// As `restante replays` lists it
    replay: String,
    /// Built-in profile or a TOML file; found out if left out
    #[arg(long, value_name = "NAME|FILE")]
    profile: Option<String>,
    /// What has another name than the profile says, TABLE=NEW or TABLE.COLUMN=NEW; may be repeated
    #[arg(long, value_name = "OLD=NEW")]
    renamed: Vec<String>,
    /// Only this account; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    account: Vec<String>,
    /// Only mailboxes of this name; may be repeated
    #[arg(long, value_name = "NAME")]
    mailbox: Vec<String>,
    /// Messages in one transaction
    #[arg(long, default_value_t = 200, value_name = "N")]
    batch: usize,
}

impl Undo {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let live = Live::open(context, self.profile.as_deref(), &self.renamed).await?;
        let layout = layout_of_live(&live.profile, &live.catalog)?;
        if context.global.dry_run {
            let replays = journal::replays(&live.session).await?;
            let found = replays.iter().find(|replay| replay.id == self.replay);
            let found = found.ok_or_else(|| apply::no_such_replay(&self.replay))?;
            context.output.line(format!("would take back up to {} messages", found.restored));
            return Ok(Exit::Done);
        }
        context.confirm(&format!("take back what replay {} restored?", self.replay))?;
        let options = UndoOptions {
            replay: self.replay,
            accounts: self.account,
            mailboxes: self.mailbox,
            batch_messages: self.batch,
        };
        let report = undo(&live.session, &layout, &options).await?;
        context.output.json("undone", &report)?;
        context.output.line(format!("{} messages taken back", units::count(report.undone)));
        if report.columns > 0 {
            let columns = units::count(report.columns);
            context.output.line(format!("{columns} living messages have the former values of their columns again"));
        }
        if report.touched > 0 {
            context
                .output
                .line(format!("{} were read, flagged or changed since: they stay", units::count(report.touched)));
        }
        if report.gone > 0 {
            context.output.line(format!("{} were gone already", units::count(report.gone)));
        }
        Ok(if report.touched > 0 { Exit::Findings } else { Exit::Done })
    }
}
