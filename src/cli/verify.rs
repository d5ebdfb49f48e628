//! `restante verify`

use std::time::Duration;

use clap::Args;
use jiff::SignedDuration;

use super::context::{Context, heads_path};
use super::exit::{Exit, UsageError};
use super::heads::Heads;
use super::units;
use crate::guard;
use crate::postgres::reading::ReadingOptions;
use crate::report::inert::inert;
use crate::repository::snapshots;
use crate::snapshot::live::{self, LiveOptions, LiveReport};
use crate::verify::{Budget, Finding, FindingKind, Level, Report, VerifyOptions, verify};

/// Check that snapshots are there and sound
///
/// Without --data the structure is checked: signatures, certificates, that everything referenced is present with its size.
/// With --data every pack is fetched and its hash computed; with a reader's identity every chunk is opened, every row put
/// together and compared with its digest. With a writer's or verifier's key it is written down which packs were hashed, and what is damaged is
/// marked, so that the next snapshot stores it again where the live store still has it.
#[derive(Args)]
pub struct Verify {
    /// Only this snapshot: id prefix, latest, latest:tag=…, or @TIME
    snapshot: Option<String>,
    /// Fetch and check all data too
    #[arg(long)]
    data: bool,
    /// Hash packs up to so much and no rows, as 10GiB or 30min: those that failed, then those that were hashed the longest time ago
    #[arg(long, value_name = "SIZE|TIME", value_parser = parse_budget)]
    budget: Option<Budget>,
    /// Hash packs that were not hashed for so long and no rows, as 30d; some that are left afterwards are a finding
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    max_age: Option<SignedDuration>,
    /// The newest certified snapshot of each store must be younger, as 26h
    #[arg(long, value_name = "TIME", value_parser = parse_age)]
    newest_within: Option<SignedDuration>,
    /// A snapshot that must be there or have been forgotten, else somebody set the storage back: the newest one that is known, as an id prefix
    #[arg(long, value_name = "SNAPSHOT")]
    expect_head: Option<String>,
    /// Read the live store too, or so many per cent of each table: a row that nobody changed since the last snapshot must say what it said
    #[arg(long, value_name = "PERCENT", num_args = 0..=1, require_equals = true, default_missing_value = "100",
          value_parser = clap::value_parser!(u8).range(1..=100), conflicts_with = "snapshot")]
    live: Option<u8>,
    /// With --live, where no marker can be left in the store: it was not set back to an earlier state since the last snapshot
    #[arg(long, requires = "live")]
    trust_history: bool,
}

/// `30min`, `2h`; or a size, with an unit.
fn parse_budget(text: &str) -> Result<Budget, String> {
    // Of these `m` is both.
    if !text.trim_end().ends_with(['m', 'M'])
        && let Ok(size) = units::parse_size(text)
    {
        return Ok(Budget::Bytes(size));
    }
    let time = text.parse::<SignedDuration>().ok().filter(|_| !text.trim_end().ends_with('m'));
    let time = time.and_then(|time| Duration::try_from(time).ok());
    time.map(Budget::Time)
        .ok_or_else(|| format!("{text:?} is neither a size nor a time: write for example 10GiB or 30min"))
}

/// `26h`, `30d`; a day has 24 hours.
fn parse_age(text: &str) -> Result<SignedDuration, String> {
    let span = text.parse::<jiff::Span>().map_err(|e| e.to_string())?;
    let age = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|e| e.to_string())?;
    if age.is_positive() { Ok(age) } else { Err("a time above zero".to_owned()) }
}

