//! `restante guard run`, and what is told of a change that ended.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::{For, Opened, Place, Saying, Taking, findings};
use crate::cli::comparing::Live;
use crate::cli::context::Context;
use crate::cli::exit::Exit;
use crate::cli::output::{inert, table};
use crate::cli::snapshot::Take;
use crate::cli::units;
use crate::guard::change::{Change, May};
use crate::guard::comparison::TableVerdict;
use crate::guard::{GuardError, Outcome, run};

/// Run a change: snapshot, applications out, server stopped and fenced, commands, comparison
///
/// Exit code 4: refused, nothing was touched. 3: done, and the comparison found something. Anything else but 0: see `guard status`.
#[derive(Args)]
pub struct Run {
    /// The change (TOML)
    change: PathBuf,
    #[command(flatten)]
    saying: Saying,
    #[command(flatten)]
    place: Place,
    #[command(flatten, next_help_heading = "Snapshots before and after")]
    take: Take,
}

impl Run {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        if context.global.dry_run {
            return Err(crate::cli::exit::UsageError("`guard plan` shows what would be done".into()).into());
        }
        let opened = Opened::new(context, &self.place, For::Writing).await?;
        let (guard, change) = (opened.guard(context), Change::read(&self.change)?);
        let snapshots = Taking { context, repository: opened.opened.as_ref(), take: &self.take };
        let _hangup = hangups(context);
        match run::run(&guard, &change, &self.saying.given(context), &snapshots).await {
            Ok(outcome) => report(context, &outcome).await,
            Err(error) => {
                if let Some(state) = opened.folder.load()? {
                    context.output.note(format!(
                        "{} stands at: {}; see `restante guard status`",
                        state.canonical.change.id, state.step
                    ));
                }
                if let GuardError::Refused(reasons) = &error {
                    context.output.json("guard_refused", &json!({ "reasons": reasons }))?;
                }
                Err(error.into())
            }
        }
    }
}

/// A terminal that goes away interrupts like Ctrl-C, unless nohup said that it does not matter.
pub fn hangups(context: &Context) -> Option<tokio::task::JoinHandle<()>> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    if ignored & 1 != 0 {
        return None;
    }
    let mut hangup = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()).ok()?;
    let cancel = context.cancel.clone();
    Some(tokio::spawn(async move {
        hangup.recv().await;
        cancel.cancel();
    }))
}

/// Tells how a change ended, and for each finding what to run.
pub async fn report(context: &Context, outcome: &Outcome) -> anyhow::Result<Exit> {
    let has_findings = outcome.comparison.as_ref().is_some_and(|comparison| comparison.findings().next().is_some());
    let live = if has_findings { Live::open(context, None, &[]).await.ok() } else { None };
    let (mail, others) = findings::split(outcome, live.as_ref());
    let commands = findings::commands(context, outcome, live.as_ref(), &mail, &others);
    context.progress.finish();
    let mut value = serde_json::to_value(outcome)?;
    if let Some(object) = value.as_object_mut() {
        object.insert("commands".into(), json!(commands));
    }
    context.output.json("guard_ended", &value)?;
    let out = &context.output;
    let Some(comparison) = &outcome.comparison else {
        let why = if outcome.commands_begun { "not compared" } else { "nothing was run" };
        out.line(format!("{} ended: {why}", outcome.id));
        return Ok(if outcome.commands_begun { Exit::Findings } else { Exit::Done });
    };
    let mut lines = table(&["table", "declared", "before", "after", "lost or changed", "new", ""], &[2, 3, 4, 5]);
    let count = |number: Option<u64>| number.map(units::count).unwrap_or_default();
    let mut same = 0;
    for one in &comparison.tables {
        let TableVerdict { table, declared, rows_before, rows_after, removed, added, finding, note, .. } = one;
        if finding.is_none() && note.is_none() && *declared == May::None && *added == Some(0) {
            same += 1;
            continue;
        }
        let declared = match declared {
            May::None => "",
            May::Schema => "schema",
            May::Rows => "rows",
        };
        let said = finding.as_ref().map(|why| format!("FINDING: {why}")).or_else(|| note.clone()).unwrap_or_default();
        lines.add_row([
            inert(table),
            declared.to_owned(),
            count(*rows_before),
            count(*rows_after),
            count(*removed),
            count(*added),
            inert(&said),
        ]);
    }
    if !lines.is_empty() {
        out.table(&lines);
    }
    if same > 0 {
        out.line(format!("{same} tables are the same"));
    }
    let found = comparison.findings().count();
    if found == 0 {
        out.line(format!(
            "{} ended after {:.0} s; compared with the snapshot: no finding",
            outcome.id, outcome.seconds
        ));
        return Ok(Exit::Done);
    }
    out.line("");
    out.line(format!("{found} tables are not what they should be. The snapshot of before the change is held."));
    if !comparison.with_identity {
        out.line("Which columns changed, and by mailbox and hour what is lost, only a reader's identity tells (-i FILE): `restante gap` shows it.");
    } else if let (Some(live), false) = (&live, mail.is_empty()) {
        out.line("");
        if let Err(e) = findings::gap(context, outcome, live).await {
            context.monitor().warn(&format!("what is lost by mailbox and hour cannot be told: {e:#}"));
        }
        context.progress.finish();
    }
    out.line("To see and to put back:");
    for command in &commands {
        out.line(format!("  {command}"));
    }
    Ok(Exit::Findings)
}
