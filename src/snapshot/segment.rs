//! Rows of a block range become an increment beside those that are kept of an earlier state: small fields to row chunks, large values cut at their MIME parts and put into
//! payload chunks, beside them the maps and zones that later runs and restores go by.
//!
//! All of it runs on a CPU thread; memory is bounded by a group (1 MiB), a piece of a part, the open chunks and the value in hand.

use std::collections::HashMap;
use std::sync::Arc;

use super::changes::{Kept, KnownValues, Version};
use crate::mail::base64::PIECE_BYTES;
use crate::mail::cut::{CutKind, cuts};
use crate::repository::RepositoryError;
use crate::repository::cbor;
use crate::repository::chunk::ChunkKind;
use crate::repository::id::{ChunkId, Digest, Epoch};
use crate::repository::recipe::{Operation, Recipe};
use crate::repository::rows::{self, INLINE_LIMIT, MultisetDigest, ROW_CHUNK, RowHasher};
use crate::repository::segment::{
    Descriptor, Increment, MapHasher, MapRow, MapValue, ROW_MAP_ROWS, RowChunk, SegmentEntry, TupleId, VALUE_MAP_CHUNK,
    ValueMapChunk, chunk_of, encode_row_map, encode_value_map,
};
use crate::repository::writer::ChunkSink;
use crate::repository::zone::{Zone, ZoneBuilder, ZoneColumn};
use crate::storage::buffer::Buffer;

/// Values, and stretches between cuts, below this go into a group with their neighbours.
const SMALL_VALUE: usize = 32 << 10;
/// A group is closed at this size: small mail compresses to 0.18 together, 0.42 one by one (`docs/performance.md`).
const GROUP: usize = 1 << 20;

/// Builds one segment: what is kept of it, and an increment of the rows that it is given.
pub struct SegmentBuilder {
    sink: ChunkSink,
    hasher: RowHasher,
    epoch: Epoch,
    zones: Vec<(usize, ZoneBuilder)>,

    rows: Vec<u8>,
    rows_in_chunk: u32,
    values_in_chunk: u32,
    row_chunks: Vec<RowChunk>,

    map: Vec<MapRow>,
    row_map: Vec<ChunkId>,
    map_hash: MapHasher,
    last_place: Option<TupleId>,
    kept: Vec<Increment>,
    /// Live rows of the kept increments that were not yet counted into the map's hash.
    kept_rows: std::iter::Peekable<std::vec::IntoIter<Version>>,
    kept_count: u64,
    known: Arc<KnownValues>,

    values: Vec<MapValue>,
    values_size: usize,
    value_map: Vec<ValueMapChunk>,

    group: Buffer,
    group_ordinal: Option<u32>,
    payload: Vec<Option<ChunkId>>,
    ordinals: HashMap<ChunkId, u32>,
    scratch: Buffer,
    encoded: Buffer,

    row_count: u64,
    value_bytes: u64,
    digest: MultisetDigest,
}

/// What a finished segment is.
pub struct BuiltSegment {
    pub entry: SegmentEntry,
    /// What was read for it.
    pub read_rows: u64,
    pub read_bytes: u64,
}

impl From<SegmentEntry> for BuiltSegment {
    /// Taken over as it is.
    fn from(entry: SegmentEntry) -> Self {
        Self { entry, read_rows: 0, read_bytes: 0 }
    }
}

impl SegmentBuilder {
    /// `zones`: position in the row, `attnum` and kind of the columns to watch.
    /// `known`: values that were stored already, under the hasher's key.
    pub fn new(
        sink: ChunkSink,
        hasher: RowHasher,
        epoch: Epoch,
        zones: &[(usize, i16, ZoneColumn)],
        kept: Kept,
        known: Arc<KnownValues>,
    ) -> Self {
        Self {
            kept: kept.increments,
            kept_count: kept.rows.len() as u64,
            kept_rows: kept.rows.into_iter().peekable(),
            known,
            sink,
            hasher,
            epoch,
            zones: zones.iter().map(|(at, number, kind)| (*at, ZoneBuilder::new(*number, *kind))).collect(),
            rows: Vec::with_capacity(ROW_CHUNK + 4096),
            rows_in_chunk: 0,
            values_in_chunk: 0,
            row_chunks: Vec::new(),
            map: Vec::new(),
            row_map: Vec::new(),
            map_hash: MapHasher::default(),
            last_place: None,
            values: Vec::new(),
            values_size: 0,
            value_map: Vec::new(),
            group: Buffer::with_capacity(GROUP),
            group_ordinal: None,
            payload: Vec::new(),
            ordinals: HashMap::new(),
            scratch: Buffer::with_capacity(PIECE_BYTES),
            encoded: Buffer::with_capacity(PIECE_BYTES / 2 * 3),
            row_count: 0,
            value_bytes: 0,
            digest: kept.digest,
        }
    }

