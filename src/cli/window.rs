//! `restante restore` into the live store: the lost mail, or that of a window.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use super::again;
use super::comparing::{Chosen, Comparing, Live, known};
use super::context::Context;
use super::exit::{Exit, UsageError};
use super::gap;
use super::units;
use crate::compare::columns::{self, Differing};
use crate::compare::layout::Layout;
use crate::compare::parents::Parents;
use crate::compare::report::GapReport;
use crate::compare::row::Print;
use crate::postgres::session::{Session, SessionOptions};
use crate::report::accounts::line;
use crate::report::{self, Told};
use crate::restore::accounts::Accounts;
use crate::restore::plan::Summary;
use crate::restore::{Apply, ApplyOptions, Doubtful, Limits, Plan, PlanOptions, ReplayReport, fits};

#[derive(Args, Debug, Clone)]
pub struct WindowArgs {
    #[command(flatten)]
    pub comparing: Comparing,
    /// Merge snapshots: what any of those named has, or any certified one, is put back once; for losses that went on for long
    #[arg(long)]
    pub union: bool,
    /// Only this account; may be repeated
    #[arg(long, value_name = "ADDRESS")]
    pub account: Vec<String>,
    /// Only mailboxes of this name; may be repeated
    #[arg(long, value_name = "NAME")]
    pub mailbox: Vec<String>,
    /// What to do with mail of which nobody can tell who removed it; `restore` if left out
    #[arg(long, value_enum, value_name = "WHAT")]
    pub doubtful: Option<DoubtfulArg>,
    /// Also give living messages the snapshot's value of TABLE.COLUMN back, where it differs and nobody touched the message since; may be
    /// repeated. Needs `--damaged-at`, or `--yes`
    #[arg(long, value_name = "TABLE.COLUMN", conflicts_with_all = ["union", "from", "to", "account", "mailbox"])]
    pub repair_columns: Vec<String>,
    /// Put all of it into NAME/<mailbox> of its account. What has a side folder anyway is put into Recovered/<mailbox> without this
    #[arg(long, value_name = "NAME", value_parser = folder)]
    pub into_folder: Option<String>,
    /// Whose mail comes first: newest (of all accounts), or account-file=FILE, which has an account a line; the others follow, newest first
    #[arg(long, value_name = "ORDER", value_parser = order, default_value = "newest")]
    pub order: Order,
    /// Also put back lost mail of deleted mailboxes, into a side folder
    #[arg(long)]
    pub orphans: bool,
    /// Leave living messages as they are that miss parts
    #[arg(long)]
    pub leave_incomplete: bool,
    /// Messages in one transaction
    #[arg(long, default_value_t = 200, value_name = "N")]
    pub batch: usize,
    /// Sessions that put mail back side by side, each that of other accounts and in the order of `--order`; one where mails have rows in common
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(1..=32))]
    pub jobs: u8,
    /// Wait while a standby has this much WAL still to store, or a replication slot this little left; `off`: for none
    #[arg(long, value_name = "SIZE", value_parser = limit, default_value = "256MiB")]
    pub max_lag: Limit,
    /// WAL that each session may write in a second
    #[arg(long, value_name = "SIZE", value_parser = limit, default_value = "off")]
    pub max_wal_rate: Limit,
    /// Also print a line for each account that support can send to its user
    #[arg(long)]
    pub per_account: bool,
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

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Order {
    Newest,
    AccountFile(PathBuf),
}

fn order(text: &str) -> Result<Order, String> {
    match text.split_once('=') {
        None if text == "newest" => Ok(Order::Newest),
        Some(("account-file", file)) if !file.is_empty() => Ok(Order::AccountFile(file.into())),
        _ => Err("write newest, or account-file=FILE".to_owned()),
    }
}

/// A name that makes one more level of folders wherever `/` parts them.
fn folder(text: &str) -> Result<String, String> {
    let wrong =
        text.trim().is_empty() || text.starts_with('/') || text.ends_with('/') || text.contains(char::is_control);
    if wrong { Err("it is no name of a folder".to_owned()) } else { Ok(text.to_owned()) }
}

