//! Segments: fixed ranges of heap blocks of a table, each with the increments that make up its rows. All of it is metadata
//! that a writer can open: no content of a message is here, only places, lengths and keyed hashes.

use std::collections::HashMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::error::RepositoryError;
use super::id::{ChunkId, Digest, Epoch};
use super::recipe::Recipe;
use super::wire::Cursor;

/// Segment entries in a page.
pub const PAGE_SEGMENTS: usize = 512;
/// Rows in a chunk of a row map: 26 bytes each, so that it stays under 4 MiB.
pub const ROW_MAP_ROWS: usize = 128 << 10;
/// A chunk of a value map is closed when it has so many bytes.
pub const VALUE_MAP_CHUNK: usize = 1 << 20;

/// A page of a table: up to 512 segments.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Page {
    pub segments: Vec<SegmentEntry>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SegmentEntry {
    pub descriptor: ChunkId,
    pub rows: u64,
    /// BLAKE3 over (block u32, offset u16, xmin u32) of the live rows in ascending order.
    #[serde(with = "serde_bytes")]
    pub map_hash: [u8; 32],
    pub digest: Digest,
    /// As the server sent them, the sum over its increments.
    pub value_bytes: u64,
    /// Where the zones lie, so that a window restore prunes without opening each descriptor.
    pub zones: Vec<ChunkId>,
}

/// A segment.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Descriptor {
    pub first_block: u32,
    /// One past the last block; `None` for the last segment of a table, which is open.
    pub end_block: Option<u32>,
    pub rows: u64,
    pub digest: Digest,
    pub increments: Vec<Increment>,
}

/// The rows of a segment that one snapshot added.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Increment {
    /// Whose id secret keyed the hashes.
    pub epoch: Epoch,
    pub rows: u32,
    pub row_chunks: Vec<RowChunk>,
    pub row_map: Vec<ChunkId>,
    pub value_map: Vec<ValueMapChunk>,
    /// The chunk list that recipes count in: 32 bytes each.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
    /// Bit `i` (least significant first): row `i` is gone. Empty: none is.
    #[serde(with = "serde_bytes")]
    pub dead: Vec<u8>,
    pub zone: Option<ChunkId>,
    /// Bytes of all values as the server sent them.
    pub value_bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RowChunk {
    pub id: ChunkId,
    pub rows: u32,
    /// Large values in its rows.
    pub values: u32,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ValueMapChunk {
    pub id: ChunkId,
    pub values: u32,
}

impl Increment {
    pub fn payload_chunk(&self, ordinal: u32) -> Option<ChunkId> {
        chunk_of(&self.payload, ordinal)
    }

    /// The row map: place, transaction and digest of each row, dead ones included. `chunks` has its chunks.
    pub fn rows_of(&self, chunks: &HashMap<ChunkId, Bytes>) -> Result<Vec<MapRow>, RepositoryError> {
        let mut map = Vec::new();
        for id in &self.row_map {
            map.extend(decode_row_map(chunks.get(id).ok_or(RepositoryError::MissingChunk { id: *id })?)?);
        }
        if map.len() == self.rows as usize {
            Ok(map)
        } else {
            Err(RepositoryError::malformed("row map", "it does not have as many rows as the increment"))
        }
    }

    /// The value map, in order. `chunks` has its chunks.
    pub fn values_of(&self, chunks: &HashMap<ChunkId, Bytes>) -> Result<Vec<MapValue>, RepositoryError> {
        let mut values = Vec::new();
        for ValueMapChunk { id, .. } in &self.value_map {
            values.extend(decode_value_map(chunks.get(id).ok_or(RepositoryError::MissingChunk { id: *id })?)?);
        }
        let expected: u64 = self.row_chunks.iter().map(|chunk| u64::from(chunk.values)).sum();
        if values.len() as u64 == expected {
            Ok(values)
        } else {
            Err(RepositoryError::malformed("value map", "it does not have as many values as the rows"))
        }
    }

    /// The ids of the chunk list.
    pub fn payload_chunks(&self) -> impl Iterator<Item = ChunkId> {
        self.payload.chunks_exact(ChunkId::LENGTH).filter_map(ChunkId::from_slice)
    }

    /// Every chunk that it needs.
    pub fn chunks(&self) -> impl Iterator<Item = ChunkId> {
        let rows = self.row_chunks.iter().map(|chunk| chunk.id).chain(self.row_map.iter().copied());
        let values = self.value_map.iter().map(|chunk| chunk.id).chain(self.payload_chunks());
        rows.chain(values).chain(self.zone)
    }

    pub fn is_dead(&self, row: u32) -> bool {
        self.dead.get(row as usize / 8).is_some_and(|byte| byte >> (row % 8) & 1 == 1)
    }
}

/// The id at a place of a chunk list.
pub fn chunk_of(list: &[u8], ordinal: u32) -> Option<ChunkId> {
    let start = ordinal as usize * ChunkId::LENGTH;
    ChunkId::from_slice(list.get(start..start + ChunkId::LENGTH)?)
}

/// The place of a tuple: block and offset, as `ctid` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TupleId {
    pub block: u32,
    pub offset: u16,
}

