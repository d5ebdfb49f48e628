//! Which packs a snapshot needs, and whether they have their hashes: for whoever must know it of one snapshot, now.

use std::collections::{BTreeMap, BTreeSet};

use super::findings::Findings;
use super::{Check, Finding, Report};
use crate::monitor::SharedMonitor;
use crate::repository::id::PackId;
use crate::repository::snapshots::Snapshot;
use crate::repository::{Repository, RepositoryError};

/// The packs of a snapshot with their sizes, and what is wrong with their presence.
pub async fn needed(
    repository: &Repository,
    snapshot: &Snapshot,
    monitor: &SharedMonitor,
) -> Result<(BTreeMap<PackId, u32>, Vec<Finding>), RepositoryError> {
    let mut check = check(repository, monitor);
    let present = check.present().await?;
    let packs = check.referenced(snapshot, &present).await?;
    check.compare_sizes(&packs, &present).await?;
    Ok((packs, check.findings.into_list()))
}

/// Fetches packs and computes their hashes; what is wrong with them.
pub async fn hash(
    repository: &Repository,
    packs: &BTreeMap<PackId, u32>,
    monitor: &SharedMonitor,
) -> Result<Vec<Finding>, RepositoryError> {
    let mut check = check(repository, monitor);
    check.hash_packs(packs, &BTreeSet::new()).await?;
    Ok(check.findings.into_list())
}

fn check<'a>(repository: &'a Repository, monitor: &'a SharedMonitor) -> Check<'a> {
    Check { repository, monitor, findings: Findings::default(), notes: Findings::default(), report: Report::default() }
}
