//! Stores where what puts a mail into a mailbox (the link) and the mail itself (its content) are rows of two tables.
//!
//! The engine compares, plans and restores links, so it reads both tables as one: the columns of the link, then those of the content behind it.
//! Of the live store a join does that. Of a snapshot the content's rows are read first, and of each the few columns that pairing, clocks and
//! evidence need are kept; a link without its content is nothing that anybody could read, so on neither side it counts. Memory: about 300 bytes
//! for each content of the snapshot.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::{Column, LiveColumn, Message, Refers, Table, Unique, key_of};
use crate::compare::error::CompareError;
use crate::compare::row::{Cell, Row, Value};
use crate::compare::source::{Pick, RowSink, Source, SourceColumn};
use crate::postgres::sql;
use crate::repository::manifest::Wire;
use crate::repository::zone;

/// The table of the mail itself, where links to it have one of their own. Several links may share a content.
#[derive(Debug, Clone)]
pub struct Shared {
    pub table: Table,
    /// In the link: refers to the content's key.
    pub of: usize,
    /// Where the content's columns begin in the joined table.
    pub first: usize,
    /// What never changes, as positions in the content's own table.
    pub evidence: Vec<usize>,
    pub set: BTreeMap<usize, String>,
    pub regenerate: Vec<usize>,
    /// As [`Message::refers`], but of the content's own table.
    pub refers: Vec<(usize, Refers)>,
    /// What no two contents have in common: by it one that came again is found, whatever its key.
    pub unique: Vec<Unique>,
}

impl Shared {
    /// Its key is a UUID, which is never issued again: it comes back under its own, and what else names it keeps its meaning. One that was
    /// made of a number is no such.
    pub fn keeps_key(&self) -> bool {
        let is_own = |key: &usize| {
            let live = self.table.columns[*key].live.as_ref();
            live.is_some_and(|live| live.type_name == "uuid") && self.table.source.columns[*key].type_name == "uuid"
        };
        self.table.key.first().is_some_and(is_own)
    }

    /// Positions in the joined table of the columns that prove which content it is.
    pub fn in_message(&self) -> impl Iterator<Item = usize> {
        std::iter::once(self.of).chain(self.evidence.iter().map(|at| self.first + at))
    }

    /// The content's own row out of a joined one.
    pub fn row<'a>(&self, joined: &'a [Value]) -> &'a [Value] {
        &joined[self.first..self.first + self.table.columns.len()]
    }
}

/// The key of a link, where it has several columns: their fields as they are sent, one behind the other.
const KEY: &str = "restante_key";

/// How a key's column is sent: the function that does it, and the bytes that it gives.
fn sent(table: &Table, column: usize) -> Result<(&'static str, usize), CompareError> {
    match &*table.columns[column].type_name {
        "smallint" => Ok(("int2send", 2)),
        "integer" => Ok(("int4send", 4)),
        "bigint" => Ok(("int8send", 8)),
        "uuid" => Ok(("uuid_send", 16)),
        _ => {
            Err(CompareError::NotYet { what: "links have keys of several columns, and not all are integers or UUIDs" })
        }
    }
}

/// SQL for the key of a link of which `field` gives the columns; `None`: it lacks one.
pub fn sent_key(link: &Table, field: impl Fn(usize) -> Option<String>) -> Result<Option<String>, CompareError> {
    let mut fields = Vec::with_capacity(link.key.len());
    for at in &link.key {
        let Some(field) = field(*at) else { return Ok(None) };
        fields.push(format!("{}({field})", sent(link, *at)?.0));
    }
    Ok(Some(fields.join(" || ")))
}