impl Verify {
    pub async fn run(self, context: &Context) -> anyhow::Result<Exit> {
        let repository = context.open_to_look().await?;
        let chosen = match &self.snapshot {
            Some(wanted) => {
                let (all, _) = snapshots::list(&repository).await?;
                Some(snapshots::select(&all, wanted)?.clone())
            }
            None => None,
        };
        let (reader, in_part) = (!repository.signs_checks(), self.budget.is_some() || self.max_age.is_some());
        let level = match (self.data || in_part, reader && !in_part) {
            (false, _) => Level::Structure,
            (true, false) => Level::Hashes,
            (true, true) => Level::Rows,
        };
        // Of two keys one opens mail and the other signs what was found.
        let with_key = match context.key_path() {
            Some(_) if reader => Some(context.open_to_check().await?),
            _ => None,
        };
        let log = with_key.as_ref().or((!reader).then_some(&repository));
        if in_part && log.is_none() {
            let message = "--budget and --max-age go by what earlier runs wrote down, which a writer's or verifier's key signs: give `--key` too";
            return Err(UsageError(message.into()).into());
        }
        let options = VerifyOptions {
            only: chosen.as_ref(),
            budget: self.budget,
            max_age: self.max_age,
            newest_within: self.newest_within,
            log: log.filter(|_| !context.global.dry_run),
            cancel: context.cancel.clone(),
            ..VerifyOptions::new(level)
        };
        let mut report = verify(&repository, &options, &context.monitor()).await?;
        if chosen.is_none() {
            let (all, _) = snapshots::list_all(&repository).await?;
            let behind = context.key_path().map(|key| Heads::load(&heads_path(&key))).transpose()?;
            let mut behind = behind.map(|heads| heads.behind(&all)).unwrap_or_default();
            if let Some(head) = &self.expect_head
                && !all.iter().any(|one| one.id.to_hex().starts_with(&head.to_ascii_lowercase()))
            {
                behind.push(format!("snapshot {head} is not there: somebody removed it, or set the storage back"));
            }
            report.findings.extend(behind.into_iter().map(|message| Finding::new(FindingKind::Missing, message)));
        }
        if chosen.is_none() {
            let problems = guard::problems(&repository).await?;
            report.findings.extend(problems.into_iter().map(|message| Finding::new(FindingKind::Damaged, message)));
        }
        if let Some(percent) = self.live {
            let live = self.compare_live(context, percent).await?;
            report.findings.extend(damage(&live));
            report.live = Some(live);
        }
        context.progress.finish();
        measure(context, &report);
        tell(context, &report, level)
    }
}

impl Verify {
    async fn compare_live(&self, context: &Context, percent: u8) -> anyhow::Result<LiveReport> {
        let repository = context.open_as_writer().await?;
        let reading = ReadingOptions { cancel: context.cancel.clone(), ..Default::default() };
        let options = LiveOptions { reading, percent, trust_history: self.trust_history };
        Ok(live::check(&repository, &context.dsn()?, &options, &context.monitor()).await?)
    }
}

/// What is wrong in the live store.
fn damage(report: &LiveReport) -> Vec<Finding> {
    let none = report.reason.iter().map(|reason| format!("the live store could not be compared: {reason}"));
    let tables = report.tables.iter().flat_map(|table| {
        let name = inert(&table.table);
        let places = table.places.join(" ");
        let damaged = (table.damaged > 0).then(|| {
            format!(
                "{name}: {} rows of the live store are not what they were in snapshot {}, though nobody changed them: ctid {places}. Look after \
                 the disk and memory of the server; what they were is in the snapshot: restore --table puts it beside the live table",
                table.damaged,
                report.snapshot.map(|id| id.to_hex()[..12].to_owned()).unwrap_or_default(),
            )
        });
        damaged.into_iter().chain(table.unreadable.as_ref().map(|why| format!("{name}: the live store cannot be read: {why}")))
    });
    none.chain(tables).map(|message| Finding::new(FindingKind::Live, message)).collect()
}

