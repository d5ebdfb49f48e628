//! `restante restore` into the live store: the lost mail, or that of a window.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::again;
use super::comparing::{Comparing, Live};
use super::context::Context;
use super::exit::Exit;
use super::gap;
use super::units;
use crate::compare::report::GapReport;
use crate::restore::{Apply, ApplyOptions, Doubtful, Plan, PlanOptions, ReplayReport};

#[derive(Args, Debug, Clone)]
pub struct WindowArgs {
    #[command(flatten)]
    pub comparing: Comparing,
    /// Only this account; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub account: Vec<String>,
    /// Only mailboxes of this name; may be repeated
    #[arg(long, value_name = "NAME")]
    pub mailbox: Vec<String>,
    /// What to do with mail of which nobody can tell who removed it
    #[arg(long, value_enum, default_value = "restore", value_name = "WHAT")]
    pub doubtful: DoubtfulArg,
    /// Put lost mail of deleted mailboxes into Recovered/<mailbox>
    #[arg(long)]
    pub orphans: bool,
    /// Leave living messages as they are that miss parts
    #[arg(long)]
    pub leave_incomplete: bool,
    /// Messages in one transaction
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub batch: usize,
    /// Also write the report as one HTML file
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
}

#[derive(ValueEnum, Debug, Clone, Copy, PartialEq, Eq)]
pub enum DoubtfulArg {
    Restore,
    SideFolder,
    Skip,
}

impl From<DoubtfulArg> for Doubtful {
    fn from(arg: DoubtfulArg) -> Self {
        match arg {
            DoubtfulArg::Restore => Self::Restore,
            DoubtfulArg::SideFolder => Self::SideFolder,
            DoubtfulArg::Skip => Self::Skip,
        }
    }
}

pub async fn restore(args: &WindowArgs, context: &Context, wanted: Option<&str>) -> anyhow::Result<Exit> {
    let live = Live::open(context, args.comparing.profile.as_deref()).await?;
    let chosen = args.comparing.choose(context, &live, wanted).await?;
    let comparison = args.comparing.compare(&live, &chosen, args.comparing.window()).await?;
    let gap = GapReport::new(&comparison);
    let plan = Plan::new(
        comparison,
        &PlanOptions {
            window: args.comparing.window(),
            accounts: args.account.clone(),
            mailboxes: args.mailbox.clone(),
            doubtful: args.doubtful.into(),
            orphans: args.orphans,
            leave_incomplete: args.leave_incomplete,
        },
    );
    context.progress.finish();
    let summary = plan.summary();
    context.output.json("plan", &summary)?;
    if context.global.dry_run || !context.output.is_json() {
        gap::show(context, &gap, &chosen.snapshot.short(), None);
        context.output.line("");
    }
    context.output.line(format!(
        "{} messages to put back, {} living ones to complete, {} accounts and {} mailboxes to make, counters of {} mailboxes to raise",
        units::count(summary.messages),
        units::count(summary.incomplete),
        summary.accounts,
        summary.mailboxes,
        summary.counters
    ));
    for trigger in &gap.triggers {
        context.output.line(format!("trigger {} on {} will fire ({})", trigger.name, trigger.table, trigger.function));
    }
    if summary.outside > 0 {
        context.output.line(format!(
            "{} lost messages lie outside the window, or in other mailboxes: they are not put back",
            units::count(summary.outside)
        ));
    }
    if context.global.dry_run {
        let left = summary.outside + summary.place_taken;
        return Ok(if left > 0 { Exit::Findings } else { Exit::Done });
    }
    let derives = live.profile.derived.iter().any(|derived| derived.sql.is_some());
    if !plan.is_empty() || derives {
        context.confirm("put them back into the live store?")?;
    }
    let options = ApplyOptions { batch_messages: args.batch, ..Default::default() };
    let apply = Apply::new(plan, options);
    let report = apply.run(&live.session, &chosen.source, &live.profile, &*context.monitor()).await?;
    context.progress.finish();
    context.output.json("replayed", &report)?;
    show(context, &report);
    write_html(args, &gap, Some(&report))?;
    Ok(if report.has_findings() { Exit::Findings } else { Exit::Done })
}

fn show(context: &Context, report: &ReplayReport) {
    let out = &context.output;
    let mail = &report.mail;
    for replay in &report.finished {
        out.line(format!("replay {replay} had been cut short: it is finished"));
    }
    match report.replay {
        None => out.line("nothing to do"),
        Some(_) => out.line(format!("{} messages put back and read again", units::count(mail.restored))),
    }
    for (amount, what) in [
        (report.repaired_messages as u64, "living messages completed"),
        (mail.arrived_meanwhile, "had arrived again meanwhile"),
        (mail.by_another, "were put back by another replay first"),
        (mail.no_mailbox, "have no mailbox any more: run `restante gap` again"),
        (mail.place_taken, "stay out: another mail has what only one can have (its place is taken)"),
        (report.left_out, "are doubtful or orphans and were left out"),
        (report.counters.mailboxes, "mailboxes had their counters raised"),
        (report.counters.uidvalidity, "mailboxes have a new UIDVALIDITY, because a UID had been issued twice"),
    ] {
        if amount > 0 {
            out.line(format!("{:>9}  {what}", units::count(amount)));
        }
    }
    for (column, rows) in &mail.changed_columns {
        out.line(format!("{column} of {rows} rows was changed by the store while it was written"));
    }
    for step in &report.by_hand {
        out.line(format!("now run: {step}"));
    }
    if let Some(replay) = &report.replay {
        let command = again::command(context, &["undo", replay], None);
        out.line(format!("replay {replay}; to take it back: {command}"));
    }
}

fn write_html(args: &WindowArgs, gap: &GapReport, replay: Option<&ReplayReport>) -> anyhow::Result<()> {
    use anyhow::Context as _;
    let Some(path) = &args.html else { return Ok(()) };
    std::fs::write(path, crate::report::html(gap, replay)).with_context(|| format!("cannot write {}", path.display()))
}
