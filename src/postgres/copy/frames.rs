//! Takes a stream of COPY BINARY bytes apart into rows.
//!
//! The server sends a row in one piece, but nothing promises that: pieces may be cut anywhere. A row that arrives whole is
//! handed on without a copy. The format: `PGCOPY\n\xff\r\n\0`, 4 bytes of flags, 4 bytes of length of an extension area and
//! that area; rows of a 2-byte count of fields, each a 4-byte length (-1: NULL) and its bytes; a count of -1 at the end.

use bytes::{Buf, Bytes, BytesMut};

/// What is wrong with a COPY stream. Without any of its content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    #[error("the server's COPY stream does not begin with the signature of the binary format")]
    Signature,
    #[error("the server's COPY stream has flags {0:#x} that this version does not know")]
    Flags(u32),
    #[error("row {row} of the COPY stream has {found} fields instead of {expected}")]
    Fields { row: u64, found: i16, expected: u16 },
    #[error("a field in row {row} of the COPY stream has the length {length}")]
    Length { row: u64, length: i32 },
    #[error("row {row} of the COPY stream is larger than 1 GiB")]
    TooLarge { row: u64 },
    #[error("bytes follow the end of the COPY stream after row {rows}")]
    Trailing { rows: u64 },
    #[error("the COPY stream ended after row {rows} without its end mark: rows are missing")]
    Truncated { rows: u64 },
    #[error("row {row} of the COPY stream has no valid ctid and xmin in front")]
    RowIdentity { row: u64 },
}

/// Where a field lies in its row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FieldBounds {
    start: u32,
    /// -1 for NULL, as on the wire.
    length: i32,
}

impl FieldBounds {
    pub fn is_null(self) -> bool {
        self.length < 0
    }

    /// The bytes of the field in `row`, or `None` for NULL.
    pub fn of(self, row: &[u8]) -> Option<&[u8]> {
        let length = usize::try_from(self.length).ok()?;
        row.get(self.start as usize..)?.get(..length)
    }

    /// As [`FieldBounds::of`], sharing the row's memory.
    pub fn share(self, row: &Bytes) -> Option<Bytes> {
        self.of(row).map(|field| row.slice_ref(field))
    }

    /// Offset in the row and length in bytes; `None` for NULL.
    pub fn range(self) -> Option<std::ops::Range<usize>> {
        let length = usize::try_from(self.length).ok()?;
        Some(self.start as usize..self.start as usize + length)
    }
}

const SIGNATURE: &[u8; 11] = b"PGCOPY\n\xff\r\n\0";

/// PostgreSQL builds a row in one allocation of less than 1 GiB.
const MAX_ROW_BYTES: usize = 1 << 30;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    /// Bytes of the header's extension area still to skip.
    Extension(u64),
    Rows,
    Ended,
}

/// Splits a COPY BINARY stream into rows of `fields` fields each.
#[derive(Debug)]
pub struct FrameSplitter {
    fields: u16,
    state: State,
    /// What is next, contiguous.
    ready: Bytes,
    /// The beginning of a row whose rest has not come.
    partial: BytesMut,
    /// How many bytes `partial` must hold before another look pays: many small pieces must not cost a square.
    needed: usize,
    rows: u64,
}

enum Look {
    Complete(usize),
    Needs(usize),
    End,
}

impl FrameSplitter {
    pub fn new(fields: u16) -> Self {
        Self { fields, state: State::Header, ready: Bytes::new(), partial: BytesMut::new(), needed: 0, rows: 0 }
    }

    /// Gives it the next piece of the stream. Take all rows with [`FrameSplitter::next`] before the next piece.
    pub fn push(&mut self, piece: Bytes) {
        if self.partial.is_empty() && self.ready.is_empty() {
            self.ready = piece;
            return;
        }
        if !self.ready.is_empty() {
            // The caller did not take all rows: correct, but it costs a copy.
            let mut joined = BytesMut::with_capacity(self.partial.len() + self.ready.len() + piece.len());
            joined.extend_from_slice(&self.partial);
            joined.extend_from_slice(&self.ready);
            self.partial = joined;
            self.ready = Bytes::new();
            self.needed = 0;
        }
        self.partial.extend_from_slice(&piece);
        if self.partial.len() >= self.needed {
            self.ready = std::mem::take(&mut self.partial).freeze();
        }
    }

