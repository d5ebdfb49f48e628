//! The data: every pack's hash, and every row.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use super::{Check, Finding, FindingKind};
use crate::monitor::Unit;
use crate::repository::RepositoryError;
use crate::repository::id::{ChunkId, Digest, PackId};
use crate::repository::manifest::Table;
use crate::repository::reader::{pack_name, run_blocking};
use crate::repository::rows::MultisetDigest;
use crate::repository::segment::{MapHasher, SegmentEntry};
use crate::repository::snapshots::{Snapshot, SnapshotReader};
use crate::repository::table_rows::TableRows;

/// A segment whose rows were compared: snapshots share what did not change, and it is read once.
type Compared = HashSet<(ChunkId, [u8; 32], Digest, usize)>;

impl Check<'_> {
    /// Fetches and hashes every pack but those that are known to be damaged; the ones that do not have their hash.
    pub(super) async fn hash_packs(
        &mut self,
        packs: &BTreeMap<PackId, u32>,
        known: &BTreeSet<PackId>,
    ) -> Result<BTreeSet<PackId>, RepositoryError> {
        self.monitor.stage("packs", Unit::Bytes, Some(packs.values().map(|size| u64::from(*size)).sum()));
        let mut damaged = BTreeSet::new();
        for (pack, size) in packs.iter().filter(|(pack, _)| !known.contains(*pack)) {
            let name = pack_name(pack)?;
            match self.repository.storage.get(&name).await {
                Ok(bytes) => {
                    self.report.bytes_fetched += bytes.len() as u64;
                    self.monitor.advance(u64::from(*size));
                    if run_blocking(move || Ok(PackId::of(&bytes))).await? != *pack {
                        let message = format!("object {name} does not have the hash that it is named by");
                        self.findings.add(Finding::new(FindingKind::Damaged, message).at(&name));
                        damaged.insert(*pack);
                    }
                }
                Err(e) => {
                    self.findings.add_error(e.into(), Some(&name), [])?;
                    damaged.insert(*pack);
                }
            }
        }
        Ok(damaged)
    }

    /// Every row of every table: its digest, the segment's map hash and digest, the table's.
    pub(super) async fn compare_rows(&mut self, chosen: &[Snapshot]) -> Result<(), RepositoryError> {
        let rows = chosen.iter().map(|snapshot| snapshot.manifest.totals.rows).sum();
        self.monitor.stage("rows", Unit::Rows, Some(rows));
        let mut compared = Compared::new();
        for snapshot in chosen {
            let reader = match SnapshotReader::open(self.repository, snapshot).await {
                Ok(reader) => reader,
                Err(e) => {
                    self.findings.add_error(e, None, [snapshot.id])?;
                    continue;
                }
            };
            let schema = &reader.manifest().schema;
            for id in schema.catalog.iter().chain(&schema.dump) {
                if let Err(e) = reader.chunks.fetch(id).await {
                    self.findings.add_error(e, None, [snapshot.id])?;
                }
            }
            for table in &reader.manifest().tables {
                if let Err(e) = self.compare_table(&reader, table, &mut compared).await {
                    self.findings.add_error(e, None, [snapshot.id])?;
                }
            }
        }
        Ok(())
    }

    async fn compare_table(
        &mut self,
        reader: &SnapshotReader,
        table: &Table,
        compared: &mut Compared,
    ) -> Result<(), RepositoryError> {
        let (mut rows, mut digest) = (0, MultisetDigest::default());
        for segment in reader.segments(table).await? {
            rows += segment.rows;
            digest.combine(segment.digest);
            let key = (segment.descriptor, segment.map_hash, segment.digest, table.columns.len());
            if compared.contains(&key) {
                continue;
            }
            match self.compare_segment(reader, table, &segment).await {
                Ok(true) => drop(compared.insert(key)),
                Ok(false) => self.wrong_rows(reader, table, "the rows of a segment are not those of its map"),
                Err(e) => self.findings.add_error(e, None, [reader.snapshot.id])?,
            }
        }
        if rows != table.rows || digest.finish() != table.digest {
            self.wrong_rows(reader, table, "its segments are not what the manifest recorded");
        }
        Ok(())
    }

    fn wrong_rows(&mut self, reader: &SnapshotReader, table: &Table, why: &str) {
        let message = format!("snapshot {}, table {}: {why}", reader.snapshot.short(), table.label());
        self.findings.add(Finding::new(FindingKind::Rows, message).of(&reader.snapshot.id));
    }

    async fn compare_segment(
        &mut self,
        reader: &SnapshotReader,
        table: &Table,
        segment: &SegmentEntry,
    ) -> Result<bool, RepositoryError> {
        reader.zones(std::slice::from_ref(segment)).await?;
        let (mut places, mut digest) = (Vec::new(), MultisetDigest::default());
        let mut rows = TableRows::of_segment(reader, table, segment.clone());
        while let Some(batch) = rows.next_batch().await? {
            self.monitor.advance(batch.len() as u64);
            self.report.rows += batch.len() as u64;
            for row in &batch {
                digest.add(&row.map.digest);
                places.push((row.map.place, row.map.xmin));
            }
        }
        places.sort_unstable();
        let mut map = MapHasher::default();
        places.iter().for_each(|(place, xmin)| map.add(*place, *xmin));
        let as_recorded = places.len() as u64 == segment.rows && digest.finish() == segment.digest;
        Ok(as_recorded && map.finish() == segment.map_hash)
    }
}
