//! Rows as both sides give them, and what may be found out about a row.

use bytes::Bytes;
use serde::Serialize;

use crate::mail::identity::Rung;

/// A field while its row is being read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell<'a> {
    Null,
    Bytes(&'a [u8]),
    /// In the payload, to be fetched by [`super::source::Source::values`].
    Large(LargeValue),
}

/// Where a large value of a snapshot lies; means something only to the source that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LargeValue {
    pub increment: u32,
    pub ordinal: u32,
}

/// A field that is kept. Its debug output shows no content.
#[derive(Clone, PartialEq, Eq)]
pub enum Value {
    Null,
    Bytes(Bytes),
    Large(LargeValue),
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Null => f.write_str("NULL"),
            Self::Bytes(bytes) => write!(f, "{} bytes", bytes.len()),
            Self::Large(_) => f.write_str("a large value"),
        }
    }
}

/// A row that is kept: the fields of the table's columns in the snapshot, in their order.
pub type Row = Vec<Value>;

impl<'a> Cell<'a> {
    pub fn bytes(self) -> Option<&'a [u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub fn keep(self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Bytes(bytes) => Value::Bytes(Bytes::copy_from_slice(bytes)),
            Self::Large(large) => Value::Large(large),
        }
    }
}

impl Value {
    pub fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    pub fn cell(&self) -> Cell<'_> {
        match self {
            Self::Null => Cell::Null,
            Self::Bytes(bytes) => Cell::Bytes(bytes),
            Self::Large(large) => Cell::Large(*large),
        }
    }
}

/// Sixteen bytes that stand for several fields. Lives in memory and, as the name of what was restored, in the store's journal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Print(pub [u8; 16]);

/// Takes fields in, each with its length in front, so that none can pass for the end of another.
#[derive(Default)]
pub struct Printer(blake3::Hasher);

impl Printer {
    pub fn add(&mut self, field: Option<&[u8]>) -> &mut Self {
        match field {
            None => self.0.update(&[0]),
            Some(bytes) => self.0.update(&[1]).update(&(bytes.len() as u64).to_le_bytes()).update(bytes),
        };
        self
    }

    pub fn all<'a>(&mut self, fields: impl IntoIterator<Item = Option<&'a [u8]>>) -> &mut Self {
        for field in fields {
            self.add(field);
        }
        self
    }

    pub fn finish(&self) -> Print {
        let mut print = [0; 16];
        print.copy_from_slice(&self.0.finalize().as_bytes()[..16]);
        Print(print)
    }
}

/// What became of a message that the snapshot has and the live store has not under its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Lost, and to be put back.
    Absent,
    /// Lost, and its key was issued again to another mail: to be put back under a new one.
    ReusedId,
    /// An equal mail is in the mailbox: nothing to do.
    Duplicate,
    /// The user removed it: nothing to do, ever.
    DeletedByUser,
    /// The user or the damage removed it; there is no evidence. Follows `--doubtful`.
    CannotTell,
    /// Its mailbox or account was deleted on purpose.
    Orphan,
    /// Lost, and another mail has what only one mail can have: it is left out.
    PlaceTaken,
}

/// What decided the class.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reason {
    /// No trace of it in a store that records what its users delete.
    NoTrace,
    /// As before, and another mail has its key now.
    KeyIssuedAgain,
    /// An equal mail in the same mailbox; the rung tells how equal.
    Copy(Rung),
    /// An equal mail in another mailbox, which the snapshot did not have there.
    Moved(Rung),
    /// The very row, by its key and creation evidence, is in another mailbox now.
    MovedItself,
    /// A tombstone with its key and its creation evidence.
    Tombstone,
    /// A tombstone with its mailbox and creation evidence, under another key.
    TombstoneByEvidence,
    /// An earlier replay put it back, and it is there.
    RestoredBefore,
    /// An earlier replay put it back, and it is gone since.
    RestoredAndGone,
    /// The store keeps no record of deletions.
    NoTombstones,
    /// An equal mail is in another mailbox now, yet no tombstone tells of a move.
    CopyElsewhere(Rung),
    /// Its mailbox was lost and another one has taken the name.
    NameTaken,
    /// Its mailbox was deleted.
    MailboxDeleted,
    /// Its account was deleted.
    OwnerDeleted,
    /// Another living mail has what a unique key gives to one alone.
    UniqueKey,
}
