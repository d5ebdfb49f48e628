//! Columns that a wrong UPDATE changed: the snapshot's values go back into living messages, as a flag change would, and undo gives back what was
//! there before.
//!
//! What was there is kept in the journal, as text, because no snapshot has it.

use std::collections::{BTreeSet, HashMap};

use super::batch::staged;
use super::error::ReplayError;
use super::look::{Locked, lock_mailboxes};
use super::plan::Plan;
use super::staging::{self, Stage, StagedRow};
use super::undo::{modseq, raise_modseq, state};
use super::write::live_type;
use crate::compare::layout::{Layout, Table};
use crate::compare::row::{LargeValue, Value};
use crate::compare::source::Source;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;
use crate::postgres::sql;

/// The table of the journal.
pub(super) const REPAIRED: &str = "\"restante\".\"repaired\"";

const MESSAGES: usize = 200;

/// Is the value of the live row another one than that staged? Not every type has an equality; text has.
fn differs(table: &Table, at: usize) -> String {
    format!("m.{0}::text IS DISTINCT FROM s.{0}::{1}::text", table.ident(at), live_type(table, at))
}

/// Puts values back; how many messages got one.
pub(super) async fn repair(
    session: &Session,
    source: &dyn Source,
    plan: &Plan,
    replay: &str,
) -> Result<u64, ReplayError> {
    let mut repaired = 0;
    for rows in plan.columns.rows.chunks(MESSAGES) {
        let long = rows.iter().flatten();
        let long: BTreeSet<LargeValue> =
            long.filter_map(|value| if let Value::Large(large) = value { Some(*large) } else { None }).collect();
        let long: Vec<LargeValue> = long.into_iter().collect();
        let found: HashMap<_, _> = long.iter().copied().zip(source.values(&long).await?).collect();
        let rows: Vec<StagedRow> = rows.iter().map(|row| staged(row, &found)).collect();
        let work = async || batch(session, &plan.comparison.layout, &plan.columns.columns, replay, &rows).await;
        repaired += staging::transaction(session, "putting columns back", work).await?;
    }
    Ok(repaired)
}

async fn batch(
    session: &Session,
    layout: &Layout,
    columns: &[usize],
    replay: &str,
    rows: &[StagedRow],
) -> Result<u64, ReplayError> {
    let failed = || PostgresError::server("putting columns back");
    staging::settings(session, layout).await?;
    staging::fill(session, layout, Stage::Message, rows).await?;
    let (message, table) = (&layout.message, &layout.message.table);
    let key = table.ident(table.single_key()?);
    let mailbox = table.ident(message.mailbox);
    // All that the comparison went by must still hold.
    let same = message.evidence.iter().chain(&message.modseq);
    let same = same.map(|at| format!("{} IS NOT DISTINCT FROM s.{}", table.expression(*at, "m"), table.ident(*at)));
    let other: Vec<String> = columns.iter().map(|at| differs(table, *at)).collect();
    let condition = same.chain([format!("({})", other.join(" OR ")), layout.shown_of("m")]);
    let condition = condition.collect::<Vec<_>>().join(" AND ");
    let from = format!(
        "{} m JOIN {} s ON m.{key} = s.{key}::{} WHERE {condition}",
        table.quoted(),
        Stage::Message.name().quoted(),
        live_type(table, table.single_key()?)
    );
    let rows = session.client().query(&format!("SELECT DISTINCT m.{mailbox}::text FROM {from}"), &[]).await;
    let mailboxes: Vec<String> = rows.map_err(failed())?.iter().map(|row| row.get(0)).collect();
    if mailboxes.is_empty() {
        return Ok(0);
    }
    let locked = lock_mailboxes(session, layout, mailboxes.iter().map(|key| &**key).collect()).await?;
    session.execute("putting columns back", &format!("SELECT FROM {from} FOR UPDATE OF m")).await?;

    let names: Vec<String> = columns.iter().map(|at| sql::literal(&table.columns[*at].name)).collect();
    let former: Vec<String> = columns.iter().map(|at| format!("m.{}::text", table.ident(*at))).collect();
    let journal = format!(
        "INSERT INTO {REPAIRED} (replay, mailbox, key, columns, former) \
         SELECT $1, m.{mailbox}::text, m.{key}::text, ARRAY[{}]::text[], ARRAY[{}]::text[] FROM {from} RETURNING entry",
        names.join(", "),
        former.join(", ")
    );
    let entries = session.client().query(&journal, &[&replay]).await.map_err(failed())?;
    let entries: Vec<i64> = entries.iter().map(|row| row.get(0)).collect();
    let values = columns.iter().map(|at| (*at, format!("s.{}::{}", table.ident(*at), live_type(table, *at))));
    let update = format!(
        "UPDATE {} m SET {} FROM {} s, {REPAIRED} r WHERE r.entry = ANY($1) AND m.{key} = r.key::{} AND m.{key} = s.{key}::{3}",
        table.quoted(),
        sets(layout, values, &locked),
        Stage::Message.name().quoted(),
        live_type(table, table.single_key()?)
    );
    session.client().execute(&update, &[&entries]).await.map_err(failed())?;
    raise_modseq(session, layout, locked.values()).await?;
    let record = format!(
        "UPDATE {REPAIRED} r SET state = {} FROM {} m WHERE r.entry = ANY($1) AND m.{key} = r.key::{}",
        state(layout)?,
        table.quoted(),
        live_type(table, table.single_key()?)
    );
    session.client().execute(&record, &[&entries]).await.map_err(failed())?;
    Ok(entries.len() as u64)
}

