//! Living messages of which single columns differ from the snapshot: what a wrong UPDATE did, and is to be taken back.
//!
//! A message is the same by its key and its evidence. A store that counts changes raises the MODSEQ of a message whose flags its user
//! changed; a statement that somebody ran by hand does not. So only messages with the snapshot's MODSEQ are taken for untouched; a store
//! without MODSEQ cannot tell. Memory: about 60 bytes a live message, and the rows that differ.

use std::collections::HashMap;

use bytes::Bytes;

use super::classify::row_print;
use super::error::CompareError;
use super::layout::Layout;
use super::live;
use super::parents::{inline, shown};
use super::row::{Cell, Print, Printer, Row, Value};
use super::source::{Pick, Source};
use crate::postgres::session::Session;
use crate::postgres::sql;
use crate::profile::Profile;

/// Messages in one question for long values.
const LONG: usize = 50;

#[derive(Debug, Default)]
pub struct Differing {
    /// Positions in the messages' table.
    pub columns: Vec<usize>,
    /// As the snapshot has them; of other columns than these, key, evidence and MODSEQ nothing is kept.
    pub rows: Vec<Row>,
    /// Differ too, and were touched since the snapshot.
    pub touched: u64,
}

/// The columns that are named `TABLE.COLUMN`, if their values may be put back.
pub fn columns(layout: &Layout, profile: &Profile, names: &[String]) -> Result<Vec<usize>, CompareError> {
    let message = &layout.message;
    let table = &message.table;
    let refused = |name: &str, reason| CompareError::NotRepaired { column: name.to_owned(), reason };
    let mut found = Vec::new();
    for name in names {
        let Some((of, column)) = name.rsplit_once('.') else {
            return Err(refused(name, "write it as TABLE.COLUMN"));
        };
        if profile.qualify(of) != table.label() {
            return Err(refused(name, "only columns of the table of messages are put back"));
        }
        let Some(at) = table.columns.iter().position(|one| one.name == column) else {
            let column = column.to_owned();
            return Err(CompareError::NoColumn { table: table.label(), column, place: "snapshot" });
        };
        let derived = profile.derived.iter().filter(|one| profile.qualify(&one.table) == table.label());
        let derived = derived.filter_map(|one| one.column.as_deref()).any(|derived| derived == column);
        let marks = layout.buried.iter().flat_map(|buried| &buried.columns).any(|mark| *mark == at);
        let reason = match &table.columns[at].live {
            None => "the live store has it no longer",
            Some(live) if live.generated => "the server computes it",
            Some(_) if table.key.contains(&at) || message.evidence.contains(&at) => {
                "it is the key, or proves which message is which"
            }
            Some(_) if message.mailbox == at => "it says in which mailbox the message lies",
            Some(_) if message.uid == Some(at) || message.modseq == Some(at) => {
                "numbers are issued anew, never put back"
            }
            Some(_) if message.refers.iter().any(|(column, _)| *column == at) => {
                "it refers to rows whose keys may have been issued again"
            }
            Some(_) if derived => "the store derives it from other rows",
            Some(_) if marks => "it says what users deleted",
            Some(_) if message.evidence.is_empty() => "nothing proves which message is which",
            Some(_) => {
                found.push(at);
                continue;
            }
        };
        return Err(refused(name, reason));
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// Looks for living messages whose columns differ. Writes nothing.
pub async fn differing(
    session: &Session,
    source: &dyn Source,
    layout: &Layout,
    columns: Vec<usize>,
) -> Result<Differing, CompareError> {
    if layout.message.content.is_some() {
        return Err(CompareError::NotYet { what: "columns of mail that several links share are not put back" });
    }
    let message = &layout.message;
    let key = message.table.single_key()?;
    let mut known = vec![key];
    known.extend(&message.evidence);
    let identity = known.len();
    known.extend(message.modseq);
    let narrow = known.len();
    known.extend(&columns);
    let mut alive: HashMap<Print, (Print, Option<Bytes>)> = HashMap::new();
    let from = format!("FROM {} m WHERE {}", message.table.quoted(), layout.shown());
    let select = format!("SELECT {} {from}", message.table.select(&known, "m"));
    live::copy(session, "reading the columns of live messages", &select, known.len(), &mut |row| {
        let values = Printer::default().all(row[narrow..].iter().copied()).finish();
        let modseq = row[identity..narrow].iter().copied().flatten().next().map(Bytes::copy_from_slice);
        alive.insert(row_print(row[0], row[1..identity].iter().copied()), (values, modseq));
        Ok(())
    })
    .await?;

    let mut found = Differing { columns, ..Default::default() };
    let mut long: Vec<(Row, bool)> = Vec::new();
    source
        .scan(&message.table.source, Pick::All, &mut |cells| {
            let print = row_print(inline(cells, key), message.evidence.iter().map(|at| inline(cells, *at)));
            let Some((values, modseq)) = alive.get(&print) else { return Ok(()) };
            let untouched = message.modseq.is_none_or(|at| inline(cells, at) == modseq.as_deref());
            let keep = || {
                let mut row: Row = vec![Value::Null; cells.len()];
                known.iter().for_each(|at| row[*at] = cells[*at].keep());
                row
            };
            if found.columns.iter().any(|at| matches!(cells[*at], Cell::Large(_))) {
                long.push((keep(), untouched));
            } else if Printer::default().all(found.columns.iter().map(|at| inline(cells, *at))).finish() != *values {
                found.differs(keep(), untouched);
            }
            Ok(())
        })
        .await?;

    // Values that lie in the payload are compared by their hash, so the live ones are asked for.
    for rows in long.chunks(LONG) {
        let text = |row: &Row| sql::literal(&shown(&message.table, key, row[key].bytes()));
        let keys: Vec<String> = rows.iter().map(|(row, _)| text(row)).collect();
        let select = format!(
            "SELECT {} {from} AND m.{} IN ({})",
            message.table.select(&known, "m"),
            message.table.ident(key),
            keys.join(", ")
        );
        let mut values: HashMap<Bytes, Vec<Option<Bytes>>> = HashMap::new();
        live::copy(session, "reading long values of live messages", &select, known.len(), &mut |row| {
            let fields = row[narrow..].iter().map(|field| field.map(Bytes::copy_from_slice));
            values.insert(Bytes::copy_from_slice(row[0].unwrap_or_default()), fields.collect());
            Ok(())
        })
        .await?;
        for (row, untouched) in rows {
            let Some(values) = row[key].bytes().and_then(|key| values.get(key)) else { continue };
            let mut same = true;
            for (at, now) in found.columns.iter().zip(values) {
                same &= match (&row[*at], now) {
                    (Value::Large(large), Some(now)) => source.is(*large, now).await?,
                    (value, now) => value.bytes() == now.as_deref() && !matches!(value, Value::Large(_)),
                };
            }
            if !same {
                found.differs(row.clone(), *untouched);
            }
        }
    }
    Ok(found)
}

impl Differing {
    fn differs(&mut self, row: Row, untouched: bool) {
        if untouched { self.rows.push(row) } else { self.touched += 1 }
    }
}
