//! The parts of a profile as they are written.
//!
//! Tables are named `table` or `schema.table`; without a schema the profile's `schema` counts. *Predicates* and *expressions* are SQL over
//! the columns of the row that they belong to. Columns that can be found through a foreign key may be left out where the type
//! says `Option`.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::Located;

/// The whole file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Model {
    /// Name of the store that is described.
    pub profile: String,
    /// Schema of tables that are named without one.
    #[serde(default = "public")]
    pub schema: String,
    /// How to tell that a database is such a store, and of the version that is described.
    #[serde(default)]
    pub recognise: Recognise,
    #[serde(default)]
    pub triggers: TriggerPolicy,
    /// Columns that carry the tenant under row-level security and are copied with each row. Sessions always read with
    /// `row_security = off`.
    #[serde(default)]
    pub tenant: Columns,
    /// Tables refer to each other in a circle of deferrable constraints: all rows of a group go into one transaction.
    #[serde(default)]
    pub deferred: bool,
    /// Tables that are never written, such as queues, deliveries and notifications.
    #[serde(default)]
    pub never: Vec<Located<String>>,
    pub owner: Option<Located<Owner>>,
    pub mailbox: Located<Mailbox>,
    pub message: Located<Message>,
    pub link: Located<Link>,
    pub flags: Option<Located<Flags>>,
    #[serde(default)]
    pub part: Vec<Located<Part>>,
    #[serde(default)]
    pub dictionary: Vec<Located<Dictionary>>,
    #[serde(default)]
    pub child: Vec<Located<Child>>,
    #[serde(default)]
    pub tombstone: Vec<Located<Tombstone>>,
    #[serde(default)]
    pub derived: Vec<Located<Derived>>,
    /// What is run after a restore, in this order.
    #[serde(default)]
    pub after: Vec<Located<Hook>>,
    /// What became of tables since the snapshot was taken, by their old names.
    #[serde(default)]
    pub changed: BTreeMap<String, Changed>,
}

/// A table that is another one now. Everywhere else a profile may name it, and its columns, by old or new names; its SQL runs in the live
/// store and needs the new ones.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Changed {
    /// Its name now.
    pub table: Option<String>,
    /// Old names of columns, and the new ones.
    pub columns: BTreeMap<String, String>,
    /// Columns that get a value made of the old row, as SQL. It names columns that are gone by their old names, all others by their new ones.
    pub values: BTreeMap<String, String>,
    /// Keys that were integers and are something else, by their old names, and SQL that makes the new key of the old row, which it may call
    /// `snapshot`. The old row has no other column. NULL: nobody knows any more.
    pub keys: BTreeMap<String, Located<String>>,
    /// Columns that were `timestamp` and are `timestamptz`, and the zone in which they were meant.
    pub zones: BTreeMap<String, String>,
}

fn public() -> String {
    "public".to_owned()
}

/// One column name or a list of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns(pub Vec<String>);

impl<'de> Deserialize<'de> for Columns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a column name, or a list of column names, is expected here")]
        enum OneOrMany {
            One(String),
            Many(Vec<String>),
        }
        Ok(Self(match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(column) => vec![column],
            OneOrMany::Many(columns) => columns,
        }))
    }
}

/// Columns and the expressions that a restored row gets there instead of its old value.
pub type Assignments = BTreeMap<String, String>;

/// Columns that refer to a table without a foreign key, and that table.
pub type SoftReferences = BTreeMap<String, String>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recognise {
    /// `table.column` names that all exist.
    #[serde(default)]
    pub columns: Vec<String>,
    /// A query that gives true. It names schemas: the search path is empty.
    pub sql: Option<String>,
}

/// What happens to the store's triggers while rows are put back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TriggerPolicy {
    /// The store has none; one that turns up stops the restore.
    #[default]
    NoneExpected,
    /// All fire, as they do at delivery.
    Keep,
    /// All are off in the restoring session, whose rows are checked and counted by Restante.
    Off,
}