/// Bytes, or none.
#[derive(Debug, Clone, Copy)]
pub struct Limit(Option<u64>);

fn limit(text: &str) -> Result<Limit, String> {
    match text {
        "off" => Ok(Limit(None)),
        "0" => Err("write a size, for example 256MiB, or off".to_owned()),
        text => units::parse_size(text).map(|size| Limit(Some(size))),
    }
}

/// The accounts that come first. Blank lines and those that begin with `#` say nothing.
fn first(order: &Order, parents: &Parents) -> anyhow::Result<Vec<String>> {
    let Order::AccountFile(file) = order else { return Ok(Vec::new()) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let lines = text.lines().map(str::trim).enumerate();
    let mut accounts = Vec::new();
    for (at, account) in lines.filter(|(_, line)| !line.is_empty() && !line.starts_with('#')) {
        if let Some(why) = parents.unknown(&[account.to_owned()], &[]).first() {
            return Err(UsageError(format!("{}, line {}: {why}", file.display(), at + 1)).into());
        }
        accounts.push(account.to_owned());
    }
    Ok(accounts)
}

pub async fn restore(args: &WindowArgs, context: &Context, wanted: &[String]) -> anyhow::Result<Exit> {
    let live = Live::open(context, args.comparing.profile.as_deref(), &args.comparing.renamed).await?;
    let mut restore = Restoring {
        args,
        context,
        live: &live,
        told: Vec::new(),
        dealt_with: HashSet::new(),
        accounts: Accounts::default(),
        unknown: None,
    };
    let mut exit = Exit::Done;
    if args.union {
        let (repository, snapshots) = args.comparing.merged(context, &live, wanted).await?;
        for snapshot in &snapshots {
            if restore.one(Chosen::open(&repository, snapshot).await?).await? == Exit::Findings {
                exit = Exit::Findings;
            }
        }
        restore.sum()?;
    } else if let [] | [_] = wanted {
        let wanted = wanted.first().map(String::as_str);
        exit = restore.one(args.comparing.choose(context, &live, wanted).await?).await?;
    } else {
        return Err(UsageError("several snapshots are merged with `--union`".into()).into());
    }
    restore.per_account()?;
    if let Some(path) = &args.html {
        let page = report::html(&restore.told, &restore.accounts);
        std::fs::write(path, page).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(exit)
}

/// A restore from one snapshot, or from several, the newest first. After each the store is compared anew, so what one brought is not brought
/// again by the next.
struct Restoring<'a> {
    args: &'a WindowArgs,
    context: &'a Context,
    live: &'a Live,
    told: Vec<Told>,
    dealt_with: HashSet<Print>,
    accounts: Accounts,
    /// What is said of names that none of the snapshots so far has.
    unknown: Option<Vec<String>>,
}

impl Restoring<'_> {
    async fn one(&mut self, chosen: Chosen) -> anyhow::Result<Exit> {
        let (args, context, live) = (self.args, self.context, self.live);
        let comparison = args.comparing.compare(live, &chosen, args.comparing.window()).await?;
        if args.union {
            let mut unknown = comparison.parents.unknown(&args.account, &args.mailbox);
            unknown.retain(|said| self.unknown.as_ref().is_none_or(|before| before.contains(said)));
            self.unknown = Some(unknown);
        } else {
            known(&comparison.parents, &args.account, &args.mailbox)?;
        }
        if args.union && args.doubtful.is_none() && !comparison.layout.records_deletions() {
            let why = "this store does not record what its users delete, so older snapshots bring that back as well: \
                       say what to do with it, `--doubtful restore`, `side-folder` or `skip`";
            return Err(UsageError(why.into()).into());
        }
        let gap = GapReport::new(&comparison);
        let options = PlanOptions {
            first: first(&args.order, &comparison.parents)?,
            window: args.comparing.window(),
            accounts: args.account.clone(),
            mailboxes: args.mailbox.clone(),
            doubtful: args.doubtful.map(Into::into).unwrap_or_default(),
            orphans: args.orphans,
            leave_incomplete: args.leave_incomplete,
            into_folder: args.into_folder.clone(),
            columns: args.repair_columns.clone(),
            dealt_with: std::mem::take(&mut self.dealt_with),
        };
        let differing = self.differing(&chosen, &comparison.layout).await?;
        let mut plan = Plan::new(comparison, &options);
        plan.columns = differing;
        fits(&plan, &chosen.source).await?;
        self.dealt_with = options.dealt_with;
        self.dealt_with.extend(plan.deals_with());
        context.progress.finish();
        let summary = plan.summary();
        context.output.json("plan", &summary)?;
        if context.global.dry_run || !context.output.is_json() {
            gap::show(context, &gap, &chosen.snapshot.short(), None);
            context.output.line("");
        }
        show_plan(context, &gap, &summary);
        if context.global.dry_run {
            summary.clients.iter().for_each(|sentence| context.output.line(sentence));
            self.accounts.add(Accounts::of(&plan, None));
            let exit = if summary.outside + summary.place_taken > 0 { Exit::Findings } else { Exit::Done };
            self.told.push(Told { gap, plan: summary, replay: None });
            return Ok(exit);
        }
        let derives = live.profile.derived.iter().any(|derived| derived.sql.is_some());
        if self.told.is_empty() && (!plan.is_empty() || derives || args.union) {
            context.confirm("put them back into the live store?")?;
        }
        let limits = Limits { lag: args.max_lag.0, rate: args.max_wal_rate.0 };
        let options = ApplyOptions { batch_messages: args.batch, limits, ..Default::default() };
        let beside = self.beside(plan.summary().messages).await?;
        let apply = Apply::new(plan, options).beside(beside);
        let mut report = apply.run(&live.session, &chosen.source, &live.profile, &*context.monitor()).await?;
        context.progress.finish();
        context.output.json("replayed", &report)?;
        show(context, &report);
        report.clients.iter().for_each(|sentence| context.output.line(sentence));
        self.accounts.add(std::mem::take(&mut report.accounts));
        let exit = if report.has_findings() { Exit::Findings } else { Exit::Done };
        self.told.push(Told { gap, plan: summary, replay: Some(report) });
        Ok(exit)
    }

    /// More sessions, as many as the server gives and as there are batches for.
    async fn beside(&self, messages: u64) -> anyhow::Result<Vec<Session>> {
        let batches = messages.div_ceil(self.args.batch.max(1) as u64);
        let mut beside = Vec::new();
        for _ in 1..batches.min(u64::from(self.args.jobs)) {
            match Session::connect(&self.context.dsn()?, SessionOptions::default()).await {
                Ok(session) => beside.push(session),
                Err(error) => {
                    self.context.monitor().warn(&format!("going on with {} sessions: {error}", 1 + beside.len()));
                    break;
                }
            }
        }
        Ok(beside)
    }

    /// Living messages that get columns back.
    async fn differing(&self, chosen: &Chosen, layout: &Layout) -> anyhow::Result<Differing> {
        let (args, global) = (self.args, &self.context.global);
        if args.repair_columns.is_empty() {
            return Ok(Differing::default());
        }
        let named = columns::columns(layout, &self.live.profile, &args.repair_columns)?;
        let taken = chosen.snapshot.manifest.taken;
        if args.comparing.damaged_at.is_some_and(|damage| damage < taken) {
            let why =
                "the snapshot was taken after the damage, so its columns may hold what is wrong: name an older one";
            return Err(UsageError(why.into()).into());
        }
        let told = layout.message.modseq.is_some() && args.comparing.damaged_at.is_some();
        if !told && !global.yes && !global.dry_run {
            let why = "nothing tells whether columns were right when the snapshot was taken and changed since: say `--damaged-at`, \
                       or `--yes` where you know it (and always where messages have no MODSEQ)";
            return Err(UsageError(why.into()).into());
        }
        Ok(columns::differing(&self.live.session, &chosen.source, layout, named).await?)
    }

    /// What all snapshots brought together.
    fn sum(&self) -> anyhow::Result<()> {
        let planned: u64 = self.told.iter().map(|told| told.plan.messages).sum();
        let restored: u64 = self.told.iter().flat_map(|told| &told.replay).map(|replay| replay.mail.restored).sum();
        if let Some(said) = self.unknown.as_ref().filter(|said| !said.is_empty()) {
            return Err(UsageError(said.join("\n")).into());
        }
        let output = &self.context.output;
        let snapshots: Vec<&str> = self.told.iter().map(|told| &*told.gap.snapshot).collect();
        output
            .json("union", &serde_json::json!({ "snapshots": snapshots, "messages": planned, "restored": restored }))?;
        let (planned, restored) = (units::count(planned), units::count(restored));
        output
            .line(format!("{} snapshots merged: {planned} messages to put back, {restored} put back", snapshots.len()));
        Ok(())
    }

    fn per_account(&self) -> anyhow::Result<()> {
        let (output, planned) = (&self.context.output, self.context.global.dry_run);
        for (account, report) in self.accounts.0.iter().filter(|_| self.args.per_account) {
            let line = line(account, report, planned);
            let mut value = serde_json::to_value(report)?;
            value["account"] = account.as_str().into();
            value["planned"] = planned.into();
            value["line"] = line.as_str().into();
            output.json("account", &value)?;
            output.line(line);
        }
        Ok(())
    }
}

