//! Living messages that miss parts or children: what they miss is put under them.
//!
//! Nothing is claimed in the journal: that the row is there is proof enough, and it is put in only where it is not.

use std::collections::{BTreeMap, BTreeSet};

use super::alive::alive;
use super::batch::staged;
use super::dictionaries;
use super::error::ReplayError;
use super::look::lock_mailboxes;
use super::plan::Plan;
use super::staging::{self, NUMBER, Stage, StagedRow};
use super::write::{insert_parts, is_missing};
use crate::compare::Holder;
use crate::compare::layout::Child;
use crate::compare::live;
use crate::compare::row::{LargeValue, Row, Value};
use crate::compare::source::Source;
use crate::postgres::session::Session;

/// Messages in one transaction.
const MESSAGES: usize = 50;

/// Makes incomplete messages whole; how many rows were put in.
pub(super) async fn repair(session: &Session, source: &dyn Source, plan: &Plan) -> Result<u64, ReplayError> {
    let incomplete = &plan.comparison.incomplete;
    let mut messages: Vec<&Holder> = incomplete.messages.iter().collect();
    messages.sort_unstable();
    let mut rows = 0;
    for (kind, keys) in incomplete.values.iter().enumerate() {
        let mut keys: Vec<&Vec<u8>> = keys.iter().collect();
        keys.sort_unstable();
        for batch in keys.chunks(MESSAGES) {
            rows += values(session, source, plan, kind, batch).await?;
        }
    }
    for batch in messages.chunks(MESSAGES) {
        rows += one(session, source, plan, batch).await?;
    }
    Ok(rows)
}

/// Puts in shared values that living messages refer to.
async fn values(
    session: &Session,
    source: &dyn Source,
    plan: &Plan,
    kind: usize,
    keys: &[&Vec<u8>],
) -> Result<u64, ReplayError> {
    let layout = &plan.comparison.layout;
    let named = dictionaries::named(plan, keys.iter().map(|key| (kind, &key[..])));
    let large = named.iter().flat_map(|rows| rows.values().copied()).flatten();
    let large: BTreeSet<LargeValue> =
        large.filter_map(|value| if let Value::Large(large) = value { Some(*large) } else { None }).collect();
    let large: Vec<LargeValue> = large.into_iter().collect();
    let found = large.iter().copied().zip(source.values(&large).await?).collect();
    let entries = dictionaries::Entries::of(plan, keys.iter().map(|key| (kind, &key[..])), &found, None);
    staging::transaction(session, "completing mail", async || {
        staging::settings(session, layout).await?;
        dictionaries::stage(session, layout, &entries).await?;
        dictionaries::settle(session, layout, &entries).await?;
        Ok(())
    })
    .await?;
    Ok(keys.len() as u64)
}

