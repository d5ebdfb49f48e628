//! Finding snapshots and reading the rows of one.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use jiff::{SignedDuration, Timestamp};

use super::Repository;
use super::cbor;
use super::envelope::{self, ObjectKind};
use super::error::RepositoryError;
use super::forgotten;
use super::id::{ChunkId, ObjectId, SignerId};
use super::manifest::{Certificate, Manifest, Table, manifest_name};
use super::name::NameKind;
use super::reader::{ChunkReader, check_name};
use super::rows::{Field, RowHasher, RowReader, ValueHash};
use super::segment::{Descriptor, Increment, MapRow, MapValue, PAGE_SEGMENTS, Page, SegmentEntry};
use super::writer::certificate_name;
use super::zone::Zone;
use crate::postgres::catalog::Catalog;
use crate::storage::{ObjectMeta, ObjectName, StorageError};

/// So far the time of a snapshot may be from the storage's.
pub(super) const OFF: SignedDuration = SignedDuration::from_hours(24);

/// Manifests that are fetched at a time.
const CONCURRENCY: usize = 8;

/// A snapshot that was found, its manifest checked and opened.
#[derive(Debug, Clone)]
pub struct Snapshot {
    pub id: ObjectId,
    pub manifest: Arc<Manifest>,
    pub signer: SignerId,
    /// Absent: never read back in full, so not to be used.
    pub certificate: Option<Certificate>,
    /// When the storage wrote the manifest, by its own clock.
    pub stored: Timestamp,
    /// Forgotten: a prune may remove it from this instant of the storage's clock on.
    pub removable: Option<Timestamp>,
}

impl Snapshot {
    /// The first twelve digits of the id: what people type.
    pub fn short(&self) -> String {
        self.id.to_hex()[..12].to_owned()
    }

    /// May be relied on: it was read back in full, is not forgotten, and does not come from the future.
    pub fn is_usable(&self) -> bool {
        self.certificate.is_some() && self.removable.is_none() && !self.is_from_the_future()
    }

    /// Does its time lie more than a day after the storage's? Somebody made it up, or a clock is wrong: else it would be the newest for ever.
    pub fn is_from_the_future(&self) -> bool {
        self.manifest.taken.duration_since(self.stored) > OFF
    }

    /// The name of its manifest.
    pub fn name(&self) -> Result<ObjectName, RepositoryError> {
        manifest_name(self.manifest.taken, &self.id)
    }
}

/// All snapshots that are not forgotten, oldest first. Manifests that do not open are told in `problems` and left out; with a damaged
/// certificate a snapshot counts as not certified.
pub async fn list(repository: &Repository) -> Result<(Vec<Snapshot>, Vec<RepositoryError>), RepositoryError> {
    let (mut snapshots, problems) = list_all(repository).await?;
    snapshots.retain(|snapshot| snapshot.removable.is_none());
    Ok((snapshots, problems))
}

/// The same with those that are forgotten.
pub async fn list_all(repository: &Repository) -> Result<(Vec<Snapshot>, Vec<RepositoryError>), RepositoryError> {
    let metas: Vec<ObjectMeta> = repository.storage.list(NameKind::Manifest.prefix()).try_collect().await?;
    let forgotten = forgotten::claimed(&*repository.storage).await?;
    let (mut snapshots, mut problems) = (Vec::new(), Vec::new());
    let work: Vec<_> = metas.iter().map(|meta| load(repository, meta, &forgotten)).collect();
    let mut loaded = stream::iter(work).buffered(CONCURRENCY);
    while let Some((snapshot, found)) = loaded.next().await {
        problems.extend(found);
        match snapshot {
            Ok(snapshot) => snapshots.push(snapshot),
            Err(e) if e.is_about_an_object() => problems.push(e),
            // Who cannot look must not go on as if there were nothing.
            Err(e) => return Err(e),
        }
    }
    snapshots.sort_by_key(|snapshot| (snapshot.manifest.taken, snapshot.id));
    Ok((snapshots, problems))
}

