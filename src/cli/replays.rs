//! `restante replays` and `restante undo`

use clap::Args;

use super::context::Context;
use super::exit::Exit;
use super::live::{Choice, Sides};
use super::output::{inert, table};
use super::units;
use crate::postgres::session::{Session, SessionOptions};
use crate::repository::snapshots;
use crate::restore::journal;
use crate::restore::undo::{UndoOptions, undo};

/// List what was put back into the live store, and by which replay
#[derive(Args)]
pub struct Replays {}

impl Replays {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let session = Session::connect(&context.dsn()?, SessionOptions::default()).await?;
        let mut lines = table(&["replay", "begun", "ended", "snapshot", "in place", "undone"], &[4, 5]);
        let replays = journal::replays(&session).await?;
        for replay in &replays {
            context.output.json("replay", replay)?;
            lines.add_row([
                inert(&replay.id),
                inert(&replay.begun),
                inert(replay.ended.as_deref().unwrap_or("cut short: run the restore again")),
                inert(&replay.snapshot.chars().take(12).collect::<String>()),
                units::count(replay.restored.unsigned_abs()),
                units::count(replay.undone.unsigned_abs()),
            ]);
        }
        if replays.is_empty() {
            context.output.note("nothing was ever put back into this store");
        } else {
            context.output.table(&lines);
        }
        Ok(Exit::Done)
    }
}

/// Take a replay back
///
/// Restored mail is expunged as the store itself does it, but only where nobody has touched it since. Accounts, mailboxes and
/// shared parts stay. What was undone can be restored again.
#[derive(Args)]
pub struct Undo {
    /// As `restante replays` lists it
    replay: String,
    /// What the tables mean: the name of a built-in profile, or a file
    #[arg(short, long, env = "RESTANTE_PROFILE", value_name = "PROFILE")]
    profile: Option<String>,
    /// Only this account; may be repeated
    #[arg(long, value_name = "NAME")]
    account: Vec<String>,
    /// Only this mailbox; may be repeated
    #[arg(long, value_name = "NAME")]
    mailbox: Vec<String>,
}

impl Undo {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let choice = Choice {
            profile: self.profile,
            from: None,
            to: None,
            account: self.account,
            mailbox: self.mailbox,
            damaged_at: None,
        };
        let repository = context.open_as_reader().await?;
        let session = Session::connect(&context.dsn()?, SessionOptions::default()).await?;
        let replays = journal::replays(&session).await?;
        let Some(replay) = replays.iter().find(|replay| replay.id == self.replay) else {
            return Err(crate::restore::ReplayError::NoSuchReplay { replay: self.replay }.into());
        };
        let all = context.snapshots(&repository).await?;
        let snapshot = snapshots::select(&all, &replay.snapshot)?.clone();
        let sides = Sides::open(context, &choice, &repository, &snapshot).await?;
        if context.global.dry_run {
            let text = format!("would take back up to {} messages of {}", replay.restored, replay.id);
            context.output.line(text);
            return Ok(Exit::Done);
        }
        if !context.confirm(&format!("Take back {} restored messages?", replay.restored))? {
            return Ok(Exit::Refused);
        }
        let layout = sides.compare(&choice).await?.layout;
        let options =
            UndoOptions { replay: self.replay, accounts: choice.account.clone(), mailboxes: choice.mailbox.clone() };
        let report = undo(&sides.session, &layout, &options).await?;
        context.output.json("undone", &report)?;
        context.output.line(format!(
            "took back {}; {} stay because somebody touched them since, {} were gone already",
            units::count(report.undone),
            units::count(report.touched),
            units::count(report.gone)
        ));
        Ok(if report.touched > 0 { Exit::Findings } else { Exit::Done })
    }
}
