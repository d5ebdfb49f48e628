//! The snapshot without which no change begins: of this server, certified, complete, not suspect, fresh, and every pack that it needs
//! hashed not long ago.
//!
//! A pack counts as hashed when it was written (whoever wrote it fetched it back and opened it) and whenever a guard or a check hashed it since,
//! which they write down ([`crate::repository::verified`]).

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::change::Target;
use super::document::shown;
use super::error::GuardError;
use super::policy::Policy;
use crate::monitor::SharedMonitor;
use crate::repository::Repository;
use crate::repository::id::PackId;
use crate::repository::snapshots::{self, Snapshot};
use crate::verify::packs;

/// The newest certified snapshot of a server's database, and what stands against relying on it for a change. Reasons are sentences.
pub struct Newest {
    pub snapshot: Option<Snapshot>,
    pub reasons: Vec<String>,
}

pub async fn newest(
    repository: &Repository,
    target: &Target,
    policy: &Policy,
    now: Timestamp,
) -> Result<Newest, GuardError> {
    let (all, problems) = snapshots::list(repository).await?;
    let mut reasons: Vec<String> = Vec::new();
    let of_target = |snapshot: &&Snapshot| is_of(snapshot, target);
    let mine: Vec<&Snapshot> = all.iter().filter(of_target).collect();
    let Some(snapshot) = mine.iter().rfind(|snapshot| snapshot.is_usable()) else {
        for uncertified in &mine {
            reasons.push(format!("snapshot {} is not certified: it was never read back in full", uncertified.short()));
        }
        let database = &target.database;
        if mine.is_empty() && !all.is_empty() {
            let others: Vec<String> = all.iter().rev().take(3).map(named).collect();
            reasons.push(format!(
                "there is no snapshot of database {database} of the server {}; the newest in the repository are of {}",
                target.system_identifier,
                others.join(", ")
            ));
        } else if mine.is_empty() {
            reasons.push(format!("there is no snapshot of database {database}: take one with `restante snapshot`; `guard run` takes one too"));
        }
        reasons.extend(problems.iter().map(|problem| format!("a snapshot is left out: {problem}")));
        return Ok(Newest { snapshot: None, reasons });
    };
    reasons.extend(unfit(snapshot));
    let age = now.duration_since(snapshot.manifest.taken);
    if age > policy.snapshot_age {
        let (short, age, limit) = (
            snapshot.short(),
            shown(jiff::SignedDuration::from_mins(age.as_mins().max(1))),
            shown(policy.snapshot_age),
        );
        reasons.push(format!(
            "snapshot {short}, the newest that is certified, is {age} old, and the policy wants one of the last {limit}"
        ));
    }
    Ok(Newest { snapshot: Some((*snapshot).clone()), reasons })
}

fn named(snapshot: &Snapshot) -> String {
    let store = &snapshot.manifest.store;
    let system = store.system_identifier.map_or_else(|| "an unknown server".to_owned(), |id| format!("server {id}"));
    format!("database {} of {system}", store.database)
}

pub fn is_of(snapshot: &Snapshot, target: &Target) -> bool {
    let store = &snapshot.manifest.store;
    store.database == target.database
        && store.system_identifier.is_some_and(|id| id.to_string() == target.system_identifier)
}

/// Why a snapshot must not be relied on, whatever its age.
pub fn unfit(snapshot: &Snapshot) -> Vec<String> {
    let (manifest, short) = (&snapshot.manifest, snapshot.short());
    let mut reasons = Vec::new();
    if snapshot.certificate.is_none() {
        reasons.push(format!("snapshot {short} is not certified: it was never read back in full"));
    }
    if !manifest.complete {
        let missing: Vec<&str> = manifest.not_covered.iter().map(|missing| missing.object.as_str()).collect();
        reasons.push(format!(
            "snapshot {short} is incomplete: {} not covered; `restante show {short}` says why",
            missing.join(", ")
        ));
    }
    for why in &manifest.suspect {
        reasons.push(format!("snapshot {short} is suspect: {why}; look at it, and if that was done on purpose take one with --accept-loss"));
    }
    reasons
}

/// Packs whose last hash is older than the policy allows, and what is wrong with any.
pub async fn stale_packs(
    repository: &Repository,
    snapshot: &Snapshot,
    policy: &Policy,
    now: Timestamp,
    monitor: &SharedMonitor,
) -> Result<(BTreeMap<PackId, u32>, Vec<String>), GuardError> {
    let oldest = now.checked_sub(policy.hash_age).unwrap_or(Timestamp::MIN);
    let (stale, findings) = packs::stale(repository, snapshot, oldest, monitor).await?;
    Ok((stale, findings.into_iter().map(|finding| finding.message).collect()))
}

/// Hashes packs and writes it down; what is wrong with them.
pub async fn hash_now(
    repository: &Repository,
    stale: &BTreeMap<PackId, u32>,
    monitor: &SharedMonitor,
) -> Result<Vec<String>, GuardError> {
    if stale.is_empty() {
        return Ok(Vec::new());
    }
    let findings = packs::hash(repository, stale, monitor).await?;
    Ok(findings.into_iter().map(|finding| finding.message).collect())
}
