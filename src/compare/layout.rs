//! Which columns play which part: the profile, laid over the tables of the snapshot and the catalog of the live store.
//!
//! Columns are positions in the snapshot's column list everywhere; a column that the live store has no longer is read there as NULL
//! and not written, and one that the profile needs must be there.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use super::error::CompareError;
use super::keys::Keys;
use super::row::Row;
use super::source::SourceTable;
use crate::postgres::catalog::TableName;
use crate::postgres::sql;
use crate::profile::{ClockKind, TimeType};
use crate::repository::zone;

mod changed;
mod joined;
mod lay;
pub use joined::{Contents, Shared, sent_key};
pub use lay::{layout, layout_of_live};

/// A table on both sides.
#[derive(Debug, Clone)]
pub struct Table {
    pub source: SourceTable,
    pub columns: Vec<Column>,
    pub key: Vec<usize>,
    /// All columns of the live table with their types, by name; also those that are newer than the snapshot.
    pub live: Vec<(String, String)>,
    /// What is read in place of the live table, where several are read as one.
    from: Option<String>,
    /// Live columns that get SQL over the staged row.
    pub added: Vec<(String, String)>,
    /// Columns for which a restore is refused, and why.
    pub obstacles: Vec<(String, String)>,
}

#[derive(Debug, Clone)]
pub struct Column {
    pub name: String,
    /// In which both sides are compared and rows are staged: that of the snapshot, or what it was widened to.
    pub type_name: String,
    pub text: bool,
    /// `None`: the live table has it no longer, or with a type of another meaning.
    pub live: Option<LiveColumn>,
    /// The live column is narrower.
    pub limit: Option<Limit>,
    /// Why its values cannot be put back.
    pub obstacle: Option<String>,
}

/// What a narrower column can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Limit {
    /// Integers of so many bytes.
    Bytes(usize),
    Characters(usize),
}

impl Limit {
    /// Does a field of the wider type fit?
    pub fn holds(self, field: &[u8]) -> bool {
        match self {
            Self::Bytes(width) => zone::integer(field, false).is_none_or(|number| {
                let sign = number >> (8 * width - 1);
                sign == 0 || sign == -1
            }),
            Self::Characters(length) => String::from_utf8_lossy(field).chars().count() <= length,
        }
    }
}

#[derive(Debug, Clone)]
pub struct LiveColumn {
    pub type_name: String,
    pub generated: bool,
    pub identity: bool,
    /// As SQL.
    pub default: Option<String>,
}

/// An account or a mailbox.
#[derive(Debug, Clone)]
pub struct Parent {
    pub table: Table,
    pub natural: Vec<usize>,
    pub evidence: Vec<usize>,
    /// In a mailbox: refers to its owner.
    pub owner: Option<usize>,
    /// What the names of an account's mailboxes begin with.
    pub home: Option<String>,
    pub live: Option<String>,
    /// A predicate: an account holds more than it may.
    pub over_quota: Option<String>,
    /// Kept by triggers or computed: never written.
    pub derived: Vec<usize>,
    /// Position of UIDNEXT, MODSEQ and UIDVALIDITY, where the mailbox keeps them.
    pub uid: Option<usize>,
    pub modseq: Option<usize>,
    pub uidvalidity: Option<usize>,
    /// The columns hold the numbers that come next, not those issued last.
    pub uid_is_next: bool,
    pub modseq_is_next: bool,
    /// Nothing counts them: the next one is above the highest that a row of the mailbox has.
    pub uid_by_rows: bool,
    pub modseq_by_rows: bool,
    /// Set whenever mail is put in.
    pub set: BTreeMap<usize, String>,
    /// Set in a row that was lost and is made anew.
    pub made: BTreeMap<usize, String>,
    /// Rows that hang on it: they come back with one that was lost.
    pub children: Vec<Child>,
    /// Columns of its name that refer to a dictionary, by position.
    pub named: Vec<(usize, usize)>,
}

/// What a column refers to, besides the message itself. Keys may be others now, or another's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refers {
    Owner,
    Mailbox,
    /// Position in [`Layout::dictionaries`].
    Dictionary(usize),
    /// Another message than the one that the row belongs to.
    Message,
}