/// The newest snapshots, oldest first, back to the one for which `is_enough` says so; what lies before was not looked at.
pub async fn newest(
    repository: &Repository,
    mut is_enough: impl FnMut(&Snapshot) -> bool,
) -> Result<(Vec<Snapshot>, Vec<RepositoryError>), RepositoryError> {
    let mut metas: Vec<ObjectMeta> = repository.storage.list(NameKind::Manifest.prefix()).try_collect().await?;
    metas.sort_by(|one, other| one.name.cmp(&other.name));
    let forgotten = forgotten::claimed(&*repository.storage).await?;
    let (mut snapshots, mut problems) = (Vec::new(), Vec::new());
    // Names tell the second; of those of one second the order is that of their ids.
    let second = |name: &ObjectName| name.file_name().split('-').next().map(str::to_owned);
    let mut last = None;
    for meta in metas.iter().rev() {
        if last.is_some() && last != Some(second(&meta.name)) {
            break;
        }
        let (snapshot, found) = load(repository, meta, &forgotten).await;
        problems.extend(found);
        match snapshot {
            Ok(snapshot) => {
                if is_enough(&snapshot) {
                    last = Some(second(&meta.name));
                }
                snapshots.push(snapshot);
            }
            Err(e) if e.is_about_an_object() => problems.push(e),
            Err(e) => return Err(e),
        }
    }
    snapshots.sort_by_key(|snapshot| (snapshot.manifest.taken, snapshot.id));
    Ok((snapshots, problems))
}

/// Also what is wrong with the certificate, or with the object that says that it is forgotten.
async fn load(
    repository: &Repository,
    meta: &ObjectMeta,
    forgotten: &HashMap<ObjectId, Timestamp>,
) -> (Result<Snapshot, RepositoryError>, Vec<RepositoryError>) {
    let mut problems = Vec::new();
    (load_telling(repository, meta, forgotten, &mut problems).await, problems)
}

async fn load_telling(
    repository: &Repository,
    meta: &ObjectMeta,
    forgotten: &HashMap<ObjectId, Timestamp>,
    problems: &mut Vec<RepositoryError>,
) -> Result<Snapshot, RepositoryError> {
    let name = &meta.name;
    let bytes = repository.storage.get(name).await?;
    let id = check_name(name, &bytes)?;
    let opened = envelope::read::<Manifest>(ObjectKind::Manifest, &repository.secrets, name, &bytes)?;
    opened.body.check_readable()?;
    let misfit = |message: &str| RepositoryError::Damaged { name: name.clone(), message: message.to_owned() };
    if opened.body.repository != repository.config.repository || opened.body.epoch != opened.epoch {
        return Err(misfit("it was written for another repository or epoch"));
    }
    if !repository.config.admits(opened.epoch, &id) {
        return Err(misfit("its epoch was over when it was written: whoever made it has keys that were replaced"));
    }
    // The time in the name is nobody's word; and under a second name the same snapshot would be there twice.
    if *name != manifest_name(opened.body.taken, &id)? {
        return Err(misfit("it does not lie under its own name"));
    }
    let removable = match forgotten.get(&id) {
        Some(stored) => {
            let (storage, epoch) = (&*repository.storage, repository.config.epoch);
            sound(forgotten::removable(storage, &repository.secrets, epoch, &id, *stored).await, problems)?
        }
        None => None,
    };
    let certificate = sound(load_certificate(repository, &id).await, problems)?;
    let (manifest, signer) = (Arc::new(opened.body), opened.signer);
    Ok(Snapshot { id, manifest, signer, certificate, stored: meta.modified, removable })
}

/// Of what is damaged `None`, and the problem is told.
fn sound<T>(
    found: Result<Option<T>, RepositoryError>,
    problems: &mut Vec<RepositoryError>,
) -> Result<Option<T>, RepositoryError> {
    match found {
        Err(e) if e.is_about_an_object() => {
            problems.push(e);
            Ok(None)
        }
        other => other,
    }
}

async fn load_certificate(repository: &Repository, id: &ObjectId) -> Result<Option<Certificate>, RepositoryError> {
    let name = certificate_name(id)?;
    let bytes = match repository.storage.get(&name).await {
        Err(StorageError::NotFound { .. }) => return Ok(None),
        other => other?,
    };
    let opened = envelope::read::<Certificate>(ObjectKind::Certificate, &repository.secrets, &name, &bytes)?;
    if opened.body.snapshot == *id {
        Ok(Some(opened.body))
    } else {
        Err(RepositoryError::Damaged { name, message: "it certifies another snapshot".to_owned() })
    }
}