    /// Adds a row; rows come in ascending order of their place.
    pub fn row<'a>(
        &mut self,
        place: TupleId,
        xmin: u32,
        fields: impl Iterator<Item = Option<&'a [u8]>>,
    ) -> Result<(), RepositoryError> {
        if self.last_place.is_some_and(|last| last >= place) {
            return Err(RepositoryError::malformed("COPY stream", "rows did not come in the order of their place"));
        }
        self.last_place = Some(place);
        let mut digest = self.hasher.row();
        let mut zones = self.zones.iter_mut().peekable();
        let mut large: Vec<(Digest, &[u8])> = Vec::new();
        for (position, field) in fields.enumerate() {
            let zone = zones.next_if(|(at, _)| *at == position);
            match field {
                None => {
                    rows::put_null(&mut self.rows);
                    digest.null();
                    zone.into_iter().for_each(|(_, zone)| zone.null());
                }
                Some(value) => {
                    self.value_bytes += value.len() as u64;
                    zone.into_iter().for_each(|(_, zone)| zone.add(value));
                    if value.len() <= INLINE_LIMIT {
                        rows::put_inline(&mut self.rows, value);
                        digest.inline(value);
                    } else {
                        rows::put_large(&mut self.rows);
                        let hash = self.hasher.value(value);
                        digest.large(value.len() as u64, &hash);
                        let mut short = [0; 16];
                        short.copy_from_slice(&hash[..16]);
                        let hash = Digest(short);
                        self.values.push(MapValue { hash, recipe: Recipe::default() });
                        large.push((hash, value));
                    }
                }
            }
        }
        let first = self.values.len() - large.len();
        for (index, (hash, value)) in large.iter().enumerate() {
            let recipe = match self.take_over(hash, value.len() as u64)? {
                Some(recipe) => recipe,
                None => self.store_value(value)?,
            };
            self.values_size += 32 + recipe.operations.len() * 8;
            self.values[first + index].recipe = recipe;
        }
        self.values_in_chunk += large.len() as u32;
        self.rows_in_chunk += 1;
        self.row_count += 1;
        let digest = digest.finish();
        self.digest.add(&digest);
        while let Some((place, xmin)) = self.kept_rows.next_if(|(kept, _)| *kept < place) {
            self.map_hash.add(place, xmin);
        }
        self.map_hash.add(place, xmin);
        self.map.push(MapRow { place, xmin, digest });

        if self.rows.len() >= ROW_CHUNK {
            self.close_row_chunk()?;
        }
        if self.map.len() >= ROW_MAP_ROWS {
            self.close_row_map()?;
        }
        // Recipes count in the chunk list, so a value map can be closed while a group is open.
        if self.values_size >= VALUE_MAP_CHUNK {
            self.close_value_map()?;
        }
        Ok(())
    }

    /// The recipe of a value that lies in the repository already; `None` if it does not, or not soundly.
    fn take_over(&mut self, hash: &Digest, length: u64) -> Result<Option<Recipe>, RepositoryError> {
        let known = self.known.clone();
        let Some((mut recipe, list)) = known.find(hash)?.filter(|(recipe, _)| recipe.length == length) else {
            return Ok(None);
        };
        let chunks: Option<Vec<ChunkId>> = recipe.operations.iter().map(|op| chunk_of(list, op.chunk)).collect();
        let Some(chunks) = chunks.filter(|chunks| chunks.iter().all(|id| self.sink.rely_on(id))) else {
            return Ok(None);
        };
        for (op, id) in recipe.operations.iter_mut().zip(chunks) {
            op.chunk = self.ordinal(id);
        }
        Ok(Some(recipe))
    }

    /// Puts a value into chunks and says how to get it back.
    fn store_value(&mut self, value: &[u8]) -> Result<Recipe, RepositoryError> {
        let mut operations = Vec::new();
        let mut done = 0;
        for cut in cuts(value) {
            self.store_plain(&value[done..cut.range.start], &mut operations)?;
            match cut.kind {
                CutKind::Identity => self.store_pieces(&value[cut.range.clone()], &mut operations)?,
                CutKind::Base64(form) => {
                    for piece in form.pieces(cut.range.clone()) {
                        let text = &value[piece.text];
                        self.scratch.clear();
                        self.encoded.clear();
                        let decoded = piece.form.decode_into(text, &mut self.scratch).is_ok();
                        piece.form.encode_into(&self.scratch, &mut self.encoded);
                        if decoded && self.encoded.as_slice() == text {
                            let id = self.sink.store(ChunkKind::Payload, &self.scratch)?;
                            let (chunk, length) = (self.ordinal(id), self.scratch.len() as u32);
                            operations.push(Operation { chunk, offset: 0, length, base64: Some(piece.form) });
                        } else {
                            self.store_pieces(text, &mut operations)?;
                        }
                    }
                }
            }
            done = cut.range.end;
        }
        self.store_plain(&value[done..], &mut operations)?;
        Ok(Recipe { length: value.len() as u64, operations })
    }

    /// A stretch that is no part: with its neighbours if it is small.
    fn store_plain(&mut self, bytes: &[u8], operations: &mut Vec<Operation>) -> Result<(), RepositoryError> {
        if bytes.is_empty() {
            return Ok(());
        }
        if bytes.len() >= SMALL_VALUE {
            return self.store_pieces(bytes, operations);
        }
        if self.group.len() + bytes.len() > GROUP {
            self.close_group()?;
        }
        let chunk = *self.group_ordinal.get_or_insert_with(|| {
            self.payload.push(None);
            self.payload.len() as u32 - 1
        });
        let offset = self.group.len() as u32;
        self.group.extend_from_slice(bytes);
        operations.push(Operation { chunk, offset, length: bytes.len() as u32, base64: None });
        Ok(())
    }

    fn store_pieces(&mut self, bytes: &[u8], operations: &mut Vec<Operation>) -> Result<(), RepositoryError> {
        for piece in bytes.chunks(PIECE_BYTES) {
            let id = self.sink.store(ChunkKind::Payload, piece)?;
            let chunk = self.ordinal(id);
            operations.push(Operation { chunk, offset: 0, length: piece.len() as u32, base64: None });
        }
        Ok(())
    }

    fn ordinal(&mut self, id: ChunkId) -> u32 {
        *self.ordinals.entry(id).or_insert_with(|| {
            self.payload.push(Some(id));
            self.payload.len() as u32 - 1
        })
    }

    fn close_group(&mut self) -> Result<(), RepositoryError> {
        if let Some(ordinal) = self.group_ordinal.take() {
            self.payload[ordinal as usize] = Some(self.sink.store(ChunkKind::Payload, &self.group)?);
            self.group.clear();
        }
        Ok(())
    }

    fn close_row_chunk(&mut self) -> Result<(), RepositoryError> {
        if self.rows_in_chunk > 0 {
            let id = self.sink.store(ChunkKind::Row, &self.rows)?;
            self.row_chunks.push(RowChunk { id, rows: self.rows_in_chunk, values: self.values_in_chunk });
            self.rows.clear();
            (self.rows_in_chunk, self.values_in_chunk) = (0, 0);
        }
        Ok(())
    }

    fn close_row_map(&mut self) -> Result<(), RepositoryError> {
        if !self.map.is_empty() {
            self.row_map.push(self.sink.store(ChunkKind::Meta, &encode_row_map(&self.map))?);
            self.map.clear();
        }
        Ok(())
    }

    fn close_value_map(&mut self) -> Result<(), RepositoryError> {
        if !self.values.is_empty() {
            let id = self.sink.store(ChunkKind::Meta, &encode_value_map(&self.values))?;
            self.value_map.push(ValueMapChunk { id, values: self.values.len() as u32 });
            self.values.clear();
            self.values_size = 0;
        }
        Ok(())
    }

    /// Stores what is open and the descriptor. `end_block`: `None` for the open last range.
    pub fn finish(mut self, first_block: u32, end_block: Option<u32>) -> Result<BuiltSegment, RepositoryError> {
        self.close_group()?;
        self.close_row_chunk()?;
        self.close_row_map()?;
        self.close_value_map()?;
        let mut zone = Zone::default();
        for (_, builder) in std::mem::take(&mut self.zones) {
            zone.columns.push(builder.finish()?);
        }
        let zone = if self.row_count == 0 || zone.columns.is_empty() {
            None
        } else {
            Some(self.sink.store(ChunkKind::Row, &cbor::encode("zone", &zone)?)?)
        };
        // Every group was closed, so each place in the list has its id.
        let payload = self.payload.iter().flatten().flat_map(|id| id.0).collect();
        let digest = self.digest.finish();
        for (place, xmin) in self.kept_rows {
            self.map_hash.add(place, xmin);
        }
        let mut increments = self.kept;
        if self.row_count > 0 {
            increments.push(Increment {
                epoch: self.epoch,
                rows: self.row_count as u32,
                row_chunks: self.row_chunks,
                row_map: self.row_map,
                value_map: self.value_map,
                payload,
                dead: Vec::new(),
                zone,
                value_bytes: self.value_bytes,
            });
        }
        let rows = self.kept_count + self.row_count;
        // Where one has none, any row may lie in it.
        let zones = increments.iter().map(|increment| increment.zone).collect::<Option<_>>().unwrap_or_default();
        let value_bytes = increments.iter().map(|increment| increment.value_bytes).sum();
        let descriptor = Descriptor { first_block, end_block, rows, digest, increments };
        let entry = SegmentEntry {
            descriptor: self.sink.store(ChunkKind::Meta, &cbor::encode("descriptor", &descriptor)?)?,
            rows,
            map_hash: self.map_hash.finish(),
            digest,
            value_bytes,
            zones,
        };
        Ok(BuiltSegment { entry, read_rows: self.row_count, read_bytes: self.value_bytes })
    }
}
