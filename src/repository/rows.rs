//! Row chunks: rows without their large values. A row is its fields in the order of the table's column list; a field starts
//! with a varint: 0 is NULL, 1 is a large value (the next one of the increment's value map), `n + 2` is a value of `n` bytes
//! that follow, as COPY BINARY sent them (or as text, where the column list says so).
//!
//! Values over [`INLINE_LIMIT`] bytes are large. The limit is part of the format, because the digest of a row depends on it.

use super::error::RepositoryError;
use super::id::Digest;
use super::seal::Secret;
use super::secrets::context;
use super::wire::{Cursor, put_varint};

/// Values of more bytes than this lie in the payload.
pub const INLINE_LIMIT: usize = 512;
/// A row chunk is closed when it holds as much. 0.1 % of random deletes touch everything larger (research: layouts).
pub const ROW_CHUNK: usize = 64 << 10;

/// A field of a row as it is read back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    Null,
    Inline(&'a [u8]),
    /// Ordinal into the increment's value map.
    Large(u32),
}

pub fn put_null(out: &mut Vec<u8>) {
    out.push(0);
}

pub fn put_large(out: &mut Vec<u8>) {
    out.push(1);
}

/// `value` has at most [`INLINE_LIMIT`] bytes.
pub fn put_inline(out: &mut Vec<u8>, value: &[u8]) {
    put_varint(out, value.len() as u64 + 2);
    out.extend_from_slice(value);
}

/// Reads the rows of a row chunk. `first_value` is the ordinal of its first large value.
pub struct RowReader<'a> {
    cursor: Cursor<'a>,
    columns: usize,
    next_value: u32,
}

impl<'a> RowReader<'a> {
    pub fn new(chunk: &'a [u8], columns: usize, first_value: u32) -> Self {
        Self { cursor: Cursor::new("row chunk", chunk), columns, next_value: first_value }
    }

    pub fn is_at_end(&self) -> bool {
        self.cursor.is_empty()
    }

    /// The ordinal that the next large value will have.
    pub fn next_value(&self) -> u32 {
        self.next_value
    }

    /// Fills `fields` with the next row; `false` at the end. A table without columns has nothing to read here.
    pub fn next(&mut self, fields: &mut Vec<Field<'a>>) -> Result<bool, RepositoryError> {
        fields.clear();
        if self.cursor.is_empty() {
            return Ok(false);
        }
        if self.columns == 0 {
            return Err(self.cursor.error("it has bytes, but its table has no columns"));
        }
        for _ in 0..self.columns {
            fields.push(match self.cursor.varint()? {
                0 => Field::Null,
                1 => {
                    let ordinal = self.next_value;
                    self.next_value = ordinal.checked_add(1).ok_or_else(|| self.cursor.error("too many values"))?;
                    Field::Large(ordinal)
                }
                n if n - 2 <= INLINE_LIMIT as u64 => Field::Inline(self.cursor.take(n as usize - 2)?),
                _ => return Err(self.cursor.error("an inline value is longer than the limit")),
            });
        }
        Ok(true)
    }
}

/// Keyed hashes over rows and values, in the epoch of an increment.
#[derive(Clone)]
pub struct RowHasher {
    value_key: Secret,
    digest_key: Secret,
}

/// The whole keyed hash of a value; its first half stands in the value map.
pub type ValueHash = [u8; 32];

impl RowHasher {
    pub fn new(id_secret: &Secret) -> Self {
        Self {
            value_key: id_secret.derive(context::VALUE_HASH, &[]),
            digest_key: id_secret.derive(context::ROW_DIGEST, &[]),
        }
    }

    pub fn value(&self, value: &[u8]) -> ValueHash {
        *blake3::keyed_hash(self.value_key.expose(), value).as_bytes()
    }

    /// Of a whole row, as a snapshot computes it. `None`: NULL.
    pub fn digest<'a>(&self, fields: impl Iterator<Item = Option<&'a [u8]>>) -> Digest {
        let mut digest = self.row();
        for field in fields {
            match field {
                None => digest.null(),
                Some(value) if value.len() <= INLINE_LIMIT => digest.inline(value),
                Some(value) => digest.large(value.len() as u64, &self.value(value)),
            }
        }
        digest.finish()
    }

    /// Starts the digest of a row; feed it every field in order.
    pub fn row(&self) -> RowDigest {
        RowDigest(blake3::Hasher::new_keyed(self.digest_key.expose()))
    }
}

/// The digest of a row: keyed BLAKE3 over, for each field, a zero byte (NULL), or 1, the length (u32) and the bytes, or for
/// a large value 2, the length and its value hash of 32 bytes. The first 16 bytes count.
pub struct RowDigest(blake3::Hasher);

impl RowDigest {
    pub fn null(&mut self) {
        self.0.update(&[0]);
    }

    pub fn inline(&mut self, value: &[u8]) {
        let mut head = [1, 0, 0, 0, 0];
        head[1..].copy_from_slice(&(value.len() as u32).to_le_bytes());
        self.0.update(&head);
        self.0.update(value);
    }

    pub fn large(&mut self, length: u64, hash: &ValueHash) {
        let mut head = [2, 0, 0, 0, 0];
        head[1..].copy_from_slice(&(length as u32).to_le_bytes());
        self.0.update(&head);
        self.0.update(hash);
    }

    pub fn finish(self) -> Digest {
        let mut digest = [0; 16];
        digest.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        Digest(digest)
    }
}

/// The digest of a multiset of rows: the sum of their digests, as little-endian numbers, modulo 2¹²⁸. Rows can be added and
/// taken away in any order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MultisetDigest(u128);

impl MultisetDigest {
    pub fn add(&mut self, row: &Digest) {
        self.0 = self.0.wrapping_add(u128::from_le_bytes(row.0));
    }

    pub fn combine(&mut self, other: Digest) {
        self.add(&other);
    }

    pub fn finish(self) -> Digest {
        Digest(self.0.to_le_bytes())
    }
}
