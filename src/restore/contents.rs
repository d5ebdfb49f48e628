//! Contents that several links may share: one that is still alive is linked to again, and one that is lost is put in once.
//!
//! That a living one is the lost mail's is proven by its key with its evidence, and by its parts and header fields, each byte of them: keys
//! are issued again, and two mails may have come in one second and be as long. Without a proof the content is put in once more: that costs
//! space alone. Where contents have something unique besides their key, as the hash of their bytes, one that came again under another key is
//! found by it and proven by its bytes; if these differ, the mail has no place.

use std::collections::HashMap;

use bytes::Bytes;
use tokio_postgres::types::ToSql;

use super::batch::{Batch, Progress, staged};
use super::dictionaries;
use super::error::ReplayError;
use super::plan::Plan;
use super::staging::{self, Stage, StagedRow};
use super::write::{Holder, live_type};
use crate::compare::content::{self, Stock};
use crate::compare::layout::{Shared, Unique};
use crate::compare::live;
use crate::compare::predicate::{Array, ask};
use crate::compare::row::{LargeValue, Value};
use crate::compare::{Comparison, Leftover};
use crate::postgres::PostgresError;
use crate::postgres::session::Session;

/// A content that messages of a batch link to.
pub(super) struct Content<'a> {
    /// Its key in the snapshot.
    pub before: &'a [u8],
    /// A message that links to it.
    pub leftover: &'a Leftover,
    pub state: State,
}

/// What the live store has of a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing that is known to be it.
    Gone,
    /// What lives under its key says the same.
    Alive,
    /// It came again, under this key.
    CameAgain(Bytes),
    /// Another one has what only one can have.
    Taken,
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
            found.push(Content { before, leftover, state: State::Gone });
        }
    }
    found
}

/// Finds out which of them live, under their keys or others, by what they say. `found` has the large values of their mail.
pub(super) async fn prove<'a>(
    session: &Session,
    plan: &Plan,
    mut contents: Vec<Content<'a>>,
    found: &HashMap<LargeValue, Bytes>,
) -> Result<Vec<Content<'a>>, ReplayError> {
    let comparison = &plan.comparison;
    let layout = &comparison.layout;
    let Some(content) = &layout.message.content else { return Ok(contents) };
    // Under a UUID lies what always lay there.
    let own = !content.keeps_key();
    if !own && content.unique.is_empty() {
        return Ok(contents);
    }
    let key = content.table.single_key()?;
    let row = |one: &Content<'_>| -> StagedRow {
        let mut row = vec![None; content.table.columns.len()];
        let fields = content.row(&one.leftover.row);
        for at in content.unique.iter().flat_map(|unique| &unique.columns) {
            row[*at] = kept(&fields[*at]);
        }
        dictionaries::lead_to_parents(&comparison.parents, &content.refers, None, &mut row);
        row[key] = Some(Bytes::copy_from_slice(one.before));
        row
    };
    let stock = Stock { parts: &comparison.parts, dictionaries: &comparison.dictionaries };
    let again = came_again(content);
    let stage = Stage::Content.name().quoted();
    let (ident, live) = (content.table.ident(key), live_type(&content.table, key));
    let lost = own.then(|| format!("SELECT s.{ident}::{live} FROM {stage} s"));
    let keys = again.iter().map(|from| format!("SELECT c.{ident} {from}"));
    let keys: Vec<String> = lost.into_iter().chain(keys).collect();
    let chosen = format!("m.{ident} IN ({})", keys.join(" UNION "));
    for batch in contents.chunks_mut(content::LIVE_BATCH) {
        let rows: Vec<StagedRow> = batch.iter().map(row).collect();
        let read = async || {
            staging::fill_all(session, layout, &[(Stage::Content, rows.clone())]).await?;
            let mut others: HashMap<Vec<u8>, Bytes> = HashMap::new();
            for from in &again {
                let select = format!("SELECT s.{ident}, {} {from}", content.table.expression(key, "c"));
                live::copy(session, "looking for mail that came again", &select, 2, &mut |row| {
                    let [before, now] = [0, 1].map(|at| row[at].unwrap_or_default());
                    others.insert(before.to_vec(), Bytes::copy_from_slice(now));
                    Ok(())
                })
                .await?;
            }
            Ok((others, content::live_mails(session, layout, true, &chosen).await?))
        };
        let (others, living) = staging::transaction(session, "looking for mail that is still there", read).await?;
        for one in batch {
            let ours = content::assemble(layout, &Comparison::made(one.leftover), stock, found);
            // What says nothing proves nothing.
            let same = |key: &[u8]| !ours.is_empty() && living.get(key).is_some_and(|theirs| *theirs == ours);
            one.state = match others.get(one.before) {
                _ if own && same(one.before) => State::Alive,
                // Nothing is unique but what it had already.
                Some(now) if !own && **now == *one.before => State::Gone,
                Some(now) if same(now) => State::CameAgain(now.clone()),
                Some(_) => State::Taken,
                None => State::Gone,
            };
        }
    }
    Ok(contents)
}

