//! Tables that changed since the snapshot was taken: that may have been the incident.
//!
//! Columns are matched by name, and as the profile says under `[changed]`. Where a column is wider now, the snapshot's rows are read as if they
//! had the wider type, so that keys beyond the old one compare; where keys became others, they are read with these ([`Keys`]). Any other change
//! of type is left to PostgreSQL's casts, and where these would lose meaning a restore is refused before anything is written.

use std::sync::Arc;

use super::super::source::{SourceColumn, SourceTable, Widened};
use super::lay::Lay;
use super::{Column, Layout, Limit, LiveColumn, Refers, Table};
use crate::compare::error::CompareError;
use crate::compare::keys::Keys;
use crate::postgres::catalog::{self, TableName};
use crate::profile::Changed;
use crate::repository::manifest::Wire;
use jiff::tz::TimeZone;

/// What a type became.
#[derive(Debug, PartialEq, Eq)]
enum Became {
    /// The same, or one whose values are the same.
    Same,
    Wider(Widened),
    Narrower(Limit),
    Led(Arc<Keys>),
    Other(String),
}

impl Lay<'_> {
    fn changed(&self, name: &TableName) -> Option<&Changed> {
        self.profile.changed.iter().find(|(old, _)| self.name(old) == *name).map(|(_, changed)| changed)
    }

    /// The snapshot's table, whose name may be another one now.
    pub(super) fn before(&self, now: &TableName) -> Option<SourceTable> {
        let mut old = self.profile.changed.keys().filter(|old| self.name(old) == *now);
        let old = old.next().map(|old| super::lay::table_name(&self.profile.qualify_as_written(old)));
        let found = old.and_then(|old| self.facts.table(&old)).or_else(|| self.facts.table(now));
        found.cloned().map(|mut table| {
            table.name = now.clone();
            table
        })
    }

    /// The name of a column now.
    pub(super) fn now<'a>(&'a self, table: &TableName, column: &'a str) -> &'a str {
        self.changed(table).and_then(|changed| changed.columns.get(column)).map_or(column, |now| now)
    }

    /// New columns, and the SQL over the snapshot's row that they get.
    pub(super) fn added(&self, table: &TableName) -> Vec<(String, String)> {
        let values = self.changed(table).into_iter().flat_map(|changed| &changed.values);
        values.map(|(column, sql)| (column.clone(), sql.clone())).collect()
    }

    /// The columns of the snapshot, as they are now; the rows will be read so.
    pub(super) fn columns_now(
        &self,
        source: &mut SourceTable,
        live: &catalog::Table,
        default: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Vec<Column>, CompareError> {
        let table = source.name.clone();
        let mut columns = Vec::with_capacity(source.columns.len());
        for column in &mut source.columns {
            let name = self.now(&table, &column.name).to_owned();
            let mut laid = Column {
                type_name: column.type_name.clone(),
                text: column.wire == Wire::Text,
                live: None,
                limit: None,
                obstacle: None,
                name,
            };
            if let Some(now) = live.live_columns().find(|live| live.name == laid.name) {
                match self.became(&table, column, &now.name, &now.type_name)? {
                    Became::Same => {}
                    Became::Wider(widened) => {
                        column.widened = Some(widened);
                        laid.type_name = now.type_name.clone();
                    }
                    Became::Narrower(limit) => laid.limit = Some(limit),
                    Became::Led(keys) => {
                        (laid.type_name, laid.text) = (keys.kind.clone(), keys.text);
                        column.widened = Some(Widened::Keys(keys));
                    }
                    Became::Other(why) => laid.obstacle = Some(why),
                }
                laid.live = laid.obstacle.is_none().then(|| LiveColumn {
                    type_name: now.type_name.clone(),
                    generated: now.generated.is_some(),
                    identity: now.identity.is_some(),
                    default: default(&laid.name),
                });
            }
            columns.push(laid);
        }
        Ok(columns)
    }

    /// Why rows cannot be put into a table as it is now: what is new must be filled, and what has another type must have a meaning.
    pub(super) fn obstacles(&self, columns: &[Column], live: &catalog::Table) -> Vec<(String, String)> {
        let given = |name: &str| self.changed(&live.name).is_some_and(|changed| changed.values.contains_key(name));
        let types = columns.iter().filter(|column| !given(&column.name));
        let types = types.filter_map(|column| Some((column.name.clone(), column.obstacle.clone()?)));
        let needed = live.stored_columns().filter(|column| {
            column.not_null && !column.has_default && column.identity.is_none() && !given(&column.name)
        });
        let new = needed.filter(|column| !columns.iter().any(|known| known.name == column.name));
        let why = "it is new, must not be NULL and has no default: give it a value";
        types.chain(new.map(|column| (column.name.clone(), why.to_owned()))).collect()
    }

    fn became(&self, table: &TableName, column: &SourceColumn, name: &str, now: &str) -> Result<Became, CompareError> {
        let was = &*column.type_name;
        if let Some(keys) = self.led(table, name) {
            return Ok(match integer(was) {
                _ if !is_like(now, &keys.kind) => Became::Other(refers(keys, now)),
                None => Became::Other(no_integer(was)),
                Some(_) => Became::Led(keys.clone()),
            });
        }
        if was == now {
            return Ok(Became::Same);
        }
        if (&*base(was), &*base(now)) == ("timestamp without time zone", "timestamp with time zone") {
            let Some(zone) = self.changed(table).and_then(|changed| changed.zones.get(&column.name)) else {
                let why = "it has a time zone now: say under zones in which one it was meant";
                return Ok(Became::Other(why.to_owned()));
            };
            let zone = TimeZone::get(zone).map_err(|_| CompareError::UnknownZone { zone: zone.clone() })?;
            return Ok(Became::Wider(Widened::Zone(zone)));
        }
        Ok(became(was, now))
    }
}

