//! `restante forget`

use clap::Args;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span};
use serde::Serialize;
use serde_json::json;

use super::context::Context;
use super::exit::{Exit, UsageError};
use super::output::table;
use super::{snapshots as listed, units};
use crate::repository::forgotten::{self, Undone};
use crate::repository::id::ObjectId;
use crate::repository::retention::{Judged, Policy, Retention};
use crate::repository::snapshots::{self, Snapshot};
use crate::repository::{Repository, RepositoryError};

/// Forget snapshots: those that no rule keeps, or those that are named
///
/// What is forgotten is not listed any more and nothing is taken from it. It can be taken back with --undo until a prune removes it, which none does
/// before --grace is over. Rules go by the time at which the storage wrote a snapshot, and by store; what is held, suspect with what came before
/// it, or the newest of its store is kept whatever they say.
#[derive(Args)]
pub struct Forget {
    /// Forget these and no others: id prefixes
    #[arg(conflicts_with_all = ["keep_last", "keep_hourly", "keep_daily", "keep_weekly", "keep_monthly", "keep_yearly", "keep_within", "keep_tag"])]
    snapshot: Vec<String>,
    /// Keep the newest N
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_last: u32,
    /// Keep the newest of each of the last N hours that have one
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_hourly: u32,
    /// Keep the newest of each of the last N days that have one
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_daily: u32,
    /// Keep the newest of each of the last N weeks, from Monday, that have one
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_weekly: u32,
    /// Keep the newest of each of the last N months that have one
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_monthly: u32,
    /// Keep the newest of each of the last N years that have one
    #[arg(long, value_name = "N", default_value_t = 0)]
    keep_yearly: u32,
    /// Keep all that are at most so much older than the newest, as 30d or 1y6mo
    #[arg(long, value_name = "TIME")]
    keep_within: Option<Span>,
    /// Keep all with this tag; may be repeated
    #[arg(long, value_name = "TAG")]
    keep_tag: Vec<String>,
    /// Whose hours and days are meant, as Europe/Zurich
    #[arg(long, value_name = "ZONE", default_value = "UTC")]
    time_zone: String,
    /// How long they can be taken back at least
    #[arg(long, value_name = "TIME", default_value = "72h")]
    grace: SignedDuration,
    /// Take forgotten snapshots back
    #[arg(long, requires = "snapshot")]
    undo: bool,
}

#[derive(Serialize)]
struct Line<'a> {
    snapshot: String,
    stored: jiff::Timestamp,
    taken: jiff::Timestamp,
    database: &'a str,
    keep: bool,
    reasons: &'a [String],
    alarm: bool,
}

