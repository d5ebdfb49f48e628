//! The packs' hashes, within a budget, and what is written down of them.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures_util::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};

use super::objects::Present;
use super::{Budget, Check, Finding, FindingKind, Newest, VerifyOptions};
use crate::monitor::Unit;
use crate::repository::drills;
use crate::repository::id::PackId;
use crate::repository::prune::tombstone;
use crate::repository::reader::{pack_name, run_blocking};
use crate::repository::snapshots::Snapshot;
use crate::repository::verified::{self, Checked, Log};
use crate::repository::{Repository, RepositoryError};
use crate::storage::{Storage, StorageError};

/// Packs that are fetched at a time.
const AT_ONCE: usize = 2;
/// So much work at most is not written down when a run dies.
const RECORD_EVERY: std::time::Duration = std::time::Duration::from_secs(300);

/// A pack to be hashed; in the order in which it is its turn: what failed, then what was hashed the longest time ago.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Due {
    last: Checked,
    pack: PackId,
    size: u32,
}

/// Those whose turn it is in this run.
fn within(budget: Option<Budget>, due: Vec<Due>) -> Vec<Due> {
    let Some(Budget::Bytes(limit)) = budget else { return due };
    let mut left = limit;
    let fits = |(at, one): &(usize, &Due)| {
        let fits = u64::from(one.size) <= left;
        left = left.saturating_sub(one.size.into());
        // One at least, or a small budget would never get anywhere.
        fits || *at == 0
    };
    let number = due.iter().enumerate().take_while(fits).count();
    due.into_iter().take(number).collect()
}

/// What was found and is not written down yet.
struct Found<'a> {
    log: Option<&'a Repository>,
    sound: HashSet<PackId>,
    failed: Vec<PackId>,
    since: Instant,
}

impl Found<'_> {
    async fn write(&mut self) -> Result<(), RepositoryError> {
        if let Some(log) = self.log.filter(|_| !self.sound.is_empty() || !self.failed.is_empty()) {
            verified::write(log, &self.sound, &self.failed).await?;
        }
        self.sound.clear();
        self.failed.clear();
        self.since = Instant::now();
        Ok(())
    }
}