/// Whom mailboxes belong to.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Owner {
    pub table: String,
    /// The primary key if left out.
    pub key: Option<Columns>,
    /// What names the individual to people; a parent is found again by it, never by its key.
    pub natural: Columns,
    /// Columns that never change and prove that a row with the same natural key is the same individual.
    #[serde(default)]
    pub evidence: Columns,
    /// The rows that exist for users.
    pub live: Option<String>,
    /// The accounts that hold more than they may. Mail is put back into them all the same, and it is told.
    pub over_quota: Option<String>,
    /// Set in an account that was lost and is made anew, under another key.
    #[serde(default)]
    pub made: Assignments,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mailbox {
    pub table: String,
    pub key: Option<Columns>,
    /// The column that refers to the owner.
    pub owner: Option<Columns>,
    pub natural: Columns,
    /// What the names of an account's mailboxes begin with, `{owner}` being its own name: side folders are made below it.
    pub home: Option<String>,
    #[serde(default)]
    pub evidence: Columns,
    pub live: Option<String>,
    #[serde(default)]
    pub uid: Counter,
    #[serde(default)]
    pub modseq: Counter,
    #[serde(default)]
    pub uidvalidity: UidValidity,
    /// Set in the mailbox whenever mail is put into it.
    #[serde(default)]
    pub set: Assignments,
    /// Set in a mailbox that was lost and is made anew, under another key.
    #[serde(default)]
    pub made: Assignments,
    #[serde(default)]
    pub references: SoftReferences,
}

/// How a store issues the numbers of a mailbox. A NULL counter has issued none yet.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counter {
    pub kind: CounterKind,
    /// Of the mailbox, for `next` and `last`.
    pub column: Option<String>,
    /// For `global-sequence`.
    pub sequence: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum CounterKind {
    /// The store has no such numbers.
    #[default]
    None,
    /// The column holds the number that comes next.
    Next,
    /// The column holds the number that was issued last.
    Last,
    /// One more than the highest number in the mailbox, rows that users do not see included.
    MaxOverRows,
    /// One sequence for all mailboxes.
    GlobalSequence,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UidValidity {
    pub column: Option<String>,
    /// The mailbox's key serves as UIDVALIDITY, so it cannot be changed.
    #[serde(default)]
    pub key: bool,
}

/// The mail itself.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Message {
    pub table: String,
    pub key: Option<Columns>,
    /// Columns that never change and prove that a row with the same key is the same message.
    #[serde(default)]
    pub evidence: Columns,
    pub size: Option<String>,
    /// An expression for the Message-ID, most often a column.
    pub message_id: Option<String>,
    pub clocks: Vec<Clock>,
    pub body: Body,
    /// Columns that refer to another message of the same table, and may do so without a foreign key.
    #[serde(default)]
    pub self_reference: Columns,
    #[serde(default)]
    pub references: SoftReferences,
    #[serde(default)]
    pub set: Assignments,
    /// Columns that get the default of the table, because their old value may have been issued again.
    #[serde(default)]
    pub regenerate: Columns,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clock {
    pub column: String,
    pub clock: ClockKind,
    #[serde(rename = "type", default)]
    pub time: TimeType,
    /// The zone in which a `timestamp` is meant: a name of the IANA database.
    pub zone: Option<String>,
    /// The table that has the column, if not the message's own.
    pub table: Option<String>,
}

/// What moves a time column.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ClockKind {
    /// INTERNALDATE: when the mail arrived, or what a client said at APPEND.
    Arrival,
    /// When the row was made.
    Saved,
    /// The sender's Date field. Windows never follow it unless they are told to.
    Header,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TimeType {
    #[default]
    Timestamptz,
    /// Without a zone; the profile names the zone.
    Timestamp,
    /// Seconds since 1970 in an integer.
    Epoch,
}

/// How the raw mail is put together.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "assembly", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Body {
    /// One column holds all of it.
    Raw { column: String },
    /// One column holds it but for its attachments, whose stored text goes in at `position` of the part's `via`.
    Spliced { column: String },
    /// A header, and parts behind it in their order.
    HeaderAndParts { header: String },
    /// Parts alone hold it, headers included or in children that say so, and its bytes cannot be had again.
    PartsOnly {
        /// The first part of each mail is its header.
        #[serde(default)]
        header_first: bool,
    },
    /// Text that was taken from the mail, whose bytes are not kept.
    Text { columns: Columns },
}

/// What puts a message into a mailbox.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Left out when the message's own row does it.
    pub table: Option<String>,
    pub key: Option<Columns>,
    pub mailbox: Columns,
    /// The column that refers to the message, when the link has a table of its own.
    pub message: Option<Columns>,
    pub uid: Option<String>,
    pub modseq: Option<String>,
    pub live: Option<String>,
    #[serde(default)]
    pub evidence: Columns,
    #[serde(default)]
    pub set: Assignments,
    #[serde(default)]
    pub regenerate: Columns,
    #[serde(default)]
    pub references: SoftReferences,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flags {
    /// The table of `columns` if it is not the link's.
    pub table: Option<String>,
    /// They may change without making another message.
    #[serde(default)]
    pub columns: Columns,
    /// Flags that a restored message does not keep: `\Recent`, `\Deleted`.
    #[serde(default)]
    pub set: Assignments,
    pub keywords: Option<Keywords>,
}

