//! What became of the tables: the snapshot of after the change held against the one of before, as strictly as the change declares.
//!
//! | declared | must hold |
//! |---|---|
//! | nothing | every row is there as it was; none came (online: new ones may come, and only that is no finding) |
//! | `schema` | the same multiset of rows, wherever they lie now and whatever columns were added; where columns changed the live rows are read once and their old columns hashed anew |
//! | `rows` | every primary key but `most_removed`; no more rows changed than `most_changed`. Without a key rows are only counted |
//!
//! The writer key is enough: row maps have a keyed digest of each row. With a reader's identity the columns that changed are named too.
//! Memory: about 40 bytes for each row of segments that differ.

use std::collections::{BTreeSet, HashMap, HashSet};

use serde::Serialize;

use super::change::{May, Mode, Unbound};
use super::error::GuardError;
use super::keys::{Keys, Moved};
use crate::compare::diff::{self, TableDiff};
use crate::compare::{CompareError, live};
use crate::postgres::catalog;
use crate::postgres::session::Session;
use crate::postgres::sql;
use crate::repository::RepositoryError;
use crate::repository::id::{Digest, Epoch, ObjectId};
use crate::repository::manifest::{Table, Wire};
use crate::repository::segment::Increment;
use crate::repository::snapshots::SnapshotReader;

/// A table after the change.
#[derive(Debug, Clone, Serialize)]
pub struct TableVerdict {
    /// `schema.table`. Hostile text.
    pub table: String,
    pub declared: May,
    pub rows_before: Option<u64>,
    pub rows_after: Option<u64>,
    /// Rows that are not there as they were; absent where they could not be compared.
    pub removed: Option<u64>,
    /// Rows that were not there before.
    pub added: Option<u64>,
    /// Of a table with declared `rows`: primary keys that are not there any more, and new ones; absent where it has none.
    pub keys_gone: Option<u64>,
    pub keys_new: Option<u64>,
    /// Why a person must look.
    pub finding: Option<String>,
    /// What was not compared, and why that is no finding.
    pub note: Option<String>,
    /// Columns whose values differ in rows with the same key; known to readers alone.
    pub columns: Vec<String>,
}

/// All of it.
#[derive(Debug, Clone, Serialize)]
pub struct Comparison {
    pub before: ObjectId,
    pub after: ObjectId,
    pub tables: Vec<TableVerdict>,
    /// Was there an identity to say which columns changed?
    pub with_identity: bool,
}

impl Comparison {
    pub fn findings(&self) -> impl Iterator<Item = &TableVerdict> {
        self.tables.iter().filter(|table| table.finding.is_some())
    }
}

/// Compares two snapshots. `session` reads tables whose columns changed; `readers`: the two opened with an identity.
pub async fn compare(
    before: &SnapshotReader,
    after: &SnapshotReader,
    change: &Unbound,
    keys: &Keys,
    session: &Session,
    readers: Option<&(SnapshotReader, SnapshotReader)>,
) -> Result<Comparison, GuardError> {
    let mut tables = Vec::new();
    session.carry(&before.manifest().server.encoding);
    let catalog = catalog::read(session).await?;
    for diff in diff::tables(before, after).await? {
        let mut verdict = judge(before, after, change, session, diff).await?;
        if verdict.declared == May::Rows && verdict.rows_after.is_some() {
            let moved = keys.moved(&verdict.table, session, &catalog).await?;
            rows(&mut verdict, change, moved);
        }
        if verdict.finding.is_some()
            && let Some((before, after)) = readers
            && let Some((old, new)) = named(before, &verdict.table).zip(named(after, &verdict.table))
        {
            verdict.columns = super::columns::changed(before, old, after, new).await?;
        }
        tables.push(verdict);
    }
    Ok(Comparison { before: before.snapshot.id, after: after.snapshot.id, tables, with_identity: readers.is_some() })
}

fn named<'a>(reader: &'a SnapshotReader, label: &str) -> Option<&'a Table> {
    reader.manifest().tables.iter().find(|table| table.label() == label)
}

