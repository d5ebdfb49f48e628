//! Contents that several links may share: one that is still alive is linked to again, and one that is lost is put in once.
//!
//! That a living one is the lost mail's is proven by its key with its evidence, and by its parts, each byte of them: keys are issued
//! again, and two mails may have come in one second and be as long. Without a proof the content is put in once more: that costs space
//! alone.

use std::collections::HashMap;

use bytes::Bytes;
use tokio_postgres::types::ToSql;

use super::batch::{Batch, Progress, staged};
use super::dictionaries;
use super::error::ReplayError;
use super::plan::Plan;
use super::staging::{self, Stage, StagedRow};
use super::write::{Holder, live_type};
use crate::compare::Leftover;
use crate::compare::layout::{Layout, Part};
use crate::compare::live;
use crate::compare::predicate::{Array, ask};
use crate::compare::row::Value;
use crate::compare::source::Source;
use crate::postgres::PostgresError;
use crate::postgres::session::Session;

/// A content that messages of a batch link to.
pub(super) struct Content<'a> {
    /// Its key in the snapshot.
    pub before: &'a [u8],
    /// A message that links to it.
    pub leftover: &'a Leftover,
    /// What lives under its key has its parts.
    pub is_alive: bool,
}

/// Under which key a content is, or will be.
pub(super) struct Held {
    pub key: Bytes,
    /// It is put in with what hangs on it, as far as that is not there.
    pub is_new: bool,
}

/// The contents of these messages, each once.
pub(super) fn of<'a>(plan: &Plan, leftovers: impl Iterator<Item = &'a Leftover>) -> Vec<Content<'a>> {
    let Some(content) = &plan.comparison.layout.message.content else { return Vec::new() };
    let mut found: Vec<Content<'a>> = Vec::new();
    for leftover in leftovers {
        let before = leftover.row[content.of].bytes().unwrap_or_default();
        if !found.iter().any(|one| one.before == before) {
            found.push(Content { before, leftover, is_alive: false });
        }
    }
    found
}

/// Finds out which of them live under their keys, by their parts.
pub(super) async fn prove<'a>(
    session: &Session,
    source: &dyn Source,
    plan: &Plan,
    mut contents: Vec<Content<'a>>,
) -> Result<Vec<Content<'a>>, ReplayError> {
    let layout = &plan.comparison.layout;
    let Some(content) = layout.message.content.as_ref().filter(|_| !contents.is_empty()) else { return Ok(contents) };
    let key = content.table.single_key()?;
    let row = |one: &Content<'_>| -> StagedRow {
        let mut row = vec![None; content.table.columns.len()];
        row[key] = Some(Bytes::copy_from_slice(one.before));
        row
    };
    let rows: Vec<StagedRow> = contents.iter().map(row).collect();
    let mut same = vec![true; contents.len()];
    let mut is_proven = vec![layout.parts.is_empty(); contents.len()];
    for (kind, part) in layout.parts.iter().enumerate() {
        let read = async || {
            staging::fill(session, layout, Stage::Content, &rows).await?;
            living_parts(session, layout, part).await
        };
        let mut living = staging::transaction(session, "looking for mail that is still there", read).await?;
        for (at, one) in contents.iter().enumerate() {
            let mut ours = Vec::new();
            for row in &one.leftover.via[kind] {
                let found = row[part.part].bytes().and_then(|key| plan.comparison.parts[kind].get(key));
                let order: Vec<Option<Bytes>> = part.order.iter().map(|at| kept(&row[*at])).collect();
                ours.push((order, found));
            }
            let mut theirs = living.remove(one.before).unwrap_or_default();
            ours.sort_by(|one, other| one.0.cmp(&other.0));
            theirs.sort();
            is_proven[at] |= !ours.is_empty();
            same[at] &= ours.len() == theirs.len();
            for ((order, part_row), (live_order, bytes)) in ours.into_iter().zip(theirs) {
                let Some(row) = part_row.filter(|_| order == live_order) else {
                    same[at] = false;
                    continue;
                };
                for (column, live) in part.bytes.iter().zip(bytes) {
                    same[at] &= match (&row[*column], live) {
                        (Value::Null, None) => true,
                        (Value::Bytes(bytes), Some(live)) => *bytes == live,
                        (Value::Large(value), Some(live)) => source.is(*value, &live).await?,
                        _ => false,
                    };
                }
            }
        }
    }
    for (at, one) in contents.iter_mut().enumerate() {
        one.is_alive = same[at] && is_proven[at];
    }
    Ok(contents)
}

