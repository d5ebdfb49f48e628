//! Where messages of the snapshot that others refer to are now: answers name the mail that they answer, and threads the one that began them.
//!
//! A key of the snapshot is never believed. A message is alive under its own key when it was paired, or under that of an equal mail that
//! stands for it; where an earlier replay put it back the journal says, when it is needed. Memory: the messages that lost ones refer to.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;

use super::classify::{Leftover, LiveMessage, identity, row_print};
use super::content::PartRows;
use super::error::CompareError;
use super::layout::{Layout, Refers};
use super::pairing::Pairs;
use super::parents::{Parents, inline};
use super::predicate::{Array, ask};
use super::row::{Print, Row};
use super::source::{Pick, Source};
use crate::postgres::PostgresError;
use crate::postgres::session::Session;

/// A live message that stands for one of the snapshot.
#[derive(Debug, Clone)]
pub struct Home {
    /// Its key, as text.
    pub key: String,
    /// Of its key and evidence: by then another may have the key.
    pub print: Print,
}

impl Home {
    pub(super) fn of(live: &LiveMessage) -> Self {
        Self { key: live.key_text.clone(), print: live.print }
    }
}

/// By the keys that the messages have in the snapshot.
#[derive(Debug, Default)]
pub struct Referred {
    /// What is referred to at all: its key as text.
    pub keys: HashMap<Vec<u8>, String>,
    /// What is alive.
    pub homes: HashMap<Vec<u8>, Home>,
}

#[derive(Clone, Copy)]
pub(super) struct Asked<'a> {
    pub layout: &'a Layout,
    pub parents: &'a Parents,
    pub pairs: &'a Pairs,
}

impl Referred {
    pub(super) async fn read(
        session: &Session,
        source: &dyn Source,
        Asked { layout, parents, pairs }: Asked<'_>,
        leftovers: &[Leftover],
        dictionaries: &PartRows,
        hanging: &[Vec<HashMap<Vec<u8>, Vec<Row>>>],
    ) -> Result<Self, CompareError> {
        let mut wanted: HashSet<Vec<u8>> = HashSet::new();
        let mut add = |refers: &[(usize, Refers)], row: &Row| {
            let columns = refers.iter().filter(|(_, refers)| *refers == Refers::Message);
            wanted.extend(columns.filter_map(|(column, _)| Some(row[*column].bytes()?.to_vec())));
        };
        for leftover in leftovers {
            add(&layout.message.refers, &leftover.row);
            for (part, rows) in layout.parts.iter().zip(&leftover.via) {
                rows.iter().for_each(|row| add(&part.via.refers, row));
            }
            for (child, rows) in layout.children.iter().zip(&leftover.children) {
                rows.iter().for_each(|row| add(&child.refers, row));
            }
        }
        for ((dictionary, rows), hanging) in layout.dictionaries.iter().zip(dictionaries).zip(hanging) {
            rows.values().for_each(|row| add(&dictionary.refers, row));
            for (child, rows) in dictionary.children.iter().zip(hanging) {
                rows.values().flatten().for_each(|row| add(&child.refers, row));
            }
        }
        if wanted.is_empty() {
            return Ok(Self::default());
        }
        let keys = texts(session, layout, wanted.iter().cloned().collect()).await?;
        let mut homes = HashMap::new();
        for leftover in leftovers {
            if let (true, Some(home)) = (wanted.remove(&leftover.key[..]), &leftover.home) {
                homes.insert(leftover.key.to_vec(), home.clone());
            }
        }
        // What is not left over is there: it was paired, or its segment was counted.
        let message = &layout.message;
        let key = message.table.single_key()?;
        source
            .scan(&message.table.source, Pick::Keys { column: key, keys: &wanted }, &mut |cells| {
                let Some(own) = inline(cells, key) else { return Ok(()) };
                let before = inline(cells, message.mailbox);
                let target = before.and_then(|key| parents.target(parents.mailbox(key)?)).map(|live| &live.key[..]);
                let evidence = || message.evidence.iter().map(|at| inline(cells, *at));
                if let (true, Some(text)) =
                    (pairs.is_paired(&identity(Some(own), target.or(before), evidence())), keys.get(own))
                {
                    homes.insert(own.to_vec(), Home { key: text.clone(), print: row_print(Some(own), evidence()) });
                }
                Ok(())
            })
            .await?;
        Ok(Self { keys, homes })
    }
}

/// Keys of messages as text, which the server alone knows of every type.
async fn texts(
    session: &Session,
    layout: &Layout,
    keys: Vec<Vec<u8>>,
) -> Result<HashMap<Vec<u8>, String>, CompareError> {
    let table = &layout.message.table;
    let column = &table.columns[table.single_key()?];
    let sent = if column.text { "text" } else { &column.type_name };
    let select = format!("SELECT k::text FROM unnest($1::{sent}[]) WITH ORDINALITY q (k, n) ORDER BY n");
    let array = Array(keys.iter().map(|key| Some(Bytes::copy_from_slice(key))).collect());
    let doing = "asking what lost mail refers to";
    let rows = ask(session, doing, &select, &[&array]).await?;
    let text = |row: tokio_postgres::Row| row.try_get(0).map_err(PostgresError::server(doing));
    keys.into_iter().zip(rows).map(|(key, row)| Ok((key, text(row)?))).collect()
}