/// Values that rows share and refer to by key.
#[derive(Debug, Clone)]
pub struct Dictionary {
    pub table: Table,
    pub natural: Vec<usize>,
    /// Those of them in which upper and lower case are the same.
    pub lower: Vec<usize>,
    /// SQL over rows that the server knows by their key.
    pub fixed: Option<String>,
    /// Other dictionaries that it refers to stand before it. References to messages are set when those are there.
    pub refers: Vec<(usize, Refers)>,
    /// Rows that hang on it: they come back with one that is made anew. Of a living one nobody knows whether its users removed them.
    pub children: Vec<Child>,
}

/// The message in a mailbox.
#[derive(Debug, Clone)]
pub struct Message {
    /// As it is read: the link, and behind its columns those of the content.
    pub table: Table,
    /// The table of the rows that lie in mailboxes; it is written to.
    pub link: Table,
    /// `None`: the link is the message.
    pub content: Option<Shared>,
    pub mailbox: usize,
    pub evidence: Vec<usize>,
    pub size: Option<usize>,
    pub message_id: Option<usize>,
    pub uid: Option<usize>,
    pub modseq: Option<usize>,
    /// In the order in which a window asks them: saved, then arrival.
    pub clocks: Vec<Clock>,
    pub body: Body,
    /// Columns that may differ without making another message.
    pub flags: Vec<usize>,
    /// What a restored link gets instead of its old value.
    pub set: BTreeMap<usize, String>,
    pub regenerate: Vec<usize>,
    /// Of the link.
    pub refers: Vec<(usize, Refers)>,
    /// Computed from other rows, so that they change when nobody touched the message.
    pub derived: Vec<usize>,
    /// What no two messages may have in common, besides what a restored one gets anew.
    pub unique: Vec<Unique>,
}

/// A unique key, or index, over plain columns.
#[derive(Debug, Clone)]
pub struct Unique {
    pub columns: Vec<usize>,
    /// Over the rows that it holds for.
    pub predicate: Option<String>,
}

#[derive(Debug, Clone)]
pub struct Clock {
    pub column: usize,
    pub kind: ClockKind,
    pub time: TimeType,
    pub zone: Option<TimeZone>,
}

/// Microseconds from 1970 to 2000, where PostgreSQL's clocks begin.
const EPOCH_OFFSET: i64 = 946_684_800_000_000;

/// A time without a zone, as PostgreSQL makes one with a zone of it: of an hour that came twice the second one counts.
pub(super) fn in_zone(local: i64, zone: &TimeZone) -> Option<i64> {
    let since_1970 = Timestamp::from_microsecond(local.checked_add(EPOCH_OFFSET)?).ok()?;
    let local = since_1970.to_zoned(TimeZone::UTC).datetime();
    Some(zone.to_ambiguous_timestamp(local).later().ok()?.as_microsecond() - EPOCH_OFFSET)
}

impl Clock {
    /// What a field says; `None` for infinities and what no calendar holds.
    pub fn read(&self, field: &[u8]) -> Option<Timestamp> {
        self.instant(zone::integer(field, self.time != TimeType::Epoch)?)
    }

    /// The instant that a number of the column stands for.
    pub fn instant(&self, number: i64) -> Option<Timestamp> {
        let since_1970 = || Timestamp::from_microsecond(number.checked_add(EPOCH_OFFSET)?).ok();
        match self.time {
            TimeType::Epoch => Timestamp::from_second(number).ok(),
            TimeType::Timestamptz => since_1970(),
            TimeType::Timestamp => {
                let local = since_1970()?.to_zoned(TimeZone::UTC).datetime();
                let zone = self.zone.clone().unwrap_or(TimeZone::UTC);
                Some(local.to_zoned(zone).ok()?.timestamp())
            }
        }
    }
}

#[derive(Debug, Clone)]
pub enum Body {
    Raw(usize),
    Spliced(usize),
    /// The columns in their order.
    Pieces(Vec<usize>),
    /// A header, and behind it the value of a dictionary.
    Headed {
        header: usize,
        /// Refers to the value.
        part: usize,
        /// Position in [`Layout::dictionaries`], and the columns there.
        kind: usize,
        bytes: Vec<usize>,
    },
    /// The parts alone, in their order.
    Parts {
        header_first: bool,
    },
}