fn show_plan(context: &Context, gap: &GapReport, summary: &Summary) {
    context.output.line(format!(
        "{} messages to put back, {} living ones to complete, {} accounts and {} mailboxes to make, counters of {} mailboxes to raise",
        units::count(summary.messages),
        units::count(summary.incomplete),
        summary.accounts,
        summary.mailboxes,
        summary.counters
    ));
    for (amount, what) in [
        (summary.columns, "living messages get columns back"),
        (summary.columns_touched, "have other columns too, and were touched since the snapshot: they keep them"),
    ] {
        if amount > 0 {
            context.output.line(format!("{:>9}  {what}", units::count(amount)));
        }
    }
    for trigger in &gap.triggers {
        context.output.line(format!("trigger {} on {} will fire ({})", trigger.name, trigger.table, trigger.function));
    }
    if summary.outside > 0 {
        context.output.line(format!(
            "{} lost messages lie outside the window, or in other mailboxes: they are not put back",
            units::count(summary.outside)
        ));
    }
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
        (report.columns, "living messages got columns back"),
        (report.columns_touched, "have other columns too, and were touched since the snapshot: they keep them"),
        (mail.arrived_meanwhile, "had arrived again meanwhile"),
        (mail.by_another, "were put back by another replay first"),
        (mail.no_mailbox, "have no mailbox any more: run `restante gap` again"),
        (mail.place_taken, "stay out: another mail has what only one can have (its place is taken)"),
        (report.left_out, "are doubtful or orphans and were left out"),
        (report.accounts.over_quota(), "accounts hold more than their quota now (`--per-account` names them)"),
        (report.counters.mailboxes, "mailboxes had their counters raised"),
        (report.counters.uidvalidity, "mailboxes have a new UIDVALIDITY, because a UID had been issued twice"),
    ] {
        if amount > 0 {
            out.line(format!("{:>9}  {what}", units::count(amount)));
        }
    }
    for (table, rows) in &mail.left_rows {
        out.line(format!("{rows} rows of {table} stay out: what they refer to is gone"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_size_or_off() {
        assert_eq!(limit("256MiB").unwrap().0, Some(256 << 20));
        assert_eq!(limit("off").unwrap().0, None);
        assert!(limit("0").is_err() && limit("much").is_err());
    }
}
