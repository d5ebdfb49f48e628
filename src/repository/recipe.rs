//! Recipes: how a large value is put together again from chunks. The cutter that made the chunks is not part of the
//! format; whoever follows the operations in order gets the original bytes.
//!
//! Encoded: the value's length as a varint, then operations until that many bytes have come out. An operation is a varint
//! `(chunk << 1) | b` (chunk: ordinal into the increment's chunk list), a varint offset and a varint length in the chunk; with
//! `b` = 1 the bytes are written as base64, and a varint line length (0: one line) and a byte of flags follow (bit 0: CRLF,
//! else LF; bit 1: a line ending after the last line).

use super::error::RepositoryError;
use super::wire::{Cursor, put_varint};
use crate::mail::base64::{Base64Form, LineEnding};

/// PostgreSQL's limit of a field is just under 1 GiB.
pub const MAX_VALUE: u64 = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Ordinal into the increment's chunk list.
    pub chunk: u32,
    pub offset: u32,
    pub length: u32,
    pub base64: Option<Base64Form>,
}

#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Recipe {
    /// Of the value, in bytes.
    pub length: u64,
    pub operations: Vec<Operation>,
}

impl Recipe {
    pub fn encode(&self, out: &mut Vec<u8>) {
        put_varint(out, self.length);
        for op in &self.operations {
            put_varint(out, u64::from(op.chunk) << 1 | u64::from(op.base64.is_some()));
            put_varint(out, u64::from(op.offset));
            put_varint(out, u64::from(op.length));
            if let Some(form) = op.base64 {
                put_varint(out, u64::from(form.line_length));
                out.push(u8::from(form.line_ending == LineEnding::CrLf) | u8::from(form.final_line_ending) << 1);
            }
        }
    }

    pub fn decode(cursor: &mut Cursor<'_>) -> Result<Self, RepositoryError> {
        let length = cursor.varint()?;
        if length > MAX_VALUE {
            return Err(cursor.error(format!("a value of {length} bytes")));
        }
        let (mut operations, mut produced) = (Vec::new(), 0);
        while produced < length {
            let head = cursor.varint()?;
            let chunk = u32::try_from(head >> 1).map_err(|_| cursor.error("a chunk number is too large"))?;
            let (offset, size) = (cursor.varint()?, cursor.varint()?);
            let (Ok(offset), Ok(size)) = (u32::try_from(offset), u32::try_from(size)) else {
                return Err(cursor.error("an operation reaches outside every chunk"));
            };
            let base64 = if head & 1 == 1 { Some(form(cursor)?) } else { None };
            let op = Operation { chunk, offset, length: size, base64 };
            if op.produces() == 0 {
                return Err(cursor.error("an operation produces nothing"));
            }
            produced += op.produces();
            operations.push(op);
        }
        if produced == length {
            Ok(Self { length, operations })
        } else {
            Err(cursor.error("the operations produce more than the value"))
        }
    }

    /// Follows the recipe. `chunk` gives the plaintext of a chunk by its ordinal.
    pub fn assemble<'a>(&self, mut chunk: impl FnMut(u32) -> Option<&'a [u8]>) -> Result<Vec<u8>, RepositoryError> {
        let malformed = |message: &str| RepositoryError::malformed("recipe", message);
        if self.length > MAX_VALUE || self.operations.iter().map(Operation::produces).sum::<u64>() != self.length {
            return Err(malformed("the length does not come out"));
        }
        let mut value = Vec::with_capacity(self.length as usize);
        for op in &self.operations {
            let plain = chunk(op.chunk).ok_or_else(|| malformed("it names a chunk that is not in the list"))?;
            let (start, end) = (op.offset as usize, op.offset as usize + op.length as usize);
            let bytes = plain.get(start..end).ok_or_else(|| malformed("it reaches outside a chunk"))?;
            match op.base64 {
                None => value.extend_from_slice(bytes),
                Some(form) => crate::mail::base64::encode_slice(bytes, form, &mut value),
            }
        }
        if value.len() as u64 == self.length { Ok(value) } else { Err(malformed("the length does not come out")) }
    }
}

impl Operation {
    /// Bytes that the operation adds to the value.
    pub fn produces(&self) -> u64 {
        let Some(form) = self.base64 else { return u64::from(self.length) };
        form.encoded_len(self.length as usize) as u64
    }
}

fn form(cursor: &mut Cursor<'_>) -> Result<Base64Form, RepositoryError> {
    let line_length = u16::try_from(cursor.varint()?).map_err(|_| cursor.error("a line length is too large"))?;
    let flags = cursor.u8()?;
    if flags > 3 {
        return Err(cursor.error("unknown flags of a base64 operation"));
    }
    let line_ending = if flags & 1 == 1 { LineEnding::CrLf } else { LineEnding::Lf };
    Ok(Base64Form { line_length, line_ending, final_line_ending: flags & 2 == 2 })
}
