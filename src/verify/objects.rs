//! The structure: keys, index fragments, manifests and certificates as a history, what is referenced, what is left over.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use futures_util::TryStreamExt;
use jiff::Timestamp;

use super::{Check, Finding, FindingKind, id_of};
use crate::repository::RepositoryError;
use crate::repository::forgotten;
use crate::repository::id::{ChunkId, Epoch, ObjectId, PackId};
use crate::repository::manifest::Table;
use crate::repository::name::{NameKind, pack_of};
use crate::repository::open::key_objects;
use crate::repository::prune::tombstone;
use crate::repository::reader::{ChunkReader, add_unnamed, fragment_name, load_sound_index, pack_name, read_fragment};
use crate::repository::ring::ring_place;
use crate::repository::segment::SegmentEntry;
use crate::repository::snapshots::{Snapshot, SnapshotReader};
use crate::repository::verified::Log;
use crate::repository::{changes, drills};
use crate::storage::ObjectName;

/// So many leftovers are named one by one.
const NAMED: usize = 10;

/// What is kept of an index fragment: which packs it names.
pub(super) struct Indexed {
    packs: HashSet<PackId>,
    /// Every fragment opened: a pack that none names is a leftover.
    complete: bool,
}

/// What is in the storage.
#[derive(Default)]
pub(super) struct Present {
    /// With their sizes, and when they were put.
    pub(super) packs: BTreeMap<PackId, (u64, Timestamp)>,
    /// Packs that an earlier check found damaged.
    pub(super) damaged: HashSet<PackId>,
    /// The first few names that are none of Restante's.
    strange: Vec<ObjectName>,
}

