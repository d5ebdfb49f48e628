//! Checks of what is stored. Structure needs no data; hashes need no key to open mail; rows need a reader.
//!
//! A finding names the object, and the check goes on after it: an operator wants the whole list. What cannot hurt (leftovers
//! of an interrupted run, objects of somebody else) is a note. Uses `repository`; `cli` calls it.
//!
//! In memory: the names and sizes of all packs (about 100 bytes each, a pack has 16 MiB), 100 bytes for each distinct segment
//! whose rows were compared, one snapshot's part of the index, and the rows of one batch.
//!
//! What no check can find, because nothing in the storage is left to tell of it, is listed in `tests/it/matrix/damage.rs`.

mod data;
mod findings;
mod objects;

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use crate::monitor::SharedMonitor;
use crate::repository::id::{ObjectId, PackId};
use crate::repository::reader::pack_name;
use crate::repository::snapshots::{self, Snapshot};
use crate::repository::{Repository, RepositoryError};

use findings::Findings;
pub use findings::{Finding, FindingKind};
use objects::Present;

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Structure,
    /// Every pack fetched and hashed.
    Hashes,
    /// Every row put together from its chunks and compared with its digest.
    Rows,
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub snapshots: u64,
    pub packs: u64,
    pub bytes_fetched: u64,
    pub rows: u64,
    pub findings: Vec<Finding>,
    /// What a person may want to know and need not act on.
    pub notes: Vec<Finding>,
}

/// A check under way.
struct Check<'a> {
    repository: &'a Repository,
    monitor: &'a SharedMonitor,
    findings: Findings,
    notes: Findings,
    report: Report,
}

/// Checks one snapshot, or the whole repository. An error means that the check itself could not go on (no access, no
/// connection).
pub async fn verify(
    repository: &Repository,
    only: Option<&Snapshot>,
    level: Level,
    monitor: &SharedMonitor,
) -> Result<Report, RepositoryError> {
    let (findings, notes) = (Findings::default(), Findings::default());
    let mut check = Check { repository, monitor, findings, notes, report: Report::default() };
    check.keys().await?;
    let chosen = match only {
        Some(snapshot) => vec![snapshot.clone()],
        None => {
            // What is forgotten can still be taken back.
            let (all, problems) = snapshots::list_all(repository).await?;
            for problem in problems {
                check.findings.add_error(problem, None, [])?;
            }
            all
        }
    };
    check.report.snapshots = chosen.len() as u64;
    let indexed = check.fragments(&chosen).await?;
    let present = check.present().await?;
    let mut packs = BTreeMap::new();
    for snapshot in &chosen {
        packs.extend(check.referenced(snapshot, &present).await?);
    }
    check.report.packs = packs.len() as u64;
    let mut damaged = check.compare_sizes(&packs, &present).await?;
    if only.is_none() {
        check.history(&chosen).await?;
        check.marks().await?;
        check.leftovers(&indexed, &present)?;
    }
    if level != Level::Structure {
        damaged.extend(check.hash_packs(&packs, &damaged).await?);
    }
    check.blame(&chosen, &damaged, &present).await?;
    if level == Level::Rows {
        check.compare_rows(&chosen).await?;
    }
    Ok(Report { findings: check.findings.into_list(), notes: check.notes.into_list(), ..check.report })
}

impl Check<'_> {
    /// Tells at each damaged pack which snapshots need it. Walks through their metadata once more, but only after damage, so
    /// that a sound repository needs no memory for who uses what.
    async fn blame(
        &mut self,
        chosen: &[Snapshot],
        damaged: &BTreeSet<PackId>,
        present: &Present,
    ) -> Result<(), RepositoryError> {
        if damaged.is_empty() {
            return Ok(());
        }
        for snapshot in chosen {
            let used = self.referenced(snapshot, present).await?;
            for pack in damaged.iter().filter(|pack| used.contains_key(pack)) {
                self.findings.add(Finding::new(FindingKind::Damaged, "").at(&pack_name(pack)?).of(&snapshot.id));
            }
        }
        Ok(())
    }
}

/// The names that hold an id as their last part: of manifests and certificates.
fn id_of(file_name: &str) -> Option<ObjectId> {
    file_name.rsplit('-').next()?.parse().ok()
}
