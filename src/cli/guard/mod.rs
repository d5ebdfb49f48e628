//! `restante guard`

mod approve;
mod check;
mod findings;
mod log;
mod policy;
mod release;
mod run;
mod show;
mod status;

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::context::Context;
use super::exit::Exit;
use super::output::Output;
use super::snapshot::Take;
use crate::guard::check::Given;
use crate::guard::state::{Folder, Step};
use crate::guard::{Guard, GuardError, Snapshots};
use crate::postgres::dsn::Dsn;
use crate::repository::Repository;
use crate::repository::snapshots::Snapshot;

/// Run changes of the database that were approved, never without a certified snapshot
///
/// The procedure is on one page: docs/guard.md.
#[derive(Subcommand)]
pub enum Guarded {
    /// Put the policy in force that all changes must keep to; without signatures, print what is to be signed
    Policy(policy::Policy),
    /// Show what a change would do, and the text that its approvers sign
    Plan(check::Plan),
    /// Approve a change: check a signature over it and keep it in the repository
    Approve(approve::Approve),
    /// May the change run now? Exit code 0, or 4 and every reason why not
    Check(check::Check),
    /// Run a change: snapshot, applications out, server stopped and fenced, commands, comparison
    Run(run::Run),
    /// Where the change that was begun last stands
    Status(status::Status),
    /// List what was approved and done
    Log(log::Log),
    /// Go on with a change that was killed, interrupted or failed
    Release(release::Release),
}

impl Guarded {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        match self {
            Self::Policy(command) => command.run(context).await,
            Self::Plan(command) => command.run(context).await,
            Self::Approve(command) => command.run(context).await,
            Self::Check(command) => command.run(context).await,
            Self::Run(command) => command.run(context).await,
            Self::Status(command) => command.run(context),
            Self::Log(command) => command.run(context).await,
            Self::Release(command) => command.run(context).await,
        }
    }
}

/// Where the guard keeps the state of a change.
#[derive(Args)]
pub struct Place {
    /// Folder for the state of a change, copies of its scripts and what they said [default: KEY.guard beside the writer key]
    #[arg(long, env = "RESTANTE_GUARD", value_name = "FOLDER")]
    guard_folder: Option<PathBuf>,
}

impl Place {
    fn folder(&self, context: &Context) -> anyhow::Result<Folder> {
        let beside_key = || {
            let mut path = context.key_path().unwrap_or_else(|| "restante".into()).into_os_string();
            path.push(".guard");
            PathBuf::from(path)
        };
        Ok(Folder::at(&self.guard_folder.clone().unwrap_or_else(beside_key))?)
    }
}

/// What whoever runs a change says about it.
#[derive(Args)]
pub struct Saying {
    /// A supervisor that you paused yourself, as `guard check` names it; may be repeated
    #[arg(long, value_name = "NAME")]
    supervisor_paused: Vec<String>,
    /// Waive signatures and change windows, if the policy allows it at all, for this reason; it is logged. Never the snapshot, supervisors or the fence
    #[arg(long, value_name = "REASON", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    break_glass: Option<String>,
}

impl Saying {
    fn given(&self, context: &Context) -> Given {
        if let Some(reason) = &self.break_glass {
            context.monitor().warn(&format!("BREAK GLASS: signatures and windows are waived ({reason})"));
        }
        Given { paused: self.supervisor_paused.clone(), break_glass: self.break_glass.clone() }
    }
}

/// For what the repository is opened.
#[derive(Clone, Copy, PartialEq, Eq)]
enum For {
    Looking,
    Writing,
    /// Where it cannot be opened, that is told, and the work goes on as far as it can.
    Release,
}

/// Everything open for the guard.
struct Opened {
    opened: Option<Repository>,
    reader: Option<Repository>,
    dsn: Dsn,
    folder: Folder,
    tell: Box<dyn Fn(Step)>,
}

impl Opened {
    async fn new(context: &Context, place: &Place, what: For) -> anyhow::Result<Self> {
        let opened = match what {
            For::Looking => Some(context.open_to_look().await?),
            For::Writing => Some(context.open_as_writer().await?),
            For::Release => match context.open_as_writer().await {
                Ok(repository) => Some(repository),
                Err(e) => {
                    context.monitor().warn(&format!("{e:#}"));
                    None
                }
            },
        };
        let reads = what != For::Looking && opened.is_some() && !context.identities().is_empty();
        let reader = if reads { Some(context.open_as_reader().await?) } else { None };
        let output: Output = context.output.clone();
        let tell = move |step: Step| {
            let words = if step == Step::Commands { "running the commands".to_owned() } else { step.to_string() };
            output.note(format!("guard: {words}"));
            let _ = output.json("guard_step", &serde_json::json!({ "step": step }));
        };
        Ok(Self { opened, reader, dsn: context.dsn()?, folder: place.folder(context)?, tell: Box::new(tell) })
    }

    fn repository(&self) -> anyhow::Result<&Repository> {
        Ok(self.opened.as_ref().ok_or(GuardError::NoRepository)?)
    }

    fn guard<'a>(&'a self, context: &Context) -> Guard<'a> {
        Guard {
            repository: self.opened.as_ref(),
            reader: self.reader.as_ref(),
            dsn: &self.dsn,
            folder: self.folder.clone(),
            monitor: context.monitor(),
            cancel: context.cancel.clone(),
            tell: &*self.tell,
        }
    }
}

/// Takes snapshots as `restante snapshot` does.
struct Taking<'a> {
    context: &'a Context,
    repository: Option<&'a Repository>,
    take: &'a Take,
}

impl Snapshots for Taking<'_> {
    async fn take(
        &self,
        tags: Vec<String>,
        accept_loss: bool,
    ) -> Result<Snapshot, Box<dyn std::error::Error + Send + Sync>> {
        let repository = self.repository.ok_or(GuardError::NoRepository)?;
        let taken = self.take.take(self.context, repository, tags, accept_loss).await;
        self.context.progress.finish();
        Ok(taken?)
    }
}
