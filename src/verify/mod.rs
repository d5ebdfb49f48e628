//! Checks of what is stored. Structure needs no data; hashes need no key to open mail; rows need a reader.
//!
//! A finding is a sentence that names the object. The check goes on after one: an operator wants the whole list.
//! Uses `repository`; `cli` calls it.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt;
use serde::Serialize;

use crate::monitor::{SharedMonitor, Unit};
use crate::repository::id::{ChunkId, PackId};
use crate::repository::reader::{ChunkReader, load_index, pack_name, run_blocking};
use crate::repository::rows::MultisetDigest;
use crate::repository::segment::MapHasher;
use crate::repository::snapshots::{Snapshot, SnapshotReader};
use crate::repository::table_rows::TableRows;
use crate::repository::{Repository, RepositoryError};

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
    pub findings: Vec<String>,
}

/// Checks the snapshots. An error means that the check itself could not go on (no access, no connection).
pub async fn verify(
    repository: &Repository,
    snapshots: &[Snapshot],
    level: Level,
    monitor: &SharedMonitor,
) -> Result<Report, RepositoryError> {
    let mut report = Report { snapshots: snapshots.len() as u64, ..Report::default() };
    let present = sizes(repository).await?;
    match load_index(&*repository.storage, &repository.secrets, None).await {
        Ok(_) => {}
        Err(e) => report.findings.push(fatal_or_finding(e)?),
    }
    let mut packs = BTreeMap::new();
    for snapshot in snapshots {
        if snapshot.certificate.is_none() {
            report
                .findings
                .push(format!("snapshot {} is not certified: it was never read back in full", snapshot.short()));
        }
        match referenced(repository, snapshot).await {
            Ok(used) => packs.extend(used),
            Err(e) => report.findings.push(format!("snapshot {}: {}", snapshot.short(), fatal_or_finding(e)?)),
        }
    }
    report.packs = packs.len() as u64;
    for (pack, size) in &packs {
        match present.get(pack_name(pack)?.as_str()) {
            None => report.findings.push(format!("object {} is missing", pack_name(pack)?)),
            Some(found) if *found != u64::from(*size) => {
                report.findings.push(format!("object {} has {found} bytes instead of {size}", pack_name(pack)?));
            }
            Some(_) => {}
        }
    }
    match level {
        Level::Structure => {}
        Level::Hashes => hash_packs(repository, &packs, monitor, &mut report).await?,
        Level::Rows => {
            hash_packs(repository, &packs, monitor, &mut report).await?;
            monitor.stage("rows", Unit::Rows, Some(snapshots.iter().map(|s| s.manifest.totals.rows).sum()));
            for snapshot in snapshots {
                if let Err(e) = compare_rows(repository, snapshot, monitor, &mut report).await {
                    report.findings.push(format!("snapshot {}: {}", snapshot.short(), fatal_or_finding(e)?));
                }
            }
        }
    }
    Ok(report)
}

/// Damage is a finding; no access, or no connection, ends the check.
fn fatal_or_finding(e: RepositoryError) -> Result<String, RepositoryError> {
    use crate::storage::StorageError::{AlreadyExists, Locked, NotFound, TooLarge, Truncated};
    match e {
        RepositoryError::Storage(
            NotFound { .. } | Truncated { .. } | TooLarge { .. } | AlreadyExists { .. } | Locked { .. },
        ) => Ok(e.to_string()),
        RepositoryError::Storage(_) | RepositoryError::ReaderNeeded | RepositoryError::Interrupted => Err(e),
        _ => Ok(e.to_string()),
    }
}

/// Every pack in the storage with its size.
async fn sizes(repository: &Repository) -> Result<BTreeMap<String, u64>, RepositoryError> {
    let list = repository.storage.list("packs/").map_ok(|meta| (meta.name.as_str().to_owned(), meta.size));
    Ok(list.try_collect().await?)
}

