//! What rows refer to under keys that may be others now: accounts, mailboxes, and values that many rows share.
//!
//! A shared value is found again by its natural key, under whatever key the store has it now, or is made anew under a fresh one: its old key
//! may have been issued again to another value. Values may refer on, to accounts, mailboxes and other values; the natural key is compared when
//! what it refers to has its live key. What refers back to a message is set when the message is there.

use std::collections::{BTreeMap, HashMap};

use bytes::Bytes;

use super::batch::staged;
use super::error::ReplayError;
use super::parents::{Target, Targets};
use super::plan::Plan;
use super::staging::{self, Stage, StagedRow};
use super::write::{leave_out, live_type};
use crate::compare::layout::{Dictionary, Layout, Refers, Table};
use crate::compare::parents::Parents;
use crate::compare::row::{LargeValue, Row};
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;

/// Shared values of the snapshot, ready to be staged.
pub(super) struct Entries {
    /// By dictionary: key in the snapshot, and row.
    rows: Vec<BTreeMap<Vec<u8>, StagedRow>>,
    /// By dictionary and kind of child: what hangs on these.
    under: Vec<Vec<Vec<StagedRow>>>,
}

/// These values, by dictionary and key, with all that they and what hangs on them refer to.
pub(super) fn named<'a>(
    plan: &'a Plan,
    named: impl Iterator<Item = (usize, &'a [u8])>,
) -> Vec<BTreeMap<&'a [u8], &'a Row>> {
    let comparison = &plan.comparison;
    let mut found = vec![BTreeMap::new(); comparison.layout.dictionaries.len()];
    let add = |found: &mut Vec<BTreeMap<&'a [u8], &'a Row>>, kind: usize, key: &'a [u8]| {
        if let Some(row) = comparison.dictionaries[kind].get(key) {
            found[kind].insert(key, row);
        }
    };
    for (kind, key) in named {
        add(&mut found, kind, key);
    }
    // What a value refers to stands before it.
    for (kind, dictionary) in comparison.layout.dictionaries.iter().enumerate().rev() {
        for (key, row) in found[kind].clone() {
            let under = dictionary.children.iter().zip(&comparison.hanging[kind]);
            let under =
                under.flat_map(|(child, rows)| rows.get(key).into_iter().flatten().map(|row| (&child.refers, row)));
            for (refers, row) in std::iter::once((&dictionary.refers, row)).chain(under) {
                for (column, refers) in refers {
                    if let (Refers::Dictionary(kind), Some(key)) = (refers, row[*column].bytes()) {
                        add(&mut found, *kind, key);
                    }
                }
            }
        }
    }
    found
}

impl Entries {
    /// `targets`: the mailboxes that mail goes into, and whether it goes aside; else those that the comparison found.
    pub fn of<'a>(
        plan: &'a Plan,
        values: impl Iterator<Item = (usize, &'a [u8])>,
        found: &HashMap<LargeValue, Bytes>,
        targets: Option<(&Targets, bool)>,
    ) -> Self {
        let comparison = &plan.comparison;
        let lead = |refers: &[(usize, Refers)], row: &Row| {
            let own = targets.and_then(|(targets, aside)| own(&comparison.parents, targets, aside, refers, row));
            let mut row = staged(row, found);
            lead_to_parents(&comparison.parents, refers, own, &mut row);
            if targets.is_none() {
                forget_messages(refers, &mut row);
            }
            row
        };
        let named = named(plan, values);
        let (mut rows, mut under) = (Vec::new(), Vec::new());
        for (kind, dictionary) in comparison.layout.dictionaries.iter().enumerate() {
            let of = |(key, row): (&&[u8], &&Row)| (key.to_vec(), lead(&dictionary.refers, row));
            rows.push(named[kind].iter().map(of).collect());
            let hanging = dictionary.children.iter().zip(&comparison.hanging[kind]);
            let hanging = hanging.map(|(child, hanging)| {
                let rows = named[kind].keys().flat_map(|key| hanging.get(*key).into_iter().flatten());
                rows.map(|row| lead(&child.refers, row)).collect()
            });
            under.push(hanging.collect());
        }
        Self { rows, under }
    }
}

