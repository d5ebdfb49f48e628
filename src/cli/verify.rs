//! `restante verify`

use clap::Args;

use super::context::{Context, heads_path};
use super::exit::Exit;
use super::heads::Heads;
use super::units;
use crate::repository::snapshots;
use crate::verify::{Finding, FindingKind, Level, verify};

/// Check that snapshots are there and sound
///
/// Without --data the structure is checked: signatures, certificates, that everything referenced is present with its size.
/// With --data every pack is fetched and its hash computed; with a reader's identity every chunk is opened, every row put
/// together and compared with its digest.
#[derive(Args)]
pub struct Verify {
    /// Only this snapshot: id prefix, latest, latest:tag=…, or @TIME
    snapshot: Option<String>,
    /// Fetch and check all data too
    #[arg(long)]
    data: bool,
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
        let reader = repository.writer.is_none();
        let level = match (self.data, reader) {
            (false, _) => Level::Structure,
            (true, false) => Level::Hashes,
            (true, true) => Level::Rows,
        };
        let mut report = verify(&repository, chosen.as_ref(), level, &context.monitor()).await?;
        if let Some(key) = context.key_path().filter(|_| !reader && chosen.is_none()) {
            let (all, _) = snapshots::list_all(&repository).await?;
            let behind = Heads::load(&heads_path(&key))?.behind(&all);
            report.findings.extend(behind.into_iter().map(|message| Finding::new(FindingKind::Missing, message)));
        }
        context.progress.finish();
        let output = &context.output;
        output.json("verified", &report)?;
        for finding in &report.findings {
            output.line(format!("DAMAGED  {}{}", finding.message, hurt(finding)));
        }
        for note in &report.notes {
            output.line(format!("note     {}", note.message));
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
}

/// Which snapshots a finding hurts.
fn hurt(finding: &Finding) -> String {
    let hurt: Vec<String> = finding.snapshots.iter().map(|id| id.to_hex()[..12].to_owned()).collect();
    if hurt.is_empty() { String::new() } else { format!(" (hurts {})", hurt.join(", ")) }
}