/// The packs that a snapshot needs, with their sizes as recorded; every chunk id in it is looked up.
async fn referenced(repository: &Repository, snapshot: &Snapshot) -> Result<BTreeMap<PackId, u32>, RepositoryError> {
    let reader = SnapshotReader::open(repository, snapshot).await?;
    let manifest = reader.manifest();
    let mut packs = BTreeMap::new();
    let mut add = |ids: &mut dyn Iterator<Item = ChunkId>| -> Result<(), RepositoryError> {
        for id in ids {
            let (info, _) = reader.chunks.index().find(&id).ok_or(RepositoryError::MissingChunk { id })?;
            packs.insert(info.id, info.size);
        }
        Ok(())
    };
    add(&mut manifest.schema.catalog.iter().chain(&manifest.schema.dump).copied())?;
    for table in &manifest.tables {
        add(&mut table.pages.iter().copied())?;
        for segment in reader.segments(table).await? {
            add(&mut std::iter::once(segment.descriptor).chain(segment.zones.iter().copied()))?;
            for increment in reader.descriptor(&segment).await?.increments {
                add(&mut increment.row_chunks.iter().map(|chunk| chunk.id))?;
                add(&mut increment.row_map.iter().copied())?;
                add(&mut increment.value_map.iter().map(|chunk| chunk.id))?;
                add(&mut increment.payload.chunks_exact(ChunkId::LENGTH).filter_map(ChunkId::from_slice))?;
            }
        }
    }
    Ok(packs)
}

async fn hash_packs(
    repository: &Repository,
    packs: &BTreeMap<PackId, u32>,
    monitor: &SharedMonitor,
    report: &mut Report,
) -> Result<(), RepositoryError> {
    monitor.stage("packs", Unit::Bytes, Some(packs.values().map(|size| u64::from(*size)).sum()));
    let reported: BTreeSet<String> = report.findings.iter().cloned().collect();
    for (pack, size) in packs {
        let name = pack_name(pack)?;
        match repository.storage.get(&name).await {
            Ok(bytes) => {
                report.bytes_fetched += bytes.len() as u64;
                monitor.advance(u64::from(*size));
                let id = run_blocking(move || Ok(PackId::of(&bytes))).await?;
                if id != *pack {
                    report.findings.push(format!("object {name} does not have the hash that it is named by"));
                }
            }
            Err(e) => {
                let finding = fatal_or_finding(e.into())?;
                if !reported.contains(&format!("object {name} is missing")) {
                    report.findings.push(finding);
                }
            }
        }
    }
    Ok(())
}

/// Every row of every table: its digest, the segment's map hash, the table's multiset digest.
async fn compare_rows(
    repository: &Repository,
    snapshot: &Snapshot,
    monitor: &SharedMonitor,
    report: &mut Report,
) -> Result<(), RepositoryError> {
    let reader = SnapshotReader::open(repository, snapshot).await?;
    let chunks: &ChunkReader = &reader.chunks;
    chunks.fetch_joined(&reader.manifest().schema.catalog).await?;
    chunks.fetch_joined(&reader.manifest().schema.dump).await?;
    for table in &reader.manifest().tables {
        let label = table.label();
        let (mut rows, mut digest) = (0, MultisetDigest::default());
        for segment in reader.segments(table).await? {
            let mut places = Vec::new();
            let mut segment_rows = TableRows::of_segment(&reader, table, segment.clone());
            loop {
                match segment_rows.next_batch().await {
                    Ok(None) => break,
                    Ok(Some(batch)) => {
                        monitor.advance(batch.len() as u64);
                        rows += batch.len() as u64;
                        for row in &batch {
                            digest.add(&row.map.digest);
                            places.push((row.map.place, row.map.xmin));
                        }
                    }
                    Err(e) => {
                        report.findings.push(format!("table {label}: {}", fatal_or_finding(e)?));
                        break;
                    }
                }
            }
            places.sort_unstable();
            let mut map = MapHasher::default();
            places.iter().for_each(|(place, xmin)| map.add(*place, *xmin));
            if map.finish() != segment.map_hash {
                report.findings.push(format!("table {label}: the rows of a segment are not those of its map"));
            }
        }
        report.rows += rows;
        if rows != table.rows || digest.finish() != table.digest {
            report.findings.push(format!("table {label}: {rows} rows were read, {} were recorded", table.rows));
        }
    }
    Ok(())
}