/// Does `wanted` name a snapshot by time and not by its id? Then which one it is depends on what else is there.
pub fn is_by_time(wanted: &str) -> bool {
    wanted == "latest" || wanted.starts_with("latest:") || wanted.starts_with('@')
}

/// Picks the snapshot that `wanted` names: an id prefix, `latest`, `latest:tag=…`, or `@TIME` (the newest taken at or before
/// that instant). Only certified snapshots, and by the last three none that comes from the future.
pub fn select<'a>(snapshots: &'a [Snapshot], wanted: &str) -> Result<&'a Snapshot, RepositoryError> {
    let not_found = || RepositoryError::SnapshotNotFound { wanted: wanted.to_owned() };
    let certified = || snapshots.iter().filter(|one| one.certificate.is_some() && !one.is_from_the_future());
    if wanted == "latest" {
        return certified().next_back().ok_or_else(not_found);
    }
    if let Some(tag) = wanted.strip_prefix("latest:tag=") {
        return certified().rfind(|s| s.manifest.tags.iter().any(|t| t == tag)).ok_or_else(not_found);
    }
    if let Some(time) = wanted.strip_prefix('@') {
        let time: Timestamp = time.parse().map_err(|_| not_found())?;
        return certified().rfind(|s| s.manifest.taken <= time).ok_or_else(not_found);
    }
    match select_any(snapshots, wanted)? {
        one if one.certificate.is_none() => Err(RepositoryError::NotCertified { snapshot: one.id }),
        one => Ok(one),
    }
}

/// Picks a snapshot by a prefix of its id, certified or not.
pub fn select_any<'a>(snapshots: &'a [Snapshot], wanted: &str) -> Result<&'a Snapshot, RepositoryError> {
    let prefix = wanted.to_ascii_lowercase();
    let fitting: Vec<&Snapshot> =
        snapshots.iter().filter(|s| prefix.len() >= 4 && s.id.to_hex().starts_with(&prefix)).collect();
    match fitting.as_slice() {
        [] => Err(RepositoryError::SnapshotNotFound { wanted: wanted.to_owned() }),
        [one] => Ok(one),
        several => Err(RepositoryError::SnapshotAmbiguous {
            wanted: wanted.to_owned(),
            candidates: several.iter().map(|s| s.short()).collect::<Vec<_>>().join(", "),
        }),
    }
}

/// The segments of a table, in order; `pages` has its pages.
pub fn segments_of(table: &Table, pages: &HashMap<ChunkId, Bytes>) -> Result<Vec<SegmentEntry>, RepositoryError> {
    let mut segments = Vec::new();
    for id in &table.pages {
        let page: Page = cbor::decode("page", pages.get(id).ok_or(RepositoryError::MissingChunk { id: *id })?)?;
        segments.extend(page.segments);
    }
    if segments.len() as u64 != table.segments {
        return Err(RepositoryError::malformed("page", "the pages do not have as many segments as the table"));
    }
    Ok(segments)
}

/// Reads the tables of one snapshot.
#[derive(Clone)]
pub struct SnapshotReader {
    pub snapshot: Snapshot,
    pub chunks: ChunkReader,
    hashers: Arc<HashMap<super::id::Epoch, RowHasher>>,
}

impl SnapshotReader {
    pub async fn open(repository: &Repository, snapshot: &Snapshot) -> Result<Self, RepositoryError> {
        let chunks = ChunkReader::open(repository, Some(&snapshot.manifest.fragments)).await?;
        Ok(Self::over(repository, snapshot, chunks))
    }

    /// Reads chunks where `chunks` finds them.
    pub fn over(repository: &Repository, snapshot: &Snapshot, chunks: ChunkReader) -> Self {
        let hashers = repository
            .secrets
            .epochs
            .iter()
            .filter_map(|(epoch, secrets)| Some((*epoch, RowHasher::new(secrets.id.as_ref()?))))
            .collect();
        Self { snapshot: snapshot.clone(), chunks, hashers: Arc::new(hashers) }
    }