/// The target of the mailbox that a row refers to, or one of the account.
fn own<'a>(
    parents: &Parents,
    targets: &'a Targets,
    aside: bool,
    refers: &[(usize, Refers)],
    row: &Row,
) -> Option<(usize, &'a Target)> {
    refers.iter().find_map(|(column, refers)| {
        let key = row[*column].bytes()?;
        match refers {
            Refers::Mailbox => {
                let at = parents.mailbox(key)?;
                Some((at, targets.get(&(at, aside)).or_else(|| targets.get(&(at, false)))?))
            }
            Refers::Owner => {
                let owner = parents.owner(key)?;
                let of = |at: usize| parents.mailboxes[at].owner == Some(owner);
                targets.iter().find(|((at, _), _)| of(*at)).map(|((at, _), target)| (*at, target))
            }
            Refers::Dictionary(_) | Refers::Message => None,
        }
    })
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
            Refers::Dictionary(_) | Refers::Message => continue,
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

/// Where nobody looks for the message that a row refers to, it refers to none.
pub(super) fn forget_messages(refers: &[(usize, Refers)], row: &mut StagedRow) {
    for (column, _) in refers.iter().filter(|(_, refers)| *refers == Refers::Message) {
        row[*column] = None;
    }
}

pub(super) async fn stage(session: &Session, layout: &Layout, entries: &Entries) -> Result<(), ReplayError> {
    for (dictionary, rows) in entries.rows.iter().enumerate() {
        let rows: Vec<StagedRow> = rows.values().cloned().collect();
        staging::fill(session, layout, Stage::Dictionary(dictionary), &rows).await?;
        for (kind, rows) in entries.under[dictionary].iter().enumerate() {
            staging::fill(session, layout, Stage::Under { dictionary, kind }, rows).await?;
        }
    }
    Ok(())
}

/// Puts in the values that the store has no longer, and makes what is staged refer to the keys that the store has. Counts what hung on them and
/// stays out.
pub(super) async fn settle(
    session: &Session,
    layout: &Layout,
    entries: &Entries,
) -> Result<BTreeMap<String, u64>, ReplayError> {
    let mut left = BTreeMap::new();
    for (kind, rows) in entries.rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let dictionary = &layout.dictionaries[kind];
        let table = &dictionary.table;
        let key = table.single_key()?;
        let (stage, live) = (Stage::Dictionary(kind).name().quoted(), table.quoted());
        let same = same(dictionary, rows);
        let issued = !dictionary.natural.contains(&key);
        if issued && !table.filled(key) {
            return Err(ReplayError::NoNewKey { table: table.label(), column: table.columns[key].name.clone() });
        }
        let set = messages(dictionary).map(|at| (at, "NULL".to_owned())).collect();
        // What the server knows by its key comes under it, and the rest under fresh ones.
        let fixed = dictionary.fixed.as_ref().map(|sql| format!("(SELECT ({sql}) IS TRUE FROM (SELECT s.*) q)"));
        let fresh = (issued, fixed.as_ref().map_or("true".to_owned(), |fixed| format!("NOT {fixed}")));
        let ways: Vec<(bool, String)> = fixed.map(|fixed| (false, fixed)).into_iter().chain([fresh]).collect();
        // In the order of their old keys, so that two who restore the same wait for each other and do not lock each other out.
        // The snapshot may have a value twice where nothing makes it unique.
        let natural: Vec<String> =
            dictionary.natural.iter().map(|at| folded(dictionary, *at, table.ident(*at))).collect();
        let mut made: Vec<String> = Vec::new();
        for (is_fresh, which) in ways {
            let mut insert = staging::insert(table, &set, if is_fresh { &table.key } else { &[] });
            insert.conflict = " ON CONFLICT DO NOTHING";
            let rows = format!(
                "(SELECT DISTINCT ON ({natural}) * FROM {stage} ORDER BY {natural}, {})",
                staging::NUMBER,
                natural = natural.join(", ")
            );
            let missing = format!("NOT EXISTS (SELECT FROM {live} l WHERE {same}) AND {which}");
            let sql =
                insert.sql(table, &rows, &missing, staging::NUMBER) + &format!(" RETURNING {}::text", table.ident(key));
            let failed = PostgresError::server("restoring what mail refers to");
            let rows = session.client().query(&sql, &[]).await.map_err(failed)?;
            made.extend(rows.iter().map(|row| row.get::<_, String>(0)));
        }
        let sql = format!("SELECT count(*) FROM {stage} s WHERE NOT EXISTS (SELECT FROM {live} l WHERE {same})");
        let failed = || PostgresError::server("looking for what mail refers to");
        let missing: i64 = session.client().query_one(&sql, &[]).await.map_err(failed())?.get(0);
        if missing > 0 {
            return Err(ReplayError::ValueTaken { table: table.label(), rows: missing });
        }
        for (of, referring, column) in referring(layout, Refers::Dictionary(kind)) {
            let (ident, key) = (referring.ident(column), table.ident(key));
            let sql = format!(
                "UPDATE {} r SET {ident} = (SELECT l.{key}::{} FROM {live} l WHERE {same} ORDER BY l.{key} LIMIT 1) \
                 FROM {stage} s WHERE s.{key} = r.{ident}",
                of.name().quoted(),
                snapshot_type(referring, column),
            );
            session.execute("leading to what mail refers to", &sql).await?;
        }
        // With a value that is made anew comes what hung on it.
        for (at, child) in dictionary.children.iter().enumerate().filter(|_| !made.is_empty()) {
            let stage = Stage::Under { dictionary: kind, kind: at };
            let made: Vec<String> = made.iter().map(|key| sql::literal(key)).collect();
            let under = format!("s.{}::text IN ({})", child.table.ident(child.of[0]), made.join(", "));
            leave_out(session, child, stage, &under, &mut left).await?;
            let insert = staging::insert(&child.table, &child.set, &child.issued);
            insert.all(session, "restoring what hangs on what mail refers to", &child.table, stage, &under).await?;
        }
    }
    // Two values that were the same are one now, and rows that differed in them alone are doubled.
    for (kind, child) in layout.belonging().enumerate() {
        let led =
            |at: &usize| child.refers.iter().any(|(of, refers)| of == at && matches!(refers, Refers::Dictionary(_)));
        if child.natural.iter().any(led) {
            let stage = Stage::of(layout, kind).name().quoted();
            let same: Vec<String> =
                child.by().into_iter().map(|at| format!("e.{0} = r.{0}", child.table.ident(at))).collect();
            let sql = format!(
                "DELETE FROM {stage} r USING {stage} e WHERE e.{number} < r.{number} AND {}",
                same.join(" AND "),
                number = staging::NUMBER
            );
            session.execute("leading to what mail refers to", &sql).await?;
        }
    }
    Ok(left)
}

