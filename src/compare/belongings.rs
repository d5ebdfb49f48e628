//! What belongs to messages: links to parts and other children of lost ones, and what living messages miss of theirs.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use tokio_postgres::types::ToSql;

use super::classify::{Leftover, row_print};
use super::content::PartRows;
use super::error::CompareError;
use super::layout::{Child, Dictionary, Layout, Refers, Table, key_of};
use super::live;
use super::parents::{fetch, inline};
use super::predicate::{Array, Field, ask, unnested};
use super::row::{Class, Print, Row};
use super::source::{Pick, Source, collect};
use super::window::{Outside, Window};
use crate::postgres::session::Session;
use crate::repository::zone;

/// What rows hang on: a message, or a content that messages share.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Holder {
    pub is_content: bool,
    pub key: Vec<u8>,
}

/// Rows of living messages that are gone.
#[derive(Debug, Default)]
pub struct Incomplete {
    /// By kind of part.
    pub via: Vec<Vec<Row>>,
    pub children: Vec<Vec<Row>>,
    /// Shared values that they refer to by what the values are, by dictionary; only those that the snapshot has.
    pub values: Vec<HashSet<Vec<u8>>>,
    /// The living messages, or contents of such, that miss something.
    pub messages: HashSet<Holder>,
}

/// Children of lost messages, and rows that living messages miss. `living`: contents that living messages link to.
pub(super) async fn belongings(
    session: &Session,
    source: &dyn Source,
    layout: &Layout,
    living: &HashSet<Vec<u8>>,
    window: &Window,
    leftovers: &mut [Leftover],
) -> Result<Incomplete, CompareError> {
    let mut incomplete = Incomplete {
        via: vec![Vec::new(); layout.parts.len()],
        children: vec![Vec::new(); layout.children.len()],
        values: vec![HashSet::new(); layout.dictionaries.len()],
        messages: HashSet::new(),
    };
    for (kind, child) in layout.belonging().enumerate() {
        let is_content = layout.is_shared(child);
        let mut lost: HashMap<Vec<u8>, Vec<usize>> = HashMap::new();
        for (at, leftover) in leftovers.iter().enumerate().filter(|(_, leftover)| leftover.class == Class::Absent) {
            let key = key_of(child.to.iter().map(|at| leftover.row[*at].bytes()));
            lost.entry(key.unwrap_or_default()).or_default().push(at);
        }
        let is_alive = |key: &[u8]| if is_content { living.contains(key) } else { !lost.contains_key(key) };
        // Rows are picked by one column; of several that is not all.
        let (first, to) = (child.of[0], child.to[0]);
        let absent = leftovers.iter().filter(|leftover| leftover.class == Class::Absent);
        let keys: HashSet<Vec<u8>> =
            absent.map(|leftover| leftover.row[to].bytes().unwrap_or_default().to_vec()).collect();
        // Those of living messages are looked at only where users do not change them; of a window's neighbours they are counted first.
        let counted = !child.mutable && window.is_bounded() && child.of.len() == 1;
        let (mut picked, mut outside) = if counted {
            Outside::of_children(first, &keys, &source.segments(&child.table.source).await?)
        } else {
            Default::default()
        };
        let number = |key: &[u8]| zone::integer(key, false);
        let mut there: HashSet<Print> = HashSet::new();
        if !child.mutable {
            let columns = child.by();
            let select = format!("SELECT {} FROM {} c", child.table.select(&columns, "c"), child.table.quoted());
            live::copy(session, "reading what belongs to live messages", &select, columns.len(), &mut |row| {
                let (of, natural) = row.split_at(child.of.len());
                let Some(message) = key_of(of.iter().copied()) else { return Ok(()) };
                there.insert(row_print(Some(&message), natural.iter().copied()));
                outside.live(number(&message), None);
                Ok(())
            })
            .await?;
        }
        for _ in 0..2 {
            let pick = if child.mutable {
                Pick::Keys { column: first, keys: &keys }
            } else if counted {
                Pick::Segments(&picked)
            } else {
                Pick::All
            };
            source
                .scan(&child.table.source, pick, &mut |cells| {
                    let keep = || cells.iter().map(|cell| cell.keep()).collect::<Row>();
                    let Some(message) = child.holder(|at| inline(cells, at)) else { return Ok(()) };
                    for at in lost.get(&message).into_iter().flatten() {
                        let leftover = &mut leftovers[*at];
                        rows_of(&mut leftover.via, &mut leftover.children, kind).push(keep());
                    }
                    let print = row_print(Some(&message), child.natural.iter().map(|at| inline(cells, *at)));
                    if there.contains(&print) {
                        outside.paired(number(&message), None);
                    } else if !child.mutable && is_alive(&message) {
                        rows_of(&mut incomplete.via, &mut incomplete.children, kind).push(keep());
                    }
                    Ok(())
                })
                .await?;
            if !counted {
                break;
            }
            picked = outside.unsettled();
        }
        let missed = rows_of(&mut incomplete.via, &mut incomplete.children, kind);
        under_new_keys(session, source, layout, child, &there, missed).await?;
        let holders = missed.iter().filter_map(|row| child.holder(|at| row[at].bytes()));
        incomplete.messages.extend(holders.map(|key| Holder { is_content, key }));
    }
    Ok(incomplete)
}