async fn one(session: &Session, source: &dyn Source, plan: &Plan, messages: &[&Holder]) -> Result<u64, ReplayError> {
    let (layout, incomplete) = (&plan.comparison.layout, &plan.comparison.incomplete);
    let of = |rows: &[Row], child: &Child| -> Vec<Row> {
        let is_content = layout.is_shared(child);
        let held = |row: &&Row| {
            let key = child.holder(|at| row[at].bytes()).unwrap_or_default();
            messages.binary_search_by(|one| (one.is_content, &one.key).cmp(&(is_content, &key))).is_ok()
        };
        rows.iter().filter(held).cloned().collect()
    };
    let via: Vec<Vec<Row>> = layout.parts.iter().zip(&incomplete.via).map(|(part, rows)| of(rows, &part.via)).collect();
    let children: Vec<Vec<Row>> =
        layout.children.iter().zip(&incomplete.children).map(|(child, rows)| of(rows, child)).collect();
    let mut parts: Vec<BTreeMap<&[u8], &Row>> = Vec::new();
    for (kind, part) in layout.parts.iter().enumerate() {
        let keys = via[kind].iter().filter_map(|row| row[part.part].bytes());
        parts.push(keys.filter_map(|key| Some((key, plan.comparison.parts[kind].get(key)?))).collect());
    }
    let shared = dictionaries::named(plan, layout.shared(None, &via, &children));
    let all = via
        .iter()
        .flatten()
        .chain(children.iter().flatten())
        .chain(parts.iter().flat_map(|parts| parts.values().copied()))
        .chain(shared.iter().flat_map(|rows| rows.values().copied()));
    let large: BTreeSet<LargeValue> =
        all.flatten().filter_map(|value| if let Value::Large(large) = value { Some(*large) } else { None }).collect();
    let needed: Vec<_> = parts.iter().map(|parts| parts.keys().copied().collect()).collect();
    let mut found = alive(session, source, plan, &needed).await?;
    let large: Vec<LargeValue> = large.into_iter().filter(|value| !found.contains_key(value)).collect();
    found.extend(large.iter().copied().zip(source.values(&large).await?));
    let rows = |rows: &[Row], child: &Child| -> Vec<StagedRow> {
        let mut rows: Vec<StagedRow> = rows.iter().map(|row| staged(row, &found)).collect();
        for row in &mut rows {
            dictionaries::lead_to_parents(&plan.comparison.parents, &child.refers, None, row);
            dictionaries::forget_messages(&child.refers, row);
        }
        rows
    };
    let entries = dictionaries::Entries::of(plan, layout.shared(None, &via, &children), &found, None);

    staging::transaction(session, "completing mail", async || {
        staging::settings(session, layout).await?;
        for (kind, parts) in parts.iter().enumerate() {
            staging::fill(session, layout, Stage::Via(kind), &rows(&via[kind], &layout.parts[kind].via)).await?;
            if !layout.parts[kind].numbered {
                let parts: Vec<StagedRow> = parts.values().map(|row| staged(row, &found)).collect();
                staging::fill(session, layout, Stage::Part(kind), &parts).await?;
            }
        }
        for (kind, children) in children.iter().enumerate() {
            staging::fill(session, layout, Stage::Child(kind), &rows(children, &layout.children[kind])).await?;
        }
        dictionaries::stage(session, layout, &entries).await?;
        lock(session, plan).await?;
        dictionaries::settle(session, layout, &entries).await?;
        let mut written = 0;
        let message = &layout.message.table;
        for (kind, child) in layout.belonging().enumerate() {
            let stage = Stage::of(layout, kind);
            let belongs = child.belongs("s", "m", message, &child.to);
            let alive = format!("EXISTS (SELECT FROM {} m WHERE {belongs})", message.quoted());
            if let Some(part) = layout.parts.get(kind).filter(|part| !part.numbered) {
                let needed = format!(
                    "EXISTS (SELECT FROM {} v WHERE v.{} = s.{})",
                    stage.name().quoted(),
                    child.table.ident(part.part),
                    part.table.ident(part.table.single_key()?)
                );
                insert_parts(session, layout, kind, &needed).await?;
            }
            let insert = staging::insert(&child.table, &child.set, &child.issued);
            let missing = format!("{alive} AND {}", is_missing(child));
            let sql = insert.sql(&child.table, &stage.name().quoted(), &missing, NUMBER);
            let failed = crate::postgres::PostgresError::server("completing mail");
            written += session.client().execute(&sql, &[]).await.map_err(failed)?;
        }
        Ok(written)
    })
    .await
}

/// The mailboxes of the messages that are about to be completed.
async fn lock(session: &Session, plan: &Plan) -> Result<(), ReplayError> {
    let layout = &plan.comparison.layout;
    let message = &layout.message;
    let mut mailboxes = BTreeSet::new();
    for (kind, child) in layout.belonging().enumerate() {
        let select = format!(
            "SELECT DISTINCT m.{}::text FROM {} s JOIN {} m ON {}",
            message.table.ident(message.mailbox),
            Stage::of(layout, kind).name().quoted(),
            message.table.quoted(),
            child.belongs("s", "m", &message.table, &child.to)
        );
        live::copy(session, "looking for mailboxes", &select, 1, &mut |row| {
            mailboxes.insert(String::from_utf8_lossy(row[0].unwrap_or_default()).into_owned());
            Ok(())
        })
        .await?;
    }
    if !mailboxes.is_empty() {
        lock_mailboxes(session, layout, mailboxes.iter().map(|key| &**key).collect()).await?;
    }
    Ok(())
}
