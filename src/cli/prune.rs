//! `restante prune`

use std::sync::Arc;

use clap::Args;
use jiff::SignedDuration;
use serde::Serialize;

use super::context::{Context, heads_path};
use super::exit::{Exit, UsageError};
use super::heads::Heads;
use super::units;
use crate::repository::prune::{Amount, PruneOptions, Report, prune};
use crate::repository::snapshots;
use crate::storage::layers::{Counting, Counts};

/// Remove what no snapshot needs any more
///
/// Snapshots that were forgotten go when their grace is over. Packs that nothing needs are marked, and removed by a later call, when the mark is as
/// old as --grace. What is needed of many small packs, and of those of which less than half is needed, is put together in new ones; later calls mark
/// and remove the old. Snapshots and other prunes may run meanwhile, and it can be cut short at any time. If anything in the repository is not as it
/// should be, nothing is removed (exit code 3).
#[derive(Args)]
pub struct Prune {
    /// How long a pack stays after it was marked, and how old a pack must be that is marked
    #[arg(long, value_name = "TIME", default_value = "72h")]
    grace: SignedDuration,
    /// By how much listings of the storage may be behind
    #[arg(long, value_name = "SECONDS", default_value_t = 0)]
    listing_delay: u64,
    /// Read so much at most of packs that are small or mostly not needed any more, to put what is needed of them together in new ones; 0: nothing
    #[arg(long, value_name = "SIZE", default_value = "16GiB", value_parser = units::parse_size)]
    repack: u64,
}

#[derive(Serialize)]
struct Pruned<'a> {
    #[serde(flatten)]
    report: &'a Report,
    dry_run: bool,
    requests: Counts,
}

impl Prune {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let listing_delay = std::time::Duration::from_secs(self.listing_delay);
        let least = PruneOptions::least_grace(listing_delay);
        if self.grace < least {
            let message = format!("--grace: {least:#} at least, twice --listing-delay and what clocks may differ");
            return Err(UsageError(message).into());
        }
        let repository = context.open_as_writer().await?;
        if context.asks_for_lock()? {
            context.probe(&*repository.storage).await?;
        }
        let counting = Arc::new(Counting::new(repository.storage.clone()));
        let repository = repository.over(counting.clone());
        let heads = Heads::load(&heads_path(&context.key_path().unwrap_or_default()))?;
        heads.check(&snapshots::list_all(&repository).await?.0)?;
        let mut options = PruneOptions { grace: self.grace, listing_delay, repack: self.repack, dry_run: true };
        if !context.global.dry_run {
            if !context.global.yes {
                let would = prune(&repository, &options, &context.monitor()).await?;
                context.progress.finish();
                let (snapshots, packs) = (would.snapshots.len(), amount(would.removed));
                context.confirm(&format!("Remove {snapshots} forgotten snapshots and {packs} for good?"))?;
            }
            options.dry_run = false;
        }
        let report = prune(&repository, &options, &context.monitor()).await?;
        context.progress.finish();
        self.tell(context, &report, options.dry_run, counting.counts())
    }

    fn tell(&self, context: &Context, report: &Report, dry_run: bool, requests: Counts) -> anyhow::Result<Exit> {
        let output = &context.output;
        output.json("pruned", &Pruned { report, dry_run, requests })?;
        let would = if dry_run { "would be " } else { "" };
        output.line(format!("{} forgotten snapshots {would}removed", report.snapshots.len()));
        if report.unexpected.is_empty() {
            output.line(format!("{} {would}removed", amount(report.removed)));
            output.line(format!("{} {would}marked, to go after {:#}", amount(report.marked), self.grace));
            output.line(format!("{} marked before, to go when the mark is old enough", amount(report.waiting)));
            output.line(format!("{} too young to be marked", amount(report.young)));
            if report.needed_again.packs > 0 {
                output.line(format!("{} marked before, but needed", amount(report.needed_again)));
            }
            output.line(format!("{} stay", amount(report.kept)));
            if report.repacked.packs > 0 {
                let into = amount(report.repacked_into);
                output.line(format!(
                    "{} of them {would}put together in {into}, to be marked later",
                    amount(report.repacked)
                ));
            }
        }
        for name in &report.locked {
            output.line(format!("locked  {name}: the storage does not let it go yet"));
        }
        for what in &report.unexpected {
            output.line(format!("UNEXPECTED  {what}"));
        }
        output.note(format!(
            "{} requests to read, {} to write or remove; {} fetched",
            requests.get + requests.get_range + requests.head + requests.list,
            requests.put + requests.delete,
            units::bytes(requests.bytes_in)
        ));
        if report.unexpected.is_empty() {
            return Ok(Exit::Done);
        }
        output
            .line("no pack was removed or marked: see `restante verify`, or run it again if another prune was at work");
        Ok(Exit::Findings)
    }
}

fn amount(amount: Amount) -> String {
    format!("{} packs ({})", units::count(amount.packs), units::bytes(amount.bytes))
}