impl Body {
    /// The columns of the message that hold content.
    pub fn columns(&self) -> &[usize] {
        match self {
            Self::Raw(column) | Self::Spliced(column) | Self::Headed { header: column, .. } => {
                std::slice::from_ref(column)
            }
            Self::Pieces(columns) => columns,
            Self::Parts { .. } => &[],
        }
    }

    /// The mail's header is kept.
    pub fn has_header(&self) -> bool {
        !matches!(self, Self::Pieces(_) | Self::Parts { header_first: false })
    }
}

/// Content that several messages may share, and the table that says which message has which.
#[derive(Debug, Clone)]
pub struct Part {
    pub table: Table,
    pub bytes: Vec<usize>,
    pub via: Child,
    /// In `via`: refers to the part's key.
    pub part: usize,
    pub order: Vec<usize>,
    pub position: Option<usize>,
    /// Its key is a number, which may have been issued again: it is found again by its bytes, as one of the dictionaries.
    pub numbered: bool,
}

/// Content in rows that belong to one message and are shared by none: parts, or header fields.
#[derive(Debug, Clone)]
pub struct Content {
    /// Position in [`Layout::children`].
    pub child: usize,
    /// Those that say something. In place of a reference to a dictionary the value counts.
    pub columns: Vec<usize>,
}

/// Rows that belong to a message, or to an account, a mailbox or a dictionary.
#[derive(Debug, Clone)]
pub struct Child {
    pub table: Table,
    /// Refers to what the row belongs to.
    pub of: Vec<usize>,
    /// The columns that it refers to: in [`Message::table`] the key of the link or that of the content, else the parent's key.
    pub to: Vec<usize>,
    /// What tells the rows of one message apart.
    pub natural: Vec<usize>,
    pub set: BTreeMap<usize, String>,
    /// Columns of its own key that the store fills: nobody refers to them, and their old value may have been issued again.
    pub issued: Vec<usize>,
    pub refers: Vec<(usize, Refers)>,
    /// Foreign keys to tables that have no role: column, table, column there. Such rows are never made.
    pub foreign: Vec<(usize, TableName, String)>,
    /// Users change them, so those of a living message are left alone.
    pub mutable: bool,
}

impl Child {
    /// The key of what a row belongs to, as [`key_of`] makes it.
    pub fn holder<'a>(&self, field: impl Fn(usize) -> Option<&'a [u8]>) -> Option<Vec<u8>> {
        key_of(self.of.iter().map(|at| field(*at)))
    }

    /// A condition: the row `alias` belongs to the row `held` of a table, whose key has these columns.
    pub fn belongs(&self, alias: &str, held: &str, table: &Table, key: &[usize]) -> String {
        let same = self.of.iter().zip(key);
        let same = same.map(|(of, to)| format!("{alias}.{} = {held}.{}", self.table.ident(*of), table.ident(*to)));
        same.collect::<Vec<_>>().join(" AND ")
    }

    /// Columns by which the row of one message is found.
    pub fn by(&self) -> Vec<usize> {
        self.of.iter().chain(&self.natural).copied().collect()
    }

    /// The dictionary that a column refers to.
    pub fn dictionary(&self, column: usize) -> Option<usize> {
        self.refers.iter().find_map(|(at, refers)| match refers {
            Refers::Dictionary(kind) if *at == column => Some(*kind),
            _ => None,
        })
    }
}

/// A key of several columns as one: their fields one behind the other. Such columns are integers or UUIDs.
pub fn key_of<'a>(fields: impl Iterator<Item = Option<&'a [u8]>>) -> Option<Vec<u8>> {
    Some(fields.collect::<Option<Vec<_>>>()?.concat())
}

#[derive(Debug, Clone)]
pub struct Keyword {
    /// Position in [`Layout::children`].
    pub child: usize,
    pub column: usize,
    pub restored: Option<String>,
}

/// A table of tombstones.
#[derive(Debug, Clone)]
pub struct Tombstone {
    pub name: TableName,
    pub mailbox: Option<String>,
    pub uid: Option<String>,
    pub modseq: Option<String>,
    pub message: Option<String>,
    /// `message` is the content, which stays as long as its tombstone and tells what was deleted.
    pub keeps_content: bool,
    /// Column of the tombstone, column of the message.
    pub evidence: Vec<(String, usize)>,
    pub at: Option<String>,
    pub set: BTreeMap<String, String>,
    pub written: bool,
}