fn kept(value: &Value) -> Option<Bytes> {
    if let Value::Bytes(bytes) = value { Some(bytes.clone()) } else { None }
}

/// Order and bytes of the parts that the staged contents have in the live store.
type Living = HashMap<Vec<u8>, Vec<(Vec<Option<Bytes>>, Vec<Option<Bytes>>)>>;

async fn living_parts(session: &Session, layout: &Layout, part: &Part) -> Result<Living, ReplayError> {
    let mut living = Living::new();
    let Some(content) = &layout.message.content else { return Ok(living) };
    let key = content.table.single_key()?;
    let via = &part.via.table;
    let mut columns = vec![format!("s.{}", content.table.ident(key))];
    columns.extend(part.order.iter().map(|at| via.expression(*at, "v")));
    columns.extend(part.bytes.iter().map(|at| part.table.expression(*at, "p")));
    let select = format!(
        "SELECT {} FROM {} s JOIN {} v ON v.{} = s.{}::{} JOIN {} p ON p.{} = v.{}",
        columns.join(", "),
        Stage::Content.name().quoted(),
        via.quoted(),
        via.ident(part.via.of),
        content.table.ident(key),
        live_type(via, part.via.of),
        part.table.quoted(),
        part.table.ident(part.table.single_key()?),
        via.ident(part.part)
    );
    live::copy(session, "looking for mail that is still there", &select, columns.len(), &mut |row| {
        let keep = |field: &Option<&[u8]>| field.map(Bytes::copy_from_slice);
        let (order, bytes) = row[1..].split_at(part.order.len());
        let entry = living.entry(row[0].unwrap_or_default().to_vec()).or_default();
        entry.push((order.iter().map(keep).collect(), bytes.iter().map(keep).collect()));
        Ok(())
    })
    .await?;
    Ok(living)
}

