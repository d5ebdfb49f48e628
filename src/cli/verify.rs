//! `restante verify`

use clap::Args;

use super::context::Context;
use super::exit::Exit;
use super::units;
use crate::repository::snapshots;
use crate::verify::{Level, verify};

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
        let (all, problems) = snapshots::list(&repository).await?;
        let chosen = match &self.snapshot {
            Some(wanted) => vec![snapshots::select(&all, wanted)?.clone()],
            None => all,
        };
        let reader = repository.writer.is_none();
        let level = match (self.data, reader) {
            (false, _) => Level::Structure,
            (true, false) => Level::Hashes,
            (true, true) => Level::Rows,
        };
        let mut report = verify(&repository, &chosen, level, &context.monitor()).await?;
        if self.snapshot.is_none() {
            report.findings.extend(problems.iter().map(ToString::to_string));
        }
        context.progress.finish();
        let output = &context.output;
        output.json("verified", &report)?;
        for finding in &report.findings {
            output.line(format!("DAMAGED  {finding}"));
        }
        output.line(format!(
            "{} snapshots, {} packs, {} fetched, {} rows compared: {}",
            report.snapshots,
            report.packs,
            units::bytes(report.bytes_fetched),
            units::count(report.rows),
            if report.findings.is_empty() { "sound".to_owned() } else { format!("{} findings", report.findings.len()) }
        ));
        if chosen.is_empty() {
            output.line("there is no snapshot to verify");
            return Ok(Exit::Findings);
        }
        Ok(if report.findings.is_empty() { Exit::Done } else { Exit::Findings })
    }
}
