//! What can go wrong while mail is put back.

use crate::compare::CompareError;
use crate::postgres::PostgresError;

/// No variant holds the content of a message.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReplayError {
    #[error(transparent)]
    Compare(#[from] CompareError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error(
        "the journal of replays cannot be made ({message}); have an administrator run the SQL of `restante grants --for restore`"
    )]
    NoJournal { message: String },
    #[error(
        "a part with the same key is in {table} with other bytes: the live part or its key is damaged. Nothing of this batch was written; \
         compare the rows that `restante diff` names"
    )]
    PartDiffers { table: String },
    #[error(
        "{rows} rows of {table} do not read back as they were sent, in {columns}: something in the store changes content while it is written \
         (a trigger?). Nothing of this batch was written"
    )]
    Altered { table: String, columns: String, rows: i64 },
    #[error(
        "{rows} values that mail refers to could not be put into {table}: their key or another unique column of theirs is taken. Nothing of this \
         batch was written; compare the rows with `restante restore --table {table} --schema rescue`"
    )]
    ValueTaken { table: String, rows: i64 },
    #[error(
        "{table} has no default for its key {column}, and it is no uuid: new keys cannot be made; give the column a default"
    )]
    NoNewKey { table: String, column: String },
    #[error(
        "the sequence {sequence} is {missing} behind, too much to catch up step by step; have its owner run: SELECT setval('{sequence}', {least})"
    )]
    FarBehind { sequence: String, missing: i64, least: i64 },
    #[error("no replay {replay:?} is in the journal; `restante replays` lists them")]
    NoSuchReplay { replay: String },
    #[error("the store has no mailbox of these names now (their mail is gone with them): {names}")]
    NoSuchMailboxes { names: String },
    #[error("another replay put the same mail back at the same moment; run the command again")]
    Overtaken,
    #[error(
        "another mail got the UID of a restored one at the same moment; run the command again, it goes on where it stopped"
    )]
    UidTaken,
    #[error(
        "another mail got what is unique to the content of a restored one at the same moment; run the command again, it goes on where it stopped"
    )]
    ContentTaken,
    #[error(
        "the locks of {what} were not to be had in {attempts} attempts: others keep them; run the command again, it goes on where it stopped"
    )]
    Busy { what: &'static str, attempts: u32 },
}

impl ReplayError {
    /// Was it a lock, a deadlock or a conflict, so that the same transaction may work a little later?
    pub(super) fn is_transient(&self) -> bool {
        let state = match self {
            Self::Postgres(error) | Self::Compare(CompareError::Postgres(error)) => error.sqlstate(),
            Self::Overtaken | Self::UidTaken => return true,
            _ => None,
        };
        matches!(state, Some("40001" | "40P01" | "55P03"))
    }

    /// Is a value there already that must be there once?
    pub(super) fn is_duplicate(&self) -> bool {
        matches!(self, Self::Postgres(error) if error.sqlstate() == Some("23505"))
    }

    /// Is it refused for the sake of safety?
    pub fn is_refusal(&self) -> bool {
        matches!(self, Self::Compare(error) if error.is_refusal())
    }

    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NoSuchReplay { .. } | Self::NoSuchMailboxes { .. })
    }
}
