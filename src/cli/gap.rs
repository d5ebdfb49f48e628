//! `restante gap`

use clap::Args;

use super::again;
use super::comparing::{Chosen, Comparing, Live};
use super::context::Context;
use super::exit::Exit;
use super::output::{inert, table};
use super::units;
use crate::compare::report::{GapReport, Hour};
use crate::compare::{Class, Window};

/// Show what the live store has lost since a snapshot; writes nothing
#[derive(Args)]
pub struct Gap {
    /// Id prefix, latest, latest:tag=…, or @TIME; the fullest if left out
    snapshot: Option<String>,
    #[command(flatten)]
    comparing: Comparing,
}

impl Gap {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let live = Live::open(context, self.comparing.profile.as_deref(), &self.comparing.renamed).await?;
        let chosen = self.comparing.choose(context, &live, self.snapshot.as_deref()).await?;
        let report = look(context, &self.comparing, &live, &chosen).await?;
        let short = chosen.snapshot.short();
        let command = again::command(context, &["restore", &short], Some(&self.comparing));
        show(context, &report, &short, Some(&command));
        Ok(if report.has_findings() { Exit::Findings } else { Exit::Done })
    }
}

/// Compares the whole store, and tells the JSON of it.
pub async fn look(context: &Context, comparing: &Comparing, live: &Live, chosen: &Chosen) -> anyhow::Result<GapReport> {
    let comparison = comparing.compare(live, chosen, Window::default()).await?;
    context.progress.finish();
    let report = GapReport::new(&comparison);
    context.output.json("gap", &report)?;
    Ok(report)
}

/// Lines of the timeline; a longer one is drawn by day.
const LINES: usize = 60;
const WIDTH: u64 = 40;

/// `command` puts it back; it is left out where that is being done.
pub fn show(context: &Context, report: &GapReport, short: &str, command: Option<&str>) {
    let out = &context.output;
    let count = |class: Class| report.classes.get(&class).copied().unwrap_or(0);
    out.line(format!("snapshot {short} of {}, taken {}", report.database, units::time(report.taken)));
    out.line("");
    out.line(format!("{:>9}  lost", units::count(report.lost)));
    if let (Some(from), Some(to)) = (report.lost_from, report.lost_to) {
        out.line(format!("           from {} to {}", units::time(from), units::time(to)));
    }
    for (amount, what) in [
        (count(Class::ReusedId), "of them with an id that was issued again"),
        (report.incomplete, "alive, but parts of them are gone"),
        (count(Class::CannotTell), "cannot be told: the user or the damage removed them"),
        (count(Class::PlaceTaken), "lost, and stay out: another mail has what only one can have (its place is taken)"),
        (count(Class::Orphan), "lost in mailboxes that were deleted on purpose"),
        (count(Class::DeletedByUser), "deleted by their users: they stay deleted"),
        (count(Class::Duplicate), "have arrived again, or were restored before"),
        (report.beyond, "arrived after the snapshot: what the damage took of these is in no snapshot"),
        (report.changed, "changed since, the live ones are kept"),
        (report.same, "the same"),
        (report.not_compared, "outside the window, alive as far as counting tells"),
    ] {
        if amount > 0 {
            out.line(format!("{:>9}  {what}", units::count(amount)));
        }
    }
    if !report.lost_accounts.is_empty() || report.lost_mailboxes > 0 {
        out.line(format!("{:>9}  accounts and {} mailboxes lost", report.lost_accounts.len(), report.lost_mailboxes));
    }
    if !report.hours.is_empty() {
        out.line("");
        timeline(context, &report.hours);
    }
    let gaps = report.mailboxes.iter().filter(|gap| gap.lost + gap.cannot_tell + gap.orphan > 0);
    let mut gaps: Vec<_> = gaps.collect();
    gaps.sort_by_key(|gap| std::cmp::Reverse(gap.lost + gap.cannot_tell));
    if !gaps.is_empty() {
        out.line("");
        let mut lines = table(&["account", "mailbox", "lost", "cannot tell", "deleted", "beyond"], &[2, 3, 4, 5]);
        for gap in gaps.iter().take(20) {
            lines.add_row([
                shortened(&gap.account),
                shortened(&gap.mailbox),
                units::count(gap.lost),
                units::count(gap.cannot_tell),
                units::count(gap.deleted_by_user),
                units::count(gap.beyond),
            ]);
        }
        out.table(&lines);
        if gaps.len() > 20 {
            out.line(format!("… and {} more mailboxes (--json lists all)", gaps.len() - 20));
        }
    }
    out.line("");
    for sequence in &report.sequences {
        out.line(format!(
            "sequence {} is at {}, and must be at least {}",
            sequence.name, sequence.live, sequence.least
        ));
    }
    if report.low_mailboxes > 0 {
        out.line(format!(
            "{} mailboxes have counters below what was issued; in {} of them a UID was issued twice",
            report.low_mailboxes, report.collisions
        ));
    }
    for (reason, amount) in &report.reasons {
        out.line(format!("{:>9}  decided by {reason}", units::count(*amount)));
    }
    match command {
        _ if !report.has_findings() => out.line("nothing is missing"),
        None => {}
        Some(command) => {
            out.line("");
            out.line("to put it back (with -n to see what it would do):");
            out.line(format!("    {command}"));
        }
    }
}

/// Long names would break the table.
pub fn shortened(name: &str) -> String {
    let name = inert(name);
    if name.chars().count() <= 48 { name } else { name.chars().take(47).chain(['…']).collect() }
}

fn timeline(context: &Context, hours: &[Hour]) {
    let days = hours.len() > LINES;
    let mut lines: Vec<(String, u64, u64)> = Vec::new();
    for hour in hours {
        let label = hour.hour.strftime(if days { "%Y-%m-%d" } else { "%Y-%m-%d %H:00Z" }).to_string();
        match lines.last_mut().filter(|line| line.0 == label) {
            Some(line) => (line.1, line.2) = (line.1 + hour.lost, line.2 + hour.cannot_tell),
            None => lines.push((label, hour.lost, hour.cannot_tell)),
        }
    }
    let most = lines.iter().map(|(_, lost, doubtful)| lost + doubtful).max().unwrap_or(1).max(1);
    let skipped = lines.len().saturating_sub(LINES);
    if skipped > 0 {
        context.output.line(format!("… {skipped} earlier days"));
    }
    for (label, lost, doubtful) in &lines[skipped..] {
        let bar = |n: u64, mark: &str| mark.repeat((n * WIDTH).div_ceil(most) as usize);
        context.output.line(format!("{label}  {:>6}  {}{}", lost + doubtful, bar(*lost, "█"), bar(*doubtful, "░")));
    }
}