/// One row in a row map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapRow {
    pub place: TupleId,
    pub xmin: u32,
    pub digest: Digest,
}

/// A chunk of a row map: u32 count, then all blocks (u32), all offsets (u16), all xmins (u32), all digests (16 bytes). By
/// columns, because the first three compress to almost nothing.
pub fn encode_row_map(rows: &[MapRow]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + rows.len() * 26);
    out.extend_from_slice(&(rows.len() as u32).to_le_bytes());
    rows.iter().for_each(|row| out.extend_from_slice(&row.place.block.to_le_bytes()));
    rows.iter().for_each(|row| out.extend_from_slice(&row.place.offset.to_le_bytes()));
    rows.iter().for_each(|row| out.extend_from_slice(&row.xmin.to_le_bytes()));
    rows.iter().for_each(|row| out.extend_from_slice(&row.digest.0));
    out
}

pub fn decode_row_map(bytes: &[u8]) -> Result<Vec<MapRow>, RepositoryError> {
    let mut cursor = Cursor::new("row map", bytes);
    let count = cursor.u32()? as usize;
    if count > ROW_MAP_ROWS {
        return Err(cursor.error("more rows than a chunk may have"));
    }
    let (blocks, offsets) = (cursor.take(count * 4)?, cursor.take(count * 2)?);
    let (xmins, digests) = (cursor.take(count * 4)?, cursor.take(count * 16)?);
    cursor.finish()?;
    let word = |bytes: &[u8], i: usize| {
        u32::from_le_bytes([bytes[4 * i], bytes[4 * i + 1], bytes[4 * i + 2], bytes[4 * i + 3]])
    };
    Ok((0..count)
        .map(|i| {
            let mut digest = [0; 16];
            digest.copy_from_slice(&digests[16 * i..16 * (i + 1)]);
            let offset = u16::from_le_bytes([offsets[2 * i], offsets[2 * i + 1]]);
            let place = TupleId { block: word(blocks, i), offset };
            MapRow { place, xmin: word(xmins, i), digest: Digest(digest) }
        })
        .collect())
}

/// The hash of a whole segment's map, over rows in ascending order of their place.
#[derive(Default)]
pub struct MapHasher(blake3::Hasher);

impl MapHasher {
    pub fn add(&mut self, place: TupleId, xmin: u32) {
        let mut bytes = [0; 10];
        bytes[..4].copy_from_slice(&place.block.to_le_bytes());
        bytes[4..6].copy_from_slice(&place.offset.to_le_bytes());
        bytes[6..].copy_from_slice(&xmin.to_le_bytes());
        self.0.update(&bytes);
    }

    pub fn finish(self) -> [u8; 32] {
        *self.0.finalize().as_bytes()
    }
}

/// A large value: the first half of its keyed hash, and its recipe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapValue {
    pub hash: Digest,
    pub recipe: Recipe,
}

/// A chunk of a value map: u32 count, all hashes (16 bytes), all recipes. In the order of the rows and, in a row, of its columns.
pub fn encode_value_map(values: &[MapValue]) -> Vec<u8> {
    let mut out = Vec::with_capacity(4 + values.len() * 32);
    out.extend_from_slice(&(values.len() as u32).to_le_bytes());
    values.iter().for_each(|value| out.extend_from_slice(&value.hash.0));
    values.iter().for_each(|value| value.recipe.encode(&mut out));
    out
}

pub fn decode_value_map(bytes: &[u8]) -> Result<Vec<MapValue>, RepositoryError> {
    let mut cursor = Cursor::new("value map", bytes);
    let count = cursor.u32()? as usize;
    let hashes = cursor.take(count.checked_mul(16).ok_or_else(|| cursor.error("too many values"))?)?;
    let mut values = Vec::with_capacity(count);
    for hash in hashes.chunks_exact(16) {
        let hash = Digest::from_slice(hash).ok_or_else(|| cursor.error("a hash is too short"))?;
        values.push(MapValue { hash, recipe: Recipe::decode(&mut cursor)? });
    }
    cursor.finish()?;
    Ok(values)
}