/// Both tables as one. A column of the content whose name the link has too gets another one.
pub(super) fn joined(link: &Table, content: &Table, of: usize) -> Result<Table, CompareError> {
    let key = content.ident(content.single_key()?);
    let mut names: HashSet<String> = link.live.iter().map(|(name, _)| name.clone()).collect();
    names.extend(link.columns.iter().map(|column| column.name.clone()));
    let mut renamed: HashMap<&str, String> = HashMap::new();
    let live = content.live.iter().map(|(name, _)| &**name);
    for name in content.columns.iter().map(|column| &*column.name).chain(live) {
        let mut new = name.to_owned();
        while !renamed.contains_key(name) && names.contains(&new) {
            new.insert_str(0, "content_");
        }
        names.insert(new.clone());
        renamed.entry(name).or_insert(new);
    }
    let mut table = link.clone();
    let own = link.live.iter().map(|(name, _)| format!("l.{}", sql::identifier(name)));
    let theirs = content
        .live
        .iter()
        .map(|(name, _)| format!("c.{} AS {}", sql::identifier(name), sql::identifier(&renamed[&**name])));
    let mut key_column = None;
    if link.key.len() > 1 {
        let key = sent_key(link, |at| Some(link.expression(at, "l")))?;
        key_column = key.map(|key| format!("{key} AS {}", sql::identifier(KEY)));
    }
    table.from = Some(format!(
        "(SELECT {} FROM {} l JOIN {} c ON c.{key} = l.{})",
        own.chain(theirs).chain(key_column).collect::<Vec<_>>().join(", "),
        link.quoted(),
        content.quoted(),
        link.ident(of)
    ));
    for (column, source) in content.columns.iter().zip(&content.source.columns) {
        let name = renamed[&*column.name].clone();
        table.source.columns.push(SourceColumn { name: name.clone(), ..source.clone() });
        table.columns.push(Column { name, ..column.clone() });
    }
    if link.key.len() > 1 {
        table.key = vec![table.columns.len()];
        let (name, type_name) = (KEY.to_owned(), "bytea".to_owned());
        let sent = SourceColumn { number: 0, name: name.clone(), type_name, wire: Wire::Binary, widened: None };
        table.source.columns.push(sent);
        let live = LiveColumn { type_name: "bytea".to_owned(), generated: true, identity: false, default: None };
        let (type_name, live) = ("bytea".to_owned(), Some(live));
        table.columns.push(Column { name, type_name, text: false, live, limit: None, obstacle: None });
    }
    table.live.extend(content.live.iter().map(|(name, kind)| (renamed[&**name].clone(), kind.clone())));
    table.live.sort();
    Ok(table)
}

/// Narrow columns of the contents of a snapshot.
#[derive(Default)]
pub struct Contents {
    /// Positions in the content's own table.
    columns: Vec<usize>,
    /// Those columns, by key.
    rows: HashMap<Vec<u8>, Row>,
}

impl Contents {
    /// A narrow column of the content that has this key: `at` as in the joined table.
    pub fn field(&self, content: &Shared, key: &[u8], at: usize) -> Option<&Value> {
        let place = self.columns.iter().position(|column| content.first + column == at)?;
        Some(&self.rows.get(key)?[place])
    }
}

impl Message {
    /// What parts refer to, in the joined table: the content's key, or the message's own.
    pub(super) fn mail_key(&self) -> Result<usize, CompareError> {
        self.content.as_ref().map_or_else(|| self.link.single_key(), |content| Ok(content.of))
    }

    /// What [`Self::scan`] needs to be read before.
    pub async fn contents(&self, source: &dyn Source) -> Result<Contents, CompareError> {
        let Some(content) = &self.content else { return Ok(Contents::default()) };
        let key = content.table.single_key()?;
        let wanted = self.evidence.iter().chain(&self.size).chain(&self.message_id).copied();
        let wanted = wanted.chain(self.clocks.iter().map(|clock| clock.column));
        let columns: BTreeSet<usize> = wanted.filter_map(|at| at.checked_sub(content.first)).collect();
        let columns: Vec<usize> = columns.into_iter().filter(|at| *at < content.table.columns.len()).collect();
        let mut rows = HashMap::new();
        source
            .scan(&content.table.source, Pick::All, &mut |cells| {
                if let Some(key) = cells[key].bytes() {
                    rows.insert(key.to_vec(), columns.iter().map(|at| cells[*at].keep()).collect());
                }
                Ok(())
            })
            .await?;
        Ok(Contents { columns, rows })
    }