/// Takes out rows that are `there` with shared values that have other keys by now.
async fn under_new_keys(
    session: &Session,
    source: &dyn Source,
    layout: &Layout,
    child: &Child,
    there: &HashSet<Print>,
    rows: &mut Vec<Row>,
) -> Result<(), CompareError> {
    let mut now = HashMap::new();
    for column in &child.natural {
        let Some(kind) = child.dictionary(*column) else { continue };
        let keys = rows.iter().filter_map(|row| Some(row[*column].bytes()?.to_vec())).collect();
        now.insert(*column, keys_now(session, source, &layout.dictionaries[kind], &keys).await?);
    }
    if now.values().any(|keys| !keys.is_empty()) {
        rows.retain(|row| {
            let field = |at: &usize| {
                let before = row[*at].bytes()?;
                Some(now.get(at).and_then(|keys| keys.get(before)).map_or(before, |key| &key[..]))
            };
            let holder = child.holder(|at| row[at].bytes());
            !there.contains(&row_print(holder.as_deref(), child.natural.iter().map(field)))
        });
    }
    Ok(())
}

/// The live keys of shared values of the snapshot, by their keys there. Values that refer to others are left out.
async fn keys_now(
    session: &Session,
    source: &dyn Source,
    dictionary: &Dictionary,
    keys: &HashSet<Vec<u8>>,
) -> Result<HashMap<Vec<u8>, Bytes>, CompareError> {
    let table = &dictionary.table;
    if keys.is_empty() || dictionary.natural == table.key || !dictionary.refers.is_empty() {
        return Ok(HashMap::new());
    }
    let mut rows = rows_with(source, table, keys).await?;
    for row in rows.values_mut() {
        fetch(source, row).await?;
    }
    let rows: Vec<(Vec<u8>, Row)> = rows.into_iter().collect();
    let (from, fields) = unnested(table, &dictionary.natural);
    let same = dictionary.natural.iter().zip(&fields).map(|(at, field)| {
        let theirs = format!("d.{}", table.ident(*at));
        match dictionary.lower.contains(at) {
            true => format!("lower({theirs}) = lower({field})"),
            false => format!("{theirs} IS NOT DISTINCT FROM {field}"),
        }
    });
    let select = format!(
        "SELECT restante_n, {} FROM {from} JOIN {} d ON {}",
        table.expression(table.single_key()?, "d"),
        table.quoted(),
        same.collect::<Vec<_>>().join(" AND ")
    );
    let field = |(_, row): &(Vec<u8>, Row), at: usize| row[at].bytes().map(Bytes::copy_from_slice);
    let values = dictionary.natural.iter().map(|at| Array(rows.iter().map(|row| field(row, *at)).collect()));
    let values: Vec<Array> = values.collect();
    let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
    let found = ask(session, "looking for shared values", &select, &values).await?;
    let key = |row: &tokio_postgres::Row| {
        let at = usize::try_from(row.get::<_, i64>(0) - 1).ok()?;
        Some((rows.get(at)?.0.clone(), row.get::<_, Field>(1).0))
    };
    Ok(found.iter().filter_map(key).collect())
}

/// Kinds are counted through: first the links to parts, then the other children.
fn rows_of<'a>(via: &'a mut [Vec<Row>], children: &'a mut [Vec<Row>], kind: usize) -> &'a mut Vec<Row> {
    match kind.checked_sub(via.len()) {
        None => &mut via[kind],
        Some(child) => &mut children[child],
    }
}

/// The parts that leftovers and incomplete messages name.
pub(super) async fn parts(
    source: &dyn Source,
    layout: &Layout,
    leftovers: &[Leftover],
    incomplete: &Incomplete,
) -> Result<PartRows, CompareError> {
    let mut parts = Vec::with_capacity(layout.parts.len());
    for (kind, part) in layout.parts.iter().enumerate() {
        let rows = leftovers.iter().flat_map(|leftover| &leftover.via[kind]).chain(&incomplete.via[kind]);
        let keys: HashSet<Vec<u8>> = rows.filter_map(|row| Some(row[part.part].bytes()?.to_vec())).collect();
        parts.push(rows_with(source, &part.table, &keys).await?);
    }
    Ok(parts)
}

