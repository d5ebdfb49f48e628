//! The data: every row.

use std::collections::HashSet;

use super::{Check, Finding, FindingKind};
use crate::monitor::Unit;
use crate::repository::RepositoryError;
use crate::repository::id::{ChunkId, Digest};
use crate::repository::manifest::Table;
use crate::repository::rows::MultisetDigest;
use crate::repository::segment::{MapHasher, SegmentEntry};
use crate::repository::snapshots::{Snapshot, SnapshotReader};
use crate::repository::table_rows::TableRows;

/// A segment whose rows were compared: snapshots share what did not change, and it is read once.
type Compared = HashSet<(ChunkId, [u8; 32], Digest, usize)>;

impl Check<'_> {
    /// Every row of every table: its digest, the segment's map hash and digest, the table's.
    pub(super) async fn compare_rows(&mut self, chosen: &[Snapshot]) -> Result<(), RepositoryError> {
        let rows = chosen.iter().map(|snapshot| snapshot.manifest.totals.rows).sum();
        self.monitor.stage("rows", Unit::Rows, Some(rows));
        let mut compared = Compared::new();
        for snapshot in chosen {
            let reader = match self.open(snapshot).await {
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