/// For each unique key SQL that joins staged contents `s` with living ones `c` that have the same.
fn came_again(content: &Shared) -> Vec<String> {
    let (table, stage) = (&content.table, Stage::Content.name().quoted());
    let same = |at: &usize| format!("c.{0} = s.{0}::{1}", table.ident(*at), live_type(table, *at));
    let join = |unique: &Unique| {
        let same: Vec<String> = unique.columns.iter().map(same).collect();
        format!("FROM {stage} s JOIN {} c ON {}", table.quoted(), same.join(" AND "))
    };
    content.unique.iter().map(join).collect()
}

fn kept(value: &Value) -> Option<Bytes> {
    if let Value::Bytes(bytes) = value { Some(bytes.clone()) } else { None }
}

impl Batch<'_> {
    /// Locks the contents that are there, so that nobody clears them away meanwhile, and draws keys for the others.
    pub(super) async fn hold_contents(&self, session: &Session, progress: &Progress) -> Result<Vec<Held>, ReplayError> {
        let Some(content) = &self.plan.comparison.layout.message.content else { return Ok(Vec::new()) };
        let table = &content.table;
        let key = table.single_key()?;
        let known = |one: &Content<'_>| {
            progress.contents.get(one.before).cloned().or_else(|| match &one.state {
                State::Alive => Some(Bytes::copy_from_slice(one.before)),
                State::CameAgain(key) => Some(key.clone()),
                State::Gone | State::Taken => None,
            })
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
        let came_again = |at: usize| matches!(self.contents[at].state, State::CameAgain(_));
        for (at, key) in held.iter_mut().enumerate() {
            // Its bytes are its evidence.
            let usable = is_there(at).map_or(is_own && !came_again(at), |same| same || came_again(at));
            key.take_if(|_| !usable);
        }
        let lacking = held.iter().filter(|key| key.is_none()).count();
        let mut fresh = staging::new_keys(session, table, lacking).await?.into_iter();
        let held = held.into_iter().enumerate().map(|(at, key)| match key {
            // Of one that is there under its own key something may be missing.
            Some(key) => Held { key, is_new: !came_again(at) && (is_own || is_there(at).is_none()) },
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
            let new = new.map(|(one, held)| Holder {
                leftover: one.leftover,
                key: std::slice::from_ref(&held.key),
                own: None,
            });
            let new: Vec<Holder<'_>> = new.collect();
            staged_rows.extend(self.belonging(true, &new));
        }
        for (kind, _) in layout.parts.iter().enumerate().filter(|(_, part)| !part.numbered) {
            staged_rows.push((Stage::Part(kind), self.parts[kind].values().cloned().collect()));
        }
        staging::fill_all(session, layout, &staged_rows).await
    }
}