fn tell(context: &Context, report: &Report, level: Level) -> anyhow::Result<Exit> {
    let output = &context.output;
    output.json("verified", report)?;
    for finding in &report.findings {
        let kind = match finding.kind {
            FindingKind::Overdue => "OVERDUE",
            FindingKind::Live => "LIVE   ",
            FindingKind::Dated => "ALARM  ",
            _ => "DAMAGED",
        };
        output.line(format!("{kind}  {}{}", finding.message, hurt(finding)));
    }
    for note in &report.notes {
        output.line(format!("note     {}", note.message));
    }
    for newest in &report.newest {
        output.line(format!(
            "newest   {}: {}, stored {}",
            newest.store,
            &newest.snapshot.to_hex()[..12],
            units::time(newest.stored)
        ));
    }
    for table in report.live.iter().flat_map(|live| &live.tables) {
        let name = inert(&table.table);
        let why = table.not_compared.as_ref().map(|why| format!("; not compared: {why}")).unwrap_or_default();
        let [same, changed] = [table.same, table.changed].map(units::count);
        output.line(format!("live     {name}: {same} rows as they were, {changed} came or changed since{why}"));
    }
    if level != Level::Structure {
        let oldest = report.oldest_hash.map(|at| format!(", the others not since {}", units::time(at)));
        output.line(format!(
            "hashed   {} of {} packs{}",
            units::count(report.packs_hashed),
            units::count(report.packs),
            oldest.filter(|_| report.packs_hashed < report.packs).unwrap_or_default()
        ));
    }
    output.line(format!(
        "{} snapshots, {} packs, {} fetched, {} rows compared: {}",
        report.snapshots,
        report.packs,
        units::bytes(report.bytes_fetched),
        units::count(report.rows),
        if report.findings.is_empty() { "sound".to_owned() } else { format!("{} findings", report.findings.len()) }
    ));
    if report.snapshots == 0 {
        output.line("there is no snapshot to verify");
        return Ok(Exit::Findings);
    }
    Ok(if report.findings.is_empty() { Exit::Done } else { Exit::Findings })
}

fn measure(context: &Context, report: &Report) {
    let metrics = &context.metrics;
    metrics.set("findings", "What the last verify found", &[], report.findings.len() as f64);
    metrics.set("snapshots", "Snapshots in the repository", &[], report.snapshots as f64);
    metrics.set("packs", "Packs that snapshots need", &[], report.packs as f64);
    metrics.set("pack_bytes", "Bytes of these", &[], report.pack_bytes as f64);
    metrics.set("packs_hashed", "Packs that the last verify hashed", &[], report.packs_hashed as f64);
    if let Some(at) = report.oldest_hash {
        metrics.at("oldest_hash_timestamp_seconds", "When the pack was hashed that waits longest", &[], at);
    }
    for newest in &report.newest {
        let (help, labels) = ("When the newest certified snapshot was stored", [("store", newest.store.as_str())]);
        metrics.at("newest_snapshot_timestamp_seconds", help, &labels, newest.stored);
    }
}

/// Which snapshots a finding hurts.
fn hurt(finding: &Finding) -> String {
    if finding.kind == FindingKind::Overdue {
        return String::new();
    }
    let hurt: Vec<String> = finding.snapshots.iter().map(|id| id.to_hex()[..12].to_owned()).collect();
    // Of a damaged pack most chunks may be sound.
    let may = if finding.kind == FindingKind::Damaged { "may hurt" } else { "hurts" };
    if hurt.is_empty() { String::new() } else { format!(" ({may} {})", hurt.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_a_size_or_a_time_and_never_in_doubt() {
        assert_eq!(parse_budget("10GiB"), Ok(Budget::Bytes(10 << 30)));
        assert_eq!(parse_budget("500MB"), Ok(Budget::Bytes(500_000_000)));
        assert_eq!(parse_budget("30min"), Ok(Budget::Time(Duration::from_secs(1800))));
        assert_eq!(parse_budget("2h"), Ok(Budget::Time(Duration::from_secs(7200))));
        for bad in ["", "10m", "10M", "-2h", "much", "1h30x"] {
            assert!(parse_budget(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_age("30d"), Ok(SignedDuration::from_hours(720)));
        assert_eq!(parse_age("1d 2h"), Ok(SignedDuration::from_hours(26)));
        for bad in ["", "0s", "-1d", "30", "1month"] {
            assert!(parse_age(bad).is_err(), "{bad}");
        }
    }
}
