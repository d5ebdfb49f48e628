//! Checks of what is stored. Structure needs no data; hashes need no key to open mail; rows need a reader. What was hashed is written down
//! ([`crate::repository::verified`]), so that a run need not read everything; what was found damaged is marked, so that the next snapshot stores it
//! again.
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
mod hashes;
mod objects;
pub mod packs;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::Serialize;
use tokio_util::sync::CancellationToken;

use crate::monitor::SharedMonitor;
use crate::repository::id::{ObjectId, PackId};
use crate::repository::index::Index;
use crate::repository::reader::pack_name;
use crate::repository::snapshots::{self, Snapshot};
use crate::repository::{Repository, RepositoryError};
use crate::snapshot::live::LiveReport;

use findings::Findings;
pub use findings::{Finding, FindingKind};

/// How much is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    Structure,
    /// Every pack fetched and hashed.
    Hashes,
    /// Every row put together from its chunks and compared with its digest.
    Rows,
}

/// After how much a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    Bytes(u64),
    Time(Duration),
}

/// What is checked.
pub struct VerifyOptions<'a> {
    /// One snapshot; `None`: the whole repository.
    pub only: Option<&'a Snapshot>,
    pub level: Level,
    /// How many packs are hashed: those that failed, then those that nobody looked at for the longest time.
    pub budget: Option<Budget>,
    /// A pack that was hashed since then is not hashed again, and one that was not is a finding.
    pub max_age: Option<SignedDuration>,
    /// The newest certified snapshot of each store must be younger.
    pub newest_within: Option<SignedDuration>,
    /// With whose key it is written down what was found; `None`: it is not.
    pub log: Option<&'a Repository>,
    /// Ends the hashing; what was hashed is written down.
    pub cancel: CancellationToken,
}

impl VerifyOptions<'_> {
    /// The whole repository, at once, and nothing is written down.
    pub fn new(level: Level) -> Self {
        let cancel = CancellationToken::new();
        Self { only: None, level, budget: None, max_age: None, newest_within: None, log: None, cancel }
    }
}

#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub snapshots: u64,
    /// When the newest certified snapshot of each store was taken.
    pub newest: Vec<Newest>,
    pub packs: u64,
    pub pack_bytes: u64,
    /// Hashed by this run, as far as it read them.
    pub packs_hashed: u64,
    /// When the pack was hashed that nobody looked at for the longest time.
    pub oldest_hash: Option<Timestamp>,
    pub bytes_fetched: u64,
    pub rows: u64,
    /// What the live store showed, if it was asked.
    pub live: Option<LiveReport>,
    pub findings: Vec<Finding>,
    /// What a person may want to know and need not act on.
    pub notes: Vec<Finding>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Newest {
    /// `system identifier/database`
    pub store: String,
    pub snapshot: ObjectId,
    /// By the storage's clock.
    pub stored: Timestamp,
}

/// A check under way.
struct Check<'a> {
    repository: &'a Repository,
    monitor: &'a SharedMonitor,
    findings: Findings,
    notes: Findings,
    report: Report,
    /// What all fragments name, when something is lost or damaged.
    whole: Option<Arc<Index>>,
}

/// An error means that the check itself could not go on (no access, no connection).
pub async fn verify(
    repository: &Repository,
    options: &VerifyOptions<'_>,
    monitor: &SharedMonitor,
) -> Result<Report, RepositoryError> {
    let VerifyOptions { only, level, .. } = *options;
    let mut check = Check::new(repository, monitor);
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
    check.look_everywhere(&indexed, &present).await?;
    let mut packs = BTreeMap::new();
    for snapshot in &chosen {
        packs.extend(check.referenced(snapshot).await?);
    }
    check.report.packs = packs.len() as u64;
    check.report.pack_bytes = packs.values().map(|size| u64::from(*size)).sum();
    let mut damaged = check.compare_sizes(&packs, &present).await?;
    if only.is_none() {
        check.history(&chosen).await?;
        check.newest(&chosen, options.newest_within);
        check.drilled().await?;
        check.marks().await?;
        check.leftovers(&indexed, &present)?;
    }
    if level != Level::Structure {
        damaged.extend(check.hash_packs(options, &packs, &damaged, &present).await?);
    } else if only.is_none() {
        let log = check.log().await?;
        check.known_damage(&packs, &present, &log)?;
    }
    check.blame(&chosen, &damaged).await?;
    if level == Level::Rows {
        check.compare_rows(&chosen).await?;
    }
    Ok(Report { findings: check.findings.into_list(), notes: check.notes.into_list(), ..check.report })
}

impl<'a> Check<'a> {
    fn new(repository: &'a Repository, monitor: &'a SharedMonitor) -> Self {
        let (findings, notes) = (Findings::default(), Findings::default());
        Check { repository, monitor, findings, notes, report: Report::default(), whole: None }
    }
}

impl Check<'_> {
    /// Tells at each damaged pack which snapshots need it. Walks through their metadata once more, but only after damage, so
    /// that a sound repository needs no memory for who uses what.
    async fn blame(&mut self, chosen: &[Snapshot], damaged: &BTreeSet<PackId>) -> Result<(), RepositoryError> {
        if damaged.is_empty() {
            return Ok(());
        }
        for snapshot in chosen {
            let used = self.referenced(snapshot).await?;
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
