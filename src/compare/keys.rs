//! Keys that became others since the snapshot was taken: numbers that are UUIDs now.
//!
//! The profile says by SQL over the old key what the new one is, and the live server computes it, 10,000 keys at a time, before anything is
//! compared. From then on the rows of the snapshot are read as if they had the new keys, and so is what refers to them. Memory: 40 bytes
//! for each key that becomes a UUID.

use std::collections::{HashMap, HashSet};
use std::sync::OnceLock;

use bytes::Bytes;

use super::classify::{Leftover, LiveMessage, row_print, source_print};
use super::error::CompareError;
use super::layout::Layout;
use super::predicate::{Array, Field, ask};
use super::row::Print;
use super::source::{Facts, Pick, Source, SourceTable, Widened};
use crate::postgres::session::Session;
use crate::postgres::sql;
use crate::repository::zone;

/// Keys in one question.
const KEYS: usize = 10_000;

/// What the profile's SQL calls a row of the snapshot.
const ROW: &str = "snapshot";

/// The keys of a table whose type is another one now.
#[derive(Debug, PartialEq, Eq)]
pub struct Keys {
    /// As it was.
    table: SourceTable,
    column: usize,
    /// SQL over the old key.
    sql: String,
    /// The type of the new keys, and whether they are read as text.
    pub kind: String,
    pub text: bool,
    made: OnceLock<Made>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Made {
    /// Ascending.
    old: Vec<i64>,
    /// The new keys one behind the other, and where each ends.
    new: Vec<u8>,
    ends: Vec<usize>,
    /// The places in the order of the new keys.
    order: Vec<usize>,
}

impl Made {
    fn key(&self, at: usize) -> &[u8] {
        let begins = at.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.new[begins..self.ends[at]]
    }

    fn before(&self, new: &[u8]) -> Option<i64> {
        let at = self.order.binary_search_by(|at| self.key(*at).cmp(new)).ok()?;
        Some(self.old[self.order[at]])
    }
}

impl Keys {
    pub fn new(table: SourceTable, column: usize, sql: &str, kind: &str, text: bool) -> Self {
        Self { table, column, sql: sql.to_owned(), kind: kind.to_owned(), text, made: OnceLock::new() }
    }

    /// `table.column`, as it was.
    pub fn label(&self) -> String {
        format!("{}.{}", self.table.name, self.table.columns[self.column].name)
    }

    /// The new key of an old one; `None`: no row of the snapshot has it. Until they are computed all are given as they were.
    pub fn now<'a>(&'a self, field: &'a [u8]) -> Option<&'a [u8]> {
        let Some(made) = self.made.get() else { return Some(field) };
        let at = made.old.binary_search(&zone::integer(field, false)?).ok()?;
        Some(made.key(at))
    }

    /// The old ones of new keys.
    pub fn before(&self, now: &HashSet<Vec<u8>>) -> Vec<i64> {
        let before = |key: &Vec<u8>| match self.made.get() {
            None => zone::integer(key, false),
            Some(made) => made.before(key),
        };
        now.iter().filter_map(before).collect()
    }

    /// What would stand for a new key if nobody knew it.
    pub fn forgotten(&self, now: &[u8]) -> Option<Vec<u8>> {
        self.unknown(self.made.get()?.before(now)?).ok()
    }

    fn refused(&self, reason: String) -> CompareError {
        let column = self.table.columns[self.column].name.clone();
        let reason = format!("its new keys, {:?} under keys, {reason}", self.sql);
        CompareError::Changed { table: self.table.name.to_string(), column, reason }
    }

    async fn make(&self, session: &Session, source: &dyn Source) -> Result<Made, CompareError> {
        let mut made = Made::default();
        source
            .scan_stored(&self.table, Pick::All, &mut |cells| {
                made.old.extend(cells[self.column].bytes().and_then(|field| zone::integer(field, false)));
                Ok(())
            })
            .await?;
        made.old.sort_unstable();
        made.old.dedup();
        made.ends.reserve_exact(made.old.len());
        for (number, old) in made.old.chunks(KEYS).enumerate() {
            let new = self.ask(session, old).await?;
            if number == 0 && self.ask(session, old).await? != new {
                return Err(self.refused("are others each time that they are computed".to_owned()));
            }
            for (old, new) in old.iter().zip(new) {
                match new {
                    Some(new) => made.new.extend(&new),
                    None => made.new.extend(self.unknown(*old)?),
                }
                made.ends.push(made.new.len());
            }
        }
        let mut order: Vec<usize> = (0..made.old.len()).collect();
        order.sort_unstable_by(|one, other| made.key(*one).cmp(made.key(*other)));
        made.order = order;
        match made.order.windows(2).filter(|two| made.key(two[0]) == made.key(two[1])).count() {
            0 => Ok(made),
            same => Err(self.refused(format!("are the same for {same} rows and others"))),
        }
    }