/// Lets values refer back to their messages, which are there by now. A message that another value has is that one's.
pub(super) async fn close(session: &Session, layout: &Layout, entries: &Entries) -> Result<(), ReplayError> {
    for (kind, rows) in entries.rows.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let dictionary = &layout.dictionaries[kind];
        let (table, same) = (&dictionary.table, same(dictionary, rows));
        for at in messages(dictionary) {
            let sql = format!(
                "UPDATE {live} l SET {ident} = s.{ident}::{kind} FROM {stage} s WHERE {same} AND l.{ident} IS NULL AND s.{ident} IS NOT NULL \
                 AND NOT EXISTS (SELECT FROM {live} o WHERE o.{ident} = s.{ident}::{kind}) \
                 AND EXISTS (SELECT FROM {messages} m WHERE m.{key} = s.{ident})",
                live = table.quoted(),
                ident = table.ident(at),
                kind = live_type(table, at),
                stage = Stage::Dictionary(kind).name().quoted(),
                messages = layout.message.table.quoted(),
                key = layout.message.table.ident(layout.message.table.single_key()?),
            );
            session.execute("leading back to mail", &sql).await?;
        }
    }
    Ok(())
}

/// The columns that refer back to messages.
fn messages(dictionary: &Dictionary) -> impl Iterator<Item = usize> {
    dictionary.refers.iter().filter(|(_, refers)| *refers == Refers::Message).map(|(column, _)| *column)
}

