//! What rows refer to under keys that may be others now: accounts, mailboxes, and values that many rows share.
//!
//! A shared value is found again by its natural key, under whatever key the store has it now, or is made anew under a fresh one: its old key
//! may have been issued again to another value.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::batch::staged;
use super::error::ReplayError;
use super::parents::Target;
use super::plan::Plan;
use super::staging::{self, Stage, StagedRow};
use super::write::live_type;
use crate::compare::layout::{Layout, Refers, Table};
use crate::compare::parents::Parents;
use crate::compare::row::LargeValue;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;

/// By dictionary: key in the snapshot, and row.
pub(super) type Entries = Vec<BTreeMap<Vec<u8>, StagedRow>>;

pub(super) fn entries<'a>(
    plan: &Plan,
    named: impl Iterator<Item = (usize, &'a [u8])>,
    found: &HashMap<LargeValue, Bytes>,
) -> Entries {
    let mut entries = vec![BTreeMap::new(); plan.comparison.layout.dictionaries.len()];
    for (kind, key) in named {
        if let Some(row) = plan.comparison.dictionaries[kind].get(key) {
            entries[kind].entry(key.to_vec()).or_insert_with(|| staged(row, found));
        }
    }
    entries
}

/// Turns references to accounts and mailboxes of the snapshot into such to the live ones. `own`: the mailbox that the row goes into.
pub(super) fn lead_to_parents(
    parents: &Parents,
    refers: &[(usize, Refers)],
    own: Option<(usize, &Target)>,
    row: &mut StagedRow,
) {
    for (column, refers) in refers {
        let Some(before) = row[*column].as_deref() else { continue };
        let now = match refers {
            Refers::Dictionary(_) => continue,
            Refers::Mailbox => parents.mailbox(before).and_then(|at| match own {
                Some((mailbox, target)) if mailbox == at => Some(&target.key),
                _ => parents.target(at).map(|live| &live.key),
            }),
            Refers::Owner => parents.owner(before).and_then(|at| match own {
                Some((mailbox, target)) if parents.mailboxes[mailbox].owner == Some(at) => target.owner.as_ref(),
                _ => parents.live_of(at).map(|live| &live.key),
            }),
        };
        // Whoever has that key now may be a stranger.
        row[*column] = now.cloned();
    }
}

pub(super) async fn stage(session: &Session, layout: &Layout, entries: &Entries) -> Result<(), ReplayError> {
    for (kind, rows) in entries.iter().enumerate() {
        let rows: Vec<StagedRow> = rows.values().cloned().collect();
        staging::fill(session, layout, Stage::Dictionary(kind), &rows).await?;
    }
    Ok(())
}

/// Puts in the values that the store has no longer, and makes what is staged refer to the keys that the store has.
pub(super) async fn settle(session: &Session, layout: &Layout, entries: &Entries) -> Result<(), ReplayError> {
    for (kind, rows) in entries.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let dictionary = &layout.dictionaries[kind];
        let table = &dictionary.table;
        let key = table.single_key()?;
        let (stage, live) = (Stage::Dictionary(kind).name().quoted(), table.quoted());
        let same: Vec<String> = dictionary
            .natural
            .iter()
            .map(|at| {
                // An index serves `=` alone.
                let null = rows.values().any(|row| row[*at].is_none());
                let equals = if null { "IS NOT DISTINCT FROM" } else { "=" };
                format!("l.{0} {equals} s.{0}::{1}", table.ident(*at), live_type(table, *at))
            })
            .collect();
        let same = same.join(" AND ");
        let issued = !dictionary.natural.contains(&key);
        if issued && !table.columns[key].live.as_ref().is_some_and(|live| live.identity || live.default.is_some()) {
            return Err(ReplayError::NoNewKey { table: table.label(), column: table.columns[key].name.clone() });
        }
        let insert = staging::insert(table, &BTreeMap::new(), if issued { &table.key } else { &[] });
        // In the order of their old keys, so that two who restore the same wait for each other and do not lock each other out.
        // The snapshot may have a value twice where nothing makes it unique.
        let natural: Vec<String> = dictionary.natural.iter().map(|at| table.ident(*at)).collect();
        let sql = format!(
            "INSERT INTO {live} ({}){} SELECT {} FROM (SELECT DISTINCT ON ({natural}) * FROM {stage} ORDER BY {natural}, {number}) s \
             WHERE NOT EXISTS (SELECT FROM {live} l WHERE {same}) ORDER BY s.{number} ON CONFLICT DO NOTHING",
            insert.columns,
            insert.overriding,
            insert.values,
            natural = natural.join(", "),
            number = staging::NUMBER
        );
        session.execute("restoring what mail refers to", &sql).await?;
        let sql = format!("SELECT count(*) FROM {stage} s WHERE NOT EXISTS (SELECT FROM {live} l WHERE {same})");
        let failed = PostgresError::server("looking for what mail refers to");
        let missing: i64 = session.client().query_one(&sql, &[]).await.map_err(failed)?.get(0);
        if missing > 0 {
            return Err(ReplayError::ValueTaken { table: table.label(), rows: missing });
        }
        for (of, referring, column) in referring(layout, kind) {
            let (ident, key) = (referring.ident(column), table.ident(key));
            let sql = format!(
                "UPDATE {} r SET {ident} = (SELECT l.{key}::{} FROM {live} l WHERE {same} ORDER BY l.{key} LIMIT 1) \
                 FROM {stage} s WHERE s.{key} = r.{ident}",
                of.name().quoted(),
                if referring.columns[column].text { "text" } else { &referring.columns[column].type_name },
            );
            session.execute("leading to what mail refers to", &sql).await?;
        }
    }
    // Two values that were the same are one now, and rows that differed in them alone are doubled.
    for (kind, child) in layout.belonging().enumerate() {
        let led =
            |at: &usize| child.refers.iter().any(|(of, refers)| of == at && matches!(refers, Refers::Dictionary(_)));
        if child.natural.iter().any(led) {
            let stage = Stage::of(layout, kind).name().quoted();
            let same = std::iter::once(&child.of).chain(&child.natural);
            let same: Vec<String> = same.map(|at| format!("e.{0} = r.{0}", child.table.ident(*at))).collect();
            let sql = format!(
                "DELETE FROM {stage} r USING {stage} e WHERE e.{number} < r.{number} AND {}",
                same.join(" AND "),
                number = staging::NUMBER
            );
            session.execute("leading to what mail refers to", &sql).await?;
        }
    }
    Ok(())
}

/// What is staged and refers to a dictionary, with the column.
fn referring(layout: &Layout, kind: usize) -> Vec<(Stage, &Table, usize)> {
    let message = [(Stage::Message, &layout.message.link, &layout.message.refers)];
    let content = layout.message.content.iter().map(|content| (Stage::Content, &content.table, &content.refers));
    let rest = layout.belonging().enumerate();
    let rest = rest.map(|(kind, child)| (Stage::of(layout, kind), &child.table, &child.refers));
    let all = message.into_iter().chain(content).chain(rest);
    let to = |refers: &Refers| *refers == Refers::Dictionary(kind);
    all.flat_map(|(stage, table, refers)| {
        refers.iter().filter(move |(_, refers)| to(refers)).map(move |(column, _)| (stage, table, *column))
    })
    .collect()
}