impl Batch<'_> {
    /// Locks the contents that are there, so that nobody clears them away meanwhile, and draws keys for the others.
    pub(super) async fn hold_contents(&self, session: &Session, progress: &Progress) -> Result<Vec<Held>, ReplayError> {
        let Some(content) = &self.plan.comparison.layout.message.content else { return Ok(Vec::new()) };
        let table = &content.table;
        let key = table.single_key()?;
        let known = |one: &Content<'_>| {
            let own = || one.is_alive.then(|| Bytes::copy_from_slice(one.before));
            progress.contents.get(one.before).cloned().or_else(own)
        };
        let mut held: Vec<Option<Bytes>> = self.contents.iter().map(known).collect();
        let is_own = content.keeps_key();
        if is_own {
            for (one, held) in self.contents.iter().zip(&mut held) {
                held.get_or_insert_with(|| Bytes::copy_from_slice(one.before));
            }
            self.wait_for_others(session).await?;
        }
        // What a restored content gets in place of its old value says nothing of it.
        let evidence = content.evidence.iter().filter(|at| !content.set.contains_key(at)).copied();
        let evidence: Vec<usize> = evidence.collect();
        let columns: Vec<usize> = std::iter::once(key).chain(evidence).collect();
        let (mut arrays, mut names, mut same) = (Vec::new(), Vec::new(), Vec::new());
        let mut values: Vec<Array> = Vec::new();
        for (number, at) in columns.iter().enumerate() {
            let column = &table.columns[*at];
            arrays.push(format!("${}::{}[]", number + 1, if column.text { "text" } else { &column.type_name }));
            names.push(format!("c{number}"));
            let equals = if *at == key { "=" } else { "IS NOT DISTINCT FROM" };
            same.push(format!("c.{} {equals} u.c{number}::{}", table.ident(*at), live_type(table, *at)));
            let field = |(one, held): (&Content<'_>, &Option<Bytes>)| {
                if *at == key { held.clone() } else { kept(&content.row(&one.leftover.row)[*at]) }
            };
            values.push(Array(self.contents.iter().zip(&held).map(field).collect()));
        }
        let sql = format!(
            "SELECT u.n, {} FROM unnest({}) WITH ORDINALITY u({}, n) JOIN {} c ON {} FOR KEY SHARE OF c",
            same.join(" AND "),
            arrays.join(", "),
            names.join(", "),
            table.quoted(),
            same[0]
        );
        let values: Vec<&(dyn ToSql + Sync)> = values.iter().map(|array| array as &(dyn ToSql + Sync)).collect();
        let rows = ask(session, "locking mail that is still there", &sql, &values).await?;
        let there: HashMap<i64, bool> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
        let is_there = |at: usize| there.get(&(at as i64 + 1)).copied();
        for (at, key) in held.iter_mut().enumerate() {
            let usable = is_there(at).unwrap_or(is_own);
            key.take_if(|_| !usable);
        }
        let lacking = held.iter().filter(|key| key.is_none()).count();
        let mut fresh = staging::new_keys(session, table, lacking).await?.into_iter();
        let held = held.into_iter().enumerate().map(|(at, key)| match key {
            // Of one that is there under its own key something may be missing.
            Some(key) => Held { key, is_new: is_own || is_there(at).is_none() },
            None => Held { key: fresh.next().map(|(key, _)| key).unwrap_or_default(), is_new: true },
        });
        Ok(held.collect())
    }

    /// Two who restore the same content must not both find that it is not there.
    async fn wait_for_others(&self, session: &Session) -> Result<(), ReplayError> {
        let keys: Vec<&[u8]> = self.contents.iter().map(|one| one.before).collect();
        let lock = "SELECT pg_advisory_xact_lock(hashtextextended('restante ' || encode(k, 'hex'), 0)) \
                    FROM (SELECT k FROM unnest($1::bytea[]) u(k) ORDER BY k) q";
        let failed = PostgresError::server("waiting for others who restore the same mail");
        session.client().execute(lock, &[&keys]).await.map_err(failed)?;
        Ok(())
    }

    /// Stages the contents that are to be put in, with what hangs on them.
    pub(super) async fn stage_contents(&self, session: &Session, held: &[Held]) -> Result<(), ReplayError> {
        let comparison = &self.plan.comparison;
        let layout = &comparison.layout;
        let mut staged_rows: Vec<(Stage, Vec<StagedRow>)> = Vec::new();
        if let Some(content) = &layout.message.content {
            let key = content.table.single_key()?;
            let mut rows = Vec::new();
            for (one, held) in self.contents.iter().zip(held).filter(|(_, held)| held.is_new) {
                let mut row = staged(content.row(&one.leftover.row), &self.found);
                row[key] = Some(held.key.clone());
                dictionaries::lead_to_parents(&comparison.parents, &content.refers, None, &mut row);
                rows.push(row);
            }
            staged_rows.push((Stage::Content, rows));
            let new = self.contents.iter().zip(held).filter(|(_, held)| held.is_new);
            let new = new.map(|(one, held)| Holder { leftover: one.leftover, key: &held.key, own: None });
            let new: Vec<Holder<'_>> = new.collect();
            staged_rows.extend(self.belonging(true, &new));
        }
        for (kind, _) in layout.parts.iter().enumerate().filter(|(_, part)| !part.numbered) {
            staged_rows.push((Stage::Part(kind), self.parts[kind].values().cloned().collect()));
        }
        staging::fill_all(session, layout, &staged_rows).await
    }
}