impl Check<'_> {
    /// What earlier checks found; records that do not open are findings.
    pub(super) async fn log(&mut self) -> Result<Log, RepositoryError> {
        let mut log = Log::read(self.repository).await?;
        for problem in log.problems.drain(..) {
            self.findings.add_error(problem, None, [])?;
        }
        Ok(log)
    }

    /// Fetches and hashes packs, but those that are known to be damaged, as far as the budget goes; the ones that do not have their hash.
    pub(super) async fn hash_packs(
        &mut self,
        options: &VerifyOptions<'_>,
        packs: &BTreeMap<PackId, u32>,
        known: &BTreeSet<PackId>,
        present: &Present,
    ) -> Result<BTreeSet<PackId>, RepositoryError> {
        let log = self.log().await?;
        let began = Timestamp::now();
        let is_old = |at: Timestamp| options.max_age.is_none_or(|age| began.duration_since(at) >= age);
        let checked = |pack: &PackId| log.checked(pack, present.packs.get(pack).map(|(_, stored)| *stored));
        let all = packs.iter().filter(|(pack, _)| !known.contains(*pack));
        let all = all.map(|(pack, size)| Due { last: checked(pack), pack: *pack, size: *size });
        let (mut due, rest): (Vec<Due>, Vec<Due>) = all.partition(|one| !one.last.is_sound || is_old(one.last.at));
        due.sort_unstable();
        let turns = within(options.budget, due.clone());
        self.monitor.stage("packs", Unit::Bytes, Some(turns.iter().map(|one| u64::from(one.size)).sum()));
        let mut damaged = BTreeSet::new();
        let mut found = Found {
            log: options.log,
            sound: HashSet::new(),
            failed: known.iter().copied().collect(),
            since: Instant::now(),
        };
        let ended = self.hash_each(options, turns, present, &mut found, &mut damaged).await;
        // Also what was hashed before it failed.
        let written = found.write().await;
        let done = ended?;
        written?;
        self.report.packs_hashed = done as u64;
        if options.cancel.is_cancelled() {
            return Err(RepositoryError::Interrupted);
        }
        let left = &due[done..];
        self.report.oldest_hash = left.iter().chain(&rest).map(|one| one.last.at).min().or((done > 0).then_some(began));
        if let (Some(age), Some(first)) = (options.max_age, left.first()) {
            let message = format!(
                "{} packs were not hashed within {age:#}, the longest time since {}: a larger --budget, or more runs",
                left.len(),
                first.last.at.strftime("%Y-%m-%d")
            );
            self.findings.add(Finding::new(FindingKind::Overdue, message));
        }
        Ok(damaged)
    }

    /// How many were hashed.
    async fn hash_each(
        &mut self,
        options: &VerifyOptions<'_>,
        turns: Vec<Due>,
        present: &Present,
        found: &mut Found<'_>,
        damaged: &mut BTreeSet<PackId>,
    ) -> Result<usize, RepositoryError> {
        let started = Instant::now();
        let storage = self.repository.storage.clone();
        let fetched = turns.into_iter().map(move |one| fetch(storage.clone(), one));
        let mut fetched = stream::iter(fetched).buffered(AT_ONCE);
        let mut done = 0;
        while let Some((one, hashed)) = fetched.next().await {
            let name = pack_name(&one.pack)?;
            let is_sound = match hashed {
                Ok((length, hash)) => {
                    self.report.bytes_fetched += length;
                    if hash != one.pack {
                        let message = format!("object {name} does not have the hash that it is named by");
                        self.findings.add(Finding::new(FindingKind::Damaged, message).at(&name));
                    }
                    hash == one.pack
                }
                Err(e) => {
                    self.findings.add_error(e, Some(&name), [])?;
                    false
                }
            };
            self.monitor.advance(u64::from(one.size));
            done += 1;
            if is_sound {
                found.sound.insert(one.pack);
            } else {
                found.failed.push(one.pack);
                damaged.insert(one.pack);
            }
            let is_marked = present.damaged.contains(&one.pack);
            match options.log {
                Some(log) if !is_sound && !is_marked => tombstone::mark_damaged(log, &one.pack).await?,
                Some(log) if is_sound && is_marked => back(log, &one.pack).await?,
                _ => {}
            }
            if found.sound.len() >= verified::RECORD_PACKS || found.since.elapsed() >= RECORD_EVERY {
                found.write().await?;
            }
            let is_over = matches!(options.budget, Some(Budget::Time(limit)) if started.elapsed() >= limit);
            if is_over || options.cancel.is_cancelled() {
                break;
            }
        }
        Ok(done)
    }

    /// Of each store the newest certified snapshot, and whether it is young enough.
    pub(super) fn newest(&mut self, chosen: &[Snapshot], within: Option<SignedDuration>) {
        let mut newest: BTreeMap<String, &Snapshot> = BTreeMap::new();
        for snapshot in chosen.iter().filter(|one| one.is_usable()) {
            let place = newest.entry(snapshot.manifest.store.to_string()).or_insert(snapshot);
            if snapshot.stored >= place.stored {
                *place = snapshot;
            }
        }
        for snapshot in chosen.iter().filter(|one| one.is_from_the_future()) {
            let (short, taken, stored) = (snapshot.short(), snapshot.manifest.taken, snapshot.stored);
            let message = format!(
                "snapshot {short} says that it is of {taken}, and was stored on {stored}: somebody made it up, or a clock is wrong. It is never \
                 `latest`; forget it by name when you know"
            );
            self.findings.add(Finding::new(FindingKind::Dated, message).of(&snapshot.id));
        }
        let now = Timestamp::now();
        for (store, snapshot) in newest {
            if let Some(within) = within.filter(|within| now.duration_since(snapshot.stored) > *within) {
                let message = format!(
                    "the newest certified snapshot of {store}, {}, is from {}: older than {within:#}",
                    snapshot.short(),
                    snapshot.stored.strftime("%Y-%m-%d %H:%M:%SZ")
                );
                self.findings.add(Finding::new(FindingKind::Overdue, message).of(&snapshot.id));
            }
            self.report.newest.push(Newest { store, snapshot: snapshot.id, stored: snapshot.stored });
        }
    }
}

