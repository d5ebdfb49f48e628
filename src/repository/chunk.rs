//! Chunks: pieces of plaintext of at most 4 MiB, named by their keyed BLAKE3, compressed and sealed one by one.

use std::cell::RefCell;
use std::io;

use serde::{Deserialize, Serialize};

use super::error::RepositoryError;
use super::id::{ChunkId, RepositoryId};
use super::seal::{Sealer, Secret};

/// The largest plaintext of a chunk. Checked before anything is allocated.
pub const MAX_CHUNK: usize = 4 << 20;
/// zstd level; `docs/performance.md` has the measurement behind it.
pub const ZSTD_LEVEL: i32 = 3;

/// What a chunk holds, hence who can open it. Packs hold chunks of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ChunkKind {
    /// Pages, descriptors, row maps, value maps: opened with the seal secret.
    Meta,
    /// Rows without their large values, zones, the schema: opened by readers.
    Row,
    /// Large values: opened by readers.
    Payload,
}

impl ChunkKind {
    pub const ALL: [Self; 3] = [Self::Meta, Self::Row, Self::Payload];

    pub fn code(self) -> u8 {
        match self {
            Self::Meta => 1,
            Self::Row => 2,
            Self::Payload => 3,
        }
    }

    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.code() == code)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    Raw,
    Zstd,
}

impl Codec {
    pub fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    pub fn from_code(code: u8) -> Option<Self> {
        [Self::Raw, Self::Zstd].into_iter().find(|codec| codec.code() == code)
    }
}

pub fn chunk_id(key: &Secret, plain: &[u8]) -> ChunkId {
    ChunkId(*blake3::keyed_hash(key.expose(), plain).as_bytes())
}

/// Compressed, not yet sealed.
pub struct Compressed<'a> {
    pub id: ChunkId,
    pub codec: Codec,
    pub raw_length: u32,
    pub bytes: &'a [u8],
}

/// What a thread works with, chunk after chunk: fresh memory for each would cost more than the work itself.
#[derive(Default)]
struct Workplace {
    compressor: Option<zstd::bulk::Compressor<'static>>,
    decompressor: Option<zstd::bulk::Decompressor<'static>>,
    compressed: Vec<u8>,
}

thread_local! {
    static WORKPLACE: RefCell<Workplace> = RefCell::default();
}

/// The one in the slot, made when it is missing.
fn filled<T>(slot: &mut Option<T>, make: impl FnOnce() -> io::Result<T>) -> io::Result<&mut T> {
    Ok(match slot {
        Some(one) => one,
        empty => empty.insert(make()?),
    })
}

/// Compresses where that makes the chunk smaller, and hands on what came of it.
pub fn compress<R>(id: ChunkId, plain: &[u8], hand_on: impl FnOnce(Compressed<'_>) -> R) -> Result<R, RepositoryError> {
    if plain.len() > MAX_CHUNK {
        return Err(RepositoryError::TooLarge { what: "chunk", size: plain.len(), limit: MAX_CHUNK });
    }
    let raw_length = plain.len() as u32;
    WORKPLACE.with_borrow_mut(|Workplace { compressor, compressed, .. }| {
        compressed.clear();
        compressed.reserve(zstd::zstd_safe::compress_bound(plain.len()));
        filled(compressor, || zstd::bulk::Compressor::new(ZSTD_LEVEL))
            .and_then(|compressor| compressor.compress_to_buffer(plain, compressed))
            .map_err(|e| RepositoryError::malformed("chunk", format!("zstd cannot compress it: {e}")))?;
        let is_smaller = compressed.len() < plain.len();
        let (codec, bytes) = if is_smaller { (Codec::Zstd, compressed.as_slice()) } else { (Codec::Raw, plain) };
        Ok(hand_on(Compressed { id, codec, raw_length, bytes }))
    })
}

/// Puts what was compressed in place of what `plain` held.
pub fn decompress(codec: Codec, bytes: &[u8], raw_length: u32, plain: &mut Vec<u8>) -> Result<(), RepositoryError> {
    if raw_length as usize > MAX_CHUNK {
        return Err(RepositoryError::TooLarge { what: "chunk", size: raw_length as usize, limit: MAX_CHUNK });
    }
    plain.clear();
    match codec {
        Codec::Raw => plain.extend_from_slice(bytes),
        Codec::Zstd => WORKPLACE
            .with_borrow_mut(|Workplace { decompressor, .. }| {
                plain.reserve(raw_length as usize);
                filled(decompressor, zstd::bulk::Decompressor::new)?.decompress_to_buffer(bytes, plain)
            })
            .map(|_| ())
            .map_err(|e| RepositoryError::malformed("chunk", format!("zstd cannot decompress it: {e}")))?,
    }
    if plain.len() == raw_length as usize {
        Ok(())
    } else {
        Err(RepositoryError::malformed("chunk", format!("{} bytes came out, {raw_length} were recorded", plain.len())))
    }
}

/// Where and how a chunk was sealed: what the associated data binds, and the nonce. Neither the pack nor the offset, so that
/// a sealed chunk can be copied into another pack without being opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SealedAs {
    pub kind: ChunkKind,
    pub id: ChunkId,
    pub raw_length: u32,
    pub codec: Codec,
    /// Number of the chunk under its data key: the nonce.
    pub ordinal: u32,
}

impl SealedAs {
    /// `"restante 1 chunk"`, repository id, kind, chunk id, raw length, codec, ordinal; little endian.
    pub(super) fn associated_data(&self, repository: &RepositoryId) -> Vec<u8> {
        let mut data = Vec::with_capacity(80);
        data.extend_from_slice(b"restante 1 chunk");
        data.extend_from_slice(&repository.0);
        data.push(self.kind.code());
        data.extend_from_slice(&self.id.0);
        data.extend_from_slice(&self.raw_length.to_le_bytes());
        data.push(self.codec.code());
        data.extend_from_slice(&self.ordinal.to_le_bytes());
        data
    }

    /// Seals what stands in `bytes` from `start` on.
    pub fn seal(
        &self,
        repository: &RepositoryId,
        key: &Sealer,
        bytes: &mut Vec<u8>,
        start: usize,
    ) -> Result<(), RepositoryError> {
        Ok(key.seal_from(self.ordinal, &self.associated_data(repository), bytes, start)?)
    }

    /// The only way to the plaintext of a chunk: opened, decompressed, and its id computed again.
    pub fn open(
        &self,
        repository: &RepositoryId,
        key: &Sealer,
        id_key: &Secret,
        sealed: &[u8],
    ) -> Result<Vec<u8>, RepositoryError> {
        let mut plain = Vec::new();
        self.open_into(repository, key, id_key, sealed, &mut Vec::new(), &mut plain)?;
        Ok(plain)
    }

    /// As [`SealedAs::open`], in place of what `plain` held; `compressed` is only worked in.
    pub fn open_into(
        &self,
        repository: &RepositoryId,
        key: &Sealer,
        id_key: &Secret,
        sealed: &[u8],
        compressed: &mut Vec<u8>,
        plain: &mut Vec<u8>,
    ) -> Result<(), RepositoryError> {
        key.open_into(self.ordinal, &self.associated_data(repository), sealed, compressed)?;
        decompress(self.codec, compressed, self.raw_length, plain)?;
        if chunk_id(id_key, plain) == self.id {
            Ok(())
        } else {
            Err(RepositoryError::malformed("chunk", "its plaintext does not have the id it is named by"))
        }
    }
}