    pub fn manifest(&self) -> &Manifest {
        &self.snapshot.manifest
    }

    /// The catalog of the store as it was; needs a reader.
    pub async fn catalog(&self) -> Result<Catalog, RepositoryError> {
        Ok(cbor::decode("catalog", &self.chunks.fetch_joined(&self.manifest().schema.catalog).await?)?)
    }

    /// The segments of a table, in order.
    pub async fn segments(&self, table: &Table) -> Result<Vec<SegmentEntry>, RepositoryError> {
        segments_of(table, &self.chunks.fetch_all(&table.pages).await?)
    }

    pub async fn descriptor(&self, entry: &SegmentEntry) -> Result<Descriptor, RepositoryError> {
        Ok(cbor::decode("descriptor", &self.chunks.fetch(&entry.descriptor).await?)?)
    }

    /// The zones of each segment's increments; needs a reader.
    pub async fn zones(&self, entries: &[SegmentEntry]) -> Result<Vec<Vec<Zone>>, RepositoryError> {
        let mut zones = Vec::with_capacity(entries.len());
        for entries in entries.chunks(PAGE_SEGMENTS) {
            let ids: Vec<ChunkId> = entries.iter().flat_map(|entry| entry.zones.iter().copied()).collect();
            let found = self.chunks.fetch_all(&ids).await?;
            let zone = |id: &ChunkId| {
                let bytes = found.get(id).ok_or(RepositoryError::MissingChunk { id: *id })?;
                Ok(cbor::decode("zone", bytes)?)
            };
            for entry in entries {
                zones.push(entry.zones.iter().map(zone).collect::<Result<_, RepositoryError>>()?);
            }
        }
        Ok(zones)
    }

    /// The fields of an increment's rows without their large values: row chunks alone are read.
    pub async fn fields(&self, increment: &Increment, columns: usize) -> Result<IncrementFields, RepositoryError> {
        let ids: Vec<ChunkId> = increment.row_chunks.iter().map(|chunk| chunk.id).collect();
        let found = self.chunks.fetch_all(&ids).await?;
        let chunks = ids
            .iter()
            .map(|id| found.get(id).cloned().ok_or(RepositoryError::MissingChunk { id: *id }))
            .collect::<Result<_, _>>()?;
        Ok(IncrementFields { increment: increment.clone(), columns, chunks })
    }

    /// The rows of an increment, their fields with what the row map says of each.
    pub async fn rows(&self, increment: &Increment, columns: usize) -> Result<IncrementRows, RepositoryError> {
        let (fields, map) = (self.fields(increment, columns).await?, self.row_map(increment).await?);
        Ok(IncrementRows { fields, map })
    }

    /// Place, transaction and digest of each row of an increment, dead ones included. A writer can open it.
    pub async fn row_map(&self, increment: &Increment) -> Result<Vec<MapRow>, RepositoryError> {
        increment.rows_of(&self.chunks.fetch_all(&increment.row_map).await?)
    }

    /// The value map of an increment, in order.
    pub async fn value_map(&self, increment: &Increment) -> Result<Vec<MapValue>, RepositoryError> {
        let ids: Vec<ChunkId> = increment.value_map.iter().map(|chunk| chunk.id).collect();
        increment.values_of(&self.chunks.fetch_all(&ids).await?)
    }

    /// Puts large values together and checks each against its keyed hash. The caller bounds how many bytes he asks for.
    pub async fn values(
        &self,
        increment: &Increment,
        wanted: &[&MapValue],
    ) -> Result<Vec<CheckedValue>, RepositoryError> {
        let ordinals: HashSet<u32> =
            wanted.iter().flat_map(|value| value.recipe.operations.iter().map(|op| op.chunk)).collect();
        let mut ids = HashMap::with_capacity(ordinals.len());
        for ordinal in ordinals {
            let id = increment
                .payload_chunk(ordinal)
                .ok_or_else(|| RepositoryError::malformed("recipe", "it names a chunk that is not in the list"))?;
            ids.insert(ordinal, id);
        }
        let chunks = self.chunks.fetch_all(&ids.values().copied().collect::<Vec<_>>()).await?;
        let hasher = self.hasher(increment)?;
        wanted
            .iter()
            .map(|value| {
                let bytes = value.recipe.assemble(|ordinal| chunks.get(ids.get(&ordinal)?).map(|b| b.as_ref()))?;
                let hash = hasher.value(&bytes);
                if hash[..16] == value.hash.0 {
                    Ok(CheckedValue { bytes: bytes.into(), hash })
                } else {
                    Err(RepositoryError::malformed("value", "its bytes do not have the hash that was recorded"))
                }
            })
            .collect()
    }