/// An identity that was lost is noticed when somebody needs it, or in a drill.
const DRILL_EVERY: SignedDuration = SignedDuration::from_hours(90 * 24);

/// For how many days no drill opened the repository, if for too long.
fn undrilled(created: Timestamp, last: Option<Timestamp>, now: Timestamp) -> Option<i64> {
    let since = now.duration_since(last.unwrap_or(created));
    (since > DRILL_EVERY).then(|| since.as_hours() / 24)
}

impl Check<'_> {
    /// Says when it is long since that a reader opened the repository.
    pub(super) async fn drilled(&mut self) -> Result<(), RepositoryError> {
        // Those that do not open are told elsewhere.
        let (drills, _) = drills::list(self.repository).await?;
        if let Some(days) =
            undrilled(self.repository.config.created, drills.last().map(|drill| drill.began), Timestamp::now())
        {
            let message = format!(
                "for {days} days no reader has opened the repository in a drill: whether the identities are still there, and fit, is not \
                 known. Hold one (restante drill)"
            );
            self.notes.add(Finding::new(FindingKind::Overdue, message));
        }
        Ok(())
    }
}

/// The length and the hash of what lies there.
async fn fetch(storage: Arc<dyn Storage>, one: Due) -> (Due, Result<(u64, PackId), RepositoryError>) {
    let hashed = async {
        let bytes = storage.get(&pack_name(&one.pack)?).await?;
        run_blocking(move || Ok((bytes.len() as u64, PackId::of(&bytes)))).await
    };
    (one, hashed.await)
}

/// A pack that was damaged is sound again. Where nothing may be deleted the mark stays, and costs a second copy at most.
async fn back(log: &Repository, pack: &PackId) -> Result<(), RepositoryError> {
    match tombstone::unmark_damaged(log, pack).await {
        Err(RepositoryError::Storage(StorageError::Locked { .. } | StorageError::Denied { .. })) => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn due(pack: u8, is_sound: bool, days: i64, size: u32) -> Due {
        let at = Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * days);
        Due { last: Checked { is_sound, at }, pack: PackId([pack; 32]), size }
    }

    #[test]
    fn a_drill_is_missed_after_ninety_days() {
        let day = |n: i64| Timestamp::UNIX_EPOCH + SignedDuration::from_hours(24 * n);
        assert_eq!(undrilled(day(0), None, day(90)), None);
        assert_eq!(undrilled(day(0), None, day(91)), Some(91));
        assert_eq!(undrilled(day(0), Some(day(30)), day(120)), None);
        assert_eq!(undrilled(day(0), Some(day(30)), day(130)), Some(100));
    }

    #[test]
    fn what_failed_comes_first_then_what_was_hashed_longest_ago_and_one_at_least() {
        let mut all = vec![due(1, true, 9, 10), due(2, true, 3, 10), due(3, false, 20, 10), due(4, true, 5, 10)];
        all.sort_unstable();
        let turns = |limit| -> Vec<u8> {
            within(Some(Budget::Bytes(limit)), all.clone()).iter().map(|one| one.pack.0[0]).collect()
        };
        assert_eq!(turns(40), [3, 2, 4, 1]);
        assert_eq!(turns(39), [3, 2, 4]);
        assert_eq!(turns(20), [3, 2]);
        assert_eq!(turns(1), [3]);
        assert_eq!(within(None, all.clone()).len(), 4);
    }
}