async fn judge(
    before: &SnapshotReader,
    after: &SnapshotReader,
    change: &Unbound,
    session: &Session,
    diff: TableDiff,
) -> Result<TableVerdict, GuardError> {
    let may = change.declared(&diff.table).map_or(May::None, |declared| declared.may);
    let mut verdict = TableVerdict {
        table: diff.table,
        declared: may,
        rows_before: diff.rows_before,
        rows_after: diff.rows_after,
        removed: diff.removed,
        added: diff.added,
        keys_gone: None,
        keys_new: None,
        finding: None,
        note: None,
        columns: Vec::new(),
    };
    let Some(rows_before) = diff.rows_before else {
        verdict.note = Some("it is new".into());
        return Ok(verdict);
    };
    let Some(rows_after) = diff.rows_after else {
        verdict.finding = Some(format!("it is gone, with {rows_before} rows"));
        return Ok(verdict);
    };
    let mut columns_changed = false;
    let mut converted = String::new();
    if let Some((old, new)) = named(before, &verdict.table).zip(named(after, &verdict.table))
        && (old.columns != new.columns || new.kind == "p")
    {
        columns_changed = true;
        if may == May::None {
            verdict.finding = Some("its columns were changed, and the change does not declare it".into());
            return Ok(verdict);
        }
        match Recheck::of(before, old, new, session).await? {
            Recheck::Counted { missing, extra, retyped } => {
                (verdict.removed, verdict.added) = (Some(missing), Some(extra));
                if !retyped.is_empty() {
                    converted = format!(
                        " (columns of another type now: {}; where that type writes the same value otherwise, the rows are as they were)",
                        retyped.join(", ")
                    );
                }
            }
            Recheck::Impossible(why) if may == May::Rows => {
                verdict.note = Some(format!("rows were counted, not compared: {why}"))
            }
            Recheck::Impossible(why) => {
                verdict.note = Some(format!("rows were counted, not compared: {why}"));
                if rows_after < rows_before || (change.mode != Mode::Online && rows_after != rows_before) {
                    verdict.finding = Some(format!("it had {rows_before} rows and has {rows_after}"));
                }
                return Ok(verdict);
            }
        }
    } else if verdict.removed.is_none() {
        // The writer's keys were renewed between the two.
        verdict.note = diff.note.map(str::to_owned);
        if may != May::Rows || rows_after < rows_before {
            verdict.finding =
                Some("its rows cannot be compared, because the writer's keys were renewed meanwhile".into());
        }
        return Ok(verdict);
    }
    let (removed, added) = (verdict.removed.unwrap_or(0), verdict.added.unwrap_or(0));
    if may != May::Rows {
        let strict = strict_finding(rows_before, rows_after, removed, added, change.mode);
        verdict.finding = strict.map(|why| why + &converted);
    }
    if verdict.finding.is_none() && columns_changed && verdict.note.is_none() {
        verdict.note = Some("its columns were changed; every row says what it said in those that it had".into());
    }
    Ok(verdict)
}

/// For tables whose rows may change.
fn rows(verdict: &mut TableVerdict, change: &Unbound, keys: Result<Moved, String>) {
    let (Some(before), Some(after)) = (verdict.rows_before, verdict.rows_after) else { return };
    match keys {
        Ok(moved) => (verdict.keys_gone, verdict.keys_new) = (Some(moved.gone), Some(moved.new)),
        Err(why) => {
            verdict.note.get_or_insert(format!("rows were counted, not told apart: {why}"));
        }
    }
    let declared = change.declared(&verdict.table);
    let declared = declared.map_or((0, None), |declared| (declared.most_removed, declared.most_changed));
    let found = rows_finding(before, after, verdict.removed, verdict.keys_gone, declared);
    verdict.finding = verdict.finding.take().or(found);
}

/// For tables whose rows must be the same.
fn strict_finding(before: u64, after: u64, removed: u64, added: u64, mode: Mode) -> Option<String> {
    let lost = before.saturating_sub(after);
    if removed > 0 {
        let changed = removed.min(added);
        return Some(match (lost, removed == added) {
            (0, true) => format!("{changed} rows were changed"),
            (0, false) => format!("{removed} rows were lost or changed"),
            (lost, _) if lost == removed => format!("{lost} of {before} rows are gone"),
            (lost, _) => format!("{removed} of {before} rows were lost or changed; there are {lost} fewer"),
        });
    }
    (added > 0 && mode != Mode::Online).then(|| format!("{added} rows came that were not there before"))
}

/// `gone`: primary keys that are not there any more. Without them only the counts tell, and another row hides one that is gone.
fn rows_finding(
    before: u64,
    after: u64,
    removed: Option<u64>,
    gone: Option<u64>,
    (most_removed, most_changed): (u64, Option<u64>),
) -> Option<String> {
    let fewer = gone.unwrap_or(before.saturating_sub(after));
    if fewer > most_removed {
        let what = if gone.is_some() { "keys are gone" } else { "rows are fewer" };
        return Some(format!("{fewer} {what}, and the change declares {most_removed} at most"));
    }
    // A row that is gone is among those that are not as they were.
    let (what, changed, most) = match gone {
        Some(gone) => ("changed", removed?.saturating_sub(gone), most_changed?),
        None => ("changed or removed", removed?, most_changed?.saturating_add(most_removed)),
    };
    (changed > most).then(|| format!("{changed} rows were {what}, and the change declares {most} at most"))
}

/// Live rows of a table whose columns changed, held against the snapshot's by the columns that it had.
enum Recheck {
    Counted { missing: u64, extra: u64, retyped: Vec<String> },
    Impossible(String),
}