/// Values, and the MODSEQ of a change.
fn sets(
    layout: &Layout,
    values: impl Iterator<Item = (usize, String)>,
    locked: &HashMap<bytes::Bytes, Locked>,
) -> String {
    let (message, table) = (&layout.message, &layout.message.table);
    let number = message.modseq.map(|at| (at, format!("({})::{}", modseq(layout, locked), live_type(table, at))));
    let sets = values.chain(number).map(|(at, value)| format!("{} = {value}", table.ident(at)));
    sets.collect::<Vec<_>>().join(", ")
}

/// Gives back what was there before, where nobody touched the message since; the last entry of the batch, and how many were taken back and touched.
pub(super) async fn undo(
    session: &Session,
    layout: &Layout,
    replay: &str,
    wanted: &Option<Vec<String>>,
    after: i64,
) -> Result<(Option<i64>, [u64; 2]), ReplayError> {
    let failed = || PostgresError::server("giving columns back");
    staging::settings(session, layout).await?;
    let sql = format!(
        "SELECT entry, mailbox, columns FROM {REPAIRED} WHERE replay = $1 AND undone IS NULL AND entry > $2 \
         AND ($3::text[] IS NULL OR mailbox = ANY($3)) ORDER BY entry LIMIT {MESSAGES}"
    );
    let rows = session.client().query(&sql, &[&replay, &after, wanted]).await.map_err(failed())?;
    let Some(last) = rows.last() else { return Ok((None, [0, 0])) };
    let (entries, boxes): (Vec<i64>, BTreeSet<&str>) =
        rows.iter().map(|row| (row.get::<_, i64>(0), row.get::<_, &str>(1))).unzip();
    let table = &layout.message.table;
    let (key, key_type) = (table.ident(table.single_key()?), live_type(table, table.single_key()?));
    // A replay puts back the same columns everywhere.
    let mut values = Vec::new();
    for (number, name) in last.get::<_, Vec<&str>>(2).into_iter().enumerate() {
        let Some(at) = table.columns.iter().position(|column| column.name == name) else { continue };
        values.push((at, format!("r.former[{}]::{}", number + 1, live_type(table, at))));
    }
    let mailbox = table.ident(layout.message.mailbox);
    let of = format!("r.entry = ANY($1) AND m.{key} = r.key::{key_type}");
    let locked = lock_mailboxes(session, layout, boxes).await?;
    let untouched = format!(
        "SELECT r.entry, m.{mailbox}::text FROM {REPAIRED} r, {} m WHERE {of} AND r.state = {} FOR UPDATE OF m",
        table.quoted(),
        state(layout)?
    );
    let found = session.client().query(&untouched, &[&entries]).await.map_err(failed())?;
    // One that was moved meanwhile lies in a mailbox that is not locked; its state says so too.
    let own: BTreeSet<String> = found.iter().map(|row| row.get(1)).collect();
    let found: Vec<i64> = found.iter().map(|row| row.get(0)).collect();
    let update = format!(
        "UPDATE {} m SET {} FROM {REPAIRED} r WHERE {of}",
        table.quoted(),
        sets(layout, values.into_iter(), &locked)
    );
    session.client().execute(&update, &[&found]).await.map_err(failed())?;
    raise_modseq(session, layout, locked.values().filter(|one| own.contains(&one.key_text))).await?;
    let done = format!("UPDATE {REPAIRED} SET undone = clock_timestamp() WHERE entry = ANY($1)");
    session.client().execute(&done, &[&found]).await.map_err(failed())?;
    Ok((Some(last.get(0)), [found.len() as u64, (entries.len() - found.len()) as u64]))
}