    /// The messages of a snapshot. Where a content has a table of its own, only its narrow columns are given: see [`Self::complete`].
    pub async fn scan(
        &self,
        source: &dyn Source,
        contents: &Contents,
        pick: Pick<'_>,
        sink: &mut RowSink<'_>,
    ) -> Result<(), CompareError> {
        let Some(content) = &self.content else { return source.scan(&self.link.source, pick, sink).await };
        source
            .scan(&self.link.source, pick, &mut |cells| {
                let found = cells[content.of].bytes().and_then(|key| contents.rows.get(key));
                let Some(found) = found else { return Ok(()) };
                let fields = self.link.key.iter().map(|at| cells[*at].bytes());
                let key = (self.link.key.len() > 1).then(|| key_of(fields).unwrap_or_default());
                let mut joined = cells.to_vec();
                joined.resize(content.first + content.table.columns.len(), Cell::Null);
                for (at, value) in contents.columns.iter().zip(found) {
                    joined[content.first + at] = value.cell();
                }
                joined.extend(key.as_deref().map(Cell::Bytes));
                sink(&joined)
            })
            .await
    }

    /// The key of a live row as text, for the journal and for [`Self::one_of`].
    pub fn key_text(&self, alias: &str) -> String {
        match self.link.key[..] {
            [key] => format!("{alias}.{}::text", self.link.ident(key)),
            _ => format!("encode({alias}.{}, 'hex')", sql::identifier(KEY)),
        }
    }

    /// A condition over a live row or a link: it has one of these keys. An index over the key serves it.
    pub fn one_of(&self, alias: &str, keys: &[&str]) -> Result<String, CompareError> {
        self.keys_in(&self.link, &self.link.key, alias, keys)
    }

    /// The same over a row whose `columns` refer to a link.
    pub fn keys_in(
        &self,
        table: &Table,
        columns: &[usize],
        alias: &str,
        keys: &[&str],
    ) -> Result<String, CompareError> {
        let idents: Vec<String> = columns.iter().map(|at| format!("{alias}.{}", table.ident(*at))).collect();
        let mut values = Vec::with_capacity(keys.len());
        for key in keys {
            if let [_] = self.link.key[..] {
                values.push(sql::literal(key));
                continue;
            }
            let mut rest = &*data_encoding::HEXLOWER.decode(key.as_bytes()).unwrap_or_default();
            let mut fields = Vec::new();
            for at in &self.link.key {
                let (_, length) = sent(&self.link, *at)?;
                let Some((field, left)) = rest.split_at_checked(length) else { break };
                rest = left;
                fields.push(match zone::integer(field, false).filter(|_| length < 16) {
                    Some(number) => number.to_string(),
                    None => format!("'{}'::uuid", data_encoding::HEXLOWER.encode(field)),
                });
            }
            if fields.len() == idents.len() {
                values.push(format!("({})", fields.join(", ")));
            }
        }
        Ok(match &values[..] {
            [] => "false".to_owned(),
            values => format!("({}) IN ({})", idents.join(", "), values.join(", ")),
        })
    }

    /// Fills in all columns of the contents behind these rows.
    pub async fn complete<'a>(
        &self,
        source: &dyn Source,
        rows: impl Iterator<Item = &'a mut Row>,
    ) -> Result<(), CompareError> {
        let Some(content) = &self.content else { return Ok(()) };
        let mut wanted: HashMap<Vec<u8>, Vec<&mut Row>> = HashMap::new();
        for row in rows {
            let key = row[content.of].bytes().unwrap_or_default().to_vec();
            wanted.entry(key).or_default().push(row);
        }
        let keys: HashSet<Vec<u8>> = wanted.keys().cloned().collect();
        if keys.is_empty() {
            return Ok(());
        }
        let key = content.table.single_key()?;
        source
            .scan(&content.table.source, Pick::Keys { column: key, keys: &keys }, &mut |cells| {
                for row in cells[key].bytes().and_then(|key| wanted.get_mut(key)).into_iter().flatten() {
                    for (at, cell) in cells.iter().enumerate() {
                        row[content.first + at] = cell.keep();
                    }
                }
                Ok(())
            })
            .await
    }
}