impl Recheck {
    async fn of(before: &SnapshotReader, old: &Table, new: &Table, session: &Session) -> Result<Self, GuardError> {
        let gone: Vec<&str> = old
            .columns
            .iter()
            .filter(|column| new.column(&column.name).is_none())
            .map(|column| column.name.as_str())
            .collect();
        if !gone.is_empty() {
            return Ok(Self::Impossible(format!(
                "columns are gone ({}), and the digest of a row is over all of them",
                gone.join(", ")
            )));
        }
        let mut epochs: HashSet<Epoch> = HashSet::new();
        let mut increment: Option<Increment> = None;
        let mut rows: HashMap<Digest, i64> = HashMap::new();
        for entry in before.segments(old).await? {
            for one in before.descriptor(&entry).await?.increments {
                epochs.insert(one.epoch);
                for (_, row) in (0..).zip(before.row_map(&one).await?).filter(|(ordinal, _)| !one.is_dead(*ordinal)) {
                    *rows.entry(row.digest).or_default() += 1;
                }
                increment = Some(one);
            }
        }
        let Some(increment) = increment.filter(|_| epochs.len() == 1) else {
            if rows.is_empty() {
                return Ok(Self::Counted { missing: 0, extra: new.rows, retyped: Vec::new() });
            }
            return Ok(Self::Impossible("its rows were stored under several keys".into()));
        };
        let hasher = before.hasher(&increment)?;
        let mut retyped = Vec::new();
        let select: Vec<String> = old
            .columns
            .iter()
            .map(|column| {
                let now = new.column(&column.name).map_or("", |(_, now)| now.type_name.as_str());
                let name = sql::identifier(&column.name);
                let same = now == column.type_name;
                if !same {
                    retyped.push(format!("{}: {} → {now}", column.name, column.type_name));
                }
                let cast = if same { name } else { format!("{name}::{}", column.type_name) };
                if column.wire == Wire::Text { format!("{cast}::text") } else { cast }
            })
            .collect();
        let only = if new.kind == "p" { "" } else { "ONLY " };
        let select = format!("SELECT {} FROM {only}{}", select.join(", "), sql::qualified(&new.schema, &new.name));
        session.carry(&before.manifest().server.encoding);
        let mut extra = 0;
        let read =
            live::copy(session, "reading rows whose columns changed", &select, old.columns.len(), &mut |cells| {
                match rows.get_mut(&hasher.digest(cells.iter().copied())) {
                    Some(left) if *left > 0 => *left -= 1,
                    _ => extra += 1,
                }
                Ok(())
            })
            .await;
        match read {
            Ok(()) => {
                let missing = rows.values().map(|left| (*left).max(0).unsigned_abs()).sum();
                Ok(Self::Counted { missing, extra, retyped })
            }
            // A value that does not fit the type that it had.
            Err(CompareError::Postgres(e)) if e.is_about_data() || e.sqlstate() == Some("42846") => {
                Ok(Self::Impossible(format!("values cannot be read in the type that they had ({e})")))
            }
            Err(CompareError::Postgres(e)) => Err(e.into()),
            Err(e) => Err(GuardError::Server(e.to_string())),
        }
    }
}

/// Segments whose rows are not those of the other snapshot.
pub(super) async fn differing(
    reader: &SnapshotReader,
    table: &Table,
    other: &BTreeSet<Digest>,
) -> Result<Vec<crate::repository::segment::SegmentEntry>, RepositoryError> {
    Ok(reader.segments(table).await?.into_iter().filter(|segment| !other.contains(&segment.digest)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_rows_are_a_finding_only_where_nobody_may_come() {
        assert!(strict_finding(10, 12, 0, 2, Mode::Online).is_none());
        assert!(strict_finding(10, 12, 0, 2, Mode::Exclusive).is_some());
        for mode in [Mode::Online, Mode::Exclusive, Mode::Offline] {
            assert!(strict_finding(10, 10, 0, 0, mode).is_none());
            assert_eq!(strict_finding(10, 10, 3, 3, mode).unwrap(), "3 rows were changed");
            assert_eq!(strict_finding(10, 7, 3, 0, mode).unwrap(), "3 of 10 rows are gone");
            assert!(strict_finding(10, 12, 1, 3, mode).is_some(), "one lost, three delivered");
        }
    }

    #[test]
    fn declared_rows_have_bounds() {
        for gone in [Some(0), None] {
            assert!(rows_finding(10, 10, Some(10), gone, (0, None)).is_none());
            assert!(rows_finding(10, 10, Some(3), gone, (0, Some(3))).is_none());
            assert!(rows_finding(10, 10, Some(4), gone, (0, Some(3))).is_some());
            assert!(rows_finding(10, 10, None, gone, (0, Some(3))).is_none());
        }
        for gone in [Some(1), None] {
            assert!(rows_finding(10, 9, Some(1), gone, (0, None)).is_some());
            assert!(rows_finding(10, 9, Some(1), gone, (1, None)).is_none());
        }
        // One gone, another come: the keys tell, and it is not one that was changed.
        assert!(rows_finding(10, 10, Some(1), Some(1), (0, None)).is_some());
        assert!(rows_finding(10, 10, Some(1), Some(1), (1, Some(0))).is_none());
    }
}