/// Keywords as rows of their own: a child of the link that needs no `[[child]]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keywords {
    pub table: String,
    pub column: String,
    /// The columns that refer to the link.
    pub of: Option<Columns>,
    /// The keyword by which users find what was put back.
    pub restored: Option<String>,
}

/// Content that is kept apart from the message, most often shared by several. Equal only when the bytes are: the hash that
/// the store keeps is a hint.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Part {
    pub table: String,
    pub key: Option<Columns>,
    pub hash: Option<String>,
    /// May be left out when they lie elsewhere.
    #[serde(default)]
    pub bytes: Columns,
    /// The table that says which message has which part. Exactly one of `via`, `message` and `referred_by` is given.
    pub via: Option<Via>,
    /// Columns of the part's own table that refer to the message.
    pub message: Option<Columns>,
    /// Columns of the message that refer to the part.
    pub referred_by: Option<Columns>,
    /// Where the bytes lie when they are not in the table: an object store, a folder. Restante does not read there.
    pub external: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Via {
    pub table: String,
    pub key: Option<Columns>,
    pub message: Columns,
    pub part: Columns,
    #[serde(default)]
    pub order: Columns,
    /// Byte offset in a spliced body at which the part goes in.
    pub position: Option<String>,
}

/// Values that rows share and refer to by a surrogate key. Found again by `natural`; the key is looked up or made anew.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dictionary {
    pub table: String,
    pub key: Option<Columns>,
    pub natural: Columns,
    /// Those of them that are unique in lower case.
    #[serde(default)]
    pub lower: Columns,
    /// A predicate: the server knows such rows by their key, so they come back under it or not at all.
    pub fixed: Option<String>,
    /// Columns that refer back to a message, and are set once that exists.
    #[serde(default)]
    pub cycle: Columns,
    #[serde(default)]
    pub references: SoftReferences,
}

/// Rows that belong to a message and live and die with it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Child {
    pub table: String,
    /// `message`, `link`, or the table that the rows hang on.
    pub of: String,
    /// The columns that refer to it; the foreign key tells them if left out.
    pub columns: Option<Columns>,
    /// What tells the rows of one parent apart; the primary key if left out.
    pub natural: Option<Columns>,
    /// Its rows are header fields of the mail and tell two mails apart, where the body's assembly is `parts-only`.
    #[serde(default)]
    pub header: bool,
    /// Users add and remove the rows: those that a living message misses stay away.
    #[serde(default)]
    pub mutable: bool,
    #[serde(default)]
    pub set: Assignments,
    #[serde(default)]
    pub references: SoftReferences,
}

/// How the store remembers that a user deleted a message: a predicate over the link, or rows of a table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tombstone {
    pub table: Option<String>,
    pub predicate: Option<String>,
    pub mailbox: Option<Columns>,
    pub uid: Option<String>,
    pub modseq: Option<String>,
    /// The key of the deleted message, or of its content where that stays with the tombstone and proves what was deleted. It may have been
    /// issued again, so that of a message proves nothing without `evidence`.
    pub message: Option<Columns>,
    /// Columns of the tombstone and the columns of message or link that they were copied from.
    #[serde(default)]
    pub evidence: BTreeMap<String, String>,
    pub at: Option<String>,
    /// Set in the tombstones that undoing a restore leaves.
    #[serde(default)]
    pub set: Assignments,
    /// `never` where a row does more than to take the live message away.
    #[serde(default)]
    pub write: TombstoneWrite,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TombstoneWrite {
    #[default]
    OnUndo,
    Never,
}

/// What can be computed from other rows. Exactly one of the ways is given.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Derived {
    pub table: String,
    /// The whole table if left out.
    pub column: Option<String>,
    /// The store's triggers keep it.
    #[serde(default)]
    pub trigger: bool,
    /// A statement that brings it up to date.
    pub sql: Option<String>,
    /// A request or a command for a person to run.
    pub by_hand: Option<String>,
}

/// Exactly one of the ways is given.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hook {
    /// A statement that Restante runs.
    pub sql: Option<String>,
    /// Printed for a person to run: Restante starts no programs and calls nobody.
    pub shell: Option<String>,
    /// Likewise.
    pub http: Option<String>,
    #[serde(default)]
    pub per: HookScope,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HookScope {
    #[default]
    Replay,
    Owner,
    Mailbox,
}
