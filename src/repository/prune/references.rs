//! Which chunks are needed: everything that the tree of a snapshot names. Packs are found by what refers to them, never by parentage, so a
//! snapshot whose children are there can go.

use std::collections::HashMap;

use crate::repository::RepositoryError;
use crate::repository::cbor;
use crate::repository::checkpoint::Checkpoint;
use crate::repository::id::ChunkId;
use crate::repository::manifest::{Manifest, Table};
use crate::repository::reader::ChunkReader;
use crate::repository::segment::{Descriptor, PAGE_SEGMENTS, SegmentEntry};
use crate::repository::snapshots::segments_of;

/// The chunks that are needed; `true`: by something that stays, not only by what is forgotten. In memory about 50 bytes each.
pub struct Needed<'a> {
    pub reader: &'a ChunkReader,
    pub chunks: HashMap<ChunkId, bool>,
}

impl<'a> Needed<'a> {
    /// Whatever stays has to be added before what is forgotten: what was seen once is not opened again.
    pub fn new(reader: &'a ChunkReader) -> Self {
        Self { reader, chunks: HashMap::new() }
    }

    /// `true`: it was not known.
    fn need(&mut self, id: ChunkId, stays: bool) -> bool {
        let is_new = !self.chunks.contains_key(&id);
        *self.chunks.entry(id).or_default() |= stays;
        is_new
    }

    /// Everything that a snapshot needs.
    pub async fn snapshot(&mut self, manifest: &Manifest, stays: bool) -> Result<(), RepositoryError> {
        for id in manifest.schema.catalog.iter().chain(&manifest.schema.dump) {
            self.need(*id, stays);
        }
        for table in &manifest.tables {
            self.table(table, stays).await?;
        }
        Ok(())
    }

    async fn table(&mut self, table: &Table, stays: bool) -> Result<(), RepositoryError> {
        let new = table.pages.iter().filter(|page| self.need(**page, stays)).count();
        if new == 0 {
            return Ok(());
        }
        // The pages of a table are a chunk for 16 GiB each, and it is complete only with all of them.
        let entries = segments_of(table, &self.reader.fetch_all(&table.pages).await?)?;
        self.segments(&entries, stays).await
    }

    /// Finished segments of a run that was cut short.
    pub async fn checkpoint(&mut self, checkpoint: &Checkpoint) -> Result<(), RepositoryError> {
        let entries = checkpoint.tables.iter().flat_map(|table| table.segments.iter().map(|(_, entry)| entry.clone()));
        self.segments(&entries.collect::<Vec<_>>(), true).await
    }

    /// Adds what another walk found that may have ended early. Of its own, because after an error what was seen was not all opened.
    pub fn join(&mut self, other: Self, ended: Result<(), RepositoryError>) -> Result<(), RepositoryError> {
        for (id, stays) in other.chunks.into_iter().filter(|(id, _)| other.reader.locate(id).is_ok()) {
            self.need(id, stays);
        }
        match ended {
            Err(e) if e.is_about_an_object() => Ok(()),
            other => other,
        }
    }

    async fn segments(&mut self, entries: &[SegmentEntry], stays: bool) -> Result<(), RepositoryError> {
        for entries in entries.chunks(PAGE_SEGMENTS) {
            let new: Vec<ChunkId> =
                entries.iter().map(|entry| entry.descriptor).filter(|id| self.need(*id, stays)).collect();
            for bytes in self.reader.fetch_all(&new).await?.values() {
                let descriptor: Descriptor = cbor::decode("descriptor", bytes)?;
                for id in descriptor.increments.iter().flat_map(|increment| increment.chunks()) {
                    self.need(id, stays);
                }
            }
            for zone in entries.iter().flat_map(|entry| &entry.zones) {
                self.need(*zone, stays);
            }
        }
        Ok(())
    }
}