impl Check<'_> {
    /// A writer knows the key objects by name; a reader sees whether they are what their names say.
    pub(super) async fn keys(&mut self) -> Result<(), RepositoryError> {
        if self.repository.writer.is_some()
            && let Err(e) = self.repository.check_key_objects().await
        {
            self.findings.add_error(e, None, [])?;
        }
        let mut numbers: BTreeMap<_, BTreeSet<u32>> = BTreeMap::new();
        for name in key_objects(&*self.repository.storage).await? {
            let Some((epoch, number, hash)) = ring_place(&name) else {
                let message = format!("object {name} is not the name of a key ring: somebody else put it there");
                self.findings.add(Finding::new(FindingKind::Keys, message).at(&name));
                continue;
            };
            numbers.entry(epoch).or_default().insert(number);
            match self.repository.storage.get(&name).await {
                Ok(bytes) if ObjectId::of(&bytes) == hash => {}
                Ok(_) => {
                    let message =
                        format!("object {name} is damaged: its bytes do not have the hash that its name says");
                    self.findings.add(Finding::new(FindingKind::Keys, message).at(&name));
                }
                Err(e) => self.findings.add_error(e.into(), Some(&name), [])?,
            }
        }
        let current = self.repository.config.epoch;
        for (epoch, _) in numbers.iter().filter(|(epoch, _)| **epoch > current) {
            let message = format!(
                "a key ring of epoch {epoch}, keys/{epoch}/1-…, is there, but the config/… that begins it is missing: \
                 somebody took it away, or a rotation was interrupted"
            );
            self.findings.add(Finding::new(FindingKind::Keys, message));
        }
        for (name, problem) in &self.repository.passed_over {
            let message = format!("key ring {name} was passed over: {problem}");
            self.findings.add(Finding::new(FindingKind::Keys, message).at(name));
        }
        for epoch in (1..=current.0).map(Epoch) {
            let numbers = numbers.remove(&epoch).unwrap_or_default();
            // Each epoch begins with a ring.
            let last = numbers.last().copied().unwrap_or(2);
            for number in (1..last).filter(|number| !numbers.contains(number)) {
                let message = format!("key ring keys/{epoch}/{number}-… is missing: rings are counted from 1");
                self.findings.add(Finding::new(FindingKind::Keys, message));
            }
        }
        Ok(())
    }

    /// Opens every index fragment, one at a time.
    pub(super) async fn fragments(&mut self, chosen: &[Snapshot]) -> Result<Indexed, RepositoryError> {
        let (storage, secrets) = (&*self.repository.storage, &*self.repository.secrets);
        let names: Vec<ObjectName> =
            storage.list(NameKind::Index.prefix()).map_ok(|meta| meta.name).try_collect().await?;
        let users = |id: &ObjectId| -> Vec<ObjectId> {
            chosen.iter().filter(|s| s.manifest.fragments.contains(id)).map(|s| s.id).collect()
        };
        let mut indexed = Indexed { packs: HashSet::new(), complete: true };
        let mut opened = HashSet::new();
        for name in &names {
            match read_fragment(storage, secrets, name).await {
                Ok(fragment) => {
                    opened.insert(fragment.id);
                    opened.extend(fragment.supersedes);
                    indexed.packs.extend(fragment.packs.iter().map(|pack| pack.id));
                }
                Err(e) => {
                    indexed.complete = false;
                    let users = name.file_name().parse().map(|id| users(&id)).unwrap_or_default();
                    self.findings.add_error(e, Some(name), users)?;
                }
            }
        }
        let wanted: BTreeSet<&ObjectId> = chosen.iter().flat_map(|s| &s.manifest.fragments).collect();
        for id in wanted.into_iter().filter(|id| !opened.contains(*id)) {
            indexed.complete = false;
            let name = fragment_name(id)?;
            // Opened already, and found damaged, or not listed; a listing may lag.
            if names.contains(&name) {
                continue;
            }
            match read_fragment(storage, secrets, &name).await {
                Ok(fragment) => indexed.packs.extend(fragment.packs.iter().map(|pack| pack.id)),
                Err(e) => self.findings.add_error(e, Some(&name), users(id))?,
            }
        }
        Ok(indexed)
    }

    /// What was lost or damaged may have been stored again by a later snapshot: then all fragments are looked into, those packs first that are there. What lost
    /// fragments told, packs tell themselves.
    pub(super) async fn look_everywhere(
        &mut self,
        indexed: &Indexed,
        present: &Present,
    ) -> Result<(), RepositoryError> {
        let all_there = indexed.packs.iter().all(|pack| present.packs.contains_key(pack));
        if present.damaged.is_empty() && all_there && indexed.complete {
            return Ok(());
        }
        let (storage, secrets) = (&*self.repository.storage, &*self.repository.secrets);
        let (mut index, _) = load_sound_index(storage, secrets, None).await?;
        if !indexed.complete {
            add_unnamed(storage, secrets, &mut index).await?;
        }
        index.prefer(|pack| {
            present.packs.get(&pack.id).is_some_and(|(size, _)| *size == u64::from(pack.size))
                && !present.damaged.contains(&pack.id)
        });
        self.whole = Some(Arc::new(index));
        Ok(())
    }

    pub(super) async fn open(&self, snapshot: &Snapshot) -> Result<SnapshotReader, RepositoryError> {
        match &self.whole {
            Some(index) => {
                let chunks = ChunkReader::over(self.repository, index.clone());
                Ok(SnapshotReader::over(self.repository, snapshot, chunks))
            }
            None => SnapshotReader::open(self.repository, snapshot).await,
        }
    }

    /// The packs that a snapshot needs, with their sizes as recorded; every chunk id in it is looked up.
    pub(super) async fn referenced(&mut self, snapshot: &Snapshot) -> Result<BTreeMap<PackId, u32>, RepositoryError> {
        let mut packs = BTreeMap::new();
        let reader = match self.open(snapshot).await {
            Ok(reader) => reader,
            Err(e) => {
                self.findings.add_error(e, None, [snapshot.id])?;
                return Ok(packs);
            }
        };
        let manifest = reader.manifest();
        let schema = manifest.schema.catalog.iter().chain(&manifest.schema.dump);
        self.locate(&reader, schema.copied(), &mut packs)?;
        for table in &manifest.tables {
            if let Err(e) = self.referenced_by_table(&reader, table, &mut packs).await {
                self.findings.add_error(e, None, [snapshot.id])?;
            }
        }
        Ok(packs)
    }

    async fn referenced_by_table(
        &mut self,
        reader: &SnapshotReader,
        table: &Table,
        packs: &mut BTreeMap<PackId, u32>,
    ) -> Result<(), RepositoryError> {
        self.locate(reader, table.pages.iter().copied(), packs)?;
        for segment in reader.segments(table).await? {
            if let Err(e) = self.referenced_by_segment(reader, &segment, packs).await {
                self.findings.add_error(e, None, [reader.snapshot.id])?;
            }
        }
        Ok(())
    }

    async fn referenced_by_segment(
        &mut self,
        reader: &SnapshotReader,
        segment: &SegmentEntry,
        packs: &mut BTreeMap<PackId, u32>,
    ) -> Result<(), RepositoryError> {
        self.locate(reader, std::iter::once(segment.descriptor).chain(segment.zones.iter().copied()), packs)?;
        for increment in reader.descriptor(segment).await?.increments {
            self.locate(reader, increment.chunks(), packs)?;
        }
        Ok(())
    }

    fn locate(
        &mut self,
        reader: &SnapshotReader,
        ids: impl Iterator<Item = ChunkId>,
        packs: &mut BTreeMap<PackId, u32>,
    ) -> Result<(), RepositoryError> {
        for id in ids {
            match reader.chunks.locate(&id) {
                Ok((info, _)) => drop(packs.insert(info.id, info.size)),
                Err(e) => self.findings.add_error(e, None, [reader.snapshot.id])?,
            }
        }
        Ok(())
    }

    /// Lists everything once.
    pub(super) async fn present(&self) -> Result<Present, RepositoryError> {
        let mut present = Present::default();
        let mut listed = self.repository.storage.list("");
        while let Some(meta) = listed.try_next().await? {
            if let Some(pack) = pack_of(&meta.name) {
                present.packs.insert(pack, (meta.size, meta.modified));
            } else if let Some(pack) = tombstone::damaged_in(&meta.name) {
                present.damaged.insert(pack);
            } else if NameKind::of(&meta.name).is_none() && present.strange.len() < NAMED {
                present.strange.push(meta.name);
            }
        }
        Ok(present)
    }

    /// Packs that are missing or have another length.
    pub(super) async fn compare_sizes(
        &mut self,
        packs: &BTreeMap<PackId, u32>,
        present: &Present,
    ) -> Result<BTreeSet<PackId>, RepositoryError> {
        let mut damaged = BTreeSet::new();
        for (pack, size) in packs {
            let name = pack_name(pack)?;
            let found = match present.packs.get(pack) {
                Some((found, _)) => Some(*found),
                // A listing may lag.
                None => self.repository.storage.head(&name).await?.map(|meta| meta.size),
            };
            let finding = match found {
                None => Finding::new(FindingKind::Missing, format!("object {name} is missing")),
                Some(found) if found != u64::from(*size) => {
                    Finding::new(FindingKind::Damaged, format!("object {name} has {found} bytes instead of {size}"))
                }
                Some(_) => continue,
            };
            self.findings.add(finding.at(&name));
            damaged.insert(*pack);
        }
        Ok(damaged)
    }

    /// Packs that an earlier check found damaged and that something needs still: without data nothing else tells of them.
    pub(super) fn known_damage(
        &mut self,
        packs: &BTreeMap<PackId, u32>,
        present: &Present,
        log: &Log,
    ) -> Result<(), RepositoryError> {
        let is_known = |pack: &PackId| packs.contains_key(pack) && !log.checked(pack, None).is_sound;
        for pack in present.damaged.iter().filter(|pack| is_known(pack)) {
            let name = pack_name(pack)?;
            let message = format!(
                "object {name} was found damaged by an earlier check, and is needed (verify --data looks again)"
            );
            self.findings.add(Finding::new(FindingKind::Damaged, message).at(&name));
        }
        Ok(())
    }

    /// Manifests, certificates and the chain between them.
    pub(super) async fn history(&mut self, chosen: &[Snapshot]) -> Result<(), RepositoryError> {
        let storage = &*self.repository.storage;
        let ids = async |kind: NameKind| -> Result<BTreeMap<ObjectId, ObjectName>, RepositoryError> {
            let listed = storage.list(kind.prefix());
            let ids = listed.try_filter_map(async |meta| Ok(id_of(meta.name.file_name()).map(|id| (id, meta.name))));
            Ok(ids.try_collect().await?)
        };
        let manifests = ids(NameKind::Manifest).await?;
        let forgotten = ids(NameKind::Forgotten).await?;
        for (id, name) in ids(NameKind::Certificate).await? {
            if !manifests.contains_key(&id) && !forgotten.contains_key(&id) {
                let message = format!("{name} certifies a snapshot whose manifest, snapshots/…-{id}, is missing");
                self.findings.add(Finding::new(FindingKind::Missing, message).at(&name).of(&id));
            }
        }
        for snapshot in chosen {
            for before in [snapshot.manifest.previous, snapshot.manifest.parent].into_iter().flatten() {
                if !manifests.contains_key(&before) && !forgotten.contains_key(&before) {
                    let message = format!(
                        "the snapshot before {}, snapshots/…-{before}, is missing and was not forgotten",
                        snapshot.short()
                    );
                    self.findings.add(Finding::new(FindingKind::Missing, message).of(&before));
                }
            }
        }
        for (at, snapshot) in chosen.iter().enumerate().filter(|(_, s)| s.certificate.is_none()) {
            let name = crate::repository::writer::certificate_name(&snapshot.id)?;
            if self.findings.about(&name) {
                continue;
            }
            // Only what is certified is taken over.
            if snapshot.removable.is_none() && chosen.iter().any(|one| one.manifest.parent == Some(snapshot.id)) {
                let message = format!(
                    "{name}, the certificate of snapshot {}, is gone: without it the snapshot is not used",
                    snapshot.short()
                );
                self.findings.add(Finding::new(FindingKind::Missing, message).at(&name).of(&snapshot.id));
                continue;
            }
            let later = chosen[at + 1..]
                .iter()
                .any(|later| later.certificate.is_some() && later.manifest.store == snapshot.manifest.store);
            let message = format!(
                "snapshot {} has no certificate ({name} is not there): the run was interrupted before all was read back{}",
                snapshot.short(),
                if later { "; a later run went through" } else { "; take a snapshot" }
            );
            let (kind, list) = if later || snapshot.removable.is_some() {
                (FindingKind::Leftover, &mut self.notes)
            } else {
                (FindingKind::Uncertified, &mut self.findings)
            };
            list.add(Finding::new(kind, message).at(&name).of(&snapshot.id));
        }
        Ok(())
    }

    /// What says that snapshots are forgotten or held, and packs about to be deleted or damaged; drills, and what the guard wrote down.
    pub(super) async fn marks(&mut self) -> Result<(), RepositoryError> {
        for kind in [NameKind::Forgotten, NameKind::Hold, NameKind::Tombstone, NameKind::Drill, NameKind::Change] {
            let listed = self.repository.storage.list(kind.prefix());
            let names: Vec<ObjectName> = listed.map_ok(|meta| meta.name).try_collect().await?;
            for name in names {
                let checked = match kind {
                    NameKind::Tombstone => tombstone::read(self.repository, &name).await.map(drop),
                    NameKind::Drill => drills::check(self.repository, &name).await,
                    NameKind::Change => {
                        changes::read::<serde::de::IgnoredAny>(self.repository, name.clone()).await.map(drop)
                    }
                    _ => forgotten::check(self.repository, &name).await,
                };
                if let Err(e) = checked {
                    self.findings.add_error(e, Some(&name), [])?;
                }
            }
        }
        Ok(())
    }

    /// What nobody needs: packs that no fragment names, and objects that are not Restante's.
    pub(super) fn leftovers(&mut self, indexed: &Indexed, present: &Present) -> Result<(), RepositoryError> {
        let unnamed: Vec<_> = present.packs.iter().filter(|(pack, _)| !indexed.packs.contains(*pack)).collect();
        if indexed.complete && !unnamed.is_empty() {
            let names = unnamed.iter().take(NAMED).map(|(pack, _)| Ok(pack_name(pack)?.to_string()));
            let names = names.collect::<Result<Vec<_>, RepositoryError>>()?.join(", ");
            let more = if unnamed.len() > NAMED { ", …" } else { "" };
            let bytes: u64 = unnamed.iter().map(|(_, (size, _))| size).sum();
            let message =
                format!("{} packs ({bytes} bytes) are named by no index fragment: {names}{more}", unnamed.len());
            self.notes.add(Finding::new(FindingKind::Leftover, message));
        }
        for name in &present.strange {
            let message = format!("object {name} is none of Restante's");
            self.notes.add(Finding::new(FindingKind::Leftover, message).at(name));
        }
        Ok(())
    }
}
