//! What can go wrong while a snapshot is held against a store.

use crate::postgres::PostgresError;
use crate::profile::ProfileError;
use crate::repository::RepositoryError;

/// No variant holds a value of a row.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompareError {
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    #[error(transparent)]
    Postgres(#[from] PostgresError),
    #[error(transparent)]
    Profile(#[from] ProfileError),
    #[error(
        "the profile names the table {table}, which is not in the {place}: correct the profile, or choose another snapshot"
    )]
    NoTable { table: String, place: &'static str },
    #[error("the profile names the column {column} of {table}, which is not in the {place}: correct the profile")]
    NoColumn { table: String, column: String, place: &'static str },
    #[error("the table {table} has no primary key in the live store and the profile gives no `key` for it")]
    NoKey { table: String },
    #[error("{table}.{column} has the type {found}, which cannot serve as {role}")]
    WrongType { table: String, column: String, found: String, role: &'static str },
    #[error(
        "this is an opaque key-value store: {tables} tables of keys and values that only its own server can read. Nothing in them says which row is a mail, whose it is or \
         when it came, so lost mail cannot be told from other data and no window can be restored. A snapshot takes the store whole: `restore --full --into DSN` \
         makes it anew, `restore --table` one of its tables"
    )]
    Opaque { tables: usize },
    #[error(
        "of {tables} tables none looks like mailboxes with mail in them: is it the right database, and may this role read it?"
    )]
    NoMail { tables: usize },
    #[error("this version cannot put mail back into a store whose {what}: take `restore --table` and do it by hand")]
    NotYet { what: &'static str },
    #[error(
        "the newest snapshot {chosen} was taken after the damage: {lost} messages of {better} are neither in it nor deleted by their users. \
         Name {better}, or leave the snapshot out"
    )]
    TakenAfterDamage { chosen: String, better: String, lost: u64 },
    #[error(
        "{table}.{column} is not what it was when the snapshot was taken: {reason}. Nothing was written; say in the profile what became of it, \
         under [changed]"
    )]
    Changed { table: String, column: String, reason: String },
    #[error("{column} cannot be put back into living messages: {reason}")]
    NotRepaired { column: String, reason: &'static str },
    #[error("the profile does not say in which column the Message-ID is: look by account, mailbox and time")]
    NoMessageId,
    #[error("the profile does not say in which column the UID is: look by account, mailbox and time")]
    NoUid,
    #[error("no certified snapshot of this repository has the table {table}")]
    NothingToCompare { table: String },
    #[error("the time zone {zone:?} of the profile is not known")]
    UnknownZone { zone: String },
    #[error(
        "the store's journal of replays cannot be read ({message}); without it mail could be doubled. Give the role SELECT on it: see `restante grants --for gap`"
    )]
    Journal { message: String },
}

impl CompareError {
    /// Is it refused for the sake of safety? (Exit code 4.)
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::TakenAfterDamage { .. } | Self::NotRepaired { .. } | Self::Changed { .. } | Self::Opaque { .. }
        )
    }
}
