//! Chunks: pieces of plaintext of at most 4 MiB, named by their keyed BLAKE3, compressed and sealed one by one.

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
pub struct Compressed {
    pub id: ChunkId,
    pub codec: Codec,
    pub raw_length: u32,
    pub bytes: Vec<u8>,
}

thread_local! {
    static COMPRESSOR: std::cell::RefCell<Option<zstd::bulk::Compressor<'static>>> = const { std::cell::RefCell::new(None) };
}

/// Compresses where that makes the chunk smaller.
pub fn compress(id: ChunkId, plain: &[u8]) -> Result<Compressed, RepositoryError> {
    if plain.len() > MAX_CHUNK {
        return Err(RepositoryError::TooLarge { what: "chunk", size: plain.len(), limit: MAX_CHUNK });
    }
    let raw_length = plain.len() as u32;
    let compressed = COMPRESSOR.with_borrow_mut(|slot| -> std::io::Result<Vec<u8>> {
        if slot.is_none() {
            *slot = Some(zstd::bulk::Compressor::new(ZSTD_LEVEL)?);
        }
        // Filled in just above.
        slot.as_mut().map_or_else(|| Ok(Vec::new()), |compressor| compressor.compress(plain))
    });
    match compressed {
        Ok(bytes) if !bytes.is_empty() && bytes.len() < plain.len() => {
            Ok(Compressed { id, codec: Codec::Zstd, raw_length, bytes })
        }
        Ok(_) => Ok(Compressed { id, codec: Codec::Raw, raw_length, bytes: plain.to_vec() }),
        Err(e) => Err(RepositoryError::malformed("chunk", format!("zstd cannot compress it: {e}"))),
    }
}

pub fn decompress(codec: Codec, bytes: Vec<u8>, raw_length: u32) -> Result<Vec<u8>, RepositoryError> {
    if raw_length as usize > MAX_CHUNK {
        return Err(RepositoryError::TooLarge { what: "chunk", size: raw_length as usize, limit: MAX_CHUNK });
    }
    let plain = match codec {
        Codec::Raw => bytes,
        Codec::Zstd => zstd::bulk::decompress(&bytes, raw_length as usize)
            .map_err(|e| RepositoryError::malformed("chunk", format!("zstd cannot decompress it: {e}")))?,
    };
    if plain.len() == raw_length as usize {
        Ok(plain)
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

    pub fn seal(&self, repository: &RepositoryId, key: &Sealer, bytes: &mut Vec<u8>) -> Result<(), RepositoryError> {
        Ok(key.seal(self.ordinal, &self.associated_data(repository), bytes)?)
    }

    /// The only way to the plaintext of a chunk: opened, decompressed, and its id computed again.
    pub fn open(
        &self,
        repository: &RepositoryId,
        key: &Sealer,
        id_key: &Secret,
        sealed: &[u8],
    ) -> Result<Vec<u8>, RepositoryError> {
        let compressed = key.open(self.ordinal, &self.associated_data(repository), sealed)?;
        let plain = decompress(self.codec, compressed, self.raw_length)?;
        if chunk_id(id_key, &plain) == self.id {
            Ok(plain)
        } else {
            Err(RepositoryError::malformed("chunk", "its plaintext does not have the id it is named by"))
        }
    }
}