impl Tombstone {
    /// The column that has what a message has in this one.
    pub fn copied(&self, message: &Message, column: usize) -> Option<&str> {
        let content = message.content.as_ref().filter(|_| self.keeps_content).map(|content| content.of);
        let of_key = message.link.key == [column] && !self.keeps_content;
        let own = match column {
            _ if column == message.mailbox => &self.mailbox,
            _ if Some(column) == message.uid => &self.uid,
            _ if Some(column) == content || of_key => &self.message,
            _ => &None,
        };
        let evidence = || self.evidence.iter().find(|(_, of)| *of == column).map(|(own, _)| &**own);
        own.as_deref().or_else(evidence)
    }

    /// What it proves of a message besides key and mailbox.
    pub fn proves(&self, message: &Message) -> Vec<usize> {
        let own = self.evidence.iter().map(|(_, of)| *of);
        let content = message.content.as_ref().filter(|_| self.keeps_content);
        own.chain(content.into_iter().flat_map(Shared::in_message)).collect()
    }
}

/// Rows of messages that are tombstones: a deletion marks them, and they stay for a while.
#[derive(Debug, Clone)]
pub struct Buried {
    /// SQL over a message's row.
    pub predicate: String,
    /// The columns that the predicate speaks of.
    pub columns: Vec<usize>,
    /// What marks a row so.
    pub at: Option<usize>,
    pub modseq: Option<usize>,
    pub set: BTreeMap<usize, String>,
    pub written: bool,
}

/// The whole store.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The store's own schema.
    pub schema: String,
    pub owner: Option<Parent>,
    pub mailbox: Parent,
    pub message: Message,
    pub parts: Vec<Part>,
    pub children: Vec<Child>,
    /// Those of the children that hold content.
    pub contents: Vec<Content>,
    pub dictionaries: Vec<Dictionary>,
    pub keyword: Option<Keyword>,
    /// The sequence that all UIDs come from, where no mailbox counts its own.
    pub uid_sequence: Option<TableName>,
    /// The same for MODSEQs.
    pub modseq_sequence: Option<TableName>,
    pub tombstones: Vec<Tombstone>,
    pub buried: Option<Buried>,
    /// Where bytes of mail lie that are not in the database.
    pub external: Vec<String>,
    pub triggers: Vec<Trigger>,
    /// Statements that compute what is derived and no trigger keeps.
    pub derived: Vec<String>,
    /// Messages that share a dictionary that refers back to messages go into one transaction.
    pub deferred: bool,
    /// Keys that became others since the snapshot was taken.
    pub keys: Vec<Arc<Keys>>,
}

/// A trigger that a restore will fire.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Trigger {
    pub table: String,
    pub name: String,
    pub function: String,
}

impl Layout {
    /// Does the store remember what its users deleted?
    pub fn records_deletions(&self) -> bool {
        !self.tombstones.is_empty() || self.buried.is_some()
    }

    /// Where the store's own SQL looks for names; ours has every schema.
    pub fn search_path(&self) -> String {
        format!("search_path = pg_catalog, {}, pg_temp", sql::identifier(&self.schema))
    }

    /// The mailboxes, or the accounts.
    pub fn parent(&self, mailbox: bool) -> Option<&Parent> {
        if mailbox { Some(&self.mailbox) } else { self.owner.as_ref() }
    }

    /// A condition over the columns of a message: users see it.
    pub fn shown(&self) -> String {
        self.buried.as_ref().map_or("true".to_owned(), |buried| format!("({}) IS NOT TRUE", buried.predicate))
    }

    /// All tables that rows are put into.
    pub fn tables(&self) -> impl Iterator<Item = &Table> {
        let parents = std::iter::once(&self.mailbox).chain(&self.owner);
        let hanging = std::iter::once(&self.mailbox).chain(&self.owner).flat_map(|parent| &parent.children);
        let parts = self.parts.iter().flat_map(|part| [&part.table, &part.via.table]);
        let children = self.children.iter().chain(hanging).map(|child| &child.table);
        let dictionaries = self.dictionaries.iter().map(|one| &one.table);
        let parents = parents.map(|parent| &parent.table);
        let message = std::iter::once(&self.message.link).chain(self.message.content.iter().map(|one| &one.table));
        message.chain(parents).chain(parts).chain(children).chain(dictionaries)
    }