    /// Of the epoch in which the snapshot was written. Rows that it took over from an earlier one have the same, unless that had another id secret:
    /// then it took over nothing.
    pub fn current_hasher(&self) -> Result<&RowHasher, RepositoryError> {
        let epoch = self.snapshot.manifest.epoch;
        self.hashers.get(&epoch).ok_or(RepositoryError::UnknownEpoch { epoch })
    }

    pub fn hasher(&self, increment: &Increment) -> Result<&RowHasher, RepositoryError> {
        self.hashers.get(&increment.epoch).ok_or(RepositoryError::UnknownEpoch { epoch: increment.epoch })
    }
}

/// A large value whose bytes have the keyed hash that was recorded.
pub struct CheckedValue {
    pub bytes: Bytes,
    pub hash: ValueHash,
}

/// The fields of an increment's rows, in the order of their place.
pub struct IncrementFields {
    increment: Increment,
    columns: usize,
    chunks: Vec<Bytes>,
}

impl IncrementFields {
    /// Calls `row` with each live row: its ordinal in the increment, and its fields.
    pub fn for_each<E: From<RepositoryError>>(
        &self,
        mut row: impl FnMut(u32, &[Field<'_>]) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut ordinal, mut first_value) = (0u32, 0u32);
        let malformed = |message: &str| RepositoryError::malformed("row chunk", message);
        for (chunk, bytes) in self.increment.row_chunks.iter().zip(&self.chunks) {
            let mut reader = RowReader::new(bytes, self.columns, first_value);
            let mut fields = Vec::with_capacity(self.columns);
            // Counted, not read until the end: rows of a table without columns have no bytes.
            for _ in 0..chunk.rows {
                if ordinal >= self.increment.rows {
                    return Err(malformed("it has more rows than the increment").into());
                }
                if self.columns > 0 && !reader.next(&mut fields)? {
                    return Err(malformed("it has fewer rows than its descriptor says").into());
                }
                if !self.increment.is_dead(ordinal) {
                    row(ordinal, &fields)?;
                }
                ordinal += 1;
            }
            if !reader.is_at_end() {
                return Err(malformed("it has more rows than its descriptor says").into());
            }
            first_value = first_value.checked_add(chunk.values).ok_or_else(|| malformed("too many values"))?;
            if reader.next_value() != first_value {
                return Err(malformed("it does not have as many large values as its descriptor says").into());
            }
        }
        if ordinal == self.increment.rows {
            Ok(())
        } else {
            Err(malformed("the increment has more rows than its row chunks").into())
        }
    }

    /// An inline field without copying it: it lies in one of the row chunks.
    pub(super) fn share(&self, field: &[u8]) -> Bytes {
        let within = |chunk: &&Bytes| chunk.as_ptr_range().contains(&field.as_ptr());
        match self.chunks.iter().find(within) {
            Some(chunk) if !field.is_empty() => chunk.slice_ref(field),
            _ => Bytes::copy_from_slice(field),
        }
    }
}

/// The rows of an increment, in the order of their place.
pub struct IncrementRows {
    pub fields: IncrementFields,
    /// As many as the increment has rows, dead ones included.
    pub map: Vec<MapRow>,
}

impl IncrementRows {
    /// Calls `row` with each live row: its ordinal in the increment, its map entry and its fields.
    pub fn for_each<E: From<RepositoryError>>(
        &self,
        mut row: impl FnMut(u32, &MapRow, &[Field<'_>]) -> Result<(), E>,
    ) -> Result<(), E> {
        self.fields.for_each(|ordinal, fields| {
            let map = self.map.get(ordinal as usize);
            let map =
                map.ok_or_else(|| RepositoryError::malformed("row map", "it has fewer rows than the increment"))?;
            row(ordinal, map, fields)
        })
    }
}
