//! Which packs a snapshot needs, and whether they have their hashes: for whoever must know it of one snapshot, now.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::{Check, Finding, Level, VerifyOptions};
use crate::monitor::SharedMonitor;
use crate::repository::id::PackId;
use crate::repository::snapshots::Snapshot;
use crate::repository::verified::Log;
use crate::repository::{Repository, RepositoryError};

/// The packs of a snapshot that were not found sound since `oldest`, with their sizes, and what is wrong with their presence.
pub async fn stale(
    repository: &Repository,
    snapshot: &Snapshot,
    oldest: Timestamp,
    monitor: &SharedMonitor,
) -> Result<(BTreeMap<PackId, u32>, Vec<Finding>), RepositoryError> {
    let mut check = Check::new(repository, monitor);
    let indexed = check.fragments(std::slice::from_ref(snapshot)).await?;
    let present = check.present().await?;
    check.look_everywhere(&indexed, &present).await?;
    let mut packs = check.referenced(snapshot).await?;
    check.compare_sizes(&packs, &present).await?;
    let log = Log::read(repository).await?;
    packs.retain(|pack, _| {
        let last = log.checked(pack, present.packs.get(pack).map(|(_, stored)| *stored));
        !last.is_sound || last.at < oldest
    });
    Ok((packs, check.findings.into_list()))
}

/// Fetches packs, computes their hashes, and writes down what was found; what is wrong with them.
pub async fn hash(
    repository: &Repository,
    packs: &BTreeMap<PackId, u32>,
    monitor: &SharedMonitor,
) -> Result<Vec<Finding>, RepositoryError> {
    let mut check = Check::new(repository, monitor);
    let present = check.present().await?;
    let options = VerifyOptions { log: Some(repository), ..VerifyOptions::new(Level::Hashes) };
    check.hash_packs(&options, packs, &BTreeSet::new(), &present).await?;
    Ok(check.findings.into_list())
}
