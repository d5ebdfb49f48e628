//! Reading and writing the binary parts of metadata: little-endian words and LEB128 numbers, every read checked.

use super::error::RepositoryError;

/// Unsigned LEB128, at most ten bytes.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Walks over bytes that may be damaged.
#[derive(Clone)]
pub struct Cursor<'a> {
    rest: &'a [u8],
    what: &'static str,
}

impl<'a> Cursor<'a> {
    pub fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { rest: bytes, what }
    }

    pub fn error(&self, message: impl Into<String>) -> RepositoryError {
        RepositoryError::malformed(self.what, message)
    }

    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    pub fn take(&mut self, length: usize) -> Result<&'a [u8], RepositoryError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.error("it was cut short"))?;
        self.rest = rest;
        Ok(taken)
    }

    pub fn u8(&mut self) -> Result<u8, RepositoryError> {
        Ok(self.take(1)?[0])
    }

    pub fn u32(&mut self) -> Result<u32, RepositoryError> {
        let b = self.take(4)?;
        Ok(u32::from_le_bytes([b[0], b[1], b[2], b[3]]))
    }

    pub fn varint(&mut self) -> Result<u64, RepositoryError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                break;
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(self.error("a number is too long"))
    }

    /// Insists that nothing is left.
    pub fn finish(self) -> Result<(), RepositoryError> {
        if self.rest.is_empty() { Ok(()) } else { Err(self.error(format!("{} bytes too many", self.rest.len()))) }
    }
}
