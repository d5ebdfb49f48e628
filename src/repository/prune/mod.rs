//! Removing what nothing needs, while snapshots and other prunes are at work, on a storage without locks.
//!
//! A pass does all of this, in this order:
//!
//! 1. Forgotten snapshots whose grace is over lose their certificate, then their manifest.
//! 2. It lists the manifests, then everything else, and walks through the trees of all snapshots that are there.
//! 3. Packs that had a tombstone for the length of the grace, and that no manifest *that is there* needs, forgotten or not, go: their entries in the index
//!    first, then the packs, at last their tombstones.
//! 4. What is wanted of small packs, and of those that are mostly dead, is copied into new ones.
//! 5. Packs that nothing but forgotten snapshots needs, and that are older than the grace, get a tombstone. What a copy took the place of
//!    gets it when the copy is older than the grace: runs that began before it rely on the old one.
//!
//! What this lives by:
//!
//! * A writer puts its manifest, *then* lists tombstones, *then* looks for every pack that it relies on, then certifies. So either it sees the tombstone,
//!   or the tombstone is younger than the manifest, and the pass that would delete, a grace later, sees the manifest; or the pack was gone
//!   before its tombstone was, and it misses the pack.
//! * A writer that takes segments over from a snapshot looks for the *certificate* of that after it has put its own manifest. A pass removes the certificate
//!   before it lists manifests. So one of the two sees the other.
//! * A tombstone is removed only when its pack is gone. Whoever removed one of a pack that is there could take it from under another pass, which has
//!   read it and is about to delete.
//! * Of a chunk that lies in several packs one must stay that has no tombstone of any pass, and it is fetched and hashed before another goes.
//! * Anything unexpected (an object that does not open, a chunk that is nowhere): nothing is removed or marked.
//!
//! Every time is the storage's own. Killed between any two requests it leaves nothing but work for the next pass.

mod choice;
mod fragments;
mod references;
mod repack;
pub mod tombstone;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use jiff::{SignedDuration, Timestamp};
use serde::Serialize;

use super::checkpoint;
use super::config::Operation;
use super::forgotten;
use super::id::{ChunkId, Digest, ObjectId, PackId};
use super::name::{NameKind, pack_of};
use super::reader::{ChunkReader, pack_name, run_blocking};
use super::seal::fill_random;
use super::snapshots::{self, Snapshot};
use super::verified::Log;
use super::writer::certificate_name;
use super::{Repository, RepositoryError};
use crate::monitor::{SharedMonitor, Unit};
use crate::storage::{self, ObjectName, StorageError};

use choice::Choice;
use fragments::Fragments;
use references::Needed;
use tombstone::{Tombstone, Tombstones};

/// How far clocks that date objects of one storage may be apart.
const SKEW: SignedDuration = SignedDuration::from_hours(1);

#[derive(Debug, Clone)]
pub struct PruneOptions {
    /// How long a pack stays after it was marked, and how old one must be that is marked.
    pub grace: SignedDuration,
    /// By how much listings of the storage may be behind.
    pub listing_delay: Duration,
    /// So many bytes of packs at most are read to copy what is wanted of them into new ones.
    pub repack: u64,
    /// Say what would be done.
    pub dry_run: bool,
}

impl PruneOptions {
    /// The shortest grace that is safe.
    pub fn least_grace(listing_delay: Duration) -> SignedDuration {
        let delay = SignedDuration::try_from(listing_delay).unwrap_or(SignedDuration::MAX);
        delay.saturating_add(delay).saturating_add(SKEW)
    }
}

/// Packs and their bytes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Amount {
    pub packs: u64,
    pub bytes: u64,
}

impl Amount {
    fn add(&mut self, bytes: u64) {
        self.packs += 1;
        self.bytes += bytes;
    }
}