    /// The next row, count of fields included, with `bounds` (cleared first) telling where its fields are. `None`: push more.
    pub fn next(&mut self, bounds: &mut Vec<FieldBounds>) -> Result<Option<Bytes>, FrameError> {
        bounds.clear();
        while matches!(self.state, State::Header | State::Extension(_)) {
            if !self.skip_header()? {
                return Ok(None);
            }
        }
        if self.ready.is_empty() {
            return Ok(None);
        }
        if self.state == State::Ended {
            return Err(FrameError::Trailing { rows: self.rows });
        }
        match self.look(bounds)? {
            Look::Complete(length) => {
                self.rows += 1;
                Ok(Some(self.ready.split_to(length)))
            }
            Look::Needs(needed) => {
                bounds.clear();
                self.wait_for(needed);
                Ok(None)
            }
            Look::End => {
                self.ready.advance(2);
                self.state = State::Ended;
                if self.ready.is_empty() { Ok(None) } else { Err(FrameError::Trailing { rows: self.rows }) }
            }
        }
    }

    /// Call it at the end of the stream: the number of rows, if all came.
    pub fn finish(&self) -> Result<u64, FrameError> {
        match self.state {
            State::Ended if self.ready.is_empty() && self.partial.is_empty() => Ok(self.rows),
            State::Ended => Err(FrameError::Trailing { rows: self.rows }),
            _ => Err(FrameError::Truncated { rows: self.rows }),
        }
    }

    /// Rows so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    fn wait_for(&mut self, needed: usize) {
        self.partial = BytesMut::from(std::mem::take(&mut self.ready));
        self.needed = needed;
    }

    /// False when more bytes must come first.
    fn skip_header(&mut self) -> Result<bool, FrameError> {
        if let State::Extension(left) = self.state {
            let here = usize::try_from(left).unwrap_or(usize::MAX).min(self.ready.len());
            self.ready.advance(here);
            let left = left - here as u64;
            self.state = if left == 0 { State::Rows } else { State::Extension(left) };
            return Ok(left == 0);
        }
        if self.ready.is_empty() {
            // What came so far waits in `partial`.
            return Ok(false);
        }
        let compared = self.ready.len().min(SIGNATURE.len());
        if self.ready[..compared] != SIGNATURE[..compared] {
            return Err(FrameError::Signature);
        }
        if self.ready.len() < SIGNATURE.len() + 8 {
            self.wait_for(SIGNATURE.len() + 8);
            return Ok(false);
        }
        self.ready.advance(SIGNATURE.len());
        let flags = self.ready.get_u32();
        if flags != 0 {
            return Err(FrameError::Flags(flags));
        }
        self.state = State::Extension(u64::from(self.ready.get_u32()));
        Ok(true)
    }

    fn look(&self, bounds: &mut Vec<FieldBounds>) -> Result<Look, FrameError> {
        let row = self.rows + 1;
        let Some(count) = self.ready.first_chunk::<2>() else { return Ok(Look::Needs(2)) };
        let found = i16::from_be_bytes(*count);
        if found == -1 {
            return Ok(Look::End);
        }
        if u16::try_from(found) != Ok(self.fields) {
            return Err(FrameError::Fields { row, found, expected: self.fields });
        }
        let mut at = 2_usize;
        for _ in 0..self.fields {
            let Some(length) = self.ready.get(at..).and_then(|rest| rest.first_chunk::<4>()) else {
                return Ok(Look::Needs(at + 4));
            };
            let length = i32::from_be_bytes(*length);
            at += 4;
            let size = match usize::try_from(length) {
                Ok(size) => size,
                Err(_) if length == -1 => 0,
                Err(_) => return Err(FrameError::Length { row, length }),
            };
            // `at` stays far below 4 GiB: it is checked after every field.
            bounds.push(FieldBounds { start: u32::try_from(at).map_err(|_| FrameError::TooLarge { row })?, length });
            at += size;
            if at > MAX_ROW_BYTES {
                return Err(FrameError::TooLarge { row });
            }
        }
        if self.ready.len() < at { Ok(Look::Needs(at)) } else { Ok(Look::Complete(at)) }
    }
}

#[cfg(test)]
mod tests;