    /// The same where two tables have such columns.
    pub fn shown_of(&self, alias: &str) -> String {
        format!("(SELECT {} FROM (SELECT {alias}.*) q)", self.shown())
    }

    /// What of a message its tombstone records besides its key and its mailbox.
    pub fn buried_evidence(&self) -> Vec<usize> {
        self.tombstones.first().map_or_else(|| self.message.evidence.clone(), |first| first.proves(&self.message))
    }

    /// The values, by dictionary and key, that a message and what belongs to it refer to.
    pub fn shared<'a>(
        &'a self,
        message: Option<&'a Row>,
        via: &'a [Vec<Row>],
        children: &'a [Vec<Row>],
    ) -> impl Iterator<Item = (usize, &'a [u8])> {
        let via = self.parts.iter().zip(via).flat_map(|(part, rows)| rows.iter().map(|row| (&part.via.refers, row)));
        let children = self.children.iter().zip(children);
        let children = children.flat_map(|(child, rows)| rows.iter().map(|row| (&child.refers, row)));
        let content = self.message.content.as_ref().zip(message);
        let content = content.map(|(content, row)| (&content.refers, content.row(row)));
        let link = message.map(|row| (&self.message.refers, &row[..]));
        let rest = via.chain(children).map(|(refers, row)| (refers, &row[..]));
        link.into_iter().chain(content).chain(rest).flat_map(|(refers, row)| {
            refers.iter().filter_map(|(column, refers)| match refers {
                Refers::Dictionary(kind) => Some((*kind, row[*column].bytes()?)),
                Refers::Owner | Refers::Mailbox | Refers::Message => None,
            })
        })
    }

    /// Do these rows hang on the content, which several links may share?
    pub fn is_shared(&self, child: &Child) -> bool {
        self.message.content.as_ref().is_some_and(|content| child.to == [content.of])
    }

    /// All kinds of rows that hang on messages: those that name their parts, then the others.
    pub fn belonging(&self) -> impl Iterator<Item = &Child> {
        self.parts.iter().map(|part| &part.via).chain(&self.children)
    }
}

impl Table {
    /// The live columns at these positions, cast to the snapshot's types; `alias` is the table's.
    pub fn select(&self, columns: &[usize], alias: &str) -> String {
        let list: Vec<String> = columns.iter().map(|at| self.expression(*at, alias)).collect();
        list.join(", ")
    }

    pub fn expression(&self, column: usize, alias: &str) -> String {
        let column = &self.columns[column];
        let to = if column.text { "text" } else { &column.type_name };
        match column.live {
            Some(_) => format!("{alias}.{}::{to}", sql::identifier(&column.name)),
            None => format!("NULL::{to}"),
        }
    }

    pub fn quoted(&self) -> String {
        self.from.clone().unwrap_or_else(|| self.source.name.quoted())
    }

    pub fn label(&self) -> String {
        self.source.name.to_string()
    }

    pub fn ident(&self, column: usize) -> String {
        sql::identifier(&self.columns[column].name)
    }

    /// Positions of the columns that a piece of SQL may speak of.
    pub fn named_in(&self, sql: &str) -> Vec<usize> {
        let named = |at: &usize| sql.contains(&*self.columns[*at].name) || sql.contains(&self.ident(*at));
        self.all().into_iter().filter(named).collect()
    }

    /// Does the store fill the column itself?
    pub fn filled(&self, column: usize) -> bool {
        self.columns[column].live.as_ref().is_some_and(|live| live.identity || live.default.is_some())
    }

    /// Is its key a number?
    pub fn is_numbered(&self) -> bool {
        let kind = self.key.first().map(|key| &*self.columns[*key].type_name);
        self.key.len() == 1 && matches!(kind, Some("smallint" | "integer" | "bigint"))
    }

    /// Positions of all columns.
    pub fn all(&self) -> Vec<usize> {
        (0..self.columns.len()).collect()
    }

    /// The one column of the key, where there must be one.
    pub fn single_key(&self) -> Result<usize, CompareError> {
        match self.key[..] {
            [key] => Ok(key),
            _ => Err(CompareError::NotYet { what: "accounts, mailboxes or messages have keys of several columns" }),
        }
    }
}