/// What a pass did, or would do.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Forgotten snapshots that are gone for good.
    pub snapshots: Vec<ObjectId>,
    pub removed: Amount,
    /// Marked by this pass, to go when the grace is over.
    pub marked: Amount,
    /// Marked before.
    pub waiting: Amount,
    /// Marked before, but needed: it stays, and nothing new relies on it.
    pub needed_again: Amount,
    /// Needed by no snapshot, but too young to be marked: a run may be about to name it.
    pub young: Amount,
    /// What is in the storage and stays.
    pub kept: Amount,
    /// Small or mostly dead: what is wanted of them was copied, and a later pass marks them.
    pub repacked: Amount,
    /// Into so many new ones.
    pub repacked_into: Amount,
    /// What the storage does not let go yet; a later pass tries again.
    pub locked: Vec<ObjectName>,
    /// Why nothing was removed and nothing marked.
    pub unexpected: Vec<String>,
}

/// What lies in the storage.
#[derive(Default)]
struct Present {
    packs: HashMap<PackId, (u64, Timestamp)>,
    tombstones: Tombstones,
    /// What a check found damaged, and the objects that say so.
    damaged: HashMap<PackId, ObjectName>,
    fragments: Vec<ObjectName>,
    /// `forgotten/…` and `holds/…`
    marks: Vec<(ObjectName, Timestamp)>,
    checkpoints: Vec<(ObjectName, Timestamp)>,
}

impl Present {
    fn is_unreliable(&self, pack: &PackId) -> bool {
        self.tombstones.contains_key(pack) || self.damaged.contains_key(pack)
    }
}

/// One pass.
pub async fn prune(
    repository: &Repository,
    options: &PruneOptions,
    monitor: &SharedMonitor,
) -> Result<Report, RepositoryError> {
    repository.config.check_features(Operation::Prune)?;
    repository.check_key_objects().await?;
    let storage = &*repository.storage;
    // Before anything is listed, so that what is old enough was so when it was listed.
    let now = if options.dry_run { Timestamp::now() } else { storage::now(storage).await? };
    let mut pass = Pass { repository, options, now, report: Report::default() };
    let snapshots = pass.remove_snapshots().await?;
    if pass.report.unexpected.is_empty() {
        pass.packs(&snapshots, monitor).await?;
    }
    Ok(pass.report)
}

struct Pass<'a> {
    repository: &'a Repository,
    options: &'a PruneOptions,
    now: Timestamp,
    report: Report,
}