impl Forget {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let policy = self.policy()?;
        if self.snapshot.is_empty() && policy.is_empty() {
            let message = "no rule would keep anything: give a --keep-… with a number above 0, or name snapshots";
            return Err(UsageError(message.into()).into());
        }
        if self.grace.is_negative() || self.grace.as_secs() > u32::MAX.into() {
            return Err(UsageError("--grace: a time of up to 136 years".into()).into());
        }
        let repository = context.open_as_writer().await?;
        repository.check_key_objects().await?;
        let all = context.all_snapshots(&repository).await?;
        if self.undo {
            return self.undo(context, &repository, &all).await;
        }
        let held = forgotten::held(&*repository.storage).await?;
        let retention = Retention::new(&all, &held, &repository.writer_key()?.signers()?);
        if !self.snapshot.is_empty() {
            let there: Vec<Snapshot> = all.iter().filter(|one| one.removable.is_none()).cloned().collect();
            let unreadable = forgotten::unreadable(&repository, &all).await?;
            let mut wanted = Vec::new();
            for text in &self.snapshot {
                let prefix = text.to_ascii_lowercase();
                let given_up = unreadable.iter().filter(|id| prefix.len() >= 4 && id.to_hex().starts_with(&prefix));
                match (snapshots::select_any(&there, text), given_up.copied().collect::<Vec<_>>().as_slice()) {
                    (Err(RepositoryError::SnapshotNotFound { .. }), [id]) => wanted.push(*id),
                    (found, _) => {
                        let found = found?;
                        retention.check(found)?;
                        wanted.push(found.id);
                    }
                }
            }
            return self.forget(context, &repository, &wanted, false).await;
        }
        let judged = retention.judge(&policy);
        show(context, &judged)?;
        let alarm = judged.iter().any(|one| one.alarm);
        let wanted: Vec<ObjectId> = judged.iter().filter(|one| !one.keep).map(|one| one.snapshot.id).collect();
        self.forget(context, &repository, &wanted, alarm).await
    }

    fn policy(&self) -> anyhow::Result<Policy> {
        let zone = TimeZone::get(&self.time_zone).map_err(|e| UsageError(format!("--time-zone: {e}")))?;
        let within = self.keep_within.filter(|span| span.is_negative());
        if within.is_some() {
            return Err(UsageError("--keep-within: a time that is not negative".into()).into());
        }
        Ok(Policy {
            last: self.keep_last,
            hourly: self.keep_hourly,
            daily: self.keep_daily,
            weekly: self.keep_weekly,
            monthly: self.keep_monthly,
            yearly: self.keep_yearly,
            within: self.keep_within,
            tags: self.keep_tag.clone(),
            zone,
        })
    }

    async fn forget(
        &self,
        context: &Context,
        repository: &Repository,
        wanted: &[ObjectId],
        alarm: bool,
    ) -> anyhow::Result<Exit> {
        let (output, dry_run) = (&context.output, context.global.dry_run);
        if !dry_run && !wanted.is_empty() {
            context.confirm(&format!("Forget {} snapshots?", wanted.len()))?;
            for snapshot in wanted {
                forgotten::forget(repository, snapshot, self.grace).await?;
            }
        }
        let ids: Vec<String> = wanted.iter().map(ObjectId::to_string).collect();
        output.json(
            "forgotten",
            &json!({ "snapshots": ids, "grace_seconds": self.grace.as_secs(), "dry_run": dry_run }),
        )?;
        let would = if dry_run { "would forget" } else { "forgot" };
        let names: Vec<String> = ids.iter().map(|id| id[..12].to_owned()).collect();
        output.line(format!("{would} {} snapshots {}", wanted.len(), names.join(" ")).trim_end());
        if !dry_run && !wanted.is_empty() {
            output.note(format!(
                "`restante forget --undo` takes them back for {:#}; then a prune may remove them",
                self.grace
            ));
        }
        Ok(if alarm { Exit::Findings } else { Exit::Done })
    }

    async fn undo(&self, context: &Context, repository: &Repository, all: &[Snapshot]) -> anyhow::Result<Exit> {
        let forgotten: Vec<Snapshot> = all.iter().filter(|one| one.removable.is_some()).cloned().collect();
        let mut exit = Exit::Done;
        for wanted in &self.snapshot {
            let snapshot = snapshots::select_any(&forgotten, wanted)?;
            if context.global.dry_run {
                context.output.line(format!("would take back {}", snapshot.short()));
                continue;
            }
            let doubtful = match forgotten::undo(repository, snapshot).await? {
                Undone::Kept => false,
                Undone::Doubtful => {
                    exit = Exit::Findings;
                    true
                }
            };
            context.output.json("taken_back", &json!({ "snapshot": snapshot.id, "doubtful": doubtful }))?;
            let doubt = ", but its grace was over: a prune that runs now may remove it all the same, so look again when none does";
            context.output.line(format!("took back {}{}", snapshot.short(), if doubtful { doubt } else { "" }));
        }
        Ok(exit)
    }
}

fn show(context: &Context, judged: &[Judged<'_>]) -> Result<(), anyhow::Error> {
    let mut lines = table(&["snapshot", "stored", "database", "state", "", "why"], &[]);
    for one in judged {
        let (snapshot, manifest) = (one.snapshot, &*one.snapshot.manifest);
        context.output.json(
            "snapshot_judged",
            &Line {
                snapshot: snapshot.id.to_string(),
                stored: snapshot.stored,
                taken: manifest.taken,
                database: &manifest.store.database,
                keep: one.keep,
                reasons: &one.reasons,
                alarm: one.alarm,
            },
        )?;
        lines.add_row([
            snapshot.short(),
            units::time(snapshot.stored),
            super::output::inert(&manifest.store.database),
            listed::state(snapshot),
            (if one.alarm {
                "ALARM"
            } else if one.keep {
                "keep"
            } else {
                "forget"
            })
            .to_owned(),
            super::output::inert(&one.reasons.join("; ")),
        ]);
    }
    if !judged.is_empty() {
        context.output.table(&lines);
    }
    Ok(())
}