/// Are the values of one type those of the other?
pub(super) fn is_like(kind: &str, other: &str) -> bool {
    base(kind) == base(other) || text(kind).is_some() && text(other).is_some()
}

pub(super) fn no_integer(was: &str) -> String {
    format!("it was {was}, and what became of keys can be said of integers alone")
}

/// Why nothing can refer to keys as values of this type.
pub(super) fn refers(keys: &Keys, now: &str) -> String {
    format!("it refers to {}, which is {} now, and is {now}", keys.label(), keys.kind)
}

/// Keys are found by their bytes, so what refers to a key is read in its type, should that be wider.
pub(super) fn align(layout: &mut Layout) {
    let key = |table: &Table| table.key.first().map(|at| table.columns[*at].type_name.clone()).unwrap_or_default();
    let of_message = key(&layout.message.link);
    let of_mailbox = key(&layout.mailbox.table);
    let of_owner = layout.owner.as_ref().map(|owner| key(&owner.table)).unwrap_or_default();
    let of_values: Vec<String> = layout.dictionaries.iter().map(|one| key(&one.table)).collect();
    let to = |refers: &Refers| match refers {
        Refers::Owner => &of_owner,
        Refers::Mailbox => &of_mailbox,
        Refers::Dictionary(kind) => &of_values[*kind],
        Refers::Message => &of_message,
    };
    let message = &mut layout.message;
    for table in [&mut message.table, &mut message.link] {
        widen(table, message.mailbox, &of_mailbox);
        message.refers.iter().for_each(|(at, refers)| widen(table, *at, to(refers)));
        message.content.iter().for_each(|content| widen(table, content.of, &key(&content.table)));
    }
    if let Some(content) = &mut message.content {
        for (at, refers) in &content.refers {
            widen(&mut content.table, *at, to(refers));
            widen(&mut message.table, content.first + at, to(refers));
        }
    }
    if let Some(at) = layout.mailbox.owner {
        widen(&mut layout.mailbox.table, at, &of_owner);
    }
    for part in &mut layout.parts {
        let of_part = key(&part.table);
        widen(&mut part.via.table, part.part, &of_part);
    }
    for (dictionary, own) in layout.dictionaries.iter_mut().zip(&of_values) {
        dictionary.refers.iter().for_each(|(at, refers)| widen(&mut dictionary.table, *at, to(refers)));
        for child in &mut dictionary.children {
            child.of.iter().for_each(|at| widen(&mut child.table, *at, own));
            child.refers.iter().for_each(|(at, refers)| widen(&mut child.table, *at, to(refers)));
        }
    }
    let hanging = layout.owner.iter_mut().flat_map(|owner| &mut owner.children).map(|child| (child, &of_owner));
    let hanging = hanging.chain(layout.mailbox.children.iter_mut().map(|child| (child, &of_mailbox)));
    let of_messages = layout.parts.iter_mut().map(|part| &mut part.via).chain(&mut layout.children);
    let types: Vec<String> = message.table.columns.iter().map(|column| column.type_name.clone()).collect();
    let hanging = hanging.map(|(child, of)| (child, vec![of]));
    let of_messages = of_messages.map(|child| {
        let of = child.to.iter().map(|at| &types[*at]).collect();
        (child, of)
    });
    for (child, types) in hanging.chain(of_messages) {
        child.of.iter().zip(types).for_each(|(at, of)| widen(&mut child.table, *at, of));
        child.refers.iter().for_each(|(at, refers)| widen(&mut child.table, *at, to(refers)));
    }
}