impl Pass<'_> {
    fn unexpected(&mut self, what: &RepositoryError) {
        self.report.unexpected.push(what.to_string());
    }

    async fn snapshots(&mut self) -> Result<Vec<Snapshot>, RepositoryError> {
        let (all, problems) = snapshots::list_all(self.repository).await?;
        for problem in &problems {
            if !self.give_up(problem).await? {
                self.unexpected(problem);
            }
        }
        Ok(all)
    }

    /// Removes a manifest that does not open, if it was forgotten by its id and the grace is over: what it alone needed nobody knows any more.
    async fn give_up(&mut self, problem: &RepositoryError) -> Result<bool, RepositoryError> {
        let manifest = problem.object().filter(|name| NameKind::of(name) == Some(NameKind::Manifest)).cloned();
        let Some((name, id)) = manifest.and_then(|name| Some((name.clone(), forgotten::id_in(&name)?))) else {
            return Ok(false);
        };
        let (storage, secrets) = (&*self.repository.storage, &self.repository.secrets);
        let Some(stored) = forgotten::claimed(storage).await?.remove(&id) else { return Ok(false) };
        if forgotten::held(storage).await?.contains(&id) {
            return Ok(false);
        }
        match forgotten::removable(storage, secrets, self.repository.config.epoch, &id, stored).await {
            Ok(Some(at)) if at <= self.now => {}
            Err(e) if !e.is_about_an_object() => return Err(e),
            _ => return Ok(false),
        }
        if self.options.dry_run || (self.delete(certificate_name(&id)?).await? && self.delete(name).await?) {
            self.report.snapshots.push(id);
        }
        Ok(true)
    }

    /// Removes what is forgotten and whose grace is over; those that are there afterwards.
    async fn remove_snapshots(&mut self) -> Result<Vec<Snapshot>, RepositoryError> {
        let (mut all, held) = (self.snapshots().await?, forgotten::held(&*self.repository.storage).await?);
        if !self.report.unexpected.is_empty() {
            return Ok(all);
        }
        let is_over = |one: &Snapshot| one.removable.is_some_and(|at| at <= self.now) && !held.contains(&one.id);
        let over: Vec<Snapshot> = all.iter().filter(|one| is_over(one)).cloned().collect();
        if self.options.dry_run {
            all.retain(|one| !is_over(one));
            self.report.snapshots.extend(over.iter().map(|one| one.id));
            return Ok(all);
        }
        for snapshot in &over {
            // Taken back or held a moment ago.
            let is_wanted = self.is_there(&NameKind::Hold.named(snapshot.id)?).await?
                || !self.is_there(&NameKind::Forgotten.named(snapshot.id)?).await?;
            // The certificate first: what has none is relied on by nobody.
            if !is_wanted
                && self.delete(certificate_name(&snapshot.id)?).await?
                && self.delete(snapshot.name()?).await?
            {
                self.report.snapshots.push(snapshot.id);
            }
        }
        if over.is_empty() {
            return Ok(all);
        }
        // A writer that found a certificate before it went has put its manifest before that.
        tokio::time::sleep(self.options.listing_delay).await;
        self.snapshots().await
    }

    /// Lists everything. After the manifests: what one of them needs was there before it.
    async fn present(&self) -> Result<Present, RepositoryError> {
        let mut present = Present::default();
        let mut listed = self.repository.storage.list("");
        while let Some(meta) = listed.try_next().await? {
            if let Some(pack) = pack_of(&meta.name) {
                present.packs.insert(pack, (meta.size, meta.modified));
                continue;
            }
            match NameKind::of(&meta.name) {
                Some(NameKind::Tombstone) => {
                    if let Some(pack) = tombstone::damaged_in(&meta.name) {
                        present.damaged.insert(pack, meta.name);
                    } else if let Some(pack) = tombstone::pack_in(&meta.name) {
                        present.tombstones.entry(pack).or_default().push((meta.name, meta.modified));
                    }
                }
                Some(NameKind::Index) => present.fragments.push(meta.name),
                Some(NameKind::Forgotten | NameKind::Hold) => present.marks.push((meta.name, meta.modified)),
                Some(NameKind::Checkpoint) => present.checkpoints.push((meta.name, meta.modified)),
                _ => {}
            }
        }
        Ok(present)
    }

    async fn packs(&mut self, snapshots: &[Snapshot], monitor: &SharedMonitor) -> Result<(), RepositoryError> {
        let present = self.present().await?;
        let (fragments, problems) = Fragments::read(self.repository, &present.fragments, |pack| {
            present.packs.get(&pack.id).is_some_and(|(size, _)| *size == u64::from(pack.size))
        })
        .await?;
        problems.iter().for_each(|problem| self.unexpected(problem));
        let index = &*fragments.index;
        let reader = ChunkReader::over(self.repository, fragments.index.clone());
        monitor.stage("references", Unit::Objects, Some(snapshots.len() as u64));
        let mut needed = Needed::new(&reader);
        let certified = |stays: bool| {
            snapshots.iter().filter(move |one| one.certificate.is_some() && one.removable.is_none() == stays)
        };
        for (snapshot, stays) in certified(true).map(|one| (one, true)).chain(certified(false).map(|one| (one, false)))
        {
            match needed.snapshot(&snapshot.manifest, stays).await {
                Err(e) if e.is_about_an_object() => self.unexpected(&e),
                other => other?,
            }
            monitor.advance(1);
        }
        let lost = needed.chunks.keys().filter(|id| index.find(id).is_none());
        self.report.unexpected.extend(lost.map(|id| RepositoryError::MissingChunk { id: *id }.to_string()));
        if !self.report.unexpected.is_empty() {
            return Ok(());
        }
        self.unfinished(snapshots, &present, &mut needed).await?;
        let wanted: Vec<ChunkId> = needed.chunks.iter().filter(|(_, stays)| **stays).map(|(id, _)| *id).collect();
        let unreliable: HashSet<PackId> = present.tombstones.keys().chain(present.damaged.keys()).copied().collect();
        let of_all = Choice::new(index, needed.chunks.keys(), &unreliable);
        let of_wanted = Choice::new(index, wanted.iter(), &unreliable);
        let decided = self.decide(&present, &of_all, &of_wanted).await?;
        if !self.report.unexpected.is_empty() {
            return Ok(());
        }
        let is_kept = |pack: &PackId| of_wanted.needs(pack) && !present.is_unreliable(pack);
        self.repack(&present, index, is_kept, |id| needed.chunks.get(id) == Some(&true)).await?;
        if !self.report.unexpected.is_empty() {
            return Ok(());
        }
        if self.options.dry_run {
            decided.going.values().for_each(|size| self.report.removed.add(*size));
            return Ok(());
        }
        self.remove(snapshots, &present, &fragments, &decided).await?;
        self.mark(&decided, &of_wanted).await
    }

    /// Adds what runs need that are under way or were cut short: snapshots without a certificate, and young checkpoints. Of these something may be
    /// missing, and then they are never certified, or taken over: whoever would looks whether everything is there.
    async fn unfinished<'r>(
        &self,
        snapshots: &[Snapshot],
        present: &Present,
        needed: &mut Needed<'r>,
    ) -> Result<(), RepositoryError> {
        for snapshot in snapshots.iter().filter(|one| one.certificate.is_none()) {
            let mut own = Needed::new(needed.reader);
            let ended = own.snapshot(&snapshot.manifest, snapshot.removable.is_none()).await;
            needed.join(own, ended)?;
        }
        let run = |name: &ObjectName| name.as_str().rsplit_once('/').map(|(run, _)| run.to_owned());
        let young: HashSet<_> =
            present.checkpoints.iter().filter(|(_, at)| *at > self.before_grace()).map(|(name, _)| run(name)).collect();
        for (name, _) in present.checkpoints.iter().filter(|(name, _)| young.contains(&run(name))) {
            let mut own = Needed::new(needed.reader);
            let ended = match checkpoint::read(self.repository, name).await {
                Ok((_, checkpoint)) => own.checkpoint(&checkpoint).await,
                Err(e) => Err(e),
            };
            needed.join(own, ended)?;
        }
        Ok(())
    }

    /// What becomes of each pack.
    async fn decide(
        &mut self,
        present: &Present,
        of_all: &Choice,
        of_wanted: &Choice,
    ) -> Result<Decided, RepositoryError> {
        let mut decided = Decided::default();
        for (pack, (size, _)) in &present.packs {
            let marks = present.tombstones.get(pack).map(Vec::as_slice).unwrap_or_default();
            let (goes, is_marked) = match of_all.needs(pack) {
                true => (false, !marks.is_empty()),
                false => self.marked(marks, present).await?,
            };
            if goes {
                decided.going.insert(*pack, *size);
                continue;
            }
            self.report.kept.add(*size);
            match (is_marked, of_wanted.needs(pack)) {
                (true, true) => self.report.needed_again.add(*size),
                (true, false) => self.report.waiting.add(*size),
                (false, true) => {}
                // Whoever is about to name it gets the time to do so, and whoever found it before there was another place.
                (false, false) if of_wanted.survivors(pack).chain([pack]).any(|one| self.is_young(one, present)) => {
                    self.report.young.add(*size)
                }
                (false, false) => {
                    self.report.marked.add(*size);
                    decided.unmarked.push(*pack);
                }
            }
        }
        let survivors: HashSet<PackId> =
            decided.going.keys().flat_map(|pack| of_all.survivors(pack)).copied().collect();
        for pack in survivors {
            if let Err(e) = self.sound(&pack).await {
                if !e.is_about_an_object() {
                    return Err(e);
                }
                self.unexpected(&e);
            }
        }
        Ok(decided)
    }

    /// Do these tombstones let their pack go? Else: does one of them stand?
    async fn marked(
        &mut self,
        marks: &[(ObjectName, Timestamp)],
        present: &Present,
    ) -> Result<(bool, bool), RepositoryError> {
        let mut stands = false;
        for (name, stored) in marks {
            if *stored > self.before_grace() {
                stands = true;
                continue;
            }
            match tombstone::read(self.repository, name).await {
                Ok(tombstone) => {
                    let is_there = |pack: &PackId| present.packs.contains_key(pack) && !present.is_unreliable(pack);
                    if tombstone.survivors.iter().all(is_there) {
                        return Ok((true, true));
                    }
                }
                Err(e) if e.is_about_an_object() => self.unexpected(&e),
                Err(e) => return Err(e),
            }
        }
        Ok((false, stands))
    }

    /// A pack, if it is what its name says.
    async fn sound(&self, pack: &PackId) -> Result<Bytes, RepositoryError> {
        let (id, name) = (*pack, pack_name(pack)?);
        let bytes = self.repository.storage.get(&name).await?;
        run_blocking(move || {
            let message = "it does not have the hash that it is named by, and no other place is known".to_owned();
            if PackId::of(&bytes) == id { Ok(bytes) } else { Err(RepositoryError::Damaged { name, message }) }
        })
        .await
    }

    async fn remove(
        &mut self,
        snapshots: &[Snapshot],
        present: &Present,
        fragments: &Fragments,
        decided: &Decided,
    ) -> Result<(), RepositoryError> {
        let going = &decided.going;
        let stays = |pack: &PackId| present.packs.contains_key(pack) && !going.contains_key(pack);
        let hints = snapshots.iter().flat_map(|one| one.manifest.fragments.iter().copied()).collect();
        let still_named = fragments.without(self.repository, stays, &hints, &mut self.report.locked).await?;
        let mut gone = HashSet::new();
        for (pack, size) in going {
            if !still_named.contains(pack) && self.delete(pack_name(pack)?).await? {
                self.report.removed.add(*size);
                gone.insert(*pack);
            }
        }
        if !gone.is_empty() {
            // Whoever does not find the tombstone any more must not be shown the pack.
            tokio::time::sleep(self.options.listing_delay).await;
        }
        for (pack, marks) in &present.tombstones {
            let is_gone = match present.packs.contains_key(pack) {
                true => gone.contains(pack),
                false => !self.is_there(&pack_name(pack)?).await?,
            };
            for (name, _) in marks.iter().filter(|_| is_gone) {
                self.delete(name.clone()).await?;
            }
        }
        for (pack, name) in &present.damaged {
            if gone.contains(pack) || !present.packs.contains_key(pack) && !self.is_there(&pack_name(pack)?).await? {
                self.delete(name.clone()).await?;
            }
        }
        let log = Log::read(self.repository).await?;
        for name in log.replaced(present.packs.keys(), self.now) {
            self.delete(name).await?;
        }
        // What tells of snapshots that nobody names any more.
        let named = |one: &Snapshot| [Some(one.id), one.manifest.previous, one.manifest.parent];
        let named: HashSet<ObjectId> = snapshots.iter().flat_map(named).flatten().collect();
        for (name, stored) in &present.marks {
            let is_named = name.file_name().parse().is_ok_and(|id| named.contains(&id));
            if !is_named && *stored <= self.before_grace() {
                self.delete(name.clone()).await?;
            }
        }
        Ok(())
    }

    async fn mark(&mut self, decided: &Decided, of_wanted: &Choice) -> Result<(), RepositoryError> {
        let mut pass = [0; 16];
        fill_random(&mut pass)?;
        for pack in &decided.unmarked {
            let survivors = of_wanted.survivors(pack).copied().collect();
            let (pass, marked) = (Digest(pass), Timestamp::now());
            let tombstone = Tombstone { version: 1, pack: *pack, pass, marked, survivors };
            tombstone::write(self.repository, &tombstone).await?;
        }
        Ok(())
    }

    fn is_young(&self, pack: &PackId, present: &Present) -> bool {
        present.packs.get(pack).is_some_and(|(_, stored)| *stored > self.before_grace())
    }

    fn before_grace(&self) -> Timestamp {
        self.now.saturating_sub(self.options.grace).unwrap_or(Timestamp::MIN)
    }

    async fn is_there(&self, name: &ObjectName) -> Result<bool, RepositoryError> {
        Ok(self.repository.storage.head(name).await?.is_some())
    }

    /// `false`: the storage does not let it go yet.
    async fn delete(&mut self, name: ObjectName) -> Result<bool, RepositoryError> {
        match self.repository.storage.delete(&name).await {
            Ok(()) => Ok(true),
            Err(StorageError::Locked { .. }) => {
                self.report.locked.push(name);
                Ok(false)
            }
            Err(e) => Err(e.into()),
        }
    }
}

#[derive(Default)]
struct Decided {
    /// With their sizes.
    going: BTreeMap<PackId, u64>,
    unmarked: Vec<PackId>,
}