/// What leftovers and incomplete messages share with others, by dictionary and key.
pub(super) async fn dictionaries(
    session: &Session,
    source: &dyn Source,
    layout: &Layout,
    leftovers: &[Leftover],
    incomplete: &mut Incomplete,
) -> Result<(PartRows, Hanging), CompareError> {
    let mut dangling: Vec<HashMap<Vec<u8>, Vec<Vec<u8>>>> = vec![HashMap::new(); layout.dictionaries.len()];
    let content = layout.message.content.iter();
    let of_content =
        content.flat_map(|content| content.refers.iter().map(|(at, refers)| (content.first + at, *refers)));
    for (column, refers) in layout.message.refers.iter().copied().chain(of_content) {
        let Refers::Dictionary(kind) = refers else { continue };
        let dictionary = &layout.dictionaries[kind];
        // A value that has a number may be there under another one.
        if dictionary.natural == dictionary.table.key {
            dangling[kind].extend(without_value(session, layout, column, &dictionary.table).await?);
        }
    }
    let mut keys: Vec<HashSet<Vec<u8>>> = vec![HashSet::new(); layout.dictionaries.len()];
    let lost = leftovers.iter().flat_map(|one| layout.shared(Some(&one.row), &one.via, &one.children));
    for (kind, key) in lost.chain(layout.shared(None, &incomplete.via, &incomplete.children)) {
        keys[kind].insert(key.to_vec());
    }
    let mut found = vec![HashMap::new(); keys.len()];
    let mut hanging: Hanging = layout.dictionaries.iter().map(|one| vec![HashMap::new(); one.children.len()]).collect();
    // What a dictionary refers to stands before it.
    for (kind, dictionary) in layout.dictionaries.iter().enumerate().rev() {
        let mut own = std::mem::take(&mut keys[kind]);
        own.extend(dangling[kind].keys().cloned());
        let rows = rows_with(source, &dictionary.table, &own).await?;
        for row in rows.values() {
            refers_on(&dictionary.refers, row, &mut keys);
        }
        for (child, hanging) in dictionary.children.iter().zip(&mut hanging[kind]) {
            *hanging = hanging_on(source, child, &own).await?;
            for row in hanging.values().flatten() {
                refers_on(&child.refers, row, &mut keys);
            }
        }
        // Of others nobody ever had the value.
        for (key, messages) in dangling[kind].drain().filter(|(key, _)| rows.contains_key(key)) {
            incomplete.values[kind].insert(key);
            incomplete.messages.extend(messages.into_iter().map(|key| Holder { is_content: false, key }));
        }
        found[kind] = rows;
    }
    Ok((found, hanging))
}

/// For each dictionary, the rows that hang on its own, by kind of child and key.
type Hanging = Vec<Vec<HashMap<Vec<u8>, Vec<Row>>>>;

/// The values of other dictionaries that a row refers to.
fn refers_on(refers: &[(usize, Refers)], row: &Row, keys: &mut [HashSet<Vec<u8>>]) {
    for (column, refers) in refers {
        if let (Refers::Dictionary(kind), Some(key)) = (refers, row[*column].bytes()) {
            keys[*kind].insert(key.to_vec());
        }
    }
}

async fn hanging_on(
    source: &dyn Source,
    child: &Child,
    keys: &HashSet<Vec<u8>>,
) -> Result<HashMap<Vec<u8>, Vec<Row>>, CompareError> {
    let mut found: HashMap<Vec<u8>, Vec<Row>> = HashMap::new();
    if !keys.is_empty() {
        for mut row in collect(source, &child.table.source, Pick::Keys { column: child.of[0], keys }).await? {
            fetch(source, &mut row).await?;
            let key = child.holder(|at| row[at].bytes()).unwrap_or_default();
            found.entry(key).or_default().push(row);
        }
    }
    Ok(found)
}

/// Values of a column that are not in the table that it refers to, with the messages that have them.
async fn without_value(
    session: &Session,
    layout: &Layout,
    column: usize,
    to: &Table,
) -> Result<HashMap<Vec<u8>, Vec<Vec<u8>>>, CompareError> {
    let message = &layout.message.table;
    let ident = message.ident(column);
    let select = format!(
        "SELECT {}, {} FROM {} m WHERE m.{ident} IS NOT NULL AND NOT EXISTS (SELECT FROM {} v WHERE v.{} = m.{ident}) AND {}",
        message.expression(message.single_key()?, "m"),
        message.expression(column, "m"),
        message.quoted(),
        to.quoted(),
        to.ident(to.single_key()?),
        layout.shown()
    );
    let mut found: HashMap<Vec<u8>, Vec<Vec<u8>>> = HashMap::new();
    live::copy(session, "looking for what live messages refer to", &select, 2, &mut |row| {
        if let (Some(message), Some(value)) = (row[0], row[1]) {
            found.entry(value.to_vec()).or_default().push(message.to_vec());
        }
        Ok(())
    })
    .await?;
    Ok(found)
}

/// The rows of a table of the snapshot that have these keys.
async fn rows_with(
    source: &dyn Source,
    table: &Table,
    keys: &HashSet<Vec<u8>>,
) -> Result<HashMap<Vec<u8>, Row>, CompareError> {
    let mut found = HashMap::with_capacity(keys.len());
    let key = table.single_key()?;
    if !keys.is_empty() {
        source
            .scan(&table.source, Pick::Keys { column: key, keys }, &mut |cells| {
                let row = cells.iter().map(|cell| cell.keep()).collect();
                found.insert(inline(cells, key).unwrap_or_default().to_vec(), row);
                Ok(())
            })
            .await?;
    }
    Ok(found)
}