fn widen(table: &mut Table, at: usize, kind: &str) {
    if let (Some(old), Some(new)) = (integer(&table.columns[at].type_name), integer(kind))
        && old < new
    {
        table.source.columns[at].widened = Some(Widened::Integer(new));
        table.columns[at].type_name = kind.to_owned();
    }
}

/// `timestamp(3) without time zone` without what is in brackets.
fn base(kind: &str) -> String {
    match (kind.find('('), kind.find(')')) {
        (Some(open), Some(close)) if open < close => format!("{}{}", &kind[..open], &kind[close + 1..]),
        _ => kind.to_owned(),
    }
}

pub(super) fn integer(kind: &str) -> Option<usize> {
    match kind {
        "smallint" => Some(2),
        "integer" => Some(4),
        "bigint" => Some(8),
        _ => None,
    }
}

/// Text, and how many characters it may have.
fn text(kind: &str) -> Option<Option<usize>> {
    match &*base(kind) {
        "text" => Some(None),
        "character varying" => Some(kind.split(['(', ')']).nth(1).and_then(|length| length.parse().ok())),
        _ => None,
    }
}

fn became(was: &str, now: &str) -> Became {
    if let (Some(old), Some(new)) = (integer(was), integer(now)) {
        return if old < new { Became::Wider(Widened::Integer(new)) } else { Became::Narrower(Limit::Bytes(new)) };
    }
    if let (Some(old), Some(new)) = (text(was), text(now)) {
        return match new {
            Some(length) if old.is_none_or(|old| old > length) => Became::Narrower(Limit::Characters(length)),
            _ => Became::Same,
        };
    }
    // Both ways PostgreSQL casts them without loss of what the old type can hold.
    let wider =
        [("real", "double precision"), ("json", "jsonb"), ("character", "text"), ("character", "character varying")];
    let to_numeric = integer(was).is_some() && now == "numeric";
    if to_numeric || now == base(was) || wider.contains(&(&*base(was), now)) {
        return Became::Same;
    }
    let hint =
        if integer(was).is_some() { ": if it is a key or refers to one, give the new key under keys" } else { "" };
    Became::Other(format!("it was {was} and is {now}, and nothing says what became of its values{hint}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_type_is_wider_narrower_or_another_one() {
        assert_eq!(became("integer", "bigint"), Became::Wider(Widened::Integer(8)));
        assert_eq!(became("bigint", "integer"), Became::Narrower(Limit::Bytes(4)));
        assert_eq!(became("character varying(10)", "text"), Became::Same);
        assert_eq!(became("character varying(10)", "character varying(20)"), Became::Same);
        assert_eq!(became("text", "character varying(20)"), Became::Narrower(Limit::Characters(20)));
        assert_eq!(became("numeric(8,2)", "numeric"), Became::Same);
        assert!(matches!(became("numeric", "numeric(8,2)"), Became::Other(_)));
        assert!(matches!(became("integer", "uuid"), Became::Other(_)));
        let numbers = [-32769_i64, -32768, 32767, 32768].map(|number| Limit::Bytes(2).holds(&number.to_be_bytes()));
        assert_eq!(numbers, [false, true, true, false]);
        assert!(Limit::Characters(2).holds("éé".as_bytes()) && !Limit::Characters(2).holds(b"abc"));
        assert_eq!(base("timestamp(3) without time zone"), "timestamp without time zone");
    }
}