    async fn ask(&self, session: &Session, old: &[i64]) -> Result<Vec<Option<Bytes>>, CompareError> {
        let column = &self.table.columns[self.column];
        let (was, width) = (&column.type_name, width(&column.type_name));
        let sent = if self.text { "::text" } else { "" };
        let select = format!(
            "SELECT (SELECT {})::{}{sent} FROM (SELECT restante_n, restante_key AS {} FROM unnest($1::{was}[]) \
             WITH ORDINALITY u(restante_key, restante_n)) {ROW} ORDER BY restante_n",
            self.sql,
            self.kind,
            sql::identifier(&column.name)
        );
        let field = |number: &i64| Some(Bytes::copy_from_slice(&number.to_be_bytes()[8 - width..]));
        let array = Array(old.iter().map(field).collect());
        let answer = ask(session, "computing new keys", &select, &[&array]).await;
        let answer = answer.map_err(|error| match &error {
            // What is no fault of the SQL ends the session.
            CompareError::Postgres(server) if server.sqlstate().is_some_and(|code| !code.starts_with("57")) => {
                self.refused(format!("cannot be computed ({server})"))
            }
            _ => error,
        })?;
        if answer.len() != old.len() {
            return Err(self.refused("are not one for each".to_owned()));
        }
        Ok(answer.iter().map(|row| row.get::<_, Option<Field>>(0).map(|field| field.0)).collect())
    }

    /// What stands for the new key of a row that nobody knows any more. No other row has it, and it is the same in each comparison.
    fn unknown(&self, old: i64) -> Result<Vec<u8>, CompareError> {
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&blake3::hash(format!("a key that was {old}").as_bytes()).as_bytes()[..16]);
        // A UUID of version 8.
        bytes[6] = bytes[6] & 0x0f | 0x80;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        match &*self.kind {
            "uuid" => Ok(bytes.to_vec()),
            kind if kind == "text" || kind.starts_with("character") => {
                Ok(data_encoding::HEXLOWER.encode(&bytes).into_bytes())
            }
            kind => {
                Err(self.refused(format!("are NULL for some, and no {kind} can stand for a key that nobody knows")))
            }
        }
    }
}

/// Bytes of an integer.
pub(super) fn width(kind: &str) -> usize {
    match kind {
        "smallint" => 2,
        "integer" => 4,
        _ => 8,
    }
}

/// Has the new keys computed, in the transaction of the comparison. Their SQL may name tables of the store without its schema.
pub(super) async fn read(session: &Session, source: &dyn Source, layout: &Layout) -> Result<(), CompareError> {
    if layout.keys.is_empty() {
        return Ok(());
    }
    session.execute("computing new keys", &format!("SET LOCAL {}", layout.search_path())).await?;
    for keys in &layout.keys {
        let made = keys.make(session, source).await?;
        keys.made.get_or_init(|| made);
    }
    Ok(session.execute("computing new keys", "SET LOCAL search_path = ''").await?)
}

/// A new key that another mail has was never this one's: where old keys are kept, theirs may be issued again. The journal must know a mail by
/// the same name before and after that.
pub(super) fn name_anew(layout: &Layout, facts: &Facts, leftovers: &mut [Leftover], live: &[LiveMessage]) {
    let message = &layout.message;
    let [key] = message.link.key[..] else { return };
    let Some(Widened::Keys(keys)) = &message.link.source.columns[key].widened else { return };
    let others: HashMap<&[u8], &Print> = live.iter().map(|live| (&live.key[..], &live.print)).collect();
    for Leftover { row, key, source, .. } in leftovers {
        let evidence = message.evidence.iter().map(|at| row[*at].bytes());
        let is_own = |print: &&Print| **print == row_print(Some(key), evidence.clone());
        if others.get(&key[..]).is_some_and(|print| !is_own(print))
            && let Some(key) = keys.forgotten(key)
        {
            *source = source_print(facts, &message.table, Some(&key), evidence);
        }
    }
}