/// Is a live row `l` what a staged one `s` says?
fn same(dictionary: &Dictionary, rows: &BTreeMap<Vec<u8>, StagedRow>) -> String {
    let table = &dictionary.table;
    let same = dictionary.natural.iter().map(|at| {
        // An index serves `=` alone.
        let null = rows.values().any(|row| row[*at].is_none());
        let equals = if null { "IS NOT DISTINCT FROM" } else { "=" };
        let (ident, kind) = (table.ident(*at), live_type(table, *at));
        let [live, staged] =
            [format!("l.{ident}"), format!("s.{ident}::{kind}")].map(|one| folded(dictionary, *at, one));
        format!("{live} {equals} {staged}")
    });
    same.collect::<Vec<_>>().join(" AND ")
}

/// SQL for the key of the value that says this, which is made if it is not there. One column tells the values apart.
pub(super) async fn value(session: &Session, dictionary: &Dictionary, said: &str) -> Result<String, ReplayError> {
    let table = &dictionary.table;
    let (live, key, at) = (table.quoted(), table.ident(table.single_key()?), dictionary.natural[0]);
    let (ident, literal) = (table.ident(at), sql::literal(said));
    let [column, wanted] = [format!("l.{ident}"), literal.clone()].map(|one| folded(dictionary, at, one));
    let insert = format!(
        "INSERT INTO {live} ({ident}) SELECT {literal} WHERE NOT EXISTS (SELECT FROM {live} l WHERE {column} = {wanted}) ON CONFLICT DO NOTHING"
    );
    session.execute("marking restored mail", &insert).await?;
    Ok(format!("(SELECT l.{key} FROM {live} l WHERE {column} = {wanted} ORDER BY l.{key} LIMIT 1)"))
}

/// A column by which values are told apart, as SQL.
fn folded(dictionary: &Dictionary, at: usize, column: String) -> String {
    if dictionary.lower.contains(&at) { format!("lower({column})") } else { column }
}

pub(super) fn snapshot_type(table: &Table, column: usize) -> &str {
    let column = &table.columns[column];
    if column.text { "text" } else { &column.type_name }
}

/// What is staged and refers to `to`, with the column.
pub(super) fn referring(layout: &Layout, to: Refers) -> Vec<(Stage, &Table, usize)> {
    let message = [(Stage::Message, &layout.message.link, &layout.message.refers)];
    let content = layout.message.content.iter().map(|content| (Stage::Content, &content.table, &content.refers));
    let rest = layout.belonging().enumerate();
    let rest = rest.map(|(kind, child)| (Stage::of(layout, kind), &child.table, &child.refers));
    let shared = layout.dictionaries.iter().enumerate();
    let shared = shared.map(|(at, one)| (Stage::Dictionary(at), &one.table, &one.refers));
    let under = layout.dictionaries.iter().enumerate().flat_map(|(dictionary, one)| {
        let kinds = one.children.iter().enumerate();
        kinds.map(move |(kind, child)| (Stage::Under { dictionary, kind }, dictionary, child))
    });
    let all = message.into_iter().chain(content).chain(rest).chain(shared);
    let mut found: Vec<(Stage, &Table, usize)> = all
        .chain(under.clone().map(|(stage, _, child)| (stage, &child.table, &child.refers)))
        .flat_map(|(stage, table, refers)| {
            refers.iter().filter(move |(_, refers)| *refers == to).map(move |(column, _)| (stage, table, *column))
        })
        .collect();
    // What hangs on a value refers to it.
    let own = under.filter(|(_, dictionary, _)| to == Refers::Dictionary(*dictionary));
    found.extend(own.map(|(stage, _, child)| (stage, &child.table, child.of[0])));
    found
}
